"""How do clients that cannot read shards, or cannot cache ranges, read a store?

Below ``/flat/<store>/``, the arrays have no shards: each chunk is a separate object. Browsers and
caches keep whole objects, but no ranges. The bytes of a chunk, with its checksum, are the same as
in the shard.
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
    file_range,
    split_scan_key,
)
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.layout import IMAGE, LABEL, METADATA, chunk_grid, is_mask_name
from spinezarr.store.manifest import ShardEntry

__all__ = ["UnshardedFolder"]

_FILE_ATTRIBUTES: Final = {"manifest", "metadata_crc32c"}
"""Attributes that describe the stored files, which do not exist in this tree."""


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
        scan_id, key_in_scan = split_scan_key(key)
        array = key_in_scan.partition("/")[0]
        if key_in_scan != METADATA and not _is_volume(array):
            return self._folder.find(key, version)
        scan = self._folder.scan(scan_id, version)
        if scan is None:
            if key_in_scan.endswith(METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store any more.")
        if key_in_scan == METADATA:
            return _without_shards(self._folder.metadata(scan_id, scan))
        if key_in_scan.endswith(f"/{METADATA}"):
            file = self._folder.file(scan_id, key_in_scan, scan)
            return None if file is None else _without_shards(file)
        return self._chunk(scan_id, array, key_in_scan[len(array) + 1 :], scan)

    def _chunk(self, scan_id: str, name: str, key: str, scan: ServedScan) -> ServedFile | None:
        array = scan.group.arrays.volumes.get(name)
        grid = None if array is None else chunk_grid(array.shape, array.chunk_shape_zyx)
        index = None
        if array is not None and grid is not None:
            index = chunk_index(key, array.separator, grid)
        if array is None or index is None:
            raise GoneError(f"scan {scan_id!r} has no such chunk any more.")
        per_shard = tuple(
            s // c for s, c in zip(array.shard_shape_zyx, array.chunk_shape_zyx, strict=True)
        )
        shard, chunk_in_shard = zip(
            *(divmod(i, n) for i, n in zip(index, per_shard, strict=True)), strict=True
        )
        shard_key = f"{name}/{chunk_key(shard, array.separator)}"
        entry = scan.entries.get(shard_key)
        if not isinstance(entry, ShardEntry):
            return None  # background is not stored
        positions = entry.rows(array.coding)["position"]
        position = int(np.ravel_multi_index(chunk_in_shard, per_shard))
        row = int(np.searchsorted(positions, position))
        if row == len(positions) or positions[row] != position:
            return None
        file = self._folder.file(scan_id, shard_key, scan)
        if file is None:
            raise UnreadableError(f"{shard_key} cannot be read.")
        sizes = entry.chunk_sizes(array.coding)
        start = int(sizes[:row].sum())
        return file_range(file, start, start + int(sizes[row]))


def _without_shards(file: ServedFile) -> ServedFile:
    """Return the metadata of a scan, or of one of its arrays, without shards."""
    node: dict[str, Any] = json.loads(file.read(0, file.size_bytes))
    if node["node_type"] == "array":
        return ServedFile.of(_json_bytes(_unsharded_array(node)))
    attributes = {k: v for k, v in node["attributes"].items() if k not in _FILE_ATTRIBUTES}
    consolidated = node["consolidated_metadata"]
    arrays = {
        name: _unsharded_array(node) if _is_volume(name) else node
        for name, node in consolidated["metadata"].items()
    }
    changed = {
        "attributes": attributes,
        "consolidated_metadata": {**consolidated, "metadata": arrays},
    }
    return ServedFile.of(_json_bytes({**node, **changed}))


def _is_volume(name: str) -> bool:
    """Whether an array of a scan is sharded: the image, or a mask."""
    return name in {IMAGE, LABEL} or is_mask_name(name)


def _unsharded_array(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an array whose chunks are the inner chunks of the shards."""
    shards = next(c for c in node["codecs"] if c["name"] == "sharding_indexed")["configuration"]
    grid = {"name": "regular", "configuration": {"chunk_shape": shards["chunk_shape"]}}
    return {**node, "chunk_grid": grid, "codecs": shards["codecs"]}


def _json_bytes(node: Mapping[str, Any]) -> bytes:
    return json.dumps(node).encode()
