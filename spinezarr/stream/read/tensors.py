"""In which form does a server send a batch?

It sends safetensors (https://github.com/huggingface/safetensors#format), with two more entries of
JSON in the metadata. ``crc32c`` has the checksum of the bytes of each tensor. Voxels may be packed.
Their tensor is then the bytes of a Blosc frame, and ``packed`` has the dtype and shape of the
voxels.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from numcodecs import blosc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import Buffer

from spinezarr.store.sharding import ChunkDamagedError, crc32c, decompress
from spinezarr.strict_model import StrictModel

__all__ = [
    "PACKS",
    "Allocate",
    "DamagedTensorsError",
    "Pack",
    "Tensors",
    "pack_voxels",
    "write_tensors",
]

Pack = Literal["none", "lz4", "zstd"]
"""How voxels are compressed before they are sent."""
PACKS: Final[Mapping[Pack, tuple[str, int]]] = {"lz4": ("lz4", 5), "zstd": ("zstd", 1)}
"""Codec and level. On a CT, lz4 5 packs 440 to 1,000 MB/s a core, and zstd 1 packs 200 to 570."""
_DTYPES: Final = {"i1": "I8", "u1": "U8", "i2": "I16", "u2": "U16", "i4": "I32", "u4": "U32"} | {
    "i8": "I64", "u8": "U64", "f4": "F32", "f8": "F64"
}  # fmt: skip
"""Name of a dtype in safetensors, by its code in NumPy."""
_DTYPE_OF: Final = {name: np.dtype(f"<{code}") for code, name in _DTYPES.items()}
_ALIGNMENT: Final = 8
_HEADER_LENGTH: Final = struct.Struct("<Q")
_MAX_HEADER_BYTES: Final = 4 << 20
"""Largest header; that of 8,192 items takes half a megabyte."""

_Count = Annotated[int, Field(ge=0, le=1 << 40)]
Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


class DamagedTensorsError(ValueError):
    """Raised if bytes are not tensors, or differ from those that were sent."""


class _TensorModel(StrictModel):
    dtype: str
    shape: Annotated[tuple[_Count, ...], Field(max_length=8)]
    data_offsets: tuple[_Count, _Count]


class _PackedModel(StrictModel):
    dtype: str
    shape: Annotated[tuple[_Count, ...], Field(max_length=8)]


_DEFERRED: Final = ConfigDict(defer_build=True)
_HEADER: Final = TypeAdapter(dict[str, _TensorModel | dict[str, str]], config=_DEFERRED)
_CHECKSUMS: Final = TypeAdapter(dict[str, int], config=_DEFERRED)
_PACKED: Final = TypeAdapter(dict[str, _PackedModel], config=_DEFERRED)


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """The tensors of a response. They are checked when it is parsed, and unpacked on request.

    Attributes
    ----------
    metadata
        Values of the metadata, each as JSON.
    """

    metadata: Mapping[str, str]
    _data: Mapping[str, memoryview]
    _models: Mapping[str, _TensorModel]
    _packed: Mapping[str, _PackedModel]

    @classmethod
    def parse(cls, response: Buffer) -> "Tensors":
        """Parse the header of a response, and check the bytes of each tensor.

        Raises
        ------
        DamagedTensorsError
            If the bytes are not as they were sent.
        """
        try:
            return cls._parse(memoryview(response).cast("B"))
        except (ValidationError, struct.error) as problem:
            raise DamagedTensorsError("the description of the tensors is damaged") from problem

    @classmethod
    def _parse(cls, content: memoryview) -> "Tensors":
        (length,) = _HEADER_LENGTH.unpack_from(content)
        if length > _MAX_HEADER_BYTES:
            raise DamagedTensorsError(f"the description of the tensors has {length} bytes")
        first = _HEADER_LENGTH.size + length
        header = _HEADER.validate_json(bytes(content[_HEADER_LENGTH.size : first]))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise DamagedTensorsError("the tensors come without metadata")
        models = {name: model for name, model in header.items() if isinstance(model, _TensorModel)}
        data: dict[str, memoryview] = {}
        checksums = _CHECKSUMS.validate_json(metadata.get("crc32c", ""))
        for name, model in models.items():
            start, stop = model.data_offsets
            dtype = _DTYPE_OF.get(model.dtype)
            size = math.prod(model.shape) * (dtype.itemsize if dtype else 0)
            data[name] = content[first + start : first + stop]
            if dtype is None or stop - start != size or len(data[name]) != size:
                raise DamagedTensorsError(f"the tensor {name!r} is not as it is described")
            if (crc32c(data[name]) if size else 0) != checksums.get(name):
                raise DamagedTensorsError(f"the tensor {name!r} has another checksum")
        return cls(metadata, data, models, _PACKED.validate_json(metadata.get("packed", "{}")))

    def get(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, empty: Allocate = np.empty
    ) -> npt.NDArray[Any]:
        """Return a tensor as an array with its own memory.

        Parameters
        ----------
        name
            Name of the tensor.
        shape, dtype
            Shape and dtype that it must have.
        empty
            Returns a new array of a shape and dtype, as :func:`numpy.empty`.

        Raises
        ------
        DamagedTensorsError
            If there is no such tensor, or it has another shape or dtype.
        """
        expected = np.dtype(dtype).newbyteorder("<")
        data, model, packed = self._data.get(name), self._models.get(name), self._packed.get(name)
        if data is None or model is None:
            raise DamagedTensorsError(f"the tensor {name!r} is missing")
        sent = (
            (_DTYPE_OF[model.dtype], model.shape)
            if packed is None
            else (np.dtype(f"<{packed.dtype[1:]}"), packed.shape)
            if packed.dtype[1:] in _DTYPES
            else None
        )
        if sent != (expected, shape):
            raise DamagedTensorsError(f"the tensor {name!r} has another dtype or shape")
        out = empty(shape, expected)
        if packed is None:
            out[...] = np.frombuffer(data, expected).reshape(shape)
            return out
        try:
            decompress(data, out)
        except ChunkDamagedError as problem:
            raise DamagedTensorsError(f"the tensor {name!r} {problem}") from problem
        return out

    def size_bytes(self, name: str) -> int:
        """Return the number of bytes that were sent for a tensor."""
        return len(self._data[name])


def pack_voxels(voxels: npt.NDArray[Any], pack: Pack) -> bytes:
    """Return voxels as a Blosc frame. There must be at least one voxel."""
    name, level = PACKS[pack]
    shuffle = blosc.SHUFFLE if voxels.itemsize > 1 else blosc.NOSHUFFLE
    frame: bytes = blosc.compress(np.ascontiguousarray(voxels), name.encode(), level, shuffle)
    return frame


def write_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any], pack: Mapping[str, Pack]
) -> bytes:
    """Return the bytes to send for some tensors.

    Parameters
    ----------
    tensors
        Little-endian arrays by name.
    metadata
        Further metadata by name; each value is sent as JSON.
    pack
        How to pack tensors, by their names; others are not packed.
    """
    packed: dict[str, dict[str, Any]] = {}
    sent = dict(tensors)
    for name, method in pack.items():
        voxels = tensors[name]
        if method != "none" and voxels.size:
            packed[name] = {"dtype": voxels.dtype.str, "shape": voxels.shape}
            sent[name] = np.frombuffer(pack_voxels(voxels, method), np.uint8)
    offset, header, parts = 0, {}, []
    checksums: dict[str, int] = {}
    for name, values in sent.items():
        data = np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
        header[name] = {
            "dtype": _DTYPES[values.dtype.str[1:]],
            "shape": list(values.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        checksums[name] = crc32c(data) if data.nbytes else 0
        offset += data.nbytes
        parts.append(data)
    texts = {**metadata, "packed": packed, "crc32c": checksums}
    texts = {name: json.dumps(value) for name, value in texts.items()}
    text = json.dumps({"__metadata__": texts, **header}).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([_HEADER_LENGTH.pack(len(text)), text, *parts])
