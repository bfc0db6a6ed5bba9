"""Synthetic copies of every dataset layout, ingested with the shipped recipes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pytest
from raw_files import canonical_zyx

import spinezarr
from spinezarr.cli.reports.ingest import print_discovery
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    VERSE_2019,
    VERSE_2020,
    make_phantom,
    totalsegmentator_values,
    write_cads,
    write_ctspine1k,
    write_ctspine1k_tables,
    write_ctspine1k_tcia,
    write_ctspine1k_verse,
    write_ctspinopelvic1k,
    write_msr,
    write_msr_nifti,
    write_rsna,
    write_spine_mets,
    write_spineps,
    write_totalsegmentator,
    write_totalsegmentator_multilabel,
    write_verse_2019_challenge,
    write_verse_2020_challenge,
    write_verse_subjects,
    write_xvertseg,
)
from spinezarr.verify.source import compare_with_source
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, VALUE_OF_NAME


def run(name, raw, out, **options):
    recipe = Recipe.load(name)
    found = discover(recipe, str(raw))
    report = ingest(recipe, found, str(out), **options)
    return found, report, spinezarr.open(out)


def by_image(root, written):
    return {os.path.relpath(scan.image_path, root): scan for scan in written}


def centroids_of(store, scan_id):
    row = store.table.annotated_centroid_zyx_mm.sel(scan=scan_id, axis=["x", "y", "z"])
    known = row.dropna("vertebra")
    return dict(zip(known.vertebra.to_numpy().tolist(), known.to_numpy(), strict=True))


def assert_stored_as_written(store, source, written):
    """Check that image and mask equal the phantom, and that centroids lie in the bodies."""
    stored = store.scan(source.scan_id)
    phantom = make_phantom(written.spec)
    np.testing.assert_array_equal(stored.image.to_numpy(), phantom.image)
    if written.label_path is None:
        assert "label" not in stored
        assert store.table.label_state.sel(scan=source.scan_id) == "none"
    else:
        np.testing.assert_array_equal(stored.label.to_numpy(), phantom.label)
    return centroids_of(store, source.scan_id)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    raw = tmp_path_factory.mktemp("verse")
    written = write_verse_subjects(raw)
    found, report, store = run("verse", raw, tmp_path_factory.mktemp("out") / "verse.zarr")
    assert not report.failed, report.failed
    return raw, written, found, store


def test_verse_subjects_are_stored_as_written(subjects):
    raw, written, found, store = subjects
    of_image = by_image(raw, written)
    assert len(found.scans) == len(written) == 13
    assert {scan.image for scan in found.scans} == set(of_image)
    for source in found.scans:
        plan = of_image[source.image]
        points = assert_stored_as_written(store, source, plan)
        spacing = store.table.spacing_zyx_mm.sel(scan=source.scan_id).max().item()
        assert set(points) == (set(plan.centers_mm) if plan.points_path else set())
        for level, position in points.items():
            # The files give tenths of a voxel.
            assert np.abs(position - plan.centers_mm[level]).max() < 0.1 * spacing
            assert (
                store.table.annotated_centroid_distance_mm.sel(scan=source.scan_id, vertebra=level)
                < 2 * spacing
            )


def test_verse_scans_have_patient_split_year_and_label_state(subjects):
    raw, written, found, store = subjects
    of_image = by_image(raw, written)
    names = {"training": "train", "validation": "validation", "test": "test"}
    for source in found.scans:
        plan = of_image[source.image]
        row = store.table.sel(scan=source.scan_id)
        assert row.patient_id == plan.patient
        assert row.split == names[plan.split]
        assert row.source == f"VerSe {plan.year}"
        assert row.label_state == ("none" if plan.label_path is None else "whole-only")
        assert ("120" if plan.year == 2019 else "") == row.KVP
    twins = store.table.scan[store.table.patient_id == "verse401"].to_numpy().tolist()
    assert twins == ["verse201", "verse253"]


def test_verse_keeps_rare_levels_in_anatomical_order(subjects):
    _, _, _, store = subjects
    order = store.table.vertebra.to_numpy().tolist()
    assert order.index("T12") < order.index("T13") < order.index("L1") < order.index("L6")
    shown = store.table.voxel_count > 0
    assert shown.sel(vertebra="T13").any()
    assert shown.sel(vertebra="L6").any()
    without_t12 = shown.sel(vertebra=["T11", "T12", "L1"]).to_numpy().tolist()
    assert [True, False, True] in without_t12


def test_resource_forks_of_macos_are_ignored(subjects):
    _, _, found, _ = subjects
    forks = [note.path for note in found.ignored if "/._" in note.path or "__MACOSX" in note.path]
    assert len(forks) > 50
    assert not [note for note in found.ignored if "no pattern" in note.reason]
    assert not found.without_image


def test_the_fracture_table_is_joined_by_the_number_of_the_scan(tmp_path):
    raw = tmp_path / "raw"
    write_verse_subjects(raw)
    book = openpyxl.Workbook()
    header = ["subject_ID", "verse_ID", "CT_device", "BMD", "N_Fx", "L1_fx-g", "L1_fx-s"]
    rows = [
        [4, 4, "Brilliance 64", 81.5, 1, 2, 1],
        [401, 201, "iCT 256", 120.0, 0, 0, 0],
        [401, 253, "iCT 256", None, 1, "x", "x"],
        [999, 999, "not here", 1, 1, 1, 1],
        [None] * 9,
    ]
    for row in (header, *rows):
        book.active.append(row)
    book.save(raw / "ryai190138_appendixe1.xlsx")
    found, _, store = run("verse", raw, tmp_path / "verse.zarr")
    (use,) = (use for use in found.tables if use.name == "fractures")
    assert (use.name, use.rows, use.matched) == ("fractures", 4, 3)
    said = store.table[["BMD", "L1_fx-g", "subject_ID"]].sel(
        scan=["verse004", "verse201", "verse253", "verse074"]
    )
    assert said.BMD.to_numpy().tolist() == ["81.5", "120", "", ""]
    assert said["L1_fx-g"].to_numpy().tolist() == ["2", "0", "x", ""]
    assert said.subject_ID.to_numpy().tolist() == ["4", "401", "401", ""]


@pytest.mark.parametrize(("nested", "renamed"), [(True, False), (False, True), (True, True)])
def test_verse_folders_may_be_nested_or_renamed(tmp_path, subjects, nested, renamed):
    written = write_verse_subjects(tmp_path, nested=nested, renamed=renamed)
    found = discover(Recipe.load("verse"), str(tmp_path))
    known = {scan.scan_id: (scan.patient_id, scan.split, scan.source) for scan in subjects[2].scans}
    assert {s.scan_id: (s.patient_id, s.split, s.source) for s in found.scans} == known
    assert sum(scan.centroids is not None for scan in found.scans) == sum(
        scan.points_path is not None for scan in written
    )


@pytest.mark.parametrize("year", [2019, 2020])
def test_challenge_releases_are_stored_as_written(tmp_path, year):
    write = {2019: write_verse_2019_challenge, 2020: write_verse_2020_challenge}[year]
    written = by_image(tmp_path / "raw", write(tmp_path / "raw"))
    found, report, store = run("verse", tmp_path / "raw", tmp_path / "verse.zarr")
    assert not report.failed, report.failed
    assert {scan.image for scan in found.scans} == set(written)
    for source in found.scans:
        plan = written[source.image]
        points = assert_stored_as_written(store, source, plan)
        assert source.source == f"VerSe {year}"
        assert source.patient_id == plan.patient
        spacing = store.table.spacing_zyx_mm.sel(scan=source.scan_id).max().item()
        assert set(points) == (set(plan.centers_mm) if plan.points_path else set())
        for level, position in points.items():
            # Whole or tenths of a mm, as readers of the challenge round them.
            assert np.abs(position - plan.centers_mm[level]).max() <= 0.51 + 1e-6
            assert np.linalg.norm(position - plan.centers_mm[level]) < spacing


def test_scans_of_several_releases_are_taken_once(tmp_path, subjects):
    raw = tmp_path / "raw"
    write_verse_subjects(raw / "complete")
    write_verse_2019_challenge(raw / "miccai2019")
    write_verse_2020_challenge(raw / "miccai2020")
    found = discover(Recipe.load("verse"), str(raw))
    assert {scan.scan_id for scan in found.scans} == {scan.scan_id for scan in subjects[2].scans}
    assert all(scan.image.startswith("complete/") for scan in found.scans)
    assert not found.without_image
    assert not [note for note in found.ignored if "no pattern" in note.reason]
    left = [note for note in found.ignored if "read from" in note.detail]
    assert len(left) == 15


def test_a_mask_that_only_the_challenge_has_selects_its_image(tmp_path):
    raw = tmp_path / "raw"
    write_verse_subjects(raw / "complete")
    write_verse_2019_challenge(raw / "miccai2019")
    (mask,) = raw.glob("complete/**/sub-verse004*_msk.nii.gz")
    mask.unlink()
    found = discover(Recipe.load("verse"), str(raw))
    (scan,) = (scan for scan in found.scans if scan.scan_id == "verse004")
    assert scan.image == "miccai2019/verse004.nii.gz"
    assert scan.label == "miccai2019/verse004_seg.nii.gz"


@pytest.mark.parametrize("release", ["metaimage", "nifti"])
def test_msr_is_stored_as_written(tmp_path, release):
    raw = tmp_path / "raw"
    written = by_image(raw, {"metaimage": write_msr, "nifti": write_msr_nifti}[release](raw))
    found, report, store = run("msr", raw, tmp_path / "msr.zarr")
    assert not report.failed, report.failed
    assert {scan.image for scan in found.scans} == set(written)
    for source in found.scans:
        plan = written[source.image]
        points = assert_stored_as_written(store, source, plan)
        assert set(points) == set(plan.centers_mm)
        for level, position in points.items():
            # The files give six digits of a number below 1000.
            np.testing.assert_allclose(position, plan.centers_mm[level], atol=1e-3)
    assert not found.without_image
    assert not [note for note in found.ignored if "no pattern" in note.reason]


def test_msr_patients_and_folds_are_columns(tmp_path):
    raw = tmp_path / "raw"
    written = write_msr(raw)
    _, _, store = run("msr", raw, tmp_path / "msr.zarr")
    listed = {
        number: set(Path(raw / f"fold{number}-miccai2013.txt").read_text().split())
        for number in "12"
    }
    assert any(listed.values())
    for scan in written:
        row = store.table.sel(scan=scan.scan_id)
        assert row.patient_id == scan.patient
        folds = [number for number in "12" if scan.scan_id in listed[number]]
        assert row.fold == "; ".join(folds)
    patients = store.table.patient_id.to_numpy().tolist()
    assert len(set(patients)) < len(patients)


NEIGHBORS = {
    "totalsegmentator": ("totalsegmentator", write_totalsegmentator),
    "totalsegmentator, one mask": ("totalsegmentator", write_totalsegmentator_multilabel),
    "totalsegmentator 1, one mask": (
        "totalsegmentator-v1",
        lambda root: write_totalsegmentator_multilabel(root, version="v1"),
    ),
    "rsna2022": ("rsna2022", write_rsna),
    "spine-mets-ct-seg": ("spine-mets-ct-seg", write_spine_mets),
    "cads": ("cads", write_cads),
    "spineps": ("spineps", write_spineps),
    "xvertseg": ("xvertseg", write_xvertseg),
    "ctspinopelvic1k": ("ctspinopelvic1k", write_ctspinopelvic1k),
    "ctspine1k from TCIA": ("ctspine1k", write_ctspine1k_tcia),
}


@pytest.fixture(scope="module", params=NEIGHBORS)
def neighbor(request, tmp_path_factory):
    recipe, write = NEIGHBORS[request.param]
    raw = tmp_path_factory.mktemp("raw")
    written = by_image(raw, write(raw))
    found, report, store = run(recipe, raw, tmp_path_factory.mktemp("out") / "store.zarr")
    assert not report.failed, report.failed
    return request.param, raw, written, found, report, store


def test_neighbors_are_stored_as_written(neighbor):
    name, _, written, found, _, store = neighbor
    assert {scan.image.rstrip("/") for scan in found.scans} == set(written)
    for source in found.scans:
        plan = written[source.image.rstrip("/")]
        stored = store.scan(source.scan_id)
        phantom = make_phantom(plan.spec)
        np.testing.assert_array_equal(stored.image.to_numpy(), phantom.image)
        assert ("label" in stored) == (plan.label_path is not None)
        if plan.label_path is None:
            continue
        label = stored.label.to_numpy()
        vertebrae = np.isin(label, list(NAME_OF_VALUE))
        drawn = np.isin(phantom.label, [v for v in NAME_OF_VALUE if v != 26])
        # S1 is carved out of the sacrum, and a pelvic mask has no vertebrae above it.
        if "pelvic" not in source.scan_id:
            np.testing.assert_array_equal(label[drawn], phantom.label[drawn])
        assert not (vertebrae & (phantom.label == 0)).any(), name


def test_rerunning_a_neighbor_skips_every_scan(neighbor):
    _, raw, _, found, _, store = neighbor
    recipe = Recipe.load(store.attrs["dataset"])
    again = ingest(recipe, discover(recipe, str(raw)), store.url)
    assert len(again.skipped) == len(found.scans)
    assert not again.done
    assert not again.updated


def test_dry_runs_print_every_scan_as_json(neighbor, capsys):
    _, _, _, found, _, _ = neighbor
    print_discovery(found, as_json=True)
    scans = json.loads(capsys.readouterr().out)["scans"]
    assert [scan["scan_id"] for scan in scans] == [scan.scan_id for scan in found.scans]


def test_dry_runs_account_for_every_file(neighbor):
    _, _, _, found, _, _ = neighbor
    strange = [note.path for note in found.ignored if "no pattern" in note.reason]
    assert all(path.endswith(("train_bounding_boxes.csv",)) for path in strange), strange
    assert not found.without_image
    used = [use for use in found.patterns if use.layout in found.layouts and use.kind == "image"]
    assert any(use.files for use in used)


def test_totalsegmentator_masks_become_vertebrae_and_name_s1(tmp_path):
    write_totalsegmentator(tmp_path / "raw")
    _, _, store = run("totalsegmentator", tmp_path / "raw", tmp_path / "ts.zarr")
    (scan_id, *_) = (s for s in store.table.scan.to_numpy() if 29 in store.scan(s).label.values)
    flags = store.scan(scan_id).label.attrs
    meanings = dict(zip(flags["flag_values"], flags["flag_meanings"].split(), strict=True))
    assert meanings[29] == "S1"
    assert store.table.other_label_voxels.sum() == 0
    assert set(store.table.split.to_numpy()) <= {"train", "val", "test"}
    assert store.splits.get("", 0) == 0


def test_values_of_totalsegmentator_run_from_tail_to_head():
    for version, recipe in (("v1", "totalsegmentator-v1"), ("v2", "totalsegmentator")):
        values = dict(Recipe.load(recipe).layouts["multilabel"].values)
        expected = {
            str(value): {"vertebrae_S1": "29"}.get(name, name.removeprefix("vertebrae_"))
            for name, value in totalsegmentator_values(version).items()
        }
        assert values == expected


def test_ctspinopelvic1k_names_every_structure_and_joins_its_manifest(tmp_path):
    write_ctspinopelvic1k(tmp_path / "raw")
    _, _, store = run("ctspinopelvic1k", tmp_path / "raw", tmp_path / "sp.zarr")
    assert store.table.other_label_voxels.sum() == 0
    names = " ".join(
        store.scan(scan_id).label.attrs["flag_meanings"] for scan_id in store.table.scan.to_numpy()
    ).split()
    assert {"S1", "left_hip", "ignore", "sacrum"} <= set(names)
    pair = store.table.sel(scan=["0004_spine", "0004_pelvic"])
    assert set(pair.patient_id.to_numpy()) == {"0004"}
    assert (store.table["config"] != "").all()


def test_masks_of_models_are_marked_and_their_structures_named(tmp_path):
    write_cads(tmp_path / "cads")
    _, _, store = run("cads", tmp_path / "cads", tmp_path / "cads.zarr")
    assert set(store.table.label_state.to_numpy()) == {"predicted"}
    ids = ["0010_verse_verse004", "0016_lidc_verse004", "0041_ctrate_train_1_a_1"]
    assert sorted(store.table.scan.to_numpy()) == ids
    assert set(store.table.source.to_numpy()) == {"0010_verse", "0016_lidc", "0041_ctrate"}
    write_spineps(tmp_path / "spineps")
    _, _, store = run("spineps", tmp_path / "spineps", tmp_path / "spineps.zarr")
    names = store.scan("sub-0001").label.attrs["flag_meanings"].split()
    assert {"disc_below_L1", "endplates_L1"} <= set(names)
    _, _, store = run("spineps-subregions", tmp_path / "spineps", tmp_path / "parts.zarr")
    label = store.scan("sub-0002_ses-1").label
    assert set(np.unique(label)) == {0, 49}
    assert "body_border" in label.attrs["flag_meanings"]
    assert set(store.table.label_state.to_numpy()) == {"predicted"}


def test_masks_of_models_beside_the_label_keep_their_own_values(tmp_path):
    write_cads(tmp_path / "cads")
    _, report, store = run("cads", tmp_path / "cads", tmp_path / "cads.zarr")
    assert (report.exit_code, [len(layer.done) for layer in report.layers]) == (0, [3, 3])
    scan = store.scan("0010_verse_verse004")
    assert scan.ribs.to_numpy()[0, 0, 0] == 24
    assert scan.ribs.flag_meanings == "background rib_right_12"
    assert scan.bones_and_muscles.flag_meanings == "background sacrum"

    write_spineps(tmp_path / "spineps")
    _, report, store = run("spineps", tmp_path / "spineps", tmp_path / "spineps.zarr")
    scan = store.scan("sub-0001")
    assert set(np.unique(scan.subregions)) == {0, 49}
    record = scan.attrs["masks"]["subregions"]
    assert (record["model"], record["label_state"]) == ("SPINEPS", "predicted")
    assert scan.subregions.flag_meanings == "background corpus_border"


@pytest.mark.parametrize("write", [write_totalsegmentator, write_totalsegmentator_multilabel])
def test_all_structures_of_totalsegmentator_keep_their_own_values(tmp_path, write):
    written = write(tmp_path / "raw")
    found, report, store = run("totalsegmentator", tmp_path / "raw", tmp_path / "ts.zarr")
    assert (report.exit_code, len(report.layers[0].done)) == (0, 3)
    assert found.without_image == ()
    values = totalsegmentator_values("v2")
    values_of_label = {
        VALUE_OF_NAME.get(name.removeprefix("vertebrae_"), 29): value
        for name, value in values.items()
    }
    for plan in written:
        scan = store.scan(plan.scan_id)
        names = scan.structures.flag_meanings.split()[1:]
        numbers = list(scan.structures.flag_values)[1:]
        assert [values.get(name, 5) for name in names] == numbers, "5 is the liver"
        label = scan.label.to_numpy()
        assert all(
            (scan.structures.to_numpy()[label == value] == values_of_label[value]).all()
            for value in np.unique(label).tolist()
            if value
        )


def test_masks_of_spineps_beside_verse_are_layers(tmp_path):
    plans = [plan for plan in VERSE_2019 if plan.split == "training"][:2]
    write_verse_subjects(tmp_path / "raw", plans)
    release = tmp_path / "raw/dataset-verse19training"
    (mask, *_) = sorted(release.glob("derivatives/*/sub-*_seg-vert_msk.nii.gz"))
    folder = mask.parents[2] / "derivatives_seg" / mask.parent.name
    folder.mkdir(parents=True)
    stem = mask.name.removesuffix("_seg-vert_msk.nii.gz")
    image = nib.load(mask)
    values = np.asanyarray(image.dataobj).copy()
    values[values == 24] = 26  # S1 of SPINEPS
    drawn = nib.Nifti1Image(values.astype("u1"), image.affine)
    nib.save(drawn, folder / f"{stem}_mod-ct_seg-vert_msk.nii.gz")
    _, report, store = run("verse", tmp_path / "raw", tmp_path / "verse.zarr")
    assert (report.exit_code, report.without_image) == (0, ())
    ((scan_id,), ()) = (layer.done for layer in report.layers)
    scan = store.scan(scan_id)
    np.testing.assert_array_equal(scan.spineps == 26, scan.label == 24)
    assert scan.spineps.flag_meanings.split()[-2:] == ["L4", "S1"]
    assert scan.label.flag_meanings.split()[-2:] == ["L4", "L5"]


def test_verse_marks_doubted_levels_and_the_license_of_each_scan(subjects, tmp_path):
    _, _, _, store = subjects
    licenses = store.table["license"].to_series().to_dict()
    assert {name for name, text in licenses.items() if text == "CC-BY-NC-ND-4.0"} == {
        name for name in licenses if name.startswith("gl")
    }
    for name, text in licenses.items():
        assert store.scan(name).attrs["license"] == text
    report = store.export_nifti(out=tmp_path / "shared")
    assert set(report.left_out) == {name for name in licenses if name.startswith("gl")}
    assert {scan.scan_id for scan in report.done} == set(licenses) - set(report.left_out)
    assert not list((tmp_path / "shared").glob("gl*"))
    everything = store.export_nifti(out=tmp_path / "own", include_restricted=True)
    assert {scan.scan_id for scan in everything.done} == set(licenses)
    (restricted, *_) = report.left_out
    with pytest.raises(UsageError, match="--include-restricted"):
        store.export_ome_zarr(out=tmp_path / "ome", scans=restricted)
    nnunet = store.export_nnunet(out=tmp_path / "nnunet")
    assert set(nnunet.left_out) <= set(report.left_out)
    assert not list((tmp_path / "nnunet").rglob("gl*.nii.gz"))


def test_what_is_missing_is_named_with_the_download_that_has_it(subjects, tmp_path):
    _, written, found, _ = subjects
    by_split = {missing.split: missing for missing in found.missing}
    assert {split: missing.total for split, missing in by_split.items()} == {
        "train": 141,
        "validation": 113,
        "test": 120,
    }
    here = sum(scan.split == "training" for scan in written)
    assert by_split["train"].here == here
    of_2019 = sum(scan.split == "training" and scan.year == 2019 for scan in written)
    assert by_split["train"].downloads == (
        ("dataset-verse19training.zip", 80 - of_2019),
        ("dataset-verse20training.zip", 61 - (here - of_2019)),
    )
    assert str(by_split["train"]) == (
        f"{here} of 141 train scans are here; {80 - of_2019} more come with "
        f"dataset-verse19training.zip and {61 - (here - of_2019)} more with "
        "dataset-verse20training.zip"
    )
    assert discover(Recipe.load("ctspinopelvic1k"), str(small_copy(tmp_path))).missing == ()


def small_copy(folder):
    write_ctspinopelvic1k(folder)
    return folder


def test_the_errata_of_verse_become_columns_and_change_no_voxel(tmp_path):
    plans = [
        replace(plan, scan="verse559", subject="verse559") for plan in VERSE_2020 if plan.mask
    ][:1]
    (written,) = write_verse_subjects(tmp_path / "raw", plans)
    found, _, store = run("verse", tmp_path / "raw", tmp_path / "verse.zarr")
    (use,) = (use for use in found.tables if use.name == "errata")
    assert (use.rows, use.matched) == (25, 1)
    (scan_id,) = store.table.scan.to_numpy()
    erratum = str(store.table.erratum.sel(scan=scan_id).to_numpy())
    assert "it sees T13" in erratum
    assert "from the top as C3 C4 C5 C6 C7 T1" in erratum
    assert "VeriDAH" in str(store.table.erratum_source.sel(scan=scan_id).to_numpy())
    np.testing.assert_array_equal(store.scan(scan_id).label, make_phantom(written.spec).label)


HF_ROOTS = ["data/nii/VerSe/dataset-verse19training", "01_training", "x/02_validation"]


@pytest.mark.parametrize("top", HF_ROOTS)
@pytest.mark.parametrize("own_folders", [False, True])
def test_copies_of_verse_on_hugging_face_are_read(tmp_path, top, own_folders):
    """Copies nest the release, or keep the files of a subject in one folder of the split."""
    plans = [plan for plan in VERSE_2019 if plan.split == "training"]
    write_verse_subjects(tmp_path / "a", plans)
    release = tmp_path / "a/dataset-verse19training"
    target = tmp_path / "raw" / top
    target.parent.mkdir(parents=True)
    if own_folders:
        for path in sorted(release.glob("*/sub-*/sub-*")):
            (target / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(target / path.parent.name / path.name)
    else:
        release.rename(target)
    found, report, store = run("verse", tmp_path / "raw", tmp_path / "verse.zarr")
    assert not report.failed, report.failed
    assert sorted(scan.scan_id for scan in found.scans) == sorted(plan.scan for plan in plans)
    split = "validation" if "validation" in top else "train"
    assert set(store.table.split.to_numpy()) == {split}
    twins = store.table.scan[store.table.patient_id == "verse401"].to_numpy().tolist()
    assert twins == ["verse201", "verse253"]
    assert sum(scan.has_mask for scan in found.scans) == sum(plan.mask for plan in plans)


def test_version_5_of_ctspinopelvic1k_names_its_later_structures(tmp_path):
    write_ctspinopelvic1k(tmp_path / "raw", version=5)
    _, _, store = run("ctspinopelvic1k", tmp_path / "raw", tmp_path / "sp.zarr")
    assert store.table.other_label_voxels.sum() == 0
    names = set(store.scan("0149").label.attrs["flag_meanings"].split())
    assert {"rib_left_1", "rib_right_12", "psoas_left", "lumbar_rib_left", "hardware_cage"} <= names
    assert store.table.castellvi_type.sel(scan="0149") == "IIIa"
    assert store.attrs["license"] == "CC-BY-NC-SA-4.0"


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_values_of_ctspinopelvic1k_become_the_present_ones(version, tmp_path):
    write_ctspinopelvic1k(tmp_path / "now")
    write_ctspinopelvic1k(tmp_path / "then", version=version)
    found, report, store = run("ctspinopelvic1k", tmp_path / "then", tmp_path / "s.zarr")
    assert not report.failed
    later = np.arange(256)
    later[[29, 32, 33, 34, 57]] = [26, 0, 0, 0, 0]  # S1 was sacrum; femora and ribs were none
    if version == 1:
        later[8:20] = 0
    for scan in found.scans:
        expected = later[canonical_zyx(tmp_path / "now" / scan.label)]
        expected[expected == 255] = 0
        if version == 1 and "_" in scan.scan_id:
            expected[expected == 0] = 255
        stored = store.scan(scan.scan_id)
        np.testing.assert_array_equal(stored.label, expected)
        (note,) = (text for text in stored.attrs["notes"] if "earlier version" in text)
        pelvic = scan.scan_id == "0004_pelvic"
        assert ("7 became sacrum" if pelvic else "1 became L1, 2 became L2") in note
    ids = [scan.scan_id for scan in found.scans]
    assert compare_with_source(str(store.url), [str(tmp_path / "then")], ids).faults == ()
    again = ingest(Recipe.load("ctspinopelvic1k"), found, str(tmp_path / "s.zarr"))
    assert len(again.skipped) == len(found.scans)


def test_a_mask_of_no_known_version_fails_and_names_the_file(tmp_path):
    (written, *_) = write_ctspinopelvic1k(tmp_path / "raw", version=1)
    mask = nib.load(written.label_path)
    values = np.asarray(mask.dataobj)
    values[values == 9] = 11
    nib.save(nib.Nifti1Image(values, mask.affine), written.label_path)
    _, report, _ = run("ctspinopelvic1k", tmp_path / "raw", tmp_path / "s.zarr")
    (failed,) = report.failed
    assert failed.scan_id == "0001"
    assert failed.reason.startswith("labels/0001_label.nii.gz: the values 1, 2, 3, 4, 5, 7")
    assert "(they do not name 11)" in failed.reason


def test_rsna_scans_without_mask_are_scans_and_fractures_are_columns(tmp_path):
    written = write_rsna(tmp_path / "raw")
    found, _, store = run("rsna2022", tmp_path / "raw", tmp_path / "rsna.zarr")
    states = store.table.label_state.to_series().to_dict()
    assert {scan.scan_id: "unknown" if scan.label_path else "none" for scan in written} == states
    assert set(store.table.patient_overall.to_numpy()) <= {"0", "1"}
    assert all(scan.image.endswith("/") for scan in found.scans)


def test_the_series_that_the_path_csv_names_is_taken(tmp_path):
    write_ctspine1k_tcia(tmp_path / "raw")
    for folder in list((tmp_path / "raw").glob("*/*/9.*")):
        folder.rename(folder.with_name(folder.name.replace("9.", "1.", 1)))  # first by name
    recipe = Recipe.load("ctspine1k")
    listed = discover(recipe, str(tmp_path / "raw"))
    lines = (tmp_path / "raw/Path.csv").read_text().split("\n")
    wanted = {line.strip() for line in lines if line.strip()}
    assert {scan.image.rstrip("/") for scan in listed.scans} == wanted
    assert all(scan.columns["SeriesDir"] in scan.image for scan in listed.scans)
    others = [note for note in listed.ignored if note.path.endswith("/")]
    assert len(others) == len(listed.scans)
    (tmp_path / "raw/Path.csv").unlink()
    unlisted = discover(recipe, str(tmp_path / "raw"))
    assert {scan.scan_id for scan in unlisted.scans} == {scan.scan_id for scan in listed.scans}


def test_ctspine1k_tables_variants_and_errata_become_columns(tmp_path):
    written = write_ctspine1k(tmp_path / "raw", scale=0.15)
    names = [scan.scan_id for scan in written]
    before = run("ctspine1k", tmp_path / "raw", tmp_path / "c.zarr")[2].table
    assert {"anomaly", "erratum"} <= set(before)
    assert "Pathology" not in before
    erratum = before.erratum.sel(scan="CTC-1018399231").item()
    assert "L5 is in two pieces (82 % and 18 %)" in erratum
    assert before.anomaly.sel(scan="liver_0") == ""
    write_ctspine1k_tables(tmp_path / "raw", names)
    found, report, store = run("ctspine1k", tmp_path / "raw", tmp_path / "c.zarr")
    assert not report.done
    assert set(report.updated) == {s for s in names if not s.startswith(("liver", "volume"))}
    assert (store.table.Pathology != "").any()
    assert store.table.SeriesDir.sel(scan="HN_P001").item().startswith("3.000000-HEADNECK")
    uses = {use.name: use for use in found.tables}
    assert uses["neck"].matched == 1
    assert uses["colonog"].matched >= 1


def test_lists_of_variants_and_errata_name_scans_of_the_dataset():
    recipe = Recipe.load("ctspine1k")
    known = set(recipe.shipped_splits())
    text = recipe.shipped_table("cases")[1].decode()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    assert {row[0] for row in rows} <= known
    variants = [row[1] for row in rows if row[1]]
    assert variants.count("lumbarisation") == 17
    assert variants.count("sacralisation") == 11
    assert all(row[2].startswith("https://") for row in rows if row[1])
    assert all(row[-1].startswith("https://") for row in rows if not row[1])


def test_completed_verse_masks_are_joined_to_the_challenge_images(tmp_path):
    raw = tmp_path / "raw"
    written = by_image(raw, write_ctspine1k_verse(raw / "CTSpine1K", raw / "VerSe"))
    found, report, store = run("ctspine1k-verse", raw, tmp_path / "v.zarr")
    assert not report.failed, report.failed
    assert {scan.image for scan in found.scans} == set(written)
    for source in found.scans:
        np.testing.assert_array_equal(
            store.scan(source.scan_id).label, canonical_zyx(raw / source.label)
        )
        completed = "completed_annotation_verse" in source.label
        state = store.table.label_state.sel(scan=source.scan_id)
        assert state == ("all-visible" if completed else "unknown")
    assert set(store.table.source.to_numpy()) == {"Verse", "completed_annotation_verse"}


def test_vertebrae_are_ordered_anatomically_and_not_by_mask_value():
    by_value = [NAME_OF_VALUE[value] for value in sorted(NAME_OF_VALUE)]
    assert by_value != list(ANATOMICAL_ORDER)
    assert sorted(by_value) == sorted(ANATOMICAL_ORDER)
