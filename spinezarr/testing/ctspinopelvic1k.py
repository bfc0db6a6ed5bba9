"""Writes small copies of CTSpinoPelvic1K, whose masks show the spine, the pelvis or both.

References
----------
.. [1] https://github.com/Gregory-Schwing-MD-PhD/CTSpinoPelvic1K
.. [2] Its ``scripts/export_hf.py`` before commit 75ccaf9
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.structures import organ_box, s1_of_sacrum
from spinezarr.testing.written import WrittenScan

__all__ = ["CTSPINOPELVIC1K_SCANS", "SpinoPelvicPlan", "write_ctspinopelvic1k"]

Version = Literal[1, 2, 3, 5]

SpinoPelvicConfig = Literal["fused", "spine_only", "pelvic_native"]
"""Content of the mask: both halves, or one of two acquisitions."""

_FORM: Final = NiftiForm("PIR")
_INFIX: Final[dict[SpinoPelvicConfig, str]] = {
    "fused": "",
    "spine_only": "_spine",
    "pelvic_native": "_pelvic",
}
_S1: Final = 29
_BONES: Final = {
    30: (0.12, 0.45, 0.25),  # hips
    31: (0.12, 0.45, 0.75),
    32: (0.08, 0.7, 0.2),  # femora
    33: (0.08, 0.7, 0.8),
    34: (0.9, 0.4, 0.25),  # first and last of 24 ribs
    57: (0.9, 0.4, 0.75),
}
"""Value of each structure, and the position of its box."""
_LATER_STRUCTURES: Final = {
    66: (0.5, 0.3, 0.3),  # left psoas, since version 4
    74: (0.7, 0.4, 0.2),  # left rib of a lumbar vertebra, since version 5
    77: (0.6, 0.2, 0.6),  # cage, declared in version 5
}
"""Value of each structure that later versions add, and the position of its box."""
_RIBS: Final = range(34, 58)
_IGNORE: Final = 255
"""Value of voxels that the annotator of the other half did not label."""
_EARLIER_IGNORE: Final = 10
_EARLIER_VALUES: Final = {
    **{20 + n: 1 + n for n in range(6)},  # L1 to L6
    26: 7,  # sacrum
    _S1: 7,
    30: 8,  # hips
    31: 9,
    **{8 + n: 20 + n for n in range(12)},  # T1 to T12, in version 2
}
"""Value of each level in versions 1 and 2 as they were until June 2026, by its present value [2]_.

Structures that are not named were background.
"""
_THORACIC: Final = range(8, 20)
_FOLDS: Final = 5
_V5: Final = 5
_LAST_EARLIER: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinoPelvicPlan:
    """One record to write."""

    token: int
    """Number of the patient."""
    config: SpinoPelvicConfig
    """Content of the mask."""
    spec: PhantomSpec
    """Phantom to draw; the mask of the record follows ``config``."""
    test: bool = False
    """Whether the patient is a test patient, who is in none of the five folds."""


def _spec(seed: int, *more: str) -> PhantomSpec:
    levels = (*usual_levels("T11", "L5"), *more, "sacrum")
    return PhantomSpec(seed, (40, 40, 40), (6.5, 6.0, 6.0), levels)


CTSPINOPELVIC1K_SCANS: Final = (
    SpinoPelvicPlan(token=1, config="fused", spec=_spec(1)),
    SpinoPelvicPlan(token=4, config="spine_only", spec=_spec(4)),
    SpinoPelvicPlan(token=4, config="pelvic_native", spec=_spec(40)),
    SpinoPelvicPlan(token=149, config="fused", spec=_spec(149, "L6"), test=True),
)
"""Four records of three patients: one with L6, one in two acquisitions."""


def write_ctspinopelvic1k(
    root: Path,
    scans: Sequence[SpinoPelvicPlan] = CTSPINOPELVIC1K_SCANS,
    *,
    version: Version = 3,
) -> tuple[WrittenScan, ...]:
    """Write the dataset [1]_, with its manifests and folds.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.
    version
        Version of the dataset. Version 5 has more structures, and columns on transitional
        vertebrae. Versions 1 and 2 have the values that they had until June 2026 [2]_. In version
        1, vertebrae above L1 are background, and masks of one half have no background.

    Returns
    -------
    tuple of WrittenScan
        One record per pair of files, in the order of ``scans``.
    """
    written = tuple(_write_record(root, plan, version) for plan in scans)
    rows = [_manifest_row(plan, version) for plan in scans]
    (root / "manifest.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    with (root / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    (root / "splits_5fold.json").write_text(json.dumps(_splits(scans)), encoding="utf-8")
    return written


def _spec_of_mask(plan: SpinoPelvicPlan) -> PhantomSpec:
    """Return the phantom with the levels that the mask of a record holds."""
    hidden: dict[SpinoPelvicConfig, tuple[str, ...]] = {
        "fused": (),
        "spine_only": ("sacrum",),
        "pelvic_native": tuple(name for name in plan.spec.levels if name != "sacrum"),
    }
    return replace(plan.spec, unlabeled=hidden[plan.config])


def _names(plan: SpinoPelvicPlan) -> tuple[str, str]:
    stem = f"{plan.token:04d}{_INFIX[plan.config]}"
    return f"ct/{stem}_ct.nii.gz", f"labels/{stem}_label.nii.gz"


def _write_record(root: Path, plan: SpinoPelvicPlan, version: Version) -> WrittenScan:
    image_name, label_name = _names(plan)
    spec = _spec_of_mask(plan)
    phantom = make_phantom(spec)
    label_form = replace(_FORM, dtype="uint8")
    write_nifti(root / image_name, phantom.image, phantom.affine_xyz, _FORM)
    mask = _mask(phantom, make_phantom(plan.spec), plan.config)
    for value, place_zyx in _LATER_STRUCTURES.items() if version == _V5 else ():
        box = np.zeros(mask.shape, np.bool_)
        box[organ_box(phantom, place_zyx)] = True
        mask[box & (mask == 0)] = value
    if version <= _LAST_EARLIER:
        mask = _earlier_mask(mask, plan.config, version)
    write_nifti(root / label_name, mask, phantom.affine_xyz, label_form)
    return WrittenScan(
        scan_id=f"{plan.token:04d}{_INFIX[plan.config]}",
        patient=f"{plan.token:04d}",
        source="ctspinopelvic1k",
        split="test" if plan.test else "trainval",
        image_path=root / image_name,
        label_path=root / label_name,
        spec=spec,
        image_form=_FORM,
        label_form=label_form,
        centers_mm=phantom.centers_mm,
    )


def _mask(
    phantom: Phantom, whole_phantom: Phantom, config: SpinoPelvicConfig
) -> npt.NDArray[np.uint8]:
    """Return the values of a record's mask with axes (z, y, x)."""
    mask = phantom.label.copy()
    mask[s1_of_sacrum(phantom)] = _S1
    for value, place_zyx in _BONES.items():
        box = organ_box(whole_phantom, place_zyx)
        annotated = config == "fused" or (value in _RIBS) == (config == "spine_only")
        mask[box] = value if annotated else _IGNORE
    mask[(whole_phantom.label > 0) & (phantom.label == 0)] = _IGNORE
    return mask


def _earlier_mask(
    mask: npt.NDArray[np.uint8], config: SpinoPelvicConfig, version: Version
) -> npt.NDArray[np.uint8]:
    """Return a mask with the values of an earlier version."""
    table = np.zeros(256, np.uint8)
    for value, earlier in _EARLIER_VALUES.items():
        if version == _LAST_EARLIER or value not in _THORACIC:
            table[value] = earlier
    values = table[mask]
    if config != "fused" and version != _LAST_EARLIER:
        values[values == 0] = _EARLIER_IGNORE
    return values


def _manifest_row(plan: SpinoPelvicPlan, version: Version) -> dict[str, Any]:
    image_name, label_name = _names(plan)
    has_l6 = "L6" in plan.spec.levels
    later = {
        "lstv_label": "lumbarization" if has_l6 else "normal",
        "castellvi_type": "IIIa" if has_l6 else "",
    }
    return {
        "token": str(plan.token),
        "config": plan.config,
        "match_type": "fused" if plan.config == "fused" else "separate",
        "position": "unknown",
        "ct_file": image_name,
        "label_file": label_name,
        "lstv_class": int(has_l6),
        "has_l6": has_l6,
        "n_lumbar_labels": sum(name.startswith("L") for name in _spec_of_mask(plan).labeled),
        **(later if version == _V5 else {}),
    }


def _splits(scans: Sequence[SpinoPelvicPlan]) -> dict[str, Any]:
    """Leave out the test patients; each fold validates on its part of the other patients."""
    test = sorted({plan.token for plan in scans if plan.test})
    others = sorted({plan.token for plan in scans} - set(test))
    folds = []
    for fold in range(_FOLDS):
        validation = others[fold::_FOLDS]
        folds.append(
            {
                "train_tokens": [str(token) for token in others if token not in validation],
                "val_tokens": [str(token) for token in validation],
            }
        )
    return {"schema_version": 4, "test_tokens": [str(token) for token in test], "folds": folds}
