import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.geometry import AxisMap, Grid, oblique_angle_deg
from spinezarr.testing import DTYPES, NiftiForm, all_axcodes, write_nifti

VOLUME = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) - 20
AFFINE = np.array([[0.7, 0, 0, -40.5], [0, 0.8, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])


def reload(path):
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def test_there_are_48_orientations():
    assert len(set(all_axcodes())) == 48


@pytest.mark.parametrize("orientation", all_axcodes())
@pytest.mark.parametrize("oblique_deg", [0.0, 12.0])
def test_every_orientation_holds_the_same_voxels_at_the_same_place(
    tmp_path, orientation, oblique_deg
):
    path = tmp_path / "v.nii.gz"
    write_nifti(path, VOLUME, AFFINE, NiftiForm(orientation, oblique_deg=oblique_deg))
    stored = nib.load(path)
    assert "".join(nib.aff2axcodes(stored.affine)) == orientation
    voxels, affine = reload(path)
    np.testing.assert_array_equal(voxels, VOLUME)
    if oblique_deg == 0:
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    else:
        assert 8 < oblique_angle_deg(affine) <= 12.01
        middle = [1.0, 1.5, 2.0, 1.0]
        np.testing.assert_allclose(affine @ middle, AFFINE @ middle, atol=1e-3)


@pytest.mark.parametrize("orientation", all_axcodes())
def test_the_project_reads_an_orientation_back_as_nibabel_does(tmp_path, orientation):
    path = tmp_path / "v.nii"
    write_nifti(path, VOLUME, AFFINE, NiftiForm(orientation, oblique_deg=7))
    stored = nib.load(path)
    grid = Grid(stored.shape, stored.affine)
    np.testing.assert_array_equal(grid.axis_map.to_zyx(np.asarray(stored.dataobj)), VOLUME)
    assert AxisMap.from_axcodes(orientation) == grid.axis_map
    np.testing.assert_allclose(grid.affine_xyz, reload(path)[1], atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_dtype_of_a_nifti_file_is_stored(tmp_path, dtype, big_endian):
    path = tmp_path / "v.nii.gz"
    mask = (VOLUME + 20).astype(np.uint8)
    write_nifti(path, mask, AFFINE, NiftiForm("PIR", dtype, big_endian=big_endian))
    stored = nib.load(path)
    assert stored.get_data_dtype().newbyteorder("=") == np.dtype(dtype)
    assert stored.header.endianness == (">" if big_endian else "<")
    np.testing.assert_array_equal(reload(path)[0], mask)


@given(
    dtype=st.sampled_from(["int16", "uint16", "int32", "float32", "float64"]),
    slope=st.sampled_from([1.0, 2.0, 0.5, -1.0]),
    inter=st.sampled_from([None, 0.0, -1024.0, -2048.0]),
)
@settings(deadline=None, max_examples=40)
def test_scaling_gives_back_integral_values_exactly(tmp_path_factory, dtype, slope, inter):
    path = tmp_path_factory.mktemp("scaled") / "v.nii.gz"
    values = (VOLUME * 2).astype(np.int16)
    form = NiftiForm("LAS", dtype, slope=slope, inter=inter)
    stored = (values - (inter or 0)) / slope
    if dtype == "uint16" and stored.min() < 0:
        with pytest.raises(UsageError, match="cannot hold"):
            write_nifti(path, values, AFFINE, form)
        return
    write_nifti(path, values, AFFINE, form)
    np.testing.assert_array_equal(reload(path)[0], values)
    header = nib.load(path).dataobj
    assert (header.slope, header.inter) == (slope, inter or 0)


def test_a_coarse_slope_quantizes_to_the_nearest_step(tmp_path):
    path = tmp_path / "v.nii.gz"
    values = np.linspace(-1000, 1000, 60).reshape(5, 4, 3)
    write_nifti(path, values, AFFINE, NiftiForm("RAS", "uint8", slope=8.0, inter=-1024.0))
    assert np.abs(reload(path)[0] - values).max() <= 4


def test_values_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "v.nii.gz"
    with pytest.raises(UsageError, match="choose another dtype"):
        write_nifti(path, VOLUME, AFFINE, NiftiForm(dtype="uint8"))
    assert not path.exists()


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 3)])
def test_either_form_may_carry_the_affine(tmp_path, sform, qform):
    path = tmp_path / "v.nii.gz"
    form = NiftiForm("PIR", sform_code=sform, qform_code=qform, oblique_deg=9)
    write_nifti(path, VOLUME, AFFINE, form)
    stored = nib.load(path)
    assert (int(stored.header["sform_code"]), int(stored.header["qform_code"])) == (sform, qform)
    both = tmp_path / "both.nii.gz"
    write_nifti(both, VOLUME, AFFINE, NiftiForm("PIR", oblique_deg=9))
    np.testing.assert_allclose(stored.affine, nib.load(both).affine, atol=1e-3)


def test_bytes_depend_on_neither_time_nor_name(tmp_path):
    first, second = tmp_path / "a.nii.gz", tmp_path / "b" / "c.nii.gz"
    for path in (first, second):
        write_nifti(path, VOLUME, AFFINE, NiftiForm())
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[3] == 0, "the gzip header names no file"
    assert first.read_bytes()[4:8] == bytes(4), "nor a time"


def test_a_gz_file_holds_exactly_the_bytes_of_the_nii_file(tmp_path):
    for name in ("v.nii", "v.nii.gz"):
        write_nifti(tmp_path / name, VOLUME, AFFINE, NiftiForm())
    plain = (tmp_path / "v.nii").read_bytes()
    assert gzip.decompress((tmp_path / "v.nii.gz").read_bytes()) == plain
    assert len(plain) == 352 + VOLUME.nbytes


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"orientation": "LRS"}, "one of 48"),
        ({"dtype": "complex64"}, "uint8"),
        ({"inter": 1.0}, "slope"),
        ({"slope": 0.0}, "other than 0"),
        ({"oblique_deg": 60.0}, "within 40"),
        ({"sform_code": 0, "qform_code": 0}, "both 0"),
    ],
)
def test_bad_forms_are_refused_with_a_reason(form, message):
    with pytest.raises(UsageError, match=message):
        NiftiForm(**form)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.nii"):
        write_nifti(tmp_path / "v.mha", VOLUME, AFFINE, NiftiForm())
