import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own pages call it so

from spinezarr.errors import UsageError
from spinezarr.testing import (
    DTYPES,
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    write_metaimage,
    write_nifti,
)

VOLUME = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) - 20
AFFINE = np.array([[0.7, 0, 0, -40.5], [0, 0.8, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])


def axcodes_of(image):
    """Return the letters that ITK gives to the directions of the axes."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def upright(image):
    """Reorient an image to LPS with SimpleITK; return z, y, x toward superior, anterior, right."""
    turned = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(turned)[:, ::-1, ::-1]


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("orientation", all_axcodes())
def test_every_orientation_holds_the_same_voxels_at_the_same_place(tmp_path, orientation, suffix):
    path = tmp_path / f"v{suffix}"
    write_metaimage(path, VOLUME, AFFINE, MetaImageForm(orientation))
    stored = sitk.ReadImage(str(path))
    assert axcodes_of(stored) == orientation
    np.testing.assert_array_equal(upright(stored), VOLUME)
    turned = sitk.DICOMOrient(stored, "LPS")
    first = turned.TransformIndexToPhysicalPoint((2, 3, 0))
    np.testing.assert_allclose(first, AFFINE[:3, 3] * [-1, -1, 1], atol=1e-9)
    np.testing.assert_allclose(turned.GetSpacing(), [0.7, 0.8, 2.5])


@pytest.mark.parametrize("orientation", all_axcodes())
def test_an_oblique_volume_has_the_position_of_its_nifti_file(tmp_path, orientation):
    write_metaimage(tmp_path / "v.mha", VOLUME, AFFINE, MetaImageForm(orientation, oblique_deg=12))
    write_nifti(tmp_path / "v.nii", VOLUME, AFFINE, NiftiForm(orientation, oblique_deg=12))
    metaimage, nifti = (sitk.ReadImage(str(tmp_path / name)) for name in ("v.mha", "v.nii"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(metaimage), sitk.GetArrayFromImage(nifti))
    for corner in ((0, 0, 0), [n - 1 for n in metaimage.GetSize()]):
        places = [image.TransformIndexToPhysicalPoint(corner) for image in (metaimage, nifti)]
        np.testing.assert_allclose(*places, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_dtype_of_a_metaimage_is_stored(tmp_path, dtype, big_endian, compressed):
    path = tmp_path / "v.mha"
    mask = (VOLUME + 20).astype(np.uint8)
    form = MetaImageForm("PIR", dtype, compressed=compressed, big_endian=big_endian)
    write_metaimage(path, mask, AFFINE, form)
    stored = sitk.ReadImage(str(path))
    assert sitk.GetArrayFromImage(stored).dtype == dtype
    np.testing.assert_array_equal(upright(stored), mask)
    text = path.read_bytes()
    assert f"BinaryDataByteOrderMSB = {big_endian}\n".encode() in text
    assert (b"CompressedDataSize" in text) == compressed


@pytest.mark.parametrize("compressed", [False, True])
def test_the_header_equals_that_of_simpleitk(tmp_path, compressed):
    ours, theirs = tmp_path / "ours.mhd", tmp_path / "theirs.mhd"
    form = MetaImageForm("PIR", compressed=compressed)
    write_metaimage(ours, VOLUME, AFFINE * [1, 1, 1, 0], form)
    read = sitk.ReadImage(str(ours))
    same = sitk.GetImageFromArray(sitk.GetArrayFromImage(read))
    same.CopyInformation(read)
    sitk.WriteImage(same, str(theirs), compressed)

    def fields(path):
        text = re.sub(r"CompressedDataSize = \d+", "", path.read_text())
        pairs = [line.split(" = ") for line in text.splitlines() if line]
        return [
            (key, np.array(value.split(), float).tolist() if value[:1] in "-012345" else value)
            for key, value in pairs
        ]

    found = fields(ours)
    assert found[-1] == ("ElementDataFile", "ours.zraw" if compressed else "ours.raw")
    assert [key for key, _ in found] == [key for key, _ in fields(theirs)]
    for (key, value), (_, expected) in zip(found[:-1], fields(theirs)[:-1], strict=True):
        if isinstance(value, str):
            assert value == expected, key
        else:
            np.testing.assert_allclose(value, expected, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("compressed", [False, True])
def test_bytes_depend_on_neither_time_nor_folder(tmp_path, compressed):
    for name in ("a", "b/c"):
        write_metaimage(
            tmp_path / name / "1.2.3.mhd", VOLUME, AFFINE, MetaImageForm(compressed=compressed)
        )
    data = "1.2.3.zraw" if compressed else "1.2.3.raw"
    for name in ("1.2.3.mhd", data):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b/c" / name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_values_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, suffix):
    with pytest.raises(UsageError, match=r"uint8 cannot hold the values -20 to 39; choose another"):
        write_metaimage(tmp_path / f"v{suffix}", VOLUME, AFFINE, MetaImageForm(dtype="uint8"))
    with pytest.raises(UsageError, match="int8 cannot hold"):
        write_metaimage(
            tmp_path / f"v{suffix}", np.full((1, 1, 1), 128), AFFINE, MetaImageForm(dtype="int8")
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"orientation": "LRS"}, "one of 48"),
        ({"dtype": "complex64"}, "uint8"),
        ({"oblique_deg": 60.0}, "within 40"),
    ],
)
def test_bad_forms_are_refused_with_a_reason(form, message):
    with pytest.raises(UsageError, match=message):
        MetaImageForm(**form)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.mha or \.mhd"):
        write_metaimage(tmp_path / "v.nii", VOLUME, AFFINE, MetaImageForm())
