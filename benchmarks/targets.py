"""The targets of spinezarr relative to its peers, and the results of a run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from draws import KINDS, PLANES

OURS, UPPER_BOUND = "spinezarr", ".npy (upper bound)"
ZARR_OR_BLOSC2 = ("zarr-python", "zarr-python, fused", "zarrs", "tensorstore", "blosc2")
GROUPED = ("MONAI, 4 a volume", "TorchIO, 10 a volume")
"""Readers of several patches per volume, whose draws are not exact; compared only with windows."""
EXACT = (
    *ZARR_OR_BLOSC2, "RadiObject", "TileDB", "Arrow 2D", "Arrow 3D", "MONAI", "TorchIO", ".nii.gz",
)  # fmt: skip
MB = 1e6


@dataclass(frozen=True, slots=True)
class PeerRates:
    """Patches per second of a peer, by round."""

    kind: str
    peer: str
    rates: Sequence[float]


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a run."""

    rates: Sequence[PeerRates]
    memory: Sequence[dict[str, Any]]
    first_batch: Sequence[dict[str, float]]

    def rates_of(self, kind: str, peer: str) -> Sequence[float] | None:
        """Return the rates of a peer on a kind."""
        return next((m.rates for m in self.rates if (m.kind, m.peer) == (kind, peer)), None)

    def best(self, kind: str, peers: Sequence[str]) -> str | None:
        """Return the fastest of some peers."""
        medians = {p: statistics.median(r) for p in peers if (r := self.rates_of(kind, p))}
        return max(medians, key=medians.__getitem__, default=None)

    def ratio(self, kind: str, peer: str, other: str | None) -> float | None:
        """Return the median of the ratios within each round."""
        rates = self.rates_of(kind, peer)
        other_rates = None if other is None else self.rates_of(kind, other)
        if not rates or not other_rates:
            return None
        return statistics.median(a / b for a, b in zip(rates, other_rates, strict=False))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One target, with its result."""

    row: str
    reached: float | None
    must: float
    aim: float | None
    compared_with: str
    """Peer or figure of the comparison."""
    less: bool
    """Whether a smaller result is better."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target."""

    row: str
    must: float
    aim: float | None
    measure: Callable[[Figures], tuple[float | None, str]]
    """Function that returns the result, and the peer or figure of the comparison."""
    less: bool = False

    def evaluate(self, figures: Figures) -> Outcome:
        """Return the outcome of a run."""
        reached, compared_with = self.measure(figures)
        return Outcome(self.row, reached, self.must, self.aim, compared_with, self.less)


def _ratio_to_best(
    kind: str, ours: str, peers: Sequence[str]
) -> Callable[[Figures], tuple[float | None, str]]:
    """Compare with the fastest of some peers."""

    def measure(figures: Figures) -> tuple[float | None, str]:
        best = figures.best(kind, peers)
        return figures.ratio(kind, ours, best), best or ""

    return measure


def _planes(figures: Figures) -> dict[str, tuple[float, str]]:
    planes = {}
    for kind in PLANES:
        best = figures.best(kind, ZARR_OR_BLOSC2)
        ratio = figures.ratio(kind, OURS, best)
        if ratio is not None and best is not None:
            planes[kind] = (ratio, f"{kind} {ratio:.2f} x {best}")
    return planes


def _mean_plane(figures: Figures) -> tuple[float | None, str]:
    planes = _planes(figures)
    if len(planes) < len(PLANES):
        return None, ""
    return statistics.geometric_mean(r for r, _ in planes.values()), "; ".join(
        text for _, text in planes.values()
    )


def _worst_plane(figures: Figures) -> tuple[float | None, str]:
    return min(_planes(figures).values(), default=(None, ""))


def _same_store(figures: Figures) -> tuple[float | None, str]:
    peer = "tensorstore, our store"
    ratios = {k: r for k in KINDS if (r := figures.ratio(k, OURS, peer)) is not None}
    text = "; ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
    return min(ratios.values(), default=None), text


def _memory(figures: Figures) -> tuple[float | None, str]:
    return max(
        (
            (row["other_bytes"] / MB, f"{row['peer']}, {row['kind']}")
            for row in figures.memory
            if "PyTorch" not in row["peer"]  # its libraries alone take more memory
        ),
        default=(None, ""),
    )


def _first_batch(figures: Figures) -> tuple[float | None, str]:
    if not figures.first_batch:
        return None, ""
    imports = statistics.median(row["import_s"] for row in figures.first_batch)
    opened = statistics.median(row["open_s"] for row in figures.first_batch)
    return opened, f"and {imports:.2f} s to import"


_ALL = (*EXACT, *GROUPED)
_WINDOW = f"{OURS}, window"
TARGETS = (
    Target("exact 128³, to the best peer", 2.5, 3, _ratio_to_best("128^3", OURS, EXACT)),
    Target("exact 96³, to the best peer", 2.5, 3, _ratio_to_best("96^3", OURS, EXACT)),
    Target("exact slices, mean of planes, to Zarr or blosc2", 2.5, 4, _mean_plane),
    Target("exact slices, worst plane", 1.8, None, _worst_plane),
    Target("to tensorstore on our store, worst kind", 1.3, 2, _same_store),
    Target("window 128³, to the best peer", 4, None, _ratio_to_best("128^3", _WINDOW, _ALL)),
    Target(
        "window 128³, to the upper bound",
        0.5,
        0.7,
        _ratio_to_best("128^3", _WINDOW, (UPPER_BOUND,)),
    ),
    Target("window axial, to Arrow 2D", 1.5, 3, _ratio_to_best("axial", _WINDOW, ("Arrow 2D",))),
    Target(
        "PyTorch loader 128³, to the stream",
        0.9,
        0.97,
        _ratio_to_best("128^3", f"{OURS}, PyTorch", (f"{OURS}, stream",)),
    ),
    Target("MB without batches and cache", 300, None, _memory, less=True),
    Target("s to the first batch of a large store", 1, None, _first_batch, less=True),
)
