"""Attributes of a store's groups: what is written, and checked when it is read."""

import hashlib
import json
import math
import os
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.recipe import LabelState
from spinezarr.store.array_metadata import ImageDtype, ScanArrays, ShardedArray, StoredModel
from spinezarr.store.layout import (
    FORMAT_VERSION,
    IMAGE,
    LABEL,
    LABEL_CHUNKS,
    LARGEST_AXIS,
    chunk_grid,
)
from spinezarr.store.sharding import CHUNK_ROW, LARGEST_OVERHEAD, crc32, crc32c, index_bytes
from spinezarr.strict_yaml import StrictModel
from spinezarr.text import is_printable, is_valid_file_name
from spinezarr.vertebrae import LEVELS, VALUE_OF_NAME

__all__ = [
    "LARGEST_LENGTH_MM",
    "NEAR_LABEL_MM",
    "ORIENTATIONS",
    "CentroidRecord",
    "FileRecord",
    "LabelSourceRecord",
    "ManifestEntry",
    "MetaImageRecord",
    "NiftiRecord",
    "OtherFormatError",
    "RootAttributes",
    "ScanAttributes",
    "ScanGroup",
    "ShardEntry",
    "ShardPlaces",
    "SourceRecord",
    "StoredAttributes",
    "VertebraRecord",
    "is_scan_id",
    "parse_json",
    "parse_root",
    "parse_scan_group",
    "parse_sealed",
    "seal",
    "unseal",
]

Model = TypeVar("Model", bound=BaseModel)

_CHECKSUM = "metadata_crc32c"
"""Attribute of every group, its last: checksum of its ``zarr.json`` without this attribute."""
_SEAL: Final = f'"{_CHECKSUM}": "'.encode()
_FEW_BYTES: Final = 1 << 20
_MOST_VALUES: Final = 1 << 20
"""In one file of JSON; the scan table of 100,000 scans, and their ledger, have as many."""
_LOCATION_PARTS: Final = 4
"""Keys of a location that a message names: the innermost ones."""
_LOCATION_CHARACTERS: Final = 60
"""Characters of each of these keys that a message shows."""
_SHOWN_CHARACTERS: Final = 60
"""Characters of a damaged text that a message shows."""
_LONGEST_NUMBER_BITS: Final = 64
"""Bits of the longest damaged integer that a message shows."""


def seal(metadata: dict[str, Any]) -> bytes:
    """Return a group's metadata as JSON that carries its own checksum."""
    checksum = f"{crc32c(_as_json(metadata)):08x}"
    attributes = {**metadata["attributes"], _CHECKSUM: checksum}
    return _as_json({**metadata, "attributes": attributes})


def unseal(data: bytes) -> dict[str, Any]:
    """Read what :func:`seal` made.

    Returns
    -------
    dict
        All of it but the checksum; ``attributes`` is an object.

    Raises
    ------
    DamagedMetadataError
        If :func:`seal` did not make it, or it is damaged.
    """
    metadata = parse_json(_unsealed(data))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("attributes"), dict):
        raise DamagedMetadataError("other JSON", "a group with attributes")
    return metadata


def parse_sealed(data: bytes, model: type[Model]) -> Model:
    """Read what :func:`seal` made as a model.

    Raises
    ------
    DamagedMetadataError
        If :func:`seal` did not make it, it is damaged, or it does not fit the model.
    """
    return _validated(_unsealed(data), model)


def _validated(content: bytes, model: type[Model]) -> Model:
    """Read JSON as a model."""
    try:
        return model.model_validate_json(content)
    except ValidationError as problem:
        raise _first_mistake(problem) from None


def _unsealed(data: bytes) -> bytes:
    """Check the checksum of sealed JSON and return the JSON without it."""
    _refuse_many_values(data)
    before, _, after = data.rpartition(_SEAL)
    expected, content = after[:8], before.removesuffix(b", ") + after[9:]
    found = f"{crc32c(content):08x}".encode()
    if not before or after[8:9] != b'"':
        raise DamagedMetadataError("JSON without its checksum", f"an attribute {_CHECKSUM}")
    if found != expected:
        raise DamagedMetadataError(f"crc32c {found.decode()}", f"crc32c {expected!r}")
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401
    """Read JSON within bounds.

    Raises
    ------
    DamagedMetadataError
        If it is not JSON, has too many values, or NaN or infinity among them.
    """
    _refuse_many_values(content)
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as problem:
        raise DamagedMetadataError(f"other bytes ({problem})", "JSON") from None


def _refuse_many_values(data: bytes) -> None:
    """Refuse JSON that would take far more memory than its bytes."""
    if len(data) <= _FEW_BYTES:
        return
    n_values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > _MOST_VALUES:
        raise DamagedMetadataError(f"{n_values} values", f"at most {_MOST_VALUES}")


def _first_mistake(problem: ValidationError) -> DamagedMetadataError:
    """Return the error for the first value that does not fit a model."""
    first = problem.errors(include_url=False)[0]
    parts = [str(part)[:_LOCATION_CHARACTERS] for part in first["loc"] if not _is_of_pydantic(part)]
    location = ".".join(parts[-_LOCATION_PARTS:])
    mistake = first.get("ctx", {}).get("error")
    if isinstance(mistake, DamagedMetadataError):  # from a validator of ours
        location = ".".join(filter(None, (location, mistake.location)))
        return DamagedMetadataError(mistake.found, mistake.expected, location)
    found = "no such key" if first["type"] == "missing" else shown(first["input"])
    rule = first["msg"].removeprefix("Input should be ")
    return DamagedMetadataError(found, "a value" if first["type"] == "missing" else rule, location)


def shown(value: object) -> str:
    """Return a value of a file in short, fit for a message."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} values"
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER_BITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes) and len(value) > _SHOWN_CHARACTERS:
        return f"{value[:_SHOWN_CHARACTERS]!r}..."
    return repr(value)


def _is_of_pydantic(part: str | int) -> bool:
    """Whether a part of a place is a word of pydantic's, and none of the file's."""
    return isinstance(part, str) and (part == "[key]" or part.startswith("function-"))


def _as_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, allow_nan=False).encode()


NEAR_LABEL_MM: Final = 5.0
"""Distance from its label up to which an annotated centroid is taken to be right.

Centroids are drawn by hand or by a rule of their own, to a voxel at best, and slices are up to 5 mm
apart in the datasets at hand.
"""
_LARGEST_NUMBER: Final = (1 << 63) - 1
"""What the scan table holds at most."""
LARGEST_LENGTH_MM: Final = 1e9
"""A thousand kilometers: far more than any position, and far from what overflows."""
_LARGEST_FILE_BYTES: Final = 1 << 40
_LEAST_VOLUME: Final = 1e-6
"""Of a voxel, as a share of what it would be with perpendicular axes."""
_SPACING_TOLERANCE: Final = 1e-3
"""Between a spacing and the affine that it is taken from, as a share of it."""
_PART_OF_INDEX: Final = "(0|[1-9][0-9]{0,4})"
_ONE, _THREE = "0", "/".join([_PART_OF_INDEX] * 3)


def _either_separator(index: str) -> str:
    """Match the key of a chunk in both of its forms."""
    return f"c/{index}|c[.]{index.replace('/', '[.]')}"


SCAN_FILE: Final = (
    rf"^(?:(?:image|label)/(?:{_either_separator(_THREE)}|zarr[.]json)"
    rf"|[zyx]/(?:{_either_separator(_ONE)}|zarr[.]json)"
    rf"|sampling/zarr[.]json|{LABEL_CHUNKS}/(?:{_either_separator('0/0')}|zarr[.]json))$"
)
"""Keys of the files of a scan, which its manifest may name: all forms that the layout makes."""


def _checked_scan_id(name: str) -> str:
    if not is_scan_id(name):
        raise DamagedMetadataError(shown(name), "the name of a scan")
    return name


def is_scan_id(name: str) -> bool:
    """Whether a scan can have a name: that of a folder, which is shown as it is."""
    return is_valid_file_name(name) and is_printable(name) and name != "zarr.json"


def _checked_vertebra(name: str) -> str:
    if name not in VALUE_OF_NAME:
        raise DamagedMetadataError(shown(name), "the name of a vertebra")
    return name


def _checked_level(name: str) -> str:
    if name not in LEVELS:
        raise DamagedMetadataError(shown(name), "the name of a level")
    return name


def _checked_affine(affine: "Matrix") -> "Matrix":
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = affine
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    lengths = _lengths_xyz(affine)
    if last != (0.0, 0.0, 0.0, 1.0) or abs(volume) <= _LEAST_VOLUME * math.prod(lengths):
        raise DamagedMetadataError("another matrix", "an invertible one with last row 0 0 0 1")
    return affine


def _lengths_xyz(affine: "Matrix") -> tuple[float, float, float]:
    """Return the lengths in mm of the steps along the voxel axes."""
    x, y, z, _ = zip(*affine[:3], strict=True)
    return math.hypot(*x), math.hypot(*y), math.hypot(*z)


def _checked_path(path: str) -> str:
    r"""Refuse a path that leads out of the folder that it is relative to."""
    parts = path.replace("\\", "/").split("/") if os.name == "nt" else path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or (os.name == "nt" and ":" in path):
        raise DamagedMetadataError(shown(path), "a path within the raw folder")
    return path


ORIENTATIONS: Final = frozenset(
    "".join(codes) for axes in permutations(("LR", "AP", "IS")) for codes in product(*axes)
)
"""Directions toward which three axes may increase, in nibabel's letters."""


def _checked_orientation(axcodes: str) -> str:
    if axcodes not in ORIENTATIONS:
        raise DamagedMetadataError(shown(axcodes), "three directions such as LPS")
    return axcodes


RawPath = Annotated[str, AfterValidator(_checked_path)]
"""Of a file, relative to the raw folder."""
ScanId = Annotated[str, AfterValidator(_checked_scan_id)]
Vertebra = Annotated[str, AfterValidator(_checked_vertebra)]
Level = Annotated[str, AfterValidator(_checked_level)]
"""A vertebra, or a level that is annotated by its center alone."""
Count = Annotated[int, Field(ge=0, le=_LARGEST_NUMBER)]
Number = Annotated[int, Field(ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER)]
Coordinate = Annotated[float, Field(ge=-LARGEST_LENGTH_MM, le=LARGEST_LENGTH_MM)]
Length = Annotated[float, Field(gt=0, le=LARGEST_LENGTH_MM)]
Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]
Place = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
ZYX = tuple[Coordinate, Coordinate, Coordinate]
SpacingZYX = tuple[Length, Length, Length]
SizeIJK = tuple[Size, Size, Size]
SizeZYX = tuple[Size, Size, Size]
PlaceZYX = tuple[Place, Place, Place]
_Row = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Matrix = tuple[_Row, _Row, _Row, _Row]
Affine = Annotated[Matrix, AfterValidator(_checked_affine)]
Orientation = Annotated[str, AfterValidator(_checked_orientation)]
FileDtype = Annotated[str, Field(pattern=r"^[<>|=]?[a-zA-Z][a-zA-Z0-9]{0,9}$")]
Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
LabelValue = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})$")]
"""As the key of an object."""


class StoredAttributes(StrictModel):
    """Base of models of what a store says: no number is infinite or NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


class RootAttributes(StoredAttributes):
    """Attributes of the root group: which dataset this is."""

    format: Literal["spinezarr"] = "spinezarr"
    format_version: Number
    dataset: str
    title: str
    license: str
    citation: str
    homepage: str | None = None
    codec_profile: str | None = None
    """Chunks and codecs of scans to come, by name; None stands for the default."""
    pseudonym_key: str | None = None
    """Fingerprint of the key that its ids are hashed with; None if they are the dataset's own."""


class OtherFormatError(Exception):
    """A store that spinezarr wrote in another format."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(f"format {version}, not {FORMAT_VERSION}")


class _RootFormat(StoredModel):
    format: Literal["spinezarr"]
    format_version: Number


class _AnyRoot(StoredModel):
    attributes: _RootFormat


class _Root(StoredModel):
    attributes: RootAttributes


def parse_root(data: bytes) -> RootAttributes:
    """Read the root's ``zarr.json``.

    Raises
    ------
    OtherFormatError
        If it is in another format; later ones may have fields that this version does not know.
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    _refuse_many_values(data)
    version = _validated(data, _AnyRoot).attributes.format_version
    if version != FORMAT_VERSION:
        raise OtherFormatError(version)
    return parse_sealed(data, _Root).attributes


class FileRecord(StoredAttributes):
    """A small file that facts of a scan were read from."""

    file: RawPath
    size_bytes: Count


class NiftiRecord(StoredAttributes):
    """Where a NIfTI header places the voxels, number for number; the sform is ``affine_ijk``.

    The fields are those of ``nifti1.h``, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
    """

    version: Literal[1, 2]
    sform_code: Number
    """0: the affine is that of the qform, or, if its code is 0 too, of ``pixdim`` alone."""
    qform_code: Number
    pixdim: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
    """qfac, then mm."""
    quatern_bcd: tuple[float, float, float]
    qoffset_xyz: tuple[float, float, float]
    xyzt_units: Number


class MetaImageRecord(StoredAttributes):
    """What a MetaImage header states of where its voxels lie, beside ``affine_ijk``."""

    element_size_mm: tuple[float, float, float] | None
    """``ElementSize`` along i, j and k; None if not stated."""
    states_orientation: bool
    states_position: bool


class SourceRecord(StoredAttributes):
    """The file that an array was made from, and how to give it back."""

    file: RawPath
    size_bytes: Count
    sha256: str
    dtype: FileDtype
    shape_ijk: SizeIJK
    affine_ijk: Affine
    """4 x 4, voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""
    orientation: Orientation
    """Directions toward which the file's axes increase, e.g. ``LPS``: those it was turned by."""
    stored_dtype: FileDtype
    """Type of the numbers in the file, before scaling, with byte order, e.g. ``<i2``."""
    scaling: tuple[float, float] | None
    """Slope and intercept that the file itself applies to all its numbers."""
    nifti: NiftiRecord | None
    """None for other formats."""
    metaimage: MetaImageRecord | None
    """None for other formats."""


class ImageSourceRecord(SourceRecord):
    """The same of an image, and which series of a DICOM folder it is."""

    series: str | None = None
    """Where each series of the folder is a scan; see
    :class:`spinezarr.formats.dicom_series.CtSeries`."""


class LabelSourceRecord(SourceRecord):
    """The same of a mask, and what was made of its values."""

    parts: tuple[tuple[Number, RawPath], ...]
    """Label and path of each file, of a mask that is one file a structure; later ones win."""
    values: tuple[tuple[Number, Number], ...]
    """Value in the file and value stored, all else became background; empty: as they are."""
    rounded_voxels: Count
    """Voxels of the file that were off a whole number by a rounding error."""


class VertebraRecord(StoredAttributes):
    """One vertebra's voxels in one scan."""

    voxel_count: Annotated[int, Field(ge=1, le=_LARGEST_NUMBER)]
    centroid_zyx: ZYX
    """Mean voxel index."""
    start_zyx: PlaceZYX
    stop_zyx: PlaceZYX


class CentroidRecord(StoredAttributes):
    """One vertebra's center as annotated in a file of its own."""

    position_zyx_mm: ZYX
    """RAS+ mm."""
    label_distance_mm: float | None
    """To the nearest voxel of the vertebra's label, 0 inside it; None if the mask lacks it."""

    @property
    def is_near_label(self) -> bool:
        """Whether it is taken to be right; where the mask lacks the vertebra, nothing says no."""
        return self.label_distance_mm is None or self.label_distance_mm <= NEAR_LABEL_MM


class ManifestEntry(StoredAttributes):
    """One stored file.

    Its checksum is CRC-32 (RFC 1952), not the CRC-32C that chunks end with: a checksum over data
    that end with the same checksum of themselves depends on their length alone, and so would not
    tell two chunks, or two shards, of equal sizes apart.
    """

    size_bytes: Annotated[int, Field(ge=0, le=_LARGEST_FILE_BYTES)]
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

    @property
    def chunk_rows(self) -> npt.NDArray[np.void]:
        """:attr:`chunks` as rows."""
        return np.frombuffer(a2b_base64(self.chunks), CHUNK_ROW)

    def check(self, places: "ShardPlaces", chunk_bytes: int, *, is_full: bool) -> None:
        """Refuse a table of chunks that no such shard has.

        Parameters
        ----------
        places
            Of the shard.
        chunk_bytes
            Of the voxels of a chunk.
        is_full
            Whether no chunk may be absent.

        Raises
        ------
        DamagedMetadataError
            If these cannot be the chunks of the shard, or their sizes do not add up to
            :attr:`size_bytes`.
        """
        position, size, _ = np.frombuffer(a2b_base64(self.chunks), "<u4").reshape(-1, 3).T
        if len(position) != len(places.used) or (position != places.used).any():
            places.check(position, is_full=is_full)
        if not len(size):
            found, least, most = 0, 1, 1
        else:
            found, least, most = int(size.sum(dtype=np.int64)), int(size.min()), int(size.max())
        if least < 1:
            raise DamagedMetadataError("a chunk of 0 bytes", "at least 1")
        if most > chunk_bytes + LARGEST_OVERHEAD:
            raise DamagedMetadataError(
                f"a chunk of {most} bytes", f"at most {chunk_bytes + LARGEST_OVERHEAD}"
            )
        found += index_bytes(places.n)
        if found != self.size_bytes:
            raise DamagedMetadataError(
                f"chunks and index of {found} bytes", f"{self.size_bytes} bytes"
            )


@dataclass(frozen=True, slots=True, eq=False)
class ShardPlaces:
    """Which places of a shard belong to chunks of its array."""

    n: int
    """Chunks that have room in the shard."""
    used: npt.NDArray[np.uint32]
    """Places of those that lie in the array, in order."""
    is_used: npt.NDArray[np.bool_]
    """Whether each place is one of these."""

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, used_zyx: ShapeZYX, per_shard_zyx: ShapeZYX) -> Self:
        """Find the places of a shard.

        Parameters
        ----------
        used_zyx
            Chunks of the array in the shard along each axis.
        per_shard_zyx
            Chunks that have room in it.
        """
        numbers = np.arange(math.prod(per_shard_zyx), dtype=np.uint32).reshape(per_shard_zyx)
        used = numbers[tuple(map(slice, used_zyx))].ravel()
        is_used = np.zeros(numbers.size, bool)
        is_used[used] = True
        return cls(numbers.size, used, is_used)

    def check(self, positions: npt.NDArray[np.uint32], *, is_full: bool) -> None:
        """Refuse places of chunks that no such shard has.

        Raises
        ------
        DamagedMetadataError
            If they are not in order or outside of the array, or if one is absent and must not be.
        """
        if (positions[-1:] >= self.n).any() or (positions[1:] <= positions[:-1]).any():
            raise DamagedMetadataError(
                "positions that are not in order", f"ascending positions below {self.n}"
            )
        if is_full or not self.is_used[positions].all():
            raise DamagedMetadataError(
                f"{len(positions)} chunks", f"the {len(self.used)} that lie in the array"
            )


class ScanAttributes(StoredAttributes):
    """Attributes of a scan's group; written with the scan's last write."""

    dataset: str
    scan_id: ScanId
    patient_id: str
    source: str
    split: str
    split_index: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    license: str
    citation: str
    affine: Affine
    """4 x 4, stored voxel ``(x, y, z, 1)`` to RAS+ mm."""
    affine_columns: Literal["x, y, z, 1"] = "x, y, z, 1"
    shape_zyx: SizeZYX
    spacing_zyx_mm: SpacingZYX
    oblique_deg: float
    """Largest angle between a voxel axis and its world axis; the coordinates leave it out.

    Of a sheared grid, that of the nearest perpendicular axes.
    """
    label_state: LabelState | Literal["none"]
    """``none``: the scan has no mask."""
    image_dtype: ImageDtype
    """Type of the values."""
    image_stored_dtype: ImageDtype
    """Type of the numbers in the array ``image``."""
    image_scaling: tuple[float, float] | None
    """Slope and intercept that make values of these numbers; None if they are the values."""
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; None if no value is finite."""
    image_nan_voxels: Count
    """Values that are not a number."""
    image_infinite_voxels: Count
    image_checksum: str
    """Hash of the values, in their type: equal if and only if two images are equal."""
    vertebrae: dict[Vertebra, VertebraRecord]
    other_labels: dict[LabelValue, Count]
    """Voxels of each value that is no vertebra."""
    structures: dict[LabelValue, str]
    """Names of such values, where the recipe knows them; the rest lie outside the scheme."""
    centroids: dict[Level, CentroidRecord]
    """Annotated centers by level name; empty where the dataset has no such file."""
    columns: dict[str, str]
    """What the dataset's own tables say of the scan, by column."""
    sidecar: dict[str, str]
    """What the JSON file beside the image says, by key."""
    source_bytes: Count
    """Of all files of image and mask."""
    source_key: str
    """Hash of which files the scan was read from, and how; with another, it is read anew."""
    image_source: ImageSourceRecord
    label_source: LabelSourceRecord | None
    centroid_source: FileRecord | None
    written_by: str
    notes: tuple[str, ...]
    manifest: dict[
        Annotated[str, Field(pattern=SCAN_FILE)],
        Annotated[ManifestEntry | ShardEntry, Field(union_mode="left_to_right")],
    ]
    """Every file of the scan but its own ``zarr.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return self.model_dump(mode="json")

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxels of each value in the mask but background."""
        vertebrae = {VALUE_OF_NAME[name]: v.voxel_count for name, v in self.vertebrae.items()}
        return {**vertebrae, **{int(value): n for value, n in self.other_labels.items()}}

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


class _ScanMembers(StoredModel):
    metadata: ScanArrays


class ScanGroup(StoredModel):
    """The ``zarr.json`` of a scan."""

    attributes: ScanAttributes
    consolidated_metadata: _ScanMembers

    @property
    def arrays(self) -> ScanArrays:
        """Its arrays."""
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
        spacing = zip(scan.spacing_zyx_mm, reversed(_lengths_xyz(scan.affine)), strict=True)
        if not all(math.isclose(a, b, rel_tol=_SPACING_TOLERANCE) for a, b in spacing):
            raise DamagedMetadataError(
                f"a spacing of {scan.spacing_zyx_mm} mm", "that of the affine"
            )
        for name, vertebra in scan.vertebrae.items():
            box = zip(vertebra.start_zyx, vertebra.stop_zyx, scan.shape_zyx, strict=True)
            if not all(start < stop <= size for start, stop, size in box):
                raise DamagedMetadataError(f"voxels of {name} outside of the image", "all inside")
        return self

    def shards(self, name: str) -> dict[ShapeZYX, ShardEntry]:
        """Return what the manifest says of each shard of an array that is there, by its index.

        Raises
        ------
        DamagedMetadataError
            If the manifest lacks shards of an image, or names shards or chunks that the array
            cannot have.
        """
        array = self.arrays.image if name == IMAGE else self.arrays.label
        if array is None:
            return {}
        return _shards(name, array, self.attributes.manifest)


def _shards(
    name: str, array: ShardedArray, manifest: Mapping[str, ManifestEntry]
) -> dict[ShapeZYX, ShardEntry]:
    grid = chunk_grid(array.shape, array.shard_shape_zyx)
    per_shard = chunk_grid(array.shard_shape_zyx, array.chunk_shape_zyx)
    n_chunks_zyx = chunk_grid(array.shape, array.chunk_shape_zyx)
    chunk_bytes = math.prod(array.chunk_shape_zyx) * array.dtype.itemsize
    prefix = f"{name}/c"
    found: dict[ShapeZYX, ShardEntry] = {}
    for key, entry in manifest.items():
        if not key.startswith(prefix):
            continue
        separator, index = key[len(prefix)], key[len(prefix) + 1 :]
        if not isinstance(entry, ShardEntry):
            raise DamagedMetadataError("no table of chunks", "one", f"manifest.{key}")
        z, y, x = map(int, index.split(separator))
        if separator != array.separator or z >= grid[0] or y >= grid[1] or x >= grid[2]:
            raise DamagedMetadataError(key, f"shards of {name} alone", "manifest")
        used = tuple(
            min(n - i * per, per)
            for i, n, per in zip((z, y, x), n_chunks_zyx, per_shard, strict=True)
        )
        try:
            entry.check(ShardPlaces.of(used, per_shard), chunk_bytes, is_full=name == IMAGE)
        except DamagedMetadataError as problem:
            location = f"manifest.{key}.chunks"
            raise DamagedMetadataError(problem.found, problem.expected, location) from None
        found[z, y, x] = entry
    if name == IMAGE and len(found) < math.prod(grid):
        raise DamagedMetadataError(
            f"{len(found)} shards of {name}", f"{math.prod(grid)}", "manifest"
        )
    return found


def parse_scan_group(data: bytes) -> ScanGroup:
    """Read the ``zarr.json`` of a scan.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    return parse_sealed(data, ScanGroup)
