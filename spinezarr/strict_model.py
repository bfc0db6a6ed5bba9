"""Which base class do the models of files have?"""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["DeferredModel", "StrictModel"]


class DeferredModel(BaseModel):
    """Base class of models whose schema is built when the first file is parsed.

    Most programs parse few kinds of files, and building a schema takes milliseconds.
    """

    model_config = ConfigDict(strict=True, frozen=True, defer_build=True)

    @classmethod
    def model_rebuild(
        cls,
        *,
        force: bool = False,
        raise_errors: bool = True,
        _parent_namespace_depth: int = 2,
        _types_namespace: Mapping[str, Any] | None = None,
    ) -> bool | None:
        """Build the schema. An interrupt waits until that is done, as pydantic would lose it."""
        with _delayed_interrupts():
            return super().model_rebuild(
                force=force,
                raise_errors=raise_errors,
                _parent_namespace_depth=_parent_namespace_depth + 1,
                _types_namespace=_types_namespace,
            )


class StrictModel(DeferredModel):
    """Base class of models of files, which are strict, frozen and without unknown keys."""

    model_config = ConfigDict(extra="forbid")


@contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Let an interrupt of the main thread take effect at the end; other threads get none."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupts:
            signal.raise_signal(signal.SIGINT)
