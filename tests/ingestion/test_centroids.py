"""Annotated centroids keep their place in a whole ingest, in every orientation and convention."""

import nibabel as nib
import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, all_axcodes, lml_text, verse_json, write_nifti

AFFINE_XYZ = np.array([[0.7, 0, 0, -40.5], [0, 0.9, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])
LEVELS = {"T11": 18, "T12": 19, "T13": 28, "L1": 20}
RECIPE = """\
name: centroids
title: centroids
license: CC0-1.0
citation: none
layouts:
  flat:
    description: images, masks and centroids side by side
    image: "{{scan}}_ct.nii"
    label: "{{scan}}_seg.nii"
    centroids: {{files: "{{scan}}.points", convention: {convention}}}
labels: {{scheme: canonical, state: unknown}}
"""


def blocks():
    """Return a mask of four blocks from head to tail, and a point within each in RAS+ mm."""
    label = np.zeros((26, 14, 12), np.uint8)
    points = {}
    for row, (name, value) in enumerate(LEVELS.items()):
        top = 25 - 6 * row
        label[top - 5 : top, 4:10, 3:9] = value
        x, y, z = (AFFINE_XYZ @ [5.3, 6.6, top - 2.75, 1])[:3]
        points[name] = (x, y, z)
    return label, points


def turned(points, before, after):
    """Rotate points with the patient, for an oblique file."""
    turn = after @ np.linalg.inv(before)
    return {name: tuple((turn @ [*point, 1])[:3].tolist()) for name, point in points.items()}


def write_scan(folder, axcodes, oblique_deg, convention):
    label, points = blocks()
    image = label.astype(np.int16) * 20
    form = NiftiForm(axcodes, "int16", oblique_deg=oblique_deg)
    mask_form = NiftiForm(axcodes, "uint8", oblique_deg=oblique_deg)
    name = f"{axcodes}_{oblique_deg:g}"
    write_nifti(folder / f"{name}_ct.nii", image, AFFINE_XYZ, form)
    write_nifti(folder / f"{name}_seg.nii", label, AFFINE_XYZ, mask_form)
    opened = nib.load(folder / f"{name}_ct.nii")
    placed = turned(points, AFFINE_XYZ, nib.as_closest_canonical(opened).affine)
    text = (
        lml_text(placed, opened.affine)
        if convention == "lml"
        else verse_json(placed, opened.shape, opened.affine, convention, None)
    )
    (folder / f"{name}.points").write_text(text)
    return name, placed


def lost_mm(tmp_path, convention, oblique_deg=0.0):
    """Ingest a scan in each of the 48 orientations; return how far centroids have moved."""
    raw = tmp_path / "raw"
    raw.mkdir()
    written = dict(write_scan(raw, code, oblique_deg, convention) for code in all_axcodes())
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(convention=convention))
    recipe = Recipe.load(str(tmp_path / "recipe.yaml"))
    report = ingest(recipe, discover(recipe, str(raw)), str(tmp_path / "s.zarr"))
    assert not report.failed, report.failed
    table = spinezarr.open(tmp_path / "s.zarr").table
    assert table.sizes["scan"] == 48
    found = table.annotated_centroid_zyx_mm.sel(vertebra=list(LEVELS), axis=["x", "y", "z"])
    expected = np.array([[written[s][v] for v in LEVELS] for s in table.scan.to_numpy()])
    assert (table.annotated_centroid_distance_mm.sel(vertebra=list(LEVELS)) == 0).all()
    return np.abs(found.to_numpy() - expected).max()


@pytest.mark.long
@pytest.mark.parametrize("oblique_deg", [0.0, 9.0])
@pytest.mark.parametrize(
    "convention", ["verse", "verse-2019-challenge", "verse-2020-challenge", "lml"]
)
def test_centroids_keep_their_place_in_every_orientation(
    tmp_path, monkeypatch, convention, oblique_deg
):
    if convention == "lml":
        monkeypatch.delitem(LEVELS, "T13")  # .lml files have no id for it
    assert lost_mm(tmp_path, convention, oblique_deg) < 1e-6
