"""Which scans do the small VerSe datasets hold, and which files does each scan have?

:mod:`~spinezarr.testing.verse_subjects` and :mod:`~spinezarr.testing.verse_challenge` write them
in the layouts of the releases.
"""

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np

from spinezarr.testing.centroids import VerseConvention, verse_json
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.phantom import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan, centers_in_file

__all__ = ["VERSE_2019", "VERSE_2020", "VersePlan", "VerseSplit", "VerseYear", "write_verse_files"]

# nibabel has few annotations, so strict mypy would refuse each call.
_nib: Any = nib

VerseYear = Literal[2019, 2020]
"""Year of the challenge that published a scan."""
VerseSplit = Literal["training", "validation", "test"]
"""Name of a split."""
VersePlane = Literal["ax", "sag", "cor", "iso"]
"""Plane of the finest voxels."""

_PICTURE: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A PNG of one gray pixel."""
_SIDE_MM: Final = 200
"""Length of each phantom along each axis."""

_PIR: Final = NiftiForm(
    "PIR", "float64", slope=1.0, oblique_deg=5, sform_code=2, qform_code=0, unit="unknown"
)
"""Form of a mask, which is that of ``sub-verse004_seg-vert_msk.nii.gz``."""
_LAS: Final = NiftiForm("LAS", "uint8")
_PSR: Final = NiftiForm("PSR", "int32")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersePlan:
    """One scan to write."""

    scan: str
    """``verseNNN`` or ``glNNN``; NNN of a split scan is the number behind ``split-verse``."""
    subject: str
    """Name of the patient, which is the scan's name unless the patient has several scans."""
    year: VerseYear
    """Challenge that published the scan."""
    split: VerseSplit
    """Split that holds the scan."""
    spec: PhantomSpec
    """Phantom to draw."""
    plane: VersePlane | None = None
    """Plane of the finest voxels, if a file name states it; no file name of 2019 does."""
    plane_in_subject_name: bool = True
    """Whether the subject-based name also has the plane, as ``dir-``."""
    form: NiftiForm = _PIR
    """Form of the mask. The image has the same form, but the type int16."""
    challenge_mask_orientation: str | None = None
    """Orientation of the mask in the challenge of 2019; None if it is that of the image."""
    mask: bool = True
    """Whether there is a mask; without one there are no centroids either."""
    mask_shift_mm: float = 0.0
    """Shift of the mask's affine from the image's, along x toward the right."""
    points: Literal["subreg", "vb"] = "subreg"
    """Word in the subject-based name of the centroid file."""
    points_nan: tuple[str, ...] = ()
    """Levels whose position in the centroid file is NaN."""
    points_missing: tuple[str, ...] = ()
    """Levels of the mask that the centroid file leaves out."""


def _spec(seed: int, levels: tuple[str, ...], shape_zyx: tuple[int, int, int]) -> PhantomSpec:
    """Make a phantom that is cut at both ends, where VerSe annotates nothing."""
    z, y, x = (round(_SIDE_MM / n, 4) for n in shape_zyx)
    return PhantomSpec(seed, shape_zyx, (z, y, x), levels, label_cut_ends=False)


def _of_2019(
    number: int, split: VerseSplit, levels: tuple[str, ...], subject: int | None = None
) -> VersePlan:
    return VersePlan(
        scan=f"verse{number:03d}",
        subject=f"verse{subject or number:03d}",
        year=2019,
        split=split,
        spec=_spec(number, levels, (40, 40, 40)),
    )


def _of_2020(
    scan: str, split: VerseSplit, levels: tuple[str, ...], plane: VersePlane, form: NiftiForm
) -> VersePlan:
    shapes: dict[VersePlane, tuple[int, int, int]] = {
        "ax": (32, 44, 44),
        "cor": (44, 32, 44),
        "sag": (44, 44, 32),
        "iso": (40, 40, 40),
    }
    return VersePlan(
        scan=scan,
        subject=scan,
        year=2020,
        split=split,
        spec=_spec(int(scan[-3:]), levels, shapes[plane]),
        plane=plane,
        form=form,
    )


VERSE_2019: Final = (
    _of_2019(4, "training", (*usual_levels("T8", "L5"), "sacrum")),
    _of_2019(74, "training", (*usual_levels("T10", "L5"), "sacrum")),
    replace(
        _of_2019(201, "training", usual_levels("C7", "T9"), subject=401),
        challenge_mask_orientation="LAS",
    ),
    replace(_of_2019(253, "training", usual_levels("T7", "L3"), subject=401), mask_shift_mm=0.02),
    replace(
        _of_2019(225, "validation", usual_levels("T11", "L5")),
        points="vb",
        points_missing=("L3",),
    ),
    replace(_of_2019(277, "test", usual_levels("C2", "T2"), subject=417), points_nan=("T2",)),
    _of_2019(278, "test", usual_levels("T1", "T10"), subject=417),
)
"""Seven scans, two pairs of which show one patient each."""

VERSE_2020: Final = (
    _of_2020("gl017", "training", usual_levels("T6", "L2"), "ax", _LAS),
    _of_2020(
        "verse506", "training", usual_levels("T11", "L5"), "iso", replace(_LAS, dtype="float32")
    ),
    replace(
        _of_2020("verse631", "training", (*usual_levels("T11", "L5"), "L6", "sacrum"), "sag", _PSR),
        plane_in_subject_name=False,
    ),
    replace(
        _of_2020(
            "verse544",
            "validation",
            (*usual_levels("T8", "T11"), *usual_levels("L1", "L4")),
            "sag",
            replace(_PSR, dtype="int16"),
        ),
        plane_in_subject_name=False,
    ),
    _of_2020(
        "verse545",
        "validation",
        (*usual_levels("T9", "T12"), "T13", *usual_levels("L1", "L3")),
        "ax",
        replace(_PIR, dtype="int32"),
    ),
    replace(_of_2020("gl279", "test", usual_levels("T12", "L5"), "cor", _LAS), mask=False),
)
"""Six scans. One has L6 (label 25), one has no T12 (label 19), one has T13 (label 28), and one has
no mask."""


def write_verse_files(
    plan: VersePlan,
    convention: VerseConvention,
    *,
    image_path: Path,
    label_path: Path,
    points_path: Path,
    picture_path: Path,
) -> WrittenScan:
    """Write the files that every release has: image, mask, centroids and picture."""
    phantom = make_phantom(plan.spec)
    image_form = replace(plan.form, dtype="int16")
    label_form = plan.form
    if convention == "verse-2019-challenge" and plan.challenge_mask_orientation is not None:
        label_form = replace(plan.form, orientation=plan.challenge_mask_orientation)
    write_nifti(image_path, phantom.image, phantom.affine_xyz, image_form)
    centers_mm = centers_in_file(phantom, plan.form.oblique_deg)
    if plan.mask:
        shifted = phantom.affine_xyz.copy()
        shifted[0, 3] += plan.mask_shift_mm
        write_nifti(label_path, phantom.label, shifted, label_form)
        centers_mm = {k: v for k, v in centers_mm.items() if k not in plan.points_missing}
        image = _nib.load(image_path)
        points = centers_mm | dict.fromkeys(plan.points_nan, (np.nan, np.nan, np.nan))
        points_path.write_text(
            verse_json(points, image.shape, image.affine, convention), encoding="ascii"
        )
        picture_path.write_bytes(_PICTURE)
    return WrittenScan(
        scan_id=plan.scan,
        patient=plan.subject,
        source=f"verse{plan.year}",
        split=plan.split,
        year=plan.year,
        image_path=image_path,
        label_path=label_path if plan.mask else None,
        points_path=points_path if plan.mask else None,
        spec=plan.spec,
        image_form=image_form,
        label_form=label_form if plan.mask else None,
        centers_mm=centers_mm,
    )
