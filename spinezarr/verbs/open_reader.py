"""How is a store opened by the URLs that users write?"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from spinezarr.errors import StoreNotFoundError
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.batch_client import store_url

__all__ = ["open_reader"]


def open_reader(
    url: str, options: Mapping[str, Any], remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS
) -> StoreReader:
    """Open a store. The URL may be the short URL of a store on a spinezarr server.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    """
    try:
        return StoreReader(url, options, remote=remote)
    except StoreNotFoundError:
        served_url = store_url(url)
        if served_url is None:
            raise
        with suppress(StoreNotFoundError):
            return StoreReader(served_url, options, remote=remote)
        raise
