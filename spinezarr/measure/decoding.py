"""Do the kernel and the codecs work here?"""

from collections.abc import Iterator

import google_crc32c
import numpy as np

from spinezarr.measure.finding import Finding
from spinezarr.native_library import NO_KERNEL
from spinezarr.store.blocks import ChunkFrame, decode_blocks, encode_blocks
from spinezarr.store.layout import PROFILES, BloscCodecSpec
from spinezarr.store.sharding import ChunkDamagedError
from spinezarr.stream.read.native import kernel_problem

__all__ = ["check_decoding"]

_FALLBACK = (
    "Without it, numcodecs decodes whole chunks and Python copies the voxels: 3D patches take "
    "about twice as long, and slices three to six times"
)


def check_decoding() -> Iterator[Finding]:
    """Yield a finding for the kernel, for the codecs and for the checksums."""
    yield _check_kernel()
    yield _check_codecs()
    yield _check_checksums()


def _check_kernel() -> Finding:
    problem = kernel_problem()
    if not problem:
        return Finding("decoding", "kernel", "works", "compiled for this machine")
    turned_off = NO_KERNEL in problem
    change = (
        f"Unset {NO_KERNEL}."
        if turned_off
        else "Install a wheel of this platform (pip install --force-reinstall --no-deps "
        "spinezarr), or a C compiler and then spinezarr again."
    )
    return Finding(
        "decoding",
        "kernel",
        f"is not used, because {problem}",
        "compiled for this machine",
        "note" if turned_off else "broken",
        f"{_FALLBACK}. {change}",
    )


def _check_codecs() -> Finding:
    codecs = {spec for profile in PROFILES.values() for spec in (profile.image, profile.label)}
    wrong = sorted({codec.cname for codec in codecs if not _round_trip(codec)})
    names = ", ".join(sorted({codec.cname for codec in codecs}))
    if not wrong:
        return Finding("decoding", "codecs", f"{names} work", names)
    return Finding(
        "decoding",
        "codecs",
        f"{', '.join(wrong)} did not give the same voxels back",
        names,
        "broken",
        "Install numcodecs again: pip install --force-reinstall --no-deps numcodecs",
    )


def _round_trip(codec: BloscCodecSpec) -> bool:
    """Return whether a chunk that a codec encodes is decoded to the same voxels."""
    x = np.arange(64 * 32 * 32).reshape(64, 32, 32)
    dtype = np.dtype(np.int16 if codec.shuffle == "shuffle" else np.uint8)
    voxels = (x * x % 1009 // 4).astype(dtype)
    out = np.empty(voxels.nbytes, np.uint8)
    try:
        encoded = encode_blocks(voxels, codec)
        frame = ChunkFrame.of(encoded)
        first = frame.coding.blocks_offset
        decode_blocks(
            memoryview(encoded)[first : first + sum(frame.block_sizes)],
            out,
            coding=frame.coding,
            block_sizes=np.array(frame.block_sizes),
            first_block=0,
            voxels_crc32c=frame.voxels_crc32c,
        )
    except (ChunkDamagedError, RuntimeError, ValueError):
        return False
    return np.array_equal(out.view(dtype), voxels.reshape(-1))


def _check_checksums() -> Finding:
    if google_crc32c.implementation == "c":
        return Finding("decoding", "checksums", "crc32c is computed in C", "C")
    return Finding(
        "decoding",
        "checksums",
        "crc32c is computed in Python",
        "C",
        "note",
        "Ingest and verify are many times slower. Install a wheel of google-crc32c: "
        "pip install --force-reinstall --only-binary :all: google-crc32c",
    )
