"""Which files are images, which mask belongs to each, and which of several is meant."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from spinezarr.errors import RecipeError
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.recipe import Layout, PathPattern, Recipe, fill, value_of

__all__ = ["ChosenImages", "FoundImage", "LabelPart", "PathNote", "choose_images", "match_images"]

LEFT_OUT: Final = "image of a scan that is taken from another file"
BESIDE_LEFT_OUT: Final = "belongs to such an image"
_SCAN_ID: Final = re.compile(r"[^\W_][^/\\\x00-\x1f]*")


@dataclass(frozen=True, slots=True)
class PathNote:
    """A file that became no scan, and why."""

    path: str
    reason: str
    """The same for all files of a kind."""
    detail: str = ""
    """What is particular to this one."""


@dataclass(frozen=True, slots=True)
class LabelPart:
    """A binary mask of one structure."""

    value: int
    """What its voxels become."""
    path: str


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image by its name, in one layout."""

    path: str
    """A file, or with ``/`` at the end a folder of DICOM slices."""
    layout: str
    texts: dict[str, str]
    """What the pattern remembered, and what is looked up by it."""
    scan_id: str
    same_scan: str
    """Equal for images of different layouts that show the same scan."""

    @property
    def listed_as(self) -> str:
        """Name of the scan in a split list."""
        return self.texts.get("scan", self.scan_id)


@dataclass(frozen=True, slots=True)
class PairedImage:
    """An image with its mask, as far as there is one."""

    image: FoundImage
    label: str | None
    parts: tuple[LabelPart, ...]
    whole: bool
    """Whether it has the mask that its layout says it has."""


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """One image a scan."""

    taken: tuple[PairedImage, ...]
    """Ordered by path."""
    left: tuple[PathNote, ...]
    """Further images of the same scans."""


def match_images(recipe: Recipe, raw: RawFolder) -> tuple[list[FoundImage], list[PathNote]]:
    """Match every file and folder; return images, in each layout they fit, and ignored files.

    Raises
    ------
    RecipeError
        If the recipe makes a scan id of a path that cannot name a folder.
    """
    ignore = [(PathPattern(item.path), item.because) for item in recipe.ignore]
    masks = [pattern for layout in recipe.layouts.values() for pattern in layout.mask_patterns()]
    found: list[FoundImage] = []
    ignored: dict[str, PathNote] = {}
    for path in raw.sizes:
        reason = next((why for pattern, why in ignore if pattern.match(path) is not None), None)
        if reason is not None:
            ignored[path] = PathNote(path, reason)
        elif not any(pattern.fullmatch(path) for pattern in masks):
            found.extend(_fits(recipe, path))
    for folder, files in raw.folders.items():
        if not all(path in ignored for path in files):
            found.extend(_fits(recipe, folder))
    return found, list(ignored.values())


def _fits(recipe: Recipe, path: str) -> Iterator[FoundImage]:
    """Yield the image that a path is in each layout; a layout's first matching pattern counts."""
    for key, layout in recipe.layouts.items():
        for pattern in layout.image:
            remembered = PathPattern(pattern).match(path)
            if remembered is None:
                continue
            texts = recipe.known_texts({**layout.texts, **remembered})
            scan_id = fill(recipe.scan_id, texts)
            if scan_id is None or fill(recipe.source, texts) is None:
                continue
            if not _SCAN_ID.fullmatch(scan_id):
                raise RecipeError(
                    f"{path}: gives the scan id {scan_id!r}, which cannot name a folder. An id "
                    "starts with a letter or digit and holds no '/', '\\' or control characters."
                )
            yield FoundImage(path, key, texts, scan_id, fill(recipe.same_scan, texts) or scan_id)
            break


def choose_images(recipe: Recipe, raw: RawFolder, found: Iterable[FoundImage]) -> ChosenImages:
    """Choose one image for each scan.

    Of several layouts the first that has the scan with its mask is taken. Within a layout, an
    image that the layout's list names comes before others, one with its mask before one without,
    and then the first by path.
    """
    groups: dict[str, list[FoundImage]] = defaultdict(list)
    for image in found:
        groups[image.same_scan].append(image)
    lists = {key: _listed_lines(layout, raw) for key, layout in recipe.layouts.items()}
    taken: list[PairedImage] = []
    left: dict[str, PathNote] = {}
    for group in groups.values():
        best = _best_layout(recipe, raw, group)
        by_id: dict[str, list[PairedImage]] = defaultdict(list)
        for paired in best:
            by_id[paired.image.scan_id].append(paired)
        chosen = [
            min(same, key=lambda paired: _rank(recipe, lists, paired)) for same in by_id.values()
        ]
        taken += chosen
        paths = {paired.image.path for paired in chosen}
        for image in group:
            if image.path not in paths:
                of = next((p.image for p in chosen if p.image.scan_id == image.scan_id), None)
                taken_from = (of or chosen[0].image).path
                left[image.path] = PathNote(image.path, LEFT_OUT, f"taken from {taken_from}")
                for path in _files_beside(recipe, raw, image):
                    left.setdefault(path, PathNote(path, BESIDE_LEFT_OUT, f"of {image.path}"))
    taken.sort(key=lambda paired: paired.image.path)
    return ChosenImages(tuple(taken), tuple(left.values()))


def _files_beside(recipe: Recipe, raw: RawFolder, image: FoundImage) -> Iterator[str]:
    """Yield the mask, centroids and sidecar of an image that is not taken."""
    layout = recipe.layouts[image.layout]
    paired = _pair(recipe, layout, raw, image)
    yield from (path for path in (paired.label, *(part.path for part in paired.parts)) if path)
    centroids = layout.centroids.files if layout.centroids else ()
    for template in (*centroids, *layout.sidecar):
        path = raw.find(recipe, template, image.texts)
        if path is not None:
            yield path


def _best_layout(recipe: Recipe, raw: RawFolder, group: Sequence[FoundImage]) -> list[PairedImage]:
    """Pair the images of a scan in the first layout that has one of them whole."""
    first: list[PairedImage] = []
    for key, layout in recipe.layouts.items():
        pairs = [_pair(recipe, layout, raw, image) for image in group if image.layout == key]
        if any(paired.whole for paired in pairs):
            return pairs
        first = first or pairs
    return first


def _pair(recipe: Recipe, layout: Layout, raw: RawFolder, image: FoundImage) -> PairedImage:
    """Find the mask of an image."""
    found = (raw.find(recipe, template, image.texts) for template in layout.label)
    label = next((path for path in found if path is not None), None)
    parts: list[LabelPart] = []
    if layout.label_parts is not None:
        for name, text in layout.label_parts.values.items():
            path = raw.find(recipe, layout.label_parts.file, {**image.texts, "part": name})
            if path is not None:
                parts.append(LabelPart(value_of(text), path))
    whole = label is not None or bool(parts) or not layout.has_masks
    return PairedImage(image, label, tuple(parts), whole)


def _listed_lines(layout: Layout, raw: RawFolder) -> frozenset[str]:
    """Read the list of the images that are meant; empty if the layout or the folder has none."""
    if layout.listed is None:
        return frozenset()
    for pattern in map(PathPattern, layout.listed.files):
        for path in raw.sizes:
            if pattern.match(path) is not None:
                text = raw.read(path).decode("utf-8-sig", "replace")
                return frozenset(" ".join(line.split()) for line in text.splitlines())
    return frozenset()


def _rank(
    recipe: Recipe, lists: dict[str, frozenset[str]], paired: PairedImage
) -> tuple[bool, bool, str]:
    """Sort what is meant before what is not, then what has its mask, then by path."""
    image = paired.image
    listed = recipe.layouts[image.layout].listed
    entry = None if listed is None else recipe.fill(listed.entry, image.texts)
    is_listed = entry is not None and " ".join(entry.split()) in lists[image.layout]
    return (not is_listed, not paired.whole, image.path)
