"""Is a scan intact: its metadata, and every file that its manifest names?"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.layout import IMAGE, chunk_grid, counts_key, scan_key
from spinezarr.store.scan_handle import ArraySpec, ScanHandle, parse_scan
from spinezarr.store.sealed import parse_json, unseal
from spinezarr.store.sharding import ChunkDamagedError, decode_chunk
from spinezarr.verify.fault import Fault
from spinezarr.verify.files import OnBytes, StoreFiles, read_error, seal_problem, unreadable
from spinezarr.verify.shard import check_shard

__all__ = ["CheckedScan", "check_scan"]


@dataclass(frozen=True, slots=True)
class CheckedScan:
    """Result of the check of one scan."""

    scan_id: str
    attributes: ScanAttributes | None
    """Attributes of the scan; None if they cannot be read."""
    faults: tuple[Fault, ...]


def check_scan(
    files: StoreFiles, scan_id: str, root: RootAttributes | None, on_bytes: OnBytes
) -> CheckedScan:
    """Read every byte of a scan and check it.

    Parameters
    ----------
    files
        Files of the store.
    scan_id
        Name of the scan's folder.
    root
        Attributes of the root, whose dataset the scan must have; None if they are unknown.
    on_bytes
        Called with the number of bytes of each read.
    """
    key = f"{scan_key(scan_id)}/zarr.json"
    written = "the metadata of this scan as spinezarr wrote them"
    try:
        raw = files.read(key)
    except OSError as problem:
        return CheckedScan(scan_id, None, (read_error(scan_id, key, problem, written),))
    on_bytes(len(raw))
    if (found := seal_problem(raw)) is not None:
        return CheckedScan(scan_id, None, (Fault(scan_id, key, "damaged", found, written),))
    try:
        scan = parse_scan(raw, f"{files.path}/{scan_key(scan_id)}")
    except DamagedMetadataError as error:
        return CheckedScan(
            scan_id, None, (Fault(scan_id, key, "damaged", unreadable(error), written),)
        )
    check = _Check(files, scan_id, scan, unseal(raw)["consolidated_metadata"]["metadata"], on_bytes)
    faults = (*_identity_faults(scan.attributes, scan_id, key, root), *check.faults())
    return CheckedScan(scan_id, scan.attributes, faults)


def _identity_faults(
    scan: ScanAttributes, scan_id: str, key: str, root: RootAttributes | None
) -> Iterator[Fault]:
    if scan.scan_id != scan_id:
        yield Fault(scan_id, key, "misplaced", f"scan {scan.scan_id!r}", f"scan {scan_id!r}")
    if root is not None and scan.dataset != root.dataset:
        found, expected = f"a scan of dataset {scan.dataset!r}", f"one of {root.dataset!r}"
        yield Fault(scan_id, key, "misplaced", found, expected)


class _Check:
    """Checks the files of a scan whose metadata can be read."""

    def __init__(
        self,
        files: StoreFiles,
        scan_id: str,
        scan: ScanHandle,
        consolidated: dict[str, dict[str, object]],
        on_bytes: OnBytes,
    ) -> None:
        self._files = files
        self._scan_id = scan_id
        self._scan = scan
        self._consolidated = consolidated
        self._on_bytes = on_bytes
        self._folder = scan_key(scan_id)

    def faults(self) -> Iterator[Fault]:
        manifest = self._scan.attributes.manifest
        chunks = {spec.name: self._chunks(spec) for spec in self._scan.all_arrays}
        shards = {
            f"{spec.name}/{chunk_key(shard, spec.separator)}": (spec, shard, entry)
            for spec in self._scan.all_arrays
            for shard, entry in spec.shards.items()
        }
        for key, entry in manifest.items():
            if key in shards:
                spec, shard, shard_entry = shards[key]
                yield from check_shard(
                    self._files,
                    spec,
                    shard,
                    shard_entry,
                    chunks=chunks[spec.name],
                    on_bytes=self._on_bytes,
                )
                continue
            path = f"{self._folder}/{key}"
            file_faults = self._files.check(self._scan_id, path, entry, self._on_bytes)
            yield from file_faults or self._metadata_faults(key)
        yield from self._absent_shards()
        yield from self._absent_metadata()

    def _metadata_faults(self, key: str) -> Iterator[Fault]:
        """Compare the metadata file of an array with the consolidated copy that readers use."""
        name, separator, file = key.rpartition("/")
        if not separator or file != "zarr.json":
            return
        try:
            metadata = parse_json(self._files.read(f"{self._folder}/{key}"))
        except DamagedMetadataError:
            metadata = None  # the bytes are those of the manifest, but no metadata
        except OSError as problem:
            expected = "metadata of an array that can be read"
            yield read_error(self._scan_id, f"{self._folder}/{key}", problem, expected)
            return
        consolidated = dict(self._consolidated.get(name, {}))
        if consolidated.get("node_type") == "group":
            consolidated.pop("consolidated_metadata", None)
        if metadata != consolidated:
            expected = f"those in {self._folder}/zarr.json"
            yield Fault(
                self._scan_id, f"{self._folder}/{key}", "damaged", "other metadata", expected
            )

    def _absent_shards(self) -> Iterator[Fault]:
        """Find shards that the manifest lacks."""
        for spec in self._scan.all_arrays:
            chunks = self._chunks(spec)
            per_shard = spec.chunks_per_shard_zyx
            needed = {
                tuple(i // n for i, n in zip(chunk, per_shard, strict=True))
                for chunk in chunks or ()
            }
            for shard in sorted(needed - set(spec.shard_sizes)):
                path = f"{self._folder}/{spec.name}/{chunk_key(shard, spec.separator)}"
                yield Fault(self._scan_id, path, "missing", "not in the manifest", "a shard")

    def _absent_metadata(self) -> Iterator[Fault]:
        for name in self._consolidated:
            if f"{name}/zarr.json" not in self._scan.attributes.manifest:
                path = f"{self._folder}/{name}/zarr.json"
                yield Fault(self._scan_id, path, "missing", "not in the manifest", "metadata")

    def _chunks(self, spec: ArraySpec) -> frozenset[ShapeZYX] | None:
        """Return the chunks that an array must hold; None if they are unknown."""
        if spec.name == IMAGE:
            nz, ny, nx = chunk_grid(spec.shape_zyx, spec.chunk_shape_zyx)
            return frozenset(product(range(nz), range(ny), range(nx)))
        counts = np.empty((self._scan.label_chunk_rows[spec.name], 5), np.uint32)
        if counts.size:
            try:
                key = f"{counts_key(spec.name)}/{chunk_key((0, 0), spec.separator)}"
                decode_chunk(self._files.read(f"{self._folder}/{key}"), counts)
            except (OSError, ChunkDamagedError):
                return None  # the check of that file reports it
        return frozenset((z, y, x) for z, y, x in counts[:, 1:4].tolist())
