"""How is botocore kept from reading without bound, and from following redirects?"""

from http import HTTPStatus
from typing import Any, Final

from aiobotocore.httpsession import AIOHTTPSession

from spinezarr.remote.settings import METADATA_BYTES

__all__ = ["BoundedSession"]

_MAX_ERROR_BODY_BYTES: Final = 1 << 16
"""Longest body of an error that is read, in bytes; those of S3 have less than 2 KiB."""


class _NoRedirectSession:
    """A session of aiohttp without redirects: botocore looks up the bucket's region instead."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401  botocore is untyped
        self._session = session

    async def request(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return await self._session.request(*args, allow_redirects=False, **options)


class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # botocore is untyped
    """A session of aiobotocore that reads bounded bodies and follows no redirects."""

    async def _get_session(self, proxy_url: str | None) -> _NoRedirectSession:
        return _NoRedirectSession(await super()._get_session(proxy_url))

    async def send(self, request: Any) -> Any:  # noqa: ANN401
        """Send a request; read a body that is not streamed, up to a limit."""
        is_streamed, request.stream_output = request.stream_output, True
        response = await super().send(request)
        is_error = response.status_code >= HTTPStatus.MULTIPLE_CHOICES
        if is_error or not is_streamed:
            limit_bytes = _MAX_ERROR_BODY_BYTES if is_error else METADATA_BYTES
            # A body that was cut is not valid XML, so botocore raises an error.
            response._content = await _read_at_most(response.raw, limit_bytes)  # noqa: SLF001
        return response


async def _read_at_most(raw: Any, max_bytes: int) -> bytes:  # noqa: ANN401
    data = bytearray()
    while part := await raw.content.read(max_bytes + 1 - len(data)):
        data += part
        if len(data) > max_bytes:
            raw.close()
            break
    return bytes(data)
