import ast
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spinezarr
from spinezarr.forks import PerProcess, ProcessLock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no process")


def in_a_child(check):
    """Run a check in a forked process; it passes if it returns True there."""
    with warnings.catch_warnings():  # Python 3.12 warns about these intended forks
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        result = 1
        try:
            result = 0 if check() is True else 1
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_value_is_made_once_for_all_threads():
    made = []
    ready = threading.Barrier(4)

    def make():
        made.append(1)
        return object()

    value = PerProcess(make)
    assert value.peek() is None

    def ask(_):
        ready.wait(5)
        return value.get()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert found == {value.peek()}
    assert made == [1]


def test_a_value_whose_making_failed_is_made_at_the_next_call():
    answers = iter([OSError("no network"), "connection"])

    def make():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    value = PerProcess(make)
    with pytest.raises(OSError, match="no network"):
        value.get()
    assert value.get() == "connection"


@needs_fork
def test_forked_children_and_grandchildren_make_their_own_values():
    value = PerProcess(lambda: {"made by": os.getpid()})
    parents = value.get()

    def child():
        mine = value.peek() is None and value.get()["made by"] == os.getpid()
        return mine and value.get() is not parents and in_a_child(lambda: value.peek() is None)

    assert in_a_child(child)
    assert value.get() is parents


@needs_fork
def test_a_held_lock_is_released_in_a_forked_child():
    lock = ProcessLock()

    def free(taken):
        with lock:
            taken.append(True)

    def child():
        taken = []
        thread = threading.Thread(target=free, args=(taken,), daemon=True)
        thread.start()
        thread.join(10)
        return taken == [True]

    with lock:
        assert in_a_child(child)
        assert not another_thread_gets(lock)


def another_thread_gets(lock):
    """Return whether another thread of this process can acquire a lock."""
    taken = threading.Event()

    def take():
        with lock:
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return taken.wait(0.05)


@needs_fork
@pytest.mark.parametrize("reentrant", [False, True])
def test_leaving_a_context_in_a_child_does_not_release_the_lock_of_the_parent(reentrant):
    lock = ProcessLock(reentrant=reentrant)

    def child():
        lock.__exit__(None, None, None)  # leaves the context that the fork copied
        with lock:
            return True

    with lock:
        assert in_a_child(child)


def test_a_reentrant_lock_can_be_acquired_again_by_its_thread():
    lock = ProcessLock(reentrant=True)
    with lock, lock:
        assert not another_thread_gets(lock)


def test_no_other_module_detects_forks():
    """No other module compares process ids; two modules use their own, for names and for ending."""
    package = Path(spinezarr.__file__).parent
    found = {
        (path.relative_to(package).as_posix(), node.attr)
        for path in package.rglob("*.py")
        if re.search("getpid|register_at_fork", path.read_text())  # parsing all takes a second
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"getpid", "register_at_fork"}
    }
    assert found == {
        ("forks.py", "register_at_fork"),
        ("serve/settings.py", "getpid"),
        ("store/lock.py", "getpid"),
    }
