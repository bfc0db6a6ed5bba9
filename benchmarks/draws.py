"""Draws the patches of the benchmarks, with the same seeds for every reader."""

from dataclasses import dataclass

import numpy as np

from spinezarr.geometry import Box, ShapeZYX

SIDES = {"128^3": (128, 128, 128), "96^3": (96, 96, 96)}
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
KINDS = (*SIDES, *PLANES)


def size_zyx(kind: str, shape_zyx: ShapeZYX) -> ShapeZYX:
    """Return the shape of a patch of a kind in voxels, cut to the volume."""
    if kind in SIDES:
        z, y, x = (min(a, b) for a, b in zip(SIDES[kind], shape_zyx, strict=True))
    else:
        z, y, x = (1 if axis == PLANES[kind] else n for axis, n in enumerate(shape_zyx))
    return (z, y, x)


def boxes(kind: str, shape_zyx: ShapeZYX, seed: int, n: int) -> list[Box]:
    """Draw ``n`` boxes of a kind; each position has equal probability."""
    size = size_zyx(kind, shape_zyx)
    rng = np.random.default_rng(seed)
    room = np.subtract(shape_zyx, size)
    starts = rng.integers(0, room, (n, 3), endpoint=True).tolist()
    return [Box.at(tuple(start), size) for start in starts]


@dataclass(frozen=True, slots=True)
class Draw:
    """One patch to read."""

    scan: int
    """Number of the scan; all scans are copies of one."""
    box: Box


def draws(kind: str, shape_zyx: ShapeZYX, scans: int, seed: int, n: int) -> list[Draw]:
    """Draw ``n`` patches: a scan, then a position in it, each with equal probability."""
    chosen = np.random.default_rng((seed, 1)).integers(0, scans, n).tolist()
    return [
        Draw(scan, box) for scan, box in zip(chosen, boxes(kind, shape_zyx, seed, n), strict=True)
    ]
