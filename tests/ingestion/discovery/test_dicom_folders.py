"""Tests of which DICOM folders and series are scans, and how few files are read to decide it."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery import discover as discover_module
from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    HOSPITAL_SCANS,
    DicomForm,
    make_phantom,
    set_dicom_elements,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
    write_hospital,
    write_rsna,
)
from spinezarr.verify.source import compare_with_source

VALUES = np.random.default_rng(5).integers(-1000, 1000, (9, 8, 6), np.int16)
LPS = np.diag([-0.75, -0.5, 2.5, 1.0])
NOT_CT = "ignored, not CT: "
TREE = Recipe.from_pairs("{path:.+}/", None, name="tree")
BY_SERIES = Recipe.from_pairs(
    "{path:.+}/", None, name="tree", scan_id="{path|join}_{series_number}"
)


def write(folder, values=VALUES, **form):
    return write_dicom_series(folder, values, LPS, DicomForm(**form))


def write_mr(folder, count=6):
    slices = write(folder, VALUES[..., :count])
    set_dicom_elements(slices, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    return slices


def add_series(folder, name, **elements):
    """Write another series into ``folder``."""
    slices = write(folder / "new")
    set_dicom_elements(slices, SeriesInstanceUID=f"1.2.840.99.{name}", **elements)
    for path in slices:
        path.rename(folder / f"{name}-{path.name}")
    (folder / "new").rmdir()


def found_in(raw, recipe=TREE, **options):
    return discover(recipe, str(raw), **options)


def ids(found):
    return [scan.scan_id for scan in found.scans]


def reasons(found):
    return Counter(note.reason for note in found.ignored)


class NotingFileSystem(LocalFileSystem):
    """The local file system, with counts of opened files."""

    cachable = False

    def __init__(self, opened):
        super().__init__()
        self.opened = opened

    def open(self, path, *args, **options):
        self.opened[path] += 1
        return super().open(path, *args, **options)


@pytest.fixture
def opened(monkeypatch):
    """Count how often each file is opened, by path."""
    counts = Counter()
    fs = NotingFileSystem(counts)
    monkeypatch.setattr(discover_module, "open_filesystem", lambda raw, _=None: (fs, str(raw)))
    return counts


# One scan per folder


def test_one_file_is_opened_of_each_ct_folder(tmp_path, opened):
    for number in range(20):
        write(tmp_path / f"p{number}" / "ct", localizer=number % 2 > 0)
        (tmp_path / f"p{number}" / "ct" / "LICENSE").write_text("CC BY")
        write_dicom_objects(tmp_path / f"p{number}" / "ct", "SR", number % 3)  # smaller than slices
    assert len(ids(found_in(tmp_path))) == 20
    assert len(opened) == 20
    assert set(opened.values()) == {1}


def test_the_tcia_recipe_opens_one_file_per_series(tmp_path, opened):
    recipe = Recipe.load("ctspine1k")
    spinezarr.testing.write_ctspine1k_tcia(tmp_path)
    found = found_in(tmp_path, recipe)
    assert len(ids(found)) == 3
    folders = {path.parent for path in tmp_path.rglob("*.dcm")}
    slices = [path for path in opened if path.endswith(".dcm")]
    assert len(slices) == len(folders) == 6


@pytest.mark.parametrize(
    ("modality", "name"),
    [
        ("MR", "MR Image Storage"),
        ("PT", "Positron Emission Tomography Image Storage"),
        ("SR", "X-Ray Radiation Dose SR Storage"),
        ("RTSTRUCT", "RT Structure Set Storage"),
        ("SEG", "Segmentation Storage"),
        ("DIRECTORY", "Media Storage Directory Storage"),
    ],
)
def test_a_folder_without_a_ct_is_skipped_and_counted(tmp_path, modality, name):
    write(tmp_path / "a" / "ct")
    written = write_dicom_objects(tmp_path / "a" / "other", modality, 3)
    written[0].rename(written[0].with_name("I0001"))
    found = found_in(tmp_path)
    assert ids(found) == ["a_ct"]
    assert reasons(found) == {f"{NOT_CT}{name}": len(written)}


def test_a_folder_of_localizers_or_pictures_is_skipped(tmp_path):
    write(tmp_path / "ct")
    for path in write(tmp_path / "scout", VALUES[..., :2], secondary_capture=True):
        set_dicom_elements([path], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = found_in(tmp_path)
    assert ids(found) == ["ct"]
    assert reasons(found) == {
        "ignored, not a CT slice: localizer": 2,
        f"{NOT_CT}Secondary Capture Image Storage": 1,
    }


def test_a_raw_folder_without_any_ct_is_no_error(tmp_path):
    write_mr(tmp_path / "raw" / "mr")
    found = found_in(tmp_path / "raw")
    assert found.scans == ()
    assert reasons(found) == {f"{NOT_CT}MR Image Storage": 6}
    report = ingest(TREE, found, str(tmp_path / "s.zarr"))
    assert (report.exit_code, report.done, report.failed) == (0, (), ())
    assert spinezarr.open(tmp_path / "s.zarr").table.sizes["scan"] == 0


def test_a_ct_among_files_of_other_classes_is_found(tmp_path):
    write_mr(tmp_path / "mixed")
    for path in (tmp_path / "mixed").iterdir():
        path.rename(path.with_name(f"mr-{path.name}"))
    write(tmp_path / "mixed", VALUES[..., :2])
    write_dicom_objects(tmp_path / "mixed", "SR", 9)
    found = found_in(tmp_path)
    assert ids(found) == ["mixed"]
    report = ingest(TREE, found, str(tmp_path / "s.zarr"))
    assert report.failed == ()
    (notes,) = report.notes.values()
    assert notes[0].startswith(
        "ignored files that are not CT slices: 6 x MR Image Storage, 9 x X-Ray"
    )


@pytest.mark.parametrize("content", [b"", bytes(900), b"<html>404", None])
def test_a_folder_of_unreadable_files_is_a_failed_scan(tmp_path, content):
    write_mr(tmp_path / "mr")
    (path,) = write(tmp_path / "broken", VALUES[..., :1])
    path = path.rename(path.with_suffix(""))
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    found = found_in(tmp_path)
    assert ids(found) == ["broken"]
    report = ingest(TREE, found, str(tmp_path / "s.zarr"))
    assert report.exit_code == 1
    assert "broken/1: " in report.failed[0].reason


def test_a_folder_with_an_unreadable_file_is_not_skipped(tmp_path):
    write_mr(tmp_path / "mr")[2].write_bytes(bytes(700))
    assert ids(found_in(tmp_path)) == ["mr"]


def test_folders_without_dicom_file_names_are_no_scans(tmp_path):
    write(tmp_path / "ct")
    for name in ("a/report.pdf", "b/README", "b/table.csv", "c/.DS_Store", "d/x.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = found_in(tmp_path)
    assert ids(found) == ["ct"]
    assert reasons(found)["matches no pattern of the recipe"] == 4
    assert reasons(found)["left by an operating system or program"] == 1


def test_the_rsna_recipe_makes_one_scan_of_each_folder(tmp_path):
    written = write_rsna(tmp_path / "rsna")
    found = found_in(tmp_path / "rsna", Recipe.load("rsna2022"))
    assert sorted(ids(found)) == sorted(scan.scan_id for scan in written)
    assert all(scan.series is None for scan in found.scans)
    assert all(scan.patient_id == scan.scan_id for scan in found.scans)


def test_folders_without_a_ct_are_skipped_without_pydicom(tmp_path):
    write(tmp_path / "ct")
    write_mr(tmp_path / "mr")
    code = (
        "import sys; sys.modules.update(pydicom=None, gdcm=None)\n"
        "from spinezarr.ingestion.discovery.discover import discover\n"
        "from spinezarr.recipe import Recipe\n"
        "recipe = Recipe.from_pairs('{scan}/', None, name='x')\n"
        f"found = discover(recipe, {str(tmp_path)!r})\n"
        "print([scan.scan_id for scan in found.scans], {note.reason for note in found.ignored})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['ct'] {'ignored, not CT: object of an unknown class'}"


# One scan per series


def recipe_of(tmp_path, series="{}", **keys):
    text = {
        "name": "hospital", "title": "x", "license": "x", "citation": "x",
        "layouts": {
            "archive": {
                "description": "x",
                "image": "{patient}/{date}/{rest:.+}/",
                "series": json.loads(series),
                "label": "masks/{patient}_{date}_{series_number}.nii.gz",
                "mask": "optional",
            }
        },
        "scan_id": "{patient}_{date}_{series_number}",
        "labels": {"scheme": "canonical", "state": "unknown"},
        **keys,
    }  # fmt: skip
    path = tmp_path.with_name(f"{tmp_path.name}.yaml")
    path.write_text(json.dumps(text))
    return Recipe.load(str(path))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Return a hospital tree that no test may change, and the scans written there."""
    raw = tmp_path_factory.mktemp("hospital")
    return raw, write_hospital(raw)


def test_every_ct_series_of_a_hospital_tree_is_a_scan(hospital, tmp_path):
    raw, written = hospital
    recipe = recipe_of(tmp_path, patient_id="{patient}")
    found = found_in(raw, recipe)
    assert ids(found) == [scan.scan_id for scan in written]
    assert [scan.patient_id for scan in found.scans] == [scan.patient for scan in written]
    assert [scan.has_mask for scan in found.scans] == [False, True, True]
    assert reasons(found) == {
        f"{NOT_CT}MR Image Storage": 6,
        f"{NOT_CT}RT Structure Set Storage": 2,
        f"{NOT_CT}X-Ray Radiation Dose SR Storage": 2,
        "matches no pattern of the recipe": 1,  # DICOMDIR, in no folder
    }
    store_url = str(tmp_path / "s.zarr")
    report = ingest(recipe, found, store_url)
    assert report.failed == ()
    assert set(report.notes.values()) == {("ignored files that are not CT slices: 1 x localizer",)}
    store = spinezarr.open(store_url)
    for plan, scan in zip(HOSPITAL_SCANS, written, strict=True):
        phantom = make_phantom(plan.spec)
        stored = store.scan(scan.scan_id)
        np.testing.assert_array_equal(stored.image, phantom.image[:: plan.thinned])
        if plan.mask:
            np.testing.assert_array_equal(stored.label, phantom.label)
    assert compare_with_source(store_url, [str(raw)], report.done).faults == ()


@pytest.mark.parametrize(
    ("series", "numbers"),
    [
        ('{"number": 3}', ["3"]),
        ('{"number": [2, 302]}', ["2", "302"]),
        ('{"kernel": ["Br5*", "bone"]}', ["3", "302"]),
        ('{"description": "*bone*"}', ["3", "302"]),
        ('{"slice_thickness_mm": [6, 99]}', ["2"]),
        ('{"min_slices": 13}', ["3", "302"]),
        ('{"image_type": ["ORIGINAL", "AXIAL"]}', ["2", "3", "302"]),
        ('{"number": 3, "kernel": "STANDARD"}', []),
    ],
)
def test_the_series_option_chooses_series_and_the_others_are_counted_by_number(
    hospital, tmp_path, series, numbers
):
    raw, _ = hospital
    found = found_in(raw, recipe_of(tmp_path, series))
    assert [scan_id.rsplit("_", 1)[-1] for scan_id in ids(found)] == numbers
    left = {note.detail for note in found.ignored if note.reason.startswith("CT series")}
    assert left == {f"series '{number}'" for number in {"2", "3", "302"} - {*numbers}}


def test_templates_may_use_every_field_of_a_series(hospital, tmp_path):
    raw, _ = hospital
    names = "{series_number}_{kernel}_{slice_thickness_mm}_{study_uid}_{series_uid}"
    found = found_in(raw, recipe_of(tmp_path, scan_id=f"{{patient}}_{{date}}_{names}"))
    assert ids(found)[2] == ("P0012_20231102_302_BONE_5_2.25.12023110212_2.25.12023110212.302")


def test_lookups_may_use_fields_of_a_series(hospital, tmp_path):
    lookups = {"sharp": {"inputs": "kernel", "values": {"Br3*": "soft", "{k}": "bone"}}}
    recipe = recipe_of(
        tmp_path, lookups=lookups, source="{sharp}", scan_id="{patient}_{sharp}_{series_number}"
    )
    found = found_in(hospital[0], recipe)
    assert ids(found) == ["P0007_bone_3", "P0007_soft_2", "P0012_bone_302"]
    assert [scan.source for scan in found.scans] == ["bone", "soft", "bone"]
    lookups["sharp"]["values"] = {"B*": "known"}
    recipe = recipe_of(
        tmp_path, lookups=lookups, scan_id="{patient}_{sharp}_{series_number}",
    )  # fmt: skip
    assert len(ids(found_in(hospital[0], recipe))) == 3
    lookups["sharp"]["values"] = {"BONE": "known"}
    recipe = recipe_of(tmp_path, lookups=lookups, scan_id="{patient}_{sharp}_{series_number}")
    found = found_in(hospital[0], recipe)
    assert ids(found) == ["P0012_known_302"]
    unnamed = [note for note in found.ignored if "gives no scan id" in note.reason]
    assert {note.detail for note in unnamed} == {"series '2'", "series '3'"}


def test_series_that_share_an_id_are_refused_with_their_numbers(hospital, tmp_path):
    found = found_in(hospital[0], recipe_of(tmp_path, scan_id="{patient}"))
    assert ids(found) == ["P0012"]
    ((scan_id, message),) = found.failing
    assert scan_id == "P0007"
    assert "P0007/20240115/DICOM/ (series '2')" in message
    assert "P0007/20240115/DICOM/ (series '3')" in message
    assert 'e.g. "{series_number}_{scan}"' in message


def test_one_of_several_series_of_a_scan_is_taken_and_the_others_are_noted(hospital, tmp_path):
    recipe = recipe_of(tmp_path, duplicate_key="{patient}", scan_id="{patient}")
    found = found_in(hospital[0], recipe)
    assert ids(found) == ["P0007", "P0012"]
    assert found.scans[0].series.name == "series '3'"  # it has a mask
    left = [note for note in found.ignored if note.reason == "image of a scan that is read from "
            "another file"]  # fmt: skip
    assert len(left) == 13
    assert {note.detail for note in left} == {"read from P0007/20240115/DICOM/ (series '3')"}


def test_series_that_share_a_mask_are_refused(hospital, tmp_path):
    recipe = recipe_of(tmp_path)
    layout = recipe.layouts["archive"].model_copy(
        update={"label": ("masks/{patient}_{date}_3.nii.gz",)}
    )
    recipe = recipe.model_copy(update={"layouts": {"archive": layout}})
    found = found_in(hospital[0], recipe)
    assert [scan.scan_id for scan in found.refused] == ["P0007_20240115_2", "P0007_20240115_3"]
    for scan in found.refused:
        assert re.search(r"would belong to two scans:\n.*series '2'.*\n.*'3'", scan.reason)


def test_a_pairs_recipe_takes_each_series_of_a_tree(tmp_path):
    write(tmp_path / "a" / "b" / "c")
    add_series(tmp_path / "a" / "b" / "c", "7", SeriesNumber=7)
    write_dicom_multiframe(tmp_path / "a" / "mf" / "x.dcm", VALUES + 1, LPS, DicomForm())
    found = found_in(tmp_path, BY_SERIES)
    assert ids(found) == ["a_b_c_2", "a_b_c_7", "a_mf_2"]
    assert [scan.patient_id for scan in found.scans] == ids(found)
    report = ingest(BY_SERIES, found, str(tmp_path.with_name("pairs.zarr")))
    assert report.failed == ()


def test_masks_may_be_named_by_a_joined_path(tmp_path):
    write(tmp_path / "a" / "b")
    (tmp_path / "masks").mkdir()
    for name in ("a-b.nii.gz", "a-c.nii.gz"):
        (tmp_path / "masks" / name).touch()
    recipe = Recipe.from_pairs("{path:.+}/", "masks/{path|join:-}.nii.gz", name="tree")
    found = found_in(tmp_path, recipe)
    assert [(scan.scan_id, scan.label) for scan in found.scans] == [("a_b", "masks/a-b.nii.gz")]
    assert [note.path for note in found.without_image] == ["masks/a-c.nii.gz"]


@pytest.mark.parametrize("recipe", [TREE, BY_SERIES])
def test_linked_slices_are_read(tmp_path, recipe):
    """In the cache of Hugging Face, files are links to blobs that are named by their hash."""
    raw = tmp_path / "snapshots" / "1f" / "a"
    raw.mkdir(parents=True)
    for number, path in enumerate(write(tmp_path / "blobs")):
        path.rename(path.with_name(f"{number}"))
        (raw / path.name).symlink_to(f"../../../blobs/{number}")
    found = found_in(raw.parent, recipe)
    report = ingest(recipe, found, str(tmp_path / "s.zarr"))
    assert report.failed == ()
    image = spinezarr.open(tmp_path / "s.zarr").scan(ids(found)[0]).image
    np.testing.assert_array_equal(image, VALUES[::-1, ::-1].transpose(2, 1, 0))


def test_series_of_too_few_slices_are_no_scans(tmp_path):
    write(tmp_path / "a")
    add_series(tmp_path / "a", "8", SeriesNumber=8)
    for path in sorted((tmp_path / "a").glob("8-*"))[1:]:
        path.unlink()
    found = found_in(tmp_path, BY_SERIES)
    assert ids(found) == ["a_2"]
    (note,) = found.ignored
    assert (note.path, note.detail) == ("a/8-1.dcm", "series '8'")
    assert note.reason == "CT series with fewer slices than the recipe's 'series' requires"


@pytest.mark.parametrize("kept", [True, False])
def test_an_unreadable_file_fails_every_series_of_its_folder(tmp_path, kept):
    raw = tmp_path / "raw"
    write(raw / "a")
    add_series(raw / "a", "8", SeriesNumber=8)
    (raw / "a" / "9.dcm").write_bytes(b"<html>")
    recipe = Recipe.from_pairs("{path:.+}/", None, name="t", scan_id="{path|join}_{series_number}")
    if not kept:
        for path in (raw / "a").glob("*.dcm"):
            if path.name != "9.dcm":
                path.unlink()
    found = found_in(raw, recipe)
    assert ids(found) == (["a_2", "a_8"] if kept else ["a_none"])
    report = ingest(recipe, found, str(tmp_path / "s.zarr"))
    assert [failed.scan_id for failed in report.failed] == ids(found)
    assert all("a/9.dcm: is not a DICOM file" in failed.reason for failed in report.failed)
    assert found.folders == {}
    (raw / "a" / "9.dcm").unlink()
    if kept:
        report = ingest(recipe, found_in(raw, recipe), str(tmp_path / "s.zarr"))
        assert report.done == ("a_2", "a_8")


@pytest.mark.parametrize("recipe", [TREE, BY_SERIES])
def test_a_folder_that_could_not_be_read_is_read_again(tmp_path, monkeypatch, recipe):
    write(tmp_path / "ct")
    write_mr(tmp_path / "mr")
    read = LocalFileSystem.cat_file

    def broken(self, path, *args, **options):
        raise OSError(110, "Connection timed out", path)

    monkeypatch.setattr(LocalFileSystem, "cat_file", broken)
    found = found_in(tmp_path, recipe)
    assert len(found.scans) == 2  # the ingest reads again, and reports the error
    assert found.folders == {}
    monkeypatch.setattr(LocalFileSystem, "cat_file", read)
    found = found_in(tmp_path, recipe, known=found.folders)
    assert len(found.scans) == 1
    assert len(found.folders) == 2


def test_a_series_split_over_two_folders_fails_in_both(tmp_path):
    raw = tmp_path / "raw"
    slices = write(raw / "a")
    (raw / "b").mkdir()
    for path in slices[3:]:
        path.rename(raw / "b" / path.name)
    write(raw / "c", VALUES + 1)
    found = found_in(raw, BY_SERIES)
    report = ingest(BY_SERIES, found, str(tmp_path / "s.zarr"))
    assert report.done == ("c_2",)
    for failed in report.failed:
        assert "files of its series '2' lie in 2 folders: a/, b/; expected one." in failed.reason


# Repeated runs


def test_folders_read_before_are_not_read_again(tmp_path, opened):
    raw = tmp_path / "raw"
    write_hospital(raw)
    recipe = recipe_of(tmp_path)
    first = found_in(raw, recipe)
    assert len(opened) > 40
    again = found_in(raw, recipe, known=first.folders)
    opened.clear()
    again = found_in(raw, recipe, known=first.folders)
    assert opened == {}
    assert again == first
    assert again.folders == first.folders
    write(raw / "P0099" / "20250101" / "new")
    (raw / "P0007" / "20240115" / "MR" / "1.dcm").touch()
    changed = found_in(raw, recipe, known=first.folders)
    assert {Path(path).parent.name for path in opened} == {"new", "MR"}
    assert len(changed.scans) == 4
    opened.clear()
    found_in(raw, recipe_of(tmp_path, '{"min_slices": 3}'), known=first.folders)
    assert len(opened) > 40  # another recipe needs other facts


def test_a_second_ingest_opens_no_file_and_the_ledger_holds_no_private_text(tmp_path):
    raw, out = tmp_path / "raw", str(tmp_path / "s.zarr")
    write_hospital(raw)
    recipe = recipe_of(tmp_path)
    assert known_folders(out) == {}
    assert known_folders(None) == {}
    found = found_in(raw, recipe)
    ingest(recipe, found, out)
    assert known_folders(out) == found.folders
    text = (tmp_path / "s.zarr" / "ingest" / "zarr.json").read_text()
    for secret in ("Spine bone", "LSPINE", "Abdomen", "DICOM/", "2.25.", ".dcm"):
        assert secret not in text
    for path in raw.rglob("*.dcm"):
        path.chmod(0)
    again = found_in(raw, recipe, known=known_folders(out))
    report = ingest(recipe, again, out)
    assert report.skipped == tuple(ids(found))
    shutil.rmtree(raw / "P0007")
    report = ingest(recipe, found_in(raw, recipe, known=known_folders(out)), out)
    assert len(known_folders(out)) < len(found.folders)
    assert len(report.from_earlier_runs) == 2


def test_scans_of_a_bucket_equal_those_of_the_same_folder_on_disk(tmp_path):
    write_hospital(tmp_path)
    fs = MemoryFileSystem()
    fs.put(str(tmp_path), "/hospital", recursive=True)
    recipe = recipe_of(tmp_path)
    found = discover(recipe, "memory://hospital")
    assert ids(found) == ids(found_in(tmp_path, recipe))
    assert reasons(found) == reasons(found_in(tmp_path, recipe))
    fs.rm("/hospital", recursive=True)


def test_a_raw_folder_that_matches_nothing_is_refused(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(UsageError, match="no image of"):
        found_in(tmp_path, Recipe.from_pairs("{scan}/{series}/", None, name="x"))


def test_the_class_may_stand_only_in_the_file_meta_information(tmp_path):
    for path in write_mr(tmp_path / "mr"):
        dataset = pydicom.dcmread(path)
        del dataset.SOPClassUID
        dataset.save_as(path)
    write(tmp_path / "ct")
    assert ids(found_in(tmp_path)) == ["ct"]
