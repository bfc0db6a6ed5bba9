"""Writes small copies of the TotalSegmentator CT dataset.

A subject has a mask file per structure, or one file with all structures.

References
----------
.. [1] https://zenodo.org/records/10047292 and ``map_to_binary.py`` in
   https://github.com/wasserth/TotalSegmentator
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.structures import organ_box, s1_of_sacrum
from spinezarr.testing.written import WrittenScan, with_affine
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = [
    "TOTALSEGMENTATOR_SCANS",
    "TotalSegmentatorPlan",
    "totalsegmentator_values",
    "write_totalsegmentator",
    "write_totalsegmentator_multilabel",
]

TotalSegmentatorVersion = Literal["v1", "v2"]
"""Version of the structures; v2 adds S1 and the rest of the sacrum."""

_META_COLUMNS: Final = (
    "image_id",
    "age",
    "gender",
    "institute",
    "study_type",
    "split",
    "manufacturer",
    "scanner_model",
    "kvp",
    "pathology",
    "pathology_location",
)
_FIRST_VALUE: Final[dict[TotalSegmentatorVersion, int]] = {"v1": 18, "v2": 27}
"""Value of L5; the levels above have the next values."""
_LIVER: Final = (0.5, 0.8, 0.8)
_SHEAR: Final = 2e-4
"""Shear of the axes, about as in the subjects that ITK refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalSegmentatorPlan:
    """One subject to write."""

    scan: str
    """``sNNNN``."""
    split: Literal["train", "val", "test"]
    """Column of ``meta.csv``."""
    spec: PhantomSpec
    """Phantom to draw."""
    dtype: str = "int16"
    """Data type of the image."""
    sheared: bool = False
    """Whether the axes are slightly sheared."""


def _spec(seed: int, levels: tuple[str, ...]) -> PhantomSpec:
    return PhantomSpec(seed, (40, 40, 40), (5.0, 5.0, 5.0), levels, padding_hu=None)


TOTALSEGMENTATOR_SCANS: Final = (
    TotalSegmentatorPlan(
        scan="s0000", split="train", spec=_spec(0, (*usual_levels("T10", "L5"), "sacrum"))
    ),
    TotalSegmentatorPlan(
        scan="s0011", split="val", spec=_spec(11, usual_levels("C3", "T4")), sheared=True
    ),
    TotalSegmentatorPlan(
        scan="s1423", split="test", spec=_spec(1423, usual_levels("T6", "L1")), dtype="int32"
    ),
)
"""Three subjects: one has the sacrum, one has axes that ITK refuses, one is stored as int32."""


def totalsegmentator_values(version: TotalSegmentatorVersion) -> dict[str, int]:
    """Return the values of a multilabel mask by the names of the binary files, from tail to head.

    Examples
    --------
    >>> totalsegmentator_values("v1")["vertebrae_L5"], totalsegmentator_values("v2")["vertebrae_C1"]
    (18, 50)
    """
    levels = usual_levels("C1", "L5")[::-1]
    values = {
        f"vertebrae_{level}": value for value, level in enumerate(levels, _FIRST_VALUE[version])
    }
    return values if version == "v1" else {"sacrum": 25, "vertebrae_S1": 26} | values


def write_totalsegmentator(
    root: Path,
    scans: Sequence[TotalSegmentatorPlan] = TOTALSEGMENTATOR_SCANS,
    *,
    version: TotalSegmentatorVersion = "v2",
) -> tuple[WrittenScan, ...]:
    """Write the dataset [1]_, with a binary mask for every structure.

    The mask of a structure outside the volume is empty. The only organ is the liver.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.
    version
        Version that determines the structures.

    Returns
    -------
    tuple of WrittenScan
        One record per subject, in the order of ``scans``; ``label_path`` is the folder of its
        masks.
    """
    written = []
    for plan in scans:
        phantom = _draw(plan)
        folder = root / plan.scan / "segmentations"
        form = NiftiForm("RAS", "uint8")
        for name, mask in _masks(phantom, version).items():
            path = folder / f"{name}.nii.gz"
            write_nifti(path, mask.astype(np.uint8), phantom.affine_xyz, form)
        written.append(_write_image(root, plan, phantom, folder, form))
    _write_meta(root, scans)
    return tuple(written)


def write_totalsegmentator_multilabel(
    root: Path,
    scans: Sequence[TotalSegmentatorPlan] = TOTALSEGMENTATOR_SCANS,
    *,
    version: TotalSegmentatorVersion = "v2",
) -> tuple[WrittenScan, ...]:
    """Write the same subjects with one mask each, whose values are those of the version.

    The name ``segmentations.nii.gz`` is arbitrary, because users of the tool choose it.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.
    version
        Version that determines the values of the structures.

    Returns
    -------
    tuple of WrittenScan
        One record per subject, in the order of ``scans``.
    """
    written = []
    for plan in scans:
        phantom = _draw(plan)
        path = root / plan.scan / "segmentations.nii.gz"
        masks = _masks(phantom, version)
        array_zyx = np.zeros(phantom.label.shape, np.uint8)
        for name, value in totalsegmentator_values(version).items():
            array_zyx[masks[name]] = value
        form = NiftiForm("RAS", "uint8")
        write_nifti(path, array_zyx, phantom.affine_xyz, form)
        written.append(_write_image(root, plan, phantom, path, form))
    _write_meta(root, scans)
    return tuple(written)


def _draw(plan: TotalSegmentatorPlan) -> Phantom:
    phantom = make_phantom(plan.spec)
    if not plan.sheared:
        return phantom
    shear = np.eye(4)
    shear[0, 1] = _SHEAR
    return with_affine(phantom, phantom.affine_xyz @ shear)


def _masks(phantom: Phantom, version: TotalSegmentatorVersion) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the mask (z, y, x) of every structure; the sacrum is without S1."""
    masks = {
        f"vertebrae_{level}": phantom.label == VALUE_OF_NAME[level]
        for level in usual_levels("C1", "L5")
    }
    if version == "v2":
        masks["vertebrae_S1"] = s1_of_sacrum(phantom)
        masks["sacrum"] = (phantom.label == VALUE_OF_NAME["sacrum"]) & ~masks["vertebrae_S1"]
    return masks | {"liver": organ_box(phantom, _LIVER)}


def _write_image(
    root: Path, plan: TotalSegmentatorPlan, phantom: Phantom, label_path: Path, form: NiftiForm
) -> WrittenScan:
    image_path = root / plan.scan / "ct.nii.gz"
    image_form = NiftiForm("RAS", plan.dtype)
    write_nifti(image_path, phantom.image, phantom.affine_xyz, image_form)
    return WrittenScan(
        scan_id=plan.scan,
        patient=plan.scan,
        source="totalsegmentator",
        split=plan.split,
        image_path=image_path,
        label_path=label_path,
        spec=plan.spec,
        image_form=image_form,
        label_form=form,
        centers_mm=phantom.centers_mm,
    )


def _write_meta(root: Path, scans: Sequence[TotalSegmentatorPlan]) -> None:
    """Write ``meta.csv`` with semicolons, in UTF-8 with a byte order mark."""
    lines = [";".join(_META_COLUMNS)]
    for plan in scans:
        values = {"image_id": plan.scan, "split": plan.split}
        lines.append(";".join(values.get(column, "") for column in _META_COLUMNS))
    (root / "meta.csv").write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8-sig"))
