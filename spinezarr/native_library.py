"""Where is the library that the C code of this package is compiled into?"""

import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["NO_KERNEL", "is_turned_off", "library_path"]

NO_KERNEL: Final = "SPINEZARR_NO_KERNEL"
"""Environment variable that disables the C code."""


def is_turned_off() -> bool:
    """Return whether the user has disabled the C code."""
    return bool(os.environ.get(NO_KERNEL))


def library_path() -> Path:
    """Return the path of the library, which need not exist."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return Path(__file__).parent / "stream" / "read" / f"libkernel{suffix}"
