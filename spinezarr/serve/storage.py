"""Where the files of a served store lie: what a folder on disk and a bucket have in common."""

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
from spinezarr.store.attributes import ManifestEntry
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
"""Of what stands under a name: another file or object there has another."""


class UnreadableError(SpinezarrError):
    """A file that is there and cannot be read, or is no longer, or not yet, what its scan says."""


class UnavailableError(UnreadableError):
    """A bucket or server that fails, is slow, or refuses: nothing is known of the file."""


class Content(ABC):
    """The bytes of one version of a file, as long as this object lives.

    Attributes
    ----------
    executor
        What reads: it may wait for a network; None where reads may be made at once.
    is_stale
        Whether something else stands in its place by now.
    room
        What it takes of :attr:`Storage.room`.
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
            If they cannot be read, or are another version's by now.
        """


@dataclass(frozen=True, slots=True, eq=False)
class ServedFile:
    """Bytes of one version.

    Attributes
    ----------
    size_bytes
        Of the whole.
    etag
        Strong, with its quotes.
    data
        The bytes, of a file of metadata; None for one that is read when it is asked for.
    content
        What reads it.
    first
        Where the bytes begin in the content.
    """

    size_bytes: int
    etag: str
    data: bytes | None = None
    content: Content | None = None
    first: int = 0

    @classmethod
    def of(cls, data: bytes) -> "ServedFile":
        """Describe bytes that are here, by their hash."""
        return cls(len(data), tag_of(hashlib.sha256(data).hexdigest()[:32]), data)

    @property
    def executor(self) -> Executor | None:
        """What is to call :meth:`read`, if that may wait for a network."""
        return None if self.content is None else self.content.executor

    def read(self, start: int, stop: int) -> bytes:
        """Read a part.

        Raises
        ------
        UnreadableError
            If it cannot be read.
        """
        if self.data is not None:
            return self.data[start:stop]
        if self.content is None:
            return b""
        return self.content.read(self.first + start, self.first + stop)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of metadata as it is now.

    Attributes
    ----------
    identity
        Of what stands there.
    written
        When, by the clock of whoever keeps the files.
    data
        Its bytes; None if it is the one that was known.
    """

    identity: Identity
    written: int
    data: bytes | None


class Storage(ABC):
    """Where the files of one store lie; safe to share between threads.

    Attributes
    ----------
    path
        As :class:`~spinezarr.store.reader.StoreReader` takes it.
    room
        How much of files is kept open.
    executor
        What is to call, as all of it may wait for a network; None where it may be called at once.
    """

    path: str
    room: int
    executor: Executor | None = None

    @abstractmethod
    def look(self, key: str, known: Identity | None) -> Seen | None:
        """Return a file of metadata as it is now; None if there is none.

        Parameters
        ----------
        key
            Below the store.
        known
            Identity of the one that is known, and whose bytes need not be read.

        Raises
        ------
        UnreadableError
            If it cannot be read.
        """

    @abstractmethod
    def open(self, key: str, entry: ManifestEntry, written: int) -> Content:
        """Compare a file of a scan with the scan's manifest, and open it.

        Parameters
        ----------
        key
            Below the store.
        entry
            What the manifest says of it.
        written
            When the scan's metadata were, which come last.

        Raises
        ------
        UnreadableError
            If it is not there as the manifest says.
        """

    @abstractmethod
    def reader(self, *, with_table: bool) -> StoreReader:
        """Open the store.

        Raises
        ------
        SpinezarrError, OSError
            If it cannot be read.
        """

    def may_have(self, scan_id: str) -> bool:  # noqa: ARG002
        """Whether a scan of that name can be asked for."""
        return True


class Recent(Generic[V]):
    """Keeps what names stand for now, until others have been used more recently.

    Parameters
    ----------
    room
        Of all together.
    """

    def __init__(self, room: int) -> None:
        self._left = room
        self._kept: OrderedDict[Hashable, tuple[Identity, V, int]] = OrderedDict()
        self._lock = Lock()

    def find(self, name: Hashable) -> tuple[Identity, V] | None:
        """Return what is known of a name: which version it is, and what is kept of it."""
        with self._lock:
            found = self._kept.get(name)
            if found is None:
                return None
            self._kept.move_to_end(name)
            return found[:2]

    def keep(self, name: Hashable, identity: Identity, value: V, room: int = 1) -> None:
        """Keep a version in place of the one before, if there is room for it."""
        with self._lock:
            before = self._kept.pop(name, None)
            self._left += 0 if before is None else before[2]
            self._kept[name] = identity, value, room
            self._left -= room
            while self._left < 0 and self._kept:
                self._left += self._kept.popitem(last=False)[1][2]


class InTurn:
    """Lets one thread after the other look for the same; if it fails, so it does for all who wait.

    Or each of them would wait as long as the first again.
    """

    def __init__(self) -> None:
        self._locks = [Lock() for _ in range(_AT_ONCE)]
        self._failed: Recent[UnreadableError] = Recent(_AT_ONCE)

    @contextmanager
    def of(self, name: Hashable) -> Iterator[None]:
        """Wait for one's turn.

        Raises
        ------
        UnreadableError
            If somebody who had an earlier turn met one meanwhile.
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
