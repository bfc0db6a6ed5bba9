"""Which errors does spinezarr raise on purpose?

All of them derive from :class:`SpinezarrError`, and each also from a builtin exception. A message
names the file or scan, what was found, what was expected and the next step.
"""

import re
from typing import Final

from spinezarr.redaction import redact_urls_in
from spinezarr.text import MultilineText

__all__ = [
    "CardError",
    "CatalogError",
    "CorruptStoreError",
    "DamagedMetadataError",
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
    "UnknownMaskError",
    "UnknownScanError",
    "UsageError",
]


_END_OF_LINE: Final = re.compile(r"\s*[\n\r]\s*")


class SpinezarrError(Exception):
    """Base class of all errors that spinezarr raises on purpose.

    ``except SpinezarrError`` catches these errors and no programming mistakes. A message may hold
    names from foreign files, so control characters in it are escaped and secrets in URLs are
    removed.

    Parameters
    ----------
    message
        One line, or :class:`~spinezarr.text.MultilineText`.
    *more
        Further arguments of a subclass, kept in ``args``.
    """

    def __init__(self, message: str = "", *more: object) -> None:
        lines = message.split("\n") if isinstance(message, MultilineText) else [message]
        # A message may quote a message of another package, which may have several lines.
        safe_lines = (redact_urls_in(_END_OF_LINE.sub(" ", line)) for line in lines)
        super().__init__(MultilineText(*safe_lines), *more)


class UsageError(SpinezarrError, ValueError):
    """An argument, option or folder cannot be used as requested."""


class RecipeError(UsageError):
    """A recipe file does not load. The message names the key and its line."""


class RecipeLimitError(RecipeError):
    """A recipe needs more time or text than any dataset. The message names the key."""


class CardError(UsageError):
    """A card file does not load, or a dataset has no card."""


class CatalogError(UsageError):
    """A catalog file does not load, or cannot be used."""


class FormatError(SpinezarrError, ValueError):
    """A source file is of another format than expected, damaged or cut short."""


class GridMismatchError(SpinezarrError, ValueError):
    """An image and a mask do not lie on the same physical voxel grid."""


class LabelError(SpinezarrError, ValueError):
    """A mask holds values that are not labels of the scheme of the recipe."""


class StoreNotFoundError(SpinezarrError, FileNotFoundError):
    """There is no spinezarr store at a path, URL or catalog name."""

    def __str__(self) -> str:
        return str(self.args[0])


class ReadOnlyStoreError(SpinezarrError, OSError):
    """A store can be read but not written."""


class StoreBusyError(UsageError):
    """Another process is writing to the store."""


class LostLockError(SpinezarrError, OSError):
    """Another process has taken over the store, because this one did not renew its lock."""


class LostClusterError(SpinezarrError, ConnectionError):
    """A Dask cluster does not answer any more."""


class UnknownScanError(SpinezarrError, KeyError):
    """The store does not hold a scan id."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownMaskError(SpinezarrError, KeyError):
    """A scan has no mask of a name."""

    def __str__(self) -> str:
        return str(self.args[0])


class ScanChangedError(SpinezarrError, RuntimeError):
    """A stored scan is of another version than the one that a session has opened."""

    def __init__(self, message: str, scan_id: str = "") -> None:
        super().__init__(message, scan_id)
        self.scan_id = scan_id

    def __str__(self) -> str:
        return str(self.args[0])


class ScanRewrittenError(ScanChangedError):
    """A scan was written again with the same voxels. A session that reopens it can continue."""


class CorruptStoreError(SpinezarrError, OSError):
    """Stored bytes are missing, too short or fail their checksum. They are not returned as data."""


class DamagedMetadataError(SpinezarrError, ValueError):
    """Stored metadata differ from those that spinezarr writes.

    Parsers raise it. A caller knows the file and raises :class:`CorruptStoreError` with its name.

    Parameters
    ----------
    found
        Short description of what the metadata hold.
    expected
        Description of what they should hold.
    location
        Keys that lead to the value, joined by dots; empty for the whole file.
    """

    def __init__(self, found: str, expected: str, location: str = "") -> None:
        prefix = f"{location}: " if location else ""
        super().__init__(f"{prefix}{found}, expected {expected}")
        self.found = found
        self.expected = expected
        self.location = location

    def __reduce__(self) -> tuple[type["DamagedMetadataError"], tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.location)
