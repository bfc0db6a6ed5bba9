"""The files of a raw folder: their paths, and their voxels in the axis order of a store."""

import nibabel as nib
import numpy as np

__all__ = ["canonical_zyx", "files_below"]


def canonical_zyx(path):
    """Read a file with nibabel, in the axis order of a store."""
    closest = nib.as_closest_canonical(nib.load(path))
    return np.asanyarray(closest.dataobj).transpose(2, 1, 0)


def files_below(root):
    """Return the paths of all files in a folder and its folders, relative to it."""
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
