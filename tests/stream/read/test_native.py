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
from pathlib import Path
from threading import local

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

import spinezarr
from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.store.folder import StoreFolder
from spinezarr.store.layout import BALANCED, FAST, LARGEST_CHUNK_BYTES
from spinezarr.store.manifest import ShardEntry
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import (
    CHUNK_ROW,
    ChunkDamagedError,
    crc32,
    crc32c,
    decode_chunk,
    encode_chunk,
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
    output_table,
)

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


class Case:
    """A chunk, its bytes, and some boxes of it with guarded outputs."""

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
        if rng.random() < 0.25 and (made_up := self._forged()):
            return made_up, True
        cname = rng.choice(["lz4", "lz4hc", "lz4", "lz4hc", "zstd", "blosclz", "zlib"])
        level, shuffle = int(rng.integers(0, 10)), int(rng.integers(0, 3))
        block = int(rng.choice([0, 0, 1 << 16, 1 << 13, 300, 4096]))
        packed = blosc.compress(
            np.ascontiguousarray(self.voxels), cname.encode(), level, shuffle, block
        )
        known = packed[2] & 2 or (cname.startswith("lz4") and not packed[2] & 4)
        return bytes(packed), bool(known)

    def _forged(self):
        """Make a chunk of one stream, and its decoded voxels; None if it is too long."""
        stream, content = lz4_stream(self.rng, self.voxels.nbytes)
        if len(stream) + 8 > len(content):  # Blosc would not keep it compressed
            return None
        item, one_stream, lz4 = self.dtype.itemsize, 1 << 4, 1 << 5
        shuffled = int(self.rng.integers(2))
        if shuffled:
            content = np.frombuffer(content, np.uint8).reshape(item, -1).T.tobytes()
        self.voxels = np.frombuffer(content, self.dtype).reshape(self.shape)
        n, flags = len(content), one_stream | lz4 | shuffled
        header = struct.pack("<4B5I", 2, 1, flags, item, n, n, 24 + len(stream), 20, len(stream))
        return header + stream

    def run(self, kernel, packed):
        """Fill the pieces; return the status."""
        data = packed + crc32c(packed).to_bytes(4, "little")
        # The chunk is an allocation of its own, so that a read past its end is seen.
        held = np.frombuffer(bytes(data), np.uint8)
        row = np.zeros(1, CHUNKS)
        row["data"], row["size"] = address(held), len(data)
        row["n_pieces"], row["itemsize"] = len(self.pieces), self.dtype.itemsize
        row["shape_zyx"], row["crc32c"], row["status"] = self.shape, crc32c(packed), NOT_TRIED
        pieces = np.zeros(len(self.pieces), PIECES)
        for number, (piece, (_, out, start, _)) in enumerate(zip(pieces, self.pieces, strict=True)):
            piece["output"] = number
            piece["within_chunk_zyx"], piece["shape_zyx"] = start, out.shape
        outputs = output_table([out for _, out, _, _ in self.pieces])
        kernel.fill(Tables(row, pieces, outputs, self.voxels.nbytes), 0, 1)
        return int(row["status"][0])

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


def numcodecs_voxels(case, packed):
    """Decode the chunk with numcodecs; return its bytes, or None if numcodecs refuses it."""
    voxels = np.empty(case.shape, case.dtype)
    try:
        decode_chunk(packed + crc32c(packed).to_bytes(4, "little"), voxels)
    except ChunkDamagedError:
        return None
    return voxels.view(f"V{case.dtype.itemsize}")


def check_valid(kernel, seed):
    case = Case(np.random.default_rng(seed))
    packed, known = case.encoded()
    status = case.run(kernel, packed)
    assert (status == DONE) == known
    assert (numcodecs_voxels(case, packed) == case.voxels.view(f"V{case.dtype.itemsize}")).all()
    if known:
        case.check_outputs()
    case.check_guards()


def check_damaged(kernel, seed):
    """Change bytes, correct the checksum, and check that nothing outside the memory is touched.

    A changed chunk that numcodecs decodes too must give the same voxels.
    """
    rng = np.random.default_rng(seed)
    case = Case(rng)
    packed, _ = case.encoded()
    changed = bytearray(packed)
    for _ in range(rng.integers(1, 5)):
        near = rng.choice([16, 32, 200, len(changed)])
        at = int(rng.integers(min(near, len(changed))))
        if rng.random() < 0.3 and at + 4 <= len(changed):
            value = rng.choice([0, 1, 15, 16, 255, 2**16, 2**31 - 1, 2**32 - 1, len(changed)])
            struct.pack_into("<I", changed, at, int(value))
        else:
            changed[at] = rng.integers(256)
    if rng.random() < 0.2:
        del changed[int(rng.integers(len(changed))) :]
    if rng.random() < 0.5 and len(changed) >= 16:
        struct.pack_into("<I", changed, 12, len(changed))
    status, voxels = case.run(kernel, bytes(changed)), numcodecs_voxels(case, bytes(changed))
    if status == DONE and voxels is not None:
        case.voxels = voxels
        case.check_outputs()
    case.check_guards()


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
        assert case.run(kernel, encode_chunk(case.voxels, codec)[:-4]) == DONE
        case.check_outputs()
        case.check_guards()


def test_a_wrong_checksum_is_detected(kernel):
    case = Case(np.random.default_rng(3))
    case.pieces = case.pieces[:1]
    packed, _ = case.encoded()
    data = packed + crc32c(packed).to_bytes(4, "little")
    for expected, content in ((crc32c(packed) ^ 1, data), (crc32c(packed), data[:-1] + b"\0")):
        held = np.frombuffer(content, np.uint8)
        row = np.zeros(1, CHUNKS)
        row["data"], row["size"] = address(held), len(data)
        row["itemsize"], row["shape_zyx"] = case.dtype.itemsize, case.shape
        row["crc32c"], row["status"] = expected, NOT_TRIED
        outputs = output_table([case.pieces[0][1]])
        kernel.fill(Tables(row, np.zeros(1, PIECES), outputs, case.voxels.nbytes), 0, 1)
        assert row["status"][0] not in {DONE, NOT_TRIED}


@pytest.mark.parametrize(
    ("at", "form", "lie"),
    [
        *((0, "B", version) for version in (0, 1, 3, 255)),
        *((1, "B", version) for version in (0, 2, 255)),
        *((2, "B", flags) for flags in (1 << 3 | 1 << 5, 1 << 2 | 1 << 5, 1 << 1, 0, 7 << 5)),
        *((3, "B", itemsize) for itemsize in (0, 1, 4, 255)),
        *((4, "I", n_bytes) for n_bytes in (0, 1, 2**31, 2**32 - 1)),
        *((8, "I", block) for block in (0, 1, 255, 24 * 40 * 60 * 2 + 2, 2**31, 2**32 - 2)),
        *((12, "I", length) for length in (0, 16, 2**31, 2**32 - 1)),
    ],
)
def test_a_false_header_is_refused(kernel, at, form, lie):
    case = Case(np.random.default_rng(5))
    case.shape, case.dtype = (24, 40, 60), np.dtype("<i2")
    case.voxels = np.resize(np.arange(200, dtype="<i2"), case.shape)
    case.pieces = [case._piece()]
    packed = bytearray(blosc.compress(case.voxels, b"lz4", 5, 1, 0))
    assert case.run(kernel, bytes(packed)) == DONE
    struct.pack_into(f"<{form}", packed, at, lie)
    assert case.run(kernel, bytes(packed)) != DONE
    case.check_guards()


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
    for name in ("kernel.c", "resample.c", "resample_rows.h"):
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


@pytest.mark.parametrize("end", ["} Chunk;", "} Piece;", "} Output;", "} Resampling;"])
def test_a_kernel_with_other_structures_is_not_used(tmp_path, end):
    assert not changed_kernel(tmp_path, end, f"    int64_t more;\n{end}").works()


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
    monkeypatch.setenv(native.NO_KERNEL, "1")
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
    tables = Tables(np.zeros(1, CHUNKS), np.zeros(1, PIECES), output_table([]), 64)
    with pytest.raises(ValueError, match="of 1"):
        kernel.fill(tables, first, last)


def test_tables_of_another_form_are_refused():
    chunks, pieces, outputs = np.zeros(4, CHUNKS), np.zeros(4, PIECES), output_table([])
    for wrong in (chunks[::2], chunks.view(np.uint8), chunks.reshape(2, 2), pieces):
        with pytest.raises(ValueError, match="expected one of"):
            Tables(wrong, pieces, outputs, 64)
    with pytest.raises(ValueError, match="expected one of"):
        Tables(chunks, pieces[::2], outputs, 64)


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
    data = np.frombuffer(encode_chunk(voxels, BALANCED.label), np.uint8)
    row, piece = np.zeros(1, CHUNKS), np.zeros(1, PIECES)
    row["data"], row["size"], row["n_pieces"] = address(data), data.nbytes, 1
    row["itemsize"], row["shape_zyx"], row["crc32c"] = 1, voxels.shape, crc32c(data[:-4])
    piece["shape_zyx"] = voxels.shape
    out = np.zeros_like(voxels)
    # The memory of the largest chunk is reserved, and hardly any of it is touched.
    kernel.fill(Tables(row, piece, output_table([out]), decoded_bytes), 0, 1)
    assert (row["status"][0] == DONE) == (decoded_bytes >= voxels.nbytes)
    assert out.tobytes() == (voxels.tobytes() if decoded_bytes >= 20 else bytes(20))


def forged_array(folder, packed, dtype, shape):
    """Write a shard of one chunk of given bytes, and describe its array as a store would."""
    chunk = packed + crc32c(packed).to_bytes(4, "little")
    shard = chunk + shard_index({0: len(chunk)}, 1)
    (folder / "c/0/0").mkdir(parents=True)
    (folder / "c/0/0/0").write_bytes(shard)
    row = np.array([(0, len(chunk), crc32c(packed))], CHUNK_ROW)
    entry = ShardEntry(
        size_bytes=len(shard),
        crc32=f"{crc32(shard):08x}",
        index_crc32c=f"{crc32c(shard[-20:-4]):08x}",
        chunks=base64.b64encode(row.tobytes()).decode(),
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
        shards={(0, 0, 0): entry},
    )


def test_bytes_of_a_store_never_become_objects(kernel, tmp_path):
    addresses = np.full((8, 8, 8), 0x4141414141414141, "<i8")
    packed = encode_chunk(addresses, BALANCED.image)[:-4]
    array = forged_array(tmp_path, packed, "O", addresses.shape)
    out = np.full((8, 8, 8), "kept", object)
    with pytest.raises(TypeError, match="expected numbers"):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(array, Box((0, 0, 0), (8, 8, 8)), out)
    assert (out == "kept").all()


@pytest.mark.parametrize("dtype", ["S", "U", "V"])
def test_voxels_without_bytes_are_refused(kernel, tmp_path, dtype):
    packed = struct.pack("<4B3I", 2, 1, 1 << 5, 0, 0, 64, 36) + bytes(20)
    array = forged_array(tmp_path, packed, dtype, (8, 8, 8))
    assert array.stored_dtype.itemsize == 0
    out = np.empty((8, 8, 8), "V0") if dtype == "V" else np.zeros((8, 8, 8), "V1")
    with pytest.raises(CorruptStoreError):
        Engine(LocalFetcher(StoreFolder.at("/"))).read_into(array, Box((0, 0, 0), (8, 8, 8)), out)


@pytest.mark.parametrize("shape", [(2**30,) * 3, (2**31 - 1, 4, 2**30), (2**10, 2**10, 2**7)])
@pytest.mark.parametrize("decoded_bytes", [0, LARGEST_CHUNK_BYTES, 2**63])
def test_a_chunk_that_is_too_large_is_refused(kernel, shape, decoded_bytes):
    """The number of bytes overflows to 0, or to a few, in 32 or 64 bits."""
    said = math.prod(shape) * 2 % 2**32
    packed = struct.pack("<4B3I", 2, 1, 1 << 1, 2, said, 64, 16)
    data = np.frombuffer(packed + crc32c(packed).to_bytes(4, "little"), np.uint8)
    row, piece = np.zeros(1, CHUNKS), np.zeros(1, PIECES)
    row["data"], row["size"], row["n_pieces"] = address(data), data.nbytes, 1
    row["itemsize"], row["shape_zyx"], row["crc32c"] = 2, shape, crc32c(packed)
    out = np.zeros((20, 4, 40), "<i2")
    piece["shape_zyx"] = out.shape
    kernel.fill(Tables(row, piece, output_table([out]), decoded_bytes), 0, 1)
    assert row["status"][0] not in {DONE, NOT_TRIED}
    assert not out.any()


def test_a_chunk_with_a_false_length_reveals_no_memory_behind_it(kernel, tmp_path):
    voxels = np.arange(20**3, dtype="<i2").reshape(20, 20, 20)
    packed = bytes(blosc.compress(voxels, b"zstd", 0, 0, 0))[:200]
    array = forged_array(tmp_path, packed, "<i2", voxels.shape)
    with pytest.raises(CorruptStoreError, match="says that it is 16016 bytes long, not 200"):
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
            packed, known = case.encoded()
            sizes = len(packed), case.voxels.nbytes, case.dtype.itemsize
            file.write(struct.pack("<7q", *sizes, *case.shape, known))
            file.write(packed + case.voxels.tobytes())


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


def run_driver(driver, *arguments):
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
    }
    command = [str(driver), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_forged_tables_and_chunks_reach_no_other_memory(tmp_path):
    told = drive(tmp_path, n_records=80, first=0, count=600)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("600 cases: ")


@pytest.mark.long
def test_forged_tables_of_resampling_reach_no_other_memory(tmp_path):
    told = drive_resampling(tmp_path, first=0, count=1500)
    if told is None:
        pytest.skip("the C compiler has no sanitizers")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("1500 cases of resampling: ")


def main():
    """Run random cases: on the installed kernel, and under sanitizers with forged tables too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for told in (
            drive(Path(folder), n_records=2000, first=0, count=options.count),
            drive_resampling(Path(folder), first=0, count=options.count),
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
