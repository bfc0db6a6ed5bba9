"""Blocks of a chunk: other readers, parts of a chunk, and blocks in a wrong place."""

import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, combinations, pairwise

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.native_library import NO_KERNEL
from spinezarr.recipe import Recipe
from spinezarr.remote.settings import RemoteSettings
from spinezarr.store import blocks, lz4_encoder
from spinezarr.store.blocks import (
    SMALLEST_BLOCK_BYTES,
    BlockCoding,
    ChunkFrame,
    decode_blocks,
    encode_blocks,
)
from spinezarr.store.folder import StoreFolder
from spinezarr.store.layout import BALANCED, PROFILES, BloscCodecSpec
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import CHECKSUM_BYTES, ChunkDamagedError, crc32c, decode_chunk
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import LocalFetcher, fetcher_for
from spinezarr.stream.read.native import kernel
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti
from spinezarr.verify.store import verify_store

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
CODECS = [codec for profile in PROFILES.values() for codec in (profile.image, profile.label)]
LIBRARY = lz4_encoder._library
PAIRS = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")

codecs = st.sampled_from(CODECS) | st.builds(
    BloscCodecSpec,
    st.sampled_from(["lz4", "lz4hc", "zstd"]),
    st.integers(0, 9),
    st.sampled_from(["noshuffle", "shuffle"]),
    st.sampled_from([0, 8, 64, 120, 256, 1024, 4096, 16 * 1024]),
)


@st.composite
def chunks(draw, max_side=33):
    """Draw a chunk between constant and noise, of any dtype, down to one voxel."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    sides = st.sampled_from([1, 2, 4, 8, 16, 32]) | st.integers(1, max_side)
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=1) | st.tuples(*[sides] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([0, 1, 40, 255]))
    n_bytes = dtype.itemsize * int(np.prod(shape))
    raw = rng.integers(0, most, n_bytes, np.uint8, endpoint=True)
    if draw(st.booleans()):
        raw[: n_bytes // 2] = 7  # some blocks compress, and others do not
    return raw.view(dtype).reshape(shape)  # may hold NaNs of any bit pattern


def offsets_of(frame):
    """Return where the blocks of an encoded chunk begin, and where the last one ends."""
    return list(accumulate(frame.block_sizes, initial=frame.coding.blocks_offset))


def decoded(encoded, first, stop, **changes):
    """Decode the blocks ``first`` to ``stop - 1`` of a chunk, as a reader of the manifest does."""
    frame = ChunkFrame.of(encoded)
    at = offsets_of(frame)
    out = np.empty((stop - first) * frame.coding.block_bytes, np.uint8)
    known = {
        "data": encoded[at[first] : at[stop]],
        "coding": frame.coding,
        "block_sizes": np.array(frame.block_sizes[first:stop]),
        "first_block": first,
        "voxels_crc32c": frame.voxels_crc32c,
    }
    decode_blocks(out=out, **(known | changes))
    return out.tobytes()


# Encoding


@pytest.fixture(scope="module", params=["C", "numcodecs"])
def encoder(request):
    assert LIBRARY() is not None
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numcodecs":
            patch.setattr(lz4_encoder, "_library", lambda: None)
        yield request.param


def test_the_kernel_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(NO_KERNEL, "1")
    assert LIBRARY.__wrapped__() is None


def test_a_library_with_wrong_checksums_does_not_encode(monkeypatch):
    assert LIBRARY.__wrapped__() is not None
    monkeypatch.setattr(lz4_encoder, "crc32c", lambda data: crc32c(data) ^ 1)
    assert LIBRARY.__wrapped__() is None


@given(chunks(), codecs)
@settings(max_examples=300)
def test_a_chunk_comes_back_bit_for_bit(encoder, chunk, codec):
    encoded = encode_blocks(chunk, codec)
    frame = ChunkFrame.of(encoded)
    coding = frame.coding
    assert coding == BlockCoding.of(codec, chunk.nbytes, chunk.itemsize)
    frame.check(encoded, coding)
    assert decoded(encoded, 0, coding.n_blocks) == chunk.tobytes()
    assert frame.voxels_crc32c == crc32c(chunk.tobytes())
    whole = np.empty_like(chunk)
    decode_chunk(encoded, whole)
    assert whole.tobytes() == chunk.tobytes()


@given(chunks(), codecs)
@settings(max_examples=300)
def test_a_chunk_has_the_bytes_that_its_coding_promises(encoder, chunk, codec):
    encoded = encode_blocks(chunk, codec)
    frame = ChunkFrame.of(encoded)
    coding = frame.coding
    assert len(encoded) == sum(frame.block_sizes) + coding.overhead_bytes
    assert min(frame.block_sizes) >= SMALLEST_BLOCK_BYTES
    assert max(frame.block_sizes) <= coding.largest_block_bytes
    (row,) = frame.row(3)
    assert row.dtype == coding.row_dtype
    assert (row["position"], row["voxels_crc32c"]) == (3, frame.voxels_crc32c)
    assert row["block_sizes"].tolist() == list(frame.block_sizes)
    at = offsets_of(frame)
    for number, (start, stop) in enumerate(pairwise(at)):
        streams = []
        position = start
        for _ in range(coding.n_streams):
            (size,) = struct.unpack_from("<I", encoded, position)
            streams.append(size)
            position += 4 + size
        assert position == stop - CHECKSUM_BYTES
        assert all(0 < size <= coding.block_bytes // coding.n_streams for size in streams)
        tag = crc32c(struct.pack("<II", frame.voxels_crc32c, number) + encoded[start:position])
        assert encoded[position:stop] == struct.pack("<I", tag)
    assert encoded[-4:] == struct.pack("<I", crc32c(encoded[:-4]))


@given(chunks(), codecs)
@settings(max_examples=200)
def test_other_readers_of_blosc_decode_the_frame(chunk, codec):
    encoded = encode_blocks(chunk, codec)
    frame = encoded[:-CHECKSUM_BYTES]
    assert blosc.decompress(frame) == chunk.tobytes()
    assert blosc.Blosc(cname="blosclz").decode(frame) == chunk.tobytes()


@given(chunks(), codecs, st.data())
@settings(max_examples=200)
def test_blocks_next_to_each_other_decode_without_the_others(chunk, codec, data):
    encoded = encode_blocks(chunk, codec)
    coding = ChunkFrame.of(encoded).coding
    n, size = coding.n_blocks, coding.block_bytes
    first = data.draw(st.integers(0, n - 1))
    for stop in {first + 1, n, data.draw(st.integers(first + 1, n))}:
        wanted = chunk.tobytes()[first * size : stop * size]
        assert decoded(encoded, first, stop) == wanted


@pytest.mark.parametrize("codec", CODECS)
def test_every_part_of_a_chunk_of_a_profile_decodes_alone(codec):
    shape = BALANCED.chunk_shape_zyx
    chunk = np.random.default_rng(1).normal(0, 30, shape).astype(np.int16)
    chunk[20:40] = 5
    encoded = encode_blocks(chunk, codec)
    coding = ChunkFrame.of(encoded).coding
    assert coding.n_blocks == (1 if codec.cname == "zstd" else chunk.nbytes // codec.blocksize)
    for first, stop in combinations(range(coding.n_blocks + 1), 2):
        size = coding.block_bytes
        assert decoded(encoded, first, stop) == chunk.tobytes()[first * size : stop * size]


@pytest.mark.parametrize("array", ["image", "label"])
def test_c_takes_no_more_bytes_than_numcodecs(array, monkeypatch):
    phantom = make_phantom(PhantomSpec(shape_zyx=(96, 96, 96), levels=("L1", "L2")))
    z, y, x = BALANCED.chunk_shape_zyx
    codec = getattr(BALANCED, array)
    voxels = np.ascontiguousarray(getattr(phantom, array)[16 : 16 + z, 32 : 32 + y, 32 : 32 + x])
    assert voxels.shape == BALANCED.chunk_shape_zyx
    monkeypatch.setattr(lz4_encoder, "_library", LIBRARY)
    mine = encode_blocks(voxels, codec)
    more_tries, one_try = (encode_blocks(voxels, replace(codec, clevel=n)) for n in (9, 1))
    monkeypatch.setattr(blocks, "encode_lz4", lambda *_, **__: None)
    theirs = encode_blocks(voxels, codec)
    assert mine != theirs
    assert len(mine) <= 1.005 * len(theirs)
    assert len(more_tries) <= len(mine) < len(one_try)


def test_chunks_of_many_threads_do_not_mix(encoder):
    rng = np.random.default_rng(7)
    voxels = [rng.integers(0, 3 + i, BALANCED.chunk_shape_zyx, np.int16) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda chunk: encode_blocks(chunk, BALANCED.image), voxels * 2))
    for chunk, encoded in zip(voxels * 2, made, strict=True):
        whole = np.empty_like(chunk)
        decode_chunk(encoded, whole)
        assert np.array_equal(whole, chunk)


def test_noise_is_stored_raw_and_grows_by_a_few_bytes_a_block(encoder):
    noise = np.random.default_rng(2).integers(-(2**15), 2**15, BALANCED.chunk_shape_zyx, np.int16)
    for codec in CODECS:
        encoded = encode_blocks(noise, codec)
        frame = ChunkFrame.of(encoded)
        coding = frame.coding
        assert set(frame.block_sizes) == {coding.largest_block_bytes}
        assert decoded(encoded, 0, coding.n_blocks) == noise.tobytes()


def test_numbers_of_the_other_byte_order_are_stored_as_little_endian():
    chunk = np.arange(600, dtype=">i2").reshape(6, 10, 10)
    assert decoded(encode_blocks(chunk, BALANCED.image), 0, 1) == chunk.astype("<i2").tobytes()
    assert encode_blocks(chunk, BALANCED.image) == encode_blocks(
        chunk.astype("<i2"), BALANCED.image
    )


def test_shuffled_bits_are_refused():
    codec = replace(BALANCED.image, shuffle="bitshuffle")
    with pytest.raises(ValueError, match="shuffled bits"):
        encode_blocks(np.zeros((4, 4, 4), np.int16), codec)


@pytest.mark.parametrize("codec", CODECS, ids=[f"{c.cname}-{c.shuffle}" for c in CODECS])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float64"])
def test_zarr_python_and_tensorstore_read_the_chunk(tmp_path, codec, dtype):
    """The array is not sharded: its only chunk is the file."""
    shape = BALANCED.chunk_shape_zyx
    chunk = np.random.default_rng(3).normal(0, 30, shape).astype(np.int16).astype(dtype)
    chunk[:16] = 0
    noise = chunk[16:32].view(np.uint8)
    noise[...] = np.random.default_rng(4).integers(0, 256, noise.shape)
    path = tmp_path / "chunk.zarr"
    zarr.create_array(
        path,
        shape=shape,
        chunks=shape,
        dtype=dtype,
        compressors=[zarr.codecs.BloscCodec(typesize=chunk.itemsize), zarr.codecs.Crc32cCodec()],
        fill_value=0,
    )
    file = path / "c/0/0/0"
    file.parent.mkdir(parents=True)
    file.write_bytes(encode_blocks(chunk, codec))
    assert zarr.open_array(path, mode="r")[:].tobytes() == chunk.tobytes()
    tensorstore = pytest.importorskip("tensorstore")
    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    assert tensorstore.open(place).result().read().result().tobytes() == chunk.tobytes()


# Blocks of something else

CODEC = BloscCodecSpec("lz4", 5, "shuffle", 1024)


def two_chunks():
    """Return two chunks whose encoded blocks all have equal sizes."""
    one = np.tile(np.arange(128, dtype=np.int16), 32).reshape(8, 16, 32)
    return one, one + 1


def test_a_block_of_another_chunk_is_refused():
    """The other chunk may be another version of the same one."""
    one, other = (encode_blocks(chunk, CODEC) for chunk in two_chunks())
    frames = ChunkFrame.of(one), ChunkFrame.of(other)
    assert frames[0].block_sizes == frames[1].block_sizes
    at = offsets_of(frames[0])
    for first, stop in combinations(range(frames[0].coding.n_blocks + 1), 2):
        data = other[at[first] : at[stop]]
        with pytest.raises(ChunkDamagedError, match=f"in block {first}, expected"):
            decoded(one, first, stop, data=data)
        mixed = one[: at[first]] + data + one[at[stop] :]
        with pytest.raises(ChunkDamagedError, match=f"in block {first}, expected"):
            ChunkFrame.of(mixed).check(mixed, frames[0].coding)


def test_a_block_with_another_number_is_refused():
    """All blocks of the chunk have the same voxels."""
    encoded = encode_blocks(np.full((8, 16, 32), 7, np.int16), CODEC)
    frame = ChunkFrame.of(encoded)
    assert len(set(frame.block_sizes)) == 1
    at = offsets_of(frame)
    for number, other in combinations(range(frame.coding.n_blocks), 2):
        with pytest.raises(ChunkDamagedError, match=f"in block {number}, expected"):
            decoded(encoded, number, number + 1, data=encoded[at[other] : at[other + 1]])
        with pytest.raises(ChunkDamagedError, match=f"in block {other}, expected"):
            decoded(encoded, number, number + 1, first_block=other)


def test_a_block_is_refused_under_another_checksum_of_the_voxels():
    encoded = encode_blocks(two_chunks()[0], CODEC)
    frame = ChunkFrame.of(encoded)
    for bit in range(32):
        with pytest.raises(ChunkDamagedError, match="in block 2, expected"):
            decoded(encoded, 2, 3, voxels_crc32c=frame.voxels_crc32c ^ 1 << bit)


def test_a_block_that_is_cut_short_is_refused():
    encoded = encode_blocks(two_chunks()[0], CODEC)
    at = offsets_of(ChunkFrame.of(encoded))
    for end in range(at[1], at[3]):
        with pytest.raises(ChunkDamagedError, match=r"is cut short: \d+ of \d+ bytes"):
            decoded(encoded, 1, 3, data=encoded[at[1] : end])


def test_a_chunk_with_true_checksums_of_other_voxels_is_refused_as_a_whole():
    """A writer with a fault may seal blocks of voxels other than those it summed."""
    chunk = two_chunks()[0]
    encoded = encode_blocks(chunk, CODEC)
    wrong = resealed(encoded, ChunkFrame.of(encoded).voxels_crc32c ^ 1)
    n_blocks = ChunkFrame.of(wrong).coding.n_blocks
    with pytest.raises(ChunkDamagedError, match="does not decode to the voxels"):
        decoded(wrong, 0, n_blocks)
    assert decoded(wrong, 0, 1) == chunk.tobytes()[:1024]


def resealed(encoded, voxels_crc32c):
    """Return a chunk with another checksum of its voxels, and true checksums of its blocks."""
    frame = ChunkFrame.of(encoded)
    data, at = bytearray(encoded), offsets_of(frame)
    struct.pack_into("<I", data, frame.coding.blocks_offset - 4, voxels_crc32c)
    for number, (start, stop) in enumerate(pairwise(at)):
        content = struct.pack("<II", voxels_crc32c, number) + data[start : stop - 4]
        struct.pack_into("<I", data, stop - 4, crc32c(content))
    struct.pack_into("<I", data, len(data) - 4, crc32c(bytes(data[:-4])))
    return bytes(data)


@given(st.data())
@settings(max_examples=200)
def test_a_changed_start_of_a_chunk_is_refused(data):
    """Anything but the chunk's own checksums may be changed; its blocks stay where they are."""
    encoded = bytearray(encode_blocks(two_chunks()[0], CODEC))
    coding = ChunkFrame.of(encoded).coding
    at = data.draw(st.integers(0, coding.blocks_offset - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ChunkDamagedError):
        ChunkFrame.of(encoded).check(encoded, coding)


@given(st.binary(max_size=200) | st.integers(0, 700))
def test_bytes_that_are_no_chunk_are_refused(content):
    encoded = encode_blocks(two_chunks()[0], CODEC)
    data = encoded[: min(content, len(encoded) - 1)] if isinstance(content, int) else content
    with pytest.raises(ChunkDamagedError):
        ChunkFrame.of(data)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        *((4, n) for n in (0, 1, 2**32 - 1, 8191, 8200)),
        *((8, n) for n in (0, 1, 3, 2**32 - 1, 512, 8192)),
        *((12, n) for n in (0, 16, 2**32 - 1)),
        *((16, n) for n in (0, 47, 53, 2**32 - 1)),
        *((20, n) for n in (0, 52, 2**32 - 1)),
    ],
)
def test_a_false_size_or_start_is_refused(at, value):
    encoded = bytearray(encode_blocks(two_chunks()[0], CODEC))
    coding = ChunkFrame.of(encoded).coding
    struct.pack_into("<I", encoded, at, value)
    with pytest.raises(ChunkDamagedError):
        ChunkFrame.of(encoded).check(encoded, coding)


# In a store

SHAPE = (70, 40, 33)
SHARD = "c/0/0/0"
WAYS = ("kernel", "kernel on fetched bytes", "numcodecs", "cache")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a store of one scan, and return its folder with the voxels of image and mask."""
    folder = tmp_path_factory.mktemp("blocks")
    image = np.random.default_rng(5).normal(0, 40, SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[5:69, 3:38, 2:31] = 20
    affine = np.diag([0.8, 0.8, 1.5, 1.0])
    write_nifti(folder / "raw/a_ct.nii", image, affine, NiftiForm("LPS"))
    write_nifti(folder / "raw/a_seg.nii", label, affine, NiftiForm("LPS", "uint8"))
    out = folder / "served/store.zarr"
    out.parent.mkdir()
    assert not ingest(PAIRS, discover(PAIRS, str(folder / "raw")), str(out)).failed
    return out, {"image": image, "label": label}


@pytest.fixture(scope="module")
def specs(written):
    scan = StoreReader(str(written[0])).scan("a")
    return {"image": scan.image, "label": scan.label}


@contextmanager
def engine_for(way, recording_fetcher):
    """Read in one of the ways; yield the engine, and the fetcher that records what it reads."""
    fetch = recording_fetcher()
    engine = Engine(
        LocalFetcher(StoreFolder.at("/")) if way == "kernel" else fetch,
        cache_bytes=1 << 24 if way == "cache" else 0,
    )
    used = None if way == "numcodecs" else kernel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spinezarr.stream.read.engine.kernel", lambda: used)
        yield engine, fetch


def spans_of(spec, box, *, whole=False):
    """Return first and last byte + 1, by chunk, of the blocks that hold the planes of a box."""
    rows = spec.shards[0, 0, 0].rows(spec.coding)
    chunk_ends = np.cumsum(spec.shards[0, 0, 0].chunk_sizes(spec.coding))
    found = []
    for (position, _, sizes), end in zip(rows, chunk_ends.tolist(), strict=True):
        chunk = Box.at(
            tuple(
                int(i) * n
                for i, n in zip(
                    np.unravel_index(position, spec.chunks_per_shard_zyx),
                    spec.chunk_shape_zyx,
                    strict=True,
                )
            ),
            spec.chunk_shape_zyx,
        )
        inside = chunk.intersect(Box((0, 0, 0), spec.shape_zyx) if whole else box)
        if chunk.intersect(box) is None or inside is None:
            continue
        first = (inside.start_zyx[0] - chunk.start_zyx[0]) // 16
        stop = (inside.stop_zyx[0] - chunk.start_zyx[0] - 1) // 16 + 1
        begin = end - CHECKSUM_BYTES - int(sizes.sum())
        found.append((begin + int(sizes[:first].sum()), begin + int(sizes[:stop].sum())))
    return found


@st.composite
def boxes(draw):
    starts = [draw(st.integers(0, n - 1)) for n in SHAPE]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, SHAPE, strict=True)]
    return Box(tuple(starts), tuple(stops))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["image", "label"])
@given(box=boxes())
@settings(max_examples=40)
def test_a_read_fetches_the_blocks_that_it_needs_and_no_others(
    written, specs, recording_fetcher, name, way, box
):
    spec = specs[name]
    expected = spans_of(spec, box, whole=way == "cache")
    with engine_for(way, recording_fetcher) as (engine, fetch):
        said = engine.explain([(spec, box)])
        found = np.full(box.shape_zyx, 77, spec.dtype)
        engine.read_into(spec, box, found)
    np.testing.assert_array_equal(found, written[1][name][box.slices])
    assert said.fetched_bytes == sum(stop - start for start, stop in expected)
    if way != "kernel":  # the kernel reads files itself
        assert sorted((item.start, item.stop) for item in fetch.fetched) == expected


def test_a_plane_takes_one_block_of_four(specs):
    spec = specs["image"]
    assert (spec.coding.n_blocks, spec.coding.block_bytes) == (4, 32 * 1024)
    engine = Engine(LocalFetcher(StoreFolder.at("/")))
    plane = engine.explain([(spec, Box((20, 0, 0), (21, 32, 32)))])
    chunk = engine.explain([(spec, Box((0, 0, 0), (64, 32, 32)))])
    assert (plane.decoded_bytes, chunk.decoded_bytes) == (32 * 1024, 128 * 1024)
    assert plane.fetched_bytes < 0.27 * chunk.fetched_bytes


def test_the_kernel_reads_nothing_but_the_wanted_blocks(written, specs, tmp_path):
    """All other bytes of the shard are zeros here."""
    out, voxels = written
    spec, box = specs["image"], Box((17, 3, 5), (31, 39, 33))
    path = out / "scans/a/image" / SHARD
    kept, sound = bytearray(path.stat().st_size), path.read_bytes()
    for start, stop in spans_of(spec, box):
        kept[start:stop] = sound[start:stop]
    found = np.zeros(box.shape_zyx, np.int16)
    with replaced(path, bytes(kept)):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(spec, box, found)
    np.testing.assert_array_equal(found, voxels["image"][box.slices])


@pytest.mark.parametrize("gap_bytes", [0, 1 << 20])
def test_a_read_over_http_fetches_the_blocks_that_it_needs(written, proxies, gap_bytes):
    out, voxels = written
    remote = RemoteSettings(
        whole_shard_bytes=0, least_gap_bytes=gap_bytes, most_gap_bytes=gap_bytes
    )
    with proxies.proxy(folder=out.parent) as proxy:
        reader = StoreReader(f"{proxy.url}/{out.name}", remote=remote)
        spec = reader.scan("a").image
        engine = Engine(fetcher_for(reader.objects))
        for box in (Box((20, 3, 4), (21, 5, 6)), Box((10, 3, 4), (40, 40, 33))):
            proxy.reset()
            found = np.zeros(box.shape_zyx, np.int16)
            engine.read_into(spec, box, found)
            np.testing.assert_array_equal(found, voxels["image"][box.slices])
            spans = spans_of(spec, box)
            if gap_bytes:  # all lie close together
                spans = [(spans[0][0], spans[-1][1])]
            asked = [span for _, _, span in proxy.counts().latest]
            assert sorted(asked) == sorted(f"bytes={a}-{b - 1}" for a, b in spans)


def test_a_block_that_arrives_damaged_over_http_is_fetched_again(written, proxies):
    out, voxels = written
    with proxies.proxy(folder=out.parent) as proxy:
        reader = StoreReader(f"{proxy.url}/{out.name}", remote=RemoteSettings(whole_shard_bytes=0))
        spec, box = reader.scan("a").image, Box((20, 3, 4), (21, 5, 6))
        engine = Engine(fetcher_for(reader.objects))
        ((start, stop),) = spans_of(spec, box)
        n_refetched = 0
        for seed in range(12):
            proxy.set(proxies.Conditions(fault_rate=0.4, fault_kinds=("flip",), seed=seed))
            proxy.reset()
            found = np.zeros(box.shape_zyx, np.int16)
            try:
                engine.read_into(spec, box, found)
            except CorruptStoreError:  # it arrived damaged four times
                assert proxy.counts().faults["flip"] == 4
                continue
            np.testing.assert_array_equal(found, voxels["image"][box.slices])
            asked = [span for _, _, span in proxy.counts().latest]
            assert asked == [f"bytes={start}-{stop - 1}"] * (
                1 + proxy.counts().faults.get("flip", 0)
            )
            n_refetched += len(asked) - 1
    assert n_refetched > 2


@contextmanager
def replaced(path, data):
    """Replace the bytes of a file until the context ends."""
    sound = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["image", "label"])
@given(box=boxes(), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_a_flipped_bit_is_refused_if_it_lies_in_a_block_that_a_read_needs(
    written, specs, recording_fetcher, name, way, box, where, bit
):
    out, voxels = written
    path = out / "scans/a" / name / SHARD
    damaged = bytearray(path.read_bytes())
    at = int(where * len(damaged))
    damaged[at] ^= 1 << bit
    spans = spans_of(specs[name], box, whole=way == "cache")
    is_needed = any(start <= at < stop for start, stop in spans)
    found = np.full(box.shape_zyx, 77, specs[name].dtype)
    with replaced(path, damaged), engine_for(way, recording_fetcher) as (engine, _):
        if is_needed:
            with pytest.raises(CorruptStoreError, match=rf"{name} chunk .* has crc32c"):
                engine.read_into(specs[name], box, found)
        else:
            engine.read_into(specs[name], box, found)
            np.testing.assert_array_equal(found, voxels[name][box.slices])


@pytest.mark.parametrize("name", ["image", "label"])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_verify_finds_each_flipped_bit_of_a_shard(written, name, where, bit):
    path = written[0] / "scans/a" / name / SHARD
    damaged = bytearray(path.read_bytes())
    damaged[int(where * len(damaged))] ^= 1 << bit
    with replaced(path, damaged):
        faults = verify_store(str(written[0])).faults
    assert [fault.path for fault in faults] == [f"scans/a/{name}/{SHARD}"]


@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_of_another_version_of_the_scan_is_refused(written, specs, recording_fetcher, way):
    """Its blocks have the same sizes, and lie where those of the expected version lie."""
    out, _ = written
    path, spec = out / "scans/a/image" / SHARD, specs["image"]
    frame = ChunkFrame.of(
        path.read_bytes()[: int(spec.shards[0, 0, 0].chunk_sizes(spec.coding)[0])]
    )
    other = resealed(
        path.read_bytes()[: sum(frame.block_sizes) + spec.coding.overhead_bytes],
        frame.voxels_crc32c ^ 0x10,
    )
    found = np.full((1, 2, 3), 77, np.int16)
    box = Box((50, 1, 2), (51, 3, 5))
    changed = other + path.read_bytes()[len(other) :]
    with replaced(path, changed), engine_for(way, recording_fetcher) as (engine, _):
        with pytest.raises(CorruptStoreError, match=r"image chunk \(0, 0, 0\) .* has crc32c"):
            engine.read_into(spec, box, found)
        faults = verify_store(str(out)).faults
        assert [fault.path for fault in faults] == [f"scans/a/image/{SHARD}"]
