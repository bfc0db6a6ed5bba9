"""What does each scan look like?"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import make_folder, write_atomically
from spinezarr.export.preview import mask_caption, mask_legend, preview_scan
from spinezarr.export.side_by_side import PictureSide, draw_side_by_side
from spinezarr.export.spine_slices import middle_of_spine, read_slice
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.engine import Engine
from spinezarr.verbs.masked_scans import scans_with_masks

__all__ = ["write_previews"]


def write_previews(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    *,
    layer: str,
    truth: str | None,
    on_progress: OnProgress,
) -> list[Path]:
    """Draw a picture of each scan; see :meth:`spinezarr.Store.preview`."""
    if truth == layer:
        raise UsageError(f"--with {truth}: is the mask of --layer. Name two masks.")
    shown = (layer,) if truth is None else (truth, layer)
    if shown == (LABEL,):
        scan_ids = selection.some_scan_ids(reader.columns, reader.name)
    else:
        scan_ids = scans_with_masks(reader, selection, shown)
    folder = Path(out)
    make_folder(folder)
    ending = "" if shown == (LABEL,) else f"_{'_'.join(shown)}"
    counter = ProgressCounter(on_progress, "preview", "scans", len(scan_ids))
    paths = []
    for scan_id in scan_ids:
        path = folder / f"{scan_id}{ending}.png"
        scan = reader.scan(scan_id)
        with write_atomically(path) as file:
            if truth is None:
                preview_scan(scan, engine, layer).savefig(file, format="png")
            else:
                file.write(_draw_beside(scan, engine, truth, layer))
        paths.append(path)
        counter.add()
    return paths


def _draw_beside(scan: ScanHandle, engine: Engine, left: str, right: str) -> bytes:
    """Draw two stored masks of a scan side by side, on planes through the left one."""
    middle_zyx = middle_of_spine(scan, engine, left)
    sides = (
        PictureSide(
            title=name,
            caption="" if name == LABEL else mask_caption(scan, name),
            slice_of=partial(_slice, engine, scan.mask(name), middle_zyx),
            legend=mask_legend(scan, name),
        )
        for name in (left, right)
    )
    return draw_side_by_side(scan, engine, middle_zyx, *sides)


def _slice(
    engine: Engine, mask: ArraySpec, middle_zyx: ShapeZYX, plane: Plane
) -> npt.NDArray[np.uint8]:
    values: npt.NDArray[np.uint8] = read_slice(
        mask, engine, SLICE_AXIS[plane], middle_zyx[SLICE_AXIS[plane]]
    )
    return values
