"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

__all__ = [
    "AsJson",
    "CatalogFile",
    "EndpointUrl",
    "FollowLinks",
    "NoSignRequest",
    "Profile",
    "RawEndpointUrl",
    "RawNoSignRequest",
    "RawProfile",
    "StoreUrl",
    "link_folders",
    "storage_options",
]

_S3: Final = "S3"
_RAW_S3: Final = "S3, where the raw folder is reached otherwise than the store"

StoreUrl = Annotated[
    str, typer.Argument(metavar="URL", help="Path, URL or catalog name of the store.")
]
CatalogFile = Annotated[
    Path | None,
    typer.Option(
        "--catalog",
        metavar="FILE",
        help="Catalog file; else $SPINEZARR_CATALOG, else ./catalog.yaml.",
    ),
]
FollowLinks = Annotated[
    list[str] | None,
    typer.Option(
        "--follow-links",
        metavar="DIR",
        help="Read the voxels of a .mhd through a link into this folder; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
# Named as those of the AWS command line.
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="S3 server, if not Amazon's; else $AWS_ENDPOINT_URL.",
        rich_help_panel=_S3,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Profile in ~/.aws to use; else $AWS_PROFILE.", rich_help_panel=_S3
    ),
]
NoSignRequest = Annotated[
    bool,
    typer.Option(
        "--no-sign-request",
        help="Send no credentials: for public buckets.",
        rich_help_panel=_S3,
    ),
]
RawEndpointUrl = Annotated[str | None, typer.Option(metavar="URL", rich_help_panel=_RAW_S3)]
RawProfile = Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=_RAW_S3)]
RawNoSignRequest = Annotated[bool, typer.Option("--raw-no-sign-request", rich_help_panel=_RAW_S3)]


def link_folders(given: list[str] | None) -> tuple[str, ...]:
    """Return the folders of ``--follow-links``, the same wherever a worker runs."""
    return tuple(str(Path(folder).resolve()) for folder in given or ())


def storage_options(
    endpoint_url: str | None, profile: str | None, *, no_sign_request: bool
) -> dict[str, Any]:
    """Return what was given of the options of S3, as fsspec names them."""
    given = {"endpoint_url": endpoint_url, "profile": profile, "anon": no_sign_request or None}
    return {name: value for name, value in given.items() if value is not None}
