"""How is a store made from a store, given the scans, masks, spacing and part that a user wants?"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinezarr.derive.job import DeriveJob, StoredSource
from spinezarr.derive.parameters import Derivation
from spinezarr.derive.scan import ScanOrigin
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.ingestion.run import RunReport, open_writer, run_job
from spinezarr.progress import OnProgress
from spinezarr.store.layout import LABEL, profile_named
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.verbs.damage import find_damage
from spinezarr.verbs.export import allows_derivatives, check_has_mask, scans_to_share
from spinezarr.verbs.ingest_progress import IngestProgress
from spinezarr.verbs.workers import check_worker_options, chosen_workers

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DeriveReport", "derive", "is_same_place"]


@dataclass(frozen=True, slots=True)
class DeriveReport(RunReport):
    """The result of deriving a store."""

    source: str
    """Path or URL of the store that was read, without secrets."""
    derivation: str
    """How the scans were derived, for people."""
    left_out: Mapping[str, str]
    """License of each scan that was left out because it allows no derivatives, by scan id."""
    left_out_masks: Mapping[str, Mapping[str, str]]
    """License of each further mask that was left out for the same reason, by mask and scan id."""


def derive(
    reader: StoreReader,
    selection: ScanSelection,
    out: str,
    derivation: Derivation,
    *,
    layers: Sequence[str] | None,
    codec: str | None,
    workers: int | None,
    scheduler: "str | Client | None",
    scratch: str | None,
    repair: bool,
    include_restricted: bool,
    storage_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> DeriveReport:
    """Make a store from a store; see :meth:`spinezarr.Store.derive`."""
    check_worker_options(workers, scheduler, scratch)
    # Scans may have been replaced since the store was opened.
    reader = StoreReader(reader.url, reader.storage_options)
    if is_same_place(reader.url, out):
        raise UsageError(f"{reader.name}: is the store that is read. Choose another place.")
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    if not scan_ids:
        raise UsageError(
            f"{reader.name}: has no scan to derive that meets all of the conditions. See "
            "'spinezarr info' for the scans that it has."
        )
    _check_layers(reader, scan_ids, layers)
    sources = _Sources.read(
        reader, scan_ids, layers, derivation, include_restricted=include_restricted
    )
    description = derivation.describe()
    if reader.root.derivation is not None:
        description = f"{reader.root.derivation}; then {description}"
    root = reader.root.model_copy(
        update={
            "codec_profile": None if codec is None else profile_named(codec).name,
            "derived_from": reader.name,
            "derivation": description,
        }
    )
    options = storage_options if "://" in out else {}
    job = DeriveJob(
        source_url=reader.url,
        source_options=reader.storage_options or {},
        store=open_writer(out, root, options, repair=repair),
        derivation=derivation,
        scratch=scratch,
    )
    with chosen_workers(workers, scheduler, "derive", on_progress) as chosen:
        report = run_job(
            job,
            sources.scans,
            purpose="'spinezarr derive'",
            layers=[name for source in sources.scans for name in source.mask_names],
            failing=sources.failing,
            listener=IngestProgress(sources.scans, on_progress, "derive"),
            workers=chosen,
            find_damaged=partial(find_damage, out, options, on_progress) if repair else None,
        )
    return DeriveReport(
        **{item.name: getattr(report, item.name) for item in fields(report)},
        source=reader.name,
        derivation=description,
        left_out=left_out,
        left_out_masks=sources.left_out_masks,
    )


def is_same_place(store: str, other: str) -> bool:
    """Whether two paths or URLs lead to one store."""
    if "://" in store or "://" in other:
        return store.rstrip("/") == other.rstrip("/")
    return Path(store).resolve() == Path(other).resolve()


def _check_layers(
    reader: StoreReader, scan_ids: Sequence[str], layers: Sequence[str] | None
) -> None:
    """Refuse a mask that none of the scans has."""
    for name in layers or ():
        if name == LABEL:
            raise UsageError(f"--layer {LABEL}: a derived store has this mask in any case.")
        check_has_mask(reader, ScanSelection.of(scans=scan_ids), name)


@dataclass(frozen=True, slots=True)
class _Sources:
    """The scans that are derived, and what is left out."""

    scans: list[StoredSource] = field(default_factory=list)
    failing: list[tuple[str, str]] = field(default_factory=list)
    """Scans that cannot be derived, with the reason."""
    left_out_masks: dict[str, dict[str, str]] = field(default_factory=dict)
    """License of each further mask that allows no derivatives, by mask and scan id."""

    @classmethod
    def read(
        cls,
        reader: StoreReader,
        scan_ids: Sequence[str],
        layers: Sequence[str] | None,
        derivation: Derivation,
        *,
        include_restricted: bool,
    ) -> "_Sources":
        """Read what is known of the scans before they are derived."""
        sources = cls()
        with suppress(SpinezarrError):  # the loop finds the scan again and reports it
            reader.prefetch_scans(scan_ids)
        for scan_id in scan_ids:
            try:
                scan = reader.scan(scan_id)
                names = [name for name in scan.masks if layers is None or name in layers]
                if not include_restricted:
                    names = sources.without_restricted(scan, names)
                origin = ScanOrigin.of(reader.name, scan, names, derivation)
                sources.scans.append(StoredSource.of(origin))
            except SpinezarrError as problem:
                sources.failing.append((scan_id, str(problem)))
        return sources

    def without_restricted(self, scan: ScanHandle, names: Sequence[str]) -> list[str]:
        """Return the masks whose license allows derivatives, and record the others."""
        shared = []
        for name in names:
            license = scan.attributes.masks[name].license
            if allows_derivatives(license):
                shared.append(name)
            else:
                self.left_out_masks.setdefault(name, {})[scan.attributes.scan_id] = license
        return shared
