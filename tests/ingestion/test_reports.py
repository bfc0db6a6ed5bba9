"""Files in no scan are reported by the ingest as by the dry run, with their names."""

from collections import Counter
from dataclasses import asdict
from unicodedata import normalize

import nibabel as nib
import numpy as np
import pytest

import spinezarr
from spinezarr.errors import RecipeError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe

PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs-test")
IMAGE = np.arange(10 * 9 * 8, dtype=np.int16).reshape(10, 9, 8)
MASK = np.where(IMAGE > 400, 20, 0).astype(np.uint8)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHARED = ("without_mask", "without_image", "orphans_expected", "unlisted", "ignored", "absent")


def write(path, values=IMAGE):
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name("x.nii.gz")
    nib.save(nib.Nifti1Image(values, AFFINE), plain)
    plain.rename(path)


def write_pair(folder, name="good"):
    write(folder / f"{name}_ct.nii.gz")
    write(folder / f"{name}_seg.nii.gz", MASK)


def run(recipe, raw, out):
    found = discover(recipe, str(raw))
    report = ingest(recipe, found, str(out))
    for field in (*SHARED, "tables"):
        assert getattr(report, field) == getattr(found, field), field
    return report


@pytest.fixture
def raw(tmp_path):
    write_pair(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "s.zarr"


def load(tmp_path, text, name="mine"):
    (tmp_path / f"{name}.yaml").write_text(
        f"name: {name}\ntitle: Mine\nlicense: none\ncitation: none\n"
        f"labels: {{scheme: canonical, state: unknown}}\n{text}",
        encoding="utf-8",
    )
    return Recipe.load(str(tmp_path / f"{name}.yaml"))


def test_a_complete_folder_exits_with_0_and_reports_no_file(raw, out):
    report = run(PAIRS, raw, out)
    assert (report.done, report.exit_code) == (("good",), 0)
    assert [getattr(report, field) for field in SHARED] == [(), (), False, (), (), ()]


def test_unpacked_files_are_read_and_stored_under_their_own_names(raw, out):
    write(raw / "plain_ct.nii")
    write(raw / "CAPS_ct.NII.GZ")
    write(raw / "folder_ct.nii.gz" / "folder_ct.nii")
    for name in ("plain", "CAPS", "folder"):
        write(raw / f"{name}_seg.nii.gz", MASK)
    report = run(PAIRS, raw, out)
    assert set(report.done) == {"good", "plain", "CAPS", "folder"}
    assert report.exit_code == 0
    store = spinezarr.open(out)
    for name, file in {
        "plain": "plain_ct.nii",
        "CAPS": "CAPS_ct.NII.GZ",
        "folder": "folder_ct.nii.gz/folder_ct.nii",
    }.items():
        scan = store.scan(name)
        assert scan.attrs["image_source"]["file"] == file
        np.testing.assert_array_equal(scan.image, IMAGE.T)
        np.testing.assert_array_equal(scan.label, MASK.T)


def test_images_that_were_left_out_are_reported_with_the_reason(raw, out):
    write(raw / "big_CT.nii.gz")
    write(raw / "below" / "deep_ct.nii.gz")
    (raw / "other_ct.nhdr").write_bytes(b"NRRD0004\n")
    (raw / "notes.txt").write_text("x")
    write(raw / "good_ct.nii")
    report = run(PAIRS, raw, out)
    assert (report.done, report.exit_code) == (("good",), 0)
    reasons = {note.path: note.reason for note in report.ignored}
    assert "capital letters differ" in reasons.pop("big_CT.nii.gz")
    assert "it lies in a folder" in reasons.pop("below/deep_ct.nii.gz")
    assert "it is an NRRD file" in reasons.pop("other_ct.nhdr")
    assert reasons == {
        "notes.txt": "matches no pattern of the recipe",
        "good_ct.nii": "copy of a file that is used, compressed in another way",
    }


def test_only_copies_of_taken_files_are_reported_as_copies(raw):
    for name in ("lone_seg.nii", "lone_seg.nii.gz", "other.nii", "other.nii.gz", "good_seg.NII"):
        (raw / name).write_bytes(b"x")
    found = discover(PAIRS, str(raw))
    assert {note.path for note in found.without_image} == {"lone_seg.nii", "lone_seg.nii.gz"}
    assert {note.path: note.reason for note in found.ignored} == {
        "other.nii": "matches no pattern of the recipe",
        "other.nii.gz": "matches no pattern of the recipe",
        "good_seg.NII": "copy of a file that is used, compressed in another way",
    }


def test_a_mask_without_its_image_fails_unless_the_recipe_expects_it(raw, out, tmp_path):
    for name in ("lone_seg.nii.gz", "alone_seg.nii"):
        write(raw / name, MASK)
    report = run(PAIRS, raw, out)
    assert (report.done, report.failed, report.exit_code) == (("good",), (), 1)
    assert {(note.path, note.reason) for note in report.without_image} == {
        ("alone_seg.nii", "mask without an image"),
        ("lone_seg.nii.gz", "mask without an image"),
    }
    assert report.ignored == ()
    layout = (
        "layouts: {x: {description: x, image: '{scan}_ct.nii.gz', label: '{scan}_seg.nii.gz'}}\n"
    )
    strict = run(load(tmp_path, layout, "strict"), raw, tmp_path / "strict.zarr")
    assert strict.exit_code == 1
    text = f"{layout}orphaned_masks: expected\n"
    expected = run(load(tmp_path, text, "expected"), raw, tmp_path / "expected.zarr")
    assert (expected.exit_code, expected.orphans_expected) == (0, True)
    assert expected.without_image == strict.without_image == report.without_image


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("ctspine1k", True),
        ("ctspine1k-verse", True),
        ("rsna2022", True),
        ("ctspinopelvic1k", True),
        ("verse", False),
        ("totalsegmentator", False),
        ("xvertseg", False),
    ],
)
def test_shipped_recipes_expect_lone_masks_where_masks_are_downloaded_whole(recipe, expected):
    assert (Recipe.load(recipe).orphaned_masks == "expected") is expected


def test_a_folder_of_mask_slices_without_an_image_is_one_orphan(tmp_path):
    recipe = Recipe.from_pairs("{scan}/ct/", "{scan}/seg/", name="series")
    for path in ("p/ct/1.dcm", "p/seg/1.dcm", "q/seg/1.dcm", "q/seg/2.dcm"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    found = discover(recipe, str(tmp_path))
    assert [(scan.image, scan.label) for scan in found.scans] == [("p/ct/", "p/seg/")]
    assert [note.path for note in found.without_image] == ["q/seg/"]
    assert found.ignored == ()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("a_SEG.nii.gz", "There is a_SEG.nii.gz, which differs in capital letters"),
        ("A_seg.nii", "There is A_seg.nii, which differs in capital letters"),
        ("a_seg.nii.gz/b.txt", "There is a_seg.nii.gz/, which is a folder"),
    ],
)
def test_the_error_of_a_missing_mask_names_a_near_miss(raw, out, there, words):
    write(raw / "a_ct.nii.gz")
    write(raw / there, MASK)
    report = run(PAIRS, raw, out)
    (failed,) = report.failed
    assert failed.scan_id == "a"
    assert failed.reason.startswith("no mask for a_ct.nii.gz; looked for a_seg.nii.gz. ")
    assert words in failed.reason


def test_one_name_that_is_no_scan_id_fails_only_its_scan(raw, out):
    for name in ("-a", "_a", "__b", ".hidden", "c\x1b", "d[1]"):
        write_pair(raw, name)
    for name in ("._good_ct.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (raw / name).write_bytes(b"\0\5\x16\7")
    write_pair(raw / "__MACOSX")
    report = run(PAIRS, raw, out)
    assert set(report.done) == {"good", "-a", "_a"}
    assert {failed.scan_id for failed in report.failed} == {"__b", ".hidden", r"c\x1b", "d[1]"}
    assert report.exit_code == 1
    assert report.without_image == ()
    assert {note.path: note.reason for note in report.ignored} == dict.fromkeys(
        ["._good_ct.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/"],
        "left by an operating system or program",
    )
    store = spinezarr.open(out)
    for name in ("-a", "_a"):
        np.testing.assert_array_equal(store.scan(name).image, IMAGE.T)
    again = run(PAIRS, raw, out)
    assert (set(again.skipped), again.from_earlier_runs) == ({"good", "-a", "_a"}, ())


def test_a_folder_with_only_invalid_scan_ids_is_a_usage_error(tmp_path):
    for name in ("__a", "__b"):
        write_pair(tmp_path, name)
    with pytest.raises(RecipeError, match=r"scan id '__a'[\s\S]*The same holds for 1 other scan\."):
        discover(PAIRS, str(tmp_path))


def test_a_stored_scan_stays_if_its_id_is_found_twice(raw, out, tmp_path):
    recipe = Recipe.from_pairs("**/{scan}_ct.nii.gz", "**/{scan}_seg.nii.gz", name="pairs-test")
    write_pair(raw, "other")
    run(recipe, raw, out)
    write_pair(raw / "copy")
    report = run(recipe, raw, out)
    (failed,) = report.failed
    assert (failed.scan_id, report.skipped, report.from_earlier_runs) == ("good", ("other",), ())
    assert "copy/good_ct.nii.gz\n  good_ct.nii.gz" in failed.reason
    assert spinezarr.open(out).table.scan.to_numpy().tolist() == ["good", "other"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_lists_and_tables_are_joined_in_any_unicode_form(tmp_path, out, form, named):
    raw, name = tmp_path / "raw", normalize(form, "Müller")
    write_pair(raw, name)
    write_pair(raw, "b")
    (raw / "split.txt").write_text(
        normalize(named, "prüfung:\nMüller.nii\nÄbel.nii\n"), encoding="utf-8"
    )
    (raw / "table.csv").write_text(
        normalize(named, "Prüfer,Gruß,Teil\nMüller,süß,\nÄbel,x,\nb,y,tür\nÄbel,z,\n"),
        encoding="utf-8",
    )
    text = normalize(
        "NFD" if named == "NFC" else "NFC",
        "layouts: {x: {description: x, image: '{scan}_ct.nii.gz', label: '{scan}_seg.nii.gz'}}\n"
        "splits: {files: split.txt, sections: {prüfung: tést}, entry: '{scan}.nii'}\n"
        "tables: {t: {files: table.csv, key: Prüfer, split: Teil, constants: {größe: groß}}}\n",
    )
    report = run(load(tmp_path, text), raw, out)
    assert (set(report.done), report.exit_code) == ({"Müller", "b"}, 0)
    assert report.absent == ("Äbel",)
    (use,) = report.tables
    assert (use.rows, use.matched, use.unmatched) == (4, 2, ("Äbel",))
    store = spinezarr.open(out)
    row = store.table.sel(scan="Müller")
    assert (row.split.item(), row["Gruß"].item(), row["größe"].item()) == ("tést", "süß", "groß")
    assert store.table.sel(scan="b").split.item() == "tür"
    assert row.patient_id.item() == "Müller"
    for asked in (normalize("NFC", "Müller"), normalize("NFD", "Müller")):
        scan = store.scan(asked)
        assert scan.attrs["scan_id"] == "Müller"
        assert scan.attrs["image_source"]["file"] == f"{name}_ct.nii.gz"
        (batch,) = store.patches(4, scans=[asked], split=normalize("NFD", "tést"))
        assert batch.scan_id == ("Müller",)
        assert store.audit(scans=[asked]).scans == ("Müller",)
        assert store.figure(asked) is not None
        (batch, *_) = store.grid(asked, 8)
        assert set(batch.scan_id) == {"Müller"}
        assert store.stats(split=normalize("NFD", "tést")).scans == 1
    assert set(run(load(tmp_path, text), raw, out).skipped) == {"b", "Müller"}


def test_two_names_that_differ_only_in_unicode_form_are_not_merged(raw, out):
    for form in ("NFC", "NFD"):
        write_pair(raw, normalize(form, "Müller"))
    report = run(PAIRS, raw, out)
    assert report.done == ("good",)
    (failed,) = report.failed
    assert failed.scan_id == "Müller"
    assert "differ only in the Unicode form of a letter" in failed.reason


@pytest.mark.usefixtures("plain_user")
def test_a_forbidden_folder_is_reported_and_everything_else_ingested(raw, out):
    recipe = Recipe.from_pairs("**/{scan}_ct.nii.gz", "**/{scan}_seg.nii.gz", name="pairs-test")
    for name in ("secret", "lost+found"):
        (raw / name).mkdir()
        (raw / name).chmod(0)
    report = run(recipe, raw, out)
    assert (report.done, report.failed, report.exit_code) == (("good",), (), 1)
    assert [(note.path, note.reason) for note in report.unlisted] == [
        ("secret/", "folder cannot be listed: Permission denied")
    ]
    assert [note.path for note in report.ignored] == ["lost+found/"]
    raw.chmod(0)
    with pytest.raises(UsageError, match="cannot be listed: Permission denied"):
        discover(recipe, str(raw))
    raw.chmod(0o700)
    for name in ("secret", "lost+found"):
        (raw / name).chmod(0o700)


@pytest.mark.parametrize("label", [None, "{scan}.mgz"])
def test_patterns_of_unsupported_formats_are_a_usage_error(tmp_path, out, label):
    for name in ("1.dcm", "2.dcm", "1.mgz", "2.mgz"):
        (tmp_path / name).write_bytes(b"x")
    recipe = Recipe.from_pairs("{scan}.dcm", label, name="slices")
    found = discover(recipe, str(tmp_path))
    (image, *mask) = found.patterns
    assert (image.files, image.unread) == (2, 2)
    assert image.unread_advice.startswith("By its ending it is a DICOM file. A series of CT slices")
    assert [use.unread_advice.split(". ")[0] for use in mask] == [
        "By its ending it is an MGH file of FreeSurfer"
    ] * len(mask)
    with pytest.raises(UsageError, match=r"end the pattern with '/'") as caught:
        ingest(recipe, found, str(out))
    assert "{scan}.dcm (2 files)" in str(caught.value)
    assert not out.exists()


def test_scans_of_an_unsupported_format_fail_among_others(raw, out):
    recipe = Recipe.from_pairs(r"{scan}_ct.{ext:nii\.gz|nhdr}", None, name="mixed")
    (raw / "other_ct.nhdr").write_bytes(b"NRRD0004\n")
    (image,) = discover(recipe, str(raw)).patterns
    assert (image.files, image.unread) == (2, 1)
    report = run(recipe, raw, out)
    assert report.done == ("good",)
    (failed,) = report.failed
    assert "SimpleITK" in failed.reason


def test_each_file_is_counted_under_one_pattern(tmp_path):
    names = ["data/colon/a", "data/liver/b", "data/covid/c"]
    masks = ["label/conlon/a", "label/Liver/b", "label/covid/c", "label/covid/lone"]
    for path in (*names, *(f"{mask}_seg" for mask in masks)):
        (tmp_path / "raw" / f"{path}.nii.gz").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / f"{path}.nii.gz").touch()
    text = (
        "layouts:\n"
        "  one:\n"
        "    description: x\n"
        "    image: ['data/{folder}/{scan}.nii.gz', '**/{folder}/{scan}.nii.gz']\n"
        "    label: ['label/{mapped}/{scan}_seg.nii.gz', 'label/{folder}/{scan}_seg.nii.gz']\n"
        "lookups: {mapped: {inputs: folder, values: {colon: conlon, liver: Liver}}}\n"
    )
    found = discover(load(tmp_path, text), str(tmp_path / "raw"))
    assert {use.pattern: use.files for use in found.patterns} == {
        "data/{folder}/{scan}.nii.gz": 3,
        "**/{folder}/{scan}.nii.gz": 0,
        "label/{mapped}/{scan}_seg.nii.gz": 2,
        "label/{folder}/{scan}_seg.nii.gz": 2,
    }


def test_mask_parts_are_counted_and_absent_ones_listed(tmp_path):
    parts = {"s0": ["vertebrae_L1", "vertebrae_L2"], "s1": ["vertebrae_L1", "heart"], "s2": []}
    for scan, names in parts.items():
        for name in ("ct", *(f"segmentations/{name}" for name in names)):
            path = tmp_path / scan / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    lone = tmp_path / "s3" / "segmentations"
    lone.mkdir(parents=True)
    for name in ("vertebrae_L1", "sacrum", "heart"):
        (lone / f"{name}.nii.gz").touch()
    found = discover(Recipe.load("totalsegmentator"), str(tmp_path))
    assert [scan.scan_id for scan in found.scans] == ["s0", "s1"]
    assert [image.scan_id for image in found.without_mask] == ["s2"]
    files = {(use.layout, use.kind): use.files for use in found.patterns if use.files}
    assert files == {("dataset", "image"): 3, ("dataset", "mask"): 5, ("dataset", "layer"): 1}
    counts = {use.part: (use.scans_with, use.scans_without) for use in found.parts}
    assert counts["vertebrae_L1"] == (2, 0)
    assert counts["vertebrae_L2"] == (1, 1)
    assert Counter(counts.values())[0, 2] == len(counts) - 2
    assert {note.path for note in found.without_image} == {
        "s3/segmentations/sacrum.nii.gz",
        "s3/segmentations/vertebrae_L1.nii.gz",
    }
    assert {note.path: note.reason for note in found.ignored} == {
        "s3/segmentations/heart.nii.gz": "mask of another structure"
    }


def test_every_file_of_a_raw_folder_is_reported_once(raw, out):
    """Scans, failures, orphans and ignored files together are all files of the folder."""
    write_pair(raw, "__bad")
    write(raw / "lone_seg.nii.gz", MASK)
    write(raw / "nomask_ct.nii.gz")
    for name in ("notes.txt", ".DS_Store", "good_ct.nii", "x_CT.nii.gz"):
        (raw / name).write_bytes(b"x")
    found = discover(PAIRS, str(raw))
    paths = [path for scan in found.scans for path in scan.paths]
    paths += [path for scan in found.refused for path in scan.paths]
    paths += [image.path for image in found.without_mask]
    paths += [note.path for note in (*found.without_image, *found.ignored)]
    assert sorted(paths) == sorted(path.name for path in raw.iterdir())
    assert asdict(found)["refused"][0]["scan_id"] == "__bad"
