"""Tests of scans that are ingested again while a session has the store open."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import spinezarr
from spinezarr.errors import CorruptStoreError, ScanChangedError, UnknownScanError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import Damage, ingest
from spinezarr.loaders.torch import PatchLoader
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.batch_reader import PADDING_HU
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.store import verify_store

SHAPE = (70, 50, 60)
AFFINE = np.diag([0.7, 0.8, 2.5, 1.0])
RECIPE = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="changing")
RECIPE = RECIPE.model_copy(update={"split": "train"})
SCANS = ("a", "b", "c")
OPTIONS = {"batch_size": 2, "n_samples": 12, "seed": 5}


def image(scan, dtype="int16", shape=SHAPE):
    rng = np.random.default_rng(ord(scan))
    return rng.integers(0, 3000, shape).astype(dtype)


def mask(shape=SHAPE, value=20):
    label = np.zeros(shape, np.uint8)
    label[5:30, 10:30, 8:40] = value
    return label


def write(raw, scan, voxels, label):
    write_nifti(raw / f"{scan}_ct.nii", voxels, AFFINE, NiftiForm("LPS", str(voxels.dtype)))
    write_nifti(raw / f"{scan}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))


class Dataset:
    """A raw folder and its store."""

    def __init__(self, folder):
        self.raw, self.url = folder / "raw", str(folder / "changing.zarr")

    def ingest(self, **options):
        report = ingest(RECIPE, discover(RECIPE, str(self.raw)), self.url, **options)
        assert not report.failed, report.failed
        return report

    def change(self, scan, voxels, label):
        write(self.raw, scan, voxels, label)
        assert self.ingest().done == (scan,)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    dataset = Dataset(tmp_path_factory.mktemp("changing"))
    for scan in SCANS:
        write(dataset.raw, scan, image(scan), mask())
    dataset.ingest()
    return dataset


@pytest.fixture
def dataset(pristine, tmp_path):
    shutil.copytree(pristine.raw, tmp_path / "raw")
    shutil.copytree(pristine.url, tmp_path / "changing.zarr")
    return Dataset(tmp_path)


CHANGES = {
    "uint16": (image("a", "uint16") + np.uint16(39_000), mask()),
    "int32": (image("a", "int32") + 70_000, mask()),
    "float32": (image("a", "float32") + np.float32(0.5), mask()),
    "values": (image("x"), mask()),
    "mask": (image("a"), mask(value=22)),
    "no label": (image("a"), mask(value=0)),
    "smaller": (image("a", shape=(30, 40, 20)), mask((30, 40, 20))),
    "larger": (image("a", shape=(80, 60, 70)), mask((80, 60, 70))),
}
KINDS = {
    "uniform": {},
    "balanced": {"foreground": 1.0},
    "window": {"shuffle": "window", "window_scans": 3, "samples_per_scan": 2},
    "mm": {"spacing_zyx_mm": 1.1},
}


CHANGED_KINDS = [
    pytest.param(change, kind, marks=() if (i + j) % 4 == 0 else pytest.mark.long)
    for i, change in enumerate(CHANGES)
    for j, kind in enumerate(KINDS)
]
"""Each change with a kind of stream; the other pairs take long."""


@pytest.mark.parametrize(("change", "kind"), CHANGED_KINDS)
def test_a_stream_raises_if_a_scan_was_ingested_again(dataset, change, kind):
    options = OPTIONS | KINDS[kind]
    streams = [spinezarr.open(dataset.url).patches(24, **options) for _ in range(2)]
    for scan in SCANS:
        streams[0].reader.scan(scan)
        streams[0].reader.label_chunks(scan)
    dataset.change("a", *CHANGES[change])
    for stream in streams:
        with pytest.raises(ScanChangedError) as told:
            list(stream)
        assert told.value.scan_id == "a"
        assert str(told.value) == (
            f"{dataset.url}: scan 'a' has changed since the store was opened. Open the store again."
        )
    for batch in spinezarr.open(dataset.url).patches(24, **options):
        assert (batch.image[batch.image != PADDING_HU] >= 0).all()


@pytest.mark.parametrize(("change", "kind"), CHANGED_KINDS)
def test_a_stream_that_follows_changes_equals_one_opened_anew(dataset, change, kind):
    options = OPTIONS | KINDS[kind]
    stream = spinezarr.open(dataset.url).patches(24, **options, on_change="follow")
    under_way = iter(stream.with_reading(prefetch_bytes=1))
    next(under_way)
    dataset.change("a", *CHANGES[change])
    expected = list(spinezarr.open(dataset.url).patches(24, **options))
    for epoch in (stream, stream.at_epoch(0)):
        for batch, other in zip(epoch, expected, strict=True):
            if "a" in batch.scan_id:
                assert batch.scan_id == other.scan_id
                assert batch.image.dtype == other.image.dtype
                np.testing.assert_array_equal(batch.image, other.image)
                np.testing.assert_array_equal(batch.label, other.label)
    assert 1 + len(list(under_way)) == 6


def test_two_scans_change_while_an_ingest_runs(dataset):
    """The scan table of a running ingest is older than the scans that it has published."""
    stream = spinezarr.open(dataset.url).patches(24, **OPTIONS, scans=["a", "b"])
    for scan in ("a", "b"):
        write(dataset.raw, scan, image(scan, "uint16") + np.uint16(39_000), mask())
    table = {
        path: path.read_bytes()
        for folder in ("table", "table_bundle")
        for path in Path(dataset.url, folder).rglob("*")
        if path.is_file()
    }
    dataset.ingest()
    for path in Path(dataset.url, "table").rglob("c.*"):
        path.unlink()
    for path, data in table.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with pytest.raises(ScanChangedError, match="an ingest is running, or was cut off"):
        list(stream)
    with pytest.raises(ScanChangedError, match="an ingest is running, or was cut off"):
        list(spinezarr.open(dataset.url).patches(24, **OPTIONS))
    assert int(spinezarr.open(dataset.url).scan("a").image.min()) >= 39_000
    found = [batch for batch in replace(stream, on_change="follow") if "b" in batch.scan_id]
    assert found
    for batch in found:
        assert batch.image.dtype == np.int32
        assert (batch.image >= 39_000).all()


def test_streams_go_on_if_the_same_voxels_are_written_again(dataset):
    """``--repair`` writes voxels under other keys, so that the files that were open are gone."""
    streams = [
        spinezarr.open(dataset.url).patches(24, **OPTIONS, **options) for options in KINDS.values()
    ]
    expected = [[batch.image for batch in stream] for stream in streams]
    before = {scan: StoreReader(dataset.url).scan(scan).image.separator for scan in SCANS}
    for scan in SCANS:
        path = next(Path(dataset.url, "scans", scan, "image").rglob("c/*/*/*"))
        path.write_bytes(path.read_bytes()[:-1])
    damage = Damage(verify_store(dataset.url).damaged_scans)
    assert set(dataset.ingest(find_damaged=lambda: damage).done) == set(SCANS)
    after = {scan: StoreReader(dataset.url).scan(scan).image.separator for scan in SCANS}
    assert all(after[scan] != before[scan] for scan in SCANS)
    for stream, images in zip(streams, expected, strict=True):
        for given, wanted in zip(stream, images, strict=True):
            np.testing.assert_array_equal(given.image, wanted)


def test_a_damaged_scan_is_not_reported_as_changed(dataset):
    stream = spinezarr.open(dataset.url).patches(24, **OPTIONS)
    path = next(Path(dataset.url, "scans/a/image").rglob("c/*/*/*"))
    path.unlink()
    with pytest.raises(CorruptStoreError, match="its shard is missing"):
        list(stream)


def test_whole_scans_grids_and_records_raise_if_the_scan_changed(dataset):
    store = spinezarr.open(dataset.url)
    scan, grid = store.scan("a"), store.grid("a", 24)
    records = spinezarr.load_dataset(dataset.url, "3d", split="train")
    dataset.change("a", *CHANGES["uint16"])
    message = "scan 'a' has changed since the store was opened"
    for read in (scan.image.compute, lambda: list(grid), lambda: records[0]["image"]):
        with pytest.raises(ScanChangedError, match=message):
            read()
    assert int(store.scan("a").image.min()) >= 39_000


def test_a_changed_scan_is_detected_without_the_table(dataset):
    scan = spinezarr.open(dataset.url).scan("a")
    dataset.change("a", *CHANGES["uint16"])
    with pytest.raises(ScanChangedError, match="has changed since the store was opened"):
        scan.image.compute()


def test_a_scan_opened_before_the_table_is_opened_again(dataset):
    store = spinezarr.open(dataset.url)
    store._reader.label_chunks("a")
    dataset.change("a", image("a"), np.full(SHAPE, 22, np.uint8))
    batches = store.patches(24, **OPTIONS, scans=["a"], foreground=1.0)
    assert all((batch.label == 22).all() for batch in batches)


def test_an_unpickled_stream_detects_changes_since_the_session_began(dataset):
    stream = spinezarr.open(dataset.url).patches(24, **OPTIONS)
    sent = pickle.dumps(stream)
    lazy = pickle.dumps(spinezarr.open(dataset.url).scan("a").image)
    dataset.change("a", *CHANGES["uint16"])
    with pytest.raises(ScanChangedError, match="has changed since the store was opened"):
        list(pickle.loads(sent))  # noqa: S301
    with pytest.raises(ScanChangedError, match="scan 'a' has changed"):
        pickle.loads(lazy).compute(scheduler="synchronous")  # noqa: S301


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_raises_for_a_changed_scan_or_follows_it(dataset, num_workers):
    stream = spinezarr.open(dataset.url).patches(24, **OPTIONS)
    loaders = [
        PatchLoader(replace(stream, on_change=on_change), num_workers=num_workers)
        for on_change in ("error", "follow")
    ]
    dataset.change("a", *CHANGES["uint16"])
    with pytest.raises(ScanChangedError, match="scan 'a' has changed"):
        list(loaders[0])
    expected = list(spinezarr.open(dataset.url).patches(24, **OPTIONS))
    for batch, other in zip(loaders[1], expected, strict=True):
        np.testing.assert_array_equal(batch["image"][:, 0].numpy(), other.image)


def test_the_error_of_a_removed_scan_names_it(dataset):
    stream = spinezarr.open(dataset.url).patches(24, **OPTIONS)
    (dataset.raw / "a_ct.nii").unlink()
    (dataset.raw / "a_seg.nii").unlink()
    for path in sorted(Path(dataset.url).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    dataset.ingest()
    with pytest.raises(UnknownScanError, match="has no scan 'a'"):
        list(stream)


def test_other_values_of_on_change_are_refused(dataset):
    with pytest.raises(ValueError, match="on_change 'ignore': must be error or follow"):
        spinezarr.open(dataset.url).patches(24, on_change="ignore")
