"""Tests of codec profiles, from ingest to the readers."""

import json
import struct
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError, UsageError
from spinezarr.geometry import Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store import layout
from spinezarr.store.blocks import ChunkFrame
from spinezarr.store.folder import StoreFolder
from spinezarr.store.layout import BALANCED, PROFILES, BloscCodecSpec, profile_named
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import (
    CHECKSUM_BYTES,
    ChunkDamagedError,
    crc32c,
    decode_chunk,
    encode_chunk,
)
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import LocalFetcher
from spinezarr.stream.read.native import kernel
from spinezarr.testing import NiftiForm, write_nifti

REAL = Path(__file__).parents[3] / "shared/data/real/lidc-idri"
PROMISED = {"balanced": 0.88, "fast": 1.0, "small": 0.76}
"""Largest ratio of stored bytes of the lidc-idri-0001 scan to those of its two .nii.gz files."""
PAIRS = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")
AFFINE = np.diag([0.8, 0.8, 1.5, 1.0])


def write_pair(raw, scan_id, dtype="int16", shape_zyx=(70, 56, 40)):
    """Write a smooth image, and a mask of two boxes."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape_zyx)]
    noise = np.random.default_rng(1).integers(0, 40, shape_zyx)
    image = (300 * np.sin(z / 9) + 3 * y + 2 * x + noise).astype("int16").astype(dtype)
    if np.dtype(dtype).kind == "f":
        image += np.dtype(dtype).type(0.1)  # int16 cannot hold it
    label = np.zeros(shape_zyx, np.uint8)
    label[10:30, 5:25, 8:40], label[60:68, 20:55, 3:12] = 20, 21
    write_nifti(raw / f"{scan_id}_ct.nii", image, AFFINE, NiftiForm("LPS", dtype))
    write_nifti(raw / f"{scan_id}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
    return image, label


def ingest_pairs(raw, out, **options):
    return ingest(PAIRS, discover(PAIRS, str(raw)), str(out), **options)


def array_metadata(out, scan_id, name):
    return json.loads((Path(out) / "scans" / scan_id / name / "zarr.json").read_text())


def test_the_default_profile_is_balanced():
    assert profile_named(None) is BALANCED
    assert {name: profile.name for name, profile in PROFILES.items()} == {
        name: name for name in ("balanced", "fast", "small")
    }


@pytest.mark.parametrize("name", [None, *PROFILES])
def test_a_store_names_its_profile_and_later_runs_keep_it(tmp_path, name):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    write_pair(raw, "a")
    assert ingest_pairs(raw, out, codec=name).done == ("a",)
    held = name or "balanced"
    assert StoreReader(str(out)).root.codec_profile == held
    root = (out / "zarr.json").read_bytes()
    _, label = write_pair(raw, "b")
    assert ingest_pairs(raw, out).done == ("b",)
    assert (out / "zarr.json").read_bytes() == root
    for array in ("image", "label"):
        first, later = (array_metadata(out, scan, array) for scan in "ab")
        assert later["codecs"] == first["codecs"]
    assert ingest_pairs(raw, out, codec=held).skipped == ("a", "b")
    np.testing.assert_array_equal(spinezarr.open(out).scan("b").label, label)


def test_another_profile_for_an_existing_store_is_refused_and_changes_nothing(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    write_pair(raw, "a")
    ingest_pairs(raw, out, codec="fast")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"s\.zarr: is written with .* 'fast', not 'small'"):
        ingest_pairs(raw, out, codec="small")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path):
    write_pair(tmp_path / "raw", "a")
    with pytest.raises(UsageError, match="no codec profile 'tiny'; choose balanced, fast, small"):
        ingest_pairs(tmp_path / "raw", tmp_path / "s.zarr", codec="tiny")
    assert not (tmp_path / "s.zarr").exists()


def test_amending_a_scan_keeps_the_metadata_of_its_arrays(tmp_path, monkeypatch):
    """A later version may redefine a profile; the voxels already stored keep their old codec."""
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    image, label = write_pair(raw, "a")
    ingest_pairs(raw, out, codec="small")
    before = {name: array_metadata(out, "a", name) for name in ("image", "label")}
    codec = BloscCodecSpec("lz4", 1, "noshuffle", 0)
    other = replace(PROFILES["small"], chunk_shape_zyx=(16, 16, 16), image=codec)
    monkeypatch.setattr(layout, "PROFILES", {"small": other})
    licensed = PAIRS.model_copy(update={"license": "CC0-1.0"})
    report = ingest(licensed, discover(licensed, str(raw)), str(out))
    assert report.updated == ("a",)
    assert {name: array_metadata(out, "a", name) for name in ("image", "label")} == before
    scan = spinezarr.open(out).scan("a")
    np.testing.assert_array_equal(scan.image, image)
    np.testing.assert_array_equal(scan.label, label)


# Chunks


@given(
    st.sampled_from(list(PROFILES.values())),
    st.sampled_from(["image", "label"]),
    st.data(),
    st.sampled_from(["int16", "float32", "float64", "uint8"]),
)
@settings(max_examples=60)
def test_a_chunk_of_a_profile_comes_back_bit_for_bit(profile, array, data, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=40))
    seed = data.draw(st.integers(0, 2**32))
    most = data.draw(st.sampled_from([0, 1, 40, 255]))  # from constant to noise
    rng = np.random.default_rng(seed)
    n_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    raw = rng.integers(0, most, n_bytes, np.uint8, endpoint=True)
    chunk = raw.view(dtype).reshape(shape)  # may hold NaNs of any bit pattern
    out = np.full(shape, 99, dtype)
    decode_chunk(encode_chunk(chunk, getattr(profile, array)), out)
    assert out.tobytes() == chunk.tobytes()


@pytest.mark.parametrize("array", ["image", "label"])
@pytest.mark.parametrize("name", PROFILES)
def test_decoding_a_chunk_writes_only_inside_its_output(name, array):
    """A chunk with a true checksum may still hold more than its header says."""
    codec = getattr(PROFILES[name], array)
    large = encode_chunk(np.arange(2**16, dtype=np.int16) % 300, codec)
    packed = bytearray(large[:-CHECKSUM_BYTES])
    for size in (64, 2**15, 2**17 - 2):
        struct.pack_into("<I", packed, 4, size)
        forged = bytes(packed) + crc32c(bytes(packed)).to_bytes(CHECKSUM_BYTES, "little")
        room = np.full(2**17, 99, np.uint8)
        with pytest.raises(ChunkDamagedError):
            decode_chunk(forged, room[:size])
        assert (room[size:] == 99).all()


# Stores


@pytest.fixture(scope="module", params=PROFILES)
def profiled(request, tmp_path_factory):
    """Return a profile's name, a store written with it, and image and mask of each scan."""
    raw = tmp_path_factory.mktemp("raw")
    pairs = {dtype: write_pair(raw, dtype, dtype) for dtype in ("int16", "float32", "float64")}
    out = tmp_path_factory.mktemp("stores") / f"{request.param}.zarr"
    report = ingest_pairs(raw, out, codec=request.param)
    assert not report.failed, report.failed
    return request.param, out, pairs


def test_spinezarr_and_zarr_python_read_the_voxels_of_the_files(profiled):
    _, out, pairs = profiled
    store = spinezarr.open(out)
    for scan_id, voxels in pairs.items():
        ours, plain = store.scan(scan_id), xr.open_zarr(out / "scans" / scan_id)
        group = zarr.open_group(out / "scans" / scan_id, mode="r")
        for name, expected in zip(("image", "label"), voxels, strict=True):
            assert ours[name].dtype == expected.dtype
            for found in (ours[name].to_numpy(), plain[name].to_numpy(), group[name][:]):
                np.testing.assert_array_equal(found, expected)


if find_spec("tensorstore"):

    def test_tensorstore_gives_the_voxels_of_the_files(profiled):
        import tensorstore  # noqa: PLC0415

        _, out, pairs = profiled
        for scan_id, voxels in pairs.items():
            for name, expected in zip(("image", "label"), voxels, strict=True):
                place = {"driver": "file", "path": str(out / "scans" / scan_id / name)}
                array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
                np.testing.assert_array_equal(array.read().result(), expected)


if find_spec("zarrs"):

    def test_zarrs_gives_the_voxels_of_the_files(profiled):
        _, out, pairs = profiled
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            for scan_id, voxels in pairs.items():
                group = zarr.open_group(out / "scans" / scan_id, mode="r")
                for name, expected in zip(("image", "label"), voxels, strict=True):
                    np.testing.assert_array_equal(group[name][:], expected)


def test_arrays_have_the_codecs_of_the_profile_and_all_are_in_the_zarr_specification(profiled):
    name, out, _ = profiled
    profile = PROFILES[name]
    for array, spec in (("image", profile.image), ("label", profile.label)):
        metadata = array_metadata(out, "int16", array)
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]
        assert sharding["name"] == "sharding_indexed"
        itemsize = 2 if array == "image" else 1
        assert inner["chunk_shape"] == list(profile.chunk_shape_zyx)
        assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
        assert inner["codecs"][1]["configuration"] == {
            "typesize": itemsize,
            "cname": spec.cname,
            "clevel": spec.clevel,
            "shuffle": spec.shuffle,
            "blocksize": spec.blocksize or itemsize * prod(profile.chunk_shape_zyx),
        }


@pytest.mark.parametrize("array", ["image", "label"])
def test_a_damaged_chunk_is_an_error_in_every_profile(profiled, array, tmp_path):
    _, out, _ = profiled
    path = out / "scans/int16" / array / "c/0/0/0"
    sound = path.read_bytes()
    chunk = first_chunk(sound)
    first_block = ChunkFrame.of(chunk).coding.blocks_offset
    try:
        for at in (first_block, first_block + 5, len(chunk) - CHECKSUM_BYTES - 1):
            damaged = bytearray(sound)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(CorruptStoreError, match=rf"'int16', {array} chunk .* has crc32c"):
                spinezarr.open(out).scan("int16")[array].to_numpy()
    finally:
        path.write_bytes(sound)


def first_chunk(shard):
    """Return the first chunk of a shard; the size of its frame is in its header."""
    (frame_bytes,) = struct.unpack_from("<I", shard, 12)
    return shard[: frame_bytes + CHECKSUM_BYTES]


if REAL.is_dir():

    @pytest.mark.long
    @pytest.mark.parametrize("name", PROFILES)
    def test_a_real_scan_is_as_small_as_promised(tmp_path, name):
        raw, out = tmp_path / "raw", tmp_path / "s.zarr"
        raw.mkdir()
        source_bytes = 0
        for part in ("ct", "seg"):
            file = REAL / f"lidc-idri-0001_{part}.nii.gz"
            source_bytes += file.stat().st_size
            (raw / f"one_{part}.nii.gz").symlink_to(file)
        recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
        report = ingest(recipe, discover(recipe, str(raw)), str(out), codec=name)
        assert not report.failed, report.failed
        files = (out / "scans/one").rglob("*")
        stored = sum(file.stat().st_size for file in files if file.is_file())
        assert stored / source_bytes <= PROMISED[name]


@pytest.fixture(scope="module")
def in_every_profile(tmp_path_factory):
    """Return readers of a scan with several chunks along each axis, and zarr-python's arrays."""
    folder = tmp_path_factory.mktemp("profiles")
    write_pair(folder / "raw", "a", shape_zyx=(140, 100, 110))
    opened = {}
    for name in PROFILES:
        ingest_pairs(folder / "raw", folder / name, codec=name)
        group = zarr.open_group(folder / name / "scans/a", mode="r")
        opened[name] = StoreReader(str(folder / name)).scan("a"), group
    return opened


@given(st.data(), st.sampled_from(sorted(PROFILES)), st.sampled_from(["image", "label"]))
@settings(deadline=None, max_examples=60)
def test_every_read_path_returns_the_voxels_that_zarr_python_returns(
    in_every_profile, recording_fetcher, data, profile, name
):
    scan, group = in_every_profile[profile]
    spec = getattr(scan, name)
    starts = [data.draw(st.integers(0, n - 1)) for n in spec.shape_zyx]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, spec.shape_zyx, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    expected = group[name][box.slices]
    ways = {
        "kernel": (Engine(LocalFetcher(StoreFolder.at("/"))), kernel()),
        "kernel on fetched bytes": (Engine(recording_fetcher()), kernel()),
        "numcodecs": (Engine(LocalFetcher(StoreFolder.at("/"))), None),
        "cache": (Engine(LocalFetcher(StoreFolder.at("/")), cache_bytes=1 << 24), kernel()),
    }
    for way, (engine, used) in ways.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spinezarr.stream.read.engine.kernel", lambda used=used: used)
            out = np.full(box.shape_zyx, 77, spec.dtype)
            engine.read_into(spec, box, out)
            np.testing.assert_array_equal(out, expected, err_msg=way)
