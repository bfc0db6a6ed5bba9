"""What do the small files that accompany an image state: annotated centroids, JSON sidecars?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from spinezarr.vertebrae import NAME_OF_VALUE, VALUE_OF_NAME

__all__ = [
    "SIDECAR_NOTE",
    "AnnotatedCentroids",
    "CompanionFiles",
    "annotated_centroids",
    "read_companion_files",
]

SIDECAR_NOTE: Final = "the sidecar "
_MAX_KEYS: Final = 200
"""Largest number of keys of a sidecar that the patterns of a recipe may select.

Each becomes a column of the scan table.
"""
_MAX_VALUE_CHARACTERS: Final = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedCentroids:
    """Annotated centroids of one scan, and the grid of its image."""

    centroids: Centroids
    grid: Grid

    def index_by_value(self) -> dict[int, tuple[float, float, float]]:
        """Return the stored voxel index ``(z, y, x)`` of each centroid, by label value."""
        to_index = np.linalg.inv(self.grid.affine_xyz)
        indices = {}
        for name, position in self.centroids.positions_xyz_mm.items():
            if name in VALUE_OF_NAME:
                x, y, z = (to_index @ (*position, 1))[:3].tolist()
                indices[VALUE_OF_NAME[name]] = (z, y, x)
        return indices

    def renamed(self, new_values: Mapping[int, int]) -> "AnnotatedCentroids":
        """Return the centroids with other labels for some vertebrae.

        A centroid whose level would get the name of another is left out.

        Parameters
        ----------
        new_values
            New label of each vertebra that changes, by its present label.
        """
        new_names = {NAME_OF_VALUE[old]: NAME_OF_VALUE[new] for old, new in new_values.items()}
        positions: dict[str, tuple[float, float, float]] = {}
        # Those that change come first, because the mask shows that their new names are right.
        for name in sorted(self.centroids.positions_xyz_mm, key=lambda name: name not in new_names):
            positions.setdefault(new_names.get(name, name), self.centroids.positions_xyz_mm[name])
        return replace(self, centroids=replace(self.centroids, positions_xyz_mm=positions))

    def records(self, distance_mm: Mapping[int, float]) -> dict[str, CentroidRecord]:
        """Return the centroids as they are stored.

        ``distance_mm`` is the distance from each centroid to its label in mm, by label value.
        """
        return {
            name: CentroidRecord(
                position_zyx_mm=(z, y, x),
                label_distance_mm=distance_mm.get(VALUE_OF_NAME.get(name, -1)),
            )
            for name, (x, y, z) in self.centroids.positions_xyz_mm.items()
        }

    def notes(self, records: Mapping[str, CentroidRecord]) -> list[str]:
        """Return notes on centroids that lie far from their labels or out of order."""
        notes = list(self.centroids.notes)
        for name, record in records.items():
            distance = record.label_distance_mm
            if distance is not None and not record.is_near_label:
                notes.append(f"the centroid of {name} lies {distance:.1f} mm from its label")
        for upper, lower in misordered_levels(self.centroids.positions_xyz_mm):
            notes.append(f"the centroid of {lower} does not lie below that of {upper}")
        return notes


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """Content of the small files that accompany an image."""

    centroids: bytes | None
    """Content of the centroid file; None if there is none."""
    sidecar: dict[str, str]
    """Texts and numbers of the JSON sidecar, by the keys that the recipe names."""
    notes: tuple[str, ...]
    """Reasons why a sidecar was ignored. Each text begins with :data:`SIDECAR_NOTE`."""


def read_companion_files(
    fs: fsspec.AbstractFileSystem, root: str, source: ScanSource, limits: Limits = DEFAULT_LIMITS
) -> CompanionFiles:
    """Read the small files that accompany the image of a scan.

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
    key_patterns = [PathPattern(text) for text in source.sidecar_keys]
    try:
        data = read_small_file(fs, f"{root}/{source.sidecar}", limits.annotation_bytes)
    except FormatError:
        sidecar, problem = dict[str, str](), f"it has more than {limits.annotation_bytes} bytes"
    else:
        sidecar, problem = _parse_sidecar(data, key_patterns)
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
    centroids = read_centroids(data, source.centroids, convention=convention, grid=grid)
    return AnnotatedCentroids(centroids, grid)


def _parse_sidecar(data: bytes, key_patterns: Sequence[PathPattern]) -> tuple[dict[str, str], str]:
    """Return the selected texts and numbers of a JSON object, and a problem (or "")."""
    try:
        parsed: Any = json.loads(data)
    except (ValueError, RecursionError) as problem:
        return {}, f"it is not JSON ({problem})"
    if not isinstance(parsed, dict):
        return {}, "it is not a JSON object"

    def is_selected(key: str) -> bool:
        return len(key) <= _MAX_VALUE_CHARACTERS and any(
            pattern.match(_as_text(key)) is not None for pattern in key_patterns
        )

    # Other keys may name the patient, so only keys that the recipe names are copied.
    texts = {
        _as_text(key): _as_text(value)
        for key, value in parsed.items()
        if isinstance(value, str | int | float) and is_selected(key)
    }
    if len(texts) > _MAX_KEYS:
        return {}, f"the recipe selects {len(texts)} of its keys, expected at most {_MAX_KEYS}"
    long_key = next((key for key, text in texts.items() if len(text) > _MAX_VALUE_CHARACTERS), None)
    if long_key is not None:
        limit = f"more than {_MAX_VALUE_CHARACTERS} characters"
        return {}, f"the text of its key {long_key!r} has {limit}"
    return texts, ""


def _as_text(value: float | str) -> str:
    """Convert a JSON value to text; lone surrogates, which JSON allows, become question marks."""
    return str(value).encode(errors="replace").decode()
