import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.store.layout import (
    BALANCED,
    chunk_grid,
    fill_value,
    scan_key,
)
from spinezarr.store.manifest import ManifestEntry

SCAN = "liver_0"

shapes = st.tuples(*[st.integers(1, 2000)] * 3)


@given(shapes, st.tuples(*[st.integers(1, 70)] * 3))
def test_blocks_cover_a_volume_and_each_overlaps_it(shape, block):
    for blocks, n, size in zip(chunk_grid(shape, block), shape, block, strict=True):
        assert (blocks - 1) * size < n <= blocks * size


@given(shapes)
def test_a_shard_is_whole_chunks_and_no_larger_than_the_volume_needs(shape):
    shard, chunks = BALANCED.shard_shape_zyx(shape), BALANCED.chunk_grid(shape)
    limits = (2, 16, 16)
    for side, size, needed, most in zip(
        shard, BALANCED.chunk_shape_zyx, chunks, limits, strict=True
    ):
        assert side == min(needed, most) * size


@pytest.mark.parametrize(
    ("array", "dtype", "expected"),
    [
        ("image", "int16", -32768),
        ("image", "uint8", 255),
        ("image", "int32", -(2**31)),
        ("image", "uint16", 65535),
        ("label", "uint8", 0),
    ],
)
def test_the_fill_value_is_no_ct_number_in_images_and_background_in_masks(array, dtype, expected):
    assert fill_value(array, np.dtype(dtype)) == expected


def test_the_fill_value_of_a_float_image_is_nan():
    assert math.isnan(fill_value("image", np.dtype("float32")))


def metadata_of(url, key):
    return json.loads((Path(url) / key / "zarr.json").read_text())


@pytest.mark.parametrize(
    ("name", "dtype", "fill", "typesize"), [("image", "int16", -32768, 2), ("label", "uint8", 0, 1)]
)
def test_arrays_use_only_codecs_of_the_zarr_specification(
    ctspine1k_url, name, dtype, fill, typesize
):
    metadata = metadata_of(ctspine1k_url, f"scans/{SCAN}/{name}")
    assert metadata["data_type"] == dtype
    assert metadata["fill_value"] == fill
    assert metadata["dimension_names"] == ["z", "y", "x"]
    assert metadata["shape"] == [35, 64, 64]
    assert metadata["chunk_key_encoding"] == {
        "name": "default",
        "configuration": {"separator": "/"},
    }
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [64, 64, 64]
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    parts = sharding["configuration"]
    assert parts["chunk_shape"] == [64, 32, 32]
    assert parts["index_location"] == "end"
    assert [codec["name"] for codec in parts["index_codecs"]] == ["bytes", "crc32c"]
    raw, blosc, checksum = parts["codecs"]
    assert raw["name"] == "bytes"
    assert checksum["name"] == "crc32c"
    assert blosc == {
        "name": "blosc",
        "configuration": {
            "typesize": typesize,
            "cname": "lz4hc",
            "clevel": 7,
            "shuffle": "shuffle" if name == "image" else "noshuffle",
            "blocksize": typesize * 16 * 1024,
        },
    }


def test_consolidated_metadata_equal_those_of_each_array(ctspine1k_url):
    scan = metadata_of(ctspine1k_url, scan_key(SCAN))
    together = scan["consolidated_metadata"]["metadata"]
    assert {"image", "label", "z", "y", "x", "sampling/label_chunks"} <= set(together)
    for key, metadata in together.items():
        alone = metadata_of(ctspine1k_url, f"{scan_key(SCAN)}/{key}")
        assert {**metadata, "consolidated_metadata": None} == {
            **alone,
            "consolidated_metadata": None,
        }


def test_the_manifest_names_every_file_of_a_scan(ctspine1k_url, shard_entry):
    folder = Path(ctspine1k_url) / scan_key(SCAN)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = metadata_of(ctspine1k_url, scan_key(SCAN))["attributes"]["manifest"]
    del files["zarr.json"]
    shards = {key for key in files if key.startswith(("image/c/", "label/c/"))}
    assert len(shards) == 2
    assert manifest == {
        key: (shard_entry(data, 4) if key in shards else ManifestEntry.of(data)).model_dump()
        for key, data in files.items()
    }


def test_zarr_lists_the_groups_of_a_store(ctspine1k_url, ctspine1k_raw):
    root = zarr.open_group(ctspine1k_url, mode="r")
    assert sorted(root) == ["ingest", "scans", "table", "table_bundle"]
    assert sorted(root["scans"]) == sorted(scan.scan_id for scan in ctspine1k_raw[1])
    assert root.attrs["format"] == "spinezarr"
    assert root.attrs["format_version"] == 7
    assert root.attrs["dataset"] == "ctspine1k"


def test_plain_xarray_opens_a_scan(ctspine1k_url):
    scan = xr.open_zarr(f"{ctspine1k_url}/scans/{SCAN}")
    assert dict(scan.sizes) == {"z": 35, "y": 64, "x": 64}
    assert set(scan.data_vars) == {"image", "label"}
    assert (scan.image.dims, scan.image.dtype) == (("z", "y", "x"), np.int16)
    assert (scan.label.dims, scan.label.dtype) == (("z", "y", "x"), np.uint8)
    assert scan.image.attrs == {"long_name": "CT number", "units": "HU"}
    for axis, step, letter in (("z", 10.0, "Z"), ("y", 6.0, "Y"), ("x", 6.0, "X")):
        assert scan[axis].attrs["units"] == "mm"
        assert scan[axis].attrs["axis"] == letter
        np.testing.assert_allclose(np.diff(scan[axis]), step, atol=1e-4)


def test_the_affine_and_the_coordinates_of_a_scan_agree(ctspine1k_url):
    scan = xr.open_zarr(f"{ctspine1k_url}/scans/{SCAN}")
    affine = np.array(scan.attrs["affine"])
    voxel = {"x": 5, "y": 7, "z": 11}
    expected = affine @ [*voxel.values(), 1]
    found = [float(scan[axis][at]) for axis, at in voxel.items()]
    np.testing.assert_allclose(found, expected[:3], atol=1e-9)
    assert scan.attrs["affine_columns"] == "x, y, z, 1"


def test_a_mask_names_its_labels_as_cf_does(ctspine1k_url):
    label = xr.open_zarr(f"{ctspine1k_url}/scans/{SCAN}").label
    assert label.attrs["flag_values"] == np.unique(label).tolist()
    assert label.attrs["flag_meanings"].split() == [
        "background",
        *("T9", "T10", "T11", "T12"),
        *("L1", "L2", "L3", "L4", "L5"),
    ]


def test_plain_xarray_opens_the_table(ctspine1k_url):
    table = xr.open_zarr(f"{ctspine1k_url}/table")
    assert table.sizes["scan"] == 6
    assert table.voxel_count.dims == ("scan", "vertebra")
    row = table.sel(scan=SCAN)
    assert str(row.split.to_numpy()) == "train"
    assert int(row.voxel_count.sel(vertebra="L1")) > 0
