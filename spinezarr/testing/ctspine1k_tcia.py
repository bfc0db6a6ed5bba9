"""Writes the masks of CTSpine1K and the DICOM series of TCIA that its ``Path.csv`` names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from spinezarr.errors import UsageError
from spinezarr.testing.ctspine1k import (
    CTSPINE1K_SCANS,
    ScanPlan,
    ctspine1k_paths,
    resized,
    source_of,
)
from spinezarr.testing.ctspine1k_tables import path_csv_text, series_of
from spinezarr.testing.dicom import DicomForm, write_dicom_series
from spinezarr.testing.dicom_identity import set_dicom_elements
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom
from spinezarr.testing.written import WrittenScan

__all__ = ["CTSPINE1K_TCIA_SCANS", "write_ctspine1k_tcia"]

CTSPINE1K_TCIA_SCANS: Final = tuple(
    plan for plan in CTSPINE1K_SCANS[:4] if series_of(plan.scan_id) is not None
)
"""Three scans: two colonographies, one of a series without description, and a neck."""

_FORM: Final = DicomForm()
_LABEL_FORM: Final = NiftiForm("LPS", "uint8")


def write_ctspine1k_tcia(
    root: Path, scans: Sequence[ScanPlan] = CTSPINE1K_TCIA_SCANS, *, scale: float = 0.2
) -> tuple[WrittenScan, ...]:
    """Write ``Path.csv``, the series that it names, and the masks below ``label``.

    Each patient has a second series, of another phantom, that ``Path.csv`` does not name. Scans are
    stored as DICOM whatever form their plan has.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write; only colon and neck scans came from TCIA.
    scale
        Factor on the number of voxels along each axis, for the same patients.

    Returns
    -------
    tuple of WrittenScan
        One record per scan, in the order of ``scans``; ``image_path`` is the folder of its series.
    """
    written = tuple(_write_scan(root, replace(p, spec=resized(p.spec, scale))) for p in scans)
    text = path_csv_text(plan.scan_id for plan in scans)
    (root / "Path.csv").write_bytes(text.encode("ascii"))
    return written


def _write_scan(root: Path, plan: ScanPlan) -> WrittenScan:
    series_path = series_of(plan.scan_id)
    if series_path is None:
        raise UsageError(
            f"{plan.scan_id}: only colon and neck scans came from TCIA, as DICOM; "
            "write_ctspine1k writes the others"
        )
    folder = root / series_path
    other_folder = folder.with_name("9.000000-Colosupine  1.0  B30f-99999")
    phantom = make_phantom(plan.spec)
    _write_series(folder, plan.scan_id, phantom)
    _write_series(other_folder, plan.scan_id, make_phantom(_other_phantom_spec(plan.spec)))
    _, label_path = ctspine1k_paths(root, plan.scan_id, "official")
    write_nifti(label_path, phantom.label, phantom.affine_xyz, _LABEL_FORM)
    return WrittenScan(
        scan_id=plan.scan_id,
        patient=plan.scan_id,
        source=source_of(plan.scan_id),
        split=plan.split,
        image_path=folder,
        label_path=label_path,
        spec=plan.spec,
        image_form=_FORM,
        label_form=_LABEL_FORM,
        centers_mm=phantom.centers_mm,
    )


def _other_phantom_spec(spec: PhantomSpec) -> PhantomSpec:
    return replace(spec, seed=spec.seed + 1000)


def _write_series(folder: Path, patient: str, phantom: Phantom) -> None:
    """Write slices whose elements agree with the name of their folder."""
    number, *description, _ = folder.name.split("-")
    array, affine = oriented(phantom.image, phantom.affine_xyz, "LPS", 0.0)
    form = _FORM
    if phantom.image.min() < form.intercept:
        form = replace(form, intercept=float(phantom.image.min()))
    slices = write_dicom_series(folder, array, affine, form)
    set_dicom_elements(
        slices,
        PatientID=patient,
        SeriesNumber=int(float(number)),
        SeriesDescription="-".join(description),
    )
