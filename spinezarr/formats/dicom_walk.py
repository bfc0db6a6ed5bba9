"""How are the elements of a DICOM file visited one by one, in bounded memory and time?

Only the elements of :data:`~spinezarr.formats.dicom_keywords.KEPT_TAGS` are kept. All others are
skipped. pydicom makes an object of every element, so a small file of nested sequences can fill the
memory, and reading takes about four times as long.

References
----------
DICOM PS3.5 sections 7.1 to 7.5 (data elements, sequences and items):
https://dicom.nema.org/medical/dicom/current/output/chtml/part05/PS3.5.html
"""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from spinezarr.formats.dicom_data_set import DataSet, Element, HeaderError
from spinezarr.formats.dicom_keywords import (
    KEPT_TAGS,
    KEYWORD_OF_TAG,
    SERIES_TAG,
    SOP_CLASS_TAG,
    KeptTags,
)

__all__ = [
    "FILE_META_GROUP",
    "ITEM_TAG",
    "LONG_VRS",
    "SEQUENCE_END_TAG",
    "SHORT_ELEMENT_BYTES",
    "SHORT_VRS",
    "UNDEFINED_LENGTH",
    "WINDOW_BYTES",
    "ByteWindow",
    "ElementWalk",
    "PixelDataLocation",
]

_MAX_VALUE_BYTES: Final = 4096
"""Largest kept value in bytes. Values are a few dozen numbers, or 64 characters."""
WINDOW_BYTES: Final = 1 << 14
"""Bytes read first, and after a jump. The headers of most CT slices are shorter."""
_MAX_WINDOW_BYTES: Final = 1 << 20
"""Largest number of bytes read at once. The windows double in a long header."""
SHORT_ELEMENT_BYTES: Final = 8
_LONG_BYTES: Final = 12
"""Bytes before the value of an element whose length has 32 bits; otherwise it is
:data:`SHORT_ELEMENT_BYTES`."""
UNDEFINED_LENGTH: Final = 0xFFFFFFFF
ITEM_TAG: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END_TAG: Final = 0xFFFEE0DD
_DELIMITERS: Final = 0xFFFE
"""Group of the three delimiters above, which never have a VR."""
_DIRECTORY: Final = 0x0004
"""Group that only a DICOM directory has (PS3.10 section 8.5)."""
_PIXELS: Final = 0x7FE00010
"""Tag of PixelData."""
_FIRST_PIXELS: Final = 0x7FE00000
_OTHER_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009})
"""Tags of FloatPixelData and DoubleFloatPixelData, which no CT has."""
FILE_META_GROUP: Final = 0x0002
LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has 32 bits (PS3.5 section 7.1.2)."""
SHORT_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_MAX_DEPTH: Final = 64
"""Largest depth of nested sequences. Real headers have about ten."""
_MAX_ITEMS: Final = 200_000
"""Largest number of items of all kept sequences, enough for seven in each of 20,000 frames."""


@dataclass(frozen=True, slots=True)
class PixelDataLocation:
    """The location of the pixels in a file."""

    start: int
    """Offset of the first byte in the file, or in the inflated data set of a deflated file."""
    size_bytes: int | None
    """Length of the pixels; None if they are encapsulated, so that a delimiter ends them."""
    vr: bytes
    """Value representation; empty if the file states none."""


class ByteWindow:
    """A file of which one window of bytes is in memory."""

    __slots__ = ("_left", "_next_bytes", "_read", "data", "size", "start")

    def __init__(self, read: Callable[[int, int], bytes], size: int, most: int) -> None:
        self._read = read
        self._left = most
        self._next_bytes = WINDOW_BYTES
        self.size = size
        self.start = 0
        self.data = b""

    def window(self, at: int, length: int) -> int:
        """Load ``length`` bytes from offset ``at`` into :attr:`data`; return their offset in it.

        At the end of the file, there may be fewer bytes.

        Raises
        ------
        HeaderError
            If more bytes are needed than may be read, or the file has changed.
        """
        begin, there = at - self.start, len(self.data)
        is_all = self.start + there >= self.size
        if begin < 0 or (begin + length > there and not is_all):
            self._next_bytes = (
                min(2 * self._next_bytes, _MAX_WINDOW_BYTES) if 0 < begin <= there else WINDOW_BYTES
            )
            self._move(at, max(length, self._next_bytes))
            begin = 0
        return begin

    def _move(self, at: int, length: int) -> None:
        wanted = max(0, min(self.size - at, length))
        if wanted > self._left:
            raise HeaderError("its header is too long for a CT slice")
        self.data = self._read(at, at + wanted) if wanted else b""
        # The file was cut since it was listed, or the server does not support ranges.
        if len(self.data) != wanted:
            raise HeaderError(f"{len(self.data)} bytes were read, expected {wanted}")
        self._left -= wanted
        self.start = at


class ElementWalk:
    """Visits the elements of a file one by one."""

    __slots__ = (
        "_bytes",
        "_explicit",
        "_implicit",
        "_items_kept",
        "_length",
        "big_endian",
        "explicit",
    )

    def __init__(self, source: ByteWindow, *, explicit: bool, big_endian: bool = False) -> None:
        order = ">" if big_endian else "<"
        self._bytes = source
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._implicit = struct.Struct(f"{order}HHL").unpack_from
        self._length = struct.Struct(f"{order}L").unpack_from
        self._items_kept = 0
        self.explicit = explicit
        self.big_endian = big_endian

    def element(self, at: int) -> tuple[int, bytes, int, int] | None:
        """Return tag, VR, offset of the value and its length; None at the end of the file."""
        source = self._bytes
        begin = source.window(at, _LONG_BYTES)
        data = source.data
        if len(data) - begin < SHORT_ELEMENT_BYTES:
            return None
        if self.explicit:
            group, number, vr, length = self._explicit(data, begin)
            if group != _DELIMITERS:
                if vr in SHORT_VRS:
                    return group << 16 | number, vr, at + SHORT_ELEMENT_BYTES, length
                if vr in LONG_VRS:
                    if len(data) - begin < _LONG_BYTES:
                        return None
                    (length,) = self._length(data, begin + 8)
                    return group << 16 | number, vr, at + _LONG_BYTES, length
                if vr.isalpha() and vr.isupper():  # a VR of a later edition
                    return group << 16 | number, vr, at + SHORT_ELEMENT_BYTES, length
        # Some writers omit VRs, mostly in sequences.
        group, number, length = self._implicit(data, begin)
        return group << 16 | number, b"", at + SHORT_ELEMENT_BYTES, length

    def file_meta(self, at: int) -> tuple[DataSet, int]:
        """Read the file meta information; return it and the offset of the data set after it."""
        meta = DataSet()
        while (found := self.element(at)) is not None and found[0] >> 16 == FILE_META_GROUP:
            tag, vr, value_at, length = found
            if tag in KEPT_TAGS:
                meta.elements[tag] = self._element(tag, vr, value_at, length)
            at = value_at + length
        return meta, at

    def data_set(
        self, at: int, outer_class: str, classes: Collection[str] | None
    ) -> tuple[DataSet, PixelDataLocation | None]:
        """Read the elements from ``at`` to the pixels.

        Parameters
        ----------
        at
            Offset of the first element.
        outer_class
            SOP class in the file meta information; empty if there is none.
        classes
            SOP classes whose whole header is read. For other classes, reading stops after the
            series. None reads every header.

        Returns
        -------
        data : DataSet
            The kept elements.
        pixels : PixelDataLocation or None
            Location of the pixels; None if there are none, or reading stopped before them.
        """
        data = DataSet(big_endian=self.big_endian)
        is_wanted = None if classes is not None else True
        while (found := self.element(self._to_wanted(at))) is not None:
            tag, vr, value_at, length = found
            if tag > SOP_CLASS_TAG and is_wanted is None:
                # A further element shows that the class is not cut short.
                stated = {data.text("SOPClassUID"), outer_class} - {""}
                is_wanted = not stated or not stated.isdisjoint(classes or ())
            is_enough = is_wanted is False and tag > SERIES_TAG
            if is_enough or tag >> 16 == _DIRECTORY or tag in _OTHER_PIXELS:
                break
            if tag == _PIXELS:
                return data, PixelDataLocation(
                    value_at, None if length == UNDEFINED_LENGTH else length, vr
                )
            at = self._take(data, KEPT_TAGS, found)
        return data, None

    def _to_wanted(self, at: int) -> int:
        """Skip short elements that are not kept, up to the end of the window.

        Most elements are of this kind, so this loop decides how long a folder takes.
        """
        data, start = self._bytes.data, self._bytes.start
        begin, end = at - start, len(data) - _LONG_BYTES
        explicit, implicit, wanted = self._explicit, self._implicit, KEPT_TAGS
        while 0 <= begin <= end:
            if self.explicit:
                group, number, vr, length = explicit(data, begin)
                if vr not in SHORT_VRS:
                    break
            else:
                group, number, length = implicit(data, begin)
                if length == UNDEFINED_LENGTH:
                    break
            tag = group << 16 | number
            if tag in wanted or tag >= _FIRST_PIXELS:
                break
            begin += SHORT_ELEMENT_BYTES + length
        return begin + start

    def _take(self, data: DataSet, wanted: KeptTags, found: tuple[int, bytes, int, int]) -> int:
        """Keep an element if its tag is wanted; return the offset of the next one."""
        tag, vr, value_at, length = found
        if tag in wanted:
            of_items = wanted[tag]
            if of_items is not None:
                data.items[tag], at = self._items(value_at, length, of_items)
                return at
            if length != UNDEFINED_LENGTH:
                data.elements[tag] = self._element(tag, vr, value_at, length)
        if length == UNDEFINED_LENGTH:
            return self.skip(value_at, implicit=vr == b"UN")
        return value_at + length

    def _element(self, tag: int, vr: bytes, at: int, length: int) -> Element:
        keyword, usual = KEYWORD_OF_TAG[tag]
        if length > _MAX_VALUE_BYTES:
            raise HeaderError(f"{keyword} has {length} bytes, expected at most {_MAX_VALUE_BYTES}")
        begin = self._bytes.window(at, length)
        value = self._bytes.data[begin : begin + length]
        if len(value) < length:
            raise HeaderError(f"cut short within {keyword}")
        return Element(usual if vr in (b"", b"UN") else vr, value)

    def _items(self, at: int, length: int, wanted: KeptTags) -> tuple[tuple[DataSet, ...], int]:
        """Read the items of a sequence; return them and the offset of its end."""
        found: list[DataSet] = []
        stop = None if length == UNDEFINED_LENGTH else at + length
        while stop is None or at < stop:
            tag, value_at, item_length = self._delimiter(at)
            if tag == SEQUENCE_END_TAG:
                return tuple(found), value_at
            if tag != ITEM_TAG:
                raise HeaderError("a sequence whose items do not start as such")
            end = None if item_length == UNDEFINED_LENGTH else value_at + item_length
            self._items_kept += 1
            if self._items_kept > _MAX_ITEMS:
                raise HeaderError(f"more than {_MAX_ITEMS} items in its functional groups")
            data, at = self._item(value_at, end, wanted)
            found.append(data)
        return tuple(found), at

    def _item(self, at: int, stop: int | None, wanted: KeptTags) -> tuple[DataSet, int]:
        data = DataSet(big_endian=self.big_endian)
        while stop is None or at < stop:
            element = self.element(at)
            if element is None:
                raise HeaderError("cut short within a sequence")
            if element[0] == _ITEM_END:
                return data, element[2]
            if element[0] >> 16 == _DELIMITERS:
                raise HeaderError("a sequence that ends within an item")
            at = self._take(data, wanted, element)
        return data, at

    def _delimiter(self, at: int) -> tuple[int, int, int]:
        found = self.element(at)
        if found is None:
            raise HeaderError("cut short within a sequence")
        return found[0], found[2], found[3]

    def skip(self, at: int, *, implicit: bool = False) -> int:
        """Skip a sequence of undefined length; return the offset of its end.

        Parameters
        ----------
        at
            Offset of its first item.
        implicit
            Whether its elements have no VR, as in ``UN`` (PS3.5 section 6.2.2, note 5).

        Raises
        ------
        HeaderError
            If the sequence does not end, or is nested too deeply.
        """
        walk = ElementWalk(self._bytes, explicit=False) if implicit else self
        in_items: list[bool] = [False]
        while in_items:
            tag, at, length = walk._delimiter(at)  # noqa: SLF001  its own class
            if not in_items[-1]:
                if tag == SEQUENCE_END_TAG:
                    in_items.pop()
                elif tag != ITEM_TAG:
                    raise HeaderError("a sequence whose items do not start as such")
                elif length == UNDEFINED_LENGTH:
                    in_items.append(True)
                else:
                    at += length
            elif tag == _ITEM_END:
                in_items.pop()
            elif tag >> 16 == _DELIMITERS:
                raise HeaderError("a sequence that ends within an item")
            elif length == UNDEFINED_LENGTH:
                in_items.append(False)
            else:
                at += length
            if len(in_items) > 2 * _MAX_DEPTH:
                raise HeaderError(f"sequences nested more than {_MAX_DEPTH} deep")
        return at
