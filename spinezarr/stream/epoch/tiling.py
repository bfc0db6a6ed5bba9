"""Where do patches lie that cover a volume?

Along each axis the patches are spread evenly from the first voxel to the last, as in nnU-Net [1]_.
Their number is the smallest that satisfies the minimum overlap. No patch leaves the volume, so
patches may overlap more than that. If the volume is smaller than the patch along an axis, there is
one patch along it, padded evenly on both sides.

References
----------
.. [1] Isensee et al., nnU-Net, Nature Methods 18, 203-211 (2021),
   https://doi.org/10.1038/s41592-020-01008-z; ``inference/sliding_window_prediction.py`` of
   nnunetv2.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeZYX

__all__ = ["Tiling"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Positions of patches that cover a volume: all combinations of starts along z, y and x.

    Examples
    --------
    >>> Tiling.cover((10, 8, 3), (4, 4, 4), (2, 0, 0)).starts_zyx
    ((0, 2, 4, 6), (0, 4), (0,))
    """

    shape_zyx: ShapeZYX
    """Shape of the volume in voxels, (z, y, x)."""
    size_zyx: ShapeZYX
    """Shape of a patch in voxels, (z, y, x)."""
    starts_zyx: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """First voxels of the patches along z, y and x; negative where a patch is padded."""

    @classmethod
    def cover(cls, shape_zyx: ShapeZYX, size_zyx: ShapeZYX, overlap_zyx: ShapeZYX) -> Self:
        """Cover a volume with patches that overlap by at least ``overlap_zyx`` voxels.

        Raises
        ------
        UsageError
            If a side of the patch is less than 1, or an overlap is not smaller than its side.
        """
        for size, overlap in zip(size_zyx, overlap_zyx, strict=True):
            if size < 1:
                raise UsageError(f"patch size {size_zyx} (z, y, x): every side must be at least 1.")
            if not 0 <= overlap < size:
                raise UsageError(
                    f"overlap {overlap_zyx} (z, y, x): must be at least 0 and smaller than the "
                    f"patch, {size_zyx}."
                )
        z, y, x = map(_starts, shape_zyx, size_zyx, overlap_zyx)
        return cls(shape_zyx, size_zyx, (z, y, x))

    def __len__(self) -> int:
        """Return the number of patches."""
        z, y, x = (len(starts) for starts in self.starts_zyx)
        return z * y * x

    def start(self, index: int) -> ShapeZYX:
        """Return the first voxel of patch ``index``. Patches are ordered by z, then y, then x."""
        lengths = [len(starts) for starts in self.starts_zyx]
        positions = np.unravel_index(index, lengths)
        z, y, x = (s[int(i)] for s, i in zip(self.starts_zyx, positions, strict=True))
        return (z, y, x)


def _starts(n: int, size: int, overlap: int) -> tuple[int, ...]:
    """Return the first voxels of patches along an axis of ``n`` voxels."""
    if n <= size:
        return (-((size - n) // 2),)
    steps = -(-(n - size) // (size - overlap))
    return tuple(i * (n - size) // steps for i in range(steps + 1))
