"""How does spinezarr use S3 through s3fs, and what do its errors say?"""

import binascii
import errno
import os
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from fsspec.asyn import sync_wrapper
from fsspec.spec import AbstractBufferedFile
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from spinezarr.redaction import redact_url
from spinezarr.remote.errors import object_too_large_error, range_header
from spinezarr.remote.s3_errors import CREDENTIALS_ADVICE, ENDPOINT_ADVICE, ERROR_TEXTS
from spinezarr.remote.s3_session import BoundedSession
from spinezarr.remote.settings import METADATA_BYTES

__all__ = ["S3"]

_BOTOCORE_SETTINGS: Final = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": 32,
    "http_session_cls": BoundedSession,
}
"""Settings of botocore: limits in seconds of one attempt, of which it makes five
(AWS_MAX_ATTEMPTS), and the number of concurrent requests."""
_PART_BYTES: Final = 1 << 18
_BLOCK_BYTES: Final = 4 << 20
_CACHED_BLOCKS: Final = 4
"""Number of blocks in memory of a file that is read from start to end; one is fetched ahead."""
_CRC32_BYTES: Final = 4
_ERROR_NUMBERS: Final = {
    PermissionError: errno.EACCES,
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
}


class _Environment:
    """The environment variables that botocore reads, at the time of access."""

    def __get__(self, instance: object, owner: type) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


class S3(S3FileSystem):  # type: ignore[misc]  # s3fs is untyped
    """Buckets of S3 and of compatible servers. Each failure is an OSError with path and advice.

    A write with ``mode="create"`` raises FileExistsError on every server if the object exists. A
    range that begins beyond the end of an object is empty, as on disk. Listings are not cached, and
    a whole object is read with one request.

    Parameters
    ----------
    endpoint_url
        URL of the server; if None, botocore reads the environment and ``~/.aws/config``.
    config_kwargs
        Settings of botocore; they replace the defaults of this class.
    **options
        Options of :class:`s3fs.S3FileSystem`, such as ``profile`` and ``anon``.

    Raises
    ------
    ValueError
        If ``endpoint_url`` is not the URL of a server.
    """

    # fsspec returns an existing instance if the options and these attributes are equal.
    environment = _Environment()
    _extra_tokenize_attributes = ("default_block_size", "environment")
    retries = 2  # botocore repeats requests; s3fs repeats only bodies that break off

    def __init__(
        self,
        endpoint_url: str | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **options: Any,  # noqa: ANN401  options of s3fs
    ) -> None:
        if endpoint_url is not None and urlsplit(endpoint_url).scheme not in {"http", "https"}:
            raise ValueError(
                f"endpoint {redact_url(endpoint_url)!r} does not start with http:// or https://"
            )
        # With more than one transfer for a file, s3fs requests the size before it reads.
        defaults = {"use_listings_cache": False, "max_concurrency": 1}
        super().__init__(
            endpoint_url=endpoint_url,
            config_kwargs={**_BOTOCORE_SETTINGS, **(config_kwargs or {})},
            **{**defaults, **options},
        )

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except (BotoCoreError, OSError, ValueError) as problem:
            where = "/".join(str(kwargs[name]) for name in ("Bucket", "Key") if name in kwargs)
            exclusive = "IfNoneMatch" in kwargs
            raise _translate(problem, f"s3://{where}", exclusive=exclusive) from _cause(problem)

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> bytes:
        if version_id or kwargs or (start or 0) < 0 or (end or 0) < 0:
            whole: bytes = await super()._cat_file(path, version_id, start, end, **kwargs)
            return whole
        limit_bytes = METADATA_BYTES if end is None else end - (start or 0)
        try:
            byte_range = range_header(start, end)
            body, _ = await self.open_object(path, {"Range": byte_range} if byte_range else {})
        except OSError as problem:
            if _code(problem) in {"InvalidRange", "416"}:
                return b""
            raise
        data = bytearray()
        async with body:
            async for part in self.parts(body, path):
                data += part
                if len(data) > limit_bytes:
                    raise object_too_large_error(f"s3://{path}", limit_bytes)
        return bytes(data)

    async def open_object(
        self, path: str, headers: Mapping[str, str]
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the body of an object, which the caller closes, and the headers of the response.

        Parameters
        ----------
        path
            ``bucket/key``.
        headers
            Headers ``Range``, ``If-Match`` and ``If-None-Match`` of the request.

        Returns
        -------
        body
            Argument of :meth:`parts`.
        Mapping
            Headers of the response, names in lower case.

        Raises
        ------
        OSError
            If the server refuses, or no server answers.
        """
        bucket, key, version = self.split_path(path)
        parameters = {name.replace("-", ""): text for name, text in headers.items()}
        if version:
            parameters["VersionId"] = version
        response = await self._call_s3("get_object", Bucket=bucket, Key=key, **parameters)
        return response["Body"], response["ResponseMetadata"]["HTTPHeaders"]

    def copy_in_service(self, source: str, target: str) -> int | None:
        """Let the service copy an object, so that its bytes are neither received nor sent.

        Parameters
        ----------
        source, target
            ``bucket/key`` of the object, and of its copy.

        Returns
        -------
        int or None
            CRC-32 of the copied object, which the service reports; None if it reports none.

        Raises
        ------
        OSError
            If the service refuses, or no server answers.
        """
        bucket, key, _ = self.split_path(target)
        source_bucket, source_key, _ = self.split_path(source)
        response = self.call_s3(
            "copy_object",
            Bucket=bucket,
            Key=key,
            CopySource={"Bucket": source_bucket, "Key": source_key},
            ChecksumAlgorithm="CRC32",
        )
        return _parse_crc32(response.get("CopyObjectResult", {}).get("ChecksumCRC32", ""))

    @staticmethod
    async def parts(body: Any, path: str) -> AsyncIterator[bytes]:  # noqa: ANN401
        """Yield the parts of a body.

        Raises
        ------
        OSError
            If the body is cut off (ConnectionError).
        """
        try:
            while part := await body.read(_PART_BYTES):
                yield part
        except S3_RETRYABLE_ERRORS as problem:
            raise _interrupted_error(problem, path) from problem

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:  # noqa: ANN401
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        return _ObjectFile(
            self,
            path,
            mode,
            block_size=kwargs.get("block_size") or _BLOCK_BYTES,
            cache_type="background",
            cache_options={"maxblocks": _CACHED_BLOCKS},
            size=kwargs.get("size"),
        )


class _ObjectFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec is untyped
    """An object that is read from start to end."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        return data


def _parse_crc32(text: str) -> int | None:
    """Parse a CRC-32 of S3. The result is None if it is a checksum of the checksums of parts.

    Examples
    --------
    >>> _parse_crc32("y/Q5Jg==") == 0xCBF43926
    True
    >>> _parse_crc32("y/Q5Jg==-2"), _parse_crc32("")
    (None, None)
    """
    try:
        data = b64decode(text, validate=True)
    except binascii.Error:
        return None
    return int.from_bytes(data, "big") if len(data) == _CRC32_BYTES else None


def _interrupted_error(problem: BaseException, path: str) -> OSError:
    text = f"the answer broke off ({problem}). {ENDPOINT_ADVICE}"
    return ConnectionError(errno.EIO, text, f"s3://{path}")


def _code(problem: BaseException) -> str:
    """Return the error code of S3; an empty string if there is none."""
    response = getattr(_cause(problem), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _cause(problem: BaseException) -> BaseException:
    """Return the original error of botocore, or the error itself if it has no cause."""
    return problem.__cause__ or problem


def _translate(problem: Exception, where: str, *, exclusive: bool) -> OSError:
    """Return an error with a plain message, of the class that s3fs raised."""
    # Some errors of botocore are OSErrors with other arguments, so they come first.
    if isinstance(problem, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return PermissionError(errno.EACCES, f"{_sentence(problem)} {CREDENTIALS_ADVICE}", where)
    if isinstance(problem, BotoConnectionError | HTTPClientError):
        return ConnectionError(errno.EHOSTUNREACH, f"{_sentence(problem)} {ENDPOINT_ADVICE}", where)
    if isinstance(problem, ParamValidationError):
        return OSError(errno.EINVAL, " ".join(str(problem).split()), where)
    if isinstance(problem, OSError):
        code = _code(problem)
        text = ERROR_TEXTS.get(code) or problem.strerror or str(problem)
        if code == "PreconditionFailed" and exclusive:
            return FileExistsError(errno.EEXIST, text, where)
        number = _ERROR_NUMBERS.get(type(problem), problem.errno or errno.EIO)
        return type(problem)(number, text, where)
    return OSError(errno.EIO, str(problem), where)


def _sentence(problem: Exception) -> str:
    return f"{str(problem).rstrip('.')}."
