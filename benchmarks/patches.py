"""Compares random patches and slices per second of one scan: spinezarr and all its peers.

Every reader is opened in a child process of its own; all get the same seeded draws. First each
peer's settings are tried, and the best one for each kind of patch is kept. Then one reader reads at
a time, in rounds, so that a slow moment of a shared machine affects all of them; the results are
ratios within a round. The data are a CT and its mask as NIfTI. If no files are given, the scan in
the folder ``shared`` next to the checkout is read, or a phantom.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chart import draw_rates
from common import absolute_path, machine, phantom_pair
from draws import KINDS
from peers.data import Data
from peers.parent import (
    Children,
    PeerError,
    all_configs,
    environment,
    missing,
    python_module,
)
from peers.reader import CallPattern, ReaderConfig
from rich.console import Console
from rich.table import Table
from scans import add_scans, ingest
from targets import OURS, TARGETS, Figures, PeerRates

CONSOLE = Console(width=150)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "real" / "lidc-idri"
PEER_PACKAGES = (
    "tensorstore", "zarrs", "blosc2", "radiobject", "tiledb", "datasets", "torch", "monai",
    "torchio",
)  # fmt: skip
FULL_SCANS = 1005
"""Number of scans of CTSpine1K."""
COLD_KINDS = {
    "spinezarr": ("128^3", "axial"),
    "tensorstore, our store": ("128^3", "axial"),
    "blosc2": ("128^3", "axial"),
    "Arrow 3D": ("128^3",),
    "Arrow 2D": ("axial",),
}
SLOW_ROUNDS = 2


@dataclass(slots=True)
class Entry:
    """One peer on one kind of patch, with its fastest setting."""

    kind: str
    peer: str
    config: str
    calls: CallPattern
    trial_rate: float
    """Patches per second when the settings were tried."""
    slow: bool
    stored_bytes: int
    rates: list[float] = field(default_factory=list)
    """Patches per second, by round."""
    failed: bool = False


def choose_pair(options: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """Return image and mask of the scan to read."""
    if options.pair:
        image, label = options.pair
        return image, label
    shared = SHARED / "lidc-idri-0001_ct.nii.gz", SHARED / "lidc-idri-0001_seg.nii.gz"
    return shared if all(path.exists() for path in shared) else phantom_pair(work)


def choose_configs(peers: Sequence[str], quick: bool, left_out: list[str]) -> list[ReaderConfig]:  # noqa: FBT001  a plain switch
    """Return the configurations to measure; append those that are left out to ``left_out``."""
    configs = []
    for _, config in all_configs():
        absent = missing(config)
        if peers and not set(config.peers) & set(peers):
            continue
        if absent:
            left_out.append(f"{config.name}: {', '.join(absent)} is not installed")
        elif not quick or set(config.peers) - {peer for other in configs for peer in other.peers}:
            configs.append(config)
    return configs


def log_progress(text: str) -> None:
    """Print the progress of the run."""
    CONSOLE.print(f"{time.strftime('%H:%M:%S')} {text}", style="dim")


@dataclass(slots=True)
class Run:
    """The results so far."""

    options: argparse.Namespace
    data: Data
    entries: list[Entry] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    """Rates of every setting that was tried."""
    cold: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    first_batch: list[dict[str, float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """Return the results as plain values."""
        rates = [PeerRates(e.kind, e.peer, e.rates) for e in self.entries if e.rates]
        figures = Figures(rates, self.memory, self.first_batch)
        ours = {entry.kind: entry.rates for entry in self.entries if entry.peer == OURS}
        return {
            "data": self.data.image.name,
            "shape_zyx": self.data.shape_zyx,
            "scans": self.data.scans,
            **machine(*(name for name in PEER_PACKAGES if is_installed(name))),
            "load": self.load,
            "seconds": self.options.seconds,
            "rows": [row_of(e, ours.get(e.kind, ())) for e in self.entries if e.rates],
            "targets": [asdict(target.evaluate(figures)) for target in TARGETS],
            "cold": self.cold,
            "memory": self.memory,
            "first_batch": self.first_batch,
            "left_out": self.left_out,
            "trials": self.trials,
        }


def tune(run: Run, children: Children, configs: Iterable[ReaderConfig]) -> None:
    """Try every setting once on each kind, and keep the fastest of each peer."""
    best: dict[tuple[str, str], Entry] = {}
    for config in configs:
        try:
            with children.start(config.name) as child:
                stored = child.call("stored")["bytes"]
                for kind in (kind for kind in config.kinds if kind in run.options.kinds):
                    child.call("check", kind=kind)
                    for calls in config.call_patterns:
                        seconds = run.options.seconds / 3
                        per_s = 0.0 if config.slow else rate(child.call, kind, calls, 0, seconds)
                        run.trials.append(
                            {"setting": config.name, "kind": kind, **asdict(calls), "per_s": per_s}
                        )
                        for peer in config.peers:
                            entry = Entry(
                                kind, peer, config.name, calls, per_s, config.slow, stored
                            )
                            if (kind, peer) not in best or per_s > best[kind, peer].trial_rate:
                                best[kind, peer] = entry
        except PeerError as problem:
            run.left_out.append(str(problem))
        log_progress(f"tried {config.name}")
    run.entries = list(best.values())


def rate(
    call: Callable[..., dict[str, Any]], kind: str, calls: CallPattern, seed: int, seconds: float
) -> float:
    """Let a child read for a while; return its patches per second."""
    result = call("rate", kind=kind, seed=seed, seconds=seconds, **asdict(calls))
    return float(result["patches"] / result["seconds"])


def take_turns(run: Run, children: Children) -> Iterator[None]:
    """Measure all peers, kind after kind, round after round; yield after each kind."""
    for kind in run.options.kinds:
        entries = [entry for entry in run.entries if entry.kind == kind]
        for number in range(run.options.rounds + 1):
            rates: dict[tuple[str, CallPattern], float | None] = {}
            for entry in entries if number % 2 else entries[::-1]:
                key = entry.config, entry.calls
                if entry.failed or (entry.slow and not 1 <= number <= SLOW_ROUNDS):
                    continue
                if key not in rates:
                    rates[key] = measure_turn(run, children, entry, number)
                per_s = rates[key]
                entry.failed = per_s is None
                if number and per_s is not None:
                    entry.rates.append(per_s)
        log_progress(f"measured {kind}")
        yield


def measure_turn(run: Run, children: Children, entry: Entry, number: int) -> float | None:
    """Measure a reader once, if it still works; round 0 opens it and warms it up."""
    seconds = run.options.seconds if number else run.options.seconds / 4
    try:
        return rate(children[entry.config].call, entry.kind, entry.calls, number, seconds)
    except PeerError as problem:
        run.left_out.append(f"{problem}, {entry.kind}, round {number}")
        return None


def measure_cold(children: Children, entries: list[Entry], patches: int) -> list[dict[str, Any]]:
    """Count the bytes that a patch reads from disk when nothing is in memory."""
    rows = []
    for entry in entries:
        if entry.kind not in COLD_KINDS.get(entry.peer, ()):
            continue
        with children.start(entry.config) as child:
            result = child.call("cold", kind=entry.kind, seed=3, patches=patches)
        rows.append(
            {
                "kind": entry.kind,
                "peer": entry.peer,
                "setting": entry.config,
                "disk_bytes": statistics.mean(result["disk"]),
                "cached_bytes": statistics.mean(result["cached"]),
                "left_bytes": max(result["left"]),
                "seconds": statistics.median(result["seconds"]),
            }
        )
    return rows


def measure_memory(
    children: Children, entries: list[Entry], seconds: float
) -> list[dict[str, Any]]:
    """Return the memory of our process in addition to its batches and the limit of its cache."""
    rows = []
    for entry in entries:
        if not entry.peer.startswith(OURS) or entry.kind not in {"128^3", "axial"}:
            continue
        with children.start(entry.config) as child:
            rate(child.call, entry.kind, entry.calls, 1, seconds)
            result = child.call("memory", kind=entry.kind, **asdict(entry.calls))
        other = result["peak_bytes"] - result["batch_bytes"] - result["cache_bytes"]
        rows.append({"kind": entry.kind, "peer": entry.peer, "other_bytes": other, **result})
    return rows


def measure_first_batch(work: Path, scans: int, rounds: int) -> list[dict[str, float]]:
    """Measure the time to the first batch of a store of many scans, each time in a new process."""
    raw, store = work / "many" / "raw", work / "many.zarr"
    raw.parent.mkdir()
    add_scans(raw, range(scans))
    ingest(raw, store)
    command = [*python_module("peers.first_batch"), str(store)]
    runs = [
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment())  # noqa: S603
        for _ in range(rounds)
    ]
    return [json.loads(run.stdout) for run in runs]


def row_of(entry: Entry, ours: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one peer and kind, with ratios to spinezarr in the same rounds."""
    ratios = [mine / theirs for mine, theirs in zip(ours, entry.rates, strict=False)]
    return {
        "kind": entry.kind,
        "reader": entry.peer,
        "setting": entry.config,
        **asdict(entry.calls),
        "per_s": entry.rates,
        "per_s_median": statistics.median(entry.rates),
        "per_s_min": min(entry.rates),
        "per_s_max": max(entry.rates),
        "spinezarr_over_this": statistics.median(ratios) if ratios else None,
        "stored_bytes": entry.stored_bytes,
    }


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the rates kind by kind, the fastest first."""
    table = Table("kind", "reader", "a second", "min to max", "spinezarr is", "MB", "setting")
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        for row in sorted(of_kind, key=lambda row: -row["per_s_median"]):
            ratio = row["spinezarr_over_this"]
            table.add_row(
                kind, row["reader"], f"{row['per_s_median']:.1f}",
                f"{row['per_s_min']:.1f} to {row['per_s_max']:.1f}",
                "" if ratio is None else f"{ratio:.2f} x", f"{row['stored_bytes'] / 1e6:.1f}",
                f"{row['setting']}, {row['callers']} x {row['per_call']}",
            )  # fmt: skip
        table.add_section()
    CONSOLE.print(table)


def print_targets(result: dict[str, Any]) -> None:
    """Print the targets, and the results that are no rates."""
    table = Table("row", "reached", "must reach", "aim", "compared with")
    for line in result["targets"]:
        reached = line["reached"]
        met = reached is not None and (
            reached <= line["must"] if line["less"] else reached >= line["must"]
        )
        style = "dim" if reached is None else "green" if met else "red"
        table.add_row(
            line["row"], "not measured" if reached is None else f"{reached:.2f}",
            f"{'≤' if line['less'] else ''}{line['must']}", str(line["aim"] or ""),
            line["compared_with"], style=style,
        )  # fmt: skip
    CONSOLE.print(table)
    for row in result["cold"]:
        CONSOLE.print(
            f"cold, {row['kind']}, {row['peer']}: {row['disk_bytes'] / 1e6:.2f} MB from disk a "
            f"patch, {row['seconds'] * 1e3:.0f} ms; {row['left_bytes']} bytes were left in memory"
        )
    for line in result["left_out"]:
        CONSOLE.print(f"left out: {line}")


def measure(options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Measure everything that the options select; yield the results so far after each step."""
    image, label = choose_pair(options, work)
    run = Run(options, Data.make(work / "data", image, label, options.scans))
    with Children(run.data) as children:
        tune(run, children, choose_configs(options.peers, options.quick, run.left_out))
        run.load.append(os.getloadavg()[0])
        for _ in take_turns(run, children):
            run.load.append(os.getloadavg()[0])
            yield run.result()
    with Children(run.data) as children:  # no other process may have the files mapped
        if options.cold:
            run.cold = measure_cold(children, run.entries, options.cold)
        run.memory = measure_memory(children, run.entries, 2 * options.seconds)
    yield run.result()
    if options.many:
        run.first_batch = measure_first_batch(work, options.many, options.rounds)
        yield run.result()


def is_installed(package: str) -> bool:
    """Return whether a peer's package is installed."""
    return find_spec(package) is not None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds of each reader per round"
    )
    parser.add_argument("--scans", type=int, default=8, help="copies of the scan to draw from")
    parser.add_argument("--peers", nargs="+", default=[], help="measure only these")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--quick", action="store_true", help="one setting of each peer")
    parser.add_argument("--cold", type=int, default=12, help="patches read with a cold cache")
    parser.add_argument("--many", type=int, default=FULL_SCANS, help="scans of the large store")
    parser.add_argument(
        "--folder", type=absolute_path, help="folder for the data (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for the chart")
    return parser.parse_args()


def main() -> None:
    """Measure, print tables, write JSON and a chart."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {}
        for result in measure(options, Path(folder)):
            if options.json:  # a stopped run keeps its results
                options.json.write_text(json.dumps(result, indent=1))
    print_rows(result["rows"])
    print_targets(result)
    if options.png:
        draw_rates(result, options.png)


if __name__ == "__main__":
    main()
