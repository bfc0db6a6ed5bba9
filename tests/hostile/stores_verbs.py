"""Verbs: everything that users do with a store, in Python and on the command line."""

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stores import Base

import spinezarr
from spinezarr.cli.main import main
from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.verbs.export import ExportReport

LARGE_BYTES = 64 << 20
"""Size above which arrays are not computed whole, as a user would have to request so much."""


@dataclass(frozen=True)
class Case:
    """A lying store, and the folders around it."""

    url: str
    out: Path
    base: Base


class WrongEnd(Exception):  # noqa: N818  a failure that is looked for
    """A command that ended in an unexpected way."""


def _hash(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def _first_scans(store: spinezarr.Store) -> list[str]:
    return [str(name) for name in store.table.scan.to_numpy()[:3]]


def _open(case: Case) -> str:
    store = spinezarr.open(case.url)
    sys.stdout.write(f"{store.attrs['format_version']}\n")
    return ""


def _repr(case: Case) -> str:
    store = spinezarr.open(case.url)
    sys.stdout.write(f"{store!r}\n{store.splits!r}\n")
    return ""


def _table(case: Case) -> str:
    table = spinezarr.open(case.url).table
    table.sel(scan=table.scan[:1]).to_dict()
    sys.stdout.write(f"{table.sizes!r}\n")
    return ""


def _pickle(case: Case) -> str:
    store = spinezarr.open(case.url)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  our own
    return _table_of(again)


def _table_of(store: spinezarr.Store) -> str:
    return f"{store.table.sizes['scan']}"


def _each_scan(case: Case, do: Callable[[spinezarr.Store, str], str]) -> str:
    """Call a function for each scan, even if it fails for others."""
    store = spinezarr.open(case.url)
    found, problems = [], []
    for scan in _first_scans(store):
        try:
            found.append(do(store, scan))
        except SpinezarrError as problem:
            problems.append(problem)
    if problems:
        raise problems[0]
    return "".join(found)


def _lazy(case: Case) -> str:
    def do(store: spinezarr.Store, scan: str) -> str:
        opened = store.scan(scan)
        sys.stdout.write(f"{opened.sizes!r}\n")
        arrays = []
        for name in opened.data_vars:
            array = opened[name]
            if array.nbytes > LARGE_BYTES:
                array = array[:16, :16, :16]
            arrays.append(array.compute().to_numpy())
        return _hash(*arrays)

    return _each_scan(case, do)


def _stats(case: Case) -> str:
    found = spinezarr.open(case.url).stats()
    sys.stdout.write(f"{len(found.vertebrae)}\n")
    return ""


def _batches(stream, most: int = 3) -> str:
    arrays = []
    for at in range(min(most, len(stream))):
        batch = stream[at]
        arrays += [batch.image, batch.start_zyx, batch.affine]
        if batch.label is not None:
            arrays.append(batch.label)
    return _hash(*arrays)


def _masks(case: Case) -> bool:
    return case.base.name != "images"


def _patches(case: Case) -> str:
    store = spinezarr.open(case.url)
    labels = _masks(case)
    stream = store.patches(
        (24, 16, 16),
        n_samples=6,
        batch_size=2,
        labels=labels,
        foreground=0.5 if labels else 0.0,
        nonfinite="keep",
    )
    return _batches(stream)


def _explain(case: Case) -> str:
    store = spinezarr.open(case.url)
    stream = store.patches(16, labels=_masks(case), n_samples=4, nonfinite=0)
    sys.stdout.write(f"{stream.explain()}\n{stream!r}\n")
    return ""


def _iterate(case: Case) -> str:
    store = spinezarr.open(case.url)
    labels = _masks(case)
    stream = store.patches(16, n_samples=4, labels=labels, nonfinite=0)
    return _hash(*(batch.image for batch in stream))


def _window(case: Case) -> str:
    store = spinezarr.open(case.url)
    stream = store.patches(
        16, n_samples=6, batch_size=2, labels=_masks(case), shuffle="window", nonfinite="keep"
    )
    return _hash(*(batch.image for batch in stream))


def _resampled(case: Case) -> str:
    store = spinezarr.open(case.url)
    labels = _masks(case)
    stream = store.patches(
        size_zyx_mm=20,
        spacing_zyx_mm=1.3,
        n_samples=3,
        labels=labels,
        foreground=1.0 if labels else 0.0,
        centers="centroid" if labels else "voxel",
        nonfinite=0,
    )
    return _batches(stream)


def _slices(case: Case) -> str:
    store = spinezarr.open(case.url)
    stream = store.slices("sagittal", n_samples=3, labels=_masks(case), nonfinite="keep")
    return _batches(stream)


def _thick_slices(case: Case) -> str:
    store = spinezarr.open(case.url)
    stream = store.slices(
        "axial",
        size=(16, 16),
        neighbors=2,
        neighbor_step_mm=3,
        n_samples=3,
        labels=_masks(case),
        nonfinite="keep",
    )
    return _batches(stream)


def _grid(case: Case) -> str:
    def do(store: spinezarr.Store, scan: str) -> str:
        grid = store.grid(scan, (32, 32, 32), labels=_masks(case), nonfinite=0)
        merger = grid.merger("average")
        arrays = []
        for at, batch in enumerate(grid):
            merger.add(batch, batch.image[:, None])
            arrays.append(batch.image)
            if at == 20:  # the scan may claim to be large
                return _hash(*arrays)
        return _hash(merger.merge(), *arrays)

    return _each_scan(case, do)


def _preview(case: Case) -> str:
    return _each_scan(case, lambda store, scan: _drawn(store.figure(scan)))


def _drawn(figure) -> str:
    figure.canvas.draw()
    return ""


def _files_of(report: ExportReport) -> str:
    """Return the number of files of the only scan, or raise an error with the reported reason."""
    for reason in report.failed.values():
        raise CorruptStoreError(reason)
    return str(len(report.done[0].files))


def _export(case: Case) -> str:
    case.out.mkdir()
    return _each_scan(
        case,
        lambda store, scan: _files_of(
            store.export_nifti(out=case.out, scans=scan, compressed=False, overwrite=True)
        ),
    )


def _exact(case: Case) -> str:
    case.out.mkdir()
    return _each_scan(
        case,
        lambda store, scan: _files_of(
            store.export_nifti(out=case.out, scans=scan, exact=True, overwrite=True)
        ),
    )


def _write_nifti(case: Case) -> str:
    case.out.mkdir()

    def do(store: spinezarr.Store, scan: str) -> str:
        shape = tuple(int(n) for n in store.table.shape_zyx.sel(scan=scan).to_numpy())
        if np.prod(shape, dtype=float) < LARGE_BYTES:
            store.write_nifti(scan, np.zeros(np.abs(shape), np.uint8), case.out / "new.nii")
        return ""

    return _each_scan(case, do)


def _huggingface(case: Case) -> str:
    arrays = []
    for name in ("3d", "2d"):
        for records in spinezarr.load_dataset(case.url, name, nonfinite="keep").values():
            record = records[0]
            arrays += [record["image"], record["segmentation"]]
    return _hash(*map(np.asarray, arrays))


def _loader(workers: int) -> Callable[[Case], str]:
    def load(case: Case) -> str:
        # torch takes long to import, and the short form does without.
        from spinezarr.loaders.torch import PatchLoader  # noqa: PLC0415

        store = spinezarr.open(case.url)
        stream = store.patches(16, n_samples=4, batch_size=2, labels=_masks(case), nonfinite="keep")
        return _hash(*(b["image"].numpy() for b in PatchLoader(stream, num_workers=workers)))

    return load


def _audit(case: Case) -> str:
    store = spinezarr.open(case.url)
    found = store.audit(write=False)
    sys.stdout.write("".join(f"{finding}\n" for finding in found.findings))
    return ""


def _cli(*arguments: str, ends: tuple[int, ...] = (0, 1, 2)) -> Callable[[Case], str]:
    """Make a verb of a command; ``STORE``, ``OUT`` and similar words are replaced by paths."""

    def run(case: Case) -> str:
        places = {
            "STORE": case.url,
            "OUT": str(case.out),
            "RAW": str(case.base.raw),
            "NEWER": str(case.base.newer),
            "SOUND": str(case.base.store),
            "RECIPE": str(case.base.recipe),
        }
        sys.argv = ["spinezarr", *(places.get(a, a) for a in arguments)]
        try:
            main()
        except SystemExit as end:
            if (end.code or 0) not in ends:
                raise WrongEnd(f"exit code {end.code}") from end
        return ""

    return run


READING: dict[str, Callable[[Case], str]] = {
    "open": _open,
    "repr": _repr,
    "table": _table,
    "pickle": _pickle,
    "lazy": _lazy,
    "stats api": _stats,
    "patches": _patches,
    "explain": _explain,
    "iterate": _iterate,
    "window": _window,
    "resampled": _resampled,
    "slices": _slices,
    "thick slices": _thick_slices,
    "grid": _grid,
    "preview api": _preview,
    "export api": _export,
    "export exact": _exact,
    "write nifti": _write_nifti,
    "huggingface": _huggingface,
    "loader": _loader(0),
    "loader worker": _loader(1),
    "audit api": _audit,
    "info": _cli("info", "STORE"),
    "info json": _cli("info", "STORE", "--json"),
    "stats": _cli("stats", "STORE"),
    "stats markdown": _cli("stats", "STORE", "--format", "markdown"),
    "stats json": _cli("stats", "STORE", "--json"),
    "stats csv": _cli("stats", "STORE", "--format", "csv"),
    "stats plots": _cli("stats", "STORE", "--plots", "OUT"),
    "stats card": _cli("stats", "STORE", "--against", "card"),
    "preview": _cli("preview", "STORE", "--out", "OUT"),
    "verify": _cli("verify", "STORE"),
    "verify json": _cli("verify", "STORE", "--json"),
    "verify against": _cli("verify", "STORE", "--against", "RAW"),
    "audit no write": _cli("audit", "STORE", "--no-write"),
    "audit json": _cli("audit", "STORE", "--no-write", "--json"),
    "compare": _cli("audit", "STORE", "SOUND", "--no-write"),
    "export nifti": _cli("export", "nifti", "STORE", "--out", "OUT", "--uncompressed"),
    "export json": _cli("export", "nifti", "STORE", "--out", "OUT", "--json"),
    "export ome-zarr": _cli("export", "ome-zarr", "STORE", "--out", "OUT"),
    "export nnunet": _cli("export", "nnunet", "STORE", "--out", "OUT", "--uncompressed"),
    "dry run": _cli("ingest", "RECIPE", "--raw", "NEWER", "--out", "STORE", "--dry-run"),
}
"""Verbs that may change only their output folder."""
_INGEST = ("ingest", "RECIPE", "--out", "STORE", "--raw")
WRITING: dict[str, Callable[[Case], str]] = {
    "audit": _cli("audit", "STORE"),
    "ingest": _cli(*_INGEST, "RAW"),
    "ingest newer": _cli(*_INGEST, "NEWER"),
    "ingest newer json": _cli(*_INGEST, "NEWER", "--json"),
    "repair": _cli(*_INGEST, "RAW", "--repair"),
    "ingest both": _cli(*_INGEST, "RAW", "--repair", "--json"),
}
"""Verbs that may also change the store."""
VERBS = {**READING, **WRITING}
RARE = {"loader worker", "stats plots", "preview", "preview api"}
"""Verbs that take long, or add little to others."""
STARTING = {"loader worker"}
"""Verbs that start an interpreter."""
NOT_OF_SERVERS = {"dry run", "compare", *WRITING}
"""Verbs that are not tried on a store on a web server."""


def quiet_environment() -> None:
    """Remove settings of the machine that would change the verbs."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "SPINEZARR_CATALOG"):
        os.environ.pop(name, None)
    os.environ["MPLBACKEND"] = "agg"
