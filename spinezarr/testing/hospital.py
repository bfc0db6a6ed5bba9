"""Writes small copies of a hospital archive's export: examinations of several series."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.testing.dicom import DicomForm, write_dicom_objects, write_dicom_series
from spinezarr.testing.dicom_identity import set_dicom_elements
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan

__all__ = ["HOSPITAL_SCANS", "HospitalPlan", "write_hospital"]

_SLICES: Final = "LPS"
"""Columns, rows and slices of a series."""
_FORM: Final = DicomForm()
_MASK_FORM: Final = NiftiForm(_SLICES, "uint8")
_MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalPlan:
    """One CT series to write."""

    patient: str
    date: str
    """Date of the examination, which is also its folder below the patient's folder."""
    folder: str
    """Folder of the series below the examination's; several series may share it."""
    number: int
    """SeriesNumber."""
    kernel: str
    """ConvolutionKernel."""
    description: str = ""
    """SeriesDescription, a free text that the staff writes."""
    thinned: int = 1
    """Number n; only every n-th slice of the phantom is written, as one n times as thick."""
    spec: PhantomSpec
    """Phantom to draw; all series of one examination show the same phantom."""
    form: DicomForm = _FORM
    """How the slices are stored."""
    mask: bool = False
    """Whether there is a mask: ``masks/<patient>_<date>_<number>.nii.gz``."""


def _spec(seed: int) -> PhantomSpec:
    return PhantomSpec(seed, (24, 28, 30), (5.0, 5.5, 5.0), usual_levels("T12", "L4"))


HOSPITAL_SCANS: Final = (
    HospitalPlan(
        patient="P0007",
        date="20240115",
        folder="DICOM",
        number=2,
        kernel="Br38f",
        description="Abdomen 5.0",
        thinned=2,
        spec=_spec(7),
        form=DicomForm(naming="uid", localizer=True),
    ),
    HospitalPlan(
        patient="P0007",
        date="20240115",
        folder="DICOM",
        number=3,
        kernel="Br59f",
        description="Spine bone",
        spec=_spec(7),
        form=DicomForm(naming="uid"),
        mask=True,
    ),
    HospitalPlan(
        patient="P0012",
        date="20231102",
        folder="CT/series 302",
        number=302,
        kernel="BONE",
        description="LSPINE / BONE",
        spec=_spec(12),
        mask=True,
    ),
)
"""Three series of two patients. Two share a folder, and only one of these has a bone kernel."""


def write_hospital(
    root: Path, scans: Sequence[HospitalPlan] = HOSPITAL_SCANS
) -> tuple[WrittenScan, ...]:
    """Write a tree of examinations, ``<patient>/<date>/.../``, and masks of some series.

    The folders also hold other objects that archives send: an MR series, reports, structures and a
    DICOM directory.

    Parameters
    ----------
    root
        Folder of the tree; it is made if it is missing.
    scans
        CT series to write.

    Returns
    -------
    tuple of WrittenScan
        One record per series, in the order of ``scans``; ``image_path`` is its folder.
    """
    written = tuple(_write_series(root, plan) for plan in scans)
    for plan in {plan.patient: plan for plan in scans}.values():
        examination = root / plan.patient / plan.date
        volume = np.zeros((16, 16, 3), np.int16)
        slices = write_dicom_series(examination / "MR", volume, np.diag([1.0, 1, 3, 1]), _FORM)
        set_dicom_elements(
            slices,
            SOPClassUID=_MR_IMAGE,
            Modality="MR",
            SeriesNumber=900,
            StudyInstanceUID=_uid(plan),
        )
        write_dicom_objects(examination / "reports", "SR")
        write_dicom_objects(examination / "reports", "RTSTRUCT")
    write_dicom_objects(root, "DIRECTORY")
    return written


def _write_series(root: Path, plan: HospitalPlan) -> WrittenScan:
    phantom = _thinned(make_phantom(plan.spec), plan.thinned)
    folder = root / plan.patient / plan.date / plan.folder
    existing = set(folder.glob("*"))
    slices = write_dicom_series(
        folder, *oriented(phantom.image, phantom.affine_xyz, _SLICES, 0.0), plan.form
    )
    set_dicom_elements(
        set(folder.glob("*")) - existing,
        PatientID=plan.patient,
        StudyInstanceUID=_uid(plan),
        SeriesInstanceUID=f"{_uid(plan)}.{plan.number}",
        SeriesNumber=plan.number,
        SeriesDescription=plan.description,
        ConvolutionKernel=plan.kernel,
        SliceThickness=str(plan.spec.spacing_zyx_mm[0] * plan.thinned),
        ImagesInAcquisition=len(slices),
    )
    label_path = root / "masks" / f"{plan.patient}_{plan.date}_{plan.number}.nii.gz"
    if plan.mask:
        write_nifti(label_path, phantom.label, phantom.affine_xyz, _MASK_FORM)
    return WrittenScan(
        scan_id=f"{plan.patient}_{plan.date}_{plan.number}",
        patient=plan.patient,
        source="hospital",
        split=None,
        image_path=folder,
        label_path=label_path if plan.mask else None,
        spec=plan.spec,
        image_form=plan.form,
        label_form=_MASK_FORM if plan.mask else None,
        centers_mm=phantom.centers_mm,
    )


def _uid(plan: HospitalPlan) -> str:
    """Make a StudyInstanceUID from the digits of a plan."""
    return f"2.25.1{plan.date}{plan.spec.seed}"


def _thinned(phantom: Phantom, factor: int) -> Phantom:
    """Keep every ``factor``-th slice of a phantom."""
    affine: npt.NDArray[Any] = phantom.affine_xyz.copy()
    affine[:3, 2] *= factor
    return replace(
        phantom, image=phantom.image[::factor], label=phantom.label[::factor], affine_xyz=affine
    )
