"""What an ingest knows of stored scans and of folders, so that running again opens none.

It is the group ``ingest/zarr.json``, written with the scan table. It is believed only if the
writer before ended as it should; else, or if it is gone or damaged, the scans are read and it is
made anew.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.sealed import StoredAttributes, StoredModel, parse_sealed, seal, shown

__all__ = ["LEDGER_FILE", "FolderPart", "FolderRecord", "Ledger", "LedgerEntry", "hash_inputs"]

LEDGER_FILE: Final = "ingest/zarr.json"
"""A Zarr group, so that clients which list the store know what it is."""


def _checked_runs(runs: str) -> str:
    """Refuse runs that are not in order, so that no place is named twice."""
    before = -1
    for run in runs.split():
        first, dash, last = run.partition("-")
        if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
            raise DamagedMetadataError(shown(runs), "runs such as '0-119 121'")
        if not before < int(first) <= int(last or first):
            raise DamagedMetadataError(shown(runs), "runs in ascending order")
        before = int(last or first)
    return runs


_NUMBER: Final = re.compile("[0-9]{1,9}")


_INPUTS_VERSION: Final = 1
"""Raised when an ingest makes another scan of the same inputs, such as by a new default."""


def hash_inputs(*inputs: object) -> str:
    """Return a hash of all that an ingest knows of a scan before it opens a file.

    A new field with a default, of a recipe or of an option, leaves the hash as it was.

    Parameters
    ----------
    *inputs
        Recipe, options and files of the scan; see
        :func:`spinezarr.store.canonical_json.canonical_json` for what they may hold.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    text = canonical_json((_INPUTS_VERSION, *inputs))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class LedgerEntry(StoredAttributes):
    """One scan."""

    inputs: str
    """Hash of all that the ingest knew before it opened a file: if it is the same, so is the scan.

    Empty where that is not known.
    """
    stamp: str
    """Hash of paths, sizes and times of the scan's files; empty where that is not known."""
    identity: str
    """:func:`spinezarr.store.audit_log.scan_identity` of what is stored."""


class FolderPart(StoredAttributes):
    """Some files of a folder: those of a series, or those passed over for one reason."""

    files: Annotated[str, AfterValidator(_checked_runs)]
    """Their places among all files of the folder, by name, as runs: ``0-119 121``."""
    key: str = ""
    """Of the series; see :class:`spinezarr.formats.dicom_series.CtSeries`."""
    number: int | None = None
    """SeriesNumber."""
    texts: dict[str, str] = Field(default_factory=dict)
    """What the recipe's templates use of the series, by name."""
    reason: str = ""
    """Why they were passed over; empty for a series that is a scan."""
    detail: str = ""


class FolderRecord(StoredAttributes):
    """What the DICOM headers in a folder said, as far as a recipe asks."""

    is_scan: bool
    """Whether the folder as a whole is a scan."""
    parts: tuple[FolderPart, ...] = ()


class Ledger(StoredAttributes):
    """All scans of a store, and the folders that an ingest looked into."""

    scans: dict[str, LedgerEntry] = Field(default_factory=dict)
    folders: dict[str, FolderRecord] = Field(default_factory=dict)
    """By a hash of recipe, path, and names, sizes and times of the files: no name is stored."""

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
        DamagedMetadataError
            If :meth:`to_file` did not make it, or it is damaged.
        """
        return parse_sealed(data, _LedgerGroup).attributes


class _LedgerGroup(StoredModel):
    attributes: Ledger
