"""Where patches lie: every draw is a pure function of (seed, epoch, index), and needs no voxels.

Two ways to choose, mixed sample by sample:

* *uniform*: a scan, each equally likely; then a position in it, each equally likely;
* *balanced*: a vertebra, each that occurs equally likely; then a scan that shows it; then one of
  its voxels there. The patch is centred on that voxel and moved inside the volume.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX

__all__ = ["PatchRequest", "Sampler", "VoxelFinder"]

VoxelFinder = Callable[[str, str, int], ShapeZYX]
"""``(scan_id, vertebra, k)`` → the k-th voxel (z, y, x) of that vertebra, in any fixed order."""


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """One patch to read."""

    index: int
    """Number of the sample in its epoch."""
    scan_id: str
    box: Box
    """Voxels of the patch; leaves the volume where that is smaller than the patch."""
    vertebra: str | None
    """The vertebra it was drawn for; None for a uniform draw."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws patches of one size from some scans.

    Parameters
    ----------
    scan_ids
        The scans to draw from, shape ``(n,)``.
    shapes_zyx
        Their voxels, shape ``(n, 3)``.
    vertebrae
        Vertebra names, shape ``(v,)``.
    voxel_count
        Voxels of each vertebra in each scan, shape ``(n, v)``.
    size_zyx
        Voxels of a patch.
    seed
        Not negative.
    foreground
        Share of balanced draws, 0 to 1.

    Raises
    ------
    UsageError
        If nothing can be drawn so.
    """

    scan_ids: tuple[str, ...]
    shapes_zyx: npt.NDArray[np.int_]
    vertebrae: tuple[str, ...]
    voxel_count: npt.NDArray[np.int_]
    size_zyx: ShapeZYX
    seed: int
    foreground: float

    def __post_init__(self) -> None:
        if min(self.size_zyx) < 1:
            raise UsageError(
                f"patch size {self.size_zyx} (z, y, x): every side must be at least 1."
            )
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: must not be negative.")
        if not 0 <= self.foreground <= 1:
            raise UsageError(f"foreground {self.foreground}: must lie between 0 and 1.")
        if not self.scan_ids:
            raise UsageError("no scan to draw from.")
        if self.foreground and not self.voxel_count.any():
            raise UsageError("foreground > 0, but no chosen scan has a labelled vertebra.")

    @classmethod
    def of_table(
        cls, table: xr.Dataset, *, size_zyx: ShapeZYX, seed: int, foreground: float
    ) -> "Sampler":
        """Draw from all rows of a scan table."""
        return cls(
            scan_ids=tuple(str(name) for name in table.scan.to_numpy()),
            shapes_zyx=table.shape_zyx.to_numpy().astype(int),
            vertebrae=tuple(str(name) for name in table.vertebra.to_numpy()),
            voxel_count=table.voxel_count.to_numpy().astype(int),
            size_zyx=size_zyx,
            seed=seed,
            foreground=foreground,
        )

    def draw(self, epoch: int, index: int, find_voxel: VoxelFinder) -> PatchRequest:
        """Draw one patch.

        Parameters
        ----------
        epoch, index
            Which sample.
        find_voxel
            Asked once for a balanced draw, not at all for a uniform one.
        """
        # Two 32-bit words each: numpy splits larger numbers itself, and keys could then coincide.
        key = (*divmod(epoch, 1 << 32), *divmod(index, 1 << 32))
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        if self.foreground and rng.random() < self.foreground:
            return self._balanced(rng, index, find_voxel)
        scan = int(rng.integers(len(self.scan_ids)))
        start = rng.integers(0, self.room_zyx(scan), endpoint=True)
        return self.place(index, scan, start, None)

    def _balanced(
        self, rng: np.random.Generator, index: int, find_voxel: VoxelFinder
    ) -> PatchRequest:
        shown = np.flatnonzero(self.voxel_count.any(axis=0))
        vertebra = int(shown[rng.integers(len(shown))])
        showing = np.flatnonzero(self.voxel_count[:, vertebra])
        scan = int(showing[rng.integers(len(showing))])
        k = int(rng.integers(self.voxel_count[scan, vertebra]))
        name = self.vertebrae[vertebra]
        voxel = np.array(find_voxel(self.scan_ids[scan], name, k))
        return self.place(index, scan, self.starts_around(scan, voxel), name)

    def chances(self) -> npt.NDArray[np.float64]:
        """Say how likely each kind of draw is, shape ``(n, 1 + v)``; the sum is 1.

        Rows are scans; the first column is that of uniform draws, the others are of balanced draws
        of each vertebra.
        """
        n = len(self.scan_ids)
        uniform = np.full((n, 1), (1 - self.foreground) / n)
        shows = self.voxel_count > 0
        scans = np.maximum(shows.sum(axis=0), 1)
        shown = max(int(shows.any(axis=0).sum()), 1)
        return np.hstack([uniform, self.foreground * (shows / scans / shown)])

    def room_zyx(self, scan: int) -> npt.NDArray[np.int_]:
        """Return the largest start of a patch inside a scan; 0 where the scan is smaller."""
        room: npt.NDArray[np.int_] = np.maximum(self.shapes_zyx[scan] - self.size_zyx, 0)
        return room

    def starts_around(self, scan: int, voxels_zyx: npt.NDArray[np.int_]) -> npt.NDArray[np.int_]:
        """Return the starts, shape ``(..., 3)``, of patches centred on voxels of a scan."""
        starts: npt.NDArray[np.int_] = voxels_zyx - np.array(self.size_zyx) // 2
        return starts.clip(0, self.room_zyx(scan))

    def place(
        self, index: int, scan: int, start_zyx: npt.NDArray[Any], vertebra: str | None
    ) -> PatchRequest:
        """Centre the patch on each axis along which the volume is smaller than it."""
        missing = np.maximum(np.array(self.size_zyx) - self.shapes_zyx[scan], 0)
        z, y, x = (start_zyx - missing // 2).tolist()
        return PatchRequest(index, self.scan_ids[scan], Box.at((z, y, x), self.size_zyx), vertebra)
