import re

import nibabel as nib
import numpy as np
import pytest
from raw_files import files_below

from spinezarr.errors import UsageError
from spinezarr.testing import (
    CTSPINE1K_SCANS,
    NiftiForm,
    PhantomSpec,
    ScanPlan,
    make_phantom,
    resized,
    source_of,
    write_ctspine1k,
    write_ctspine1k_names,
)
from spinezarr.vertebrae import VALUE_OF_NAME

SCALE = 0.2

SPLIT_FILE = (
    b"trainset:\r\n"
    b"1.3.6.1.4.1.9328.50.4.0001.nii.gz\r\nliver_0.nii.gz\r\nHN_P001.nii.gz\r\n"
    b"\r\n"
    b"test_public:\r\n"
    b"CTC-1018399231.nii.gz\r\nvolume-covid19-A-0377_ct.nii.gz\r\n"
    b"\r\n"
    b"test_private:\r\n"
    b"1.3.6.1.4.1.9328.50.4.0505.nii.gz\r\n"
)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    return root, write_ctspine1k(root, scale=SCALE)


def test_official_layout_has_the_folders_and_quirks_of_the_release(official):
    root, _ = official
    colon, covid = "1.3.6.1.4.1.9328.50.4", "volume-covid19-A-0377_ct"
    assert files_below(root) == {
        "data_split.txt",
        f"data/colon/{colon}.0001.nii.gz",
        f"data/colon/{colon}.0505.nii.gz",
        "data/colon/CTC-1018399231.nii.gz",
        "data/liver/liver_0.nii.gz",
        "data/HNSCC-3DCT-RT_neck/HN_P001.nii.gz",
        f"data/COVID-19/{covid}.nii.gz",
        f"label/conlon/{colon}.0001_seg.nii.gz",
        f"label/conlon/{colon}.0505_seg.nii.gz",
        "label/conlon/CTC-1018399231_seg.nii.gz",
        "label/Liver/liver_0_seg.nii.gz",
        "label/HNSCC-3DCT-RT_neck/HN_P001_seg.nii.gz",
        f"label/COVID-19/{covid}_seg.nii.gz",
        "label/Verse/verse074_seg.nii.gz",
        "label/completed_annotation_verse/verse506_CT-iso_seg.nii.gz",
    }


def test_hugging_face_layout_mirrors_volumes_and_labels(tmp_path):
    written = write_ctspine1k(tmp_path, "huggingface", CTSPINE1K_SCANS[:3], scale=SCALE)
    assert (tmp_path / "metadata/data_split.txt").is_file()
    assert len(files_below(tmp_path)) == 7
    for scan in written:
        volumes = tmp_path / "raw_data/volumes" / scan.source
        assert scan.image_path == volumes / f"{scan.scan_id}.nii.gz"
        mirrored = scan.image_path.as_posix().replace("/volumes/", "/labels/")
        assert scan.label_path.as_posix() == mirrored.replace(".nii.gz", "_seg.nii.gz")
        assert scan.image_path.is_file()
        assert scan.label_path.is_file()


def test_split_file_has_crlf_blank_lines_and_a_final_newline(official):
    root, _ = official
    assert (root / "data_split.txt").read_bytes() == SPLIT_FILE


def test_files_hold_the_phantoms_of_the_records(official):
    _, written = official
    for scan in written:
        phantom = make_phantom(scan.spec)
        for path, expected in (
            (scan.image_path, phantom.image),
            (scan.label_path, phantom.label),
        ):
            image = nib.as_closest_canonical(nib.load(path))
            voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
            np.testing.assert_array_equal(voxels, expected)
            np.testing.assert_allclose(image.affine, phantom.affine_xyz, atol=1e-3)


def test_default_scans_cover_sources_splits_types_and_an_l6(official):
    _, written = official
    assert {scan.source for scan in written} == {
        "COLONOG",
        "COVID-19",
        "HNSCC-3DCT-RT",
        "MSD-T10",
    }
    assert {scan.split for scan in written} == {"train", "validation", "test"}
    assert len({scan.spec.spacing_zyx_mm for scan in written}) >= 5
    assert len({scan.image_form.orientation for scan in written}) >= 3
    assert [nib.load(s.label_path).get_data_dtype() for s in written].count(np.float64) == 1
    assert [nib.load(s.image_path).get_data_dtype() for s in written].count(np.int32) == 1
    with_l6 = [
        s.scan_id
        for s in written
        if (np.asarray(nib.load(s.label_path).dataobj) == VALUE_OF_NAME["L6"]).any()
    ]
    assert with_l6 == ["CTC-1018399231"]
    assert {s.spec.padding_hu for s in written} >= {-1024, -3024, None}


def test_writing_twice_gives_the_same_bytes(tmp_path):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        write_ctspine1k(root, scans=CTSPINE1K_SCANS[:1], scale=SCALE)
    first, second = ({p: (root / p).read_bytes() for p in files_below(root)} for root in roots)
    assert first == second


def test_each_scan_is_announced_once_it_is_written(tmp_path):
    seen = []

    def on_scan(name):
        seen.append((name, bool(list(tmp_path.rglob(f"{name}_seg.nii.gz")))))

    write_ctspine1k(tmp_path, scans=CTSPINE1K_SCANS[1:3], scale=SCALE, on_scan=on_scan)
    assert seen == [("liver_0", True), ("HN_P001", True)]


def test_resizing_a_phantom_keeps_the_patient():
    spec = PhantomSpec()
    small = resized(spec, 0.3)
    for axis in range(3):
        extent = small.shape_zyx[axis] * small.spacing_zyx_mm[axis]
        assert extent == pytest.approx(spec.shape_zyx[axis] * spec.spacing_zyx_mm[axis], rel=1e-3)
    assert resized(spec, 1.0) == spec


@pytest.mark.parametrize("layout", ["official", "huggingface"])
def test_a_full_list_of_1005_names_gets_its_files(tmp_path, layout):
    train = [f"1.3.6.1.4.1.9328.50.4.{n:04d}" for n in range(1, 751)]
    validation = [f"CTC-{n:010d}" for n in range(34)] + [f"liver_{n}.nii.gz" for n in range(150)]
    test = [f"HN_P{n:03d}" for n in range(31)] + [f"volume-covid19-A-{n:04d}_ct" for n in range(40)]
    names = {"train": train, "validation": validation, "test": test}
    write_ctspine1k_names(tmp_path, names, layout)
    files = files_below(tmp_path)
    assert len(files) == 2 * 1005 + 1
    split = next(tmp_path.rglob("data_split.txt")).read_bytes()
    assert split.count(b"\r\n") == split.count(b"\n") == 1010
    assert not re.search(rb"\.nii\.gz\.nii\.gz", split)
    folder = "label/Liver" if layout == "official" else "raw_data/labels/MSD-T10"
    assert f"{folder}/liver_149_seg.nii.gz" in files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: source_of("verse004"), "is not the name of a CTSpine1K scan"),
        (
            lambda: ScanPlan("verse004", "train", PhantomSpec()),
            "is not the name of a CTSpine1K scan",
        ),
        (lambda: ScanPlan("liver_1", "testing", PhantomSpec()), "train, validation, test"),
        (
            lambda: ScanPlan("liver_1", "test", PhantomSpec(), NiftiForm(oblique_deg=5)),
            "the same for image and mask",
        ),
    ],
)
def test_bad_plans_are_refused_with_a_reason(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UsageError, match="official or huggingface"):
        write_ctspine1k_names(tmp_path, {"train": ["liver_0"]}, "xnat")
