"""Writes volumes as folders of DICOM slices, in any transfer syntax, and with planted defects.

The module shares no code with the reader under test. pydicom writes the files, and gdcm compresses
them. Both are imported when they are needed, so that the package can be used without them.

References
----------
DICOM PS3.3 annex A.3 (CT Image IOD) and section C.7.6.2.1.1 (position and orientation);
PS3.5 annex A (transfer syntaxes).
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

__all__ = [
    "DICOM_TRANSFER_SYNTAXES",
    "DicomForm",
    "check_dicom_packages",
    "dicom_decimals",
    "dicom_items",
    "new_dicom_object",
    "write_dicom_multiframe",
    "write_dicom_objects",
    "write_dicom_series",
]

DICOM_TRANSFER_SYNTAXES: Final = {
    "implicit-le": "1.2.840.10008.1.2",
    "explicit-le": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "explicit-be": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-lossless-57": "1.2.840.10008.1.2.4.57",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "jpeg2000-lossy": "1.2.840.10008.1.2.4.91",
}
"""Names of the transfer syntaxes that can be written, and their UIDs (PS3.6 annex A)."""

_CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
_LEGACY_CT: Final = "1.2.840.10008.5.1.4.1.1.2.2"
"""SOP class of a Legacy Converted Enhanced CT, which converters make from single slices."""
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_OTHER_CLASSES: Final = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "SR": "1.2.840.10008.5.1.4.1.1.88.67",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
}
"""SOP classes of other objects that archives store with CTs, by Modality."""
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: a DICOMDIR."""
_SYNTAXES_WITHOUT_META: Final = ("implicit-le", "explicit-le")
"""Transfer syntaxes that a reader can recognize without the file meta information."""
_BITS: Final = 16
"""Bits that are allocated for a pixel, as in all CT images (PS3.3 table C.8-3)."""
_LOCALIZER: Final = 10_000
"""InstanceNumber of a localizer, beyond those of slices."""
_JPEG2000_PIXELS: Final = 16
"""Fewest rows and columns for JPEG 2000; gdcm crashed on 7 x 5 pixels, but not on 16 x 16."""
_PERPENDICULAR_TOLERANCE: Final = 1e-6
"""Largest deviation of the axes of a series from right angles, in radians."""


@dataclass(frozen=True, slots=True)
class DicomForm:
    """Form of a stored series: its encoding, further objects in its folder, and its defects.

    Examples
    --------
    >>> DicomForm(transfer_syntax="jpeg")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    spinezarr.errors.UsageError: transfer_syntax must be one of implicit-le, ...; got 'jpeg'
    """

    transfer_syntax: str = "explicit-le"
    """One of :data:`DICOM_TRANSFER_SYNTAXES`."""
    slope: float = 1.0
    """``RescaleSlope``."""
    intercept: float = -1024.0
    """``RescaleIntercept``, in HU."""
    signed: bool = False
    """Whether stored values are signed (two's complement)."""
    bits_stored: int = 16
    """Bits of the 16 allocated that hold the value; the others are zero."""
    naming: Literal["number", "uid", "reversed"] = "number"
    """Names of the files: numbers along k, SOPInstanceUIDs, or numbers from the other end of k."""
    preamble: bool = True
    """Whether files have 128 bytes, ``DICM`` and file meta information before the data set."""
    localizer: bool = False
    """Whether the series also has a localizer."""
    scout: bool = False
    """Whether the series also has a scout across the slices, not marked as a localizer."""
    secondary_capture: bool = False
    """Whether the folder also has a color picture, as a series of its own."""
    second_series: int = 0
    """Number of slices of a second series, whose values are all zero."""
    missing: tuple[int, ...] = ()
    """Indices k of slices to leave out."""
    repeated: tuple[int, ...] = ()
    """Indices k of slices to write twice, as different objects."""
    moved_mm: tuple[tuple[int, float], ...] = ()
    """Index k of each slice to move, and its shift along the k axis in mm."""
    gantry_tilt_deg: float = 0.0
    """Angle of the tilt, which shifts each slice further along j."""

    def __post_init__(self) -> None:
        if self.transfer_syntax not in DICOM_TRANSFER_SYNTAXES:
            raise UsageError(
                f"transfer_syntax must be one of {', '.join(DICOM_TRANSFER_SYNTAXES)}; "
                f"got {self.transfer_syntax!r}"
            )
        if self.slope == 0:
            raise UsageError("slope must be a number other than 0, got 0")
        if not self.preamble and self.transfer_syntax not in _SYNTAXES_WITHOUT_META:
            raise UsageError(
                "without a preamble, transfer_syntax must be one of "
                f"{', '.join(_SYNTAXES_WITHOUT_META)}; got {self.transfer_syntax!r}"
            )
        if not 1 < self.bits_stored <= _BITS:
            raise UsageError(f"bits_stored must be within 2 and {_BITS}, got {self.bits_stored}")


_PLAIN_FORM: Final = DicomForm()


def write_dicom_series(
    folder: Path,
    array_ijk: npt.NDArray[np.integer[Any]],
    affine_ijk: npt.NDArray[np.float64],
    form: DicomForm,
) -> tuple[Path, ...]:
    """Write a folder of CT slices, the same bytes each time.

    Parameters
    ----------
    folder
        Folder to write to; it is made if it is missing.
    array_ijk
        Values in HU; axis i becomes the columns, j the rows, and k the slices.
    affine_ijk
        4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm. Its axes are at right angles, with
        either handedness.
    form
        Form in which the values are stored.

    Returns
    -------
    tuple of Path
        The files of the slices along k. Missing slices are left out, and the copies of repeated
        slices are at the end.

    Raises
    ------
    UsageError
        If a value cannot be stored in that form, the axes are not at right angles, or pydicom and
        gdcm are not installed.
    """
    check_dicom_packages(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = _to_stored(array_ijk, form)
    series = _Series(2, _study(array_ijk, affine_ijk, form), _Geometry.of(affine_ijk, form), form)
    order = [k for k in range(array_ijk.shape[2]) if k not in form.missing]
    order.extend(form.repeated)
    written = []
    for number, k in enumerate(order, start=1):
        dataset = series.slice(stored[:, :, k], k, number)
        written.append(folder / _name(number, len(order), str(dataset.SOPInstanceUID), form))
        _save(dataset, written[-1], form)
    for name, dataset in _extra_objects(np.zeros(array_ijk.shape[:2], np.uint16), series):
        _save(dataset, folder / name, _PLAIN_FORM)
    return tuple(written)


def write_dicom_multiframe(
    path: Path,
    array_ijk: npt.NDArray[np.integer[Any]],
    affine_ijk: npt.NDArray[np.float64],
    form: DicomForm,
    *,
    legacy: bool = False,
) -> Path:
    """Write an Enhanced CT with all slices as frames of one file, the same bytes each time.

    Parameters
    ----------
    path
        File to write; its folder is made if it is missing.
    array_ijk, affine_ijk
        As for :func:`write_dicom_series`.
    form
        Form in which it is stored; ``naming="reversed"`` stores the frames from the other end.
    legacy
        Whether to write a Legacy Converted Enhanced CT.

    Returns
    -------
    Path
        The file, which is ``path``.

    Raises
    ------
    UsageError
        As for :func:`write_dicom_series`.
    """
    from pydicom.encaps import encapsulate, get_frame  # noqa: PLC0415
    from pydicom.uid import UID  # noqa: PLC0415

    check_dicom_packages(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _to_stored(array_ijk, form)
    series = _Series(2, _study(array_ijk, affine_ijk, form), _Geometry.of(affine_ijk, form), form)
    order = [k for k in range(array_ijk.shape[2]) if k not in form.missing]
    order.extend(form.repeated)
    if form.naming == "reversed":
        order.reverse()
    frames = [series.slice(stored[:, :, k], k, number) for number, k in enumerate(order, start=1)]
    sop_class = _LEGACY_CT if legacy else _ENHANCED_CT
    dataset = new_dicom_object(sop_class, series.study, series.number, 1, "CT")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    _set_pixels(dataset, stored[:, :, 0].T, form)
    dataset.NumberOfFrames = len(frames)
    first = frames[0]
    dataset.SharedFunctionalGroupsSequence = [
        dicom_items(
            PlaneOrientationSequence={"ImageOrientationPatient": first.ImageOrientationPatient},
            PixelMeasuresSequence={"PixelSpacing": first.PixelSpacing},
            PixelValueTransformationSequence={
                "RescaleIntercept": first.RescaleIntercept,
                "RescaleSlope": first.RescaleSlope,
                "RescaleType": "HU",
            },
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        dicom_items(
            FrameContentSequence={"StackID": "1", "InStackPositionNumber": number},
            PlanePositionSequence={"ImagePositionPatient": frame.ImagePositionPatient},
        )
        for number, frame in enumerate(frames, start=1)
    ]
    syntax = UID(DICOM_TRANSFER_SYNTAXES[form.transfer_syntax])
    if syntax.is_encapsulated:
        for frame in frames:
            _encode(frame, syntax)
        codes = [get_frame(frame.PixelData, 0, number_of_frames=1) for frame in frames]
        dataset["PixelData"] = _pixel_element(encapsulate(codes))
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset["PixelData"] = _pixel_element(b"".join(frame.PixelData for frame in frames))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_dicom_objects(folder: Path, modality: str, count: int = 1) -> tuple[Path, ...]:
    """Write DICOM objects of other classes, without pixels, as archives store them with CTs.

    Parameters
    ----------
    folder
        Folder to write to; it is made if it is missing.
    modality
        ``MR``, ``PT``, ``SR``, ``RTSTRUCT`` or ``SEG``, or ``DIRECTORY`` for a DICOM directory.
    count
        Number of objects, all of one series.

    Returns
    -------
    tuple of Path
        ``MR-1.dcm`` and so on, or ``DICOMDIR``.

    Raises
    ------
    UsageError
        If the modality is none of these, or pydicom and gdcm are not installed.
    """
    check_dicom_packages(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if modality == "DIRECTORY":
        dataset = new_dicom_object(_DIRECTORY, _uid(modality), 1, 1, "OT")
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.clear()
        dataset.FileSetID = "PHANTOM"
        dataset.DirectoryRecordSequence = []
        _save(dataset, folder / "DICOMDIR", _PLAIN_FORM)
        return (folder / "DICOMDIR",)
    if modality not in _OTHER_CLASSES:
        known = ", ".join([*_OTHER_CLASSES, "DIRECTORY"])
        raise UsageError(f"modality must be one of {known}; got {modality!r}")
    written = []
    for number in range(1, count + 1):
        study = _uid("beside", str(folder), modality)
        dataset = new_dicom_object(_OTHER_CLASSES[modality], study, 7, number, modality)
        written.append(folder / f"{modality}-{number}.dcm")
        _save(dataset, written[-1], _PLAIN_FORM)
    return tuple(written)


def dicom_items(**sequences: dict[str, Any]) -> "Dataset":
    """Return a data set of sequences that have one item each."""
    from pydicom import Dataset  # noqa: PLC0415  only writing DICOM needs pydicom

    group = Dataset()
    for keyword, elements in sequences.items():
        item = Dataset()
        for element, value in elements.items():
            setattr(item, element, value)
        setattr(group, keyword, [item])
    return group


def check_dicom_packages(path: Path) -> None:
    """Raise UsageError if the packages that write DICOM are not installed."""
    if any(find_spec(module) is None for module in ("pydicom", "gdcm")):
        raise UsageError(
            f"{path}: writing DICOM needs pydicom and gdcm: pip install 'spinezarr[dicom]'"
        )


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Positions and directions of the slices, in LPS+ mm."""

    across: npt.NDArray[np.float64]
    down: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float]
    """Distance between rows, then between columns."""

    @classmethod
    def of(cls, affine_ijk: npt.NDArray[np.float64], form: DicomForm) -> "_Geometry":
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ijk
        lengths = np.linalg.norm(lps[:3, :3], axis=0)
        across, down, along = (lps[:3, :3] / lengths).T
        worst = max(abs(across @ down), abs(across @ along), abs(down @ along))
        if worst > _PERPENDICULAR_TOLERANCE:
            raise UsageError(
                f"the axes of the affine are not at right angles, by {np.degrees(worst):.3g} "
                "degrees: DICOM slices lie across their stack; use gantry_tilt_deg to tilt them"
            )
        slip = np.tan(np.radians(form.gantry_tilt_deg)) * lengths[2] * down
        step = lengths[2] * along + slip
        return cls(across, down, lps[:3, 3], step, (float(lengths[1]), float(lengths[0])))

    def position(self, k: int, form: DicomForm) -> npt.NDArray[np.float64]:
        moved = dict(form.moved_mm).get(k, 0.0) * self.step / np.linalg.norm(self.step)
        return np.asarray(self.origin + k * self.step + moved)


def _to_stored(
    array_ijk: npt.NDArray[np.integer[Any]], form: DicomForm
) -> npt.NDArray[np.integer[Any]]:
    """Undo the rescaling; refuse values that the form cannot hold exactly."""
    exact = (array_ijk.astype(np.float64) - form.intercept) / form.slope
    rounded = np.rint(exact)
    low = -(2 ** (form.bits_stored - 1)) if form.signed else 0
    high = low + 2**form.bits_stored - 1
    if (rounded * form.slope + form.intercept != array_ijk).any():
        raise UsageError(
            f"values from {array_ijk.min()} to {array_ijk.max()} HU are not all whole multiples "
            f"of slope {form.slope:g} above intercept {form.intercept:g}"
        )
    if rounded.min() < low or rounded.max() > high:
        raise UsageError(
            f"values from {array_ijk.min()} to {array_ijk.max()} HU would be stored as "
            f"{rounded.min():g} to {rounded.max():g}, which {form.bits_stored} bits from {low} to "
            f"{high} cannot hold; choose another intercept, slope or bits_stored"
        )
    return rounded.astype(np.int16 if form.signed else np.uint16)


def _study(
    array_ijk: npt.NDArray[np.integer[Any]],
    affine_ijk: npt.NDArray[np.float64],
    form: DicomForm,
) -> str:
    """Make a reproducible StudyInstanceUID for a series."""
    content = hashlib.sha256(array_ijk.tobytes() + affine_ijk.tobytes()).hexdigest()
    return _uid(content, form)


def _uid(*parts: object) -> str:
    """Make a reproducible UID from parts: 2.25 and a number of 122 bits (PS3.5 annex B)."""
    digest = hashlib.sha256("/".join(map(repr, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest) >> 134}"


def _name(number: int, count: int, uid: str, form: DicomForm) -> str:
    if form.naming == "uid":
        return uid
    return f"{number if form.naming == 'number' else count + 1 - number}.dcm"


def new_dicom_object(
    sop_class: str, study: str, series: int, number: int, modality: str
) -> "Dataset":
    """Return a data set with the elements that identify an object."""
    from pydicom import Dataset  # noqa: PLC0415  only writing DICOM needs pydicom
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = _uid(study, series, number)
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = _uid(study, series)
    dataset.SeriesNumber = series
    dataset.SeriesDescription = f"Phantom {series}"
    dataset.InstanceNumber = number
    dataset.Modality = modality
    dataset.PatientName = "Phantom"
    dataset.PatientID = "phantom"
    return dataset


@dataclass(frozen=True, slots=True)
class _Series:
    number: int
    study: str
    geometry: _Geometry
    form: DicomForm

    def slice(self, stored_ij: npt.NDArray[np.integer[Any]], k: int, number: int) -> "Dataset":
        """Return a CT image at the position of slice ``k``."""
        dataset = new_dicom_object(_CT_IMAGE, self.study, self.number, number, "CT")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = dicom_decimals(*self.geometry.position(k, self.form))
        dataset.ImageOrientationPatient = dicom_decimals(*self.geometry.across, *self.geometry.down)
        dataset.PixelSpacing = dicom_decimals(*self.geometry.spacing_mm)
        dataset.GantryDetectorTilt = dicom_decimals(self.form.gantry_tilt_deg)
        dataset.RescaleSlope = dicom_decimals(self.form.slope)
        dataset.RescaleIntercept = dicom_decimals(self.form.intercept)
        dataset.RescaleType = "HU"
        _set_pixels(dataset, stored_ij.T, self.form)
        return dataset


def dicom_decimals(*values: float) -> Any:  # noqa: ANN401  whatever pydicom takes for DS
    """Round to the 16 characters of a decimal string (PS3.5 section 6.2)."""
    from pydicom.valuerep import DSfloat  # noqa: PLC0415  only writing DICOM needs pydicom

    numbers = [DSfloat(float(value), auto_format=True) for value in values]
    return numbers if len(numbers) > 1 else numbers[0]


def _set_pixels(
    dataset: "Dataset", stored_rc: npt.NDArray[np.integer[Any]], form: DicomForm
) -> None:
    dataset.Rows, dataset.Columns = stored_rc.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = _BITS
    dataset.BitsStored = form.bits_stored
    dataset.HighBit = form.bits_stored - 1
    dataset.PixelRepresentation = int(form.signed)
    # Signed values that need fewer bits leave the rest zero, so that a reader must extend the sign.
    bits = stored_rc.astype(np.int64) & (2**form.bits_stored - 1)
    big_endian = form.transfer_syntax == "explicit-be"
    dataset["PixelData"] = _pixel_element(bits.astype(">u2" if big_endian else "<u2").tobytes())


def _pixel_element(pixels: bytes) -> Any:  # noqa: ANN401  pydicom's DataElement
    from pydicom import DataElement  # noqa: PLC0415  only writing DICOM needs pydicom

    return DataElement("PixelData", "OW", pixels)


def _extra_objects(
    blank_ij: npt.NDArray[np.uint16], series: _Series
) -> Iterator[tuple[str, "Dataset"]]:
    """Yield the file name and the data set of each object of the form that is no slice."""
    form = replace(series.form, transfer_syntax="explicit-le")
    plain_series = replace(series, form=form)
    if form.localizer:
        localizer = plain_series.slice(blank_ij, 0, _LOCALIZER)
        localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        yield "localizer.dcm", localizer
    if form.scout:
        scout = plain_series.slice(blank_ij, 0, _LOCALIZER + 1)
        geometry = series.geometry
        along = geometry.step / np.linalg.norm(geometry.step)
        scout.ImageOrientationPatient = dicom_decimals(*geometry.across, *-along)
        yield "scout.dcm", scout
    if form.secondary_capture:
        picture = new_dicom_object(_SECONDARY_CAPTURE, series.study, 999, 1, "OT")
        _set_pixels(picture, blank_ij.T, form)
        picture.SamplesPerPixel = 3
        picture.PlanarConfiguration = 0
        picture.PhotometricInterpretation = "RGB"
        picture.BitsAllocated, picture.BitsStored, picture.HighBit = 8, 8, 7
        picture.PixelRepresentation = 0
        pixels = bytes(3 * blank_ij.size)
        picture["PixelData"] = _pixel_element(pixels + bytes(len(pixels) % 2))
        yield "picture.dcm", picture
    for k in range(form.second_series):
        yield f"other-{k}.dcm", replace(plain_series, number=3).slice(blank_ij, k, k + 1)


def _save(dataset: "Dataset", path: Path, form: DicomForm) -> None:
    from pydicom.uid import UID  # noqa: PLC0415  only writing DICOM needs pydicom

    syntax = UID(DICOM_TRANSFER_SYNTAXES[form.transfer_syntax])
    _encode(dataset, syntax)
    if form.preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)


def _encode(dataset: "Dataset", syntax: "UID") -> None:
    """Encode the pixels of a single slice in a transfer syntax."""
    from pydicom.uid import (  # noqa: PLC0415  only writing DICOM needs pydicom
        ExplicitVRLittleEndian,
        RLELossless,
    )

    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    )
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False, encoding_plugin="pydicom")
    elif syntax.is_encapsulated:
        _compress(dataset, syntax)


def _compress(dataset: "Dataset", syntax: "UID") -> None:
    """Compress with gdcm, through files, and take only the pixels from the result."""
    import gdcm  # noqa: PLC0415  only compression needs gdcm
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.uid import JPEG2000TransferSyntaxes  # noqa: PLC0415

    if syntax in JPEG2000TransferSyntaxes and min(dataset.Rows, dataset.Columns) < _JPEG2000_PIXELS:
        raise UsageError(
            f"gdcm compresses slices of at least {_JPEG2000_PIXELS} x {_JPEG2000_PIXELS} pixels "
            f"as JPEG 2000, got {dataset.Rows} x {dataset.Columns}; choose another transfer_syntax"
        )
    with tempfile.TemporaryDirectory() as folder:
        plain, compressed = f"{folder}/plain.dcm", f"{folder}/packed.dcm"
        dataset.save_as(plain, enforce_file_format=True)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(plain)
        succeeded = reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        change.SetInput(reader.GetImage())
        succeeded = succeeded and change.Change()
        writer.SetFileName(compressed)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not (succeeded and writer.Write()):
            raise UsageError(f"gdcm does not compress these pixels as {syntax}; choose another")
        dataset["PixelData"] = dcmread(compressed)["PixelData"]
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
