"""Attributes of a store's groups: what is written, and checked when it is read."""

from typing import Annotated, Any, Literal

from pydantic import Field

from spinezarr.recipe import LabelState
from spinezarr.store.sharding import crc32c
from spinezarr.strict_yaml import StrictModel

__all__ = [
    "ManifestEntry",
    "RootAttributes",
    "ScanAttributes",
    "SourceRecord",
    "VertebraRecord",
]

ZYX = tuple[float, float, float]
IntZYX = tuple[int, int, int]
Matrix = tuple[tuple[float, ...], ...]


class RootAttributes(StrictModel):
    """Attributes of the root group: which dataset this is."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: int
    dataset: str
    title: str
    licence: str
    citation: str
    homepage: str | None = None


class SourceRecord(StrictModel):
    """The file that an array was made from, and how to give it back."""

    file: str
    """Path relative to the raw folder."""
    size_bytes: int
    sha256: str
    dtype: str
    shape_ijk: IntZYX
    affine_ijk: Matrix
    """4 x 4, voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""
    orientation: str
    """Directions toward which the file's axes increase, e.g. ``LPS``."""


class VertebraRecord(StrictModel):
    """One vertebra's voxels in one scan."""

    voxel_count: int
    centroid_zyx: ZYX
    """Mean voxel index."""
    start_zyx: IntZYX
    stop_zyx: IntZYX


class ManifestEntry(StrictModel):
    """One stored file."""

    size_bytes: int
    crc32c: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]

    @classmethod
    def of(cls, data: bytes) -> "ManifestEntry":
        """Describe a file's content."""
        return cls(size_bytes=len(data), crc32c=f"{crc32c(data):08x}")


class ScanAttributes(StrictModel):
    """Attributes of a scan's group; written with the scan's last write."""

    dataset: str
    scan_id: str
    patient_id: str
    source: str
    split: str
    split_index: int
    licence: str
    citation: str
    affine: Matrix
    """4 x 4, stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: IntZYX
    spacing_zyx_mm: ZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis; the coordinates leave it out."""
    label_state: LabelState | Literal["none"]
    """``none``: the scan has no mask."""
    image_dtype: str
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_checksum: str
    """Hash of the voxels: equal if and only if two stored images are equal."""
    vertebrae: dict[str, VertebraRecord]
    other_labels: dict[str, int]
    """Voxels of each value outside the label scheme."""
    image_source: SourceRecord
    label_source: SourceRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[str, ManifestEntry]
    """Every file of the scan but its own ``zarr.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return self.model_dump(mode="json")
