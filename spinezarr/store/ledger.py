"""What an ingest knows of each stored scan, so that running again opens none: ``ingest/zarr.json``.

Written with the scan table. It is believed only if the writer before ended as it should; else, or
if it is gone or damaged, the scans are read and it is made anew.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from spinezarr.store.attributes import seal, unseal
from spinezarr.strict_yaml import StrictModel

__all__ = ["LEDGER_FILE", "Ledger", "LedgerEntry"]

LEDGER_FILE: Final = "ingest/zarr.json"
"""A Zarr group, so that clients which list the store know what it is."""


class LedgerEntry(StrictModel):
    """One scan."""

    inputs: str
    """Hash of all that the ingest knew before it opened a file: if it is the same, so is the scan.

    Empty where that is not known.
    """
    stamp: str
    """Hash of paths, sizes and times of the scan's files; empty where that is not known."""
    identity: str
    """:func:`spinezarr.store.audit_log.scan_identity` of what is stored."""


class Ledger(StrictModel):
    """All scans of a store."""

    scans: dict[str, LedgerEntry] = Field(default_factory=dict)

    @property
    def identities(self) -> Mapping[str, str]:
        """Identity of each scan."""
        return {scan_id: entry.identity for scan_id, entry in self.scans.items()}

    def to_file(self) -> bytes:
        """Return the content of :data:`LEDGER_FILE`."""
        group: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
        return seal({**group, "attributes": self.model_dump(mode="json")})

    @classmethod
    def of_file(cls, data: bytes) -> "Ledger":
        """Read what :meth:`to_file` made.

        Raises
        ------
        ValueError, KeyError, TypeError, AttributeError
            If it was not made so, or is damaged.
        """
        return cls.model_validate_json(json.dumps(unseal(data)["attributes"]))
