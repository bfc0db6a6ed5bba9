import hashlib
import re
import shutil
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

from spinezarr.errors import FormatError, UsageError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.volume import open_volume
from spinezarr.testing import (
    DICOM_TRANSFER_SYNTAXES,
    DicomForm,
    all_axcodes,
    write_dicom_objects,
    write_dicom_series,
)

LOCAL = LocalFileSystem()
VALUES = np.random.default_rng(7).integers(-1000, 1001, (18, 17, 5), np.int16)
LPS = np.diag([-0.75, -0.5, 2.5, 1.0]) + np.array(
    [[0, 0, 0, 30.5], *[[0, 0, 0, -90.25]] * 2, [0] * 4]
)
SIGNED = {"signed": True, "intercept": 0}
DECODED_ALIKE = {"implicit-le", "explicit-be", "jpeg-lossless-57", "jpeg2000-lossy"}
"""Transfer syntaxes whose pixels are decoded by the code for another one."""
COMPRESSED = [
    name
    for name in DICOM_TRANSFER_SYNTAXES
    if name not in {"implicit-le", "explicit-le", "deflated", "explicit-be"}
]


def turned(axcodes, shape=VALUES.shape, oblique_deg=0.0):
    """Return the affine of a volume with these axes, rotated with the patient about (2, 2, 1)."""
    x, y, z = np.array([2, 2, 1]) / 3
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(oblique_deg)
    turn = np.eye(4)
    turn[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    flip = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axcodes), shape)
    to_ras = np.diag([0.75, 0.5, 2.5, 1.0])
    to_ras[:3, 3] = (30.5, -90.25, -410)
    return turn @ to_ras @ flip


def write(folder, values=VALUES, affine=LPS, **form):
    return write_dicom_series(folder, values, affine, DicomForm(**form))


def read(folder, thicknesses=None):
    volume = DicomSeriesVolume.open(LOCAL, f"{folder}/")
    slabs = list(volume.slabs(thicknesses or [volume.grid.shape_ijk[2]]))
    assert all(slab.dtype == volume.dtype for slab in slabs)
    return volume, np.concatenate(slabs, axis=2)


def in_space(values, affine):
    """Return voxels as (z, y, x) with their affine, for any order of the file's axes."""
    image = nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.float64), affine))
    return image.get_fdata().transpose(2, 1, 0), image.affine


def assert_same_in_space(volume, values, expected, affine):
    found, found_affine = in_space(values, volume.grid.affine_ijk)
    wanted, wanted_affine = in_space(expected, affine)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found_affine, wanted_affine, atol=1e-9)


def assert_read_as_gdcm_does(folder, volume, values):
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    np.testing.assert_array_equal(values, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.grid.affine_ijk, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-6)


def edit(path, **elements):
    """Set elements of one file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def refusal(folder, **options):
    with pytest.raises(FormatError) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert str(folder) in message
    assert f"{folder}/:" not in message
    assert message.endswith(".")
    return message


def values_or_refusal(folder):
    try:
        return read(folder)[1]
    except FormatError as problem:
        return str(problem)


@pytest.mark.parametrize("form", [{}, {"bits_stored": 12}, {**SIGNED, "bits_stored": 12}, SIGNED])
@pytest.mark.parametrize("syntax", DICOM_TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_read_as_gdcm_reads_it(tmp_path, syntax, form):
    write(tmp_path, transfer_syntax=syntax, **form)
    volume, values = read(tmp_path, [2, 3])
    np.testing.assert_array_equal(values, VALUES)
    assert volume.dtype == np.int32
    assert_read_as_gdcm_does(tmp_path, volume, values)
    lossy = (
        "lossy compression (JPEG 2000 Image Compression): values may differ from those of the "
        "scanner"
    )
    assert volume.notes == ((lossy,) if syntax == "jpeg2000-lossy" else ())


@pytest.mark.parametrize(
    ("axcodes", "oblique_deg"),
    [*((axcodes, 21) for axcodes in all_axcodes()), ("LPS", 0), ("LPI", 0), ("PIR", 0), ("LIP", 0)],
)
def test_every_orientation_is_read_as_gdcm_reads_it(tmp_path, axcodes, oblique_deg):
    affine = turned(axcodes, oblique_deg=oblique_deg)
    write(tmp_path, affine=affine)
    volume, values = read(tmp_path)
    assert_same_in_space(volume, values, VALUES, affine)
    assert_read_as_gdcm_does(tmp_path, volume, values)
    # In LPS and RAS alike, columns, rows and slices are right-handed.
    assert np.linalg.det(volume.grid.affine_ijk[:3, :3]) > 0


@pytest.mark.parametrize("naming", ["number", "uid", "reversed"])
def test_slices_are_ordered_by_position_and_not_by_name_or_number(tmp_path, naming):
    values = np.arange(12, dtype=np.int16) * np.ones((3, 2, 1), np.int16)
    paths = write(tmp_path, values, naming=naming)
    assert [path.name for path in paths] != sorted(path.name for path in paths)
    for path, number in zip(paths, [5, 3, 3, *range(9)], strict=True):
        edit(path, InstanceNumber=number)
    np.testing.assert_array_equal(read(tmp_path)[1], values)


def test_slabs_of_any_thickness_give_the_same_voxels_and_can_be_read_again(tmp_path):
    write(tmp_path)
    volume = open_volume(LOCAL, f"{tmp_path}/")
    for thicknesses in ([1] * 5, [2, 3], [5]):
        slabs = list(volume.slabs(iter(thicknesses)))
        assert [slab.shape for slab in slabs] == [(18, 17, n) for n in thicknesses]
        np.testing.assert_array_equal(np.concatenate(slabs, axis=2), VALUES)


def test_hash_and_size_cover_the_files_in_slice_order(tmp_path):
    paths = write(tmp_path, naming="reversed", localizer=True)
    volume = open_volume(LOCAL, f"{tmp_path}/")
    with pytest.raises(RuntimeError, match="before slabs"):
        volume.source_file()
    list(volume.slabs([5]))
    content = b"".join(path.read_bytes() for path in paths)
    assert volume.source_file().sha256 == hashlib.sha256(content).hexdigest()
    assert volume.source_file().size_bytes == len(content)


def test_any_file_system_and_a_folder_with_or_without_slash_can_be_read(tmp_path):
    write(tmp_path)
    fs = MemoryFileSystem()
    fs.put(str(tmp_path), "/dicom/ct", recursive=True)
    for folder in ("/dicom/ct", "/dicom/ct/"):
        (values,) = DicomSeriesVolume.open(fs, folder).slabs([5])
        np.testing.assert_array_equal(values, VALUES)
    fs.rm("/dicom", recursive=True)


def test_a_folder_that_is_absent_is_not_a_broken_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_volume(LOCAL, f"{tmp_path}/none/")


@pytest.mark.parametrize("module", ["pydicom", "gdcm"])
def test_the_error_of_missing_packages_says_what_to_install(tmp_path, monkeypatch, module):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'spinezarr\[dicom\]'"):
        open_volume(LOCAL, f"{tmp_path}/")


# Values


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, "i4"), (2, -1000, "i4"), (-1, 1000, "i4"), (0.5, -1024, "f8"), (1, 0.5, "f8")],
)
def test_values_are_rescaled(tmp_path, slope, intercept, dtype):
    stored = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    whole = stored + 1000
    write(tmp_path, whole, slope=1, intercept=1000)
    for path in tmp_path.iterdir():
        edit(path, RescaleSlope=slope, RescaleIntercept=intercept)
    volume, values = read(tmp_path)
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(values, stored * slope + intercept)
    assert_read_as_gdcm_does(tmp_path, volume, values)


def test_each_slice_has_its_own_slope_and_one_fraction_makes_all_float64(tmp_path):
    stored = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    paths = write(tmp_path, stored, intercept=0)
    scales = [(1, 0), (3, -7), (2, 5)]
    for path, (slope, intercept) in zip(paths, scales, strict=True):
        edit(path, RescaleSlope=slope, RescaleIntercept=intercept)
    slopes, intercepts = np.array(scales).T
    volume, values = read(tmp_path)
    assert volume.dtype == np.int32
    np.testing.assert_array_equal(values, stored * slopes + intercepts)
    edit(paths[1], RescaleSlope=0.25)
    volume, values = read(tmp_path)
    assert volume.dtype == np.float64
    np.testing.assert_array_equal(values, stored * [1, 0.25, 2] + intercepts)


def test_values_that_int32_cannot_hold_are_float64(tmp_path):
    paths = write(tmp_path, np.zeros((2, 2, 2), int), intercept=0)
    pixels = np.array([0, 1, 2**31, 2**32 - 1], "<u4")
    for path in paths:
        edit(path, BitsAllocated=32, BitsStored=32, HighBit=31, PixelData=pixels.tobytes())
    volume, values = read(tmp_path)
    assert volume.dtype == np.float64
    np.testing.assert_array_equal(values[..., 0].T.ravel(), pixels.astype(np.float64))


@pytest.mark.parametrize("big_endian", [False, True])
def test_pixels_of_8_bits_are_read(tmp_path, big_endian):
    syntax = "explicit-be" if big_endian else "explicit-le"
    paths = write(tmp_path, np.zeros((3, 2, 2), int), transfer_syntax=syntax, intercept=0)
    pixels = np.arange(6, dtype=np.uint8) * 50
    for path in paths:
        data = pixels.view("u2").byteswap().tobytes() if big_endian else pixels.tobytes()
        edit(path, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=data)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values[..., 1].T.ravel(), pixels)
    assert_read_as_gdcm_does(tmp_path, volume, values)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_ignored(tmp_path, signed):
    form = {"signed": signed, "intercept": 0, "bits_stored": 12}
    values = np.array([[[0, 1], [5, 1023]], [[2047, 7], [9, 11]]]) - (1024 if signed else 0)
    paths = write(tmp_path, values, **form)
    for path in paths:
        pixels = np.frombuffer(pydicom.dcmread(path).PixelData, "<u2") | 0xF000
        edit(path, PixelData=pixels.tobytes())
    np.testing.assert_array_equal(read(tmp_path)[1], values)


def test_padding_values_are_kept(tmp_path):
    values = VALUES.copy()
    values[:3] = -2000
    for path in write(tmp_path, values, **SIGNED):
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        dataset.save_as(path)
    np.testing.assert_array_equal(read(tmp_path)[1], values)


def test_files_that_pydicom_reads_with_a_warning_are_read(tmp_path):
    for path in write(tmp_path):
        dataset = pydicom.dcmread(path)
        edit(path, PixelData=dataset.PixelData + bytes(10))
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_a_series_without_rescaling_is_noted(tmp_path):
    for path in write(tmp_path, intercept=-1024):
        edit(path, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES + 1024)
    assert volume.notes == ("no RescaleSlope: the values are used as stored, and may not be HU",)


@pytest.mark.parametrize(
    ("unit", "shown"), [("US", "'US'"), ("Jane Doe", "a text of 8 characters")]
)
def test_a_series_in_another_unit_is_noted(tmp_path, unit, shown):
    for path in write(tmp_path):
        edit(path, RescaleType=unit)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    assert volume.notes == (f"the values are in {shown}, not HU (RescaleType)",)


def test_a_slice_that_is_not_rescaled_among_others_that_are_is_refused(tmp_path):
    edit(write(tmp_path)[2], RescaleSlope=None, RescaleIntercept=None)
    assert (
        "differ in rescaling (RescaleSlope and RescaleIntercept): present in 4 (1.dcm); absent in "
        "1 (3.dcm); expected one"
    ) in refusal(tmp_path)


@pytest.mark.parametrize("usual", ["HU", None])
def test_a_slice_in_another_unit_than_others_is_refused(tmp_path, usual):
    paths = write(tmp_path)
    for path in paths:
        edit(path, RescaleType=usual)
    assert read(tmp_path)[0].notes == ()
    edit(paths[0], RescaleType="US")
    assert "differ in RescaleType: 'HU' in 4 (2.dcm); 'US' in 1 (1.dcm)" in refusal(tmp_path)
    edit(paths[0], RescaleType=None if usual else "HU")  # no RescaleType means HU
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_earlier_lossy_compression_is_noted(tmp_path):
    for path in write(tmp_path):
        edit(path, LossyImageCompression="01")
    (note,) = read(tmp_path)[0].notes
    assert note.startswith("lossy compression (Explicit VR Little Endian)")


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_slices_from_scanners_are_read_as_gdcm_reads_them(tmp_path, name):
    # These files come with pydicom. Two copies, one step apart along their normal, make a series.
    for k in (0, 1):
        path = tmp_path / f"{k}.dcm"
        shutil.copy(get_testdata_file(name, download=False), path)
        header = pydicom.dcmread(path)
        normal = np.cross(*np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float))
        place = [round(x, 6) for x in np.array(header.ImagePositionPatient, float) + k * normal]
        edit(path, ImagePositionPatient=place, SOPInstanceUID=f"1.2.{k}")
    volume, values = read(tmp_path)
    assert_read_as_gdcm_does(tmp_path, volume, values)


# Contents of a folder


def test_other_files_in_a_folder_are_skipped(tmp_path):
    paths = write(tmp_path, localizer=True, secondary_capture=True, naming="uid")
    write_dicom_objects(tmp_path, "DIRECTORY")[0].rename(tmp_path / "anything")
    write_dicom_objects(tmp_path, "SR", 2)
    (tmp_path / "sub").mkdir()
    shutil.copy(paths[0], tmp_path / "sub" / "1.dcm")
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    assert volume.notes == (
        (
            "ignored files that are not CT slices: 1 x Media Storage Directory Storage, 1 x "
            "Secondary Capture Image Storage, 2 x X-Ray Radiation Dose SR Storage, 1 x localizer"
        ),
    )


def test_files_with_names_of_other_formats_are_skipped(tmp_path):
    write(tmp_path)
    names = ["DICOMDIR", "LICENSE", "series.csv", "readme.txt", "README", "._1.dcm", ".DS_Store"]
    names += ["a.jpg", "Thumbs.db", "scan.nii.gz", "table.csv.xz", "report.XML", "desktop.ini"]
    for content in (b"not DICOM", bytes(2000), b""):
        for name in names:
            (tmp_path / name).write_bytes(content)
        volume, values = read(tmp_path)
        np.testing.assert_array_equal(values, VALUES)
        assert volume.notes == ()


def test_a_slice_is_read_whatever_its_name_says(tmp_path):
    for path, name in zip(write(tmp_path), ["1.ima", "2", "3.txt", "README", "5.IMG"], strict=True):
        path.rename(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


BROKEN = {
    b"": "an empty file",
    bytes(4000): "a file of zeros",
    b"<!DOCTYPE html>": "a web page",
    b"Not found.": "text",
    b"\x08\0\x05\0CS\n\0ISO_IR 100": "binary data of no known kind",
    b"\x1f\x8b\x08\0": "gzip data",
}


@pytest.mark.parametrize(
    "name", ["IM-0001-0003", "3", "3.dcm", "3.ima", "3.dcm.part", "1.2.840.3", "3.dcm.gz", "3.gz"]
)
def test_a_file_that_may_be_a_slice_and_is_not_dicom_is_refused(tmp_path, name):
    for number, path in enumerate(write(tmp_path), start=1):
        path.rename(tmp_path / name.replace("3", f"{number}", 1))
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)
    for content, found in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        expected = f"{tmp_path / name}: is not a DICOM file: it looks like {found}. "
        assert refusal(tmp_path).startswith(expected)


@pytest.mark.parametrize("syntax", ["implicit-le", "explicit-le"])
def test_slices_without_a_preamble_are_read_like_those_with_one(tmp_path, syntax):
    write(tmp_path / "whole", transfer_syntax=syntax, naming="uid", bits_stored=12)
    for path in write(
        tmp_path, transfer_syntax=syntax, naming="uid", bits_stored=12, preamble=False
    ):
        assert path.read_bytes()[:2] == b"\x08\0"
    volume, values = read(tmp_path)
    whole, expected = read(tmp_path / "whole")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(volume.grid.affine_ijk, whole.grid.affine_ijk)
    assert volume.notes == whole.notes == ()


@pytest.mark.parametrize("syntax", ["implicit-le", "explicit-le"])
def test_a_slice_without_a_preamble_that_is_cut_anywhere_is_refused(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax, preamble=False)[2]
    content = path.read_bytes()
    for size in {*range(0, len(content), 61), *range(len(content) - 12, len(content))}:
        path.write_bytes(content[:size])
        assert str(path) in refusal(tmp_path)


def test_the_error_of_a_folder_without_slices_lists_its_contents(tmp_path):
    for path in write(tmp_path, secondary_capture=True):
        path.unlink()
    message = refusal(tmp_path)
    assert "holds no CT slices among its 1 file: " in message
    assert "1 x Secondary Capture Image Storage" in message


def test_the_class_outside_the_data_set_is_enough(tmp_path):
    for path in write(tmp_path):
        edit(path, SOPClassUID=None, ImageType=None, Modality=None)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_a_file_without_any_class_is_refused(tmp_path):
    path = write(tmp_path)[2]
    dataset = pydicom.dcmread(path)
    del dataset.SOPClassUID
    del dataset.file_meta.MediaStorageSOPClassUID
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)
    assert f"{path}: states no SOPClassUID" in refusal(tmp_path)


def test_the_largest_series_is_taken_with_a_note_that_names_the_others(tmp_path):
    write(tmp_path, second_series=4)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    (note,) = volume.notes
    assert note == "took series '2' (5 slices), not series '3' (4 slices)"


def test_series_of_equal_size_are_refused_with_their_names(tmp_path):
    write(tmp_path, second_series=5)
    message = refusal(tmp_path)
    assert "2 series have the most slices" in message
    named = re.findall(r"series '(\d)' \(5 slices\), e\.g\. ([^;]+\.dcm)", message)
    assert sorted(number for number, _ in named) == ["2", "3"]
    assert all((tmp_path / file).is_file() for _, file in named)


# Slices that do not form one even stack


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    write(tmp_path, gantry_tilt_deg=12.5)
    message = refusal(tmp_path)
    assert "stacked 12.50 degrees off their normal" in message
    assert "slip 2.22 mm sideways over 10.00 mm" in message
    assert "GantryDetectorTilt is (12.5) degrees" in message
    for path in tmp_path.iterdir():
        edit(path, GantryDetectorTilt=None)
    assert "GantryDetectorTilt" not in refusal(tmp_path)


def test_a_stated_tilt_is_ignored_if_slices_are_straight(tmp_path):
    for path in write(tmp_path):
        edit(path, GantryDetectorTilt=15)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


@pytest.mark.parametrize("affine", [LPS, turned("RAS", oblique_deg=30)])
@pytest.mark.parametrize(
    ("missing", "count", "gap"), [((2,), 1, "5.000"), ((1, 2), 2, "7.500"), ((1,), 1, "5.000")]
)
def test_missing_slices_are_counted(tmp_path, affine, missing, count, gap):
    write(tmp_path, affine=affine, missing=missing)
    message = refusal(tmp_path)
    assert f": {count} slice{' is' if count == 1 else 's are'} missing: {count} in" in message
    assert f"in {gap} mm between" in message
    assert "expected 2.500 mm everywhere" in message


def test_the_error_says_where_slices_are_missing(tmp_path):
    write(tmp_path, missing=(1, 2))
    assert "2 in 7.500 mm between 1.dcm and 2.dcm at -90.250 and -82.750 mm" in refusal(tmp_path)


@pytest.mark.parametrize("moved_mm", [0.4, -0.4, 1.25])
def test_an_uneven_slice_is_refused_with_the_gaps(tmp_path, moved_mm):
    write(tmp_path, moved_mm=((2, moved_mm),))
    message = refusal(tmp_path)
    low, high = 2.5 - abs(moved_mm), 2.5 + abs(moved_mm)
    assert f"unevenly spaced, by {low:.3f} to {high:.3f} mm" in message
    assert f"{2.5 + moved_mm:.3f} mm between 2.dcm and 3.dcm at" in message
    assert "within 0.150 mm" in message


def test_an_uneven_gap_is_refused_even_if_each_slice_is_near_its_position(tmp_path):
    write(tmp_path, moved_mm=((1, 0.1), (2, -0.1)))
    message = refusal(tmp_path)
    assert "2.300 mm between 2.dcm and 3.dcm at" in message
    write(tmp_path, moved_mm=((1, 0.1), (2, 0.1)))
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_gaps_that_slowly_grow_are_refused(tmp_path):
    values = np.zeros((2, 2, 30), int)
    write(tmp_path, values, moved_mm=tuple((k, 0.004 * k * k) for k in range(30)))
    assert re.search(r"1[45]\.dcm is 0\.8\d+ mm off its place", refusal(tmp_path))


@pytest.mark.parametrize("repeated", [(2,), (0, 4), (0, 1, 2, 3, 4)])
def test_repeated_slices_are_counted_and_named(tmp_path, repeated):
    write(tmp_path, repeated=repeated)
    message = refusal(tmp_path)
    count = f"{len(repeated)} repeated slice{'s' * (len(repeated) > 1)}"
    assert f": holds {count}, two at one" in message
    k = repeated[0]
    assert f"{k + 1}.dcm and 6.dcm at (30.5" not in message
    assert f"{k + 1}.dcm and 6.dcm at (-30.5, 90.25, {-90.25 + 2.5 * k:g})" in message


def test_a_slice_shifted_sideways_is_refused(tmp_path):
    paths = write(tmp_path)
    x, y, z = pydicom.dcmread(paths[3]).ImagePositionPatient
    edit(paths[3], ImagePositionPatient=[x + 0.3, y, z])
    message = refusal(tmp_path)
    assert "4.dcm lies 0.300 mm off the line of the other slices" in message
    edit(paths[3], ImagePositionPatient=[x + 0.2, y, z])
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("step", [0.3, 0.625, 1.25, 3.27])
def test_rounded_positions_are_accepted(tmp_path, digits, step):
    affine = turned("LPS", oblique_deg=17) @ np.diag([1, 1, step / 2.5, 1])
    values = np.zeros((2, 2, 12), int)
    for path in write(tmp_path, values, affine):
        position = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[round(float(x), digits) for x in position])
    volume, _ = read(tmp_path)
    np.testing.assert_allclose(volume.grid.affine_ijk, affine, atol=0.06 * 10 ** -(digits - 1))
    (tmp_path / "6.dcm").unlink()
    assert ": 1 slice is missing: 1 in" in refusal(tmp_path)


def test_cosines_rounded_to_three_decimals_are_accepted(tmp_path):
    affine = turned("LPS", oblique_deg=17)
    for path in write(tmp_path, affine=affine):
        cosines = pydicom.dcmread(path).ImageOrientationPatient
        edit(path, ImageOrientationPatient=[round(float(c), 3) for c in cosines])
    np.testing.assert_allclose(read(tmp_path)[0].grid.affine_ijk, affine, atol=1e-3)


def test_a_single_slice_is_refused(tmp_path):
    write(tmp_path, VALUES[..., :1])
    assert "has a single slice, 1.dcm; expected at least 2" in refusal(tmp_path)


def test_two_slices_are_a_stack(tmp_path):
    write(tmp_path, VALUES[..., :2])
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES[..., :2])


@pytest.mark.parametrize(
    ("elements", "what", "usual", "odd"),
    [
        ({"Rows": 18, "Columns": 17}, "size (rows x columns)", "17 x 18", "18 x 17"),
        ({"PixelSpacing": [0.5, 0.76]}, "PixelSpacing (mm)", "(0.5, 0.75)", "(0.5, 0.76)"),
        (
            {"BitsStored": 12, "HighBit": 11},
            "type",
            "unsigned, 16 of 16 bits stored",
            "unsigned, 12 of 16 bits stored",
        ),
        (
            {"PixelRepresentation": 1},
            "type",
            "unsigned, 16 of 16 bits stored",
            "signed, 16 of 16 bits stored",
        ),
        (
            {"ImageOrientationPatient": [0.999847695, 0.0174524, 0, -0.0174524, 0.999847695, 0]},
            "ImageOrientationPatient",
            "(1, 0, 0, 0, 1, 0)",
            "(0.999848, 0.0174524, 0, -0.0174524, 0.999848, 0)",
        ),
    ],
)
def test_the_error_of_slices_that_differ_shows_the_differing_values(
    tmp_path, elements, what, usual, odd
):
    edit(write(tmp_path)[2], **elements)
    expected = f"differ in {what}: {usual} in 4 (1.dcm); {odd} in 1 (3.dcm); expected one"
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"NumberOfFrames": 12}, "holds 12 frames, but is no Enhanced CT"),
        ({"NumberOfFrames": 0}, "holds 0 frames, but is no Enhanced CT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "has 1 frame and positions of 0"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "1 samples per pixel ('MONOCHROME1'), exp"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "3 samples per pixel ('RGB')"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient holds 0 numbers, expected 3"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient holds 0 numbers, expected 6"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient holds 3 numbers"),
        ({"PixelSpacing": None}, "PixelSpacing holds 0 numbers, expected 2"),
        ({"PixelSpacing": [0, 0.5]}, "17 x 18 pixels 0.0 x 0.5 mm apart; expected more than 0"),
        ({"ImagePositionPatient": [0, 0, 1e30]}, "expected numbers within 1e+06"),
        ({"Rows": None}, "states no Rows: it is cut short"),
        ({"Columns": 0}, "17 x 0 pixels"),
        ({"Columns": None}, "Columns holds 0 numbers, expected 1"),
        ({"BitsAllocated": 12}, "has BitsAllocated 12, BitsStored 16, HighBit 15"),
        ({"HighBit": 11}, "BitsStored 16, HighBit 11"),
        ({"BitsStored": 17, "HighBit": 16}, "BitsStored 17"),
        ({"PixelRepresentation": 2}, "PixelRepresentation 2; expected"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0.0 and RescaleIntercept -1024.0"),
        ({"RescaleSlope": None}, "RescaleSlope is None and RescaleIntercept -1024.0"),
        ({"PixelData": None}, "cut short: it holds 0 of 612 bytes of pixels"),
    ],
)  # fmt: skip
def test_the_error_names_a_slice_that_cannot_be_used(tmp_path, elements, expected):
    path = write(tmp_path)[2]
    edit(path, **elements)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize(
    "cosines", [[1, 0, 0, 0.02, 0.9998, 0], [1.01, 0, 0, 0, 1, 0], [0] * 6, [1, 0, 0, 1, 0, 0]]
)
def test_cosines_that_are_no_rotation_are_refused(tmp_path, cosines):
    for path in write(tmp_path):
        edit(path, ImageOrientationPatient=cosines)
    assert "not two unit vectors at a right angle" in refusal(tmp_path)


def test_an_unknown_transfer_syntax_is_refused(tmp_path):
    path = write(tmp_path)[2]
    dataset = pydicom.dcmread(path)
    data = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    path.write_bytes(data)
    assert "its TransferSyntaxUID is 'of no known syntax', which is not read" in refusal(tmp_path)


# Damage


@pytest.mark.parametrize("syntax", DICOM_TRANSFER_SYNTAXES)
def test_the_error_names_a_slice_cut_anywhere(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax)[2]
    content = path.read_bytes()
    sizes = range(0, len(content), 61)
    for size in {*sizes, *range(len(content) - 12, len(content))}:
        path.write_bytes(content[:size])
        found = values_or_refusal(tmp_path)
        if isinstance(found, str):
            assert str(path) in found
        else:
            # The four zeros behind the end marker of the pixels carry no data.
            assert size >= len(content) - 4
            np.testing.assert_array_equal(found, VALUES)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_pixels_without_an_end_marker_are_reported_as_cut(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax)[2]
    path.write_bytes(path.read_bytes()[:-9])
    assert refusal(tmp_path) == f"{path}: cut short: its pixels do not end. Download it again."


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_cut_code_stream_in_a_complete_file_is_refused(tmp_path, syntax, share):
    path = write(tmp_path, transfer_syntax=syntax)[2]
    dataset = pydicom.dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    edit(path, PixelData=encapsulate([frame[: int(len(frame) * share)]]))
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize("syntax", ["jpeg-lossless", "jpeg-lossless-57", "jpeg-ls", "jpeg2000"])
def test_a_code_stream_that_ends_in_zeros_is_refused(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax)[2]
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    half = len(frame) // 2
    edit(path, PixelData=encapsulate([frame[:half] + bytes(len(frame) - half)]))
    assert f"{path}: its code stream is cut short: it does not end with" in refusal(tmp_path)


@pytest.mark.parametrize("syntax", ["jpeg-lossless", "jpeg-lossless-57", "jpeg-ls", "jpeg2000"])
@pytest.mark.parametrize("pad", [b"\xff", b"\x01"])
def test_a_pad_byte_behind_a_code_stream_may_have_any_value(tmp_path, syntax, pad):
    padded = 0
    for path in write(tmp_path, np.concatenate([VALUES] * 4, axis=2), transfer_syntax=syntax):
        frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1).rstrip(b"\0")
        if len(frame) % 2:
            edit(path, PixelData=encapsulate([frame + pad]))
            padded += 1
    assert padded
    np.testing.assert_array_equal(read(tmp_path)[1][..., :5], VALUES)


@pytest.mark.parametrize("syntax", ["jpeg-lossless", "jpeg-ls", "jpeg2000"])
def test_a_code_stream_of_another_size_is_refused(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax)[2]
    write(tmp_path / "other", VALUES[:, :16], transfer_syntax=syntax)
    edit(path, PixelData=pydicom.dcmread(tmp_path / "other" / "3.dcm").PixelData)
    message = refusal(tmp_path)
    assert f"{path}: " in message
    assert "its code stream has 16 x 18 pixels, its header states 17 x 18" in message


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path)[2]
    volume = open_volume(LOCAL, f"{tmp_path}/")
    edit(path, RescaleIntercept=5)
    with pytest.raises(FormatError, match=r"3\.dcm: has changed while it was read"):
        list(volume.slabs([5]))


@pytest.mark.parametrize(
    "syntax",
    [
        pytest.param(syntax, marks=[pytest.mark.long] if syntax in DECODED_ALIKE else [])
        for syntax in DICOM_TRANSFER_SYNTAXES
    ],
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_slice_is_read_or_refused_with_a_clear_error(tmp_path, syntax, data):
    values = VALUES[..., :2]
    path = tmp_path / "1.dcm"
    write(tmp_path, values, transfer_syntax=syntax)
    content = bytearray(path.read_bytes())
    changes = data.draw(
        st.dictionaries(
            st.integers(0, len(content) - 1), st.integers(0, 255), min_size=1, max_size=4
        )
    )
    for at, byte in changes.items():
        content[at] = byte
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path.write_bytes(content[:end])
    found = values_or_refusal(tmp_path)
    assert str(tmp_path) in found if isinstance(found, str) else found.ndim == 3
