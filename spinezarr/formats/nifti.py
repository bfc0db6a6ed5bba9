"""NIfTI-1 and NIfTI-2 single files, ``.nii`` and ``.nii.gz``, read as a stream.

nibabel parses the header and applies the scaling; the values are inflated once, in file order,
with ``isal``, so that a volume is never held whole.

References
----------
NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h;
NIfTI-2: https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self

import fsspec
import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from spinezarr.errors import FormatError
from spinezarr.formats.affine import check_affine
from spinezarr.formats.described import described_bytes
from spinezarr.formats.slabs import GZIP_MAGIC, READ_BYTES, read_into, read_slabs, skip
from spinezarr.formats.source_file import HashingFile, SourceFile
from spinezarr.geometry import Grid

__all__ = ["NiftiVolume"]

_HEADER_CLASSES: Final[dict[int, Any]] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
"""By ``sizeof_hdr``, the first field of the header."""
_MAGIC: Final = {348: (b"n+1\x00",), 540: (b"n+2\x00",)}
"""Single files only; ``.hdr``/``.img`` pairs have other magic."""


@dataclass(frozen=True, slots=True)
class _Header:
    grid: Grid
    stored_dtype: np.dtype[Any]
    slope: float | None
    inter: float | None
    data_offset: int
    notes: tuple[str, ...]


class NiftiVolume:
    """An opened NIfTI file; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, header: _Header) -> None:
        self._fs = fs
        self._path = path
        self._header = header
        self._read: HashingFile | None = None

    @classmethod
    def open(cls, fs: fsspec.AbstractFileSystem, path: str) -> Self:
        """Read the header of ``path``.

        Raises
        ------
        FormatError
            If the file is empty, no NIfTI file, not 3D, of a type that is no number, or its
            affine does not place voxels in space.
        """
        with fs.open(path, "rb") as raw:
            header = _read_header(_decompressed(raw, path), path)
        return cls(fs, path, header)

    @property
    def grid(self) -> Grid:
        """Shape and affine as the file states them."""
        return self._header.grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values after scaling: float64 if the file scales, as in nibabel."""
        scaled = self._header.slope is not None
        return np.dtype(np.float64) if scaled else self._header.stored_dtype.newbyteorder("=")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this file."""
        return self._header.notes

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        header, path = self._header, self._path
        with self._fs.open(path, "rb") as raw:
            self._read = HashingFile(raw)
            stream = _decompressed(io.BufferedReader(self._read, READ_BYTES), path)
            skip(stream, header.data_offset, path)
            stored = read_slabs(
                stream, header.grid.shape_ijk, header.stored_dtype, thicknesses, path
            )
            yield from map(self._values, stored)
            # Reading on to the end checks gzip's own checksum and completes the hash.
            while read_into(stream, np.empty(READ_BYTES, np.uint8), path):
                pass

    def _values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._header.slope is None:
            return stored.astype(self.dtype, copy=False)
        values: npt.NDArray[Any] = apply_read_scaling(
            stored.astype(stored.dtype.newbyteorder("="), copy=False),
            self._header.slope,
            self._header.inter,
        )
        return values.astype(np.float64, copy=False)

    def source_file(self) -> SourceFile:
        """Size and hash of the file as read by :meth:`slabs`."""
        if self._read is None:
            raise RuntimeError("source_file() before slabs()")
        return self._read.source_file()


def _decompressed(raw: BinaryIO | io.BufferedReader, path: str) -> io.BufferedIOBase:
    """Return the stream inside ``raw``: inflated if it starts as gzip does, whatever its name."""
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(HashingFile(raw))
    start = buffered.peek(2)[:2]
    if not start:
        raise FormatError(f"{path}: is empty. Download it again.")
    return igzip.IGzipFile(fileobj=buffered, mode="rb") if start == GZIP_MAGIC else buffered


def _read_header(stream: io.BufferedIOBase, path: str) -> _Header:
    start = np.zeros(4, np.uint8)
    got = read_into(stream, start, path)
    sizes = {int(start.view(order)[0]) for order in ("<i4", ">i4")}
    size = next((s for s in _HEADER_CLASSES if s in sizes), None)
    if got < start.nbytes or size is None:
        raise FormatError(
            f"{path}: is not a NIfTI file: it looks like "
            f"{described_bytes(start[:got].tobytes())}, expected the header size 348 or 540."
        )
    rest = np.empty(size - 4, np.uint8)
    if read_into(stream, rest, path) < rest.nbytes:
        raise FormatError(f"{path}: ends inside its {size}-byte header. Download it again.")
    parsed = _HEADER_CLASSES[size](start.tobytes() + rest.tobytes(), check=False)
    magic = bytes(parsed["magic"].tobytes()[:4])
    if magic not in _MAGIC[size]:
        raise FormatError(
            f"{path}: its header has another magic than {_MAGIC[size][0]!r}: "
            "only single NIfTI files are read, not .hdr/.img pairs."
        )
    return _check_header(parsed, path, size)


def _check_header(parsed: nib.Nifti1Header, path: str, header_size: int) -> _Header:
    shape = _check_shape(parsed, path)
    dtype = _check_dtype(parsed, path)
    try:
        slope, inter = parsed.get_slope_inter()
    except HeaderDataError as problem:
        raise FormatError(f"{path}: unusable scl_slope or scl_inter: {problem}.") from problem
    if (slope, inter) == (1.0, 0.0):
        slope, inter = None, None
    notes: list[str] = []
    if parsed["sform_code"] == 0 and parsed["qform_code"] == 0:
        notes.append("the header states no orientation (sform and qform codes are 0); assumed LAS")
    stated = float(parsed["vox_offset"])
    if not np.isfinite(stated):
        raise FormatError(f"{path}: vox_offset is {stated}, expected a number of bytes.")
    offset = int(stated) or header_size + 4
    if offset < header_size:
        raise FormatError(f"{path}: vox_offset {offset} lies inside the header.")
    grid = Grid(shape, _affine(parsed, path))
    return _Header(grid, dtype, slope, inter, offset, tuple(notes))


def _check_shape(parsed: nib.Nifti1Header, path: str) -> tuple[int, int, int]:
    rank = int(parsed["dim"][0])
    dims = [int(n) for n in parsed["dim"][1 : 1 + max(0, min(rank, 7))]]
    if rank != 3:  # noqa: PLR2004
        raise FormatError(
            f"{path}: has {rank} dimensions {tuple(dims)}, expected 3. "
            "Split a series into one file a volume."
        )
    if min(dims) < 1:
        raise FormatError(f"{path}: has an empty dimension: {tuple(dims)}.")
    return (dims[0], dims[1], dims[2])


def _check_dtype(parsed: nib.Nifti1Header, path: str) -> np.dtype[Any]:
    code = int(parsed["datatype"])
    try:
        dtype: np.dtype[Any] = parsed.get_data_dtype()
    except (HeaderDataError, KeyError) as problem:
        raise FormatError(f"{path}: unknown NIfTI datatype {code}.") from problem
    if dtype.fields is not None:
        kind = "".join(dtype.fields)
        raise FormatError(f"{path}: holds {kind} colours, not CT numbers or labels.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:  # noqa: PLR2004
        raise FormatError(f"{path}: holds {dtype} values, expected integers or floats to 64 bit.")
    return dtype


def _affine(parsed: nib.Nifti1Header, path: str) -> npt.NDArray[np.float64]:
    if parsed["pixdim"][0] == 0:
        parsed["pixdim"][0] = 1  # "if qfac is 0, use 1" (nifti1.h, method 2)
    try:
        affine = np.asarray(parsed.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as problem:
        raise FormatError(f"{path}: unusable orientation: {problem}.") from problem
    check_affine(affine, path)
    return affine
