"""How are compressed voxels read as a stream that must end where its voxels do?"""

import io

import numpy as np
from isal import igzip_lib
from typing_extensions import Buffer

from spinezarr.errors import FormatError
from spinezarr.formats.slabs import GZIP_MAGIC, READ_BYTES, read_into
from spinezarr.formats.source_file import HashingFile

__all__ = ["InflatingFile"]


class InflatingFile(io.RawIOBase):
    """Inflates the zlib or gzip stream that starts at the position of ``packed``."""

    def __init__(self, packed: "io.BufferedReader[HashingFile]") -> None:
        self._packed = packed
        is_gzip = packed.peek(2)[:2] == GZIP_MAGIC
        self._inflate = igzip_lib.IgzipDecompressor(
            igzip_lib.DECOMP_GZIP if is_gzip else igzip_lib.DECOMP_ZLIB
        )

    def readable(self) -> bool:
        """Return True, as the stream can be read."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read at most as many bytes as ``buffer`` holds; return their number.

        Raises
        ------
        EOFError
            If the file ends before the stream does.
        """
        view = memoryview(buffer).cast("B")
        while not self._inflate.eof:
            needs_input = self._inflate.needs_input
            compressed = self._packed.read(READ_BYTES) if needs_input else b""
            if needs_input and not compressed:
                raise EOFError
            block = self._inflate.decompress(compressed, len(view))
            if block:
                view[: len(block)] = block
                return len(block)
        return 0

    def check_end(self, path: str) -> None:
        """Refuse a stream that continues, or that ends without its checksum."""
        if read_into(self, np.empty(1, np.uint8), path):
            raise FormatError(f"{path}: holds more voxels than its header says.")
        if not self._inflate.eof:
            raise FormatError(
                f"{path}: cut short: the checksum after its voxels is missing. Download it again."
            )
        if self._inflate.unused_data:
            raise FormatError(f"{path}: goes on after its voxels. Download it again.")
