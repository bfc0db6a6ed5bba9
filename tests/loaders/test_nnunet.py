import json
import pickle
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import spinezarr
from spinezarr.errors import CorruptStoreError, FormatError, UnknownScanError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.loaders.nnunet import StoreDataset, link_store
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

NUMBERS = {"mean": 120.0, "std": 210.5, "percentile_00_5": -310.0, "percentile_99_5": 905.0}
SHAPE, SPACING_ZYX = (70, 40, 55), (2.5, 0.8, 0.7)
AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -70.7], [0, 0, 0, 1]])


# The model: the steps of nnU-Net's preprocessing on whole volumes


def resized(values, shape, order):
    """Resize like ``skimage.transform.resize(..., mode="edge", anti_aliasing=False)``."""
    zoom = [new / old for new, old in zip(shape, values.shape, strict=True)]
    out = ndimage.zoom(values.astype(float), zoom, order=order, mode="nearest", grid_mode=True)
    assert out.shape == tuple(shape)
    return np.clip(out, values.min(), values.max())


def resized_labels(values, shape, order):
    """Resize like ``batchgenerators``' ``resize_segmentation``; return also where labels tie."""
    labels = np.unique(values)
    scores = np.stack([resized(values == label, shape, order) for label in labels])
    best = np.sort(scores, axis=0)
    tied = best[-1] - best[-2] < 1e-9 if len(labels) > 1 else np.zeros(shape, bool)
    return labels[scores.argmax(0)], tied


def preprocess(image, label, spacing, plans, configuration="3d_fullres"):
    """Return image, mask and ties as ``DefaultPreprocessor.run_case_npy`` computes them."""
    found = plans["configurations"][configuration]
    transpose = plans["transpose_forward"]
    image, label = image.transpose(transpose), label.transpose(transpose)
    spacing = [spacing[axis] for axis in transpose]
    target = [*spacing[: 3 - len(found["spacing"])], *found["spacing"]]
    shape = [round(mm / new * n) for mm, new, n in zip(spacing, target, image.shape, strict=True)]
    image = np.clip(image.astype(np.float32), -310, 905)
    image -= NUMBERS["mean"]
    image /= NUMBERS["std"]
    if tuple(shape) == image.shape:
        return image, label, np.zeros(shape, bool)
    coarse = None
    for candidate in (spacing, target):
        if max(candidate) / min(candidate) > 3:
            axes = [axis for axis, mm in enumerate(candidate) if mm == max(candidate)]
            coarse = axes[0] if len(axes) == 1 else None
            break
    if coarse is None:
        label, tied = resized_labels(label, shape, 1)
        return resized(image, shape, 3).astype(np.float32), label, tied
    plane = [n for axis, n in enumerate(shape) if axis != coarse]
    parts = [
        (resized(slab, plane, 3), *resized_labels(mask, plane, 1))
        for slab, mask in zip(
            np.moveaxis(image, coarse, 0), np.moveaxis(label, coarse, 0), strict=True
        )
    ]
    step = image.shape[coarse] / shape[coarse]
    which = np.floor(step * (np.arange(shape[coarse]) + 0.5)).astype(int)
    stacked = [np.stack([part[i] for part in parts]) for i in range(3)]
    return tuple(np.moveaxis(values[which], 0, coarse) for values in stacked)


def plans_of(spacing, transpose=(0, 1, 2), configuration="3d_fullres", **changes):
    kwargs = {"order_z": 0, "force_separate_z": None}
    return {
        "transpose_forward": list(transpose),
        "foreground_intensity_properties_per_channel": {"0": NUMBERS},
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "spacing": list(spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **kwargs},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **kwargs},
                **changes,
            },
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a store of a noisy image and a mask of blocks, its raw dataset, and the arrays."""
    folder, rng = tmp_path_factory.mktemp("nnunet"), np.random.default_rng(6)
    image = ndimage.gaussian_filter(rng.normal(0, 9000, SHAPE), 2) + rng.normal(0, 60, SHAPE)
    image = image.astype(np.int16)
    coarse = rng.choice(np.array([0, 0, 3, 7, 20], np.uint8), (7, 4, 5))
    label = coarse.repeat(10, 0).repeat(10, 1).repeat(11, 2)
    write_nifti(folder / "raw/a_ct.nii", image, AFFINE, NiftiForm("LPS"))
    write_nifti(folder / "raw/a_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
    write_nifti(folder / "raw/b.c_ct.nii", image[::-1], AFFINE, NiftiForm("RAS"))
    write_nifti(folder / "raw/b.c_seg.nii", label[::-1], AFFINE, NiftiForm("RAS", "uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "s.zarr"))
    assert not report.failed, report.failed
    exported = Path(spinezarr.open(folder / "s.zarr").export_nnunet(out=folder, name="s").out)
    numbers = np.zeros(256, np.int16)
    numbers[[3, 7, 20]] = [1, 2, 3]
    return folder / "s.zarr", exported, image, numbers[label]


def preprocessed_folder(folder, raw, plans):
    """Write the files that ``nnUNetv2_plan_and_preprocess --no_pp`` leaves."""
    folder.mkdir()
    shutil.copy(raw / "dataset.json", folder)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


def linked(made, folder, plans, configuration="3d_fullres"):
    preprocessed = preprocessed_folder(folder, made[1], plans)
    (found,) = link_store(str(made[0]), made[1], preprocessed)
    assert found == preprocessed / f"nnUNetPlans_{configuration}"
    return StoreDataset(str(found))


PLANS = {
    "as stored": ((2.5, 0.8, 0.7), (0, 1, 2)),
    "finer": ((1.9, 0.63, 0.66), (0, 1, 2)),
    "isotropic": ((0.9, 0.9, 0.9), (0, 1, 2)),
    "coarser": ((2.6, 1.3, 1.7), (0, 1, 2)),
    "one axis as stored": ((2.0, 0.8, 0.7), (0, 1, 2)),
    "transposed": ((0.9, 1.1, 2.2), (2, 1, 0)),
    "thick slices to come": ((0.6, 4.0, 0.75), (1, 0, 2)),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=() if (i + j) % 2 else pytest.mark.long)
        for i, name in enumerate(PLANS)
        for j, case in enumerate(["a", "b.c"])
    ],
)
def test_cases_equal_those_of_the_nnunet_preprocessing(made, tmp_path, name, case):
    plans = plans_of(*PLANS[name])
    dataset = linked(made, tmp_path / "pre", plans)
    # The second source has another orientation.
    image, label = (made[2], made[3]) if case == "a" else (made[2][::-1], made[3][::-1])
    wanted, mask, tied = preprocess(image, label, SPACING_ZYX, plans)
    found, seg, previous, _ = dataset.load_case(case)
    assert previous is None
    assert found.shape == seg.shape == (1, *wanted.shape)
    assert (found.ndim, found.dtype, seg.dtype) == (4, np.float32, np.int16)
    whole = found[:]
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[0], wanted, atol=3e-6)
    labels = seg[:]
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels[0][~tied], mask[~tied])
    rng = np.random.default_rng(1)
    for _ in range(4):
        start = [int(rng.integers(0, n)) for n in wanted.shape]
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, wanted.shape, strict=True)]
        box = tuple(map(slice, start, stop))
        np.testing.assert_allclose(found[(slice(None), *box)][0], wanted[box], atol=3e-6)
        part, clear = seg[(slice(0, 1), *box)][0], ~tied[box]
        np.testing.assert_array_equal(part[clear], mask[box][clear])


def test_thick_slices_are_not_interpolated_across(tmp_path):
    rng = np.random.default_rng(3)
    affine = np.diag([0.7, 0.7, 3.3, 1.0])
    # nnU-Net clips each plane to the range of that plane.
    image = rng.integers(-150, 100, (9, 30, 28)) + 70 * np.arange(9)[:, None, None]
    image = image.astype(np.int16)
    label = rng.integers(0, 3, (3, 3, 2)).astype(np.uint8).repeat(3, 0).repeat(10, 1).repeat(14, 2)
    write_nifti(tmp_path / "raw/a_ct.nii", image, affine, NiftiForm("LPS"))
    write_nifti(tmp_path / "raw/a_seg.nii", label, affine, NiftiForm("LPS", "uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")
    ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "s.zarr"))
    exported = Path(spinezarr.open(tmp_path / "s.zarr").export_nnunet(out=tmp_path, name="s").out)
    plans = plans_of((2.0, 0.6, 0.9))
    made = (tmp_path / "s.zarr", exported)
    found, seg, *_ = linked(made, tmp_path / "pre", plans).load_case("a")
    wanted, mask, tied = preprocess(image, label, (3.3, 0.7, 0.7), plans)
    np.testing.assert_allclose(found[:][0], wanted, atol=3e-6)
    np.testing.assert_allclose(found[:, 3:9, 5:17, :4][0], wanted[3:9, 5:17, :4], atol=3e-6)
    np.testing.assert_array_equal(seg[:][0][~tied], mask[~tied])


def test_2d_configurations_do_not_resample_the_first_axis(made, tmp_path):
    plans = plans_of((1.0, 1.0), configuration="2d")
    dataset = linked(made, tmp_path / "pre", plans, "2d")
    wanted, _, _ = preprocess(made[2], made[3], SPACING_ZYX, plans, "2d")
    image = dataset["a"][0]
    assert image.shape == (1, 70, 32, 38)
    np.testing.assert_allclose(image[:, 33:34][0], wanted[33:34], atol=3e-6)


@given(st.data())
@settings(max_examples=60)
def test_slicing_a_case_equals_numpy_slicing(made, tmp_path_factory, data):
    dataset = linked(made, tmp_path_factory.mktemp("slices") / "pre", plans_of(SPACING_ZYX))
    image = dataset.load_case("a")[0]
    whole = image[:]
    parts = data.draw(st.integers(0, 4))
    index = tuple(data.draw(st.slices(n)) for n in image.shape[:parts])
    if any(item.indices(n)[2] != 1 for item, n in zip(index, image.shape, strict=False)):
        with pytest.raises(UsageError, match="no steps"):
            image[index]
    else:
        np.testing.assert_array_equal(image[index], whole[index])


def test_properties_equal_those_of_the_preprocessor(made, tmp_path):
    dataset = linked(made, tmp_path / "pre", plans_of((1.9, 0.63, 0.66)))
    properties = dataset.load_case("a")[3]
    shape = properties["shape_before_cropping"]
    assert shape == properties["shape_after_cropping_and_before_resampling"] == SHAPE
    assert properties["bbox_used_for_cropping"] == [[0, n] for n in SHAPE]
    np.testing.assert_allclose(properties["spacing"], SPACING_ZYX, rtol=1e-6)
    assert properties["spacing"] == [float(np.float32(mm)) for mm in SPACING_ZYX]
    np.testing.assert_allclose(properties["nibabel_stuff"]["reoriented_affine"], AFFINE, rtol=1e-6)
    lps = np.diag([-1.0, -1, 1, 1]) @ np.abs(np.diag(np.diag(AFFINE)))
    found = properties["nibabel_stuff"]["original_affine"]
    np.testing.assert_allclose(found[:3, :3], lps[:3, :3], rtol=1e-6)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_locations_cover_every_voxel_of_a_label(made, tmp_path, transpose):
    spacing = [SPACING_ZYX[axis] for axis in transpose]
    dataset = linked(made, tmp_path / "pre", plans_of(spacing, transpose))
    _, seg, _, properties = dataset.load_case("a")
    whole = seg[:]
    locations = properties["class_locations"]
    assert list(locations) == [1, 2, 3]
    for number, found in locations.items():
        voxels = np.argwhere(whole == number)
        assert len(found) == len(voxels) > 100
        every = range(0, len(found), 199)
        places = np.array([found[k] for k in every])
        assert places.shape == (len(every), 4)
        assert (whole[tuple(places.T)] == number).all()
        assert len({tuple(place) for place in places.tolist()}) == len(every)


def test_locations_lie_inside_the_volume_for_any_spacing(made, tmp_path):
    dataset = linked(made, tmp_path / "pre", plans_of((2.6, 1.3, 1.7)))
    _, seg, _, properties = dataset.load_case("a")
    hits = []
    for number, found in properties["class_locations"].items():
        for k in (0, len(found) // 2, len(found) - 1):
            channel, *place = found[k]
            assert channel == 0
            assert all(0 <= at < n for at, n in zip(place, seg.shape[1:], strict=True))
            near = tuple(slice(max(0, at - 1), at + 2) for at in place)
            hits.append((seg[(slice(None), *near)] == number).any())
    assert all(hits)


def test_the_dataset_class_has_the_interface_of_nnunet(made, tmp_path):
    dataset = linked(made, tmp_path / "pre", plans_of(SPACING_ZYX))
    assert dataset.identifiers == ["a", "b.c"]
    assert StoreDataset.get_identifiers(dataset.source_folder) == ["a", "b.c"]
    one = StoreDataset(dataset.source_folder, ["b.c"], folder_with_segs_from_previous_stage=None)
    assert one.identifiers == ["b.c"]
    assert one.folder_with_segs_from_previous_stage is None
    StoreDataset.unpack_dataset(dataset.source_folder, overwrite_existing=False)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  our own bytes
    box = (slice(None), slice(3, 9), slice(30), slice(30))
    np.testing.assert_array_equal(again["a"][0][box], dataset["a"][0][box])
    truth = tmp_path / "pre/gt_segmentations"
    assert sorted(path.name for path in truth.iterdir()) == ["a.nii.gz", "b.c.nii.gz"]
    assert (truth / "a.nii.gz").read_bytes() == (made[1] / "labelsTr/a.nii.gz").read_bytes()
    # nnU-Net chooses the class by the only kind of file in the folder.
    (only,) = Path(dataset.source_folder).iterdir()
    assert only.name == "store.spinezarr"
    with pytest.raises(UnknownScanError):
        dataset.load_case("none")


# Failures


def test_slicing_a_damaged_case_is_an_error(made, tmp_path):
    copied = Path(shutil.copytree(made[0], tmp_path / "copied.zarr"))
    for array in ("image", "label"):
        shard = copied / f"scans/a/{array}/c/0/0/0"
        data = bytearray(shard.read_bytes())
        data[60] ^= 1
        shard.write_bytes(data)
    dataset = linked((copied, made[1]), tmp_path / "pre", plans_of((0.9, 0.9, 0.9)))
    image, label, *_ = dataset.load_case("a")
    for array, name in ((image, "image"), (label, "label")):
        with pytest.raises(CorruptStoreError, match=rf"'a', {name} chunk \(0, 0, 0\) in .*c/0/0/0"):
            array[:, :5, :5, :5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_schemes": ["ZScoreNormalization"]}, "ZScoreNormalization"),
        ({"resampling_fn_data": "resample_torch"}, "resample_torch"),
        ({"use_mask_for_norm": [True]}, "by a mask"),
        (
            {"resampling_fn_data_kwargs": {"order": 3, "order_z": 1, "force_separate_z": None}},
            "order_z 1",
        ),
    ],
)
def test_unsupported_plans_are_refused(made, tmp_path, changes, message):
    folder = preprocessed_folder(tmp_path / "pre", made[1], plans_of(SPACING_ZYX, **changes))
    with pytest.raises(UsageError, match=message):
        link_store(str(made[0]), made[1], folder)


def test_the_error_names_what_is_missing(made, tmp_path):
    with pytest.raises(UsageError, match=r"nnUNetPlans\.json: there is no such file"):
        link_store(str(made[0]), made[1], tmp_path / "pre")
    dataset = linked(made, tmp_path / "pre", plans_of(SPACING_ZYX))
    with pytest.raises(UsageError, match="no previous stage"):
        StoreDataset(dataset.source_folder, None, "stage")
    facts = tmp_path / "pre/dataset.json"
    changed = json.loads(facts.read_text())
    changed["labels"]["ignore"] = 4
    facts.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="labels to ignore"):
        StoreDataset(dataset.source_folder)
    (Path(dataset.source_folder) / "store.spinezarr").write_text("{")
    with pytest.raises(FormatError, match="is not valid JSON"):
        StoreDataset(dataset.source_folder)
    (Path(dataset.source_folder) / "a.b2nd").write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.b2nd: this configuration is preprocessed already"):
        link_store(str(made[0]), made[1], tmp_path / "pre")


# Comparison with nnU-Net itself, if it is installed


if find_spec("nnunetv2") and find_spec("acvl_utils"):  # only with all of nnU-Net

    def test_cases_equal_those_of_the_installed_nnunet_preprocessor(made, tmp_path):
        resampling = import_module("nnunetv2.preprocessing.resampling.default_resampling")
        for name, (spacing, transpose) in PLANS.items():
            plans = plans_of(spacing, transpose)
            found, seg, _, properties = linked(made, tmp_path / name, plans).load_case("a")
            image = np.clip(made[2].astype(np.float32), -310, 905)[None]
            image -= NUMBERS["mean"]
            image /= NUMBERS["std"]
            order = [0, *(axis + 1 for axis in transpose)]
            current = [properties["spacing"][axis] for axis in transpose]
            arguments = (found.shape[1:], current, spacing)
            options = {"force_separate_z": None, "order_z": 0}
            wanted = resampling.resample_data_or_seg_to_shape(
                image.transpose(order), *arguments, is_seg=False, order=3, **options
            )
            mask = resampling.resample_data_or_seg_to_shape(
                made[3][None].transpose(order), *arguments, is_seg=True, order=1, **options
            )
            np.testing.assert_allclose(found[:], wanted, atol=3e-6)
            assert (seg[:] != mask).mean() < 1e-3  # ties, which hang on the last bit


def test_cases_of_a_further_mask_are_trained_with_that_mask(made, tmp_path):
    store = spinezarr.open(shutil.copytree(made[0], tmp_path / "copy.zarr"))
    parts = np.zeros(SHAPE, np.uint8)
    parts[5:60, 4:30, 3:20], parts[5:60, 4:30, 30:50] = 7, 200
    store.write_labels("a", "parts", parts, scheme={7: "arch", 200: "body"})
    store = spinezarr.open(store.url)
    raw = Path(store.export_nnunet(out=tmp_path, name="parts", layer="parts").out)
    dataset = linked((store.url, raw), tmp_path / "pre", plans_of(SPACING_ZYX))
    assert dataset.identifiers == ["a"]
    _, seg, _, properties = dataset.load_case("a")
    numbers = np.zeros(256, np.int16)
    numbers[[7, 200]] = [1, 2]
    np.testing.assert_array_equal(seg[:][0], numbers[parts])
    for number, found in properties["class_locations"].items():
        assert len(found) == (seg[:] == number).sum()
        assert seg[:][tuple(found[len(found) // 2])] == number
