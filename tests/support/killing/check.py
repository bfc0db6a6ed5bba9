"""Judges a store with plain zarr-python and xarray, and with spinezarr.

Everything is judged on one snapshot of the store's files, in the same way for a folder and a
bucket; only spinezarr opens the store itself.
"""

import hashlib
import json
import math
import warnings
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Final, TypeVar

import fsspec
import numpy as np
import xarray as xr
import zarr
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

import spinezarr
from killing.dataset import Truth
from spinezarr.errors import CorruptStoreError, StoreNotFoundError

__all__ = [
    "MIXED",
    "Fault",
    "Files",
    "Reference",
    "faults_after_kill",
    "faults_at_end",
    "folder_files",
    "harm_after_kill",
    "left_over",
    "scan_ids",
    "write_folder",
]

Files = dict[str, bytes]
"""Content of a store by key; a folder without files is a key that ends with a slash."""

MIXED: Final = "versions mixed without consolidated metadata"
"""Kind of fault that only clients see that open arrays one by one, until the next run."""
_METADATA: Final = "zarr.json"
_BUNDLE: Final = "table_bundle/zarr.json"
_NOT_CONTENT: Final = {"manifest", "metadata_crc32c"}
"""Attributes that describe how a scan is stored, and not its content."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: a state of the store that must not occur."""

    kind: str
    """``unreadable``, ``silently incomplete``, ``lost``, ``left over``, ``not identical`` or
    :data:`MIXED`."""
    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """Expected states of a store, from runs on the same raw folders that were not killed."""

    versions: Mapping[str, frozenset[str]]
    """Digests that a scan may have in between, by scan id."""
    arrays: Mapping[tuple[str, str], tuple[str | None, str | None]]
    """Digests of values in the old and the new version, by scan id and array."""
    before: frozenset[str]
    """Scans that were there at the start, and must never vanish."""
    table_before: bool
    """Whether there was a scan table at the start."""
    end: Mapping[str, str]
    """Digest of each scan at the end."""
    table: str
    """Digest of the scan table at the end."""

    @classmethod
    def of(cls, before: Files, end: Files) -> "Reference":
        """Make a reference from the stores of runs that succeeded."""
        old, new = (
            {name: _digest(files, name) for name in scan_ids(files)} for files in (before, end)
        )
        values = [_values_by_array(files) for files in (before, end)]
        return cls(
            arrays={
                key: (values[0].get(key), values[1].get(key)) for key in {*values[0], *values[1]}
            },
            versions={
                name: frozenset({d[name] for d in (old, new) if name in d}) for name in {*old, *new}
            },
            before=frozenset(old),
            table_before="table/zarr.json" in before,
            end=new,
            table=digest([_table(end)]),
        )


@dataclass(slots=True)
class _Faults:
    found: list[Fault] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        self.found.append(Fault(kind, text))


def folder_files(folder: Path) -> Files:
    """Read all files of a folder; the result is empty if the folder is absent."""
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        key = str(path.relative_to(folder))
        if path.is_file():
            files[key] = path.read_bytes()
        elif not any(path.iterdir()):
            files[f"{key}/"] = b""
    return files


def write_folder(files: Files, folder: Path) -> None:
    """Write files as :func:`folder_files` returns them."""
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def scan_ids(files: Files) -> list[str]:
    """Return the scans that a reader of the store sees."""
    parts = (key.split("/") for key in files)
    return sorted(p[1] for p in parts if len(p) == 3 and (p[0], p[2]) == ("scans", _METADATA))


_Result = TypeVar("_Result")
_ScanReader = Callable[[Files, str], _Result]


def _cached(read: _ScanReader[_Result]) -> _ScanReader[_Result]:
    """Cache the reading of scans, because the next kill leaves most of them unchanged."""
    known: dict[str, _Result] = {}

    @wraps(read)
    def cached(files: Files, name: str) -> _Result:
        content = hashlib.sha256(name.encode())
        for key, data in sorted(_below(files, f"scans/{name}").items()):
            content.update(f"{key} {len(data)} ".encode() + data)
        key = content.hexdigest()
        if key not in known:
            known[key] = read(files, name)
        return known[key]

    return cached


def _below(files: Files, folder: str) -> Files:
    start = f"{folder}/"
    return {key.removeprefix(start): data for key, data in files.items() if key.startswith(start)}


def _memory(files: Files) -> MemoryStore:
    whole = {k: v for k, v in files.items() if not k.endswith(("/", ".partial"))}
    return MemoryStore({key: Buffer.from_bytes(data) for key, data in whole.items()})


def _open_dataset(files: Files, group: str | None = None) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        options = {"chunks": None, "zarr_format": 3, "mask_and_scale": False}
        return xr.open_zarr(_memory(files), group=group, **options).load()


@_cached
def decoded(files: Files, scan_id: str) -> list[xr.Dataset]:
    """Read a scan with xarray and zarr-python."""
    scan = _below(files, f"scans/{scan_id}")
    root = _open_dataset(scan)
    sampling = zarr.open_group(_memory(scan), mode="r")
    if "sampling" not in sampling:
        return [root]
    rows = sampling["sampling/label_chunks"][...]
    return [root, xr.Dataset({"label_chunks": (("entry", "column"), rows)})]


def _table(files: Files) -> xr.Dataset:
    return _open_dataset(_below(files, "table"))


def digest(datasets: Iterable[xr.Dataset]) -> str:
    """Hash all values, types, names and attributes."""
    total = hashlib.sha256()
    for dataset in datasets:
        for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
            values = variable.to_numpy()
            data = repr(values.tolist()).encode() if values.dtype.kind in "OT" else values.tobytes()
            shown = (name, variable.dims, variable.shape, str(variable.dtype), variable.attrs)
            total.update(repr(shown).encode() + data)
        kept = {k: v for k, v in dataset.attrs.items() if k not in _NOT_CONTENT}
        total.update(json.dumps(kept, sort_keys=True).encode())
    return total.hexdigest()


def faults_after_kill(files: Files, url: str, reference: Reference) -> list[Fault]:
    """Judge a store after a process was killed.

    A scan is absent, or all of it is one version; scans that were there at the start are present.
    The table can be opened, or there is none yet.
    """
    faults = _Faults()
    shown = scan_ids(files)
    for name in sorted(reference.before - set(shown)):
        faults.add("lost", f"{name}: was published and is gone")
    for name in shown:
        _judge_scan(files, name, reference, faults)
    _judge_bundle(files, faults)
    _judge_with_spinezarr(files, url, reference, faults)
    return faults.found


def harm_after_kill(files: Files, url: str, reference: Reference) -> list[Fault]:
    """Return the faults except those of kind :data:`MIXED`, which the next run repairs."""
    return [fault for fault in faults_after_kill(files, url, reference) if fault.kind != MIXED]


def _judge_bundle(files: Files, faults: _Faults) -> None:
    """Check that the bundle and the files of the table hold the same table."""
    if not files.get(_BUNDLE):  # it is empty if files cannot be removed
        return
    texts = json.loads(files[_BUNDLE])["attributes"]["files"]
    table = _below(files, "table")
    if texts != {key: b64encode(table.get(key, b"")).decode() for key in texts}:
        faults.add("silently incomplete", f"{_BUNDLE} holds another table")


def _judge_scan(files: Files, name: str, reference: Reference, faults: _Faults) -> None:
    try:
        found = _digest(files, name)
    except Exception as problem:  # noqa: BLE001  whatever it is, the scan cannot be read
        faults.add("unreadable", f"{name}: zarr-python: {type(problem).__name__}: {problem}")
        return
    if found not in reference.versions[name]:
        faults.add("silently incomplete", f"{name}: zarr-python reads values of no version")
    for text in _manifest_faults(files, name, with_metadata=False):
        faults.add("silently incomplete", f"{name}: {text}")
    _judge_arrays(files, name, reference, faults)


def _judge_arrays(files: Files, name: str, reference: Reference, faults: _Faults) -> None:
    """Judge the arrays as seen by clients that open each one by its own metadata."""
    try:
        found = _array_values(files, name)
    except Exception as problem:  # noqa: BLE001  whatever it is, an array cannot be read
        faults.add("unreadable", f"{name}: an array: {type(problem).__name__}: {problem}")
        return
    possible = {0, 1}
    for array, values in found.items():
        known = reference.arrays[name, array]
        if values not in known:
            faults.add("silently incomplete", f"{name}: {array} is of no version")
        possible &= {version for version in (0, 1) if known[version] == values}
    if not possible:
        faults.add(MIXED, f"{name}: arrays of two versions")


@_cached
def _array_values(files: Files, name: str) -> dict[str, str]:
    group = zarr.open_group(
        _memory(_below(files, f"scans/{name}")), mode="r", use_consolidated=False
    )
    values = {}
    for path, array in group.members(max_depth=None):
        if isinstance(array, zarr.Array):
            content = array[...]
            shown = f"{content.shape} {content.dtype}".encode()
            values[path] = hashlib.sha256(shown + content.tobytes()).hexdigest()
    return values


def _values_by_array(files: Files) -> dict[tuple[str, str], str]:
    return {
        (name, array): values
        for name in scan_ids(files)
        for array, values in _array_values(files, name).items()
    }


def _manifest_faults(files: Files, name: str, *, with_metadata: bool) -> list[str]:
    """Compare a scan's manifest with its files, and its image's shards with the manifest.

    In between, metadata of single arrays may still be those of the old version.
    """
    scan = _below(files, f"scans/{name}")
    metadata = json.loads(scan[_METADATA])
    manifest = metadata["attributes"]["manifest"]
    faults = []
    for key, entry in manifest.items():
        data = scan.get(key)
        if key.endswith(_METADATA) and not with_metadata:
            continue
        if data is None:
            faults.append(f"the manifest names {key}, which is not there")
        elif (entry["size_bytes"], entry["crc32"]) != (len(data), f"{zlib.crc32(data):08x}"):
            faults.append(f"{key} is not what the manifest says")
    image = metadata["consolidated_metadata"]["metadata"]["image"]
    shard = image["chunk_grid"]["configuration"]["chunk_shape"]
    n_shards = math.prod(-(-n // s) for n, s in zip(image["shape"], shard, strict=True))
    named = sum(key.startswith("image/c") for key in manifest)
    if named != n_shards:
        faults.append(f"the manifest names {named} of {n_shards} shards of the image")
    return faults


def _judge_with_spinezarr(files: Files, url: str, reference: Reference, faults: _Faults) -> None:
    fsspec.url_to_fs(url)[0].invalidate_cache()
    try:
        store = spinezarr.open(url)
    except StoreNotFoundError as problem:
        if reference.before or scan_ids(files):
            faults.add("unreadable", f"the store: {problem}")
        return
    names = set(scan_ids(files))
    try:
        rows = store.table.scan.to_numpy().tolist()
        names |= set(rows)
        if lost := sorted(reference.before - set(rows)):
            faults.add("lost", f"{lost}: no longer in the scan table")
    except CorruptStoreError as problem:
        if reference.table_before or "has no scan table" not in str(problem):
            faults.add("unreadable", f"the scan table: {problem}")
    for name in sorted(names):
        try:
            scan = store.scan(name).compute()
        except Exception as problem:  # noqa: BLE001  whatever it is, the scan cannot be read
            faults.add("unreadable", f"{name}: spinezarr: {type(problem).__name__}: {problem}")
            continue
        if not _same_voxels(scan, decoded(files, name)[0]):
            faults.add("silently incomplete", f"{name}: spinezarr reads other voxels")


def _same_voxels(a: xr.Dataset, b: xr.Dataset) -> bool:
    return set(a.variables) == set(b.variables) and all(
        np.array_equal(a[name].to_numpy(), b[name].to_numpy()) for name in a.variables
    )


def left_over(files: Files) -> list[str]:
    """Return files that no manifest names, and folders without files."""
    named = {_METADATA, f"scans/{_METADATA}", "audit/zarr.json", "ingest/zarr.json", _BUNDLE}
    groups = ["table", *(f"scans/{name}" for name in scan_ids(files))]
    for group in groups:
        metadata = files.get(f"{group}/{_METADATA}")
        if metadata is not None:
            manifest = json.loads(metadata)["attributes"]["manifest"]
            named |= {f"{group}/{_METADATA}", *(f"{group}/{key}" for key in manifest)}
    return sorted(set(files) - named)


def faults_at_end(files: Files, url: str, reference: Reference) -> list[Fault]:
    """Judge a store after a run that succeeded: it must equal that of runs that were not killed."""
    faults = _Faults(faults_after_kill(files, url, reference))
    for key in left_over(files):
        faults.add("left over", key)
    shown = scan_ids(files)
    for name in sorted({*shown, *reference.end}):
        if name not in shown:
            faults.add("not identical", f"{name}: is not there")
        elif name not in reference.end:
            faults.add("not identical", f"{name}: is there")
        elif _digest_or_none(files, name) != reference.end[name]:
            faults.add("not identical", f"{name}: differs from that of a run that was not killed")
        else:
            for text in _manifest_faults(files, name, with_metadata=True):
                faults.add("not identical", f"{name}: {text}")
    _judge_table_at_end(files, reference, faults)
    return faults.found


def _judge_table_at_end(files: Files, reference: Reference, faults: _Faults) -> None:
    if not files.get(_BUNDLE):
        faults.add("not identical", f"{_BUNDLE} is not there")
    try:
        table = digest([_table(files)])
    except Exception as problem:  # noqa: BLE001  whatever it is, there is no table
        faults.add("unreadable", f"the scan table: {type(problem).__name__}: {problem}")
    else:
        if table != reference.table:
            faults.add("not identical", "the scan table")


@_cached
def _digest(files: Files, name: str) -> str:
    return digest(decoded(files, name))


def _digest_or_none(files: Files, name: str) -> str | None:
    try:
        return _digest(files, name)
    except Exception:  # noqa: BLE001  _judge_scan reports it
        return None


def same_as_written(files: Files, truth: Mapping[str, Truth]) -> bool:
    """Return whether the store holds the voxels that were written into the raw folder."""
    for name, (image, label) in truth.items():
        (scan, *_) = decoded(files, name)
        if not np.array_equal(scan["image"], image):
            return False
        if (label is None) != ("label" not in scan):
            return False
        if label is not None and not np.array_equal(scan["label"], label):
            return False
    return True
