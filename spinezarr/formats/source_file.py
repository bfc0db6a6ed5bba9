"""Which bytes was a volume read from: how many, and with which hash?"""

import hashlib
import io
from collections import deque
from dataclasses import dataclass
from typing import BinaryIO, cast

from typing_extensions import Buffer

__all__ = ["HashingFile", "SourceFile"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Size and hash of the bytes that a volume was read from.

    Several files count as one, with their bytes one after the other.
    """

    size_bytes: int
    sha256: str
    """Hexadecimal digest."""


class HashingFile(io.RawIOBase):
    """Stream of one or several files in sequence, which hashes and counts the bytes it reads."""

    def __init__(self, *files: BinaryIO) -> None:
        self._files = deque(cast("io.BufferedIOBase", file) for file in files)
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def readable(self) -> bool:
        """Return True, which :class:`io.BufferedReader` requires."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read at most as many bytes as ``buffer`` holds; return their number."""
        view = memoryview(buffer).cast("B")
        n_bytes = 0
        while self._files and not (n_bytes := self._files[0].readinto(view)):
            self._files.popleft()
        self._sha256.update(view[:n_bytes])
        self._size_bytes += n_bytes
        return n_bytes

    def source_file(self) -> SourceFile:
        """Return size and hash of the bytes read so far."""
        return SourceFile(self._size_bytes, self._sha256.hexdigest())
