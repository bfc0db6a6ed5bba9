import json
import shutil
from contextlib import ExitStack, contextmanager
from itertools import chain, count, product
from pathlib import Path
from unittest import mock

import hypothesis.extra.numpy as hnp
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import (
    CorruptStoreError,
    SpinezarrError,
    StoreNotFoundError,
    UnknownScanError,
    UsageError,
)
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.audit_log import scan_identity
from spinezarr.store.blocks import encode_blocks
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import BALANCED, FORMAT_VERSION
from spinezarr.store.ledger import LedgerEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import ABSENT, index_bytes, parse_index, shard_index
from spinezarr.store.writer import StoreWriter
from spinezarr.stream.read.lazy_array import _StoredArray
from spinezarr.testing import NiftiForm, write_nifti

AFFINE = np.diag([0.7, 0.8, 2.5, 1.0])
DEEP, WIDE, REAL, BLANK = (140, 60, 100), (3, 5, 790), (9, 50, 7), (70, 10, 50)


def volumes():
    """Return image and mask of scans that cover what a store must handle."""
    rng = np.random.default_rng(11)

    def noise(shape):
        return rng.integers(-1024, 3072, shape).astype(np.int16)

    deep = np.zeros(DEEP, np.uint8)
    deep[100:139, 20:44, 60:95] = 20
    deep[90:101, 50:60, 0:9] = 28
    wide = np.zeros(WIDE, np.uint8)
    wide[1:, 2:4, 780:] = 19
    real = rng.normal(size=REAL).astype(np.float32)
    real[0, 0, 0] = np.nan
    return {
        "deep": (noise(DEEP), deep),
        "wide": (noise(WIDE), wide),
        "real": (real, np.full(REAL, 3, np.uint8)),
        "blank": (noise(BLANK), np.zeros(BLANK, np.uint8)),
        "bare": (noise(BLANK), None),
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a store of :func:`volumes`, and the volumes."""
    raw, stored = tmp_path_factory.mktemp("mixed"), volumes()
    for name, (image, label) in stored.items():
        kind = "alone" if label is None else "ct"
        form = NiftiForm("LPS", str(image.dtype))
        write_nifti(raw / f"{name}_{kind}.nii", image, AFFINE, form)
        if label is not None:
            write_nifti(raw / f"{name}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
    url = str(tmp_path_factory.mktemp("mixed-store") / "mixed.zarr")
    for image, label in (("{scan}_ct.nii", "{scan}_seg.nii"), ("{scan}_alone.nii", None)):
        recipe = Recipe.from_pairs(image, label, name="mixed")
        report = ingest(recipe, discover(recipe, str(raw)), url)
        assert not report.failed, report.failed
    return spinezarr.open(url), stored


@pytest.fixture(scope="module")
def deep(mixed):
    scan, (image, label) = mixed[0].scan("deep"), mixed[1]["deep"]
    return {"image": (scan.image, image), "label": (scan.label, label)}


@pytest.fixture
def copied(ctspine1k_url, tmp_path):
    """Copy the CTSpine1K store, for tests that damage it."""
    return Path(shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr"))


def root_of(url):
    return StoreReader(str(url)).root


# Reading


def test_voxels_and_affines_equal_those_of_the_source_files(store, ctspine1k_raw):
    for written in ctspine1k_raw[1]:
        scan = store.scan(written.scan_id)
        for name, path in (("image", written.image_path), ("label", written.label_path)):
            source = nib.as_closest_canonical(nib.load(path))
            expected = np.asarray(source.dataobj).transpose(2, 1, 0)
            np.testing.assert_array_equal(scan[name], expected)
            np.testing.assert_allclose(scan.attrs["affine"], source.affine, atol=1e-9)


def test_a_voxel_has_the_same_position_as_in_the_source_file(store, ctspine1k_raw):
    for written in ctspine1k_raw[1]:
        source = nib.load(written.image_path)
        turn = nib.io_orientation(source.affine)
        scan = store.scan(written.scan_id)
        to_source = nib.orientations.inv_ornt_aff(turn, source.shape)
        for zyx in product(*((0, 3, n - 1) for n in scan.image.shape)):
            ijk = np.rint((to_source @ [*zyx[::-1], 1])[:3]).astype(int)
            assert scan.image[zyx] == source.dataobj[tuple(ijk)]
            stored_mm = np.array(scan.attrs["affine"]) @ [*zyx[::-1], 1]
            np.testing.assert_allclose(stored_mm, source.affine @ [*ijk, 1], atol=1e-9)


@pytest.mark.parametrize("scan_id", ["deep", "wide", "real", "blank", "bare"])
def test_a_scan_equals_the_one_that_plain_xarray_opens(mixed, scan_id):
    store, stored = mixed
    scan = store.scan(scan_id)
    plain = xr.open_zarr(f"{store.url}/scans/{scan_id}")
    assert plain.attrs.pop("manifest")
    assert plain.attrs.pop("metadata_crc32c")
    xr.testing.assert_identical(scan.load(), plain.load())
    image, label = stored[scan_id]
    np.testing.assert_array_equal(plain.image, image)
    assert plain.image.dtype == image.dtype
    if label is None:
        assert "label" not in plain
        assert plain.attrs["label_state"] == "none"
    else:
        np.testing.assert_array_equal(plain.label, label)


def test_ctspine1k_scans_equal_those_that_plain_xarray_opens(store):
    for scan_id in store.table.scan.to_numpy():
        plain = xr.open_zarr(f"{store.url}/scans/{scan_id}")
        del plain.attrs["manifest"], plain.attrs["metadata_crc32c"]
        xr.testing.assert_identical(store.scan(scan_id).load(), plain.load())


def test_a_dask_chunk_is_a_shard(mixed):
    assert mixed[0].scan("deep").image.chunks == ((128, 12), (60,), (100,))
    assert mixed[0].scan("deep").label.chunks == ((128, 12), (60,), (100,))
    assert mixed[0].scan("wide").image.chunks == ((3,), (5,), (512, 278))


def test_opening_a_scan_reads_no_voxels(copied):
    shutil.rmtree(copied / "scans/liver_0/image/c")
    scan = spinezarr.open(copied).scan("liver_0")
    assert scan.image.shape == (35, 64, 64)
    with pytest.raises(CorruptStoreError):
        scan.image[0, 0, 0].compute()


@given(st.data(), st.sampled_from(["image", "label"]))
@settings(deadline=None, max_examples=120)
def test_indexing_equals_that_of_numpy(deep, data, name):
    lazy, expected = deep[name]
    index = data.draw(hnp.basic_indices(DEEP, allow_newaxis=False, min_dims=0))
    np.testing.assert_array_equal(lazy.data[index].compute(), expected[index])


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_an_array_returns_any_slice_that_dask_requests(mixed, deep, data):
    store, _ = mixed
    array = _StoredArray(store._engine, store._reader.scan("deep").image)
    axes = [st.integers(-n, n - 1) | st.slices(n) for n in DEEP]
    index = data.draw(st.tuples(*axes))
    np.testing.assert_array_equal(array[index], deep["image"][1][index])
    last = (-1, slice(None, None, -1), slice(5))
    np.testing.assert_array_equal(array[last], deep["image"][1][last])


steps = st.integers(1, 3) | st.integers(-3, -1)


@given(st.tuples(*[steps] * 3), st.tuples(*[steps] * 3), st.data())
@settings(deadline=None, max_examples=30)
def test_slices_of_slices_equal_those_of_numpy(deep, first, second, data):
    lazy, expected = deep["image"]
    strided = tuple(slice(None, None, step) for step in first)
    within = tuple(
        slice(data.draw(st.integers(-n, n)), None, step)
        for n, step in zip(expected[strided].shape, second, strict=True)
    )
    np.testing.assert_array_equal(lazy[strided][within], expected[strided][within])


@given(st.sampled_from([0, 1, 2]), st.data())
@settings(deadline=None, max_examples=30)
def test_integer_lists_and_boolean_masks_index_as_in_numpy(deep, axis, data):
    lazy, expected = deep["label"]
    n = expected.shape[axis]
    chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=5))
    found = lazy.isel({"zyx"[axis]: chosen})
    np.testing.assert_array_equal(found, expected.take(chosen, axis))
    kept = np.isin(np.arange(n), chosen)
    np.testing.assert_array_equal(
        lazy.isel({"zyx"[axis]: kept}), expected.take(np.flatnonzero(kept), axis)
    )


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_every_dask_scheduler_computes_a_scan(deep, scheduler):
    lazy, expected = deep["image"]
    total = lazy.data.astype("int64").sum().compute(scheduler=scheduler)
    assert total == expected.sum(dtype="int64")


def test_label_chunks_equal_the_counts_of_numpy(mixed):
    reader = mixed[0]._reader
    for scan_id, (_, label) in mixed[1].items():
        expected = []
        if label is not None:
            starts = [range(0, n, size) for n, size in zip(label.shape, (64, 32, 32), strict=True)]
            for at in product(*map(enumerate, starts)):
                (i, z), (j, y), (k, x) = at
                found, counts = np.unique(
                    label[z : z + 64, y : y + 32, x : x + 32], return_counts=1
                )
                expected += [
                    (value, i, j, k, n) for value, n in zip(found, counts, strict=True) if value
                ]
        rows = reader.label_chunks(scan_id)
        assert rows.shape == (len(expected), 5)
        assert [tuple(row) for row in rows.tolist()] == sorted(expected)


def test_background_is_not_stored(mixed):
    store, _ = mixed
    assert not (Path(store.url) / "scans/blank/label/c").exists()
    assert store._reader.scan("blank").label.shard_sizes == {}
    assert set(store._reader.scan("deep").label.shard_sizes) == {(0, 0, 0), (1, 0, 0)}


# Errors of opening


def test_an_absent_store_is_an_error(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"absent\.zarr: there is no store"):
        StoreReader(str(tmp_path / "absent.zarr"))
    with pytest.raises(FileNotFoundError):
        StoreReader(str(tmp_path))


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "scan.nii").write_bytes(b"x")
    with pytest.raises(StoreNotFoundError):
        StoreReader(str(tmp_path / "scan.nii"))


@pytest.mark.parametrize(
    "attributes", [{}, {"format": "other"}, {"format": "spinezarr", "format_version": 7}]
)
def test_a_zarr_group_of_other_software_is_no_store(tmp_path, attributes):
    zarr.create_group(tmp_path / "other.zarr", attributes=attributes)
    with pytest.raises(StoreNotFoundError, match="is not a store that spinezarr wrote"):
        StoreReader(str(tmp_path / "other.zarr"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"attributes": null}'])
def test_the_error_of_a_damaged_root_names_the_repair(copied, content):
    (copied / "zarr.json").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"the root of the store is damaged.* --repair"):
        StoreReader(str(copied))
    shutil.rmtree(copied / "table")
    with pytest.raises(StoreNotFoundError, match="is not a store that spinezarr wrote"):
        StoreReader(str(copied))


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (6, "Make it again in another place: .* 'spinezarr ingest' .* with another --out"),
        (8, "Update spinezarr: pip install --upgrade spinezarr"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"a_new_field": 1}], ids=["same fields", "new field"])
def test_the_error_names_the_format_of_the_store_and_what_to_do(copied, version, advice, more):
    edit_json(
        copied / "zarr.json", lambda root: root["attributes"].update(format_version=version, **more)
    )
    said = rf"is written in format {version}, and this spinezarr reads and writes format 7\. "
    with pytest.raises(StoreNotFoundError, match=said + advice):
        StoreReader(str(copied))


@pytest.mark.parametrize(
    "scan_id",
    [
        "absent",
        "",
        ".",
        "..",
        "../table",
        "/",
        "liver_0/",
        "./liver_0",
        "zarr.json",
        "liver_0/image",
    ],
)
def test_an_unknown_scan_is_named(store, scan_id):
    with pytest.raises(UnknownScanError, match="scan"):
        store.scan(scan_id)
    with pytest.raises(KeyError):
        store.scan(scan_id)


def test_a_scan_without_metadata_is_invisible(copied):
    (copied / "scans/liver_0/zarr.json").unlink()
    with pytest.raises(UnknownScanError, match="has no scan 'liver_0'"):
        spinezarr.open(copied).scan("liver_0")
    assert "liver_0" not in zarr.open_group(copied / "scans", mode="r")
    whole = StoreWriter(str(copied), root_of(copied)).recover()
    assert len(whole) == 5
    assert "liver_0" not in whole
    assert not (copied / "scans/liver_0").exists()


def edit_json(path, change):
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "change",
    [
        lambda scan: scan.clear(),
        lambda scan: scan["attributes"].pop("affine"),
        lambda scan: scan["attributes"].update(split_index="first"),
        lambda scan: scan["consolidated_metadata"]["metadata"].pop("image"),
        lambda scan: scan["consolidated_metadata"]["metadata"].pop("z"),
    ],
)
def test_foreign_scan_metadata_are_an_error(copied, change):
    edit_json(copied / "scans/liver_0/zarr.json", change)
    with pytest.raises(CorruptStoreError, match=r"liver_0/zarr\.json: is not what spinezarr write"):
        spinezarr.open(copied).scan("liver_0")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image["codecs"][0].update(name="bytes"),
        lambda image: image["codecs"].append({"name": "gzip"}),
        lambda image: image["codecs"][0]["configuration"]["codecs"].pop(),
        lambda image: image["codecs"][0]["configuration"].update(index_location="start"),
        lambda image: image.update(shape=[35, 64]),
        lambda image: image.update(data_type="r16"),
        lambda image: image.pop("fill_value"),
    ],
)
def test_foreign_array_metadata_are_an_error(copied, change):
    edit_json(
        copied / "scans/liver_0/zarr.json",
        lambda scan: change(scan["consolidated_metadata"]["metadata"]["image"]),
    )
    with pytest.raises(CorruptStoreError, match=r"liver_0/zarr\.json: is not what spinezarr write"):
        spinezarr.open(copied).scan("liver_0")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_broken_scan_metadata_are_an_error(copied, content):
    (copied / "scans/liver_0/zarr.json").write_bytes(content)
    with pytest.raises(CorruptStoreError, match="is not what spinezarr writes"):
        spinezarr.open(copied).scan("liver_0")


@pytest.mark.parametrize("damage", [None, b"", slice(0, -1), 20])
def test_damaged_label_counts_are_an_error(copied, damage):
    path = copied / "scans/liver_0/sampling/label_chunks/c/0/0"
    data = path.read_bytes()
    if damage is None:
        path.unlink()
    elif isinstance(damage, int):
        path.write_bytes(data[:damage] + bytes([data[damage] ^ 4]) + data[damage + 1 :])
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else data[damage])
    with pytest.raises(CorruptStoreError, match="label_chunks"):
        StoreReader(str(copied)).label_chunks("liver_0")


# Writing


def test_a_writer_opens_an_existing_store_without_a_change(copied):
    before = (copied / "zarr.json").read_bytes()
    StoreWriter(str(copied), root_of(copied))
    assert (copied / "zarr.json").read_bytes() == before


def test_another_dataset_is_refused(copied):
    other = root_of(copied).model_copy(update={"dataset": "verse"})
    with pytest.raises(
        UsageError, match=r"holds the dataset 'ctspine1k' .* not the dataset 'verse'"
    ):
        StoreWriter(str(copied), other)


def test_a_store_of_another_format_is_refused(copied):
    root = root_of(copied)
    edit_json(copied / "zarr.json", lambda root: root["attributes"].update(format_version=3))
    with pytest.raises(UsageError, match=rf"in format 3, .* {FORMAT_VERSION}\. Make it again"):
        StoreWriter(str(copied), root)


def test_a_folder_that_is_no_store_is_not_changed(ctspine1k_url, tmp_path):
    root = root_of(ctspine1k_url)
    zarr.create_group(tmp_path / "group")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    everything = sorted(tmp_path.rglob("*"))
    for name in ("group", "folder", "file"):
        with pytest.raises(UsageError, match="Choose"):
            StoreWriter(str(tmp_path / name), root)
    assert sorted(tmp_path.rglob("*")) == everything


def test_an_empty_folder_becomes_a_store(ctspine1k_url, tmp_path):
    (tmp_path / "new.zarr").mkdir()
    StoreWriter(str(tmp_path / "new.zarr"), root_of(ctspine1k_url))
    assert root_of(tmp_path / "new.zarr") == root_of(ctspine1k_url)
    assert list(zarr.open_group(tmp_path / "new.zarr", mode="r")) == ["scans"]


def test_a_scan_is_whole_only_with_every_file_at_its_size(copied):
    for other in {path.name for path in (copied / "scans").iterdir()} - {"liver_0", "zarr.json"}:
        shutil.rmtree(copied / "scans" / other)
    writer = StoreWriter(str(copied), root_of(copied))
    scan = writer.recover()["liver_0"]
    assert scan == StoreReader(str(copied)).scan("liver_0").attributes
    folder = copied / "scans/liver_0"
    assert len(scan.manifest) > 10
    for key in scan.manifest:
        data = (folder / key).read_bytes()
        for damaged in (data[:-1], data + b"x", None):
            (folder / key).unlink()
            if damaged is not None:
                (folder / key).write_bytes(damaged)
            # The scan's metadata repeat those of its arrays, so recovery writes these again.
            again = key.endswith("zarr.json")
            assert ("liver_0" in writer.recover()) == again
            assert not again or (folder / key).read_bytes() == data
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(data)
    assert writer.recover()["liver_0"] == scan


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"attributes": {}}'])
def test_a_scan_with_broken_metadata_is_not_whole(copied, content):
    (copied / "scans/liver_0/zarr.json").write_bytes(content)
    writer = StoreWriter(str(copied), root_of(copied))
    assert "liver_0" not in writer.recover()
    assert writer.scans.published("liver_0") is None
    assert (copied / "scans/liver_0/image/zarr.json").exists()


def test_stray_files_are_left_alone(copied):
    strays = [".DS_Store", "notes/read.me", "liver_0/read.me"]
    for name in strays:
        (copied / "scans" / name).parent.mkdir(exist_ok=True)
        (copied / "scans" / name).write_bytes(b"x")
    (copied / "scans/empty").mkdir()
    assert len(StoreWriter(str(copied), root_of(copied)).recover()) == 6
    assert all((copied / "scans" / name).exists() for name in strays)


def test_leftovers_of_a_killed_run_are_removed(copied):
    whole = sorted(copied.rglob("*"))
    for name in ("liver_0/image/c.0.0.0", "liver_0/z/c.0", "new/label/c/0/0/0", "new/image/c/1/2/3",
                 "liver_0/zarr.json.partial", "new/image/zarr.json"):  # fmt: skip
        (copied / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / "scans" / name).write_bytes(b"x")
    StoreWriter(str(copied), root_of(copied)).recover()
    assert sorted(copied.rglob("*")) == whole


def test_a_discarded_scan_leaves_nothing(copied):
    scan = StoreWriter(str(copied), root_of(copied)).scans.start("new")
    chunk = encode_blocks(np.zeros((2, 3, 4), np.int16), BALANCED.image)
    scan.write_shard("image", (0, 0, 0), [chunk, shard_index({0: len(chunk)}, 1)])
    scan.discard()
    assert not (copied / "scans/new").exists()


# Being killed


class Killed(BaseException):
    """Stands in for SIGKILL: no code of the package catches it."""


@contextmanager
def dying_after(lives):
    """Raise Killed at change ``lives`` on disk, from 0; a file that is being opened is left cut."""
    changes = count()
    with ExitStack() as stack:
        for name in ("open", "replace", "unlink", "rmdir"):
            real = getattr(Path, name)

            def change(path, *arguments, real=real, **options):
                if real is real_open and arguments[:1] not in {("wb",), ("xb",)}:
                    return real(path, *arguments, **options)
                if next(changes) == lives:
                    if real is real_open:
                        path.write_bytes(b"{")
                    raise Killed
                return real(path, *arguments, **options)

            stack.enter_context(mock.patch.object(Path, name, change))
        yield


real_open = Path.open


def parts_of(path):
    """Return the chunks and the index of a shard with room for four chunks."""
    shard, size = path.read_bytes(), index_bytes(4)
    index = parse_index(shard[-size:], 4, len(shard)).tolist()
    chunks = [shard[at : at + n] for at, n in index if at != ABSENT]
    assert b"".join(chunks) == shard[:-size]
    return [*chunks, shard[-size:]]


def write_again(copied, lives):
    """Write a scan again from its stored files, and die after some changes on disk."""
    store, stored = copied / "copied.zarr", copied / "source"
    reader = StoreReader(str(copied / "whole.zarr"))
    facts = reader.scan("liver_0").attributes.model_dump(exclude={"manifest"})
    label_chunks = reader.label_chunks("liver_0")
    shards = {name: parts_of(stored / name / "c/0/0/0") for name in ("image", "label")}
    with dying_after(lives):
        scan = StoreWriter(str(store), reader.root).scans.start("liver_0")
        for name, parts in shards.items():
            scan.write_shard(name, (0, 0, 0), parts)
        return scan.publish(facts, label_chunks)


@pytest.fixture
def source(copied, tmp_path):
    """Return a folder with a store to change, an intact copy, and the files of one scan."""
    shutil.copytree(copied, tmp_path / "whole.zarr")
    shutil.copytree(copied / "scans/liver_0", tmp_path / "source")
    return tmp_path


def test_a_new_scan_is_visible_only_once_it_is_whole(copied, source):
    known = StoreReader(str(copied)).scan("liver_0").attributes
    shutil.rmtree(copied / "scans/liver_0")
    for lives in count():
        try:
            done = write_again(source, lives)
        except Killed:
            with pytest.raises(UnknownScanError):
                StoreReader(str(copied)).scan("liver_0")
        else:
            break
    assert lives > 12
    assert done == known
    assert StoreReader(str(copied)).scan("liver_0").attributes == known
    assert StoreWriter(str(copied), root_of(copied)).recover()["liver_0"] == known


@pytest.mark.long
def test_a_scan_that_is_replaced_is_never_lost(copied, source, differing_files):
    """A kill at any change leaves the old scan or the new one, whole; recovery removes the rest."""
    pristine = source / "whole.zarr"
    voxels = spinezarr.open(pristine).scan("liver_0").compute()
    versions = set()
    for lives in count():
        shutil.rmtree(copied)
        shutil.copytree(pristine, copied)
        try:
            write_again(source, lives)
            survived = True
        except Killed:
            survived = False
        for _ in range(2):
            scan = StoreReader(str(copied)).scan("liver_0")
            xr.testing.assert_identical(spinezarr.open(copied).scan("liver_0").compute(), voxels)
            plain = xr.open_zarr(copied / "scans/liver_0").compute()
            np.testing.assert_array_equal(plain.image, voxels.image)
            np.testing.assert_array_equal(plain.label, voxels.label)
            versions.add(scan.image.separator)
            if scan.image.separator == StoreReader(str(pristine)).scan("liver_0").image.separator:
                # Readers that ignore consolidated metadata see the old version whole.
                for name in ("image", "label"):
                    member = f"scans/liver_0/{name}/zarr.json"
                    assert (copied / member).read_bytes() == (pristine / member).read_bytes()
            assert len(StoreWriter(str(copied), root_of(copied)).recover()) == 6
        assert differing_files(copied, pristine) == []
        if survived:
            break
    assert lives > 24
    assert versions == {"/", "."}


ONE = "CTC-1018399231"
"""A scan with a value in every string column of the table."""


def rewrite_table(copied, lives):
    """Write a table of one scan; return whether the writer survived."""
    scan = StoreReader(str(copied)).scan(ONE).attributes
    writer = StoreWriter(str(copied), root_of(copied))
    entry = LedgerEntry(inputs="", stamp="", identity=scan_identity(scan))
    try:
        with dying_after(lives):
            writer.registry.write_table(None, {ONE: scan}, {ONE: entry})
    except Killed:
        return False
    return True


@pytest.mark.long
def test_the_table_can_be_read_after_a_kill_at_any_change(copied):
    old = StoreReader(str(copied)).table
    pristine = shutil.copytree(copied / "table", copied.parent / "table")
    new = old.sel(scan=[ONE])
    for lives in chain(range(0, 40, 10), count(41, 2)):
        shutil.rmtree(copied / "table")
        shutil.copytree(pristine, copied / "table")
        survived = rewrite_table(copied, lives)
        table = StoreReader(str(copied)).table
        plain = xr.open_zarr(copied / "table").compute()
        assert plain.scan.to_numpy().tolist() == table.scan.to_numpy().tolist()
        np.testing.assert_array_equal(plain.volume_cm3, table.volume_cm3)
        assert table.identical(old) or table.identical(new)
        if survived:
            break
    assert lives > 100


@pytest.mark.parametrize("lives", [0, 20, 47, 60, 100, 120])
def test_a_killed_writer_does_not_disturb_the_next(copied, lives):
    before = sorted(path.name for path in copied.iterdir())
    assert not rewrite_table(copied, lives)
    assert rewrite_table(copied, -1)
    assert rewrite_table(copied, -1)
    assert StoreReader(str(copied)).table.scan.to_numpy().tolist() == [ONE]
    assert sorted(path.name for path in copied.iterdir()) == before
    manifest = json.loads((copied / "table/zarr.json").read_bytes())["attributes"]["manifest"]
    files = {path for path in (copied / "table").rglob("*") if path.is_file()}
    keys = {str(path.relative_to(copied / "table")) for path in files}
    assert keys == {*manifest, "zarr.json"}


def test_a_store_whose_creation_was_killed_can_be_created_again(ctspine1k_url, tmp_path):
    url, root = str(tmp_path / "new.zarr"), root_of(ctspine1k_url)
    for lives in count():
        try:
            with dying_after(lives):
                StoreWriter(url, root)
        except Killed:
            continue
        break
    assert lives > 1
    assert root_of(url) == root


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "scans/liver_0/zarr.json", "table/zarr.json"],
)
def test_a_flipped_bit_of_metadata_is_an_error_or_without_effect(copied, name):
    def facts():
        reader = StoreReader(str(copied))
        scan = reader.scan("liver_0")
        reader.table  # noqa: B018  reading it is the test
        return reader.root, scan.attributes

    (copied / TABLE_BUNDLE).unlink()  # so that the files of the table are read
    before, whole = facts(), (copied / name).read_bytes()
    rng = np.random.default_rng(5)
    for at in rng.choice(len(whole), 120, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (copied / name).write_bytes(damaged)
        try:
            after = facts()
        except SpinezarrError:
            continue
        # Only white space between tokens may change without an error.
        assert after == before
        assert json.loads(damaged) == json.loads(whole)
