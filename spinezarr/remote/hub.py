"""Which web address does a URL of the Hugging Face Hub stand for?

A hub answers byte ranges of its files at their *resolve* addresses, and redirects them to a content
network. So a store on a hub is read as any store on a web server, with the same retries and bounds.
The file system of ``huggingface_hub`` asks the API of the hub for each folder first, and the hub
allows few such requests.

References
----------
URLs: https://huggingface.co/docs/huggingface_hub/guides/hf_file_system
Rate limits: https://huggingface.co/docs/hub/rate-limits
Environment: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from spinezarr.errors import UsageError

__all__ = ["HUB_SCHEME", "HubLocation", "hub_token", "web_location"]

HUB_SCHEME: Final = "hf"
_PREFIX: Final = "hf://"
_ENDPOINT: Final = "https://huggingface.co"
_DATASET: Final = re.compile(
    r"datasets/(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?"
    r"(?:/(?P<path>.*))?",
    re.ASCII,
)
_BUCKET: Final = re.compile(r"buckets/(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>.*))?", re.ASCII)
_FORMS: Final = (
    "hf://datasets/USER/NAME/PATH, hf://datasets/USER/NAME@REVISION/PATH or "
    "hf://buckets/USER/NAME/PATH"
)
_OPTIONS: Final = {"endpoint", "token"}
_FALSE: Final = {"", "0", "FALSE", "NO", "OFF"}


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A folder in a dataset repository, or in a storage bucket, of a hub."""

    endpoint: str
    """Address of the hub without a slash at its end."""
    kind: str
    """``datasets`` or ``buckets``."""
    repository: str
    """User or organization, and name: ``user/name``."""
    revision: str
    """Branch, tag or commit of a dataset repository; empty for a storage bucket."""
    path: str
    """Path of the folder, without slashes at its ends; may be empty."""

    @classmethod
    def parse(cls, url: str, endpoint: str | None = None) -> "HubLocation":
        """Parse a URL that starts with ``hf://``.

        Parameters
        ----------
        url
            The URL.
        endpoint
            Address of the hub; by default ``$HF_ENDPOINT``, or else https://huggingface.co.

        Raises
        ------
        UsageError
            If it names neither a dataset repository nor a storage bucket.

        Examples
        --------
        >>> location = HubLocation.parse("hf://datasets/lab/spine@v1/ct.zarr", "https://hub.org")
        >>> location.repository, location.revision, location.path
        ('lab/spine', 'v1', 'ct.zarr')
        >>> location.web_url
        'https://hub.org/datasets/lab/spine/resolve/v1/ct.zarr'
        """
        rest = url.removeprefix(_PREFIX)
        match = _DATASET.fullmatch(rest) or _BUCKET.fullmatch(rest)
        if match is None:
            raise UsageError(f"{url}: names no dataset of a hub. Write {_FORMS}.")
        endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
        if urlsplit(endpoint).scheme not in {"http", "https"}:
            raise UsageError(
                f"HF_ENDPOINT {endpoint!r}: does not start with https://. Give the address of the "
                f"hub, such as {_ENDPOINT}."
            )
        parts = match.groupdict()
        is_dataset = rest.startswith("datasets/")
        revision = unquote(parts.get("revision") or "main") if is_dataset else ""
        path = (parts["path"] or "").strip("/")
        kind = "datasets" if is_dataset else "buckets"
        return cls(endpoint, kind, parts["repository"], revision, path)

    @property
    def url(self) -> str:
        """URL of the folder that starts with ``hf://``."""
        revision = "" if self.revision in {"", "main"} else f"@{quote(self.revision, safe='')}"
        parts = [self.kind, f"{self.repository}{revision}", *filter(None, [self.path])]
        return _PREFIX + "/".join(parts)

    @property
    def web_url(self) -> str:
        """Address of the folder on the web server of the hub."""
        parts = [self.endpoint, self.kind, self.repository, "resolve"]
        if self.revision:
            parts.append(quote(self.revision, safe=""))
        return "/".join([*parts, *filter(None, [self.path])])


def web_location(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the web address that a URL stands for, and the options of the file system for it.

    Other URLs than those of a hub are returned unchanged, with their options.

    Parameters
    ----------
    url
        Path or fsspec URL.
    storage_options
        Options of the file system. Those of a hub are ``token`` and ``endpoint``, as in
        ``huggingface_hub.HfFileSystem``.

    Raises
    ------
    UsageError
        If a URL of a hub names no dataset, or the options do not fit.
    """
    options = dict(storage_options or {})
    if not url.startswith(_PREFIX):
        return url, options
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise UsageError(
            f"{url}: the option {unknown[0]!r} does not apply to a hub; its options are "
            "'token' and 'endpoint'."
        )
    location = HubLocation.parse(url, options.get("endpoint"))
    token = hub_token(options.get("token"))
    headers = {"headers": {"Authorization": f"Bearer {token}"}} if token else {}
    return location.web_url, headers


def hub_token(token: str | bool | None = None) -> str | None:  # noqa: FBT001  as in huggingface_hub
    """Return the token for a hub, found as ``huggingface_hub`` finds it; None if there is none.

    Parameters
    ----------
    token
        The token; False for none. By default it is ``$HF_TOKEN``, or else the one that ``hf auth
        login`` has saved.
    """
    if isinstance(token, str):
        return token or None
    if token is False:
        return None
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() not in _FALSE and not token:
        return None
    found = os.environ.get("HF_TOKEN") or _saved_token()
    return "".join(found.split()) or None


def _saved_token() -> str:
    """Return the token that ``hf auth login`` has saved; empty if there is none."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
