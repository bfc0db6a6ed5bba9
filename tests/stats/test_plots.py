"""Plots, read from their artists: they draw the figures, and no text covers another."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.patches import PathPatch

from spinezarr.stats.plots import draw_detection, draw_spacing, draw_volumes
from spinezarr.stats.statistics import compute_statistics, to_file_axes, volumes_cm3
from spinezarr.vertebrae import LEVELS

SOURCES = ("a", "b", "c", "d", "e", "f", "g", "h")


@pytest.fixture(scope="module")
def table(table_of):
    """Return a table of 300 scans with every vertebra but S1 and S2; one is too rare for a box."""
    rng = np.random.default_rng(0)
    shown = [name for name in LEVELS if name not in {"S1", "S2"}]
    rows = []
    for at in range(300):
        chosen = [n for n in shown if rng.random() < 0.7 and (n != "T13" or at < 3)]
        volumes = {name: float(rng.uniform(5, 120)) for name in chosen}
        spacing = (0.5 + at % 7 / 10, 0.5 + at % 7 / 10, float(rng.choice([0.8, 1, 5])))
        source = SOURCES[int(rng.integers(8) * rng.random())]
        row = {"volumes": volumes, "centroids": {"S1"}, "codes": "PIR", "source": source}
        rows.append(row | {"spacing": spacing})
    return table_of(rows, "CTSpine1K")


def assert_texts_stand_apart(figure):
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    texts = [axes.title, *axes.texts, *ticks, axes.xaxis.label, axes.yaxis.label]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    texts = [text for text in texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(texts) > 8
    for (one, a), (two, b) in combinations(zip(texts, boxes, strict=True), 2):
        assert not a.overlaps(b), (one, two)
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def labels(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_detection_has_a_bar_per_vertebra_as_high_as_its_rate(table):
    statistics = compute_statistics(table)
    figure = draw_detection(statistics)
    (axes,) = figure.axes
    bars = axes.containers[0]
    assert labels(axes) == [name for name in statistics.vertebrae if name != "S1"]
    assert len(bars) == 28
    rows = [row for name, row in statistics.vertebrae.items() if name != "S1"]
    assert [bar.get_height() for bar in bars] == [row.detection_percent for row in rows]
    centers = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    np.testing.assert_allclose(centers, axes.get_xticks())
    assert [t.get_text() for t in axes.texts if t.get_text().isdigit()] == [
        str(row.scans) for row in rows
    ]
    assert len({bar.get_facecolor() for bar in bars}) == 4
    assert axes.get_ylim()[1] > 100
    assert_texts_stand_apart(figure)


def test_volumes_have_boxes_of_quartiles_and_single_points_for_few_values(table):
    volumes = volumes_cm3(table)
    figure = draw_volumes(table)
    (axes,) = figure.axes
    assert labels(axes) == list(volumes)
    drawn = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    boxed = {name: values for name, values in volumes.items() if values.size >= 10}
    assert set(volumes) - set(boxed) == {"T13"}
    for patch, (name, values) in zip(drawn, boxed.items(), strict=True):
        x, y = patch.get_path().vertices[:4].T
        assert x.mean() == pytest.approx(list(volumes).index(name))
        np.testing.assert_allclose(sorted(set(y)), np.percentile(values, [25, 75]))
    medians = [line for line in axes.lines if line.get_linewidth() == 1.6]
    for line, values in zip(medians, boxed.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.median(values))
    ends = [
        float(y) for line in axes.lines if line.get_linewidth() == 0.8 for y in line.get_ydata()
    ]
    beyond = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    for values, outside in zip(boxed.values(), beyond, strict=True):
        low, high = np.percentile(values, [5, 95])
        inside = values[(values >= low) & (values <= high)]
        assert {inside.min(), inside.max()} <= set(ends)
        assert sorted(outside) == sorted(set(values) - set(inside))
    few = [line for line in axes.lines if set(line.get_ydata()) == set(volumes["T13"])]
    assert few
    counts = [t.get_text() for t in axes.texts if t.get_text().isdigit()]
    assert counts == [str(values.size) for values in volumes.values()]
    assert axes.get_ylim()[1] > max(values.max() for values in volumes.values())
    assert_texts_stand_apart(figure)


def test_spacing_has_a_mark_per_scan_in_file_order(table):
    figure = draw_spacing(table)
    (axes,) = figure.axes
    drawn = np.concatenate([marks.get_offsets() for marks in axes.collections])
    spacing = to_file_axes(table, "spacing_zyx_mm")
    expected = np.stack([spacing[:, 0], spacing[:, 2]], axis=1)
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(map(tuple, expected)))
    (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    assert left < expected[:, 0].min() < expected[:, 0].max() < right
    assert expected[:, 1].max() < top
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    largest = table.source.to_pandas().value_counts()
    assert largest.size > 6
    assert named[:5] == [f"{name} ({n})" for name, n in largest.items()][:5]
    assert named[5:] == [f"others ({largest[5:].sum()})", "isotropic"]
    assert_texts_stand_apart(figure)


def test_a_table_without_scans_or_masks_can_be_plotted(table_of):
    for rows in ([], [{"mask": False, "source": "a"}]):
        made = table_of(rows)
        for figure in (
            draw_volumes(made),
            draw_detection(compute_statistics(made)),
            draw_spacing(made),
        ):
            figure.canvas.draw()
            assert figure.axes[0].get_ylabel()
