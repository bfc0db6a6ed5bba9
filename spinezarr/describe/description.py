"""What do all descriptions of a dataset say?"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spinezarr.stats.statistics import Statistics
from spinezarr.store.attributes import RootAttributes
from spinezarr.store.layout import TABLE, scan_key
from spinezarr.text import to_csv, to_printable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCAN_COLUMNS", "SCAN_LIST", "DatasetDescription", "ScanColumn", "license_link"]

SCAN_LIST: Final = "scans.csv"
"""Name of the file that lists the scans."""
_CREATIVE_COMMONS: Final = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    **{
        f"CC-{kind}-{version}": f"https://creativecommons.org/licenses/{kind.lower()}/{version}/"
        for kind in ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")
        for version in ("3.0", "4.0")
    },
}
"""Addresses of licenses by their SPDX identifiers."""


@dataclass(frozen=True, slots=True)
class ScanColumn:
    """A column of the list of scans."""

    name: str
    kind: str
    """Type of its values: ``text``, ``integer``, ``number`` or ``url``."""
    description: str


SCAN_COLUMNS: Final = (
    ScanColumn("scan", "text", "Id of the scan."),
    ScanColumn("url", "url", "URL of the scan, a Zarr group that xarray.open_zarr opens."),
    ScanColumn("patient_id", "text", "Id of the patient; scans with one id are of one person."),
    ScanColumn("source", "text", "Collection within the dataset."),
    ScanColumn("split", "text", "Split, such as train."),
    ScanColumn("license", "text", "License of the scan."),
    ScanColumn(
        "label_state",
        "text",
        "Whether vertebrae that the end of the volume cuts are annotated; none without a mask.",
    ),
    *(ScanColumn(f"size_{axis}", "integer", f"Voxels along {axis}.") for axis in "zyx"),
    *(
        ScanColumn(f"spacing_{axis}_mm", "number", f"Voxel spacing along {axis} in mm.")
        for axis in "zyx"
    ),
    ScanColumn("vertebrae", "text", "Names of the vertebrae that the mask shows."),
    ScanColumn("anomaly", "text", "Anatomical variant that the dataset reports."),
    ScanColumn("erratum", "text", "Known error of the mask."),
)
"""Columns of the list of scans."""


@dataclass(frozen=True, slots=True)
class DatasetDescription:
    """A dataset at the place where others will find it."""

    root: RootAttributes
    table: "xr.Dataset"
    """Rows of the scan table."""
    statistics: Statistics
    url: str
    """URL of the store, without a slash at its end."""
    scan_licenses: tuple[str, ...]
    """License of each scan, in the order of the table."""
    caveats: tuple[str, ...]
    """Remarks on the published figures of the dataset."""

    @property
    def licenses(self) -> dict[str, int]:
        """Number of scans by license, the most frequent first."""
        return dict(Counter(self.scan_licenses).most_common())

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Ids of the scans, in the order of the table."""
        return tuple(map(str, self.table.scan.to_numpy()))

    @property
    def table_url(self) -> str:
        """URL of the scan table."""
        return f"{self.url}/{TABLE}"

    def scan_url(self, scan_id: str) -> str:
        """Return the URL of a scan."""
        return f"{self.url}/{scan_key(scan_id)}"

    def scan_list(self) -> str:
        """Return the list of the scans as CSV, with the columns :data:`SCAN_COLUMNS`."""
        table = self.table
        names = list(map(str, table.vertebra.to_numpy()))
        is_shown = table.voxel_count.to_numpy() > 0
        rows: list[list[Any]] = []
        own = {"scan", "license", "vertebrae"}
        texts_of = {
            column.name: table[column.name].to_numpy()
            for column in SCAN_COLUMNS
            if column.kind == "text" and column.name not in own
        }
        for row, scan_id in enumerate(self.scan_ids):
            texts = {name: str(values[row]) for name, values in texts_of.items()}
            sizes = table.shape_zyx.to_numpy()[row].tolist()
            spacings = table.spacing_zyx_mm.to_numpy()[row].tolist()
            vertebrae = (name for name, shown in zip(names, is_shown[row], strict=True) if shown)
            values: dict[str, Any] = {
                "scan": scan_id,
                "url": self.scan_url(scan_id),
                **texts,
                "license": self.scan_licenses[row],
                **{f"size_{axis}": n for axis, n in zip("zyx", sizes, strict=True)},
                **{f"spacing_{axis}_mm": mm for axis, mm in zip("zyx", spacings, strict=True)},
                "vertebrae": " ".join(vertebrae),
            }
            rows.append([values[column.name] for column in SCAN_COLUMNS])
        return to_csv([column.name for column in SCAN_COLUMNS], rows)


def license_link(license: str, homepage: str | None) -> str | None:
    """Return the address of the text of a license, or else the homepage of the dataset.

    Examples
    --------
    >>> license_link("CC-BY-NC-SA-4.0", None)
    'https://creativecommons.org/licenses/by-nc-sa/4.0/'
    """
    known = _CREATIVE_COMMONS.get(license.upper().replace(" ", "-"))
    return known or (None if homepage is None else to_printable(homepage))
