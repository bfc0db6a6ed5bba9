import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.console import MAX_ROWS
from spinezarr.cli.main import app
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME

SPEC = PhantomSpec(
    shape_zyx=(40, 40, 40),
    spacing_zyx_mm=(4.8, 4.8, 4.8),
    levels=("T11", "T12", "L1", "L2", "L3"),
    cut_share=0.35,
)


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def write_scan(raw, name, *, seed, defect=False, values=()):
    phantom = make_phantom(replace(SPEC, seed=seed))
    label = phantom.label.copy()
    if defect:
        label[label == VALUE_OF_NAME["L1"]] = 0
    for i, value in enumerate(values):
        label[2, 2, i] = value
    write_nifti(raw / f"{name}_ct.nii", phantom.image, phantom.affine_xyz, NiftiForm())
    form = NiftiForm(dtype="uint8")
    write_nifti(raw / f"{name}_seg.nii", label, phantom.affine_xyz, form)


def ingest(raw, out):
    run(
        *("ingest", "pairs", "--raw", raw, "--out", out),
        *("--image", "{scan}_ct.nii", "--label", "{scan}_seg.nii"),
    )
    return out


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a folder of the stores below, which no test may change."""
    folder = tmp_path_factory.mktemp("stores")
    for seed, name in enumerate(["a", "b"]):
        write_scan(folder / "raw", name, seed=seed)
    write_scan(folder / "faults", "b", seed=1, defect=True)
    write_scan(folder / "faults", "c", seed=2)
    ingest(folder / "raw", folder / "sound.zarr")
    ingest(folder / "faults", folder / "faulty.zarr")
    return folder


@pytest.fixture
def sound(stores, tmp_path):
    """Return a store of two scans without errors."""
    return Path(shutil.copytree(stores / "sound.zarr", tmp_path / "sound.zarr"))


@pytest.fixture
def faulty(stores, tmp_path):
    """Return a store in which scan b lacks a level and has an image of the sound store."""
    return Path(shutil.copytree(stores / "faulty.zarr", tmp_path / "faulty.zarr"))


def findings(output):
    return [
        (f["scan_id"], f["severity"], f["rule"], f["vertebra"])
        for store in json.loads(output)["audits"]
        for f in store["findings"]
    ]


def verdicts(url):
    table = spinezarr.open(url).table
    return dict(zip(table.scan.to_numpy(), table.audit.to_numpy(), strict=True))


def test_help_shows_an_example_and_the_exit_codes():
    output = " ".join(run("audit", "--help").output.split())
    assert "Example: spinezarr audit" in output
    assert "Exit code 0: no finding is an error; 1: at least one is; 2: wrong usage." in output


def test_a_store_without_errors_exits_with_0(sound):
    output = run("audit", sound).output
    assert "2 scans" in output
    assert "border-contact" in output
    assert verdicts(sound) == {"a": "info", "b": "info"}


def test_an_error_exits_with_1_and_is_printed_with_its_place(faulty):
    result = run("audit", faulty, "--severity", "warning", code=1)
    output = " ".join(result.output.split())
    assert "skipped-level" in output
    assert "L1" in output
    assert verdicts(faulty) == {"b": "error", "c": "info"}


def test_json_holds_every_field_of_the_findings(faulty):
    result = run("audit", faulty, "--json", code=1)
    (store,) = json.loads(result.stdout)["audits"]
    assert store["url"] == str(faulty)
    assert store["scans"] == ["b", "c"]
    assert store["counts"]["skipped-level"] == {"error": 1}
    first = store["findings"][0]
    assert (first["rule"], first["vertebra"]) == ("skipped-level", "L1")
    assert first["facts"]["between"] == ["T12", "L2"]
    assert len(first["voxel_zyx"]) == len(first["position_xyz_mm"]) == 3
    assert len(store["findings"]) == 5


def test_severity_leaves_out_less_severe_findings(faulty):
    only = findings(run("audit", faulty, "--json", "--severity", "error", code=1).stdout)
    assert only == [("b", "error", "skipped-level", "L1")]
    output = run("audit", faulty, "--severity", "error", code=1).output
    assert "reaches the" not in output
    assert "border-contact" in output, "counts are of all findings"


def test_one_scan_can_be_chosen(faulty):
    assert {
        scan for scan, *_ in findings(run("audit", faulty, "--scan", "c", "--json").stdout)
    } == {"c"}
    assert verdicts(faulty) == {"b": "", "c": "info"}


def test_a_store_without_the_chosen_scan_is_not_changed(sound, faulty):
    run("audit", sound, faulty, "--scan", "c")
    assert verdicts(faulty) == {"b": "", "c": "info"}
    assert not (sound / "audit").exists()


def test_nothing_is_written_with_no_write(faulty):
    run("audit", faulty, "--no-write", code=1)
    assert verdicts(faulty) == {"b": "", "c": ""}
    assert not (faulty / "audit").exists()


def test_several_stores_are_compared(sound, faulty):
    assert "same-image" not in run("audit", faulty, code=1).output
    found = findings(run("audit", sound, faulty, "--json", "--severity", "warning", code=1).stdout)
    assert found == [
        ("b", "warning", "same-image", None),
        ("b", "error", "skipped-level", "L1"),
        ("b", "warning", "same-image", None),
    ]
    # The table of a store describes only that store.
    assert verdicts(sound) == {"a": "info", "b": "info"}


def test_a_store_named_twice_is_audited_once(sound):
    result = run("audit", sound, f"{sound}/", "--json", "--severity", "warning")
    assert findings(result.stdout) == []
    assert len(json.loads(result.stdout)["audits"]) == 1


def test_long_tables_are_shortened(tmp_path):
    values = range(40, 40 + MAX_ROWS + 3)
    write_scan(tmp_path / "raw", "a", seed=0, values=values)
    url = ingest(tmp_path / "raw", tmp_path / "a.zarr")
    output = run("audit", url, "--severity", "error", code=1).output
    assert "... and 3 more; --json lists them all." in output


def test_a_store_without_findings_says_so(tmp_path):
    phantom = make_phantom(replace(SPEC, cut_share=0))
    raw = tmp_path / "raw"
    write_nifti(raw / "a_ct.nii", phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(raw / "a_seg.nii", phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    url = ingest(raw, tmp_path / "a.zarr")
    assert "The audit found nothing" in run("audit", url).output
    assert verdicts(url) == {"a": "ok"}


def test_findings_are_printed_even_if_the_store_cannot_be_written(faulty, serve):
    url, _ = serve(Path(faulty).parent)
    result = run("audit", f"{url}/{faulty.name}", "--json", "--scan", "b", code=1)
    assert "only reported" in result.stderr
    assert ("b", "error", "skipped-level", "L1") in findings(result.stdout)


def test_the_error_of_damaged_findings_says_what_to_do(faulty):
    run("audit", faulty, code=1)
    (faulty / "audit/zarr.json").write_text("{}")
    again = run("audit", faulty, "--scan", "c", code=1)
    assert "over all scans again" in " ".join(again.stderr.split())
    run("audit", faulty, code=1)
    assert verdicts(faulty) == {"b": "error", "c": "info"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere"),
        (["STORE", "--scan", "nobody"], "no scan 'nobody'"),
        (["STORE", "--severity", "awful"], "awful"),
    ],
)
def test_wrong_usage_of_audit_exits_with_2(sound, words, message):
    words = [str(sound) if word == "STORE" else word for word in words]
    assert message in " ".join(run("audit", *words, code=2).stderr.split())
