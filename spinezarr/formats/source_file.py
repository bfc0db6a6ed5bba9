"""Source bytes: hashed and counted while they are read."""

import hashlib
import io
from collections import deque
from dataclasses import dataclass
from typing import BinaryIO, cast

from typing_extensions import Buffer

__all__ = ["HashingFile", "SourceFile"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The bytes that a volume was read from; of several files, those of one after the other."""

    size_bytes: int
    sha256: str


class HashingFile(io.RawIOBase):
    """Hashes and counts what is read from a file, or from several, one after the other."""

    def __init__(self, *raws: BinaryIO) -> None:
        self._raws = deque(cast("io.BufferedIOBase", raw) for raw in raws)
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def readable(self) -> bool:
        """Answer yes, as :class:`io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read as many bytes as ``buffer`` has room for; return how many came."""
        view = memoryview(buffer).cast("B")
        got = 0
        while self._raws and not (got := self._raws[0].readinto(view)):
            self._raws.popleft()
        self._sha256.update(view[:got])
        self._size_bytes += got
        return got

    def source_file(self) -> SourceFile:
        """Describe what has been read so far."""
        return SourceFile(self._size_bytes, self._sha256.hexdigest())
