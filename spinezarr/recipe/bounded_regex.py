r"""How are the regular expressions of a recipe matched in bounded time and memory?

They have Python's syntax. A careless or malicious expression such as ``(?:a|aa)+b`` may take
exponential time, and so may the pattern ``{a}_{b}_{c}_{d}``. The package regex therefore does the
matching, because it accepts a time-out. All expressions of a process share one time budget. Each
match adds time to it in proportion to the length of the text, a hundred times what sound
expressions need, and subtracts the time it took.

Expressions that regex would read differently from Python are refused. So are expressions that regex
would unroll to an enormous size when it compiles them, such as ``(?:a{60000}){60000}``.
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

__all__ = ["MAX_REGEX_CHARACTERS", "BoundedRegex", "TimeBudget", "compile_bounded"]

_Result = TypeVar("_Result")

MAX_REGEX_CHARACTERS: Final = 20_000
"""Longest expression in characters. The longest expression of a shipped recipe has 400."""
_MAX_UNROLLED_CHARACTERS: Final = 4_000
"""Largest number of characters that the repetitions of an expression may add when written out."""
_MAX_MATCH_S: Final = 1.0
_GRANT_PER_TEXT_S: Final = 2e-5
_GRANT_PER_CHARACTER_S: Final = 2e-6
_MAX_SHOWN: Final = 100
_TOKEN: Final = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\()|(\))|(\+)|\{(\d*)(?:,(\d*))?\}|(\{)|.",
    re.DOTALL,
)
_VERBOSE: Final = re.compile(r"\(\?[a-zA-Z]*x")


class TimeBudget:
    """Processor time in seconds that expressions share.

    Parameters
    ----------
    full_s
        Processor time in seconds at the start, which is also the largest.
    """

    def __init__(self, full_s: float = 5.0) -> None:
        self._full_s = full_s
        self._remaining_s = full_s

    def grant(self, length: int) -> float:
        """Add time for a text of ``length`` characters; return its time limit in seconds."""
        added = _GRANT_PER_TEXT_S + _GRANT_PER_CHARACTER_S * length
        self._remaining_s = min(self._full_s, self._remaining_s + added)
        return min(self._remaining_s, _MAX_MATCH_S + added)

    def spend(self, took_s: float) -> None:
        """Subtract the processor time that a match took.

        Raises
        ------
        TimeoutError
            If no time is left.
        """
        self._remaining_s -= took_s
        if self._remaining_s <= 0:
            self._remaining_s = self._full_s  # a caller that goes on uses another recipe
            raise TimeoutError


_PROCESS_BUDGET: Final = TimeBudget()
"""Time budget of all expressions of this process."""


class BoundedRegex:
    """A regular expression of a recipe, made by :func:`compile_bounded`.

    Parameters
    ----------
    text
        Regular expression in Python's syntax.
    ignore_case
        Whether to ignore the case of letters.
    budget
        Time budget for all matches; the one of the process by default.

    Raises
    ------
    ValueError
        If this is no regular expression of Python, or if it is too long, as written or with its
        repetitions written out.
    """

    def __init__(
        self, text: str, *, ignore_case: bool, budget: TimeBudget = _PROCESS_BUDGET
    ) -> None:
        self.text = text
        self._budget = budget
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
        _check_unrolled(text)

    @cached_property
    def _compiled(self) -> "regex.Pattern[str]":
        return regex.compile(self.text, self._flags | regex.VERSION0)

    def fullmatch(self, text: str) -> "regex.Match[str] | None":
        """Return the match of the whole text; None if it does not match.

        Raises
        ------
        RecipeLimitError
            If matching takes too long.
        """
        return self._within_budget(text, self._compiled.fullmatch)

    def findall(self, text: str) -> list[str]:
        """Return all matches within a text.

        Raises
        ------
        RecipeLimitError
            If matching takes too long.
        """

        def find(text: str, *, timeout: float) -> list[str]:
            return [match[0] for match in self._compiled.finditer(text, timeout=timeout)]

        return self._within_budget(text, find)

    def _within_budget(self, text: str, match: Callable[..., _Result]) -> _Result:
        # Processor time, because a busy machine may stop this process for seconds.
        limit_s, began_s = self._budget.grant(len(text)), time.thread_time()
        try:
            result = match(text, timeout=limit_s)
            self._budget.spend(time.thread_time() - began_s)
        except (TimeoutError, MemoryError) as problem:
            raise self._timeout_error(text) from problem
        return result

    def _timeout_error(self, text: str) -> RecipeLimitError:
        return RecipeLimitError(
            f"the regular expression {_shortened(self.text)!r} takes too long to be compared with "
            f"{to_printable(_shortened(text))!r}. Make it simpler: two neighboring parts must not "
            "match the same text, as they do in (a|aa)+ or .*.*"
        )


@cache
def compile_bounded(text: str, *, ignore_case: bool = False) -> BoundedRegex:
    """Return the compiled expression, which is cached; see :class:`BoundedRegex`.

    Examples
    --------
    >>> compile_bounded("sub-(?P<id>[0-9]+)").fullmatch("sub-017")["id"]
    '017'
    """
    return BoundedRegex(text, ignore_case=ignore_case)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _check_unrolled(text: str) -> None:
    """Refuse expressions that regex would unroll too far, or read differently from Python."""
    if _VERBOSE.search(text):
        raise ValueError("the flag x is not supported")
    # Size of each open group, and size of its last item; the outermost group comes first.
    open_groups: list[tuple[int, int]] = [(0, 0)]
    max_size = len(text) + _MAX_UNROLLED_CHARACTERS
    for opens, closes, plus, min_count, max_count, brace in map(
        _token_groups, _TOKEN.finditer(text)
    ):
        size, last = open_groups[-1]
        if brace:
            raise ValueError(
                "a brace must hold a count, as in {2} or {2,5}; put a \\ before any other brace"
            )
        if opens:
            open_groups.append((0, 0))
            continue
        if closes:
            if len(open_groups) == 1:
                raise ValueError("its groups cannot be told apart; write it without (?#...)")
            open_groups.pop()
            (group_size, _), item = open_groups[-1], size + 1
            size, last = group_size + item, item
        elif plus or min_count or max_count:
            times = 2 if plus else max(_number(min_count), _number(max_count))
            size, last = size + last * (times - 1), last * times
        else:
            size, last = size + 1, 1
        open_groups[-1] = (size, last)
        if size > max_size:
            raise ValueError(
                f"its repetitions have more than {_MAX_UNROLLED_CHARACTERS} characters when they "
                "are written out; names of files have a few hundred"
            )


def _token_groups(token: re.Match[str]) -> tuple[str, ...]:
    return token.groups("")


def _number(text: str) -> int:
    return int(text[:10] or 1)
