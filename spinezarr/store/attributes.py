"""Which attributes do the groups of the root and of a scan have, and how are they checked?"""

import hashlib
import json
import math
import re
from collections.abc import Collection
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.array_metadata import ImageDtype, ScanArrays
from spinezarr.store.layout import FORMAT_VERSION, LABEL, METADATA, SAMPLING, counts_key
from spinezarr.store.manifest import SCAN_FILE, ManifestEntry, ShardEntry, shard_entries
from spinezarr.store.records import (
    LARGEST_LENGTH_MM,
    ORIENTATIONS,
    ZYX,
    Affine,
    ComparisonRecord,
    Count,
    DerivationRecord,
    FileRecord,
    ImageSourceRecord,
    LabelSourceRecord,
    LabelValue,
    MaskName,
    MaskRecord,
    MetaImageRecord,
    NiftiRecord,
    Number,
    SizeZYX,
    SourceRecord,
    SpacingZYX,
    VertebraRecord,
    affine_lengths_xyz,
)
from spinezarr.store.sealed import (
    StoredAttributes,
    StoredModel,
    describe_value,
    parse_model,
    parse_sealed,
)
from spinezarr.text import is_printable, is_valid_file_name
from spinezarr.vertebrae import LEVELS, VALUE_OF_NAME, LabelState

__all__ = [
    "ATTRIBUTES_OF_ANY_GRID",
    "LARGEST_LENGTH_MM",
    "NEAR_LABEL_MM",
    "ORIENTATIONS",
    "CentroidRecord",
    "DerivationRecord",
    "FileRecord",
    "ImageSourceRecord",
    "LabelSourceRecord",
    "MetaImageRecord",
    "NiftiRecord",
    "OtherFormatError",
    "RootAttributes",
    "ScanAttributes",
    "ScanGroup",
    "SourceRecord",
    "VertebraRecord",
    "is_scan_id",
    "parse_root",
    "parse_scan_group",
]

Model = TypeVar("Model", bound=BaseModel)

ATTRIBUTES_OF_ANY_GRID: Final = (
    "dataset",
    "scan_id",
    "patient_id",
    "source",
    "split",
    "split_index",
    "license",
    "citation",
    "label_state",
    "columns",
    "sidecar",
)
"""Attributes of a scan that hold after it is cropped or resampled."""


NEAR_LABEL_MM: Final = 5.0
"""Largest distance from its label at which an annotated centroid counts as correct, in mm.

People place centroids with an error of a voxel or more, and slices are up to 5 mm apart in the
known datasets.
"""
_SPACING_TOLERANCE: Final = 1e-3
"""Largest relative difference between the stored spacing and that of the affine."""


def _checked_scan_id(name: str) -> str:
    if not is_scan_id(name):
        raise DamagedMetadataError(describe_value(name), "the name of a scan")
    return name


def is_scan_id(name: str) -> bool:
    """Whether a scan can have this name: a printable name of a folder."""
    return is_valid_file_name(name) and is_printable(name) and name != "zarr.json"


def _checked_vertebra(name: str) -> str:
    if name not in VALUE_OF_NAME:
        raise DamagedMetadataError(describe_value(name), "the name of a vertebra")
    return name


def _checked_level(name: str) -> str:
    if name not in LEVELS:
        raise DamagedMetadataError(describe_value(name), "the name of a level")
    return name


ScanId = Annotated[str, AfterValidator(_checked_scan_id)]
Vertebra = Annotated[str, AfterValidator(_checked_vertebra)]
Level = Annotated[str, AfterValidator(_checked_level)]
"""Name of a vertebra, or of a level that is annotated by its center alone."""


class RootAttributes(StoredAttributes):
    """Attributes of the root group, which describe the dataset."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: Number
    dataset: str
    title: str
    license: str
    citation: str
    homepage: str | None = None
    codec_profile: str | None = None
    """Name of the profile with the chunks and codecs of new scans; None for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key of the pseudonyms; None if the ids are the dataset's own."""
    derived_from: str | None = None
    """Path or URL of the store that this one was derived from, without secrets; else None."""
    derivation: str | None = None
    """How the scans were derived, for people; None for a store of ingested scans."""

    @model_serializer(mode="wrap")
    def _without_derivation(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a store of ingested scans does not have, as older stores lack it."""
        fields: dict[str, Any] = serialize(self)
        if self.derivation is None:
            fields.pop("derived_from", None)
            fields.pop("derivation", None)
        return fields


class OtherFormatError(Exception):
    """The store is written in another version of the format; the text says what to do."""

    def __init__(self, version: int) -> None:
        advice = (
            "Make it again in another place: run the same 'spinezarr ingest' or 'spinezarr "
            "derive' with another --out."
            if version < FORMAT_VERSION
            else "Update spinezarr: pip install --upgrade spinezarr."
        )
        super().__init__(
            f"is written in format {version}, and this spinezarr reads and writes format "
            f"{FORMAT_VERSION}. {advice}"
        )


class _RootFormat(StoredModel):
    format: Literal["spinezarr"]
    format_version: Number


class _AnyRoot(StoredModel):
    attributes: _RootFormat


class _Root(StoredModel):
    attributes: RootAttributes


def parse_root(data: bytes) -> RootAttributes:
    """Parse the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If the store has another format version, whose fields this version may not know.
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    version = parse_model(data, _AnyRoot).attributes.format_version
    if version != FORMAT_VERSION:
        raise OtherFormatError(version)
    return parse_sealed(data, _Root).attributes


class CentroidRecord(StoredAttributes):
    """The center of one vertebra as a file of the dataset annotates it."""

    position_zyx_mm: ZYX
    """Position in RAS+ mm, ``(z, y, x)``."""
    label_distance_mm: float | None
    """Distance to the nearest voxel of the vertebra in mm, 0 inside; None if the mask lacks it."""

    @property
    def is_near_label(self) -> bool:
        """Whether the center counts as correct; it does if the mask lacks the vertebra."""
        return self.label_distance_mm is None or self.label_distance_mm <= NEAR_LABEL_MM


class ScanAttributes(StoredAttributes):
    """Attributes of a scan's group; the last write of the scan publishes them."""

    dataset: str
    scan_id: ScanId
    patient_id: str
    source: str
    split: str
    split_index: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    license: str
    citation: str
    affine: Affine
    """4 x 4 matrix from stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: SizeZYX
    spacing_zyx_mm: SpacingZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis in degrees.

    The coordinates ignore it. A sheared grid has the angle of the nearest perpendicular axes.
    """
    label_state: LabelState | Literal["none"]
    """State of the annotation; ``none`` if the scan has no mask."""
    image_dtype: ImageDtype
    """Data type of the values."""
    image_stored_dtype: ImageDtype
    """Data type of the numbers in the array ``image``."""
    image_scaling: tuple[float, float] | None
    """Slope and intercept from numbers to values; None if the numbers are the values."""
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_nan_voxels: Count
    """Number of voxels that are NaN."""
    image_infinite_voxels: Count
    """Number of voxels that are infinite."""
    image_checksum: str
    """Hash of the values in their type; it is equal if and only if two images are equal."""
    vertebrae: dict[Vertebra, VertebraRecord]
    other_labels: dict[LabelValue, Count]
    """Voxel count of each mask value that is neither a vertebra nor background."""
    structures: dict[LabelValue, str]
    """Names of the values in ``other_labels`` that the recipe knows."""
    centroids: dict[Level, CentroidRecord]
    """Annotated centers by level name; empty if the dataset has no such file."""
    columns: dict[str, str]
    """Cells of the dataset's own tables for the scan, by column."""
    sidecar: dict[str, str]
    """Values of the JSON file beside the image, by key."""
    source_bytes: Count
    """Size of all source files of image and mask in bytes."""
    source_key: str
    """Hash of the files that the scan was read from, and of how; an ingest compares it."""
    image_source: ImageSourceRecord
    label_source: LabelSourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    derived_from: DerivationRecord | None = None
    """The scan of another store that this one was derived from; None for an ingested scan."""
    masks: dict[MaskName, MaskRecord] = Field(default_factory=dict)
    """Masks beside ``label``, by name."""
    manifest: dict[
        Annotated[str, Field(pattern=SCAN_FILE)],
        Annotated[ManifestEntry | ShardEntry, Field(union_mode="left_to_right")],
    ]
    """Entries of all files of the scan except its ``zarr.json``, by key."""

    @model_serializer(mode="wrap")
    def _without_derivation(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``derived_from`` of an ingested scan, as older stores lack it."""
        fields: dict[str, Any] = serialize(self)
        if self.derived_from is None:
            fields.pop("derived_from", None)
        return fields

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as they are stored."""
        return self.model_dump(mode="json")

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxel count of each value in the mask except background."""
        vertebrae = {VALUE_OF_NAME[name]: v.voxel_count for name, v in self.vertebrae.items()}
        return {**vertebrae, **{int(value): n for value, n in self.other_labels.items()}}

    @property
    def content_checksum(self) -> str:
        """Hash of grid, type and voxels of image and mask; the same source gives the same hash."""
        grid = (self.shape_zyx, self.affine, self.image_dtype)
        return _hash_of([*grid, self.image_checksum, self._shards_of(LABEL)])

    def mask_checksum(self, name: str) -> str:
        """Hash of the voxels of a further mask and of the scan; another version has another."""
        return _hash_of([self.content_checksum, self._shards_of(name)])

    def comparison(self, name: str) -> ComparisonRecord | None:
        """Return the saved comparison of a further mask, if both masks are those compared."""
        record = self.masks[name].comparison
        if record is None or record.mask_checksum != self.mask_checksum(name):
            return None
        return record if record.truth_checksum == self.checksum_of(record.truth) else None

    def checksum_of(self, mask: str) -> str:
        """Return the checksum of a mask, ``label`` or a further one; empty if there is none."""
        if mask == LABEL:
            return "" if self.label_state == "none" else self.content_checksum
        return self.mask_checksum(mask) if mask in self.masks else ""

    def _shards_of(self, mask: str) -> list[tuple[str, int, str]]:
        """Return key, size and checksum of each shard of a mask."""
        return sorted(
            (key.replace(".", "/"), entry.size_bytes, entry.crc32)
            for key, entry in self.manifest.items()
            if key.startswith((f"{mask}/c/", f"{mask}/c."))
        )

    def without_masks(self, names: Collection[str] | None = None) -> "ScanAttributes":
        """Return the attributes that the scan would have without some further masks.

        Parameters
        ----------
        names
            Names of the masks; None for all.
        """
        if not self.masks:
            return self
        gone = self.masks.keys() if names is None else set(names)
        masks = {name: mask for name, mask in self.masks.items() if name not in gone}
        folders = {folder for name in gone for folder in (name, counts_key(name))}
        if not masks and self.label_state == "none":
            folders.add(SAMPLING)
        manifest = {k: entry for k, entry in self.manifest.items() if _folder_of(k) not in folders}
        return self.model_copy(update={"masks": masks, "manifest": manifest})


def _hash_of(value: Any) -> str:  # noqa: ANN401  any JSON value
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _folder_of(key: str) -> str:
    """Return the part of the key of a file that names its array.

    Examples
    --------
    >>> _folder_of("label/c/0/1/2"), _folder_of("sampling/label_chunks/c.0.0")
    ('label', 'sampling/label_chunks')
    """
    return re.sub(rf"/({re.escape(METADATA)}|c[/.].*)$", "", key)


class _ScanMembers(StoredModel):
    metadata: ScanArrays


class ScanGroup(StoredModel):
    """The content of a scan's ``zarr.json``."""

    attributes: ScanAttributes
    consolidated_metadata: _ScanMembers

    @property
    def arrays(self) -> ScanArrays:
        """Metadata of the arrays of the scan."""
        return self.consolidated_metadata.metadata

    @model_validator(mode="after")
    def _check_together(self) -> "ScanGroup":
        scan, image = self.attributes, self.arrays.image
        if scan.shape_zyx != image.shape:
            raise DamagedMetadataError(f"an image of {image.shape} voxels", f"{scan.shape_zyx}")
        if scan.image_stored_dtype != image.data_type:
            raise DamagedMetadataError(
                f"an image of {image.data_type}", f"{scan.image_stored_dtype}"
            )
        scaling = None if image.scaling is None else (image.scaling.slope, image.scaling.intercept)
        if scan.image_scaling != scaling:
            raise DamagedMetadataError(f"an image scaled by {scaling}", f"{scan.image_scaling}")
        if (scan.label_state == "none") != (self.arrays.label is None):
            state = f"the label state {scan.label_state!r}"
            raise DamagedMetadataError(state, "'none' for a scan without mask, and no other")
        spacing = zip(scan.spacing_zyx_mm, reversed(affine_lengths_xyz(scan.affine)), strict=True)
        if not all(math.isclose(a, b, rel_tol=_SPACING_TOLERANCE) for a, b in spacing):
            raise DamagedMetadataError(
                f"a spacing of {scan.spacing_zyx_mm} mm", "that of the affine"
            )
        self._check_masks()
        for name, vertebra in self._boxes.items():
            box = zip(vertebra.start_zyx, vertebra.stop_zyx, scan.shape_zyx, strict=True)
            if not all(start < stop <= size for start, stop, size in box):
                raise DamagedMetadataError(f"voxels of {name} outside of the image", "all inside")
        return self

    def _check_masks(self) -> None:
        """Check that attributes, arrays and manifest name the same further masks."""
        scan, arrays = self.attributes, self.arrays
        if scan.masks.keys() != arrays.masks.keys():
            found = f"the masks {', '.join(arrays.masks) or 'none'}"
            raise DamagedMetadataError(found, ", ".join(scan.masks) or "none")
        folders = set(arrays.by_key) | (set() if arrays.sampling is None else {SAMPLING})
        for key in scan.manifest:
            if _folder_of(key) not in folders:
                raise DamagedMetadataError(key, "files of the arrays of the scan", "manifest")
        for folder in sorted(folders):
            if f"{folder}/{METADATA}" not in scan.manifest:
                found = f"no {folder}/{METADATA}"
                raise DamagedMetadataError(found, "the metadata of each array", "manifest")

    @property
    def _boxes(self) -> dict[str, VertebraRecord]:
        """All labels with a bounding box, by a name for messages."""
        labels = {
            f"{mask} {value}": label
            for mask, record in self.attributes.masks.items()
            for value, label in record.labels.items()
        }
        return {**self.attributes.vertebrae, **labels}

    def shards(self, name: str) -> dict[ShapeZYX, ShardEntry]:
        """Return the manifest entries of the shards of an array by shard index, ``(z, y, x)``.

        Raises
        ------
        DamagedMetadataError
            If the manifest lacks shards of an image, or names shards or chunks that the array
            cannot have.
        """
        array = self.arrays.volumes.get(name)
        return {} if array is None else shard_entries(name, array, self.attributes.manifest)


def parse_scan_group(data: bytes) -> ScanGroup:
    """Parse the ``zarr.json`` of a scan.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    return parse_sealed(data, ScanGroup)
