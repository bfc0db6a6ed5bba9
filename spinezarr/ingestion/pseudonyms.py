"""How does a store hide the ids of scans and patients?

A pseudonym is the start of an HMAC-SHA256 [1]_ of an id, with a key of 256 random bits. Without the
key, nobody can find an id by trying ids. With the key, an id has the same pseudonym in every run.
Key and map are stored beside the store, not in it.

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
"""Length of the key in bytes. By FIPS 198-1, a key longer than a SHA-256 hash adds no security."""
_HASH_CHARACTERS: Final = 16
"""Length of a pseudonym in characters, which hold 80 bits in base 32.

The chance that two of a million scans share a pseudonym is 4e-13.
"""
_OWNER_ONLY: Final = 0o600
_COMMON_SPLITS: Final = frozenset({"", "train", "training", "val", "valid", "validation", "test"})
"""Names of splits that a table may use. They identify no one."""
_STORED_ENDINGS: Final = (".nii.gz", ".nii", ".mha", ".mhd", ".json", ".lml", "/")
"""Endings of file names that are stored; any other ending is left out."""

_Scan = TypeVar("_Scan", RefusedScan, UnpairedImage)
_Kind = Literal["scan", "patient", "source", "split", "file", "key"]


@dataclass(frozen=True, slots=True)
class MapLine:
    """One line of the map: a scan of the store, and the files that it was read from."""

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
    """Makes pseudonyms of ids with a key."""

    key: bytes

    @classmethod
    def new(cls) -> Self:
        """Draw a key."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    def __repr__(self) -> str:
        """Return a text without the key, which must not get into a message."""
        return f"{type(self).__name__}({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Hash of the key, which a store keeps to refuse other keys. It does not reveal the key."""
        return self.of("key", "")

    def of(self, kind: _Kind, text: str) -> str:
        """Return the pseudonym of a text. Equal texts of different kinds have different pseudonyms.

        Examples
        --------
        >>> Pseudonyms(bytes(32)).of("scan", "liver_0")
        'scan-ua4mef3nwejdef5q'
        """
        digest = base64.b32encode(self._digest(kind, text)).decode().lower()
        return f"{kind}-{digest[:_HASH_CHARACTERS]}"

    def keyed_hash(self, digest: str) -> str:
        """Return a keyed hash of a hash, of the same length.

        Without the key, nobody can compare it with hashes of known files.
        """
        return self._digest("file", digest).hex()[: len(digest)]

    def _digest(self, kind: _Kind, text: str) -> bytes:
        message = f"{kind}\0{to_nfc(text)}".encode(errors="surrogateescape")
        return hmac.digest(self.key, message, hashlib.sha256)

    def discovery(self, discovery: Discovery, recipe: Recipe) -> Discovery:
        """Return a discovery with pseudonyms in place of ids; the paths of source files stay."""
        recipe_texts = _texts_of_recipe(recipe)
        safe_columns = _safe_columns(recipe)
        return replace(
            discovery,
            scans=tuple(self._source(scan, recipe_texts, safe_columns) for scan in discovery.scans),
            refused=tuple(self._with_pseudonym(scan) for scan in discovery.refused),
            without_mask=tuple(self._with_pseudonym(image) for image in discovery.without_mask),
            absent=tuple(self.of("scan", name) for name in discovery.absent),
            tables=tuple(
                replace(use, unmatched=tuple(self.of("scan", name) for name in use.unmatched))
                for use in discovery.tables
            ),
        )

    def _with_pseudonym(self, scan: _Scan) -> _Scan:
        return replace(scan, scan_id=self.of("scan", scan.scan_id))

    def _source(
        self, scan: ScanSource, recipe_texts: frozenset[str], safe_columns: Sequence[BoundedRegex]
    ) -> ScanSource:
        return replace(
            scan,
            scan_id=self.of("scan", scan.scan_id),
            patient_id=self.of("patient", scan.patient_id),
            source=scan.source if scan.source in recipe_texts else self.of("source", scan.source),
            split=scan.split if scan.split in recipe_texts else self.of("split", scan.split),
            # The position in a published list identifies the scan.
            split_index=-1,
            columns={
                column: text
                for column, text in scan.columns.items()
                if any(pattern.fullmatch(column) for pattern in safe_columns)
            },
        )

    def facts(self, facts: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
        """Return the metadata of a scan with the names of its files replaced by its pseudonym."""
        return {
            **facts,
            "source_key": self.keyed_hash(facts["source_key"]),
            "image_source": self._file(facts["image_source"], scan_id),
            "label_source": self._file(facts["label_source"], f"{scan_id}_mask"),
            "centroid_source": self._file(facts["centroid_source"], f"{scan_id}_centroids"),
        }

    def _file(self, record: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
        if record is None:
            return None
        path = record["file"].lower()
        ending = next((ending for ending in _STORED_ENDINGS if path.endswith(ending)), "")
        changes = {"sha256": self.keyed_hash(record["sha256"])} if "sha256" in record else {}
        if record.get("series") is not None:
            changes["series"] = self.keyed_hash(record["series"])
        return {**record, "file": name + ending, **changes}

    def lines(self, discovery: Discovery) -> Iterator[MapLine]:
        """Yield the lines of the map for a discovery with the original ids."""
        for scan in discovery.scans:
            masks = (scan.label, *(part.path for part in scan.label_parts))
            yield MapLine(
                self.of("scan", scan.scan_id),
                self.of("patient", scan.patient_id),
                scan.scan_id,
                scan.patient_id,
                scan.image,
                next((path for path in masks if path is not None), ""),
            )


def _texts_of_recipe(recipe: Recipe) -> frozenset[str]:
    """Return the texts that the recipe itself states; they identify no scan or patient."""
    texts = [text for layout in recipe.layouts.values() for text in layout.constants.values()]
    texts += [text for lookup in recipe.lookups.values() for text in lookup.values.values()]
    texts += recipe.splits.sections.values() if recipe.splits is not None else ()
    texts += [text for table in recipe.tables.values() for text in table.constants.values()]
    return _COMMON_SPLITS.union(text for text in texts if "{" not in text)


def _safe_columns(recipe: Recipe) -> list[BoundedRegex]:
    """Return patterns of the columns to keep: constants, and columns that identify nobody."""
    tables = recipe.tables.values()
    safe_columns = [column for table in tables for column in table.constants]
    safe_columns += ["fold"] if recipe.folds is not None else []
    return [compile_bounded(re.escape(column)) for column in safe_columns] + [
        PathPattern(text).regex for table in tables for text in table.non_identifying
    ]


def map_file(out: str, chosen: str | None) -> Path:
    """Return the path of the map: the one that the user chose, or one beside the store.

    The map of a store on another machine lies in the working folder.

    Raises
    ------
    UsageError
        If the path is not that of a local ``.csv`` file, or if it lies inside the store.
    """
    fs, path = open_filesystem(out)
    local = isinstance(fs, LocalFileSystem)
    store_name = Path(path if local else path.rsplit("/", 1)[-1])
    map_path = Path(chosen or f"{store_name}.pseudonyms.csv")
    if "://" in str(chosen) or map_path.suffix != ".csv":
        raise UsageError(f"--pseudonyms {chosen}: expected a path on this machine, named .csv.")
    if local and map_path.resolve().is_relative_to(Path(path).resolve()):
        raise UsageError(
            f"--pseudonyms {chosen}: lies inside the store {out}, so everyone who gets the store "
            "would get the names. Choose a path outside it."
        )
    return map_path


def key_file(map_path: Path) -> Path:
    """Return the path of the key, which lies beside its map."""
    return map_path.with_suffix(".key")


def apply_pseudonyms(
    discovery: Discovery,
    recipe: Recipe,
    out: str,
    map_path: Path,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Discovery, Pseudonyms]:
    """Replace ids by pseudonyms, and write key and map before any scan is stored.

    Parameters
    ----------
    discovery
        Discovery with the original ids.
    recipe
        Recipe of the dataset.
    out
        Path or URL of the store.
    map_path
        Path of the map; see :func:`map_file`.
    storage_options
        Options for the file system of the store.

    Raises
    ------
    UsageError
        If key or map are damaged, belong to another store, or are missing although the store
        exists.
    """
    root = stored_root(out, storage_options)
    stored = None if root is None else root.pseudonym_key
    if root is not None and stored is None:
        raise UsageError(
            f"{out}: was made without pseudonyms. Choose another path for a store with them, or "
            "leave out --pseudonymize."
        )
    if stored is not None:
        for path in (key_file(map_path), map_path):
            if not path.is_file():
                raise UsageError(
                    f"{path}: is missing, and the store {out} was made with it. Put it back, "
                    "name its path by --pseudonyms FILE, or make a new store."
                )
    pseudonyms = _read_key(map_path)
    if stored not in (None, pseudonyms.fingerprint):
        raise UsageError(
            f"{key_file(map_path)}: is not the key that the store {out} was made with. Name the "
            "path of its map by --pseudonyms FILE."
        )
    lines = {line.pseudonym: line for line in _read_map(map_path, pseudonyms)}
    stored_lines = dict(lines)
    lines |= {line.pseudonym: line for line in pseudonyms.lines(discovery)}
    if not key_file(map_path).exists():
        _write(key_file(map_path), f"{pseudonyms.key.hex()}\n")
    if lines != stored_lines or not map_path.exists():
        _write_map(map_path, lines.values())
    return pseudonyms.discovery(discovery, recipe), pseudonyms


def _read_key(map_path: Path) -> Pseudonyms:
    path = key_file(map_path)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        if map_path.exists():
            raise UsageError(
                f"{path}: the key of the map {map_path} is missing. Another key would give other "
                "pseudonyms. Put the key back, or move the map away for a new store."
            ) from None
        return Pseudonyms.new()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UsageError(
            f"{path}: is not a key of pseudonyms, expected {2 * _KEY_BYTES} hexadecimal digits. "
            "Put the file back as it was."
        )
    return Pseudonyms(key)


def _unreadable(path: Path, problem: OSError) -> UsageError:
    return UsageError(
        f"{path}: cannot be read: {problem.strerror or problem}. Choose a place for the map, and "
        "the key beside it, by --pseudonyms FILE."
    )


def _read_map(map_path: Path, pseudonyms: Pseudonyms) -> list[MapLine]:
    columns = [field.name for field in fields(MapLine)]
    try:
        with map_path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise _unreadable(map_path, problem) from problem
    except csv.Error:
        rows, reader = [], None
    if reader is None or list(reader.fieldnames or ()) != columns:
        raise UsageError(
            f"{map_path}: is not a map of pseudonyms, expected the columns {', '.join(columns)}. "
            "Put the file back as it was."
        )
    lines = [MapLine(**{column: row[column] or "" for column in columns}) for row in rows]
    for number, line in enumerate(lines, 2):
        if line.pseudonym != pseudonyms.of("scan", line.scan_id):
            raise UsageError(
                f"{map_path}, line {number}: its pseudonym was not made with the key "
                f"{key_file(map_path)}. Put both files back as they were."
            )
    return lines


def _write_map(map_path: Path, lines: Iterable[MapLine]) -> None:
    text = _Text()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(MapLine)])
    writer.writerows(astuple(line) for line in sorted(lines, key=lambda line: line.pseudonym))
    _write(map_path, "".join(text))


class _Text(list[str]):
    """A text file in memory, with line ends as written."""

    def write(self, text: str) -> None:
        """Append a piece of text."""
        self.append(text)


def _write(path: Path, text: str) -> None:
    """Write a file atomically. Only its owner may read it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(
            os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY), "wb"
        ) as file:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as problem:
        raise UsageError(
            f"{path}: cannot be written: {problem.strerror or problem}. Choose a place for the "
            "map by --pseudonyms FILE."
        ) from problem
