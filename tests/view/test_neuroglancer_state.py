"""The state for neuroglancer has the positions, colors, names and windows that NumPy computes."""

import json
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spinezarr
from spinezarr.scaling import Scaling
from spinezarr.vertebrae import VALUE_OF_NAME, hex_color, hex_of, structure_color
from spinezarr.view.neuroglancer_state import (
    LayerUrls,
    neuroglancer_state,
    segment_properties,
    state_fragment,
)
from spinezarr.view.windows import WINDOWS_HU

MASKS = ("label", "parts", "vertebrae")
LAYER_URLS = LayerUrls(
    "http://h/i",
    {name: f"http://h/{name}" for name in MASKS},
    {name: f"http://h/s/{name}" for name in MASKS},
)


@pytest.fixture(scope="module")
def scan(ctspine1k_url):
    return spinezarr.open(ctspine1k_url)._reader.scan("liver_0")


def placed(scan, affine):
    """Return the scan with another affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    rows = tuple(map(tuple, affine.tolist()))
    facts = scan.attributes.model_copy(update={"affine": rows, "spacing_zyx_mm": (z, y, x)})
    return replace(scan, attributes=facts)


def layers_of(scan):
    return {layer["name"]: layer for layer in neuroglancer_state(scan, LAYER_URLS, "t")["layers"]}


angles = st.floats(-30, 30)


@given(
    angles=st.tuples(angles, angles),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    voxel=st.tuples(*[st.integers(0, 60)] * 3),
)
def test_every_voxel_has_the_position_of_the_affine(scan, angles, spacing, origin, voxel):
    a, b = np.radians(angles)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_z) @ about_x * spacing
    affine[:3, 3] = origin
    moved = placed(scan, affine)
    for layer in layers_of(moved).values():
        source = layer["source"]
        transform = (source[0] if isinstance(source, list) else source)["transform"]
        assert list(transform["inputDimensions"]) == ["z", "y", "x"]
        scales = [1000 * scale for scale, _ in transform["inputDimensions"].values()]
        center = (np.array(voxel[::-1]) + 0.5) * scales  # neuroglancer counts from voxel corners
        np.testing.assert_allclose(
            np.array(transform["matrix"]) @ (*center, 1), affine[:3] @ (*voxel, 1), atol=1e-6
        )


def turned(quaternion, vector):
    x, y, z, w = quaternion
    axis = np.array([x, y, z])
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * np.array(vector))


RIGHT, ANTERIOR, SUPERIOR = np.eye(3)


@pytest.mark.parametrize(
    ("column", "row", "to_the_right", "down"),
    [(0, 0, -RIGHT, -ANTERIOR), (1, 0, -ANTERIOR, -SUPERIOR), (1, 1, -RIGHT, -SUPERIOR)],
    ids=["axial", "sagittal", "coronal"],
)
def test_planes_have_the_radiological_orientation(scan, column, row, to_the_right, down):
    layout = neuroglancer_state(scan, LAYER_URLS, "t")["layout"]
    quaternion = layout["children"][column]["children"][row]["crossSectionOrientation"]["value"]
    np.testing.assert_allclose(turned(quaternion, [1.0, 0, 0]), to_the_right, atol=1e-12)
    np.testing.assert_allclose(turned(quaternion, [0, 1.0, 0]), down, atol=1e-12)


def test_the_3d_view_is_from_the_front(scan):
    inward = turned(neuroglancer_state(scan, LAYER_URLS, "t")["projectionOrientation"], [0, 0, 1.0])
    assert inward @ -ANTERIOR > 0.8
    assert inward @ RIGHT > 0.3
    assert inward @ -SUPERIOR > 0.3


def test_the_planes_cross_in_a_vertebra_near_the_middle(scan):
    state = neuroglancer_state(scan, LAYER_URLS, "t")
    centers = np.array(
        [scan.affine[:3] @ (*v.centroid_zyx[::-1], 1) for v in scan.attributes.vertebrae.values()]
    )
    distances = np.linalg.norm(centers - state["position"], axis=1)
    assert distances.min() < 0.01
    heights = np.sort(centers[:, 2])
    assert heights[0] < state["position"][2] < heights[-1]


def test_a_scan_without_vertebrae_is_shown_whole(scan):
    facts = scan.attributes.model_copy(update={"vertebrae": {}, "centroids": {}})
    state = neuroglancer_state(replace(scan, attributes=facts, label=None), LAYER_URLS, "t")
    assert [layer["name"] for layer in state["layers"]] == ["CT"]
    corners = (
        scan.affine[:3] @ np.array([(0, 0, 0, 1), (*np.array(scan.image.shape_zyx)[::-1] - 1, 1)]).T
    )
    np.testing.assert_allclose(state["position"], corners.mean(axis=1), atol=1e-3)


def test_vertebrae_have_their_names_and_colors(scan):
    layer = layers_of(scan)["vertebrae"]
    values = {VALUE_OF_NAME[name] for name in scan.attributes.vertebrae}
    assert set(layer["segments"]) == set(map(str, values))
    assert layer["segmentColors"] == {str(value): hex_color(value) for value in values}
    inline = segment_properties(scan.attributes)["inline"]
    names, volumes = (one["values"] for one in inline["properties"])
    assert {VALUE_OF_NAME[name] for name in names} == set(map(int, inline["ids"]))
    assert [VALUE_OF_NAME[name] for name in names] == list(map(int, inline["ids"]))
    voxel_ml = np.prod(scan.attributes.spacing_zyx_mm) / 1000
    expected = [scan.attributes.vertebrae[name].voxel_count * voxel_ml for name in names]
    np.testing.assert_allclose(volumes, expected, rtol=1e-3)


def test_each_further_mask_is_a_layer_that_a_click_shows(ctspine1k_url, tmp_path):
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "copy.zarr"))
    parts = np.zeros(store.scan("liver_0").image.shape, np.uint8)
    parts[3:9, 4:9, 5:9], parts[12:15, 4:9, 5:9] = 20, 200
    for name in MASKS[1:]:
        store.write_labels("liver_0", name, parts, scheme={20: "left rib", 200: "L1"})
    scan = spinezarr.open(store.url)._reader.scan("liver_0")
    layers = layers_of(scan)
    assert list(layers) == ["CT", "vertebrae", "parts", "mask vertebrae"]
    assert [layer.get("visible", True) for layer in layers.values()] == [True, True, False, False]
    for name, mask in (("parts", "parts"), ("mask vertebrae", "vertebrae")):
        layer = layers[name]
        assert layer["source"][0]["url"] == f"http://h/{mask}/|zarr3:"
        assert layer["source"][1] == f"http://h/s/{mask}/|neuroglancer-precomputed:"
        colors = {"200": hex_color(20), "20": hex_of(structure_color(20))}
        assert layer["segmentColors"] == colors
        assert layer["segments"] == ["200", "20"]
    inline = segment_properties(scan.attributes, "parts")["inline"]
    assert inline["ids"] == ["200", "20"]
    assert inline["properties"][0]["values"] == ["L1", "left rib"]


def test_mask_values_of_other_structures_have_names(scan):
    more = {"other_labels": {"41": 7, "99": 3}, "structures": {"41": "vertebral_disc"}}
    facts = scan.attributes.model_copy(update=more)
    inline = segment_properties(facts)["inline"]
    assert inline["ids"][-2:] == ["41", "99"]
    assert inline["properties"][0]["values"][-2:] == ["vertebral disc", "value 99"]


@pytest.mark.parametrize(
    ("dtype", "scaling", "expected"),
    [
        ("int16", None, [-500, 1300]),
        ("float32", None, [-500.0, 1300.0]),
        ("uint8", Scaling(10.0, -1000.0), [50, 230]),
        ("uint8", None, [0, 255]),
        ("int16", Scaling(-2.0, 0.0), [250, -650]),
    ],
)
def test_the_window_is_in_stored_numbers(scan, dtype, scaling, expected):
    assert WINDOWS_HU["bone"] == (-500.0, 1300.0)
    image = replace(scan.image, stored_dtype=np.dtype(dtype), scaling=scaling)
    layer = layers_of(replace(scan, image=image))["CT"]
    found = layer["shaderControls"]["normalized"]["range"]
    assert (found, list(map(type, found))) == (expected, list(map(type, expected)))


@given(st.text(max_size=20))
def test_any_title_can_be_put_into_a_url(title):
    fragment = state_fragment({"title": title})
    assert fragment.isascii()
    assert not set(fragment) & set(' "<>#%\\^`{}') - {"%"}
    assert json.loads(unquote(fragment[1:])) == {"title": title}
