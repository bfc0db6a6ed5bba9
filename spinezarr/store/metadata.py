"""Which bytes do the metadata and small arrays of a store have?

zarr-python and xarray write them into memory, as a mapping from keys to contents.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.abc.buffer import Buffer
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from spinezarr.geometry import ShapeZYX
from spinezarr.scaling import Scaling
from spinezarr.store.array_metadata import Separator
from spinezarr.store.layout import (
    IMAGE,
    LABEL,
    LABEL_CHUNKS,
    METADATA,
    SCANS,
    SMALL_ARRAY,
    BloscCodecSpec,
    Profile,
    fill_value,
)
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.sealed import seal
from spinezarr.vertebrae import NAME_OF_VALUE

__all__ = ["root_files", "scan_files", "table_files", "with_stored_encoding"]

_AXIS_ATTRIBUTES = {
    "z": {"axis": "Z", "long_name": "toward superior"},
    "y": {"axis": "Y", "long_name": "toward anterior"},
    "x": {"axis": "X", "long_name": "toward the patient's right"},
}


def _with_separator(files: Mapping[str, bytes], separator: Separator) -> dict[str, bytes]:
    """Return the files of a group with another separator in the keys of its chunks."""
    if separator == "/":
        return dict(files)
    changed: dict[str, bytes] = {}
    for key, data in files.items():
        array, is_chunk, chunk = key.rpartition("/c/")
        if is_chunk:
            changed[f"{array}/c.{chunk.replace('/', '.')}"] = data
        elif key.endswith(METADATA):
            old, new = (f'"separator": "{mark}"'.encode() for mark in ("/", separator))
            changed[key] = data.replace(old, new)
        else:
            changed[key] = data
    return changed


def root_files(attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of the root group and of the group that holds the scans."""
    files: dict[str, Buffer] = {}
    store = MemoryStore(files)
    root = zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
    root.create_group(SCANS)
    data = {key: buffer.to_bytes() for key, buffer in files.items()}
    return {**data, METADATA: seal(json.loads(data[METADATA]))}


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
    """Return all files of a scan but its shards; its ``zarr.json`` lacks the group's attributes.

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
    files: dict[str, Buffer] = {}
    store = MemoryStore(files)
    group = zarr.create_group(store, zarr_format=3)
    scale = {} if image_scaling is None else image_scaling.attributes
    arrays = {IMAGE: (image_dtype, profile.image, {**_IMAGE_ATTRIBUTES, **scale})}
    if label_chunks is not None:
        attributes = _label_attributes(label_values, structures)
        arrays[LABEL] = (np.dtype(np.uint8), profile.label, attributes)
    for name, (dtype, codec, attributes) in arrays.items():
        group.create_array(
            name,
            shape=shape_zyx,
            chunks=profile.chunk_shape_zyx,
            shards=profile.shard_shape_zyx(shape_zyx),
            dtype=dtype,
            fill_value=fill_value(name, dtype),
            compressors=[_blosc(codec, dtype), Crc32cCodec()],
            dimension_names=("z", "y", "x"),
            attributes=attributes,
        )
    for axis, positions in coordinates_mm.items():
        _small_array(group, axis, positions, (axis,), {**_AXIS_ATTRIBUTES[axis], "units": "mm"})
    if label_chunks is not None:
        columns = {"columns": ["label", "chunk_z", "chunk_y", "chunk_x", "voxel_count"]}
        _small_array(group, LABEL_CHUNKS, label_chunks, ("entry", "column"), columns)
    _consolidate(store)
    return _with_separator({key: buffer.to_bytes() for key, buffer in files.items()}, separator)


def with_stored_encoding(
    files: Mapping[str, bytes], arrays: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    """Return the files of a scan with the stored chunks and codecs of image and mask.

    The voxels may have been written with another profile, or with other numbers of the same one.

    Parameters
    ----------
    files
        Result of :func:`scan_files`; of image and mask only the attributes are used.
    arrays
        Stored metadata of the arrays, by name.
    """
    scan = json.loads(files[METADATA])
    together = scan["consolidated_metadata"]["metadata"]
    data = dict(files)
    for name in (IMAGE, LABEL):
        if name in arrays:
            new = together[name]
            together[name] = {**new, **arrays[name], "attributes": new["attributes"]}
            data[f"{name}/{METADATA}"] = json.dumps(together[name], indent=2).encode()
    return {**data, METADATA: json.dumps(scan).encode()}


def table_files(table: xr.Dataset, separator: Separator) -> dict[str, bytes]:
    """Return the files of the scan table; its ``manifest`` names all but ``zarr.json``."""
    files: dict[str, Buffer] = {}
    store = MemoryStore(files)
    encoding = {
        name: {
            "chunks": tuple(max(1, n) for n in variable.shape),
            "compressors": [ZstdCodec(), Crc32cCodec()],
        }
        for name, variable in table.variables.items()
    }
    with _unspecified_allowed():
        table.to_zarr(store, zarr_format=3, encoding=encoding, consolidated=True)
    data = _with_separator({key: buffer.to_bytes() for key, buffer in files.items()}, separator)
    metadata = json.loads(data.pop(METADATA))
    metadata["attributes"]["manifest"] = {
        key: ManifestEntry.of(content).model_dump() for key, content in sorted(data.items())
    }
    return {**data, METADATA: seal(metadata)}


@contextmanager
def _unspecified_allowed() -> Iterator[None]:
    """Silence the warning of zarr-python that consolidated metadata are an extension."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        yield


_IMAGE_ATTRIBUTES: dict[str, Any] = {"long_name": "CT number", "units": "HU"}


def _label_attributes(values: tuple[int, ...], structures: Mapping[str, str]) -> dict[str, Any]:
    """Return attributes that name the labels as CF flags [1]_.

    References
    ----------
    .. [1] https://cfconventions.org, section 3.5 "Flags"
    """
    known = {**NAME_OF_VALUE, **{int(value): name for value, name in structures.items()}}
    names = ["_".join(known.get(value, f"label_{value}").split()) for value in values]
    return {
        "long_name": "vertebra",
        "flag_values": [0, *values],
        "flag_meanings": " ".join(["background", *names]),
    }


def _blosc(codec: BloscCodecSpec, dtype: np.dtype[Any]) -> BloscCodec:
    return BloscCodec(
        cname=codec.cname,
        clevel=codec.clevel,
        shuffle=codec.shuffle,
        blocksize=codec.blocksize,
        typesize=dtype.itemsize,
    )


def _small_array(
    group: zarr.Group,
    name: str,
    values: npt.NDArray[Any],
    dimensions: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, n) for n in values.shape),
        dtype=values.dtype,
        fill_value=0,
        compressors=[_blosc(SMALL_ARRAY, values.dtype), Crc32cCodec()],
        dimension_names=dimensions,
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _consolidate(store: MemoryStore) -> None:
    with _unspecified_allowed():
        zarr.consolidate_metadata(store, zarr_format=3)
