"""Which files does a scan have, and where in each shard does each chunk lie?"""

import math
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from spinezarr.errors import CorruptStoreError, DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import ShardedArray
from spinezarr.store.blocks import SMALLEST_BLOCK_BYTES, BlockCoding
from spinezarr.store.layout import IMAGE, MASK_NAME, chunk_grid, counts_key
from spinezarr.store.sealed import StoredAttributes
from spinezarr.store.sharding import crc32, index_bytes

__all__ = [
    "SCAN_FILE",
    "ManifestEntry",
    "ShardEntry",
    "ShardPositions",
    "checked_content",
    "shard_entries",
]

_LARGEST_FILE_BYTES: Final = 1 << 40
_INDEX_PART: Final = "(0|[1-9][0-9]{0,4})"
_INDEX_1D, _INDEX_3D = "0", "/".join([_INDEX_PART] * 3)


def _either_separator(index: str) -> str:
    """Return a pattern for the key of a chunk with either separator."""
    return f"c/{index}|c[.]{index.replace('/', '[.]')}"


SCAN_FILE: Final = (
    rf"^(?:{MASK_NAME}/(?:{_either_separator(_INDEX_3D)}|zarr[.]json)"
    rf"|[zyx]/(?:{_either_separator(_INDEX_1D)}|zarr[.]json)"
    rf"|{counts_key(MASK_NAME)}/(?:{_either_separator('0/0')}|zarr[.]json))$"
)
"""Pattern of the keys that the manifest of a scan may name; ``image`` and ``label`` fit it too."""


Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class ManifestEntry(StoredAttributes):
    """Size and checksum of one stored file.

    The checksum is CRC-32 (RFC 1952), while chunks end with a CRC-32C. The CRC-32C of data that end
    with their own CRC-32C depends on the length alone, and would be equal for any two shards of
    equal sizes.
    """

    size_bytes: Annotated[int, Field(ge=0, le=_LARGEST_FILE_BYTES)]
    crc32: Crc32

    @classmethod
    def of(cls, data: bytes) -> "ManifestEntry":
        """Return the entry of a file with this content."""
        return cls(size_bytes=len(data), crc32=f"{crc32(data):08x}")


def checked_content(path: str, data: bytes | None, entry: ManifestEntry) -> bytes:
    """Return the content of a file after comparing it with its manifest entry.

    Parameters
    ----------
    path
        Path or URL of the file for messages.
    data
        Content of the file; None if it is absent.
    entry
        Entry of the file.

    Raises
    ------
    CorruptStoreError
        If the file is absent, or is not the one of the entry.
    """
    if data is None:
        raise CorruptStoreError(f"{path}: is missing from the store.")
    found = ManifestEntry.of(data)
    if found != entry:
        raise CorruptStoreError(
            f"{path}: is damaged: {found.size_bytes} bytes with crc32 {found.crc32}, "
            f"expected {entry.size_bytes} bytes with {entry.crc32}. Ingest it again."
        )
    return data


class ShardEntry(ManifestEntry):
    """Entry of one shard. It lists where its chunks lie, so a reader needs no shard index."""

    index_offset: Annotated[int, Field(ge=0, le=_LARGEST_FILE_BYTES)]
    """First byte of the shard's index, which follows its chunks."""
    index_crc32c: Crc32
    """CRC-32C of the shard's index, which is stored in the last four bytes of the shard."""
    chunks: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2,3}={1,2})?$")]
    """Base64 (RFC 4648, section 4) of a :attr:`.BlockCoding.row_dtype` for each chunk.

    The chunks lie one after the other from the start of the shard, so sums of sizes are offsets.
    """

    def rows(self, coding: BlockCoding) -> npt.NDArray[np.void]:
        """Return the rows of :attr:`chunks`, shape ``(n,)`` of :attr:`.BlockCoding.row_dtype`.

        Raises
        ------
        DamagedMetadataError
            If they are no rows of chunks of this coding.
        """
        dtype = coding.row_dtype
        try:
            data = a2b_base64(self.chunks, strict_mode=True)
        except ValueError:
            raise DamagedMetadataError("no base64", "the rows of chunks") from None
        if len(data) % dtype.itemsize:
            raise DamagedMetadataError(
                f"{len(data)} bytes of rows of chunks", f"a multiple of {dtype.itemsize}"
            )
        return np.frombuffer(data, dtype)

    def chunk_sizes(self, coding: BlockCoding) -> npt.NDArray[np.int64]:
        """Return the bytes of each chunk with its checksums, in the order of :meth:`rows`."""
        blocks = self.rows(coding)["block_sizes"].sum(axis=1, dtype=np.int64)
        sizes: npt.NDArray[np.int64] = blocks + coding.overhead_bytes
        return sizes

    def check(self, positions: "ShardPositions", coding: BlockCoding, *, is_full: bool) -> None:
        """Check that the chunks can be those of the shard.

        Parameters
        ----------
        positions
            Positions in the shard that have a chunk of the array.
        coding
            Sizes and codec of the blocks of a chunk.
        is_full
            Whether each of these chunks must be present.

        Raises
        ------
        DamagedMetadataError
            If these cannot be the chunks of the shard, or their sizes do not add up to
            :attr:`index_offset`, or with the index to :attr:`size_bytes`.
        """
        rows = self.rows(coding)
        listed, used = rows["position"], positions.used
        if len(listed) != len(used) or (listed != used).any():
            positions.check(listed, is_full=is_full)
        sizes = rows["block_sizes"]
        if sizes.size and int(sizes.min()) < SMALLEST_BLOCK_BYTES:
            raise DamagedMetadataError(
                f"a block of {sizes.min()} bytes", f"at least {SMALLEST_BLOCK_BYTES}"
            )
        if sizes.size and int(sizes.max()) > coding.largest_block_bytes:
            raise DamagedMetadataError(
                f"a block of {sizes.max()} bytes", f"at most {coding.largest_block_bytes}"
            )
        total = len(rows) * coding.overhead_bytes + int(sizes.sum(dtype=np.int64))
        if total != self.index_offset:
            raise DamagedMetadataError(f"chunks of {total} bytes", f"{self.index_offset} bytes")
        size_bytes = total + index_bytes(positions.n)
        if size_bytes != self.size_bytes:
            raise DamagedMetadataError(
                f"chunks and index of {size_bytes} bytes", f"{self.size_bytes} bytes"
            )


@dataclass(frozen=True, slots=True, eq=False)
class ShardPositions:
    """Positions of chunks in a shard, in C order, and which of them lie in the array.

    A shard at the edge of an array has positions that lie outside of it.
    """

    n: int
    """Number of positions in the shard."""
    used: npt.NDArray[np.uint32]
    """Ascending positions of the chunks that lie in the array."""
    is_used: npt.NDArray[np.bool_]
    """Whether the chunk at each position lies in the array; shape ``(n,)``."""

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, used_zyx: ShapeZYX, per_shard_zyx: ShapeZYX) -> Self:
        """Return the positions of a shard.

        Parameters
        ----------
        used_zyx
            Number of chunks of the array in the shard along each axis.
        per_shard_zyx
            Number of chunks in a whole shard along each axis.
        """
        numbers = np.arange(math.prod(per_shard_zyx), dtype=np.uint32).reshape(per_shard_zyx)
        used = numbers[tuple(map(slice, used_zyx))].ravel()
        is_used = np.zeros(numbers.size, bool)
        is_used[used] = True
        return cls(numbers.size, used, is_used)

    def check(self, positions: npt.NDArray[np.uint32], *, is_full: bool) -> None:
        """Check the positions of the chunks that a shard holds.

        Parameters
        ----------
        positions
            Positions that the manifest lists.
        is_full
            Whether all of :attr:`used` must be among them.

        Raises
        ------
        DamagedMetadataError
            If they are not ascending, lie outside of the array, or lack a required one.
        """
        if (positions[-1:] >= self.n).any() or (positions[1:] <= positions[:-1]).any():
            raise DamagedMetadataError(
                "positions that are not in order", f"ascending positions below {self.n}"
            )
        if is_full or not self.is_used[positions].all():
            raise DamagedMetadataError(
                f"{len(positions)} chunks", f"the {len(self.used)} that lie in the array"
            )


def shard_entries(
    name: str, array: ShardedArray, manifest: Mapping[str, ManifestEntry]
) -> dict[ShapeZYX, ShardEntry]:
    """Return the manifest entries of the shards of an array by shard index, ``(z, y, x)``.

    Parameters
    ----------
    name
        ``image``, ``label`` or the name of a further mask.
    array
        Metadata of the array.
    manifest
        Entries of all files of the scan, by key.

    Raises
    ------
    DamagedMetadataError
        If the manifest lacks shards of an image, or names shards or chunks that the array cannot
        have.
    """
    grid = chunk_grid(array.shape, array.shard_shape_zyx)
    per_shard = chunk_grid(array.shard_shape_zyx, array.chunk_shape_zyx)
    n_chunks_zyx = chunk_grid(array.shape, array.chunk_shape_zyx)
    coding = array.coding
    prefix = f"{name}/c"
    entries: dict[ShapeZYX, ShardEntry] = {}
    for key, entry in manifest.items():
        if not key.startswith(prefix):
            continue
        separator, index = key[len(prefix)], key[len(prefix) + 1 :]
        if not isinstance(entry, ShardEntry):
            raise DamagedMetadataError("no table of chunks", "one", f"manifest.{key}")
        z, y, x = map(int, index.split(separator))
        if separator != array.separator or z >= grid[0] or y >= grid[1] or x >= grid[2]:
            raise DamagedMetadataError(key, f"shards of {name} alone", "manifest")
        used = tuple(
            min(n - i * per, per)
            for i, n, per in zip((z, y, x), n_chunks_zyx, per_shard, strict=True)
        )
        try:
            entry.check(ShardPositions.of(used, per_shard), coding, is_full=name == IMAGE)
        except DamagedMetadataError as problem:
            location = f"manifest.{key}.chunks"
            raise DamagedMetadataError(problem.found, problem.expected, location) from None
        entries[z, y, x] = entry
    if name == IMAGE and len(entries) < math.prod(grid):
        raise DamagedMetadataError(
            f"{len(entries)} shards of {name}", f"{math.prod(grid)}", "manifest"
        )
    return entries
