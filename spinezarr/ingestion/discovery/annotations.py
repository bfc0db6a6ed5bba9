"""What do the small files beside an image say: annotated centroids and JSON sidecars?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import numpy as np

from spinezarr.errors import FormatError
from spinezarr.formats.centroids import Centroids, misordered_levels, read_centroids
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.small_file import read_small_file
from spinezarr.geometry import Grid
from spinezarr.ingestion.discovery.discover import ScanSource
from spinezarr.recipe import PathPattern
from spinezarr.store.attributes import CentroidRecord
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = [
    "SIDECAR_NOTE",
    "AnnotatedCentroids",
    "CompanionFiles",
    "annotated_centroids",
    "read_companion_files",
]

SIDECAR_NOTE: Final = "the sidecar "
_MOST_KEYS: Final = 200
"""Largest number of keys of a sidecar that the patterns of a recipe may select. Each becomes a
column of the scan table."""
_LONGEST_VALUE: Final = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedCentroids:
    """Annotated centroids of one scan, and the grid of its image."""

    found: Centroids
    grid: Grid

    def index_by_value(self) -> dict[int, tuple[float, float, float]]:
        """Return the stored voxel index ``(z, y, x)`` of each centroid, by label value."""
        to_index = np.linalg.inv(self.grid.affine_xyz)
        indices = {}
        for name, position in self.found.positions_xyz_mm.items():
            if name in VALUE_OF_NAME:
                x, y, z = (to_index @ (*position, 1))[:3].tolist()
                indices[VALUE_OF_NAME[name]] = (z, y, x)
        return indices

    def records(self, distance_mm: Mapping[int, float]) -> dict[str, CentroidRecord]:
        """Return the centroids as they are stored.

        ``distance_mm`` is the distance from each centroid to its label in mm, by label value.
        """
        return {
            name: CentroidRecord(
                position_zyx_mm=(z, y, x),
                label_distance_mm=distance_mm.get(VALUE_OF_NAME.get(name, -1)),
            )
            for name, (x, y, z) in self.found.positions_xyz_mm.items()
        }

    def notes(self, records: Mapping[str, CentroidRecord]) -> list[str]:
        """Return notes on centroids that lie far from their labels or out of order."""
        notes = list(self.found.notes)
        for name, record in records.items():
            distance = record.label_distance_mm
            if distance is not None and not record.is_near_label:
                notes.append(f"the centroid of {name} lies {distance:.1f} mm from its label")
        for above, below in misordered_levels(self.found.positions_xyz_mm):
            notes.append(f"the centroid of {below} does not lie below that of {above}")
        return notes


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """Content of the small files beside an image."""

    centroids: bytes | None
    """Content of the centroid file; None if there is none."""
    sidecar: dict[str, str]
    """Texts and numbers of the JSON sidecar, by the keys that the recipe names."""
    notes: tuple[str, ...]
    """Why a sidecar was ignored; each text begins with :data:`SIDECAR_NOTE`."""


def read_companion_files(
    fs: fsspec.AbstractFileSystem, root: str, source: ScanSource, limits: Limits = DEFAULT_LIMITS
) -> CompanionFiles:
    """Read the small files beside the image of a scan.

    Raises
    ------
    OSError
        If a file that was found cannot be read.
    FormatError
        If the centroid file exceeds its size limit.
    """
    centroids: bytes | None = None
    if source.centroids is not None:
        path = f"{root}/{source.centroids}"
        centroids = read_small_file(fs, path, limits.annotation_bytes)
    if source.sidecar is None:
        return CompanionFiles(centroids, {}, ())
    wanted = [PathPattern(text) for text in source.sidecar_keys]
    try:
        data = read_small_file(fs, f"{root}/{source.sidecar}", limits.annotation_bytes)
    except FormatError:
        sidecar, problem = dict[str, str](), f"it has more than {limits.annotation_bytes} bytes"
    else:
        sidecar, problem = _parse_sidecar(data, wanted)
    notes = (f"{SIDECAR_NOTE}was ignored: {problem}",) if problem else ()
    return CompanionFiles(centroids, sidecar, notes)


def annotated_centroids(source: ScanSource, data: bytes | None, grid: Grid) -> AnnotatedCentroids:
    """Parse the centroid file of a scan; without one, return no centroids.

    Raises
    ------
    FormatError
        If the file is not in the format that the recipe names.
    """
    if data is None or source.centroids is None or source.centroid_convention is None:
        return AnnotatedCentroids(Centroids({}, ()), grid)
    convention = source.centroid_convention
    found = read_centroids(data, source.centroids, convention=convention, grid=grid)
    return AnnotatedCentroids(found, grid)


def _parse_sidecar(data: bytes, wanted: Sequence[PathPattern]) -> tuple[dict[str, str], str]:
    """Return the wanted texts and numbers of a JSON object, and why there are none (or nothing)."""
    try:
        parsed: Any = json.loads(data)
    except (ValueError, RecursionError) as problem:
        return {}, f"it is not JSON ({problem})"
    if not isinstance(parsed, dict):
        return {}, "it is not a JSON object"

    def is_wanted(key: str) -> bool:
        return len(key) <= _LONGEST_VALUE and any(
            pattern.match(_as_text(key)) is not None for pattern in wanted
        )

    # Other keys may name the patient, so only keys that the recipe names are copied.
    texts = {
        _as_text(key): _as_text(value)
        for key, value in parsed.items()
        if isinstance(value, str | int | float) and is_wanted(key)
    }
    if len(texts) > _MOST_KEYS:
        return {}, f"the recipe selects {len(texts)} of its keys, expected at most {_MOST_KEYS}"
    long = next((key for key, text in texts.items() if len(text) > _LONGEST_VALUE), None)
    if long is not None:
        return {}, f"the text of its key {long!r} has more than {_LONGEST_VALUE} characters"
    return texts, ""


def _as_text(value: float | str) -> str:
    """Convert a JSON value to text; lone surrogates, which JSON allows, become question marks."""
    return str(value).encode(errors="replace").decode()
