"""``--layer``: the commands that look at a store show, audit, measure and compare further masks."""

import json
import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import spinezarr
from spinezarr.errors import UnknownMaskError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.label_schemes import SCHEMES
from spinezarr.recipe import Recipe
from spinezarr.store.table import with_audit_results
from spinezarr.store.writer import StoreWriter
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, usual_levels, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME, structure_color

LEVELS = usual_levels("T11", "L3")
L1 = VALUE_OF_NAME["L1"]
SCANS = ("a", "b", "c")
"""Scans of the store; ``c`` has no label."""
SPINEPS = {name: value for value, name in SCHEMES["spineps"].names.items()}


def ingest_raw(folder):
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="made")
    layout = recipe.layouts["pairs"].model_copy(update={"mask": "optional"})
    recipe = recipe.model_copy(update={"layouts": {"pairs": layout}})
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "s.zarr"))
    assert not report.failed, report.failed
    return report


def too_low(label):
    """Return a mask in which each vertebra has the name of the next one below."""
    return np.where(label > 0, label + 1, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return a folder with raw files, predictions and a store of three scans with masks."""
    folder = tmp_path_factory.mktemp("layers")
    for seed, scan in enumerate(SCANS):
        spec = PhantomSpec(seed, (52, 36, 34), (3.5, 3.2, 3.2), LEVELS[seed:], cut_share=0)
        phantom = make_phantom(spec)
        affine = phantom.affine_xyz
        write_nifti(folder / f"raw/{scan}_ct.nii.gz", phantom.image, affine, NiftiForm())
        if scan != "c":
            write_nifti(folder / f"raw/{scan}_seg.nii.gz", phantom.label, affine, NiftiForm())
        form = NiftiForm("PIR", "uint8")
        write_nifti(folder / f"pred/{scan}.nii.gz", too_low(phantom.label), affine, form)
    ingest_raw(folder)
    store = spinezarr.open(folder / "s.zarr")
    pattern = f"{folder}/pred/{{scan}}.nii.gz"
    store.add_labels("prediction", pattern, model="net 2", license="MIT", scans=["a", "c"])
    store.add_labels("prediction", pattern, model="net 3", author="A. B.", scans="b")
    label = store.scan("a").label.to_numpy()
    parts = np.where(label == L1, SPINEPS["L1"], 0)
    parts[label == L1 + 1] = SPINEPS["L2_disc"]
    parts[0, 0, 0] = 77
    store.write_labels("a", "parts", parts, scheme="spineps")
    bone = {1: "left bone"}
    store.write_labels("a", "bone", store.scan("a").image > 200, scheme=bone, model="200 HU")
    store.write_labels("b", "blank", np.zeros_like(store.scan("b").label), scheme=bone)
    return folder


@pytest.fixture(scope="module")
def url(pristine):
    return str(pristine / "s.zarr")


@pytest.fixture
def copied(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "copied")
    return tmp_path / "copied"


def test_info_says_who_made_each_mask_and_what_it_shows(run, url):
    said = run("info", url, code=0).out.decode()
    summary = json.loads(run("info", url, "--json", code=0).out)
    store = spinezarr.open(url)
    assert summary == store.info() | {"exit_code": 0}
    masks = {mask["name"]: mask for mask in summary["masks"]}
    assert {name: mask["scans"] for name, mask in masks.items()} == {
        "blank": 1, "bone": 1, "parts": 1, "prediction": 3,
    }  # fmt: skip
    assert masks["prediction"]["made"] == [
        {"model": "net 2", "author": "", "license": "MIT", "scheme": "vertebrae", "scans": 2},
        {"model": "net 3", "author": "A. B.", "license": "", "scheme": "vertebrae", "scans": 1},
    ]
    assert masks["blank"]["scans_by_structure"] == {}
    assert masks["parts"]["scans_by_structure"] == {"L1": 1, "L2_disc": 1, "label_77": 1}
    shown = dict.fromkeys(("T12", "L1", "L2", "L3", "L4"), 0)
    for scan_id in SCANS:
        for value in np.unique(store.scan(scan_id).prediction.to_numpy())[1:].tolist():
            shown[next(name for name, v in VALUE_OF_NAME.items() if v == value)] += 1
    assert masks["prediction"]["scans_by_structure"] == shown
    words = " ".join(said.replace("│", " ").split())
    for text in ("net 3, A. B. - vertebrae", "left_bone 1", "prediction 2 net 2 MIT", "L2_disc 1"):
        assert text in words


def test_stats_measure_the_labels_of_a_mask_as_numpy_does(run, url, tmp_path):
    store = spinezarr.open(url)
    for layer in ("prediction", "parts", "bone", "blank"):
        found = json.loads(run("stats", url, "--layer", layer, "--json", code=0).out)
        expected = {}
        for scan_id in SCANS:
            scan = store.scan(scan_id)
            if layer in scan:
                voxel_cm3 = abs(np.linalg.det(np.array(scan.attrs["affine"])[:3, :3])) / 1000
                names = scan[layer].flag_meanings.split()
                for value, name in zip(scan[layer].flag_values, names, strict=True):
                    if value:
                        count = int((scan[layer] == value).sum())
                        expected.setdefault(name, []).append(count * voxel_cm3)
        assert set(found["vertebrae"]) == set(expected)
        assert found["mask"] == layer
        for name, volumes in expected.items():
            row = found["vertebrae"][name]
            assert row["scans"] == len(volumes)
            assert row["volume_cm3"]["median"] == pytest.approx(np.median(volumes))
    text = run("stats", url, "--layer", "prediction", "--scan", "b", code=0).out.decode()
    assert "mask prediction" in text
    plots = store.stats(layer="parts", plots=tmp_path)
    assert plots.scans_with_mask == 1
    assert matplotlib.image.imread(tmp_path / "volumes.png").ndim == 3


def test_figures_of_label_do_not_change_with_further_masks(run, url, copied):
    store = spinezarr.open(copied / "s.zarr")
    expected = store.stats()
    for name in ("prediction", "parts", "bone", "blank"):
        store.remove_labels(name)
    assert store.stats() == expected
    assert set(store.table.sizes) == {"scan", "vertebra", "axis"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["stats", "--layer", "none"],
            "none of the chosen scans has a mask 'none'; their masks are",
        ),
        (["stats", "--layer", "parts", "--scan", "b"], "their masks are label, blank, prediction."),
        (["stats", "--layer", "bone", "--against", "card"], "leave out --layer"),
        (["audit", "--layer", "none"], "label, blank, bone, parts, prediction"),
        (
            ["audit", "--layer", "bone"],
            "the scheme custom, and none of its labels is a vertebra: left_",
        ),
        (
            ["preview", "--out", "p", "--layer", "none"],
            "none of the chosen scans has a mask 'none'",
        ),
        (["preview", "--out", "p", "--layer", "bone", "--with", "blank"], "'blank' and 'bone'"),
        (["preview", "--out", "p", "--with", "label"], "Name two masks"),
        (["compare", "--layer", "label", "--save"], "--save keeps the result with a further mask"),
        (["compare", "--masks", "{scan}.nii", "--save"], "'spinezarr add-labels' first"),
    ],
)
def test_wrong_usage_is_explained(run, url, words, message):
    output = run(words[0], url, *words[1:], code=2)
    assert message in " ".join(output.err.decode().split())
    assert b"Traceback" not in output.err


def test_previews_show_a_mask_in_place_of_the_label_or_beside_it(run, url, tmp_path):
    assert b"Wrote 3 pictures" in run("preview", url, "--layer", "prediction", "--out", "p").out
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        f"{scan}_prediction.png" for scan in SCANS
    ]
    both = ("preview", url, "--layer", "prediction", "--with", "label", "--out", "q")
    assert b"Wrote 2 pictures" in run(*both, code=0).out
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == [
        f"{scan}_label_prediction.png" for scan in "ab"
    ]
    figure = spinezarr.open(url).figure("a", "parts")
    names = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"L1", "L2 disc"} <= names
    said = " ".join(text.get_text() for text in figure.texts)
    assert "mask parts" in said
    figure.savefig(tmp_path / "parts.png")
    pixels = matplotlib.image.imread(tmp_path / "parts.png")[..., :3].reshape(-1, 3)
    outline = np.array(structure_color(SPINEPS["L2_disc"]))
    assert (np.abs(pixels - outline).max(axis=1) < 0.02).sum() > 20, "discs are not gray"
    with pytest.raises(UnknownMaskError):
        spinezarr.open(url).figure("b", "parts")


def compared(run, url, *words, code=0):
    return json.loads(run("compare", url, "--layer", "prediction", "--json", *words, code=code).out)


def saved(url):
    table = spinezarr.open(url).table
    names = ("mask_compared_with", "mask_verdict", "mask_dice", "mask_identification_rate")
    mask = table.sel(mask="prediction")
    return {name: mask[name].to_numpy().tolist() for name in names}


BLANK = {
    "mask_compared_with": ["", "", ""],
    "mask_verdict": ["", "", ""],
    "mask_dice": [np.nan] * 3,
    "mask_identification_rate": [np.nan] * 3,
}


def assert_blank(found, rows):
    for name, cells in BLANK.items():
        for row in rows:
            np.testing.assert_equal(found[name][row], cells[row])


def test_a_comparison_is_saved_until_one_of_its_masks_changes(run, copied):
    url = str(copied / "s.zarr")
    store = spinezarr.open(url)
    audit = store.audit()
    before = store.table.audit.to_numpy().tolist()
    assert_blank(saved(url), range(3))
    compared(run, url)
    assert_blank(saved(url), range(3))
    found = compared(run, url, "--save")
    scans = {scan["scan_id"]: scan for scan in found["scans"]}
    cells = saved(url)
    assert cells["mask_compared_with"] == ["label", "label", ""]
    assert cells["mask_verdict"] == ["shifted", "shifted", ""]
    for row, scan_id in enumerate("ab"):
        as_named = next(each for each in scans[scan_id]["shifts"] if each["shift"] == 0)
        assert cells["mask_dice"][row] == as_named["dice"]
        assert cells["mask_identification_rate"][row] == as_named["identification_rate"]
    assert_blank(cells, [2])
    plain = xr.open_zarr(f"{url}/table").sel(mask="prediction", scan="a").load()
    assert "wrong names by one" in plain.mask_verdict_text.item()
    info = spinezarr.open(url).info()["masks"][-1]
    assert (info["scans_by_verdict"], info["mean_dice"]) == ({"shifted": 2}, 0.0)
    assert b"2 shifted, mean" in run("info", url, code=0).out
    assert spinezarr.open(url).verify().faults == ()
    assert spinezarr.open(url).table.audit.to_numpy().tolist() == before, audit.counts
    # Other masks come and go without effect.
    store = spinezarr.open(url)
    store.write_labels("a", "other", store.scan("a").label)
    store.remove_labels("bone")
    np.testing.assert_equal(saved(url), cells)
    # A mask is replaced, also by the same voxels.
    store.write_labels("a", "prediction", store.scan("a").prediction)
    assert_blank(saved(url), [0, 2])
    assert saved(url)["mask_verdict"][1] == "shifted"
    # The truth is replaced, and the ingest keeps the mask.
    label = nib.load(copied / "raw/b_seg.nii.gz")
    voxels = np.asarray(label.dataobj).copy()
    voxels[voxels == L1] = 0
    nib.save(nib.Nifti1Image(voxels, label.affine, label.header), copied / "raw/b_seg.nii.gz")
    assert ingest_raw(copied).done == ("b",)
    assert "prediction" in spinezarr.open(url).scan("b")
    assert_blank(saved(url), range(3))
    assert spinezarr.open(url).verify().faults == ()
    # Another truth is removed.
    compared(run, url, "--with", "other", "--save", "--scan", "a")
    assert saved(url)["mask_compared_with"] == ["other", "", ""]
    spinezarr.open(url).remove_labels("other")
    assert_blank(saved(url), range(3))
    assert spinezarr.open(url).verify().faults == ()


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_a_comparison_of_masks_that_changed_meanwhile_is_not_saved(copied, monkeypatch, change):
    from spinezarr.verbs import compare as verb  # noqa: PLC0415

    url = str(copied / "s.zarr")
    measure = verb.compare_masks

    def changing(truth, prediction, affine):
        other = spinezarr.open(url)
        if change == "replace":
            other.write_labels("b", "prediction", other.scan("b").label)
        elif "prediction" in other.scan("b"):
            other.remove_labels("prediction", scans="b")
        return measure(truth, prediction, affine)

    monkeypatch.setattr(verb, "compare_masks", changing)
    store = spinezarr.open(url)
    comparison = store.compare(layer="prediction", save=True, scans=["b", "a"])
    assert comparison.exit_code == 1
    assert comparison.not_saved.endswith("is not saved: b. Compare them again.")
    assert saved(url)["mask_verdict"] == ["shifted", "", ""]
    assert spinezarr.open(url).verify().faults == ()


def test_a_comparison_in_a_store_that_cannot_be_written_is_shown(run, copied, plain_user):
    url = copied / "s.zarr"
    for path in (url, *url.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)
    output = run("compare", url, "--layer", "prediction", "--save", code=1)
    assert b"The comparison is only reported." in output.err
    assert b"wrong names by one" in b" ".join(output.out.split())
    for path in (url, *url.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def verified(run, copied, *folders, code=0):
    words = [word for folder in folders for word in ("--against", folder)]
    said = json.loads(run("verify", copied / "s.zarr", *words, "--json", code=code).out)
    return said["faults"], {reason.split()[0]: n for reason, n in said["not_compared"].items()}


def test_verify_compares_masks_with_their_files_and_counts_the_others(run, copied):
    raw, pred = copied / "raw", copied / "pred"
    assert verified(run, copied, raw) == ([], {"a": 3, "no": 3})
    assert verified(run, copied, raw, pred) == ([], {"a": 3})
    shown = run("verify", copied / "s.zarr", "--against", raw, code=0).out.decode()
    assert "3 of the images and masks were not compared with a source: a program" in " ".join(
        shown.split()
    )
    # An image of the same name in the raw folder is not the file of the mask.
    shutil.copy(raw / "a_ct.nii.gz", raw / "extra.nii.gz")
    store = spinezarr.open(copied / "s.zarr")
    store.add_labels("copy", f"{raw}/{{scan}}_seg.nii.gz")
    (copied / "moved").mkdir()
    shutil.copy(pred / "a.nii.gz", copied / "moved/a_ct.nii.gz")
    store.add_labels("moved", f"{copied}/moved/{{scan}}_ct.nii.gz")
    assert verified(run, copied, raw) == ([], {"a": 3, "no": 4})
    assert verified(run, copied, raw, pred, copied / "moved") == ([], {"a": 3})
    # A changed file, and a changed voxel of the store.
    data = nib.load(pred / "a.nii.gz")
    voxels = np.asarray(data.dataobj).copy()
    voxels[tuple(np.argwhere(voxels)[0])] = 0
    nib.save(nib.Nifti1Image(voxels, data.affine, data.header), pred / "a.nii.gz")
    faults, _ = verified(run, copied, raw, pred, code=1)
    assert {(fault["scan_id"], fault["path"]) for fault in faults} == {("a", "a.nii.gz")}
    assert {"source", "voxels"} == {fault["kind"] for fault in faults}
    assert any("1 voxel of another value, first prediction" in fault["found"] for fault in faults)


def places(figure):
    """Return the headings of the panels, which say where the planes lie."""
    return {t.get_text() for axes in figure.axes for t in axes.texts if " mm" in t.get_text()}


def test_pictures_show_the_spine_unless_the_mask_lies_elsewhere(copied):
    store = spinezarr.open(copied / "s.zarr")
    assert places(store.figure("a", "bone")) == places(store.figure("a"))
    assert places(store.figure("b", "blank")) == places(store.figure("b"))
    scan = store.scan("a")
    spot = np.zeros(scan.image.shape, np.uint8)
    spot[3, 30, 5] = 1
    store.write_labels("a", "spot", spot, scheme={1: "spot"})
    at = {name: float(scan[axis][i]) for name, axis, i in (
        ("sagittal", "x", 5), ("coronal", "y", 30), ("axial", "z", 3)
    )}  # fmt: skip
    shown = places(store.figure("a", "spot"))
    for name, axis in (("sagittal", "x"), ("coronal", "y"), ("axial", "z")):
        assert f"{name}   {axis} = {at[name]:.1f} mm" in shown
    image = scan.image.to_numpy()
    store.write_labels("c", "spot", np.where(np.arange(image.size).reshape(image.shape) == 0, 9, 0))
    assert store.figure("c", "spot").axes, "a scan without a label"


def test_verify_finds_a_wrong_count_of_a_mask_in_the_table(copied):
    store = spinezarr.open(copied / "s.zarr")
    assert [store.verify(scans=scan_id).faults for scan_id in SCANS] == [()] * 3
    table = with_audit_results(store._reader.table, {})
    table.mask_voxel_count.loc["a", "parts", "L1"] += 1
    writer = StoreWriter(store.url, store._reader.root, {})
    with writer.lock("a test"):
        writer.registry.publish_table(table)
    for found in (store.verify(), store.verify(scans="a")):
        (fault,) = found.faults
        assert (fault.scan_id, fault.kind) == ("a", "disagrees")
        assert "mask_voxel_count" in fault.found
    assert store.verify(scans=["b", "c"]).faults == ()


def test_python_takes_the_same_masks(url):
    store = spinezarr.open(url)
    with pytest.raises(UsageError, match="none of its labels is a vertebra"):
        store.audit(layer="bone")
    audit = store.audit(layer="parts", scans="a")
    assert audit.mask == "parts"
    assert ("unknown-value", "error") in {(f.rule, f.severity) for f in audit.findings}
    assert "only reported" in audit.not_written
    assert store.audit(layer="parts", scans="a", write=False).not_written == ""
    assert store.table.audit.to_numpy().tolist() == ["", "", ""]
