"""Which files does a raw folder hold, and under which names can a recipe find them?

The folder is listed once. Names are compared in one Unicode form, and files are opened by their own
spelling. A file that was unpacked since the recipe was written is also found by the name that the
recipe knows: see :func:`other_names`.
"""

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.formats.limits import DEFAULT_LIMITS
from spinezarr.formats.small_file import read_small_file
from spinezarr.formats.system_files import is_system_file
from spinezarr.progress import OnProgress, Progress, ignore_progress
from spinezarr.recipe import PathPattern, fill_template, filled_template_regex
from spinezarr.text import to_nfc, to_printable

__all__ = ["RawFolder", "names_of", "other_names"]

_STEP: Final = "list files"
_REPORTED_FILES: Final = 256
"""Number of files after which the progress is reported."""
_VOXEL_ENDINGS: Final = {"mhd": ("raw", "zraw")}
"""Ending of the voxel file, by the ending of its header file."""
_HIGHEST_CHARACTER: Final = "\U0010ffff"
_NIFTI_NAME: Final = re.compile(r"(?P<stem>.*)\.nii(?:\.gz)?", re.DOTALL | re.IGNORECASE)
_ENDING: Final = re.compile(r"\.[A-Za-z0-9]+\Z")


def other_names(name: str) -> list[str]:
    """Return the names under which a recipe may know a file, without its present name.

    A NIfTI file is read by its content, so ``.nii`` and ``.nii.gz`` stand for each other. Some
    programs unpack a file into a folder of its own name. Endings may be in capitals.

    Examples
    --------
    >>> other_names("ct/a.nii"), other_names("A.NII.GZ")
    (['ct/a.nii.gz'], ['A.nii.gz', 'A.nii'])
    >>> other_names("ct/a.nii.gz/a.nii")
    ['ct/a.nii', 'ct/a.nii.gz', 'ct/a.nii.gz/a.nii.gz']
    >>> other_names("t.CSV"), other_names("t.csv")
    (['t.csv'], [])
    """
    nifti = _NIFTI_NAME.fullmatch(name)
    if nifti is not None:
        return [*_names_before_unpacking(name), *_other_compressions(nifti["stem"], name)]
    ending = _ENDING.search(name)
    if ending is None or ending[0] == ending[0].lower():
        return []
    return [name[: ending.start()] + ending[0].lower()]


def names_of(path: str) -> list[str]:
    """Return all names of a file, the most likely ones first.

    A file in a folder of its own name is most likely known by the name of that folder. A pattern
    that allows any folders in front would also fit its path, but would not find its mask.
    """
    name = to_nfc(path)
    names_before = _names_before_unpacking(name)
    return [
        *names_before,
        name,
        *(other for other in other_names(name) if other not in names_before),
    ]


def _names_before_unpacking(name: str) -> list[str]:
    """Return the names that a NIfTI file had before it was unpacked into a folder.

    That folder has the name of the file.
    """
    folder, _, file_name = name.rpartition("/")
    inside, outside = _NIFTI_NAME.fullmatch(file_name), _NIFTI_NAME.fullmatch(folder)
    if inside is None or outside is None:
        return []
    if outside["stem"].rpartition("/")[2] != inside["stem"]:
        return []
    return _other_compressions(outside["stem"], name)


def _other_compressions(stem: str, name: str) -> list[str]:
    """Return the other names of a NIfTI file, those of the same compression first."""
    endings = (".nii.gz", ".nii") if name.lower().endswith(".gz") else (".nii", ".nii.gz")
    return [stem + ending for ending in endings if stem + ending != name]


class _NameIndex:
    """Files by all names under which they can be looked up."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        self._files: dict[str, list[str]] = defaultdict(list)
        for name, file in files:
            self._files[name].append(file)
        self._names = sorted(self._files)
        self._reversed = sorted(name[::-1] for name in self._files)
        """Names spelled backward and sorted, to find all names with one ending."""

    def get(self, name: str) -> list[str]:
        """Return the files that have a name."""
        return self._files.get(name, [])

    def matching(self, template: str, texts: Mapping[str, str]) -> list[str]:
        """Return the files that a template with ``*`` fits, in order."""
        pattern = filled_template_regex(template, texts)
        if pattern is None:
            return []
        matches = (name for name in self._candidates(template, texts) if pattern.fullmatch(name))
        return sorted({file for name in matches for file in self._files[name]})

    def _candidates(self, template: str, texts: Mapping[str, str]) -> Iterator[str]:
        """Yield the names that begin like a template, or end like it if it begins with ``*``."""
        start = fill_template(template.partition("*")[0], texts) or ""
        end = (fill_template(template.rpartition("*")[2], texts) or "").removeprefix("/")
        starting, ending = _span(self._names, start), _span(self._reversed, end[::-1])
        if len(starting) <= len(ending):
            return (self._names[i] for i in starting)
        return (self._reversed[i][::-1] for i in ending)


@dataclass(frozen=True, slots=True, eq=False)
class RawFolder:
    """All files below a folder, by their relative paths as spelled on disk."""

    fs: fsspec.AbstractFileSystem
    root: str
    sizes: Mapping[str, int]
    """Size of each file in bytes, ordered by path."""
    stamps: Mapping[str, str]
    """Modification time or entity tag of each file; empty where neither is known."""
    folders: Mapping[str, tuple[str, ...]]
    """Files directly in each folder; the path of a folder ends with ``/``."""
    system_files: tuple[str, ...]
    """Files and folders of operating systems and programs, which are ignored."""
    unlisted: Mapping[str, str]
    """Folders that could not be listed, each with the reason."""
    unusable: frozenset[str]
    """Files that are not opened, because their path holds control characters or is not UTF-8.

    The paths are written with escapes.
    """
    _by_name: _NameIndex = field(repr=False)
    _by_other_name: _NameIndex = field(repr=False)
    _folders_by_name: _NameIndex = field(repr=False)

    @classmethod
    def list(
        cls, fs: fsspec.AbstractFileSystem, root: str, on_progress: OnProgress = ignore_progress
    ) -> Self:
        """List a folder; links to folders on disk are followed.

        Parameters
        ----------
        fs, root
            File system and path of the folder.
        on_progress
            Called with the number of files so far.

        Raises
        ------
        OSError
            If the folder itself cannot be listed.
        """
        listing = _Listing(on_progress)
        _list(fs, root, listing)
        listing.finish()
        sizes = {path: size for path, (size, _) in listing.files.items()}
        stamps = {path: stamp for path, (_, stamp) in listing.files.items()}
        return cls.of_files(fs, root, sizes, stamps, listing)

    @classmethod
    def of_files(
        cls,
        fs: fsspec.AbstractFileSystem,
        root: str,
        sizes: Mapping[str, int],
        stamps: Mapping[str, str] | None = None,
        listing: "_Listing | None" = None,
    ) -> Self:
        """Return the folder that holds files of known sizes, given in any order."""
        paths = sorted(sizes)
        folders: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            folder, slash, _ = path.rpartition("/")
            if slash:
                folders[folder + slash].append(path)
        names = [(to_nfc(path), path) for path in paths]
        listing = listing or _Listing()
        return cls(
            fs,
            root,
            {path: sizes[path] for path in paths},
            stamps or {},
            {folder: tuple(files) for folder, files in folders.items()},
            tuple(sorted(listing.system_files)),
            dict(sorted(listing.unlisted.items())),
            frozenset(listing.unusable),
            _NameIndex(names),
            _NameIndex((other, path) for name, path in names for other in other_names(name)),
            _NameIndex((to_nfc(folder), folder) for folder in folders),
        )

    def size_of(self, path: str) -> int:
        """Return the size of a file, or of the files in a folder whose path ends with ``/``."""
        return sum(self.sizes[file] for file in self.files_of(path))

    def files_of(self, path: str) -> tuple[str, ...]:
        """Return the file itself, or the files in a folder whose path ends with ``/``.

        A MetaImage header, ``.mhd``, comes with its voxel file if both have the same name.
        """
        if path.endswith("/"):
            return self.folders[path]
        stem, dot, ending = path.rpartition(".")
        voxels = (f"{stem}{dot}{kind}" for kind in _VOXEL_ENDINGS.get(ending, ()))
        return (path, *(file for file in voxels if file in self.sizes))

    def files_of_all(self, paths: Iterable[str]) -> set[str]:
        """Return the files of several paths, as :meth:`files_of` gives them."""
        return {file for path in paths for file in self.files_of(path)}

    def stamp_of(self, paths: Iterable[str]) -> str:
        """Hash names, sizes and times of files. Another hash means that a file may have changed.

        A path that ends with ``/`` stands for the files in that folder.
        """
        files = sorted(self.files_of_all(paths))
        states = [(file, self.sizes[file], self.stamps.get(file, "")) for file in files]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]

    def cannot_open(self, path: str) -> bool:
        """Return whether a file, or each file of a folder, has a path that cannot be opened."""
        return all(file in self.unusable for file in self.files_of(path))

    def named(self, name: str) -> Sequence[str]:
        """Return the files of exactly this name, in any Unicode form."""
        return self._by_name.get(to_nfc(name))

    def find(self, template: str, texts: Mapping[str, str]) -> tuple[str, ...]:
        """Return the files that a template filled with ``texts`` names, in order.

        A template that ends with ``/`` names folders. A file with the name among its
        :func:`other_names` counts only if no file has exactly this name. Several files are found if
        the template has a ``*``, or if names differ only in Unicode form or by :func:`other_names`.
        """
        indices = (
            (self._folders_by_name,)
            if template.endswith("/")
            else (self._by_name, self._by_other_name)
        )
        for names in indices:
            if "*" in template:
                files = names.matching(template, texts)
            else:
                path = fill_template(template, texts)
                files = [] if path is None else names.get(path)
            if files:
                return tuple(files)
        return ()

    def first(self, patterns: Sequence[str]) -> str | None:
        """Return the first file that one of the patterns fits; earlier patterns come first."""
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
            If the file cannot be read, or exceeds the size limit for tables.
        """
        try:
            return read_small_file(self.fs, f"{self.root}/{path}", DEFAULT_LIMITS.table_bytes)
        except OSError as problem:
            raise FormatError(
                f"{path}: cannot be read ({problem.strerror or problem}). "
                "Put the file there again, or remove what is left of it."
            ) from problem


def _span(names: Sequence[str], start: str) -> range:
    """Return the range of a sorted list in which the names begin with ``start``."""
    return range(bisect_left(names, start), bisect_left(names, start + _HIGHEST_CHARACTER))


@dataclass(slots=True)
class _Listing:
    """Files that were found below a folder."""

    on_progress: OnProgress = ignore_progress
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size and stamp of each file."""
    system_files: set[str] = field(default_factory=set)
    unlisted: dict[str, str] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)

    def add(self, path: str, size: int, stamp: str) -> None:
        """Add a file."""
        if len(self.files) % _REPORTED_FILES == 0:
            self.on_progress(Progress(_STEP, len(self.files), None, "files"))
        names = path.split("/")
        for depth, name in enumerate(names[:-1], 1):
            if is_system_file(name, folder=True):
                self.system_files.add(f"{'/'.join(names[:depth])}/")
                return
        if is_system_file(names[-1]):
            self.system_files.add(path)
            return
        printable = to_printable(path, longest=None)
        if printable != path:
            self.unusable.add(printable)
        self.files[printable] = (size, stamp)

    def finish(self) -> None:
        """Report that all files are found."""
        self.on_progress(Progress(_STEP, len(self.files), len(self.files) or None, "files"))


def _list(fs: fsspec.AbstractFileSystem, root: str, listing: _Listing) -> None:
    if isinstance(fs, LocalFileSystem):
        _list_on_disk(root, "", frozenset(), listing)
    elif _lists_by_folder(fs):
        _list_by_folder(fs, root, "", listing)
    else:
        for path, info in fs.find(root, detail=True).items():
            listing.add(path[len(root) + 1 :], info["size"] or 0, _stamp(info))


def _lists_by_folder(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system lists folder by folder.

    If so, fsspec skips folders that cannot be listed without an error.
    """
    kind = type(fs)
    if isinstance(fs, AsyncFileSystem):
        return kind._find is AsyncFileSystem._find  # noqa: SLF001  fsspec's way to extend it
    return bool(kind.find is fsspec.AbstractFileSystem.find)


def _list_by_folder(
    fs: fsspec.AbstractFileSystem, folder: str, prefix: str, listing: _Listing
) -> None:
    try:
        entries = fs.ls(folder, detail=True)
    except OSError as problem:
        _note_unlisted(prefix, problem, listing)
        return
    for info in entries:
        entry_path = info["name"].rstrip("/")
        path = prefix + entry_path.rsplit("/", 1)[-1]
        if entry_path == folder.rstrip("/"):
            continue
        if info["type"] != "directory":
            listing.add(path, info.get("size") or 0, _stamp(info))
        elif is_system_file(path[len(prefix) :], folder=True):
            listing.system_files.add(f"{path}/")
        else:
            _list_by_folder(fs, entry_path, f"{path}/", listing)


def _stamp(info: Mapping[str, object]) -> str:
    return str(info.get("ETag") or info.get("LastModified") or info.get("created") or "")


def _note_unlisted(prefix: str, problem: OSError, listing: _Listing) -> None:
    """Record a folder that cannot be listed; raise if it is the raw folder itself."""
    if not prefix:
        raise problem
    listing.unlisted[to_printable(prefix)] = str(problem.strerror or problem)


def _list_on_disk(folder: str, prefix: str, parents: frozenset[str], listing: _Listing) -> None:
    real_path = os.path.realpath(folder)
    if real_path in parents:
        return  # this link leads to a folder that contains it
    try:
        with os.scandir(folder) as entries:
            entry_list = list(entries)
    except OSError as problem:
        _note_unlisted(prefix, problem, listing)
        return
    for entry in entry_list:
        path = f"{prefix}{entry.name}"
        link = Path(entry.path) if entry.is_symlink() else None
        try:
            if (link or entry).is_dir():
                if is_system_file(entry.name, folder=True):
                    listing.system_files.add(f"{to_printable(path)}/")
                else:
                    _list_on_disk(entry.path, f"{path}/", parents | {real_path}, listing)
            elif (link or entry).is_file():
                status = entry.stat()
                listing.add(path, status.st_size, str(status.st_mtime_ns))
            elif link is not None and not link.exists():
                # A broken link counts as an empty file. Reading it will report the problem.
                listing.add(path, 0, "")
        except OSError:
            # The folder can be listed but not entered. Opening the file will report that.
            listing.add(path, 0, "")
