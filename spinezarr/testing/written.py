"""Which files and facts belong to one scan of a synthetic dataset?"""

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
    """Collection within the dataset; the name of the dataset if it has but one."""
    split: str | None
    """Subset that the dataset puts the scan in; None if it has none."""
    image_path: Path
    """Path of the CT: a file, or the folder of a DICOM series."""
    label_path: Path | None
    """Path of the mask: a file, or a folder with a file for each structure; None for none."""
    points_path: Path | None = None
    """Path of the file of vertebra centers; None for none."""
    spec: PhantomSpec
    """Phantom that was drawn: ``make_phantom(spec)`` gives the voxels again."""
    image_form: NiftiForm | MetaImageForm | DicomForm
    """How the image is stored."""
    label_form: NiftiForm | MetaImageForm | None
    """How the mask is stored; None without a mask."""
    centers_mm: dict[str, tuple[float, float, float]] = field(repr=False, hash=False)
    """RAS+ (x, y, z) in mm of the middle of each vertebral body, in the frame of the image file:
    those that ``points_path`` names, or else all of the levels in the phantom's mask."""
    year: int | None = None
    """Release that the scan came with, where a dataset has several."""


def centers_in_file(phantom: Phantom, oblique_deg: float) -> dict[str, tuple[float, float, float]]:
    """Return RAS+ (x, y, z) in mm of the middles of bodies in a file that rotates the phantom."""
    _, turned = oriented(phantom.image, phantom.affine_xyz, "RAS", oblique_deg)
    return with_affine(phantom, turned).centers_mm


def with_affine(phantom: Phantom, affine_xyz: npt.NDArray[np.float64]) -> Phantom:
    """Return the phantom at another position; ``affine_xyz`` maps voxels to RAS+ mm."""
    move = affine_xyz @ np.linalg.inv(phantom.affine_xyz)
    centers = {}
    for name, center in phantom.centers_mm.items():
        x, y, z = (move[:3] @ [*center, 1]).tolist()
        centers[name] = (x, y, z)
    return replace(phantom, affine_xyz=affine_xyz, centers_mm=centers)
