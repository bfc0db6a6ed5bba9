"""How is a further mask of a scan added, replaced or removed, while readers read the scan?

The shards come first, then the scan's ``zarr.json``: that one write changes the masks that readers
see. No voxel of the image or of another mask is written again. A new version of a mask lies beside
the old one, under chunk keys with the other separator.
"""

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import ScanArrays, Separator, other_separator
from spinezarr.store.attributes import ScanAttributes, parse_scan_group
from spinezarr.store.files import publish_group, read_files, remove_files
from spinezarr.store.layout import METADATA, SAMPLING, Profile, chunk_grid
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.metadata import mask_members, sampling_group, with_members
from spinezarr.store.records import MaskRecord
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.shard_writer import ShardWriter
from spinezarr.store.writable import WritableStore

__all__ = ["MaskWriter", "remove_mask", "without_masks"]


class MaskWriter:
    """Writes one further mask of a scan; readers see nothing of it before :meth:`publish`.

    Parameters
    ----------
    store
        Store that the scan belongs to.
    folder
        Path of the scan's folder.
    name
        Name of the mask.
    published
        The ``zarr.json`` of the scan.
    profile
        Codecs of the mask. Its chunks and shards are those of ``label``, or else of the image.
    """

    def __init__(
        self, store: WritableStore, folder: str, name: str, published: bytes, profile: Profile
    ) -> None:
        self.name = name
        self._store = store
        self._folder = folder
        self._group = unseal(published)
        group = parse_scan_group(published)
        self.scan = group.attributes
        """Attributes of the published scan."""
        self.profile = _with_shapes_of(group.arrays, profile)
        self._separator: Separator = "/"
        if name in group.arrays.masks:
            self._separator = other_separator(group.arrays.masks[name].mask.separator)
        self._shards = ShardWriter(store, folder, self._separator)
        self._small_files: dict[str, ManifestEntry] = {}
        """Entries of the files that :meth:`publish` writes."""
        self._metadata = b""

    def write_shard(self, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard of the mask; see :meth:`ShardWriter.write`."""
        self._shards.write(self.name, shard_zyx, parts)

    def publish(self, record: MaskRecord, label_chunks: npt.NDArray[np.uint32]) -> ScanAttributes:
        """Write the small files, and then the ``zarr.json`` that makes the mask visible.

        Parameters
        ----------
        record
            Facts about the mask.
        label_chunks
            See :func:`spinezarr.store.metadata.scan_files`.

        Returns
        -------
        ScanAttributes
            The published attributes of the scan.
        """
        old = self.scan
        members, chunks = mask_members(
            self.name,
            self.profile,
            shape_zyx=old.shape_zyx,
            label_chunks=label_chunks,
            names=record.names,
            separator=self._separator,
        )
        kept = old.without_masks([self.name]).manifest
        if f"{SAMPLING}/{METADATA}" not in kept:
            members |= sampling_group()
        files = with_members({METADATA: json.dumps(self._group).encode()}, members)
        metadata = json.loads(files.pop(METADATA))
        files |= chunks
        self._small_files = {key: ManifestEntry.of(data) for key, data in files.items()}
        self._shards.finish()
        manifest = {**kept, **self._shards.manifest, **self._small_files}
        scan = old.model_copy(
            update={
                "masks": dict(sorted({**old.masks, self.name: record}.items())),
                "manifest": dict(sorted(manifest.items())),
            }
        )
        self._metadata = seal({**metadata, "attributes": scan.to_json()})
        files[METADATA] = self._metadata
        with self._store.changing():
            publish_group(self._store.fs, self._folder, files, replaces=self.name in old.masks)
            remove_files(self._store.fs, self._folder, old.manifest.keys() - scan.manifest.keys())
        return scan

    def discard(self) -> None:
        """Delete the files written so far, unless they are published; the old version stays.

        Nothing is deleted if another run has taken the store over, as that run may have written the
        same files again.
        """
        self._shards.stop()
        path = f"{self._folder}/{METADATA}"
        written = (self._shards.started | self._small_files.keys()) - self.scan.manifest.keys()
        with suppress(OSError), self._store.changing():  # the next ingest deletes the rest
            if self._metadata and read_files(self._store.fs, [path]).get(path) == self._metadata:
                return
            remove_files(self._store.fs, self._folder, written)


def remove_mask(store: WritableStore, folder: str, name: str, published: bytes) -> ScanAttributes:
    """Remove a further mask of a scan; readers see the scan with or without it.

    Parameters
    ----------
    store
        Store that the scan belongs to.
    folder
        Path of the scan's folder.
    name
        Name of a mask that the scan has.
    published
        The ``zarr.json`` of the scan.

    Returns
    -------
    ScanAttributes
        The published attributes of the scan.
    """
    old = parse_scan_group(published).attributes
    data = without_masks(published, [name])
    scan = parse_scan_group(data).attributes
    with store.changing():
        publish_group(store.fs, folder, {METADATA: data}, replaces=True)
        remove_files(store.fs, folder, old.manifest.keys() - scan.manifest.keys())
    return scan


def without_masks(published: bytes, names: Collection[str]) -> bytes:
    """Return the ``zarr.json`` that a scan would have without some further masks.

    Parameters
    ----------
    published
        The ``zarr.json`` of the scan.
    names
        Names of the masks.
    """
    group = unseal(published)
    scan = parse_scan_group(published).attributes.without_masks(names)
    members = group["consolidated_metadata"]["metadata"]
    kept = {key: node for key, node in members.items() if f"{key}/{METADATA}" in scan.manifest}
    group["consolidated_metadata"]["metadata"] = kept
    return seal({**group, "attributes": scan.to_json()})


def _with_shapes_of(arrays: ScanArrays, profile: Profile) -> Profile:
    """Return a profile with the chunks and shards of ``label``, or else of the image."""
    like = arrays.label or arrays.image
    return replace(
        profile,
        chunk_shape_zyx=like.chunk_shape_zyx,
        max_shard_chunks_zyx=chunk_grid(like.shard_shape_zyx, like.chunk_shape_zyx),
    )
