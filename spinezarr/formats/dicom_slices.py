"""Where do the slices of a DICOM file lie, and how are their pixels stored and scaled?

References
----------
DICOM PS3.3 sections C.7.6.3 (Image Pixel), C.7.6.16 (Multi-frame Functional Groups), C.8.2.1 (CT
Image) and C.11.1 (Modality LUT):
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html
"""

from dataclasses import dataclass
from typing import Final

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_data_set import DataSet
from spinezarr.formats.dicom_file import DicomObject, first_item, naming_file, valid_numbers
from spinezarr.formats.dicom_stack import SliceHeader
from spinezarr.formats.dicom_syntax import LOSSY, SYNTAXES, uid_name
from spinezarr.formats.header_text import redact_header_text

__all__ = ["checked_integer", "checked_numbers", "slice_headers"]

_BITS_ALLOCATED: Final = (8, 16, 32)
"""Allowed BitsAllocated. CT images have 16 (PS3.3 table C.8-3); derived images may differ."""
_MAX_NUMBER: Final = 1e6
"""Largest number in the header of a CT slice: one kilometer in mm."""
_PHOTOMETRIC: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT"}
    | {"YBR_RCT", "YBR_PARTIAL_420", "HSV", "ARGB", "CMYK", "XYB", ""}
)
"""Terms of PS3.3 C.7.6.3.1.2, which messages may show."""
_RESCALE_TYPES: Final = frozenset({"HU", "OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})
"""Terms of PS3.3 C.11.1.1.2, which messages may show."""
_HU: Final = "'HU'"


def slice_headers(dicom_object: DicomObject) -> list[SliceHeader]:
    """Check the header of a CT file, and return one slice header for each of its frames.

    Raises
    ------
    FormatError
        If a slice has several numbers per pixel or no position, or the frames of a multi-frame file
        belong to several stacks or times.
    """
    with naming_file(dicom_object.path):
        return [
            _slice_header(dicom_object, data_sets) for data_sets in _slice_data_sets(dicom_object)
        ]


@dataclass(frozen=True, slots=True)
class _SliceDataSets:
    """The data sets with position and scaling of one slice; all the same in a single-frame file."""

    frame: int | None
    position: DataSet
    orientation: DataSet
    measures: DataSet
    scaling: DataSet


def _slice_data_sets(dicom_object: DicomObject) -> list[_SliceDataSets]:
    """Return the data sets of each frame, or those of the file if it holds one slice."""
    data, path = dicom_object.header.data, dicom_object.path
    if not dicom_object.is_multiframe:
        return [_SliceDataSets(None, data, data, data, data)]
    shared = data.sequence("SharedFunctionalGroupsSequence")[:1]
    frame_groups = data.sequence("PerFrameFunctionalGroupsSequence")
    if len(frame_groups) != dicom_object.frames:
        raise FormatError(
            f"{path}: has {dicom_object.frames} frame{'' if dicom_object.frames == 1 else 's'} and "
            f"positions of {len(frame_groups)} (PerFrameFunctionalGroupsSequence). It is cut short "
            "or damaged: download it again."
        )
    data_sets: list[_SliceDataSets] = []
    stacks: set[str] = set()
    times: set[tuple[float, ...]] = set()
    for frame, group in enumerate(frame_groups):

        def item_of(keyword: str, group: DataSet = group) -> DataSet:
            return first_item((group, *shared), keyword) or DataSet()

        content = item_of("FrameContentSequence")
        stacks.add(content.text("StackID"))
        times.add(content.numbers("TemporalPositionIndex"))
        data_sets.append(
            _SliceDataSets(
                frame,
                item_of("PlanePositionSequence"),
                item_of("PlaneOrientationSequence"),
                item_of("PixelMeasuresSequence"),
                item_of("PixelValueTransformationSequence"),
            )
        )
    for noun, values in (("stacks (StackID)", stacks), ("times (TemporalPositionIndex)", times)):
        if len(values) > 1:
            raise FormatError(
                f"{path}: its {dicom_object.frames} frames belong to {len(values)} {noun}, "
                "expected one. Export each as a file of its own."
            )
    return data_sets


def _slice_header(dicom_object: DicomObject, data_sets: _SliceDataSets) -> SliceHeader:
    """Check the fields of one slice, and return its header."""
    data, path = dicom_object.header.data, dicom_object.path
    _check_color(data, path)
    rows, columns = (checked_integer(data, keyword, path) for keyword in ("Rows", "Columns"))
    allocated, stored, signed = _pixel_format(data, path)
    row_spacing_mm, column_spacing_mm = checked_numbers(data_sets.measures, "PixelSpacing", 2, path)
    if min(rows, columns) < 1 or min(row_spacing_mm, column_spacing_mm) <= 0:
        raise FormatError(
            f"{path}: has {rows} x {columns} pixels {row_spacing_mm} x {column_spacing_mm} mm "
            "apart; expected more than 0. Export the series again."
        )
    return SliceHeader(
        path,
        data_sets.frame,
        position_lps_mm=checked_numbers(data_sets.position, "ImagePositionPatient", 3, path),
        cosines=checked_numbers(data_sets.orientation, "ImageOrientationPatient", 6, path),
        spacing_rows_columns_mm=(row_spacing_mm, column_spacing_mm),
        shape_rows_columns=(rows, columns),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        rescale=_rescale(data_sets.scaling, path),
        rescale_type=_rescale_type(data_sets.scaling),
        tilt_deg=_optional_number(data, "GantryDetectorTilt", path),
        thickness_mm=next(iter(valid_numbers(data_sets.measures, "SliceThickness")), None),
        notes=_slice_notes(dicom_object, data_sets.scaling),
    )


def checked_numbers(data: DataSet, keyword: str, count: int, path: str) -> tuple[float, ...]:
    """Return an element of exactly ``count`` numbers.

    Raises
    ------
    FormatError
        If there is another number of them, or one is extreme.
    """
    numbers = data.numbers(keyword)
    if len(numbers) != count:
        raise FormatError(
            f"{path}: {keyword} holds {len(numbers)} numbers, expected {count}. "
            "Export the series again with all its tags."
        )
    if not all(abs(number) <= _MAX_NUMBER for number in numbers):
        raise FormatError(
            f"{path}: {keyword} is {numbers}, expected numbers within {_MAX_NUMBER:g}. "
            "Export the series again."
        )
    return numbers


def _optional_number(data: DataSet, keyword: str, path: str) -> float | None:
    return checked_numbers(data, keyword, 1, path)[0] if data.text(keyword) else None


def checked_integer(data: DataSet, keyword: str, path: str) -> int:
    """Return an element of exactly one number as an integer; see :func:`checked_numbers`."""
    return int(checked_numbers(data, keyword, 1, path)[0])


def _check_color(data: DataSet, path: str) -> None:
    samples = checked_integer(data, "SamplesPerPixel", path)
    photometric = data.text("PhotometricInterpretation")
    shown = redact_header_text(photometric, _PHOTOMETRIC)
    if samples != 1 or photometric != "MONOCHROME2":
        raise FormatError(
            f"{path}: holds {samples} samples per pixel ({shown}), expected 1 (MONOCHROME2). "
            "It is a picture, not CT numbers: take it out of the folder."
        )


def _pixel_format(data: DataSet, path: str) -> tuple[int, int, bool]:
    """Return bits allocated, bits stored, and whether the value is signed."""
    allocated, stored, representation = (
        checked_integer(data, keyword, path)
        for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    high_bit = data.numbers("HighBit")
    if (
        allocated not in _BITS_ALLOCATED
        or not 1 <= stored <= allocated
        or representation not in (0, 1)
        or high_bit not in ((), (stored - 1,))
    ):
        raise FormatError(
            f"{path}: has BitsAllocated {allocated}, BitsStored {stored}, HighBit "
            f"{' '.join(f'{bit:g}' for bit in high_bit) or 'not stated'} and PixelRepresentation "
            f"{representation}; expected 8, 16 or 32 allocated bits, of which the low ones are "
            "stored, and a representation of 0 or 1. Export the series again."
        )
    return allocated, stored, representation == 1


def _rescale(data: DataSet, path: str) -> tuple[float, float] | None:
    slope = _optional_number(data, "RescaleSlope", path)
    intercept = _optional_number(data, "RescaleIntercept", path)
    if slope is None and intercept is None:
        return None
    if not slope or intercept is None:
        raise FormatError(
            f"{path}: RescaleSlope is {slope} and RescaleIntercept {intercept}; expected a slope "
            "other than 0 with an intercept. Export the series again."
        )
    return slope, intercept


def _rescale_type(scaling: DataSet) -> str:
    """Return RescaleType in a form that messages may show.

    A file must state it if its values are not in HU (PS3.3 table C.8-3), so its absence means HU.
    """
    return redact_header_text(scaling.text("RescaleType") or "HU", _RESCALE_TYPES)


def _slice_notes(dicom_object: DicomObject, scaling: DataSet) -> tuple[str, ...]:
    syntax, data = dicom_object.header.transfer_syntax, dicom_object.header.data
    if syntax not in SYNTAXES:
        raise FormatError(
            f"{dicom_object.path}: its TransferSyntaxUID is "
            f"{uid_name(syntax) or 'of no known syntax'!r}, which is not read; expected "
            "little or big endian, RLE, JPEG, JPEG-LS or JPEG 2000. Convert the series to "
            "explicit little endian."
        )
    notes = []
    if syntax in LOSSY or data.text("LossyImageCompression") == "01":
        notes.append(
            f"lossy compression ({uid_name(syntax)}): values may differ from those of the scanner"
        )
    if not scaling.text("RescaleSlope"):
        notes.append("no RescaleSlope: the values are used as stored, and may not be HU")
    rescale_type = _rescale_type(scaling)
    if rescale_type != _HU:
        notes.append(f"the values are in {rescale_type}, not HU (RescaleType)")
    return tuple(notes)
