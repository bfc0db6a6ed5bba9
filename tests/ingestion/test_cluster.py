"""Tests of ingests on real Dask schedulers and workers, some of which die."""

import asyncio
import filecmp
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import dask
import numpy as np
import psutil
import pytest
from distributed import Client
from distributed.utils import LoopRunner, sync
from raw_files import files_below

import spinezarr
from spinezarr.errors import LostClusterError, LostLockError, UsageError
from spinezarr.ingestion import cluster as cluster_module
from spinezarr.ingestion.cluster import (
    ClusterSettings,
    DaskWorkers,
    existing_cluster,
    local_cluster,
)
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.lock import LOCK_FILE
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti
from spinezarr.verbs.ingest_progress import IngestProgress

pytestmark = pytest.mark.long

SCANS = tuple(f"s{i}" for i in range(6))
PATTERNS = ("{scan}_ct.nii.gz", "{scan}_seg.nii.gz")
PAIRS = Recipe.from_pairs(*PATTERNS, name="s")
SPEC = PhantomSpec(shape_zyx=(260, 300, 300), spacing_zyx_mm=(0.8, 0.9, 0.85), levels=("T12", "L1"))
ALLOWED_DEATHS = 2
SPINEZARR = str(Path(sys.executable).parent / "spinezarr")


def start(module, *words, **environment):
    command = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


class Cluster:
    """A scheduler and workers, each in a process, started as a user starts them."""

    def __init__(self, folder, n_workers=2):
        self.file = folder / "scheduler.json"
        self.folder = folder
        self.scheduler = start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", 0,
            "--dashboard-address", "127.0.0.1:0", "--scheduler-file", self.file,
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=str(ALLOWED_DEATHS - 1),
        )  # fmt: skip
        self.workers = {}
        self.count = 0
        for _ in range(n_workers):
            self.add_worker()
        until(lambda: self.file.exists() and self.file.read_text())
        self.address = json.loads(self.file.read_text())["address"]
        self.client = Client(self.address, set_as_default=False)

    def add_worker(self, **environment):
        name = f"w{self.count}"
        self.count += 1
        self.workers[name] = start(
            "dask_worker", "--scheduler-file", self.file, "--no-nanny", "--nthreads", 1,
            "--no-dashboard", "--name", name, "--local-directory", self.folder, **environment,
        )  # fmt: skip
        return name

    def with_two_workers(self):
        for name in [name for name, worker in self.workers.items() if worker.poll() is not None]:
            del self.workers[name]
        while len(self.workers) < 2:
            self.add_worker()
        until(lambda: set(self.names().values()) == set(self.workers))
        return self

    def names(self):
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        return {address: worker["name"] for address, worker in info.items()}

    def stop(self, name, number=signal.SIGTERM):
        worker = self.workers.pop(name)
        worker.send_signal(number)
        worker.wait()

    def catch(self, store, process, scan_ids=SCANS):
        """Stop a worker in the middle of a scan; return the names of both."""
        while process.poll() is None:
            under_way = {key for keys in self.client.processing().values() for key in keys}
            wanted = [key for key in under_way if scan_of(key) in scan_ids]
            # Only workers that hold these tasks are asked, because a starting one answers late.
            stacks_of = self.client.call_stack(keys=wanted) if wanted else {}
            for address, stacks in stacks_of.items():
                for key, frames in stacks.items():
                    scan_id, name = scan_of(key), self.names().get(address)
                    if name is None or "ingest_scan" not in str(frames):
                        continue
                    self.workers[name].send_signal(signal.SIGSTOP)
                    folder = store / "scans" / scan_id
                    if folder.exists() and not (folder / "zarr.json").exists():
                        return scan_id, name
                    self.workers[name].send_signal(signal.SIGCONT)
            time.sleep(0.001)
        raise AssertionError("the ingest ended before a worker was in the middle of a scan")

    def close(self):
        with suppress(Exception):
            self.client.close()
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


def scan_of(key):
    """Return the scan of a Dask task."""
    return key.split("-", 2)[2]


def until(condition):
    while not condition():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(running_cluster):
    return running_cluster.with_two_workers()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    phantom = make_phantom(SPEC)
    forms = NiftiForm(), NiftiForm(dtype="uint8")
    arrays = phantom.image, phantom.label
    for pattern, array, form in zip(PATTERNS, arrays, forms, strict=True):
        first = folder / pattern.format(scan=SCANS[0])
        write_nifti(first, array, phantom.affine_xyz, form)
        for scan in SCANS[1:]:
            shutil.copy(first, folder / pattern.format(scan=scan))
    return folder


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
    """Return the store that an ingest with threads writes."""
    out = tmp_path_factory.mktemp("expected") / "s.zarr"
    assert ingest(PAIRS, discover(PAIRS, str(raw)), str(out)).done == SCANS
    return out


def command(raw, out, *words):
    image, label = PATTERNS
    pairs = ["--raw", str(raw), "--image", image, "--label", label, "--out", str(out)]
    return [SPINEZARR, "ingest", "pairs", *pairs, "--json", *words]


def begin(raw, out, *words, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(raw, out, *words), **pipes, **options)


def report_of(process, code=0):
    stdout, stderr = process.communicate()
    assert process.returncode == code, stdout.decode() + stderr.decode()
    assert b"Traceback" not in stderr, stderr.decode()
    return json.loads(stdout)


def assert_same_scans(a, b):
    """Compare the files of the scans, and the tables.

    A run of more than a minute writes the table twice, and the second time its chunks have keys of
    another kind.
    """
    folders = a / "scans", b / "scans"
    assert files_below(folders[0]) == files_below(folders[1])
    for name in files_below(folders[0]):
        assert filecmp.cmp(folders[0] / name, folders[1] / name, shallow=False), name
    assert spinezarr.open(a).table.identical(spinezarr.open(b).table)


def run(raw, out, workers, **options):
    return ingest(PAIRS, discover(PAIRS, str(raw)), str(out), workers=workers, **options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_worker_does_not_change_the_store(number, cluster, raw, expected, tmp_path):
    out = tmp_path / "s.zarr"
    process = begin(raw, out, "--scheduler", cluster.address)
    _, name = cluster.catch(out, process)
    worker = cluster.workers[name]
    worker.send_signal(number)
    worker.send_signal(signal.SIGCONT)
    report = report_of(process)
    worker.wait()
    assert sorted(report["done"]) == list(SCANS)
    assert_same_scans(out, expected)
    stored, threads = spinezarr.open(out), spinezarr.open(expected)
    assert stored.table.identical(threads.table)
    np.testing.assert_array_equal(stored.scan("s3").label, threads.scan("s3").label)


def test_local_worker_processes_write_the_same_store(raw, expected, tmp_path):
    process = begin(raw.name, tmp_path / "s.zarr", "--workers", "2", cwd=raw.parent)
    assert report_of(process)["exit_code"] == 0
    assert_same_scans(tmp_path / "s.zarr", expected)


def test_a_scan_that_kills_its_workers_fails_alone(cluster, raw, tmp_path):
    out = tmp_path / "s.zarr"
    process = begin(raw, out, "--scheduler", cluster.address)
    # A crash counts only against a scan that had started, so there may be a few more.
    with suppress(AssertionError):
        for _ in range(ALLOWED_DEATHS + 3):
            _, name = cluster.catch(out, process, ["s1"])
            cluster.stop(name, signal.SIGKILL)
            cluster.add_worker()
    report = report_of(process, code=1)
    (failed,) = report["failed"]
    assert failed["scan_id"] == "s1"
    assert f"{ALLOWED_DEATHS} workers died" in failed["reason"]
    assert sorted(report["done"]) == [scan for scan in SCANS if scan != "s1"]
    assert not (out / "scans" / "s1").exists(), "files of the dead workers must be removed"
    assert "s1" not in spinezarr.open(out).table.scan


class Counts:
    """Workers that count the scans that are requested and not yet done."""

    def __init__(self, workers):
        self.workers = workers
        self.waiting = []
        self.asked = self.done = 0

    def run(self, job, tasks, listener):
        def count():
            for task in tasks:
                self.asked += 1
                self.waiting.append(self.asked - self.done)
                yield task

        for result in self.workers.run(job, count(), listener):
            self.done += 1
            yield result


class Watches:
    """A listener that calls a function when the first scan has ended."""

    def __init__(self, on_first_end):
        self.on_first_end = on_first_end
        self.begun = []
        self.shares = dict.fromkeys(SCANS, 0.0)
        self.outcomes = {}

    def started(self, source):
        self.begun.append(source.scan_id)

    def advanced(self, source, share):
        assert source.scan_id in self.begun
        self.shares[source.scan_id] += share

    def finished(self, source, outcome):
        self.outcomes[source.scan_id] = outcome
        if len(self.outcomes) == 1:
            self.on_first_end()


def get(url):
    with urlopen(url) as page:  # noqa: S310  a server of this test
        return page.read().decode()


def test_few_scans_are_in_flight_and_the_dashboard_lists_them(cluster, raw, expected, tmp_path):
    dashboard = cluster.client.dashboard_link.removesuffix("status")
    pages = []

    def read_dashboard():
        addresses = (quote(worker, safe="") for worker in cluster.names())
        pages.extend(get(f"{dashboard}info/worker/{address}.html") for address in addresses)
        assert "bokeh" in get(f"{dashboard}status").lower()

    workers = DaskWorkers(cluster.client, settings=ClusterSettings(progress_s=0.0))
    counts, watches = Counts(workers), Watches(read_dashboard)
    report = run(raw, tmp_path / "s.zarr", counts, listener=watches)
    assert report.exit_code == 0
    assert watches.outcomes == dict.fromkeys(SCANS, "done")
    assert_same_scans(tmp_path / "s.zarr", expected)
    assert max(counts.waiting) == 4, "two for each of two workers with one thread"
    assert len(counts.waiting) == len(SCANS)
    assert sorted(watches.begun) == list(SCANS)
    assert all(0 < share <= 1 + 1e-9 for share in watches.shares.values())
    named = [scan for scan in SCANS if any(f"-{scan}</a>" in page for page in pages)]
    assert 1 <= len(named) <= 4


def test_the_run_after_a_killed_client_completes_the_store(cluster, raw, expected, tmp_path):
    out = tmp_path / "s.zarr"
    process = begin(raw, out, "--scheduler", cluster.address)
    _, name = cluster.catch(out, process)
    process.kill()
    process.communicate()
    # Workers may finish scans that they began, unless the next run takes the lock before.
    cluster.workers[name].send_signal(signal.SIGCONT)
    again = begin(raw, out, "--scheduler", cluster.address)
    report_of(again)
    until(lambda: not any(cluster.client.processing().values()))
    assert_same_scans(out, expected)


def test_worker_processes_of_a_killed_client_end(raw, tmp_path):
    out = tmp_path / "s.zarr"
    process = begin(raw, out, "--workers", "2")
    until((out / "scans" / "s0" / "image").exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert len(children) >= 2
    psutil.wait_procs(children)


@pytest.mark.parametrize("filtered", [False, True])
def test_an_interrupt_before_a_call_begins_is_not_logged(filtered, caplog):
    """Ctrl-C at that moment would be chance, so the test creates the moment."""
    logger, interrupts = logging.getLogger("tornado.application"), cluster_module._INTERRUPT_FILTER
    runner = LoopRunner(asynchronous=False)
    runner.start()
    try:
        logger.removeFilter(interrupts)
        if filtered:
            logger.addFilter(interrupts)
        runner.loop.add_callback(time.sleep, 0.6)  # so that the call waits for its turn
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            sync(runner.loop, asyncio.sleep, 5)
        runner.loop.add_callback(int, "no number")  # an unrelated error
        until(lambda: "no number" in caplog.text)
    finally:
        runner.stop()
        logger.removeFilter(interrupts)
    assert ("sync.<locals>.cancel" in caplog.text) != filtered


def test_workers_do_not_log_that_their_scheduler_ended_first(capfd):
    def log_lost_heartbeat():
        logger = logging.getLogger("distributed.worker")
        message = "Failed to communicate with scheduler during heartbeat."
        logger.error(message, exc_info=OSError("no scheduler"))
        logger.error("no heart")

    with local_cluster(1) as workers:
        workers._client.run(log_lost_heartbeat)
    stderr = capfd.readouterr().err
    assert "no heart" in stderr
    assert "no scheduler" not in stderr


@pytest.mark.parametrize("own", [True, False])
def test_ctrl_c_keeps_finished_scans_and_removes_unfinished_ones(
    own, cluster, raw, expected, tmp_path
):
    out = tmp_path / "s.zarr"
    words = ("--workers", "2") if own else ("--scheduler", cluster.address)
    process = begin(raw, out, *words, start_new_session=True)
    until(lambda: len(list((out / "scans").glob("*/zarr.json"))) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr.decode()
    assert "Traceback" not in stderr.decode()
    done = sorted(path.parent.name for path in (out / "scans").glob("*/zarr.json"))
    assert sorted(path.name for path in (out / "scans").iterdir() if path.is_dir()) == done
    assert spinezarr.open(out).table.scan.to_numpy().tolist() == done
    assert 2 <= len(done) < len(SCANS)
    assert not (out / LOCK_FILE).exists()
    report = run(raw, out, None)
    assert list(report.skipped) == done, report
    assert_same_scans(out, expected)


def test_a_lost_lock_ends_the_run(cluster, raw, tmp_path):
    out = tmp_path / "s.zarr"
    takes = Watches(lambda: (out / LOCK_FILE).write_text("another run's"))
    with pytest.raises(LostLockError, match="another run"):
        run(raw, out, DaskWorkers(cluster.client), listener=takes)


def test_a_scheduler_without_workers_or_that_stops_is_an_error(raw, tmp_path):
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.comm.timeouts.connect": "1s"}))
        doomed = Cluster(tmp_path, n_workers=0)
        stack.callback(doomed.close)
        with pytest.raises(UsageError, match="has had no worker"):
            DaskWorkers(doomed.client, settings=ClusterSettings(first_worker_s=0.1))
        doomed.with_two_workers()
        out = tmp_path / "s.zarr"
        ends = Watches(doomed.scheduler.kill)
        with pytest.raises(LostClusterError, match="scheduler is gone"):
            run(raw, out, DaskWorkers(doomed.client), listener=ends)


def test_the_error_names_versions_of_workers_that_differ(cluster, tmp_path):
    metadata = tmp_path / "spinezarr-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: spinezarr\nVersion: 9.9\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    name = cluster.add_worker(PYTHONPATH=path)
    until(lambda: name in cluster.names().values())
    with pytest.raises(UsageError, match=r"has spinezarr 9\.9, not"):
        DaskWorkers(cluster.client)
    cluster.stop(name)


@pytest.mark.parametrize(
    ("address", "words"),
    [("tcp://127.0.0.1:1", "no Dask scheduler answers"), ("ham://1", "no Dask scheduler answers")],
)
def test_a_scheduler_that_does_not_answer_is_a_usage_error(address, words):
    settings = ClusterSettings(connect_s=0.3)
    with pytest.raises(UsageError, match=words), existing_cluster(address, settings=settings):
        pass


def test_workers_and_scheduler_exclude_each_other(raw, tmp_path):
    process = begin(raw, tmp_path / "s.zarr", "--workers", "2", "--scheduler", "tcp://x:1")
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert b"Give one of them" in stderr


def test_the_command_line_does_not_import_dask_distributed():
    code = "import spinezarr.cli.main, sys; assert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_of_parallel_scans_adds_up_their_bytes(raw):
    scans = discover(PAIRS, str(raw)).scans
    size = scans[0].size_bytes
    seen = []
    progress = IngestProgress(scans, seen.append)
    progress.started(scans[0])
    progress.started(scans[1])
    assert seen[-1].scan == "s0 + 1"
    progress.advanced(scans[0], 0.5)
    progress.advanced(scans[1], 0.25)
    assert seen[-1].done == pytest.approx(0.75 * size)
    progress.finished(scans[0], "done")
    assert seen[-1].done == pytest.approx(1.25 * size)
    assert seen[-1].scan == "s1"
    progress.advanced(scans[1], -0.25)
    progress.finished(scans[1], "failed")
    progress.finished(scans[2], "already in the store")
    assert seen[-1].done == pytest.approx(size)
    assert seen[-1].total == pytest.approx((len(scans) - 2) * size)
    assert (seen[-1].scans_done, seen[-1].scans_total) == (3, len(scans))


def test_ingest_accepts_a_dask_client_in_place_of_an_address(cluster, raw, expected, tmp_path):
    seen = []
    report = spinezarr.ingest(
        "pairs",
        raw=raw,
        out=tmp_path / "s.zarr",
        image=PATTERNS[0],
        label=PATTERNS[1],
        scheduler=cluster.client,
        on_progress=seen.append,
    )
    assert sorted(report.done) == list(SCANS)
    assert cluster.client.status == "running"
    assert seen[-1].scans_done == len(SCANS)
    assert seen[-1].done == pytest.approx(seen[-1].total)
    assert_same_scans(tmp_path / "s.zarr", expected)
