import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.testing import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.anatomy import size_of
from spinezarr.vertebrae import ANATOMICAL_ORDER, VALUE_OF_NAME

SMALL = PhantomSpec(shape_zyx=(64, 60, 56), spacing_zyx_mm=(5.0, 4.0, 4.0))
SHARP = PhantomSpec(
    shape_zyx=(70, 80, 90), spacing_zyx_mm=(2.0, 1.6, 1.4), levels=("L1", "L2", "L3", "L4")
)

sequences = st.lists(st.sampled_from(ANATOMICAL_ORDER), min_size=2, max_size=12, unique=True).map(
    lambda names: tuple(sorted(names, key=ANATOMICAL_ORDER.index))
)


def count_pieces(mask):
    """Count 26-connected pieces with a flood fill that is independent of the renderer."""
    todo = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    pieces = 0
    while todo:
        pieces += 1
        stack = [todo.pop()]
        while stack:
            z, y, x = stack.pop()
            near = {(z + a, y + b, x + c) for a, b, c in steps} & todo
            todo -= near
            stack += near
    return pieces


def test_same_spec_gives_same_bytes():
    large = replace(SMALL, shape_zyx=(80, 64, 64))  # drawn anew each time
    first, second = make_phantom(large), make_phantom(replace(large))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.label.tobytes() == second.label.tobytes()
    assert first.affine_xyz.tobytes() == second.affine_xyz.tobytes()


def test_a_changed_phantom_changes_no_other_of_its_spec():
    first = make_phantom(SMALL)
    expected = first.image.copy(), first.label.copy(), first.affine_xyz.copy(), {**first.centers_mm}
    first.image[:], first.label[:], first.affine_xyz[:] = 7, 7, 7
    first.centers_mm.clear()
    second = make_phantom(SMALL)
    for found, whole in zip(
        (second.image, second.label, second.affine_xyz), expected, strict=False
    ):
        np.testing.assert_array_equal(found, whole)
    assert second.centers_mm == expected[3]


def test_another_seed_gives_another_patient_not_only_other_noise():
    first, second = (make_phantom(replace(SMALL, seed=seed)) for seed in (0, 1))
    assert (first.label != second.label).any()
    assert not np.array_equal(first.affine_xyz, second.affine_xyz)


def test_a_phantom_has_the_expected_types_shapes_and_affine():
    phantom = make_phantom(SMALL)
    assert phantom.image.dtype == np.int16
    assert phantom.label.dtype == np.uint8
    assert phantom.image.shape == phantom.label.shape == SMALL.shape_zyx
    np.testing.assert_array_equal(phantom.affine_xyz[:3, :3], np.diag([4.0, 4.0, 5.0]))
    assert (phantom.affine_xyz[:3, 3] != 0).all()


@settings(deadline=None, max_examples=25)
@given(
    levels=sequences,
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(24, 48), st.integers(16, 40), st.integers(16, 40)),
    spacing=st.tuples(*[st.floats(3, 6)] * 3),
    cut_share=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_labels_are_bone_of_the_spec_in_order_and_inside_the_circle(
    levels, seed, shape, spacing, cut_share
):
    spec = PhantomSpec(seed, shape, spacing, levels, cut_share=cut_share, noise_hu=0)
    phantom = make_phantom(spec)
    present = set(np.unique(phantom.label).tolist()) - {0}
    assert present == {VALUE_OF_NAME[name] for name in phantom.labeled}
    assert set(phantom.labeled) <= set(levels)
    assert phantom.image[phantom.label > 0].min(initial=3000) >= 100
    if cut_share == 0:
        assert phantom.cut == ()


@pytest.mark.parametrize(
    "levels",
    [
        ("T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5"),
        ("T10", "T11", "L1", "L2", "L3"),
        ("T11", "T12", "T13", "L1", "L2"),
        ("L2", "L3", "L4", "L5", "L6", "sacrum", "coccyx"),
        ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1", "T2"),
        ANATOMICAL_ORDER,
    ],
    ids=["usual", "no T12", "T13", "L6 and sacrum", "neck", "all"],
)
def test_levels_lie_from_head_to_tail_each_in_one_piece(levels):
    shape = (96 if len(levels) < 20 else 180, 64, 64)
    phantom = make_phantom(PhantomSpec(0, shape, (3.0, 3.0, 3.0), levels))
    assert phantom.labeled == levels
    heights = [np.nonzero(phantom.label == VALUE_OF_NAME[name])[0].mean() for name in levels]
    assert heights == sorted(heights, reverse=True)
    for name in set(levels) - set(phantom.cut):
        assert count_pieces(phantom.label == VALUE_OF_NAME[name]) == 1, name


@settings(deadline=None, max_examples=25)
@given(
    first=st.integers(0, ANATOMICAL_ORDER.index("L5")),
    count=st.integers(2, 8),
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(40, 64), st.integers(32, 48), st.integers(32, 48)),
    spacing=st.tuples(*[st.floats(2, 5)] * 3),
    cut_share=st.sampled_from([0.0, 0.35]),
)
def test_the_center_of_a_whole_body_lies_inside_its_label(
    *, first, count, seed, shape, spacing, cut_share
):
    levels = ANATOMICAL_ORDER[:-1][first : first + count]
    spec = PhantomSpec(seed, shape, spacing, levels, padding_hu=None, cut_share=cut_share)
    phantom = make_phantom(spec)
    points = set(phantom.centers_mm)
    assert points - {"S1", "S2"} == set(phantom.labeled)
    assert points >= {"S1", "S2"} if "sacrum" in phantom.labeled else not points & {"S1", "S2"}
    to_voxel = np.linalg.inv(phantom.affine_xyz)
    for name in set(phantom.labeled) - set(phantom.cut):
        x, y, z = np.rint((to_voxel @ [*phantom.centers_mm[name], 1])[:3]).astype(int).tolist()
        assert phantom.label[z, y, x] == VALUE_OF_NAME[name], name


def test_the_center_of_a_body_is_as_far_from_its_endplates_and_sides():
    spec = PhantomSpec(4, (200, 100, 100), (0.9, 1.0, 1.0), ("L1", "L2", "L3"), padding_hu=None)
    phantom = make_phantom(spec)
    to_voxel = np.linalg.inv(phantom.affine_xyz)
    x, y, z = (to_voxel @ [*phantom.centers_mm["L2"], 1])[:3]
    mask = phantom.label == VALUE_OF_NAME["L2"]
    for column, center in (
        (mask[:, round(y), round(x)], z),
        (mask[round(z), round(y)], x),
    ):
        inside = np.flatnonzero(column)
        assert inside.mean() == pytest.approx(center, abs=0.3)


def test_centers_run_from_head_to_tail_with_the_segments_of_the_sacrum():
    spec = PhantomSpec(3, (120, 64, 64), (2.5, 3.0, 3.0), ("L3", "L4", "L5", "sacrum", "coccyx"))
    phantom = make_phantom(spec)
    assert list(phantom.centers_mm) == ["L3", "L4", "L5", "S1", "S2", "sacrum", "coccyx"]
    heights = [z for _, _, z in phantom.centers_mm.values()]
    assert heights == sorted(heights, reverse=True)
    to_voxel = np.linalg.inv(phantom.affine_xyz)
    for name in ("S1", "S2", "sacrum"):
        x, y, z = np.rint((to_voxel @ [*phantom.centers_mm[name], 1])[:3]).astype(int).tolist()
        assert phantom.label[z, y, x] == VALUE_OF_NAME["sacrum"], name


def test_whole_vertebrae_have_a_body_an_arch_and_a_canal():
    phantom = make_phantom(replace(SHARP, noise_hu=0))
    mask = phantom.label == VALUE_OF_NAME["L2"]
    assert count_pieces(mask) == 1
    _, y, x = np.nonzero(mask)
    axial = mask.any(axis=0)
    assert np.ptp(x) * 1.4 > np.ptp(y) * 1.6 * 0.7  # transverse processes
    column = axial[:, round(x.mean())]
    extent = np.flatnonzero(column)
    assert extent[-1] - extent[0] + 1 > column.sum(), "the canal leaves a gap behind the body"


def test_cut_vertebrae_are_labeled_as_in_ctspine1k_or_not_as_in_verse():
    with_ends, without = (
        make_phantom(replace(SMALL, label_cut_ends=flag)) for flag in (True, False)
    )
    assert with_ends.cut == without.cut
    assert {"T9", "L5"} <= set(with_ends.cut)
    assert with_ends.labeled == SMALL.levels
    assert without.labeled == tuple(n for n in SMALL.levels if n not in without.cut)
    np.testing.assert_array_equal(with_ends.image, without.image)
    assert without.label[0].max() == without.label[-1].max() == 0


def test_an_unlabeled_level_is_drawn_but_not_in_the_mask():
    full = make_phantom(SMALL)
    bare = make_phantom(replace(SMALL, unlabeled=("T12",)))
    np.testing.assert_array_equal(full.image, bare.image)
    expected = np.where(full.label == VALUE_OF_NAME["T12"], 0, full.label)
    np.testing.assert_array_equal(bare.label, expected)
    assert "T12" not in bare.labeled


@pytest.mark.parametrize("padding", [-1024, -2048, -3024])
def test_padding_fills_what_is_outside_the_circle(padding):
    square = replace(SMALL, shape_zyx=(24, 60, 60), padding_hu=padding)
    phantom = make_phantom(square)
    y, x = np.indices((60, 60)) + 0.5 - 30
    outside = np.hypot(y, x) > 30
    assert (phantom.image[:, outside] == padding).all()
    assert not phantom.label[:, outside].any()
    assert phantom.image[:, ~outside].min() >= -1024


def test_noise_reaches_the_corners_of_an_image_without_padding():
    corner = make_phantom(replace(SMALL, padding_hu=None)).image[:, :4, :4]
    assert corner.std() > 5
    assert corner.min() >= -1024


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(PhantomSpec(), marks=pytest.mark.long),
        pytest.param(
            PhantomSpec(1, (40, 256, 256), (5.0, 1.4, 1.4), ("T6", "T7", "T8", "T9", "T10")),
            marks=pytest.mark.long,
        ),
        PhantomSpec(2, (64, 64, 64), (3.0, 3.0, 3.0), padding_hu=None),
        pytest.param(
            PhantomSpec(3, (24, 384, 384), (2.5, 0.9, 0.9), ("L2", "L3"), padding_hu=-3024),
            marks=pytest.mark.long,
        ),
    ],
    ids=["default", "thick slices", "coarse, no circle", "two levels"],
)
def test_the_image_compresses_like_real_ct(spec):
    data = make_phantom(spec).image.tobytes()
    assert 1.4 <= len(data) / len(zlib.compress(data, 6)) <= 2.0


def test_noise_is_correlated_in_plane_and_can_be_turned_off():
    still = make_phantom(replace(SHARP, noise_hu=0, padding_hu=None)).image.astype(float)
    noisy = make_phantom(replace(SHARP, noise_hu=30, padding_hu=None)).image
    noise = (noisy - still)[still > -800].ravel()
    assert 20 < noise.std() < 32
    plane = (noisy - still)[10]
    assert 0.2 < np.corrcoef(plane[:, 1:].ravel(), plane[:, :-1].ravel())[0, 1] < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ("L2", "L1")}, "from head to tail"),
        ({"levels": ("L1", "L1")}, "each once"),
        ({"levels": ("L1",)}, "at least two"),
        ({"levels": ("L1", "L7")}, "no vertebra is named L7"),
        ({"unlabeled": ("C3",)}, "absent from levels"),
        ({"shape_zyx": (4, 40, 40)}, "at least 8"),
        ({"spacing_zyx_mm": (1.0, 0.0, 1.0)}, "positive"),
        ({"spacing_zyx_mm": (1.0, float("nan"), 1.0)}, "positive"),
        ({"cut_share": 0.6}, "0 to 0.5"),
        ({"noise_hu": -1.0}, "0 to 500"),
        ({"padding_hu": -40000}, "int16"),
    ],
)
def test_bad_specs_are_refused_with_a_reason(change, message):
    with pytest.raises(UsageError, match=message):
        PhantomSpec(**change)


@pytest.mark.parametrize(
    ("levels", "height"),
    [
        (usual_levels("C1", "C7"), 80),
        (usual_levels("T1", "T12"), 170),
        (usual_levels("L1", "L5"), 120),
    ],
)
def test_every_whole_vertebra_has_its_arch(levels, height):
    phantom = make_phantom(PhantomSpec(5, (height, 75, 75), (2.0, 2.0, 2.0), levels, cut_share=0))
    for name in levels:
        y = np.nonzero(phantom.label == VALUE_OF_NAME[name])[1]
        assert 2.0 * np.ptp(y) > 2 * size_of(name).depth, f"{name} has no arch"
