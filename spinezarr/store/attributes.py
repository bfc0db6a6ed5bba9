"""Attributes of a store's groups: what is written, and checked when it is read."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from spinezarr.recipe import LabelState
from spinezarr.store.layout import FORMAT_VERSION
from spinezarr.store.sharding import crc32c
from spinezarr.strict_yaml import StrictModel

__all__ = [
    "CentroidRecord",
    "FileRecord",
    "ManifestEntry",
    "OtherFormatError",
    "RootAttributes",
    "ScanAttributes",
    "SourceRecord",
    "VertebraRecord",
    "parse_root",
    "seal",
    "unseal",
]

_CHECKSUM = "metadata_crc32c"
"""Attribute of every group: checksum of its ``zarr.json`` without this attribute."""


def seal(metadata: dict[str, Any]) -> bytes:
    """Return a group's metadata as JSON that carries its own checksum."""
    checksum = f"{crc32c(_as_json(metadata)):08x}"
    attributes = {**metadata["attributes"], _CHECKSUM: checksum}
    return _as_json({**metadata, "attributes": attributes})


def unseal(data: bytes) -> dict[str, Any]:
    """Read what :func:`seal` made.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it was not made so, or is damaged.
    """
    metadata: dict[str, Any] = json.loads(data)
    expected = metadata["attributes"].pop(_CHECKSUM)
    found = f"{crc32c(_as_json(metadata)):08x}"
    if found != expected:
        raise ValueError(f"it has crc32c {found}, expected {expected}")
    return metadata


def _as_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, allow_nan=False).encode()


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
    codec_profile: str | None = None
    """Chunks and codecs of scans to come, by name; None stands for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key that its ids are hashed with; None if they are the dataset's own."""


class OtherFormatError(Exception):
    """A store that spinezarr wrote in another format."""

    def __init__(self, version: object) -> None:
        self.version = version
        super().__init__(f"format {version}, not {FORMAT_VERSION}")


def parse_root(data: bytes) -> RootAttributes:
    """Read the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If it is in another format; later ones may have fields that this version does not know.
    ValueError, KeyError, TypeError
        If spinezarr did not write it, or it is damaged.
    """
    attributes = json.loads(data)["attributes"]
    if attributes["format"] != "spinezarr":
        raise ValueError(f"its format is {attributes['format']!r}")
    if attributes["format_version"] != FORMAT_VERSION:
        raise OtherFormatError(attributes["format_version"])
    return RootAttributes.model_validate_json(json.dumps(unseal(data)["attributes"]))


class FileRecord(StrictModel):
    """A small file that facts of a scan were read from."""

    file: str
    """Path relative to the raw folder."""
    size_bytes: int


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


class CentroidRecord(StrictModel):
    """One vertebra's centre as annotated in a file of its own."""

    position_zyx_mm: ZYX
    """RAS+ mm."""
    label_distance_mm: float | None
    """To the nearest voxel of the vertebra's label, 0 inside it; None if the mask lacks it."""


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
    """Voxels of each value that is no vertebra."""
    structures: dict[str, str]
    """Names of such values, where the recipe knows them; the rest lie outside the scheme."""
    centroids: dict[str, CentroidRecord]
    """Annotated centres by level name; empty where the dataset has no such file."""
    columns: dict[str, str]
    """What the dataset's own tables say of the scan, by column."""
    sidecar: dict[str, str]
    """What the JSON file beside the image says, by key."""
    source_bytes: int
    """Of all files of image and mask."""
    source_key: str
    """Hash of which files the scan was read from, and how; with another, it is read anew."""
    image_source: SourceRecord
    label_source: SourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[str, ManifestEntry]
    """Every file of the scan but its own ``zarr.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return self.model_dump(mode="json")
