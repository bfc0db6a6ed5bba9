"""Builds the bytes of a shard for tests."""

from collections.abc import Mapping

from spinezarr.store.sharding import shard_index


def assemble_shard(chunks: Mapping[int, bytes], n_chunks: int) -> bytes:
    """Join encoded chunks, by their position in the shard (C order), into one shard."""
    sizes = {position: len(chunk) for position, chunk in chunks.items()}
    parts = [chunks[position] for position in sorted(chunks)]
    return b"".join([*parts, shard_index(sizes, n_chunks)])
