"""What must a disk or a bucket do so that a store on it can be served?"""

import hashlib
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

from spinezarr.errors import SpinezarrError
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.reader import StoreReader

__all__ = [
    "Content",
    "CurrentFile",
    "Identity",
    "KeyLocks",
    "ServedFile",
    "Storage",
    "UnavailableError",
    "UnreadableError",
    "VersionCache",
    "strong_etag",
]

V = TypeVar("V")

_N_LOCKS: Final = 1024
Identity = Hashable
"""Identity of a version of a file or object. A file that replaces it has another one."""


class UnreadableError(SpinezarrError):
    """A file exists but cannot be read, or is not the one that its scan describes."""


class UnavailableError(UnreadableError):
    """A bucket or server fails, is slow, or refuses access, so nothing is known about the file."""


class Content(ABC):
    """The bytes of one version of a file, which can be read as long as this object exists.

    Attributes
    ----------
    executor
        Executor for reads that may wait for a network; None if no read does.
    is_stale
        Whether another file has replaced it.
    cost
        Share of :attr:`Storage.capacity` that it takes.
    """

    executor: Executor | None = None
    is_stale = False
    cost = 1

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """Read bytes ``start <= i < stop``.

        Raises
        ------
        UnreadableError
            If the bytes cannot be read, or now belong to another version.
        """

    def read_from_memory(self, start: int, stop: int) -> bytearray | None:  # noqa: ARG002
        """Read bytes if they are in memory; return None if the read might wait."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ServedFile:
    """One version of a file.

    Attributes
    ----------
    size_bytes
        Size of the file in bytes.
    etag
        Strong entity tag, with its quotes.
    data
        Bytes of a metadata file; None for a file that is read on request.
    content
        Reads the file; None for a metadata file.
    first
        Offset of the file in the content, in bytes.
    """

    size_bytes: int
    etag: str
    data: bytes | None = None
    content: Content | None = None
    first: int = 0

    @classmethod
    def of(cls, data: bytes) -> "ServedFile":
        """Make a file of bytes in memory. Its entity tag is their hash."""
        return cls(len(data), strong_etag(hashlib.sha256(data).hexdigest()[:32]), data)

    @property
    def executor(self) -> Executor | None:
        """Executor for :meth:`read`; None if that does not wait for a network."""
        return None if self.content is None else self.content.executor

    def read(self, start: int, stop: int) -> bytes:
        """Read a range of the file.

        Raises
        ------
        UnreadableError
            If the range cannot be read.
        """
        if self.data is not None:
            return self.data[start:stop]
        if self.content is None:
            return b""
        return self.content.read(self.first + start, self.first + stop)

    def read_from_memory(self, start: int, stop: int) -> bytearray | None:
        """Read a range if it is in memory; return None if the read might wait."""
        if self.content is None:
            return None
        return self.content.read_from_memory(self.first + start, self.first + stop)


@dataclass(frozen=True, slots=True)
class CurrentFile:
    """The current version of a metadata file.

    Attributes
    ----------
    identity
        Identity of the file.
    written_at
        When it was written, by the clock of the disk (in nanoseconds) or of the bucket (in
        seconds). Only times of one storage are compared.
    data
        Its bytes; None if its identity is the known one.
    """

    identity: Identity
    written_at: int
    data: bytes | None


class Storage(ABC):
    """Disk or bucket with the files of one store; safe to share between threads.

    Attributes
    ----------
    path
        Path or URL, as :class:`~spinezarr.store.reader.StoreReader` takes it.
    capacity
        Bound on the sum of the costs of the files that are kept open.
    executor
        Executor for calls that may wait for a network; None if no call does.
    """

    path: str
    capacity: int
    executor: Executor | None = None

    @abstractmethod
    def current_file(self, key: str, known: Identity | None) -> CurrentFile | None:
        """Return the current version of a metadata file; None if it does not exist.

        Parameters
        ----------
        key
            Key below the store.
        known
            Identity of the version that is known, whose bytes need not be read again; None if no
            version is known.

        Raises
        ------
        UnreadableError
            If the file cannot be read.
        """

    @abstractmethod
    def open(self, key: str, entry: ManifestEntry, written_at: int) -> Content:
        """Compare a file of a scan with the manifest of the scan, and open it.

        Parameters
        ----------
        key
            Key below the store.
        entry
            Entry of the manifest.
        written_at
            When the metadata of the scan were written. Its other files were written before.

        Raises
        ------
        UnreadableError
            If the file is not the one that the manifest describes.
        """

    @abstractmethod
    def reader(self, *, with_table: bool) -> StoreReader:
        """Open the store.

        Raises
        ------
        SpinezarrError, OSError
            If the store cannot be read.
        """

    def may_have(self, scan_id: str) -> bool:  # noqa: ARG002
        """Whether a scan of that name can exist in this store."""
        return True


class VersionCache(Generic[V]):
    """A cache of the current version of each name. It drops the least recently used name first.

    Parameters
    ----------
    capacity
        Bound on the sum of the costs of all entries.
    """

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._entries: OrderedDict[Hashable, tuple[Identity, V, int]] = OrderedDict()
        self._lock = Lock()

    def find(self, name: Hashable) -> tuple[Identity, V] | None:
        """Return version and value of a name; None if the cache does not have it."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return None
            self._entries.move_to_end(name)
            return entry[:2]

    def keep(self, name: Hashable, identity: Identity, value: V, cost: int = 1) -> None:
        """Put a version of a name in place of the previous one, if it fits the capacity."""
        with self._lock:
            previous = self._entries.pop(name, None)
            self._free += 0 if previous is None else previous[2]
            self._entries[name] = identity, value, cost
            self._free -= cost
            while self._free < 0 and self._entries:
                self._free += self._entries.popitem(last=False)[1][2]


class KeyLocks:
    """Locks by name. They let only one thread at a time request the same object.

    If a request fails, it also fails for all threads that wait for the lock. Otherwise, each of
    them would wait for the same time-out again.
    """

    def __init__(self) -> None:
        self._locks = [Lock() for _ in range(_N_LOCKS)]
        self._failed: VersionCache[UnreadableError] = VersionCache(_N_LOCKS)

    @contextmanager
    def hold(self, name: Hashable) -> Iterator[None]:
        """Wait for the lock of a name, and hold it inside the ``with`` block.

        Raises
        ------
        UnreadableError
            If the request of another thread failed in the meantime.
        """
        start_s = time.monotonic()
        with self._locks[hash(name) % _N_LOCKS]:
            failure = self._failed.find(name)
            if failure is not None and isinstance(failure[0], float) and failure[0] >= start_s:
                raise type(failure[1])(str(failure[1]))
            try:
                yield
            except UnreadableError as problem:
                self._failed.keep(name, time.monotonic(), problem)
                raise


def strong_etag(text: str) -> str:
    """Return a strong entity tag, with its quotes."""
    return f'"{text}"'
