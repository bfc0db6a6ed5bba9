"""Where does each patch of an epoch lie?

Every draw is a pure function of (seed, epoch, index). There are two kinds of draws, and each sample
chooses one of them at random:

* *uniform*: choose a scan, each with equal probability. Then choose a position in it, each with
  equal probability.
* *balanced*: choose a vertebra, each that occurs with equal probability, or by weight. Then choose
  a scan that shows it, and one of its voxels there, each with equal probability; or take its
  centroid. The patch is centered there and moved inside the volume.

A position is a voxel of the scan. If patches are resampled, it is a voxel of the grid of
:mod:`spinezarr.stream.spacing`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.scan_table import TableColumns
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import NATIVE_SPACING, TargetZYX, grid_shape_zyx, step_zyx

__all__ = ["CenterFinder", "Centers", "PositionZYX", "Sampler"]

Centers = Literal["voxel", "centroid"]
"""What balanced draws center patches on: one of the vertebra's voxels, or its centroid."""

PositionZYX = tuple[float, float, float]
"""A position in voxels of a scan, (z, y, x)."""
CenterFinder = Callable[[str, str, int | None], PositionZYX]
"""Returns the k-th voxel (z, y, x) of a vertebra, given ``(scan_id, vertebra, k)``.

The voxels may have any order, which never changes. For ``k`` None, it returns the centroid of the
vertebra, in voxels of the scan.
"""

_WORD_BITS: Final = 64
_WORD_MASK: Final = (1 << _WORD_BITS) - 1
_WORDS_PER_CALL: Final = 8
"""Number of random words to generate at once; most draws need no more."""
_FRACTION_BITS: Final = 53
"""Number of bits in the mantissa of a double."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws patches of one size from some scans.

    Parameters
    ----------
    scan_ids
        The scans to draw from, shape ``(n,)``.
    shapes_zyx
        Shapes of the scans in voxels, shape ``(n, 3)``.
    spacings_mm
        Distances between their voxels along z, y and x, shape ``(n, 3)``.
    vertebrae
        Names of the vertebrae, shape ``(v,)``.
    voxel_count
        Number of voxels of each vertebra in each scan, shape ``(n, v)``.
    annotated
        Whether the scan has no mask but an annotated centroid of the vertebra, shape ``(n, v)``.
        Such vertebrae are drawn too if patches are centered on centroids.
    size_zyx
        Shape of a patch in voxels.
    seed
        Seed of all draws, not negative.
    foreground
        Share of balanced draws, 0 to 1.
    weights
        Relative weights of vertebrae in balanced draws. Others weigh 1.
    centers
        What balanced draws center patches on.
    spacing_zyx_mm
        Spacing to which patches are resampled; None keeps the scan's spacing along that axis.

    Raises
    ------
    UsageError
        If a value is out of range, or nothing can be drawn with these options.
    """

    scan_ids: tuple[str, ...]
    shapes_zyx: npt.NDArray[np.int_]
    spacings_mm: npt.NDArray[np.float64]
    vertebrae: tuple[str, ...]
    voxel_count: npt.NDArray[np.int_]
    annotated: npt.NDArray[np.bool_]
    size_zyx: ShapeZYX
    seed: int
    foreground: float
    weights: Mapping[str, float] = field(default_factory=dict)
    centers: Centers = "voxel"
    spacing_zyx_mm: TargetZYX = NATIVE_SPACING

    def __post_init__(self) -> None:
        if min(self.size_zyx) < 1:
            raise UsageError(
                f"patch size {self.size_zyx} (z, y, x): every side must be at least 1."
            )
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: must be at least 0.")
        if not 0 <= self.foreground <= 1:
            raise UsageError(f"foreground {self.foreground}: must lie between 0 and 1.")
        if not self.scan_ids:
            raise UsageError("no scan to draw from.")
        if self.centers not in get_args(Centers):
            raise UsageError(f"centers {self.centers!r}: must be 'voxel' or 'centroid'.")
        _ = self._balance

    @classmethod
    def of_table(
        cls,
        table: TableColumns,
        *,
        size_zyx: ShapeZYX,
        seed: int,
        foreground: float,
        weights: Mapping[str, float] | None = None,
        centers: Centers = "voxel",
        spacing_zyx_mm: TargetZYX = NATIVE_SPACING,
    ) -> "Sampler":
        """Return a sampler that draws from all rows of a scan table."""
        if not isinstance(weights, Mapping | None):
            raise UsageError(
                f"weights {weights!r}: give a weight by vertebra, such as {{'L6': 5.0}}."
            )
        no_mask = np.asarray(table["label_state"]) == "none"
        has_point = np.isfinite(np.asarray(table["annotated_centroid_zyx_mm"])).all(axis=-1)
        return cls(
            scan_ids=tuple(map(str, np.asarray(table["scan"]))),
            shapes_zyx=np.asarray(table["shape_zyx"]).astype(int),
            spacings_mm=np.asarray(table["spacing_zyx_mm"]).astype(float),
            vertebrae=tuple(map(str, np.asarray(table["vertebra"]))),
            voxel_count=np.asarray(table["voxel_count"]).astype(int),
            annotated=has_point & no_mask[:, np.newaxis],
            size_zyx=size_zyx,
            seed=seed,
            foreground=foreground,
            weights=dict(weights or {}),
            centers=centers,
            spacing_zyx_mm=spacing_zyx_mm,
        )

    @property
    def reads_voxels(self) -> bool:
        """Whether a draw may have to read voxels of a mask."""
        return self.foreground > 0 and self.centers == "voxel"

    def draw(self, epoch: int, index: int, find_center: CenterFinder) -> PatchRequest:
        """Draw one patch.

        Parameters
        ----------
        epoch, index
            Numbers of the epoch and of the sample in it, both below 2**64.
        find_center
            Called once for a balanced draw, and never for a uniform one.
        """
        numbers = _RandomNumbers(self._key, epoch, index)
        if self._balance is not None and numbers.fraction() < self.foreground:
            return self._draw_balanced(self._balance, numbers, index, find_center)
        scan = numbers.below(len(self.scan_ids))
        starts = [numbers.below(last + 1) for last in self._max_start_zyx[scan].tolist()]
        return self.request_at(index, scan, np.array(starts), None)

    def _draw_balanced(
        self, balance: "_Balance", numbers: "_RandomNumbers", index: int, find_center: CenterFinder
    ) -> PatchRequest:
        vertebra = balance.vertebra_at(numbers.fraction())
        showing = balance.showing[vertebra]
        scan = int(showing[numbers.below(len(showing))])
        name = self.vertebrae[vertebra]
        k = None
        if self.centers == "voxel":
            k = numbers.below(int(self.voxel_count[scan, vertebra]))
        center = np.array(find_center(self.scan_ids[scan], name, k))
        return self.request_at(index, scan, self.starts_around(scan, center), name)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return the probability of each kind of draw.

        Returns
        -------
        numpy.ndarray
            Shape ``(n, 1 + v)``; the sum is 1. Rows are scans. The first column is for uniform
            draws, the others are for balanced draws of each vertebra.
        """
        probability = np.zeros((len(self.scan_ids), 1 + len(self.vertebrae)))
        probability[:, 0] = (1 - self.foreground) / len(self.scan_ids)
        if self._balance is not None:
            shares = np.diff(self._balance.ends, prepend=0)
            for vertebra, share in zip(self._balance.vertebrae, shares, strict=True):
                showing = self._balance.showing[int(vertebra)]
                probability[showing, 1 + vertebra] = self.foreground * share / len(showing)
        return probability

    def max_start_zyx(self, scan: int) -> npt.NDArray[np.int64]:
        """Return the largest start of a patch inside a scan; 0 where the scan is smaller."""
        start: npt.NDArray[np.int64] = self._max_start_zyx[scan]
        return start

    def grid_step_zyx(self, scan: int) -> npt.NDArray[np.float64]:
        """Return the step of the patch's grid, in voxels of a scan."""
        step: npt.NDArray[np.float64] = self._step_zyx[scan]
        return step

    def starts_around(self, scan: int, positions_zyx: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the starts of patches centered on positions in a scan.

        Parameters
        ----------
        scan
            Row of the scan.
        positions_zyx
            Positions in voxels of the scan, shape ``(..., 3)``. Each is the middle voxel of its
            patch, or the first one after the middle if the patch has an even number of voxels. A
            patch that would leave the volume is moved inside.
        """
        centered = np.ceil(positions_zyx / self._step_zyx[scan] - self._half_zyx).astype(np.int64)
        last = self._max_start_zyx[scan]
        starts: npt.NDArray[np.int64] = np.minimum(np.maximum(centered, 0), last)
        return starts

    def request_at(
        self, index: int, scan: int, start_zyx: npt.NDArray[np.int64], vertebra: str | None
    ) -> PatchRequest:
        """Return the request; the patch is centered along axes on which the volume is smaller."""
        z, y, x = (start_zyx - self._padding_before_zyx[scan]).tolist()
        return PatchRequest(index, self.scan_ids[scan], Box.at((z, y, x), self.size_zyx), vertebra)

    @cached_property
    def _key(self) -> npt.NDArray[np.unsignedinteger]:
        """Key of the generator: 128 bits made from the seed."""
        return np.random.SeedSequence(self.seed).generate_state(2, np.uint64)

    @cached_property
    def _half_zyx(self) -> npt.NDArray[np.float64]:
        return np.array(self.size_zyx) / 2

    @cached_property
    def _step_zyx(self) -> npt.NDArray[np.float64]:
        """Step of the grid in each scan, shape ``(n, 3)``."""
        return np.array([step_zyx(mm, self.spacing_zyx_mm) for mm in self.spacings_mm.tolist()])

    @cached_property
    def _excess_zyx(self) -> npt.NDArray[np.int64]:
        """Voxels of each volume minus those of the patch, shape ``(n, 3)``."""
        grids = map(grid_shape_zyx, self.shapes_zyx.tolist(), self._step_zyx.tolist())
        excess: npt.NDArray[np.int64] = np.array(list(grids), np.int64) - np.array(self.size_zyx)
        return excess

    @cached_property
    def _max_start_zyx(self) -> npt.NDArray[np.int64]:
        return np.maximum(self._excess_zyx, 0)

    @cached_property
    def _padding_before_zyx(self) -> npt.NDArray[np.int64]:
        """Padding before each volume, shape ``(n, 3)``."""
        return np.maximum(-self._excess_zyx, 0) // 2

    @cached_property
    def _balance(self) -> "_Balance | None":
        """How balanced draws choose vertebra and scan; None if there are no balanced draws."""
        weight = _weight_array(self.weights, self.vertebrae)
        if not self.foreground:
            for name, is_set in (("weights", self.weights), ("centers", self.centers != "voxel")):
                if is_set:
                    raise UsageError(
                        f"{name}: only balanced draws have them, and foreground is 0; "
                        "give foreground=1.0, or another fraction above 0."
                    )
            return None
        shown = self.voxel_count > 0
        if self.centers == "centroid":
            shown |= self.annotated
        if not shown.any():
            missing = "labeled vertebra" if self.centers == "voxel" else "vertebra with a centroid"
            raise UsageError(f"foreground > 0, but no chosen scan has a {missing}.")
        weight = np.where(shown.any(axis=0), weight, 0)
        vertebrae = np.flatnonzero(weight)
        if not len(vertebrae):
            raise UsageError("weights: all vertebrae that the chosen scans show have weight 0.")
        # Weights are divided by the largest one, so their sum is never infinite.
        ends = np.cumsum(weight[vertebrae] / weight.max())
        return _Balance(
            vertebrae=vertebrae,
            ends=ends / ends[-1],
            showing={int(v): np.flatnonzero(shown[:, v]) for v in vertebrae},
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Balance:
    """How balanced draws choose vertebra and scan."""

    vertebrae: npt.NDArray[np.intp]
    """Column numbers of the vertebrae that can be drawn."""
    ends: npt.NDArray[np.float64]
    """Cumulative probabilities of these vertebrae; the last is 1."""
    showing: Mapping[int, npt.NDArray[np.intp]]
    """Rows of the scans that show a vertebra, by its number."""

    def vertebra_at(self, fraction: float) -> int:
        return int(self.vertebrae[self.ends.searchsorted(fraction, side="right")])


class _RandomNumbers:
    """The random numbers of one sample.

    Philox [1]_ is a counter-based generator. The seed is its key, and epoch and index are its
    counter. So no two samples get the same numbers, and no sample needs those before it.

    References
    ----------
    .. [1] Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
       https://doi.org/10.1145/2063384.2063405
    """

    __slots__ = ("_bits", "_words")

    def __init__(self, key: npt.NDArray[np.unsignedinteger], epoch: int, index: int) -> None:
        counter = np.array([0, 0, index, epoch], np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            self._words = self._bits.random_raw(_WORDS_PER_CALL).tolist()
        return self._words.pop()

    def below(self, n: int) -> int:
        """Return one of the numbers 0 to n - 1, all with exactly equal probability.

        References
        ----------
        Lemire, "Fast random integer generation in an interval", https://doi.org/10.1145/3230636
        """
        while True:
            wide = self._word() * n
            low = wide & _WORD_MASK
            if low >= n or low >= (1 << _WORD_BITS) % n:
                return wide >> _WORD_BITS

    def fraction(self) -> float:
        """Return a multiple of 2**-53 that is at least 0 and less than 1."""
        return (self._word() >> (_WORD_BITS - _FRACTION_BITS)) / (1 << _FRACTION_BITS)


def _weight_array(weights: Mapping[str, object], vertebrae: tuple[str, ...]) -> npt.NDArray[Any]:
    array = np.ones(len(vertebrae))
    for name, weight in weights.items():
        if name not in vertebrae:
            raise UsageError(
                f"weights: there is no vertebra {name!r}; known are {', '.join(vertebrae)}."
            )
        number = _as_float(weight)
        if number is None or not 0 <= number < math.inf:
            raise UsageError(
                f"weights: {name} has {weight!r}; give a number of 0 (never drawn) or more. "
                "Vertebrae that are not named weigh 1."
            )
        array[vertebrae.index(name)] = number
    return array


def _as_float(value: object) -> float | None:
    if not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
