import json
import zipfile
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pydicom
import pytest
import SimpleITK
from raw_files import files_below

from spinezarr.errors import UsageError
from spinezarr.testing import (
    CTSPINE1K_SCANS,
    make_phantom,
    path_csv_text,
    series_of,
    write_ctspine1k,
    write_ctspine1k_tables,
    write_ctspine1k_tcia,
    write_ctspine1k_verse,
)
from spinezarr.vertebrae import VALUE_OF_NAME

draw = cache(make_phantom)


SCAN_IDS = [plan.scan_id for plan in CTSPINE1K_SCANS]
COLON = ["1.3.6.1.4.1.9328.50.4.0001", "CTC-1018399231", "1.3.6.1.4.1.9328.50.4.0505"]

REAL = Path(__file__).parents[3] / "shared/data/real/ctspine1k/Path.csv"


def shape_of(text):
    """Return the properties of ``Path.csv`` that its readers rely on."""
    lines = text.split("\r\n")
    parts = [line.split("/") for line in lines[:-1]]
    return {
        "ends": lines[-1] == "" and "\n" not in "".join(lines),
        "parts": {len(part) for part in parts},
        "commas": "," in text,
        "dates": all(part[1][2] == part[1][5] == "-" for part in parts),
        "numbers": all(part[2].split("-")[0].endswith(".000000") for part in parts),
        "doubled blanks": "  " in text,
        "undescribed": any(part[2].count("-") == 1 for part in parts),
        "prefixes": {part[0].rstrip("0123456789") for part in parts},
    }


if REAL.exists():

    def test_path_csv_is_like_the_real_one():
        real = REAL.read_bytes().decode("ascii")
        assert shape_of(path_csv_text(SCAN_IDS)) == shape_of(real)


def test_path_csv_names_a_series_of_each_colon_and_neck_scan():
    text = path_csv_text(SCAN_IDS)
    patients = [line.split("/")[0] for line in text.splitlines()]
    assert patients == [name for name in SCAN_IDS if name in COLON or name.startswith("HN_P")]
    assert shape_of(text) == {
        "ends": True,
        "parts": {3},
        "commas": False,
        "dates": True,
        "numbers": True,
        "doubled blanks": True,
        "undescribed": True,
        "prefixes": {"1.3.6.1.4.1.9328.50.4.", "CTC-", "HN_P"},
    }


@pytest.mark.parametrize(("layout", "folder"), [("official", "data"), ("huggingface", "metadata")])
def test_spreadsheets_list_the_patients(tmp_path, layout, folder):
    write_ctspine1k_tables(tmp_path, SCAN_IDS, layout)
    tables = {f"{folder}/metadata_colonog.xlsx", f"{folder}/metadata_neck.xlsx"}
    assert files_below(tmp_path) == tables | ({"Path.csv"} if layout == "official" else set())
    book = openpyxl.load_workbook(tmp_path / folder / "metadata_colonog.xlsx")
    header, *rows = book.worksheets[0].iter_rows(values_only=True)
    assert header[:2] == ("Patient Id", "Pathology")
    assert len(header) == 3
    assert [row[0] for row in rows] == COLON
    assert len({row[1] for row in rows}) == 3
    neck = openpyxl.load_workbook(tmp_path / folder / "metadata_neck.xlsx").worksheets[0]
    assert [row[0] for row in neck.iter_rows(min_row=2, values_only=True)] == ["HN_P001"]


def test_tables_have_the_same_bytes_each_time(tmp_path):
    for name in "ab":
        write_ctspine1k_tables(tmp_path / name, SCAN_IDS)
    first, second = (
        {p: (tmp_path / name / p).read_bytes() for p in files_below(tmp_path / name)}
        for name in "ab"
    )
    assert first == second
    with zipfile.ZipFile(tmp_path / "a/data/metadata_colonog.xlsx") as book:
        assert {entry.date_time for entry in book.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"dcterms:modified" not in book.read("docProps/core.xml")


def test_completed_masks_fit_the_images_of_the_challenge(tmp_path):
    root, images = tmp_path / "CTSpine1K", tmp_path / "VerSe"
    write_ctspine1k(root, scans=CTSPINE1K_SCANS[1:2], scale=0.2)
    names = {path for path in files_below(root) if path.startswith("label/")}
    written = write_ctspine1k_verse(root, images)
    assert {path for path in files_below(root) if path.startswith("label/")} == names
    assert [scan.label_path.relative_to(root).as_posix() for scan in written] == [
        "label/Verse/verse074_seg.nii.gz",
        "label/completed_annotation_verse/verse506_CT-iso_seg.nii.gz",
    ]
    assert [scan.image_path.relative_to(images).as_posix() for scan in written] == [
        "01_training/verse074/verse074.nii.gz",
        "01_training/verse506/verse506_CT-iso.nii.gz",
    ]
    for scan in written:
        image, label = nib.load(scan.image_path), nib.load(scan.label_path)
        np.testing.assert_array_equal(image.affine, label.affine)
        phantom = draw(scan.spec)
        for stored, expected in ((image, phantom.image), (label, phantom.label)):
            voxels = np.asarray(nib.as_closest_canonical(stored).dataobj).transpose(2, 1, 0)
            np.testing.assert_array_equal(voxels, expected)
        for name, center in scan.centers_mm.items():
            point = np.rint((np.linalg.inv(label.affine) @ [*center, 1])[:3]).astype(int)
            if name not in phantom.cut:
                assert np.asarray(label.dataobj)[tuple(point)] == VALUE_OF_NAME[name]


def test_only_the_completed_mask_has_the_cut_vertebrae(tmp_path):
    plain, completed = write_ctspine1k_verse(tmp_path / "a", tmp_path / "b")
    for scan, extra in ((plain, False), (completed, True)):
        own = scan.image_path.with_name(scan.image_path.name.replace(".nii", "_seg.nii"))
        verse = set(np.unique(np.asarray(nib.load(own).dataobj)).astype(int).tolist())
        here = set(np.unique(np.asarray(nib.load(scan.label_path).dataobj)).tolist())
        assert (here > verse) == extra
        assert here >= verse
    assert json.loads(next(completed.image_path.parent.glob("*.json")).read_bytes())


@pytest.fixture(scope="module")
def tcia(tmp_path_factory):
    root = tmp_path_factory.mktemp("tcia")
    return root, write_ctspine1k_tcia(root, scale=0.16)


def test_series_lie_where_path_csv_says_next_to_an_unlisted_one(tcia):
    root, written = tcia
    named = (root / "Path.csv").read_bytes().decode("ascii").split("\r\n")[:-1]
    assert [scan.image_path.relative_to(root).as_posix() for scan in written] == named
    for scan in written:
        assert scan.image_path == root / series_of(scan.scan_id)
        series = sorted(path for path in scan.image_path.parent.iterdir())
        assert len(series) == 2
        assert scan.image_path in series
        for folder in series:
            slices = [pydicom.dcmread(path) for path in folder.iterdir()]
            assert len(slices) == scan.spec.shape_zyx[0]
            assert {s.PatientID for s in slices} == {scan.patient}
            number, *words, _ = folder.name.split("-")
            assert {int(s.SeriesNumber) for s in slices} == {int(float(number))}
            assert {s.SeriesDescription for s in slices} == {"-".join(words)}


def read_zyx(folder):
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files))[:, ::-1, ::-1]


def test_the_named_series_fits_the_mask_and_the_other_does_not(tcia):
    root, written = tcia
    for scan in written:
        phantom = draw(scan.spec)
        assert scan.label_path.is_relative_to(root / "label")
        label = nib.as_closest_canonical(nib.load(scan.label_path))
        np.testing.assert_array_equal(np.asarray(label.dataobj).transpose(2, 1, 0), phantom.label)
        np.testing.assert_array_equal(read_zyx(scan.image_path), phantom.image)
        (other,) = set(scan.image_path.parent.iterdir()) - {scan.image_path}
        assert (read_zyx(other) != phantom.image).mean() > 0.1


def test_the_masks_have_their_official_names(tcia):
    root, _ = tcia
    assert files_below(root / "label") == {
        "conlon/1.3.6.1.4.1.9328.50.4.0001_seg.nii.gz",
        "conlon/CTC-1018399231_seg.nii.gz",
        "HNSCC-3DCT-RT_neck/HN_P001_seg.nii.gz",
    }


def test_scans_that_are_not_on_tcia_are_refused(tmp_path):
    with pytest.raises(UsageError, match="liver_0: only colon and neck"):
        write_ctspine1k_tcia(tmp_path, CTSPINE1K_SCANS[1:2])
