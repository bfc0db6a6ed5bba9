"""Two versions of a raw folder; ingesting the second after the first covers every case."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.testing import NiftiForm, write_nifti

__all__ = ["CHANGED", "RECIPE", "Truth", "write_raw"]

Truth = tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]
"""Image and mask of a scan."""

RECIPE: Final = """\
name: crash
title: Crash
license: CC0-1.0
citation: nobody
layouts:
  flat: {description: flat, image: "{scan}_ct.nii.gz", label: "{scan}_seg.nii.gz", mask: optional}
labels: {scheme: canonical, state: all-visible}
tables:
  clinic: {files: clinic.csv, key: Scan}
"""
_LONG: Final = (270, 20, 24)  # three shards
_WIDE: Final = (12, 10, 800)  # two
_ONE: Final = (40, 30, 36)


@dataclass(frozen=True, slots=True)
class _Scan:
    shape_zyx: tuple[int, int, int]
    seed: int
    mask: bool = True
    outlier: int | None = None
    """Value of the last voxel; if it exceeds int16, the image is encoded twice."""


_VERSIONS: Final[dict[int, dict[str, _Scan]]] = {
    1: {
        "kept": _Scan(_ONE, 1),
        "other-voxels": _Scan(_LONG, 2),
        "fewer-shards": _Scan(_LONG, 3),
        "amended": _Scan(_WIDE, 4),
        "no-mask-now": _Scan(_WIDE, 5),
        "gone": _Scan(_ONE, 6),
    },
    2: {
        "kept": _Scan(_ONE, 1),
        "other-voxels": _Scan(_LONG, 12),
        "fewer-shards": _Scan(_ONE, 13),
        "amended": _Scan(_WIDE, 4),
        "no-mask-now": _Scan(_WIDE, 15, mask=False),
        "new": _Scan(_LONG, 16),
        "new-wide-values": _Scan(_LONG, 17, outlier=40_000),
    },
}
CHANGED: Final = ("other-voxels", "fewer-shards", "amended", "no-mask-now")
"""Scans that differ between the versions."""


def _arrays(scan: _Scan) -> Truth:
    rng = np.random.default_rng(scan.seed)
    image = rng.integers(-1000, 2000, scan.shape_zyx, np.int32)
    if scan.outlier is not None:
        image[-1, -1, -1] = scan.outlier
    if not scan.mask:
        return image, None
    label = rng.integers(19, 22, scan.shape_zyx).astype(np.uint8)
    label[:, : scan.shape_zyx[1] // 2] = 0
    return image, label


def write_raw(folder: Path, version: int) -> dict[str, Truth]:
    """Write the files of a version; return the voxels of its scans."""
    folder.mkdir(parents=True)
    truth = {}
    for name, scan in _VERSIONS[version].items():
        image, label = truth[name] = _arrays(scan)
        affine = np.diag([0.9, 1.1, 1.3, 1.0])
        write_nifti(folder / f"{name}_ct.nii.gz", image, affine, NiftiForm(dtype="int32"))
        if label is not None:
            write_nifti(folder / f"{name}_seg.nii.gz", label, affine, NiftiForm(dtype="uint8"))
    tables = {1: "Scan,Age,Ward\namended,61,east\n", 2: "Scan,Age\namended,62\n"}
    (folder / "clinic.csv").write_text(tables[version])
    return truth
