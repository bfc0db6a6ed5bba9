"""Attributes of a store's groups: what is written, and checked when it is read."""

import hashlib
import json
from binascii import a2b_base64
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from spinezarr.recipe import LabelState
from spinezarr.store.layout import FORMAT_VERSION, LABEL
from spinezarr.store.sharding import CHUNK_ROW, crc32, crc32c, index_bytes
from spinezarr.strict_yaml import StrictModel

__all__ = [
    "CentroidRecord",
    "FileRecord",
    "LabelSourceRecord",
    "ManifestEntry",
    "NiftiRecord",
    "OtherFormatError",
    "RootAttributes",
    "ScanAttributes",
    "ShardEntry",
    "SourceRecord",
    "VertebraRecord",
    "parse_root",
    "seal",
    "unseal",
    "unseal_scan",
]

_CHECKSUM = "metadata_crc32c"
"""Attribute of every group, its last: checksum of its ``zarr.json`` without this attribute."""


def seal(metadata: dict[str, Any]) -> bytes:
    """Return a group's metadata as JSON that carries its own checksum."""
    checksum = f"{crc32c(_as_json(metadata)):08x}"
    attributes = {**metadata["attributes"], _CHECKSUM: checksum}
    return _as_json({**metadata, "attributes": attributes})


def unseal(data: bytes) -> dict[str, Any]:
    """Read what :func:`seal` made.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it was not made so, or is damaged.
    """
    return _unsealed(data)[0]


def _unsealed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read what :func:`seal` made; return it also as the bytes that the checksum is of."""
    metadata: dict[str, Any] = from_json(data)
    attributes = metadata["attributes"]
    if not isinstance(attributes, dict):
        raise TypeError("its attributes are no object")
    expected = attributes.pop(_CHECKSUM)
    before, _, after = data.rpartition(f'"{_CHECKSUM}": "{expected}"'.encode())
    content = before.removesuffix(b", ") + after
    found = f"{crc32c(content):08x}"
    if found != expected:
        raise ValueError(f"it has crc32c {found}, expected {expected}")
    return metadata, content


def _as_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, allow_nan=False).encode()


NEAR_LABEL_MM: Final = 5.0
"""Distance from its label up to which an annotated centroid is taken to be right.

Centroids are drawn by hand or by a rule of their own, to a voxel at best, and slices are up to 5 mm
apart in the datasets at hand.
"""
ZYX = tuple[float, float, float]
IntZYX = tuple[int, int, int]
Matrix = tuple[tuple[float, ...], ...]
Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class RootAttributes(StrictModel):
    """Attributes of the root group: which dataset this is."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: int
    dataset: str
    title: str
    licence: str
    citation: str
    homepage: str | None = None
    codec_profile: str | None = None
    """Chunks and codecs of scans to come, by name; None stands for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key that its ids are hashed with; None if they are the dataset's own."""


class OtherFormatError(Exception):
    """A store that spinezarr wrote in another format."""

    def __init__(self, version: object) -> None:
        self.version = version
        super().__init__(f"format {version}, not {FORMAT_VERSION}")


def parse_root(data: bytes) -> RootAttributes:
    """Read the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If it is in another format; later ones may have fields that this version does not know.
    ValueError, KeyError, TypeError
        If spinezarr did not write it, or it is damaged.
    """
    attributes = json.loads(data)["attributes"]
    if attributes["format"] != "spinezarr":
        raise ValueError(f"its format is {attributes['format']!r}")
    if attributes["format_version"] != FORMAT_VERSION:
        raise OtherFormatError(attributes["format_version"])
    return RootAttributes.model_validate_json(json.dumps(unseal(data)["attributes"]))


class FileRecord(StrictModel):
    """A small file that facts of a scan were read from."""

    file: str
    """Path relative to the raw folder."""
    size_bytes: int


class NiftiRecord(StrictModel):
    """Where a NIfTI header places the voxels, number for number; the sform is ``affine_ijk``.

    The fields are those of ``nifti1.h``, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
    """

    version: Literal[1, 2]
    sform_code: int
    """0: the affine is that of the qform, or, if its code is 0 too, of ``pixdim`` alone."""
    qform_code: int
    pixdim: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
    """qfac, then mm."""
    quatern_bcd: tuple[float, float, float]
    qoffset_xyz: tuple[float, float, float]
    xyzt_units: int


class SourceRecord(StrictModel):
    """The file that an array was made from, and how to give it back."""

    file: str
    """Path relative to the raw folder."""
    size_bytes: int
    sha256: str
    dtype: str
    shape_ijk: IntZYX
    affine_ijk: Matrix
    """4 x 4, voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""
    orientation: str
    """Directions toward which the file's axes increase, e.g. ``LPS``: those it was turned by."""
    stored_dtype: str
    """Type of the numbers in the file, before scaling, with byte order, e.g. ``<i2``."""
    scaling: tuple[float, float] | None
    """Slope and intercept that the file itself applies to all its numbers."""
    nifti: NiftiRecord | None
    """None for other formats."""


class LabelSourceRecord(SourceRecord):
    """The same of a mask, and what was made of its values."""

    parts: tuple[tuple[int, str], ...]
    """Label and path of each file, of a mask that is one file a structure; later ones win."""
    values: tuple[tuple[int, int], ...]
    """Value in the file and value stored, all else became background; empty: as they are."""


class VertebraRecord(StrictModel):
    """One vertebra's voxels in one scan."""

    voxel_count: int
    centroid_zyx: ZYX
    """Mean voxel index."""
    start_zyx: IntZYX
    stop_zyx: IntZYX


class CentroidRecord(StrictModel):
    """One vertebra's centre as annotated in a file of its own."""

    position_zyx_mm: ZYX
    """RAS+ mm."""
    label_distance_mm: float | None
    """To the nearest voxel of the vertebra's label, 0 inside it; None if the mask lacks it."""

    @property
    def is_near_label(self) -> bool:
        """Whether it is taken to be right; where the mask lacks the vertebra, nothing says no."""
        return self.label_distance_mm is None or self.label_distance_mm <= NEAR_LABEL_MM


class ManifestEntry(StrictModel):
    """One stored file.

    Its checksum is CRC-32 (RFC 1952), not the CRC-32C that chunks end with: a checksum over data
    that end with the same checksum of themselves depends on their length alone, and so would not
    tell two chunks, or two shards, of equal sizes apart.
    """

    size_bytes: int
    crc32: Crc32

    @classmethod
    def of(cls, data: bytes) -> "ManifestEntry":
        """Describe a file's content."""
        return cls(size_bytes=len(data), crc32=f"{crc32(data):08x}")


class ShardEntry(ManifestEntry):
    """One stored shard, chunk by chunk: none is taken for another's, and no index is asked for."""

    index_crc32c: Crc32
    """The last four bytes of the shard, as a number."""
    chunks: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{16})*$")]
    """Base64 (RFC 4648, section 4) of :data:`~spinezarr.store.sharding.CHUNK_ROW`, one row a chunk.

    Chunks lie one after the other from the start of the shard: sums of sizes are offsets.
    """

    def chunk_rows(self, n_chunks: int) -> npt.NDArray[np.void]:
        """Return :attr:`chunks` as rows; ``n_chunks`` have room in the shard.

        Raises
        ------
        ValueError
            If they are not the chunks of such a shard of :attr:`size_bytes` bytes.
        """
        rows = np.frombuffer(a2b_base64(self.chunks), CHUNK_ROW)
        position, size = rows["position"], rows["size"]
        if (position[-1:] >= n_chunks).any() or (position[1:] <= position[:-1]).any():
            raise ValueError(f"its table of chunks is not in order, or leaves {n_chunks} places")
        if not size.all():
            raise ValueError("its table has a chunk without bytes")
        found = int(size.sum(dtype=np.int64)) + index_bytes(n_chunks)
        if found != self.size_bytes:
            raise ValueError(f"its chunks and index are {found} bytes, expected {self.size_bytes}")
        return rows


class ScanAttributes(StrictModel):
    """Attributes of a scan's group; written with the scan's last write."""

    dataset: str
    scan_id: str
    patient_id: str
    source: str
    split: str
    split_index: int
    licence: str
    citation: str
    affine: Matrix
    """4 x 4, stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: IntZYX
    spacing_zyx_mm: ZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis; the coordinates leave it out."""
    label_state: LabelState | Literal["none"]
    """``none``: the scan has no mask."""
    image_dtype: str
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_checksum: str
    """Hash of the voxels: equal if and only if two stored images are equal."""
    vertebrae: dict[str, VertebraRecord]
    other_labels: dict[str, int]
    """Voxels of each value that is no vertebra."""
    structures: dict[str, str]
    """Names of such values, where the recipe knows them; the rest lie outside the scheme."""
    centroids: dict[str, CentroidRecord]
    """Annotated centres by level name; empty where the dataset has no such file."""
    columns: dict[str, str]
    """What the dataset's own tables say of the scan, by column."""
    sidecar: dict[str, str]
    """What the JSON file beside the image says, by key."""
    source_bytes: int
    """Of all files of image and mask."""
    source_key: str
    """Hash of which files the scan was read from, and how; with another, it is read anew."""
    image_source: SourceRecord
    label_source: LabelSourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[str, ShardEntry | ManifestEntry]
    """Every file of the scan but its own ``zarr.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return self.model_dump(mode="json")

    @property
    def content_checksum(self) -> str:
        """Hash of grid, type and voxels of image and mask; the same files give the same."""
        mask = sorted(
            (key.replace(".", "/"), entry.size_bytes, entry.crc32)
            for key, entry in self.manifest.items()
            if key.startswith((f"{LABEL}/c/", f"{LABEL}/c."))
        )
        grid = (self.shape_zyx, self.affine, self.image_dtype)
        text = json.dumps([*grid, self.image_checksum, mask])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class _ScanGroup(BaseModel):
    """The ``zarr.json`` of a scan; its arrays, which zarr-python describes, are left out."""

    model_config = ConfigDict(strict=True, frozen=True)
    attributes: ScanAttributes


def unseal_scan(data: bytes) -> tuple[ScanAttributes, dict[str, Any]]:
    """Read the ``zarr.json`` of a scan: its attributes, and all of it.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        If spinezarr did not write it, or it is damaged.
    """
    metadata, content = _unsealed(data)
    return _ScanGroup.model_validate_json(content).attributes, metadata
