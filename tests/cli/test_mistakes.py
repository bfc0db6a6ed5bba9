"""Messages about common mistakes name what was found, and the next step."""

import json
import shutil

import pytest
from small_scans import make_store

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
INGEST = "ingest {own}/small.yaml --raw"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a folder with a store, its raw files, and things that are taken for a store."""
    folder = tmp_path_factory.mktemp("own")
    make_store(folder, ["box", "oblique", "bare"])
    (folder / "file.txt").write_text("precious")
    (folder / "empty").mkdir()
    (folder / "zipped").mkdir()
    shutil.make_archive(str(folder / "zipped" / "dataset"), "zip", folder / "raw")
    for name, attributes in (
        ("foreign", {}),
        ("older", {"format": "spinezarr", "format_version": 3}),
    ):
        (folder / f"{name}.zarr").mkdir()
        root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / f"{name}.zarr" / "zarr.json").write_text(json.dumps(root))
    shutil.copytree(folder / "raw", folder / "lfs")
    for path in (folder / "lfs").glob("*.nii"):
        path.write_text(LFS)
    return folder


MISTAKES = [
    ("info {own}/smal.zarr", "no such path", "Did you mean '{own}/small.zarr'?"),
    ("info {own}/unlike", "no such path", "'spinezarr ingest' makes a store"),
    ("info {own}", "holds 1 store", "give '{own}/small.zarr'"),
    ("info {own}/empty", "The folder is empty", "'spinezarr ingest' makes a store"),
    ("info {own}/raw", "holds image files", "spinezarr ingest pairs --raw {own}/raw --image"),
    ("info {own}/small.zarr/scans/box", "lies inside a store", "Give '{own}/small.zarr'"),
    ("info {own}/small.zarr/zarr.json", "It is a file", "a store is a folder"),
    ("info {own}/file.txt", "It is a file", "a store is a folder"),
    ("info {own}/zipped/dataset.zip", "It is an archive", "Unpack it"),
    ("info {own}/foreign.zarr", "is not a store that spinezarr wrote", "Give the folder"),
    ("info {own}/older.zarr", "is written in format 3", "spinezarr ingest"),
    ("info s3:/bucket/a.zarr", "two slashes", "Did you mean 's3://bucket/a.zarr'?"),
    ("info https:/host/a.zarr", "two slashes", "Did you mean 'https://host/a.zarr'?"),
    ("inf {store}", "No such command 'inf'", "Did you mean 'info'?"),
    ("info {store} --jsn", "No such option: --jsn", "Did you mean '--json'?"),
    ("ingest ctspin1k --raw .", "no recipe 'ctspin1k'", "Did you mean 'ctspine1k'"),
    (f"{INGEST} {{own}}/nowhere", "does not exist", "Give the folder that holds"),
    (f"{INGEST} {{own}}/zipped/dataset.zip", "is an archive", "Unpack it first"),
    (f"{INGEST} {{own}}/zipped", "dataset.zip is an archive", "Unpack it first"),
    (f"{INGEST} {{own}}/raw", "no store", "give --out URL"),
    (f"{INGEST} {{own}}/raw --out {{own}}/zipped", "is not a store", "Choose an empty or new"),
    (f"{INGEST} {{own}}/raw --out s3:/b/x", "two slashes", "Did you mean 's3://b/x'?"),
    (f"{INGEST} {{own}}/raw --out x --codec balnced", "no codec", "Did you mean 'balanced'?"),
    (f"{INGEST} {{own}}/raw --out x --workers 0", "'--workers'", "greater than or equal to 1|x>=1"),
    (f"{INGEST} {{own}}/raw --out x --max-volume-gb=-1", "-1", "greater than or equal to 0|x>=0"),
    ("verify {store} --scan bx", "has no scan 'bx'", "Did you mean 'box'?"),
    ("verify {store} --scan box.nii", "has no scan 'box.nii'", "Did you mean 'box'?"),
    ("verify {store} --against {own}/nowhere", "is not a folder", "Give the raw folder"),
    ("stats {store} --split trian", "split 'trian'", "Did you mean 'train'?"),
    ("stats {store} --split train --scan oblique", "no scan meets all", "Leave one of them out"),
    ("audit {store} --severity eror", "'eror'", "not one of 'info', 'warning', 'error'"),
    ("preview {store} --out p --layer rib", "no", "Did you mean 'ribs'?"),
    ("preview {store}", "Missing option '--out'", ""),
    ("preview {store} --out {own}/file.txt", "is a file", "Give the name of a folder"),
    ("preview {store} --out s3://b/x", "only written to a disk", "Give a folder"),
    ("export nifty {store}", "No such command 'nifty'", "Did you mean 'nifti'?"),
    ("derive {store} --out d --spacing-mm 1,2", "--spacing-mm '1,2'", "or three for z, y and x"),
    ("derive {store} --out d --spacing-mm -1", "--spacing-mm '-1'", "at least 0.001 mm"),
    ("derive {store} --out d --intensity 5", "--intensity '5'", "-200,1000"),
    ("derive {store} --out {store}", "is the store that is read", "Choose another place"),
    ("compare {store} --masks x.nii", "does not name the scan", "a path with {{scan}}"),
    ("compare {store}", "give either --layer", "or --masks"),
    ("add-labels {store} --layer X --masks {{scan}}.nii", "cannot be the name", "a small letter"),
    (
        "add-labels {store} --layer ab --masks {{scn}}.nii",
        "--masks {{scn}}.nii",
        "must have {{scan}}",
    ),
    ("remove-labels {store} --layer rib", "has a mask 'rib'", "Did you mean 'ribs'?"),
    ("bench {store} --seconds 0", "seconds 0", "try 10"),
    ("serve {store} --port 99999", "99999", "less than or equal to 65535|x<=65535"),
    ("stats {store} --json --format csv", "--json and --format csv", "give one of them"),
]


@pytest.mark.parametrize(("words", "found", "next_step"), MISTAKES, ids=lambda text: text[:40])
def test_a_mistake_is_answered_by_what_was_found_and_the_next_step(
    own, run, words, found, next_step
):
    names = {"own": own, "store": own / "small.zarr"}
    done = run(*words.format(**names).split(), code=2)
    said = " ".join(done.err.decode().split())
    assert found.format(**names) in said
    # Versions of typer word some steps in their own ways.
    assert any(words in said for words in next_step.format(**names).split("|"))
    assert "Traceback" not in said
    assert (own / "file.txt").read_text() == "precious"


def test_pointers_in_place_of_files_are_named_for_each_scan(own, run, tmp_path):
    words = ["ingest", own / "small.yaml", "--raw", own / "lfs", "--out", tmp_path / "s.zarr"]
    report = json.loads(run(*words, "--json", code=1).out)
    assert len(report["failed"]) == 3
    assert all("run 'git lfs pull'" in scan["reason"] for scan in report["failed"])
