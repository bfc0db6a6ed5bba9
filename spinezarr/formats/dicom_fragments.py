"""In which fragments does a DICOM file hold its compressed pixels?

References
----------
DICOM PS3.5 annex A.4 (encapsulated pixel data).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from spinezarr.formats.dicom_data_set import HeaderError
from spinezarr.formats.dicom_walk import (
    ITEM_TAG,
    SEQUENCE_END_TAG,
    WINDOW_BYTES,
    ByteWindow,
    ElementWalk,
)

__all__ = ["Fragment", "TruncatedPixelsError", "read_fragments"]

_MAX_FRAGMENTS: Final = 200_000
_FIRST_BYTES: Final = 4


class TruncatedPixelsError(HeaderError):
    """A file ends before its pixels do."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment of encapsulated pixels."""

    start: int
    """Offset of its first byte in the file."""
    size_bytes: int
    first_bytes: bytes
    """Its first four bytes, which tell whether a code stream starts here."""


def read_fragments(
    read: Callable[[int, int], bytes], size_bytes: int, start: int
) -> list[Fragment]:
    """Return the fragments of encapsulated pixels, of which the first is the basic offset table.

    Parameters
    ----------
    read
        Function of (start, stop) that returns these bytes of the file.
    size_bytes
        Size of the file.
    start
        Offset of the value of the pixel element.

    Raises
    ------
    HeaderError
        If the fragments do not end with a delimiter, or are too many.
    """
    source = ByteWindow(read, size_bytes, _MAX_FRAGMENTS * WINDOW_BYTES)
    walk = ElementWalk(source, explicit=False)
    fragments: list[Fragment] = []
    offset = start
    while len(fragments) <= _MAX_FRAGMENTS:
        element = walk.element(offset)
        if element is None or element[0] not in (ITEM_TAG, SEQUENCE_END_TAG):
            raise TruncatedPixelsError("its pixels do not end")
        tag, _, value_start, length = element
        if tag == SEQUENCE_END_TAG:
            return fragments
        offset = value_start + length
        if offset > size_bytes:
            raise TruncatedPixelsError("its pixels do not end")
        n_first = min(length, _FIRST_BYTES)
        start_in_window = source.load(value_start, n_first)
        first_bytes = source.data[start_in_window : start_in_window + n_first]
        fragments.append(Fragment(value_start, length, first_bytes))
    raise HeaderError(f"its pixels have more than {_MAX_FRAGMENTS} fragments")
