"""Find the scans of a raw folder by a recipe's patterns; only tables and lists are opened."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spinezarr.errors import UsageError
from spinezarr.ingest.images import (
    LabelPart,
    PairedImage,
    PathNote,
    choose_images,
    mask_matcher,
    match_images,
)
from spinezarr.ingest.nothing_found import known_layouts, nothing_found
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.ingest.tables import JoinedTables, TableUse, join_tables
from spinezarr.recipe import (
    CentroidConvention,
    LabelState,
    Layout,
    PathPattern,
    Recipe,
    fill,
)
from spinezarr.store.files import open_filesystem

__all__ = [
    "Discovery",
    "LabelPart",
    "PathNote",
    "PatternUse",
    "ScanSource",
    "UnpairedImage",
    "discover",
]


@dataclass(frozen=True, slots=True)
class ScanSource:
    """The files of one scan, and what the recipe knows of it."""

    scan_id: str
    patient_id: str
    source: str
    """Collection the scan comes from; empty if the recipe knows none."""
    split: str
    """Split name; empty if the scan is in no split."""
    split_index: int
    """Position in its split's list, -1 if it is in none."""
    image: str
    """Path of the image, relative to the raw folder; a folder of DICOM slices ends with ``/``."""
    label: str | None
    """Path of the mask, relative to the raw folder; None for an image without one."""
    size_bytes: int
    """Of image and mask."""
    label_parts: tuple[LabelPart, ...] = ()
    """Instead of ``label``: binary masks, one a structure."""
    label_state: LabelState = "unknown"
    """Whether vertebrae cut by the end of the volume are annotated."""
    label_values: tuple[tuple[int, int], ...] = ()
    """Value in the mask's file and value stored; empty if they are the same."""
    centroids: str | None = None
    """Path of the file with annotated centres."""
    centroid_bytes: int = 0
    """Size of that file."""
    centroid_convention: CentroidConvention | None = None
    sidecar: str | None = None
    """Path of a JSON file with further columns."""
    sidecar_keys: tuple[str, ...] = ()
    """Patterns of the keys in it that are kept."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the dataset's tables say of the scan."""
    stamp: str = ""
    """Hash of names, sizes and times of all its files."""

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask in any form."""
        return self.label is not None or bool(self.label_parts)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files and folders that the scan is read from."""
        parts = (part.path for part in self.label_parts)
        files = (self.image, self.label, *parts, self.centroids, self.sidecar)
        return tuple(path for path in files if path is not None)


@dataclass(frozen=True, slots=True)
class UnpairedImage:
    """An image whose mask is absent."""

    scan_id: str
    path: str
    looked_for: tuple[str, ...]
    """Paths at which the recipe expects the mask."""

    @property
    def reason(self) -> str:
        """Say what is missing."""
        return f"no mask for {self.path}; looked for {' and '.join(self.looked_for) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class PatternUse:
    """How many files of a raw folder one pattern of a recipe fits."""

    layout: str
    kind: Literal["image", "mask", "centroids", "sidecar", "list"]
    pattern: str
    files: int


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a raw folder holds."""

    raw: str
    scans: tuple[ScanSource, ...]
    without_mask: tuple[UnpairedImage, ...]
    """Images that should have a mask and have none."""
    without_image: tuple[PathNote, ...]
    """Masks whose image is absent."""
    ignored: tuple[PathNote, ...]
    """Everything else."""
    absent: tuple[str, ...]
    """Scans that the split file lists and the raw folder lacks."""
    layouts: dict[str, int]
    """Scans found in each layout."""
    split_file: str | None
    """Where the splits were read; None if nothing lists them."""
    patterns: tuple[PatternUse, ...]
    """Every pattern of the recipe, and how many files it fits."""
    tables: tuple[TableUse, ...]
    """Every table of the recipe, and what was read of it."""


def discover(
    recipe: Recipe, raw: str, storage_options: Mapping[str, Any] | None = None
) -> Discovery:
    """Match every file below ``raw`` against the recipe.

    Parameters
    ----------
    recipe
        Patterns of images, masks, centroids, tables and splits.
    raw
        Folder path or fsspec URL.
    storage_options
        For the file system of ``raw``.

    Raises
    ------
    UsageError
        If ``raw`` is no folder, or no file in it matches: lists the layouts the recipe knows, what
        was seen instead, and a neighbouring folder that would match.
    RecipeError
        If scans would share an id or a mask, or an id cannot name a folder.
    FormatError
        If a table or list of the dataset cannot be read.
    """
    fs, root = open_filesystem(raw, storage_options)
    if not fs.isdir(root):
        what = "is a file" if fs.exists(root) else "does not exist"
        raise UsageError(
            f"raw folder {raw!r} {what}. Give the folder that holds the downloaded files of "
            f"{recipe.title}.\n{known_layouts(recipe)}"
        )
    folder = RawFolder.list(fs, root)
    splits, split_file = _read_splits(recipe, folder)
    found, ignored = match_images(recipe, folder)
    if not found:
        raise UsageError(nothing_found(recipe, raw, folder))
    chosen = choose_images(recipe, folder, found)
    images = [paired.image for paired in chosen.taken]
    tables = join_tables(recipe, folder, images)
    scans: list[ScanSource] = []
    without_mask: list[UnpairedImage] = []
    for paired in chosen.taken:
        layout = recipe.layouts[paired.image.layout]
        if paired.whole or layout.mask == "optional":
            scans.append(_scan_source(recipe, folder, paired, splits, tables))
        else:
            wanted = _mask_candidates(layout, paired)
            without_mask.append(UnpairedImage(paired.image.scan_id, paired.image.path, wanted))
    used = {file for scan in scans for path in scan.paths for file in folder.files_of(path)}
    used |= {split_file or "", *(path for use in tables.uses for path in use.files)}
    used |= set(_list_files(recipe, folder))
    # A mask that lies beside an image which is not taken may be the mask of one that is.
    explained = [note for note in (*ignored, *chosen.left) if note.path not in used]
    used |= {file for image in found for file in folder.files_of(image.path)}
    used |= {note.path for note in explained}
    orphans, unmatched = _sort_leftovers(recipe, (p for p in folder.sizes if p not in used))
    listed = {image.listed_as for image in images}
    return Discovery(
        raw=raw,
        scans=tuple(scans),
        without_mask=tuple(without_mask),
        without_image=tuple(orphans),
        ignored=tuple(sorted((*explained, *unmatched), key=lambda note: note.path)),
        absent=tuple(name for name in splits if name not in listed),
        layouts=dict(Counter(image.layout for image in images)),
        split_file=split_file,
        patterns=tuple(_pattern_uses(recipe, folder, ignored)),
        tables=tables.uses,
    )


def _scan_source(
    recipe: Recipe,
    folder: RawFolder,
    paired: PairedImage,
    splits: dict[str, tuple[str, int]],
    tables: JoinedTables,
) -> ScanSource:
    image, layout = paired.image, recipe.layouts[paired.image.layout]
    said = tables.splits.get(image.scan_id) or fill(recipe.split, image.texts) or ""
    split, position = splits.get(image.listed_as, (said, -1))
    centroids = layout.centroids
    centroid_file = _first(folder, layout.centroid_templates, image.texts)
    sidecar = _first(folder, layout.sidecar, image.texts)
    beside = [path for path in (centroid_file, sidecar) if path is not None]
    return ScanSource(
        scan_id=image.scan_id,
        patient_id=fill(recipe.patient_id, image.texts) or image.scan_id,
        source=fill(recipe.source, image.texts) or "",
        split=split,
        split_index=position,
        image=image.path,
        label=paired.label,
        size_bytes=sum(folder.size_of(path) for path in (image.path, *paired.masks)),
        label_parts=paired.parts,
        label_state=layout.label_state or recipe.labels.state,
        label_values=layout.stored_values,
        centroids=centroid_file,
        centroid_bytes=folder.size_of(centroid_file) if centroid_file else 0,
        centroid_convention=centroids.convention if centroids and centroid_file else None,
        sidecar=sidecar,
        sidecar_keys=layout.sidecar_keys,
        columns=dict(tables.columns.get(image.scan_id, {})),
        stamp=folder.stamp_of((image.path, *paired.masks, *beside)),
    )


def _first(folder: RawFolder, templates: Iterable[str], texts: dict[str, str]) -> str | None:
    found = (folder.find(template, texts) for template in templates)
    return next((path for path in found if path is not None), None)


def _mask_candidates(layout: Layout, paired: PairedImage) -> tuple[str, ...]:
    """Say where the mask of an image was looked for."""
    texts = {**paired.image.texts, **({"part": "*"} if layout.label_parts else {})}
    filled = [fill(template, texts) for template in layout.mask_templates]
    return tuple(path for path in filled if path is not None)


def _read_splits(
    recipe: Recipe, folder: RawFolder
) -> tuple[dict[str, tuple[str, int]], str | None]:
    if recipe.splits is None:
        return {}, None
    for path in recipe.splits.files:
        if path in folder.sizes:
            return recipe.splits.parse_bytes(folder.read(path), path), path
    return recipe.shipped_splits(), None


def _sort_leftovers(recipe: Recipe, paths: Iterable[str]) -> tuple[list[PathNote], list[PathNote]]:
    is_mask = mask_matcher(recipe)
    orphans: list[PathNote] = []
    unmatched: list[PathNote] = []
    for path in paths:
        if is_mask(path):
            orphans.append(PathNote(path, "mask without an image"))
        else:
            unmatched.append(PathNote(path, "matches no pattern of the recipe"))
    return orphans, unmatched


def _list_files(recipe: Recipe, folder: RawFolder) -> Iterable[str]:
    """Yield the files that a layout's list of images may be."""
    for layout in recipe.layouts.values():
        for pattern in layout.listed.files if layout.listed else ():
            yield from (path for path in folder.sizes if PathPattern(pattern).match(path))


def _pattern_uses(
    recipe: Recipe, folder: RawFolder, ignored: Iterable[PathNote]
) -> Iterable[PatternUse]:
    """Count the files that each pattern and template of the recipe may mean."""
    left_out = {note.path for note in ignored}
    files = [path for path in folder.sizes if path not in left_out]
    for key, layout in recipe.layouts.items():
        for text in layout.image:
            paths = folder.folders if text.endswith("/") else files
            matched = sum(PathPattern(text).match(path) is not None for path in paths)
            yield PatternUse(key, "image", text, matched)
        templates: tuple[tuple[Literal["mask", "centroids", "sidecar"], tuple[str, ...]], ...] = (
            ("mask", layout.mask_templates),
            ("centroids", layout.centroid_templates),
            ("sidecar", layout.sidecar),
        )
        for kind, texts in templates:
            for text in texts:
                patterns = recipe.possible_paths(layout, text)
                fits = sum(any(p.fullmatch(path) for p in patterns) for path in files)
                yield PatternUse(key, kind, text, fits)
        for text in layout.listed.files if layout.listed else ():
            fits = sum(PathPattern(text).match(path) is not None for path in files)
            yield PatternUse(key, "list", text, fits)
