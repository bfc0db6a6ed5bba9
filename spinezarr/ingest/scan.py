"""One scan: open, check, orient, shard, encode, publish."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError
from spinezarr.formats import MergedLabels, Volume, open_volume
from spinezarr.geometry import AxisMap, Grid, ShapeZYX, oblique_angle_deg
from spinezarr.ingest.align import aligned_label_grid
from spinezarr.ingest.annotations import (
    SIDECAR_NOTE,
    AnnotatedCentroids,
    BesideImage,
    annotated_centroids,
)
from spinezarr.ingest.chunks import (
    HU_DTYPE,
    DoesNotFitError,
    ImageEncoder,
    ImageFacts,
    LabelEncoder,
    LabelFacts,
    LabelInChunk,
)
from spinezarr.ingest.discover import ScanSource
from spinezarr.ingest.encode import ChunkEncoder, Facts, encode_volume
from spinezarr.ingest.pseudonyms import Pseudonyms
from spinezarr.recipe import Recipe
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.writer import ScanWriter, StoreWriter
from spinezarr.vertebrae import NAME_OF_VALUE

__all__ = ["ScanOptions", "ingest_scan", "open_label", "said_of", "source_key"]

_OBLIQUE_NOTE_DEG: Final = 0.1
"""Angle from which coordinates along the axes mislead by more than a voxel over 512 voxels."""
_OUTSIDE_NOTE: Final = "mask values outside the label scheme: "


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What a user may choose for the scans of an ingest."""

    take_image_grid: bool = False
    """Give a mask the affine of its image where both have the same shape."""
    pseudonyms: Pseudonyms | None = None
    """What hides names of files; the scans must be under their pseudonyms already."""


def ingest_scan(
    source: ScanSource,
    recipe: Recipe,
    fs: fsspec.AbstractFileSystem,
    root: str,
    store: StoreWriter,
    *,
    beside: BesideImage,
    pool: Executor,
    options: ScanOptions,
    on_share: Callable[[float], None],
) -> ScanAttributes:
    """Read one scan's files and publish it in the store.

    Parameters
    ----------
    source
        Its files.
    recipe
        What they mean.
    fs, root
        Folder that the paths are relative to.
    store
        Where to write.
    beside
        The small files beside the image.
    pool
        Threads that encode chunks.
    options
        The user's choices.
    on_share
        Called with each further share of the scan that is done, for progress.

    Returns
    -------
    ScanAttributes
        What was published.

    Raises
    ------
    FormatError, GridMismatchError, LabelError
        If a file cannot be ingested; the store is then as it was before.
    """
    image = open_volume(fs, f"{root}/{source.image}")
    label = open_label(fs, root, source)
    notes = [*image.notes]
    # Grids are compared before any voxel is inflated.
    label_grid = None if label is None else _label_grid(source, image, label, options, notes)
    centroids = annotated_centroids(source, beside.centroids, image.grid)
    voxels_to_read = math.prod(image.grid.shape_ijk) * (1 if label is None else 2)
    writer = store.new_scan(source.scan_id)
    work = _Work(writer, pool, lambda voxels: on_share(voxels / voxels_to_read))
    try:
        facts = {
            **_geometry(image.grid, notes),
            **_write_image(image, work, notes),
            "source_bytes": source.size_bytes,
            "source_key": source_key(source, beside),
            "image_source": _source_record(source.image, image),
            "centroid_source": _centroid_record(source),
            "written_by": f"spinezarr {version('spinezarr')}",
        }
        label_chunks = None
        if label is None or label_grid is None:
            facts |= {"vertebrae": {}, "other_labels": {}}
            facts |= {"centroids": centroids.records({}), "label_source": None}
        else:
            label_facts = _write_label(source, label, label_grid, centroids, work)
            label_chunks = _label_chunks(label_facts)
            facts |= _label_summary(label_facts)
            facts["centroids"] = centroids.records(_distances_mm(label_facts))
            facts["label_source"] = _source_record(_label_path(source), label)
            notes += _label_notes(label, label_facts)
        notes += centroids.notes(facts["centroids"])
        facts |= said_of(source, recipe, beside, facts["other_labels"], notes)
        if options.pseudonyms is not None:
            facts = options.pseudonyms.facts(facts, source.scan_id)
        return writer.publish(facts, label_chunks)
    except BaseException:
        writer.discard()
        raise


def said_of(
    source: ScanSource,
    recipe: Recipe,
    beside: BesideImage,
    other_labels: Iterable[str],
    notes: Iterable[str],
) -> dict[str, Any]:
    """Return what recipe, splits, tables and sidecar say of a scan, which no voxel depends on.

    Parameters
    ----------
    source
        Its files, and what the recipe knows of it.
    recipe
        Of the dataset.
    beside
        The small files beside the image.
    other_labels
        Values in its mask that are no vertebrae.
    notes
        What is known of it so far; what was said so before is replaced.
    """
    structures = {
        value: name for value, name in recipe.labels.structures.items() if value in other_labels
    }
    outside = [value for value in other_labels if value not in structures]
    said = [f"{_OUTSIDE_NOTE}{', '.join(outside)}"] if outside else []
    read = (note for note in notes if not note.startswith((SIDECAR_NOTE, _OUTSIDE_NOTE)))
    return {
        "dataset": recipe.name,
        "scan_id": source.scan_id,
        "patient_id": source.patient_id,
        "source": source.source,
        "split": source.split,
        "split_index": source.split_index,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "label_state": source.label_state if source.has_mask else "none",
        "columns": source.columns,
        "sidecar": beside.sidecar,
        "structures": structures,
        "notes": (*read, *beside.notes, *said),
    }


def source_key(source: ScanSource, beside: BesideImage) -> str:
    """Return a hash of which files a scan is read from and how; not of their voxels."""
    points = None if beside.centroids is None else hashlib.sha256(beside.centroids).hexdigest()
    parts = [(part.value, part.path) for part in source.label_parts]
    files = [source.image, source.label, parts, source.label_values]
    key = json.dumps([*files, source.centroids, source.centroid_convention, points])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def open_label(fs: fsspec.AbstractFileSystem, root: str, source: ScanSource) -> Volume | None:
    """Open the mask of a scan, whether one file or one a structure; None if it has none."""
    if source.label_parts:
        return MergedLabels(
            [(part.value, open_volume(fs, f"{root}/{part.path}")) for part in source.label_parts],
            [part.path for part in source.label_parts],
        )
    return None if source.label is None else open_volume(fs, f"{root}/{source.label}")


def _label_path(source: ScanSource) -> str:
    """Path of the mask; of one in parts, the folder of the first."""
    if source.label_parts:
        return source.label_parts[0].path.rpartition("/")[0] + "/"
    return source.label or ""


@dataclass(frozen=True, slots=True)
class _Work:
    """Where the voxels of one scan go."""

    writer: ScanWriter
    pool: Executor
    on_voxels: Callable[[int], None]

    def encode(
        self, array: str, volume: Volume, grid: Grid, encoder: ChunkEncoder[Facts]
    ) -> list[Facts]:
        """Encode a volume into the shards of ``array``; what is undone leaves the progress."""
        done = 0

        def count(voxels: int) -> None:
            nonlocal done
            done += voxels
            self.on_voxels(voxels)

        def write(shard_zyx: ShapeZYX, data: bytes) -> None:
            self.writer.write_shard(array, shard_zyx, data)

        try:
            return encode_volume(
                volume,
                grid,
                encoder,
                profile=self.writer.profile,
                write_shard=write,
                pool=self.pool,
                on_voxels=count,
            )
        except DoesNotFitError:
            self.on_voxels(-done)
            raise


def _label_grid(
    source: ScanSource, image: Volume, label: Volume, options: ScanOptions, notes: list[str]
) -> Grid:
    grid = aligned_label_grid(
        image.grid,
        label.grid,
        image_path=source.image,
        label_path=_label_path(source),
        take_image_grid=options.take_image_grid,
    )
    notes += label.notes
    if grid is image.grid:
        notes.append("the mask has the image's affine, as --take-image-grid asks")
    return grid


def _write_image(image: Volume, work: _Work, notes: list[str]) -> dict[str, Any]:
    """Encode as int16, and start again in the file's own type if a value does not fit."""
    dtype = HU_DTYPE
    try:
        facts = work.encode(IMAGE, image, image.grid, ImageEncoder(work.writer.profile, dtype))
    except DoesNotFitError as problem:
        notes.append(f"image kept as {image.dtype}: it holds {problem.value:g}, which int16 cannot")
        dtype = image.dtype
        facts = work.encode(IMAGE, image, image.grid, ImageEncoder(work.writer.profile, dtype))
    return {"image_dtype": dtype.name, **_image_summary(facts)}


def _write_label(
    source: ScanSource, label: Volume, grid: Grid, centroids: AnnotatedCentroids, work: _Work
) -> list[LabelFacts]:
    encoder = LabelEncoder(
        work.writer.profile,
        values=source.label_values,
        centroid_zyx=centroids.index_by_value(),
        spacing_zyx_mm=grid.spacing_zyx_mm,
    )
    try:
        return work.encode(LABEL, label, grid, encoder)
    except LabelError as problem:
        raise LabelError(f"{_label_path(source)}: {problem}") from problem


def _distances_mm(facts: Iterable[LabelFacts]) -> dict[int, float]:
    """Distance from each annotated centroid to its label, by value."""
    nearest: dict[int, float] = {}
    for found in (found for fact in facts for found in fact.labels):
        if found.centroid_distance_mm is not None:
            known = nearest.get(found.value, found.centroid_distance_mm)
            nearest[found.value] = min(known, found.centroid_distance_mm)
    return nearest


def _label_notes(label: Volume, facts: Iterable[LabelFacts]) -> list[str]:
    notes = []
    dropped: Counter[int] = Counter()
    for fact in facts:
        dropped.update(dict(fact.dropped))
    if dropped:
        values = ", ".join(map(str, sorted(dropped)))
        notes.append(
            f"{dropped.total()} mask voxels became background, as the recipe names no label for "
            f"their values: {values}"
        )
    if isinstance(label, MergedLabels) and label.overlap_voxels:
        notes.append(
            f"{label.overlap_voxels} voxels lie in two masks; the one that the recipe names later "
            "has them"
        )
    return notes


def _centroid_record(source: ScanSource) -> dict[str, Any] | None:
    if source.centroids is None:
        return None
    return {"file": source.centroids, "size_bytes": source.centroid_bytes}


def _geometry(grid: Grid, notes: list[str]) -> dict[str, Any]:
    angle = oblique_angle_deg(grid.affine)
    if angle > _OBLIQUE_NOTE_DEG:
        notes.append(
            f"the voxel axes are {angle:.1f} degrees oblique: the coordinates z, y, x run along "
            "them, the affine gives true positions"
        )
    return {
        "affine": _rows(grid.affine_xyz),
        "shape_zyx": grid.shape_zyx,
        "spacing_zyx_mm": grid.spacing_zyx_mm,
        "oblique_deg": angle,
    }


def _rows(matrix: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _source_record(path: str, volume: Volume) -> dict[str, Any]:
    file = volume.source_file()
    return {
        "file": path,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "dtype": volume.dtype.name,
        "shape_ijk": volume.grid.shape_ijk,
        "affine_ijk": _rows(volume.grid.affine),
        "orientation": AxisMap.of_affine(volume.grid.affine).axcodes,
    }


def _image_summary(facts: Sequence[ImageFacts]) -> dict[str, Any]:
    checksums = np.array([fact.checksum for fact in facts], "<u4")
    lowest, highest = min(fact.lowest for fact in facts), max(fact.highest for fact in facts)
    return {
        "image_range_hu": (lowest, highest) if lowest <= highest else None,
        "image_checksum": hashlib.sha256(checksums.tobytes()).hexdigest()[:32],
    }


def _label_chunks(facts: Iterable[LabelFacts]) -> npt.NDArray[np.uint32]:
    """Tabulate label, chunk index z, y, x and voxel count, ordered by label, then chunk."""
    rows = sorted(
        (found.value, *fact.chunk_zyx, found.voxel_count) for fact in facts for found in fact.labels
    )
    return np.array(rows, np.uint32).reshape(len(rows), 5)


def _label_summary(facts: Iterable[LabelFacts]) -> dict[str, Any]:
    by_value: dict[int, list[LabelInChunk]] = {}
    for fact in facts:
        for found in fact.labels:
            by_value.setdefault(found.value, []).append(found)
    vertebrae: dict[str, Any] = {}
    other: dict[str, int] = {}
    for value, parts in sorted(by_value.items()):
        count = sum(part.voxel_count for part in parts)
        if value not in NAME_OF_VALUE:
            other[str(value)] = count
            continue
        total = np.sum([part.index_sum_zyx for part in parts], axis=0)
        start = np.min([part.start_zyx for part in parts], axis=0)
        stop = np.max([part.stop_zyx for part in parts], axis=0)
        vertebrae[NAME_OF_VALUE[value]] = {
            "voxel_count": count,
            "centroid_zyx": tuple((total / count).tolist()),
            "start_zyx": tuple(start.tolist()),
            "stop_zyx": tuple(stop.tolist()),
        }
    return {"vertebrae": vertebrae, "other_labels": other}
