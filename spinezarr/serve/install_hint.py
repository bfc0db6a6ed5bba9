"""What is the advice if the packages for serving are missing?"""

from typing import Final

__all__ = ["INSTALL"]

INSTALL: Final = "Serving needs more packages: pip install 'spinezarr[serve]'."
