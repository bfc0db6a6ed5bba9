"""How does one scan get into a store: open, check, orient, shard, encode, publish?"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import fsspec
import numpy as np

from spinezarr.errors import FormatError, LabelError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.merged import MergedLabels
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.rounding import Rounding
from spinezarr.formats.segments import SegmentedLabels
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import Volume, open_volume
from spinezarr.geometry import (
    SHEAR_TOLERANCE_DEG,
    Grid,
    affine_rows,
    oblique_angle_deg,
    shear_deg,
)
from spinezarr.ingestion.discovery.annotations import (
    SIDECAR_NOTE,
    AnnotatedCentroids,
    CompanionFiles,
    annotated_centroids,
)
from spinezarr.ingestion.discovery.discover import ScanSource
from spinezarr.ingestion.label_file import LabelFiles, open_label
from spinezarr.ingestion.labels import label_chunks, label_summaries
from spinezarr.ingestion.pseudonyms import Pseudonyms
from spinezarr.ingestion.voxel_writer import ScanProgress, VoxelWriter
from spinezarr.ingestion.voxels.align import aligned_label_grid
from spinezarr.ingestion.voxels.chunks import (
    HU_DTYPE,
    DoesNotFitError,
    ImageEncoder,
    ImageFacts,
    LabelEncoder,
    LabelFacts,
    stored_labels,
)
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.nifti_geometry import is_default_affine
from spinezarr.recipe import Recipe
from spinezarr.resources import package_version
from spinezarr.scaling import Scaling
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.table import ERRATUM_APPLIED
from spinezarr.store.writer import StoreWriter
from spinezarr.text import count_noun
from spinezarr.vertebrae import BACKGROUND, NAME_OF_VALUE

__all__ = [
    "ScanOptions",
    "absent_parts_note",
    "descriptive_metadata",
    "distances_mm",
    "grid_on_image",
    "image_summary",
    "ingest_scan",
    "label_files",
    "label_notes",
    "label_rounding",
    "label_summary",
    "naming_label",
    "open_image",
    "source_key",
    "source_record",
]

_OBLIQUE_NOTE_DEG: Final = 0.1
"""Largest obliqueness without a note.

Above it, coordinates along the axes are wrong by more than one voxel in 512.
"""
_OUTSIDE_NOTE: Final = "mask values outside the label scheme: "
_ABSENT_NOTE: Final = "parts of the mask that are absent, so their voxels are background: "
_CORRECTED_NOTE: Final = "labels corrected by a list of errata: "
_MAX_PARTS_SHOWN: Final = 40
"""Largest number of absent parts that a note names. A whole spine has 26 vertebrae."""


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """The user's choices, which apply to all scans of an ingest."""

    take_image_grid: bool = False
    """Whether a mask takes the affine of its image if both have the same shape."""
    pseudonyms: Pseudonyms | None = None
    """Pseudonyms that replace file names. The ids of the scans must have been replaced before."""
    limits: Limits = DEFAULT_LIMITS
    """Upper limits on source files."""
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    """Memory that the ingest of one scan may use."""
    scratch: str | None = None
    """Folder for scratch files.

    By default, the folder of a local store, or the system's temporary folder for a store elsewhere.
    """


def ingest_scan(
    source: ScanSource,
    recipe: Recipe,
    fs: fsspec.AbstractFileSystem,
    root: str,
    store: StoreWriter,
    *,
    companions: CompanionFiles,
    pool: Executor,
    options: ScanOptions,
    on_share: Callable[[float], None],
) -> ScanAttributes:
    """Read one scan's files and publish it in the store.

    Parameters
    ----------
    source
        Files of the scan.
    recipe
        Recipe of the dataset.
    fs, root
        File system and path of the raw folder. The paths of ``source`` are relative to it.
    store
        Store that receives the scan.
    companions
        Content of the small files that accompany the image.
    pool
        Threads that encode chunks.
    options
        The user's choices.
    on_share
        Called with each further share of the scan that is done (0 to 1).

    Returns
    -------
    ScanAttributes
        Attributes of the scan as published.

    Raises
    ------
    FormatError, GridMismatchError, LabelError
        If a file cannot be ingested; the store is then as it was before.
    """
    image = open_image(fs, root, source, options.limits)
    files = label_files(source)
    label = None if files is None else open_label(fs, root, files, image.grid, options.limits)
    notes = [*image.notes]
    # Grids are compared before any voxel is decompressed.
    label_grid = None
    if label is not None:
        label_grid, grid_notes = grid_on_image(
            image.grid,
            label,
            image_path=source.image,
            label_path=_label_path(source),
            take_image_grid=options.take_image_grid,
        )
        notes += grid_notes
    centroids = annotated_centroids(source, companions.centroids, image.grid)
    writer = store.scans.start(source.scan_id)
    shapes = [image.grid.shape_ijk] if label is None else [image.grid.shape_ijk] * 2
    voxel_writer = VoxelWriter(
        writer,
        pool,
        ScanProgress(shapes, on_share),
        options.memory,
        options.scratch or store.local_folder,
    )
    try:
        # Mask and image are read at the same time, so that the encoding threads have work while
        # one of them starts or ends.
        with ThreadPoolExecutor(1, thread_name_prefix="spinezarr-mask") as mask_thread:
            try:
                label_job = None
                if label is not None and label_grid is not None:
                    label_job = mask_thread.submit(
                        _write_label, source, label, label_grid, centroids, voxel_writer
                    )
                image_file, image_facts = _write_image(image, voxel_writer, notes)
                label_result = None if label_job is None else voxel_writer.wait_for(label_job)
            except BaseException:
                voxel_writer.progress.stop()
                raise
        facts = {
            **_geometry(image.grid, notes),
            **image_facts,
            "source_bytes": source.size_bytes,
            "source_key": source_key(source, companions),
            "image_source": {
                **source_record(source.image, image, image_file, image.grid),
                "series": None if source.series is None else source.series.key,
            },
            "centroid_source": _centroid_record(source),
            "written_by": f"spinezarr {package_version()}",
        }
        counts = None
        correction = ""
        if label is None or label_grid is None or label_result is None:
            facts |= {"vertebrae": {}, "other_labels": {}}
            facts |= {"centroids": centroids.records({}), "label_source": None}
        else:
            label_facts, centroids = label_result.facts, label_result.centroids
            counts = label_chunks(label_facts)
            facts |= label_summary(label_facts)
            facts["centroids"] = centroids.records(distances_mm(label_facts))
            facts["label_source"] = {
                **source_record(_label_path(source), label, label.source_file(), label_grid),
                "parts": tuple((part.value, part.path) for part in source.label_parts),
                "values": label_result.values,
                "segments": source.label_segments,
                "rounded_voxels": label_result.rounding.voxels,
            }
            notes += label_notes(label, label_facts, label_result.rounding)
            notes += label_result.notes
            correction = label_result.correction
        notes += centroids.notes(facts["centroids"])
        facts |= descriptive_metadata(
            source, recipe, companions, facts["other_labels"], notes, correction=correction
        )
        if options.pseudonyms is not None:
            facts = options.pseudonyms.facts(facts, source.scan_id)
        return writer.publish(facts, counts)
    except BaseException:
        writer.discard()
        raise


def descriptive_metadata(
    source: ScanSource,
    recipe: Recipe,
    companions: CompanionFiles,
    other_labels: Iterable[str],
    notes: Iterable[str],
    *,
    correction: str = "",
) -> dict[str, Any]:
    """Return the metadata of a scan that do not depend on its voxels.

    They come from recipe, splits, tables and sidecar.

    Parameters
    ----------
    source
        Files of the scan, and its facts from recipe and tables.
    recipe
        Recipe of the dataset.
    companions
        Content of the small files that accompany the image.
    other_labels
        Mask values that are no vertebrae.
    notes
        Notes so far. New notes of the same kinds replace earlier ones.
    correction
        What a list of errata has changed in the mask; empty if it was not applied.
    """
    structures = {
        value: name for value, name in recipe.labels.structures.items() if value in other_labels
    }
    unknown_values = [value for value in other_labels if value not in structures]
    new_notes = [f"{_OUTSIDE_NOTE}{', '.join(unknown_values)}"] if unknown_values else []
    if source.absent_parts:
        new_notes.append(absent_parts_note(source.absent_parts, len(source.label_parts)))
    if correction:
        new_notes.append(f"{_CORRECTED_NOTE}{correction}")
    replaced_kinds = (SIDECAR_NOTE, _OUTSIDE_NOTE, _ABSENT_NOTE, _CORRECTED_NOTE)
    voxel_notes = (note for note in notes if not note.startswith(replaced_kinds))
    return {
        "dataset": recipe.name,
        "scan_id": source.scan_id,
        "patient_id": source.patient_id,
        "source": source.source,
        "split": source.split,
        "split_index": source.split_index,
        "license": source.license or recipe.license,
        "citation": recipe.citation,
        "label_state": source.label_state if source.has_mask else "none",
        "columns": {**source.columns, **({ERRATUM_APPLIED: correction} if correction else {})},
        "sidecar": companions.sidecar,
        "structures": structures,
        "notes": (*voxel_notes, *companions.notes, *new_notes),
    }


def absent_parts_note(absent: Sequence[str], n_present: int) -> str:
    """Return the remark that some structures of a mask have no file although others have one."""
    names = ", ".join(absent[:_MAX_PARTS_SHOWN])
    more = len(absent) - _MAX_PARTS_SHOWN
    return (
        f"{_ABSENT_NOTE}{names}{f' and {more} more' if more > 0 else ''} ({len(absent)} of "
        f"{len(absent) + n_present})"
    )


def source_key(source: ScanSource, companions: CompanionFiles) -> str:
    """Return a hash of the paths and options with which a scan is read, without its voxels."""
    centroids_hash = (
        None if companions.centroids is None else hashlib.sha256(companions.centroids).hexdigest()
    )
    parts = [(part.value, part.path) for part in source.label_parts]
    image = source.image if source.series is None else (source.image, source.series.key)
    files = [image, source.label, parts, source.label_values]
    segments = [source.label_segments] if source.label_segments else []
    errata = [] if source.correction is None else [canonical_json(source.correction)]
    earlier = [] if source.earlier_values is None else [canonical_json(source.earlier_values)]
    key = json.dumps(
        [
            *files,
            *segments,
            *errata,
            *earlier,
            source.centroids,
            source.centroid_convention,
            centroids_hash,
        ]
    )
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def open_image(
    fs: fsspec.AbstractFileSystem, root: str, source: ScanSource, limits: Limits = DEFAULT_LIMITS
) -> Volume:
    """Open the image of a scan: a file, a folder, or one series of a folder.

    Raises
    ------
    FormatError
        If the image cannot be read, or if the files of its series lie in several folders.
    """
    path, series = f"{root}/{source.image}", source.series
    if series is None:
        return open_volume(fs, path, limits)
    if series.folders:
        raise FormatError(
            f"{source.image}: files of its {series.name} lie in {len(series.folders)} folders: "
            f"{', '.join(series.folders)}; expected one. Put the files of the series into one "
            "folder, or remove those that occur twice."
        )
    names = [file.rsplit("/", 1)[-1] for file in series.files]
    return DicomSeriesVolume.open(fs, path, limits, files=names, series=series.key)


def label_files(source: ScanSource) -> LabelFiles | None:
    """Return the files of the mask of a scan; None without a mask."""
    if not source.has_mask:
        return None
    parts = [(part.value, part.path) for part in source.label_parts]
    return LabelFiles.of(source.label, parts, source.label_values, source.label_segments)


def _label_path(source: ScanSource) -> str:
    """Return the path of the mask, or the folder of its first part if it is in parts."""
    files = label_files(source)
    return "" if files is None else files.file


@dataclass(frozen=True, slots=True)
class _LabelResult:
    """What is known of a mask that was encoded."""

    facts: list[LabelFacts]
    """Facts about its chunks."""
    rounding: Rounding
    """Count of its rounded values."""
    values: tuple[tuple[int, int], ...]
    """Pairs of value in the file and stored value; empty if values are stored as they are."""
    centroids: AnnotatedCentroids
    """Annotated centroids, named as the stored labels are."""
    correction: str = ""
    """What a list of errata has changed, and who says so; empty if it was not applied."""
    notes: tuple[str, ...] = ()
    """Remarks on the values of the file for the user."""


def grid_on_image(
    image: Grid, label: Volume, *, image_path: str, label_path: str, take_image_grid: bool
) -> tuple[Grid, list[str]]:
    """Check that a mask lies on the grid of its image; see :func:`aligned_label_grid`.

    Returns
    -------
    grid
        Grid whose axis directions determine the order of the stored axes.
    notes
        Remarks on the file and its grid for the user.
    """
    grid = aligned_label_grid(
        image,
        label.grid,
        image_path=image_path,
        label_path=label_path,
        take_image_grid=take_image_grid,
    )
    notes = [f"mask: {note}" for note in label.notes]
    if grid is image:
        notes.append("the mask was given the affine of the image (--take-image-grid)")
    return grid, notes


def _write_image(
    image: Volume, voxel_writer: VoxelWriter, notes: list[str]
) -> tuple[SourceFile, dict[str, Any]]:
    """Encode the image as int16. If a value does not fit, encode it in the type of the file."""

    def encode(
        volume: Volume, dtype: np.dtype[Any], scaling: Scaling | None = None
    ) -> tuple[SourceFile, list[ImageFacts]]:
        encoder = ImageEncoder(voxel_writer.writer.profile, dtype, scaling)
        facts = voxel_writer.encode(IMAGE, volume, image.grid, encoder, on_voxels)
        return volume.source_file(), facts

    on_voxels = voxel_writer.progress.count_and_report
    value_dtype = stored_dtype = HU_DTYPE
    scaling = None
    try:
        file, facts = encode(image, HU_DTYPE)
    except DoesNotFitError as problem:
        value_dtype = image.dtype
        numbers, scaling = _unscaled_if_narrower(image)
        stored_dtype = numbers.dtype
        storage = f"kept as {value_dtype}"
        if scaling is not None:
            storage = (
                f"stored as the file's {stored_dtype} with its slope {scaling.slope:g} and "
                f"intercept {scaling.intercept:g}"
            )
        notes.append(
            f"the image was {storage}, because it holds {problem.value:g}, which int16 cannot hold"
        )
        file, facts = encode(numbers, stored_dtype, scaling)
    summary = image_summary(facts)
    nan, infinite = summary["image_nan_voxels"], summary["image_infinite_voxels"]
    if nan or infinite:
        notes.append(
            f"the image has {nan} NaN and {infinite} infinite voxels; streams refuse the scan "
            "unless 'nonfinite' says what replaces them"
        )
    return file, {
        "image_dtype": value_dtype.name,
        "image_stored_dtype": stored_dtype.name,
        "image_scaling": None if scaling is None else (scaling.slope, scaling.intercept),
        **summary,
    }


def _unscaled_if_narrower(image: Volume) -> tuple[Volume, Scaling | None]:
    """Return the numbers of the file and their scaling, if they are narrower than the values.

    Otherwise, return the image itself and None.
    """
    scaling = image.scaling
    if scaling is not None:
        numbers = image.unscaled()
        is_narrower = numbers.dtype.itemsize < image.dtype.itemsize
        if is_narrower and scaling.is_finite_for(numbers.dtype):
            return numbers, scaling
    return image, None


def _write_label(
    source: ScanSource,
    label: Volume,
    grid: Grid,
    centroids: AnnotatedCentroids,
    voxel_writer: VoxelWriter,
) -> _LabelResult:
    values, correction = source.label_values, ""
    notes: tuple[str, ...] = ()
    # In both cases, the mask is read twice, because all of its values are known only at its end.
    with naming_label(label, _label_path(source)):
        if source.earlier_values is not None:
            found = _label_heights(label, grid, (), voxel_writer)
            values = source.earlier_values.stored_values(found)
            notes = _earlier_notes(values, found)
        if source.correction is not None:
            heights = _label_heights(label, grid, values, voxel_writer)
            heights.pop(BACKGROUND, None)
            new_values = source.correction.new_values(heights)
            correction = source.correction.describe(new_values)
            if new_values:
                kept = values or tuple((value, value) for value in heights)
                values = tuple((value, new_values.get(old, old)) for value, old in kept)
            centroids = centroids.renamed(new_values)
        encoder = LabelEncoder(
            voxel_writer.writer.profile,
            values=values,
            centroid_zyx=centroids.index_by_value(),
            spacing_zyx_mm=grid.spacing_zyx_mm,
        )
        facts = voxel_writer.encode(LABEL, label, grid, encoder, voxel_writer.progress.count)
    rounding = label_rounding(label, encoder)
    return _LabelResult(facts, rounding, values, centroids, correction, notes)


def _earlier_notes(values: tuple[tuple[int, int], ...], found: Collection[int]) -> tuple[str, ...]:
    """Return the remark that a mask had the values of an earlier version of the dataset."""
    pairs = [
        f"{value} became {NAME_OF_VALUE.get(new, str(new))}"
        for value, new in values
        if value in found
    ]
    if not pairs:
        return ()
    return (f"the mask has the values of an earlier version of the dataset: {', '.join(pairs)}",)


def _label_heights(
    label: Volume, grid: Grid, values: tuple[tuple[int, int], ...], voxel_writer: VoxelWriter
) -> dict[int, float]:
    """Read a mask to its end, and return the mean index of each value along z, also of 0."""
    axis_map = grid.axis_map
    boxes = axis_map.slab_boxes(grid.shape_zyx, voxel_writer.writer.profile.chunk_shape_zyx)
    axis = axis_map.source_axis_zyx.index(2)
    counts, sums = np.zeros((2, np.iinfo(np.uint8).max + 1), np.int64)
    slabs = label.slabs([box.shape_zyx[axis] for box in boxes])
    # With strict, one more slab is requested, so the volume checks its file to the end.
    for box, slab in zip(boxes, slabs, strict=True):
        voxel_writer.progress.count(0)
        labels, _ = stored_labels(axis_map.to_zyx(slab), values)
        for z, plane in enumerate(labels, start=box.start_zyx[0]):
            in_plane = np.bincount(plane.ravel(), minlength=len(counts))
            counts += in_plane
            sums += in_plane * z
    return {value: float(sums[value] / counts[value]) for value in np.flatnonzero(counts).tolist()}


@contextmanager
def naming_label(label: Volume, path: str) -> Iterator[None]:
    """Let the errors about the values of a mask name its file."""
    try:
        yield
    except LabelError as problem:
        if isinstance(label, MergedLabels | SegmentedLabels):  # its errors name the refused file
            raise
        raise LabelError(f"{path}: {problem}") from problem


def label_rounding(label: Volume, encoder: LabelEncoder) -> Rounding:
    """Return the count of rounded values of a mask that was encoded."""
    return label.rounding if isinstance(label, MergedLabels) else encoder.rounding


def distances_mm(facts: Iterable[LabelFacts]) -> dict[int, float]:
    """Return the distance from each annotated centroid to its label in mm, by value."""
    nearest: dict[int, float] = {}
    for label in (label for fact in facts for label in fact.labels):
        if label.centroid_distance_mm is not None:
            nearest_so_far = nearest.get(label.value, label.centroid_distance_mm)
            nearest[label.value] = min(nearest_so_far, label.centroid_distance_mm)
    return nearest


def label_notes(
    label: Volume, facts: Iterable[LabelFacts], rounding: Rounding, named_by: str = "recipe"
) -> list[str]:
    """Return remarks for the user on values of a mask that are not stored as the file has them.

    ``named_by`` says what names the labels.
    """
    notes = []
    if rounding.voxels:
        notes.append(
            f"{rounding.voxels} mask voxels differed from whole numbers by at most "
            f"{rounding.largest:.1e}, and were rounded"
        )
    dropped: Counter[int] = Counter()
    for fact in facts:
        dropped.update(dict(fact.dropped))
    if dropped:
        values = ", ".join(map(str, sorted(dropped)))
        notes.append(
            f"{dropped.total()} mask voxels became background, because the {named_by} names no "
            f"label for their values: {values}"
        )
    if isinstance(label, MergedLabels | SegmentedLabels) and label.overlap_voxels:
        noun = "mask" if isinstance(label, MergedLabels) else "segment"
        notes.append(
            f"{count_noun(label.overlap_voxels, 'voxel')} in two {noun}s at once got the label of "
            f"the {noun} that the {named_by} names later"
        )
    return notes


def _centroid_record(source: ScanSource) -> dict[str, Any] | None:
    if source.centroids is None:
        return None
    return {"file": source.centroids, "size_bytes": source.centroid_bytes}


def _geometry(grid: Grid, notes: list[str]) -> dict[str, Any]:
    angle, shear = oblique_angle_deg(grid.affine_ijk), shear_deg(grid.affine_ijk)
    if is_default_affine(grid.affine_ijk):
        notes.append(
            "the affine is the identity (voxels of 1 mm, the first at the origin), which programs "
            "write for an array without a known position"
        )
    if shear > SHEAR_TOLERANCE_DEG:
        notes.append(
            f"the voxel axes are sheared, {shear:.1f} degrees off perpendicular: the coordinates "
            "z, y, x run along these axes, and only the affine gives true positions"
        )
    elif angle > _OBLIQUE_NOTE_DEG:
        notes.append(
            f"the voxel axes are {angle:.1f} degrees oblique: the coordinates z, y, x run along "
            "these axes, and only the affine gives true positions"
        )
    return {
        "affine": affine_rows(grid.affine_xyz),
        "shape_zyx": grid.shape_zyx,
        "spacing_zyx_mm": grid.spacing_zyx_mm,
        "oblique_deg": angle,
    }


def source_record(path: str, volume: Volume, file: SourceFile, grid: Grid) -> dict[str, Any]:
    """Describe a source file that was read to its end, with the axis directions of ``grid``."""
    nifti = volume if isinstance(volume, NiftiVolume) else None
    metaimage = volume if isinstance(volume, MetaImageVolume) else None
    scaling = volume.scaling
    return {
        "file": path,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "dtype": volume.dtype.name,
        "shape_ijk": volume.grid.shape_ijk,
        "affine_ijk": affine_rows(volume.grid.affine_ijk),
        "orientation": grid.axis_map.axcodes,
        "stored_dtype": (nifti.stored_dtype if nifti else volume.dtype).str,
        "scaling": (scaling.slope, scaling.intercept) if nifti and scaling else None,
        "nifti": asdict(nifti.header_fields) if nifti else None,
        "metaimage": asdict(metaimage.geometry) if metaimage else None,
    }


def image_summary(facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Return the attributes that sum up the voxels of an image."""
    checksums = np.array([fact.checksum for fact in facts], "<u4")
    lowest, highest = min(fact.lowest for fact in facts), max(fact.highest for fact in facts)
    return {
        "image_range_hu": (lowest, highest) if lowest <= highest else None,
        "image_checksum": hashlib.sha256(checksums.tobytes()).hexdigest()[:32],
        "image_nan_voxels": sum(fact.nan_voxels for fact in facts),
        "image_infinite_voxels": sum(fact.infinite_voxels for fact in facts),
    }


def label_summary(facts: Iterable[LabelFacts]) -> dict[str, Any]:
    """Return the attributes that sum up the labels of a mask."""
    vertebrae: dict[str, Any] = {}
    other_labels: dict[str, int] = {}
    for value, summary in label_summaries(facts).items():
        if value in NAME_OF_VALUE:
            vertebrae[NAME_OF_VALUE[value]] = summary.to_record()
        else:
            other_labels[str(value)] = summary.voxel_count
    return {"vertebrae": vertebrae, "other_labels": other_labels}
