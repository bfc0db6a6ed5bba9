r"""Regular expressions of recipes, which end whatever their author meant.

They are Python's. A careless or malicious one, such as ``(?:a|aa)+b``, may try more ways than can
be counted, and so may a harmless-looking ``{a}_{b}_{c}_{d}``. So they are compared by the package
regex, which stops when its time is up, and that time is an allowance which all expressions share:
each comparison adds to it by the length of the text, a hundred times what sound expressions need,
and takes from it what it took.

What regex would read otherwise than Python does is refused, and so is what it would unroll while it
compiles: ``(?:a{60000}){60000}``.
"""

import re
import time
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import Final, TypeVar

import regex

from spinezarr.errors import RecipeLimitError
from spinezarr.text import to_printable

__all__ = ["MAX_REGEX_CHARACTERS", "BoundedRegex", "compile_bounded"]

T = TypeVar("T")

MAX_REGEX_CHARACTERS: Final = 20_000
"""Of an expression, those that are made of others included. The longest of a shipped recipe has
400."""
_MOST_REPEATED: Final = 4_000
"""Characters that repetition adds to those that stand there."""
_FULL_S: Final = 5.0
_LONGEST_S: Final = 1.0
_PER_TEXT_S: Final = 2e-5
_PER_CHARACTER_S: Final = 2e-6
_SHOWN: Final = 100
_TOKEN: Final = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\()|(\))|(\+)|\{(\d*)(?:,(\d*))?\}|(\{)|.",
    re.DOTALL,
)
_VERBOSE: Final = re.compile(r"\(\?[a-zA-Z]*x")


class _Allowance:
    """Seconds that expressions may still take."""

    def __init__(self) -> None:
        self._left_s = _FULL_S

    def before(self, length: int) -> float:
        """Return how long a comparison with so many characters may take."""
        added = _PER_TEXT_S + _PER_CHARACTER_S * length
        self._left_s = min(_FULL_S, self._left_s + added)
        return min(self._left_s, _LONGEST_S + added)

    def after(self, took_s: float) -> None:
        self._left_s -= took_s
        if self._left_s <= 0:
            self._left_s = _FULL_S  # whoever goes on does so with another recipe
            raise TimeoutError


_ALLOWANCE: Final = _Allowance()


class BoundedRegex:
    """A regular expression of a recipe; made by :func:`compile_bounded`.

    Parameters
    ----------
    text
        The expression.
    ignore_case
        Whether capitals count as small letters.

    Raises
    ------
    ValueError
        If it is none of Python's, or longer than it may be, written out or as it is.
    """

    def __init__(self, text: str, *, ignore_case: bool) -> None:
        self.text = text
        self._flags = regex.DOTALL | (regex.IGNORECASE if ignore_case else 0)
        if len(text) > MAX_REGEX_CHARACTERS:
            raise ValueError(
                f"it has {len(text)} characters, expected at most {MAX_REGEX_CHARACTERS}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                compiled = re.compile(text, re.DOTALL)
        except FutureWarning as problem:
            raise ValueError(f"{problem}; put a backslash before '['") from problem
        except (re.error, OverflowError) as problem:
            raise ValueError(str(problem)) from problem
        except RecursionError as problem:
            raise ValueError("its groups are nested too deeply") from problem
        self.names = frozenset(compiled.groupindex)
        _check_written_out(text)

    @cached_property
    def _compiled(self) -> "regex.Pattern[str]":
        return regex.compile(self.text, self._flags | regex.VERSION0)

    def fullmatch(self, text: str) -> "regex.Match[str] | None":
        """Return the match of a whole text; None if it does not match.

        Raises
        ------
        RecipeLimitError
            If that takes too long.
        """
        return self._in_time(text, self._compiled.fullmatch)

    def findall(self, text: str) -> list[str]:
        """Return all that matches within a text.

        Raises
        ------
        RecipeLimitError
            If that takes too long.
        """

        def find(text: str, *, timeout: float) -> list[str]:
            return [match[0] for match in self._compiled.finditer(text, timeout=timeout)]

        return self._in_time(text, find)

    def _in_time(self, text: str, compare: Callable[..., T]) -> T:
        limit_s, began_s = _ALLOWANCE.before(len(text)), time.perf_counter()
        try:
            found = compare(text, timeout=limit_s)
            _ALLOWANCE.after(time.perf_counter() - began_s)
        except (TimeoutError, MemoryError) as problem:
            raise self._endless(text) from problem
        return found

    def _endless(self, text: str) -> RecipeLimitError:
        return RecipeLimitError(
            f"the regular expression {_shortened(self.text)!r} takes too long to be compared with "
            f"{to_printable(_shortened(text))!r}. Make it simpler: let no two of its parts match "
            "the same text side by side, as in (a|aa)+ or .*.*"
        )


@cache
def compile_bounded(text: str, *, ignore_case: bool = False) -> BoundedRegex:
    """Return an expression, the same for the same text; see :class:`BoundedRegex`.

    Examples
    --------
    >>> compile_bounded("sub-(?P<id>[0-9]+)").fullmatch("sub-017")["id"]
    '017'
    """
    return BoundedRegex(text, ignore_case=ignore_case)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_written_out(text: str) -> None:
    """Refuse what regex would unroll without end, or read otherwise than Python does."""
    if _VERBOSE.search(text):
        raise ValueError("the flag x is not known here")
    # Of each group that is open, the outermost first: its size, and that of its last item.
    open_groups: list[tuple[int, int]] = [(0, 0)]
    most = len(text) + _MOST_REPEATED
    for opens, closes, plus, least, greatest, brace in map(_kinds, _TOKEN.finditer(text)):
        size, last = open_groups[-1]
        if brace:
            raise ValueError("a brace holds a count, as in {2} or {2,5}; else put a \\ before it")
        if opens:
            open_groups.append((0, 0))
            continue
        if closes:
            if len(open_groups) == 1:
                raise ValueError("its groups cannot be told apart; write it without (?#...)")
            open_groups.pop()
            (before, _), item = open_groups[-1], size + 1
            size, last = before + item, item
        elif plus or least or greatest:
            times = 2 if plus else max(_number(least), _number(greatest))
            size, last = size + last * (times - 1), last * times
        else:
            size, last = size + 1, 1
        open_groups[-1] = (size, last)
        if size > most:
            raise ValueError(
                f"what it repeats has more than {_MOST_REPEATED} characters when it is written "
                "out; names of files have a few hundred"
            )


def _kinds(token: re.Match[str]) -> tuple[str, ...]:
    return token.groups("")


def _number(text: str) -> int:
    return int(text[:10] or 1)
