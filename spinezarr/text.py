"""How are names, counts and system errors made safe to print in messages?

References
----------
Unicode normalization forms: https://www.unicode.org/reports/tr15/
General categories and joiners: https://www.unicode.org/versions/latest/core-spec/chapter-23/
Attacks by text that is not what it looks like: https://www.unicode.org/reports/tr36/
"""

import csv
import difflib
import errno
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Self

__all__ = [
    "NAME_BYTES",
    "MultilineText",
    "add_path_to_disk_full_error",
    "count_noun",
    "describe_os_error",
    "did_you_mean",
    "escape_markdown",
    "is_printable",
    "is_valid_file_name",
    "megabytes",
    "similar_names",
    "to_ascii_json",
    "to_csv",
    "to_nfc",
    "to_printable",
    "to_printable_json",
]

MAX_LINE_LENGTH: Final = 2000
"""Most characters of a text. The middle of a longer text is left out. No message of spinezarr is
that long."""
MAX_LINES: Final = 200
_ELLIPSIS: Final = " … "
_VISIBLE_CATEGORIES: Final = {"Zs", "Co"}
"""Visible categories besides those of ``str.isprintable``: spaces, characters of private use."""
_VISIBLE_FORMATS: Final = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Signs of Arabic, Syriac and Kaithi that are visible, although Unicode counts them as format
characters (property Prepended_Concatenation_Mark)."""
_JOINERS: Final = frozenset("\u200c\u200d")
"""Joiners, which form ligatures in Persian and Indic scripts and combine emoji."""
_INVISIBLE_LETTERS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks that are invisible (Default_Ignorable_Code_Point)."""
_MARKDOWN: Final = re.compile(
    r"[\\`*_\[\]<>&|~$@#]|:(?=//)|(?<=www)\.|^[+-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]", re.IGNORECASE
)
_CHARACTER_REFERENCES: Final = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}
_NO_SPACE_ADVICE: Final = {
    errno.ENOSPC: "Free some space there. Then run the same command again.",
    errno.EDQUOT: "Free some space there, or raise the quota. Then run the same command again.",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f). Then run the same command again.",
}
"""Next step for each error that reports no space. The system does not name the file."""
NAME_BYTES: Final = 255
"""Longest file name on common file systems in bytes (``NAME_MAX``)."""
_STRAY_BYTES: Final = range(0xDC80, 0xDD00)
"""Code points that stand for bytes of a file name that are not UTF-8 (PEP 383)."""
_FIRST_STRAY_BYTE: Final = 0xDC00
_MOST_SUGGESTIONS: Final = 3
_SHORTEST_PART: Final = 3
"""Fewest characters of a part of a name by which the name is suggested."""
_MOST_COMPARED: Final = 20_000
"""Most names that a mistyped name is compared with."""


def to_nfc(text: str) -> str:
    r"""Return a name in the Unicode form NFC, in which names are compared and stored.

    macOS writes file names decomposed (NFD); most editors and tables write them composed (NFC). The
    same name then has different code points.

    Examples
    --------
    >>> to_nfc("Mu\u0308ller") == "Müller"
    True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class MultilineText(str):
    r"""Text of several lines that is safe to print.

    A line break inside one of the lines is escaped, so that a foreign name cannot begin a line that
    looks like one of spinezarr's.

    Parameters
    ----------
    *lines
        Lines of the text. Each is escaped by :func:`to_printable`.

    Examples
    --------
    >>> print(MultilineText("one", "two\nand \x1b more"))
    one
    two\x0aand \x1b more
    """

    __slots__ = ()

    def __new__(cls, *lines: str) -> Self:  # noqa: D102  see the class
        safe_lines = [to_printable(str(line)) for line in lines[:MAX_LINES]]
        if len(lines) > MAX_LINES:
            safe_lines.append(f"... and {len(lines) - MAX_LINES} more lines")
        return super().__new__(cls, "\n".join(safe_lines))

    def __reduce__(self) -> tuple[type[Self], tuple[str, ...]]:
        return type(self), tuple(str(self).split("\n"))


def to_printable(text: str, longest: int | None = MAX_LINE_LENGTH) -> str:
    r"""Escape foreign text so that it is safe to print.

    Escapes replace control characters, changes of the writing direction, invisible characters and
    code points that are no characters. Names in any language and emoji stay as they are. A
    backslash is not escaped, so the original text cannot always be told from the result.

    Parameters
    ----------
    text
        One line. A :class:`MultilineText` is returned unchanged.
    longest
        Number of characters above which the middle is left out; None to keep all.

    Examples
    --------
    >>> print(to_printable("a\x1b[2Jb"), to_printable("Mu\udcfcller"))
    a\x1b[2Jb Mu\xfcller
    >>> to_printable("x" * 9, longest=7)
    'xx … xx'
    """
    if isinstance(text, MultilineText):
        return text
    escaped = _escaped(text[:longest])
    if longest is None or len(text) <= longest >= len(escaped):
        return escaped
    # The start and the end matter most: an error message ends with the next step.
    half = (longest - len(_ELLIPSIS)) // 2
    return f"{escaped[:half]}{_ELLIPSIS}{_escaped(text[-longest:])[-half:]}"


def is_printable(text: str) -> bool:
    """Whether a text can be printed without escapes."""
    return to_printable(text, None) == text


def to_printable_json(value: Any) -> Any:  # noqa: ANN401  any JSON value
    r"""Return a JSON value with all its texts and keys escaped by :func:`to_printable`.

    Examples
    --------
    >>> print(to_printable_json({"title": ["a\x1b[2J", 1]})["title"][0])
    a\x1b[2J
    """
    if isinstance(value, str):
        return to_printable(value, None)
    if isinstance(value, Mapping):
        return {to_printable(key, None): to_printable_json(item) for key, item in value.items()}
    return [to_printable_json(item) for item in value] if isinstance(value, list) else value


def _escaped(text: str) -> str:
    if text.isprintable() and (text.isascii() or _INVISIBLE_LETTERS.isdisjoint(text)):
        return text
    return "".join(
        char if _is_visible(char) or _joins(text, index) else _escape(char)
        for index, char in enumerate(text)
    )


def _is_visible(char: str) -> bool:
    if char.isprintable():
        return char not in _INVISIBLE_LETTERS
    return unicodedata.category(char) in _VISIBLE_CATEGORIES or char in _VISIBLE_FORMATS


def _joins(text: str, index: int) -> bool:
    """Whether a character is a joiner between two visible characters outside ASCII."""
    neighbors = text[index - 1 : index] + text[index + 1 : index + 2]
    return (
        text[index] in _JOINERS
        and len(neighbors) == 2  # noqa: PLR2004  before and after
        and all(not char.isascii() and _is_visible(char) for char in neighbors)
    )


def _escape(char: str) -> str:
    code = ord(char)
    byte = code - _FIRST_STRAY_BYTE if code in _STRAY_BYTES else code
    if byte <= 0xFF:  # noqa: PLR2004  one byte
        return f"\\x{byte:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004


def to_ascii_json(value: object, *, indent: int | None = 2) -> str:
    r"""Return a value as JSON in printable ASCII, from which every string can be read back.

    Characters beyond ASCII are escaped. So is DEL, the only control character that JSON does not
    require to escape (RFC 8259, section 7). A number that is not finite becomes null, because JSON
    has no such numbers.

    Examples
    --------
    >>> print(to_ascii_json(["Mü\x1b\x7f", float("nan")], indent=None))
    ["M\u00fc\u001b\u007f", null]
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nonfinite(value), indent=indent, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def escape_markdown(text: str) -> str:
    r"""Escape foreign text so that Markdown shows it literally, without links, tags or formulas.

    Characters with a meaning in CommonMark, in GitHub's tables and links, or in the formulas of
    GitHub and Jupyter get a backslash. Those with a meaning in HTML become character references
    (https://spec.commonmark.org/0.31.2/#backslash-escapes, https://github.github.com/gfm/).

    Examples
    --------
    >>> print(escape_markdown("<b>*L1* | [a](b)"))
    &lt;b&gt;\*L1\* \| \[a\](b)
    """
    return _MARKDOWN.sub(
        lambda match: _CHARACTER_REFERENCES.get(match[0], f"\\{match[0]}"), to_printable(text)
    )


def _without_nonfinite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_valid_file_name(name: str) -> bool:
    r"""Whether a text can be the name of a file or folder, without leading to another folder.

    Examples
    --------
    >>> [is_valid_file_name(name) for name in ("liver_9", "1.3.6", "..", "a/b", "", "a\0b")]
    [True, True, False, False, False, False]
    """
    is_too_long = len(name.encode(errors="surrogateescape")) > NAME_BYTES
    return name not in {"", ".", ".."} and {"/", "\0"}.isdisjoint(name) and not is_too_long


def count_noun(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun in singular or plural.

    Parameters
    ----------
    count
        The number.
    noun
        Singular of the noun.
    plural
        Plural of the noun; by default ``noun`` with an s.

    Examples
    --------
    >>> count_noun(1, "scan"), count_noun(1005, "scan"), count_noun(0, "entry", "entries")
    ('1 scan', '1005 scans', '0 entries')
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def megabytes(size_bytes: float) -> str:
    """Format a size in MB of 10^6 bytes.

    Examples
    --------
    >>> megabytes(34_627_583)
    '34.6 MB'
    """
    return f"{size_bytes / 1e6:,.1f} MB"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names that are most like a mistyped one.

    It begins with a blank, so that it can follow a sentence. It is empty if no name is alike.

    Examples
    --------
    >>> did_you_mean("prediciton", ["label", "prediction"])
    " Did you mean 'prediction'?"
    >>> did_you_mean("0007", ["1.3.6.1.4.0007", "1.3.6.1.4.0008"])
    " Did you mean '1.3.6.1.4.0007'?"
    >>> did_you_mean("x", ["label"])
    ''
    """
    choices = " or ".join(map(repr, similar_names(name, known)))
    return f" Did you mean {choices}?" if choices else ""


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that are like a mistyped one, the most similar first.

    Examples
    --------
    >>> similar_names("LIVER_1", ["liver_0", "liver_1", "colon"])
    ['liver_1', 'liver_0']
    """
    spelled = {text.lower(): text for text in islice(known, _MOST_COMPARED)}
    wanted = name[:NAME_BYTES].lower()
    alike = difflib.get_close_matches(wanted, spelled, _MOST_SUGGESTIONS)
    if not alike and len(wanted) >= _SHORTEST_PART:
        alike = [text for text in spelled if wanted in text][:_MOST_SUGGESTIONS]
    return [spelled[text] for text in alike]


@contextmanager
def add_path_to_disk_full_error(path: str) -> Iterator[None]:
    """Add the path of the written file to a system error that reports no space."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _NO_SPACE_ADVICE and problem.filename is None:
            problem.filename = path
        raise


def describe_os_error(problem: OSError) -> str:
    """Return a system error as a message with the file, the problem and the next step.

    Examples
    --------
    >>> describe_os_error(IsADirectoryError(errno.EISDIR, "Is a directory", "out.nii"))
    'out.nii: Is a directory.'
    >>> describe_os_error(OSError(errno.ENOSPC, "No space left on device", "a.nii"))
    'a.nii: No space left on device. Free some space there. Then run the same command again.'
    """
    prefix = f"{problem.filename}: " if problem.filename else ""
    next_step = _NO_SPACE_ADVICE.get(problem.errno or 0)
    return f"{prefix}{problem.strerror or problem}.{f' {next_step}' if next_step else ''}"


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, with cells that are printable and that no spreadsheet computes.

    Examples
    --------
    >>> print(to_csv(("scan", "dice"), [("=1+1", 0.5), ("a,b", None)]), end="")
    scan,dice
    '=1+1,0.5
    "a,b",
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _csv_cell(cell: Any) -> Any:  # noqa: ANN401  any cell of csv.writer
    """Return a cell that is printable, and that no spreadsheet reads as a formula.

    Spreadsheets compute cells that begin with certain characters, even in quotes
    (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    if not isinstance(cell, str):
        return cell
    text = to_printable(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
