"""What does the user need to know if a recipe finds no image in a raw folder?"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from spinezarr.ingestion.discovery.images import mask_matcher, match_images
from spinezarr.ingestion.discovery.near_misses import SAME_DIGITS
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.place import is_archive
from spinezarr.recipe import PathPattern, Recipe
from spinezarr.redaction import redact_url
from spinezarr.text import MultilineText, count_noun

__all__ = ["known_layouts", "nothing_found"]

_MAX_EXAMPLES: Final = 5
_MAX_DEPTH: Final = 3
"""Number of folders above and inside the raw folder that are tried."""


def known_layouts(recipe: Recipe) -> list[str]:
    """List the layouts that a recipe knows."""
    lines = [f"Layouts that the recipe {recipe.name!r} knows, relative to the raw folder:"]
    for key, layout in recipe.layouts.items():
        lines.append(f"  {key}: {layout.description}")
        lines.extend(f"    image  {text}" for text in layout.image)
        lines.extend(f"    mask   {text}" for text in layout.mask_templates)
    return lines


def nothing_found(recipe: Recipe, raw: str, folder: RawFolder) -> MultilineText:
    """Return a message with the known layouts, the present files and a nearby folder that fits."""
    paths = list(folder.sizes)
    examples = [f"    {path}" for path in paths[:_MAX_EXAMPLES]] or ["    (nothing)"]
    more_line = (
        [f"    ... and {len(paths) - _MAX_EXAMPLES} more"] if len(paths) > _MAX_EXAMPLES else []
    )
    lines = [
        f"no image of {recipe.title} found in {redact_url(raw)!r}.",
        *known_layouts(recipe),
        f"The folder holds {count_noun(len(paths), 'file')}:",
        *examples,
        *more_line,
    ]
    lines += [f"{path} is an archive. Unpack it first." for path in paths if is_archive(path)][:1]
    kinds = _one_of_each_kind(paths)
    lines += _counted_as_masks(recipe, kinds)
    inner_folder = _folder_that_matches(recipe, folder, kinds)
    levels_above = _levels_above(recipe, raw, folder, kinds)
    if inner_folder:
        inner_path = f"{raw.rstrip('/')}/{inner_folder}"
        lines.append(f"The folder {inner_folder!r} inside it does match: use --raw {inner_path}")
    elif levels_above:
        parent = raw.rstrip("/").rsplit("/", levels_above)[0]
        lines.append(f"A folder above it does match: use --raw {parent}")
    return MultilineText(*lines)


def _counted_as_masks(recipe: Recipe, paths: Iterable[str]) -> list[str]:
    """Return a message about a file that fits both an image pattern and a mask template.

    Such a file counts as a mask.
    """
    images = [PathPattern(text) for layout in recipe.layouts.values() for text in layout.image]
    is_mask = mask_matcher(recipe)
    for path in paths:
        if is_mask(path) and any(pattern.match(path) is not None for pattern in images):
            return [f"{path} fits an image pattern and a mask template, so it counts as a mask."]
    return []


def _one_of_each_kind(paths: Iterable[str]) -> list[str]:
    """Return the first of the paths that differ only in digits.

    A series of slices then appears once.
    """
    kinds: dict[str, str] = {}
    for path in paths:
        kinds.setdefault(path.translate(SAME_DIGITS), path)
    return list(kinds.values())


def _matches(recipe: Recipe, folder: RawFolder, paths: Iterable[str]) -> bool:
    """Return whether the recipe would find images if the files lay at these paths."""
    moved = RawFolder.of_files(folder.fs, folder.root, dict.fromkeys(paths, 0))
    matched = match_images(recipe, moved)
    return bool(matched.images or matched.misnamed)


def _levels_above(recipe: Recipe, raw: str, folder: RawFolder, paths: Sequence[str]) -> int | None:
    """Return how many levels above the raw folder the recipe would match."""
    names = [name for name in raw.rstrip("/").split("/") if name]
    for levels in range(1, min(_MAX_DEPTH, len(names) - 1) + 1):
        prefix = "/".join(names[-levels:])
        if _matches(recipe, folder, (f"{prefix}/{path}" for path in paths)):
            return levels
    return None


def _folder_that_matches(recipe: Recipe, folder: RawFolder, paths: Sequence[str]) -> str | None:
    """Return a folder inside the raw folder from which the recipe would match."""
    paths_in_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        steps = path.split("/")
        for depth in range(1, min(len(steps) - 1, _MAX_DEPTH) + 1):
            paths_in_folder["/".join(steps[:depth])].append("/".join(steps[depth:]))
    for name in sorted(paths_in_folder, key=lambda name: (name.count("/"), name)):
        if _matches(recipe, folder, paths_in_folder[name]):
            return name
    return None
