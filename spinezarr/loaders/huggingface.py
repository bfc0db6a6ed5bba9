"""How does a store replace the Hugging Face script ``CTSpine1K.py`` in a program?

The script [1]_ reads ``nibabel.load(path).get_fdata()`` of image and mask, and moves the last axis
of each to the front: ``(k, i, j)``. It does not change the orientation. Its cases come in the order
of the split's list. Here the same records come from a store. Only the chunks that hold a slice are
read, and nothing is copied in advance.

References
----------
.. [1] https://huggingface.co/datasets/alexanderdann/CTSpine1K; since version 4, ``datasets`` runs
   no scripts.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import AxisMap, Box, ShapeIJK
from spinezarr.store.attributes import LabelSourceRecord, SourceRecord
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.store.scan_table import ScanTable
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.nonfinite import (
    Nonfinite,
    fill_nonfinite,
    nonfinite_fill,
    refuse_nonfinite,
)

__all__ = ["Column", "SplitDataset", "load_splits"]

Record = dict[str, Any]

_VOXEL_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "image": np.dtype(np.float32),
    "segmentation": np.dtype(np.int32),
}
"""Dtype of each column of voxels."""
_FACT_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "2d": ("patient_id", "index", "slice_index"),
    "3d": ("patient_id", "index"),
}
"""Other columns of each configuration."""
_SPLIT_ORDER: Final = ("train", "validation", "test")
"""The splits in the order of the script."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One scan of a split."""

    scan_id: str
    index: int
    """Its position in the split's list."""
    n_slices: int
    """Voxels along the last axis of its image file."""


@dataclass(frozen=True, slots=True, eq=False)
class _SourceArray:
    """A stored array in the axes of its source file. The last axis comes first: ``(k, i, j)``."""

    spec: ArraySpec
    axes: AxisMap
    shape_ijk: ShapeIJK
    dtype: np.dtype[Any]
    """Dtype of the values that are returned."""
    labels: tuple[tuple[int, int], ...] = ()
    """Pairs of a value in the file and the stored value; empty if they are equal."""
    fill: float | None = None
    """Number that replaces NaN and infinity; None keeps them."""

    @classmethod
    def of(
        cls,
        spec: ArraySpec,
        record: SourceRecord,
        column: str,
        *,
        labels: tuple[tuple[int, int], ...] = (),
        fill: float | None = None,
    ) -> "_SourceArray":
        """Combine a stored array with the record of its source file."""
        axes = AxisMap.from_axcodes(record.orientation)
        return cls(spec, axes, record.shape_ijk, _VOXEL_DTYPES[column], labels, fill)

    def slab(self, k: int) -> tuple[int, int]:
        """Return the range ``(start, stop)`` of slices in the same chunks as slice ``k``."""
        axis = self.axes.source_axis_zyx.index(2)
        thickness, n = self.spec.chunk_shape_zyx[axis], self.shape_ijk[2]
        stored_index = n - 1 - k if self.axes.flip_zyx[axis] else k
        low = stored_index - stored_index % thickness
        high = min(low + thickness, n)
        return (n - high, n - low) if self.axes.flip_zyx[axis] else (low, high)

    def plan(self, start: int, stop: int, out_kij: npt.NDArray[Any]) -> BoxRead:
        """Return the read that fills ``out_kij`` with the slices ``start <= k < stop``."""
        axis = self.axes.source_axis_zyx.index(2)
        n = self.shape_ijk[2]
        low, high = [0, 0, 0], list(self.spec.shape_zyx)
        is_flipped = self.axes.flip_zyx[axis]
        low[axis], high[axis] = (n - stop, n - start) if is_flipped else (start, stop)
        box = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        return BoxRead(self.spec, box, self.axes.to_zyx(out_kij.transpose(1, 2, 0)))

    def empty(self, n_slices: int, dtype: np.dtype[Any] | None = None) -> npt.NDArray[Any]:
        """Allocate slices ``(k, i, j)``, in the returned dtype if it can hold the stored values."""
        i, j, _ = self.shape_ijk
        if dtype is None:
            fits = np.can_cast(self.spec.dtype, self.dtype)
            dtype = self.dtype if fits else self.spec.dtype
        return np.empty((n_slices, i, j), dtype)

    def script_values(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values that the script returns for stored values."""
        if self.labels:
            table = np.zeros(256, self.dtype)
            for value, stored in self.labels:
                table[stored] = value
            mapped: npt.NDArray[Any] = table[values]
            return mapped
        if values.dtype.kind in "iu" and not np.can_cast(values.dtype, self.dtype):
            # get_fdata() gives float64. Rounding once more can differ from rounding directly.
            values = values.astype(np.float64)
        fill_nonfinite(values, self.fill)
        with np.errstate(over="ignore"):
            cast: npt.NDArray[Any] = values.astype(self.dtype, copy=False)
        return cast


@dataclass(frozen=True, slots=True, eq=False)
class _Slab:
    """Slices that were decoded together and are kept in memory."""

    case: int
    start: int
    values: npt.NDArray[Any]
    """Stored values ``(k, i, j)``."""

    def find(self, case: int, k: int) -> npt.NDArray[Any] | None:
        """Return a copy of one slice, ``(1, i, j)``, or None if this slab does not hold it."""
        index = k - self.start
        is_inside = self.case == case and 0 <= index < len(self.values)
        return self.values[index : index + 1].copy() if is_inside else None


class SplitDataset:
    """The records of one split, as ``datasets.Dataset`` returns them, with NumPy arrays.

    ``len``, numbers, negative numbers, slices, lists of numbers, iteration and columns by name work
    as they do there. A slice or list returns a dict of lists. PyTorch's ``DataLoader`` accepts the
    dataset, and it can be pickled. If slices are read in order, each layer of chunks is decoded
    once. The last layer stays in memory: 33 MB of an image of 512 x 512, and half as much of its
    mask.

    Parameters
    ----------
    reader
        The opened store.
    engine
        Reads boxes of voxels of that store.
    name
        ``"2d"``: a record is a slice. ``"3d"``: a record is a scan.
    cases
        Scans of the split, in the order of its list.
    nonfinite
        What to do with voxels that are NaN or infinite, as in :meth:`spinezarr.Store.patches`.
    """

    def __init__(
        self,
        reader: StoreReader,
        engine: Engine,
        name: Literal["2d", "3d"],
        cases: list[_Case],
        nonfinite: Nonfinite,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._name: Literal["2d", "3d"] = name
        self._cases = cases
        self._nonfinite: Nonfinite = nonfinite
        lengths = (case.n_slices if name == "2d" else 1 for case in cases)
        self._ends = list(accumulate(lengths))
        self._slabs: dict[str, _Slab] = {}
        self._last = (-1, -1)

    def __reduce__(self) -> tuple[type["SplitDataset"], tuple[Any, ...]]:
        return SplitDataset, (
            self._reader,
            self._engine,
            self._name,
            self._cases,
            self._nonfinite,
        )

    def __repr__(self) -> str:
        columns = ", ".join(self.column_names)
        return f"<spinezarr {self._name} dataset: {len(self)} records ({columns})>"

    def __len__(self) -> int:
        """Return the number of records."""
        return self._ends[-1] if self._ends else 0

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return len(self)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, which are the keys of each record."""
        return [*_VOXEL_DTYPES, *_FACT_COLUMNS[self._name]]

    @overload
    def __getitem__(self, key: int) -> Record: ...
    @overload
    def __getitem__(self, key: str) -> Sequence[Any]: ...
    @overload
    def __getitem__(self, key: slice | Iterable[int]) -> dict[str, list[Any]]: ...
    def __getitem__(self, key: int | slice | Iterable[int] | str) -> Any:
        """Read one record, several, or a column.

        Parameters
        ----------
        key
            A number selects a record. A slice or several numbers select a dict of lists. The name
            of a column selects all its values. A column of voxels is a :class:`Column`, which reads
            each value when it is used.

        Returns
        -------
        dict
            ``image`` float32 and ``segmentation`` int32, ``(i, j)`` or ``(k, i, j)`` in the axes
            of the source file; ``patient_id``, the file's name; ``index``, its position in the
            split's list; and ``slice_index``, k, in 2d.

        Raises
        ------
        IndexError
            If there is no such record.
        KeyError
            If there is no such column.
        CorruptStoreError
            If stored bytes are missing or damaged; names scan, array, chunk and shard.
        UsageError
            If image and mask file differ in their number of slices, or labels cannot be mapped
            back.
        """
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, slice):
            return self._columns_of(range(len(self))[key])
        if isinstance(key, Iterable):
            return self._columns_of(key)
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Iterable[int]) -> list[Record]:
        """Read several records at once, as ``torch.utils.data.DataLoader`` requests them."""
        records, reads, planned = [], list[BoxRead](), []
        for number in (self._number(key) for key in keys):
            case, k = self._case_of(number)
            arrays = self._arrays(case)
            voxels = {
                name: self._plan_slice(name, array, case, k, reads)
                if self._name == "2d"
                else self._plan_volume(array, reads)
                for name, array in arrays.items()
            }
            self._last = (case, k)
            records.append(dict.fromkeys(_VOXEL_DTYPES) | self._facts(case, k))
            planned.append((arrays, voxels))
        if reads:
            self._engine.read(reads)
        for record, (arrays, voxels) in zip(records, planned, strict=True):
            for name, array in arrays.items():
                values = array.script_values(voxels[name])
                record[name] = values[0] if self._name == "2d" else values
        return records

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order."""
        for number in range(len(self)):
            yield self[number]

    def _number(self, key: int) -> int:
        n = len(self)
        number = int(key) + n if key < 0 else int(key)
        if not 0 <= number < n:
            raise IndexError(f"record {key} of {n}")
        return number

    def _case_of(self, number: int) -> tuple[int, int]:
        """Return the number of a record's case, and its slice (0 in 3d)."""
        case = bisect_right(self._ends, number)
        return case, number - (self._ends[case - 1] if case else 0)

    def _facts(self, case: int, k: int) -> Record:
        scan = self._cases[case]
        facts = {"patient_id": scan.scan_id, "index": scan.index, "slice_index": k}
        return {name: facts[name] for name in _FACT_COLUMNS[self._name]}

    def _columns_of(self, keys: Iterable[int]) -> dict[str, list[Any]]:
        records = self.__getitems__(keys)
        return {name: [record[name] for record in records] for name in self.column_names}

    def _column(self, name: str) -> Sequence[Any]:
        if name in _VOXEL_DTYPES:
            return Column(self, name)
        if name not in self.column_names:
            raise KeyError(f"no column {name!r}; the columns are {', '.join(self.column_names)}")
        cases = (self._case_of(number) for number in range(len(self)))
        return [self._facts(case, k)[name] for case, k in cases]

    def _arrays(self, case: int) -> dict[str, _SourceArray]:
        """Return the arrays of a case, by column."""
        scan = self._reader.listed_scan(self._cases[case].scan_id)
        fill = nonfinite_fill(self._nonfinite, scan.attributes)
        image = _SourceArray.of(scan.image, scan.attributes.image_source, "image", fill=fill)
        mask = _mask(scan)
        if mask.shape_ijk[2] != image.shape_ijk[2]:
            raise UsageError(
                f"scan {scan.attributes.scan_id!r}: its image file has {image.shape_ijk[2]} slices "
                f"(axes {image.axes.axcodes}), its mask file {mask.shape_ijk[2]} "
                f"({mask.axes.axcodes}). The script refuses such pairs. Use spinezarr.open() and "
                "store.slices(), which give both in the same axes."
            )
        return {"image": image, "segmentation": mask}

    def _plan_volume(self, array: _SourceArray, reads: list[BoxRead]) -> npt.NDArray[Any]:
        n = array.shape_ijk[2]
        out = array.empty(n)
        reads.append(array.plan(0, n, out))
        return out

    def _plan_slice(
        self, name: str, array: _SourceArray, case: int, k: int, reads: list[BoxRead]
    ) -> npt.NDArray[Any]:
        """Return a slice, ``(1, i, j)``, from the last slab, or an array that ``reads`` fills."""
        slab = self._slabs.get(name)
        values = None if slab is None else slab.find(case, k)
        if values is None and case == self._last[0] and abs(k - self._last[1]) == 1:
            # Slices are usually read in order, and the next ones lie in the same chunks.
            start, stop = array.slab(k)
            slab_values = array.empty(stop - start, array.spec.dtype)
            self._engine.read([array.plan(start, stop, slab_values)])
            new_slab = self._slabs[name] = _Slab(case, start, slab_values)
            values = new_slab.find(case, k)
        if values is None:
            values = array.empty(1)
            reads.append(array.plan(k, k + 1, values))
        return values


class Column(Sequence[npt.NDArray[Any]]):
    """One column of voxels, read record by record.

    Parameters
    ----------
    records
        The dataset.
    name
        ``image`` or ``segmentation``.
    """

    def __init__(self, records: SplitDataset, name: str) -> None:
        self._records = records
        self._name = name

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    @overload
    def __getitem__(self, key: int) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> list[npt.NDArray[Any]]: ...
    def __getitem__(self, key: int | slice) -> Any:
        """Read one value, or a list of several."""
        return self._records[key][self._name]


def _mask(scan: ScanHandle) -> _SourceArray:
    """Return the mask of a scan in its file's axes and values."""
    spec, record = scan.label, scan.attributes.label_source
    if spec is None or record is None:
        raise UsageError(f"scan {scan.attributes.scan_id!r} has no mask.")
    labels = _labels(scan.attributes.scan_id, record)
    return _SourceArray.of(spec, record, "segmentation", labels=labels)


def _labels(scan_id: str, record: LabelSourceRecord) -> tuple[tuple[int, int], ...]:
    """Return pairs of a value in the mask file and the stored value.

    There are none for a mask in parts, whose values are those of the scheme.
    """
    if record.parts:
        return ()
    stored = [value for _, value in record.values]
    if len(set(stored)) < len(stored):
        raise UsageError(
            f"scan {scan_id!r}: several values of its mask file became one label, so the file's "
            "values cannot be restored. Use spinezarr.open(), which gives the labels of the scheme."
        )
    return record.values


def load_splits(
    reader: StoreReader,
    engine: Engine,
    name: Literal["2d", "3d"],
    *,
    split: str | None = None,
    nonfinite: Nonfinite = "refuse",
) -> dict[str, SplitDataset]:
    """Return the records of each split of a store.

    Parameters
    ----------
    reader
        The opened store.
    engine
        Reads boxes of voxels of that store.
    name
        Configuration of the script: ``"2d"`` or ``"3d"``.
    split
        The split to return; None returns all.
    nonfinite
        As in :meth:`spinezarr.Store.patches`.

    Returns
    -------
    dict
        Records by the name of their split; the splits of the script come first. Scans without a
        mask, or in no split, are left out. If the position of a scan in the split's list is not
        known, its ``index`` is its position in the table. This is the case in
        pseudonymized stores, and if a table assigns the splits.

    Raises
    ------
    UsageError
        If there is no such configuration or split, or scans hold voxels that are NaN or infinite.
    """
    if name not in _FACT_COLUMNS:
        raise UsageError(f"configuration {name!r}: must be one of {', '.join(_FACT_COLUMNS)}.")
    table = reader.columns
    table = table.take(np.flatnonzero(table["label_state"] != "none"))
    present = set(table["split"].tolist()) - {""}
    names = [
        *(part for part in _SPLIT_ORDER if part in present),
        *sorted(present - {*_SPLIT_ORDER}),
    ]
    if split is not None:
        if split not in names:
            available = ", ".join(map(repr, names)) or "none"
            raise UsageError(f"split {split!r}: the splits of {reader.name} are {available}.")
        names = [split]
    is_selected = np.isin(table["split"].astype(str), names)
    refuse_nonfinite(table.take(np.flatnonzero(is_selected)), nonfinite, reader.name)
    return {
        part: SplitDataset(reader, engine, name, _cases(table, part), nonfinite) for part in names
    }


def _cases(table: ScanTable, split: str) -> list[_Case]:
    """Return the scans of a split in the order of its list."""
    rows = table.take(np.flatnonzero(table["split"] == split))
    columns = ("scan", "split_index", "orientation", "shape_zyx")
    cases = [
        _Case(
            scan_id,
            split_index if split_index >= 0 else row,
            shape_zyx[AxisMap.from_axcodes(orientation).source_axis_zyx.index(2)],
        )
        for row, (scan_id, split_index, orientation, shape_zyx) in enumerate(
            zip(*(rows[column].tolist() for column in columns), strict=True)
        )
    ]
    return sorted(cases, key=lambda case: case.index)
