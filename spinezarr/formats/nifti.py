"""How is a NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``, read as a stream?

nibabel parses the header. ``isal`` inflates the values once, in file order, so that the whole
volume is never in memory. They are scaled as nibabel does.

References
----------
NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h;
NIfTI-2: https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h
"""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final, Literal, Self

import fsspec
import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from spinezarr.errors import FormatError
from spinezarr.formats.affine import check_affine
from spinezarr.formats.file_kinds import KIND_BYTES, PAIR_STEP, wrong_kind_error
from spinezarr.formats.limits import (
    DEFAULT_LIMITS,
    LARGEST_DEFLATE_RATIO,
    Limits,
    check_compressed_size,
)
from spinezarr.formats.slabs import (
    GZIP_MAGIC,
    HEADER_BLOCK_BYTES,
    READ_BYTES,
    read_into,
    read_slabs,
    skip_bytes,
)
from spinezarr.formats.source_file import HashingFile, SourceFile
from spinezarr.geometry import Grid
from spinezarr.nifti_geometry import conflicting_pixdim_mm, qform_sform_distance_mm
from spinezarr.scaling import VALUE_DTYPE, Scaling

__all__ = ["NiftiHeaderFields", "NiftiVolume"]

_HEADER_CLASSES: Final[dict[int, Any]] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
"""Header class for each ``sizeof_hdr``, the first field of the header."""
_MAGIC: Final = {348: (b"n+1\x00",), 540: (b"n+2\x00",)}
"""Magic numbers of single files for each ``sizeof_hdr``. ``.hdr``/``.img`` pairs have others."""
_SPATIAL_RANK: Final = 3
_MAX_RANK: Final = 7
"""Largest number of axes, in both versions."""
_PAIR_MAGIC: Final = (b"ni1\x00", b"ni2\x00", bytes(4))
"""Magic numbers of the ``.hdr`` of a pair; Analyze has none."""
_SIZE_BYTES: Final = 4
"""Size of ``sizeof_hdr`` in bytes."""
_GZIP_LAYERS: Final = 2
"""Largest number of nested gzip layers. Servers that compress responses add a second one."""
_PADDING_BYTES: Final = 4 << 20
"""Largest number of zero bytes after the voxels, which some file systems and tapes add."""


@dataclass(frozen=True, slots=True)
class NiftiHeaderFields:
    """The header fields that are needed to write a file with the same type and affine."""

    version: Literal[1, 2]
    sform_code: int
    qform_code: int
    pixdim: tuple[float, ...]
    """First four values of ``pixdim``: qfac, then the spacing along i, j and k in mm."""
    quatern_bcd: tuple[float, ...]
    qoffset_xyz: tuple[float, ...]
    xyzt_units: int

    @classmethod
    def from_header(cls, parsed: nib.Nifti1Header) -> Self:
        """Return the fields of a header; a number that is not finite becomes 0."""

        def numbers(*values: Any) -> tuple[float, ...]:  # noqa: ANN401  zero-dimensional arrays
            return tuple(float(value) if np.isfinite(value) else 0.0 for value in values)

        return cls(
            version=2 if isinstance(parsed, nib.Nifti2Header) else 1,
            sform_code=int(parsed["sform_code"]),
            qform_code=int(parsed["qform_code"]),
            pixdim=numbers(*parsed["pixdim"][:4]),
            quatern_bcd=numbers(*(parsed[f"quatern_{name}"] for name in "bcd")),
            qoffset_xyz=numbers(*(parsed[f"qoffset_{name}"] for name in "xyz")),
            xyzt_units=int(parsed["xyzt_units"]),
        )


@dataclass(frozen=True, slots=True)
class _Header:
    grid: Grid
    stored_dtype: np.dtype[Any]
    scaling: Scaling | None
    data_offset: int
    fields: NiftiHeaderFields
    notes: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values after scaling."""
        return VALUE_DTYPE if self.scaling else self.stored_dtype.newbyteorder("=")


class NiftiVolume:
    """An opened NIfTI file; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(
        self, fs: fsspec.AbstractFileSystem, path: str, header: _Header, gzip_layers: int
    ) -> None:
        self._fs = fs
        self._path = path
        self._header = header
        self._gzip_layers = gzip_layers
        self._read: HashingFile | None = None

    @classmethod
    def open(
        cls, fs: fsspec.AbstractFileSystem, path: str, limits: Limits = DEFAULT_LIMITS
    ) -> Self:
        """Read the header of ``path``.

        Raises
        ------
        FormatError
            If the file is empty, no NIfTI file, no single volume, has values that are no numbers,
            is shorter than its header implies, exceeds a limit, or has an unusable affine.
        """
        for layers in range(1, _GZIP_LAYERS + 1):
            with fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as raw:
                stream = _decompressed(raw, path, layers)
                start = _read_header_size(stream, path)
                if layers < _GZIP_LAYERS and start.tobytes().startswith(GZIP_MAGIC):
                    continue
                header = _read_header(start, stream, path)
                break
        limits.check_grid(
            header.grid, max(header.dtype.itemsize, header.stored_dtype.itemsize), path
        )
        if header.data_offset > limits.header_bytes:
            raise FormatError(
                f"{path}: its voxels start at byte {header.data_offset} (vox_offset), expected at "
                f"most {limits.header_bytes}. Download it again."
            )
        gzip_layers = layers if isinstance(stream, igzip.IGzipFile) else 0
        _check_length(fs.info(path).get("size"), header, path, gzip_layers)
        return cls(fs, path, header, layers)

    @property
    def grid(self) -> Grid:
        """Shape and affine that the file states."""
        return self._header.grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values after scaling: float64 if the file has a scaling, as in nibabel."""
        return self._header.dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of the numbers before scaling, in the byte order of the file."""
        return self._header.stored_dtype

    @property
    def scaling(self) -> Scaling | None:
        """Scaling of the numbers in the file; None if there is none."""
        return self._header.scaling

    def unscaled(self) -> "NiftiVolume":
        """Return a volume of the numbers before the scaling."""
        header = replace(self._header, scaling=None)
        return NiftiVolume(self._fs, self._path, header, self._gzip_layers)

    @property
    def header_fields(self) -> NiftiHeaderFields:
        """Header fields from which the affine is made."""
        return self._header.fields

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        return self._header.notes

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        header, path = self._header, self._path
        with self._fs.open(path, "rb") as raw:
            self._read = HashingFile(raw)
            buffered = io.BufferedReader(self._read, READ_BYTES)
            stream = _decompressed(buffered, path, self._gzip_layers)
            skip_bytes(stream, header.data_offset, path)
            stored_slabs = read_slabs(
                stream, header.grid.shape_ijk, header.stored_dtype, thicknesses, path
            )
            yield from map(self._values, stored_slabs)
            _read_padding(stream, path)

    def _values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scaling = self._header.scaling
        if scaling is None:
            return stored.astype(self.dtype, copy=False)
        try:
            # NaN stays NaN.
            with np.errstate(over="raise", invalid="ignore"):
                return scaling.values(stored)
        except FloatingPointError:
            raise FormatError(
                f"{self._path}: its scl_slope {scaling.slope:g} and scl_inter "
                f"{scaling.intercept:g} scale a voxel beyond the range of numbers. Correct them."
            ) from None

    def source_file(self) -> SourceFile:
        """Return size and hash of the file as read by :meth:`slabs`."""
        if self._read is None:
            raise RuntimeError("source_file() before slabs()")
        return self._read.source_file()


def _decompressed(raw: BinaryIO | io.BufferedReader, path: str, layers: int) -> io.BufferedIOBase:
    """Return the content of ``raw``, inflated ``layers`` times if it starts as gzip does.

    The ending of the file does not matter.
    """
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(HashingFile(raw))
    start = buffered.peek(2)[:2]
    if not start:
        raise FormatError(f"{path}: is empty. Download it again.")
    stream: io.BufferedIOBase = buffered
    for _ in range(layers if start == GZIP_MAGIC else 0):
        stream = igzip.IGzipFile(fileobj=stream, mode="rb")
    return stream


def _check_length(size: int | None, header: _Header, path: str, gzip_layers: int) -> None:
    """Refuse a file that is too short for the voxels that its header states.

    ``size`` is the size of the file in bytes, if known.
    """
    if size is None:
        return
    voxel_bytes = math.prod(header.grid.shape_ijk) * header.stored_dtype.itemsize
    if gzip_layers:
        check_compressed_size(size * LARGEST_DEFLATE_RATIO ** (gzip_layers - 1), voxel_bytes, path)
    elif size < header.data_offset:
        raise FormatError(
            f"{path}: ends before its voxels start, at byte {header.data_offset}. "
            "Download it again."
        )
    elif size < header.data_offset + voxel_bytes:
        raise FormatError(
            f"{path}: cut short: its voxels end after about {size - header.data_offset} of "
            f"{voxel_bytes} bytes. Download it again."
        )


def _read_padding(stream: io.BufferedIOBase, path: str) -> None:
    """Read to the end of the file, which checks the checksum of gzip and completes the hash."""
    block = np.empty(READ_BYTES, np.uint8)
    remaining_bytes = _PADDING_BYTES
    while n_bytes := read_into(stream, block, path):
        remaining_bytes -= n_bytes
        if remaining_bytes < 0 or block[:n_bytes].any():
            raise FormatError(
                f"{path}: goes on after its voxels: its header names too few, or something else "
                "was appended. Download it again."
            )


def _read_header_size(stream: io.BufferedIOBase, path: str) -> npt.NDArray[np.uint8]:
    """Read ``sizeof_hdr``, or fewer bytes if the file is shorter."""
    start = np.empty(_SIZE_BYTES, np.uint8)
    return start[: read_into(stream, start, path)]


def _read_header(start: npt.NDArray[np.uint8], stream: io.BufferedIOBase, path: str) -> _Header:
    """Read and check the header, of which ``start`` holds the first bytes."""
    is_complete = start.nbytes == _SIZE_BYTES
    sizes = {int(start.view(order)[0]) for order in ("<i4", ">i4")} if is_complete else set[int]()
    header_size = next((s for s in _HEADER_CLASSES if s in sizes), None)
    remainder = np.empty((header_size or KIND_BYTES) - _SIZE_BYTES, np.uint8)
    n_bytes = read_into(stream, remainder, path)
    if header_size is None:
        raise wrong_kind_error(
            path, start.tobytes() + remainder[:n_bytes].tobytes(), "a NIfTI file"
        )
    if n_bytes < remainder.nbytes:
        raise FormatError(f"{path}: ends inside its {header_size}-byte header. Download it again.")
    # nibabel would tell the byte order by dim[0], which may be wrong.
    order = "<" if start.view("<i4")[0] == header_size else ">"
    parsed = _HEADER_CLASSES[header_size](start.tobytes() + remainder.tobytes(), order, check=False)
    magic = bytes(parsed["magic"].tobytes()[:4])
    if magic not in _MAGIC[header_size]:
        next_step = PAIR_STEP if magic in _PAIR_MAGIC else "Download it again."
        raise FormatError(
            f"{path}: its header lacks the magic number {_MAGIC[header_size][0]!r}: "
            f"only single NIfTI files are read, not .hdr/.img pairs. {next_step}"
        )
    return _check_header(parsed, path, header_size)


def _check_header(parsed: nib.Nifti1Header, path: str, header_size: int) -> _Header:
    notes: list[str] = []
    shape = _check_shape(parsed, notes, path)
    dtype = _check_dtype(parsed, path)
    scaling = _scaling(parsed, path)
    if parsed["sform_code"] == 0 and parsed["qform_code"] == 0:
        notes.append("the header states no orientation (sform and qform codes are 0); assumed LAS")
    vox_offset = float(parsed["vox_offset"])
    if not np.isfinite(vox_offset):
        raise FormatError(f"{path}: vox_offset is {vox_offset}, expected a number of bytes.")
    offset = int(vox_offset) or header_size + 4
    if offset < header_size:
        raise FormatError(f"{path}: vox_offset {offset} lies inside the header.")
    grid = Grid(shape, _affine(parsed, path))
    fields = NiftiHeaderFields.from_header(parsed)
    notes += _conflicts(fields, grid)
    return _Header(grid, dtype, scaling, offset, fields, tuple(notes))


def _conflicts(fields: NiftiHeaderFields, grid: Grid) -> Iterator[str]:
    """Yield a remark for each field that contradicts the sform, which nibabel and spinezarr use."""
    pixdim_mm = conflicting_pixdim_mm(fields, grid.shape_ijk, grid.affine_ijk)
    if pixdim_mm is not None:
        sform_spacing_mm = np.linalg.norm(grid.affine_ijk[:3, :3], axis=0).tolist()
        yield (
            f"pixdim states voxels of {_fmt_mm(pixdim_mm)} mm, but the sform has voxels of "
            f"{_fmt_mm(sform_spacing_mm)} mm; the sform was used"
        )
    distance = qform_sform_distance_mm(fields, grid.shape_ijk, grid.affine_ijk)
    if distance is not None:
        yield (
            f"the qform places corners up to {distance:.3g} mm away from those of the sform; the "
            "sform was used"
        )


def _fmt_mm(spacing_mm: Iterable[float]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing_mm)


def _scaling(parsed: nib.Nifti1Header, path: str) -> Scaling | None:
    """Return the scaling; None if there is none, or if the slope is NaN, as in nibabel."""
    if np.isinf(parsed["scl_slope"]):
        raise FormatError(f"{path}: unusable scl_slope or scl_inter: {parsed['scl_slope']}.")
    try:
        slope, inter = parsed.get_slope_inter()
    except HeaderDataError as problem:
        raise FormatError(f"{path}: unusable scl_slope or scl_inter: {problem}.") from problem
    if slope is None or inter is None or (slope, inter) == (1.0, 0.0):
        return None
    return Scaling(float(slope), float(inter))


def _check_shape(parsed: nib.Nifti1Header, notes: list[str], path: str) -> tuple[int, int, int]:
    """Return the lengths of the first three axes. Others must have length 1 (or 0, as in ITK)."""
    rank = int(parsed["dim"][0])
    dims = tuple(int(n) for n in parsed["dim"][1 : 1 + max(0, min(rank, _MAX_RANK))])
    further_axes = dims[_SPATIAL_RANK:]
    if not _SPATIAL_RANK <= rank <= _MAX_RANK or not {*further_axes} <= {0, 1}:
        raise FormatError(
            f"{path}: has {rank} dimensions {dims}, expected 3, or further ones of length 1. "
            "Split the series into one file for each volume."
        )
    i, j, k = dims[:_SPATIAL_RANK]
    if min(i, j, k) < 1:
        raise FormatError(f"{path}: has an empty dimension: {dims}.")
    if further_axes:
        notes.append(
            f"the header has {rank} axes; those after the third, of length 1, are left out"
        )
    return (i, j, k)


def _check_dtype(parsed: nib.Nifti1Header, path: str) -> np.dtype[Any]:
    code = int(parsed["datatype"])
    try:
        dtype: np.dtype[Any] = parsed.get_data_dtype()
    except (HeaderDataError, KeyError) as problem:
        raise FormatError(f"{path}: unknown NIfTI datatype {code}.") from problem
    if dtype.fields is not None:
        kind = "".join(dtype.fields)
        raise FormatError(f"{path}: holds {kind} colors, not CT numbers or labels.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:  # noqa: PLR2004
        raise FormatError(f"{path}: holds {dtype} values, expected integers or floats to 64 bit.")
    return dtype


def _affine(parsed: nib.Nifti1Header, path: str) -> npt.NDArray[np.float64]:
    if parsed["pixdim"][0] == 0:
        parsed["pixdim"][0] = 1  # "if qfac is 0, use 1" (nifti1.h, method 2)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            affine = np.asarray(parsed.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as problem:
        raise FormatError(f"{path}: unusable orientation: {problem}.") from problem
    check_affine(affine, path)
    return affine
