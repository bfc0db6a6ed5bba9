"""How do the true and the predicted mask of a scan look side by side?"""

from io import BytesIO
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from spinezarr.compare.overlap import LabelMask
from spinezarr.compare.summary import ScanComparison
from spinezarr.export.picture import draw_preview
from spinezarr.export.preview import preview_plane
from spinezarr.export.spine_slices import middle_of_spine
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX
from spinezarr.store.scan_handle import ScanHandle

__all__ = ["draw_side_by_side"]

_PLANES: Final[tuple[Plane, ...]] = ("sagittal", "coronal")
"""Planes along the spine. An axial plane shows one vertebra only."""


def draw_side_by_side(
    scan: ScanHandle,
    voxels: VoxelReader,
    truth: LabelMask,
    prediction: LabelMask,
    comparison: ScanComparison,
) -> bytes:
    """Draw the truth on the left and the prediction on the right, each as previews are drawn.

    Parameters
    ----------
    scan, voxels
        The scan, and the reader of its image.
    truth, prediction
        Both masks of the scan.
    comparison
        Result whose verdict stands below the prediction.

    Returns
    -------
    bytes
        A PNG.
    """
    middle_zyx = middle_of_spine(scan, voxels)
    dice = comparison.comparison.as_named.verse.dice
    shown_dice = "" if dice is None else f" Dice as named: {dice:.2f}."
    sides = (
        (truth, "truth", ""),
        (prediction, "prediction", f"{comparison.comparison.verdict.text}{shown_dice}"),
    )
    figures = []
    for mask, name, caption in sides:
        planes = [
            preview_plane(
                scan,
                voxels,
                plane,
                middle_zyx,
                label=_slice(mask, plane, middle_zyx),
            )
            for plane in _PLANES
        ]
        figures.append(draw_preview(f"{comparison.scan_id}: {name}", planes, caption))
    return _join(*figures)


def _slice(mask: LabelMask, plane: Plane, middle_zyx: ShapeZYX) -> LabelMask:
    axis = SLICE_AXIS[plane]
    values: LabelMask = np.take(mask, middle_zyx[axis], axis)
    return values


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
