"""Predictions are written as NIfTI on the grid of the image's source file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import spinezarr
from spinezarr.errors import UnknownScanError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import DicomForm, NiftiForm, write_dicom_series, write_nifti

AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -700.7], [0, 0, 0, 1]])
SHAPE = (13, 5, 7)


@pytest.fixture(scope="module", params=["RAS", "LPS", "PIR", "SAL"])
def pair(request, tmp_path_factory):
    """Return a store of one scan, and its source file in some orientation."""
    folder = tmp_path_factory.mktemp("raw")
    image = np.random.default_rng(1).integers(-1024, 3072, SHAPE).astype(np.int16)
    form = NiftiForm(request.param, "int16", slope=0.5, inter=-3)
    write_nifti(folder / "a_ct.nii", image, AFFINE, form)
    recipe = Recipe.from_pairs("{scan}_ct.nii", None, name="a")
    url = str(folder / "a.zarr")
    report = ingest(recipe, discover(recipe, str(folder)), url)
    assert not report.failed, report.failed
    return spinezarr.open(url), folder / "a_ct.nii"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_predicted_values_lie_on_their_voxels_in_the_source_file(
    pair, tmp_path, assert_read_alike, suffix
):
    store, source = pair
    image = store.scan("a").image.to_numpy()
    path = tmp_path / f"bone{suffix}"
    store.write_nifti("a", image > 300, path)
    found, file = nib.load(path), nib.load(source)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(file.dataobj) > 300)
    assert found.get_data_dtype() == np.uint8
    assert found.affine.tobytes() == file.affine.tobytes()
    assert_read_alike(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("dtype", "written"),
    [("float32", "float32"), ("float16", "float32"), ("uint16", "uint16"), (">i2", ">i2")],
)
def test_types_of_predictions_are_kept(pair, tmp_path, dtype, written):
    store, _ = pair
    values = (np.random.default_rng(2).random(store.scan("a").image.shape) * 100).astype(dtype)
    for _ in range(2):  # a file that is there is replaced
        store.write_nifti("a", values, tmp_path / "a.nii")
    file = nib.load(tmp_path / "a.nii")
    assert file.get_data_dtype() == np.dtype(written)
    canonical = np.asarray(nib.as_closest_canonical(file).dataobj)
    np.testing.assert_array_equal(canonical.transpose(2, 1, 0), values.astype(written))


@pytest.mark.parametrize(
    ("values", "written"),
    [([0, 28], "uint8"), ([-1, 28], "int8"), ([0, 300], "int16"), ([0, 2**31], "uint32")],
)
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_64_bit_integers_become_a_type_that_programs_read(
    pair, tmp_path, assert_read_alike, dtype, values, written
):
    """``argmax`` returns such integers."""
    store, _ = pair
    numbers = np.resize(
        np.abs(values) if dtype == "uint64" else values, store.scan("a").image.shape
    )
    store.write_nifti("a", numbers.astype(dtype), tmp_path / "a.nii.gz")
    file = nib.load(tmp_path / "a.nii.gz")
    assert file.get_data_dtype() == ("uint8" if numbers.min() == 1 else written)
    assert_read_alike(tmp_path / "a.nii.gz")
    canonical = np.asarray(nib.as_closest_canonical(file).dataobj)
    np.testing.assert_array_equal(canonical.transpose(2, 1, 0), numbers)


def test_predictions_lie_on_the_grid_of_the_exported_image(tmp_path, assert_read_alike):
    image = np.random.default_rng(1).integers(-1024, 3072, SHAPE).astype(np.int16)
    write_dicom_series(tmp_path / "raw/a", image, AFFINE, DicomForm())
    recipe = Recipe.from_pairs("{scan}/", None, name="a")
    report = ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "a.zarr"))
    assert not report.failed, report.failed
    store = spinezarr.open(tmp_path / "a.zarr")
    store.write_nifti("a", store.scan("a").image, tmp_path / "mine.nii.gz")
    (exported,) = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files
    assert (tmp_path / "mine.nii.gz").read_bytes() == Path(exported).read_bytes()
    assert_read_alike(exported)


def test_merged_predictions_are_written(pair, tmp_path):
    store, source = pair
    grid = store.grid("a", 4, batch_size=8)
    merger = grid.merger("crop")
    for batch in grid:
        merger.add(batch, batch.image[:, None])
    store.write_nifti("a", merger.merge()[0], tmp_path / "a.nii")
    found, file = nib.load(tmp_path / "a.nii"), nib.load(source)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(file.dataobj))


def test_invalid_predictions_are_refused(pair, tmp_path):
    store, _ = pair
    values = np.zeros(store.scan("a").image.shape, np.uint8)
    with pytest.raises(UsageError, match=r"values of shape \(1, .* which has \("):
        store.write_nifti("a", values[None], tmp_path / "a.nii")
    with pytest.raises(UsageError, match=r"must end in \.nii or \.nii\.gz"):
        store.write_nifti("a", values, tmp_path / "a.mha")
    with pytest.raises(UsageError, match="NIfTI has no type datetime64"):
        store.write_nifti("a", values.astype("datetime64[s]"), tmp_path / "a.nii")
    with pytest.raises(UsageError, match=r"values from 0 to 2305843009213693952 fit no type"):
        store.write_nifti("a", np.resize([0, 2**61], values.shape), tmp_path / "a.nii")
    with pytest.raises(UnknownScanError):
        store.write_nifti("b", values, tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())
