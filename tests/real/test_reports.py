"""Reports about real files that are not read, and estimated sizes of real scans as ``.nii.gz``."""

import gzip
import re
import shutil
import subprocess
import sys
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

    def test_the_error_of_a_dicom_segmentation_says_how_to_convert_it(tmp_path):
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
        assert "segimage2itkimage --inputDICOM IN.dcm" in failed.reason

    def test_the_advised_command_makes_an_nrrd_mask_readable(tmp_path):
        folder = tmp_path / "raw" / "p"
        shutil.copytree(REAL / "dicom/dcmqi/image", folder / "ct")
        shutil.copy(REAL / "dicom/dcmqi/label.nrrd", folder / "seg.nrrd")
        nrrd = Recipe.from_pairs("{scan}/ct/", "{scan}/seg.nrrd", name="nrrd")
        (use,) = (use for use in discover(nrrd, str(tmp_path / "raw")).patterns if use.unread)
        command = re.search(r'python -c "(.*?)"\.', use.unread_advice)[1]
        for name, path in (("IN.nrrd", "seg.nrrd"), ("OUT.nii.gz", "seg.nii.gz")):
            command = command.replace(name, str(folder / path))
        subprocess.run([sys.executable, "-c", command], check=True)
        recipe = Recipe.from_pairs("{scan}/ct/", "{scan}/seg.nii.gz", name="nrrd")
        report = run(recipe, tmp_path / "raw", tmp_path / "s.zarr")
        assert report.done == ("p",), report.failed
        model = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "seg.nrrd")))
        stored = spinezarr.open(tmp_path / "s.zarr").scan("p").label.to_numpy()
        assert np.bincount(stored.ravel()).tolist() == np.bincount(model.ravel()).tolist()

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
