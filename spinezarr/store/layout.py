"""How a store is laid out: keys, chunk and shard shapes, codecs. The only place of these numbers.

::

    <dataset>.zarr/
      zarr.json               dataset, licence, citation, format version
      table/                  the scan table, one xarray.Dataset
      scans/<scan_id>/
        zarr.json             written last: metadata of everything below, and the manifest
        image/ label/         (z, y, x), sharded
        z/ y/ x/              coordinates in mm
        sampling/label_chunks voxels of each label in each chunk, for balanced draws
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from spinezarr.geometry import ShapeZYX

__all__ = [
    "CHUNK_SHAPE_ZYX",
    "CODEC",
    "FORMAT_VERSION",
    "BloscCodecSpec",
    "chunk_grid",
    "fill_value",
    "scan_key",
    "shard_shape_zyx",
]

FORMAT_VERSION: Final = 2
"""Raised when a reader of the old version could misread a new store."""

CHUNK_SHAPE_ZYX: Final[ShapeZYX] = (64, 48, 48)
"""Voxels of one chunk of image or mask.

Of the shapes measured, the one with the highest rate of random 128³ and 96³ patches; a slice of any
plane still touches few chunks. See "Chunks" in ``docs/architecture.md``.
"""

_MAX_SHARD_CHUNKS_ZYX: Final[ShapeZYX] = (2, 16, 16)
"""A shard covers the whole plane of an ordinary CT and 128 slices.

A 128³ patch then lies in one or two shards, and a shard is a dask chunk of about 70 MB.
"""

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


CODEC: Final = BloscCodecSpec("lz4hc", 9, "bitshuffle", 16 * 1024)
"""Decodes twice as fast as zstd 3 at about 9 % more bytes; 0.86 of the ``.nii.gz`` (LIDC-IDRI)."""


def chunk_grid(shape_zyx: ShapeZYX, block_zyx: ShapeZYX = CHUNK_SHAPE_ZYX) -> ShapeZYX:
    """Return how many blocks cover a volume along each axis.

    Examples
    --------
    >>> chunk_grid((133, 512, 512))
    (3, 11, 11)
    """
    z, y, x = (-(-n // c) for n, c in zip(shape_zyx, block_zyx, strict=True))
    return (z, y, x)


def shard_shape_zyx(shape_zyx: ShapeZYX) -> ShapeZYX:
    """Return the voxels of one shard of a volume, whole chunks along each axis.

    Examples
    --------
    >>> shard_shape_zyx((535, 512, 512)), shard_shape_zyx((60, 50, 40))
    ((128, 528, 528), (64, 96, 48))
    """
    z, y, x = (
        min(most, n) * c
        for most, n, c in zip(
            _MAX_SHARD_CHUNKS_ZYX, chunk_grid(shape_zyx), CHUNK_SHAPE_ZYX, strict=True
        )
    )
    return (z, y, x)


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
