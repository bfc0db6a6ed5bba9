r"""Patterns of paths, and templates that are filled with what a pattern remembered.

Paths are described relative to the raw folder, with ``/`` between folders:

======================= =====================================================================
``{scan}``              one or more characters but ``/``, remembered under that name; met again
                        in the same pattern, the same text
``{ext:nii|nii\.gz}``   what the regular expression matches, remembered
``*``                   any characters but ``/``
``**/``                 any number of folders, none included
all else                itself
======================= =====================================================================

A template is filled: ``{scan}`` is the remembered text, ``{scan|lower}`` the same in small letters.

Regular expressions are Python's, and a careless one such as ``(a+)+`` may take without end on a
name that does not match: recipes are as trusted as code.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

__all__ = [
    "PathPattern",
    "PathTemplate",
    "PatternText",
    "PatternTexts",
    "TemplateText",
    "TemplateTexts",
    "Texts",
    "fill",
    "filled_pattern",
    "possible_expression",
    "possible_pattern",
    "template_names",
]

_TOKEN: Final = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}|(\*\*/)|(\*)|([^{}*]+)|(.)")
_TEMPLATE_PIECE: Final = re.compile(r"(\*\*/|\*|\{\w+(?:\|lower)?\})")
_TEMPLATE_NAME: Final = re.compile(r"\{(\w+)(\|lower)?\}")
_BACKREFERENCE: Final = re.compile(r"\(\?P=(\w+)\)")
_NUMBERED_BACKREFERENCE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\[1-9]")
_ANY_TEXT: Final = "[^/]*"


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern of relative paths, as described at the top of this module.

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
    def regex(self) -> re.Pattern[str]:
        """The regular expression that a whole path must match."""
        return _compile(self.text)

    @property
    def names(self) -> frozenset[str]:
        """Names the pattern remembers."""
        return frozenset(self.regex.groupindex)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the remembered texts if the whole ``path`` matches, else None."""
        found = self.regex.fullmatch(path)
        return None if found is None else found.groupdict()


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Translate a pattern; raise ValueError if it is broken."""
    parts: list[str] = []
    seen: set[str] = set()
    for name, expression, folders, star, literal, stray in _TOKEN.findall(pattern):
        if stray:
            raise ValueError(f"pattern {pattern!r}: stray {stray!r}; write {{name}}")
        if name and name in seen:
            parts.append(f"(?P={name})")
        elif name:
            seen.add(name)
            _check_expression(pattern, name, expression)
            parts.append(f"(?P<{name}>{expression or '[^/]+'})")
        else:
            parts.append(_wild(folders, star) or re.escape(literal))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as problem:
        raise ValueError(f"pattern {pattern!r}: {problem}") from problem


def _check_expression(pattern: str, name: str, expression: str) -> None:
    """Refuse what would mean something else inside the pattern than by itself."""
    where = f"pattern {pattern!r}: the expression of {{{name}}}"
    try:
        alone = re.compile(_BACKREFERENCE.sub("(?:)", expression))
    except re.error as problem:
        raise ValueError(f"{where}: {problem}") from problem
    if alone.groupindex:
        raise ValueError(f"{where} names a group; write {{name:...}} beside it instead")
    if _NUMBERED_BACKREFERENCE.search(expression):
        raise ValueError(f"{where} refers to a group by number; write (?P=name)")


def _wild(folders: object, star: object) -> str:
    return "(?:.*/)?" if folders else "[^/]*" if star else ""


@cache
def _compile_regex(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.DOTALL)


def template_names(template: str) -> frozenset[str]:
    """Return the names that a template is filled with.

    Examples
    --------
    >>> sorted(template_names("label/{folder}/{scan|lower}_seg.nii.gz"))
    ['folder', 'scan']
    """
    return frozenset(name for name, _ in _TEMPLATE_NAME.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str | None:
    """Put ``values`` into a template; None if it uses a name that has no value.

    Examples
    --------
    >>> fill("{scan|lower}_seg.nii.gz", {"scan": "GL017"})
    'gl017_seg.nii.gz'
    """
    if template_names(template) - values.keys():
        return None
    return _TEMPLATE_NAME.sub(lambda found: _filtered(values[found[1]], found[2]), template)


def _filtered(text: str, lower: str | None) -> str:
    return text.lower() if lower else text


def filled_pattern(template: str, values: Mapping[str, str]) -> re.Pattern[str] | None:
    """Return what a path must match to be a filled template, whose ``*`` and ``**/`` are wild.

    None if a name has no value.
    """
    if template_names(template) - values.keys():
        return None
    filled = _template_expression(
        template, lambda name, lower: re.escape(_filtered(values[name], lower))
    )
    return _compile_regex(filled)


def possible_pattern(
    template: str, image: str, further: Mapping[str, str] | None = None
) -> re.Pattern[str]:
    r"""Return what a path may look like that a template gives for any image of a pattern.

    Parameters
    ----------
    template
        The template.
    image
        Pattern of the images.
    further
        Regular expressions of names that something else gives.

    Examples
    --------
    >>> regex = possible_pattern("{scan}_seg.{ext}", r"{scan}.{ext:nii|nii\.gz}")
    >>> [bool(regex.fullmatch(name)) for name in ("a_seg.nii.gz", "a_seg.png")]
    [True, False]
    """
    return _compile_regex(possible_expression(template, image, further))


def possible_expression(template: str, image: str, further: Mapping[str, str] | None = None) -> str:
    """Return the regular expression of :func:`possible_pattern`."""
    remembered: dict[str, str] = {}
    for name, expression, *_ in _TOKEN.findall(image):
        if name and name not in remembered:
            # A text that is referred to may stand elsewhere in the template, or not at all.
            remembered[name] = _BACKREFERENCE.sub(
                lambda found: f"(?:{remembered[found[1]]})", expression or _ANY_TEXT
            )

    def any_of(name: str, lower: str) -> str:
        ways = [of[name] for of in (remembered, further or {}) if name in of] or [_ANY_TEXT]
        return f"(?{'i' if lower else ''}:{'|'.join(ways)})"

    return _template_expression(template, any_of)


def _template_expression(template: str, expression: Callable[[str, str], str]) -> str:
    """Translate a template whose names stand for regular expressions."""
    parts: list[str] = []
    for piece in _TEMPLATE_PIECE.split(template):
        named = _TEMPLATE_NAME.fullmatch(piece)
        if named is None:
            parts.append(_wild(piece == "**/", piece == "*") or re.escape(piece))
        else:
            parts.append(expression(named[1], named[2]))
    return "".join(parts)


def _as_tuple(value: object) -> object:
    """Let YAML say one text where several may stand."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _checked_pattern(text: str) -> str:
    PathPattern(text)
    return text


def _checked_template(text: str) -> str:
    stray = re.search(r"[{}]", _TEMPLATE_NAME.sub("", text))
    if stray:
        raise ValueError(f"template {text!r}: stray {stray[0]!r}; write {{name}} or {{name|lower}}")
    return text


def _checked_path(text: str) -> str:
    """Refuse what no path in the raw folder can be."""
    literal = "x".join(found[4] for found in _TOKEN.findall(text))
    steps = text.split("/")
    if text.startswith("/") or "." in steps or ".." in steps or "\\" in literal:
        raise ValueError(
            f"{text!r} is no path in the raw folder: write folder/name, with '/' between folders, "
            "and neither '/' in front nor '.' or '..'"
        )
    return text


PatternText = Annotated[str, AfterValidator(_checked_pattern)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
TemplateText = Annotated[str, AfterValidator(_checked_template)]
PathTemplate = Annotated[TemplateText, AfterValidator(_checked_path)]
PatternTexts = Annotated[
    tuple[Annotated[PatternText, AfterValidator(_checked_path)], ...], BeforeValidator(_as_tuple)
]
TemplateTexts = Annotated[tuple[PathTemplate, ...], BeforeValidator(_as_tuple)]
