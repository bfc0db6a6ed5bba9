"""Sets elements, such as the patient's id, in the files of a written DICOM series."""

from collections.abc import Iterable
from pathlib import Path

__all__ = ["set_dicom_elements"]


def set_dicom_elements(paths: Iterable[Path], **elements: str | int) -> None:
    """Set elements, named by their DICOM keywords, in each file of a series.

    Parameters
    ----------
    paths
        Files to change.
    elements
        Keyword and value, e.g. ``PatientID="CTC-1018399231"``. A class is set in the file meta
        information, too.
    """
    from pydicom import dcmread  # noqa: PLC0415  only writing DICOM needs pydicom

    for path in paths:
        dataset = dcmread(path)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        if "SOPClassUID" in elements:
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.save_as(path)
