import ast
import os
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
    with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads, which are meant
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        result = 1
        try:
            result = 0 if check() is True else 1
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_value_is_made_once_whoever_asks():
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


def test_a_value_that_could_not_be_made_is_made_later():
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
def test_children_and_their_children_make_values_of_their_own():
    value = PerProcess(lambda: {"made by": os.getpid()})
    parents = value.get()

    def child():
        mine = value.peek() is None and value.get()["made by"] == os.getpid()
        return mine and value.get() is not parents and in_a_child(lambda: value.peek() is None)

    assert in_a_child(child)
    assert value.get() is parents


@needs_fork
def test_a_lock_that_was_held_is_open_in_a_child():
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
    """Whether another thread of this process gets a lock that is held."""
    taken = threading.Event()

    def take():
        with lock:
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return taken.wait(0.05)


@needs_fork
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_child_leaves_what_its_parent_holds(reentrant):
    lock = ProcessLock(reentrant=reentrant)

    def child():
        lock.__exit__(None, None, None)  # of the context that the fork copied
        with lock:
            return True

    with lock:
        assert in_a_child(child)


def test_a_reentrant_lock_is_acquired_again_by_its_thread():
    lock = ProcessLock(reentrant=True)
    with lock, lock:
        assert not another_thread_gets(lock)


def test_no_other_module_looks_for_forks():
    """Process ids are compared nowhere; two modules need their own, to be named and to end."""
    package = Path(spinezarr.__file__).parent
    found = {
        (path.relative_to(package).as_posix(), node.attr)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"getpid", "register_at_fork"}
    }
    assert found == {
        ("forks.py", "register_at_fork"),
        ("serve/settings.py", "getpid"),
        ("store/lock.py", "getpid"),
    }
