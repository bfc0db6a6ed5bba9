"""How is a MetaImage, ``.mha`` or ``.mhd`` with a data file, read as a stream?

:mod:`spinezarr.formats.metaimage_header` parses the header. The voxels follow it in the same file,
or are in a data file. A data file must be a plain file in the same folder, no link, with the size
that the header implies. This is checked before any voxel is read, so that a foreign header cannot
make the reader open another file of the machine, or read voxels from a wrong offset.

Compressed voxels are one zlib or gzip stream, as in MetaIO, which extends to the end of the file.
Bytes after the stream are refused, as are bytes after uncompressed voxels: such a file is damaged.
"""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.inflating_file import InflatingFile
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits, check_compressed_size
from spinezarr.formats.metaimage_header import (
    HEADER_BYTES,
    MetaImageGeometry,
    MetaImageHeader,
    parse_header,
)
from spinezarr.formats.slabs import (
    HEADER_BLOCK_BYTES,
    READ_BYTES,
    read_slabs,
    skip_bytes,
)
from spinezarr.formats.source_file import HashingFile, SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import Scaling

__all__ = ["MetaImageVolume"]


@dataclass(frozen=True, slots=True)
class _Source:
    """Location of the voxels."""

    paths: tuple[str, ...]
    """Path of the header, and that of the data file if there is one."""
    data_offset: int
    """Number of bytes before the voxels, if the files are read in sequence."""


class MetaImageVolume:
    """An opened MetaImage; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(
        self, fs: fsspec.AbstractFileSystem, header: MetaImageHeader, source: _Source
    ) -> None:
        self._fs = fs
        self._header = header
        self._source = source
        self._read: HashingFile | None = None

    @classmethod
    def open(
        cls, fs: fsspec.AbstractFileSystem, path: str, limits: Limits = DEFAULT_LIMITS
    ) -> Self:
        """Read the header of ``path`` and find its voxels.

        Raises
        ------
        FormatError
            If the file is no MetaImage with one 3D volume of numbers and a usable affine, or
            exceeds a limit. Also if its data file is missing, in another folder, a link that
            ``limits`` does not allow, or of another size than the header implies.
        """
        with fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as raw:
            header = parse_header(raw.read(HEADER_BYTES), path)
        limits.check_grid(header.grid, header.stored_dtype.itemsize, path)
        source = _find_voxels(fs, path, header, limits)
        if source.data_offset > limits.header_bytes:
            raise FormatError(
                f"{path}: its voxels start at byte {source.data_offset} (HeaderSize), expected at "
                f"most {limits.header_bytes}. Download it again."
            )
        return cls(fs, header, source)

    @property
    def grid(self) -> Grid:
        """Shape and affine that the file states, converted to RAS+ mm."""
        return self._header.grid

    @property
    def geometry(self) -> MetaImageGeometry:
        """Which parts of the geometry the header states."""
        return self._header.geometry

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, in native byte order."""
        return self._header.stored_dtype.newbyteorder("=")

    @property
    def scaling(self) -> Scaling | None:
        """Always None, because a header with a scaling is refused."""
        return None

    def unscaled(self) -> "MetaImageVolume":
        """Return this volume, because it has no scaling."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        return self._header.notes

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        header, path = self._header, self._source.paths[-1]
        with ExitStack() as files:
            opened = [files.enter_context(self._fs.open(p, "rb")) for p in self._source.paths]
            self._read = HashingFile(*opened)
            buffered = io.BufferedReader(self._read, READ_BYTES)
            skip_bytes(buffered, self._source.data_offset, path)
            inflating = InflatingFile(buffered) if header.compressed else None
            stored_slabs = read_slabs(
                inflating or buffered,
                header.grid.shape_ijk,
                header.stored_dtype,
                thicknesses,
                path,
            )
            yield from map(partial(np.asarray, dtype=self.dtype), stored_slabs)
            if inflating:
                inflating.check_end(path)
            if buffered.read(1):
                raise FormatError(f"{path}: goes on after its voxels. Download it again.")

    def source_file(self) -> SourceFile:
        """Return size and hash of the file as read by :meth:`slabs`.

        For a header with a data file, both cover the bytes of the two files in sequence, as
        ``cat scan.mhd scan.raw | sha256sum`` does.
        """
        if self._read is None:
            raise RuntimeError("source_file() before slabs()")
        return self._read.source_file()


def _find_voxels(
    fs: fsspec.AbstractFileSystem, path: str, header: MetaImageHeader, limits: Limits
) -> _Source:
    """Find the voxels, and check that their file has the size that the header implies."""
    header_file_bytes = _size_bytes(fs, path, path, limits)
    if header.data_file is None:
        data_path, size, header_bytes = path, header_file_bytes, header.text_bytes
    else:
        data_path = path[: path.rfind("/") + 1] + header.data_file
        size, header_bytes = _size_bytes(fs, data_path, path, limits), 0
    voxel_bytes = math.prod(header.grid.shape_ijk) * header.stored_dtype.itemsize
    start = size - voxel_bytes if header.header_size == -1 else header.header_size or header_bytes
    available_bytes = size - max(start, header_bytes)
    expected = header.compressed_bytes if header.compressed else voxel_bytes
    voxels_text = f"{header.grid.shape_ijk} voxels of type {header.stored_dtype.name}"
    if 0 < header.header_size < header_bytes:
        raise FormatError(
            f"{path}: HeaderSize {header.header_size} lies inside its header of {header_bytes} "
            "bytes."
        )
    if expected is not None and available_bytes != expected:
        raise FormatError(
            f"{data_path}: has {max(available_bytes, 0)} bytes for its voxels, but the header "
            f"{path} says {expected} for {voxels_text}. Download both again."
        )
    check_compressed_size(available_bytes, voxel_bytes, data_path)
    bytes_before = 0 if header.data_file is None else header_file_bytes
    paths = (path,) if header.data_file is None else (path, data_path)
    return _Source(paths, bytes_before + start)


def _size_bytes(fs: fsspec.AbstractFileSystem, path: str, header_path: str, limits: Limits) -> int:
    """Return the size of the header file, or of the data file that it may name."""
    try:
        info = fs.info(path)
    except FileNotFoundError as problem:
        raise FormatError(
            f"{header_path}: names a data file (ElementDataFile) which is not there. "
            "Download it, too."
        ) from problem
    if path != header_path and info.get("islink"):
        _check_link(path, header_path, limits)
    elif path != header_path and info["type"] != "file":
        raise FormatError(
            f"{header_path}: names {path} as its data file, which is no file; expected a plain "
            "file. Copy the voxels there."
        )
    size: int | None = info.get("size")
    if size is None:
        raise FormatError(f"{path}: its size is not known. Copy it to a disk and read it there.")
    return size


def _check_link(path: str, header_path: str, limits: Limits) -> None:
    """Refuse a link as data file, unless it leads into a folder that the user has allowed.

    Any bytes can be voxels. An unpacked archive with such a link could make any file of the machine
    part of a store.
    """
    target = Path(path).resolve()
    allowed = (Path(folder).resolve() for folder in limits.link_folders)
    if target.is_file() and any(target.is_relative_to(folder) for folder in allowed):
        return
    # The cache of Hugging Face keeps files in 'blobs', and links to them in 'snapshots'.
    allowed_folder = target.parent.parent if target.parent.name == "blobs" else target.parent
    raise FormatError(
        f"{header_path}: names {path} as its data file, which is a link to {target}; expected a "
        f"plain file. If its voxels are there, ingest with --follow-links {allowed_folder}, or "
        "copy them."
    )
