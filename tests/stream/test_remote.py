"""Remote streams: the same samples, few requests, and no fault that becomes data."""

import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from timeouts import TIMEOUT_S
from torch.utils.data import DataLoader

import spinezarr
from spinezarr import CacheSettings, RemoteSettings
from spinezarr.errors import CorruptStoreError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.loaders.torch import PatchDataset
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

SIZE = (20, 30, 30)


@pytest.fixture(scope="module")
def served(ctspine1k_url, proxies):
    with proxies.proxy(folder=Path(ctspine1k_url).parent) as running:
        yield running


@pytest.fixture
def proxy(served, proxies):
    """Serve the CTSpine1K store, without latency or faults."""
    served.set(proxies.Conditions())
    served.reset()
    return served


@pytest.fixture
def url(proxy):
    return f"{proxy.url}/ctspine1k.zarr"


BY_RANGE = RemoteSettings(whole_shard_bytes=0)
"""Request chunks instead of whole shards, as for larger stores."""
HASTY = replace(BY_RANGE, least_late_s=0.1, first_late_s=0.3)
"""Consider answers late after a short time."""


def chunk_requests(proxy):
    asked = proxy.counts().latest
    return [(path, span) for _, path, span in asked if re.search("/(image|label)/c", path)]


def assert_equal_streams(found, expected):
    pairs = list(zip(found, expected, strict=True))
    assert pairs
    for one, other in pairs:
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
        assert one.scan_id == other.scan_id


# The same samples


_READ_WITH_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), 4096))
import spinezarr
never_late = {"least_late_s": 600, "first_late_s": 600}
settings = spinezarr.RemoteSettings(whole_shard_bytes=0, **never_late)
store = spinezarr.open(sys.argv[1], remote=settings)
print(sum(len(batch) for batch in store.patches((20, 30, 30), batch_size=4, n_samples=600)))
"""


def test_few_files_that_may_be_open_are_enough(proxy, proxies, url):
    proxy.set(proxies.Conditions(latency_s=0.03))
    n_requests = {}
    for limit in (1024, 48):
        proxy.reset()
        command = [sys.executable, "-c", _READ_WITH_FEW_FILES, url, str(limit)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_S)
        assert int(done.stdout) == 600
        n_requests[limit] = proxy.counts().requests
    assert n_requests[48] < 1.1 * n_requests[1024]  # none failed and was sent again


@pytest.mark.parametrize("shuffle", ["exact", "window"])
def test_faults_of_a_server_change_no_sample(proxy, proxies, url, store, shuffle):
    proxy.set(proxies.Conditions(fault_rate=0.2, stall_s=20))
    wanted = {"batch_size": 3, "foreground": 0.5, "n_samples": 60, "shuffle": shuffle}
    assert_equal_streams(
        spinezarr.open(url, remote=HASTY).patches(SIZE, **wanted), store.patches(SIZE, **wanted)
    )
    assert len(proxy.counts().faults) > 3


def test_a_store_opens_through_faults(proxy, proxies, url, store):
    for seed in range(8):
        proxy.set(proxies.Conditions(fault_rate=0.4, fault_kinds=("flip", "cut"), seed=seed))
        remote = spinezarr.open(url)
        assert remote.table.identical(store.table)
        assert remote.scan("liver_0").identical(store.scan("liver_0"))
    assert proxy.counts().faults["flip"] > 3


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_of_a_data_loader_read_a_remote_store(url, store, method):
    def batches(opened):
        stream = opened.patches(SIZE, batch_size=2, n_samples=8)
        loader = DataLoader(
            PatchDataset(stream),
            batch_size=None,
            num_workers=2,
            multiprocessing_context=method,
            timeout=TIMEOUT_S,
        )
        return sorted(batch["image"].numpy().tobytes() for batch in loader)

    remote = spinezarr.open(url)
    next(iter(remote.patches(SIZE)))  # children do not inherit requests in flight
    assert batches(remote) == batches(store)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_two_ranks_stream_from_one_server_and_share_the_samples(url, store, method):
    expected = [b.index.tolist() for b in store.patches(SIZE, batch_size=2, n_samples=24)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(_indices_of_rank, [(url, 0), (url, 1)])
    assert sorted(found[0] + found[1]) == expected
    assert len(found[0]) == len(found[1]) == 6


def _indices_of_rank(url, rank):
    stream = spinezarr.open(url).patches(SIZE, batch_size=2, n_samples=24)
    return [batch.index.tolist() for batch in stream.shard(rank, 2)]


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_leaving_a_loop_waits_for_no_answer(proxy, proxies, url, foreground):
    stream = spinezarr.open(url, remote=BY_RANGE).patches(
        SIZE, n_samples=500, foreground=foreground
    )
    batches = iter(stream)
    next(batches)
    proxy.set(proxies.Conditions(latency_s=1000))

    def read_on():
        with suppress(CancelledError):
            for _ in batches:
                pass

    reading = threading.Thread(target=read_on)
    reading.start()
    reading.join(0.5)
    assert reading.is_alive()
    batches.close()
    reading.join(TIMEOUT_S)
    assert not reading.is_alive()
    assert not [one for one in threading.enumerate() if one.name.startswith("spinezarr-read")]
    proxy.set(proxies.Conditions())
    next(iter(stream.at_epoch(1)))  # room in flight, and memory, were given back


# Few requests


def test_the_first_batch_takes_few_requests(proxy, url):
    for foreground, requests in ((0.0, 5), (1.0, 6)):
        proxy.reset()
        next(iter(spinezarr.open(url).patches(SIZE, n_samples=1, foreground=foreground)))
        # Root, table, scan, image and mask; a balanced draw also needs the label chunks.
        assert proxy.counts().requests <= requests


def test_adjacent_chunks_of_a_shard_take_one_request(proxy, url):
    store = spinezarr.open(url, remote=BY_RANGE)
    scan = store._reader.scan("liver_0")
    (batch,) = store.patches(scan.image.shape_zyx, scans=["liver_0"], n_samples=1)
    assert batch.padding_zyx.sum() == 0
    asked = chunk_requests(proxy)
    assert len(asked) == len({path for path, _ in asked})
    shards = len(scan.image.shards) + len(scan.label.shards)
    assert len(asked) == shards


def test_a_stream_sends_the_requests_that_explain_announces(proxy, url):
    for gap in (0, 5000, 1 << 20):
        remote = replace(BY_RANGE, least_gap_bytes=gap, most_gap_bytes=gap)
        stream = spinezarr.open(url, remote=remote).patches((64, 60, 60), batch_size=4, n_samples=4)
        next(iter(stream))  # the first patch loads root, table and scans
        said = stream.explain()
        proxy.reset()
        next(iter(stream))
        asked = chunk_requests(proxy)
        assert said.requests == len(asked)
        spans = sorted((path, *map(int, re.findall(r"\d+", span))) for path, span in asked)
        for (path, _, last), (after, first, _) in pairwise(spans):
            assert path != after or first - last - 1 > gap
    assert said.requests < said.chunks


def test_merged_requests_stay_below_their_largest_size(proxy, url):
    store = spinezarr.open(url, remote=replace(BY_RANGE, longest_range_bytes=30_000))
    longest = max(
        int(entry.chunk_sizes(spec.coding).max())
        for scan in map(store._reader.scan, store.table.scan.to_numpy())
        for spec in scan.arrays
        for entry in spec.shards.values()
    )
    for _ in store.patches((64, 60, 60), n_samples=6):
        pass
    spans = [re.findall(r"\d+", span) for _, span in chunk_requests(proxy)]
    assert max(int(last) + 1 - int(first) for first, last in spans) <= max(30_000, longest)
    assert len(spans) > 10


def test_a_small_shard_takes_one_request(proxy, url):
    stream = spinezarr.open(url).patches(SIZE, batch_size=2, n_samples=20)
    list(stream)
    proxy.reset()
    list(stream)
    assert proxy.counts().requests == 0


# Damage


def test_lasting_damage_is_an_error_that_names_url_and_chunk(ctspine1k_url, tmp_path, proxies):
    copy = shutil.copytree(ctspine1k_url, tmp_path / "damaged.zarr")
    path = copy / "scans" / "liver_0" / "image" / "c" / "0" / "0" / "0"
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 8
    path.write_bytes(damaged)
    with proxies.proxy(folder=tmp_path) as proxy:
        secret = proxy.url.replace("http://", "http://me:geheim@")
        remote = spinezarr.open(f"{secret}/damaged.zarr", remote=BY_RANGE)
        shape = remote._reader.scan("liver_0").image.shape_zyx
        stream = remote.patches(shape, scans=["liver_0"], n_samples=1, labels=False)
        proxy.reset()
        with pytest.raises(CorruptStoreError) as told:
            list(stream)
        # The chunk is requested once with the others, and three times alone.
        assert len(chunk_requests(proxy)) == 1 + 3
    assert f"{proxy.url}/damaged.zarr/scans/liver_0/image/c/0/0/0" in str(told.value)
    assert "image chunk (0, 0, 0)" in str(told.value)
    assert "geheim" not in str(told.value)


def test_reading_again_waits_for_no_memory(proxy, proxies, url):
    """A reader that must fetch a chunk again does not wait for memory that it holds itself."""
    narrow = replace(BY_RANGE, held_bytes=1)
    proxy.set(proxies.Conditions(fault_rate=0.3, fault_kinds=("flip",), latency_s=0.005))

    def read():
        while proxy.counts().faults.get("flip", 0) <= 10:
            with suppress(CorruptStoreError):  # if a chunk arrives damaged four times
                list(spinezarr.open(url, remote=narrow).patches(SIZE, n_samples=60))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(TIMEOUT_S)
    assert not reading.is_alive()


# A cache on disk


def cached(url, folder, **options):
    return spinezarr.open(url, cache=CacheSettings(folder), **options)


@pytest.mark.parametrize("small", [0, 1 << 19])
def test_cached_ranges_are_not_requested_again(proxy, url, store, tmp_path, small):
    remote = RemoteSettings(whole_shard_bytes=small)
    wanted = {"batch_size": 2, "n_samples": 12, "foreground": 0.5}
    assert_equal_streams(
        cached(url, tmp_path / "cache", remote=remote).patches(SIZE, **wanted),
        store.patches(SIZE, **wanted),
    )
    assert chunk_requests(proxy)
    proxy.reset()
    opened = cached(url, tmp_path / "cache", remote=remote)
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301  our own
    assert_equal_streams(again.patches(SIZE, **wanted), store.patches(SIZE, **wanted))
    assert not chunk_requests(proxy)


def test_damage_in_a_cache_is_repaired(proxy, url, store, tmp_path):
    wanted = {"batch_size": 2, "n_samples": 12}
    list(cached(url, tmp_path / "cache", remote=BY_RANGE).patches(SIZE, **wanted))
    mirrors = list((tmp_path / "cache").rglob("*.ranges"))
    for path in mirrors:
        data = bytearray(path.read_bytes())
        for place in range(100, len(data) // 2, 1000):
            data[place] ^= 1
        path.write_bytes(data)
    asked = []
    for _ in range(4):
        proxy.reset()
        opened = cached(url, tmp_path / "cache", remote=BY_RANGE)
        assert_equal_streams(opened.patches(SIZE, **wanted), store.patches(SIZE, **wanted))
        asked.append(len(chunk_requests(proxy)))
    # A page may be left if its range was requested anyhow: a block of it was just being repaired.
    assert asked[0] > 0
    assert asked[-1] == 0


@pytest.mark.parametrize(
    "wait_s", [0.05, *(pytest.param(s, marks=pytest.mark.long) for s in [0.0, 0.2])]
)
def test_a_cache_survives_processes_that_are_killed(proxy, proxies, url, store, tmp_path, wait_s):
    proxy.set(proxies.Conditions(latency_s=0.002))
    code = (
        "import sys, spinezarr\n"
        "store = spinezarr.open(sys.argv[1], cache=spinezarr.CacheSettings(sys.argv[2]))\n"
        "print('on', flush=True)\n"
        "while True:\n"
        "    for batch in store.patches((20, 30, 30), batch_size=2, n_samples=20): pass\n"
        "    store = spinezarr.open(sys.argv[1], cache=spinezarr.CacheSettings(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, url, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        process.stdout.readline()
    time.sleep(wait_s)
    for process in running:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    wanted = {"batch_size": 2, "n_samples": 20}
    opened = cached(url, tmp_path / "cache")
    assert_equal_streams(opened.patches(SIZE, **wanted), store.patches(SIZE, **wanted))


def test_a_cache_stays_within_its_limit(url, store, tmp_path):
    bound = CacheSettings(tmp_path / "cache", folder_bytes=400_000)
    wanted = {"batch_size": 2, "n_samples": 40}
    bounded = spinezarr.open(url, cache=bound, remote=BY_RANGE)
    assert_equal_streams(bounded.patches(SIZE, **wanted), store.patches(SIZE, **wanted))
    used = sum(path.stat().st_blocks * 512 for path in bound.folder.rglob("*.ranges"))
    assert 0 < used <= 400_000


def test_a_cache_holds_no_url_and_no_secret(proxy, tmp_path):
    secret = proxy.url.replace("http://", "http://me:geheim@")
    list(cached(f"{secret}/ctspine1k.zarr", tmp_path / "cache").patches(SIZE, n_samples=4))
    found = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(found) > 2
    for path in found:
        text = str(path).encode() + path.read_bytes()
        assert b"geheim" not in text
        assert b"http" not in text


def test_two_versions_of_a_scan_in_one_cache_are_kept_apart(tmp_path, proxies):
    """Both versions have the same paths and the same shard sizes."""
    for version in range(2):
        raw, out = tmp_path / f"raw{version}", tmp_path / str(version)
        rng = np.random.default_rng(version)
        image = rng.integers(-1000, 1000, (30, 40, 50)).astype(np.int16)
        write_nifti(raw / "a_ct.nii", image, np.eye(4), NiftiForm("RAS"))
        recipe = Recipe.from_pairs("{scan}_ct.nii", None, name="versions")
        report = ingest(recipe, discover(recipe, str(raw)), str(out / "a.zarr"))
        assert not report.failed
        with proxies.proxy(folder=out) as proxy:
            remote = cached(f"{proxy.url}/a.zarr", tmp_path / "cache")
            (batch,) = remote.patches((30, 40, 50), n_samples=1, labels=False)
            assert chunk_requests(proxy)
        np.testing.assert_array_equal(batch.image[0], image)
