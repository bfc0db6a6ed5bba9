"""Which Zarr metadata of a scan's arrays does the reader accept?

A store may come from anybody. The models accept what spinezarr writes and refuse everything else:
they list the data types and codecs, and bound each size. Keys that they do not name, such as the
level of a codec, are ignored.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.scaling import Scaling
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.layout import (
    IMAGE,
    LABEL,
    LABEL_CHUNKS,
    LARGEST_AXIS,
    LARGEST_CHUNK_BLOCKS,
    LARGEST_CHUNK_BYTES,
    LARGEST_SHARD_CHUNKS,
    chunk_grid,
    counts_key,
    is_mask_name,
)
from spinezarr.store.sealed import StoredModel

__all__ = [
    "ImageDtype",
    "MaskArrays",
    "ScanArrays",
    "Separator",
    "ShardedArray",
    "chunk_key",
    "other_separator",
]

Separator = Literal["/", "."]
"""Separator in the keys of chunks: ``c/0/1/2`` or ``c.0.1.2``, both as in the specification [1]_.

A new version of a scan or of the table uses the separator that the old one does not. Both versions
then lie side by side, until one write of ``zarr.json`` switches to the new one.

References
----------
.. [1] https://zarr-specs.readthedocs.io/en/latest/v3/chunk-key-encodings/default/
"""
ImageDtype = Literal[
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"
]
"""Data types of stored voxels: integers and floats of up to 64 bits."""
_LARGEST_ITEMSIZE: Final = 8
"""Bytes of the largest data type."""
_N_LABELS: Final = 255
"""Number of mask values other than background."""
_MAX_LABEL_CHUNK_ROWS: Final = 1 << 22
"""Largest number of rows of :data:`LABEL_CHUNKS`; an ordinary CT has a thousand."""

Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]
_SizeZYX = tuple[Size, Size, Size]


class _BytesCodec(TypedDict):
    name: Literal["bytes"]


class _BloscCodec(TypedDict):
    name: Literal["blosc"]


class _Crc32cCodec(TypedDict):
    name: Literal["crc32c"]


_ChunkCodecs = tuple[_BytesCodec, _BloscCodec, _Crc32cCodec]


class _BlockConfiguration(TypedDict):
    cname: Literal["lz4", "lz4hc", "zstd"]
    shuffle: Literal["noshuffle", "shuffle"]
    typesize: Annotated[int, Field(ge=1, le=_LARGEST_ITEMSIZE)]
    blocksize: Annotated[int, Field(ge=1, le=LARGEST_CHUNK_BYTES)]


class _BlockCodec(TypedDict):
    name: Literal["blosc"]
    configuration: _BlockConfiguration


class _SeparatorConfiguration(TypedDict):
    separator: Separator


class _ChunkKeyEncoding(TypedDict):
    name: Literal["default"]
    configuration: _SeparatorConfiguration


class _ShardingConfiguration(TypedDict):
    chunk_shape: _SizeZYX
    codecs: tuple[_BytesCodec, _BlockCodec, _Crc32cCodec]
    index_codecs: tuple[_BytesCodec, _Crc32cCodec]
    index_location: NotRequired[Literal["end"]]


class _Sharding(TypedDict):
    name: Literal["sharding_indexed"]
    configuration: _ShardingConfiguration


class _ShardGridConfiguration(TypedDict):
    chunk_shape: _SizeZYX


class _ShardGrid(TypedDict):
    name: Literal["regular"]
    configuration: _ShardGridConfiguration


class _Array(StoredModel):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    chunk_key_encoding: _ChunkKeyEncoding
    storage_transformers: tuple[()] = ()
    attributes: dict[str, Any]

    @property
    def separator(self) -> Separator:
        """Separator in the keys of its chunks."""
        return self.chunk_key_encoding["configuration"]["separator"]


class ShardedArray(_Array):
    """Metadata of ``image`` or ``label``."""

    shape: _SizeZYX
    data_type: ImageDtype
    chunk_grid: _ShardGrid
    codecs: tuple[_Sharding]

    @model_validator(mode="after")
    def _check_sizes(self) -> "ShardedArray":
        chunk, shard = self.chunk_shape_zyx, self.shard_shape_zyx
        n_bytes = math.prod(chunk) * self.dtype.itemsize
        if n_bytes > LARGEST_CHUNK_BYTES:
            raise DamagedMetadataError(
                f"chunks of {chunk} voxels and {n_bytes} bytes", f"at most {LARGEST_CHUNK_BYTES}"
            )
        self._check_blocks(n_bytes)
        if any(s % c for s, c in zip(shard, chunk, strict=True)):
            raise DamagedMetadataError(f"shards of {shard} voxels", f"whole chunks of {chunk}")
        n_chunks = math.prod(chunk_grid(shard, chunk))
        if n_chunks > LARGEST_SHARD_CHUNKS:
            raise DamagedMetadataError(
                f"shards of {n_chunks} chunks", f"at most {LARGEST_SHARD_CHUNKS}"
            )
        return self

    def _check_blocks(self, chunk_bytes: int) -> None:
        itemsize, block_bytes = self._blosc["typesize"], self._blosc["blocksize"]
        if itemsize != self.dtype.itemsize:
            raise DamagedMetadataError(
                f"blocks of numbers of {itemsize} bytes", f"{self.dtype.itemsize}, as the array"
            )
        if chunk_bytes % block_bytes or block_bytes % itemsize:
            raise DamagedMetadataError(
                f"blocks of {block_bytes} bytes", f"a whole number of them in {chunk_bytes} bytes"
            )
        if self.coding.n_blocks > LARGEST_CHUNK_BLOCKS:
            raise DamagedMetadataError(
                f"chunks of {self.coding.n_blocks} blocks", f"at most {LARGEST_CHUNK_BLOCKS}"
            )

    @property
    def _blosc(self) -> _BlockConfiguration:
        return self.codecs[0]["configuration"]["codecs"][1]["configuration"]

    @property
    def coding(self) -> BlockCoding:
        """Sizes and codec of the blocks of its chunks."""
        return BlockCoding(
            math.prod(self.chunk_shape_zyx) * self.dtype.itemsize,
            self._blosc["blocksize"],
            self._blosc["typesize"],
            self._blosc["cname"] != "zstd",
            self._blosc["shuffle"] == "shuffle",
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the stored numbers."""
        return np.dtype(self.data_type)

    @property
    def chunk_shape_zyx(self) -> ShapeZYX:
        """Shape of a chunk in voxels."""
        return self.codecs[0]["configuration"]["chunk_shape"]

    @property
    def shard_shape_zyx(self) -> ShapeZYX:
        """Shape of a shard in voxels."""
        return self.chunk_grid["configuration"]["chunk_shape"]

    @property
    def scaling(self) -> Scaling | None:
        """Scaling from stored numbers to values; None if the numbers are the values."""
        return Scaling.of_attributes(self.attributes)


class _LabelArray(ShardedArray):
    data_type: Literal["uint8"]


class _Positions(_Array):
    """Metadata of ``z``, ``y`` or ``x``: positions along an axis."""

    shape: tuple[Size]
    data_type: Literal["float64"]


class _LabelChunks(_Array):
    """Metadata of the voxel counts of labels."""

    shape: tuple[Annotated[int, Field(ge=0, le=_MAX_LABEL_CHUNK_ROWS)], Literal[5]]
    data_type: Literal["uint32"]
    codecs: _ChunkCodecs


class MaskArrays(NamedTuple):
    """Metadata of the arrays of a mask."""

    mask: ShardedArray
    counts: _LabelChunks
    """Array with the voxel count of each label in each chunk."""


class ScanArrays(StoredModel):
    """Metadata of all arrays of a scan.

    Those of further masks are extra keys: the name of the mask, and ``sampling/<name>_chunks``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _LabelArray | _LabelChunks] = Field(init=False)
    image: ShardedArray
    label: _LabelArray | None = None
    z: _Positions
    y: _Positions
    x: _Positions
    sampling: dict[str, Any] | None = None
    label_chunks: _LabelChunks | None = Field(None, alias="sampling/label_chunks")

    @model_validator(mode="after")
    def _check_together(self) -> "ScanArrays":
        shape = self.image.shape
        if (self.z.shape, self.y.shape, self.x.shape) != tuple((n,) for n in shape):
            raise DamagedMetadataError("coordinates of other lengths", f"those of {shape} voxels")
        if len({array.separator for array in self._own_arrays.values()}) > 1:
            raise DamagedMetadataError("several separators of chunk keys", "one")
        extra = self.__pydantic_extra__
        names = {name for name in extra if "/" not in name}
        pairs: dict[str, tuple[_Array | None, _Array | None]] = {
            name: (extra[name], extra.get(counts_key(name))) for name in names
        }
        for key in extra:
            if key not in names | {counts_key(name) for name in names}:
                raise DamagedMetadataError(key, "arrays of a scan")
        if self.label is not None or self.label_chunks is not None:
            pairs[LABEL] = (self.label, self.label_chunks)
        for name, (mask, counts) in pairs.items():
            _check_mask(name, mask, counts, shape)
        return self

    @property
    def separator(self) -> Separator:
        """Separator in the keys of the chunks of all arrays."""
        return self.image.separator

    @property
    def masks(self) -> dict[str, MaskArrays]:
        """Metadata of the arrays of each further mask, by its name in alphabetical order."""
        extra = self.__pydantic_extra__
        return {
            name: MaskArrays(mask, counts)
            for name, mask in sorted(extra.items())
            if isinstance(mask, _LabelArray)
            and isinstance(counts := extra[counts_key(name)], _LabelChunks)
        }

    @property
    def volumes(self) -> dict[str, ShardedArray]:
        """Metadata of image and masks by name."""
        label = {} if self.label is None else {LABEL: self.label}
        return {IMAGE: self.image, **label, **{k: arrays.mask for k, arrays in self.masks.items()}}

    @property
    def by_key(self) -> dict[str, _Array]:
        """Metadata of the arrays that the scan has, by key."""
        return {**self._own_arrays, **self.__pydantic_extra__}

    @property
    def _own_arrays(self) -> dict[str, _Array]:
        """Metadata of the arrays except those of further masks."""
        arrays: dict[str, _Array | None] = {
            IMAGE: self.image,
            LABEL: self.label,
            "z": self.z,
            "y": self.y,
            "x": self.x,
            LABEL_CHUNKS: self.label_chunks,
        }
        return {name: array for name, array in arrays.items() if array is not None}


def _check_mask(name: str, mask: _Array | None, counts: _Array | None, shape: ShapeZYX) -> None:
    """Check that a mask has its counts, that both belong together, and that it fits the image."""
    is_known = name == LABEL or is_mask_name(name)
    if not is_known or not isinstance(mask, _LabelArray) or not isinstance(counts, _LabelChunks):
        raise DamagedMetadataError(f"{name} alone", f"a mask {name} and {counts_key(name)}")
    if mask.shape != shape:
        raise DamagedMetadataError(f"a mask of {mask.shape} voxels", f"{shape}, as the image")
    if mask.separator != counts.separator:
        raise DamagedMetadataError(f"several separators of chunk keys of {name}", "one")
    n_chunks = math.prod(chunk_grid(shape, mask.chunk_shape_zyx))
    if counts.shape[0] > _N_LABELS * n_chunks:
        raise DamagedMetadataError(
            f"{counts.shape[0]} voxel counts of labels",
            f"at most {_N_LABELS * n_chunks} for {n_chunks} chunks",
        )


def chunk_key(index: Iterable[int], separator: Separator) -> str:
    """Return the key of a chunk or shard within its array.

    Examples
    --------
    >>> chunk_key((0, 1, 2), ".")
    'c.0.1.2'
    """
    return separator.join(("c", *map(str, index)))


def other_separator(separator: Separator) -> Separator:
    """Return the separator that the other version of a scan or table uses."""
    return "." if separator == "/" else "/"
