import errno
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from functools import cache as remember
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spinezarr.errors import UsageError
from spinezarr.stream.read import range_cache
from spinezarr.stream.read.range_cache import (
    CacheSettings,
    CacheWarning,
    RangeCache,
    shared_range_cache,
)

PAGE = 4096
KILLS = int(os.environ.get("SPINEZARR_KILLS", "20"))
"""Number of processes that are killed while they write."""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
"""Command that lets a program mount file systems, as any user."""


@remember
def true_bytes(key, size):
    """Return the true bytes of the shard of a key."""
    return np.random.default_rng([size, *key.encode()]).bytes(size)


KEY, SIZE = "a", 40 * PAGE + 123
TRUE = true_bytes(KEY, SIZE)
SHARDS = [("a", SIZE), ("b", 17), ("c", 8 * PAGE), ("c", 8 * PAGE - 1), ("d", 0)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    return RangeCache(CacheSettings(folder))


def keep(cache, start, stop, key=KEY, size=SIZE):
    cache.keep(key, size, start, true_bytes(key, size)[start:stop])


def find(cache, start=0, stop=SIZE, key=KEY, size=SIZE):
    return cache.find(key, size, [(start, stop)])[0]


def mirrors(folder):
    return sorted(Path(folder).rglob("*.ranges"))


@st.composite
def ranges(draw, size):
    borders = st.sampled_from([*range(0, size, PAGE), size])
    place = st.integers(0, size) | borders
    start, stop = sorted((draw(place), draw(place)))
    return start, stop


class Model(RuleBasedStateMachine):
    """Two caches over one folder, compared with the bytes that they must hold."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.caches = [self.new_cache() for _ in range(2)]
        self.there = {shard: np.zeros(shard[1], bool) for shard in SHARDS}

    def new_cache(self):
        return RangeCache(CacheSettings(Path(self.folder)))

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(data=st.data(), which=st.integers(0, 1), shard=st.sampled_from(SHARDS))
    def keep(self, data, which, shard):
        start, stop = data.draw(ranges(shard[1]))
        keep(self.caches[which], start, stop, *shard)
        first, last = -(-start // PAGE) * PAGE, stop if stop == shard[1] else stop // PAGE * PAGE
        self.there[shard][first:last] = True

    @rule(data=st.data(), which=st.integers(0, 1), shard=st.sampled_from(SHARDS))
    def keep_widened(self, data, which, shard):
        start, stop = data.draw(ranges(shard[1]))
        first, last = self.caches[which].widen(start, stop, shard[1])
        assert 0 <= first <= start <= stop <= last <= shard[1]
        assert start - first < PAGE
        assert last - stop < PAGE
        keep(self.caches[which], first, last, *shard)
        self.there[shard][first:last] = True

    @rule(data=st.data(), which=st.integers(0, 1), shard=st.sampled_from(SHARDS))
    def forget(self, data, which, shard):
        start, stop = data.draw(ranges(shard[1]))
        self.caches[which].forget(*shard, start, stop)
        first, last = RangeCache.widen(start, stop, shard[1])
        self.there[shard][first:last] = False
        self.caches[1 - which] = self.new_cache()  # else it may remember

    @rule(which=st.integers(0, 1))
    def open_anew(self, which):
        self.caches[which] = self.new_cache()

    @rule(data=st.data(), which=st.integers(0, 1), shard=st.sampled_from(SHARDS))
    def find(self, data, which, shard):
        self.check(self.caches[which], shard, data.draw(st.lists(ranges(shard[1]), max_size=5)))

    @invariant()
    def each_page_is_known(self):
        for shard in SHARDS:
            size = shard[1]
            pages = [(start, min(start + PAGE, size)) for start in range(0, size, PAGE)]
            self.check(self.caches[1], shard, [*pages, (0, size)])

    def check(self, cache, shard, wanted):
        found = cache.find(*shard, wanted)
        for (start, stop), data in zip(wanted, found, strict=True):
            assert data in {None, true_bytes(*shard)[start:stop]}
            if start < stop:
                assert (data is not None) == self.there[shard][start:stop].all()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=15)


def test_ranges_outside_a_shard_are_not_found_and_not_kept(cache):
    keep(cache, 0, SIZE)
    for wanted in ((0, SIZE + 1), (-1, 5), (SIZE + 1, SIZE + 2), (7, 3)):
        assert find(cache, *wanted) is None
    for start in (-1, 1):
        with pytest.raises(ValueError, match="of a shard of"):
            cache.keep(KEY, SIZE, start, TRUE)


def test_a_shard_of_another_key_or_size_is_not_found(cache):
    keep(cache, 0, SIZE)
    assert find(cache, 0, 5) == TRUE[:5]
    assert find(cache, 0, 5, "b") is None
    assert find(cache, 0, 5, size=SIZE - 1) is None


# --- several processes


def use(cache, seed, rounds, shards, longest):
    """Read ranges of shards through a cache; return the numbers of hits and of wrong bytes."""
    choose = random.Random(seed)  # noqa: S311
    hits = wrong = 0
    for _ in range(rounds):
        key, size = choose.choice(shards)
        start = choose.randrange(size)
        stop = min(size, start + choose.randrange(1, longest))
        (found,) = cache.find(key, size, [(start, stop)])
        if found is None:
            start, stop = cache.widen(start, stop, size)
            cache.keep(key, size, start, true_bytes(key, size)[start:stop])
        else:
            hits += 1
            wrong += found != true_bytes(key, size)[start:stop]
            if choose.random() < 0.02:
                cache.forget(key, size, start, stop)
    return hits, wrong


MANY = [(f"shard {n}", 64 * PAGE - 10 * n) for n in range(16)]


def use_and_say(cache, seed, answers):
    answers.put(use(cache, seed, 700, MANY, 3 * PAGE))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_processes_share_a_folder_within_its_bound(folder, method):
    limit = 1 << 21
    cache = RangeCache(CacheSettings(folder, folder_bytes=limit))
    use(cache, 99, 200, MANY, 3 * PAGE)  # descriptors are open when forks begin
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=use_and_say, args=(cache, seed, answers)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    usages = []
    while running := [process.pid for process in processes if process.is_alive()]:
        time.sleep(0.02)
        # No process may change the folder while it is counted.
        for pid in running:
            os.kill(pid, signal.SIGSTOP)
        for pid in running:
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        usages.append(cache.usage_bytes())
        for pid in running:
            os.kill(pid, signal.SIGCONT)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [answers.get() for _ in processes]
    assert sum(wrong for _, wrong in found) == 0
    assert min(hits for hits, _ in found) > 100
    assert limit / 2 < max(usages) <= limit
    assert sum(path.stat().st_blocks * 512 for path in mirrors(folder)) <= limit


def test_threads_share_a_cache(folder, monkeypatch):
    cache = RangeCache(CacheSettings(folder, folder_bytes=1 << 21), max_open_files=3, check_s=0)
    found = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: found.append(use(cache, seed, 250, MANY, 5 * PAGE))
        )
        for seed in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert sum(wrong for _, wrong in found) == 0
    assert min(hits for hits, _ in found) > 10
    assert cache.usage_bytes() <= 1 << 21


LONG = [(f"long {n}", 300 * PAGE + n) for n in range(6)]


def keep_forever(settings_, seed, begun):
    choose = random.Random(seed)  # noqa: S311
    cache = RangeCache(settings_)
    begun.set()
    while True:
        key, size = choose.choice(LONG)
        start, stop = sorted(choose.randrange(size + 1) for _ in range(2))
        cache.keep(key, size, start, true_bytes(key, size)[start:stop])
        if choose.random() < 0.1:
            cache.forget(key, size, start, stop)


def test_processes_killed_while_they_write_leave_no_wrong_bytes(folder):
    settings_ = CacheSettings(folder, folder_bytes=5 << 20)
    for shard in LONG:
        true_bytes(*shard)
    context = multiprocessing.get_context("fork")
    pages = 0
    for seed in range(KILLS):
        begun = context.Event()
        process = context.Process(target=keep_forever, args=(settings_, seed, begun))
        process.start()
        begun.wait()
        time.sleep(random.Random(seed).uniform(0, 0.03))  # noqa: S311
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        cache = RangeCache(settings_)
        for key, size in LONG:
            wanted = [(start, min(start + PAGE, size)) for start in range(0, size, PAGE)]
            for (start, stop), data in zip(wanted, cache.find(key, size, wanted), strict=True):
                if data is not None:
                    pages += 1
                    assert data == true_bytes(key, size)[start:stop]
        # A new process can go on with the folder, and make room in it.
        use(cache, seed, 20, LONG, 30 * PAGE)
        assert cache.usage_bytes() <= settings_.folder_bytes
        if seed % 4 == 3:
            shutil.rmtree(folder)
    assert pages > 100 * KILLS


def test_a_process_finds_ranges_that_another_keeps(cache):
    other = RangeCache(cache.settings)
    keep(cache, 0, PAGE)
    assert find(other) is None
    keep(cache, PAGE, SIZE)
    assert find(other) == TRUE


def test_ranges_kept_by_another_process_stay(cache):
    other = RangeCache(cache.settings)
    keep(cache, 0, PAGE)
    assert find(other) is None
    keep(cache, 3 * PAGE, 5 * PAGE)
    other.keep(KEY, SIZE, 2 * PAGE, TRUE[2 * PAGE : 3 * PAGE] + bytes(2 * PAGE) + TRUE[5 * PAGE :])
    assert find(cache, 2 * PAGE) == TRUE[2 * PAGE :]


# --- what others do to the folder


def test_a_reader_of_a_removed_file_can_read_on(folder):
    now_s = [0.0]
    cache = RangeCache(CacheSettings(folder), check_s=5, clock=lambda: now_s[0])
    keep(cache, 0, SIZE)
    held, there = cache.locate(KEY, SIZE, [(5, 50)])
    assert there == [True]
    (file,) = mirrors(folder)
    file.unlink()
    assert find(cache) == TRUE  # the file is still open
    now_s[0] += 5.1
    assert find(cache) is None
    keep(cache, 0, PAGE)
    assert mirrors(folder) == [file]
    assert find(cache, 0, PAGE) == TRUE[:PAGE]
    assert find(cache) is None
    assert os.pread(held.descriptor, 45, 5) == TRUE[5:50]
    number = held.descriptor
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_folder_removed_while_it_is_used_is_created_again(folder):
    cache = RangeCache(CacheSettings(folder), check_s=0)
    for _ in range(2):
        keep(cache, 0, SIZE)
        assert find(cache) == TRUE
        shutil.rmtree(folder)
        assert find(cache) is None
        assert cache.usage_bytes() == 0
    keep(cache, 0, SIZE)
    assert find(cache) == TRUE


def test_threads_find_no_wrong_bytes_while_the_folder_is_removed(folder):
    cache = RangeCache(CacheSettings(folder, folder_bytes=1 << 21), check_s=0.001)
    found = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: found.append(use(cache, seed, 200, MANY, 5 * PAGE))
        )
        for seed in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert [wrong for _, wrong in found] == [0, 0]
    keep(cache, 0, SIZE)
    assert find(cache) == TRUE


def cut_data(file):
    os.truncate(file, 20 * PAGE)


def cut_marks(file):
    os.truncate(file, file.stat().st_size - 20)


def cut_all(file):
    os.truncate(file, 0)


def lengthen(file):
    os.truncate(file, file.stat().st_size + 1)


def damage_marks(file):
    with file.open("r+b") as stream:
        stream.seek(-41, os.SEEK_END)
        stream.write(random.Random(0).randbytes(41))  # noqa: S311


def clear_marks(file):
    with file.open("r+b") as stream:
        stream.seek(-41, os.SEEK_END)
        stream.write(bytes(41))


def link_elsewhere(file):
    elsewhere = file.parents[3] / "elsewhere"
    file.replace(elsewhere)
    file.symlink_to(elsewhere)


def link_to_nothing(file):
    file.unlink()
    file.symlink_to(file.parents[3] / "nothing")


def name_twice(file):
    os.link(file, file.parents[3] / "elsewhere")


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "change",
    [
        cut_data,
        cut_marks,
        cut_all,
        lengthen,
        damage_marks,
        clear_marks,
        link_elsewhere,
        link_to_nothing,
        name_twice,
        pipe,
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_changed_file_in_the_folder_gives_no_wrong_bytes(folder, change, is_open):
    cache = RangeCache(CacheSettings(folder), check_s=0)
    keep(cache, 0, SIZE)
    (file,) = mirrors(folder)
    change(file)
    if not is_open:
        cache = RangeCache(cache.settings, check_s=0)
    if not (is_open and change in {damage_marks, clear_marks}):  # known marks are not read again
        assert find(cache) is None
    elsewhere = {path: path.read_bytes() for path in folder.parent.glob("elsewhere")}
    keep(cache, 0, SIZE)
    assert find(cache) == TRUE
    (file,) = mirrors(folder)
    assert file.is_file()
    assert not file.is_symlink()
    assert all(path.read_bytes() == content for path, content in elsewhere.items())
    assert not (folder.parent / "nothing").exists()


def test_a_file_cut_while_it_is_open_gives_no_wrong_bytes(cache, folder):
    keep(cache, 0, SIZE)
    (file,) = mirrors(folder)
    os.truncate(file, 20 * PAGE)
    assert find(cache, 0, PAGE) == TRUE[:PAGE]
    assert find(cache, 19 * PAGE, 21 * PAGE) is None
    keep(cache, 19 * PAGE, 21 * PAGE)
    assert find(cache, 19 * PAGE, 21 * PAGE) == TRUE[19 * PAGE : 21 * PAGE]
    again = RangeCache(cache.settings)
    keep(again, 0, SIZE)
    assert find(again) == TRUE


def test_a_file_cut_and_lengthened_again_gives_no_wrong_bytes(cache, folder):
    keep(cache, 0, PAGE)
    (file,) = mirrors(folder)
    os.truncate(file, 0)
    assert find(cache) is None
    other = RangeCache(cache.settings)
    keep(other, 0, PAGE)
    for start in range(PAGE, SIZE, PAGE):
        assert find(cache, start, start + 1) is None


def test_damaged_marks_of_an_open_file_give_no_wrong_bytes(cache, folder):
    keep(cache, 0, PAGE)
    with mirrors(folder)[0].open("r+b") as stream:
        stream.seek(-41, os.SEEK_END)
        stream.write(b"\1" * 41)
    assert find(cache) is None
    assert find(cache, 0, PAGE) is None


def test_a_forgotten_range_is_forgotten_by_all_caches(cache, folder):
    other = RangeCache(cache.settings)
    keep(cache, 0, SIZE)
    (file,) = mirrors(folder)
    with file.open("r+b") as stream:
        stream.seek(5 * PAGE + 100)
        stream.write(bytes(50))
    wanted = (5 * PAGE + 90, 6 * PAGE + 90)
    assert find(other, *wanted) != TRUE[slice(*wanted)]
    cache.forget(KEY, SIZE, *wanted)
    assert find(cache, *wanted) is None
    assert find(RangeCache(cache.settings), *wanted) is None
    assert find(cache, 0, 5 * PAGE) == TRUE[: 5 * PAGE]
    assert find(cache, 7 * PAGE) == TRUE[7 * PAGE :]
    keep(cache, *cache.widen(*wanted, SIZE))
    for one in (cache, other):  # also in the cache that has not seen the range
        assert find(one) == TRUE


def test_a_range_that_cannot_be_removed_from_disk_is_not_found_again(cache, monkeypatch):
    keep(cache, 0, SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.EROFS))
        cache.forget(KEY, SIZE, 0, 1)
    assert find(cache) is None
    cache.keep(KEY, SIZE, 0, TRUE)
    assert find(cache) is None


# --- disks that fail


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "open"])
def test_one_warning_is_given_for_a_disk_that_cannot_be_written(
    cache, folder, monkeypatch, number, call
):
    keep(cache, 0, 8 * PAGE, "c", 8 * PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.warns(CacheWarning, match=os.strerror(number)) as said:
            keep(cache, 0, SIZE)
        assert str(folder) in str(said[0].message)
        keep(cache, 0, SIZE)
        assert find(cache) is None
    keep(cache, 0, SIZE)
    assert find(cache) is None
    assert find(cache, 0, 8 * PAGE, "c", 8 * PAGE) == true_bytes("c", 8 * PAGE)


def test_threads_that_fail_together_give_one_warning(cache, monkeypatch):
    both = threading.Barrier(2)

    def fail(*_):
        both.wait()
        raise OSError(errno.ENOSPC, "full")

    threads = [threading.Thread(target=keep, args=(cache, 0, SIZE)) for _ in range(2)]
    with warnings.catch_warnings(record=True) as said, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(os, "pwrite", fail)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [warning.category for warning in said] == [CacheWarning]


def test_a_disk_that_cannot_be_read_loses_only_the_cache(cache, monkeypatch):
    keep(cache, 0, SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(errno.EIO))
        assert find(cache, 0, PAGE) is None
    assert find(cache, 0, PAGE) is None  # the page was forgotten
    assert find(cache, PAGE) == TRUE[PAGE:]
    keep(cache, 0, PAGE)
    assert find(cache) == TRUE
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(errno.EIO))
        assert find(RangeCache(cache.settings)) is None


def in_namespace(code, *words):
    """Run code in a process that may mount; skip the test where the system forbids it."""
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
    )
    if tried.returncode:
        pytest.skip("this system does not allow mounting")
    here = f"import sys; sys.path.insert(0, {str(Path(range_cache.__file__).parents[2])!r})\n"
    command = [*NAMESPACE, sys.executable, "-W", "error", "-c", here + code, *map(str, words)]
    subprocess.run(command, check=True)


FULL_DISK = """
import subprocess, sys, warnings
from pathlib import Path
from spinezarr.stream.read.range_cache import CacheWarning, CacheSettings, RangeCache
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
cache, size = RangeCache(CacheSettings(folder / "cache")), 1 << 18
shards = {str(number): bytes([number]) * size for number in range(1, 9)}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for key, data in shards.items():
        for start in range(0, size, 7 << 12):
            cache.keep(key, size, start, data[start:start + (7 << 12)])
assert [warning.category for warning in said] == [CacheWarning], said
assert "No space left" in str(said[0].message)
kept = 0
for one in (cache, RangeCache(cache.settings)):
    for key, data in shards.items():
        pages = [(start, start + 4096) for start in range(0, size, 4096)]
        for (start, stop), found in zip(pages, one.find(key, size, pages), strict=True):
            assert found in (None, data[start:stop])
            kept += found is not None
assert kept > 2 * 150, kept
"""


def test_a_full_disk_causes_one_warning_and_no_wrong_bytes(tmp_path):
    in_namespace(FULL_DISK, tmp_path)


READ_ONLY = """
import os, subprocess, sys, warnings
from pathlib import Path
from spinezarr.errors import UsageError
from spinezarr.stream.read.range_cache import CacheWarning, CacheSettings, RangeCache
folder = Path(sys.argv[1])
subprocess.run(["mount", "--bind", folder, folder], check=True)
settings = CacheSettings(folder / "cache")
RangeCache(settings).keep("a", 5000, 0, bytes(5000))
subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
cache = RangeCache(settings)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        assert cache.find("a", 5000, [(0, 10)]) == [None]
        cache.keep("a", 5000, 0, bytes(5000))
        cache.forget("a", 5000, 0, 10)
assert [warning.category for warning in said] == [CacheWarning], said
assert "Read-only" in str(said[0].message)
for place in (folder / "cache", folder / "other"):
    try:
        CacheSettings(place)
    except UsageError as problem:
        assert str(place) in str(problem) and "Read-only" in str(problem), problem
    else:
        raise AssertionError(place)
"""


def test_a_read_only_folder_causes_one_warning(tmp_path):
    in_namespace(READ_ONLY, tmp_path)


def keep_with_small_files(settings_, answers):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * PAGE, 20 * PAGE))
    cache = RangeCache(settings_)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            keep(cache, 0, SIZE)
    answers.put(([warning.category for warning in said], find(cache)))


def test_a_limit_of_file_sizes_causes_one_warning(folder):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=keep_with_small_files, args=(CacheSettings(folder), answers))
    process.start()
    process.join()
    assert answers.get() == ([CacheWarning], None)


# --- limits


def age(file, seconds):
    os.utime(file, (time.time() - seconds,) * 2)


def test_the_least_recently_used_file_is_removed_first(folder):
    limit = 10 * 9 * PAGE
    settings_ = CacheSettings(folder, folder_bytes=limit)
    size, files = 8 * PAGE, {}
    for number, key in enumerate("abcdefghi"):
        keep(RangeCache(settings_), 0, size, key, size)
        (files[key],) = set(mirrors(folder)) - set(files.values())
        age(files[key], 1000 - number)
    assert RangeCache(settings_).usage_bytes() == 0.9 * limit
    reader = RangeCache(settings_)
    assert find(reader, 0, 5, "a", size) == true_bytes("a", size)[:5]
    recent = time.time()
    assert abs(files["a"].stat().st_mtime - recent) < 100
    keep(reader, 0, size, "j", size)
    there = {key for key in "abcdefghij" if find(RangeCache(settings_), 0, size, key, size)}
    assert there == set("adefghij")  # no more than 80 %, with the new one
    assert reader.usage_bytes() <= 0.8 * limit


def test_a_process_can_keep_a_range_again_after_removing_it(folder):
    cache = RangeCache(CacheSettings(folder, folder_bytes=20 * PAGE))
    keep(cache, 0, 10 * PAGE)
    keep(cache, 0, 15 * PAGE, "b", SIZE)
    assert find(cache, 0, PAGE) is None
    keep(cache, 0, 3 * PAGE)
    assert find(RangeCache(cache.settings), 0, 3 * PAGE) == TRUE[: 3 * PAGE]


def test_the_time_of_use_is_written_at_most_once_a_minute(folder):
    cache = RangeCache(CacheSettings(folder), check_s=0)
    keep(cache, 0, SIZE)
    (file,) = mirrors(folder)
    for seconds, is_noted in ((50, False), (70, True)):
        age(file, seconds)
        before = file.stat().st_mtime
        find(cache)
        find(cache)
        assert (file.stat().st_mtime > before) == is_noted
    age(file, 70)
    before = file.stat().st_mtime
    find(cache, key="b")  # another key
    find(cache, key="b")
    assert file.stat().st_mtime > before  # the first call wrote the time
    age(file, 70)
    before = file.stat().st_mtime
    find(cache, key="b")
    assert file.stat().st_mtime == before


def test_a_shard_larger_than_the_limit_is_not_kept(folder):
    cache = RangeCache(CacheSettings(folder, folder_bytes=10 * PAGE))
    keep(cache, 0, 10 * PAGE)
    assert cache.usage_bytes() == 0
    keep(cache, 0, 9 * PAGE)
    assert find(cache, 0, 9 * PAGE) == TRUE[: 9 * PAGE]
    assert cache.usage_bytes() == 10 * PAGE


def test_holes_of_sparse_files_take_no_room(cache):
    size = 1 << 33
    cache.keep("huge", size, 1 << 32, bytes(PAGE))
    assert cache.find("huge", size, [(1 << 32, (1 << 32) + PAGE), (0, 1)]) == [bytes(PAGE), None]
    assert cache.usage_bytes() < 64 * PAGE


def test_files_of_others_are_neither_counted_nor_removed(folder):
    cache = RangeCache(CacheSettings(folder, folder_bytes=20 * PAGE))
    keep(cache, 0, 10 * PAGE)
    (file,) = mirrors(folder)
    others = [
        folder / "mine",
        folder / "v1" / "mine",
        file.with_suffix(".txt"),
        file.with_name("mine.ranges"),
        folder / "v1" / "our" / file.name,
        folder / "v2" / "ab" / file.name,
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True, parents=True)
        other.write_bytes(bytes(30 * PAGE))
    (folder / "v1" / "zz").symlink_to(folder / "v1" / "our")
    assert cache.usage_bytes() == 11 * PAGE
    keep(cache, 0, 15 * PAGE, "b", SIZE)
    assert not file.exists()
    assert all(other.exists() for other in others)


def test_the_number_of_open_files_is_limited(folder):
    cache = RangeCache(CacheSettings(folder), max_open_files=20)
    shards = [(str(number), 5000) for number in range(40)]
    for shard in shards:
        keep(cache, 0, 5000, *shard)
    for shard in [*shards, *shards]:
        assert find(cache, 100, 4500, *shard) == true_bytes(*shard)[100:4500]
    descriptors = [os.path.realpath(path) for path in Path("/dev/fd").iterdir()]
    ours = [path for path in descriptors if path.startswith(os.path.realpath(folder))]
    assert 0 < len(ours) <= 20


def hold_the_lock(folder, begun):
    with range_cache._try_lock(folder / "v1" / "lock") as is_alone:
        assert is_alone
        begun.set()
        time.sleep(1000)


def test_nothing_is_written_while_another_process_makes_room(cache, folder):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=hold_the_lock, args=(folder, begun))
    process.start()
    begun.wait()
    for _ in range(3):
        keep(cache, 0, SIZE)
        assert find(cache) is None
    process.kill()  # this releases its lock
    process.join()
    keep(cache, 0, SIZE)
    assert find(cache) == TRUE


def keep_a_page(cache, answers):
    keep(cache, 0, PAGE)
    answers.put(cache._uncounted.get().left)


def test_a_forked_process_reads_the_folder_again(cache):
    keep(cache, 0, PAGE)
    cache._uncounted.get().left = 1 << 50
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=keep_a_page, args=(cache, answers))
    process.start()
    process.join()
    assert answers.get() <= cache.settings.folder_bytes / 100


# --- settings


def test_folders_are_readable_only_by_their_owner(tmp_path):
    before = os.umask(0)
    try:
        cache = RangeCache(CacheSettings(tmp_path / "new" / "cache"))
        keep(cache, 0, SIZE)
    finally:
        os.umask(before)
    made = [tmp_path / "new" / "cache", *(tmp_path / "new" / "cache").rglob("*")]
    assert len(made) == 5
    for path in made:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    names = " ".join(path.name for path in made[1:])
    cache.keep("s3://bucket/secret", 10, 0, bytes(10))
    assert "secret" not in names


def test_invalid_settings_are_refused(tmp_path):
    for max_bytes in (0, -1):
        with pytest.raises(UsageError, match=f"folder_bytes {max_bytes}: must be at least 1"):
            CacheSettings(tmp_path, folder_bytes=max_bytes)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cannot be used as a cache.*Give a folder"):
            CacheSettings(folder)


def test_the_folder_may_be_relative_or_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert (
        CacheSettings(Path("~/cache"))
        == CacheSettings(Path("cache"))
        == CacheSettings(tmp_path / "cache")
    )


def test_a_process_has_one_cache_for_equal_settings(cache):
    keep(cache, 0, SIZE)
    first, second = (pickle.loads(pickle.dumps(cache)) for _ in range(2))  # noqa: S301
    assert first is second is shared_range_cache(cache.settings)
    assert find(first) == TRUE
