r"""What kind of file is one that no reader expects, and how can it be made readable?

The first bytes of a file tell its kind. If the file is not opened, its ending does. Each kind has a
next step, so that every reader reports a wrong file in the same way.

References
----------
Git LFS pointers: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md;
git-annex pointer files: https://git-annex.branchable.com/internals/pointer_file/;
NRRD: https://teem.sourceforge.net/nrrd/format.html;
FreeSurfer's MGH: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat;
DICOM: PS3.10 section 7.1; NIfTI and Analyze: ``nifti1.h``
"""

from dataclasses import dataclass
from typing import Final

from spinezarr.errors import FormatError

__all__ = [
    "DICOM",
    "DICOM_SEG_STEP",
    "DICOM_SERIES_STEP",
    "FORMATS_READ",
    "KIND_BYTES",
    "METAIMAGE",
    "NRRD",
    "PAIR_STEP",
    "UNKNOWN",
    "FileKind",
    "detect_kind",
    "kind_from_ending",
    "wrong_kind_error",
]

KIND_BYTES: Final = 600
"""Number of first bytes that tell the kind of a file. A NIfTI-2 header has 540."""
FORMATS_READ: Final = (
    "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd) and folders of DICOM slices"
)
"""Names of the supported formats, for messages."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file, and what the user can do with it."""

    name: str
    """Name with its article, such as 'a web page'."""
    next_step: str
    """One or more sentences; empty if the kind does not suggest a step."""
    may_hold_voxels: bool = True
    """Whether the file may contain a volume, packed or in another format."""


_DOWNLOAD_AGAIN: Final = "Download it again."
_SERVER_RESPONSE: Final = (
    "A server's response, such as an error or a login page, was saved in place of the file: log "
    "in, and download it again."
)
_SITK: Final = (
    "Convert it: python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('{old}'), "
    "'OUT.nii.gz')\"."
)
_NIBABEL: Final = (
    "Convert it: python -c \"import nibabel as n; n.save(n.load('{old}'), 'OUT.nii.gz')\"."
)
_NO_GEOMETRY: Final = (
    "It does not state the size and position of its voxels in a standard way: write it as NIfTI "
    "with its affine, nibabel.save(nibabel.Nifti1Image(array_xyz, affine), 'OUT.nii.gz')."
)
_PICTURE: Final = "Export the volume in place of a picture of it."
DICOM_SERIES_STEP: Final = (
    "A series of CT slices is read as a folder: end the pattern with '/'. Or convert it: "
    "dcm2niix -z y -o OUT FOLDER."
)
"""Next step for a single DICOM slice."""
DICOM_SEG_STEP: Final = (
    "A mask as DICOM Segmentation is read if the layout of a recipe names its segments: "
    "segments: {L1 vertebra: L1, ...}."
)
"""Next step for a DICOM Segmentation."""

_EMPTY: Final = FileKind("an empty file", _DOWNLOAD_AGAIN)
_ZEROS: Final = FileKind("a file of zeros", f"Its content was never written. {_DOWNLOAD_AGAIN}")
_TEXT: Final = FileKind("text", "")
_BINARY: Final = FileKind("binary data of no known kind", "")
_GIT_LFS: Final = FileKind(
    "a Git LFS pointer",
    "It stands for a file that was not fetched: run 'git lfs pull' in the cloned folder.",
)
_GIT_ANNEX: Final = FileKind(
    "a git-annex pointer",
    "It stands for a file that was not fetched: run 'git annex get .' in the cloned folder.",
)
_JSON: Final = FileKind("JSON text", _SERVER_RESPONSE)
_WEB_PAGE: Final = FileKind("a web page", _SERVER_RESPONSE)
_XML: Final = FileKind("XML text", _SERVER_RESPONSE)
_NIFTI: Final = FileKind(
    "a NIfTI file", "Name it .nii or .nii.gz, by a pattern that does not end with '/'."
)
PAIR_STEP: Final = _NIBABEL.format(old="IN.hdr")
"""Next step for a ``.hdr/.img`` pair."""
_PAIR: Final = FileKind("one half of a .hdr/.img pair (NIfTI or Analyze)", PAIR_STEP)
METAIMAGE: Final = FileKind(
    "a MetaImage", "Name it .mha or .mhd, by a pattern that does not end with '/'."
)
DICOM: Final = FileKind("a DICOM file", f"{DICOM_SERIES_STEP} {DICOM_SEG_STEP}")
NRRD: Final = FileKind(
    "an NRRD file",
    "Name it .nrrd, with its voxels in the same file. " + _SITK.format(old="IN.nhdr"),
)
_MGH: Final = FileKind("an MGH file of FreeSurfer", _NIBABEL.format(old="IN.mgz"))
_MINC: Final = FileKind("a MINC file", _NIBABEL.format(old="IN.mnc"))
_GZIP: Final = FileKind("gzip data", "Unpack it with gunzip, or name it .nii.gz if it is NIfTI.")
_BZIP2: Final = FileKind("bzip2 data", "Unpack it: bunzip2 -c IN > OUT.nii.")
_XZ: Final = FileKind("xz data", "Unpack it: xz -dc IN > OUT.nii.")
_ZSTD: Final = FileKind("zstd data", "Unpack it: zstd -dc IN > OUT.nii.")
_ZIP: Final = FileKind("a ZIP archive", "Unpack it: unzip IN.")
_TAR: Final = FileKind("a tar archive", "Unpack it: tar xf IN.")
_7Z: Final = FileKind("a 7-Zip archive", "Unpack it: 7z x IN.")
_RAR: Final = FileKind("a RAR archive", "Unpack it: unrar x IN.")
_NUMPY: Final = FileKind("a NumPy array", _NO_GEOMETRY)
_MATLAB: Final = FileKind("a MATLAB file", _NO_GEOMETRY)
_HDF5: Final = FileKind("an HDF5 file", _NO_GEOMETRY)
_BARE: Final = FileKind(
    "voxels without a header",
    f"Give the pattern of the .mhd header beside it. Without one: {_NO_GEOMETRY[0].lower()}"
    f"{_NO_GEOMETRY[1:]}",
)
_PART: Final = FileKind("an unfinished download", "Let it finish, or download it again.")
_PDF: Final = FileKind("a PDF document", _PICTURE, may_hold_voxels=False)
_PNG: Final = FileKind("a PNG picture", _PICTURE, may_hold_voxels=False)
_JPEG: Final = FileKind("a JPEG picture", _PICTURE, may_hold_voxels=False)
_TIFF: Final = FileKind("a TIFF picture", _PICTURE, may_hold_voxels=False)

_STARTS: Final[tuple[tuple[int, bytes, FileKind], ...]] = (
    (0, b"version https://git-lfs", _GIT_LFS),
    (0, b"/annex/objects/", _GIT_ANNEX),
    (0, b"\x1f\x8b", _GZIP),
    (0, b"BZh", _BZIP2),
    (0, b"\xfd7zXZ\0", _XZ),
    (0, b"\x28\xb5\x2f\xfd", _ZSTD),
    (0, b"PK\x03\x04", _ZIP),
    (0, b"7z\xbc\xaf\x27\x1c", _7Z),
    (0, b"Rar!\x1a\x07", _RAR),
    (257, b"ustar", _TAR),
    (0, b"NRRD000", NRRD),
    (0, b"\x93NUMPY", _NUMPY),
    (0, b"MATLAB 5.0", _MATLAB),
    (0, b"MATLAB 7.3", _MATLAB),
    (0, b"\x89HDF\r\n\x1a\n", _HDF5),
    (128, b"DICM", DICOM),
    (0, b"%PDF", _PDF),
    (0, b"\x89PNG", _PNG),
    (0, b"\xff\xd8\xff", _JPEG),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (344, b"n+1\0", _NIFTI),
    (344, b"ni1\0", _PAIR),
    (4, b"n+2\0", _NIFTI),
    (4, b"ni2\0", _PAIR),
    (0, b"\x5c\x01\0\0", _PAIR),
    (0, b"\0\0\x01\x5c", _PAIR),
    (0, b"\0\0\0\x01\0\0", _MGH),
)
"""Offset and bytes that identify each kind; the first match counts.

A header length of 348 without a magic number is Analyze.
"""
_TEXT_STARTS: Final[tuple[tuple[bytes, FileKind], ...]] = (
    (b"<!doctype", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"<?xml", _XML),
    (b"{", _JSON),
    (b"[", _JSON),
    (b"objecttype", METAIMAGE),
    (b"ndims", METAIMAGE),
)
"""Starts of text files in lower case, after blanks and a byte order mark."""
_BOM: Final = b"\xef\xbb\xbf"
_TEXT_BYTES: Final = frozenset({*range(0x20, 0x7F), *b"\t\r\n"})

_ENDINGS: Final = {
    **dict.fromkeys((".nrrd", ".nhdr", ".nrrd.gz"), NRRD),
    **dict.fromkeys((".mgz", ".mgh", ".mgh.gz"), _MGH),
    **dict.fromkeys((".mnc", ".mnc.gz"), _MINC),
    **dict.fromkeys((".hdr", ".img", ".hdr.gz", ".img.gz"), _PAIR),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), DICOM),
    **dict.fromkeys((".npy", ".npz"), _NUMPY),
    ".mat": _MATLAB,
    **dict.fromkeys((".h5", ".hdf5"), _HDF5),
    **dict.fromkeys((".raw", ".zraw", ".bin"), _BARE),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz"), _TAR),
    ".bz2": _BZIP2,
    ".xz": _XZ,
    ".zst": _ZSTD,
    ".zip": _ZIP,
    ".7z": _7Z,
    ".rar": _RAR,
    ".gz": _GZIP,
    **dict.fromkeys((".part", ".crdownload", ".incomplete", ".download"), _PART),
    ".pdf": _PDF,
    ".png": _PNG,
    **dict.fromkeys((".jpg", ".jpeg"), _JPEG),
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
}
UNKNOWN: Final = FileKind(
    "a file of unknown format", f"Files that are read: {FORMATS_READ}.", may_hold_voxels=False
)


def detect_kind(start: bytes) -> FileKind:
    r"""Return the kind of a file by its first :data:`KIND_BYTES` bytes, or fewer if it is shorter.

    Examples
    --------
    >>> [detect_kind(start).name for start in (b"<!DOCTYPE html>", b"Jane", b"\x93NUMPY\1")]
    ['a web page', 'text', 'a NumPy array']
    """
    if not start:
        return _EMPTY
    if not any(start):
        return _ZEROS
    for offset, magic, kind in _STARTS:
        if start.startswith(magic, offset):
            return kind
    words = start.removeprefix(_BOM).lstrip().lower()
    for magic, kind in _TEXT_STARTS:
        if words.startswith(magic):
            return kind
    return _BINARY if set(start.removeprefix(_BOM)) - _TEXT_BYTES else _TEXT


def kind_from_ending(path: str) -> FileKind:
    """Return the kind of a file by the ending of its name; UNKNOWN if the ending is not known.

    Examples
    --------
    >>> [kind_from_ending(path).name for path in ("a/b.NRRD", "a/b.tar.gz", "a")]
    ['an NRRD file', 'a tar archive', 'a file of unknown format']
    """
    parts = path.lower().rsplit("/", 1)[-1].split(".")
    for ending in (f".{'.'.join(parts[-count:])}" for count in (2, 1) if len(parts) > count):
        if ending in _ENDINGS:
            return _ENDINGS[ending]
    return UNKNOWN


def wrong_kind_error(path: str, start: bytes, expected: str) -> FormatError:
    """Return an error for a file of another kind than expected.

    Parameters
    ----------
    path
        Path of the file.
    start
        First :data:`KIND_BYTES` bytes of the file, or fewer if it is shorter.
    expected
        Name of the expected kind with its article, such as 'a NIfTI file'.
    """
    kind = detect_kind(start)
    return FormatError(
        f"{path}: is not {expected}: it looks like {kind.name}. {kind.next_step or _DOWNLOAD_AGAIN}"
    )
