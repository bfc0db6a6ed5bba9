"""The kernel against numcodecs and NumPy, with valid chunks and with forged chunks and tables.

As a program (``make fuzz-kernel``) this module runs many random cases: in Python on the installed
kernel, and in C, with forged tables too, on one built with sanitizers.
"""

import argparse
import base64
import ctypes
import math
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from threading import local

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.native_library import NO_KERNEL
from spinezarr.store.blocks import BlockCoding, ChunkFrame, encode_blocks
from spinezarr.store.folder import StoreFolder
from spinezarr.store.layout import BALANCED, FAST, LARGEST_CHUNK_BYTES, BloscCodecSpec
from spinezarr.store.manifest import ShardEntry
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import (
    CHECKSUM_BYTES,
    ChunkDamagedError,
    crc32,
    crc32c,
    decompress,
    shard_index,
)
from spinezarr.stream.read import native
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import LocalFetcher
from spinezarr.stream.read.native import (
    CHUNKS,
    DONE,
    NOT_TRIED,
    PIECES,
    Tables,
    address,
    encoding_number,
    output_table,
)

UNKNOWN, DAMAGED = 1, 2
"""Statuses of kernel.c."""
DTYPES = ("u1", "i2", "u2", "i4", "f4", "f8", "i8")
GUARD = 64
UNTOUCHED = 0xA5
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


def voxels_of(rng, shape, dtype):
    """Return voxels that compress well, badly, or well in some parts only."""
    kind = rng.integers(5)
    n = int(np.prod(shape))
    if kind == 0:
        values = rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    elif kind == 1:
        values = np.repeat(rng.integers(0, 200, n), rng.integers(1, 90, n))[:n].astype(dtype)
    elif kind == 2:  # matches at every small offset
        period = rng.integers(1, 70)
        values = np.resize(rng.integers(0, 250, period), n).astype(dtype)
    elif kind == 3:
        values = (rng.normal(0, 30, n) - 100).astype(np.int16).astype(dtype)
    else:
        values = np.zeros(n, dtype)
    return values.reshape(shape)


def lz4_stream(rng, size):
    """Make a valid LZ4 stream, with lengths and offsets that no compressor would choose.

    Returns
    -------
    bytes, bytes
        The stream, and the ``size`` bytes that it decodes to.
    """
    stream, content = bytearray(), bytearray()

    def longer(length):
        if length >= 15:
            stream.extend([255] * ((length - 15) // 255) + [(length - 15) % 255])

    while True:
        room = size - len(content) - 12  # where the last match may begin (lz4_Block_format.md)
        literals = int(rng.choice([0, 1, 2, 14, 15, 16, 31, 32, 33, 269, 270, 271, 600]))
        if literals >= room or (not literals and not content):
            break
        match = int(rng.choice([4, 5, 18, 19, 20, 63, 64, 65, 68, 96, 97, 273, 274, 600]))
        match = max(4, min(match, room - literals + 7))
        stream.append(min(literals, 15) << 4 | min(match - 4, 15))
        longer(literals)
        content += (new := rng.integers(0, 256, literals, np.uint8).tobytes())
        stream += new
        near = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65535, int(rng.integers(1, 1 << 16))]
        offset = min(int(rng.choice(near)), len(content))
        stream += offset.to_bytes(2, "little")
        longer(match - 4)
        piece = bytes(content[-offset:])
        content += (piece * (match // offset + 1))[:match]
    literals = size - len(content)
    stream.append(min(literals, 15) << 4)
    longer(literals)
    content += (new := rng.integers(0, 256, literals, np.uint8).tobytes())
    return bytes(stream + new), bytes(content)


def forged_blocks(rng, coding):
    """Make blocks of streams that no compressor would make, and the bytes that they decode to.

    Returns
    -------
    list of bytes, bytes
        The streams of each block, each with its size before it; the decoded chunk.
    """
    blocks, contents = [], []
    for _ in range(coding.n_blocks):
        streams, parts = b"", []
        size = coding.block_bytes // coding.n_streams
        for _ in range(coding.n_streams):
            stream, content = lz4_stream(rng, size)
            if len(stream) >= size:  # kept as it is
                stream = content
            streams += struct.pack("<I", len(stream)) + stream
            parts.append(content)
        content = b"".join(parts)
        if coding.is_shuffled:
            items = np.frombuffer(content, np.uint8).reshape(coding.itemsize, -1)
            content = items.T.tobytes()
        blocks.append(streams)
        contents.append(content)
    return blocks, b"".join(contents)


@dataclass
class Encoded:
    """Blocks without their checksums, as somebody could have written them."""

    coding: BlockCoding
    blocks: list[bytes]
    voxels_crc32c: int

    @classmethod
    def of(cls, encoded):
        """Take an encoded chunk apart."""
        frame = ChunkFrame.of(encoded)
        ends = np.cumsum([frame.coding.blocks_offset, *frame.block_sizes]).tolist()
        blocks = [encoded[a : b - CHECKSUM_BYTES] for a, b in pairwise(ends)]
        return cls(frame.coding, blocks, frame.voxels_crc32c)

    def block(self, number):
        """Return a block with its checksum."""
        content = struct.pack("<II", self.voxels_crc32c, number) + self.blocks[number]
        return self.blocks[number] + struct.pack("<I", crc32c(content))

    def decoded(self, first, stop):
        """Decode some blocks with numcodecs; None if it refuses them."""
        parts = [self.block(number) for number in range(first, stop)]
        start = 16 + 4 * len(parts)
        *starts, end = accumulate(map(len, parts), initial=start)
        header = self.coding.header(len(parts), end)
        frame = header + struct.pack(f"<{len(starts)}I", *starts) + b"".join(parts)
        out = np.empty(len(parts) * self.coding.block_bytes, np.uint8)
        try:
            decompress(frame, out)
        except ChunkDamagedError:
            return None
        return out.tobytes()


class Case:
    """A chunk, its blocks, and some boxes of it with guarded outputs."""

    def __init__(self, rng):
        self.rng = rng
        self.shape = tuple(rng.integers(1, [24, 40, 60]).tolist())
        self.dtype = np.dtype("<" + rng.choice(DTYPES))
        self.voxels = voxels_of(rng, self.shape, self.dtype)
        self.pieces = [self._piece() for _ in range(rng.integers(1, 4))]

    def _piece(self):
        start = [int(self.rng.integers(n)) for n in self.shape]
        stop = [
            int(self.rng.integers(a + 1, n + 1)) for a, n in zip(start, self.shape, strict=True)
        ]
        if self.rng.random() < 0.2:
            start, stop = [0, 0, 0], list(self.shape)
        size = np.subtract(stop, start)
        step = self.rng.integers(1, 3, 3)
        around = np.full((*(size * step)[:2], size[2] * step[2]), 0, self.dtype)
        raw = np.full(around.nbytes + 2 * GUARD, UNTOUCHED, np.uint8)
        view = raw[GUARD : GUARD + around.nbytes].view(self.dtype).reshape(around.shape)
        out = view[:: step[0], :: step[1], :: step[2]]
        if self.rng.random() < 0.3:
            out = out[:, ::-1]
        if self.rng.random() < 0.2:
            out = out[:, :, ::-1]
        return raw, out, start, stop

    def encoded(self):
        """Encode the chunk with random options; return also whether the kernel must decode it."""
        rng = self.rng
        n_blocks = [n for n in range(1, 257) if self.voxels.size % n == 0]
        block_bytes = self.voxels.nbytes // int(rng.choice([1, *n_blocks]))
        shuffle = str(rng.choice(["noshuffle", "shuffle"]))
        if rng.random() < 0.25:
            shuffled = shuffle == "shuffle"
            coding = BlockCoding(
                self.voxels.nbytes, block_bytes, self.dtype.itemsize, True, shuffled
            )
            blocks, content = forged_blocks(rng, coding)
            self.voxels = np.frombuffer(content, self.dtype).reshape(self.shape)
            return Encoded(coding, blocks, crc32c(content)), True
        cname = str(rng.choice(["lz4", "lz4hc", "lz4", "lz4hc", "zstd"]))
        codec = BloscCodecSpec(cname, int(rng.integers(0, 10)), shuffle, block_bytes)
        return Encoded.of(encode_blocks(self.voxels, codec)), cname != "zstd"

    def wanted_blocks(self, coding):
        """Return the first block that a piece needs, and one past the last."""
        first = [np.ravel_multi_index(start, self.shape) for _, _, start, _ in self.pieces]
        last = [
            np.ravel_multi_index(np.subtract(stop, 1), self.shape) for _, _, _, stop in self.pieces
        ]
        per_block = coding.block_bytes // coding.itemsize
        return int(min(first)) // per_block, int(max(last)) // per_block + 1

    def tables(self, encoded, first=None, stop=None):
        """Return the tables for reading the blocks ``first`` to ``stop - 1``, and their bytes."""
        wanted = self.wanted_blocks(encoded.coding)
        first = wanted[0] if first is None else first
        stop = wanted[1] if stop is None else stop
        parts = [encoded.block(number) for number in range(first, stop)]
        # The bytes are an allocation of their own, so that a read past their end is seen.
        held = np.frombuffer(b"".join(parts), np.uint8)
        starts = np.zeros(
            (2, encoded.coding.n_blocks + 1), np.int64
        )  # the second row is the chunk's
        starts[1, first : stop + 1] = list(accumulate(map(len, parts), initial=1000))
        row = np.zeros(1, CHUNKS)
        row["data"], row["size"] = address(held), held.nbytes
        row["n_pieces"], row["itemsize"] = len(self.pieces), self.dtype.itemsize
        row["shape_zyx"], row["block_bytes"] = self.shape, encoded.coding.block_bytes
        row["first_block"], row["n_blocks"] = first, stop - first
        row["first_start"] = starts.shape[1] + first
        row["encoding"] = encoding_number(encoded.coding)
        row["voxels_crc32c"], row["status"] = encoded.voxels_crc32c, NOT_TRIED
        pieces = np.zeros(len(self.pieces), PIECES)
        for number, (piece, (_, out, start, _)) in enumerate(zip(pieces, self.pieces, strict=True)):
            piece["output"] = number
            piece["within_chunk_zyx"], piece["shape_zyx"] = start, out.shape
        outputs = output_table([out for _, out, _, _ in self.pieces])
        return Tables(row, pieces, outputs, starts, self.voxels.nbytes), held

    def run(self, kernel, encoded, first=None, stop=None):
        """Fill the pieces; return the status."""
        tables, held = self.tables(encoded, first, stop)
        kernel.fill(tables, 0, 1)
        del held
        return int(tables.chunks["status"][0])

    def check_outputs(self):
        for _, out, start, stop in self.pieces:
            wanted = self.voxels[tuple(map(slice, start, stop))]
            assert out.tobytes() == wanted.tobytes()

    def check_guards(self):
        for raw, out, _, _ in self.pieces:
            kept = out.tobytes()
            out.view(f"V{self.dtype.itemsize}")[...] = bytes([UNTOUCHED]) * self.dtype.itemsize
            assert (raw == UNTOUCHED).all(), "written outside the output"
            out.view(f"V{self.dtype.itemsize}")[...] = np.frombuffer(
                kept, f"V{self.dtype.itemsize}"
            ).reshape(out.shape)


def check_valid(kernel, seed):
    rng = np.random.default_rng(seed)
    case = Case(rng)
    encoded, known = case.encoded()
    n_blocks, block_bytes = encoded.coding.n_blocks, encoded.coding.block_bytes
    first, stop = case.wanted_blocks(encoded.coding)
    if rng.random() < 0.5:  # blocks that nobody wants
        first, stop = int(rng.integers(first + 1)), int(rng.integers(stop, n_blocks + 1))
    status = case.run(kernel, encoded, first, stop)
    assert (status == DONE) == known
    expected = case.voxels.tobytes()[first * block_bytes : stop * block_bytes]
    assert encoded.decoded(first, stop) == expected
    if known:
        case.check_outputs()
    case.check_guards()


def check_damaged(kernel, seed):
    """Change bytes, correct the checksum, and check that nothing outside the memory is touched.

    Changed blocks that numcodecs decodes too must give the same voxels.
    """
    rng = np.random.default_rng(seed)
    case = Case(rng)
    encoded, _ = case.encoded()
    first, stop = case.wanted_blocks(encoded.coding)
    for _ in range(rng.integers(1, 4)):
        number = int(rng.integers(first, stop))
        encoded.blocks[number] = changed_bytes(rng, encoded.blocks[number])
    status, found = case.run(kernel, encoded), encoded.decoded(first, stop)
    if status == DONE and found is not None:
        block_bytes = encoded.coding.block_bytes
        content = bytearray(case.voxels.tobytes())
        content[first * block_bytes : stop * block_bytes] = found
        case.dtype = np.dtype(f"V{case.dtype.itemsize}")
        case.voxels = np.frombuffer(content, case.dtype).reshape(case.shape)
        case.check_outputs()
    case.check_guards()


def changed_bytes(rng, block):
    changed = bytearray(block)
    for _ in range(rng.integers(1, 5)):
        near = rng.choice([4, 16, 200, len(changed)])
        at = int(rng.integers(min(near, len(changed))))
        if rng.random() < 0.3 and at + 4 <= len(changed):
            value = rng.choice([0, 1, 15, 16, 255, 2**16, 2**31 - 1, 2**32 - 1, len(changed)])
            struct.pack_into("<I", changed, at, int(value))
        else:
            changed[at] = rng.integers(256)
    if rng.random() < 0.2:
        del changed[1 + int(rng.integers(len(changed))) :]
    if rng.random() < 0.1:
        changed += bytes(int(rng.integers(1, 9)))
    return bytes(changed)


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_boxes_of_any_chunk_equal_those_that_numpy_cuts_out(kernel, seed):
    check_valid(kernel, seed)


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_forged_chunks_write_only_inside_their_outputs(kernel, seed):
    check_damaged(kernel, seed)


@pytest.mark.parametrize("profile", [BALANCED, FAST])
def test_the_kernel_decodes_chunks_of_the_default_codec(kernel, profile):
    rng = np.random.default_rng(0)
    for codec, dtype in ((profile.image, "<i2"), (profile.label, "u1")):
        case = Case(rng)
        case.shape, case.dtype = profile.chunk_shape_zyx, np.dtype(dtype)
        case.voxels = voxels_of(rng, case.shape, dtype)
        case.pieces = [case._piece() for _ in range(3)]
        assert case.run(kernel, Encoded.of(encode_blocks(case.voxels, codec))) == DONE
        case.check_outputs()
        case.check_guards()


def of_four_blocks(**options):
    """Return a chunk of four blocks of six planes, a box in the middle two, and its blocks."""
    case = Case(np.random.default_rng(5))
    case.shape, case.dtype = (24, 40, 60), np.dtype("<i2")
    case.voxels = np.resize(np.arange(200, dtype="<i2"), case.shape)
    out = np.zeros((6, 30, 40), "<i2")
    case.pieces = [(None, out, [9, 3, 5], [15, 33, 45])]
    codec = BloscCodecSpec("lz4", 5, "shuffle", case.voxels.nbytes // 4)
    return case, Encoded.of(encode_blocks(case.voxels, replace(codec, **options)))


def status_of(kernel, tables):
    kernel.fill(tables, 0, 1)
    return int(tables.chunks["status"][0])


def test_a_read_needs_only_the_blocks_with_wanted_voxels(kernel):
    case, encoded = of_four_blocks()
    assert case.wanted_blocks(encoded.coding) == (1, 3)
    for first, stop in combinations(range(5), 2):
        case.pieces[0][1][...] = 0
        status = case.run(kernel, encoded, first, stop)
        if first <= 1 and stop >= 3:
            assert status == DONE
            case.check_outputs()
        else:
            assert status == DAMAGED
            assert not case.pieces[0][1].any()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_wrong_checksum_is_detected(kernel, codec):
    case, encoded = of_four_blocks(cname=codec)
    for number in (1, 2):
        for bit in (0, 31):
            tables, held = case.tables(encoded)
            changed = held.copy()
            at = len(encoded.block(1)) if number == 1 else held.nbytes
            changed[at - 1 if bit else at - 4] ^= 1 << bit % 8
            tables.chunks["data"] = address(changed)
            assert status_of(kernel, tables) == (DAMAGED if codec == "lz4" else UNKNOWN)
    tables, held = case.tables(encoded)
    tables.chunks["voxels_crc32c"] ^= 1
    assert status_of(kernel, tables) != DONE


@pytest.mark.parametrize("wrong", ["another chunk", "another number"])
def test_blocks_of_something_else_are_detected(kernel, wrong):
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    assert len({len(encoded.block(number)) for number in range(4)}) == 1
    if wrong == "another chunk":
        other = Encoded(encoded.coding, encoded.blocks, encoded.voxels_crc32c ^ 1)
        data = other.block(1) + other.block(2)
    else:
        data = encoded.block(2) + encoded.block(1)
    changed = np.frombuffer(data, np.uint8)
    assert changed.nbytes == held.nbytes
    tables.chunks["data"] = address(changed)
    assert status_of(kernel, tables) == DAMAGED


BLOCK = 6 * 40 * 60 * 2
"""Bytes of a block of :func:`of_four_blocks`."""


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        *(("itemsize", n) for n in (0, 1, 4, 8, 9, -2, 2**40)),
        *(("block_bytes", n) for n in (0, -1, 1, 3, BLOCK - 2, BLOCK + 2, BLOCK // 2, BLOCK * 2)),
        *(("block_bytes", n) for n in (BLOCK * 4, BLOCK * 8, 2**31, 2**62, -(2**63))),
        *(("first_block", n) for n in (-1, 0, 2, 3, 4, 2**32 + 1, 2**62, -(2**63))),
        *(("n_blocks", n) for n in (0, -1, 1, 3, 4, 2**32 + 2, 2**62, 2**63 - 1)),
        *(("first_start", n) for n in (-1, 0, 5, 7, 8, 10, 2**61, 2**63 - 1, -(2**63))),
        *(("size", n) for n in (0, 8, -1, 2**62)),
        *(("n_pieces", n) for n in (0, -1, 2, 2**61)),
        *(("first_piece", n) for n in (-1, 1, 2**61)),
        *(("encoding", n) for n in (0, 3, -1, 2**31 - 1)),
        *(("voxels_crc32c", n) for n in (0, 2**32 - 1)),
    ],
)
def test_a_false_number_in_the_tables_is_refused(kernel, field, lie):
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    tables.chunks[field] = lie
    assert status_of(kernel, tables) in {DAMAGED, UNKNOWN}
    del held


@pytest.mark.parametrize("more", [-9, -1, 1, 9])
def test_the_blocks_must_have_just_the_bytes_that_are_there(kernel, more):
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    longer = np.append(held, np.zeros(9, np.uint8))
    tables.chunks["data"] = address(longer)
    tables.chunks["size"] += more
    assert status_of(kernel, tables) == DAMAGED


@pytest.mark.parametrize(
    "change",
    [
        lambda starts: starts.__setitem__(1, starts[0] - 9),
        lambda starts: starts.__setitem__(1, starts[2] + 9),
        lambda starts: starts.__setitem__(1, starts[0]),
        lambda starts: starts.__setitem__(1, starts[0] + 8),
        lambda starts: starts.__setitem__(1, starts[0] + 9),
        lambda starts: starts.__setitem__(1, starts[1] + 1),
        lambda starts: starts.__setitem__(1, -(2**63)),
        lambda starts: starts.__setitem__(1, 2**63 - 1),
        lambda starts: starts.__setitem__(0, starts[0] - 1),
        lambda starts: starts.__setitem__(2, starts[2] + 1),
        lambda starts: starts.__setitem__(slice(None), starts - 1001),
        lambda starts: starts.__setitem__(slice(None), starts[::-1].copy()),
        lambda starts: starts.fill(0),
        lambda starts: starts.fill(-(2**63)),
    ],
)
def test_starts_that_do_not_fit_together_are_refused(kernel, change):
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    change(tables.starts[1, 1:4])
    assert status_of(kernel, tables) == DAMAGED
    del held


@pytest.mark.parametrize(("first", "numbers"), [(-1, (0, 0, 1, 2)), (1, (1, 2, 3, 3))])
def test_blocks_outside_the_chunk_are_refused(kernel, first, numbers):
    """They have a place and a size, and nobody wants them."""
    case, encoded = of_four_blocks()
    tables, _ = case.tables(encoded)
    parts = [encoded.block(number) for number in numbers]
    held = np.frombuffer(b"".join(parts), np.uint8)
    tables.starts[0] = list(accumulate(map(len, parts), initial=0))
    for field, value in {"first_block": first, "n_blocks": 4, "first_start": 0}.items():
        tables.chunks[field] = value
    tables.chunks["data"], tables.chunks["size"] = address(held), held.nbytes
    assert status_of(kernel, tables) == DAMAGED


def test_a_block_of_a_part_of_a_voxel_is_refused(kernel):
    case = Case(np.random.default_rng(0))
    case.shape, case.dtype = (1, 3, 4), np.dtype("<i2")
    case.voxels = np.zeros(case.shape, case.dtype)
    case.pieces = [(None, np.zeros((1, 1, 1), "<i2"), [0, 0, 0], [1, 1, 1])]
    coding = BlockCoding(24, 3, 2, is_lz4=True, is_shuffled=False)
    blocks = [struct.pack("<I", 3) + b"abc"] * 8
    assert case.run(kernel, Encoded(coding, blocks, 0)) == DAMAGED


def test_starts_count_from_anywhere(kernel):
    case, encoded = of_four_blocks()
    for origin in (-1000, 0, 2**62):
        tables, held = case.tables(encoded)
        tables.starts[1, 1:4] += origin
        assert status_of(kernel, tables) == DONE
        del held


@pytest.mark.parametrize("size", [0, 2**31, 2**32 - 1, 14_401, "one more", "one less"])
@pytest.mark.parametrize("stream", [0, 1])
def test_a_false_size_of_a_stream_is_refused(kernel, stream, size):
    case, encoded = of_four_blocks()
    assert encoded.coding.n_streams == 2
    block = bytearray(encoded.blocks[1])
    at = 4 + int.from_bytes(block[:4], "little") if stream else 0
    right = int.from_bytes(block[at : at + 4], "little")
    said = {"one more": right + 1, "one less": right - 1}.get(size, size)
    struct.pack_into("<I", block, at, said)
    encoded.blocks[1] = bytes(block)
    assert case.run(kernel, encoded) == DAMAGED


def test_bytes_after_the_streams_of_a_block_are_refused(kernel):
    case, encoded = of_four_blocks()
    encoded.blocks[1] += b"\0"
    assert case.run(kernel, encoded) == DAMAGED


@given(st.binary(max_size=7000))
@settings(deadline=None)
def test_checksums_with_and_without_the_cpu_instruction_agree(kernel, data):
    assert kernel.crc32c(data, by_table=True) == crc32c(data)
    assert kernel.crc32c(data, by_table=False) == crc32c(data)
    long = data * 3
    assert kernel.crc32c(long, by_table=False) == crc32c(long)


def test_a_kernel_that_decodes_wrongly_is_not_used(kernel, monkeypatch):
    assert kernel.works()
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "version", 0)
        assert not kernel.works()
    fill = kernel._fill

    def fill_and_spoil(*arguments):
        fill(*arguments)
        outputs = arguments[5]
        first_voxel = ctypes.c_uint64.from_address(outputs).value
        ctypes.c_uint8.from_address(first_voxel).value ^= 1

    monkeypatch.setattr(kernel, "_fill", fill_and_spoil)
    assert not kernel.works()


def changed_kernel(folder, text, other):
    """Build the kernel with a text of its sources replaced by another; skip without compiler."""
    compiler = c_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    n_found, sources = 0, []
    headers = ("kernel.h", "processor.h", "resample_rows.h", "tables.h")
    for name in ("kernel.c", "plan.c", "resample.c", *headers):
        source = Path(native.__file__).with_name(name).read_text()
        n_found += source.count(text)
        (folder / name).write_text(source.replace(text, other))
        sources += [str(folder / name)] * name.endswith(".c")
    assert n_found == 1
    library = folder / "libkernel.so"
    flags = ["-O0", "-std=gnu11", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([*compiler, *flags, *sources, "-o", str(library)], check=True)
    found = native.Kernel(library)
    assert found.version == native._VERSION
    return found


@pytest.mark.parametrize(
    "name",
    ["Chunk", "Piece", "Output", "Place", "Array", "Wanted", "Entry", "ShardTable", "Resampling"],
)
def test_a_kernel_with_other_structures_is_not_used(tmp_path, name):
    end = f"}} {name};"
    assert not changed_kernel(tmp_path, end, f"    int64_t more;\n{end}").works()


def test_threads_that_load_the_kernel_at_the_same_time_all_get_it():
    with ThreadPoolExecutor(16) as threads:
        problems = list(threads.map(lambda _: native._load()[1], range(320)))
    assert set(problems) == {""}


def test_a_kernel_that_rounds_once_where_numpy_rounds_twice_is_not_used(tmp_path):
    twice = "to[i] = low[i] + w * (high[i] - low[i]);\n}\n\n/* Interpolates between the first"
    once = twice.replace(
        "low[i] + w * (high[i] - low[i])", "(REAL)(low[i] + (double)w * (high[i] - low[i]))"
    )
    for text, works in ((twice, True), (once, False)):
        folder = tmp_path / str(works)
        folder.mkdir()
        assert changed_kernel(folder, twice, text).works() == works


@pytest.fixture
def no_kernel(monkeypatch):
    """Read without the kernel."""
    monkeypatch.setenv(NO_KERNEL, "1")
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


def contents(url):
    stream = spinezarr.open(url).patches((20, 30, 40), batch_size=2, n_samples=8)
    return [batch.image.tobytes() + batch.label.tobytes() for batch in stream]


def test_reading_without_the_kernel_gives_the_same_voxels(store, request):
    expected = contents(store.url)
    request.getfixturevalue("no_kernel")
    assert not store.patches(8).explain().kernel
    assert contents(store.url) == expected


@pytest.mark.parametrize(
    ("first", "last"), [(-1, 1), (0, 2), (1, 0), (2, 2), (-(2**63), 2**63 - 1)]
)
def test_chunks_outside_the_table_are_not_touched(kernel, first, last):
    starts = np.zeros((1, 2), np.int64)
    tables = Tables(np.zeros(1, CHUNKS), np.zeros(1, PIECES), output_table([]), starts, 64)
    with pytest.raises(ValueError, match="of 1"):
        kernel.fill(tables, first, last)


def test_tables_of_another_form_are_refused():
    chunks, pieces, outputs = np.zeros(4, CHUNKS), np.zeros(4, PIECES), output_table([])
    starts = np.zeros((4, 6), np.int64)
    Tables(chunks, pieces, outputs, starts, 64)
    for wrong in (chunks[::2], chunks.view(np.uint8), chunks.reshape(2, 2), pieces):
        with pytest.raises(ValueError, match="expected one of"):
            Tables(wrong, pieces, outputs, starts, 64)
    with pytest.raises(ValueError, match="expected one of"):
        Tables(chunks, pieces[::2], outputs, starts, 64)
    for wrong in (starts[:, ::2], starts[0], starts.astype("i4"), starts.astype(">i8")):
        with pytest.raises(ValueError, match="expected int64"):
            Tables(chunks, pieces, outputs, wrong, 64)


@pytest.mark.parametrize("dtype", ["O", "O,i8"])
def test_an_output_of_objects_is_refused(dtype):
    with pytest.raises(TypeError, match="expected numbers"):
        output_table([np.empty((2, 2, 2), dtype)])


def test_a_read_only_output_is_refused():
    out = np.zeros((2, 2, 2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        output_table([out])


@pytest.mark.parametrize("decoded_bytes", [-(2**70), -1, 0, 19, LARGEST_CHUNK_BYTES + 1, 2**70])
def test_a_limit_of_chunk_bytes_of_any_size_is_exact(kernel, decoded_bytes, monkeypatch):
    """A chunk above the limit is refused; one just below it is not."""
    monkeypatch.setattr(
        kernel, "_scratch", local()
    )  # the buffer of other tests could be large enough
    voxels = np.arange(20, dtype="u1").reshape(1, 4, 5)
    case = Case(np.random.default_rng(0))
    case.shape, case.dtype, case.voxels = voxels.shape, voxels.dtype, voxels
    out = np.zeros_like(voxels)
    case.pieces = [(None, out, [0, 0, 0], list(voxels.shape))]
    tables, held = case.tables(Encoded.of(encode_blocks(voxels, BALANCED.label)))
    # The memory of the largest chunk is reserved, and hardly any of it is touched.
    status = status_of(kernel, replace(tables, decoded_bytes=decoded_bytes))
    assert (status == DONE) == (decoded_bytes >= voxels.nbytes)
    assert out.tobytes() == (voxels.tobytes() if decoded_bytes >= 20 else bytes(20))
    del held


@pytest.mark.parametrize("width", [LARGEST_CHUNK_BYTES + 1, LARGEST_CHUNK_BYTES + 3])
def test_a_table_of_starts_may_be_wider_than_any_chunk(kernel, width, monkeypatch):
    monkeypatch.setattr(kernel, "_scratch", local())
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    starts = np.zeros((1, width), np.int64)
    starts[0, 1:4] = tables.starts[1, 1:4]
    tables.chunks["first_start"] = 1
    assert status_of(kernel, replace(tables, starts=starts)) == DONE
    case.check_outputs()
    del held


def forged_array(folder, chunk, dtype, shape, **changes):
    """Write a shard of one chunk of given bytes, and describe its array as a store would."""
    frame = ChunkFrame.of(chunk)
    shard = chunk + shard_index({0: len(chunk)}, 1)
    (folder / "c/0/0").mkdir(parents=True)
    (folder / "c/0/0/0").write_bytes(shard)
    entry = ShardEntry(
        size_bytes=len(shard),
        crc32=f"{crc32(shard):08x}",
        index_offset=len(chunk),
        index_crc32c=f"{crc32c(shard[-20:-4]):08x}",
        chunks=base64.b64encode(frame.row(0).tobytes()).decode(),
    )
    return ArraySpec(
        scan_id="s",
        name="image",
        path=str(folder),
        shape_zyx=shape,
        stored_dtype=np.dtype(dtype),
        chunk_shape_zyx=shape,
        shard_shape_zyx=shape,
        shard_sizes={(0, 0, 0): len(shard)},
        separator="/",
        coding=replace(frame.coding, **changes),
        shards={(0, 0, 0): entry},
    )


def test_bytes_of_a_store_never_become_objects(kernel, tmp_path):
    addresses = np.full((8, 8, 8), 0x4141414141414141, "<i8")
    array = forged_array(tmp_path, encode_blocks(addresses, BALANCED.image), "O", addresses.shape)
    out = np.full((8, 8, 8), "kept", object)
    with pytest.raises(TypeError, match="expected numbers"):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(array, Box((0, 0, 0), (8, 8, 8)), out)
    assert (out == "kept").all()


@pytest.mark.parametrize("dtype", ["S", "U", "V"])
def test_voxels_without_bytes_are_refused(tmp_path, dtype):
    chunk = encode_blocks(np.zeros((8, 8, 8), np.uint8), BALANCED.label)
    array = forged_array(tmp_path, chunk, dtype, (8, 8, 8))
    assert array.stored_dtype.itemsize == 0
    out = np.empty((8, 8, 8), "V0") if dtype == "V" else np.zeros((8, 8, 8), "V1")
    with pytest.raises(ValueError, match="box 0, or its array, is not valid"):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(array, Box((0, 0, 0), (8, 8, 8)), out)


@pytest.mark.parametrize("shape", [(2**30,) * 3, (2**31 - 1, 4, 2**30), (2**10, 2**10, 2**7)])
@pytest.mark.parametrize("decoded_bytes", [0, LARGEST_CHUNK_BYTES, 2**63])
def test_a_chunk_that_is_too_large_is_refused(kernel, shape, decoded_bytes):
    """The number of bytes overflows to 0, or to a few, in 32 or 64 bits."""
    case, encoded = of_four_blocks()
    tables, held = case.tables(encoded)
    said = math.prod(shape) * 2
    for block_bytes in (BLOCK, 64, said % 2**32, said % 2**63):
        tables.chunks["shape_zyx"], tables.chunks["block_bytes"] = shape, block_bytes
        tables.chunks["status"] = NOT_TRIED
        assert status_of(kernel, replace(tables, decoded_bytes=decoded_bytes)) == DAMAGED
    assert not case.pieces[0][1].any()
    del held


@pytest.mark.parametrize("cname", ["lz4", "zstd"])
def test_a_block_with_a_false_length_reveals_no_memory_behind_it(kernel, tmp_path, cname):
    """Its only stream says that it is longer than the block, whose checksum is true."""
    voxels = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
    codec = BloscCodecSpec(cname, 0, "noshuffle", 0)
    encoded = Encoded.of(encode_blocks(voxels, codec))
    assert encoded.blocks == [struct.pack("<I", 8000) + voxels.tobytes()]
    encoded.blocks = [encoded.blocks[0][:200]]
    block = encoded.block(0)
    start = encoded.coding.blocks_offset
    frame = encoded.coding.header(1, start + len(block))
    frame += struct.pack("<2I", start, encoded.voxels_crc32c) + block
    chunk = frame + struct.pack("<I", crc32c(frame))
    array = forged_array(tmp_path, chunk, "u1", voxels.shape)
    with pytest.raises(CorruptStoreError, match="does not decompress"):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(
            array, Box((0, 0, 0), voxels.shape), np.zeros_like(voxels)
        )


def c_compiler():
    """Return the command of the compiler that builds the kernel (hatch_build.py); None if none."""
    named = shlex.split(os.environ.get("CC", ""))
    commands = (named, ["cc"], ["gcc"], ["clang"])
    return next((found for found in commands if found and shutil.which(found[0])), None)


def build_driver(folder, name):
    """Build the kernel and one of its drivers with sanitizers; None if the compiler has none."""
    compiler = c_compiler()
    if compiler is None:
        return None
    empty, built = folder / "empty.c", folder / name
    empty.write_text("int main(void) { return 0; }\n")
    flags = ["-g", "-O1", "-std=gnu11", "-ffp-contract=off", "-fno-omit-frame-pointer"]
    flags += SANITIZERS
    if subprocess.run([*compiler, *flags, str(empty), "-o", str(built)], check=False).returncode:
        return None
    source = Path(__file__).with_name(f"{name}.c")
    include = f"-I{Path(native.__file__).parent}"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [*compiler, *flags, *warnings, include, str(source), "-lm", "-o", str(built)]
    subprocess.run(command, check=True)
    return built


def write_corpus(path, n_records):
    """Write the chunks, with their voxels, that the driver starts from."""
    with path.open("wb") as file:
        file.write(struct.pack("<q", n_records))
        for seed in range(n_records):
            case = Case(np.random.default_rng(seed))
            encoded, known = case.encoded()
            coding = encoded.coding
            blocks = [encoded.block(number) for number in range(coding.n_blocks)]
            starts = list(accumulate(map(len, blocks), initial=0))
            numbers = (starts[-1], case.voxels.nbytes, coding.itemsize, *case.shape)
            numbers += (coding.block_bytes, coding.n_blocks, encoding_number(coding))
            file.write(struct.pack("<11q", *numbers, encoded.voxels_crc32c, known))
            file.write(struct.pack(f"<{len(starts)}q", *starts))
            file.write(b"".join(blocks) + case.voxels.tobytes())


def drive(folder, n_records, first, count):
    """Decode forged chunks and tables under sanitizers.

    Returns
    -------
    subprocess.CompletedProcess or None
        The finished process; None without sanitizers.
    """
    driver, corpus = build_driver(folder, "kernel_driver"), folder / "corpus"
    if driver is None:
        return None
    write_corpus(corpus, n_records)
    return run_driver(driver, corpus, first, count)


def drive_resampling(folder, first, count):
    """Resample by forged tables under sanitizers; return as :func:`drive` does."""
    driver = build_driver(folder, "resample_driver")
    return None if driver is None else run_driver(driver, first, count)


def drive_planning(folder, first, count):
    """Plan by forged tables under sanitizers; return as :func:`drive` does."""
    driver = build_driver(folder, "plan_driver")
    return None if driver is None else run_driver(driver, first, count)


def drive_ranges(folder, first, count):
    """Read damaged responses under sanitizers; return as :func:`drive` does."""
    driver = build_driver(folder, "ranges_driver")
    return None if driver is None else run_driver(driver, first, count)


def drive_encoding(folder, first, count):
    """Encode made-up chunks under sanitizers; return as :func:`drive` does."""
    driver = build_driver(folder, "lz4_encoder_driver")
    return None if driver is None else run_driver(driver, first, count)


def run_driver(driver, *arguments):
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
    }
    command = [str(driver), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_lz4_streams_decode_as_byte_by_byte(tmp_path):
    driver = build_driver(tmp_path, "lz4_driver")
    if driver is None:
        pytest.skip("the C compiler has no sanitizers")
    told = run_driver(driver, 0, 50_000)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("50000 cases of LZ4: ")


def test_encoded_streams_decode_byte_by_byte_and_end_as_lz4_demands(tmp_path):
    told = drive_encoding(tmp_path, first=0, count=3000)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("3000 cases of encoding: ")


@pytest.mark.long
def test_forged_tables_and_chunks_reach_no_other_memory(tmp_path):
    told = drive(tmp_path, n_records=80, first=0, count=400)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("400 cases: ")


@pytest.mark.long
def test_forged_tables_of_resampling_reach_no_other_memory(tmp_path):
    told = drive_resampling(tmp_path, first=0, count=600)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("600 cases of resampling: ")


@pytest.mark.long
def test_forged_tables_of_planning_reach_no_other_memory(tmp_path):
    told = drive_planning(tmp_path, first=0, count=20_000)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("20000 cases of planning: ")


@pytest.mark.long
def test_damaged_responses_reach_no_other_memory(tmp_path):
    told = drive_ranges(tmp_path, first=0, count=5000)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("5000 cases of ranges: ")


def main():
    """Run random cases: on the installed kernel, and under sanitizers with forged tables too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for told in (
            drive(Path(folder), n_records=2000, first=0, count=options.count),
            drive_resampling(Path(folder), first=0, count=options.count),
            drive_planning(Path(folder), first=0, count=options.count),
            drive_ranges(Path(folder), first=0, count=options.count),
            drive_encoding(Path(folder), first=0, count=options.count),
        ):
            if told is None:
                raise SystemExit("the C compiler has no sanitizers")
            print(told.stdout, told.stderr, sep="", end="")
            if told.returncode:
                raise SystemExit(1)
    kernel = native.kernel()
    if kernel is None:
        raise SystemExit("the kernel is not built, or does not work")
    n_compared = options.count // 4
    for seed in range(n_compared):
        check_valid(kernel, seed)
        check_damaged(kernel, seed)
    print(f"{n_compared} valid and {n_compared} forged chunks as numcodecs has them")


if __name__ == "__main__":
    main()
