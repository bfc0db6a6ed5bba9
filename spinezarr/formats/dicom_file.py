"""One DICOM file: what it is, where its slice lies, and its pixels. Needs pydicom and gdcm.

pydicom parses and, with gdcm, decodes. Whatever either of them raises or warns of a file ends here.

References
----------
DICOM PS3.3 sections C.7.6.3 (Image Pixel), C.8.2.1 (CT Image) and C.11.1 (Modality LUT);
PS3.5 section 8 and annex A (pixel data and transfer syntaxes).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder

from spinezarr.errors import FormatError
from spinezarr.formats.described import described_bytes, described_text
from spinezarr.formats.dicom_codestream import CodeStreamError, check_jpeg, check_jpeg2000
from spinezarr.formats.dicom_stack import SliceHeader

__all__ = ["DicomObject", "read_object", "read_pixels", "slice_header"]

_PREAMBLE_BYTES: Final = 128
_MAGIC: Final = b"DICM"
_ENHANCED: Final = frozenset(
    {uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage}
)
_CT: Final = _ENHANCED | {uid.CTImageStorage}
_LOSSY: Final = frozenset(
    {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000}
)
"""Transfer syntaxes that need not keep each value."""
_BITS_ALLOCATED: Final = (8, 16, 32)
"""CT images allocate 16 (PS3.3 table C.8-3); derived ones also others."""
_MAX_NUMBER: Final = 1e6
"""No scanner's table is a kilometre long, and no other number of a CT slice is as large."""
_PHOTOMETRIC: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT"}
    | {"YBR_RCT", "YBR_PARTIAL_420", "HSV", "ARGB", "CMYK", "XYB", "None"}
)
"""Terms of PS3.3 C.7.6.3.1.2, which messages may show."""
_RESCALE_TYPES: Final = frozenset({"HU", "OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})
"""Terms of PS3.3 C.11.1.1.2, which messages may show."""
_TAGS: Final[list[Any]] = [
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "GantryDetectorTilt",
    "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "LossyImageCompression",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SeriesNumber",
]


@dataclass(frozen=True, slots=True)
class DicomObject:
    """A DICOM file as far as it matters for choosing a series."""

    path: str
    """The file."""
    other_kind: str | None
    """What it is if it is no slice of a CT, e.g. ``'localizer'``."""
    series_uid: str
    """SeriesInstanceUID."""
    series_name: str
    """SeriesNumber, for messages; a description may name the patient."""
    dataset: pydicom.FileDataset
    """Its header, without pixels."""


def read_object(fs: fsspec.AbstractFileSystem, path: str) -> DicomObject | None:
    """Read a file's header; None if it is no DICOM file and does not claim to be one.

    Raises
    ------
    FormatError
        If it is empty, named ``.dcm`` without being DICOM, or does not parse.
    """
    with fs.open(path, "rb") as raw:
        start = raw.read(_PREAMBLE_BYTES + len(_MAGIC))
        if start[_PREAMBLE_BYTES:] != _MAGIC:
            if start and not path.lower().endswith(".dcm"):
                return None
            found = f"looks like {described_bytes(start[:8])}" if start else "is empty"
            raise FormatError(
                f"{path}: is not a DICOM file: it {found}; expected {_MAGIC!r} at byte "
                f"{_PREAMBLE_BYTES}. Download it again, or take it out of the folder."
            )
        raw.seek(0)
        with _parsing(path):
            dataset = pydicom.dcmread(raw, stop_before_pixels=True, specific_tags=_TAGS)
            other_kind = _other_kind(dataset, path)
            series_uid = str(dataset.get("SeriesInstanceUID") or "")
            # A class or UID that is cut short must not pass for another kind or series, so the
            # tags behind it must be there: Rows is the last of these in the order of tags.
            if not series_uid or (other_kind is None and "Rows" not in dataset):
                missing = "Rows" if series_uid else "SeriesInstanceUID"
                raise FormatError(
                    f"{path}: states no {missing}: it is cut short, or no image. Download it "
                    "again, or take it out of the folder."
                )
            return DicomObject(
                path,
                other_kind,
                series_uid,
                f"series {described_text(str(dataset.get('SeriesNumber')), ('None',))}",
                dataset,
            )


def slice_header(found: DicomObject) -> SliceHeader:
    """Check the header of a CT slice on its own.

    Raises
    ------
    FormatError
        If it is not a single slice of one number a pixel, or does not say where it lies.
    """
    dataset, path = found.dataset, found.path
    with _parsing(path):
        _check_frames(dataset, path)
        _check_colour(dataset, path)
        rows, columns = (_whole(dataset, keyword, path) for keyword in ("Rows", "Columns"))
        allocated, stored, signed = _pixel_format(dataset, path)
        between_rows, between_columns = _numbers(dataset, "PixelSpacing", 2, path)
        if min(rows, columns) < 1 or min(between_rows, between_columns) <= 0:
            raise FormatError(
                f"{path}: has {rows} x {columns} pixels {between_rows} x {between_columns} mm "
                "apart; expected more than 0. Export the series again."
            )
        slope, intercept = _rescale(dataset, path)
        return SliceHeader(
            path,
            position_mm=_numbers(dataset, "ImagePositionPatient", 3, path),
            cosines=_numbers(dataset, "ImageOrientationPatient", 6, path),
            spacing_mm=(between_rows, between_columns),
            shape_rc=(rows, columns),
            bits_allocated=allocated,
            bits_stored=stored,
            signed=signed,
            slope=slope,
            intercept=intercept,
            tilt_deg=_optional(dataset, "GantryDetectorTilt", path),
            notes=_notes(dataset, path),
        )


def read_pixels(data: bytes, header: SliceHeader) -> npt.NDArray[Any]:
    """Decode the stored values of a slice: integers of axes (row, column).

    Parameters
    ----------
    data
        All bytes of the file.
    header
        What its header said when it was first read.

    Raises
    ------
    FormatError
        If the pixels are cut short, do not decode or are not those of ``header``.
    """
    path = header.path
    with _parsing(path):
        dataset = pydicom.dcmread(io.BytesIO(data))
        # pydicom gives up a whole data set in which compressed pixels have no end.
        if len(dataset) == 0:
            raise FormatError(f"{path}: cut short: its pixels do not end. Download it again.")
        if slice_header(DicomObject(path, None, "", "", dataset)) != header:
            raise FormatError(f"{path}: has changed while it was read. Ingest it again.")
        syntax = dataset.file_meta.TransferSyntaxUID
        _check_whole(dataset.get("PixelData") or b"", syntax, header)
        plugin = "pydicom" if syntax == uid.RLELossless else "gdcm"
        decoded, _ = get_decoder(syntax).as_array(
            dataset, index=0, raw=True, decoding_plugin=plugin if syntax.is_encapsulated else ""
        )
    return decoded


def _check_whole(pixels: bytes, syntax: uid.UID, header: SliceHeader) -> None:
    """Refuse pixels that end early, before a decoder fills in what is missing."""
    rows, columns = header.shape_rc
    expected = rows * columns * header.bits_allocated // 8
    if not syntax.is_encapsulated:
        if len(pixels) < expected:
            raise FormatError(
                f"{header.path}: cut short: it holds {len(pixels)} of {expected} bytes of pixels. "
                "Download it again."
            )
        return
    # The RLE decoder of pydicom counts what it gets.
    if syntax == uid.RLELossless:
        return
    check = check_jpeg2000 if syntax in uid.JPEG2000TransferSyntaxes else check_jpeg
    check(get_frame(pixels, 0, number_of_frames=1), header.shape_rc, header.bits_allocated)


def _name_of(stated: str, otherwise: str) -> str:
    """Return the name that the DICOM standard gives a UID; any other may say who made it."""
    name = uid.UID(stated).name
    return otherwise if name == stated else name


@contextmanager
def _unlogged() -> Iterator[None]:
    """Hold back what pydicom logs, whatever the program does with logs: it quotes values."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _parsing(path: str) -> Iterator[None]:
    """Turn what a parser makes of broken bytes into a refusal, and hold back what it warns of."""
    with warnings.catch_warnings(), _unlogged():
        warnings.simplefilter("ignore")
        try:
            yield
        except FormatError:
            raise
        except CodeStreamError as problem:
            raise FormatError(f"{path}: {problem}. Download it again.") from problem
        except Exception as problem:
            # An error of the disk or the network says nothing about the file.
            if isinstance(problem, OSError) and problem.errno is not None:
                raise
            # Its text is left out: pydicom quotes values, which may name a patient.
            raise FormatError(
                f"{path}: does not read as DICOM ({type(problem).__name__}). Download it again."
            ) from problem


def _other_kind(dataset: pydicom.FileDataset, path: str) -> str | None:
    stated = (dataset.get("SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID"))
    # Either will do: de-identified files may keep only the one outside the data set.
    classes = [sop_class for sop_class in stated if sop_class]
    if not classes:
        raise FormatError(
            f"{path}: states no SOPClassUID, so what it holds is unknown. Download it again."
        )
    if not _CT.intersection(classes):
        return _name_of(classes[0], "object of an unknown class")
    return "localizer" if "LOCALIZER" in _strings(dataset, "ImageType") else None


def _strings(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _numbers(dataset: pydicom.Dataset, keyword: str, count: int, path: str) -> tuple[float, ...]:
    """Return a multi-valued element as finite floats."""
    value = dataset.get(keyword)
    values = [] if value is None or value == "" else [value] if count == 1 else list(value)
    if len(values) != count:
        raise FormatError(
            f"{path}: {keyword} holds {len(values)} numbers, expected {count}. "
            "Export the series again with all its tags."
        )
    numbers = tuple(float(item) for item in values)
    if not all(abs(number) <= _MAX_NUMBER for number in numbers):
        raise FormatError(
            f"{path}: {keyword} is {numbers}, expected numbers within {_MAX_NUMBER:g}. "
            "Export the series again."
        )
    return numbers


def _optional(dataset: pydicom.Dataset, keyword: str, path: str) -> float | None:
    if dataset.get(keyword) in (None, ""):
        return None
    return _numbers(dataset, keyword, 1, path)[0]


def _whole(dataset: pydicom.Dataset, keyword: str, path: str) -> int:
    return int(_numbers(dataset, keyword, 1, path)[0])


def _check_frames(dataset: pydicom.FileDataset, path: str) -> None:
    frames = _optional(dataset, "NumberOfFrames", path)
    enhanced = _ENHANCED.intersection(
        {dataset.get("SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID")}
    )
    if enhanced or (frames or 1) != 1:
        raise FormatError(
            f"{path}: is a multi-frame object of {frames or 1:g} frames, expected one file a "
            "slice. Convert it to single-frame CT images or to NIfTI first."
        )


def _check_colour(dataset: pydicom.Dataset, path: str) -> None:
    samples = _whole(dataset, "SamplesPerPixel", path)
    photometric = str(dataset.get("PhotometricInterpretation"))
    shown = described_text(photometric, _PHOTOMETRIC)
    if samples != 1 or photometric != "MONOCHROME2":
        raise FormatError(
            f"{path}: holds {samples} samples a pixel, {shown}; expected 1, MONOCHROME2. "
            "It is a picture, not CT numbers: take it out of the folder."
        )


def _pixel_format(dataset: pydicom.Dataset, path: str) -> tuple[int, int, bool]:
    """Bits allocated, bits stored, and whether the value is signed."""
    allocated, stored, representation = (
        _whole(dataset, keyword, path)
        for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    high = _optional(dataset, "HighBit", path)
    if (
        allocated not in _BITS_ALLOCATED
        or not 1 <= stored <= allocated
        or representation not in (0, 1)
        or high not in (None, stored - 1)
    ):
        raise FormatError(
            f"{path}: pixels of BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}, "
            f"PixelRepresentation {representation}; expected 8, 16 or 32 allocated, of which the "
            "low ones are stored, and 0 or 1. Export the series again."
        )
    return allocated, stored, representation == 1


def _rescale(dataset: pydicom.Dataset, path: str) -> tuple[float, float]:
    slope = _optional(dataset, "RescaleSlope", path)
    intercept = _optional(dataset, "RescaleIntercept", path)
    if (slope is None) != (intercept is None) or slope == 0:
        raise FormatError(
            f"{path}: RescaleSlope is {slope} and RescaleIntercept {intercept}; expected a slope "
            "other than 0 with an intercept. Export the series again."
        )
    return (1.0 if slope is None else slope), intercept or 0.0


def _notes(dataset: pydicom.FileDataset, path: str) -> tuple[str, ...]:
    syntax = dataset.file_meta.get("TransferSyntaxUID") or uid.UID("")
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise FormatError(
            f"{path}: its TransferSyntaxUID is "
            f"{_name_of(syntax, 'of no known syntax')!r}, which is not read; expected "
            "little or big endian, RLE, JPEG, JPEG-LS or JPEG 2000. Convert the series to "
            "explicit little endian."
        ) from None
    notes = []
    if syntax in _LOSSY or dataset.get("LossyImageCompression") == "01":
        notes.append(f"lossy compression: {syntax.name}, values may differ from the scanner's")
    if dataset.get("RescaleSlope") in (None, ""):
        notes.append("no RescaleSlope: values as stored, which may not be HU")
    unit = dataset.get("RescaleType")
    if unit not in (None, "", "HU"):
        shown = described_text(str(unit), _RESCALE_TYPES)
        notes.append(f"values in {shown}, not HU (RescaleType)")
    return tuple(notes)
