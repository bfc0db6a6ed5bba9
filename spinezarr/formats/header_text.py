"""What messages say of the text in a source file: its kind, never the text itself.

Any text of a header or table may name a patient, and messages end in terminals, reports and bug
trackers. So a message shows numbers and words that a format itself defines, and describes all else.
"""

import re
from collections.abc import Collection
from typing import Final

from spinezarr.text import count_noun

__all__ = ["redact_header_text"]

_NUMBER: Final = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_SHOWN: Final = 60
"""Characters of numbers in a message."""


def redact_header_text(text: str, known: Collection[str] = ()) -> str:
    """Show numbers and words that are ``known``; say of any other text only how long it is.

    Examples
    --------
    >>> [redact_header_text(text, known={"mm"}) for text in ("0.5 0.5", "mm", "Jane Doe")]
    ["'0.5 0.5'", "'mm'", 'a text of 8 characters']
    """
    if text in known or all(map(_NUMBER.fullmatch, text.split())):
        return repr(text[:_SHOWN])
    return f"a text of {count_noun(len(text), 'character')}"
