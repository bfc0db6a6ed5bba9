"""Readers in child processes, which the parent starts, uses one after the other, and ends."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from peers import arrow, loaders, nnunet, ours, plain, tiledb_arrays, zarr_stores
from peers.data import Data
from peers.reader import ReaderConfig

_MODULES = (ours, plain, arrow, nnunet, zarr_stores, tiledb_arrays, loaders)
_FOLDER = Path(__file__).parents[1]


class PeerError(Exception):
    """A reader failed, or returned other voxels."""


def all_configs() -> Iterator[tuple[str, ReaderConfig]]:
    """Yield every configuration, with its module."""
    for module in _MODULES:
        for config in module.CONFIGS:
            yield module.__name__.rpartition(".")[2], config


def missing(config: ReaderConfig) -> list[str]:
    """Return the packages that a configuration needs and that are not installed."""
    return [name for name in config.packages if importlib.util.find_spec(name) is None]


def environment() -> dict[str, str]:
    """Return the variables of a process that runs a module of the benchmarks."""
    paths = [str(_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"PYTHONWARNINGS": "ignore", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def python_module(name: str) -> list[str]:
    """Return the command that runs a module."""
    return [sys.executable, "-m", name]


class Child:
    """A process that has opened one reader.

    Parameters
    ----------
    name
        Name for errors.
    command
        Command that starts the child, which serves with :func:`peers.child.serve`.
    folder
        Folder for its log of errors.
    variables
        Environment of the child, if it needs one of its own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._log = (folder / "children.log").open("a")
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=variables or environment(),
        )  # fmt: skip
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
        """Call a method of the child's server, and return the result."""
        if self._process.stdin is None:
            raise PeerError(f"{self._name}: has no input")
        try:
            self._process.stdin.write(f"{json.dumps([method, arguments])}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the child has ended, so no answer follows
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            log = Path(self._log.name).read_text().splitlines()
            raise PeerError(f"{self._name}: ended; {log[-1] if log else 'it printed nothing'}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise PeerError(f"{self._name}: {answer['problem']}")
        return answer


class Children:
    """The running children, by the names of their configurations."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._modules = {config.name: (module, config) for module, config in all_configs()}
        self._open: dict[str, Child] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Child:
        """Return the child of a configuration; start it if it is not running."""
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self.start(name))
        return self._open[name]

    def start(self, name: str) -> Child:
        """Start another child of a configuration, which the caller closes."""
        module, config = self._modules[name]
        command = [*python_module("peers.child"), str(self._data.folder), module, config.name]
        return Child(name, command, self._data.folder)
