"""Attributes of a store's groups: what is written, and checked when it is read."""

import hashlib
import json
import math
import os
from itertools import permutations, product
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, model_validator

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.recipe import LabelState
from spinezarr.store.array_metadata import ImageDtype, ScanArrays
from spinezarr.store.layout import (
    FORMAT_VERSION,
    IMAGE,
    LABEL,
    LARGEST_AXIS,
)
from spinezarr.store.manifest import SCAN_FILE, ManifestEntry, ShardEntry, shard_entries
from spinezarr.store.sealed import StoredAttributes, StoredModel, parse_model, parse_sealed, shown
from spinezarr.text import is_printable, is_valid_file_name
from spinezarr.vertebrae import LEVELS, VALUE_OF_NAME

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
"""Distance from its label up to which an annotated centroid is taken to be right.

Centroids are drawn by hand or by a rule of their own, to a voxel at best, and slices are up to 5 mm
apart in the datasets at hand.
"""
_LARGEST_NUMBER: Final = (1 << 63) - 1
"""What the scan table holds at most."""
LARGEST_LENGTH_MM: Final = 1e9
"""A thousand kilometers: far more than any position, and far from what overflows."""
_LEAST_VOLUME: Final = 1e-6
"""Of a voxel, as a share of what it would be with perpendicular axes."""
_SPACING_TOLERANCE: Final = 1e-3
"""Between a spacing and the affine that it is taken from, as a share of it."""


def _checked_scan_id(name: str) -> str:
    if not is_scan_id(name):
        raise DamagedMetadataError(shown(name), "the name of a scan")
    return name


def is_scan_id(name: str) -> bool:
    """Whether a scan can have a name: that of a folder, which is shown as it is."""
    return is_valid_file_name(name) and is_printable(name) and name != "zarr.json"


def _checked_vertebra(name: str) -> str:
    if name not in VALUE_OF_NAME:
        raise DamagedMetadataError(shown(name), "the name of a vertebra")
    return name


def _checked_level(name: str) -> str:
    if name not in LEVELS:
        raise DamagedMetadataError(shown(name), "the name of a level")
    return name


def _checked_affine(affine: "Matrix") -> "Matrix":
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = affine
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    lengths = _lengths_xyz(affine)
    if last != (0.0, 0.0, 0.0, 1.0) or abs(volume) <= _LEAST_VOLUME * math.prod(lengths):
        raise DamagedMetadataError("another matrix", "an invertible one with last row 0 0 0 1")
    return affine


def _lengths_xyz(affine: "Matrix") -> tuple[float, float, float]:
    """Return the lengths in mm of the steps along the voxel axes."""
    x, y, z, _ = zip(*affine[:3], strict=True)
    return math.hypot(*x), math.hypot(*y), math.hypot(*z)


def _checked_path(path: str) -> str:
    r"""Refuse a path that leads out of the folder that it is relative to."""
    parts = path.replace("\\", "/").split("/") if os.name == "nt" else path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or (os.name == "nt" and ":" in path):
        raise DamagedMetadataError(shown(path), "a path within the raw folder")
    return path


ORIENTATIONS: Final = frozenset(
    "".join(codes) for axes in permutations(("LR", "AP", "IS")) for codes in product(*axes)
)
"""Directions toward which three axes may increase, in nibabel's letters."""


def _checked_orientation(axcodes: str) -> str:
    if axcodes not in ORIENTATIONS:
        raise DamagedMetadataError(shown(axcodes), "three directions such as LPS")
    return axcodes


RawPath = Annotated[str, AfterValidator(_checked_path)]
"""Of a file, relative to the raw folder."""
ScanId = Annotated[str, AfterValidator(_checked_scan_id)]
Vertebra = Annotated[str, AfterValidator(_checked_vertebra)]
Level = Annotated[str, AfterValidator(_checked_level)]
"""A vertebra, or a level that is annotated by its center alone."""
Count = Annotated[int, Field(ge=0, le=_LARGEST_NUMBER)]
Number = Annotated[int, Field(ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER)]
Coordinate = Annotated[float, Field(ge=-LARGEST_LENGTH_MM, le=LARGEST_LENGTH_MM)]
Length = Annotated[float, Field(gt=0, le=LARGEST_LENGTH_MM)]
Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]
Place = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
ZYX = tuple[Coordinate, Coordinate, Coordinate]
SpacingZYX = tuple[Length, Length, Length]
SizeIJK = tuple[Size, Size, Size]
SizeZYX = tuple[Size, Size, Size]
PlaceZYX = tuple[Place, Place, Place]
_Row = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Matrix = tuple[_Row, _Row, _Row, _Row]
Affine = Annotated[Matrix, AfterValidator(_checked_affine)]
Orientation = Annotated[str, AfterValidator(_checked_orientation)]
FileDtype = Annotated[str, Field(pattern=r"^[<>|=]?[a-zA-Z][a-zA-Z0-9]{0,9}$")]
LabelValue = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
"""As the key of an object."""


class RootAttributes(StoredAttributes):
    """Attributes of the root group: which dataset this is."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: Number
    dataset: str
    title: str
    license: str
    citation: str
    homepage: str | None = None
    codec_profile: str | None = None
    """Chunks and codecs of scans to come, by name; None stands for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key that its ids are hashed with; None if they are the dataset's own."""


class OtherFormatError(Exception):
    """A store that spinezarr wrote in another format."""

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
    """Read the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If it is in another format; later ones may have fields that this version does not know.
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    version = parse_model(data, _AnyRoot).attributes.format_version
    if version != FORMAT_VERSION:
        raise OtherFormatError(version)
    return parse_sealed(data, _Root).attributes


class FileRecord(StoredAttributes):
    """A small file that facts of a scan were read from."""

    file: RawPath
    size_bytes: Count


class NiftiRecord(StoredAttributes):
    """Where a NIfTI header places the voxels, number for number; the sform is ``affine_ijk``.

    The fields are those of ``nifti1.h``, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
    """

    version: Literal[1, 2]
    sform_code: Number
    """0: the affine is that of the qform, or, if its code is 0 too, of ``pixdim`` alone."""
    qform_code: Number
    pixdim: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
    """qfac, then mm."""
    quatern_bcd: tuple[float, float, float]
    qoffset_xyz: tuple[float, float, float]
    xyzt_units: Number


class MetaImageRecord(StoredAttributes):
    """What a MetaImage header states of where its voxels lie, beside ``affine_ijk``."""

    element_size_mm: tuple[float, float, float] | None
    """``ElementSize`` along i, j and k; None if not stated."""
    states_orientation: bool
    states_position: bool


class SourceRecord(StoredAttributes):
    """The file that an array was made from, and how to give it back."""

    file: RawPath
    size_bytes: Count
    sha256: str
    dtype: FileDtype
    shape_ijk: SizeIJK
    affine_ijk: Affine
    """4 x 4, voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""
    orientation: Orientation
    """Directions toward which the file's axes increase, e.g. ``LPS``: those it was turned by."""
    stored_dtype: FileDtype
    """Type of the numbers in the file, before scaling, with byte order, e.g. ``<i2``."""
    scaling: tuple[float, float] | None
    """Slope and intercept that the file itself applies to all its numbers."""
    nifti: NiftiRecord | None
    """None for other formats."""
    metaimage: MetaImageRecord | None
    """None for other formats."""


class ImageSourceRecord(SourceRecord):
    """The same of an image, and which series of a DICOM folder it is."""

    series: str | None = None
    """Where each series of the folder is a scan; see
    :class:`spinezarr.formats.dicom_series.CtSeries`."""


class LabelSourceRecord(SourceRecord):
    """The same of a mask, and what was made of its values."""

    parts: tuple[tuple[Number, RawPath], ...]
    """Label and path of each file, of a mask that is one file a structure; later ones win."""
    values: tuple[tuple[Number, Number], ...]
    """Value in the file and value stored, all else became background; empty: as they are."""
    rounded_voxels: Count
    """Voxels of the file that were off a whole number by a rounding error."""


class VertebraRecord(StoredAttributes):
    """One vertebra's voxels in one scan."""

    voxel_count: Annotated[int, Field(ge=1, le=_LARGEST_NUMBER)]
    centroid_zyx: ZYX
    """Mean voxel index."""
    start_zyx: PlaceZYX
    stop_zyx: PlaceZYX


class CentroidRecord(StoredAttributes):
    """One vertebra's center as annotated in a file of its own."""

    position_zyx_mm: ZYX
    """RAS+ mm."""
    label_distance_mm: float | None
    """To the nearest voxel of the vertebra's label, 0 inside it; None if the mask lacks it."""

    @property
    def is_near_label(self) -> bool:
        """Whether it is taken to be right; where the mask lacks the vertebra, nothing says no."""
        return self.label_distance_mm is None or self.label_distance_mm <= NEAR_LABEL_MM


class ScanAttributes(StoredAttributes):
    """Attributes of a scan's group; written with the scan's last write."""

    dataset: str
    scan_id: ScanId
    patient_id: str
    source: str
    split: str
    split_index: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    license: str
    citation: str
    affine: Affine
    """4 x 4, stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: SizeZYX
    spacing_zyx_mm: SpacingZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis; the coordinates leave it out.

    Of a sheared grid, that of the nearest perpendicular axes.
    """
    label_state: LabelState | Literal["none"]
    """``none``: the scan has no mask."""
    image_dtype: ImageDtype
    """Type of the values."""
    image_stored_dtype: ImageDtype
    """Type of the numbers in the array ``image``."""
    image_scaling: tuple[float, float] | None
    """Slope and intercept that make values of these numbers; None if they are the values."""
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_nan_voxels: Count
    """Values that are not a number."""
    image_infinite_voxels: Count
    image_checksum: str
    """Hash of the values, in their type: equal if and only if two images are equal."""
    vertebrae: dict[Vertebra, VertebraRecord]
    other_labels: dict[LabelValue, Count]
    """Voxels of each value that is no vertebra."""
    structures: dict[LabelValue, str]
    """Names of such values, where the recipe knows them; the rest lie outside the scheme."""
    centroids: dict[Level, CentroidRecord]
    """Annotated centers by level name; empty where the dataset has no such file."""
    columns: dict[str, str]
    """What the dataset's own tables say of the scan, by column."""
    sidecar: dict[str, str]
    """What the JSON file beside the image says, by key."""
    source_bytes: Count
    """Of all files of image and mask."""
    source_key: str
    """Hash of which files the scan was read from, and how; with another, it is read anew."""
    image_source: ImageSourceRecord
    label_source: LabelSourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[
        Annotated[str, Field(pattern=SCAN_FILE)],
        Annotated[ManifestEntry | ShardEntry, Field(union_mode="left_to_right")],
    ]
    """Every file of the scan but its own ``zarr.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return self.model_dump(mode="json")

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxels of each value in the mask but background."""
        vertebrae = {VALUE_OF_NAME[name]: v.voxel_count for name, v in self.vertebrae.items()}
        return {**vertebrae, **{int(value): n for value, n in self.other_labels.items()}}

    @property
    def content_checksum(self) -> str:
        """Hash of grid, type and voxels of image and mask; the same files give the same."""
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
    """The ``zarr.json`` of a scan."""

    attributes: ScanAttributes
    consolidated_metadata: _ScanMembers

    @property
    def arrays(self) -> ScanArrays:
        """Its arrays."""
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
        """Return what the manifest says of each shard of an array that is there, by its index.

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
    """Read the ``zarr.json`` of a scan.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    return parse_sealed(data, ScanGroup)
