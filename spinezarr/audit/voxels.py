"""What the rules need of a scan's voxels, read label by label so that memory stays bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.layout import CHUNK_SHAPE_ZYX
from spinezarr.store.reader import ArraySpec, ScanHandle
from spinezarr.stream.engine import Engine
from spinezarr.vertebrae import NAME_OF_VALUE

__all__ = ["BoneSample", "Piece", "VoxelFacts", "connected_pieces", "read_voxel_facts"]

_CONNECTIVITY: Final = 26
"""Voxels that share a corner belong together."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One connected part of a label."""

    voxel_count: int
    box: Box
    voxel_zyx: ShapeZYX
    """The voxel of it that is nearest to its mean."""


@dataclass(frozen=True, slots=True)
class BoneSample:
    """CT numbers where the mask says bone: one vertebra in one chunk."""

    vertebra: str
    median_hu: float
    voxel_count: int
    voxel_zyx: ShapeZYX


@dataclass(frozen=True, slots=True)
class VoxelFacts:
    """What was read of one scan."""

    pieces: dict[str, tuple[Piece, ...]]
    """Of each labelled vertebra, the largest first."""
    other_at: dict[int, ShapeZYX]
    """A voxel of each value that is neither vertebra nor named structure."""
    bone: BoneSample | None
    """None if the mask shows no vertebra."""


def read_voxel_facts(
    engine: Engine, scan: ScanHandle, label_chunks: npt.NDArray[np.uint32]
) -> VoxelFacts:
    """Read what the rules need of a scan's mask, and of its image one chunk.

    Parameters
    ----------
    engine
        Reads the voxels.
    scan
        The scan; nothing is read of one without mask.
    label_chunks
        See :meth:`spinezarr.store.reader.StoreReader.label_chunks`.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged.
    """
    if scan.label is None:
        return VoxelFacts({}, {}, None)
    pieces: dict[str, tuple[Piece, ...]] = {}
    other_at: dict[int, ShapeZYX] = {}
    for value in np.unique(label_chunks[:, 0]).tolist():
        rows = label_chunks[label_chunks[:, 0] == value]
        if value in NAME_OF_VALUE:
            found = sorted(
                _pieces_of_label(engine, scan.label, value, rows[:, 1:4]),
                key=lambda piece: (-piece.voxel_count, piece.voxel_zyx),
            )
            pieces[NAME_OF_VALUE[value]] = tuple(found)
        elif str(value) not in scan.attributes.structures:
            other_at[value] = _most_filled(engine, scan.label, rows)[1]
    return VoxelFacts(pieces, other_at, _bone_sample(engine, scan, label_chunks))


def connected_pieces(inside: npt.NDArray[np.bool_], start_zyx: ShapeZYX) -> Iterator[Piece]:
    """Yield the connected parts of a mask ``(z, y, x)`` whose first voxel is ``start_zyx``.

    Examples
    --------
    >>> [piece.voxel_zyx for piece in connected_pieces(np.array([[[1, 1, 0, 1]]], bool), (5, 0, 0))]
    [(5, 0, 0), (5, 0, 3)]
    """
    parts = _connected(inside)
    measured = cc3d.statistics(parts)
    counts = measured["voxel_counts"].tolist()
    for number, slices in enumerate(measured["bounding_boxes"]):
        if number == 0:  # background
            continue
        at = np.argwhere(parts[slices] == number)
        off_mean = at - at.mean(axis=0)
        nearest = at[np.einsum("ij,ij->i", off_mean, off_mean).argmin()]
        corner = _index(s.start + first for s, first in zip(slices, start_zyx, strict=True))
        shape = _index(s.stop - s.start for s in slices)
        voxel = _index(n + first for n, first in zip(nearest.tolist(), corner, strict=True))
        yield Piece(counts[number], Box.at(corner, shape), voxel)


def _connected(inside: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Give each connected part of a mask a number, from 1.

    As uint8: for booleans, cc3d 4.1.1 raises on masks such as ``[[[1, 0, 1]]]``.
    """
    return cc3d.connected_components(inside.view(np.uint8), connectivity=_CONNECTIVITY)


def _pieces_of_label(
    engine: Engine, label: ArraySpec, value: int, chunks_zyx: npt.NDArray[np.uint32]
) -> Iterator[Piece]:
    """Yield the parts of a label.

    Chunks that do not touch are read on their own, so that a voxel far off does not make the box
    span the volume.
    """
    grid = np.zeros(chunks_zyx.max(axis=0) + 1, np.bool_)
    grid[tuple(chunks_zyx.T)] = True
    clusters = _connected(grid)
    for cluster in range(1, int(clusters.max()) + 1):
        box = _box_of_chunks(np.argwhere(clusters == cluster), label.shape_zyx)
        voxels = np.empty(box.shape_zyx, np.uint8)
        engine.read_into(label, box, voxels)
        for piece in connected_pieces(voxels == value, box.start_zyx):
            # The box may reach over chunks of another cluster.
            chunk = _index(n // c for n, c in zip(piece.voxel_zyx, CHUNK_SHAPE_ZYX, strict=True))
            if clusters[chunk] == cluster:
                yield piece


def _box_of_chunks(chunks_zyx: npt.NDArray[np.int_], shape_zyx: ShapeZYX) -> Box:
    start = chunks_zyx.min(axis=0) * CHUNK_SHAPE_ZYX
    stop = np.minimum((chunks_zyx.max(axis=0) + 1) * CHUNK_SHAPE_ZYX, shape_zyx)
    return Box(_index(start.tolist()), _index(stop.tolist()))


def _most_filled(
    engine: Engine, label: ArraySpec, rows: npt.NDArray[np.uint32]
) -> tuple[Box, ShapeZYX, npt.NDArray[np.bool_]]:
    """Return the chunk that holds most voxels of a label, one of them, and where they are."""
    value, *chunk, _ = rows[rows[:, 4].argmax()].tolist()
    box = _box_of_chunks(np.array([chunk]), label.shape_zyx)
    voxels = np.empty(box.shape_zyx, np.uint8)
    engine.read_into(label, box, voxels)
    inside = voxels == value
    largest = max(connected_pieces(inside, box.start_zyx), key=lambda piece: piece.voxel_count)
    return box, largest.voxel_zyx, inside


def _bone_sample(
    engine: Engine, scan: ScanHandle, label_chunks: npt.NDArray[np.uint32]
) -> BoneSample | None:
    """Look at the chunk with most voxels of one vertebra."""
    rows = label_chunks[np.isin(label_chunks[:, 0], list(NAME_OF_VALUE))]
    if scan.label is None or not len(rows):
        return None
    box, voxel_zyx, inside = _most_filled(engine, scan.label, rows)
    image = np.empty(box.shape_zyx, scan.image.dtype)
    engine.read_into(scan.image, box, image)
    median = float(np.median(image[inside]))
    name = NAME_OF_VALUE[int(rows[rows[:, 4].argmax(), 0])]
    return BoneSample(name, median, int(inside.sum()), voxel_zyx)


def _index(values: Sequence[int] | Iterator[int]) -> ShapeZYX:
    z, y, x = values
    return (int(z), int(y), int(x))
