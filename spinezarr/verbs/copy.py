"""How is a store copied to a bucket or hub (push), and from there to a disk (pull)?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spinezarr.copying.outcome import CopyOutcome, CopyWork
from spinezarr.copying.plan import CopyPlan
from spinezarr.copying.to_files import copy_to_files, survey_files
from spinezarr.copying.to_hub import HubTarget
from spinezarr.errors import ReadOnlyStoreError, UsageError
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.redaction import redact_url
from spinezarr.remote.hub import HUB_SCHEME, HubLocation, hub_token
from spinezarr.store.files import is_read_only, open_store
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.store.writable import WritableStore
from spinezarr.text import count_noun, megabytes
from spinezarr.verbs.derive import is_same_place
from spinezarr.verbs.export import restricted_masks, scans_to_share
from spinezarr.verify.fault import Fault
from spinezarr.verify.store import verify_store

__all__ = ["CopyReport", "describe_work", "pull", "push"]

_HUB_OPTIONS: Final = {"endpoint", "token"}


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What ``spinezarr push`` or ``spinezarr pull`` did."""

    source: str
    """Path or URL of the store that was copied, without secrets."""
    target: str
    """Path or URL of the copy, without secrets."""
    work: CopyWork
    """What had to be done."""
    outcome: CopyOutcome | None
    """What was done; None for a dry run."""
    left_out: Mapping[str, str]
    """License of each scan that was left out because it allows no derivatives, by scan id."""
    left_out_masks: Mapping[str, Mapping[str, str]]
    """License of each further mask that was left out for the same reason, by mask and scan id."""
    faults: tuple[Fault, ...] = field(default=())
    """Differences between the copy and the manifests, found after the copy was made."""

    @property
    def exit_code(self) -> int:
        """0 if all scans are in the copy and it is intact, else 1."""
        failed = self.outcome is not None and self.outcome.failed
        return 1 if failed or self.faults else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        outcome = self.outcome
        done = outcome or CopyOutcome()
        return {
            "source": self.source,
            "target": self.target,
            "dry_run": outcome is None,
            "scans": self.work.all.scans,
            "objects": self.work.all.objects,
            "bytes": self.work.all.size_bytes,
            "objects_to_copy": self.work.to_copy.objects,
            "bytes_to_copy": self.work.to_copy.size_bytes,
            "objects_to_compare": self.work.to_compare,
            "copied": list(done.copied),
            "kept": list(done.kept),
            "failed": dict(done.failed),
            "objects_written": done.objects,
            "bytes_written": done.size_bytes,
            "left_out": dict(self.left_out),
            "left_out_masks": {name: dict(scans) for name, scans in self.left_out_masks.items()},
            "faults": [fault.to_json() for fault in self.faults],
        }


def push(
    reader: StoreReader,
    selection: ScanSelection,
    target: str,
    *,
    storage_options: Mapping[str, Any],
    repair: bool,
    dry_run: bool,
    include_restricted: bool,
    on_progress: OnProgress,
) -> CopyReport:
    """Copy a store to a place that others read; see :meth:`spinezarr.Store.push`."""
    reader = _current(reader, target)
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    masks = {} if include_restricted else _restricted_further_masks(reader, scan_ids)
    return _copy(
        reader,
        scan_ids,
        target,
        command="push",
        options=storage_options if "://" in target else {},
        repair=repair,
        dry_run=dry_run,
        left_out=left_out,
        left_out_masks=masks,
        on_progress=on_progress,
    )


def pull(
    reader: StoreReader,
    selection: ScanSelection,
    folder: str | os.PathLike[str],
    *,
    repair: bool,
    dry_run: bool,
    on_progress: OnProgress,
) -> CopyReport:
    """Copy a store to a folder on disk; see :meth:`spinezarr.Store.pull`."""
    target = os.fspath(folder)
    if "://" in target:
        raise UsageError(f"{redact_url(target)}: is a URL. 'spinezarr push' copies to URLs.")
    reader = _current(reader, target)
    return _copy(
        reader,
        list(selection.scan_ids(reader.columns, reader.name)),
        target,
        command="pull",
        options={},
        repair=repair,
        dry_run=dry_run,
        left_out={},
        left_out_masks={},
        on_progress=on_progress,
    )


def _current(reader: StoreReader, target: str) -> StoreReader:
    """Return a reader of the store as it is now, which is another place than the target."""
    if is_same_place(reader.url, target):
        raise UsageError(f"{reader.name}: is the store that is copied. Choose another place.")
    return StoreReader(reader.url, reader.storage_options)


def _restricted_further_masks(
    reader: StoreReader, scan_ids: list[str]
) -> dict[str, dict[str, str]]:
    names = {name for scan_id in scan_ids for name in reader.scan(scan_id).masks}
    return restricted_masks(reader, scan_ids, sorted(names))


def _copy(
    reader: StoreReader,
    scan_ids: list[str],
    target: str,
    *,
    command: Literal["push", "pull"],
    options: Mapping[str, Any],
    repair: bool,
    dry_run: bool,
    left_out: Mapping[str, str],
    left_out_masks: Mapping[str, Mapping[str, str]],
    on_progress: OnProgress,
) -> CopyReport:
    if not scan_ids:
        raise UsageError(
            f"{reader.name}: has no scan that meets all of the conditions. See 'spinezarr info' "
            "for the scans that it has."
        )
    plan = CopyPlan.of(reader, scan_ids, left_out_masks)
    counter = ProgressCounter(on_progress, command)
    found: list[CopyWork] = []

    def on_work(work: CopyWork) -> None:
        found.append(work)
        counter.say(describe_work(work))

    outcome: CopyOutcome | None = None
    faults: tuple[Fault, ...] = ()
    name = redact_url(target)
    if target.startswith(f"{HUB_SCHEME}://"):
        hub = _hub_target(target, options)
        if dry_run:
            on_work(hub.survey(plan))
        else:
            outcome = hub.copy(plan, reader, on_work=on_work, counter=counter)
            good = plan.only({*outcome.copied, *outcome.kept})
            faults = tuple(
                Fault(None, key, "damaged", problem, "the file on disk")
                for key, problem in hub.check(good, reader).items()
            )
        return CopyReport(reader.name, name, found[0], outcome, left_out, left_out_masks, faults)
    store = _files_target(target, options, name, command)
    if dry_run:
        on_work(survey_files(plan, store, repair=repair))
    else:
        try:
            outcome = copy_to_files(
                plan,
                reader,
                store,
                repair=repair,
                purpose=f"'spinezarr {command}'",
                on_work=on_work,
                counter=counter,
            )
        except ReadOnlyStoreError as problem:
            raise UsageError(str(problem)) from problem
        checking = ProgressCounter(on_progress, "verify")
        verification = verify_store(
            target,
            list(outcome.copied),
            storage_options=options,
            on_total=checking.expect,
            on_bytes=checking.add,
        )
        faults = verification.faults
    return CopyReport(reader.name, name, found[0], outcome, left_out, left_out_masks, faults)


def _files_target(
    target: str, options: Mapping[str, Any], name: str, command: str
) -> WritableStore:
    fs, path = open_store(target, options)
    if is_read_only(fs):
        raise UsageError(
            f"{name}: web servers are only read. Push to a bucket (s3://), a hub (hf://) or a path."
        )
    if "://" not in target and Path(target).is_symlink() and not Path(target).exists():
        raise UsageError(f"{name}: is a link to nothing. 'spinezarr {command}' needs a folder.")
    return WritableStore(fs, path, name)


def _hub_target(target: str, options: Mapping[str, Any]) -> HubTarget:
    known = {key: value for key, value in options.items() if key in _HUB_OPTIONS}
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"{redact_url(target)}: the option {unknown[0]!r} is for S3 and does not apply to a "
            "hub. Set HF_ENDPOINT and HF_TOKEN, or log in with 'hf auth login'."
        )
    location = HubLocation.parse(target, known.get("endpoint"))
    return HubTarget(location, hub_token(known.get("token")))


def describe_work(work: CopyWork) -> str:
    """Return a sentence on what has to be copied, for people.

    Examples
    --------
    >>> from spinezarr.copying.plan import ScanCounts
    >>> work = CopyWork(ScanCounts(2, 20, 30_000_000), ScanCounts(1, 1, 5_000_000), 4, "No limit.")
    >>> describe_work(work)
    '2 scans: 20 objects, 30.0 MB. To copy: 1 object, 5.0 MB; to compare: 4 objects. No limit.'
    """
    compare = f"; to compare: {count_noun(work.to_compare, 'object')}" if work.to_compare else ""
    return (
        f"{count_noun(work.all.scans, 'scan')}: {count_noun(work.all.objects, 'object')}, "
        f"{megabytes(work.all.size_bytes)}. To copy: "
        f"{count_noun(work.to_copy.objects, 'object')}, "
        f"{megabytes(work.to_copy.size_bytes)}{compare}. {work.limit}"
    )
