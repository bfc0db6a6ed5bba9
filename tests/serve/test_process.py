"""The server in processes of its own: cut bodies, stalled clients, loads and shutdown."""

import json
import os
import resource
import select
import signal
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import load
import numpy as np
import psutil
import pytest
from http_client import fetch, fetch_patches
from server_process import server_process
from timeouts import TIMEOUT_S, wait_until

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

SOUND = json.dumps({"items": [], "size_zyx": [1, 1, 1]}).encode()
CHUNK = b"%x\r\n" % len(SOUND) + SOUND + b"\r\n"


@pytest.fixture(scope="module")
def server(ctspine1k_url, tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("server"), ctspine1k_url) as server:
        yield server
        assert output_after_start(server) == ""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Make a store of one noise scan, whose image is a file of tens of megabytes."""
    folder = tmp_path_factory.mktemp("large")
    image = np.random.default_rng(1).integers(-1024, 3071, (128, 384, 384), np.int16)
    write_nifti(folder / "a_ct.nii", image, np.eye(4), NiftiForm())
    write_nifti(folder / "a_seg.nii", np.zeros_like(image, np.uint8), np.eye(4), NiftiForm())
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="large")
    url = folder / "large.zarr"
    assert not ingest(recipe, discover(recipe, str(folder)), str(url)).failed
    return url


SHARD = "scans/a/image/c/0/0/0"


def output_after_start(server):
    """Return the output of the server after the list of its stores."""
    return server.output.partition("Serving at")[2].partition("\n")[2].strip()


def connected(server, *, window=None):
    one = socket.socket()
    if window is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    one.settimeout(TIMEOUT_S)
    one.connect(("127.0.0.1", server.port))
    return one


def head(*lines, method="POST", path="/v1/ctspine1k/batch"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def receive_all(one):
    """Return all bytes until the connection ends."""
    found = b""
    while data := one.recv(1 << 20):
        found += data
    return found


# Bodies


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (["Transfer-Encoding: chunked"], CHUNK + b"0\r\n\r\n", 200),
        ([f"Content-Length: {len(SOUND)}"], SOUND, 200),
        (["Transfer-Encoding: chunked"], CHUNK + b"zz\r\n", 400),
        (["Transfer-Encoding: chunked"], CHUNK + b"-1\r\n", 400),
        (["Transfer-Encoding: chunked"], CHUNK + b"1\r\nab", 400),
        (["Transfer-Encoding: gzip, chunked"], CHUNK + b"0\r\n\r\n", 400),
        (["Transfer-Encoding: gzip"], SOUND, 400),
        (["Content-Length: 9", "Content-Length: 10"], SOUND, 400),
    ],
)
def test_a_faulty_body_is_never_taken_for_a_request(server, lines, body, status):
    """The part of a body before a fault looks like a request, but no client made it."""
    with connected(server) as one:
        one.sendall(head("Connection: close", *lines) + body)
        assert receive_all(one).startswith(b"HTTP/1.1 %d" % status)


def test_an_unfinished_body_is_never_taken_for_a_request(server):
    with connected(server) as one:
        one.sendall(head(f"Content-Length: {len(SOUND) + 1}") + SOUND)
        one.shutdown(socket.SHUT_WR)
        found = receive_all(one)
    assert found == b"" or found.startswith(b"HTTP/1.1 400")


def test_a_request_smuggled_into_another_is_not_answered(server):
    inner = head("Connection: close", method="GET", path="/zarr/ctspine1k/zarr.json")
    for body in (b"0\r\n\r\n", b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"):
        with connected(server) as one:
            lines = ["Content-Length: 5", "Transfer-Encoding: chunked"]
            one.sendall(head(*lines) + body + inner)
            found = receive_all(one)
        assert found.startswith(b"HTTP/1.1 400")
        assert found.count(b"HTTP/1.1") == 1


# Loads


def is_sound(found):
    assert found["wrong"] == []
    assert found["errors"] == {}
    assert found["output"] == ""
    assert found["sockets_left"] <= 2
    assert all(times["count"] for times in found["kinds"].values())


def test_many_clients_get_the_bytes_of_the_disk(server, ctspine1k_url):
    sampler = load.RequestSampler(Path(ctspine1k_url), batches=6)
    is_sound(load.run_load(server, sampler, seconds=1.5, connections=16))


@pytest.mark.long
def test_sixty_four_clients_get_the_bytes_of_the_disk(ctspine1k_url):
    found = load.run(Path(ctspine1k_url), seconds=10, connections=64, processes=2)
    is_sound(found)
    assert found["busy"] < found["kinds"]["patch"]["count"] / 10


def open_many(stack, server, count, data):
    """Open connections that send some data and then nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * count, hard), hard))
    many = [stack.enter_context(connected(server)) for _ in range(count)]
    for one in many:
        one.sendall(data)
    return many


def n_ended(many):
    """Return how many of some connections have an answer, or have ended."""
    looking = select.poll()
    for one in many:
        looking.register(one, select.POLLIN)
    return len(looking.poll(0))


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET /zarr/ctspine1k/zarr.json HTTP/1.1\r\nHost: loc", b""),
        (b"", b""),
        (head("Content-Length: 99") + b"{", b"HTTP/1.1 408"),
    ],
    ids=["head", "nothing", "body"],
)
def test_a_thousand_slow_clients_are_disconnected_while_others_are_served(server, data, expected):
    with ExitStack() as stack:
        many = open_many(stack, server, 1000, data)
        for number in range(20):
            assert fetch(f"{server.url}/zarr/ctspine1k/zarr.json")[0] == 200
            assert fetch_patches(f"{server.url}/v1/ctspine1k/batch", SOUND)[0] == 200
            assert number or n_ended(many) < len(many), "others wait until the slow ones are gone"
        for one in many:
            assert receive_all(one).startswith(expected)


@pytest.mark.long
def test_clients_that_do_not_read_take_little_memory_and_are_disconnected(large, tmp_path):
    size = [128, 384, 384]
    body = json.dumps({"items": [{"scan_id": "a", "start_zyx": [0, 0, 0]}], "size_zyx": size})
    get = head(method="GET", path=f"/zarr/large/{SHARD}")
    post = head(f"Content-Length: {len(body)}", path="/v1/large/batch") + body.encode()
    with server_process(tmp_path, large) as server, ExitStack() as stack:
        time.sleep(1)
        before, idle, began = server.resident_bytes, server.sockets, time.monotonic()
        for data in [get] * 100 + [post] * 16:
            one = stack.enter_context(connected(server, window=4096))
            one.sendall(data)
        most = 0
        # Answers in parts wait for their clients; refusals end by themselves.
        while server.sockets > idle + 4 or time.monotonic() - began < 10:
            most = max(most, server.resident_bytes)
            assert time.monotonic() - began < TIMEOUT_S
            assert fetch(f"{server.url}/zarr/large/zarr.json")[0] == 200
            time.sleep(0.2)
        assert time.monotonic() - began > 20
        assert most - before < 1400 << 20
        wanted = {"items": [{"scan_id": "a", "start_zyx": [0, 0, 0]}], "size_zyx": [8, 8, 8]}
        assert fetch_patches(f"{server.url}/v1/large/batch", wanted)[0] == 200
        assert output_after_start(server) == ""


@pytest.mark.long
def test_clients_that_leave_in_the_middle_leave_nothing_behind(large, tmp_path):
    """Half of the clients close the connection, the others reset it."""
    size = [64, 128, 128]
    body = json.dumps({"items": [{"scan_id": "a", "start_zyx": [0, 0, 0]}], "size_zyx": size})
    asked = [
        head(method="GET", path=f"/zarr/large/{SHARD}"),
        head("Range: bytes=0-99999", method="GET", path=f"/zarr/large/{SHARD}"),
        head(f"Content-Length: {len(body)}", path="/v1/large/batch") + body.encode(),
    ]
    with server_process(tmp_path, large) as server:

        def leave(first):
            for number in range(first, 1000, 8):
                one = connected(server)
                one.sendall(asked[number % 3 if number % 10 == 2 else number % 2])
                one.recv(number % 4000) if number % 3 else None
                if number % 2:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()

        def all_leave():
            threads = [Thread(target=leave, args=(first,)) for first in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait_until(lambda: server.n_connections == 0)

        for _ in range(2):  # how much memory is in use at once varies
            all_leave()
        before, idle = server.resident_bytes, server.sockets
        all_leave()
        wait_until(lambda: server.sockets <= idle + 2)
        assert server.resident_bytes < before + (100 << 20)
        assert fetch(f"{server.url}/zarr/large/zarr.json")[0] == 200
        assert output_after_start(server) == ""


# Shutdown


@pytest.mark.long
@pytest.mark.parametrize("reads", [True, False])
def test_answers_are_finished_within_five_seconds_at_shutdown(large, tmp_path, reads):
    bodies = {}
    with server_process(tmp_path, large) as server, ExitStack() as stack:
        window = None if reads else 4096
        many = [stack.enter_context(connected(server, window=window)) for _ in range(3)]
        for one in many:
            one.sendall(head("Connection: close", method="GET", path=f"/zarr/large/{SHARD}"))
        firsts = [one.recv(1000) for one in many]
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)

        def read(at):
            bodies[at] = (firsts[at] + receive_all(many[at])).partition(b"\r\n\r\n")[2]

        readers = [Thread(target=read, args=(at,)) for at in range(3 * reads)]
        for reader in readers:
            reader.start()
        server.process.wait(timeout=20)  # a client that does not read is given 30 s
        for reader in readers:
            reader.join()
        with pytest.raises(OSError, match=r"refused|reset"):
            socket.create_connection(("127.0.0.1", server.port))
    whole = (large / SHARD).read_bytes()
    assert all(body == whole for body in bodies.values())
    assert len(bodies) == 3 * reads


@pytest.mark.long
def test_a_killed_worker_process_is_replaced(ctspine1k_url, tmp_path):
    with server_process(tmp_path, ctspine1k_url, "--workers", 2) as server:
        url = f"{server.url}/zarr/ctspine1k/zarr.json"
        before = {worker.pid for worker in server.workers}
        assert len(before) == 2
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        answered = failed = 0
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until and (failed or not answered or not is_back(server, before)):
            try:
                assert fetch(url)[0] == 200
                answered += 1
                failed = 0
            except OSError:  # the connection belonged to the killed process
                failed += 1
            time.sleep(0.05)
        assert answered
        now = {worker.pid for worker in server.workers}
        assert killed not in now
        assert len(now) == 2
        for _ in range(50):
            assert fetch(url)[0] == 200


def is_back(server, before):
    alive = [worker.pid for worker in server.workers if worker.status() != psutil.STATUS_ZOMBIE]
    return len(alive) == 2 and set(alive) != before
