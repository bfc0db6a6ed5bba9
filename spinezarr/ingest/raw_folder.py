"""The files of a raw folder: listed once, found by templates, read where they are small."""

import hashlib
import json
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.recipe import PathPattern, fill, filled_pattern

__all__ = ["RawFolder"]

_VOXEL_ENDINGS: Final = {"mhd": ("raw", "zraw")}
"""Endings of the file with the voxels, by that of its header."""
_AFTER_ALL_TEXT: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True, eq=False)
class RawFolder:
    """Every file below a folder, by its path relative to it."""

    fs: fsspec.AbstractFileSystem
    root: str
    sizes: Mapping[str, int]
    """Bytes of each file, ordered by path."""
    stamps: Mapping[str, str]
    """Time of the last change of each file, or its entity tag; empty where neither is known."""
    folders: Mapping[str, tuple[str, ...]]
    """The files directly in each folder, whose path ends with ``/``."""
    _paths: Sequence[str] = field(repr=False)
    _reversed: Sequence[str] = field(repr=False)
    """The paths read from their ends, in order, to find those that end alike."""

    @classmethod
    def list(cls, fs: fsspec.AbstractFileSystem, root: str) -> Self:
        """List a folder; on disk, links to folders are followed."""
        files = list(_files_below(fs, root))
        stamps = {path: stamp for path, _, stamp in files}
        return cls.of_files(fs, root, {path: size for path, size, _ in files}, stamps)

    @classmethod
    def of_files(
        cls,
        fs: fsspec.AbstractFileSystem,
        root: str,
        sizes: Mapping[str, int],
        stamps: Mapping[str, str] | None = None,
    ) -> Self:
        """Take files whose sizes are known, in any order."""
        paths = sorted(sizes)
        folders: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            folder, slash, _ = path.rpartition("/")
            if slash:
                folders[folder + slash].append(path)
        return cls(
            fs,
            root,
            {path: sizes[path] for path in paths},
            stamps or {},
            {folder: tuple(files) for folder, files in folders.items()},
            paths,
            sorted(path[::-1] for path in paths),
        )

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

    def stamp_of(self, paths: Iterable[str]) -> str:
        """Hash names, sizes and times of some files; another hash means that one may have changed.

        A path that ends with ``/`` stands for the files in that folder.
        """
        files = sorted({file for path in paths for file in self.files_of(path)})
        known = [(file, self.sizes[file], self.stamps.get(file, "")) for file in files]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]

    def find(self, template: str, texts: Mapping[str, str]) -> str | None:
        """Return the first file that a template filled with ``texts`` names, or None."""
        if "*" not in template:
            path = fill(template, texts)
            return path if path in self.sizes else None
        pattern = filled_pattern(template, texts)
        if pattern is None:
            return None
        fits = (path for path in self._among(template, texts) if pattern.fullmatch(path))
        return min(fits, default=None)

    def _among(self, template: str, texts: Mapping[str, str]) -> Iterator[str]:
        """Yield the files that begin, or else those that end, as a template with ``*`` does."""
        start = fill(template.partition("*")[0], texts) or ""
        end = (fill(template.rpartition("*")[2], texts) or "").removeprefix("/")
        begun, ended = _span(self._paths, start), _span(self._reversed, end[::-1])
        if len(begun) <= len(ended):
            return (self._paths[i] for i in begun)
        return (self._reversed[i][::-1] for i in ended)

    def first(self, patterns: Sequence[str]) -> str | None:
        """Return the first file that one of several patterns fits; earlier patterns come first."""
        for pattern in map(PathPattern, patterns):
            for path in self.sizes:
                if pattern.match(path) is not None:
                    return path
        return None

    def read(self, path: str) -> bytes:
        """Return the bytes of a small file.

        Raises
        ------
        FormatError
            If it cannot be read.
        """
        try:
            data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        except OSError as problem:
            raise FormatError(
                f"{path}: cannot be read ({problem.strerror or problem}). "
                "Put the file there again, or remove what is left of it."
            ) from problem
        return data


def _span(paths: Sequence[str], start: str) -> range:
    """Return where in a list in order the paths lie that begin with ``start``."""
    return range(bisect_left(paths, start), bisect_left(paths, start + _AFTER_ALL_TEXT))


def _files_below(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[tuple[str, int, str]]:
    """Yield the relative path, size and stamp of every file."""
    if not isinstance(fs, LocalFileSystem):
        for path, info in fs.find(root, detail=True).items():
            stamp = info.get("ETag") or info.get("LastModified") or info.get("created") or ""
            yield path[len(root) + 1 :], info["size"] or 0, str(stamp)
        return
    for path, size, stamp in _files_on_disk(root, "", frozenset()):
        # A name that is no text can be shown, and not opened.
        yield path.encode(errors="backslashreplace").decode(), size, stamp


def _files_on_disk(
    folder: str, prefix: str, above: frozenset[str]
) -> Iterator[tuple[str, int, str]]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder it lies in
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            linked = Path(entry.path) if entry.is_symlink() else None
            if (linked or entry).is_dir():
                yield from _files_on_disk(entry.path, f"{path}/", above | {real})
            elif (linked or entry).is_file():
                status = entry.stat()
                yield path, status.st_size, str(status.st_mtime_ns)
            elif linked is not None and not linked.exists():
                # A broken link counts as a file of no bytes: reading it says what is wrong.
                yield path, 0, ""
