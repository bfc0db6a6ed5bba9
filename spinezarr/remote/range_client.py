"""How are many byte ranges read from one server at once, without holding the GIL?

The threads that want the ranges send the requests and receive the responses themselves, in C code
that is loaded with :mod:`ctypes`. It reads only what is simple: plain HTTP/1.1, and responses that
are exactly the requested range. Everything else is left to the caller, which asks again through the
event loop. So there are no redirects, no errors and no retries here.
"""

import ctypes
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.native_library import is_turned_off, library_path
from spinezarr.remote.http1 import MAX_HEAD_BYTES, MAX_IDLE, MIN_RATE_BYTES, Server
from spinezarr.remote.stall_detection import RateMeter, RequestProgress, StallDetector, StalledError

__all__ = ["RangeCall", "RangeClient", "ReadRange", "range_library"]

_VERSION: Final = 1
_WAITING, _RUNNING, _DONE, _LOST = range(4)
_CONNECTING, _FREE, _BUSY, _DEAD, _GONE = range(5)
_NONE: Final = -1
_EXCHANGES: Final = np.dtype(
    [
        ("head", np.uintp),
        ("buffer", np.uintp),
        ("head_bytes", np.int64),
        ("buffer_bytes", np.int64),
        ("start", np.int64),
        ("stop", np.int64),
        ("sent", np.int64),
        ("filled", np.int64),
        ("body_start", np.int64),
        ("with_head", np.int64),
        ("began_ns", np.int64),
        ("body_ns", np.int64),
        ("ended_ns", np.int64),
        ("connection", np.int64),
        ("status", np.int64),
    ]
)
_CONNECTIONS: Final = np.dtype(
    [("socket", np.int64), ("state", np.int64), ("exchange", np.int64), ("is_reused", np.int64)]
)
_MOST_CONNECTIONS: Final = 1024
"""Largest number of connections of a call, as in ranges.c."""
_SLICE_MS: Final = 50
"""Longest time in C, after which the caller may act."""
_WATCHED_S: Final = 0.25
"""A response that takes longer is checked for stalls."""
_MOST_FAILURES: Final = 3
"""Number of calls in a row without any response, after which a server is left to the event loop."""
_PAUSE_S: Final = 60.0
"""Time for which it is. Then one call tries again."""
_NS: Final = 1e-9


class _Library:
    """The loaded C code."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path), use_errno=True)
        sizes = library.spinezarr_exchange_bytes, library.spinezarr_connection_bytes
        for function in (library.spinezarr_ranges_version, *sizes):
            function.argtypes, function.restype = [], ctypes.c_int64
        expected = (_VERSION, _EXCHANGES.itemsize, _CONNECTIONS.itemsize)
        if (library.spinezarr_ranges_version(), *(size() for size in sizes)) != expected:
            raise OSError(f"{path}: was built by another version")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._exchange = library.spinezarr_exchange
        self._exchange.argtypes = [*(pointer, number), *(pointer, number), *(pointer, number)]
        self._exchange.restype = number

    def exchange(
        self,
        exchanges: npt.NDArray[np.void],
        connections: npt.NDArray[np.void],
        stop: npt.NDArray[np.int32],
    ) -> int:
        """Send and receive for a while, and return how many requests wait or run."""
        n_left: int = self._exchange(
            exchanges.ctypes.data,
            len(exchanges),
            connections.ctypes.data,
            len(connections),
            stop.ctypes.data,
            _SLICE_MS,
        )
        if n_left == _NONE:
            raise ValueError("the tables of requests and connections do not fit together")
        return n_left


@cache
def range_library() -> _Library | None:
    """Return the C code; None if there is none, or it does not fit to this module.

    It is in the same library as the kernel of the patch engine.
    """
    if is_turned_off():
        return None
    try:
        return _Library(library_path())
    except (OSError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class ReadRange:
    """A response that came, and how long it took."""

    data: memoryview
    began_s: float
    """Time of the request, by the monotonic clock."""
    body_s: float
    """Time when the head of the response had come."""
    ended_s: float
    late_bytes: int
    """Number of bytes that came after the head."""


class RangeCall:
    """One call that reads ranges. Another thread may cancel it.

    Parameters
    ----------
    on_slice
        Called with this call about every 50 ms, while ranges are awaited.
    """

    def __init__(self, on_slice: "Callable[[RangeCall], None]") -> None:
        self.on_slice = on_slice
        self._stop = np.zeros(1, np.int32)
        self._exchanges = np.zeros(0, _EXCHANGES)
        self._connections = np.zeros(0, _CONNECTIONS)

    def begin(self, exchanges: npt.NDArray[np.void], connections: npt.NDArray[np.void]) -> None:
        """Use the tables of requests and connections."""
        self._exchanges, self._connections = exchanges, connections

    def exchange(self, library: _Library) -> bool:
        """Send and receive for a while, and return whether there is more to do."""
        n_left = library.exchange(self._exchanges, self._connections, self._stop)
        return bool(n_left) and not self.is_cancelled

    def cancel(self) -> bool:
        """End the call soon."""
        self._stop[0] = 1
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return bool(self._stop[0])

    def running(self) -> list[tuple[int, float]]:
        """Return the numbers of the ranges whose responses are awaited, and since when."""
        rows = np.flatnonzero(self._exchanges["status"] == _RUNNING)
        began_s = self._exchanges["began_ns"][rows] * _NS
        return list(zip(rows.tolist(), began_s.tolist(), strict=True))

    def received_bytes(self, number: int) -> int:
        """Return how many bytes of a response have come."""
        return int(self._exchanges["filled"][number])

    def give_up(self, number: int) -> None:
        """Await the response to a request no longer."""
        row = self._exchanges[number]
        if row["status"] == _RUNNING:
            self._connections["state"][row["connection"]] = _DEAD
        if row["status"] in {_RUNNING, _WAITING}:
            row["status"] = _LOST


@dataclass(slots=True)
class _Trust:
    """Whether a server sends what the C code understands."""

    failures: int = 0
    not_before_s: float = 0.0

    def note(self, *, has_worked: bool) -> None:
        """Record whether a call brought any response."""
        self.failures = 0 if has_worked else self.failures + 1
        if self.failures >= _MOST_FAILURES:
            self.not_before_s = time.monotonic() + _PAUSE_S


class RangeClient:
    """Reads ranges in the calling threads, and keeps connections open. It belongs to one process.

    Parameters
    ----------
    detector
        Finds responses that stall.
    link
        Measures the rate of the link.
    """

    def __init__(self, detector: StallDetector, link: RateMeter) -> None:
        self._detector = detector
        self._link = link
        self._lock = Lock()
        self._idle: dict[Server, list[socket.socket]] = {}
        self._addresses: dict[Server, tuple[int, Any]] = {}
        self._servers: dict[Server, _Trust] = {}
        weakref.finalize(self, _close, self._idle)

    def allow(self, server: Server) -> None:
        """Read from a server, because it has sent the event loop exactly the requested range."""
        self._servers.setdefault(server, _Trust())

    def can_read(self, server: Server) -> bool:
        """Whether ranges of a server are read here at present."""
        trust = self._servers.get(server)
        return trust is not None and time.monotonic() >= trust.not_before_s

    def read(
        self,
        server: Server,
        heads: Sequence[bytes],
        spans: Sequence[tuple[int, int]],
        call: RangeCall,
        at_once: int,
    ) -> list[ReadRange | None]:
        """Read some ranges, at most ``at_once`` at the same time.

        Parameters
        ----------
        server
            A server for which :meth:`can_read` is true.
        heads
            The requests.
        spans
            The bytes ``start <= i < stop`` that they ask for.
        call
            The call, which this method fills.
        at_once
            Number of connections.

        Returns
        -------
        list
            A response for each range; None for each that did not come, or is not the range.
        """
        library = range_library()
        if library is None or not spans:
            return [None] * len(spans)
        text, memory = b"".join(heads), _allocate(spans)
        exchanges = _exchanges(heads, spans, text, memory)
        sockets = self._take(server, min(at_once, len(spans), _MOST_CONNECTIONS))
        connections = np.zeros(len(sockets), _CONNECTIONS)
        connections["socket"] = _NONE
        watched = _Watched(self._detector)
        call.begin(exchanges, connections)
        try:
            self._open_missing(server, sockets, connections)
            while call.exchange(library):
                watched.check(call)
                call.on_slice(call)
                self._open_missing(server, sockets, connections)
                if (connections["state"] == _GONE).all():
                    break
        finally:
            watched.end()
            self._keep(server, sockets, connections)
        self._detector.add_received(watched.unwatched_bytes(exchanges))
        results = _results(exchanges, memory)
        for result in results:
            if result is not None and result.late_bytes >= MIN_RATE_BYTES:
                self._link.add(result.body_s, result.ended_s, result.late_bytes)
        if not call.is_cancelled:
            self._servers.setdefault(server, _Trust()).note(has_worked=any(results))
            if not any(results):
                self._addresses.pop(server, None)
        return results

    def _take(self, server: Server, n: int) -> "list[socket.socket | None]":
        """Return idle connections, and None for each that must be opened."""
        with self._lock:
            idle = self._idle.setdefault(server, [])
            first = max(0, len(idle) - n)
            taken: list[socket.socket | None] = [*idle[first:]]
            del idle[first:]
        return taken + [None] * (n - len(taken))

    def _open_missing(
        self,
        server: Server,
        sockets: "list[socket.socket | None]",
        connections: npt.NDArray[np.void],
    ) -> None:
        """Begin connections in place of those that ended, but not of new ones that failed."""
        for number, row in enumerate(connections):
            connection = sockets[number]
            if connection is not None and row["socket"] == _NONE:
                row["socket"], row["is_reused"] = connection.fileno(), 1
                row["state"], row["exchange"] = _FREE, _NONE
            elif row["state"] != _GONE and (connection is None or row["state"] == _DEAD):
                has_failed = connection is not None and not row["is_reused"]
                if connection is not None:
                    connection.close()
                new = None if has_failed else self._open(server)
                sockets[number] = new
                row["state"], row["exchange"], row["is_reused"] = _CONNECTING, _NONE, 0
                if new is None:
                    row["state"] = _GONE
                else:
                    row["socket"] = new.fileno()

    def _open(self, server: Server) -> socket.socket | None:
        """Begin a connection, without waiting for it."""
        try:
            address = self._addresses.get(server)
            if address is None:
                found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
                address = self._addresses[server] = found[0][0], found[0][4]
            new = socket.socket(address[0], socket.SOCK_STREAM)
            new.setblocking(False)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            new.connect_ex(address[1])  # the C code sees whether it failed
        except OSError:
            return None
        return new

    def _keep(
        self,
        server: Server,
        sockets: "list[socket.socket | None]",
        connections: npt.NDArray[np.void],
    ) -> None:
        """Keep the connections that are free, and close the others."""
        states = connections["state"].tolist()
        with self._lock:
            idle = self._idle.setdefault(server, [])
            for connection, state in zip(sockets, states, strict=True):
                if connection is None:
                    continue
                if state == _FREE and len(idle) < MAX_IDLE:
                    idle.append(connection)
                else:
                    connection.close()


def _close(idle: dict[Server, list[socket.socket]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


class _Watched:
    """Checks the responses of one call that take long."""

    def __init__(self, detector: StallDetector) -> None:
        self._detector = detector
        self._progress: dict[int, RequestProgress] = {}
        self._stalled: set[int] = set()

    def check(self, call: RangeCall) -> None:
        """Give up responses that bring too few bytes."""
        now_s = time.monotonic()
        for number, began_s in call.running():
            if now_s - began_s < _WATCHED_S:
                continue
            if number not in self._progress:
                note = partial(self._note, number)
                self._progress[number] = RequestProgress(self._detector, note, is_checked=False)
            progress = self._progress[number]
            progress.received_bytes = call.received_bytes(number)
            progress.check(now_s)
        while self._stalled:
            call.give_up(self._stalled.pop())

    def _note(self, number: int, _: StalledError) -> None:
        # The event loop calls this too, while the C code may use the tables.
        self._stalled.add(number)

    def end(self) -> None:
        """End all checks."""
        for progress in self._progress.values():
            progress.end()

    def unwatched_bytes(self, exchanges: npt.NDArray[np.void]) -> int:
        """Return how many bytes came in responses that did not take long."""
        received = exchanges["filled"].copy()
        received[list(self._progress)] = 0
        return int(received.sum())


def _allocate(spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.uint8]:
    """Return memory for all responses; it is not filled with zeros."""
    return np.empty(sum(stop - start + MAX_HEAD_BYTES for start, stop in spans), np.uint8)


def _exchanges(
    heads: Sequence[bytes],
    spans: Sequence[tuple[int, int]],
    text: bytes,
    memory: npt.NDArray[np.uint8],
) -> npt.NDArray[np.void]:
    """Return the table of requests. Their heads lie in ``text``, their responses in ``memory``."""
    table = np.zeros(len(spans), _EXCHANGES)
    table["head_bytes"] = [len(head) for head in heads]
    table["start"], table["stop"] = np.array(spans, np.int64).T
    table["buffer_bytes"] = table["stop"] - table["start"] + MAX_HEAD_BYTES
    for place, size, base in (
        ("head", "head_bytes", np.frombuffer(text, np.uint8)),
        ("buffer", "buffer_bytes", memory),
    ):
        table[place] = base.ctypes.data + np.cumsum(table[size]) - table[size]
    table["connection"] = _NONE
    return table


def _results(
    exchanges: npt.NDArray[np.void], memory: npt.NDArray[np.uint8]
) -> list[ReadRange | None]:
    results: list[ReadRange | None] = [None] * len(exchanges)
    done = np.flatnonzero(exchanges["status"] == _DONE)
    rows, view = exchanges[done], memory.data
    first = (rows["buffer"] - np.uintp(memory.ctypes.data)).astype(np.int64) + rows["body_start"]
    last = first + rows["stop"] - rows["start"]
    times_s = np.stack([rows["began_ns"], rows["body_ns"], rows["ended_ns"]], axis=1) * _NS
    late_bytes = rows["filled"] - rows["with_head"]
    for number, begin, end, (began_s, body_s, ended_s), late in zip(
        done.tolist(),
        first.tolist(),
        last.tolist(),
        times_s.tolist(),
        late_bytes.tolist(),
        strict=True,
    ):
        results[number] = ReadRange(view[begin:end], began_s, body_s, ended_s, late)
    return results
