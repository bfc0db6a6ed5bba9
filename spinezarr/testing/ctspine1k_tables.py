"""Which tables accompany CTSpine1K: the TCIA series of each scan, and facts about patients?

References
----------
.. [1] https://github.com/MIRACLE-Center/CTSpine1K (``Path.csv``)
.. [2] https://github.com/Gregory-Schwing-MD-PhD/CTSpinoPelvic1K (columns of the colon table)
"""

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import openpyxl

from spinezarr.testing.ctspine1k import Layout, source_of

__all__ = ["path_csv_text", "series_of", "write_ctspine1k_tables"]

_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)
_MODIFIED: Final = re.compile(rb"<dcterms:(created|modified)[^>]*>[^<]*</dcterms:\1>")


def series_of(scan_id: str) -> str | None:
    """Compose the path of a scan's TCIA series, or None if it came from elsewhere.

    The path follows [1]_: patient, ``date-study-tail``, ``number-series-tail``; some series have no
    description, and blanks may be doubled.

    Examples
    --------
    >>> series_of("HN_P001")
    'HN_P001/12-22-2009-RTHEADNECK Adult-30001/3.000000-HEADNECK  2.0  B30s-90001'
    >>> series_of("CTC-1018399231")
    'CTC-1018399231/09-01-2005-69231/4.000000-53231'
    >>> series_of("liver_0") is None
    True
    """
    tail = scan_id[-3:]
    if scan_id.startswith("CTC-"):
        return f"{scan_id}/09-01-2005-69{tail}/4.000000-53{tail}"
    if source_of(scan_id) == "COLONOG":
        study = f"01-01-2000-1-Abdomen24ACRINColoIRB2415-04 Adult-62{tail}"
        return f"{scan_id}/{study}/4.000000-Coloprone  1.0  B30f-63{tail}"
    if source_of(scan_id) == "HNSCC-3DCT-RT":
        study = f"12-22-2009-RTHEADNECK Adult-30{tail}"
        return f"{scan_id}/{study}/3.000000-HEADNECK  2.0  B30s-90{tail}"
    return None


def path_csv_text(scan_ids: Iterable[str]) -> str:
    r"""Compose ``Path.csv``, which has one path per line, no header and no commas.

    Examples
    --------
    >>> path_csv_text(["CTC-1018399231", "liver_0"])
    'CTC-1018399231/09-01-2005-69231/4.000000-53231\r\n'
    """
    series = (series_of(scan_id) for scan_id in scan_ids)
    return "".join(f"{path}\r\n" for path in series if path is not None)


def write_ctspine1k_tables(
    root: Path, scan_ids: Sequence[str], layout: Layout = "official"
) -> None:
    """Write ``Path.csv`` (official layout only) and both spreadsheets.

    The names of two columns of the colon table are known [2]_. All other names are invented.

    Parameters
    ----------
    root
        Folder of the dataset.
    scan_ids
        Scans to list in the tables.
    layout
        Release, which determines the folder.
    """
    folder = root / ("data" if layout == "official" else "metadata")
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "official":
        (root / "Path.csv").write_bytes(path_csv_text(scan_ids).encode("ascii"))
    colon = [scan_id for scan_id in scan_ids if source_of(scan_id) == "COLONOG"]
    neck = [scan_id for scan_id in scan_ids if source_of(scan_id) == "HNSCC-3DCT-RT"]
    _write_sheet(
        folder / "metadata_colonog.xlsx",
        [
            ("Patient Id", "Pathology", "Made-up Number"),
            *((name, f"finding {n}", n) for n, name in enumerate(colon)),
        ],
    )
    _write_sheet(
        folder / "metadata_neck.xlsx",
        [("Made-up Id", "Made-up Note"), *((name, f"note {n}") for n, name in enumerate(neck))],
    )


def _write_sheet(path: Path, rows: Sequence[tuple[str | int, ...]]) -> None:
    """Write one sheet without the dates that openpyxl states, so that its bytes are the same."""
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in rows:
        sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as with_dates, zipfile.ZipFile(path, "w") as without_dates:
        for name in with_dates.namelist():
            without_dates.writestr(
                zipfile.ZipInfo(name, _ZIP_DATE), _MODIFIED.sub(b"", with_dates.read(name))
            )
