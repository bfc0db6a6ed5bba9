"""How is a DICOM series in a folder read as one volume, one slice in memory at a time?

The headers place the slices, never file names or InstanceNumber. Reading ahead in threads does not
help (measured), because gdcm and pydicom hold Python's lock while they decode.

References
----------
DICOM PS3.3: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_file import parse_object
from spinezarr.formats.dicom_header import pixel_source
from spinezarr.formats.dicom_series import (
    CtSeries,
    FolderContent,
    completeness_notes,
    read_folder,
)
from spinezarr.formats.dicom_slices import slice_headers
from spinezarr.formats.dicom_stack import SliceHeader, drop_scouts, join_first, stack_slices
from spinezarr.formats.dicom_syntax import check_packages
from spinezarr.formats.file_kinds import DICOM_SEG_STEP
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import VALUE_DTYPE, Scaling
from spinezarr.text import count_noun

if TYPE_CHECKING:
    from spinezarr.formats.dicom_pixels import FrameReader

__all__ = ["DicomSeriesVolume"]

_READ_BYTES: Final = 1 << 22
"""Number of bytes of a multi-frame file read at once, for its hash."""


class DicomSeriesVolume:
    """An opened series of CT slices; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        slices: Sequence[SliceHeader],
        grid: Grid,
        *,
        notes: tuple[str, ...],
        limits: Limits,
        scaled: bool = True,
    ) -> None:
        self._fs = fs
        self._slices = slices
        self._grid = grid
        self._notes = notes
        self._limits = limits
        self._scaled = scaled
        self._dtype = _dtype_of(slices) if scaled else _stored_dtype_of(slices[0])
        self._source: SourceFile | None = None

    @classmethod
    def open(
        cls,
        fs: fsspec.AbstractFileSystem,
        folder: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        files: Collection[str] | None = None,
        series: str | None = None,
    ) -> Self:
        """Read the headers of the files directly in ``folder`` and stack one series.

        * DICOM objects that are no CT slices (localizers, secondary captures, reports, directories
          and so on) are skipped.
        * One or two slices across all others are scouts and are skipped.
        * A file that is not DICOM is skipped only if its name says that it is something else.
          Slices may have any name, so any other file may be a damaged slice and is refused.
        * Hidden files are ignored.
        * An Enhanced CT file counts as one slice for each frame.

        Parameters
        ----------
        fs
            File system of the folder.
        folder
            Path of the folder, with or without a slash at the end.
        limits
            Limits on the number and size of the files.
        files
            Names of the files to read; by default all.
        series
            :attr:`spinezarr.formats.dicom_series.CtSeries.key` of the series. By default, the
            series with the most slices is read, and a note names the others.

        Raises
        ------
        FormatError
            If a file is damaged or exceeds a limit, the folder has no CT slices or not the
            requested series, several series have the most slices, the series is incomplete, or the
            slices do not form one even stack. See
            :func:`spinezarr.formats.dicom_series.completeness_notes` and
            :func:`spinezarr.formats.dicom_stack.stack_slices`.
        UsageError
            If pydicom and gdcm are not installed.
        """
        check_packages(folder)
        folder = folder.rstrip("/")
        content = read_folder(fs, _file_sizes(fs, folder, files, limits), limits)
        notes = _note_skipped(content)
        chosen = _choose_series(content, folder, series, notes)
        headers = [
            header for dicom_object in chosen.objects for header in slice_headers(dicom_object)
        ]
        slices_without_scouts = drop_scouts(headers)
        if len(slices_without_scouts) < len(headers):
            n_scouts = len(headers) - len(slices_without_scouts)
            notes.append(f"ignored images across all slices: {n_scouts} x scout")
        slices, grid = stack_slices(slices_without_scouts, folder)
        limits.check_grid(grid, _dtype_of(slices).itemsize, folder)
        spacing_mm = float(np.linalg.norm(grid.affine_ijk[:3, 2]))
        notes += completeness_notes(chosen, slices, spacing_mm, folder)
        counts = Counter(note for header in slices for note in header.notes)
        notes += [
            note if count == len(slices) else f"{count} of {len(slices)} slices: {note}"
            for note, count in counts.items()
        ]
        return cls(fs, slices, grid, notes=tuple(notes), limits=limits)

    @property
    def grid(self) -> Grid:
        """Grid with axes (column, row, slice); k runs along the normal of the slices."""
        return self._grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """int32 if the slope and intercept of every slice are whole numbers, otherwise float64."""
        return self._dtype

    @property
    def scaling(self) -> Scaling | None:
        """Scaling that all slices share; None if they differ or the values are int32."""
        if not self._scaled or self._dtype != VALUE_DTYPE:
            return None
        scalings = {Scaling(header.slope, header.intercept) for header in self._slices}
        return scalings.pop() if len(scalings) == 1 else None

    def unscaled(self) -> "DicomSeriesVolume":
        """Return a volume of the stored values, before slopes and intercepts."""
        return DicomSeriesVolume(
            self._fs,
            self._slices,
            self._grid,
            notes=self._notes,
            limits=self._limits,
            scaled=False,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the series for the user."""
        return self._notes

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in HU; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        source = _SourceFiles(self._fs, self._slices, self._limits)
        n_read = 0
        for thickness in thicknesses:
            block: npt.NDArray[Any] | None = None
            for k, header in enumerate(self._slices[n_read : n_read + thickness]):
                values = self._values(source.read(header), header)
                # Allocated only after a slice was decoded, so that its stated size is true.
                if block is None:
                    block = np.empty((thickness, *values.shape), self._dtype)
                block[k] = values
            n_read += thickness
            if block is not None:
                yield block.T
        self._source = source.source_file()

    def _values(self, stored: npt.NDArray[Any], header: SliceHeader) -> npt.NDArray[Any]:
        if not self._scaled:
            return stored
        if self._dtype == np.int32:
            return stored.astype(np.int32) * np.int32(header.slope) + np.int32(header.intercept)
        return Scaling(header.slope, header.intercept).values(stored)

    def source_file(self) -> SourceFile:
        """Return the total size of the files, and one SHA-256 over their bytes in the order of k.

        A multi-frame file counts once, at the position of its first frame.
        """
        if self._source is None:
            raise RuntimeError("source_file() before slabs()")
        return self._source


class _SourceFiles:
    """Hashes and decodes the files of a series, and checks that they have not changed."""

    def __init__(
        self, fs: fsspec.AbstractFileSystem, slices: Iterable[SliceHeader], limits: Limits
    ) -> None:
        self._fs = fs
        self._limits = limits
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._slices: dict[str, set[SliceHeader]] = defaultdict(set)
        for header in slices:
            self._slices[header.path].add(header)
        self._multiframe: dict[str, FrameReader] = {}

    def source_file(self) -> SourceFile:
        """Return size and hash of the bytes read so far."""
        return SourceFile(self._size_bytes, self._sha256.hexdigest())

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        """Return the stored values of a slice with axes (row, column).

        A file is hashed when its first slice is read.
        """
        path = header.path
        if header.frame is None:
            data: bytes = self._fs.cat_file(path)
            self._hash_bytes(data)
            return self._reader(path, lambda start, stop: data[start:stop], len(data)).read(header)
        if path not in self._multiframe:
            size_before = self._size_bytes
            with self._fs.open(path, "rb") as raw:
                while block := raw.read(_READ_BYTES):
                    self._hash_bytes(block)
            self._multiframe[path] = self._reader(
                path,
                lambda start, stop: self._fs.cat_file(path, start=start, end=stop),
                self._size_bytes - size_before,
            )
        return self._multiframe[path].read(header)

    def _hash_bytes(self, data: bytes) -> None:
        self._sha256.update(data)
        self._size_bytes += len(data)

    def _reader(
        self, path: str, read: Callable[[int, int], bytes], size_bytes: int
    ) -> "FrameReader":
        from spinezarr.formats.dicom_pixels import FrameReader  # noqa: PLC0415  needs pydicom

        dicom_object = parse_object(path, read, size_bytes, self._limits)
        if dicom_object is None or not self._slices[path] <= set(slice_headers(dicom_object)):
            raise FormatError(f"{path}: has changed while it was read. Ingest it again.")
        header = dicom_object.header
        read, size_bytes = pixel_source(read, size_bytes, header, self._limits.dicom_file_bytes)
        return FrameReader(
            read,
            size_bytes,
            header,
            dicom_object.frames,
            max_bytes=self._limits.dicom_file_bytes,
            path=path,
        )


def _dtype_of(slices: Sequence[SliceHeader]) -> np.dtype[Any]:
    """Return the type of the values after rescaling."""
    return np.dtype(np.int32 if all(map(_is_int32, slices)) else np.float64)


def _stored_dtype_of(header: SliceHeader) -> np.dtype[Any]:
    """Return the type of the values before rescaling, which all slices of a series share."""
    return np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _is_int32(header: SliceHeader) -> bool:
    """Whether all values that a slice can hold fit into int32 after rescaling."""
    if not (header.slope.is_integer() and header.intercept.is_integer()):
        return False
    bits = header.bits_allocated
    stored_range = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.signed else (0, 2**bits - 1)
    limits = np.iinfo(np.int32)
    return all(
        limits.min <= value <= limits.max
        for end in stored_range
        for value in (end * header.slope, end * header.slope + header.intercept)
    )


def _file_sizes(
    fs: fsspec.AbstractFileSystem, folder: str, files: Collection[str] | None, limits: Limits
) -> dict[str, int]:
    """Return the size in bytes of each file to read, by its path."""
    requested = None if files is None else set(files)
    entries = [
        entry
        for entry in fs.ls(folder, detail=True)
        if requested is None or entry["name"].rsplit("/", 1)[-1] in requested
    ]
    sizes = {entry["name"]: entry["size"] for entry in entries if _is_file(fs, entry)}
    if requested is not None and len(sizes) < len(requested):
        raise FormatError(
            f"{folder}: holds {len(sizes)} of the {len(requested)} files that were found there "
            "before. Ingest it again."
        )
    if len(sizes) > limits.dicom_files:
        raise FormatError(
            f"{folder}: holds {len(sizes)} files, expected at most {limits.dicom_files}. Keep the "
            "files of one series in the folder."
        )
    return {path: fs.size(path) if size is None else size for path, size in sizes.items()}


def _note_skipped(content: FolderContent) -> list[str]:
    """Return a note with the kinds of the skipped objects; file names may name a patient."""
    notes = []
    kinds = Counter(dicom_object.non_ct_kind for dicom_object in content.others)
    if kinds:
        counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"ignored files that are not CT slices: {counts}")
    return notes


def _is_file(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> bool:
    """Whether an entry is a regular file. A broken link counts, because its slice is missing."""
    if entry["type"] in ("file", "directory"):
        return bool(entry["type"] == "file")
    return fs.isfile(entry["name"]) or not fs.exists(entry["name"])


def _choose_series(
    content: FolderContent, folder: str, key: str | None, notes: list[str]
) -> CtSeries:
    """Return the requested series, or the one with the most slices; note the others."""
    if key is not None:
        chosen = next((series for series in content.series if series.key == key), None)
        if chosen is None:
            raise FormatError(
                f"{folder}: does not hold the series that was found there before, but "
                f"{len(content.series)} others. Ingest it again."
            )
        notes += chosen.notes
        return chosen
    ranked = sorted(content.series, key=lambda series: (-series.slices, series.key))
    if not ranked:
        n_files = len(content.others) + len(content.unknown)
        is_mask = any(
            "Segmentation" in (dicom_object.non_ct_kind or "") for dicom_object in content.others
        )
        advice = "Choose the folder that holds the .dcm files of one CT series."
        raise FormatError(
            f"{folder}: holds no CT slices among its {count_noun(n_files, 'file')}"
            f"{': ' if notes else ''}{'; '.join(notes)}. {DICOM_SEG_STEP if is_mask else advice}"
        )
    tied = [series for series in ranked if series.slices == ranked[0].slices]
    if len(tied) > 1:
        raise FormatError(_tie_message(tied, folder))
    if len(ranked) > 1:
        names = [f"{series.name} ({count_noun(series.slices, 'slice')})" for series in ranked]
        notes.append(f"took {names[0]}, not {join_first(names[1:])}")
    notes += ranked[0].notes
    return ranked[0]


def _tie_message(tied: Sequence[CtSeries], folder: str) -> str:
    """Return the message for several series with the most slices."""
    examples = join_first(
        [
            f"{series.name} ({count_noun(series.slices, 'slice')}), e.g. "
            f"{series.objects[0].path.rsplit('/', 1)[-1]}"
            for series in tied
        ]
    )
    if tied[0].slices == 1 and len(tied) > 2:  # noqa: PLR2004  more than a pair of single slices
        differing = [
            name
            for name, value in tied[0].facts.matching_fields.items()
            if any(series.facts.matching_fields[name] != value for series in tied)
        ]
        return (
            f"{folder}: each of its {len(tied)} CT files is a series of its own, with its own "
            f"SeriesInstanceUID, and they differ in {', '.join(differing)}; expected the slices of "
            f"one series: {examples}. If they are one, give them one SeriesInstanceUID and the "
            "same values of these."
        )
    return (
        f"{folder}: {len(tied)} series have the most slices: {examples}; expected one. Keep the "
        "files of one series in the folder, or let the recipe take each as a scan of its own: "
        "'series' in the layout."
    )
