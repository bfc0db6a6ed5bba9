"""How do clients read a store that cannot read shards, or cannot cache ranges?

Below ``/flat/<store>/``, the arrays have no shards: each chunk is an object of its own. Browsers
and caches keep whole objects, but no ranges. The bytes of a chunk are the same as in its shard,
checksum included.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from spinezarr.serve.served_files import (
    GoneError,
    ServedFile,
    ServedFolder,
    ServedScan,
    UnreadableError,
    chunk_index,
    part_of,
    split_scan_key,
)
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.layout import IMAGE, LABEL, chunk_grid
from spinezarr.store.manifest import ShardEntry

__all__ = ["UnshardedFolder"]

_METADATA: Final = "zarr.json"
_OF_SHARDS: Final = {"manifest", "metadata_crc32c"}
"""Attributes that describe the stored files, which these trees do not show."""


class UnshardedFolder:
    """The files of a store, with arrays that have no shards.

    Parameters
    ----------
    folder
        The stored files.
    """

    def __init__(self, folder: ServedFolder) -> None:
        self._folder = folder

    def find(self, key: str, version: str | None = None) -> ServedFile | None:
        """See :meth:`spinezarr.serve.served_files.ServedFolder.find`."""
        scan_id, within = split_scan_key(key)
        array = within.partition("/")[0]
        if within != _METADATA and array not in {IMAGE, LABEL}:
            return self._folder.find(key, version)
        scan = self._folder.scan(scan_id, version)
        if scan is None:
            if within.endswith(_METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store any more.")
        if within == _METADATA:
            return _flattened(self._folder.metadata(scan_id, scan))
        if within.endswith(f"/{_METADATA}"):
            found = self._folder.file(scan_id, within, scan)
            return None if found is None else _flattened(found)
        return self._chunk(scan_id, array, within[len(array) + 1 :], scan)

    def _chunk(self, scan_id: str, name: str, key: str, scan: ServedScan) -> ServedFile | None:
        array = scan.group.arrays.image if name == IMAGE else scan.group.arrays.label
        grid = None if array is None else chunk_grid(array.shape, array.chunk_shape_zyx)
        index = None if grid is None else chunk_index(key, scan.group.arrays.separator, grid)
        if array is None or index is None:
            raise GoneError(f"scan {scan_id!r} has no such chunk any more.")
        per_shard = tuple(
            s // c for s, c in zip(array.shard_shape_zyx, array.chunk_shape_zyx, strict=True)
        )
        shard, within = zip(
            *(divmod(i, n) for i, n in zip(index, per_shard, strict=True)), strict=True
        )
        shard_key = f"{name}/{chunk_key(shard, array.separator)}"
        entry = scan.entries.get(shard_key)
        if not isinstance(entry, ShardEntry):
            return None  # a shard of background is not stored
        rows = entry.chunk_rows
        position = int(np.ravel_multi_index(within, per_shard))
        at = int(np.searchsorted(rows["position"], position))
        if at == len(rows) or rows["position"][at] != position:
            return None
        file = self._folder.file(scan_id, shard_key, scan)
        if file is None:
            raise UnreadableError(f"{shard_key} cannot be read.")
        start = int(rows["size"][:at].sum(dtype=np.int64))
        return part_of(file, start, start + int(rows["size"][at]))


def _flattened(found: ServedFile) -> ServedFile:
    """Return the metadata of a scan, or of one of its arrays, without shards."""
    node: dict[str, Any] = json.loads(found.read(0, found.size_bytes))
    if node["node_type"] == "array":
        return ServedFile.of(_dumped(_flat(node)))
    attributes = {k: v for k, v in node["attributes"].items() if k not in _OF_SHARDS}
    together = node["consolidated_metadata"]
    arrays = {
        name: _flat(node) if name in {IMAGE, LABEL} else node
        for name, node in together["metadata"].items()
    }
    changed = {
        "attributes": attributes,
        "consolidated_metadata": {**together, "metadata": arrays},
    }
    return ServedFile.of(_dumped({**node, **changed}))


def _flat(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an array whose chunks are the inner chunks of the shards."""
    shards = next(c for c in node["codecs"] if c["name"] == "sharding_indexed")["configuration"]
    grid = {"name": "regular", "configuration": {"chunk_shape": shards["chunk_shape"]}}
    return {**node, "chunk_grid": grid, "codecs": shards["codecs"]}


def _dumped(node: Mapping[str, Any]) -> bytes:
    return json.dumps(node).encode()
