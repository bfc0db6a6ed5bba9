"""Reports a run of ``remote.py``: targets, tables and a chart."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from chart import draw_bars
from matplotlib.figure import Figure
from proxy import Conditions
from rich.console import Console
from rich.table import Table
from targets import OURS

CAP = "100 MB/s"
SLOW = "12 MB/s"
"""Bytes per second of 100 Mbit/s."""
LINKS = {
    "0 ms": Conditions(),
    "20 ms": Conditions(latency_s=0.02),
    "100 ms": Conditions(latency_s=0.1),
    CAP: Conditions(bytes_per_s=100e6),
    SLOW: Conditions(bytes_per_s=12e6),
}
"""Links by name. The latency is added to each request."""
MB = 1e6
_ARRAYS = 2
"""Number of arrays: image and mask."""
_AT = "20 ms"
_ZARR = ("zarr-python, obstore", "zarr-python, fsspec")
_TENSORSTORE = ("tensorstore",)
_BESIDE = {
    "zarr-python": (_ZARR, 15.0),
    "tensorstore": (_TENSORSTORE, 1.5),
}
"""Readers, and the factor by which spinezarr must be faster at 20 ms."""
_KINDS = ("128^3", "64^3")
_REQUESTS = 1.5
_LINK_SHARE = 0.9
_RATE_WITHOUT_ERRORS = 0.03
_COLD_REQUESTS = 8
_COLD_S = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """Results of a reader on one kind of patch and one link."""

    kind: str
    link: str
    reader: str
    setting: str
    in_flight: int
    """Number of patches in flight; 0 if the reader limits itself."""
    per_s: Sequence[float]
    """Patches per second, by round."""
    requests_each: float
    """Bytes of a patch, image and mask together."""
    bytes_each: float
    bytes_per_s: float
    ours_over_this: float | None
    """Median of the ratios within a round."""

    def plain(self) -> dict[str, Any]:
        """Return the row with derived figures."""
        cap = LINKS[self.link].bytes_per_s
        return {
            **asdict(self),
            "per_s_median": statistics.median(self.per_s),
            "per_s_min": min(self.per_s),
            "per_s_max": max(self.per_s),
            "requests_each_array": self.requests_each / _ARRAYS,
            "share_of_link": None if cap is None else self.bytes_per_s / cap,
        }


def targets_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return targets and results; targets that were not measured are left out."""
    return [
        {"row": text, "reached": reached, "must": must, "met": reached <= must if less else
         reached >= must, "less": less, "beside": beside}
        for text, reached, must, less, beside in (*_of_rows(result), *_of_parts(result))
    ]  # fmt: skip


_Found = tuple[str, float, float, bool, str]


def _of_rows(result: dict[str, Any]) -> Iterator[_Found]:
    for kind, ours in product(_KINDS, (OURS, f"{OURS}, window")):
        name = f"{kind}{ours.removeprefix(OURS)}"
        at = [row for row in result["rows"] if (row["kind"], row["link"]) == (kind, _AT)]
        own = next((row for row in at if row["reader"] == ours), None)
        if own is not None:
            each = own["requests_each_array"]
            yield f"{name}, requests a patch and array, {_AT}", each, _REQUESTS, True, ""
            for peer, (readers, must) in _BESIDE.items():
                some = [row for row in at if row["reader"] in readers]
                if some:
                    best = max(some, key=lambda row: row["per_s_median"])
                    ratio = own["per_s_median"] / best["per_s_median"]
                    yield f"{name} to {peer}, {_AT}", ratio, must, False, best["setting"]
        for row in result["rows"]:
            if (row["kind"], row["link"], row["reader"]) == (kind, CAP, ours):
                share = row["share_of_link"]
                yield f"{name}, share of a link of {CAP}", share, _LINK_SHARE, False, ""


def _of_parts(result: dict[str, Any]) -> Iterator[_Found]:
    ours = [row for row in result["faults"] if row["reader"] == OURS]
    if ours:
        wrong = sum(row["wrong"] for row in ours)
        yield "wrong through faults", wrong, 0, True, f"{sum(r['asked'] for r in ours)} patches"
        few = [row for row in ours if row["rate"] <= _RATE_WITHOUT_ERRORS]
        failed = sum(row["failed"] for row in few)
        asked = sum(row["asked"] for row in few)
        text = f"failed through faults, up to {_RATE_WITHOUT_ERRORS:.0%}"
        yield text, failed, 0, True, f"{asked} patches"
    ranks, cold = result["two_ranks"], result["cold"]
    if ranks:
        yield (
            "two ranks: samples in both, or missing",
            ranks["in_both"] + ranks["missing"],
            0,
            (True),
            f"of {ranks['samples']}",
        )
        yield "two ranks: share of the link", ranks["share_of_link"], _LINK_SHARE, False, ""
    if cold:
        text = f"first batch of {cold['scans']} scans, cold"
        yield f"{text}: requests", max(cold["requests"]), _COLD_REQUESTS, True, ""
        imports = statistics.median(cold["import_s"])
        yield (
            f"{text}: s",
            statistics.median(cold["open_s"]),
            _COLD_S,
            True,
            (f"and {imports:.2f} s to import"),
        )


def print_report(result: dict[str, Any], console: Console) -> None:
    """Print everything that was measured."""
    _print_rows(result["rows"], console)
    _print_rows(result["limits"], console)
    _print_faults(result["faults"], console)
    for name in ("two_ranks", "cold"):
        if result[name]:
            some = {key: value for key, value in result[name].items() if key != "asked"}
            console.print(name.replace("_", " "), some)
    _print_trainers(result["trainers"], console)
    _print_targets(result["targets"], console)
    for line in dict.fromkeys(result["left_out"]):
        console.print(f"left out: {line}")


def _print_trainers(found: Sequence[dict[str, Any]], console: Console) -> None:
    if not found:
        return
    table = Table("kind", "link", "trainers", "patches/s", "MB a patch", "of the link", "each")
    for one in found:
        table.add_row(
            one["kind"], one["link"], str(len(one["of_each"])), f"{one['per_s']:.1f}",
            f"{one['body_bytes'] / one['samples'] / MB:.2f}", f"{one['share_of_link']:.0%}",
            f"{min(one['of_each'])} to {max(one['of_each'])}; {one['in_both']} twice, "
            f"{one['missing']} missing, {one['wrong']} wrong",
        )  # fmt: skip
    console.print(table)


def _print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    if not rows:
        return
    table = Table(
        "kind", "link", "reader", "patches/s", "min to max", "spinezarr is", "requests",
        "a patch, array", "MB", "of the link", "setting",
    )  # fmt: skip
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for link in LINKS:
            some = [row for row in rows if (row["kind"], row["link"]) == (kind, link)]
            for row in sorted(some, key=lambda row: -row["per_s_median"]):
                ratio, share = row["ours_over_this"], row["share_of_link"]
                table.add_row(
                    kind, link, row["reader"], f"{row['per_s_median']:.1f}",
                    f"{row['per_s_min']:.1f} to {row['per_s_max']:.1f}",
                    "" if ratio is None else f"{ratio:.2f} x", f"{row['requests_each']:.1f}",
                    f"{row['requests_each_array']:.2f}", f"{row['bytes_each'] / MB:.2f}",
                    "" if share is None else f"{share:.0%}",
                    f"{row['setting']}, {row['in_flight'] or 'its own'} in flight",
                )  # fmt: skip
            table.add_section()
    console.print(table)


def _print_faults(rows: Sequence[dict[str, Any]], console: Console) -> None:
    if not rows:
        return
    table = Table(
        "reader", "requests that fail", "patches", "wrong", "failed", "s", "slow-down", "setting",
        "first problem",
    )  # fmt: skip
    for row in rows:
        slow = row["slow_down"]
        table.add_row(
            row["reader"], f"{row['rate']:.0%}", str(row["asked"]), str(row["wrong"]),
            str(row["failed"]), f"{row['seconds']:.1f}", "" if slow is None else f"{slow:.2f} x",
            row["setting"], row["problems"][0][:60] if row["problems"] else "",
            style="red" if row["wrong"] else None,
        )  # fmt: skip
    console.print(table)


def _print_targets(targets: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("row", "reached", "must reach", "beside")
    for line in targets:
        table.add_row(
            line["row"], f"{line['reached']:.2f}", f"{'≤ ' if line['less'] else ''}{line['must']}",
            line["beside"], style="green" if line["met"] else "red",
        )  # fmt: skip
    console.print(table)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw patches per second, with a row of panels per kind and a column per link."""
    rows = result["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    links = [link for link in LINKS if any(row["link"] == link for row in rows)]
    figure = Figure(
        (4.6 * len(links), 3.2 * len(kinds)), dpi=90, facecolor="white", layout="constrained"
    )
    panels = figure.subplots(len(kinds), len(links), squeeze=False)
    for line, kind in zip(panels, kinds, strict=True):
        for axes, link in zip(line, links, strict=True):
            some = [row for row in rows if (row["kind"], row["link"]) == (kind, link)]
            if some:
                draw_bars(axes, f"{kind.replace('^3', '³')}, {_titled(link)}", some)
    figure.suptitle(
        f"{result['data'].removesuffix('.nii.gz')} over {result['place'].upper()}: patches of "
        f"image and mask a second, {result['cpus']} cores; median, and min to max",
        fontsize=11,
    )
    figure.savefig(path)


def _titled(link: str) -> str:
    return f"a link of {link}" if LINKS[link].bytes_per_s else f"{link} a request"
