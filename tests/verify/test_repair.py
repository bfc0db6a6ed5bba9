"""Faults that ``verify`` finds are repaired from the source files by ``ingest --repair``."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from spinezarr.cli.main import app
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import Damage, ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.store import verify_store

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
SHAPE = (130, 20, 24)
"""Two shards along z, and no more chunks than they need."""
RECIPE = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="mended")
WITHOUT_VOXELS = [
    "zarr.json",
    "scans/zarr.json",
    "table/zarr.json",
    "table/scan/c.0",
    "table_bundle/zarr.json",
    "ingest/zarr.json",
    "audit/zarr.json",
    "scans/b/image/zarr.json",
]
OF_VOXELS = [
    "zarr.json",
    "image/c/0/0/0",
    "image/c/1/0/0",
    "label/c/0/0/0",
    "z/c/0",
    "sampling/label_chunks/c/0/0",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return raw folder and store of three scans, with an audit."""
    folder = tmp_path_factory.mktemp("mended")
    for number, scan in enumerate("abc"):
        rng = np.random.default_rng(number)
        image = rng.integers(-1000, 2000, SHAPE).astype(np.int16)
        label = np.zeros(SHAPE, np.uint8)
        label[10:40, 4:16, 4:16] = 20
        write_nifti(folder / f"raw/{scan}_ct.nii", image, AFFINE, NiftiForm())
        write_nifti(folder / f"raw/{scan}_seg.nii", label, AFFINE, NiftiForm(dtype="uint8"))
    ingest(RECIPE, discover(RECIPE, str(folder / "raw")), str(folder / "mended.zarr"))
    CliRunner().invoke(app, ["audit", str(folder / "mended.zarr")])
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    shutil.copytree(pristine / "raw", tmp_path / "raw")
    shutil.copytree(pristine / "mended.zarr", tmp_path / "mended.zarr")
    return tmp_path


def repair(folder, url=None):
    url = str(url or folder / "mended.zarr")
    return ingest(
        RECIPE,
        discover(RECIPE, str(folder / "raw")),
        url,
        find_damaged=lambda: Damage(verify_store(url).damaged_scans),
    )


def batched(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


def flip(data, rng):
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


DAMAGES = {
    "flipped": lambda path, rng: path.write_bytes(flip(path.read_bytes(), rng)),
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path, _: path.write_bytes(b""),
    "gone": lambda path, _: path.unlink(),
}


def assert_repaired(folder, pristine, differing_files, *, audited):
    """Check that the store has no fault and its old bytes; ``audited``: the audit still counts."""
    assert verify_store(str(folder / "mended.zarr")).faults == ()
    left = differing_files(folder / "mended.zarr", pristine / "mended.zarr")
    of_audit = ("audit/zarr.json", "table/zarr.json", "table/audit", "table_bundle/")
    assert audited == (not left)
    assert all(name.startswith(of_audit) for name in left), left


@pytest.mark.parametrize("damage", ["flipped", "gone"])
@pytest.mark.parametrize("name", WITHOUT_VOXELS)
def test_files_without_voxels_are_written_again(folder, pristine, differing_files, name, damage):
    DAMAGES[damage](folder / "mended.zarr" / name, np.random.default_rng())
    report = repair(folder)
    assert (report.done, report.skipped, report.failed) == ((), ("a", "b", "c"), ())
    assert_repaired(folder, pristine, differing_files, audited=name != "audit/zarr.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scans_are_read_again_from_the_source(folder, pristine, differing_files, damage):
    url = folder / "mended.zarr"
    for names in batched(OF_VOXELS, 2):
        damaged = dict(zip("ab", names, strict=False))
        for scan, name in damaged.items():
            DAMAGES[damage](url / "scans" / scan / name, np.random.default_rng())
        report = repair(folder)
        assert set(report.done) == set(damaged)
        assert set(report.skipped) == set("abc") - set(damaged)
        assert_repaired(folder, pristine, differing_files, audited=False)
        # Repaired scans have keys of the other form; the next damage meets the first form again.
        shutil.rmtree(url)
        shutil.copytree(pristine / "mended.zarr", url)


def test_many_faults_are_repaired_in_one_run(folder, pristine, differing_files):
    rng = np.random.default_rng()
    for name in ("zarr.json", "scans/zarr.json", "table_bundle/zarr.json", "ingest/zarr.json"):
        DAMAGES["flipped"](folder / "mended.zarr" / name, rng)
    for scan, name in zip("abc", OF_VOXELS, strict=False):
        DAMAGES["flipped"](folder / "mended.zarr/scans" / scan / name, rng)
    shutil.copy(
        folder / "mended.zarr/scans/a/label/c/0/0/0", folder / "mended.zarr/scans/b/image/c/1/0/0"
    )
    assert repair(folder).done == ("a", "b", "c")
    assert_repaired(folder, pristine, differing_files, audited=False)


def test_an_ingest_without_repair_restores_the_group_of_all_scans(
    folder, pristine, differing_files
):
    DAMAGES["flipped"](folder / "mended.zarr/scans/zarr.json", np.random.default_rng())
    ingest(RECIPE, discover(RECIPE, str(folder / "raw")), str(folder / "mended.zarr"))
    assert_repaired(folder, pristine, differing_files, audited=True)


def test_scans_whose_source_is_missing_are_reported_and_kept(folder):
    url = folder / "mended.zarr"
    DAMAGES["flipped"](url / "scans/b/image/c/0/0/0", np.random.default_rng())
    for path in folder.glob("raw/b_*"):
        path.unlink()
    report = repair(folder)
    (failed,) = report.failed
    assert failed.scan_id == "b"
    assert "its source files are not in the raw folder" in failed.reason
    assert report.exit_code == 1
    assert verify_store(str(url)).damaged_scans == {"b"}


def test_a_flipped_digit_of_the_format_version_is_damage_and_repaired(
    folder, pristine, differing_files
):
    path = folder / "mended.zarr/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"format_version": ', b'"format_version": 1'))
    repair(folder)
    assert_repaired(folder, pristine, differing_files, audited=True)


def test_root_and_table_that_are_both_damaged_are_refused(folder):
    for name in ("zarr.json", "table/zarr.json", "table_bundle/zarr.json"):
        DAMAGES["flipped"](folder / "mended.zarr" / name, np.random.default_rng())
    before = (folder / "mended.zarr/zarr.json").read_bytes()
    with pytest.raises(UsageError, match="are both damaged"):
        repair(folder)
    assert (folder / "mended.zarr/zarr.json").read_bytes() == before


def test_the_root_is_not_written_again_for_another_dataset(folder):
    DAMAGES["flipped"](folder / "mended.zarr/zarr.json", np.random.default_rng())
    other = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="other")
    with pytest.raises(UsageError, match="holds the dataset 'mended'"):
        ingest(
            other,
            discover(other, str(folder / "raw")),
            str(folder / "mended.zarr"),
            find_damaged=Damage,
        )


def test_the_command_line_reports_faults_and_repairs_them(folder):
    url = folder / "mended.zarr"

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    words = ["ingest", "pairs", "--raw", folder / "raw", "--out", url]
    words += ["--image", "{scan}_ct.nii", "--label", "{scan}_seg.nii"]
    for name in ("zarr.json", "scans/b/image/c/0/0/0"):
        DAMAGES["flipped"](url / name, np.random.default_rng())
    for command in (["info", url], words):
        said = run(*command)
        assert said.exit_code != 0
        assert "--repair" in said.output
    result = run(*words, "--repair")
    assert result.exit_code == 0, result.output
    assert "The check found 1 fault" in " ".join(result.output.split())
    assert run("verify", url).exit_code == 0
    assert json.loads(run(*words, "--repair", "--json").stdout)["done"] == []
    new = [folder / "new.zarr" if word == url else word for word in words]
    assert run(*new, "--repair").exit_code == 0
    assert run("verify", folder / "new.zarr").exit_code == 0
