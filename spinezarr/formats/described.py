"""What messages say of the text in a source file: its kind, never the text itself.

Any text of a header or table may name a patient, and messages end in terminals, reports and bug
trackers. So a message shows numbers and words that a format itself defines, and describes all else.
"""

import re
from collections.abc import Collection
from typing import Final

__all__ = ["described_bytes", "described_text"]

_KINDS: Final = {
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"<!do": "a web page",
    b"<htm": "a web page",
}
"""What files that are taken for others begin with, in small letters."""
_TEXT: Final = frozenset({*range(0x20, 0x7F), *b"\t\r\n"})
_NUMBER: Final = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_SHOWN: Final = 60
"""Characters of numbers in a message."""


def described_bytes(start: bytes) -> str:
    r"""Say what the first bytes of a file look like.

    Examples
    --------
    >>> described_bytes(b"<!DOCTYPE html>"), described_bytes(b"Jane"), described_bytes(b"\x05\xff")
    ('a web page', 'text', 'binary data')
    """
    if not start:
        return "an empty file"
    for magic, kind in _KINDS.items():
        if start.startswith(magic) or start.lower().startswith(magic):
            return kind
    if not any(start):
        return "zeros"
    return "binary data" if set(start) - _TEXT else "text"


def described_text(text: str, known: Collection[str] = ()) -> str:
    """Show numbers and words that are ``known``; say of any other text only how long it is.

    Examples
    --------
    >>> described_text("0.5 0.5"), described_text("mm", {"mm"}), described_text("Jane Doe")
    ("'0.5 0.5'", "'mm'", 'a text of 8 characters')
    """
    if text in known or all(map(_NUMBER.fullmatch, text.split())):
        return repr(text[:_SHOWN])
    return f"a text of {len(text)} characters"
