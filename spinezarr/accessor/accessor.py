"""What can a scan that xarray has opened do?

This is ``dataset.spine``. It works on scans that spinezarr or plain xarray has opened, and on what
``isel`` and ``sel`` cut out of them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.accessor.dataset_grid import AXES, DatasetGrid, voxel_variable
from spinezarr.errors import UsageError
from spinezarr.geometry import Plane

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from spinezarr.view.widget import ScanView

__all__ = ["SpineAccessor"]

_IMAGE = "image"


class SpineAccessor:
    """Methods for a scan, as ``dataset.spine``; ``import spinezarr`` adds it to xarray.

    Parameters
    ----------
    dataset
        A scan: ``store.scan(scan_id)``, ``xarray.open_zarr("<store>/scans/<scan_id>")``, or a
        part of one.

    Notes
    -----
    The attribute ``affine`` of a dataset stays that of the stored scan. The coordinates tell which
    voxels are left, so crop by slices. All methods raise :class:`~spinezarr.errors.UsageError` for
    a dataset that is no scan, or whose coordinates are not evenly spaced.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self._dataset = dataset

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4 matrix from voxel ``(x, y, z, 1)`` of the dataset to RAS+ mm.

        Examples
        --------
        >>> scan = store.scan("liver_0")
        >>> cropped = scan.isel(z=slice(10, None), x=slice(None, None, 2))
        >>> step = np.linalg.inv(scan.spine.affine) @ cropped.spine.affine
        >>> step.round(6)[:, [0, 3]].tolist()
        [[2.0, 0.0], [0.0, 0.0], [0.0, 10.0], [0.0, 1.0]]
        """
        return DatasetGrid.of(self._dataset).affine.copy()

    def plot(
        self,
        plane: Plane = "sagittal",
        *,
        position_mm: float | None = None,
        window: str = "bone",
        layer: str | None = "label",
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw a slice with colored and named vertebrae.

        Parameters
        ----------
        plane
            ``"sagittal"``, ``"coronal"`` or ``"axial"``.
        position_mm
            Coordinate of the slice along its normal: ``x``, ``y`` or ``z`` of the dataset. By
            default, the slice passes through the middle of the vertebrae that the mask shows, of
            its other labels if it shows none, or of the dataset.
        window
            ``"bone"``, ``"soft_tissue"``, ``"lung"``, or the HU of black and white, such as
            ``"-160,240"``.
        layer
            Mask that lies over the image; None for no mask. A scan without ``label`` is drawn
            without it.
        ax
            Axes to draw on; None for a new figure of pyplot.

        Returns
        -------
        matplotlib.axes.Axes
            The axes. Their coordinates are those of the dataset in mm.

        Raises
        ------
        UsageError
            If there is no such plane, window or mask, or if the position lies outside of the
            dataset.
        """
        from spinezarr.accessor.slice_plot import plot_slice  # noqa: PLC0415  imports matplotlib
        from spinezarr.view.windows import parse_window  # noqa: PLC0415

        return plot_slice(
            self._dataset,
            plane,
            position_mm=position_mm,
            window_hu=parse_window(window),
            layer=layer,
            axes=ax,
        )

    def sel_vertebra(
        self, name: str, *, margin_mm: float = 10.0, layer: str = "label"
    ) -> "xr.Dataset":
        """Cut out the box of a vertebra or another structure.

        The mask is read to find it, so the box is right in a part of a scan too.

        Parameters
        ----------
        name
            Name of the structure, such as ``"L1"``, ``"sacrum"`` or ``"left rib"``.
        margin_mm
            Margin on each side in mm. It ends at the end of the dataset.
        layer
            Mask that shows the structure.

        Returns
        -------
        xarray.Dataset
            All voxels that the box and its margin touch, with their coordinates.

        Raises
        ------
        UsageError
            If the dataset does not show the structure, which the message answers with those that it
            shows; or if the margin is negative.

        Examples
        --------
        >>> body = store.scan("liver_0").spine.sel_vertebra("L1", margin_mm=0)
        >>> bool((body.label == 20).any("z").any("x").all())
        True
        """
        from spinezarr.accessor.structures import box_of_structure  # noqa: PLC0415  pydantic
        from spinezarr.derive.grid import box_with_margin  # noqa: PLC0415
        from spinezarr.derive.parameters import LARGEST_MARGIN_MM  # noqa: PLC0415

        if not 0 <= margin_mm <= LARGEST_MARGIN_MM:
            raise UsageError(f"margin {margin_mm} mm: must be from 0 to {LARGEST_MARGIN_MM:g}.")
        grid = DatasetGrid.of(self._dataset)
        box = box_of_structure(self._dataset, layer, name)
        box = box_with_margin(box, margin_mm, grid.spacing_zyx_mm, grid.shape_zyx)
        return self._dataset.isel(dict(zip(AXES, box.slices, strict=True)))

    def resample(
        self, spacing_mm: tuple[float, ...] | float, *, antialias: bool = True
    ) -> "xr.Dataset":
        """Resample image and masks, as :meth:`spinezarr.Store.derive` does.

        Images and other arrays of floats are interpolated linearly. Other arrays, such as masks,
        take the nearest voxel. Dask arrays stay lazy, and others are computed at once.

        Parameters
        ----------
        spacing_mm
            Distance between voxels in mm along z, y and x, or one number for all.
        antialias
            Whether images are filtered along axes on which they get fewer voxels. Without the
            filter, voxels are those that :meth:`spinezarr.Store.patches` computes.

        Returns
        -------
        xarray.Dataset
            The dataset on the new grid, which starts at the first voxel. Its coordinates increase
            along each axis, and start at the position of this voxel by the affine. Attributes that
            describe stored voxels are left out.

        Raises
        ------
        UsageError
            If ``spacing_mm`` is anything else, or a variable has some of the axes, but not all.

        Examples
        --------
        >>> store.scan("liver_0").spine.resample(3).image.shape == store.scan("liver_0").image.shape
        False
        """
        from spinezarr.accessor.resampled import resampled  # noqa: PLC0415  imports dask
        from spinezarr.derive.parameters import Derivation  # noqa: PLC0415

        derivation = Derivation.of(
            spacing_mm=spacing_mm,
            antialias=antialias,
            mask_interpolation=None,
            crop=None,
            margin_mm=None,
            intensity=None,
        )
        dataset = self._dataset
        backward = DatasetGrid.of(dataset).reversed_axes
        if backward:
            dataset = dataset.isel({name: slice(None, None, -1) for name in backward})
        grid = DatasetGrid.of(dataset)
        return resampled(dataset, grid, derivation)

    def window(self, window: str = "bone") -> "xr.DataArray":
        """Return the image as shades of gray from 0 to 255; lazy if the image is lazy.

        Parameters
        ----------
        window
            As in :meth:`plot`.

        Returns
        -------
        xarray.DataArray
            uint8 ``(z, y, x)``. NaN is black.

        Raises
        ------
        UsageError
            If there is no such window, or no image.

        Examples
        --------
        >>> store.scan("liver_0").spine.window("soft_tissue").dtype
        dtype('uint8')
        """
        import xarray as xr  # noqa: PLC0415  imported already

        from spinezarr.view.windows import gray_of, parse_window  # noqa: PLC0415

        window_hu = parse_window(window)
        DatasetGrid.of(self._dataset)
        shades: xr.DataArray = xr.apply_ufunc(
            gray_of,
            voxel_variable(self._dataset, _IMAGE),
            kwargs={"window_hu": window_hu},
            dask="parallelized",
            output_dtypes=[np.uint8],
            keep_attrs=False,
        )
        return shades.assign_attrs(long_name="shade of gray", window_hu=list(window_hu))

    def to_nifti(self, path: str | os.PathLike[str], layer: str | None = None) -> None:
        """Write the image or a mask as NIfTI, for one file of a scan or of a part of it.

        A whole scan gives the file of :meth:`spinezarr.Store.export_nifti`, and a part of a scan
        what nibabel cuts out of this file: the axes and the type are those of the source. A
        resampled dataset has the axes x, y and z. The array is loaded into memory.

        Parameters
        ----------
        path
            Path of the file, which ends in ``.nii.gz`` or ``.nii``. An existing file is replaced.
        layer
            Mask to write; None for the image.

        Raises
        ------
        UsageError
            If there is no such variable, if the path has another ending, if a file exists with the
            same name and the other ending, or if no type holds the values.
        """
        from spinezarr.accessor.nifti import write_variable  # noqa: PLC0415  imports nibabel

        write_variable(self._dataset, _IMAGE if layer is None else layer, Path(path))

    def view(
        self,
        *,
        mask: Literal["label"] | None = "label",
        window: str = "bone",
        level: int | None = None,
        height_px: int = 600,
    ) -> "ScanView":
        """Show the stored scan in a notebook, as :meth:`spinezarr.Store.view` does.

        That is the whole scan, even if the dataset is a part of it.

        Parameters
        ----------
        mask, window, level, height_px
            As in :meth:`spinezarr.Store.view`.

        Raises
        ------
        UsageError
            If the dataset does not know its store, or as in :meth:`spinezarr.Store.view`.
        """
        from spinezarr.accessor.origin import opened_store  # noqa: PLC0415  imports the engine

        DatasetGrid.of(self._dataset)
        store, scan_id = opened_store(self._dataset)
        return store.view(scan_id, mask=mask, window=window, level=level, height_px=height_px)
