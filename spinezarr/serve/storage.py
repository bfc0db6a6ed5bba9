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
    "METADATA",
    "Content",
    "Identity",
    "InTurn",
    "Recent",
    "Seen",
    "ServedFile",
    "Storage",
    "UnavailableError",
    "UnreadableError",
    "tag_of",
]

V = TypeVar("V")

METADATA: Final = "zarr.json"
_AT_ONCE: Final = 1024
Identity = Hashable
"""Identity of a file or object; a file that replaces it has another one."""


class UnreadableError(SpinezarrError):
    """A file that exists and cannot be read, or is not the one that its scan describes."""


class UnavailableError(UnreadableError):
    """A bucket or server that fails, is slow, or refuses, so nothing is known of the file."""


class Content(ABC):
    """The bytes of one version of a file, as long as this object lives.

    Attributes
    ----------
    executor
        Executor for reads that may wait for a network; None if none may.
    is_stale
        Whether another file has replaced it by now.
    room
        Its part of :attr:`Storage.room`.
    """

    executor: Executor | None = None
    is_stale = False
    room = 1

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """Read bytes ``start <= i < stop``.

        Raises
        ------
        UnreadableError
            If the bytes cannot be read, or belong to another version by now.
        """

    def read_from_memory(self, start: int, stop: int) -> bytearray | None:  # noqa: ARG002
        """Read bytes if they are in memory; None if the read could wait for a disk or network."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ServedFile:
    """A file of one version.

    Attributes
    ----------
    size_bytes
        Size of the file.
    etag
        Strong entity tag, with its quotes.
    data
        Bytes of a file of metadata; None for a file that is read on request.
    content
        Reads the file; None for a file of metadata.
    first
        Offset of the file in the content.
    """

    size_bytes: int
    etag: str
    data: bytes | None = None
    content: Content | None = None
    first: int = 0

    @classmethod
    def of(cls, data: bytes) -> "ServedFile":
        """Make a file of bytes in memory; its entity tag is their hash."""
        return cls(len(data), tag_of(hashlib.sha256(data).hexdigest()[:32]), data)

    @property
    def executor(self) -> Executor | None:
        """Executor for :meth:`read`, if that may wait for a network."""
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
        """Read a range if it is in memory; None if the read could wait for a disk or network."""
        if self.content is None:
            return None
        return self.content.read_from_memory(self.first + start, self.first + stop)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of metadata as it is now.

    Attributes
    ----------
    identity
        Identity of the file.
    written
        When it was written, in nanoseconds of the clock of the disk or bucket.
    data
        Its bytes; None if its identity is the known one.
    """

    identity: Identity
    written: int
    data: bytes | None


class Storage(ABC):
    """Disk or bucket with the files of one store; safe to share between threads.

    Attributes
    ----------
    path
        Path or URL, as :class:`~spinezarr.store.reader.StoreReader` takes it.
    room
        Bound on the files that are kept open.
    executor
        Executor for calls that may wait for a network; None if none may.
    """

    path: str
    room: int
    executor: Executor | None = None

    @abstractmethod
    def current_file(self, key: str, known: Identity | None) -> Seen | None:
        """Return a file of metadata as it is now; None if it does not exist.

        Parameters
        ----------
        key
            Key below the store.
        known
            Identity of the known file, whose bytes need not be read again; None for no such file.

        Raises
        ------
        UnreadableError
            If the file cannot be read.
        """

    @abstractmethod
    def open(self, key: str, entry: ManifestEntry, written: int) -> Content:
        """Compare a file of a scan with the manifest of the scan, and open it.

        Parameters
        ----------
        key
            Key below the store.
        entry
            Entry of the manifest.
        written
            When the metadata of the scan were written, which is after its other files.

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


class Recent(Generic[V]):
    """A cache of the present version of each name; the least recently used goes first.

    Parameters
    ----------
    room
        Bound on the room of all entries together.
    """

    def __init__(self, room: int) -> None:
        self._left = room
        self._kept: OrderedDict[Hashable, tuple[Identity, V, int]] = OrderedDict()
        self._lock = Lock()

    def find(self, name: Hashable) -> tuple[Identity, V] | None:
        """Return the kept version and value of a name; None if none is kept."""
        with self._lock:
            found = self._kept.get(name)
            if found is None:
                return None
            self._kept.move_to_end(name)
            return found[:2]

    def keep(self, name: Hashable, identity: Identity, value: V, room: int = 1) -> None:
        """Keep a version of a name in place of the one before, if there is room for it."""
        with self._lock:
            before = self._kept.pop(name, None)
            self._left += 0 if before is None else before[2]
            self._kept[name] = identity, value, room
            self._left -= room
            while self._left < 0 and self._kept:
                self._left += self._kept.popitem(last=False)[1][2]


class InTurn:
    """Lets one thread at a time look for the same thing.

    If a look fails, it fails for all threads that wait: otherwise each of them would wait for the
    same time-out again.
    """

    def __init__(self) -> None:
        self._locks = [Lock() for _ in range(_AT_ONCE)]
        self._failed: Recent[UnreadableError] = Recent(_AT_ONCE)

    @contextmanager
    def of(self, name: Hashable) -> Iterator[None]:
        """Wait until no other thread looks for the same.

        Raises
        ------
        UnreadableError
            If the look of a thread before failed meanwhile.
        """
        came_s = time.monotonic()
        with self._locks[hash(name) % _AT_ONCE]:
            failed = self._failed.find(name)
            if failed is not None and isinstance(failed[0], float) and failed[0] >= came_s:
                raise type(failed[1])(str(failed[1]))
            try:
                yield
            except UnreadableError as problem:
                self._failed.keep(name, time.monotonic(), problem)
                raise


def tag_of(text: str) -> str:
    """Return a strong entity tag."""
    return f'"{text}"'
