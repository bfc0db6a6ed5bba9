"""Surface distances of made shapes, whose answers are known by hand, and those of MONAI."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from spinezarr.compare.surface import MAX_SURFACE_VOXELS, Surface, SurfaceDistances
from spinezarr.geometry import Box

SPACING_ZYX = (3.0, 2.0, 0.5)
AFFINE = np.diag([*SPACING_ZYX[::-1], 1.0])


def surface(mask, affine=AFFINE, value=1):
    inside = np.argwhere(mask == value)
    box = Box(tuple(inside.min(0).tolist()), tuple((inside.max(0) + 1).tolist()))
    return Surface.of_label(mask, value, box, affine)


def distances(a, b, affine=AFFINE):
    return SurfaceDistances.between(surface(a, affine), surface(b, affine))


def block(start, stop, shape=(12, 12, 12)):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(map(slice, start, stop))] = 1
    return mask


def test_one_voxel_is_its_own_surface():
    one = block((4, 5, 6), (5, 6, 7))
    np.testing.assert_array_equal(surface(one).points_xyz_mm, [[6 * 0.5, 5 * 2.0, 4 * 3.0]])
    other = block((5, 5, 6), (6, 6, 7))
    assert distances(one, other) == SurfaceDistances(3.0, 3.0, 3.0)


def test_the_inside_of_a_box_is_no_surface():
    cube = block((2, 2, 2), (7, 7, 7))
    assert len(surface(cube).points_xyz_mm) == 5**3 - 3**3


def test_voxels_at_the_border_of_the_volume_are_surface():
    everything = np.ones((5, 4, 3), np.uint8)
    assert len(surface(everything).points_xyz_mm) == 5 * 4 * 3 - 3 * 2 * 1


def test_a_neighboring_label_bounds_a_surface():
    mask = np.ones((5, 5, 5), np.uint8)
    mask[:2] = 2
    assert len(surface(mask).points_xyz_mm) == 3 * 5 * 5 - 1 * 3 * 3


def test_a_box_moved_by_one_voxel_along_its_long_axis():
    """The two end planes are one voxel away, and the sides lie in each other except at the ends."""
    a, b = block((1, 3, 3), (9, 6, 6)), block((2, 3, 3), (10, 6, 6))
    found = distances(a, b)
    n_surface = 8 * 9 - 6
    # Of a, the plane z = 1 is 3 mm below the other box; the middle of the plane z = 8, which is
    # inside b, is a voxel of 0.5 mm away from its side.
    expected = [3.0] * 9 + [0.5] + [0.0] * (n_surface - 10)
    assert found.hausdorff_mm == 3.0
    assert found.assd_mm == pytest.approx(np.mean(expected))
    assert found.hausdorff95_mm == pytest.approx(np.percentile(expected, 95))


def test_spheres_of_two_radii():
    """The distance of concentric spheres is the difference of their radii, to a voxel."""
    z, y, x = np.indices((61, 61, 61)) - 30
    radius_mm = np.sqrt(z**2 + y**2 + x**2)
    a, b = ((radius_mm <= r).astype(np.uint8) for r in (16, 24))
    found = distances(a, b, np.eye(4))
    assert found.hausdorff_mm == pytest.approx(8, abs=0.9)
    assert found.assd_mm == pytest.approx(8, abs=0.5)


@pytest.mark.parametrize("angle_deg", [0, 17, 45, 90])
def test_turning_the_grid_changes_no_distance(angle_deg):
    a, b = block((1, 3, 3), (9, 6, 6)), block((3, 2, 5), (11, 7, 9))
    cosine, sine = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn = np.array([[1, 0, 0, 5], [0, cosine, -sine, -70], [0, sine, cosine, 300], [0, 0, 0, 1]])
    straight, turned = distances(a, b), distances(a, b, turn @ AFFINE)
    for name in ("hausdorff_mm", "hausdorff95_mm", "assd_mm"):
        assert getattr(turned, name) == pytest.approx(getattr(straight, name))


def test_distances_on_a_sheared_grid_are_those_in_the_world():
    """Gantry tilt moves each slice along y, so a voxel of the next slice is further away."""
    sheared = np.diag([1.0, 1.0, 4.0, 1.0])
    sheared[1, 2] = 3.0
    found = distances(block((4, 5, 6), (5, 6, 7)), block((5, 5, 6), (6, 6, 7)), sheared)
    assert found.hausdorff_mm == 5.0


masks = arrays(np.bool_, (6, 5, 7), elements=st.booleans()).filter(np.any)


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@given(masks, masks)
def test_distances_are_those_of_monai(a, b):
    found = distances(a.astype(np.uint8), b.astype(np.uint8))
    tensors = [torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (a, b)]
    options = {"include_background": True, "spacing": list(SPACING_ZYX)}
    hausdorff = compute_hausdorff_distance(*tensors, **options)
    hausdorff95 = compute_hausdorff_distance(*tensors, percentile=95, **options)
    assert found.hausdorff_mm == pytest.approx(float(hausdorff), abs=1e-4)
    assert found.hausdorff95_mm == pytest.approx(float(hausdorff95), abs=1e-4)
    assd = compute_average_surface_distance(*tensors, symmetric=True, **options)
    assert found.assd_mm == pytest.approx(float(assd), abs=1e-4)


def test_a_large_box_is_read_slab_by_slab():
    """The box has more voxels than are looked at at once, and its surface is that of the whole."""
    mask = np.zeros((40, 400, 400), np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    n = 38 * 398 * 398 - 36 * 396 * 396
    assert len(surface(mask).points_xyz_mm) == n


def test_noise_has_no_surface():
    """An untrained network gives noise, and its surfaces would take gigabytes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, (160, 160, 160), np.uint8)
    assert noise.sum() > MAX_SURFACE_VOXELS
    assert surface(noise) is None


def test_a_missing_scipy_is_named_with_the_extra_that_installs_it():
    code = "import sys; sys.modules['scipy'] = None; import spinezarr.compare.surface"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (
        b"UsageError: comparing masks needs SciPy: pip install 'spinezarr[compare]'" in done.stderr
    )
