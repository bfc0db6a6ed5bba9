"""How large may a source file be?

The limits are checked from the header, before any voxel is read. A header of a few bytes can state
more voxels than any machine holds, and a small compressed file can inflate to a thousand times its
size. The error message names the option that raises the limit.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spinezarr.errors import FormatError

if TYPE_CHECKING:
    from spinezarr.geometry import Grid

__all__ = ["DEFAULT_LIMITS", "LARGEST_DEFLATE_RATIO", "Limits", "check_compressed_size"]

LARGEST_DEFLATE_RATIO: Final = 1032
"""Largest compression ratio of Deflate: at least two bits for 258 bytes (RFC 1951, 3.2.5)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits on source files.

    The defaults allow the largest public spine CT, 960 x 2048 x 2023 voxels, in any type.

    Examples
    --------
    >>> Limits(axis_voxels=4096).axis_voxels
    4096
    """

    axis_voxels: int = 8192
    """Largest number of voxels along an axis."""
    volume_bytes: int = 32_000_000_000
    """Largest size of all voxels in bytes, as stored or after scaling, whichever is larger."""
    slice_bytes: int = 128 << 20
    """Largest slice across the slowest axis of the file, in bytes.

    Whole slices are kept in memory.
    """
    spacing_range_mm: tuple[float, float] = (1e-4, 1e4)
    """Smallest and largest voxel spacing in mm.

    The range includes m and um mistaken for mm, which the audit finds.
    """
    max_position_mm: float = 1e6
    """Largest coordinate of the first voxel along a world axis: one kilometer."""
    header_bytes: int = 64 << 20
    """Largest number of bytes before the voxels of a file, with extensions."""
    dicom_files: int = 20_000
    """Largest number of DICOM files in one folder."""
    dicom_file_bytes: int = 64 << 20
    """Largest DICOM file of one slice in bytes.

    A data set may inflate to this size, and a compressed frame may have it.
    """
    dicom_multiframe_bytes: int = 16 << 30
    """Largest multi-frame DICOM file in bytes. It is read frame by frame."""
    dicom_header_bytes: int = 32 << 20
    """Largest DICOM header in bytes. A multi-frame CT has some kB for each frame."""
    link_folders: tuple[str, ...] = ()
    """Folders into which a link may lead, if a .mhd names it as its data file.

    Links to whole images are followed anywhere, because their target must itself be an image.
    """
    annotation_bytes: int = 1 << 20
    """Largest centroid file or sidecar in bytes."""
    table_bytes: int = 16 << 20
    """Largest table or list of a dataset in bytes."""

    def check_grid(self, grid: "Grid", value_bytes: int, path: str) -> None:
        """Refuse a grid that is too large, too fine, too coarse or too far away.

        Parameters
        ----------
        grid
            Grid that the file states, with a finite affine.
        value_bytes
            Size of a value, as stored or after scaling, whichever is larger.
        path
            Path of the file, for messages.

        Raises
        ------
        FormatError
            If the grid exceeds a limit; the message names the limit and the option that raises it.
        """
        shape = grid.shape_ijk
        if max(shape) > self.axis_voxels:
            raise FormatError(
                f"{path}: its header names {shape} voxels, expected at most {self.axis_voxels} "
                "along an axis. If that is true, raise --max-axis-voxels."
            )
        n_bytes = math.prod(shape) * value_bytes
        if n_bytes > self.volume_bytes:
            raise FormatError(
                f"{path}: its header names {shape} voxels of {value_bytes} bytes, "
                f"{n_bytes / 1e9:.1f} GB; expected at most {self.volume_bytes / 1e9:.1f} GB. If "
                "that is true, raise --max-volume-gb."
            )
        if math.prod(shape[:2]) * value_bytes > self.slice_bytes:
            raise FormatError(
                f"{path}: its header names slices of {shape[0]} x {shape[1]} voxels of "
                f"{value_bytes} bytes; expected at most {self.slice_bytes} bytes. If that is "
                "true, cut the volume into several."
            )
        low, high = self.spacing_range_mm
        spacing = (grid.affine_ijk[:3, :3] ** 2).sum(axis=0) ** 0.5
        if spacing.min() < low or spacing.max() > high:
            raise FormatError(
                f"{path}: its voxels are {' x '.join(f'{s:.4g}' for s in spacing)} mm, expected "
                f"{low:g} to {high:g}. Correct the spacing in its header."
            )
        if abs(grid.affine_ijk[:3, 3]).max() > self.max_position_mm:
            raise FormatError(
                f"{path}: its first voxel lies at {grid.affine_ijk[:3, 3].tolist()} mm, expected "
                f"within {self.max_position_mm:g}. Correct the position in its header."
            )


DEFAULT_LIMITS: Final = Limits()


def check_compressed_size(packed_bytes: int, voxel_bytes: int, path: str) -> None:
    """Refuse compressed voxels that are too short for the grid that the header states.

    Raises
    ------
    FormatError
        If no Deflate stream of ``packed_bytes`` can inflate to ``voxel_bytes``.
    """
    if voxel_bytes > LARGEST_DEFLATE_RATIO * packed_bytes:
        raise FormatError(
            f"{path}: cut short: {max(packed_bytes, 0)} bytes cannot inflate to the {voxel_bytes} "
            "bytes of voxels that its header states. Download it again."
        )
