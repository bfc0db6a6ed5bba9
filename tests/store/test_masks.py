"""Further masks of a scan: each is added, replaced and removed whole, and nothing else changes."""

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import spinezarr
from spinezarr.errors import (
    CorruptStoreError,
    LabelError,
    ReadOnlyStoreError,
    ScanChangedError,
    StoreBusyError,
    UnknownMaskError,
    UnknownScanError,
    UsageError,
)
from spinezarr.formats.array_volume import ArrayVolume
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.masks import MaskFacts, MaskSource, write_mask
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.label_schemes import SCHEMES, label_scheme
from spinezarr.recipe import Recipe
from spinezarr.store.lock import LOCK_FILE
from spinezarr.store.mask_columns import mask_column_forms
from spinezarr.store.reader import StoreReader
from spinezarr.store.writer import StoreWriter
from spinezarr.testing import NiftiForm, write_nifti

SHAPES = {"dot": (1, 1, 1), "slab": (3, 50, 49), "tall": (70, 50, 5), "bare": (66, 4, 50)}
"""Shapes of scans whose last chunks reach beyond the volume; ``bare`` has no label."""


def write_raw(raw, seed=0):
    rng = np.random.default_rng(seed)
    for name, shape in SHAPES.items():
        ct = "ct" if name == "bare" else "ct_with"
        image = rng.integers(-1000, 1000, shape).astype(np.int16)
        write_nifti(raw / f"{name}_{ct}.nii", image, np.eye(4), NiftiForm("LPS"))
        if name != "bare":
            label = np.where(image > 500, 20, 0).astype(np.uint8)
            form = NiftiForm("LPS", "uint8")
            write_nifti(raw / f"{name}_seg.nii", label, np.eye(4), form)


def run_ingest(raw, url, options=None):
    for image, label in (("{scan}_ct_with.nii", "{scan}_seg.nii"), ("{scan}_ct.nii", None)):
        recipe = Recipe.from_pairs(image, label, name="masks")
        report = ingest(recipe, discover(recipe, str(raw)), str(url), out_options=options)
        assert not report.failed, report.failed
    return report


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return a store of scans of odd shapes; no test may change it."""
    folder = tmp_path_factory.mktemp("masks")
    write_raw(folder / "raw")
    run_ingest(folder / "raw", folder / "store.zarr")
    return folder


@pytest.fixture
def url(pristine, tmp_path):
    return Path(shutil.copytree(pristine / "store.zarr", tmp_path / "store.zarr"))


def random_mask(seed, shape, values=(0, 0, 3, 26, 255)):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array(values, np.uint8), shape)
    mask[: rng.integers(0, shape[0] + 1)] = 0  # chunks and shards of background
    return mask


def content(folder, *, without=()):
    """Return the bytes of the files below a folder, except those of some arrays."""
    files = (path for path in folder.rglob("*") if path.is_file())
    keys = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        key: path.read_bytes()
        for key, path in keys.items()
        if not any(f"/{name}" in f"/{key}" for name in without)
    }


class Masks(RuleBasedStateMachine):
    """Masks of a store are those of a dict of arrays, for every reader."""

    folder: Path
    """Folder of the pristine store."""

    def __init__(self):
        super().__init__()
        self.own = Path(tempfile.mkdtemp(dir=self.folder))
        self.url = Path(shutil.copytree(self.folder / "store.zarr", self.own / "store.zarr"))
        self.store = spinezarr.open(self.url)
        self.masks = {}
        self.fixed = content(self.url, without=("zarr.json", "table", "sampling"))

    @rule(
        scan_id=st.sampled_from([*SHAPES]),
        name=st.sampled_from(["prediction", "ribs", "a" * 64, "x1"]),
        seed=st.integers(0, 9),
        kind=st.sampled_from(["uint8", "int64", "float32", "dask", "list"]),
    )
    def write(self, scan_id, name, seed, kind):
        mask = random_mask(seed, SHAPES[scan_id])
        given = mask if kind in {"dask", "list"} else mask.astype(kind)
        given = da.from_array(mask) if kind == "dask" else given
        self.store.write_labels(scan_id, name, given.tolist() if kind == "list" else given)
        self.masks[scan_id, name] = mask

    @precondition(lambda self: self.masks)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted({name for _, name in self.masks})))
        owners = [scan_id for scan_id, other in sorted(self.masks) if other == name]
        assert sorted(self.store.remove_labels(name)) == owners
        for scan_id in owners:
            del self.masks[scan_id, name]

    @invariant()
    def every_reader_sees_the_masks(self):
        for scan_id in SHAPES:
            names = [name for other, name in self.masks if other == scan_id]
            folder = self.url / "scans" / scan_id
            own = {"image"} if scan_id == "bare" else {"image", "label"}
            for scan in (
                self.store.scan(scan_id),
                spinezarr.open(self.url).scan(scan_id),
                xr.open_zarr(folder),
                xr.open_zarr(folder, consolidated=False),
            ):
                assert set(scan.data_vars) == own | set(names)
                for name in names:
                    np.testing.assert_array_equal(scan[name], self.masks[scan_id, name])
            for name in names:
                plain = zarr.open_array(folder / name, mode="r")
                np.testing.assert_array_equal(plain[:], self.masks[scan_id, name])
            row = self.store.table.sel(scan=scan_id)
            assert str(row.masks.item()).split() == sorted(names)
            counts = self.store._reader
            for name in names:
                found = counts.label_chunks(scan_id, name)
                values, voxels = np.unique(self.masks[scan_id, name], return_counts=True)
                expected = {
                    v: n for v, n in zip(values.tolist(), voxels.tolist(), strict=True) if v
                }
                sums = {v: int(found[found[:, 0] == v, 4].sum()) for v in set(found[:, 0].tolist())}
                assert sums == expected

    @invariant()
    def nothing_else_changes(self):
        now = content(self.url, without=("zarr.json", "table", "sampling", *self._folders()))
        assert now == self.fixed
        assert self.store.verify().faults == ()
        assert not (self.url / LOCK_FILE).exists()

    def teardown(self):
        shutil.rmtree(self.own)

    def _folders(self):
        return {f"{scan_id}/{name}" for scan_id, name in self.masks}


def test_masks_are_written_replaced_and_removed(pristine):
    Masks.folder = pristine
    Masks.TestCase.settings = settings(
        max_examples=4,
        stateful_step_count=5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Masks.TestCase("runTest").runTest()


def test_names_boxes_and_provenance_are_those_of_the_values(url):
    store = spinezarr.open(url)
    mask = np.zeros(SHAPES["tall"], np.uint8)
    mask[2:5, 3:7, 1:2], mask[69:, 49:, 4:], mask[0, 0, 0] = 26, 124, 250
    options = {"scheme": "spineps", "license": "CC-BY-4.0", "author": "A. B.", "model": "net 2"}
    store.write_labels("tall", "discs", mask, **options)
    scan = store.scan("tall")
    assert scan.discs.flag_values == [0, 26, 124, 250]
    assert scan.discs.flag_meanings == "background S1 L5_disc label_250"
    assert xr.open_zarr(url / "scans/tall").discs.flag_meanings == scan.discs.flag_meanings
    record = scan.attrs["masks"]["discs"]
    assert {key: record[key] for key in options} == options
    assert record["notes"] == ["values without a name in the scheme spineps: 250"]
    assert record["labels"]["26"] == {
        "voxel_count": 12,
        "centroid_zyx": [3.0, 4.5, 1.0],
        "start_zyx": [2, 3, 1],
        "stop_zyx": [5, 7, 2],
        "name": "S1",
    }
    assert scan.label.flag_meanings.split()[-1] == "L1"


def test_a_mapping_names_the_values(url):
    store = spinezarr.open(url)
    mask = np.full(SHAPES["dot"], 41)
    store.write_labels("dot", "parts", mask, scheme={41: "upper  arch", 42: "spine"})
    assert store.scan("dot").parts.flag_meanings == "background upper_arch"
    assert store.scan("dot").attrs["masks"]["parts"]["scheme"] == "custom"


@pytest.mark.parametrize(
    ("scheme", "found"),
    [
        ("verse", "no label scheme 'verse'; choose vertebrae, subregions, spineps"),
        ({0: "air"}, "label value 0: must be a whole number from 1 to 255"),
        ({256: "air"}, "label value 256"),
        ({True: "air"}, "label value True"),
        ({1.0: "air"}, "label value 1.0"),
        ({1: ""}, "name of the label value 1: must be a text of 1 to 100"),
        ({1: "a\nb"}, "cannot be printed"),
        ({1: 2}, "must be a text"),
        ({1: "a", 2: "a"}, "several label values have one name"),
    ],
)
def test_a_scheme_that_names_nothing_is_refused(scheme, found):
    with pytest.raises(UsageError, match=found):
        label_scheme(scheme)


def test_every_known_scheme_can_be_stored():
    for scheme in SCHEMES.values():
        assert label_scheme(dict(scheme.names)).names == scheme.names


@pytest.mark.parametrize(
    ("scan_id", "name", "values", "error", "found"),
    [
        ("dot", "label", np.zeros((1, 1, 1)), UsageError, "the mask that an ingest writes"),
        ("dot", "image", np.zeros((1, 1, 1)), UsageError, "cannot be the name of a mask"),
        ("dot", "z", np.zeros((1, 1, 1)), UsageError, "cannot be the name of a mask"),
        ("dot", "../up", np.zeros((1, 1, 1)), UsageError, "cannot be the name of a mask"),
        ("dot", "zarr.json", np.zeros((1, 1, 1)), UsageError, "cannot be the name of a mask"),
        ("dot", "", np.zeros((1, 1, 1)), UsageError, "cannot be the name of a mask"),
        ("tall", "mask", np.zeros((5, 50, 70)), UsageError, r"transpose\(2, 1, 0\)"),
        ("tall", "mask", np.zeros((70, 50)), UsageError, r"shape \(70, 50\).*\(70, 50, 5\)"),
        ("dot", "mask", np.zeros((1, 1, 1), complex), UsageError, "of the type complex128"),
        ("dot", "mask", np.array([[["a"]]]), UsageError, "of the type <U1"),
        ("dot", "mask", np.full((1, 1, 1), 256), LabelError, "256"),
        ("dot", "mask", np.full((1, 1, 1), -1), LabelError, "-1"),
        ("dot", "mask", np.full((1, 1, 1), 0.5), LabelError, "0.5"),
        ("dot", "mask", np.full((1, 1, 1), np.nan), LabelError, "nan"),
        ("none", "mask", np.zeros((1, 1, 1)), UnknownScanError, "no scan 'none'"),
    ],
)
def test_what_cannot_be_a_mask_is_refused(url, scan_id, name, values, error, found):
    before = content(url)
    with pytest.raises(error, match=found):
        spinezarr.open(url).write_labels(scan_id, name, values)
    assert content(url) == before


def test_a_bad_value_in_the_last_chunk_leaves_the_old_mask(url, pristine, differing_files):
    store = spinezarr.open(url)
    old = random_mask(1, SHAPES["tall"])
    store.write_labels("tall", "mask", old)
    before = content(url)
    bad = np.ones(SHAPES["tall"], np.int16)
    bad[-1, -1, -1] = 300
    with pytest.raises(LabelError, match="300"):
        store.write_labels("tall", "mask", bad)
    assert content(url) == before
    np.testing.assert_array_equal(store.scan("tall").mask, old)
    store.remove_labels("mask")
    assert differing_files(url, pristine / "store.zarr") == []


def test_the_only_mask_of_a_scan_without_a_label_is_replaced(url, pristine, differing_files):
    store = spinezarr.open(url)
    for seed in range(3):
        mask = random_mask(seed, SHAPES["bare"])
        store.write_labels("bare", "ribs", mask)
        scan = xr.open_zarr(url / "scans/bare", consolidated=False)
        np.testing.assert_array_equal(scan.ribs, mask)
        assert store.verify().faults == ()
    store.remove_labels("ribs")
    assert differing_files(url, pristine / "store.zarr") == []


def test_an_absent_mask_cannot_be_removed(url):
    store = spinezarr.open(url)
    store.write_labels("dot", "ribs", np.zeros((1, 1, 1)))
    with pytest.raises(UnknownMaskError, match=r"none of the chosen scans has a mask 'rips'.*ribs"):
        store.remove_labels("rips")
    with pytest.raises(UnknownMaskError, match="only label"):
        store.remove_labels("ribs", scans="tall")
    with pytest.raises(UsageError, match="an ingest writes"):
        store.remove_labels("label")


# Writers and readers at the same time


def test_another_writer_is_awaited_for_a_bounded_time(url):
    store = spinezarr.open(url)
    writer = StoreWriter(str(url), StoreReader(str(url)).root)
    mask = np.ones((1, 1, 1))
    with writer.lock("an ingest"), pytest.raises(StoreBusyError, match="an ingest"):
        store.write_labels("dot", "mask", mask, wait_s=0)
    with ThreadPoolExecutor(4) as pool:
        names = [f"mask_{i}" for i in range(4)]
        list(pool.map(lambda name: store.write_labels("dot", name, mask), names))
    assert list(store.scan("dot").data_vars) == ["image", "label", *names]
    assert store.verify().faults == ()


def test_a_reader_of_a_replaced_mask_gets_an_error_and_others_go_on(url):
    store, other = spinezarr.open(url), spinezarr.open(url)
    shape = SHAPES["tall"]
    store.write_labels("tall", "mask", random_mask(1, shape))
    opened = other.scan("tall")
    image = np.asarray(opened.image)
    store.write_labels("tall", "mask", random_mask(2, shape))
    with pytest.raises(ScanChangedError, match="mask 'mask' of scan 'tall' was replaced"):
        opened.mask.compute()
    np.testing.assert_array_equal(opened.image, image)
    np.testing.assert_array_equal(other.scan("tall").mask, random_mask(2, shape))
    opened = other.scan("tall")
    store.remove_labels("mask")
    with pytest.raises(ScanChangedError, match="replaced or removed"):
        opened.mask.compute()
    assert "mask" not in other.scan("tall")


def test_values_for_a_scan_that_was_replaced_are_refused(pristine, url, tmp_path):
    store = spinezarr.open(url)
    store.scan("tall")
    write_raw(tmp_path / "raw", seed=1)
    run_ingest(tmp_path / "raw", url)
    with pytest.raises(ScanChangedError, match="values may not belong to it"):
        store.write_labels("tall", "mask", np.zeros(SHAPES["tall"]))


# Ingest and audit


def test_an_ingest_keeps_masks_while_the_image_stays(pristine, url, tmp_path):
    store = spinezarr.open(url)
    mask = random_mask(3, SHAPES["tall"])
    for scan_id in ("tall", "bare"):
        store.write_labels(scan_id, "mask", random_mask(3, SHAPES[scan_id]))
    assert run_ingest(pristine / "raw", url).done == ()
    raw = shutil.copytree(pristine / "raw", tmp_path / "raw")
    label = np.full(SHAPES["tall"], 19, np.uint8)
    write_nifti(raw / "tall_seg.nii", label, np.eye(4), NiftiForm("LPS", "uint8"))
    run_ingest(raw, url)
    scan = spinezarr.open(url).scan("tall")
    assert (scan.label == 19).all()
    np.testing.assert_array_equal(scan.mask, mask)
    np.testing.assert_array_equal(xr.open_zarr(url / "scans/tall").mask, mask)
    assert spinezarr.open(url).verify().faults == ()
    write_raw(raw, seed=1)
    run_ingest(raw, url)
    store = spinezarr.open(url)
    for scan_id in ("tall", "bare"):
        scan = store.scan(scan_id)
        assert "mask" not in scan
        note = "the further masks of the replaced image were removed: mask"
        assert note in scan.attrs["notes"]
        assert not (url / "scans" / scan_id / "mask").exists()
    assert store.table.masks.to_numpy().tolist() == [""] * 4
    assert store.verify().faults == ()


def test_masks_change_neither_the_audit_nor_the_ledger(url):
    store = spinezarr.open(url)
    store.audit()
    before = store.table.drop_vars(["masks", "mask_checksums", "stored_bytes"])
    kept = [(url / name / "zarr.json").read_bytes() for name in ("audit", "ingest")]
    store.write_labels("tall", "mask", random_mask(3, SHAPES["tall"]))
    assert store.table.audit.to_numpy().tolist() != [""] * 4
    table = store.table.drop_vars(["masks", "mask_checksums", "stored_bytes"])
    xr.testing.assert_identical(table.drop_vars([*mask_column_forms()]), before)
    assert [(url / name / "zarr.json").read_bytes() for name in ("audit", "ingest")] == kept


# Damage


def flip_in_the_first_block(data):
    return data[:60] + bytes([data[60] ^ 255]) + data[61:]


def test_a_damaged_mask_is_an_error_and_no_fault_of_the_scan(pristine, url):
    store = spinezarr.open(url)
    mask = np.ones(SHAPES["tall"])
    store.write_labels("tall", "mask", mask)
    shard = url / "scans/tall/mask/c/0/0/0"
    for damage in (lambda data: data[:20], flip_in_the_first_block, None):
        good = shard.read_bytes()
        shard.unlink() if damage is None else shard.write_bytes(damage(good))
        with pytest.raises(CorruptStoreError):
            spinezarr.open(url).scan("tall").mask.compute()
        assert spinezarr.open(url).scan("tall").image.compute().shape == SHAPES["tall"]
        verification = store.verify()
        (fault,) = verification.faults
        assert fault.scan_id == "tall"
        assert fault.mask == "mask"
        assert "add-labels" in fault.advice
        assert verification.damaged_scans == frozenset()
        assert run_ingest(pristine / "raw", url).done == ()
        if damage is not None:
            shard.write_bytes(good)
    store.write_labels("tall", "mask", mask)
    assert store.verify().faults == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda scan: scan["attributes"]["masks"].clear(),
        lambda scan: scan["attributes"]["masks"].update(ribs=scan["attributes"]["masks"]["mask"]),
        lambda scan: scan["attributes"]["masks"].update(z=scan["attributes"]["masks"].pop("mask")),
        lambda scan: scan["consolidated_metadata"]["metadata"].pop("mask"),
        lambda scan: scan["consolidated_metadata"]["metadata"].pop("sampling/mask_chunks"),
        lambda scan: scan["consolidated_metadata"]["metadata"]["mask"].update(shape=[1, 1, 2]),
        lambda scan: scan["consolidated_metadata"]["metadata"]["mask"].update(data_type="int16"),
        lambda scan: scan["attributes"]["masks"]["mask"]["labels"]["3"].update(stop_zyx=[9, 9, 9]),
        lambda scan: scan["attributes"]["manifest"].update(
            {"ribs/zarr.json": {"size_bytes": 1, "crc32": "00000000"}}
        ),
        lambda scan: scan["attributes"]["masks"]["mask"].update(color="red"),
        lambda scan: scan["attributes"]["manifest"].pop("sampling/zarr.json"),
        lambda scan: scan["attributes"]["manifest"].pop("mask/zarr.json"),
    ],
)
def test_metadata_that_contradict_each_other_are_refused(url, change):
    store = spinezarr.open(url)
    store.write_labels("dot", "mask", np.full((1, 1, 1), 3))
    from spinezarr.store.sealed import seal, unseal  # noqa: PLC0415

    path = url / "scans/dot/zarr.json"
    scan = unseal(path.read_bytes())
    change(scan)
    path.write_bytes(seal(scan))
    with pytest.raises(CorruptStoreError):
        spinezarr.open(url).scan("dot")


# Being killed


class Killed(BaseException):
    """Stands in for SIGKILL."""


@contextmanager
def dying_after(lives):
    """Raise Killed at change ``lives`` on disk and at every later one."""
    changes = count()
    real_open = Path.open
    with ExitStack() as stack:
        for name in ("open", "replace", "unlink", "rmdir"):
            real = getattr(Path, name)

            def change(path, *arguments, real=real, **options):
                if real is real_open and arguments[:1] not in {("wb",), ("xb",)}:
                    return real(path, *arguments, **options)
                if (number := next(changes)) >= lives:
                    if real is real_open and number == lives:
                        path.write_bytes(b"{")
                    raise Killed
                return real(path, *arguments, **options)

            stack.enter_context(mock.patch.object(Path, name, change))
        yield


def write_or_die(url, mask, lives):
    """Write a mask, and die after some changes on disk; return whether it survived."""
    try:
        with dying_after(lives), ThreadPoolExecutor(1) as pool:
            writer = StoreWriter(str(url), StoreReader(str(url)).root)
            if mask is None:
                writer.scans.remove_mask("tall", "mask")
                return True
            volume = ArrayVolume(mask, mask.dtype)
            write_mask(
                writer.scans.start_mask("tall", "mask"),
                MaskFacts(label_scheme("vertebrae")),
                MaskSource(volume, volume.grid),
                pool=pool,
                memory=MemoryBudget(),
                scratch=None,
            )
    except Killed:
        return False
    return True


@pytest.mark.parametrize("case", ["new", "replaced", "removed"])
def test_a_kill_leaves_the_old_mask_or_the_new_one(url, tmp_path, case):
    store = spinezarr.open(url)
    store.write_labels("tall", "other", random_mask(7, SHAPES["tall"]))
    old = None if case == "new" else random_mask(1, SHAPES["tall"])
    new = None if case == "removed" else random_mask(2, SHAPES["tall"])
    if old is not None:
        store.write_labels("tall", "mask", old)
    before, seen = shutil.copytree(url, tmp_path / "before.zarr"), set()
    for lives in count():
        shutil.rmtree(url)
        shutil.copytree(before, url)
        survived = write_or_die(url, new, lives)
        for recovered in (False, True):
            if recovered:
                assert len(StoreWriter(str(url), StoreReader(str(url)).root).recover()) == 4
            for scan in (spinezarr.open(url).scan("tall"), xr.open_zarr(url / "scans/tall")):
                np.testing.assert_array_equal(scan.other, random_mask(7, SHAPES["tall"]))
                found = np.asarray(scan.mask) if "mask" in scan else None
                is_new = (found is None) == (new is None) and np.array_equal(found, new)
                is_old = (found is None) == (old is None) and np.array_equal(found, old)
                assert is_new or is_old
                seen.add("new" if is_new else "old")
        extras = [f for f in spinezarr.open(url).verify().faults if f.kind != "disagrees"]
        assert extras == []
        if survived:
            break
    assert seen == {"old", "new"}
    assert lives >= (1 if case == "removed" else 5)


# Other places


@pytest.mark.long
def test_masks_in_a_bucket_are_those_on_disk(pristine, s3_server):
    place, options = f"s3://{s3_server.new_bucket()}/masks.zarr", s3_server.storage_options
    run_ingest(pristine / "raw", place, options)
    store = spinezarr.open(place, storage_options=options)
    for seed in range(2):
        store.write_labels("tall", "mask", random_mask(seed, SHAPES["tall"]))
        fresh = spinezarr.open(place, storage_options=options)
        np.testing.assert_array_equal(fresh.scan("tall").mask, random_mask(seed, SHAPES["tall"]))
        plain = xr.open_zarr(f"{place}/scans/tall", storage_options=options)
        np.testing.assert_array_equal(plain.mask, random_mask(seed, SHAPES["tall"]))
    assert fresh.table.masks.sel(scan="tall").item() == "mask"
    assert store.verify().faults == ()
    assert store.remove_labels("mask") == ("tall",)
    assert store.verify().faults == ()
    assert "mask" not in spinezarr.open(place, storage_options=options).scan("tall")


def test_a_store_on_a_web_server_is_not_written(url, serve):
    server, _ = serve(url.parent)
    store = spinezarr.open(f"{server}/{url.name}")
    with pytest.raises(ReadOnlyStoreError, match="web servers are only read"):
        store.write_labels("dot", "mask", np.ones((1, 1, 1)))


def test_the_manifest_names_the_files_of_each_mask(url):
    store = spinezarr.open(url)
    store.write_labels("bare", "mask", random_mask(1, SHAPES["bare"]))
    scan = json.loads((url / "scans/bare/zarr.json").read_bytes())["attributes"]
    on_disk = content(url / "scans/bare").keys() - {"zarr.json"}
    assert on_disk == scan["manifest"].keys()
    assert "sampling/zarr.json" in on_disk
