"""How is a scan derived from another: which spacing, part and values does it get?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from spinezarr.errors import UsageError
from spinezarr.stream.spacing import TargetZYX, target_spacing

__all__ = ["LARGEST_MARGIN_MM", "Crop", "Derivation", "MaskInterpolation"]

Crop = Literal["spine"]
"""Part of a scan that is kept: the box of its vertebrae."""
MaskInterpolation = Literal["nearest", "linear"]
"""How masks are sampled: nearest voxel, or the label with the largest linear weight."""
LARGEST_MARGIN_MM: Final = 1e6
"""Largest margin in mm, which is beyond any scan."""
LARGEST_HU: Final = 1e6
"""Largest HU of a window, in either direction; metal has some 30,000."""
DEFAULT_MARGIN_MM: Final = 10.0
"""Margin around the spine in mm, if the user gives none."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """How each scan of a derived store is made from its source."""

    target_zyx_mm: TargetZYX | None = None
    """Spacing in mm along z, y and x; None keeps that of the source."""
    image_filter: Literal["gaussian"] | None = None
    """Filter against aliasing, along axes that get fewer voxels; None without one."""
    mask_interpolation: MaskInterpolation | None = None
    """How masks are sampled; None if the spacing is kept."""
    crop: Crop | None = None
    """Part of the scan that is kept; None for all of it."""
    margin_mm: float | None = None
    """Margin around this part in mm; None without :attr:`crop`."""
    window_hu: tuple[float, float] | None = None
    """Values in HU that become 0 and 255 of uint8; None keeps the type of the image."""

    @classmethod
    def of(
        cls,
        *,
        spacing_mm: object,
        antialias: bool,
        mask_interpolation: str | None,
        crop: str | None,
        margin_mm: float | None,
        intensity: Sequence[float] | None,
    ) -> "Derivation":
        """Check the user's options; see :meth:`spinezarr.Store.derive`.

        Raises
        ------
        UsageError
            If a value is not allowed, or an option needs another one.
        """
        target = None
        if spacing_mm is not None:
            z, y, x = (
                None if mm is None else float(mm) for mm in target_spacing("zyx", spacing_mm)
            )
            target = (z, y, x)
        interpolation = mask_interpolation or "nearest"
        if interpolation not in get_args(MaskInterpolation):
            raise UsageError(
                f"mask interpolation {interpolation!r}: must be "
                f"{' or '.join(get_args(MaskInterpolation))}."
            )
        if target is None and mask_interpolation is not None:
            raise UsageError("--mask-interpolation needs --spacing-mm.")
        if target is None and not antialias:
            raise UsageError("--no-antialias needs --spacing-mm.")
        if crop is not None and crop not in get_args(Crop):
            raise UsageError(f"crop {crop!r}: must be {' or '.join(get_args(Crop))}.")
        if crop is None and margin_mm is not None:
            raise UsageError("--margin-mm needs --crop.")
        margin = DEFAULT_MARGIN_MM if margin_mm is None else float(margin_mm)
        if not 0 <= margin <= LARGEST_MARGIN_MM:
            raise UsageError(f"margin {margin_mm} mm: must be from 0 to {LARGEST_MARGIN_MM:g}.")
        return cls(
            target_zyx_mm=target,
            image_filter="gaussian" if target is not None and antialias else None,
            mask_interpolation=None if target is None else _interpolation(interpolation),
            crop=None if crop is None else "spine",
            margin_mm=None if crop is None else margin,
            window_hu=None if intensity is None else _window(intensity),
        )

    @property
    def keeps_voxels(self) -> bool:
        """Whether image and masks are those of the source, voxel for voxel."""
        return self == Derivation()

    def describe(self) -> str:
        """Return the derivation as a text for people.

        Examples
        --------
        >>> Derivation().describe()
        'copied voxel for voxel'
        >>> Derivation(crop="spine", margin_mm=20.0).describe()
        'cropped to the spine with a margin of 20 mm'
        """
        parts = []
        if self.target_zyx_mm is not None:
            spacing = " x ".join("?" if mm is None else f"{mm:.9g}" for mm in self.target_zyx_mm)
            method = "linear after a Gaussian filter" if self.image_filter else "linear"
            labels = "nearest" if self.mask_interpolation == "nearest" else "linear by label"
            parts.append(f"resampled to {spacing} mm (z, y, x), image {method}, masks {labels}")
        if self.crop is not None:
            parts.append(f"cropped to the spine with a margin of {self.margin_mm:.9g} mm")
        if self.window_hu is not None:
            low, high = self.window_hu
            parts.append(f"image as uint8 from {low:.9g} to {high:.9g} HU")
        return "; ".join(parts) or "copied voxel for voxel"


def _interpolation(name: str) -> MaskInterpolation:
    return "linear" if name == "linear" else "nearest"


def _window(values: Sequence[float]) -> tuple[float, float]:
    """Check the lowest and the highest value of a window."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 2 or not -LARGEST_HU <= numbers[0] < numbers[1] <= LARGEST_HU:  # noqa: PLR2004
        raise UsageError(
            f"intensity {numbers}: give the HU of 0 and the larger HU of 255, e.g. -200 and 1000."
        )
    return (numbers[0], numbers[1])
