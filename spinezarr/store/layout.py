"""How is a store laid out: which keys, chunk and shard shapes, codecs and bounds does it have?

No other module defines these numbers.

::

    <dataset>.zarr/
      zarr.json               attributes of the dataset, format version
      table/                  the scan table, one xarray.Dataset
      table_bundle/           the files of table/ in one file, for remote readers
      scans/<scan_id>/
        zarr.json             written last: metadata of everything below, and the manifest
        image/ label/         (z, y, x), sharded
        <mask>/               further masks by name, (z, y, x), sharded
        z/ y/ x/              coordinates in mm
        sampling/label_chunks voxel count of each label in each chunk
        sampling/<mask>_chunks
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from spinezarr.errors import UsageError
from spinezarr.mask_names import MASK_NAME, is_mask_name
from spinezarr.text import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from spinezarr.geometry import ShapeZYX

__all__ = [
    "ARRAY_NAME",
    "BALANCED",
    "FORMAT_VERSION",
    "IMAGE",
    "LABEL",
    "LABEL_CHUNKS",
    "LARGEST_AXIS",
    "LARGEST_CHUNK_BLOCKS",
    "LARGEST_CHUNK_BYTES",
    "LARGEST_SCANS",
    "LARGEST_SHARD_CHUNKS",
    "MASK_NAME",
    "METADATA",
    "PROFILES",
    "SAMPLING",
    "SCANS",
    "SMALL_ARRAY",
    "TABLE",
    "BloscCodecSpec",
    "Profile",
    "chunk_grid",
    "counts_key",
    "fill_value",
    "is_mask_name",
    "profile_named",
    "scan_key",
]

FORMAT_VERSION: Final = 7
"""Version of the store format; raised when an older reader could misread a new store."""

LARGEST_AXIS: Final = 1 << 16
"""Largest size of a stored array along an axis, in voxels; DICOM allows as many rows."""
LARGEST_CHUNK_BYTES: Final = 1 << 24
"""Largest decoded chunk, in bytes; the profiles make chunks of at most 0.5 MB."""
LARGEST_CHUNK_BLOCKS: Final = 1 << 8
"""Largest number of blocks of a chunk; the profiles make chunks of at most 16."""
LARGEST_SCANS: Final = 1 << 15
"""Largest number of scans in a store; there are some 10,000 public spine CTs."""
LARGEST_SHARD_CHUNKS: Final = 1 << 16
"""Largest number of chunks in a shard; the profiles make shards of at most 512."""

METADATA: Final = "zarr.json"
"""Name of the file with the metadata of a group or an array."""
IMAGE: Final = "image"
"""Name of the array of a scan that holds the CT."""
LABEL: Final = "label"
"""Name of the array of a scan that holds the mask."""
SAMPLING: Final = "sampling"
"""Name of the group of a scan that holds the voxel counts of its masks."""
LABEL_CHUNKS: Final = "sampling/label_chunks"
"""Key of the array of a scan with the voxel count of each label in each chunk."""
ARRAY_NAME: Final = f"^(?:{MASK_NAME})$"
"""Pattern of the names of image, ``label`` and further masks, as a whole text."""
TABLE: Final = "table"
"""Key of the scan table."""
SCANS: Final = "scans"
"""Key of the group of all scans."""


@dataclass(frozen=True, slots=True)
class BloscCodecSpec:
    """Parameters of the Blosc codec, which the Zarr v3 specification defines."""

    cname: Literal["lz4", "lz4hc", "zstd"]
    clevel: int
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]
    blocksize: int
    """Size of the decoded blocks of image and mask, in bytes; see :mod:`spinezarr.store.blocks`.

    0 makes a chunk a single block. For other arrays, it is what C-Blosc is asked for.
    """


def chunk_grid(shape_zyx: "ShapeZYX", block_zyx: "ShapeZYX") -> "ShapeZYX":
    """Return the number of blocks that cover a volume along each axis.

    Examples
    --------
    >>> chunk_grid((133, 512, 512), (64, 32, 32))
    (3, 16, 16)
    """
    z, y, x = (-(-n // c) for n, c in zip(shape_zyx, block_zyx, strict=True))
    return (z, y, x)


@dataclass(frozen=True, slots=True)
class Profile:
    """Chunk shape and codecs of new scans; a user chooses a profile by name.

    Readers take the chunk shape and the codecs of a stored array from its Zarr metadata alone.
    """

    name: str
    chunk_shape_zyx: "ShapeZYX"
    """Shape of a chunk of image or mask in voxels."""
    max_shard_chunks_zyx: "ShapeZYX"
    """Largest number of chunks in a shard along each axis; small volumes have fewer."""
    image: BloscCodecSpec
    label: BloscCodecSpec

    def chunk_grid(self, shape_zyx: "ShapeZYX") -> "ShapeZYX":
        """Return the number of chunks that cover a volume along each axis."""
        return chunk_grid(shape_zyx, self.chunk_shape_zyx)

    def shard_shape_zyx(self, shape_zyx: "ShapeZYX") -> "ShapeZYX":
        """Return the shape of a shard of a volume in voxels, whole chunks along each axis.

        Examples
        --------
        >>> BALANCED.shard_shape_zyx((535, 512, 512)), BALANCED.shard_shape_zyx((60, 50, 40))
        ((128, 512, 512), (64, 64, 64))
        """
        z, y, x = (
            min(limit, n) * c
            for limit, n, c in zip(
                self.max_shard_chunks_zyx,
                self.chunk_grid(shape_zyx),
                self.chunk_shape_zyx,
                strict=True,
            )
        )
        return (z, y, x)


SMALL_ARRAY: Final = BloscCodecSpec("lz4hc", 9, "bitshuffle", 16 * 1024)
"""Codec of the coordinates and of the voxel counts of labels, in every profile."""

# All profiles share one chunk shape, because the audit compares ``image_checksum`` across stores
# and that is a checksum of chunks. The smallest part that a reader needs is a block, 16 planes of a
# chunk of int16. Of the shapes measured, these read random patches of 64³ to 128³ voxels fastest,
# and slices of the three planes at similar rates. A shard covers the axial plane of an ordinary CT
# and 128 slices: a 128³ patch lies in one or two shards, and a shard is a dask chunk of 67 MB.
_SHAPES: Final = ((64, 32, 32), (2, 16, 16))
_IMAGE_BLOCK: Final = 16 * 32 * 32 * 2
"""Bytes of the blocks of an image; for int16, these are 16 planes of a chunk."""
_LABEL_BLOCK: Final = 16 * 32 * 32
"""Bytes of the blocks of a mask: 16 planes of a chunk."""

BALANCED: Final = Profile(
    "balanced",
    *_SHAPES,
    image=BloscCodecSpec("lz4hc", 7, "shuffle", _IMAGE_BLOCK),
    label=BloscCodecSpec("lz4hc", 7, "noshuffle", _LABEL_BLOCK),
)
"""The default profile; its stores have 0.88 of the bytes of ``.nii.gz`` (lidc-idri-0001).

See ``benchmarks/README.md``. Bytes are shuffled and bits are not: LZ4 then skips the noisy low
bytes and decodes twice as fast. A reader fetches and decodes only the blocks that it needs, such as
one of four for an axial slice.
"""

FAST: Final = Profile(
    "fast",
    *_SHAPES,
    image=BloscCodecSpec("lz4hc", 9, "shuffle", _IMAGE_BLOCK),
    label=BloscCodecSpec("lz4hc", 9, "noshuffle", _LABEL_BLOCK),
)
"""A profile that reads a few per cent more patches per second, and has 0.4 % fewer bytes.

It encodes at 0.6 of the speed of the default.
"""

SMALL: Final = Profile(
    "small",
    *_SHAPES,
    image=BloscCodecSpec("zstd", 9, "shuffle", 0),
    label=BloscCodecSpec("zstd", 8, "noshuffle", 0),
)
"""A profile with 0.75 of the bytes of ``.nii.gz``.

It encodes 10 times slower than the default and decodes 3 times slower.
"""

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
        raise UsageError(
            f"there is no codec profile {name!r}; choose {', '.join(PROFILES)}."
            f"{did_you_mean(name, PROFILES)}"
        )
    return PROFILES[name]


def fill_value(array: str, dtype: "np.dtype[Any]") -> int | float:
    """Return the value that a Zarr reader shows for an absent chunk.

    It is background for masks. Chunks of images are never absent, so their fill value is no CT
    number: it shows that a store is damaged.
    """
    if array != IMAGE:
        return 0
    if dtype.kind == "f":
        return float("nan")
    bits = 8 * dtype.itemsize
    return -(1 << bits - 1) if dtype.kind == "i" else (1 << bits) - 1


def scan_key(scan_id: str) -> str:
    """Return the key of a scan's group in the store."""
    return f"{SCANS}/{scan_id}"


def counts_key(mask: str) -> str:
    """Return the key of the array of a scan with the voxel counts of a mask.

    Examples
    --------
    >>> counts_key(LABEL) == LABEL_CHUNKS, counts_key("prediction")
    (True, 'sampling/prediction_chunks')
    """
    return f"{SAMPLING}/{mask}_chunks"
