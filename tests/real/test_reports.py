"""Reports about real files that are not read, and estimated sizes of real scans as ``.nii.gz``."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import spinezarr
from spinezarr.export.nii_gz_size import estimate_nii_gz_bytes
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for

REAL = Path(__file__).parents[3] / "shared/data/real"


def run(recipe, raw, out):
    return ingest(recipe, discover(recipe, str(raw)), str(out))


if REAL.is_dir():

    def test_the_error_of_a_dicom_segmentation_says_how_it_is_read(tmp_path):
        folder = tmp_path / "raw" / "p"
        shutil.copytree(REAL / "dicom/dcmqi/ct", folder / "ct")
        (folder / "seg").mkdir()
        shutil.copy(REAL / "dicom/dcmqi/liver.dcm", folder / "seg")
        recipe = Recipe.from_pairs("{scan}/ct/", "{scan}/seg/", name="seg")
        (scan,) = discover(recipe, str(tmp_path / "raw")).scans
        assert (scan.image, scan.label) == ("p/ct/", "p/seg/")
        (failed,) = run(recipe, tmp_path / "raw", tmp_path / "s.zarr").failed
        assert "p/seg: holds no CT slices among its 1 file" in failed.reason
        assert "1 x Segmentation Storage" in failed.reason
        assert "segments: {L1 vertebra: L1, ...}" in failed.reason

    @pytest.mark.parametrize("mask", ["label.seg", "label.nrrd"])
    def test_masks_as_dicom_segmentation_and_nrrd_are_stored(tmp_path, mask):
        folder = tmp_path / "raw" / "p"
        shutil.copytree(REAL / "dicom/dcmqi/image", folder / "ct")
        shutil.copy(REAL / "dicom/dcmqi" / mask, folder / mask)
        recipe = Recipe.from_pairs("{scan}/ct/", f"{{scan}}/{mask}", name="masks")
        if mask == "label.seg":
            layout = recipe.layouts["pairs"].model_copy(update={"segments": {"Liver": "L1"}})
            recipe = recipe.model_copy(update={"layouts": {"pairs": layout}})
        report = run(recipe, tmp_path / "raw", tmp_path / "s.zarr")
        assert report.done == ("p",), report.failed
        # SimpleITK reads frames wrongly that do not start at a byte, so the NRRD is the model.
        model = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(REAL / "dicom/dcmqi/label.nrrd"))
        )
        stored = spinezarr.open(tmp_path / "s.zarr").scan("p").label.to_numpy()
        np.testing.assert_array_equal(stored[:, ::-1, ::-1] > 0, model > 0)
        assert (stored == 20).sum() == (322 if mask == "label.seg" else 0)

    @pytest.mark.long
    def test_the_size_of_a_chest_ct_as_nii_gz_is_estimated_within_two_per_cent(tmp_path):
        sizes = 0
        for name in ("ct", "seg"):
            packed = REAL / f"lidc-idri/lidc-idri-0001_{name}.nii.gz"
            sizes += packed.stat().st_size
            with gzip.open(packed) as source, (tmp_path / f"a_{name}.nii").open("wb") as target:
                shutil.copyfileobj(source, target)
        recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="size")
        run(recipe, tmp_path, tmp_path / "s.zarr")
        reader = StoreReader(str(tmp_path / "s.zarr"))
        estimate = estimate_nii_gz_bytes(reader, Engine(fetcher_for(reader.objects)), ["a"])
        assert abs(estimate / sizes - 1) < 0.02
