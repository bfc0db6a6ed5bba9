"""How does a raw folder become a store, given the name of its dataset and a few options?

The name is looked up in the catalog and among the shipped recipes. Then the files are found. The
scans are ingested in this process, in other processes of this machine, or on a cluster.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, overload

from spinezarr.catalog import CatalogEntry, load_catalog
from spinezarr.errata import Errata
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.export.nii_gz_size import estimate_nii_gz_bytes
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import Discovery, discover
from spinezarr.ingestion.pseudonyms import apply_pseudonyms, map_file
from spinezarr.ingestion.run import IngestReport
from spinezarr.ingestion.run import ingest as ingest_scans
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.progress import OnProgress, ignore_progress
from spinezarr.recipe import Recipe
from spinezarr.store.claim import stored_root
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.verbs.damage import find_damage
from spinezarr.verbs.ingest_progress import IngestProgress
from spinezarr.verbs.verify import link_folders
from spinezarr.verbs.workers import check_worker_options, chosen_workers

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["IngestOptions", "ingest"]

_PAIRS: Final = "pairs"
_BYTES_PER_GB: Final = 1_000_000_000


class IngestOptions(TypedDict, total=False):
    """Types of the options of :func:`ingest`, except ``dry_run``, for type checkers."""

    raw: str | os.PathLike[str] | None
    out: str | os.PathLike[str] | None
    image: str | None
    label: str | None
    scan_id: str | None
    license: str | None
    codec: str | None
    take_image_grid: bool
    pseudonymize: bool
    pseudonyms: str | os.PathLike[str] | None
    max_axis_voxels: int
    max_volume_gb: float
    follow_links: Collection[str | os.PathLike[str]] | None
    scratch: str | os.PathLike[str] | None
    errata: Errata
    workers: int | None
    scheduler: "str | Client | None"
    repair: bool
    catalog: str | os.PathLike[str] | None
    storage_options: Mapping[str, Any] | None
    raw_storage_options: Mapping[str, Any] | None
    on_progress: OnProgress


@overload
def ingest(
    dataset: str | os.PathLike[str],
    *,
    dry_run: Literal[False] = False,
    **options: Unpack[IngestOptions],
) -> IngestReport: ...
@overload
def ingest(
    dataset: str | os.PathLike[str],
    *,
    dry_run: Literal[True],
    **options: Unpack[IngestOptions],
) -> Discovery: ...
@overload
def ingest(
    dataset: str | os.PathLike[str],
    *,
    dry_run: bool,
    **options: Unpack[IngestOptions],
) -> IngestReport | Discovery: ...
def ingest(
    dataset: str | os.PathLike[str],
    *,
    raw: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    scan_id: str | None = None,
    license: str | None = None,
    codec: str | None = None,
    take_image_grid: bool = False,
    pseudonymize: bool = False,
    pseudonyms: str | os.PathLike[str] | None = None,
    max_axis_voxels: int = DEFAULT_LIMITS.axis_voxels,
    max_volume_gb: float = DEFAULT_LIMITS.volume_bytes / _BYTES_PER_GB,
    follow_links: Collection[str | os.PathLike[str]] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    errata: Errata = "mark",
    dry_run: bool = False,
    workers: int | None = None,
    scheduler: "str | Client | None" = None,
    repair: bool = False,
    catalog: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    raw_storage_options: Mapping[str, Any] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> IngestReport | Discovery:
    """Write a dataset's raw files into one store. Run it again to add what is missing.

    Scans that are in the store already, and whose files have not changed, are skipped. A scan that
    fails does not stop the others.

    Parameters
    ----------
    dataset
        Name in the catalog, name of a shipped recipe, path of a recipe, or ``"pairs"`` for images
        and masks that ``image`` and ``label`` describe.
    raw
        Folder or URL of the files as downloaded. By default, that of the catalog.
    out
        Path or URL of the store to write. By default, that of the catalog.
    image, label
        With ``"pairs"``: patterns of the paths of images and masks, such as
        ``"{scan}_ct.nii.gz"``.
    scan_id
        With ``"pairs"``: template of the scan ids. By default, ``"{scan}"``, or all names of the
        image pattern, joined by ``_``.
    license
        License of the data as an SPDX identifier, if it differs from the recipe's.
    codec
        Name of the codec profile. By default, that of the store, or ``"balanced"`` for a new store.
    take_image_grid
        Whether a mask takes its image's affine if both have the same shape.
    pseudonymize
        Whether to store keyed hashes in place of scan and patient ids. Key and map stay outside the
        store.
    pseudonyms
        With ``pseudonymize``: path of the map, a ``.csv`` file with a ``.key`` file next to it. By
        default, both are next to the store.
    max_axis_voxels
        Largest number of voxels of a source file along an axis.
    max_volume_gb
        Largest size of the voxels of a source file, in GB of 10^9 bytes.
    follow_links
        Folders into which the voxels of a ``.mhd`` may lead through a link.
    scratch
        Folder for data that do not fit into memory. By default, that of a local store.
    errata
        Whether lists of errata only mark scans (``"mark"``), or also correct the labels of their
        masks (``"apply"``). A second run with another choice reads only these scans again.
    dry_run
        Whether to find the files and return the result without writing anything.
    workers
        Number of scans to ingest at once, each in a separate process.
    scheduler
        Dask cluster that ingests the scans: a client, or the address of a scheduler such as
        ``"tcp://10.0.0.1:8786"``. The client stays open.
    repair
        Whether to check every stored byte first, and to write damaged files again.
    catalog
        The catalog file; else ``$SPINEZARR_CATALOG``, else ``catalog.yaml`` in the working folder.
    storage_options
        Options for the file system of ``out``, and for that of ``raw`` if
        ``raw_storage_options`` is not given.
    raw_storage_options
        Options for the file system of ``raw``.
    on_progress
        Called while files are found, and when scans start, advance and end.

    Returns
    -------
    IngestReport or Discovery
        Report with the scans by outcome, notes, and files that belong to no scan. With ``dry_run``,
        the scans and files that were found.

    Raises
    ------
    UsageError
        If options contradict each other, if no scan is in a readable format, or if the store cannot
        be written.
    RecipeError, CatalogError
        If the recipe or the catalog does not load.
    StoreBusyError
        If another process is writing the store.
    LostLockError, LostClusterError
        If another process has taken over the store, or if the cluster does not answer any more.

    Examples
    --------
    >>> import spinezarr
    >>> discovery = spinezarr.ingest("ctspine1k", raw=raw_folder, dry_run=True)
    >>> len(discovery.scans)
    6
    """
    if pseudonyms is not None and not pseudonymize:
        raise UsageError("--pseudonyms needs --pseudonymize.")
    check_worker_options(workers, scheduler, _text(scratch))
    request = _Request(
        dataset=os.fspath(dataset),
        patterns=_Patterns(image, label, scan_id),
        catalog=catalog,
        raw=_text(raw),
        out=_text(out),
        dry_run=dry_run,
        storage_options=storage_options or {},
        raw_storage_options=raw_storage_options or {},
    )
    recipe, entry = _recipe_and_entry(request)
    locations = _locate(request, entry)
    dicom_folders = known_folders(locations.out, locations.out_options)
    discovery = discover(
        recipe,
        locations.raw,
        locations.raw_options,
        known=dicom_folders,
        errata=errata,
        on_progress=on_progress,
    )
    if dry_run:
        return discovery
    if locations.out is None:
        raise UsageError("no store: give --out URL, or add the dataset to a catalog.")
    limits = Limits(
        axis_voxels=max_axis_voxels,
        volume_bytes=int(max_volume_gb * _BYTES_PER_GB),
        link_folders=link_folders(follow_links),
    )
    options = ScanOptions(take_image_grid=take_image_grid, limits=limits, scratch=_text(scratch))
    if pseudonymize:
        map_path = map_file(locations.out, _text(pseudonyms))
        discovery, names = apply_pseudonyms(
            discovery, recipe, locations.out, map_path, locations.out_options
        )
        options = replace(options, pseudonyms=names)
    find_damaged = partial(find_damage, locations.out, locations.out_options, on_progress)
    with chosen_workers(workers, scheduler, "ingest", on_progress) as chosen:
        report = ingest_scans(
            recipe,
            discovery,
            locations.out,
            options=options,
            license=license or locations.license,
            codec=codec,
            listener=IngestProgress(discovery.scans, on_progress),
            raw_options=locations.raw_options,
            out_options=locations.out_options,
            workers=chosen,
            find_damaged=find_damaged if repair else None,
        )
    return replace(report, nii_gz_bytes=_nii_gz_bytes(report, discovery))


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Patterns of the files of a dataset without a recipe."""

    image: str | None = None
    label: str | None = None
    scan_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    """Dataset, source and target of an ingest, as the user named them."""

    dataset: str
    patterns: _Patterns
    catalog: str | os.PathLike[str] | None
    raw: str | None
    out: str | None
    dry_run: bool
    storage_options: Mapping[str, Any]
    raw_storage_options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Locations:
    """Source and target of an ingest, with their storage options."""

    raw: str
    raw_options: Mapping[str, Any]
    out: str | None
    out_options: Mapping[str, Any]
    license: str | None


def _recipe_and_entry(request: _Request) -> tuple[Recipe, CatalogEntry | None]:
    """Return the recipe of a dataset, and its entry in the catalog."""
    if request.dataset == _PAIRS:
        return _recipe_of_patterns(request), None
    if request.patterns != _Patterns():
        raise UsageError("--image, --label and --scan-id need the dataset 'pairs'.")
    catalog = load_catalog(request.catalog)
    entry = None if catalog is None else catalog.get(request.dataset)
    return Recipe.load(request.dataset if entry is None else entry.recipe_location), entry


def _recipe_of_patterns(request: _Request) -> Recipe:
    """Return the recipe of a folder of pairs. It is named after the store."""
    patterns, out = request.patterns, request.out
    if patterns.image is None:
        raise UsageError("'pairs' needs --image, e.g. --image '{scan}_ct.nii.gz'.")
    stem = Path((out or _PAIRS).rstrip("/")).name.removesuffix(".zarr")
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or _PAIRS
    if out is not None:
        root = stored_root(out, request.storage_options if "://" in out else {})
        if root is not None and root.dataset == root.title and not root.citation:
            name = root.dataset  # 'pairs' made this store, so its name is kept
    return Recipe.from_pairs(patterns.image, patterns.label, name=name, scan_id=patterns.scan_id)


def _locate(request: _Request, entry: CatalogEntry | None) -> _Locations:
    """Return source and target, from the options or else from the catalog.

    The catalog is used only for values that no option gives. So not all of its variables need be
    set.
    """
    raw, out = request.raw, request.out
    store_options, raw_folder_options = (
        dict(request.storage_options),
        dict(request.raw_storage_options),
    )
    if entry is not None:
        if out is None:
            store_options = {**entry.storage_options, **store_options}
        if raw is None:
            raw, raw_folder_options = (
                entry.raw_location,
                {**(entry.raw_storage_options or {}), **raw_folder_options},
            )
        if out is None and not request.dry_run:
            out = entry.store_location
    if raw is None:
        raise UsageError(
            f"no raw folder: give --raw DIR, or add {request.dataset!r} to a catalog "
            "('spinezarr init' writes one)."
        )
    raw_options = raw_folder_options or (store_options if "://" in raw else {})
    # Options for the bucket of the raw folder may not fit the store.
    out_options = {} if raw_options and "://" not in (out or "") else store_options
    license = None if entry is None else entry.license
    return _Locations(raw, raw_options, out, out_options, license)


def _nii_gz_bytes(report: IngestReport, discovery: Discovery) -> int | None:
    """Estimate the size in bytes of the ingested scans as ``.nii.gz``.

    The result is None if their files have this format. It is also None for a store on another
    machine, because it would have to be read.
    """
    done = set(report.done)
    images = [scan.image.lower() for scan in discovery.scans if scan.scan_id in done]
    if "://" in report.store or all(image.endswith(".gz") for image in images) or report.problem:
        return None
    try:
        reader = StoreReader(report.store)
        return estimate_nii_gz_bytes(reader, Engine(fetcher_for(reader.objects)), report.done)
    except (SpinezarrError, OSError):
        return None  # the ingest itself has succeeded
