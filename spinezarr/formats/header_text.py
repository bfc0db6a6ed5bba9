"""How may a message mention text from a source file without revealing it?

Any text of a header or table may name a patient, and messages end up in terminals, reports and bug
trackers. A message therefore shows only numbers and words that a format defines. It describes any
other text by its length.
"""

import re
from collections.abc import Collection
from typing import Final

from spinezarr.text import count_noun

__all__ = ["redact_header_text"]

_NUMBER: Final = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_MAX_SHOWN_CHARACTERS: Final = 60
"""Longest number shown in a message, in characters."""


def redact_header_text(text: str, known: Collection[str] = ()) -> str:
    """Return a number or a ``known`` word in quotes, and only the length of any other text.

    Examples
    --------
    >>> [redact_header_text(text, known={"mm"}) for text in ("0.5 0.5", "mm", "Jane Doe")]
    ["'0.5 0.5'", "'mm'", 'a text of 8 characters']
    """
    if text in known or all(map(_NUMBER.fullmatch, text.split())):
        return repr(text[:_MAX_SHOWN_CHARACTERS])
    return f"a text of {count_noun(len(text), 'character')}"
