"""How do the named segments of a segmentation file become one label volume on the image's grid?"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError
from spinezarr.formats.header_text import redact_header_text
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid
from spinezarr.scaling import Scaling
from spinezarr.text import count_noun, to_nfc
from spinezarr.vertebrae import LEVELS

__all__ = ["Mask", "Segmentation", "SegmentedLabels", "name_segments"]

_DTYPE: Final = np.dtype(np.uint8)
_MAX_NAMES: Final = 40
"""Largest number of names of segments in a message. A whole spine has 26 vertebrae."""

_WORDS: Final = frozenset(
    {"vertebra", "vertebrae", "vertebral", "body", "spine", "bone", "disc", "canal", "segment"}
    | {"cervical", "thoracic", "lumbar", *(level.lower() for level in LEVELS)}
)
"""Words of anatomy, which messages may show."""

Mask: TypeAlias = npt.NDArray[np.bool_]


class Segmentation(Protocol):
    """An opened file of named segments, placed on the grid of its image."""

    @property
    def grid(self) -> Grid:
        """Grid of the image, with axes in the order and directions of the file."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each segment, in the order of the file. Names may occur twice."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        ...

    def masks(
        self, thicknesses: Iterable[int], segments: Sequence[int], /
    ) -> Iterator[Iterator[Mask | None]]:
        """Yield the masks of segments, slab by slab.

        Parameters
        ----------
        thicknesses
            Thickness of each slab along k. They add up to the length of the k axis.
        segments
            Positions in :attr:`names`.

        Yields
        ------
        iterator of numpy.ndarray or None
            For each slab, the mask of each segment with axes ``(i, j, k)``, in the order of
            ``segments``. None stands for a mask without a voxel.

        Raises
        ------
        FormatError
            If the file is damaged.
        LabelError
            If a segment is no binary mask.
        """
        ...

    def source_file(self) -> SourceFile:
        """Return size and hash of the file, known after :meth:`masks` was read to its end."""
        ...


def name_segments(names: Sequence[str]) -> str:
    """Return the names of segments for a message. A name that is no anatomy may name a patient.

    Examples
    --------
    >>> name_segments(["L1 vertebra", "vertebrae_L2", "Jane Doe"])
    "'L1 vertebra', 'vertebrae_L2', a text of 8 characters"
    """
    shown = [
        redact_header_text(name, {name} if _is_anatomy(name) else ()) for name in names[:_MAX_NAMES]
    ]
    more = len(names) - _MAX_NAMES
    return f"{', '.join(shown)}{f' and {more} more' if more > 0 else ''}"


def _is_anatomy(name: str) -> bool:
    words = name.replace("_", " ").split()
    return all(word.lower() in _WORDS or word.isdecimal() for word in words)


class SegmentedLabels:
    """The named segments of one file, read as one :class:`spinezarr.formats.volume.Volume`.

    Each voxel of a segment gets the label of its name. If segments overlap, the one that is named
    later wins, and :attr:`overlap_voxels` counts these voxels. Segments without a label are
    background.

    Parameters
    ----------
    segmentation
        Opened file.
    labels
        Pairs of the name of a segment and its label (1 to 255). Later ones overwrite earlier ones.
    path
        Path of the file, for messages.

    Raises
    ------
    LabelError
        If the file has none of the named segments.
    """

    def __init__(
        self, segmentation: Segmentation, labels: Sequence[tuple[str, int]], path: str
    ) -> None:
        names = [to_nfc(name).strip() for name in segmentation.names]
        self._segmentation = segmentation
        self._drawn = [
            (position, label)
            for name, label in labels
            for position, found in enumerate(names)
            if found == to_nfc(name).strip()
        ]
        if not self._drawn:
            raise LabelError(
                f"{path}: holds {count_noun(len(names), 'segment')}, none of which the recipe "
                f"names by 'segments': {name_segments(names)}. Name them there."
            )
        self._unnamed = len(names) - len({position for position, _ in self._drawn})
        self._overlap_voxels: int | None = None

    @property
    def grid(self) -> Grid:
        """Grid of the image, with axes in the order and directions of the file."""
        return self._segmentation.grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the labels: uint8."""
        return _DTYPE

    @property
    def scaling(self) -> Scaling | None:
        """Always None, because labels are not scaled."""
        return None

    def unscaled(self) -> "SegmentedLabels":
        """Return this volume, because labels are not scaled."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, without the names of segments, which may name a patient."""
        if not self._unnamed:
            return self._segmentation.notes
        were = "was" if self._unnamed == 1 else "were"
        return (
            *self._segmentation.notes,
            f"{count_noun(self._unnamed, 'segment')} that the recipe does not name {were} left out",
        )

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the labels in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`."""
        self._overlap_voxels = None
        slab_thicknesses = tuple(thicknesses)
        segments = [position for position, _ in self._drawn]
        overlap_voxels = 0
        slabs = self._segmentation.masks(slab_thicknesses, segments)
        for thickness, masks in zip(slab_thicknesses, slabs, strict=True):
            merged = np.zeros((*self.grid.shape_ijk[:2], thickness), _DTYPE, order="F")
            overlap = np.zeros_like(merged, np.bool_)
            for (_, label), mask in zip(self._drawn, masks, strict=True):
                if mask is None:
                    continue
                overlap |= mask & (merged != 0) & (merged != label)
                merged[mask] = label
            overlap_voxels += int(np.count_nonzero(overlap))
            yield merged
        self._overlap_voxels = overlap_voxels

    @property
    def overlap_voxels(self) -> int:
        """Number of voxels in two vertebrae; known after :meth:`slabs` was read to its end."""
        if self._overlap_voxels is None:
            raise RuntimeError("overlap_voxels before the end of slabs()")
        return self._overlap_voxels

    def source_file(self) -> SourceFile:
        """Return size and hash of the file."""
        return self._segmentation.source_file()
