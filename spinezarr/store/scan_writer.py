"""How is one scan written so that readers see either the old version or the whole new one?

The shards come first, then the small files, and the scan's ``zarr.json`` last: that one write makes
the scan visible. A new version of a published scan is written beside the old one, under chunk keys
with the other separator.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import Separator, other_separator
from spinezarr.store.attributes import ScanAttributes, parse_scan_group
from spinezarr.store.files import publish_group, read_files, remove_files
from spinezarr.store.layout import IMAGE, LABEL, METADATA, Profile
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.metadata import mask_members, sampling_group, with_members
from spinezarr.store.records import MaskRecord
from spinezarr.store.scan_metadata import small_files, stored_mask_members
from spinezarr.store.sealed import seal
from spinezarr.store.shard_writer import ShardWriter
from spinezarr.store.writable import WritableStore

__all__ = ["NewMask", "ScanWriter"]


class NewMask(NamedTuple):
    """A further mask that is published with its scan."""

    record: MaskRecord
    """Facts about the mask."""
    label_chunks: npt.NDArray[np.uint32]
    """See :func:`spinezarr.store.metadata.scan_files`."""


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
    masks
        Names of further masks that the new version replaces or removes.
    """

    def __init__(
        self,
        store: WritableStore,
        folder: str,
        published: bytes | None,
        profile: Profile,
        masks: Collection[str] = (),
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
        own = ShardWriter(store, folder, self._separator)
        self._shards = {IMAGE: own, LABEL: own}
        """Writer of the shards of each array."""
        self._mask_separators: dict[str, Separator] = {}
        for name in masks:
            separator = self._separator
            if published is not None and name in group.arrays.masks:
                separator = other_separator(group.arrays.masks[name].mask.separator)
            self._mask_separators[name] = separator
            self._shards[name] = ShardWriter(store, folder, separator)
        self._small_files: dict[str, ManifestEntry] = {}
        """Entries of the files that :meth:`publish` writes."""
        self._metadata = b""

    def write_shard(self, array: str, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard of image or mask; see :meth:`ShardWriter.write`."""
        self._shards[array].write(array, shard_zyx, parts)

    def publish(
        self,
        facts: Mapping[str, Any],
        label_chunks: npt.NDArray[np.uint32] | None,
        masks: Mapping[str, NewMask] = MappingProxyType({}),
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
        masks
            Further masks of the new version, by name; the writer was made for these names.

        Returns
        -------
        ScanAttributes
            The published attributes.
        """
        scan = ScanAttributes.model_validate({**facts, "manifest": {}})
        scan, mask_files = self._with_old_masks(scan)
        files = small_files(scan, label_chunks, self.profile, self._separator)
        files = with_members(files, self._mask_members(scan))
        for name, mask in masks.items():
            files = self._with_new_mask(files, scan, name, mask)
        new_records = {name: mask.record for name, mask in masks.items()}
        scan = scan.model_copy(
            update={"masks": dict(sorted({**scan.masks, **new_records}.items()))}
        )
        metadata = json.loads(files.pop(METADATA))
        self._small_files = {key: ManifestEntry.of(data) for key, data in files.items()}
        shards = {key: entry for one in self._writers for key, entry in one.manifest.items()}
        manifest = {**mask_files, **shards, **self._small_files}
        scan = scan.model_copy(update={"manifest": dict(sorted(manifest.items()))})
        metadata["attributes"] = scan.to_json()
        for writer in self._writers:
            writer.finish()
        self._metadata = seal(metadata)
        files[METADATA] = self._metadata
        replaces = self._old is not None
        with self._store.changing():
            publish_group(self._store.fs, self._folder, files, replaces=replaces)
            remove_files(self._store.fs, self._folder, self._old_keys - scan.manifest.keys())
        return scan

    @property
    def _writers(self) -> list[ShardWriter]:
        """Each writer of shards once."""
        return list(dict.fromkeys(self._shards.values()))

    def _with_new_mask(
        self, files: Mapping[str, bytes], scan: ScanAttributes, name: str, mask: NewMask
    ) -> dict[str, bytes]:
        """Return the small files of a scan with those of a new mask."""
        members, chunks = mask_members(
            name,
            self.profile,
            shape_zyx=scan.shape_zyx,
            label_chunks=mask.label_chunks,
            names=mask.record.names,
            separator=self._mask_separators[name],
        )
        return {**with_members(files, {**sampling_group(), **members}), **chunks}

    @property
    def _old_keys(self) -> set[str]:
        """Keys of the files of the published version."""
        return set() if self._old is None else set(self._old.manifest)

    def _with_old_masks(
        self, scan: ScanAttributes
    ) -> tuple[ScanAttributes, dict[str, ManifestEntry]]:
        """Return the scan with the further masks that fit it, and the entries of their files."""
        old = None if self._old is None else self._old.without_masks(self._mask_separators)
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
        for writer in self._writers:
            writer.stop()
        path = f"{self._folder}/{METADATA}"
        started = {key for writer in self._writers for key in writer.started}
        written = (started | self._small_files.keys()) - self._old_keys
        with suppress(OSError), self._store.changing():  # the next run deletes the rest
            if self._metadata and read_files(self._store.fs, [path]).get(path) == self._metadata:
                return
            remove_files(self._store.fs, self._folder, written)


def _image_of(scan: ScanAttributes) -> tuple[object, ...]:
    """Return what tells two images apart: grid and voxels."""
    return scan.shape_zyx, scan.affine, scan.image_checksum
