import csv
from functools import cache

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from spinezarr.testing import make_phantom, write_rsna
from spinezarr.vertebrae import VALUE_OF_NAME

draw = cache(make_phantom)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna")
    return root, write_rsna(root)


def slices_by_number(folder):
    """Return the slices in the order of their file names."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    return [pydicom.dcmread(path) for path in paths]


def test_slices_are_numbered_files_in_a_folder_per_study(dataset):
    root, written = dataset
    assert {p.name for p in root.iterdir()} == {
        "train_images",
        "segmentations",
        "train.csv",
        "train_bounding_boxes.csv",
    }
    for scan in written:
        assert scan.image_path == root / "train_images" / scan.scan_id
        names = {path.name for path in scan.image_path.iterdir()}
        assert names == {f"{n}.dcm" for n in range(1, scan.spec.shape_zyx[0] + 1)}
        for dataset_ in slices_by_number(scan.image_path):
            assert dataset_.StudyInstanceUID == scan.scan_id
            assert dataset_.PatientID == scan.scan_id


def test_masks_are_nii_files_named_like_the_study_for_some_studies(dataset):
    root, written = dataset
    with_mask = [scan for scan in written if scan.label_path is not None]
    assert len(with_mask) == len(written) - 1
    assert {p.name for p in (root / "segmentations").iterdir()} == {
        f"{scan.scan_id}.nii" for scan in with_mask
    }
    for scan in with_mask:
        assert scan.label_path == root / "segmentations" / f"{scan.scan_id}.nii"
        label = nib.as_closest_canonical(nib.load(scan.label_path))
        voxels = np.asarray(label.dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(voxels, draw(scan.spec).label)
        for name, center in scan.centers_mm.items():
            x, y, z = np.rint((np.linalg.inv(label.affine) @ [*center, 1])[:3]).astype(int)
            assert voxels[z, y, x] == VALUE_OF_NAME[name]


def test_series_hold_the_phantoms_where_the_masks_lie(dataset):
    _, written = dataset
    for scan in written:
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(scan.image_path))
        image = SimpleITK.ReadImage(files)
        phantom = draw(scan.spec)
        voxels = SimpleITK.GetArrayFromImage(image)[:, ::-1, ::-1]
        np.testing.assert_array_equal(voxels, phantom.image)
        last_x, last_y = image.GetSize()[0] - 1, image.GetSize()[1] - 1
        corner = np.array(image.TransformIndexToPhysicalPoint((last_x, last_y, 0)))
        np.testing.assert_allclose(corner * (-1, -1, 1), phantom.affine_xyz[:3, 3], atol=1e-3)


def test_one_study_is_numbered_from_the_other_end(dataset):
    _, written = dataset
    rising = {
        scan.scan_id: np.diff(
            [d.ImagePositionPatient[2] for d in slices_by_number(scan.image_path)]
        )
        for scan in written
    }
    falling = {name for name, steps in rising.items() if (steps < 0).all()}
    assert falling == {"1.2.826.0.1.3680043.12152"}
    assert all((steps > 0).all() for name, steps in rising.items() if name not in falling)


def test_tables_have_the_columns_of_the_challenge(dataset):
    root, written = dataset
    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["StudyInstanceUID", "patient_overall", *(f"C{n}" for n in range(1, 8))]
    assert list(rows[0]) == columns
    assert [row["StudyInstanceUID"] for row in rows] == [scan.scan_id for scan in written]
    fractured = {row["StudyInstanceUID"]: [c for c in columns[2:] if row[c] == "1"] for row in rows}
    assert fractured["1.2.826.0.1.3680043.12152"] == ["C2", "C5"]
    for row in rows:
        assert (row["patient_overall"] == "1") == bool(fractured[row["StudyInstanceUID"]])
    with (root / "train_bounding_boxes.csv").open(newline="") as file:
        boxes = list(csv.DictReader(file))
    assert list(boxes[0]) == ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    assert {box["StudyInstanceUID"] for box in boxes} == {"1.2.826.0.1.3680043.12152"}
