"""How is the scan table of a store read into memory?"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from spinezarr.errors import CorruptStoreError, DamagedMetadataError
from spinezarr.geometry import ShapeZYX, SpacingZYX
from spinezarr.store.manifest import checked_content
from spinezarr.store.scan_table import ScanTable
from spinezarr.store.table_file import parse_table

__all__ = ["ReadFiles", "TableRow", "read_table", "rows_of"]

ReadFiles = Callable[[Iterable[str]], Mapping[str, bytes]]
"""Returns the contents of files by path; absent files are left out."""


class TableRow(NamedTuple):
    """The cells of a row of the scan table that a reader compares with the scan."""

    content_checksum: str
    shape_zyx: ShapeZYX
    spacing_zyx_mm: SpacingZYX
    mask_checksums: tuple[tuple[str, str], ...] = ()
    """Name and checksum of each further mask."""


def rows_of(table: ScanTable) -> dict[str, TableRow]:
    """Return the rows of a table by scan id."""
    shapes = map(tuple, table["shape_zyx"].tolist())
    spacings = map(tuple, table["spacing_zyx_mm"].tolist())
    masks = map(_mask_checksums, table["masks"].tolist(), table["mask_checksums"].tolist())
    columns = (table["content_checksum"].tolist(), shapes, spacings, masks)
    rows = (TableRow(*row) for row in zip(*columns, strict=True))
    return dict(zip(table["scan"].tolist(), rows, strict=True))


def _mask_checksums(names: str, checksums: str) -> tuple[tuple[str, str], ...]:
    return tuple(zip(names.split(), checksums.split(), strict=True))


def read_table(read: ReadFiles, folder: str, url: str) -> ScanTable:
    """Read the scan table of a store into memory. Texts become Python objects.

    Parameters
    ----------
    read
        Reads files of the store by path.
    folder
        Path of the table in the store's file system.
    url
        Path or URL of the store for messages.

    Raises
    ------
    CorruptStoreError
        If a file of the table is missing or damaged.
    """
    raw = read([f"{folder}/zarr.json"]).get(f"{folder}/zarr.json")
    if raw is None:
        raise CorruptStoreError(
            f"{url}: has no scan table: a run was cut off before its first scan was done. Run the "
            "same 'spinezarr ingest' or 'spinezarr derive' again."
        )
    try:
        stored = parse_table(raw)
        chunks = {f"{folder}/{key}": entry for key, entry in stored.chunks.items()}
        present = read(chunks)
        data = {
            path[len(folder) + 1 :]: checked_content(path, present.get(path), entry)
            for path, entry in chunks.items()
        }
        return stored.table(data)
    except DamagedMetadataError as problem:
        raise CorruptStoreError(
            f"{folder}/zarr.json: is damaged, or an early version wrote it ({problem}). Run the "
            "same 'spinezarr ingest' or 'spinezarr derive' again with --repair to write the table "
            "anew."
        ) from problem
