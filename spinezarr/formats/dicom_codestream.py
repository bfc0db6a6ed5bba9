"""Is a compressed code stream complete, and does it match its slice, before it is decoded?

The decoders trust the header of the stream. If it states another size than the DICOM header, they
write beyond their buffers. If the stream is cut short, they return invented pixels.

References
----------
JPEG and JPEG Lossless: ITU-T T.81, annex B; JPEG-LS: ITU-T T.87, annex C;
JPEG 2000: ITU-T T.800, annex A; RLE: DICOM PS3.5, annex G.
"""

import math
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

__all__ = ["CodeStreamError", "check_jpeg", "check_jpeg2000", "check_rle"]

_JPEG_START: Final = b"\xff\xd8"
_JPEG2000_START: Final = b"\xff\x4f\xff\x51"
"""Markers SOC and SIZ, which must come second."""
_END: Final = b"\xff\xd9"
"""End marker: EOI of JPEG and JPEG-LS, and EOC of JPEG 2000."""
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Frame markers: SOF0 to SOF15 without DHT, JPG and DAC, and SOF55 of JPEG-LS."""
_SOS: Final = 0xDA
_ALLOWED_BEFORE_SCAN: Final = frozenset({0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)})
"""Markers allowed before the scan: DHT, DQT, DRI, LSE, COM and APP0 to APP15."""
_SIZ_BYTES: Final = 41
"""Length of SIZ with one component, without its marker."""
_STRAY_MARKER: Final = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""Any marker except restarts. Within entropy-coded pixels, a smaller byte follows 0xFF."""
_MAX_TILES: Final = 1024
"""Largest number of tiles, because the decoder keeps kilobytes for each.

In a slice of 512 x 512 pixels, these are tiles of 16 x 16 pixels.
"""
_MAX_BLOCKS: Final = 1 << 16
"""Largest number of precincts or code blocks. The decoder keeps about 2 kB for each."""
_MAX_LAYERS: Final = 256
_COD, _COC, _SOT = 0x52, 0x53, 0x90
_SOD: Final = b"\xff\x93"
"""Marker SOD. A tile part has no markers after it."""
_CODING_BYTES: Final = 5
"""Bytes before the precincts: levels, exponents of a code block, its style and the transform."""
_RLE_HEADER: Final = 64
_RLE_REPEAT: Final = 129
"""Control bytes from this value on repeat the next byte (257 - control byte) times."""
_RLE_NO_OPERATION: Final = 128
_RLE_PADDING: Final = 128
"""Surplus pixels that a segment may hold: as many as one control byte can add."""


class CodeStreamError(ValueError):
    """A code stream is incomplete or does not match its slice. The message names no file."""


def check_jpeg(
    code: bytes, shape_rows_columns: tuple[int, int], bits_allocated: int, frames: AbstractSet[int]
) -> int:
    """Check the marker segments and the end of a JPEG or JPEG-LS stream with one scan.

    Parameters
    ----------
    code
        The stream. Zeros or one other byte of padding may follow its end.
    shape_rows_columns
        Rows and columns that the DICOM header states.
    bits_allocated
        Bits of a decoded pixel.
    frames
        Second bytes of the SOF markers that the transfer syntax allows.

    Returns
    -------
    int
        Bits per pixel in the stream.

    Raises
    ------
    CodeStreamError
        If the stream is cut short, has another size or process, or does not have one component in
        one scan.
    """
    end = _end_of(code, _JPEG_START)
    offset, n_frame_headers, precision = len(_JPEG_START), 0, 0
    while True:
        marker, length = (
            code[offset + 1 : offset + 2],
            int.from_bytes(code[offset + 2 : offset + 4]),
        )
        if code[offset : offset + 1] != b"\xff" or offset + 2 + length > len(code):
            raise CodeStreamError(f"its code stream has no marker segment at byte {offset}")
        segment = code[offset + 4 : offset + 2 + length]
        kind = marker[0]
        if kind == _SOS:
            break
        if kind in _FRAME_MARKERS & frames:
            n_frame_headers += 1
            shape = (int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5]))
            precision = int.from_bytes(segment[:1])
            _check_frame(
                shape, shape_rows_columns, segment[5:6] == b"\x01", precision, bits_allocated
            )
        elif kind not in _ALLOWED_BEFORE_SCAN:
            raise CodeStreamError(
                f"its code stream has the unexpected marker FF{kind:02X} at byte {offset}"
            )
        offset += 2 + length
    if n_frame_headers != 1:
        raise CodeStreamError(f"its code stream has {n_frame_headers} frame headers, expected 1")
    stray = _STRAY_MARKER.search(code, offset + 2 + length, end)
    if stray is not None:
        raise CodeStreamError(
            f"its code stream has the marker {stray[0].hex().upper()} within its pixels, at byte "
            f"{stray.start()}"
        )
    return precision


def check_jpeg2000(code: bytes, shape_rows_columns: tuple[int, int], bits_allocated: int) -> None:
    """Check the headers and the end of a JPEG 2000 stream; see :func:`check_jpeg`."""
    _end_of(code, _JPEG2000_START)
    siz = code[4 : 4 + _SIZ_BYTES]
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4]) for at in (4, 8, 12, 16))
    is_one_component = (
        siz[:2] == _SIZ_BYTES.to_bytes(2) and siz[36:38] == b"\0\x01" and siz[39:41] == b"\1\1"
    )
    precision = (siz[38] & 0x7F) + 1 if is_one_component else 0
    _check_frame(
        (bottom - top, right - left),
        shape_rows_columns,
        is_one_component,
        precision,
        bits_allocated,
    )
    width, height, first_x, first_y = (int.from_bytes(siz[at : at + 4]) for at in (20, 24, 28, 32))
    if min(width, height) < 1 or first_x > left or first_y > top:
        raise CodeStreamError("the tiles of its code stream do not cover it")
    tiles = math.ceil((right - first_x) / width) * math.ceil((bottom - first_y) / height)
    if tiles > _MAX_TILES:
        raise CodeStreamError(
            f"its code stream is cut into {tiles} tiles, expected at most {_MAX_TILES}"
        )
    _check_coding(code, math.prod(shape_rows_columns))


def _check_coding(code: bytes, pixels: int) -> None:
    """Refuse coding parameters that take much memory, in the main header and in tile headers."""
    for kind, segment, in_tile in _segments(code):
        if in_tile and kind in (_COD, _COC):
            raise CodeStreamError("the tiles of its code stream are coded in different ways")
        if kind == _COD:
            layers = int.from_bytes(segment[2:4])
            if layers > _MAX_LAYERS:
                raise CodeStreamError(
                    f"its code stream has {layers} layers, expected at most {_MAX_LAYERS}"
                )
            _check_blocks(segment[:1], segment[5:], pixels)
        elif kind == _COC:
            _check_blocks(segment[1:2], segment[2:], pixels)


def _segments(code: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (marker, content, whether it belongs to a tile) for each header segment."""
    offset, tile_part_start, tile_part_bytes = len(_JPEG_START), 0, 0
    while code[offset : offset + 2] != _END:
        if tile_part_start and code[offset : offset + 2] == _SOD:
            if tile_part_bytes == 0:  # the last tile part, which ends with the stream
                return
            offset, tile_part_start = max(tile_part_start + tile_part_bytes, offset + 2), 0
            continue
        length = int.from_bytes(code[offset + 2 : offset + 4])
        segment = code[offset + 4 : offset + 2 + length]
        if code[offset : offset + 1] != b"\xff" or len(segment) != length - 2:
            raise CodeStreamError(f"its code stream has no marker segment at byte {offset}")
        kind = code[offset + 1]
        if kind == _SOT:
            tile_part_start, tile_part_bytes = offset, int.from_bytes(segment[2:6])
        yield kind, segment, tile_part_start > 0
        offset += 2 + length


def _check_blocks(style: bytes, coding: bytes, pixels: int) -> None:
    """Refuse too many code blocks, or too many precincts if ``style`` states their size."""
    if len(coding) < _CODING_BYTES:
        raise CodeStreamError("its code stream states no coding parameters")
    areas = [coding[1] + 2 + coding[2] + 2]
    if style[0] & 1:
        areas += [(size & 15) + (size >> 4) for size in coding[_CODING_BYTES:]]
    blocks = pixels >> min(areas)
    if blocks > _MAX_BLOCKS:
        raise CodeStreamError(
            f"its code stream is cut into {blocks} blocks, expected at most {_MAX_BLOCKS}"
        )


def check_rle(code: bytes, shape_rows_columns: tuple[int, int], bits_allocated: int) -> None:
    """Check that each RLE segment expands to one byte for each pixel.

    A segment may expand 64 times, and the decoder checks this only after it has allocated memory.

    Raises
    ------
    CodeStreamError
        If the number or the expanded length of the segments is wrong.
    """
    count = int.from_bytes(code[:4], "little")
    if len(code) < _RLE_HEADER or count != bits_allocated // 8:
        raise CodeStreamError(
            f"its code stream has {count} RLE segments, expected {bits_allocated // 8}"
        )
    starts = [int.from_bytes(code[4 * n : 4 * n + 4], "little") for n in range(1, count + 1)]
    ends = [*starts[1:], len(code)]
    expected = math.prod(shape_rows_columns)
    for start, end in zip(starts, ends, strict=True):
        if not _RLE_HEADER <= start <= end <= len(code):
            raise CodeStreamError(f"an RLE segment is at byte {start} to {end} of its code stream")
        n_pixels = _rle_bytes(code, start, end, expected)
        if not expected <= n_pixels <= expected + _RLE_PADDING:
            raise CodeStreamError(
                f"an RLE segment of its code stream holds {n_pixels} pixels, expected {expected}"
            )


def _rle_bytes(code: bytes, offset: int, end: int, expected: int) -> int:
    """Return the number of bytes that a segment expands to; stop soon after ``expected``."""
    n_bytes = 0
    while offset < end and n_bytes <= expected + _RLE_PADDING:
        control = code[offset]
        if control >= _RLE_REPEAT:
            n_bytes += 257 - control if offset + 1 < end else 0
            offset += 2
        elif control < _RLE_NO_OPERATION:
            n_bytes += min(control + 1, end - offset - 1)
            offset += control + 2
        else:
            offset += 1
    return n_bytes


def _end_of(code: bytes, start: bytes) -> int:
    """Check the start and end markers of a code stream, and return the offset of the end marker.

    A fragment has an even number of bytes. Encoders should pad it with a zero, but not all do
    (PS3.5 section 8.2 and annex A.4).
    """
    if not code.startswith(start):
        raise CodeStreamError(f"its code stream does not start with {start!r}")
    for trimmed in (code.rstrip(b"\0"), code[:-1]):
        if trimmed.endswith(_END):
            return len(trimmed) - len(_END)
    raise CodeStreamError(f"its code stream is cut short: it does not end with {_END!r}")


def _check_frame(
    shape_rows_columns: tuple[int, int],
    expected_rows_columns: tuple[int, int],
    one_component: bool,  # noqa: FBT001
    precision: int,
    bits_allocated: int,
) -> None:
    if shape_rows_columns != expected_rows_columns:
        raise CodeStreamError(
            f"its code stream has {shape_rows_columns[0]} x {shape_rows_columns[1]} pixels, "
            f"its header states {expected_rows_columns[0]} x {expected_rows_columns[1]}"
        )
    if not one_component:
        raise CodeStreamError("its code stream does not have exactly one component")
    if not 1 < precision <= bits_allocated:
        raise CodeStreamError(
            f"its code stream has {precision} bits per pixel, its header allocates {bits_allocated}"
        )
