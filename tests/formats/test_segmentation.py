"""DICOM Segmentations and the .seg.nrrd of 3D Slicer, compared with highdicom and SimpleITK."""

import gzip
import hashlib
import re
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  its own pages call it so
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.errors import FormatError, GridMismatchError, LabelError, SpinezarrError
from spinezarr.formats.limits import Limits
from spinezarr.formats.part_of_grid import turned_like
from spinezarr.formats.segmentation import open_segmentation
from spinezarr.formats.segments import SegmentedLabels
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Grid
from spinezarr.testing import (
    DicomForm,
    all_axcodes,
    write_dicom_segmentation,
    write_dicom_series,
    write_seg_nrrd,
)
from spinezarr.testing.orientation import oriented

FS = LocalFileSystem()
REAL = Path(__file__).parents[3] / "shared/data/real/dicom/dcmqi"
SHAPE = (7, 5, 6)
AFFINE = np.array([[0, 0, 3.0, -20], [-0.7, 0, 0, 11], [0, -0.8, 0, 5], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
LABELS = (("L1 vertebra", 20), ("L2 vertebra", 21))


def boxes(**of_name):
    """Return a mask for each name and its (start, stop) along i, j and k."""
    masks = {}
    for name, box in of_name.items():
        mask = np.zeros(SHAPE, bool)
        mask[tuple(slice(a, b) for a, b in box)] = True
        masks[name.replace("_", " ")] = mask
    return masks


TWO = boxes(L1_vertebra=((1, 4), (1, 3), (1, 3)), L2_vertebra=((2, 6), (2, 5), (4, 6)))
WRITERS = {
    "dicom": lambda path, masks, affine=AFFINE: write_dicom_segmentation(path, masks, affine),
    "fractional": lambda path, masks, affine=AFFINE: write_dicom_segmentation(
        path, masks, affine, "FRACTIONAL"
    ),
    "labelmap": lambda path, masks, affine=AFFINE: write_dicom_segmentation(
        path, masks, affine, "LABELMAP"
    ),
    "nrrd": lambda path, masks, affine=AFFINE: write_seg_nrrd(path, masks, affine),
    "cropped nrrd": lambda path, masks, affine=AFFINE: write_seg_nrrd(
        path, masks, affine, crop=True
    ),
}


def volume_of(path, image=GRID, labels=LABELS):
    return SegmentedLabels(open_segmentation(FS, str(path), image), labels, str(path))


def read(path, image=GRID, labels=LABELS, thicknesses=None):
    volume = volume_of(path, image, labels)
    slabs = volume.slabs(thicknesses or [volume.grid.shape_ijk[2]])
    return volume, np.concatenate(list(slabs), axis=2)


def expected_of(masks, labels=LABELS):
    merged = np.zeros(SHAPE, np.uint8)
    for name, value in labels:
        merged[masks[name]] = value
    return merged


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("thicknesses", [[6], [1] * 6, [2, 3, 1]])
def test_segments_get_the_labels_of_their_names(tmp_path, form, thicknesses):
    path = WRITERS[form](tmp_path / "mask", TWO)
    volume, values = read(path, thicknesses=thicknesses)
    np.testing.assert_array_equal(values, expected_of(TWO))
    np.testing.assert_array_equal(volume.grid.affine_ijk, AFFINE)
    file = volume.source_file()
    assert file.size_bytes == path.stat().st_size
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), form=st.sampled_from(["dicom", "nrrd", "cropped nrrd"]))
def test_any_masks_are_read_as_written(tmp_path_factory, data, form):
    masks = {}
    for name, _ in LABELS:
        voxels = data.draw(st.sets(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), min_size=1))
        masks[name] = np.zeros(SHAPE, bool)
        masks[name][tuple(np.array(list(voxels)).T)] = True
    path = WRITERS[form](tmp_path_factory.mktemp("seg") / "mask", masks)
    volume, values = read(path)
    np.testing.assert_array_equal(values, expected_of(masks))
    assert volume.overlap_voxels == np.count_nonzero(masks[LABELS[0][0]] & masks[LABELS[1][0]])


def test_the_segment_that_is_named_later_wins_where_two_overlap(tmp_path):
    masks = boxes(L1_vertebra=((0, 4), (0, 4), (0, 4)), L2_vertebra=((2, 6), (2, 5), (2, 6)))
    for form in ("dicom", "nrrd"):
        path = WRITERS[form](tmp_path / form, masks)
        for labels in (LABELS, LABELS[::-1]):
            volume, values = read(path, labels=labels)
            np.testing.assert_array_equal(values, expected_of(masks, labels))
            assert volume.overlap_voxels == 2 * 2 * 2


@pytest.mark.parametrize("form", ["dicom", "cropped nrrd"])
@pytest.mark.parametrize("axcodes", all_axcodes()[::5])
def test_the_axes_of_image_and_segmentation_may_differ(tmp_path, form, axcodes):
    stored = GRID.axis_map.to_zyx(expected_of(TWO))
    _, affine = oriented(stored, GRID.affine_xyz, axcodes, 0.0)
    turned = turned_like(GRID, affine)
    np.testing.assert_allclose(turned.affine_ijk, affine, atol=1e-9)
    masks = {name: turned.axis_map.from_zyx(GRID.axis_map.to_zyx(m)) for name, m in TWO.items()}
    path = WRITERS[form](tmp_path / "mask", masks, affine)
    volume, values = read(path)
    np.testing.assert_array_equal(volume.grid.axis_map.to_zyx(values), stored)
    assert volume.grid.shape_zyx == GRID.shape_zyx


def test_frames_may_cover_a_part_of_a_slice(tmp_path):
    low = np.array([1, 1, 1])
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    cropped = {name: mask[1:, 1:, 1:] for name, mask in TWO.items()}
    path = write_dicom_segmentation(tmp_path / "a.dcm", cropped, affine)
    np.testing.assert_array_equal(read(path)[1], expected_of(TWO))


@pytest.mark.filterwarnings("error")
@settings(max_examples=150, deadline=None)
@given(data=st.data(), form=st.sampled_from(["dicom", "labelmap", "nrrd"]))
def test_changed_bytes_are_refused_or_read(tmp_path_factory, data, form):
    path = WRITERS[form](tmp_path_factory.mktemp("seg") / "mask", TWO)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        _, values = read(path)
    except SpinezarrError:
        return
    assert values.shape == SHAPE


def test_frames_without_a_voxel_may_be_there_or_not(tmp_path):
    sparse = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE)
    full = write_dicom_segmentation(tmp_path / "b.dcm", TWO, AFFINE, empty_frames=True)
    frames = [pydicom.dcmread(path).NumberOfFrames for path in (sparse, full)]
    assert frames == [4, 12]
    np.testing.assert_array_equal(read(sparse)[1], read(full)[1])


def stored_by_highdicom(path):
    """Return the label map that highdicom reads, with axes as stored, and its affine."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    values = np.asarray(volume.array)
    grid = Grid(values.shape, np.diag([-1, -1, 1, 1]) @ volume.affine)
    return grid.axis_map.to_zyx(values), grid.affine_xyz


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_highdicom_reads_the_same_masks(tmp_path, kind):
    ends = boxes(L1_vertebra=((1, 4), (1, 3), (0, 3)), L2_vertebra=((2, 6), (2, 5), (4, 6)))
    path = write_dicom_segmentation(tmp_path / "a.dcm", ends, AFFINE, kind)
    volume, values = read(path, labels=(("L1 vertebra", 1), ("L2 vertebra", 2)))
    expected, affine = stored_by_highdicom(path)
    np.testing.assert_array_equal(volume.grid.axis_map.to_zyx(values), expected)
    np.testing.assert_allclose(volume.grid.affine_xyz, affine, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", "1.2.840.10008.1.2.1"),
        ("LABELMAP", "1.2.840.10008.1.2.1"),
        ("FRACTIONAL", "1.2.840.10008.1.2.1"),
        ("LABELMAP", "1.2.840.10008.1.2.4.80"),
        ("FRACTIONAL", "1.2.840.10008.1.2.4.80"),
    ],
)
def test_files_of_highdicom_are_read(tmp_path, kind, syntax):
    write_dicom_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), AFFINE, DicomForm())
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for dataset in slices:
        dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = ""
        dataset.StudyDate = dataset.StudyTime = dataset.ReferringPhysicianName = ""
        dataset.StudyID, dataset.PatientName = "1", "Phantom^"
        dataset.FrameOfReferenceUID = "2.25.9"
        dataset.PositionReferenceIndicator = ""
        dataset.SliceThickness = 3.0
    code = highdicom.sr.CodedConcept("51282000", "SCT", "Vertebra")
    algorithm = highdicom.AlgorithmIdentificationSequence("x", code, "1")
    descriptions = [
        highdicom.seg.SegmentDescription(n, name, code, code, "AUTOMATIC", algorithm)
        for n, (name, _) in enumerate(LABELS, 1)
    ]
    stacked = np.stack([TWO[name].transpose(2, 1, 0) for name, _ in LABELS], axis=-1)
    labels = stacked[..., 0] + 2 * stacked[..., 1].astype(np.uint8)
    pixels = stacked.astype(float) if kind == "FRACTIONAL" else labels.astype(np.uint8)
    segmentation = highdicom.seg.Segmentation(
        slices,
        pixels,
        kind,
        descriptions,
        series_instance_uid="2.25.5",
        series_number=5,
        sop_instance_uid="2.25.6",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
    )
    segmentation.save_as(tmp_path / "seg.dcm")
    _, values = read(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(values, expected_of(TWO))


def test_simpleitk_reads_the_same_nrrd(tmp_path):
    for name, fields in (("gzip", {}), ("raw", {"encoding": "raw"})):
        path = write_seg_nrrd(tmp_path / f"{name}.nrrd", TWO, AFFINE, crop=True, **fields)
        model = sitk.ReadImage(str(path))
        volume = open_volume(FS, str(path))
        (values,) = volume.slabs([volume.grid.shape_ijk[2]])
        np.testing.assert_array_equal(values, sitk.GetArrayFromImage(model).T)
        origin = np.diag([-1, -1, 1]) @ model.GetOrigin()
        np.testing.assert_allclose(volume.grid.affine_ijk[:3, 3], origin, atol=1e-9)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u4", "<f4", ">f8", "|i1"])
def test_simpleitk_and_we_read_nrrd_of_any_type(tmp_path, dtype):
    values = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 100).astype(dtype)
    image = sitk.GetImageFromArray(values.astype(values.dtype.newbyteorder("=")).T)
    image.SetSpacing((0.5, 0.75, 2))
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image, str(path), useCompression=True)
    if dtype.startswith(">"):
        head, _, packed = path.read_bytes().partition(b"\n\n")
        swapped = np.frombuffer(gzip.decompress(packed), dtype.replace(">", "<")).astype(dtype)
        head = head.replace(b"endian: little", b"endian: big")
        path.write_bytes(head + b"\n\n" + gzip.compress(swapped.tobytes()))
    volume = open_volume(FS, str(path))
    (read_values,) = volume.slabs([SHAPE[2]])
    np.testing.assert_array_equal(read_values, values)
    assert volume.dtype == values.dtype.newbyteorder("=")


def test_segments_that_the_recipe_does_not_name_are_background(tmp_path):
    path = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE)
    volume, values = read(path, labels=LABELS[:1])
    assert set(np.unique(values)) == {0, 20}
    assert volume.notes == ("1 segment that the recipe does not name was left out",)


def test_a_file_without_any_named_segment_is_refused_and_its_anatomy_is_shown(tmp_path):
    masks = {"vertebrae_L1": TWO["L1 vertebra"], "Jane Doe": TWO["L2 vertebra"]}
    for form in ("dicom", "nrrd"):
        path = WRITERS[form](tmp_path / form, masks)
        with pytest.raises(LabelError, match=r"'vertebrae_L1', a text of 8 characters") as caught:
            volume_of(path)
        assert "Jane" not in str(caught.value)


def test_fractions_are_refused(tmp_path):
    path = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE, "FRACTIONAL")
    dataset = pydicom.dcmread(path)
    pixels = np.frombuffer(dataset.PixelData, np.uint8).copy()
    pixels[np.flatnonzero(pixels)[0]] = 100
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    with pytest.raises(LabelError, match="holds the value 100 of 255"):
        read(path)


@pytest.mark.parametrize(
    ("axis", "shift_mm"), [(0, 0.35), (1, 0.4), (2, 1.5), (0, 0.7 * 5), (2, 3.0 * 3)]
)
@pytest.mark.parametrize("form", ["dicom", "cropped nrrd"])
def test_another_grid_is_refused(tmp_path, form, axis, shift_mm):
    moved = AFFINE.copy()
    moved[:3, 3] += moved[:3, axis] / np.linalg.norm(moved[:3, axis]) * shift_mm
    path = WRITERS[form](tmp_path / "mask", TWO, moved)
    with pytest.raises(GridMismatchError, match=r"off the voxels of the image|beyond the image"):
        volume_of(path)


def test_another_spacing_or_size_of_frames_is_refused(tmp_path):
    for number, scale in enumerate(([1.3, 1, 1], [1, 1.3, 1], [1, 1, 1.1])):
        affine = AFFINE @ np.diag([*scale, 1])
        path = write_dicom_segmentation(tmp_path / f"{number}.dcm", TWO, affine)
        with pytest.raises(GridMismatchError):
            volume_of(path)
    small = Grid((6, 5, 6), AFFINE)
    with pytest.raises(GridMismatchError, match="beyond the image"):
        volume_of(write_dicom_segmentation(tmp_path / "x.dcm", TWO, AFFINE), small)


def changed(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


def set_all(dataset, **elements):
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)


def repeat_first_frame(dataset):
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence


def turn_a_frame(dataset):
    turned = pydicom.Dataset()
    turned.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [turned]


def give_all_segments_one_number(dataset):
    for item in dataset.SegmentSequence:
        item.SegmentNumber = 1


DEFECTS = {
    "no frame": (lambda d: set_all(d, NumberOfFrames=0), "0 frames"),
    "cut pixels": (lambda d: set_all(d, PixelData=d.PixelData[:-6]), "cut short"),
    "no positions": (lambda d: set_all(d, PerFrameFunctionalGroupsSequence=[]), "positions of 0"),
    "one position twice": (repeat_first_frame, "same slice"),
    "two orientations": (turn_a_frame, "differ in orientation"),
    "one number twice": (give_all_segments_one_number, "its own number"),
    "no segments": (lambda d: set_all(d, SegmentSequence=[]), "0 segments"),
    "unknown kind": (lambda d: set_all(d, SegmentationType="SURFACE"), "SegmentationType"),
    "eight bits": (lambda d: set_all(d, BitsAllocated=8), "8 bits"),
    "not a number": (lambda d: set_all(d, NumberOfFrames="x"), "not a number"),
    "a CT": (lambda d: set_all(d, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "no Segmentation"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_dicom_segmentation_is_refused(tmp_path, defect):
    change, words = DEFECTS[defect]
    path = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE)
    if defect == "a CT":
        dataset = pydicom.dcmread(path)
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        change(dataset)
        dataset.save_as(path)
    elif defect == "not a number":
        data = path.read_bytes()
        assert data.count(b"IS\x02\x004 ") == 1
        path.write_bytes(data.replace(b"IS\x02\x004 ", b"IS\x02\x00x "))
    else:
        changed(path, change)
    with pytest.raises(FormatError, match=words):
        read(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE)
    volume = volume_of(path)
    write_dicom_segmentation(path, {**TWO, "L3 vertebra": TWO["L1 vertebra"]}, AFFINE)
    with pytest.raises(FormatError, match="has changed"):
        list(volume.slabs([6]))


NRRD_DEFECTS = {
    "another file": ({"data_file": "/etc/passwd"}, "names another file"),
    "skipped bytes": ({"byte_skip": 100}, "byte skip is 100"),
    "skipped lines": ({"line_skip": -1}, "line skip is -1"),
    "ascii": ({"encoding": "ascii"}, "encoding is 'ascii'"),
    "no space": ({"space": None}, "space is not stated"),
    "another space": ({"space": "scanner-xyz"}, "space is a text"),
    "no origin": ({"space_origin": None}, "space origin is not stated"),
    "flat": ({"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "in one plane"),
    "two axes": ({"dimension": 2, "sizes": "7 30", "kinds": "domain domain"}, "2 axes"),
    "no size": ({"sizes": "7 5 0"}, "expected a size of 1"),
    "large": ({"sizes": "7 5 600000"}, "raise --max-axis-voxels"),
    "color": ({"kinds": "RGB-color domain domain"}, "'rgb-color'|a text"),
    "block": ({"type": "block"}, "type is 'block'"),
    "no endian": ({"type": "short", "endian": None}, "endian"),
    "inches": ({"space_units": '"in" "in" "in"'}, "not mm"),
    "broken sizes": ({"sizes": "a b c"}, "does not parse"),
    "not finite": ({"space_origin": "(nan,0,0)"}, "not finite"),
    "short vectors": ({"space_directions": "(1,0) (0,1) (1,1)"}, "vectors of 3 numbers|parse"),
    "a label value of zero": ({"Segment7_LabelValue": 0}, "no usable layer"),
    "a layer too many": ({"Segment7_Layer": 1}, "no usable layer"),
}


@pytest.mark.parametrize("defect", NRRD_DEFECTS)
def test_an_unusable_nrrd_is_refused(tmp_path, defect):
    fields, words = NRRD_DEFECTS[defect]
    path = write_seg_nrrd(tmp_path / "a.nrrd", TWO, AFFINE)
    lines, _, data = path.read_bytes().partition(b"\n\n")
    head = lines.decode().split("\n")
    for field, value in fields.items():
        name = field if field.startswith("Segment") else field.replace("_", " ")
        mark = ":=" if name.startswith("Segment") else ": "
        head = [line for line in head if not line.startswith(f"{name}{mark}")]
        head += [] if value is None else [f"{name}{mark}{value}"]
    path.write_bytes("\n".join(head).encode() + b"\n\n" + data)
    with pytest.raises(FormatError, match=words):
        volume_of(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_a_nrrd_that_is_cut_or_goes_on_is_refused(tmp_path, encoding):
    path = write_seg_nrrd(tmp_path / "a.nrrd", TWO, AFFINE, encoding=encoding)
    data = path.read_bytes()
    for content in (data[:-3], data + b"123", data[:200], data[: data.index(b"\n\n") + 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            read(path)


def test_a_nrrd_may_not_inflate_without_end(tmp_path):
    path = write_seg_nrrd(tmp_path / "a.nrrd", TWO, AFFINE)
    head, _, _ = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n\n" + gzip.compress(bytes(10_000_000)))
    with pytest.raises(FormatError, match="more voxels than its header says"):
        read(path)


def test_a_detached_header_and_other_formats_are_refused_with_the_next_step(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\ndata file: a.raw\n")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(400)))
    with pytest.raises(FormatError, match="no blank line"):
        volume_of(tmp_path / "a.nrrd")
    with pytest.raises(FormatError, match="no named segments"):
        volume_of(tmp_path / "b.nii.gz")
    unnamed = write_seg_nrrd(tmp_path / "c.nrrd", TWO, AFFINE)
    data = re.sub(rb"Segment\d_.*\n", b"", unnamed.read_bytes())
    unnamed.write_bytes(data)
    with pytest.raises(FormatError, match="names no segments"):
        volume_of(unnamed)


def test_layers_are_refused_as_a_plain_volume(tmp_path):
    masks = boxes(L1_vertebra=((0, 4), (0, 4), (0, 4)), L2_vertebra=((2, 6), (2, 5), (2, 6)))
    path = write_seg_nrrd(tmp_path / "a.seg.nrrd", masks, AFFINE)
    with pytest.raises(FormatError, match="2 layers of segments"):
        open_volume(FS, str(path))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = write_dicom_segmentation(tmp_path / "a.dcm", TWO, AFFINE)
    with pytest.raises(FormatError, match="more than 100 bytes"):
        open_segmentation(FS, str(path), GRID, Limits(dicom_multiframe_bytes=100))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
@pytest.mark.parametrize(("image", "mask"), [("ct/", "liver.dcm"), ("image/", "label.seg")])
def test_real_segmentations_of_dcmqi(image, mask):
    grid = open_volume(FS, f"{REAL}/{image}").grid
    _, values = read(REAL / mask, grid, (("Liver", 1),))
    expected, affine = stored_by_highdicom(REAL / mask)
    np.testing.assert_array_equal(grid.axis_map.to_zyx(values), expected)
    np.testing.assert_allclose(grid.affine_xyz, affine, atol=1e-4)
    assert values.sum() > 300


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_the_real_dicom_segmentation_equals_the_nrrd_that_it_was_made_from():
    grid = open_volume(FS, f"{REAL}/image/").grid
    _, values = read(REAL / "label.seg", grid, (("Liver", 1),))
    volume = open_volume(FS, str(REAL / "label.nrrd"))
    (nrrd_values,) = volume.slabs([volume.grid.shape_ijk[2]])
    np.testing.assert_array_equal(values > 0, nrrd_values > 0)
    np.testing.assert_allclose(volume.grid.affine_ijk, grid.affine_ijk, atol=1e-4)
