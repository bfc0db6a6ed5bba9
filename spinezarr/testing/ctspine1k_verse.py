"""Writes CTSpine1K's masks of VerSe scans, and their images as the VerSe challenge has them."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from spinezarr.testing.nifti import write_nifti
from spinezarr.testing.phantom import make_phantom
from spinezarr.testing.verse import VERSE_2019, VERSE_2020
from spinezarr.testing.verse_challenge import write_verse_2020_challenge
from spinezarr.testing.written import WrittenScan, centers_in_file

__all__ = ["write_ctspine1k_verse"]

_PLANS: Final = {plan.scan: plan for plan in (*VERSE_2019, *VERSE_2020)}
_MASKS: Final = {"verse074": "Verse", "verse506": "completed_annotation_verse"}
"""Scans and their folders. The second mask also shows vertebrae that the volume cuts."""


def write_ctspine1k_verse(root: Path, images: Path) -> tuple[WrittenScan, ...]:
    """Write two masks as the official release has them, and their images elsewhere.

    Parameters
    ----------
    root
        Folder of CTSpine1K. The name of a mask is that of its image with ``_seg``.
    images
        Folder for a copy of the VerSe challenge of 2020 with these two scans.

    Returns
    -------
    tuple of WrittenScan
        One record per scan. Its image is in ``images``, and its mask is in ``root``.
    """
    challenge = write_verse_2020_challenge(images, [_PLANS[name] for name in _MASKS])
    return tuple(_write_mask(root, scan) for scan in challenge)


def _write_mask(root: Path, scan: WrittenScan) -> WrittenScan:
    folder = _MASKS[scan.scan_id]
    plan = _PLANS[scan.scan_id]
    spec = replace(plan.spec, label_cut_ends=folder != "Verse")
    phantom = make_phantom(spec)
    name = scan.image_path.name.replace(".nii.gz", "_seg.nii.gz")
    path = root / "label" / folder / name
    form = replace(plan.form, dtype="uint8")
    write_nifti(path, phantom.label, phantom.affine_xyz, form)
    return replace(
        scan,
        source="VerSe",
        label_path=path,
        points_path=None,
        spec=spec,
        label_form=form,
        centers_mm=centers_in_file(phantom, form.oblique_deg),
    )
