"""Which attributes do the groups of the root and of a scan have, and how are they checked?"""

import hashlib
import json
import math
import os
from itertools import permutations, product
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import ImageDtype, ScanArrays
from spinezarr.store.layout import (
    FORMAT_VERSION,
    IMAGE,
    LABEL,
    LARGEST_AXIS,
)
from spinezarr.store.manifest import SCAN_FILE, ManifestEntry, ShardEntry, shard_entries
from spinezarr.store.sealed import (
    StoredAttributes,
    StoredModel,
    describe_value,
    parse_model,
    parse_sealed,
)
from spinezarr.text import is_printable, is_valid_file_name
from spinezarr.vertebrae import LEVELS, VALUE_OF_NAME, LabelState

__all__ = [
    "LARGEST_LENGTH_MM",
    "NEAR_LABEL_MM",
    "ORIENTATIONS",
    "CentroidRecord",
    "FileRecord",
    "LabelSourceRecord",
    "MetaImageRecord",
    "NiftiRecord",
    "OtherFormatError",
    "RootAttributes",
    "ScanAttributes",
    "ScanGroup",
    "SourceRecord",
    "VertebraRecord",
    "is_scan_id",
    "parse_root",
    "parse_scan_group",
]

Model = TypeVar("Model", bound=BaseModel)


NEAR_LABEL_MM: Final = 5.0
"""Largest distance from its label at which an annotated centroid counts as correct, in mm.

People place centroids with an error of a voxel or more, and slices are up to 5 mm apart in the
known datasets.
"""
_LARGEST_NUMBER: Final = (1 << 63) - 1
"""Largest integer that the scan table can hold."""
LARGEST_LENGTH_MM: Final = 1e9
"""Largest stored position or length, in mm: a thousand kilometers, which cannot overflow."""
_MIN_RELATIVE_VOLUME: Final = 1e-6
"""Smallest volume of a voxel, relative to one with the same edges and perpendicular axes."""
_SPACING_TOLERANCE: Final = 1e-3
"""Largest relative difference between the stored spacing and that of the affine."""


def _checked_scan_id(name: str) -> str:
    if not is_scan_id(name):
        raise DamagedMetadataError(describe_value(name), "the name of a scan")
    return name


def is_scan_id(name: str) -> bool:
    """Whether a scan can have this name: a printable name of a folder."""
    return is_valid_file_name(name) and is_printable(name) and name != "zarr.json"


def _checked_vertebra(name: str) -> str:
    if name not in VALUE_OF_NAME:
        raise DamagedMetadataError(describe_value(name), "the name of a vertebra")
    return name


def _checked_level(name: str) -> str:
    if name not in LEVELS:
        raise DamagedMetadataError(describe_value(name), "the name of a level")
    return name


def _checked_affine(affine: "Matrix") -> "Matrix":
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = affine
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    lengths = _lengths_xyz(affine)
    if last != (0.0, 0.0, 0.0, 1.0) or abs(volume) <= _MIN_RELATIVE_VOLUME * math.prod(lengths):
        raise DamagedMetadataError("another matrix", "an invertible one with last row 0 0 0 1")
    return affine


def _lengths_xyz(affine: "Matrix") -> tuple[float, float, float]:
    """Return the distances of neighboring voxels along x, y and z in mm."""
    x, y, z, _ = zip(*affine[:3], strict=True)
    return math.hypot(*x), math.hypot(*y), math.hypot(*z)


def _checked_path(path: str) -> str:
    r"""Refuse a path that leads out of the raw folder."""
    parts = path.replace("\\", "/").split("/") if os.name == "nt" else path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or (os.name == "nt" and ":" in path):
        raise DamagedMetadataError(describe_value(path), "a path within the raw folder")
    return path


ORIENTATIONS: Final = frozenset(
    "".join(codes) for axes in permutations(("LR", "AP", "IS")) for codes in product(*axes)
)
"""Codes such as ``LPS`` for the directions in which three axes increase, as in nibabel."""


def _checked_orientation(axcodes: str) -> str:
    if axcodes not in ORIENTATIONS:
        raise DamagedMetadataError(describe_value(axcodes), "three directions such as LPS")
    return axcodes


RawPath = Annotated[str, AfterValidator(_checked_path)]
"""Path of a file relative to the raw folder."""
ScanId = Annotated[str, AfterValidator(_checked_scan_id)]
Vertebra = Annotated[str, AfterValidator(_checked_vertebra)]
Level = Annotated[str, AfterValidator(_checked_level)]
"""Name of a vertebra, or of a level that is annotated by its center alone."""
Count = Annotated[int, Field(ge=0, le=_LARGEST_NUMBER)]
SegmentName = Annotated[str, Field(min_length=1, max_length=64)]
Number = Annotated[int, Field(ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER)]
Coordinate = Annotated[float, Field(ge=-LARGEST_LENGTH_MM, le=LARGEST_LENGTH_MM)]
Length = Annotated[float, Field(gt=0, le=LARGEST_LENGTH_MM)]
Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]
VoxelIndex = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
ZYX = tuple[Coordinate, Coordinate, Coordinate]
SpacingZYX = tuple[Length, Length, Length]
SizeIJK = tuple[Size, Size, Size]
SizeZYX = tuple[Size, Size, Size]
VoxelIndexZYX = tuple[VoxelIndex, VoxelIndex, VoxelIndex]
_Row = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Matrix = tuple[_Row, _Row, _Row, _Row]
Affine = Annotated[Matrix, AfterValidator(_checked_affine)]
Orientation = Annotated[str, AfterValidator(_checked_orientation)]
FileDtype = Annotated[str, Field(pattern=r"^[<>|=]?[a-zA-Z][a-zA-Z0-9]{0,9}$")]
LabelValue = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
"""Label value as text, the key of a JSON object."""


class RootAttributes(StoredAttributes):
    """Attributes of the root group, which describe the dataset."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: Number
    dataset: str
    title: str
    license: str
    citation: str
    homepage: str | None = None
    codec_profile: str | None = None
    """Name of the profile with the chunks and codecs of new scans; None for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key of the pseudonyms; None if the ids are the dataset's own."""


class OtherFormatError(Exception):
    """The store is written in another version of the format."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(f"format {version}, not {FORMAT_VERSION}")


class _RootFormat(StoredModel):
    format: Literal["spinezarr"]
    format_version: Number


class _AnyRoot(StoredModel):
    attributes: _RootFormat


class _Root(StoredModel):
    attributes: RootAttributes


def parse_root(data: bytes) -> RootAttributes:
    """Parse the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If the store has another format version, whose fields this version may not know.
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    version = parse_model(data, _AnyRoot).attributes.format_version
    if version != FORMAT_VERSION:
        raise OtherFormatError(version)
    return parse_sealed(data, _Root).attributes


class FileRecord(StoredAttributes):
    """A small source file, such as one with annotated centers."""

    file: RawPath
    size_bytes: Count


class NiftiRecord(StoredAttributes):
    """Fields of a NIfTI header that place the voxels; ``affine_ijk`` holds the sform.

    The fields are those of ``nifti1.h``, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
    """

    version: Literal[1, 2]
    sform_code: Number
    """Code of the sform; if it is 0, the qform gives the affine, or ``pixdim`` if both are 0."""
    qform_code: Number
    pixdim: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
    """``qfac``, then the spacing along i, j and k in mm."""
    quatern_bcd: tuple[float, float, float]
    qoffset_xyz: tuple[float, float, float]
    xyzt_units: Number


class MetaImageRecord(StoredAttributes):
    """Fields of a MetaImage header that place the voxels, besides ``affine_ijk``."""

    element_size_ijk_mm: tuple[float, float, float] | None
    """``ElementSize`` along i, j and k; None if not stated."""
    states_orientation: bool
    states_position: bool


class SourceRecord(StoredAttributes):
    """The source file of an array, with what an export needs to restore it."""

    file: RawPath
    size_bytes: Count
    sha256: str
    dtype: FileDtype
    shape_ijk: SizeIJK
    affine_ijk: Affine
    """4 x 4 matrix from voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""
    orientation: Orientation
    """Directions in which the file's axes increase, such as ``LPS``; the ingest reorders them."""
    stored_dtype: FileDtype
    """Data type of the numbers in the file before scaling, with byte order, such as ``<i2``."""
    scaling: tuple[float, float] | None
    """Slope and intercept of the file for all of its numbers; None if it has none."""
    nifti: NiftiRecord | None
    """Fields of the NIfTI header; None for other formats."""
    metaimage: MetaImageRecord | None
    """Fields of the MetaImage header; None for other formats."""


class ImageSourceRecord(SourceRecord):
    """The source of an image: a file, or a series in a folder of DICOM files."""

    series: str | None = None
    """Key of the series if each series of the folder is a scan, else None.

    See :class:`spinezarr.formats.dicom_series.CtSeries`.
    """


class LabelSourceRecord(SourceRecord):
    """The source of a mask, and the mapping of its values."""

    parts: tuple[tuple[Number, RawPath], ...]
    """Label and path of each file of a mask with one file per structure; later files win."""
    values: tuple[tuple[Number, Number], ...]
    """Pairs of value in the file and stored value; other values became background.

    Empty if the values are stored as they are.
    """
    segments: tuple[tuple[SegmentName, Number], ...] = ()
    """Pairs of the name of a segment in the file and its label; later segments win.

    Empty if the file has no named segments.
    """
    rounded_voxels: Count
    """Number of voxels whose value differed from a whole number by a rounding error."""

    @model_serializer(mode="wrap")
    def _without_empty_segments(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``segments`` if it is empty, as stores without it are written."""
        fields: dict[str, Any] = serialize(self)
        if not self.segments:
            del fields["segments"]
        return fields


class VertebraRecord(StoredAttributes):
    """The voxels of one vertebra in one scan."""

    voxel_count: Annotated[int, Field(ge=1, le=_LARGEST_NUMBER)]
    centroid_zyx: ZYX
    """Mean voxel index, ``(z, y, x)``."""
    start_zyx: VoxelIndexZYX
    """First voxel of the bounding box."""
    stop_zyx: VoxelIndexZYX
    """Voxel after the last one of the bounding box along each axis."""


class CentroidRecord(StoredAttributes):
    """The center of one vertebra as a file of the dataset annotates it."""

    position_zyx_mm: ZYX
    """Position in RAS+ mm, ``(z, y, x)``."""
    label_distance_mm: float | None
    """Distance to the nearest voxel of the vertebra in mm, 0 inside; None if the mask lacks it."""

    @property
    def is_near_label(self) -> bool:
        """Whether the center counts as correct; it does if the mask lacks the vertebra."""
        return self.label_distance_mm is None or self.label_distance_mm <= NEAR_LABEL_MM


class ScanAttributes(StoredAttributes):
    """Attributes of a scan's group; the last write of the scan publishes them."""

    dataset: str
    scan_id: ScanId
    patient_id: str
    source: str
    split: str
    split_index: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    license: str
    citation: str
    affine: Affine
    """4 x 4 matrix from stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: SizeZYX
    spacing_zyx_mm: SpacingZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis in degrees.

    The coordinates ignore it. A sheared grid has the angle of the nearest perpendicular axes.
    """
    label_state: LabelState | Literal["none"]
    """State of the annotation; ``none`` if the scan has no mask."""
    image_dtype: ImageDtype
    """Data type of the values."""
    image_stored_dtype: ImageDtype
    """Data type of the numbers in the array ``image``."""
    image_scaling: tuple[float, float] | None
    """Slope and intercept from numbers to values; None if the numbers are the values."""
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_nan_voxels: Count
    """Number of voxels that are NaN."""
    image_infinite_voxels: Count
    """Number of voxels that are infinite."""
    image_checksum: str
    """Hash of the values in their type; it is equal if and only if two images are equal."""
    vertebrae: dict[Vertebra, VertebraRecord]
    other_labels: dict[LabelValue, Count]
    """Voxel count of each mask value that is neither a vertebra nor background."""
    structures: dict[LabelValue, str]
    """Names of the values in ``other_labels`` that the recipe knows."""
    centroids: dict[Level, CentroidRecord]
    """Annotated centers by level name; empty if the dataset has no such file."""
    columns: dict[str, str]
    """Cells of the dataset's own tables for the scan, by column."""
    sidecar: dict[str, str]
    """Values of the JSON file beside the image, by key."""
    source_bytes: Count
    """Size of all source files of image and mask in bytes."""
    source_key: str
    """Hash of the files that the scan was read from, and of how; an ingest compares it."""
    image_source: ImageSourceRecord
    label_source: LabelSourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[
        Annotated[str, Field(pattern=SCAN_FILE)],
        Annotated[ManifestEntry | ShardEntry, Field(union_mode="left_to_right")],
    ]
    """Entries of all files of the scan except its ``zarr.json``, by key."""

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as they are stored."""
        return self.model_dump(mode="json")

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxel count of each value in the mask except background."""
        vertebrae = {VALUE_OF_NAME[name]: v.voxel_count for name, v in self.vertebrae.items()}
        return {**vertebrae, **{int(value): n for value, n in self.other_labels.items()}}

    @property
    def content_checksum(self) -> str:
        """Hash of grid, type and voxels of image and mask; the same source gives the same hash."""
        mask = sorted(
            (key.replace(".", "/"), entry.size_bytes, entry.crc32)
            for key, entry in self.manifest.items()
            if key.startswith((f"{LABEL}/c/", f"{LABEL}/c."))
        )
        grid = (self.shape_zyx, self.affine, self.image_dtype)
        text = json.dumps([*grid, self.image_checksum, mask])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class _ScanMembers(StoredModel):
    metadata: ScanArrays


class ScanGroup(StoredModel):
    """The content of a scan's ``zarr.json``."""

    attributes: ScanAttributes
    consolidated_metadata: _ScanMembers

    @property
    def arrays(self) -> ScanArrays:
        """Metadata of the arrays of the scan."""
        return self.consolidated_metadata.metadata

    @model_validator(mode="after")
    def _check_together(self) -> "ScanGroup":
        scan, image = self.attributes, self.arrays.image
        if scan.shape_zyx != image.shape:
            raise DamagedMetadataError(f"an image of {image.shape} voxels", f"{scan.shape_zyx}")
        if scan.image_stored_dtype != image.data_type:
            raise DamagedMetadataError(
                f"an image of {image.data_type}", f"{scan.image_stored_dtype}"
            )
        scaling = None if image.scaling is None else (image.scaling.slope, image.scaling.intercept)
        if scan.image_scaling != scaling:
            raise DamagedMetadataError(f"an image scaled by {scaling}", f"{scan.image_scaling}")
        if (scan.label_state == "none") != (self.arrays.label is None):
            state = f"the label state {scan.label_state!r}"
            raise DamagedMetadataError(state, "'none' for a scan without mask, and no other")
        spacing = zip(scan.spacing_zyx_mm, reversed(_lengths_xyz(scan.affine)), strict=True)
        if not all(math.isclose(a, b, rel_tol=_SPACING_TOLERANCE) for a, b in spacing):
            raise DamagedMetadataError(
                f"a spacing of {scan.spacing_zyx_mm} mm", "that of the affine"
            )
        for name, vertebra in scan.vertebrae.items():
            box = zip(vertebra.start_zyx, vertebra.stop_zyx, scan.shape_zyx, strict=True)
            if not all(start < stop <= size for start, stop, size in box):
                raise DamagedMetadataError(f"voxels of {name} outside of the image", "all inside")
        return self

    def shards(self, name: str) -> dict[ShapeZYX, ShardEntry]:
        """Return the manifest entries of the shards of an array by shard index, ``(z, y, x)``.

        Raises
        ------
        DamagedMetadataError
            If the manifest lacks shards of an image, or names shards or chunks that the array
            cannot have.
        """
        array = self.arrays.image if name == IMAGE else self.arrays.label
        if array is None:
            return {}
        return shard_entries(name, array, self.attributes.manifest)


def parse_scan_group(data: bytes) -> ScanGroup:
    """Parse the ``zarr.json`` of a scan.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    return parse_sealed(data, ScanGroup)
