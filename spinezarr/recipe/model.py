"""What one dataset alone knows, as data: where its files lie and what they mean."""

import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from spinezarr.card import Card
from spinezarr.errors import RecipeError
from spinezarr.recipe.layout import Labels, Layout
from spinezarr.recipe.pattern import (
    PathPattern,
    PatternText,
    TemplateText,
    Texts,
    fill,
    possible_expression,
    possible_pattern,
    template_names,
)
from spinezarr.recipe.table import Table
from spinezarr.resources import recipe_path, resource
from spinezarr.strict_yaml import StrictModel, load_strict_yaml, place_of_key, reason_of

__all__ = ["Ignored", "Lookup", "Recipe", "Splits"]


class Lookup(StrictModel):
    """A value found by matching a remembered text against patterns; the first match counts.

    Examples
    --------
    >>> lookup = Lookup(of="stem", values={"sub-{id}_dir-*": "{id}", "{id}_CT*": "{id|lower}"})
    >>> lookup.get({"stem": "sub-gl003_dir-ax"}), lookup.get({"stem": "GL017_CT_ax"})
    ('gl003', 'gl017')
    """

    of: Texts
    """Name of the remembered text; of several, the first that matches counts."""
    values: dict[PatternText, TemplateText]
    """Pattern to value; the value may use what the pattern remembers."""

    @model_validator(mode="after")
    def _values_use_known_names(self) -> Self:
        for pattern, value in self.values.items():
            unknown = sorted(template_names(value) - PathPattern(pattern).names)
            if unknown:
                raise ValueError(
                    f"the value {value!r} uses {{{unknown[0]}}}, which its pattern {pattern!r} "
                    "does not name"
                )
        return self

    def get(self, texts: Mapping[str, str]) -> str | None:
        """Return the value for remembered ``texts``, or None if no pattern matches."""
        for name in self.of:
            for pattern, value in self.values.items() if name in texts else ():
                found = PathPattern(pattern).match(texts[name])
                if found is not None:
                    return fill(value, found)
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
                    f"{where}, line {number}: is neither a section header "
                    f"({', '.join(self.sections)}) nor an entry like {self.entry!r} below one."
                )
            if matched["scan"] in found:
                raise RecipeError(f"{where}, line {number}: its scan is listed before, too.")
            found[matched["scan"]] = (split, position)
            position += 1
        return found

    def parse_bytes(self, data: bytes, where: str) -> dict[str, tuple[str, int]]:
        """Read a split file as :meth:`parse` does.

        Raises
        ------
        RecipeError
            If it is not text, too.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise RecipeError(
                f"split file {where} is not text: {problem}. Save it as UTF-8."
            ) from problem
        return self.parse(text, where)


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
    same_scan: TemplateText = ""
    """Template; images of different layouts with the same text are one scan, taken once."""
    splits: Splits | None = None
    split: TemplateText = ""
    """Template of the split of a scan that no list names."""
    labels: Labels
    tables: dict[str, Table] = Field(default_factory=dict)
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
        for key, mistake in recipe.problems():
            raise RecipeError(f"{place_of_key(path, key)} {mistake}")
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
                f"{reason_of(details)} (found {details['input']!r})" for details in problem.errors()
            )
            raise RecipeError(f"{where}: {reasons}.") from problem
        for key, mistake in recipe.problems():
            raise RecipeError(f"{where}: {'.'.join(key)} {mistake}")
        return recipe

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the key and the mistake wherever a template uses a name that nothing gives."""
        if self.splits is not None and "scan" not in PathPattern(self.splits.entry).names:
            yield (
                ("splits", "entry"),
                f"{self.splits.entry!r} does not name {{scan}}, the scan that a line lists.",
            )
        for name, layout in self.layouts.items():
            for pattern in layout.image:
                known = self._known_names(PathPattern(pattern).names | layout.texts.keys())
                for key, template in self._templates(name, layout):
                    allowed = known | {"part"} if key[-2:] == ("label_parts", "file") else known
                    missing = sorted(template_names(template) - allowed)
                    if missing:
                        problem = (
                            f"uses {{{missing[0]}}}, which the image pattern {pattern!r} does not "
                            f"name (it names: {', '.join(sorted(known))})."
                        )
                        yield key, problem

    def _known_names(self, remembered: frozenset[str]) -> frozenset[str]:
        known = remembered
        for name, lookup in self.lookups.items():
            if known & set(lookup.of):
                known |= {name}
        return known

    def _templates(self, name: str, layout: Layout) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the key and text of every template that an image of ``layout`` is to fill."""
        for key in ("scan_id", "patient_id", "source", "same_scan", "split"):
            yield (key,), getattr(self, key)
        for table_name, table in self.tables.items():
            yield ("tables", table_name, "matches"), table.matches
        at = ("layouts", name)
        lists: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
            (("label",), layout.label),
            (("sidecar",), layout.sidecar),
            (("centroids", "files"), layout.centroid_templates),
        )
        for keys, templates in lists:
            for template in templates:
                yield (*at, *keys), template
        if layout.label_parts is not None:
            yield (*at, "label_parts", "file"), layout.label_parts.file
        if layout.listed is not None:
            yield (*at, "listed", "entry"), layout.listed.entry

    def shipped_splits(self) -> dict[str, tuple[str, int]]:
        """Read the split list that lies beside the recipe; empty if it names none.

        Raises
        ------
        RecipeError
            If the recipe names a list that is not there, or the list does not parse.
        """
        if self.splits is None or self.splits.shipped is None or self._file is None:
            return {}
        listed = self._shipped(self.splits.shipped, "splits.shipped")
        return self.splits.parse_bytes(listed.read_bytes(), str(listed))

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
        return Card.load_file(self._shipped(self.card, "card"))

    def shipped_table(self, name: str) -> Traversable | None:
        """Return the file of a table that lies beside the recipe; None if it names none.

        Raises
        ------
        RecipeError
            If the recipe names a file that is not there.
        """
        shipped = self.tables[name].shipped
        if shipped is None or self._file is None:
            return None
        return self._shipped(shipped, f"tables.{name}.shipped")

    def _shipped(self, name: str, key: str) -> Traversable:
        """Find a file beside the recipe; for a copy of a shipped recipe, beside that one."""
        beside = self._file.parent / name if isinstance(self._file, Path) else None
        found = beside if beside is not None and beside.is_file() else resource("ingest") / name
        if not found.is_file():
            raise RecipeError(f"{self._file}: {key} names {beside or found}, which is not there.")
        return found

    def known_texts(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return remembered texts and all that is looked up by them."""
        values = dict(texts)
        for name, lookup in self.lookups.items():
            value = lookup.get(values)
            if value is not None:
                values[name] = value
        return values

    def possible_paths(self, layout: Layout, template: str) -> list[re.Pattern[str]]:
        """Return what a path may look like that a template gives for any image of a layout."""
        further = {name: re.escape(text) for name, text in layout.texts.items()}
        for name, lookup in self.lookups.items():
            ways = [possible_expression(value, key) for key, value in lookup.values.items()]
            further[name] = "|".join([further[name], *ways] if name in further else ways)
        if layout.label_parts is not None and template == layout.label_parts.file:
            further["part"] = "|".join(map(re.escape, layout.label_parts.values))
        patterns = (possible_pattern(template, image, further) for image in layout.image)
        return list(dict.fromkeys(patterns))
