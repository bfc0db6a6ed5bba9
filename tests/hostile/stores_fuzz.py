"""Run all verbs on lying stores in processes of their own, and report the outcomes.

``python tests/hostile/stores_fuzz.py --count 20000 --json report.json`` tries 20,000 pairs of a
store and a verb. The exit code is 1 unless every verb succeeds or is refused by an error of
spinezarr's own. ``--seed 17 --verb info`` tries one pair, and ``--seed 17 --write DIR`` writes its
store into a folder.
"""

import argparse
import gc
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread, get_ident
from types import FrameType, ModuleType
from typing import Any

import numpy as np
from harness import (
    MOST_BYTES,
    Ended,
    Worker,
    limit_address_space,
    measured,
    silence,
)
from stores import SECRET, Base, Draft, lying_store, make_bases
from stores_verbs import (
    NOT_OF_SERVERS,
    RARE,
    READING,
    STARTING,
    VERBS,
    WRITING,
    Case,
    WrongEnd,
    quiet_environment,
)

from spinezarr.errors import SpinezarrError

MOST_CPU_S = 5.0
STARTED_CPU_S = 10.0
"""More processor time for a verb that starts an interpreter, for its imports."""
FILE_BYTES = 1 << 30
"""Largest size of a written file."""
READS, WRITES = 5, 1
"""Number of verbs of either kind that are tried on a store."""
SERVED_EVERY = 8
"""Number of stores of which one is read from a web server."""
TWICE_EVERY = 3
"""Number of stores of which one has its voxels read twice."""
ELSEWHERE_EVERY = 40
"""Number of pairs of which one is also tried in another process."""
PER_CHILD = 50
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, characters that change text direction, and surrogates."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pair:
    """A trial: a verb on the store of a number, on disk or on a web server."""

    number: int
    verb: str
    served: bool = False


@dataclass(frozen=True)
class Result:
    """The outcome of a trial."""

    pair: Pair
    outcome: str
    """``done``, ``refused: ...`` or ``FAILED ...``; failures of one kind have equal texts."""
    detail: str = ""
    voxels: str = ""
    """Hash of the data read, if any."""
    base: str = ""
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_s: float = 0.0
    bytes: int = 0

    @property
    def failed(self) -> bool:
        """Return whether the trial failed."""
        return self.outcome.startswith("FAILED")


SHORT = ("table", "lazy", "patches", "grid", "info json", "verify", "export nifti", "stats api")
"""Verbs of the short form: each is fast, and together they read everything that others read."""


def short_pairs_of(number: int) -> list[Pair]:
    """Choose the verbs for a store in the short form."""
    served = number % SERVED_EVERY == SERVED_EVERY - 1
    return [Pair(number, SHORT[(number + step) % len(SHORT)], served) for step in range(2)]


def pairs_of(number: int) -> list[Pair]:
    """Choose the verbs for a store."""
    rng = np.random.default_rng([78, number])
    served = number % SERVED_EVERY == SERVED_EVERY - 1
    reading = [v for v in READING if v not in NOT_OF_SERVERS or not served]
    weights = np.array([0.25 if v in RARE else 1.0 for v in reading])
    reads = READS + WRITES if served else READS
    chosen = rng.choice(reading, reads, replace=False, p=weights / weights.sum()).tolist()
    if not served:
        chosen += rng.choice(list(WRITING), WRITES, replace=False).tolist()
    return [Pair(number, verb, served) for verb in chosen]


# Files around a store


Seen = dict[str, tuple[int, ...]]
Problem = tuple[str, str]
"""A kind of failure, and its details."""


def seen_below(folder: Path, but: Sequence[Path] = ()) -> Seen:
    """Return kind, size and times of everything below a folder."""
    found: Seen = {}
    waiting = [folder]
    while waiting:
        try:
            inside = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in inside:
            path = Path(entry.path)
            if path in but:
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                found[entry.path] = (status.st_mode,)
                waiting.append(path)
            else:
                found[entry.path] = (
                    status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino
                )  # fmt: skip
    return found


def changes(before: Seen, after: Seen, folder: Path) -> list[str]:
    """Return the names that were created, changed or removed."""
    ways = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            way = "made" if path not in before else "removed" if path not in after else "changed"
            ways.append(f"{way} {os.path.relpath(path, folder)}")
    return ways


@dataclass(frozen=True)
class Place:
    """Folders around a store, with files that nothing may touch."""

    root: Path
    store: Path
    out: Path
    canaries: tuple[Path, ...]

    @classmethod
    def make(cls, root: Path) -> "Place":
        """Make the folders; the files look as if they had never been read."""
        inner = root / "w1" / "w2"
        (inner / "work").mkdir(parents=True)
        (root / "home").mkdir()
        files = [folder / "canary.txt" for folder in (root, root / "w1", inner)]
        files += [root / "home" / "key.pem", root / "home" / "zarr.json"]
        for file in files:
            file.write_text(f"{SECRET} {file.name}\n", encoding="ascii")
        return cls(root, inner / "store.zarr", inner / "out", tuple(files))

    def hide_traces(self) -> None:
        """Reset the times of last access."""
        for file in (*self.canaries, *self._copies()):
            os.utime(file, (1, 2), follow_symlinks=False)

    def _copies(self) -> list[Path]:
        copy = self.root / "copy"
        found = [copy, *copy.rglob("*")] if copy.exists() else []
        return [path for path in found if path.is_file()]

    def read_outside(self) -> list[str]:
        """Return the files outside the store that were read."""
        files = (*self.canaries, *self._copies())
        read = [file for file in files if file.exists() and file.stat().st_atime != 1]
        return [str(file.relative_to(self.root)) for file in read]


# One trial


@contextmanager
def printed_into(file: Path) -> Iterator[None]:
    """Redirect all output, also that of C libraries, into a file."""
    kept = os.dup(1), os.dup(2)
    with file.open("wb") as target:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(target.fileno(), number)
    try:
        yield
    finally:
        for stream, number, old in ((sys.stdout, 1, kept[0]), (sys.stderr, 2, kept[1])):
            with suppress(UnicodeError):
                stream.flush()
            os.dup2(old, number)
            os.close(old)


def place_in(problem: BaseException) -> str:
    """Return the line of spinezarr at which an exception was raised."""
    return place_of_frames(list(traceback.extract_tb(problem.__traceback__)))


def place_of_frames(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost line of spinezarr."""
    shown = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    ours = [text for text in shown if text.startswith("spinezarr/")]
    return (ours or shown or ["nowhere"])[-1]


def _short(file: str) -> str:
    return re.sub(r".*?/(?=spinezarr/)(?!.*/spinezarr/spinezarr/)|.*/site-packages/", "", file)


class _Slow:
    """Records the place at which a process has worked for too long."""

    def __init__(self) -> None:
        self.where = ""
        signal.signal(signal.SIGPROF, self._note)

    def _note(self, _: int, frame: FrameType | None) -> None:
        self.where = place_of_frames(list(traceback.extract_stack(frame)))

    def start(self) -> None:
        self.where = ""
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


def without_numbers(text: str) -> str:
    """Replace numbers and paths, so that similar texts become equal."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", re.sub(r"(/[^\s'\":,)]+)+", "PATH", text))[:160]


def attempt(verb: Callable[[Case], str], case: Case) -> tuple[str, str, str, str]:
    """Run a verb; return the outcome, a detail, a hash, and the text of an error."""
    try:
        voxels = verb(case)
    except SpinezarrError as problem:
        return f"refused: {type(problem).__name__}", "", "", _text_of(problem)
    except WrongEnd as problem:
        return f"FAILED {problem}", "", "", str(problem)
    except MemoryError as problem:
        return f"FAILED MemoryError at {place_in(problem)}", _trace(problem), "", ""
    except Exception as problem:  # noqa: BLE001  the failure that is looked for
        kind = f"FAILED {type(problem).__name__} at {place_in(problem)}"
        return kind, _trace(problem), "", ""
    return "done", "", voxels, ""


def _text_of(problem: BaseException) -> str:
    return "\n".join([str(problem), *getattr(problem, "__notes__", ())])


def _trace(problem: BaseException) -> str:
    lines = traceback.format_exception(problem, limit=-6)
    return "".join(lines)[-1500:].encode("ascii", "backslashreplace").decode()


def foreign_text(text: str) -> str:
    """Return the first character that must not be printed, with its surroundings."""
    found = UNPRINTABLE.search(text)
    if found is None:
        return ""
    around = text[max(0, found.start() - 60) : found.end() + 40]
    return f"U+{ord(found[0]):04X} in {around!r}".encode("ascii", "backslashreplace").decode()


def sullied_memory() -> None:
    """Fill freed memory with bytes that are neither zero nor earlier data."""
    gc.collect()
    kept = [np.full(size, 0xA5, np.uint8) for size in [2**n for n in range(4, 24)] * 4]
    del kept


class Trial:
    """Tries pairs in this process.

    Parameters
    ----------
    root
        Folder for the stores, which a web server serves.
    address
        Address of that server.
    bases
        Valid stores.
    """

    def __init__(self, root: Path, address: str, bases: list[Base]) -> None:
        self._root, self._address, self._bases = root, address, bases
        self._slow = _Slow()

    def __call__(self, pair: Pair) -> Result:
        """Make the store, run the verb, check everything around it, and remove all."""
        with tempfile.TemporaryDirectory(dir=self._root, prefix="case-") as name:
            here = Path.cwd()
            try:
                return self._in(pair, Place.make(Path(name)))
            finally:
                os.chdir(here)
                self._unlock(Path(name))

    @staticmethod
    def _unlock(folder: Path) -> None:
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o700)

    def _in(self, pair: Pair, place: Place) -> Result:
        os.chdir(place.store.parent / "work")
        place.store.mkdir()
        draft = lying_store(self._bases, pair.number, place.store, place.canaries[0])
        if pair.served and draft.nodes:
            return Result(pair, "not served", base=draft.base.name, said=tuple(draft.said))
        relative = place.store.relative_to(self._root)
        url = f"{self._address}/{relative}" if pair.served else str(place.store)
        case = Case(url, place.out, draft.base)
        verb = VERBS[pair.verb]
        place.hide_traces()
        before = self._seen(place, draft)
        printed = place.root.parent / f"printed-{os.getpid()}"
        self._slow.start()
        with printed_into(printed):
            (outcome, detail, voxels, text), cost = measured(lambda: attempt(verb, case))
        self._slow.stop()
        text += printed.read_bytes().decode("utf-8", "replace")
        printed.unlink()
        problems = [(outcome, detail)] if outcome.startswith("FAILED") else []
        problems += self._left_behind(pair, place, draft, before)
        problems += self._told(pair, place, text)
        most_cpu_s = MOST_CPU_S + (STARTED_CPU_S if pair.verb in STARTING else 0)
        if cost.cpu_s > most_cpu_s:
            problems.append((f"FAILED slow at {self._slow.where}", f"{cost.cpu_s:.1f} s"))
        if cost.bytes > MOST_BYTES:
            where = self._large_at(verb, case, place)
            problems.append((f"FAILED large at {where}", f"{cost.bytes >> 20} MB"))
        if not problems and pair.number % TWICE_EVERY == 0 and (voxels or pair.verb == "lazy"):
            again = self._again(verb, case, place)
            if again != (outcome, voxels):
                problems = [(f"FAILED other voxels by {pair.verb}", f"{voxels} {again}")]
        if problems:
            outcome, detail = problems[0]
            detail = "\n".join([detail, *(f"also {kind}: {text}" for kind, text in problems[1:])])
        return Result(
            pair,
            outcome,
            detail[:3000].encode("ascii", "backslashreplace").decode(),
            voxels,
            draft.base.name,
            tuple(draft.said),
            round(cost.seconds, 3),
            round(cost.cpu_s, 3),
            cost.bytes,
        )

    @staticmethod
    def _seen(place: Place, draft: Draft) -> dict[Path, Seen]:
        """Return what is in the store, around it, and in the source folders."""
        sources = draft.base.store.parent
        return {
            place.root: seen_below(place.root, [place.store, place.out]),
            place.store: seen_below(place.store),
            sources: seen_below(sources),
        }

    def _left_behind(
        self, pair: Pair, place: Place, draft: Draft, before: dict[Path, Seen]
    ) -> list[Problem]:
        """Return forbidden changes and reads."""
        problems = []
        after = self._seen(place, draft)
        what = {place.root: "changed outside", place.store: "reading changed the store"}
        for folder, seen in before.items():
            found = changes(seen, after[folder], folder)
            if found and (folder != place.store or pair.verb in READING):
                way = what.get(folder, "changed sources")
                problems.append((f"FAILED {way} by {pair.verb}", "; ".join(found)))
        kinds = sorted({node.kind for node in draft.nodes.values()})
        read = place.read_outside()
        if read and "hard" not in kinds:
            through = " and ".join(kinds) or "no link"
            problems.append((f"FAILED read outside through {through}", "; ".join(read)))
        if found := self._odd_names(place.out):
            problems.append((f"FAILED odd names of files by {pair.verb}", found))
        return problems

    def _told(self, pair: Pair, place: Place, text: str) -> list[Problem]:
        """Return forbidden text in the output or in an error."""
        problems = []
        if SECRET in text or self._secret_in(place.out):
            problems.append((f"FAILED gave away a secret by {pair.verb}", text[:300]))
        if found := foreign_text(text):
            problems.append((f"FAILED unprintable text by {pair.verb}", found))
        # The text of torch's errors contains the traceback of its worker.
        shown = "Traceback (most recent" in text and pair.verb not in STARTING
        if shown or "Exception ignored" in text:
            at = max(text.find("Traceback"), 0)
            problems.append((f"FAILED printed a traceback by {pair.verb}", text[at : at + 1500]))
        if (at := text.find("Please report this")) >= 0:
            told = text[max(0, at - 300) : at]
            problems.append((f"FAILED asks for a report: {without_numbers(told[-130:])}", told))
        return problems

    @staticmethod
    def _secret_in(folder: Path) -> bool:
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        small = [path for path in files if path.stat().st_size < 1 << 24]
        return any(SECRET.encode() in path.read_bytes() for path in small)

    @staticmethod
    def _odd_names(folder: Path) -> str:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        return next((found for name in names if (found := foreign_text(name))), "")

    @staticmethod
    def _fresh(place: Place) -> None:
        shutil.rmtree(place.out, ignore_errors=True)

    def _again(self, verb: Callable[[Case], str], case: Case, place: Place) -> tuple[str, str]:
        self._fresh(place)
        sullied_memory()
        with silence():
            outcome, _, voxels, _ = attempt(verb, case)
        return outcome, voxels

    def _large_at(self, verb: Callable[[Case], str], case: Case, place: Place) -> str:
        """Find the place that allocates too much memory, by refusing the allocation."""
        self._fresh(place)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        old, hard = resource.getrlimit(resource.RLIMIT_AS)
        new = pages * os.sysconf("SC_PAGE_SIZE") + MOST_BYTES // 2
        resource.setrlimit(resource.RLIMIT_AS, (new, hard))
        try:
            with silence():
                outcome, _, _, _ = attempt(verb, case)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (old, hard))
        return outcome.removeprefix("FAILED ")


@contextmanager
def ready(
    root: str, address: str, bases: list[Base], modules: list[str]
) -> Iterator[Callable[[Pair], Result]]:
    """Import the modules of the verbs, and return a function that tries a pair."""
    warnings.simplefilter("ignore")
    with silence():
        for module in modules:
            with suppress(ImportError):
                import_module(module)
        limit_address_space()
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        _give_up_capabilities()
        quiet_environment()
        yield Trial(Path(root), address, bases)


def modules_for(bases: Sequence[Base], folder: Path, verbs: Iterable[str]) -> list[str]:
    """Return the modules that verbs import, in order, from a child that runs them on a valid store.

    The threads of the child end with it, because a process that forks must have none.
    """
    names = folder.with_name("modules.json")
    child = os.fork()
    if not child:
        try:
            quiet_environment()
            with silence():
                _do_all(bases[0], folder, verbs)
            names.write_text(json.dumps(list(sys.modules)), encoding="utf-8")
        except BaseException:  # noqa: BLE001  shown, and then there is no file
            traceback.print_exc()
        os._exit(0)
    os.waitpid(child, 0)
    found: list[str] = json.loads(names.read_text(encoding="utf-8"))
    return found


def _do_all(base: Base, folder: Path, verbs: Iterable[str]) -> None:
    """Run every verb once on a valid store."""
    for name in verbs:
        verb = VERBS[name]
        shutil.copytree(base.store, folder / "store.zarr")
        case = Case(str(folder / "store.zarr"), folder / "out", base)
        outcome, detail, _, text = attempt(verb, case)
        assert not outcome.startswith("FAILED"), (base.name, name, outcome, detail)
        assert outcome == "done", (base.name, name, outcome, text)
        shutil.rmtree(folder)


def _give_up_capabilities() -> None:
    """Limit user 0 to the permissions of file modes."""
    if not os.geteuid():
        _tests().give_up_capabilities()


def _tests() -> ModuleType:
    """Import the helpers that tests share."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    spec = spec_from_file_location("shared_by_tests", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# All trials


def tried_by(worker: Worker, pair: Pair) -> Result:
    """Try a pair in a worker."""
    try:
        found: Result = worker.ask(pair)
    except Ended as how:
        place = _place_in_log(how.where)
        return Result(pair, f"FAILED {how} at {place}", how.where[-2500:])
    return found


def _with_lies(result: Result, bases: list[Base], folder: Path) -> Result:
    """Add the lies of the store to a result of a crashed process."""
    number = result.pair.number
    here = folder.with_name(f"{folder.name}-{get_ident()}")
    place = Place.make(here)
    place.store.mkdir()
    draft = lying_store(bases, number, place.store, place.canaries[0])
    shutil.rmtree(here)
    return replace(result, base=draft.base.name, said=tuple(draft.said))


def _place_in_log(log: str) -> str:
    """Return the line of spinezarr in the output of :mod:`faulthandler`.

    The thread that crashed is "current"; of a process that waits, the first thread is the last.
    """
    threads = re.split(r"\n\n", log)
    current = [text for text in threads if "Current thread" in text] or threads
    for text in (*current[:1], *reversed(threads)):
        frames = re.findall(r'File "([^"]*)", line (\d+) in (\S+)', text)
        shown = [f"{_short(file)}:{line} {name}" for file, line, name in frames]
        if ours := [text for text in shown if text.startswith("spinezarr/")]:
            return ours[0]
    return "nowhere"


def run(
    pairs: Sequence[Pair], processes: int, on_result: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """Try pairs in parallel, and return their results."""
    shared = _tests()
    memory = shared.in_memory()
    with tempfile.TemporaryDirectory(dir=memory, prefix="stores-") as root:
        with silence():
            bases = make_bases(Path(root) / "sound")
        modules = modules_for(bases, Path(root) / "warm", sorted({p.verb for p in pairs}))
        telling = Path(root) / "telling"

        def tried(worker: Worker, pair: Pair) -> Result:
            result = tried_by(worker, pair)
            return result if result.base else _with_lies(result, bases, telling)

        server = shared._FolderServer(Path(root))
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"

        def part(which: int) -> list[Result]:
            worker = Worker(ready, root, address, bases, modules, per_child=PER_CHILD)
            try:
                own = []
                for pair in pairs[which::processes]:
                    own.append(tried(worker, pair))
                    on_result(own[-1])
                others = pairs[(which + 1) % processes :: processes][::ELSEWHERE_EVERY]
                again.extend(tried(worker, pair) for pair in others)
            finally:
                worker.stop()
            return own

        again: list[Result] = []
        with ThreadPoolExecutor(processes) as pool:
            results = [result for part in pool.map(part, range(processes)) for result in part]
        server.shutdown()
        server.server_close()
    by_pair = {result.pair: result for result in results}
    for result in again:
        first = by_pair[result.pair]
        if not first.failed and (first.outcome, first.voxels) != (result.outcome, result.voxels):
            kind = f"FAILED other voxels elsewhere by {result.pair.verb}"
            detail = f"{first.outcome} {first.voxels}; {result.outcome} {result.voxels}"
            results.append(Result(result.pair, kind, detail, said=first.said))
    return results


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return a summary: failures by kind, with the numbers that reproduce them."""
    kinds: dict[str, list[Result]] = {}
    for result in results:
        if result.failed:
            kinds.setdefault(result.outcome, []).append(result)
    ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    outcomes = Counter("FAILED" if r.failed else r.outcome for r in results)
    by_verb: dict[str, Counter[str]] = {}
    for result in results:
        end = "FAILED" if result.failed else result.outcome.partition(":")[0]
        by_verb.setdefault(result.pair.verb, Counter())[end] += 1
    slowest = sorted(results, key=lambda r: -r.cpu_s)[:5]
    largest = sorted(results, key=lambda r: -r.bytes)[:5]
    return {
        "pairs": len(results),
        "stores": len({result.pair.number for result in results}),
        "outcomes": dict(outcomes.most_common()),
        "by_verb": {verb: dict(by_verb[verb]) for verb in sorted(by_verb)},
        "slowest": [_plain(result) for result in slowest],
        "largest": [_plain(result) for result in largest],
        "failed": [
            {
                "kind": kind,
                "count": len(found),
                "replay": [_replay(r.pair) for r in sorted(found, key=lambda r: r.pair.number)[:5]],
                **_plain(min(found, key=lambda r: (len(r.said), r.pair.number))),
            }
            for kind, found in ordered
        ],
    }


def _show_failure(result: Result) -> None:
    """Print a failure at once, because a run takes long."""
    if result.failed:
        sys.stderr.write(f"{json.dumps(_plain(result))}\n")


def _replay(pair: Pair) -> str:
    served = " --served" if pair.served else ""
    return f"--seed {pair.number} --verb '{pair.verb}'{served}"


def _plain(result: Result) -> dict[str, Any]:
    return asdict(result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="pairs")
    parser.add_argument("--first", type=int, default=0, help="number of the first store")
    parser.add_argument("--short", action="store_true", help="only verbs that take little time")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="try only the store of this number")
    parser.add_argument("--verb", choices=[*VERBS], help="do only this with it")
    parser.add_argument("--served", action="store_true", help="let a web server give it")
    parser.add_argument("--write", type=Path, help="leave the store in this folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.write:
        return _write(args.seed, args.write)
    if args.seed is not None:
        verbs = [args.verb] if args.verb else [*READING, *WRITING]
        pairs = [Pair(args.seed, verb, args.served) for verb in verbs]
    else:
        each, choose = (2, short_pairs_of) if args.short else (READS + WRITES, pairs_of)
        numbers = range(args.first, args.first + -(-args.count // each))
        pairs = [pair for number in numbers for pair in choose(number)]
    found = run(pairs, min(args.processes, len(pairs)), _show_failure)
    report = summary(found)
    text = json.dumps(report, indent=1)
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    if args.seed is not None:
        for result in found:
            sys.stdout.write(f"{json.dumps(_plain(result), indent=1)}\n{result.detail}\n")
    else:
        sys.stdout.write(f"{text}\n")
    return 1 if report["failed"] else 0


def _write(number: int, folder: Path) -> int:
    """Write the store of a number into a new folder, and print its lies."""
    folder.mkdir(parents=True)
    with silence():
        bases = make_bases(folder / "sound")
    place = Place.make(folder / "place")
    place.store.mkdir()
    draft: Draft = lying_store(bases, number, place.store, place.canaries[0])
    sys.stdout.write("\n".join([str(place.store), draft.base.name, *draft.said, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
