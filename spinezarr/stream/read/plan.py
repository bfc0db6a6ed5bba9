"""Which chunks some boxes of voxels need: plans are data, made without any I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.reader import ArraySpec

__all__ = ["ReadPlan", "plan_reads"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """The chunks that boxes need, each once, and the piece of each box in each of them.

    Chunks are ordered by array, shard and place in the shard. The pieces of chunk ``c`` are
    ``first_piece[c]`` to ``first_piece[c + 1]``; those of one box are disjoint and cover it.
    """

    arrays: tuple[ArraySpec, ...]
    array: Rows
    """Which array a chunk is of, shape ``(chunks,)``."""
    chunk_zyx: Rows
    """Index of the chunk in the array, shape ``(chunks, 3)``."""
    shard_zyx: Rows
    """Index of its shard, shape ``(chunks, 3)``."""
    position: Rows
    """Place of the chunk in the shard's index, shape ``(chunks,)``."""
    first_piece: Rows
    """Shape ``(chunks + 1,)``."""
    box: Rows
    """Which box a piece is of, shape ``(pieces,)``."""
    within_chunk_zyx: Rows
    """First voxel of a piece in its chunk, shape ``(pieces, 3)``."""
    within_box_zyx: Rows
    """First voxel of a piece in its box, shape ``(pieces, 3)``."""
    shape_zyx: Rows
    """Voxels of a piece, shape ``(pieces, 3)``."""

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.position)

    def chunk_index(self, chunk: int) -> ShapeZYX:
        """Return the index of a chunk in its array."""
        z, y, x = self.chunk_zyx[chunk].tolist()
        return (z, y, x)

    def shard_index(self, chunk: int) -> ShapeZYX:
        """Return the index of the shard that holds a chunk."""
        z, y, x = self.shard_zyx[chunk].tolist()
        return (z, y, x)

    def pieces(self, chunk: int) -> Iterator[tuple[int, Box, Box]]:
        """Yield whose pieces a chunk has: the box, and the voxels within the chunk and the box."""
        for piece in range(self.first_piece[chunk], self.first_piece[chunk + 1]):
            (a, b, c), (d, e, f) = self.within_chunk_zyx[piece], self.within_box_zyx[piece]
            z, y, x = self.shape_zyx[piece].tolist()
            within_chunk = Box.at((int(a), int(b), int(c)), (z, y, x))
            within_box = Box.at((int(d), int(e), int(f)), (z, y, x))
            yield int(self.box[piece]), within_chunk, within_box


def plan_reads(boxes: Sequence[tuple[ArraySpec, Box]]) -> ReadPlan:
    """Split boxes along chunk borders.

    Parameters
    ----------
    boxes
        Arrays, and voxels inside them.

    Raises
    ------
    ValueError
        If a box leaves its array.
    """
    arrays = tuple({id(array): array for array, _ in boxes}.values())
    number = {id(array): i for i, array in enumerate(arrays)}
    of_array = np.array([number[id(array)] for array, _ in boxes], np.int64)
    starts, stops = _corners(boxes)
    chunk_shape = _triples([array.chunk_shape_zyx for array in arrays])
    per_shard = _triples([array.chunks_per_shard_zyx for array in arrays])
    shard_grid = -(-_triples([array.shape_zyx for array in arrays]) // (chunk_shape * per_shard))

    # Every box meets a block of first to first + count chunks: list them all, one row a piece.
    sides = chunk_shape[of_array]
    first = starts // sides
    count = -(-stops // sides) - first
    n_pieces = count.prod(axis=1)
    box = np.repeat(np.arange(len(boxes)), n_pieces)
    ends = np.cumsum(n_pieces)
    nth = np.arange(len(box)) - np.repeat(ends - n_pieces, n_pieces)
    along_y, along_x = count[box, 1], count[box, 2]
    chunk = np.empty((len(box), 3), np.int64)
    rest, chunk[:, 2] = np.divmod(nth, along_x)
    chunk[:, 0], chunk[:, 1] = np.divmod(rest, along_y)
    chunk += first[box]

    array = of_array[box]
    origin = chunk * sides[box]
    begin = np.maximum(starts[box], origin)
    shape = np.minimum(stops[box], origin + sides[box]) - begin

    # Equal numbers mean equal chunks; their order is that of arrays, shards and positions.
    shard, inner = np.divmod(chunk, per_shard[array])
    position = _number(inner, per_shard[array])
    per_array = shard_grid.prod(axis=1) * per_shard.prod(axis=1)
    base = np.cumsum(per_array) - per_array
    key = base[array] + _number(shard, shard_grid[array]) * per_shard.prod(axis=1)[array] + position
    order = np.argsort(key, kind="stable")
    key = key[order]
    is_new = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=is_new[1:])
    first_piece = np.flatnonzero(is_new)
    of_chunk = order[first_piece]
    return ReadPlan(
        arrays=arrays,
        array=array[of_chunk],
        chunk_zyx=chunk[of_chunk],
        shard_zyx=shard[of_chunk],
        position=position[of_chunk],
        first_piece=np.append(first_piece, len(key)),
        box=box[order],
        within_chunk_zyx=(begin - origin)[order],
        within_box_zyx=(begin - starts[box])[order],
        shape_zyx=shape[order],
    )


def _corners(boxes: Sequence[tuple[ArraySpec, Box]]) -> tuple[Rows, Rows]:
    starts = _triples([box.start_zyx for _, box in boxes])
    stops = _triples([box.stop_zyx for _, box in boxes])
    shapes = _triples([array.shape_zyx for array, _ in boxes])
    outside = ((starts < 0) | (stops > shapes)).any(axis=1)
    if outside.any():
        array, box = boxes[int(outside.argmax())]
        raise ValueError(f"{box} leaves the array of shape {array.shape_zyx} (z, y, x)")
    return starts, stops


def _triples(values: Sequence[ShapeZYX]) -> Rows:
    return np.array(values, np.int64).reshape(-1, 3)


def _number(index_zyx: Rows, shape_zyx: Rows) -> Rows:
    """Return the numbers of places of a grid, counted in C order."""
    numbers: Rows = index_zyx[:, 0] * shape_zyx[:, 1]
    numbers += index_zyx[:, 1]
    numbers *= shape_zyx[:, 2]
    numbers += index_zyx[:, 2]
    return numbers
