"""Connections of botocore that bound what is not streamed, and send nothing to other servers."""

from http import HTTPStatus
from typing import Any, Final

from aiobotocore.httpsession import AIOHTTPSession

from spinezarr.remote.settings import METADATA_BYTES

__all__ = ["BoundedSession"]

_REFUSAL_BYTES: Final = 1 << 16
"""Of an answer that is an error; S3's have less than 2 KiB."""


class _Staying:
    """A session of aiohttp that follows no redirect: botocore asks the bucket for its region."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401  botocore is untyped
        self._session = session

    async def request(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return await self._session.request(*args, allow_redirects=False, **options)


class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # botocore is untyped
    """What aiobotocore sends requests with."""

    async def _get_session(self, proxy_url: str | None) -> _Staying:
        return _Staying(await super()._get_session(proxy_url))

    async def send(self, request: Any) -> Any:  # noqa: ANN401
        """Send a request; what is not streamed is read, as far as it may go."""
        is_streamed, request.stream_output = request.stream_output, True
        answer = await super().send(request)
        is_error = answer.status_code >= HTTPStatus.MULTIPLE_CHOICES
        if is_error or not is_streamed:
            most = _REFUSAL_BYTES if is_error else METADATA_BYTES
            # What is cut is no XML any more, which botocore says.
            answer._content = await _beginning(answer.raw, most)  # noqa: SLF001
        return answer


async def _beginning(raw: Any, most_bytes: int) -> bytes:  # noqa: ANN401
    data = bytearray()
    while part := await raw.content.read(most_bytes + 1 - len(data)):
        data += part
        if len(data) > most_bytes:
            raw.close()
            break
    return bytes(data)
