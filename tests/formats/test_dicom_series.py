"""Tests of which files form one series, and of the signs that slices are missing."""

import re

import numpy as np
import pydicom
import pytest
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.dicom_series import read_folder
from spinezarr.formats.limits import DEFAULT_LIMITS
from spinezarr.testing import DicomForm, set_dicom_elements, write_dicom_series

VALUES = np.random.default_rng(7).integers(-1000, 1001, (9, 8, 24), np.int16)
LPS = np.diag([-0.75, -0.5, 2.5, 1.0])
SCOUT = "ignored images across all slices: {} x scout"


def write(folder, values=VALUES, affine=LPS, **form):
    return write_dicom_series(folder, values, affine, DicomForm(**form))


def read(folder, **options):
    volume = DicomSeriesVolume.open(LocalFileSystem(), f"{folder}/", **options)
    (values,) = volume.slabs([volume.grid.shape_ijk[2]])
    return volume, values


def refusal(folder):
    with pytest.raises(FormatError) as caught:
        read(folder)
    return str(caught.value)


def shift(paths, mm):
    """Shift slices along z."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y, z + mm]
        dataset.save_as(path)


# Series without a UID, or with too many UIDs


@pytest.mark.parametrize("uid", [None, ""])
@pytest.mark.parametrize("which", [slice(None), slice(3, 4), slice(0, 12)])
def test_files_without_a_series_uid_belong_to_the_series_that_they_match(tmp_path, uid, which):
    for path in write(tmp_path)[which]:
        dataset = pydicom.dcmread(path)
        if uid is None:
            del dataset.SeriesInstanceUID
        else:
            dataset.SeriesInstanceUID = uid
        dataset.save_as(path)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    assert volume.notes == ()


@pytest.mark.parametrize(
    "elements",
    [
        {"SeriesNumber": 9},
        {"StudyInstanceUID": "1.2.9"},
        {"FrameOfReferenceUID": "1.2.9"},
        {"ConvolutionKernel": "B60f"},
        {"SliceThickness": "5"},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    ],
)
def test_two_series_without_a_uid_are_distinguished_by_other_elements(tmp_path, elements):
    write(tmp_path)
    others = write(tmp_path / "other", VALUES[..., :8])
    set_dicom_elements(others, **elements)
    for path in others:
        path.rename(tmp_path / f"other-{path.name}")
    set_dicom_elements(tmp_path.glob("*.dcm"), SeriesInstanceUID="")
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    number = elements.get("SeriesNumber", 2)
    assert volume.notes == (f"took series '2' (24 slices), not series '{number}' (8 slices)",)


def test_files_with_different_series_uids_form_one_series_if_all_else_agrees(tmp_path):
    for number, path in enumerate(write(tmp_path, naming="reversed")):
        set_dicom_elements([path], SeriesInstanceUID=f"1.2.3.{number}")
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    assert volume.notes == (
        (
            "each of its 24 files has a SeriesInstanceUID of its own; they were read as one "
            "series, because they are equal in all other fields that slices share"
        ),
    )


@pytest.mark.parametrize("element", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_the_error_of_many_examinations_in_a_folder_is_short(tmp_path, element):
    for number, path in enumerate(write(tmp_path)):
        own = {element: f"1.2.4.{number}"}
        set_dicom_elements([path], SeriesInstanceUID=f"1.2.3.{number}", **own)
    message = refusal(tmp_path)
    assert "each of its 24 CT files is a series of its own" in message
    assert f"they differ in {element}; expected the slices of one series" in message
    assert message.count("e.g.") == 3
    assert "; 21 more. If they are one, give them one SeriesInstanceUID" in message


def test_the_error_of_many_equally_large_series_names_a_few(tmp_path):
    for number in range(9):
        for path in write(tmp_path / "one", VALUES[..., :2]):
            set_dicom_elements([path], SeriesInstanceUID=f"1.2.{number}", SeriesNumber=number)
            path.rename(tmp_path / f"{number}-{path.name}")
    (tmp_path / "one").rmdir()
    message = refusal(tmp_path)
    assert "9 series have the most slices: series '" in message
    assert message.count("e.g.") == 3
    assert "; 6 more; expected one." in message
    assert "'series' in the layout" in message


# Scouts


@pytest.mark.parametrize("form", [{"scout": True}, {"localizer": True, "scout": True}])
def test_a_scout_with_the_uid_of_the_series_is_skipped(tmp_path, form):
    write(tmp_path, **form)
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    assert SCOUT.format(1) in volume.notes
    assert len(volume.notes) == len(form)


def test_two_scouts_are_skipped_and_three_are_refused(tmp_path):
    write(tmp_path, scout=True)
    directions = [[0, 1, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1]]
    for count, cosines in enumerate(directions, start=2):
        dataset = pydicom.dcmread(tmp_path / "scout.dcm")
        dataset.ImageOrientationPatient = cosines
        dataset.Rows, dataset.Columns, dataset.PixelData = 3, 4, bytes(24)
        dataset.save_as(tmp_path / f"scout-{count}.dcm")
        if count == 2:
            volume, values = read(tmp_path)
            np.testing.assert_array_equal(values, VALUES)
            assert volume.notes == (SCOUT.format(2),)
    assert "differ in size (rows x columns)" in refusal(tmp_path)


def test_a_series_of_one_slice_with_a_scout_is_not_taken_for_two(tmp_path):
    write(tmp_path, VALUES[..., :1], scout=True)
    assert "differ in ImageOrientationPatient" in refusal(tmp_path)


@pytest.mark.parametrize("degrees", [1, 20, 44])
def test_a_slightly_tilted_slice_is_no_scout(tmp_path, degrees):
    path = write(tmp_path)[4]
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    leaning = [1, 0, 0, 0, round(cosine, 9), round(sine, 9)]
    set_dicom_elements([path], ImageOrientationPatient=leaning)
    assert "differ in ImageOrientationPatient" in refusal(tmp_path)


# Two spacings


@pytest.mark.parametrize(("first", "second"), [(2.5, 5), (5, 2.5), (1.25, 3), (2.5, 7.5)])
@pytest.mark.parametrize(("n", "m"), [(20, 4), (12, 12), (5, 3)])
def test_the_error_names_two_spacings(tmp_path, first, second, n, m):
    values = np.zeros((4, 4, n + m), np.int16)
    along = np.concatenate([first * np.arange(n), first * (n - 1) + second * np.arange(1, m + 1)])
    for path, z in zip(write(tmp_path, values), along.tolist(), strict=True):
        set_dicom_elements([path], ImagePositionPatient=[0, 0, round(z, 4)])
    message = refusal(tmp_path)
    assert (
        f"the series has 2 spacings: {n} slices {first:g} mm apart and {m} slices {second:g} mm "
        "apart; expected one. Keep the slices of one spacing in the folder, or resample"
    ) in message
    assert "missing" not in message


def test_the_error_sums_up_stretches_of_one_spacing_and_names_thicknesses(tmp_path):
    values = np.zeros((4, 4, 24), np.int16)
    gaps = [2.5] * 9 + [5.0] * 5 + [2.5] * 9
    paths = write(tmp_path, values)
    for path, z in zip(paths, np.cumsum([0, *gaps]).tolist(), strict=True):
        set_dicom_elements([path], ImagePositionPatient=[0, 0, z], SliceThickness="2.5")
    set_dicom_elements(paths[9:14], SliceThickness="5")
    message = refusal(tmp_path)
    assert "2 spacings: 19 slices 2.5 mm apart and 5 slices 5 mm apart; expected one" in message
    assert "Their SliceThickness is 2.5 mm in 19 (1.dcm); 5 mm in 5 (10.dcm)." in message


def test_two_spacings_are_found_despite_a_single_wide_gap(tmp_path):
    gaps = [2.5] * 10 + [11.3] + [5.0] * 12
    for path, z in zip(write(tmp_path), np.cumsum([0, *gaps]).tolist(), strict=True):
        set_dicom_elements([path], ImagePositionPatient=[0, 0, round(z, 4)])
    assert "2 spacings: 11 slices 2.5 mm apart and 13 slices 5 mm apart" in refusal(tmp_path)


@pytest.mark.parametrize("gaps", [[5], [5, 5], [5, 2.5, 5], [7.5, 5]])
def test_one_or_two_wide_gaps_are_reported_as_missing_slices(tmp_path, gaps):
    all_gaps = [2.5] * 8 + gaps + [2.5] * (15 - len(gaps))
    for path, z in zip(write(tmp_path), np.cumsum([0, *all_gaps]).tolist(), strict=True):
        set_dicom_elements([path], ImagePositionPatient=[0, 0, z])
    count = round(sum(gaps) / 2.5) - len(gaps)
    assert f": {count} slice{'s are' if count > 1 else ' is'} missing: " in refusal(tmp_path)


def test_the_error_of_two_stacks_at_equal_positions_names_their_thicknesses(tmp_path):
    set_dicom_elements(write(tmp_path), SliceThickness="2.5")
    thick = write(tmp_path / "thick", VALUES[..., ::2], LPS @ np.diag([1, 1, 2, 1]))
    uid = pydicom.dcmread(tmp_path / "1.dcm").SeriesInstanceUID
    set_dicom_elements(thick, SliceThickness="5", SeriesInstanceUID=uid)
    for path in thick:
        path.rename(tmp_path / f"thick-{path.name}")
    message = refusal(tmp_path)
    assert ": holds 12 repeated slices, two at one position" in message
    assert "Their SliceThickness is 2.5 mm in 24 (" in message
    assert "; 5 mm in 12 (" in message


# Slices that are missing at an end


def notes_of(folder):
    return list(read(folder)[0].notes)


def test_a_complete_series_that_states_its_counts_has_no_notes(tmp_path):
    paths = write(tmp_path, localizer=True)
    set_dicom_elements(
        tmp_path.glob("*.dcm"), ImagesInAcquisition=25, NumberOfSeriesRelatedInstances=25
    )
    set_dicom_elements(paths, SpacingBetweenSlices="2.5")
    assert notes_of(tmp_path) == ["ignored files that are not CT slices: 1 x localizer"]


@pytest.mark.parametrize("k", [0, 23])
def test_fewer_files_than_the_series_has_are_refused(tmp_path, k):
    paths = write(tmp_path)
    set_dicom_elements(paths, NumberOfSeriesRelatedInstances=24)
    assert notes_of(tmp_path) == []
    paths[k].unlink()
    message = refusal(tmp_path)
    assert "series '2' has 23 files here, and each slice says that the series has 24" in message
    assert "(NumberOfSeriesRelatedInstances). Download the series again." in message
    set_dicom_elements(paths[5:6], NumberOfSeriesRelatedInstances=23)
    read(tmp_path)  # where files do not agree, none of them is believed


def test_fewer_images_than_the_acquisition_had_are_noted(tmp_path):
    paths = write(tmp_path)
    set_dicom_elements(paths, ImagesInAcquisition=24)
    paths[-1].unlink()
    (note,) = notes_of(tmp_path)
    assert note == (
        "23 of the 24 images of its acquisition (ImagesInAcquisition) are here: the others belong "
        "to another series, or are missing"
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (range(1, 25), None),
        (range(24), None),
        (range(24, 0, -1), None),
        ([*range(1, 23), 24, 23], None),
        (range(2, 26), (2, 25)),
        (range(267, 291), (267, 290)),
        (range(1, 48, 2), (1, 47)),
        ([*range(1, 24), 25], (1, 25)),
        ([1] * 24, None),
        ([None] * 24, None),
        ([None, *range(7, 30)], None),
    ],
)
def test_instance_numbers_that_start_late_or_have_gaps_are_noted(tmp_path, numbers, expected):
    for path, number in zip(write(tmp_path), numbers, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = number
        dataset.save_as(path)
    said = "InstanceNumber runs from {} to {} over 24 slices: some may be missing"
    assert notes_of(tmp_path) == ([] if expected is None else [said.format(*expected)])


def test_the_instance_number_of_a_scout_is_no_gap(tmp_path):
    paths = write(tmp_path, localizer=True, scout=True)
    others = [tmp_path / "localizer.dcm", tmp_path / "scout.dcm"]
    for number, path in enumerate([*others, *paths], start=1):
        set_dicom_elements([path], InstanceNumber=number)
    assert not any("InstanceNumber" in note for note in notes_of(tmp_path))
    set_dicom_elements(others[:1], InstanceNumber=99)
    (note,) = [note for note in notes_of(tmp_path) if "InstanceNumber" in note]
    assert note == "InstanceNumber runs from 3 to 26 over 24 slices: some may be missing"


@pytest.mark.parametrize(("stated", "noted"), [("2.5", False), ("2.6", False), ("1.25", True)])
@pytest.mark.parametrize("sign", ["", "-"])
def test_slices_further_apart_than_stated_are_noted(tmp_path, stated, noted, sign):
    set_dicom_elements(write(tmp_path), SpacingBetweenSlices=sign + stated)
    notes = notes_of(tmp_path)
    assert len(notes) == noted
    if noted:
        expected = r"the slices are 2\.5 mm apart, but SpacingBetweenSlices is -?1\.25 mm"
        assert re.match(expected, notes[0])


# One of several series


def test_a_series_chosen_by_its_key_is_read_only_from_its_files(tmp_path):
    write(tmp_path, second_series=9)
    fs = LocalFileSystem()
    sizes = {str(path): path.stat().st_size for path in tmp_path.iterdir()}
    first, second = read_folder(fs, sizes, DEFAULT_LIMITS).series
    assert (first.name, first.slices) == ("series '2'", 24)
    assert (second.name, second.slices) == ("series '3'", 9)
    volume, values = read(tmp_path, series=second.key)
    np.testing.assert_array_equal(values, np.full((9, 8, 9), -1024))
    assert volume.notes == ()
    (tmp_path / "broken.dcm").write_bytes(b"")
    names = [path.rsplit("/", 1)[-1] for path in (item.path for item in second.objects)]
    volume, _ = read(tmp_path, series=second.key, files=names)
    assert volume.grid.shape_ijk == (9, 8, 9)
    with pytest.raises(FormatError, match=r"broken\.dcm: is not a DICOM file"):
        read(tmp_path, series=second.key)
    (tmp_path / "broken.dcm").unlink()
    with pytest.raises(FormatError, match="does not hold the series that was found there before"):
        read(tmp_path, series="0" * 16)
    (tmp_path / names[-1]).unlink()
    with pytest.raises(FormatError, match="holds 8 of the 9 files that were found there before"):
        read(tmp_path, series=second.key, files=names)
