"""Further masks as NIfTI files and OME-Zarr labels: voxels, positions, names and licenses."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import zarr
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import UsageError
from spinezarr.testing import NiftiForm, all_axcodes, write_nifti

SCAN, OTHER = "liver_0", "HN_P001"


def zyx(path):
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0)


@pytest.fixture
def copy(ctspine1k_url, tmp_path):
    """Return a copy of the store; one scan has a written mask, and one from a file."""
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "copy.zarr"))
    rng = np.random.default_rng(4)
    written = rng.integers(0, 256, store.scan(SCAN).image.shape, np.uint8)
    store.write_labels(SCAN, "written", written, scheme="spineps", license="CC BY-ND 4.0")
    parts = rng.integers(0, 50, store.scan(SCAN).image.shape, np.uint8)
    return store, written, parts


def run(*words, code=0):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output + repr(result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("axcodes", all_axcodes()[::11])
def test_a_mask_from_a_file_comes_back_as_it_was(copy, tmp_path, axcodes):
    store, _, parts = copy
    source = tmp_path / f"{SCAN}.nii.gz"
    affine = store._reader.scan(SCAN).affine
    write_nifti(source, parts, affine, NiftiForm(axcodes, "int16"))
    store.add_labels("parts", tmp_path / "{scan}.nii.gz", scheme="subregions")
    store = spinezarr.open(store.url)
    out = tmp_path / "out"
    store.export_nifti(out=out, layer=["parts", "label"], scans=[SCAN, OTHER])
    assert {path.name for path in out.iterdir()} == {
        f"{SCAN}_ct.nii.gz",
        f"{SCAN}_seg.nii.gz",
        f"{SCAN}_seg-parts.nii.gz",
        f"{OTHER}_ct.nii.gz",
        f"{OTHER}_seg.nii.gz",
    }
    before, after = nib.load(source), nib.load(out / f"{SCAN}_seg-parts.nii.gz")
    assert before.get_data_dtype() == after.get_data_dtype()
    np.testing.assert_array_equal(before.dataobj, after.dataobj)
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_a_written_mask_lies_on_the_exported_image(copy, tmp_path, exact):
    store, written, _ = copy
    report = store.export_nifti(
        out=tmp_path / "out", layer="written", scans=SCAN, exact=exact, include_restricted=True
    )
    assert (report.left_out_masks, report.failed) == ({}, {})
    image, mask = (nib.load(path) for path in report.done[0].files)
    np.testing.assert_array_equal(image.affine, mask.affine)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(zyx(report.done[0].files[1]), written)
    itk = [SimpleITK.ReadImage(path) for path in report.done[0].files]
    assert itk[0].GetOrigin() == itk[1].GetOrigin()
    assert itk[0].GetDirection() == itk[1].GetDirection()


def test_a_mask_that_may_not_be_shared_is_left_out(copy, tmp_path):
    store, written, _ = copy
    words = ("export", "nifti", store.url, "--out", tmp_path / "out", "--scan", SCAN)
    masks = ("--layer", "label", "--layer", "written")
    output = run(*words, *masks)
    assert (
        "Left out the mask written of 1 scan, as its license allows no derivatives (CC BY-ND 4.0)"
    ) in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{SCAN}_ct.nii.gz",
        f"{SCAN}_seg.nii.gz",
    }
    run(*words, *masks, "--include-restricted", "--overwrite")
    np.testing.assert_array_equal(zyx(tmp_path / f"out/{SCAN}_seg-written.nii.gz"), written)
    run(*words, "--layer", "written", "--layer", "written", code=2)
    with pytest.raises(UsageError, match="layer: 'A b' cannot be the name of a mask"):
        store.export_nifti(out=tmp_path / "x", layer="A b")


def test_ome_zarr_images_have_each_mask_that_may_be_shared(copy, tmp_path):
    store, written, parts = copy
    store.write_labels(SCAN, "parts", parts, scheme={1: "L1", 2: "left rib"})
    store = spinezarr.open(store.url)
    report = store.export_ome_zarr(out=tmp_path / "out", scans=[SCAN, OTHER])
    assert report.left_out_masks == {"written": {SCAN: "CC BY-ND 4.0"}}
    image = zarr.open_group(tmp_path / f"out/{SCAN}.ome.zarr", mode="r")
    assert image["labels"].attrs["ome"]["labels"] == ["vertebrae", "parts"]
    np.testing.assert_array_equal(image["labels/parts/0"][:], parts)
    other = zarr.open_group(tmp_path / f"out/{OTHER}.ome.zarr", mode="r")
    assert other["labels"].attrs["ome"]["labels"] == ["vertebrae"]
    named = image["labels/parts"].attrs["ome"]["image-label"]["properties"]
    assert named[:4] == [
        {"label-value": 0, "name": "background"},
        {"label-value": 1, "name": "L1"},
        {"label-value": 2, "name": "left rib"},
        {"label-value": 3, "name": "value 3"},
    ]
    store.export_ome_zarr(out=tmp_path / "all", scans=SCAN, include_restricted=True)
    image = zarr.open_group(tmp_path / f"all/{SCAN}.ome.zarr", mode="r")
    np.testing.assert_array_equal(image["labels/written/0"][:], written)
