"""The kill loops: kill a run with SIGKILL at many points, judge the store, run again."""

import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Event
from typing import Final, Literal, Protocol

import numpy as np

from killing.baseline import read_array
from killing.bucket import BUCKET, Action, Bucket, Change
from killing.check import (
    Fault,
    Files,
    Reference,
    faults_after_kill,
    faults_at_end,
    folder_files,
    same_as_written,
    write_folder,
)
from killing.dataset import RECIPE, write_raw
from killing.driver import Driver, Plan, Run

__all__ = [
    "BucketPlace",
    "Counts",
    "CrashData",
    "FolderPlace",
    "count_baseline",
    "count_kills",
]

Start = Literal["nothing", "version 1"]
_KILLED: Final = -9
_LATER_S: Final = 0.003
"""Longest time from a change to the kill, so that some files are half written."""


@dataclass(frozen=True, slots=True)
class KillPoint:
    """A point at which a run is killed."""

    start: Start
    after_s: float | None = None
    """Time from the start; None to kill at a change."""
    change: int = 0
    later_s: float = 0.0
    is_answered: bool = False
    """In a bucket: whether the server makes the change before the kill."""


@dataclass(frozen=True, slots=True)
class CrashData:
    """Raw folders, their stores, and the driver that made them."""

    folder: Path
    driver: Driver
    stores: dict[Start, Files]
    """Files of the store before a run, by kind of start."""
    references: dict[Start, Reference]

    @classmethod
    def create(cls, folder: Path, driver: Driver) -> "CrashData":
        """Write both versions of the raw folder, and make stores in runs that are not killed."""
        truth = {version: write_raw(folder / f"raw{version}", version) for version in (1, 2)}
        (folder / "recipe.yaml").write_text(RECIPE)
        crash_data = cls(folder, driver, {"nothing": {}}, {})
        first = crash_data._run_to_end({}, 1, audit=True)
        crash_data.stores["version 1"] = first
        for start, before in crash_data.stores.items():
            end = crash_data._run_to_end(before, 2)
            if not same_as_written(first, truth[1]) or not same_as_written(end, truth[2]):
                raise AssertionError("a run that was not killed does not store the written voxels")
            crash_data.references[start] = Reference.of(before, end)
        return crash_data

    def words(self, url: str, version: int = 2) -> list[str]:
        """Return the command line of an ingest."""
        raw = str(self.folder / f"raw{version}")
        return ["ingest", str(self.folder / "recipe.yaml"), "--raw", raw, "--out", url]

    def _run_to_end(self, before: Files, version: int, *, audit: bool = False) -> Files:
        out = self.folder / "unkilled.zarr"
        write_folder(before, out)
        code, run = self.driver.run(self.words(str(out), version), str(out))
        if code:
            raise AssertionError(run.output)
        if audit:
            self.driver.run(["audit", str(out)], str(out))  # random voxels have findings: exit 1
        files = folder_files(out)
        shutil.rmtree(out)
        return files


class Place(Protocol):
    """Location of stores, and the way to kill runs there."""

    environment: dict[str, str]
    """Environment variables that a client needs to find the stores."""

    def new(self, files: Files) -> str:
        """Return the URL of a new store that holds these files."""

    def files(self, url: str) -> Files:
        """Read all files of a store."""

    def start(self, words: Sequence[str], url: str, point: KillPoint | None) -> Run:
        """Start a run that will be killed; one that will not without a point."""

    def changes(self, run: Run) -> list[str]:
        """Return the changes that a run was about to make, in order."""

    def point_at_change(self, start: Start, number: int, later: float) -> KillPoint:
        """Return a point at a change; ``later`` is from 0 to 1."""


class FolderPlace:
    """Stores on disk."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        self._folder = folder
        self._driver = driver
        self._store = folder / "s.zarr"
        self.environment: dict[str, str] = {}

    def new(self, files: Files) -> str:
        """Return the URL of a new store that holds these files."""
        shutil.rmtree(self._store, ignore_errors=True)
        write_folder(files, self._store)
        return str(self._store)

    def files(self, url: str) -> Files:
        """Read all files of a store."""
        return folder_files(Path(url))

    def start(self, words: Sequence[str], url: str, point: KillPoint | None) -> Run:
        """Start a run that will be killed; one that will not without a point."""
        plan = Plan() if point is None else Plan(kill_at=point.change, kill_delay_s=point.later_s)
        return self._driver.start(words, url, plan)

    def changes(self, run: Run) -> list[str]:
        """Return the changes that a run was about to make, in order."""
        return run.changes

    def point_at_change(self, start: Start, number: int, later: float) -> KillPoint:
        """Return a point at a change; half of them just before it."""
        return KillPoint(start, change=number, later_s=max(0.0, 2 * later - 1) * _LATER_S)


class BucketPlace:
    """Stores in a bucket."""

    def __init__(self, bucket: Bucket, driver: Driver) -> None:
        self._bucket = bucket
        self._driver = driver
        self.environment = bucket.environment

    def new(self, files: Files) -> str:
        """Return the URL of a new store that holds these files."""
        prefix = f"{secrets.token_hex(4)}/s.zarr"  # other tests use the bucket, too
        self._bucket.put(prefix, {k: v for k, v in files.items() if not k.endswith("/")})
        return f"s3://{BUCKET}/{prefix}"

    def files(self, url: str) -> Files:
        """Read all files of a store."""
        return self._bucket.files(url.removeprefix(f"s3://{BUCKET}/"))

    def start(self, words: Sequence[str], url: str, point: KillPoint | None) -> Run:
        """Start a run that will be killed; one that will not without a point."""
        started = Event()
        runs: list[Run] = []

        def kill_at(number: int) -> bool:
            if point is None or number != point.change or number == 0:
                return False
            started.wait()
            runs[0].kill()
            return True

        def before(number: int, _change: Change) -> Action:
            is_answered = point is not None and point.is_answered
            return "cut" if not is_answered and kill_at(number) else "pass"

        def after(number: int, _change: Change) -> None:
            if point is not None and point.is_answered:
                kill_at(number)

        self._bucket.set_rule(before, after)
        run = self._driver.start(words, url, Plan(environment=self._bucket.environment))
        runs.append(run)
        started.set()
        return run

    def changes(self, run: Run) -> list[str]:
        """Return the changes that a run requested from the bucket, in order."""
        del run
        return [f"{method} {key.partition('s.zarr/')[2]}" for method, key in self._bucket.changes]

    def point_at_change(self, start: Start, number: int, later: float) -> KillPoint:
        """Return a point at a change; half of them after the server has made it."""
        return KillPoint(start, change=number, is_answered=later > 0.5)


@dataclass(slots=True)
class Counts:
    """Counts of the effects of many kills."""

    kills: int = 0
    second_kills: int = 0
    """Kills of runs that continued after a first kill."""
    faults: Counter[str] = field(default_factory=Counter)
    """Number of kills by kind of fault."""
    stages: Counter[str] = field(default_factory=Counter)
    """Number of kills by stage of the run."""
    examples: list[str] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Add the counts of other kills."""
        self.kills += other.kills
        self.second_kills += other.second_kills
        self.faults += other.faults
        self.stages += other.stages
        self.examples += other.examples

    def to_json(self) -> dict[str, object]:
        """Return all counts."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def note(self, point: KillPoint, stage: str, faults: Sequence[Fault]) -> None:
        """Count each kind of fault once per kill."""
        for kind in {fault.kind for fault in faults}:
            self.faults[kind] += 1
        self.examples += [f"{point} at {stage!r}: {fault.kind}: {fault.text}" for fault in faults]


def count_kills(crash_data: CrashData, place: Place, kills: int, *, seed: int) -> Counts:
    """Kill ``kills`` runs; after each, judge the store, run again, and judge it again.

    One in four second runs is killed too.
    """
    rng = np.random.default_rng(seed)
    counts = Counts()
    drawn = _draw_points(crash_data, place, rng)
    while counts.kills < kills:
        point = next(drawn)
        reference = crash_data.references[point.start]
        url = place.new(crash_data.stores[point.start])
        words = crash_data.words(url)
        stage = _kill_run(crash_data, place, words, url, point)
        if stage is None:
            continue
        counts.kills += 1
        counts.stages[stage] += 1
        faults = faults_after_kill(place.files(url), url, reference)
        if rng.random() < 0.25:
            again = KillPoint(point.start, after_s=rng.uniform(0.05, 0.5))
            if (stage_again := _kill_run(crash_data, place, words, url, again)) is not None:
                stage = f"{stage}, then {stage_again}"
                counts.second_kills += 1
                faults += faults_after_kill(place.files(url), url, reference)
        run = place.start(words, url, None)
        if code := run.wait():
            faults.append(Fault("not resumed", f"exit code {code}: {run.output[-2000:]}"))
        faults += faults_at_end(place.files(url), url, reference)
        counts.note(point, stage, faults)
    return counts


def _draw_points(
    crash_data: CrashData, place: Place, rng: np.random.Generator
) -> Iterator[KillPoint]:
    """Draw points evenly: by time, and by stage and change, from each start in turn."""
    starts = list(crash_data.stores)
    profiles = {start: _profile(crash_data, place, start) for start in starts}
    while True:
        for start in ("version 1", "nothing", "version 1"):
            seconds, by_stage = profiles[start]
            yield KillPoint(start, after_s=rng.uniform(0, seconds))
            stage = rng.choice(sorted(by_stage))
            yield place.point_at_change(start, int(rng.choice(by_stage[stage])), rng.random())


def _profile(
    crash_data: CrashData, place: Place, start: Start
) -> tuple[float, dict[str, list[int]]]:
    """Measure how long an undisturbed run takes, and number its changes by stage."""
    url = place.new(crash_data.stores[start])
    began = time.monotonic()
    run = place.start(crash_data.words(url), url, None)
    if run.wait():
        raise AssertionError(run.output)
    seconds = time.monotonic() - began
    by_stage: dict[str, list[int]] = {}
    for number, change in enumerate(place.changes(run), start=1):
        by_stage.setdefault(_stage(change, crash_data.references[start].before), []).append(number)
    return seconds, by_stage


def _kill_run(
    crash_data: CrashData, place: Place, words: list[str], url: str, point: KillPoint
) -> str | None:
    """Kill a run at a point; return the stage, or None if it ended before."""
    run = place.start(words, url, point)
    if point.after_s is not None:
        time.sleep(point.after_s)
        run.kill()
    code = run.wait()
    if code not in {_KILLED, 0}:
        raise AssertionError(f"a run failed by itself: {code}\n{run.output}")
    changes = place.changes(run)
    before = crash_data.references[point.start].before
    return _stage(changes[-1] if changes else "", before) if code == _KILLED else None


def _stage(change: str, before: frozenset[str]) -> str:
    """Return the stage of a run at a change."""
    action, _, path = change.partition(" ")
    parts = path.removesuffix(".partial").split("/")
    if not change:
        return "before its first change"
    if "lock" in parts[0]:
        return "lock"
    if action in {"remove", "rmdir", "DELETE", "POST"}:
        return "removing files"
    if parts[0] == "table":
        return "table: metadata" if parts[-1] == "zarr.json" and len(parts) == 2 else "table"
    if parts[0] == "scans" and len(parts) > 1 and parts[1] != "zarr.json":
        kind = "a scan that was there" if parts[1].split(".")[0] in before else "a new scan"
        return f"{kind}: publishing" if parts[2:] == ["zarr.json"] else f"{kind}: files"
    return "the store's own files"


def count_baseline(folder: Path, driver: Driver, kills: int, *, seed: int) -> Counter[str]:
    """Kill processes that write a sharded array with plain zarr-python, and count the results."""
    rng = np.random.default_rng(seed)
    place = folder / "plain.zarr"
    seconds = 60.0
    found: Counter[str] = Counter()
    while found.total() < kills:
        shutil.rmtree(place, ignore_errors=True)
        run = driver.start(["plain-zarr", place], str(place))
        began = time.monotonic()
        if not run.ended_within(rng.uniform(0, seconds)):
            run.kill()
        if run.wait() == _KILLED:
            found[read_array(place)] += 1
        else:
            seconds = time.monotonic() - began  # draw from the time that it takes now
    return found
