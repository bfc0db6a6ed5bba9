"""Every JSON report has exactly the members that docs/reference/json.md lists, with their types."""

import json
import re
import shutil
from collections import defaultdict
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_scans import make_store
from typer.testing import CliRunner

from spinezarr.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
INNERMOST = re.compile(r"\{([^{}]*,[^{}]*)\}")
SAME_AS = {"ingest --dry-run": "ingest", "export nnunet": "export nifti"}
"""Reports that share members with another, which the page does not repeat."""
SHARED_BY_PLAN = re.compile(
    r"(without_image|unlisted|ignored|orphans_expected|absent|tables|missing|without_mask)\b"
)


def expanded(path):
    """Return the paths for which ``{a,b}.c`` stands."""
    found = INNERMOST.search(path)
    if found is None:
        return [path]
    start, end = path[: found.start()], path[found.end() :]
    return [full for part in found[1].split(",") for full in expanded(start + part + end)]


def documented():
    """Return the type of each path, by the name of the report."""
    reports = defaultdict(dict)
    names = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch("## (.+)", line):
            names = heading[1].split(", ")
        elif row := re.fullmatch(r"\| (`.+`) \| (.+) \| (.+) \|", line):
            paths = [full for path in re.findall("`([^`]+)`", row[1]) for full in expanded(path)]
            for name, path in product(names, paths):
                assert path not in reports[name], path
                reports[name][path] = row[2]
    for name, other in SAME_AS.items():
        shared = {
            path: kind
            for path, kind in reports[other].items()
            if other != "ingest" or SHARED_BY_PLAN.match(path)
        }
        reports[name] |= shared
    return reports


REPORTS = documented()
OPTIONAL = ", optional"


def has_type(value, kind):
    kind = kind.removesuffix(OPTIONAL)
    if kind.endswith(" or null"):
        return value is None or has_type(value, kind.removesuffix(" or null"))
    if kind.startswith("["):
        return isinstance(value, list) and all(has_type(item, kind[1:-1]) for item in value)
    if kind.startswith("{text: "):
        items = value.values() if isinstance(value, dict) else [None]
        return isinstance(value, dict) and all(has_type(item, kind[7:-1]) for item in items)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "text": isinstance(value, str),
        "bool": isinstance(value, bool),
        "number": is_number,
        "count": is_number and isinstance(value, int) and value >= 0,
        "list": isinstance(value, list),
        "object": isinstance(value, dict),
    }[kind]


def check(value, kinds, path=""):
    """Check a value and yield the documented paths that it has."""
    if path in kinds:
        assert has_type(value, kinds[path]), (path, value, kinds[path])
        yield path
        return
    if isinstance(value, list):
        for item in value:
            yield from check(item, kinds, f"{path}[]")
        return
    assert isinstance(value, dict), f"{path} is not on the page"
    is_map = any(other.startswith(f"{path}{{}}") for other in kinds) if path else False
    below = {
        re.split(r"[.\[{]", other[len(path) :].lstrip("."))[0]
        for other in kinds
        if other.startswith(f"{path}." if path else "")
    }
    if not is_map:
        absent = below - value.keys()
        assert value.keys() <= below, f"{path or 'the report'}: {value.keys() - below}"
        assert all(
            kinds.get(f"{path}.{name}".lstrip("."), "").endswith(OPTIONAL) for name in absent
        )
    for name, item in value.items():
        yield from check(item, kinds, f"{path}{{}}" if is_map else f"{path}.{name}".lstrip("."))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a folder with a store, its raw files, predictions and a card."""
    folder = tmp_path_factory.mktemp("own")
    store = make_store(folder, ["box", "oblique", "bare"])
    truth = nib.load(next(folder.glob("raw/*_box_seg.nii")))
    values = np.asarray(truth.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 20, 21, values), truth.affine), folder / "box.nii")
    (folder / "notes.txt").write_text("x")
    (folder / "raw" / "notes.txt").write_text("x")
    (folder / "card.yaml").write_text(CARD)
    return folder, store.url


CARD = """\
name: small
title: A card
source: https://example.org
as_of: "2025"
scans: 3
"""
PAIRS = "ingest pairs --raw {own} --image raw/P0_{{scan}}_ct.nii --label {{scan}}.nii"
COMMANDS = {
    "ingest": [
        ("ingest {own}/small.yaml --raw {own}/raw --out {here}/out.zarr", 0),
        ("ingest {own}/small.yaml --raw {own}/raw --out {here}/out.zarr --repair", 0),
        (f"{PAIRS} --out {{here}}/n", 1),
    ],
    "ingest --dry-run": [
        ("ingest {own}/small.yaml --raw {own}/raw --dry-run", 0),
        (f"{PAIRS} --dry-run", 0),
    ],
    "add-labels": [
        ("add-labels {here}/out.zarr --layer net --masks {own}/{{scan}}.nii --dry-run", 0),
        ("add-labels {here}/out.zarr --layer net --masks {own}/{{scan}}.nii", 0),
        ("add-labels {here}/out.zarr --layer net --masks {own}/raw/P0_{{scan}}_ct.nii", 1),
    ],
    "compare": [
        ("compare {here}/out.zarr --layer net --save", 1),
        ("compare {here}/out.zarr --masks {own}/{{scan}}.nii", 1),
    ],
    "remove-labels": [("remove-labels {here}/out.zarr --layer net", 0)],
    "derive": [("derive {store} --out {here}/d.zarr --crop spine", 1)],
    "info": [("info {store}", 0), ("info {here}/out.zarr", 0)],
    "audit": [("audit {here}/out.zarr", None), ("audit {store} {here}/out.zarr --no-write", 1)],
    "verify": [("verify {store}", 0), ("verify {store} --against {own}", 1)],
    "stats": [("stats {store}", 0), ("stats {store} --layer ribs", 0)],
    "stats --against": [("stats {store} --against {own}/card.yaml", None)],
    "preview": [("preview {store} --out {here}/p --scan box", 0)],
    "export nifti": [("export nifti {store} --out {here}/n", 0)],
    "export ome-zarr": [("export ome-zarr {store} --out {here}/o --scan box", 0)],
    "export nnunet": [("export nnunet {store} --out {here}/u --scan box --scan oblique", 0)],
    "export card": [("export card {store} --url https://example.org/s.zarr --out {here}/c", 0)],
    "push": [("push {store} {here}/copy.zarr --dry-run", 0), ("push {store} {here}/copy.zarr", 0)],
    "pull": [("pull {here}/copy.zarr {here}/back.zarr", 0)],
    "doctor": [("doctor {store}", None)],
    "bench": [("bench {store} --seconds 1", 0)],
}


def test_the_page_names_every_command_with_json():
    assert REPORTS.keys() == COMMANDS.keys()


@pytest.fixture(scope="module")
def reports(own, tmp_path_factory):
    """Run all commands in turn; return exit code and standard output of each, by report."""
    folder, store = own
    here = tmp_path_factory.mktemp("here")
    found = defaultdict(list)
    for name, commands in COMMANDS.items():
        for words, code in commands:
            filled = words.format(own=folder, store=store, here=here).split()
            done = CliRunner().invoke(app, [*filled, "--json"])
            found[name].append((words, code, done.exit_code, done.stdout))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_each_report_has_the_members_and_types_of_the_page(name, reports):
    kinds = REPORTS[name] | {"exit_code": "count"}
    seen = set()
    for words, expected_code, code, printed in reports[name]:
        report = json.loads(printed)
        assert report["exit_code"] == code, words
        assert expected_code in {None, code}, (words, report)
        assert printed.isascii()
        seen |= set(check(report, kinds))
    # A path below an empty list or object is not seen. All others are.
    outer = {path for path in kinds if "[]" not in path and "{}" not in path}
    assert {path for path in outer if not kinds[path].endswith(OPTIONAL)} <= seen


def test_a_copy_without_a_damaged_scan_is_no_success(own, run, tmp_path):
    damaged = shutil.copytree(own[1], tmp_path / "damaged.zarr")
    shard = next(path for path in (damaged / "scans" / "box" / "image").rglob("c/*/*/*"))
    shard.write_bytes(b"x" * shard.stat().st_size)
    said = json.loads(run("push", damaged, tmp_path / "copy.zarr", "--json", code=1).out)
    assert said["exit_code"] == 1
    assert list(said["failed"]) == ["box"]
    assert said["copied"] == ["bare", "oblique"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("info nowhere", 2),
        ("verify nowhere", 2),
        ("ingest nothing --raw .", 2),
        ("stats {store} --split no", 2),
        ("stats {store} --format csv", 2),
        ("bench {store} --seconds -1", 2),
        ("derive {store}", 2),
        ("verify {store} --no-such-option", 2),
    ],
)
def test_an_error_is_an_object_with_a_message(own, run, words, code):
    done = run(*words.format(store=own[1]).split(), "--json", code=code)
    said = json.loads(done.out)
    assert said.keys() == {"error", "exit_code"}
    assert said["exit_code"] == code
    assert said["error"].split("\n")[0] in done.err.decode()
