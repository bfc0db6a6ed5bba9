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
from spinezarr.store.manifest import ShardEntry, ShardPositions
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.sharding import (
    ABSENT,
    CHUNK_ROW,
    chunk_rows,
    index_bytes,
    parse_index,
    shard_index,
)

N_CHUNKS, CHUNK_BYTES = 6, 100
texts = st.text(st.characters(codec="utf-8"))
chunks_of_shards = st.dictionaries(st.integers(0, N_CHUNKS - 1), st.binary(min_size=4, max_size=50))


def entry_of(rows, size_bytes=None, n_chunks=N_CHUNKS):
    """Describe a shard of these rows ``(position, size, crc32c)``."""
    table = np.array(rows, CHUNK_ROW)
    return ShardEntry(
        size_bytes=(
            int(table["size"].sum()) + index_bytes(n_chunks) if size_bytes is None else size_bytes
        ),
        crc32="00000000",
        index_crc32c="00000000",
        chunks=b64encode(table.tobytes()).decode(),
    )


@given(chunks_of_shards)
def test_the_table_of_a_shard_equals_its_index(chunks):
    shard = assemble_shard(chunks, N_CHUNKS)
    index = shard_index({position: len(chunk) for position, chunk in chunks.items()}, N_CHUNKS)
    ends = [int.from_bytes(chunks[position][-4:], "little") for position in sorted(chunks)]
    rows = entry_of(chunk_rows(index, ends), len(shard)).chunk_rows
    assert rows["crc32c"].tolist() == ends
    found, offset = np.full((N_CHUNKS, 2), ABSENT, np.uint64), 0
    for position, size, _ in rows.tolist():
        found[position] = offset, size
        offset += size
    np.testing.assert_array_equal(found, parse_index(index, N_CHUNKS, len(shard)))


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([(0, 9, 1), (0, 9, 2)], 0, "not in order"),
        ([(3, 9, 1), (2, 9, 2)], 0, "not in order"),
        ([(5, 9, 1), (6, 9, 2)], 0, "ascending positions below 6"),
        ([(2**32 - 1, 9, 1)], 0, "ascending positions below 6"),
        ([(0, 9, 1), (1, 0, 2)], 0, "0 bytes"),
        ([(0, 9, 1), (1, 9, 2)], 1, "118 bytes, expected 119"),
        ([(0, 9, 1), (1, 9, 2)], -1, "118 bytes, expected 117"),
        ([], 1, "100 bytes, expected 101"),
        ([(i, 2**32 - 1, 0) for i in range(3)], -2 * 2**32, "at most 120"),
        ([(0, 121, 0)], 0, "at most 120"),
    ],
)
def test_a_table_that_fits_no_shard_is_refused(rows, more, message):
    whole = entry_of(rows)
    entry = whole.model_copy(update={"size_bytes": whole.size_bytes + more})
    with pytest.raises(DamagedMetadataError, match=message):
        entry.check(ShardPositions.of((1, 2, 3), (1, 2, 3)), CHUNK_BYTES, is_full=False)


@pytest.mark.parametrize(("is_full", "positions"), [(False, [1, 4]), (True, [1]), (True, [0, 1])])
def test_tables_list_chunks_of_the_array_and_those_of_an_image_list_all(is_full, positions):
    entry = entry_of([(position, 9, 0) for position in positions])
    places = ShardPositions.of((1, 1, 2), (2, 1, 3))
    assert (places.n, places.used.tolist()) == (N_CHUNKS, [0, 1])
    with (
        pytest.raises(DamagedMetadataError, match="the 2 that lie in")
        if positions != [0, 1]
        else nullcontext()
    ):
        entry.check(places, CHUNK_BYTES, is_full=is_full)


@pytest.mark.parametrize(
    "text", ["A", "A" * 15, "A" * 17, "A" * 12 + "===="[:4], "-" * 16, "é" * 16]
)
def test_a_table_is_whole_rows_in_base64(text):
    with pytest.raises(ValidationError, match="chunks"):
        ShardEntry(size_bytes=1, crc32="0" * 8, index_crc32c="0" * 8, chunks=text)


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
