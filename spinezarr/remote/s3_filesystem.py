"""S3 as spinezarr uses it: few requests, bounded patience, and failures that say what to do."""

import errno
import os
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
from spinezarr.remote.errors import range_value, too_long
from spinezarr.remote.s3_errors import CREDENTIALS, ENDPOINT, REFUSED
from spinezarr.remote.s3_session import BoundedSession
from spinezarr.remote.settings import METADATA_BYTES

__all__ = ["S3"]

_BOTOCORE: Final = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": 32,
    "http_session_cls": BoundedSession,
}
"""Seconds of one attempt, of which botocore makes five (AWS_MAX_ATTEMPTS) and waits in between; and
requests that are under way at once."""
_PART_BYTES: Final = 1 << 18
_BLOCK_BYTES: Final = 4 << 20
_BLOCKS_KEPT: Final = 4
"""Of a file that is read from start to end; the next one is fetched meanwhile."""
_NUMBERS: Final = {
    PermissionError: errno.EACCES,
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
}


class _Environment:
    """The settings that botocore reads of the environment, as they are when they are asked for."""

    def __get__(self, instance: object, owner: type) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


class S3(S3FileSystem):  # type: ignore[misc]  # s3fs is untyped
    """Buckets of S3 and of servers like it, every failure an OSError with path and next step.

    A write that must be the first (``mode="create"``) and is not, raises FileExistsError on every
    server. A byte range that begins behind the end of an object is empty, as on disk. Listings are
    not cached, and whole objects are read with one request.

    Parameters
    ----------
    endpoint_url
        Where the server is; if not given, botocore asks the environment and ``~/.aws/config``.
    config_kwargs
        Settings of botocore, over the ones chosen here.
    **options
        As for :class:`s3fs.S3FileSystem`: ``profile``, ``anon`` and others.

    Raises
    ------
    ValueError
        If ``endpoint_url`` is no URL of a server.
    """

    # fsspec gives the instance that it made before where options and these attributes are equal.
    environment = _Environment()
    _extra_tokenize_attributes = ("default_block_size", "environment")
    retries = 2  # botocore repeats by itself; here only what breaks off while it is read

    def __init__(
        self,
        endpoint_url: str | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **options: Any,  # noqa: ANN401  whatever s3fs takes
    ) -> None:
        if endpoint_url is not None and urlsplit(endpoint_url).scheme not in {"http", "https"}:
            raise ValueError(
                f"endpoint {redact_url(endpoint_url)!r} does not start with http:// or https://"
            )
        # More than one transfer a file makes s3fs ask for the size before it reads.
        own = {"use_listings_cache": False, "max_concurrency": 1}
        super().__init__(
            endpoint_url=endpoint_url,
            config_kwargs={**_BOTOCORE, **(config_kwargs or {})},
            **{**own, **options},
        )

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except (BotoCoreError, OSError, ValueError) as problem:
            where = "/".join(str(kwargs[name]) for name in ("Bucket", "Key") if name in kwargs)
            exclusive = "IfNoneMatch" in kwargs
            raise _explained(problem, f"s3://{where}", exclusive=exclusive) from _cause(problem)

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
            data: bytes = await super()._cat_file(path, version_id, start, end, **kwargs)
            return data
        most = METADATA_BYTES if end is None else end - (start or 0)
        try:
            wanted = range_value(start, end)
            body, _ = await self.open_object(path, {"Range": wanted} if wanted else {})
        except OSError as problem:
            if _code(problem) in {"InvalidRange", "416"}:
                return b""
            raise
        found = bytearray()
        async with body:
            async for part in self.parts(body, path):
                found += part
                if len(found) > most:
                    raise too_long(f"s3://{path}", most)
        return bytes(found)

    async def open_object(
        self, path: str, asked: Mapping[str, str]
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the body of an object, to be closed, and what the server says it is.

        Parameters
        ----------
        path
            ``bucket/key``.
        asked
            Headers ``Range``, ``If-Match`` and ``If-None-Match``.

        Returns
        -------
        body
            For :meth:`parts`.
        Mapping
            Headers of the answer, names in lower case.

        Raises
        ------
        OSError
            If the server refuses, or nobody answers.
        """
        bucket, key, version = self.split_path(path)
        wanted = {name.replace("-", ""): text for name, text in asked.items()}
        if version:
            wanted["VersionId"] = version
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
        return answer["Body"], answer["ResponseMetadata"]["HTTPHeaders"]

    @staticmethod
    async def parts(body: Any, path: str) -> AsyncIterator[bytes]:  # noqa: ANN401
        """Give what comes of a body.

        Raises
        ------
        OSError
            If it breaks off (ConnectionError).
        """
        try:
            while part := await body.read(_PART_BYTES):
                yield part
        except S3_RETRYABLE_ERRORS as problem:
            raise _interrupted(problem, path) from problem

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:  # noqa: ANN401
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        return _ObjectFile(
            self,
            path,
            mode,
            block_size=kwargs.get("block_size") or _BLOCK_BYTES,
            cache_type="background",
            cache_options={"maxblocks": _BLOCKS_KEPT},
            size=kwargs.get("size"),
        )


class _ObjectFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec is untyped
    """An object that is read from start to end."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        return data


def _interrupted(problem: BaseException, path: str) -> OSError:
    text = f"the answer broke off ({problem}). {ENDPOINT}"
    return ConnectionError(errno.EIO, text, f"s3://{path}")


def _code(problem: BaseException) -> str:
    """Return S3's own code of an error, or nothing."""
    response = getattr(_cause(problem), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _cause(problem: BaseException) -> BaseException:
    """Return what botocore raised."""
    return problem.__cause__ or problem


def _explained(problem: Exception, where: str, *, exclusive: bool) -> OSError:
    """Say in plain words what went wrong, keeping the class of what s3fs raised."""
    # Some of botocore's own errors are OSErrors too, and made from other arguments.
    if isinstance(problem, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return PermissionError(errno.EACCES, f"{_sentence(problem)} {CREDENTIALS}", where)
    if isinstance(problem, BotoConnectionError | HTTPClientError):
        return ConnectionError(errno.EHOSTUNREACH, f"{_sentence(problem)} {ENDPOINT}", where)
    if isinstance(problem, ParamValidationError):
        return OSError(errno.EINVAL, " ".join(str(problem).split()), where)
    if isinstance(problem, OSError):
        code = _code(problem)
        text = REFUSED.get(code) or problem.strerror or str(problem)
        if code == "PreconditionFailed" and exclusive:
            return FileExistsError(errno.EEXIST, text, where)
        number = _NUMBERS.get(type(problem), problem.errno or errno.EIO)
        return type(problem)(number, text, where)
    return OSError(errno.EIO, str(problem), where)


def _sentence(problem: Exception) -> str:
    return f"{str(problem).rstrip('.')}."
