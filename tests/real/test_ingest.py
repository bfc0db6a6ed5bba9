"""Real files go through whole ingests, if they lie next to the checkout."""

import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from raw_files import canonical_zyx

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import write_ctspine1k_names

REAL = Path(__file__).parents[3] / "shared/data/real"


def stored(recipe, raw, out):
    report = ingest(recipe, discover(recipe, str(raw)), str(out))
    assert not report.failed, report.failed
    return spinezarr.open(out)


if REAL.is_dir():

    def test_the_real_list_of_series_names_every_colon_and_neck_scan(tmp_path):
        names = {"train": [], "validation": [], "test": []}
        sections = dict(zip(("trainset:", "test_public:", "test_private:"), names, strict=True))
        for line in (REAL / "ctspine1k/data_split.txt").read_text().split():
            if line in sections:
                listed = names[sections[line]]
            else:
                listed.append(line)
        write_ctspine1k_names(tmp_path, names)
        shutil.copy(REAL / "ctspine1k/Path.csv", tmp_path / "Path.csv")
        found = discover(Recipe.load("ctspine1k"), str(tmp_path))
        (use,) = (use for use in found.tables if use.name == "series")
        assert (use.rows, use.matched) == (815, 815)
        with_series = Counter(scan.source for scan in found.scans if "SeriesDir" in scan.columns)
        assert with_series == {"COLONOG": 784, "HNSCC-3DCT-RT": 31}
        (neck,) = (scan for scan in found.scans if scan.scan_id == "HN_P001")
        assert neck.columns["StudyDir"] == "12-22-2009-RTHEADNECK Adult-30310"
        assert neck.columns["SeriesDir"] == "3.000000-HEADNECK  2.0  B30s-90520"

    def test_the_real_verse_mask_and_its_centroids_agree_in_the_store(tmp_path):
        root = tmp_path / "dataset-verse19training"
        names = "sub-verse004"
        for part in ("rawdata", "derivatives"):
            (root / part / names).mkdir(parents=True)
        for file in (REAL / "verse").iterdir():
            shutil.copy(file, root / "derivatives" / names)
        mask = nib.load(REAL / "verse/sub-verse004_seg-vert_msk.nii.gz")
        bone = (np.asanyarray(mask.dataobj) > 0).astype(np.int16)
        image = nib.Nifti1Image(bone, mask.affine)  # its CT is not at hand
        nib.save(image, root / "rawdata" / names / "sub-verse004_ct.nii.gz")
        store = stored(Recipe.load("verse"), tmp_path, tmp_path / "verse.zarr")
        row = store.table.sel(scan="verse004")
        levels = ["T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5"]
        assert row.annotated_centroid_distance_mm.dropna("vertebra").to_series().to_dict() == (
            dict.fromkeys(levels, 0.0)
        )
        # 1 mm pixels: X and Y are mm from the first voxel, 2.0003 mm slices.
        first = mask.affine @ [79.1, 40.9, 32.3, 1]
        position = row.annotated_centroid_zyx_mm.sel(vertebra="T9", axis=["x", "y", "z"])
        np.testing.assert_allclose(position, first[:3], atol=1e-9)
        np.testing.assert_array_equal(
            store.scan("verse004").label,
            canonical_zyx(REAL / "verse/sub-verse004_seg-vert_msk.nii.gz"),
        )

    def test_real_totalsegmentator_values_become_the_scheme(tmp_path):
        for name in ("example_ct.nii.gz", "example_totalseg.nii.gz"):
            shutil.copy(REAL / "totalsegmentator" / name, tmp_path)
        store = stored(Recipe.load("totalsegmentator"), tmp_path, tmp_path / "ts.zarr")
        label = store.scan("example").label.to_numpy()
        scheme = canonical_zyx(REAL / "totalsegmentator/example_seg.nii.gz")
        # That mask leaves S1 out, which the recipe keeps as a structure of its own.
        np.testing.assert_array_equal(np.where(label == 29, 0, label), scheme)
        assert store.scan("example").label.attrs["flag_meanings"].split()[-1] == "S1"

    def test_a_real_metaimage_is_stored_as_simpleitk_reads_it(tmp_path):
        recipe = Recipe.from_pairs("{scan}.mha", None, name="elastix")
        store = stored(recipe, REAL / "elastix", tmp_path / "e.zarr")
        (scan_id,) = store.table.scan.to_numpy()
        scan = store.scan(scan_id)
        image = SimpleITK.ReadImage(str(REAL / f"elastix/{scan_id}.mha"))
        # ITK's array has axes z, y, x toward superior, posterior and left.
        np.testing.assert_array_equal(scan.image, SimpleITK.GetArrayFromImage(image)[:, ::-1, ::-1])
        last = [n - 1 for n in image.GetSize()]
        left, posterior, superior = image.TransformIndexToPhysicalPoint([last[0], last[1], 0])
        corner = np.array(scan.attrs["affine"]) @ [0, 0, 0, 1]
        np.testing.assert_allclose(corner[:3], [-left, -posterior, superior], atol=1e-6)
