"""What did a copy do, and how does it report what it is going to do?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from spinezarr.copying.plan import ScanCounts

__all__ = ["CopyOutcome", "CopyWork", "OnWork"]


@dataclass(frozen=True, slots=True)
class CopyWork:
    """What has to be copied, which is known before anything is written."""

    all: ScanCounts
    """All scans of the copy."""
    to_copy: ScanCounts
    """Scans that are not complete in the target, with the files that it lacks."""
    to_compare: int
    """Number of files of the right size in the target whose content has to be compared."""
    limit: str
    """A sentence on the number of objects that the target allows."""


OnWork = Callable[[CopyWork], None]
"""Called once, before anything is written. It raises an exception to stop the copy."""


@dataclass(frozen=True, slots=True)
class CopyOutcome:
    """What a copy did."""

    copied: tuple[str, ...] = ()
    """Ids of the scans of which files were written, in the order of the plan."""
    kept: tuple[str, ...] = ()
    """Ids of the scans that the target had already."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why scans could not be copied, by scan id."""
    objects: int = 0
    """Number of files of scans that were written."""
    size_bytes: int = 0
    """Size of these files."""
