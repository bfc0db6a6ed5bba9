"""A line for each answer, with nothing in it that opens a door.

Tokens and cookies travel in headers, behind ``?`` and, where somebody made a mistake, in a path. Of
headers nothing is written, of a query neither, and of a path no run of characters that is as long
as a token. The guard has taken signatures off the path.
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
_FIELDS: Final = "asked"
_SECRET: Final = re.compile(r"[A-Za-z0-9_~+=%-]{40,}")
"""A token has 43 characters, and a signature too."""
_LEFT_OUT: Final = "…"
_PATH_CHARACTERS: Final = 512
_METHOD_CHARACTERS: Final = 16


class LogForm(StrEnum):
    """How each answer is written."""

    JSON = "json"
    TEXT = "text"
    NONE = "none"


class RequestLog:
    """Writes to standard error, through the logger ``spinezarr.requests``.

    Parameters
    ----------
    form
        JSON: an object a line. Text: for people.
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
            As the client sent them, decoded; without query.
        status, sent_bytes, seconds
            Of the answer.
        token
            Name of the token that was sent; None if there was none.
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
    """Return a path for a log.

    Examples
    --------
    >>> shown_path("/zarr/ctspine1k/scans/1.3.6.1.4.1.9328.50.4.0001/zarr.json")
    '/zarr/ctspine1k/scans/1.3.6.1.4.1.9328.50.4.0001/zarr.json'
    >>> shown_path("/zarr/tWXDHLAOqc7V0qRkpdzQyyNBuBF3gqsbBfYFnWfzsuo/zarr.json")
    '/zarr/…/zarr.json'
    """
    return to_printable(_SECRET.sub(_LEFT_OUT, path), _PATH_CHARACTERS)


class _StandardError(logging.Handler):
    """Writes each line with one call, to what standard error is then: notebooks replace it."""

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
        asked: dict[str, Any] = getattr(record, _FIELDS)
        who = "" if asked["token"] is None else f" {asked['token']}"
        return (
            f"{asked['time']} {asked['status']} {asked['method']} {asked['path']} "
            f"{asked['bytes']} bytes {1000 * asked['seconds']:.1f} ms{who}"
        )
