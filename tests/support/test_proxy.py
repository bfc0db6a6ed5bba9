"""Tests of the proxy over real sockets, on a folder and in front of servers."""

import asyncio
import hashlib
import http.client
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import aiohttp
import boto3
import pytest
import s3fs
from botocore.config import Config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxy import FAULTS, N_LATEST, Conditions, Counts, _Chunked, proxy

SCRIPT = Path(__file__).with_name("proxy.py")

SMALL = bytes(range(256)) * 4
LARGE = random.Random(7).randbytes(3_000_001)  # noqa: S311
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "small").write_bytes(SMALL)
    (folder / "empty").write_bytes(b"")
    (folder / "a b").mkdir()
    (folder / "a b" / "lärge").write_bytes(LARGE)
    (folder.parent / "secret").write_text("not served")
    return folder


LARGE_PATH = "/a%20b/l%C3%A4rge"


@contextmanager
def quiet_stderr(folder):
    """Return a function that starts proxies, which must print nothing on stderr."""
    stderr = folder / "stderr"

    def start(**options):
        own = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            return stack.enter_context(proxy(**options))
        finally:
            os.dup2(own, 2)
            os.close(own)

    with stderr.open("wb") as file, ExitStack() as stack:
        yield start
    assert not stderr.read_text()


@pytest.fixture(scope="module")
def running(folder, tmp_path_factory):
    """Run one proxy that serves the folder, and another in front of it."""
    with quiet_stderr(tmp_path_factory.mktemp("stderr")) as start:
        first = start(folder=folder)
        yield {"folder": first, "upstream": start(upstream=first.url)}


@pytest.fixture(autouse=True)
def _silent(capfd):
    """Fail if a proxy prints an error."""
    yield
    assert not capfd.readouterr().err


@pytest.fixture(params=["folder", "upstream"])
def served(request, running):
    """Return a proxy of either kind, with conditions and counts reset."""
    for one in running.values():
        one.set(Conditions())
        one.reset()
    return running[request.param]


@contextmanager
def connected(url):
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)) as connection:
        connection.connect()
        yield connection


def send(connection, path, range_="", method="GET", **fields):
    headers = {name.replace("_", "-"): text for name, text in fields.items()}
    connection.request(method, path, headers=headers | ({"Range": range_} if range_ else {}))
    answer = connection.getresponse()
    return answer, answer.read()


def get(url, path, range_="", **fields):
    with connected(url) as connection:
        return send(connection, path, range_, **fields)


def exchange(url, sent):
    """Send bytes, and return all bytes until the proxy closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S) as one:
        one.sendall(sent)
        return b"".join(iter(lambda: received(one), b""))


def received(one):
    """Return the next bytes; a reset counts as the end."""
    try:
        return one.recv(1 << 20)
    except ConnectionResetError:
        return b""


def request(path, *fields, method="GET"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


CLOSE = "Connection: close"


def parse(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    named = dict(field.split(": ", 1) for field in fields)
    return int(line.split(" ")[1]), {name.lower(): text for name, text in named.items()}, body


def wait_until(condition):
    """Wait until a condition holds."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def n_open(one):
    return len(list(Path(f"/proc/{one._process.pid}/fd").iterdir()))


positions = st.integers(0, len(SMALL) + 3)
RANGES = st.one_of(
    st.tuples(positions, positions).map(lambda ends: (f"bytes={ends[0]}-{ends[1]}", *ends)),
    positions.map(lambda first: (f"bytes={first}-", first, len(SMALL) - 1)),
    positions.map(lambda n: (f"bytes=-{n}", max(0, len(SMALL) - n), len(SMALL) - 1)),
)


def test_ranges_hold_the_bytes_of_the_file(running):
    for one in running.values():
        one.set(Conditions())
    with connected(running["folder"].url) as first, connected(running["upstream"].url) as second:

        @given(range_=RANGES, connection=st.sampled_from([first, second]))
        @example(range_=("bytes=0-0", 0, 0), connection=first)
        @example(range_=("bytes=-0", len(SMALL), len(SMALL) - 1), connection=first)
        @settings(max_examples=200)
        def holds(range_, connection):
            text, begin, last = range_
            expected = SMALL[begin : last + 1]
            answer, body = send(connection, "/small", text)
            if expected:
                end = begin + len(expected) - 1
                assert (answer.status, body) == (206, expected)
                assert answer.headers["Content-Range"] == f"bytes {begin}-{end}/{len(SMALL)}"
            else:
                assert (answer.status, body) == (416, b"")
                assert answer.headers["Content-Range"] == f"bytes */{len(SMALL)}"
            assert answer.headers["Content-Length"] == str(len(body))

        holds()


@pytest.mark.parametrize(
    "range_", ["", "bytes=-", "bytes=0-1,4-5", "lines=0-1", "bytes=a-b", "bytes=1"]
)
def test_unsupported_ranges_return_the_whole_file(served, range_):
    answer, body = get(served.url, LARGE_PATH, range_)
    assert (answer.status, body) == (200, LARGE)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert "Content-Range" not in answer.headers


def test_large_ranges_arrive_completely(served):
    with connected(served.url) as connection:
        for begin, end in ((0, 2_999_999), (17, 2_000_017), (65_536, 131_072)):
            answer, body = send(connection, LARGE_PATH, f"bytes={begin}-{end}")
            assert (answer.status, body) == (206, LARGE[begin : end + 1])


def test_head_has_the_fields_of_get_and_no_body(served):
    with connected(served.url) as connection:
        for path, range_ in (("/small", ""), ("/small", "bytes=4-9"), ("/empty", ""), ("/no", "")):
            head, nothing = send(connection, path, range_, method="HEAD")
            whole, body = send(connection, path, range_)
            assert nothing == b""
            assert (head.status, head.getheaders()) == (whole.status, whole.getheaders())
            assert int(whole.headers["Content-Length"]) == len(body)


def test_nothing_follows_the_answer_to_head(served):
    status, fields, body = parse(exchange(served.url, request("/small", CLOSE, method="HEAD")))
    assert (status, fields["content-length"], body) == (200, str(len(SMALL)), b"")


def test_one_connection_serves_many_requests(served):
    with connected(served.url) as connection:
        first = connection.sock
        for path in ("/small", "/no", LARGE_PATH, "/empty", "/small") * 5:
            send(connection, path)
            assert connection.sock is first


def test_a_connection_closes_when_asked_to(served):
    for answer in (
        exchange(served.url, request("/small", CLOSE)),
        exchange(served.url, b"GET /small HTTP/1.0\r\n\r\n"),
    ):
        status, fields, body = parse(answer)
        assert (status, fields["connection"], body) == (200, "close", SMALL)


@pytest.mark.parametrize(
    "path",
    ["/no", "/", "/a%20b", "/small/x", "/../secret", "/%2e%2e/secret", "/a%20b/../small", "/x%00"],
)
def test_absent_files_of_the_proxy_are_404(served, path):
    assert get(served.url, path)[0].status == 404


def test_the_etag_of_a_changed_file_differs(served, folder):
    path = folder / "changing"
    path.write_bytes(b"before")
    answer, body = get(served.url, "/changing")
    tag = answer.headers["ETag"]
    assert re.fullmatch(r'"[^"]+"', tag)
    for match, status in ((tag, 200), (f'"x", {tag}', 200), ("*", 200), ('"x"', 412)):
        assert get(served.url, "/changing", If_Match=match)[0].status == status
    assert get(served.url, "/changing", "bytes=0-1", If_Range=tag)[1] == b"be"
    path.write_bytes(b"later on")
    assert get(served.url, "/changing", "bytes=0-1", If_Range=tag)[1] == b"later on"
    assert get(served.url, "/changing", If_Match=tag)[0].status == 412
    answer, body = get(served.url, "/changing")
    assert (body, answer.headers["ETag"] != tag) == (b"later on", True)
    path.unlink()
    assert get(served.url, "/changing")[0].status == 404


def test_a_folder_takes_no_uploads(running, folder):
    sent = request("/new", "Content-Length: 3", method="PUT") + b"abc"
    assert parse(exchange(running["folder"].url, sent))[0] == 405
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\r\n\r\n", b"GET x HTTP/1.1\r\n\r\n", b"x" * 70_000]
)
def test_an_invalid_request_ends_the_connection(running, sent):
    assert exchange(running["folder"].url, sent) == b""


def test_more_files_than_are_kept_open_can_be_read(running, tmp_path):
    for n in range(300):
        (tmp_path / str(n)).write_text(str(n))
    with proxy(folder=tmp_path) as one, connected(one.url) as connection:
        for n in [*range(300), *range(300)]:
            assert send(connection, f"/{n}")[1] == str(n).encode()
        assert n_open(one) < 200


def test_requests_sent_at_once_are_answered_in_order(served):
    ranges = [(n * 7, n * 11 + 40) for n in range(60)]
    served.set(Conditions(latency_s=0.01))
    requests = [request("/small", f"Range: bytes={a}-{b}") for a, b in ranges]
    answer = exchange(served.url, b"".join([*requests, request("/empty", CLOSE)]))
    for begin, end in ranges:
        _, _, answer = answer.partition(b"\r\n\r\n")
        part = SMALL[begin : end + 1]
        assert answer.startswith(part)
        answer = answer[len(part) :]
    assert parse(answer)[1]["content-length"] == "0"


def test_many_connections_are_served_at_once(served):
    served.set(Conditions(latency_s=0.02))
    places = [(n * 9973 % 2_900_000, n * 1009 % 70_000) for n in range(300)]

    async def fetch(session, begin, n_bytes):
        headers = {"Range": f"bytes={begin}-{begin + n_bytes}"}
        async with session.get(served.url + LARGE_PATH, headers=headers) as answer:
            return await answer.read()

    async def fetch_all():
        connector = aiohttp.TCPConnector(limit=100)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await asyncio.gather(*(fetch(session, *place) for place in places))

    found = asyncio.run(fetch_all())
    assert found == [LARGE[begin : begin + n_bytes + 1] for begin, n_bytes in places]
    assert served.counts().requests == 300


def test_a_request_takes_at_least_the_latency(served):
    served.set(Conditions(latency_s=0.05))
    with connected(served.url) as connection:
        for path in ("/small", "/no", "/small"):
            begin = time.monotonic()
            send(connection, path)
            assert time.monotonic() - begin >= 0.05


def test_a_late_answer_delays_no_other(served):
    served.set(Conditions(latency_s=300))
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port)) as late:
        late.sendall(request("/small"))
        wait_until(lambda: served.counts().requests == 1)
        served.set(Conditions())
        assert get(served.url, "/small")[1] == SMALL
        assert not select.select([late], [], [], 0)[0]


def test_all_connections_together_stay_below_the_rate_limit(served):
    n_bytes, n_connections, rate = 300_000, 4, 4e6
    served.set(Conditions(bytes_per_s=rate))
    ranges = [f"bytes={n}-{n + n_bytes - 1}" for n in range(n_connections)]
    begin = time.monotonic()
    with ThreadPoolExecutor(n_connections) as threads:
        found = list(threads.map(lambda range_: get(served.url, LARGE_PATH, range_)[1], ranges))
    assert time.monotonic() - begin >= n_bytes * n_connections / rate
    assert found == [LARGE[n : n + n_bytes] for n in range(n_connections)]


def test_a_rate_limit_grants_no_bytes_for_idle_time(served):
    served.set(Conditions(bytes_per_s=1e6))
    with connected(served.url) as connection:
        send(connection, "/small")
        time.sleep(0.1)
        begin = time.monotonic()
        send(connection, LARGE_PATH, "bytes=0-99999")
        assert time.monotonic() - begin >= 0.1


def test_a_piece_arrives_once_the_link_has_carried_all_of_it(served):
    served.set(Conditions(bytes_per_s=10_000))
    begin = time.monotonic()
    get(served.url, "/small")
    assert time.monotonic() - begin >= len(SMALL) / 10_000


def test_a_small_answer_does_not_wait_for_a_large_one(served):
    served.set(Conditions(bytes_per_s=20_000))  # the large one takes minutes
    with connected(served.url) as large:
        large.request("GET", LARGE_PATH)
        wait_until(lambda: served.counts().body_bytes > 0)
        assert get(served.url, "/small")[1] == SMALL
        assert served.counts().body_bytes < 200_000


def test_a_running_answer_speeds_up_when_the_rate_limit_is_removed(served):
    served.set(Conditions(bytes_per_s=1000))
    with connected(served.url) as connection:
        connection.request("GET", LARGE_PATH)
        wait_until(lambda: served.counts().requests == 1)
        served.set(Conditions())
        assert connection.getresponse().read() == LARGE


def faulty(kind, **more):
    return Conditions(fault_rate=1.0, fault_kinds=(kind,), **more)


@pytest.mark.parametrize(("kind", "status"), [("unavailable", 503), ("too_many", 429)])
def test_refused_requests_get_503_or_429(served, kind, status):
    served.set(faulty(kind))
    with connected(served.url) as connection:
        for _ in range(2):  # the connection stays open
            answer, body = send(connection, "/small", "bytes=0-9")
            assert (answer.status, body) == (status, b"")
            assert answer.headers.get("Retry-After") == ("1" if status == 429 else None)
    assert served.counts().faults == {kind: 2}
    assert served.counts().statuses == {status: 2}


@pytest.mark.parametrize(("first", "last"), [(0, 999), (5, 5), (17, 900)])
def test_a_cut_answer_is_half_of_the_announced_length(served, first, last):
    served.set(faulty("cut"))
    expected = SMALL[first : last + 1]
    status, fields, body = parse(
        exchange(served.url, request("/small", f"Range: bytes={first}-{last}"))
    )
    assert (status, fields["content-length"]) == (206, str(len(expected)))
    assert "connection" not in fields
    assert body == expected[: len(expected) // 2]
    assert served.counts().faults == {"cut": 1}
    assert served.counts().body_bytes == len(body)


def test_a_large_answer_can_be_cut(served):
    served.set(faulty("cut"))
    _, fields, body = parse(exchange(served.url, request(LARGE_PATH)))
    assert (fields["content-length"], body) == (str(len(LARGE)), LARGE[: len(LARGE) // 2])
    with pytest.raises(http.client.IncompleteRead):
        get(served.url, LARGE_PATH)


def test_a_short_answer_announces_its_short_length(served):
    served.set(faulty("short"))
    with connected(served.url) as connection:
        for begin, end in ((0, 999), (5, 5), (17, 900)):
            answer, body = send(connection, "/small", f"bytes={begin}-{end}")
            expected = SMALL[begin : end + 1]
            assert (answer.status, body) == (200, expected[: len(expected) // 2])
            assert answer.headers["Content-Length"] == str(len(body))
            assert "Content-Range" not in answer.headers
    assert served.counts().statuses == {200: 3}


def test_a_flipped_answer_differs_by_one_bit(served):
    served.set(faulty("flip"))
    places = set()
    with connected(served.url) as connection:
        for _ in range(20):
            answer, body = send(connection, "/small", "bytes=1-1000")
            differing = int.from_bytes(body) ^ int.from_bytes(SMALL[1:1001])
            assert (answer.status, len(body), differing.bit_count()) == (206, 1000, 1)
            places.add(differing)
    assert len(places) > 10
    assert served.counts().faults == {"flip": 20}


def test_a_stalled_request_gets_nothing_and_then_an_end(served):
    served.set(faulty("stall", stall_s=0.1))
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S) as one:
        begin = time.monotonic()
        one.sendall(request("/small"))
        assert received(one) == b""
        assert time.monotonic() - begin >= 0.1
    assert served.counts().faults == {"stall": 1}
    assert served.counts().statuses == {}


def test_a_stalled_request_delays_no_other(folder):
    with proxy(folder=folder, conditions=faulty("stall", stall_s=3000)) as one:
        parts = urlsplit(one.url)
        stalled = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)
        stalled.sendall(request("/small"))
        wait_until(lambda: one.counts().faults == {"stall": 1})
        one.set(Conditions())
        assert get(one.url, "/small")[1] == SMALL
    with stalled:
        assert received(stalled) == b""


def test_faults_of_a_body_do_not_apply_to_answers_without_one(served):
    for kind in ("cut", "short", "flip"):
        served.set(faulty(kind))
        for path, status in (("/no", 404), ("/empty", 200)):
            answer, body = get(served.url, path)
            assert (answer.status, body) == (status, b"")
        with connected(served.url) as connection:
            assert send(connection, "/small", method="HEAD")[0].status == 200
    assert served.counts().faults == {}


def outcomes(url, n, range_="bytes=0-99", path="/small"):
    """Send a request ``n`` times, and return the outcome of each."""
    found = []
    for _ in range(n):
        try:
            answer, body = get(url, path, range_)
            found.append((answer.status, body))
        except (http.client.HTTPException, ConnectionError) as error:
            found.append((type(error), b""))
    return found


def test_the_same_seed_gives_the_same_faults(served):
    conditions = Conditions(fault_rate=0.5, stall_s=0.0, seed=3)
    served.set(conditions)
    found = outcomes(served.url, 80)
    counts = served.counts()
    for same in (conditions, replace(conditions, latency_s=0.001)):
        served.set(same)
        assert outcomes(served.url, 80) == found
    served.set(replace(conditions, seed=4))
    assert outcomes(served.url, 80) != found
    n_good = sum(one == (206, SMALL[:100]) for one in found)
    assert sum(counts.faults.values()) == 80 - n_good
    assert counts.faults.keys() == set(FAULTS)
    assert 25 < n_good < 55


def test_faults_have_the_given_rate_and_kinds(served):
    with connected(served.url) as connection:
        for rate in (0.0, 0.03, 0.3, 1.0):
            served.set(Conditions(fault_rate=rate, fault_kinds=("unavailable", "too_many")))
            served.reset()
            found = Counter(send(connection, "/small")[0].status for _ in range(1000))
            n_faults = found[503] + found[429]
            # Four standard deviations of a binomial distribution.
            assert abs(n_faults - 1000 * rate) <= 4 * (1000 * rate * (1 - rate)) ** 0.5
            assert abs(found[503] - found[429]) <= 4 * n_faults**0.5
            assert served.counts().statuses == found


def test_faults_apply_only_to_their_paths_and_to_get(served):
    served.set(replace(faulty("unavailable"), fault_paths=r"^/sm.*[?]a=1$"))
    paths = ["/small", "/small?a=1", "/small?a=12", "/empty?a=1"]
    assert [get(served.url, path)[0].status for path in paths] == [200, 503, 200, 200]
    served.set(faulty("unavailable"))
    with connected(served.url) as connection:
        assert send(connection, "/small", method="HEAD")[0].status == 200


def test_counts_are_exact(served):
    assert served.counts() == Counts(0, 0, {}, {}, ())
    with ThreadPoolExecutor(8) as threads:
        ranges = [f"bytes={n}-{n + 99}" for n in range(400)]
        list(threads.map(lambda range_: get(served.url, "/small", range_), ranges))
    counts = served.counts()
    assert (counts.requests, counts.body_bytes) == (400, 40_000)
    assert (counts.statuses, counts.faults) == ({206: 400}, {})
    assert sorted(counts.latest) == sorted(("GET", "/small", range_) for range_ in ranges)
    served.reset()
    with connected(served.url) as connection:
        send(connection, "/no?x=%20", method="HEAD")
    assert served.counts() == Counts(1, 0, {}, {404: 1}, (("HEAD", "/no?x=%20", ""),))


def test_only_the_latest_requests_are_listed(running):
    served = running["folder"]
    served.set(Conditions())
    served.reset()
    n = N_LATEST + 7
    sent = [request("/no", f"Range: bytes={i}-") for i in range(n)]
    exchange(served.url, b"".join([*sent[:-1], request("/no", f"Range: bytes={n - 1}-", CLOSE)]))
    counts = served.counts()
    assert (counts.requests, len(counts.latest)) == (n, N_LATEST)
    assert counts.latest[0][2] == "bytes=7-"


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": -1.0},
        {"latency_s": float("nan")},
        {"stall_s": -1.0},
        {"fault_rate": 1.5},
        {"bytes_per_s": 0.0},
        {"fault_kinds": ("flop",)},
        {"fault_rate": 0.5, "fault_kinds": ()},
    ],
)
def test_invalid_conditions_are_refused(wrong):
    with pytest.raises(ValueError, match=r"Conditions|no such faults"):
        Conditions(**wrong)


def test_the_proxy_ends_with_its_parent_process(folder):
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(SCRIPT.parent)!r})
from proxy import proxy
with proxy(folder=Path({str(folder)!r})) as one:
    print(one.url, one._process.pid, flush=True)
    time.sleep(1000)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        url, pid = parent.stdout.readline().split()
        assert get(url, "/small")[1] == SMALL
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or is_dead(pid))


def is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_the_context_ends_it_after_an_error_and_with_forked_children(folder):
    def fork_and_fail():
        with proxy(folder=folder) as one:
            child = os.fork()
            if not child:
                time.sleep(TIMEOUT_S)
                os._exit(0)
            ran.extend([one, child])
            raise KeyError

    ran = []
    try:
        with pytest.raises(KeyError):
            fork_and_fail()
    finally:
        one, child = ran
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert one._process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        get(one.url, "/small")


def test_the_context_raises_if_the_proxy_cannot_start(capfd):
    with pytest.raises(RuntimeError, match="ended"), proxy(upstream="ftp://x"):
        pass
    assert "ftp://x is not like http://host:port" in capfd.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_runs_the_proxy(folder, ending):
    options = ["--latency-ms", "20", "--megabytes-per-s", "1", "--fault-rate", "1"]
    options += ["--fault-kinds", "short", "--fault-paths", "small"]
    command = [sys.executable, SCRIPT, "--folder", folder, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **pipes) as process:
        url = process.stdout.readline().strip()
        begin = time.monotonic()
        assert get(url, LARGE_PATH, "bytes=0-99999")[1] == LARGE[:100_000]
        assert time.monotonic() - begin >= 0.12
        assert get(url, "/small")[1] == SMALL[: len(SMALL) // 2]
        process.send_signal(ending)
        assert process.communicate(timeout=TIMEOUT_S) == ("", "")
        assert process.returncode == 0


# In front of other servers


@contextmanager
def scripted(*connections):
    """Run a server of scripted connections; yield its URL and the requests of each connection.

    Each connection is a list of answers, one per request; the connection ends after them.
    """
    received = []

    def serve(listener):
        for answers in connections:
            one, _ = listener.accept()
            with one:
                for answer in answers:
                    received.append(read_request(one))
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        one.sendall(piece)
                        time.sleep(0.002)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def read_request(one):
    data = b""
    while True:
        head, separator, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        chunked = b"chunked" in head
        if separator and (
            body.endswith(b"0\r\n\r\n") if chunked else len(body) >= int(length[1] if length else 0)
        ):
            return data
        got = one.recv(1 << 16)
        assert got
        data += got


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /a%2Fb?x=%20&&y HTTP/1.1\r\nhost:  s3.test\r\nX-A: 1\r\nx-a: 2\r\nB: a=b\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nHost: y\r\nContent-Length: 5\r\n\r\n12345",
        b"DELETE /x HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST /x?uploads HTTP/1.1\r\nHost: y\r\nContent-Length: 0\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;a=b\r\nf\r\n0\r\n\r\n",
    ],
)
def test_requests_are_passed_on_unchanged(sent):
    with scripted([OK, OK]) as (url, received), proxy(upstream=url) as one:
        last = request("/last", CLOSE)
        answer = exchange(one.url, sent + last)
        assert received == [sent, last]
        assert answer.startswith(OK)


LONG = LARGE[:400_000]
PIECES = [LONG[n : n + 70_001] for n in range(0, len(LONG), 70_001)]
CHUNKED = b"".join(b"%x;e=1\r\n%s\r\n" % (len(piece), piece) for piece in PIECES)
CHUNKED += b"0\r\nT: 1\r\n\r\n"
ANSWERS = {
    "sized": b"HTTP/1.1 206 Partial Content\r\nContent-Length: 400000\r\n\r\n" + LONG,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKED
    + b"0\r\nT: 1\r\n\r\n",
    "until closed": b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n" + LONG,
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 400000\r\n\r\n" + LONG,
    "closing": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 400000\r\n\r\n" + LONG,
    "in pieces": [bytes([one]) for one in b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n"]
    + [LONG],
    "in chunked pieces": [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n61A8",
        b"0\r",
        b"\n" + LONG + b"\r",
        b"\n0",
        b"\r\n\r",
        b"\n",
    ],
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("rate", [None, 20e6])
def test_answers_are_passed_back(kind, rate):
    conditions = Conditions(bytes_per_s=rate)
    with scripted([ANSWERS[kind]]) as (url, _), proxy(upstream=url, conditions=conditions) as one:
        answer, body = get(one.url, "/")
        assert (answer.status in (200, 206), body) == (True, LONG)
        assert one.counts().body_bytes == len(LONG)


@pytest.mark.parametrize("kind", ANSWERS)
def test_faults_apply_to_answers_of_all_framings(kind):
    with scripted([ANSWERS[kind]], [ANSWERS[kind]]) as (url, _), proxy(upstream=url) as one:
        one.set(faulty("flip"))
        body = get(one.url, "/")[1]
        assert (int.from_bytes(body) ^ int.from_bytes(LONG)).bit_count() == 1
        assert len(body) == len(LONG)
        one.set(faulty("cut"))
        _, fields, body = parse(exchange(one.url, request("/")))
        assert (fields["content-length"], body) == ("400000", LONG[:200_000])


@pytest.mark.parametrize("kind", ["cut", "short", "flip"])
def test_faults_of_a_body_do_not_apply_to_errors_of_the_server(kind):
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
    with scripted([missing]) as (url, _), proxy(upstream=url, conditions=faulty(kind)) as one:
        answer, body = get(one.url, "/")
        assert (answer.status, body) == (404, b"no")
        assert one.counts().faults == {}


def test_the_server_is_read_only_as_fast_as_the_link_carries(running, folder):
    with (folder / "huge").open("wb") as file:
        file.truncate(200_000_000)
    running["folder"].set(Conditions())
    running["folder"].reset()
    with proxy(upstream=running["folder"].url, conditions=Conditions(bytes_per_s=2e6)) as one:
        with connected(one.url) as connection:
            connection.request("GET", "/huge")
            wait_until(lambda: one.counts().body_bytes > 500_000)
            # The buffers of two sockets hold at most 36 MiB here.
            assert running["folder"].counts().body_bytes < 100_000_000
            one.set(Conditions())
            assert sum(len(piece) for piece in whole(connection.getresponse())) == 200_000_000
        assert one.counts().body_bytes == 200_000_000


def whole(answer):
    while piece := answer.read(1 << 20):
        yield piece


def send_zeros(to, n_bytes):
    """Send zeros until ``n_bytes`` or until the receiver stops; return the number sent."""
    piece, sent = bytes(1 << 20), 0
    with suppress(TimeoutError):
        while sent < n_bytes:
            sent += to.send(piece[: n_bytes - sent])
    return sent


def test_an_upload_is_read_only_as_fast_as_the_server_reads_it():
    n_bytes, taken, go = 300 << 20, [], Event()

    def serve():
        one, _ = listener.accept()
        with one:
            go.wait(TIMEOUT_S)
            left = len(head) + n_bytes
            while left:
                left -= len(one.recv(1 << 20))
            taken.append(True)
            one.sendall(OK)

    head = request("/x", f"Content-Length: {n_bytes}", CLOSE, method="PUT")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, daemon=True)
        thread.start()
        with proxy(upstream=f"http://127.0.0.1:{listener.getsockname()[1]}") as one:
            parts = urlsplit(one.url)
            with socket.create_connection((parts.hostname, parts.port)) as client:
                client.sendall(head)
                client.settimeout(0.3)
                sent = send_zeros(client, n_bytes)
                assert sent < n_bytes
                go.set()
                client.settimeout(TIMEOUT_S)
                assert send_zeros(client, n_bytes - sent) == n_bytes - sent
                assert parse(client.recv(1 << 16))[::2] == (200, b"ok")
        thread.join(TIMEOUT_S)
    assert taken == [True]


def test_a_client_that_leaves_early_delays_no_other(served):
    get(served.url, "/small")
    before = n_open(served)
    served.reset()
    served.set(Conditions(bytes_per_s=200_000))
    for _ in range(5):
        with connected(served.url) as connection:
            connection.request("GET", LARGE_PATH)
            wait_until(lambda: served.counts().body_bytes > 0)
        served.reset()
    served.set(Conditions(latency_s=0.05))
    with connected(served.url) as connection:
        connection.request("GET", LARGE_PATH)
    served.set(Conditions())
    with connected(served.url) as connection:
        connection.request("GET", LARGE_PATH)  # more than the buffers of sockets need not take
    assert get(served.url, LARGE_PATH)[1] == LARGE
    wait_until(lambda: n_open(served) <= before + 1)  # it keeps one more file open


def test_answers_without_a_body_are_passed_back():
    answers = [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
        OK,
    ]
    with (
        scripted(answers) as (url, _),
        proxy(upstream=url) as one,
        connected(one.url) as connection,
    ):
        for method, status, body in (
            ("GET", 204, b""),
            ("GET", 304, b""),
            ("HEAD", 200, b""),
            ("GET", 200, b"ok"),
        ):
            answer, found = send(connection, "/", method=method)
            assert (answer.status, found) == (status, body)


def test_an_answer_cut_by_the_server_is_cut_for_the_client():
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"
    with scripted([cut]) as (url, _), proxy(upstream=url) as one:
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            get(one.url, "/")
        assert one.counts().body_bytes == 5


def test_a_connection_that_the_server_closed_is_not_used_again():
    with (
        scripted([OK], [OK, OK]) as (url, received),
        proxy(upstream=url) as one,
        connected(one.url) as connection,
    ):
        for _ in range(3):
            assert send(connection, "/")[1] == b"ok"
        assert len(received) == 3


def test_an_unreachable_server_is_502():
    with socket.socket() as taken:  # nobody listens, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with proxy(upstream=f"http://127.0.0.1:{taken.getsockname()[1]}") as one:
            assert get(one.url, "/")[0].status == 502
            assert one.counts().statuses == {502: 1}


def test_a_server_that_closes_without_an_answer_is_502():
    with scripted([b""]) as (url, _), proxy(upstream=url) as one:
        assert get(one.url, "/")[0].status == 502


def test_an_early_answer_ends_an_upload():
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def refuse():
            one, _ = listener.accept()
            with one:
                one.recv(1 << 16)
                one.sendall(refusal)
                while one.recv(1 << 16):
                    pass

        thread = Thread(target=refuse, daemon=True)
        thread.start()
        with proxy(upstream=url) as one:
            sent = request("/x", "Content-Length: 1000", "Expect: 100-continue", method="PUT")
            assert parse(exchange(one.url, sent))[::2] == (403, b"no")
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    trailer=st.sampled_from([b"", b"X: y\r\n"]),
)
def test_chunks_are_parsed_however_they_arrive(pieces, cuts, trailer):
    body = b"".join(b"%X\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    body += b"0\r\n" + trailer + b"\r\n"
    sent = body + b"HTTP/1.1 next"
    ends = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    chunked, content, taken = _Chunked(), b"", 0
    for begin, end in pairwise(ends):
        done_before = chunked.done
        n_bytes, parts = chunked.take(sent[begin:end])
        assert n_bytes == sum(len(view) for view, _ in parts)
        assert not (done_before and n_bytes)
        content += b"".join(view for view, is_content in parts if is_content)
        taken += n_bytes
    assert (chunked.done, content, taken) == (True, b"".join(pieces), len(body))


@pytest.fixture(scope="module")
def bucket(s3_server):
    return s3_server.new_bucket()


@pytest.fixture(scope="module")
def before_s3(s3_server, tmp_path_factory):
    with quiet_stderr(tmp_path_factory.mktemp("stderr")) as start:
        yield start(upstream=s3_server.endpoint_url)


@pytest.fixture
def s3(s3_server, before_s3):
    before_s3.set(Conditions())
    before_s3.reset()
    keys = {
        "aws_access_key_id": s3_server.access_key,
        "aws_secret_access_key": s3_server.secret_key,
    }
    config = Config(
        retries={"max_attempts": 10, "mode": "standard"}, s3={"addressing_style": "path"}
    )
    client = boto3.client(
        "s3", endpoint_url=before_s3.url, region_name="us-east-1", config=config, **keys
    )
    with closing(client):
        yield client


def test_boto3_works_through_the_proxy(s3, bucket, before_s3, s3_server):
    data = LARGE * 3
    s3.put_object(Bucket=bucket, Key="a b/ä", Body=data)
    assert s3_server.client.get_object(Bucket=bucket, Key="a b/ä")["Body"].read() == data
    assert s3.get_object(Bucket=bucket, Key="a b/ä")["Body"].read() == data
    part = s3.get_object(Bucket=bucket, Key="a b/ä", Range="bytes=1000000-5000000")["Body"].read()
    assert part == data[1_000_000:5_000_001]
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert {"a b/ä": len(data), "empty": 0}.items() <= {o["Key"]: o["Size"] for o in listed}.items()
    assert s3.head_object(Bucket=bucket, Key="a b/ä")["ContentLength"] == len(data)
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket=bucket, Key="no")
    s3.delete_object(Bucket=bucket, Key="a b/ä")
    with pytest.raises(s3.exceptions.ClientError, match="404"):
        s3.head_object(Bucket=bucket, Key="a b/ä")
    methods = Counter(method for method, _, _ in before_s3.counts().latest)
    assert methods == {"PUT": 2, "GET": 4, "HEAD": 2, "DELETE": 1}


def test_boto3_uploads_in_parts_through_the_proxy(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    parts = [hashlib.sha256(bytes([n])).digest() * 170_000 for n in range(3)]
    tags = [
        s3.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=n, Body=part)["ETag"]
        for n, part in enumerate(parts, 1)
    ]
    done = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]}
    s3.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload=done)
    assert s3.get_object(Bucket=bucket, Key="parts")["Body"].read() == b"".join(parts)


def test_s3fs_works_through_the_proxy(s3_server, bucket, before_s3):
    before_s3.set(Conditions(latency_s=0.005, bytes_per_s=50e6))
    options = {**s3_server.storage_options, "endpoint_url": before_s3.url}
    fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/fs/x", LARGE)
    assert fs.cat_ranges([f"{bucket}/fs/x"] * 40, list(range(40)), [900_000] * 40) == [
        LARGE[n:900_000] for n in range(40)
    ]
    assert fs.ls(f"{bucket}/fs", detail=False) == [f"{bucket}/fs/x"]


def test_boto3_retries_after_faults(s3, bucket, before_s3):
    s3.put_object(Bucket=bucket, Key="faults", Body=SMALL)
    kinds = ("unavailable", "stall")
    before_s3.set(Conditions(fault_rate=0.3, fault_kinds=kinds, stall_s=0.01, fault_paths="faults"))
    for n in range(8):
        range_ = f"bytes={n}-{n + 100}"
        found = s3.get_object(Bucket=bucket, Key="faults", Range=range_)["Body"].read()
        assert found == SMALL[n : n + 101]
    assert sum(before_s3.counts().faults.values()) > 0
