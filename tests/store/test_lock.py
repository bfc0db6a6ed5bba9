"""A store has one writer: tests of who gets the lock, and of locks whose holder died."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest
from timeouts import TIMEOUT_S, wait_until

from spinezarr.errors import LostLockError, StoreBusyError
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.lock import LATE_FILE, LOCK_FILE, LockTimes, StoreLock

HOLD = """
import sys, time
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.lock import StoreLock
with StoreLock(StoreFileSystem(sys.argv[1]), sys.argv[1], sys.argv[1], "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def make(folder, what="this test", **times):
    fs = StoreFileSystem(str(folder))
    return StoreLock(fs, str(folder), str(folder), what, LockTimes(**times))


@pytest.fixture
def other(tmp_path):
    """Start another process that holds the lock of ``tmp_path``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_released_lock_leaves_no_file(tmp_path):
    with make(tmp_path) as held:
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        assert not held.took_over
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_second_writer_names_the_first(tmp_path, other):
    with pytest.raises(StoreBusyError) as raised, make(tmp_path):
        pass
    for text in (str(tmp_path), "a test", f"process {other.pid}", "run the command again"):
        assert text in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_the_lock_of_a_process_killed_on_this_machine_is_taken_at_once(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with make(tmp_path) as held:
        assert held.took_over
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_zombie_process_is_taken(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with make(tmp_path) as held:
        assert held.took_over


def test_the_lock_is_taken_if_another_process_reuses_the_holders_number(tmp_path, other):
    edit(tmp_path / LOCK_FILE, process_started=1.0)
    with make(tmp_path) as held:
        assert held.took_over


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another"}])
def test_a_holder_on_another_machine_is_not_looked_up_among_local_processes(
    tmp_path, other, change
):
    other.send_signal(signal.SIGKILL)
    other.wait()
    edit(tmp_path / LOCK_FILE, **change)
    with pytest.raises(StoreBusyError), make(tmp_path):
        pass


def test_the_lock_of_another_machine_is_taken_once_its_lease_has_ended(tmp_path, other):
    edit(tmp_path / LOCK_FILE, host="elsewhere", renewed=time.time() - 61)
    with make(tmp_path, watch_s=1.5) as held:
        assert held.took_over


def test_a_holder_that_renews_with_a_late_clock_keeps_the_lock(tmp_path, other):
    edit(tmp_path / LOCK_FILE, host="elsewhere", renewed=time.time() - 3600)
    renew = threading.Timer(0.5, edit, [tmp_path / LOCK_FILE], {"renewed": time.time() - 3590})
    renew.start()
    with pytest.raises(StoreBusyError), make(tmp_path, watch_s=30):
        pass
    renew.join()


def test_the_lock_of_a_silent_holder_with_a_fast_clock_is_taken(tmp_path, other):
    edit(tmp_path / LOCK_FILE, host="elsewhere", renewed=time.time() + 86_400)
    with make(tmp_path, lease_s=1.5) as held:
        assert held.took_over


def test_a_holder_that_renews_with_a_fast_clock_keeps_the_lock(tmp_path, other):
    edit(tmp_path / LOCK_FILE, host="elsewhere", renewed=time.time() + 86_400)
    renew = threading.Timer(0.5, edit, [tmp_path / LOCK_FILE], {"renewed": time.time() + 86_410})
    renew.start()
    with pytest.raises(StoreBusyError), make(tmp_path, lease_s=30):
        pass
    renew.join()


@pytest.mark.parametrize("content", [b"", b"{", b'{"run_id": "x"}'])
def test_a_damaged_lock_file_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    with make(tmp_path) as held:
        assert held.took_over


@pytest.mark.long
@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_processes_gets_the_lock(tmp_path, stale):
    """Each writer runs in its own process; all start at the same moment."""
    if stale:
        (tmp_path / LOCK_FILE).write_bytes(b"")
    code = HOLD.replace(
        "with StoreLock", "time.sleep(max(0, float(sys.argv[2]) - time.time()))\nwith StoreLock"
    )
    code = code.replace("time.sleep(60)", "sys.stdin.read()")
    start = str(time.time() + 6)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), start],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    while sum(process.poll() is None for process in processes) > 1:
        time.sleep(0.05)
    ended = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    assert sorted(out for out, _ in ended) == [*[""] * 3, "held\n"]
    assert sum("StoreBusyError" in err for _, err in ended) == 3
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_threads_gets_the_lock(tmp_path):
    barrier = threading.Barrier(8)

    def attempt(_):
        barrier.wait()
        try:
            with make(tmp_path):
                barrier.wait()
        except StoreBusyError:
            barrier.wait()
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(8))) == [*[False] * 7, True]


def test_the_holder_renews_its_lock(tmp_path):
    with make(tmp_path, renew_s=0.05) as held:
        seen = {json.loads((tmp_path / LOCK_FILE).read_text())["renewed"]}
        while len(seen) < 4:
            seen.add(json.loads((tmp_path / LOCK_FILE).read_text())["renewed"])
        held.guard(at_once=True)


def test_a_holder_that_lost_its_lock_stops_and_keeps_the_new_lock_file(tmp_path):
    with make(tmp_path, renew_s=0.05) as held:
        guard = pickle.loads(pickle.dumps(held.guard))  # noqa: S301  as sent to a worker
        guard(at_once=True)
        edit(tmp_path / LOCK_FILE, run_id="another")
        with pytest.raises(LostLockError, match="another run has taken over"):
            guard(at_once=True)
        held._renewer.join(TIMEOUT_S)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["run_id"] == "another"


def test_the_guard_of_a_released_lock_raises(tmp_path):
    with make(tmp_path) as held:
        guard = held.guard
    with pytest.raises(LostLockError):
        guard()


@pytest.mark.parametrize("check_s", [0, 3600])
def test_a_guard_reads_the_lock_file_once_per_interval(tmp_path, check_s):
    with make(tmp_path, check_s=check_s) as held:
        guard = held.guard
        guard()
        (tmp_path / LOCK_FILE).unlink()
        with nullcontext() if check_s else pytest.raises(LostLockError):
            guard()


def test_one_writer_gets_the_lock_without_links_and_conditional_writes():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/locked/zarr.json", b"")
    with StoreLock(fs, "/locked", "memory://locked", "one"):
        with pytest.raises(StoreBusyError), StoreLock(fs, "/locked", "memory://locked", "two"):
            pass
        assert fs.exists(f"/locked/{LOCK_FILE}")
    assert not fs.exists(f"/locked/{LOCK_FILE}")


def test_one_writer_gets_the_lock_on_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with make(tmp_path), pytest.raises(StoreBusyError), make(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# Holders that were stopped

CHANGE = """
import os, signal, sys
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.lock import StoreLock
with StoreLock(StoreFileSystem(sys.argv[1]), sys.argv[1], sys.argv[1], "a test") as lock:
    with lock.guard.changing():
        print("held", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    print("done", flush=True)
"""


def test_the_lock_of_a_process_stopped_within_a_change_is_not_taken(tmp_path):
    command = [sys.executable, "-c", CHANGE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        edit(tmp_path / LOCK_FILE, host="elsewhere", renewed=time.time() - 61)
        with pytest.raises(StoreBusyError) as told, make(tmp_path, watch_s=1.5, flock_s=0.3):
            pass
        assert f"a test (process {process.pid} on elsewhere" in str(told.value)
        assert "was stopped while it changed this store. Let it go on, or end it" in str(told.value)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "done\n"
    with make(tmp_path):
        pass


def test_a_holder_that_lost_its_lock_starts_no_change(tmp_path):
    with make(tmp_path) as held:
        guard = held.guard
        edit(tmp_path / LOCK_FILE, run_id="another")
        with pytest.raises(LostLockError), guard.changing():
            pytest.fail("it may change the store")


def test_a_lock_is_renewed_while_threads_make_changes(tmp_path):
    with make(tmp_path, renew_s=0.02) as held, ThreadPoolExecutor(4) as pool:
        changes, is_over = [0] * 4, threading.Event()

        def change(number):
            while not is_over.is_set():
                with held.guard.changing():
                    time.sleep(0.002)
                changes[number] += 1

        def renewed():
            return json.loads((tmp_path / LOCK_FILE).read_text())["renewed"]

        first, changing = renewed(), [pool.submit(change, number) for number in range(4)]
        try:
            wait_until(lambda: renewed() > first + 0.5 and min(changes) > 20)
        finally:
            is_over.set()
        for one in changing:
            one.result()
        assert not held._lost


def test_a_late_change_leaves_a_mark_where_files_cannot_be_locked():
    fs = fsspec.filesystem("memory")
    with StoreLock(fs, "/late", "memory://late", "one") as held:
        with held.guard.changing():
            pass
        assert not fs.exists(f"/late/{LATE_FILE}")
        with pytest.raises(LostLockError), held.guard.changing():
            fs.pipe_file(f"/late/{LOCK_FILE}", b"{}")
        assert fs.exists(f"/late/{LATE_FILE}")
    fs.rm("/late", recursive=True)
