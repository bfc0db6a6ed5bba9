"""Lists of errata: they mark scans, or correct the labels of their masks."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import FormatError, LabelError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.recipe import LabelCorrection, Recipe
from spinezarr.testing import NiftiForm, verse_json, write_nifti
from spinezarr.verify.source import compare_with_source
from spinezarr.verify.store import verify_store

SHAPE = (40, 24, 28)
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
SOURCE = "VeriDAH, github.com/Gregory-Schwing-MD-PhD/VerSeFusion, veridah_corrections.csv"
SHIFTED = {19: 19, 20: 28, 21: 20, 22: 21}
"""Labels of verse513 before and after the correction."""
UP = {8: 6, 9: 7}
"""The first labels of verse606; all of its 19 vertebrae move up by two levels."""


def mask_of(*values):
    """Return a mask whose vertebrae lie below each other in the order of the values."""
    mask = np.zeros(SHAPE, np.uint8)
    for i, value in enumerate(values):
        mask[SHAPE[0] - 2 - 2 * i, 2:20, 3:20] = value
    return mask


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Write three scans of VerSe: two that the list names, and one that it does not."""
    root = tmp_path_factory.mktemp("raw")
    masks = {
        "verse513": (mask_of(19, 20, 21, 22), NiftiForm("LPS", "uint8")),
        "verse606": (mask_of(*range(8, 20), *range(20, 26), 26), NiftiForm("PIR", "float64")),
        "verse700": (mask_of(19, 20, 21, 22), NiftiForm("LPS", "uint8")),
    }
    for name, (mask, form) in masks.items():
        image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 2000 - 1000
        rawdata = root / f"dataset-01training/rawdata/sub-{name}"
        derived = root / f"dataset-01training/derivatives/sub-{name}"
        write_nifti(rawdata / f"sub-{name}_ct.nii.gz", image, AFFINE, NiftiForm("LPS"))
        write_nifti(derived / f"sub-{name}_seg-vert_msk.nii.gz", mask, AFFINE, form)
    points = {"T12": (8.0, 9.0, 95.0), "L1": (8.0, 9.0, 90.0), "L2": (8.0, 9.0, 85.0)}
    folder = root / "dataset-01training/derivatives/sub-verse513"
    text = verse_json(points, SHAPE[::-1], AFFINE, "verse")
    (folder / "sub-verse513_seg-subreg_ctd.json").write_text(text)
    return root


def corrected(raw_mask, new_values):
    table = np.arange(256, dtype=np.uint8)
    for old, new in new_values.items():
        table[old] = new
    return table[raw_mask]


def run(raw, out, *words, code=0):
    command = ["ingest", "verse", "--raw", str(raw), "--out", str(out), "--json", *words]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_errata_of_verse_are_applied_recorded_and_taken_back(raw, tmp_path):
    out = tmp_path / "verse.zarr"
    assert run(raw, out)["done"] == ["verse513", "verse606", "verse700"]
    marked = spinezarr.open(out)
    before = {name: marked.scan(name).label.to_numpy() for name in ("verse513", "verse606")}
    assert "erratum_applied" not in marked.table
    assert {f.rule for f in marked.audit().findings}.isdisjoint({"corrected-labels"})

    report = run(raw, out, "--errata", "apply")
    assert (report["done"], report["skipped"]) == (["verse513", "verse606"], ["verse700"])
    store = spinezarr.open(out)
    scan = store.scan("verse513")
    np.testing.assert_array_equal(scan.label, corrected(before["verse513"], SHIFTED))
    up = dict(zip([*range(8, 26), 26], [*range(6, 25)], strict=True))
    np.testing.assert_array_equal(store.scan("verse606").label, corrected(before["verse606"], up))
    what = f"L1 became T13, L2 became L1, L3 became L2 ({SOURCE})"
    assert store.table.erratum_applied.to_numpy().tolist()[0] == what
    assert store.table.erratum_applied.to_numpy().tolist()[2] == ""
    assert report["notes"]["verse513"][-1] == f"labels corrected by a list of errata: {what}"
    assert scan.attrs["label_source"]["values"] == [[19, 19], [20, 28], [21, 20], [22, 21]]
    assert {
        name: point["label_distance_mm"] for name, point in scan.attrs["centroids"].items()
    } == {
        "T12": 0.0,
        "T13": 0.0,
        "L1": 0.0,
    }
    findings = [f for f in store.audit().findings if f.rule == "corrected-labels"]
    assert [(f.scan_id, f.severity) for f in findings] == [
        ("verse513", "info"),
        ("verse606", "info"),
    ]
    assert what in findings[0].text
    assert verify_store(str(out)).faults == ()
    assert compare_with_source(str(out), [str(raw)], ["verse513", "verse606"]).faults == ()
    assert run(raw, out, "--errata", "apply")["skipped"] == ["verse513", "verse606", "verse700"]

    report = run(raw, out, "--errata", "mark")
    assert (report["done"], report["skipped"]) == (["verse513", "verse606"], ["verse700"])
    restored = spinezarr.open(out)
    for name, label in before.items():
        np.testing.assert_array_equal(restored.scan(name).label, label)
    fresh = tmp_path / "fresh.zarr"
    run(raw, fresh)
    checksums = [
        s.table.content_checksum.to_numpy().tolist() for s in (restored, spinezarr.open(fresh))
    ]
    assert checksums[0] == checksums[1]


def test_new_columns_of_a_corrected_scan_change_no_voxel(raw, tmp_path):
    """The text on what was changed stays if only the metadata change."""
    out = tmp_path / "verse.zarr"
    run(raw, out, "--errata", "apply")
    applied = spinezarr.open(out).table.erratum_applied.to_numpy().tolist()
    report = run(raw, out, "--errata", "apply", "--license", "CC0-1.0")
    assert report["done"] == []
    assert spinezarr.open(out).table.erratum_applied.to_numpy().tolist() == applied


def test_the_dry_run_counts_the_scans(raw):
    command = ["ingest", "verse", "--raw", str(raw), "--dry-run", "--errata", "apply"]
    said = CliRunner().invoke(app, command).stdout
    assert "Labels to correct by a list of errata: 2 scans." in said


def test_a_mask_that_does_not_fit_the_list_fails_alone(tmp_path):
    for name, values in {"verse606": (20, 21), "verse513": (19, 28, 20)}.items():
        folder = tmp_path / "raw/dataset-01training"
        image = folder / f"rawdata/sub-{name}/sub-{name}_ct.nii.gz"
        label = folder / f"derivatives/sub-{name}/sub-{name}_seg-vert_msk.nii.gz"
        write_nifti(image, np.zeros(SHAPE, np.int16), AFFINE, NiftiForm("LPS"))
        write_nifti(label, mask_of(*values), AFFINE, NiftiForm("LPS", "uint8"))
    report = run(tmp_path / "raw", tmp_path / "s.zarr", "--errata", "apply", code=1)
    reasons = {failed["scan_id"]: failed["reason"] for failed in report["failed"]}
    assert "the mask has 2 vertebrae (L1 L2), and the list of errata has 19" in reasons["verse606"]
    assert "would both become T13" in reasons["verse513"]
    assert all("seg-vert_msk.nii.gz" in reason for reason in reasons.values())
    assert len(run(tmp_path / "raw", tmp_path / "s.zarr")["done"]) == 2


def test_a_recipe_without_a_list_refuses_to_apply_it(tmp_path):
    write_nifti(tmp_path / "a_ct.nii", np.zeros(SHAPE), AFFINE, NiftiForm("LPS"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", None, name="p")
    with pytest.raises(UsageError, match="--errata apply: the recipe 'p' has no list"):
        discover(recipe, str(tmp_path), errata="apply")


def test_every_correction_of_the_shipped_list_is_read():
    path, data = Recipe.load("verse").shipped_table("errata")
    rows = [line.rsplit(",", 1) for line in data.decode().splitlines()[1:]]
    corrections = [LabelCorrection.parse(text, path) for _, text in rows if text]
    assert sum(bool(correction.pairs) for correction in corrections) == 12
    assert sum(bool(correction.levels) for correction in corrections) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no vertebra"),
        ("L1 L9", "'L9' is no vertebra"),
        ("L1>L9", "'L9' is no vertebra"),
        ("L1 L2>L3", "mixes levels"),
        ("L1 L1", "L1 is named twice"),
        ("L1>L2 L1>L3", "L1 is named twice"),
        ("L1>L3 L2>L3", "L3 is named twice"),
        ("L1>L2>L3", "mixes levels|no vertebra"),
    ],
)
def test_wrong_corrections_are_refused(text, found):
    with pytest.raises(ValueError, match=found):
        LabelCorrection.parse(text, "a list")


def test_the_error_of_a_wrong_list_names_file_and_column(tmp_path):
    write_nifti(tmp_path / "raw/a_ct.nii", np.zeros(SHAPE), AFFINE, NiftiForm("LPS"))
    (tmp_path / "raw/list.csv").write_text("scan,labels,who\na,L1>L77,me\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\ntitle: r\nlicense: x\ncitation: x\nlayouts:\n  flat: {description: x, "
        "image: '{scan}_ct.nii'}\nlabels: {scheme: canonical, state: unknown}\ntables:\n"
        "  e: {files: list.csv, key: scan, relabel: {column: labels, source: who}}\n"
    )
    with pytest.raises(FormatError, match=r"list.csv: column 'labels': 'L77' is no vertebra"):
        discover(Recipe.load(str(recipe)), str(tmp_path / "raw"))
    with pytest.raises(LabelError, match="cannot be corrected"):
        LabelCorrection("me", levels=(20,)).new_values({})
