"""Patches read several masks of a scan, and a merger writes one."""

import pickle
import shutil

import numpy as np
import pytest

import spinezarr
from spinezarr.errors import LabelError, ScanChangedError, UsageError
from spinezarr.stream.epoch.merger import Merger

SCANS = ("liver_0", "HN_P001", "CTC-1018399231")


@pytest.fixture
def copy(ctspine1k_url, tmp_path):
    """Return a store whose scans have different masks, and the values of the masks."""
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "store.zarr"))
    values = {}
    for number, scan_id in enumerate(SCANS):
        label = store.scan(scan_id).label.to_numpy()
        values[scan_id] = {"label": label, "prediction": np.roll(label, number + 1, axis=2)}
        store.write_labels(scan_id, "prediction", values[scan_id]["prediction"])
        if number:
            values[scan_id]["ribs"] = (label > 0).astype(np.uint8)
            store.write_labels(scan_id, "ribs", values[scan_id]["ribs"], scheme={1: "rib"})
    return store, values


def crop(volume, start, shape):
    """Return a box of a volume, which is background outside."""
    margin = max(shape)
    padded = np.pad(volume, margin)
    return padded[
        tuple(slice(s + margin, s + margin + n) for s, n in zip(start, shape, strict=True))
    ]


@pytest.mark.parametrize("shuffle", ["exact", "window"])
@pytest.mark.parametrize(
    ("labels", "scans"),
    [
        (("label", "prediction"), SCANS),
        (("prediction", "ribs"), SCANS[1:]),
        ("ribs", SCANS[1:]),
        (["prediction", "label"], SCANS),
    ],
)
def test_patches_have_the_voxels_of_each_mask(copy, labels, scans, shuffle):
    store, values = copy
    names = [labels] if isinstance(labels, str) else labels
    stream = store.patches(
        (16, 24, 90), batch_size=4, n_samples=12, foreground=0.5, labels=labels, shuffle=shuffle
    )
    seen = set()
    for batch in (*stream, pickle.loads(pickle.dumps(stream))[0]):  # noqa: S301  our own
        assert set(batch.masks) == set(names) - {"label"}
        assert (batch.label is not None) == ("label" in names)
        for i, (scan_id, start) in enumerate(zip(batch.scan_id, batch.start_zyx, strict=True)):
            seen.add(scan_id)
            for name in names:
                found = (batch.label if name == "label" else batch.masks[name])[i]
                expected = crop(values[scan_id][name], start, (16, 24, 90))
                np.testing.assert_array_equal(found, expected)
    assert seen <= set(scans)


def test_images_and_draws_do_not_depend_on_the_masks(copy):
    store, _ = copy
    options = {"batch_size": 4, "n_samples": 8, "foreground": 1.0, "scans": list(SCANS)}
    plain = store.patches(16, **options)
    both = store.patches(16, labels=("label", "prediction"), **options)
    for a, b in zip(plain, both, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)
        assert (a.vertebra, a.scan_id) == (b.vertebra, b.scan_id)


def test_slices_and_resampled_patches_have_masks_too(copy):
    store, values = copy
    labels = ("label", "prediction")
    batch = store.slices("sagittal", size=(20, 30), neighbors=1, labels=labels, scans="liver_0")[0]
    assert batch.masks["prediction"].shape == batch.label.shape == (1, 20, 30)
    twin = spinezarr.open(store.url)
    twin.write_labels("liver_0", "twin", values["liver_0"]["label"])
    batch = twin.patches(16, spacing_zyx_mm=7, labels=("label", "twin"), scans="liver_0")[0]
    np.testing.assert_array_equal(batch.masks["twin"], batch.label)


def test_a_grid_and_a_lazy_epoch_have_masks_too(copy):
    store, values = copy
    grid = store.grid("liver_0", 24, batch_size=3, labels=("prediction",))
    merger = grid.merger("crop")
    for batch in grid:
        merger.add(batch, batch.masks["prediction"][:, None])
    np.testing.assert_array_equal(merger.merge()[0], values["liver_0"]["prediction"])
    stream = store.patches(16, n_samples=4, batch_size=2, labels=("label", "prediction"))
    expected = np.concatenate([batch.masks["prediction"] for batch in stream])
    np.testing.assert_array_equal(stream.to_dask().prediction, expected)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (("label", "bodies"), "no scans to draw from that have all of the masks label, bodies"),
        (("label", "label"), "give each mask once"),
        (("image",), "'image' cannot be the name of a mask"),
    ],
)
def test_masks_that_no_scan_has_are_refused(copy, labels, found):
    with pytest.raises(UsageError, match=found):
        copy[0].patches(16, labels=labels)
    with pytest.raises(UsageError, match=found):
        copy[0].grid("liver_0", 16, labels=labels)


def test_a_stream_never_mixes_two_versions_of_a_mask(copy):
    store, values = copy
    stream = spinezarr.open(store.url).patches(16, labels=("label", "prediction"), scans="liver_0")
    assert (stream[0].masks["prediction"] >= 0).all()
    fresh = pickle.loads(pickle.dumps(stream))  # noqa: S301  our own
    store.write_labels("liver_0", "prediction", values["liver_0"]["label"])
    with pytest.raises(ScanChangedError, match="mask 'prediction' of scan 'liver_0'"):
        fresh[0]
    plain = pickle.loads(pickle.dumps(store.patches(16, scans="liver_0")))  # noqa: S301  our own
    store.write_labels("liver_0", "prediction", values["liver_0"]["prediction"])
    assert len(plain[0]) == 1


def test_a_merger_saves_what_it_merges(copy):
    store, _ = copy
    grid = store.grid("liver_0", (24, 32, 32), overlap_zyx=8, batch_size=4)
    merger = grid.merger("average", finish=lambda scores: scores.argmax(0))
    with pytest.raises(UsageError, match="patches have predictions"):
        merger.save("threshold")
    for batch in grid:
        bone = (batch.image > 150).astype(np.float32)
        merger.add(batch, np.stack([1 - bone, bone], axis=1))
    merger.save("threshold", scheme={1: "bone"}, model="150 HU")
    scan = store.scan("liver_0")
    np.testing.assert_array_equal(scan.threshold, scan.image > 150)
    np.testing.assert_array_equal(scan.threshold, merger.merge())
    assert scan.attrs["masks"]["threshold"]["model"] == "150 HU"
    assert store.verify(scans="liver_0").faults == ()


def test_predictions_that_are_no_mask_are_not_saved(copy):
    store, _ = copy
    grid = store.grid("liver_0", 32, batch_size=8)
    several, halves = grid.merger("crop"), grid.merger("crop")
    for batch in grid:
        several.add(batch, np.zeros((len(batch), 2, 32, 32, 32), np.uint8))
        halves.add(batch, np.full((len(batch), 1, 32, 32, 32), 0.5))
    with pytest.raises(UsageError, match=r"shape \(2, .*Give the merger 'finish'"):
        several.save("scores")
    with pytest.raises(LabelError, match=r"0\.5"):
        halves.save("scores")
    with pytest.raises(UsageError, match="knows no store"):
        Merger(grid.tiling).save("scores")
    assert "scores" not in store.scan("liver_0")
