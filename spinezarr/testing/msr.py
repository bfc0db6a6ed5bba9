"""Writes small copies of the Microsoft/UW spine dataset: CTs with vertebra centers, no masks.

References
----------
.. [1] Glocker et al., "Vertebrae localization in pathological spine CT via dense classification
   from sparse annotations", MICCAI 2013; file names of both releases in
   https://github.com/jfm15/SpineFinder
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from spinezarr.testing.centroids import lml_text
from spinezarr.testing.metaimage import MetaImageForm, write_metaimage
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan, centers_in_file

__all__ = ["MSR_SCANS", "MsrPlan", "write_msr", "write_msr_nifti"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MsrPlan:
    """One scan to write."""

    scan: str
    """Name of the scan, seven digits."""
    patient: str | None
    """``patientNNNN``; None for a test scan, which only the NIfTI release has."""
    package: str
    """Folder of the NIfTI release."""
    fold: Literal[1, 2] | None
    """Half of the cross-validation of the paper; None for a test scan."""
    spec: PhantomSpec
    """Phantom to draw."""
    no_points: tuple[str, ...] = ()
    """Visible levels without a landmark."""
    header: Literal["# 0", "# 2"] = "# 0"
    """First line of the landmark file."""
    orientation: str = "LPS"
    """Orientation of the image in both releases."""
    oblique_deg: float = 0.0
    """Rotation of the patient in degrees; landmarks follow the voxel axes."""


MSR_SCANS: Final = (
    MsrPlan(
        scan="2804506",
        patient="patient0001",
        package="spine-1",
        fold=1,
        spec=PhantomSpec(2804506, (36, 40, 40), (5.6, 5.0, 5.0), usual_levels("T11", "L5")),
    ),
    MsrPlan(
        scan="2805012",
        patient="patient0001",
        package="spine-1",
        fold=1,
        spec=PhantomSpec(
            2805012, (40, 40, 40), (6.0, 5.0, 5.0), (*usual_levels("T12", "L5"), "sacrum")
        ),
        no_points=("L2",),
    ),
    MsrPlan(
        scan="4533808",
        patient="patient0002",
        package="spine-2",
        fold=2,
        spec=PhantomSpec(4533808, (44, 40, 40), (5.0, 4.0, 4.0), usual_levels("C1", "T5")),
        header="# 2",
        orientation="RAI",
    ),
    MsrPlan(
        scan="4511471",
        patient="patient0013",
        package="spine-5",
        fold=2,
        spec=PhantomSpec(4511471, (40, 36, 40), (6.0, 5.0, 5.0), usual_levels("T3", "T12")),
        oblique_deg=6.0,
    ),
    MsrPlan(
        scan="4766434",
        patient=None,
        package="spine-test-data",
        fold=None,
        spec=PhantomSpec(4766434, (40, 40, 36), (5.0, 5.0, 5.0), usual_levels("T9", "L3")),
    ),
)
"""Five scans. Two show one patient, one of these two has S1 and S2, and one is a test scan."""


def write_msr(root: Path, scans: Sequence[MsrPlan] = MSR_SCANS) -> tuple[WrittenScan, ...]:
    """Write the first release, MetaImage and landmarks in folders per patient and scan [1]_.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write. Test scans are left out.

    Returns
    -------
    tuple of WrittenScan
        One record per scan that is written, in the order of ``scans``.
    """
    written = []
    for plan in scans:
        if plan.patient is not None:
            folder = root / plan.patient / plan.scan
            form = MetaImageForm(plan.orientation, oblique_deg=plan.oblique_deg)
            written.append(_write_scan(folder / f"{plan.scan}.mhd", plan, form, f"fold{plan.fold}"))
    for fold in (1, 2):
        names = [plan.scan for plan in scans if plan.fold == fold]
        text = "".join(f"{name}\n" for name in names)
        (root / f"fold{fold}-miccai2013.txt").write_text(text, encoding="ascii")
    return tuple(written)


def write_msr_nifti(root: Path, scans: Sequence[MsrPlan] = MSR_SCANS) -> tuple[WrittenScan, ...]:
    """Write the second release, NIfTI in five packages, with the test scans in one folder [1]_.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.

    Returns
    -------
    tuple of WrittenScan
        One record per scan, in the order of ``scans``.
    """
    written = []
    for plan in scans:
        folder = root / plan.package
        if plan.patient is not None:
            folder = folder / plan.patient / plan.scan
        form = NiftiForm(plan.orientation, oblique_deg=plan.oblique_deg)
        split = "test" if plan.patient is None else None
        written.append(_write_scan(folder / f"{plan.scan}.nii.gz", plan, form, split))
    return tuple(written)


def _write_scan(
    path: Path, plan: MsrPlan, form: MetaImageForm | NiftiForm, split: str | None
) -> WrittenScan:
    """Draw one scan and write its image and its landmarks."""
    phantom = make_phantom(plan.spec)
    if isinstance(form, MetaImageForm):
        write_metaimage(path, phantom.image, phantom.affine_xyz, form)
    else:
        write_nifti(path, phantom.image, phantom.affine_xyz, form)
    centers_mm = {
        name: center
        for name, center in centers_in_file(phantom, form.oblique_deg).items()
        if name != "sacrum" and name not in plan.no_points
    }
    _, affine_ijk = oriented(phantom.image, phantom.affine_xyz, form.orientation, form.oblique_deg)
    points_path = path.with_name(f"{plan.scan}.lml")
    points_path.write_bytes(lml_text(centers_mm, affine_ijk, header=plan.header).encode("ascii"))
    return WrittenScan(
        scan_id=plan.scan,
        patient=plan.patient or plan.scan,
        source="msr",
        split=split,
        image_path=path,
        label_path=None,
        points_path=points_path,
        spec=plan.spec,
        image_form=form,
        label_form=None,
        centers_mm=centers_mm,
    )
