r"""Send hostile requests, each over a connection of its own, to a running ``spinezarr serve``.

Run ``python tests/hostile/server_fuzz.py --count 4000 --json report.json``. In and around the
served store lie files that must not be served, links, pipes and devices. All of these hold a word
that is searched for in every answer. An answer must be valid HTTP, have one of the expected status
codes, hold only bytes of a version that the store has, and belong to a request that was made. The
server must keep running, print nothing, and hold no more memory or files than before.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("support", "hostile")]

from attacks import IMAGE_KEYS, KINDS, Attack, Target, attack  # noqa: E402
from http_client import fetch  # noqa: E402
from killing.memory import in_memory  # noqa: E402
from server_process import ServerProcess, server_process  # noqa: E402

CANARY = b"canary-5f0d21"
SENT = b"injected"
"""Value of headers that are sent for another purpose."""
AT_ONCE = 16
WAIT_S = 30.0
GRACE_S = 0.2
MOST_BYTES = 512 << 20
"""Maximum growth of the warm server's resident memory: kept buffers, and an answer."""
MOST_FILES = 8
IDLE_S = 6.0
"""Time after which the server closes unused connections."""
STATUSES = {
    100, 200, 204, 206, 303, 304, 400, 401, 404, 405, 406, 408, 410, 412, 413, 414, 416, 417, 421,
    422, 429, 431, 501, 503, 505,
}  # fmt: skip
_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [ -~]*\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")


# The folders


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of the store, and the files around it."""

    root: Path
    served: Path
    store: Path


def make_place(root: Path, sound: Path) -> Place:
    """Copy a store, and plant files that must not be read."""
    served = root / "served"
    store = Path(shutil.copytree(sound, served / "own.zarr"))
    secret = CANARY * 50
    for folder in (root, served, store, store / "table", store / "table/scan", store / "scans"):
        for name in ("secret", "outside", "tokens.txt", ".env"):
            (folder / name).write_bytes(secret)
    for folder in (*(store / "scans").iterdir(), store / ".git"):
        if folder.is_dir() or not folder.exists():
            (folder / "image").mkdir(parents=True, exist_ok=True)
            for name in ("secret", "config", "image/secret", "image/outside"):
                (folder / name).write_bytes(secret)
    (store / "ingest").mkdir(exist_ok=True)
    (store / "ingest/zarr.json").write_bytes(secret)
    (store / "ingest.lock").write_bytes(secret)
    private = root / "other/private.zarr"
    (private / "scans/a").mkdir(parents=True)
    for key in ("zarr.json", "scans/zarr.json", "scans/a/zarr.json"):
        metadata = {"zarr_format": 3, "node_type": "group", "attributes": {"x": CANARY.decode()}}
        (private / key).write_text(json.dumps(metadata))
    _plant(store, root)
    return Place(root, served, store)


def _plant(store: Path, root: Path) -> None:
    """Put links, pipes and devices in place of files of scans."""
    sound = next(path for path in sorted((store / "scans").iterdir()) if path.is_dir())
    scans = store / "scans"
    for name in ("outside", "passwd", "fifo", "zero", "socket", "folder", "huge", "deep"):
        (scans / name).mkdir(exist_ok=True) if name != "outside" else None
    (scans / "outside").unlink()
    (scans / "outside").mkdir()
    metadata = {name: scans / name / "zarr.json" for name in os.listdir(scans)}  # noqa: PTH208
    metadata["outside"].symlink_to(root / "other/private.zarr/zarr.json")
    metadata["passwd"].symlink_to("/etc/passwd")
    metadata["zero"].symlink_to("/dev/zero")
    os.mkfifo(metadata["fifo"])
    metadata["folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(metadata["socket"]))
    with metadata["huge"].open("wb") as file:
        file.truncate(1 << 34)
    metadata["deep"].write_bytes(b'{"a":' * 100_000)
    (scans / "link").symlink_to(sound)
    (store / "link").symlink_to(root / "secret")
    (store / "zero").symlink_to("/dev/zero")
    os.mkfifo(store / "fifo")
    for name, what in (("linked", "link"), ("piped", "fifo"), ("devised", "zero")):
        copy = Path(shutil.copytree(sound, scans / f"lying-{name}"))
        shard = copy / "image/c/0/0/0"
        shard.unlink()
        if what == "fifo":
            os.mkfifo(shard)
        else:
            shard.symlink_to(root / "secret" if what == "link" else "/dev/zero")
    # One is a scan of the store with a shard that is a link out of it.
    last = max(path for path in scans.iterdir() if (path / "image/c/0/0/0").is_file())
    (last / "image/c/0/0/0").unlink()
    (last / "image/c/0/0/0").symlink_to(root / "secret")


# Honest answers


@dataclass(frozen=True, slots=True)
class Known:
    """The bytes of every served version, by its tag."""

    target: Target
    bodies: Mapping[str, bytes]


def look(server: ServerProcess, place: Place) -> Known:
    """Request everything that is served, and compare it with the disk."""
    bodies, keys = {}, []
    chunks = re.compile(r"(.*/(?:image|label))/c/")
    for path in sorted(place.store.rglob("*")):
        key = path.relative_to(place.store).as_posix()
        if path.is_symlink() or not path.is_file() or key.startswith(("ingest", "scans/lying")):
            continue
        status, headers, body = fetch(f"{server.url}/zarr/own/{key}")
        if status != 200:
            assert CANARY not in body
            continue
        assert body == path.read_bytes(), key
        keys.append(key)
        bodies[headers["ETag" if "ETag" in headers else "etag"]] = body
        flat = key.endswith("zarr.json")
        names = [key] if flat else []
        if match := chunks.match(key):
            names = [f"{match[1]}/c/{z}/{y}/{x}" for z in (0, 1) for y in (0, 1) for x in (0, 1)]
        for name in names:
            status, headers, part = fetch(f"{server.url}/flat/own/{name}")
            if status == 200:
                assert flat or part in body, name
                bodies[headers["ETag" if "ETag" in headers else "etag"]] = part
    scans = {}
    for path in sorted((place.store / "scans").iterdir()):
        status, _, body = fetch(f"{server.url}/v1/own/scans/{path.name}")
        if status == 200:
            scans[path.name] = json.loads(body)["content_checksum"]
    bodies |= _images(server, scans)
    planted = sorted(path.name for path in (place.store / "scans").iterdir())
    lying = [f"scans/{name}/image/c/0/0/0" for name in planted if name.startswith("lying")]
    return Known(Target("own", (*keys, *lying), scans, str(place.root)), bodies)


def _images(server: ServerProcess, scans: Iterable[str]) -> dict[str, bytes]:
    """Request scans as OME-Zarr images."""
    found = {}
    for scan, key, variant in product(scans, IMAGE_KEYS, ("", "itk/")):
        status, headers, body = fetch(f"{server.url}/ome/own/{variant}{scan}.ome.zarr/{key}")
        if status == 200:
            found[headers["ETag" if "ETag" in headers else "etag"]] = body
    return found


# Hostile answers


@dataclass(frozen=True, slots=True)
class Found:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotHttpError(Exception):
    """The received bytes are no HTTP answer."""


def answers(data: bytes, methods: Sequence[str]) -> Iterator[Found]:
    """Split the bytes of a connection into answers."""
    methods = list(methods)
    while data:
        line = _LINE.match(data)
        head, end, rest = data.partition(b"\r\n\r\n")
        if line is None or not end:
            raise NotHttpError(f"no status line: {data[:120]!r}")
        headers = {}
        for text in head.split(b"\r\n")[1:]:
            parts = _FIELD.fullmatch(text)
            if parts is None:
                raise NotHttpError(f"no header: {text[:120]!r}")
            headers[parts[1].decode("latin-1").lower()] = parts[2].decode("latin-1")
        status = int(line[1])
        if status < 200:
            data = rest
            continue
        if not methods:
            raise NotHttpError(f"an answer to no request: {data[:120]!r}")
        method = methods.pop(0)
        body, data = _framed(status, headers, method, rest)
        yield Found(status, headers, body)


def _framed(
    status: int, headers: Mapping[str, str], method: str, rest: bytes
) -> tuple[bytes, bytes]:
    """Separate a body from the bytes behind it."""
    if method == "HEAD" or status in {204, 304}:
        return b"", rest
    if "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) < length:
            raise NotHttpError(f"{len(rest)} of {length} bytes")
        return rest[:length], rest[length:]
    if headers.get("transfer-encoding") != "chunked":
        raise NotHttpError(f"a body without a length: {headers}")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        body, rest = body + rest[:count], rest[count + 2 :]
        if not count:
            return body, rest


def wrong(found: Found, known: Known) -> str | None:  # noqa: C901, PLR0911  one kind a line
    """Return what is wrong with an answer."""
    text = found.body + repr(found.headers).encode()
    if found.status not in STATUSES:
        return f"status {found.status}"
    if CANARY in text or b"root:x:0:0" in text:
        return "a file that is not served"
    if known.target.outside.encode() in text:
        return "names a folder of the server"
    if b"Traceback" in text:
        return "shows a traceback"
    if "x-injected" in found.headers or SENT in repr(found.headers).encode():
        return "a header of the client's"
    if "evil" in found.headers.get("access-control-allow-origin", ""):
        return "lets a page of somebody else read"
    tag = found.headers.get("etag")
    is_file = "accept-ranges" in found.headers  # pages for people have their own tags
    if tag is None or not is_file or found.status not in {200, 206}:
        return None
    whole = known.bodies.get(tag)
    if whole is None:
        return f"a version that is not there: {tag}"
    start, stop = 0, len(whole)
    if found.status == 206:
        first, last, size = map(int, re.split("[-/]", found.headers["content-range"][6:]))
        start, stop = first, last + 1
        if size != len(whole) or not 0 <= start < stop <= size:
            return f"a range that is not there: {found.headers['content-range']}"
    if found.body and found.body != whole[start:stop]:
        return "other bytes"
    return None


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of an attack."""

    attack: Attack
    outcome: str
    detail: str = field(default="", repr=False)
    statuses: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.outcome.startswith("FAILED")


async def tried(made: Attack, known: Known, port: int) -> Result:
    """Send an attack, and judge the answer."""
    data, is_over, began = b"", False, time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        async with asyncio.timeout(WAIT_S):
            sending = asyncio.create_task(_send(made, writer))
            with suppress(ConnectionError):
                while part := await reader.read(1 << 16):
                    data += part
            is_over = True
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    found = judged(made, known, data, is_over=is_over)
    return replace(found, seconds=round(time.monotonic() - began, 2))


async def _send(made: Attack, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        for part in made.sends:
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                writer.write(part)
                await writer.drain()
        if made.may_be_silent:
            await asyncio.sleep(GRACE_S)
            writer.write_eof()  # a server that waits for more sees the end


def judged(made: Attack, known: Known, data: bytes, *, is_over: bool) -> Result:
    """Return what is wrong with the answers to an attack."""
    statuses: list[int] = []
    try:
        for found in answers(data, made.methods):
            statuses.append(found.status)
            if problem := wrong(found, known):
                return Result(made, f"FAILED {problem}", repr(found)[:1500], tuple(statuses))
    except NotHttpError as problem:
        return Result(made, "FAILED no answer of HTTP", str(problem), tuple(statuses))
    if not is_over:
        return Result(made, "FAILED did not end", repr(data[:300]), tuple(statuses))
    if not statuses and not made.may_be_silent:
        return Result(made, "FAILED no answer", repr(data[:300]))
    return Result(made, str(statuses[0]) if statuses else "silent", "", tuple(statuses))


# All attacks


async def _all(numbers: Sequence[int], known: Known, server: ServerProcess) -> list[Result]:
    """Try attacks in parallel, with honest requests between them."""
    results: list[Result] = []
    left = iter(numbers)
    honest = f"/zarr/own/{known.target.keys[0]}"
    whole = next(body for body in known.bodies.values() if body)

    async def some() -> None:
        for number in left:
            results.append(await tried(attack(number, known.target), known, server.port))
            if number % 25 == 0:
                _, headers, whole = await asyncio.to_thread(fetch, server.url + honest)
                assert known.bodies[headers["etag"]] == whole

    assert whole
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return sorted(results, key=lambda result: result.attack.number)


@contextmanager
def served(store: Path | None) -> Iterator[tuple[ServerProcess, Known]]:
    """Serve a store that is surrounded by files that must not be served."""
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=in_memory()) as folder:
        root = Path(folder)
        if store is None:
            store = _made(root / "sound")
        place = make_place(root / "place", store)
        with server_process(root, place.served) as server:
            yield server, look(server, place)


def _made(folder: Path) -> Path:
    """Make a store of phantoms."""
    from spinezarr.ingestion.discovery.discover import discover  # noqa: PLC0415  not where a store is given
    from spinezarr.ingestion.run import ingest  # noqa: PLC0415
    from spinezarr.recipe import Recipe  # noqa: PLC0415
    from spinezarr.testing import write_ctspine1k  # noqa: PLC0415

    write_ctspine1k(folder / "raw", scale=0.25)
    recipe = Recipe.load("ctspine1k")
    ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "own.zarr"))
    return folder / "own.zarr"


def run(numbers: Sequence[int], store: Path | None) -> dict[str, object]:
    """Attack a server, and return a summary."""
    with served(store) as (server, known):
        workers = [worker.pid for worker in server.workers]
        warm = max(len(numbers) // 4, min(len(numbers), 50))
        results = asyncio.run(_all(numbers[:warm], known, server))
        before, files = server.resident_bytes, server.descriptors
        began = time.monotonic()
        results += asyncio.run(_all(numbers[warm:], known, server))
        seconds = time.monotonic() - began
        if server.descriptors > files:
            time.sleep(IDLE_S)
        held = {
            "megabytes_more": (server.resident_bytes - before) >> 20,
            "descriptors_more": server.descriptors - files,
        }
        failures = []
        if [worker.pid for worker in server.workers] != workers:
            failures.append({"kind": "FAILED a process of the server ended"})
        if held["megabytes_more"] > MOST_BYTES >> 20 or held["descriptors_more"] > MOST_FILES:
            failures.append({"kind": "FAILED holds more than before"})
        said = server.output.partition("Serving at")[2].partition("\n")[2]
    if said.strip():
        failures.append({"kind": "FAILED says something", "detail": said[:3000]})
    return {
        "requests": len(results),
        "answers": dict(Counter(s for r in results for s in r.statuses).most_common()),
        "silent": sum(result.outcome == "silent" for result in results),
        "kinds": _by_kind(results),
        "per_second": round(len(numbers[warm:]) / seconds) if seconds else 0,
        "slowest": [
            (r.seconds, r.attack.number, r.attack.said[:80])
            for r in sorted(results, key=lambda result: -result.seconds)[:5]
        ],
        **held,
        "failed": [*failures, *_failed(results)],
    }


def _by_kind(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    kinds: dict[str, Counter[str]] = {}
    for result in results:
        outcome = "FAILED" if result.failed else result.outcome
        kinds.setdefault(result.attack.kind, Counter())[outcome] += 1
    return {kind: dict(found.most_common()) for kind, found in kinds.items()}


def _failed(results: Sequence[Result]) -> list[dict[str, object]]:
    kinds: dict[str, list[Result]] = {}
    for result in results:
        if result.failed:
            kinds.setdefault(result.outcome, []).append(result)
    return [
        {
            "kind": kind,
            "count": len(found),
            "numbers": [result.attack.number for result in found[:10]],
            "said": found[0].attack.said,
            "detail": found[0].detail,
        }
        for kind, found in kinds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0, help="number of the first attack")
    parser.add_argument("--kind", choices=[*KINDS], help="only attacks of this kind")
    parser.add_argument("--store", type=Path, help="a sound store; else one is made")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.count)
    if args.kind:
        which, kinds = list(KINDS).index(args.kind), len(KINDS)
        start = args.first + (which - args.first) % kinds
        numbers = range(start, start + args.count * kinds, kinds)
    report = run(numbers, args.store)
    text = json.dumps(report, indent=1)
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{text}\n")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
