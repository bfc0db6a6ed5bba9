"""Types, axes, masks and headers of real files, if they lie next to the checkout."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import xarray as xr
import zarr
from raw_files import canonical_zyx

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Labels, Layout, Recipe
from spinezarr.recipe.layout import LabelParts
from spinezarr.verify.source import compare_with_source
from spinezarr.verify.store import verify_store

REAL = Path(__file__).parents[3] / "shared/data/real"
LIDC = REAL / "lidc-idri/lidc-idri-0001_ct.nii.gz"
LIDC_MASK = REAL / "lidc-idri/lidc-idri-0001_seg.nii.gz"
EXAMPLE = REAL / "totalsegmentator/example_ct.nii.gz"
EXAMPLE_MASK = REAL / "totalsegmentator/example_seg.nii.gz"
PATCH = REAL / "tptbox/sub-ct_label-22_ct.nii.gz"
PATCH_MASK = REAL / "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz"
VERSE_MASK = REAL / "verse/sub-verse004_seg-vert_msk.nii.gz"
LUNG = REAL / "elastix/3DCT_lung_baseline_small.mha"
LEVELS = {"L5": 24, "L4": 23, "L3": 22, "L2": 21, "L1": 20, "T12": 19, "T11": 18, "C1": 1}


def run(folder, recipe):
    report = ingest(recipe, discover(recipe, str(folder)), str(folder / "s.zarr"))
    assert not report.failed, report.failed
    url = str(folder / "s.zarr")
    assert not verify_store(url).faults
    assert compare_with_source(url, [str(folder)], list(report.done)).faults == ()
    return report, spinezarr.open(url)


def images(pattern):
    return Recipe.from_pairs(pattern, None, name="images")


def link(folder, **files):
    for name, path in files.items():
        (folder / f"{name}{''.join(path.suffixes[-2:])}").symlink_to(path)


if REAL.is_dir():

    def test_an_8_bit_ct_with_a_fractional_slope_keeps_its_bytes(tmp_path):
        values = np.asanyarray(nib.load(LIDC).dataobj)[100:260, 150:310]
        numbers = np.clip(np.rint((values + 10) / 0.3), 0, 255).astype(np.uint8)
        written = nib.Nifti1Image(numbers, nib.load(LIDC).affine)
        written.header.set_slope_inter(0.3, -10)
        nib.save(written, tmp_path / "a.nii.gz")
        report, store = run(tmp_path, images("{scan}.nii.gz"))
        assert "stored as the file's uint8 with its slope 0.3 and intercept -10" in " ".join(
            report.notes["a"]
        )
        array = zarr.open_array(f"{tmp_path}/s.zarr/scans/a/image", mode="r")
        assert array.dtype == np.uint8
        expected = canonical_zyx(tmp_path / "a.nii.gz")
        for scan in (xr.open_zarr(f"{tmp_path}/s.zarr/scans/a"), store.scan("a")):
            assert scan.image.dtype == expected.dtype == np.float64
            assert scan.image.to_numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
        model = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")))
        np.testing.assert_allclose(np.sort(model, None), np.sort(expected, None), rtol=1e-6)
        (file,) = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files
        found, source = nib.load(file), nib.load(tmp_path / "a.nii.gz")
        assert found.dataobj.slope == source.dataobj.slope
        np.testing.assert_array_equal(found.dataobj.get_unscaled(), source.dataobj.get_unscaled())
        assert found.affine.tobytes() == source.affine.tobytes()

    def test_real_series_of_one_volume_are_read_as_the_volume(tmp_path):
        for name, path, ending in (("ct", EXAMPLE, ".nii.gz"), ("lung", LUNG, ".mha")):
            image = SimpleITK.ReadImage(str(path))
            SimpleITK.WriteImage(SimpleITK.JoinSeries([image]), str(tmp_path / f"{name}{ending}"))
        for pattern, name, path in (("{scan}.nii.gz", "ct", EXAMPLE), ("{scan}.mha", "lung", LUNG)):
            report, store = run(tmp_path, images(pattern).model_copy(update={"name": name}))
            assert report.done == (name,)
            model = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
            # ITK uses LPS+ and the store RAS+, so x and y are reversed.
            expected = SimpleITK.GetArrayFromImage(model)[:, ::-1, ::-1]
            np.testing.assert_array_equal(store.scan(name).image, expected)
            shutil.rmtree(tmp_path / "s.zarr")

    def test_real_masks_that_nibabel_scaled_are_rounded_back(tmp_path):
        for name, ct, mask in (("a", EXAMPLE, EXAMPLE_MASK), ("b", PATCH, PATCH_MASK)):
            link(tmp_path, **{f"{name}_ct": ct})
            source = nib.load(mask)
            written = nib.Nifti1Image(np.asarray(source.dataobj, np.float64), source.affine)
            written.set_data_dtype(np.int16)
            nib.save(written, tmp_path / f"{name}_seg.nii.gz")
        recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="masks")
        report, store = run(tmp_path, recipe)
        for name, mask in (("a", EXAMPLE_MASK), ("b", PATCH_MASK)):
            assert any("mask voxels differed from whole numbers" in n for n in report.notes[name])
            np.testing.assert_array_equal(store.scan(name).label, canonical_zyx(mask))

    def test_the_real_verse_mask_of_floats_is_exact_and_causes_no_note(tmp_path):
        mask = nib.load(VERSE_MASK)
        bone = (np.asanyarray(mask.dataobj) > 0).astype(np.int16)
        nib.save(nib.Nifti1Image(bone, mask.affine), tmp_path / "a_ct.nii.gz")
        (tmp_path / "a_seg.nii.gz").symlink_to(VERSE_MASK)
        recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="masks")
        report, store = run(tmp_path, recipe)
        assert not any("rounded" in note or "mask:" in note for note in report.notes["a"])
        np.testing.assert_array_equal(store.scan("a").label, canonical_zyx(VERSE_MASK))
        rules = {finding.rule for finding in store.audit().findings}
        assert not rules & {"spacing-conflict", "qform-conflict", "sheared", "unplaced"}

    def test_parts_of_a_real_mask_are_merged_and_absent_ones_listed(tmp_path):
        (tmp_path / "a.nii.gz").symlink_to(EXAMPLE)
        mask = nib.load(EXAMPLE_MASK)
        values = np.asanyarray(mask.dataobj)
        (tmp_path / "a").mkdir()
        for name, value in LEVELS.items():
            if (values == value).any():
                part = nib.Nifti1Image((values == value).astype(np.uint8), mask.affine)
                nib.save(part, tmp_path / f"a/{name}.nii.gz")
        parts = LabelParts(file="{scan}/{part}.nii.gz", values={name: name for name in LEVELS})
        recipe = Recipe(
            name="parts",
            title="parts",
            license="",
            citation="",
            layouts={"parts": Layout(description="", image=("{scan}.nii.gz",), label_parts=parts)},
            labels=Labels(scheme="canonical", state="unknown"),
        )
        report, store = run(tmp_path, recipe)
        assert report.notes["a"][-1] == (
            "parts of the mask that are absent, so their voxels are background: C1 (1 of 8)"
        )
        named = np.isin(values, list(LEVELS.values()))
        expected = nib.as_closest_canonical(nib.Nifti1Image(values * named, mask.affine))
        np.testing.assert_array_equal(
            store.scan("a").label, np.asanyarray(expected.dataobj).transpose(2, 1, 0)
        )
        inverted = nib.Nifti1Image((values != 24).astype(np.uint8), mask.affine)
        nib.save(inverted, tmp_path / "a/L5.nii.gz")
        (failed,) = ingest(recipe, discover(recipe, str(tmp_path)), str(tmp_path / "s.zarr")).failed
        assert failed.reason.startswith("a/L5.nii.gz: its value 1 fills 99")

    @pytest.mark.parametrize(
        "paths",
        [
            {"example": EXAMPLE, "patch": PATCH},
            pytest.param({"lidc": LIDC}, marks=pytest.mark.long),
        ],
        ids=["small", "lidc"],
    )
    def test_real_scans_are_stored_exactly_and_extremes_are_at_most_noted(tmp_path, paths):
        link(tmp_path, **paths)
        _report, store = run(tmp_path, images("{scan}.nii.gz"))
        assert set(store.table.image_stored_dtype.to_numpy()) == {"int16"}
        for name, path in paths.items():
            np.testing.assert_array_equal(store.scan(name).image, canonical_zyx(path))
        rules = ("extreme-values", "not-finite", "spacing-conflict", "qform-conflict", "sheared")
        findings = [finding for finding in store.audit().findings if finding.rule in rules]
        found = {(f.scan_id, f.rule, f.severity, "-2048" in f.text) for f in findings}
        assert found == ({("lidc", "extreme-values", "info", True)} if "lidc" in paths else set())
        assert len(findings) == len(found)
