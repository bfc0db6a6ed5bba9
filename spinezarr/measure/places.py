"""Is a folder or a store fast and large enough?"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from spinezarr.measure.finding import Finding
from spinezarr.measure.storage_speed import Speed

__all__ = ["check_folder", "check_speeds", "describe_speed"]

_GB: Final = 1e9
_FREE_BYTES: Final = 2_000_000_000
"""Free space for an ingest: scratch files of a large scan, and the scan itself."""
_SLOW_DISK: Final = 100e6
"""Bytes a second below which a disk is slower than the decoding of one core."""
_SLOW_LINK: Final = 10e6
_LONG_ANSWER_S: Final = 0.1
_IN_MEMORY: Final = 0.1
"""Share of bytes from memory above which a speed is not that of the disk."""


def check_folder(folder: str) -> Iterator[Finding]:
    """Yield findings on the file system of a folder, and on its free space.

    The folder for temporary files is checked too, because an ingest puts scratch files there.
    """
    yield Finding("place", "file system", _file_system(folder))
    yield _check_free_space("free space", folder)
    yield _check_free_space("scratch space", tempfile.gettempdir())


def _check_free_space(name: str, folder: str) -> Finding:
    free = shutil.disk_usage(folder).free
    enough = free >= _FREE_BYTES
    advice = (
        "Free some space before an ingest."
        if name == "free space"
        else "Name a folder with more space in an ingest (--scratch DIR), or in TMPDIR."
    )
    return Finding(
        "place",
        name,
        f"{free / _GB:,.1f} GB in {folder}",
        f"{_FREE_BYTES / _GB:.0f} GB",
        "ok" if enough else "note",
        "" if enough else advice,
        {"free_bytes": free},
    )


def _file_system(folder: str) -> str:
    """Return the kind of file system of a folder, and where it is mounted."""
    place = Path(os.path.realpath(folder))
    mounts = [
        (len(Path(mount.mountpoint).parts), mount)
        for mount in psutil.disk_partitions(all=True)
        if place.is_relative_to(mount.mountpoint)
    ]
    if not mounts:
        return "unknown"
    _, mount = max(mounts, key=lambda pair: pair[0])
    return f"{mount.fstype or 'unknown'}, mounted at {mount.mountpoint}"


def check_speeds(speeds: Sequence[Speed], *, is_remote: bool) -> Iterator[Finding]:
    """Yield a finding for each order in which bytes were read or written."""
    for speed in speeds:
        figures = {
            "bytes": speed.n_bytes,
            "requests": speed.n_requests,
            "seconds": speed.seconds,
            "bytes_per_s": speed.bytes_per_s,
            "requests_per_s": speed.requests_per_s,
            "answer_s": speed.answer_s,
            "share_from_disk": speed.share_from_disk,
        }
        slow = _SLOW_LINK if is_remote else _SLOW_DISK
        is_slow = speed.bytes_per_s < slow
        advice = ""
        if is_slow:
            advice = _LINK_ADVICE if is_remote else _DISK_ADVICE
        elif is_remote and speed.answer_s > _LONG_ANSWER_S:
            advice = _FAR_ADVICE
        yield Finding(
            "place",
            _NAMES[speed.order],
            describe_speed(speed, is_remote=is_remote),
            f"{slow / 1e6:.0f} MB/s",
            "note" if advice else "ok",
            advice,
            figures,
        )


_NAMES: Final = {
    "write": "write",
    "sequential": "sequential read",
    "random": "random read",
}
_DISK_ADVICE: Final = (
    "This disk is slower than the decoding. Put the store on an SSD of this machine, or read "
    "samples close together: shuffle='window'."
)
_LINK_ADVICE: Final = (
    "This link is slower than the decoding. Keep what was read in a cache on disk "
    "(spinezarr.CacheSettings(folder=...)), let 'spinezarr serve' send patches, or copy the store."
)
_FAR_ADVICE: Final = (
    "Answers take long, so many requests must be under way at once. Streams do that; single "
    "batches wait. Train nearer to the data, or keep what was read in a cache on disk "
    "(spinezarr.CacheSettings(folder=...))."
)


def describe_speed(speed: Speed, *, is_remote: bool) -> str:
    """Return a speed as text, with where the bytes came from."""
    rate = f"{speed.bytes_per_s / 1e6:,.0f} MB/s"
    if speed.order == "random":
        rate += f", {speed.requests_per_s:,.0f} chunks/s"
    amount = f"{speed.n_bytes / 1e6:,.0f} MB in {speed.seconds:.2f} s"
    if is_remote:
        return f"{rate}; answers after {speed.answer_s * 1e3:.0f} ms ({amount})"
    if speed.order == "write":
        return f"{rate} ({amount})"
    share = speed.share_from_disk
    if share is None:
        source = "from the disk or from memory: this system does not say"
    elif share >= 1 - _IN_MEMORY:
        source = "from the disk"
    elif share <= _IN_MEMORY:
        source = "from memory, so this is not the speed of a disk"
    else:
        source = f"{1 - share:.0%} of it from memory, so the disk is slower"
    return f"{rate}, {source} ({amount})"
