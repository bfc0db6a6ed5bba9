from itertools import product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spinezarr.geometry import (
    SLICE_AXIS,
    AxisMap,
    Box,
    Grid,
    axis_positions_mm,
    max_corner_distance_mm,
    oblique_angle_deg,
    shear_deg,
)
from spinezarr.testing import all_axcodes

sizes = st.tuples(*[st.integers(1, 6)] * 3)
corners = st.tuples(*[st.integers(-4, 8)] * 3)


def turn_about(axis, degrees):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(axcodes, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), turn=None):
    """Return an affine with voxel axes of given lengths toward anatomical letters, then rotated."""
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(axcodes):
        axis = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        matrix[axis, column] = spacing[column] * (1 if letter in "RAS" else -1)
    affine = np.eye(4)
    affine[:3, :3] = matrix if turn is None else turn @ matrix
    affine[:3, 3] = origin
    return affine


@st.composite
def grids(draw, max_degrees=60):
    direction = draw(st.tuples(*[st.integers(-9, 9)] * 3).filter(any))
    return Grid(
        draw(sizes),
        affine_of(
            draw(st.sampled_from(all_axcodes())),
            draw(st.tuples(*[st.floats(0.1, 5)] * 3)),
            draw(st.tuples(*[st.floats(-900, 900)] * 3)),
            turn_about(direction, draw(st.floats(-max_degrees, max_degrees))),
        ),
    )


def boxes(starts=corners):
    return st.builds(Box.at, starts, st.tuples(*[st.integers(1, 5)] * 3))


def voxels_of(box):
    return set(product(*map(range, box.start_zyx, box.stop_zyx)))


def numbered(shape):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def assert_reordered_like_nibabel(grid):
    array = numbered(grid.shape_ijk)
    model = nib.as_closest_canonical(nib.Nifti1Image(array, grid.affine_ijk))
    stored = grid.axis_map.to_zyx(array)
    np.testing.assert_array_equal(stored, np.asarray(model.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(grid.affine_xyz, model.affine, atol=1e-9)
    np.testing.assert_allclose(grid.spacing_zyx_mm, nib.affines.voxel_sizes(model.affine)[::-1])
    assert grid.shape_zyx == stored.shape
    assert grid.axis_map.axcodes == "".join(nib.aff2axcodes(grid.affine_ijk))


@pytest.mark.parametrize("axcodes", all_axcodes())
@pytest.mark.parametrize("degrees", [0, 17])
def test_each_orientation_is_reordered_like_nibabel(axcodes, degrees):
    turn = turn_about((2, 2, 1), degrees)
    grid = Grid((2, 3, 4), affine_of(axcodes, (0.7, 0.8, 2.5), (-40, 12, -700), turn))
    assert_reordered_like_nibabel(grid)
    assert grid.axis_map == AxisMap.from_axcodes(axcodes)
    assert grid.axis_map.axcodes == axcodes


@settings(deadline=None)
@given(grids())
def test_any_grid_is_reordered_like_nibabel(grid):
    assert_reordered_like_nibabel(grid)


@settings(deadline=None)
@given(grids())
def test_each_stored_voxel_keeps_its_position_in_the_patient(grid):
    ijk = np.indices(grid.shape_ijk)
    world = np.einsum("ab,bijk->aijk", grid.affine_ijk[:3, :3], ijk)
    world += grid.affine_ijk[:3, 3].reshape(3, 1, 1, 1)
    stored = np.stack([grid.axis_map.to_zyx(coordinate) for coordinate in world])
    zyx = np.indices(grid.shape_zyx)
    affine = grid.affine_xyz
    expected = np.einsum("ab,bzyx->azyx", affine[:3, :3], zyx[::-1])
    np.testing.assert_allclose(stored, expected + affine[:3, 3].reshape(3, 1, 1, 1), atol=1e-8)


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_reordering_back_and_forth_changes_and_copies_nothing(axcodes):
    axis_map = AxisMap.from_axcodes(axcodes)
    array = numbered((2, 3, 4))
    stored = axis_map.to_zyx(array)
    back = axis_map.from_zyx(stored)
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(back, array)
    assert axis_map.shape_zyx((2, 3, 4)) == stored.shape
    there = axis_map.to_zyx(axis_map.from_zyx(numbered((5, 2, 3))))
    np.testing.assert_array_equal(there, numbered((5, 2, 3)))


def test_the_48_orientations_have_different_maps():
    assert len({AxisMap.from_axcodes(axcodes) for axcodes in all_axcodes()}) == 48


def test_a_grid_describes_itself_in_one_line():
    grid = Grid((512, 500, 60), affine_of("LPS", (0.7, 0.75, 2.5), (120, -3.456, -700)))
    assert grid.describe() == (
        "512 x 500 x 60 voxels, LPS, 0.7 x 0.75 x 2.5 mm, first voxel at (120.00, -3.46, -700.00)"
    )


@given(boxes(), boxes())
def test_the_intersection_of_boxes_holds_the_voxels_of_both(a, b):
    shared = a.intersect(b)
    assert (set() if shared is None else voxels_of(shared)) == voxels_of(a) & voxels_of(b)


@given(boxes(), corners)
def test_a_shifted_box_holds_each_voxel_shifted(box, offset):
    moved = {tuple(map(sum, zip(voxel, offset, strict=True))) for voxel in voxels_of(box)}
    assert voxels_of(box.shift(offset)) == moved


@given(boxes())
def test_a_box_is_defined_by_start_and_shape(box):
    assert Box.at(box.start_zyx, box.shape_zyx) == box
    assert np.prod(box.shape_zyx) == len(voxels_of(box))


@given(boxes(st.tuples(*[st.integers(0, 4)] * 3)))
def test_slices_of_a_box_pick_its_voxels(box):
    picked = np.zeros((9, 9, 9), bool)
    picked[box.slices] = True
    assert {tuple(voxel) for voxel in np.argwhere(picked).tolist()} == voxels_of(box)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("extent", [0, -1])
def test_a_box_without_voxels_is_refused(axis, extent):
    shape = [3, 3, 3]
    shape[axis] = extent
    with pytest.raises(ValueError, match="empty box"):
        Box.at((1, 1, 1), tuple(shape))


def test_slices_of_a_plane_lie_across_its_axis():
    across = {plane: ("SI", "AP", "RL")[axis] for plane, axis in SLICE_AXIS.items()}
    assert across == {"axial": "SI", "coronal": "AP", "sagittal": "RL"}


@given(grids(max_degrees=0))
def test_positions_along_an_axis_equal_those_of_the_voxels(grid):
    positions = axis_positions_mm(grid.affine_xyz, grid.shape_zyx)
    assert list(positions) == ["z", "y", "x"]
    for world, axis in enumerate("xyz"):
        index = np.zeros((4, len(positions[axis])))
        index[world] = np.arange(index.shape[1])
        index[3] = 1
        np.testing.assert_allclose(positions[axis], (grid.affine_xyz @ index)[world], atol=1e-9)
        assert len(positions[axis]) == grid.shape_zyx[2 - world]


@given(grids())
def test_positions_along_an_oblique_axis_start_at_the_first_voxel_and_grow_by_the_spacing(grid):
    positions = axis_positions_mm(grid.affine_xyz, grid.shape_zyx)
    origin = nib.affines.apply_affine(grid.affine_xyz, (0, 0, 0))
    np.testing.assert_allclose([positions[axis][0] for axis in "xyz"], origin, atol=1e-9)
    for axis, spacing in zip("zyx", grid.spacing_zyx_mm, strict=True):
        np.testing.assert_allclose(np.diff(positions[axis]), spacing, atol=1e-9)


@given(
    st.sampled_from(all_axcodes()),
    st.floats(-44.9, 44.9),
    st.sampled_from(range(3)),
    st.tuples(*[st.floats(0.1, 5)] * 3),
)
def test_the_oblique_angle_of_a_rotation_about_an_axis_is_its_angle(
    axcodes, degrees, axis, spacing
):
    affine = affine_of(axcodes, spacing, (1, 2, 3), turn_about(np.eye(3)[axis], degrees))
    assert oblique_angle_deg(affine) == pytest.approx(abs(degrees), abs=1e-5)


@given(grids(max_degrees=90))
def test_the_oblique_angle_is_that_of_the_voxel_axis_furthest_from_its_world_axis(grid):
    steps = grid.affine_ijk[:3, :3] / np.linalg.norm(grid.affine_ijk[:3, :3], axis=0)
    to_world_axes = np.degrees(np.arccos(np.clip(np.abs(steps), 0, 1)))
    furthest = max(min(to_world_axes[:, voxel_axis]) for voxel_axis in range(3))
    assert oblique_angle_deg(grid.affine_ijk) == pytest.approx(furthest, abs=1e-5)


@pytest.mark.parametrize("degrees", [-30, -15, 0.2, 5, 40])
@pytest.mark.parametrize("turned", [0, 12])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
def test_shear_is_distinguished_from_a_rotation_of_the_nearest_orthogonal_axes(
    axcodes, turned, degrees
):
    turn = turn_about((1, 0, 0), turned)
    shear = np.eye(3)
    shear[1, 2] = np.tan(np.radians(degrees))
    affine = affine_of(axcodes, (0.7, 1.3, 2.5), (4, 5, 6), turn @ shear)
    assert shear_deg(affine) == pytest.approx(abs(degrees), abs=1e-9)
    # A shear by an angle rotates the nearest orthogonal axes by half of it, in reverse.
    assert oblique_angle_deg(affine) == pytest.approx(abs(turned - degrees / 2), abs=1e-6)


@given(grids(max_degrees=90))
def test_rotated_grids_are_not_sheared(grid):
    assert shear_deg(grid.affine_ijk) == pytest.approx(0, abs=1e-5)


@given(grids(), grids(max_degrees=5), st.floats(0, 1e-2))
def test_no_voxel_of_two_grids_is_further_apart_than_their_corners(a, other, size):
    nearby = Grid(a.shape_ijk, a.affine_ijk + size * (other.affine_ijk - np.eye(4)))
    assume(nearby.axis_map == a.axis_map)
    indices = np.indices(a.shape_zyx).reshape(3, -1)[::-1]
    indices = np.vstack([indices, np.ones(indices.shape[1])])
    apart = np.linalg.norm(((a.affine_xyz - nearby.affine_xyz) @ indices)[:3], axis=0)
    assert max_corner_distance_mm(a, nearby) == pytest.approx(apart.max(), abs=1e-9)
    assert max_corner_distance_mm(nearby, a) == pytest.approx(apart.max(), abs=1e-9)


@given(grids(), st.tuples(*[st.floats(-20, 20)] * 3))
def test_grids_that_differ_by_a_shift_are_its_length_apart(grid, shift):
    moved = grid.affine_ijk.copy()
    moved[:3, 3] += shift
    distance = max_corner_distance_mm(grid, Grid(grid.shape_ijk, moved))
    assert distance == pytest.approx(np.linalg.norm(shift), abs=1e-9)
