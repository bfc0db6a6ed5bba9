import numpy as np
import pydicom
import pytest
import SimpleITK

from spinezarr.errors import UsageError
from spinezarr.testing import make_phantom, write_dicom_segmentation, write_spine_mets
from spinezarr.vertebrae import NAME_OF_VALUE


def test_each_patient_has_a_study_with_a_ct_and_a_segmentation_beside_it(tmp_path):
    for scan in write_spine_mets(tmp_path):
        (study,) = (tmp_path / scan.patient).iterdir()
        assert scan.image_path.parent == study == scan.label_path.parent.parent
        assert [path.name for path in scan.label_path.parent.iterdir()] == ["1-1.dcm"]
        segmentation = pydicom.dcmread(scan.label_path)
        slices = [pydicom.dcmread(path) for path in scan.image_path.iterdir()]
        assert {s.StudyInstanceUID for s in slices} == {segmentation.StudyInstanceUID}
        labels = make_phantom(scan.spec).label
        assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == [
            f"{NAME_OF_VALUE[value]} vertebra" for value in np.unique(labels[labels > 0])
        ]


def test_gdcm_counts_the_voxels_of_the_segments(tmp_path):
    # gdcm reads frames correctly that start at a byte, as those of the first patient do.
    scan = write_spine_mets(tmp_path)[0]
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(scan.label_path)))
    assert np.count_nonzero(image) == np.count_nonzero(make_phantom(scan.spec).label)


def test_a_segmentation_without_voxels_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no segment has a voxel"):
        write_dicom_segmentation(tmp_path / "a.dcm", {"L1": np.zeros((2, 2, 2), bool)}, np.eye(4))
