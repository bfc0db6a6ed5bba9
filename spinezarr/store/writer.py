"""How is a store opened for writing?

One :class:`StoreWriter` stands for the store as a whole: its root and its lock. Its parts write the
scans and the registry of them.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spinezarr.redaction import redact_url
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.claim import claim_store
from spinezarr.store.files import open_store
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import profile_named
from spinezarr.store.lock import StoreLock
from spinezarr.store.recovery import recover_scan, recover_store
from spinezarr.store.registry import ScanRegistry
from spinezarr.store.stored_scans import StoredScans
from spinezarr.store.writable import WritableStore

__all__ = ["StoreWriter"]


class StoreWriter:
    """Writes the store of one dataset.

    It can be pickled. A worker uses its copy for scans only; the registry has one writer.

    Parameters
    ----------
    url
        Path or URL of the store.
    root
        Attributes of the root. An existing store must be of the same dataset. If they name no codec
        profile, the store keeps its own, and a new store gets the default.
    storage_options
        Options for the file system of ``url``.
    repair
        If the root is missing or damaged, take the dataset from the scan table and write the root
        again.

    Raises
    ------
    UsageError
        If something else lies at ``url``, or the store has another dataset, codec profile or
        pseudonym key.
    """

    def __init__(
        self,
        url: str,
        root: RootAttributes,
        storage_options: Mapping[str, Any] | None = None,
        *,
        repair: bool = False,
    ) -> None:
        fs, path = open_store(url, storage_options)
        self._files = WritableStore(fs, path, redact_url(url))
        self._repair = repair
        self._claim(root)

    def _claim(self, root: RootAttributes) -> None:
        self.root = claim_store(self._files, root, repair=self._repair)
        self.scans = StoredScans(self._files, profile_named(self.root.codec_profile))
        self.registry = ScanRegistry(self._files, self.root)

    @property
    def name(self) -> str:
        """Path or URL of the store for messages, without user, password or signature."""
        return self._files.name

    @property
    def local_folder(self) -> str | None:
        """Folder of a store on this machine's disks; None for a store in a bucket."""
        return self._files.path if isinstance(self._files.fs, StoreFileSystem) else None

    @contextmanager
    def lock(self, purpose: str) -> Iterator[StoreLock]:
        """Hold the lock of the store while the context lasts, so that there is no other writer.

        Parameters
        ----------
        purpose
            Operation that needs the lock, such as "an ingest"; messages to other writers name it.

        Raises
        ------
        StoreBusyError
            If there is another writer.
        ReadOnlyStoreError
            If the store cannot be written.
        """
        with self._files.locked(purpose) as lock:
            self._claim(self.root)  # another run may have made a store here just now
            yield lock

    def recover(self, trusted: Mapping[str, str] | None = None) -> dict[str, ScanAttributes]:
        """Delete leftovers of dead writers; return all whole scans. See :func:`recover_store`."""
        return recover_store(self._files, trusted)

    def recover_scan(self, scan_id: str, masks: Collection[str] = ()) -> ScanAttributes | None:
        """Delete leftovers of dead workers in one scan; return its attributes if it is whole.

        ``masks`` are the further masks that must be whole too, if the scan has them.
        """
        return recover_scan(self._files, scan_id, masks)
