"""A mask that spells its vertebrae otherwise has their colors and order, wherever it is shown."""

import shutil

import numpy as np
import pytest

import spinezarr
from spinezarr.export.preview import mask_legend
from spinezarr.export.spine_slices import middle_of_spine
from spinezarr.label_schemes import SCHEMES
from spinezarr.vertebrae import VALUE_OF_NAME, hex_of, structure_color, vertebra_color
from spinezarr.view.scan_view import MaskModel
from spinezarr.view.shown_labels import shown_labels

SCAN, MASK = "liver_0", "structures"
VERTEBRAE = {"vertebrae_T12": "T12", "vertebrae_L1": "L1", "vertebrae_L2": "L2", "sacrum": "sacrum"}
OTHERS = ("spleen", "vertebrae_S1", "spinal_cord")
SCHEME = SCHEMES["totalsegmentator"].values


@pytest.fixture(scope="module")
def scan(ctspine1k_url, tmp_path_factory):
    """Return a scan with a mask of TotalSegmentator, and the engine of its store."""
    folder = tmp_path_factory.mktemp("shown-labels")
    store = spinezarr.open(shutil.copytree(ctspine1k_url, folder / "ctspine1k.zarr"))
    values = np.zeros(store.scan(SCAN).image.shape, np.uint8)
    for z, name in enumerate(reversed((*VERTEBRAE, *OTHERS))):
        values[z, 4:8, 4:8] = SCHEME[name]
    store.write_labels(SCAN, MASK, values, scheme="totalsegmentator")
    store = spinezarr.open(store.url)
    return store._reader.scan(SCAN), store._engine


def test_vertebrae_come_from_head_to_tail_in_their_colors(scan):
    handle, _ = scan
    found = shown_labels(handle.attributes, MASK)
    names = [*VERTEBRAE, *sorted(OTHERS, key=SCHEME.get)]
    assert [label.name for label in found] == [name.replace("_", " ") for name in names]
    expected = {
        SCHEME[text]: vertebra_color(VALUE_OF_NAME[name]) for text, name in VERTEBRAE.items()
    }
    expected |= {SCHEME[name]: structure_color(SCHEME[name]) for name in OTHERS}
    assert {label.value: label.color for label in found} == expected
    assert mask_legend(handle, MASK).colors == expected
    shown = {label.value: label.color for label in MaskModel.of(handle, MASK).vertebrae}
    assert shown == {value: hex_of(color) for value, color in expected.items()}


def test_a_picture_shows_the_middle_of_these_vertebrae(scan):
    handle, engine = scan
    z, y, x = middle_of_spine(handle, engine, MASK)
    top = len(VERTEBRAE) + len(OTHERS) - 1
    assert top - len(VERTEBRAE) < z <= top
    assert 4 <= y < 8
    assert 4 <= x < 8
