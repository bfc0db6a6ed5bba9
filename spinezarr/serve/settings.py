"""Which settings does a server have, and how do its worker processes get them?"""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from spinezarr.errors import UsageError
from spinezarr.serve.environment import SETTINGS
from spinezarr.serve.guard import LOOPBACK, Guard
from spinezarr.serve.install_hint import INSTALL
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.log import LogForm, RequestLog
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tokens import Tokens

if TYPE_CHECKING:
    from spinezarr.serve.app import App

__all__ = ["ServeSettings", "create"]

_POLL_S: Final = 0.2
"""Seconds between two checks whether the parent process runs."""
_SHUTDOWN_S: Final = 5
"""Seconds for finishing requests."""


class ServeSettings(BaseModel):
    """Settings of a server: the stores, and who may read them.

    Attributes
    ----------
    paths
        Paths or URLs of stores, or of folders of stores.
    storage_options
        Options of the file system for each URL.
    token_file
        File with the hashes of tokens. With None, everybody who reaches the server may read.
    hosts
        Host names of the server, for servers without tokens.
    origins
        Origins of pages of other servers that may read.
    cache_bytes
        Size in bytes of the cache of decoded chunks of each process.
    log
        Format of the log on standard error; ``none`` for no log.
    limits
        Bounds on the work and memory of each process.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    paths: tuple[str, ...] = Field(repr=False)  # storage options and URLs may hold passwords
    storage_options: dict[str, dict[str, Any]] = Field(default={}, repr=False)
    token_file: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    log: LogForm = LogForm.NONE
    limits: ServeLimits = Field(default_factory=ServeLimits)

    def stores(self) -> ServedStores:
        """Return the stores.

        Raises
        ------
        UsageError
            If a URL is of a kind that cannot be served.
        """
        return ServedStores(
            self.paths, self.storage_options, cache_bytes=self.cache_bytes, limits=self.limits
        )

    def guard(self) -> Guard:
        """Return the guard.

        Raises
        ------
        UsageError
            If the token file cannot be read.
        """
        tokens = None if self.token_file is None else Tokens(Path(self.token_file))
        return Guard(tokens, self.hosts | LOOPBACK, self.origins)

    def app(self) -> "App":
        """Make the application.

        Raises
        ------
        UsageError
            For the reasons of :meth:`stores` and :meth:`guard`, or if packages for serving are not
            installed.
        """
        try:
            from spinezarr.serve.app import App  # noqa: PLC0415  needs an extra
        except ImportError as problem:
            raise UsageError(INSTALL) from problem
        log = None if self.log is LogForm.NONE else RequestLog(self.log)
        return App(self.stores(), self.guard(), log)


def create() -> "App":
    """Make the application of a worker process, from the settings in the environment."""
    if multiprocessing.parent_process() is not None:
        Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    return ServeSettings.model_validate_json(os.environ[SETTINGS]).app()


def _end_after(parent_pid: int) -> None:
    """End this process soon after its parent process ends, also if that is killed."""
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SHUTDOWN_S)
    os._exit(1)
