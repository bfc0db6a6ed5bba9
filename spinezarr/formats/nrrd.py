"""How is an NRRD file read as a stream: a volume, or the segmentation of 3D Slicer?

:mod:`spinezarr.formats.nrrd_header` parses the header. The voxels follow it in the same file,
raw or as one gzip stream. Bytes after them are refused: such a file is damaged.

A segmentation (``.seg.nrrd``) has one or several layers of label values, and names the segment of
each value. Its file may cover only a part of the image.
"""

import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, pairwise
from typing import Any, Self

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.inflating_file import InflatingFile
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits, check_compressed_size
from spinezarr.formats.nrrd_header import HEADER_BYTES, NrrdHeader, parse_nrrd_header
from spinezarr.formats.part_of_grid import PartOfGrid
from spinezarr.formats.segments import Mask
from spinezarr.formats.slabs import HEADER_BLOCK_BYTES, READ_BYTES, read_slabs, skip_bytes
from spinezarr.formats.source_file import HashingFile, SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import Scaling

__all__ = ["NrrdSegmentation", "NrrdVolume"]


class _NrrdFile:
    """An opened file, whose header has been checked."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, limits: Limits) -> None:
        with fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as raw:
            self.header: NrrdHeader = parse_nrrd_header(raw.read(HEADER_BYTES), path)
        self._fs = fs
        self._path = path
        self._read: HashingFile | None = None
        header = self.header
        value_bytes = header.layers * header.stored_dtype.itemsize
        limits.check_grid(header.grid, value_bytes, path)
        size = fs.info(path).get("size")
        voxel_bytes = math.prod(header.grid.shape_ijk) * value_bytes
        if size is not None and header.compressed:
            check_compressed_size(size - header.text_bytes, voxel_bytes, path)
        elif size is not None and size - header.text_bytes != voxel_bytes:
            raise FormatError(
                f"{path}: has {size - header.text_bytes} bytes for its voxels, but its header says "
                f"{voxel_bytes}. Download it again."
            )

    def slabs(self, thicknesses: Iterable[int]) -> Generator[npt.NDArray[Any], None, None]:
        """Yield the stored values slab by slab, with axes (layer, i, j, k)."""
        header = self.header
        ni, nj, nk = header.grid.shape_ijk
        with self._fs.open(self._path, "rb") as raw:
            self._read = HashingFile(raw)
            buffered = io.BufferedReader(self._read, READ_BYTES)
            skip_bytes(buffered, header.text_bytes, self._path)
            inflating = InflatingFile(buffered) if header.compressed else None
            shape = (header.layers * ni, nj, nk)
            stream = inflating or buffered
            for slab in read_slabs(stream, shape, header.stored_dtype, thicknesses, self._path):
                native = np.asarray(slab, header.stored_dtype.newbyteorder("="))
                yield native.reshape((header.layers, ni, nj, -1), order="F")
            if inflating:
                inflating.check_end(self._path)
            if buffered.read(1):
                raise FormatError(f"{self._path}: goes on after its voxels. Download it again.")

    def source_file(self) -> SourceFile:
        """Return size and hash of the file as read by :meth:`slabs`."""
        if self._read is None:
            raise RuntimeError("source_file() before slabs()")
        return self._read.source_file()


class NrrdVolume:
    """An opened NRRD volume; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(self, file: _NrrdFile) -> None:
        self._file = file

    @classmethod
    def open(
        cls, fs: fsspec.AbstractFileSystem, path: str, limits: Limits = DEFAULT_LIMITS
    ) -> Self:
        """Read the header of ``path``.

        Raises
        ------
        FormatError
            If the file is no NRRD with one 3D volume of numbers and a usable affine, has several
            layers, or exceeds a limit.
        """
        file = _NrrdFile(fs, path, limits)
        if file.header.layers > 1:
            raise FormatError(
                f"{path}: has {file.header.layers} layers of segments, so its values are no "
                "labels: name the segments by 'segments' in the layout of a recipe."
            )
        return cls(file)

    @property
    def grid(self) -> Grid:
        """Shape and affine that the file states, converted to RAS+ mm."""
        return self._file.header.grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, in native byte order."""
        return self._file.header.stored_dtype.newbyteorder("=")

    @property
    def scaling(self) -> Scaling | None:
        """Always None, because the format has no scaling."""
        return None

    def unscaled(self) -> "NrrdVolume":
        """Return this volume, because it has no scaling."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        return ()

    @property
    def segment_names(self) -> tuple[str, ...]:
        """Names of the segments; empty if the file names none."""
        return tuple(segment.name for segment in self._file.header.segments)

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        return (slab[0] for slab in self._file.slabs(thicknesses))

    def source_file(self) -> SourceFile:
        """Return size and hash of the file as read by :meth:`slabs`."""
        return self._file.source_file()


class NrrdSegmentation:
    """An opened ``.seg.nrrd``; see :class:`spinezarr.formats.segments.Segmentation`.

    Parameters
    ----------
    fs, path
        File system and path of the file.
    image
        Grid of the image. The file may cover a part of it; the rest is background.
    limits
        Limits that the file must not exceed.

    Raises
    ------
    FormatError
        If the file is no NRRD, names no segments or exceeds a limit.
    GridMismatchError
        If the file does not lie on the voxels of the image, or extends beyond it.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        image: Grid,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._file = _NrrdFile(fs, path, limits)
        header = self._file.header
        if not header.segments:
            raise FormatError(
                f"{path}: names no segments; expected a segmentation of 3D Slicer (.seg.nrrd). "
                "Give its values by 'values' in the layout, in place of 'segments'."
            )
        part = PartOfGrid.of(image, header.grid.affine_ijk, path)
        self._grid = part.whole
        self._start_ijk = part.start_of(header.grid.shape_ijk, header.grid.affine_ijk)

    @property
    def grid(self) -> Grid:
        """Grid of the image, with axes in the order and directions of the file."""
        return self._grid

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each segment."""
        return tuple(segment.name for segment in self._file.header.segments)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        return ()

    def masks(
        self, thicknesses: Iterable[int], segments: Sequence[int], /
    ) -> Iterator[Iterator[Mask | None]]:
        """Yield masks slab by slab; see :meth:`spinezarr.formats.segments.Segmentation.masks`."""
        header = self._file.header
        ends = list(pairwise(chain([0], np.cumsum(list(thicknesses)).tolist())))
        first = self._start_ijk[2]
        last = first + header.grid.shape_ijk[2]
        inside = [(max(a, first), min(b, last)) for a, b in ends]
        reading = self._file.slabs([b - a for a, b in inside if b > a])
        with closing(reading):
            for (start, stop), (low, high) in zip(ends, inside, strict=True):
                values = next(reading) if high > low else None
                draw = partial(self._mask, values, stop - start, low - start)
                yield map(draw, segments)
            next(reading, None)  # checks the end of the file

    def _mask(
        self, values: npt.NDArray[Any] | None, thickness: int, offset: int, segment: int
    ) -> Mask | None:
        """Return the mask of a segment in a slab, of whose slices the file has some from offset."""
        if values is None:
            return None
        facts = self._file.header.segments[segment]
        inside = values[facts.layer] == facts.value
        if not inside.any():
            return None
        mask = np.zeros((*self._grid.shape_ijk[:2], thickness), np.bool_, order="F")
        i, j, _ = self._start_ijk
        ni, nj, nk = inside.shape
        mask[i : i + ni, j : j + nj, offset : offset + nk] = inside
        return mask

    def source_file(self) -> SourceFile:
        """Return size and hash of the file as read by :meth:`masks`."""
        return self._file.source_file()
