"""Limits of the application: the memory that it holds, for how long, and the parts it sends."""

import http.client
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from http_client import fetch, fetch_patches
from psutil import net_connections
from timeouts import TIMEOUT_S, wait_until

from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

ITEM = {"scan_id": "liver_0", "start_zyx": [0, 0, 0]}
SMALL = {"items": [ITEM], "size_zyx": [4, 4, 4]}


@pytest.fixture
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


def test_incomplete_request_bodies_are_limited(serve_within):
    served = serve_within(bodies_bytes=1 << 20)
    host, _, port = served.removeprefix("http://").partition(":")
    head = f"POST /v1/ctspine1k/batch HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as one:
        one.sendall(head.encode() + bytes(900_000))
        large = json.dumps(SMALL).encode().ljust(300_000)
        wait_until(lambda: fetch_patches(f"{served}/v1/ctspine1k/batch", large)[0] == 429)
        # The server may still hold bytes of the body that it has just refused.
        wait_until(lambda: fetch_patches(f"{served}/v1/ctspine1k/batch", SMALL)[0] == 200)
    # The bytes of the closed connection are free again.
    wait_until(lambda: fetch_patches(f"{served}/v1/ctspine1k/batch", large)[0] == 200)


def is_reset(one):
    """Return whether the server has ended a connection that its client does not read."""
    ends = (one.getpeername(), one.getsockname())
    return ends not in [(open_.laddr, open_.raddr) for open_ in net_connections("tcp")]


def receive_all(one):
    """Return all bytes until the connection ends."""
    found = b""
    while data := one.recv(1 << 20):
        found += data
    return found


def stalled(url, window=4096):
    """Request patches of tens of megabytes, and read nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"items": [ITEM], "size_zyx": [200, 300, 400]}).encode()
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    one.settimeout(TIMEOUT_S)
    one.connect((host, int(port)))
    head = f"POST /v1/ctspine1k/batch HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}"
    one.sendall(f"{head}\r\n\r\n".encode() + body)
    return one


def test_unread_answers_are_limited(serve_within):
    served = serve_within(unsent_bytes=1 << 20)
    url = f"{served}/v1/ctspine1k/batch"
    with stalled(served) as one:
        assert one.recv(12) == b"HTTP/1.1 200"
        assert fetch_patches(url, SMALL)[0] == 429
    wait_until(lambda: fetch_patches(url, SMALL)[0] == 200)


def test_a_client_that_does_not_read_is_disconnected_and_delays_no_other(serve_within):
    url = serve_within(batches_at_once=1, unread_s=1.0)
    with stalled(url) as one, stalled(url) as other:
        assert one.recv(12) == other.recv(12) == b"HTTP/1.1 200"
        assert fetch_patches(f"{url}/v1/ctspine1k/batch", SMALL)[0] == 200
        # The next read of the client shows it.
        wait_until(lambda: is_reset(one))
        with pytest.raises(ConnectionResetError):
            receive_all(one)


def test_long_answers_are_sent_in_parts(serve_within, ctspine1k_url):
    body = {"items": [ITEM, ITEM], "size_zyx": [8, 9, 10]}
    served = serve_within(part_at_once_bytes=1000, part_bytes=300)
    for key in ("zarr.json", "scans/liver_0/image/c/0/0/0", "scans/liver_0/label/c/0/0/0"):
        url, data = f"{served}/zarr/ctspine1k/{key}", (Path(ctspine1k_url) / key).read_bytes()
        assert fetch(url)[2] == data
        assert fetch(url, range="bytes=7-5000")[2] == data[7:5001]
        assert fetch(url, "HEAD")[2] == b""
    in_parts = fetch_patches(f"{served}/v1/ctspine1k/batch", body)
    assert fetch_patches(f"{serve_within()}/v1/ctspine1k/batch", body)[2] == in_parts[2]


def test_a_file_cut_while_it_is_sent_ends_the_answer_early(ctspine1k_url, tmp_path, capfd):
    """The announced length tells the client that bytes are missing."""
    limits = ServeLimits(part_at_once_bytes=1000, part_bytes=300)
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    key = "scans/liver_0/image/c/0/0/0"
    size = (copy / key).stat().st_size
    with BackgroundServer(ServeSettings(paths=(str(copy),), limits=limits)) as server:
        assert fetch(f"{server.url}/zarr/own/{key}")[0] == 200
        os.truncate(copy / key, size // 2)
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as one:
            one.sendall(f"GET /zarr/own/{key} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            found = receive_all(one)
    head, _, body = found.partition(b"\r\n\r\n")
    assert f"content-length: {size}".encode() in head
    assert size // 4 < len(body) <= size // 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_with_two_lengths_is_refused(served):
    host, _, port = served.removeprefix("http://").partition(":")
    inner = f"GET /zarr/ctspine1k/zarr.json HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for method, path in (("POST", "/v1/ctspine1k/batch"), ("GET", "/zarr/ctspine1k/zarr.json")):
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n"
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as one:
            one.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner)
            found = receive_all(one)
        assert found.startswith(b"HTTP/1.1 400")
        assert found.count(b"HTTP/1.1") == 1


def test_answers_are_sent_without_waiting_for_acknowledgments(ctspine1k_url):
    """A client may delay its acknowledgment by 40 ms (RFC 1122, section 4.2.3.2)."""
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        (accepted,) = server._server.server_state.connections
        one = accepted.transport.get_extra_info("socket")
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()
