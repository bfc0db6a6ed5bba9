"""What a server is told, and the application that worker processes make of it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from spinezarr.errors import UsageError
from spinezarr.serve.guard import LOOPBACK, Guard
from spinezarr.serve.install_hint import INSTALL
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.log import LogForm, RequestLog
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tokens import Tokens

if TYPE_CHECKING:
    from spinezarr.serve.app import App

__all__ = ["METRICS_FOLDER", "VARIABLE", "ServeSettings", "create"]

METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Variable of the environment that names what processes share their figures in. The package of that
name looks for it when it is imported, so that no process does before it is set."""

_LOOK_S: Final = 0.2
_END_S: Final = 5
"""For what has begun."""
VARIABLE: Final = "SPINEZARR_SERVE_SETTINGS"
"""Variable of the environment that hands the settings to worker processes."""


class ServeSettings(BaseModel):
    """What is served, and to whom.

    Attributes
    ----------
    paths
        Stores, or folders of stores; paths or URLs.
    storage_options
        How to reach those that are URLs, by URL.
    token_file
        Hashes of tokens; None: whoever reaches the server may read.
    hosts
        Names that it is reached by where no token is asked for.
    origins
        Of pages elsewhere that may read.
    cache_bytes
        Of decoded chunks that each process keeps for patches that others want too.
    log
        How each answer is written to standard error, if it is.
    limits
        How much each process does at once.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    paths: tuple[str, ...] = Field(repr=False)  # a URL may hold a password
    storage_options: dict[str, dict[str, Any]] = Field(default={}, repr=False)
    token_file: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    log: LogForm = LogForm.NONE
    limits: ServeLimits = Field(default_factory=ServeLimits)

    def stores(self) -> ServedStores:
        """Find what is served.

        Raises
        ------
        UsageError
            If one cannot be served from where it lies.
        """
        return ServedStores(self.paths, self.storage_options, cache_bytes=self.cache_bytes)

    def guard(self) -> Guard:
        """Say who may ask.

        Raises
        ------
        UsageError
            If the file of tokens cannot be read.
        """
        tokens = None if self.token_file is None else Tokens(Path(self.token_file))
        return Guard(tokens, self.hosts | LOOPBACK, self.origins)

    def app(self) -> "App":
        """Make the application.

        Raises
        ------
        UsageError
            As :meth:`stores` and :meth:`guard` do, or if the packages that serve are not installed.
        """
        try:
            from spinezarr.serve.app import App  # noqa: PLC0415  needs an extra
        except ImportError as problem:
            raise UsageError(INSTALL) from problem
        log = None if self.log is LogForm.NONE else RequestLog(self.log)
        return App(self.stores(), self.guard(), log, self.limits)


def create() -> "App":
    """Make the application of the settings in the environment, in a worker process."""
    if multiprocessing.parent_process() is not None:
        Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return ServeSettings.model_validate_json(os.environ[VARIABLE]).app()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed and can then tell nobody."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)
