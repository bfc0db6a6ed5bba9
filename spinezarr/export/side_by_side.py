"""How do two masks of a scan look side by side?"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from spinezarr.export.picture import draw_preview
from spinezarr.export.plane import MaskLegend
from spinezarr.export.preview import preview_plane
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import Plane, ShapeZYX
from spinezarr.store.scan_handle import ScanHandle

__all__ = ["PictureSide", "draw_side_by_side"]

_PLANES: Final[tuple[Plane, ...]] = ("sagittal", "coronal")
"""Planes along the spine. An axial plane shows one vertebra only."""


@dataclass(frozen=True, slots=True)
class PictureSide:
    """One of the two masks."""

    title: str
    """Name of the mask."""
    caption: str
    """Text below its slices."""
    slice_of: Callable[[Plane], npt.NDArray[np.uint8]]
    """Returns the mask on a plane through the middle of the picture, without that axis."""
    legend: MaskLegend


def draw_side_by_side(
    scan: ScanHandle,
    voxels: VoxelReader,
    middle_zyx: ShapeZYX,
    left: PictureSide,
    right: PictureSide,
) -> bytes:
    """Draw two masks of a scan beside each other, each as previews are drawn.

    Parameters
    ----------
    scan, voxels
        The scan, and the reader of its image.
    middle_zyx
        Voxel that the planes pass through.
    left, right
        The masks.

    Returns
    -------
    bytes
        A PNG.
    """
    figures = []
    for side in (left, right):
        planes = [
            preview_plane(
                scan, voxels, plane, middle_zyx, label=side.slice_of(plane), legend=side.legend
            )
            for plane in _PLANES
        ]
        title = f"{scan.attributes.scan_id}: {side.title}"
        figures.append(draw_preview(title, planes, side.caption))
    return _join(*figures)


def _join(left: Figure, right: Figure) -> bytes:
    """Return a PNG of two figures beside each other; the lower one is extended at the bottom."""
    pictures = [_to_picture(figure) for figure in (left, right)]
    joined = Image.new(
        "RGB",
        (sum(picture.width for picture in pictures), max(p.height for p in pictures)),
        pictures[0].getpixel((0, pictures[0].height - 1)),
    )
    x = 0
    for picture in pictures:
        joined.paste(picture, (x, 0))
        x += picture.width
    file = BytesIO()
    joined.save(file, format="png")
    return file.getvalue()


def _to_picture(figure: Figure) -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")
