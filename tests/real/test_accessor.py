"""Parts of a real CT are what nibabel cuts out of its files, if these lie next to the checkout."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.vertebrae import VALUE_OF_NAME

REAL = Path(__file__).parents[3] / "shared/data/real"
PAIRS = {
    "lidc-idri": ("lidc-idri/lidc-idri-0001_ct.nii.gz", "lidc-idri/lidc-idri-0001_seg_las.nii.gz"),
    "totalsegmentator": (
        "totalsegmentator/example_ct.nii.gz",
        "totalsegmentator/example_seg.nii.gz",
    ),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    """Ingest a CT and its mask, and return the store and both files."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is absent")
    folder = tmp_path_factory.mktemp("real")
    (folder / "raw").mkdir()
    for source, kind in zip(PAIRS[request.param], ("ct", "seg"), strict=True):
        shutil.copy(REAL / source, folder / f"raw/a_{kind}.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "a.zarr"))
    assert not report.failed, report.failed
    files = [nib.load(folder / f"raw/a_{kind}.nii.gz") for kind in ("ct", "seg")]
    return folder / "a.zarr", *files


def assert_same(part, model):
    """Compare two images with any axes, of which one may be larger at the ends."""
    part, model = map(nib.as_closest_canonical, (part, model))
    np.testing.assert_array_equal(np.asarray(part.dataobj), np.asarray(model.dataobj))
    np.testing.assert_allclose(part.affine, model.affine, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("way", ["spinezarr", "plain xarray"])
def test_the_box_of_a_vertebra_is_cut_out_of_the_source(pair, tmp_path, way):
    url, ct, seg = pair
    scan = spinezarr.open(url).scan("a")
    if way == "plain xarray":
        scan = xr.open_zarr(url / "scans" / "a")
    part = scan.spine.sel_vertebra("L1", margin_mm=12)
    for layer, source in ((None, ct), ("label", seg)):
        # The same box in the axes of the file: the voxels whose centers lie between the ends.
        voxels = np.argwhere(np.asarray(seg.dataobj) == VALUE_OF_NAME["L1"])
        reach = 12 / np.array(seg.header.get_zooms())
        low = np.maximum(np.floor(voxels.min(axis=0) - reach), 0).astype(int)
        high = np.minimum(np.ceil(voxels.max(axis=0) + reach), np.array(seg.shape) - 1).astype(int)
        if source is ct:
            ends = np.linalg.inv(ct.affine) @ seg.affine @ np.array([[*low, 1], [*high, 1]]).T
            low, high = np.sort(np.rint(ends[:3]).astype(int), axis=1).T
        slices = tuple(slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        part.spine.to_nifti(tmp_path / "part.nii.gz", layer)
        file = nib.load(tmp_path / "part.nii.gz")
        assert_same(file, source.slicer[slices])
        assert nib.aff2axcodes(file.affine) == nib.aff2axcodes(source.affine)


def test_a_part_of_a_ct_is_resampled_as_the_whole(pair, tmp_path):
    url, *_ = pair
    store = spinezarr.open(url)
    report = store.derive(out=tmp_path / "b.zarr", spacing_mm=(4, 2, 2))
    assert not report.failed
    expected = spinezarr.open(tmp_path / "b.zarr").scan("a")
    found = store.scan("a").spine.resample((4, 2, 2))
    for name in ("image", "label"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found.spine.affine, expected.spine.affine)
