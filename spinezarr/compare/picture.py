"""How do the true and the predicted mask of a scan look side by side?"""

import numpy as np

from spinezarr.compare.overlap import LabelMask
from spinezarr.compare.summary import ScanComparison
from spinezarr.export.preview import mask_legend
from spinezarr.export.side_by_side import PictureSide, draw_side_by_side
from spinezarr.export.spine_slices import middle_of_spine
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Plane
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ScanHandle

__all__ = ["draw_comparison"]


def draw_comparison(
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

    def side(mask: LabelMask, title: str, caption: str) -> PictureSide:
        def slice_of(plane: Plane) -> LabelMask:
            axis = SLICE_AXIS[plane]
            values: LabelMask = np.take(mask, middle_zyx[axis], axis)
            return values

        return PictureSide(title, caption, slice_of, mask_legend(scan, LABEL))

    dice = comparison.comparison.as_named.verse.dice
    shown_dice = "" if dice is None else f" Dice as named: {dice:.2f}."
    return draw_side_by_side(
        scan,
        voxels,
        middle_zyx,
        side(truth, "truth", ""),
        side(prediction, "prediction", f"{comparison.comparison.verdict.text}{shown_dice}"),
    )
