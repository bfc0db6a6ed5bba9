"""Which patch should be read?"""

from dataclasses import dataclass

from spinezarr.geometry import Box

__all__ = ["PatchRequest"]


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """One patch to read: its scan, and its box of voxels."""

    index: int
    """Number of the sample in its epoch."""
    scan_id: str
    """The scan that the patch lies in."""
    box: Box
    """Voxels of the patch. It leaves the volume where the volume is smaller than the patch.

    If patches are resampled, these are voxels of the resampled scan.
    """
    vertebra: str | None
    """The vertebra that the patch was drawn for; None for a uniform draw."""
