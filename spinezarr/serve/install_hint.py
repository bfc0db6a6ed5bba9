"""What serving needs that is not always installed."""

from typing import Final

__all__ = ["INSTALL"]

INSTALL: Final = "Serving needs more packages: pip install 'spinezarr[serve]'."
