"""What a check finds, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from spinezarr.store.layout import SCANS

__all__ = ["Fault", "Kind"]

Kind = Literal[
    "missing", "damaged", "misplaced", "disagrees", "extra", "unfinished", "source", "voxels"
]

_REPAIR: Final = (
    "Run the same 'spinezarr ingest' again with --repair: it reads these scans again from their "
    "source files. Or copy the files again from a store that is whole."
)
_REPAIR_FILE: Final = (
    "Run the same 'spinezarr ingest' again with --repair: it writes this file anew."
)
_ADVICE: Final[dict[Kind, str]] = {
    "missing": _REPAIR,
    "damaged": _REPAIR,
    "misplaced": _REPAIR,
    "disagrees": _REPAIR_FILE,
    "extra": "No reader uses it. Look at what it is, then delete it.",
    "unfinished": "Run the same 'spinezarr ingest' again: it starts this scan from nothing.",
    "source": "Give the raw folder that was ingested. If it has changed, ingest it again.",
    "voxels": "Ingest this scan again into a new store, and report it if it still differs.",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it should be."""

    scan_id: str | None
    """None if it is in no scan."""
    path: str
    """Relative to the store, or to the raw folder for a source file."""
    kind: Kind
    found: str
    expected: str

    @property
    def advice(self) -> str:
        """What the user may do."""
        if self.kind in {"extra", "source", "voxels"}:
            return _ADVICE[self.kind]
        in_scan = self.path.startswith(f"{SCANS}/") and self.path != f"{SCANS}/zarr.json"
        return _ADVICE[self.kind] if in_scan else _REPAIR_FILE

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "advice": self.advice}
