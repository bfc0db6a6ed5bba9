"""What does the header of an NRRD file state, or why can it not be used?

pynrrd parses the fields. Headers that name another file as their data are refused, because that
could be any file of the machine. So are headers without a position, because such a mask cannot be
compared with its image.

References
----------
.. [1] NRRD: https://teem.sourceforge.net/nrrd/format.html
.. [2] Segments of 3D Slicer (``Segment0_Name`` and so on):
   https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html, section
   "Segmentation file format"
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any, Final

import nrrd
import numpy as np

from spinezarr.errors import FormatError
from spinezarr.formats.affine import check_affine
from spinezarr.formats.file_kinds import wrong_kind_error
from spinezarr.formats.header_text import redact_header_text
from spinezarr.geometry import Grid

__all__ = ["HEADER_BYTES", "NrrdHeader", "NrrdSegment", "parse_nrrd_header"]

HEADER_BYTES: Final = 1 << 20
"""Largest header in bytes. Slicer writes about a kilobyte for each segment."""
_MAGIC: Final = b"NRRD"
_END: Final = re.compile(rb"\r?\n\r?\n")
_TO_RAS: Final = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
"""Sign of each axis from each ``space`` [1]_ to RAS+."""
_GZIP: Final = ("gzip", "gz")
_RAW: Final = "raw"
_DTYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(
        ("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"
    ),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"
    ),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"
    ),
    "float": "f4",
    "double": "f8",
}
"""Type of each ``type`` [1]_."""
_ORDERS: Final = {"little": "<", "big": ">"}
_SPATIAL: Final = ("domain", "space")
_LIST: Final = "list"
_RANK: Final = 3
_MAX_LAYERS: Final = 64
_WORDS: Final = frozenset(
    {*_DTYPES, *_TO_RAS, *_GZIP, _RAW, *_ORDERS, *_SPATIAL, _LIST, "block", "time", "vector"}
    | {"bzip2", "bz2", "ascii", "text", "txt", "hex", "3D-right-handed", "RGB-color", "none", "mm"}
)
"""Words that the format defines, which messages may show."""
_CONVERT: Final = (
    "Convert it: python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('IN.nrrd'), "
    "'OUT.nii.gz')\"."
)
_MAX_VALUE: Final = 65535
_SEGMENT_KEY: Final = re.compile(r"Segment([0-9]{1,4})_(Name|LabelValue|Layer)")


@dataclass(frozen=True, slots=True)
class NrrdSegment:
    """A segment of 3D Slicer: the voxels of one value in one layer."""

    name: str
    layer: int
    value: int


@dataclass(frozen=True, slots=True)
class NrrdHeader:
    """The content of a header."""

    grid: Grid
    """Shape, and affine from voxel ``(i, j, k, 1)`` to RAS+ mm."""
    layers: int
    """Number of values for each voxel, which follow each other in the file; usually 1."""
    stored_dtype: np.dtype[Any]
    """Type of the stored numbers, with byte order."""
    compressed: bool
    """Whether the voxels are gzip data."""
    text_bytes: int
    """Length of the header in bytes, with the blank line at its end."""
    segments: tuple[NrrdSegment, ...]
    """Segments in their order; empty if the file names none."""


def parse_nrrd_header(start: bytes, path: str) -> NrrdHeader:
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
        If the file is no NRRD with one 3D volume of numbers and a usable affine, or with several
        layers of one.
    """
    if not start.startswith(_MAGIC):
        raise wrong_kind_error(path, start, "an NRRD file")
    end = _END.search(start)
    if end is None:
        raise FormatError(
            f"{path}: has no blank line after its header, expected one within {HEADER_BYTES} "
            "bytes. Its voxels may be in another file (.nhdr), or it is cut short: save it as one "
            ".nrrd file."
        )
    fields = _fields(start[: end.start()], path)
    _check_inside(fields, path)
    layers, spatial = _axes(fields, path)
    sizes = [int(size) for size in fields["sizes"]]
    grid = Grid(
        (sizes[spatial[0]], sizes[spatial[1]], sizes[spatial[2]]), _affine(fields, spatial, path)
    )
    return NrrdHeader(
        grid,
        layers,
        _stored_dtype(fields, path),
        fields["encoding"].lower() in _GZIP,
        end.end(),
        _segments(fields, layers, path),
    )


def _fields(text: bytes, path: str) -> dict[str, Any]:
    """Return the fields as pynrrd parses them; require those that every file has."""
    lines = text.decode("utf-8", "replace").splitlines()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fields: dict[str, Any] = dict(nrrd.read_header(lines))
    except (nrrd.NRRDError, ArithmeticError, LookupError, TypeError, ValueError) as problem:
        # The text of the error is left out, because it quotes values, which may name a patient.
        raise FormatError(
            f"{path}: its header does not parse as NRRD ({type(problem).__name__}). "
            "Download it again."
        ) from problem
    for field in ("type", "dimension", "sizes", "encoding"):
        if field not in fields:
            raise FormatError(f"{path}: its header has no field {field!r}. Download it again.")
    sizes = fields["sizes"]
    if len(sizes) != fields["dimension"] or min(sizes, default=0) < 1:
        raise FormatError(
            f"{path}: its header names {fields['dimension']} axes and the sizes "
            f"{[int(size) for size in sizes[:8]]}; expected a size of 1 or more for each axis. "
            "Download it again."
        )
    return fields


def _check_inside(fields: dict[str, Any], path: str) -> None:
    """Refuse voxels in another file, and voxels that do not follow the header."""
    if any(name in fields for name in ("data file", "datafile")):
        raise FormatError(
            f"{path}: names another file as its voxels (data file), which is not read; expected "
            "them behind the header. Save it as one .nrrd file, e.g. with 3D Slicer or SimpleITK."
        )
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, 0) != 0:
            raise FormatError(
                f"{path}: its {name} is {fields[name]}, expected voxels right behind the header. "
                f"{_CONVERT}"
            )
    encoding = fields["encoding"].lower()
    if encoding != _RAW and encoding not in _GZIP:
        raise FormatError(
            f"{path}: its encoding is {redact_header_text(encoding, _WORDS)}, expected raw or "
            f"gzip. {_CONVERT}"
        )


def _axes(fields: dict[str, Any], path: str) -> tuple[int, list[int]]:
    """Return the number of layers, and the positions of the three spatial axes."""
    rank = int(fields["dimension"])
    kinds = [kind.lower() for kind in fields.get("kinds", ["domain"] * rank)]
    spatial = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL]
    if rank == _RANK and len(spatial) == _RANK:
        return 1, spatial
    sizes = fields["sizes"]
    if rank == _RANK + 1 and spatial == [1, 2, 3] and kinds[0] == _LIST:
        layers = int(sizes[0])
        if layers > _MAX_LAYERS:
            raise FormatError(
                f"{path}: has {layers} layers, expected at most {_MAX_LAYERS}. Collapse its "
                "segments into fewer layers in 3D Slicer."
            )
        return layers, spatial
    shown = " ".join(redact_header_text(kind, _WORDS) for kind in kinds[:8])
    raise FormatError(
        f"{path}: has {rank} axes of the kinds {shown}, expected a volume (3 x 'domain'), or the "
        f"layers of a segmentation of 3D Slicer ('list' and 3 x 'domain'). {_CONVERT}"
    )


def _affine(fields: dict[str, Any], spatial: list[int], path: str) -> Any:  # noqa: ANN401  a matrix
    space = str(fields.get("space", "")).lower()
    signs = _TO_RAS.get(space)
    if signs is None or "space directions" not in fields or "space origin" not in fields:
        stated = redact_header_text(space, _WORDS) if space else "not stated"
        raise FormatError(
            f"{path}: does not say where its voxels lie: space is {stated}, space directions are "
            f"{'stated' if 'space directions' in fields else 'not stated'}, space origin is "
            f"{'stated' if 'space origin' in fields else 'not stated'}; expected all three, and a "
            "space such as left-posterior-superior. Save it again with 3D Slicer or SimpleITK."
        )
    units = {str(unit).lower() for unit in fields.get("space units", ["mm"])}
    if units - {"mm", "", "???"}:
        raise FormatError(f"{path}: its space units are not mm. {_CONVERT}")
    directions, origin = list(fields["space directions"]), np.asarray(fields["space origin"])
    columns = [directions[axis] for axis in spatial if axis < len(directions)]
    is_3d = all(column is not None and np.shape(column) == (_RANK,) for column in columns)
    if len(columns) != _RANK or not is_3d or origin.shape != (_RANK,):
        raise FormatError(
            f"{path}: its space directions and space origin are not vectors of 3 numbers. "
            "Download it again."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns, np.float64).T
    affine[:3, 3] = origin
    affine = np.diag([*signs, 1.0]) @ affine
    check_affine(affine, path)
    return affine


def _stored_dtype(fields: dict[str, Any], path: str) -> np.dtype[Any]:
    code = _DTYPES.get(str(fields["type"]).lower())
    if code is None:
        shown = redact_header_text(str(fields["type"]), _WORDS)
        raise FormatError(f"{path}: its type is {shown}, expected numbers. {_CONVERT}")
    order = _ORDERS.get(str(fields.get("endian", "")).lower())
    if order is None and np.dtype(code).itemsize > 1:
        raise FormatError(
            f"{path}: does not state the order of its bytes (endian), expected little or big. "
            "Download it again."
        )
    return np.dtype(f"{order or '<'}{code}")


def _segments(fields: dict[str, Any], layers: int, path: str) -> tuple[NrrdSegment, ...]:
    """Return the segments of 3D Slicer.

    Before 4.11, Slicer wrote each segment into a layer of its own, with the value 1 [2]_.
    """
    by_number: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        matched = _SEGMENT_KEY.fullmatch(key)
        if matched is not None:
            by_number.setdefault(int(matched[1]), {})[matched[2]] = str(text)
    segments = []
    for number, facts in sorted(by_number.items()):
        try:
            layer, value = int(facts.get("Layer", number)), int(facts.get("LabelValue", 1))
        except ValueError:
            layer = value = -1
        if not 0 <= layer < layers or not 1 <= value <= _MAX_VALUE:
            raise FormatError(
                f"{path}: its segment {number} has no usable layer or label value; expected a "
                f"layer below {layers} and a value from 1 to {_MAX_VALUE}. Save it again with 3D "
                "Slicer."
            )
        segments.append(NrrdSegment(facts.get("Name", f"Segment {number}"), layer, value))
    return tuple(segments)
