"""Every error spinezarr raises on purpose: one family, each also a builtin.

A message names the file or scan, what was found, what was expected and the next step.
"""

import re
from typing import Final

from spinezarr.redaction import redact_urls_in
from spinezarr.text import MultilineText

__all__ = [
    "CardError",
    "CatalogError",
    "CorruptStoreError",
    "FormatError",
    "GridMismatchError",
    "LabelError",
    "LostClusterError",
    "LostLockError",
    "ReadOnlyStoreError",
    "RecipeError",
    "RecipeLimitError",
    "ScanChangedError",
    "ScanRewrittenError",
    "SpinezarrError",
    "StoreBusyError",
    "StoreNotFoundError",
    "UnknownScanError",
    "UsageError",
]


_END_OF_LINE: Final = re.compile(r"\s*[\n\r]\s*")


class SpinezarrError(Exception):
    """Base class: ``except SpinezarrError`` catches all of ours and none of our bugs.

    Whoever prints it, a message is fit to print: it holds names of strangers.

    Parameters
    ----------
    message
        One line, or :class:`~spinezarr.text.MultilineText`.
    *more
        What a subclass takes besides.
    """

    def __init__(self, message: str = "", *more: object) -> None:
        lines = message.split("\n") if isinstance(message, MultilineText) else [message]
        # Other packages' messages have several lines, in the midst of one of ours.
        shown = (redact_urls_in(_END_OF_LINE.sub(" ", line)) for line in lines)
        super().__init__(MultilineText(*shown), *more)


class UsageError(SpinezarrError, ValueError):
    """An argument, option or folder that cannot be used as asked."""


class RecipeError(UsageError):
    """A recipe file that does not load; the message points at the key and its line."""


class RecipeLimitError(RecipeError):
    """A recipe that asks for more time or text than any dataset needs; names what does."""


class CardError(UsageError):
    """A card file that does not load, or a dataset that has none."""


class CatalogError(UsageError):
    """A catalog file that does not load, or a name that is not in it."""


class FormatError(SpinezarrError, ValueError):
    """A source file that cannot be read as what it is taken for: wrong kind, broken, cut short."""


class GridMismatchError(SpinezarrError, ValueError):
    """An image and a mask that do not lie on the same physical voxel grid."""


class LabelError(SpinezarrError, ValueError):
    """A mask whose values are not labels of the recipe's scheme."""


class StoreNotFoundError(SpinezarrError, FileNotFoundError):
    """No spinezarr store at a path, URL or catalog name."""

    def __str__(self) -> str:
        return str(self.args[0])


class ReadOnlyStoreError(SpinezarrError, OSError):
    """A store that can be read and not written."""


class StoreBusyError(UsageError):
    """A store that another process is writing."""


class LostLockError(SpinezarrError, OSError):
    """A store that another process has taken over, because this one gave no sign of life."""


class LostClusterError(SpinezarrError, ConnectionError):
    """A Dask cluster that does not answer any more."""


class UnknownScanError(SpinezarrError, KeyError):
    """A scan id that the store does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])


class ScanChangedError(SpinezarrError, RuntimeError):
    """A stored scan that is another version than the one a session knows."""

    def __init__(self, message: str, scan_id: str = "") -> None:
        super().__init__(message, scan_id)
        self.scan_id = scan_id

    def __str__(self) -> str:
        return str(self.args[0])


class ScanRewrittenError(ScanChangedError):
    """A scan that was written again with the same voxels: whoever opens it again can go on."""


class CorruptStoreError(SpinezarrError, OSError):
    """Stored bytes that are missing, short or fail their checksum; never returned as data."""
