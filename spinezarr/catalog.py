"""The datasets a user has: name, recipe, raw folder and store, read from ``catalog.yaml``."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinezarr.errors import CatalogError, StoreNotFoundError
from spinezarr.strict_yaml import StrictModel, load_strict_yaml

__all__ = [
    "CATALOG_VARIABLE",
    "Catalog",
    "CatalogEntry",
    "find_catalog",
    "load_catalog",
    "locate_store",
]

CATALOG_VARIABLE = "SPINEZARR_CATALOG"
"""Environment variable that names a catalog file."""

CATALOG_NAME = "catalog.yaml"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
"""What :func:`os.path.expandvars` takes for a variable."""


class _StorageModel(StrictModel):
    """Where a bucket is and who asks; keys and secrets belong in ``~/.aws`` or the environment."""

    endpoint_url: str | None = None
    profile: str | None = None
    anon: bool | None = None


class _EntryModel(StrictModel):
    recipe: str
    """Name of a shipped recipe, or the path of a ``.yaml`` file."""
    raw: str | None = None
    """Folder or URL of the files as they were downloaded; not needed to read a store."""
    store: str
    """Path or URL of the store."""
    licence: str | None = None
    """Licence of the data, where it differs from the recipe's."""
    storage_options: _StorageModel = _StorageModel()
    """How to reach the store, if it is in a bucket."""
    raw_storage_options: _StorageModel | None = None
    """How to reach the raw folder, if that is otherwise."""


class _CatalogModel(StrictModel):
    datasets: dict[str, _EntryModel]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One dataset of a catalog, as written in the file."""

    name: str
    recipe: str
    raw: str | None
    store: str
    licence: str | None
    catalog_path: Path
    storage_options: Mapping[str, Any]
    """For the store's file system, if it is a URL."""
    raw_storage_options: Mapping[str, Any] | None
    """For that of the raw folder, where they differ from the store's."""

    @property
    def recipe_location(self) -> str:
        """Recipe name, or the path of its file."""
        if self.recipe.endswith((".yaml", ".yml")):
            return self._locate(self.recipe)
        return self.recipe

    @property
    def raw_location(self) -> str | None:
        """Raw folder, variables expanded, relative paths taken from the catalog's folder."""
        return None if self.raw is None else self._locate(self.raw)

    @property
    def store_location(self) -> str:
        """Store path or URL, variables expanded, relative paths taken from the catalog's folder."""
        return self._locate(self.store)

    def _locate(self, value: str) -> str:
        for braced, plain in _VARIABLE.findall(value):
            if (braced or plain) not in os.environ:
                raise CatalogError(
                    f"{self.catalog_path}: dataset {self.name!r} uses the environment variable "
                    f"{braced or plain}, which is not set. Set it, or write the path into the "
                    "catalog."
                )
        expanded = os.path.expandvars(value)
        if "://" in expanded:
            return expanded
        return str(self.catalog_path.parent / Path(expanded).expanduser())


@dataclass(frozen=True, slots=True)
class Catalog:
    """The datasets named in one catalog file."""

    path: Path
    entries: dict[str, CatalogEntry]

    def get(self, name: str) -> CatalogEntry | None:
        """Return the entry ``name``, or None."""
        return self.entries.get(name)


def find_catalog(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Find the catalog file: ``path``, else ``$SPINEZARR_CATALOG``, else ``./catalog.yaml``.

    Raises
    ------
    CatalogError
        If a catalog was named, by argument or variable, and is not a file.
    """
    for named, where in ((path, "--catalog"), (os.environ.get(CATALOG_VARIABLE), CATALOG_VARIABLE)):
        if named:
            found = Path(named).expanduser()
            if not found.is_file():
                raise CatalogError(
                    f"{found}: no such catalog file (named by {where}). "
                    "'spinezarr init' writes one to start from."
                )
            return found
    here = Path(CATALOG_NAME)
    return here if here.is_file() else None


def load_catalog(path: str | os.PathLike[str] | None = None) -> Catalog | None:
    """Read the catalog that :func:`find_catalog` finds; None if there is none.

    Raises
    ------
    CatalogError
        If the file is named but absent, or does not load; the message points at the line.
    """
    found = find_catalog(path)
    if found is None:
        return None
    model = load_strict_yaml(found, _CatalogModel, CatalogError)
    absolute = found.resolve()
    entries = {
        name: CatalogEntry(
            name=name,
            recipe=entry.recipe,
            raw=entry.raw,
            store=entry.store,
            licence=entry.licence,
            catalog_path=absolute,
            storage_options=entry.storage_options.model_dump(exclude_none=True),
            raw_storage_options=None
            if entry.raw_storage_options is None
            else entry.raw_storage_options.model_dump(exclude_none=True),
        )
        for name, entry in model.datasets.items()
    }
    return Catalog(absolute, entries)


def locate_store(
    store: str, catalog: str | os.PathLike[str] | None = None
) -> tuple[str, Mapping[str, Any]]:
    """Find what ``store``, a path, a URL or a catalog name, stands for.

    A folder with a store in it comes before a catalog name, any other folder after it.

    Returns
    -------
    tuple
        Path or URL, and the catalog's options for its file system.

    Raises
    ------
    StoreNotFoundError
        If there is neither such a path nor such a name; names what was tried.
    CatalogError
        If the catalog does not load.
    """
    path = Path(store).expanduser()
    if "://" in store:
        return store, {}
    if (path / "zarr.json").exists():
        return str(path), {}
    found = load_catalog(catalog)
    entry = None if found is None else found.get(store)
    if entry is not None:
        return entry.store_location, entry.storage_options
    if path.exists():
        return str(path), {}
    names = (
        "no catalog was found"
        if found is None
        else (f"{found.path} names {', '.join(found.entries) or 'no dataset'}")
    )
    raise StoreNotFoundError(
        f"{store!r} is no store: there is no such path, and as a dataset name it is unknown "
        f"({names})."
    )
