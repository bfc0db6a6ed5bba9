"""What can be wrong with a store, and what can the user do about it?"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from spinezarr.store.layout import SAMPLING, SCANS, is_mask_name

__all__ = ["Fault", "FaultKind"]

FaultKind = Literal[
    "missing", "damaged", "misplaced", "disagrees", "extra", "unfinished", "source", "voxels"
]

_REPAIR: Final = (
    "Run the same 'spinezarr ingest' again with --repair, which reads these scans again from their "
    "source files. Or copy the files again from an intact store."
)
_REPAIR_FILE: Final = (
    "Run the same 'spinezarr ingest' again with --repair, which writes this file again."
)
_REPAIR_MASK: Final = (
    "Write this mask again as before ('spinezarr add-labels', or write_labels in Python; if the "
    "recipe names it, the same 'spinezarr ingest' with --repair), or remove it with 'spinezarr "
    "remove-labels'."
)
_START_AGAIN: Final = (
    "Run the same 'spinezarr ingest' again, which starts this scan from the beginning."
)
_DERIVE: Final = (
    "Run the same 'spinezarr derive' from {store} again with --repair, which makes these scans and "
    "their masks again from that store as it is now. If it is gone or has changed, give an "
    "unchanged copy of it, or copy the files again from an intact copy of this store."
)
_DERIVE_FILE: Final = (
    "Run the same 'spinezarr derive' from {store} again with --repair, which writes this file "
    "again."
)
_DERIVE_MASK: Final = (
    "If this mask was added to the derived store, write it again as before ('spinezarr "
    "add-labels', or write_labels in Python), or remove it with 'spinezarr remove-labels'. If it "
    "came from {store}, run the same 'spinezarr derive' again with --repair."
)
_DERIVE_AGAIN: Final = (
    "Run the same 'spinezarr derive' from {store} again, which starts this scan from the beginning."
)
_OF_DERIVED: Final = {
    _REPAIR: _DERIVE,
    _REPAIR_FILE: _DERIVE_FILE,
    _REPAIR_MASK: _DERIVE_MASK,
    _START_AGAIN: _DERIVE_AGAIN,
}
"""Advice for a derived store in place of that for a store of ingested scans."""
_ADVICE: Final[dict[FaultKind, str]] = {
    "missing": _REPAIR,
    "damaged": _REPAIR,
    "misplaced": _REPAIR,
    "disagrees": _REPAIR_FILE,
    "extra": "No reader uses this file. Check its content, then delete it.",
    "unfinished": _START_AGAIN,
    "source": "Give the folder with the source files. If they have changed, ingest them again, or "
    "add further masks again with 'spinezarr add-labels'.",
    "voxels": "Ingest this scan again into a new store, or add this mask again, and report it if "
    "it still differs.",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One file or value that differs from what it should be."""

    scan_id: str | None
    """Id of the scan that the fault is in; None if it is in no scan."""
    path: str
    """Path relative to the store, or to the raw folder for a source file."""
    kind: FaultKind
    """Kind of the fault, in one word."""
    found: str
    """Value or state that was found."""
    expected: str
    """Value or state that was expected."""
    derived_from: str | None = None
    """Path or URL of the store that the store was derived from; None if it was ingested."""

    @property
    def mask(self) -> str | None:
        """Name of the further mask that the file belongs to; None for another file.

        Reading the scan again from its source brings it back only if the recipe names it.
        """
        folder, _, *parts = [*self.path.split("/"), ""]
        if folder != SCANS or not parts:
            return None
        name = parts[1].removesuffix("_chunks") if parts[0] == SAMPLING else parts[0]
        return name if is_mask_name(name) else None

    @property
    def advice(self) -> str:
        """Next step for the user."""
        advice = self._advice_if_ingested
        if self.derived_from is None:
            return advice
        return _OF_DERIVED.get(advice, advice).replace("{store}", self.derived_from)

    @property
    def _advice_if_ingested(self) -> str:
        """Next step if the scans of the store were ingested."""
        if self.kind in {"extra", "source", "voxels"}:
            return _ADVICE[self.kind]
        if self.mask is not None:
            return _REPAIR_MASK
        in_scan = self.path.startswith(f"{SCANS}/") and self.path != f"{SCANS}/zarr.json"
        return _ADVICE[self.kind] if in_scan else _REPAIR_FILE

    def to_json(self) -> dict[str, Any]:
        """Return the fault as values that JSON has."""
        fields = asdict(self)
        del fields["derived_from"]  # it is a fact about the store
        return {**fields, "advice": self.advice}
