"""Tests of runs that were stopped so long that another run took the store over."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from spinezarr.errors import LostLockError, StoreBusyError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store import scan_writer, writable
from spinezarr.store.lock import LATE_FILE, LOCK_FILE, LockTimes, StoreLock
from spinezarr.store.reader import StoreReader
from spinezarr.store.writer import StoreWriter
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.store import verify_store

RECIPE = Recipe.from_pairs("{scan}.nii", None, name="taken")
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write(raw, value):
    for scan in "ab":
        voxels = np.full((70, 20, 30), value, np.int16)
        write_nifti(raw / f"{scan}.nii", voxels, AFFINE, NiftiForm("RAS", "int16"))


def run(raw, url, options=None):
    return ingest(RECIPE, discover(RECIPE, str(raw)), url, out_options=options)


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "raw", 1)
    url = str(tmp_path / "taken.zarr")
    run(tmp_path / "raw", url)
    return url


@contextmanager
def stopped(monkeypatch, store, name):
    """Run an ingest of other files that stops at the first call of a ``scan_writer`` function.

    Yields a function that lets it go on and returns its result.
    """
    times = LockTimes(renew_s=1000, watch_s=1.1, flock_s=0.2)
    monkeypatch.setattr(writable, "StoreLock", partial(StoreLock, times=times))
    raw = Path(store).parent / "raw"
    write(raw, 2)
    reached, go_on = threading.Event(), threading.Event()
    real = getattr(scan_writer, name)

    def waiting(*args, **options):
        if not reached.is_set():
            reached.set()
            go_on.wait()
        return real(*args, **options)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(scan_writer, name, waiting)
        first = pool.submit(run, raw, store)
        reached.wait()
        path = Path(store, LOCK_FILE)
        held = json.loads(path.read_text())
        path.write_text(json.dumps({**held, "host": "elsewhere", "renewed": time.time() - 61}))

        def finish():
            go_on.set()
            return first.result()

        try:
            yield finish
        finally:
            go_on.set()


def assert_whole(url, value, options=None):
    assert verify_store(url, storage_options=options).faults == ()
    reader = StoreReader(url, options)
    for scan in "ab":
        assert reader.scan(scan).attributes.image_range_hu == (value, value)


def test_a_run_stopped_before_it_publishes_changes_nothing(store, monkeypatch):
    raw = Path(store).parent / "raw"
    with stopped(monkeypatch, store, "small_files") as finish:
        write(raw, 3)
        assert run(raw, store).done == ("a", "b")
        with pytest.raises(LostLockError, match="another run has taken over"):
            finish()
    assert_whole(store, 3)
    assert run(raw, store).skipped == ("a", "b")


def test_the_next_run_waits_for_a_run_stopped_while_it_publishes(store, monkeypatch):
    raw = Path(store).parent / "raw"
    with stopped(monkeypatch, store, "publish_group") as finish:
        with pytest.raises(StoreBusyError, match="was stopped while it changed this store"):
            run(raw, store)
        assert finish().done == ("a", "b")
    assert_whole(store, 2)


def test_a_run_stopped_before_it_removes_old_files_removes_none(store):
    opened = StoreWriter(store, StoreReader(store).root)
    left = Path(store, "scans/a/image/c/9/9/9")
    left.parent.mkdir(parents=True)
    left.touch()
    with opened.lock("a test"):
        held = Path(store, LOCK_FILE)
        held.write_text(json.dumps({**json.loads(held.read_text()), "run_id": "another"}))
        with pytest.raises(LostLockError):
            opened.recover()
        assert left.exists()
        held.unlink()


@pytest.mark.long
def test_the_next_run_detects_a_request_that_reached_a_bucket_too_late(
    s3_server, tmp_path, monkeypatch
):
    """A request that is under way when the store is taken over cannot be called back."""
    url, options = f"s3://{s3_server.new_bucket()}/taken.zarr", s3_server.storage_options
    raw = tmp_path / "raw"
    write(raw, 1)
    run(raw, url, options)
    real = scan_writer.publish_group

    def taken_over(fs, folder, files, *, replaces):
        if folder.endswith("scans/a"):
            fs.pipe_file(f"{folder.removesuffix('/scans/a')}/{LOCK_FILE}", b"{}")
        real(fs, folder, files, replaces=replaces)
        if folder.endswith("scans/a"):  # the new run removes unknown files
            manifest = json.loads(files["zarr.json"])["attributes"]["manifest"]
            fs.rm([f"{folder}/{key}" for key in manifest if key.startswith("image/c")])

    write(raw, 2)
    monkeypatch.setattr(scan_writer, "publish_group", taken_over)
    with pytest.raises(LostLockError):
        run(raw, url, options)
    monkeypatch.undo()
    opened = StoreWriter(url, StoreReader(url, options).root, options)
    opened._files.fs.rm(f"{opened._files.path}/{LOCK_FILE}")
    assert verify_store(url, storage_options=options).leftovers == (LATE_FILE,)
    assert run(raw, url, options).done == ("a", "b")
    assert verify_store(url, storage_options=options).leftovers == ()
    assert_whole(url, 2, options)
