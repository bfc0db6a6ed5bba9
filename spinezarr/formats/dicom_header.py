"""What does the header of a DICOM file state before its pixels?

References
----------
DICOM PS3.10 section 7.1 (file meta information); PS3.5 annex A (transfer syntaxes).
"""

import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from spinezarr.formats.dicom_data_set import DataSet, HeaderError
from spinezarr.formats.dicom_keywords import SOP_CLASS_TAG
from spinezarr.formats.dicom_syntax import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, is_uid
from spinezarr.formats.dicom_walk import (
    FILE_META_GROUP,
    LONG_VRS,
    SHORT_ELEMENT_BYTES,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    ByteWindow,
    ElementWalk,
    PixelDataLocation,
)

__all__ = ["DicomHeader", "inflate_data_set", "is_bare_data_set", "pixel_source", "read_header"]

_PREAMBLE_BYTES: Final = 128
_MAGIC: Final = b"DICM"
_IDENTIFYING_GROUP: Final = 0x0008
"""Group with which a data set starts."""


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """The content of a file before its pixels."""

    data_set_start: int
    """Offset of the first byte after the file meta information."""
    sop_classes: tuple[str, ...]
    """SOPClassUIDs of the data set and of the file meta information, without missing ones."""
    transfer_syntax: str
    """Stated transfer syntax, or the detected one if the file has no meta information."""
    data: DataSet
    """Kept elements of the data set."""
    pixels: PixelDataLocation | None
    """Location of the pixels; None if there are none, or reading stopped before them."""


def read_header(
    read: Callable[[int, int], bytes],
    size_bytes: int,
    *,
    max_bytes: int,
    max_inflated_bytes: int,
    classes: Collection[str] | None = None,
) -> DicomHeader | None:
    """Read the header of a file; return None if the file is not DICOM.

    A file without a preamble is DICOM if :func:`is_bare_data_set` says so.

    Parameters
    ----------
    read
        Function of (start, stop) that returns these bytes of the file.
    size_bytes
        Size of the file.
    max_bytes
        Largest number of bytes to read, unless the file is deflated.
    max_inflated_bytes
        Largest size of a deflated file, compressed and inflated.
    classes
        SOP classes whose whole header is read. For other classes, reading stops after the series.
        None reads every header.

    Raises
    ------
    HeaderError
        If the header does not parse, is cut short, or exceeds a limit.
    """
    source = ByteWindow(read, size_bytes, max_bytes)
    start_in_window = source.load(0, _PREAMBLE_BYTES + len(_MAGIC))
    start = source.data[start_in_window : start_in_window + _PREAMBLE_BYTES + len(_MAGIC)]
    offset = len(start)
    if start[_PREAMBLE_BYTES:] != _MAGIC:
        if not is_bare_data_set(source.data[start_in_window:]):
            return None
        offset = 0
    meta, offset = ElementWalk(source, explicit=True).file_meta(offset)
    syntax = meta.text("TransferSyntaxUID")
    meta_class, data_set_start = meta.text("MediaStorageSOPClassUID"), offset
    if syntax == DEFLATED:
        if meta_class and classes is not None and meta_class not in classes:
            return DicomHeader(offset, (meta_class,), syntax, DataSet(), None)
        if size_bytes > max_inflated_bytes:
            raise HeaderError(f"it has more than {max_inflated_bytes} bytes of deflated data")
        deflated = read(offset, size_bytes) if offset < size_bytes else b""
        inflated = inflate_data_set(deflated, max_inflated_bytes)
        source, offset = ByteWindow(lambda a, b: inflated[a:b], len(inflated), 2 * len(inflated)), 0
    big_endian = syntax == BIG_ENDIAN
    # Some writers state explicit VRs and write implicit ones, or vice versa.
    start_in_window = source.load(offset, SHORT_ELEMENT_BYTES)
    explicit = source.data[start_in_window + 4 : start_in_window + 6] in SHORT_VRS | LONG_VRS
    walk = ElementWalk(source, explicit=explicit, big_endian=big_endian)
    data, pixels = walk.data_set(offset, meta_class, classes)
    data_set_class = data.text("SOPClassUID")
    return DicomHeader(
        data_set_start,
        tuple(filter(None, (data_set_class, meta_class))),
        syntax or (EXPLICIT if explicit else IMPLICIT),
        data,
        pixels,
    )


def is_bare_data_set(start: bytes) -> bool:
    r"""Whether bytes are the start of a DICOM file without the preamble of 128 bytes.

    Many archives write only the data set. It starts with an element of group 0002 or 0008 in little
    endian, and states the SOP class after elements with ascending tags.

    Examples
    --------
    >>> is_bare_data_set(b"\x08\0\x16\0UI\x1a\0" + b"1.2.840.10008.5.1.4.1.1.2\0")
    True
    >>> is_bare_data_set(bytes(132)), is_bare_data_set(b"Dear colleague, ...")
    (False, False)
    """
    source = ByteWindow(lambda a, b: start[a:b], len(start), len(start))
    walk = ElementWalk(source, explicit=start[4:6] in SHORT_VRS | LONG_VRS)
    offset, previous_tag = 0, 0
    try:
        if int.from_bytes(start[:2], "little") == FILE_META_GROUP:
            meta, offset = walk.file_meta(0)
            return is_uid(meta.text("MediaStorageSOPClassUID"))
        while (element := walk.element(offset)) is not None:
            tag, vr, value_start, length = element
            ascends = previous_tag < tag or (previous_tag == tag == 0)
            if tag >> 16 != _IDENTIFYING_GROUP or not ascends or (walk.explicit and not vr):
                return False
            if tag == SOP_CLASS_TAG:
                value = start[value_start : value_start + length]
                text = value.decode("ascii", "replace").rstrip("\0 ")
                return len(value) == length and is_uid(text)
            if length == UNDEFINED_LENGTH:
                value_start, length = walk.skip(value_start), 0
            offset, previous_tag = value_start + length, tag
    except HeaderError:
        pass
    return False


def pixel_source(
    read: Callable[[int, int], bytes], size_bytes: int, header: DicomHeader, max_inflated_bytes: int
) -> tuple[Callable[[int, int], bytes], int]:
    """Return a function that reads what ``header.pixels`` counts in, and its size in bytes.

    That is the file itself, or the inflated data set of a deflated file.

    Raises
    ------
    HeaderError
        If the data set is damaged, or inflates to more than ``max_inflated_bytes``.
    """
    if header.transfer_syntax != DEFLATED:
        return read, size_bytes
    inflated = inflate_data_set(read(header.data_set_start, size_bytes), max_inflated_bytes)
    return lambda start, stop: inflated[start:stop], len(inflated)


def inflate_data_set(data: bytes, max_bytes: int) -> bytes:
    """Inflate a deflated data set.

    Raises
    ------
    HeaderError
        If the data set is damaged, or inflates to more than ``max_bytes``.
    """
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = decompressor.decompress(data, max_bytes)
    except zlib.error:
        raise HeaderError("its deflated data set does not inflate") from None
    if decompressor.unconsumed_tail:
        raise HeaderError(f"it inflates to more than {max_bytes} bytes")
    if not decompressor.eof:
        raise HeaderError("its deflated data set is cut short")
    return inflated
