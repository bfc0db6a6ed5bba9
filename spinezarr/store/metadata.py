"""Which bytes do the metadata and small arrays of a store have?

They are those that zarr-python and xarray would write, as a mapping from keys to contents. These
libraries take longer to write the table of a few scans than it takes to ingest the scans.
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import compress

from spinezarr.geometry import ShapeZYX
from spinezarr.scaling import Scaling
from spinezarr.store.array_metadata import Separator, chunk_key
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.layout import (
    IMAGE,
    LABEL,
    LABEL_CHUNKS,
    METADATA,
    SAMPLING,
    SCANS,
    SMALL_ARRAY,
    BloscCodecSpec,
    Profile,
    counts_key,
    fill_value,
)
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.records import flag_word
from spinezarr.store.sealed import seal
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32c, encode_chunk
from spinezarr.vertebrae import NAME_OF_VALUE

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "mask_members",
    "root_files",
    "sampling_group",
    "scan_files",
    "table_files",
    "with_members",
    "with_stored_encoding",
]

_AXIS_ATTRIBUTES = {
    "z": {"axis": "Z", "long_name": "toward superior"},
    "y": {"axis": "Y", "long_name": "toward anterior"},
    "x": {"axis": "X", "long_name": "toward the patient's right"},
}
_IMAGE_ATTRIBUTES: dict[str, Any] = {"long_name": "CT number", "units": "HU"}
_JSON_INDENT: Final = 2
"""Spaces of indentation in ``zarr.json``, as zarr-python writes it."""
_COUNT_COLUMNS: Final = {"columns": ["label", "chunk_z", "chunk_y", "chunk_x", "voxel_count"]}
_ZSTD_LEVEL: Final = 0
"""Level of the columns of a table; Zstandard takes its default for 0."""
_NAN_ATTRIBUTE: Final = {"_FillValue": "AAAAAAAA+H8="}
"""Attribute from which xarray knows that NaN means absent: the bytes of a NaN in base64."""
_CHECKSUM: Final = {"name": "crc32c"}


def root_files(attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of the root group and of the group that holds the scans."""
    return {METADATA: seal(_group(attributes)), f"{SCANS}/{METADATA}": _to_json(_group({}))}


def scan_files(
    profile: Profile,
    *,
    shape_zyx: ShapeZYX,
    image_dtype: np.dtype[Any],
    image_scaling: Scaling | None,
    coordinates_mm: Mapping[str, npt.NDArray[np.float64]],
    label_chunks: npt.NDArray[np.uint32] | None,
    label_values: tuple[int, ...],
    structures: Mapping[str, str],
    separator: Separator,
) -> dict[str, bytes]:
    """Return all files of a scan except shards; ``zarr.json`` lacks the attributes of the group.

    Parameters
    ----------
    profile
        Chunks and codecs of image and mask.
    shape_zyx
        Shape of image and mask in voxels.
    image_dtype
        Data type of the stored image; a mask is uint8.
    image_scaling
        Scaling from stored numbers to values; None if the numbers are the values.
    coordinates_mm
        Positions of the voxels along each of the axes ``z``, ``y`` and ``x``, in mm.
    label_chunks
        uint32 of shape ``(n, 5)``: label value, chunk index z, y, x, and the number of voxels of
        that label in that chunk; None for a scan without mask.
    label_values
        Values that occur in the mask, without background.
    structures
        Names of values that are no vertebrae.
    separator
        Separator in the keys of chunks and shards.
    """
    scale = {} if image_scaling is None else image_scaling.attributes
    voxels = {IMAGE: (image_dtype, profile.image, {**_IMAGE_ATTRIBUTES, **scale})}
    if label_chunks is not None:
        attributes = _label_attributes(label_values, structures)
        voxels[LABEL] = (np.dtype(np.uint8), profile.label, attributes)
    members = {
        name: _array(
            shape_zyx,
            profile.shard_shape_zyx(shape_zyx),
            dtype,
            fill=fill_value(name, dtype),
            codecs=[_sharding(profile.chunk_shape_zyx, dtype, codec)],
            attributes=attributes,
            dimensions=("z", "y", "x"),
            separator=separator,
        )
        for name, (dtype, codec, attributes) in voxels.items()
    }
    small: dict[str, tuple[npt.NDArray[Any], tuple[str, ...], Mapping[str, Any]]] = {
        axis: (positions, (axis,), {**_AXIS_ATTRIBUTES[axis], "units": "mm"})
        for axis, positions in coordinates_mm.items()
    }
    if label_chunks is not None:
        small[LABEL_CHUNKS] = (label_chunks, ("entry", "column"), _COUNT_COLUMNS)
        members |= sampling_group()
    chunks: dict[str, bytes] = {}
    for name, (values, dimensions, array_attributes) in small.items():
        members[name] = _array_of_one_chunk(
            values,
            fill=values.dtype.type(0).item(),
            codecs=_chunk_codecs(values.dtype, SMALL_ARRAY),
            attributes=array_attributes,
            dimensions=dimensions,
            separator=separator,
        )
        if values.size:
            key = chunk_key((0,) * values.ndim, separator)
            chunks[f"{name}/{key}"] = encode_chunk(values, SMALL_ARRAY)
    return {**_group_files({}, members), **chunks}


def with_stored_encoding(
    files: Mapping[str, bytes], arrays: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    """Return the files of a scan with the stored chunks and codecs of image and mask.

    The voxels may have been written with another profile, or with other numbers of the same one.

    Parameters
    ----------
    files
        Result of :func:`scan_files`; only the attributes of image and mask are used.
    arrays
        Stored metadata of the arrays, by name.
    """
    scan = json.loads(files[METADATA])
    consolidated = scan["consolidated_metadata"]["metadata"]
    data = dict(files)
    for name in (IMAGE, LABEL):
        if name in arrays:
            new = consolidated[name]
            consolidated[name] = {**new, **arrays[name], "attributes": new["attributes"]}
            data[f"{name}/{METADATA}"] = _to_json(consolidated[name])
    return {**data, METADATA: json.dumps(scan).encode()}


def mask_members(
    name: str,
    profile: Profile,
    *,
    shape_zyx: ShapeZYX,
    label_chunks: npt.NDArray[np.uint32],
    names: Mapping[int, str],
    separator: Separator,
) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Return the metadata of the arrays of a further mask, and the files of its voxel counts.

    Parameters
    ----------
    name
        Name of the mask.
    profile
        Chunks and codecs of the mask.
    shape_zyx
        Shape of the mask in voxels.
    label_chunks
        See :func:`scan_files`.
    names
        Name of each value that occurs, without background; empty for a value without a name.
    separator
        Separator in the keys of chunks and shards.

    Returns
    -------
    members
        Metadata of each array by its key below the scan.
    chunks
        Contents of the files of the counts by key; none if the mask is all background.
    """
    dtype, counts = np.dtype(np.uint8), counts_key(name)
    members = {
        name: _array(
            shape_zyx,
            profile.shard_shape_zyx(shape_zyx),
            dtype,
            fill=fill_value(name, dtype),
            codecs=[_sharding(profile.chunk_shape_zyx, dtype, profile.label)],
            attributes={"long_name": name.replace("_", " "), **_flags(names)},
            dimensions=("z", "y", "x"),
            separator=separator,
        ),
        counts: _array_of_one_chunk(
            label_chunks,
            fill=0,
            codecs=_chunk_codecs(label_chunks.dtype, SMALL_ARRAY),
            attributes=_COUNT_COLUMNS,
            dimensions=("entry", "column"),
            separator=separator,
        ),
    }
    chunk = f"{counts}/{chunk_key((0, 0), separator)}"
    return members, {chunk: encode_chunk(label_chunks, SMALL_ARRAY)} if len(label_chunks) else {}


def sampling_group() -> dict[str, dict[str, Any]]:
    """Return the metadata of the group of voxel counts by its key below the scan."""
    return {SAMPLING: _group({})}


def with_members(
    files: Mapping[str, bytes], members: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """Return the files of a group with further members, whose metadata its ``zarr.json`` repeats.

    Parameters
    ----------
    files
        Files of the group by key. Its ``zarr.json`` is not sealed.
    members
        Metadata of the members by key.
    """
    group = json.loads(files[METADATA])
    together = {**group["consolidated_metadata"]["metadata"], **_consolidated(members)}
    ordered = {name: together[name] for name in sorted(together, key=_consolidated_order)}
    group["consolidated_metadata"]["metadata"] = ordered
    return {**files, **_member_files(members), METADATA: json.dumps(group).encode()}


def table_files(table: "xr.Dataset", separator: Separator) -> dict[str, bytes]:
    """Return the files of the scan table; its ``manifest`` names all except ``zarr.json``."""
    members: dict[str, dict[str, Any]] = {}
    chunks: dict[str, bytes] = {}
    for name, variable in table.variables.items():
        values = variable.to_numpy()
        column = _column_form(values)
        members[str(name)] = _array_of_one_chunk(
            values,
            fill=column.fill,
            codecs=[
                column.serializer,
                _codec("zstd", {"level": _ZSTD_LEVEL, "checksum": False}),
                _CHECKSUM,
            ],
            attributes={**variable.attrs, **column.attributes},
            dimensions=tuple(map(str, variable.dims)),
            separator=separator,
        )
        if not column.is_blank:
            key = chunk_key((0,) * values.ndim, separator)
            chunks[f"{name}/{key}"] = _encode_column(values)
    files = {**_group_files(table.attrs, members), **chunks}
    metadata = json.loads(files.pop(METADATA))
    metadata["attributes"]["manifest"] = {
        key: ManifestEntry.of(content).model_dump() for key, content in sorted(files.items())
    }
    return {**files, METADATA: seal(metadata)}


@dataclass(frozen=True, slots=True)
class _ColumnForm:
    """How a column of a table is stored."""

    fill: float | str
    serializer: dict[str, Any]
    attributes: dict[str, str]
    is_blank: bool
    """True if every value is the fill value: Zarr then stores no chunk."""


def _column_form(values: npt.NDArray[Any]) -> _ColumnForm:
    if values.dtype.kind == "T":
        return _ColumnForm("", _codec("vlen-utf8", {}), {}, not any(values.tolist()))
    serializer = _bytes_codec(values.dtype)
    if values.dtype.kind == "f":
        is_blank = bool(np.isnan(values).all())
        return _ColumnForm(float("nan"), serializer, _NAN_ATTRIBUTE, is_blank)
    return _ColumnForm(0, serializer, {}, not values.any())


def _label_attributes(values: tuple[int, ...], structures: Mapping[str, str]) -> dict[str, Any]:
    """Return attributes that name the labels as CF flags [1]_.

    References
    ----------
    .. [1] https://cfconventions.org, section 3.5 "Flags"
    """
    name_of = {**NAME_OF_VALUE, **{int(value): name for value, name in structures.items()}}
    return {"long_name": "vertebra", **_flags({value: name_of.get(value, "") for value in values})}


def _flags(names: Mapping[int, str]) -> dict[str, Any]:
    """Return the CF flags of a mask, given the name of each value; a name may be empty."""
    words = [flag_word(value, name) for value, name in names.items()]
    return {"flag_values": [0, *names], "flag_meanings": " ".join(["background", *words])}


def _encode_column(values: npt.NDArray[Any]) -> bytes:
    """Compress a column of a table and append its checksum."""
    if values.dtype.kind == "T":
        plain = VLenUTF8().encode(values.ravel().astype(object))
    else:
        plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    packed = bytes(compress(plain, _ZSTD_LEVEL))
    return packed + crc32c(packed).to_bytes(CHECKSUM_BYTES, "little")


def _codec(name: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "configuration": dict(configuration)}


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"name": "bytes"} if dtype.itemsize == 1 else _codec("bytes", {"endian": "little"})


def _chunk_codecs(dtype: np.dtype[Any], codec: BloscCodecSpec) -> list[dict[str, Any]]:
    blosc = {
        "typesize": dtype.itemsize,
        "cname": codec.cname,
        "clevel": codec.clevel,
        "shuffle": codec.shuffle,
        "blocksize": codec.blocksize,
    }
    return [_bytes_codec(dtype), _codec("blosc", blosc), _CHECKSUM]


def _sharding(chunk_zyx: ShapeZYX, dtype: np.dtype[Any], codec: BloscCodecSpec) -> dict[str, Any]:
    coding = BlockCoding.of(codec, math.prod(chunk_zyx) * dtype.itemsize, dtype.itemsize)
    codec = replace(codec, blocksize=coding.block_bytes)
    configuration = {
        "chunk_shape": list(chunk_zyx),
        "codecs": _chunk_codecs(dtype, codec),
        "index_codecs": [_codec("bytes", {"endian": "little"}), _CHECKSUM],
        "index_location": "end",
    }
    return _codec("sharding_indexed", configuration)


def _array(
    shape: Sequence[int],
    chunk: Sequence[int],
    dtype: np.dtype[Any],
    *,
    fill: float | str,
    codecs: list[dict[str, Any]],
    attributes: Mapping[str, Any],
    dimensions: tuple[str, ...],
    separator: Separator,
) -> dict[str, Any]:
    is_nan = isinstance(fill, float) and math.isnan(fill)
    return {
        "shape": list(shape),
        "data_type": "string" if dtype.kind == "T" else dtype.name,
        "chunk_grid": _codec("regular", {"chunk_shape": list(chunk)}),
        "chunk_key_encoding": _codec("default", {"separator": separator}),
        "fill_value": "NaN" if is_nan else fill,
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": list(dimensions),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _array_of_one_chunk(
    values: npt.NDArray[Any],
    *,
    fill: float | str,
    codecs: list[dict[str, Any]],
    attributes: Mapping[str, Any],
    dimensions: tuple[str, ...],
    separator: Separator,
) -> dict[str, Any]:
    return _array(
        values.shape,
        [max(1, n) for n in values.shape],
        values.dtype,
        fill=fill,
        codecs=codecs,
        attributes=attributes,
        dimensions=dimensions,
        separator=separator,
    )


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def _group_files(
    attributes: Mapping[str, Any], members: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """Return ``zarr.json`` of a group and of its members; the group's file contains theirs."""
    consolidated = _consolidated(members)
    ordered = {name: consolidated[name] for name in sorted(members, key=_consolidated_order)}
    group = _with_members(_group(attributes), ordered)
    return {**_member_files(members), METADATA: json.dumps(group).encode()}


def _member_files(members: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    return {f"{name}/{METADATA}": _to_json(metadata) for name, metadata in members.items()}


def _consolidated(members: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metadata of members as those of their group repeat them."""
    return {
        name: _with_members(metadata, {}) if metadata["node_type"] == "group" else metadata
        for name, metadata in members.items()
    }


def _consolidated_order(name: str) -> tuple[int, str]:
    return name.count("/"), unicodedata.normalize("NFKC", name).casefold()


def _with_members(group: Mapping[str, Any], members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a group, including those of its members."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    return {
        "attributes": group["attributes"],
        "zarr_format": 3,
        "consolidated_metadata": consolidated,
        "node_type": "group",
    }


def _to_json(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=_JSON_INDENT).encode()
