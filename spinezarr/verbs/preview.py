"""What does each scan look like?"""

import os
from pathlib import Path

from spinezarr.export.atomic_file import make_folder, write_atomically
from spinezarr.export.preview import preview_scan
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.engine import Engine

__all__ = ["write_previews"]


def write_previews(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    on_progress: OnProgress,
) -> list[Path]:
    """Draw a picture of each scan; see :meth:`spinezarr.Store.preview`."""
    scan_ids = selection.scan_ids(reader.columns, reader.name)
    folder = Path(out)
    make_folder(folder)
    counter = ProgressCounter(on_progress, "preview", "scans", len(scan_ids))
    paths = []
    for scan_id in scan_ids:
        path = folder / f"{scan_id}.png"
        figure = preview_scan(reader.scan(scan_id), engine)
        with write_atomically(path) as file:
            figure.savefig(file, format="png")
        paths.append(path)
        counter.add()
    return paths
