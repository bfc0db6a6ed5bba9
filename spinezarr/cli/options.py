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
from spinezarr.cli.completion import (
    complete_codecs,
    complete_masks,
    complete_scans,
    complete_sources,
    complete_splits,
    complete_vertebrae,
)

__all__ = [
    "OUTPUT",
    "AsJson",
    "BucketOptions",
    "CatalogFile",
    "Codec",
    "DryRun",
    "FollowLinks",
    "IncludeRestricted",
    "Layer",
    "MaskName",
    "OpenOptions",
    "OutputOptions",
    "Overwrite",
    "RawBucketOptions",
    "Repair",
    "ScanOptions",
    "Scratch",
    "StoreUrl",
    "TakeImageGrid",
    "Uncompressed",
    "command",
]

OUTPUT: Final = "Output"
_S3: Final = "S3"
_RAW_S3: Final = "S3 options of the raw folder, if they differ from the store's"

StoreUrl = Annotated[
    str, typer.Argument(metavar="STORE", help="Path, URL or catalog name of the store.")
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
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the report as JSON, with all figures and names.",
        rich_help_panel=OUTPUT,
    ),
]
Layer = Annotated[
    str,
    typer.Option(
        "--layer",
        metavar="NAME",
        help="Mask of the store: label, or the name of a further mask such as a prediction.",
        autocompletion=complete_masks,
    ),
]
MaskName = Annotated[
    str,
    typer.Option(
        "--layer",
        metavar="NAME",
        help="Name of the further mask, such as 'prediction'.",
        autocompletion=complete_masks,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files and images.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be written, and write nothing."),
]
Codec = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        help="Chunks and codecs: balanced, fast or small; by default those of the store, or "
        "balanced for a new store.",
        autocompletion=complete_codecs,
    ),
]
Scratch = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder for data that do not fit into memory; by default that of a local store.",
    ),
]
TakeImageGrid = Annotated[
    bool,
    typer.Option(
        "--take-image-grid",
        help="Give a mask file the affine of its image where both have the same shape.",
    ),
]
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

    def open_source(self, store: str, out: str) -> "spinezarr.Store":
        """Open a store for a command that writes to ``out``.

        The S3 options apply to the bucket that is written, and to the store if it is in a bucket.
        """
        is_local_store = "://" in out and "://" not in store
        return (OpenOptions(catalog=self.catalog) if is_local_store else self).open(store)


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
        list[str] | None,
        typer.Option(
            metavar="ID", help="Only this scan; may be repeated.", autocompletion=complete_scans
        ),
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only scans of this split; may be repeated.",
            autocompletion=complete_splits,
        ),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only scans of this source; may be repeated.",
            autocompletion=complete_sources,
        ),
    ] = None
    vertebra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only scans whose mask shows this vertebra; may be repeated.",
            autocompletion=complete_vertebrae,
        ),
    ] = None

    @property
    def names(self) -> ScanNames:
        """Conditions on scans, as keyword arguments of Python functions."""
        return ScanNames(
            scans=self.scan, split=self.split, source=self.source, vertebra=self.vertebra
        )


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Options of every command on what it prints."""

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            help="Print no progress and no notes, only results, warnings and errors.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    no_color: Annotated[
        bool,
        typer.Option(
            "--no-color",
            help="Use no colors; $NO_COLOR and TERM=dumb do the same.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command from a function.

    A parameter whose type is a dataclass becomes an option for each of its fields. Each command
    gets the :class:`OutputOptions`, too. Errors are printed as messages, and end the program with
    their exit codes.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in signature(function).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            parameters += _parameters_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind))

    parameters += _parameters_of(OutputOptions)

    @wraps(function)
    def run(**arguments: Any) -> None:  # noqa: ANN401
        from spinezarr.cli.console import errors_for_users, set_up_output

        set_up_output(quiet=arguments.pop("quiet"), no_color=arguments.pop("no_color"))
        with errors_for_users(as_json=arguments.get("as_json", False)):
            for name, kind in groups.items():
                arguments[name] = kind(
                    **{field.name: arguments.pop(field.name) for field in fields(kind)}
                )
            function(**arguments)

    # Typer reads the options of a command from these two attributes.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters_of(kind: type[Any]) -> list[Parameter]:
    """Return a parameter for each field of a dataclass."""
    types = get_type_hints(kind, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=types[field.name],
        )
        for field in fields(kind)
    ]
