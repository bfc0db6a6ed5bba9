"""How are warnings and log records of Python printed?

They are printed on standard error, as errors are. The console is imported when the first one is
printed.
"""

import logging
import warnings
from typing import TextIO

__all__ = ["show_warnings_and_logs"]


def show_warnings_and_logs() -> None:
    """Print warnings and log records of Python on standard error, as errors are printed."""

    def show(  # noqa: PLR0917  signature of Python
        message: Warning | str,
        category: type[Warning],
        filename: str,  # noqa: ARG001
        lineno: int,  # noqa: ARG001
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        from spinezarr.cli.console import ERR, StyledText
        from spinezarr.redaction import redact_urls_in

        text = redact_urls_in(str(message))
        ERR.say(StyledText(f"{category.__name__}:", "bold yellow"), " ", text)

    warnings.showwarning = show
    logging.lastResort = _LogHandler(logging.WARNING)


class _LogHandler(logging.Handler):
    """Prints log records that no other handler prints, as ``logging.lastResort`` does."""

    def emit(self, record: logging.LogRecord) -> None:
        from spinezarr.cli.console import ERR
        from spinezarr.redaction import redact_urls_in

        ERR.say(f"{record.name}: {redact_urls_in(record.getMessage())}")
