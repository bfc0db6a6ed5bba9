"""A folder of DICOM slices, read as one volume, one slice in memory at a time.

Slices are placed by what their headers say, never by file name or InstanceNumber. Reading ahead in
threads was measured not to help: gdcm and pydicom hold Python's lock while they decode.

References
----------
DICOM PS3.3: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Self

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError, UsageError
from spinezarr.formats.dicom_stack import SliceHeader, stack
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid

if TYPE_CHECKING:
    from spinezarr.formats.dicom_file import DicomObject

__all__ = ["DicomSeriesVolume"]

_PASSED_OVER: Final = frozenset({"DICOMDIR", "LICENSE"})
"""Names of files that come with a series, in capitals."""
_PASSED_OVER_ENDINGS: Final = (".csv", ".txt")


class DicomSeriesVolume:
    """An opened series of CT slices; see :class:`spinezarr.formats.volume.Volume`."""

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        slices: Sequence[SliceHeader],
        grid: Grid,
        notes: tuple[str, ...],
    ) -> None:
        self._fs = fs
        self._slices = slices
        self._grid = grid
        self._notes = notes
        self._dtype = np.dtype(np.int32 if all(map(_is_int32, slices)) else np.float64)
        self._source: SourceFile | None = None

    @classmethod
    def open(cls, fs: fsspec.AbstractFileSystem, folder: str) -> Self:
        """Read the headers of all files directly in ``folder`` and stack one series.

        Files that are no DICOM, and DICOM objects that are no CT slices (localizers, secondary
        captures, reports and the like), are passed over. Of several series, the one with the most
        slices is taken.

        Parameters
        ----------
        fs
            Where the folder is.
        folder
            Its path there, with or without a slash at the end.

        Raises
        ------
        FormatError
            If a file is damaged, the folder has no CT slices, its largest series are equally
            large, or the slices are not one even stack of numbers; see
            :func:`spinezarr.formats.dicom_stack.stack`.
        UsageError
            If pydicom and gdcm are not installed.
        """
        if any(find_spec(module) is None for module in ("pydicom", "gdcm")):
            raise UsageError(
                f"{folder}: reading DICOM needs pydicom and gdcm: pip install 'spinezarr[dicom]'"
            )
        from spinezarr.formats.dicom_file import slice_header  # noqa: PLC0415  needs pydicom

        folder = folder.rstrip("/")
        objects, notes = _objects(fs, folder)
        chosen = _chosen(objects, folder, notes)
        slices, grid = stack([slice_header(found) for found in chosen], folder)
        counts = Counter(note for header in slices for note in header.notes)
        notes += [
            note if count == len(slices) else f"{count} of {len(slices)} slices: {note}"
            for note, count in counts.items()
        ]
        return cls(fs, slices, grid, tuple(notes))

    @property
    def grid(self) -> Grid:
        """Columns, rows and slices; k along the normal of the slices."""
        return self._grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """int32 if each slice's slope and intercept are whole numbers, otherwise float64."""
        return self._dtype

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this series."""
        return self._notes

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in HU, k along the normal; see the protocol's ``slabs``."""
        from spinezarr.formats.dicom_file import read_pixels  # noqa: PLC0415  needs pydicom

        sha256, size_bytes, done = hashlib.sha256(), 0, 0
        for thickness in thicknesses:
            block: npt.NDArray[Any] | None = None
            for k, header in enumerate(self._slices[done : done + thickness]):
                with self._fs.open(header.path, "rb") as raw:
                    data = raw.read()
                sha256.update(data)
                size_bytes += len(data)
                values = self._values(read_pixels(data, header), header)
                # Made once a slice has shown that its size is true.
                if block is None:
                    block = np.empty((thickness, *values.shape), self._dtype)
                block[k] = values
            done += thickness
            if block is not None:
                yield block.T
        self._source = SourceFile(size_bytes, sha256.hexdigest())

    def _values(self, stored: npt.NDArray[Any], header: SliceHeader) -> npt.NDArray[Any]:
        if self._dtype == np.int32:
            return stored.astype(np.int32) * np.int32(header.slope) + np.int32(header.intercept)
        return stored * np.float64(header.slope) + header.intercept

    def source_file(self) -> SourceFile:
        """Sizes of all slices' files added up, and one SHA-256 over their bytes along k."""
        if self._source is None:
            raise RuntimeError("source_file() before slabs()")
        return self._source


def _is_int32(header: SliceHeader) -> bool:
    """Whether all values that a slice can hold are int32 after rescaling."""
    if not (header.slope.is_integer() and header.intercept.is_integer()):
        return False
    bits = header.bits_allocated
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.signed else (0, 2**bits - 1)
    limits = np.iinfo(np.int32)
    return all(
        limits.min <= value <= limits.max
        for end in stored
        for value in (end * header.slope, end * header.slope + header.intercept)
    )


def _objects(fs: fsspec.AbstractFileSystem, folder: str) -> tuple[list["DicomObject"], list[str]]:
    """Find the CT slices of a folder, and say what else is there."""
    from spinezarr.formats.dicom_file import read_object  # noqa: PLC0415  needs pydicom

    entries = fs.ls(folder, detail=True)
    paths = sorted(entry["name"] for entry in entries if entry["type"] != "directory")
    slices: list[DicomObject] = []
    kinds: Counter[str] = Counter()
    unknown = 0
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        if (
            name.startswith(".")
            or name.upper() in _PASSED_OVER
            or name.lower().endswith(_PASSED_OVER_ENDINGS)
        ):
            continue
        found = read_object(fs, path)
        if found is None:
            unknown += 1
        elif found.other_kind is not None:
            kinds[found.other_kind] += 1
        else:
            slices.append(found)
    notes = []
    if kinds:
        counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"passed over what is no CT slice: {counts}")
    if unknown:
        # Notes are stored, and names of files may name a patient.
        notes.append(f"passed over {unknown} files that are not DICOM")
    if not slices:
        raise FormatError(
            f"{folder}: holds no CT slices among its {len(paths)} files"
            f"{': ' if notes else ''}{'; '.join(notes)}. Choose the folder that holds the .dcm "
            "files of one CT series."
        )
    return slices, notes


def _chosen(objects: Sequence["DicomObject"], folder: str, notes: list[str]) -> list["DicomObject"]:
    """Choose the series with the most slices, and note which others there are."""
    by_uid: dict[str, list[DicomObject]] = {}
    for found in objects:
        by_uid.setdefault(found.series_uid, []).append(found)
    ranked = sorted(by_uid.values(), key=lambda members: (-len(members), members[0].series_uid))
    named = [f"{members[0].series_name} ({len(members)} slices)" for members in ranked]
    tied = [members for members in ranked if len(members) == len(ranked[0])]
    if len(tied) > 1:
        files = "; ".join(
            f"{name}, e.g. {members[0].path.rsplit('/', 1)[-1]}"
            for name, members in zip(named, tied, strict=False)
        )
        raise FormatError(
            f"{folder}: {len(tied)} series have the most slices: {files}; expected "
            "one. Keep the files of one series in the folder."
        )
    if len(ranked) > 1:
        notes.append(f"took {named[0]}, not {'; '.join(named[1:])}")
    return ranked[0]
