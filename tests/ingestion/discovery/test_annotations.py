import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, verse_json, write_nifti

SPEC = PhantomSpec(
    shape_zyx=(40, 24, 20), spacing_zyx_mm=(5.0, 8.0, 9.0), levels=("T12", "L1", "L2")
)
PHANTOM = make_phantom(SPEC)
VALUES = {"T12": 19, "L1": 20, "L2": 21}
RECIPE = """\
name: points
title: Points
license: none
citation: none
layouts:
  x:
    description: x
    image: "{scan}_ct.nii"
    label: "{scan}_seg.nii"
    mask: optional
    centroids: {files: ["{scan}.json", "{scan}_old.json"], convention: verse}
labels: {scheme: canonical, state: unknown}
"""


def centers():
    """Return a voxel in the middle of each label, in RAS+ mm."""
    found = {}
    for name, value in VALUES.items():
        indices = np.argwhere(PHANTOM.label == value)
        middle = indices[np.abs(indices - indices.mean(axis=0)).sum(axis=1).argmin()]
        found[name] = (PHANTOM.affine_xyz @ [*middle[::-1], 1])[:3]
    return found


@pytest.fixture
def ingested(tmp_path):
    def ingested(points, *, mask=True, name="a.json"):
        raw = tmp_path / "raw"
        raw.mkdir()
        (tmp_path / "points.yaml").write_text(RECIPE)
        write_nifti(raw / "a_ct.nii", PHANTOM.image, PHANTOM.affine_xyz, NiftiForm())
        if mask:
            form = NiftiForm(dtype="uint8")
            write_nifti(raw / "a_seg.nii", PHANTOM.label, PHANTOM.affine_xyz, form)
        shape = PHANTOM.image.shape[::-1]
        text = points if isinstance(points, str) else verse_json(
            points, shape, PHANTOM.affine_xyz, "verse", None
        )  # fmt: skip
        (raw / name).write_text(text)
        recipe = Recipe.load(str(tmp_path / "points.yaml"))
        report = ingest(recipe, discover(recipe, str(raw)), str(tmp_path / "s.zarr"))
        return report, spinezarr.open(tmp_path / "s.zarr").table

    return ingested


def test_centroids_in_their_labels_need_no_note(ingested):
    points = centers()
    report, table = ingested(points)
    assert report.notes == {}
    row = table.annotated_centroid_zyx_mm.sel(scan="a", axis=["x", "y", "z"])
    for name, position in points.items():
        np.testing.assert_allclose(row.sel(vertebra=name), position, atol=1e-4)
    distances = table.annotated_centroid_distance_mm.sel(scan="a", vertebra=list(points))
    assert distances.to_numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize("away_mm", [4.5, 60.0])
def test_a_centroid_far_from_its_label_is_noted_with_its_distance(ingested, away_mm):
    points = centers()
    z, y, x = np.nonzero(PHANTOM.label == 20)
    last = np.lexsort((x, y))[-1]
    border = (PHANTOM.affine_xyz @ [x[last], y[last] + 0.5, z[last], 1])[:3]
    points["L1"] = border + np.array([0, away_mm, 0])
    report, table = ingested(points)
    found = table.annotated_centroid_distance_mm.sel(scan="a", vertebra="L1").item()
    assert found == pytest.approx(away_mm, abs=0.01)
    expected = f"the centroid of L1 lies {found:.1f} mm from its label"
    assert (expected in report.notes.get("a", ())) == (away_mm > 5)


def test_centroids_out_of_order_are_noted(ingested):
    points = centers()
    points["L1"], points["L2"] = points["L2"], points["L1"]
    report, _ = ingested(points)
    assert "the centroid of L2 does not lie below that of L1" in report.notes["a"]


def test_a_centroid_whose_label_is_absent_has_no_distance(ingested):
    points = {**centers(), "L4": np.array([0.0, 0.0, -900.0])}
    report, table = ingested(points)
    assert np.isnan(table.annotated_centroid_distance_mm.sel(scan="a", vertebra="L4"))
    assert not any("L4 lies" in note for note in report.notes.get("a", ()))


def test_centroids_without_a_mask_are_kept(ingested):
    report, table = ingested(centers(), mask=False, name="a_old.json")
    assert report.done == ("a",)
    assert table.annotated_centroid_zyx_mm.sel(scan="a").count() == 9
    assert table.annotated_centroid_distance_mm.sel(scan="a").count() == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "[[1, 2]]", "\0", "null"])
def test_centroids_that_cannot_be_read_are_a_failed_scan(ingested, text):
    report, table = ingested(text)
    (failed,) = report.failed
    assert "a.json" in failed.reason
    assert "Please report" not in failed.reason
    assert table.sizes["scan"] == 0
