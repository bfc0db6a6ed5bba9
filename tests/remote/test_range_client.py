"""The code in C gets each range exactly, or says that it did not come, whatever a server sends."""

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import RawServer

from spinezarr.remote.http1 import MAX_HEAD_BYTES, Server
from spinezarr.remote.range_client import RangeCall, RangeClient, range_library
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.remote.stall_detection import RateMeter, StallDetector

DATA = np.random.default_rng(0).bytes(300_000)
GOOD = "HTTP/1.1 206 Partial Content\r\n"

pytestmark = pytest.mark.skipif(range_library() is None, reason="the code in C is not built")


class Answering(RawServer):
    """A server whose answers a function makes from the range of the request."""

    def __init__(self, respond):
        self.respond = respond
        self.n_connections = 0
        super().__init__()

    def answer(self, connection, head):
        (line,) = (line for line in head.splitlines() if line.lower().startswith("range:"))
        first, last = map(int, line.partition("=")[2].split("-"))
        self.respond(connection, first, last + 1)

    def _serve_heads(self, connection):
        self.n_connections += 1
        super()._serve_heads(connection)


@pytest.fixture
def serve():
    servers = []

    def start(respond):
        servers.append(Answering(respond))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def client():
    return RangeClient(StallDetector(DEFAULT_REMOTE_SETTINGS), RateMeter())


def read(client, server, spans, at_once=4, on_slice=lambda _call: None):
    call = RangeCall(on_slice)
    heads = [f"GET /x HTTP/1.1\r\nRange: bytes={a}-{b - 1}\r\n\r\n".encode() for a, b in spans]
    found = client.read(Server("127.0.0.1", server.port, None), heads, spans, call, at_once)
    return [None if response is None else bytes(response.data) for response in found]


def fields(start, stop, **others):
    values = {
        "Content-Range": f"bytes {start}-{stop - 1}/{len(DATA)}",
        "Content-Length": f"{stop - start}",
        **others,
    }
    return "".join(f"{name}: {text}\r\n" for name, text in values.items() if text is not None)


def right(connection, start, stop):
    connection.sendall(f"{GOOD}{fields(start, stop)}\r\n".encode() + DATA[start:stop])


SPANS = st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 70_000)).map(
    lambda pair: (pair[0], min(len(DATA), sum(pair)))
)


@given(
    spans=st.lists(SPANS, min_size=1, max_size=12),
    at_once=st.integers(1, 16),
    pieces=st.lists(st.integers(1, 40_000), max_size=4),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ranges_come_in_order_however_they_are_cut(serve, client, spans, at_once, pieces):
    def respond(connection, start, stop):
        answer = f"{GOOD}{fields(start, stop)}\r\n".encode() + DATA[start:stop]
        for size in pieces:
            connection.sendall(answer[:size])
            answer = answer[size:]
        connection.sendall(answer)

    server = serve(respond)
    assert read(client, server, spans, at_once) == [DATA[a:b] for a, b in spans]
    assert server.n_connections <= at_once
    assert read(client, server, spans, at_once) == [DATA[a:b] for a, b in spans]
    assert server.n_connections <= at_once  # they were kept
    server.close()


def raw(text):
    return lambda connection, start, stop: connection.sendall(text(start, stop))


def headed(status="HTTP/1.1 206 x\r\n", extra="", body=None, **others):
    def respond(connection, start, stop):
        head = f"{status}{fields(start, stop, **others)}{extra}\r\n"
        connection.sendall(head.encode("latin-1") + (DATA[start:stop] if body is None else body))

    return respond


def shifted(by_first, by_last, total=300_000):
    def respond(connection, start, stop):
        text = f"bytes {start + by_first}-{stop - 1 + by_last}/{total}"
        headed(**{"Content-Range": text})(connection, start, stop)

    return respond


def ended(connection, _start, _stop):
    connection.close()


def cut(connection, start, stop):
    connection.sendall(f"{GOOD}{fields(start, stop)}\r\n".encode() + DATA[start : stop - 1])
    connection.close()


def reset(connection, start, stop):
    connection.sendall(f"{GOOD}{fields(start, stop)}\r\n".encode() + DATA[start : start + 1])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


LIES = {
    "whole object": headed("HTTP/1.1 200 OK\r\n"),
    "unavailable": headed("HTTP/1.1 503 x\r\n"),
    "redirect": headed("HTTP/1.1 302 x\r\n", "Location: http://127.0.0.1:1/\r\n"),
    "HTTP/1.0": headed("HTTP/1.0 206 x\r\n"),
    "HTTP/2": headed("HTTP/2 206\r\n"),
    "longer status": headed("HTTP/1.1 2066 x\r\n"),
    "no status line": raw(lambda a, b: DATA[a:b] + bytes(MAX_HEAD_BYTES)),
    "control character": headed("HTTP/1.1 206 \x01\r\n"),
    "control character in a field": headed(extra="X: \x07\r\n"),
    "folded field": headed(extra="X: 1\r\n 2\r\n"),
    "space before the colon": headed(extra="X : 1\r\n"),
    "field without a name": headed(extra=": 1\r\n"),
    "line feed alone": headed(extra="X: 1\nY: 2\r\n"),
    "carriage return alone": headed(extra="X: 1\rY: 2\r\n"),
    "no length": headed(**{"Content-Length": None}),
    "two lengths": headed(extra="Content-Length: 5\r\n"),
    "negative length": headed(**{"Content-Length": "-1"}),
    "length with a sign": headed(**{"Content-Length": "+100"}),
    "huge length": headed(**{"Content-Length": "9" * 40}),
    "other length": headed(**{"Content-Length": "99"}),
    "no range": headed(**{"Content-Range": None}),
    "two ranges": headed(extra="content-range: bytes 0-9/10\r\n"),
    "earlier range": shifted(-1, -1),
    "earlier start": shifted(-1, 0),
    "later start": shifted(1, 0),
    "later end": shifted(0, 1),
    "impossible total": shifted(0, 0, total=50),
    "huge total": shifted(0, 0, total="9" * 40),
    "garbage after the total": shifted(0, 0, total="1000000x"),
    "other unit": headed(**{"Content-Range": "lines 100-199/1000"}),
    "encoded": headed(**{"Content-Encoding": "gzip"}),
    "chunked": headed(**{"Transfer-Encoding": "chunked"}),
    "longer body": headed(body=DATA[:101]),
    "endless head": raw(lambda _a, _b: GOOD.encode() + b"X: y\r\n" * 5000),
    "end": ended,
    "cut": cut,
    "reset": reset,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_response_that_is_not_the_range_did_not_come(serve, client, lie):
    lies = [True]

    def respond(connection, start, stop):
        (lie if start == 100 and lies[0] else right)(connection, start, stop)

    server = serve(respond)
    spans = [(0, 10), (100, 200), (20, 30)]
    assert read(client, server, spans, at_once=1) == [DATA[:10], None, DATA[20:30]]
    # The connection of the lie is not used again.
    lies[0] = False
    assert read(client, server, spans, at_once=1) == [DATA[a:b] for a, b in spans]


@pytest.mark.parametrize(
    "respond",
    [
        headed(extra="X-Odd!#$%&'*+-.^_`|~: \t \xff caf\xe9 \t\r\n"),
        headed(**{"Content-Range": None}, extra="content-RANGE:bytes 100-199/*\r\n"),
        headed("HTTP/1.1 206\r\n"),
        headed(**{"Content-Encoding": "identity"}),
    ],
)
def test_all_forms_of_a_right_response_are_read(serve, client, respond):
    server = serve(respond)
    assert read(client, server, [(100, 200)] * 3, 1) == [DATA[100:200]] * 3
    assert server.n_connections == 1


@pytest.mark.parametrize("says_so", [True, False])
def test_a_server_may_end_each_connection(serve, client, says_so):
    extra = "Connection: keep-alive, Close\r\n" if says_so else ""

    def respond(connection, start, stop):
        headed(extra=extra)(connection, start, stop)
        connection.close()

    server = serve(respond)
    spans = [(i, i + 500) for i in range(0, 9000, 300)]
    for _ in range(2):
        assert read(client, server, spans) == [DATA[a:b] for a, b in spans]


def test_a_forged_response_to_the_next_request_ends_the_connection(serve, client):
    is_sent = threading.Event()

    def respond(connection, start, stop):
        right(connection, start, stop)
        time.sleep(0.05)  # the client has the response before more bytes come
        head = f"{GOOD}{fields(start + 1, stop + 1)}\r\n".encode()
        with suppress(OSError):
            connection.sendall(head + bytes(stop - start))
        is_sent.set()

    server = serve(respond)
    for start in range(4):
        is_sent.clear()
        assert read(client, server, [(start, start + 9)], 1) == [DATA[start : start + 9]]
        assert is_sent.wait(20)
    assert server.n_connections == 4


def test_nobody_listens(client):
    call = RangeCall(lambda _call: None)
    with socket.socket() as taken:  # nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        server = Server("127.0.0.1", taken.getsockname()[1], None)
        assert client.read(server, [b"GET"] * 3, [(0, 9)] * 3, call, 2) == [None] * 3
    assert client.read(server, [], [], call, 2) == []


def test_a_server_that_refuses_some_connections_is_read_by_the_others(serve, client):
    def respond(connection, start, stop):
        time.sleep(0.03)  # the call takes several turns
        right(connection, start, stop)

    server = serve(respond)
    opened = client._open
    n_opened = 0

    def open_or_fail(place):
        nonlocal n_opened
        n_opened += 1
        if n_opened % 3 == 1:
            return opened(place)
        refused = socket.socket()
        refused.setblocking(False)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            refused.connect_ex(taken.getsockname())
        return refused

    client._open = open_or_fail
    spans = [(i, i + 500) for i in range(0, 9000, 300)]
    assert read(client, server, spans, at_once=6) == [DATA[a:b] for a, b in spans]
    assert n_opened == 6


def test_a_server_without_understandable_responses_is_left_to_the_event_loop(serve, client):
    server = serve(headed("HTTP/1.1 302 x\r\n"))
    place = Server("127.0.0.1", server.port, None)
    assert not client.can_read(place)
    client.allow(place)
    for _ in range(3):
        assert client.can_read(place)
        read(client, server, [(0, 9)])
    assert not client.can_read(place)


def test_a_silent_server_is_given_up(serve):
    detector = StallDetector(RemoteSettings(stall_window_s=0.3, stall_window_per_request_s=0.01))
    client = RangeClient(detector, RateMeter())
    server = serve(lambda connection, start, stop: start and right(connection, start, stop))
    assert read(client, server, [(0, 9), (5, 9)]) == [None, DATA[5:9]]
    assert not detector.in_flight


def test_a_call_is_cancelled_by_another_thread(serve, client):
    server = serve(lambda *_: None)
    calls = []
    seen = threading.Event()

    def on_slice(call):
        calls.append(call)
        seen.set()

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read, client, server, [(0, 9)] * 3, 2, on_slice)
        assert seen.wait(20)
        calls[0].cancel()
        assert reading.result(20) == [None] * 3


def test_objects_use_it_after_their_first_range(serve, tmp_path):
    server = serve(right)
    objects = RemoteObjects(server.url)
    wanted = [(f"{server.url}/x", i, i + 400) for i in range(0, 8000, 900)]
    for _ in range(3):
        with objects.ranges(wanted) as found:
            assert [bytes(data) for data in found] == [DATA[a:b] for _, a, b in wanted]
    assert objects.received_bytes >= 3 * 400 * len(wanted)
    # The event loop names itself in the same way, but the first call is alone with its tasks.
    assert len(server.heads) == 3 * len(wanted)


def test_empty_and_no_ranges_are_read_as_before(serve):
    server = serve(right)
    objects = RemoteObjects(server.url)
    path = f"{server.url}/x"
    for _ in range(3):
        with objects.ranges([(path, 7, 7), (path, 0, 9), (path, 0, 0)]) as found:
            assert [bytes(data) for data in found] == [b"", DATA[:9], b""]
        with objects.ranges([]) as found:
            assert found == []
        with objects.ranges([(path, 4, 5)]) as found:
            assert bytes(found[0]) == DATA[4:5]


def test_a_late_response_is_requested_a_second_time(serve):
    is_first = [True]

    def respond(connection, start, stop):
        if start == 300 and is_first[0]:
            is_first[0] = False
            return
        right(connection, start, stop)

    server = serve(respond)
    objects = RemoteObjects(
        server.url, settings=RemoteSettings(least_late_s=0.05, first_late_s=0.05)
    )
    for starts in ((0, 100, 200), (300, 400, 500)):
        wanted = [(f"{server.url}/x", a, a + 9) for a in starts]
        with objects.ranges(wanted) as found:
            assert [bytes(data) for data in found] == [DATA[a:b] for _, a, b in wanted]
    assert sum("bytes=300-" in head for head in server.heads) == 2
