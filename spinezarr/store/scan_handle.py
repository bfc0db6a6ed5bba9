"""What must a reader know of a stored scan to read its voxels?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError, ScanChangedError, UnknownMaskError
from spinezarr.geometry import ShapeZYX
from spinezarr.scaling import VALUE_DTYPE, Scaling
from spinezarr.store.array_metadata import Separator, ShardedArray, chunk_key
from spinezarr.store.attributes import ScanAttributes, parse_scan_group
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.manifest import ShardEntry
from spinezarr.text import did_you_mean

__all__ = ["ArraySpec", "ScanHandle", "parse_scan"]


def _find_no_change(_: "ArraySpec") -> None:
    """Return None: no other version of the scan is known."""


@dataclass(frozen=True, slots=True, eq=False)
class ArraySpec:
    """Everything that a reader must know of one stored array ``(z, y, x)`` to read its voxels."""

    scan_id: str
    name: str
    """``image``, ``label`` or the name of a further mask."""
    path: str = field(repr=False)
    """Path of the array in the store's file system."""
    shape_zyx: ShapeZYX
    stored_dtype: np.dtype[Any]
    """Data type of the numbers in its chunks."""
    chunk_shape_zyx: ShapeZYX
    shard_shape_zyx: ShapeZYX
    shard_sizes: Mapping[ShapeZYX, int]
    """Size in bytes of each shard that exists, by shard index."""
    separator: Separator
    """Separator in the keys of its shards."""
    coding: BlockCoding
    """Sizes and codec of the blocks of its chunks."""
    shards: Mapping[ShapeZYX, ShardEntry]
    """Manifest entry of each shard that exists, by shard index."""
    scaling: Scaling | None = None
    """Scaling from stored numbers to values; None if the numbers are the values."""
    content_checksum: str = ""
    """Content checksum of the version of the scan that the array belongs to.

    For a further mask, that is :meth:`spinezarr.store.attributes.ScanAttributes.mask_checksum`.
    """
    find_change: Callable[["ArraySpec"], ScanChangedError | None] = _find_no_change
    """Function that is called if the array cannot be read.

    It returns the error to raise if the store now has another version of the scan, else None.
    """

    @classmethod
    def in_memory(
        cls, scan_id: str, name: str, shape_zyx: ShapeZYX, dtype: np.dtype[Any]
    ) -> "ArraySpec":
        """Describe an array in memory for code that takes stored arrays; it has no shard."""
        n_bytes = max(1, math.prod(shape_zyx) * dtype.itemsize)
        return cls(
            scan_id=scan_id,
            name=name,
            path="",
            shape_zyx=shape_zyx,
            stored_dtype=dtype,
            chunk_shape_zyx=shape_zyx,
            shard_shape_zyx=shape_zyx,
            shard_sizes={},
            separator="/",
            coding=BlockCoding(n_bytes, n_bytes, dtype.itemsize, is_lz4=True, is_shuffled=True),
            shards={},
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the values that readers return."""
        return self.stored_dtype if self.scaling is None else VALUE_DTYPE

    def unscaled(self) -> "ArraySpec":
        """Return the same array without scaling: its values are the stored numbers."""
        return replace(self, scaling=None)

    @property
    def chunks_per_shard_zyx(self) -> ShapeZYX:
        """Number of chunks in a shard along each axis."""
        z, y, x = (s // c for s, c in zip(self.shard_shape_zyx, self.chunk_shape_zyx, strict=True))
        return (z, y, x)

    def shard_path(self, shard_zyx: ShapeZYX) -> str:
        """Path of a shard in the store's file system."""
        return f"{self.path}/{chunk_key(shard_zyx, self.separator)}"


@dataclass(frozen=True, slots=True, eq=False)
class ScanHandle:
    """One opened scan."""

    attributes: ScanAttributes
    image: ArraySpec
    label: ArraySpec | None
    masks: Mapping[str, ArraySpec]
    """Further masks by name."""
    label_chunk_rows: Mapping[str, int]
    """Number of rows of :meth:`spinezarr.store.reader.StoreReader.label_chunks` for each mask."""
    variable_attributes: Mapping[str, Mapping[str, Any]]
    """Attributes such as units of image, masks, ``z``, ``y`` and ``x``, by array name."""

    @property
    def content_checksum(self) -> str:
        """See :attr:`spinezarr.store.attributes.ScanAttributes.content_checksum`."""
        return self.image.content_checksum

    @property
    def all_arrays(self) -> tuple[ArraySpec, ...]:
        """The image, the mask and the further masks."""
        return (*self.arrays, *self.masks.values())

    @property
    def mask_checksums(self) -> dict[str, str]:
        """See :meth:`spinezarr.store.attributes.ScanAttributes.mask_checksum`, by mask."""
        return {name: mask.content_checksum for name, mask in self.masks.items()}

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of all masks of the scan, ``label`` first."""
        return (*(() if self.label is None else (LABEL,)), *self.masks)

    def mask(self, name: str) -> ArraySpec:
        """Return the mask of a name: ``label`` or a further one.

        Raises
        ------
        UnknownMaskError
            If the scan has no such mask.
        """
        masks = {LABEL: self.label} if self.label is not None else {}
        masks |= self.masks
        if name not in masks:
            raise UnknownMaskError(
                f"scan {self.attributes.scan_id!r} has no mask {name!r}; it has "
                f"{', '.join(self.mask_names) or 'none'}.{did_you_mean(name, self.mask_names)}"
            )
        return masks[name]

    def label_voxels(self, name: str) -> Mapping[int, int]:
        """Return the voxel count of each value in a mask except background."""
        is_label = name == LABEL
        return (self.attributes if is_label else self.attributes.masks[name]).label_voxels

    def wrong_label_count(self, value: int) -> CorruptStoreError:
        """Return the error for a mask whose voxels of a label differ from the stored counts."""
        return CorruptStoreError(
            f"scan {self.attributes.scan_id!r}: the voxels of the value {value} in its mask differ "
            "from the stored counts. Ingest this scan again."
        )

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The image and, if there is one, the mask."""
        return (self.image,) if self.label is None else (self.image, self.label)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4 matrix from stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
        return np.array(self.attributes.affine)


def parse_scan(
    data: bytes,
    folder: str,
    *,
    find_change: Callable[[ArraySpec], ScanChangedError | None] = _find_no_change,
) -> ScanHandle:
    """Parse the ``zarr.json`` of a scan.

    Parameters
    ----------
    data
        Content of the file.
    folder
        Path of the scan in the store's file system.
    find_change
        See :attr:`ArraySpec.find_change`.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    group = parse_scan_group(data)
    scan, arrays = group.attributes, group.arrays
    content = scan.content_checksum

    def spec(name: str, array: ShardedArray) -> ArraySpec:
        shards = group.shards(name)
        return ArraySpec(
            scan_id=scan.scan_id,
            name=name,
            path=f"{folder}/{name}",
            shape_zyx=array.shape,
            stored_dtype=array.dtype,
            chunk_shape_zyx=array.chunk_shape_zyx,
            shard_shape_zyx=array.shard_shape_zyx,
            shard_sizes={shard: entry.size_bytes for shard, entry in shards.items()},
            separator=array.separator,
            coding=array.coding,
            shards=shards,
            scaling=array.scaling,
            content_checksum=content if name in {IMAGE, LABEL} else scan.mask_checksum(name),
            find_change=find_change,
        )

    variable_attributes = {
        name: Scaling.without_attributes(array.attributes)
        for name, array in arrays.by_key.items()
        if "/" not in name
    }
    masks = arrays.masks
    counts = {name: mask.counts for name, mask in masks.items()}
    if arrays.label_chunks is not None:
        counts[LABEL] = arrays.label_chunks
    return ScanHandle(
        scan,
        spec(IMAGE, arrays.image),
        None if arrays.label is None else spec(LABEL, arrays.label),
        {name: spec(name, mask.mask) for name, mask in masks.items()},
        {name: array.shape[0] for name, array in counts.items()},
        variable_attributes,
    )
