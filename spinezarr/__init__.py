"""Public spine-CT datasets as sharded Zarr v3 stores: ingest once, stream training patches.

Examples
--------
>>> import spinezarr
>>> spinezarr.open  # doctest: +ELLIPSIS
<function open at ...>
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from spinezarr.accessor.registration import register_with_xarray

if sys.platform == "win32":
    raise ImportError(
        "spinezarr runs on Linux and macOS, because it reads files with os.pread and forks. "
        "On Windows, install WSL (wsl --install), and install spinezarr in it as on Linux."
    )

if TYPE_CHECKING:
    from spinezarr.api import Store as Store
    from spinezarr.api import load_dataset as load_dataset
    from spinezarr.api import open as open  # noqa: A004
    from spinezarr.errors import SpinezarrError as SpinezarrError
    from spinezarr.remote.settings import RemoteSettings as RemoteSettings
    from spinezarr.stream.batch import Batch as Batch
    from spinezarr.stream.epoch.stream import PatchStream as PatchStream
    from spinezarr.stream.read.range_cache import CacheSettings as CacheSettings
    from spinezarr.verbs.ingest import ingest as ingest

    __version__: str

_MODULES = {
    "Batch": "spinezarr.stream.batch",
    "CacheSettings": "spinezarr.stream.read.range_cache",
    "PatchStream": "spinezarr.stream.epoch.stream",
    "RemoteSettings": "spinezarr.remote.settings",
    "SpinezarrError": "spinezarr.errors",
    "Store": "spinezarr.api",
    "ingest": "spinezarr.verbs.ingest",
    "load_dataset": "spinezarr.api",
    "open": "spinezarr.api",
}

__all__ = [
    "Batch",
    "CacheSettings",
    "PatchStream",
    "RemoteSettings",
    "SpinezarrError",
    "Store",
    "__version__",
    "ingest",
    "load_dataset",
    "open",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that ``import spinezarr`` is fast."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  takes long to import

        return version("spinezarr")
    if name in _MODULES:
        value: object = getattr(import_module(_MODULES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_xarray()
