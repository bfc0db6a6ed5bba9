"""What does a worker do to derive one scan, in this process or on another machine?"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from spinezarr.derive.parameters import Derivation
from spinezarr.derive.scan import ScanOrigin, derive_scan, derived_metadata, is_current
from spinezarr.errors import ScanChangedError
from spinezarr.ingestion.job import LayerOutcome, LayerResult, ScanResult, ScanTask, keep_voxels
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.redaction import redact_url
from spinezarr.store.audit_log import scan_identity
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.ledger import hash_inputs
from spinezarr.store.reader import StoreReader
from spinezarr.store.writer import StoreWriter
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for

__all__ = ["DeriveJob", "StoredSource"]


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A stored scan that another one is derived from."""

    scan_id: str
    read_bytes: int
    """Size of the shards that are read."""
    content_checksum: str
    """Hash of grid, type and voxels of image and mask."""
    identity: str
    """Hash of all that is stored of the scan without its further masks."""
    masks: tuple[tuple[str, str], ...]
    """Names of the further masks that are carried over, and a hash of each."""

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the further masks that are carried over."""
        return tuple(name for name, _ in self.masks)

    @classmethod
    def of(cls, origin: ScanOrigin) -> "StoredSource":
        """Describe the source of an origin."""
        scan = origin.scan
        # A saved comparison is not carried over.
        records = {
            name: record.model_copy(update={"comparison": None})
            for name, record in scan.attributes.masks.items()
        }
        return cls(
            scan_id=scan.attributes.scan_id,
            read_bytes=sum(sum(array.shard_sizes.values()) for array in origin.arrays),
            content_checksum=scan.content_checksum,
            identity=scan_identity(scan.attributes),
            masks=tuple(
                (name, hash_inputs(scan.masks[name].content_checksum, records[name]))
                for name in origin.masks
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class DeriveJob:
    """Settings of all scans of one derivation; a :class:`~spinezarr.ingestion.job.ScanJob`."""

    source_url: str = field(repr=False)
    """Path or URL of the store that is read."""
    source_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    derivation: Derivation
    scratch: str | None
    """Folder for scratch files; None for that of a local store."""

    def input_hasher(self) -> Callable[[StoredSource], str]:
        """See :class:`~spinezarr.ingestion.job.ScanJob`."""
        shared = canonical_json(self.derivation)
        return lambda source: hash_inputs(shared, source)

    @property
    def cannot_repair(self) -> str:
        """See :class:`~spinezarr.ingestion.job.ScanJob`."""
        return (
            "its stored files are damaged, and it is not among the scans that were chosen from "
            f"{redact_url(self.source_url)}. Choose it too if that store has it, or copy the scan "
            "from an undamaged store."
        )

    def stamp_of(self, source: StoredSource) -> str:
        """See :class:`~spinezarr.ingestion.job.ScanJob`."""
        return source.content_checksum

    def portable(self) -> Self:
        """See :class:`~spinezarr.ingestion.job.Job`."""
        if "://" in self.source_url:
            return self
        return replace(self, source_url=str(Path(self.source_url).absolute()))

    def run(
        self, task: ScanTask[StoredSource], pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Derive one scan; see :class:`~spinezarr.ingestion.job.Job`."""
        source = task.source
        reader = StoreReader(self.source_url, self.source_options, with_table=False)
        scan = reader.scan(source.scan_id)
        has_masks = scan.masks.keys() >= {*source.mask_names}
        if scan.content_checksum != source.content_checksum or not has_masks:
            raise ScanChangedError(
                f"{reader.name}: scan {source.scan_id!r} was replaced, or lost a mask, while it "
                "was derived. Run the same command again.",
                source.scan_id,
            )
        origin = ScanOrigin.of(
            redact_url(self.source_url), scan, source.mask_names, self.derivation
        )
        # Another worker may have published the scan in this very run, and died before its report.
        scans = self.store.scans
        stored = (scans.published if task.stored else scans.complete)(source.scan_id)
        is_whole = not task.damaged and task.damaged_masks.isdisjoint(source.mask_names)
        if stored is not None and is_whole and is_current(stored, origin):
            result = keep_voxels(self.store, stored, derived_metadata(origin, dict(stored)))
            outcome = result.outcome if task.stored else "done"
            layers = _layers(source, "already in the store" if task.stored else "done")
            return replace(result, outcome=outcome, layers=layers)
        earlier = None if stored is None else stored.derived_from
        derived = derive_scan(
            origin,
            Engine(fetcher_for(reader.objects)),
            self.store,
            replaced_masks=() if earlier is None else tuple(earlier.mask_checksums),
            pool=pool,
            memory=MemoryBudget(),
            scratch=self.scratch or self.store.local_folder,
            on_share=on_share,
        )
        return ScanResult(source.scan_id, "done", derived, layers=_layers(source, "done"))


def _layers(source: StoredSource, outcome: LayerOutcome) -> tuple[LayerResult, ...]:
    """Return what became of the masks of a scan, which are published with it."""
    return tuple(LayerResult(name, outcome) for name in source.mask_names)
