"""Which arguments and options do several commands share?

Options that belong together are the fields of a dataclass. A command takes the dataclass as one
parameter, and :func:`command` makes an option of each field, so each option is defined once.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict, get_type_hints

import typer

import spinezarr

__all__ = [
    "AsJson",
    "BucketOptions",
    "FollowLinks",
    "IncludeRestricted",
    "Layer",
    "OpenOptions",
    "Overwrite",
    "RawBucketOptions",
    "Repair",
    "ScanOptions",
    "StoreUrl",
    "Uncompressed",
    "command",
]

_S3: Final = "S3"
_RAW_S3: Final = "S3 options of the raw folder, if they differ from the store's"

StoreUrl = Annotated[
    str, typer.Argument(metavar="URL", help="Path, URL or catalog name of the store.")
]
CatalogFile = Annotated[
    Path | None,
    typer.Option(
        "--catalog",
        metavar="FILE",
        help="Catalog file; by default $SPINEZARR_CATALOG, or else ./catalog.yaml.",
    ),
]
FollowLinks = Annotated[
    list[str] | None,
    typer.Option(
        "--follow-links",
        metavar="DIR",
        help="Read voxels of .mhd files through links into this folder; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Layer = Annotated[
    str,
    typer.Option(
        "--layer",
        metavar="NAME",
        help="Mask of the store: label, or the name of a further mask such as a prediction.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files and images.")]
IncludeRestricted = Annotated[
    bool,
    typer.Option(
        "--include-restricted",
        help="Also write scans and masks whose license allows no derivatives (CC BY-NC-ND). Do not "
        "share the result.",
    ),
]
Repair = Annotated[
    bool,
    typer.Option(
        "--repair",
        help="Check every stored byte as 'verify' does, and write damaged files again.",
    ),
]
Uncompressed = Annotated[bool, typer.Option("--uncompressed", help="Write .nii, not .nii.gz.")]


def _s3_options(
    endpoint_url: str | None, profile: str | None, *, no_sign_request: bool
) -> dict[str, Any]:
    """Return the given S3 options, under the names of fsspec."""
    options = {"endpoint_url": endpoint_url, "profile": profile, "anon": no_sign_request or None}
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BucketOptions:
    """Options for access to a bucket, named as in the AWS command line."""

    endpoint_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the S3 server; by default $AWS_ENDPOINT_URL, or else Amazon's.",
            rich_help_panel=_S3,
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Profile in ~/.aws; by default $AWS_PROFILE.", rich_help_panel=_S3
        ),
    ] = None
    no_sign_request: Annotated[
        bool,
        typer.Option(
            "--no-sign-request",
            help="Send no credentials, for public buckets.",
            rich_help_panel=_S3,
        ),
    ] = False

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for the file system."""
        return _s3_options(self.endpoint_url, self.profile, no_sign_request=self.no_sign_request)


@dataclass(frozen=True, slots=True)
class OpenOptions(BucketOptions):
    """Options to find and open a store."""

    catalog: CatalogFile = None

    def open(self, store: str) -> "spinezarr.Store":
        """Open a store by its path, URL or name."""
        return spinezarr.open(store, catalog=self.catalog, storage_options=self.storage_options)


@dataclass(frozen=True, slots=True)
class RawBucketOptions:
    """Options for access to the bucket of the raw files."""

    raw_endpoint_url: Annotated[
        str | None, typer.Option(metavar="URL", rich_help_panel=_RAW_S3)
    ] = None
    raw_profile: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=_RAW_S3)] = None
    raw_no_sign_request: Annotated[
        bool, typer.Option("--raw-no-sign-request", rich_help_panel=_RAW_S3)
    ] = False

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for the file system."""
        return _s3_options(
            self.raw_endpoint_url, self.raw_profile, no_sign_request=self.raw_no_sign_request
        )


class ScanNames(TypedDict):
    """Conditions on scans, as keyword arguments of Python functions."""

    scans: list[str] | None
    split: list[str] | None
    source: list[str] | None
    vertebra: list[str] | None


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Options that select the scans of a command. A scan must meet every condition."""

    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only scans of this split; may be repeated."),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only scans of this source; may be repeated."),
    ] = None
    vertebra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only scans whose mask shows this vertebra; may be repeated."
        ),
    ] = None

    @property
    def names(self) -> ScanNames:
        """Conditions on scans, as keyword arguments of Python functions."""
        return ScanNames(
            scans=self.scan, split=self.split, source=self.source, vertebra=self.vertebra
        )


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command from a function.

    A parameter whose type is a dataclass becomes an option for each of its fields. Errors are
    printed as messages, and end the program with their exit codes.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in signature(function).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            types = get_type_hints(kind, include_extras=True)
            parameters += [
                Parameter(
                    field.name,
                    Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=types[field.name],
                )
                for field in fields(kind)
            ]
        else:
            parameters.append(parameter.replace(annotation=kind))

    @wraps(function)
    def run(**arguments: object) -> None:
        from spinezarr.cli.console import errors_for_users

        with errors_for_users():
            for name, kind in groups.items():
                arguments[name] = kind(
                    **{field.name: arguments.pop(field.name) for field in fields(kind)}
                )
            function(**arguments)

    # Typer reads the options of a command from these two attributes.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
