"""What every source format offers: the grid first, then the values slab by slab."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid

__all__ = ["Volume", "open_volume"]


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
        If no format has this ending, the file is not what its name says, or it is over a limit.
    UsageError
        If the format needs a package that is not installed.
    """
    for ending, opener in _OPENERS.items():
        if path.lower().endswith(ending):
            return opener(fs, path, limits)
    raise FormatError(
        f"{path}: unknown ending; expected one of {', '.join(_OPENERS)} (a DICOM folder)."
    )
