"""What every source format offers: the grid first, then the values slab by slab."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.file_kinds import (
    KIND_BYTES,
    UNKNOWN,
    FileKind,
    detect_kind,
    kind_from_ending,
)
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import Scaling

__all__ = ["Volume", "open_volume", "unsupported_kind"]


class Volume(Protocol):
    """An opened image file or series: its grid is known before any voxel is read.

    Implementations never reorient or cast; the ingest does, the same way for all formats.
    """

    @property
    def grid(self) -> Grid:
        """Shape and affine as the file states them."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, after the file's own scaling."""
        ...

    @property
    def scaling(self) -> Scaling | None:
        """What the file does to all its numbers alike; None if there is no such scaling."""
        ...

    def unscaled(self) -> "Volume":
        """Return the numbers before :attr:`scaling`, in their own type, as a volume."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this file, e.g. that it states no orientation."""
        ...

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order, as arrays ``(i, j, k)`` of the given thicknesses in k.

        The thicknesses add up to the length of the k axis. May be called again.

        Raises
        ------
        FormatError
            If the file ends early or does not decompress.
        """
        ...

    def source_file(self) -> SourceFile:
        """Size and hash of the file; known once :meth:`slabs` has been read to its end."""
        ...


_OPENERS: Final[dict[str, Callable[[fsspec.AbstractFileSystem, str, Limits], Volume]]] = {
    ".nii": NiftiVolume.open,
    ".nii.gz": NiftiVolume.open,
    ".mha": MetaImageVolume.open,
    ".mhd": MetaImageVolume.open,
    "/": DicomSeriesVolume.open,
}


def open_volume(
    fs: fsspec.AbstractFileSystem, path: str, limits: Limits = DEFAULT_LIMITS
) -> Volume:
    """Open a source file by the format that its name says; a folder is a series of DICOM slices.

    Parameters
    ----------
    fs
        Where the file is.
    path
        Its path there; that of a folder ends with a slash.
    limits
        How large it may be.

    Raises
    ------
    FormatError
        If no format has this ending, the file is not what its name says, it is over a limit, or it
        is a folder, a broken link or not readable.
    FileNotFoundError
        If it is not there.
    UsageError
        If the format needs a package that is not installed.
    """
    opener = _opener(path)
    try:
        if opener is not None:
            return opener(fs, path, limits)
        kind = kind_from_ending(path)
        if kind is UNKNOWN:
            with fs.open(path, "rb", block_size=KIND_BYTES) as raw:
                kind = detect_kind(raw.read(KIND_BYTES))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as problem:
        why = _why_closed(fs, path, problem)
        if why is None:
            raise
        raise FormatError(why) from problem
    raise FormatError(
        f"{path}: its ending names no format that is read; it looks like {kind.name}. "
        f"{kind.next_step or UNKNOWN.next_step}"
    )


def unsupported_kind(path: str) -> FileKind | None:
    """Tell what a file is whose ending no reader takes, without opening it; None if one does.

    Examples
    --------
    >>> unsupported_kind("a.nrrd").name, unsupported_kind("A.NII.GZ"), unsupported_kind("series/")
    ('an NRRD file', None, None)
    """
    return None if _opener(path) else kind_from_ending(path)


def _opener(path: str) -> Callable[[fsspec.AbstractFileSystem, str, Limits], Volume] | None:
    lowered = path.lower()
    return next((open_ for ending, open_ in _OPENERS.items() if lowered.endswith(ending)), None)


def _why_closed(fs: fsspec.AbstractFileSystem, path: str, problem: OSError) -> str | None:
    """Say why a file that is there does not open, and what to do; None if it is not there."""
    where = Path(str(problem.filename or path))
    if isinstance(fs, LocalFileSystem) and where.is_symlink() and not where.exists():
        annexed = "/annex/objects/" in str(where.readlink())
        advice = "run 'git annex get .' in the cloned folder" if annexed else "put the file there"
        return f"{where}: is a link to a file that is not there: {advice}, or remove the link."
    if isinstance(problem, IsADirectoryError) or fs.isdir(path):
        return (
            f"{path}: is a folder, expected a file. A folder of DICOM slices needs a pattern that "
            "ends with '/'; a file that was unpacked into a folder of its own name belongs beside "
            "that folder."
        )
    if isinstance(problem, PermissionError):
        return f"{where}: cannot be read: {problem.strerror}. Let its owner allow it (chmod a+r)."
    return None
