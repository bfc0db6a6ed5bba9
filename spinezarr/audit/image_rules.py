"""Are the values of an image plausible CT numbers? No voxel is read."""

from collections.abc import Iterator
from typing import Final

from spinezarr.audit.finding import Finding
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.severity import Severity

__all__ = ["extreme_values", "image_type", "image_values", "not_finite"]

_MIN_SPAN_HU: Final = 300.0
"""Smallest span of CT numbers from soft tissue to bone.

Pictures with 8 bits span 255, and scaled or standardized images far less. Real CT spans over 2,000.
"""

_AIR_HU: Final = -500.0
"""A CT without lower values shows no air: it is cropped, clipped or shifted. Air is -1000 HU."""

_BONE_HU: Final = 300.0
"""A CT without higher values shows no dense bone: it is clipped or shifted.

The shell of a vertebra has more, even through the blur of a clinical scan.
"""

_TWELVE_BIT_HU: Final = (-1024.0, 3071.0)
"""CT numbers that an ordinary scanner stores: 12 bits, in which 0 means -1024."""

_EXTENDED_HU: Final = (-10240.0, 30710.0)
"""The same 12 bits on an extended scale, in steps of 10 HU, for scans with metal.

With 16 bits, a steel rod has up to 13,568 HU and a titanium rod 8,420 HU. Near metal, streaks are
far below air. Coolens and Childs, Phys Med Biol 48, 1591-1603 (2003); Mullins et al., "Treatment
planning for metals using an extended CT number scale", J Appl Clin Med Phys 17(6), 179-188 (2016).
"""

_ORDINARY_HU: Final = (-1500.0, 4095.0)
"""Range of ordinary CT values; a value beyond it is reported.

Noise, sharp kernels and interpolation slightly exceed 12 bits. TotalSegmentator's example, which is
resampled, ranges from -1207 to 3382 HU.
"""

_MIN_PADDING_HU: Final = -4096.0
"""Values between this and -1500 are padding: -2000, -2048 and -3024 are usual.

After interpolation by splines, values next to padding are lower by a part of the step.
"""

_PADDING: Final = {
    -2000.0: "-2000, with which GE's scanners fill the corners beside the field of view",
    -2048.0: "-2048, the lowest signed 12-bit number, as in LIDC-IDRI",
    -3024.0: "-3024, which is -2000 with an intercept of -1024",
}
"""Origin of each usual padding value (PixelPaddingValue, DICOM PS3.3 C.7.5.1.1.2)."""

_INT16_LOWEST: Final = (-32768.0, -32767.0)
"""Lowest values of int16: with and without the one that has no positive counterpart."""

_SIXTEEN_BITS: Final = 65536.0
"""Number of values of 16 bits. A negative number read as unsigned is larger by this."""


def not_finite(scan: ScanAttributes) -> Iterator[Finding]:
    """Find voxels that are NaN or infinite, because a single one makes a loss NaN."""
    nan, infinite = scan.image_nan_voxels, scan.image_infinite_voxels
    if not nan and not infinite:
        return
    parts = [f"{n} {kind}" for n, kind in ((nan, "NaN"), (infinite, "infinite")) if n]
    counts = " and ".join(parts)
    text = f"voxels of the image that are not numbers: {counts}"
    if scan.image_range_hu is None:
        text = f"no voxel of the image is a finite number: {counts}"
    yield Finding(
        scan.scan_id,
        "not-finite",
        "error",
        text,
        facts={"nan_voxels": nan, "infinite_voxels": infinite},
    )


def image_values(scan: ScanAttributes) -> Iterator[Finding]:
    """Find images whose values are not CT numbers, are shifted, or are clipped."""
    if scan.image_range_hu is None:
        return
    low, high = scan.image_range_hu
    problem: str | None = None
    severity: Severity = "error"
    if low == high:
        problem = "the image is constant"
    elif high - low < _MIN_SPAN_HU:
        kind = "an 8-bit picture" if low >= 0 and high > 1 else "scaled or standardized values"
        problem = f"these are not CT numbers but {kind}"
    elif low >= 0:
        problem = "none is below 0, so the intercept, usually -1024, was not applied"
    elif high < _BONE_HU:
        severity, problem = "warning", "there is no bone, so they are clipped or shifted"
    elif low > _AIR_HU:
        severity, problem = "warning", "there is no air, so they are cropped, clipped or shifted"
    if problem is not None:
        yield Finding(
            scan.scan_id,
            "image-values",
            severity,
            f"values run from {low:g} to {high:g}: {problem}",
            facts={"lowest_hu": low, "highest_hu": high},
        )


def extreme_values(scan: ScanAttributes) -> Iterator[Finding]:
    """Find images whose lowest or highest value exceeds the range of an ordinary CT."""
    if scan.image_range_hu is None:
        return
    low, high = scan.image_range_hu
    for verdict in (_lowest_value_verdict(low, high), _highest_value_verdict(high)):
        if verdict is not None:
            severity, text = verdict
            yield Finding(
                scan.scan_id,
                "extreme-values",
                severity,
                text,
                facts={"lowest_hu": low, "highest_hu": high},
            )


def _lowest_value_verdict(low: float, high: float) -> tuple[Severity, str] | None:
    """Return severity and text for a low lowest value; no matter is below air (-1000 HU)."""
    if low >= _ORDINARY_HU[0]:
        return None
    if low in _PADDING:
        return "info", f"the lowest value is padding: {_PADDING[low]}"
    if low >= _MIN_PADDING_HU:
        return "info", f"the lowest value is {low:g}: probably padding that was interpolated"
    if low in _INT16_LOWEST:
        return "warning", (
            f"the lowest value is {low:g}, the lowest 16-bit number: padding, or a fill value of "
            "resampling"
        )
    if low >= _EXTENDED_HU[0] and high > _ORDINARY_HU[1]:
        return "warning", (
            f"the lowest value is {low:g}, which is no CT number, unless streaks next to metal are "
            "stored on an extended scale"
        )
    usual_range = "{:g} to {:g}".format(*_TWELVE_BIT_HU)
    return "error", (
        f"the lowest value is {low:g}, which is no CT number: these run from {usual_range} HU"
    )


def _highest_value_verdict(high: float) -> tuple[Severity, str] | None:
    """Return severity and text for a high highest value; metal is brighter than any bone."""
    if high <= _ORDINARY_HU[1]:
        return None
    if high <= _EXTENDED_HU[1]:
        return "info", f"the highest value is {high:g}: metal, on an extended scale"
    signed = high - _SIXTEEN_BITS
    if high >= _SIXTEEN_BITS:
        return "error", (
            f"the highest value is {high:g}, which is no CT number: these have at most 16 bits"
        )
    if signed >= _MIN_PADDING_HU:
        return "error", (
            f"the highest value is {high:g}, which is {signed:g} read as an unsigned number"
        )
    return "warning", (f"the highest value is {high:g}; extended scales end at {_EXTENDED_HU[1]:g}")


def image_type(scan: ScanAttributes) -> Iterator[Finding]:
    """Find images that int16 cannot hold: rescaled, resampled, or damaged by a fill value."""
    if scan.image_stored_dtype == scan.image_dtype == "int16":
        return
    storage: str = scan.image_stored_dtype
    if scan.image_scaling is not None:
        slope, intercept = scan.image_scaling
        storage += f" with a slope of {slope:g} and an intercept of {intercept:g}"
    yield Finding(
        scan.scan_id,
        "image-type",
        "info",
        f"the image is stored as {storage}: int16 cannot hold its values",
        facts={"image_dtype": scan.image_dtype, "image_stored_dtype": scan.image_stored_dtype},
    )
