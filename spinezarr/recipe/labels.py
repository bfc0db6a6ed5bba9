"""What do the values of the masks of a dataset mean, now and in its earlier versions?"""

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import Field

from spinezarr.errors import LabelError
from spinezarr.recipe.layout import LabelText, MaskValueText, StructureText, label_value
from spinezarr.strict_model import StrictModel
from spinezarr.vertebrae import (
    ANATOMICAL_ORDER,
    BACKGROUND,
    NAME_OF_VALUE,
    LabelState,
    levels_between,
)

__all__ = ["EarlierValues", "Labels"]

_LARGEST_GAP: Final = 1
"""Number of levels that may be missing between two vertebrae: some people lack T12 or L5."""


class EarlierValues(StrictModel):
    """Values that the masks had in earlier versions of the dataset.

    The files of all versions have the same names, so only the values of a mask tell its version. A
    mask fits a version if that names all of its values, if it shows one of the levels that every
    mask of the dataset shows, and if at most one level is missing between two vertebrae.
    """

    values: Annotated[dict[MaskValueText, LabelText], Field(min_length=1)]
    """Vertebra or present value for each earlier value."""
    shown: Annotated[tuple[LabelText, ...], Field(min_length=1)]
    """Levels of which every mask of the dataset shows at least one."""
    instead_of_background: MaskValueText | None = None
    """Earlier value of voxels that were not annotated. A mask with it has no voxels of value 0."""

    def stored_values(self, found: Collection[int]) -> tuple[tuple[int, int], ...]:
        """Return pairs of value in the file and stored value; empty for a mask of present values.

        Parameters
        ----------
        found
            All values of a mask, 0 included.

        Raises
        ------
        LabelError
            If the values fit both versions, or neither.
        """
        labels = set(found) - {BACKGROUND}
        earlier = {int(value): label_value(label) for value, label in self.values.items()}
        shown = {label_value(label) for label in self.shown}
        if shown.isdisjoint(earlier.get(value) for value in labels):
            return ()  # An earlier mask would show one of these levels.
        now = _misfit(labels, shown)
        then = self._earlier_misfit(found, earlier, shown)
        if bool(now) != bool(then):
            return () if then else tuple(sorted(earlier.items()))
        values = ", ".join(map(str, sorted(labels)))
        if now:
            raise LabelError(
                f"the values {values} are neither those of the dataset ({now}) nor those of its "
                f"earlier versions ({then}). Download the mask of one released version."
            )
        raise LabelError(
            f"the values {values} may be those of the dataset and those of its earlier versions, "
            "which mean other vertebrae. Download the mask of the present version."
        )

    def _earlier_misfit(
        self, found: Collection[int], earlier: Mapping[int, int], shown: Collection[int]
    ) -> str:
        """Return why the values cannot be earlier ones; empty if they can."""
        labels = set(found) - {BACKGROUND}
        unnamed = sorted(labels - earlier.keys())
        if unnamed:
            return f"they do not name {', '.join(map(str, unnamed))}"
        if self.instead_of_background is not None:
            value = int(self.instead_of_background)
            if value in found and BACKGROUND in found:
                return f"no mask has both 0 and {value}, which marks what was not annotated"
        return _misfit([earlier[value] for value in labels], shown)


def _misfit(values: Iterable[int], shown: Collection[int]) -> str:
    """Return why the labels of a mask cannot have these meanings; empty if they can."""
    labels = set(values)
    if labels.isdisjoint(shown):
        return f"none is {', '.join(map(_name, sorted(shown)))}"
    levels = [NAME_OF_VALUE[value] for value in labels if value in NAME_OF_VALUE]
    for upper, lower in pairwise(sorted(levels, key=ANATOMICAL_ORDER.index)):
        missing = levels_between(upper, lower)
        if len(missing) > _LARGEST_GAP:
            return f"{missing[0]} to {missing[-1]} would be missing between {upper} and {lower}"
    return ""


def _name(value: int) -> str:
    return NAME_OF_VALUE.get(value, str(value))


class Labels(StrictModel):
    """Meaning of the values of the masks."""

    scheme: Literal["canonical"]
    """Label scheme. ``canonical`` has the values of :mod:`spinezarr.vertebrae`."""
    state: LabelState
    """Whether vertebrae cut by the end of the volume are annotated."""
    structures: dict[StructureText, str] = Field(default_factory=dict)
    """Names of values that are no vertebrae. ``ignore`` marks voxels that were not annotated."""
    earlier: EarlierValues | None = None
    """Other values of the same files in earlier versions of the dataset."""
