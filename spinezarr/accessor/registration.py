"""How does ``dataset.spine`` come to xarray, without xarray being imported for it?

``import spinezarr`` takes milliseconds, and xarray takes a second. So the accessor is registered
when somebody imports xarray: at once if that has happened, and else by an import hook, which
removes itself then.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

__all__ = ["register_with_xarray"]

_XARRAY: Final = "xarray"
_NAME: Final = "spine"


def register_with_xarray() -> None:
    """Register the accessor now if xarray is imported, or else when it is."""
    xarray = sys.modules.get(_XARRAY)
    if hasattr(xarray, "register_dataset_accessor"):
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    import xarray as xr  # noqa: PLC0415  imported already

    from spinezarr.accessor.accessor import SpineAccessor  # noqa: PLC0415  imports NumPy

    if not hasattr(xr.Dataset, _NAME):
        register: Any = xr.register_dataset_accessor  # xarray has no annotations for it
        register(_NAME)(SpineAccessor)


class _Finder(MetaPathFinder):
    """Finds xarray as Python does, and registers the accessor after its import."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  as in the base class
        target: ModuleType | None = None,  # noqa: ARG002
        /,
    ) -> ModuleSpec | None:
        if fullname != _XARRAY or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(_XARRAY)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a module with another loader, which then stands in the module."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()
