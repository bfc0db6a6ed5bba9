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
_TARGET_LINK = "20 ms"
_MIN_RATIOS = {
    "zarr-python": (("zarr-python, obstore", "zarr-python, fsspec"), 15.0),
    "tensorstore": (("tensorstore",), 1.5),
}
"""Readers of each peer, and the factor by which spinezarr must be faster at 20 ms."""
_KINDS = ("128^3", "64^3")
_MAX_REQUESTS_EACH_ARRAY = 1.5
_MIN_LINK_SHARE = 0.9
_FAULT_RATE_WITHOUT_ERRORS = 0.03
_MAX_COLD_REQUESTS = 8
_MAX_COLD_S = 1.0


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
    core_ms_each: float
    """Core time of the reader per patch in ms, without that of the server and the proxy."""
    requests_each: float
    """Requests per patch, image and mask together."""
    bytes_each: float
    """Bytes per patch, image and mask together."""
    bytes_per_s: float
    ours_over_this: float | None
    """Median of the ratios within a round."""

    def to_json(self) -> dict[str, Any]:
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
         reached >= must, "less": less, "compared_with": compared_with}
        for text, reached, must, less, compared_with in (
            *_targets_of_rows(result), *_targets_of_parts(result)
        )
    ]  # fmt: skip


_Target = tuple[str, float, float, bool, str]
"""Name, result, limit, whether less is better, and what the result is compared with."""


def _targets_of_rows(result: dict[str, Any]) -> Iterator[_Target]:
    for kind, ours in product(_KINDS, (OURS, f"{OURS}, window")):
        name = f"{kind}{ours.removeprefix(OURS)}"
        rows = [row for row in result["rows"] if (row["kind"], row["link"]) == (kind, _TARGET_LINK)]
        our_row = next((row for row in rows if row["reader"] == ours), None)
        if our_row is not None:
            text = f"{name}, requests a patch and array, {_TARGET_LINK}"
            yield text, our_row["requests_each_array"], _MAX_REQUESTS_EACH_ARRAY, True, ""
            for peer, (readers, must) in _MIN_RATIOS.items():
                peer_rows = [row for row in rows if row["reader"] in readers]
                if peer_rows:
                    best = max(peer_rows, key=lambda row: row["per_s_median"])
                    ratio = our_row["per_s_median"] / best["per_s_median"]
                    yield f"{name} to {peer}, {_TARGET_LINK}", ratio, must, False, best["setting"]
        for row in result["rows"]:
            if (row["kind"], row["link"], row["reader"]) == (kind, CAP, ours):
                share = row["share_of_link"]
                yield f"{name}, share of a link of {CAP}", share, _MIN_LINK_SHARE, False, ""


def _targets_of_parts(result: dict[str, Any]) -> Iterator[_Target]:
    ours = [row for row in result["faults"] if row["reader"] == OURS]
    if ours:
        wrong = sum(row["wrong"] for row in ours)
        patches = sum(row["patches"] for row in ours)
        yield "wrong through faults", wrong, 0, True, f"{patches} patches"
        low_rate = [row for row in ours if row["rate"] <= _FAULT_RATE_WITHOUT_ERRORS]
        failed = sum(row["failed"] for row in low_rate)
        patches = sum(row["patches"] for row in low_rate)
        text = f"failed through faults, up to {_FAULT_RATE_WITHOUT_ERRORS:.0%}"
        yield text, failed, 0, True, f"{patches} patches"
    ranks, cold = result["two_ranks"], result["cold"]
    if ranks:
        text = "two ranks: repeated or missing samples"
        yield text, ranks["repeated"] + ranks["missing"], 0, True, f"of {ranks['samples']}"
        yield "two ranks: share of the link", ranks["share_of_link"], _MIN_LINK_SHARE, False, ""
    if cold:
        text = f"first batch of {cold['scans']} scans, cold"
        yield f"{text}: requests", max(cold["requests"]), _MAX_COLD_REQUESTS, True, ""
        imports = f"and {statistics.median(cold['import_s']):.2f} s to import"
        yield f"{text}: s", statistics.median(cold["open_s"]), _MAX_COLD_S, True, imports


def print_report(result: dict[str, Any], console: Console) -> None:
    """Print everything that was measured."""
    _print_rows(result["rows"], console)
    _print_rows(result["limits"], console)
    _print_faults(result["faults"], console)
    for name in ("two_ranks", "cold"):
        if result[name]:
            figures = {key: value for key, value in result[name].items() if key != "latest"}
            console.print(name.replace("_", " "), figures)
    _print_trainers(result["trainers"], console)
    _print_targets(result["targets"], console)
    for line in dict.fromkeys(result["left_out"]):
        console.print(f"left out: {line}")


def _print_trainers(rows: Sequence[dict[str, Any]], console: Console) -> None:
    if not rows:
        return
    table = Table(
        "kind", "link", "trainers", "patches/s", "MB a patch", "of the link", "samples of each"
    )
    for row in rows:
        samples = row["samples_by_rank"]
        table.add_row(
            row["kind"], row["link"], str(len(samples)), f"{row['per_s']:.1f}",
            f"{row['body_bytes'] / row['samples'] / MB:.2f}", f"{row['share_of_link']:.0%}",
            f"{min(samples)} to {max(samples)}; {row['repeated']} repeated, "
            f"{row['missing']} missing, {row['wrong']} wrong",
        )  # fmt: skip
    console.print(table)


def _print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    if not rows:
        return
    table = Table(
        "kind", "link", "reader", "patches/s", "min to max", "spinezarr is", "core ms", "requests",
        "a patch, array", "MB", "of the link", "setting",
    )  # fmt: skip
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for link in LINKS:
            of_link = [row for row in rows if (row["kind"], row["link"]) == (kind, link)]
            for row in sorted(of_link, key=lambda row: -row["per_s_median"]):
                ratio, share = row["ours_over_this"], row["share_of_link"]
                table.add_row(
                    kind, link, row["reader"], f"{row['per_s_median']:.1f}",
                    f"{row['per_s_min']:.1f} to {row['per_s_max']:.1f}",
                    "" if ratio is None else f"{ratio:.2f} x", f"{row['core_ms_each']:.2f}",
                    f"{row['requests_each']:.1f}", f"{row['requests_each_array']:.2f}",
                    f"{row['bytes_each'] / MB:.2f}",
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
            row["reader"], f"{row['rate']:.0%}", str(row["patches"]), str(row["wrong"]),
            str(row["failed"]), f"{row['seconds']:.1f}", "" if slow is None else f"{slow:.2f} x",
            row["setting"], row["problems"][0][:60] if row["problems"] else "",
            style="red" if row["wrong"] else None,
        )  # fmt: skip
    console.print(table)


def _print_targets(targets: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("row", "reached", "must reach", "compared with")
    for line in targets:
        table.add_row(
            line["row"], f"{line['reached']:.2f}", f"{'≤ ' if line['less'] else ''}{line['must']}",
            line["compared_with"], style="green" if line["met"] else "red",
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
            of_link = [row for row in rows if (row["kind"], row["link"]) == (kind, link)]
            if of_link:
                draw_bars(axes, f"{kind.replace('^3', '³')}, {_link_title(link)}", of_link)
    figure.suptitle(
        f"{result['data'].removesuffix('.nii.gz')} over {result['place'].upper()}: patches of "
        f"image and mask a second, {result['cpus']} cores; median, and min to max",
        fontsize=11,
    )
    figure.savefig(path)


def _link_title(link: str) -> str:
    return f"a link of {link}" if LINKS[link].bytes_per_s else f"{link} a request"
