"""Writes small copies of xVertSeg.v1: lumbar CTs as MetaImage, with masks of L1 to L5.

References
----------
.. [1] http://lit.fe.uni-lj.si/xVertSeg/database.php
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from spinezarr.testing.metaimage import MetaImageForm, write_metaimage
from spinezarr.testing.phantom import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan

__all__ = ["XVERTSEG_SCANS", "XVertSegPlan", "write_xvertseg"]

_VALUE_PER_LABEL: Final = 10
"""Factor from a label to its value: L1, label 20, has the value 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XVertSegPlan:
    """One case to write."""

    number: int
    """Number of the case."""
    annotated: bool
    """Whether the case has a mask and is in ``Data1``; the others are in ``Data2``."""
    spec: PhantomSpec
    """Phantom to draw; its mask may hold L1 to L5 only."""


def _plan(number: int, *, annotated: bool) -> XVertSegPlan:
    levels = ("T12", *usual_levels("L1", "L5"), "sacrum")
    spec = PhantomSpec(number, (40, 40, 40), (6.0, 5.0, 5.0), levels, unlabeled=("T12", "sacrum"))
    return XVertSegPlan(number=number, annotated=annotated, spec=spec)


XVERTSEG_SCANS: Final = (
    _plan(1, annotated=True),
    _plan(2, annotated=True),
    _plan(16, annotated=False),
)
"""Two cases with a mask and one without."""


def write_xvertseg(
    root: Path, scans: Sequence[XVertSegPlan] = XVERTSEG_SCANS
) -> tuple[WrittenScan, ...]:
    """Write the dataset [1]_.

    ``scores.csv`` is written, too, but this project does not know its true columns.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.

    Returns
    -------
    tuple of WrittenScan
        One record per case, in the order of ``scans``.
    """
    written = tuple(_write_case(root, plan) for plan in scans)
    scores = root / "Data1" / "scores" / "scores.csv"
    scores.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{plan.number:03d},0,0,0,0,0\n" for plan in scans if plan.annotated]
    scores.write_text("case,L1,L2,L3,L4,L5\n" + "".join(rows), encoding="ascii")
    return written


def _write_case(root: Path, plan: XVertSegPlan) -> WrittenScan:
    phantom = make_phantom(plan.spec)
    folder = root / ("Data1" if plan.annotated else "Data2")
    image_path = folder / "images" / f"image{plan.number:03d}.mhd"
    label_path = folder / "masks" / f"mask{plan.number:03d}.mhd" if plan.annotated else None
    image_form, label_form = MetaImageForm(), MetaImageForm(dtype="uint8")
    write_metaimage(image_path, phantom.image, phantom.affine_xyz, image_form)
    if label_path is not None:
        values = phantom.label * np.uint8(_VALUE_PER_LABEL)
        write_metaimage(label_path, values, phantom.affine_xyz, label_form)
    return WrittenScan(
        scan_id=image_path.stem,
        patient=image_path.stem,
        source="xvertseg",
        split=folder.name,
        image_path=image_path,
        label_path=label_path,
        spec=plan.spec,
        image_form=image_form,
        label_form=label_form if plan.annotated else None,
        centers_mm=phantom.centers_mm,
    )
