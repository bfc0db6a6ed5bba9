"""Faults that ``verify`` finds in a derived store are repaired from its source store."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small_scans import ingest_raw, make_label, make_store, write_scan
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import CorruptStoreError, UsageError
from spinezarr.store.mask_columns import mask_column_forms
from spinezarr.store.reader import StoreReader
from spinezarr.store.table import with_audit_results
from spinezarr.store.writer import StoreWriter

OPTIONS = {"spacing_mm": 2.0, "crop": "spine"}
WORDS = ["--spacing-mm", "2", "--crop", "spine"]
SCANS = ["box", "oblique"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return a folder with a source store and a derived store, which got a mask of its own."""
    folder = tmp_path_factory.mktemp("pristine")
    source = spinezarr.open(make_store(folder, [*SCANS, "bare"]).url)
    source.derive(out=folder / "derived.zarr", scans=SCANS, **OPTIONS)
    derived = spinezarr.open(folder / "derived.zarr")
    shape = derived.scan("box").image.shape
    derived.write_labels("box", "own", np.ones(shape, np.uint8), scheme={1: "all"})
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "work"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def file_of(out, name):
    """Return a file of the store: the one that is named, or one with voxels of the named array."""
    if name.endswith("zarr.json"):
        return out / name
    files = [path for path in (out / "scans" / name).rglob("*") if path.is_file()]
    return next(path for path in files if path.name != "zarr.json")


def repair(folder, source="small.zarr", **options):
    store = spinezarr.open(folder / source)
    return store.derive(
        out=folder / "derived.zarr", repair=True, **{"scans": SCANS, **OPTIONS, **options}
    )


def _content(scan):
    """Return the attributes except how the scan is stored, and where the source was."""
    left_out = {"manifest", "metadata_crc32c"}
    content = {key: value for key, value in scan.attrs.items() if key not in left_out}
    return content | {"derived_from": {**content["derived_from"], "store": ""}}


def assert_same_scans(found, expected):
    found, expected = spinezarr.open(found), spinezarr.open(expected)
    assert found.table.scan.to_numpy().tolist() == expected.table.scan.to_numpy().tolist()
    for name in found.table.scan.to_numpy():
        a, b = found.scan(name), expected.scan(name)
        xr.testing.assert_equal(a.compute(), b.compute())
        assert _content(a) == _content(b)


@pytest.mark.parametrize(
    ("damaged", "done"),
    [
        (["box/image"], ["box"]),
        (["box/label", "oblique/image"], ["box", "oblique"]),
        (["box/ribs"], ["box"]),
        (["oblique/z"], ["oblique"]),
        (["zarr.json", "table/zarr.json", "oblique/label"], ["oblique"]),
        (["table_bundle/zarr.json", "ingest/zarr.json", "scans/zarr.json"], []),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("change", [flip, Path.unlink], ids=["flipped", "gone"])
def test_damaged_scans_are_made_again(folder, pristine, damaged, done, change):
    out = folder / "derived.zarr"
    for name in damaged:
        change(file_of(out, name))
    report = repair(folder)
    assert (sorted(report.done), report.failed) == (done, ())
    assert spinezarr.open(out).verify().faults == ()
    assert_same_scans(out, pristine / "derived.zarr")  # with the mask that was added


def test_damage_that_the_source_cannot_mend_is_named(folder):
    out = folder / "derived.zarr"
    flip(file_of(out, "box/own"))
    flip(file_of(out, "oblique/image"))
    report = repair(folder, scans=["box"])
    (failed,) = report.failed
    assert failed.scan_id == "oblique"
    assert "Choose it too if that store has it" in failed.reason
    assert str(folder / "small.zarr") in failed.reason
    assert report.skipped == ("box",)
    assert repair(folder).done == ("oblique",)
    (fault,) = spinezarr.open(out).verify().faults
    assert (fault.scan_id, fault.mask) == ("box", "own")
    assert "If this mask was added to the derived store, write it again" in fault.advice
    spinezarr.open(out).remove_labels("own", scans="box")
    assert spinezarr.open(out).verify().faults == ()


def test_a_changed_source_is_derived_as_it_is_now(folder, tmp_path):
    out = folder / "derived.zarr"
    flip(file_of(out, "box/image"))
    label = make_label("box")
    label[5, 7, 9] = 19
    write_scan(folder / "raw", "box", label)
    ingest_raw(folder / "raw", folder / "small.zarr")
    assert repair(folder).done == ("box",)
    store = spinezarr.open(folder / "small.zarr")
    store.derive(out=tmp_path / "fresh.zarr", scans=SCANS, **OPTIONS)
    spinezarr.open(out).remove_labels("own", scans="box")
    assert_same_scans(out, tmp_path / "fresh.zarr")


def test_the_command_line_says_what_to_do_and_does_it(folder):
    out, source = folder / "derived.zarr", folder / "small.zarr"

    def run(*words, code):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    words = ["derive", source, "--out", out, *WORDS, "--scan", "box", "--scan", "oblique"]
    assert run(*words, code=0)
    flip(file_of(out, "box/image"))
    said = run("verify", out, code=1)
    assert f"'spinezarr derive' from {source} again with --repair" in said
    assert "If it is gone or has changed, give an unchanged copy of it" in said
    moved = source.rename(folder / "moved.zarr")
    before = (out / "table/zarr.json").read_bytes()
    assert "small.zarr" in run(*words, "--repair", code=2)
    assert (out / "table/zarr.json").read_bytes() == before
    words[1] = moved
    assert "in 1 scan" in run(*words, "--repair", code=0)
    assert run("verify", out, code=0)
    (out / "zarr.json").unlink()
    assert "'spinezarr derive' again with --repair" in run("info", out, code=1)
    run(*words, "--repair", code=0)
    assert run("verify", out, code=0)


def without_mask_columns(url):
    """Write the scan table as it was before it had columns of further masks."""
    writer = StoreWriter(str(url), StoreReader(str(url)).root)
    table = writer.registry.table()
    names = mask_column_forms().keys() & set(table.variables)
    assert names
    writer.registry.publish_table(with_audit_results(table.drop_vars(names), {}))


@pytest.mark.parametrize("name", ["small.zarr", "derived.zarr"])
def test_tables_of_early_versions_are_written_anew_as_the_message_says(folder, name):
    url = folder / name
    before = spinezarr.open(url).table.copy(deep=True)
    without_mask_columns(url)
    with pytest.raises(CorruptStoreError, match="an early version wrote it") as refused:
        spinezarr.open(url).table.load()
    commands = re.findall("'spinezarr (ingest|derive)'", str(refused.value))
    assert commands == ["ingest", "derive"]
    assert "again with --repair to write the table anew" in str(refused.value)
    (fault,) = {fault.advice for fault in spinezarr.open(url).verify().faults}
    command = "ingest" if name == "small.zarr" else "derive"
    assert f"Run the same 'spinezarr {command}'" in fault
    words = ["ingest", folder / "small.yaml", "--raw", folder / "raw", "--out", url]
    if command == "derive":
        words = ["derive", folder / "small.zarr", "--out", url, *WORDS]
        words += ["--scan", "box", "--scan", "oblique"]
    result = CliRunner().invoke(app, [*map(str, words), "--repair"])
    assert result.exit_code == 0, result.output
    store = spinezarr.open(url)
    if command == "derive":  # the source was copied to another folder
        before.attrs["derived_from"] = str(folder / "small.zarr")
    xr.testing.assert_identical(store.table, before)
    assert store.verify().faults == ()


def test_only_masks_from_files_are_compared_with_files(folder):
    derived, raw = spinezarr.open(folder / "derived.zarr"), folder / "raw"
    with pytest.raises(UsageError, match="was derived from"):
        derived.verify(against=raw)
    label = derived.scan("box").label.to_numpy()
    (folder / "pred").mkdir()
    derived.write_nifti("box", label, folder / "pred/box.nii.gz")
    derived.add_labels("net", f"{folder}/pred/{{scan}}.nii.gz")
    derived = spinezarr.open(folder / "derived.zarr")
    found = derived.verify(against=[raw, folder / "pred"])
    assert found.faults == ()
    counts = {reason.split(";")[0]: n for reason, n in found.not_compared.items()}
    assert counts == {
        "the voxels were derived from another store": 6,  # two scans, and two masks of box
        "a program wrote the voxels, and there is no file": 1,
    }
    derived.write_nifti("box", np.where(label == 20, 0, label), folder / "pred/box.nii.gz")
    kinds = {fault.kind for fault in derived.verify(against=folder / "pred").faults}
    assert kinds == {"source", "voxels"}


def test_a_copy_of_files_in_a_folder_scans_is_compared(folder, tmp_path):
    """Paths of files may look like those of arrays in a store."""
    raw = tmp_path / "files"
    shutil.copytree(folder / "raw", raw / "scans")
    url = tmp_path / "pairs.zarr"
    patterns = {"image": "scans/{scan}_ct.nii", "label": "scans/{scan}_seg.nii"}
    spinezarr.ingest("pairs", raw=raw, out=url, **patterns)
    spinezarr.open(url).derive(out=tmp_path / "copy.zarr", layers=())
    found = spinezarr.open(tmp_path / "copy.zarr").verify(against=raw)
    assert (found.faults, dict(found.not_compared)) == ((), {})
