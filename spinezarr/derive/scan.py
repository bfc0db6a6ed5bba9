"""How does one stored scan become a scan of a derived store?"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from spinezarr.derive.derived_array import DerivedArray
from spinezarr.derive.grid import DerivedGrid
from spinezarr.derive.parameters import Derivation
from spinezarr.derive.sampling import (
    LabelwiseSampling,
    PlainSampling,
    Sampling,
    WindowedSampling,
    image_sampling,
)
from spinezarr.formats.array_volume import ArrayVolume
from spinezarr.geometry import affine_rows
from spinezarr.ingestion.labels import label_chunks, label_summaries
from spinezarr.ingestion.scan import distances_mm, image_summary, label_summary
from spinezarr.ingestion.voxel_writer import ScanProgress, VoxelWriter
from spinezarr.ingestion.voxels.chunks import ImageEncoder, LabelEncoder, LabelFacts
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.resources import package_version
from spinezarr.scaling import VALUE_DTYPE
from spinezarr.store.attributes import ATTRIBUTES_OF_ANY_GRID, CentroidRecord, ScanAttributes
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.layout import IMAGE, LABEL, scan_key
from spinezarr.store.records import MaskRecord
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.store.scan_writer import NewMask, ScanWriter
from spinezarr.store.writer import StoreWriter
from spinezarr.stream.read.engine import Engine
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["ScanOrigin", "derive_scan", "derived_metadata", "is_current"]

_VERSION: Final = 1
"""Version of deriving; it rises when the same source and options give other voxels."""
_MASK_BLOCK_BYTES: Final = 32 << 20
"""Bytes of memory for one block of planes of a mask, which is computed beside the image."""
_LOST_NOTE: Final = "labels without a voxel on the new grid: "
_CENTROIDS_NOTE: Final = "annotated centroids outside of the new grid were left out: "


@dataclass(frozen=True, slots=True, eq=False)
class ScanOrigin:
    """The scan that a derived scan is made from, and how."""

    store: str
    """Path or URL of its store, without secrets."""
    scan: ScanHandle
    masks: tuple[str, ...]
    """Names of the further masks that are carried over; the scan has them."""
    derivation: Derivation
    grid: DerivedGrid

    @classmethod
    def of(
        cls, store: str, scan: ScanHandle, masks: Iterable[str], derivation: Derivation
    ) -> "ScanOrigin":
        """Return the origin; raise UsageError as :meth:`.DerivedGrid.of`."""
        return cls(
            store, scan, tuple(masks), derivation, DerivedGrid.of(scan.attributes, derivation)
        )

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Arrays of the source that are read."""
        return (*self.scan.arrays, *(self.scan.masks[name] for name in self.masks))

    @property
    def key(self) -> str:
        """Hash of the voxels and files of the source, and of the way in which it is derived."""
        source = self.scan.attributes.source_key
        text = canonical_json((_VERSION, source, self.scan.content_checksum, self.derivation))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def record(self) -> dict[str, Any]:
        """Fields of the :class:`~spinezarr.store.records.DerivationRecord`."""
        derivation = self.derivation
        return {
            "store": self.store,
            "scan_id": self.scan.attributes.scan_id,
            "content_checksum": self.scan.content_checksum,
            "mask_checksums": {name: self.scan.masks[name].content_checksum for name in self.masks},
            "spacing_zyx_mm": derivation.target_zyx_mm,
            "image_filter": derivation.image_filter,
            "mask_interpolation": derivation.mask_interpolation,
            "crop": derivation.crop,
            "margin_mm": derivation.margin_mm,
            "start_zyx": self.grid.start_zyx,
            "window_hu": derivation.window_hu,
        }


def derive_scan(
    origin: ScanOrigin,
    engine: Engine,
    store: StoreWriter,
    *,
    replaced_masks: Iterable[str],
    pool: Executor,
    memory: MemoryBudget,
    scratch: str | None,
    on_share: Callable[[float], None],
) -> ScanAttributes:
    """Compute the voxels of a derived scan slab by slab, and publish it with its masks at once.

    Parameters
    ----------
    origin
        The source, and how the scan is made from it.
    engine
        Reads the source.
    store
        Store that receives the scan.
    replaced_masks
        Names of further masks that an earlier version carried over. Those that the source no longer
        has are removed.
    pool
        Threads that encode chunks.
    memory
        Memory that encoding may use.
    scratch
        Folder for scratch files.
    on_share
        Called with each further share of the scan that is done (0 to 1).

    Returns
    -------
    ScanAttributes
        Attributes of the scan as published.

    Raises
    ------
    CorruptStoreError
        If voxels of the source are damaged; the derived store is then as it was before.
    """
    writer = store.scans.start(
        origin.scan.attributes.scan_id, sorted({*origin.masks, *replaced_masks})
    )
    progress = ScanProgress([origin.grid.shape_zyx] * len(origin.arrays), on_share)
    voxels = VoxelWriter(writer, pool, progress, memory, scratch)
    work = _Work(origin, engine, writer, voxels)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="spinezarr-mask") as mask_thread:
            try:
                mask_job = mask_thread.submit(work.write_masks)
                image_facts = work.write_image()
                facts_of_masks = voxels.wait_for(mask_job)
            except BaseException:
                progress.stop()
                raise
        label_facts = facts_of_masks.pop(LABEL, None)
        masks = {
            name: NewMask(_mask_record(origin, name, facts), label_chunks(facts))
            for name, facts in facts_of_masks.items()
        }
        metadata = _voxel_metadata(origin, label_facts) | image_facts
        metadata |= _source_metadata(origin, image_facts)
        metadata |= derived_metadata(origin, metadata)
        counts = None if label_facts is None else label_chunks(label_facts)
        return writer.publish(metadata, counts, masks)
    except BaseException:
        writer.discard()
        raise


def derived_metadata(origin: ScanOrigin, voxel_metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a derived scan that do not depend on its voxels.

    Parameters
    ----------
    origin
        The source, and how the scan is made from it.
    voxel_metadata
        Metadata that depend on voxels: ``vertebrae`` and ``other_labels``.
    """
    source = origin.scan.attributes
    present = voxel_metadata["other_labels"]
    lost = [name for name in source.vertebrae if name not in voxel_metadata["vertebrae"]]
    lost += [value for value in source.other_labels if value not in present]
    kept = _kept_centroids(origin)
    left_out = [name for name in source.centroids if name not in kept]
    notes = [*source.notes]
    notes += [f"{_LOST_NOTE}{', '.join(lost)}"] if lost else []
    notes += [f"{_CENTROIDS_NOTE}{', '.join(left_out)}"] if left_out else []
    return {
        **{name: getattr(source, name) for name in (*ATTRIBUTES_OF_ANY_GRID, "centroid_source")},
        "structures": {
            value: name for value, name in source.structures.items() if value in present
        },
        "notes": tuple(notes),
        "derived_from": origin.record,
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Encodes the arrays of one scan."""

    origin: ScanOrigin
    engine: Engine
    writer: ScanWriter
    voxels: VoxelWriter

    def write_image(self) -> dict[str, Any]:
        """Encode the image, and return the attributes that describe its values."""
        origin, source = self.origin, self.origin.scan.attributes
        array, scaling = origin.scan.image, None
        window = origin.derivation.window_hu
        if origin.derivation.target_zyx_mm is None and window is None:
            # The numbers of the source are kept, with their scaling.
            array, scaling = array.unscaled(), array.scaling
        antialias = origin.derivation.image_filter is not None
        sampling = image_sampling(self.engine, array, origin.grid.step_zyx, antialias=antialias)
        value_dtype: str = source.image_dtype
        if window is not None:
            sampling = WindowedSampling(sampling, window)
            scaling, value_dtype = sampling.scaling, VALUE_DTYPE.name
        volume = ArrayVolume(DerivedArray(sampling, origin.grid), sampling.dtype)
        encoder = ImageEncoder(self.writer.profile, sampling.dtype, scaling)
        on_voxels = self.voxels.progress.count_and_report
        facts = self.voxels.encode(IMAGE, volume, volume.grid, encoder, on_voxels)
        return {
            "image_dtype": value_dtype,
            "image_stored_dtype": sampling.dtype.name,
            "image_scaling": None if scaling is None else (scaling.slope, scaling.intercept),
            **image_summary(facts),
        }

    def write_masks(self) -> dict[str, list[LabelFacts]]:
        """Encode all masks one after the other, and return the facts about their chunks by name."""
        return {array.name: self._write_mask(array) for array in self.origin.arrays[1:]}

    def _write_mask(self, array: ArraySpec) -> list[LabelFacts]:
        origin = self.origin
        sampling: Sampling = PlainSampling(self.engine, array, linear=False)
        if origin.derivation.mask_interpolation == "linear":
            sampling = LabelwiseSampling(self.engine, array)
        derived = DerivedArray(sampling, origin.grid, _MASK_BLOCK_BYTES)
        volume = ArrayVolume(derived, sampling.dtype)
        encoder = LabelEncoder(self.writer.profile)
        if array.name == LABEL:
            encoder = LabelEncoder(
                self.writer.profile,
                centroid_zyx={
                    VALUE_OF_NAME[name]: origin.grid.index_of(centroid.position_zyx_mm)
                    for name, centroid in _kept_centroids(origin).items()
                    if name in VALUE_OF_NAME
                },
                spacing_zyx_mm=origin.grid.spacing_zyx_mm,
            )
        on_voxels = self.voxels.progress.count
        return self.voxels.encode(array.name, volume, volume.grid, encoder, on_voxels)


def _kept_centroids(origin: ScanOrigin) -> dict[str, CentroidRecord]:
    """Return the annotated centroids of the source that lie in the part that is kept."""
    centroids = origin.scan.attributes.centroids
    if origin.derivation.crop is None:
        return centroids
    return {
        name: centroid
        for name, centroid in centroids.items()
        if origin.grid.contains(centroid.position_zyx_mm)
    }


def _voxel_metadata(origin: ScanOrigin, label_facts: Sequence[LabelFacts] | None) -> dict[str, Any]:
    """Return grid and labels of a derived scan."""
    grid, source = origin.grid, origin.scan.attributes
    distances = {} if label_facts is None else distances_mm(label_facts)
    labels: dict[str, Any] = {"vertebrae": {}, "other_labels": {}}
    if label_facts is not None:
        labels = label_summary(label_facts)
    return {
        "affine": affine_rows(grid.affine),
        "shape_zyx": grid.shape_zyx,
        "spacing_zyx_mm": grid.spacing_zyx_mm,
        "oblique_deg": source.oblique_deg,
        **labels,
        "centroids": {
            name: CentroidRecord(
                position_zyx_mm=centroid.position_zyx_mm,
                label_distance_mm=distances.get(VALUE_OF_NAME.get(name, -1)),
            )
            for name, centroid in _kept_centroids(origin).items()
        },
        "written_by": f"spinezarr {package_version()}",
    }


def _source_metadata(origin: ScanOrigin, image_facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records of the sources of image and mask.

    A copy has the records of the files that its source was ingested from. Other voxels come from
    the arrays of the source, and have the types that ``image_facts`` names.
    """
    source, scan = origin.scan.attributes, origin.scan
    metadata: dict[str, Any] = {"source_key": origin.key}
    if origin.derivation.keeps_voxels:
        return metadata | {
            "source_bytes": source.source_bytes,
            "image_source": source.image_source,
            "label_source": source.label_source,
        }
    label_source = None
    if scan.label is not None and source.label_source is not None:
        label_source = {
            **_array_record(origin, scan.label, source.label_source.sha256),
            "dtype": scan.label.dtype.name,
            "stored_dtype": scan.label.dtype.str,
            "parts": (),
            "values": (),
            "rounded_voxels": 0,
        }
    image_source = {
        **_array_record(origin, scan.image, source.image_source.sha256),
        "dtype": image_facts["image_dtype"],
        "stored_dtype": np.dtype(image_facts["image_stored_dtype"]).str,
    }
    return metadata | {
        "source_bytes": sum(sum(array.shard_sizes.values()) for array in scan.arrays),
        "image_source": image_source,
        "label_source": label_source,
    }


def _array_record(origin: ScanOrigin, array: ArraySpec, sha256: str) -> dict[str, Any]:
    """Describe an array of the source, sampled on the derived grid, as a file without types."""
    z, y, x = origin.grid.shape_zyx
    return {
        "file": f"{scan_key(array.scan_id)}/{array.name}",
        "size_bytes": sum(array.shard_sizes.values()),
        "sha256": sha256,
        "shape_ijk": (x, y, z),
        "affine_ijk": affine_rows(origin.grid.affine),
        "orientation": "RAS",
        "scaling": None,
        "nifti": None,
        "metaimage": None,
    }


def _mask_record(origin: ScanOrigin, name: str, facts: Sequence[LabelFacts]) -> MaskRecord:
    """Return the record of a further mask that was carried over."""
    source = origin.scan.attributes.masks[name]
    names = source.names
    labels = {
        str(value): {**summary.to_record(), "name": names.get(value, "")}
        for value, summary in label_summaries(facts).items()
    }
    keeps_file = origin.derivation.keeps_voxels
    return MaskRecord.model_validate(
        {
            **dict(source),
            "comparison": None,  # it holds for the voxels of the source
            "labels": labels,
            "source": source.source if keeps_file else None,
            "source_key": source.source_key if keeps_file else "",
            "written_by": f"spinezarr {package_version()}",
        }
    )


def is_current(stored: ScanAttributes, origin: ScanOrigin) -> bool:
    """Whether a stored scan has the voxels that it would get from its origin now."""
    made_from = stored.derived_from
    if made_from is None or stored.source_key != origin.key:
        return False
    if made_from.mask_checksums != origin.record["mask_checksums"]:
        return False
    masks = origin.scan.attributes.masks
    return all(
        name in stored.masks and _has_facts_of(stored.masks[name], masks[name])
        for name in origin.masks
    )


def _has_facts_of(stored: MaskRecord, source: MaskRecord) -> bool:
    """Whether a mask that was carried over has the names and the other facts of its source."""
    facts = [
        (mask.scheme, mask.license, mask.author, mask.model, mask.label_state)
        for mask in (stored, source)
    ]
    return facts[0] == facts[1] and stored.names.items() <= source.names.items()
