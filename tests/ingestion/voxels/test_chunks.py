import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spinezarr.errors import LabelError
from spinezarr.ingestion.voxels.chunks import (
    DoesNotFitError,
    ImageEncoder,
    LabelEncoder,
    cast_losslessly,
)
from spinezarr.store.layout import BALANCED, fill_value
from spinezarr.store.sharding import crc32c, decode_chunk
from spinezarr.testing import DTYPES

dtypes = st.sampled_from(DTYPES).map(np.dtype)
EDGES = [0.5, -1, -32769, 32768, -32768, 255, 256, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -0.0, 3e38]
chunk_indices = st.tuples(*[st.integers(0, 20)] * 3)


def numbers_of(dtype):
    """Draw any number of a dtype, and often one at the limit of another dtype."""
    if dtype.kind == "f":
        width = dtype.itemsize * 8
        edges = [float(np.float32(edge)) if width == 32 else float(edge) for edge in EDGES]
        return st.one_of(
            st.sampled_from(edges), st.integers(-9, 300).map(float), st.floats(width=width)
        )
    limits = np.iinfo(dtype)
    edges = [limits.min, limits.max, *(int(edge) for edge in EDGES)]
    fitting = [edge for edge in edges if limits.min <= edge <= limits.max]
    return st.one_of(st.sampled_from(fitting), st.integers(limits.min, limits.max))


def exact(number):
    """Return a NumPy number as an exact integer, or None if it is none, without any cast."""
    value = number.item()
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


def decoded(encoded, dtype):
    out = np.zeros(BALANCED.chunk_shape_zyx, dtype)
    decode_chunk(encoded.data, out)
    return out


@settings(max_examples=400)
@given(st.data(), dtypes, st.sampled_from(["uint8", "int16"]).map(np.dtype))
def test_a_cast_to_integers_keeps_every_value_or_refuses(data, source, target):
    values = data.draw(arrays(source, st.integers(1, 6), elements=numbers_of(source)))
    limits = np.iinfo(target)
    whole = [exact(number) for number in values]
    misfits = [
        number.item()
        for number, value in zip(values, whole, strict=True)
        if value is None or not limits.min <= value <= limits.max
    ]
    if misfits:
        with pytest.raises(DoesNotFitError) as caught:
            cast_losslessly(values, target)
        np.testing.assert_equal(caught.value.value, misfits[0])
    else:
        cast = cast_losslessly(values, target)
        assert cast.dtype == target
        assert cast.tolist() == whole


@given(st.data(), dtypes)
def test_a_cast_to_the_same_type_keeps_every_value(data, dtype):
    values = data.draw(arrays(dtype, (2, 3), elements=numbers_of(dtype)))
    assert cast_losslessly(values, dtype).tobytes() == values.tobytes()


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.int16, st.tuples(*[st.integers(1, n) for n in (64, 32, 32)]), fill=st.just(0)),
    chunk_indices,
)
def test_an_image_chunk_decodes_to_its_voxels_and_padding(voxels, chunk_zyx):
    encoded = ImageEncoder(BALANCED, np.dtype(np.int16))(voxels.astype(np.float64), chunk_zyx)
    expected = np.full(BALANCED.chunk_shape_zyx, fill_value("image", np.dtype(np.int16)), np.int16)
    expected[tuple(map(slice, voxels.shape))] = voxels
    np.testing.assert_array_equal(decoded(encoded, np.int16), expected)
    assert encoded.chunk_zyx == chunk_zyx
    assert encoded.facts.checksum == crc32c(expected.tobytes())
    assert (encoded.facts.lowest, encoded.facts.highest) == (voxels.min(), voxels.max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_may_be_stored_in_any_type(dtype):
    dtype = np.dtype(dtype)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    voxels = np.array([limits.min, 3, limits.max], dtype).reshape(3, 1, 1)
    encoded = ImageEncoder(BALANCED, dtype)(voxels, (0, 0, 0))
    np.testing.assert_array_equal(decoded(encoded, dtype)[:3, :1, :1], voxels)


def test_the_range_of_an_image_covers_its_finite_voxels():
    voxels = np.array([np.nan, -7, np.inf, 0.5, -np.inf], np.float32).reshape(5, 1, 1)
    facts = ImageEncoder(BALANCED, voxels.dtype)(voxels, (0, 0, 0)).facts
    assert (facts.lowest, facts.highest) == (-7, 0.5)
    nothing = ImageEncoder(BALANCED, voxels.dtype)(voxels[:1], (0, 0, 0)).facts
    assert (nothing.lowest, nothing.highest) == (np.inf, -np.inf)


@pytest.mark.parametrize("value", [0.5, 32768.0, -32769.0, np.nan, np.inf])
def test_the_error_names_an_image_value_beyond_int16(value):
    voxels = np.full((2, 2, 2), 7.0)
    voxels[1, 1, 1] = value
    with pytest.raises(DoesNotFitError) as caught:
        ImageEncoder(BALANCED, np.dtype(np.int16))(voxels, (0, 0, 0))
    np.testing.assert_equal(caught.value.value, value)


@st.composite
def masks(draw):
    shape = draw(st.tuples(*[st.integers(1, n) for n in (64, 32, 32)]))
    mask = np.zeros(shape, np.uint8)
    for value in draw(st.lists(st.sampled_from([1, 2, 19, 25, 28, 200, 255]), max_size=5)):
        low = [draw(st.integers(0, n - 1)) for n in shape]
        high = [draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True)]
        block = mask[tuple(map(slice, low, high))]
        block[np.random.default_rng(draw(st.integers(0, 99))).random(block.shape) < 0.5] = value
    return mask


@settings(deadline=None, max_examples=60)
@given(masks(), chunk_indices, dtypes.filter(lambda dtype: dtype != "int8"))
@example(np.full((64, 32, 32), 255, np.uint8), (9999, 9999, 9999), np.dtype(np.float64))
def test_counts_and_boxes_of_labels_equal_those_of_numpy(mask, chunk_zyx, dtype):
    encoded = LabelEncoder(BALANCED)(mask.astype(dtype), chunk_zyx)
    assert encoded.chunk_zyx == encoded.facts.chunk_zyx == chunk_zyx
    found = {label.value: label for label in encoded.facts.labels}
    assert list(found) == sorted(set(np.unique(mask).tolist()) - {0})
    origin = [i * n for i, n in zip(chunk_zyx, BALANCED.chunk_shape_zyx, strict=True)]
    for value, label in found.items():
        indices = np.argwhere(mask == value) + origin
        assert label.voxel_count == len(indices)
        assert label.index_sum_zyx == tuple(indices.sum(0).tolist())
        assert label.start_zyx == tuple(indices.min(0).tolist())
        assert label.stop_zyx == tuple((indices.max(0) + 1).tolist())
    if found:
        stored = np.zeros(BALANCED.chunk_shape_zyx, np.uint8)
        stored[tuple(map(slice, mask.shape))] = mask
        np.testing.assert_array_equal(decoded(encoded, np.uint8), stored)
    else:
        assert encoded.data is None


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float64", 0.5),
        ("float32", 254.99),
        ("float64", -1.0),
        ("int8", -1),
        ("int16", -1),
        ("int16", 256),
        ("uint64", 2**64 - 1),
        ("float64", 256.0),
        ("float64", np.nan),
        ("float64", np.inf),
        ("float32", -np.inf),
    ],
)
def test_the_error_names_a_value_that_is_no_label(dtype, value):
    voxels = np.ones((3, 3, 3), dtype)
    voxels[2, 0, 1] = value
    shown = re.escape(repr(voxels[2, 0, 1].item()))
    with pytest.raises(LabelError, match=rf"the value {shown}; .* whole numbers from 0 to 255"):
        LabelEncoder(BALANCED)(voxels, (0, 0, 0))


def test_minus_zero_is_background():
    assert LabelEncoder(BALANCED)(np.full((2, 2, 2), -0.0), (0, 0, 0)).data is None


file_values = st.dictionaries(
    st.integers(1, 65535), st.sampled_from([1, 19, 28, 29, 255]), min_size=1, max_size=5
)


@settings(max_examples=60)
@given(st.data(), file_values, st.sampled_from(["uint16", "int32", "float64"]))
@example(None, {65535: 1}, "uint16")
def test_values_are_mapped_and_dropped_voxels_counted(data, values, dtype):
    if data is None:
        voxels = np.array([[[0, 65535, 65534, 65534]]])
    else:
        numbers = st.sampled_from([0, 1, 7, 65534, *values])
        shape = st.tuples(*[st.integers(1, 4)] * 3)
        voxels = data.draw(arrays(np.int64, shape, elements=numbers))
    encoded = LabelEncoder(BALANCED, values=tuple(values.items()))(voxels.astype(dtype), (0, 0, 0))
    expected = np.zeros_like(voxels)
    for value, stored in values.items():
        expected[voxels == value] = stored
    dropped = {v: n for v, n in Counter(voxels.ravel().tolist()).items() if v and v not in values}
    assert dict(encoded.facts.dropped) == dropped
    counts = {label.value: label.voxel_count for label in encoded.facts.labels}
    assert counts == {v: n for v, n in Counter(expected.ravel().tolist()).items() if v}
    if counts:
        inside = decoded(encoded, np.uint8)[tuple(map(slice, voxels.shape))]
        np.testing.assert_array_equal(inside, expected)
    else:
        assert encoded.data is None


@pytest.mark.parametrize("value", [-1.0, 0.5, 65536.0, np.nan])
def test_the_error_names_a_value_that_cannot_be_mapped(value):
    voxels = np.full((2, 2, 2), 200.0)
    voxels[1, 0, 1] = value
    shown = re.escape(repr(value))
    with pytest.raises(LabelError, match=rf"the value {shown}; .* whole numbers from 0 to 65535"):
        LabelEncoder(BALANCED, values=((200, 20),))(voxels, (0, 0, 0))


coordinates = st.tuples(*[st.floats(-60, 200)] * 3)
sizes_mm = st.tuples(*[st.floats(0.2, 5)] * 3)


@settings(max_examples=60)
@given(masks(), st.tuples(*[st.integers(0, 2)] * 3), coordinates, sizes_mm)
@example(np.ones((1, 1, 1), np.uint8), (0, 0, 0), (0.5, -0.5, 0.5), (1.0, 2.0, 3.0))
@example(np.ones((1, 1, 1), np.uint8), (1, 0, 0), (66.5, 0.0, 0.0), (3.0, 1.0, 1.0))
def test_the_distance_to_a_label_is_measured_to_its_nearest_voxel(mask, chunk_zyx, point, spacing):
    encoder = LabelEncoder(BALANCED, centroid_zyx={1: point, 200: point}, spacing_zyx_mm=spacing)
    labels = {label.value: label for label in encoder(mask, chunk_zyx).facts.labels}
    origin = np.multiply(chunk_zyx, BALANCED.chunk_shape_zyx)
    for value, label in labels.items():
        if value not in {1, 200}:
            assert label.centroid_distance_mm is None
            continue
        low = np.argwhere(mask == value) + origin - 0.5
        nearest = np.clip(point, low, low + 1)
        expected = np.linalg.norm((nearest - point) * spacing, axis=1).min()
        assert label.centroid_distance_mm == pytest.approx(expected, abs=1e-6)
