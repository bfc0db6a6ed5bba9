"""Enhanced CT, with all slices in one file, compared with the same slices in single files."""

import copy
import hashlib
import io
import tracemalloc

import numpy as np
import pydicom
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, get_frame

from spinezarr.errors import FormatError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.limits import Limits
from spinezarr.formats.volume import open_volume
from spinezarr.testing import (
    DICOM_TRANSFER_SYNTAXES,
    DicomForm,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
)

VALUES = np.random.default_rng(7).integers(-1000, 1001, (18, 17, 5), np.int16)
TURN = np.array([[0.6, 0, 0.8, 12], [0.8, 0, -0.6, -7], [0, 1, 0, 99], [0, 0, 0, 1]])
AFFINE = TURN @ np.diag([0.75, 0.5, 2.5, 1.0])
COMPRESSED = [name for name in DICOM_TRANSFER_SYNTAXES if name.startswith(("rle", "jpeg"))]


def write(folder, values=VALUES, *, legacy=False, **form):
    return write_dicom_multiframe(
        folder / "frames.dcm", values, AFFINE, DicomForm(**form), legacy=legacy
    )


def read(folder, thicknesses=None, **options):
    volume = DicomSeriesVolume.open(LocalFileSystem(), f"{folder}/", **options)
    slabs = list(volume.slabs(thicknesses or [volume.grid.shape_ijk[2]]))
    return volume, np.concatenate(slabs, axis=2)


def refusal(folder, **options):
    with pytest.raises(FormatError) as caught:
        read(folder, **options)
    return str(caught.value)


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


FORMS = (
    {"bits_stored": 12},
    {"signed": True, "intercept": 0, "bits_stored": 12},
    {"slope": 0.5, "intercept": 0.5 - 1024, "naming": "reversed"},
)


@pytest.mark.parametrize(
    ("syntax", "form", "legacy"),
    [
        # Half of them have every pair of a syntax, a form and a kind.
        pytest.param(syntax, form, legacy, marks=[pytest.mark.long] if (i + j + legacy) % 2 else [])
        for i, syntax in enumerate(DICOM_TRANSFER_SYNTAXES)
        for j, form in enumerate(FORMS)
        for legacy in (False, True)
    ],
)
def test_frames_equal_the_same_slices_in_single_files(tmp_path, syntax, form, legacy):
    values = VALUES + 0.5 if form.get("slope") else VALUES
    write(tmp_path / "frames", values, legacy=legacy, transfer_syntax=syntax, **form)
    write_dicom_series(
        tmp_path / "slices", values, AFFINE, DicomForm(transfer_syntax=syntax, **form)
    )
    volume, found = read(tmp_path / "frames", [2, 1, 2])
    slices, expected = read(tmp_path / "slices")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_allclose(volume.grid.affine_ijk, slices.grid.affine_ijk, atol=1e-9)
    assert (volume.dtype, volume.notes) == (slices.dtype, slices.notes)


def test_frames_are_ordered_by_their_positions(tmp_path):
    path = write(tmp_path)
    order = [3, 0, 4, 1, 2]

    def shuffle(dataset):
        groups = list(dataset.PerFrameFunctionalGroupsSequence)
        size = len(dataset.PixelData) // 5
        frames = [dataset.PixelData[k * size : (k + 1) * size] for k in range(5)]
        dataset.PerFrameFunctionalGroupsSequence = [groups[k] for k in order]
        dataset.PixelData = b"".join(frames[k] for k in order)

    edit(path, shuffle)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_each_frame_may_have_its_own_rescaling(tmp_path):
    path = write(tmp_path, intercept=0, signed=True)

    def rescale(dataset):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            group.PixelValueTransformationSequence = [
                copy.deepcopy(shared.PixelValueTransformationSequence[0])
            ]
            group.PixelValueTransformationSequence[0].RescaleSlope = k + 1
        del shared.PixelValueTransformationSequence

    edit(path, rescale)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES.astype(int) * [1, 2, 3, 4, 5])
    edit(
        path,
        lambda d: d.PerFrameFunctionalGroupsSequence[1].pop("PixelValueTransformationSequence"),
    )
    assert "differ in rescaling" in refusal(tmp_path)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4, 4)])
def test_pixels_of_8_bits_are_read_by_pairs_of_bytes(tmp_path, big_endian, vr, shape):
    """In big endian words the bytes of two pixels are swapped, also across frames of odd size."""
    syntax = "explicit-be" if big_endian else "explicit-le"
    path = write(tmp_path, np.zeros(shape, int), transfer_syntax=syntax, intercept=0)
    pixels = np.arange(np.prod(shape), dtype=np.uint8) * 4

    def narrow(dataset):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        swapped = pixels.view("u2").byteswap().tobytes()
        dataset["PixelData"] = pydicom.DataElement(
            "PixelData", vr, swapped if big_endian and vr == "OW" else pixels.tobytes()
        )

    edit(path, narrow)
    expected = pixels.reshape(shape[::-1]).transpose(2, 1, 0)
    np.testing.assert_array_equal(read(tmp_path)[1], expected)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("has_table", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_frame_may_be_in_several_fragments(tmp_path, syntax, has_table, pieces):
    if syntax == "rle" and pieces > 1:
        return  # each frame is one fragment (PS3.5 annex G.1)
    path = write(tmp_path, transfer_syntax=syntax)

    def split(dataset):
        codes = [get_frame(dataset.PixelData, k, number_of_frames=5) for k in range(5)]
        dataset.PixelData = encapsulate(codes, fragments_per_frame=pieces, has_bot=has_table)
        dataset["PixelData"].is_undefined_length = True

    edit(path, split)
    np.testing.assert_array_equal(read(tmp_path)[1], VALUES)


def test_a_multi_frame_file_of_any_file_system_can_be_read(tmp_path):
    write(tmp_path, transfer_syntax="jpeg-ls")
    fs = MemoryFileSystem()
    fs.put(str(tmp_path), "/frames", recursive=True)
    (values,) = open_volume(fs, "/frames/").slabs([5])
    np.testing.assert_array_equal(values, VALUES)
    fs.rm("/frames", recursive=True)


def test_hash_and_size_are_those_of_the_file(tmp_path):
    content = write(tmp_path, naming="reversed").read_bytes()
    write_dicom_objects(tmp_path, "SEG")
    volume, _ = read(tmp_path, [1] * 5)
    assert volume.source_file().sha256 == hashlib.sha256(content).hexdigest()
    assert volume.source_file().size_bytes == len(content)
    assert volume.notes == ("ignored files that are not CT slices: 1 x Segmentation Storage",)


def test_a_series_of_two_files_is_stacked_from_all_their_frames(tmp_path):
    for half, k in enumerate((slice(0, 2), slice(2, 5))):
        moved = AFFINE.copy()
        moved[:3, 3] += 2 * half * AFFINE[:3, 2]
        path = write_dicom_multiframe(tmp_path / f"{half}.dcm", VALUES[..., k], moved, DicomForm())
        edit(path, lambda d: setattr(d, "SeriesInstanceUID", "1.2.3"))
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(volume.grid.affine_ijk, AFFINE, atol=1e-9)


def test_only_a_few_frames_are_in_memory(tmp_path):
    shape = (256, 256, 200)
    write(tmp_path, np.zeros(shape, np.int16))
    tracemalloc.start()
    volume = DicomSeriesVolume.open(LocalFileSystem(), f"{tmp_path}/")
    for _ in volume.slabs([1] * 200):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert volume.source_file().size_bytes > 26_000_000
    assert peak < 10_000_000


# Refused files


@pytest.mark.parametrize("gap", [{"missing": (2,)}, {"repeated": (1,)}])
def test_the_error_of_uneven_frames_lists_their_numbers(tmp_path, gap):
    write(tmp_path, **gap)
    message = refusal(tmp_path)
    if "missing" in gap:
        assert (
            "1 slice is missing: 1 in 5.000 mm between frames.dcm frame 2 and frames.dcm" in message
        )
    else:
        assert "1 repeated slice, two at one position" in message
        assert "frames.dcm frame 2 and frames.dcm frame 6 at" in message


def test_several_stacks_or_times_are_refused(tmp_path):
    path = write(tmp_path)

    def content(dataset, k):
        return dataset.PerFrameFunctionalGroupsSequence[k].FrameContentSequence[0]

    edit(path, lambda d: setattr(content(d, 3), "StackID", "Jane"))
    message = refusal(tmp_path)
    assert "its 5 frames belong to 2 stacks (StackID), expected one. Export each as" in message
    edit(path, lambda d: setattr(content(d, 3), "StackID", "1"))
    edit(path, lambda d: setattr(content(d, 3), "TemporalPositionIndex", 2))
    assert "its 5 frames belong to 2 times (TemporalPositionIndex)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("PlanePositionSequence", "ImagePositionPatient holds 0 numbers, expected 3"),
        ("PlaneOrientationSequence", "ImageOrientationPatient holds 0 numbers, expected 6"),
        ("PixelMeasuresSequence", "PixelSpacing holds 0 numbers, expected 2"),
        ("PerFrameFunctionalGroupsSequence", "has 5 frames and positions of 0"),
    ],
)
def test_a_file_without_positions_of_its_frames_is_refused(tmp_path, sequence, expected):
    def remove(dataset):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for place in (dataset, shared, *dataset.PerFrameFunctionalGroupsSequence):
            place.pop(sequence, None)

    path = write(tmp_path)
    edit(path, remove)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_file_without_rescaling_is_noted(tmp_path):
    path = write(tmp_path, intercept=-1024)
    edit(
        path, lambda d: d.SharedFunctionalGroupsSequence[0].pop("PixelValueTransformationSequence")
    )
    volume, values = read(tmp_path)
    np.testing.assert_array_equal(values, VALUES + 1024)
    assert volume.notes == ("no RescaleSlope: the values are used as stored, and may not be HU",)


def test_a_multi_frame_file_above_its_size_limit_is_refused(tmp_path):
    size = write(tmp_path).stat().st_size
    for limits in (Limits(dicom_file_bytes=size - 1), Limits(dicom_multiframe_bytes=size)):
        np.testing.assert_array_equal(read(tmp_path, limits=limits)[1], VALUES)
    limits = Limits(dicom_multiframe_bytes=size - 1)
    assert f"has more than {size - 1} bytes, expected the file of a CT" in refusal(
        tmp_path, limits=limits
    )


@pytest.mark.parametrize("syntax", DICOM_TRANSFER_SYNTAXES)
def test_the_error_names_a_file_cut_anywhere(tmp_path, syntax):
    path = write(tmp_path, transfer_syntax=syntax)
    content = path.read_bytes()
    whole = len(content) - (syntax == "deflated" and content.endswith(b"\0"))  # without padding
    for size in {*range(0, whole, 211), *range(whole - 12, whole)}:
        path.write_bytes(content[:size])
        assert str(path) in refusal(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path)
    volume = open_volume(LocalFileSystem(), f"{tmp_path}/")
    shared = "SharedFunctionalGroupsSequence"
    edit(path, lambda d: setattr(d[shared][0].PixelMeasuresSequence[0], "PixelSpacing", [1, 1]))
    with pytest.raises(FormatError, match=r"frames\.dcm: has changed while it was read"):
        list(volume.slabs([5]))


@pytest.mark.parametrize("syntax", ["explicit-le", "implicit-le", "deflated", "jpeg-ls", "rle"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_file_is_read_or_refused_with_a_clear_error(tmp_path, syntax, data):
    path = tmp_path / "frames.dcm"
    if not (tmp_path / "whole").exists():
        write(tmp_path, transfer_syntax=syntax).rename(tmp_path / "whole")
    content = bytearray((tmp_path / "whole").read_bytes())
    changes = data.draw(
        st.dictionaries(
            st.integers(0, len(content) - 1), st.integers(0, 255), min_size=1, max_size=4
        )
    )
    for at, byte in changes.items():
        content[at] = byte
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(content)
    try:
        found = read(folder)[1]
    except FormatError as problem:
        found = str(problem)
    assert str(folder) in found if isinstance(found, str) else found.ndim == 3


def test_pydicom_reads_the_files_of_the_testing_writer(tmp_path):
    for syntax in ("explicit-le", "deflated", "jpeg-ls", "rle"):
        path = write(tmp_path, transfer_syntax=syntax)
        dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        pixels = dataset.pixel_array.astype(int) - 1024
        np.testing.assert_array_equal(pixels.transpose(2, 1, 0), VALUES)
