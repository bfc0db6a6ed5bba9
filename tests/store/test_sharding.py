import struct
import tempfile
from itertools import product

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import assemble_shard
from zarr.codecs import BloscCodec, Crc32cCodec

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.layout import BALANCED, BloscCodecSpec
from spinezarr.store.sharding import (
    ABSENT,
    CHECKSUM_BYTES,
    ChunkDamagedError,
    crc32,
    crc32c,
    decode_chunk,
    encode_chunk,
    index_bytes,
    parse_index,
)

CODEC = BALANCED.image
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
CHUNK = np.arange(60, dtype=np.int16).reshape(3, 4, 5) * 7 - 90
LARGE = np.arange(8 * 24 * 24, dtype=np.int16).reshape(8, 24, 24) % 250
"""Large enough for Blosc to compress it."""

specs = st.builds(
    BloscCodecSpec,
    st.sampled_from(["lz4", "lz4hc", "zstd"]),
    st.integers(0, 9),
    st.sampled_from(["noshuffle", "shuffle", "bitshuffle"]),
    st.sampled_from([0, 256, 16 * 1024]),
)


def with_checksum(data):
    return data + crc32c(data).to_bytes(CHECKSUM_BYTES, "little")


def index_of(pairs):
    return with_checksum(np.array(pairs, "<u8").tobytes())


def zarr_form(chunk, shape=None):
    """Return zarr-python's arguments for an array whose chunks are like ``chunk``."""
    blosc = BloscCodec(
        cname=CODEC.cname,
        clevel=CODEC.clevel,
        shuffle=CODEC.shuffle,
        blocksize=CODEC.blocksize,
        typesize=chunk.itemsize,
    )
    return {
        "shape": shape or chunk.shape,
        "chunks": chunk.shape,
        "dtype": chunk.dtype,
        "compressors": [blosc, Crc32cCodec()],
    }


def read_shard(data, n_chunks, template):
    """Return all chunks of a shard, with None for absent ones."""
    index = parse_index(data[-index_bytes(n_chunks) :], n_chunks, len(data))
    found = []
    for offset, size in index.tolist():
        out = None if offset == ABSENT else np.empty_like(template)
        if out is not None:
            decode_chunk(data[offset : offset + size], out)
        found.append(out)
    return found


# The first is the check value of the CRC catalog; the others are from RFC 3720, B.4.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_crc32c_gives_the_published_values(data, expected):
    assert crc32c(data) == expected
    assert crc32c(bytearray(data)) == expected
    assert crc32c(memoryview(data)) == expected
    assert crc32c(np.frombuffer(data, np.uint8).copy()) == expected


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from("<>"), specs)
@settings(deadline=None)
def test_a_chunk_comes_back_bit_for_bit(data, dtype, order, codec):
    stored = np.dtype(dtype).newbyteorder(order)
    chunk = data.draw(hnp.arrays(stored, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
    out = np.full(chunk.shape, 99, dtype)
    decode_chunk(encode_chunk(chunk, codec), out)
    assert out.tobytes() == chunk.astype(dtype).tobytes()


def test_a_chunk_may_be_a_strided_view():
    view = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6).transpose(2, 0, 1)[::-1, ::2]
    out = np.empty(view.shape, np.int16)
    decode_chunk(encode_chunk(view, CODEC), out)
    np.testing.assert_array_equal(out, view)


@given(st.data(), st.sampled_from(["int16", "uint8", "float32"]))
@settings(deadline=None, max_examples=40)
def test_zarr_python_reads_a_shard_as_numpy_would(data, dtype):
    chunk_shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    per_shard = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    shards = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
    shard_shape = tuple(np.multiply(chunk_shape, per_shard).tolist())
    shape = tuple(np.multiply(shard_shape, shards).tolist())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    fill = 7
    expected = np.full(shape, fill, dtype)
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            folder,
            shards=shard_shape,
            fill_value=fill,
            **zarr_form(np.empty(chunk_shape, dtype), shape),
        )
        for shard in product(*map(range, shards)):
            chunks = {}
            for position, within in enumerate(product(*map(range, per_shard))):
                if rng.random() < 0.3:
                    continue
                voxels = rng.integers(0, 200, chunk_shape).astype(dtype)
                chunks[position] = encode_chunk(voxels, CODEC)
                origin = np.multiply(shard, shard_shape) + np.multiply(within, chunk_shape)
                at = tuple(slice(o, o + n) for o, n in zip(origin, chunk_shape, strict=True))
                expected[at] = voxels
            packed = assemble_shard(chunks, len(list(product(*map(range, per_shard)))))
            place = array.store.root / "c" / "/".join(map(str, shard))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(packed)
        np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], expected)


def test_a_shard_is_its_chunks_in_order_and_an_index():
    shard = assemble_shard({2: b"second", 0: b"first"}, 4)
    assert shard.startswith(b"firstsecond")
    index = parse_index(shard[-index_bytes(4) :], 4, len(shard))
    assert index.tolist() == [[0, 5], [ABSENT] * 2, [5, 6], [ABSENT] * 2]
    assert len(shard) == len(b"firstsecond") + index_bytes(4)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_of_a_shard_is_an_error(flip):
    shard = assemble_shard({0: encode_chunk(CHUNK, CODEC), 2: encode_chunk(-CHUNK, CODEC)}, 3)
    first, absent, last = read_shard(shard, 3, CHUNK)
    assert absent is None
    np.testing.assert_array_equal([first, last], [CHUNK, -CHUNK])
    for at in range(len(shard)):
        damaged = bytearray(shard)
        damaged[at] ^= flip
        with pytest.raises((ChunkDamagedError, DamagedMetadataError)):
            read_shard(bytes(damaged), 3, CHUNK)


def test_a_cut_or_lengthened_chunk_is_an_error():
    encoded = encode_chunk(CHUNK, CODEC)
    for length in range(len(encoded)):
        with pytest.raises(ChunkDamagedError):
            decode_chunk(encoded[:length], np.empty_like(CHUNK))
        with pytest.raises(ChunkDamagedError):
            decode_chunk(encoded[length + 1 :], np.empty_like(CHUNK))
    with pytest.raises(ChunkDamagedError):
        decode_chunk(encoded + b"\0", np.empty_like(CHUNK))


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 4, 4), (1, 1, 1)])
def test_a_chunk_of_another_size_is_refused_and_the_output_kept(shape):
    out = np.full(shape, 99, np.int16)
    with pytest.raises(ChunkDamagedError, match=r"holds 120 bytes of voxels, expected \d+"):
        decode_chunk(encode_chunk(CHUNK, CODEC), out)
    assert (out == 99).all()


def test_a_chunk_that_blosc_cannot_decompress_is_refused():
    header = struct.pack("<BBBBIII", 2, 1, 0, 2, CHUNK.nbytes, CHUNK.nbytes, 20)
    with pytest.raises(ChunkDamagedError, match="does not decompress"):
        decode_chunk(with_checksum(header + b"junk"), np.empty_like(CHUNK))


@pytest.mark.parametrize("lie", [-1, 1, 1 << 20, 2**31 - 1, 2**32 - 1])
def test_a_chunk_with_a_false_length_is_refused_and_the_output_kept(lie):
    packed = bytearray(encode_chunk(LARGE, CODEC)[:-CHECKSUM_BYTES])
    said = lie if lie > 1 else len(packed) + lie
    struct.pack_into("<I", packed, 12, said)
    out = np.full_like(LARGE, 99)
    with pytest.raises(ChunkDamagedError, match=f"says that it is {said} bytes long, not"):
        decode_chunk(with_checksum(bytes(packed)), out)
    assert (out == 99).all()


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_a_corrupt_chunk_decodes_alike_whatever_memory_held_before(seed):
    """C-Blosc may return voxels or an error, but the same for any former contents of the output."""
    rng = np.random.default_rng(seed)
    codec = BloscCodecSpec(rng.choice(["lz4", "zstd", "zlib", "blosclz"]), 5, "shuffle", 256)
    packed = bytearray(encode_chunk(LARGE, codec)[:-CHECKSUM_BYTES])
    for _ in range(rng.integers(1, 5)):
        near = rng.choice([16, 32, 200, len(packed)])
        packed[rng.integers(near)] = rng.integers(256)
    struct.pack_into("<I", packed, 4, LARGE.nbytes)
    struct.pack_into("<I", packed, 12, len(packed))
    found = []
    for before in (0xA5, 0x5A):
        raw = np.full(LARGE.nbytes + 128, before, np.uint8)
        out = raw[64:-64].view(LARGE.dtype).reshape(LARGE.shape)
        try:
            decode_chunk(with_checksum(bytes(packed)), out)
        except ChunkDamagedError as problem:
            found.append(str(problem))
        else:
            found.append(out.tobytes())
        assert (raw[:64] == before).all()
        assert (raw[-64:] == before).all()
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_a_shard_equals_the_one_that_zarr_python_writes(tmp_path, dtype):
    chunk = LARGE.astype(dtype)
    array = zarr.create_array(tmp_path, shards=chunk.shape, fill_value=0, **zarr_form(chunk))
    array[:] = chunk
    written = (tmp_path / "c/0/0/0").read_bytes()
    assert assemble_shard({0: encode_chunk(chunk, CODEC)}, 1) == written


def test_the_header_of_a_chunk_names_the_codec():
    _, _, flags, typesize, size, _, packed = struct.unpack_from("<4B3I", encode_chunk(LARGE, CODEC))
    shuffled, memcpyed, format_lz4 = 1 << 0, 1 << 1, 1 << 5
    assert flags & (shuffled | format_lz4) == shuffled | format_lz4
    assert not flags & memcpyed
    assert (typesize, size) == (2, LARGE.nbytes)
    assert packed == len(encode_chunk(LARGE, CODEC)) - CHECKSUM_BYTES


def test_a_chunk_may_end_where_the_index_begins():
    data = index_of([(0, 10), (10, 22)])
    assert parse_index(data, 2, 32 + len(data)).tolist() == [[0, 10], [10, 22]]


@pytest.mark.parametrize(
    "pair", [(10, 23), (33, 0), (0, ABSENT), (2**63, 2**63), (ABSENT - 1, 2), (2**64 - 32, 32)]
)
def test_an_index_that_points_outside_its_shard_is_refused(pair):
    data = index_of([(0, 10), pair])
    with pytest.raises(DamagedMetadataError, match="outside of the shard"):
        parse_index(data, 2, 32 + len(data))


@pytest.mark.parametrize("length", [0, 3, 4, 19, 20, 35, 37])
def test_an_index_of_another_length_is_refused(length):
    data = (index_of([(0, 1), (1, 1)]) + b"\0")[:length]
    with pytest.raises(DamagedMetadataError, match=rf"^{length} bytes, expected 36"):
        parse_index(data, 2, 100)


def test_the_crc32_of_chunks_with_checksums_differs_and_their_crc32c_does_not():
    one, other = with_checksum(b"one chunk"), with_checksum(b"and other")
    assert crc32c(one) == crc32c(other)
    assert crc32(one) != crc32(other)
