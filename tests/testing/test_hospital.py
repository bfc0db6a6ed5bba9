import nibabel as nib
import numpy as np
import pydicom

from spinezarr.testing import HOSPITAL_SCANS, make_phantom, write_hospital


def headers(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_examinations_hold_the_series_that_archives_send(tmp_path):
    written = write_hospital(tmp_path)
    assert [scan.scan_id for scan in written] == [
        "P0007_20240115_2", "P0007_20240115_3", "P0012_20231102_302"
    ]  # fmt: skip
    for plan, scan in zip(HOSPITAL_SCANS, written, strict=True):
        own = [h for h in headers(scan.image_path) if h.SeriesNumber == plan.number]
        slices = [h for h in own if "LOCALIZER" not in h.ImageType]
        assert len(slices) == 24 // plan.thinned
        assert len(own) - len(slices) == plan.form.localizer
        assert len({h.SeriesInstanceUID for h in own}) == 1
        assert {h.ConvolutionKernel for h in slices} == {plan.kernel}
        assert {h.ImagesInAcquisition for h in slices} == {len(slices)}
        z = sorted(float(h.ImagePositionPatient[2]) for h in slices)
        np.testing.assert_allclose(np.diff(z), float(slices[0].SliceThickness))
        if plan.mask:
            mask = nib.as_closest_canonical(nib.load(scan.label_path))
            found = np.asanyarray(mask.dataobj).transpose(2, 1, 0)
            np.testing.assert_array_equal(found, make_phantom(plan.spec).label)
    modalities = {pydicom.dcmread(path).Modality for path in tmp_path.rglob("*.dcm")}
    assert modalities == {"CT", "MR", "SR", "RTSTRUCT"}
    assert (tmp_path / "DICOMDIR").is_file()


def test_file_names_do_not_distinguish_the_series_of_one_folder(tmp_path):
    folder = write_hospital(tmp_path)[0].image_path
    assert len({h.SeriesNumber for h in headers(folder)}) == 2
    names = {path.name for path in folder.iterdir()} - {"localizer.dcm"}
    assert len(names) == 36
    assert all("." not in name.removeprefix("2.25.") for name in names)
