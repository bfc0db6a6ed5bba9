"""Compares random patches per second over HTTP and S3 on slow and faulty links with all peers.

A proxy (``tests/support/proxy.py``) between the stores and all readers adds latency, a limit on
bytes per second, and faults, and counts requests and bytes. Every reader is a process of its own,
and all read the boxes that spinezarr draws. Metadata and shard indices are loaded before anything
is timed.
The scan is linked as many scans, so that reads in flight seldom need the same chunk. With 64
patches in flight, tensorstore fetched a quarter of the bytes of a real dataset from 4 scans, and
two thirds from 16 scans.
First the layouts and settings of each peer are tried, and the best are kept. Then one reader reads
at a time, in rounds, while all others wait. The results are ratios within a round. Every reader is
compared with the source voxel by voxel before it is timed. Under faults, every answer is compared.

The parts are the table, faults, two ranks on one link, and the first batch of a cold process; by
default all are measured. ``--gaps``, ``--runs`` and ``--in-flight`` try other limits of spinezarr.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from common import absolute_path, machine, phantom_pair
from patches import choose_pair, log_progress
from peers.data import Data
from peers.ours import store_of
from peers.parent import Child, PeerError, environment, python_module
from peers.remote import CONFIGS, OUR_NAME, Place, RemoteConfig
from peers.remote_child import BATCH, KINDS
from peers.zarr_stores import LAYOUTS, write_layout
from peers.zarr_stores import OURS as OUR_STORE
from rich.console import Console
from scans import add_scans
from scans import ingest as ingest_many

from spinezarr.remote.filesystem import open_filesystem

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from ceph import MissingProgramsError, ceph_gateway
from proxy import Conditions, Proxy, proxy
from remote_report import CAP, LINKS, OURS, SLOW, Row, print_report, targets_of
from remote_report import draw as draw_chart

CONSOLE = Console(width=150)
BUCKET = "bench"
PACKAGES = ("tensorstore", "obstore", "fsspec", "s3fs", "aiohttp")
RATES = (0.0, 0.01, 0.03, 0.1)
"""Fractions of requests that fail."""
DIRECT = Conditions()
TRIAL_LINK = "20 ms"
"""Link on which layouts are tried."""
DEFAULT_LAYOUT = "64³ lz4hc 7"
"""The layout of peers in parts that try no layouts."""
N_COMPARED = 8
"""Number of patches per reader and kind that are compared before timing."""
N_ESTIMATES = 3
SLOW_ROUNDS = 2
SLOW_FACTOR = 3
"""Factor on the intended time of a turn, above which a reader is slow."""
STARTUP_POLLS, POLL_INTERVAL_S = 100, 0.1
COLD_BATCH_SIZE = 2
"""Batch size of ``peers/first_batch.py``."""


SHORT_SHAPE_ZYX = (80, 160, 160)
ZARR_PEERS = sorted({config.peer for config in CONFIGS if config.has_layouts})
"""Peers that read Zarr, in several layouts."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of a reader process."""

    reader: str
    setting: str
    arguments: tuple[str, ...]
    """Arguments of ``peers/remote_child.py``."""

    @property
    def is_ours(self) -> bool:
        """Whether the reader is spinezarr."""
        return self.arguments[0] == "spinezarr"


@dataclass(slots=True)
class Entry:
    """A reader that takes turns with the others."""

    reader: str
    setup: Setup
    in_flight: int
    estimated_rate: float
    """Patches per second in the reader's last turn."""
    slow: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """The results of one turn."""

    patches: int
    seconds: float
    core_s: float
    """Core time of the reader in seconds, without that of the server and the proxy."""
    requests: int
    body_bytes: int

    @property
    def per_s(self) -> float:
        """Patches per second."""
        return self.patches / self.seconds


def store_name(layout: str) -> str:
    """Return the name of the store of a layout in URLs."""
    if layout == OUR_STORE:
        return OUR_NAME
    side, codec = LAYOUTS[layout]
    return f"{side}-{codec.replace(' ', '-')}.zarr"


def our_setup(shuffle: str, reader: str = "", **options: int | str) -> Setup:
    """Return the setup of spinezarr with options that differ from the defaults."""
    name = reader or (OURS if shuffle == "exact" else f"{OURS}, {shuffle}")
    assignments = [f"{key}={value}" for key, value in options.items()]
    return Setup(name, shuffle, ("spinezarr", shuffle, *assignments))


def peer_setup(config: RemoteConfig, layout: str) -> Setup:
    """Return the setup of a peer on a store."""
    setting = f"{layout}, {config.setting}" if config.has_layouts else config.setting
    return Setup(config.peer, setting, (config.name, store_name(layout)))


class Bench:
    """The scans, the servers of them, and the open readers."""

    def __init__(
        self, options: argparse.Namespace, data: Data, place: Place, link: Proxy,
        upload: Callable[[Path], object],
    ) -> None:  # fmt: skip
        self.options = options
        self.data = data
        self.place = place
        self.link = link
        self.left_out: list[str] = []
        self._upload = upload
        self._provided: set[str] = set()
        self._open: dict[tuple[Setup, Conditions], Child] = {}
        self._stack = ExitStack()
        store_of(data, "balanced")
        self.provide_file(OUR_NAME)
        self.provide_file("raw")

    def close(self) -> None:
        """End all readers."""
        self._stack.close()
        self._open.clear()

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a reader."""
        credentials = {
            "AWS_ENDPOINT_URL": self.place.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.place.key,
            "AWS_SECRET_ACCESS_KEY": self.place.secret,
        }
        return {
            **environment(),
            "REMOTE_URL": self.place.url,
            **(credentials if self.place.is_bucket else {}),
        }

    def layouts(self) -> list[str]:
        """Return the layouts that peers choose from, ours last."""
        return [*self.options.layouts, OUR_STORE]

    def provide(self, layout: str) -> None:
        """Serve a store of a layout."""
        if layout != OUR_STORE:
            self.data.once(store_name(layout), partial(write_layout, self.data, layout))
        self.provide_file(store_name(layout))

    def provide_file(self, name: str) -> None:
        """Serve a file or folder."""
        if name not in self._provided:
            self._upload(self.data.folder / name)
            self._provided.add(name)

    def start_reader(self, setup: Setup, conditions: Conditions = DIRECT) -> Child:
        """Start a reader, and let it load metadata and shard indices.

        Peers do so without delay. spinezarr must use the link of its turn, because it measures the
        link.
        """
        self.link.set(conditions if setup.is_ours else DIRECT)
        command = [*python_module("peers.remote_child"), str(self.data.folder), *setup.arguments]
        child = Child(f"{setup.reader}, {setup.setting}", command, self.data.folder, self.variables)
        child.call("warm")
        return child

    def reader(self, setup: Setup, conditions: Conditions) -> Child:
        """Return an open reader; a new one is first compared with the source."""
        key = setup, conditions if setup.is_ours else DIRECT
        if key not in self._open:
            child = self._stack.enter_context(self.start_reader(setup, conditions))
            for kind in self.options.kinds:
                arguments = {"kind": kind, "epoch": 0, "n": N_COMPARED, "in_flight": N_COMPARED}
                answer = child.call("compare", **arguments, timeout_s=self.options.timeout)
                if answer["wrong"] or answer["failed"]:
                    raise PeerError(f"{setup.reader}, {setup.setting}, {kind}: {answer}")
            self._open[key] = child
        return self._open[key]

    def turn(self, entry: Entry, kind: str, conditions: Conditions, number: int) -> Turn:
        """Let a reader read for some seconds under given conditions."""
        child = self.reader(entry.setup, conditions)
        self.link.set(conditions)
        self.link.reset()
        seconds = self.options.seconds if number else self.options.seconds / 3
        answer = child.call(
            "rate", kind=kind, epoch=number + 1, seconds=seconds, in_flight=entry.in_flight,
            estimated_rate=entry.estimated_rate, timeout_s=self.options.timeout,
        )  # fmt: skip
        counts = self.link.counts()
        return Turn(
            answer["patches"], answer["seconds"], answer["core_s"], counts.requests,
            counts.body_bytes,
        )  # fmt: skip


def installed_configs(bench: Bench) -> list[RemoteConfig]:
    """Return the configurations of the chosen peers that are installed; report the others."""
    peers = bench.options.peers
    configs = [config for config in CONFIGS if config.peer in peers or not peers]
    for config in configs:
        if find_spec(config.package) is None:
            bench.left_out.append(f"{config.name}: {config.package} is not installed")
    configs = [config for config in configs if find_spec(config.package) is not None]
    if bench.options.quick:
        configs = list({config.peer: config for config in reversed(configs)}.values())[::-1]
    return configs


def best_of(bench: Bench, entries: Iterable[Entry], kind: str, link: str) -> Entry | None:
    """Try entries briefly; return the fastest, with its rate."""
    best = None
    entries = list(entries)
    if bench.options.quick and len(entries) == 1 and entries[0].in_flight:
        return entries[0]  # there is no choice to make
    for entry in entries:
        try:
            turn = bench.turn(entry, kind, LINKS[link], 0)
        except PeerError as problem:
            bench.left_out.append(f"{problem}, {kind}, {link}")
            continue
        entry.estimated_rate = turn.per_s
        entry.slow = turn.seconds > SLOW_FACTOR * bench.options.seconds
        if best is None or entry.estimated_rate > best.estimated_rate:
            best = entry
    return best


def estimate_rate(bench: Bench, entry: Entry, kind: str, link: str) -> Entry | None:
    """Estimate the rate of spinezarr, so that its epochs take the intended time of a turn."""
    estimate = None
    for _ in range(N_ESTIMATES):  # the first turns are short, so their rate is low
        estimate = best_of(bench, [entry], kind, link)
    return estimate


def choose_layouts(bench: Bench, configs: Sequence[RemoteConfig], kind: str) -> dict[str, str]:
    """Try every layout on one link; return the fastest of each peer."""
    chosen: dict[str, str] = {}
    link = TRIAL_LINK if TRIAL_LINK in bench.options.links else bench.options.links[0]
    with_layouts = [config for config in configs if config.has_layouts]
    if len(bench.options.layouts) == 1:
        (layout,) = bench.options.layouts
        bench.provide(layout)
        return {config.peer: layout for config in with_layouts}
    for config in {config.peer: config for config in reversed(with_layouts)}.values():
        trials = []
        for layout in bench.layouts():
            bench.provide(layout)
            setup = peer_setup(config, layout)
            trials.append(Entry(config.peer, setup, config.in_flight[0], 0.0))
        best = best_of(bench, trials, kind, link)
        if best is not None:
            chosen[config.peer] = best.setup.setting.split(",")[0]
            log_progress(f"{kind}: the layout of {config.peer} is {chosen[config.peer]}")
    return chosen


def our_setups(bench: Bench) -> list[Setup]:
    """Return the readers of spinezarr in the table."""
    setups = [our_setup("exact"), our_setup("window")]
    if bench.options.serve:
        setups += [
            our_setup("exact", f"{OURS}, {transfer}", transfer=transfer)
            for transfer in ("patches", "ranges")
        ]
    return setups


def choose_settings(
    bench: Bench, configs: Sequence[RemoteConfig], layouts: dict[str, str], kind: str, link: str
) -> list[Entry]:
    """Try each peer's settings on its layout and on spinezarr's store; return the fastest."""
    entries = [
        estimate_rate(bench, Entry(setup.reader, setup, 0, 1.0), kind, link)
        for setup in our_setups(bench)
    ]
    for name in dict.fromkeys(config.peer for config in configs):
        of_peer = [config for config in configs if config.peer == name]
        own_layouts = [layouts[name]] if name in layouts else []
        for layout in dict.fromkeys([*own_layouts, OUR_STORE]) if own_layouts else [""]:
            reader = f"{name}, {OUR_STORE}" if own_layouts and layout == OUR_STORE else name
            trials = [
                Entry(reader, peer_setup(config, layout or OUR_STORE), in_flight, 0.0)
                for config in of_peer
                for in_flight in config.in_flight[: 1 if bench.options.quick else None]
            ]
            best = best_of(bench, trials, kind, link)
            entries.append(best)
            if best is not None and own_layouts == [OUR_STORE]:
                entries.append(replace(best, reader=name))
    return [entry for entry in entries if entry is not None]


def measure_table(bench: Bench) -> Iterator[list[Row]]:
    """Measure all readers on every link and kind; yield the rows so far."""
    configs = installed_configs(bench)
    rows: list[Row] = []
    for kind in bench.options.kinds:
        layouts = choose_layouts(bench, configs, kind)
        bench.close()  # closes readers that were only tried
        for link in bench.options.links:
            entries = choose_settings(bench, configs, layouts, kind, link)
            turns = take_turns(bench, entries, kind, link)
            rows += [row_of(entry, kind, link, turns[entry.reader], turns.get(OURS, []))
                     for entry in entries if turns[entry.reader]]  # fmt: skip
            log_progress(f"{kind}, {link}: measured")
            yield rows
        bench.close()  # the next kind uses other layouts


def take_turns(
    bench: Bench, entries: Sequence[Entry], kind: str, link: str
) -> dict[str, list[Turn]]:
    """Let all readers read in turn, round after round."""
    turns: dict[str, list[Turn]] = {entry.reader: [] for entry in entries}
    for number in range(1, bench.options.rounds + 1):
        turns_of_round: dict[tuple[Setup, int], Turn] = {}
        for entry in entries if number % 2 else entries[::-1]:
            if entry.failed or (entry.slow and number > SLOW_ROUNDS):
                continue
            try:
                key = entry.setup, entry.in_flight
                if key not in turns_of_round:
                    turns_of_round[key] = bench.turn(entry, kind, LINKS[link], number)
                entry.estimated_rate = turns_of_round[key].per_s
                turns[entry.reader].append(turns_of_round[key])
            except PeerError as problem:
                entry.failed = True
                bench.left_out.append(f"{problem}, {kind}, {link}, round {number}")
    return turns


def row_of(entry: Entry, kind: str, link: str, turns: Sequence[Turn], ours: Sequence[Turn]) -> Row:
    """Return the row of a reader from its turns."""
    rates = [turn.per_s for turn in turns]
    ratios = [our_turn.per_s / rate for our_turn, rate in zip(ours, rates, strict=False)]
    return Row(
        kind=kind, link=link, reader=entry.reader, setting=entry.setup.setting,
        in_flight=entry.in_flight, per_s=rates,
        core_ms_each=statistics.median(1e3 * turn.core_s / turn.patches for turn in turns),
        requests_each=statistics.median(turn.requests / turn.patches for turn in turns),
        bytes_each=statistics.median(turn.body_bytes / turn.patches for turn in turns),
        bytes_per_s=statistics.median(turn.body_bytes / turn.seconds for turn in turns),
        ours_over_this=statistics.median(ratios) if ratios else None,
    )  # fmt: skip


def measure_faults(bench: Bench, rows: Sequence[Row]) -> Iterator[list[dict[str, Any]]]:
    """Read under faults, each rate in a new process; yield the results so far."""
    kind = bench.options.fault_kind
    results: list[dict[str, Any]] = []
    for setup, in_flight, n in fault_setups(bench, rows, kind):
        seconds_without_faults = None
        for rate in bench.options.rates:
            result = read_with_faults(bench, setup, in_flight, n, rate)
            seconds = result["seconds"] / max(1, result["read"])
            if not rate and result["read"]:
                seconds_without_faults = seconds
            result["slow_down"] = None
            if seconds_without_faults and result["read"]:
                result["slow_down"] = seconds / seconds_without_faults
            results.append(result)
            log_progress(f"faults, {setup.reader}, {rate:.0%}: {result['wrong']} wrong, "
                         f"{result['failed']} failed of {result['patches']}")  # fmt: skip
            yield results


def fault_setups(bench: Bench, rows: Sequence[Row], kind: str) -> Iterator[tuple[Setup, int, int]]:
    """Yield the readers with their numbers of patches in flight and in all."""
    yield our_setup("exact"), 0, bench.options.fault_patches
    measured = {row.reader: row for row in rows if (row.kind, row.link) == (kind, TRIAL_LINK)}
    for name in dict.fromkeys(config.peer for config in installed_configs(bench)):
        of_peer = [config for config in CONFIGS if config.peer == name]
        for reader in (name, f"{name}, {OUR_STORE}")[: 1 if bench.options.quick else None]:
            config = of_peer[0]
            layout = OUR_STORE if reader != name else DEFAULT_LAYOUT
            in_flight = config.in_flight[0]
            if reader in measured:
                row = measured[reader]
                layout = row.setting.split(",")[0] if config.has_layouts else ""
                in_flight = row.in_flight
                config = next(
                    candidate
                    for candidate in of_peer
                    if peer_setup(candidate, layout or DEFAULT_LAYOUT).setting == row.setting
                )
            if not config.has_layouts and reader != name:
                continue
            if config.has_layouts:
                bench.provide(layout)
            setup = replace(peer_setup(config, layout or OUR_STORE), reader=reader)
            yield setup, in_flight, bench.options.peer_fault_patches


def read_with_faults(
    bench: Bench, setup: Setup, in_flight: int, n: int, rate: float
) -> dict[str, Any]:
    """Let a reader read ``n`` patches while a fraction of the requests fails."""
    try:
        with bench.start_reader(setup) as child:
            faulty = replace(LINKS[TRIAL_LINK], fault_rate=rate, stall_s=bench.options.stall)
            bench.link.set(faulty)
            bench.link.reset()
            result = child.call(
                "compare", kind=bench.options.fault_kind, epoch=1, n=n, in_flight=in_flight,
                timeout_s=bench.options.timeout,
            )  # fmt: skip
            counts = bench.link.counts()
    except PeerError as problem:
        result = {"read": 0, "wrong": 0, "failed": n, "seconds": 0.0, "faults": {},
                  "problems": [str(problem)]}  # fmt: skip
    else:
        result.update(faults=counts.faults, requests=counts.requests)
    return {
        "reader": setup.reader, "setting": setup.setting, "in_flight": in_flight, "rate": rate,
        "kind": bench.options.fault_kind, "patches": n, **result,
    }  # fmt: skip


def measure_ranks(bench: Bench, count: int = 2, link: str = CAP) -> dict[str, Any]:
    """Let ranks read an epoch over one link of known bandwidth."""
    kind, n = bench.options.kinds[0], bench.options.rank_patches
    with ExitStack() as stack:
        children = [
            stack.enter_context(bench.start_reader(our_setup("exact"))) for _ in range(count)
        ]
        bench.link.set(LINKS[link])
        bench.link.reset()

        def call_all(method: str) -> list[dict[str, Any]]:
            with ThreadPoolExecutor(count) as pool:
                futures = [
                    pool.submit(child.call, method, kind=kind, index=rank, count=count, n=n)
                    for rank, child in enumerate(children)
                ]
                return [future.result() for future in futures]

        ranks = call_all("rank")
        counts = bench.link.counts()
        bench.link.set(DIRECT)
        comparisons = call_all("compare_rank")
    indices = [index for rank in ranks for index in rank["indices"]]
    seconds = max(r["ended"] for r in ranks) - min(r["started"] for r in ranks)
    cap = LINKS[link].bytes_per_s or 0.0
    return {
        "kind": kind, "link": link, "samples": n,
        "samples_by_rank": [len(rank["indices"]) for rank in ranks],
        "repeated": len(indices) - len(set(indices)),
        "missing": len(set(range(n)) - set(indices)),
        "wrong": sum(comparison["wrong"] for comparison in comparisons), "seconds": seconds,
        "per_s": n / seconds, "requests": counts.requests, "body_bytes": counts.body_bytes,
        "bytes_per_s": counts.body_bytes / seconds,
        "share_of_link": counts.body_bytes / seconds / cap,
    }  # fmt: skip


def measure_trainers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Let several ranks share each link of limited bandwidth."""
    capped = [link for link in bench.options.links if LINKS[link].bytes_per_s]
    for link, count in itertools.product(capped, bench.options.trainers):
        yield measure_ranks(bench, count, link)


def measure_cold(bench: Bench) -> dict[str, Any]:
    """Count requests and seconds up to the first batch of new processes on many scans."""
    store = bench.data.folder / "many.zarr"
    raw = bench.data.folder / "many"
    add_scans(raw, range(bench.options.cold_scans))
    ingest_many(raw, store)
    bench.provide_file(store.name)
    command = [*python_module("peers.first_batch"), f"{bench.place.url}/{store.name}"]
    lists: dict[str, list[Any]] = {"requests": [], "open_s": [], "import_s": [], "latest": []}
    for number in range(2 * bench.options.rounds):
        one_batch = number % 2 == 0
        bench.link.set(LINKS[TRIAL_LINK])
        bench.link.reset()
        # Reading ahead sends more requests at once, so they are counted for an epoch of one batch.
        n_samples = [str(COLD_BATCH_SIZE)] if one_batch else []
        done = subprocess.run(  # noqa: S603
            [*command, *n_samples], check=True, stdout=subprocess.PIPE, env=bench.variables
        )
        counts = bench.link.counts()
        if one_batch:
            lists["requests"].append(counts.requests)
            lists["latest"] = [list(request) for request in counts.latest]
        else:
            output = json.loads(done.stdout)
            lists["open_s"].append(output["open_s"])
            lists["import_s"].append(output["import_s"])
    return {"scans": bench.options.cold_scans, **lists}


def measure_limits(bench: Bench) -> list[Row]:
    """Read with spinezarr under other limits of merging; each row names its limit."""
    setups = [our_setup("exact", small=0)]  # shards that are kept whole have nothing to merge
    limits = (
        ("gap", bench.options.gaps),
        ("run", bench.options.runs),
        ("in_flight", bench.options.in_flight),
    )
    for name, values in limits:
        setups += [
            our_setup("exact", f"{name} {value}", small=0, **{name: value}) for value in values
        ]
    rows = []
    for kind in bench.options.kinds:
        for link in bench.options.links:
            new = [Entry(setup.reader, setup, 0, 1.0) for setup in setups]
            entries = [entry for entry in new if estimate_rate(bench, entry, kind, link)]
            turns = take_turns(bench, entries, kind, link)
            rows += [row_of(e, kind, link, turns[e.reader], turns[OURS]) for e in entries]
            log_progress(f"limits, {kind}, {link}: measured")
    bench.close()
    return rows


@dataclass(slots=True)
class Result:
    """The results so far."""

    bench: Bench
    rows: list[Row] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    ranks: dict[str, Any] | None = None
    trainers: list[dict[str, Any]] = field(default_factory=list)
    cold: dict[str, Any] | None = None
    limits: list[Row] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON."""
        bench = self.bench
        packages = [name for name in PACKAGES if find_spec(name) is not None]
        result: dict[str, Any] = {
            "data": bench.data.image.name,
            "shape_zyx": bench.data.shape_zyx,
            "scans": bench.data.scans,
            "place": "s3" if bench.place.is_bucket else "http",
            **machine(*packages),
            "load": self.load,
            "seconds": bench.options.seconds,
            "rows": [row.to_json() for row in self.rows],
            "faults": self.faults,
            "two_ranks": self.ranks,
            "trainers": self.trainers,
            "cold": self.cold,
            "limits": [row.to_json() for row in self.limits],
            "left_out": bench.left_out,
        }
        return {**result, "targets": targets_of(result)}


def measure(bench: Bench, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure the chosen parts; yield the results so far after each step."""
    result = Result(bench)

    def current() -> dict[str, Any]:
        result.load.append(os.getloadavg()[0])
        return result.to_json()

    if "table" in parts:
        for rows in measure_table(bench):
            result.rows = rows
            yield current()
    if "limits" in parts:
        result.limits = measure_limits(bench)
        yield current()
    if "faults" in parts:
        for faults in measure_faults(bench, result.rows):
            result.faults = faults
            yield current()
    if "ranks" in parts:
        result.ranks = measure_ranks(bench)
        yield current()
    if "trainers" in parts:
        result.trainers = list(measure_trainers(bench))
        yield current()
    if "cold" in parts:
        result.cold = measure_cold(bench)
        yield current()


@contextmanager
def spinezarr_server(folder: Path) -> Iterator[str]:
    """Run ``spinezarr serve`` with our store; yield its URL."""
    link = folder / "served" / f"{OUR_NAME}.zarr"  # the server removes the ending from the name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder / OUR_NAME)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from spinezarr.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(link.parent)]
    with subprocess.Popen([*command, "--port", str(port)]) as process:  # noqa: S603
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(STARTUP_POLLS):
                with suppress(OSError), urlopen(f"{url}/readyz"):  # noqa: S310
                    break
                time.sleep(POLL_INTERVAL_S)
            yield url
        finally:
            process.terminate()


@contextmanager
def open_bench(options: argparse.Namespace, data: Data) -> Iterator[Bench]:
    """Serve the scans with the proxy itself, or with a Ceph gateway behind it."""
    with ExitStack() as stack:
        if options.serve:
            store_of(data, "balanced")
            url = stack.enter_context(spinezarr_server(data.folder))
            link = stack.enter_context(proxy(upstream=url))
            bench = Bench(options, data, Place(f"{link.url}/zarr"), link, lambda _: None)
        elif not options.s3:
            link = stack.enter_context(proxy(folder=data.folder))
            bench = Bench(options, data, Place(link.url), link, lambda _: None)
        else:
            gateway = stack.enter_context(ceph_gateway())
            link = stack.enter_context(proxy(upstream=gateway.endpoint_url))
            keys = gateway.access_key, gateway.secret_key
            direct = Place(f"s3://{BUCKET}", gateway.endpoint_url, *keys)
            fs, _ = open_filesystem(direct.url, direct.options)
            fs.call_s3("create_bucket", Bucket=BUCKET)
            bench = Bench(
                options, data, replace(direct, endpoint_url=link.url), link,
                partial(upload, fs),
            )  # fmt: skip
        stack.callback(bench.close)
        yield bench


def upload(fs: Any, folder: Path) -> None:  # noqa: ANN401  fsspec ships no types
    """Copy a folder into the bucket, with the targets of links."""
    files = [
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
    ]
    keys = [f"{BUCKET}/{path.relative_to(folder.parent)}" for path in files]
    fs.put([str(path) for path in files], keys)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    for part in ("table", "faults", "two-ranks", "cold"):
        parser.add_argument(f"--{part}", action="store_true", help="measure only these parts")
    parser.add_argument(
        "--trainers", type=int, nargs="+", default=[], help="number of ranks on one link"
    )
    parser.add_argument(
        "--gaps", type=int, nargs="+", default=[], help="bytes between merged ranges to try"
    )
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[], help="bytes of the longest range to try"
    )
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=[], help="numbers of requests to try"
    )
    parser.add_argument(
        "--s3", action="store_true", help="read from a Ceph gateway instead of HTTP"
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="read our store from 'spinezarr serve'",
    )
    parser.add_argument("--short", action="store_true", help="run half a minute with few patches")
    parser.add_argument("--quick", action="store_true", help="try one setting of each peer")
    parser.add_argument("--kinds", nargs="+", default=["128^3", "64^3"], choices=KINDS)
    parser.add_argument("--links", nargs="+", default=[], choices=LINKS)
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=[*LAYOUTS])
    parser.add_argument(
        "--peers", nargs="+", default=[], choices=sorted({config.peer for config in CONFIGS})
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds of each reader per round"
    )
    parser.add_argument(
        "--scans", type=int, default=64, help="number of scans that the scan is linked as"
    )
    parser.add_argument("--fault-kind", default="64^3", choices=KINDS)
    parser.add_argument(
        "--fault-patches",
        type=int,
        default=1000,
        help="number of patches of spinezarr at each rate",
    )
    parser.add_argument(
        "--peer-fault-patches",
        type=int,
        default=200,
        help="number of patches of each peer at each rate",
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="fractions of requests that fail"
    )
    parser.add_argument("--stall", type=float, default=30.0, help="seconds of a stalled request")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds until a read counts as failed"
    )
    parser.add_argument(
        "--rank-patches", type=int, default=384, help="number of patches of all ranks together"
    )
    parser.add_argument("--cold-scans", type=int, default=1005)
    parser.add_argument(
        "--folder", type=absolute_path, help="folder for the data (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for the chart")
    options = parser.parse_args()
    excluded = {"100 ms"} if options.serve else {SLOW}
    options.links = options.links or [link for link in LINKS if link not in excluded]
    if options.serve:
        options.layouts = [OUR_STORE]
        options.peers = [peer for peer in options.peers or ZARR_PEERS if peer in ZARR_PEERS]
    return shorten(options) if options.short else options


def shorten(options: argparse.Namespace) -> argparse.Namespace:
    """Return options of a run of half a minute, which only shows that everything works."""
    options.quick = True
    options.links = [link for link in options.links if link in {"0 ms", TRIAL_LINK}]
    options.layouts = [DEFAULT_LAYOUT] if not options.serve else options.layouts
    options.rounds, options.seconds, options.scans = 1, 0.3, 2
    options.kinds = options.kinds[-1:]
    options.fault_patches, options.peer_fault_patches, options.rates = 16, 8, [0.03]
    options.stall = 1.0
    options.rank_patches, options.cold_scans = 4 * BATCH, 5
    return options


def parts_of(options: argparse.Namespace) -> list[str]:
    """Return the parts to measure."""
    is_chosen = {
        "table": options.table, "limits": bool(options.gaps or options.runs or options.in_flight),
        "faults": options.faults, "ranks": options.two_ranks, "cold": options.cold,
        "trainers": bool(options.trainers),
    }  # fmt: skip
    chosen = [part for part, is_part_chosen in is_chosen.items() if is_part_chosen]
    return chosen or ["table", "faults", "ranks", "cold"]


def main() -> None:
    """Measure, print tables, write JSON and a chart."""
    options = parse()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("bench-remote: ended")
    )  # ends the children, too
    result: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            work = Path(folder)
            use_phantom = options.short and not options.pair
            pair = (
                phantom_pair(work, SHORT_SHAPE_ZYX) if use_phantom else choose_pair(options, work)
            )
            data = Data.make(work / "data", *pair, options.scans)
            with open_bench(options, data) as bench:
                for result in measure(bench, parts_of(options)):
                    if options.json:  # a stopped run keeps its results
                        options.json.write_text(json.dumps(result, indent=1))
    except MissingProgramsError as problem:
        sys.exit(f"bench-remote-s3: {problem}")
    print_report(result, CONSOLE)
    if options.png and result["rows"]:
        draw_chart(result, options.png)


if __name__ == "__main__":
    main()
