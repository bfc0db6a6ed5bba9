"""``spinezarr compare`` tells a good prediction from a shifted and an incomplete one, in words."""

import csv
import io
import json
import re
import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, usual_levels, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME

LEVELS = usual_levels("T10", "L3")
SCANS = ("a", "b")


def run(*words, code=0):
    result = CliRunner().invoke(app, ["compare", *map(str, words)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def phantoms():
    spec = {"shape_zyx": (64, 40, 36), "spacing_zyx_mm": (3.5, 3.0, 3.0), "levels": LEVELS}
    return {scan: make_phantom(PhantomSpec(seed=seed, **spec)) for seed, scan in enumerate(SCANS)}


@pytest.fixture(scope="module")
def url(phantoms, tmp_path_factory):
    """Return a store of two scans with masks and one without."""
    folder = tmp_path_factory.mktemp("compare")
    for scan, phantom in phantoms.items():
        write_nifti(folder / f"{scan}_ct.nii.gz", phantom.image, phantom.affine_xyz, NiftiForm())
        write_nifti(folder / f"{scan}_seg.nii.gz", phantom.label, phantom.affine_xyz, NiftiForm())
    image = phantoms["a"].image // 2
    write_nifti(folder / "c_ct.nii.gz", image, phantoms["a"].affine_xyz, NiftiForm())
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="made")
    layout = recipe.layouts["pairs"].model_copy(update={"mask": "optional"})
    recipe = recipe.model_copy(update={"layouts": {"pairs": layout}})
    report = ingest(recipe, discover(recipe, str(folder)), str(folder / "s.zarr"))
    assert not report.failed
    return str(folder / "s.zarr")


def noisy(label, share=0.1):
    """Return a mask in which a share of the voxels of each surface is background."""
    surface = np.zeros(label.shape, bool)
    for axis in range(3):
        for step in (1, -1):
            surface |= (np.roll(label, step, axis) != label) & (label > 0)
    return np.where(surface & (np.random.default_rng(0).random(label.shape) < share), 0, label)


def one_level_too_low(label):
    table = np.zeros(256, np.uint8)
    for name, next_name in zip(LEVELS, (*LEVELS[1:], "L4"), strict=True):
        table[VALUE_OF_NAME[name]] = VALUE_OF_NAME[next_name]
    return table[label]


def upper_half(label):
    lower = [VALUE_OF_NAME[name] for name in LEVELS[len(LEVELS) // 2 :]]
    return np.where(np.isin(label, lower), 0, label)


PREDICTIONS = {
    "good": noisy,
    "shifted": lambda label: one_level_too_low(noisy(label)),
    "half": lambda label: upper_half(noisy(label)),
}


@pytest.fixture(scope="module")
def predictions(phantoms, url, tmp_path_factory):
    """Return the folder of the predictions of each kind, whose files have various axes."""
    store, root = spinezarr.open(url), tmp_path_factory.mktemp("predictions")
    for kind, make in PREDICTIONS.items():
        (root / kind).mkdir()
        store.write_nifti("a", make(phantoms["a"].label), root / kind / "a.nii.gz")
        form = NiftiForm("PIR", "float32")
        affine = phantoms["b"].affine_xyz
        write_nifti(root / kind / "b.nii.gz", make(phantoms["b"].label), affine, form)
    return root


def masks(predictions, kind):
    return f"{predictions}/{kind}/{{scan}}.nii.gz"


@pytest.mark.parametrize(
    ("kind", "verdict", "text"),
    [
        ("good", "right", "All 6 vertebrae have the right names."),
        (
            "shifted",
            "shifted",
            (
                "Right vertebrae, wrong names by one: T10 to L3 are named one level too low "
                "(T10 is named T11)."
            ),
        ),
        (
            "half",
            "incomplete",
            "3 of 6 vertebrae were found, with the right names. Not found: L1 to L3.",
        ),
    ],
)
def test_each_made_prediction_is_named_by_its_fault(url, predictions, kind, verdict, text):
    found = json.loads(run(url, "--masks", masks(predictions, kind), "--json").stdout)
    assert found["verdicts"] == {verdict: 2}
    assert {scan["verdict"]["text"] for scan in found["scans"]} == {text}
    assert found["without_truth"] == ["c"]
    assert found["at_the_best_shift"]["dice"] > (0.4 if kind == "half" else 0.9)
    assert (found["as_named"]["dice"] < 0.1) == (kind == "shifted")


def test_each_layer_of_a_store_is_named_by_its_fault(url, phantoms, tmp_path):
    """The same three predictions as masks of one store, compared one after the other."""
    own = str(shutil.copytree(url, tmp_path / "s.zarr"))
    store = spinezarr.open(own)
    for kind, make in PREDICTIONS.items():
        for scan, phantom in phantoms.items():
            store.write_labels(scan, kind, make(phantom.label))
    found = {
        kind: json.loads(run(own, "--layer", kind, "--save", "--json").stdout)["verdicts"]
        for kind in PREDICTIONS
    }
    assert found == {"good": {"right": 2}, "shifted": {"shifted": 2}, "half": {"incomplete": 2}}
    table = spinezarr.open(own).table.sel(scan=list(SCANS), mask=list(PREDICTIONS))
    assert table.mask_verdict.to_numpy().tolist() == [["right", "shifted", "incomplete"]] * 2


def test_the_terminal_shows_the_verdict_and_all_names(url, predictions):
    output = run(url, "--masks", masks(predictions, "shifted")).output
    assert "wrong names by one" in " ".join(output.replace("│", "").split())
    for text in (*LEVELS, "as named", "shift +1", "best of each scan", "no truth: 1 scan"):
        assert text in output
    assert "…" not in output
    below_heading = output.partition("Verdicts:")[2].splitlines()
    assert max(map(len, below_heading)) <= 80


def test_csv_has_a_row_for_each_scan_shift_and_vertebra(url, predictions, tmp_path):
    path = tmp_path / "new" / "shifted.csv"
    run(url, "--masks", masks(predictions, "shifted"), "--csv", path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == 2 * 2 * len(LEVELS)
    found = {(row["scan"], row["shift"], row["vertebra"]): row for row in rows}
    row = found["a", "1", "T12"]
    assert (row["predicted_name"], row["identified"]) == ("L1", "True")
    assert float(row["dice"]) > 0.9
    assert found["a", "0", "T10"]["hausdorff_mm"] == ""


def test_plot_and_pictures_are_pngs(url, predictions, tmp_path):
    plot, pictures = tmp_path / "plot.png", tmp_path / "pictures"
    run(url, "--masks", masks(predictions, "half"), "--plot", plot, "--pictures", pictures)
    assert matplotlib.image.imread(plot).shape[1] == 1500
    assert sorted(path.name[:3] for path in pictures.iterdir()) == ["01_", "02_"]
    for path in pictures.iterdir():
        picture = matplotlib.image.imread(path)[..., :3]
        truth, prediction = np.split(picture, 2, axis=1)
        colored = [np.ptp(half, axis=2) > 0.2 for half in (truth, prediction)]
        assert colored[0].sum() > 1.3 * colored[1].sum(), "half of the vertebrae have no color"


def test_columns_join_the_scan_table(url, predictions):
    store = spinezarr.open(url)
    comparison = store.compare(masks=masks(predictions, "shifted"))
    table = xr.merge([store.table, comparison.columns()], join="inner")
    assert table.scan.to_numpy().tolist() == ["a", "b"]
    assert table.compare_verdict.to_numpy().tolist() == ["shifted", "shifted"]
    assert table.compare_best_shift.to_numpy().tolist() == [1, 1]
    predicted = table.compare_vertebra_predicted_volume_cm3.sel(vertebra="T12")
    assert (predicted > 0).all()
    assert (predicted < table.volume_cm3.sel(vertebra="T11")).all()
    assert np.isnan(table.compare_vertebra_dice.sel(vertebra="C1")).all()


def test_a_mask_of_the_store_is_a_prediction_too(url):
    found = json.loads(run(url, "--layer", "label", "--json", "--scan", "a").stdout)
    assert found["as_named"]["dice"] == found["as_named"]["identification_rate"] == 1
    assert found["as_named"]["hausdorff_mm"] == 0


def test_predictions_of_nnunet_are_mapped_by_its_dataset_json(url, phantoms, tmp_path):
    store = spinezarr.open(url)
    store.export_nnunet(out=tmp_path / "raw")
    (dataset_json,) = tmp_path.rglob("dataset.json")
    numbers = json.loads(dataset_json.read_text())["stored_labels"]
    table = np.zeros(256, np.uint8)
    for number, value in numbers.items():
        table[value] = number
    for scan, phantom in phantoms.items():
        store.write_nifti(scan, table[phantom.label], tmp_path / f"{scan}.nii.gz")
    options = ("--masks", tmp_path / "{scan}.nii.gz", "--json", "--dataset-json")
    assert json.loads(run(url, *options, dataset_json).stdout)["as_named"]["dice"] == 1
    fewer = {"stored_labels": dict(list(numbers.items())[1:])}
    dataset_json.write_text(json.dumps(fewer))
    found = json.loads(run(url, *options, dataset_json, code=1).stdout)
    assert "holds the values 1, which dataset.json does not name" in found["failed"]["a"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stored_labels": {"0": 3}}', "\0"])
def test_a_file_that_is_no_dataset_json_is_refused(url, tmp_path, content):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    output = run(url, "--masks", "{scan}.nii", "--dataset-json", path, code=2).output
    assert "has no usable key 'stored_labels'" in " ".join(output.split())


def test_scans_that_cannot_be_compared_are_named_and_the_others_are_compared(
    url, phantoms, predictions, tmp_path
):
    (tmp_path / "a.nii.gz").write_bytes((predictions / "good" / "a.nii.gz").read_bytes())
    template = tmp_path / "{scan}.nii.gz"
    missing = json.loads(run(url, "--masks", template, "--json", code=1).stdout)
    assert list(missing["failed"]) == ["b"]
    assert missing["failed"]["b"].endswith("b.nii.gz: no such file.")
    assert missing["verdicts"] == {"right": 1}
    spinezarr.open(url).write_nifti("b", phantoms["b"].label, tmp_path / "placed.nii")
    moved = nib.Nifti1Image(np.asarray(nib.load(tmp_path / "placed.nii").dataobj), np.eye(4))
    nib.save(moved, tmp_path / "b.nii.gz")
    other_grid = run(url, "--masks", template, code=1)
    assert "their corners are" in other_grid.output
    found = run(url, "--masks", template, "--take-image-grid", "--json", "--scan", "b")
    assert json.loads(found.stdout)["as_named"]["dice"] == 1
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-50])
    assert "b" in json.loads(run(url, "--masks", template, "--json", code=1).stdout)["failed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --layer"),
        (("--layer", "label", "--masks", "{scan}.nii"), "give either --layer"),
        (("--layer", "label", "--take-image-grid"), "belong to --masks"),
        (("--masks", "a.nii"), "does not name the scan"),
        (("--masks", "{case}/{scan}.nii"), "names {case}"),
        (("--layer", "label", "--with", "truth"), "none of the chosen scans has a mask 'truth'"),
        (("--layer", "prediction"), "none of the chosen scans has a mask 'prediction'"),
        (("--layer", "label", "--csv", "."), "is a folder. Give the name of a file."),
        (("--layer", "label", "--scan", "x"), "has no scan 'x'"),
    ],
)
def test_wrong_usage_is_explained(url, words, message):
    assert message in " ".join(run(url, *words, code=2).output.split())


def test_a_layer_that_a_scan_lacks_fails_that_scan(url, tmp_path):
    own = str(shutil.copytree(url, tmp_path / "s.zarr"))
    store = spinezarr.open(own)
    store.write_labels("b", "prediction", store.scan("b").label)
    found = json.loads(run(own, "--layer", "prediction", "--json", code=1).stdout)
    assert set(found["failed"]) == {"a"}
    assert found["failed"]["a"] == "scan 'a' has no mask 'prediction'; it has label."


def test_a_further_mask_of_the_store_is_compared(url, tmp_path):
    shutil.copytree(url, tmp_path / "s.zarr")
    store = spinezarr.open(str(tmp_path / "s.zarr"))
    label = store.scan("a").label.to_numpy()
    store.write_labels("a", "prediction", one_level_too_low(label))
    store.write_labels("b", "prediction", store.scan("b").label, scheme={12: "a rib"})
    found = json.loads(run(store.url, "--layer", "prediction", "--json", code=1).stdout)
    assert found["verdicts"] == {"shifted": 1}
    assert list(found["failed"]) == ["b"]
    assert re.search(r"names the value \d+ '', expected 'T\d+'", found["failed"]["b"])
    backward = run(store.url, "--layer", "label", "--with", "prediction", "--scan", "a", "--json")
    assert json.loads(backward.stdout)["verdicts"] == {"shifted": 1}
