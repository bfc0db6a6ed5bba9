"""Exports of real files are read back by other programs, if the files lie next to the checkout."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

import spinezarr
from spinezarr.geometry import corner_distance_mm
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.recipe import Recipe

REAL = Path(__file__).parents[3] / "shared/data/real"

PAIRS = {
    "lidc-idri": ("lidc-idri/lidc-idri-0001_ct.nii.gz", "lidc-idri/lidc-idri-0001_seg_las.nii.gz"),
    "totalsegmentator": (
        "totalsegmentator/example_ct.nii.gz",
        "totalsegmentator/example_seg.nii.gz",
    ),
    "tptbox": ("tptbox/sub-ct_label-22_ct.nii.gz", "tptbox/sub-ct_seg-subreg_label-22_msk.nii.gz"),
    "verse": (
        "verse/sub-verse004_seg-vert_msk.nii.gz",
        "verse/sub-verse004_seg-vert_msk.nii.gz",
    ),
}
SERIES = {
    "dcmqi/image/*": "",
    "dcmqi/ct/*": "",
    "dcmqi/mf.dcm": "dcmqi/image/*",  # the same slices, in files that ITK can place
    "pad-byte/*": "",
    "empty-uid/*": "",
    "dirfile/*": "dirfile/I1*",
}
"""Files of a series, and the files that ITK reads as its slices."""
ROUNDED = r"places voxels up to (\S+) mm away from its source"


def stored(raw, out, image, label=None, **options):
    recipe = Recipe.from_pairs(image, label, name="pairs")
    found = discover(recipe, str(raw))
    report = ingest(recipe, found, str(out), options=ScanOptions(**options))
    assert not report.failed, report.failed
    return spinezarr.open(out)


def stored_pair(folder, image, label, **options):
    (folder / "raw").mkdir()
    for source, kind in ((image, "ct"), (label, "seg")):
        shutil.copy(REAL / source, folder / f"raw/a_{kind}.nii.gz")
    ends = ("{scan}_ct.nii.gz", "{scan}_seg.nii.gz")
    return stored(folder / "raw", folder / "a.zarr", *ends, **options)


def assert_same_as_itk(file, source):
    """Check with SimpleITK that the exported file has the voxels and positions of the source."""
    ours = SimpleITK.ReadImage(str(file))
    if isinstance(source, list):
        theirs = SimpleITK.ReadImage([str(path) for path in source])
    else:
        theirs = SimpleITK.ReadImage(str(source))
    np.testing.assert_array_equal(*map(SimpleITK.GetArrayViewFromImage, (ours, theirs)))
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=2e-5)
    np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-6)


def position_along_z(path):
    """Return the position of a slice along z; all slices here are axial."""
    return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


if REAL.is_dir():

    @pytest.mark.parametrize(
        "pair",
        [pytest.param(p, marks=[pytest.mark.long] if p == "lidc-idri" else []) for p in PAIRS],
    )
    def test_a_real_nifti_file_is_restored_bit_for_bit_and_read_alike(
        tmp_path, assert_read_alike, pair
    ):
        done = (
            stored_pair(tmp_path, *PAIRS[pair])
            .export_nifti(out=tmp_path, scans="a", compressed=False, overwrite=True)
            .done[0]
        )
        assert not done.notes
        for file, source in zip(done.files, PAIRS[pair], strict=True):
            assert_read_alike(file)
            assert_same_as_itk(file, REAL / source)
            found, expected = nib.load(file), nib.load(REAL / source)
            assert found.get_data_dtype() == expected.get_data_dtype()
            for image in (found, expected):
                image.raw = np.asarray(image.dataobj.get_unscaled())
            assert found.raw.tobytes() == expected.raw.tobytes()
            assert found.affine.tobytes() == expected.affine.tobytes()
            for name in ("get_qform", "get_sform"):
                pairs = [getattr(image.header, name)(coded=True) for image in (found, expected)]
                assert str(pairs[0]) == str(pairs[1])

    def test_a_real_metaimage_is_exported_as_itk_reads_it(tmp_path, assert_read_alike):
        store = stored(REAL / "elastix", tmp_path / "e.zarr", "{scan}.mha")
        (scan_id,) = store.table.scan.to_numpy().tolist()
        (file,) = store.export_nifti(out=tmp_path, scans=scan_id, overwrite=True).done[0].files
        assert_read_alike(file)
        assert nib.load(file).get_data_dtype() == np.int16
        assert_same_as_itk(file, REAL / f"elastix/{scan_id}.mha")

    @pytest.mark.parametrize("files", SERIES)
    def test_a_real_dicom_series_is_exported_as_int16_as_itk_reads_it(
        tmp_path, assert_read_alike, files
    ):
        (tmp_path / "raw/a").mkdir(parents=True)
        for path in (REAL / "dicom").glob(files):
            shutil.copy(path, tmp_path / "raw/a")
        store = stored(tmp_path / "raw", tmp_path / "d.zarr", "{scan}/")
        done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
        (file,) = done.files
        assert_read_alike(file)
        assert nib.load(file).get_data_dtype() == np.int16
        rounded = [float(re.search(ROUNDED, note)[1]) for note in done.notes]
        meant = np.array(store.scan("a").attrs["image_source"]["affine_ijk"])
        found = nib.load(file)
        apart = corner_distance_mm(found.shape, found.affine, meant)
        assert apart <= sum(rounded) <= 1e-4
        slices = [*(REAL / "dicom").glob(SERIES[files] or files)]
        assert_same_as_itk(file, sorted(map(str, slices), key=position_along_z))
