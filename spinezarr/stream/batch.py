"""What does iteration over a stream return?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The patches or slices of one batch, and where each of them lies.

    Axes after the first are those of :attr:`dims`: ``(z, y, x)`` for patches. Slices have two of
    these, e.g. ``(z, y)`` for sagittal ones, after ``slice`` if neighbors were requested. Voxels
    are those of the scan, or of the scan resampled to the requested spacing.
    """

    image: npt.NDArray[Any]
    """``(n, ...)`` CT numbers in HU; int16 unless a scan needs a wider type."""
    label: npt.NDArray[np.uint8] | None
    """``(n, ...)`` label values of :mod:`spinezarr.vertebrae`; None if none were requested.

    A label never has the axis ``slice``. For slices with neighbors, it belongs to the middle slice.
    """
    dims: tuple[str, ...]
    """Names of the axes of the image after the first."""
    scan_id: tuple[str, ...]
    """Scan of each patch."""
    start_zyx: npt.NDArray[np.int64]
    """``(n, 3)`` first voxel of the patch, (z, y, x); negative where the patch is padded.

    For slices with neighbors, it is the first voxel of the middle slice.
    """
    padding_zyx: npt.NDArray[np.int64]
    """``(n, 3, 2)`` number of voxels added before and after the volume along z, y and x.

    It is 0 for patches inside the volume. Added voxels are -1024 HU (air) in the image and
    background in the label.
    """
    affine: npt.NDArray[np.float64]
    """``(n, 4, 4)`` maps a voxel ``(x, y, z, 1)`` of the patch to RAS+ in mm."""
    spacing_zyx_mm: npt.NDArray[np.float64]
    """``(n, 3)`` distance in mm between neighboring voxels of the patch, (z, y, x)."""
    vertebra: tuple[str | None, ...]
    """Vertebra that each patch was drawn for; None for a uniform draw."""
    index: npt.NDArray[np.int64]
    """``(n,)`` number of each patch in its epoch."""
    masks: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """``(n, ...)`` further masks that were requested, by name; their axes are those of the label.

    The values are those of the mask's own scheme.
    """

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.scan_id)

    def part(self, first: int, last: int) -> "Batch":
        """Return the patches ``first <= i < last`` as a batch whose arrays are views."""
        names = ("image", "start_zyx", "padding_zyx", "affine", "spacing_zyx_mm", "index")
        return replace(
            self,
            label=None if self.label is None else self.label[first:last],
            masks={name: mask[first:last] for name, mask in self.masks.items()},
            scan_id=self.scan_id[first:last],
            vertebra=self.vertebra[first:last],
            **{name: getattr(self, name)[first:last] for name in names},
        )
