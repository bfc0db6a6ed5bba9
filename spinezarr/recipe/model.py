"""What does a recipe state: where do the files of a dataset lie, and what do they mean?"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from spinezarr.card import Card
from spinezarr.errors import RecipeError, RecipeLimitError
from spinezarr.recipe.bounded_regex import MAX_REGEX_CHARACTERS, BoundedRegex
from spinezarr.recipe.labels import Labels
from spinezarr.recipe.layout import Layout
from spinezarr.recipe.pattern import (
    FileName,
    PathPattern,
    PatternText,
    TemplateText,
    Texts,
    fill_template,
    pattern_names,
    template_names,
    template_regex,
    template_regex_text,
)
from spinezarr.recipe.series import SERIES_NAMES, SeriesSelection
from spinezarr.recipe.table import Download, Folds, Table
from spinezarr.regular_file import read_regular_file
from spinezarr.resources import recipe_path, resource
from spinezarr.strict_model import StrictModel
from spinezarr.strict_yaml import load_strict_yaml, validation_message
from spinezarr.text import to_nfc

__all__ = ["IgnoredFiles", "Lookup", "Recipe", "Splits"]

_MAX_EXPRESSION_CHARACTERS: Final = 100_000
"""Largest total length in characters of the expressions for masks, centroids and sidecars.

Shipped recipes need 2,000 characters.
"""
_TOO_MANY_FILES: Final = (
    "describes too many files: the expressions for all pairs of its image patterns and templates "
    f"have more than {_MAX_EXPRESSION_CHARACTERS} characters. Divide it into several recipes."
)
_MAX_SHIPPED_BYTES: Final = 16 << 20
"""Largest list or table next to a recipe in bytes, the same as in a raw folder."""


def _joined_names(image: str) -> str:
    """Return the default template of the scan id for an image pattern."""
    names = pattern_names(image)
    if "scan" in names or not names:
        return "{scan}"
    return "_".join(f"{{{name}|join}}" for name in names)


class Lookup(StrictModel):
    """Maps a remembered text to a value by patterns, of which the first match counts.

    Examples
    --------
    >>> lookup = Lookup(inputs="stem", values={"sub-{id}_dir-*": "{id}", "{id}_CT*": "{id|lower}"})
    >>> lookup.get({"stem": "sub-gl003_dir-ax"}), lookup.get({"stem": "GL017_CT_ax"})
    ('gl003', 'gl017')
    """

    inputs: Texts
    """Names of the remembered texts to match. The first one that matches counts."""
    values: dict[PatternText, TemplateText]
    """Value for each pattern. A value may use what its pattern remembers."""

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
        for name in self.inputs:
            for pattern, value in self.values.items() if name in texts else ():
                matched = PathPattern(pattern).match(texts[name])
                if matched is not None:
                    return fill_template(value, matched)
        return None


class Splits(StrictModel):
    """A text file that lists the scans of each split under section headers."""

    files: Texts
    """Paths of the file relative to the raw folder, tried in order."""
    shipped: FileName | None = None
    """Name of a file next to the recipe, used if the raw folder has none."""
    sections: dict[str, str]
    """Name of the split for each header in the file, without the colon."""
    entry: PatternText
    """Pattern of a line, which must remember ``scan``."""

    def parse(self, text: str, where: str) -> dict[str, tuple[str, int]]:
        r"""Read a split file.

        Blank lines, CRLF and a missing final line end do not matter.

        Returns
        -------
        dict
            Split and position in that split, from 0, by the name of the scan.

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
        entries: dict[str, tuple[str, int]] = {}
        split, position = None, 0
        pattern = PathPattern(self.entry)
        for number, line in enumerate(to_nfc(text).splitlines(), 1):
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
            if matched["scan"] in entries:
                raise RecipeError(f"{where}, line {number}: its scan is already listed above.")
            entries[matched["scan"]] = (split, position)
            position += 1
        return entries

    def parse_bytes(self, data: bytes, where: str) -> dict[str, tuple[str, int]]:
        """Read a split file from bytes; see :meth:`parse`.

        Raises
        ------
        RecipeError
            If the bytes are not UTF-8, or for the reasons of :meth:`parse`.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise RecipeError(
                f"split file {where} is not text: {problem}. Save it as UTF-8."
            ) from problem
        return self.parse(text, where)


class IgnoredFiles(StrictModel):
    """Known files that belong to no scan."""

    path: PatternText
    reason: str
    """Reason that reports show."""


class Recipe(StrictModel):
    """Everything that spinezarr needs to know about one dataset.

    ``ingest/README.md`` describes each key.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: str
    license: str
    """SPDX identifier if there is one, otherwise text."""
    scan_license: TemplateText = ""
    """Template of the license of a scan, for datasets in which licenses differ.

    If it is empty or has no value, :attr:`license` holds.
    """
    citation: str
    homepage: str | None = None
    card: FileName | None = None
    """Name of a file next to the recipe with the figures of the dataset's published card."""
    layouts: Annotated[dict[str, Layout], Field(min_length=1)]
    lookups: dict[str, Lookup] = Field(default_factory=dict)
    scan_id: TemplateText = "{scan}"
    patient_id: TemplateText = ""
    """Template of the patient id. If it is empty, the scan id is used."""
    source: TemplateText = ""
    """Template of the collection that a scan comes from."""
    duplicate_key: TemplateText = ""
    """Template of a key. Images with the same key are one scan, which is stored once."""
    splits: Splits | None = None
    split: TemplateText = ""
    """Template of the split, for scans that no split list names."""
    folds: Folds | None = None
    """File with the folds of a cross-validation."""
    labels: Labels
    orphaned_masks: Literal["failed", "expected"] = "failed"
    """Whether a mask without its image is a failure.

    Such masks are expected if masks come in one download and images in several.
    """
    downloads: dict[str, Download] = Field(default_factory=dict)
    """Downloads of the dataset, by name. Reports name those that are missing or incomplete."""
    tables: dict[str, Table] = Field(default_factory=dict)
    ignore: tuple[IgnoredFiles, ...] = ()
    _file: Traversable | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, name_or_path: str) -> "Recipe":
        """Read a shipped recipe by name, or any recipe by the path of its file.

        Raises
        ------
        RecipeError
            If there is no such recipe, or it does not load; the message names the key and its line.

        Examples
        --------
        >>> Recipe.load("ctspine1k").title
        'CTSpine1K'
        """
        return cls.load_file(recipe_path(name_or_path))

    @classmethod
    def load_file(cls, path: Traversable) -> "Recipe":
        """Read the recipe file ``path``."""
        recipe = load_strict_yaml(path, cls, RecipeError, names_only=True, check=cls.problems)
        recipe._file = path  # noqa: SLF001  its own
        return recipe

    @classmethod
    def from_pairs(
        cls,
        image: str,
        label: str | None,
        *,
        name: str,
        license: str = "unknown",
        scan_id: str | None = None,
    ) -> "Recipe":
        """Make a recipe for a folder in which images and masks are paired only by name.

        Parameters
        ----------
        image
            Pattern of the images, such as ``"{scan}_ct.nii.gz"``, which must remember a text.
        label
            Template of the mask of an image, such as ``"{scan}_seg.nii.gz"``; None for images
            without masks.
        name
            Name of the dataset.
        license
            License of the data.
        scan_id
            Template of the scan ids. The default is ``{scan}`` if the pattern remembers it,
            otherwise all remembered texts joined by ``_``. If the template uses a name of
            :data:`spinezarr.recipe.series.SERIES_NAMES`, every CT series of a DICOM folder becomes
            a scan.

        Raises
        ------
        RecipeError
            If a pattern is broken or the label template uses a name the image pattern lacks.
        """
        subject = "--image and --label"
        try:
            scan_id = scan_id or _joined_names(image)
            by_series = not SERIES_NAMES.isdisjoint(template_names(scan_id))
            recipe = cls(
                name=name,
                title=name,
                license=license,
                citation="",
                layouts={
                    "pairs": Layout(
                        description="images and masks paired by name",
                        image=(image,),
                        label=() if label is None else (label,),
                        series=SeriesSelection() if by_series else None,
                    )
                },
                scan_id=scan_id,
                labels=Labels(scheme="canonical", state="unknown"),
            )
        except ValidationError as problem:
            reasons = "; ".join(
                f"{validation_message(details)} (found {details['input']!r})"
                for details in problem.errors()
            )
            raise RecipeError(f"{subject}: {reasons}.") from problem
        for key, mistake in recipe.problems():
            raise RecipeError(f"{subject}: {'.'.join(key)} {mistake}")
        return recipe

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the key and the mistake for each template that uses an unknown name, and the like.

        The last mistake may be that the layouts together describe too many files.
        """
        if self.splits is not None and "scan" not in PathPattern(self.splits.entry).names:
            yield (
                ("splits", "entry"),
                f"{self.splits.entry!r} does not name {{scan}}, the scan that a line lists.",
            )
        if self.labels.earlier is not None:
            for name, layout in self.layouts.items():
                if layout.values or layout.segments or layout.label_parts is not None:
                    yield (
                        ("labels", "earlier"),
                        (
                            "goes with masks whose values are stored as they are, and the layout "
                            f"{name!r} gives its masks other values."
                        ),
                    )
        for name, layout in self.layouts.items():
            for pattern in layout.image:
                known_names = self._known_names(PathPattern(pattern).names | layout.extra_names)
                for key, template in self._templates(name, layout):
                    in_parts = key[2:3] in {("label_parts",), ("layers",)}
                    allowed = known_names | {"part"} if in_parts else known_names
                    missing = sorted(template_names(template) - allowed)
                    if missing:
                        names = (
                            f"it names {', '.join(sorted(known_names))}"
                            if known_names
                            else ("it names nothing; write {scan} in place of the name of the scan")
                        )
                        problem = (
                            f"uses {{{missing[0]}}}, which the image pattern {pattern!r} does not "
                            f"name ({names})."
                        )
                        yield key, problem
        yield from self._check_total_length()

    def _check_total_length(self) -> Iterator[tuple[tuple[str, ...], str]]:
        characters = 0
        for name, layout in self.layouts.items():
            for _, template in self._templates_of_files(layout):
                try:
                    for text in self._possible_expressions(layout, template):
                        characters += len(text)
                        if characters > _MAX_EXPRESSION_CHARACTERS:
                            yield ("layouts", name), _TOO_MANY_FILES
                            return
                except RecipeLimitError as problem:
                    yield ("layouts", name), f"describes too many files: {problem}"
                    return

    @property
    def origin(self) -> str:
        """Path of the recipe file, or the name of the recipe."""
        return str(self._file or self.name)

    def used_names(self, layout: str) -> frozenset[str]:
        """Return the names that the templates of a layout and the lookups use."""
        names = {name for lookup in self.lookups.values() for name in lookup.inputs}
        for _, template in self._templates(layout, self.layouts[layout]):
            names |= template_names(template)
        return frozenset(names)

    def _known_names(self, remembered: frozenset[str]) -> frozenset[str]:
        known_names = remembered
        for name, lookup in self.lookups.items():
            if known_names & set(lookup.inputs):
                known_names |= {name}
        return known_names

    def _templates(self, name: str, layout: Layout) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the key and text of each template that is filled for an image of ``layout``."""
        for key in ("scan_id", "patient_id", "source", "duplicate_key", "split", "scan_license"):
            yield (key,), getattr(self, key)
        for table_name, table in self.tables.items():
            yield ("tables", table_name, "matches"), table.matches
        if self.folds is not None:
            yield ("folds", "matches"), self.folds.matches
        layout_key = ("layouts", name)
        for keys, template in self._templates_of_files(layout):
            yield (*layout_key, *keys), template
        if layout.image_list is not None:
            yield (*layout_key, "image_list", "entry"), layout.image_list.entry

    @staticmethod
    def _templates_of_files(layout: Layout) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the key and text of each template that names a file of an image."""
        lists: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
            (("label",), layout.label),
            (("sidecar",), layout.sidecar),
            (("centroids", "files"), layout.centroid_templates),
        )
        for keys, templates in lists:
            for template in templates:
                yield keys, template
        if layout.label_parts is not None:
            yield ("label_parts", "file"), layout.label_parts.file
        for name, layer in layout.layers.items():
            for template in layer.files:
                yield ("layers", name, "files"), template

    @staticmethod
    def _lookup_regex(name: str, lookup: Lookup, constant: str | None) -> str:
        alternatives, characters = [] if constant is None else [constant], 0
        for pattern, value in lookup.values.items():
            alternatives.append(template_regex_text(value, pattern))
            characters += len(alternatives[-1])
            if characters > MAX_REGEX_CHARACTERS:
                raise RecipeLimitError(
                    f"the values of the lookup {name!r} have more than {MAX_REGEX_CHARACTERS} "
                    "characters. Divide it into several recipes."
                )
        return "|".join(alternatives)

    def shipped_splits(self) -> dict[str, tuple[str, int]]:
        """Read the split list next to the recipe; empty if the recipe names none.

        Raises
        ------
        RecipeError
            If the list does not exist, or does not parse.
        """
        if self.splits is None or self.splits.shipped is None or self._file is None:
            return {}
        where, data = self._read_shipped(self.splits.shipped, "splits.shipped")
        return self.splits.parse_bytes(data, where)

    def shipped_card(self) -> Card | None:
        """Read the card next to the recipe; None if the recipe names none.

        Raises
        ------
        RecipeError
            If the card does not exist.
        CardError
            If the card does not load.

        Examples
        --------
        >>> Recipe.load("ctspine1k").shipped_card().scans
        1005
        """
        if self.card is None or self._file is None:
            return None
        return Card.load_file(self._find_shipped(self.card, "card"))

    def shipped_table(self, name: str) -> tuple[str, bytes] | None:
        """Return path and content of a table next to the recipe; None if the recipe names none.

        Raises
        ------
        RecipeError
            If the file does not exist, cannot be read or is too large.
        """
        shipped = self.tables[name].shipped
        if shipped is None or self._file is None:
            return None
        return self._read_shipped(shipped, f"tables.{name}.shipped")

    def _read_shipped(self, name: str, key: str) -> tuple[str, bytes]:
        file_path = self._find_shipped(name, key)
        try:
            data = read_regular_file(file_path, _MAX_SHIPPED_BYTES)
        except OSError as problem:
            raise RecipeError(
                f"{self._file}: {key} names {file_path}, which cannot be read ({problem.strerror})."
            ) from problem
        if len(data) > _MAX_SHIPPED_BYTES:
            raise RecipeError(
                f"{self._file}: {key} names {file_path}, which has more than {_MAX_SHIPPED_BYTES} "
                "bytes. Shorten it."
            )
        return str(file_path), data

    def _find_shipped(self, name: str, key: str) -> Traversable:
        """Find a file next to the recipe, or else among the files of the shipped recipes."""
        own_path = self._file.parent / name if isinstance(self._file, Path) else None
        file_path = (
            own_path if own_path is not None and own_path.is_file() else resource("ingest") / name
        )
        if not file_path.is_file():
            raise RecipeError(
                f"{self._file}: {key} names {own_path or file_path}, which does not exist or is no "
                "file."
            )
        return file_path

    def picks_one_of_several(self, layout: str) -> bool:
        """Whether the recipe takes one of several images of a scan, rather than refusing them."""
        return bool(self.duplicate_key) or self.layouts[layout].image_list is not None

    def resolve_lookups(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return remembered texts together with the values of all lookups for them."""
        values = dict(texts)
        for name, lookup in self.lookups.items():
            value = lookup.get(values)
            if value is not None:
                values[name] = value
        return values

    def path_regexes(
        self, layout: Layout, template: str, parts: Sequence[str] = ()
    ) -> list[BoundedRegex]:
        """Return expressions for all paths that a template may give for images of a layout.

        Parameters
        ----------
        layout
            Layout of the images.
        template
            Template of a file.
        parts
            Names that ``{part}`` stands for. By default, those of the masks and layers that have
            this template.

        Raises
        ------
        RecipeLimitError
            If such an expression is too long.
        """
        extra_regexes = self._extra_regexes(layout, template, parts)
        patterns = (template_regex(template, image, extra_regexes) for image in layout.image)
        return list(dict.fromkeys(patterns))

    def _possible_expressions(self, layout: Layout, template: str) -> Iterator[str]:
        """Yield the texts of :meth:`path_regexes`."""
        extra_regexes = self._extra_regexes(layout, template)
        return (template_regex_text(template, image, extra_regexes) for image in layout.image)

    def _extra_regexes(
        self, layout: Layout, template: str, parts: Sequence[str] = ()
    ) -> dict[str, str]:
        """Return an expression for each text that a template may use in addition to the image."""
        extra_regexes = {name: re.escape(text) for name, text in layout.constants.items()}
        for name, lookup in self.lookups.items():
            extra_regexes[name] = self._lookup_regex(name, lookup, extra_regexes.get(name))
        if not parts:
            own = layout.label_parts is not None and template == layout.label_parts.file
            parts = (*(layout.mask_parts if own else ()), *layout.layer_parts(template))
        if parts:
            extra_regexes["part"] = "|".join(map(re.escape, dict.fromkeys(parts)))
        return extra_regexes
