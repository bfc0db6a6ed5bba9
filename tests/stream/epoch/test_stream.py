import multiprocessing
import operator
import pickle
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError, UnknownScanError, UsageError
from spinezarr.geometry import SLICE_AXIS, Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.request import PatchRequest
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME

AFFINE = np.array([[0.7, 0.1, 0, -40.5], [0, 0.8, 0, 12.25], [0, 0.2, 2.5, -700], [0, 0, 0, 1]])
FIELDS = ("image", "label", "start_zyx", "padding_zyx", "affine", "index")


def volumes():
    """Return image and mask of scans that cover what a stream must handle."""
    rng = np.random.default_rng(4)

    def noise(shape, dtype=np.int16, span=3000):
        return rng.integers(-span, span, shape).astype(dtype)

    tall = np.zeros((70, 60, 50), np.uint8)
    tall[50:69, 40:55, 44:50] = VALUE_OF_NAME["T13"]
    tall[0, 0, 0] = tall[69, 59, 49] = VALUE_OF_NAME["L1"]
    tall[30:40, 3:9, 3:9] = rng.integers(0, 2, (10, 6, 6)) * VALUE_OF_NAME["C1"]
    tiny = np.zeros((5, 6, 7), np.uint8)
    tiny[4, 5, 6] = VALUE_OF_NAME["L6"]
    return {
        "tall": (noise(tall.shape), tall),
        "tiny": (noise(tiny.shape), tiny),
        "real": (noise((9, 30, 11)).astype(np.float32) / 7, np.full((9, 30, 11), 200, np.uint8)),
        "huge": (noise((9, 8, 7), np.int32, 10**9), np.zeros((9, 8, 7), np.uint8)),
        "bare": (noise((12, 60, 20)), None),
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a store of :func:`volumes`, and the volumes."""
    raw, stored = tmp_path_factory.mktemp("mixed"), volumes()
    for name, (image, label) in stored.items():
        kind = "alone" if label is None else "ct"
        write_nifti(raw / f"{name}_{kind}.nii", image, AFFINE, NiftiForm("PIR", str(image.dtype)))
        if label is not None:
            write_nifti(raw / f"{name}_seg.nii", label, AFFINE, NiftiForm("PIR", "uint8"))
    url = str(tmp_path_factory.mktemp("mixed-store") / "mixed.zarr")
    for image, label in (("{scan}_ct.nii", "{scan}_seg.nii"), ("{scan}_alone.nii", None)):
        recipe = Recipe.from_pairs(image, label, name="mixed")
        report = ingest(recipe, discover(recipe, str(raw)), url)
        assert not report.failed, report.failed
    return spinezarr.open(url), stored


@pytest.fixture(scope="module")
def sources(ctspine1k_raw):
    """Return image, mask and affine of each CTSpine1K scan, as nibabel reads and reorients them."""
    found = {}
    for written in ctspine1k_raw[1]:
        files = [
            nib.as_closest_canonical(nib.load(path))
            for path in (written.image_path, written.label_path)
        ]
        image, label = (np.asarray(file.dataobj).transpose(2, 1, 0) for file in files)
        found[written.scan_id] = image, label, files[0].affine
    return found


def cut(volume, start, size, outside):
    """Cut a box out of a volume with NumPy; voxels outside have the value ``outside``."""
    wide = np.pad(volume, [(n, n) for n in size], constant_values=outside)
    at = tuple(slice(a + n, a + 2 * n) for a, n in zip(start, size, strict=True))
    return wide[at]


def assert_equal_batches(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.scan_id, one.vertebra, one.dims) == (other.scan_id, other.vertebra, other.dims)


def assert_equal_epochs(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_equal_batches(one, other)


def samples_of(batches):
    """Return the facts about each sample, by its number."""
    return {
        int(index): (
            batch.scan_id[i],
            batch.vertebra[i],
            tuple(batch.start_zyx[i]),
            batch.image[i].tobytes(),
            batch.label[i].tobytes(),
        )
        for batch in batches
        for i, index in enumerate(batch.index)
    }


# What a batch holds


@pytest.mark.parametrize("size", [(16, 24, 20), (1, 1, 1), (40, 64, 70), (60, 10, 90)])
@pytest.mark.parametrize("foreground", [0.0, 0.5])
def test_patches_are_cut_out_of_the_source_files(store, sources, size, foreground):
    for batch in store.patches(size, batch_size=5, n_samples=12, foreground=foreground, seed=1):
        assert batch.dims == ("z", "y", "x")
        assert (batch.image.dtype, batch.label.dtype) == (np.int16, np.uint8)
        assert batch.image.shape == batch.label.shape == (len(batch), *size)
        for i, scan_id in enumerate(batch.scan_id):
            image, label, _ = sources[scan_id]
            start = batch.start_zyx[i]
            np.testing.assert_array_equal(batch.image[i], cut(image, start, size, -1024))
            np.testing.assert_array_equal(batch.label[i], cut(label, start, size, 0))
            before = np.maximum(0, -start)
            after = np.maximum(0, start + size - image.shape)
            np.testing.assert_array_equal(batch.padding_zyx[i], np.stack([before, after], 1))


def test_the_affine_of_a_patch_maps_voxels_to_the_positions_in_the_scan(store, sources):
    (batch,) = store.patches((40, 64, 70), batch_size=9, n_samples=9)
    assert (batch.start_zyx < 0).any()
    for i, scan_id in enumerate(batch.scan_id):
        for patch_zyx in ((0, 0, 0), (39, 63, 69), (10, 20, 30)):
            scan_zyx = batch.start_zyx[i] + patch_zyx
            found = batch.affine[i] @ [*patch_zyx[::-1], 1]
            expected = sources[scan_id][2] @ [*scan_zyx[::-1], 1]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_affine_of_a_patch_rotates_with_an_oblique_scan(mixed):
    store, _ = mixed
    (batch,) = store.patches((4, 5, 6), batch_size=8, n_samples=8, scans=["tall"], seed=3)
    for start, affine in zip(batch.start_zyx, batch.affine, strict=True):
        voxel_xyz = start[::-1] + np.array([3, 2, 1])
        expected = np.array(store.scan("tall").attrs["affine"]) @ [*voxel_xyz, 1]
        np.testing.assert_allclose(affine @ [3, 2, 1, 1], expected, atol=1e-9)


@given(st.data(), st.tuples(*[st.integers(1, 80)] * 3), st.integers(0, 2**40))
@settings(deadline=None, max_examples=40)
def test_any_patch_equals_the_box_that_numpy_cuts_out(mixed, data, size, seed):
    store, stored = mixed
    scan_id = data.draw(st.sampled_from(["tall", "tiny", "real", "huge"]))
    (batch,) = store.patches(size, n_samples=1, scans=[scan_id], seed=seed)
    image, label = stored[scan_id]
    np.testing.assert_array_equal(batch.image[0], cut(image, batch.start_zyx[0], size, -1024))
    np.testing.assert_array_equal(batch.label[0], cut(label, batch.start_zyx[0], size, 0))
    assert batch.image.dtype == image.dtype


def test_a_small_volume_lies_in_the_middle_of_its_patch(mixed):
    (batch,) = mixed[0].patches((10, 6, 8), scans=["tiny"])
    assert batch.padding_zyx[0].tolist() == [[2, 3], [0, 0], [0, 1]]
    assert batch.start_zyx[0].tolist() == [-2, 0, 0]


@pytest.mark.parametrize(
    ("plane", "dims"), [("axial", ("y", "x")), ("coronal", ("z", "x")), ("sagittal", ("z", "y"))]
)
@pytest.mark.parametrize("size", [None, (20, 70)])
def test_slices_are_cut_out_of_the_source_files(store, sources, plane, dims, size):
    flat = SLICE_AXIS[plane]
    largest = np.delete([54, 64, 64], flat)
    expected_size = tuple(largest) if size is None else size
    stream = store.slices(plane, size=size, batch_size=4, n_samples=10, foreground=0.3)
    for batch in stream:
        assert batch.dims == dims
        assert batch.image.shape[1:] == batch.label.shape[1:] == expected_size
        whole = np.insert(expected_size, flat, 1)
        for i, scan_id in enumerate(batch.scan_id):
            image, label, affine = sources[scan_id]
            start = batch.start_zyx[i]
            assert 0 <= start[flat] < image.shape[flat]
            found = cut(image, start, whole, -1024).squeeze(flat)
            np.testing.assert_array_equal(batch.image[i], found)
            np.testing.assert_array_equal(batch.label[i], cut(label, start, whole, 0).squeeze(flat))
            corner = (affine @ [*start[::-1], 1])[:3]
            np.testing.assert_allclose(batch.affine[i][:3, 3], corner, atol=1e-6)


def test_slices_are_as_large_as_the_largest_chosen_scan(store):
    assert store.slices("axial", scans=["HN_P001"])[0].image.shape == (1, 56, 56)
    assert store.slices("sagittal", split="train")[0].image.shape == (1, 50, 64)
    assert store.slices("coronal", scans=["HN_P001", "liver_0"])[0].image.shape == (1, 36, 64)


def test_every_slice_of_a_scan_is_drawn(store):
    stream = store.slices("axial", scans=["volume-covid19-A-0377_ct"], n_samples=400, labels=False)
    drawn = Counter(stream.request(index).box.start_zyx[0] for index in range(400))
    assert set(drawn) == set(range(32))


# Which samples


def test_batches_number_their_samples(store):
    stream = store.patches(8, batch_size=4, n_samples=10)
    batches = list(stream)
    assert len(stream) == len(batches) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert stream[2].image.shape == (2, 8, 8, 8)


def test_an_epoch_has_as_many_samples_as_scans(store):
    assert store.patches(8).n_samples == 6
    assert store.patches(8, split="train", batch_size=2).n_samples == 3
    assert len(store.patches(8, split="train", batch_size=2)) == 2


@pytest.mark.parametrize("foreground", [0.0, 0.6])
def test_samples_do_not_depend_on_the_batch_size(store, foreground):
    wanted = {"n_samples": 11, "foreground": foreground, "seed": 5}
    expected = samples_of(store.patches(12, batch_size=1, **wanted))
    assert sorted(expected) == list(range(11))
    for batch_size in (2, 5, 11, 40):
        assert samples_of(store.patches(12, batch_size=batch_size, **wanted)) == expected


def test_batches_do_not_depend_on_the_order_in_which_they_are_read(store):
    stream = store.patches((9, 10, 11), batch_size=3, n_samples=14, foreground=0.5)
    expected = list(stream)
    assert_equal_epochs(stream, expected)
    for number in (4, 0, 3, 3, 1, 2):
        assert_equal_batches(stream[number], expected[number])


def test_another_epoch_seed_or_index_makes_another_draw(store):
    stream = store.patches(6, batch_size=6)
    drawn = [samples_of(other) for other in (stream, stream.at_epoch(1), store.patches(6, seed=1))]
    assert len({tuple(sorted(samples.items())) for samples in drawn}) == 3
    assert len(set(drawn[0].values())) == 6
    assert stream.at_epoch(3).epoch == 3
    assert_equal_epochs(stream.at_epoch(1), store.patches(6, batch_size=6, epoch=1))
    assert_equal_epochs(stream.at_epoch(1).at_epoch(0), stream)


@pytest.mark.parametrize("number", [-1, 3, 99])
def test_a_batch_number_outside_the_epoch_is_an_error(store, number):
    with pytest.raises(IndexError, match=f"batch {number} of an epoch of 3"):
        store.patches(8, batch_size=2)[number]


def test_a_pickled_store_gives_the_same_samples(store):
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  our own bytes
    assert again.url == store.url
    assert_equal_epochs(again.patches(10, foreground=0.5), store.patches(10, foreground=0.5))


def test_a_pickled_stream_gives_the_same_samples(store):
    stream = store.patches(10, batch_size=2, foreground=0.5)
    expected = list(stream)
    again = pickle.loads(pickle.dumps(stream))  # noqa: S301  our own bytes
    assert_equal_epochs(again, expected)


def test_a_batch_can_be_pickled(store):
    (batch,) = store.patches(4, batch_size=6)
    again = pickle.loads(pickle.dumps(batch))  # noqa: S301  our own bytes
    assert_equal_batches(again, batch)


def read_all(stream, send):
    """Iterate over the stream and index it backward, and send all batches."""
    send.send([*stream, *(stream[number] for number in reversed(range(len(stream))))])


# Python 3.12 warns about any fork while threads run; trainers do it, so it must work.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_another_process_reads_the_same_samples(store, start_method):
    context = multiprocessing.get_context(start_method)
    stream = store.patches(20, batch_size=2, foreground=0.5, n_samples=7)
    expected = list(stream)
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=read_all, args=(stream, send), daemon=True)
    process.start()
    try:
        send.close()
        assert receive.poll(60), "the child hangs"
        assert_equal_epochs(receive.recv(), [*expected, *expected[::-1]])
    finally:
        receive.close()
        process.kill()
        process.join()
        process.close()


# Foreground


def test_every_voxel_of_a_vertebra_can_be_drawn(mixed):
    store, stored = mixed
    stream = store.patches(8, scans=["tall", "tiny"])
    for scan_id, name in (("tall", "T13"), ("tall", "L1"), ("tall", "C1"), ("tiny", "L6")):
        voxels = [tuple(at) for at in np.argwhere(stored[scan_id][1] == VALUE_OF_NAME[name])]
        assert int(store.table.voxel_count.sel(scan=scan_id, vertebra=name)) == len(voxels)
        step = max(1, len(voxels) // 60)
        ranks = [*range(0, len(voxels), step), len(voxels) - 1]
        found = [stream._find_voxel(scan_id, name, k) for k in ranks]
        assert set(found) <= set(voxels)
        assert len(set(found)) == len(set(ranks))


def test_foreground_patches_show_their_vertebra(store):
    shown = set()
    for batch in store.patches((7, 8, 9), batch_size=10, n_samples=60, foreground=1.0):
        for label, vertebra in zip(batch.label, batch.vertebra, strict=True):
            assert (label == VALUE_OF_NAME[vertebra]).any()
            shown.add(vertebra)
    assert len(shown) > 12


def test_foreground_patches_of_one_voxel_are_that_vertebra(mixed):
    for batch in mixed[0].patches(1, n_samples=30, batch_size=30, foreground=1.0):
        values = [VALUE_OF_NAME[vertebra] for vertebra in batch.vertebra]
        assert batch.label.ravel().tolist() == values
        assert set(batch.vertebra) == {"T13", "L1", "C1", "L6"}


def test_foreground_slices_show_their_vertebra(store):
    for plane in SLICE_AXIS:
        for batch in store.slices(plane, n_samples=8, batch_size=8, foreground=1.0):
            for label, vertebra in zip(batch.label, batch.vertebra, strict=True):
                assert (label == VALUE_OF_NAME[vertebra]).any()


def test_foreground_draws_work_without_reading_masks(store):
    wanted = {"batch_size": 6, "foreground": 1.0}
    (with_label,), (without,) = (store.patches(9, labels=yes, **wanted) for yes in (True, False))
    assert without.label is None
    np.testing.assert_array_equal(without.image, with_label.image)


# Which scans


def test_scans_without_mask_are_drawn_only_without_labels(mixed):
    store, stored = mixed
    assert "bare" not in store.patches(4).sampler.scan_ids
    assert store.patches(4).n_samples == 4
    (batch,) = store.patches((70, 60, 50), labels=False, scans=["bare"])
    assert batch.label is None
    np.testing.assert_array_equal(
        batch.image[0], cut(stored["bare"][0], batch.start_zyx[0], (70, 60, 50), -1024)
    )
    assert store.patches(4, labels=False).n_samples == 5
    with pytest.raises(UsageError, match=r"no scans to draw from that have a mask \(labels=False"):
        store.patches(4, scans=["bare"])


def test_reading_an_absent_mask_is_refused(mixed):
    stream = mixed[0].patches(4)
    request = PatchRequest(0, "bare", Box((0, 0, 0), (4, 4, 4)), None)
    with pytest.raises(UsageError, match="scan 'bare' has no mask"):
        stream.read([request])


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        (["tall", "tiny"], "int16"),
        (["tall", "huge"], "int32"),
        (["tiny", "real"], "float32"),
        (["tall", "real", "huge"], "float64"),
    ],
)
def test_scans_of_mixed_types_are_widened_without_loss(mixed, scans, dtype):
    store, stored = mixed
    (batch,) = store.patches((70, 60, 50), scans=scans, batch_size=30, n_samples=30)
    assert batch.image.dtype == dtype
    assert set(batch.scan_id) == set(scans)
    for i, scan_id in enumerate(batch.scan_id):
        expected = cut(stored[scan_id][0], batch.start_zyx[i], (70, 60, 50), -1024)
        np.testing.assert_array_equal(batch.image[i], expected)


def test_draws_stay_in_the_chosen_scans(store):
    table = store.table
    large = table.scan[table.shape_zyx.sel(axis="z") > 40]
    for chosen, stream in (
        (set(large.to_numpy()), store.patches(4, scans=large, n_samples=40, batch_size=40)),
        ({"liver_0"}, store.patches(4, scans=("liver_0",))),
        (
            {"CTC-1018399231", "volume-covid19-A-0377_ct"},
            store.patches(4, split="validation", n_samples=30, batch_size=30),
        ),
        (
            {"liver_0"},
            store.patches(4, split="train", scans=["liver_0", "CTC-1018399231"], n_samples=9),
        ),
    ):
        assert {scan_id for batch in stream for scan_id in batch.scan_id} == chosen


@pytest.mark.parametrize("kind", ["patches", "slices"])
@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"split": "tran"}, UsageError, r"split 'tran': the store has 'test', 'train', 'validati"),
        ({"scans": ["liver_0", "liver_9"]}, UnknownScanError, "has no scan 'liver_9'"),
        ({"scans": []}, UsageError, "there are no scans to draw from"),
        ({"scans": ["liver_0"], "split": "test"}, UsageError, "there are no scans to draw from"),
        ({"batch_size": 0}, UsageError, "batch_size 0: must be at least 1"),
        ({"n_samples": 0}, UsageError, "n_samples 0: must be at least 1"),
        ({"epoch": -1}, UsageError, "epoch -1: must be at least 0"),
        ({"seed": -1}, UsageError, "seed -1: must be at least 0"),
        ({"foreground": 2}, UsageError, "foreground 2: must lie between 0 and 1"),
    ],
)
def test_invalid_options_of_a_stream_are_refused(store, kind, wanted, error, message):
    with pytest.raises(error, match=message):
        store.patches(8, **wanted) if kind == "patches" else store.slices("axial", **wanted)


def test_invalid_patch_sizes_are_refused(store):
    for size in ((8, 8), (8, 8, 8, 8), (), 0, (8, 0, 8)):
        with pytest.raises(UsageError, match="patch size"):
            store.patches(size)
    for size in ((8,), (8, 8, 8)):
        with pytest.raises(UsageError, match="slice size"):
            store.slices("axial", size=size)
    with pytest.raises(UsageError, match="at least 1"):
        store.slices("axial", size=(8, 0))
    with pytest.raises(UsageError, match="'oblique': must be one of axial, coronal, sagittal"):
        store.slices("oblique")


# Threads


def test_two_epochs_can_be_read_at_once(store):
    stream = store.patches(8, n_samples=12, foreground=0.3)
    expected, other = list(stream), list(stream.at_epoch(1))
    for pairs in zip(stream, stream.at_epoch(1), expected, other, strict=True):
        assert_equal_batches(pairs[0], pairs[2])
        assert_equal_batches(pairs[1], pairs[3])


def test_an_error_is_raised_in_place_of_its_batch(ctspine1k_url, tmp_path):
    url = shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr")
    expected = list(spinezarr.open(url).patches(8, n_samples=30))
    appears = {batch.scan_id[0]: i for i, batch in reversed(list(enumerate(expected)))}
    damaged, first = max(appears.items(), key=operator.itemgetter(1))
    assert first > 2
    (Path(url) / "scans" / damaged / "image/c/0/0/0").write_bytes(b"")
    stream = spinezarr.open(url).patches(8, n_samples=30)
    iterator = iter(stream)
    for number in range(first):
        assert_equal_batches(next(iterator), expected[number])
    with pytest.raises(CorruptStoreError, match=f"scan '{damaged}', image chunk"):
        next(iterator)
    for number, batch in enumerate(expected):
        if batch.scan_id[0] != damaged:
            assert_equal_batches(stream[number], batch)


# Costs


def test_a_batch_is_explained_before_it_is_read(store, monkeypatch):
    stream = store.patches((16, 24, 24), batch_size=3, n_samples=7)
    said = stream.explain(1)
    assert said.boxes == 6
    assert said.voxel_bytes == 3 * 16 * 24 * 24 * 3
    assert said.fetched_bytes > 0
    assert stream.explain(2).boxes == 2
    with pytest.raises(IndexError):
        stream.explain(3)
    window = store.patches(
        (16, 24, 24), batch_size=2, n_samples=12, shuffle="window", window_scans=2,
        samples_per_scan=3,
    )  # fmt: skip
    together = window.explain(1)
    assert together.boxes == 2 * 6
    assert together.scans == 2
    assert together.shared_chunks > 0
    assert str(together) == str(window.explain(0)) != str(window.explain(3))
