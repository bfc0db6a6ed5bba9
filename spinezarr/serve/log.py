"""How does the server log each answer without logging a secret?

Tokens and cookies come in headers, in the query and, by mistake, in a path. The log holds no
headers and no query. In a path, each run of characters that is as long as a token becomes ``…``.
The guard has already removed signatures from the path.
"""

import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from spinezarr.text import to_ascii_json, to_printable

__all__ = ["LogForm", "RequestLog"]

_NAME: Final = "spinezarr.requests"
_FIELDS: Final = "request_fields"
"""Attribute of log records that holds the fields of a line."""
_SECRET: Final = re.compile(r"[A-Za-z0-9_~+=%-]{40,}")
"""Text that may be secret: tokens and signatures have 43 characters."""
_PLACEHOLDER: Final = "…"
_PATH_CHARACTERS: Final = 512
_METHOD_CHARACTERS: Final = 16


class LogForm(StrEnum):
    """Format of the log."""

    JSON = "json"
    TEXT = "text"
    NONE = "none"


class RequestLog:
    """Writes to standard error, through the logger ``spinezarr.requests``.

    Parameters
    ----------
    form
        ``json`` for one JSON object in each line, ``text`` for lines that people read.
    """

    def __init__(self, form: LogForm) -> None:
        handler = _StandardError()
        handler.setFormatter(_JsonFormatter() if form is LogForm.JSON else _TextFormatter())
        self._logger = logging.getLogger(_NAME)
        self._logger.handlers[:] = [handler]
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)

    def note(
        self,
        method: str,
        path: str,
        *,
        status: HTTPStatus,
        sent_bytes: int,
        seconds: float,
        token: str | None,
    ) -> None:
        """Write a line.

        Parameters
        ----------
        method, path
            Method and decoded path of the request, without the query.
        status, sent_bytes, seconds
            Status, size and duration of the answer.
        token
            Name of the token of the request; None if it has none.
        """
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": to_printable(method, _METHOD_CHARACTERS),
            "path": shown_path(path),
            "status": status.value,
            "bytes": sent_bytes,
            "seconds": round(seconds, 6),
            "token": token,
        }
        level = logging.ERROR if status.value >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO
        self._logger.log(level, "answered", extra={_FIELDS: fields})


def shown_path(path: str) -> str:
    """Return a path with a placeholder for each run of characters that could be secret.

    Examples
    --------
    >>> shown_path("/zarr/ctspine1k/scans/1.3.6.1.4.1.9328.50.4.0001/zarr.json")
    '/zarr/ctspine1k/scans/1.3.6.1.4.1.9328.50.4.0001/zarr.json'
    >>> shown_path("/zarr/tWXDHLAOqc7V0qRkpdzQyyNBuBF3gqsbBfYFnWfzsuo/zarr.json")
    '/zarr/…/zarr.json'
    """
    return to_printable(_SECRET.sub(_PLACEHOLDER, path), _PATH_CHARACTERS)


class _StandardError(logging.Handler):
    """Writes each line with one call to the current ``sys.stderr``, which notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except (OSError, ValueError):
            self.handleError(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return to_ascii_json(getattr(record, _FIELDS), indent=None)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS)
        token = "" if fields["token"] is None else f" {fields['token']}"
        return (
            f"{fields['time']} {fields['status']} {fields['method']} {fields['path']} "
            f"{fields['bytes']} bytes {1000 * fields['seconds']:.1f} ms{token}"
        )
