import numpy as np

from spinezarr.testing import PhantomSpec, make_phantom
from spinezarr.testing.structures import organ_box, s1_of_sacrum
from spinezarr.vertebrae import VALUE_OF_NAME

PHANTOM = make_phantom(PhantomSpec(1, (40, 40, 40), (5.0, 5.0, 5.0), ("L3", "L4", "L5", "sacrum")))


def test_an_organ_does_not_overlap_the_spine():
    place = np.argwhere(PHANTOM.label == VALUE_OF_NAME["L4"]).mean(axis=0) / 40
    mask = organ_box(PHANTOM, tuple(place))
    assert mask.any()
    assert not mask[PHANTOM.label > 0].any()
    z, y, x = organ_box(PHANTOM, (0.25, 0.75, 0.8)).nonzero()
    assert [z.min(), z.max(), y.min(), y.max(), x.min(), x.max()] == [8, 11, 28, 31, 30, 33]


def test_s1_is_the_upper_part_of_the_sacrum_about_its_center():
    s1, sacrum = s1_of_sacrum(PHANTOM), PHANTOM.label == VALUE_OF_NAME["sacrum"]
    assert 0 < s1.sum() < sacrum.sum()
    assert not s1[~sacrum].any()
    to_voxel = np.linalg.inv(PHANTOM.affine_xyz)
    for name in ("S1", "S2"):
        x, y, z = np.rint((to_voxel @ [*PHANTOM.centers_mm[name], 1])[:3]).astype(int)
        assert s1[z, y, x] == (name == "S1")


def test_a_spine_without_sacrum_has_no_s1():
    neck = make_phantom(PhantomSpec(1, (24, 24, 24), (6.0, 8.0, 8.0), ("C3", "C4", "C5")))
    assert not s1_of_sacrum(neck).any()
