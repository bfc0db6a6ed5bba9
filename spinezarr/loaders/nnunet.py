"""How does nnU-Net v2 train from a store, without preprocessed copies?

nnU-Net requests the arrays of a case from a dataset class, and takes a patch from them [1]_. The
arrays of :class:`StoreDataset` are computed when they are sliced: the voxels around the patch are
read from the store, and normalized and resampled as nnU-Net's preprocessing does for whole
volumes [2]_.

References
----------
.. [1] ``nnunetv2/training/dataloading/nnunet_dataset.py`` and ``data_loader.py``, nnU-Net 2.8
.. [2] ``nnunetv2/preprocessing/preprocessors/default_preprocessor.py`` and
   ``preprocessing/resampling/default_resampling.py``
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from spinezarr.errors import FormatError, UsageError
from spinezarr.export.atomic_file import write_atomically
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.geometry import AxisMap, Box
from spinezarr.store.attributes import SourceRecord
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.draw.voxel_finder import StoredVoxelFinder
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.stream.read.nonfinite import (
    Nonfinite,
    fill_nonfinite,
    nonfinite_fill,
    refuse_nonfinite,
)
from spinezarr.text import to_ascii_json

__all__ = ["StoreDataset", "link_store"]

Array = npt.NDArray[Any]
Span = tuple[int, int]
"""First voxel, and one past the last, along an axis."""

_LINK: Final = "store.spinezarr"
"""File that replaces the cases in a folder of preprocessed cases."""
_SEPARATE_RATIO: Final = 3.0
"""Ratio of spacings above which nnU-Net resamples the coarse axis separately
(``ANISO_THRESHOLD``)."""
_RESAMPLING: Final = "resample_data_or_seg_to_shape"
_NORMALIZATION: Final = "CTNormalization"
_SPLINE_REACH: Final = 16
"""Number of voxels around a crop that its values depend on.

The weight of a voxel in a cubic spline decreases by 0.27 with each voxel of distance.
"""
_LEAST_STD: Final = 1e-8
"""Smallest divisor, as in nnU-Net. It prevents a division by 0."""


@dataclass(frozen=True, slots=True)
class _Preprocessing:
    """The preprocessing of a configuration of the plans. Axes are in the order of the network."""

    transpose: tuple[int, ...]
    """Stored axis (0, 1, 2 for z, y, x) of each axis of the network."""
    spacing_mm: tuple[float, ...]
    """Spacing to resample to; 2D configurations leave out the first axis."""
    image_order: int
    """Order of the splines for images."""
    label_order: int
    """Order of the splines for labels."""
    separate: bool | None
    """Whether to resample the coarsest axis separately.

    With None, this is done if the ratio of spacings is above 3."""
    lowest: float
    """Lower end to which values are clipped."""
    highest: float
    """Upper end to which values are clipped."""
    mean: float
    """Mean of the values, which is subtracted."""
    std: float
    """Standard deviation of the values, by which they are divided."""

    @classmethod
    def of_plans(cls, plans: dict[str, Any], configuration: str) -> Self:
        """Read a configuration of ``nnUNetPlans.json``.

        Raises
        ------
        UsageError
            If it preprocesses in a way that cannot be done for patches.
        """
        settings = plans["configurations"][configuration]
        image, label = settings["resampling_fn_data_kwargs"], settings["resampling_fn_seg_kwargs"]
        intensities = plans["foreground_intensity_properties_per_channel"]["0"]
        unknown = [
            *({settings["resampling_fn_data"], settings["resampling_fn_seg"]} - {_RESAMPLING}),
            *(set(settings["normalization_schemes"]) - {_NORMALIZATION}),
            *(f"order_z {options['order_z']}" for options in (image, label) if options["order_z"]),
        ]
        if unknown or any(settings["use_mask_for_norm"]):
            raise UsageError(
                f"configuration {configuration!r} of the plans preprocesses by "
                f"{', '.join(unknown) or 'a mask'}; from a store, only {_RESAMPLING} and "
                f"{_NORMALIZATION} can be done. Preprocess it with nnU-Net."
            )
        return cls(
            tuple(plans["transpose_forward"]),
            tuple(settings["spacing"]),
            image["order"],
            label["order"],
            image["force_separate_z"],
            intensities["percentile_00_5"],
            intensities["percentile_99_5"],
            intensities["mean"],
            intensities["std"],
        )

    def normalized(self, values: Array) -> npt.NDArray[np.float32]:
        """Return values as ``CTNormalization`` returns them."""
        image = np.clip(values.astype(np.float32), self.lowest, self.highest)
        image -= self.mean
        image /= max(self.std, _LEAST_STD)
        return image

    def target_mm(self, spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
        """Return the spacing after resampling; 2D configurations keep the first axis."""
        missing = len(spacing_mm) - len(self.spacing_mm)
        return (*spacing_mm[:missing], *self.spacing_mm)

    def coarse_axis(self, spacing_mm: tuple[float, ...]) -> int | None:
        """Return the axis along which voxels are repeated and not interpolated, or None."""
        if self.separate is False:
            return None
        candidates = (spacing_mm, self.target_mm(spacing_mm))
        for spacing in candidates:
            if self.separate or max(spacing) / min(spacing) > _SEPARATE_RATIO:
                coarsest = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
                return coarsest[0] if len(coarsest) == 1 else None
        return None


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a resampled array."""

    n: int
    """Number of stored voxels."""
    n_out: int
    """Number of voxels after resampling."""

    @property
    def scale(self) -> float:
        """Number of stored voxels for each voxel."""
        return self.n / self.n_out

    def position(self, index: int) -> float:
        """Return the position of a voxel in stored voxels.

        The ends of the volumes coincide, and not the centers of the first voxels.
        """
        return self.scale * (index + 0.5) - 0.5

    def needed(self, span: Span, reach: int) -> Span:
        """Return the span of stored voxels that a span of resampled voxels depends on."""
        first, last = self.position(span[0]), self.position(span[1] - 1)
        low, high = int(np.floor(first)) - reach, int(np.ceil(last)) + reach + 1
        return min(max(low, 0), self.n - 1), max(min(high, self.n), 1)

    def nearest(self, span: Span) -> npt.NDArray[np.intp]:
        """Return the stored voxel nearest to each voxel of a span."""
        positions = np.floor(self.scale * (np.arange(*span) + 0.5))
        indices: npt.NDArray[np.intp] = np.clip(positions, 0, self.n - 1).astype(np.intp)
        return indices


@dataclass(frozen=True, slots=True)
class _Grid:
    """The relation of a resampled array to the stored one. Axes are in the order of the network."""

    transpose: tuple[int, ...]
    """Stored axis (0, 1, 2 for z, y, x) of each axis of the network."""
    axes: tuple[_Axis, ...]
    coarse: int | None
    """Axis along which voxels are repeated; None if all are interpolated."""

    @classmethod
    def of(cls, scan: ScanHandle, preprocessing: _Preprocessing) -> Self:
        """Return the grid to which nnU-Net's preprocessing resamples a scan."""
        spacing_zyx = _spacing_zyx_mm(scan)
        spacing = tuple(spacing_zyx[axis] for axis in preprocessing.transpose)
        stored = [scan.image.shape_zyx[axis] for axis in preprocessing.transpose]
        target = preprocessing.target_mm(spacing)
        axes = tuple(
            _Axis(n, round(mm / target_spacing * n))
            for n, mm, target_spacing in zip(stored, spacing, target, strict=True)
        )
        return cls(preprocessing.transpose, axes, preprocessing.coarse_axis(spacing))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the resampled array."""
        return tuple(axis.n_out for axis in self.axes)

    @property
    def is_unresampled(self) -> bool:
        """Whether the resampled array is the stored one."""
        return all(axis.n == axis.n_out for axis in self.axes)

    def block(self, spans: Sequence[Span], order: int) -> "_Block":
        """Return a block of the resampled array, which splines of ``order`` interpolate."""
        reaches = [
            0
            if self.is_unresampled
            else (_SPLINE_REACH if order > 1 and axis != self.coarse else 1)
            for axis in range(3)
        ]
        needed = tuple(
            axis.needed(span, reach)
            for axis, span, reach in zip(self.axes, spans, reaches, strict=True)
        )
        return _Block(self, tuple(spans), needed)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a resampled array."""

    grid: _Grid
    spans: tuple[Span, ...]
    """Voxels of the block along each axis."""
    needed: tuple[Span, ...]
    """Stored voxels that it depends on, along each axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        return tuple(stop - start for start, stop in self.spans)

    def read(self, engine: Engine, spec: ArraySpec, fill: float | None = None) -> Array:
        """Read the stored voxels that the block depends on; ``fill`` replaces NaN and infinity."""
        low, high = [0, 0, 0], [0, 0, 0]
        for axis, (start, stop) in zip(self.grid.transpose, self.needed, strict=True):
            low[axis], high[axis] = start, stop
        box = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        stored = np.empty(box.shape_zyx, spec.dtype)
        engine.read_into(spec, box, stored)
        fill_nonfinite(stored, fill)
        return stored.transpose(self.grid.transpose)

    def nearest(self, axis: int) -> npt.NDArray[np.intp]:
        """Return the nearest stored voxel of each voxel along an axis, from the first needed on."""
        return self.grid.axes[axis].nearest(self.spans[axis]) - self.needed[axis][0]

    def with_whole_planes(self) -> "_Block":
        """Return the same block with all stored voxels of its planes across the coarse axis."""
        needed = tuple(
            span if axis == self.grid.coarse else (0, self.grid.axes[axis].n)
            for axis, span in enumerate(self.needed)
        )
        return _Block(self.grid, self.spans, needed)

    def resized(self, values: Array, order: int) -> Array:
        """Return this block of a volume that is resized as by ``skimage.transform.resize``.

        Parameters
        ----------
        values
            Stored voxels that the block depends on, as :meth:`read` returns them.
        order
            Order of the splines.
        """
        for axis, (n, (start, stop)) in enumerate(zip(self.grid.axes, self.needed, strict=True)):
            if axis == self.grid.coarse:
                values = values.take(self.nearest(axis), axis)
            else:
                first, last = self.spans[axis]
                weights = _weights(
                    n.scale, n.position(first) - start, last - first, stop - start, order
                )
                values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
        return values


@lru_cache(256)
def _weights(
    scale: float, offset: float, n_out: int, n: int, order: int
) -> npt.NDArray[np.float64]:
    """Return the matrix ``(n_out, n)`` of interpolation by splines along an axis.

    Interpolation by splines is separable and linear. So three small matrices do all of it, with the
    prefilter and the edges, and multiplying is faster than evaluating the splines.
    """
    columns = [
        ndimage.affine_transform(unit, [scale], offset, (n_out,), order=order, mode="nearest")
        for unit in np.eye(n)
    ]
    return np.stack(columns, axis=1)


class _LazyArray:
    """An array ``(1, a, b, c)`` that is computed when it is sliced.

    Parameters
    ----------
    shape
        Shape without the channel, ``(a, b, c)``.
    dtype
        Dtype of the values.
    compute
        Returns a block, without the channel, given its spans.
    """

    ndim = 4

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        compute: Callable[[list[Span]], Array],
    ) -> None:
        self.shape = (1, *shape)
        self.dtype = np.dtype(dtype)
        self._compute = compute

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        """Compute a block ``(1, a, b, c)``. Slices must have no steps."""
        indices = index if isinstance(index, tuple) else (index,)
        all_indices = (*indices, *[slice(None)] * (self.ndim - len(indices)))
        spans: list[Span] = []
        for item, n in zip(all_indices, self.shape, strict=True):
            start, stop, step = item.indices(n)
            if step != 1:
                raise UsageError(f"{item}: slices of a case must have no steps.")
            spans.append((start, max(start, stop)))
        shape = tuple(stop - start for start, stop in spans)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        return self._compute(spans[1:])[None]


@dataclass(frozen=True, slots=True)
class _Locations:
    """Positions ``(channel, a, b, c)`` of the voxels of one label. Each is found on request."""

    reader: StoreReader
    engine: Engine
    scan_id: str
    value: int
    """Stored value of the label."""
    voxels: int
    """Number of voxels of the label."""
    grid: _Grid
    mask: str
    """Mask of the label."""

    def __len__(self) -> int:
        """Return the number of stored voxels."""
        return self.voxels

    def __getitem__(self, k: int) -> npt.NDArray[np.int64]:
        """Return the position of voxel ``k`` after resampling."""
        finder = StoredVoxelFinder(self.reader, self.engine)
        voxels, rank = finder.chunk_voxels_of_label(self.scan_id, self.value, k, self.mask)
        zyx = voxels[rank]
        position = [0]
        for stored_axis, axis in zip(self.grid.transpose, self.grid.axes, strict=True):
            position.append(int((zyx[stored_axis] + 0.5) / axis.scale))
        return np.array(position)


class StoreDataset:
    """Cases of a store, with the interface of nnU-Net's ``nnUNetBaseDataset``.

    nnU-Net uses this class if it is registered for files that end in ``.spinezarr``.

    Parameters
    ----------
    folder
        Folder of a configuration, in which :func:`link_store` wrote a link to the store.
    identifiers
        Names of the cases; None for all cases.
    folder_with_segs_from_previous_stage
        Must be None, as cascades need preprocessed data.

    Raises
    ------
    UsageError
        If the plans preprocess in a way that cannot be done for patches, or if the store has
        labels to ignore.
    """

    def __init__(
        self,
        folder: str,
        identifiers: list[str] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
    ) -> None:
        if folder_with_segs_from_previous_stage is not None:
            raise UsageError(
                "a cascade needs preprocessed cases, because a network that is trained from a "
                "store has no previous stage."
            )
        self.source_folder = folder
        self.folder_with_segs_from_previous_stage = None
        self.identifiers = sorted(
            self.get_identifiers(folder) if identifiers is None else identifiers
        )
        link = _read_json(Path(folder) / _LINK)
        plans = _read_json(Path(folder).parent / f"{link['plans']}.json")
        dataset = _read_json(Path(folder).parent / "dataset.json")
        if "ignore" in dataset["labels"]:
            raise UsageError(
                f"{folder}: the store has labels to ignore, which need preprocessing by nnU-Net."
            )
        self._preprocessing = _Preprocessing.of_plans(plans, link["configuration"])
        self._stored = {int(n): int(value) for n, value in dataset["stored_labels"].items()}
        self._mask = dataset.get("stored_mask", LABEL)
        self._numbers = np.zeros(256, np.int16)
        self._numbers[list(self._stored.values())] = list(self._stored)
        self._reader = StoreReader(link["store"])
        self._engine = Engine(fetcher_for(self._reader.objects))
        self._nonfinite: Nonfinite = link["nonfinite"]

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Return the names of all cases."""
        cases: list[str] = _read_json(Path(folder) / _LINK)["cases"]
        return cases

    @staticmethod
    def unpack_dataset(*_: object, **__: object) -> None:
        """Do nothing, as there is nothing to unpack."""

    def __getitem__(self, identifier: str) -> tuple[_LazyArray, _LazyArray, None, dict[str, Any]]:
        """Return the arrays and properties of a case; see :meth:`load_case`."""
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[_LazyArray, _LazyArray, None, dict[str, Any]]:
        """Return the image, the mask, None, and the properties of a case. No voxel is read yet.

        Returns
        -------
        tuple
            Image float32 and mask int16, both ``(1, a, b, c)``, in the axes, spacing and
            intensities of the plans. They are computed when they are sliced. Then None, as there is
            no previous stage, and a dict with the properties that nnU-Net's preprocessing saves,
            such as ``class_locations``.

        Raises
        ------
        UnknownScanError, UnknownMaskError
            If the store has no such scan, or the scan lacks the mask.
        CorruptStoreError
            When sliced, if stored bytes are missing or damaged.
        """
        scan = self._reader.scan(identifier)
        grid = _Grid.of(scan, self._preprocessing)
        mask = self._reader.listed_mask(identifier, self._mask)
        image = _LazyArray(grid.shape, np.float32, lambda spans: self._image(scan, grid, spans))
        label = _LazyArray(grid.shape, np.int16, lambda spans: self._label(mask, grid, spans))
        return image, label, None, self._properties(scan, grid)

    def _image(self, scan: ScanHandle, grid: _Grid, spans: list[Span]) -> Array:
        order = self._preprocessing.image_order
        block = grid.block(spans, order)
        fill = nonfinite_fill(self._nonfinite, scan.attributes)
        image = self._preprocessing.normalized(block.read(self._engine, scan.image, fill))
        if grid.is_unresampled:
            return image
        resized = np.clip(block.resized(image, order), *self._value_range(scan, block))
        return resized.astype(np.float32)

    def _value_range(self, scan: ScanHandle, block: _Block) -> tuple[Array, Array]:
        """Return the lowest and highest value, to which a resized image is clipped.

        They are those of the stored image or, with a coarse axis, those of each plane.
        """
        coarse = block.grid.coarse
        fill = nonfinite_fill(self._nonfinite, scan.attributes)
        if coarse is None:
            values = [*(scan.attributes.image_range_hu or ()), *([] if fill is None else [fill])]
            ends = [min(values, default=0.0), max(values, default=0.0)]
            low, high = self._preprocessing.normalized(np.array(ends))
            return low, high
        planes = block.with_whole_planes().read(self._engine, scan.image, fill)
        fine = tuple(axis for axis in range(3) if axis != coarse)
        low, high = (
            self._preprocessing.normalized(extreme(planes, fine, keepdims=True)).take(
                block.nearest(coarse), coarse
            )
            for extreme in (np.min, np.max)
        )
        return low, high

    def _label(self, spec: ArraySpec, grid: _Grid, spans: list[Span]) -> Array:
        """Resample each label separately, and return the label with the best score at each voxel.

        If scores are equal, the nearest stored label is returned.
        """
        order = self._preprocessing.label_order
        block = grid.block(spans, order)
        numbers: Array = self._numbers[block.read(self._engine, spec)]
        if grid.is_unresampled:
            return numbers
        nearest = numbers[np.ix_(*map(block.nearest, range(3)))]
        best_score, nearest_score = np.full((2, *block.shape), -np.inf)
        result = np.empty(block.shape, np.int16)
        for number in np.unique(numbers).tolist():
            score = block.resized(numbers == number, order)
            result[score > best_score] = number
            np.maximum(best_score, score, out=best_score)
            is_nearest = nearest == number
            nearest_score[is_nearest] = score[is_nearest]
        result[nearest_score == best_score] = nearest[nearest_score == best_score]
        return result

    def _properties(self, scan: ScanHandle, grid: _Grid) -> dict[str, Any]:
        """Return the properties that the default preprocessor saves and that the export needs."""
        facts = scan.attributes
        shape = tuple(axis.n for axis in grid.axes)
        return {
            "spacing": list(_spacing_zyx_mm(scan)),
            "shape_before_cropping": shape,
            "bbox_used_for_cropping": [[0, n] for n in shape],
            "shape_after_cropping_and_before_resampling": shape,
            "nibabel_stuff": {
                "original_affine": np.array(facts.image_source.affine_ijk),
                "reoriented_affine": scan.affine,
            },
            "class_locations": dict(self._locations(scan, grid)),
        }

    def _locations(self, scan: ScanHandle, grid: _Grid) -> Iterator[tuple[int, _Locations]]:
        scan_id = scan.attributes.scan_id
        chunk_counts = self._reader.label_chunks(scan_id, self._mask)
        for number, value in self._stored.items():
            voxels = int(chunk_counts[chunk_counts[:, 0] == value, 4].sum())
            yield (
                number,
                _Locations(self._reader, self._engine, scan_id, value, voxels, grid, self._mask),
            )


def link_store(
    store: str,
    raw: str | Path,
    preprocessed: str | Path,
    *,
    plans: str = "nnUNetPlans",
    nonfinite: Nonfinite = "refuse",
) -> list[Path]:
    """Link a store to an nnU-Net dataset, in place of preprocessed cases.

    Parameters
    ----------
    store
        Path or URL of the store.
    raw
        ``$nnUNet_raw/Dataset501_NAME``, as ``spinezarr export nnunet`` wrote it.
    preprocessed
        ``$nnUNet_preprocessed/Dataset501_NAME``, where ``nnUNetv2_plan_and_preprocess --no_pp``
        left its plans.
    plans
        Name of the plans.
    nonfinite
        As in :meth:`spinezarr.Store.patches`.

    Returns
    -------
    list of pathlib.Path
        The folder of each configuration that can be trained from the store.

    Raises
    ------
    UsageError
        If there are no plans, a configuration is preprocessed already, or scans hold voxels that
        are NaN or infinite.
    """
    raw, preprocessed = Path(raw), Path(preprocessed)
    all_plans = _read_json(preprocessed / f"{plans}.json")
    ending = _read_json(raw / "dataset.json")["file_ending"]
    masks = sorted((raw / "labelsTr").glob(f"*{ending}"))
    cases = [mask.name.removesuffix(ending) for mask in masks]
    reader = StoreReader(store)
    is_linked = np.isin(reader.columns["scan"].astype(str), cases)
    refuse_nonfinite(reader.columns.take(np.flatnonzero(is_linked)), nonfinite, reader.name)
    ground_truth = preprocessed / "gt_segmentations"
    ground_truth.mkdir(exist_ok=True)
    for mask in masks:
        if not (ground_truth / mask.name).exists():
            with mask.open("rb") as source, write_atomically(ground_truth / mask.name) as file:
                shutil.copyfileobj(source, file)
    folders = []
    for name, configuration in all_plans["configurations"].items():
        if "data_identifier" not in configuration or configuration.get("previous_stage"):
            continue
        _Preprocessing.of_plans(all_plans, name)
        folder = preprocessed / configuration["data_identifier"]
        folder.mkdir(exist_ok=True)
        other_file = next((path for path in folder.iterdir() if path.name != _LINK), None)
        if other_file is not None:
            raise UsageError(
                f"{other_file}: this configuration is preprocessed already. Remove its files to "
                "train from the store."
            )
        link = {
            "store": str(store) if "://" in str(store) else str(Path(store).resolve()),
            "plans": plans,
            "configuration": name,
            "cases": cases,
            "nonfinite": nonfinite,
        }
        with write_atomically(folder / _LINK) as file:
            file.write(f"{to_ascii_json(link)}\n".encode())
        folders.append(folder)
    return folders


@lru_cache(4096)
def _spacing_of(source: SourceRecord) -> tuple[float, ...]:
    header = NiftiPlacement.portable(source).header(source.shape_ijk)
    if source.orientation == "RAS":
        lengths = list(map(float, header.get_zooms()))
    else:
        affine = header.get_best_affine()
        lengths = np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32).tolist()
    return tuple(lengths[axis] for axis in AxisMap.from_axcodes(source.orientation).source_axis_zyx)


def _spacing_zyx_mm(scan: ScanHandle) -> tuple[float, ...]:
    """Return the spacing in float32, as nnU-Net reads it from the exported file.

    nnU-Net uses the spacing of the header. If it reorients the image, it uses that of the affine.
    """
    return _spacing_of(scan.attributes.image_source)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as problem:
        raise UsageError(
            f"{path}: there is no such file. Run 'spinezarr export nnunet', then "
            "'nnUNetv2_plan_and_preprocess --no_pp', then spinezarr.loaders.nnunet.link_store."
        ) from problem
    except ValueError as problem:
        raise FormatError(f"{path}: is not valid JSON ({problem}). Write it again.") from problem
    return content
