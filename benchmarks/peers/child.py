"""Serves one reader to the parent: answers each line of JSON with another, until the input ends."""

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draws import draws

from peers.cold import cached_bytes, evict
from peers.data import Data, files_below
from peers.reader import BoxReader, CallPattern, Reader, ReaderConfig
from spinezarr.measure.page_cache import disk_bytes


def find_config(module: str, name: str) -> ReaderConfig:
    """Return a configuration by its module and its name."""
    configs: tuple[ReaderConfig, ...] = importlib.import_module(f"peers.{module}").CONFIGS
    return next(config for config in configs if config.name == name)


class Server:
    """Answers the parent's requests to one reader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def check(self, kind: str) -> dict[str, Any]:
        """Compare the reader with the uncompressed voxels."""
        self._reader.check(kind)
        return {}

    def rate(
        self, kind: str, seed: int, seconds: float, callers: int, per_call: int
    ) -> dict[str, Any]:
        """Read for a while; return the number of patches and the seconds."""
        calls = CallPattern(callers, per_call)
        patches, elapsed_s = self._reader.rate(kind, seed, seconds, calls)
        return {"patches": patches, "seconds": elapsed_s}

    def memory(self, kind: str, callers: int, per_call: int) -> dict[str, Any]:
        """Return the peak memory of the process, and the parts for patches and cache."""
        status = Path("/proc/self/status").read_text()
        kib = {
            name: int(rest.split()[0])
            for name, rest in (line.split(":") for line in status.splitlines())
            if rest.endswith("kB")
        }
        return {
            "peak_bytes": kib["VmHWM"] * 1024,
            "file_bytes": kib["RssFile"] * 1024,
            "batch_bytes": self._reader.batch_bytes(kind, CallPattern(callers, per_call)),
            "cache_bytes": self._reader.cache_bytes,
        }

    def stored(self) -> dict[str, Any]:
        """Return the bytes that the reader stores for one scan."""
        files = files_below(list(self._reader.files))
        return {"bytes": sum(path.stat().st_size for path in files)}

    def cold(self, kind: str, seed: int, patches: int) -> dict[str, Any]:
        """Read patches one by one, each with none of the files in memory."""
        reader = self._reader
        if not isinstance(reader, BoxReader):
            raise TypeError("a stream reads ahead: it cannot be measured patch by patch")
        data = reader.data
        files = files_below(list(reader.files))
        drawn = draws(kind, data.shape_zyx, 1, seed, patches + 1)
        reader.read(drawn[:1])  # loads shard indices, which are read only once
        disk, cached, left, seconds = [], [], [], []
        for draw in drawn[1:]:
            evict(files)
            left.append(cached_bytes(files))
            before, started = disk_bytes() or 0, time.perf_counter()
            reader.read([draw])
            seconds.append(time.perf_counter() - started)
            disk.append((disk_bytes() or 0) - before)
            cached.append(cached_bytes(files))
        return {"disk": disk, "cached": cached, "left": left, "seconds": seconds}


def serve(start: Callable[[], object]) -> None:
    """Start a server, report it, and answer with its methods until the input ends."""
    warnings.simplefilter("ignore")  # peers would warn on the parent's terminal
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of packages must not mix with answers
    server = start()

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({})
    for line in sys.stdin:
        name, arguments = json.loads(line)
        method: Callable[..., dict[str, Any]] = getattr(server, name)
        try:
            answer(method(**arguments))
        except Exception as problem:  # noqa: BLE001  the parent says which reader it was
            answer({"problem": f"{type(problem).__name__}: {problem}"})
    os._exit(0)  # do not wait for workers and thread pools of the peers


def main() -> None:
    """Open a reader, and serve it."""
    folder, module, name = sys.argv[1:]
    serve(lambda: Server(find_config(module, name).open(Data.open(Path(folder)))))


if __name__ == "__main__":
    main()
