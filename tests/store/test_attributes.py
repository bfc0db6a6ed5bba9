"""Tests of the manifest's tables of shards, and of the seal on a group's metadata."""

import json
from base64 import b64encode
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from shards import assemble_shard

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.blocks import BlockCoding, ChunkFrame, encode_blocks
from spinezarr.store.layout import BloscCodecSpec
from spinezarr.store.manifest import ShardEntry, ShardPositions
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.sharding import ABSENT, crc32c, index_bytes, parse_index

N_CHUNKS = 6
CODING = BlockCoding(400, 200, 2, is_lz4=True, is_shuffled=True)
"""Two blocks of 100 voxels in a chunk, which has 32 bytes besides its blocks."""
CODEC = BloscCodecSpec("lz4", 1, "shuffle", 200)
texts = st.text(st.characters(codec="utf-8"))


def entry_of(rows, more=0, n_chunks=N_CHUNKS, coding=CODING):
    """Describe a shard of these rows ``(position, voxels_crc32c, block_sizes)``."""
    table = np.array(rows, coding.row_dtype)
    offset = int(table["block_sizes"].sum()) + len(rows) * coding.overhead_bytes + more
    return ShardEntry(
        size_bytes=offset + index_bytes(n_chunks),
        crc32="00000000",
        index_offset=offset,
        index_crc32c="00000000",
        chunks=b64encode(table.tobytes()).decode(),
    )


@given(st.dictionaries(st.integers(0, N_CHUNKS - 1), st.integers(0, 2**32)))
def test_the_table_of_a_shard_equals_its_index(seeds):
    voxels = {
        position: np.random.default_rng(seed).integers(0, 9, 200, np.int16)
        for position, seed in seeds.items()
    }
    chunks = {position: encode_blocks(chunk, CODEC) for position, chunk in voxels.items()}
    shard = assemble_shard(chunks, N_CHUNKS)
    frames = [ChunkFrame.of(chunks[position]) for position in sorted(chunks)]
    table = [frame.row(i)[0] for i, frame in zip(sorted(chunks), frames, strict=True)]
    entry = entry_of(table)
    assert (entry.size_bytes, entry.index_offset) == (
        len(shard),
        len(shard) - index_bytes(N_CHUNKS),
    )
    rows = entry.rows(CODING)
    assert rows["voxels_crc32c"].tolist() == [crc32c(voxels[i]) for i in sorted(voxels)]
    found, offset = np.full((N_CHUNKS, 2), ABSENT, np.uint64), 0
    for position, size in zip(rows["position"], entry.chunk_sizes(CODING).tolist(), strict=True):
        found[position] = offset, size
        offset += size
    index = shard[entry.index_offset :]
    np.testing.assert_array_equal(found, parse_index(index, N_CHUNKS, len(shard)))


def test_a_size_of_a_block_has_two_bytes_if_it_fits_and_four_otherwise():
    for block_bytes, kind in ((1 << 15, "<u2"), (1 << 16, "<u4")):
        for itemsize in (1, 8):
            coding = BlockCoding(1 << 16, block_bytes, itemsize, is_lz4=True, is_shuffled=False)
            sizes = coding.row_dtype["block_sizes"]
            assert sizes.base == kind
            assert sizes.shape == (coding.n_blocks,)
            assert coding.largest_block_bytes <= np.iinfo(sizes.base).max


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([(0, 1, [90, 90]), (0, 2, [90, 90])], 0, "not in order"),
        ([(3, 1, [90, 90]), (2, 2, [90, 90])], 0, "not in order"),
        ([(5, 1, [90, 90]), (6, 2, [90, 90])], 0, "ascending positions below 6"),
        ([(2**32 - 1, 1, [90, 90])], 0, "ascending positions below 6"),
        ([(0, 1, [90, 90]), (1, 2, [90, 0])], 0, "a block of 0 bytes, expected at least"),
        ([(0, 1, [90, 90]), (1, 2, [8, 90])], 0, "a block of 8 bytes, expected at least 9"),
        ([(0, 1, [90, 91]), (1, 2, [92, 93])], 1, "chunks of 430 bytes, expected 431 bytes"),
        ([(0, 1, [90, 91]), (1, 2, [92, 93])], -1, "chunks of 430 bytes, expected 429 bytes"),
        ([], 1, "chunks of 0 bytes, expected 1"),
        ([(i, 0, [2**16 - 1] * 2) for i in range(3)], -3 * 2**17, "at most 208"),
        ([(0, 0, [208, 209])], 0, "a block of 209 bytes, expected at most 208"),
    ],
)
def test_a_table_that_fits_no_shard_is_refused(rows, more, message):
    entry = entry_of(rows).model_copy(update={"index_offset": entry_of(rows, more).index_offset})
    with pytest.raises(DamagedMetadataError, match=message):
        entry.check(ShardPositions.of((1, 2, 3), (1, 2, 3)), CODING, is_full=False)


@pytest.mark.parametrize("more", [-1, 1, 2**30])
def test_chunks_and_index_add_up_to_the_size_of_the_shard(more):
    entry = entry_of([(0, 1, [9, 208]), (1, 2, [90, 90])])
    places = ShardPositions.of((1, 2, 3), (1, 2, 3))
    entry.check(places, CODING, is_full=False)
    other = entry.model_copy(update={"size_bytes": entry.size_bytes + more})
    with pytest.raises(DamagedMetadataError, match=r"chunks and index of \d+ bytes, expected"):
        other.check(places, CODING, is_full=False)


@pytest.mark.parametrize(("is_full", "positions"), [(False, [1, 4]), (True, [1]), (True, [0, 1])])
def test_tables_list_chunks_of_the_array_and_those_of_an_image_list_all(is_full, positions):
    entry = entry_of([(position, 0, [90, 90]) for position in positions])
    places = ShardPositions.of((1, 1, 2), (2, 1, 3))
    assert (places.n, places.used.tolist()) == (N_CHUNKS, [0, 1])
    with (
        pytest.raises(DamagedMetadataError, match="the 2 that lie in")
        if positions != [0, 1]
        else nullcontext()
    ):
        entry.check(places, CODING, is_full=is_full)


@pytest.mark.parametrize("text", ["A", "A" * 15, "A" * 17, "-" * 16, "é" * 16, "AAAA\n"])
def test_a_table_is_base64(text):
    with pytest.raises(ValidationError, match="chunks"):
        ShardEntry(size_bytes=1, crc32="0" * 8, index_offset=0, index_crc32c="0" * 8, chunks=text)


@pytest.mark.parametrize("text", ["A" * 8, "A" * 20, "A" * 12 + "AAB=", "A" * 12 + "AAA=" * 2])
def test_a_table_is_whole_rows(text):
    entry = entry_of([]).model_copy(update={"chunks": text})
    with pytest.raises(DamagedMetadataError, match="rows of chunks"):
        entry.rows(CODING)


@given(st.dictionaries(texts, texts), st.dictionaries(texts, texts))
def test_unsealing_returns_what_was_sealed(attributes, more):
    metadata = {"attributes": attributes, "more": more}
    assert unseal(seal(metadata)) == metadata


def test_a_string_that_looks_like_a_seal_stays_a_string():
    nested = {"columns": {"metadata_crc32c": "00000000"}, "note": '"metadata_crc32c": "00000000"'}
    assert unseal(seal({"attributes": nested})) == {"attributes": nested}


@given(st.data())
def test_a_changed_byte_of_sealed_metadata_is_detected(data):
    metadata = {"attributes": {"a": [1, 2.5], "b": "text"}, "node_type": "group"}
    sealed = seal(metadata)
    at, mask = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(1, 255))
    damaged = sealed[:at] + bytes([sealed[at] ^ mask]) + sealed[at + 1 :]
    try:
        found = unseal(damaged)
    except DamagedMetadataError:
        return
    # Only white space around the seal itself may change.
    assert found == metadata
    assert json.loads(damaged) == json.loads(sealed)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"attributes": "x"}', b'{"attributes": {}}', b"[" * 9999]
)
def test_metadata_without_a_seal_are_refused(data):
    with pytest.raises(DamagedMetadataError):
        unseal(data)
