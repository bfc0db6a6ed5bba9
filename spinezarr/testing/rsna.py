"""Writes small copies of the RSNA 2022 cervical spine challenge: DICOM, and some NIfTI masks.

References
----------
.. [1] https://www.kaggle.com/competitions/rsna-2022-cervical-spine-fracture-detection/data
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spinezarr.testing.dicom import DicomForm, write_dicom_series
from spinezarr.testing.dicom_identity import set_dicom_elements
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan

__all__ = ["RSNA_SCANS", "RsnaPlan", "write_rsna"]

_CERVICAL: Final = usual_levels("C1", "C7")
_FORM: Final = DicomForm()
_SLICES: Final = "LPS"
"""Columns, rows and slices of the series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RsnaPlan:
    """One study to write."""

    study: str
    """StudyInstanceUID, the name of its folder."""
    spec: PhantomSpec
    """Phantom to draw."""
    form: DicomForm = _FORM
    """Form of the slices; ``naming="reversed"`` numbers the files from the other end."""
    mask: bool = True
    """Whether it is one of the few studies with a mask."""
    fractured: tuple[str, ...] = ()
    """Cervical vertebrae that ``train.csv`` marks."""


def _spec(seed: int, levels: tuple[str, ...]) -> PhantomSpec:
    return PhantomSpec(seed, (32, 36, 40), (6.0, 5.0, 4.5), levels)


RSNA_SCANS: Final = (
    RsnaPlan(
        study="1.2.826.0.1.3680043.12152",
        spec=_spec(12152, usual_levels("C1", "T3")),
        form=DicomForm(naming="reversed"),
        fractured=("C2", "C5"),
    ),
    RsnaPlan(study="1.2.826.0.1.3680043.21561", spec=_spec(21561, usual_levels("C2", "T4"))),
    RsnaPlan(
        study="1.2.826.0.1.3680043.9447", spec=_spec(9447, usual_levels("C1", "T1")), mask=False
    ),
)
"""Three studies. One is numbered from the other end and shows fractures, and one has no mask."""


def write_rsna(root: Path, scans: Sequence[RsnaPlan] = RSNA_SCANS) -> tuple[WrittenScan, ...]:
    """Write the training part of the challenge [1]_.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.

    Returns
    -------
    tuple of WrittenScan
        One record per study, in the order of ``scans``; ``image_path`` is the folder of its
        slices.
    """
    written = tuple(_write_study(root, plan) for plan in scans)
    _write_tables(root, scans)
    return written


def _write_study(root: Path, plan: RsnaPlan) -> WrittenScan:
    phantom = make_phantom(plan.spec)
    folder = root / "train_images" / plan.study
    slices = write_dicom_series(
        folder, *oriented(phantom.image, phantom.affine_xyz, _SLICES, 0.0), plan.form
    )
    set_dicom_elements(slices, StudyInstanceUID=plan.study, PatientID=plan.study)
    label_path = root / "segmentations" / f"{plan.study}.nii"
    label_form = NiftiForm("LAS", "uint8")
    if plan.mask:
        write_nifti(label_path, phantom.label, phantom.affine_xyz, label_form)
    return WrittenScan(
        scan_id=plan.study,
        patient=plan.study,
        source="rsna2022",
        split="train",
        image_path=folder,
        label_path=label_path if plan.mask else None,
        spec=plan.spec,
        image_form=plan.form,
        label_form=label_form if plan.mask else None,
        centers_mm=phantom.centers_mm,
    )


def _write_tables(root: Path, scans: Sequence[RsnaPlan]) -> None:
    """Write one row per study, and one box per fracture."""
    lines = [",".join(("StudyInstanceUID", "patient_overall", *_CERVICAL))]
    boxes = ["StudyInstanceUID,x,y,width,height,slice_number"]
    for plan in scans:
        marks = [str(int(level in plan.fractured)) for level in _CERVICAL]
        lines.append(",".join((plan.study, str(int(bool(plan.fractured))), *marks)))
        for number, _ in enumerate(plan.fractured, start=1):
            boxes.append(f"{plan.study},12.0,14.0,8.0,6.0,{number}")
    for name, rows in (("train.csv", lines), ("train_bounding_boxes.csv", boxes)):
        (root / name).write_text("".join(f"{row}\n" for row in rows), encoding="ascii")
