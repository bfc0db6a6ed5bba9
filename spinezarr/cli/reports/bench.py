"""How are the figures of a benchmark printed?"""

from collections.abc import Iterator
from typing import Final

from spinezarr.cli.console import OUT, StyledText, Table, print_heading, print_side_by_side
from spinezarr.measure.bound import Limit
from spinezarr.measure.patch_rates import PatchRate
from spinezarr.measure.places import describe_speed
from spinezarr.text import count_noun, megabytes
from spinezarr.verbs.bench import Benchmark

__all__ = ["print_benchmark"]

_NOTHING: Final = "-"
_OF_OTHERS: Final = 0.25
"""Share of the processors for other programs above which a rate is too low."""
_MEANINGS: Final[dict[Limit, str]] = {
    "processors": "the cores are busy, with decoding or with other programs. More cores, or "
    "shuffle='window', give more patches.",
    "disk": "threads wait for the disk. An SSD, or more memory for the page cache, gives more "
    "patches; so does shuffle='window'.",
    "link": "the link carries all that it can. A cache on disk, 'spinezarr serve', or a store that "
    "lies nearer gives more patches; so does shuffle='window'.",
    "answers": "requests wait for the server, and neither link nor cores are full. Larger batches, "
    "or a store that lies nearer, give more patches.",
    "nothing": "neither cores nor disk are full, so single threads wait for each other. Larger "
    "batches give more patches.",
}


def print_benchmark(benchmark: Benchmark) -> None:
    """Print rates, what bounds them, sizes, and what to know about the figures."""
    masks = "image and mask" if benchmark.with_masks else "images alone, as there are no masks"
    print_heading(f"Benchmark of {benchmark.url}")
    OUT.say(
        f"{count_noun(benchmark.scans - benchmark.scans_without_mask, 'scan')}, {masks}; "
        f"{count_noun(benchmark.cores, 'core')}"
    )
    print_side_by_side([_rates(benchmark), _bounds(benchmark), _sizes(benchmark)], gap=3)
    carrier = "The link alone" if benchmark.is_remote else "The disk alone"
    for speed in benchmark.speeds:
        text = describe_speed(speed, is_remote=benchmark.is_remote)
        OUT.say(StyledText(carrier, "bold"), f", {speed.order}: {text}")
    for limit in dict.fromkeys(rate.bound.limit for rate in benchmark.rates):
        kinds = [_name(rate) for rate in benchmark.rates if rate.bound.limit == limit]
        OUT.say(
            StyledText(f"Bound by {limit}", "bold"), f" ({', '.join(kinds)}): ", _MEANINGS[limit]
        )
    for note in _notes(benchmark):
        OUT.say(StyledText("Note:", "bold"), " ", note)


def _name(rate: PatchRate) -> str:
    return rate.kind.replace("^3", "³")


def _rates(benchmark: Benchmark) -> Table:
    right = ("a second", "first batch", "MB read", "amplification")
    table = Table("Patches and slices", "", *right, right=right)
    for rate in benchmark.rates:
        first, cost = rate.first_batch, rate.cost
        table.add_row(
            _name(rate),
            f"{rate.per_s:,.0f}" if rate.per_s >= 100 else f"{rate.per_s:.3g}",  # noqa: PLR2004  three digits
            f"{first.seconds * 1e3:,.0f} ms" if first and first.is_cold else _NOTHING,
            _NOTHING if cost is None else f"{cost.fetched_bytes / 1e6:.2f}",
            _NOTHING if cost is None else f"{cost.amplification:.2f} x",
        )
    return table


def _bounds(benchmark: Benchmark) -> Table:
    carrier = "link" if benchmark.is_remote else "disk"
    right = ("cores", "all busy", f"{carrier} MB/s", f"of the {carrier}")
    table = Table("What bounds them", "", "bound by", *right, right=right)
    for rate in benchmark.rates:
        bound = rate.bound
        cores = f"{bound.core_share * benchmark.cores:.1f} of {benchmark.cores}"
        table.add_row(
            _name(rate),
            bound.limit,
            cores,
            _NOTHING if bound.busy_share is None else f"{bound.busy_share:.0%}",
            _NOTHING if bound.bytes_per_s is None else f"{bound.bytes_per_s / 1e6:,.1f}",
            _NOTHING if bound.bytes_share is None else f"{bound.bytes_share:.0%}",
        )
    return table


def _sizes(benchmark: Benchmark) -> Table:
    sizes, right = benchmark.sizes, ("size", "of this store")
    table = Table("Bytes", "", *right, right=right)
    for name, size in (
        ("source files", sizes.source_bytes),
        ("Arrow, uncompressed", sizes.arrow_bytes),
        ("voxels, uncompressed", sizes.uncompressed_bytes),
        ("this store", sizes.stored_bytes),
    ):
        if size is None:
            table.add_row(name, "not known", _NOTHING)
        else:
            share = f"{size / sizes.stored_bytes:.2f} x" if sizes.stored_bytes else _NOTHING
            table.add_row(name, megabytes(size), share)
    return table


def _notes(benchmark: Benchmark) -> Iterator[str]:
    """Yield what a reader of the figures must know."""
    rates = benchmark.rates
    if not benchmark.has_kernel:
        yield "The compiled kernel is not used, so all rates are low. See 'spinezarr doctor'."
    if benchmark.scans_without_mask:
        left_out = count_noun(benchmark.scans_without_mask, "scan")
        yield f"{left_out} without a mask are left out, as a training leaves them out."
    shared = [
        _name(rate)
        for rate in rates
        if rate.bound.busy_share and rate.bound.busy_share - rate.bound.core_share > _OF_OTHERS
    ]
    if shared:
        yield (
            f"Other programs used the processors during {', '.join(shared)}, so these rates "
            "are low. Measure again when they are idle."
        )
    late = [_name(rate) for rate in rates if not rate.patches]
    if late:
        yield f"No batch of {', '.join(late)} came in the time. Give more --seconds."
    warm = [_name(rate) for rate in rates if rate.first_batch and not rate.first_batch.is_cold]
    if warm:
        yield (
            f"The first batch of {', '.join(warm)} was not cold: the system did not drop its pages "
            "from memory, or does not say so. Its time is not shown."
        )
    elif benchmark.is_remote:
        yield "First batches come without a cache here; the server may have them in memory."
    else:
        yield "First batches come from the disk; their pages were dropped from memory before."
    padded = [
        f"{_name(rate)} ({rate.padded_scans} of {rate.scans})"
        for rate in rates
        if rate.padded_scans
    ]
    if padded:
        yield (
            f"Scans smaller than the patch are padded: {', '.join(padded)}. Padding costs nothing, "
            "so these rates are high."
        )
    transfers = dict.fromkeys(rate.cost.transfer for rate in rates if rate.cost)
    for transfer in filter(None, transfers):
        kinds = [_name(rate) for rate in rates if rate.cost and rate.cost.transfer == transfer]
        yield f"{', '.join(kinds)}: read {transfer}. MB read are those of ranges."
