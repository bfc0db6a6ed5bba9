"""How many files does each pattern of a recipe match in a raw folder?"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from spinezarr.formats.file_kinds import DICOM, DICOM_SEG_STEP, DICOM_SERIES_STEP
from spinezarr.formats.volume import unsupported_kind
from spinezarr.ingestion.discovery.images import MatchedImages, PairedImage
from spinezarr.ingestion.discovery.raw_folder import RawFolder, names_of
from spinezarr.recipe import BoundedRegex, Layout, PathPattern, Recipe
from spinezarr.text import to_nfc

__all__ = ["PartUse", "PatternUse", "part_uses", "pattern_uses"]

Kind = Literal["image", "mask", "layer", "centroids", "sidecar", "list"]
_KIND_ORDER: Final[tuple[Kind, ...]] = (
    "mask",
    "layer",
    "image",
    "centroids",
    "sidecar",
    "list",
)
"""Order of the kinds. A file that fits patterns of several kinds counts for the first of them."""


@dataclass(frozen=True, slots=True)
class PatternUse:
    """Number of files in a raw folder that one pattern of a recipe matches."""

    layout: str
    kind: Kind
    pattern: str
    files: int
    """Number of files.

    A file that fits several patterns counts once: for the layout that its scan uses, or else for
    the first layout.
    """
    unread: int
    """Number of these files with an ending that no reader accepts."""
    unread_advice: str
    """Formats of these files, and what to do with them; empty if all can be read."""


@dataclass(frozen=True, slots=True)
class PartUse:
    """Number of scans of a layout that have one part of a mask."""

    layout: str
    part: str
    scans_with: int
    scans_without: int
    """Number of scans that have other parts but not this one."""


def pattern_uses(
    recipe: Recipe,
    folder: RawFolder,
    matched: MatchedImages,
    paired_images: Iterable[PairedImage],
    ignored: Collection[str],
) -> tuple[PatternUse, ...]:
    """Count the files that each pattern and template of the recipe matches, each file once.

    Parameters
    ----------
    recipe
        Recipe whose patterns are counted.
    folder
        Files of the raw folder.
    matched
        Images among them.
    paired_images
        Images that became scans, with their masks.
    ignored
        Paths of files that belong to no scan. They count for no pattern.
    """
    paired_images = tuple(paired_images)
    images: dict[str, list[str]] = {}
    for image in (*matched.images, *(image for image, _ in matched.misnamed)):
        images.setdefault(image.path, []).append(image.layout)
    layout_of_path = {
        path: paired.image.layout
        for paired in paired_images
        for path in (*paired.files, *paired.layer_files)
    }
    image_folders = {paired.image.path for paired in paired_images if paired.image.path[-1] == "/"}

    def is_explained(path: str) -> bool:
        """Return whether a folder holds only files that are ignored, or that are masks."""
        return all(file in ignored or file in layout_of_path for file in folder.folders[path])

    patterns = [pattern for key in recipe.layouts for pattern in _patterns(recipe, key)]
    ranked = sorted(patterns, key=lambda pattern: _KIND_ORDER.index(pattern.kind))
    files: Counter[_Pattern] = Counter()
    unread: dict[_Pattern, list[str]] = {}
    for path in (*folder.sizes, *folder.folders):
        if path in ignored or f"{path.rpartition('/')[0]}/" in image_folders - {path}:
            continue
        if path.endswith("/") and path not in image_folders and is_explained(path):
            continue
        pattern = _first_match(ranked, path, layout_of_path.get(path), images.get(path, ()))
        if pattern is None:
            continue
        files[pattern] += 1
        kind = None
        if pattern.kind in {"image", "mask", "layer"}:
            segments = _has_segments(recipe.layouts[pattern.layout], pattern)
            kind = unsupported_kind(path, segments=segments)
        if kind is not None:
            step = kind.next_step
            if kind is DICOM:
                step = DICOM_SERIES_STEP if pattern.kind == "image" else DICOM_SEG_STEP
            unread.setdefault(pattern, []).append(f"By its ending it is {kind.name}. {step}")
    return tuple(
        PatternUse(
            pattern.layout,
            pattern.kind,
            pattern.text,
            files[pattern],
            len(unread.get(pattern, ())),
            " ".join(dict.fromkeys(unread.get(pattern, ()))),
        )
        for pattern in patterns
    )


def part_uses(recipe: Recipe, paired_images: Iterable[PairedImage]) -> tuple[PartUse, ...]:
    """Count the scans that have each part of a mask, among those that have any part."""
    scans_of_layout: Counter[str] = Counter()
    scans_with_part: Counter[tuple[str, str]] = Counter()
    for paired in paired_images:
        if paired.parts:
            scans_of_layout[paired.image.layout] += 1
            scans_with_part.update((paired.image.layout, name) for name in paired.part_names)
    return tuple(
        PartUse(
            key, name, scans_with_part[key, name], scans_of_layout[key] - scans_with_part[key, name]
        )
        for key, layout in recipe.layouts.items()
        if layout.label_parts is not None and key in scans_of_layout
        for name in layout.label_parts.values
    )


@dataclass(frozen=True, slots=True)
class _Pattern:
    layout: str
    kind: Kind
    text: str
    regexes: tuple[BoundedRegex, ...]


def _has_segments(layout: Layout, pattern: _Pattern) -> bool:
    """Return whether the files of a pattern are masks with named segments."""
    if pattern.kind == "layer":
        return any(
            layer.segments for layer in layout.layers.values() if pattern.text in layer.files
        )
    return pattern.kind == "mask" and bool(layout.segments)


def _first_match(
    patterns: Iterable[_Pattern], path: str, used_layout: str | None, image_layouts: Collection[str]
) -> _Pattern | None:
    """Return the pattern that a file counts for: the first that fits one of its names."""
    for name in [to_nfc(path)] if path.endswith("/") else names_of(path):
        for pattern in patterns:
            if pattern.text.endswith("/") != path.endswith("/"):
                continue
            if used_layout not in (None, pattern.layout):
                continue
            if pattern.kind == "image" and pattern.layout not in image_layouts:
                continue
            if any(regex.fullmatch(name) for regex in pattern.regexes):
                return pattern
    return None


def _patterns(recipe: Recipe, key: str) -> Iterator[_Pattern]:
    layout = recipe.layouts[key]
    for text in layout.image:
        yield _Pattern(key, "image", text, (PathPattern(text).regex,))
    templates: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("mask", layout.mask_templates),
        ("layer", tuple(dict.fromkeys(layout.layer_templates))),
        ("centroids", layout.centroid_templates),
        ("sidecar", layout.sidecar),
    )
    for kind, texts in templates:
        for text in texts:
            parts = layout.layer_parts(text) if kind == "layer" else layout.mask_parts
            yield _Pattern(key, kind, text, tuple(recipe.path_regexes(layout, text, parts)))
    for text in layout.image_list.files if layout.image_list else ():
        yield _Pattern(key, "list", text, (PathPattern(text).regex,))
