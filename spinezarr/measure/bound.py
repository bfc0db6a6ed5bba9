"""What bounds a rate: the processors, the disk, the link, or waiting for answers?"""

from dataclasses import dataclass
from typing import Final, Literal

from spinezarr.measure.resource_use import ResourceUse

__all__ = ["Bound", "Limit", "find_bound"]

Limit = Literal["processors", "disk", "link", "answers", "nothing"]
"""``"answers"``: requests wait for a server, and neither link nor processors are full.
``"nothing"``: nothing is full, so one thread or another program is waited for."""
_FULL: Final = 0.75
"""Share above which something counts as full. Threads start and end, so it is never all."""
_BUSY: Final = 0.9
"""Share of busy cores of the machine above which the processors are full."""
_FROM_DISK: Final = 0.05
"""Share of the disk's own speed above which reads from the disk matter."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What bounds a rate, with the figures that say so."""

    limit: Limit
    core_share: float
    """Time of cores that worked for this process, divided by that of the cores it may use."""
    busy_share: float | None
    """Share of the cores that worked for any program; None if it is not known."""
    bytes_per_s: float | None
    """Bytes a second from the disk or over the link; None if they are not counted."""
    bytes_share: float | None
    """The same, divided by the speed of the disk or of the link alone."""


def find_bound(
    use: ResourceUse, *, cores: int, is_remote: bool, alone_bytes_per_s: float | None
) -> Bound:
    """Return what bounds a rate.

    Parameters
    ----------
    use
        What the process used while the rate was measured.
    cores
        Number of cores that it may use.
    is_remote
        Whether the bytes come over a link, and not from a disk.
    alone_bytes_per_s
        Bytes a second that the disk or the link gave when nothing was decoded; None if unknown.

    Examples
    --------
    Two cores worked for 1.9 of 2 s each, and little came from the disk:

    >>> use = ResourceUse(2.0, 3.8, None, 1_000_000, 0)
    >>> find_bound(use, cores=2, is_remote=False, alone_bytes_per_s=5e8).limit
    'processors'
    """
    n_bytes = (use.link_bytes or None) if is_remote else use.disk_bytes
    bytes_per_s = None if n_bytes is None else n_bytes / use.seconds
    bytes_share = None
    if bytes_per_s is not None and alone_bytes_per_s:
        bytes_share = bytes_per_s / alone_bytes_per_s
    core_share = use.core_s / (use.seconds * cores)
    busy_share = None
    if use.idle_core_s is not None:
        busy_share = min(1.0, max(core_share, 1 - use.idle_core_s / (use.seconds * cores)))
    limit = _limit(core_share, busy_share or 0.0, bytes_share or 0.0, is_remote=is_remote)
    return Bound(limit, core_share, busy_share, bytes_per_s, bytes_share)


def _limit(core_share: float, busy_share: float, bytes_share: float, *, is_remote: bool) -> Limit:
    carrier: Limit = "link" if is_remote else "disk"
    if bytes_share >= _FULL and bytes_share >= core_share:
        return carrier
    if core_share >= _FULL or busy_share >= _BUSY:
        return "processors"
    if is_remote:
        return "answers"
    # A disk that is not full still makes threads wait for single reads.
    return "disk" if bytes_share >= _FROM_DISK else "nothing"
