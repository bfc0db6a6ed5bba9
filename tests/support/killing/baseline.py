"""The kill loop with plain zarr-python, without spinezarr's protocol, for comparison."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

__all__ = ["read_array", "write_array"]

_SHAPE_ZYX: Final = (512, 96, 96)


def _values() -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 2000, _SHAPE_ZYX, np.int16)


def write_array(path: str) -> None:
    """Write a sharded array, as the documentation of zarr-python shows."""
    array = zarr.create_array(
        path,
        shape=_SHAPE_ZYX,
        chunks=(32, 48, 48),
        shards=(64, 96, 96),
        dtype=np.int16,
        fill_value=0,
        compressors=BloscCodec(cname="zstd"),
    )
    array[...] = _values()


def read_array(path: Path) -> str:
    """Return what a reader sees: absent, unreadable, silently incomplete or whole."""
    if not (path / "zarr.json").exists():
        return "absent"
    try:
        found = zarr.open_array(path, mode="r")[...]
    except Exception:  # noqa: BLE001  whatever it is, a reader would notice
        return "unreadable"
    return "whole" if np.array_equal(found, _values()) else "silently incomplete"
