import csv
from functools import cache

import nibabel as nib
import numpy as np
import pytest

from spinezarr.testing import (
    make_phantom,
    totalsegmentator_values,
    write_totalsegmentator,
    write_totalsegmentator_multilabel,
)
from spinezarr.vertebrae import VALUE_OF_NAME

draw = cache(make_phantom)


LEVELS = (
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 13)),
    *(f"L{n}" for n in range(1, 6)),
)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    root = tmp_path_factory.mktemp("binary")
    return root, write_totalsegmentator(root)


def read_zyx(path):
    image = nib.load(path)
    assert "".join(nib.aff2axcodes(image.affine)) == "RAS"
    return np.asarray(image.dataobj).transpose(2, 1, 0)


def test_there_is_one_binary_file_per_structure_even_if_it_is_absent(binary):
    root, written = binary
    names = {f"vertebrae_{level}.nii.gz" for level in (*LEVELS, "S1")}
    for scan in written:
        assert scan.image_path == root / scan.scan_id / "ct.nii.gz"
        assert scan.label_path == root / scan.scan_id / "segmentations"
        files = {path.name for path in scan.label_path.iterdir()}
        assert files == names | {"sacrum.nii.gz", "liver.nii.gz"}
        assert {path.name for path in scan.image_path.parent.iterdir()} == {
            "ct.nii.gz",
            "segmentations",
        }
    assert {path.name for path in root.iterdir()} == {"meta.csv", "s0000", "s0011", "s1423"}


def test_masks_equal_the_vertebrae_of_the_phantom_and_s1_is_part_of_its_sacrum(binary):
    _, written = binary
    for scan in written:
        phantom = draw(scan.spec)
        np.testing.assert_array_equal(read_zyx(scan.image_path), phantom.image)
        for level in LEVELS:
            mask = read_zyx(scan.label_path / f"vertebrae_{level}.nii.gz")
            assert mask.max() == int(level in phantom.labeled)
            np.testing.assert_array_equal(mask == 1, phantom.label == VALUE_OF_NAME[level])
        s1, sacrum = (
            read_zyx(scan.label_path / f"{name}.nii.gz") for name in ("vertebrae_S1", "sacrum")
        )
        np.testing.assert_array_equal(s1 + sacrum, phantom.label == VALUE_OF_NAME["sacrum"])
        assert s1.max() == sacrum.max() == int("sacrum" in phantom.labeled)
        liver = read_zyx(scan.label_path / "liver.nii.gz")
        assert liver.any()
        assert not (liver & (phantom.label > 0)).any()


def test_s1_lies_above_the_rest_of_the_sacrum_and_holds_its_center(binary):
    _, written = binary
    scan = written[0]
    s1 = nib.load(scan.label_path / "vertebrae_S1.nii.gz")
    rest = read_zyx(scan.label_path / "sacrum.nii.gz")
    voxels = np.asarray(s1.dataobj)
    assert np.nonzero(voxels)[2].mean() > np.nonzero(rest)[0].mean()
    i, j, k = np.rint((np.linalg.inv(s1.affine) @ [*scan.centers_mm["S1"], 1])[:3]).astype(int)
    assert voxels[i, j, k] == 1


def test_the_first_version_has_no_sacrum(tmp_path):
    (scan, *_) = write_totalsegmentator(tmp_path, version="v1")
    names = {path.name for path in scan.label_path.iterdir()}
    assert names == {f"vertebrae_{level}.nii.gz" for level in LEVELS} | {"liver.nii.gz"}


def test_meta_has_semicolons_and_a_byte_order_mark(binary):
    root, written = binary
    assert (root / "meta.csv").read_bytes().startswith(b"\xef\xbb\xbfimage_id;age;gender;")
    with (root / "meta.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [(row["image_id"], row["split"]) for row in rows] == [
        (scan.scan_id, scan.split) for scan in written
    ]
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_one_subject_has_axes_a_little_off_right_angles(binary):
    _, written = binary
    for scan in written:
        affine = nib.load(scan.image_path).affine[:3, :3]
        across = affine / np.linalg.norm(affine, axis=0)
        off = np.abs(across.T @ across - np.eye(3)).max()
        assert (1e-4 < off < 3e-4) if scan.scan_id == "s0011" else off < 1e-6
        label = nib.load(scan.label_path / "vertebrae_C4.nii.gz")
        np.testing.assert_array_equal(label.affine[:3, :3], affine)


def test_centers_lie_inside_their_labels(binary):
    _, written = binary
    for scan in written:
        for name in set(scan.centers_mm) & set(LEVELS):
            image = nib.load(scan.label_path / f"vertebrae_{name}.nii.gz")
            point = np.linalg.inv(image.affine) @ [*scan.centers_mm[name], 1]
            assert np.asarray(image.dataobj)[tuple(np.rint(point[:3]).astype(int))] == 1


def test_values_run_from_tail_to_head():
    first, second = (totalsegmentator_values(version) for version in ("v1", "v2"))
    assert [first[f"vertebrae_{level}"] for level in reversed(LEVELS)] == list(range(18, 42))
    assert [second[f"vertebrae_{level}"] for level in reversed(LEVELS)] == list(range(27, 51))
    assert (second["sacrum"], second["vertebrae_S1"]) == (25, 26)
    assert len(first) == 24
    assert len(second) == 26


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_one_file_holds_the_values_of_its_version(tmp_path, version):
    written = write_totalsegmentator_multilabel(tmp_path, version=version)
    values = totalsegmentator_values(version)
    for scan in written:
        assert scan.label_path == tmp_path / scan.scan_id / "segmentations.nii.gz"
        mask, phantom = read_zyx(scan.label_path), draw(scan.spec)
        for level in LEVELS:
            expected = phantom.label == VALUE_OF_NAME[level]
            np.testing.assert_array_equal(mask == values[f"vertebrae_{level}"], expected)
        levels = {values[f"vertebrae_{level}"] for level in LEVELS}
        sacral = {25, 26} if version == "v2" and "sacrum" in phantom.labeled else set()
        assert set(np.unique(mask).tolist()) - levels == {0} | sacral
    assert (tmp_path / "meta.csv").is_file()
