"""One patch that is to be read: its scan, and the box of voxels."""

from dataclasses import dataclass

from spinezarr.geometry import Box

__all__ = ["PatchRequest"]


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """One patch to read."""

    index: int
    """Number of the sample in its epoch."""
    scan_id: str
    box: Box
    """Voxels of the patch; leaves the volume where that is smaller than the patch.

    They are those of the scan resampled to the sampler's spacing, if it has one.
    """
    vertebra: str | None
    """The vertebra it was drawn for; None for a uniform draw."""
