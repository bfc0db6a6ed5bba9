import json
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import CorruptStoreError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.store.table import build_table, natural_key
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.vertebrae import NAME_OF_VALUE

ODD_LABELS = (19, 28, 20, 25, 26, 27, 40, 200)
"""Labels of T12, T13, L1, L6, sacrum and coccyx, and two values outside the scheme."""


def canonical(path):
    """Return voxels (z, y, x) and affine (x, y, z) as nibabel reorients them."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return a store of three scans with rare labels, one of them oblique, and the raw folder."""
    raw, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(5)
    affine = np.array([[0.7, 0, 0, -40.5], [0, 0.8, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])
    for name, form in {
        "s_10": NiftiForm("PIR", "uint8", oblique_deg=11),
        "s_9": NiftiForm("ASL", "uint8"),
        "s_b": NiftiForm("RAS", "uint8"),
    }.items():
        label = np.zeros((90, 70, 60), np.uint8)
        for value in ODD_LABELS if name != "s_b" else ():
            z, y, x = (int(rng.integers(0, n - 9)) for n in label.shape)
            label[z : z + 9, y : y + 8, x : x + 7] = value
        image_form = NiftiForm(form.orientation, oblique_deg=form.oblique_deg)
        write_nifti(raw / f"{name}_ct.nii", label.astype(np.int16), affine, image_form)
        write_nifti(raw / f"{name}_seg.nii", label, affine, form)
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="odd")
    url = str(tmp_path_factory.mktemp("odd-store") / "odd.zarr")
    report = ingest(recipe, discover(recipe, str(raw)), url)
    assert not report.failed, report.failed
    return url, raw


def assert_row_is_measured_as_numpy_does(row, mask, affine):
    for value, name in NAME_OF_VALUE.items():
        found = row.sel(vertebra=name)
        at = np.argwhere(mask == value)
        assert int(found.voxel_count) == len(at)
        if not len(at):
            assert np.isnan(found.volume_cm3)
            assert np.isnan(found.centroid_zyx_mm).all()
            assert found.bbox_start_zyx.to_numpy().tolist() == [-1, -1, -1]
            assert found.bbox_stop_zyx.to_numpy().tolist() == [-1, -1, -1]
            continue
        voxel_cm3 = abs(np.linalg.det(affine[:3, :3])) / 1000
        np.testing.assert_allclose(found.volume_cm3, len(at) * voxel_cm3)
        center_xyz = (affine @ [*at.mean(axis=0)[::-1], 1])[:3]
        np.testing.assert_allclose(found.centroid_zyx_mm.sel(axis=["x", "y", "z"]), center_xyz)
        assert found.bbox_start_zyx.to_numpy().tolist() == at.min(axis=0).tolist()
        assert found.bbox_stop_zyx.to_numpy().tolist() == (at.max(axis=0) + 1).tolist()


def test_measures_of_vertebrae_equal_those_of_numpy(ctspine1k_url, ctspine1k_raw):
    table = StoreReader(ctspine1k_url).table
    for scan in ctspine1k_raw[1]:
        mask, affine = canonical(scan.label_path)
        assert_row_is_measured_as_numpy_does(table.sel(scan=scan.scan_id), mask, affine)


@pytest.mark.parametrize("scan_id", ["s_9", "s_10", "s_b"])
def test_measures_of_rare_labels_and_oblique_scans_equal_those_of_numpy(odd, scan_id):
    url, raw = odd
    mask, affine = canonical(raw / f"{scan_id}_seg.nii")
    row = StoreReader(url).table.sel(scan=scan_id)
    assert_row_is_measured_as_numpy_does(row, mask, affine)
    assert int(row.other_label_voxels) == np.isin(mask, (40, 200)).sum()


def test_bounding_boxes_cut_out_a_vertebra(store):
    row = store.table.sel(scan="liver_0", vertebra="L3")
    box = tuple(
        slice(int(a), int(b)) for a, b in zip(row.bbox_start_zyx, row.bbox_stop_zyx, strict=True)
    )
    mask = store.scan("liver_0").label.to_numpy() == 22
    assert mask[box].sum() == mask.sum() == int(row.voxel_count)


def test_each_row_describes_its_scan(ctspine1k_url, ctspine1k_raw):
    table = StoreReader(ctspine1k_url).table
    assert table.sizes["scan"] == len(ctspine1k_raw[1])
    for position, scan in enumerate(ctspine1k_raw[1]):
        row = table.sel(scan=scan.scan_id)
        image, _ = canonical(scan.image_path)
        same_split = [s.scan_id for s in ctspine1k_raw[1][:position] if s.split == scan.split]
        facts = {name: row[name].item() for name in row.data_vars if not row[name].dims}
        assert facts["patient_id"] == scan.scan_id
        assert facts["source"] == scan.source
        assert (facts["split"], facts["split_index"]) == (scan.split, len(same_split))
        assert facts["orientation"] == scan.image_form.orientation
        assert (facts["label_state"], facts["image_dtype"]) == ("all-visible", "int16")
        assert (facts["image_min_hu"], facts["image_max_hu"]) == (image.min(), image.max())
        assert facts["other_label_voxels"] == 0
        paths = (scan.image_path, scan.label_path)
        assert facts["source_bytes"] == sum(path.stat().st_size for path in paths)
        assert row.shape_zyx.to_numpy().tolist() == list(image.shape)
        zooms = nib.affines.voxel_sizes(canonical(scan.image_path)[1])
        np.testing.assert_allclose(row.spacing_zyx_mm.sel(axis=["x", "y", "z"]), zooms)


def test_stored_bytes_equal_the_sizes_of_the_files(ctspine1k_url):
    table = StoreReader(ctspine1k_url).table
    for scan_id in table.scan.to_numpy():
        folder = Path(ctspine1k_url) / "scans" / scan_id
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files if path != folder / "zarr.json")
        assert int(table.stored_bytes.sel(scan=scan_id)) == size


def test_equal_images_and_no_others_have_equal_checksums(store, ctspine1k_raw):
    assert len(set(store.table.image_checksum.to_numpy())) == len(ctspine1k_raw[1])
    assert len(set(store.table.image_sha256.to_numpy())) == len(ctspine1k_raw[1])


def test_vertebrae_run_from_head_to_tail(store):
    order = store.table.vertebra.to_numpy().tolist()
    assert order[:8] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1"]
    assert order[-13:] == [
        *("T11", "T12", "T13"),
        *("L1", "L2", "L3", "L4", "L5", "L6"),
        *("S1", "S2", "sacrum", "coccyx"),
    ]
    assert len(order) == 30


def test_centroids_go_down_the_spine(store):
    z = store.table.centroid_zyx_mm.sel(axis="z")
    for row in z.to_numpy():
        assert (np.diff(row[~np.isnan(row)]) < 0).all()


def test_columns_name_their_units(store):
    units = {name: v.attrs.get("units") for name, v in store.table.variables.items()}
    assert units["volume_cm3"] == "cm3"
    assert units["centroid_zyx_mm"] == units["spacing_zyx_mm"] == "mm"
    assert store.table.centroid_zyx_mm.attrs["frame"] == "RAS+"
    assert store.table.attrs["license"] == "CC-BY-NC-SA-4.0"
    assert "manifest" not in store.table.attrs


def test_scans_come_in_natural_order(odd):
    assert StoreReader(odd[0]).table.scan.to_numpy().tolist() == ["s_9", "s_10", "s_b"]


def test_the_order_of_rows_does_not_depend_on_the_order_of_scans(store):
    reader = store._reader
    scans = [reader.scan(name).attributes for name in reader.table.scan.to_numpy()]
    expected = build_table(reader.root, scans)
    for shuffled in (scans[::-1], scans[3:] + scans[:3]):
        xr.testing.assert_identical(build_table(reader.root, shuffled), expected)


@given(st.sets(st.integers(0, 10**30)), st.text("ab_", min_size=1))
def test_natural_order_sorts_numbers_by_value(numbers, prefix):
    names = {f"{prefix}{n}.x" for n in numbers}
    assert sorted(names, key=natural_key) == [f"{prefix}{n}.x" for n in sorted(numbers)]


@given(st.lists(st.text("a1_²٣")))
def test_any_names_can_be_sorted(names):
    assert Counter(sorted(names, key=natural_key)) == Counter(names)


def test_a_median_volume_takes_one_line(store, ctspine1k_raw):
    volumes = []
    for scan in ctspine1k_raw[1]:
        mask, affine = canonical(scan.label_path)
        if (mask == 20).any():
            volumes.append((mask == 20).sum() * abs(np.linalg.det(affine)) / 1000)
    found = float(store.table.volume_cm3.sel(vertebra="L1").median())
    np.testing.assert_allclose(found, np.median(volumes))


def test_the_table_can_be_filtered_grouped_and_exported(store):
    table = store.table
    train = table.where(table.split == "train", drop=True)
    assert train.scan.to_numpy().tolist() == ["1.3.6.1.4.1.9328.50.4.0001", "HN_P001", "liver_0"]
    assert table.reindex(scan=["liver_0", "absent"]).source.to_numpy()[0] == "MSD-T10"
    grouped = {name: group.sizes["scan"] for name, group in table.groupby("split")}
    assert grouped == {"train": 3, "validation": 2, "test": 1}
    counts = table.voxel_count.sum("vertebra").groupby(table.split).sum()
    frame = table[["split", "voxel_count", "volume_cm3"]].to_dataframe()
    assert list(frame.index.names) == ["scan", "vertebra"]
    for name, group in frame.groupby("split"):
        assert int(counts.sel(split=name)) == group.voxel_count.sum()
    assert len(table.to_dataframe()) == 6 * 30 * 3


def test_a_table_without_scans_has_every_column(store):
    table = build_table(store._reader.root, [])
    assert dict(table.sizes) == {"scan": 0, "vertebra": 30, "axis": 3}


@pytest.fixture(scope="module")
def copied(ctspine1k_url, tmp_path_factory):
    """Copy the store, so that single table files can be damaged and restored."""
    url = tmp_path_factory.mktemp("copied") / "copied.zarr"
    url.mkdir()
    shutil.copy(Path(ctspine1k_url) / "zarr.json", url)
    shutil.copytree(Path(ctspine1k_url) / "table", url / "table")
    return url


def table_files(url, *, own):
    files = [path for path in sorted((url / "table").rglob("*")) if path.is_file()]
    if own:
        return [url / "table/zarr.json"]
    # Readers take the metadata of columns from those of the table.
    return [path for path in files if path.name != "zarr.json"]


def assert_damage_is_seen(url, path, data, expected):
    """Check that reading raises the expected error or returns the same table."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        table = StoreReader(str(url)).table
    except CorruptStoreError:
        return
    finally:
        path.write_bytes(whole)
    xr.testing.assert_identical(table, expected)


def flipped(data, at, mask=0x01):
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def test_a_flipped_byte_of_the_table_is_an_error(copied):
    rng = np.random.default_rng(0)
    files = table_files(copied, own=False)
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        path.write_bytes(flipped(data, rng.integers(len(data)), rng.choice([1, 16, 255])))
        with pytest.raises(CorruptStoreError, match="is damaged"):
            _ = StoreReader(str(copied)).table
        path.write_bytes(data)


def test_a_flipped_byte_of_the_table_is_an_error_in_plain_xarray(copied):
    rng = np.random.default_rng(1)
    for path in table_files(copied, own=False):
        data = path.read_bytes()
        path.write_bytes(flipped(data, rng.integers(len(data)), rng.choice([1, 16, 255])))
        with pytest.raises(ValueError, match="checksum do not match"):
            xr.open_zarr(copied / "table").load()
        path.write_bytes(data)


def test_every_array_of_a_store_has_checksums(ctspine1k_url):
    arrays = 0
    for path in Path(ctspine1k_url).rglob("zarr.json"):
        metadata = json.loads(path.read_text())
        if metadata["node_type"] == "array":
            codecs = metadata["codecs"]
            inner = codecs[0].get("configuration", {}).get("codecs", codecs)
            assert inner[-1]["name"] == "crc32c", path
            arrays += 1
    assert arrays > 60


def test_a_flipped_byte_of_the_table_s_metadata_is_an_error_or_without_effect(copied):
    (path,) = table_files(copied, own=True)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    expected = StoreReader(str(copied)).table
    for at in rng.choice(len(data), 80, replace=False):
        assert_damage_is_seen(copied, path, flipped(data, at), expected)


def test_another_fill_value_in_the_table_s_metadata_never_becomes_data(copied):
    (path,) = table_files(copied, own=True)
    expected = StoreReader(str(copied)).table
    data = path.read_bytes()
    damaged = data.replace(b'"fill_value": 0', b'"fill_value": 1')
    assert damaged != data
    assert_damage_is_seen(copied, path, damaged, expected)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"attributes": {}}', b"\xff"])
def test_invalid_table_metadata_are_an_error(copied, content):
    (path,) = table_files(copied, own=True)
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(CorruptStoreError):
            _ = StoreReader(str(copied)).table
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_cut_table_file_is_an_error(copied, length):
    path = copied / "table/voxel_count/c/0/0"
    data = path.read_bytes()
    path.write_bytes(data[:length])
    try:
        with pytest.raises(CorruptStoreError, match=r"voxel_count.*is damaged"):
            _ = StoreReader(str(copied)).table
    finally:
        path.write_bytes(data)


def test_a_missing_table_file_is_an_error(copied):
    path = copied / "table/voxel_count/c/0/0"
    data = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(CorruptStoreError, match="is missing"):
            _ = StoreReader(str(copied)).table
    finally:
        path.write_bytes(data)


def test_a_missing_table_is_an_error(copied):
    (copied / "table").rename(copied / "elsewhere")
    try:
        with pytest.raises(CorruptStoreError, match="has no scan table"):
            _ = StoreReader(str(copied)).table
    finally:
        (copied / "elsewhere").rename(copied / "table")
