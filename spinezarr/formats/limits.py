"""How large a source file may be: checked from its header, before any voxel is read.

A header of a few bytes can name more voxels than any machine holds, and a small compressed file
can inflate to a thousand times its size. What is over a limit is refused with the option that
raises it.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from spinezarr.errors import FormatError
from spinezarr.geometry import Grid

__all__ = ["DEFAULT_LIMITS", "LARGEST_DEFLATE_RATIO", "Limits", "check_compressed_size"]

LARGEST_DEFLATE_RATIO: Final = 1032
"""Deflate cannot pack tighter: it spends at least two bits on 258 bytes (RFC 1951, 3.2.5)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a source file may be at most.

    The defaults leave room for the largest public spine CT, 960 x 2048 x 2023 voxels, in any type.

    Examples
    --------
    >>> Limits(axis_voxels=4096).axis_voxels
    4096
    """

    axis_voxels: int = 8192
    """Along each axis."""
    volume_bytes: int = 32_000_000_000
    """Of all voxels, as they are stored or after scaling, whichever are more."""
    slice_bytes: int = 128 << 20
    """Of one slice along the file's slowest axis, counted likewise: a volume is held by slices."""
    spacing_range_mm: tuple[float, float] = (1e-4, 1e4)
    """Distance between neighboring voxels. Wide enough for m and um taken for mm, which are read,
    and found by the audit."""
    max_position_mm: float = 1e6
    """Of the first voxel, along each world axis: a kilometer is no patient's."""
    header_bytes: int = 64 << 20
    """Before the voxels of a file, extensions included."""
    dicom_files: int = 20_000
    """Of one folder."""
    dicom_file_bytes: int = 64 << 20
    """Of the DICOM file of one slice, of what any deflated one inflates to, and of one compressed
    frame."""
    dicom_multiframe_bytes: int = 16 << 30
    """Of a multi-frame DICOM file, which is read frame by frame."""
    dicom_header_bytes: int = 32 << 20
    """Read of a DICOM file before its pixels; a multi-frame CT says some kB of each frame."""
    link_folders: tuple[str, ...] = ()
    """Folders to which a link may lead that a .mhd names as the file of its voxels. Links to whole
    images are followed anywhere, as what they lead to must itself be an image."""
    annotation_bytes: int = 1 << 20
    """Of a file of centroids or a sidecar."""
    table_bytes: int = 16 << 20
    """Of a table or list of a dataset."""

    def check_grid(self, grid: Grid, value_bytes: int, path: str) -> None:
        """Refuse a grid that is too large, too fine, too coarse or too far off.

        Parameters
        ----------
        grid
            As the file states it; its affine is finite.
        value_bytes
            Size of a value, as stored or after scaling, whichever is more.
        path
            For messages.

        Raises
        ------
        FormatError
            Names the limit, and the option that raises it.
        """
        shape = grid.shape_ijk
        if max(shape) > self.axis_voxels:
            raise FormatError(
                f"{path}: its header names {shape} voxels, expected at most {self.axis_voxels} "
                "along an axis. If that is true, raise --max-axis."
            )
        n_bytes = math.prod(shape) * value_bytes
        if n_bytes > self.volume_bytes:
            raise FormatError(
                f"{path}: its header names {shape} voxels of {value_bytes} bytes, "
                f"{n_bytes / 1e9:.1f} GB; expected at most {self.volume_bytes / 1e9:.1f} GB. If "
                "that is true, raise --max-volume."
            )
        if math.prod(shape[:2]) * value_bytes > self.slice_bytes:
            raise FormatError(
                f"{path}: its header names slices of {shape[0]} x {shape[1]} voxels of "
                f"{value_bytes} bytes; expected at most {self.slice_bytes} bytes. If that is "
                "true, cut the volume into several."
            )
        low, high = self.spacing_range_mm
        spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
        if spacing.min() < low or spacing.max() > high:
            raise FormatError(
                f"{path}: its voxels are {' x '.join(f'{s:.4g}' for s in spacing)} mm, expected "
                f"{low:g} to {high:g}. Correct the spacing in its header."
            )
        if np.abs(grid.affine[:3, 3]).max() > self.max_position_mm:
            raise FormatError(
                f"{path}: its first voxel lies at {grid.affine[:3, 3].tolist()} mm, expected "
                f"within {self.max_position_mm:g}. Correct the position in its header."
            )


DEFAULT_LIMITS: Final = Limits()


def check_compressed_size(packed_bytes: int, voxel_bytes: int, path: str) -> None:
    """Refuse compressed voxels that are too short for what a header says of them.

    Raises
    ------
    FormatError
        If no stream of ``packed_bytes`` inflates to ``voxel_bytes``.
    """
    if voxel_bytes > LARGEST_DEFLATE_RATIO * packed_bytes:
        raise FormatError(
            f"{path}: cut short: {max(packed_bytes, 0)} bytes cannot inflate to the {voxel_bytes} "
            "of its voxels that its header says. Download it again."
        )
