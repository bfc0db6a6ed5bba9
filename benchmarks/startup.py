"""Measures commands and a first batch in a new interpreter, compared with the import of peers.

Every program runs once in each round. The least processor time of each counts, because other
processes on the machine can only add to it.
"""

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common import machine, phantom_pair, run_process
from rich.console import Console
from rich.table import Table

import spinezarr

COMMAND = "import sys; from spinezarr.cli.main import main; sys.argv[1:] = {words!r}; main()"
FIRST_BATCH = (
    "import spinezarr; store = spinezarr.open({store!r}); "
    "next(iter(store.patches({side}, batch_size=2)))"
)
PEERS = ("numpy", "zarr", "xarray", "tensorstore", "torch", "torchio", "monai")


def programs(store: Path, side: int, peers: list[str]) -> dict[str, str]:
    """Return the programs by the names of their rows."""
    commands = {
        "--help": ["--help"],
        "--version": ["--version"],
        "ingest --help": ["ingest", "--help"],
        "info STORE": ["info", str(store)],
    }
    return {
        "python -c pass": "pass",
        "import typer": "import typer",
        **{f"spinezarr {name}": COMMAND.format(words=words) for name, words in commands.items()},
        "import spinezarr": "import spinezarr",
        "open a store, first batch": FIRST_BATCH.format(store=str(store), side=side),
        **{f"import {name}": f"import {name}" for name in peers if find_spec(name)},
    }


def make_store(work: Path, shape_zyx: tuple[int, int, int]) -> Path:
    """Ingest one synthetic scan."""
    phantom_pair(work, shape_zyx)
    out = work / "a.zarr"
    report = spinezarr.ingest(
        "pairs", raw=work, image="{scan}_ct.nii.gz", label="{scan}_seg.nii.gz", out=out
    )
    if report.failed:
        raise SystemExit(f"the scan cannot be ingested: {report.failed}")
    return out


def measure(
    shape_zyx: tuple[int, int, int], rounds: int, peers: list[str]
) -> list[dict[str, object]]:
    """Run every program once in each round."""
    with tempfile.TemporaryDirectory() as work:
        store = make_store(Path(work), shape_zyx)
        code_by_name = programs(store, min(64, *shape_zyx), peers)
        costs_by_name = {name: [] for name in code_by_name}
        for number in range(1 + rounds):
            for name, code in code_by_name.items():
                cost = run_process(["-c", code])
                if number:  # the first round compiles modules
                    costs_by_name[name].append(cost)
    return [
        {
            "row": name,
            "core_s": min(cost.core_s for cost in costs),
            "wall_s": min(cost.wall_s for cost in costs),
            "peak_mb": min(cost.peak_mb for cost in costs),
        }
        for name, costs in costs_by_name.items()
    ]


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", nargs=3, type=int, default=[133, 512, 512], metavar=("Z", "Y", "X")
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peers", nargs="*", default=PEERS, help="packages to import")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # The last column compares with NumPy.
    peers = ["numpy", *(name for name in options.peers if name != "numpy")]
    rows = measure(tuple(options.shape), options.rounds, peers)
    table = Table("", "core ms", "wall ms", "MB", "to import numpy")
    numpy_s = next(row["core_s"] for row in rows if row["row"] == "import numpy")
    for row in rows:
        times = (f"{1e3 * row[key]:.0f}" for key in ("core_s", "wall_s"))
        ratio = f"{row['core_s'] / numpy_s:.2f}"
        table.add_row(row["row"], *times, f"{row['peak_mb']:.0f}", ratio)
    Console().print(table)
    if options.json:
        result = {"machine": machine("typer", "pydantic"), "rows": rows}
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
