"""What does the header of a MetaImage state, or why can it not be used?

Keys, their aliases and their defaults are those of MetaIO [1]_, in any order. Headers for which
MetaIO would guess are refused: a missing spacing, a key and its alias with different values, text
that is no number. Keys that ITK's reader ignores although they change values or positions are
refused, too: intensity scaling, units other than mm, and ``FileFormatVersion``.

References
----------
.. [1] https://github.com/Kitware/MetaIO, ``src/metaObject.cxx``, ``src/metaImage.cxx``
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from spinezarr.errors import FormatError
from spinezarr.formats.affine import LPS_TO_RAS, check_affine
from spinezarr.formats.file_kinds import KIND_BYTES, METAIMAGE, detect_kind
from spinezarr.formats.header_text import redact_header_text
from spinezarr.geometry import Grid, Matrix4x4, ShapeIJK
from spinezarr.text import NAME_BYTES

__all__ = ["HEADER_BYTES", "MetaImageGeometry", "MetaImageHeader", "parse_header"]

HEADER_BYTES: Final = 1 << 20
"""Largest header in bytes."""
_DTYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Type of each ``ElementType``, with the sizes of MetaIO's ``MET_ValueTypeSize``."""
_OFFSET: Final = ("Offset", "Position", "Origin", "ImagePosition")
_MATRIX: Final = ("TransformMatrix", "Rotation", "Orientation")
_BYTE_ORDER: Final = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_SPATIAL_RANK: Final = 3
_RANKS: Final = tuple(map(str, range(3, 11)))
"""Allowed numbers of axes: from three up to MetaIO's maximum of ten."""
_MAX_MAGNITUDE: Final = 1e6
"""Largest magnitude of a position, spacing or direction: a kilometer in mm."""
_MIN_SPACING_MM: Final = 1e-6
_UNIT_TOLERANCE: Final = 1e-3
"""Largest difference of the length of a direction from 1, which allows cosines of four digits."""
_SPACING_RTOL: Final = 1e-4
"""Largest relative difference of voxel size and spacing, which allows for rounding."""
_WORDS: Final = frozenset(
    {*_DTYPES, "MET_NONE", "MET_ASCII_CHAR", "MET_STRING", "MET_OTHER", "True", "False"}
    | {"mm", "cm", "m", "um", "?", "Image", "Mesh", "Tube", "Scene", "LOCAL", "LIST"}
)
"""Words that the format defines, which messages may show."""
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class MetaImageGeometry:
    """Parts of the geometry that a header states, in addition to the affine."""

    element_size_ijk_mm: tuple[float, float, float] | None
    """``ElementSize`` along i, j and k; None if the header has none."""
    states_orientation: bool
    """Whether the header has a ``TransformMatrix``, under one of its names."""
    states_position: bool
    """Whether the header has an ``Offset``, under one of its names."""


@dataclass(frozen=True, slots=True)
class MetaImageHeader:
    """The content of a header."""

    grid: Grid
    """Shape, and affine from voxel ``(i, j, k, 1)`` to RAS+ mm. The file itself uses LPS."""
    stored_dtype: np.dtype[Any]
    """Type of the stored numbers, with byte order."""
    data_file: str | None
    """Name of the data file in the same folder; None if the voxels follow the header."""
    header_size: int
    """``HeaderSize``: number of bytes before the voxels in their file.

    0 means only this header, and -1 means that the voxels end with the file.
    """
    compressed: bool
    compressed_bytes: int | None
    """``CompressedDataSize``; None if the header has none."""
    text_bytes: int
    """Length of the header in bytes."""
    geometry: MetaImageGeometry
    notes: tuple[str, ...]
    """Remarks on the header for the user."""


def parse_header(start: bytes, path: str) -> MetaImageHeader:
    """Parse the header.

    Parameters
    ----------
    start
        First :data:`HEADER_BYTES` bytes of the file, or fewer if it is shorter.
    path
        Path of the file, for messages.

    Raises
    ------
    FormatError
        If this is not the header of one volume of numbers with a usable affine.
    """
    fields = _parse_fields(start, path)
    notes: list[str] = []
    rank = _expect_one_image(fields, notes)
    grid = Grid(_shape(fields, rank), _affine(fields, rank, notes))
    geometry = _geometry(fields, rank, grid, notes)
    stored_dtype = _stored_dtype(fields, notes)
    compressed = fields.get(_flag, "CompressedData") or False
    compressed_bytes = fields.get(_integer, "CompressedDataSize") or 0
    header_size = fields.get(_integer, "HeaderSize") or 0
    if header_size < -1 or compressed_bytes < 0 or (compressed and header_size == -1):
        raise FormatError(
            f"{path}: HeaderSize {header_size} and CompressedDataSize {compressed_bytes} do not "
            "say where its voxels start; expected 0 or more, or a HeaderSize of -1 for voxels "
            "that are not compressed."
        )
    return MetaImageHeader(
        grid=grid,
        stored_dtype=stored_dtype,
        data_file=_data_file(fields),
        header_size=header_size,
        compressed=compressed,
        compressed_bytes=compressed_bytes or None,
        text_bytes=fields.text_bytes,
        geometry=geometry,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of a header."""

    path: str
    """Path of the file, for messages."""
    lines: tuple[tuple[str, str], ...]
    """Pairs of key and value in file order."""
    text_bytes: int

    def get(self, parse: Callable[[str], _Value], *names: str) -> _Value | None:
        """Return the value of a key or one of its aliases; None if the header has none of them."""
        matches = [(key, value) for key, value in self.lines if key in names]
        values = [self._parsed(parse, key, value) for key, value in matches]
        for (key, value), parsed in zip(matches, values, strict=True):
            if parsed != values[0]:
                raise FormatError(
                    f"{self.path}: its header says {matches[0][0]} = "
                    f"{redact_header_text(matches[0][1], _WORDS)} and {key} = "
                    f"{redact_header_text(value, _WORDS)}. Find out which is "
                    "right and remove the other."
                )
        return values[0] if values else None

    def require(self, parse: Callable[[str], _Value], *names: str) -> _Value:
        """Return the value of a key or one of its aliases, which the header must have."""
        value = self.get(parse, *names)
        if value is None:
            raise FormatError(
                f"{self.path}: its header has no {names[0]}. "
                "Write it again with a program that states it."
            )
        return value

    def _parsed(self, parse: Callable[[str], _Value], key: str, value: str) -> _Value:
        try:
            return parse(value)
        except ValueError as problem:
            raise FormatError(
                f"{self.path}: its header says {key} = {redact_header_text(value, _WORDS)}, "
                f"expected {problem}."
            ) from None


def _parse_fields(start: bytes, path: str) -> _Fields:
    """Split the header into its fields. It ends with the line of ``ElementDataFile``."""
    if not start:
        raise FormatError(f"{path}: is empty. Download it again.")
    lines: list[tuple[str, str]] = []
    offset = 0
    while offset < len(start):
        newline = start.find(b"\n", offset)
        end = newline if newline >= 0 else len(start)
        # A file name that is not UTF-8 gets a backslash here, and is refused for it.
        text = start[offset:end].decode("utf-8", "backslashreplace").strip()
        offset = min(end + 1, len(start))
        # MetaIO accepts a colon for an equals sign, and skips lines with neither.
        key, *value = re.split("[=:]", text, maxsplit=1)
        if value:
            lines.append((key.strip(), value[0].strip()))
        if value and lines[-1][0] == "ElementDataFile":
            return _Fields(path, tuple(lines), offset)
    reason = f"no line in its first {len(start)} bytes is 'ElementDataFile = ...'"
    kind = detect_kind(start[:KIND_BYTES])
    if kind is METAIMAGE:
        raise FormatError(f"{path}: its header has no end: {reason}. Download it again.")
    raise FormatError(
        f"{path}: is not a MetaImage: it looks like {kind.name}, and {reason}. "
        f"{kind.next_step or 'Download it again.'}"
    )


def _expect_one_image(fields: _Fields, notes: list[str]) -> int:
    """Return the number of axes; refuse all but one binary scalar image in mm without scaling."""
    rank = fields.require(_rank, "NDims")
    if rank > _SPATIAL_RANK:
        notes.append(
            f"the header has {rank} axes; those after the third, of length 1, are left out"
        )
    fields.get(_one_of("Image"), "ObjectType")
    fields.get(_one_of("1"), "ElementNumberOfChannels")
    fields.get(_one_of("mm", "?"), "DistanceUnits")
    fields.get(_one_of("0"), "FileFormatVersion")
    if fields.get(_flag, "BinaryData") is False:
        raise FormatError(
            f"{fields.path}: its voxels are text (BinaryData = False), expected binary ones. "
            "Write it again as binary."
        )
    slope = fields.get(_numbers(1), "ElementToIntensityFunctionSlope") or (1.0,)
    offset = fields.get(_numbers(1), "ElementToIntensityFunctionOffset") or (0.0,)
    if (slope, offset) != ((1.0,), (0.0,)):
        raise FormatError(
            f"{fields.path}: its header scales its values by {slope[0]:g} and adds "
            f"{offset[0]:g} (ElementToIntensityFunction), which ITK does not do. Write it again "
            "with the final values."
        )
    return rank


def _shape(fields: _Fields, rank: int) -> ShapeIJK:
    sizes = fields.require(_sizes(rank), "DimSize")
    if {*sizes[_SPATIAL_RANK:]} - {1}:
        raise FormatError(
            f"{fields.path}: its header says DimSize = {' '.join(map(str, sizes))}, expected 3 "
            "axes, or further ones of length 1. Split the series into one file for each volume."
        )
    i, j, k = sizes[:_SPATIAL_RANK]
    return (i, j, k)


def _stored_dtype(fields: _Fields, notes: list[str]) -> np.dtype[Any]:
    dtype = np.dtype(_DTYPES[fields.require(_one_of(*_DTYPES), "ElementType")])
    big_endian = fields.get(_flag, *_BYTE_ORDER)
    if big_endian is None and dtype.itemsize > 1:
        notes.append("the header states no byte order; assumed little-endian")
    return dtype.newbyteorder(">" if big_endian else "<")


def _affine(fields: _Fields, rank: int, notes: list[str]) -> Matrix4x4:
    """Return the 4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm. The header uses LPS."""
    spacings = _spacings(rank)
    # The size of a voxel may differ from the distance to the next, so it is only a fallback.
    spacing = fields.get(spacings, "ElementSpacing") or fields.require(spacings, "ElementSize")
    matrix = fields.get(_numbers(rank * rank), *_MATRIX)
    if matrix is None:
        notes.append("the header states no orientation (no TransformMatrix); assumed LPS")
        matrix = tuple(np.eye(rank).ravel().tolist())
    offset = fields.get(_numbers(rank), *_OFFSET)
    if offset is None:
        notes.append("the header states no position (no Offset); assumed 0, 0, 0")
        offset = (0.0,) * rank
    # Each row of the matrix in the file is the direction of one axis, a column of the affine.
    all_directions = np.array(matrix).reshape(rank, rank).T
    directions = all_directions[:_SPATIAL_RANK, :_SPATIAL_RANK]
    if (
        all_directions[:_SPATIAL_RANK, _SPATIAL_RANK:].any()
        or all_directions[_SPATIAL_RANK:, :_SPATIAL_RANK].any()
    ):
        raise FormatError(
            f"{fields.path}: its TransformMatrix turns the first three axes into others, expected "
            "0 there. Write it again as a 3D image."
        )
    lengths = np.linalg.norm(directions, axis=0)
    if np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
        raise FormatError(
            f"{fields.path}: its axes have directions of length {lengths.round(4).tolist()} "
            f"(TransformMatrix), expected 1. Write the lengths to ElementSpacing."
        )
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing[:_SPATIAL_RANK]
    affine[:3, 3] = offset[:_SPATIAL_RANK]
    affine = LPS_TO_RAS @ affine
    check_affine(affine, fields.path)
    return affine


def _geometry(fields: _Fields, rank: int, grid: Grid, notes: list[str]) -> MetaImageGeometry:
    size = fields.get(_spacings(rank), "ElementSize")
    size_mm = None if size is None else (size[0], size[1], size[2])
    spacing_mm = np.linalg.norm(grid.affine_ijk[:3, :3], axis=0)
    if size_mm is not None and not np.allclose(size_mm, spacing_mm, rtol=_SPACING_RTOL, atol=0):
        texts = [" x ".join(f"{mm:.4g}" for mm in sizes) for sizes in (size_mm, spacing_mm)]
        notes.append(
            f"ElementSize states voxels of {texts[0]} mm, but ElementSpacing states that they are "
            f"{texts[1]} mm apart; the spacing was used"
        )
    return MetaImageGeometry(
        element_size_ijk_mm=size_mm,
        states_orientation=fields.get(_numbers(rank * rank), *_MATRIX) is not None,
        states_position=fields.get(_numbers(rank), *_OFFSET) is not None,
    )


def _data_file(fields: _Fields) -> str | None:
    name = fields.require(_file_name, "ElementDataFile")
    return None if name.upper() == "LOCAL" else name


def _file_name(text: str) -> str:
    """Parse a file name without a path, so that a header cannot name a file elsewhere."""
    if (
        text in ("", ".", "..")
        or text.startswith("LIST")
        or set(text) & set("/\\%")
        or not text.isprintable()
        or len(text.encode()) > NAME_BYTES
    ):
        raise ValueError(
            "LOCAL, or the name of one file in the same folder: paths, lists and patterns are "
            "not followed. Join the files into one .mha"
        )
    return text


def _one_of(*expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in expected:
            raise ValueError(" or ".join(expected))
        return text

    return parse


def _flag(text: str) -> bool:
    """Parse a flag by its first letter, as MetaIO does."""
    if text[:1] not in tuple("TtFf10"):
        raise ValueError("True or False")
    return text[0] in "Tt1"


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("a whole number")
    return int(text)


def _rank(text: str) -> int:
    if text not in _RANKS:
        raise ValueError(f"3, or up to {_RANKS[-1]} where the further axes have length 1")
    return int(text)


def _sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        words = text.split()
        if len(words) != count or not all(_INTEGER.fullmatch(w) and int(w) > 0 for w in words):
            raise ValueError(f"{count} whole numbers above 0")
        return tuple(map(int, words))

    return parse


def _numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        words = text.split()
        numbers = tuple(float(w) for w in words if _NUMBER.fullmatch(w))
        if not len(words) == len(numbers) == count or max(map(abs, numbers)) > _MAX_MAGNITUDE:
            raise ValueError(f"{count} numbers within {_MAX_MAGNITUDE:g}")
        return numbers

    return parse


def _spacings(count: int) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        numbers = _numbers(count)(text)
        if min(numbers[:_SPATIAL_RANK]) < _MIN_SPACING_MM:
            raise ValueError(f"{count} distances in mm from {_MIN_SPACING_MM:g}")
        return numbers

    return parse
