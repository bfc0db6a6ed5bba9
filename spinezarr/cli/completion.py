"""Which words complete a command in a shell?

A shell starts the program at each press of the Tab key. So these functions read little: names of
folders, or the scan table of a store on disk. They read nothing from a bucket or a web server, and
they offer nothing where something fails.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import typer

__all__ = [
    "complete_codecs",
    "complete_datasets",
    "complete_masks",
    "complete_scans",
    "complete_schemes",
    "complete_sources",
    "complete_splits",
    "complete_vertebrae",
]

_PLAIN: Final = re.compile(r"[\w.%+@][\w.%+@-]*")
"""Names that a shell takes literally.

Completion scripts do not quote what they insert, and zsh evaluates it. A store from a stranger may
have a scan with a name such as ``$(reboot)``.
"""
_MOST_WORDS: Final = 2000
"""Most words that are offered."""


def _offer(find: Callable[[Any], Iterable[str]]) -> Callable[[typer.Context, str], list[str]]:
    """Return a function for typer that offers the plain words that begin as the user has typed."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            words = (
                word for word in find(ctx) if word.startswith(incomplete) and _PLAIN.fullmatch(word)
            )
            return list(dict.fromkeys(islice(words, _MOST_WORDS)))
        except Exception:  # noqa: BLE001  a message would appear in the line that the user types
            return []

    complete.__doc__ = find.__doc__
    return complete


def _folders(ctx: typer.Context) -> Iterator[Path]:
    """Yield the stores on disk that the arguments name so far."""
    from spinezarr.catalog import locate_store

    # Behind an option without its value, the parser leaves the arguments where they are.
    given = ctx.params.get("store") or ctx.params.get("stores") or ctx.args
    for name in (given,) if isinstance(given, str) else given:
        location, _ = locate_store(name, ctx.params.get("catalog"))
        if "://" not in location:
            yield Path(location)


def _columns(ctx: typer.Context, column: str) -> Iterator[Any]:
    """Yield a column of the scan table of each store."""
    from spinezarr.store.reader import StoreReader

    for folder in _folders(ctx):
        yield StoreReader(str(folder)).columns[column]


def _texts(ctx: typer.Context, column: str) -> Iterator[str]:
    for values in _columns(ctx, column):
        yield from map(str, values.tolist())


@_offer
def complete_datasets(ctx: typer.Context) -> Iterator[str]:
    """Offer the recipes, 'pairs' and the names in the catalog."""
    from spinezarr.catalog import load_catalog
    from spinezarr.resources import recipe_names

    yield from recipe_names()
    yield "pairs"
    catalog = load_catalog(ctx.params.get("catalog"))
    yield from () if catalog is None else catalog.entries


@_offer
def complete_codecs(_: typer.Context) -> Iterable[str]:
    """Offer the codec profiles."""
    from spinezarr.store.layout import PROFILES

    return PROFILES


@_offer
def complete_schemes(_: typer.Context) -> Iterable[str]:
    """Offer the label schemes."""
    from spinezarr.label_schemes import SCHEMES

    return SCHEMES


@_offer
def complete_scans(ctx: typer.Context) -> Iterator[str]:
    """Offer the scans of the store."""
    for folder in _folders(ctx):
        yield from sorted(entry.name for entry in (folder / "scans").iterdir() if entry.is_dir())


@_offer
def complete_splits(ctx: typer.Context) -> Iterable[str]:
    """Offer the splits of the store."""
    return sorted({*_texts(ctx, "split")})


@_offer
def complete_sources(ctx: typer.Context) -> Iterable[str]:
    """Offer the sources of the store."""
    return sorted({*_texts(ctx, "source")})


@_offer
def complete_vertebrae(ctx: typer.Context) -> Iterator[str]:
    """Offer the names of vertebrae."""
    return _texts(ctx, "vertebra")


@_offer
def complete_masks(ctx: typer.Context) -> Iterable[str]:
    """Offer 'label' and the further masks of the store."""
    return ["label", *sorted({name for cell in _texts(ctx, "masks") for name in cell.split()})]
