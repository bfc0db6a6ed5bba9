"""Stores of each release: this version reads those of its format, and refuses older ones."""

import json
import math
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import SpinezarrError, StoreNotFoundError, UsageError
from spinezarr.store.layout import FORMAT_VERSION
from spinezarr.store.sealed import seal
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.store import verify_store

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))
LARGEST_ARCHIVE_BYTES = 600_000
STORES = ("scans.zarr", "small.zarr", "derived.zarr")
PADDING_HU = -1024


@dataclass(frozen=True)
class Golden:
    """An unpacked archive."""

    folder: Path
    facts: dict

    def scans(self, store):
        """Yield id and facts of each scan."""
        return self.facts["stores"][store]["scans"].items()

    def arrays(self, store, scan_id):
        """Return the voxels of each array of a scan by name."""
        files = (self.folder / "values" / store / scan_id).glob("*.npy")
        return {file.stem: np.load(file) for file in files}


def unpack(archive, folder):
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return Golden(folder, json.loads((folder / "facts.json").read_text()))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name)
def golden(request, tmp_path_factory):
    """Unpack an archive of this format; no test may change it."""
    golden = unpack(request.param, tmp_path_factory.mktemp("golden"))
    if golden.facts["format_version"] != FORMAT_VERSION:
        pytest.skip(f"it has format {golden.facts['format_version']}")
    return golden


def assert_agrees(found, expected, place):
    """Compare what both have: more keys may be there, and floats may differ in the last digits."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), place
        for key, value in expected.items():
            assert_agrees(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_agrees(found[i], value, f"{place}[{i}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9), (place, found, expected)
    else:
        assert found == expected, place


def test_each_format_has_the_stores_of_a_release():
    """At a release of a new format, 'make golden' writes them."""
    versions = []
    for archive in ARCHIVES:
        assert archive.stat().st_size < LARGEST_ARCHIVE_BYTES
        with tarfile.open(archive) as files:
            facts = json.load(files.extractfile("facts.json"))
        assert archive.name == f"{facts['spinezarr']}.tar.xz"
        versions.append(facts["format_version"])
    assert FORMAT_VERSION in versions


# Stores of this format


@pytest.mark.parametrize("name", STORES)
def test_every_byte_of_a_golden_store_is_as_it_was_written(golden, name):
    verification = verify_store(str(golden.folder / name))
    assert (verification.faults, verification.leftovers) == ((), ())


@pytest.mark.parametrize("name", STORES)
def test_voxels_grids_and_attributes_are_found(golden, name):
    store = spinezarr.open(golden.folder / name)
    assert_agrees(store.attrs, golden.facts["stores"][name]["root"], name)
    for scan_id, facts in golden.scans(name):
        scan, arrays = store.scan(scan_id), golden.arrays(name, scan_id)
        assert {*scan.data_vars} == {*arrays}
        for array, voxels in arrays.items():
            assert scan[array].dtype == voxels.dtype, (scan_id, array)
            np.testing.assert_array_equal(scan[array], voxels, f"{scan_id} {array}")
        assert_agrees(scan.attrs, facts, scan_id)
        assert_positions(scan, facts)


@pytest.mark.parametrize("name", STORES)
def test_plain_xarray_finds_the_same(golden, name):
    for scan_id, facts in golden.scans(name):
        with xr.open_zarr(golden.folder / name / "scans" / scan_id) as scan:
            for array, voxels in golden.arrays(name, scan_id).items():
                found = scan[array].to_numpy()
                if facts["image_scaling"] is None or array != "image":
                    assert found.dtype == voxels.dtype, (scan_id, array)
                    np.testing.assert_array_equal(found, voxels, f"{scan_id} {array}")
                else:  # xarray may compute in float32
                    np.testing.assert_allclose(found, voxels, 1e-6, 1e-4, err_msg=scan_id)
            assert_agrees(scan.attrs, facts, scan_id)
            assert_positions(scan, facts)


def assert_positions(scan, facts):
    for row, axis in enumerate("xyz"):
        first, step = facts["affine"][row][3], facts["spacing_zyx_mm"][2 - row]
        positions = first + step * np.arange(scan.sizes[axis])
        np.testing.assert_allclose(scan[axis], positions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opened_by", ["spinezarr", "xarray"])
@pytest.mark.parametrize("name", STORES)
def test_the_scan_table_has_the_known_facts(golden, name, opened_by):
    path = golden.folder / name
    is_plain = opened_by == "xarray"
    table = xr.open_zarr(path / "table").load() if is_plain else spinezarr.open(path).table
    facts = golden.facts["stores"][name]
    for column, expected in facts["table"].items():
        found = table[column].to_numpy()
        if found.dtype.kind in "fi":
            known = np.array(expected, float)
            np.testing.assert_allclose(found, known, rtol=1e-9, atol=1e-9, err_msg=column)
        else:
            assert found.tolist() == expected, column
    for scan_id, severity in facts["audit"].items():
        assert str(table.audit.sel(scan=scan_id).to_numpy()) == severity
    for scan_id, scan in golden.scans(name):
        for mask, record in scan["masks"].items():
            counts = table.mask_voxel_count.sel(scan=scan_id, mask=mask)
            shown = {
                str(structure): int(n)
                for structure, n in zip(table.structure.to_numpy(), counts.to_numpy(), strict=True)
                if n
            }
            labels = record["labels"].values()
            assert shown == {one["name"].replace(" ", "_"): one["voxel_count"] for one in labels}


def test_saved_comparisons_are_found(golden):
    table = spinezarr.open(golden.folder / "scans.zarr").table
    assert golden.facts["comparisons"]
    for scan_id, expected in golden.facts["comparisons"].items():
        row = table.sel(scan=scan_id, mask=expected["mask"])
        assert float(row.mask_dice) == pytest.approx(expected["dice"])
        assert float(row.mask_identification_rate) == 1
        assert str(row.mask_compared_with.to_numpy()) == "label"


@pytest.mark.parametrize("name", STORES)
def test_patches_and_slices_are_cut_out_of_the_known_voxels(golden, name):
    store = spinezarr.open(golden.folder / name)
    arrays = {scan_id: golden.arrays(name, scan_id) for scan_id, _ in golden.scans(name)}
    masked = [scan_id for scan_id, of_scan in arrays.items() if "label" in of_scan]
    options = {"n_samples": 4 * len(masked), "batch_size": 8, "nonfinite": "keep"}
    seen = set()
    for batch in (
        *store.patches((9, 8, 40), foreground=0.5, **options),
        *store.slices("sagittal", **options),
        *store.slices("axial", **options),
    ):
        for i, scan_id in enumerate(batch.scan_id):
            seen.add(scan_id)
            for array, found in (("image", batch.image[i]), ("label", batch.label[i])):
                fill = PADDING_HU if array == "image" else 0
                expected = cut(arrays[scan_id][array], batch, i, fill)
                np.testing.assert_array_equal(found.ravel(), expected.ravel(), scan_id)
    assert seen == set(masked)


def cut(voxels, batch, i, fill):
    """Cut a patch out of a volume, and pad it."""
    size = [batch.image.shape[1 + batch.dims.index(a)] if a in batch.dims else 1 for a in "zyx"]
    padding = batch.padding_zyx[i].tolist()
    start = [max(first, 0) for first in batch.start_zyx[i].tolist()]
    inside = tuple(
        slice(first, first + n - sum(added))
        for first, n, added in zip(start, size, padding, strict=True)
    )
    return np.pad(voxels[inside], padding, constant_values=fill)


def test_further_masks_are_read_in_patches(golden):
    store = spinezarr.open(golden.folder / "scans.zarr")
    arrays = golden.arrays("scans.zarr", "byte")
    (batch,) = store.patches(6, scans="byte", labels=("label", "prediction"), n_samples=1)
    expected = cut(arrays["prediction"], batch, 0, 0)
    np.testing.assert_array_equal(batch.masks["prediction"][0], expected)


def test_scans_that_failed_are_in_no_store(golden):
    for name in STORES:
        present = {scan_id for scan_id, _ in golden.scans(name)}
        assert {path.name for path in (golden.folder / name / "scans").iterdir()} == {
            *present,
            "zarr.json",
        }


def test_this_version_writes_to_a_golden_store(golden, tmp_path):
    copy = shutil.copytree(golden.folder / "scans.zarr", tmp_path / "scans.zarr")
    arrays = golden.arrays("scans.zarr", "byte")
    store = spinezarr.open(copy)
    store.write_labels("byte", "again", arrays["label"])
    store = spinezarr.open(copy)
    np.testing.assert_array_equal(store.scan("byte").again, arrays["label"])
    np.testing.assert_array_equal(store.scan("byte").prediction, arrays["prediction"])
    report = store.derive(out=tmp_path / "copy.zarr", scans=["byte", "chunks", "bare"])
    assert not report.failed
    assert verify_store(str(copy)).faults == verify_store(str(tmp_path / "copy.zarr")).faults == ()


# Stores of older formats


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Return stores of older formats: those of releases, and two that are like them."""
    folder = tmp_path_factory.mktemp("older")
    stores = []
    for archive in ARCHIVES:
        golden = unpack(archive, folder / archive.name)
        if golden.facts["format_version"] < FORMAT_VERSION:
            stores.append(golden.folder / "scans.zarr")
    for version in (FORMAT_VERSION - 1, 1):
        path = folder / f"{version}.zarr"
        shutil.copytree(golden.folder / "scans.zarr", path)
        root = json.loads((path / "zarr.json").read_bytes())
        del root["attributes"]["metadata_crc32c"]
        root["attributes"] |= {"format_version": version, "field_of_that_version": 1}
        (path / "zarr.json").write_bytes(seal(root))
        stores.append(path)
    return stores


def test_an_older_store_is_refused_with_the_commands_that_renew_it(older, tmp_path):
    advice = "Make it again in another place: run the same 'spinezarr ingest' or 'spinezarr derive'"
    write_nifti(tmp_path / "raw" / "a.nii", np.zeros((2, 3, 4), np.int16), np.eye(4), NiftiForm())
    pairs = {"raw": tmp_path / "raw", "image": "{scan}.nii"}
    for path in older:
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for refused, problem in (
            (lambda path=path: spinezarr.open(path), StoreNotFoundError),
            (lambda path=path: verify_store(str(path)), StoreNotFoundError),
            (lambda path=path: spinezarr.ingest("pairs", out=path, **pairs), UsageError),
        ):
            with pytest.raises(problem, match=advice) as raised:
                refused()
            assert isinstance(raised.value, SpinezarrError)
        for command in ("info", "verify", "audit", "stats"):
            done = CliRunner().invoke(app, [command, str(path)])
            assert done.exit_code == 2, (command, done.output)
            said = " ".join(done.output.split())
            assert advice in said, command
        assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
