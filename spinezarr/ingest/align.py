"""Whether a mask lies on its image's grid."""

from spinezarr.errors import GridMismatchError
from spinezarr.geometry import GRID_TOLERANCE, Grid, max_corner_distance_mm

__all__ = ["aligned_label_grid"]


def aligned_label_grid(
    image: Grid, label: Grid, *, image_path: str, label_path: str, take_image_grid: bool
) -> Grid:
    """Return the grid by which the mask's axes are to be turned.

    A mask on the same physical grid is accepted whatever the directions of its axes.

    Parameters
    ----------
    image, label
        The grids as the files state them.
    image_path, label_path
        For messages.
    take_image_grid
        Take the image's affine for the mask if both have the same shape in file order.

    Returns
    -------
    Grid
        The mask's own grid, or the image's if that was asked for and needed.

    Raises
    ------
    GridMismatchError
        If the shapes differ, or any corner lies elsewhere.
    """
    found = [
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
    if take_image_grid and image.shape_ijk == label.shape_ijk:
        return image
    if take_image_grid:
        advice = "--take-image-grid needs equal shapes in file order, too."
    raise GridMismatchError("\n".join([f"{problem}:", *found, advice]))
