"""How are whole files of a store read, on disk or from a remote place?"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.core import split_protocol
from typing_extensions import Buffer

from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, METADATA_BYTES, RemoteSettings
from spinezarr.remote.transport import UnsupportedRequestError
from spinezarr.store.folder import StoreFolder

__all__ = ["LocalObjects", "Objects", "open_objects"]


T = TypeVar("T")
R = TypeVar("R")


class LocalObjects:
    """Reads whole files of a store on disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = StoreFolder.at(path)

    is_remote = False
    rereads = 0
    """Number of times to read a damaged file again; on disk the bytes would be the same."""
    link_bytes_per_s = None
    """Bandwidth of the link to the store in bytes per second; None as there is no link."""
    received_bytes = 0
    """Bytes that a link has carried; 0 as there is no link."""

    @staticmethod
    def name(path: str) -> str:
        """Return the name of a path for messages."""
        return path

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of a function that reads, which is called for each item in turn."""
        return [function(item) for item in items]

    def abandon(self, threads: Iterable[int]) -> None:
        """Do nothing, as reads from disk end by themselves."""

    def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:  # noqa: ARG002
        """Raise UnsupportedRequestError, as a disk has no server."""
        raise UnsupportedRequestError

    def read(self, paths: Iterable[str], limit_bytes: int = METADATA_BYTES) -> dict[str, bytes]:
        """Read whole files.

        Returns
        -------
        dict
            Contents by path; absent files are left out.

        Raises
        ------
        CorruptStoreError
            If a file has more than ``limit_bytes`` bytes, or is a link or special file.
        OSError
            If a file exists and cannot be read.
        """
        contents: dict[str, bytes] = {}
        for path in paths:
            with suppress(FileNotFoundError):
                contents[path] = self.folder.read(path, limit_bytes)
        return contents


Objects = LocalObjects | RemoteObjects
"""Reader of whole files of a store, on disk or from a remote place."""


def open_objects(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
) -> Objects:
    """Return a reader of whole files of a store.

    Parameters
    ----------
    url
        Path or fsspec URL.
    storage_options
        As for :func:`spinezarr.remote.filesystem.open_filesystem`.
    remote
        Bounds on the requests, if ``url`` is not a path.

    Raises
    ------
    UsageError
        If such URLs are not supported, or the options do not fit.
    """
    if split_protocol(url)[0] in {None, "file", "local"}:
        return LocalObjects(open_filesystem(url, storage_options)[1])
    return RemoteObjects(url, storage_options, remote)
