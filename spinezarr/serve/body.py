"""How is a whole body sent: compressed, and only to clients that do not have it yet?"""

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from spinezarr.serve.compression import gzip_bytes
from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import JSON, REVALIDATE, Answer, Request, accepts_gzip
from spinezarr.text import to_ascii_json

__all__ = ["Body", "answer_json"]

_MIN_COMPRESSED_BYTES: Final = 1 << 10
"""Smallest body that is compressed. A smaller one fits into a packet or two."""
_HEADERS: Final[Mapping[str, str]] = MappingProxyType({"cache-control": REVALIDATE})


class Body:
    """A body with its entity tag. It is compressed once.

    Parameters
    ----------
    data
        The body.
    media_type
        Media type of the body.
    headers
        Headers of each answer, also of 304 Not Modified.
    """

    def __init__(
        self,
        data: bytes,
        media_type: str = JSON,
        headers: Mapping[str, str] = _HEADERS,
    ) -> None:
        self.data = data
        self._media_type = media_type
        self._headers = headers
        self._tag = hashlib.sha256(data).hexdigest()[:32]
        self._compressed: bytes | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Body":
        """Make a body of a value as JSON."""
        return cls(to_ascii_json(value, indent=None).encode())

    @property
    def nbytes(self) -> int:
        """Most memory in bytes that the body and its compressed form take."""
        return 2 * len(self.data)

    def answer(self, request: Request) -> Answer:
        """Answer a request with this body, or with 304 if the client has it already."""
        is_compressed = len(self.data) >= _MIN_COMPRESSED_BYTES and accepts_gzip(
            request.headers.get("accept-encoding", "")
        )
        headers = {
            **self._headers,
            "content-type": self._media_type,
            "etag": f'"{self._tag}-gzip"' if is_compressed else f'"{self._tag}"',
            "vary": "Accept-Encoding",
        }
        conditions = {
            name: value
            for name, value in request.headers.items()
            if name in {"if-match", "if-none-match"}
        }
        status = check_conditions(
            request.method, conditions, etag=headers["etag"], size_bytes=0
        ).status
        if status != HTTPStatus.OK:
            del headers["content-type"]
            return Answer(status, headers)
        if not is_compressed:
            return Answer(status, headers, self.data)
        if self._compressed is None:
            self._compressed = gzip_bytes(self.data)
        return Answer(status, {**headers, "content-encoding": "gzip"}, self._compressed)


def answer_json(request: Request, value: BaseModel) -> Answer:
    """Answer a request with the JSON of a model."""
    return Body.of(value.model_dump(mode="json")).answer(request)
