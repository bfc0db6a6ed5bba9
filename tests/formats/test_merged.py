import hashlib
import weakref
from dataclasses import replace

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import FormatError, GridMismatchError, LabelError, UsageError
from spinezarr.formats.merged import MergedLabels
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import GRID_TOLERANCE
from spinezarr.testing import (
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    write_metaimage,
    write_nifti,
)

SHAPE = (5, 4, 3)
AFFINE = np.array([[0.7, 0, 0, -40.5], [0, 0.8, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])
FORM = NiftiForm("PIR", "uint8", oblique_deg=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("merged")


def mask_with(*voxels_zyx, foreground=1):
    mask = np.zeros(SHAPE, np.uint8)
    for voxel in voxels_zyx:
        mask[voxel] = foreground
    return mask


def write_part(folder, name, mask, *, affine=AFFINE, form=FORM):
    path = folder / f"vertebrae_{name}.nii.gz"
    write_nifti(path, mask, affine, form)
    return path


def merged(labels, paths):
    fs = LocalFileSystem()
    parts = [(label, open_volume(fs, str(path))) for label, path in zip(labels, paths, strict=True)]
    return MergedLabels(parts, [str(path) for path in paths])


def whole(volume, thicknesses=None):
    slabs = list(volume.slabs(thicknesses or [volume.grid.shape_ijk[2]]))
    assert all(slab.dtype == volume.dtype == np.uint8 for slab in slabs)
    return np.concatenate(slabs, axis=2)


def merge(folder, masks, labels, thicknesses=None, **options):
    paths = [write_part(folder, str(i), mask, **options) for i, mask in enumerate(masks)]
    volume = merged(labels, paths)
    return volume, volume.grid.axis_map.to_zyx(whole(volume, thicknesses))


@given(
    seed=st.integers(0, 2**32),
    parts=st.lists(st.tuples(st.integers(1, 255), st.sampled_from([1, 2, 255])), min_size=1).filter(
        lambda parts: len(parts) < 5
    ),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    thicknesses=st.sampled_from([[3], [1, 2], [1, 1, 1]]),
    claimed=st.sampled_from([0, 6, 30]),
)
def test_each_voxel_has_the_label_of_the_last_mask_that_claims_it(
    *, folder, seed, parts, dtype, thicknesses, claimed
):
    rng = np.random.default_rng(seed)
    masks = [
        (rng.permutation(np.prod(SHAPE)).reshape(SHAPE) < claimed) * np.uint8(foreground)
        for _, foreground in parts
    ]
    volume, found = merge(
        folder, masks, [label for label, _ in parts], thicknesses, form=NiftiForm("PIR", dtype)
    )
    expected = np.zeros(SHAPE, np.uint8)
    for mask, (label, _) in zip(masks, parts, strict=True):
        expected = np.where(mask > 0, label, expected)
    np.testing.assert_array_equal(found, expected)
    claims = np.sum([mask > 0 for mask in masks], axis=0)
    assert volume.overlap_voxels == (claims > 1).sum()


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_masks_of_every_orientation_are_merged(folder, axcodes):
    masks = [mask_with((0, 0, 0), (4, 3, 1)), mask_with((2, 1, 2))]
    volume, found = merge(folder, masks, [7, 24], form=NiftiForm(axcodes, "uint8"))
    assert volume.grid.axis_map.axcodes == axcodes
    np.testing.assert_array_equal(found, masks[0] * 7 + masks[1] * 24)


def test_files_of_several_formats_are_merged(folder):
    first, second = mask_with((0, 0, 0)), mask_with((4, 3, 2), foreground=255)
    nifti, metaimage = folder / "a.nii", folder / "b.mha"
    write_nifti(nifti, first, AFFINE, NiftiForm("LPS", "uint8"))
    write_metaimage(metaimage, second, AFFINE, MetaImageForm("LPS", "int16", compressed=True))
    volume = merged([20, 21], [nifti, metaimage])
    expected = first * 20 + (second > 0) * 21
    np.testing.assert_array_equal(volume.grid.axis_map.to_zyx(whole(volume)), expected)


def test_masks_may_be_read_again_and_the_overlap_is_counted_anew(folder):
    masks = [mask_with((0, 0, 0), (1, 1, 1))] * 3
    volume, found = merge(folder, masks, [1, 2, 3])
    assert volume.overlap_voxels == 2
    slabs = volume.slabs([1, 2])
    next(slabs)
    with pytest.raises(RuntimeError, match="before the end of slabs"):
        _ = volume.overlap_voxels
    list(slabs)
    assert volume.overlap_voxels == 2
    assert set(np.unique(found)) == {0, 3}


def test_the_overlap_is_not_known_before_the_end(folder):
    volume = merged([1], [write_part(folder, "a", mask_with())])
    with pytest.raises(RuntimeError, match="before the end of slabs"):
        _ = volume.overlap_voxels
    with pytest.raises(RuntimeError, match="before slabs"):
        volume.source_file()


def test_size_and_hash_cover_all_files_in_order(folder):
    paths = [write_part(folder, str(i), mask_with((i, 0, 0))) for i in range(3)]
    volume = merged([1, 2, 3], paths)
    whole(volume, [1, 2])
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    source = volume.source_file()
    assert source.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert source.size_bytes == sum(path.stat().st_size for path in paths)
    other = merged([3, 2, 1], paths[::-1])
    whole(other)
    assert other.source_file().sha256 != source.sha256


def test_a_note_that_several_files_share_appears_once(folder):
    paths = [folder / f"{i}.mha" for i in range(3)]
    for path in paths:
        write_metaimage(path, mask_with(), AFFINE, MetaImageForm("LPS", "uint8"))
    text = paths[1].read_bytes()
    offset = next(line for line in text.split(b"\n") if line.startswith(b"Offset"))
    for path in paths:
        path.write_bytes(text.replace(offset + b"\n", b""))
    (note,) = merged([1, 2, 3], paths).notes
    assert "assumed 0, 0, 0" in note


def test_a_slab_of_only_one_file_is_in_memory_at_a_time(folder):
    volume = merged([1], [write_part(folder, "a", mask_with((0, 0, 0)))])
    slabs = volume.slabs([1, 2])
    slab = next(slabs)
    memory = weakref.ref(slab)
    del slab
    next(slabs)
    assert memory() is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "holds the values 1 and 2"),
        ([1, 255], "holds the values 1 and 255"),
        ([0.5, 1], "holds the value 0.5"),
        ([0.5, 0.5], "holds the value 0.5"),
        ([20.4, 0], "holds the value 20.4"),
        ([-1, 1], "holds the value"),
        ([-1, -1], "holds the value -1.0"),
        ([-2e-3, 0], "holds the value -0.002"),
        ([np.nan, np.nan], "holds the value nan"),
        ([1, np.nan], "holds the value nan"),
        ([np.inf, 0], "holds the value inf"),
        ([-np.inf, 0], "holds the value -inf"),
    ],
)
@pytest.mark.parametrize("thicknesses", [[3], [1, 1, 1]])
def test_a_mask_that_is_no_binary_mask_is_refused(folder, values, message, thicknesses):
    mask = np.zeros(SHAPE)
    mask[2, 1, 0], mask[2, 1, 2] = values
    dtype = "uint8" if all(v in (1, 2, 255) for v in values) else "float64"
    good = write_part(folder, "good", mask_with((0, 0, 0)))
    bad = write_part(folder, "bad", mask, form=replace(FORM, dtype=dtype))
    volume = merged([1, 2], [good, bad])
    with pytest.raises(LabelError) as caught:
        whole(volume, thicknesses)
    assert f"{bad}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32", "float64"])
@pytest.mark.parametrize(("outside", "inside"), [(-1, 0), (-1, 1), (0, -1)])
def test_a_mask_with_negative_values_is_refused(folder, dtype, outside, inside):
    mask = np.full(SHAPE, outside)
    mask[2, 1, :] = inside
    path = write_part(folder, "L5", mask, form=replace(FORM, dtype=dtype))
    with pytest.raises(LabelError, match=f"{path}: holds the value.* -1"):
        whole(merged([24], [path]))


@pytest.mark.parametrize("foreground", [1, 255])
def test_a_mask_with_inside_and_outside_exchanged_is_refused(folder, foreground):
    mask = np.where(mask_with((2, 1, 0), (2, 1, 1)), 0, foreground)
    good, bad = write_part(folder, "L4", mask_with((0, 0, 0))), write_part(folder, "L5", mask)
    with pytest.raises(LabelError) as caught:
        whole(merged([23, 24], [good, bad]), [1, 2])
    assert str(caught.value).startswith(f"{bad}: its value {foreground} fills 96.7% of the volume")


def test_a_mask_may_fill_up_to_half_of_the_volume(folder):
    half = (np.arange(np.prod(SHAPE)).reshape(SHAPE) < np.prod(SHAPE) // 2).astype(np.uint8)
    _, found = merge(folder, [half], [24])
    np.testing.assert_array_equal(found, 24 * half)
    half.flat[-1] = 1
    with pytest.raises(LabelError, match=r"fills 51\.7% of the volume, expected at most 50%"):
        merge(folder, [half], [24])
    # Other structures, such as the body or unannotated voxels, may be larger.
    np.testing.assert_array_equal(merge(folder, [half], [255])[1], 255 * half)


@given(
    seed=st.integers(0, 2**32),
    foreground=st.sampled_from([1, 24, 255]),
    off=st.floats(1e-7, 9e-4),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_rounding_errors_of_masks_are_removed_and_counted(folder, seed, foreground, off, dtype):
    rng = np.random.default_rng(seed)
    mask = (rng.permutation(np.prod(SHAPE)).reshape(SHAPE) < 9) * foreground
    moved = (mask + rng.choice([-off, 0, off], SHAPE)).astype(dtype)
    volume, found = merge(folder, [moved], [20], [1, 2], form=NiftiForm("PIR", dtype))
    np.testing.assert_array_equal(found, np.where(mask, 20, 0))
    if dtype == "float64":
        assert volume.rounding.voxels == np.count_nonzero(moved != mask)
        largest = np.abs(moved - mask).max()
        assert volume.rounding.largest == pytest.approx(largest)


def moved(x_mm=0.0, stretch=1.0):
    affine = AFFINE * [stretch, 1, 1, 1]
    affine[0, 3] += x_mm
    return affine


@pytest.mark.parametrize("share", [-0.99, 0.99])
def test_grids_that_differ_by_rounding_are_accepted(folder, share):
    first = write_part(folder, "a", mask_with(), form=NiftiForm("LPS", "uint8"))
    step = share * GRID_TOLERANCE * 0.7
    second = write_part(
        folder, "b", mask_with(), affine=moved(step), form=NiftiForm("LPS", "uint8")
    )
    assert not whole(merged([1, 2], [first, second])).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"affine": moved(1.01 * GRID_TOLERANCE * 0.7)}, "corners are 0.0707 mm apart"),
        ({"affine": moved(stretch=1.1)}, "corners are 0.14 mm apart"),
        ({"mask": np.zeros((5, 4, 4))}, "different shapes"),
        ({"mask": np.zeros((6, 4, 3))}, "different shapes"),
        ({"mask": np.zeros((4, 5, 3))}, "different shapes"),
        ({"form": NiftiForm("LAS", "uint8")}, "axes in different directions"),
    ],
)
def test_masks_on_different_grids_are_refused(folder, options, reason):
    first = write_part(folder, "a", mask_with(), form=NiftiForm("LPS", "uint8"))
    same = write_part(folder, "b", mask_with(), form=NiftiForm("LPS", "uint8"))
    options = {"mask": mask_with(), "form": NiftiForm("LPS", "uint8"), **options}
    other = write_part(folder, "c", **options)
    with pytest.raises(GridMismatchError) as caught:
        merged([1, 2, 3], [first, same, other])
    lines = str(caught.value).splitlines()
    fs = LocalFileSystem()
    assert reason in lines[0]
    assert lines[1] == f"  {first}: {open_volume(fs, str(first)).grid.describe()}"
    assert lines[2] == f"  {other}: {open_volume(fs, str(other)).grid.describe()}"
    assert lines[3] == "Get the masks that belong together."


def test_a_mask_with_axes_in_another_order_is_refused_even_with_equal_shape(folder):
    cube = np.zeros((3, 3, 3), np.uint8)
    paths = [
        write_part(folder, code, cube, affine=np.eye(4), form=NiftiForm(code, "uint8"))
        for code in ("LPS", "PLS")
    ]
    with pytest.raises(GridMismatchError, match="axes in different directions"):
        merged([1, 2], paths)


def test_every_file_is_checked_to_its_end(folder):
    paths = [write_part(folder, str(i), mask_with((i, 0, 0))) for i in range(3)]
    for broken in paths:
        content = broken.read_bytes()
        broken.write_bytes(content[:-1])
        with pytest.raises(FormatError, match=str(broken)):
            whole(merged([1, 2, 3], paths))
        broken.write_bytes(content)


def test_every_compressed_metaimage_is_checked_to_its_end(folder):
    paths = [folder / f"{i}.mha" for i in range(2)]
    for path in paths:
        write_metaimage(path, mask_with(), AFFINE, MetaImageForm(compressed=True))
    content = paths[1].read_bytes()
    size = b"CompressedDataSize = "
    start = content.index(size)
    unstated = content[:start] + content[content.index(b"\n", start) + 1 :]
    paths[1].write_bytes(unstated + b"tail")
    with pytest.raises(FormatError, match="goes on after its voxels"):
        whole(merged([1, 2], paths))


@pytest.mark.parametrize("label", [0, -1, 256])
def test_a_label_that_a_byte_cannot_hold_is_refused(folder, label):
    path = write_part(folder, "a", mask_with())
    with pytest.raises(UsageError, match=rf"{path}: has the label {label}, expected 1 to 255"):
        merged([label], [path])


def test_merging_no_files_is_refused():
    with pytest.raises(UsageError, match="no mask file to merge"):
        MergedLabels([], [])
