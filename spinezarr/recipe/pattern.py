r"""How do patterns find paths, and how do templates make names from what a pattern remembered?

Paths are relative to the raw folder, with ``/`` between folders:

======================= =====================================================================
``{scan}``              one or more characters except ``/``, remembered under this name; a second
                        ``{scan}`` in the same pattern matches the same text
``{ext:nii|nii\.gz}``   what the regular expression matches, remembered
``*``                   any characters except ``/``
``**/``                 any number of folders, or none
anything else           itself, in any Unicode form
======================= =====================================================================

In a template, ``{scan}`` is replaced by the remembered text. Filters after bars change it in
sequence:

======================= =====================================================================
``{scan|lower}``        in small letters
``{path|join}``         ``a/b/c`` as ``a_b_c``; ``{path|join:-}`` as ``a-b-c``
======================= =====================================================================

Regular expressions are Python's. :mod:`spinezarr.recipe.bounded_regex` limits their time.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from spinezarr.errors import RecipeLimitError
from spinezarr.recipe.bounded_regex import MAX_REGEX_CHARACTERS, BoundedRegex, compile_bounded
from spinezarr.text import to_nfc

__all__ = [
    "FileName",
    "PathPattern",
    "PathTemplate",
    "PatternText",
    "PatternTexts",
    "TemplateText",
    "TemplateTexts",
    "Texts",
    "as_tuple",
    "fill_template",
    "filled_template_regex",
    "pattern_names",
    "template_names",
    "template_regex",
    "template_regex_text",
]

_TOKEN: Final = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}|(\*\*/)|(\*)|([^{}*]+)|(.)")
_FILTERS: Final = r"(?:\|(?:lower|join(?::[^{}|/]+)?))*"
_TEMPLATE_PIECE: Final = re.compile(rf"(\*\*/|\*|\{{\w+{_FILTERS}\}})")
_TEMPLATE_NAME: Final = re.compile(rf"\{{(\w+)({_FILTERS})\}}")
_UNKNOWN_FILTERS: Final = re.compile(r"\{\w+\|([^{}]*)\}")
_FILTER: Final = re.compile("lower|join(?::[^/]+)?")
_JOINED_BY: Final = "_"
_BACKREFERENCE: Final = re.compile(r"\(\?P=(\w+)\)")
_NUMBERED_BACKREFERENCE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\[1-9]")
_ANY_TEXT: Final = "[^/]*"
_MAX_CHARACTERS: Final = 2_000
"""Longest pattern or template in characters. The longest of a shipped recipe has 140."""
_MAX_TEXT_LENGTH: Final = 8_192
"""Longest filled template in characters: twice the longest path of Linux."""
_MAX_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern of relative paths; the docstring of this module describes the syntax.

    Examples
    --------
    >>> PathPattern("data/{folder}/{scan}.nii.gz").match("data/liver/liver_0.nii.gz")
    {'folder': 'liver', 'scan': 'liver_0'}
    >>> PathPattern("**/{scan}_ct.nii.gz").match("a/b/x.1_ct.nii.gz")
    {'scan': 'x.1'}
    >>> PathPattern("{scan}.nii.gz").match("a/b.nii.gz") is None
    True
    """

    text: str

    def __post_init__(self) -> None:
        _compile(self.text)

    @property
    def regex(self) -> BoundedRegex:
        """Regular expression that a whole path must match."""
        return _compile(self.text)

    @property
    def names(self) -> frozenset[str]:
        """Names that the pattern remembers."""
        return self.regex.names

    def match(self, path: str) -> dict[str, str] | None:
        """Return the remembered texts in NFC if the whole ``path`` matches, else None.

        Raises
        ------
        RecipeLimitError
            If matching takes too long.
        """
        matched = self.regex.fullmatch(to_nfc(path))
        return None if matched is None else matched.groupdict()


def pattern_names(pattern: str) -> tuple[str, ...]:
    """Return the names that a pattern remembers, in their order. The pattern may be invalid.

    Examples
    --------
    >>> pattern_names("{patient}/{date}/{patient}_ct.nii.gz")
    ('patient', 'date')
    """
    return tuple(dict.fromkeys(name for name, *_ in _TOKEN.findall(pattern) if name))


@cache
def _compile(pattern: str) -> BoundedRegex:
    """Translate a pattern to a regular expression; raise ValueError if it is invalid."""
    _check_length("pattern", pattern)
    parts: list[str] = []
    names: set[str] = set()
    for name, expression, folders, star, literal, stray in _TOKEN.findall(to_nfc(pattern)):
        if stray:
            raise ValueError(f"pattern {pattern!r}: stray {stray!r}; write {{name}}")
        if name and name in names:
            parts.append(f"(?P={name})")
        elif name:
            names.add(name)
            _check_inner_regex(pattern, name, expression)
            parts.append(f"(?P<{name}>{expression or '[^/]+'})")
        else:
            parts.append(_wildcard_regex(folders, star) or re.escape(literal))
    try:
        return compile_bounded("".join(parts))
    except ValueError as problem:
        raise ValueError(f"pattern {pattern!r}: {problem}") from problem


def _check_length(kind: str, text: str) -> None:
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(
            f"the {kind} {text[:_MAX_SHOWN]!r}... has {len(text)} characters, expected at most "
            f"{_MAX_CHARACTERS}"
        )


def _check_inner_regex(pattern: str, name: str, expression: str) -> None:
    """Refuse an expression whose meaning would change inside the pattern."""
    subject = f"pattern {pattern!r}: the expression of {{{name}}}"
    try:
        inner_regex = compile_bounded(_BACKREFERENCE.sub("(?:)", expression))
    except ValueError as problem:
        raise ValueError(f"{subject}: {problem}") from problem
    if inner_regex.names:
        raise ValueError(f"{subject} names a group; write {{name:...}} next to it instead")
    if _NUMBERED_BACKREFERENCE.search(expression):
        raise ValueError(f"{subject} refers to a group by number; write (?P=name)")


def _wildcard_regex(folders: object, star: object) -> str:
    return "(?:.*/)?" if folders else "[^/]*" if star else ""


def template_names(template: str) -> frozenset[str]:
    """Return the names that a template uses.

    Examples
    --------
    >>> sorted(template_names("label/{folder}/{scan|lower}_seg.nii.gz"))
    ['folder', 'scan']
    """
    return frozenset(name for name, _ in _TEMPLATE_NAME.findall(template))


def fill_template(template: str, values: Mapping[str, str]) -> str | None:
    """Fill a template with ``values``, in NFC; None if a name has no value.

    Raises
    ------
    RecipeLimitError
        If the result is longer than a path can be.

    Examples
    --------
    >>> fill_template("{scan|lower}_seg.nii.gz", {"scan": "GL017"})
    'gl017_seg.nii.gz'
    >>> fill_template("{path|lower|join}", {"path": "P07/2024/Thorax"})
    'p07_2024_thorax'
    """
    if template_names(template) - values.keys():
        return None
    filled = _TEMPLATE_NAME.sub(lambda match: _apply_filters(values[match[1]], match[2]), template)
    if len(filled) > _MAX_TEXT_LENGTH:
        raise RecipeLimitError(
            f"the template {template[:_MAX_SHOWN]!r} gives a text of {len(filled)} characters, "
            f"expected at most {_MAX_TEXT_LENGTH}. Let it name fewer texts."
        )
    return to_nfc(filled)


def _apply_filters(text: str, filters: str) -> str:
    """Apply the filters of a name, such as ``|lower|join``."""
    for item in filters.split("|")[1:]:
        kind, _, separator = item.partition(":")
        text = text.lower() if kind == "lower" else text.replace("/", separator or _JOINED_BY)
    return text


def filled_template_regex(template: str, values: Mapping[str, str]) -> BoundedRegex | None:
    """Return an expression for the paths of a filled template; None if a value is missing.

    ``*`` and ``**/`` in the template are wildcards.
    """
    if template_names(template) - values.keys():
        return None
    filled = _template_expression(
        template, lambda name, filters: re.escape(_apply_filters(values[name], filters))
    )
    return _compile_template(filled, template)


def template_regex(
    template: str, image: str, extra_regexes: Mapping[str, str] | None = None
) -> BoundedRegex:
    r"""Return an expression for all paths that a template may give for images of a pattern.

    Parameters
    ----------
    template
        The template.
    image
        Pattern of the images.
    extra_regexes
        Regular expressions for the values of other names, by name.

    Raises
    ------
    RecipeLimitError
        If the expression is too long.

    Examples
    --------
    >>> masks = template_regex("{scan}_seg.{ext}", r"{scan}.{ext:nii|nii\.gz}")
    >>> [bool(masks.fullmatch(name)) for name in ("a_seg.nii.gz", "a_seg.png")]
    [True, False]
    """
    return _compile_template(template_regex_text(template, image, extra_regexes), template)


def _compile_template(text: str, template: str) -> BoundedRegex:
    try:
        return compile_bounded(to_nfc(text))
    except ValueError as problem:
        raise _too_long_error(template, str(problem)) from problem


def _too_long_error(template: str, reason: str) -> RecipeLimitError:
    return RecipeLimitError(
        f"the names that the template {template[:_MAX_SHOWN]!r} may give need too long an "
        f"expression: {reason}. Simplify it, or the patterns and lookups whose texts it uses."
    )


def template_regex_text(
    template: str, image: str, extra_regexes: Mapping[str, str] | None = None
) -> str:
    """Return the text of the regular expression of :func:`template_regex`.

    Raises
    ------
    RecipeLimitError
        If the expression is too long.
    """
    remembered: dict[str, str] = {}
    for name, expression, *_ in _TOKEN.findall(image):
        if name and name not in remembered:
            # Backreferences are expanded, because the template may lack the referenced text.
            remembered[name] = _BACKREFERENCE.sub(
                lambda match: f"(?:{remembered[match[1]]})", expression or _ANY_TEXT
            )
            if len(remembered[name]) > MAX_REGEX_CHARACTERS:
                raise _too_long_error(template, f"the expression of {{{name}}} is too long")

    def regex_of_name(name: str, filters: str) -> str:
        alternatives = [
            expressions[name]
            for expressions in (remembered, extra_regexes or {})
            if name in expressions
        ] or [_ANY_TEXT]
        if "|join" in filters:
            alternatives = [_ANY_TEXT]
        return f"(?{'i' if '|lower' in filters else ''}:{'|'.join(alternatives)})"

    regex_text = _template_expression(template, regex_of_name)
    if len(regex_text) > MAX_REGEX_CHARACTERS:
        raise _too_long_error(
            template, f"it takes {len(regex_text)} characters, of {MAX_REGEX_CHARACTERS} at most"
        )
    return regex_text


def _template_expression(template: str, regex_of_name: Callable[[str, str], str]) -> str:
    """Translate a template to an expression, with an expression for each name."""
    parts: list[str] = []
    for piece in _TEMPLATE_PIECE.split(template):
        name_match = _TEMPLATE_NAME.fullmatch(piece)
        if name_match is None:
            parts.append(_wildcard_regex(piece == "**/", piece == "*") or re.escape(piece))
        else:
            parts.append(regex_of_name(name_match[1], name_match[2]))
    return "".join(parts)


def as_tuple(value: object) -> object:
    """Convert a single value to a tuple of one, so that YAML needs no list for it."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _checked_pattern(text: str) -> str:
    PathPattern(text)
    return text


def _checked_template(text: str) -> str:
    _check_length("template", text)
    remainder = _TEMPLATE_NAME.sub("", text)
    unknown_filters = _UNKNOWN_FILTERS.search(remainder)
    if unknown_filters:
        unknown = next(
            item for item in unknown_filters[1].split("|") if not _FILTER.fullmatch(item)
        )
        raise ValueError(
            f"template {text!r}: no filter {unknown!r}; write {{name|lower}}, {{name|join}} or "
            "{name|join:-}"
        )
    stray = re.search(r"[{}]", remainder)
    if stray:
        raise ValueError(f"template {text!r}: stray {stray[0]!r}; write {{name}} or {{name|lower}}")
    return text


def _checked_path(text: str) -> str:
    """Refuse a text that cannot be a path in the raw folder."""
    literal = "x".join(token[4] for token in _TOKEN.findall(text))
    steps = text.split("/")
    if text.startswith("/") or "." in steps or ".." in steps or "\\" in literal:
        raise ValueError(
            f"{text!r} is no path in the raw folder: write folder/name, with '/' between folders, "
            "and neither '/' in front nor '.' or '..'"
        )
    return text


def _checked_file_name(text: str) -> str:
    """Refuse a text that may name a file outside the folder of the recipe."""
    if text in {"", ".", ".."} or not {"/", "\\"}.isdisjoint(text):
        raise ValueError(
            f"{text!r} is no name of a file next to the recipe: write it without folders"
        )
    return text


FileName = Annotated[str, AfterValidator(_checked_file_name)]
PatternText = Annotated[str, AfterValidator(_checked_pattern)]
Texts = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
TemplateText = Annotated[str, AfterValidator(_checked_template)]
PathTemplate = Annotated[TemplateText, AfterValidator(_checked_path)]
PatternTexts = Annotated[
    tuple[Annotated[PatternText, AfterValidator(_checked_path)], ...], BeforeValidator(as_tuple)
]
TemplateTexts = Annotated[tuple[PathTemplate, ...], BeforeValidator(as_tuple)]
