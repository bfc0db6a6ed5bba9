"""How do predictions for overlapping patches become one volume?

Predictions are weighted, summed, and divided by the sum of their weights. Patches come in the order
of the grid, so a plane is finished as soon as no later patch reaches it.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.tiling import Tiling

__all__ = ["Merger", "SaveMask", "Weights"]

Weights = Literal["average", "gaussian", "crop"]
"""How overlapping predictions are merged; see :class:`Merger`."""
_SIGMA: Final = 1 / 8
"""Standard deviation of the gaussian weights as a fraction of the patch size; nnU-Net and MONAI use
the same."""
_SPATIAL_AXES: Final = 3


class SaveMask(Protocol):
    """Writes a further mask of the scan that a grid covers; see ``Store.write_labels``."""

    def __call__(
        self,
        name: str,
        values_zyx: npt.NDArray[Any],
        /,
        *,
        scheme: str | Mapping[int, str],
        license: str,
        author: str,
        model: str,
        wait_s: float,
    ) -> None:
        """Write the mask."""


class Merger:
    """Merges predictions for the patches of a grid into one volume.

    Predictions are added in the order of the grid, so a plane is finished as soon as no later patch
    reaches it. Memory holds the result, and sums for as many planes as a patch is thick: float32
    (float64 if float32 does not hold the predictions), for all channels. ``finish`` may make the
    result smaller, e.g. one uint8 mask in place of 29 float32 volumes.

    Parameters
    ----------
    tiling
        Positions of the patches: ``store.grid(...).tiling``.
    weights
        ``"gaussian"``: each patch counts most in its middle, with a standard deviation of an
        eighth of its size along each axis, as in nnU-Net and MONAI. ``"average"``: all patches
        count equally. ``"crop"``: each voxel is taken unchanged from the patch whose middle is
        nearest, and keeps its dtype.
    finish
        Function of finished planes ``(c, z, y, x)`` that returns the result ``(..., z, y, x)`` for
        them. It is called for one slab after the other.
    save_mask
        Writes a mask of the scan, for :meth:`save`.

    Raises
    ------
    UsageError
        If ``weights`` is none of these.

    Examples
    --------
    >>> grid = store.grid("liver_0", 24, batch_size=4)
    >>> merger = grid.merger("average")
    >>> for batch in grid:
    ...     merger.add(batch, batch.image[:, None])
    >>> bool((merger.merge()[0] == store.scan("liver_0").image).all())
    True
    """

    def __init__(
        self,
        tiling: Tiling,
        weights: Weights = "gaussian",
        finish: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
        save_mask: SaveMask | None = None,
    ) -> None:
        if weights not in get_args(Weights):
            raise UsageError(f"weights {weights!r}: must be one of {', '.join(get_args(Weights))}.")
        self._tiling = tiling
        self._finish = finish
        self._save_mask = save_mask
        self._crops = weights == "crop"
        self._added = 0
        self._first_open = 0
        """First plane that is not finished."""
        self._sums: npt.NDArray[Any] | None = None
        """Weighted sums ``(c, z, y, x)`` of the planes from ``_first_open`` on."""
        self._result: npt.NDArray[Any] | None = None
        axes = (tiling.shape_zyx, tiling.size_zyx, tiling.starts_zyx)
        self._crop_bounds = [_crop_bounds(n, size, s) for n, size, s in zip(*axes, strict=True)]
        profiles = [_patch_weights(size, weights) for size in tiling.size_zyx]
        covered = zip(tiling.shape_zyx, tiling.starts_zyx, profiles, strict=True)
        self._totals = [_axis_weights(n, starts, profile) for n, starts, profile in covered]
        self._weights = _outer_product(profiles) if weights == "gaussian" else None

    def add(self, patches: Batch | npt.ArrayLike, predictions: npt.ArrayLike) -> None:
        """Add predictions for the next patches.

        Parameters
        ----------
        patches
            The batch that the predictions are for, or its ``start_zyx``, shape ``(n, 3)``.
        predictions
            Numbers of shape ``(n, c, z, y, x)``, with z, y and x as in the patches. Copy a tensor
            from the memory of a GPU to the host first.

        Raises
        ------
        UsageError
            If these are not the next patches of the grid, or ``predictions`` has the wrong shape.
        """
        starts = np.asarray(patches.start_zyx if isinstance(patches, Batch) else patches)
        values = np.asarray(predictions)
        channels = values.shape[1:2] if self._sums is None else self._sums.shape[:1]
        expected = (len(starts), *channels, *self._tiling.size_zyx)
        if values.ndim != _SPATIAL_AXES + 2 or values.shape != expected:
            raise UsageError(
                f"predictions of shape {values.shape} for {len(starts)} patches: expected (n, "
                f"channels, z, y, x), here {expected}."
            )
        for start, value in zip(starts.tolist(), values, strict=True):
            self._add(tuple(start), value)

    def merge(self) -> npt.NDArray[Any]:
        """Return the merged volume.

        Returns
        -------
        numpy.ndarray
            ``(c, z, y, x)`` on the scan's own grid, or what ``finish`` returned.

        Raises
        ------
        UsageError
            If predictions for some patches are missing.
        """
        if self._added < len(self._tiling):
            raise UsageError(
                f"{self._added} of {len(self._tiling)} patches have predictions: add the others "
                "before you merge."
            )
        self._finish_planes(self._tiling.shape_zyx[0])
        if self._result is None:
            raise AssertionError("a grid has at least one patch")
        return self._result

    def save(
        self,
        name: str,
        *,
        scheme: str | Mapping[int, str] = "vertebrae",
        license: str = "",
        author: str = "",
        model: str = "",
        wait_s: float = 60.0,
    ) -> None:
        """Merge the predictions, and write them as a further mask of the scan, slab by slab.

        Besides the merged mask, memory holds the planes of two chunks, and chunks whose shard is
        not complete.

        Parameters
        ----------
        name, scheme, license, author, model, wait_s
            As in :meth:`spinezarr.Store.write_labels`.

        Raises
        ------
        UsageError
            If predictions for some patches are missing, if the result has several channels, or if
            the store has no mask of that name and cannot have one.
        LabelError
            If a value is not a whole number from 0 to 255.
        ScanChangedError, StoreBusyError, ReadOnlyStoreError
            As in :meth:`spinezarr.Store.write_labels`.

        Examples
        --------
        >>> import shutil, tempfile, spinezarr
        >>> folder = tempfile.TemporaryDirectory()
        >>> copy = spinezarr.open(shutil.copytree(store.url, f"{folder.name}/copy.zarr"))
        >>> grid = copy.grid("liver_0", 24, batch_size=4)
        >>> merger = grid.merger("gaussian", finish=lambda scores: scores.argmax(0))
        >>> for batch in grid:
        ...     bone = (batch.image > 200).astype("f4")
        ...     merger.add(batch, np.stack([1 - bone, bone], axis=1))  # (n, c, z, y, x)
        >>> merger.save("bone", scheme={1: "bone"}, model="threshold 1")
        >>> copy.scan("liver_0").bone.flag_meanings
        'background bone'
        >>> folder.cleanup()
        """
        if self._save_mask is None:
            raise UsageError(
                "this merger knows no store. Use one that 'store.grid(...).merger()' makes."
            )
        merged = self.merge()
        *channels, _, _, _ = merged.shape
        if any(n != 1 for n in channels):
            raise UsageError(
                f"the merged predictions have the shape {merged.shape}, and a mask has one value "
                "for each voxel. Give the merger 'finish', such as lambda scores: scores.argmax(0)."
            )
        self._save_mask(
            name,
            merged.reshape(merged.shape[-_SPATIAL_AXES:]),
            scheme=scheme,
            license=license,
            author=author,
            model=model,
            wait_s=wait_s,
        )

    def _add(self, start_zyx: tuple[int, ...], value: npt.NDArray[Any]) -> None:
        tiling = self._tiling
        if self._added == len(tiling) or start_zyx != tiling.start(self._added):
            expected = (
                f"the next patch starts at {tiling.start(self._added)}"
                if self._added < len(tiling)
                else "all patches have predictions"
            )
            raise UsageError(
                f"patch at {start_zyx} (z, y, x): {expected}. Add the predictions in the order of "
                "the grid, each once."
            )
        position = np.unravel_index(self._added, [len(s) for s in tiling.starts_zyx])
        patch = Box.at(tiling.start(self._added), tiling.size_zyx)
        whole = Box((0, 0, 0), tiling.shape_zyx)
        if self._crops:
            bounds = [axis[int(i)] for axis, i in zip(self._crop_bounds, position, strict=True)]
            whole = Box(*zip(*bounds, strict=True))
        self._deposit(patch, patch.intersect(whole) or patch, value)
        self._added += 1

    def _deposit(self, patch: Box, inside: Box, value: npt.NDArray[Any]) -> None:
        """Add the part of a prediction that lies inside a box."""
        self._finish_planes(max(0, patch.start_zyx[0]))
        if self._sums is None:
            depth, height, width = self._tiling.shape_zyx
            planes = min(self._tiling.size_zyx[0], depth)
            dtype = value.dtype if self._crops else np.result_type(np.float32, value.dtype)
            self._sums = np.zeros((len(value), planes, height, width), dtype)
        z, y, x = (-start for start in patch.start_zyx)
        cut = inside.shift((z, y, x)).slices
        into = self._sums[:, *inside.shift((-self._first_open, 0, 0)).slices]
        if self._crops:
            into[...] = value[:, *cut]
        elif self._weights is None:
            into += value[:, *cut]
        else:
            self._weights = self._weights.astype(into.dtype, copy=False)
            into += value[:, *cut] * self._weights[cut]

    def _finish_planes(self, stop: int) -> None:
        """Finish the planes before ``stop``, and move the sums to those from ``stop`` on."""
        n = stop - self._first_open
        if self._sums is None or n <= 0:
            return
        planes = self._sums[:, :n]
        if not self._crops:
            totals = [self._totals[0][self._first_open : stop], *self._totals[1:]]
            planes = planes / _outer_product(totals).astype(self._sums.dtype)
        finished = planes if self._finish is None else np.asarray(self._finish(planes))
        if finished.shape[-_SPATIAL_AXES:] != planes.shape[1:]:
            raise UsageError(
                f"finish returned shape {finished.shape} for planes {planes.shape}: the last three "
                "axes must stay."
            )
        if self._result is None:
            shape = (*finished.shape[:-_SPATIAL_AXES], *self._tiling.shape_zyx)
            self._result = np.empty(shape, finished.dtype)
        self._result[..., self._first_open : stop, :, :] = finished
        self._sums[:, :-n] = self._sums[:, n:]
        self._sums[:, -n:] = 0
        self._first_open = stop


def _patch_weights(size: int, weights: Weights) -> npt.NDArray[np.float64]:
    """Return the weights of the voxels of a patch along one axis."""
    if weights != "gaussian":
        return np.ones(size)
    offsets = np.arange(size) - (size - 1) / 2
    bell: npt.NDArray[np.float64] = np.exp(-0.5 * (offsets / (_SIGMA * size)) ** 2)
    return bell


def _axis_weights(
    n: int, starts: tuple[int, ...], profile: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the sum of the weights of all patches at each voxel of an axis.

    The sum over the grid is the outer product of those along the axes.
    """
    total = np.zeros(n)
    for start in starts:
        low, high = max(0, start), min(n, start + len(profile))
        total[low:high] += profile[low - start : high - start]
    return total


def _crop_bounds(n: int, size: int, starts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the first voxel, and one past the last, that each patch along an axis is cropped to.

    The border between two neighboring patches is equally far from their middles.
    """
    borders = [0, *((a + b + size) // 2 for a, b in pairwise(starts)), n]
    return list(pairwise(borders))


def _outer_product(axes: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
