"""From a raw folder to a store: discover, open, check, orient, encode, publish."""
