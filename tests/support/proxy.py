"""An HTTP/1.1 proxy that adds latency, a bandwidth limit and faults, in a process of its own.

It serves a folder, or passes on the answers of another server:

    python tests/support/proxy.py --folder DIR --latency-ms 20 --megabytes-per-s 100 --port 8080
    python tests/support/proxy.py --upstream http://127.0.0.1:9000 --fault-rate 0.03

run until they are interrupted. The context `proxy` runs it for tests and benchmarks, which change
its conditions and read its counts meanwhile. The proxy shares a machine with the measured program,
so it uses no framework: files go from the page cache to the socket by sendfile, and little code
runs per request.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from http import HTTPMethod, HTTPStatus
from pathlib import Path
from threading import Lock
from typing import IO, Any, Protocol, cast
from urllib.parse import unquote, urlsplit

FAULTS = ("unavailable", "too_many", "cut", "stall", "short", "flip")
"""In order: 503; 429 with Retry-After; half a body, then the end of the connection; no answer, then
its end; 200 with half of the requested bytes; a body with one wrong bit."""

N_LATEST = 20_000
"""Number of the latest requests that are listed."""

_HEAD_BYTES = 1 << 16
_OPEN_FILES = 128
_BUFFERED_BYTES = 1 << 19
"""Largest part of a body that is buffered; above it, the source is not read."""
_PIECE_BYTES = 1 << 16
_LEAST_PIECE_BYTES = 1 << 12
_PIECE_S = 0.002
"""Longest turn of a connection on a slow link, unless the smallest piece takes longer."""
_BACKLOG = 1024
_TIMEOUT_S = 10.0
_FIELDS = re.compile(
    rb"\r\n(?i:(range|if-match|if-range|content-length|transfer-encoding|connection)):"
    rb"[ \t]*([^\r\n]*)"
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_HEAD_END = b"\r\n\r\n"
_STATUS_CLASS = slice(len("HTTP/1.1 "), len("HTTP/1.1 1"))
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_GOOD = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Latency, bandwidth limit and faults that the proxy adds.

    Attributes
    ----------
    latency_s
        Time between a request and its answer; requests wait in parallel.
    bytes_per_s
        Rate of the bodies of all answers together; None for no limit.
    fault_rate
        Fraction of the GET and POST requests that get a fault. Faults of the body apply only to
        answers with a body that are no errors.
    fault_kinds
        Kinds from `FAULTS`, which are equally probable.
    fault_paths
        Regular expression, searched in path and query; only what matches gets faults.
    stall_s
        Time after which a stalled request is ended without an answer.
    seed
        Seed of the faults. The same requests in the same order get the same faults.

    Raises
    ------
    ValueError
        If a value is outside its range, or a kind of fault is unknown.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    fault_rate: float = 0.0
    fault_kinds: tuple[str, ...] = FAULTS
    fault_paths: str = ""
    stall_s: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and self.stall_s >= 0 and 0 <= self.fault_rate <= 1):
            raise ValueError(f"times are at least 0 s, and a rate is from 0 to 1: {self}")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise ValueError(f"a link carries more than 0 bytes/s, or is None: {self}")
        if unknown := set(self.fault_kinds) - set(FAULTS):
            raise ValueError(f"no such faults: {sorted(unknown)}; there are {FAULTS}")
        if self.fault_rate and not self.fault_kinds:
            raise ValueError(f"faults need kinds: {self}")
        re.compile(self.fault_paths)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of requests and answers since the last reset.

    Attributes
    ----------
    requests
        Number of all requests, including those with faults.
    body_bytes
        Bytes of the bodies of answers, as far as they were sent.
    faults
        Number of executed faults by kind.
    statuses
        Number of answers by status; a stalled request has none.
    latest
        Method, path with query, and range ("" for none) of the latest `N_LATEST` requests.
    """

    requests: int
    body_bytes: int
    faults: dict[str, int]
    statuses: dict[int, int]
    latest: tuple[tuple[str, str, str], ...]


class Proxy:
    """A proxy that runs in another process; safe to use from several threads.

    Attributes
    ----------
    url
        Its root, without a slash at the end.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._commands = cast("IO[str]", process.stdin)
        self._answers = cast("IO[str]", process.stdout)
        self._lock = Lock()
        self.url = str(self._answer()["url"])

    def set(self, conditions: Conditions) -> None:
        """Change the conditions of all requests from now on, and start the faults anew."""
        self._send({"set": asdict(conditions)})

    def counts(self) -> Counts:
        """Return the counts since the last reset."""
        answer = self._send({"counts": True})
        return Counts(
            requests=answer["requests"],
            body_bytes=answer["body_bytes"],
            faults=answer["faults"],
            statuses={int(status): n for status, n in answer["statuses"].items()},
            latest=tuple((method, path, range_) for method, path, range_ in answer["latest"]),
        )

    def reset(self) -> None:
        """Set all counts to zero."""
        self._send({"reset": True})

    def _send(self, command: dict[str, object]) -> dict[str, Any]:
        with self._lock:
            self._commands.write(json.dumps(command) + "\n")
            self._commands.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with status {self._process.wait()}")
        return cast("dict[str, Any]", json.loads(line))


@contextmanager
def proxy(
    *,
    folder: Path | None = None,
    upstream: str | None = None,
    conditions: Conditions = Conditions(),
) -> Iterator[Proxy]:
    """Run a proxy on a free port of 127.0.0.1, in a process that ends with the context.

    Parameters
    ----------
    folder
        Folder that the proxy serves itself.
    upstream
        URL of the server that answers instead, as ``http://host:port``.
    conditions
        Conditions at the start.

    Raises
    ------
    RuntimeError
        If the proxy does not start; its own message is on stderr.
    ValueError
        Unless there is either a folder or an upstream.
    """
    if (folder is None) == (upstream is None):
        raise ValueError("a proxy needs either a folder or an upstream")
    origin = ["--folder", str(folder)] if folder else ["--upstream", str(upstream)]
    command = [sys.executable, __file__, *origin, "--control"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            running = Proxy(process)
            running.set(conditions)
            yield running
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    # The end is sent explicitly, too, because a child forked meanwhile holds the pipe open.
    try:
        process.communicate(json.dumps({"end": True}) + "\n", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


class _Request:
    """One request: its head, and the fault that was drawn for it."""

    def __init__(self, head: bytes) -> None:
        line, _, _ = head.partition(b"\r\n")
        method, target, version = line.decode("utf-8", "surrogateescape").split(" ")
        if not (version.startswith("HTTP/1.") and target.startswith("/")):
            raise ValueError(f"not a request of HTTP/1: {line!r}")
        self.head = head
        self.method = method
        self.target = target
        self.fields = _fields(head)
        self.keep_alive = (
            version != "HTTP/1.0" and self.fields.get("connection", "").lower() != "close"
        )
        self.upload: _Upload | None = None
        self.fault = ""
        self.where = 0.0
        self.due = 0.0
        self.stall_s = 0.0


def _fields(head: bytes) -> dict[str, str]:
    """Return the needed fields of a head, by their name in lower case."""
    return {
        name.decode().lower(): text.decode("latin-1").strip()
        for name, text in _FIELDS.findall(head)
    }


class _Part(Protocol):
    """A piece of an answer that waits to be sent."""

    is_body: bool
    left: int

    def send(self, to: socket.socket, n_bytes: int) -> int: ...
    def flipped(self, where: float) -> "_Part": ...


class _Memory:
    __slots__ = ("_flags", "_view", "is_body", "left")

    def __init__(self, data: bytes | memoryview, *, is_body: bool, more: bool = False) -> None:
        self._view = memoryview(data)
        self._flags = socket.MSG_MORE if more else 0
        self.left = len(data)
        self.is_body = is_body

    def send(self, to: socket.socket, n_bytes: int) -> int:
        sent = to.send(self._view[:n_bytes], self._flags)
        self._view = self._view[sent:]
        self.left -= sent
        return sent

    def flipped(self, where: float) -> _Part:
        return _Memory(_flip(self._view, where), is_body=True)


class _File:
    __slots__ = ("_file", "_offset", "is_body", "left")

    def __init__(self, file: "_OpenFile", offset: int, n_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self.left = n_bytes
        self.is_body = True

    def send(self, to: socket.socket, n_bytes: int) -> int:
        sent = os.sendfile(to.fileno(), self._file.descriptor, self._offset, n_bytes)
        if not sent:
            raise OSError(f"{self._file.path} became shorter")
        self._offset += sent
        self.left -= sent
        return sent

    def flipped(self, where: float) -> _Part:
        data = os.pread(self._file.descriptor, self.left, self._offset)
        return _Memory(_flip(data, where), is_body=True)


def _flip(data: bytes | memoryview, where: float) -> bytes:
    flipped = bytearray(data)
    bit = int(where * 8 * len(flipped))
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


class _Sized:
    """A body of known length; with None, it ends with the connection."""

    def __init__(self, n_bytes: int | None) -> None:
        self._left = n_bytes

    @property
    def done(self) -> bool:
        return self._left == 0

    @property
    def is_open(self) -> bool:
        return self._left is None

    def take(self, data: bytes) -> tuple[int, list[tuple[memoryview, bool]]]:
        """Return how many bytes belong to the body, and those, each with whether it is content."""
        n_bytes = len(data) if self._left is None else min(self._left, len(data))
        if self._left is not None:
            self._left -= n_bytes
        return n_bytes, [(memoryview(data)[:n_bytes], True)]


class _Chunked:
    """A body in chunks (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""
        self._left = 0
        self._last = False

    def take(self, data: bytes) -> tuple[int, list[tuple[memoryview, bool]]]:
        """Return how many bytes belong to the body, and those, each with whether it is content."""
        view, at, parts = memoryview(data), 0, []
        while at < len(data) and not self.done:
            begin, content = at, self._left > len(b"\r\n")
            if content:
                at = min(len(data), at + self._left - len(b"\r\n"))
                self._left -= at - begin
            elif self._left:
                at = min(len(data), at + self._left)
                self._left -= at - begin
            else:
                at = data.find(b"\n", begin) + 1 or len(data)
                self._line += data[begin:at]
                self._end_line()
            parts.append((view[begin:at], content))
        return at, parts

    def _end_line(self) -> None:
        if not self._line.endswith(b"\n"):
            return
        line, self._line = self._line.strip(), b""
        if self._last:
            self.done = not line
        else:
            n_bytes = int(line.partition(b";")[0], 16)
            self._left = n_bytes + len(b"\r\n") if n_bytes else 0
            self._last = not n_bytes


def _framing(fields: dict[str, str]) -> _Sized | _Chunked | None:
    """Return the framing of the body that the fields announce; None if they announce none."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return _Chunked()
    return _Sized(int(fields["content-length"])) if "content-length" in fields else None


class _Upload:
    """The body of a request, which is kept until it can be sent on."""

    def __init__(self, framing: _Sized | _Chunked, source: asyncio.Transport) -> None:
        self._framing = framing
        self._source = source
        self._sink: asyncio.Transport | None = None
        self._kept: list[bytes] = []

    @property
    def done(self) -> bool:
        return self._framing.done

    def take(self, data: bytes) -> int:
        n_bytes, _ = self._framing.take(data)
        if self._sink is not None:
            self._sink.write(data[:n_bytes])
        else:
            self._kept.append(data[:n_bytes])
            self._source.pause_reading()
        return n_bytes

    def flow_to(self, sink: asyncio.Transport) -> None:
        self._sink = sink
        self._source.resume_reading()
        sink.writelines(self._kept)
        self._kept.clear()


class _Link:
    """The link that all answers share: each connection in turn sends a piece.

    A piece is sent once a link of that rate would have carried it whole. If the timer is late while
    something waits, the lost time is made up for; idle time is not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[_Client] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._free_at = 0.0
        self._piece_bytes = _PIECE_BYTES
        self.bytes_per_s: float | None = None

    def set(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s
        if bytes_per_s is not None:
            piece_bytes = min(_PIECE_BYTES, int(bytes_per_s * _PIECE_S))
            self._piece_bytes = max(_LEAST_PIECE_BYTES, piece_bytes)
        self._free_at = self._loop.time()
        self._run()

    def enter(self, client: "_Client") -> None:
        idle = not (self._queue or self._running)
        self._queue.append(client)
        if idle:
            self._free_at = max(self._free_at, self._loop.time())
            self._run()

    def leave(self, client: "_Client") -> None:
        if client in self._queue:
            self._queue.remove(client)

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._running = True
        while self._queue and self._timer is None:
            self._serve_next()
        self._running = False

    def _serve_next(self) -> None:
        n_bytes = min(self._piece_bytes, self._queue[0].next_bytes)
        if self.bytes_per_s is None:
            self._queue.popleft().send_piece(n_bytes)
            return
        carried_at = self._free_at + n_bytes / self.bytes_per_s
        if carried_at > self._loop.time():
            self._timer = self._loop.call_at(carried_at, self._run)
            return
        self._free_at += self._queue.popleft().send_piece(n_bytes) / self.bytes_per_s


class _Service:
    """State that all connections share."""

    def __init__(self, origin: "_Origin", n_latest: int) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self.link = _Link(self.loop)
        self.clients: set[_Client] = set()
        self._latest: deque[tuple[str, str, str]] = deque(maxlen=n_latest)
        self.reset()
        self.set(Conditions())

    def set(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._random = random.Random(conditions.seed)  # noqa: S311  no secret
        self._paths = re.compile(conditions.fault_paths)
        self.link.set(conditions.bytes_per_s)

    def reset(self) -> None:
        self._requests = 0
        self.body_bytes = 0
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._latest.clear()

    def counts(self) -> dict[str, object]:
        return {
            "requests": self._requests,
            "body_bytes": self.body_bytes,
            "faults": self.faults,
            "statuses": self.statuses,
            "latest": list(self._latest),
        }

    def begin(self, request: _Request) -> None:
        """Count a request, and draw its fault."""
        self._requests += 1
        self._latest.append((request.method, request.target, request.fields.get("range", "")))
        conditions = self._conditions
        request.due = self.loop.time() + conditions.latency_s
        request.stall_s = conditions.stall_s
        if conditions.fault_rate and request.method in (HTTPMethod.GET, HTTPMethod.POST):
            self._draw(request, conditions)

    def _draw(self, request: _Request, conditions: Conditions) -> None:
        if not self._paths.search(request.target):
            return
        drawn, request.where = self._random.random(), self._random.random()
        if drawn < conditions.fault_rate:
            kinds = conditions.fault_kinds
            request.fault = kinds[int(drawn / conditions.fault_rate * len(kinds))]


class _Client(asyncio.Protocol):
    """A connection to the proxy; its requests are answered in order.

    It reads through asyncio's transport, and writes to the socket itself.
    """

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._unread = b""
        self._waiting: deque[_Request] = deque()
        self._request: _Request | None = None
        self._upload: _Upload | None = None
        self._parts: deque[_Part] = deque()
        self._parts_bytes = 0
        self._held = False
        self._complete = False
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self.source: _Upstream | None = None
        """The connection to the server that brings more parts; None if all are there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket").dup()
        self._service.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._service.clients.discard(self)
        self._service.link.leave(self)
        self._service.loop.remove_writer(self._socket)
        self._socket.close()
        self._parts.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self.source is not None:
            self.source.abandon()

    def data_received(self, data: bytes) -> None:
        data, at = self._unread + data, 0
        try:
            while at < len(data) and not self._closing:
                if self._upload is not None and not self._upload.done:
                    at += self._upload.take(data[at:])
                    continue
                end = data.find(_HEAD_END, at) + len(_HEAD_END)
                if end < len(_HEAD_END) and len(data) - at < _HEAD_BYTES:
                    break
                self._begin(_Request(data[at:end]))
                at = end
        except ValueError:  # the bytes are no HTTP
            self.transport.abort()
        self._unread = data[at:]

    def _begin(self, request: _Request) -> None:
        framing = _framing(request.fields)
        if framing is not None and not framing.done:
            request.upload = _Upload(framing, self.transport)
        self._upload = request.upload
        self._service.begin(request)
        self._waiting.append(request)
        if self._request is None:
            self._next()

    def _next(self) -> None:
        if self.transport.is_closing() or not self._waiting:
            return
        self._request = self._waiting.popleft()
        if self._request.due > self._service.loop.time():
            self._timer = self._service.loop.call_at(self._request.due, self._start)
        else:
            self._start()

    def _start(self) -> None:
        request = self._current_request
        if request.fault == "unavailable":
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        elif request.fault == "too_many":
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, b"Retry-After: 1")
        elif request.fault == "stall":
            self._service.faults["stall"] += 1
            self._timer = self._service.loop.call_later(request.stall_s, self.transport.abort)
        else:
            self._service.origin.answer(self, request)

    @property
    def _current_request(self) -> _Request:
        return cast("_Request", self._request)

    def _refuse(self, status: HTTPStatus, *fields: bytes) -> None:
        self._service.faults[self._current_request.fault] += 1
        self.answer(status, fields)

    def answer(self, status: int, fields: Iterable[bytes], body: _Part | None = None) -> None:
        """Answer the request as a whole, with the fault of the body that was drawn for it."""
        request = self._current_request
        n_bytes = body.left if body else 0
        fault = request.fault if n_bytes and status in _GOOD else ""
        if body and fault:
            self._service.faults[fault] += 1
            if fault == "flip":
                body = body.flipped(request.where)
            else:
                body.left = n_bytes // 2
            if fault == "short":
                status, n_bytes = HTTPStatus.OK, body.left
                fields = [f for f in fields if not f.lower().startswith(b"content-range:")]
        parts = [body] if body and body.left and request.method != HTTPMethod.HEAD else []
        self.send_head(status, [*fields, b"Content-Length: %d" % n_bytes], has_body=bool(parts))
        if fault == "cut":
            self._closing = True  # the head did not announce the body
        self.send(parts, complete=True)

    def send_head(self, status: int, fields: Iterable[bytes], *, has_body: bool) -> None:
        """Begin the answer; `send` continues it."""
        self._service.statuses[status] += 1
        if not self._current_request.keep_alive:
            self._closing = True
        closing = [b"Connection: close"] if self._closing else []
        line = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}".encode()
        head = b"\r\n".join([line, *fields, *closing, b"", b""])
        more = has_body and self._service.link.bytes_per_s is None
        self._parts.append(_Memory(head, is_body=False, more=more))
        self._parts_bytes += len(head)

    def send(self, parts: Iterable[_Part], *, complete: bool) -> None:
        """Send more of the answer."""
        for part in parts:
            self._parts.append(part)
            self._parts_bytes += part.left
        self._complete = complete
        if not self._held:
            self._flush()

    def close_after(self) -> None:
        """Close the connection when the answer is sent."""
        self._closing = True

    @property
    def is_full(self) -> bool:
        """Return whether enough bytes wait to be sent."""
        return self._parts_bytes > _BUFFERED_BYTES

    @property
    def next_bytes(self) -> int:
        return self._parts[0].left

    def send_piece(self, n_bytes: int) -> int:
        """Send the next piece of the body, now that the link is free; return the bytes sent."""
        self._held = False
        sent = self._send_first(n_bytes)
        if not self._held:
            self._flush()
        return sent

    def _flush(self) -> None:
        while self._parts and not self._held:
            part = self._parts[0]
            if part.is_body and self._service.link.bytes_per_s is not None:
                self._held = True
                self._service.link.enter(self)
            else:
                self._send_first(part.left)
        if self._complete and not self._parts and self._request is not None:
            self._finish()

    def _send_first(self, n_bytes: int) -> int:
        part = self._parts[0]
        try:
            sent = part.send(self._socket, n_bytes)
        except BlockingIOError:
            self._held = True
            self._service.loop.add_writer(self._socket, self._writable)
            return 0
        except OSError:
            self._held = True
            self.transport.abort()
            return 0
        self._parts_bytes -= sent
        if part.is_body:
            self._service.body_bytes += sent
        if not part.left:
            self._parts.popleft()
        if self.source is not None and self._parts_bytes < _BUFFERED_BYTES // 2:
            self.source.resume()
        return sent

    def _writable(self) -> None:
        self._service.loop.remove_writer(self._socket)
        self._held = False
        self._flush()

    def _finish(self) -> None:
        self._request = None
        self._complete = False
        if self._closing:
            self.transport.close()
        elif self._waiting:
            self._service.loop.call_soon(self._next)


class _Origin(Protocol):
    """A source of answers."""

    def answer(self, client: _Client, request: _Request) -> None: ...


class _OpenFile:
    """A file that is open as long as it is referenced."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        status = os.fstat(self.descriptor)
        self.is_file = stat.S_ISREG(status.st_mode)
        self.n_bytes = status.st_size
        self.etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
        self.fields = (
            b"Accept-Ranges: bytes",
            b"Content-Type: application/octet-stream",
            f"ETag: {self.etag}".encode(),
            f"Last-Modified: {formatdate(status.st_mtime, usegmt=True)}".encode(),
        )
        self._identity = _identity(status)

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def is_current(self) -> bool:
        return self._identity == _identity(self.path.stat())


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class _Folder:
    """Files of a folder, with single byte ranges (RFC 9110, section 14)."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        self._folder = folder
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def answer(self, client: _Client, request: _Request) -> None:
        if request.method not in (HTTPMethod.GET, HTTPMethod.HEAD) or request.upload is not None:
            client.close_after()
            client.answer(HTTPStatus.METHOD_NOT_ALLOWED, [b"Allow: GET, HEAD"])
            return
        file = self._file(request.target)
        if file is None:
            client.answer(HTTPStatus.NOT_FOUND, [])
        elif not _matches(request.fields.get("if-match", "*"), file.etag):
            client.answer(HTTPStatus.PRECONDITION_FAILED, [])
        else:
            _answer_file(client, request, file)

    def _file(self, target: str) -> _OpenFile | None:
        file = self._files.get(target)
        try:
            if file is None or not file.is_current:
                file = self._files[target] = self._open(target)
        except (OSError, ValueError):
            self._files.pop(target, None)
            return None
        self._files.move_to_end(target)
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file

    def _open(self, target: str) -> _OpenFile:
        path = unquote(target.partition("?")[0], errors="surrogateescape")
        if ".." in path.split("/"):
            raise ValueError(f"{target} is outside the folder")
        found = self._folder / path.lstrip("/")
        file = _OpenFile(found, os.open(found, os.O_RDONLY))
        if not file.is_file:
            raise ValueError(f"{target} is not a file")
        return file


def _matches(tags: str, etag: str) -> bool:
    return tags == "*" or etag in (tag.strip() for tag in tags.split(","))


def _answer_file(client: _Client, request: _Request, file: _OpenFile) -> None:
    range_ = _RANGE.fullmatch(request.fields.get("range", ""))
    if (
        range_ is None
        or range_[0] == "bytes=-"
        or request.fields.get("if-range", file.etag) != file.etag
    ):
        client.answer(HTTPStatus.OK, file.fields, _File(file, 0, file.n_bytes))
        return
    if range_[1]:
        first, end = int(range_[1]), int(range_[2] or file.n_bytes) + bool(range_[2])
    else:
        first, end = max(0, file.n_bytes - int(range_[2])), file.n_bytes
    end = min(end, file.n_bytes)
    if first >= end:
        outside = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        client.answer(outside, [b"Content-Range: bytes */%d" % file.n_bytes])
        return
    place = b"Content-Range: bytes %d-%d/%d" % (first, end - 1, file.n_bytes)
    client.answer(
        HTTPStatus.PARTIAL_CONTENT, [*file.fields, place], _File(file, first, end - first)
    )


class _Pool:
    """Connections to one server; idle connections are used again."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.path.strip("/"):
            raise ValueError(f"{url} is not like http://host:port")
        self._address = parts.hostname, parts.port or 80
        self._tasks: set[asyncio.Task[None]] = set()
        self.idle: list[_Upstream] = []

    def answer(self, client: _Client, request: _Request) -> None:
        if self.idle:
            self.idle.pop().send(client, request)
            return
        task = asyncio.get_running_loop().create_task(self._connect(client, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _Client, request: _Request) -> None:
        try:
            _, upstream = await asyncio.get_running_loop().create_connection(
                lambda: _Upstream(self), *self._address
            )
        except OSError:
            if not client.transport.is_closing():
                client.close_after()
                client.answer(HTTPStatus.BAD_GATEWAY, [])
            return
        if client.transport.is_closing():
            upstream.abandon()
        else:
            upstream.send(client, request)


@dataclass(slots=True)
class _Exchange:
    """A request that was sent to the server, and the received part of its answer."""

    client: _Client
    request: _Request
    status: int = 0
    fields: list[bytes] = field(default_factory=list)
    framing: _Sized | _Chunked | None = None
    """Framing of the body of the answer; None before its head."""
    kept: list[memoryview] | None = None
    """The whole body, if a fault needs it."""
    keep_alive: bool = False

    def begin(self, head: bytes) -> None:
        """Read the head of the answer."""
        line, *fields = head[:-4].split(b"\r\n")
        found = _fields(head)
        self.status = int(line.split(b" ")[1])
        # These fields concern only the proxy and the server (RFC 9110, section 7.6.1).
        own = (b"connection:", b"keep-alive:")
        self.fields = [one for one in fields if not one.lower().startswith(own)]
        bodiless = self.request.method == HTTPMethod.HEAD or self.status in _BODILESS
        self.framing = _Sized(0) if bodiless else _framing(found) or _Sized(None)
        closed = found.get("connection", "").lower() == "close" or line.startswith(b"HTTP/1.0")
        self.keep_alive = self.request.keep_alive and not closed and not self.ends_with_connection
        if self.request.fault and not self.framing.done:
            self.kept = []

    @property
    def ends_with_connection(self) -> bool:
        return isinstance(self.framing, _Sized) and self.framing.is_open


class _Upstream(asyncio.Protocol):
    """A connection to the server; one request at a time."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._exchange: _Exchange | None = None
        self._uses = 0
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, client: _Client, request: _Request) -> None:
        """Send a request to the server, and pass its answer back."""
        self._exchange = _Exchange(client, request)
        client.source = self
        self._uses += 1
        self._transport.write(request.head)
        if request.upload is not None:
            request.upload.flow_to(self._transport)

    def abandon(self) -> None:
        """Close the connection, because no client waits for an answer."""
        self._exchange = None
        self._transport.abort()

    def resume(self) -> None:
        """Continue reading."""
        self._transport.resume_reading()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.client.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        data = self._unread + data
        self._unread = b""
        while data and self._exchange is not None:
            if self._exchange.framing is not None:
                data = data[self._take(self._exchange, data) :]
                continue
            end = data.find(_HEAD_END) + len(_HEAD_END)
            if end < len(_HEAD_END):
                self._unread = data
                return
            self._begin(self._exchange, data[:end])
            data = data[end:]
        if data:
            self._transport.abort()

    def _begin(self, exchange: _Exchange, head: bytes) -> None:
        if head[_STATUS_CLASS] == b"1":
            exchange.client.send([_Memory(head, is_body=False)], complete=False)
            return
        exchange.begin(head)
        done = exchange.framing is not None and exchange.framing.done
        if exchange.kept is None:
            if exchange.ends_with_connection:
                exchange.client.close_after()
            exchange.client.send_head(exchange.status, exchange.fields, has_body=not done)
        if done:
            self._finish(exchange, [])

    def _take(self, exchange: _Exchange, data: bytes) -> int:
        framing = cast("_Sized | _Chunked", exchange.framing)
        n_bytes, parts = framing.take(data)
        sent: list[_Part] = []
        if exchange.kept is not None:
            exchange.kept += [view for view, is_content in parts if is_content]
        else:
            sent += [_Memory(view, is_body=is_content) for view, is_content in parts]
        if framing.done:
            self._finish(exchange, sent)
        elif sent:
            exchange.client.send(sent, complete=False)
            if exchange.client.is_full:
                self._transport.pause_reading()
        return n_bytes

    def _finish(self, exchange: _Exchange, parts: list[_Part]) -> None:
        """Pass on the end of the answer; the connection is then free for another request."""
        self._exchange = exchange.client.source = None
        self._transport.resume_reading()
        exchange.client.transport.resume_reading()
        upload = exchange.request.upload
        if upload is not None and not upload.done:
            # It is unknown whether the rest of the body still arrives.
            exchange.client.close_after()
            exchange.keep_alive = False
        if exchange.keep_alive:
            self._pool.idle.append(self)
        else:
            self._transport.abort()
        if exchange.kept is None:
            exchange.client.send(parts, complete=True)
            return
        framed = (b"content-length:", b"transfer-encoding:")
        fields = [one for one in exchange.fields if not one.lower().startswith(framed)]
        body = _Memory(b"".join(exchange.kept), is_body=True)
        exchange.client.answer(exchange.status, fields, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.ends_with_connection and exc is None:
            self._finish(exchange, [])
            return
        self._exchange = exchange.client.source = None
        if exchange.framing is not None:
            exchange.client.transport.abort()
        elif self._uses > 1 and exchange.request.upload is None and not self._unread:
            # The server closed the idle connection without an answer, so the request is sent again.
            self._pool.answer(exchange.client, exchange.request)
        else:
            exchange.client.close_after()
            exchange.client.answer(HTTPStatus.BAD_GATEWAY, [])


class _Control(asyncio.Protocol):
    """Commands of the parent process, as lines of JSON; their end ends the proxy."""

    def __init__(self, service: _Service, stop: asyncio.Event) -> None:
        self._service = service
        self._stop = stop
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if "end" in command:
                self._stop.set()
                return
            _print_json(self._execute(command))

    def _execute(self, command: dict[str, Any]) -> dict[str, object]:
        if "set" in command:
            kinds = tuple(command["set"].pop("fault_kinds"))
            self._service.set(Conditions(**command["set"], fault_kinds=kinds))
        elif "reset" in command:
            self._service.reset()
        else:
            return self._service.counts()
        return {}

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._stop.set()


def _print_json(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


async def _serve(options: argparse.Namespace, origin: _Origin, conditions: Conditions) -> None:
    loop = asyncio.get_running_loop()
    service = _Service(origin, N_LATEST)
    service.set(conditions)
    stop = asyncio.Event()
    try:
        server = await loop.create_server(
            lambda: _Client(service), options.host, options.port, backlog=_BACKLOG
        )
    except OSError as error:
        raise SystemExit(f"port {options.port} of {options.host}: {error}") from None
    url = f"http://{options.host}:{server.sockets[0].getsockname()[1]}"
    if options.control:
        _print_json({"url": url})
        await loop.connect_read_pipe(lambda: _Control(service, stop), sys.stdin)
    else:
        print(url, flush=True)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    # The parent decides when the proxy ends, even if Ctrl-C interrupts both.
    loop.add_signal_handler(signal.SIGINT, (lambda: None) if options.control else stop.set)
    await stop.wait()
    server.close()
    for client in list(service.clients):
        client.transport.abort()


def _conditions(options: argparse.Namespace) -> Conditions:
    megabytes_per_s = options.megabytes_per_s
    return Conditions(
        latency_s=options.latency_ms / 1e3,
        bytes_per_s=None if megabytes_per_s is None else megabytes_per_s * 1e6,
        fault_rate=options.fault_rate,
        fault_kinds=tuple(options.fault_kinds),
        fault_paths=options.fault_paths,
        stall_s=options.stall_s,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--folder", type=Path, help="serve its files")
    origin.add_argument("--upstream", metavar="URL", help="pass requests on to http://host:port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--megabytes-per-s", type=float, help="of all answers together")
    parser.add_argument(
        "--fault-rate", type=float, default=0.0, help="share of the GET and POST requests"
    )
    parser.add_argument("--fault-kinds", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--fault-paths", default="", help="regular expression of paths with faults")
    parser.add_argument("--stall-s", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the proxy that the command line describes."""
    parser = _parser()
    options = parser.parse_args()
    try:
        conditions = _conditions(options)
        origin = _Folder(options.folder) if options.folder else _Pool(options.upstream)
    except (ValueError, re.error) as error:
        parser.error(str(error))
    asyncio.run(_serve(options, origin, conditions))


if __name__ == "__main__":
    main()
