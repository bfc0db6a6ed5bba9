"""In which formats are patches sent?

The default is a safetensors file (https://github.com/huggingface/safetensors#format). Its tensors
``image``, ``label`` and those with the names of further masks hold the items that could be read, in
the requested order. Other tensors hold the other fields of the batch, and the metadata hold the
status of each requested item. A compressed tensor is a Blosc frame of bytes, and the metadata hold
its type and shape. An Arrow stream holds the same: one row for each item, columns of tensors, and
the metadata in its schema.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.serve.compression import gzip_bytes
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.tensors import Pack, write_tensors

__all__ = [
    "BATCH_MEDIA_TYPES",
    "NIFTI",
    "NIFTI_GZ",
    "PATCH_MEDIA_TYPES",
    "FormatOptions",
    "encode_batch",
    "is_available",
]

ARROW: Final = "application/vnd.apache.arrow.stream"
NIFTI: Final = "application/x-nifti"
NIFTI_GZ: Final = "application/gzip"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/x-safetensors"
_SCAN_ID: Final = "scan_id"
"""Column of an Arrow stream."""
BATCH_MEDIA_TYPES: Final = (SAFETENSORS, ARROW)
"""Media types of several patches; the first is the default."""
PATCH_MEDIA_TYPES: Final = (SAFETENSORS, ARROW, NPY, NIFTI_GZ, NIFTI)
"""Media types of one patch."""


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """Options of a format.

    Attributes
    ----------
    pack
        Compression of the voxels, if the format allows a choice.
    array
        Array to send, in formats that hold one array.
    flat_axis
        Axis of ``(z, y, x)`` that slices lack: 0, 1 or 2; None for patches.
    """

    pack: Pack = "none"
    array: str = "image"
    flat_axis: int | None = None


def is_available(media_type: str) -> bool:
    """Whether the packages that write a format are installed."""
    return media_type != ARROW or find_spec("pyarrow") is not None


def encode_batch(
    media_type: str, batch: Batch, statuses: Sequence[str], options: FormatOptions
) -> bytes:
    """Encode a batch.

    Parameters
    ----------
    media_type
        Media type of the format.
    batch
        The items that could be read; a single one for formats of one patch.
    statuses
        Status of each requested item.
    options
        Options of the format.

    Raises
    ------
    UsageError
        If the format cannot hold the batch.
    """
    if media_type not in BATCH_MEDIA_TYPES and options.pack != "none":
        raise UsageError(f"pack: {media_type} has no compression; leave the option out.")
    return _WRITERS[media_type](batch, statuses, options)


def _voxels(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    label = {} if batch.label is None else {"label": batch.label}
    return {"image": batch.image, **label, **batch.masks}


def _tensors(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    others = {
        "index": batch.index,
        "start_zyx": batch.start_zyx,
        "padding_zyx": batch.padding_zyx,
        "affine": batch.affine,
        "spacing_zyx_mm": batch.spacing_zyx_mm,
    }
    for name in batch.masks:
        if name in others or name == _SCAN_ID:
            raise UsageError(
                f"labels: the mask {name} has the name of another tensor; read its array below "
                "/zarr instead."
            )
    return {**_voxels(batch), **others}


def _as_safetensors(batch: Batch, statuses: Sequence[str], options: FormatOptions) -> bytes:
    pack_of_tensor: dict[str, Pack] = dict.fromkeys(_voxels(batch), options.pack)
    return write_tensors(
        _tensors(batch), {"status": list(statuses), "dims": batch.dims}, pack_of_tensor
    )


def _as_arrow(batch: Batch, statuses: Sequence[str], options: FormatOptions) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  optional

    columns: dict[str, Any] = {_SCAN_ID: pa.array(batch.scan_id, pa.string())}
    for name, values in _tensors(batch).items():
        columns[name] = (
            pa.array(values)
            if values.ndim == 1
            else pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:]),
                pa.FixedSizeListArray.from_arrays(values.ravel(), int(np.prod(values.shape[1:]))),
            )
        )
    metadata = {"status": json.dumps(list(statuses)), "dims": json.dumps(batch.dims)}
    record_batch = pa.RecordBatch.from_pydict(columns, metadata=metadata)
    compression = None if options.pack == "none" else options.pack
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, record_batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as stream:
        stream.write_batch(record_batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _as_npy(batch: Batch, _: Sequence[str], options: FormatOptions) -> bytes:
    file = BytesIO()
    np.save(file, _array(batch, options)[0], allow_pickle=False)
    return file.getvalue()


def _as_nifti(batch: Batch, _: Sequence[str], options: FormatOptions) -> bytes:
    import nibabel as nib  # noqa: PLC0415  few requests need it

    from spinezarr.export.nifti_placement import NiftiPlacement  # noqa: PLC0415  imports nibabel

    values = _array(batch, options)
    if "slice" in batch.dims and options.array == "image":
        raise UsageError(
            "neighbors: NIfTI holds one slice; leave neighbors out, or choose another format."
        )
    if values.dtype.itemsize > 4 and values.dtype.kind in "iu":  # noqa: PLR2004  bytes
        raise UsageError(
            "image_dtype: few programs read 64-bit integers in NIfTI; choose another type."
        )
    volume = (
        values[0] if options.flat_axis is None else np.expand_dims(values[0], options.flat_axis)
    )
    voxels = np.ascontiguousarray(volume).T
    header = NiftiPlacement.from_affine(batch.affine[0], voxels.shape).header(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    data: bytes = nib.Nifti1Image(voxels, None, header).to_bytes()
    return data


def _as_nifti_gz(batch: Batch, statuses: Sequence[str], options: FormatOptions) -> bytes:
    return gzip_bytes(_as_nifti(batch, statuses, options))


def _array(batch: Batch, options: FormatOptions) -> npt.NDArray[Any]:
    voxels = _voxels(batch)
    if options.array not in voxels:
        raise UsageError(f"array: {options.array} must also be in labels.")
    return voxels[options.array]


_WRITERS: Final[Mapping[str, Callable[[Batch, Sequence[str], FormatOptions], bytes]]] = (
    MappingProxyType(
        {
            SAFETENSORS: _as_safetensors,
            ARROW: _as_arrow,
            NPY: _as_npy,
            NIFTI: _as_nifti,
            NIFTI_GZ: _as_nifti_gz,
        }
    )
)
