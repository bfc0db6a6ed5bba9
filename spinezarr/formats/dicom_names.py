"""What does the name of a file say about whether it is a DICOM slice?"""

from typing import Final

__all__ = ["has_other_file_name", "is_hidden"]

_COMPANION_NAMES: Final = frozenset(
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
_COMPRESSED_ENDINGS: Final = (".gz", ".bz2", ".xz")
"""Endings of a single compressed file; the ending before it tells the kind."""


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
    lowered = name.lower()
    for compressed_ending in _COMPRESSED_ENDINGS:
        lowered = lowered.removesuffix(compressed_ending)
    _, dot, ending = lowered.rpartition(".")
    return lowered in _COMPANION_NAMES or bool(dot and ending in _OTHER_ENDINGS)
