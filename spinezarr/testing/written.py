"""Record of the files and facts of one scan of a synthetic dataset."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spinezarr.testing.dicom import DicomForm
from spinezarr.testing.metaimage import MetaImageForm
from spinezarr.testing.nifti import NiftiForm
from spinezarr.testing.orientation import oriented
from spinezarr.testing.phantom import Phantom, PhantomSpec

__all__ = ["WrittenScan", "centers_in_file", "with_affine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenScan:
    """One scan on disk."""

    scan_id: str
    """Name of the scan in its dataset, e.g. the file name without ``.nii.gz``."""
    patient: str
    """Name of the patient; scans of one patient share it."""
    source: str
    """Collection within the dataset; the name of the dataset if it has only one."""
    split: str | None
    """Split of the scan; None if the dataset has none."""
    image_path: Path
    """Path of the CT: a file, or the folder of a DICOM series."""
    label_path: Path | None
    """Path of the mask: a file, or a folder with a file for each structure; None without a mask."""
    points_path: Path | None = None
    """Path of the file of vertebra centers; None without such a file."""
    spec: PhantomSpec
    """Phantom that was drawn; ``make_phantom(spec)`` returns the same voxels."""
    image_form: NiftiForm | MetaImageForm | DicomForm
    """How the image is stored."""
    label_form: NiftiForm | MetaImageForm | None
    """How the mask is stored; None without a mask."""
    centers_mm: dict[str, tuple[float, float, float]] = field(repr=False, hash=False)
    """Middle (x, y, z) of each vertebral body in RAS+ mm, in the frame of the image file.

    The levels are those in the file ``points_path``, or else all levels in the phantom's mask.
    """
    year: int | None = None
    """Year of the release of the scan; None if the dataset has only one release."""


def centers_in_file(phantom: Phantom, oblique_deg: float) -> dict[str, tuple[float, float, float]]:
    """Return the middles (x, y, z) of bodies in RAS+ mm, in a file that rotates the phantom."""
    _, affine_in_file = oriented(phantom.image, phantom.affine_xyz, "RAS", oblique_deg)
    return with_affine(phantom, affine_in_file).centers_mm


def with_affine(phantom: Phantom, affine_xyz: npt.NDArray[np.float64]) -> Phantom:
    """Return the phantom at the position of ``affine_xyz``, which maps voxels to RAS+ mm."""
    transform = affine_xyz @ np.linalg.inv(phantom.affine_xyz)
    centers = {}
    for name, center in phantom.centers_mm.items():
        x, y, z = (transform[:3] @ [*center, 1]).tolist()
        centers[name] = (x, y, z)
    return replace(phantom, affine_xyz=affine_xyz, centers_mm=centers)
