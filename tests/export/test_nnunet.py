import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from raw_files import files_below
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import UsageError
from spinezarr.export.nnunet import NnunetLabels
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    DicomForm,
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    write_ctspinopelvic1k,
    write_dicom_series,
    write_metaimage,
    write_nifti,
    write_xvertseg,
)

SHAPE = (67, 5, 50)
AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -700.7], [0, 0, 0, 1]])
TRAIN = ["1.3.6.1.4.1.9328.50.4.0001", "HN_P001", "liver_0"]
VALIDATION = ["CTC-1018399231", "volume-covid19-A-0377_ct"]
TEST = ["1.3.6.1.4.1.9328.50.4.0505"]


def run(*words, code=0, **environment):
    result = CliRunner().invoke(app, [str(word) for word in words], env=environment)
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def keeps_the_rules(folder, assert_read_alike):
    """Check nnU-Net's rules (dataset_format.md, verify_dataset_integrity) with each reader."""
    facts = json.loads((folder / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= facts.keys()
    assert facts["channel_names"] == {"0": "CT"}
    labels = facts["labels"]
    assert labels["background"] == 0
    assert sorted(labels.values()) == list(range(len(labels)))
    if "ignore" in labels:
        assert labels["ignore"] == max(labels.values())
    ending = facts["file_ending"]
    # Files are found as by its get_filenames_of_train_images_and_targets.
    crop = len(ending) + 5
    cases = sorted({path.name[:-crop] for path in (folder / "imagesTr").iterdir()})
    assert len(cases) == facts["numTraining"]
    for case in cases:
        name = re.compile(re.escape(case) + r"_\d\d\d\d" + re.escape(ending))
        (image,) = (p for p in (folder / "imagesTr").iterdir() if name.fullmatch(p.name))
        found, mask = nib.load(image), nib.load(folder / "labelsTr" / f"{case}{ending}")
        assert found.shape == mask.shape
        np.testing.assert_array_equal(found.affine, mask.affine)
        assert found.header.get_zooms() == mask.header.get_zooms()
        assert set(np.unique(mask.dataobj).tolist()) <= set(labels.values())
        assert not np.isnan(found.get_fdata()).any()
        for path in (image, folder / "labelsTr" / f"{case}{ending}"):
            assert_read_alike(path)
        for reader in (NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient):
            voxels, facts_of_image = reader().read_images([str(image)])
            numbers, facts_of_mask = reader().read_seg(str(folder / f"labelsTr/{case}{ending}"))
            assert voxels.shape == numbers.shape
            np.testing.assert_allclose(
                facts_of_image["spacing"], facts_of_mask["spacing"], rtol=1e-6
            )
            assert set(np.unique(numbers).tolist()) <= set(labels.values())
    return facts


@pytest.fixture
def assert_keeps_the_rules(assert_read_alike):
    return partial(keeps_the_rules, assert_read_alike=assert_read_alike)


def test_a_dataset_is_complete_and_follows_the_rules(
    ctspine1k_raw, ctspine1k_url, tmp_path, assert_keeps_the_rules
):
    out = tmp_path / "raw"
    output = run("export", "nnunet", ctspine1k_url, "--out", out, nnUNet_preprocessed="").output
    folder = out / "Dataset501_CTSpine1K"
    assert "Wrote 12 files of 6 scans" in output
    expected = [f"imagesTr/{scan}_0000.nii.gz" for scan in TRAIN + VALIDATION]
    expected += [f"labelsTr/{scan}.nii.gz" for scan in TRAIN + VALIDATION]
    expected += [f"imagesTs/{TEST[0]}_0000.nii.gz", f"labelsTs/{TEST[0]}.nii.gz"]
    assert files_below(folder) == {*expected, "dataset.json", "splits_final.json"}
    facts = assert_keeps_the_rules(folder)
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {"train": sorted(TRAIN), "val": sorted(VALIDATION)}
    ]
    assert facts["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert facts["license"] == "CC-BY-NC-SA-4.0"
    back = np.zeros(256, np.uint8)
    for number, value in facts["stored_labels"].items():
        back[int(number)] = value
    names = {number: name for name, number in facts["labels"].items()}
    store = spinezarr.open(ctspine1k_url)
    seen = set()
    for scan in ctspine1k_raw[1]:
        kind = "Ts" if scan.scan_id in TEST else "Tr"
        image = nib.load(folder / f"images{kind}/{scan.scan_id}_0000.nii.gz")
        source = nib.load(scan.image_path)
        assert image.get_data_dtype() == source.get_data_dtype()
        np.testing.assert_array_equal(image.get_fdata(), source.get_fdata())
        np.testing.assert_array_equal(image.affine, source.affine)
        mask = nib.load(folder / f"labels{kind}/{scan.scan_id}.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        numbers = np.asarray(mask.dataobj)
        np.testing.assert_array_equal(back[numbers], nib.load(scan.label_path).get_fdata())
        seen |= set(np.unique(numbers).tolist())
        flags = store.scan(scan.scan_id).label.attrs
        meanings = dict(zip(flags["flag_values"], flags["flag_meanings"].split(), strict=True))
        for number in set(np.unique(numbers).tolist()) - {0}:
            assert names[number] == meanings[back[number]]
    # All numbers are used, in the order of the stored values.
    assert seen == set(facts["labels"].values())
    assert list(facts["stored_labels"].values()) == sorted(facts["stored_labels"].values())


def test_splits_are_written_where_nnunet_reads_them(
    ctspine1k_url, tmp_path, assert_keeps_the_rules
):
    words = ("export", "nnunet", ctspine1k_url, "--dataset-id", "7", "--name", "Spine-1")
    given = {"nnUNet_raw": str(tmp_path / "raw"), "nnUNet_preprocessed": str(tmp_path / "pre")}
    said = json.loads(run(*words, "--uncompressed", "--json", **given).stdout)
    splits = tmp_path / "pre/Dataset007_Spine-1/splits_final.json"
    assert [fold.keys() for fold in json.loads(splits.read_text())] == [{"train", "val"}]
    folder = tmp_path / "raw/Dataset007_Spine-1"
    written = [folder / "splits_final.json", splits, folder / "dataset.json"]
    assert said["files"] == [str(path) for path in written]
    assert said["failed"] == {}
    assert {name.split(".", 1)[1] for name in files_below(folder) if "liver" in name} == {"nii"}
    assert_keeps_the_rules(folder)


def test_exports_of_parts_of_a_store_number_labels_alike(
    ctspine1k_url, tmp_path, assert_keeps_the_rules
):
    run("export", "nnunet", ctspine1k_url, "--out", tmp_path / "all")
    run("export", "nnunet", ctspine1k_url, "--out", tmp_path / "one", "--split", "validation")
    parts = [tmp_path / name / "Dataset501_CTSpine1K" for name in ("all", "one")]
    whole, part = map(assert_keeps_the_rules, parts)
    assert part["labels"] == whole["labels"]
    assert (whole["numTraining"], part["numTraining"]) == (5, 2)
    # A single split is not written: nnU-Net makes its own splits.
    assert not (parts[1] / "splits_final.json").exists()
    assert not (parts[1] / "imagesTs").exists()


def test_a_label_to_ignore_has_the_highest_number(tmp_path, assert_keeps_the_rules):
    write_ctspinopelvic1k(tmp_path / "pelvic")
    recipe = Recipe.load("ctspinopelvic1k")
    report = ingest(recipe, discover(recipe, str(tmp_path / "pelvic")), str(tmp_path / "p.zarr"))
    assert not report.failed
    run("export", "nnunet", tmp_path / "p.zarr", "--out", tmp_path / "raw", "--name", "p")
    facts = assert_keeps_the_rules(tmp_path / "raw/Dataset501_p")
    assert facts["labels"]["ignore"] == len(facts["labels"]) - 1
    assert facts["stored_labels"][str(facts["labels"]["ignore"])] == 255


def test_the_label_to_ignore_comes_last_whatever_its_value():
    facts = SimpleNamespace(
        vertebrae={"L5": None, "C1": None},
        other_labels={"30": 5, "31": 5},
        structures={"30": "ignore", "31": "hip"},
    )
    labels = NnunetLabels.from_scans([SimpleNamespace(attributes=facts)])
    assert labels.number_of_name == {"background": 0, "C1": 1, "L5": 2, "hip": 3, "ignore": 4}
    assert labels.stored_of_number == {1: 1, 2: 24, 3: 31, 4: 30}
    assert labels.number_of_stored[[0, 1, 24, 30, 31, 99]].tolist() == [0, 1, 2, 4, 3, 0]


def pairs(folder, forms):
    """Return a store of scans whose masks may have other axes; their values are 3, 99 and 7."""
    rng = np.random.default_rng(8)
    for i, (image_axes, label_axes) in enumerate(forms):
        image = rng.integers(-900, 900, SHAPE).astype(np.int16)
        write_nifti(folder / f"raw/{i}_ct.nii", image, AFFINE, NiftiForm(image_axes))
        label = rng.choice(np.array([0, 3, 7, 99], np.uint8), SHAPE)
        write_nifti(folder / f"raw/{i}_seg.nii", label, AFFINE, NiftiForm(label_axes, "uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "pairs.zarr"))
    assert not report.failed, report.failed
    return folder / "pairs.zarr"


def test_masks_of_any_axes_are_exported_on_the_grid_of_their_image(
    tmp_path, assert_keeps_the_rules
):
    url = pairs(tmp_path, [*zip(all_axcodes()[::6], all_axcodes()[1::6], strict=True)])
    run("export", "nnunet", url, "--out", tmp_path / "out", "--name", "pairs")
    folder = tmp_path / "out/Dataset501_pairs"
    facts = assert_keeps_the_rules(folder)
    assert facts["labels"] == {"background": 0, "C3": 1, "C7": 2, "label_99": 3}
    assert facts["stored_labels"] == {"1": 3, "2": 7, "3": 99}
    for path in (folder / "labelsTr").iterdir():
        case = path.name.removesuffix(".nii.gz")
        found = nib.as_closest_canonical(nib.load(path))
        wanted = nib.as_closest_canonical(nib.load(tmp_path / f"raw/{case}_seg.nii"))
        values = np.array([0, 3, 7, 99])[np.asarray(found.dataobj)]
        np.testing.assert_array_equal(values, np.asarray(wanted.dataobj))


def test_exported_dicom_and_metaimages_are_read_by_every_reader_of_nnunet(
    tmp_path, assert_keeps_the_rules
):
    rng = np.random.default_rng(3)
    shape = (12, 16, 18)
    image = rng.integers(-1024, 3072, shape).astype(np.int16)
    label = rng.choice(np.array([0, 20, 21], np.uint8), shape)
    write_dicom_series(tmp_path / "dicom/a_ct", image, AFFINE, DicomForm())
    write_nifti(
        tmp_path / "dicom/a_seg.nii", label.T, AFFINE, NiftiForm("RAS", "uint8", oblique_deg=0)
    )
    write_metaimage(tmp_path / "mha/b_ct.mha", image, AFFINE, MetaImageForm("LPS", oblique_deg=9))
    form = MetaImageForm("RAI", "float32", oblique_deg=9)
    write_metaimage(tmp_path / "mha/b_seg.mha", label, AFFINE, form)
    for kind, ending in (("dicom", ("/", ".nii")), ("mha", (".mha", ".mha"))):
        patterns = [
            f"{{scan}}_{name}{end}" for name, end in zip(("ct", "seg"), ending, strict=True)
        ]
        recipe = Recipe.from_pairs(*patterns, name=kind)
        found = discover(recipe, str(tmp_path / kind))
        report = ingest(recipe, found, str(tmp_path / f"{kind}.zarr"))
        assert not report.failed, report.failed
        said = run("export", "nnunet", tmp_path / f"{kind}.zarr", "--out", tmp_path / f"out-{kind}")
        assert "places voxels up to" in " ".join(said.output.split())
        folder = tmp_path / f"out-{kind}/Dataset501_{kind}"
        assert assert_keeps_the_rules(folder)["numTraining"] == 1
        (case,) = (folder / "imagesTr").iterdir()
        assert nib.load(case).get_data_dtype() == np.int16


def test_scans_without_mask_are_exported_as_test_images(tmp_path, assert_keeps_the_rules):
    write_xvertseg(tmp_path / "x")
    recipe = Recipe.load("xvertseg")
    report = ingest(recipe, discover(recipe, str(tmp_path / "x")), str(tmp_path / "x.zarr"))
    assert not report.failed
    table = spinezarr.open(tmp_path / "x.zarr").table
    bare = table.scan.to_numpy()[table.label_state.to_numpy() == "none"].tolist()
    masked = sorted({*table.scan.to_numpy().tolist()} - {*bare})
    assert bare
    assert masked
    run("export", "nnunet", tmp_path / "x.zarr", "--out", tmp_path / "out", "--name", "x")
    folder = tmp_path / "out/Dataset501_x"
    assert assert_keeps_the_rules(folder)["numTraining"] == len(masked)
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == [
        f"{scan}_0000.nii.gz" for scan in sorted(bare)
    ]
    assert not (folder / "labelsTs").exists()
    shutil.rmtree(tmp_path / "x/Data1")
    only = ingest(recipe, discover(recipe, str(tmp_path / "x")), str(tmp_path / "bare.zarr"))
    assert not only.failed
    export = spinezarr.open(tmp_path / "bare.zarr").export_nnunet
    with pytest.raises(UsageError, match="no scans with masks to train on"):
        export(out=tmp_path / "none")


# Failures


def test_dataset_json_is_written_only_once_every_scan_is_there(
    ctspine1k_url, tmp_path, assert_keeps_the_rules
):
    broken = Path(shutil.copytree(ctspine1k_url, tmp_path / "broken.zarr"))
    shard = broken / "scans/liver_0/label/c/0/0/0"
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + b"\0\1" + good[102:])
    words = ("export", "nnunet", broken, "--out", tmp_path / "raw")
    output = run(*words, code=1).output
    assert "label chunk" in output
    assert "dataset.json was not written" in output
    folder = tmp_path / "raw/Dataset501_CTSpine1K"
    assert {"dataset.json", "splits_final.json"}.isdisjoint(files_below(folder))
    assert "labelsTr/liver_0.nii.gz" not in files_below(folder)
    shard.write_bytes(good)
    assert "exists already" in " ".join(run(*words, code=2).stderr.split())
    run(*words, "--overwrite")
    assert_keeps_the_rules(folder)
    # A complete dataset loses its dataset.json while it is written again.
    shard.unlink()
    run(*words, "--overwrite", code=1)
    assert "dataset.json" not in files_below(folder)


def test_datasets_that_nnunet_would_refuse_are_refused(ctspine1k_url, tmp_path):
    out = tmp_path / "raw"
    words = ("export", "nnunet", ctspine1k_url, "--out", out)
    (out / "Dataset501_Other").mkdir(parents=True)
    assert "same number" in " ".join(run(*words, code=2).stderr.split())
    words = (*words, "--dataset-id", "502")
    said = run(*words, "--name", "a b", code=2)
    assert "letters, digits" in " ".join(said.stderr.split())
    said = run(*words, "--split", "dev", code=2)
    assert "the store has 'test', 'train', 'validation'" in " ".join(said.stderr.split())
    said = run(*words, "--split", "test", code=2)
    assert "no scans with masks to train on" in " ".join(said.stderr.split())
    stray = out / "Dataset502_CTSpine1K/imagesTr/mine_0000.nii.gz"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"mine")
    said = run(*words, "--overwrite", code=2)
    assert "is not a file of this dataset" in " ".join(said.stderr.split())
    assert stray.read_bytes() == b"mine"
    (tmp_path / "file").write_text("x")
    run("export", "nnunet", ctspine1k_url, "--out", tmp_path / "file", code=2)
    with pytest.raises(UsageError, match="numbers from 1 to 999"):
        spinezarr.open(ctspine1k_url).export_nnunet(out=out, dataset_id=1000)


def test_a_part_of_a_store_can_be_exported_as_a_dataset(
    ctspine1k_url, tmp_path, assert_keeps_the_rules
):
    store, seen = spinezarr.open(ctspine1k_url), []
    report = store.export_nnunet(
        out=tmp_path, split=["train", "validation"], on_progress=seen.append
    )
    expected = TRAIN[:1] + VALIDATION[:1] + TRAIN[1:] + VALIDATION[1:]
    assert [scan.scan_id for scan in report.done] == expected
    assert (report.failed, Path(report.files[-1]).name) == ({}, "dataset.json")
    assert seen[-1].done == seen[-1].total
    assert_keeps_the_rules(Path(report.out))


GAPS = {3: "left rib", 77: "background", 90: "ignore"}
"""A scheme with gaps, and with names that have a meaning in nnU-Net."""


@pytest.fixture
def with_parts(ctspine1k_url, tmp_path):
    """Return a copy of the store in which all scans but one have a further mask, and the masks."""
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "copy.zarr"))
    values = np.array([0, 3, 77, 90, 200], np.uint8)
    parts = {}
    for number, scan_id in enumerate([*TRAIN[:2], *VALIDATION, *TEST]):
        rng = np.random.default_rng(number)
        shape = store.scan(scan_id).image.shape
        parts[scan_id] = rng.choice(values[: 5 - number % 2], shape)
        license = "CC-BY-NC-ND-4.0" if scan_id == VALIDATION[1] else ""
        store.write_labels(scan_id, "parts", parts[scan_id], scheme=GAPS, license=license)
    return spinezarr.open(store.url), parts


def test_a_further_mask_with_gaps_becomes_a_dataset(with_parts, tmp_path, assert_keeps_the_rules):
    store, parts = with_parts
    words = ("export", "nnunet", store.url, "--out", tmp_path / "raw", "--layer", "parts")
    output = run(*words, nnUNet_preprocessed="").output
    assert "Left out 1 scan whose license allows no derivatives (CC-BY-NC-ND-4.0)" in output
    folder = tmp_path / "raw/Dataset501_CTSpine1K"
    facts = assert_keeps_the_rules(folder)
    names = ["background", "left rib", "label_77", "label_200", "ignore"]
    assert list(facts["labels"]) == names
    assert facts["stored_labels"] == {"1": 3, "2": 77, "3": 200, "4": 90}
    assert facts["stored_mask"] == "parts"
    # The scan without the mask is a case to predict, and the restricted one is left out.
    cases = [*TRAIN[:2], VALIDATION[0]]
    assert files_below(folder / "labelsTr") == {f"{scan}.nii.gz" for scan in cases}
    assert files_below(folder / "imagesTs") == {f"{s}_0000.nii.gz" for s in (TRAIN[2], *TEST)}
    stored = np.array([0, *(facts["stored_labels"][str(n)] for n in range(1, 5))])
    for scan_id in cases:
        path = str(folder / f"labelsTr/{scan_id}.nii.gz")
        numbers, _ = NibabelIOWithReorient().read_seg(path)
        np.testing.assert_array_equal(stored[numbers[0].astype(int)], parts[scan_id])
    report = store.export_nnunet(
        out=tmp_path / "all", layer="parts", include_restricted=True, name="all"
    )
    assert (report.left_out, len(report.done)) == ({}, 6)


def test_masks_that_name_their_values_differently_are_no_dataset(with_parts, tmp_path):
    store, parts = with_parts
    scan_id = TRAIN[0]
    for scheme, message in (
        ({3: "right rib"}, r"names the value 3 '\w+ rib', and in another scan '\w+ rib'"),
        ({77: "left rib"}, r"has 'left rib' as the value \d+, and in another scan as \d+"),
    ):
        mask = np.where(np.isin(parts[scan_id], [*scheme]), parts[scan_id], 0)
        store.write_labels(scan_id, "parts", mask, scheme=scheme)
        again = spinezarr.open(store.url)
        with pytest.raises(UsageError, match=f"{message}.* one scheme"):
            again.export_nnunet(out=tmp_path / "raw", layer="parts")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("verb", ["nifti", "nnunet"])
def test_a_mask_that_no_scan_has_is_an_error(ctspine1k_url, tmp_path, verb):
    words = ("export", verb, ctspine1k_url, "--out", tmp_path / "x", "--layer", "teeth")
    assert "no chosen scan has a mask 'teeth'; further masks are: none." in " ".join(
        run(*words, code=2).output.split()
    )
    assert not (tmp_path / "x").exists()
