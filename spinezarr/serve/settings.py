"""What a server is told, and the application that worker processes make of it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from spinezarr.serve.app import App
from spinezarr.serve.guard import LOOPBACK, Guard
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tokens import Tokens

__all__ = ["VARIABLE", "ServeSettings", "create"]

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
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    paths: tuple[str, ...] = Field(repr=False)  # a URL may hold a password
    storage_options: dict[str, dict[str, Any]] = Field(default={}, repr=False)
    token_file: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def app(self) -> App:
        """Make the application.

        Raises
        ------
        UsageError
            If one cannot be served from where it lies, or the file of tokens cannot be read.
        """
        tokens = None if self.token_file is None else Tokens(Path(self.token_file))
        stores = ServedStores(self.paths, self.storage_options)
        return App(stores, Guard(tokens, self.hosts | LOOPBACK, self.origins))


def create() -> App:
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
