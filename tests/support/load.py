"""Loads a server with many clients that request ranges, patches and facts, and checks each answer.

Run ``python tests/support/load.py --minutes 10 --json report.json``. Each of 64 connections sends
one request after the other: 60 % for ranges, 30 % for patches, 10 % for JSON. Each answer is
compared with the disk. Memory and open files of the server are measured once it is warm and at the
end.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from killing.memory import in_memory
from numcodecs import blosc
from server_process import ServerProcess, server_process

import spinezarr
from spinezarr.geometry import Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.request import PatchRequest
from spinezarr.testing import NiftiForm, write_nifti

SHAPE = (96, 256, 256)
SCANS = 6
BATCHES = 64
"""Number of different requests for patches, whose expected answers are computed once."""
SHARES = {"range": 0.6, "patch": 0.3, "json": 0.1}
SAMPLE_EVERY_S = 1.0
ANSWER_TIMEOUT_S = 60.0
IDLE_S = 0.5
"""Time within which a server notices that connections have ended."""


# The served store


def make_store(folder: Path) -> Path:
    """Make a store of noise and blocks, with the compressed sizes of a CT and its mask."""
    rng = np.random.default_rng(14)
    smooth = np.add.outer(np.arange(SHAPE[0]), np.add.outer(np.arange(256), np.arange(256)))
    for number in range(SCANS):
        image = (smooth % 900 + rng.integers(-60, 60, SHAPE)).astype(np.int16)
        label = np.zeros(SHAPE, np.uint8)
        label[20:60, 60:150, 60:150] = 20 + number % 4
        affine = np.diag([0.7, 0.7, 1.0, 1.0])
        write_nifti(folder / f"raw/s{number}_ct.nii", image, affine, NiftiForm())
        write_nifti(folder / f"raw/s{number}_seg.nii", label, affine, NiftiForm(dtype="uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="load")
    store = folder / "load.zarr"
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(store))
    assert not report.failed, report.failed
    return store


# Requests


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request, and a function that checks its answer."""

    kind: str
    data: bytes
    is_right: Callable[[int, bytes], bool]


def _get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


class RequestSampler:
    """Draws requests for a store, whose files it has read from disk."""

    def __init__(self, store: Path, batches: int) -> None:
        self._random = random.Random(14)  # noqa: S311  no secret
        self._name = store.stem
        self._files = {
            path.relative_to(store).as_posix(): path.read_bytes()
            for path in sorted(store.rglob("*"))
            if path.is_file() and not path.relative_to(store).as_posix().startswith("ingest")
        }
        self._shards = [key for key in self._files if "/image/c" in key or "/label/c" in key]
        opened = spinezarr.open(store)
        ids = opened.table.scan.to_numpy().tolist()
        self._versions = dict(zip(ids, opened.table.content_checksum.to_numpy(), strict=True))
        self._shapes = dict(zip(ids, opened.table.shape_zyx.to_numpy().tolist(), strict=True))
        self._batches = [self._batch(opened, ids) for _ in range(batches)]
        self._facts = {
            f"/v1/{self._name}/scans": lambda body: [s["scan_id"] for s in body["scans"]] == ids,
            "/v1/stores": lambda body: [s["name"] for s in body["stores"]] == [self._name],
            f"/v1/{self._name}/scans/{ids[0]}": lambda body: (
                body["content_checksum"] == self._versions[ids[0]]
            ),
        }

    def draw(self) -> CheckedRequest:
        """Draw a request."""
        kind = self._random.choices(list(SHARES), list(SHARES.values()))[0]
        return {"range": self._range, "patch": self._patches, "json": self._json}[kind]()

    def each(self) -> Iterator[CheckedRequest]:
        """Yield a request for each file, and all requests for patches."""
        for key, data in self._files.items():
            yield CheckedRequest(
                "range",
                _get(f"/zarr/{self._name}/{key}", "Range: bytes=0-0"),
                lambda status, body, data=data: status == 206 and body == data[:1],
            )
        yield from self._batches

    def _range(self) -> CheckedRequest:
        key = self._random.choice(self._shards)
        data = self._files[key]
        size = min(int(2 ** self._random.uniform(4, 21)), len(data))
        start = self._random.randrange(len(data) - size + 1)
        expected = data[start : start + size]
        pinned = f"@{self._versions[key.split('/')[1]]}/" if self._random.random() < 0.3 else ""
        path = f"/zarr/{self._name}/{pinned}{key}"
        request = _get(path, f"Range: bytes={start}-{start + size - 1}")
        return CheckedRequest(
            "range", request, lambda status, body: status == 206 and body == expected
        )

    def _json(self) -> CheckedRequest:
        if self._random.random() < 0.5:
            key = self._random.choice([key for key in self._files if key.endswith("zarr.json")])
            data = self._files[key]
            path = f"/zarr/{self._name}/{key}"
            return CheckedRequest(
                "json", _get(path), lambda status, body: (status, body) == (200, data)
            )
        path, holds = self._random.choice(list(self._facts.items()))
        return CheckedRequest(
            "json", _get(path), lambda status, body: status == 200 and holds(json.loads(body))
        )

    def _patches(self) -> CheckedRequest:
        return self._random.choice(self._batches)

    def _batch(self, store: spinezarr.Store, ids: Sequence[str]) -> CheckedRequest:
        size = self._random.choice([(32, 64, 64), (64, 64, 64), (16, 128, 128)])
        starts = []
        for scan_id in self._random.choices(ids, k=self._random.randint(1, 8)):
            start = tuple(self._random.randrange(-8, n - 8) for n in self._shapes[scan_id])
            starts.append((scan_id, start))
        pack = self._random.choice(["none", "lz4", "zstd"])
        items = [{"scan_id": scan_id, "start_zyx": start} for scan_id, start in starts]
        body = json.dumps({"items": items, "size_zyx": size, "pack": pack}).encode()
        head = f"POST /v1/{self._name}/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        requests = [
            PatchRequest(index, scan_id, Box.at(start, size), None)
            for index, (scan_id, start) in enumerate(starts)
        ]
        expected = store.patches(size).read(requests)
        first_answer: list[bytes] = []

        def is_right(status: int, answer: bytes) -> bool:
            """Compare the voxels of the first answer, and the bytes of later ones."""
            if status != 200:
                return False
            if not first_answer:
                voxels = _voxels(answer)
                if not all((voxels[n] == getattr(expected, n)).all() for n in ("image", "label")):
                    return False
                first_answer.append(answer)
            return answer == first_answer[0]

        return CheckedRequest("patch", f"{head}{len(body)}\r\n\r\n".encode() + body, is_right)


def _voxels(answer: bytes) -> dict[str, Any]:
    tensors = safetensors.numpy.load(answer)
    header = json.loads(answer[8 : 8 + int.from_bytes(answer[:8], "little")])
    for name, how in json.loads(header["__metadata__"]["packed"]).items():
        voxels = np.frombuffer(blosc.decompress(tensors[name].tobytes()), how["dtype"])
        tensors[name] = voxels.reshape(how["shape"])
    return tensors


# Clients


@dataclass(slots=True)
class Counts:
    """Counts of the answers that clients got."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in SHARES})
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    """Number of answers 429, after which the request is sent again."""
    bytes: int = 0


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
    }
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


async def client(port: int, sampler: RequestSampler, until: float, counts: Counts) -> None:
    """Send requests over one connection until the time is up."""
    writer = None
    request, reader = sampler.draw(), None
    while time.monotonic() < until:
        try:
            if writer is None or reader is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            began = time.monotonic()
            writer.write(request.data)
            status, headers, body = await asyncio.wait_for(_answer(reader), ANSWER_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as problem:
            counts.errors[type(problem).__name__] += 1
            writer = None
            continue
        if status == 429:
            counts.busy += 1
            await asyncio.sleep(float(headers["retry-after"]) * random.uniform(0.5, 1))  # noqa: S311
            continue
        if request.is_right(status, body):
            counts.seconds[request.kind].append(time.monotonic() - began)
            counts.bytes += len(body)
        else:
            counts.wrong.append(f"{status} {request.data[:150]!r} {body[:80]!r}")
        request = sampler.draw()
    if writer is not None:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """Memory and open files of the server at a time."""

    after_s: float
    resident_bytes: int
    descriptors: int


async def _watch(server: ServerProcess, until: float, samples: list[ResourceUse]) -> None:
    began = time.monotonic()
    while time.monotonic() < until:
        after_s = time.monotonic() - began
        samples.append(ResourceUse(after_s, server.resident_bytes, server.descriptors))
        await asyncio.sleep(SAMPLE_EVERY_S)


async def _run_clients(
    server: ServerProcess, sampler: RequestSampler, seconds: float, connections: int
) -> tuple[Counts, list[ResourceUse]]:
    until, counts = time.monotonic() + seconds, Counts()
    samples: list[ResourceUse] = []
    clients = [client(server.port, sampler, until, counts) for _ in range(connections)]
    await asyncio.gather(_watch(server, until, samples), *clients)
    return counts, samples


def run(store: Path, seconds: float, connections: int, processes: int = 1) -> dict[str, Any]:
    """Run a load against a new server for a time, and return the summary."""
    with (
        tempfile.TemporaryDirectory(prefix="load-") as folder,
        server_process(folder, store, "--workers", processes) as server,
    ):
        return run_load(server, RequestSampler(store, BATCHES), seconds, connections)


def run_load(
    server: ServerProcess, sampler: RequestSampler, seconds: float, connections: int
) -> dict[str, Any]:
    """Run a load against a running server for a time, and return the summary."""
    asyncio.run(_send_once(server, [*sampler.each()]))
    idle = _count_sockets(server)
    counts, samples = asyncio.run(_run_clients(server, sampler, seconds, connections))
    left = _count_sockets(server) - idle
    output = server.output.partition("Serving at")[2].partition("\n")[2].strip()
    return {
        "seconds": seconds,
        "connections": connections,
        "processes": len(server.workers),
        "kinds": {kind: _times(seconds_each) for kind, seconds_each in counts.seconds.items()},
        "requests_per_second": round(sum(map(len, counts.seconds.values())) / seconds, 1),
        "megabytes_per_second": round(counts.bytes / seconds / 1e6, 1),
        "busy": counts.busy,
        "errors": dict(counts.errors),
        "wrong": counts.wrong[:10],
        **_growth(samples),
        "sockets_left": left,
        "output": output,
    }


def _count_sockets(server: ServerProcess) -> int:
    """Count open sockets once ended connections are closed."""
    time.sleep(IDLE_S)
    return server.sockets


async def _send_once(server: ServerProcess, requests: Sequence[CheckedRequest]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    for request in requests:
        writer.write(request.data)
        status, _, body = await _answer(reader)
        assert request.is_right(status, body), (request.data[:200], status)
    writer.close()


def _times(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 1),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1e3, 1),
        "most_ms": round(ordered[-1] * 1e3, 1),
    }


def _growth(samples: Sequence[ResourceUse]) -> dict[str, float]:
    """Return the growth between the second and the last fifth of the time."""
    n = max(len(samples) // 5, 1)
    warm, last = (
        statistics.fmean(sample.resident_bytes for sample in part)
        for part in (samples[n : 2 * n] or samples[:n], samples[-n:])
    )
    return {
        "resident_mb_warm": round(warm / 1e6, 1),
        "resident_mb_end": round(last / 1e6, 1),
        "growth_percent": round((last / warm - 1) * 100, 1),
        "most_descriptors": max(sample.descriptors for sample in samples),
    }


def stores() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="load-", dir=in_memory()) as folder:
        yield make_store(Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for store in stores():
        report = run(store, args.minutes * 60, args.connections, args.processes)
    text = json.dumps(report, indent=1)
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{text}\n")
    failed = report["wrong"] or report["errors"] or report["output"] or report["sockets_left"] > 2
    return 1 if failed or (args.minutes >= 5 and report["growth_percent"] >= 5) else 0


if __name__ == "__main__":
    sys.exit(main())
