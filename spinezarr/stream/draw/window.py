"""Windows: several samples of each place that is decoded, mixed over some scans.

A window is a row of *neighborhoods*, each a few samples of one scan so close together that they
lie in the same chunks, and each of another scan as long as there are enough. Samples take turns:
one of each neighborhood, then a second one of each, in the same order. So any
:attr:`WindowSampler.n_neighborhoods` samples in a row are of different neighborhoods, and whoever
reads a window at once decodes each chunk once for all samples in it.

Every sample alone is distributed exactly as
:meth:`~spinezarr.stream.draw.sampler.Sampler.draw` draws it; only what samples of one window have
in common differs:

* Scans: they lie in random order on a circle, each as long as it is likely. A pass over the store
  takes points of the circle that are equally far apart, the first one at random, so that each
  point is uniform. This is systematic sampling [1]_: a scan comes as often as it should, to the
  next whole number.
* Positions: the starts that a scan allows are cut along chunk borders into cells. One is
  drawn by its number of starts, then all samples uniformly in it.
* Balanced draws: a voxel of the vertebra is drawn as ever, then all samples uniformly among that
  vertebra's voxels in the same chunk.

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

__all__ = ["Shuffle", "Volumes", "WindowSampler", "cell_around", "spread", "window_sampler"]

Shuffle = Literal["exact", "window"]
"""Whether each sample is drawn by itself."""
_WINDOW_SCANS: Final = 8
"""Scans of a window unless told otherwise."""
_DECODED_PER_VOXEL: Final = 1.5
"""Few enough: with fewer, samples are ever more alike and hardly cheaper (``docs/sampling.md``)."""
_MOST_SAMPLES: Final = 16
"""Of one neighborhood, unless told otherwise: with more, few scans are seen in a while."""
_WINDOW_BYTES: Final = 256 << 20
"""Largest window that is chosen without being asked for; a few are read ahead."""
_KEPT: Final = 32
"""Windows whose draws are kept: more than threads read at once."""
_PASS, _WINDOW = 0, 1
"""Kinds of random streams."""


class Volumes(Protocol):
    """What must be known of the stored scans to draw close together."""

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Get ready for being asked of these scans."""
        ...

    def chunk_shape_zyx(self, scan_id: str) -> ShapeZYX:
        """Return the voxels of a chunk of a scan's image and mask."""
        ...

    def chunk_voxels(
        self, scan_id: str, vertebra: str, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Find the k-th voxel of a vertebra, and the others in its chunk.

        Returns
        -------
        numpy.ndarray
            Voxels of the vertebra in that chunk, shape ``(m, 3)``: z, y, x in the scan.
        int
            Which of them is the k-th.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """Where the windows of one pass over the store take their scans."""

    scans: npt.NDArray[np.int_]
    """Scans in the order in which they lie on the circle."""
    ends: npt.NDArray[np.float64]
    """Where each ends."""
    windows: npt.NDArray[np.int_]
    """Order of the windows."""
    offset: float
    """Of the first point, in distances between two of them."""


class WindowSampler:
    """Draws whole windows of samples.

    Parameters
    ----------
    sampler
        Says how each sample is distributed.
    volumes
        Asked for the chunks of the scans that are drawn.
    window_scans
        Scans of a window. If there are fewer, each has several neighborhoods.
    samples_per_scan
        Samples of a neighborhood.

    Raises
    ------
    UsageError
        If a number is less than 1.
    """

    def __init__(
        self, sampler: Sampler, volumes: Volumes, *, window_scans: int, samples_per_scan: int
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
        self._volumes = volumes
        self._kind_ends = np.cumsum(sampler.chances(), axis=1)
        of_scan = self._kind_ends[:, -1]
        self._scans = np.flatnonzero(of_scan)
        # Relative to the largest: whole numbers where scans are equally likely.
        self._length = of_scan[self._scans] / of_scan.max()
        self.n_neighborhoods = _neighborhoods(window_scans, len(self._scans))
        self._pass_windows = max(1, len(self._scans) // self.n_neighborhoods)
        self._window = lru_cache(_KEPT)(self._draw_window)
        self._pass = lru_cache(_KEPT)(self._draw_pass)

    def __reduce__(self) -> tuple[Any, ...]:
        wanted = {name: getattr(self, name) for name in ("window_scans", "samples_per_scan")}
        return partial(WindowSampler, **wanted), (self.sampler, self._volumes)

    @property
    def n_samples(self) -> int:
        """Samples of a window."""
        return self.n_neighborhoods * self.samples_per_scan

    def draw(self, epoch: int, index: int) -> PatchRequest:
        """Draw one sample; its whole window is drawn with it, and kept for a while."""
        window, place = divmod(index, self.n_samples)
        return self._window(epoch, window)[place]

    def _draw_window(self, epoch: int, window: int) -> tuple[PatchRequest, ...]:
        """Draw the samples of a window, in order."""
        rng = self._rng(epoch, window, _WINDOW)
        scans = self._scans_of(epoch, window, rng).tolist()
        self._volumes.prefetch_scans(self.sampler.scan_ids[scan] for scan in scans)
        # Spread evenly, so that about the same share of every window is balanced.
        kinds = _fractions(rng, len(scans)).tolist()
        rows = [
            self._neighborhood(rng, scan, kind) for scan, kind in zip(scans, kinds, strict=True)
        ]
        turns = product(range(self.samples_per_scan), zip(scans, rows, strict=True))
        return tuple(
            self.sampler.place(window * self.n_samples + i, scan, starts[turn], vertebra)
            for i, (turn, (scan, (vertebra, starts))) in enumerate(turns)
        )

    def _neighborhood(
        self, rng: np.random.Generator, scan: int, kind: float
    ) -> tuple[str | None, npt.NDArray[np.int_]]:
        """Draw the vertebra, None for a uniform draw, and the starts of samples of one scan.

        ``kind`` is a share of the ways, by their chances, in which the scan can be drawn.
        """
        ends = self._kind_ends[scan]
        inside = min(kind * ends[-1], np.nextafter(ends[-1], 0))  # a product may be rounded up
        chosen = int(np.searchsorted(ends, inside, side="right"))
        if not chosen:
            return None, self._in_a_cell(rng, scan)
        name = self.sampler.vertebrae[chosen - 1]
        k = int(rng.integers(self.sampler.voxel_count[scan, chosen - 1]))
        voxels = self._volumes.chunk_voxels(self.sampler.scan_ids[scan], name, k)[0]
        picked = voxels[spread(rng, self.samples_per_scan, len(voxels))]
        return name, self.sampler.starts_around(scan, picked)

    def _in_a_cell(self, rng: np.random.Generator, scan: int) -> npt.NDArray[np.int_]:
        """Draw starts in one cell, each start of the scan equally likely."""
        chunk = self._volumes.chunk_shape_zyx(self.sampler.scan_ids[scan])
        sides = np.rint(chunk / self.sampler.grid_step_zyx(scan)).clip(1).astype(int).tolist()
        starts = []
        for n_starts, side in zip((self.sampler.room_zyx(scan) + 1).tolist(), sides, strict=True):
            cell = cell_around(int(rng.integers(n_starts)), n_starts, side)
            starts.append(cell.start + spread(rng, self.samples_per_scan, len(cell)))
        return np.stack(starts, axis=1)

    def _scans_of(self, epoch: int, window: int, rng: np.random.Generator) -> npt.NDArray[np.int_]:
        """Draw the scan of each neighborhood of a window."""
        number, within = divmod(window, self._pass_windows)
        line = self._pass(epoch, number)
        points = np.arange(self.n_neighborhoods) * self._pass_windows + line.windows[within]
        distance = line.ends[-1] / (self.n_neighborhoods * self._pass_windows)
        at = np.searchsorted(line.ends, (points + line.offset) * distance, side="right")
        scans = line.scans[np.minimum(at, len(line.scans) - 1)]
        # Begun anywhere, so that what comes first in this order is no likelier to be drawn first.
        return np.roll(scans[_apart(scans)], rng.integers(len(scans)))

    def _draw_pass(self, epoch: int, number: int) -> _Pass:
        rng = self._rng(epoch, number, _PASS)
        order = rng.permutation(len(self._scans))
        return _Pass(
            scans=self._scans[order],
            ends=np.cumsum(self._length[order]),
            windows=rng.permutation(self._pass_windows),
            offset=float(rng.random()),
        )

    def _rng(self, epoch: int, number: int, kind: int) -> np.random.Generator:
        # Two 32-bit words each: numpy splits larger numbers itself, and keys could then coincide.
        key = (*divmod(epoch, 1 << 32), *divmod(number, 1 << 32), kind)
        return np.random.default_rng(np.random.SeedSequence(self.sampler.seed, spawn_key=key))


def window_sampler(
    sampler: Sampler,
    volumes: Volumes,
    *,
    shuffle: Shuffle,
    window_scans: int | None,
    samples_per_scan: int | None,
    voxel_bytes: int,
) -> WindowSampler | None:
    """Return what draws windows as asked for; None if each sample is drawn by itself.

    Parameters
    ----------
    sampler, volumes, window_scans, samples_per_scan
        As in :class:`WindowSampler`; chosen if None.
    shuffle
        How samples are mixed.
    voxel_bytes
        Of a voxel of image and mask together.

    Raises
    ------
    UsageError
        If a value is out of range, or none is wanted.
    """
    if shuffle == "exact":
        if window_scans is not None or samples_per_scan is not None:
            raise UsageError('window_scans and samples_per_scan go with shuffle="window".')
        return None
    if shuffle != "window":
        raise UsageError(f"shuffle {shuffle!r}: must be {' or '.join(get_args(Shuffle))}.")
    if sampler.centers != "voxel":
        raise UsageError(
            'shuffle="window": there is one centroid of a vertebra in a scan, so samples would be '
            'equal. Give centers="voxel", or shuffle="exact".'
        )
    sample_bytes = math.prod(sampler.size_zyx) * voxel_bytes
    scans = window_scans
    if scans is None:
        scans = min(_WINDOW_SCANS, _at_most(_WINDOW_BYTES // (2 * sample_bytes)))
    if samples_per_scan is None:
        samples_per_scan = _default_samples(sampler, max(scans, 1), sample_bytes)
    return WindowSampler(sampler, volumes, window_scans=scans, samples_per_scan=samples_per_scan)


def _default_samples(sampler: Sampler, window_scans: int, sample_bytes: int) -> int:
    """Choose how many samples a neighborhood gives: a power of two.

    As many as it takes to decode few voxels for each that is given, within bounds.
    """
    chunk = np.array(BALANCED.chunk_shape_zyx)
    of_scan = -(-sampler.shapes_zyx.max(axis=0) // chunk)
    of_cell = 1 - (1 - np.array(sampler.size_zyx)) // chunk
    decoded = math.prod((np.minimum(of_scan, of_cell) * chunk).tolist())
    enough = 1
    while enough * math.prod(sampler.size_zyx) * _DECODED_PER_VOXEL < decoded:
        enough *= 2
    n = _neighborhoods(window_scans, len(sampler.scan_ids))
    return min(enough, _MOST_SAMPLES, _at_most(_WINDOW_BYTES // (n * sample_bytes)))


def _at_most(n: int) -> int:
    """Return the largest power of two that is no larger, 1 at least."""
    return 1 << max(n.bit_length() - 1, 0)


def _neighborhoods(window_scans: int, n_scans: int) -> int:
    """Return how many a window has: as many of each scan, where there are few."""
    of_each = -(-window_scans // n_scans)
    return min(window_scans, n_scans) * of_each


def _apart(scans: npt.NDArray[np.int_]) -> npt.NDArray[np.intp]:
    """Order neighborhoods so that those of one scan are far apart: round after round of scans."""
    _, first, of = np.unique(scans, return_index=True, return_inverse=True)
    before = np.tril(scans[:, np.newaxis] == scans, -1).sum(axis=1)
    return np.lexsort((first[of], before))


def cell_around(start: int, n_starts: int, chunk: int) -> range:
    """Return the cell of starts along one axis in which ``start`` lies.

    Cells begin where chunks do, so that the patches of a cell touch as few chunks as can be. The
    last one has at least half a chunk's starts if there are so many: samples of a tiny cell would
    be all alike.

    Parameters
    ----------
    start
        Less than ``n_starts``.
    n_starts
        Starts that the scan allows: 0 to ``n_starts - 1``.
    chunk
        Voxels of a chunk along the axis.
    """
    last = max(0, (n_starts + chunk // 2) // chunk - 1)
    cell = min(start // chunk, last)
    return range(cell * chunk, n_starts if cell == last else (cell + 1) * chunk)


def spread(rng: np.random.Generator, n: int, length: int) -> npt.NDArray[np.int64]:
    """Draw ``n`` of the numbers 0 to ``length - 1``, each equally likely, as far apart as can be.

    They are equally far apart, to the next whole number, and come in random order: systematic
    sampling along this axis, and so a Latin hypercube [1]_ over several. No two are equal if
    ``n <= length``.

    References
    ----------
    .. [1] McKay, Beckman and Conover, "A comparison of three methods for selecting values of input
       variables in the analysis of output from a computer code", Technometrics 21 (1979), 239-245
    """
    # In n-ths of a step, so that the parts need not be whole numbers.
    return (rng.permutation(n) * length + rng.integers(length)) // n


def _fractions(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Draw ``n`` numbers from 0 to below 1, uniform and spread as by :func:`spread`."""
    return (rng.permutation(n) + rng.random()) / n
