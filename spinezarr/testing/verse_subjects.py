"""Writes the subject-based VerSe release, as unpacked from its six zip files.

References
----------
.. [1] https://github.com/anjany/verse and https://osf.io/4skx2/wiki
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spinezarr.testing.verse import (
    VERSE_2019,
    VERSE_2020,
    VersePlan,
    VerseSplit,
    write_verse_files,
)
from spinezarr.testing.written import WrittenScan

__all__ = ["NUMBERED_SPLITS", "write_verse_subjects"]

NUMBERED_SPLITS: Final[dict[VerseSplit, str]] = {
    "training": "01_training",
    "validation": "02_validation",
    "test": "03_test",
}
"""Folders of the challenge of 2020; copies of the subject-based release of 2020 use them too."""

_SIDECAR: Final = {
    "dataset": "verse19",
    "KVP": 120,
    "Manufacturer": "synthetic",
    "ManufacturerModelName": "phantom",
}
_RESOURCE_FORK: Final = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(2)
"""Content of a resource fork file of macOS, which is an AppleDouble header without entries."""


def write_verse_subjects(
    root: Path,
    scans: Sequence[VersePlan] = (*VERSE_2019, *VERSE_2020),
    *,
    nested: bool = False,
    renamed: bool = False,
) -> tuple[WrittenScan, ...]:
    """Write the release [1]_, with the extra files that zips from macOS contain.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    scans
        Scans to write; each scan is in the release of one year only.
    nested
        Whether each top folder lies in another folder, named like its zip.
    renamed
        Whether the top folders of 2020 are named ``01_training`` and so on, as in some copies.

    Returns
    -------
    tuple of WrittenScan
        One record per scan, in the order of ``scans``.
    """
    return tuple(
        _write_subject(root, _top_folder(plan, nested=nested, renamed=renamed), plan)
        for plan in scans
    )


def _top_folder(plan: VersePlan, *, nested: bool, renamed: bool) -> str:
    package = f"dataset-verse{plan.year % 100}{plan.split}"
    numbered = NUMBERED_SPLITS[plan.split]
    top = {2019: package, 2020: numbered if renamed else f"dataset-{numbered.replace('_', '')}"}
    return f"{package}/{top[plan.year]}" if nested else top[plan.year]


def _subject_name(plan: VersePlan) -> str:
    """Return the common prefix of the names of a scan's files.

    Examples
    --------
    >>> _subject_name(VERSE_2019[2]), _subject_name(VERSE_2020[0])
    ('sub-verse401_split-verse201', 'sub-gl017_dir-ax')
    """
    split = f"_split-{plan.scan}" if plan.scan != plan.subject else ""
    direction = f"_dir-{plan.plane}" if plan.plane and plan.plane_in_subject_name else ""
    return f"sub-{plan.subject}{split}{direction}"


def _write_subject(root: Path, top: str, plan: VersePlan) -> WrittenScan:
    """Write the files of one scan; the folder of masks stays empty if the scan has no mask."""
    raw, derived = (f"{top}/{kind}/sub-{plan.subject}" for kind in ("rawdata", "derivatives"))
    name = _subject_name(plan)
    (root / derived).mkdir(parents=True, exist_ok=True)
    written = write_verse_files(
        plan,
        "verse",
        image_path=root / raw / f"{name}_ct.nii.gz",
        label_path=root / derived / f"{name}_seg-vert_msk.nii.gz",
        points_path=root / derived / f"{name}_seg-{plan.points}_ctd.json",
        picture_path=root / derived / f"{name}_seg-vert_snp.png",
    )
    if plan.year == VERSE_2019[0].year:
        (root / raw / f"{name}_ct.json").write_text(json.dumps(_SIDECAR), encoding="ascii")
    for folder in (raw, derived):
        for path in sorted((root / folder).glob(f"{name}_*")):
            _write_resource_fork(root / folder / f"._{path.name}")
            _write_resource_fork(root / "__MACOSX" / folder / f"._{path.name}")
    return written


def _write_resource_fork(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_RESOURCE_FORK)
