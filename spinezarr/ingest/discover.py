"""Find the scans of a raw folder by a recipe's patterns, without opening any file."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import RecipeError, UsageError
from spinezarr.recipe import PathPattern, Recipe
from spinezarr.store.files import open_filesystem

__all__ = ["Discovery", "PathNote", "ScanSource", "UnpairedImage", "discover"]

_SCAN_ID: Final = re.compile(r"[^\W_][^/\\\x00-\x1f]*")


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
    """Path of the image, relative to the raw folder."""
    label: str | None
    """Path of the mask, relative to the raw folder; None for an image without one."""
    size_bytes: int
    """Of both files."""


@dataclass(frozen=True, slots=True)
class PathNote:
    """A file that became no scan, and why."""

    path: str
    reason: str


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


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    layout: str
    texts: dict[str, str]
    scan_id: str

    @property
    def listed_as(self) -> str:
        """Name of the scan in a split list."""
        return self.texts.get("scan", self.scan_id)


def discover(recipe: Recipe, raw: str) -> Discovery:
    """Match every file below ``raw`` against the recipe.

    Parameters
    ----------
    recipe
        Patterns of images, masks and splits.
    raw
        Folder path or fsspec URL.

    Raises
    ------
    UsageError
        If ``raw`` is no folder, or no file in it matches: lists the layouts the recipe knows, what
        was seen instead, and a neighbouring folder that would match.
    """
    fs, root = open_filesystem(raw)
    if not fs.isdir(root):
        what = "is a file" if fs.exists(root) else "does not exist"
        raise UsageError(
            f"raw folder {raw!r} {what}. Give the folder that holds the downloaded files of "
            f"{recipe.title}.\n{_known_layouts(recipe)}"
        )
    sizes = dict(sorted(_files_below(fs, root)))
    paths = list(sizes)
    splits, split_file = _read_splits(recipe, fs, root, set(paths))
    images, ignored = _match_images(recipe, (path for path in paths if path != split_file))
    if not images:
        raise UsageError(_nothing_found(recipe, raw, paths))
    scans, without_mask = _pair(recipe, images, sizes, splits)
    used = {path for scan in scans for path in (scan.image, scan.label) if path}
    used |= {image.path for image in images} | {note.path for note in ignored}
    used |= {split_file} if split_file else set()
    orphans, leftover = _sort_leftovers(recipe, (path for path in paths if path not in used))
    found = {image.listed_as for image in images}
    return Discovery(
        raw=raw,
        scans=scans,
        without_mask=tuple(without_mask),
        without_image=tuple(orphans),
        ignored=tuple(sorted((*ignored, *leftover), key=lambda note: note.path)),
        absent=tuple(name for name in splits if name not in found),
        layouts=dict(Counter(image.layout for image in images)),
        split_file=split_file,
    )


def _files_below(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[tuple[str, int]]:
    """Yield the relative path and size of every file; on disk, links to folders are followed."""
    if not isinstance(fs, LocalFileSystem):
        for path, info in fs.find(root, detail=True).items():
            yield path[len(root) + 1 :], info["size"] or 0
        return
    yield from _files_on_disk(Path(root), "", frozenset())


def _files_on_disk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder it lies in
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_on_disk(path, f"{prefix}{path.name}/", above | {real})
        else:
            # A broken link counts as a file of no bytes: reading it says what is wrong.
            yield f"{prefix}{path.name}", path.stat().st_size if path.exists() else 0


def _match_images(recipe: Recipe, paths: Iterable[str]) -> tuple[list[_Image], list[PathNote]]:
    patterns = [
        (key, PathPattern(text)) for key, layout in recipe.layouts.items() for text in layout.image
    ]
    ignore = [(PathPattern(item.path), item.because) for item in recipe.ignore]
    first: dict[str, _Image] = {}
    ignored: list[PathNote] = []
    for path in paths:
        reason = next((why for pattern, why in ignore if pattern.match(path) is not None), None)
        if reason is not None:
            ignored.append(PathNote(path, reason))
            continue
        for layout, pattern in patterns:
            texts = pattern.match(path)
            scan_id = None if texts is None else recipe.fill(recipe.scan_id, texts)
            if texts is None or scan_id is None or recipe.fill(recipe.source, texts) is None:
                continue
            if _is_label(recipe, path):
                continue
            if not _SCAN_ID.fullmatch(scan_id):
                raise RecipeError(
                    f"{path}: gives the scan id {scan_id!r}, which cannot name a folder. An id "
                    "starts with a letter or digit and holds no '/', '\\' or control characters."
                )
            if scan_id in first:
                ignored.append(PathNote(path, f"same scan id {scan_id!r} as {first[scan_id].path}"))
            else:
                first[scan_id] = _Image(path, layout, texts, scan_id)
            break
    return list(first.values()), ignored


def _label_patterns(recipe: Recipe) -> list[PathPattern]:
    """Return the label templates as patterns: any text for any name."""
    return [
        PathPattern(template) for layout in recipe.layouts.values() for template in layout.label
    ]


def _is_label(recipe: Recipe, path: str) -> bool:
    return any(pattern.match(path) is not None for pattern in _label_patterns(recipe))


def _pair(
    recipe: Recipe, images: list[_Image], sizes: dict[str, int], splits: dict[str, tuple[str, int]]
) -> tuple[tuple[ScanSource, ...], list[UnpairedImage]]:
    scans: list[ScanSource] = []
    without_mask: list[UnpairedImage] = []
    for image in images:
        layout = recipe.layouts[image.layout]
        candidates = list(recipe.label_candidates(layout, image.texts))
        label = next((path for path in candidates if path in sizes), None)
        if layout.label and label is None:
            without_mask.append(UnpairedImage(image.scan_id, image.path, tuple(candidates)))
            continue
        split, position = splits.get(image.listed_as, ("", -1))
        scans.append(
            ScanSource(
                scan_id=image.scan_id,
                patient_id=recipe.fill(recipe.patient_id, image.texts) or image.scan_id,
                source=recipe.fill(recipe.source, image.texts) or "",
                split=split,
                split_index=position,
                image=image.path,
                label=label,
                size_bytes=sizes[image.path] + (sizes[label] if label else 0),
            )
        )
    return tuple(scans), without_mask


def _read_splits(
    recipe: Recipe, fs: fsspec.AbstractFileSystem, root: str, present: set[str]
) -> tuple[dict[str, tuple[str, int]], str | None]:
    if recipe.splits is None:
        return {}, None
    for path in recipe.splits.files:
        if path in present:
            try:
                text = fs.cat_file(f"{root}/{path}").decode("utf-8-sig")
            except UnicodeDecodeError as problem:
                raise RecipeError(f"split file {path} is not text: {problem}.") from problem
            return recipe.splits.parse(text, path), path
    return recipe.shipped_splits(), None


def _sort_leftovers(recipe: Recipe, paths: Iterable[str]) -> tuple[list[PathNote], list[PathNote]]:
    orphans: list[PathNote] = []
    ignored: list[PathNote] = []
    for path in paths:
        if _is_label(recipe, path):
            orphans.append(PathNote(path, "mask without an image"))
        else:
            ignored.append(PathNote(path, "matches no pattern of the recipe"))
    return orphans, ignored


def _known_layouts(recipe: Recipe) -> str:
    lines = [f"Layouts that the recipe {recipe.name!r} knows, relative to the raw folder:"]
    for key, layout in recipe.layouts.items():
        lines.append(f"  {key}: {layout.about}")
        lines.extend(f"    image  {text}" for text in layout.image)
        lines.extend(f"    mask   {text}" for text in layout.label)
    return "\n".join(lines)


def _nothing_found(recipe: Recipe, raw: str, paths: list[str]) -> str:
    examples = [f"    {path}" for path in paths[:5]] or ["    (nothing)"]
    more = [f"    ... and {len(paths) - 5} more"] if len(paths) > len(examples) else []
    lines = [
        f"no image of {recipe.title} found in {raw!r}.",
        _known_layouts(recipe),
        f"What is there ({len(paths)} files):",
        *examples,
        *more,
    ]
    below, above = _folder_that_matches(recipe, paths), _levels_above(recipe, raw, paths)
    if below:
        lines.append(
            f"The folder {below!r} inside it does match: use --raw {raw.rstrip('/')}/{below}"
        )
    elif above:
        parent = raw.rstrip("/").rsplit("/", above)[0]
        lines.append(f"A folder above it does match: use --raw {parent}")
    return "\n".join(lines)


def _levels_above(recipe: Recipe, raw: str, paths: list[str], highest: int = 3) -> int | None:
    """Find how many folders above the raw folder the recipe would match."""
    names = [name for name in raw.rstrip("/").split("/") if name]
    for levels in range(1, min(highest, len(names) - 1) + 1):
        prefix = "/".join(names[-levels:])
        if _match_images(recipe, [f"{prefix}/{path}" for path in paths])[0]:
            return levels
    return None


def _folder_that_matches(recipe: Recipe, paths: list[str], depth: int = 3) -> str | None:
    """Find a folder inside the raw folder from which the recipe would match."""
    folders = {
        "/".join(parts[:n])
        for parts in (path.split("/")[:-1] for path in paths)
        for n in range(1, min(len(parts), depth) + 1)
    }
    for folder in sorted(folders, key=lambda name: (name.count("/"), name)):
        inside = [path[len(folder) + 1 :] for path in paths if path.startswith(folder + "/")]
        if _match_images(recipe, inside)[0]:
            return folder
    return None
