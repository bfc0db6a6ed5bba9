"""How is one scan written so that readers see either the old version or the whole new one?

The shards come first, then the small files, and the scan's ``zarr.json`` last: that one write makes
the scan visible. A new version of a published scan is written beside the old one, under chunk keys
with the other separator.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import Separator, other_separator
from spinezarr.store.attributes import ScanAttributes, parse_scan_group
from spinezarr.store.files import publish_group, read_files, remove_files
from spinezarr.store.layout import METADATA, Profile
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.metadata import with_members
from spinezarr.store.scan_metadata import small_files, stored_mask_members
from spinezarr.store.sealed import seal
from spinezarr.store.shard_writer import ShardWriter
from spinezarr.store.writable import WritableStore

__all__ = ["ScanWriter"]


class ScanWriter:
    """Writes one scan; readers see nothing of it before :meth:`publish`.

    Parameters
    ----------
    store
        Store that the scan belongs to.
    folder
        Path of the scan's folder.
    published
        The ``zarr.json`` of the version of the scan that readers see now; None if there is none.
    profile
        Chunks and codecs of image and mask.
    """

    def __init__(
        self, store: WritableStore, folder: str, published: bytes | None, profile: Profile
    ) -> None:
        self.profile = profile
        self._store = store
        self._folder = folder
        self._published = published
        self._old: ScanAttributes | None = None
        self._separator: Separator = "/"
        if published is not None:
            group = parse_scan_group(published)
            self._old = group.attributes
            self._separator = other_separator(group.arrays.separator)
        self._shards = ShardWriter(store, folder, self._separator)
        self._small_files: dict[str, ManifestEntry] = {}
        """Entries of the files that :meth:`publish` writes."""
        self._metadata = b""

    def write_shard(self, array: str, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard of ``image`` or ``label``; see :meth:`ShardWriter.write`."""
        self._shards.write(array, shard_zyx, parts)

    def publish(
        self, facts: Mapping[str, Any], label_chunks: npt.NDArray[np.uint32] | None
    ) -> ScanAttributes:
        """Write the small files and then the ``zarr.json`` that makes the scan visible.

        Further masks of the old version stay if the new image equals the old one. Otherwise they
        are removed, and a note of the scan names them.

        Parameters
        ----------
        facts
            Fields of :class:`~spinezarr.store.attributes.ScanAttributes` without the manifest.
        label_chunks
            See :func:`spinezarr.store.metadata.scan_files`.

        Returns
        -------
        ScanAttributes
            The published attributes.
        """
        scan = ScanAttributes.model_validate({**facts, "manifest": {}})
        scan, mask_files = self._with_old_masks(scan)
        files = small_files(scan, label_chunks, self.profile, self._separator)
        files = with_members(files, self._mask_members(scan))
        metadata = json.loads(files.pop(METADATA))
        self._small_files = {key: ManifestEntry.of(data) for key, data in files.items()}
        manifest = {**mask_files, **self._shards.manifest, **self._small_files}
        scan = scan.model_copy(update={"manifest": dict(sorted(manifest.items()))})
        metadata["attributes"] = scan.to_json()
        self._shards.finish()
        self._metadata = seal(metadata)
        files[METADATA] = self._metadata
        replaces = self._old is not None
        with self._store.changing():
            publish_group(self._store.fs, self._folder, files, replaces=replaces)
            remove_files(self._store.fs, self._folder, self._old_keys - scan.manifest.keys())
        return scan

    @property
    def _old_keys(self) -> set[str]:
        """Keys of the files of the published version."""
        return set() if self._old is None else set(self._old.manifest)

    def _with_old_masks(
        self, scan: ScanAttributes
    ) -> tuple[ScanAttributes, dict[str, ManifestEntry]]:
        """Return the scan with the further masks that fit it, and the entries of their files."""
        old = self._old
        scan = scan.model_copy(update={"masks": {}})
        if old is None or not old.masks:
            return scan, {}
        if _image_of(scan) == _image_of(old):
            others = old.without_masks().manifest
            entries = {key: entry for key, entry in old.manifest.items() if key not in others}
            return scan.model_copy(update={"masks": old.masks}), entries
        names = ", ".join(old.masks)
        note = f"the further masks of the replaced image were removed: {names}"
        return scan.model_copy(update={"notes": (*scan.notes, note)}), {}

    def _mask_members(self, scan: ScanAttributes) -> dict[str, dict[str, Any]]:
        """Return the stored metadata of the arrays of the masks that stay."""
        return {} if self._published is None else stored_mask_members(scan, self._published)

    def discard(self) -> None:
        """Delete the files written so far, unless they are published; the old version stays.

        Nothing is deleted if another run has taken the store over, as that run may have written the
        same files again.
        """
        self._shards.stop()
        path = f"{self._folder}/{METADATA}"
        written = (self._shards.started | self._small_files.keys()) - self._old_keys
        with suppress(OSError), self._store.changing():  # the next run deletes the rest
            if self._metadata and read_files(self._store.fs, [path]).get(path) == self._metadata:
                return
            remove_files(self._store.fs, self._folder, written)


def _image_of(scan: ScanAttributes) -> tuple[object, ...]:
    """Return what tells two images apart: grid and voxels."""
    return scan.shape_zyx, scan.affine, scan.image_checksum
