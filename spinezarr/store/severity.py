"""How bad is a finding of an audit?"""

from typing import Final, Literal, get_args

__all__ = ["SEVERITIES", "Severity"]

Severity = Literal["info", "warning", "error"]
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
"""Severities in ascending order: an ``error`` makes data wrong."""
