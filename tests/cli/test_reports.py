"""Reports about a raw folder in the terminal and ``--json``, and errors of wrong options."""

import json
import os
import shutil
import subprocess
from unicodedata import normalize

import fork_server
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app

IMAGE = np.arange(10 * 9 * 8, dtype=np.int16).reshape(10, 9, 8)
MASK = np.where(IMAGE > 400, 20, 0).astype(np.uint8)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
PATTERNS = ["--image", "{scan}_ct.nii.gz", "--label", "{scan}_seg.nii.gz"]


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    assert "Errno" not in result.output
    return result


def write(path, values=IMAGE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)


def write_pair(folder, name):
    write(folder / f"{name}_ct.nii.gz")
    write(folder / f"{name}_seg.nii.gz", MASK)


@pytest.fixture
def raw(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / "raw", name)
    return tmp_path / "raw"


def pairs(raw, out, *words, code=0):
    return run("ingest", "pairs", "--raw", raw, "--out", out, *PATTERNS, *words, code=code)


def words_of(output):
    return " ".join(output.split())


@pytest.fixture
def messy(raw):
    write_pair(raw, "__bad")
    write(raw / "lone_seg.nii.gz", MASK)
    write(raw / "nomask_ct.nii.gz")
    write(raw / "x_CT.nii.gz")
    for name in ("notes.txt", ".DS_Store", "._a_ct.nii.gz"):
        (raw / name).write_bytes(b"x")
    return raw


def test_an_ingest_reports_the_same_as_its_dry_run(messy, tmp_path):
    dry = json.loads(pairs(messy, tmp_path / "s.zarr", "--dry-run", "--json").stdout)
    real = json.loads(pairs(messy, tmp_path / "s.zarr", "--json", code=1).stdout)
    for field in ("without_mask", "without_image", "ignored", "unlisted", "absent", "tables"):
        assert real[field] == dry[field], field
    assert [note["path"] for note in real["without_image"]] == ["lone_seg.nii.gz"]
    assert [image["path"] for image in real["without_mask"]] == ["nomask_ct.nii.gz"]
    assert {note["path"] for note in real["ignored"]} == {
        *["notes.txt", ".DS_Store", "._a_ct.nii.gz", "x_CT.nii.gz"]
    }
    failing = [scan["scan_id"] for scan in (*dry["refused"], *dry["without_mask"])]
    assert [scan["scan_id"] for scan in real["failed"]] == failing == ["__bad", "nomask"]
    assert (real["done"], real["exit_code"]) == (["a", "b"], 1)


def test_the_terminal_shows_the_same_counts(messy, tmp_path):
    dry = words_of(pairs(messy, tmp_path / "s.zarr", "--dry-run").stdout)
    real = words_of(pairs(messy, tmp_path / "s.zarr", code=1).stdout)
    assert "2 scans found, 2 more will fail" in dry
    assert "Scans that will fail" in dry
    assert "│ failed │ 2 │" in real
    lone = "1 mask without an image, e.g. lone_seg.nii.gz. Get the images, or move the masks away."
    for said in (dry, real):
        assert lone in said
        assert "Ignored: 4 files" in said
        assert said.index("capital letters differ") < said.index("matches no pattern")
        assert said.index("matches no pattern") < said.index("left by an operating system")
        assert "│ 2 │ left by an operating system or program │" in said
        assert "no mask for nomask_ct.nii.gz; looked for nomask_seg.nii.gz" in said


def test_a_folder_of_complete_scans_has_a_short_report(raw, tmp_path):
    output = pairs(raw, tmp_path / "s.zarr").stdout
    for word in ("Ignored", "without", "Listed", "Failed", "Notes", "Table"):
        assert word not in output


RECIPE = """\
name: mine
title: Mine
license: none
citation: none
layouts: {x: {description: x, image: '{scan}_ct.nii.gz', label: '{scan}_seg.nii.gz'}}
labels: {scheme: canonical, state: unknown}
splits: {files: split.txt, sections: {one: train}, entry: '{scan}'}
tables: {clinic: {files: clinic.csv, key: Id}}
orphaned_masks: expected
"""


def test_lists_tables_and_expected_masks_are_reported(raw, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (raw / "split.txt").write_text("one:\na\nc\n")
    (raw / "clinic.csv").write_text("Id,Age\na,1\nd,2\ne,3\n")
    write(raw / "lone_seg.nii.gz", MASK)
    words = ["ingest", tmp_path / "mine.yaml", "--raw", raw, "--out", tmp_path / "s.zarr"]
    for more in (["--dry-run"], []):
        output = words_of(run(*words, *more).stdout)
        assert "Listed in a split and not here: 1 scan." in output
        assert "Table clinic: 2 rows of 3 without a scan here." in output
        assert (
            "1 mask without an image, as the recipe expects of partial downloads, "
            "e.g. lone_seg.nii.gz." in output
        )
    report = json.loads(run(*words, "--json").stdout)
    assert report["absent"] == ["c"]
    assert report["tables"][0]["unmatched"] == ["d", "e"]
    assert report["orphans_expected"] is True
    hidden = [*words[:-1], tmp_path / "h.zarr", "--pseudonymize"]
    report = json.loads(run(*hidden, "--json").stdout)
    (absent,), (first, second) = report["absent"], report["tables"][0]["unmatched"]
    assert all(name.startswith("scan-") for name in (absent, first, second))


def test_the_dry_run_has_a_total_row_and_lists_unread_files(raw, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("ct.nii.gz'", r"ct.{ext:nii\.gz|nhdr}'"))
    (raw / "split.txt").write_text("one:\na\n")
    write(raw / "c_ct.nhdr.nii")
    (raw / "c_ct.nhdr.nii").rename(raw / "c_ct.nhdr")
    write(raw / "c_seg.nii.gz", MASK)
    words = ["ingest", tmp_path / "mine.yaml", "--raw", raw, "--dry-run"]
    output = words_of(run(*words).stdout)
    assert "┃ source ┃ (no split) ┃ train ┃ scans ┃" in output
    assert "│ x │ 3 │ image │" in output
    assert "│ all │ 3 │ │ │ 6 │" in output
    assert (
        r"Not read: 1 file of {scan}_ct.{ext:nii\.gz|nhdr}. By its ending it is an NRRD" in output
    )


def test_several_sources_are_added_up(tmp_path, ctspine1k_raw):
    raw, written = ctspine1k_raw
    output = run("ingest", "ctspine1k", "--raw", raw, "--dry-run").stdout
    row = next(line for line in output.splitlines() if line.startswith("│ all"))
    assert [int(cell) for cell in row.replace("│", " ").split()[1:5]] == [1, 3, 2, len(written)]
    report = run("ingest", "ctspine1k", "--raw", raw, "--dry-run", "--json").stdout
    patterns = json.loads(report)["patterns"]
    masks = [use for use in patterns if use["kind"] == "mask"]
    assert sum(use["files"] for use in masks) == len(written)


def test_the_advice_for_a_pattern_of_single_slices_appears_once(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(3):
        (raw / f"{number}.dcm").write_bytes(b"x")
    words = ["ingest", "pairs", "--raw", raw, "--image", "{scan}.dcm"]
    refused = run(*words, "--out", tmp_path / "s.zarr", code=2).stderr
    assert refused.count("end the pattern with '/'") == 1
    assert "end the pattern with '/'" in words_of(run(*words, "--dry-run").stdout)
    nameless = run("ingest", "pairs", "--raw", raw, "--image", "1.dcm", "--dry-run", code=2)
    assert "(it names nothing; write {scan} in place of the name of the scan)" in words_of(
        nameless.stderr
    )


def test_sizes_are_compared_with_the_source_files_and_with_nii_gz(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 40, (96, 80, 64)).astype(np.int16)
    mask = np.zeros_like(values, np.uint8)
    mask[20:60, 30:50, 10:40] = 20
    (tmp_path / "raw").mkdir()
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "raw" / "a_ct.nii")
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "raw" / "a_seg.nii")
    report = json.loads(pairs(tmp_path / "raw", tmp_path / "s.zarr", "--json").stdout)
    packed = 0
    for name, array in (("ct", values), ("seg", mask)):
        nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / f"{name}.nii.gz")
        packed += (tmp_path / f"{name}.nii.gz").stat().st_size
    assert report["nii_gz_bytes"] == pytest.approx(packed, rel=0.05)
    output = words_of(pairs(tmp_path / "raw", tmp_path / "t.zarr").stdout)
    assert "The same voxels as .nii.gz: about 0.6 MB. Stored: 1.01 times as much." in output
    assert (
        json.loads(pairs(tmp_path / "raw", tmp_path / "s.zarr", "--json").stdout)["nii_gz_bytes"]
        is None
    )


def test_sources_in_nii_gz_are_compared_only_once(raw, tmp_path):
    assert "As .nii.gz" not in pairs(raw, tmp_path / "s.zarr").stdout


def test_a_renamed_store_is_recognized_by_its_metadata(raw, tmp_path, ctspine1k_url):
    pairs(raw, tmp_path / "s.zarr")
    (tmp_path / "s.zarr").rename(tmp_path / "del.zarr")
    write_pair(raw, "c")
    report = json.loads(pairs(raw, tmp_path / "del.zarr", "--json").stdout)
    assert (report["done"], report["skipped"]) == (["c"], ["a", "b"])
    assert spinezarr.open(tmp_path / "del.zarr").attrs["dataset"] == "s"
    refused = pairs(raw, ctspine1k_url, code=2)
    assert "holds the dataset 'ctspine1k'" in refused.stderr
    (tmp_path / "mine.yaml").write_text(RECIPE)
    run("ingest", tmp_path / "mine.yaml", "--raw", raw, "--out", tmp_path / "mine.zarr")
    refused = pairs(raw, tmp_path / "mine.zarr", code=2)
    assert "holds the dataset 'mine' (Mine), not the dataset 'mine' (mine)" in refused.stderr
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("title: Mine", "title: mine"))
    run("ingest", tmp_path / "mine.yaml", "--raw", raw, "--out", tmp_path / "other.zarr")
    refused = pairs(raw, tmp_path / "other.zarr", code=2)
    assert "holds the dataset 'mine' (mine), not the dataset 'other' (other)" in refused.stderr


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_commands_take_names_in_any_unicode_form(raw, tmp_path, form, monkeypatch):
    write_pair(raw, normalize("NFD", "Müller"))
    store, name = tmp_path / "s.zarr", normalize(form, "Müller")
    pairs(raw, store)
    run("preview", store, "--out", tmp_path / "p", "--scan", name)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["Müller.png"]
    assert json.loads(run("verify", store, "--scan", name, "--json").stdout)["scans"] == ["Müller"]
    run("verify", store, "--against", raw)
    run("export", "nifti", store, "--out", tmp_path / "n", "--scan", name)
    assert {path.name for path in (tmp_path / "n").iterdir()} == {
        "Müller_ct.nii.gz",
        "Müller_seg.nii.gz",
    }
    audited = run("audit", store, "--scan", name, "--json", "--no-write", code=1)
    assert json.loads(audited.stdout)["audits"][0]["scans"] == ["Müller"]
    other = normalize("NFD" if form == "NFC" else "NFC", "Müller")
    (tmp_path / "catalog.yaml").write_text(
        f"datasets: {{{other}: {{recipe: verse, store: s.zarr}}}}", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert "3 scans" in run("info", name).stdout
    entry = "{recipe: verse, store: s}"
    twice = f"datasets:\n  {name}: {entry}\n  {other}: {entry}\n"
    (tmp_path / "catalog.yaml").write_text(twice, encoding="utf-8")
    assert "is given twice" in run("info", name, code=2).stderr


def test_pseudonyms_are_the_same_in_any_unicode_form(tmp_path):
    for form in ("NFC", "NFD"):
        write_pair(tmp_path / form, normalize(form, "Müller"))
    words = ["--pseudonymize", "--json"]
    first = json.loads(pairs(tmp_path / "NFC", tmp_path / "s.zarr", *words).stdout)
    place = tmp_path / "s.zarr.pseudonyms.csv"
    place.write_text(normalize("NFD", place.read_text(encoding="utf-8")), encoding="utf-8")
    again = json.loads(pairs(tmp_path / "NFD", tmp_path / "s.zarr", *words).stdout)
    assert again["done"] == first["done"]
    assert again["from_earlier_runs"] == []


def test_scans_with_invalid_names_are_reported_under_pseudonyms(raw, tmp_path):
    write_pair(raw, "__jane")
    write(raw / "doe_ct.nii.gz")
    words = ["--pseudonymize", "--json"]
    report = json.loads(pairs(raw, tmp_path / "s.zarr", *words, code=1).stdout)
    assert all(scan["scan_id"].startswith("scan-") for scan in report["failed"])
    assert {scan["reason"].split(":")[0] for scan in report["failed"]} == {
        "__jane_ct.nii.gz",
        "no mask for doe_ct.nii.gz; looked for doe_seg.nii.gz",
    }


NAMED = {
    "absent": lambda _: None,
    "file": lambda path: path.write_text("precious"),
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
}
INGEST = ["ingest", "pairs", *PATTERNS, "--raw"]
FOLDER = {"absent", "folder"}
OPTIONS = {
    # what is asked, and which things may have the name in it
    "raw": ([*INGEST, "{}", "--out", "o.zarr"], {}),
    "out": ([*INGEST, "raw", "--out", "{}"], FOLDER),
    "out below": ([*INGEST, "raw", "--out", "{}/o"], FOLDER),
    "recipe": (["ingest", "./{}", "--raw", "raw", "--dry-run"], {}),
    "catalog": (["ingest", "verse", "--raw", "raw", "--out", "o.zarr", "--catalog", "{}"], {}),
    "map": (
        [*INGEST, "raw", "--out", "o.zarr", "--pseudonymize", "--pseudonyms", "{}"],
        {"absent"},
    ),
    "scratch": ([*INGEST, "raw", "--out", "o.zarr", "--scratch", "{}"], {"folder"}),
    "info": (["info", "{}"], {}),
    "verify": (["verify", "{}"], {}),
    "against": (["verify", "s.zarr", "--against", "{}"], {}),
    "audit": (["audit", "{}"], {}),
    "stats": (["stats", "{}"], {}),
    "card": (["stats", "s.zarr", "--against", "./{}"], {}),
    "plots": (["stats", "s.zarr", "--plots", "{}"], FOLDER),
    "preview": (["preview", "s.zarr", "--out", "{}"], FOLDER),
    "export": (["export", "nifti", "s.zarr", "--out", "{}"], FOLDER),
    "nnunet": (["export", "nnunet", "s.zarr", "--out", "{}"], FOLDER),
    "init": (["init", "{}"], {"absent"}),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a store and its raw folder; not to be changed."""
    folder = tmp_path_factory.mktemp("stored")
    for name in ("a", "b"):
        write_pair(folder / "raw", name)
    pairs(folder / "raw", folder / "s.zarr")
    return folder


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_error_of_an_option_of_the_wrong_kind_names_its_path(
    stored, tmp_path, monkeypatch, option, kind
):
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    words, right = OPTIONS[option]
    name = {"recipe": "x.yaml", "card": "x.yaml", "map": "x.csv"}.get(option, "named")
    NAMED[kind](tmp_path / name)
    words = [word.replace("{}", name) for word in words]
    # A store whose source files are missing has faults; everything else is wrong usage.
    code = 0 if kind in right else 1 if (option, kind) == ("against", "folder") else 2
    result = run(*words, code=code)
    if code == 2:
        assert name in result.stderr
        said = result.stderr[result.stderr.index("Error:") :].strip()
        assert len(said.replace("\n", ". ").split(". ")) > 1  # what is wrong, and what to do
    if kind == "file":
        assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("which", ["x.csv", "x.key"])
def test_the_error_names_a_folder_in_place_of_a_map_or_its_key(raw, tmp_path, which):
    (tmp_path / which).mkdir()
    if which == "x.csv":
        (tmp_path / "x.key").write_text("00" * 32)
    words = ["--pseudonymize", "--pseudonyms", tmp_path / "x.csv"]
    refused = pairs(raw, tmp_path / "s.zarr", *words, code=2).stderr
    assert f"{tmp_path / which}: cannot be read: Is a directory. Choose a place" in refused
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_holds_names_that_the_terminal_shortens(raw, tmp_path, encoding):
    name = normalize("NFD", "Ünpaired 日本\u202e")
    (raw / f"{name}.txt").touch()
    command = [fork_server.command(), "ingest", "pairs", "--raw", raw]
    command += [*PATTERNS, "--out", tmp_path / "s.zarr", "--json"]
    variables = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, check=True, env=variables)
    (note,) = json.loads(done.stdout.decode(encoding))["ignored"]
    assert note["path"] == f"{name[:-1]}\\u202e.txt"


def test_absent_mask_parts_are_counted(tmp_path):
    for scan, parts in {"s0": ["C1", "C2"], "s1": ["C1"], "s2": ["C1", "L1"]}.items():
        for name in ("ct", *(f"segmentations/vertebrae_{part}" for part in parts)):
            path = tmp_path / scan / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    output = words_of(run("ingest", "totalsegmentator", "--raw", tmp_path, "--dry-run").stdout)
    assert "Parts absent from masks of dataset (3 scans): vertebrae_C2 2, vertebrae_C3 3," in output
    assert "vertebrae_L1 2" in output
    assert "vertebrae_C1" not in output
