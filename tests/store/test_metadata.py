"""Metadata and small arrays have the bytes that zarr-python and xarray would write."""

import json

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from spinezarr.scaling import Scaling
from spinezarr.store.layout import BALANCED, SMALL_ARRAY, fill_value
from spinezarr.store.metadata import root_files, scan_files, table_files
from spinezarr.store.sealed import unseal

STRING = np.dtypes.StringDType()
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
SEPARATORS = pytest.mark.parametrize("separator", ["/", "."])


def files_of(store):
    return {key: buffer.to_bytes() for key, buffer in store._store_dict.items()}


def parsed_group(data):
    """Return the metadata of a group, whose checksum and manifest are tested elsewhere."""
    group = json.loads(data)
    group["attributes"].pop("manifest", None)
    group["attributes"].pop("metadata_crc32c", None)
    return json.dumps(group)


def assert_same_files(found, expected):
    assert found.keys() == expected.keys()
    for key, data in expected.items():
        if key == "zarr.json":
            assert parsed_group(found[key]) == parsed_group(data)
        else:
            assert found[key] == data, key


def encoding_of(separator):
    return {"name": "default", "separator": separator}


def column(values, *dims, dtype=None, **attributes):
    return dims, np.array(values, dtype), attributes


def table(n):
    by_vertebra = ("scan", "vertebra", "axis")
    nan, texts = float("nan"), ["é\0日", "", "b" * 40]
    return xr.Dataset(
        {
            "text": column(texts[:n], "scan", dtype=STRING, long_name="ü"),
            "ü": column([""] * n, "scan", dtype=STRING),
            "U": column([""] * n, "scan", dtype=STRING),
            "u\u0308b": column([""] * n, "scan", dtype=STRING),
            "no_text": column([""] * n, "scan", dtype=STRING),
            "count": column(range(n), "scan", dtype="i8"),
            "no_count": column([0] * n, "scan", dtype="i8"),
            "box": column(np.ones((n, 2, 3)), *by_vertebra, dtype="i4", units="voxel"),
            "range": column([1.5, nan, -0.0][:n], "scan", dtype="f8", units="HU"),
            "zeros": column([0.0] * n, "scan", dtype="f8"),
            "absent": column(np.full((n, 2), nan), "scan", "vertebra", dtype="f8"),
        },
        {
            "scan": column(["a", "b", "c"][:n], "scan", dtype=STRING),
            "vertebra": column(["L1", "L2"], "vertebra", dtype=STRING),
        },
        {"title": "ü", "dataset": "d"},
    )


@SEPARATORS
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_table_is_written_as_xarray_writes_it(n, separator):
    store = MemoryStore()
    encoding = {
        name: {
            "chunks": tuple(max(1, size) for size in variable.shape),
            "compressors": [ZstdCodec(), Crc32cCodec()],
            "chunk_key_encoding": encoding_of(separator),
        }
        for name, variable in table(n).variables.items()
    }
    table(n).to_zarr(store, zarr_format=3, encoding=encoding, consolidated=True)
    found = table_files(table(n), separator)
    assert_same_files(found, files_of(store))
    manifest = unseal(found["zarr.json"])["attributes"]["manifest"]
    assert list(manifest) == sorted(found.keys() - {"zarr.json"})


@SEPARATORS
@pytest.mark.parametrize("rows", [None, 0, 2])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint64", "float32"])
def test_a_scan_is_written_as_zarr_python_writes_it(dtype, rows, separator):
    shape, dtype = (140, 50, 60), np.dtype(dtype)
    counts = None if rows is None else np.arange(5 * rows, dtype="u4").reshape(rows, 5)
    positions = {"z": np.arange(140) - 7.5, "y": np.zeros(50), "x": np.arange(60) / 3}
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=3)

    def blosc(spec, dtype):
        return BloscCodec(
            cname=spec.cname,
            clevel=spec.clevel,
            shuffle=spec.shuffle,
            blocksize=spec.blocksize,
            typesize=dtype.itemsize,
        )

    def voxels(name, dtype, spec, attributes):
        group.create_array(
            name,
            shape=shape,
            chunks=BALANCED.chunk_shape_zyx,
            shards=BALANCED.shard_shape_zyx(shape),
            dtype=dtype,
            fill_value=fill_value(name, dtype),
            compressors=[blosc(spec, dtype), Crc32cCodec()],
            dimension_names=("z", "y", "x"),
            attributes=attributes,
            chunk_key_encoding=encoding_of(separator),
        )

    def small(name, values, dimensions, attributes):
        group.create_array(
            name,
            shape=values.shape,
            chunks=tuple(max(1, size) for size in values.shape),
            dtype=values.dtype,
            fill_value=0,
            compressors=[blosc(SMALL_ARRAY, values.dtype), Crc32cCodec()],
            dimension_names=dimensions,
            attributes=attributes,
            chunk_key_encoding=encoding_of(separator),
            config={"write_empty_chunks": True},
        )[...] = values

    scale = Scaling(0.5, -3.0)
    voxels(
        "image", dtype, BALANCED.image, {"long_name": "CT number", "units": "HU"} | scale.attributes
    )
    if counts is not None:
        flags = {"long_name": "vertebra", "flag_values": [0, 20, 99]}
        flags["flag_meanings"] = "background L1 left_rib"
        voxels("label", np.dtype("u1"), BALANCED.label, flags)
    for axis, toward in {"z": "superior", "y": "anterior", "x": "the patient's right"}.items():
        attributes = {"axis": axis.upper(), "long_name": f"toward {toward}", "units": "mm"}
        small(axis, positions[axis], (axis,), attributes)
    if counts is not None:
        columns = {"columns": ["label", "chunk_z", "chunk_y", "chunk_x", "voxel_count"]}
        small("sampling/label_chunks", counts, ("entry", "column"), columns)
    zarr.consolidate_metadata(store, zarr_format=3)
    found = scan_files(
        BALANCED,
        shape_zyx=shape,
        image_dtype=dtype,
        image_scaling=scale,
        coordinates_mm=positions,
        label_chunks=counts,
        label_values=(20, 99),
        structures={"99": "left rib"},
        separator=separator,
    )
    assert_same_files(found, files_of(store))


def test_the_root_is_written_as_zarr_python_writes_it():
    store = MemoryStore()
    attributes = {"title": "ü", "format_version": 5}
    zarr.create_group(store, zarr_format=3, attributes=attributes).create_group("scans")
    assert_same_files(root_files(attributes), files_of(store))
