"""How does this package's own client follow s3fs's options, the environment and ``~/.aws``?

It finds the endpoint of a bucket and signs requests, as botocore does below s3fs.
"""

import errno
import hashlib
import hmac
import os
import re
import ssl
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import quote, urlsplit

from spinezarr.remote.direct_transport import (
    ObjectLocation,
    UnsupportedRequestError,
    credentials_renewal_error,
    is_unambiguous_key,
    location_of_url,
)
from spinezarr.remote.s3_errors import CREDENTIALS_ADVICE
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings

__all__ = ["S3Locator", "s3_locator"]

_IRRELEVANT_OPTIONS: Final = {
    "cache_regions",
    "default_block_size",
    "default_cache_type",
    "default_fill_cache",
    "fixed_upload_size",
    "listings_expiry_time",
    "local_expiry_check",
    "max_concurrency",
    "max_paths",
    "skip_instance_cache",
    "use_listings_cache",
}
"""Options of s3fs that do not change a request for one object."""
_IRRELEVANT_CONFIG: Final = {"max_pool_connections", "retries"}
_PLAIN_CONFIG: Final = {"region", "endpoint_url", "output", "cli_pager"}
"""Settings of a profile that this module reads without botocore."""
_PLAIN_CREDENTIALS: Final = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
_BUCKET: Final = re.compile(r"[A-Za-z0-9.\-_]{1,255}")
_HOST_NAME: Final = re.compile(r"[a-z0-9][a-z0-9\-]{1,61}[a-z0-9]")
"""Name of a bucket that can be part of a host name and of its certificate.

References
----------
https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
"""
_REGION: Final = re.compile(r"(af|ap|ca|cn|eu|il|me|mx|sa|us)(-gov)?-[a-z]+-\d+")
"""Regions whose servers have names of the usual form; botocore knows the others."""
_DEFAULT_REGION: Final = "us-east-1"
_TRUE: Final = {"1", "true", "yes"}


@dataclass(frozen=True)
class _Settings:
    """Everything that a request for an object of a bucket needs."""

    region: str
    endpoint_url: str | None
    is_secure: bool
    requester_pays: bool
    addressing: str
    verify: bool | str
    provider: Callable[[], Any] | None = field(repr=False)


class S3Locator:
    """Finds the location of objects in buckets."""

    def __init__(self, options: Mapping[str, Any], remote: RemoteSettings) -> None:
        self._options = options
        self._refresh = timedelta(seconds=remote.credentials_refresh_s)
        self._settings: _Settings | None = None
        self._tls_context: ssl.SSLContext | None = None
        self._keys: dict[str, Any] = {}
        self._lock = Lock()

    def locate(self, path: str) -> ObjectLocation | None:
        """See :class:`spinezarr.remote.direct_transport.ObjectLocator`."""
        bucket, _, key = path.partition("/")
        if not _BUCKET.fullmatch(bucket) or not is_unambiguous_key(key) or "?versionId=" in key:
            return None
        if self._settings is None:
            settings = _settings(_Options.of(self._options), self._refresh)
            self._tls_context, self._settings = _tls_context(settings), settings
        base, is_virtual = _endpoint(bucket, self._settings)
        within = quote(key if is_virtual else f"{bucket}/{key}", safe="/~")
        payer = {"x-amz-request-payer": "requester"} if self._settings.requester_pays else {}
        location = location_of_url(f"{base}/{within}", payer, self._tls_context)
        if location is None or self._settings.provider is None:
            return location
        return replace(location, sign=self._sign, signs_slowly=self._is_expired)

    def _is_expired(self) -> bool:
        until = self._keys.get("expires_at")
        return not self._keys or (until is not None and until <= datetime.now(UTC))

    def _sign(self, location: ObjectLocation, headers: Mapping[str, str]) -> Mapping[str, str]:
        settings = self._settings
        if settings is None or settings.provider is None:
            return headers
        with self._lock:
            if self._is_expired():
                self._keys = {}
                with suppress(Exception):  # credentials may come from any program or server
                    self._keys = settings.provider()
            keys = self._keys
        if not keys:  # it is not raised in a handler, as the original error may contain a secret
            raise credentials_renewal_error(f"s3://{location.host}{location.target}")
        return sign_headers(
            location.host,
            location.target,
            headers,
            keys=keys,
            region=settings.region,
            now=datetime.now(UTC),
        )


def sign_headers(
    host: str,
    target: str,
    headers: Mapping[str, str],
    *,
    keys: Mapping[str, str | None],
    region: str,
    now: datetime,
) -> dict[str, str]:
    """Return headers with the signature of a GET request (AWS Signature Version 4).

    References
    ----------
    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    time = f"{now:%Y%m%dT%H%M%SZ}"
    added = {"x-amz-content-sha256": _NO_BODY, "x-amz-date": time}
    if keys["token"]:
        added["x-amz-security-token"] = str(keys["token"])
    signed = {**{name.lower(): text for name, text in headers.items()}, **added}
    fields = sorted({**signed, "host": host}.items())
    names = ";".join(name for name, _ in fields)
    canonical = "\n".join(
        ["GET", target, "", *(f"{name}:{text}" for name, text in fields), "", names, _NO_BODY]
    )
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"
    key = _signing_key(str(keys["secret_access_key"]), time[:8], region)
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"Credential={keys['access_key_id']}/{scope}"
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    )
    return signed


@lru_cache(maxsize=16)
def _signing_key(secret: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


_NO_BODY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class _Options:
    """Options of s3fs that this client can follow."""

    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)
    anon: bool
    endpoint_url: str | None = field(repr=False)
    region: str | None
    profile: str | None
    requester_pays: bool
    use_ssl: bool
    verify: bool | str | None
    addressing: str | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "_Options":
        """Parse options of s3fs.

        Raises
        ------
        UnsupportedRequestError
            If this client cannot follow one of them.
        """
        rest = {name: value for name, value in options.items() if name not in _IRRELEVANT_OPTIONS}
        client = _mapping_of(rest.pop("client_kwargs", None))
        config = _mapping_of(rest.pop("config_kwargs", None))
        s3 = _mapping_of(config.pop("s3", None))
        names = ("key", "secret", "token", "username", "password")
        login = {name: rest.pop(name, None) for name in names}
        parsed = cls(
            key=login["key"] or login["username"] or client.pop("aws_access_key_id", None),
            secret=login["secret"]
            or login["password"]
            or client.pop("aws_secret_access_key", None),
            token=login["token"] or client.pop("aws_session_token", None),
            anon=bool(rest.pop("anon", False)),
            endpoint_url=_first(rest.pop("endpoint_url", None), client.pop("endpoint_url", None)),
            region=_first(client.pop("region_name", None), config.pop("region_name", None)),
            profile=rest.pop("profile", None),
            requester_pays=bool(rest.pop("requester_pays", False)),
            use_ssl=bool(_first(client.pop("use_ssl", None), rest.pop("use_ssl", None), True)),
            verify=client.pop("verify", None),
            addressing=s3.pop("addressing_style", None),
        )
        unsupported = {*rest, *client, *s3, *(config.keys() - _IRRELEVANT_CONFIG)}
        if unsupported or bool(parsed.key) != bool(parsed.secret):
            raise UnsupportedRequestError
        return parsed


def _mapping_of(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise UnsupportedRequestError
    return dict(value or {})


def s3_locator(
    options: Mapping[str, Any], remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS
) -> S3Locator | None:
    """Return a locator for s3fs's options; None if this client cannot follow all of them."""
    try:
        parsed = _Options.of(options)
    except UnsupportedRequestError:
        return None
    endpoint_url = parsed.endpoint_url
    if endpoint_url is not None and not _is_plain_endpoint(endpoint_url):
        return None
    return S3Locator(options, remote)


def _settings(options: _Options, refresh: timedelta) -> _Settings:
    """Complete options from the environment and the files of AWS, with botocore if needed."""
    environ = dict(os.environ)
    configured = _without_botocore(options, environ) or _with_botocore(options, refresh)
    endpoint_url = options.endpoint_url or configured.endpoint_url
    region = options.region or environ.get("AWS_DEFAULT_REGION") or configured.region
    region = region or environ.get("AWS_REGION") or _DEFAULT_REGION
    if endpoint_url is None and not _REGION.fullmatch(region):
        raise UnsupportedRequestError
    if endpoint_url is not None and not _is_plain_endpoint(endpoint_url):
        raise UnsupportedRequestError
    verify = options.verify
    return _Settings(
        region=region,
        endpoint_url=endpoint_url,
        is_secure=options.use_ssl,
        requester_pays=options.requester_pays,
        addressing=options.addressing or configured.addressing or "auto",
        verify=verify if verify is not None else configured.ca_bundle or True,
        provider=configured.provider,
    )


@dataclass(frozen=True)
class _AwsSettings:
    """Settings in the environment and in the files of AWS."""

    endpoint_url: str | None
    region: str | None
    ca_bundle: str | None
    addressing: str | None
    provider: Callable[[], Any] | None = field(repr=False)


def _without_botocore(options: _Options, environ: Mapping[str, str]) -> _AwsSettings | None:
    """Return simple settings without the slow import of botocore; None if they are complex."""
    names = (options.profile, environ.get("AWS_PROFILE"), environ.get("AWS_DEFAULT_PROFILE"))
    switches = ("AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT")
    if any(names) or any(environ.get(name) for name in switches):
        return None
    keys = (options.key, options.secret, options.token)
    if not options.key:
        token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN")
        keys = (environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY"), token)
    if not options.anon and not (keys[0] and keys[1]):
        return None
    profile: dict[str, str] = {}
    for variable, default, supported in (
        ("AWS_CONFIG_FILE", "~/.aws/config", _PLAIN_CONFIG),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", _PLAIN_CREDENTIALS),
    ):
        section = _default_section(Path(environ.get(variable) or default).expanduser())
        if section is None or not supported.issuperset(section):
            return None
        profile |= section
    return _AwsSettings(
        endpoint_url=_configured_endpoint(environ, None, profile.get("endpoint_url")),
        region=profile.get("region"),
        ca_bundle=environ.get("AWS_CA_BUNDLE"),
        addressing=None,
        provider=None if options.anon else _constant(*keys),
    )


def _default_section(path: Path) -> dict[str, str] | None:
    """Return the settings of the default profile; None if only botocore can read the file."""
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return dict(parser["default"]) if "default" in parser else {}


def _with_botocore(options: _Options, refresh: timedelta) -> _AwsSettings:
    """Return the settings that botocore finds.

    Raises
    ------
    PermissionError
        If no credentials are found, or the profile does not exist.
    UnsupportedRequestError
        If this client cannot follow the profile, or botocore is not installed.
    """
    try:
        from botocore.exceptions import BotoCoreError, ProfileNotFound  # noqa: PLC0415  slow import
        from botocore.session import Session  # noqa: PLC0415
    except ImportError:  # s3fs is tried next, and its import raises the error for the user
        raise UnsupportedRequestError from None

    session = Session(profile=options.profile)
    try:
        profile = session.get_scoped_config()
        credentials = None if options.key or options.anon else session.get_credentials()
    except ProfileNotFound as problem:
        raise PermissionError(errno.EACCES, f"{problem}. {CREDENTIALS_ADVICE}") from None
    except BotoCoreError as problem:
        name = type(problem).__name__
        text = f"the credentials cannot be found ({name}). {CREDENTIALS_ADVICE}"
        raise PermissionError(errno.EACCES, text) from None
    s3 = dict(profile.get("s3") or {})
    switches = ("use_fips_endpoint", "use_dualstack_endpoint")
    special = (session.get_config_variable(name) for name in switches)
    if any(special) or any(str(s3.get(n)).lower() == "true" for n in _SPECIAL_ENDPOINTS):
        raise UnsupportedRequestError
    if credentials is None and not (options.key or options.anon):
        text = f"Unable to locate credentials. {CREDENTIALS_ADVICE}"
        raise PermissionError(errno.EACCES, text)
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    configured = (services.get("s3") or {}).get("endpoint_url") or profile.get("endpoint_url")
    ignored = session.get_config_variable("ignore_configured_endpoint_urls")
    provider = None if options.anon else _constant(options.key, options.secret, options.token)
    return _AwsSettings(
        endpoint_url=None if ignored else _configured_endpoint(os.environ, configured, None),
        region=session.get_config_variable("region"),
        ca_bundle=session.get_config_variable("ca_bundle"),
        addressing=s3.get("addressing_style"),
        provider=provider if credentials is None else _renewing(credentials, refresh),
    )


_SPECIAL_ENDPOINTS: Final = ("use_accelerate_endpoint", "use_dualstack_endpoint")


def _configured_endpoint(
    environ: Mapping[str, str], service: str | None, profile: str | None
) -> str | None:
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() in _TRUE:
        return None
    variable = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    return variable or service or profile


def _constant(key: str | None, secret: str | None, token: str | None) -> Callable[[], Any]:
    """Return a function that always returns the same credentials."""
    keys = {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}
    return lambda: keys


def _renewing(credentials: Any, refresh: timedelta) -> Callable[[], Any]:  # noqa: ANN401
    """Return a function that returns the credentials of botocore. Botocore renews them in time."""

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + refresh,
        }

    return provide


def _tls_context(settings: _Settings) -> ssl.SSLContext | None:
    """Return the TLS context; None for the certificates that the system trusts."""
    if settings.verify is True:
        return None
    if settings.verify is False:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=str(settings.verify))
    except OSError:
        raise UnsupportedRequestError from None


def _endpoint(bucket: str, settings: _Settings) -> tuple[str, bool]:
    """Return the base URL of a bucket, and whether the host name contains the bucket's name.

    As in botocore, a custom endpoint has the bucket in the path by default.
    """
    fits = _HOST_NAME.fullmatch(bucket) is not None
    if settings.endpoint_url is None:
        scheme = "https" if settings.is_secure else "http"
        suffix = ".cn" if settings.region.startswith("cn-") else ""
        base = f"{scheme}://s3.{settings.region}.amazonaws.com{suffix}"
        is_virtual = fits and settings.addressing != "path"
    else:
        base = settings.endpoint_url.rstrip("/")
        is_virtual = fits and settings.addressing == "virtual"
    scheme, _, host = base.partition("://")
    return (f"{scheme}://{bucket}.{host}" if is_virtual else base), is_virtual


def _is_plain_endpoint(endpoint_url: str) -> bool:
    parts = urlsplit(endpoint_url)
    is_web = parts.scheme in {"http", "https"} and bool(parts.hostname)
    return is_web and not (parts.username or parts.query or parts.fragment)


def _first(*values: Any) -> Any:  # noqa: ANN401
    return next((value for value in values if value is not None), None)
