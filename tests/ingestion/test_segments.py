"""Masks whose segments have names, from discovery to the comparison with the source."""

import json
import shutil

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

import spinezarr
from spinezarr.errors import RecipeError
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Grid
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    NiftiForm,
    PhantomSpec,
    make_phantom,
    usual_levels,
    vertebra_masks,
    write_dicom_objects,
    write_nifti,
    write_seg_nrrd,
    write_spine_mets,
)
from spinezarr.testing.orientation import oriented
from spinezarr.verify.source import compare_with_source
from spinezarr.verify.store import verify_store

SEGMENTS = {f"L{n} vertebra": f"L{n}" for n in range(1, 6)}
RECIPE = """
name: slicer
title: t
license: l
citation: c
layouts:
  all:
    description: d
    image: "{scan}_ct.nii.gz"
    label: "{scan}.seg.nrrd"
    segments: SEGMENTS
labels: {scheme: canonical, state: unknown}
"""


def recipe_of(folder, segments=SEGMENTS):
    (folder / "r.yaml").write_text(RECIPE.replace("SEGMENTS", json.dumps(segments)))
    return Recipe.load(str(folder / "r.yaml"))


def run(recipe, raw, out, **options):
    return ingest(recipe, discover(recipe, str(raw)), str(out), **options)


@pytest.fixture
def slicer(tmp_path):
    """A NIfTI image with a cropped segmentation in other axis directions."""
    raw = tmp_path / "raw"
    phantom = make_phantom(PhantomSpec(5, (36, 36, 40), (6.0, 5.0, 4.5), usual_levels("L1", "L5")))
    write_nifti(raw / "a_ct.nii.gz", phantom.image, phantom.affine_xyz, NiftiForm("RAS"))
    _, affine = oriented(phantom.label, phantom.affine_xyz, "PIL", 0.0)
    write_seg_nrrd(raw / "a.seg.nrrd", vertebra_masks(phantom, "PIL"), affine, crop=True)
    return tmp_path, raw, phantom


def test_a_segmentation_of_slicer_is_stored_and_compared_with_its_source(slicer):
    folder, raw, phantom = slicer
    report = run(recipe_of(folder), raw, folder / "s.zarr")
    assert report.done == ("a",), report.failed
    stored = spinezarr.open(folder / "s.zarr").scan("a")
    np.testing.assert_array_equal(stored.label.to_numpy(), phantom.label)
    source = stored.attrs["label_source"]
    assert dict(source["segments"]) == {f"L{n} vertebra": 19 + n for n in range(1, 6)}
    assert compare_with_source(str(folder / "s.zarr"), [str(raw)], ["a"]).faults == ()
    write_seg_nrrd(
        raw / "a.seg.nrrd",
        {f"L{n} vertebra": phantom.label.T == 20 for n in (1, 2)},
        phantom.affine_xyz,
    )
    assert compare_with_source(str(folder / "s.zarr"), [str(raw)], ["a"]).faults


def test_other_names_in_the_recipe_read_the_mask_again(slicer):
    folder, raw, phantom = slicer
    run(recipe_of(folder), raw, folder / "s.zarr")
    assert run(recipe_of(folder), raw, folder / "s.zarr").skipped == ("a",)
    changed = recipe_of(folder, {**SEGMENTS, "L5 vertebra": "L6"})
    assert run(changed, raw, folder / "s.zarr").done == ("a",)
    stored = spinezarr.open(folder / "s.zarr").scan("a").label.to_numpy()
    np.testing.assert_array_equal(stored == 25, phantom.label == 24)


def test_a_segmentation_does_not_pass_for_labels(slicer):
    folder, raw, _ = slicer
    pairs = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}.seg.nrrd", name="pairs")
    (failed,) = run(pairs, raw, folder / "s.zarr").failed
    assert "is a segmentation of 3D Slicer with 5 named segments: 'L1 vertebra'" in failed.reason
    assert "Name them by 'segments'" in failed.reason


def test_a_store_with_segments_is_whole_and_one_without_has_no_such_key(slicer, tmp_path):
    folder, raw, phantom = slicer
    run(recipe_of(folder), raw, folder / "s.zarr")
    assert not verify_store(str(folder / "s.zarr")).faults
    write_nifti(raw / "b_ct.nii.gz", phantom.image, phantom.affine_xyz, NiftiForm("RAS"))
    write_nifti(raw / "b_seg.nii.gz", phantom.label, phantom.affine_xyz, NiftiForm("RAS"))
    plain = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
    run(plain, raw, folder / "p.zarr")
    assert "segments" not in spinezarr.open(folder / "p.zarr").scan("b").attrs["label_source"]


def test_pseudonymized_stores_keep_the_names_of_the_recipe_only(slicer):
    folder, raw, _ = slicer
    masks = {"Jane Doe": np.ones((2, 2, 2), bool), "L1 vertebra": np.ones((2, 2, 2), bool)}
    grid = open_volume(LocalFileSystem(), str(raw / "a_ct.nii.gz")).grid
    write_seg_nrrd(raw / "a.seg.nrrd", masks, Grid(grid.shape_ijk, grid.affine_ijk).affine_ijk)
    run(recipe_of(folder), raw, folder / "s.zarr")
    for path in (folder / "s.zarr").rglob("*.json"):
        assert b"Jane" not in path.read_bytes()


def test_reports_and_structures_beside_a_ct_are_no_masks_and_two_masks_are_refused(tmp_path):
    raw, recipe = tmp_path / "raw", Recipe.load("spine-mets-ct-seg")
    first, _ = write_spine_mets(raw)
    study = first.image_path.parent
    found = discover(recipe, str(raw))
    uses = {use.kind: use.files for use in found.patterns}
    assert uses == {"image": 2, "mask": 2}
    shutil.copytree(first.label_path.parent, study / "301.000000-Copy-1")
    found = discover(recipe, str(raw))
    (refused,) = found.refused
    assert "2 files fit" in refused.reason
    shutil.rmtree(study / "301.000000-Copy-1")
    shutil.rmtree(first.label_path.parent)
    write_dicom_objects(study / "SR", "SR")
    report = run(recipe, raw, tmp_path / "s.zarr")
    (failed,) = report.failed
    assert "no Segmentation" in failed.reason
    assert "Comprehensive 3D SR" in failed.reason or "SR Storage" in failed.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('label: "{scan}.seg.nrrd"', ""), "'segments' goes with 'label'"),
        (("segments: SEGMENTS", 'segments: SEGMENTS\n    values: {"1": L1}'), "either 'values'"),
        (("SEGMENTS", "{L1 vertebra: L9}"), "neither a vertebra"),
        (("SEGMENTS", '{"": L1}'), "segments"),
    ],
)
def test_mistakes_with_segments_are_named(tmp_path, change, words):
    text = RECIPE.replace(*change).replace("SEGMENTS", json.dumps(SEGMENTS))
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        Recipe.load(str(tmp_path / "r.yaml"))
