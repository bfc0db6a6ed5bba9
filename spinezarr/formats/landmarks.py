r"""Which vertebra landmarks does a file state, in its own coordinates?

Two kinds of files are read:

* The JSON list of VerSe [1]_ holds ``{"label": 16, "X": 79.1, "Y": 40.9, "Z": 32.3}`` for each
  point. In the subject-based release, ``{"direction": ["P", "I", "R"]}`` comes first. ``NaN``,
  which strict JSON lacks, stands for a missing position.
* The ``.lml`` files of the Microsoft/UW spine dataset [2]_ hold a header line, then
  ``id<TAB>name<TAB>x<TAB>y<TAB>z`` for each point, such as ``180 T11_center 72.95 54.6734 240``.

References
----------
.. [1] https://github.com/anjany/verse, ``utils/data_utilities.py``
.. [2] Glocker et al., "Vertebrae localization in pathological spine CT via dense classification
   from sparse annotations", MICCAI 2013, https://doi.org/10.1007/978-3-642-40763-5_33
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spinezarr.errors import FormatError
from spinezarr.formats.file_kinds import KIND_BYTES, detect_kind
from spinezarr.formats.header_text import redact_header_text
from spinezarr.text import count_noun
from spinezarr.vertebrae import LEVELS, NAME_OF_VALUE

__all__ = ["Landmark", "LandmarkFile", "parse_lml", "parse_verse_json"]

_MAX_COORDINATE: Final = 1e6
"""Largest coordinate in mm or voxels (a kilometer in mm). Anything beyond is no position."""
_KNOWN_KEYS: Final = frozenset(
    {
        "label",
        "X",
        "Y",
        "Z",
        "direction",
        "zoom",
        "shape",
        "origin",
        "rotation",
        "format",
        "markups",
        "centroids",
        "vert_label",
        "coordinate_system",
    }
)
"""Keys of VerSe, TPTBox and 3D Slicer, which messages may show."""
_MAX_SHOWN_CHARACTERS: Final = 60
"""Longest number shown in a message, in characters."""
_MAX_KEYS: Final = 8
"""Largest number of keys named in a message."""
_VERSE_KEYS: Final = ("label", "X", "Y", "Z")
_OPPOSITE_LETTERS: Final = ("RL", "AP", "SI")
_LML_NUMBER: Final = re.compile(
    r"[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE
)
_LML_COLUMNS: Final = 5
_LML_LEVEL_OF_ID: Final[dict[str, str]] = {
    str(10 * position): level
    for position, level in enumerate((level for level in LEVELS if level not in {"T13", "L6"}), 1)
    if level not in {"sacrum", "coccyx"}
}
"""Level of each id: 10 is C1, 70 C7, 80 T1, 190 T12, 200 L1, 240 L5, 250 S1 and 260 S2."""
_LML_NAME: Final = re.compile(r"([CTLS][0-9]{1,2}|sacrum|coccyx)(_center)?")
"""Names that look like levels, which messages may show."""


@dataclass(frozen=True, slots=True)
class Landmark:
    """One point as its file states it."""

    level: str
    """One of :data:`spinezarr.vertebrae.LEVELS`."""
    coordinates: tuple[float, float, float]
    """Finite coordinates in the order, unit and frame of the file."""


@dataclass(slots=True)
class LandmarkFile:
    """The content of one file, filled while it is parsed."""

    landmarks: list[Landmark] = field(default_factory=list)
    """Points in the order of the file. A level may occur more than once."""
    direction: str | None = None
    """Letters toward which X, Y and Z increase, e.g. ``PIR``; None if the file names none."""
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """Points to which each remark for the user applies, by the remark."""

    def remark(self, remark: str, point: str) -> None:
        """Record that ``remark`` applies to ``point``."""
        self.remarks.setdefault(remark, []).append(point)

    def add(self, level: str, coordinates: Sequence[float]) -> None:
        """Record a point, or remark that it has no valid position."""
        if all(abs(number) <= _MAX_COORDINATE for number in coordinates):
            x, y, z = map(float, coordinates)
            self.landmarks.append(Landmark(level, (x, y, z)))
        else:
            self.remark("ignored, because they have no position", level)


def parse_verse_json(text: bytes, path: str) -> LandmarkFile:
    """Parse a centroid file of VerSe.

    Parameters
    ----------
    text
        Content of the file.
    path
        Path of the file, for messages.

    Raises
    ------
    FormatError
        If the file is no JSON list of points; the message names the entry.
    """
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FormatError(
            f"{path}: is not JSON ({problem}); it looks like "
            f"{detect_kind(text[:KIND_BYTES]).name}. Download it again."
        ) from problem
    if not isinstance(content, list):
        raise FormatError(
            f"{path}: holds {_json_kind(content)}, expected VerSe's list of points. "
            "Other forms, such as TPTBox's or 3D Slicer's, must be converted first."
        )
    parsed = LandmarkFile()
    if content and isinstance(content[0], dict) and "direction" in content[0]:
        parsed.direction = _direction_of(content[0], path)
        content = content[1:]
    for number, entry in enumerate(content, 1 if parsed.direction is None else 2):
        _add_verse_point(parsed, entry, f"{path}: entry {number}")
    return parsed


def _json_kind(value: object) -> str:
    """Describe the kind of a JSON value without revealing foreign text."""
    if isinstance(value, dict):
        keys = [redact_header_text(key, _KNOWN_KEYS) for key in list(value)[:_MAX_KEYS]]
        return f"an object with the keys [{', '.join(keys)}]"
    if isinstance(value, list):
        return f"a list of {count_noun(len(value), 'value')}"
    if isinstance(value, str):
        return redact_header_text(value)
    return f"the value {str(value)[:_MAX_SHOWN_CHARACTERS]}"


def _direction_of(header: dict[str, Any], path: str) -> str:
    direction = header["direction"]
    if len(header) > 1:
        raise FormatError(
            f"{path}: its first entry is {_json_kind(header)}, expected 'direction' alone as in "
            "VerSe. Convert files of newer TPTBox versions first: their points and labels mean "
            "something else."
        )
    is_one_of_each = (
        isinstance(direction, list)
        and len(direction) == len(_OPPOSITE_LETTERS)
        and all(isinstance(code, str) and len(code) == 1 for code in direction)
        and all(any(code in pair for code in direction) for pair in _OPPOSITE_LETTERS)
    )
    if not is_one_of_each:
        raise FormatError(
            f"{path}: its direction is {_json_kind(direction)}, expected three letters, one of "
            'each pair R/L, A/P and S/I, such as ["P", "I", "R"].'
        )
    return "".join(direction)


def _add_verse_point(parsed: LandmarkFile, entry: object, location: str) -> None:
    if not isinstance(entry, dict) or not all(key in entry for key in _VERSE_KEYS):
        raise FormatError(f"{location} is {_json_kind(entry)}, expected {', '.join(_VERSE_KEYS)}.")
    for key in _VERSE_KEYS:
        # A bool is an int in Python; null stands for a number that is missing.
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float | None):
            raise FormatError(
                f"{location}: its {key} is {_json_kind(entry[key])}, expected a number."
            )
    level = NAME_OF_VALUE.get(entry["label"])
    if level is None:
        parsed.remark(
            "ignored, because no level has this label", str(entry["label"])[:_MAX_SHOWN_CHARACTERS]
        )
    else:
        coordinates = (float("nan") if entry[key] is None else entry[key] for key in "XYZ")
        parsed.add(level, tuple(coordinates))


def parse_lml(text: bytes, path: str) -> LandmarkFile:
    """Parse an ``.lml`` file.

    The name of a point counts more than its id, because no id is known for T13 and L6.

    Parameters
    ----------
    text
        Content of the file, not empty. Line ends, blank lines and columns after the fifth do not
        matter.
    path
        Path of the file, for messages.

    Raises
    ------
    FormatError
        If a line is no landmark (the message names the line), or the file has neither landmarks nor
        a header.
    """
    header, *lines = text.decode("utf-8", "replace").splitlines()
    landmarks = [
        (f"{path}: line {number}", line.split())
        for number, line in enumerate(lines, 2)
        if line.split()
    ]
    if not landmarks and not header.startswith("#"):
        raise FormatError(
            f"{path}: is no .lml file: no landmark follows its first line. Download it again."
        )
    parsed = LandmarkFile()
    if _is_landmark(header.split()):
        parsed.remark("ignored, because line 1 is the header of an .lml file", "a landmark")
    for location, columns in landmarks:
        if not _is_landmark(columns):
            raise FormatError(
                f"{location} is no landmark, expected an id, a name and x, y and z in mm."
            )
        _add_lml_point(parsed, *columns[:_LML_COLUMNS])
    return parsed


def _is_landmark(columns: Sequence[str]) -> bool:
    """Whether the columns of a line are an id, a name, three numbers and anything after."""
    numbers = columns[2:_LML_COLUMNS]
    return len(columns) >= _LML_COLUMNS and all(map(_LML_NUMBER.fullmatch, numbers))


def _add_lml_point(parsed: LandmarkFile, identifier: str, name: str, *numbers: str) -> None:
    level_of_name = name.removesuffix("_center")
    level_of_id = _LML_LEVEL_OF_ID.get(identifier)
    known_names = (name,) if _LML_NAME.fullmatch(name) else ()
    shown_name, shown_id = redact_header_text(name, known_names), redact_header_text(identifier)
    description = f"{shown_name} with id {shown_id}"
    if level_of_name in LEVELS:
        if level_of_id not in {None, level_of_name}:
            parsed.remark("names that contradict their ids; the names count", description)
        parsed.add(level_of_name, [float(number) for number in numbers])
    elif level_of_id is not None:
        parsed.remark("names that are no level; the ids count", f"{description} ({level_of_id})")
        parsed.add(level_of_id, [float(number) for number in numbers])
    else:
        parsed.remark("ignored, because neither name nor id is a level", description)
