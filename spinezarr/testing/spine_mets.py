"""Writes small copies of Spine-Mets-CT-SEG: DICOM series with DICOM Segmentations beside them.

References
----------
.. [1] https://github.com/rouge1616/Spine-Mets-CT-SEG (``tcia_dcm2nifti.py``)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spinezarr.testing.dicom import DicomForm, write_dicom_series
from spinezarr.testing.dicom_identity import set_dicom_elements
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.segmentation import Mask, write_dicom_segmentation
from spinezarr.testing.written import WrittenScan
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["SPINE_METS_SCANS", "SpineMetsPlan", "vertebra_masks", "write_spine_mets"]

_SLICES: Final = "LPS"
"""Directions of columns, rows and slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpineMetsPlan:
    """One patient to write."""

    patient: str
    """PatientID, the name of the folder."""
    spec: PhantomSpec
    """Phantom to draw."""
    form: DicomForm = DicomForm()  # noqa: RUF009  frozen
    """Form of the CT slices."""


SPINE_METS_SCANS: Final = (
    SpineMetsPlan(
        patient="10048",
        spec=PhantomSpec(10048, (36, 36, 40), (6.0, 5.0, 4.5), usual_levels("T9", "L2")),
    ),
    SpineMetsPlan(
        patient="12667",
        spec=PhantomSpec(12667, (40, 31, 39), (6.0, 6.0, 5.0), usual_levels("C6", "T4")),
        form=DicomForm(naming="uid"),
    ),
)
"""Two patients. The frames of the second have no whole number of bytes."""


def vertebra_masks(phantom: Phantom, orientation: str) -> dict[str, Mask]:
    """Return the mask of each vertebra with axes (i, j, k), by the name of its segment."""
    label, _ = oriented(phantom.label, phantom.affine_xyz, orientation, 0.0)
    return {
        f"{name} vertebra": label == VALUE_OF_NAME[name]
        for name in phantom.centers_mm
        if (label == VALUE_OF_NAME[name]).any()
    }


def write_spine_mets(
    root: Path, scans: Sequence[SpineMetsPlan] = SPINE_METS_SCANS
) -> tuple[WrittenScan, ...]:
    """Write the dataset [1]_ as TCIA delivers it.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Patients to write.

    Returns
    -------
    tuple of WrittenScan
        One record per patient, in the order of ``scans``; ``image_path`` is the folder of its
        slices.
    """
    return tuple(_write_patient(root, plan) for plan in scans)


def _write_patient(root: Path, plan: SpineMetsPlan) -> WrittenScan:
    phantom = make_phantom(plan.spec)
    study = root / plan.patient / "05-05-2005-NA-THORSPINE-12345"
    study_uid = f"2.25.{plan.patient}"
    image_ijk, affine_ijk = oriented(phantom.image, phantom.affine_xyz, _SLICES, 0.0)
    ct_folder = study / "2.000000-SPINE-60758"
    slices = write_dicom_series(ct_folder, image_ijk, affine_ijk, plan.form)
    set_dicom_elements(slices, PatientID=plan.patient, StudyInstanceUID=study_uid)
    label_path = write_dicom_segmentation(
        study / "300.000000-Segmentation-82135" / "1-1.dcm",
        vertebra_masks(phantom, _SLICES),
        affine_ijk,
        study=study_uid,
    )
    return WrittenScan(
        scan_id=plan.patient,
        patient=plan.patient,
        source="spine-mets-ct-seg",
        split=None,
        image_path=ct_folder,
        label_path=label_path,
        spec=plan.spec,
        image_form=plan.form,
        label_form=None,
        centers_mm=phantom.centers_mm,
    )
