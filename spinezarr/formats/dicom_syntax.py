"""Which DICOM transfer syntaxes are supported, and what is the name of a UID?

References
----------
DICOM PS3.5 section 10 and annex A (transfer syntaxes); PS3.6 annex A (UIDs).
"""

import re
from importlib.util import find_spec
from typing import Final

from spinezarr.errors import UsageError

__all__ = [
    "BIG_ENDIAN",
    "DEFLATED",
    "EXPLICIT",
    "IMPLICIT",
    "JPEG_2000",
    "JPEG_EXTENDED",
    "JPEG_FRAMES",
    "LOSSY",
    "RLE",
    "SYNTAXES",
    "check_packages",
    "is_uid",
    "uid_name",
]

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
RLE: Final = "1.2.840.10008.1.2.5"
_JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_JPEG_LS_LOSSY: Final = "1.2.840.10008.1.2.4.81"
_JPEG_2000_ANY: Final = "1.2.840.10008.1.2.4.91"
JPEG_2000: Final = frozenset({"1.2.840.10008.1.2.4.90", _JPEG_2000_ANY})
JPEG_FRAMES: Final = {
    _JPEG_BASELINE: frozenset({0xC0}),
    JPEG_EXTENDED: frozenset({0xC0, 0xC1}),
    "1.2.840.10008.1.2.4.57": frozenset({0xC3}),
    "1.2.840.10008.1.2.4.70": frozenset({0xC3}),
    "1.2.840.10008.1.2.4.80": frozenset({0xF7}),
    _JPEG_LS_LOSSY: frozenset({0xF7}),
}
"""Second bytes of the frame markers allowed in each JPEG syntax (PS3.5 sections 8.2.1, 8.2.3)."""
LOSSY: Final = frozenset({_JPEG_BASELINE, JPEG_EXTENDED, _JPEG_LS_LOSSY, _JPEG_2000_ANY})
"""Transfer syntaxes that may be lossy."""
SYNTAXES: Final = frozenset(
    {IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE, *JPEG_2000, *JPEG_FRAMES}
)
"""All supported transfer syntaxes."""
_UID: Final = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_UID_CHARACTERS: Final = 64


def check_packages(path: str) -> None:
    """Refuse to read DICOM without the packages for it.

    Raises
    ------
    UsageError
        If pydicom or gdcm is not installed; the message names ``path``.
    """
    if any(find_spec(module) is None for module in ("pydicom", "gdcm")):
        raise UsageError(
            f"{path}: reading DICOM needs pydicom and gdcm: pip install 'spinezarr[dicom]'"
        )


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 section 9.1).

    Examples
    --------
    >>> is_uid("1.2.840.10008.1.2"), is_uid("1.02"), is_uid("Jane")
    (True, False, False)
    """
    return len(text) <= _UID_CHARACTERS and _UID.fullmatch(text) is not None


def uid_name(uid: str) -> str | None:
    """Return the name that the DICOM standard gives a UID; None if it has none.

    Other UIDs may identify who made them and are not shown. The result is also None if pydicom,
    which holds the list, is not installed.
    """
    # pydicom warns of invalid UIDs and quotes them.
    if find_spec("pydicom") is None or not is_uid(uid):
        return None
    from pydicom.uid import UID  # noqa: PLC0415  only reading DICOM needs pydicom

    name = UID(uid).name
    return None if name == uid else name
