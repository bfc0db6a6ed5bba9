"""How are the pixels of a DICOM file decoded, one slice or frame at a time?

Uncompressed pixels are read directly. Compressed ones are decoded by pydicom and gdcm, after their
code stream was checked. Errors, warnings and logs of the decoders do not leave this module. It
needs pydicom and gdcm.

References
----------
DICOM PS3.5 section 8 and annex A (pixel data and transfer syntaxes).
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_codestream import (
    CodeStreamError,
    check_jpeg,
    check_jpeg2000,
    check_rle,
)
from spinezarr.formats.dicom_data_set import HeaderError
from spinezarr.formats.dicom_fragments import Fragment, TruncatedPixelsError, read_fragments
from spinezarr.formats.dicom_header import DicomHeader
from spinezarr.formats.dicom_stack import SliceHeader
from spinezarr.formats.dicom_syntax import (
    BIG_ENDIAN,
    JPEG_2000,
    JPEG_EXTENDED,
    JPEG_FRAMES,
    RLE,
)

__all__ = ["FrameReader"]

_CODE_STARTS: Final = (b"\xff\xd8", b"\xff\x4f\xff\x51")
"""Starts of the code streams of JPEG and JPEG-LS, and of JPEG 2000."""
_OFFSET_BYTES: Final = 4
_EIGHT_BITS: Final = 8
_TWELVE_BITS: Final = 12


class FrameReader:
    """Decodes the frames of one file, in any order.

    Parameters
    ----------
    read
        Function of (start, stop) that returns these bytes of the file, or of the inflated data set
        if the file is deflated.
    size_bytes
        Size of the file, or of the inflated data set.
    header
        Header of the file.
    frames
        Number of frames in the file.
    max_bytes
        Largest allowed compressed frame.
    path
        Path of the file, for messages.

    Raises
    ------
    FormatError
        If the pixels are cut short, or cannot be divided into frames.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        size_bytes: int,
        header: DicomHeader,
        frames: int,
        *,
        max_bytes: int,
        path: str,
    ) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self._syntax = header.transfer_syntax
        self._location = header.pixels
        self._max_frame_bytes = max_bytes
        self._path = path
        self._frames = frames
        self._frame_fragments: list[list[Fragment]] | None = None
        if UID(self._syntax).is_encapsulated:
            with _decoding(path):
                self._frame_fragments = self._find_frame_fragments()

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        """Decode the stored values of a slice.

        Returns
        -------
        numpy.ndarray
            Integers with axes (row, column).

        Raises
        ------
        FormatError
            If the values are cut short, do not decode or do not match ``header``.
        """
        frame = header.frame or 0
        if self._frame_fragments is None:
            return _clear_unused_bits(self._uncompressed_frame(frame, header), header)
        with _decoding(self._path):
            fragments = self._frame_fragments[frame]
            code = b"".join(
                self._bytes(fragment.start, fragment.size_bytes) for fragment in fragments
            )
            if self._syntax == RLE:
                check_rle(code, header.shape_rows_columns, header.bits_allocated)
            elif self._syntax in JPEG_2000:
                check_jpeg2000(code, header.shape_rows_columns, header.bits_allocated)
            else:
                frames = JPEG_FRAMES[self._syntax]
                bits = check_jpeg(code, header.shape_rows_columns, header.bits_allocated, frames)
                if self._syntax == JPEG_EXTENDED and bits == _TWELVE_BITS:
                    return _clear_unused_bits(_decode_jpeg_extended(code, header), header)
            return _decode(code, self._syntax, header)

    def _bytes(self, start: int, size_bytes: int) -> bytes:
        """Return exactly the requested bytes of the file."""
        stop = min(start + size_bytes, self._size_bytes)  # the last pair of bytes may be incomplete
        data = self._read(start, stop) if start < stop else b""
        if len(data) != stop - start:
            raise FormatError(f"{self._path}: has changed while it was read. Ingest it again.")
        return data

    def _uncompressed_frame(self, frame: int, header: SliceHeader) -> npt.NDArray[Any]:
        """Return the uncompressed pixels of a frame."""
        location = self._location
        n_bytes = (
            header.shape_rows_columns[0] * header.shape_rows_columns[1] * header.bits_allocated // 8
        )
        present_bytes = 0
        if location is not None and location.size_bytes is not None:
            present_bytes = max(0, min(location.size_bytes, self._size_bytes - location.start))
        if location is None or present_bytes < n_bytes * self._frames:
            raise FormatError(
                f"{self._path}: cut short: it holds {present_bytes} of {n_bytes * self._frames} "
                "bytes of pixels. Download it again."
            )
        start = frame * n_bytes
        # In big endian, pairs of bytes are swapped even if each byte is a pixel.
        swaps_bytes = (
            self._syntax == BIG_ENDIAN
            and header.bits_allocated == _EIGHT_BITS
            and location.vr != b"OB"
        )
        before, after = (start % 2, (start + n_bytes) % 2) if swaps_bytes else (0, 0)
        data = self._bytes(location.start + start - before, before + n_bytes + after)
        if swaps_bytes:
            even = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()
            data = (even + data[len(even) :])[before : before + n_bytes]
        order = ">" if self._syntax == BIG_ENDIAN else "<"
        dtype = np.dtype(f"{order}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
        return np.frombuffer(data, dtype).reshape(header.shape_rows_columns)

    def _find_frame_fragments(self) -> list[list[Fragment]]:
        """Return the fragments of each frame."""
        if self._location is None or self._location.size_bytes is not None:
            raise TruncatedPixelsError("it holds no compressed pixels")
        fragments = read_fragments(self._read, self._size_bytes, self._location.start)
        table, code_fragments = fragments[:1], fragments[1:]
        if self._frames == 1:
            frames = [code_fragments]
        elif len(code_fragments) == self._frames:
            frames = [[fragment] for fragment in code_fragments]
        else:
            frames = _group_fragments(code_fragments, self._starts(table, code_fragments))
        if not code_fragments or len(frames) != self._frames:
            raise HeaderError(
                f"it holds {len(frames) if code_fragments else 0} compressed frames, expected "
                f"{self._frames}"
            )
        longest = max(sum(fragment.size_bytes for fragment in frame) for frame in frames)
        if longest > self._max_frame_bytes:
            raise HeaderError(f"a compressed frame has more than {self._max_frame_bytes} bytes")
        return frames

    def _starts(self, table: Sequence[Fragment], fragments: Sequence[Fragment]) -> list[int]:
        """Return the fragments that start a frame, by the offset table or by their first bytes."""
        if not table or table[0].size_bytes != _OFFSET_BYTES * self._frames:
            return [
                i
                for i, fragment in enumerate(fragments)
                if fragment.first_bytes.startswith(_CODE_STARTS)
            ]
        offsets = np.frombuffer(self._bytes(table[0].start, table[0].size_bytes), "<u4")
        index_of_offset = {
            fragment.start - fragments[0].start: i for i, fragment in enumerate(fragments)
        }
        return [index_of_offset.get(int(offset), -1) for offset in offsets]


def _group_fragments(fragments: Sequence[Fragment], starts: Sequence[int]) -> list[list[Fragment]]:
    """Group fragments into frames; empty if the starts are not valid."""
    ends = [*starts[1:], len(fragments)]
    if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, ends, strict=True)):
        return []
    return [list(fragments[a:b]) for a, b in zip(starts, ends, strict=True)]


def _clear_unused_bits(stored: npt.NDArray[Any], header: SliceHeader) -> npt.NDArray[Any]:
    """Clear the bits above the stored ones, or fill them with the sign."""
    unused = header.bits_allocated - header.bits_stored
    if not unused:
        return stored
    stored = stored.astype(stored.dtype.newbyteorder("="))
    return (stored << unused) >> unused


def _decode(code: bytes, syntax: str, header: SliceHeader) -> npt.NDArray[Any]:
    """Decode a code stream that has been checked."""
    rows, columns = header.shape_rows_columns
    # pydicom types these options as one TypedDict.
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    decoded, _ = get_decoder(UID(syntax)).as_array(
        encapsulate([code], has_bot=False),
        index=0,
        raw=True,
        decoding_plugin="pydicom" if syntax == RLE else "gdcm",
        **options,
    )
    return decoded


def _decode_jpeg_extended(code: bytes, header: SliceHeader) -> npt.NDArray[Any]:
    """Decode lossy JPEG of 12 bits with gdcm directly, because pydicom does not support it.

    With 16 bits allocated, gdcm would try 8 bits first and print an error, so 12 are passed
    (https://github.com/tfmoraes/python-gdcm/issues/35).
    """
    rows, columns = header.shape_rows_columns
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(code)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPixelFormat(gdcm.PixelFormat(1, _TWELVE_BITS, _TWELVE_BITS, _TWELVE_BITS - 1, 0))
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    )
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(JPEG_EXTENDED)))
    image.SetDataElement(element)
    # gdcm returns bytes as text, in which invalid UTF-8 is escaped.
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")
    dtype = f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}"
    return np.frombuffer(decoded, "<u2").reshape(header.shape_rows_columns).astype(dtype)


@contextmanager
def _without_logs() -> Iterator[None]:
    """Suppress the logs of pydicom, because they quote values of the header."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    """Convert errors of the decoders to FormatError, and suppress their warnings."""
    with warnings.catch_warnings(), _without_logs():
        warnings.simplefilter("ignore")
        try:
            yield
        except FormatError:
            raise
        except TruncatedPixelsError as problem:
            raise FormatError(f"{path}: cut short: {problem}. Download it again.") from problem
        except (CodeStreamError, HeaderError) as problem:
            raise FormatError(f"{path}: {problem}. Download it again.") from problem
        except Exception as problem:
            # An error of the disk or the network is not a fault of the file.
            if isinstance(problem, OSError) and problem.errno is not None:
                raise
            # The text of the error is left out: pydicom quotes values, which may name a patient.
            raise FormatError(
                f"{path}: does not decode ({type(problem).__name__}). Download it again."
            ) from problem
