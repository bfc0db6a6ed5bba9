"""The header of a DICOM file: its elements, walked one by one, in bounded memory and time.

A file is told apart, placed and grouped by a few dozen elements out of hundreds. Only these are
kept; all others are stepped over. pydicom makes an object of everything it meets, so that a small
file of nested sequences can fill the memory, and takes about four times as long.

References
----------
DICOM PS3.5 sections 7.1 to 7.5 (data elements, sequences and items) and annex A (transfer
syntaxes): https://dicom.nema.org/medical/dicom/current/output/chtml/part05/PS3.5.html;
PS3.10 section 7.1 (file meta information); PS3.6 (the elements).
"""

import math
import re
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from spinezarr.formats.dicom_syntax import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, is_uid

__all__ = [
    "DataSet",
    "DicomHeader",
    "Fragment",
    "HeaderError",
    "PixelDataLocation",
    "TruncatedPixelsError",
    "inflate_data_set",
    "is_bare_data_set",
    "read_fragments",
    "read_header",
]

_MOST_VALUE_BYTES: Final = 4096
"""Of one element that is kept: at most a few dozen numbers, or 64 characters."""

_PREAMBLE_BYTES: Final = 128
_MAGIC: Final = b"DICM"
_WINDOW_BYTES: Final = 1 << 14
"""Read first, and after a leap; the headers of most CT slices are shorter."""
_LARGEST_WINDOW_BYTES: Final = 1 << 20
"""Read at once of a long header, for which windows double."""
_SHORT_BYTES: Final = 8
_LONG_BYTES: Final = 12
"""Before the value of an element, by whether its length has 16 or 32 bits."""
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_DELIMITERS: Final = 0xFFFE
"""Group of the three above, which never have a VR."""
_DIRECTORY: Final = 0x0004
"""Group of the records of a DICOM directory, which no other file has (PS3.10 section 8.5)."""
_PIXELS: Final = 0x7FE00010
"""PixelData."""
_FIRST_PIXELS: Final = 0x7FE00000
_OTHER_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009})
"""FloatPixelData and DoubleFloatPixelData, which no CT has."""
_FILE_META: Final = 0x0002
_IDENTIFYING: Final = 0x0008
"""Group that a data set starts with."""
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has 32 bits (PS3.5 section 7.1.2)."""
_SHORT_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_MOST_DEPTH: Final = 64
"""Sequences in sequences; real headers nest about ten."""
_MOST_FRAGMENTS: Final = 200_000
_STARTS_BYTES: Final = 4
_MOST_ITEMS: Final = 200_000
"""Of all sequences that are kept: seven for each of 20,000 frames."""
_NUMBER: Final = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""Of a decimal or integer string (PS3.5 section 6.2)."""
_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}
"""Letters of :mod:`struct`."""

_KEYWORDS: Final = {
    "MediaStorageSOPClassUID": (0x00020002, b"UI"),
    "TransferSyntaxUID": (0x00020010, b"UI"),
    "ImageType": (0x00080008, b"CS"),
    "SOPClassUID": (0x00080016, b"UI"),
    "SeriesDescription": (0x0008103E, b"LO"),
    "SliceThickness": (0x00180050, b"DS"),
    "SpacingBetweenSlices": (0x00180088, b"DS"),
    "GantryDetectorTilt": (0x00181120, b"DS"),
    "ConvolutionKernel": (0x00181210, b"SH"),
    "StudyInstanceUID": (0x0020000D, b"UI"),
    "SeriesInstanceUID": (0x0020000E, b"UI"),
    "SeriesNumber": (0x00200011, b"IS"),
    "InstanceNumber": (0x00200013, b"IS"),
    "ImagePositionPatient": (0x00200032, b"DS"),
    "ImageOrientationPatient": (0x00200037, b"DS"),
    "FrameOfReferenceUID": (0x00200052, b"UI"),
    "ImagesInAcquisition": (0x00201002, b"IS"),
    "NumberOfSeriesRelatedInstances": (0x00201209, b"IS"),
    "StackID": (0x00209056, b"SH"),
    "TemporalPositionIndex": (0x00209128, b"UL"),
    "SamplesPerPixel": (0x00280002, b"US"),
    "PhotometricInterpretation": (0x00280004, b"CS"),
    "NumberOfFrames": (0x00280008, b"IS"),
    "Rows": (0x00280010, b"US"),
    "Columns": (0x00280011, b"US"),
    "PixelSpacing": (0x00280030, b"DS"),
    "BitsAllocated": (0x00280100, b"US"),
    "BitsStored": (0x00280101, b"US"),
    "HighBit": (0x00280102, b"US"),
    "PixelRepresentation": (0x00280103, b"US"),
    "RescaleIntercept": (0x00281052, b"DS"),
    "RescaleSlope": (0x00281053, b"DS"),
    "RescaleType": (0x00281054, b"LO"),
    "LossyImageCompression": (0x00282110, b"CS"),
    "CTReconstructionSequence": (0x00189314, b"SQ"),
    "FrameContentSequence": (0x00209111, b"SQ"),
    "PlanePositionSequence": (0x00209113, b"SQ"),
    "PlaneOrientationSequence": (0x00209116, b"SQ"),
    "PixelMeasuresSequence": (0x00289110, b"SQ"),
    "PixelValueTransformationSequence": (0x00289145, b"SQ"),
    "SharedFunctionalGroupsSequence": (0x52009229, b"SQ"),
    "PerFrameFunctionalGroupsSequence": (0x52009230, b"SQ"),
}
"""Tag and usual value representation of the elements that are kept (PS3.6 section 6)."""

_Wanted: TypeAlias = "Mapping[int, _Wanted | None]"
"""Tags that are kept; of a sequence, which tags of its items."""


def _tags(*keywords: str) -> dict[int, None]:
    return {_KEYWORDS[keyword][0]: None for keyword in keywords}


_GROUPS: Final[_Wanted] = {
    _KEYWORDS["CTReconstructionSequence"][0]: _tags("ConvolutionKernel"),
    _KEYWORDS["FrameContentSequence"][0]: _tags("StackID", "TemporalPositionIndex"),
    _KEYWORDS["PlanePositionSequence"][0]: _tags("ImagePositionPatient"),
    _KEYWORDS["PlaneOrientationSequence"][0]: _tags("ImageOrientationPatient"),
    _KEYWORDS["PixelMeasuresSequence"][0]: _tags("PixelSpacing", "SliceThickness"),
    _KEYWORDS["PixelValueTransformationSequence"][0]: _tags(
        "RescaleIntercept", "RescaleSlope", "RescaleType"
    ),
}
"""Functional groups of multi-frame images (PS3.3 section C.7.6.16.2 and C.8.15.3)."""
_WANTED: Final[_Wanted] = {
    **{tag: None for tag, vr in _KEYWORDS.values() if vr != b"SQ"},
    _KEYWORDS["SharedFunctionalGroupsSequence"][0]: _GROUPS,
    _KEYWORDS["PerFrameFunctionalGroupsSequence"][0]: _GROUPS,
}
_SOP_CLASS: Final = _KEYWORDS["SOPClassUID"][0]
_SERIES: Final = _KEYWORDS["SeriesInstanceUID"][0]


class HeaderError(ValueError):
    """A header that cannot be read; without the file's name."""


class TruncatedPixelsError(HeaderError):
    """A file that ends before its pixels do."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element."""

    vr: bytes
    """Value representation, the usual one where the file states none."""
    value: bytes


@dataclass(frozen=True, slots=True)
class DataSet:
    """The elements that were kept of a data set, or of an item of a sequence."""

    elements: dict[int, Element] = field(default_factory=dict)
    items: dict[int, tuple["DataSet", ...]] = field(default_factory=dict)
    """Of each sequence that was kept."""
    big_endian: bool = False

    def __contains__(self, keyword: str) -> bool:
        """Whether the file has the element, perhaps without a value."""
        return _KEYWORDS[keyword][0] in self.elements

    def text(self, keyword: str) -> str:
        """Return a text as it stands, without padding; empty if there is none."""
        element = self.elements.get(_KEYWORDS[keyword][0])
        return "" if element is None else element.value.decode("ascii", "replace").strip(" \0")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return the values of an element of several texts."""
        text = self.text(keyword)
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return the numbers of an element; none if it is absent or empty.

        Raises
        ------
        HeaderError
            If its value is not of numbers.
        """
        element = self.elements.get(_KEYWORDS[keyword][0])
        if element is None:
            return ()
        letter = _BINARY.get(element.vr)
        if letter is not None:
            count, rest = divmod(len(element.value), struct.calcsize(letter))
            if rest:
                raise HeaderError(f"{keyword} has {len(element.value)} bytes, not whole numbers")
            order = ">" if self.big_endian else "<"
            numbers = struct.unpack(f"{order}{count}{letter}", element.value)
        else:
            texts = self.texts(keyword)
            if not all(map(_NUMBER.fullmatch, texts)):
                raise HeaderError(f"{keyword} is not a number")
            numbers = tuple(map(float, texts))
        if not all(map(math.isfinite, numbers)):
            raise HeaderError(f"{keyword} is not a finite number")
        return tuple(map(float, numbers))

    def sequence(self, keyword: str) -> tuple["DataSet", ...]:
        """Return the items of a sequence that is kept; none if it is absent."""
        return self.items.get(_KEYWORDS[keyword][0], ())


@dataclass(frozen=True, slots=True)
class PixelDataLocation:
    """Where the value of the pixel element lies."""

    start: int
    """Its first byte, in the file; of a deflated file, in what it inflates to."""
    size_bytes: int | None
    """None if the value is encapsulated, and so ends with a delimiter."""
    vr: bytes
    """Value representation, empty if the file states none."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of encapsulated pixels."""

    start: int
    """Its first byte, in the file."""
    size_bytes: int
    first: bytes
    """Its first four bytes, which tell whether a code stream starts."""


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What a file says before its pixels."""

    data_set_start: int
    """First byte behind the file meta information."""
    sop_classes: tuple[str, ...]
    """SOPClassUID of the data set and of the file meta information, as far as they are stated."""
    transfer_syntax: str
    """As stated, or as found where the file has no meta information."""
    data: DataSet
    pixels: PixelDataLocation | None
    """None if there are none, or reading ended before them."""


def read_header(
    read: Callable[[int, int], bytes],
    size_bytes: int,
    *,
    most_bytes: int,
    most_inflated_bytes: int,
    classes: Collection[str] | None = None,
) -> DicomHeader | None:
    """Read the header of a file; None if it is no DICOM file.

    A file without preamble is one if :func:`is_bare_data_set`.

    Parameters
    ----------
    read
        Returns the bytes from one place of the file to another.
    size_bytes
        Of the file.
    most_bytes
        That may be read of it, unless it is deflated.
    most_inflated_bytes
        That a deflated file may have, and inflate to.
    classes
        SOP classes whose whole header is wanted; of others, what tells class and series is read.

    Raises
    ------
    HeaderError
        If it does not parse, is cut short within what is wanted, or is over a limit.
    """
    source = _Bytes(read, size_bytes, most_bytes)
    begin = source.window(0, _PREAMBLE_BYTES + len(_MAGIC))
    start = source.data[begin : begin + _PREAMBLE_BYTES + len(_MAGIC)]
    at = len(start)
    if start[_PREAMBLE_BYTES:] != _MAGIC:
        if not is_bare_data_set(source.data[begin:]):
            return None
        at = 0
    meta, at = _Walk(source, explicit=True).file_meta(at)
    syntax = meta.text("TransferSyntaxUID")
    outer, start_at = meta.text("MediaStorageSOPClassUID"), at
    if syntax == DEFLATED:
        if outer and classes is not None and outer not in classes:
            return DicomHeader(at, (outer,), syntax, DataSet(), None)
        if size_bytes > most_inflated_bytes:
            raise HeaderError(f"more than {most_inflated_bytes} bytes of deflated data")
        packed = read(at, size_bytes) if at < size_bytes else b""
        plain = inflate_data_set(packed, most_inflated_bytes)
        source, at = _Bytes(lambda a, b: plain[a:b], len(plain), 2 * len(plain)), 0
    big_endian = syntax == BIG_ENDIAN
    # Some writers state one and write the other.
    begin = source.window(at, _SHORT_BYTES)
    explicit = source.data[begin + 4 : begin + 6] in _SHORT_VRS | _LONG_VRS
    walk = _Walk(source, explicit=explicit, big_endian=big_endian)
    data, pixels = walk.data_set(at, outer, classes)
    inner = data.text("SOPClassUID")
    return DicomHeader(
        start_at,
        tuple(filter(None, (inner, outer))),
        syntax or (EXPLICIT if explicit else IMPLICIT),
        data,
        pixels,
    )


def is_bare_data_set(start: bytes) -> bool:
    r"""Whether bytes are the start of a DICOM file that lacks the preamble of 128 bytes.

    Many archives write data sets alone. They start with an element of group 0002 or 0008 in little
    endian, and state the SOP class after elements that ascend.

    Examples
    --------
    >>> is_bare_data_set(b"\x08\0\x16\0UI\x1a\0" + b"1.2.840.10008.5.1.4.1.1.2\0")
    True
    >>> is_bare_data_set(bytes(132)), is_bare_data_set(b"Dear colleague, ...")
    (False, False)
    """
    source = _Bytes(lambda a, b: start[a:b], len(start), len(start))
    walk = _Walk(source, explicit=start[4:6] in _SHORT_VRS | _LONG_VRS)
    at, before = 0, 0
    try:
        if int.from_bytes(start[:2], "little") == _FILE_META:
            meta, at = walk.file_meta(0)
            return is_uid(meta.text("MediaStorageSOPClassUID"))
        while (found := walk.element(at)) is not None:
            tag, vr, value_at, length = found
            ascends = before < tag or (before == tag == 0)
            if tag >> 16 != _IDENTIFYING or not ascends or (walk.explicit and not vr):
                return False
            if tag == _SOP_CLASS:
                value = start[value_at : value_at + length]
                text = value.decode("ascii", "replace").rstrip("\0 ")
                return len(value) == length and is_uid(text)
            if length == _UNDEFINED:
                value_at, length = walk.skip(value_at), 0
            at, before = value_at + length, tag
    except HeaderError:
        pass
    return False


def read_fragments(
    read: Callable[[int, int], bytes], size_bytes: int, start: int
) -> list[Fragment]:
    """Find the fragments of encapsulated pixels, the basic offset table first.

    Parameters
    ----------
    read, size_bytes
        As for :func:`read_header`.
    start
        Where the value of the pixel element starts.

    Raises
    ------
    HeaderError
        If they do not end as they should, or are more than any file has.
    """
    source = _Bytes(read, size_bytes, _MOST_FRAGMENTS * _WINDOW_BYTES)
    walk = _Walk(source, explicit=False)
    found: list[Fragment] = []
    at = start
    while len(found) <= _MOST_FRAGMENTS:
        element = walk.element(at)
        if element is None or element[0] not in (_ITEM, _SEQUENCE_END):
            raise TruncatedPixelsError("its pixels do not end")
        tag, _, value_at, length = element
        if tag == _SEQUENCE_END:
            return found
        at = value_at + length
        if at > size_bytes:
            raise TruncatedPixelsError("its pixels do not end")
        begin = source.window(value_at, min(length, _STARTS_BYTES))
        found.append(
            Fragment(value_at, length, source.data[begin : begin + min(length, _STARTS_BYTES)])
        )
    raise HeaderError(f"pixels in more than {_MOST_FRAGMENTS} fragments")


class _Bytes:
    """A file from any place on, of which one window is in memory."""

    __slots__ = ("_left", "_next_bytes", "_read", "data", "size", "start")

    def __init__(self, read: Callable[[int, int], bytes], size: int, most: int) -> None:
        self._read = read
        self._left = most
        self._next_bytes = _WINDOW_BYTES
        self.size = size
        self.start = 0
        self.data = b""

    def window(self, at: int, length: int) -> int:
        """Have the bytes from ``at`` on in :attr:`data`, and return where in it they start.

        Near the end of the file, fewer than ``length`` are there.
        """
        begin, there = at - self.start, len(self.data)
        is_all = self.start + there >= self.size
        if begin < 0 or (begin + length > there and not is_all):
            self._next_bytes = (
                min(2 * self._next_bytes, _LARGEST_WINDOW_BYTES)
                if 0 < begin <= there
                else _WINDOW_BYTES
            )
            self._move(at, max(length, self._next_bytes))
            begin = 0
        return begin

    def _move(self, at: int, length: int) -> None:
        wanted = max(0, min(self.size - at, length))
        if wanted > self._left:
            raise HeaderError("its header is longer than any; expected the file of a CT slice")
        self.data = self._read(at, at + wanted) if wanted else b""
        # A file that was cut since it was listed, or a server that takes no ranges.
        if len(self.data) != wanted:
            raise HeaderError(f"{len(self.data)} bytes came where {wanted} were asked for")
        self._left -= wanted
        self.start = at


class _Walk:
    """Steps from element to element."""

    __slots__ = (
        "_bytes",
        "_explicit",
        "_implicit",
        "_items_kept",
        "_length",
        "big_endian",
        "explicit",
    )

    def __init__(self, source: _Bytes, *, explicit: bool, big_endian: bool = False) -> None:
        order = ">" if big_endian else "<"
        self._bytes = source
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._implicit = struct.Struct(f"{order}HHL").unpack_from
        self._length = struct.Struct(f"{order}L").unpack_from
        self._items_kept = 0
        self.explicit = explicit
        self.big_endian = big_endian

    def element(self, at: int) -> tuple[int, bytes, int, int] | None:
        """Return tag, VR, place of the value and its length; None at the end of the file."""
        source = self._bytes
        begin = source.window(at, _LONG_BYTES)
        data = source.data
        if len(data) - begin < _SHORT_BYTES:
            return None
        if self.explicit:
            group, number, vr, length = self._explicit(data, begin)
            if group != _DELIMITERS:
                if vr in _SHORT_VRS:
                    return group << 16 | number, vr, at + _SHORT_BYTES, length
                if vr in _LONG_VRS:
                    if len(data) - begin < _LONG_BYTES:
                        return None
                    (length,) = self._length(data, begin + 8)
                    return group << 16 | number, vr, at + _LONG_BYTES, length
                if vr.isalpha() and vr.isupper():  # a VR of a later edition
                    return group << 16 | number, vr, at + _SHORT_BYTES, length
        # Some writers leave VRs out, in sequences above all.
        group, number, length = self._implicit(data, begin)
        return group << 16 | number, b"", at + _SHORT_BYTES, length

    def file_meta(self, at: int) -> tuple[DataSet, int]:
        """Read the file meta information, and return where the data set after it starts."""
        meta = DataSet()
        while (found := self.element(at)) is not None and found[0] >> 16 == _FILE_META:
            tag, vr, value_at, length = found
            if tag in _WANTED:
                meta.elements[tag] = self._element(tag, vr, value_at, length)
            at = value_at + length
        return meta, at

    def data_set(
        self, at: int, outer_class: str, classes: Collection[str] | None
    ) -> tuple[DataSet, PixelDataLocation | None]:
        """Read the elements from ``at`` to the pixels, and find these."""
        data = DataSet(big_endian=self.big_endian)
        is_wanted = None if classes is not None else True
        while (found := self.element(self._to_wanted(at))) is not None:
            tag, vr, value_at, length = found
            if tag > _SOP_CLASS and is_wanted is None:
                # That a further element is there shows that the class is not cut short.
                stated = {data.text("SOPClassUID"), outer_class} - {""}
                is_wanted = not stated or not stated.isdisjoint(classes or ())
            is_enough = is_wanted is False and tag > _SERIES
            if is_enough or tag >> 16 == _DIRECTORY or tag in _OTHER_PIXELS:
                break
            if tag == _PIXELS:
                return data, PixelDataLocation(
                    value_at, None if length == _UNDEFINED else length, vr
                )
            at = self._take(data, _WANTED, found)
        return data, None

    def _to_wanted(self, at: int) -> int:
        """Step over short elements that are not wanted, as far as the window reaches.

        Most elements are such, and what a step costs decides how long a folder takes.
        """
        data, start = self._bytes.data, self._bytes.start
        begin, end = at - start, len(data) - _LONG_BYTES
        explicit, implicit, wanted = self._explicit, self._implicit, _WANTED
        while 0 <= begin <= end:
            if self.explicit:
                group, number, vr, length = explicit(data, begin)
                if vr not in _SHORT_VRS:
                    break
            else:
                group, number, length = implicit(data, begin)
                if length == _UNDEFINED:
                    break
            tag = group << 16 | number
            if tag in wanted or tag >= _FIRST_PIXELS:
                break
            begin += _SHORT_BYTES + length
        return begin + start

    def _take(self, data: DataSet, wanted: _Wanted, found: tuple[int, bytes, int, int]) -> int:
        """Keep an element if it is wanted; return where the next one starts."""
        tag, vr, value_at, length = found
        if tag in wanted:
            of_items = wanted[tag]
            if of_items is not None:
                data.items[tag], at = self._items(value_at, length, of_items)
                return at
            if length != _UNDEFINED:
                data.elements[tag] = self._element(tag, vr, value_at, length)
        if length == _UNDEFINED:
            return self.skip(value_at, implicit=vr == b"UN")
        return value_at + length

    def _element(self, tag: int, vr: bytes, at: int, length: int) -> Element:
        keyword, usual = _NAMES[tag]
        if length > _MOST_VALUE_BYTES:
            raise HeaderError(f"{keyword} has {length} bytes, expected at most {_MOST_VALUE_BYTES}")
        begin = self._bytes.window(at, length)
        value = self._bytes.data[begin : begin + length]
        if len(value) < length:
            raise HeaderError(f"cut short within {keyword}")
        return Element(usual if vr in (b"", b"UN") else vr, value)

    def _items(self, at: int, length: int, wanted: _Wanted) -> tuple[tuple[DataSet, ...], int]:
        """Read the items of a sequence, and return where it ends."""
        found: list[DataSet] = []
        stop = None if length == _UNDEFINED else at + length
        while stop is None or at < stop:
            tag, value_at, item_length = self._delimiter(at)
            if tag == _SEQUENCE_END:
                return tuple(found), value_at
            if tag != _ITEM:
                raise HeaderError("a sequence whose items do not start as such")
            end = None if item_length == _UNDEFINED else value_at + item_length
            self._items_kept += 1
            if self._items_kept > _MOST_ITEMS:
                raise HeaderError(f"more than {_MOST_ITEMS} items in its functional groups")
            data, at = self._item(value_at, end, wanted)
            found.append(data)
        return tuple(found), at

    def _item(self, at: int, stop: int | None, wanted: _Wanted) -> tuple[DataSet, int]:
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
        """Step over the items of a sequence of undefined length; return where it ends.

        Parameters
        ----------
        at
            Its first item.
        implicit
            Whether its elements have no VR, as those in ``UN`` (PS3.5 section 6.2.2, note 5).

        Raises
        ------
        HeaderError
            If it does not end, or is nested too deep.
        """
        walk = _Walk(self._bytes, explicit=False) if implicit else self
        in_items: list[bool] = [False]
        while in_items:
            tag, at, length = walk._delimiter(at)  # noqa: SLF001  its own class
            if not in_items[-1]:
                if tag == _SEQUENCE_END:
                    in_items.pop()
                elif tag != _ITEM:
                    raise HeaderError("a sequence whose items do not start as such")
                elif length == _UNDEFINED:
                    in_items.append(True)
                else:
                    at += length
            elif tag == _ITEM_END:
                in_items.pop()
            elif tag >> 16 == _DELIMITERS:
                raise HeaderError("a sequence that ends within an item")
            elif length == _UNDEFINED:
                in_items.append(False)
            else:
                at += length
            if len(in_items) > 2 * _MOST_DEPTH:
                raise HeaderError(f"sequences nested more than {_MOST_DEPTH} deep")
        return at


_NAMES: Final = {tag: (keyword, vr) for keyword, (tag, vr) in _KEYWORDS.items()}


def inflate_data_set(data: bytes, most_bytes: int) -> bytes:
    """Inflate a deflated data set.

    Raises
    ------
    HeaderError
        If it is damaged, or inflates to more than ``most_bytes``.
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflate.decompress(data, most_bytes)
    except zlib.error:
        raise HeaderError("a deflated data set that does not inflate") from None
    if inflate.unconsumed_tail:
        raise HeaderError(f"more than {most_bytes} bytes when it is inflated")
    if not inflate.eof:
        raise HeaderError("a deflated data set that is cut short")
    return plain
