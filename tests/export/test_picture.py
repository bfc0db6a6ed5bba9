"""Sides, sizes in mm, colors and names of the pictures, read from rendered pixels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest

from spinezarr.errors import UsageError
from spinezarr.export.marks import spread_apart
from spinezarr.export.picture import draw_preview
from spinezarr.export.plane import PreviewPlane, PreviewPoint
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, VALUE_OF_NAME, vertebra_color

AIR, BONE = -1000, 2000
PLANES = ("sagittal", "coronal", "axial")


def plane_of(name, image, label=None, *, spacing=(1.0, 1.0), position=0.0, origin=None, points=()):
    shown = tuple(PreviewPoint(*point) for point in points)
    return PreviewPlane(name, image, label, spacing, position, origin, shown)


def three_planes(shape_zyx, label_zyx=None, spacing_zyx=(1.0, 1.0, 1.0)):
    image = np.full(shape_zyx, 100, np.int16)
    z, y, x = (n // 2 for n in shape_zyx)
    cuts = {"sagittal": np.s_[:, :, x], "coronal": np.s_[:, y, :], "axial": np.s_[z]}
    axes = {"sagittal": (0, 1), "coronal": (0, 2), "axial": (1, 2)}
    return [
        plane_of(
            name,
            image[cut],
            None if label_zyx is None else label_zyx[cut],
            spacing=tuple(spacing_zyx[axis] for axis in axes[name]),
            origin=(0.0, 0.0),
        )
        for name, cut in cuts.items()
    ]


def panel(figure, name):
    return next(axes for axes in figure.axes if axes.get_label() == name)


def pixels(figure, name):
    """Return red, green and blue of a panel, 0 to 1, without its frame."""
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    x0, y0, x1, y1 = panel(figure, name).bbox.extents.round().astype(int)
    height = picture.shape[0]
    return picture[height - y1 + 2 : height - y0 - 2, x0 + 2 : x1 - 2]


def names_in(figure, name):
    known = {*NAME_OF_VALUE.values(), "200"}
    return [text for text in panel(figure, name).texts if text.get_text() in known]


def dots_in(figure, name):
    """Return the position in mm across and up, and the color, of each dot of a panel."""
    dots = [line for line in panel(figure, name).lines if line.get_marker() == "o"]
    return [(*line.get_xydata()[0].tolist(), line.get_markerfacecolor()) for line in dots]


def boxes_of(texts):
    """Return left, bottom, right and top of texts, in pixels."""
    return {text.get_text(): text.get_window_extent().extents for text in texts}


def column_of_vertebrae(names, *, height=12, gap=2):
    """Return sagittal labels (z, y) from head to foot, with bodies at y 20 to 39."""
    rows = len(names) * (height + gap)
    label = np.zeros((rows, 60), np.uint8)
    for rank, name in enumerate(names):
        top = rows - rank * (height + gap)
        label[top - height : top, 20:40] = VALUE_OF_NAME[name]
    return label


@pytest.mark.parametrize("name", PLANES)
def test_high_rows_are_up_and_low_columns_on_the_right(name):
    image = np.full((40, 40), AIR, np.int16)
    image[28:32, 6:10] = BONE
    seen = pixels(draw_preview("s", [plane_of(name, image)], ""), name).mean(axis=2)
    down, across = (np.argwhere(seen > 0.6).mean(axis=0) + 0.5) / seen.shape
    assert down == pytest.approx(1 - 30 / 40, abs=0.01)
    assert across == pytest.approx(1 - 8 / 40, abs=0.01)


@pytest.mark.parametrize(
    ("name", "left", "right", "up", "down"),
    [("sagittal", *"APSI"), ("coronal", *"RLSI"), ("axial", *"RLAP")],
)
def test_orientation_letters_stand_outside_the_edges_of_panels(name, left, right, up, down):
    figure = draw_preview("s", [plane_of(name, np.zeros((40, 40)))], "")
    at = {text.get_text(): text.get_position() for text in panel(figure, name).texts}
    assert (at[left][0] < 0, at[right][0] > 1) == (True, True)
    assert (at[down][1] < 0, at[up][1] > 1) == (True, True)


def test_anisotropic_voxels_keep_their_shape_in_mm():
    image = np.full((24, 240), AIR, np.int16)
    image[8:16, 40:140] = BONE
    seen = pixels(
        draw_preview("s", [plane_of("coronal", image, spacing=(5.0, 0.4))], ""), "coronal"
    )
    bright = np.argwhere(seen.mean(axis=2) > 0.5)
    height, width = np.ptp(bright, axis=0) + 1
    assert height == pytest.approx(width, rel=0.02)


def test_upright_panels_share_one_scale():
    figure = draw_preview("s", three_planes((100, 60, 90), spacing_zyx=(3.0, 1.0, 2.0)), "")
    sagittal, coronal = (panel(figure, name).bbox for name in PLANES[:2])
    assert sagittal.height == pytest.approx(coronal.height)
    assert coronal.width / coronal.height == pytest.approx(180 / 300)
    assert sagittal.width / sagittal.height == pytest.approx(60 / 300)


def test_scale_bar_is_fifty_mm_long():
    figure = draw_preview("s", [plane_of("axial", np.zeros((80, 100)), spacing=(1.0, 2.0))], "")
    axes = panel(figure, "axial")
    (bar,) = axes.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(50 / 200)
    assert "50 mm" in {text.get_text() for text in axes.texts}


def test_scale_bar_is_shorter_in_a_small_panel():
    figure = draw_preview("s", [plane_of("axial", np.zeros((30, 30)))], "")
    assert "20 mm" in {text.get_text() for text in panel(figure, "axial").texts}


@pytest.mark.parametrize("value", [1, 10, 19, 28, 200])
def test_labels_are_a_translucent_fill_with_a_full_contour(value):
    image, label = np.full((40, 40), AIR, np.int16), np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = value
    color = np.array(vertebra_color(value) if value in NAME_OF_VALUE else (0.85, 0.85, 0.85))
    seen = pixels(draw_preview("s", [plane_of("axial", image, label)], ""), "axial")
    height, width, _ = seen.shape
    inside = seen[height * 5 // 16, width * 5 // 16] / color.max()
    assert 0.3 < inside.max() < 0.5
    np.testing.assert_allclose(inside / inside.max(), color / color.max(), atol=0.03)
    line = seen[height // 4 - 4 : height // 4 + 5, width * 5 // 16]
    np.testing.assert_allclose(line[line.sum(axis=1).argmax()], color, atol=0.25)
    np.testing.assert_allclose(seen[height // 8, width // 8], 0, atol=0.02)


def test_labels_cover_their_own_voxels():
    image, label = np.full((30, 30), AIR, np.int16), np.zeros((30, 30), np.uint8)
    label[20:24, 3:9] = 20
    planes = [plane_of("axial", image, label, spacing=(2.0, 1.0), origin=(-70.0, 500.0))]
    seen = pixels(draw_preview("s", planes, ""), "axial")
    blue = np.argwhere(seen[..., 2] > seen[..., 1] + 0.1) / seen.shape[:2]
    np.testing.assert_allclose(blue.min(axis=0), (1 - 24 / 30, 1 - 9 / 30), atol=0.02)
    np.testing.assert_allclose(blue.max(axis=0), (1 - 20 / 30, 1 - 3 / 30), atol=0.02)


def test_a_scan_without_mask_has_image_but_no_names():
    figure = draw_preview("s", three_planes((30, 30, 30)), "")
    for name in PLANES:
        assert not names_in(figure, name)
        assert not panel(figure, name).collections
        assert pixels(figure, name).mean() > 0.2


def test_an_unknown_label_shows_its_number():
    label = np.zeros((40, 40, 40), np.uint8)
    label[10:30, 10:30, 10:30] = 200
    figure = draw_preview("s", three_planes(label.shape, label), "")
    assert [text.get_text() for name in PLANES for text in names_in(figure, name)] == ["200"] * 3


@pytest.mark.parametrize(("height", "below", "beside"), [(12, 0, 0), (3, 150, 600), (3, 0, 600)])
def test_all_sagittal_names_are_shown_in_order_without_overlap(height, below, beside):
    label = column_of_vertebrae(ANATOMICAL_ORDER, height=height, gap=1)
    label = np.pad(label, ((below, 0), (0, beside)))
    figure = draw_preview("s", [plane_of("sagittal", label * 0, label, spacing=(2.0, 2.0))], "")
    boxes = boxes_of(names_in(figure, "sagittal"))
    assert sorted(boxes, key=lambda name: -boxes[name][1]) == list(ANATOMICAL_ORDER)
    for name, other in combinations(ANATOMICAL_ORDER, 2):
        assert boxes[name][1] > boxes[other][3] - 3, (name, other)
    low, high = panel(figure, "sagittal").bbox.intervaly
    assert all(low - 3 < box[1] < box[3] < high + 3 for box in boxes.values())
    assert min(box[0] for box in boxes.values()) > 0


def test_sagittal_names_stand_anterior_to_their_bodies():
    label = column_of_vertebrae(["T12", "L1", "L2"])
    label[:, 5:10] = label[:, 20:25]
    figure = draw_preview("s", [plane_of("sagittal", label * 0, label)], "")
    to_mm = panel(figure, "sagittal").transData.inverted()
    for rank, (_, bottom, right, top) in enumerate(boxes_of(names_in(figure, "sagittal")).values()):
        front, middle = to_mm.transform((right, (bottom + top) / 2))
        assert 40 < front < 46
        assert middle == pytest.approx(7.5 + 14 * rank, abs=1)


def test_a_lone_arch_is_named_posterior_to_it():
    label = np.zeros((60, 60), np.uint8)
    label[10:40, 25:50], label[20:30, 10:16] = 19, 18
    figure = draw_preview("s", [plane_of("sagittal", label * 0, label)], "")
    to_mm = panel(figure, "sagittal").transData.inverted()
    boxes = boxes_of(names_in(figure, "sagittal"))
    assert to_mm.transform(boxes["T12"][2:])[0] > 49
    assert to_mm.transform(boxes["T11"][:2])[0] < 10


def test_a_posterior_name_stays_in_its_panel():
    label = np.zeros((60, 60), np.uint8)
    label[10:40, 25:50], label[20:30, 0:6] = 19, 18
    figure = draw_preview("s", [plane_of("sagittal", label * 0, label)], "")
    box = boxes_of(names_in(figure, "sagittal"))["T11"]
    assert box[2] <= panel(figure, "sagittal").bbox.x1


def test_names_in_a_narrow_panel_do_not_cover_the_orientation_letter():
    label = column_of_vertebrae(ANATOMICAL_ORDER)[:, 18:42]
    figure = draw_preview("s", [plane_of("sagittal", label * 0, label)], "")
    letter = next(text for text in panel(figure, "sagittal").texts if text.get_text() == "A")
    assert letter.get_position()[1] > 1
    assert min(box[0] for box in boxes_of(names_in(figure, "sagittal")).values()) > 0


@pytest.mark.parametrize("name", PLANES[1:])
def test_names_at_centers_are_left_out_in_favor_of_larger_regions(name):
    label = np.zeros((60, 60), np.uint8)
    label[10:30, 10:50], label[31:33, 28:32], label[40:55, 10:50] = 20, 21, 22
    label[19:21, 28:31] = 19
    label[57, 3] = 23
    figure = draw_preview("s", [plane_of(name, label * 0, label)], "")
    boxes = boxes_of(names_in(figure, name))
    assert set(boxes) == {"L1", "L2", "L3"}
    x, y = panel(figure, name).transData.transform((29.5, 19.5))
    left, bottom, right, top = boxes["L1"]
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx((x, y), abs=4)


def test_names_at_centers_never_overlap():
    label = np.repeat(np.arange(1, 27, dtype=np.uint8), 2)[:, None].repeat(500, axis=1)
    figure = draw_preview("s", [plane_of("coronal", label * 0, label, spacing=(2.0, 2.0))], "")
    boxes = boxes_of(names_in(figure, "coronal")).values()
    assert len(boxes) > 5
    for (_, bottom, _, top), (_, other_bottom, _, other_top) in combinations(boxes, 2):
        assert bottom > other_top - 3 or other_bottom > top - 3


@pytest.mark.parametrize("name", PLANES)
def test_annotated_centers_are_named_dots_at_their_position_in_mm(name):
    points = [("T12", 30.5, 20.0), ("L1", 20.0, 20.25), ("S1", 8.0, 24.0)]
    plane = plane_of(
        name, np.zeros((40, 50)), spacing=(3.0, 2.0), origin=(-500.0, 70.0), points=points
    )
    figure = draw_preview("s", [plane], "")
    gray = (0.85, 0.85, 0.85)
    assert dots_in(figure, name) == [
        (110.0, -408.5, vertebra_color(19)),
        (110.5, -440.0, vertebra_color(20)),
        (118.0, -476.0, gray),
    ]
    to_mm = panel(figure, name).transData.inverted()
    texts = {text.get_text(): text for text in panel(figure, name).texts}
    named = {name: text for name, text in texts.items() if name in {"T12", "L1", "S1"}}
    assert list(named) == ["S1", "L1", "T12"]
    for (_, row, column), text in zip(points[::-1], named.values(), strict=True):
        _, bottom, right, top = text.get_window_extent().extents
        across, up = to_mm.transform((right, (bottom + top) / 2))
        assert up == pytest.approx(-500 + 3 * row, abs=1.5)
        assert 0 < across - (70 + 2 * column) < 12, "on the left, where columns are higher"


def test_a_dot_is_visible_on_its_label_and_its_level_is_named_once():
    label = np.zeros((40, 40, 40), np.uint8)
    label[10:30, 10:30, 10:30] = 20
    for name, plane in zip(PLANES, three_planes(label.shape, label), strict=True):
        dotted = replace(plane, points=(PreviewPoint("L1", 19.5, 19.5),))
        figure = draw_preview("s", [dotted], "")
        (text,) = names_in(figure, name)
        seen = pixels(figure, name)
        height, width, _ = seen.shape
        np.testing.assert_allclose(
            seen[height // 2, width // 2], vertebra_color(20), atol=0.1, err_msg="no name covers it"
        )
        _, bottom, _, top = text.get_window_extent().extents
        offset = (bottom + top) / 2 - np.mean(panel(figure, name).bbox.intervaly)
        assert offset == pytest.approx(0 if name == "sagittal" else -10.5, abs=2)


def test_a_center_whose_level_no_label_shows_is_named():
    label = column_of_vertebrae(["L1", "L2"])
    points = [("T12", 25.0, 30.0), ("L1", 21.0, 30.0), ("L2", 7.0, 30.0)]
    for name in PLANES:
        figure = draw_preview("s", [plane_of(name, label * 0, label, points=points)], "")
        assert sorted(text.get_text() for text in names_in(figure, name)) == ["L1", "L2", "T12"]
        assert len(dots_in(figure, name)) == 3


def test_lines_show_where_the_other_planes_cut():
    at = {"sagittal": 3.0, "coronal": -7.0, "axial": 11.0}
    origin = {"sagittal": (-20.0, -15.0), "coronal": (-20.0, -10.0), "axial": (-15.0, -10.0)}
    planes = [
        plane_of(name, np.zeros((40, 40)), position=at[name], origin=origin[name])
        for name in PLANES
    ]
    figure = draw_preview("s", planes, "")
    across = {"sagittal": ("coronal", "axial"), "coronal": ("sagittal", "axial")}
    across["axial"] = ("sagittal", "coronal")
    for name, (upright, level) in across.items():
        lines = [line.get_xydata() for line in panel(figure, name).lines]
        assert any((xy[:, 0] == at[upright]).all() for xy in lines), (name, upright)
        assert any((xy[:, 1] == at[level]).all() for xy in lines), (name, level)
        xlim = panel(figure, name).get_xlim()
        assert xlim == pytest.approx((origin[name][1] + 39.5, origin[name][1] - 0.5))


def test_planes_without_origin_show_no_cuts():
    figure = draw_preview("s", [plane_of(name, np.zeros((40, 40))) for name in PLANES], "")
    assert all(len(axes.lines) == 1 for axes in figure.axes), "only the scale bar"


@pytest.mark.parametrize("shape", [(30, 30, 30), (300, 30, 30)])
def test_title_and_caption_are_shown_unchanged(shape):
    caption = "CC-BY-4.0, 80 voxels of 1 mm " * 12
    figure = draw_preview("sub-$1_2$", three_planes(shape), caption)
    figure.canvas.draw()
    written = [text.get_text() for text in figure.texts]
    assert written[0] == "sub-$1_2$"
    assert " ".join(reversed(written[1:])) == caption.strip()
    assert not any(text.get_parse_math() for text in figure.texts)
    width, _ = figure.get_size_inches() * figure.dpi
    assert all(text.get_window_extent().x1 <= width for text in figure.texts)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((20, 20, 20), (3.0, 3.0, 3.0)),
        ((1000, 60, 60), (1.0, 1.0, 1.0)),
        ((60, 1000, 60), (1.0, 1.0, 1.0)),
        ((1, 50, 50), (1.0, 1.0, 1.0)),
        ((1, 1, 1), (0.2, 0.2, 0.2)),
        ((60, 64, 64), (5.0, 0.7, 0.7)),
    ],
)
def test_any_volume_fits_the_picture(shape, spacing, tmp_path):
    label = (np.arange(np.prod(shape), dtype=np.int64) % 29).astype(np.uint8).reshape(shape)
    if min(shape) > 1:
        label[:] = np.linspace(1, 28, shape[0]).astype(np.uint8)[:, None, None]
    path = tmp_path / "scan.png"
    draw_preview("scan", three_planes(shape, label, spacing), "caption").savefig(path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert 700 <= width <= 1900
    assert 200 <= height <= 900


def test_pictures_are_reproducible_in_any_thread(tmp_path):
    label = np.zeros((30, 30, 30), np.uint8)
    label[5:25, 5:25, 5:25] = 20
    planes = three_planes(label.shape, label)
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    draw_preview("scan", planes, "caption").savefig(paths[0])
    with ThreadPoolExecutor(3) as pool:
        figures = pool.map(lambda _: draw_preview("scan", planes[::-1], "caption"), paths[1:])
        list(pool.map(lambda figure, path: figure.savefig(path), figures, paths[1:]))
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("planes", [[], [plane_of("axial", np.zeros((2, 2)))] * 2])
def test_empty_or_repeated_planes_are_refused(planes):
    with pytest.raises(UsageError, match="different orientations"):
        draw_preview("scan", planes, "")


@pytest.mark.parametrize(
    ("image", "label", "spacing", "message"),
    [
        (np.zeros((2, 2, 2)), None, (1.0, 1.0), "2 axes"),
        (np.zeros((0, 2)), None, (1.0, 1.0), "2 axes"),
        (np.zeros((2, 3)), np.zeros((3, 2), np.uint8), (1.0, 1.0), "differs"),
        (np.zeros((2, 2)), None, (1.0, 0.0), "not positive"),
    ],
)
def test_slices_that_cannot_be_drawn_are_refused(image, label, spacing, message):
    with pytest.raises(UsageError, match=message):
        plane_of("axial", image, label, spacing=spacing)


def test_spread_keeps_order_gap_and_bounds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        targets = sorted(rng.uniform(0, 100, 20).tolist())
        placed = spread_apart(targets, 4.0, 2.0, 98.0)
        assert (np.diff(placed) >= 4.0 - 1e-9).all()
        assert placed[0] >= 2.0
        assert placed[-1] <= 98.0 + 1e-9


def test_spread_keeps_positions_that_have_room():
    assert spread_apart([3.0, 20.0, 40.0], 4.0, 0.0, 50.0) == [3.0, 20.0, 40.0]
