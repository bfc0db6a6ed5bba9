"""What may a writer change, and which lock protects the change?"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import fsspec

from spinezarr.errors import CorruptStoreError, ReadOnlyStoreError
from spinezarr.store.files import is_read_only, remove_files
from spinezarr.store.layout import scan_key
from spinezarr.store.lock import LATE_FILE, LockGuard, StoreLock

__all__ = ["WritableStore"]


@dataclass(slots=True, eq=False)
class WritableStore:
    """The files of a store and the lock that protects each change of them.

    All parts of a writer share one object. It can be pickled: a worker in another process then
    checks the same lock.
    """

    fs: fsspec.AbstractFileSystem
    """File system that holds the store."""
    path: str
    """Path of the store in that file system."""
    name: str
    """Path or URL of the store for messages, without user, password or signature."""
    guard: LockGuard | None = None
    """Checks that this run still holds the lock; None before the lock is taken."""
    has_late_write: bool = False
    """Whether a run wrote after it had lost the lock, and no run has written the table since."""

    @contextmanager
    def locked(self, purpose: str) -> Iterator[StoreLock]:
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
        with ExitStack() as stack:
            try:
                if is_read_only(self.fs):
                    raise PermissionError("web servers are only read")
                lock = stack.enter_context(StoreLock(self.fs, self.path, self.name, purpose))
                self.has_late_write = self.fs.exists(f"{self.path}/{LATE_FILE}")
                lock.took_over |= self.has_late_write
            except CorruptStoreError:
                raise
            except (OSError, NotImplementedError) as problem:
                raise ReadOnlyStoreError(f"{self.name}: cannot be written: {problem}.") from problem
            self.guard = lock.guard
            yield lock

    def changing(self) -> AbstractContextManager[None]:
        """Return a context in which files may be changed, as no other run can take the lock."""
        return nullcontext() if self.guard is None else self.guard.changing()

    def check_lock(self) -> None:
        """Check that this run still holds the lock, at most every few seconds.

        Raises
        ------
        LostLockError
            If another run has taken the store over.
        """
        if self.guard is not None:
            self.guard()

    def scan_folder(self, scan_id: str) -> str:
        """Return the path of the folder of a scan."""
        return f"{self.path}/{scan_key(scan_id)}"

    def remove(self, folder: str, keys: Iterable[str]) -> None:
        """Delete files below a folder while the lock is held."""
        keys = list(keys)
        if keys:
            with self.changing():
                remove_files(self.fs, folder, keys)
