"""In which fold of a cross-validation is each scan, according to a file of the dataset?"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spinezarr.errors import FormatError
from spinezarr.ingestion.discovery.images import FoundImage
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.ingestion.discovery.tables import JoinedTables, TableUse, without_leading_zeros
from spinezarr.recipe import Folds, Recipe, fill_template

__all__ = ["JoinedFolds", "join_folds"]

_NAME = "folds"
"""Name of the file in reports."""
_COLUMN = "fold"
"""Column of the scan table."""
_TEST, _TRAIN = "test", "train"


@dataclass(frozen=True, slots=True)
class JoinedFolds:
    """Folds and splits of scans."""

    columns: Mapping[str, str]
    """Fold in which each scan validates, by scan id."""
    splits: Mapping[str, str]
    """Split of each scan, by scan id: ``test``, or ``train`` for the scans of the folds."""
    use: TableUse | None
    """Use of the file; None if the recipe names none."""

    def join(self, tables: JoinedTables) -> JoinedTables:
        """Return the tables with the folds as a further column; splits of tables come first."""
        if self.use is None:
            return tables
        columns = {scan_id: dict(cells) for scan_id, cells in tables.columns.items()}
        for scan_id, fold in self.columns.items():
            columns.setdefault(scan_id, {})[_COLUMN] = fold
        return JoinedTables(
            columns,
            {**self.splits, **tables.splits},
            tables.corrections,
            (*tables.uses, self.use),
        )


def join_folds(
    recipe: Recipe, raw: RawFolder, images: Iterable[FoundImage], tables: JoinedTables
) -> JoinedFolds:
    """Read the file of the folds, if there is one, and give each scan its fold.

    Raises
    ------
    FormatError
        If the file is not JSON, or not of the form that the recipe states.
    """
    folds = recipe.folds
    if folds is None:
        return JoinedFolds({}, {}, None)
    path = raw.first(folds.files)
    if path is None:
        return JoinedFolds({}, {}, TableUse(_NAME, (), 0, 0))
    tests, validation = _parse(folds, raw.read(path), path)
    columns: dict[str, str] = {}
    splits: dict[str, str] = {}
    matched: set[str] = set()
    for image in images:
        cells = tables.columns.get(image.scan_id, {})
        name = cells.get(folds.column or "") or fill_template(folds.matches, image.texts) or ""
        key = without_leading_zeros(name)
        if key in validation:
            columns[image.scan_id], splits[image.scan_id] = "; ".join(validation[key]), _TRAIN
        elif key in tests:
            splits[image.scan_id] = _TEST
        else:
            continue
        matched.add(key)
    names = [*validation, *tests]
    unmatched = tuple(name for name in names if name not in matched)
    return JoinedFolds(
        columns, splits, TableUse(_NAME, (path,), len(names), len(matched), unmatched)
    )


def _parse(folds: Folds, data: bytes, path: str) -> tuple[dict[str, None], dict[str, list[str]]]:
    """Return the names of the test scans, and the folds in which each other scan validates."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{path}: is not JSON ({problem}). Download it again.") from problem
    if not isinstance(document, dict):
        raise _wrong_form(path, "an object")
    tests = dict.fromkeys(_names(path, folds.test, document.get(folds.test, [])))
    members = document.get(folds.folds)
    if not isinstance(members, list):
        raise _wrong_form(path, f"a list of folds under {folds.folds!r}")
    validation: dict[str, list[str]] = {}
    for number, fold in enumerate(members):
        key = next((key for key in folds.validation if isinstance(fold, dict) and key in fold), "")
        if not key:
            expected = " or ".join(map(repr, folds.validation))
            raise _wrong_form(path, f"a list of names under {expected} in fold {number}")
        for name in _names(path, key, fold[key]):
            validation.setdefault(name, []).append(str(number))
    return tests, validation


def _names(path: str, key: str, names: object) -> Iterator[str]:
    """Yield names of scans, which may be numbers."""
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise _wrong_form(path, f"a list of names under {key!r}")
    yield from (without_leading_zeros(str(name)) for name in names)


def _wrong_form(path: str, expected: str) -> FormatError:
    return FormatError(
        f"{path}: expected {expected}. Correct 'folds' in the recipe, or download the file again."
    )
