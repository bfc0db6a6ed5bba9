"""Compressed DICOM pixels: whether a code stream is whole and of the slice, before it is decoded.

The decoders trust a stream's own header: one that names another size than the DICOM header makes
them write beyond their buffers, and one that is cut short comes out as pixels that never were.

References
----------
JPEG and JPEG Lossless: ITU-T T.81, annex B; JPEG-LS: ITU-T T.87, annex C;
JPEG 2000: ITU-T T.800, annex A.
"""

from typing import Final

__all__ = ["CodeStreamError", "check_jpeg", "check_jpeg2000"]

_JPEG_START: Final = b"\xff\xd8"
_JPEG2000_START: Final = b"\xff\x4f\xff\x51"
"""SOC, then SIZ, which must come second."""
_END: Final = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000."""
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""SOF0 to SOF15, without DHT, JPG and DAC between them, and SOF55 of JPEG-LS."""
_SCAN: Final = 0xDA
_BEFORE_SCAN: Final = frozenset({0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)})
"""DHT, DQT, DRI, LSE, COM and APP0 to APP15."""
_SIZ_BYTES: Final = 41
"""Length of SIZ with one component, its marker not counted."""


class CodeStreamError(ValueError):
    """A code stream that is not whole, or not of this slice; without the file's name."""


def check_jpeg(code: bytes, shape_rc: tuple[int, int], bits_allocated: int) -> None:
    """Check the marker segments before the first scan, and the end, of a JPEG or JPEG-LS stream.

    Parameters
    ----------
    code
        The stream; padding with zeros at the end is allowed.
    shape_rc
        Rows and columns that the DICOM header states.
    bits_allocated
        Of a decoded pixel.

    Raises
    ------
    CodeStreamError
        If the stream is cut short, of another size, or not one component.
    """
    _check_ends(code, _JPEG_START)
    at, frames = len(_JPEG_START), 0
    while True:
        marker, length = code[at + 1 : at + 2], int.from_bytes(code[at + 2 : at + 4])
        if code[at : at + 1] != b"\xff" or at + 2 + length > len(code):
            raise CodeStreamError(f"no marker segment at byte {at} of its code stream")
        segment = code[at + 4 : at + 2 + length]
        kind = marker[0]
        if kind == _SCAN:
            break
        if kind in _FRAMES:
            frames += 1
            found = (int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5]))
            _check_frame(
                found,
                shape_rc,
                segment[5:6] == b"\x01",
                int.from_bytes(segment[:1]),
                bits_allocated,
            )
        elif kind not in _BEFORE_SCAN:
            raise CodeStreamError(f"unexpected marker FF{kind:02X} at byte {at} of its code stream")
        at += 2 + length
    if frames != 1:
        raise CodeStreamError(f"its code stream has {frames} frame headers, expected 1")


def check_jpeg2000(code: bytes, shape_rc: tuple[int, int], bits_allocated: int) -> None:
    """Check the size segment and the end of a JPEG 2000 stream; see :func:`check_jpeg`."""
    _check_ends(code, _JPEG2000_START)
    siz = code[4 : 4 + _SIZ_BYTES]
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4]) for at in (4, 8, 12, 16))
    one = siz[:2] == _SIZ_BYTES.to_bytes(2) and siz[36:38] == b"\0\x01" and siz[39:41] == b"\1\1"
    precision = (siz[38] & 0x7F) + 1 if one else 0
    _check_frame((bottom - top, right - left), shape_rc, one, precision, bits_allocated)


def _check_ends(code: bytes, start: bytes) -> None:
    if not code.startswith(start):
        raise CodeStreamError(f"its code stream does not start with {start!r}")
    whole = code.rstrip(b"\0")
    if not whole.endswith(_END):
        raise CodeStreamError(f"its code stream is cut short: it does not end with {_END!r}")


def _check_frame(
    found_rc: tuple[int, int],
    expected_rc: tuple[int, int],
    one_component: bool,  # noqa: FBT001
    precision: int,
    bits_allocated: int,
) -> None:
    if found_rc != expected_rc:
        raise CodeStreamError(
            f"its code stream is of {found_rc[0]} x {found_rc[1]} pixels, its header of "
            f"{expected_rc[0]} x {expected_rc[1]}"
        )
    if not one_component:
        raise CodeStreamError("its code stream is not of one component")
    if not 1 < precision <= bits_allocated:
        raise CodeStreamError(
            f"its code stream is of {precision} bits a pixel, its header allocates {bits_allocated}"
        )
