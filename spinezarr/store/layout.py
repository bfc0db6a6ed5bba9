"""How a store is laid out: keys, chunk and shard shapes, codecs. The only place of these numbers.

::

    <dataset>.zarr/
      zarr.json               dataset, license, citation, format version
      table/                  the scan table, one xarray.Dataset
      table_bundle/           the files of table/ as one, for readers far away
      scans/<scan_id>/
        zarr.json             written last: metadata of everything below, and the manifest
        image/ label/         (z, y, x), sharded
        z/ y/ x/              coordinates in mm
        sampling/label_chunks voxels of each label in each chunk, for balanced draws
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeZYX

__all__ = [
    "BALANCED",
    "FORMAT_VERSION",
    "LARGEST_AXIS",
    "LARGEST_CHUNK_BYTES",
    "LARGEST_SCANS",
    "LARGEST_SHARD_CHUNKS",
    "PROFILES",
    "SMALL_ARRAY",
    "BloscCodecSpec",
    "Profile",
    "chunk_grid",
    "fill_value",
    "profile_named",
    "scan_key",
]

FORMAT_VERSION: Final = 5
"""Raised when a reader of the old version could misread a new store."""

LARGEST_AXIS: Final = 1 << 16
"""Voxels along an axis of a stored array; DICOM counts rows and columns in as many bits."""
LARGEST_CHUNK_BYTES: Final = 1 << 24
"""Of the voxels of a chunk, which is decoded as a whole; those that are written have 1.2 MB."""
LARGEST_SCANS: Final = 1 << 15
"""Of a store; all public spine CTs together are some 10,000."""
LARGEST_SHARD_CHUNKS: Final = 1 << 16
"""Chunks of a shard, whose places are looked up together; those that are written have 512."""

METADATA: Final = "zarr.json"
"""Name of the file with the metadata of a group or an array."""
IMAGE, LABEL = "image", "label"
LABEL_CHUNKS = "sampling/label_chunks"
TABLE = "table"
SCANS = "scans"


@dataclass(frozen=True, slots=True)
class BloscCodecSpec:
    """Parameters of the Blosc codec; the Zarr v3 specification has it, so every client reads it."""

    cname: Literal["lz4", "lz4hc", "zstd"]
    clevel: int
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]
    blocksize: int
    """Bytes asked for that decode on their own.

    C-Blosc 1 takes it as it is for zstd and makes at least 64 KiB of it for lz4 and lz4hc
    (``compute_blocksize`` in its ``blosc.c``).
    """


def chunk_grid(shape_zyx: ShapeZYX, block_zyx: ShapeZYX) -> ShapeZYX:
    """Return how many blocks cover a volume along each axis.

    Examples
    --------
    >>> chunk_grid((133, 512, 512), (64, 48, 48))
    (3, 11, 11)
    """
    z, y, x = (-(-n // c) for n, c in zip(shape_zyx, block_zyx, strict=True))
    return (z, y, x)


@dataclass(frozen=True, slots=True)
class Profile:
    """How the voxels of new scans are cut and compressed; a user chooses one by name.

    What a stored array has is said by its own Zarr metadata, and readers go by that alone.
    """

    name: str
    chunk_shape_zyx: ShapeZYX
    """Voxels of one chunk of image or mask."""
    max_shard_chunks_zyx: ShapeZYX
    """Chunks of one shard along each axis; small volumes have fewer."""
    image: BloscCodecSpec
    label: BloscCodecSpec

    def chunk_grid(self, shape_zyx: ShapeZYX) -> ShapeZYX:
        """Return how many chunks cover a volume along each axis."""
        return chunk_grid(shape_zyx, self.chunk_shape_zyx)

    def shard_shape_zyx(self, shape_zyx: ShapeZYX) -> ShapeZYX:
        """Return the voxels of one shard of a volume, whole chunks along each axis.

        Examples
        --------
        >>> BALANCED.shard_shape_zyx((535, 512, 512)), BALANCED.shard_shape_zyx((60, 50, 40))
        ((128, 528, 528), (64, 96, 48))
        """
        z, y, x = (
            min(most, n) * c
            for most, n, c in zip(
                self.max_shard_chunks_zyx,
                self.chunk_grid(shape_zyx),
                self.chunk_shape_zyx,
                strict=True,
            )
        )
        return (z, y, x)


SMALL_ARRAY: Final = BloscCodecSpec("lz4hc", 9, "bitshuffle", 16 * 1024)
"""Of coordinates and the sampling's counts, in every profile."""

# One chunk shape for all, as a scan's ``image_checksum`` is that of its chunks: the audit compares
# it across stores. Of the shapes measured, the one with the highest rate of random 128³ and 96³
# patches; a slice of any plane still touches few chunks. A shard covers the plane of an ordinary CT
# and 128 slices: a 128³ patch lies in one or two, and a shard is a dask chunk of about 70 MB.
_SHAPES: Final = ((64, 48, 48), (2, 16, 16))

BALANCED: Final = Profile(
    "balanced",
    *_SHAPES,
    image=BloscCodecSpec("lz4hc", 7, "shuffle", 16 * 1024),
    label=BloscCodecSpec("lz4hc", 7, "noshuffle", 16 * 1024),
)
"""0.88 of the ``.nii.gz`` files (lidc-idri-0001); see ``benchmarks/README.md``.

Bytes, not bits, are shuffled: LZ4 skips over the noisy low bytes, so that it decodes twice as fast.
Blocks of 64 KiB, the least that C-Blosc makes, are decoded or left out one by one: a slice across a
chunk needs one or two of five.
"""

FAST: Final = Profile(
    "fast",
    *_SHAPES,
    image=BloscCodecSpec("lz4hc", 9, "shuffle", 16 * 1024),
    label=BloscCodecSpec("lz4hc", 9, "noshuffle", 16 * 1024),
)
"""A few per cent more patches a second than the default, and 0.4 % fewer bytes; encodes at 0.6 of
its speed."""

SMALL: Final = Profile(
    "small",
    *_SHAPES,
    image=BloscCodecSpec("zstd", 9, "shuffle", 0),
    label=BloscCodecSpec("zstd", 8, "noshuffle", 0),
)
"""0.76; encodes 10 times slower than the default, decodes about 3 times slower."""

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {profile.name: profile for profile in (BALANCED, FAST, SMALL)}
)


def profile_named(name: str | None) -> Profile:
    """Return a profile by its name, the default for None.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name is None:
        return BALANCED
    if name not in PROFILES:
        raise UsageError(f"there is no codec profile {name!r}; choose {', '.join(PROFILES)}.")
    return PROFILES[name]


def fill_value(array: str, dtype: np.dtype[Any]) -> int | float:
    """Return what a Zarr reader shows for a chunk that is absent.

    Background for masks. For images a value that is no CT number: their chunks are never absent, so
    whoever sees it looks at a damaged store.
    """
    if array == LABEL:
        return 0
    if dtype.kind == "f":
        return float("nan")
    return int(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)


def scan_key(scan_id: str) -> str:
    """Return the key of a scan's group in the store."""
    return f"{SCANS}/{scan_id}"
