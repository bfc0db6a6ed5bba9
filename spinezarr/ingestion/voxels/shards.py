"""How are encoded chunks collected until their shard is whole?"""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.ingestion.voxels.memory import ScratchFile, Workspace
from spinezarr.store.layout import Profile
from spinezarr.store.sharding import shard_index

__all__ = ["ShardCollector", "WriteShard"]

WriteShard = Callable[[ShapeZYX, Iterator[Buffer]], None]
"""Writes the shard at an index from its bytes, part by part. Several threads call it."""


@dataclass(frozen=True, slots=True)
class _Spilled:
    """Position of an encoded chunk in the scratch file."""

    offset: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


@dataclass(slots=True)
class _Shard:
    """A shard that is not yet complete."""

    chunks_left: int
    chunks: dict[int, bytes | _Spilled] = field(default_factory=dict)
    """Chunks by their position in the shard, in C order."""


class ShardCollector:
    """Collects chunks, and writes each shard when its last chunk arrives. Threads may share it.

    Waiting chunks stay in memory as far as ``workspace.encoded`` allows, and go to a scratch file
    otherwise. A shard is written chunk by chunk, so memory never holds it twice.

    Parameters
    ----------
    shape_zyx
        Shape of the volume in voxels.
    profile
        Shapes of chunks and shards.
    write
        Function that writes a shard.
    workspace
        Memory and scratch space that may be used.
    """

    def __init__(
        self, shape_zyx: ShapeZYX, profile: Profile, write: WriteShard, workspace: Workspace
    ) -> None:
        self._write = write
        self._workspace = workspace
        self._chunk_grid_zyx = profile.chunk_grid(shape_zyx)
        self._chunks_per_shard_zyx = profile.chunk_grid(profile.shard_shape_zyx(shape_zyx))
        self._lock = threading.Lock()
        self._shards: dict[ShapeZYX, _Shard] = {}
        self._file: ScratchFile | None = None
        self._file_end = 0
        self._n_spilled = 0

    def add(self, chunk_zyx: ShapeZYX, data: bytes | None) -> None:
        """Add an encoded chunk, or None if it need not be stored.

        If that completes its shard, write the shard.
        """
        z, y, x = (i // n for i, n in zip(chunk_zyx, self._chunks_per_shard_zyx, strict=True))
        shard_zyx = (z, y, x)
        chunk_in_shard_zyx = tuple(
            i % n for i, n in zip(chunk_zyx, self._chunks_per_shard_zyx, strict=True)
        )
        with self._lock:
            shard = self._shards.get(shard_zyx)
            if shard is None:
                shard = self._shards[shard_zyx] = _Shard(self._chunk_count(shard_zyx))
            shard.chunks_left -= 1
            if data is not None:
                position = int(np.ravel_multi_index(chunk_in_shard_zyx, self._chunks_per_shard_zyx))
                shard.chunks[position] = self._hold(data)
            if shard.chunks_left:
                return
            del self._shards[shard_zyx]
        if shard.chunks:
            self._write(shard_zyx, self._parts(shard.chunks))

    def close(self) -> None:
        """Free the scratch space."""
        if self._file is not None:
            self._file.close()

    def _hold(self, data: bytes) -> bytes | _Spilled:
        if self._workspace.encoded.try_reserve(len(data)):
            return data
        if self._file is None:
            self._file = ScratchFile(self._workspace.scratch)
        if not self._n_spilled:
            self._file_end = 0
        self._file.write_at(self._file_end, data)
        spilled = _Spilled(self._file_end, len(data))
        self._file_end += len(data)
        self._n_spilled += 1
        return spilled

    def _parts(self, chunks: dict[int, bytes | _Spilled]) -> Iterator[Buffer]:
        """Yield the bytes of a shard, and release each chunk once it is written."""
        sizes = {position: len(chunk) for position, chunk in chunks.items()}
        for position in sorted(chunks):
            chunk = chunks.pop(position)
            if isinstance(chunk, _Spilled):
                yield self._read_spilled(chunk)
            else:
                yield chunk
                self._workspace.encoded.release(len(chunk))
        yield shard_index(sizes, math.prod(self._chunks_per_shard_zyx))

    def _read_spilled(self, chunk: _Spilled) -> bytearray:
        data = bytearray(chunk.size_bytes)
        with self._lock:
            if self._file is None:
                raise RuntimeError("a chunk was spilled without a scratch file")
            self._file.read_at(chunk.offset, data)
            self._n_spilled -= 1
        return data

    def _chunk_count(self, shard: ShapeZYX) -> int:
        """Return the number of chunks of a shard that lie inside the volume."""
        return math.prod(
            min(n, total - i * n)
            for i, n, total in zip(
                shard, self._chunks_per_shard_zyx, self._chunk_grid_zyx, strict=True
            )
        )
