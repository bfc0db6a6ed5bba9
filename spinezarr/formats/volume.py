"""What does every image format offer? The grid first, then the values slab by slab."""

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
    DICOM,
    KIND_BYTES,
    UNKNOWN,
    FileKind,
    detect_kind,
    kind_from_ending,
)
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.nrrd import NrrdVolume
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import Scaling

__all__ = ["Volume", "open_volume", "unsupported_kind"]


class Volume(Protocol):
    """An opened image file or series, whose grid is known before any voxel is read.

    Implementations never reorient or cast. The ingest does this in the same way for all formats.
    """

    @property
    def grid(self) -> Grid:
        """Shape and affine that the file states."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, after the file's own scaling."""
        ...

    @property
    def scaling(self) -> Scaling | None:
        """Scaling that the file applies to all its numbers; None if there is none."""
        ...

    def unscaled(self) -> "Volume":
        """Return a volume of the numbers before :attr:`scaling`, in their own type."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user, such as a missing orientation."""
        ...

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order, slab by slab.

        Parameters
        ----------
        thicknesses
            Thickness of each slab along k. They add up to the length of the k axis.

        Yields
        ------
        numpy.ndarray
            Values of one slab with axes ``(i, j, k)``, in :attr:`dtype`.

        Raises
        ------
        FormatError
            If the file ends early or does not decompress.
        """
        ...

    def source_file(self) -> SourceFile:
        """Return size and hash of the file, known after :meth:`slabs` was read to its end."""
        ...


_OPENERS: Final[dict[str, Callable[[fsspec.AbstractFileSystem, str, Limits], Volume]]] = {
    ".nii": NiftiVolume.open,
    ".nii.gz": NiftiVolume.open,
    ".mha": MetaImageVolume.open,
    ".mhd": MetaImageVolume.open,
    ".nrrd": NrrdVolume.open,
    "/": DicomSeriesVolume.open,
}


def open_volume(
    fs: fsspec.AbstractFileSystem, path: str, limits: Limits = DEFAULT_LIMITS
) -> Volume:
    """Open a source file in the format of its ending; a folder is a series of DICOM slices.

    Parameters
    ----------
    fs
        File system of the file.
    path
        Path on the file system. The path of a folder ends with a slash.
    limits
        Limits that the file must not exceed.

    Returns
    -------
    Volume
        The volume, whose header has been read and checked.

    Raises
    ------
    FormatError
        If no format has this ending, or the file has another format, exceeds a limit, is
        unexpectedly a folder, is a broken link or is not readable.
    FileNotFoundError
        If there is no such file.
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
        reason = _explain_unopened(fs, path, problem)
        if reason is None:
            raise
        raise FormatError(reason) from problem
    raise FormatError(
        f"{path}: its ending names no format that is read; it looks like {kind.name}. "
        f"{kind.next_step or UNKNOWN.next_step}"
    )


def unsupported_kind(path: str, *, segments: bool = False) -> FileKind | None:
    """Return the kind of a file by its ending, if no reader supports it; None if one does.

    The file is not opened.

    Parameters
    ----------
    path
        Path of the file.
    segments
        Whether it is a file of named segments. The names of DICOM files may have any ending.

    Examples
    --------
    >>> unsupported_kind("a.mgz").name, unsupported_kind("A.NII.GZ"), unsupported_kind("series/")
    ('an MGH file of FreeSurfer', None, None)
    >>> unsupported_kind("a.dcm").name, unsupported_kind("a.dcm", segments=True)
    ('a DICOM file', None)
    """
    kind = kind_from_ending(path)
    if _opener(path) or (segments and kind in (DICOM, UNKNOWN)):
        return None
    return kind


def _opener(path: str) -> Callable[[fsspec.AbstractFileSystem, str, Limits], Volume] | None:
    lowered = path.lower()
    return next((open_ for ending, open_ in _OPENERS.items() if lowered.endswith(ending)), None)


def _explain_unopened(fs: fsspec.AbstractFileSystem, path: str, problem: OSError) -> str | None:
    """Return why an existing file does not open, and the next step; None if it does not exist."""
    file_path = Path(str(problem.filename or path))
    if isinstance(fs, LocalFileSystem) and file_path.is_symlink() and not file_path.exists():
        annexed = "/annex/objects/" in str(file_path.readlink())
        advice = "run 'git annex get .' in the cloned folder" if annexed else "put the file there"
        return f"{file_path}: is a link to a file that is not there: {advice}, or remove the link."
    if isinstance(problem, IsADirectoryError) or fs.isdir(path):
        return (
            f"{path}: is a folder, expected a file. A folder of DICOM slices needs a pattern that "
            "ends with '/'; a file that was unpacked into a folder of its own name belongs beside "
            "that folder."
        )
    if isinstance(problem, PermissionError):
        return (
            f"{file_path}: cannot be read: {problem.strerror}. Let its owner allow it (chmod a+r)."
        )
    return None
