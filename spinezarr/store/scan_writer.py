"""How is one scan written so that readers see either the old version or the whole new one?

The shards come first, then the small files, and the scan's ``zarr.json`` last: that one write makes
the scan visible. A new version of a published scan is written beside the old one, under chunk keys
with the other separator.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import Separator, chunk_key, other_separator
from spinezarr.store.attributes import ScanAttributes, ScanGroup
from spinezarr.store.blocks import ChunkFrame
from spinezarr.store.files import publish_group, read_files, remove_files
from spinezarr.store.layout import METADATA, Profile
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.scan_metadata import small_files
from spinezarr.store.sealed import seal
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32, listed_positions
from spinezarr.store.uploads import Uploads
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
        The version of the scan that readers see now; None if there is none.
    profile
        Chunks and codecs of image and mask.
    """

    def __init__(
        self, store: WritableStore, folder: str, published: ScanGroup | None, profile: Profile
    ) -> None:
        self.profile = profile
        self._store = store
        self._folder = folder
        self._replaces = published is not None
        self._old: set[str] = set()
        self._separator: Separator = "/"
        if published is not None:
            self._old = set(published.attributes.manifest)
            self._separator = other_separator(published.arrays.separator)
        self._started: set[str] = set()
        """Keys of the shards whose writing has begun."""
        self._manifest: dict[str, ManifestEntry] = {}
        self._uploads = Uploads(store.fs, store.changing)
        self._metadata = b""

    def write_shard(self, array: str, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard of ``image`` or ``label`` and enter it in the manifest.

        It may be called from several threads. In a bucket the upload may still run when this
        returns; see :class:`~spinezarr.store.uploads.Uploads`.

        Parameters
        ----------
        array
            Name of the array.
        shard_zyx
            Index of the shard.
        parts
            The encoded chunks of the shard in the order of their positions, then its index.

        Raises
        ------
        LostLockError
            If another run has taken the store over.
        OSError
            If this shard or an earlier one could not be written.
        """
        self._store.check_lock()
        key = f"{array}/{chunk_key(shard_zyx, self._separator)}"
        self._started.add(key)
        size_bytes, checksum = 0, 0
        frames: list[ChunkFrame] = []
        last: Buffer | None = None

        def counted() -> Iterator[Buffer]:
            nonlocal size_bytes, checksum, last
            for part in parts:
                if last is not None:  # the last part is the index
                    frames.append(ChunkFrame.of(last))
                last = part
                view = memoryview(part)
                size_bytes += view.nbytes
                checksum = crc32(view, checksum)
                yield part

        self._uploads.write(f"{self._folder}/{key}", counted())
        index = memoryview(last or b"")
        rows = [
            frame.row(position).tobytes()
            for position, frame in zip(listed_positions(index), frames, strict=True)
        ]
        self._manifest[key] = ShardEntry(
            size_bytes=size_bytes,
            crc32=f"{checksum:08x}",
            index_offset=size_bytes - index.nbytes,
            index_crc32c=f"{int.from_bytes(index[-CHECKSUM_BYTES:], 'little'):08x}",
            chunks=b64encode(b"".join(rows)).decode(),
        )

    def publish(
        self, facts: Mapping[str, Any], label_chunks: npt.NDArray[np.uint32] | None
    ) -> ScanAttributes:
        """Write the small files and then the ``zarr.json`` that makes the scan visible.

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
        files = small_files(scan, label_chunks, self.profile, self._separator)
        metadata = json.loads(files.pop(METADATA))
        self._manifest |= {key: ManifestEntry.of(data) for key, data in files.items()}
        scan = scan.model_copy(update={"manifest": dict(sorted(self._manifest.items()))})
        metadata["attributes"] = scan.to_json()
        self._uploads.finish()
        self._metadata = seal(metadata)
        files[METADATA] = self._metadata
        with self._store.changing():
            publish_group(self._store.fs, self._folder, files, replaces=self._replaces)
            remove_files(self._store.fs, self._folder, self._old - scan.manifest.keys())
        return scan

    def discard(self) -> None:
        """Delete the files written so far, unless they are published; the old version stays.

        Nothing is deleted if another run has taken the store over, as that run may have written the
        same files again.
        """
        self._uploads.stop()
        path = f"{self._folder}/{METADATA}"
        written = (self._started | self._manifest.keys()) - self._old
        with suppress(OSError), self._store.changing():  # the next run deletes the rest
            if self._metadata and read_files(self._store.fs, [path]).get(path) == self._metadata:
                return
            remove_files(self._store.fs, self._folder, written)
