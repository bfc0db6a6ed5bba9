from collections import Counter

import numpy as np
import pytest

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, lml_text, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME

AFFINE = np.array([[0.7, 0.1, 0, -40.5], [0, 0.9, 0, 12.25], [0, 0.2, 2.5, -700], [0, 0, 0, 1]])
SHAPE = (40, 30, 26)
RECIPE = """\
name: around
title: around
license: CC0-1.0
citation: none
layouts:
  flat:
    description: images, masks and centroids side by side
    image: "{{scan}}_{kind}.nii"
    {label}
    {points}
labels: {{scheme: canonical, state: unknown}}
"""
LABEL = 'label: "{scan}_seg.nii"'
POINTS = 'centroids: {files: "{scan}.lml", convention: lml}'
BLOCKS = {"T12": (30, 12, 11), "L1": (20, 13, 10), "L2": (8, 9, 12)}
"""First voxel of each block of the mask; a block is 6 x 8 x 9 voxels, its last plane half empty."""
MEAN = {
    name: tuple(np.argwhere(np.pad(np.ones((5, 8, 9)), ((0, 1), (0, 0), (0, 0)))).mean(0) + at)
    for name, at in BLOCKS.items()
}
POINT = {"T12": (32.3, 15.1, 14.9), "L1": (38.0, 13.0, 13.0), "S1": (2.2, 9.0, 12.0)}
"""Annotated centers (z, y, x): one in its vertebra, one far from it, one without a label."""


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """Return a store of four scans: with mask and centers, mask alone, centers alone, neither."""
    raw = tmp_path_factory.mktemp("around")
    label = np.zeros(SHAPE, np.uint8)
    for name, (z, y, x) in BLOCKS.items():
        label[z : z + 5, y : y + 8, x : x + 9] = VALUE_OF_NAME[name]
    rng = np.random.default_rng(1)
    points = {name: tuple((AFFINE @ [*at[::-1], 1])[:3].tolist()) for name, at in POINT.items()}
    url = str(tmp_path_factory.mktemp("around-store") / "around.zarr")
    for name, has_label, has_points in (
        ("both", True, True),
        ("masked", True, False),
        ("pointed", False, True),
        ("bare", False, False),
    ):
        image = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
        write_nifti(raw / f"{name}_{name}.nii", image, AFFINE, NiftiForm("RAS", "int16"))
        if has_label:
            write_nifti(raw / f"{name}_seg.nii", label, AFFINE, NiftiForm("RAS", "uint8"))
        if has_points:
            text = lml_text(points, AFFINE)
            (raw / f"{name}.lml").write_text(text)
        recipe_path = tmp_path_factory.mktemp(name) / "recipe.yaml"
        recipe_path.write_text(
            RECIPE.format(
                kind=name, label=LABEL if has_label else "", points=POINTS if has_points else ""
            )
        )
        recipe = Recipe.load(str(recipe_path))
        report = ingest(recipe, discover(recipe, str(raw)), url)
        assert not report.failed, report.failed
    return spinezarr.open(url)


CENTERS = {
    **{("masked", name): MEAN[name] for name in BLOCKS},
    ("both", "T12"): POINT["T12"],
    ("both", "L1"): MEAN["L1"],
    ("both", "L2"): MEAN["L2"],
    **{("pointed", name): at for name, at in POINT.items()},
}


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 5, 6), (9, 8, 7), (50, 3, 3)])
@pytest.mark.parametrize("spacing", [None, 1.0])
def test_balanced_patches_are_centered_on_centroids(around, size, spacing):
    stream = around.patches(
        size, foreground=1.0, centers="centroid", labels=False, n_samples=60, batch_size=60,
        spacing_zyx_mm=spacing,
    )  # fmt: skip
    (batch,) = stream
    seen = set(zip(batch.scan_id, batch.vertebra, strict=True))
    assert seen == set(CENTERS)
    for i, key in enumerate(zip(batch.scan_id, batch.vertebra, strict=True)):
        wanted = AFFINE @ [*CENTERS[key][::-1], 1]
        middle = np.linalg.inv(batch.affine[i]) @ wanted
        for axis, (n, at) in enumerate(zip(size, middle[2::-1], strict=True)):
            free = batch.padding_zyx[i, axis].sum() == 0 and batch.start_zyx[i, axis] > 0
            end = batch.start_zyx[i, axis] == stream.sampler.max_start_zyx(0)[axis]
            if free and not end:
                assert abs(at - (n - 1) / 2) <= 0.5 + 1e-6


def test_scans_without_a_mask_are_not_drawn_if_labels_are_read(around):
    stream = around.patches(3, foreground=1.0, centers="centroid", n_samples=200, batch_size=200)
    (batch,) = stream
    assert set(zip(batch.scan_id, batch.vertebra, strict=True)) == {
        (scan_id, name) for scan_id in ("both", "masked") for name in BLOCKS
    }
    for label, vertebra in zip(batch.label, batch.vertebra, strict=True):
        assert (label == VALUE_OF_NAME[vertebra]).any()


def test_scans_without_a_mask_are_drawn_around_their_annotated_centers(around):
    stream = around.patches(
        3, foreground=1.0, centers="centroid", n_samples=600, labels=False, weights={"S1": 3.0}
    )
    drawn = [stream.request(index) for index in range(600)]
    shown = Counter(request.vertebra for request in drawn)
    assert shown["S1"] == pytest.approx(300, abs=60)
    assert {r.scan_id for r in drawn if r.vertebra == "S1"} == {"pointed"}
    assert {r.scan_id for r in drawn if r.vertebra == "T12"} == {"both", "masked", "pointed"}
    on_voxels = around.patches(3, foreground=1.0, labels=False, n_samples=100)
    assert {on_voxels.request(i).scan_id for i in range(100)} == {"both", "masked"}


def test_slices_pass_through_centroids(around):
    stream = around.slices(
        "sagittal", foreground=1.0, centers="centroid", labels=False, n_samples=40, batch_size=40
    )
    (batch,) = stream
    for i, key in enumerate(zip(batch.scan_id, batch.vertebra, strict=True)):
        assert abs(batch.start_zyx[i, 2] - CENTERS[key][2]) <= 0.5


def test_scans_without_any_centroid_are_refused(around):
    with pytest.raises(UsageError, match="no chosen scan has a vertebra with a centroid"):
        around.patches(3, foreground=1.0, centers="centroid", labels=False, scans=["bare"])
    with pytest.raises(UsageError, match="no chosen scan has a labeled vertebra"):
        around.patches(3, foreground=1.0, labels=False, scans=["bare", "pointed"])
    with pytest.raises(UsageError, match="scan 'bare' has no centroid of L1"):
        around.patches(3)._find_center("bare", "L1", None)


@pytest.mark.parametrize("weights", [5, ["L1"], "L1", [("L1", 1, 2)]])
def test_invalid_weights_are_refused(around, weights):
    with pytest.raises(UsageError, match=r"give a weight by vertebra, such as \{'L6': 5.0\}"):
        around.patches(3, foreground=1.0, weights=weights)


def test_an_unknown_vertebra_has_no_weight(around):
    with pytest.raises(UsageError, match=r"there is no vertebra 'L7'; known are C1, C2, .*sacrum"):
        around.slices("axial", foreground=1.0, weights={"L7": 2})
