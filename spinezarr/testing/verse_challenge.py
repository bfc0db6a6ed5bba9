"""Writes the VerSe datasets as the challenges of 2019 and 2020 packed them.

References
----------
.. [1] https://verse2020.grand-challenge.org/VerSe_at_MICCAI19
.. [2] https://osf.io/b2wxj/wiki
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spinezarr.testing.verse import VERSE_2019, VERSE_2020, VersePlan, write_verse_files
from spinezarr.testing.verse_subjects import NUMBERED_SPLITS
from spinezarr.testing.written import WrittenScan

__all__ = ["VERSE_2020_CHALLENGE", "write_verse_2019_challenge", "write_verse_2020_challenge"]

VERSE_2020_CHALLENGE: Final = (*VERSE_2020, *VERSE_2019[:2])
"""Scans of the challenge of 2020, which also held scans of 2019."""


def write_verse_2019_challenge(
    root: Path, scans: Sequence[VersePlan] = VERSE_2019
) -> tuple[WrittenScan, ...]:
    """Write the challenge of 2019 [1]_, with all files in one folder.

    Centroids are in mm toward I, P and L. The files show neither the split nor the patient, which
    only the records have.

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
    return tuple(
        write_verse_files(
            plan,
            "verse-2019-challenge",
            image_path=root / f"{plan.scan}.nii.gz",
            label_path=root / f"{plan.scan}_seg.nii.gz",
            points_path=root / f"{plan.scan}_ctd.json",
            picture_path=root / f"{plan.scan}_snapshot.png",
        )
        for plan in scans
    )


def write_verse_2020_challenge(
    root: Path, scans: Sequence[VersePlan] = VERSE_2020_CHALLENGE, *, training_data: bool = False
) -> tuple[WrittenScan, ...]:
    """Write the challenge of 2020 [2]_, with a folder per scan.

    Centroids are in mm toward P, I and R.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write.
    training_data
        Whether to write the training scans only, below ``training_data``, instead of all below
        ``01_training``, ``02_validation`` and ``03_test``.

    Returns
    -------
    tuple of WrittenScan
        One record per scan that is written, in the order of ``scans``.
    """
    if training_data:
        training = (plan for plan in scans if plan.split == "training")
        return tuple(_write_challenge_scan(root / "training_data", plan) for plan in training)
    return tuple(_write_challenge_scan(root / NUMBERED_SPLITS[plan.split], plan) for plan in scans)


def _write_challenge_scan(folder: Path, plan: VersePlan) -> WrittenScan:
    """Write one scan; the spelling of its file names depends on the kind of scan name."""
    if plan.scan.startswith("gl"):
        token = plan.scan.upper()
        name, points = f"{token}_CT_{plan.plane}", "iso-ctd"
    else:
        token = plan.scan
        name, points = f"{token}_CT-{plan.plane}" if plan.plane else token, "ctd-iso"
    return write_verse_files(
        plan,
        "verse-2020-challenge",
        image_path=folder / token / f"{name}.nii.gz",
        label_path=folder / token / f"{name}_seg.nii.gz",
        points_path=folder / token / f"{name}_{points}.json",
        picture_path=folder / token / f"{name}.png",
    )
