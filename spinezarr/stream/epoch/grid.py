"""Patches that cover a volume, and what merges predictions for them back into it.

Along each axis the patches are spread evenly from the first voxel to the last, as in nnU-Net [1]_:
as few as overlap at least as asked. None leaves the volume, so the last ones lie further inside
than full steps would place them. Along an axis on which the volume is smaller than the patch there
is one patch, padded evenly on both sides.

References
----------
.. [1] Isensee et al., nnU-Net, Nature Methods 18, 203-211 (2021),
   https://doi.org/10.1038/s41592-020-01008-z; ``inference/sliding_window_prediction.py`` of
   nnunetv2.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.reader import ArraySpec
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.engine import BoxRead, Engine
from spinezarr.stream.request import PatchRequest

__all__ = ["GridStream", "Merger", "Tiling", "Weights"]

Weights = Literal["average", "gaussian", "crop"]
"""How predictions that overlap are merged."""
_SIGMA: Final = 1 / 8
"""Standard deviation of the gaussian weights as a share of the patch: nnU-Net's and MONAI's."""
_SPATIAL_AXES: Final = 3


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where patches lie that cover a volume: every combination of the starts along three axes.

    Examples
    --------
    >>> Tiling.cover((10, 8, 3), (4, 4, 4), (2, 0, 0)).starts_zyx
    ((0, 2, 4, 6), (0, 4), (0,))
    """

    shape_zyx: ShapeZYX
    """Voxels of the volume."""
    size_zyx: ShapeZYX
    """Voxels of a patch."""
    starts_zyx: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """First voxels along z, y and x; negative where a patch is padded."""

    @classmethod
    def cover(cls, shape_zyx: ShapeZYX, size_zyx: ShapeZYX, overlap_zyx: ShapeZYX) -> Self:
        """Cover a volume with patches that overlap at least by so many voxels.

        Raises
        ------
        UsageError
            If a patch is empty, or overlaps itself wholly.
        """
        for size, overlap in zip(size_zyx, overlap_zyx, strict=True):
            if size < 1:
                raise UsageError(f"patch size {size_zyx} (z, y, x): every side must be at least 1.")
            if not 0 <= overlap < size:
                raise UsageError(
                    f"overlap {overlap_zyx} (z, y, x): must be at least 0 and smaller than the "
                    f"patch, {size_zyx}."
                )
        z, y, x = map(_starts, shape_zyx, size_zyx, overlap_zyx)
        return cls(shape_zyx, size_zyx, (z, y, x))

    def __len__(self) -> int:
        """Return the number of patches."""
        z, y, x = (len(starts) for starts in self.starts_zyx)
        return z * y * x

    def start(self, index: int) -> ShapeZYX:
        """Return the first voxel of a patch; patches are ordered by z, then y, then x."""
        lengths = [len(starts) for starts in self.starts_zyx]
        places = np.unravel_index(index, lengths)
        z, y, x = (s[int(i)] for s, i in zip(self.starts_zyx, places, strict=True))
        return (z, y, x)


def _starts(n: int, size: int, overlap: int) -> tuple[int, ...]:
    if n <= size:
        return (-((size - n) // 2),)
    steps = -(-(n - size) // (size - overlap))
    return tuple(i * (n - size) // steps for i in range(steps + 1))


@dataclass(frozen=True, slots=True, eq=False)
class GridStream:
    """Patches that cover one scan; iterate over it for batches.

    Made by :meth:`spinezarr.Store.grid`. Iterating reads each chunk once: layers of the volume, one
    chunk thick, are kept from their first patch to their last, and one more is read ahead. So
    memory holds as many planes as a patch and two or three chunks are thick. A batch asked for by
    its number reads just that batch.
    """

    stream: PatchStream
    """Reads patches of the size of the grid; its own draws are not used."""
    scan_id: str
    """The scan that is covered."""
    tiling: Tiling

    @property
    def batch_size(self) -> int:
        """Patches in a batch."""
        return self.stream.batch_size

    @property
    def n_samples(self) -> int:
        """Patches of the grid."""
        return len(self.tiling)

    def __len__(self) -> int:
        """Return the number of batches; the last may be smaller."""
        return math.ceil(self.n_samples / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Read batch ``number``.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return self.read(self._requests(number))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        with _LayeredEngine(self.stream.engine) as layered:
            stream = replace(self.stream, engine=layered, client=None)
            for number in range(len(self)):
                yield stream.read(self._requests(number))

    def request(self, index: int) -> PatchRequest:
        """Place patch ``index``, without reading it."""
        box = Box.at(self.tiling.start(index), self.tiling.size_zyx)
        return PatchRequest(index, self.scan_id, box, None)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the grid's size into one batch."""
        return self.stream.read(requests)

    def merger(
        self,
        weights: Weights = "gaussian",
        finish: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    ) -> "Merger":
        """Make a merger of predictions for these patches; see :class:`Merger`."""
        return Merger(self.tiling, weights, finish)

    def _requests(self, number: int) -> list[PatchRequest]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of a grid of {len(self)}")
        first = number * self.batch_size
        last = min(first + self.batch_size, self.n_samples)
        return [self.request(index) for index in range(first, last)]


class _LayeredEngine(Engine):
    """Reads boxes whose planes never go back, by layers one chunk thick that it keeps.

    Parameters
    ----------
    engine
        Reads the layers.
    """

    def __init__(self, engine: Engine) -> None:
        self.buffers = engine.buffers
        self._engine = engine
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="spinezarr-grid")
        self._layers: dict[tuple[str, int], Future[npt.NDArray[Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.shutdown(cancel_futures=True)

    def read(self, reads: Iterable[BoxRead], *, threads: int = 1) -> None:
        """See :meth:`Engine.read`."""
        wanted = list(reads)
        lowest = min(read.box.start_zyx[0] // read.array.chunk_shape_zyx[0] for read in wanted)
        for name, number in list(self._layers):
            if number < lowest:
                del self._layers[name, number]
        for read in wanted:
            self._copy(read, threads)

    def _copy(self, read: BoxRead, threads: int) -> None:
        (low, *_), (high, *_) = read.box.start_zyx, read.box.stop_zyx
        _, rows, columns = read.box.slices
        thickness = read.array.chunk_shape_zyx[0]
        needed = range(low // thickness, -(-high // thickness))
        for number in (*needed, needed.stop):
            if (read.array.name, number) not in self._layers:
                layer = self._ahead.submit(self._read_layer, read.array, number, threads)
                self._layers[read.array.name, number] = layer
        for number in needed:
            top = number * thickness
            a, b = max(low, top), min(high, top + thickness)
            layer = self._layers[read.array.name, number]
            read.out[a - low : b - low] = layer.result()[a - top : b - top, rows, columns]

    def _read_layer(self, array: ArraySpec, number: int, threads: int) -> npt.NDArray[Any]:
        """Read the planes of a layer; none beyond the last."""
        depth, height, width = array.shape_zyx
        low = number * array.chunk_shape_zyx[0]
        high = min(low + array.chunk_shape_zyx[0], depth)
        layer = self.buffers.empty((max(0, high - low), height, width), array.dtype)
        if len(layer):
            box = Box((low, 0, 0), (high, height, width))
            self._engine.read([BoxRead(array, box, layer)], threads=threads)
        return layer


class Merger:
    """Puts predictions for the patches of a grid back into one volume.

    Predictions are added in the order of the grid, so that planes are finished as soon as no later
    patch reaches them. Memory holds the result, and sums for as many planes as a patch is thick:
    float32 (float64 if predictions are wider than float32 holds), for all channels. With
    ``finish``, the result is what that returns, e.g. one uint8 mask in place of 29 float32 volumes.

    Parameters
    ----------
    tiling
        Of the grid: ``store.grid(...).tiling``.
    weights
        ``"gaussian"``: each patch counts most in its middle, with a standard deviation of an
        eighth of its size along each axis, as in nnU-Net and MONAI. ``"average"``: all count alike.
        ``"crop"``: each voxel is taken from one patch, between neighbors from the one whose middle
        is nearer, as it is, in the predictions' own type.
    finish
        Called with finished planes ``(c, z, y, x)``, slab by slab; returns ``(..., z, y, x)``.

    Raises
    ------
    UsageError
        If there are no such weights.

    Examples
    --------
    >>> grid = store.grid("liver_0", 24, batch_size=4)
    >>> merger = grid.merger("average")
    >>> for batch in grid:
    ...     merger.add(batch, batch.image[:, None])
    >>> bool((merger.merge()[0] == store.scan("liver_0").image).all())
    True
    """

    def __init__(
        self,
        tiling: Tiling,
        weights: Weights = "gaussian",
        finish: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    ) -> None:
        if weights not in get_args(Weights):
            raise UsageError(f"weights {weights!r}: must be one of {', '.join(get_args(Weights))}.")
        self._tiling = tiling
        self._finish = finish
        self._crops = weights == "crop"
        self._added = 0
        self._from = 0
        """First plane that is not finished."""
        self._sums: npt.NDArray[Any] | None = None
        """Weighted sums ``(c, z, y, x)`` from that plane on."""
        self._result: npt.NDArray[Any] | None = None
        axes = (tiling.shape_zyx, tiling.size_zyx, tiling.starts_zyx)
        self._owned = [_owned(n, size, s) for n, size, s in zip(*axes, strict=True)]
        profiles = [_profile(size, weights) for size in tiling.size_zyx]
        covered = zip(tiling.shape_zyx, tiling.starts_zyx, profiles, strict=True)
        self._totals = [_total(n, starts, profile) for n, starts, profile in covered]
        self._weights = _outer(profiles) if weights == "gaussian" else None

    def add(self, patches: Batch | npt.ArrayLike, predictions: npt.ArrayLike) -> None:
        """Add predictions for the next patches.

        Parameters
        ----------
        patches
            The batch they are for, or its ``start_zyx``, shape ``(n, 3)``.
        predictions
            Numbers of shape ``(n, c, z, y, x)``, z, y and x as in the patches; a tensor in the
            memory of a GPU goes to the host first.

        Raises
        ------
        UsageError
            If these are not the next patches of the grid, or the shape is another.
        """
        starts = np.asarray(patches.start_zyx if isinstance(patches, Batch) else patches)
        values = np.asarray(predictions)
        channels = values.shape[1:2] if self._sums is None else self._sums.shape[:1]
        expected = (len(starts), *channels, *self._tiling.size_zyx)
        if values.ndim != _SPATIAL_AXES + 2 or values.shape != expected:
            raise UsageError(
                f"predictions of shape {values.shape} for {len(starts)} patches: expected (n, "
                f"channels, z, y, x), here {expected}."
            )
        for start, value in zip(starts.tolist(), values, strict=True):
            self._add(tuple(start), value)

    def merge(self) -> npt.NDArray[Any]:
        """Return the volume.

        Returns
        -------
        numpy.ndarray
            ``(c, z, y, x)`` on the scan's own grid, or what ``finish`` made of it.

        Raises
        ------
        UsageError
            If patches are missing.
        """
        if self._added < len(self._tiling):
            raise UsageError(
                f"{self._added} of {len(self._tiling)} patches have predictions: add the others "
                "before you merge."
            )
        self._finish_planes(self._tiling.shape_zyx[0])
        if self._result is None:
            raise AssertionError("a merged grid has no patch")
        return self._result

    def _add(self, start_zyx: tuple[int, ...], value: npt.NDArray[Any]) -> None:
        tiling = self._tiling
        if self._added == len(tiling) or start_zyx != tiling.start(self._added):
            there = (
                f"the next one starts at {tiling.start(self._added)}"
                if self._added < len(tiling)
                else "all are there"
            )
            raise UsageError(
                f"patch at {start_zyx} (z, y, x): {there}. Add the predictions in the order of the "
                "grid, each once."
            )
        places = np.unravel_index(self._added, [len(s) for s in tiling.starts_zyx])
        patch = Box.at(tiling.start(self._added), tiling.size_zyx)
        whole = Box((0, 0, 0), tiling.shape_zyx)
        if self._crops:
            bounds = [owned[int(i)] for owned, i in zip(self._owned, places, strict=True)]
            whole = Box(*zip(*bounds, strict=True))
        self._deposit(patch, patch.intersect(whole) or patch, value)
        self._added += 1

    def _deposit(self, patch: Box, inside: Box, value: npt.NDArray[Any]) -> None:
        """Add the part of a prediction that lies inside a box."""
        self._finish_planes(max(0, patch.start_zyx[0]))
        if self._sums is None:
            depth, height, width = self._tiling.shape_zyx
            planes = min(self._tiling.size_zyx[0], depth)
            dtype = value.dtype if self._crops else np.result_type(np.float32, value.dtype)
            self._sums = np.zeros((len(value), planes, height, width), dtype)
        z, y, x = (-start for start in patch.start_zyx)
        cut = inside.shift((z, y, x)).slices
        into = self._sums[:, *inside.shift((-self._from, 0, 0)).slices]
        if self._crops:
            into[...] = value[:, *cut]
        elif self._weights is None:
            into += value[:, *cut]
        else:
            self._weights = self._weights.astype(into.dtype, copy=False)
            into += value[:, *cut] * self._weights[cut]

    def _finish_planes(self, stop: int) -> None:
        """Finish the planes before ``stop``, and move the sums on."""
        n = stop - self._from
        if self._sums is None or n <= 0:
            return
        planes = self._sums[:, :n]
        if not self._crops:
            totals = [self._totals[0][self._from : stop], *self._totals[1:]]
            planes = planes / _outer(totals).astype(self._sums.dtype)
        done = planes if self._finish is None else np.asarray(self._finish(planes))
        if done.shape[-_SPATIAL_AXES:] != planes.shape[1:]:
            raise UsageError(
                f"finish returned shape {done.shape} for planes {planes.shape}: the last three "
                "axes must stay."
            )
        if self._result is None:
            shape = (*done.shape[:-_SPATIAL_AXES], *self._tiling.shape_zyx)
            self._result = np.empty(shape, done.dtype)
        self._result[..., self._from : stop, :, :] = done
        self._sums[:, :-n] = self._sums[:, n:]
        self._sums[:, -n:] = 0
        self._from = stop


def _profile(size: int, weights: Weights) -> npt.NDArray[np.float64]:
    """Weigh the voxels of a patch along one axis."""
    if weights != "gaussian":
        return np.ones(size)
    offsets = np.arange(size) - (size - 1) / 2
    bell: npt.NDArray[np.float64] = np.exp(-0.5 * (offsets / (_SIGMA * size)) ** 2)
    return bell


def _total(
    n: int, starts: tuple[int, ...], profile: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Sum what all patches weigh at each voxel of an axis; their product is that of the grid."""
    total = np.zeros(n)
    for start in starts:
        low, high = max(0, start), min(n, start + len(profile))
        total[low:high] += profile[low - start : high - start]
    return total


def _owned(n: int, size: int, starts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Split an axis where two neighbors are equally far."""
    borders = [0, *((a + b + size) // 2 for a, b in pairwise(starts)), n]
    return list(pairwise(borders))


def _outer(axes: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
