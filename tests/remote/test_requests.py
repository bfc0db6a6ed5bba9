import asyncio
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timeouts import TIMEOUT_S, wait_until

from spinezarr.remote import requests as remote
from spinezarr.remote.errors import StalledResponseError
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import RemoteSettings
from spinezarr.remote.transport import NoRangesError, TransientError

DEFAULTS = RemoteSettings()
DATA = random.Random(5).randbytes(3_000_000)  # noqa: S311


@pytest.fixture(scope="module")
def served(tmp_path_factory, proxies):
    folder = tmp_path_factory.mktemp("served")
    (folder / "large").write_bytes(DATA)
    for n in range(9):
        (folder / f"small{n}").write_bytes(bytes([n]) * n)
    with proxies.proxy(folder=folder) as running:
        yield running


@pytest.fixture
def proxy(served, proxies):
    served.set(proxies.Conditions())
    served.reset()
    return served


def read_ranges(objects, wanted):
    with objects.ranges(wanted) as found:
        return list(found)


class Scripted:
    """A transport that answers as scripted, and records the requests in flight."""

    link_bytes_per_s = None

    async def get_ranges(self, _path, _spans):
        return None

    def range_requests(self, _ranges):
        return None

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.under_way = self.most_under_way = self.most_bytes = self.bytes = self.left = 0

    async def get(self, path, start=None, stop=None, _limit_bytes=0):
        number, size = len(self.asked), (stop or 0) - (start or 0)
        self.asked.append((path, start, stop))
        self.under_way += 1
        self.bytes += size
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.most_bytes = max(self.most_bytes, self.bytes)
        try:
            return await self.answer(number, path, start, stop)
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.under_way -= 1
            self.bytes -= size


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that makes remote objects with a scripted transport."""

    def start(answer, **settings):
        transport = Scripted(answer)
        monkeypatch.setattr(remote, "open_transport", lambda *_: (transport, "p"))
        return RemoteObjects("s3://bucket/p", settings=RemoteSettings(**settings)), transport

    return start


async def whole(_number, _path, start, stop):
    await asyncio.sleep(0.002)
    return DATA[start:stop]


# Results


@given(
    st.lists(
        st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 200_000)), min_size=1, max_size=20
    )
)
@settings(max_examples=20)
def test_ranges_come_back_in_order_despite_faults(served, proxies, spans):
    kinds = tuple(kind for kind in proxies.FAULTS if kind not in {"flip", "stall"})
    served.set(proxies.Conditions(fault_rate=0.2, fault_kinds=kinds))
    wanted = [(f"{served.url}/large", a, min(a + n, len(DATA))) for a, n in spans]
    found = read_ranges(RemoteObjects(served.url), wanted)
    assert [bytes(data) for data in found] == [DATA[a:b] for _, a, b in wanted]


def test_objects_come_back_whole_and_absent_ones_are_left_out(proxy):
    paths = [f"{proxy.url}/small{n}" for n in (*range(9), 77)]
    found = RemoteObjects(proxy.url).read(paths)
    assert found == {path: bytes([n]) * n for n, path in enumerate(paths[:9])}


def test_an_absent_object_has_no_ranges(proxy):
    with pytest.raises(FileNotFoundError, match=r"there is no such object: '.*/absent'"):
        read_ranges(RemoteObjects(proxy.url), [(f"{proxy.url}/absent", 0, 5)])


def test_a_short_object_is_requested_again_and_returned_short(proxy):
    path = f"{proxy.url}/small5"
    (data,) = read_ranges(RemoteObjects(proxy.url), [(path, 0, 9)])
    assert bytes(data) == bytes([5]) * 5
    assert proxy.counts().requests == 4


def test_objects_are_read_after_pickling_and_in_forked_processes(proxy):
    objects = RemoteObjects(proxy.url, settings=RemoteSettings(requests_in_flight=3))
    wanted = [(f"{proxy.url}/large", 7, 99)]
    assert bytes(read_ranges(objects, wanted)[0]) == DATA[7:99]
    again = pickle.loads(pickle.dumps(objects))  # noqa: S301  our own
    assert again.settings.requests_in_flight == 3
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            asked = pool.apply_async(_read, (again, wanted))
            assert asked.get(TIMEOUT_S) == DATA[7:99]


def _read(objects, wanted):
    return bytes(read_ranges(objects, wanted)[0])


def test_a_process_forked_while_threads_read_can_read(proxy):
    objects = RemoteObjects(proxy.url)
    wanted = [(f"{proxy.url}/large", n, n + 5000) for n in range(50)]
    done = threading.Event()

    def read_on():
        while not done.is_set():
            read_ranges(objects, wanted)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(read_on) for _ in range(2)]
        wait_until(lambda: proxy.counts().requests > len(wanted))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.starmap_async(_read, [(objects, wanted[:1])] * 4).get(TIMEOUT_S)
        done.set()
        for thread in running:
            thread.result()
    assert found == [DATA[:5000]] * 4


# Servers without ranges


@pytest.fixture
def plain_server(tmp_path):
    """Serve with Python's own server, which has no ranges; return the list of requested paths."""
    (tmp_path / "large").write_bytes(DATA)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients close unwanted answers early
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("options", [{}, {"client_kwargs": {"trust_env": False}}])
def test_a_server_without_ranges_is_an_error_at_once(plain_server, options):
    url, asked = plain_server
    objects = RemoteObjects(url, options, RemoteSettings(least_late_s=60.0, first_late_s=60.0))
    assert objects.read([f"{url}/large"]) == {f"{url}/large": DATA}
    asked.clear()
    with pytest.raises(OSError, match=r"whole object of 3000000 bytes .* nginx") as caught:
        read_ranges(objects, [(f"{url}/large", 5, 99)])
    assert type(caught.value) is NoRangesError
    assert len(asked) <= 2  # after our own client, fsspec asks to learn the reason
    with pytest.raises(NoRangesError):
        read_ranges(objects, [(f"{url}/large", n, n + 9) for n in range(0, 900, 30)])


def test_a_server_that_sent_ranges_before_is_asked_again_for_a_missing_one(scripted):
    unranged = NoRangesError(5, "whole")

    async def second_fails(number, _path, start, stop):
        if number == 1:
            raise unranged
        return DATA[start:stop]

    objects, transport = scripted(second_fails, first_backoff_s=0.001, longest_backoff_s=0.01)
    assert read_ranges(objects, [("p", 0, 5)]) == [DATA[:5]]
    assert read_ranges(objects, [("p", 5, 9)]) == [DATA[5:9]]
    assert len(transport.asked) == 3
    objects, transport = scripted(
        failing(99, unranged), first_backoff_s=0.001, longest_backoff_s=0.01
    )
    # A server that never sent a range is not asked again.
    with pytest.raises(NoRangesError):
        read_ranges(objects, [("p", 5, 9)])
    assert len(transport.asked) == 1


def test_a_server_that_stops_sending_ranges_is_given_up(scripted):

    async def only_once(number, _path, start, stop):
        if number:
            raise NoRangesError(5, "whole", "p")
        return DATA[start:stop]

    objects, transport = scripted(
        only_once, first_backoff_s=0.001, longest_backoff_s=0.01, patience_s=0.2
    )
    assert read_ranges(objects, [("p", 0, 5)]) == [DATA[:5]]
    with pytest.raises(ConnectionError, match=r"attempts in 0 s: whole: 'p'"):
        read_ranges(objects, [("p", 5, 9)])
    assert len(transport.asked) > 5


def test_a_range_behind_the_end_of_an_object_takes_one_request(scripted):
    async def empty(_number, _path, _start, _stop):
        return b""

    objects, transport = scripted(empty)
    assert read_ranges(objects, [("p", 5, 9)]) == [b""]
    assert len(transport.asked) == 1


# Limits of requests and memory


def test_requests_in_flight_stay_within_their_limit(scripted):
    objects, transport = scripted(whole, requests_in_flight=4)

    def read(first):
        return read_ranges(objects, [("p", first + i, first + i + 2) for i in range(30)])

    with ThreadPoolExecutor(5) as threads:
        found = list(threads.map(read, range(10)))
    assert found == [[DATA[a + i : a + i + 2] for i in range(30)] for a in range(10)]
    assert transport.most_under_way == 4
    assert len(transport.asked) == 300


def test_bytes_held_stay_within_their_limit(scripted):
    objects, transport = scripted(whole, held_bytes=1000)
    with ThreadPoolExecutor(1) as thread:
        with objects.ranges([("p", 0, 300), ("p", 600, 900)]):
            waiting = thread.submit(read_ranges, objects, [("p", 5, 405), ("p", 5, 106)])
            time.sleep(0.1)
            assert len(transport.asked) == 2
        assert waiting.result() == [DATA[5:405], DATA[5:106]]
        with pytest.raises(ZeroDivisionError), objects.ranges([("p", 0, 900)]):
            raise ZeroDivisionError
        # A range larger than the limit is read alone.
        assert read_ranges(objects, [("p", 0, 5000)]) == [DATA[:5000]]
        assert read_ranges(objects, [("p", 0, 1000)]) == [DATA[:1000]]


async def zeros(_number, _path, start, stop):
    return bytes(stop - start)


@pytest.mark.parametrize(
    ("bytes_per_s", "held_bytes", "waits"),
    [(None, 1 << 30, True), (10e6, 1 << 30, True), (1e8, 1 << 30, False), (1e9, 33 << 20, True)],
)
def test_a_slow_link_holds_fewer_bytes(scripted, bytes_per_s, held_bytes, waits):
    objects, transport = scripted(zeros, held_bytes=held_bytes)
    transport.link_bytes_per_s = bytes_per_s
    span = ("p", 0, 20 << 20)
    with ThreadPoolExecutor(1) as thread:
        with objects.ranges([span]):
            further = thread.submit(read_ranges, objects, [span])
            if waits:
                time.sleep(0.1)
                assert len(transport.asked) == 1
            else:
                wait_until(further.done)
        assert len(further.result(TIMEOUT_S)[0]) == 20 << 20


def test_a_failed_request_releases_its_memory(scripted):
    objects, _ = scripted(failing(1, PermissionError(13, "refused")), held_bytes=1000)
    with pytest.raises(PermissionError):
        read_ranges(objects, [("p", 0, 900)])
    assert read_ranges(objects, [("p", 0, 900)]) == [DATA[:900]]


def test_an_interrupted_read_cancels_its_requests(scripted):
    """Both waiting requests and those in flight are cancelled."""

    async def slow(number, _path, start, stop):
        await asyncio.sleep(0 if number >= 2 else 30)
        return DATA[start:stop]

    objects, transport = scripted(slow, requests_in_flight=2)
    both_run = interrupted(ZeroDivisionError, when=lambda: transport.under_way == 2)
    with pytest.raises(ZeroDivisionError), both_run:
        read_ranges(objects, [("p", i, i + 2) for i in range(9)])
    assert read_ranges(objects, [("p", 5, 9)] * 6) == [DATA[5:9]] * 6
    wait_until(lambda: transport.left == 2)
    assert len(transport.asked) == 8


class interrupted:  # noqa: N801  reads as a verb
    """Raise an error in the main thread once a condition holds, like an interrupt."""

    def __init__(self, problem, when):
        self._problem = problem
        self._thread = threading.Thread(target=self._signal_when, args=(when,))

    def __enter__(self):
        self._before = signal.signal(signal.SIGALRM, self._raise)
        self._thread.start()

    def _signal_when(self, condition):
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGALRM)

    def _raise(self, *_):
        raise self._problem

    def __exit__(self, *_):
        self._thread.join()
        signal.signal(signal.SIGALRM, self._before)


def test_abandoned_requests_end_and_release_all_room(scripted):

    async def slow(number, _path, start, stop):
        await asyncio.sleep(0 if number >= 2 else 60)
        return DATA[start:stop]

    objects, transport = scripted(slow, held_bytes=1000)

    def read_each(first):
        return objects.each(lambda i: read_ranges(objects, [("p", i, i + 450)]), [first, first + 1])

    with ThreadPoolExecutor(1) as thread:
        (ident,) = thread.map(lambda _: threading.get_ident(), [0])
        waiting = thread.submit(read_each, 5)
        wait_until(lambda: transport.under_way == 2)
        objects.abandon([ident])
        with pytest.raises(CancelledError):
            waiting.result(TIMEOUT_S)
        # The background thread still works.
        assert thread.submit(read_each, 7).result(TIMEOUT_S) == [[DATA[7:457]], [DATA[8:458]]]
    wait_until(lambda: transport.left == 2)
    objects.abandon([12345])


# Retries


def failing(times, problem):
    async def answer(number, _path, start, stop):
        if number < times:
            raise problem
        return DATA[start:stop]

    return answer


def transient(wait_s=None):
    problem = TransientError(5, "the server answered 503", "s3://bucket/p")
    problem.retry_after_s = wait_s
    return problem


def test_a_transient_failure_is_retried(scripted):
    objects, transport = scripted(
        failing(4, transient()), first_backoff_s=0.001, longest_backoff_s=0.002
    )
    assert read_ranges(objects, [("p", 3, 8)]) == [DATA[3:8]]
    assert transport.asked == [("p", 3, 8)] * 5


def test_a_server_that_never_answered_is_given_up_soon(scripted):
    objects, transport = scripted(
        failing(99, transient()), first_backoff_s=0.001, longest_backoff_s=0.002
    )
    with pytest.raises(ConnectionError, match="5 attempts in 0 s: the server answered 503") as told:
        objects.read(["p"])
    assert told.value.filename == "s3://bucket/p"
    assert len(transport.asked) == 5


def test_a_server_that_has_answered_before_is_retried_for_longer(scripted):

    async def answer(number, _path, start, stop):
        if number:
            raise transient()
        return DATA[start:stop]

    objects, transport = scripted(
        answer, first_backoff_s=0.01, longest_backoff_s=0.01, patience_s=0.3
    )
    read_ranges(objects, [("p", 0, 1)])
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        read_ranges(objects, [("p", 0, 1)])
    assert time.monotonic() - began >= 0.3
    assert len(transport.asked) > 6


def test_a_retry_waits_as_long_as_the_server_asks(scripted):
    objects, _ = scripted(failing(1, transient(0.4)))
    began = time.monotonic()
    read_ranges(objects, [("p", 0, 1)])
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("problem", [PermissionError(13, "refused"), OSError(5, "no such bucket")])
def test_a_permanent_failure_is_not_retried(scripted, problem):
    objects, transport = scripted(failing(9, problem))
    with pytest.raises(type(problem), match=problem.strerror):
        read_ranges(objects, [("p", 0, 1)])
    assert len(transport.asked) == 1


# Late answers


def test_a_late_answer_is_requested_a_second_time(scripted):

    async def answer(number, _path, start, stop):
        if number == 0:
            await asyncio.sleep(60)
        return DATA[start:stop]

    objects, transport = scripted(answer, least_late_s=0.05, first_late_s=0.05)
    assert read_ranges(objects, [("p", 3, 8)]) == [DATA[3:8]]
    assert len(transport.asked) == 2
    wait_until(lambda: transport.left == 1)


def test_a_late_answer_is_used_if_it_comes_first(scripted):

    async def answer(number, _path, start, stop):
        await asyncio.sleep((0.2, 60)[min(number, 1)])
        return DATA[start:stop]

    assert read_ranges(
        scripted(answer, least_late_s=0.05, first_late_s=0.05)[0], [("p", 3, 8)]
    ) == [DATA[3:8]]


def test_a_failed_second_request_does_not_end_the_late_first_one(scripted):
    has_failed, answered = asyncio.Event(), []

    async def answer(number, _path, start, stop):
        if number == 1:
            has_failed.set()
            raise transient()
        await has_failed.wait()
        await asyncio.sleep(0.02)
        answered.append(number)
        return DATA[start:stop]

    objects, _ = scripted(answer, least_late_s=0.05, first_late_s=0.05)
    assert read_ranges(objects, [("p", 3, 8)]) == [DATA[3:8]]
    assert answered[0] == 0


def test_a_stall_ends_both_requests_without_a_third(scripted):
    has_second = asyncio.Event()

    async def answer(number, _path, _start, _stop):
        if number == 0:
            await has_second.wait()
        else:
            has_second.set()
            await asyncio.sleep(0.2)
        raise StalledResponseError(5, "silent", "p")

    objects, transport = scripted(
        answer, least_late_s=0.05, first_late_s=0.05, first_patience_s=0.1
    )
    with pytest.raises(ConnectionError, match=r"1 attempts in \d+ s: silent"):
        read_ranges(objects, [("p", 0, 1)])
    assert len(transport.asked) == 2


def test_second_requests_add_at_most_a_quarter(scripted):
    has_all = asyncio.Event()

    async def answer(_number, _path, start, stop):
        if transport.under_way == 8 + 8 // 4:
            has_all.set()
        await has_all.wait()
        await asyncio.sleep(0.1)
        return DATA[start:stop]

    objects, transport = scripted(
        answer, requests_in_flight=8, least_late_s=0.02, first_late_s=0.02
    )
    read_ranges(objects, [("p", i, i + 1) for i in range(8)])
    assert transport.most_under_way == 8 + 8 // 4


def test_lateness_is_measured_against_the_usual_time_for_the_size():
    times = remote._DurationEstimate(DEFAULTS)
    assert times.late_s(0) == DEFAULTS.first_late_s
    for i in range(100):
        times.add(0.2, 1, 0, 0.2 * i)
    assert times.late_s(0) == pytest.approx(DEFAULTS.late_factor * 0.2)
    assert times.late_s(remote._OVERHEAD_BYTES) == pytest.approx(2 * DEFAULTS.late_factor * 0.2)
    for i in range(300):
        times.add(0.0001, 1, 0, 20 + 0.0001 * i)
    assert times.late_s(0) == DEFAULTS.least_late_s


# Gaps between two ranges


WIDE = RemoteSettings(most_gap_bytes=1 << 21)


def gap_bytes(latency_s, bytes_per_s, in_flight=64, size=1 << 19, waited_s=1e9):
    """Simulate reading at a rate; return the largest gap that is read along with two ranges.

    Requests wait so long for a place in flight.
    """
    times = remote._DurationEstimate(WIDE)
    times.add_wait(waited_s)
    times.add(latency_s, 1, 2000, latency_s)  # metadata, read alone
    ended_s = [latency_s] * in_flight
    for _ in range(900):
        began_s = ended_s[-in_flight]
        ended_s.append(max(began_s + latency_s, ended_s[-1] + size / bytes_per_s))
        times.add(ended_s[-1] - began_s, 1, size, ended_s[-1])
    return times.gap_bytes


def test_only_small_gaps_are_read_over_a_full_link():
    for latency_s in (0.0, 0.001, 0.02):
        assert gap_bytes(latency_s, 100e6) < 1 << 16
    assert gap_bytes(0.1, 100e6) < WIDE.most_gap_bytes / 2
    assert gap_bytes(0.02, 1e6) == WIDE.least_gap_bytes


def test_large_gaps_are_read_over_a_free_link_of_high_latency_if_requests_wait():
    least, most = WIDE.least_gap_bytes, WIDE.most_gap_bytes
    assert gap_bytes(0.1, 2e9, in_flight=128, size=1 << 18) == most
    assert least < gap_bytes(0.1, 2e9, in_flight=1000) < most
    none, half = (gap_bytes(0.1, 2e9, 1000, waited_s=waited_s) for waited_s in (0.0, 0.25))
    assert none == pytest.approx(remote._CORE_S_EACH * 2e9, rel=0.01)
    assert none < half < gap_bytes(0.1, 2e9, in_flight=1000)


def test_the_core_time_of_a_request_is_worth_some_bytes_of_a_fast_link():
    for bytes_per_s in (1e8, 1e9):
        expected = remote._CORE_S_EACH * bytes_per_s
        assert gap_bytes(0.0, bytes_per_s) == pytest.approx(expected, rel=0.01)


@given(st.floats(0, 0.3), st.floats(1e6, 3e9), st.floats(1, 3))
@settings(max_examples=50)
def test_the_gap_grows_with_the_latency_and_stays_within_its_limits(latency_s, bytes_per_s, factor):
    least, most = WIDE.least_gap_bytes, WIDE.most_gap_bytes
    gap = gap_bytes(latency_s, bytes_per_s)
    assert least <= gap <= most
    assert gap_bytes(latency_s * factor, bytes_per_s) >= gap - 1
    assert gap_bytes(latency_s, bytes_per_s / factor) <= gap + 1


# Names and threads


def test_names_of_objects_contain_no_secret():
    assert RemoteObjects("http://me:pass@host:80/a.zarr").name(
        "http://me:pass@host:80/a.zarr/x"
    ) == ("http://host:80/a.zarr/x")
    assert RemoteObjects("s3://bucket/a.zarr", {"anon": True}).name("bucket/a.zarr/x") == (
        "s3://bucket/a.zarr/x"
    )


def test_all_stores_share_one_thread(proxy):
    def threads():
        # The event loop resolves names in a thread pool of its own, which is limited.
        return {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}

    before = threads()
    for _ in range(20):
        read_ranges(RemoteObjects(proxy.url), [(f"{proxy.url}/large", 0, 9)])
    assert len(threads() - before) <= 1


def test_the_turn_of_a_cancelled_request_goes_to_the_next():
    async def run():
        gate = remote._FairSemaphore(lambda: 1)
        await gate.acquire(1)
        waiting = asyncio.create_task(gate.acquire(1))
        await asyncio.sleep(0)
        waiting.cancel()
        gate.release(1)  # before the task is told of its cancellation
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(gate.acquire(1), 1)

    asyncio.run(run())
