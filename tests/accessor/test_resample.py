"""A resampled dataset has the voxels, coordinates and affine of a derived store."""

import pickle

import dask.array as da
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from opened_scans import WAYS
from small_scans import SCANS

import spinezarr
from spinezarr.accessor.dataset_grid import DatasetGrid
from spinezarr.accessor.resampled import resampled
from spinezarr.derive.parameters import Derivation
from spinezarr.errors import UsageError

SPACING = (3.1, 0.9, 1.7)


@pytest.fixture(scope="module", params=[True, False], ids=["filter", "no filter"])
def derived(small, request, tmp_path_factory):
    """Return a derived store, and whether its images were filtered."""
    out = tmp_path_factory.mktemp("derived") / "a.zarr"
    report = spinezarr.open(small.url).derive(out=out, spacing_mm=SPACING, antialias=request.param)
    assert not report.failed
    return spinezarr.open(out), request.param


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SCANS)
def test_a_resampled_scan_is_the_derived_one(scans, derived, tmp_path, way, name):
    store, antialias = derived
    expected = store.scan(name)
    found = scans[way][name].spine.resample(SPACING, antialias=antialias)
    assert {*found.variables} == {*expected.variables}
    for variable in expected.variables:
        np.testing.assert_array_equal(found[variable], expected[variable])
        assert found[variable].dtype == expected[variable].dtype
    for attribute in ("affine", "shape_zyx", "spacing_zyx_mm", "scan_id", "patient_id", "license"):
        assert found.attrs[attribute] == expected.attrs[attribute]
    np.testing.assert_array_equal(found.spine.affine, expected.spine.affine)
    is_lazy = way not in {"without dask", "loaded"}
    assert isinstance(found.image.data, da.Array) == is_lazy
    for layer in (None, "label", "ribs"):
        if (layer or "image") in found:
            for dataset, file in ((found, "found.nii"), (expected, "expected.nii")):
                dataset.spine.to_nifti(tmp_path / file, layer)
            assert (tmp_path / "found.nii").read_bytes() == (tmp_path / "expected.nii").read_bytes()


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["box", "oblique", "line"]),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    antialias=st.booleans(),
    block_bytes=st.sampled_from([1, 2000, 10**9]),
    lazy=st.booleans(),
)
def test_blocks_do_not_change_voxels(scans, name, spacing, antialias, block_bytes, lazy):
    dataset = scans["spinezarr" if lazy else "loaded"][name]
    derivation = Derivation(target_zyx_mm=spacing, image_filter="gaussian" if antialias else None)
    found = resampled(dataset, DatasetGrid.of(dataset), derivation, block_bytes)
    whole = scans["loaded"][name].spine.resample(spacing, antialias=antialias)
    xr.testing.assert_identical(found.compute(), whole)


def test_a_part_is_resampled_on_a_grid_of_its_own(scans):
    part = scans["spinezarr"]["oblique"].isel(z=slice(4, None), y=slice(None, None, 2))
    found = part.spine.resample(2.0, antialias=False)
    np.testing.assert_allclose(found.spine.affine[:3, 3], part.spine.affine[:3, 3])
    corner = np.array(found.image.shape[::-1]) - 1
    index = np.linalg.inv(part.spine.affine) @ found.spine.affine @ (*corner, 1)
    assert (index[:3] <= np.array(part.image.shape[::-1]) - 1 + 1e-6).all()
    source = nib.Nifti1Image(
        part.image.to_numpy().transpose(2, 1, 0).astype(float), part.spine.affine
    )
    from nibabel.processing import resample_from_to  # noqa: PLC0415  needs SciPy

    model = resample_from_to(
        source, (found.image.shape[::-1], found.spine.affine), order=1, mode="nearest"
    )
    difference = found.image.to_numpy() - model.get_fdata().transpose(2, 1, 0)
    assert np.abs(difference).max() <= 0.5 + 0.02  # integers are rounded


def test_a_reversed_dataset_is_resampled_with_increasing_positions(scans):
    scan = scans["spinezarr"]["box"]
    turned = scan.isel(z=slice(None, None, -1), x=slice(None, None, -1))
    xr.testing.assert_identical(
        turned.spine.resample(1.5).compute(), scan.spine.resample(1.5).compute()
    )


def test_other_variables_are_kept_or_refused(scans):
    scan = scans["loaded"]["box"].assign(age=61, score=("patient", [1.0]))
    found = scan.assign(heat=scan.image.astype("f4")).spine.resample(2)
    assert found.age == 61
    assert found.score.dims == ("patient",)
    assert np.abs(found.heat - found.image).max() <= 0.5 + 0.02
    with pytest.raises(UsageError, match=r"'height' has the dimensions \(z\).*drop_vars"):
        scan.assign(height=("z", scan.z.to_numpy())).spine.resample(2)


def test_a_spacing_must_be_a_length(scans):
    for wrong in (0, -1, (1, 2), "1", float("nan")):
        with pytest.raises(UsageError, match="spacing"):
            scans["spinezarr"]["box"].spine.resample(wrong)
    same = scans["spinezarr"]["box"].spine.resample((2.5, 0.8, 0.7))
    np.testing.assert_array_equal(same.image, scans["spinezarr"]["box"].image)


def test_a_lazy_dataset_can_be_sent_to_another_process(scans):
    found = scans["spinezarr"]["box"].spine.resample(2)
    expected = scans["loaded"]["box"].spine.resample(2)
    xr.testing.assert_identical(pickle.loads(pickle.dumps(found)).compute(), expected)  # noqa: S301  ours
