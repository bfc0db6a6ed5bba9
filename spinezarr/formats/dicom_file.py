"""What is a DICOM file, to which series does it belong, and where do its slices lie?

References
----------
DICOM PS3.3 sections C.7.6.3 (Image Pixel), C.7.6.16 (Multi-frame Functional Groups), C.8.2.1 (CT
Image), C.8.15 (Enhanced CT Image) and C.11.1 (Modality LUT); PS3.6 annex A (UIDs):
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import fsspec

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_data_set import DataSet, HeaderError
from spinezarr.formats.dicom_header import DicomHeader, read_header
from spinezarr.formats.dicom_stack import SliceHeader
from spinezarr.formats.dicom_syntax import LOSSY, SYNTAXES, uid_name
from spinezarr.formats.file_kinds import KIND_BYTES, wrong_kind_error
from spinezarr.formats.header_text import redact_header_text
from spinezarr.formats.limits import Limits

__all__ = [
    "DicomObject",
    "SeriesHeader",
    "has_other_file_name",
    "is_hidden",
    "parse_object",
    "read_object",
    "slice_headers",
]

_CT: Final = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""Enhanced CT Image Storage, and Legacy Converted Enhanced CT Image Storage."""
_CT_CLASSES: Final = _ENHANCED | {_CT}
_START_BYTES: Final = 132
"""Length of the preamble and the four letters after it."""
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
_COMPANIONS: Final = frozenset(
    {"readme", "license", "licence", "copying", "authors", "notice", "changes", "changelog"}
    | {"version", "manifest", "index", "autorun", "dicomdir", "checksum", "checksums"}
    | {"md5sum", "md5sums", "sha1sum", "sha1sums", "sha256sum", "sha256sums", "sha512sums"}
)
"""Names without an ending, in lower case, of files that accompany data."""
_OTHER_ENDINGS: Final = frozenset(
    {"csv", "tsv", "txt", "json", "xml", "yaml", "yml", "md", "rst", "log", "html", "htm", "css"}
    | {"js", "pdf", "rtf", "doc", "docx", "odt", "xls", "xlsx", "ods", "ppt", "pptx"}
    | {"jpg", "jpeg", "png", "bmp", "gif", "tif", "tiff", "svg", "ico", "webp", "mp4", "avi", "mov"}
    | {"zip", "7z", "rar", "tar", "tgz", "jar", "exe", "dll", "msi", "bat", "sh"}
    | {"nii", "nrrd", "nhdr", "mha", "mhd", "raw", "zraw", "hdr", "mgz", "mat", "npy", "npz", "h5"}
    | {"stl", "obj", "ply", "vtk", "py", "ipynb", "inf", "ini", "cfg", "conf", "toml", "db", "lnk"}
    | {"md5", "sha1", "sha256", "sha512", "sig", "asc", "pem", "dtd", "xsd", "xsl"}
)
"""Endings of files that are not DICOM."""
_PACKED_ENDINGS: Final = (".gz", ".bz2", ".xz")
"""Endings of a single compressed file; the ending before it tells the kind."""
_DIRECTION_DIGITS: Final = 2
"""Decimals of direction cosines, when series without a UID are compared."""


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
        return not _ENHANCED.isdisjoint(self.header.sop_classes)


def is_hidden(name: str) -> bool:
    """Whether the name of a file makes it hidden, such as ``.DS_Store`` and ``._1.dcm``.

    Examples
    --------
    >>> is_hidden("._IM-0001-0007.dcm"), is_hidden("IM-0001-0007")
    (True, False)
    """
    return name.startswith(".")


def has_other_file_name(name: str) -> bool:
    """Whether the name of a file says that it is no DICOM slice.

    Slices may have any name: with ``.dcm``, another ending, or none. A file that is not DICOM is
    therefore skipped only if it has the ending of another kind, or one of a few names that often
    accompany data. Any other file may be a slice that was downloaded as zeros or as a web page, and
    is refused.

    Examples
    --------
    >>> [has_other_file_name(name) for name in ("README", "series.csv", "report.PDF", "a.nii.gz")]
    [True, True, True, True]
    >>> slices = ("IM-0001-0007", "README.dcm", "1.2.840.9", "7.dcm.gz")
    >>> [has_other_file_name(name) for name in slices]
    [False, False, False, False]
    """
    low = name.lower()
    for packed in _PACKED_ENDINGS:
        low = low.removesuffix(packed)
    _, dot, ending = low.rpartition(".")
    return low in _COMPANIONS or bool(dot and ending in _OTHER_ENDINGS)


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
    found = parse_object(
        path, lambda start, stop: fs.cat_file(path, start=start, end=stop), size_bytes, limits
    )
    if found is not None:
        return found
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
    with _reading(path):
        header = read_header(
            read,
            size_bytes,
            most_bytes=limits.dicom_header_bytes,
            most_inflated_bytes=limits.dicom_file_bytes,
            classes=_CT_CLASSES,
        )
        return None if header is None else _object(path, size_bytes, header, limits)


def _object(path: str, size_bytes: int, header: DicomHeader, limits: Limits) -> DicomObject:
    data, classes = header.data, header.sop_classes
    # One of both is enough: de-identified files may keep only the one outside the data set.
    if not classes:
        raise FormatError(
            f"{path}: states no SOPClassUID, so what it holds is unknown. Download it again."
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
                f"{path}: states no Rows: it is cut short, or no image. Download it again, or take "
                "it out of the folder."
            )
        enhanced = not _ENHANCED.isdisjoint(classes)
        frames = _frames(data, path, enhanced=enhanced)
        most = limits.dicom_multiframe_bytes if enhanced else limits.dicom_file_bytes
        if size_bytes > most:
            raise FormatError(
                f"{path}: has more than {most} bytes, expected the file of "
                f"{'a CT' if enhanced else 'one CT slice'}. Take it out of the folder."
            )
    return DicomObject(
        path, non_ct_kind, _series_facts(data), 0 if non_ct_kind else frames, size_bytes, header
    )


def _frames(data: DataSet, path: str, *, enhanced: bool) -> int:
    found = data.numbers("NumberOfFrames")
    frames = int(found[0]) if found else 1
    if enhanced and frames >= 1:
        return frames
    if frames != 1:
        raise FormatError(
            f"{path}: holds {frames} frame{'' if frames == 1 else 's'}, but is no Enhanced CT, so "
            "where they lie is unknown; expected one file a slice. Export the series again as CT "
            "or Enhanced CT."
        )
    return 1


def _series_facts(data: DataSet) -> SeriesHeader:
    groups = data.sequence("SharedFunctionalGroupsSequence")[:1]
    measures = _first(groups, "PixelMeasuresSequence") or data
    kernel = _first(groups, "CTReconstructionSequence") or data
    orientation = _first(groups, "PlaneOrientationSequence") or data
    number = _loose(data, "SeriesNumber")
    thickness = _loose(measures, "SliceThickness")
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
            for cosine in _loose(orientation, "ImageOrientationPatient")
        ),
        spacing_rows_columns_mm=_loose(measures, "PixelSpacing"),
        shape_rows_columns=_loose(data, "Rows") + _loose(data, "Columns"),
    )


def _first(groups: tuple[DataSet, ...], keyword: str) -> DataSet | None:
    """Return the first item of a sequence from the first group that has it."""
    return next((item for group in groups for item in group.sequence(keyword)), None)


def _loose(data: DataSet, keyword: str) -> tuple[float, ...]:
    """Return the numbers of an element; none if they are invalid, which is reported later."""
    try:
        return data.numbers(keyword)
    except HeaderError:
        return ()


def slice_headers(found: DicomObject) -> list[SliceHeader]:
    """Check the header of a CT file, and return one slice header for each of its frames.

    Raises
    ------
    FormatError
        If a slice has several numbers per pixel or no position, or the frames of a multi-frame file
        belong to several stacks or times.
    """
    with _reading(found.path):
        return [_slice(found, place) for place in _places(found)]


@dataclass(frozen=True, slots=True)
class _Place:
    """The data sets with position and scaling of one slice; all the same in a single-frame file."""

    frame: int | None
    position: DataSet
    orientation: DataSet
    measures: DataSet
    scaling: DataSet


def _places(found: DicomObject) -> list[_Place]:
    """Return the data sets of each frame, or those of the file if it holds one slice."""
    data, path = found.header.data, found.path
    if not found.is_multiframe:
        return [_Place(None, data, data, data, data)]
    shared = data.sequence("SharedFunctionalGroupsSequence")[:1]
    own = data.sequence("PerFrameFunctionalGroupsSequence")
    if len(own) != found.frames:
        raise FormatError(
            f"{path}: has {found.frames} frame{'' if found.frames == 1 else 's'} and says of "
            f"{len(own)} where they lie "
            "(PerFrameFunctionalGroupsSequence). It is cut short, or damaged: download it again."
        )
    places: list[_Place] = []
    stacks: set[str] = set()
    times: set[tuple[float, ...]] = set()
    for frame, group in enumerate(own):

        def of(keyword: str, group: DataSet = group) -> DataSet:
            return _first((group, *shared), keyword) or DataSet()

        content = of("FrameContentSequence")
        stacks.add(content.text("StackID"))
        times.add(content.numbers("TemporalPositionIndex"))
        places.append(
            _Place(
                frame,
                of("PlanePositionSequence"),
                of("PlaneOrientationSequence"),
                of("PixelMeasuresSequence"),
                of("PixelValueTransformationSequence"),
            )
        )
    for what, values in (("stacks (StackID)", stacks), ("times (TemporalPositionIndex)", times)):
        if len(values) > 1:
            raise FormatError(
                f"{path}: its {found.frames} frames are of {len(values)} {what}, expected one. "
                "Export each as a file of its own."
            )
    return places


def _slice(found: DicomObject, place: _Place) -> SliceHeader:
    """Check the fields of one slice, and return its header."""
    data, path = found.header.data, found.path
    _check_color(data, path)
    rows, columns = (_whole(data, keyword, path) for keyword in ("Rows", "Columns"))
    allocated, stored, signed = _pixel_format(data, path)
    between_rows, between_columns = _numbers(place.measures, "PixelSpacing", 2, path)
    if min(rows, columns) < 1 or min(between_rows, between_columns) <= 0:
        raise FormatError(
            f"{path}: has {rows} x {columns} pixels {between_rows} x {between_columns} mm "
            "apart; expected more than 0. Export the series again."
        )
    return SliceHeader(
        path,
        place.frame,
        position_lps_mm=_numbers(place.position, "ImagePositionPatient", 3, path),
        cosines=_numbers(place.orientation, "ImageOrientationPatient", 6, path),
        spacing_rows_columns_mm=(between_rows, between_columns),
        shape_rows_columns=(rows, columns),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        rescale=_rescale(place.scaling, path),
        rescale_type=_rescale_type(place.scaling),
        tilt_deg=_optional(data, "GantryDetectorTilt", path),
        thickness_mm=next(iter(_loose(place.measures, "SliceThickness")), None),
        notes=_notes(found, place.scaling),
    )


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Add the path to the error of a header that does not parse."""
    try:
        yield
    except HeaderError as problem:
        raise FormatError(
            f"{path}: does not read as DICOM: {problem}. Download it again."
        ) from problem


def _numbers(data: DataSet, keyword: str, count: int, path: str) -> tuple[float, ...]:
    """Return an element of exactly ``count`` numbers; refuse extreme ones."""
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


def _optional(data: DataSet, keyword: str, path: str) -> float | None:
    return _numbers(data, keyword, 1, path)[0] if data.text(keyword) else None


def _whole(data: DataSet, keyword: str, path: str) -> int:
    return int(_numbers(data, keyword, 1, path)[0])


def _check_color(data: DataSet, path: str) -> None:
    samples = _whole(data, "SamplesPerPixel", path)
    photometric = data.text("PhotometricInterpretation")
    shown = redact_header_text(photometric, _PHOTOMETRIC)
    if samples != 1 or photometric != "MONOCHROME2":
        raise FormatError(
            f"{path}: holds {samples} samples a pixel, {shown}; expected 1, MONOCHROME2. "
            "It is a picture, not CT numbers: take it out of the folder."
        )


def _pixel_format(data: DataSet, path: str) -> tuple[int, int, bool]:
    """Return bits allocated, bits stored, and whether the value is signed."""
    allocated, stored, representation = (
        _whole(data, keyword, path)
        for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    high = data.numbers("HighBit")
    if (
        allocated not in _BITS_ALLOCATED
        or not 1 <= stored <= allocated
        or representation not in (0, 1)
        or high not in ((), (stored - 1,))
    ):
        raise FormatError(
            f"{path}: pixels of BitsAllocated {allocated}, BitsStored {stored}, HighBit "
            f"{' '.join(f'{bit:g}' for bit in high) or 'not stated'}, PixelRepresentation "
            f"{representation}; expected 8, 16 or 32 allocated, of which the low ones are stored, "
            "and 0 or 1. Export the series again."
        )
    return allocated, stored, representation == 1


def _rescale(data: DataSet, path: str) -> tuple[float, float] | None:
    slope = _optional(data, "RescaleSlope", path)
    intercept = _optional(data, "RescaleIntercept", path)
    if slope is None and intercept is None:
        return None
    if not slope or intercept is None:
        raise FormatError(
            f"{path}: RescaleSlope is {slope} and RescaleIntercept {intercept}; expected a slope "
            "other than 0 with an intercept. Export the series again."
        )
    return slope, intercept


def _rescale_type(scaling: DataSet) -> str:
    """Return RescaleType as messages may show it.

    It must be there where values are not in HU (PS3.3 table C.8-3), so its absence means HU.
    """
    return redact_header_text(scaling.text("RescaleType") or "HU", _RESCALE_TYPES)


def _notes(found: DicomObject, scaling: DataSet) -> tuple[str, ...]:
    syntax, data = found.header.transfer_syntax, found.header.data
    if syntax not in SYNTAXES:
        raise FormatError(
            f"{found.path}: its TransferSyntaxUID is "
            f"{uid_name(syntax) or 'of no known syntax'!r}, which is not read; expected "
            "little or big endian, RLE, JPEG, JPEG-LS or JPEG 2000. Convert the series to "
            "explicit little endian."
        )
    notes = []
    if syntax in LOSSY or data.text("LossyImageCompression") == "01":
        notes.append(f"lossy compression: {uid_name(syntax)}, values may differ from the scanner's")
    if not scaling.text("RescaleSlope"):
        notes.append("no RescaleSlope: values as stored, which may not be HU")
    rescale_type = _rescale_type(scaling)
    if rescale_type != _HU:
        notes.append(f"values in {rescale_type}, not HU (RescaleType)")
    return tuple(notes)
