"""Servers that lie, stall or drip cause an error soon and in bounded memory, for every client."""

import asyncio
import gzip
import os
import re
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import fsspec
import psutil
import pytest
from raw_server import RawServer
from timeouts import TIMEOUT_S

import spinezarr
from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.remote import stall_detection
from spinezarr.remote.errors import StalledResponseError, response_error
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.s3_options import sign_headers
from spinezarr.remote.settings import RemoteSettings
from spinezarr.remote.transport import open_transport
from spinezarr.store.files import read_each

GENERAL = {"http": {"client_kwargs": {"trust_env": False}}, "s3": {"version_aware": False}}
"""Options without effect that our own client does not support, so that fsspec is used."""
MOST_BYTES = 1 << 20
SPAN = (10, 110)
SENT_BYTES = 1 << 30
"""Bytes sent of an endless answer; more than any reader may keep."""
KEPT_BYTES = 512 << 20
ZEROS = bytes(1 << 20)
RANGE_HEAD = "HTTP/1.1 206 x\r\nContent-Range: bytes 10-109/1024\r\n"


class Liar(RawServer):
    """A server that answers each request with what a function sends."""

    def __init__(self, lie):
        self.lie = lie
        self.is_over = threading.Event()
        super().__init__()

    def answer(self, connection, head):
        self.lie(self, connection, head)

    def close(self):
        self.is_over.set()
        super().close()


def answers_with(head, body=b"", *, ends=False):
    """Answer with a head, which has no empty line yet, and a body."""

    def lie(_server, connection, _head):
        connection.sendall(head.encode() + b"\r\n" + body)
        if ends:
            connection.close()

    return lie


def endless(head, part=ZEROS):
    """Answer with a head and an endless body."""

    def lie(_server, connection, _head):
        connection.sendall(head.encode() + b"\r\n")
        for _ in range(SENT_BYTES // len(part)):
            connection.sendall(part)
        connection.close()

    return lie


def drips(head, body=b""):
    def lie(server, connection, _head):
        connection.sendall(head.encode() + body)
        while not server.is_over.wait(0.05):
            connection.sendall(b"x")

    return lie


def silent(_server, _connection, _head):
    """Say nothing."""


def reset(_server, connection, _head):
    connection.sendall(RANGE_HEAD.encode() + b"Content-Length: 100\r\n\r\nabc")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def loops(server, connection, head):
    path = head.split()[1]
    text = f"HTTP/1.1 302 x\r\nLocation: {server.url}{path}x\r\nContent-Length: 0\r\n\r\n"
    connection.sendall(text.encode())


def leads_to(url, status="302 x"):
    return answers_with(f"HTTP/1.1 {status}\r\nLocation: {url}\r\nContent-Length: 0\r\n")


CHUNK = b"100000\r\n" + ZEROS + b"\r\n"
BOMB = gzip.compress(bytes(64 << 20))
ENDLESS_FIELDS = "".join(f"X-{i}: {'y' * 1000}\r\n" for i in range(100)).encode()
LIES = {
    "longer range": answers_with(RANGE_HEAD + "Content-Length: 100000\r\n", ZEROS[:100000]),
    "endless range": endless(RANGE_HEAD + "Content-Length: 99999999999\r\n"),
    "endless range without a length": endless(RANGE_HEAD + "Connection: close\r\n"),
    "endless chunks": endless(RANGE_HEAD + "Transfer-Encoding: chunked\r\n", CHUNK),
    "endless chunks and a length": endless(
        RANGE_HEAD + "Content-Length: 100\r\nTransfer-Encoding: chunked\r\n", CHUNK
    ),
    "endless whole": endless("HTTP/1.1 200 x\r\nContent-Length: 99999999999\r\n"),
    "endless whole in chunks": endless("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n", CHUNK),
    "endless error": endless("HTTP/1.1 404 x\r\nContent-Length: 99999999999\r\n"),
    "long error": endless(f"HTTP/1.1 404 x\r\nContent-Length: {SENT_BYTES}\r\n"),
    "error longer than memory": answers_with("HTTP/1.1 404 x\r\nContent-Length: 9000000000000\r\n"),
    "endless error in chunks": endless("HTTP/1.1 400 x\r\nTransfer-Encoding: chunked\r\n", CHUNK),
    "shorter body": answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 50, ends=True),
    "other range": answers_with(
        "HTTP/1.1 206 x\r\nContent-Range: bytes 0-99/1024\r\nContent-Length: 100\r\n", b"x" * 100
    ),
    "no range": answers_with("HTTP/1.1 206 x\r\nContent-Length: 100\r\n", b"x" * 100),
    "range of many digits": answers_with(
        f"HTTP/1.1 206 x\r\nContent-Range: bytes 10-{'9' * 5000}/*\r\nContent-Length: 100\r\n",
        b"x" * 100,
    ),
    "gzip bomb": answers_with(
        f"{RANGE_HEAD}Content-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n", BOMB
    ),
    "gzip bomb as the whole": answers_with(
        f"HTTP/1.1 200 x\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n", BOMB
    ),
    "endless head": endless("HTTP/1.1 200 x", ENDLESS_FIELDS),
    "endless line": endless("HTTP/1.1 200 x\r\nX: ", b"y" * (1 << 20)),
    "endless reason": endless("HTTP/1.1 503 ", b"y" * (1 << 20)),
    "redirect loop": loops,
    "redirect to a file": leads_to("file:///etc/hostname"),
    "redirect to secrets of a cloud": leads_to("http://169.254.169.254/latest/meta-data/"),
    "redirect to nowhere": leads_to("http://[::1"),
    "silence": silent,
    "silence after the head": answers_with(RANGE_HEAD + "Content-Length: 100\r\n"),
    "silence in the middle": answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 50),
    "drip": drips(RANGE_HEAD + "Content-Length: 100000\r\n\r\n"),
    "drip of a range": drips(RANGE_HEAD + "Content-Length: 100\r\n\r\n"[:-2]),
    "drip of the head": drips("HTTP/1.1 206 x\r\nX: "),
    "reset": reset,
    "hang up": lambda _server, connection, _head: connection.close(),
    "no HTTP": answers_with("SSH-2.0-OpenSSH\r\n", ZEROS, ends=True),
    "no head": answers_with("\x00\x01\x02\x03\xff" * 100, ends=True),
    "negative length": answers_with(RANGE_HEAD + "Content-Length: -5\r\n", ZEROS),
    "length of many digits": answers_with(f"{RANGE_HEAD}Content-Length: {'9' * 5000}\r\n", ZEROS),
    "two lengths": answers_with(
        RANGE_HEAD + "Content-Length: 100\r\nContent-Length: 9\r\n", b"x" * 100
    ),
    "no such range, ever": answers_with(
        "HTTP/1.1 416 x\r\nContent-Range: bytes */1024\r\nContent-Length: 0\r\n"
    ),
    "wait for a year": answers_with(
        "HTTP/1.1 503 x\r\nRetry-After: 31536000\r\nContent-Length: 0\r\n"
    ),
    "controls in the code": answers_with(
        "HTTP/1.1 418 \x1b[2J\r\nContent-Length: 36\r\n", b"<Error><Code>\x1b[2Jx</Code></Error>  "
    ),
}
WAYS = ["http-direct", "http-fsspec", "s3-direct", "s3-fsspec"]

IMPATIENT = RemoteSettings(
    stall_window_s=0.5,
    s3_first_byte_s=4.0,
    first_backoff_s=0.01,
    longest_backoff_s=0.02,
    patience_s=1.0,
    opening_patience_s=0.5,
    first_patience_s=0.5,
)
"""Settings that wait for seconds where users wait for minutes."""
PATIENT = replace(IMPATIENT, stall_window_s=TIMEOUT_S, s3_first_byte_s=TIMEOUT_S)
"""Settings for servers that answer: s3fs takes seconds until it sends its first request."""


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch, tmp_path):
    """Hide the user's own settings."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def liar():
    """Return a function that starts servers, which end with the test."""
    running = []

    def start(lie):
        running.append(Liar(lie))
        return running[-1]

    yield start
    for server in running:
        server.close()


def opened(server, way, settings=IMPATIENT, **options):
    kind, _, client = way.partition("-")
    if kind == "s3":
        options |= {"endpoint_url": server.url, "key": "KEY", "secret": "SECRET"}
    options |= GENERAL[kind] if client == "fsspec" else {}
    url = f"{server.url}/folder" if kind == "http" else "s3://bucket/folder"
    transport, path = open_transport(url, options, settings)
    assert transport.uses_direct_client == (client == "direct")
    return transport, path


@contextmanager
def memory_bounded():
    """Fail if the memory of the process grows."""
    process, over = psutil.Process(), threading.Event()
    base = most = process.memory_info().rss

    def look():
        nonlocal most
        while not over.wait(0.02):
            most = max(most, process.memory_info().rss)

    watch = threading.Thread(target=look)
    watch.start()
    yield
    over.set()
    watch.join()
    assert most - base <= KEPT_BYTES


def asked(transport, path, *span):
    async def ask():
        return await asyncio.wait_for(transport.get(path, *span), TIMEOUT_S)

    return bytes(asyncio.run(ask()))


FEW = ["endless range", "endless chunks", "endless error", "redirect to a file", "drip", "silence"]
"""Lies that S3 clients meet in each run of the tests, because each of s3fs takes a second."""


@pytest.mark.parametrize(
    ("way", "lie"),
    [
        pytest.param(
            way, lie, marks=pytest.mark.long if way.startswith("s3") and lie not in FEW else ()
        )
        for lie in LIES
        for way in WAYS
    ],
)
def test_a_misleading_answer_is_an_error_in_bounded_memory(liar, way, lie):
    server = liar(LIES[lie])
    transport, path = opened(server, way)
    for span in (SPAN, (None, None, MOST_BYTES)):
        with memory_bounded():
            found = attempt(transport, f"{path}/a", *span)
        if isinstance(found, bytes):
            # Bytes are returned only if they are no more than were requested or allowed.
            assert len(found) <= (100 if span is SPAN else MOST_BYTES)
            assert span is not SPAN or lie == "no such range, ever"
        else:
            assert not isinstance(found, TimeoutError)
            assert f"{path}/a" in str(found)
            assert len(str(found)) < 1000
            assert str(found).isprintable()


def attempt(transport, path, *span):
    """Return the bytes, or the error that was raised."""
    try:
        return asked(transport, path, *span)
    except (OSError, SpinezarrError) as problem:
        return problem


@pytest.mark.parametrize("way", WAYS)
def test_the_error_of_a_too_large_object_names_its_size(liar, way):
    server = liar(answers_with("HTTP/1.1 200 x\r\nContent-Length: 5000\r\n", ZEROS[:5000]))
    transport, path = opened(server, way, PATIENT)
    assert len(asked(transport, f"{path}/a", None, None, 5000)) == 5000
    with pytest.raises(CorruptStoreError, match=r"/a: .* 5000 bytes where at most 4999 bytes"):
        asked(transport, f"{path}/a", None, None, 4999)


REFUSALS = {
    "gzip bomb": r"compresses what it sends \(Content-Encoding\)",
    "redirect loop": "more than 5 redirects follow each other",
    "redirect to a file": "does not lead to a web server",
    "redirect to secrets of a cloud": "an address of the machine's own network",
}


@pytest.mark.parametrize("lie", REFUSALS)
@pytest.mark.parametrize("way", ["http-direct", "http-fsspec"])
def test_the_error_says_why_an_answer_is_refused(liar, way, lie):
    transport, path = opened(liar(LIES[lie]), way)
    with pytest.raises(OSError, match=REFUSALS[lie]):
        asked(transport, f"{path}/a", *SPAN)


@pytest.mark.long
@pytest.mark.parametrize("lie", ["silence", "silence in the middle", "drip", "drip of the head"])
@pytest.mark.parametrize("way", WAYS)
def test_the_error_of_a_stalled_answer_says_so(liar, way, lie):
    server = liar(LIES[lie] if lie != "drip" else drips(RANGE_HEAD + "Content-Length: 100\r\n\r\n"))
    transport, path = opened(server, way)
    with pytest.raises(StalledResponseError, match="sends nothing, or too little"):
        asked(transport, f"{path}/a", *SPAN)


@pytest.mark.parametrize("lie", LIES)
def test_opening_a_store_on_a_misleading_server_is_an_error(liar, lie):
    server = liar(LIES[lie])
    with memory_bounded(), pytest.raises((SpinezarrError, OSError)) as caught:
        spinezarr.open(f"{server.url}/store.zarr", remote=IMPATIENT)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", ["zarr.json", "table_bundle", "table/zarr.json"])
@pytest.mark.parametrize("body", [b"garbage", b"{}", ZEROS])
def test_garbage_in_place_of_a_store_file_is_an_error(liar, name, body):
    def lie(_server, connection, head):
        body_here = body if head.split()[1].endswith(name) else b""
        status = "200 x" if body_here else "404 x"
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body_here)}\r\n\r\n".encode()
        )
        connection.sendall(body_here)

    with pytest.raises((SpinezarrError, OSError)):
        spinezarr.open(f"{liar(lie).url}/store.zarr", remote=IMPATIENT)


def test_an_object_that_comes_and_goes_is_absent_or_whole(liar):
    count = iter(range(1000))

    def lie(_server, connection, _head):
        status = ("404 x", "200 x")[next(count) % 2]
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nab".encode())

    server = liar(lie)
    objects = RemoteObjects(server.url, settings=IMPATIENT)
    for _ in range(4):
        assert objects.read([f"{server.url}/a"]) in ({}, {f"{server.url}/a": b"ab"})


# Slow and honest servers


@pytest.mark.parametrize("way", WAYS)
def test_a_slow_server_is_waited_for(liar, way):
    """The server repeatedly sends a quarter of what the slowest link carries in a window."""
    window_s = IMPATIENT.stall_window_s + IMPATIENT.stall_window_per_request_s
    part = int(IMPATIENT.slowest_link_bytes_per_s * window_s / 4) + 1

    def lie(server, connection, head):
        text = f"HTTP/1.1 206 x\r\nContent-Range: bytes 0-{5 * part - 1}/{5 * part}\r\n"
        connection.sendall(f"{text}Content-Length: {5 * part}\r\n\r\n".encode())
        for _ in range(5):
            server.is_over.wait(0.4 if "slow" in head else 0)
            connection.sendall(ZEROS[:part])

    server = liar(lie)
    # s3fs takes seconds to make a client, which later transports share.
    prepared, path = opened(server, way, replace(IMPATIENT, stall_window_s=TIMEOUT_S))
    asked(prepared, f"{path}/a", 0, 5 * part)
    transport, path = opened(server, way)
    assert asked(transport, f"{path}/slow", 0, 5 * part) == bytes(5 * part)


def test_the_stall_window_grows_with_the_requests_in_flight():
    async def run():
        many = stall_detection.StallDetector(IMPATIENT)
        alone = [many.window_s, many.least_bytes / many.window_s]
        watched = [stall_detection.RequestProgress(many) for _ in range(256)]
        assert many.window_s > 50 * alone[0]
        assert many.least_bytes / many.window_s == pytest.approx(alone[1] / 256)
        assert many.least_bytes > 1460  # one packet is not enough
        for progress in watched:
            progress.end()
        assert not many.in_flight

    asyncio.run(run())


def test_an_endless_answer_is_given_up(liar):
    short = replace(IMPATIENT, longest_answer_s=1.5)
    transport, path = opened(liar(endless_at_pace), "http-direct", short)
    with pytest.raises(StalledResponseError):
        asked(transport, f"{path}/a", 0, 1 << 30)


def endless_at_pace(server, connection, _head):
    text = f"HTTP/1.1 206 x\r\nContent-Range: bytes 0-{(1 << 30) - 1}/*\r\n"
    connection.sendall(f"{text}Content-Length: {1 << 30}\r\n\r\n".encode())
    while not server.is_over.wait(0.1):
        connection.sendall(ZEROS[:10000])


def test_a_server_that_falls_silent_is_given_up(liar):
    """After some answers there are none: the client waits about as long as a restart takes."""
    count = iter(range(1000))

    def lie(_server, connection, _head):
        if next(count) < 2:
            text = "HTTP/1.1 206 x\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab"
            connection.sendall(text.encode())

    server = liar(lie)
    objects = RemoteObjects(server.url, settings=IMPATIENT)
    wanted = [(f"{server.url}/a", 0, 2)]
    with objects.ranges(wanted) as (data,):
        assert bytes(data) == b"ab"
    with objects.ranges(wanted):
        pass
    with pytest.raises(ConnectionError, match=r"attempts in \d s: the server sends nothing"):  # noqa: SIM117
        with objects.ranges(wanted):
            pass


# Where secrets go

PLANTED = re.compile("canary", re.IGNORECASE)


@pytest.mark.parametrize("way", ["http-direct", "http-fsspec"])
@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_no_secret_follows_a_redirect(liar, way, status):
    there = liar(answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 100))
    here = liar(leads_to(f"{there.url}/b", status))
    headers = {"X-Token": "CANARY", "Authorization": "Bearer CANARY", "Cookie": "a=CANARY"}
    transport, path = opened(here, way, headers=headers)
    assert asked(transport, f"{path}/a", *SPAN) == b"x" * 100
    assert len(PLANTED.findall(here.heads[0])) == 3
    assert not PLANTED.search(there.heads[0])
    login = f"http://me:CANARY@127.0.0.1:{here.port}/folder"
    transport, path = open_transport(
        login, GENERAL["http"] if way == "http-fsspec" else {}, IMPATIENT
    )
    assert asked(transport, f"{path}/a", *SPAN) == b"x" * 100
    assert re.search("(?i)authorization", here.heads[-1])
    assert not re.search("(?i)authorization", there.heads[-1])


@pytest.mark.parametrize("way", ["http-direct", "http-fsspec"])
def test_secrets_stay_with_their_server(liar, way):
    def lie(server, connection, head):
        if head.split()[1].endswith("/a"):
            leads_to(f"{server.url}/b")(server, connection, head)
        else:
            answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 100)(
                server, connection, head
            )

    server = liar(lie)
    transport, path = opened(server, way, headers={"X-Token": "CANARY"})
    assert asked(transport, f"{path}/a", *SPAN) == b"x" * 100
    assert all(PLANTED.search(head) for head in server.heads)


@pytest.mark.parametrize("way", ["s3-direct", "s3-fsspec"])
def test_no_signature_follows_a_redirect(liar, way):
    there = liar(answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 100))
    here = liar(leads_to(f"{there.url}/b", "307 x"))
    transport, path = opened(here, way, PATIENT, token="CANARY")  # noqa: S106
    with suppress(OSError, SpinezarrError):
        asked(transport, f"{path}/a", *SPAN)
    assert here.heads
    assert not any(re.search("(?i)canary|authorization", head) for head in there.heads)


def test_a_header_with_a_line_break_is_not_sent(liar):
    server = liar(answers_with(RANGE_HEAD + "Content-Length: 100\r\n", b"x" * 100))
    transport, path = open_transport(server.url, {"headers": {"X-A": "b\r\nX-C: d"}}, IMPATIENT)
    with pytest.raises((OSError, ValueError)):
        asked(transport, f"{path}/a", *SPAN)
    assert not any("X-C" in head for head in server.heads)


def test_the_error_text_of_a_server_is_shortened_and_printable():
    said = str(response_error(418, "A\x1b[2J\u202e" + "B" * 10_000, "s3://bucket/a"))
    assert len(said) < 400
    assert said.isprintable()


def test_requests_are_signed_as_botocore_signs_them():
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415  takes long
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415
    from botocore.credentials import Credentials  # noqa: PLC0415

    target = "/bucket/a%20b/%C3%A4~-._%2B"
    for token in (None, "TOKEN"):
        keys = {"access_key_id": "KEY", "secret_access_key": "SECRET", "token": token}
        now = datetime.now(UTC)
        ours = sign_headers(
            "host:80", target, {"Range": "bytes=0-9"}, keys=keys, region="eu-west-1", now=now
        )
        request = AWSRequest("GET", f"http://host:80{target}", headers={"Range": "bytes=0-9"})
        auth = S3SigV4Auth(Credentials("KEY", "SECRET", token), "s3", "eu-west-1")
        request.context["timestamp"] = ours["x-amz-date"]
        request.headers["X-Amz-Date"] = ours["x-amz-date"]
        request.headers["X-Amz-Content-SHA256"] = ours["x-amz-content-sha256"]
        if token:
            request.headers["X-Amz-Security-Token"] = token
        request.headers["Host"] = "host:80"
        theirs = auth.signature(
            auth.string_to_sign(request, auth.canonical_request(request)), request
        )
        assert ours["Authorization"].endswith(f"Signature={theirs}")


# Writers


def test_a_writer_reads_a_limited_number_of_bytes(liar):
    server = liar(endless("HTTP/1.1 206 x\r\nContent-Range: bytes 0-1000/*\r\n", ZEROS))
    options = {"endpoint_url": server.url, "key": "K", "secret": "S"}
    from spinezarr.store.files import open_filesystem  # noqa: PLC0415

    fs, _ = open_filesystem("s3://bucket/a", options)
    with memory_bounded():
        (found,) = read_each(fs, ["bucket/a"], 1000)
    assert isinstance(found, OSError)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/large", bytes(1001))
    memory.pipe_file("/small", bytes(1000))
    large, small = read_each(memory, ["/large", "/small"], 1000)
    assert isinstance(large, CorruptStoreError)
    assert small == bytes(1000)
    memory.rm("/large")
    memory.rm("/small")
