import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from spinezarr.errors import GridMismatchError
from spinezarr.geometry import GRID_TOLERANCE, Grid
from spinezarr.ingestion.voxels.align import aligned_label_grid
from spinezarr.testing import all_axcodes

OBLIQUE = np.array([[0.68, 0.08, 0.1, -40], [-0.09, 0.79, 0.2, 12], [-0.1, -0.2, 2.4, -700]])
IMAGE = Grid((5, 6, 7), np.vstack([OBLIQUE, [0, 0, 0, 1]]))
SPACING = min(IMAGE.spacing_zyx_mm)


def turned(grid, axcodes):
    """Reorder the axes of a grid with nibabel; its voxels keep their positions."""
    turn = ornt_transform(axcodes2ornt(grid.axis_map.axcodes), axcodes2ornt(axcodes))
    shape = [0, 0, 0]
    for axis, (place, _) in enumerate(turn):
        shape[int(place)] = grid.shape_ijk[axis]
    return Grid(tuple(shape), grid.affine_ijk @ inv_ornt_aff(turn, grid.shape_ijk))


def shifted(grid, shift_mm):
    affine = grid.affine_ijk.copy()
    affine[:3, 3] += shift_mm
    return Grid(grid.shape_ijk, affine)


def aligned(label, *, image=IMAGE, take_image_grid=False):
    return aligned_label_grid(
        image,
        label,
        image_path="ct/a.nii",
        label_path="seg/a.nii",
        take_image_grid=take_image_grid,
    )


def refusal(label, **options):
    with pytest.raises(GridMismatchError) as caught:
        aligned(label, **options)
    message = str(caught.value)
    assert f"image ct/a.nii: {IMAGE.describe()}" in message
    assert f"mask  seg/a.nii: {label.describe()}" in message
    return message


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_a_mask_with_other_axes_on_the_same_grid_keeps_its_own(axcodes):
    label = turned(IMAGE, axcodes)
    assert label.axis_map.axcodes == axcodes
    assert aligned(label) is label
    assert aligned(label, take_image_grid=True) is label


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_a_mask_with_other_axes_elsewhere_is_refused(axcodes):
    label = turned(shifted(IMAGE, (0, SPACING, 0)), axcodes)
    assert "corners are" in refusal(label)


directions = st.tuples(*[st.integers(-5, 5)] * 3).filter(any)


@given(directions, st.floats(0, 0.999), st.sampled_from(all_axcodes()))
def test_a_shift_below_the_tolerance_is_accepted(direction, share, axcodes):
    unit = np.array(direction) / np.linalg.norm(direction)
    label = turned(shifted(IMAGE, unit * share * GRID_TOLERANCE * SPACING), axcodes)
    assert aligned(label) is label


@given(directions, st.floats(1.001, 100), st.sampled_from(all_axcodes()))
def test_a_shift_above_the_tolerance_is_refused(direction, share, axcodes):
    unit = np.array(direction) / np.linalg.norm(direction)
    refusal(turned(shifted(IMAGE, unit * share * GRID_TOLERANCE * SPACING), axcodes))


def test_the_tolerance_is_a_tenth_of_the_smallest_spacing():
    assert GRID_TOLERANCE == 0.1
    image = Grid((4, 4, 4), np.diag([0.5, 1.0, 3.0, 1.0]))
    assert aligned(shifted(image, (0, 0, 0.0499)), image=image)
    with pytest.raises(GridMismatchError):
        aligned(shifted(image, (0, 0, 0.0501)), image=image)


@pytest.mark.parametrize(("stretch", "accepted"), [(0.9, True), (1.1, False)])
def test_a_wrong_spacing_is_judged_by_the_shift_of_the_far_corner(stretch, accepted):
    image = Grid((101, 4, 4), np.eye(4))
    label = Grid((101, 4, 4), np.diag([1 + stretch * GRID_TOLERANCE / 100, 1, 1, 1]))
    if accepted:
        assert aligned(label, image=image) is label
    else:
        with pytest.raises(GridMismatchError):
            aligned(label, image=image)


def test_rounding_to_float32_is_accepted():
    label = Grid(IMAGE.shape_ijk, IMAGE.affine_ijk.astype(np.float32).astype(np.float64))
    assert aligned(label) is label


def test_a_mirrored_mask_is_refused():
    label = Grid(IMAGE.shape_ijk, IMAGE.affine_ijk @ np.diag([-1, 1, 1, 1]))
    assert "corners" in refusal(label)


def test_the_error_of_different_shapes_shows_both_grids_and_advice():
    for shape in ((5, 7, 8), (7, 6, 5)):
        message = refusal(Grid(shape, IMAGE.affine_ijk))
        assert message.startswith("image and mask have different shapes:\n")
        assert "Get the mask that belongs to this image." in message
        assert "--take-image-grid" not in message


ENDS = {2: ("inferior", "superior"), 1: ("posterior", "anterior"), 0: ("left", "right")}


def part_of(grid, axis, first, stop):
    """Cut a grid along an axis of x, y, z."""
    affine, shape = grid.affine_ijk.copy(), list(grid.shape_ijk)
    affine[:3, 3] += first * affine[:3, axis]
    shape[axis] = stop - first
    return Grid(tuple(shape), affine)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
@given(data=st.data())
def test_the_error_counts_slices_that_only_image_or_mask_has(axcodes, data):
    axis = data.draw(st.integers(0, 2))
    n = IMAGE.shape_ijk[axis]
    first = data.draw(st.integers(0, n - 2))
    stop = data.draw(st.integers(first + 1, n - (first == 0)))
    cut = part_of(IMAGE, axis, first, stop)
    said = [
        f"{count} slice{'s' * (count > 1)} at the {end} end"
        for count, end in zip((first, n - stop), ENDS[axis], strict=True)
        if count
    ]
    for image, label, who in ((cut, IMAGE, "image"), (IMAGE, cut, "mask")):
        with pytest.raises(GridMismatchError) as caught:
            aligned(turned(label, axcodes), image=image)
        assert f"the {who} lacks {' and '.join(said)}, and otherwise lies on" in str(caught.value)
    elsewhere = shifted(cut, 0.2 * IMAGE.affine_ijk[:3, axis])
    with pytest.raises(GridMismatchError) as caught:
        aligned(IMAGE, image=elsewhere)
    assert "lacks" not in str(caught.value)


def test_the_error_of_different_affines_shows_both_grids_and_the_remedy():
    message = refusal(shifted(IMAGE, (0, 3, 4)))
    assert "same shape, but their corners are 5 mm apart" in message
    assert "--take-image-grid" in message


@pytest.mark.parametrize(
    "affine",
    [shifted(IMAGE, (0, 0, 99)).affine_ijk, IMAGE.affine_ijk @ np.diag([-1, 2, 1, 1]), np.eye(4)],
)
def test_take_image_grid_accepts_a_mask_of_equal_shape(affine):
    assert aligned(Grid(IMAGE.shape_ijk, affine), take_image_grid=True) is IMAGE


def test_take_image_grid_accepts_a_mask_with_mixed_up_axes():
    label = Grid(IMAGE.shape_ijk, IMAGE.affine_ijk[:, [1, 2, 0, 3]])
    assert label.shape_zyx != IMAGE.shape_zyx
    assert aligned(label, take_image_grid=True) is IMAGE


@pytest.mark.parametrize("label", [Grid((5, 6, 8), IMAGE.affine_ijk), Grid((7, 6, 5), np.eye(4))])
def test_take_image_grid_refuses_a_mask_of_another_shape(label):
    message = refusal(label, take_image_grid=True)
    assert "--take-image-grid also needs equal shapes in file order." in message
    assert "Get the mask" not in message


def test_take_image_grid_refuses_shapes_that_are_equal_only_after_reordering():
    label = turned(shifted(IMAGE, (0, 0, 50)), "SPL")
    assert label.shape_zyx == IMAGE.shape_zyx
    assert "equal shapes in file order" in refusal(label, take_image_grid=True)
