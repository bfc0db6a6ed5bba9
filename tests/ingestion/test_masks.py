"""Imperfect masks: values off by rounding, and one file per vertebra with some files absent."""

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Labels, Layout, Recipe
from spinezarr.recipe.layout import LabelParts
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.source import compare_with_source
from spinezarr.verify.store import verify_store

SHAPE = (20, 24, 28)
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
PAIRS = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="masks")
PARTS = ("C7", "T1", "L4", "L5")


def image(folder, name="a"):
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 2000 - 1000
    write_nifti(folder / f"{name}_ct.nii", values, AFFINE, NiftiForm("LPS"))


def labels():
    mask = np.zeros(SHAPE)
    for value in (7, 8, 23, 24):
        mask[value - 6 : value - 4, 2:20, 3:20] = value
    return mask


def run(folder, out, recipe=PAIRS):
    return ingest(recipe, discover(recipe, str(folder)), str(out))


def stored_label(out, name="a"):
    return spinezarr.open(out).scan(name).label.to_numpy()


def mapped(values):
    layout = Layout(
        description="", image=("{scan}_ct.nii",), label=("{scan}_seg.nii",), values=values
    )
    return recipe_of(layout)


def recipe_of(layout):
    return Recipe(
        name="masks",
        title="masks",
        license="",
        citation="",
        layouts={"flat": layout},
        labels=Labels(scheme="canonical", state="unknown"),
    )


def in_parts(*names, mask="required"):
    values = {f"vertebra_{name}": name for name in names}
    parts = LabelParts(file="{scan}/{part}.nii", values=values)
    return recipe_of(Layout(description="", image=("{scan}_ct.nii",), label_parts=parts, mask=mask))


def write_part(folder, name, mask, scan="a", dtype="uint8"):
    write_nifti(folder / scan / f"vertebra_{name}.nii", mask, AFFINE, NiftiForm("LPS", dtype))


def write_as_nibabel_scales_floats(path, values):
    """Save floats as int16, with a slope and an intercept that nibabel chooses."""
    written = nib.Nifti1Image(values.T, AFFINE)
    written.set_data_dtype(np.int16)
    path.parent.mkdir(exist_ok=True)
    nib.save(written, path)
    back = np.asarray(nib.load(path).dataobj)
    assert (back != np.rint(back)).any(), "the case that this is about"


def assert_equal_to_source(out, raw):
    assert not verify_store(str(out)).faults
    assert compare_with_source(str(out), [str(raw)], ["a"]).faults == ()


# Rounding


@pytest.mark.parametrize("off", [4e-7, -4e-7, 9e-4])
def test_a_mask_that_is_off_by_rounding_is_rounded_with_a_note(tmp_path, off):
    image(tmp_path / "raw")
    mask = labels() + off * (labels() == 24)
    write_nifti(tmp_path / "raw/a_seg.nii", mask, AFFINE, NiftiForm("LPS", "float64"))
    report = run(tmp_path / "raw", tmp_path / "s.zarr")
    n_voxels = int((labels() == 24).sum())
    (note,) = report.notes["a"]
    assert note == (
        f"{n_voxels} mask voxels differed from whole numbers by at most {abs(off):.1e}, and were "
        "rounded"
    )
    np.testing.assert_array_equal(stored_label(tmp_path / "s.zarr"), labels())
    assert_equal_to_source(tmp_path / "s.zarr", tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "s.zarr").skipped == ("a",)


@pytest.mark.parametrize(
    "recipe", [PAIRS, mapped({"7": "C7", "24": "L5"})], ids=["as is", "mapped"]
)
def test_a_mask_that_nibabel_scaled_is_rounded(tmp_path, recipe):
    image(tmp_path / "raw")
    write_as_nibabel_scales_floats(tmp_path / "raw/a_seg.nii", labels().astype(np.float32))
    source = np.asanyarray(nib.as_closest_canonical(nib.load(tmp_path / "raw/a_seg.nii")).dataobj)
    expected = np.rint(source.transpose(2, 1, 0))
    if recipe is not PAIRS:
        expected[~np.isin(expected, (7, 24))] = 0
    nib.save(nib.Nifti1Image(np.zeros(source.shape, np.int16), AFFINE), tmp_path / "raw/a_ct.nii")
    report = run(tmp_path / "raw", tmp_path / "s.zarr", recipe)
    assert report.done == ("a",), report.failed
    assert "were rounded" in report.notes["a"][0]
    np.testing.assert_array_equal(stored_label(tmp_path / "s.zarr"), expected)
    assert_equal_to_source(tmp_path / "s.zarr", tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "s.zarr", recipe).skipped == ("a",)


@pytest.mark.parametrize("value", [20.4, -0.002, 255.002, np.nan, np.inf])
@pytest.mark.parametrize("recipe", [PAIRS, mapped({"24": "L5"})], ids=["as is", "mapped"])
def test_mask_values_further_from_integers_are_refused(tmp_path, recipe, value):
    image(tmp_path / "raw")
    mask = labels()
    mask[-1, -1, -1] = value
    write_nifti(tmp_path / "raw/a_seg.nii", mask, AFFINE, NiftiForm("LPS", "float64"))
    (failed,) = run(tmp_path / "raw", tmp_path / "s.zarr", recipe).failed
    assert f"a_seg.nii: the mask holds the value {value!r}" in failed.reason


def test_an_export_reports_that_the_source_was_rounded(tmp_path):
    image(tmp_path / "raw")
    mask = labels() + 1e-6
    write_nifti(tmp_path / "raw/a_seg.nii", mask, AFFINE, NiftiForm("LPS", "float64"))
    run(tmp_path / "raw", tmp_path / "s.zarr")
    done = (
        spinezarr.open(tmp_path / "s.zarr")
        .export_nifti(out=tmp_path, scans="a", overwrite=True)
        .done[0]
    )
    (note,) = done.notes
    assert note == (
        f"a_seg.nii.gz: holds whole numbers, where {mask.size} voxels of its source had a "
        "rounding error"
    )
    found = np.asanyarray(nib.load(done.files[1]).dataobj)
    expected = np.rint(np.asanyarray(nib.load(tmp_path / "raw/a_seg.nii").dataobj))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


# Parts


def test_absent_mask_parts_are_listed(tmp_path):
    image(tmp_path / "raw")
    for name, value in (("C7", 7), ("L5", 24)):
        write_part(tmp_path / "raw", name, (labels() == value).astype(np.uint8))
    recipe = in_parts(*PARTS)
    found = discover(recipe, str(tmp_path / "raw"))
    (scan,) = found.scans
    assert scan.absent_parts == ("vertebra_T1", "vertebra_L4")
    (use,) = (use for use in found.patterns if use.kind == "mask")
    assert (use.pattern, use.files) == ("{scan}/{part}.nii", 2)
    report = ingest(recipe, found, str(tmp_path / "s.zarr"))
    assert report.notes["a"] == (
        (
            "parts of the mask that are absent, so their voxels are background: "
            "vertebra_T1, vertebra_L4 (2 of 4)"
        ),
    )
    stored = stored_label(tmp_path / "s.zarr")
    np.testing.assert_array_equal(stored, labels() * np.isin(labels(), (7, 24)))
    assert_equal_to_source(tmp_path / "s.zarr", tmp_path / "raw")


def test_a_part_added_to_the_recipe_later_is_reported_as_absent(tmp_path):
    image(tmp_path / "raw")
    write_part(tmp_path / "raw", "C7", (labels() == 7).astype(np.uint8))
    assert "a" not in run(tmp_path / "raw", tmp_path / "s.zarr", in_parts("C7")).notes
    named = "parts of the mask that are absent, so their voxels are background: vertebra"
    for names, said in (
        (("C7", "T1"), f"{named}_T1 (1 of 2)"),
        (("C7", "T1", "L5"), f"{named}_T1, vertebra_L5 (2 of 3)"),
        (("C7", "L5"), f"{named}_L5 (1 of 2)"),
    ):
        report = run(tmp_path / "raw", tmp_path / "s.zarr", in_parts(*names))
        assert report.updated == ("a",)
        assert report.notes["a"] == (said,)
    write_part(tmp_path / "raw", "L5", (labels() == 24).astype(np.uint8))
    report = run(tmp_path / "raw", tmp_path / "s.zarr", in_parts("C7", "L5"))
    assert report.done == ("a",)
    assert report.notes == {}


def test_an_empty_part_means_that_the_vertebra_is_absent(tmp_path):
    image(tmp_path / "raw")
    write_part(tmp_path / "raw", "C7", (labels() == 7).astype(np.uint8))
    write_part(tmp_path / "raw", "L5", np.zeros(SHAPE, np.uint8))
    report = run(tmp_path / "raw", tmp_path / "s.zarr", in_parts("C7", "L5"))
    assert report.done == ("a",)
    assert report.notes == {}


@pytest.mark.parametrize("mask", ["required", "optional"])
def test_a_scan_without_any_part_has_no_mask(tmp_path, mask):
    image(tmp_path / "raw")
    report = run(tmp_path / "raw", tmp_path / "s.zarr", in_parts(*PARTS, mask=mask))
    if mask == "required":
        (failed,) = report.failed
        assert failed.reason.startswith("no mask for a_ct.nii; looked for a/")
        return
    assert (report.done, report.notes) == (("a",), {})
    assert "label" not in spinezarr.open(tmp_path / "s.zarr").scan("a")


def test_parts_that_are_off_by_rounding_are_rounded(tmp_path):
    image(tmp_path / "raw")
    write_part(tmp_path / "raw", "C7", (labels() == 7) * 0.9999996 + 3e-7, dtype="float64")
    write_part(tmp_path / "raw", "L5", (labels() == 24) * 1.0, dtype="float64")
    recipe = in_parts("C7", "L5")
    report = run(tmp_path / "raw", tmp_path / "s.zarr", recipe)
    (note,) = report.notes["a"]
    assert note == (
        f"{labels().size} mask voxels differed from whole numbers by at most 3.0e-07, and were "
        "rounded"
    )
    np.testing.assert_array_equal(
        stored_label(tmp_path / "s.zarr"), labels() * np.isin(labels(), (7, 24))
    )
    assert_equal_to_source(tmp_path / "s.zarr", tmp_path / "raw")
    assert run(tmp_path / "raw", tmp_path / "s.zarr", recipe).skipped == ("a",)


@pytest.mark.parametrize(
    ("outside", "inside", "reason"),
    [
        (-1, 0, "holds the value -1"),
        (0, -1, "holds the value -1"),
        (1, 0, "fills 95.4% of the volume"),
        (255, 0, "fills 95.4% of the volume"),
        (0, np.nan, "holds the value nan"),
        (0, 0.5, "holds the value 0.5"),
    ],
)
def test_a_part_that_is_no_mask_of_a_vertebra_is_a_failed_scan(tmp_path, outside, inside, reason):
    image(tmp_path / "raw")
    mask = np.where(labels() == 24, float(inside), outside)
    dtype = "int16" if float(inside).is_integer() else "float32"
    write_part(tmp_path / "raw", "L5", mask, dtype=dtype)
    (failed,) = run(tmp_path / "raw", tmp_path / "s.zarr", in_parts("L5")).failed
    assert failed.reason.startswith("a/vertebra_L5.nii: ")
    assert reason in failed.reason


def test_the_command_line_lists_absent_parts(tmp_path):
    image(tmp_path / "raw")
    write_part(tmp_path / "raw", "C7", (labels() == 7).astype(np.uint8))
    recipe = tmp_path / "parts.yaml"
    recipe.write_text(
        "name: parts\ntitle: parts\nlicense: none\ncitation: none\nlayouts:\n  flat:\n"
        "    description: parts\n    image: '{scan}_ct.nii'\n"
        "    label_parts: {file: '{scan}/{part}.nii', values: {vertebra_C7: C7, vertebra_L5: L5}}\n"
        "labels: {scheme: canonical, state: all-visible}\n"
    )
    arguments = ["ingest", str(recipe), "--raw", str(tmp_path / "raw"), "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "s.zarr"), "--json"])
    assert result.exit_code == 0, result.output
    assert "parts of the mask that are absent" in result.output
    assert "vertebra_L5 (1 of 2)" in result.output
