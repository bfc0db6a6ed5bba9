"""``spinezarr serve``: how are stores served over HTTP?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spinezarr.cli.options import OpenOptions, command
from spinezarr.errors import UsageError
from spinezarr.redaction import redact_url
from spinezarr.serve.log import LogForm

__all__ = ["serve"]

_DURATION: Final = re.compile(r"(\d{1,6})([mhd])", re.ASCII)
_UNITS_S: Final = {"m": 60, "h": 3_600, "d": 86_400}
_MAX_SIGNED_S: Final = 366 * 86_400
_DEFAULT_SIGNED_FOR: Final = "7d"


@command
def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE]...",
            help="Stores, or folders of stores, as paths or URLs; by default those of the catalog.",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with hashes of tokens. Reading requires one of them."
        ),
    ] = None,
    new_token_name: Annotated[
        str | None,
        typer.Option(
            "--new-token", metavar="NAME", help="Add a token to --token-file, print it, and exit."
        ),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Print a signed URL, which needs no token, and exit."),
    ] = None,
    signed_for: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="With --sign: how long the URL is valid, such as 30m, 12h or 7d; by default 7d.",
        ),
    ] = None,
    signed_as: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="With --sign: name of a token, whose removal ends the URL."
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Origin of web pages that may read; may be repeated."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=256, help="Answer requests in N processes."),
    ] = 1,
    cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="MB",
            help="Size of the cache of decoded chunks of each process, for trainings that share "
            "scans.",
        ),
    ] = 0,
    log: Annotated[
        LogForm, typer.Option(help="Format of the log of answers on standard error.")
    ] = LogForm.NONE,
    open_options: OpenOptions,
) -> None:
    """Serve stores over HTTP to xarray, zarr, tensorstore, neuroglancer, and trainers.

    New stores, and stores that are ingested again, are served without a restart. Stores may be in
    buckets.

    Example:  spinezarr serve demo/ctspine1k.zarr
    """
    from spinezarr.cli.console import ERR, OUT, Table
    from spinezarr.serve.run import check_address, run
    from spinezarr.serve.settings import ServeSettings
    from spinezarr.serve.tokens import new_token

    if new_token_name is not None:
        if token_file is None:
            raise UsageError("--new-token: give the --token-file to which the token is added.")
        token = new_token(token_file, new_token_name)
        OUT.say(token)
        ERR.note(f"{token_file} holds the hash of the token. The token itself is shown only now.")
        return
    if sign is not None:
        OUT.say(_sign_url(token_file, sign, signed_for, signed_as))
        return
    if signed_for is not None or signed_as is not None:
        raise UsageError("--for and --as need a URL to sign. Give it (--sign URL).")
    options = open_options.storage_options
    locations = [(_location(path), options) for path in stores or ()]
    locations = locations or _catalog_locations(open_options.catalog, options)
    settings = ServeSettings(
        paths=tuple(location for location, _ in locations),
        storage_options={
            location: options_of_location
            for location, options_of_location in locations
            if "://" in location
        },
        token_file=None if token_file is None else str(token_file.absolute()),
        hosts=frozenset({host}),
        origins=frozenset(origin or ()),
        cache_bytes=cache_mb * 1_000_000,
        log=log,
    )
    settings.guard()
    served_stores = settings.stores()
    served_stores.check()
    check_address(host, port, has_tokens=token_file is not None)
    base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    names = served_stores.list_stores()
    table = Table("", "store", "URL for xarray and zarr")
    for name in names:
        table.add_row(name, f"{base_url}/zarr/{name}")
    if names and not ERR.hides_notes:
        ERR.print(table)
    elif not names:
        ERR.note(
            f"There is no store yet in {', '.join(map(redact_url, settings.paths))}. Stores are "
            "served as soon as they are added."
        )
    ERR.note(f"Serving at {base_url}. Stop it with Ctrl-C.")
    if token_file is not None:
        ERR.note(f"To use a browser, sign in at {base_url}/login.")
    run(settings, host, port, workers)


def _sign_url(token_file: Path | None, url: str, time: str | None, name: str | None) -> str:
    from spinezarr.serve.signing import signed_url
    from spinezarr.serve.tokens import Tokens, make_key

    if token_file is None or name is None:
        raise UsageError(
            "--sign: give the --token-file, and the name of a token in it (--as NAME)."
        )
    time = _DEFAULT_SIGNED_FOR if time is None else time
    match = _DURATION.fullmatch(time)
    seconds = 0 if match is None else int(match[1]) * _UNITS_S[match[2]]
    if not 0 < seconds <= _MAX_SIGNED_S:
        raise UsageError(f"--for {time}: expected a time such as 30m, 12h or 7d, at most 366d.")
    tokens = Tokens(token_file)
    make_key(token_file)
    return signed_url(tokens, url, name, seconds)


def _location(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _catalog_locations(
    path: Path | None, options: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the stores of a catalog with storage options. Options of the command override them."""
    from spinezarr.catalog import load_catalog

    catalog = load_catalog(path)
    if catalog is None:
        raise UsageError("Give a store, a folder of stores, or a catalog (--catalog FILE).")
    return [
        (_location(entry.store_location), {**entry.storage_options, **options})
        for entry in catalog.entries.values()
    ]
