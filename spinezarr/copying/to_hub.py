"""How is a store on disk uploaded to a dataset repository of a hub?

A repository changes by commits. The first commits bring the voxels of all scans, and the metadata
of their arrays. The last commit brings the ``zarr.json`` of each scan, the scan table and the root,
all at once. So no revision of the repository holds half of a store that opens.

The hub lists the SHA-256 or the Git hash of each file, and these are compared with the files on
disk. So nothing is downloaded to find what is missing, and to check the result.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from spinezarr.copying.outcome import CopyOutcome, CopyWork, OnWork
from spinezarr.copying.plan import (
    CopyPlan,
    PlannedScan,
    ScanCounts,
    is_store_key,
    scan_metadata_keys,
    write_order,
)
from spinezarr.copying.to_files import read_checked
from spinezarr.errors import CorruptStoreError, DamagedMetadataError, UsageError
from spinezarr.progress import ProgressCounter
from spinezarr.remote.errors import retry_after_s
from spinezarr.remote.hub import HubLocation
from spinezarr.remote.requests import RemoteObjects
from spinezarr.store.attributes import OtherFormatError, parse_root
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog
from spinezarr.store.claim import check_root
from spinezarr.store.layout import METADATA, TABLE
from spinezarr.store.ledger import LEDGER_FILE, Ledger
from spinezarr.store.reader import StoreReader
from spinezarr.text import count_noun

__all__ = ["UPLOAD_SETTINGS", "HubTarget", "UploadSettings"]

T = TypeVar("T")

_MAX_FILES: Final = 100_000
_MAX_ENTRIES: Final = 10_000
_LIMIT: Final = (
    f"The hub recommends at most {_MAX_FILES:,} files in a repository and {_MAX_ENTRIES:,} entries "
    "in a folder (https://huggingface.co/docs/hub/storage-limits)."
)
_HTTP_CLIENTS: Final = {"httpx", "httpx2", "requests"}
"""Packages that versions of huggingface_hub send requests with."""
_AGAIN: Final = "Run the same command again; it uploads only what is missing."
_MESSAGE: Final = "Upload with spinezarr"


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """Bounds on the commits of an upload, and on their repetition."""

    files_per_commit: int = 256
    bytes_per_commit: int = 2 * 10**9
    attempts: int = 6
    """Attempts that each request gets."""
    first_wait_s: float = 1.0
    """Seconds before the second attempt. The pause doubles with each attempt."""
    longest_wait_s: float = 320.0
    """Longest pause in seconds; the hub counts requests in windows of 300 s."""


UPLOAD_SETTINGS: Final = UploadSettings()


@dataclass(frozen=True, slots=True)
class _HubFile:
    """A file as the hub lists it."""

    size_bytes: int
    git_sha1: str
    sha256: str | None
    """Hash of the content; None for a file that Git keeps itself."""

    def is_content(self, data: bytes) -> bool:
        """Whether bytes are the content of the file."""
        if len(data) != self.size_bytes:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        head = b"blob %d\0" % len(data)
        return hashlib.sha1(head + data, usedforsecurity=False).hexdigest() == self.git_sha1


class HubTarget:
    """A folder of a dataset repository that a store is uploaded to.

    Parameters
    ----------
    location
        The folder.
    token
        Token for the hub; None for none.

    Raises
    ------
    UsageError
        If ``huggingface_hub`` is not installed, or the place is a storage bucket.
    """

    def __init__(self, location: HubLocation, token: str | None) -> None:
        try:
            from huggingface_hub import HfApi  # noqa: PLC0415  optional and slow
        except ImportError as problem:
            raise UsageError(
                f"{location.url}: cannot be written: {problem}. Install it with: "
                "pip install 'spinezarr[hub]'"
            ) from problem
        if location.kind != "datasets":
            raise UsageError(
                f"{location.url}: is a storage bucket. Upload to it with 'hf buckets sync STORE "
                f"{location.url}', and check it with 'spinezarr verify {location.url}'."
            )
        self._location = location
        self._token = token
        self._api = HfApi(endpoint=location.endpoint, token=token or False)
        self._head = ""
        """The commit that the next commit follows."""
        self._files: dict[str, _HubFile] = {}

    def survey(self, plan: CopyPlan, *, repair: bool = False) -> CopyWork:  # noqa: ARG002
        """Return what :meth:`copy` would do, judged by the sizes of files."""
        self._list(plan)
        missing = [size for _, size in self._different_sizes(plan)]
        return CopyWork(
            all=plan.counts,
            to_copy=ScanCounts(
                len({key.split("/")[1] for key, _ in self._different_sizes(plan)}),
                len(missing),
                sum(missing),
            ),
            to_compare=plan.counts.objects - len(missing),
            limit=_LIMIT,
        )

    def _different_sizes(self, plan: CopyPlan) -> Iterator[tuple[str, int]]:
        """Yield key and size of each file of a scan that the hub lacks or has in another size."""
        for scan in plan.scans:
            sizes = {key: entry.size_bytes for key, entry in scan.files.items()}
            sizes[f"{scan.folder}/{METADATA}"] = len(scan.metadata)
            for key, size in sizes.items():
                if key not in self._files or self._files[key].size_bytes != size:
                    yield key, size

    def copy(
        self, plan: CopyPlan, reader: StoreReader, *, on_work: OnWork, counter: ProgressCounter
    ) -> CopyOutcome:
        """Upload scans.

        Parameters
        ----------
        plan
            The scans.
        reader
            The store, which is on disk.
        on_work
            Called with what has to be done, before anything is uploaded.
        counter
            Counts the bytes that are done.

        Raises
        ------
        UsageError
            If the store is not on disk, the repository does not exist or may not be written, or
            its folder holds something else.
        OSError
            If the hub does not answer, or somebody else has changed the repository meanwhile.
        """
        if reader.objects.is_remote:
            raise UsageError(
                f"{reader.name}: is not on disk. Fetch it first with 'spinezarr pull', then push "
                "the copy."
            )
        on_work(self.survey(plan))
        counter.expect(plan.counts.size_bytes)
        failed: dict[str, str] = {}
        changed: dict[str, dict[str, int]] = {}
        paths: list[tuple[str, int]] = []
        for scan in plan.scans:
            try:
                changed[scan.scan_id] = self._changed_files(scan, reader, counter)
            except CorruptStoreError as problem:
                failed[scan.scan_id] = str(problem)
                continue
            paths += changed[scan.scan_id].items()
        for batch in _batches(sorted(paths, key=lambda item: write_order(item[0]))):
            self._commit([self._add(key, Path(reader.path) / key) for key, _ in batch])
            counter.add(sum(size for _, size in batch))
        done = plan.only(changed)
        updated = self._publish(done)
        copied = tuple(s for s, files in changed.items() if files or s in updated)
        n_metadata = sum(len(scan.metadata) for scan in done.scans if scan.scan_id in updated)
        return CopyOutcome(
            copied=copied,
            kept=tuple(scan_id for scan_id in changed if scan_id not in copied),
            failed=failed,
            objects=len(paths) + len(updated),
            size_bytes=sum(size for _, size in paths) + n_metadata,
        )

    def check(self, plan: CopyPlan, reader: StoreReader) -> dict[str, str]:
        """Compare what the hub lists with the store on disk.

        Returns
        -------
        dict
            What differs, by key; empty if nothing does.
        """
        self._list(plan)
        problems: dict[str, str] = {}
        for scan in plan.scans:
            for key, entry in scan.files.items():
                if not self._has(key, read_checked(reader, key, entry)):
                    problems[key] = "is missing or differs"
        # The table may list further scans, so its content is not known here.
        small = {f"{scan.folder}/{METADATA}": scan.metadata for scan in plan.scans}
        problems |= {
            key: "is missing or differs" for key, data in small.items() if not self._has(key, data)
        }
        problems |= {
            key: "is missing"
            for key in (METADATA, f"{TABLE}/{METADATA}", LEDGER_FILE)
            if key not in self._files
        }
        return problems

    def _has(self, key: str, data: bytes) -> bool:
        return key in self._files and self._files[key].is_content(data)

    def _changed_files(
        self, scan: PlannedScan, reader: StoreReader, counter: ProgressCounter
    ) -> dict[str, int]:
        """Check the files of a scan on disk; return the sizes of those that the hub lacks."""
        changed: dict[str, int] = {}
        for key, entry in scan.files.items():
            if self._has(key, read_checked(reader, key, entry)):
                counter.add(entry.size_bytes)
            else:
                changed[key] = entry.size_bytes
        return changed

    def _publish(self, plan: CopyPlan) -> set[str]:
        """Commit all that makes scans visible; return the scans that it brings or changes."""
        from huggingface_hub import CommitOperationDelete  # noqa: PLC0415  optional and slow

        full = self._with_others(plan)
        own = {f"{scan.folder}/{METADATA}": scan for scan in plan.scans}
        files = {key: scan.metadata for key, scan in own.items()} | full.registry_files()
        new = {key: data for key, data in files.items() if not self._has(key, data)}
        wanted = files.keys() | {key for scan in plan.scans for key in scan.files}
        folders = {f"{scan.folder}/" for scan in plan.scans} | {f"{TABLE}/"}
        stale = sorted(
            key
            for key in self._files.keys() - wanted
            if any(key.startswith(folder) for folder in folders)
        )
        operations = [self._add(key, data) for key, data in new.items()]
        operations += [CommitOperationDelete(path_in_repo=self._path(key)) for key in stale]
        if operations:
            self._commit(operations)
        touched = {key.split("/")[1] for key in stale if not key.startswith(f"{TABLE}/")}
        return touched | {own[key].scan_id for key in new if key in own}

    def _with_others(self, plan: CopyPlan) -> CopyPlan:
        """Return a plan whose table also lists the other scans of the repository."""
        chosen = {scan.scan_id for scan in plan.scans}
        keys = [key for scan_id, key in scan_metadata_keys(self._files) if scan_id not in chosen]
        if not keys:
            return plan
        contents = self._read([*keys, LEDGER_FILE, AUDIT_FILE])
        ledger, audit = Ledger(), AuditLog()
        if LEDGER_FILE in contents:
            ledger = Ledger.of_file(contents.pop(LEDGER_FILE))
        if AUDIT_FILE in contents:
            audit = AuditLog.of_file(contents.pop(AUDIT_FILE))
        return plan.with_others(contents.values(), ledger, audit)

    def _read(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read small files of the repository; absent ones are left out."""
        location = replace(self._location, revision=self._head)
        objects = RemoteObjects(location.url, self._options)
        contents = objects.read([f"{objects.path}/{key}" for key in keys])
        return {path[len(objects.path) + 1 :]: data for path, data in contents.items()}

    @property
    def _options(self) -> dict[str, Any]:
        return {"endpoint": self._location.endpoint, "token": self._token or False}

    def _list(self, plan: CopyPlan) -> None:
        """List the folder, and refuse it if it holds something else than this store."""
        from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415  optional and slow
        from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415

        where = self._repository
        info = self._attempt(lambda: self._api.repo_info(**where))
        self._head = str(info.sha)
        listing = {**where, "revision": self._head}

        def entries() -> list[Any]:
            try:
                return list(
                    self._api.list_repo_tree(
                        path_in_repo=self._location.path or None, recursive=True, **listing
                    )
                )
            except EntryNotFoundError:
                return []

        start = f"{self._location.path}/" if self._location.path else ""
        self._files = {
            entry.path[len(start) :]: _HubFile(
                entry.size, entry.blob_id, None if entry.lfs is None else entry.lfs.sha256
            )
            for entry in self._attempt(entries)
            if isinstance(entry, RepoFile)
        }
        self._check_place(plan)

    def _check_place(self, plan: CopyPlan) -> None:
        name = self._location.url
        if METADATA in self._files:
            try:
                existing = parse_root(self._read([METADATA]).get(METADATA, b""))
            except (DamagedMetadataError, OtherFormatError) as problem:
                raise UsageError(
                    f"{name}/{METADATA}: is not the root of a store of this version ({problem}). "
                    "Choose another folder of the repository."
                ) from problem
            check_root(name, existing, plan.root.model_copy(update={"codec_profile": None}))
            return
        foreign = next((key for key in self._files if not is_store_key(key)), None)
        if foreign is not None:
            raise UsageError(
                f"{name}: holds {foreign!r} and is no store. Give a folder of the repository for "
                f"the store, such as {name}/{plan.root.dataset}.zarr."
            )

    @property
    def _repository(self) -> dict[str, Any]:
        return {
            "repo_id": self._location.repository,
            "repo_type": "dataset",
            "revision": self._location.revision,
        }

    def _path(self, key: str) -> str:
        """Return the path of a key in the repository."""
        return f"{self._location.path}/{key}" if self._location.path else key

    def _add(self, key: str, content: Path | bytes) -> Any:  # noqa: ANN401  optional package
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415  optional and slow

        source = str(content) if isinstance(content, Path) else content
        return CommitOperationAdd(path_in_repo=self._path(key), path_or_fileobj=source)

    def _commit(self, operations: list[Any]) -> None:
        """Make a commit, on top of the last one that this object knows of."""
        text = f"{_MESSAGE}: {count_noun(len(operations), 'file')}"

        def commit() -> Any:  # noqa: ANN401  optional package
            return self._api.create_commit(
                operations=operations,
                commit_message=text,
                parent_commit=self._head,
                **self._repository,
            )

        with _no_bars():
            self._head = str(self._attempt(commit).oid)

    def _attempt(self, request: Callable[[], T]) -> T:
        """Send a request, again if the hub is busy; raise an error that says what to do.

        ``huggingface_hub`` repeats most requests itself, but not commits.
        """
        for attempt in range(UPLOAD_SETTINGS.attempts):
            try:
                return request()
            except Exception as problem:
                error = self._error(problem)
                is_last = attempt == UPLOAD_SETTINGS.attempts - 1
                if error is None:
                    raise
                if is_last or not isinstance(error, _HubBusyError):
                    raise error from problem
                time.sleep(_pause_s(attempt, error.headers))
        raise AssertionError("unreachable")

    def _error(self, problem: Exception) -> Exception | None:
        """Return the error for a failed request; None if it is a fault of this program."""
        from huggingface_hub.errors import (  # noqa: PLC0415  optional and slow
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        name = self._location.url
        if isinstance(problem, RuntimeError) and isinstance(problem.__cause__, Exception):
            problem = problem.__cause__  # huggingface_hub reports a failed upload in this way
        if isinstance(problem, HFValidationError):
            return UsageError(f"{name}: {problem}")
        if isinstance(problem, RepositoryNotFoundError | RevisionNotFoundError):
            return UsageError(
                f"{name}: the hub has no such dataset repository or revision, or the token may not "
                f"see it. Make it with 'hf repos create {self._location.repository} --type "
                "dataset', and log in with 'hf auth login'."
            )
        if isinstance(problem, HfHubHTTPError):
            response = problem.response
            if response is None:
                return _HubBusyError(f"{name}: the hub answered nothing. {_AGAIN}")
            return _status_error(name, response.status_code, response.headers)
        is_network = type(problem).__module__.partition(".")[0] in _HTTP_CLIENTS
        text = "the hub does not answer. Check HF_ENDPOINT and the network"
        return _HubBusyError(f"{name}: {text}. {_AGAIN}") if is_network else None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing progress bars of its own."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415  optional and slow
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _status_error(name: str, status: int, headers: Mapping[str, str]) -> Exception:
    """Return the error for a status of a response."""
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return UsageError(
            f"{name}: the token may not write this repository ({status}). Log in with 'hf auth "
            "login', or set HF_TOKEN to a token that may write."
        )
    if status in {HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED}:
        return ConnectionError(f"{name}: the repository has changed meanwhile. {_AGAIN}")
    text = f"{name}: the hub answered {status}. {_AGAIN}"
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        busy = _HubBusyError(text)
        busy.headers = dict(headers)
        return busy
    return ConnectionError(text)


class _HubBusyError(ConnectionError):
    """A request failed that may succeed later."""

    headers: Mapping[str, str] = MappingProxyType({})
    """Headers of the response."""


def _pause_s(attempt: int, headers: Mapping[str, str]) -> float:
    """Return the seconds to wait before another attempt."""
    lower = {name.lower(): text for name, text in headers.items()}
    asked = retry_after_s(lower) or 0.0
    # No secret depends on this random number.
    backoff = UPLOAD_SETTINGS.first_wait_s * 2.0**attempt * random.uniform(0.5, 1.0)  # noqa: S311
    return min(max(asked, backoff), UPLOAD_SETTINGS.longest_wait_s)


def _batches(files: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Split files with their sizes into commits. Voxels and metadata are never in one commit."""
    settings = UPLOAD_SETTINGS
    batch: list[tuple[str, int]] = []
    size_bytes = 0
    for key, size in files:
        has_too_many = len(batch) == settings.files_per_commit
        is_full = has_too_many or size_bytes + size > settings.bytes_per_commit
        is_next_kind = bool(batch) and write_order(batch[0][0])[0] != write_order(key)[0]
        if batch and (is_full or is_next_kind):
            yield batch
            batch, size_bytes = [], 0
        batch.append((key, size))
        size_bytes += size
    if batch:
        yield batch
