"""Every lie in a store's metadata is refused where it is parsed, even with a valid seal."""

import math
import re
import shutil
from base64 import b64decode, b64encode
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import VLenUTF8
from numcodecs.zstd import compress

import spinezarr
from spinezarr.errors import CorruptStoreError, DamagedMetadataError, SpinezarrError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.attributes import RootAttributes, parse_root, parse_scan_group
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files
from spinezarr.store.layout import (
    BALANCED,
    FORMAT_VERSION,
    LARGEST_AXIS,
    LARGEST_CHUNK_BYTES,
    LARGEST_SCANS,
)
from spinezarr.store.ledger import FolderPart
from spinezarr.store.manifest import SCAN_FILE
from spinezarr.store.metadata import root_files, table_files
from spinezarr.store.reader import StoreReader
from spinezarr.store.sealed import parse_json, seal, unseal
from spinezarr.store.sharding import crc32c
from spinezarr.store.table import build_table
from spinezarr.store.table_file import parse_table
from spinezarr.verify.store import verify_store

RECIPE = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


@pytest.fixture(scope="module")
def valid_store(two_versions, tmp_path_factory):
    store = tmp_path_factory.mktemp("made") / "store.zarr"
    assert not ingest(RECIPE, discover(RECIPE, str(two_versions / "before")), str(store)).failed
    return store


@pytest.fixture
def foreign(valid_store, tmp_path):
    """Copy of a store, to change."""
    return Path(shutil.copytree(valid_store, tmp_path / "of/some/store.zarr"))


def edit_group(path, change):
    """Change the metadata of a group, and seal them again."""
    metadata = unseal(path.read_bytes())
    change(metadata)
    path.write_bytes(seal(metadata))


def set_value(*place_and_value):
    """Return a function that sets the value at a path of nested objects."""
    *place, name, value = place_and_value

    def change(metadata):
        for part in place:
            metadata = metadata[part]
        metadata[name] = value

    return change


def change_rows(change):
    """Return a function that changes the table of the chunks of the image's only shard."""

    def change_metadata(metadata):
        entry = metadata["attributes"]["manifest"]["image/c/0/0/0"]
        rows = np.frombuffer(b64decode(entry["chunks"]), BlockCoding.of(*CODING).row_dtype).copy()
        change(rows)
        entry["chunks"] = b64encode(rows.tobytes()).decode()

    return change_metadata


CODING = (BALANCED.image, 2 * math.prod(BALANCED.chunk_shape_zyx), 2)
ARRAYS = ("consolidated_metadata", "metadata")
IMAGE, LABEL = (*ARRAYS, "image"), (*ARRAYS, "label")
INNER = ("codecs", 0, "configuration")
BLOSC = (*INNER, "codecs", 1, "configuration")
ENTRY = {"size_bytes": 3, "crc32": "00000000"}
SAID = ("attributes",)

LIES_OF_A_SCAN = {
    **{
        f"image of {dtype}": set_value(*IMAGE, "data_type", dtype)
        for dtype in (
            "object",
            "O",
            "|O8",
            "S",
            "S8",
            "V0",
            "V8",
            "U0",
            "r16",
            "complex64",
            "float128",
            "bool",
            "<M8[ns]",
            "i2,i2",
            "string",
            "float16",
            "uint8",
            "",
            None,
            3,
            {"name": "numpy.datetime64"},
        )
    },
    "mask of int16": set_value(*LABEL, "data_type", "int16"),
    "wrapping chunks": set_value(*IMAGE, *INNER, "chunk_shape", [1 << 30] * 3),
    "chunks above the bound": set_value(*IMAGE, *INNER, "chunk_shape", [1 << 12, 1 << 12, 1]),
    "no chunks": set_value(*IMAGE, *INNER, "chunk_shape", [0, 1, 1]),
    "negative chunks": set_value(*IMAGE, *INNER, "chunk_shape", [-64, 32, 32]),
    "chunks that do not fit shards": set_value(*IMAGE, *INNER, "chunk_shape", [63, 32, 32]),
    "four axes": set_value(*IMAGE, *INNER, "chunk_shape", [64, 32, 32, 1]),
    "too many chunks a shard": set_value(
        *IMAGE, "chunk_grid", "configuration", "chunk_shape", [64 * 64, 32 * 64, 32 * 64]
    ),
    "negative shards": set_value(
        *IMAGE, "chunk_grid", "configuration", "chunk_shape", [-64, 32, 32]
    ),
    "no voxels": set_value(*IMAGE, "shape", [0, 24, 20]),
    "negative shape": set_value(*IMAGE, "shape", [-16, 24, 20]),
    "another shape": set_value(*IMAGE, "shape", [17, 24, 20]),
    "a huge mask": set_value(*LABEL, "shape", [LARGEST_AXIS] * 3),
    "above the largest axis": set_value(*IMAGE, "shape", [LARGEST_AXIS + 1, 24, 20]),
    "a codec of pickles": set_value(*IMAGE, *INNER, "codecs", 1, "name", "pickle"),
    "no crc32c": lambda m: m["consolidated_metadata"]["metadata"]["image"]["codecs"][0][
        "configuration"
    ]["codecs"].pop(),
    "sharding in sharding": lambda m: m["consolidated_metadata"]["metadata"]["image"]["codecs"][0][
        "configuration"
    ].update(codecs=deepcopy(m["consolidated_metadata"]["metadata"]["image"]["codecs"])),
    "index at the start": set_value(*IMAGE, *INNER, "index_location", "start"),
    "a storage transformer": set_value(*IMAGE, "storage_transformers", [{"name": "x"}]),
    "another separator": set_value(
        *IMAGE, "chunk_key_encoding", "configuration", "separator", "../"
    ),
    "one separator changed": set_value(
        *IMAGE, "chunk_key_encoding", "configuration", "separator", "."
    ),
    "another array": set_value(*ARRAYS, "other", {}),
    "no image": lambda m: m["consolidated_metadata"]["metadata"].pop("image"),
    "no coordinates": lambda m: m["consolidated_metadata"]["metadata"].pop("z"),
    "other coordinates": set_value(*ARRAYS, "z", "shape", [17]),
    "a mask without counts": lambda m: m["consolidated_metadata"]["metadata"].pop(
        "sampling/label_chunks"
    ),
    "more counts than labels": set_value(*ARRAYS, "sampling/label_chunks", "shape", [256, 5]),
    "endless counts": set_value(*ARRAYS, "sampling/label_chunks", "shape", [1 << 40, 5]),
    "scaling in the array alone": set_value(*IMAGE, "attributes", "scale_factor", 2.0),
    "a scaling that is no number": set_value(*IMAGE, "attributes", "scale_factor", "x"),
    "a scaling that is a list": set_value(*IMAGE, "attributes", "scale_factor", [2.0]),
    "a scaling of nothing": set_value(*IMAGE, "attributes", "scale_factor", None),
    "a scaling beyond floats": set_value(*IMAGE, "attributes", "scale_factor", 10**400),
    **{
        f"manifest names {key}": set_value(*SAID, "manifest", key, ENTRY)
        for key in (
            "../../../home/key.pem",
            "/etc/passwd",
            "image/../../b/zarr.json",
            "image/c/0/0/-1",
            "image/c/00/0/0",
            "image/c/0/0",
            "image/c.0/0.0",
            "image/c/99999/0/0",
            "c/0/0/0",
            "",
            ".",
            "image/c/0/0/0/",
            "IMAGE/c/0/0/0",
            "zarr.json",
            "image\\..\\x",
            "image/zarr.json\n",
            "sampling/label_chunks/c/1/0",
            "z/c/1",
        )
    },
    "a shard without a table": set_value(*SAID, "manifest", "image/c/0/0/0", ENTRY),
    "a shard of negative size": set_value(*SAID, "manifest", "image/c/0/0/0", "size_bytes", -1),
    "a shard of endless size": set_value(*SAID, "manifest", "image/c/0/0/0", "size_bytes", 1 << 41),
    "blocks above their voxels": change_rows(lambda rows: rows["block_sizes"].fill(2**16 - 1)),
    "blocks of nothing but a checksum": change_rows(lambda rows: rows["block_sizes"].fill(4)),
    "a larger block": change_rows(lambda rows: rows["block_sizes"].put(0, 5000)),
    "a chunk elsewhere": change_rows(lambda rows: rows["position"].fill(1)),
    "rows of other chunks": set_value(*SAID, "manifest", "image/c/0/0/0", "chunks", "AAAA" * 3),
    "rows that are no base64": set_value(*SAID, "manifest", "image/c/0/0/0", "chunks", "AB=="),
    "no rows": set_value(*SAID, "manifest", "image/c/0/0/0", "chunks", ""),
    **{
        f"an index at {offset}": set_value(
            *SAID, "manifest", "image/c/0/0/0", "index_offset", offset
        )
        for offset in (-1, 0, 20, 1 << 40, (1 << 40) + 1, 1.5, None, "20")
    },
    "no place of the index": lambda m: m["attributes"]["manifest"]["image/c/0/0/0"].pop(
        "index_offset"
    ),
    **{
        f"a codec with {name} {value!r}": set_value(*IMAGE, *BLOSC, name, value)
        for name, values in {
            "cname": ("blosclz", "zlib", "snappy", "", None, 1),
            "shuffle": ("bitshuffle", "SHUFFLE", 1, None),
            "typesize": (0, 1, 4, 255, -2, 2.5, None),
            "blocksize": (0, -1, 1, 3, 256, 131_071, 1 << 18, 1 << 24, (1 << 24) + 1, "16", None),
        }.items()
        for value in values
    },
    **{
        f"a codec without {name}": lambda m, name=name: m["consolidated_metadata"]["metadata"][
            "image"
        ]["codecs"][0]["configuration"]["codecs"][1]["configuration"].pop(name)
        for name in ("cname", "shuffle", "typesize", "blocksize")
    },
    "a scan id that controls a terminal": set_value(*SAID, "scan_id", "a\x1b[2J"),
    "a scan id that is a path": set_value(*SAID, "scan_id", "../a"),
    "a singular affine": set_value(
        *SAID, "affine", [[1.0, 0.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 0.0, 1.0]]
    ),
    "another spacing": set_value(*SAID, "spacing_zyx_mm", [1.0, 1.0, 2.0]),
    "no spacing": set_value(*SAID, "spacing_zyx_mm", [0.0, 1.0, 1.0]),
    "a vertebra outside": set_value(*SAID, "vertebrae", "L1", "stop_zyx", [17, 9, 9]),
    "an inverted vertebra": set_value(*SAID, "vertebrae", "L1", "stop_zyx", [0, 0, 0]),
    "a vertebra of no name": lambda m: m["attributes"]["vertebrae"].update(
        L9=m["attributes"]["vertebrae"]["L1"]
    ),
    "endless counts of voxels": set_value(*SAID, "vertebrae", "L1", "voxel_count", 1 << 64),
    "a label that is no number": set_value(*SAID, "other_labels", "x", 1),
    "a raw file outside": set_value(*SAID, "image_source", "file", "../../etc/passwd"),
    "an absolute raw file": set_value(*SAID, "image_source", "file", "/etc/passwd"),
    "directions of no axes": set_value(*SAID, "image_source", "orientation", "LLL"),
    "no mask, and a state of one": lambda m: [
        m["consolidated_metadata"]["metadata"].pop(name)
        for name in ("label", "sampling/label_chunks")
    ],
}


def with_chunks(chunk, shard):
    """Return a function that sets the chunk and shard shapes of image and mask."""

    def change(metadata):
        for array in (IMAGE, LABEL):
            set_value(*array, *INNER, "chunk_shape", chunk)(metadata)
            set_value(*array, "chunk_grid", "configuration", "chunk_shape", shard)(metadata)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value(*SAID, "shape_zyx", [16, 24, 21]), "an image of .* voxels, expected"),
        (with_chunks([256, 256, 256], [256, 256, 256]), "chunks of .* bytes, expected at most"),
        (with_chunks([16, 32, 32], [16 * 64, 32 * 64, 32 * 64]), "262144 chunks, expected at most"),
        (with_chunks([16, 32, 32], [16, 32, 48]), "expected whole chunks of"),
        (with_chunks([1, 1, 1], [1, 1, 1]), "blocks of 32768 bytes, expected a whole number"),
        (set_value(*IMAGE, *BLOSC, "blocksize", 256), "chunks of 512 blocks, expected at most 256"),
        (set_value(*IMAGE, *BLOSC, "blocksize", 24_576), "expected a whole number of them"),
        (set_value(*IMAGE, *BLOSC, "typesize", 4), "numbers of 4 bytes, expected 2"),
        (change_rows(lambda rows: rows["block_sizes"].put(1, 8)), "a block of 8 bytes"),
        (change_rows(lambda rows: rows["block_sizes"].put(1, 32_781)), "at most 32780"),
        (
            set_value(*SAID, "manifest", "image/c/0/0/0", "index_offset", 3),
            r"chunks of \d+ bytes, expected 3",
        ),
        (
            lambda m: m["attributes"]["manifest"].pop("image/c/0/0/0"),
            "0 shards of image, expected 1",
        ),
    ],
)
def test_each_limit_is_named_in_its_error(foreign, change, message):
    """Each lie is repeated wherever the value stands, so that no other check sees it first."""
    path = foreign / "scans/a/zarr.json"
    edit_group(path, change)
    with pytest.raises(DamagedMetadataError, match=message):
        parse_scan_group(path.read_bytes()).shards("image")


def test_json_with_too_many_values_is_refused():
    assert len(parse_json(b"[" + b"1," * 1000 + b"1]")) == 1001
    with pytest.raises(DamagedMetadataError, match="values, expected at most"):
        parse_json(b"[" + b"1," * (1 << 20) + b"1]")


@pytest.mark.parametrize("name", LIES_OF_A_SCAN)
def test_scan_metadata_that_spinezarr_never_writes_are_refused(foreign, name):
    path = foreign / "scans/a/zarr.json"
    edit_group(path, LIES_OF_A_SCAN[name])
    with pytest.raises(DamagedMetadataError, match=r".") as caught:
        parse_scan_group(path.read_bytes()).shards("image")
    assert len(str(caught.value)) < 400
    with pytest.raises(CorruptStoreError, match=r"a/zarr\.json: is not what spinezarr writes"):
        spinezarr.open(foreign).scan("a")
    assert any(f.path == "scans/a/zarr.json" for f in verify_store(str(foreign)).faults)


def test_scan_metadata_that_spinezarr_writes_are_accepted(valid_store):
    group = parse_scan_group((valid_store / "scans/a/zarr.json").read_bytes())
    assert list(group.shards("image")) == list(group.shards("label")) == [(0, 0, 0)]


@given(
    st.sampled_from(["image", "label"]),
    st.tuples(*[st.integers(0, 99_999)] * 3),
    st.sampled_from("/."),
)
def test_every_chunk_key_that_is_written_is_accepted(name, index, separator):
    assert re.search(SCAN_FILE, f"{name}/{chunk_key(index, separator)}")


# Files outside the store are not removed


def test_no_file_outside_is_removed_when_a_scan_is_replaced(foreign, two_versions, tmp_path):
    key = tmp_path / "home/key.pem"
    key.parent.mkdir()
    key.write_bytes(b"mine")
    away = "../../../../../home/key.pem"
    assert (foreign / "scans/a" / away).resolve() == key.resolve()
    edit_group(foreign / "scans/a/zarr.json", set_value(*SAID, "manifest", away, ENTRY))
    edit_group(foreign / "table/zarr.json", set_value(*SAID, "manifest", "../" + away[6:], ENTRY))
    with suppress(SpinezarrError):
        ingest(RECIPE, discover(RECIPE, str(two_versions / "after")), str(foreign))
    assert key.read_bytes() == b"mine"
    faults = verify_store(str(foreign)).faults
    assert not any("key.pem" in fault.path for fault in faults)


# The table


COLUMN = (*ARRAYS, "patient_id")
SIZES = (*ARRAYS, "shape_zyx")
LIES_OF_A_TABLE = {
    "a manifest that leads out": set_value(*SAID, "manifest", "../scans/a/zarr.json", ENTRY),
    "a device": set_value(*SAID, "manifest", "/dev/zero", ENTRY),
    "a hidden file": set_value(*SAID, "manifest", "__x/c/0", ENTRY),
    "a chunk that is none": set_value(*SAID, "manifest", "scan/c/1", ENTRY),
    "an endless chunk": set_value(*SAID, "manifest", "scan/c/0", {**ENTRY, "size_bytes": 1 << 40}),
    "objects": set_value(*COLUMN, "data_type", "object"),
    "more scans": set_value(*COLUMN, "shape", [2]),
    "endless scans": set_value(*COLUMN, "shape", [LARGEST_SCANS + 1]),
    "other axes": set_value(*COLUMN, "dimension_names", ["vertebra"]),
    "no axes": set_value(*COLUMN, "dimension_names", None),
    "another codec": set_value(*COLUMN, "codecs", [{"name": "pickle"}]),
    "numbers as text": set_value(*SIZES, "data_type", "string"),
    "a column that leads out": set_value(*ARRAYS, "../x", {}),
    "no columns": set_value("consolidated_metadata", {}),
    "no scans": lambda m: m["consolidated_metadata"]["metadata"].pop("scan"),
    "no shapes": lambda m: m["consolidated_metadata"]["metadata"].pop("shape_zyx"),
    "no attributes": set_value("attributes", {}),
    "a title that is no text": set_value(*SAID, "title", 3),
}


@pytest.mark.parametrize("name", LIES_OF_A_TABLE)
def test_a_table_that_spinezarr_never_writes_is_refused(foreign, name):
    edit_group(foreign / "table/zarr.json", LIES_OF_A_TABLE[name])
    (foreign / TABLE_BUNDLE).unlink()
    with pytest.raises(CorruptStoreError, match=r"table/zarr\.json: is damaged"):
        _ = spinezarr.open(foreign).table
    assert verify_store(str(foreign)).faults


def table_of(values):
    """Return the table of one scan, parsed from files in which some values were changed."""
    root = RootAttributes(
        format_version=FORMAT_VERSION, dataset="d", title="t", license="l", citation="c"
    )
    store = values.pop("store")
    scans = [StoreReader(str(store)).scan("a").attributes]
    table = build_table(root, scans)
    for name, value in values.items():
        column = table.variables[name]
        values_of = np.full(column.shape, value, column.dtype)
        table = table.assign({name: (column.dims, values_of, column.attrs)})
    files = table_files(table, "/")
    return parse_table(files["zarr.json"]).table(files).to_xarray()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape_zyx", 0),
        ("shape_zyx", LARGEST_AXIS + 1),
        ("spacing_zyx_mm", np.nan),
        ("spacing_zyx_mm", 0.0),
        ("spacing_zyx_mm", -1.0),
        ("spacing_zyx_mm", 1e300),
        ("bbox_start_zyx", 17),
        ("bbox_stop_zyx", 2**31 - 1),
        ("voxel_count", -1),
        ("stored_bytes", -1),
        ("centroid_zyx_mm", np.inf),
        ("annotated_centroid_zyx_mm", 1e300),
        ("image_dtype", "object"),
        ("image_stored_dtype", "V0"),
        ("label_state", "some"),
        ("orientation", ""),
        ("orientation", "LPP"),
        ("scan", "../a"),
        ("scan", ""),
        ("scan", "a\x9b31m"),
        ("vertebra", "L1"),
        ("axis", "z"),
    ],
)
def test_impossible_values_of_a_table_are_refused(valid_store, name, value):
    with pytest.raises(DamagedMetadataError, match=r"a possible one|vertebrae|rows"):
        table_of({"store": valid_store, name: value})


def test_possible_values_of_a_table_are_accepted(valid_store):
    table = table_of({"store": valid_store, "image_min_hu": np.nan})
    assert table.scan.to_numpy().tolist() == ["a"]


def test_the_reader_and_xarray_read_the_same_table(valid_store):
    found = StoreReader(str(valid_store)).table
    expected = xr.open_zarr(valid_store / "table", chunks=None).load()
    texts = {n: v.astype(object) for n, v in expected.variables.items() if v.dtype.kind == "T"}
    expected = expected.assign(texts)
    expected.attrs = {k: v for k, v in expected.attrs.items() if k in found.attrs}
    xr.testing.assert_identical(found, expected.set_coords(list(expected.coords)))


def packed(data):
    """Compress bytes into a chunk of a column, with its checksum."""
    body = bytes(compress(data))
    return body + crc32c(body).to_bytes(4, "little")


def text_chunk(texts):
    return bytes(VLenUTF8().encode(np.array(texts, object)))


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"\0" * 4,
        packed(b""),
        packed(b"\xff\xff\xff\xff" + b"\0" * 20),
        packed(text_chunk(["a", "b"])),
        packed(b"\2\0\0\0\1\0\0\0a"),
        packed(b"\1\0\0\0\xff\xff\xff\xff"),
        packed(text_chunk(["a"]) + b"x"),
        packed(text_chunk(["a"])[:-1]),
        packed(b"\1\0\0\0\1\0\0\0\xff"),
        packed(b"\0" * (1 << 20)),
    ],
)
def test_a_chunk_that_is_no_valid_column_of_strings_is_refused(valid_store, chunk):
    stored = parse_table((valid_store / "table/zarr.json").read_bytes())
    files = unbundle_files((valid_store / TABLE_BUNDLE).read_bytes())
    with pytest.raises(DamagedMetadataError, match=r"column|UTF-8|Zstandard"):
        stored.table({**files, "patient_id/c/0": chunk})


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=1), st.data())
def test_strings_that_numcodecs_encodes_are_read_back(valid_store, texts, data):
    stored = parse_table((valid_store / "table/zarr.json").read_bytes())
    files = unbundle_files((valid_store / TABLE_BUNDLE).read_bytes())
    chunk = packed(text_chunk(texts))
    found = stored.table({**files, "patient_id/c/0": chunk})
    assert found["patient_id"].tolist() == texts
    at = data.draw(st.integers(0, len(chunk) - 1))
    damaged = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
    with pytest.raises(DamagedMetadataError, match="column"):
        stored.table({**files, "patient_id/c/0": damaged})


def test_a_small_file_does_not_become_a_large_table(valid_store):
    stored = parse_table((valid_store / "table/zarr.json").read_bytes())
    files = unbundle_files((valid_store / TABLE_BUNDLE).read_bytes())
    # The frame announces 2 GiB and holds nothing.
    frame = b"\x28\xb5\x2f\xfd" + bytes([0b10100000]) + (2 << 30).to_bytes(4, "little") + b"\1\0\0"
    chunk = frame + crc32c(frame).to_bytes(4, "little")
    with pytest.raises(DamagedMetadataError, match="a column of 2147483648 bytes"):
        stored.table({**files, "patient_id/c/0": chunk})


def test_patches_are_refused_if_the_table_has_another_shape_than_the_scan(foreign):
    path = foreign / "table/zarr.json"
    stored = parse_table(path.read_bytes())
    table = StoreReader(str(foreign)).table
    table["shape_zyx"] = table.shape_zyx * 2
    texts = {n: v.astype("T") for n, v in table.variables.items() if v.dtype.kind == "O"}
    for key, data in table_files(table.assign(texts), "/").items():
        (foreign / "table" / key).parent.mkdir(exist_ok=True, parents=True)
        (foreign / "table" / key).write_bytes(data)
    (foreign / TABLE_BUNDLE).unlink()
    assert stored.columns
    with pytest.raises(CorruptStoreError, match=r"the scan table says that 'a' has \(32, 48, 40\)"):
        next(iter(spinezarr.open(foreign).patches((8, 8, 8), n_samples=1, batch_size=1)))


# The root, and files of JSON


def root_of(**attributes):
    files = root_files({"format": "spinezarr", "format_version": FORMAT_VERSION, **attributes})
    return files["zarr.json"]


SOUND = {"dataset": "d", "title": "t", "license": "l", "citation": "c"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b'{"attributes": ' + b"9" * 10_000 + b"}",
        b'{"attributes": []}',
        b'{"attributes": {"format": "spinezarr", "format_version": NaN}}',
        b'{"attributes": {"format": "spinezarr", "format_version": 1e999}}',
        b"\xff\xfe",
        b"[" + b"[],[],[],[]," * 200_000 + b"1]",
        root_of(**{**SOUND, "title": 3}),
        root_of(**SOUND, other=1),
        root_of(dataset="d"),
        root_of(**SOUND).replace(b'"d"', b'"e"'),
    ],
)
def test_invalid_root_metadata_are_refused_in_one_short_line(data):
    with pytest.raises(DamagedMetadataError, match=r".") as caught:
        parse_root(data)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_valid_root_metadata_are_accepted():
    assert parse_root(root_of(**SOUND)).dataset == "d"


@pytest.mark.parametrize(
    "runs", ["1-0", "3 2", "1 1", "0-99999999999", "a", "-1", "1-", "0x1", "1 -2"]
)
def test_file_numbers_that_are_no_rising_runs_are_refused(runs):
    with pytest.raises(ValueError, match="expected runs"):
        FolderPart(files=runs)


@pytest.mark.parametrize("runs", ["", "0", "0-3", "0-3 5 7-9"])
def test_file_numbers_in_rising_runs_are_accepted(runs):
    assert FolderPart(files=runs).files == runs


# Counts of labels


@pytest.mark.parametrize(
    "row",
    [
        [0, 0, 0, 0, 1],
        [256, 0, 0, 0, 1],
        [20, 1, 0, 0, 1],
        [20, 0, 0, 2**32 - 1, 1],
        [20, 0, 0, 0, 0],
        [20, 0, 0, 0, 2**32 - 1],
    ],
)
def test_counts_of_an_impossible_label_or_chunk_are_refused(valid_store, monkeypatch, row):
    reader = StoreReader(str(valid_store))

    def decode(_, out):
        out[...] = row

    monkeypatch.setattr("spinezarr.store.reader.decode_chunk", decode)
    with pytest.raises(CorruptStoreError, match="which cannot be a label, chunk and count"):
        reader.label_chunks("a")


@pytest.mark.parametrize("row", [[20, 0, 0, 0, 124], [21, 0, 0, 0, 125]])
def test_label_counts_that_contradict_the_scan_are_refused(valid_store, monkeypatch, row):
    reader = StoreReader(str(valid_store))
    assert reader.scan("a").attributes.label_voxels == {20: 125}
    assert reader.label_chunks("a")[:, 4].sum() == 125
    reader = StoreReader(str(valid_store))

    def decode(_, out):
        out[...] = row

    monkeypatch.setattr("spinezarr.store.reader.decode_chunk", decode)
    with pytest.raises(CorruptStoreError, match="voxel counts of labels differ"):
        reader.label_chunks("a")


def test_the_limit_of_chunk_bytes_allows_the_chunks_that_are_written():
    assert LARGEST_CHUNK_BYTES >= 64 * 48 * 48 * 8


@pytest.mark.parametrize("verb", ["audit", "patches"])
def test_a_mask_that_lacks_the_voxels_of_its_counts_is_an_error(valid_store, monkeypatch, verb):
    store = spinezarr.open(valid_store)
    patches = store.patches((4, 4, 4), n_samples=4, batch_size=4, foreground=1.0)
    read = type(store._engine).read

    def read_nothing(self, wanted, **options):
        read(self, wanted, **options)
        for one in wanted:
            if one.array.name == "label":
                one.out[...] = 0

    monkeypatch.setattr(type(store._engine), "read", read_nothing)
    if verb == "patches":
        with pytest.raises(
            CorruptStoreError, match="the voxels of the value 20 in its mask differ"
        ):
            next(iter(patches))
        return
    message = [finding.text for finding in store.audit().findings]
    assert any("the voxels of the value 20 in its mask differ" in text for text in message)
