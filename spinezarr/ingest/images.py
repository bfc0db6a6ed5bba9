"""Which files are images, which mask belongs to each, and which of several is meant."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from spinezarr.errors import RecipeError
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.recipe import Layout, PathPattern, Recipe, fill, value_of

__all__ = [
    "ChosenImages",
    "FoundImage",
    "LabelPart",
    "PairedImage",
    "PathNote",
    "choose_images",
    "mask_matcher",
    "match_images",
]

LEFT_OUT: Final = "image of a scan that is taken from another file"
BESIDE_LEFT_OUT: Final = "belongs to such an image"
_SCAN_ID: Final = re.compile(r"(?!zarr\.json$)(?!.*\.partial$)[^\W_][^/\\*?\[\]\x00-\x1f\x7f]*")
"""File systems take ``*?[]`` for wildcards, and a store's own files have the names left out."""


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

    @property
    def masks(self) -> tuple[str, ...]:
        """Files of its mask."""
        return (*(part.path for part in self.parts), *filter(None, [self.label]))


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
    is_mask = mask_matcher(recipe)
    fits = _image_matcher(recipe)
    found: list[FoundImage] = []
    ignored: dict[str, PathNote] = {}
    for path in raw.sizes:
        reason = next((why for pattern, why in ignore if pattern.match(path) is not None), None)
        if reason is not None:
            ignored[path] = PathNote(path, reason)
        else:
            images = list(fits(path))
            if images and not is_mask(path):
                found.extend(map(_with_checked_id, images))
    for folder, files in raw.folders.items():
        if not all(path in ignored for path in files):
            found.extend(map(_with_checked_id, fits(folder)))
    return found, list(ignored.values())


def mask_matcher(recipe: Recipe) -> Callable[[str], bool]:
    """Return a function that tells whether a file may be a mask in one of the layouts."""
    patterns = [
        pattern
        for layout in recipe.layouts.values()
        for template in layout.mask_templates
        for pattern in recipe.possible_paths(layout, template)
    ]
    return lambda path: any(pattern.fullmatch(path) for pattern in patterns)


def _image_matcher(recipe: Recipe) -> Callable[[str], Iterator[FoundImage]]:
    """Return a function that yields the image that a path is in each layout.

    A layout's first matching pattern counts. A path that ends with ``/`` is a folder.
    """
    layouts = [
        (key, layout, [PathPattern(text) for text in layout.image if text.endswith("/") == folders])
        for folders in (False, True)
        for key, layout in recipe.layouts.items()
    ]
    half = len(recipe.layouts)
    of_files, of_folders = layouts[:half], layouts[half:]

    def fits(path: str) -> Iterator[FoundImage]:
        for key, layout, patterns in of_folders if path.endswith("/") else of_files:
            for remembered in filter(None, (pattern.match(path) for pattern in patterns)):
                texts = recipe.known_texts({**layout.texts, **remembered})
                scan_id = fill(recipe.scan_id, texts)
                if scan_id is not None and fill(recipe.source, texts) is not None:
                    same_scan = fill(recipe.same_scan, texts) or scan_id
                    yield FoundImage(path, key, texts, scan_id, same_scan)
                    break

    return fits


def _with_checked_id(image: FoundImage) -> FoundImage:
    if not _SCAN_ID.fullmatch(image.scan_id):
        raise RecipeError(
            f"{image.path}: gives the scan id {image.scan_id!r}, which cannot name a folder. An id "
            "starts with a letter or digit, holds none of '/\\*?[]' and no control characters, and "
            "is neither 'zarr.json' nor ends with '.partial'. Rename the file, or let the recipe's "
            "scan_id leave that part of its name out."
        )
    return image


def choose_images(recipe: Recipe, raw: RawFolder, found: Iterable[FoundImage]) -> ChosenImages:
    """Choose one image for each scan.

    Of several layouts the first that has the scan with its mask is taken. Within a layout, an
    image that the layout's list names comes before others, one with its mask before one without,
    and then the first by path.

    Raises
    ------
    RecipeError
        If two images give one scan id and neither a list nor ``same_scan`` says that they may, or
        if one mask would belong to two scans.
    """
    groups: dict[str, list[FoundImage]] = defaultdict(list)
    for image in found:
        groups[image.same_scan].append(image)
    lists = {key: _listed_lines(layout, raw) for key, layout in recipe.layouts.items()}
    taken: list[PairedImage] = []
    left: dict[str, PathNote] = {}
    for group in groups.values():
        by_id: dict[str, list[PairedImage]] = defaultdict(list)
        for paired in _best_layout(recipe, raw, group):
            by_id[paired.image.scan_id].append(paired)
        chosen = [_one_of(recipe, lists, same) for same in by_id.values()]
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
    _refuse_shared(taken)
    return ChosenImages(tuple(taken), tuple(left.values()))


def _one_of(
    recipe: Recipe, lists: dict[str, frozenset[str]], same: Sequence[PairedImage]
) -> PairedImage:
    """Choose among images of one layout with one scan id."""
    first, *others = sorted(same, key=lambda paired: _rank(recipe, lists, paired))
    expected = recipe.same_scan or recipe.layouts[first.image.layout].listed is not None
    if others and not expected:
        raise _one_id(first.image, others[0].image)
    return first


def _refuse_shared(taken: Iterable[PairedImage]) -> None:
    """Refuse scans with one id, or with one mask."""
    ids: dict[str, FoundImage] = {}
    masks: dict[str, FoundImage] = {}
    for paired in taken:
        twin = ids.setdefault(paired.image.scan_id, paired.image)
        if twin is not paired.image:
            raise _one_id(twin, paired.image)
        for path in dict.fromkeys(paired.masks):
            owner = masks.setdefault(path, paired.image)
            if owner is not paired.image:
                raise RecipeError(
                    f"the mask {path} would belong to two scans:\n  {owner.path}\n  "
                    f"{paired.image.path}\nA mask belongs to one: let its template name the image "
                    "more closely, or, if both show the same scan, say so with 'same_scan'."
                )


def _one_id(a: FoundImage, b: FoundImage) -> RecipeError:
    """Describe two images with one scan id."""
    names = sorted(name for name in a.texts if a.texts[name] != b.texts.get(name))
    apart = next((name for name in names if "/" not in a.texts[name] + b.texts.get(name, "/")), "")
    example = f', e.g. "{{{apart}}}_{{scan}}"' if apart else ""
    return RecipeError(
        f"two images give the scan id {a.scan_id!r}:\n  {a.path}\n  {b.path}\n"
        f"If they are two scans, tell their ids apart in the recipe's 'scan_id'{example}. If they "
        "are one, remove a file or say so with 'same_scan' in the recipe."
    )


def _files_beside(recipe: Recipe, raw: RawFolder, image: FoundImage) -> Iterator[str]:
    """Yield the mask, centroids and sidecar of an image that is not taken."""
    layout = recipe.layouts[image.layout]
    yield from _pair(layout, raw, image).masks
    for template in (*layout.centroid_templates, *layout.sidecar):
        path = raw.find(template, image.texts)
        if path is not None:
            yield path


def _best_layout(recipe: Recipe, raw: RawFolder, group: Sequence[FoundImage]) -> list[PairedImage]:
    """Pair the images of a scan in the first layout that has one of them whole."""
    first: list[PairedImage] = []
    for key, layout in recipe.layouts.items():
        pairs = [_pair(layout, raw, image) for image in group if image.layout == key]
        if any(paired.whole for paired in pairs):
            return pairs
        first = first or pairs
    return first


def _pair(layout: Layout, raw: RawFolder, image: FoundImage) -> PairedImage:
    """Find the mask of an image."""
    found = (raw.find(template, image.texts) for template in layout.label)
    label = next((path for path in found if path is not None), None)
    parts: list[LabelPart] = []
    if layout.label_parts is not None:
        for name, text in layout.label_parts.values.items():
            path = raw.find(layout.label_parts.file, {**image.texts, "part": name})
            if path is not None:
                parts.append(LabelPart(value_of(text), path))
    whole = label is not None or bool(parts) or not layout.has_masks
    return PairedImage(image, label, tuple(parts), whole)


def _listed_lines(layout: Layout, raw: RawFolder) -> frozenset[str]:
    """Read the list of the images that are meant; empty if the layout or the folder has none."""
    path = None if layout.listed is None else raw.first(layout.listed.files)
    if path is None:
        return frozenset()
    text = raw.read(path).decode("utf-8-sig", "replace")
    return frozenset(" ".join(line.split()) for line in text.splitlines())


def _rank(
    recipe: Recipe, lists: dict[str, frozenset[str]], paired: PairedImage
) -> tuple[bool, bool, str]:
    """Sort what is meant before what is not, then what has its mask, then by path."""
    image = paired.image
    listed = recipe.layouts[image.layout].listed
    entry = None if listed is None else fill(listed.entry, image.texts)
    is_listed = entry is not None and " ".join(entry.split()) in lists[image.layout]
    return (not is_listed, not paired.whole, image.path)
