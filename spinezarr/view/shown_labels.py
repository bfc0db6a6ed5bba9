"""Which name and color has each value of a mask, wherever a mask is shown?

The values of ``label`` are vertebrae, and others that the recipe of the dataset may name. A further
mask has its own names. A vertebra has the same color in all masks, whatever its value is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL
from spinezarr.store.records import VertebraRecord
from spinezarr.vertebrae import (
    ANATOMICAL_ORDER,
    VALUE_OF_NAME,
    Color,
    label_color,
    named_color,
    vertebra_of,
)

__all__ = ["ShownLabel", "shown_labels"]


@dataclass(frozen=True, slots=True)
class ShownLabel:
    """A value of a mask, as pages and pictures show it."""

    value: int
    name: str
    """Name for people, with spaces."""
    color: Color
    voxel_count: int
    record: VertebraRecord | None
    """Centroid and box of its voxels; None if the store does not have them."""


def shown_labels(facts: ScanAttributes, mask: str = LABEL) -> list[ShownLabel]:
    """Return the values of a mask except background: vertebrae from head to tail, then others.

    Parameters
    ----------
    facts
        Attributes of the scan, which has this mask.
    mask
        Name of the mask.
    """
    labels = _labels_of_label(facts) if mask == LABEL else _labels_of_mask(facts, mask)
    return sorted(labels, key=_rank)


def _rank(label: ShownLabel) -> tuple[int, int]:
    vertebra = vertebra_of(label.name)
    level = len(ANATOMICAL_ORDER) if vertebra is None else ANATOMICAL_ORDER.index(vertebra)
    return level, label.value


def _labels_of_label(facts: ScanAttributes) -> Iterator[ShownLabel]:
    for name, record in facts.vertebrae.items():
        value = VALUE_OF_NAME[name]
        yield ShownLabel(value, name, label_color(value), record.voxel_count, record)
    for text, count in facts.other_labels.items():
        value = int(text)
        if value and count:
            name = _shown_name(value, facts.structures.get(text, ""))
            yield ShownLabel(value, name, label_color(value), count, None)


def _labels_of_mask(facts: ScanAttributes, mask: str) -> Iterator[ShownLabel]:
    for text, record in facts.masks[mask].labels.items():
        value = int(text)
        name, color = _shown_name(value, record.name), named_color(record.name, value)
        yield ShownLabel(value, name, color, record.voxel_count, record)


def _shown_name(value: int, name: str) -> str:
    return name.replace("_", " ") or f"value {value}"
