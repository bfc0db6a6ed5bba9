"""Real DICOM files are read as SimpleITK and pydicom read them, if they lie next to a checkout."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from fsspec.implementations.local import LocalFileSystem

import spinezarr
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe

DICOM = Path(__file__).parents[3] / "shared/data/real/dicom"
LOSSY = (
    "lossy compression (JPEG Extended (Process 2 and 4)): values may differ from those of the "
    "scanner"
)
APART = (
    "the slices are 45 mm apart, but SpacingBetweenSlices is 5 mm: slices between them may be "
    "missing"
)
LATE = "InstanceNumber runs from {} to {} over 2 slices: some may be missing"

FOLDERS = {
    # files, notes
    "pad-byte": (
        ["pad-byte/0.dcm", "pad-byte/1.dcm"],
        [
            LOSSY,
            "no RescaleSlope: the values are used as stored, and may not be HU",
        ],
    ),
    "empty-uid": (["empty-uid/slice0.dcm", "empty-uid/slice1.dcm"], [LATE.format(267, 268)]),
    "dirfile": (
        ["dirfile/I10", "dirfile/I100", "dirfile/DIRFILE"],
        [
            "ignored files that are not CT slices: 1 x Media Storage Directory Storage",
            LATE.format(1, 10),
            APART,
        ],
    ),
    "image": (
        [f"dcmqi/image/IMG000{number}.dcm" for number in (1, 2, 3)],
        ["the values are in 'US', not HU (RescaleType)"],
    ),
    "ct": ([f"dcmqi/ct/0{number}.dcm" for number in (1, 2, 3)], []),
    "ct with its masks": (
        [
            *(f"dcmqi/ct/0{number}.dcm" for number in (1, 2, 3)),
            "dcmqi/liver.dcm", "dcmqi/label.seg", "dcmqi/liver_spine_seg.nrrd",
        ],
        ["ignored files that are not CT slices: 2 x Segmentation Storage"],
    ),
}  # fmt: skip


def copied(folder, files):
    folder.mkdir()
    for file in files:
        shutil.copy(DICOM / file, folder)
    return folder


def read(folder):
    volume = DicomSeriesVolume.open(LocalFileSystem(), f"{folder}/")
    (values,) = volume.slabs([volume.grid.shape_ijk[2]])
    return volume, values


def slices_of(files):
    """Return the CT slices among files, by position, as pydicom reads their headers."""
    found = [(pydicom.dcmread(DICOM / file, force=True), DICOM / file) for file in files]
    ct = [(d, path) for d, path in found if d.get("Modality") == "CT" and "Rows" in d]
    return sorted(ct, key=lambda pair: float(pair[0].ImagePositionPatient[2]))


if DICOM.is_dir():

    @pytest.mark.parametrize("name", FOLDERS)
    def test_a_real_folder_is_read_as_simpleitk_reads_its_slices(tmp_path, name):
        files, notes = FOLDERS[name]
        volume, values = read(copied(tmp_path / "series", files))
        assert [*volume.notes] == notes
        slices = slices_of(files)
        # SimpleITK applies the rescaling, and trusts the order that it is given.
        image = SimpleITK.ReadImage([str(path) for _, path in slices])
        expected = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        np.testing.assert_array_equal(values, expected)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        lps_to_ras = np.diag([-1, -1, 1, 1])
        np.testing.assert_allclose(volume.grid.affine_ijk, lps_to_ras @ affine, atol=1e-4)

    @pytest.mark.parametrize("name", [name for name in FOLDERS if name != "pad-byte"])
    def test_a_real_folder_is_read_as_pydicom_reads_its_slices(tmp_path, name):
        files, _ = FOLDERS[name]
        _, values = read(copied(tmp_path / "series", files))
        for k, (dataset, _) in enumerate(slices_of(files)):
            stored = dataset.pixel_array.astype(int).T
            hu = stored * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
            np.testing.assert_array_equal(values[..., k], hu)

    def test_lossy_jpeg_of_12_bits_is_decoded_without_terminal_output(tmp_path, capfd):
        """pydicom needs more packages to decode it; the expected values are those of its tests."""
        _, values = read(copied(tmp_path / "series", FOLDERS["pad-byte"][0]))
        assert (values[140, 420, 0], values[120, 230, 0]) == (244, 95)
        assert capfd.readouterr() == ("", "")

    def test_the_real_multi_frame_file_equals_the_three_single_slices(tmp_path):
        frames, values = read(copied(tmp_path / "frames", ["dcmqi/mf.dcm"]))
        slices, expected = read(copied(tmp_path / "slices", FOLDERS["image"][0]))
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(frames.grid.affine_ijk, slices.grid.affine_ijk)
        assert frames.notes == slices.notes
        assert frames.dtype == slices.dtype

    def test_the_whole_real_folder_is_ingested(tmp_path):
        recipe = Recipe.from_pairs("{path:.+}/", None, name="dicom")
        found = discover(recipe, str(DICOM))
        assert [scan.scan_id for scan in found.scans] == [
            "dcmqi", "dcmqi_ct", "dcmqi_image", "dirfile", "empty-uid", "pad-byte"
        ]  # fmt: skip
        out = tmp_path / "dicom.zarr"
        report = ingest(recipe, found, str(out))
        assert report.failed == ()
        store = spinezarr.open(out)
        np.testing.assert_array_equal(
            store.scan("dcmqi").image.to_numpy(), store.scan("dcmqi_image").image.to_numpy()
        )

    def test_a_real_folder_of_masks_is_skipped(tmp_path):
        (tmp_path / "raw").mkdir()
        copied(tmp_path / "raw" / "seg", ["dcmqi/liver.dcm", "dcmqi/label.seg"])
        copied(tmp_path / "raw" / "ct", FOLDERS["ct"][0])
        found = discover(Recipe.from_pairs("{scan}/", None, name="x"), str(tmp_path / "raw"))
        assert [scan.scan_id for scan in found.scans] == ["ct"]
        assert {(note.path, note.reason) for note in found.ignored} == {
            (f"seg/{name}", "ignored, not CT: Segmentation Storage")
            for name in ("liver.dcm", "label.seg")
        }
