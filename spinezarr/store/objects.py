"""Reading whole files of a store, on disk or far away."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.core import split_protocol
from typing_extensions import Buffer

from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.requests import IN_FLIGHT, RemoteObjects
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.remote.transport import NotServedError
from spinezarr.store.folder import StoreFolder

__all__ = ["LocalObjects", "Objects", "open_objects"]


T = TypeVar("T")
R = TypeVar("R")


class LocalObjects:
    """Reads of a store on disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = StoreFolder.at(path)

    is_remote = False
    rereads = 0
    """How often what proves damaged is worth reading again."""
    link_bytes_per_s = None
    """There is no link."""

    @staticmethod
    def name(path: str) -> str:
        """Return a path as messages give it."""
        return path

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call a function that reads for each item."""
        return [function(item) for item in items]

    def abandon(self, threads: Iterable[int]) -> None:
        """Do nothing: reads from disk end by themselves."""

    def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:  # noqa: ARG002
        """Refuse: nobody answers on a disk."""
        raise NotServedError

    def read(self, paths: Iterable[str], limit_bytes: int = METADATA_BYTES) -> dict[str, bytes]:
        """Read whole files. Those that are absent are left out.

        Raises
        ------
        CorruptStoreError
            If one has more than ``limit_bytes``, or is a link or special file.
        OSError
            If one that is there cannot be read.
        """
        found: dict[str, bytes] = {}
        for path in paths:
            with suppress(FileNotFoundError):
                found[path] = self.folder.read(path, limit_bytes)
        return found


Objects = LocalObjects | RemoteObjects
"""Reads of a store, wherever it lies."""


def open_objects(
    url: str, storage_options: Mapping[str, Any] | None = None, *, in_flight: int = IN_FLIGHT
) -> Objects:
    """Return the reads of a store.

    Parameters
    ----------
    url
        Path or fsspec URL.
    storage_options
        As for :func:`spinezarr.remote.filesystem.open_filesystem`.
    in_flight
        Requests that may be under way at once, if it lies far away.

    Raises
    ------
    UsageError
        If nothing reads such URLs, or the options do not fit.
    """
    if split_protocol(url)[0] in {None, "file", "local"}:
        return LocalObjects(open_filesystem(url, storage_options)[1])
    return RemoteObjects(url, storage_options, in_flight=in_flight)
