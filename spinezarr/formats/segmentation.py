"""Which format does a file of named segments have?"""

import fsspec

from spinezarr.errors import FormatError
from spinezarr.formats.dicom_header import is_bare_data_set
from spinezarr.formats.dicom_segmentation import DicomSegmentation
from spinezarr.formats.file_kinds import DICOM, KIND_BYTES, NRRD, detect_kind
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.nrrd import NrrdSegmentation
from spinezarr.formats.segments import Segmentation
from spinezarr.geometry import Grid

__all__ = ["open_segmentation"]


def open_segmentation(
    fs: fsspec.AbstractFileSystem, path: str, image: Grid, limits: Limits = DEFAULT_LIMITS
) -> Segmentation:
    """Open a DICOM Segmentation or a segmentation of 3D Slicer, told by its first bytes.

    Parameters
    ----------
    fs, path
        File system and path of the file.
    image
        Grid of the image, on whose voxels the segments lie.
    limits
        Limits that the file must not exceed.

    Raises
    ------
    FormatError
        If the file has another format, is damaged or exceeds a limit.
    GridMismatchError
        If the segments do not lie on the voxels of the image, or extend beyond it.
    """
    with fs.open(path, "rb", block_size=KIND_BYTES) as raw:
        start = raw.read(KIND_BYTES)
    kind = detect_kind(start)
    if kind is NRRD:
        return NrrdSegmentation(fs, path, image, limits)
    if kind is DICOM or is_bare_data_set(start):
        return DicomSegmentation(fs, path, image, limits)
    raise FormatError(
        f"{path}: looks like {kind.name}, which has no named segments; expected a DICOM "
        "Segmentation or a .seg.nrrd. Give its values by 'values' in the layout, in place of "
        "'segments'."
    )
