import pickle
import re
import shutil
from binascii import b2a_base64
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import assemble_shard

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError, UnknownScanError
from spinezarr.geometry import Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.remote.settings import RemoteSettings
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.folder import StoreFolder
from spinezarr.store.manifest import ShardEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.sharding import ABSENT, index_bytes, parse_index
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import (
    ByteRange,
    ByteRanges,
    Fetcher,
    LocalFetcher,
    MissingShardError,
    StoredShard,
    fetcher_for,
)
from spinezarr.testing import NiftiForm, write_nifti

SCAN = "liver_0"
SHARD = "c/0/0/0"
DEEP, WIDE = (140, 60, 100), (3, 5, 790)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a reader of two scans of several shards each, and their arrays."""
    rng, raw = np.random.default_rng(2), tmp_path_factory.mktemp("large")
    stored = {}
    for name, shape in (("deep", DEEP), ("wide", WIDE)):
        image = rng.integers(-1024, 3072, shape).astype(np.int16)
        label = np.zeros(shape, np.uint8)
        label[shape[0] // 2 :, 1:, shape[2] // 2 :] = rng.integers(1, 29)
        write_nifti(raw / f"{name}_ct.nii", image, np.eye(4), NiftiForm("RAS"))
        write_nifti(raw / f"{name}_seg.nii", label, np.eye(4), NiftiForm("RAS", "uint8"))
        stored[name] = {"image": image, "label": label}
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="large")
    url = str(tmp_path_factory.mktemp("large-store") / "large.zarr")
    report = ingest(recipe, discover(recipe, str(raw)), url)
    assert not report.failed, report.failed
    return StoreReader(url), stored


@pytest.fixture(scope="module")
def engine(large):
    return Engine(fetcher_for(large[0].objects))


@pytest.fixture
def copied(ctspine1k_url, tmp_path):
    """Copy the CTSpine1K store, for tests that damage it."""
    return Path(shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr"))


def spec_of(reader, name, scan_id=SCAN):
    scan = reader.scan(scan_id)
    return scan.image if name == "image" else scan.label


def read(url, name, box=None, scan_id=SCAN):
    """Open a store anew, and read a box of an array, or all of it."""
    reader = StoreReader(str(url))
    spec = spec_of(reader, name, scan_id)
    box = box or Box((0, 0, 0), spec.shape_zyx)
    out = np.full(box.shape_zyx, 77, spec.dtype)
    Engine(fetcher_for(reader.objects)).read_into(spec, box, out)
    return out


@st.composite
def boxes_in(draw, shape):
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    return Box(tuple(starts), tuple(stops))


# Reading


@given(st.data(), st.sampled_from(["deep", "wide"]), st.sampled_from(["image", "label"]))
@settings(deadline=None)
def test_a_box_equals_the_one_that_numpy_cuts_out(large, engine, data, scan_id, name):
    reader, stored = large
    expected = stored[scan_id][name]
    box = data.draw(boxes_in(expected.shape))
    out = np.full(box.shape_zyx, 77, expected.dtype)
    engine.read_into(spec_of(reader, name, scan_id), box, out)
    np.testing.assert_array_equal(out, expected[box.slices])


@given(st.data(), st.sampled_from(["int16", "int32", "float32", "float64", ">i2"]))
@settings(deadline=None, max_examples=40)
def test_the_output_may_be_strided_and_wider(large, engine, data, dtype):
    reader, stored = large
    box = data.draw(boxes_in(WIDE))
    z, y, x = box.shape_zyx
    around = np.full((x + 1, 2 * z, y + 2), 77, dtype)
    out = around[:x, ::2, 1 : y + 1].transpose(1, 2, 0)[:, ::-1]
    engine.read_into(spec_of(reader, "image", "wide"), box, out)
    np.testing.assert_array_equal(out, stored["wide"]["image"][box.slices])
    untouched = np.ones(around.shape, bool)
    untouched[:x, ::2, 1 : y + 1] = False
    assert (around[untouched] == 77).all()


def test_a_read_requests_only_chunks(large, recording_fetcher):
    reader, _ = large
    fetch = recording_fetcher()
    engine, spec = Engine(fetch), spec_of(reader, "image", "deep")
    for z in (0, 1, 2):
        engine.read_into(spec, Box((z, 0, 0), (z + 1, 1, 1)), np.empty((1, 1, 1), np.int16))
    assert len(fetch.fetched) == 3
    assert len(set(fetch.fetched)) == 1


# Damage


@contextmanager
def replaced(path, data):
    """Replace the bytes of a file, or remove it, until the context ends."""
    whole = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield whole
    finally:
        path.write_bytes(whole)


def needed_spans(url, name):
    """Return where the blocks with voxels of the volume lie, chunk by chunk.

    The volume ends in the third of four blocks.
    """
    spec = spec_of(StoreReader(str(url)), name)
    assert spec.shape_zyx[0] == 35
    entry, start = spec.shards[0, 0, 0], 0
    for row, size in zip(entry.rows(spec.coding), entry.chunk_sizes(spec.coding), strict=True):
        first = start + spec.coding.blocks_offset
        yield first, first + int(row["block_sizes"][:3].sum())
        start += int(size)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_flipped_byte_of_a_chunk_is_an_error(copied, name):
    path = copied / "scans" / SCAN / name / SHARD
    data, rng = path.read_bytes(), np.random.default_rng(0)
    needed = np.concatenate([range(*span) for span in needed_spans(copied, name)])
    for at in rng.choice(needed, 140, replace=False):
        flipped = data[:at] + bytes([data[at] ^ rng.choice([1, 64, 255])]) + data[at + 1 :]
        with replaced(path, flipped), pytest.raises(CorruptStoreError) as problem:
            read(copied, name)
        where = rf"scan '{SCAN}', {name} chunk \(0, [01], [01]\) in \S+/{SCAN}/{name}/{SHARD} "
        assert re.match(where, str(problem.value))


@pytest.mark.parametrize("name", ["image", "label"])
@pytest.mark.parametrize("length", [0, 1, 100, 0.5, -100, -1])
def test_a_cut_shard_is_an_error(copied, name, length):
    path = copied / "scans" / SCAN / name / SHARD
    data = path.read_bytes()[: max(stop for _, stop in needed_spans(copied, name))]
    kept = data[: int(len(data) * length) if isinstance(length, float) else length]
    with replaced(path, kept), pytest.raises(CorruptStoreError, match=f"{name} chunk .*{SHARD}"):
        read(copied, name)


@pytest.mark.parametrize("name", ["image", "label"])
@pytest.mark.parametrize("kept", [-68, -1, None], ids=["no index", "a cut index", "more"])
def test_the_voxels_do_not_depend_on_the_index(copied, name, kept):
    path, expected = copied / "scans" / SCAN / name / SHARD, read(copied, name)
    with replaced(path, path.read_bytes()[:kept] + (b"more" if kept is None else b"")):
        np.testing.assert_array_equal(read(copied, name), expected)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_deleted_shard_is_an_error(copied, name):
    where = rf"scan '{SCAN}', {name} chunk \(0, 0, 0\) in .*{name}/{SHARD} .*its shard is missing"
    with (
        replaced(copied / "scans" / SCAN / name / SHARD, None),
        pytest.raises(CorruptStoreError, match=where),
    ):
        read(copied, name)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_shard_deleted_after_a_read_is_an_error(copied, name):
    reader = StoreReader(str(copied))
    engine, spec = Engine(fetcher_for(reader.objects)), spec_of(reader, name)
    out = np.empty((1, 1, 1), spec.dtype)
    engine.read_into(spec, Box((0, 0, 0), (1, 1, 1)), out)
    with (
        replaced(copied / "scans" / SCAN / name / SHARD, None),
        pytest.raises(CorruptStoreError, match=rf"{name} chunk \(0, 0, 0\) in .*{SHARD} is gone"),
    ):
        engine.read_into(spec, Box((0, 31, 0), (1, 32, 1)), out)


def edit_manifest(copied, change):
    path = copied / "scans" / SCAN / "zarr.json"
    metadata = unseal(path.read_bytes())
    change(metadata["attributes"]["manifest"])
    path.write_bytes(seal(metadata))


def test_an_image_shard_that_the_manifest_lacks_is_an_error(copied):
    edit_manifest(copied, lambda manifest: manifest.pop(f"image/{SHARD}"))
    with pytest.raises(CorruptStoreError, match="manifest: 0 shards of image, expected 1"):
        read(copied, "image")


def test_a_label_shard_that_the_manifest_lacks_is_background(copied):
    edit_manifest(copied, lambda manifest: manifest.pop(f"label/{SHARD}"))
    assert not read(copied, "label").any()


def drop_chunk(copied, name, position, shard_entry):
    """Write a shard anew, with valid checksums, but without one of its chunks."""
    path = copied / "scans" / SCAN / name / SHARD
    data = path.read_bytes()
    index = parse_index(data[-index_bytes(4) :], 4, len(data)).tolist()
    chunks = {i: data[a : a + n] for i, (a, n) in enumerate(index) if a != ABSENT}
    del chunks[position]
    path.write_bytes(assemble_shard(chunks, 4))
    entry = shard_entry(path.read_bytes(), 4).model_dump()
    edit_manifest(copied, lambda manifest: manifest.update({f"{name}/{SHARD}": entry}))


def test_an_image_chunk_that_its_shard_lacks_is_an_error(copied, shard_entry):
    drop_chunk(copied, "image", 2, shard_entry)
    with pytest.raises(CorruptStoreError, match="3 chunks, expected the 4"):
        read(copied, "image")


def test_a_label_chunk_that_its_shard_lacks_is_background(copied, shard_entry):
    expected = read(copied, "label")
    drop_chunk(copied, "label", 1, shard_entry)
    assert expected[:, :32, 32:].any()
    expected[:, :32, 32:] = 0
    np.testing.assert_array_equal(read(copied, "label"), expected)


def test_computing_a_damaged_scan_is_an_error(copied):
    path = copied / "scans" / SCAN / "image" / SHARD
    data = path.read_bytes()
    with replaced(path, data[:50] + b"\0\0\0\0" + data[54:]), pytest.raises(CorruptStoreError):
        spinezarr.open(copied).scan(SCAN).load()


# Fetching


def in_file(path, start, stop):
    return ByteRange(StoredShard(str(path), Path(path).stat().st_size, str(path)), start, stop)


def test_ranges_come_back_in_order_and_short_at_the_end(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() + b"0123456789")
    a, b = tmp_path / "a", tmp_path / "b"
    ranges = [in_file(b, 0, 3), in_file(a, 5, 7), in_file(b, 9, 20), in_file(a, 0, 1)]
    with LocalFetcher(StoreFolder.at("/"))(ByteRanges.of(ranges)) as found:
        assert list(found) == [b"b01", b"45", b"89", b"a"]


def test_an_absent_file_is_not_found(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    gone = ByteRange(StoredShard(str(tmp_path / "b"), 1, ""), 0, 1)
    wanted = ByteRanges.of([in_file(tmp_path / "a", 0, 1), gone])
    with (
        pytest.raises(MissingShardError) as found,
        LocalFetcher(StoreFolder.at("/"))(wanted),
    ):
        pass
    for problem in (found.value, pickle.loads(pickle.dumps(found.value))):  # noqa: S301  our own
        assert problem.path == str(tmp_path / "b")


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_whose_path_begins_like_another_is_named(number):
    class Gone(Fetcher):
        def __call__(self, ranges):
            raise MissingShardError(ranges.shards[number].path)

    coding = BlockCoding(1024, 1024, 2, is_lz4=True, is_shuffled=True)
    rows = np.array([(0, 0, 100)], coding.row_dtype)
    entry = ShardEntry(
        size_bytes=148,
        crc32="0" * 8,
        index_offset=128,
        index_crc32c="0" * 8,
        chunks=b2a_base64(rows.tobytes(), newline=False).decode(),
    )
    shards = {(0, 0, x): entry for x in range(11)}
    side, shape = (8, 8, 8), (8, 8, 88)
    array = ArraySpec("s", "image", "s", shape, np.dtype("i2"), side, side, {}, "/", coding, shards)
    boxes = [Box((0, 0, 8), (8, 8, 16)), Box((0, 0, 80), (8, 8, 88))]
    reads = [BoxRead(array, box, np.empty(box.shape_zyx, "i2")) for box in boxes]
    name = ("s/c/0/0/1", "s/c/0/0/10")[number]
    with pytest.raises(CorruptStoreError, match=rf"in {name} is gone: its shard is missing"):
        Engine(Gone()).read(reads)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed_again(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    gone = ByteRange(StoredShard(str(tmp_path / "b"), 1, ""), 0, 1)
    ranges = [in_file(tmp_path / "a", 0, 1), gone]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with LocalFetcher(StoreFolder.at("/"))(ByteRanges.of(ranges[:1])):
            pass
        with (
            pytest.raises(FileNotFoundError),
            LocalFetcher(StoreFolder.at("/"))(ByteRanges.of(ranges)),
        ):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10


# Other storage


@pytest.fixture
def served(copied, serve):
    """Serve the copied store; return its URL and the list of its requests."""
    url, requests = serve(copied.parent)
    return f"{url}/{copied.name}", requests


def assert_equal_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
        np.testing.assert_array_equal(one.start_zyx, other.start_zyx)
        assert one.scan_id == other.scan_id


def test_a_store_is_read_over_http(served, store):
    url, requests = served
    remote = spinezarr.open(url)
    xr.testing.assert_identical(remote.table, store.table)
    xr.testing.assert_identical(remote.scan(SCAN).load(), store.scan(SCAN).load())
    wanted = {"batch_size": 2, "foreground": 0.5, "n_samples": 7}
    assert_equal_batches(
        remote.patches((20, 30, 30), **wanted), store.patches((20, 30, 30), **wanted)
    )
    shards = [ranged for path, ranged in requests if "/image/c/" in path]
    assert shards
    assert all(shards), "a shard was fetched whole"


def test_the_error_of_an_absent_store_over_http_says_so(served):
    url, _ = served
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        spinezarr.open(url + "x")
    with pytest.raises(UnknownScanError):
        spinezarr.open(url).scan("absent")


@pytest.mark.parametrize("name", ["image", "label"])
@pytest.mark.parametrize("kept", [None, b"", slice(0, 300), slice(0, -1)])
def test_damage_over_http_is_an_error(served, copied, name, kept):
    path = copied / "scans" / SCAN / name / SHARD
    data = path.read_bytes()[: max(stop for _, stop in needed_spans(copied, name))]
    data = data[kept] if isinstance(kept, slice) else kept
    with replaced(path, data), pytest.raises(CorruptStoreError, match=f"scan '{SCAN}', {name} ch"):
        read(served[0], name)


def test_a_shard_cut_after_the_store_was_opened_is_an_error_over_http(served, copied):
    by_range = RemoteSettings(whole_shard_bytes=0)  # so that the shard is not cached
    reader = StoreReader(served[0], remote=by_range)
    engine, spec = Engine(fetcher_for(reader.objects)), spec_of(reader, "image")
    out = np.empty((1, 1, 1), np.int16)
    engine.read_into(spec, Box((0, 0, 0), (1, 1, 1)), out)
    path = copied / "scans" / SCAN / "image" / SHARD
    with replaced(path, path.read_bytes()[:100]), pytest.raises(CorruptStoreError):
        engine.read_into(spec, Box((0, 63, 63), (1, 64, 64)), out)


def test_a_store_is_read_from_memory(store):
    memory = fsspec.filesystem("memory")
    memory.put(store.url, "/engine-test/ctspine1k.zarr", recursive=True)
    try:
        remote = spinezarr.open("memory://engine-test/ctspine1k.zarr")
        xr.testing.assert_identical(remote.table, store.table)
        assert_equal_batches(remote.patches(24, n_samples=4), store.patches(24, n_samples=4))
        memory.rm(f"/engine-test/ctspine1k.zarr/scans/{SCAN}/image/{SHARD}")
        with pytest.raises(CorruptStoreError, match=f"image chunk .*{SHARD} .*is missing"):
            remote.scan(SCAN).image.load()
    finally:
        memory.rm("/engine-test", recursive=True)


# Memory


def read_all(engine, reads):
    outs = [np.full(box.shape_zyx, 77, spec.dtype) for spec, box in reads]
    engine.read([BoxRead(*read, out) for read, out in zip(reads, outs, strict=True)])
    return outs


@given(st.data())
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("cache_bytes", [1, 300_000, 1 << 30])
def test_a_cache_changes_no_voxel(large, cache_bytes, data):
    reader, stored = large
    engine = Engine(LocalFetcher(StoreFolder.at("/")), cache_bytes=cache_bytes)
    for _ in range(3):
        scans = data.draw(st.lists(st.sampled_from(["deep", "wide"]), min_size=1, max_size=3))
        names = [data.draw(st.sampled_from(["image", "label"])) for _ in scans]
        arrays = [stored[scan][name] for scan, name in zip(scans, names, strict=True)]
        reads = [
            (spec_of(reader, name, scan), data.draw(boxes_in(array.shape)))
            for scan, name, array in zip(scans, names, arrays, strict=True)
        ]
        for out, array, (_, box) in zip(read_all(engine, reads), arrays, reads, strict=True):
            np.testing.assert_array_equal(out, array[box.slices])
        assert engine._cache._size_bytes <= cache_bytes
        kept = sum(voxels.nbytes for voxels in engine._cache._items.values())
        assert kept == engine._cache._size_bytes


def test_cached_chunks_are_not_fetched_again(large, recording_fetcher):
    reader, stored = large
    fetch = recording_fetcher()
    engine, spec = Engine(fetch, cache_bytes=1 << 30), spec_of(reader, "image", "deep")
    box = Box((60, 0, 40), (70, 60, 50))
    assert engine.explain([(spec, box)]).cached_chunks == 0
    read_all(engine, [(spec, box)])
    before, said = len(fetch.calls), engine.explain([(spec, box)])
    assert (said.cached_chunks, said.chunks, said.requests, said.fetched_bytes) == (4, 0, 0, 0)
    (out,) = read_all(engine, [(spec, box)])
    assert len(fetch.calls) == before
    np.testing.assert_array_equal(out, stored["deep"]["image"][box.slices])


def test_a_read_fetches_what_explain_announces(large, recording_fetcher):
    reader, _ = large
    fetch = recording_fetcher()
    image, label = spec_of(reader, "image", "deep"), spec_of(reader, "label", "deep")
    boxes = [
        (image, Box((0, 0, 0), (70, 50, 50))),
        (image, Box((60, 40, 40), (100, 60, 90))),
        (label, Box((0, 0, 0), (140, 60, 100))),
    ]
    engine = Engine(fetch)
    said = engine.explain(boxes)
    assert not fetch.calls
    read_all(engine, boxes)
    chunks = fetch.fetched
    assert said.chunks == len(chunks) == len(set(chunks))
    assert said.fetched_bytes == sum(item.stop - item.start for item in chunks)
    assert said.shards == len({item.shard for item in chunks})
    assert (said.boxes, said.scans, said.shared_chunks) == (3, 1, 2)
    assert said.chunks + said.background_chunks == 8 + 4 - 2 + 24
    assert said.background_chunks > 0
    assert said.voxel_bytes == 2 * (70 * 50 * 50 + 40 * 20 * 50) + 140 * 60 * 100
    assert said.amplification == said.decoded_bytes / said.voxel_bytes
    assert "34 chunks" in str(said)
    assert said.requests == len(chunks)


def test_threads_share_the_chunks_of_one_call(large):
    reader, stored = large
    spec, whole = spec_of(reader, "image", "wide"), Box((0, 0, 0), WIDE)
    for threads in (1, 2, 3, 100):
        out = np.full(WIDE, 77, np.int16)
        Engine(LocalFetcher(StoreFolder.at("/"))).read([BoxRead(spec, whole, out)], threads=threads)
        np.testing.assert_array_equal(out, stored["wide"]["image"])


def test_a_pickled_engine_keeps_its_limits():
    engine = pickle.loads(pickle.dumps(Engine(LocalFetcher(StoreFolder.at("/")), cache_bytes=5)))  # noqa: S301
    assert engine.cache_bytes == 5


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_an_output_of_another_shape_is_refused(large, cache_bytes):
    spec = spec_of(large[0], "image", "wide")
    engine = Engine(LocalFetcher(StoreFolder.at("/")), cache_bytes=cache_bytes)
    with pytest.raises(ValueError, match="an output of shape"):
        engine.read_into(spec, Box((0, 0, 0), (1, 1, 2)), np.empty((1, 2, 1), "i2"))


def test_shards_that_end_while_they_are_read_are_errors(copied):
    """The shards are cut after the engine has read their index."""
    reader = StoreReader(str(copied))
    engine, spec = Engine(LocalFetcher(StoreFolder.at("/"))), spec_of(reader, "image")
    whole = Box((0, 0, 0), spec.shape_zyx)
    out = np.empty(spec.shape_zyx, spec.dtype)
    engine.read_into(spec, whole, out)
    path = copied / "scans" / SCAN / "image" / SHARD
    data = path.read_bytes()
    for kept in (0, 10, len(data) // 2):
        with replaced(path, data[:kept]), pytest.raises(CorruptStoreError, match="image chunk"):
            engine.read_into(spec, whole, out)
