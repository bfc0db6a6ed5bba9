"""Which values do the kept elements of a DICOM data set have?

References
----------
DICOM PS3.5 section 6.2 (value representations).
"""

import math
import re
import struct
from dataclasses import dataclass, field
from typing import Final

from spinezarr.formats.dicom_keywords import KEYWORDS

__all__ = ["DataSet", "Element", "HeaderError"]

_NUMBER: Final = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""A number in a decimal or integer string."""
_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}
"""Format letter of :mod:`struct` for each binary value representation."""


class HeaderError(ValueError):
    """A header cannot be read. The message does not name the file."""


@dataclass(frozen=True, slots=True)
class Element:
    """The value of one element."""

    vr: bytes
    """Value representation; the usual one if the file states none."""
    value: bytes


@dataclass(frozen=True, slots=True)
class DataSet:
    """The kept elements of a data set, or of an item of a sequence."""

    elements: dict[int, Element] = field(default_factory=dict)
    """Elements by tag."""
    items: dict[int, tuple["DataSet", ...]] = field(default_factory=dict)
    """Items of each kept sequence, by its tag."""
    big_endian: bool = False

    def __contains__(self, keyword: str) -> bool:
        """Whether the data set has the element, even without a value."""
        return KEYWORDS[keyword][0] in self.elements

    def text(self, keyword: str) -> str:
        """Return the text of an element without padding; empty if it is absent."""
        element = self.elements.get(KEYWORDS[keyword][0])
        return "" if element is None else element.value.decode("ascii", "replace").strip(" \0")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return the texts of an element with several values; none if it is absent."""
        text = self.text(keyword)
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return the numbers of an element; none if it is absent or empty.

        Raises
        ------
        HeaderError
            If its value does not consist of finite numbers.
        """
        element = self.elements.get(KEYWORDS[keyword][0])
        if element is None:
            return ()
        format_letter = _BINARY.get(element.vr)
        if format_letter is not None:
            count, remainder = divmod(len(element.value), struct.calcsize(format_letter))
            if remainder:
                raise HeaderError(
                    f"{keyword} has {len(element.value)} bytes, expected a multiple of "
                    f"{struct.calcsize(format_letter)}"
                )
            order = ">" if self.big_endian else "<"
            numbers = struct.unpack(f"{order}{count}{format_letter}", element.value)
        else:
            texts = self.texts(keyword)
            if not all(map(_NUMBER.fullmatch, texts)):
                raise HeaderError(f"{keyword} is not a number")
            numbers = tuple(map(float, texts))
        if not all(map(math.isfinite, numbers)):
            raise HeaderError(f"{keyword} is not a finite number")
        return tuple(map(float, numbers))

    def sequence(self, keyword: str) -> tuple["DataSet", ...]:
        """Return the items of a kept sequence; none if it is absent."""
        return self.items.get(KEYWORDS[keyword][0], ())
