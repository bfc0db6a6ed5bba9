"""How much may come from a server, and how long it may take."""

from typing import Final

__all__ = ["METADATA_BYTES"]

METADATA_BYTES: Final = 64 << 20
"""Largest object that is read whole before anything is known of it, in bytes."""
