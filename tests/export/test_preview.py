"""Tests of which slices of a scan are shown, and of the positions of its annotated centers."""

import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    NiftiForm,
    PhantomSpec,
    make_phantom,
    write_msr,
    write_nifti,
    write_verse_subjects,
)

AXES = {"sagittal": (0, 1), "coronal": (0, 2), "axial": (1, 2)}
"""Axes of (z, y, x) that run upward and across a panel."""
FLAT = {"sagittal": 2, "coronal": 1, "axial": 0}


def stored(folder, name, write):
    written = write(folder / "raw")
    recipe = Recipe.load(name)
    ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "a.zarr"))
    return spinezarr.open(folder / "a.zarr"), {scan.scan_id: scan for scan in written}


@pytest.fixture(scope="module")
def msr(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("msr"), "msr", write_msr)


def dots(axes):
    """Return the positions of dots in mm, upward and across."""
    found = [line.get_xydata()[0, ::-1] for line in axes.lines if line.get_marker() == "o"]
    return np.array(found).reshape(-1, 2)


def voxels_of(store, scan):
    """Return the voxel index (z, y, x) of each annotated center."""
    inverse = np.linalg.inv(store.scan(scan.scan_id).attrs["affine"])
    return {name: (inverse @ (*xyz, 1))[2::-1] for name, xyz in scan.centers_mm.items()}


def positions(store, scan_id):
    """Return the position of the first voxel and the spacing, (z, y, x)."""
    opened = store.scan(scan_id)
    first = np.array([float(opened[axis][0]) for axis in "zyx"])
    return first, np.array(opened.attrs["spacing_zyx_mm"])


@pytest.mark.parametrize("scan_id", ["2804506", "2805012", "4533808", "4511471"])
def test_centers_are_drawn_in_the_planes_of_their_voxels(msr, scan_id):
    store, written = msr
    voxels = np.array(list(voxels_of(store, written[scan_id]).values()))
    first, spacing = positions(store, scan_id)
    panels = {axes.get_label(): axes for axes in store.figure(scan_id).axes}
    for plane in ("sagittal", "coronal"):
        expected = (first + voxels * spacing)[:, AXES[plane]]
        np.testing.assert_allclose(dots(panels[plane]), expected, atol=0.01)


@pytest.mark.parametrize("scan_id", ["2804506", "2805012", "4533808", "4511471"])
def test_planes_of_a_scan_without_a_mask_pass_through_the_annotated_centers(msr, scan_id):
    store, written = msr
    voxels = np.array(list(voxels_of(store, written[scan_id]).values()))
    first, spacing = positions(store, scan_id)
    middle = voxels[len(voxels) // 2]
    at = {"axial": middle[0], "coronal": np.median(voxels[:, 1]), "sagittal": 0.0}
    at["sagittal"] = np.median(voxels[:, 2])
    figure = store.figure(scan_id)
    for axes in figure.axes:
        plane = axes.get_label()
        header = next(t.get_text() for t in axes.texts if plane in t.get_text())
        found = float(header.split("=")[1].removesuffix("mm"))
        flat = FLAT[plane]
        assert found == pytest.approx(first[flat] + spacing[flat] * round(at[plane]), abs=0.06)
    (dot,) = dots(next(axes for axes in figure.axes if axes.get_label() == "axial"))
    np.testing.assert_allclose(dot, (first + middle * spacing)[1:], atol=0.01)
    assert "dots: annotated centers" in figure.texts[-1].get_text()


def test_a_scan_with_neither_mask_nor_centers_is_cut_in_its_middle(tmp_path):
    store, _ = stored(tmp_path, "verse", write_verse_subjects)
    figure = store.figure("gl279_dir-cor")
    first, spacing = positions(store, "gl279_dir-cor")
    for axes in figure.axes:
        plane = axes.get_label()
        header = next(t.get_text() for t in axes.texts if plane in t.get_text())
        middle = store.scan("gl279_dir-cor").image.shape[FLAT[plane]] // 2
        expected = first[FLAT[plane]] + spacing[FLAT[plane]] * middle
        assert float(header.split("=")[1].removesuffix("mm")) == pytest.approx(expected, abs=0.06)
        assert not len(dots(axes))
    assert "dots" not in figure.texts[-1].get_text()
    labeled = {axes.get_label(): axes for axes in store.figure("verse225").axes}
    assert len(dots(labeled["sagittal"])) == 4, "the file leaves out L3 of five"
    names = [text.get_text() for text in labeled["sagittal"].texts]
    assert names.count("L2") == names.count("L3") == 1


def test_structures_have_the_names_of_the_recipe(tmp_path):
    phantom = make_phantom(PhantomSpec(shape_zyx=(40, 40, 40), spacing_zyx_mm=(4.0, 5.0, 5.0)))
    label = phantom.label.copy()
    label[5:35, 15:25, 2:12] = 30
    write_nifti(tmp_path / "raw/a_ct.nii", phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(tmp_path / "raw/a_seg.nii", label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="hips")
    labels = recipe.labels.model_copy(update={"structures": {"30": "left_hip"}})
    recipe = recipe.model_copy(update={"labels": labels})
    ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "s.zarr"))
    figure = spinezarr.open(tmp_path / "s.zarr").figure("a")
    drawn = {text.get_text() for axes in figure.axes for text in axes.texts}
    drawn |= {text.get_text() for text in figure.texts}
    assert "left hip" in drawn
    assert "30" not in drawn
