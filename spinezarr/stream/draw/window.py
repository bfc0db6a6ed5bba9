"""How can several samples use each chunk that is decoded, and still be well mixed?

A window is a sequence of *neighborhoods*. A neighborhood is a few samples of one scan, so close
together that they lie in the same chunks. Its scan differs from those of the other neighborhoods,
as long as there are enough scans. A window gives one sample of each neighborhood, then a second one
of each in the same order, and so on. So any :attr:`WindowSampler.n_neighborhoods` samples in a row
come from different neighborhoods. If a window is read at once, each chunk is decoded once for all
samples in it.

Every single sample has exactly the distribution of
:meth:`~spinezarr.stream.draw.sampler.Sampler.draw`. Only the samples of one window depend on each
other:

* Scans: they lie on a circle in random order, each on an arc as long as its probability. A pass
  over the store takes points on the circle that are equally far apart. The first point is random,
  so each point has a uniform distribution. This is systematic sampling [1]_: the number of times
  that a scan comes differs from its expectation by less than 1.
* Positions: the starts that a scan allows are cut along chunk borders into cells. One cell is
  drawn by its number of starts, then all samples uniformly in it.
* Balanced draws: a voxel of the vertebra is drawn as usual, then all samples uniformly among the
  voxels of that vertebra in the same chunk.

References
----------
.. [1] W. G. Madow, "On the theory of systematic sampling, II", Annals of Mathematical
   Statistics 20 (1949), 333-354
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.layout import BALANCED
from spinezarr.stream.draw.sampler import Sampler
from spinezarr.stream.request import PatchRequest

__all__ = ["Shuffle", "VoxelFinder", "WindowSampler", "cell_around", "spread", "window_sampler"]

Shuffle = Literal["exact", "window"]
"""``"exact"`` draws each sample by itself; ``"window"`` draws the samples of a window together."""
_WINDOW_SCANS: Final = 8
"""Default number of scans in a window."""
_DECODED_PER_VOXEL: Final = 1.0
"""Default for decoded voxels per voxel of a patch.

With a lower number, samples become more similar but hardly cheaper; see
``docs/explanation/sampling.md``.
"""
_MAX_SAMPLES: Final = 16
"""Default limit for the samples of a neighborhood; with more, few scans are seen at a time."""
_WINDOW_BYTES: Final = 256 << 20
"""Bytes of voxels of the largest default window; a few windows are read ahead."""
_CACHED_WINDOWS: Final = 32
"""Number of windows whose draws stay in memory; threads read fewer windows at once."""
_PASS, _WINDOW = 0, 1
"""Kinds of random generators; a part of their keys."""


class VoxelFinder(Protocol):
    """Interface by which a window gets voxels of vertebrae in stored scans."""

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Read the metadata of some scans at once, before they are needed."""
        ...

    def chunk_shape_zyx(self, scan_id: str) -> ShapeZYX:
        """Return the shape of the chunks of a scan's image and mask, in voxels."""
        ...

    def chunk_voxels(
        self, scan_id: str, vertebra: str, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Return the voxels of a vertebra in the chunk of its k-th voxel.

        Returns
        -------
        numpy.ndarray
            Shape ``(m, 3)``: z, y and x of each voxel of the vertebra in that chunk.
        int
            Row of the k-th voxel.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """The order of the scans from which the windows of one pass over the store draw."""

    scans: npt.NDArray[np.int_]
    """Rows of the scans, in their order on the circle."""
    ends: npt.NDArray[np.float64]
    """Position on the circle at which each scan ends."""
    windows: npt.NDArray[np.int_]
    """Random order of the windows."""
    offset: float
    """Position of the first point, in distances between two points."""


class WindowSampler:
    """Draws whole windows of samples.

    Parameters
    ----------
    sampler
        Gives the distribution of each sample.
    voxel_finder
        Finds voxels in the scans that are drawn.
    window_scans
        Number of scans in a window. If the store has fewer, each has several neighborhoods.
    samples_per_scan
        Number of samples in a neighborhood.

    Raises
    ------
    UsageError
        If a number is less than 1.
    """

    def __init__(
        self,
        sampler: Sampler,
        voxel_finder: VoxelFinder,
        *,
        window_scans: int,
        samples_per_scan: int,
    ) -> None:
        for name, value in (
            ("window_scans", window_scans),
            ("samples_per_scan", samples_per_scan),
        ):
            if value < 1:
                raise UsageError(f"{name} {value}: must be at least 1.")
        self.sampler = sampler
        self.window_scans = window_scans
        self.samples_per_scan = samples_per_scan
        self._voxel_finder = voxel_finder
        self._kind_ends = np.cumsum(sampler.probabilities(), axis=1)
        probability = self._kind_ends[:, -1]
        self._scans = np.flatnonzero(probability)
        # The largest is 1, so all lengths are whole numbers if all scans have equal probability.
        self._arc_lengths = probability[self._scans] / probability.max()
        self.n_neighborhoods = _count_neighborhoods(window_scans, len(self._scans))
        self._pass_windows = max(1, len(self._scans) // self.n_neighborhoods)
        self._window = lru_cache(_CACHED_WINDOWS)(self._draw_window)
        self._pass = lru_cache(_CACHED_WINDOWS)(self._draw_pass)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {name: getattr(self, name) for name in ("window_scans", "samples_per_scan")}
        return partial(WindowSampler, **options), (self.sampler, self._voxel_finder)

    @property
    def n_samples(self) -> int:
        """Number of samples in a window."""
        return self.n_neighborhoods * self.samples_per_scan

    def draw(self, epoch: int, index: int) -> PatchRequest:
        """Draw one sample. Its whole window is drawn with it, and stays in memory for a while."""
        window, within = divmod(index, self.n_samples)
        return self._window(epoch, window)[within]

    def _draw_window(self, epoch: int, window: int) -> tuple[PatchRequest, ...]:
        """Draw the samples of a window in order."""
        rng = self._rng(epoch, window, _WINDOW)
        scans = self._draw_scans(epoch, window, rng).tolist()
        self._voxel_finder.prefetch_scans(self.sampler.scan_ids[scan] for scan in scans)
        # Kinds are spread evenly, so all windows have about the same fraction of balanced draws.
        kinds = _fractions(rng, len(scans)).tolist()
        rows = [
            self._draw_neighborhood(rng, scan, kind)
            for scan, kind in zip(scans, kinds, strict=True)
        ]
        samples = product(range(self.samples_per_scan), zip(scans, rows, strict=True))
        return tuple(
            self.sampler.request_at(window * self.n_samples + i, scan, starts[row], vertebra)
            for i, (row, (scan, (vertebra, starts))) in enumerate(samples)
        )

    def _draw_neighborhood(
        self, rng: np.random.Generator, scan: int, kind: float
    ) -> tuple[str | None, npt.NDArray[np.int_]]:
        """Draw the samples of one scan: the vertebra, None for a uniform draw, and the starts.

        ``kind``, from 0 to 1, chooses a kind of draw by its cumulative probability for the scan.
        """
        ends = self._kind_ends[scan]
        inside = min(kind * ends[-1], np.nextafter(ends[-1], 0))  # a product may be rounded up
        column = int(np.searchsorted(ends, inside, side="right"))
        if not column:
            return None, self._draw_in_cell(rng, scan)
        name = self.sampler.vertebrae[column - 1]
        k = int(rng.integers(self.sampler.voxel_count[scan, column - 1]))
        voxels = self._voxel_finder.chunk_voxels(self.sampler.scan_ids[scan], name, k)[0]
        centers = voxels[spread(rng, self.samples_per_scan, len(voxels))]
        return name, self.sampler.starts_around(scan, centers)

    def _draw_in_cell(self, rng: np.random.Generator, scan: int) -> npt.NDArray[np.int_]:
        """Draw starts in one cell, so that each start of the scan has equal probability."""
        chunk = self._voxel_finder.chunk_shape_zyx(self.sampler.scan_ids[scan])
        sides = np.rint(chunk / self.sampler.grid_step_zyx(scan)).clip(1).astype(int).tolist()
        starts = []
        for n_starts, side in zip(
            (self.sampler.max_start_zyx(scan) + 1).tolist(), sides, strict=True
        ):
            cell = cell_around(int(rng.integers(n_starts)), n_starts, side)
            starts.append(cell.start + spread(rng, self.samples_per_scan, len(cell)))
        return np.stack(starts, axis=1)

    def _draw_scans(
        self, epoch: int, window: int, rng: np.random.Generator
    ) -> npt.NDArray[np.int_]:
        """Draw the scan of each neighborhood of a window."""
        number, within = divmod(window, self._pass_windows)
        order = self._pass(epoch, number)
        points = np.arange(self.n_neighborhoods) * self._pass_windows + order.windows[within]
        distance = order.ends[-1] / (self.n_neighborhoods * self._pass_windows)
        arcs = np.searchsorted(order.ends, (points + order.offset) * distance, side="right")
        scans = order.scans[np.minimum(arcs, len(order.scans) - 1)]
        # They are rotated at random, so that no scan is drawn first more often than others.
        return np.roll(scans[_order_apart(scans)], rng.integers(len(scans)))

    def _draw_pass(self, epoch: int, number: int) -> _Pass:
        rng = self._rng(epoch, number, _PASS)
        order = rng.permutation(len(self._scans))
        return _Pass(
            scans=self._scans[order],
            ends=np.cumsum(self._arc_lengths[order]),
            windows=rng.permutation(self._pass_windows),
            offset=float(rng.random()),
        )

    def _rng(self, epoch: int, number: int, kind: int) -> np.random.Generator:
        # Each number becomes two 32-bit words. NumPy would split only the numbers that need it, and
        # keys could then coincide.
        key = (*divmod(epoch, 1 << 32), *divmod(number, 1 << 32), kind)
        return np.random.default_rng(np.random.SeedSequence(self.sampler.seed, spawn_key=key))


def window_sampler(
    sampler: Sampler,
    voxel_finder: VoxelFinder,
    *,
    shuffle: Shuffle,
    window_scans: int | None,
    samples_per_scan: int | None,
    voxel_bytes: int,
) -> WindowSampler | None:
    """Return the sampler of windows for some options; None if each sample is drawn by itself.

    Parameters
    ----------
    sampler, voxel_finder, window_scans, samples_per_scan
        As in :class:`WindowSampler`. A default is chosen for None.
    shuffle
        Whether to draw windows.
    voxel_bytes
        Bytes of a voxel of image and mask together.

    Raises
    ------
    UsageError
        If a value is out of range, or does not go with ``shuffle``.
    """
    if shuffle == "exact":
        if window_scans is not None or samples_per_scan is not None:
            raise UsageError('window_scans and samples_per_scan go with shuffle="window".')
        return None
    if shuffle != "window":
        raise UsageError(f"shuffle {shuffle!r}: must be {' or '.join(get_args(Shuffle))}.")
    if sampler.centers != "voxel":
        raise UsageError(
            'shuffle="window": a vertebra has one centroid in a scan, so the samples of a '
            'neighborhood would be equal. Give centers="voxel", or shuffle="exact".'
        )
    sample_bytes = math.prod(sampler.size_zyx) * voxel_bytes
    scans = window_scans
    if scans is None:
        scans = min(_WINDOW_SCANS, _largest_power_of_two(_WINDOW_BYTES // (2 * sample_bytes)))
    if samples_per_scan is None:
        samples_per_scan = _default_samples(sampler, max(scans, 1), sample_bytes)
    return WindowSampler(
        sampler, voxel_finder, window_scans=scans, samples_per_scan=samples_per_scan
    )


def _default_samples(sampler: Sampler, window_scans: int, sample_bytes: int) -> int:
    """Return the default number of samples in a neighborhood, a power of two.

    It is large enough that few voxels are decoded for each voxel of a patch, within limits.
    """
    chunk = np.array(BALANCED.chunk_shape_zyx)
    scan_chunks = -(-sampler.shapes_zyx.max(axis=0) // chunk)
    cell_chunks = 1 - (1 - np.array(sampler.size_zyx)) // chunk
    decoded = math.prod((np.minimum(scan_chunks, cell_chunks) * chunk).tolist())
    n_samples = 1
    while n_samples * math.prod(sampler.size_zyx) * _DECODED_PER_VOXEL < decoded:
        n_samples *= 2
    n = _count_neighborhoods(window_scans, len(sampler.scan_ids))
    return min(n_samples, _MAX_SAMPLES, _largest_power_of_two(_WINDOW_BYTES // (n * sample_bytes)))


def _largest_power_of_two(n: int) -> int:
    """Return the largest power of two that is at most ``n``, and at least 1."""
    return 1 << max(n.bit_length() - 1, 0)


def _count_neighborhoods(window_scans: int, n_scans: int) -> int:
    """Return the number of neighborhoods in a window; each scan has equally many."""
    n_per_scan = -(-window_scans // n_scans)
    return min(window_scans, n_scans) * n_per_scan


def _order_apart(scans: npt.NDArray[np.int_]) -> npt.NDArray[np.intp]:
    """Return an order of neighborhoods in which those of one scan are far apart."""
    _, first, of = np.unique(scans, return_index=True, return_inverse=True)
    before = np.tril(scans[:, np.newaxis] == scans, -1).sum(axis=1)
    return np.lexsort((first[of], before))


def cell_around(start: int, n_starts: int, chunk: int) -> range:
    """Return the cell of starts along one axis in which ``start`` lies.

    Cells begin where chunks begin, so the patches of a cell touch as few chunks as possible. The
    last cell has at least half a chunk's starts, if there are that many, as the samples of a tiny
    cell would be almost equal.

    Parameters
    ----------
    start
        A start, less than ``n_starts``.
    n_starts
        Number of starts that the scan allows: 0 to ``n_starts - 1``.
    chunk
        Voxels of a chunk along the axis.

    Examples
    --------
    >>> cell_around(70, n_starts=80, chunk=64)
    range(0, 80)
    >>> cell_around(70, n_starts=200, chunk=64)
    range(64, 128)
    """
    last = max(0, (n_starts + chunk // 2) // chunk - 1)
    cell = min(start // chunk, last)
    return range(cell * chunk, n_starts if cell == last else (cell + 1) * chunk)


def spread(rng: np.random.Generator, n: int, length: int) -> npt.NDArray[np.int64]:
    """Draw ``n`` of the numbers 0 to ``length - 1`` that are as far apart as possible.

    Each number has equal probability. They are equally far apart, rounded to whole numbers, and
    come in random order. This is systematic sampling along one axis, and a Latin hypercube [1]_
    over several. No two are equal if ``n <= length``.

    References
    ----------
    .. [1] McKay, Beckman and Conover, "A comparison of three methods for selecting values of input
       variables in the analysis of output from a computer code", Technometrics 21 (1979), 239-245
    """
    # Computed in n-ths of a step, as the steps need not be whole numbers.
    return (rng.permutation(n) * length + rng.integers(length)) // n


def _fractions(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Draw ``n`` uniform numbers from 0 to below 1, spread as by :func:`spread`."""
    return (rng.permutation(n) + rng.random()) / n
