"""Which fsspec file system reads a path or URL?"""

from collections.abc import Mapping
from typing import Any, Final

import fsspec

from spinezarr.errors import UsageError
from spinezarr.redaction import redact_url, with_two_slashes

__all__ = ["open_filesystem"]

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http", "hf": "hub"}
"""Extra of this package that installs the packages for a scheme."""
_S3: Final = {"s3", "s3a"}


def open_filesystem(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path in it without a slash at the end.

    Parameters
    ----------
    url
        Path or fsspec URL.
    storage_options
        Options of the file system, as in xarray: ``{"endpoint_url": ..., "profile": ...}`` or
        ``{"anon": True}`` for S3.

    Raises
    ------
    UsageError
        If no installed package reads such URLs, the options do not fit, or a slash is missing.
    """
    scheme, separator, _ = url.partition("://")
    shown = redact_url(url)
    if not separator and (meant := with_two_slashes(url)):
        raise UsageError(
            f"{shown}: is no URL, because two slashes follow the scheme. Did you mean "
            f"{redact_url(meant)!r}?"
        )
    if storage_options and not separator:
        raise UsageError(
            f"{shown}: is a path; endpoint, profile and other storage options are for URLs such as "
            "s3://bucket/name."
        )
    try:
        if scheme in _S3:
            # s3fs is optional, and its import is slow.
            from spinezarr.remote.s3_filesystem import S3  # noqa: PLC0415

            fs, path = S3(**(storage_options or {})), str(fsspec.core.strip_protocol(url))
        else:
            fs, path = fsspec.url_to_fs(url, **(storage_options or {}))
    except ValueError as problem:
        raise UsageError(f"{shown}: cannot be opened: {problem}.") from problem
    except ImportError as problem:
        extra = _EXTRAS.get(scheme)
        advice = f" Install it with: pip install 'spinezarr[{extra}]'" if extra else ""
        raise UsageError(
            f"{shown}: URLs with {scheme}:// cannot be read: {problem}.{advice}"
        ) from (problem)
    return fs, path.rstrip("/") or path
