import json
from dataclasses import replace
from functools import cache

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from raw_files import files_below

from spinezarr.testing import (
    VERSE_2019,
    VERSE_2020,
    make_phantom,
    write_verse_2019_challenge,
    write_verse_2020_challenge,
    write_verse_subjects,
)
from spinezarr.vertebrae import VALUE_OF_NAME

draw = cache(make_phantom)


SUBJECT_FILES = {
    "dataset-verse19training/{kind}/sub-verse004/sub-verse004",
    "dataset-verse19training/{kind}/sub-verse074/sub-verse074",
    "dataset-verse19training/{kind}/sub-verse401/sub-verse401_split-verse201",
    "dataset-verse19training/{kind}/sub-verse401/sub-verse401_split-verse253",
    "dataset-verse19validation/{kind}/sub-verse225/sub-verse225",
    "dataset-verse19test/{kind}/sub-verse417/sub-verse417_split-verse277",
    "dataset-verse19test/{kind}/sub-verse417/sub-verse417_split-verse278",
    "dataset-01training/{kind}/sub-gl017/sub-gl017_dir-ax",
    "dataset-01training/{kind}/sub-verse506/sub-verse506_dir-iso",
    "dataset-01training/{kind}/sub-verse631/sub-verse631",
    "dataset-02validation/{kind}/sub-verse544/sub-verse544",
    "dataset-02validation/{kind}/sub-verse545/sub-verse545_dir-ax",
    "dataset-03test/{kind}/sub-gl279/sub-gl279_dir-cor",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    root = tmp_path_factory.mktemp("subjects")
    return root, write_verse_subjects(root)


@pytest.fixture(scope="module")
def challenge_2019(tmp_path_factory):
    root = tmp_path_factory.mktemp("challenge-2019")
    return root, write_verse_2019_challenge(root)


@pytest.fixture(scope="module")
def challenge_2020(tmp_path_factory):
    root = tmp_path_factory.mktemp("challenge-2020")
    return root, write_verse_2020_challenge(root)


@pytest.fixture(scope="module", params=["subjects", "challenge_2019", "challenge_2020"])
def packing(request):
    return request.param, request.getfixturevalue(request.param)[1]


def canonical(path):
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def subject_files(stem):
    raw, derived = (stem.format(kind=kind) for kind in ("rawdata", "derivatives"))
    yield f"{raw}_ct.nii.gz"
    if "verse19" in stem:
        yield f"{raw}_ct.json"
    if "gl279" not in stem:
        yield f"{derived}_seg-vert_msk.nii.gz"
        yield f"{derived}_seg-{'vb' if 'verse225' in stem else 'subreg'}_ctd.json"
        yield f"{derived}_seg-vert_snp.png"


def test_subject_based_names_and_resource_forks_equal_those_of_the_zips(subjects):
    root, _ = subjects
    expected = {name for stem in SUBJECT_FILES for name in subject_files(stem)}
    forks = set()
    for name in expected:
        folder, base = name.rsplit("/", 1)
        forks |= {f"{folder}/._{base}", f"__MACOSX/{folder}/._{base}"}
    assert files_below(root) == expected | forks
    assert all((root / fork).read_bytes()[:4] == b"\x00\x05\x16\x07" for fork in forks)


def test_a_scan_without_mask_has_an_empty_folder_and_no_other_file(subjects):
    root, written = subjects
    (scan,) = (scan for scan in written if scan.label_path is None)
    assert (scan.scan_id, scan.points_path, scan.label_form) == ("gl279", None, None)
    derived = root / "dataset-03test/derivatives/sub-gl279"
    assert derived.is_dir()
    assert not list(derived.iterdir())
    assert set(scan.centers_mm) == set(draw(scan.spec).labeled)


def test_sidecars_of_2019_name_the_scanner(subjects):
    root, _ = subjects
    sidecars = list(root.glob("dataset-*/rawdata/*/sub-*_ct.json"))
    assert len(sidecars) == len(VERSE_2019)
    keys = {"dataset", "KVP", "Manufacturer", "ManufacturerModelName"}
    assert all(set(json.loads(path.read_bytes())) == keys for path in sidecars)


@pytest.mark.parametrize(
    ("options", "folders"),
    [
        ({}, ("dataset-verse19test", "dataset-01training")),
        ({"renamed": True}, ("dataset-verse19test", "01_training")),
        (
            {"nested": True},
            (
                "dataset-verse19test/dataset-verse19test",
                "dataset-verse20training/dataset-01training",
            ),
        ),
    ],
)
def test_folders_may_be_nested_or_renamed(tmp_path, options, folders):
    written = write_verse_subjects(tmp_path, (VERSE_2019[-1], VERSE_2020[0]), **options)
    for scan, folder in zip(written, folders, strict=True):
        raw = tmp_path / folder / "rawdata" / f"sub-{scan.patient}"
        assert scan.image_path.parent == raw
        assert scan.image_path.is_file()
        assert (tmp_path / "__MACOSX" / folder / "rawdata").is_dir()


def test_renaming_covers_all_splits(tmp_path):
    plans = [replace(VERSE_2020[-1], split=split) for split in ("training", "validation", "test")]
    write_verse_subjects(tmp_path, plans, renamed=True)
    tops = {path.name for path in tmp_path.iterdir()}
    assert tops == {"__MACOSX", "01_training", "02_validation", "03_test"}


def test_challenge_of_2019_is_flat(challenge_2019):
    root, written = challenge_2019
    numbers = ("004", "074", "201", "253", "225", "277", "278")
    ends = (".nii.gz", "_seg.nii.gz", "_ctd.json", "_snapshot.png")
    assert files_below(root) == {f"verse{n}{end}" for n in numbers for end in ends}
    assert [scan.scan_id for scan in written] == [f"verse{n}" for n in numbers]


def test_challenge_of_2020_has_a_folder_per_scan_and_two_spellings(challenge_2020):
    root, _ = challenge_2020
    stems = {
        "01_training/GL017/GL017_CT_ax",
        "01_training/verse506/verse506_CT-iso",
        "01_training/verse631/verse631_CT-sag",
        "02_validation/verse544/verse544_CT-sag",
        "02_validation/verse545/verse545_CT-ax",
        "01_training/verse004/verse004",
        "01_training/verse074/verse074",
    }
    expected = {"03_test/GL279/GL279_CT_cor.nii.gz"}
    for stem in stems:
        points = "iso-ctd" if "GL" in stem else "ctd-iso"
        expected |= {stem + end for end in (".nii.gz", "_seg.nii.gz", ".png")}
        expected.add(f"{stem}_{points}.json")
    assert files_below(root) == expected


def test_the_training_download_of_2020_holds_the_training_scans_only(tmp_path):
    plans = (VERSE_2020[0], VERSE_2020[-1])
    written = write_verse_2020_challenge(tmp_path, plans, training_data=True)
    assert [scan.scan_id for scan in written] == ["gl017"]
    assert [path.name for path in tmp_path.iterdir()] == ["training_data"]
    assert (tmp_path / "training_data/GL017/GL017_CT_ax_seg.nii.gz").is_file()


def test_files_hold_the_phantoms_of_the_records(packing):
    _, written = packing
    for scan in written:
        phantom = draw(scan.spec)
        voxels, affine = canonical(scan.image_path)
        np.testing.assert_array_equal(voxels, phantom.image)
        if scan.label_path is not None:
            mask, mask_affine = canonical(scan.label_path)
            np.testing.assert_array_equal(mask, phantom.label)
            np.testing.assert_allclose(mask_affine, affine, atol=0.03)


def test_centers_of_the_records_lie_inside_their_labels(packing):
    _, written = packing
    for scan in written:
        if scan.label_path is None:
            continue
        mask, affine = canonical(scan.label_path)
        for name, center in scan.centers_mm.items():
            x, y, z = np.rint((np.linalg.inv(affine) @ [*center, 1])[:3]).astype(int)
            assert mask[z, y, x] == VALUE_OF_NAME[name], (scan.scan_id, name)


def test_pictures_are_readable(packing):
    _, written = packing
    for scan in written:
        if scan.label_path is not None:
            pictures = list(scan.label_path.parent.glob("[!.]*.png"))
            assert pictures
            assert all(matplotlib.image.imread(path).shape == (1, 1) for path in pictures)


def test_masks_of_2019_have_the_header_of_the_measured_one(subjects):
    _, written = subjects
    stored = nib.load(written[0].label_path)
    header = stored.header
    assert stored.get_data_dtype() == np.float64
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 2)
    assert (stored.dataobj.slope, stored.dataobj.inter) == (1.0, 0.0)
    assert int(header["xyzt_units"]) == 0
    assert nib.aff2axcodes(stored.affine) == ("P", "I", "R")
    directions = stored.affine[:3, :3] / np.linalg.norm(stored.affine[:3, :3], axis=0)
    assert 0.99 < np.abs(directions).max(axis=0).min() < 0.9999


def test_masks_come_in_many_types_and_orientations(subjects):
    _, written = subjects
    stored = [nib.load(scan.label_path) for scan in written if scan.label_path is not None]
    types = {image.get_data_dtype().name for image in stored}
    assert types == {"uint8", "int16", "int32", "float32", "float64"}
    axcodes = {"".join(nib.aff2axcodes(image.affine)) for image in stored}
    assert axcodes == {"PIR", "LAS", "PSR"}


def test_one_mask_lies_a_little_off_its_image(subjects):
    _, written = subjects
    off = {
        scan.scan_id: np.abs(
            nib.load(scan.image_path).affine - nib.load(scan.label_path).affine
        ).max()
        for scan in written
        if scan.label_path is not None
    }
    assert {name for name, mm in off.items() if mm > 1e-3} == {"verse253"}
    assert off["verse253"] == pytest.approx(0.02, abs=1e-3)


def test_rare_vertebrae_are_present(subjects):
    _, written = subjects
    values = {
        scan.scan_id: set(np.unique(np.asarray(nib.load(scan.label_path).dataobj)).astype(int))
        for scan in written
        if scan.label_path is not None
    }
    assert {name for name, found in values.items() if 25 in found} == {"verse631"}
    assert {name for name, found in values.items() if 28 in found} == {"verse545"}
    eleven = {name for name, found in values.items() if {18, 20} <= found and 19 not in found}
    assert eleven == {"verse544"}
    assert not any(found & {26, 27} for found in values.values())


def test_cut_vertebrae_are_not_annotated(packing):
    _, written = packing
    for scan in written:
        phantom = draw(scan.spec)
        assert phantom.cut
        assert not set(phantom.cut) & set(phantom.labeled)
        assert not phantom.label[[0, -1]].any()


def test_only_one_mask_of_the_2019_challenge_has_other_axes_than_its_image(challenge_2019):
    _, written = challenge_2019
    turned = {
        scan.scan_id
        for scan in written
        if nib.aff2axcodes(nib.load(scan.image_path).affine)
        != nib.aff2axcodes(nib.load(scan.label_path).affine)
    }
    assert turned == {"verse201"}


def test_subject_based_centroids_are_voxels_below_a_direction(subjects):
    _, written = subjects
    for scan in written:
        if scan.points_path is None:
            continue
        image = nib.load(scan.image_path)
        head, *entries = json.loads(scan.points_path.read_bytes())
        assert head == {"direction": list(nib.aff2axcodes(image.affine))}
        values = {e["label"]: image.affine @ [e["X"], e["Y"], e["Z"], 1] for e in entries}
        known = {value: point for value, point in values.items() if np.isfinite(point).all()}
        assert set(known) == {VALUE_OF_NAME[name] for name in scan.centers_mm}
        reach = 0.1 * max(image.header.get_zooms())
        for name, center in scan.centers_mm.items():
            assert np.linalg.norm(known[VALUE_OF_NAME[name]][:3] - center) < reach


def test_one_centroid_is_nan_and_one_is_missing(subjects):
    _, written = subjects
    scans = {scan.scan_id: scan for scan in written}
    texts = {n: s.points_path.read_text() for n, s in scans.items() if s.points_path is not None}
    assert {name for name, text in texts.items() if "NaN" in text} == {"verse277"}
    assert scans["verse225"].points_path.name.endswith("_seg-vb_ctd.json")
    labeled = set(draw(scans["verse225"].spec).labeled)
    assert labeled - set(scans["verse225"].centers_mm) == {"L3"}


@pytest.mark.parametrize(
    ("packing_name", "axes"), [("challenge_2019", "IPL"), ("challenge_2020", "PIR")]
)
def test_challenge_centroids_are_mm_without_a_direction(packing_name, axes, request):
    _, written = request.getfixturevalue(packing_name)
    for scan in written:
        if scan.points_path is None:
            continue
        entries = json.loads(scan.points_path.read_bytes())
        assert not any("direction" in entry for entry in entries)
        image = nib.load(scan.image_path)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
        )
        turned = image.as_reoriented(turn)
        zooms = np.array(turned.header.get_zooms())
        found = {e["label"]: np.array([e["X"], e["Y"], e["Z"]]) / zooms for e in entries}
        for name, center in scan.centers_mm.items():
            voxel = (np.linalg.inv(turned.affine) @ [*center, 1])[:3]
            # The challenges' readers flip by the size, nibabel by the last index.
            assert np.abs(found[VALUE_OF_NAME[name]] - voxel).max() < 1.1


def test_the_same_scans_are_in_several_packings(subjects, challenge_2019, challenge_2020):
    records = {
        name: {scan.scan_id: scan for scan in written}
        for name, (_, written) in (
            ("subjects", subjects),
            ("2019", challenge_2019),
            ("2020", challenge_2020),
        )
    }
    assert set(records["2019"]) | set(records["2020"]) == set(records["subjects"])
    assert set(records["2019"]) & set(records["2020"]) == {"verse004", "verse074"}
    for scans in records.values():
        for name, scan in scans.items():
            again = records["subjects"][name]
            assert (scan.spec, scan.patient, scan.split) == (again.spec, again.patient, again.split)
    patients = [scan.patient for scan in records["subjects"].values()]
    assert sorted(p for p in set(patients) if patients.count(p) == 2) == ["verse401", "verse417"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        write_verse_subjects(root, VERSE_2019[:1])
        write_verse_2020_challenge(root, VERSE_2020[:1])
    first, second = ({p: (root / p).read_bytes() for p in files_below(root)} for root in roots)
    assert first == second
