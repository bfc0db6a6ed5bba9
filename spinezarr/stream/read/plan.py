"""Which chunks do some boxes of voxels need?

A plan is data, made without any I/O. A *piece* is the part of one box that lies in one chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.native import PIECES, PLACES, encoding_number, kernel

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
    array_numbers: Rows = field(repr=False)
    """Shape ``(arrays, 12)``: see :meth:`spinezarr.stream.read.native.Kernel.plan`."""
    places: npt.NDArray[np.void] = field(repr=False)
    """Rows of :data:`spinezarr.stream.read.native.PLACES`, one for each chunk."""
    piece_rows: npt.NDArray[np.void] = field(repr=False)
    """Rows of :data:`spinezarr.stream.read.native.PIECES`, one for each piece."""

    @property
    def array(self) -> Rows:
        """Shape ``(chunks,)``: number of the chunk's array in :attr:`arrays`."""
        return self.places["array"]

    @property
    def chunk_zyx(self) -> Rows:
        """Shape ``(chunks, 3)``: index of the chunk in its array."""
        return self.places["chunk_zyx"]

    @property
    def shard_zyx(self) -> Rows:
        """Shape ``(chunks, 3)``: index of the chunk's shard in its array."""
        return self.places["shard_zyx"]

    @property
    def position(self) -> Rows:
        """Shape ``(chunks,)``: position of the chunk in its shard, in C order."""
        return self.places["position"]

    @property
    def first_piece(self) -> Rows:
        """Shape ``(chunks + 1,)``: row of the chunk's first piece; last, the number of pieces."""
        return np.append(self.places["first_piece"], len(self.piece_rows))

    @property
    def box(self) -> Rows:
        """Shape ``(pieces,)``: number of the box that the piece is a part of."""
        return self.piece_rows["output"]

    @property
    def within_chunk_zyx(self) -> Rows:
        """Shape ``(pieces, 3)``: first voxel of the piece, counted from the start of its chunk."""
        return self.piece_rows["within_chunk_zyx"]

    @property
    def within_box_zyx(self) -> Rows:
        """Shape ``(pieces, 3)``: first voxel of the piece, counted from the start of its box."""
        return self.piece_rows["within_output_zyx"]

    @property
    def shape_zyx(self) -> Rows:
        """Shape ``(pieces, 3)``: shape of the piece in voxels."""
        return self.piece_rows["shape_zyx"]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.places)

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
        return self.places["first_block"], self.places["stop_block"]

    def pieces(self, chunk: int) -> Iterator[tuple[int, Box, Box]]:
        """Yield the pieces of a chunk: number of the box, voxels in the chunk and in the box."""
        first, n = int(self.places["first_piece"][chunk]), int(self.places["n_pieces"][chunk])
        for box, within_box, within_chunk, shape in self.piece_rows[first : first + n].tolist():
            z, y, x = shape.tolist()
            (a, b, c), (d, e, f) = within_chunk.tolist(), within_box.tolist()
            yield box, Box.at((a, b, c), (z, y, x)), Box.at((d, e, f), (z, y, x))

    @property
    def shard_runs(self) -> list[tuple[tuple[ArraySpec, ShapeZYX], int]]:
        """The shards in the order of the chunks: array, index of the shard, end of its chunks."""
        first = np.flatnonzero(self.places["opens_shard"])
        opening = self.places[first]
        ends = [*first[1:].tolist(), len(self)] if len(first) else []
        return [
            ((self.arrays[array], (z, y, x)), end)
            for array, (z, y, x), end in zip(
                opening["array"].tolist(), opening["shard_zyx"].tolist(), ends, strict=True
            )
        ]


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
    arrays = tuple(dict.fromkeys(array for array, _ in boxes))
    number = {array: i for i, array in enumerate(arrays)}
    array_numbers = np.array([_numbers(array) for array in arrays], np.int64).reshape(-1, 12)
    rows = [(number[array], *box.start_zyx, *box.stop_zyx) for array, box in boxes]
    for array, box in boxes:
        _check_inside(box, array)
    loaded = kernel()
    if loaded is None:
        places, pieces = _plan_without_kernel(arrays, rows)
    else:
        places, pieces = loaded.plan(array_numbers, np.array(rows, np.int64).reshape(-1, 7))
    return ReadPlan(arrays, array_numbers, places, pieces)


def _numbers(array: ArraySpec) -> tuple[int, ...]:
    """Return the row of an array for the kernel."""
    return (
        *array.shape_zyx,
        *array.chunk_shape_zyx,
        *array.chunks_per_shard_zyx,
        array.stored_dtype.itemsize,
        array.coding.block_bytes,
        encoding_number(array.coding),
    )


def _check_inside(box: Box, array: ArraySpec) -> None:
    (a, b, c), (d, e, f), (z, y, x) = box.start_zyx, box.stop_zyx, array.shape_zyx
    if a < 0 or b < 0 or c < 0 or d > z or e > y or f > x:
        raise ValueError(f"{box} leaves the array of shape {array.shape_zyx} (z, y, x)")


def _plan_without_kernel(
    arrays: Sequence[ArraySpec], boxes: Sequence[tuple[int, ...]]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Do what :meth:`spinezarr.stream.read.native.Kernel.plan` does."""
    pieces_of: dict[tuple[int, ShapeZYX, int, ShapeZYX], list[tuple[object, ...]]] = {}
    for number, (array_number, *corners) in enumerate(boxes):
        array = arrays[array_number]
        starts, stops, sides = corners[:3], corners[3:], array.chunk_shape_zyx
        met = (
            range(start // side, (stop - 1) // side + 1)
            for start, stop, side in zip(starts, stops, sides, strict=True)
        )
        for chunk in product(*met):
            origin = [i * side for i, side in zip(chunk, sides, strict=True)]
            begin = [max(pair) for pair in zip(starts, origin, strict=True)]
            ends = [min(b, o + n) for b, o, n in zip(stops, origin, sides, strict=True)]
            piece = (
                number,
                tuple(np.subtract(begin, starts)),
                tuple(np.subtract(begin, origin)),
                tuple(np.subtract(ends, begin)),
            )
            per_shard = array.chunks_per_shard_zyx
            z, y, x = (i // n for i, n in zip(chunk, per_shard, strict=True))
            within = [i % n for i, n in zip(chunk, per_shard, strict=True)]
            position = int(np.ravel_multi_index(within, per_shard))
            i, j, k = chunk
            key = (array_number, (z, y, x), position, (i, j, k))
            pieces_of.setdefault(key, []).append(piece)
    keys = sorted(pieces_of)
    pieces = np.array([piece for key in keys for piece in pieces_of[key]], PIECES)
    places = np.zeros(len(keys), PLACES)
    first = 0
    for row, key in zip(places, keys, strict=True):
        row["array"], row["shard_zyx"], row["position"], row["chunk_zyx"] = key
        row["first_piece"], row["n_pieces"] = first, len(pieces_of[key])
        array, own = arrays[key[0]], pieces[first : first + len(pieces_of[key])]
        first += len(own)
        _, y, x = array.chunk_shape_zyx
        plane_bytes, block_bytes = y * x * array.stored_dtype.itemsize, array.coding.block_bytes
        planes = own["within_chunk_zyx"][:, 0]
        row["first_block"] = planes.min() * plane_bytes // block_bytes
        stop = (planes + own["shape_zyx"][:, 0]).max()
        row["stop_block"] = (stop * plane_bytes - 1) // block_bytes + 1
    if keys:
        places["opens_shard"][0] = 1
    for row, (before, key) in zip(places[1:], pairwise(keys), strict=True):
        row["opens_shard"] = before[:2] != key[:2]
    return places, pieces
