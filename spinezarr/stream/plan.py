"""Which chunks a box of voxels needs: plans are data, made without any I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.reader import ArraySpec

__all__ = ["ChunkRead", "plan_reads"]


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """One chunk's share of a box."""

    chunk_zyx: ShapeZYX
    """Index of the chunk in the array."""
    shard_zyx: ShapeZYX
    """Index of its shard."""
    position: int
    """Place of the chunk in the shard's index."""
    within_chunk: Box
    """Voxels to take, in the chunk's own coordinates."""
    within_box: Box
    """Where they go, in the box's coordinates; same shape as ``within_chunk``."""


def plan_reads(box: Box, array: ArraySpec) -> Iterator[ChunkRead]:
    """Split ``box`` along chunk borders; the shares are disjoint and cover it.

    Parameters
    ----------
    box
        Voxels inside the array.
    array
        Where they are stored.

    Raises
    ------
    ValueError
        If the box leaves the array.
    """
    shape, chunk, per_shard = array.shape_zyx, array.chunk_shape_zyx, array.chunks_per_shard_zyx
    if box.intersect(Box((0, 0, 0), shape)) != box:
        raise ValueError(f"{box} leaves the array of shape {shape} (z, y, x)")
    ranges = (
        range(a // c, -(-b // c))
        for a, b, c in zip(box.start_zyx, box.stop_zyx, chunk, strict=True)
    )
    for z, y, x in product(*ranges):
        origin = (z * chunk[0], y * chunk[1], x * chunk[2])
        share = box.intersect(Box.at(origin, chunk))
        if share is None:
            raise AssertionError("a planned chunk does not meet its box")
        shard = (z // per_shard[0], y // per_shard[1], x // per_shard[2])
        within = (z % per_shard[0], y % per_shard[1], x % per_shard[2])
        yield ChunkRead(
            chunk_zyx=(z, y, x),
            shard_zyx=shard,
            position=(within[0] * per_shard[1] + within[1]) * per_shard[2] + within[2],
            within_chunk=share.shift((-origin[0], -origin[1], -origin[2])),
            within_box=share.shift((-box.start_zyx[0], -box.start_zyx[1], -box.start_zyx[2])),
        )
