import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from orientations import AXCODES

from spinezarr.geometry import Grid
from spinezarr.ingestion.voxels.layers import LayerInMemory, LayerOnDisk, plan_strips
from spinezarr.store.layout import BALANCED

SHAPES = [(130, 50, 100), (1, 1, 1), (64, 32, 32), (3, 97, 145)]


def in_file_order(shape_zyx, axcodes):
    """Number all voxels; return them as stored, as in the file, and the file's grid."""
    numbers_zyx = np.arange(math.prod(shape_zyx), dtype=np.int32).reshape(shape_zyx)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    numbers_ijk = apply_orientation(numbers_zyx.transpose(2, 1, 0), turn)
    return numbers_zyx, numbers_ijk, Grid(numbers_ijk.shape, inv_ornt_aff(turn, shape_zyx[::-1]))


@pytest.mark.parametrize("axcodes", AXCODES)
@pytest.mark.parametrize("shape_zyx", SHAPES)
def test_layers_cover_the_volume_once_in_file_order(axcodes, shape_zyx):
    numbers_zyx, numbers_ijk, grid = in_file_order(shape_zyx, axcodes)
    axis = grid.axis_map.source_axis_zyx.index(2)
    boxes = grid.axis_map.slab_boxes(grid.shape_zyx, BALANCED.chunk_shape_zyx)
    start = 0
    for box in boxes:
        stop = start + box.shape_zyx[axis]
        layer = grid.axis_map.to_zyx(numbers_ijk[:, :, start:stop])
        np.testing.assert_array_equal(layer, numbers_zyx[box.slices])
        assert box.start_zyx[axis] % BALANCED.chunk_shape_zyx[axis] == 0
        assert box.shape_zyx[axis] <= BALANCED.chunk_shape_zyx[axis]
        start = stop
    assert start == grid.shape_ijk[2]
    assert len(boxes) == BALANCED.chunk_grid(shape_zyx)[axis]


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["RAS", "LPI"]))
def test_strips_cut_layers_into_pieces(depth, planes, axcodes):
    _, _, grid = in_file_order((depth, 2, 3), axcodes)
    strips = plan_strips(grid, BALANCED.chunk_shape_zyx, planes)
    assert list(dict.fromkeys(strip.layer for strip in strips)) == grid.axis_map.slab_boxes(
        grid.shape_zyx, BALANCED.chunk_shape_zyx
    )
    for layer in grid.axis_map.slab_boxes(grid.shape_zyx, BALANCED.chunk_shape_zyx):
        own = [strip for strip in strips if strip.layer == layer]
        at = [k for strip in own for k in range(strip.start, strip.start + strip.thickness)]
        assert at == list(range(layer.shape_zyx[0]))
        assert all(1 <= strip.thickness <= planes for strip in own)
        assert [strip.is_last for strip in own] == [*[False] * (len(own) - 1), True]


@pytest.mark.parametrize("axcodes", AXCODES)
@pytest.mark.parametrize("block_bytes", [0, 6 * 64 * 48 * 48, 1 << 30])
def test_blocks_hold_the_stored_voxels_of_their_boxes(tmp_path, axcodes, block_bytes):
    numbers_zyx, numbers_ijk, grid = in_file_order((130, 50, 100), axcodes)
    layers = {
        box: [
            LayerInMemory(grid, box, numbers_ijk.dtype),
            LayerOnDisk(
                grid,
                box,
                numbers_ijk.dtype,
                chunk_shape_zyx=BALANCED.chunk_shape_zyx,
                scratch=str(tmp_path),
                block_bytes=block_bytes,
            ),
        ]
        for box in grid.axis_map.slab_boxes(grid.shape_zyx, BALANCED.chunk_shape_zyx)
    }
    start = 0
    for strip in plan_strips(grid, BALANCED.chunk_shape_zyx, 7):
        stop = start + strip.thickness
        for layer in layers[strip.layer]:
            layer.put(strip.start, numbers_ijk[:, :, start:stop])
        start = stop
    for gathered in layers.values():
        for layer in gathered:
            for box in layer.blocks():
                np.testing.assert_array_equal(layer.read(box), numbers_zyx[box.slices])
            layer.close()


@pytest.mark.parametrize("axcodes", AXCODES)
@pytest.mark.parametrize("chunks", [0, 1, 2, 99])
def test_blocks_are_whole_chunks_up_to_the_given_size(tmp_path, axcodes, chunks):
    _, numbers_ijk, grid = in_file_order((130, 100, 150), axcodes)
    for box in grid.axis_map.slab_boxes(grid.shape_zyx, BALANCED.chunk_shape_zyx):
        block_bytes = chunks * math.prod(BALANCED.chunk_shape_zyx) * numbers_ijk.itemsize
        layer = LayerOnDisk(
            grid,
            box,
            numbers_ijk.dtype,
            chunk_shape_zyx=BALANCED.chunk_shape_zyx,
            scratch=str(tmp_path),
            block_bytes=block_bytes,
        )
        layer.close()
        covered = np.zeros((130, 100, 150), np.uint8)
        for block in layer.blocks():
            covered[block.slices] += 1
            for axis, chunk in enumerate(BALANCED.chunk_shape_zyx):
                assert block.start_zyx[axis] % chunk == 0
            if max(1, chunks) < math.prod(BALANCED.chunk_grid(block.shape_zyx)):
                assert math.prod(block.shape_zyx) * numbers_ijk.itemsize <= block_bytes
        assert covered.sum() == math.prod(box.shape_zyx)
        assert (covered[box.slices] == 1).all()
