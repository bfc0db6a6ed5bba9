"""Which files are images, which mask belongs to each, and which image is chosen?"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from spinezarr.ingestion.discovery.raw_folder import RawFolder, names_of
from spinezarr.recipe import Layer, Layout, PathPattern, Recipe, fill_template, label_value
from spinezarr.store.table import natural_key
from spinezarr.text import MultilineText, count_noun, is_printable, to_nfc, to_printable

__all__ = [
    "ChosenImages",
    "FoundImage",
    "FoundLayer",
    "LabelPart",
    "MatchedImages",
    "PairedImage",
    "PathNote",
    "RefusedScan",
    "SeriesFiles",
    "choose_images",
    "mask_matcher",
    "match_images",
]

_LEFT_OUT: Final = "image of a scan that is read from another file"
_UNKNOWN_SCAN_ID: Final = "unknown"
"""Scan id of a folder whose series are scans of their own, until its headers have been read."""
_COMPANION_LEFT_OUT: Final = "belongs to an image of a scan that is read from another file"
_ALTERNATIVE: Final = "fits a scan that uses another file"
_SCAN_ID: Final = re.compile(r"(?!__)(?!zarr\.json$)(?!.*\.partial$)[\w-][^/\\*?\[\]]*")
"""Allowed scan ids.

File systems treat ``*?[]`` as wildcards. Names that begin with a dot are hidden. Zarr v3 ('Node
names') reserves those that begin with ``__``. The files of a store have the other excluded names.
"""


@dataclass(frozen=True, slots=True)
class PathNote:
    """A file that belongs to no scan, and why."""

    path: str
    reason: str
    """Reason that is the same for all files of a kind."""
    detail: str = ""
    """Reason that concerns this file alone."""


@dataclass(frozen=True, slots=True)
class LabelPart:
    """A binary mask of one structure."""

    value: int
    """Stored value of its voxels."""
    path: str


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """The files of a further mask of an image."""

    name: str
    """Name of the mask."""
    label: str | None
    """Path of the file; None if there is one for each structure."""
    parts: tuple[LabelPart, ...] = ()
    absent_parts: tuple[str, ...] = ()
    """Structures of the scheme without a file although others have one."""
    problem: str = ""
    """Why the files cannot be used; empty if they can."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the mask."""
        return (*(part.path for part in self.parts), *filter(None, [self.label]))


@dataclass(frozen=True, slots=True)
class SeriesFiles:
    """One CT series of a folder whose series are scans of their own."""

    key: str
    """:attr:`spinezarr.formats.dicom_series.CtSeries.key`."""
    name: str
    """Name of the series in messages, e.g. ``series '2'``."""
    files: tuple[str, ...]
    """Files of the series, relative to the raw folder."""
    folders: tuple[str, ...] = ()
    """All folders that hold files of the series, if there are several; else empty."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that a pattern of one layout matches."""

    path: str
    """Path of a file, or of a folder of DICOM slices, which ends with ``/``."""
    layout: str
    texts: dict[str, str]
    """Texts that the pattern matched, and texts that lookups derived from them."""
    scan_id: str
    duplicate_key: str
    """Key that images of different layouts share if they show the same scan."""
    series: SeriesFiles | None = None
    """Series of the folder, if each series is an image; else None."""

    @property
    def name(self) -> str:
        """Path and series, for messages."""
        return self.path if self.series is None else f"{self.path} ({self.series.name})"

    @property
    def identity(self) -> tuple[str, str]:
        """Path and series. They are equal only if two layouts find the same image."""
        return self.path, self.series.key if self.series is not None else ""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths that the image is read from.

        A path that ends with ``/`` stands for the files in it.
        """
        return (self.path,) if self.series is None else self.series.files

    @property
    def listed_as(self) -> str:
        """Name of the scan in a split list."""
        return self.texts.get("scan", self.scan_id)


@dataclass(frozen=True, slots=True)
class PairedImage:
    """An image with its mask and the small files that accompany it, if there are any."""

    image: FoundImage
    label: str | None
    parts: tuple[LabelPart, ...]
    part_names: tuple[str, ...]
    """Names of the parts in the recipe, in the order of ``parts``."""
    centroids: str | None
    sidecar: str | None
    has_expected_mask: bool
    """Whether the image has the mask that its layout expects."""
    absent_parts: tuple[str, ...]
    """Parts that the layout names and that are absent although others are present."""
    alternatives: tuple[PathNote, ...]
    """Files that fit the templates of the image, too, but are not used."""
    problem: str
    """Why it is unclear which files belong to the image; empty if it is clear."""
    layers: tuple[FoundLayer, ...] = ()
    """Further masks of the image."""

    @property
    def masks(self) -> tuple[str, ...]:
        """Files of the mask."""
        return (*(part.path for part in self.parts), *filter(None, [self.label]))

    @property
    def files(self) -> tuple[str, ...]:
        """All files and folders that the scan is read from, without those of its layers."""
        return (*self.image.files, *self.masks, *filter(None, [self.centroids, self.sidecar]))

    @property
    def layer_files(self) -> tuple[str, ...]:
        """All files of further masks."""
        return tuple(path for layer in self.layers for path in layer.paths)

    @property
    def companions(self) -> tuple[str, ...]:
        """All files except those of the image."""
        return (*self.files[len(self.image.files) :], *self.layer_files)


@dataclass(frozen=True, slots=True)
class RefusedScan:
    """An image that cannot be used because of its name, or several images with one scan id."""

    scan_id: str
    paths: tuple[str, ...]
    """The images, and all files that belong to them."""
    reason: str


@dataclass(frozen=True, slots=True)
class MatchedImages:
    """Files of a folder that the patterns of a recipe match."""

    images: tuple[FoundImage, ...]
    """Images, once for each layout whose patterns they match."""
    ignored: tuple[PathNote, ...]
    """Files that the recipe knows and ignores."""
    misnamed: tuple[tuple[FoundImage, str], ...] = ()
    """Images whose name cannot be used, each with the reason."""

    def separate_misnamed(self, raw: RawFolder) -> "MatchedImages":
        """Return the matches after moving images with unusable names to ``misnamed``."""
        misnamed = {
            image.identity: (image, reason)
            for image in self.images
            if (reason := _name_problem(image, raw))
        }
        return replace(
            self,
            images=tuple(image for image in self.images if image.identity not in misnamed),
            misnamed=(*self.misnamed, *misnamed.values()),
        )


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """The image that was chosen for each scan."""

    pairs: tuple[PairedImage, ...]
    """Chosen images, ordered by path."""
    left_out: tuple[PathNote, ...]
    """Further images of the same scans, and further files that fit them."""
    refused: tuple[RefusedScan, ...]


def match_images(recipe: Recipe, raw: RawFolder) -> MatchedImages:
    """Match every file and folder."""
    ignore = [(PathPattern(item.path), item.reason) for item in recipe.ignore]
    is_mask = mask_matcher(recipe)
    matching_images = _image_matcher(recipe)
    found_images: list[FoundImage] = []
    ignored: dict[str, PathNote] = {}
    for path in raw.sizes:
        reason = next((text for pattern, text in ignore if pattern.match(path) is not None), None)
        if reason is not None:
            ignored[path] = PathNote(path, reason)
            continue
        for name in names_of(path):
            if name != to_nfc(path) and raw.named(name):
                continue  # another file has exactly this name
            images = list(matching_images(path, name))
            if images or is_mask(name):
                found_images += [] if is_mask(name) else images
                break
    for folder, files in raw.folders.items():
        if not (all(path in ignored for path in files) or is_mask(folder)):
            found_images += matching_images(folder, folder)
    return MatchedImages(tuple(found_images), tuple(ignored.values())).separate_misnamed(raw)


def mask_matcher(recipe: Recipe) -> Callable[[str], bool]:
    """Return a function that tells whether a name may be that of a mask in a layout.

    A name that ends with ``/`` is that of a folder.
    """
    patterns = {
        folders: [
            pattern
            for layout in recipe.layouts.values()
            for template in (*layout.mask_templates, *layout.layer_templates)
            if template.endswith("/") == folders
            for pattern in recipe.path_regexes(layout, template)
        ]
        for folders in (False, True)
    }

    def is_mask(name: str) -> bool:
        masks = patterns[name.endswith("/")]
        return any(pattern.fullmatch(to_nfc(name)) for pattern in masks)

    return is_mask


def _image_matcher(recipe: Recipe) -> Callable[[str, str], Iterator[FoundImage]]:
    """Return a function that yields the image that a path is in each layout.

    The first matching pattern of a layout counts. A path that ends with ``/`` is a folder.
    """
    layouts = [
        (key, layout, [PathPattern(text) for text in layout.image if text.endswith("/") == folders])
        for folders in (False, True)
        for key, layout in recipe.layouts.items()
    ]
    n_layouts = len(recipe.layouts)
    file_layouts, folder_layouts = layouts[:n_layouts], layouts[n_layouts:]

    def images_of_path(path: str, name: str) -> Iterator[FoundImage]:
        for key, layout, patterns in folder_layouts if path.endswith("/") else file_layouts:
            for matched_texts in filter(None, (pattern.match(name) for pattern in patterns)):
                texts = recipe.resolve_lookups({**layout.constants, **matched_texts})
                if layout.series is not None:
                    # The scans of the folder are known only after its headers have been read.
                    yield FoundImage(path, key, texts, _UNKNOWN_SCAN_ID, _UNKNOWN_SCAN_ID)
                    break
                scan_id = fill_template(recipe.scan_id, texts)
                if scan_id is not None and fill_template(recipe.source, texts) is not None:
                    duplicate_key = fill_template(recipe.duplicate_key, texts) or scan_id
                    yield FoundImage(path, key, texts, scan_id, duplicate_key)
                    break

    return images_of_path


def _name_problem(image: FoundImage, raw: RawFolder) -> str:
    """Return the reason why the name of an image cannot be used, or "" if it can."""
    if raw.cannot_open(image.path):
        return _unusable_path_message(image.path)
    if _SCAN_ID.fullmatch(image.scan_id) and is_printable(image.scan_id):
        return ""
    return (
        f"{image.name}: gives the scan id '{to_printable(image.scan_id)}', which cannot name a "
        "folder of a store. An id starts with a letter, a digit, '-' or one '_', contains none of "
        "'/\\*?[]' and no control or invisible characters, is not 'zarr.json', and does not end "
        "with '.partial'. Rename the file, or change the scan_id of the recipe so that it leaves "
        "that part of the name out."
    )


def _unusable_path_message(path: str) -> str:
    return (
        f"{path}: its path holds control characters or is not UTF-8, shown here as escapes. "
        "Rename it."
    )


def choose_images(recipe: Recipe, raw: RawFolder, matched: MatchedImages) -> ChosenImages:
    """Choose one image for each scan.

    If several layouts have a scan, the first layout that has it with its mask is used. Within a
    layout, images that the layout's list names come first, then images with a mask, then the order
    of paths decides. Images are refused in three cases:

    * Two images give the same scan id, and neither a list nor ``duplicate_key`` allows that.
    * Two images would share a mask.
    * Several files fit one image equally well.
    """
    groups: dict[str, list[FoundImage]] = defaultdict(list)
    for image in matched.images:
        groups[image.duplicate_key].append(image)
    pairing = _Pairing(recipe, raw, matched)
    lists = {key: _listed_lines(layout, raw) for key, layout in recipe.layouts.items()}
    pairs: list[PairedImage] = []
    refused = [_refused_scan([pairing(image)], reason) for image, reason in matched.misnamed]
    left_out: dict[str, PathNote] = {}
    for group in groups.values():
        by_id: dict[str, list[PairedImage]] = defaultdict(list)
        for paired in _best_layout(recipe, pairing, group):
            by_id[paired.image.scan_id].append(paired)
        used: list[PairedImage] = []
        for candidates in by_id.values():
            first, *others = sorted(candidates, key=lambda paired: _rank(recipe, lists, paired))
            used.append(first)
            if others and not recipe.picks_one_of_several(first.image.layout):
                used += others
                refused.append(
                    _refused_scan(candidates, _same_id_message(first.image, others[0].image))
                )
            else:
                pairs.append(first)
        for note in (*_left_out_notes(group, used, pairing), *_alternative_notes(used)):
            if note.reason == _LEFT_OUT or note.path not in left_out:
                left_out[note.path] = note
    ambiguous = _ambiguous_scans(pairs, raw)
    unambiguous = [paired for paired in pairs if paired.image.identity not in ambiguous]
    unambiguous.sort(key=lambda paired: (paired.image.path, natural_key(paired.image.scan_id)))
    return ChosenImages(
        tuple(_with_usable_layers(unambiguous, raw)),
        tuple(left_out.values()),
        (*refused, *_unique_by_id(ambiguous.values())),
    )


def _left_out_notes(
    group: Iterable[FoundImage], used: Sequence[PairedImage], pairing: "_Pairing"
) -> Iterator[PathNote]:
    """Yield images that show a chosen scan again, and the files that belong to them."""
    used_identities = {paired.image.identity for paired in used}
    for image in group:
        if image.identity not in used_identities:
            chosen = next((p.image for p in used if p.image.scan_id == image.scan_id), None)
            used_name = (chosen or used[0].image).name
            yield from (PathNote(path, _LEFT_OUT, f"read from {used_name}") for path in image.files)
            for path in pairing(image).companions:
                yield PathNote(path, _COMPANION_LEFT_OUT, f"of {image.name}")


def _alternative_notes(used: Iterable[PairedImage]) -> Iterator[PathNote]:
    return (note for paired in used for note in paired.alternatives)


def _unique_by_id(refused: Iterable[RefusedScan]) -> Iterator[RefusedScan]:
    yield from {scan.scan_id: scan for scan in refused}.values()


def _refused_scan(images: Iterable[PairedImage], reason: str) -> RefusedScan:
    """Return a refused scan, which may have several images."""
    images = list(images)
    paths = dict.fromkeys(
        path for paired in images for path in (*paired.files, *paired.layer_files)
    )
    return RefusedScan(to_printable(images[0].image.scan_id), tuple(paths), reason)


def _ambiguous_scans(
    pairs: Sequence[PairedImage], raw: RawFolder
) -> dict[tuple[str, str], RefusedScan]:
    """Find scans with one id, with one mask, or with unclear files, by their images."""
    by_id: dict[str, list[PairedImage]] = defaultdict(list)
    by_mask: dict[str, list[PairedImage]] = defaultdict(list)
    refused: dict[tuple[str, str], RefusedScan] = {}
    for paired in pairs:
        by_id[paired.image.scan_id].append(paired)
        for path in dict.fromkeys(paired.masks):
            by_mask[path].append(paired)
        unusable = [path for path in paired.files if raw.cannot_open(path)]
        if paired.problem or unusable:
            reason = paired.problem or _unusable_path_message(unusable[0])
            refused[paired.image.identity] = _refused_scan([paired], reason)
    for path, owners in by_mask.items():
        if len(owners) > 1:
            reason = _shared_mask_message(path, [paired.image.name for paired in owners])
            for paired in owners:
                refused.setdefault(paired.image.identity, _refused_scan([paired], reason))
    for same_id in by_id.values():
        if len(same_id) > 1:
            refused_scan = _refused_scan(
                same_id, _same_id_message(same_id[0].image, same_id[1].image)
            )
            refused |= dict.fromkeys((paired.image.identity for paired in same_id), refused_scan)
    return refused


def _with_usable_layers(pairs: Sequence[PairedImage], raw: RawFolder) -> Iterator[PairedImage]:
    """Give each layer whose files cannot be used its reason. The scan itself is not refused."""
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for paired in pairs:
        for layer in paired.layers:
            for path in layer.paths:
                owners[layer.name, path].append(paired.image.name)

    def problem(layer: FoundLayer) -> str:
        if layer.problem:
            return layer.problem
        for path in layer.paths:
            if raw.cannot_open(path):
                return _unusable_path_message(path)
            if len(owners[layer.name, path]) > 1:
                return _shared_mask_message(path, owners[layer.name, path])
        return ""

    for paired in pairs:
        layers = (replace(layer, problem=problem(layer)) for layer in paired.layers)
        yield replace(paired, layers=tuple(layers))


def _shared_mask_message(path: str, images: Sequence[str]) -> str:
    return MultilineText(
        f"the mask {path} would belong to two scans:",
        f"  {images[0]}",
        f"  {images[1]}",
        "A mask belongs to one scan. Make the template of the mask more specific. If both images "
        "show the same scan, say so with 'duplicate_key'.",
    )


def _same_id_message(a: FoundImage, b: FoundImage) -> str:
    """Return a message about two images with one scan id."""
    a, b = sorted((a, b), key=lambda image: image.name)
    differing_name = min(
        (name for name in a.texts if a.texts[name] != b.texts.get(name)),
        key=lambda name: (name != "series_number", "/" in a.texts[name], name),
        default="",
    )
    differing_texts = a.texts.get(differing_name, "") + b.texts.get(differing_name, "")
    join_filter = "|join" if "/" in differing_texts else ""
    example = f', e.g. "{{{differing_name}{join_filter}}}_{{scan}}"' if differing_name else ""
    unicode_line = (
        ["Their names differ only in the Unicode form of a letter."]
        if to_nfc(a.path) == to_nfc(b.path)
        else []
    )
    return MultilineText(
        f"two images give the scan id '{a.scan_id}':",
        f"  {a.name}",
        f"  {b.name}",
        *unicode_line,
        f"If they are two scans, change 'scan_id' in the recipe so that their ids differ{example}. "
        "If they are one scan, remove a file, or say so with 'duplicate_key' in the recipe.",
    )


def _best_layout(
    recipe: Recipe, pairing: "_Pairing", group: Sequence[FoundImage]
) -> list[PairedImage]:
    """Pair the images of a scan in the first layout that has an image with its mask."""
    first: list[PairedImage] = []
    for key in recipe.layouts:
        pairs = [pairing(image) for image in group if image.layout == key]
        if any(paired.has_expected_mask for paired in pairs):
            return pairs
        first = first or pairs
    return first


class _Pairing:
    """Finds the files that belong to an image."""

    def __init__(self, recipe: Recipe, raw: RawFolder, matched: MatchedImages) -> None:
        self._recipe = recipe
        self._raw = raw
        self._ignored = {note.path for note in matched.ignored}
        self._images = {image.path for image in matched.images}

    def __call__(self, image: FoundImage) -> PairedImage:
        """Find mask, centroids and sidecar of an image."""
        layout = self._recipe.layouts[image.layout]
        chooser = _FileChooser(image.name, self._recipe.picks_one_of_several(image.layout))
        label = chooser.first(self._files(text, image.texts) for text in layout.label)
        parts: dict[str, LabelPart] = {}
        absent: list[str] = []
        if layout.label_parts is not None:
            for name, text in layout.label_parts.values.items():
                texts = {**image.texts, "part": name}
                path = chooser.first([self._files(layout.label_parts.file, texts)])
                if path is not None:
                    parts[name] = LabelPart(label_value(text), path)
                else:
                    absent.append(name)
        centroids, sidecar = (
            chooser.first(self._files(text, image.texts) for text in templates)
            for templates in (layout.centroid_templates, layout.sidecar)
        )
        layer_chooser = _FileChooser(image.name, self._recipe.picks_one_of_several(image.layout))
        layers = tuple(
            found
            for name, layer in layout.layers.items()
            if (found := self._layer(image, name, layer, layer_chooser)).paths
        )
        return PairedImage(
            image,
            label,
            tuple(parts.values()),
            tuple(parts),
            centroids,
            sidecar,
            has_expected_mask=label is not None or bool(parts) or not layout.has_masks,
            absent_parts=tuple(absent) if parts else (),
            alternatives=(*chooser.alternatives, *layer_chooser.alternatives),
            problem=chooser.problem,
            layers=layers,
        )

    def _layer(
        self, image: FoundImage, name: str, layer: Layer, chooser: "_FileChooser"
    ) -> FoundLayer:
        """Find the files of a further mask, which has no paths if there are none."""
        chooser.problem = ""
        if not layer.in_parts:
            path = chooser.first(self._files(text, image.texts) for text in layer.files)
            return FoundLayer(name, path, problem=chooser.problem)
        parts: list[LabelPart] = []
        absent: list[str] = []
        values = layer.label_scheme.values
        # One template must give all files, so that parts of two masks are never merged.
        for template in layer.files:
            absent = []
            for part, value in values.items():
                path = chooser.first([self._files(template, {**image.texts, "part": part})])
                if path is None:
                    absent.append(part)
                else:
                    parts.append(LabelPart(value, path))
            if parts:
                break
        return FoundLayer(name, None, tuple(parts), tuple(absent), chooser.problem)

    def _files(self, template: str, texts: dict[str, str]) -> list[str]:
        """Return the files of a template. Ignored files count only if there are no others.

        An image is never the mask of another image, and neither is one of its slices.
        """
        files = [
            path
            for path in self._raw.find(template, texts)
            if path not in self._images and f"{path.rpartition('/')[0]}/" not in self._images
        ]
        return [path for path in files if path not in self._ignored] or files


class _FileChooser:
    """Chooses one file among several, and remembers the others."""

    def __init__(self, image: str, may_choose: bool) -> None:  # noqa: FBT001  private
        self._image = image
        self._may_choose = may_choose
        self.alternatives: list[PathNote] = []
        self.problem = ""

    def first(self, files_of_templates: Iterable[Sequence[str]]) -> str | None:
        """Return the first file of the first template that has one."""
        matches = [files for files in files_of_templates if files]
        if not matches:
            return None
        path, *others = matches[0]
        if others and not self._may_choose:
            self.problem = self.problem or MultilineText(
                f"{count_noun(len(matches[0]), 'file')} fit {self._image} equally well:",
                f"  {path}",
                f"  {others[0]}",
                "Keep only one of them in the folder, or make the template in the recipe more "
                "specific.",
            )
        self.alternatives += [
            PathNote(other, _ALTERNATIVE, f"{self._image} uses {path}")
            for other in dict.fromkeys(
                (*others, *(file for files in matches[1:] for file in files))
            )
            if other != path
        ]
        return path


def _listed_lines(layout: Layout, raw: RawFolder) -> frozenset[str]:
    """Return the lines of the list of images; empty if there is no list."""
    path = None if layout.image_list is None else raw.first(layout.image_list.files)
    if path is None:
        return frozenset()
    text = to_nfc(raw.read(path).decode("utf-8-sig", "replace"))
    return frozenset(" ".join(line.split()) for line in text.splitlines())


def _rank(
    recipe: Recipe, lists: dict[str, frozenset[str]], paired: PairedImage
) -> tuple[bool, bool, str]:
    """Return a sort key: listed images first, then images with a mask, then by path."""
    image = paired.image
    image_list = recipe.layouts[image.layout].image_list
    entry = None if image_list is None else fill_template(image_list.entry, image.texts)
    is_listed = entry is not None and " ".join(entry.split()) in lists[image.layout]
    return (not is_listed, not paired.has_expected_mask, image.path)
