r"""What one dataset alone knows, as data: where its files lie and what they mean.

Paths are described by patterns, relative to the raw folder, with ``/`` between folders:

======================= =====================================================================
``{scan}``              one or more characters but ``/``, remembered under that name; met again
                        in the same pattern, the same text
``{ext:nii|nii\.gz}``   what the regular expression matches, remembered
``*``                   any characters but ``/``
``**/``                 any number of folders, none included
all else                itself
======================= =====================================================================
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError

from spinezarr.card import Card
from spinezarr.errors import RecipeError
from spinezarr.resources import recipe_path, resource
from spinezarr.strict_yaml import StrictModel, load_strict_yaml

__all__ = ["Ignored", "Labels", "Layout", "Lookup", "PathPattern", "Recipe", "Splits"]

LabelState = Literal["all-visible", "whole-only", "unknown"]
"""Whether vertebrae cut by the end of the volume are annotated (all-visible) or background."""

_TOKEN = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}|(\*\*/)|(\*)|([^{}*]+)|(.)")


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
            parts.append(f"(?P<{name}>{expression or '[^/]+'})")
        else:
            parts.append("(?:.*/)?" if folders else "[^/]*" if star else re.escape(literal))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as problem:
        raise ValueError(f"pattern {pattern!r}: {problem}") from problem


_TEMPLATE_NAME = re.compile(r"\{(\w+)\}")


def _fill(template: str, values: Mapping[str, str]) -> str | None:
    """Put ``values`` into a template; None if it uses a name that has no value."""
    if any(name not in values for name in _TEMPLATE_NAME.findall(template)):
        return None
    return _TEMPLATE_NAME.sub(lambda found: values[found[1]], template)


def _as_tuple(value: object) -> object:
    """Let YAML say one text where several may stand."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _checked_pattern(text: str) -> str:
    PathPattern(text)
    return text


def _checked_template(text: str) -> str:
    stray = re.search(r"[{}]", _TEMPLATE_NAME.sub("", text))
    if stray:
        raise ValueError(f"template {text!r}: stray {stray[0]!r}; write {{name}}")
    return text


PatternText = Annotated[str, AfterValidator(_checked_pattern)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
TemplateText = Annotated[str, AfterValidator(_checked_template)]
PatternTexts = Annotated[tuple[PatternText, ...], BeforeValidator(_as_tuple)]
TemplateTexts = Annotated[tuple[TemplateText, ...], BeforeValidator(_as_tuple)]


class Layout(StrictModel):
    """One way in which a dataset's files are laid out on disk."""

    about: str
    """Which release or download this is."""
    image: PatternTexts
    """Patterns of the images; must remember what the scan id is made of."""
    label: TemplateTexts = ()
    """Templates of the mask that belongs to an image, tried in order."""


class Lookup(StrictModel):
    """A value found by matching a remembered text against patterns; the first match counts."""

    of: str
    """Name of the remembered text."""
    values: dict[PatternText, str]
    """Pattern to value."""

    def get(self, texts: Mapping[str, str]) -> str | None:
        """Return the value for remembered ``texts``, or None if no pattern matches."""
        text = texts.get(self.of)
        if text is None:
            return None
        for pattern, value in self.values.items():
            if PathPattern(pattern).match(text) is not None:
                return value
        return None


class Splits(StrictModel):
    """A text file that lists the scans of each split under section headers."""

    files: Texts
    """Paths tried in order, relative to the raw folder."""
    shipped: str | None = None
    """File beside the recipe that is used where the raw folder has none."""
    sections: dict[str, str]
    """Header in the file (without colon) to split name."""
    entry: PatternText
    """Pattern of a line; must remember ``scan``."""

    def parse(self, text: str, where: str) -> dict[str, tuple[str, int]]:
        r"""Read a split file into scan name → (split, position in that split).

        Blank lines, CRLF and a missing or extra line end at the end are all the same.

        Raises
        ------
        RecipeError
            If a line is neither a header nor an entry, or a scan is listed twice.

        Examples
        --------
        >>> splits = Splits(files=("s.txt",), sections={"a": "train"}, entry="{scan}.nii.gz")
        >>> splits.parse("a:\r\nx.1.nii.gz\r\n\r\n", "s.txt")
        {'x.1': ('train', 0)}
        """
        found: dict[str, tuple[str, int]] = {}
        split, position = None, 0
        pattern = PathPattern(self.entry)
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.strip()
            if not entry:
                continue
            if entry.removesuffix(":") in self.sections:
                split, position = self.sections[entry.removesuffix(":")], 0
                continue
            matched = pattern.match(entry)
            if matched is None or split is None:
                raise RecipeError(
                    f"{where}, line {number}: {entry!r} is neither a section header "
                    f"({', '.join(self.sections)}) nor an entry like {self.entry!r} below one."
                )
            if matched["scan"] in found:
                raise RecipeError(f"{where}, line {number}: {entry!r} is listed twice.")
            found[matched["scan"]] = (split, position)
            position += 1
        return found


class Labels(StrictModel):
    """What the values of the masks mean."""

    scheme: Literal["canonical"]
    """``canonical``: the values of :mod:`spinezarr.vertebrae`."""
    state: LabelState
    """Whether vertebrae cut by the end of the volume are annotated."""


class Ignored(StrictModel):
    """Files that are known and belong to no scan."""

    path: PatternText
    because: str


class Recipe(StrictModel):
    """Everything spinezarr needs to know of one dataset.

    See ``ingest/README.md`` for a description of each key.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: str
    licence: str
    """SPDX identifier where there is one."""
    citation: str
    homepage: str | None = None
    card: str | None = None
    """File beside the recipe with the figures that the dataset's published card prints."""
    layouts: Annotated[dict[str, Layout], Field(min_length=1)]
    lookups: dict[str, Lookup] = Field(default_factory=dict)
    scan_id: TemplateText = "{scan}"
    patient_id: TemplateText = "{scan}"
    source: TemplateText = ""
    """Template of the collection that a scan comes from."""
    splits: Splits | None = None
    labels: Labels
    ignore: tuple[Ignored, ...] = ()
    _file: Traversable | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, name_or_path: str) -> "Recipe":
        """Read a shipped recipe by name, or any recipe by the path of its file.

        Raises
        ------
        RecipeError
            If there is no such recipe or it does not load; points at the key and its line.

        Examples
        --------
        >>> Recipe.load("ctspine1k").title
        'CTSpine1K'
        """
        return cls.load_file(recipe_path(name_or_path))

    @classmethod
    def load_file(cls, path: Traversable) -> "Recipe":
        """Read the recipe file ``path``."""
        recipe = load_strict_yaml(path, cls, RecipeError)
        recipe.check_names(str(path))
        recipe._file = path  # noqa: SLF001  its own
        return recipe

    @classmethod
    def of_pairs(
        cls, image: str, label: str | None, *, name: str, licence: str = "unknown"
    ) -> "Recipe":
        """Make the recipe of a folder whose images and masks are paired by name alone.

        Parameters
        ----------
        image
            Pattern of the images, e.g. ``"{scan}_ct.nii.gz"``; must remember ``scan``.
        label
            Template of the mask of an image, e.g. ``"{scan}_seg.nii.gz"``; None for images alone.
        name
            Name of the dataset.
        licence
            Licence of the data.

        Raises
        ------
        RecipeError
            If a pattern is broken or the label template uses a name the image pattern lacks.
        """
        where = "--image and --label"
        try:
            recipe = cls(
                name=name,
                title=name,
                licence=licence,
                citation="",
                layouts={
                    "pairs": Layout(
                        about="images and masks paired by name",
                        image=(image,),
                        label=() if label is None else (label,),
                    )
                },
                labels=Labels(scheme="canonical", state="unknown"),
            )
        except ValidationError as problem:
            reasons = "; ".join(
                f"{details['msg']} (found {details['input']!r})" for details in problem.errors()
            )
            raise RecipeError(f"{where}: {reasons}.") from problem
        recipe.check_names(where)
        return recipe

    def check_names(self, where: str) -> None:
        """Raise :class:`RecipeError` if a template uses a name that nothing gives a value."""
        if self.splits is not None and "scan" not in PathPattern(self.splits.entry).names:
            raise RecipeError(
                f"{where}: splits.entry {self.splits.entry!r} does not name {{scan}}, the scan "
                "that a line lists."
            )
        for key, layout in self.layouts.items():
            for pattern in layout.image:
                known = PathPattern(pattern).names
                for lookup_name, lookup in self.lookups.items():
                    if lookup.of in known:
                        known |= {lookup_name}
                templates = [
                    ("scan_id", self.scan_id),
                    ("patient_id", self.patient_id),
                    ("source", self.source),
                ]
                templates += [(f"layouts.{key}.label", template) for template in layout.label]
                for used_by, template in templates:
                    missing = sorted(set(_TEMPLATE_NAME.findall(template)) - known)
                    if missing:
                        raise RecipeError(
                            f"{where}: {used_by} uses {{{missing[0]}}}, which the image pattern "
                            f"{pattern!r} does not name (it names: {', '.join(sorted(known))})."
                        )

    def shipped_splits(self) -> dict[str, tuple[str, int]]:
        """Read the split list that lies beside the recipe; empty if it names none.

        Raises
        ------
        RecipeError
            If the recipe names a list that is not there, or the list does not parse.
        """
        if self.splits is None or self.splits.shipped is None or self._file is None:
            return {}
        listed = self._beside(self._file, "splits.shipped", self.splits.shipped)
        return self.splits.parse(listed.read_text(encoding="utf-8-sig"), str(listed))

    def shipped_card(self) -> Card | None:
        """Read the card that lies beside the recipe; None if it names none.

        Raises
        ------
        RecipeError
            If the recipe names a card that is not there.
        CardError
            If the card does not load.

        Examples
        --------
        >>> Recipe.load("ctspine1k").shipped_card().scans
        1005
        """
        if self.card is None or self._file is None:
            return None
        return Card.load_file(self._beside(self._file, "card", self.card))

    @staticmethod
    def _beside(recipe_file: Traversable, key: str, name: str) -> Traversable:
        """Return the file ``name`` in the recipe's folder, which ``key`` names."""
        folder = recipe_file.parent if isinstance(recipe_file, Path) else resource("ingest")
        found = folder / name
        if not found.is_file():
            raise RecipeError(f"{recipe_file}: {key} names {found}, which is not there.")
        return found

    def fill(self, template: str, texts: Mapping[str, str]) -> str | None:
        """Fill a template with remembered texts and looked-up values; None if one is missing."""
        values = dict(texts)
        for name, lookup in self.lookups.items():
            value = lookup.get(values)
            if value is not None:
                values[name] = value
        return _fill(template, values)

    def label_candidates(self, layout: Layout, texts: Mapping[str, str]) -> Iterator[str]:
        """Yield the paths at which the mask of an image may lie, most likely first."""
        for template in layout.label:
            path = self.fill(template, texts)
            if path is not None:
                yield path
