"""From a raw folder to a store: discover → open → check, orient → shard, encode → publish."""
