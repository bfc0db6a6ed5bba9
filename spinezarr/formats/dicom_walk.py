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
_LONG_ELEMENT_BYTES: Final = 12
"""Bytes before the value of an element whose length has 32 bits.

For other elements, it is :data:`SHORT_ELEMENT_BYTES`.
"""
UNDEFINED_LENGTH: Final = 0xFFFFFFFF
ITEM_TAG: Final = 0xFFFEE000
_ITEM_END_TAG: Final = 0xFFFEE00D
SEQUENCE_END_TAG: Final = 0xFFFEE0DD
_DELIMITER_GROUP: Final = 0xFFFE
"""Group of the three delimiters above, which never have a VR."""
_DIRECTORY_GROUP: Final = 0x0004
"""Group that only a DICOM directory has (PS3.10 section 8.5)."""
_PIXEL_DATA_TAG: Final = 0x7FE00010
"""Tag of PixelData."""
_FIRST_PIXEL_TAG: Final = 0x7FE00000
_OTHER_PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009})
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

    __slots__ = ("_next_bytes", "_read", "_remaining_bytes", "data", "size", "start")

    def __init__(self, read: Callable[[int, int], bytes], size: int, max_bytes: int) -> None:
        self._read = read
        self._remaining_bytes = max_bytes
        self._next_bytes = WINDOW_BYTES
        self.size = size
        self.start = 0
        self.data = b""

    def load(self, offset: int, length: int) -> int:
        """Load ``length`` bytes from ``offset`` into :attr:`data`; return their offset in it.

        At the end of the file, there may be fewer bytes.

        Raises
        ------
        HeaderError
            If more bytes are needed than may be read, or the file has changed.
        """
        start_in_window, n_loaded = offset - self.start, len(self.data)
        is_all = self.start + n_loaded >= self.size
        if start_in_window < 0 or (start_in_window + length > n_loaded and not is_all):
            continues = 0 < start_in_window <= n_loaded
            self._next_bytes = (
                min(2 * self._next_bytes, _MAX_WINDOW_BYTES) if continues else WINDOW_BYTES
            )
            self._move(offset, max(length, self._next_bytes))
            start_in_window = 0
        return start_in_window

    def _move(self, offset: int, length: int) -> None:
        n_bytes = max(0, min(self.size - offset, length))
        if n_bytes > self._remaining_bytes:
            raise HeaderError("its header is too long for a CT slice")
        self.data = self._read(offset, offset + n_bytes) if n_bytes else b""
        # The file was cut since it was listed, or the server does not support ranges.
        if len(self.data) != n_bytes:
            raise HeaderError(f"{len(self.data)} bytes were read, expected {n_bytes}")
        self._remaining_bytes -= n_bytes
        self.start = offset


class ElementWalk:
    """Visits the elements of a file one by one."""

    __slots__ = (
        "_explicit",
        "_implicit",
        "_items_kept",
        "_length",
        "_window",
        "big_endian",
        "explicit",
    )

    def __init__(self, source: ByteWindow, *, explicit: bool, big_endian: bool = False) -> None:
        order = ">" if big_endian else "<"
        self._window = source
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._implicit = struct.Struct(f"{order}HHL").unpack_from
        self._length = struct.Struct(f"{order}L").unpack_from
        self._items_kept = 0
        self.explicit = explicit
        self.big_endian = big_endian

    def element(self, offset: int) -> tuple[int, bytes, int, int] | None:
        """Return tag, VR, offset of the value and its length; None at the end of the file."""
        source = self._window
        start_in_window = source.load(offset, _LONG_ELEMENT_BYTES)
        data = source.data
        if len(data) - start_in_window < SHORT_ELEMENT_BYTES:
            return None
        if self.explicit:
            group, number, vr, length = self._explicit(data, start_in_window)
            if group != _DELIMITER_GROUP:
                if vr in SHORT_VRS:
                    return group << 16 | number, vr, offset + SHORT_ELEMENT_BYTES, length
                if vr in LONG_VRS:
                    if len(data) - start_in_window < _LONG_ELEMENT_BYTES:
                        return None
                    (length,) = self._length(data, start_in_window + 8)
                    return group << 16 | number, vr, offset + _LONG_ELEMENT_BYTES, length
                if vr.isalpha() and vr.isupper():  # a VR of a later edition
                    return group << 16 | number, vr, offset + SHORT_ELEMENT_BYTES, length
        # Some writers omit VRs, mostly in sequences.
        group, number, length = self._implicit(data, start_in_window)
        return group << 16 | number, b"", offset + SHORT_ELEMENT_BYTES, length

    def file_meta(self, offset: int) -> tuple[DataSet, int]:
        """Read the file meta information; return it and the offset of the data set after it."""
        meta = DataSet()
        while (element := self.element(offset)) is not None and element[0] >> 16 == FILE_META_GROUP:
            tag, vr, value_start, length = element
            if tag in KEPT_TAGS:
                meta.elements[tag] = self._element(tag, vr, value_start, length)
            offset = value_start + length
        return meta, offset

    def data_set(
        self, offset: int, outer_class: str, classes: Collection[str] | None
    ) -> tuple[DataSet, PixelDataLocation | None]:
        """Read the elements from ``offset`` to the pixels.

        Parameters
        ----------
        offset
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
        is_requested = None if classes is not None else True
        while (element := self.element(self._skip_unkept(offset))) is not None:
            tag, vr, value_start, length = element
            if tag > SOP_CLASS_TAG and is_requested is None:
                # A further element shows that the class is not cut short.
                stated_classes = {data.text("SOPClassUID"), outer_class} - {""}
                is_requested = not stated_classes or not stated_classes.isdisjoint(classes or ())
            has_series = is_requested is False and tag > SERIES_TAG
            if has_series or tag >> 16 == _DIRECTORY_GROUP or tag in _OTHER_PIXEL_TAGS:
                break
            if tag == _PIXEL_DATA_TAG:
                return data, PixelDataLocation(
                    value_start, None if length == UNDEFINED_LENGTH else length, vr
                )
            offset = self._keep(data, KEPT_TAGS, element)
        return data, None

    def _skip_unkept(self, offset: int) -> int:
        """Skip short elements that are not kept, up to the end of the window.

        Most elements are of this kind, so the speed of this loop is that of reading a folder.
        """
        data, start = self._window.data, self._window.start
        start_in_window, end = offset - start, len(data) - _LONG_ELEMENT_BYTES
        explicit, implicit, kept_tags = self._explicit, self._implicit, KEPT_TAGS
        while 0 <= start_in_window <= end:
            if self.explicit:
                group, number, vr, length = explicit(data, start_in_window)
                if vr not in SHORT_VRS:
                    break
            else:
                group, number, length = implicit(data, start_in_window)
                if length == UNDEFINED_LENGTH:
                    break
            tag = group << 16 | number
            if tag in kept_tags or tag >= _FIRST_PIXEL_TAG:
                break
            start_in_window += SHORT_ELEMENT_BYTES + length
        return start_in_window + start

    def _keep(
        self, data: DataSet, kept_tags: KeptTags, element: tuple[int, bytes, int, int]
    ) -> int:
        """Keep an element if its tag is in ``kept_tags``; return the offset of the next element."""
        tag, vr, value_start, length = element
        if tag in kept_tags:
            item_tags = kept_tags[tag]
            if item_tags is not None:
                data.items[tag], offset = self._items(value_start, length, item_tags)
                return offset
            if length != UNDEFINED_LENGTH:
                data.elements[tag] = self._element(tag, vr, value_start, length)
        if length == UNDEFINED_LENGTH:
            return self.skip(value_start, implicit=vr == b"UN")
        return value_start + length

    def _element(self, tag: int, vr: bytes, offset: int, length: int) -> Element:
        keyword, usual_vr = KEYWORD_OF_TAG[tag]
        if length > _MAX_VALUE_BYTES:
            raise HeaderError(f"{keyword} has {length} bytes, expected at most {_MAX_VALUE_BYTES}")
        start_in_window = self._window.load(offset, length)
        value = self._window.data[start_in_window : start_in_window + length]
        if len(value) < length:
            raise HeaderError(f"it is cut short within {keyword}")
        return Element(usual_vr if vr in (b"", b"UN") else vr, value)

    def _items(
        self, offset: int, length: int, kept_tags: KeptTags
    ) -> tuple[tuple[DataSet, ...], int]:
        """Read the items of a sequence; return them and the offset of its end."""
        items: list[DataSet] = []
        stop = None if length == UNDEFINED_LENGTH else offset + length
        while stop is None or offset < stop:
            tag, value_start, item_length = self._delimiter(offset)
            if tag == SEQUENCE_END_TAG:
                return tuple(items), value_start
            if tag != ITEM_TAG:
                raise HeaderError("a sequence has an item without the tag of an item")
            end = None if item_length == UNDEFINED_LENGTH else value_start + item_length
            self._items_kept += 1
            if self._items_kept > _MAX_ITEMS:
                raise HeaderError(f"it has more than {_MAX_ITEMS} items in functional groups")
            data, offset = self._item(value_start, end, kept_tags)
            items.append(data)
        return tuple(items), offset

    def _item(self, offset: int, stop: int | None, kept_tags: KeptTags) -> tuple[DataSet, int]:
        data = DataSet(big_endian=self.big_endian)
        while stop is None or offset < stop:
            element = self.element(offset)
            if element is None:
                raise HeaderError("it is cut short within a sequence")
            if element[0] == _ITEM_END_TAG:
                return data, element[2]
            if element[0] >> 16 == _DELIMITER_GROUP:
                raise HeaderError("a sequence ends within an item")
            offset = self._keep(data, kept_tags, element)
        return data, offset

    def _delimiter(self, offset: int) -> tuple[int, int, int]:
        element = self.element(offset)
        if element is None:
            raise HeaderError("it is cut short within a sequence")
        return element[0], element[2], element[3]

    def skip(self, offset: int, *, implicit: bool = False) -> int:
        """Skip a sequence of undefined length; return the offset of its end.

        Parameters
        ----------
        offset
            Offset of its first item.
        implicit
            Whether its elements have no VR, as in ``UN`` (PS3.5 section 6.2.2, note 5).

        Raises
        ------
        HeaderError
            If the sequence does not end, or is nested too deeply.
        """
        walk = ElementWalk(self._window, explicit=False) if implicit else self
        in_items: list[bool] = [False]
        while in_items:
            tag, offset, length = walk._delimiter(offset)  # noqa: SLF001  its own class
            if not in_items[-1]:
                if tag == SEQUENCE_END_TAG:
                    in_items.pop()
                elif tag != ITEM_TAG:
                    raise HeaderError("a sequence has an item without the tag of an item")
                elif length == UNDEFINED_LENGTH:
                    in_items.append(True)
                else:
                    offset += length
            elif tag == _ITEM_END_TAG:
                in_items.pop()
            elif tag >> 16 == _DELIMITER_GROUP:
                raise HeaderError("a sequence ends within an item")
            elif length == UNDEFINED_LENGTH:
                in_items.append(False)
            else:
                offset += length
            if len(in_items) > 2 * _MAX_DEPTH:
                raise HeaderError(f"its sequences are nested more than {_MAX_DEPTH} deep")
        return offset
