"""``spinezarr serve``: how are stores offered over HTTP?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spinezarr.cli.options import OpenOptions, command
from spinezarr.errors import UsageError
from spinezarr.serve.log import LogForm

__all__ = ["serve"]

_TIME: Final = re.compile(r"(\d{1,6})([mhd])", re.ASCII)
_UNITS_S: Final = {"m": 60, "h": 3_600, "d": 86_400}
_LONGEST_S: Final = 366 * 86_400
_SIGNED_FOR: Final = "7d"


@command
def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE]...",
            help="Stores, or folders of stores, as paths or URLs; else the catalog's.",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hashes of tokens; only they may read.")
    ] = None,
    new: Annotated[
        str | None,
        typer.Option("--new-token", metavar="NAME", help="Make a token for --token-file, and end."),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Print a URL that needs no token for this, and end."),
    ] = None,
    signed_for: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="With --sign: how long the URL is valid: 30m, 12h, 7d. (7d)",
        ),
    ] = None,
    signed_as: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="With --sign: name of the token with which the URL ends."
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Web page that may read, e.g. a viewer; may be repeated."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Processes that answer.")] = 1,
    cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="MB",
            help="MB of decoded chunks that each process keeps, for trainings that share scans.",
        ),
    ] = 0,
    log: Annotated[
        LogForm, typer.Option(help="Form of the log of answers on standard error.")
    ] = LogForm.NONE,
    opening: OpenOptions,
) -> None:
    """Serve stores over HTTP: to xarray, zarr, tensorstore, neuroglancer, and to trainers.

    New stores, and stores that are ingested again, are served without a restart. Stores may lie in
    buckets.

    Example:  spinezarr serve demo/ctspine1k.zarr
    """
    from spinezarr.cli.console import ERR, OUT, Table
    from spinezarr.serve.run import check_address, run
    from spinezarr.serve.settings import ServeSettings
    from spinezarr.serve.tokens import new_token

    if new is not None:
        if token_file is None:
            raise UsageError("--new-token: give the --token-file to add it to.")
        token = new_token(token_file, new)
        OUT.say(token)
        ERR.say(f"Its hash is in {token_file}. The token itself is shown this once.")
        return
    if sign is not None:
        OUT.say(_signed(token_file, sign, signed_for, signed_as))
        return
    if signed_for is not None or signed_as is not None:
        raise UsageError("--for and --as: say how a URL is signed. Give it (--sign URL).")
    options = opening.storage_options
    given = [(_place(path), options) for path in stores or ()]
    given = given or _of_catalog(opening.catalog, options)
    settings = ServeSettings(
        paths=tuple(place for place, _ in given),
        storage_options={place: own for place, own in given if "://" in place},
        token_file=None if token_file is None else str(token_file.absolute()),
        hosts=frozenset({host}),
        origins=frozenset(origin or ()),
        cache_bytes=cache_mb * 1_000_000,
        log=log,
    )
    settings.guard()
    served = settings.stores()
    served.check()
    check_address(host, port, has_tokens=token_file is not None)
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    names = served.list_stores()
    table = Table("", "store", "URL for xarray and zarr")
    for name in names:
        table.add_row(name, f"{base}/zarr/{name}")
    if names:
        ERR.print(table)
    else:
        ERR.say("There is no store yet. Stores that are added later are served.")
    ERR.say(f"Serving at {base}. Ctrl-C ends it.")
    if token_file is not None:
        ERR.say(f"With a browser, sign in at {base}/login.")
    run(settings, host, port, processes)


def _signed(token_file: Path | None, url: str, time: str | None, name: str | None) -> str:
    from spinezarr.serve.signing import signed_url
    from spinezarr.serve.tokens import Tokens, make_key

    if token_file is None or name is None:
        raise UsageError("--sign: give the --token-file, and whose token it ends with (--as NAME).")
    time = _SIGNED_FOR if time is None else time
    found = _TIME.fullmatch(time)
    seconds = 0 if found is None else int(found[1]) * _UNITS_S[found[2]]
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--for {time}: expected a time such as 30m, 12h or 7d, at most 366d.")
    tokens = Tokens(token_file)
    make_key(token_file)
    return signed_url(tokens, url, name, seconds)


def _place(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _of_catalog(path: Path | None, options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the stores of a catalog with storage options; the command's options come first."""
    from spinezarr.catalog import load_catalog

    catalog = load_catalog(path)
    if catalog is None:
        raise UsageError("Give a store, a folder of stores, or a catalog (--catalog FILE).")
    return [
        (_place(entry.store_location), {**entry.storage_options, **options})
        for entry in catalog.entries.values()
    ]
