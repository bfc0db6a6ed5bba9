"""How are the files of the scan table parsed within bounds?

A store may come from anybody, and zarr-python would allocate as much memory as the files state.
This module accepts the data types and dimensions that the table has, and bounds the memory of all
columns together.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import decompress
from pydantic import AfterValidator, Field, model_validator

from spinezarr.errors import DamagedMetadataError
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.store.array_metadata import ImageDtype, Separator
from spinezarr.store.attributes import LARGEST_LENGTH_MM, ORIENTATIONS, is_scan_id
from spinezarr.store.layout import LARGEST_AXIS, LARGEST_SCANS, METADATA, is_mask_name
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.mask_columns import MASK, STRUCTURE, mask_column_forms
from spinezarr.store.scan_table import Column, ScanTable
from spinezarr.store.sealed import StoredModel, describe_value, parse_sealed
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32c
from spinezarr.store.table import fixed_columns
from spinezarr.text import is_printable, is_valid_file_name
from spinezarr.vertebrae import LEVELS, LabelState

__all__ = ["StoredTable", "TableFile", "is_table_file", "parse_table"]

_MAX_TABLE_BYTES: Final = 192 << 20
"""Largest memory of all columns together, in bytes."""
_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_HEADER_BYTES: Final = 6
"""Size of the shortest Zstandard header that states the size of the content, in bytes."""
_DTYPES: Final = get_args(ImageDtype)
_DTYPE_COLUMNS: Final = ("image_dtype", "image_stored_dtype")
_COUNT_COLUMNS: Final = (
    "voxel_count",
    "image_nan_voxels",
    "image_infinite_voxels",
    "other_label_voxels",
    "source_bytes",
    "stored_bytes",
)
_POSITION_COLUMNS: Final = (
    "centroid_zyx_mm",
    "annotated_centroid_zyx_mm",
    "annotated_centroid_distance_mm",
)
"""Columns of positions and distances in mm, NaN for an absent vertebra."""
_DIMENSIONS: Final = (
    ("scan",),
    ("vertebra",),
    ("axis",),
    ("scan", "axis"),
    ("scan", "vertebra"),
    ("scan", "vertebra", "axis"),
    ("mask",),
    ("structure",),
    ("scan", "mask"),
    ("scan", "mask", "structure"),
)
_FILL_VALUES: Final[dict[str, Any]] = {"string": "", "int32": 0, "int64": 0, "float64": math.nan}
"""Value of a column whose chunk is not stored, by data type."""
_XARRAY_ATTRIBUTES: Final = {"_FillValue", "coordinates"}
"""Attributes with which xarray encodes a column; the decoded values do not need them."""


def _checked_column(name: str) -> str:
    if not _is_column_name(name):
        raise DamagedMetadataError(describe_value(name), "the name of an array")
    return name


def _is_column_name(name: str) -> bool:
    is_shown = is_valid_file_name(name) and is_printable(name)
    return is_shown and not name.startswith("__") and name != METADATA


def is_table_file(key: str) -> bool:
    """Whether a table can have a file with this key, below the table's folder."""
    column, _, file = key.partition("/")
    return key == METADATA or (_is_column_name(column) and file in _COLUMN_FILES)


def _checked_key(key: str) -> str:
    if key == METADATA or not is_table_file(key):
        raise DamagedMetadataError(describe_value(key), "the key of a file of a table")
    return key


_COLUMN_FILES: Final = {METADATA} | {
    separator.join(["c", *"0" * n]) for n in (1, 2, 3) for separator in "/."
}
ColumnName = Annotated[str, AfterValidator(_checked_column)]
TableFile = Annotated[str, AfterValidator(_checked_key)]
"""Key of a file of the table other than its ``zarr.json``, below the table's folder."""
_Size = Annotated[int, Field(ge=0, le=LARGEST_SCANS)]


class _TextCodec(StoredModel):
    name: Literal["vlen-utf8", "bytes"]


class _ZstdCodec(StoredModel):
    name: Literal["zstd"]


class _Crc32cCodec(StoredModel):
    name: Literal["crc32c"]


class _KeyConfiguration(StoredModel):
    separator: Separator


class _KeyEncoding(StoredModel):
    name: Literal["default"]
    configuration: _KeyConfiguration


class _Column(StoredModel):
    node_type: Literal["array"]
    shape: Annotated[tuple[_Size, ...], Field(min_length=1, max_length=3)]
    dimension_names: tuple[Literal["scan", "vertebra", "axis", "mask", "structure"], ...]
    data_type: Literal["string", "int32", "int64", "float64"]
    codecs: tuple[_TextCodec, _ZstdCodec, _Crc32cCodec]
    chunk_key_encoding: _KeyEncoding
    storage_transformers: tuple[()] = ()
    attributes: dict[str, Any]

    @model_validator(mode="after")
    def _check_form(self) -> "_Column":
        if self.dimension_names not in _DIMENSIONS or len(self.shape) != len(self.dimension_names):
            raise DamagedMetadataError(f"dimensions {self.dimension_names}", "those of a column")
        if (self.data_type == "string") != (self.codecs[0].name == "vlen-utf8"):
            raise DamagedMetadataError(
                f"the codec {self.codecs[0].name}", f"one for {self.data_type}"
            )
        return self

    @property
    def key(self) -> str:
        """Key of the only chunk of the column, below the column's folder."""
        separator = self.chunk_key_encoding.configuration.separator
        return separator.join(["c", *"0" * len(self.shape)])


class _Columns(StoredModel):
    metadata: dict[ColumnName, _Column]


class _TableAttributes(StoredModel):
    dataset: str
    title: str | None = None
    license: str | None = None
    citation: str | None = None
    homepage: str | None = None
    codec_profile: str | None = None
    pseudonym_key: str | None = None
    derived_from: str | None = None
    derivation: str | None = None
    manifest: dict[TableFile, ManifestEntry]


class _TableGroup(StoredModel):
    attributes: _TableAttributes
    consolidated_metadata: _Columns

    @model_validator(mode="after")
    def _check_sizes(self) -> "_TableGroup":
        if any(e.size_bytes > METADATA_BYTES for e in self.attributes.manifest.values()):
            raise DamagedMetadataError(
                "a larger file", f"at most {METADATA_BYTES} bytes", "manifest"
            )
        sizes = {"vertebra": len(LEVELS), "axis": 3}
        for name, column in self.consolidated_metadata.metadata.items():
            for dimension, size in zip(column.dimension_names, column.shape, strict=True):
                if sizes.setdefault(dimension, size) != size:
                    raise DamagedMetadataError(
                        f"{size} values along {dimension}", f"{sizes[dimension]}", name
                    )
        return self


@dataclass(frozen=True, slots=True, eq=False)
class StoredTable:
    """The checked ``zarr.json`` of a table, from which its chunks can be read."""

    manifest: Mapping[str, ManifestEntry]
    """Entries of all files except ``zarr.json``, by key below the table's folder."""
    columns: Mapping[str, _Column]
    """Metadata of the columns by name."""
    attributes: Mapping[str, str]
    """Attributes that describe the dataset."""

    @property
    def chunks(self) -> Mapping[str, ManifestEntry]:
        """Entries of the files with values; the table's own metadata describe all columns."""
        return {key: e for key, e in self.manifest.items() if not key.endswith("/zarr.json")}

    @property
    def separator(self) -> Separator:
        """Separator in the keys of its chunks."""
        separators = {
            column.chunk_key_encoding.configuration.separator for column in self.columns.values()
        }
        return "." if "." in separators else "/"

    def table(self, chunks: Mapping[str, bytes]) -> ScanTable:
        """Decode the columns; columns of text become NumPy arrays of Python objects.

        Parameters
        ----------
        chunks
            Contents of the files in :attr:`chunks`, after comparing them with the manifest.

        Raises
        ------
        DamagedMetadataError
            If they are not the columns of a scan table.
        """
        columns: dict[str, Column] = {}
        free_bytes = _MAX_TABLE_BYTES
        for name, column in self.columns.items():
            values, n_bytes = _decode_column(column, chunks.get(f"{name}/{column.key}"), free_bytes)
            free_bytes -= n_bytes
            attributes = {k: v for k, v in column.attributes.items() if k not in _XARRAY_ATTRIBUTES}
            columns[name] = Column(column.dimension_names, values, attributes)
        table = ScanTable(columns, self.attributes)
        _check_values(table)
        return table


def parse_table(data: bytes) -> StoredTable:
    """Parse the ``zarr.json`` of a table.

    Raises
    ------
    DamagedMetadataError
        If spinezarr did not write it, or it is damaged.
    """
    group = parse_sealed(data, _TableGroup)
    manifest = group.attributes.manifest
    attributes = group.attributes.model_dump(exclude={"manifest"}, exclude_none=True)
    return StoredTable(manifest, group.consolidated_metadata.metadata, attributes)


def _decode_column(
    column: _Column, chunk: bytes | None, free_bytes: int
) -> tuple[npt.NDArray[Any], int]:
    """Decode a column; return it and its size in bytes, which is at most ``free_bytes``."""
    n = math.prod(column.shape)
    dtype = np.dtype(object if column.data_type == "string" else column.data_type)
    n_bytes = n * dtype.itemsize
    if n_bytes > free_bytes:
        raise DamagedMetadataError("larger columns", f"at most {_MAX_TABLE_BYTES} bytes together")
    if chunk is None:
        return np.full(column.shape, _FILL_VALUES[column.data_type], dtype), n_bytes
    packed, checksum = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
    found, expected = crc32c(packed), int.from_bytes(checksum, "little")
    if found != expected:
        raise DamagedMetadataError(f"a column with crc32c {found:08x}", f"{expected:08x}")
    size = _decoded_bytes(packed)
    is_text = dtype.kind == "O"
    if size + n_bytes > free_bytes or not (is_text or size == n_bytes):
        raise DamagedMetadataError(f"a column of {size} bytes", f"{n} values of {column.data_type}")
    decoded = np.empty(size, np.uint8)
    try:
        decompress(packed, decoded)
    except RuntimeError as problem:
        raise DamagedMetadataError(f"other bytes ({problem})", "a Zstandard frame") from None
    if not is_text:
        return decoded.view(dtype.newbyteorder("<")).astype(dtype).reshape(column.shape), n_bytes
    texts = np.empty(n, object)
    texts[:] = list(_decode_texts(decoded.tobytes(), n))
    return texts.reshape(column.shape), size + n_bytes


def _decoded_bytes(packed: bytes) -> int:
    """Return the decoded size that a Zstandard frame states (RFC 8878, section 3.1.1.1)."""
    magic, descriptor = struct.unpack_from("<IB", packed.ljust(_ZSTD_HEADER_BYTES, b"\0"))
    single, width = descriptor >> 5 & 1, descriptor >> 6
    size_bytes = (single, 2, 4, 8)[width]
    if magic != _ZSTD_MAGIC or not size_bytes or len(packed) < _ZSTD_HEADER_BYTES:
        raise DamagedMetadataError("other bytes", "a Zstandard frame that states its size")
    offset = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(packed[offset : offset + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size  # noqa: PLR2004  numbers of the RFC


def _decode_texts(data: bytes, n: int) -> Iterator[str]:
    """Yield the texts of numcodecs' ``vlen-utf8``: their count, then each with its length."""
    count = int.from_bytes(data[:4], "little")
    if count != n:
        raise DamagedMetadataError(f"a column of {count} texts", f"{n}")
    end = 4
    for _ in range(n):
        start = end + 4
        end = start + int.from_bytes(data[end:start], "little")
        if end > len(data) or start > len(data):
            raise DamagedMetadataError("a column that ends early", f"{n} texts")
        try:
            yield data[start:end].decode()
        except UnicodeDecodeError as problem:
            raise DamagedMetadataError(f"other bytes ({problem})", "texts in UTF-8") from None
    if end != len(data):
        raise DamagedMetadataError("bytes after the last text of a column", "none")


def _are_masks(names: str, checksums: str) -> bool:
    """Whether two cells hold names of masks, and one checksum for each."""
    masks = names.split(" ") if names else []
    are_names = all(map(is_mask_name, masks)) and len(set(masks)) == len(masks)
    return are_names and len(masks) == len(checksums.split())


def _check_mask_columns(table: ScanTable) -> None:
    """Refuse columns of further masks that do not belong to the masks of the scans."""
    forms = mask_column_forms()
    expected = sorted({name for cell in table["masks"] for name in cell.split()})
    if not expected:
        for name in forms.keys() & table.columns.keys():
            raise DamagedMetadataError("such a column", "none without further masks", name)
        return
    for name, form in forms.items():
        if STRUCTURE not in form[0] or STRUCTURE in table.columns or name in table.columns:
            _check_form(table, name, *form)
    if table[MASK].tolist() != expected:
        raise DamagedMetadataError("other names", "those of the further masks", MASK)
    structures = table[STRUCTURE].tolist() if STRUCTURE in table.columns else []
    if len(set(structures)) != len(structures):
        raise DamagedMetadataError("a name twice", "each name once", STRUCTURE)
    if "mask_voxel_count" in table.columns and not (table["mask_voxel_count"] >= 0).all():
        raise DamagedMetadataError("a negative count", "counts of voxels", "mask_voxel_count")


def _check_form(
    table: ScanTable, name: str, dimensions: tuple[str, ...], dtype: np.dtype[Any]
) -> None:
    """Refuse a column that is missing, or has other dimensions or another data type."""
    if name not in table.columns:
        raise DamagedMetadataError("no such column", "one", name)
    column = table.columns[name]
    found = column.values.dtype
    if column.dimensions != dimensions or (found != dtype and dtype.kind != "T"):
        raise DamagedMetadataError(
            f"{column.dimensions} of {found}", f"{dimensions} of {dtype}", name
        )
    if (found.kind == "O") != (dtype.kind == "T"):
        raise DamagedMetadataError(f"{found}", f"{dtype}", name)


def _check_values(table: ScanTable) -> None:
    """Refuse a table that :func:`spinezarr.store.table.build_table` cannot have made."""
    for name, form in fixed_columns().items():
        _check_form(table, name, *form)
    if table["vertebra"].tolist() != list(LEVELS) or table["axis"].tolist() != [*"zyx"]:
        raise DamagedMetadataError("other vertebrae or axes", "C1 to the last level, and z, y, x")
    scans = table["scan"].tolist()
    if len(set(scans)) != len(scans) or not all(map(is_scan_id, scans)):
        raise DamagedMetadataError(
            "several rows of a scan, or an impossible name", "one row per scan", "scan"
        )
    shape, spacing = table["shape_zyx"], table["spacing_zyx_mm"]
    start, stop = table["bbox_start_zyx"], table["bbox_stop_zyx"]
    absent = (start == -1).all(-1) & (stop == -1).all(-1)
    inside = ((start >= 0) & (start < stop) & (stop <= shape[:, None])).all(-1)
    valid = {
        "shape_zyx": (shape >= 1) & (shape <= LARGEST_AXIS),
        "spacing_zyx_mm": (spacing > 0) & (spacing <= LARGEST_LENGTH_MM),
        "bbox_start_zyx": absent | inside,
        **{name: table[name] >= 0 for name in _COUNT_COLUMNS},
        **{name: ~(np.abs(table[name]) > LARGEST_LENGTH_MM) for name in _POSITION_COLUMNS},
        **{name: np.isin(table[name], _DTYPES) for name in _DTYPE_COLUMNS},
        "orientation": np.isin(table["orientation"], [*ORIENTATIONS]),
        "label_state": np.isin(table["label_state"], [*get_args(LabelState), "none"]),
        "masks": np.array([*map(_are_masks, table["masks"], table["mask_checksums"])], bool),
    }
    for name, is_valid in valid.items():
        if not is_valid.all():
            row = int(np.flatnonzero(~is_valid.reshape(len(scans), -1).all(1))[0])
            raise DamagedMetadataError(
                f"an impossible value of scan {scans[row]!r}", "a possible one", name
            )
    _check_mask_columns(table)
