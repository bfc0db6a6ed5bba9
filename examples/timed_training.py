"""Trains networks for the same seconds from several sources of patches, and compares them.

Sources take turns within a round, so that a slow moment of a shared machine affects all of them.
Ratios are within a round.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from common import folder_bytes, machine, spread

import spinezarr
from spinezarr.testing import write_ctspine1k

__all__ = ["Source", "Trainer", "folder_bytes", "report", "store_or_phantoms"]


@dataclass(frozen=True, slots=True)
class Trainer:
    """A new network, with the patches that it trains on."""

    batches: Iterator[Any]
    """Batches without an end."""
    step: Callable[[Any], float]
    """Trains on a batch; returns its loss."""
    batch_size: int
    """Number of patches in a batch."""
    held_out_loss: Callable[[], float]
    """Returns the loss on scans that the training does not see."""


@dataclass(frozen=True, slots=True)
class Source:
    """One way to get patches."""

    name: str
    prepared_s: float
    """Seconds that its copy took, if it has one."""
    read_bytes: int
    """Size on disk of what the training reads."""
    start: Callable[[], AbstractContextManager[Trainer]]
    """Starts a training from the beginning, with the same network each time."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one source reached in one round."""

    samples: int
    seconds: float
    waited_s: float
    core_s: float
    last_loss: float
    held_out_loss: float


def store_or_phantoms(path: str | None, work: Path, scale: float) -> spinezarr.Store:
    """Open a store, or make one of six phantoms with the names and splits of CTSpine1K.

    Parameters
    ----------
    path
        Path of the store; None for phantoms.
    work
        Folder for the phantoms.
    scale
        Size of the phantoms; 1 is 256 x 256 voxels.
    """
    if path is None:
        write_ctspine1k(work / "raw", scale=scale)
        spinezarr.ingest("ctspine1k", raw=work / "raw", out=work / "ctspine1k.zarr")
    return spinezarr.open(path or work / "ctspine1k.zarr")


def _train(source: Source, seconds: float) -> _Run:
    with source.start() as trainer:
        trainer.step(next(trainer.batches))  # starts threads, and is not measured
        losses: list[float] = []
        waited_s = 0.0
        started, core_started = time.perf_counter(), time.process_time()
        while (elapsed_s := time.perf_counter() - started) < seconds:
            asked = time.perf_counter()
            batch = next(trainer.batches)
            waited_s += time.perf_counter() - asked
            losses.append(trainer.step(batch))
        core_s = time.process_time() - core_started
        last = losses[-max(1, len(losses) // 4) :]
        return _Run(
            samples=len(losses) * trainer.batch_size,
            seconds=elapsed_s,
            waited_s=waited_s,
            core_s=core_s,
            last_loss=statistics.fmean(last),
            held_out_loss=trainer.held_out_loss(),
        )


def _row(source: Source, runs: list[_Run], first: list[_Run]) -> dict[str, Any]:
    per_s = [run.samples / run.seconds for run in runs]
    first_per_s = [run.samples / run.seconds for run in first]
    ratios = [a / b for a, b in zip(per_s, first_per_s, strict=True)]
    return {
        "source": source.name,
        "mb": source.read_bytes / 1e6,
        "prepared_s": source.prepared_s,
        **spread("samples", [run.samples for run in runs]),
        **spread("of_first", ratios),
        **spread("waited_share", [run.waited_s / run.seconds for run in runs]),
        **spread("core_ms", [run.core_s * 1e3 / run.samples for run in runs]),
        **spread("last_loss", [run.last_loss for run in runs]),
        **spread("held_out_loss", [run.held_out_loss for run in runs]),
    }


def short(number: float) -> str:
    """Return a number with three digits.

    Examples
    --------
    >>> short(1234.5), short(0.12345)
    ('1,234', '0.123')
    """
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"  # noqa: PLR2004


def report(
    sources: list[Source], *, seconds: float, rounds: int, path: Path | None, **facts: object
) -> None:
    """Train from each source in turn, print a table, and write it as JSON.

    Parameters
    ----------
    sources
        What is compared. Ratios are to the first.
    seconds
        How long each network trains in each round.
    rounds
        How often each source is used.
    path
        File for the figures.
    **facts
        Further entries of that file.
    """
    runs: dict[str, list[_Run]] = {source.name: [] for source in sources}
    for _ in range(rounds):
        for source in sources:
            runs[source.name].append(_train(source, seconds))
    first = runs[sources[0].name]
    rows = [_row(source, runs[source.name], first) for source in sources]
    table = Table(
        "source", "samples", f"times {sources[0].name}", "waiting", "core ms a sample",
        "loss", "held-out loss", "MB read", "s to prepare",
    )  # fmt: skip
    for row in rows:
        samples, ratio, core, loss, held_out = (
            "{} ({} to {})".format(*(short(row[f"{name}_{of}"]) for of in ("median", "min", "max")))
            for name in ("samples", "of_first", "core_ms", "last_loss", "held_out_loss")
        )
        waiting = f"{row['waited_share_median']:.0%}"
        sizes = f"{row['mb']:.1f}", f"{row['prepared_s']:.1f}"
        table.add_row(row["source"], samples, ratio, waiting, core, loss, held_out, *sizes)
    Console(width=180).print(table)
    if path:
        figures = {**machine("torch"), "seconds": seconds, "rounds": rounds, **facts, "rows": rows}
        path.write_text(json.dumps(figures, indent=2))
