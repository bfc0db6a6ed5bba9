"""What did the last ingest know of scans and folders, so that the next one need not open them?

The ledger is the group ``ingest/zarr.json`` and is written with the scan table. An ingest trusts it
only if the run before ended normally. If the ledger is missing, damaged or not trusted, the ingest
reads all scans and writes the ledger again.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.sealed import StoredAttributes, StoredModel, describe_value, parse_sealed, seal

__all__ = ["LEDGER_FILE", "FolderPart", "FolderRecord", "Ledger", "LedgerEntry", "hash_inputs"]

LEDGER_FILE: Final = "ingest/zarr.json"
"""Key of the ledger; it is a Zarr group, so that clients which list the store can name it."""


def _checked_runs(runs: str) -> str:
    """Refuse runs of numbers that are not ascending, so that no number occurs twice."""
    previous = -1
    for run in runs.split():
        first, dash, last = run.partition("-")
        if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
            raise DamagedMetadataError(describe_value(runs), "runs such as '0-119 121'")
        if not previous < int(first) <= int(last or first):
            raise DamagedMetadataError(describe_value(runs), "runs in ascending order")
        previous = int(last or first)
    return runs


_NUMBER: Final = re.compile("[0-9]{1,9}")


_INPUTS_VERSION: Final = 1
"""Version of ingesting; it rises when the same inputs give another scan, as by a new default."""


def hash_inputs(*inputs: object) -> str:
    """Return a hash of everything that an ingest knows of a scan before it opens a file.

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
    """Facts that an ingest knew of one scan."""

    inputs: str
    """:func:`hash_inputs` of the scan: with the same inputs, an ingest makes the same scan.

    Empty if the inputs are not known.
    """
    stamp: str
    """Hash of paths, sizes and times of the scan's source files; empty if they are not known."""
    identity: str
    """:func:`spinezarr.store.audit_log.scan_identity` of the stored scan."""


class FolderPart(StoredAttributes):
    """Files of a folder that form one series, or that were ignored for one reason."""

    files: Annotated[str, AfterValidator(_checked_runs)]
    """Positions of the files in the folder's list sorted by name, as runs such as ``0-119 121``."""
    key: str = ""
    """Key of the series; see :class:`spinezarr.formats.dicom_series.CtSeries`."""
    number: int | None = None
    """DICOM SeriesNumber; None if the headers have none."""
    texts: dict[str, str] = Field(default_factory=dict)
    """Texts of the series that the recipe's templates use, by name."""
    reason: str = ""
    """Why the files were ignored; empty for a series that is a scan."""
    detail: str = ""
    """What the reason refers to, such as the series; empty if there is nothing to add."""


class FolderRecord(StoredAttributes):
    """Facts that an ingest read from the DICOM headers in a folder."""

    is_scan: bool
    """Whether the folder as a whole is a scan."""
    parts: tuple[FolderPart, ...] = ()


class Ledger(StoredAttributes):
    """Facts that an ingest knew of all scans of a store, and of the folders that it inspected."""

    scans: dict[str, LedgerEntry] = Field(default_factory=dict)
    folders: dict[str, FolderRecord] = Field(default_factory=dict)
    """Records by a hash of recipe, path, and names, sizes and times of the files.

    The hash keeps the names of files out of the store.
    """

    @property
    def identities(self) -> Mapping[str, str]:
        """Identity of each scan by scan id."""
        return {scan_id: entry.identity for scan_id, entry in self.scans.items()}

    def to_file(self) -> bytes:
        """Return the content of :data:`LEDGER_FILE`."""
        group: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
        return seal({**group, "attributes": self.model_dump(mode="json")})

    @classmethod
    def of_file(cls, data: bytes) -> "Ledger":
        """Parse the content of :data:`LEDGER_FILE`.

        Raises
        ------
        DamagedMetadataError
            If :meth:`to_file` did not make it, or it is damaged.
        """
        return parse_sealed(data, _LedgerGroup).attributes


class _LedgerGroup(StoredModel):
    attributes: Ledger
