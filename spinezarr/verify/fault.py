"""What a check finds, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import TABLE
from spinezarr.store.ledger import LEDGER_FILE

__all__ = ["Fault", "Kind"]

Kind = Literal[
    "missing", "damaged", "misplaced", "disagrees", "extra", "unfinished", "source", "voxels"
]

_REPAIR: Final = (
    "Run the same 'spinezarr ingest' again with --repair: it redoes the scans that are not whole. "
    "Or copy the files again from a store that is whole."
)
_ADVICE: Final[dict[Kind, str]] = {
    "missing": _REPAIR,
    "damaged": _REPAIR,
    "misplaced": _REPAIR,
    "disagrees": "Run the same 'spinezarr ingest' again with --repair: it writes the table anew.",
    "extra": "No reader uses it. Look at what it is, then delete it.",
    "unfinished": "Run the same 'spinezarr ingest' again: it starts this scan from nothing.",
    "source": "Give the raw folder that was ingested. If it has changed, ingest it again.",
    "voxels": "Ingest this scan again into a new store, and report it if it still differs.",
}
_ROOT_ADVICE: Final = (
    "Copy this file again from a store that is whole; without one, ingest into a new place."
)
_AUDIT_ADVICE: Final = "Run 'spinezarr audit' over all scans again: it writes this file anew."
_LEDGER_ADVICE: Final = "Run the same 'spinezarr ingest' again with --repair: it writes it anew."
_TABLE_ADVICE: Final = "Run the same 'spinezarr ingest' again with --repair: it writes it anew."


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
        if self.path in {"zarr.json", "scans/zarr.json"}:
            return _ROOT_ADVICE
        if self.path.startswith("audit/"):
            return _AUDIT_ADVICE
        if self.path == LEDGER_FILE:
            return _LEDGER_ADVICE
        in_table = self.path == TABLE_BUNDLE or self.path.split("/")[0] == TABLE
        return _TABLE_ADVICE if in_table else _ADVICE[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "advice": self.advice}
