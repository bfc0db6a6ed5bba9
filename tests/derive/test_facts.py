"""Facts that a source store states of its scans and masks are those of the derived store."""

import json

import numpy as np
import pytest

import spinezarr
from spinezarr.testing import NiftiForm, write_ctspinopelvic1k, write_nifti

OF_VOXELS = {
    *("shape_zyx", "spacing_zyx_mm", "orientation"),
    *("voxel_count", "volume_cm3", "centroid_zyx_mm", "bbox_start_zyx", "bbox_stop_zyx"),
    *("image_min_hu", "image_max_hu", "image_checksum", "content_checksum", "mask_checksums"),
    *("source_bytes", "stored_bytes", "annotated_centroid_distance_mm"),
    *("mask_voxel_count", "mask_volume_cm3"),
}
"""Columns of the scan table that may differ on another grid."""
FACTS = (
    *("patient_id", "source", "split", "split_index", "license", "citation", "label_state"),
    *("columns", "sidecar", "structures"),
)
OF_MASKS = ("scheme", "license", "author", "model", "label_state", "notes")
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
SHAPE = (40, 24, 28)


def assert_facts_follow(source_url, derived_url):
    """Compare all that does not depend on the grid."""
    source, derived = spinezarr.open(source_url), spinezarr.open(derived_url)
    assert set(derived.table.variables) == set(source.table.variables)
    for name in set(source.table.variables) - OF_VOXELS:
        found, expected = derived.table[name], source.table[name]
        assert found.dims == expected.dims
        np.testing.assert_array_equal(found, expected, err_msg=name)
    for scan_id in source.table.scan.to_numpy():
        ours, theirs = derived.scan(scan_id).attrs, source.scan(scan_id).attrs
        assert {key: ours[key] for key in FACTS} == {key: theirs[key] for key in FACTS}
        assert set(theirs["notes"]) <= set(ours["notes"])
        for name, mask in theirs["masks"].items():
            for key in OF_MASKS:
                assert ours["masks"][name][key] == mask[key]
            names = {value: label["name"] for value, label in ours["masks"][name]["labels"].items()}
            assert names == {value: label["name"] for value, label in mask["labels"].items()}
    of_dataset = ("dataset", "title", "license", "citation", "homepage")
    assert {k: derived.attrs.get(k) for k in of_dataset} == {
        k: source.attrs.get(k) for k in of_dataset
    }


def test_folds_and_splits_follow(tmp_path):
    write_ctspinopelvic1k(tmp_path / "raw")
    url, out = tmp_path / "source.zarr", tmp_path / "derived.zarr"
    spinezarr.ingest("ctspinopelvic1k", raw=tmp_path / "raw", out=url)
    spinezarr.open(url).derive(out=out, spacing_mm=4)
    assert_facts_follow(url, out)
    derived = spinezarr.open(out)
    folds = derived.table.fold.to_numpy()
    assert {*folds} - {""}
    for fold in {*folds} - {""}:
        assert derived.stats(split=f"fold {fold}").scans == folds.tolist().count(fold)
    part = spinezarr.open(url).derive(out=tmp_path / "part.zarr", spacing_mm=4, split="fold 0")
    assert list(part.done) == derived.table.scan[folds == "0"].to_numpy().tolist()


@pytest.fixture(scope="module")
def verse(tmp_path_factory):
    """Return a raw folder of two scans of VerSe; the list of errata corrects one of them."""
    root = tmp_path_factory.mktemp("verse")
    mask = np.zeros(SHAPE, np.uint8)
    for i, value in enumerate([19, 20, 21, 22]):
        mask[SHAPE[0] - 8 - 8 * i : SHAPE[0] - 2 - 8 * i, 2:20, 3:20] = value
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 2000 - 1000
    for name in ("verse513", "verse700"):
        folder = root / "dataset-01training"
        path = folder / f"rawdata/sub-{name}/sub-{name}_ct.nii.gz"
        write_nifti(path, image, AFFINE, NiftiForm("LPS"))
        path = folder / f"derivatives/sub-{name}/sub-{name}_seg-vert_msk.nii.gz"
        write_nifti(path, mask, AFFINE, NiftiForm("LPS", "uint8"))
    return root


@pytest.mark.parametrize("options", [{}, {"spacing_mm": 2}, {"crop": "spine", "margin_mm": 3}])
def test_errata_licenses_and_makers_of_masks_follow(verse, tmp_path, options):
    url, out = tmp_path / "source.zarr", tmp_path / "derived.zarr"
    spinezarr.ingest("verse", raw=verse, out=url, errata="apply")
    store = spinezarr.open(url)
    (tmp_path / "pred").mkdir()
    for scan_id in ("verse513", "verse700"):
        label = store.scan(scan_id).label
        store.write_nifti(scan_id, label, tmp_path / f"pred/{scan_id}.nii.gz")
    made_by = {"license": "MIT", "author": "Anna", "model": "net 1", "label_state": "predicted"}
    store.add_labels("net", tmp_path / "pred/{scan}.nii.gz", **made_by)
    store.write_labels("verse700", "bone", label > 0, scheme={1: "bone", 7: "never"}, author="B")
    derive = {"out": out, "include_restricted": True, **options}
    assert spinezarr.open(url).derive(**derive).exit_code == 0
    assert_facts_follow(url, out)
    derived = spinezarr.open(out)
    applied = derived.table.erratum_applied.to_numpy().tolist()
    assert "L1 became T13" in applied[0]
    assert applied[1] == ""
    assert "T13" in derived.scan("verse513").attrs["vertebrae"]
    findings = [f for f in derived.audit().findings if f.rule == "corrected-labels"]
    assert [f.scan_id for f in findings] == ["verse513"]
    # Each of these facts changes later.
    spinezarr.ingest("verse", raw=verse, out=url, errata="mark", license="CC0-1.0")
    store = spinezarr.open(url)
    made_by |= {"label_state": "all-visible", "license": "CC0-1.0"}
    store.add_labels("net", tmp_path / "pred/{scan}.nii.gz", **made_by)
    assert spinezarr.open(url).derive(**derive).exit_code == 0
    assert_facts_follow(url, out)
    derived = spinezarr.open(out)
    assert "erratum_applied" not in derived.table
    assert "T13" not in derived.scan("verse513").attrs["vertebrae"]
    assert json.dumps(derived.scan("verse700").attrs["masks"]["net"]).count("CC0-1.0") == 1
    assert derived.verify().faults == ()
