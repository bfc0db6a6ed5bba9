"""Which chunks do some boxes of voxels need?

A plan is data, made without any I/O. A *piece* is the part of one box that lies in one chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.scan_handle import ArraySpec

__all__ = ["ReadPlan", "plan_reads"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """The chunks that some boxes need, each once, and the pieces of the boxes in these chunks.

    There are two tables. Arrays of shape ``(chunks, ...)`` have a row for each chunk, in the order
    of array, shard, and position in the shard. Arrays of shape ``(pieces, ...)`` have a row for
    each piece; the pieces of chunk ``c`` are the rows from ``first_piece[c]`` up to, but without,
    ``first_piece[c + 1]``. The pieces of one box are disjoint and cover it.

    Examples
    --------
    An array of 4 x 4 x 8 voxels has chunks of 4 x 4 x 4, so it has two chunks side by side along x.
    They lie in one shard. Each chunk has two blocks of two planes.

    >>> from spinezarr.store.blocks import BlockCoding
    >>> coding = BlockCoding(128, 64, 2, is_lz4=True, is_shuffled=True)
    >>> array = ArraySpec("a", "image", "", (4, 4, 8), np.dtype("i2"), (4, 4, 4), (4, 4, 8), {},
    ...                   "/", coding, {})

    Box 0 crosses the border between the chunks, so it has two pieces. Box 1 lies in chunk 1.

    >>> boxes = [Box((0, 0, 2), (1, 2, 7)), Box((1, 1, 6), (2, 2, 8))]
    >>> plan = plan_reads([(array, box) for box in boxes])
    >>> plan.chunk_zyx.tolist()
    [[0, 0, 0], [0, 0, 1]]

    Chunk 0 has one piece, row 0. Chunk 1 has two pieces, rows 1 and 2.

    >>> plan.first_piece.tolist()
    [0, 1, 3]
    >>> plan.box.tolist()
    [0, 0, 1]

    Row 1 is the second piece of box 0. It begins at voxel (0, 0, 0) of chunk 1, which is voxel
    (0, 0, 2) of the box, and has 1 x 2 x 3 voxels.

    >>> plan.within_chunk_zyx[1].tolist(), plan.within_box_zyx[1].tolist()
    ([0, 0, 0], [0, 0, 2])
    >>> plan.shape_zyx[1].tolist()
    [1, 2, 3]

    All pieces lie in the first two planes, so only the first block of each chunk is needed.

    >>> [numbers.tolist() for numbers in plan.blocks]
    [[0, 0], [1, 1]]
    """

    arrays: tuple[ArraySpec, ...]
    """The arrays that chunks are read from."""
    array: Rows
    """Shape ``(chunks,)``: number of the chunk's array in :attr:`arrays`."""
    chunk_zyx: Rows
    """Shape ``(chunks, 3)``: index of the chunk in its array."""
    shard_zyx: Rows
    """Shape ``(chunks, 3)``: index of the chunk's shard in its array."""
    position: Rows
    """Shape ``(chunks,)``: position of the chunk in its shard, in C order."""
    first_piece: Rows
    """Shape ``(chunks + 1,)``: row of the chunk's first piece; last, the number of pieces."""
    box: Rows
    """Shape ``(pieces,)``: number of the box that the piece is a part of."""
    within_chunk_zyx: Rows
    """Shape ``(pieces, 3)``: first voxel of the piece, counted from the start of its chunk."""
    within_box_zyx: Rows
    """Shape ``(pieces, 3)``: first voxel of the piece, counted from the start of its box."""
    shape_zyx: Rows
    """Shape ``(pieces, 3)``: shape of the piece in voxels."""

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

    @property
    def blocks(self) -> tuple[Rows, Rows]:
        """First block of each chunk that holds wanted voxels, and one past the last.

        Both have the shape ``(chunks,)``. All planes along z that the pieces meet count as wanted.
        """
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first = self.within_chunk_zyx[:, 0]
        start = np.minimum.reduceat(first, self.first_piece[:-1])
        stop = np.maximum.reduceat(first + self.shape_zyx[:, 0], self.first_piece[:-1])
        planes = [array.chunk_shape_zyx[1:] for array in self.arrays]
        plane_bytes = [
            y * x * array.stored_dtype.itemsize
            for (y, x), array in zip(planes, self.arrays, strict=True)
        ]
        block_bytes = [array.coding.block_bytes for array in self.arrays]
        of_plane, of_block = np.array([plane_bytes, block_bytes], np.int64)[:, self.array]
        return start * of_plane // of_block, (stop * of_plane - 1) // of_block + 1

    def pieces(self, chunk: int) -> Iterator[tuple[int, Box, Box]]:
        """Yield the pieces of a chunk: number of the box, voxels in the chunk and in the box."""
        for piece in range(self.first_piece[chunk], self.first_piece[chunk + 1]):
            (a, b, c), (d, e, f) = self.within_chunk_zyx[piece], self.within_box_zyx[piece]
            z, y, x = self.shape_zyx[piece].tolist()
            within_chunk = Box.at((int(a), int(b), int(c)), (z, y, x))
            within_box = Box.at((int(d), int(e), int(f)), (z, y, x))
            yield int(self.box[piece]), within_chunk, within_box


def plan_reads(boxes: Sequence[tuple[ArraySpec, Box]]) -> ReadPlan:
    """Plan which chunks to read for some boxes; see :class:`ReadPlan`.

    Parameters
    ----------
    boxes
        Stored arrays, and boxes of voxels inside them.

    Raises
    ------
    ValueError
        If a box leaves its array.
    """
    arrays = tuple({id(array): array for array, _ in boxes}.values())
    number = {id(array): i for i, array in enumerate(arrays)}
    array_of_box = np.array([number[id(array)] for array, _ in boxes], np.int64)
    starts, stops = _corners(boxes)
    chunk_shape = _triples([array.chunk_shape_zyx for array in arrays])
    chunks_per_shard = _triples([array.chunks_per_shard_zyx for array in arrays])
    shard_shape = chunk_shape * chunks_per_shard
    shard_grid = -(-_triples([array.shape_zyx for array in arrays]) // shard_shape)

    # A box meets the block of chunks from first to first + count. List them with a row per piece.
    sides = chunk_shape[array_of_box]
    first = starts // sides
    count = -(-stops // sides) - first
    n_pieces = count.prod(axis=1)
    box = np.repeat(np.arange(len(boxes)), n_pieces)
    ends = np.cumsum(n_pieces)
    piece_in_box = np.arange(len(box)) - np.repeat(ends - n_pieces, n_pieces)
    along_y, along_x = count[box, 1], count[box, 2]
    chunk = np.empty((len(box), 3), np.int64)
    rest, chunk[:, 2] = np.divmod(piece_in_box, along_x)
    chunk[:, 0], chunk[:, 1] = np.divmod(rest, along_y)
    chunk += first[box]

    array = array_of_box[box]
    origin = chunk * sides[box]
    begin = np.maximum(starts[box], origin)
    shape = np.minimum(stops[box], origin + sides[box]) - begin

    # Equal keys mean equal chunks. Keys are ordered by array, shard and position in the shard.
    shard, inner = np.divmod(chunk, chunks_per_shard[array])
    position = _flat_index(inner, chunks_per_shard[array])
    shard_chunks = chunks_per_shard.prod(axis=1)
    array_chunks = shard_grid.prod(axis=1) * shard_chunks
    base = np.cumsum(array_chunks) - array_chunks
    key = base[array] + _flat_index(shard, shard_grid[array]) * shard_chunks[array] + position
    order = np.argsort(key, kind="stable")
    key = key[order]
    is_new = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=is_new[1:])
    first_piece = np.flatnonzero(is_new)
    first_row = order[first_piece]
    return ReadPlan(
        arrays=arrays,
        array=array[first_row],
        chunk_zyx=chunk[first_row],
        shard_zyx=shard[first_row],
        position=position[first_row],
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


def _flat_index(index_zyx: Rows, shape_zyx: Rows) -> Rows:
    """Return the flat indices of cells of a grid in C order, both of shape ``(n, 3)``."""
    numbers: Rows = index_zyx[:, 0] * shape_zyx[:, 1]
    numbers += index_zyx[:, 1]
    numbers *= shape_zyx[:, 2]
    numbers += index_zyx[:, 2]
    return numbers
