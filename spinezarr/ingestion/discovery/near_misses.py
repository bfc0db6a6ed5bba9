"""Why does a file nearly fit a pattern of a recipe, and what should the user do?"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from spinezarr.formats.volume import unsupported_kind
from spinezarr.ingestion.discovery.raw_folder import other_names
from spinezarr.recipe import BoundedRegex, PathPattern, Recipe, compile_bounded
from spinezarr.text import to_nfc

__all__ = ["NEARLY", "SAME_DIGITS", "near_misses"]

NEARLY: Final = "nearly fits"
"""Start of every such reason."""

SAME_DIGITS: Final = str.maketrans(string.digits, "0" * 10)
"""Translation that makes paths equal if they differ only in digits."""
_READ_ENDINGS: Final = (".nii.gz", ".nii", ".mha", ".mhd", ".seg.nrrd", ".nrrd")
_NIFTI: Final = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Pattern:
    kind: str
    """``image``, ``mask`` or ``layer``."""
    text: str
    regex: BoundedRegex

    def loose(self, *, capitals: bool, folders: bool) -> BoundedRegex:
        """Return an expression that ignores case (``capitals``) or folders in front."""
        folders_regex = "(?:.*/)?" if folders else ""
        return compile_bounded(f"{folders_regex}(?:{self.regex.text})", ignore_case=capitals)


@dataclass(frozen=True, slots=True)
class _Differences:
    """Differences between a file and the files that a pattern describes."""

    ending: bool = False
    unpacked: bool = False
    """Whether the file lies under another name in a folder that has the name of a file."""
    capitals: bool = False
    folders: bool = False


_DIFFERENCES_IN_NAME: Final = (
    _Differences(capitals=True),
    _Differences(folders=True),
    _Differences(capitals=True, folders=True),
)
_DIFFERENCES_IN_FOLDER: Final = (_Differences(unpacked=True),)
_DIFFERENCES_IN_ENDING: Final = (
    _Differences(ending=True),
    _Differences(ending=True, capitals=True),
)


def near_misses(recipe: Recipe) -> Callable[[str], str]:
    """Return a function that says why a file nearly fits a pattern, or "" if it does not.

    All files of a kind have the same reason.
    """
    reason_of_kind: dict[str, str] = {}
    patterns = list(_patterns(recipe))
    searches = (
        (lambda name: [name, *other_names(name)], _with_regexes(patterns, _DIFFERENCES_IN_NAME)),
        (_names_of_folder, _with_regexes(patterns, _DIFFERENCES_IN_FOLDER)),
        (_other_endings, _with_regexes(patterns, _DIFFERENCES_IN_ENDING)),
    )

    def reason(path: str) -> str:
        # One slice of a series stands for all, because their names differ only in digits.
        kind = path.translate(SAME_DIGITS)
        if kind not in reason_of_kind:
            reason_of_kind[kind] = find(path)
        return reason_of_kind[kind]

    def find(path: str) -> str:
        name = to_nfc(path)
        if any(pattern.regex.fullmatch(name) for pattern in patterns):
            return ""  # it fits by name, so it is no near miss
        for names_of, candidates in searches:
            names = names_of(name)
            for pattern, differences, regex in candidates if names else ():
                if any(map(regex.fullmatch, names)):
                    return _describe(path, pattern, differences)
        return ""

    return reason


def _with_regexes(
    patterns: Sequence[_Pattern], differences: Sequence[_Differences]
) -> list[tuple[_Pattern, _Differences, BoundedRegex]]:
    return [
        (
            pattern,
            difference,
            pattern.loose(capitals=difference.capitals, folders=difference.folders),
        )
        for difference in differences
        for pattern in patterns
    ]


def _patterns(recipe: Recipe) -> Iterator[_Pattern]:
    for layout in recipe.layouts.values():
        for text in layout.image:
            if not text.endswith("/"):
                yield _Pattern("image", text, PathPattern(text).regex)
        for kind, templates in (("mask", layout.mask_templates), ("layer", layout.layer_templates)):
            for text in templates:
                if not text.endswith("/"):
                    for regex in recipe.path_regexes(layout, text):
                        yield _Pattern(kind, text, regex)


def _names_of_folder(name: str) -> list[str]:
    """Return the names that the folder of a file suggests, if both are named like NIfTI files."""
    folder = name.rpartition("/")[0]
    if not (_NIFTI.search(folder) and _NIFTI.search(name)):
        return []
    return [folder, *other_names(folder)]


def _other_endings(name: str) -> list[str]:
    """Return the names that an image file would have in readable formats."""
    kind = unsupported_kind(name)
    if kind is None:
        stems = [name[: -len(ending)] for ending in _READ_ENDINGS if name.lower().endswith(ending)]
    elif kind.may_hold_voxels:
        folder, slash, file_name = name.rpartition("/")
        parts = file_name.split(".")
        shorter = [".".join(parts[:-count]) for count in (1, 2) if len(parts) > count]
        stems = [name, *(f"{folder}{slash}{stem}" for stem in shorter)]
    else:
        return []
    # A readable ending within a name counts: a.nii.bz2 may be a.nii.
    return [*stems, *(stem + ending for stem in stems for ending in _READ_ENDINGS)]


def _describe(path: str, pattern: _Pattern, differences: _Differences) -> str:
    difference_texts, steps = [], []
    kind = unsupported_kind(path)
    if differences.ending and kind is not None:
        difference_texts.append(f"it is {kind.name}")
        steps.append(kind.next_step)
    elif differences.ending:
        difference_texts.append("it has the ending of another format")
        steps.append("Let the pattern name both endings, e.g. {ext:nii\\.gz|mha}.")
    if differences.capitals:
        difference_texts.append("capital letters differ")
    if differences.folders:
        difference_texts.append("it lies in a folder")
        steps.append("'**/' at the start of a pattern stands for any folders.")
    if differences.unpacked:
        difference_texts.append("it was unpacked into a folder under another name")
    if differences.capitals or differences.unpacked:
        steps.append("Rename it, or write the pattern as the file is named.")
    return (
        f"{NEARLY} the {pattern.kind} pattern {pattern.text}, but "
        f"{' and '.join(difference_texts)}. {' '.join(steps)}"
    )
