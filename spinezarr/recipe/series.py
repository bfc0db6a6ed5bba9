"""Which CT series of a DICOM folder become scans, and which names do templates get from them?"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from spinezarr.recipe.bounded_regex import compile_bounded
from spinezarr.recipe.pattern import PathPattern, PatternText, Texts, as_tuple
from spinezarr.strict_model import StrictModel

__all__ = ["SERIES_NAMES", "SeriesInfo", "SeriesSelection"]

SERIES_NAMES: Final = frozenset(
    {"series_number", "series_uid", "study_uid", "kernel", "slice_thickness_mm"}
)
"""Names that templates of a layout with ``series`` may use."""
_ABSENT: Final = "none"
"""Value of a name if the header of a series does not state it."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.+-]+")
"""Characters of header texts that a scan id should not have."""


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """The header fields of a CT series that a recipe can use."""

    number: int | None
    uid: str
    study_uid: str
    kernel: tuple[str, ...]
    description: str
    """Free text, which is compared with patterns but neither shown nor stored."""
    image_type: tuple[str, ...]
    slice_thickness_mm: float | None
    slices: int

    def texts(self) -> dict[str, str]:
        """Return the values of :data:`SERIES_NAMES`, each of which can be part of a scan id.

        Examples
        --------
        >>> SeriesInfo(2, "1.2.3", "1.2", ("Br38f", "3"), "", (), 1.5, 90).texts()["kernel"]
        'Br38f-3'
        """
        thickness = self.slice_thickness_mm
        return {
            "series_number": _ABSENT if self.number is None else str(self.number),
            "series_uid": _as_name(self.uid),
            "study_uid": _as_name(self.study_uid),
            "kernel": _as_name("-".join(self.kernel)),
            "slice_thickness_mm": _ABSENT if thickness is None else f"{thickness:g}",
        }


def _as_name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-") or _ABSENT


_Numbers = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
_Patterns = Annotated[tuple[PatternText, ...], BeforeValidator(as_tuple)]


class SeriesSelection(StrictModel):
    """Selects the CT series of a folder that become scans. A series must match all given keys.

    Examples
    --------
    >>> thin = SeriesSelection(kernel=("B6*", "BONE*"), slice_thickness_mm=(0, 1.5))
    >>> bone = SeriesInfo(3, "1.2", "1", ("B60f",), "", ("ORIGINAL",), 1.0, 400)
    >>> thin.selects(bone)
    True
    """

    number: _Numbers = ()
    """Allowed SeriesNumbers."""
    uid: Texts = ()
    """Allowed SeriesInstanceUIDs."""
    kernel: _Patterns = ()
    """Patterns of ConvolutionKernel. If it has several values, they are joined by ``-``."""
    description: _Patterns = ()
    """Patterns of SeriesDescription."""
    image_type: Texts = ()
    """Words that ImageType must all contain, such as ``ORIGINAL`` and ``AXIAL``."""
    slice_thickness_mm: tuple[float, float] | None = None
    """Smallest and largest SliceThickness in mm."""
    min_slices: Annotated[int, Field(ge=2)] = 2
    """Smallest number of slices. Scouts and contrast monitoring are short series."""

    @model_validator(mode="after")
    def _ascending_range(self) -> Self:
        if self.slice_thickness_mm is not None:
            low, high = self.slice_thickness_mm
            if not 0 <= low <= high:
                raise ValueError(
                    f"'slice_thickness_mm' {[low, high]} is no range; give the smallest and the "
                    "largest"
                )
        return self

    def selects(self, series: SeriesInfo) -> bool:
        """Whether a series becomes a scan."""
        return self.is_long_enough(series) and all(
            (
                not self.number or series.number in self.number,
                not self.uid or series.uid in self.uid,
                not self.kernel or _fits(self.kernel, "-".join(series.kernel)),
                not self.description or _fits(self.description, series.description),
                set(self.image_type) <= set(series.image_type),
                self._is_in_range(series.slice_thickness_mm),
            )
        )

    def is_long_enough(self, series: SeriesInfo) -> bool:
        """Whether a series has at least :attr:`min_slices` slices."""
        return series.slices >= self.min_slices

    def _is_in_range(self, thickness_mm: float | None) -> bool:
        if self.slice_thickness_mm is None:
            return True
        low, high = self.slice_thickness_mm
        return thickness_mm is not None and low <= thickness_mm <= high


def _fits(patterns: Iterable[str], text: str) -> bool:
    """Whether a pattern matches a header text, ignoring case. A slash counts as a blank."""
    shown = text.replace("/", " ")
    return any(
        compile_bounded(PathPattern(pattern).regex.text, ignore_case=True).fullmatch(shown)
        for pattern in patterns
    )
