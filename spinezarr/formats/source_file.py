"""Source bytes: hashed and counted while they are read."""

import hashlib
import io
from dataclasses import dataclass
from typing import BinaryIO

from typing_extensions import Buffer

__all__ = ["HashingFile", "SourceFile"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The bytes that a volume was read from."""

    size_bytes: int
    sha256: str


class HashingFile(io.RawIOBase):
    """Hashes and counts what is read from a file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def readable(self) -> bool:
        """Answer yes, as :class:`io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read as many bytes as ``buffer`` has room for; return how many came."""
        view = memoryview(buffer).cast("B")
        block = self._raw.read(len(view))
        view[: len(block)] = block
        self._sha256.update(block)
        self._size_bytes += len(block)
        return len(block)

    def source_file(self) -> SourceFile:
        """Describe what has been read so far."""
        return SourceFile(self._size_bytes, self._sha256.hexdigest())
