import csv
from functools import cache

import numpy as np
import pytest
import SimpleITK

from spinezarr.testing import make_phantom, write_xvertseg

draw = cache(make_phantom)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("xvertseg")
    return root, write_xvertseg(root)


def read_zyx(path):
    """Return voxels toward superior, anterior and right; the files are LPS."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[:, ::-1, ::-1]


def test_the_layout_equals_that_of_the_release(dataset):
    root, _ = dataset
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    stems = [f"Data1/{kind}s/{kind}{n}" for kind in ("image", "mask") for n in ("001", "002")]
    stems.append("Data2/images/image016")
    expected = {f"{stem}.{end}" for stem in stems for end in ("mhd", "raw")}
    assert files == expected | {"Data1/scores/scores.csv"}


def test_files_hold_the_phantoms_with_ten_times_their_labels(dataset):
    _, written = dataset
    for scan in written:
        phantom = draw(scan.spec)
        np.testing.assert_array_equal(read_zyx(scan.image_path), phantom.image)
        assert scan.split == ("Data2" if scan.label_path is None else "Data1")
        if scan.label_path is not None:
            mask = read_zyx(scan.label_path)
            np.testing.assert_array_equal(mask, phantom.label.astype(int) * 10)
            assert set(np.unique(mask)) == {0, 200, 210, 220, 230, 240}
            image = SimpleITK.ReadImage(scan.image_path)
            assert image.IsSameImageGeometryAs(SimpleITK.ReadImage(scan.label_path))


def test_only_l1_to_l5_are_annotated_though_more_is_seen(dataset):
    _, written = dataset
    for scan in written:
        assert scan.spec.levels == ("T12", "L1", "L2", "L3", "L4", "L5", "sacrum")
        assert set(scan.centers_mm) == {"L1", "L2", "L3", "L4", "L5"}


def test_scores_name_the_annotated_cases(dataset):
    root, _ = dataset
    with (root / "Data1/scores/scores.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["001", "002"]
