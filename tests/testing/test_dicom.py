import subprocess
import sys

import numpy as np
import pydicom
import pytest

from spinezarr.errors import UsageError
from spinezarr.testing import (
    DICOM_TRANSFER_SYNTAXES,
    DicomForm,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
)

VALUES = np.random.default_rng(3).integers(-1000, 1000, (18, 17, 3), np.int16)
RAS = np.diag([0.7, 0.8, 2.5, 1.0])


def write(folder, values=VALUES, affine=RAS, **form):
    return write_dicom_series(folder, values, affine, DicomForm(**form))


def test_headers_place_voxels_where_the_affine_does(tmp_path):
    turn = np.array([[0.6, 0, 0.8, 12], [0.8, 0, -0.6, -7], [0, 1, 0, 99], [0, 0, 0, 1]])
    affine = turn @ RAS
    for k, path in enumerate(write(tmp_path, affine=affine)):
        header = pydicom.dcmread(path)
        across, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        between_rows, between_columns = header.PixelSpacing
        for i, j in ((0, 0), (17, 0), (0, 16), (5, 9)):
            # PS3.3 equation C.7.6.2.1-1; LPS to RAS changes the signs of x and y.
            place = np.array(header.ImagePositionPatient, float)
            place += across * between_columns * i + down * between_rows * j
            np.testing.assert_allclose(place * [-1, -1, 1], (affine @ [i, j, k, 1])[:3])
        np.testing.assert_array_equal(header.pixel_array.astype(int).T - 1024, VALUES[:, :, k])


@pytest.mark.parametrize("name", DICOM_TRANSFER_SYNTAXES)
def test_files_have_the_given_transfer_syntax_and_are_reproducible(tmp_path, name):
    paths = write(tmp_path / "a", transfer_syntax=name)
    again = write(tmp_path / "b", transfer_syntax=name)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    for path in paths:
        found = pydicom.dcmread(path).file_meta.TransferSyntaxUID
        assert found == DICOM_TRANSFER_SYNTAXES[name]


def test_options_of_a_series_appear_in_its_files(tmp_path):
    paths = write(
        tmp_path, localizer=True, scout=True, secondary_capture=True, second_series=2, missing=(1,),
        repeated=(2,), moved_mm=((0, 0.5),), gantry_tilt_deg=45,
    )  # fmt: skip
    assert [path.name for path in paths] == ["1.dcm", "2.dcm", "3.dcm"]
    positions = [np.array(pydicom.dcmread(p).ImagePositionPatient, float) for p in paths]
    np.testing.assert_array_equal(positions[1], positions[2])
    np.testing.assert_allclose(positions[1], [0, -5, 5])
    np.testing.assert_allclose(positions[0], [0, -(0.5**1.5), 0.5**1.5])
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in paths} == {
        "localizer.dcm", "scout.dcm", "picture.dcm", "other-0.dcm", "other-1.dcm"
    }  # fmt: skip
    uids = {pydicom.dcmread(p).SOPInstanceUID for p in tmp_path.iterdir()}
    assert len(uids) == 8
    scout = pydicom.dcmread(tmp_path / "scout.dcm")
    assert "LOCALIZER" not in scout.ImageType
    across = np.cross(*np.reshape(scout.ImageOrientationPatient, (2, 3)).astype(float))
    slices = pydicom.dcmread(paths[0]).ImageOrientationPatient
    normal = np.cross(*np.reshape(slices, (2, 3)).astype(float))
    assert abs(across @ normal) < 0.8


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"transfer_syntax": "jpeg"}, "transfer_syntax must be one of implicit-le"),
        ({"slope": 0}, "slope must be a number other than 0"),
        ({"bits_stored": 17}, "bits_stored must be within 2 and 16, got 17"),
        ({"slope": 3}, "not all whole multiples of slope 3 above intercept -1024"),
        ({"bits_stored": 10}, "which 10 bits from 0 to 1023 cannot hold"),
        ({"signed": True, "intercept": 40_000}, "16 bits from -32768 to 32767 cannot hold"),
        ({"preamble": False, "transfer_syntax": "rle"}, "without a preamble, transfer_syntax must"),
    ],
)
def test_a_form_that_cannot_be_written_is_refused(tmp_path, form, expected):
    with pytest.raises(UsageError, match=expected):
        write(tmp_path, **form)


@pytest.mark.parametrize("syntax", ["implicit-le", "explicit-le"])
def test_files_without_a_preamble_start_with_the_data_set(tmp_path, syntax):
    for k, path in enumerate(write(tmp_path, transfer_syntax=syntax, preamble=False)):
        assert path.read_bytes()[:2] == b"\x08\0"
        header = pydicom.dcmread(path, force=True)
        assert not header.file_meta
        stored = np.frombuffer(header.PixelData, "<u2").reshape(17, 18)
        np.testing.assert_array_equal(stored.T.astype(int) - 1024, VALUES[:, :, k])


@pytest.mark.parametrize("name", DICOM_TRANSFER_SYNTAXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_frames_equal_the_single_slices(tmp_path, name, legacy):
    form = DicomForm(transfer_syntax=name)
    path = write_dicom_multiframe(tmp_path / "new" / "mf.dcm", VALUES, RAS, form, legacy=legacy)
    again = write_dicom_multiframe(tmp_path / "mf.dcm", VALUES, RAS, form, legacy=legacy)
    assert path.read_bytes() == again.read_bytes()
    found = pydicom.dcmread(path)
    assert found.file_meta.TransferSyntaxUID == DICOM_TRANSFER_SYNTAXES[name]
    assert ("Legacy" in found.SOPClassUID.name) == legacy
    np.testing.assert_array_equal(found.pixel_array.transpose(2, 1, 0).astype(int) - 1024, VALUES)
    slices = write(tmp_path / "slices")
    for group, single in zip(found.PerFrameFunctionalGroupsSequence, slices, strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position == pydicom.dcmread(single).ImagePositionPatient


def test_frames_may_be_stored_in_reverse_order(tmp_path):
    form = DicomForm(naming="reversed", missing=(1,))
    found = pydicom.dcmread(write_dicom_multiframe(tmp_path / "mf.dcm", VALUES, RAS, form))
    np.testing.assert_array_equal(
        found.pixel_array.transpose(2, 1, 0).astype(int) - 1024, VALUES[..., [2, 0]]
    )


@pytest.mark.parametrize("modality", ["MR", "PT", "SR", "RTSTRUCT", "SEG"])
def test_objects_of_other_modalities_have_their_class(tmp_path, modality):
    paths = write_dicom_objects(tmp_path / "new", modality, 2)
    assert [path.name for path in paths] == [f"{modality}-1.dcm", f"{modality}-2.dcm"]
    found = [pydicom.dcmread(path) for path in paths]
    assert {dataset.Modality for dataset in found} == {modality}
    assert len({dataset.SeriesInstanceUID for dataset in found}) == 1
    assert "CT" not in found[0].SOPClassUID.name


def test_a_dicomdir_file_has_its_class(tmp_path):
    (path,) = write_dicom_objects(tmp_path, "DIRECTORY")
    found = pydicom.dcmread(path)
    assert found.file_meta.MediaStorageSOPClassUID.name == "Media Storage Directory Storage"
    assert "SOPClassUID" not in found
    with pytest.raises(UsageError, match=r"modality must be one of MR, PT, .*; got 'US'"):
        write_dicom_objects(tmp_path, "US")


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    affine = RAS.copy()
    affine[1, 2] = 0.1
    with pytest.raises(UsageError, match=r"not at right angles, by 2\.29 degrees"):
        write(tmp_path, affine=affine)


def test_slices_too_small_for_jpeg_2000_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"at least 16 x 16 pixels .*, got 17 x 15"):
        write(tmp_path, VALUES[:15], transfer_syntax="jpeg2000")


@pytest.mark.parametrize("package", ["spinezarr.testing", "spinezarr.formats"])
def test_importing_does_not_need_pydicom(package):
    code = f"import sys; sys.modules.update(pydicom=None, gdcm=None); import {package}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["pydicom", "gdcm"])
def test_the_error_of_the_writer_without_packages_says_what_to_install(
    tmp_path, monkeypatch, module
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'spinezarr\[dicom\]'"):
        write(tmp_path / "new")
    assert not (tmp_path / "new").exists()
