"""``spinezarr serve``: stores over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.catalog import load_catalog
from spinezarr.cli.console import ERR, OUT, Table, errors_for_users
from spinezarr.cli.options import CatalogFile
from spinezarr.errors import UsageError
from spinezarr.serve.guard import new_token
from spinezarr.serve.log import LogForm
from spinezarr.serve.run import check_address, run
from spinezarr.serve.settings import ServeSettings

__all__ = ["serve"]


def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE]...", help="Stores, or folders of stores; else the catalog's."
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
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Web page that may read, e.g. a viewer; may be repeated."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Processes that answer.")] = 1,
    log: Annotated[
        LogForm, typer.Option(help="How each answer is written to standard error, if it is.")
    ] = LogForm.NONE,
    catalog: CatalogFile = None,
) -> None:
    """Serve stores over HTTP: to xarray, zarr, tensorstore, neuroglancer, and to trainers.

    Stores on disk that come, or are ingested anew, are served without a restart.

    Example:  spinezarr serve demo/ctspine1k.zarr
    """
    with errors_for_users():
        if new is not None:
            if token_file is None:
                raise UsageError("--new-token: give the --token-file to add it to.")
            token = new_token(token_file, new)
            OUT.say(token)
            ERR.say(f"Its hash is in {token_file}. The token itself is shown this once.")
            return
        paths = stores or _of_catalog(catalog)
        settings = ServeSettings(
            paths=tuple(str(Path(path).expanduser().absolute()) for path in paths),
            token_file=None if token_file is None else str(token_file.absolute()),
            hosts=frozenset({host}),
            origins=frozenset(origin or ()),
            log=log,
        )
        settings.guard()
        places = settings.stores().places()
        check_address(host, port, has_tokens=token_file is not None)
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        table = Table("", "store", "URL for xarray and zarr")
        for name in places:
            table.add_row(name, f"{base}/zarr/{name}")
        if places:
            ERR.print(table)
        else:
            ERR.say("There is no store yet; those that come are served.")
        ERR.say(f"Serving at {base}. Ctrl-C ends it.")
        run(settings, host, port, processes)


def _of_catalog(path: Path | None) -> list[str]:
    catalog = load_catalog(path)
    if catalog is None:
        raise UsageError("Give a store, a folder of stores, or a catalog (--catalog FILE).")
    return [entry.store_location for entry in catalog.entries.values()]
