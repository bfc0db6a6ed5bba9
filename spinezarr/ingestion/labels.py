"""What is stored of a mask besides its voxels: counts of chunks, and a summary of each label?"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX
from spinezarr.ingestion.voxels.chunks import LabelFacts, LabelInChunk

__all__ = ["LabelSummary", "label_chunks", "label_summaries"]


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """All voxels of one label; the fields are those of a ``VertebraRecord``."""

    voxel_count: int
    centroid_zyx: tuple[float, float, float]
    start_zyx: ShapeZYX
    stop_zyx: ShapeZYX

    def to_record(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


def label_chunks(facts: Iterable[LabelFacts]) -> npt.NDArray[np.uint32]:
    """Tabulate label, chunk index z, y, x and voxel count, ordered by label, then chunk."""
    rows = sorted(
        (label.value, *fact.chunk_zyx, label.voxel_count) for fact in facts for label in fact.labels
    )
    return np.array(rows, np.uint32).reshape(len(rows), 5)


def label_summaries(facts: Iterable[LabelFacts]) -> dict[int, LabelSummary]:
    """Sum up the labels of all chunks by value, in ascending order."""
    by_value: dict[int, list[LabelInChunk]] = {}
    for fact in facts:
        for label in fact.labels:
            by_value.setdefault(label.value, []).append(label)
    return {value: _sum_up(labels) for value, labels in sorted(by_value.items())}


def _sum_up(labels: list[LabelInChunk]) -> LabelSummary:
    count = sum(label.voxel_count for label in labels)
    total = np.sum([label.index_sum_zyx for label in labels], axis=0)
    start = np.min([label.start_zyx for label in labels], axis=0)
    stop = np.max([label.stop_zyx for label in labels], axis=0)
    return LabelSummary(
        count,
        tuple((total / count).tolist()),
        tuple(start.tolist()),
        tuple(stop.tolist()),
    )
