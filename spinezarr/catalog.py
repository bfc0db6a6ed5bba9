"""Which datasets does the user have, with recipe, raw folder and store?

They are read from ``catalog.yaml``. A catalog that the user names by an option, an argument or
``$SPINEZARR_CATALOG`` is trusted: it may use environment variables, and buckets are accessed with
the user's keys. A ``catalog.yaml`` that was only found in the working folder may have come with
foreign files, and is not trusted. :class:`CatalogEntry` lists the restrictions.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, Field

from spinezarr.errors import CatalogError, StoreNotFoundError
from spinezarr.place import INGEST_ADVICE, similar_path
from spinezarr.redaction import with_two_slashes
from spinezarr.regular_file import describe_irregular_file, expand_home
from spinezarr.strict_model import StrictModel
from spinezarr.text import NAME_BYTES, did_you_mean, to_nfc

__all__ = [
    "CATALOG_VARIABLE",
    "Catalog",
    "CatalogEntry",
    "CatalogPath",
    "find_catalog",
    "load_catalog",
    "locate_store",
]

CATALOG_VARIABLE = "SPINEZARR_CATALOG"
"""Environment variable that names a catalog file."""

CATALOG_NAME = "catalog.yaml"
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_]\w*)\}", re.ASCII)
_BARE_VARIABLE: Final = re.compile(r"\$[A-Za-z_]\w*", re.ASCII)
_BUCKET_SCHEMES: Final = {"s3", "s3a"}
_SHOWN_CHARACTERS: Final = 20
_PUBLIC_SCHEMES: Final = {"file", "http", "https"}
"""Schemes of URLs that are accessed without keys."""


class _StorageModel(StrictModel):
    """Options for access to a bucket. Keys and secrets belong in ``~/.aws`` or the environment."""

    endpoint_url: str | None = None
    profile: str | None = None
    anon: bool | None = None


def _checked_location(text: str) -> str:
    bare_variable = _BARE_VARIABLE.search(text)
    if bare_variable:
        raise ValueError(
            f"variables are written ${{{bare_variable[0][1:]}}}, found {bare_variable[0]!r}"
        )
    names = [] if "://" in text else text.encode(errors="replace").split(b"/")
    if len(text.splitlines()) > 1 or max(map(len, names), default=0) > NAME_BYTES:
        raise ValueError(
            f"it is not a path or URL: give one line, with names of at most {NAME_BYTES} bytes"
        )
    return text


_Location = Annotated[str, Field(min_length=1), AfterValidator(_checked_location)]


class _EntryModel(StrictModel):
    recipe: _Location
    """Name of a shipped recipe, or the path of a ``.yaml`` file."""
    raw: _Location | None = None
    """Folder or URL of the downloaded files. It is not needed to read a store."""
    store: _Location
    """Path or URL of the store."""
    license: str | None = None
    """License of the data, if it differs from the recipe's."""
    storage_options: _StorageModel = _StorageModel()
    """Options for access to the store, if it is in a bucket."""
    raw_storage_options: _StorageModel | None = None
    """Options for access to the raw folder, if they differ from those of the store."""


class _CatalogModel(StrictModel):
    datasets: dict[str, _EntryModel]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One dataset of a catalog, as written in the file.

    The location properties raise CatalogError if they use a variable that is not set. If the
    catalog is not trusted, they also raise it for:

    * any environment variable, because it could send a secret to a foreign server;
    * an endpoint, a profile, or a bucket without ``anon: true``, because keys would be sent;
    * URLs with other schemes than ``http``, ``https``, ``file``, ``s3`` and ``s3a``.
    """

    name: str
    recipe: str
    raw: str | None = field(repr=False)
    store: str = field(repr=False)
    license: str | None
    catalog_path: Path
    is_trusted: bool
    """Whether the user named the catalog, and it was not only found in the working folder."""
    storage_options: Mapping[str, Any] = field(repr=False)
    """Options for the file system of the store, if the store is a URL."""
    raw_storage_options: Mapping[str, Any] | None = field(repr=False)
    """Options for the file system of the raw folder, if they differ from the store's."""

    @property
    def recipe_location(self) -> str:
        """Name of a shipped recipe, or the path of a recipe file."""
        if self.recipe.endswith((".yaml", ".yml")):
            return self._path(self._expanded(self.recipe))
        return self.recipe

    @property
    def raw_location(self) -> str | None:
        """Path or URL of the raw folder; relative paths start at the catalog's folder."""
        if self.raw is None:
            return None
        options = self.raw_storage_options
        return self._locate(self.raw, self.storage_options if options is None else options)

    @property
    def store_location(self) -> str:
        """Path or URL of the store; relative paths start at the catalog's folder."""
        return self._locate(self.store, self.storage_options)

    def _locate(self, value: str, options: Mapping[str, Any]) -> str:
        expanded = self._expanded(value)
        scheme, separator, _ = expanded.partition("://")
        if not separator:
            return self._path(expanded)
        if not self.is_trusted:
            self._check_sends_no_keys(scheme, options)
        return expanded

    def _check_sends_no_keys(self, scheme: str, options: Mapping[str, Any]) -> None:
        key_options = sorted({"endpoint_url", "profile"} & options.keys())
        if key_options:
            raise self._untrusted_error(f"names its own {key_options[0]}")
        if scheme in _BUCKET_SCHEMES and not options.get("anon"):
            raise self._untrusted_error(
                "is in a bucket, to which your keys would be sent,",
                "add 'anon: true' to it, or ",
            )
        if scheme not in _BUCKET_SCHEMES | _PUBLIC_SCHEMES:
            raise self._untrusted_error(f"has a URL with {scheme[:_SHOWN_CHARACTERS]}://")

    def _expanded(self, value: str) -> str:
        for name in _VARIABLE.findall(value):
            if not self.is_trusted:
                raise self._untrusted_error(f"uses the environment variable {name}")
            if name not in os.environ:
                raise CatalogError(
                    f"{self.catalog_path}: dataset {self.name!r} uses the environment variable "
                    f"{name}, which is not set. Set it, or write the path into the catalog."
                )
        return _VARIABLE.sub(lambda match: os.environ[match[1]], value)

    def _untrusted_error(self, violation: str, alternative: str = "") -> CatalogError:
        return CatalogError(
            f"{self.catalog_path}: dataset {self.name!r} {violation} and the catalog was only "
            f"found in the working folder. If you trust it, {alternative}name it: --catalog "
            f"{CATALOG_NAME}, catalog=... in Python, or {CATALOG_VARIABLE}={self.catalog_path}."
        )

    def _path(self, path: str) -> str:
        return str(self.catalog_path.parent / expand_home(path))


@dataclass(frozen=True, slots=True)
class Catalog:
    """The datasets named in one catalog file."""

    path: Path
    entries: dict[str, CatalogEntry]

    def get(self, name: str) -> CatalogEntry | None:
        """Return the entry ``name``, in any Unicode form, or None."""
        return self.entries.get(to_nfc(name))


class CatalogPath(NamedTuple):
    """Path of a catalog, and whether it is trusted."""

    path: Path
    is_trusted: bool
    """Whether the user named the catalog, and it was not only found in the working folder."""


def find_catalog(path: str | os.PathLike[str] | None = None) -> CatalogPath | None:
    """Find the catalog file: ``path``, else ``$SPINEZARR_CATALOG``, else ``./catalog.yaml``.

    Raises
    ------
    CatalogError
        If the argument or the variable names no file, the variable holds a relative path (which
        would mean another file in each folder), or ``catalog.yaml`` in the working folder is not a
        regular file.
    """
    variable = os.environ.get(CATALOG_VARIABLE)
    for given_path, given_by in ((path, "--catalog"), (variable, CATALOG_VARIABLE)):
        if given_path:
            catalog = expand_home(given_path)
            if given_by == CATALOG_VARIABLE and not catalog.is_absolute():
                raise CatalogError(
                    f"{catalog}: is a relative path (named by {given_by}), which means another "
                    "file in each folder. Give the absolute path."
                )
            if not catalog.is_file():
                kind = describe_irregular_file(catalog)
                raise CatalogError(
                    f"{catalog}: {f'is {kind}, expected a' if kind else 'no such'} catalog file "
                    f"(named by {given_by}). 'spinezarr init' writes one to start from."
                )
            return CatalogPath(catalog, is_trusted=True)
    local_catalog = Path(CATALOG_NAME)
    kind = describe_irregular_file(local_catalog)
    if kind:
        raise CatalogError(
            f"{local_catalog}: is {kind}, expected a catalog file. Move it away, or name a catalog "
            "by --catalog FILE."
        )
    return CatalogPath(local_catalog, is_trusted=False) if local_catalog.is_file() else None


def load_catalog(path: str | os.PathLike[str] | None = None) -> Catalog | None:
    """Read the catalog that :func:`find_catalog` finds; None if there is none.

    Raises
    ------
    CatalogError
        If the file is named but absent, or does not load. The message names the line.
    """
    catalog_path = find_catalog(path)
    if catalog_path is None:
        return None
    from spinezarr.strict_yaml import load_strict_yaml  # noqa: PLC0415  often there is no catalog

    model = load_strict_yaml(catalog_path.path, _CatalogModel, CatalogError)
    absolute = catalog_path.path.resolve()
    entries = {
        to_nfc(name): CatalogEntry(
            name=to_nfc(name),
            recipe=entry.recipe,
            raw=entry.raw,
            store=entry.store,
            license=entry.license,
            catalog_path=absolute,
            is_trusted=catalog_path.is_trusted,
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
    """Resolve a path, a URL or a catalog name to the location of a store.

    A folder that holds a store takes precedence over a catalog name, and a catalog name over any
    other folder.

    Returns
    -------
    tuple
        Path or URL of the store, and the catalog's options for its file system.

    Raises
    ------
    StoreNotFoundError
        If there is neither such a path nor such a name. The message lists the known names.
    CatalogError
        If the catalog does not load.
    """
    path = expand_home(store)
    if "://" in store or with_two_slashes(store):
        return store, {}
    if (path / "zarr.json").exists():
        return str(path), {}
    loaded_catalog = load_catalog(catalog)
    entry = None if loaded_catalog is None else loaded_catalog.get(store)
    if entry is not None:
        return entry.store_location, entry.storage_options
    if path.exists():
        return str(path), {}
    names = (
        "no catalog was found"
        if loaded_catalog is None
        else (f"{loaded_catalog.path} names {', '.join(loaded_catalog.entries) or 'no dataset'}")
    )
    hint = "" if loaded_catalog is None else did_you_mean(store, loaded_catalog.entries)
    raise StoreNotFoundError(
        f"{store!r} is not a store: there is no such path, and no dataset of this name ({names})."
        f"{hint or similar_path(path) or INGEST_ADVICE}"
    )
