"""How is a store copied to a disk or to a bucket?

The files of a scan are written by kind: voxels, the metadata of arrays, and last the ``zarr.json``
that makes the scan visible. The scan table follows when all scans are there, and the root comes
last. So what a killed copy leaves is no store, and every scan that opens is whole.
"""

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final

from spinezarr.copying.outcome import CopyOutcome, CopyWork, OnWork
from spinezarr.copying.plan import (
    CopyPlan,
    PlannedScan,
    ScanCounts,
    is_content,
    is_store_key,
    scan_metadata_keys,
    write_order,
)
from spinezarr.errors import CorruptStoreError, DamagedMetadataError, UsageError
from spinezarr.progress import ProgressCounter
from spinezarr.store.attributes import OtherFormatError, RootAttributes, parse_root
from spinezarr.store.audit_log import AUDIT_FILE
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.claim import check_root
from spinezarr.store.files import (
    PARTIAL,
    list_sizes,
    publish_file,
    read_files,
    remove_files,
    write_file,
)
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import METADATA, SCANS
from spinezarr.store.ledger import LEDGER_FILE, Ledger
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.metadata import root_files
from spinezarr.store.reader import StoreReader
from spinezarr.store.registry import ScanRegistry
from spinezarr.store.writable import WritableStore
from spinezarr.verify.files import StoreFiles

__all__ = ["copy_to_files", "read_checked", "survey_files"]

_SCANS_AT_ONCE: Final = 2
_FILES_AT_ONCE: Final = 8
"""Number of files that are copied at the same time. Each is in memory; shards have some 40 MB."""
_NO_LIMIT: Final = "A disk or bucket sets no limit on the number of objects."

Entries = dict[str, ManifestEntry]


@dataclass(frozen=True, slots=True)
class _ScanWork:
    """What the target lacks of one scan."""

    scan: PlannedScan
    missing: Entries
    """Files that the target lacks, or has with another size, by key."""
    unsure: Entries
    """Files of the right size whose content has to be compared, by key."""
    present: frozenset[str]
    """Keys of the files in the folder of the scan in the target."""
    is_published: bool
    """Whether the target has the ``zarr.json`` of this very version."""

    @property
    def metadata_key(self) -> str:
        """Key of the ``zarr.json`` of the scan."""
        return f"{self.scan.folder}/{METADATA}"

    @property
    def stale(self) -> frozenset[str]:
        """Keys of files in the target that the scan does not have."""
        return self.present - self.scan.files.keys() - {self.metadata_key}

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_published and not (self.missing or self.unsure or self.stale)


def copy_to_files(
    plan: CopyPlan,
    reader: StoreReader,
    target: WritableStore,
    *,
    repair: bool,
    purpose: str,
    on_work: OnWork,
    counter: ProgressCounter,
) -> CopyOutcome:
    """Copy scans to a disk or a bucket.

    Parameters
    ----------
    plan
        The scans.
    reader
        The store to copy.
    target
        Place of the copy. What is there already is kept if it is what the manifests describe.
    repair
        Compare the content of all files in the target, also of scans that are complete.
    purpose
        The command, for messages to other writers.
    on_work
        Called with what has to be done, before a file of the store is written.
    counter
        Counts the bytes that are done.

    Raises
    ------
    UsageError
        If the target holds something else.
    ReadOnlyStoreError
        If the target cannot be written.
    StoreBusyError, LostLockError
        If another process is writing the target, or has taken it over.
    """
    _Target(target, plan.root).check()  # before a lock is written to a wrong place
    if isinstance(target.fs, StoreFileSystem):
        target.fs.folder.check_folder(target.path, make=True)
    with target.locked(purpose):
        place = _Target(target, plan.root)
        place.check()
        work = [place.work_on(scan, repair=repair) for scan in plan.scans]
        on_work(_summary(plan, work))
        outcome = _Copier(reader, target, counter).copy(work)
        done = {*outcome.copied, *outcome.kept}
        place.publish_registry(plan.only(done), changed=bool(outcome.copied))
    return outcome


def survey_files(plan: CopyPlan, target: WritableStore, *, repair: bool) -> CopyWork:
    """Return what :func:`copy_to_files` would do. Nothing is written."""
    place = _Target(target, plan.root)
    place.check()
    return _summary(plan, [place.work_on(scan, repair=repair) for scan in plan.scans])


def _summary(plan: CopyPlan, work: Iterable[_ScanWork]) -> CopyWork:
    left = [one for one in work if not one.is_done]
    sizes = [entry.size_bytes for one in left for entry in one.missing.values()]
    sizes += [len(one.scan.metadata) for one in left if not one.is_published]
    return CopyWork(
        all=plan.counts,
        to_copy=ScanCounts(len(left), len(sizes), sum(sizes)),
        to_compare=sum(len(one.unsure) for one in left),
        limit=_NO_LIMIT,
    )


class _Target:
    """The place of the copy as it is before the copy.

    Parameters
    ----------
    store
        Its files.
    root
        Attributes that its root gets.
    """

    def __init__(self, store: WritableStore, root: RootAttributes) -> None:
        self._store = store
        self._root = root
        store.fs.invalidate_cache()
        self._sizes = list_sizes(store.fs, store.path)
        self._keys_of_scan: dict[str, set[str]] = defaultdict(set)
        for key in self._sizes:
            folder, _, rest = key.partition("/")
            scan_id, slash, _ = rest.partition("/")
            if folder == SCANS and slash:
                self._keys_of_scan[scan_id].add(key)
        self._metadata = self._read_metadata(self._keys_of_scan)

    def _read_metadata(self, scan_ids: Iterable[str]) -> dict[str, bytes]:
        """Read the ``zarr.json`` of scans in the target, by scan id."""
        wanted = set(scan_ids)
        keys = {s: key for s, key in scan_metadata_keys(self._sizes) if s in wanted}
        paths = {scan_id: f"{self._store.path}/{key}" for scan_id, key in keys.items()}
        contents = read_files(self._store.fs, paths.values())
        return {scan_id: contents[path] for scan_id, path in paths.items() if path in contents}

    def check(self) -> None:
        """Refuse a place that holds something else than this store or the start of its copy.

        Raises
        ------
        UsageError
            If it does.
        """
        store = self._store
        if store.fs.isfile(store.path):
            raise UsageError(f"{store.name}: is a file. Give the name of a new folder.")
        if METADATA not in self._sizes:
            keys = (key for key in self._sizes if not key.endswith(PARTIAL))
            foreign = next((key for key in keys if not is_store_key(key)), None)
            if foreign is not None:
                raise UsageError(
                    f"{store.name}: holds {foreign!r} and is no store. Choose a new place."
                )
            return
        try:
            existing = parse_root(store.fs.cat_file(f"{store.path}/{METADATA}"))
        except OtherFormatError as problem:
            raise UsageError(f"{store.name}: {problem}") from problem
        except DamagedMetadataError as problem:
            raise UsageError(
                f"{store.name}/{METADATA}: is not the root of a store ({problem}). Choose another "
                "place, or delete this file if the place held a copy of this store."
            ) from problem
        check_root(store.name, existing, self._root.model_copy(update={"codec_profile": None}))

    def work_on(self, scan: PlannedScan, *, repair: bool) -> _ScanWork:
        """Compare what the target has of a scan with its manifest."""
        is_published = self._metadata.get(scan.scan_id) == scan.metadata
        missing, unsure = Entries(), Entries()
        for key, entry in scan.files.items():
            if self._sizes.get(key) != entry.size_bytes:
                missing[key] = entry
            elif repair or not is_published:
                unsure[key] = entry
        present = frozenset(self._keys_of_scan.get(scan.scan_id, ()))
        return _ScanWork(scan, missing, unsure, present, is_published)

    def publish_registry(self, plan: CopyPlan, *, changed: bool) -> None:
        """Write the files that all scans share, the root last.

        Parameters
        ----------
        plan
            The scans of this copy that are in the target now. Others that it had before stay.
        changed
            Whether a scan was written.
        """
        store = self._store
        registry = ScanRegistry(store, self._root)
        others = self._keys_of_scan.keys() - {scan.scan_id for scan in plan.scans}
        stored = self._read_metadata(others).values()
        full = plan.with_others(stored, registry.ledger() or Ledger(), registry.audit_log())
        root = root_files(self._root.model_dump(mode="json"))
        files = {LEDGER_FILE: full.ledger.to_file(), **root}
        if full.audit.scans:
            files[AUDIT_FILE] = full.audit.to_file()
        present = read_files(store.fs, [f"{store.path}/{key}" for key in files])
        new = {
            key: data for key, data in files.items() if present.get(f"{store.path}/{key}") != data
        }
        known, table = registry.table(), full.table()
        is_current = known is not None and known.identical(table) and TABLE_BUNDLE in self._sizes
        with store.changing():
            for key in (AUDIT_FILE, LEDGER_FILE):
                if key in new:
                    publish_file(store.fs, f"{store.path}/{key}", new[key])
            if changed or not is_current:
                registry.publish_table(table)
            for key in sorted(new.keys() & root.keys(), reverse=True):
                publish_file(store.fs, f"{store.path}/{key}", new[key])


class _Copier:
    """Copies the files of scans, several at once."""

    def __init__(
        self, reader: StoreReader, target: WritableStore, counter: ProgressCounter
    ) -> None:
        self._reader = reader
        self._target = target
        self._counter = counter
        self._stored = StoreFiles(target.fs, target.path, {})

    def copy(self, work: list[_ScanWork]) -> CopyOutcome:
        """Copy what is missing. A scan whose source is damaged does not stop the others."""
        left = [one for one in work if not one.is_done]
        sizes = (
            e.size_bytes for one in left for e in (*one.missing.values(), *one.unsure.values())
        )
        self._counter.expect(sum(sizes))
        failed: dict[str, str] = {}
        copied, kept = [], [one.scan.scan_id for one in work if one.is_done]
        n_files = n_bytes = 0
        scans = ThreadPoolExecutor(_SCANS_AT_ONCE, "spinezarr-copy-scan")
        files = ThreadPoolExecutor(_FILES_AT_ONCE, "spinezarr-copy")
        try:
            for one, result in zip(
                left, scans.map(partial(self._attempt, files), left), strict=True
            ):
                if isinstance(result, str):
                    failed[one.scan.scan_id] = result
                elif result:
                    copied.append(one.scan.scan_id)
                    n_files, n_bytes = n_files + len(result), n_bytes + sum(result)
                else:
                    kept.append(one.scan.scan_id)
        finally:
            files.shutdown(cancel_futures=True)
            scans.shutdown(cancel_futures=True)
        return CopyOutcome(tuple(copied), tuple(kept), failed, n_files, n_bytes)

    def _attempt(self, files: ThreadPoolExecutor, work: _ScanWork) -> list[int] | str:
        """Return the sizes of the files that were written, or why the scan cannot be copied."""
        try:
            return self._copy_scan(files, work)
        except CorruptStoreError as problem:
            return str(problem)

    def _copy_scan(self, files: ThreadPoolExecutor, work: _ScanWork) -> list[int]:
        target, scan = self._target, work.scan
        same = files.map(self._is_same, work.unsure, work.unsure.values())
        differing = [key for key, is_same in zip(work.unsure, same, strict=True) if not is_same]
        entries = scan.files
        todo = sorted([*work.missing, *differing], key=write_order)
        is_visible = work.metadata_key in work.present
        if is_visible and not work.present.isdisjoint(todo):
            # A reader must not see new files under the old manifest, or half of them.
            target.remove(target.path, [work.metadata_key])
            is_visible = False
        elif work.is_published and not todo and not work.stale:
            return []
        try:
            for _, keys in groupby(todo, key=lambda key: write_order(key)[0]):
                self._copy_files(files, work, list(keys))
        except CorruptStoreError:
            # An older version that readers see stays; half of a scan does not.
            useless = {*todo} if is_visible else {*todo, *work.present} - {work.metadata_key}
            target.remove(target.path, useless)
            raise
        with target.changing():
            publish_file(target.fs, f"{target.path}/{work.metadata_key}", scan.metadata)
            remove_files(target.fs, target.path, work.stale)
        return [*(entries[key].size_bytes for key in todo), len(scan.metadata)]

    def _copy_files(self, files: ThreadPoolExecutor, work: _ScanWork, keys: list[str]) -> None:
        """Copy files of a scan. If one fails, the others have ended when the error is raised."""
        entries = work.scan.files
        copies = [
            files.submit(self._copy_file, key, entries[key], counts=key in work.missing)
            for key in keys
        ]
        damage: CorruptStoreError | None = None
        for copy in copies:
            try:
                copy.result()
            except CorruptStoreError as problem:
                damage = damage or problem
        if damage is not None:
            raise damage

    def _is_same(self, key: str, entry: ManifestEntry) -> bool:
        return not self._stored.check(None, key, entry, self._counter.add)

    def _copy_file(self, key: str, entry: ManifestEntry, *, counts: bool) -> None:
        data = read_checked(self._reader, key, entry)
        target = self._target
        target.check_lock()
        with target.changing():
            write_file(target.fs, f"{target.path}/{key}", data)
        if counts:  # files that were compared have been counted
            self._counter.add(len(data))


def read_checked(reader: StoreReader, key: str, entry: ManifestEntry) -> bytes:
    """Read a file of a store and compare it with its manifest entry.

    Raises
    ------
    CorruptStoreError
        If it is missing or damaged.
    OSError
        If it cannot be read.
    """
    path = f"{reader.path}/{key}"
    objects = reader.objects
    data: bytes | None = None
    for _ in range(1 + objects.rereads):
        data = objects.read([path], max(entry.size_bytes, 1)).get(path)
        if data is not None and is_content(data, entry):
            return data
    problem = "is missing" if data is None else "is damaged"
    raise CorruptStoreError(
        f"{objects.name(path)}: {problem}, so the scan is not copied. 'spinezarr verify "
        f"{reader.name}' says what else is damaged, and how to repair it."
    )
