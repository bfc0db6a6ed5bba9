"""Writes small copies of CADS and of the output of SPINEPS, whose masks are drawn by models.

References
----------
.. [1] https://github.com/murong-xu/CADS (``bodyparts_labelmaps.py``, ``check_dataset_complete.py``)
.. [2] https://github.com/Hendrik-code/spineps (README, ``seg_run.py``)
"""

from pathlib import Path
from typing import Final

import numpy as np

from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["write_cads", "write_spineps"]

_IMAGE_FORM: Final = NiftiForm("LAS")
_MASK_FORM: Final = NiftiForm("LAS", "uint8")
_CADS_LEVELS: Final = usual_levels("C1", "L5")[::-1]
"""Vertebrae in the order of their values, of which the first is 1."""
_CADS_PARTS: Final = {553: 0, 554: 11, 555: 24}
"""Further masks, and the value of their first voxel: nothing, the sacrum, the last right rib."""
_DISC: Final = 100
_ENDPLATES: Final = 200


def _spec(seed: int, first: str, last: str) -> PhantomSpec:
    return PhantomSpec(seed, (36, 36, 40), (6.0, 5.0, 4.5), usual_levels(first, last))


_CADS_SCANS: Final = (
    ("0010_verse", "verse004", "_0000", _spec(4, "T8", "L2")),
    ("0041_ctrate", "train_1_a_1", "", _spec(41, "C6", "T5")),
    ("0016_lidc", "verse004", "_0000", _spec(16, "T1", "T6")),
)


def write_cads(root: Path) -> tuple[WrittenScan, ...]:
    """Write three scans of three sets [1]_, two of which have the same name.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.

    Returns
    -------
    tuple of WrittenScan
        One record per scan.
    """
    written = []
    for folder, scan, ending, spec in _CADS_SCANS:
        phantom = make_phantom(spec)
        values = np.zeros_like(phantom.label)
        for value, level in enumerate(_CADS_LEVELS, start=1):
            values[phantom.label == VALUE_OF_NAME[level]] = value
        segmentations = root / folder / "segmentations" / scan
        label_path = segmentations / f"{scan}_part_552.nii.gz"
        write_nifti(label_path, values, phantom.affine_xyz, _MASK_FORM)
        other = np.zeros_like(values)
        for part, value in _CADS_PARTS.items():
            other[0, 0, 0] = value
            write_nifti(
                segmentations / f"{scan}_part_{part}.nii.gz", other, phantom.affine_xyz, _MASK_FORM
            )
        image_path = root / folder / "images" / f"{scan}{ending}.nii.gz"
        written.append(_with_image(f"{folder}_{scan}", folder, image_path, label_path, phantom))
    return tuple(written)


def write_spineps(root: Path) -> tuple[WrittenScan, ...]:
    """Write two CTs with the masks of SPINEPS [2]_, one of which is in a folder of its subject.

    The upper half of each vertebra's box stands for its endplates, and the row of voxels behind it
    for its disc.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.

    Returns
    -------
    tuple of WrittenScan
        One record per scan.
    """
    written = []
    for folder, scan, spec in (
        ("", "sub-0001", _spec(1, "T9", "L3")),
        ("sub-0002/", "sub-0002_ses-1", _spec(2, "L1", "L5")),
    ):
        phantom = make_phantom(spec)
        values = phantom.label.copy()
        values[0, 0, 0] = _DISC + VALUE_OF_NAME["L1"]
        values[0, 0, 1] = _ENDPLATES + VALUE_OF_NAME["L1"]
        derived = root / "derivatives_seg" / folder
        label_path = derived / f"{scan}_mod-ct_seg-vert_msk.nii.gz"
        write_nifti(label_path, values, phantom.affine_xyz, _MASK_FORM)
        parts = np.where(phantom.label > 0, 49, 0).astype(np.uint8)
        parts_path = derived / f"{scan}_mod-ct_seg-spine_msk.nii.gz"
        write_nifti(parts_path, parts, phantom.affine_xyz, _MASK_FORM)
        image_path = root / "rawdata" / folder / f"{scan}_ct.nii.gz"
        written.append(_with_image(scan, "spineps", image_path, label_path, phantom))
    return tuple(written)


def _with_image(
    scan_id: str, source: str, image_path: Path, label_path: Path, phantom: Phantom
) -> WrittenScan:
    write_nifti(image_path, phantom.image, phantom.affine_xyz, _IMAGE_FORM)
    return WrittenScan(
        scan_id=scan_id,
        patient=scan_id,
        source=source,
        split=None,
        image_path=image_path,
        label_path=label_path,
        spec=phantom.spec,
        image_form=_IMAGE_FORM,
        label_form=_MASK_FORM,
        centers_mm=phantom.centers_mm,
    )
