import re
from functools import cache

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from raw_files import files_below

from spinezarr.testing import (
    MSR_SCANS,
    make_phantom,
    write_msr,
    write_msr_nifti,
)

draw = cache(make_phantom)


@pytest.fixture(scope="module")
def metaimage(tmp_path_factory):
    root = tmp_path_factory.mktemp("metaimage")
    return root, write_msr(root)


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    root = tmp_path_factory.mktemp("nifti")
    return root, write_msr_nifti(root)


@pytest.fixture(params=["metaimage", "nifti"])
def release(request):
    return request.getfixturevalue(request.param)[1]


def points_of(path):
    header, *lines = path.read_bytes().decode("ascii").split("\r\n")
    assert re.fullmatch(r"# [02]", header)
    assert lines.pop() == ""
    rows = [line.split("\t") for line in lines]
    return {(int(number), name): [float(v) for v in xyz] for number, name, *xyz in rows}


def test_the_first_release_has_a_folder_per_patient_and_scan(metaimage):
    root, written = metaimage
    stems = {
        "patient0001/2804506/2804506",
        "patient0001/2805012/2805012",
        "patient0002/4533808/4533808",
        "patient0013/4511471/4511471",
    }
    files = {f"{stem}.{end}" for stem in stems for end in ("mhd", "raw", "lml")}
    assert files_below(root) == files | {"fold1-miccai2013.txt", "fold2-miccai2013.txt"}
    assert [scan.image_path.relative_to(root).as_posix()[:-4] for scan in written] == sorted(stems)
    assert all(scan.label_path is None and scan.label_form is None for scan in written)


def test_the_second_release_has_packages_and_flat_test_data(nifti):
    root, written = nifti
    stems = [
        "spine-1/patient0001/2804506/2804506",
        "spine-1/patient0001/2805012/2805012",
        "spine-2/patient0002/4533808/4533808",
        "spine-5/patient0013/4511471/4511471",
        "spine-test-data/4766434",
    ]
    assert files_below(root) == {stem + end for stem in stems for end in (".nii.gz", ".lml")}
    assert [scan.split for scan in written] == [None, None, None, None, "test"]
    assert [s.image_path.relative_to(root).as_posix() for s in written] == [
        f"{stem}.nii.gz" for stem in stems
    ]


def test_folds_divide_the_patients(metaimage):
    root, written = metaimage
    folds = [re.findall(r"\d{7}", (root / f"fold{n}-miccai2013.txt").read_text()) for n in (1, 2)]
    assert folds == [["2804506", "2805012"], ["4533808", "4511471"]]
    by_id = {scan.scan_id: scan for scan in written}
    for n, names in enumerate(folds, start=1):
        assert {by_id[name].split for name in names} == {f"fold{n}"}
    first, second = ({by_id[name].patient for name in names} for names in folds)
    assert not first & second
    assert first == {"patient0001"}


def test_headers_have_the_keys_of_itk_in_its_order(metaimage):
    _, written = metaimage
    for scan in written:
        lines = scan.image_path.read_text().splitlines()
        keys = [line.split(" = ")[0] for line in lines]
        assert keys == [
            "ObjectType",
            "NDims",
            "BinaryData",
            "BinaryDataByteOrderMSB",
            "CompressedData",
            "TransformMatrix",
            "Offset",
            "CenterOfRotation",
            "AnatomicalOrientation",
            "ElementSpacing",
            "DimSize",
            "ElementType",
            "ElementDataFile",
        ]
        values = dict(line.split(" = ") for line in lines)
        assert values["ElementType"] == "MET_SHORT"
        assert values["ElementDataFile"] == f"{scan.scan_id}.raw"
        assert {values["BinaryDataByteOrderMSB"], values["CompressedData"]} == {"False"}


def read_ijk(path):
    """Return voxels along the file's axes, and their affine in RAS+ mm."""
    if path.suffix == ".mhd":
        image = SimpleITK.ReadImage(path)
        direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = direction, image.GetOrigin()
        return SimpleITK.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def test_files_hold_the_phantoms_of_the_records(release):
    for scan in release:
        voxels, affine = read_ijk(scan.image_path)
        image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
        phantom = draw(scan.spec)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), phantom.image)
        assert voxels.dtype == np.int16


def test_landmarks_are_mm_from_the_first_voxel_along_the_axes_of_the_file(release):
    for scan in release:
        _, affine = read_ijk(scan.image_path)
        points = points_of(scan.points_path)
        assert [name for _, name in points] == [f"{name}_center" for name in scan.centers_mm]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        assert abs(affine[:3, 3]).min() > 10, "an origin to forget about"
        for (_, name), point in points.items():
            placed = affine @ [*(point / spacing), 1]
            center = scan.centers_mm[name.removesuffix("_center")]
            np.testing.assert_allclose(placed[:3], center, atol=2e-3)


def test_centers_lie_inside_their_vertebrae(release):
    for scan in release:
        voxels, affine = read_ijk(scan.image_path)
        for name in scan.centers_mm:
            i, j, k = np.rint((np.linalg.inv(affine) @ [*scan.centers_mm[name], 1])[:3]).astype(int)
            assert voxels[i, j, k] > 100, (scan.scan_id, name)


def test_landmarks_have_s1_and_s2_and_leave_a_visible_level_out(metaimage):
    _, written = metaimage
    points = points_of(written[1].points_path)
    assert list(points)[-3:] == [(240, "L5_center"), (250, "S1_center"), (260, "S2_center")]
    assert "L2" in draw(written[1].spec).labeled
    assert (210, "L2_center") not in points
    headers = {scan.points_path.read_bytes()[:5] for scan in written}
    assert headers == {b"# 0\r\n", b"# 2\r\n"}


def test_both_releases_hold_the_same_scans(metaimage, nifti):
    first, second = metaimage[1], nifti[1]
    for old, new in zip(first, second, strict=False):
        assert (old.scan_id, old.patient, old.spec) == (new.scan_id, new.patient, new.spec)
        assert old.points_path.read_bytes() == new.points_path.read_bytes()
    assert len(second) - len(first) == sum(plan.patient is None for plan in MSR_SCANS) == 1
