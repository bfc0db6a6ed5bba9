"""Does a mask lie on the grid of its image?"""

from typing import Final

import numpy as np

from spinezarr.errors import GridMismatchError
from spinezarr.geometry import GRID_TOLERANCE, Grid, max_corner_distance_mm
from spinezarr.text import MultilineText

__all__ = ["aligned_label_grid"]

_ENDS_XYZ: Final = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Names of the start and the end of each stored axis, in the order x, y, z."""


def aligned_label_grid(
    image: Grid, label: Grid, *, image_path: str, label_path: str, take_image_grid: bool
) -> Grid:
    """Check that a mask lies on the grid of its image, and return the grid of the mask.

    The directions of its axes do not matter. The ingest reorders them by the returned grid.

    Parameters
    ----------
    image, label
        Grids as the files state them.
    image_path, label_path
        Paths for messages.
    take_image_grid
        Whether the mask takes the image's affine if both have the same shape in file order.

    Returns
    -------
    Grid
        The mask's own grid. It is the image's grid if ``take_image_grid`` is set and the grids
        differ.

    Raises
    ------
    GridMismatchError
        If the shapes differ, or if a corner of the mask is not at the corner of the image.
    """
    grid_lines = [
        f"  image {image_path}: {image.describe()}",
        f"  mask  {label_path}: {label.describe()}",
    ]
    if image.shape_zyx == label.shape_zyx:
        distance = max_corner_distance_mm(image, label)
        if distance <= GRID_TOLERANCE * min(image.spacing_zyx_mm):
            return label
        problem = (
            f"image and mask have the same shape, but their corners are {distance:.3g} mm apart"
        )
        advice = (
            "If the mask's header is wrong and its voxels belong to the image's, "
            "ingest with --take-image-grid."
        )
    else:
        problem = "image and mask have different shapes"
        advice = "Get the mask that belongs to this image."
        missing_ends = _missing_ends(image, label)
        if missing_ends:
            problem += f": the image lacks {missing_ends}, and otherwise lies on the mask's grid"
            advice = "Slices of the image are missing: download it again."
        elif missing_ends := _missing_ends(label, image):
            problem += f": the mask lacks {missing_ends}, and otherwise lies on the image's grid"
    if take_image_grid and image.shape_ijk == label.shape_ijk:
        return image
    if take_image_grid:
        advice = "--take-image-grid also needs equal shapes in file order."
    raise GridMismatchError(MultilineText(f"{problem}:", *grid_lines, advice))


def _missing_ends(part: Grid, whole: Grid) -> str:
    """Return a text on the slices that a grid lacks at the ends of an axis.

    The text is empty if the grids differ in another way.

    Examples
    --------
    >>> affine = np.diag([1.0, 1.0, 2.0, 1.0])
    >>> _missing_ends(Grid((4, 4, 9), affine), Grid((4, 4, 12), affine))
    '3 slices at the superior end'
    """
    sizes = [*zip(part.shape_zyx[::-1], whole.shape_zyx[::-1], strict=True)]
    differing_axes = [axis for axis, (size, whole_size) in enumerate(sizes) if size != whole_size]
    if len(differing_axes) != 1:
        return ""
    (axis,) = differing_axes
    size, whole_size = sizes[axis]
    before = round(float((np.linalg.inv(whole.affine_xyz) @ part.affine_xyz[:, 3])[axis]))
    after = whole_size - size - before
    if min(before, after) < 0:
        return ""
    moved_affine = whole.affine_xyz
    moved_affine[:3, 3] += before * moved_affine[:3, axis]
    shape_xyz = (part.shape_zyx[2], part.shape_zyx[1], part.shape_zyx[0])
    distance_mm = max_corner_distance_mm(
        Grid(shape_xyz, part.affine_xyz), Grid(shape_xyz, moved_affine)
    )
    if distance_mm > GRID_TOLERANCE * min(part.spacing_zyx_mm):
        return ""
    return " and ".join(
        f"{count} slice{'' if count == 1 else 's'} at the {end} end"
        for count, end in zip((before, after), _ENDS_XYZ[axis], strict=True)
        if count
    )
