"""How are the shards of an array written, and entered in a manifest?"""

from base64 import b64encode
from collections.abc import Iterable, Iterator

from typing_extensions import Buffer

from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import Separator, chunk_key
from spinezarr.store.blocks import ChunkFrame
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32, listed_positions
from spinezarr.store.uploads import Uploads
from spinezarr.store.writable import WritableStore

__all__ = ["ShardWriter"]


class ShardWriter:
    """Writes the shards of one scan or mask. Several threads may share it.

    Parameters
    ----------
    store
        Store that the scan belongs to.
    folder
        Path of the scan's folder.
    separator
        Separator in the keys of the shards.
    """

    def __init__(self, store: WritableStore, folder: str, separator: Separator) -> None:
        self._store = store
        self._folder = folder
        self._separator = separator
        self._uploads = Uploads(store.fs, store.changing)
        self.started: set[str] = set()
        """Keys of the shards whose writing has begun."""
        self.manifest: dict[str, ManifestEntry] = {}
        """Entries of the shards that are written, by key."""

    def write(self, array: str, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard and enter it in the manifest.

        In a bucket the upload may still run when this returns; see
        :class:`~spinezarr.store.uploads.Uploads`.

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
        self.started.add(key)
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
        self.manifest[key] = ShardEntry(
            size_bytes=size_bytes,
            crc32=f"{checksum:08x}",
            index_offset=size_bytes - index.nbytes,
            index_crc32c=f"{int.from_bytes(index[-CHECKSUM_BYTES:], 'little'):08x}",
            chunks=b64encode(b"".join(rows)).decode(),
        )

    def finish(self) -> None:
        """Wait until all shards are written.

        Raises
        ------
        OSError
            If a shard could not be written.
        """
        self._uploads.finish()

    def stop(self) -> None:
        """Wait until all uploads have ended, with or without success."""
        self._uploads.stop()
