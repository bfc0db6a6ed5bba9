import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.ingestion.voxels import gather
from spinezarr.ingestion.voxels.gather import copy_voxels
from spinezarr.native_library import NO_KERNEL

DTYPES = ("u1", "i1", "<i2", ">i2", "<f4", "<u4", "<f8", "<i8")
SIDE = 40
UNTOUCHED = 0xA5


@st.composite
def views(draw):
    """Return voxels with axes in any order and direction, some of them with gaps."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    voxels = np.frombuffer(rng.bytes(SIDE**3 * dtype.itemsize), dtype).reshape(SIDE, SIDE, SIDE)
    voxels = voxels.transpose(draw(st.sampled_from([(0, 1, 2), (0, 1, 2), (2, 1, 0), (1, 0, 2)])))
    starts = draw(st.tuples(*[st.integers(0, SIDE)] * 3))
    sides = draw(st.tuples(*[st.integers(0, SIDE)] * 3))
    steps = draw(st.tuples(*[st.sampled_from([1, -1, 1, -1, 2, -3])] * 3))
    inside = tuple(slice(start, start + n) for start, n in zip(starts, sides, strict=True))
    return voxels[inside][tuple(slice(None, None, step) for step in steps)]


@pytest.fixture(scope="module", params=["C", "NumPy"])
def way(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "NumPy":
            patch.setenv(NO_KERNEL, "1")
        gather._library.cache_clear()
        assert (gather._library() is None) == (request.param == "NumPy")
        yield
    gather._library.cache_clear()


@given(views(), st.tuples(*[st.integers(0, 3)] * 6))
def test_a_copy_has_the_same_bits_and_touches_nothing_else(way, voxels, margins):
    around = [n + a + b for n, a, b in zip(voxels.shape, margins[:3], margins[3:], strict=True)]
    memory = np.full((*around, voxels.itemsize), UNTOUCHED, np.uint8)
    inside = tuple(slice(a, a + n) for a, n in zip(margins, voxels.shape, strict=False))
    copy_voxels(voxels, memory.view(voxels.dtype)[..., 0][inside])
    expected = np.full_like(memory, UNTOUCHED)
    expected[inside] = np.ascontiguousarray(voxels)[..., None].view(np.uint8)
    assert np.array_equal(memory, expected)


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 3, 4), np.int16), np.zeros((2, 3, 5), np.uint8), np.zeros((1, 3, 4), np.uint8)],
)
def test_arrays_of_another_form_are_refused(way, out):
    with pytest.raises(ValueError, match="into"):
        copy_voxels(np.zeros((2, 3, 4), np.uint8), out)


def test_a_read_only_output_is_refused(way):
    out = np.zeros((2, 3, 4), np.uint8)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="into"):
        copy_voxels(np.ones((2, 3, 4), np.uint8), out)
    assert not out.any()
