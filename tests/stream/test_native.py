"""The kernel against numcodecs and NumPy, also on chunks that somebody made up.

As a program (``make fuzz-kernel``) it runs many random cases on a kernel that is built to notice
every access outside its memory.
"""

import argparse
import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from spinezarr.store.layout import BALANCED, FAST
from spinezarr.store.sharding import crc32c, encode_chunk
from spinezarr.stream import native
from spinezarr.stream.native import CHUNKS, DONE, NOT_TRIED, SHARES, Kernel, address

DTYPES = ("u1", "i2", "u2", "i4", "f4", "f8", "i8")
GUARD = 64
UNTOUCHED = 0xA5


@pytest.fixture(scope="module")
def kernel():
    found = native.kernel()
    assert found is not None, "the kernel is not built, or does not work"
    return found


def voxels_of(rng, shape, dtype):
    """Voxels that compress well, badly, or here well and there badly."""
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


class Case:
    """A chunk, its bytes, and some boxes of it with guarded outputs."""

    def __init__(self, rng):
        self.rng = rng
        self.shape = tuple(rng.integers(1, [24, 40, 60]).tolist())
        self.dtype = np.dtype("<" + rng.choice(DTYPES))
        self.voxels = voxels_of(rng, self.shape, self.dtype)
        self.shares = [self._share() for _ in range(rng.integers(1, 4))]

    def _share(self):
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
        """Encode the chunk in one of Blosc's ways; also say whether the kernel must know it."""
        rng = self.rng
        cname = rng.choice(["lz4", "lz4hc", "lz4", "lz4hc", "zstd", "blosclz", "zlib"])
        level, shuffle = int(rng.integers(0, 10)), int(rng.integers(0, 3))
        block = int(rng.choice([0, 0, 1 << 16, 1 << 13, 300, 4096]))
        packed = blosc.compress(
            np.ascontiguousarray(self.voxels), cname.encode(), level, shuffle, block
        )
        known = packed[2] & 2 or (cname.startswith("lz4") and not packed[2] & 4)
        return bytes(packed), bool(known)

    def run(self, kernel, packed):
        """Fill the shares; return the status."""
        data = packed + crc32c(packed).to_bytes(4, "little")
        # Behind the last byte there is nothing: an allocation of its own.
        held = np.frombuffer(bytes(data), np.uint8)
        row = np.zeros(1, CHUNKS)
        row["data"], row["size"] = address(held), len(data)
        row["n_shares"], row["itemsize"] = len(self.shares), self.dtype.itemsize
        row["shape_zyx"], row["crc32c"], row["status"] = self.shape, crc32c(packed), NOT_TRIED
        shares = np.zeros(len(self.shares), SHARES)
        for share, (_, out, start, _) in zip(shares, self.shares, strict=True):
            share["out"], share["stride_zyx"] = address(out), out.strides
            share["start_zyx"], share["shape_zyx"] = start, out.shape
        kernel.fill(row, shares, 0, 1, self.voxels.nbytes)
        return int(row["status"][0])

    def check_outputs(self):
        for _, out, start, stop in self.shares:
            wanted = self.voxels[tuple(map(slice, start, stop))]
            assert out.tobytes() == wanted.tobytes()

    def check_guards(self):
        for raw, out, _, _ in self.shares:
            kept = out.tobytes()
            out.view(f"V{self.dtype.itemsize}")[...] = bytes([UNTOUCHED]) * self.dtype.itemsize
            assert (raw == UNTOUCHED).all(), "written outside the output"
            out.view(f"V{self.dtype.itemsize}")[...] = np.frombuffer(
                kept, f"V{self.dtype.itemsize}"
            ).reshape(out.shape)


def check_valid(kernel, seed):
    case = Case(np.random.default_rng(seed))
    packed, known = case.encoded()
    status = case.run(kernel, packed)
    assert (status == DONE) == known
    if known:
        case.check_outputs()
    case.check_guards()


def check_damaged(kernel, seed):
    """Change bytes and set the checksum right again: nothing outside the memory is touched."""
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
    case.run(kernel, bytes(changed))
    case.check_guards()


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_boxes_of_any_chunk_are_what_numpy_cuts_out(kernel, seed):
    check_valid(kernel, seed)


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_no_made_up_chunk_writes_elsewhere(kernel, seed):
    check_damaged(kernel, seed)


@pytest.mark.parametrize("profile", [BALANCED, FAST])
def test_default_chunks_are_known(kernel, profile):
    rng = np.random.default_rng(0)
    for codec, dtype in ((profile.image, "<i2"), (profile.label, "u1")):
        case = Case(rng)
        case.shape, case.dtype = profile.chunk_shape_zyx, np.dtype(dtype)
        case.voxels = voxels_of(rng, case.shape, dtype)
        case.shares = [case._share() for _ in range(3)]
        assert case.run(kernel, encode_chunk(case.voxels, codec)[:-4]) == DONE
        case.check_outputs()
        case.check_guards()


def test_a_wrong_checksum_is_seen(kernel):
    case = Case(np.random.default_rng(3))
    case.shares = case.shares[:1]
    packed, _ = case.encoded()
    data = packed + crc32c(packed).to_bytes(4, "little")
    for expected, content in ((crc32c(packed) ^ 1, data), (crc32c(packed), data[:-1] + b"\0")):
        held = np.frombuffer(content, np.uint8)
        row, share = np.zeros(1, CHUNKS), np.zeros(1, SHARES)
        row["data"], row["size"], row["n_shares"] = address(held), len(data), 1
        row["itemsize"], row["shape_zyx"] = case.dtype.itemsize, case.shape
        row["crc32c"], row["status"] = expected, NOT_TRIED
        kernel.fill(row, share, 0, 1, case.voxels.nbytes)
        assert row["status"][0] not in {DONE, NOT_TRIED}


@given(st.binary(max_size=7000))
@settings(deadline=None)
def test_both_ways_to_a_checksum_agree(kernel, data):
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

    def fill_and_spoil(chunks, first, last, shares, *others):
        fill(chunks, first, last, shares, *others)
        out = np.ctypeslib.as_array((ctypes.c_uint64 * 1).from_address(shares))[0]
        ctypes.c_uint8.from_address(int(out)).value ^= 1

    monkeypatch.setattr(kernel, "_fill", fill_and_spoil)
    assert not kernel.works()


def test_without_kernel_everything_reads_the_same(store):
    code = (
        "import sys, hashlib, spinezarr\n"
        "from spinezarr.stream import native\n"
        "assert native.kernel() is None\n"
        "stream = spinezarr.open(sys.argv[1]).patches((20, 30, 40), batch_size=2, n_samples=8)\n"
        "print(hashlib.sha256(b''.join(b.image.tobytes() + b.label.tobytes() for b in stream))"
        ".hexdigest())"
    )
    environment = {**os.environ, native.NO_KERNEL: "1"}
    told = subprocess.run(
        [sys.executable, "-c", code, store.url], env=environment, capture_output=True, check=True
    )
    stream = store.patches((20, 30, 40), batch_size=2, n_samples=8)
    content = b"".join(batch.image.tobytes() + batch.label.tobytes() for batch in stream)
    assert told.stdout.decode().strip() == hashlib.sha256(content).hexdigest()


def main():
    """Run random cases on a kernel with checks of every access to memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--library", type=Path)
    options = parser.parse_args()
    if options.library is None:
        build_and_start(options.count)
        return
    kernel = Kernel(options.library)
    for seed in range(options.count):
        check_valid(kernel, seed)
        check_damaged(kernel, seed)
    print(f"{options.count} valid and {options.count} made-up chunks: no error")


def build_and_start(count):
    """Build the kernel with sanitizers, and run the cases in a process that can load it."""
    source = Path(native.__file__).with_name("kernel.c")
    built = Path("build").resolve() / "libkernel-checked.so"
    built.parent.mkdir(exist_ok=True)
    flags = ["-g", "-O1", "-std=gnu11", "-shared", "-fPIC", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    compiler = shutil.which("gcc") or shutil.which("cc")
    subprocess.run([compiler, *flags, str(source), "-o", str(built)], check=True)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, __file__, "--count", str(count), "--library", str(built)]
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
