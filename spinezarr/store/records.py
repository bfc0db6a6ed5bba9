"""Which values do the records of a store have: numbers, paths, source files, labels and masks?"""

import math
from itertools import permutations, product
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.layout import LARGEST_AXIS, is_mask_name
from spinezarr.store.sealed import StoredAttributes, describe_value
from spinezarr.vertebrae import LabelState

__all__ = [
    "LARGEST_LENGTH_MM",
    "ORIENTATIONS",
    "ZYX",
    "Affine",
    "ComparisonRecord",
    "Count",
    "DerivationRecord",
    "FileRecord",
    "ImageSourceRecord",
    "LabelRecord",
    "LabelSourceRecord",
    "LabelValue",
    "MaskName",
    "MaskRecord",
    "MetaImageRecord",
    "NiftiRecord",
    "Number",
    "SizeZYX",
    "SourceRecord",
    "SpacingZYX",
    "VertebraRecord",
    "affine_lengths_xyz",
    "flag_word",
]

_LARGEST_NUMBER: Final = (1 << 63) - 1
"""Largest integer that the scan table can hold."""
LARGEST_LENGTH_MM: Final = 1e9
"""Largest stored position or length, in mm: a thousand kilometers, which cannot overflow."""
_MIN_RELATIVE_VOLUME: Final = 1e-6
"""Smallest volume of a voxel, relative to one with the same edges and perpendicular axes."""


def _checked_affine(affine: "Matrix") -> "Matrix":
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = affine
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    lengths = affine_lengths_xyz(affine)
    if last != (0.0, 0.0, 0.0, 1.0) or abs(volume) <= _MIN_RELATIVE_VOLUME * math.prod(lengths):
        raise DamagedMetadataError("another matrix", "an invertible one with last row 0 0 0 1")
    return affine


def affine_lengths_xyz(affine: "Matrix") -> tuple[float, float, float]:
    """Return the distances of neighboring voxels along x, y and z in mm."""
    x, y, z, _ = zip(*affine[:3], strict=True)
    return math.hypot(*x), math.hypot(*y), math.hypot(*z)


def _checked_path(path: str) -> str:
    """Refuse a path that leads out of the raw folder."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise DamagedMetadataError(describe_value(path), "a path within the raw folder")
    return path


ORIENTATIONS: Final = frozenset(
    "".join(codes) for axes in permutations(("LR", "AP", "IS")) for codes in product(*axes)
)
"""Codes such as ``LPS`` for the directions in which three axes increase, as in nibabel."""


def _checked_mask_name(name: str) -> str:
    if not is_mask_name(name):
        raise DamagedMetadataError(describe_value(name), "the name of a mask")
    return name


def _checked_orientation(axcodes: str) -> str:
    if axcodes not in ORIENTATIONS:
        raise DamagedMetadataError(describe_value(axcodes), "three directions such as LPS")
    return axcodes


RawPath = Annotated[str, AfterValidator(_checked_path)]
"""Path of a file relative to the raw folder."""
Count = Annotated[int, Field(ge=0, le=_LARGEST_NUMBER)]
SegmentName = Annotated[str, Field(min_length=1, max_length=64)]
Number = Annotated[int, Field(ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER)]
Coordinate = Annotated[float, Field(ge=-LARGEST_LENGTH_MM, le=LARGEST_LENGTH_MM)]
Length = Annotated[float, Field(gt=0, le=LARGEST_LENGTH_MM)]
Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]
VoxelIndex = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
ZYX = tuple[Coordinate, Coordinate, Coordinate]
SpacingZYX = tuple[Length, Length, Length]
Share = Annotated[float, Field(ge=0, le=1)]
TargetSpacingZYX = tuple[Length | None, Length | None, Length | None]
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
MaskName = Annotated[str, AfterValidator(_checked_mask_name)]
"""Name of a further mask of a scan."""


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


class DerivationRecord(StoredAttributes):
    """The scan that a derived scan was made from, and how."""

    store: str
    """Path or URL of its store, without secrets."""
    scan_id: str
    content_checksum: str
    """Hash of grid, type and voxels of its image and mask."""
    mask_checksums: dict[MaskName, str]
    """Hash of the voxels of each further mask that was carried over, by name."""
    spacing_zyx_mm: TargetSpacingZYX | None
    """Spacing that was asked for; None along an axis, or in all, for that of the source."""
    image_filter: Literal["gaussian"] | None
    """Filter against aliasing before the image was sampled; None without one."""
    mask_interpolation: Literal["nearest", "linear"] | None
    """How masks were sampled; None if the spacing is that of the source."""
    crop: Literal["spine"] | None
    """Part of the scan that was kept; None for all of it."""
    margin_mm: Annotated[float, Field(ge=0, le=LARGEST_LENGTH_MM)] | None
    """Margin around this part; None without ``crop``."""
    start_zyx: ZYX
    """Position of the first voxel, in voxels of the source."""
    window_hu: tuple[float, float] | None
    """Values that became 0 and 255; None if the image keeps its type."""

    @property
    def keeps_voxels(self) -> bool:
        """Whether image and masks are those of the source, voxel for voxel."""
        return self.spacing_zyx_mm is None and self.crop is None and self.window_hu is None


class VertebraRecord(StoredAttributes):
    """The voxels of one vertebra in one scan."""

    voxel_count: Annotated[int, Field(ge=1, le=_LARGEST_NUMBER)]
    centroid_zyx: ZYX
    """Mean voxel index, ``(z, y, x)``."""
    start_zyx: VoxelIndexZYX
    """First voxel of the bounding box."""
    stop_zyx: VoxelIndexZYX
    """Voxel after the last one of the bounding box along each axis."""


class LabelRecord(VertebraRecord):
    """The voxels of one label of a further mask, and its name in the scheme of that mask."""

    name: str
    """Name of the structure; empty if the scheme has no name for the value."""

    def flag_word(self, value: int) -> str:
        """Return the word for the value that has this label; see :func:`flag_word`."""
        return flag_word(value, self.name)


def flag_word(value: int, name: str) -> str:
    """Return the word by which the flags of a mask name a value; the name may be empty.

    Examples
    --------
    >>> flag_word(7, "left rib"), flag_word(7, "")
    ('left_rib', 'label_7')
    """
    return "_".join(name.split() or [f"label_{value}"])


class ComparisonRecord(StoredAttributes):
    """The saved result of the comparison of a further mask with the truth.

    It counts only while both masks are those that were compared.
    """

    truth: str
    """Name of the true mask."""
    truth_checksum: str
    """Checksum of the true mask: the content checksum of the scan if it is ``label``."""
    mask_checksum: str
    """Checksum of the mask that was compared."""
    verdict: str
    """Kind of its fault, such as ``shifted``."""
    text: str
    """The fault in sentences."""
    dice: Share | None
    """Mean Dice coefficient of the vertebrae as named; None if the truth has none."""
    identification_rate: Share | None
    """Identification rate of VerSe; None if the truth has no vertebra."""


class MaskRecord(StoredAttributes):
    """A further mask of a scan beside ``label``, such as a prediction."""

    scheme: str
    """Name of the scheme that the names of the labels come from, such as ``vertebrae``."""
    labels: dict[LabelValue, LabelRecord]
    """Each value of the mask except background."""
    license: str
    """License of the mask, an SPDX identifier where there is one; empty if it is not known."""
    author: str
    """Who made or annotated the mask; empty if it is not known."""
    model: str
    """Program or network that made the mask, with its version; empty if there is none."""
    label_state: LabelState = "unknown"
    """Whether vertebrae cut by the end of the volume are annotated, or a model drew the mask."""
    source: LabelSourceRecord | None
    """File of the mask; None if a program wrote its voxels into the store."""
    source_key: str
    """Hash of the file and of the way in which it was read; empty without a file."""
    written_by: str
    notes: tuple[str, ...]
    comparison: ComparisonRecord | None = None
    """Result of the last comparison that was saved; None if there is none."""

    @property
    def names(self) -> dict[int, str]:
        """Name of each value in the mask except background; empty for a value without a name."""
        return {int(value): label.name for value, label in self.labels.items()}

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxel count of each value in the mask except background."""
        return {int(value): label.voxel_count for value, label in self.labels.items()}
