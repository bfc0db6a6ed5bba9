"""Tests of progress callbacks: their values, and that calls do not overlap."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from spinezarr.progress import ProgressCounter


def test_progress_of_several_threads_adds_up_in_calls_that_do_not_overlap():
    seen, at_once = [], Lock()

    def show(progress):
        assert at_once.acquire(blocking=False)
        seen.append(progress.done)
        at_once.release()

    counter = ProgressCounter(show, "verify", total=4000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(counter.add, [10] * 400))
    assert seen == list(range(0, 4001, 10))


def test_a_total_may_come_later_and_may_be_unknown():
    seen = []
    counter = ProgressCounter(seen.append, "verify")
    counter.expect(0)
    counter.expect(5)
    counter.say("Look here.")
    assert [progress.total for progress in seen] == [None, None, 5, 5]
    assert [progress.message for progress in seen] == ["", "", "", "Look here."]
