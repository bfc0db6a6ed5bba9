"""The files of a raw folder: listed once, found by templates, read where they are small."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.recipe import Recipe, filled_pattern

__all__ = ["RawFolder"]

_VOXEL_ENDINGS: Final = {"mhd": ("raw", "zraw")}
"""Endings of the file with the voxels, by that of its header."""


@dataclass(frozen=True, slots=True, eq=False)
class RawFolder:
    """Every file below a folder, by its path relative to it."""

    fs: fsspec.AbstractFileSystem
    root: str
    sizes: Mapping[str, int]
    """Bytes of each file, ordered by path."""
    folders: Mapping[str, tuple[str, ...]]
    """The files directly in each folder, whose path ends with ``/``."""
    _by_name: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def list(cls, fs: fsspec.AbstractFileSystem, root: str) -> Self:
        """List a folder; on disk, links to folders are followed."""
        return cls.of_files(fs, root, dict(sorted(_files_below(fs, root))))

    @classmethod
    def of_files(cls, fs: fsspec.AbstractFileSystem, root: str, sizes: Mapping[str, int]) -> Self:
        """Take the files as they are given."""
        folders: dict[str, list[str]] = defaultdict(list)
        by_name: dict[str, list[str]] = defaultdict(list)
        for path in sizes:
            folder, slash, name = path.rpartition("/")
            if slash:
                folders[folder + slash].append(path)
            by_name[name].append(path)
        return cls(fs, root, sizes, _frozen(folders), _frozen(by_name))

    def size_of(self, path: str) -> int:
        """Bytes of a file, or of the files in a folder whose path ends with ``/``."""
        return sum(self.sizes[file] for file in self.files_of(path))

    def files_of(self, path: str) -> tuple[str, ...]:
        """Return the file itself, or the files in a folder whose path ends with ``/``.

        With the header of a MetaImage, ``.mhd``, the file of its voxels where it is named alike.
        """
        if path.endswith("/"):
            return self.folders[path]
        stem, dot, ending = path.rpartition(".")
        voxels = (f"{stem}{dot}{kind}" for kind in _VOXEL_ENDINGS.get(ending, ()))
        return (path, *(file for file in voxels if file in self.sizes))

    def find(self, recipe: Recipe, template: str, texts: Mapping[str, str]) -> str | None:
        """Return the first file that a template filled with ``texts`` names, or None."""
        if "*" not in template:
            path = recipe.fill(template, texts)
            return path if path in self.sizes else None
        pattern = filled_pattern(template, recipe.known_texts(texts))
        if pattern is None:
            return None
        last = template.rpartition("/")[2]
        name = recipe.fill(last, texts) if "*" not in last else None
        among = self.sizes if name is None else self._by_name.get(name, ())
        return next((path for path in among if pattern.fullmatch(path) is not None), None)

    def read(self, path: str) -> bytes:
        """Return the bytes of a small file."""
        data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        return data


def _frozen(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(paths) for key, paths in lists.items()}


def _files_below(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[tuple[str, int]]:
    """Yield the relative path and size of every file."""
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
