"""What do the rules need to know about the voxels of a scan?

Voxels are read label by label, so that memory stays bounded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt

from spinezarr.audit.audited_mask import AuditedMask
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.engine import Engine
from spinezarr.vertebrae import MULTI_SEGMENT_LEVELS

__all__ = ["BoneSample", "Component", "VoxelMeasurements", "connected_components", "measure_voxels"]

_CONNECTIVITY: Final = 26
"""Connectivity of components: voxels that share a corner are connected."""

_SURROUNDINGS_MM: Final = 6.0
"""Width of the surroundings of a vertebra: muscle, fat, discs, spinal canal and little bone."""

_MAX_BONE_BOX_VOXELS: Final = 192
"""Largest number of voxels read along each axis for a bone sample.

They extend over 36 mm at VerSe's finest spacing, 0.19 mm.
"""

_MAX_COMPARED_VOXELS: Final = 50_000
"""Largest number of voxels that are compared. More would not change the second digit."""


@dataclass(frozen=True, slots=True)
class Component:
    """One connected component of a label."""

    voxel_count: int
    box: Box
    voxel_zyx: ShapeZYX
    """Voxel of the component that is nearest to its mean position."""


@dataclass(frozen=True, slots=True)
class BoneSample:
    """CT numbers inside and around the largest vertebra of a scan."""

    vertebra: str
    median_hu: float
    voxel_count: int
    """Number of voxels of the vertebra that were read."""
    brighter_share: float | None
    """Share of pairs in which a voxel of the vertebra is brighter than one around it.

    It is a half for a mask at a random position. None if all voxels around are labeled.
    """
    voxel_zyx: ShapeZYX


@dataclass(frozen=True, slots=True)
class VoxelMeasurements:
    """The measurements of one scan."""

    components: dict[str, tuple[Component, ...]]
    """Components of each labeled vertebra, the largest first."""
    unknown_values: dict[int, ShapeZYX]
    """A voxel of each value that is neither a vertebra nor a named structure."""
    bone: BoneSample | None
    """None if the mask has no vertebra, or the image has no finite value there."""


def measure_voxels(
    engine: Engine, scan: ScanHandle, mask: AuditedMask, label_chunks: npt.NDArray[np.uint32]
) -> VoxelMeasurements:
    """Measure the labels of a mask, and the image at one vertebra.

    Parameters
    ----------
    engine
        Engine that reads the voxels.
    scan
        The scan.
    mask
        The mask. Nothing is read if the scan does not have it.
    label_chunks
        Result of :meth:`spinezarr.store.reader.StoreReader.label_chunks` for the mask.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged.
    """
    if mask.array is None:
        return VoxelMeasurements({}, {}, None)
    components: dict[str, tuple[Component, ...]] = {}
    unknown_values: dict[int, ShapeZYX] = {}
    for value in np.unique(label_chunks[:, 0]).tolist():
        rows = label_chunks[label_chunks[:, 0] == value]
        if value in mask.vertebra_of_value:
            label_components = sorted(
                _components_of_label(engine, mask.array, value, rows[:, 1:4]),
                key=lambda component: (-component.voxel_count, component.voxel_zyx),
            )
            if not label_components:
                raise scan.wrong_label_count(value)
            components[mask.vertebra_of_value[value]] = tuple(label_components)
        elif str(value) not in mask.facts.structures:
            unknown_values[value] = _example_voxel(engine, scan, mask.array, rows)
    value_of = {name: value for value, name in mask.vertebra_of_value.items()}
    bone = _bone_sample(engine, scan, mask.array, components, value_of)
    return VoxelMeasurements(components, unknown_values, bone)


def connected_components(inside: npt.NDArray[np.bool_], start_zyx: ShapeZYX) -> Iterator[Component]:
    """Yield the connected components of a mask ``(z, y, x)`` whose first voxel is ``start_zyx``.

    Examples
    --------
    >>> mask = np.array([[[1, 1, 0, 1]]], bool)
    >>> [component.voxel_zyx for component in connected_components(mask, (5, 0, 0))]
    [(5, 0, 0), (5, 0, 3)]
    """
    numbers = _number_components(inside)
    statistics = cc3d.statistics(numbers)
    counts = statistics["voxel_counts"].tolist()
    for number, slices in enumerate(statistics["bounding_boxes"]):
        if number == 0:  # background
            continue
        indices_zyx = np.argwhere(numbers[slices] == number)
        offsets_zyx = indices_zyx - indices_zyx.mean(axis=0)
        nearest = indices_zyx[np.einsum("ij,ij->i", offsets_zyx, offsets_zyx).argmin()]
        corner = _index(s.start + first for s, first in zip(slices, start_zyx, strict=True))
        shape = _index(s.stop - s.start for s in slices)
        voxel = _index(n + first for n, first in zip(nearest.tolist(), corner, strict=True))
        yield Component(counts[number], Box.at(corner, shape), voxel)


def _number_components(inside: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return the number of each voxel's connected component, from 1; 0 outside the mask.

    The mask is passed as uint8, because cc3d 4.1.1 raises on some boolean masks, such as
    ``[[[1, 0, 1]]]``.
    """
    return cc3d.connected_components(inside.view(np.uint8), connectivity=_CONNECTIVITY)


def _components_of_label(
    engine: Engine, label: ArraySpec, value: int, chunks_zyx: npt.NDArray[np.uint32]
) -> Iterator[Component]:
    """Yield the connected components of a label.

    Groups of chunks that do not touch are read separately, so that a distant voxel does not extend
    the box over the whole volume.
    """
    grid = np.zeros(chunks_zyx.max(axis=0) + 1, np.bool_)
    grid[tuple(chunks_zyx.T)] = True
    clusters = _number_components(grid)
    for cluster in range(1, int(clusters.max()) + 1):
        box = _box_of_chunks(label, np.argwhere(clusters == cluster))
        voxels = np.empty(box.shape_zyx, np.uint8)
        engine.read_into(label, box, voxels)
        for component in connected_components(voxels == value, box.start_zyx):
            # The box may overlap chunks of another cluster.
            in_chunks = zip(component.voxel_zyx, label.chunk_shape_zyx, strict=True)
            chunk = _index(n // c for n, c in in_chunks)
            if clusters[chunk] == cluster:
                yield component


def _box_of_chunks(label: ArraySpec, chunks_zyx: npt.NDArray[np.int_]) -> Box:
    start = chunks_zyx.min(axis=0) * label.chunk_shape_zyx
    stop = np.minimum((chunks_zyx.max(axis=0) + 1) * label.chunk_shape_zyx, label.shape_zyx)
    return Box(_index(start.tolist()), _index(stop.tolist()))


def _example_voxel(
    engine: Engine, scan: ScanHandle, label: ArraySpec, rows: npt.NDArray[np.uint32]
) -> ShapeZYX:
    """Return a voxel of a label from the chunk that holds most of it."""
    value, *chunk, _ = rows[rows[:, 4].argmax()].tolist()
    box = _box_of_chunks(label, np.array([chunk]))
    voxels = np.empty(box.shape_zyx, np.uint8)
    engine.read_into(label, box, voxels)
    components = [*connected_components(voxels == value, box.start_zyx)]
    if not components:
        raise scan.wrong_label_count(value)
    return max(components, key=lambda component: component.voxel_count).voxel_zyx


def _bone_sample(
    engine: Engine,
    scan: ScanHandle,
    label: ArraySpec,
    components: Mapping[str, tuple[Component, ...]],
    value_of: Mapping[str, int],
) -> BoneSample | None:
    """Measure the image inside and around the largest vertebra."""
    vertebrae = {
        name: label_components[0]
        for name, label_components in components.items()
        if name not in MULTI_SEGMENT_LEVELS
    }
    if not vertebrae:
        return None
    name = max(vertebrae, key=lambda name: vertebrae[name].voxel_count)
    component = vertebrae[name]
    reach_zyx = [max(2, round(_SURROUNDINGS_MM / mm)) for mm in scan.attributes.spacing_zyx_mm]
    box = _box_around(component, np.array(reach_zyx) + 1, label.shape_zyx)
    image, labeled = np.empty(box.shape_zyx, scan.image.dtype), np.empty(box.shape_zyx, np.uint8)
    engine.read_into(scan.image, box, image)
    engine.read_into(label, box, labeled)
    inside = labeled == value_of[name]
    # Voxels at the border contain bone and other tissue, so they are left out.
    around = _dilate(inside, reach_zyx) & ~_dilate(labeled > 0, (1, 1, 1))
    bone, others = (values[np.isfinite(values)] for values in (image[inside], image[around]))
    if not bone.size:
        return None
    return BoneSample(
        vertebra=name,
        median_hu=float(np.median(bone)),
        voxel_count=bone.size,
        brighter_share=_brighter_share(bone, others) if others.size else None,
        voxel_zyx=component.voxel_zyx,
    )


def _box_around(component: Component, margin_zyx: npt.NDArray[np.int_], shape_zyx: ShapeZYX) -> Box:
    """Return the box of a component with its surroundings; for a large one, only its middle."""
    middle = np.array(component.voxel_zyx)
    start = np.maximum(component.box.start_zyx - margin_zyx, middle - _MAX_BONE_BOX_VOXELS // 2)
    stop = np.minimum(component.box.stop_zyx + margin_zyx, middle + _MAX_BONE_BOX_VOXELS // 2)
    volume = Box((0, 0, 0), shape_zyx)
    return volume.intersect(Box(_index(start.tolist()), _index(stop.tolist()))) or volume


def _dilate(mask: npt.NDArray[np.bool_], reach_zyx: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Grow a mask ``(z, y, x)`` by ``reach_zyx`` voxels along each axis, including corners.

    Examples
    --------
    >>> _dilate(np.array([[[1, 0, 0, 0, 0, 0, 1]]], bool), (0, 0, 2)).astype(int)
    array([[[1, 1, 1, 0, 1, 1, 1]]])
    """
    grown = mask.copy()
    for axis, reach in enumerate(reach_zyx):
        swapped = grown.swapaxes(0, axis)
        grown_voxels = 0
        while grown_voxels < reach:
            # A mask that has grown by n can be shifted by n + 1 without leaving a gap.
            step = min(grown_voxels + 1, reach - grown_voxels)
            previous = swapped.copy()
            swapped[step:] |= previous[:-step]
            swapped[:-step] |= previous[step:]
            grown_voxels += step
    return grown


def _brighter_share(inside: npt.NDArray[Any], around: npt.NDArray[Any]) -> float:
    """Return the share of pairs in which ``inside`` is above ``around``; equal values count half.

    Examples
    --------
    >>> _brighter_share(np.array([5, 7, 9]), np.array([1, 7]))
    0.75
    """
    sample, others = (
        values[:: 1 + values.size // _MAX_COMPARED_VOXELS] for values in (inside, around)
    )
    others = np.sort(others)
    ranks = np.searchsorted(others, sample) + np.searchsorted(others, sample, side="right")
    return float(ranks.mean() / 2 / others.size)


def _index(values: Sequence[int] | Iterator[int]) -> ShapeZYX:
    z, y, x = values
    return (int(z), int(y), int(x))
