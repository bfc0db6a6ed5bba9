import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fork_server
import numpy as np
import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.catalog import CATALOG_VARIABLE
from spinezarr.cli.main import app
from spinezarr.testing import (
    NiftiForm,
    PhantomSpec,
    make_phantom,
    write_ctspine1k,
    write_msr,
    write_nifti,
)

COMMANDS = ["ingest", "info", "stats", "preview", "doctor", "bench", "init", "demo"]


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def pairs_folder(folder, names, spec):
    phantom = make_phantom(spec)
    for name in names:
        write_nifti(folder / f"{name}_ct.nii.gz", phantom.image, phantom.affine_xyz, NiftiForm())
        form = NiftiForm(dtype="uint8")
        write_nifti(folder / f"{name}_seg.nii.gz", phantom.label, phantom.affine_xyz, form)
    return phantom


@pytest.fixture
def spec():
    return PhantomSpec(shape_zyx=(30, 40, 36), spacing_zyx_mm=(6.0, 6.0, 6.0), levels=("L1", "L2"))


@pytest.fixture
def pairs(tmp_path, spec):
    raw = tmp_path / "raw"
    raw.mkdir()
    pairs_folder(raw, ["a", "b"], spec)
    return raw


def ingest_pairs(raw, out, *words, code=0):
    options = ["--image", "{scan}_ct.nii.gz", "--label", "{scan}_seg.nii.gz"]
    return run("ingest", "pairs", "--raw", raw, "--out", out, *options, *words, code=code)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    assert f"Example: spinezarr {command}" in " ".join(run(command, "--help").output.split())


@pytest.mark.parametrize(
    ("words", "code"),
    [("--help", 0), ("ingest --help", 0), ("info", 2), ("verfy", 2)],
)
def test_help_and_wrong_usage_do_not_import_the_packages_of_commands(words, code):
    # The modules are named on the last line of standard error.
    program = (
        "import atexit, sys; from spinezarr.cli.main import main; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", program, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    heavy = {"numpy", "xarray", "zarr", "dask", "nibabel", "fsspec", "yaml", "typer.rich_utils"}
    heavy |= {"spinezarr.api", "spinezarr.cli.reports"}
    heavy |= set() if words == "verfy" else {"rich"}
    assert "spinezarr.cli.main" in loaded
    assert not loaded & heavy


def test_help_names_each_command_with_its_first_sentence():
    said = run("--help").output.split("Commands:")[1].split("Start with:")[0]
    rows = re.findall(r"^  (\w+) +(\S.*)$", said, re.MULTILINE)
    names = [name for name, _ in rows]
    assert {
        *COMMANDS,
        "audit",
        "bench",
        "compare",
        "derive",
        "doctor",
        "export",
        "pull",
        "push",
        "serve",
        "verify",
    } == {*names}
    assert dict(rows)["init"] == "Write a starter catalog of datasets, ready to edit."
    assert dict(rows)["export"] == "Write scans as files of other formats."


def test_help_lists_options_under_their_headings():
    said = run("verify", "--help").output
    places = [said.index(text) for text in ("URL", "--json", "S3:", "--profile", "--raw-profile")]
    assert places == sorted(places)


@pytest.mark.parametrize("words", [[], ["info"], ["export"], ["export", "nifti"]], ids=" ".join)
def test_a_command_without_required_arguments_shows_its_help(words):
    assert run(*words, code=2).output == run(*words, "--help").output


def test_version_prints_that_of_the_package():
    assert run("--version").output.strip() == f"spinezarr {spinezarr.__version__}"


def test_the_installed_command_exits_with_2_for_wrong_usage():
    command = Path(sys.executable).parent / "spinezarr"
    done = subprocess.run([command, "info", "nowhere"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"nowhere" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_letter_outside_the_encoding_of_the_terminal_is_replaced(ctspine1k_url):
    command = [fork_server.command(), "stats", ctspine1k_url]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, check=False, env=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Min cm3" in done.stdout


def test_pairs_are_ingested_skipped_and_reported_as_json(pairs, tmp_path):
    first = json.loads(ingest_pairs(pairs, tmp_path / "a.zarr", "--json").stdout)
    again = json.loads(ingest_pairs(pairs, tmp_path / "a.zarr", "--json").stdout)
    assert (first["done"], first["skipped"], first["failed"]) == (["a", "b"], [], [])
    assert (again["done"], again["skipped"], again["failed"]) == ([], ["a", "b"], [])
    assert first["exit_code"] == 0
    assert first["stored_bytes"] > 0


def test_a_failed_scan_is_reported_and_the_others_are_stored(pairs, tmp_path):
    data = (pairs / "a_ct.nii.gz").read_bytes()
    (pairs / "a_ct.nii.gz").write_bytes(data[: len(data) // 2])
    report = json.loads(ingest_pairs(pairs, tmp_path / "a.zarr", "--json", code=1).stdout)
    assert report["done"] == ["b"]
    (failed,) = report["failed"]
    assert failed["scan_id"] == "a"
    assert "cut short" in failed["reason"]
    assert "a_ct.nii.gz" in failed["reason"]
    (pairs / "a_ct.nii.gz").write_bytes(data)
    repaired = json.loads(ingest_pairs(pairs, tmp_path / "a.zarr", "--json").stdout)
    assert (repaired["done"], repaired["skipped"]) == (["a"], ["b"])


def test_the_report_is_a_table_without_json(pairs, tmp_path):
    (pairs / "b_seg.nii.gz").unlink()
    output = ingest_pairs(pairs, tmp_path / "a.zarr", code=1).output
    assert "skipped, already whole" in output
    assert "no mask for" in output
    assert "MB. Stored: " in " ".join(output.split())


def test_dry_run_shows_found_unpaired_and_ignored_and_writes_nothing(pairs, tmp_path):
    (pairs / "b_seg.nii.gz").unlink()
    (pairs / "notes.txt").write_text("x")
    out = tmp_path / "a.zarr"
    output = ingest_pairs(pairs, out, "--dry-run").output
    assert "1 scan found, 1 more will fail" in output
    assert "no mask for b_ct.nii.gz" in output
    assert "Ignored: 1 file" in output
    assert "notes.txt" in output
    assert not out.exists()
    found = json.loads(ingest_pairs(pairs, out, "--dry-run", "--json").stdout)
    assert [scan["scan_id"] for scan in found["scans"]] == ["a"]
    assert [image["scan_id"] for image in found["without_mask"]] == ["b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ingest", "ctspine1k"], "no raw folder"),
        (["ingest", "ctspine1k", "--raw", "missing"], "Layouts that the recipe"),
        (["ingest", "nothing", "--raw", "."], "Shipped recipes: cads, ctspine1k"),
        (["ingest", "pairs", "--raw", ".", "--out", "x"], "needs --image"),
        (["ingest", "ctspine1k", "--raw", ".", "--image", "x"], "need the dataset 'pairs'"),
        (["ingest", "x.yaml", "--raw", "."], "no such recipe file"),
        (["info", "nowhere"], "nowhere"),
        (["info", "--catalog", "nowhere.yaml", "x"], "no such catalog file"),
        (["preview", "nowhere", "--out", "p"], "nowhere"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_message(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(run(*words, code=2).stderr.split())


@pytest.mark.parametrize(
    "words",
    [["preview", "{url}", "--out"], ["demo", "--out"], ["init"]],
    ids=lambda words: words[0],
)
def test_a_file_in_place_of_a_folder_is_wrong_usage(words, ctspine1k_url, tmp_path):
    (tmp_path / "file").write_text("precious")
    place = tmp_path / "file" / "catalog.yaml" if words == ["init"] else tmp_path / "file"
    stderr = run(*(word.format(url=ctspine1k_url) for word in words), place, code=2).stderr
    assert "Give the name of a folder" in " ".join(stderr.split())
    assert (tmp_path / "file").read_text() == "precious"


def test_init_creates_the_folder_of_the_catalog(tmp_path):
    run("init", tmp_path / "new" / "mine.yaml")
    assert (tmp_path / "new" / "mine.yaml").is_file()


def test_an_existing_folder_is_not_taken_for_a_store(pairs, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "is not a store" in ingest_pairs(pairs, out, code=2).stderr
    assert (out / "thesis.txt").read_text() == "precious"


def test_a_store_of_another_dataset_is_not_changed(pairs, tmp_path, ctspine1k_url):
    assert "holds the dataset 'ctspine1k'" in ingest_pairs(pairs, ctspine1k_url, code=2).stderr


def test_a_mask_on_another_grid_is_accepted_only_with_its_option(pairs, tmp_path, spec):
    phantom = make_phantom(spec)
    moved = phantom.affine_xyz + np.array([0, 0, 0, 30.0]) * np.array([[1], [0], [0], [0]])
    write_nifti(pairs / "a_seg.nii.gz", phantom.label, moved, NiftiForm(dtype="uint8"))
    refused = json.loads(ingest_pairs(pairs, tmp_path / "a.zarr", "--json", code=1).stdout)
    assert "--take-image-grid" in refused["failed"][0]["reason"]
    taken = json.loads(
        ingest_pairs(pairs, tmp_path / "a.zarr", "--take-image-grid", "--json").stdout
    )
    assert taken["done"] == ["a"]
    assert "--take-image-grid" in taken["notes"]["a"][0]
    stored = spinezarr.open(tmp_path / "a.zarr").scan("a")
    np.testing.assert_array_equal(stored.label, phantom.label)


def test_a_catalog_replaces_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "catalog.yaml" in run("init").output
    assert "exists already" in run("init", code=2).stderr
    write_ctspine1k(tmp_path / "data" / "CTSpine1K", scale=0.25)
    run("ingest", "ctspine1k")
    assert (tmp_path / "data" / "ctspine1k.zarr" / "zarr.json").is_file()
    assert spinezarr.open("ctspine1k").table.sizes["scan"] == 6
    summary = json.loads(run("info", "ctspine1k", "--json").stdout)
    assert summary["scans"] == 6
    assert summary["splits"] == {"test": 1, "train": 3, "validation": 2}
    monkeypatch.chdir("/")
    monkeypatch.setenv(CATALOG_VARIABLE, str(tmp_path / "catalog.yaml"))
    assert spinezarr.open("ctspine1k").table.sizes["scan"] == 6


def use_variables(catalog):
    run("init", catalog)
    catalog.write_text(catalog.read_text().replace(" data/", " ${SPINE_DATA}/"))


def test_the_error_names_a_catalog_variable_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPINE_DATA", raising=False)
    use_variables(tmp_path / "catalog.yaml")
    found = run("ingest", "ctspine1k", code=2).stderr
    assert "SPINE_DATA and the catalog was only found" in found
    named = run("ingest", "ctspine1k", "--catalog", "catalog.yaml", code=2).stderr
    assert "SPINE_DATA, which is not set" in named


def test_a_catalog_variable_is_not_needed_where_options_are_given(
    ctspine1k_raw, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPINE_DATA", raising=False)
    use_variables(tmp_path / "catalog.yaml")
    raw, written = ctspine1k_raw
    assert "6 scans found" in run("ingest", "ctspine1k", "--raw", raw, "--dry-run").output
    run("ingest", "ctspine1k", "--raw", raw, "--out", "mine.zarr")
    assert spinezarr.open("mine.zarr").table.sizes["scan"] == len(written)


def test_info_shows_splits_sizes_and_vertebrae(ctspine1k_url):
    output = run("info", ctspine1k_url).output
    for text in ("CTSpine1K", "COLONOG", "validation", "source files", "L6", "CC-BY-NC-SA-4.0"):
        assert text in output
    summary = json.loads(run("info", ctspine1k_url, "--json").stdout)
    assert summary["scans_by_vertebra"]["L6"] == 1
    assert summary["stored_bytes"] < summary["uncompressed_bytes"]


def test_info_keeps_counts_with_their_vertebrae_and_says_what_was_audited(ctspine1k_url):
    output = run("info", ctspine1k_url).output
    counts = json.loads(run("info", ctspine1k_url, "--json").stdout)["scans_by_vertebra"]
    for name, scans in counts.items():
        assert f" {name} {scans} " in output.replace("\n", " \n")
    assert "Audit: 6 not audited" in output
    assert "annotate the center" not in output


def test_info_counts_annotated_centers(tmp_path):
    written = write_msr(tmp_path / "raw")
    run("ingest", "msr", "--raw", tmp_path / "raw", "--out", tmp_path / "a.zarr")
    run("audit", tmp_path / "a.zarr")
    output = run("info", tmp_path / "a.zarr").output
    assert "Scans that annotate the center of each vertebra\n" in output
    found = json.loads(run("info", tmp_path / "a.zarr", "--json").stdout)
    expected = Counter(name for scan in written for name in scan.centers_mm)
    assert found["scans_by_annotated_centroid"] == expected
    assert found["scans_by_audit"] == {"info": 1, "warning": 3}


def test_preview_writes_a_picture_of_each_scan(pairs, tmp_path):
    store = tmp_path / "s.zarr"
    ingest_pairs(pairs, store)
    run("preview", store, "--out", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a.png", "b.png"]
    run("preview", store, "--out", tmp_path / "one", "--scan", "b")
    (picture,) = (tmp_path / "one").iterdir()
    assert picture.name == "b.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    missing = run("preview", store, "--out", tmp_path / "no", "--scan", "nobody", code=2)
    assert "'nobody'" in missing.stderr
    assert not (tmp_path / "no").exists()


def test_preview_of_a_damaged_store_exits_with_1(pairs, tmp_path):
    ingest_pairs(pairs, tmp_path / "a.zarr")
    (shard,) = (tmp_path / "a.zarr" / "scans" / "a" / "image" / "c").rglob("0/0/0")
    shard.unlink()
    damaged = run("preview", tmp_path / "a.zarr", "--out", tmp_path / "p", code=1)
    assert "shard is missing" in " ".join(damaged.stderr.split())


def test_demo_does_not_touch_a_folder_that_it_did_not_create(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "is not the folder of a demo" in run("demo", "--out", tmp_path, code=2).stderr
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.long
def test_demo_runs_again_over_its_own_folder(tmp_path):
    words = ["demo", "--out", tmp_path / "demo", "--scale", "0.2", "--samples", "2"]
    run(*words)
    output = run(*words).output
    for text in ("Arrow, 8 bytes a voxel", "spinezarr store", "axial slices", "xr.open_zarr"):
        assert text in output
