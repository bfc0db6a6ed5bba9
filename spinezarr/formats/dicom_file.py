"""What is a DICOM file, and to which series does it belong?

References
----------
DICOM PS3.3 sections C.7.6.16 (Multi-frame Functional Groups) and C.8.15 (Enhanced CT Image); PS3.6
annex A (UIDs): https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import fsspec

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_data_set import DataSet, HeaderError
from spinezarr.formats.dicom_header import DicomHeader, read_header
from spinezarr.formats.dicom_names import has_other_file_name
from spinezarr.formats.dicom_syntax import uid_name
from spinezarr.formats.file_kinds import KIND_BYTES, wrong_kind_error
from spinezarr.formats.limits import Limits

__all__ = [
    "DicomObject",
    "SeriesHeader",
    "first_item",
    "naming_file",
    "parse_object",
    "read_object",
    "valid_numbers",
]

_CT_CLASS: Final = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CLASSES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""Enhanced CT Image Storage, and Legacy Converted Enhanced CT Image Storage."""
_CT_CLASSES: Final = _ENHANCED_CLASSES | {_CT_CLASS}
_DIRECTION_DIGITS: Final = 2
"""Number of decimals of the direction cosines by which series without a UID are compared."""


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """The header fields of a file that describe its series.

    Texts are used for comparison only, and never shown in messages.
    """

    uid: str
    """SeriesInstanceUID; empty if there is none."""
    study_uid: str
    frame_uid: str
    """FrameOfReferenceUID."""
    number: int | None
    """SeriesNumber."""
    kernel: tuple[str, ...]
    description: str
    image_type: tuple[str, ...]
    slice_thickness_mm: float | None
    cosines: tuple[float, ...]
    """ImageOrientationPatient, rounded to two decimals."""
    spacing_rows_columns_mm: tuple[float, ...]
    shape_rows_columns: tuple[float, ...]

    @property
    def matching_fields(self) -> dict[str, object]:
        """Fields by DICOM name that all slices of a series share in addition to the UID."""
        return {
            "StudyInstanceUID": self.study_uid,
            "FrameOfReferenceUID": self.frame_uid,
            "SeriesNumber": self.number,
            "ConvolutionKernel": self.kernel,
            "SeriesDescription": self.description,
            "ImageType": self.image_type,
            "SliceThickness": self.slice_thickness_mm,
            "ImageOrientationPatient": self.cosines,
            "PixelSpacing": self.spacing_rows_columns_mm,
            "Rows and Columns": self.shape_rows_columns,
        }


@dataclass(frozen=True, slots=True)
class DicomObject:
    """The properties of a DICOM file that matter for choosing a series."""

    path: str
    """Path of the file."""
    non_ct_kind: str | None
    """Kind of the object, such as ``'localizer'``; None for CT slices."""
    series: SeriesHeader
    frames: int
    """Number of slices in the file; 0 if it holds no CT slices."""
    size_bytes: int
    header: DicomHeader

    @property
    def is_multiframe(self) -> bool:
        """Whether the file may hold several slices."""
        return not _ENHANCED_CLASSES.isdisjoint(self.header.sop_classes)


def read_object(
    fs: fsspec.AbstractFileSystem, path: str, size_bytes: int, limits: Limits
) -> DicomObject | None:
    """Read the header of a file; return None if its content and its name say that it is not DICOM.

    Parameters
    ----------
    fs, path
        File system and path of the file.
    size_bytes
        Size of the file.
    limits
        Limits that the file must not exceed.

    Raises
    ------
    FormatError
        If the file is not DICOM but may be a slice (see :func:`has_other_file_name`), is too
        large, or does not parse.
    """
    dicom_object = parse_object(
        path, lambda start, stop: fs.cat_file(path, start=start, end=stop), size_bytes, limits
    )
    if dicom_object is not None:
        return dicom_object
    if has_other_file_name(path.rsplit("/", 1)[-1]):
        return None
    # A broken link has no size either. Reading it raises the right error.
    start = fs.cat_file(path, start=0, end=KIND_BYTES) if size_bytes else fs.cat_file(path)
    problem = wrong_kind_error(path, start, "a DICOM file")
    raise FormatError(f"{problem} If it is no slice, take it out of the folder.")


def parse_object(
    path: str, read: Callable[[int, int], bytes], size_bytes: int, limits: Limits
) -> DicomObject | None:
    """Parse the header of a file as far as it is needed; return None if it is not DICOM.

    Parameters
    ----------
    path
        Path of the file, for messages and to read it again.
    read
        Function of (start, stop) that returns these bytes of the file.
    size_bytes
        Size of the file.
    limits
        Limits that the file must not exceed.

    Raises
    ------
    FormatError
        If the file is too large, or does not parse.
    """
    with naming_file(path):
        header = read_header(
            read,
            size_bytes,
            max_bytes=limits.dicom_header_bytes,
            max_inflated_bytes=limits.dicom_file_bytes,
            classes=_CT_CLASSES,
        )
        return None if header is None else _dicom_object(path, size_bytes, header, limits)


def _dicom_object(path: str, size_bytes: int, header: DicomHeader, limits: Limits) -> DicomObject:
    data, classes = header.data, header.sop_classes
    # One class is enough: de-identified files may state only the one outside the data set.
    if not classes:
        raise FormatError(
            f"{path}: states no SOPClassUID, so its kind is unknown. Download it again."
        )
    non_ct_kind = None
    if _CT_CLASSES.isdisjoint(classes):
        non_ct_kind = uid_name(classes[0]) or "object of an unknown class"
    elif "LOCALIZER" in data.texts("ImageType"):
        non_ct_kind = "localizer"
    frames = 1
    if non_ct_kind is None:
        # Rows comes after the fields of the series, so a header that is cut short lacks it.
        if "Rows" not in data:
            raise FormatError(
                f"{path}: states no Rows: it is cut short, or is no image. Download it again, or "
                "take it out of the folder."
            )
        enhanced = not _ENHANCED_CLASSES.isdisjoint(classes)
        frames = _frame_count(data, path, enhanced=enhanced)
        max_bytes = limits.dicom_multiframe_bytes if enhanced else limits.dicom_file_bytes
        if size_bytes > max_bytes:
            raise FormatError(
                f"{path}: has more than {max_bytes} bytes, expected the file of "
                f"{'a CT' if enhanced else 'one CT slice'}. Take it out of the folder."
            )
    return DicomObject(
        path, non_ct_kind, _series_header(data), 0 if non_ct_kind else frames, size_bytes, header
    )


def _frame_count(data: DataSet, path: str, *, enhanced: bool) -> int:
    numbers = data.numbers("NumberOfFrames")
    frames = int(numbers[0]) if numbers else 1
    if enhanced and frames >= 1:
        return frames
    if frames != 1:
        raise FormatError(
            f"{path}: holds {frames} frame{'' if frames == 1 else 's'}, but is no Enhanced CT, so "
            "their positions are unknown; expected one file for each slice. Export the series "
            "again as CT or Enhanced CT."
        )
    return 1


def _series_header(data: DataSet) -> SeriesHeader:
    groups = data.sequence("SharedFunctionalGroupsSequence")[:1]
    measures = first_item(groups, "PixelMeasuresSequence") or data
    kernel = first_item(groups, "CTReconstructionSequence") or data
    orientation = first_item(groups, "PlaneOrientationSequence") or data
    number = valid_numbers(data, "SeriesNumber")
    thickness = valid_numbers(measures, "SliceThickness")
    return SeriesHeader(
        uid=data.text("SeriesInstanceUID"),
        study_uid=data.text("StudyInstanceUID"),
        frame_uid=data.text("FrameOfReferenceUID"),
        number=int(number[0]) if number else None,
        kernel=kernel.texts("ConvolutionKernel"),
        description=data.text("SeriesDescription"),
        image_type=data.texts("ImageType"),
        slice_thickness_mm=thickness[0] if thickness else None,
        cosines=tuple(
            round(cosine, _DIRECTION_DIGITS) + 0.0
            for cosine in valid_numbers(orientation, "ImageOrientationPatient")
        ),
        spacing_rows_columns_mm=valid_numbers(measures, "PixelSpacing"),
        shape_rows_columns=valid_numbers(data, "Rows") + valid_numbers(data, "Columns"),
    )


def first_item(groups: tuple[DataSet, ...], keyword: str) -> DataSet | None:
    """Return the first item of a sequence from the first group that has it."""
    return next((item for group in groups for item in group.sequence(keyword)), None)


def valid_numbers(data: DataSet, keyword: str) -> tuple[float, ...]:
    """Return the numbers of an element; none if they are invalid.

    Invalid numbers that matter are refused later.
    """
    try:
        return data.numbers(keyword)
    except HeaderError:
        return ()


@contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Add the path to the error of a header that does not parse."""
    try:
        yield
    except HeaderError as problem:
        raise FormatError(
            f"{path}: does not read as DICOM: {problem}. Download it again."
        ) from problem
