"""How is a whole body sent: compressed, and only to clients that do not have it yet?"""

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from spinezarr.serve.compression import gzip_bytes
from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import Answer, Request, accepts_gzip
from spinezarr.text import to_ascii_json

__all__ = ["Body", "answer_json"]

JSON: Final = "application/json"
_LEAST_BYTES: Final = 1 << 10
"""Smaller bodies are not compressed: they fit into a packet or two."""
_CHANGES: Final[Mapping[str, str]] = MappingProxyType({"cache-control": "no-cache"})


class Body:
    """A body with its entity tag, and its compressed form, which is made once.

    Parameters
    ----------
    data
        The body.
    media_type
        Media type of the body.
    headers
        Headers of each answer, 304 Not Modified included.
    """

    def __init__(
        self,
        data: bytes,
        media_type: str = JSON,
        headers: Mapping[str, str] = _CHANGES,
    ) -> None:
        self.data = data
        self._media_type = media_type
        self._headers = headers
        self._tag = hashlib.sha256(data).hexdigest()[:32]
        self._packed: bytes | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Body":
        """Write JSON."""
        return cls(to_ascii_json(value, indent=None).encode())

    @property
    def nbytes(self) -> int:
        """Most memory that the body takes, in bytes, compressed form included."""
        return 2 * len(self.data)

    def answer(self, request: Request) -> Answer:
        """Answer a request with this body, or with 304 if the client has it."""
        is_packed = len(self.data) >= _LEAST_BYTES and accepts_gzip(
            request.headers.get("accept-encoding", "")
        )
        headers = {
            **self._headers,
            "content-type": self._media_type,
            "etag": f'"{self._tag}-gzip"' if is_packed else f'"{self._tag}"',
            "vary": "Accept-Encoding",
        }
        conditions = {
            name: text
            for name, text in request.headers.items()
            if name in {"if-match", "if-none-match"}
        }
        status = check_conditions(
            request.method, conditions, etag=headers["etag"], size_bytes=0
        ).status
        if status != HTTPStatus.OK:
            del headers["content-type"]
            return Answer(status, headers)
        if not is_packed:
            return Answer(status, headers, self.data)
        if self._packed is None:
            self._packed = gzip_bytes(self.data)
        return Answer(status, {**headers, "content-encoding": "gzip"}, self._packed)


def answer_json(request: Request, value: BaseModel) -> Answer:
    """Answer a request with the JSON of a model."""
    return Body.of(value.model_dump(mode="json")).answer(request)
