"""How does a store hide the ids of scans and patients?

A pseudonym is the start of an HMAC-SHA256 [1]_ of an id, keyed by 256 random bits. Nobody can find
an id by trying without the key. With the key, the same id has the same pseudonym in every run. Key
and map lie beside the store.

References
----------
.. [1] FIPS 198-1, https://doi.org/10.6028/NIST.FIPS.198-1
"""

import base64
import csv
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import Discovery, RefusedScan, ScanSource, UnpairedImage
from spinezarr.recipe import BoundedRegex, PathPattern, Recipe, compile_bounded
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.claim import stored_root
from spinezarr.text import to_nfc

__all__ = ["MapLine", "Pseudonyms", "apply_pseudonyms", "key_file", "map_file"]

_KEY_BYTES: Final = 32
"""Length of the key; FIPS 198-1 finds no use in a key longer than a SHA-256 hash."""
_HASH_CHARACTERS: Final = 16
"""Length of a pseudonym: 80 bits in base 32. Two of a million scans share one with a chance of
4e-13."""
_OWNER_ONLY: Final = 0o600
_SPLITS: Final = frozenset({"", "train", "training", "val", "valid", "validation", "test"})
"""Names of splits that a table may use; they identify no one."""
_ENDINGS: Final = (".nii.gz", ".nii", ".mha", ".mhd", ".json", ".lml", "/")
"""Endings of file names that are stored; any other ending is left out."""

_Scan = TypeVar("_Scan", RefusedScan, UnpairedImage)
_Kind = Literal["scan", "patient", "source", "split", "file", "key"]


@dataclass(frozen=True, slots=True)
class MapLine:
    """One line of the map: a scan of the store, and where it came from."""

    pseudonym: str
    patient_pseudonym: str
    scan_id: str
    patient_id: str
    image: str
    """Path relative to the raw folder."""
    label: str
    """Path of the mask, or of the first of its parts; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """A key, and the pseudonyms that it gives to ids."""

    key: bytes

    @classmethod
    def new(cls) -> Self:
        """Draw a key."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    def __repr__(self) -> str:
        """Leave the key out: it must not get into a message."""
        return f"{type(self).__name__}({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Hash of the key, stored to refuse another key. The key cannot be found from it."""
        return self.of("key", "")

    def of(self, kind: _Kind, text: str) -> str:
        """Return the pseudonym of a text. Equal texts of two kinds have different pseudonyms.

        Examples
        --------
        >>> Pseudonyms(bytes(32)).of("scan", "liver_0")
        'scan-ua4mef3nwejdef5q'
        """
        digest = base64.b32encode(self._digest(kind, text)).decode().lower()
        return f"{kind}-{digest[:_HASH_CHARACTERS]}"

    def keyed(self, digest: str) -> str:
        """Return a keyed hash of a hash, of the same length.

        Nobody can compare it with hashes of known files.
        """
        return self._digest("file", digest).hex()[: len(digest)]

    def _digest(self, kind: _Kind, text: str) -> bytes:
        message = f"{kind}\0{to_nfc(text)}".encode(errors="surrogateescape")
        return hmac.digest(self.key, message, hashlib.sha256)

    def discovery(self, found: Discovery, recipe: Recipe) -> Discovery:
        """Return a discovery under pseudonyms; the paths to read from stay as they are."""
        own = _texts_of(recipe)
        safe = _safe_columns(recipe)
        return replace(
            found,
            scans=tuple(self._source(scan, own, safe) for scan in found.scans),
            refused=tuple(self._named(scan) for scan in found.refused),
            without_mask=tuple(self._named(image) for image in found.without_mask),
            absent=tuple(self.of("scan", name) for name in found.absent),
            tables=tuple(
                replace(use, unmatched=tuple(self.of("scan", name) for name in use.unmatched))
                for use in found.tables
            ),
        )

    def _named(self, scan: _Scan) -> _Scan:
        return replace(scan, scan_id=self.of("scan", scan.scan_id))

    def _source(
        self, scan: ScanSource, own: frozenset[str], safe: Sequence[BoundedRegex]
    ) -> ScanSource:
        return replace(
            scan,
            scan_id=self.of("scan", scan.scan_id),
            patient_id=self.of("patient", scan.patient_id),
            source=scan.source if scan.source in own else self.of("source", scan.source),
            split=scan.split if scan.split in own else self.of("split", scan.split),
            # A place in a published list names the scan.
            split_index=-1,
            columns={
                column: text
                for column, text in scan.columns.items()
                if any(pattern.fullmatch(column) for pattern in safe)
            },
        )

    def facts(self, facts: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
        """Return the metadata of a scan with the names of its files replaced by its pseudonym."""
        return {
            **facts,
            "source_key": self.keyed(facts["source_key"]),
            "image_source": self._file(facts["image_source"], scan_id),
            "label_source": self._file(facts["label_source"], f"{scan_id}_mask"),
            "centroid_source": self._file(facts["centroid_source"], f"{scan_id}_centroids"),
        }

    def _file(self, record: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
        if record is None:
            return None
        path = record["file"].lower()
        ending = next((ending for ending in _ENDINGS if path.endswith(ending)), "")
        further = {"sha256": self.keyed(record["sha256"])} if "sha256" in record else {}
        if record.get("series") is not None:
            further["series"] = self.keyed(record["series"])
        return {**record, "file": name + ending, **further}

    def lines(self, found: Discovery) -> Iterator[MapLine]:
        """Yield the lines of the map for a discovery that is not yet under pseudonyms."""
        for scan in found.scans:
            masks = (scan.label, *(part.path for part in scan.label_parts))
            yield MapLine(
                self.of("scan", scan.scan_id),
                self.of("patient", scan.patient_id),
                scan.scan_id,
                scan.patient_id,
                scan.image,
                next((path for path in masks if path is not None), ""),
            )


def _texts_of(recipe: Recipe) -> frozenset[str]:
    """Return the texts that the recipe itself states; they identify no scan or patient."""
    texts = [text for layout in recipe.layouts.values() for text in layout.constants.values()]
    texts += [text for lookup in recipe.lookups.values() for text in lookup.values.values()]
    texts += recipe.splits.sections.values() if recipe.splits is not None else ()
    texts += [text for table in recipe.tables.values() for text in table.constants.values()]
    return _SPLITS.union(text for text in texts if "{" not in text)


def _safe_columns(recipe: Recipe) -> list[BoundedRegex]:
    """Return patterns of the columns to keep: those of the recipe, and those that it calls safe."""
    tables = recipe.tables.values()
    own = [compile_bounded(re.escape(column)) for table in tables for column in table.constants]
    return own + [PathPattern(text).regex for table in tables for text in table.non_identifying]


def map_file(out: str, chosen: str | None) -> Path:
    """Return the path of the map: the one that the user chose, or one beside the store.

    The map of a store on another machine lies in the working folder.

    Raises
    ------
    UsageError
        If that is no local ``.csv`` file, or inside the store.
    """
    fs, path = open_filesystem(out)
    local = isinstance(fs, LocalFileSystem)
    beside = Path(path if local else path.rsplit("/", 1)[-1])
    place = Path(chosen or f"{beside}.pseudonyms.csv")
    if "://" in str(chosen) or place.suffix != ".csv":
        raise UsageError(f"--pseudonyms {chosen}: expected a path on this machine, named .csv.")
    if local and place.resolve().is_relative_to(Path(path).resolve()):
        raise UsageError(
            f"--pseudonyms {chosen}: lies inside the store {out}: whoever gets the store would "
            "get the names. Choose a place outside it."
        )
    return place


def key_file(place: Path) -> Path:
    """Return the path of the key of a map: beside it."""
    return place.with_suffix(".key")


def apply_pseudonyms(
    found: Discovery,
    recipe: Recipe,
    out: str,
    place: Path,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Discovery, Pseudonyms]:
    """Replace ids by pseudonyms, and write key and map before any scan is stored.

    Parameters
    ----------
    found
        Under its own names.
    recipe
        Of the dataset.
    out
        Path or URL of the store.
    place
        Of the map, see :func:`map_file`.
    storage_options
        For the file system of the store.

    Raises
    ------
    UsageError
        If key or map are damaged, those of another store, or lost while the store is there.
    """
    root = stored_root(out, storage_options)
    stored = None if root is None else root.pseudonym_key
    if root is not None and stored is None:
        raise UsageError(
            f"{out}: was made without pseudonyms. Choose another place for a store with them, or "
            "leave out --pseudonymize."
        )
    if stored is not None:
        for path in (key_file(place), place):
            if not path.is_file():
                raise UsageError(
                    f"{path}: is not there, and the store {out} was made with it. Put it back, "
                    "say where it is by --pseudonyms FILE, or make a new store."
                )
    names = _read_key(place)
    if stored not in (None, names.fingerprint):
        raise UsageError(
            f"{key_file(place)}: is not the key that the store {out} was made with. Say where "
            "that is by --pseudonyms FILE."
        )
    lines = {line.pseudonym: line for line in _read_map(place, names)}
    known = dict(lines)
    lines |= {line.pseudonym: line for line in names.lines(found)}
    if not key_file(place).exists():
        _write(key_file(place), f"{names.key.hex()}\n")
    if lines != known or not place.exists():
        _write_map(place, lines.values())
    return names.discovery(found, recipe), names


def _read_key(place: Path) -> Pseudonyms:
    path = key_file(place)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        if place.exists():
            raise UsageError(
                f"{path}: the key of the map {place} is not there; another would give other "
                "pseudonyms. Put it back, or move the map away for a new store."
            ) from None
        return Pseudonyms.new()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UsageError(
            f"{path}: is no key of pseudonyms, expected {2 * _KEY_BYTES} hexadecimal digits. "
            "Put the file back as it was."
        )
    return Pseudonyms(key)


def _unreadable(path: Path, problem: OSError) -> UsageError:
    return UsageError(
        f"{path}: cannot be read: {problem.strerror or problem}. Choose a place for the map, and "
        "the key beside it, by --pseudonyms FILE."
    )


def _read_map(place: Path, names: Pseudonyms) -> list[MapLine]:
    columns = [field.name for field in fields(MapLine)]
    try:
        with place.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise _unreadable(place, problem) from problem
    except csv.Error:
        rows, reader = [], None
    if reader is None or list(reader.fieldnames or ()) != columns:
        raise UsageError(
            f"{place}: is no map of pseudonyms, expected the columns {', '.join(columns)}. "
            "Put the file back as it was."
        )
    lines = [MapLine(**{column: row[column] or "" for column in columns}) for row in rows]
    for number, line in enumerate(lines, 2):
        if line.pseudonym != names.of("scan", line.scan_id):
            raise UsageError(
                f"{place}, line {number}: its pseudonym was not made with the key "
                f"{key_file(place)}. Put both files back as they were."
            )
    return lines


def _write_map(place: Path, lines: Iterable[MapLine]) -> None:
    text = _Text()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(MapLine)])
    writer.writerows(astuple(line) for line in sorted(lines, key=lambda line: line.pseudonym))
    _write(place, "".join(text))


class _Text(list[str]):
    """A text file in memory, with line ends as written."""

    def write(self, text: str) -> None:
        """Append a piece of text."""
        self.append(text)


def _write(path: Path, text: str) -> None:
    """Write a file in one step that only its owner may read."""
    new = path.with_name(f"{path.name}.partial")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(
            os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY), "wb"
        ) as file:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as problem:
        raise UsageError(
            f"{path}: cannot be written: {problem.strerror or problem}. Choose a place for the "
            "map by --pseudonyms FILE."
        ) from problem
