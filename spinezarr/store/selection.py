"""On which scans of a store does a command or function work?

Commands and functions take the same four conditions. A scan is chosen if it meets all of them.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UnknownScanError, UsageError
from spinezarr.store.scan_table import TableColumns
from spinezarr.text import count_noun, did_you_mean, to_nfc

__all__ = ["Names", "ScanSelection", "check_scan_ids", "unknown_scan"]

_FOLD: Final = "fold"
"""Column with the fold of a cross-validation in which a scan validates."""


@runtime_checkable
class NameArray(Protocol):
    """Names in an array, such as a NumPy array or a selection of ``table.scan``."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the names as a NumPy array."""


Names = str | Iterable[str] | NameArray
"""One name, or several."""


@dataclass(frozen=True, slots=True)
class ScanSelection:
    """Conditions on scans; a condition that is None is met by every scan.

    Examples
    --------
    >>> table = store.table
    >>> ScanSelection.of(split="train", vertebra=["T12", "L6"]).scan_ids(table, "this store")
    ['1.3.6.1.4.1.9328.50.4.0001', 'liver_0']
    """

    scans: tuple[str, ...] | None = None
    """Ids of scans, in the order in which they are processed."""
    split: tuple[str, ...] | None = None
    """Splits, or folds such as ``fold 0``; a scan is in one of them."""
    source: tuple[str, ...] | None = None
    """Sources; a scan comes from one of them."""
    vertebra: tuple[str, ...] | None = None
    """Vertebrae; the mask of a scan shows at least one of them."""

    @classmethod
    def of(
        cls,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
    ) -> "ScanSelection":
        """Return the selection that a user describes, by names in any Unicode form."""
        return cls(*map(_names, (scans, split, source, vertebra)))

    @property
    def names_scans_only(self) -> bool:
        """Whether no condition but that of the ids needs the scan table."""
        return self.split is None and self.source is None and self.vertebra is None

    def rows(self, table: TableColumns, store_name: str) -> npt.NDArray[np.intp]:
        """Return the numbers of the rows of the chosen scans.

        Parameters
        ----------
        table
            The scan table, or rows of it.
        store_name
            Name of the store in messages.

        Raises
        ------
        UnknownScanError
            If the table has no such scan.
        UsageError
            If no scan of the table has such a split, source or vertebra. The message lists those
            of the table.
        """
        columns = (
            ("split", self.split, _scans_by_split),
            ("source", self.source, _scans_by_text),
            ("vertebra", self.vertebra, _scans_by_vertebra),
        )
        scan_ids = np.asarray(table["scan"]).tolist()
        keep = np.ones(len(scan_ids), bool)
        for condition, names, scans_by_name in columns:
            if names is not None:
                scans_of = dict(scans_by_name(table, condition))
                for name in names:
                    if name not in scans_of:
                        known = ", ".join(map(repr, scans_of)) or "none"
                        raise UsageError(
                            f"{condition} {name!r}: the store has {known}."
                            f"{did_you_mean(name, scans_of)}"
                        )
                keep &= np.any([scans_of[name] for name in names], axis=0)
        if self.scans is None:
            return np.flatnonzero(keep)
        row_of = {name: row for row, name in enumerate(scan_ids)}
        check_scan_ids(self.scans, row_of, store_name)
        rows = [row_of[name] for name in self.scans]
        return np.array([row for row in rows if keep[row]], np.intp)

    def scan_ids(self, table: TableColumns, store_name: str) -> list[str]:
        """Return the ids of the chosen scans; see :meth:`rows`."""
        return list(map(str, np.asarray(table["scan"])[self.rows(table, store_name)].tolist()))

    def some_scan_ids(self, table: TableColumns, store_name: str) -> list[str]:
        """Return the ids of the chosen scans, and refuse conditions that no scan meets together.

        Raises
        ------
        UsageError
            If each condition is met by some scans, and all of them by none.
        UnknownScanError
            As for :meth:`rows`.
        """
        scan_ids = self.scan_ids(table, store_name)
        self.check_some(len(scan_ids), store_name)
        return scan_ids

    def check_some(self, n_scans: int, store_name: str) -> None:
        """Refuse conditions that no scan meets together; see :meth:`some_scan_ids`."""
        if n_scans or self.names_scans_only or self.scans == ():
            return
        given = {"scan": self.scans, "split": self.split, "source": self.source}
        given |= {"vertebra": self.vertebra}
        conditions = [
            f"{condition} {' or '.join(map(repr, names))}"
            for condition, names in given.items()
            if names is not None
        ]
        raise UsageError(
            f"{store_name}: no scan meets all conditions ({', '.join(conditions)}). Leave one of "
            "them out; 'spinezarr info' counts the scans of each split and source."
        )


def _names(value: Names | None) -> tuple[str, ...] | None:
    """Return each name once, in the order of ``value``."""
    if value is None:
        return None
    names: Iterable[Any]
    if isinstance(value, NameArray):
        names = np.atleast_1d(np.asarray(value)).tolist()
    else:
        names = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(to_nfc(str(name)) for name in names))


def _scans_by_split(
    table: TableColumns, column: str
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each split, and each fold of a cross-validation as a split, with its scans."""
    splits = dict(_scans_by_text(table, column))
    yield from splits.items()
    try:
        folds = np.asarray(table[_FOLD]).astype(object)
    except KeyError:  # the dataset has no folds
        return
    folds_of_scans = [str(text).split("; ") for text in folds.tolist()]  # it may be in several
    known = {fold for folds_of_scan in folds_of_scans for fold in folds_of_scan if fold}
    for fold in sorted(known, key=lambda fold: (len(fold), fold)):
        name = f"{_FOLD} {fold}"
        if name not in splits:
            yield name, np.array([fold in names for names in folds_of_scans], bool)


def _scans_by_text(table: TableColumns, column: str) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each text of a column, and the scans that have it."""
    values = np.asarray(table[column]).astype(object)
    for value in sorted(set(values.tolist())):
        yield str(value), values == value


def _scans_by_vertebra(table: TableColumns, _: str) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each vertebra that a mask shows, from head to tail, and the scans that show it."""
    shown = np.asarray(table["voxel_count"]) > 0
    for column, name in enumerate(np.asarray(table["vertebra"]).tolist()):
        if shown[:, column].any():
            yield str(name), shown[:, column]


def check_scan_ids(requested: Iterable[str], known: Collection[str], store_name: str) -> None:
    """Refuse ids of scans that a store does not have.

    Raises
    ------
    UnknownScanError
        For the first of these ids in alphabetical order.
    """
    for name in sorted(set(requested).difference(known)):
        raise unknown_scan(store_name, name, known)


def unknown_scan(
    store_name: str, scan_id: str, known: Collection[str] | None = None
) -> UnknownScanError:
    """Return the error for a scan that a store does not have.

    Parameters
    ----------
    store_name, scan_id
        Names of the store and of the scan.
    known
        Ids of all scans of the store; None if they are not known.
    """
    if known is None:
        return UnknownScanError(f"{store_name}: has no scan {scan_id!r}.")
    hint = did_you_mean(scan_id, known)
    if not hint and known:
        hint = f" It has {count_noun(len(known), 'scan')}, such as {next(iter(known))!r}."
    return UnknownScanError(f"{store_name}: has no scan {scan_id!r}.{hint}")
