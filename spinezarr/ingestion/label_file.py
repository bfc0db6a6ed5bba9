"""How is the mask of a scan opened: one file, one file for each vertebra, or named segments?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import fsspec

from spinezarr.errors import LabelError
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.merged import MergedLabels
from spinezarr.formats.nrrd import NrrdVolume
from spinezarr.formats.segmentation import open_segmentation
from spinezarr.formats.segments import SegmentedLabels, name_segments
from spinezarr.formats.volume import Volume, open_volume
from spinezarr.geometry import Grid
from spinezarr.text import count_noun
from spinezarr.vertebrae import NAME_OF_VALUE

__all__ = ["LabelFiles", "open_label"]

_VERTEBRAE: Final = frozenset(NAME_OF_VALUE)


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The files of a mask, relative to the raw folder, and how they are read."""

    file: str
    """Path of the file, or of the folder of the parts."""
    parts: Sequence[tuple[int, str]] = ()
    """Stored value and path of each file of a mask with one file for each structure."""
    values: Sequence[tuple[int, int]] = ()
    """Pairs of value in the file and stored value; empty if values are stored as they are."""
    segments: Sequence[tuple[str, int]] = ()
    """Pairs of the name of a segment and its stored value; empty if segments have no names."""
    vertebrae: frozenset[int] = _VERTEBRAE
    """Stored values that are whole vertebrae."""

    @classmethod
    def of(
        cls,
        label: str | None,
        parts: Sequence[tuple[int, str]] = (),
        values: Sequence[tuple[int, int]] = (),
        segments: Sequence[tuple[str, int]] = (),
        vertebrae: frozenset[int] = _VERTEBRAE,
    ) -> Self:
        """Return the files of a mask, which is one file, or has a file for each structure."""
        file = f"{parts[0][1].rpartition('/')[0] or '.'}/" if parts else label or ""
        return cls(file, parts, values, segments, vertebrae)


def open_label(
    fs: fsspec.AbstractFileSystem,
    root: str,
    files: LabelFiles,
    image: Grid,
    limits: Limits = DEFAULT_LIMITS,
) -> Volume:
    """Open a mask.

    Parameters
    ----------
    fs, root
        File system and path of the raw folder.
    files
        Files of the mask.
    image
        Grid of the image. A file of named segments may cover only a part of it.
    limits
        Limits that the files must not exceed.

    Raises
    ------
    FormatError, GridMismatchError, LabelError
        If a file cannot be read as a mask of this image.
    """
    if files.parts:
        volumes = [
            (value, open_volume(fs, f"{root}/{path}", limits)) for value, path in files.parts
        ]
        return MergedLabels(volumes, [path for _, path in files.parts], files.vertebrae)
    path = f"{root}/{files.file}"
    if files.segments:
        segmentation = open_segmentation(fs, path, image, limits)
        return SegmentedLabels(segmentation, files.segments, files.file)
    volume = open_volume(fs, path, limits)
    if isinstance(volume, NrrdVolume) and volume.segment_names and not files.values:
        # The values of segments are arbitrary, so they must not pass for those of the scheme.
        raise LabelError(
            f"{files.file}: is a segmentation of 3D Slicer with "
            f"{count_noun(len(volume.segment_names), 'named segment')}: "
            f"{name_segments(volume.segment_names)}. Name them by 'segments' in the layout of a "
            "recipe, or give their values by 'values'."
        )
    return volume
