import csv
import json
from functools import cache

import nibabel as nib
import numpy as np
import pytest
from raw_files import canonical_zyx

from spinezarr.testing import make_phantom, write_ctspinopelvic1k
from spinezarr.vertebrae import VALUE_OF_NAME

draw = cache(make_phantom)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("ctspinopelvic1k")
    return root, write_ctspinopelvic1k(root)


def test_names_have_an_infix_where_only_one_half_is_annotated(dataset):
    root, written = dataset
    stems = ["0001", "0004_spine", "0004_pelvic", "0149"]
    assert [scan.scan_id for scan in written] == stems
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    pairs = {f"ct/{s}_ct.nii.gz" for s in stems} | {f"labels/{s}_label.nii.gz" for s in stems}
    assert files == pairs | {"manifest.json", "manifest.csv", "splits_5fold.json"}


def test_files_are_pir_on_one_grid_and_hold_the_phantoms(dataset):
    _, written = dataset
    for scan in written:
        image, label = nib.load(scan.image_path), nib.load(scan.label_path)
        assert "".join(nib.aff2axcodes(image.affine)) == "PIR"
        np.testing.assert_array_equal(image.affine, label.affine)
        phantom = draw(scan.spec)
        np.testing.assert_array_equal(canonical_zyx(scan.image_path), phantom.image)
        mask = canonical_zyx(scan.label_path)
        for name in set(phantom.labeled) - {"sacrum"}:
            np.testing.assert_array_equal(
                mask == VALUE_OF_NAME[name], phantom.label == VALUE_OF_NAME[name]
            )
        sacrum = np.isin(mask, (VALUE_OF_NAME["sacrum"], 29))
        np.testing.assert_array_equal(sacrum, phantom.label == VALUE_OF_NAME["sacrum"])


def test_mask_values_follow_the_configurations(dataset):
    _, written = dataset
    values = {
        scan.scan_id: set(np.unique(canonical_zyx(scan.label_path)).tolist()) for scan in written
    }
    spine, pelvis, ribs = set(range(18, 25)), {26, 29, 30, 31, 32, 33}, {34, 57}
    assert values == {
        "0001": {0} | spine | pelvis | ribs,
        "0004_spine": {0, 255} | spine | ribs,
        "0004_pelvic": {0, 255} | pelvis,
        "0149": {0, 25} | spine | pelvis | ribs,
    }


def test_s1_lies_above_the_sacrum(dataset):
    _, written = dataset
    mask = canonical_zyx(written[0].label_path)
    assert np.argwhere(mask == 29)[:, 0].mean() > np.argwhere(mask == 26)[:, 0].mean()


def test_centers_exist_for_exactly_the_levels_in_the_mask(dataset):
    _, written = dataset
    by_id = {scan.scan_id: set(scan.centers_mm) for scan in written}
    assert by_id["0004_pelvic"] == {"S1", "S2", "sacrum"}
    assert by_id["0004_spine"] == {"T11", "T12", "L1", "L2", "L3", "L4", "L5"}
    assert by_id["0001"] == by_id["0004_pelvic"] | by_id["0004_spine"]


def test_manifests_name_the_files_and_agree(dataset):
    root, written = dataset
    records = json.loads((root / "manifest.json").read_bytes())
    for record, scan in zip(records, written, strict=True):
        assert root / record["ct_file"] == scan.image_path
        assert root / record["label_file"] == scan.label_path
        assert int(record["token"]) == int(scan.patient)
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: str(value) for key, value in record.items()} for record in records]
    assert [record["has_l6"] for record in records] == [False, False, False, True]
    assert [record["n_lumbar_labels"] for record in records] == [5, 5, 0, 6]


def test_five_folds_divide_the_patients_that_are_not_held_out(dataset):
    root, written = dataset
    splits = json.loads((root / "splits_5fold.json").read_bytes())
    assert splits["test_tokens"] == ["149"]
    assert len(splits["folds"]) == 5
    validated = [token for fold in splits["folds"] for token in fold["val_tokens"]]
    assert sorted(validated) == ["1", "4"]
    for fold in splits["folds"]:
        assert set(fold["train_tokens"]) == {"1", "4"} - set(fold["val_tokens"])
    assert [scan.split for scan in written] == ["trainval", "trainval", "trainval", "test"]
