"""Copies of stores on disk and in a bucket are whole, or are no stores."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scans import ingest_raw, write_raw, write_scan

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError, UsageError
from spinezarr.progress import Progress

SCANS = ("bare", "box", "empty", "oblique")


def scan_files(files):
    """Return the files of scans among those of a store."""
    return {key: data for key, data in files.items() if key.startswith("scans/")}


def check_equal(copy, url, read_files):
    """Check that a copy has the scans, table and ledger of a store, and that it is intact."""
    assert scan_files(read_files(copy)) == scan_files(read_files(url))
    store, copied = spinezarr.open(url), spinezarr.open(copy)
    assert copied.table.identical(store.table)
    assert copied.attrs == store.attrs
    assert Path(copy, "ingest/zarr.json").read_bytes() == Path(url, "ingest/zarr.json").read_bytes()
    verification = copied.verify()
    assert not verification.faults
    assert not verification.leftovers


def test_a_copy_has_the_bytes_of_the_store(small, tmp_path, read_files):
    store = spinezarr.open(small.url)
    report = store.push(tmp_path / "copy.zarr")
    assert (report.exit_code, report.outcome.copied) == (0, SCANS)
    copied = scan_files(read_files(tmp_path / "copy.zarr"))
    assert report.work.all.objects == report.outcome.objects == len(copied) - 1
    assert report.outcome.size_bytes == report.work.to_copy.size_bytes
    assert report.outcome.size_bytes == sum(map(len, copied.values())) - len(
        copied["scans/zarr.json"]
    )
    check_equal(tmp_path / "copy.zarr", small.url, read_files)


def test_a_second_copy_writes_nothing(small, tmp_path, read_files):
    store = spinezarr.open(small.url)
    store.push(tmp_path / "copy.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "copy.zarr").rglob("*") if p.is_file()}
    report = store.push(tmp_path / "copy.zarr")
    assert report.outcome.kept == SCANS
    assert report.work.to_copy.objects == report.outcome.objects == 0
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "copy.zarr").rglob("*") if p.is_file()}
    assert after == before


def test_a_dry_run_counts_and_writes_nothing(small, tmp_path):
    store = spinezarr.open(small.url)
    planned = store.push(tmp_path / "copy.zarr", dry_run=True)
    assert planned.outcome is None
    assert not (tmp_path / "copy.zarr").exists()
    assert store.push(tmp_path / "copy.zarr").work == planned.work


FATES = ("keep", "keep", "delete", "cut", "flip")


def spoil(path, fate):
    data = path.read_bytes()
    if fate == "delete":
        path.unlink()
    elif fate == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif fate == "flip" and data:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@settings(max_examples=6)
@given(st.data())
def test_a_copy_that_was_cut_off_anywhere_is_completed(small, tmp_path_factory, read_files, data):
    """Whatever the files of scans are in the target, ``repair`` brings them back."""
    copy = tmp_path_factory.mktemp("copy") / "copy.zarr"
    store = spinezarr.open(small.url)
    store.push(copy)
    keys = sorted(scan_files(read_files(copy)))
    fates = data.draw(st.lists(st.sampled_from(FATES), min_size=len(keys), max_size=len(keys)))
    for key, fate in zip(keys, fates, strict=True):
        spoil(copy / key, fate)
    if data.draw(st.booleans()):
        (copy / "zarr.json").unlink()
        shutil.rmtree(copy / "table", ignore_errors=True)
    wrong = {key for key, fate in zip(keys, fates, strict=True) if fate != "keep"}
    report = store.push(copy, repair=True)
    assert report.exit_code == 0
    assert report.outcome.objects <= len(wrong) + len(SCANS), "only what differs is copied"
    check_equal(copy, small.url, read_files)


class Stop(Exception):  # noqa: N818  a signal and not an error
    pass


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 0.97])
def test_what_an_interrupted_copy_leaves_is_no_store_but_its_scans_are_whole(
    small, tmp_path, share, read_files
):
    store, copy = spinezarr.open(small.url), tmp_path / "copy.zarr"

    def stop(progress: Progress):
        if progress.step == "push" and progress.total and progress.done > share * progress.total:
            raise Stop

    with pytest.raises(Stop):
        store.push(copy, on_progress=stop)
    with pytest.raises((StoreNotFoundError, CorruptStoreError)):
        spinezarr.open(copy)
    files = read_files(small.url)
    for path in copy.glob("scans/*/zarr.json"):
        for file in path.parent.rglob("*"):
            if file.is_file():
                assert file.read_bytes() == files[file.relative_to(copy).as_posix()]
    left = len(scan_files(read_files(copy)))
    report = store.push(copy)
    assert report.outcome.objects <= report.work.all.objects - left + len(SCANS) * 9
    check_equal(copy, small.url, read_files)


def test_parts_of_a_store_add_up(small, tmp_path, read_files):
    store, copy = spinezarr.open(small.url), tmp_path / "copy.zarr"
    assert store.push(copy, split="train").outcome.copied == ("box",)
    assert spinezarr.open(copy).splits == {"train": 1}
    assert not spinezarr.open(copy).verify().faults
    assert store.push(copy, split="test").outcome.copied == ("oblique",)
    assert spinezarr.open(copy).table.scan.to_numpy().tolist() == ["box", "oblique"]
    assert not spinezarr.open(copy).verify().faults
    report = store.push(copy)
    assert report.outcome.kept == ("box", "oblique")
    check_equal(copy, small.url, read_files)


def make_small(folder, names):
    """Ingest scans."""
    write_raw(folder / "raw", names)
    url = folder / "small.zarr"
    ingest_raw(folder / "raw", url)
    return spinezarr.open(url)


def test_a_replaced_scan_replaces_its_copy(tmp_path, read_files):
    store = make_small(tmp_path, ["box", "line"])
    copy = tmp_path / "copy.zarr"
    store.push(copy)
    old = store.scan("box").label.to_numpy()
    label = old.copy()
    label[0, 0, 0] = 20
    write_scan(tmp_path / "raw", "box", label)
    ingest_raw(tmp_path / "raw", tmp_path / "small.zarr")
    report = spinezarr.open(tmp_path / "small.zarr").push(copy)
    assert (report.outcome.copied, report.outcome.kept) == (("box",), ("line",))
    np.testing.assert_array_equal(spinezarr.open(copy).scan("box").label, label)
    check_equal(copy, tmp_path / "small.zarr", read_files)


def test_masks_and_scans_that_must_not_be_shared_stay(tmp_path):
    store = make_small(tmp_path, ["box", "line"])
    values = np.ones((26, 21, 24), np.uint8)
    store.write_labels("box", "hers", values, scheme={1: "rib"}, license="CC BY-NC-ND 4.0")
    store.write_labels("box", "mine", values, scheme={1: "rib"}, license="MIT")
    store = spinezarr.open(store.url)
    report = store.push(tmp_path / "public.zarr")
    assert report.left_out_masks == {"hers": {"box": "CC BY-NC-ND 4.0"}}
    public = spinezarr.open(tmp_path / "public.zarr")
    assert public.table.masks.sel(scan="box").item() == "mine"
    assert not public.verify().faults
    assert "hers" not in str([*Path(public.url).rglob("*")])
    store.push(tmp_path / "own.zarr", include_restricted=True)
    assert spinezarr.open(tmp_path / "own.zarr").table.masks.sel(scan="box").item() == "hers mine"


def test_a_damaged_scan_fails_and_the_others_are_copied(small, tmp_path):
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(small.url, damaged)
    shard = next(path for path in (damaged / "scans/box/image/c").rglob("*") if path.is_file())
    spoil(shard, "flip")
    report = spinezarr.open(damaged).push(tmp_path / "copy.zarr")
    assert report.exit_code == 1
    assert list(report.outcome.failed) == ["box"]
    assert "is damaged" in report.outcome.failed["box"]
    copy = spinezarr.open(tmp_path / "copy.zarr")
    assert copy.table.scan.to_numpy().tolist() == ["bare", "empty", "oblique"]
    assert not copy.verify().faults


def test_wrong_targets_are_refused(small, tmp_path, ctspine1k_url):
    store = spinezarr.open(small.url)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    other = tmp_path / "other.zarr"
    shutil.copytree(ctspine1k_url, other)
    for target, words in (
        (tmp_path / "photos", "'holiday.jpg' and is no store"),
        (tmp_path / "file", "is a file"),
        (other, "One store holds one dataset"),
        (small.url, "is the store that is copied"),
        ("http://127.0.0.1:1/copy.zarr", "web servers are only read"),
        ("hf://datasets/x", "names no dataset"),
    ):
        with pytest.raises(UsageError, match=words):
            store.push(target)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]
    with pytest.raises(UsageError, match="is a URL"):
        store.pull("s3://bucket/a")


def test_a_store_goes_to_a_bucket_and_comes_back(small, tmp_path, s3_server, read_files):
    bucket = s3_server.new_bucket()
    url = f"s3://{bucket}/a/small.zarr"
    options = s3_server.storage_options
    store, scans = spinezarr.open(small.url), ("bare", "empty")
    report = store.push(url, scans=scans, storage_options=options)
    assert (report.exit_code, report.outcome.copied) == (0, scans)
    remote = spinezarr.open(url, storage_options=options)
    back = remote.pull(tmp_path / "back.zarr")
    assert (back.exit_code, back.outcome.copied) == (0, scans)
    found, expected = read_files(tmp_path / "back.zarr"), read_files(small.url)
    keys = [key for key in expected if key.startswith(("scans/bare/", "scans/empty/"))]
    assert all(found[key] == expected[key] for key in keys)
    s3_server.client.delete_object(Bucket=bucket, Key="a/small.zarr/scans/bare/image/c/0/0/0")
    report = store.push(url, scans=scans, storage_options=options)
    assert report.outcome.copied == ("bare",)
    assert report.work.to_copy.objects == 1


def test_a_store_comes_from_a_web_server(small, tmp_path, serve, read_files):
    url, _ = serve(Path(small.url).parent)
    report = spinezarr.open(f"{url}/small.zarr").pull(tmp_path / "copy.zarr")
    assert report.exit_code == 0
    check_equal(tmp_path / "copy.zarr", small.url, read_files)


def test_a_store_comes_from_a_spinezarr_server_that_hides_its_ledger(small, tmp_path, read_files):
    with spinezarr.open(small.url).serve() as server:
        report = spinezarr.open(f"{server.url}/small").pull(tmp_path / "copy.zarr")
    assert report.exit_code == 0
    assert scan_files(read_files(tmp_path / "copy.zarr")) == scan_files(read_files(small.url))
    assert not spinezarr.open(tmp_path / "copy.zarr").verify().faults
