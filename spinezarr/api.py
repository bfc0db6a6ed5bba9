"""What can a user do with a store in Python?"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Signature, signature
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    Self,
    TypedDict,
    Unpack,
    get_args,
    overload,
)

import numpy as np
import numpy.typing as npt

from spinezarr.catalog import locate_store
from spinezarr.errors import UsageError
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX, SpacingZYX, axis_positions_mm
from spinezarr.progress import OnProgress, ignore_progress
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.store.layout import LABEL, is_mask_name
from spinezarr.store.mask_columns import has_masks
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import ScanTable
from spinezarr.store.selection import Names, ScanSelection
from spinezarr.store.severity import Severity
from spinezarr.stream.draw.sampler import Centers, Sampler
from spinezarr.stream.draw.voxel_finder import StoredVoxelFinder
from spinezarr.stream.draw.window import Shuffle, window_sampler
from spinezarr.stream.epoch.grid import GridStream
from spinezarr.stream.epoch.stream import OnChange, PatchStream, image_dtype_of
from spinezarr.stream.epoch.tiling import Tiling
from spinezarr.stream.read.batch_client import BatchClient, Transfer, api_url
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.stream.read.nonfinite import Nonfinite, refuse_nonfinite
from spinezarr.stream.read.range_cache import NO_CACHE, CacheSettings
from spinezarr.stream.spacing import NATIVE_SPACING, TargetZYX, patch_size, target_spacing
from spinezarr.text import count_noun, to_nfc, to_printable, to_printable_json
from spinezarr.verbs.open_reader import open_reader
from spinezarr.vertebrae import LabelState

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client
    from matplotlib.figure import Figure

    from spinezarr.audit.run import StoreAudit
    from spinezarr.compare.summary import StoreComparison
    from spinezarr.loaders.huggingface import SplitDataset
    from spinezarr.serve.run import BackgroundServer
    from spinezarr.stats.compare import Comparison
    from spinezarr.stats.statistics import Statistics
    from spinezarr.verbs.add_labels import AddLabelsReport
    from spinezarr.verbs.bench import Benchmark
    from spinezarr.verbs.copy import CopyReport
    from spinezarr.verbs.derive import DeriveReport
    from spinezarr.verbs.export import ExportReport
    from spinezarr.verify.store import Verification
    from spinezarr.view.widget import ScanView

__all__ = ["ENCODED_STORE", "Store", "audit_stores", "load_dataset", "open"]

ENCODED_STORE: Final = "spinezarr_store"
"""Key of the encoding of a dataset that holds the store it was opened from."""


def open(  # noqa: A001  like xarray.open_zarr
    store: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: CacheSettings = NO_CACHE,
    remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
    transfer: Transfer = "auto",
) -> "Store":
    """Open a store.

    Parameters
    ----------
    store
        A path, an fsspec URL such as ``s3://bucket/ctspine1k.zarr``, the URL of a store on a
        spinezarr server such as ``http://lab:8765/ctspine1k``, or the name of a dataset in the
        catalog.
    catalog
        The catalog file. By default, ``$SPINEZARR_CATALOG``, or else ``catalog.yaml`` in the
        working folder.
    storage_options
        Options for the file system of a URL, as in xarray: ``{"endpoint_url": ..., "profile":
        ...}`` or ``{"anon": True}`` for a bucket. They override those of the catalog.
    cache
        Caches for later reads: a folder on disk for compressed bytes from a URL, and memory for
        decoded chunks.
    remote
        Bounds on the requests to a URL: how many run at once, and how long an answer may take.
    transfer
        Data that a spinezarr server sends: ``"patches"``, which it reads itself; ``"ranges"`` of
        its files; or with ``"auto"`` the faster of the two. The samples are the same. With a cache,
        ranges are requested in any case, because patches cannot be cached.

    Raises
    ------
    StoreNotFoundError
        If there is no store. The message lists the places that were searched.
    CatalogError
        If the catalog does not load.
    UsageError
        If ``transfer`` has another value.
    """
    url, options = locate_store(os.fspath(store), catalog)
    reader = open_reader(url, {**options, **(storage_options or {})}, remote)
    return Store(reader, cache=cache, transfer=transfer)


def _store(reader: StoreReader, cache: CacheSettings, transfer: Transfer) -> "Store":
    return Store(reader, cache=cache, transfer=transfer)


def load_dataset(
    store: str | os.PathLike[str],
    name: Literal["2d", "3d"],
    *,
    split: str | None = None,
    catalog: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: CacheSettings = NO_CACHE,
    nonfinite: Nonfinite = "refuse",
) -> "SplitDataset | dict[str, SplitDataset]":
    """Load a store as the dataset that the Hugging Face script ``CTSpine1K.py`` returns.

    Records come in the script's order, axes and types, voxel for voxel; see
    :class:`spinezarr.loaders.huggingface.SplitDataset`. Nothing is copied in advance: a record
    reads the chunks that it needs.

    Parameters
    ----------
    store, catalog, storage_options, cache
        As in :func:`open`.
    name
        ``"2d"`` gives one record for each slice, ``"3d"`` one for each scan.
    split
        ``"train"``, ``"validation"`` or ``"test"``. By default, a dict of all splits is returned.
    nonfinite
        As in :meth:`Store.patches`. ``"keep"`` returns NaN and infinity, as the script does.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    UsageError
        If there is no such split or configuration, or if scans hold voxels that are NaN or
        infinite.

    Examples
    --------
    >>> record = load_dataset(store.url, "3d", split="train")[0]
    >>> record["image"].dtype, record["segmentation"].dtype, record["index"]
    (dtype('float32'), dtype('int32'), 0)
    """
    from spinezarr.loaders.huggingface import load_splits  # noqa: PLC0415  few programs need it

    opened_store = open(store, catalog=catalog, storage_options=storage_options, cache=cache)
    splits = load_splits(
        opened_store._reader,  # noqa: SLF001  same module
        opened_store._engine,  # noqa: SLF001
        name,
        split=None if split is None else to_nfc(split),
        nonfinite=nonfinite,
    )
    return splits if split is None else splits[to_nfc(split)]


def audit_stores(
    stores: Sequence["Store"],
    *,
    scans: Names | None = None,
    split: Names | None = None,
    source: Names | None = None,
    vertebra: Names | None = None,
    layer: str = "label",
    severity: Severity = "info",
    write: bool = True,
    others: Sequence["Store"] = (),
    on_progress: OnProgress = ignore_progress,
) -> "list[StoreAudit]":
    """Audit several stores, and compare images and patients across them.

    Parameters
    ----------
    stores
        Stores to audit. A scan that ``scans`` names may be in any of them.
    scans, split, source, vertebra, layer, severity, write, others, on_progress
        As in :meth:`Store.audit`.

    Returns
    -------
    list of StoreAudit
        One audit for each store.

    Raises
    ------
    UnknownScanError
        If no store has such a scan.
    UnknownMaskError
        If no chosen scan has such a mask.
    UsageError
        If a store has no such split, source or vertebra, or if the mask shows no vertebra.
    """
    # Training never needs the modules that it imports.
    from spinezarr.verbs.audit import AuditedStore, audit_stores  # noqa: PLC0415

    audits = audit_stores(
        [AuditedStore(store._reader, store._engine) for store in stores],  # noqa: SLF001
        ScanSelection.of(scans, split, source, vertebra),
        layer=layer,
        write=write,
        others=[store._reader for store in others],  # noqa: SLF001
        on_progress=on_progress,
    )
    return [audit.at_least(severity) for audit in audits]


class DrawOptions(TypedDict, total=False):
    """Options that :meth:`Store.patches` and :meth:`Store.slices` share.

    :meth:`Store.patches` documents them. Type checkers and editors read them here. ``help()`` and
    notebooks show them with their defaults, because the signatures of both methods name them too.
    """

    batch_size: int
    scans: Names | None
    split: Names | None
    source: Names | None
    vertebra: Names | None
    seed: int
    epoch: int
    foreground: float
    weights: Mapping[str, float] | None
    centers: Centers
    n_samples: int | None
    labels: bool | Sequence[str]
    shuffle: Shuffle
    window_scans: int | None
    samples_per_scan: int | None
    on_change: OnChange
    nonfinite: Nonfinite


class Store:
    """One dataset, opened for reading. Safe to share between threads and to pickle.

    Parameters
    ----------
    reader
        Reader of the store's files.
    cache
        Caches for later reads, as in :func:`open`.
    transfer
        Data that a spinezarr server sends, as in :func:`open`.

    Raises
    ------
    UsageError
        If ``transfer`` has another value.
    """

    def __init__(
        self,
        reader: StoreReader,
        *,
        cache: CacheSettings = NO_CACHE,
        transfer: Transfer = "auto",
    ) -> None:
        self._reader = reader
        self._cache = cache
        fetcher = fetcher_for(reader.objects, cache)
        self._engine = Engine(fetcher, cache_bytes=cache.memory_bytes)
        if transfer not in get_args(Transfer):
            raise UsageError(f"transfer {transfer!r}: must be {', '.join(get_args(Transfer))}.")
        self._transfer = transfer
        served_url = api_url(reader.url) if cache == NO_CACHE else None
        self._batch_client = None if served_url is None else BatchClient(served_url, transfer)

    def __repr__(self) -> str:
        splits = ", ".join(f"{n} {name or 'in no split'}" for name, n in self.splits.items())
        by_split = f" ({splits})" if splits else ""
        return to_printable(
            f"<spinezarr.Store {self._reader.root.dataset}: "
            f"{count_noun(len(self._reader.columns), 'scan')}{by_split}>"
        )

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[object, ...]]:
        return _store, (self._reader, self._cache, self._transfer)

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        return self  # a store has no state that could be changed, and datasets refer to it

    @property
    def url(self) -> str:
        """Path or URL of the store."""
        return self._reader.url

    @property
    def attrs(self) -> dict[str, Any]:
        """Dataset, title, license, citation and format of the store."""
        return self._reader.root.model_dump(mode="json")

    @property
    def table(self) -> "xr.Dataset":
        """The scan table: a dataset over ``scan``, ``vertebra`` and ``axis`` (z, y, x), in memory.

        Queries on it open no scan: ``table.volume_cm3.sel(vertebra="L1").median()``. Texts in its
        attributes are safe to print, because xarray prints them as they are.
        """
        table = self._reader.table
        all_attrs = [table.attrs, *(column.attrs for column in table.variables.values())]
        if to_printable_json(all_attrs) == all_attrs:
            return table
        table = table.copy()
        for column in table.variables.values():
            column.attrs = to_printable_json(column.attrs)
        return table.assign_attrs(to_printable_json(table.attrs))

    @property
    def splits(self) -> dict[str, int]:
        """Number of scans in each split."""
        from spinezarr.verbs.info import scans_by_split  # noqa: PLC0415

        return scans_by_split(self._reader)

    def info(self) -> dict[str, Any]:
        """Summarize the store from its scan table, as ``spinezarr info --json`` does.

        Returns
        -------
        dict
            Root attributes; numbers of scans by split, source, vertebra and audit result; sizes in
            bytes; minimum, median and maximum of shapes (z, y, x) and of spacings (z, y, x) in mm;
            for each further mask, who made it and how many scans show each of its labels.

        Examples
        --------
        >>> store.info()["splits"]
        {'test': 1, 'train': 3, 'validation': 2}
        """
        from spinezarr.verbs.info import summarize  # noqa: PLC0415

        return summarize(self._reader)

    @overload
    def stats(
        self,
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        layer: str = "label",
        plots: str | os.PathLike[str] | None = None,
        against: None = None,
    ) -> "Statistics": ...
    @overload
    def stats(
        self,
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        layer: str = "label",
        plots: str | os.PathLike[str] | None = None,
        against: str | os.PathLike[str],
    ) -> "Comparison": ...
    def stats(
        self,
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        layer: str = "label",
        plots: str | os.PathLike[str] | None = None,
        against: str | os.PathLike[str] | None = None,
    ) -> "Statistics | Comparison":
        """Compute the figures that published dataset cards print; no scan is opened.

        Parameters
        ----------
        scans, split, source, vertebra
            Use only these scans, as in :meth:`patches`.
        layer
            Mask whose labels are counted and measured, ``"label"`` or a further one, whatever its
            labels are.
        plots
            Folder for the plots ``detection.png``, ``volumes.png`` and ``spacing.png``.
        against
            Card to compare with: ``"card"`` for the one that ships with the dataset's recipe, or
            the path of a ``.yaml`` file.

        Returns
        -------
        Statistics or Comparison
            The figures, or their comparison with the card if ``against`` is given.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the store has no such split, source or vertebra, or if ``against`` is given for a
            part of the scans or for a further mask, because a card describes the whole dataset
            and its own masks.
        UnknownMaskError
            If no chosen scan has such a mask.
        CardError
            If the card does not load, or if the recipe ships without one.

        Examples
        --------
        >>> store.stats(split="train").vertebrae["L1"].scans
        2
        """
        # It reads recipes and cards, which training never needs.
        from spinezarr.verbs.stats import compute_stats  # noqa: PLC0415

        selection = ScanSelection.of(scans, split, source, vertebra)
        return compute_stats(self._reader, selection, layer, against, plots)

    def compare(
        self,
        *,
        layer: str | None = None,
        masks: str | os.PathLike[str] | None = None,
        truth: str = "label",
        dataset_json: str | os.PathLike[str] | None = None,
        take_image_grid: bool = False,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        csv: str | os.PathLike[str] | None = None,
        plot: str | os.PathLike[str] | None = None,
        pictures: str | os.PathLike[str] | None = None,
        save: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "StoreComparison":
        """Compare predicted masks with the truth, as named and at every shift of the names.

        Parameters
        ----------
        layer
            Name of the predicted mask in the store.
        masks
            Path or URL of the predicted masks with ``{scan}`` in the place of the scan id, in place
            of ``layer``: files on the grid of the image in any axis directions, such as
            :meth:`write_nifti` writes.
        truth
            Name of the true mask in the store.
        dataset_json
            The ``dataset.json`` of :meth:`export_nnunet`, if ``masks`` have the numbers of an
            nnU-Net model. By default, masks have the label values of the store.
        take_image_grid
            Give a file of ``masks`` the affine of the image if only the affines differ.
        scans, split, source, vertebra
            Compare only these scans, as in :meth:`patches`.
        csv
            File for a table with one row for each scan, shift and vertebra.
        plot
            File for a PNG with Dice coefficients and Hausdorff distances of all vertebrae.
        pictures
            Folder for pictures of the ten worst scans, truth and prediction side by side. Their
            names begin with the rank.
        save
            Save Dice, identification rate and verdict of each scan with the mask ``layer``, in
            columns of the scan table such as ``mask_dice``. They are there until one of the two
            masks is replaced or removed. If the store cannot be written, ``not_saved`` of the
            comparison says why.
        on_progress
            Called after each scan.

        Returns
        -------
        StoreComparison
            For each scan, a verdict in words and measures of each vertebra. ``.columns()`` returns
            columns for the scan table. A scan that cannot be compared is in ``failed`` with the
            reason, and one without a true mask in ``without_truth``.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If not exactly one of ``layer`` and ``masks`` is given, if ``masks`` does not contain
            ``{scan}``, if ``dataset_json`` was not made by the export, if ``save`` is given without
            a further mask, if SciPy is not installed, or if the store has no such split, source or
            vertebra.

        Examples
        --------
        >>> comparison = store.compare(layer="label", scans="liver_0")
        >>> comparison.scans[0].comparison.verdict.text
        'All 9 vertebrae have the right names.'
        """
        # SciPy is an extra, and training never compares masks.
        from spinezarr.verbs.compare import (  # noqa: PLC0415
            ComparedMasks,
            CompareOutputs,
            compare_scans,
        )

        return compare_scans(
            self._reader,
            self._engine,
            ScanSelection.of(scans, split, source, vertebra),
            ComparedMasks.plan(
                self._engine,
                layer=layer,
                masks=masks,
                truth=truth,
                dataset_json=dataset_json,
                take_image_grid=take_image_grid,
            ),
            outputs=CompareOutputs(
                csv=None if csv is None else Path(csv),
                plot=None if plot is None else Path(plot),
                pictures=None if pictures is None else Path(pictures),
            ),
            save=save,
            on_progress=on_progress,
        )

    def bench(
        self,
        *,
        seconds: float = 60.0,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> "Benchmark":
        """Measure how fast this machine reads the store, and what bounds that.

        Patches of 64³, 96³ and 128³ voxels and slices of three planes are read in turns, as a
        training reads them but without caches. Scans without a mask are left out if others have
        one.

        Parameters
        ----------
        seconds
            Time for all measurements together, at least 1.
        scans, split, source, vertebra
            Read only these scans, as in :meth:`patches`.
        on_progress
            Called with the seconds so far.

        Returns
        -------
        Benchmark
            Patches a second, the time of a first batch, bytes read for a patch, and what bounds
            each rate; speeds of the disk or link alone; sizes of the store.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If no scan is left to read, ``seconds`` is too short, or the store has no such split,
            source or vertebra.
        CorruptStoreError
            If stored bytes are missing or damaged.

        Examples
        --------
        >>> bench = store.bench(seconds=1, scans="liver_0")
        >>> [rate.kind for rate in bench.rates]
        ['64^3', '96^3', '128^3', 'axial', 'coronal', 'sagittal']
        """
        # Training never measures itself.
        from spinezarr.verbs.bench import bench_store  # noqa: PLC0415

        return bench_store(
            self._reader,
            ScanSelection.of(scans, split, source, vertebra),
            seconds,
            patches=self.patches,
            slices=self.slices,
            on_progress=on_progress,
        )

    def verify(
        self,
        *,
        against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        follow_links: Sequence[str | os.PathLike[str]] | None = None,
        raw_storage_options: Mapping[str, Any] | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> "Verification":
        """Check every byte of the store: files against manifests, and chunks against checksums.

        Parameters
        ----------
        against
            Folder or URL of the raw files, or several. If given, each voxel is compared with them
            too. A further mask that came from a file is compared if one of them has the file.
            Voxels of derived scans are in no file. ``not_compared`` of the result counts what was
            not compared.
        scans, split, source, vertebra
            Check only these scans, as in :meth:`patches`, the scan table and the root.
        follow_links
            Folders into which the voxels of a ``.mhd`` may lead through a link.
        raw_storage_options
            Options for the file system of ``against``. By default, those of the store.
        on_progress
            Called with the number of bytes that have been read.

        Returns
        -------
        Verification
            Its ``faults`` hold what was found, what was expected, and advice. An intact store has
            no faults.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the store has no such split, source or vertebra, or ``against`` is not a folder.

        Examples
        --------
        >>> store.verify(scans="liver_0").faults
        ()
        """
        # Training never needs the modules that it imports.
        from spinezarr.verbs.verify import verify  # noqa: PLC0415

        return verify(
            self.url,
            ScanSelection.of(scans, split, source, vertebra),
            against=against,
            follow_links=follow_links,
            storage_options=self._reader.storage_options or {},
            raw_storage_options=raw_storage_options or {},
            on_progress=on_progress,
        )

    def scan(self, scan_id: str) -> "xr.Dataset":
        """Open one scan. Voxels are read only when they are computed.

        Returns
        -------
        xarray.Dataset
            ``image`` (z, y, x) in HU and, if the scan has a mask, ``label`` (z, y, x) uint8, as
            dask arrays with one chunk for each shard. Further masks follow by their names.
            Coordinates are ``z``, ``y``, ``x`` in mm
            (RAS+). The attributes hold ``affine`` (voxel ``(x, y, z, 1)`` to RAS+ mm) and
            provenance.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        CorruptStoreError
            When voxels are computed, if stored bytes are missing or damaged. Fill values never
            replace them.
        """
        # dask takes long to import, and training never computes with it.
        from spinezarr.stream.read.lazy_array import lazy_array  # noqa: PLC0415

        scan = self._reader.scan(scan_id)
        variable_attributes = to_printable_json(scan.variable_attributes)
        positions = axis_positions_mm(scan.affine, scan.image.shape_zyx)
        attributes = to_printable_json(scan.attributes.to_json())
        del attributes["manifest"]
        import xarray as xr  # noqa: PLC0415

        dataset = xr.Dataset(
            {
                spec.name: (
                    ("z", "y", "x"),
                    lazy_array(self._engine, spec, self.url),
                    variable_attributes[spec.name],
                )
                for spec in scan.all_arrays
            },
            {axis: (axis, values, variable_attributes[axis]) for axis, values in positions.items()},
            attributes,
        )
        # xarray keeps the place under the same key, and ``dataset.spine.view`` needs the store.
        dataset.encoding = {"source": self.url, ENCODED_STORE: self}
        return dataset

    def write_labels(
        self,
        scan_id: str,
        name: str,
        values_zyx: npt.ArrayLike,
        *,
        scheme: str | Mapping[int, str] = "vertebrae",
        license: str = "",
        author: str = "",
        model: str = "",
        wait_s: float = 60.0,
    ) -> None:
        """Write a further mask of a scan, such as a prediction, beside its ``label``.

        Image and other masks stay as they are. Readers see the scan without the mask, or with all
        of it. A mask of the same name is replaced.

        Parameters
        ----------
        scan_id
            The scan.
        name
            Name of the mask: small letters, digits and underscores, such as ``"prediction"``.
        values_zyx
            One whole number from 0 to 255 for each stored voxel, ``(z, y, x)``; 0 is background. An
            array of dask or xarray is computed a few planes at a time.
        scheme
            Names of the values: ``"vertebrae"`` as in ``label``, ``"subregions"`` as in TPTBox,
            ``"spineps"`` as in SPINEPS, or a mapping from values to names.
        license
            License of the mask, if it is not that of the scan.
        author, model
            Who annotated the mask, or the program that made it, with its version.
        wait_s
            Seconds to wait for other programs that write the store.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the name or the scheme cannot be used, or the shape is not that of the scan.
        LabelError
            If a value is not a whole number from 0 to 255.
        ScanChangedError
            If the scan was replaced since the store was opened.
        StoreBusyError
            If another program still writes the store after ``wait_s``.
        ReadOnlyStoreError
            If the store cannot be written.

        Examples
        --------
        >>> import shutil, tempfile, spinezarr
        >>> folder = tempfile.TemporaryDirectory()
        >>> copy = spinezarr.open(shutil.copytree(store.url, f"{folder.name}/copy.zarr"))
        >>> bone = copy.scan("liver_0").image > 200
        >>> copy.write_labels("liver_0", "bone", bone, scheme={1: "bone"}, model="200 HU")
        >>> copy.scan("liver_0").bone.flag_meanings
        'background bone'
        >>> copy.remove_labels("bone")
        ('liver_0',)
        >>> folder.cleanup()
        """
        # Training never writes.
        from spinezarr.ingestion.masks import MaskFacts  # noqa: PLC0415
        from spinezarr.label_schemes import label_scheme  # noqa: PLC0415
        from spinezarr.verbs.labels import write_labels  # noqa: PLC0415

        facts = MaskFacts(label_scheme(scheme), license, author, model)
        write_labels(self._reader, scan_id, name, values_zyx, facts, wait_s=wait_s)

    def add_labels(
        self,
        name: str,
        labels: str | os.PathLike[str],
        *,
        scheme: str | Mapping[int, str] = "vertebrae",
        license: str = "",
        author: str = "",
        model: str = "",
        take_image_grid: bool = False,
        max_axis_voxels: int = 8192,
        max_volume_gb: float = 32.0,
        follow_links: Sequence[str | os.PathLike[str]] | None = None,
        label_state: LabelState = "unknown",
        scratch: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        workers: int | None = None,
        scheduler: "str | Client | None" = None,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        raw_storage_options: Mapping[str, Any] | None = None,
        wait_s: float = 60.0,
        on_progress: OnProgress = ignore_progress,
    ) -> "AddLabelsReport":
        """Write mask files as further masks of their scans; see :meth:`write_labels`.

        Each mask must lie on the grid of its image, as at an ingest; nothing is resampled. A scan
        that has the mask from the same file is skipped. A file that fails does not stop the others.
        With one file for each structure, the files of a scan are merged by the names of the scheme.

        Parameters
        ----------
        name, scheme, license, author, model, wait_s
            As in :meth:`write_labels`.
        labels
            Pattern of the paths or URLs of the masks, with ``{scan}`` for the scan id, such as
            ``"pred/{scan}.nii.gz"``. With ``{part}``, there is one binary file for each structure,
            named as in the scheme, such as ``"pred/{scan}/{part}.nii.gz"``. If two structures
            overlap, the one of the larger value wins.
        label_state
            Whether vertebrae cut by the end of the volume are annotated (``"all-visible"``) or not
            (``"whole-only"``), or whether a model drew the masks (``"predicted"``).
        take_image_grid
            Whether a mask takes its image's affine if both have the same shape.
        max_axis_voxels, max_volume_gb, follow_links, scratch, workers, scheduler
            As in :func:`spinezarr.ingest`.
        dry_run
            Whether to find the files and return the report without writing anything.
        scans, split, source, vertebra
            Add masks to these scans alone, as in :meth:`patches`.
        raw_storage_options
            Options for the file system of ``labels``. By default, those of the store for a URL.
        on_progress
            Called when scans start, advance and end.

        Returns
        -------
        AddLabelsReport
            Scans by outcome, with their files and notes, and files that belong to no scan.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If no file fits the pattern, the name or the scheme cannot be used, or the store has no
            such split, source or vertebra.
        StoreBusyError, ReadOnlyStoreError
            As in :meth:`write_labels`.
        """
        # Training never writes.
        from spinezarr.formats.limits import Limits  # noqa: PLC0415
        from spinezarr.ingestion.masks import MaskFacts  # noqa: PLC0415
        from spinezarr.ingestion.scan import ScanOptions  # noqa: PLC0415
        from spinezarr.label_schemes import label_scheme  # noqa: PLC0415
        from spinezarr.verbs.add_labels import AddLabelsOptions, add_labels  # noqa: PLC0415
        from spinezarr.verbs.verify import link_folders  # noqa: PLC0415

        pattern, store_options = os.fspath(labels), self._reader.storage_options or {}
        return add_labels(
            self._reader,
            ScanSelection.of(scans, split, source, vertebra),
            name,
            pattern,
            AddLabelsOptions(
                facts=MaskFacts(label_scheme(scheme), license, author, model, label_state),
                scan=ScanOptions(
                    take_image_grid=take_image_grid,
                    limits=Limits(
                        axis_voxels=max_axis_voxels,
                        volume_bytes=int(max_volume_gb * 1e9),
                        link_folders=link_folders(follow_links),
                    ),
                    scratch=None if scratch is None else os.fspath(scratch),
                ),
                wait_s=wait_s,
                dry_run=dry_run,
                workers=workers,
                scheduler=scheduler,
            ),
            raw_options=raw_storage_options or (store_options if "://" in pattern else {}),
            on_progress=on_progress,
        )

    def remove_labels(
        self,
        name: str,
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        wait_s: float = 60.0,
        on_progress: OnProgress = ignore_progress,
    ) -> tuple[str, ...]:
        """Remove a further mask of scans; image and other masks stay as they are.

        Parameters
        ----------
        name
            Name of the mask.
        scans, split, source, vertebra
            Remove it from these scans alone, as in :meth:`patches`.
        wait_s
            Seconds to wait for other programs that write the store.
        on_progress
            Called whenever a scan has lost the mask.

        Returns
        -------
        tuple of str
            Ids of the scans that had the mask.

        Raises
        ------
        UnknownMaskError
            If none of these scans has the mask.
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the store has no such split, source or vertebra.
        StoreBusyError, ReadOnlyStoreError
            As in :meth:`write_labels`.
        """
        from spinezarr.verbs.labels import remove_labels  # noqa: PLC0415  training never writes

        selection = ScanSelection.of(scans, split, source, vertebra)
        return remove_labels(self._reader, selection, name, wait_s=wait_s, on_progress=on_progress)

    def patches(
        self,
        size_zyx: ShapeZYX | int | None = None,
        *,
        size_zyx_mm: SpacingZYX | float | None = None,
        spacing_zyx_mm: SpacingZYX | float | None = None,
        **options: Unpack[DrawOptions],
    ) -> PatchStream:
        """Stream random 3D patches of image and mask.

        Parameters
        ----------
        size_zyx
            Shape of a patch in voxels along z, y and x, or one number for a cube. A smaller volume
            is padded, and ``batch.padding_zyx`` says by how much.
        size_zyx_mm
            Size of a patch in mm along z, y and x, in place of ``size_zyx``. It is rounded to whole
            voxels, at least one. All patches of a stream have one shape, so scans with different
            spacings need ``spacing_zyx_mm`` too.
        spacing_zyx_mm
            Resample each patch to this distance between voxels in mm along z, y and x, or one
            number for all. The patch equals a crop of the resampled whole scan, whose grid starts
            at the first voxel. The image is interpolated linearly, and rounded if its type is an
            integer; the mask takes the nearest voxel. Only the needed voxels are read. A scan that
            has this spacing, to one part in a million, is not resampled. Nothing is smoothed first.
            At more than about twice the scan's own spacing, voxels in between are skipped, so noise
            stays and thin structures may break up.
        batch_size
            Number of patches in a batch.
        scans, split, source, vertebra
            Draw only from scans that meet all these conditions: their id, split and source are
            among those given, and their mask shows one of the vertebrae. Each is a name or several
            names. ``scans`` may be any selection of ``table.scan``.
        seed, epoch
            Every sample is a pure function of (seed, epoch, index).
        foreground
            Share of draws that are balanced over vertebrae. Such a draw picks a vertebra, a scan
            that shows it, and one of its voxels, each with equal probability. The patch is centered
            on the voxel, then moved into the volume. The other draws are uniform over scans, then
            over positions.
        weights
            Relative weights of vertebrae in balanced draws, such as ``{"L6": 5.0, "T13": 5.0}``.
            Other vertebrae have the weight 1. A vertebra that no chosen scan shows is ignored.
        centers
            ``"centroid"`` centers balanced draws on the centroid of the vertebra in place of one of
            its voxels. That is the annotated centroid, or the mean of the label's voxels if the
            annotated one is missing or more than 5 mm away from the label. With ``labels=False``,
            scans that have annotated centroids but no mask are drawn too.
        n_samples
            Number of patches of an epoch. By default, one for each chosen scan.
        labels
            Whether to read masks too, and to draw only from scans that have one. Several masks are
            read by their names, such as ``("label", "prediction")``: ``label`` becomes
            ``batch.label`` and the others ``batch.masks[name]``. Then only scans that have all of
            them are drawn. Vertebrae are drawn by ``label`` in any case.
        shuffle
            ``"exact"`` draws each sample independently. ``"window"`` is several times faster: it
            takes several samples from each decoded region, and mixes them over a window of scans.
            The probability of each sample stays the same, but samples close in time are correlated;
            see ``docs/explanation/sampling.md``.
        window_scans
            Number of scans in a window; 8 by default. If there are that many scans, a batch of at
            most that many samples has no two samples of one scan.
        samples_per_scan
            Number of samples from each decoded region of a window. By default, the smallest number
            that decodes at most 1.5 voxels for each voxel of a sample, but at most 16, and at most
            256 MiB for a window.
        on_change
            What iteration does if a scan was ingested again after the store was opened.
            ``"error"`` raises :class:`~spinezarr.errors.ScanChangedError`. ``"follow"`` opens the
            store again and continues with its present version; see ``docs/how-to/training.md``.
        nonfinite
            What to do with scans that hold voxels that are NaN or infinite: ``"refuse"`` them,
            ``"keep"`` such voxels, or a number that replaces them, such as -1024 for air. They are
            replaced before interpolation. The scan table says which scans hold such voxels; other
            scans are not affected.

        Raises
        ------
        UsageError
            If no scan is left to draw from, a value is out of range, or scans hold voxels that are
            NaN or infinite.

        Examples
        --------
        >>> stream = store.patches((16, 24, 24), batch_size=2, split="train", foreground=1 / 3)
        >>> for batch in stream:
        ...     print(batch.image.shape, batch.image.dtype, batch.label.dtype)
        (2, 16, 24, 24) int16 uint8
        (1, 16, 24, 24) int16 uint8

        Cubes of 64 mm around the centroids of vertebrae, in voxels of 2 mm:

        >>> cubes = store.patches(
        ...     size_zyx_mm=64, spacing_zyx_mm=2, foreground=1.0, centers="centroid"
        ... )
        >>> batch = cubes[0]
        >>> batch.image.shape, batch.spacing_zyx_mm.round(6).tolist()
        ((1, 32, 32, 32), [[2.0, 2.0, 2.0]])
        """
        return self._draw("zyx", size_zyx, size_zyx_mm, spacing_zyx_mm, **options)

    def slices(
        self,
        plane: Plane,
        *,
        size: tuple[int, int] | None = None,
        size_mm: tuple[float, float] | None = None,
        spacing_mm: tuple[float, float] | float | None = None,
        neighbors: int = 0,
        neighbor_step_mm: float | None = None,
        **options: Unpack[DrawOptions],
    ) -> PatchStream:
        """Stream random 2D slices of image and mask, or 2.5D ones.

        Parameters
        ----------
        plane
            ``"axial"`` gives (y, x), ``"coronal"`` (z, x) and ``"sagittal"`` (z, y).
        size
            Shape of a slice in voxels along its two axes. Larger slices are cropped at random, and
            smaller ones are padded. If neither ``size`` nor ``size_mm`` is given, the shape is that
            of the largest chosen scan.
        size_mm, spacing_mm
            As ``size_zyx_mm`` and ``spacing_zyx_mm`` in :meth:`patches`, along the two axes of the
            slice. Nothing is interpolated between slices.
        neighbors
            Number of image slices to add on either side. The image then has a first axis ``slice``
            of length ``2 * neighbors + 1``, ordered toward superior, anterior or right. The mask
            belongs to the slice in the middle. Beyond the volume, its outermost slice is repeated.
        neighbor_step_mm
            Distance between these slices in mm. The scan's slice nearest to each multiple is used.
            By default, adjacent slices are used, whatever their thickness.
        batch_size, scans, split, source, vertebra, seed, epoch, foreground, weights, centers,
        n_samples, labels, shuffle, window_scans, samples_per_scan, on_change, nonfinite
            As in :meth:`patches`.

        Raises
        ------
        UsageError
            If no scan is left to draw from, a value is out of range, or scans hold voxels that are
            NaN or infinite.

        Examples
        --------
        >>> stream = store.slices("sagittal", size=(48, 64), neighbors=2, foreground=1.0)
        >>> batch = stream[0]
        >>> batch.dims, batch.image.shape, batch.label.shape
        (('slice', 'z', 'y'), (1, 5, 48, 64), (1, 48, 64))
        """
        if plane not in SLICE_AXIS:
            raise UsageError(f"plane {plane!r}: must be one of {', '.join(SLICE_AXIS)}.")
        axes = "zyx".replace("zyx"[SLICE_AXIS[plane]], "")
        return self._draw(
            axes,
            size,
            size_mm,
            spacing_mm,
            SLICE_AXIS[plane],
            neighbors=neighbors,
            neighbor_step_mm=neighbor_step_mm,
            **options,
        )

    def grid(
        self,
        scan_id: str,
        size_zyx: ShapeZYX | int,
        *,
        overlap_zyx: ShapeZYX | int | None = None,
        batch_size: int = 1,
        labels: bool | Sequence[str] = False,
        nonfinite: Nonfinite = "refuse",
    ) -> GridStream:
        """Cover a scan with patches, for inference.

        The fewest patches that have the minimum overlap are spread evenly from the first voxel to
        the last. No patch extends beyond the volume. A volume that is smaller than
        the patch is padded on all sides.

        Parameters
        ----------
        scan_id
            The scan.
        size_zyx
            Voxels of a patch along z, y and x, or one number for a cube.
        overlap_zyx
            Minimum overlap of neighboring patches in voxels (z, y, x), or one number for all axes.
            By default, half the patch, as in nnU-Net.
        batch_size
            Number of patches in a batch.
        labels
            Whether to read the mask too, or the names of masks, as in :meth:`patches`.
        nonfinite
            As in :meth:`patches`.

        Returns
        -------
        GridStream
            Batches ordered by z, then y, then x; each chunk is read once. Its ``merger()`` combines
            predictions into one volume.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If ``labels`` is set and the scan has no mask, if a value is out of range, or if the
            scan holds voxels that are NaN or infinite.

        Examples
        --------
        >>> grid = store.grid("liver_0", (24, 32, 32), overlap_zyx=8, batch_size=2)
        >>> merger = grid.merger("gaussian")
        >>> for batch in grid:
        ...     merger.add(batch, batch.image[:, None] > 300)  # (n, c, z, y, x)
        >>> merger.merge().shape == (1, *grid.tiling.shape_zyx)
        True
        """
        z, y, x = _zyx("patch size", size_zyx)
        half = (z // 2, y // 2, x // 2)
        overlap = half if overlap_zyx is None else _zyx("overlap", overlap_zyx)
        masks = _mask_names(labels)
        table = self._select([scan_id], None, None, None, masks=masks)
        refuse_nonfinite(table, nonfinite, self._reader.name)
        scan = self._reader.listed_scan(scan_id)
        return GridStream(
            batch_reader=BatchReader(
                reader=self._reader,
                engine=self._engine,
                size_zyx=(z, y, x),
                spacing_zyx_mm=NATIVE_SPACING,
                with_label=LABEL in masks,
                masks=_further(masks),
                image_dtype=image_dtype_of(table),
                nonfinite=nonfinite,
            ),
            scan_id=scan.attributes.scan_id,
            tiling=Tiling.cover(scan.image.shape_zyx, (z, y, x), overlap),
            batch_size=batch_size,
            client=self._batch_client,
            save_mask=partial(self.write_labels, scan.attributes.scan_id),
        )

    def figure(self, scan_id: str, layer: str = "label") -> "Figure":
        """Draw three planes through the spine of a scan, with colored and named vertebrae.

        The planes pass through the vertebral bodies. The axial plane passes through the middle
        vertebra, or through the middle of a scan that has neither mask nor annotated centers. Dots
        show annotated centers, projected onto the planes.

        Parameters
        ----------
        scan_id
            The scan.
        layer
            Mask that lies over the image.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If the scan has no further mask of that name.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        # matplotlib takes long to import, and training never draws.
        from spinezarr.export.preview import preview_scan  # noqa: PLC0415

        return preview_scan(self._reader.scan(scan_id), self._engine, layer)

    def preview(
        self,
        *,
        out: str | os.PathLike[str],
        layer: str = "label",
        truth: str | None = None,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Path]:
        """Write the picture of :meth:`figure` for each scan, as ``<scan_id>.png``.

        Parameters
        ----------
        out
            Folder for the pictures, which is created if it does not exist.
        layer
            Mask that lies over the image. If it is a further one, scans without it are left out,
            and the files are called ``<scan_id>_<layer>.png``.
        truth
            Mask to draw beside it, on the left. Scans without it are left out too, and the files
            are called ``<scan_id>_<truth>_<layer>.png``.
        scans, split, source, vertebra
            Draw only these scans, as in :meth:`patches`.
        on_progress
            Called after each scan.

        Returns
        -------
        list of Path
            Paths of the pictures.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        CorruptStoreError
            If stored bytes are missing or damaged.
        UsageError
            If the store has no such split, source or vertebra, ``out`` is a file, or ``layer`` and
            ``truth`` are one mask.
        UnknownMaskError
            If no chosen scan has these masks.
        """
        from spinezarr.verbs.preview import write_previews  # noqa: PLC0415

        selection = ScanSelection.of(scans, split, source, vertebra)
        return write_previews(
            self._reader,
            self._engine,
            selection,
            out,
            layer=layer,
            truth=truth,
            on_progress=on_progress,
        )

    def view(
        self,
        scan_id: str,
        *,
        mask: str | None = "label",
        outline: str | None = None,
        window: str = "bone",
        level: int | None = None,
        height_px: int = 600,
    ) -> "ScanView":
        """Show a scan in a notebook: three planes and 3D, with colored and named vertebrae.

        JupyterLab and VS Code show a widget, which needs no server (``pip install
        'spinezarr[notebook]'``). Other programs, installations without these packages, and exported
        notebooks show the picture of :meth:`figure`.

        Parameters
        ----------
        scan_id
            The scan.
        mask
            Mask that is filled with colors: ``"label"`` or a further one; None for none. A scan
            that lacks ``label`` is shown without it.
        outline
            Mask whose border is drawn over it, such as the truth over a prediction; None for none.
        window
            ``"bone"``, ``"soft_tissue"``, ``"lung"``, or the HU of black and white, such as
            ``"-160,240"``.
        level
            Resolution level: 0 is the scan as stored, and each further level halves it. By default,
            the finest level whose image has at most 32 MiB.
        height_px
            Height of the widget in pixels.

        Returns
        -------
        ScanView
            Object that a notebook displays. ``.widget`` is the widget and ``.figure`` the picture.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If the scan has no mask of that name; the message lists those that it has.
        CorruptStoreError
            When it is shown, if stored bytes are missing or damaged.
        UsageError
            If there is no such window or level, or ``mask`` and ``outline`` are one mask.

        Examples
        --------
        >>> store.view("liver_0").level.factor_zyx
        (1, 1, 1)
        """
        # nibabel and matplotlib take long to import, and training never shows a scan.
        from spinezarr.view.served_levels import ServedLevels  # noqa: PLC0415
        from spinezarr.view.widget import ScanView  # noqa: PLC0415
        from spinezarr.view.windows import parse_window  # noqa: PLC0415

        objects, client = self._reader.objects, self._batch_client
        served = None
        if client and isinstance(objects, RemoteObjects) and client.is_offered(objects):
            served = ServedLevels(client.url, objects)
        return ScanView(
            self._reader.scan(scan_id),
            self._engine,
            mask=mask,
            outline=outline,
            window_hu=parse_window(window),
            level=level,
            height_px=height_px,
            served=served,
        )

    def export_nifti(
        self,
        *,
        out: str | os.PathLike[str],
        layer: str | Sequence[str] | None = None,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        compressed: bool = True,
        exact: bool = False,
        overwrite: bool = False,
        include_restricted: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "ExportReport":
        """Write image and masks of each scan as NIfTI, in the source's axes.

        Voxels, type and position of a NIfTI source are restored bit for bit. There are two
        exceptions, which become NIfTI-1 in the narrowest type that holds the values: sources of
        another format, and sources that SimpleITK, ITK-SNAP or nibabel cannot read or read
        differently. Notes of the report state the differences.

        Parameters
        ----------
        out
            Folder for ``<scan_id>_ct.nii.gz`` and ``<scan_id>_seg.nii.gz``, which is created if it
            does not exist. A further mask is ``<scan_id>_seg-<layer>.nii.gz``.
        layer
            Mask to write, or several: ``"label"``, which is the default, or the names of further
            masks. A mask that a program wrote into the store lies on the grid of the exported
            image. Of a scan that lacks the mask, the image alone is written.
        scans, split, source, vertebra
            Export only these scans, as in :meth:`patches`.
        compressed
            Write ``.nii.gz``, else ``.nii``.
        exact
            Keep type and affine of the source bit for bit. The file is NIfTI-2 if NIfTI-1 would
            round the affine. Not all programs read such files.
        overwrite
            Replace existing files.
        include_restricted
            Also export scans and further masks whose license allows no derivatives, such as CC
            BY-NC-ND. The report names those that are left out in ``left_out`` and
            ``left_out_masks``.
        on_progress
            Called with the number of bytes of stored voxels that are done, from several threads.

        Returns
        -------
        ExportReport
            Files of each scan. A scan that cannot be read is in ``failed`` with the reason. The
            others are written.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If no chosen scan has such a further mask.
        UsageError
            If a file exists already, also with the same name and the other ending, because
            SimpleITK confuses the two. Also if the store has no such split, source or vertebra, or
            a mask is named twice.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = store.export_nifti(out=folder, scans="liver_0")
        >>> [scan.scan_id for scan in report.done], report.failed
        (['liver_0'], {})
        """
        # nibabel takes long to import, and training never exports.
        from spinezarr.verbs.export import write_nifti_files  # noqa: PLC0415

        return write_nifti_files(
            self._reader,
            self._engine,
            ScanSelection.of(scans, split, source, vertebra),
            out,
            masks=_mask_names(LABEL if layer is None else layer, "layer"),
            compressed=compressed,
            exact=exact,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )

    def write_nifti(
        self, scan_id: str, values_zyx: npt.ArrayLike, path: str | os.PathLike[str]
    ) -> None:
        """Write values on a scan's grid as NIfTI, such as a predicted mask.

        The file has the axes and the position of the exported image, which are those of its source.

        Parameters
        ----------
        scan_id
            The scan.
        values_zyx
            One number for each stored voxel, ``(z, y, x)``, such as one channel of a merged
            prediction. 64-bit integers become the narrowest type that holds them, because not all
            programs read them.
        path
            Path of the file, which ends in ``.nii.gz`` or ``.nii``. An existing file is replaced.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the shape is not that of the scan, if the path has another ending, if a file exists
            with the same name and the other ending, or if no type holds the values.
        """
        # nibabel takes long to import, and training never exports.
        from spinezarr.export.nifti import write_on_image_grid  # noqa: PLC0415

        write_on_image_grid(Path(path), self._reader.scan(scan_id), np.asarray(values_zyx))

    def export_nnunet(
        self,
        *,
        out: str | os.PathLike[str],
        dataset_id: int = 501,
        name: str | None = None,
        layer: str = LABEL,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        preprocessed: str | os.PathLike[str] | None = None,
        compressed: bool = True,
        overwrite: bool = False,
        include_restricted: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "ExportReport":
        """Write a raw dataset of nnU-Net v2, with ``dataset.json`` and the splits.

        Scans of train and validation go to ``imagesTr`` and ``labelsTr``, those of test to
        ``imagesTs`` and ``labelsTs``. ``dataset.json`` is written last, and only if every scan was
        written, because nnU-Net accepts complete datasets only.

        Parameters
        ----------
        out
            ``$nnUNet_raw``, the folder in which ``Dataset<dataset_id>_<name>`` is created.
        dataset_id, name
            Number (1 to 999) and name of the dataset in nnU-Net. The default name is the store's
            title.
        layer
            Mask to write: ``"label"`` or a further one. Scans without it go to ``imagesTs``.
        scans, split, source, vertebra
            Export only these scans, as in :meth:`patches`.
        preprocessed
            ``$nnUNet_preprocessed``, where nnU-Net looks for splits.
        compressed
            Write ``.nii.gz``, else ``.nii``.
        overwrite
            Replace existing files.
        include_restricted
            Also export scans whose license, or that of the further mask, allows no derivatives,
            such as CC BY-NC-ND. The report names those that are left out in ``left_out``.
        on_progress
            Called with the number of bytes of stored voxels that are done, from several threads.

        Returns
        -------
        ExportReport
            Files of each scan, reasons why scans failed, and in ``files`` those of the dataset.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If no chosen scan has such a further mask.
        UsageError
            If there are no scans for training, if nnU-Net does not accept the name, if files exist
            already, if scans name the values of the mask differently, or if the store has no such
            split, source or vertebra.
        """
        # nibabel takes long to import, and training never exports.
        from spinezarr.verbs.export import write_nnunet_dataset  # noqa: PLC0415

        return write_nnunet_dataset(
            self._reader,
            self._engine,
            ScanSelection.of(scans, split, source, vertebra),
            out,
            mask=layer,
            dataset_id=dataset_id,
            name=name,
            preprocessed=preprocessed,
            compressed=compressed,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )

    def export_ome_zarr(
        self,
        *,
        out: str | os.PathLike[str],
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        storage_options: Mapping[str, Any] | None = None,
        link: bool = False,
        overwrite: bool = False,
        include_restricted: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "ExportReport":
        """Write each scan as an OME-Zarr image (version 0.5), for other viewers.

        Image and masks are the stored shards, byte for byte. Coarser levels are computed. Each
        image appears only when it is complete.

        Parameters
        ----------
        out
            Folder, or URL in a bucket, for ``<scan_id>.ome.zarr``.
        scans, split, source, vertebra
            Export only these scans, as in :meth:`patches`.
        storage_options
            Options for the file system of ``out``, if it is a URL.
        link
            Make hard links to the store's shards, which take no space. A change to such a file
            changes the store.
        overwrite
            Replace existing images.
        include_restricted
            Also export scans and further masks whose license allows no derivatives, such as CC
            BY-NC-ND. The report names those that are left out in ``left_out`` and
            ``left_out_masks``.
        on_progress
            Called with the number of bytes of stored voxels that are done, from several threads.

        Returns
        -------
        ExportReport
            Path or URL of each image, and reasons why scans failed.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If an image exists already, or if the store has no such split, source or vertebra.

        Examples
        --------
        >>> import tempfile, zarr
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = store.export_ome_zarr(out=folder, scans="liver_0")
        ...     image = zarr.open_group(report.done[0].files[0], mode="r")
        ...     image["labels/vertebrae/0"].shape
        (35, 64, 64)
        """
        # nibabel takes long to import, and training never exports.
        from spinezarr.verbs.export import write_ome_zarr_images  # noqa: PLC0415

        return write_ome_zarr_images(
            self._reader,
            self._engine,
            ScanSelection.of(scans, split, source, vertebra),
            out,
            storage_options=storage_options,
            link=link,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )

    def export_card(
        self,
        *,
        out: str | os.PathLike[str],
        url: str | None = None,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        overwrite: bool = False,
        include_restricted: bool = False,
    ) -> "ExportReport":
        """Describe the store for a hub, for Croissant and for intake.

        Parameters
        ----------
        out
            Folder for ``README.md`` (a dataset card), ``scan.png``, ``scans.csv`` (the scans and
            their URLs), ``croissant.json`` and ``intake.yaml``.
        url
            URL at which others will find the store; by default the URL of this store.
        scans, split, source, vertebra
            Describe only these scans, as in :meth:`patches`.
        overwrite
            Replace existing files.
        include_restricted
            Also describe scans whose license allows no derivatives, which :meth:`push` leaves out.

        Returns
        -------
        ExportReport
            Paths of the files, and in ``left_out`` the licenses of scans that are left out.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If a file exists already, if the store is on disk and no URL is given, if no scan
            remains, or if the store has no such split, source or vertebra.

        Examples
        --------
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = store.export_card(out=folder, url="s3://lab/ctspine1k.zarr")
        >>> [os.path.basename(path) for path in report.files]
        ['README.md', 'scans.csv', 'croissant.json', 'intake.yaml', 'scan.png']
        """
        # Training never exports.
        from spinezarr.verbs.card import write_card  # noqa: PLC0415

        return write_card(
            self._reader,
            self._engine,
            ScanSelection.of(scans, split, source, vertebra),
            out,
            url=url,
            overwrite=overwrite,
            include_restricted=include_restricted,
        )

    def derive(
        self,
        *,
        out: str | os.PathLike[str],
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        layers: Sequence[str] | None = None,
        spacing_mm: tuple[float, ...] | float | None = None,
        antialias: bool = True,
        mask_interpolation: Literal["nearest", "linear"] | None = None,
        crop: Literal["spine"] | None = None,
        margin_mm: float | None = None,
        intensity: tuple[float, float] | None = None,
        codec: str | None = None,
        workers: int | None = None,
        scheduler: "str | Client | None" = None,
        scratch: str | os.PathLike[str] | None = None,
        repair: bool = False,
        include_restricted: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> "DeriveReport":
        """Make another store of some scans: resampled, cropped, or with fewer masks.

        Run it again to bring the derived store up to date: scans that are done are skipped, and
        those whose source has changed are made again. A scan that fails does not stop the others.

        Parameters
        ----------
        out
            Path or URL of the store to write.
        scans, split, source, vertebra
            Derive only these scans, as in :meth:`patches`.
        layers
            Names of the masks beside ``label`` that are carried over, where a scan has them. By
            default all of them; an empty sequence for none.
        spacing_mm
            Distance between voxels in mm along z, y and x, or one number for all, as
            ``spacing_zyx_mm`` of :meth:`patches`. By default, that of each scan.
        antialias
            Whether an image is filtered along axes on which it gets fewer voxels. Without the
            filter, its voxels are those that :meth:`patches` computes.
        mask_interpolation
            With ``spacing_mm``: ``"nearest"`` takes the nearest voxel of a mask, and is the
            default. ``"linear"`` takes the label with the largest linear weight.
        crop
            ``"spine"`` keeps the box around all vertebrae of the mask ``label``. A scan without a
            vertebra fails.
        margin_mm
            Margin around this box in mm; by default 10.
        intensity
            Lowest and highest value in HU, which are stored as 0 and 255 of uint8. Values outside
            become these two. Readers get HU again, in steps of a 255th of the window.
        codec
            Name of the codec profile. By default, that of the derived store, or ``"balanced"`` for
            a new one.
        workers, scheduler, scratch
            As in :func:`spinezarr.ingest`.
        repair
            Whether to check every byte of the derived store first, and to make damaged scans again
            from this store, as it is now.
        include_restricted
            Also derive scans and further masks whose license allows no derivatives, such as
            CC BY-NC-ND. The report names those that are left out in ``left_out`` and
            ``left_out_masks``.
        storage_options
            Options for the file system of ``out``, if it is a URL. By default, those of the store.
        on_progress
            Called when scans start, advance and end.

        Returns
        -------
        DeriveReport
            Scans by outcome, and notes.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If none of the scans has a mask of ``layers``.
        UsageError
            If options contradict each other, if the store has no such split, source or vertebra,
            or if something else lies at ``out``, such as a store that was derived in another way.
        StoreBusyError
            If another process is writing the derived store.
        LostLockError, LostClusterError
            As for :func:`spinezarr.ingest`.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = store.derive(
        ...         out=f"{folder}/2mm.zarr", scans="liver_0", spacing_mm=2, crop="spine"
        ...     )
        >>> report.done, report.failed
        (('liver_0',), ())
        """
        # Training never writes.
        from spinezarr.derive.parameters import Derivation  # noqa: PLC0415
        from spinezarr.verbs.derive import derive  # noqa: PLC0415

        derivation = Derivation.of(
            spacing_mm=spacing_mm,
            antialias=antialias,
            mask_interpolation=mask_interpolation,
            crop=crop,
            margin_mm=margin_mm,
            intensity=intensity,
        )
        store_options = self._reader.storage_options or {}
        return derive(
            self._reader,
            ScanSelection.of(scans, split, source, vertebra),
            os.fspath(out),
            derivation,
            layers=layers,
            codec=codec,
            workers=workers,
            scheduler=scheduler,
            scratch=None if scratch is None else os.fspath(scratch),
            repair=repair,
            include_restricted=include_restricted,
            storage_options=store_options if storage_options is None else storage_options,
            on_progress=on_progress,
        )

    def push(
        self,
        target: str | os.PathLike[str],
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        storage_options: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        repair: bool = False,
        include_restricted: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "CopyReport":
        """Copy this store to a bucket, a disk or a dataset repository of a Hugging Face hub.

        Files are copied as they are stored. Those that the copy has already are kept, so a killed
        copy continues. Voxels are written before metadata, and the root last. Scans that the copy
        has besides the chosen ones stay, and its scan table lists them too.

        Parameters
        ----------
        target
            URL or path of the copy: ``s3://...``, or ``hf://datasets/user/name/folder``. The
            repository must exist, and this store must then be on disk.
        scans, split, source, vertebra
            Copy only these scans, as in :meth:`patches`.
        storage_options
            Options for the file system of ``target``, if it is a URL. By default, those of the
            store. Those of a hub are ``token`` and ``endpoint``.
        dry_run
            Only count what would be copied.
        repair
            Compare every byte of the copy with the manifests, also of scans that it has already.
        include_restricted
            Also copy scans and further masks whose license allows no derivatives, such as CC
            BY-NC-ND. The report names those that are left out in ``left_out`` and
            ``left_out_masks``.
        on_progress
            Called with the number of bytes that are done, from several threads.

        Returns
        -------
        CopyReport
            What had to be copied and what was. Scans whose files are damaged here are in
            ``outcome.failed``, and differences of the copy from the manifests in ``faults``.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UsageError
            If the target holds something else or cannot be written, if no scan remains, or if the
            store has no such split, source or vertebra.
        StoreBusyError, LostLockError
            If another process is writing the target, or has taken it over.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = store.push(f"{folder}/copy.zarr", scans="liver_0")
        ...     again = store.push(f"{folder}/copy.zarr", scans="liver_0")
        >>> report.outcome.copied, again.outcome.copied, again.outcome.kept
        (('liver_0',), (), ('liver_0',))
        """
        # Training never copies.
        from spinezarr.verbs.copy import push  # noqa: PLC0415

        store_options = self._reader.storage_options or {}
        return push(
            self._reader,
            ScanSelection.of(scans, split, source, vertebra),
            os.fspath(target),
            storage_options=store_options if storage_options is None else storage_options,
            dry_run=dry_run,
            repair=repair,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )

    def pull(
        self,
        folder: str | os.PathLike[str],
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        dry_run: bool = False,
        repair: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> "CopyReport":
        """Copy this store from a bucket, a web server or a hub to a folder on disk.

        This is :meth:`push` in the other direction. No scan is left out because of its license, as
        the copy is yours; each scan keeps its license.

        Parameters
        ----------
        folder
            Folder of the copy.
        scans, split, source, vertebra, dry_run, repair, on_progress
            As in :meth:`push`.

        Returns
        -------
        CopyReport
            As from :meth:`push`.

        Raises
        ------
        UnknownScanError, UsageError, StoreBusyError, LostLockError
            As for :meth:`push`.
        """
        # Training never copies.
        from spinezarr.verbs.copy import pull  # noqa: PLC0415

        return pull(
            self._reader,
            ScanSelection.of(scans, split, source, vertebra),
            folder,
            dry_run=dry_run,
            repair=repair,
            on_progress=on_progress,
        )

    def serve(self, port: int = 0) -> "BackgroundServer":
        """Serve this store to programs on this machine, in the background of this program.

        Parameters
        ----------
        port
            TCP port; 0 takes a free one.

        Returns
        -------
        BackgroundServer
            Server with its ``url``. Zarr clients open ``/zarr/<name>`` below it. As a context
            manager, it stops at the end of the block. It stops with the program in any case.

        Raises
        ------
        UsageError
            If the store is neither on disk nor in a bucket, if the port is taken, or if the extra
            ``serve`` is not installed.

        Examples
        --------
        >>> import spinezarr
        >>> with store.serve() as server:
        ...     len(spinezarr.open(f"{server.url}/zarr/ctspine1k").table.scan)
        6
        """
        # The server's packages are an extra.
        from spinezarr.serve.run import BackgroundServer  # noqa: PLC0415
        from spinezarr.serve.settings import ServeSettings  # noqa: PLC0415

        reader = self._reader
        location = reader.url if reader.objects.is_remote else reader.path
        options = {location: dict(reader.storage_options or {})}
        return BackgroundServer(ServeSettings(paths=(location,), storage_options=options), port)

    def audit(
        self,
        *,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        layer: str = "label",
        severity: Severity = "info",
        write: bool = True,
        others: Sequence["Store"] = (),
        on_progress: OnProgress = ignore_progress,
    ) -> "StoreAudit":
        """Find defects of the annotations and data of scans.

        Parameters
        ----------
        scans, split, source, vertebra
            Audit only these scans, as in :meth:`patches`. Their images and patients are compared
            with those of all scans.
        layer
            Mask to audit. Of a further mask, the vertebrae are checked by their names: which are
            skipped, misplaced, split, too small or beside the bone. Nothing else is checked, and
            the findings are not saved.
        severity
            Return only findings of this severity and worse.
        write
            Save all findings in the store, in the columns ``audit`` and ``audit_findings`` of the
            scan table. They are valid until the scan is ingested again. If the store cannot be
            written, ``not_written`` of the audit says why.
        others
            Other stores. Their images and patients are compared with those of this store.
        on_progress
            Called after each scan.

        Returns
        -------
        StoreAudit
            Findings with severity, vertebra, text, voxel (z, y, x) and position in mm.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        UnknownMaskError
            If no chosen scan has such a mask.
        UsageError
            If the store has no such split, source or vertebra, or if the mask shows no vertebra.

        Examples
        --------
        >>> audit = store.audit(scans="liver_0", write=False)
        >>> {finding.severity for finding in audit.findings} <= {"info", "warning"}
        True
        """
        (audit,) = audit_stores(
            [self],
            scans=scans,
            split=split,
            source=source,
            vertebra=vertebra,
            layer=layer,
            severity=severity,
            write=write,
            others=others,
            on_progress=on_progress,
        )
        return audit

    def _select(
        self,
        scans: Names | None,
        split: Names | None,
        source: Names | None,
        vertebra: Names | None,
        *,
        masks: tuple[str, ...],
    ) -> ScanTable:
        selection = ScanSelection.of(scans, split, source, vertebra)
        columns = self._reader.columns
        table = columns.take(selection.rows(columns, self._reader.name))
        table = table.take(np.flatnonzero(has_masks(table, masks)))
        if not len(table):
            condition = " that have a mask (labels=False reads images alone)" if masks else ""
            if _further(masks):
                condition = f" that have all of the masks {', '.join(masks)}"
            raise UsageError(f"{self._reader.name}: there are no scans to draw from{condition}.")
        return table

    def _draw(
        self,
        axes: str,
        size: tuple[int, ...] | int | None,
        size_mm: tuple[float, ...] | float | None,
        spacing_mm: tuple[float, ...] | float | None,
        flat_axis: int | None = None,
        /,
        *,
        neighbors: int = 0,
        neighbor_step_mm: float | None = None,
        batch_size: int = 1,
        scans: Names | None = None,
        split: Names | None = None,
        source: Names | None = None,
        vertebra: Names | None = None,
        seed: int = 0,
        epoch: int = 0,
        foreground: float = 0.0,
        weights: Mapping[str, float] | None = None,
        centers: Centers = "voxel",
        n_samples: int | None = None,
        labels: bool | Sequence[str] = True,
        shuffle: Shuffle = "exact",
        window_scans: int | None = None,
        samples_per_scan: int | None = None,
        on_change: OnChange = "error",
        nonfinite: Nonfinite = "refuse",
    ) -> PatchStream:
        """Stream patches or slices. The defaults of :class:`DrawOptions` are defined here."""
        masks = _mask_names(labels)
        table = self._select(scans, split, source, vertebra, masks=masks)
        target_zyx_mm = target_spacing(axes, spacing_mm)
        return self._stream(
            table,
            patch_size(axes, size, size_mm, target_zyx_mm, table),
            flat_axis,
            spacing_zyx_mm=target_zyx_mm,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            foreground=foreground,
            weights=weights,
            centers=centers,
            n_samples=n_samples,
            masks=masks,
            shuffle=shuffle,
            window_scans=window_scans,
            samples_per_scan=samples_per_scan,
            on_change=on_change,
            nonfinite=nonfinite,
            neighbors=neighbors,
            neighbor_step_mm=neighbor_step_mm,
        )

    def _stream(
        self,
        table: ScanTable,
        size_zyx: ShapeZYX,
        flat_axis: int | None,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        foreground: float,
        n_samples: int | None,
        masks: tuple[str, ...],
        shuffle: Shuffle,
        window_scans: int | None,
        samples_per_scan: int | None,
        nonfinite: Nonfinite,
        on_change: OnChange = "error",
        weights: Mapping[str, float] | None = None,
        centers: Centers = "voxel",
        spacing_zyx_mm: TargetZYX = NATIVE_SPACING,
        neighbors: int = 0,
        neighbor_step_mm: float | None = None,
    ) -> PatchStream:
        refuse_nonfinite(table, nonfinite, self._reader.name)
        image_dtype = image_dtype_of(table)
        sampler = Sampler.of_table(
            table,
            size_zyx=size_zyx,
            seed=seed,
            foreground=foreground,
            weights=weights,
            centers=centers,
            spacing_zyx_mm=spacing_zyx_mm,
        )
        window = window_sampler(
            sampler,
            StoredVoxelFinder(self._reader, self._engine),
            shuffle=shuffle,
            window_scans=window_scans,
            samples_per_scan=samples_per_scan,
            voxel_bytes=(1 + 2 * neighbors) * image_dtype.itemsize + len(masks),
        )
        return PatchStream(
            batch_reader=BatchReader(
                reader=self._reader,
                engine=self._engine,
                size_zyx=size_zyx,
                spacing_zyx_mm=spacing_zyx_mm,
                with_label=LABEL in masks,
                masks=_further(masks),
                image_dtype=image_dtype,
                flat_axis=flat_axis,
                neighbors=neighbors,
                neighbor_step_mm=neighbor_step_mm,
                nonfinite=nonfinite,
            ),
            sampler=sampler,
            batch_size=batch_size,
            n_samples=len(table) if n_samples is None else n_samples,
            epoch=epoch,
            window=window,
            on_change=on_change,
            client=self._batch_client,
        )


def _mask_names(labels: bool | Sequence[str], option: str = "labels") -> tuple[str, ...]:  # noqa: FBT001  as the user gives it
    """Return the names of the masks that a user requests."""
    if isinstance(labels, bool):
        return (LABEL,) if labels else ()
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    for name in names:
        if name != LABEL and not is_mask_name(name):
            raise UsageError(f"{option}: {name!r} cannot be the name of a mask.")
    if len(set(names)) < len(names):
        raise UsageError(f"{option} {names}: give each mask once.")
    return names


def _further(masks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of masks except that of ``label``."""
    return tuple(name for name in masks if name != LABEL)


def _zyx(name: str, value: ShapeZYX | int) -> ShapeZYX:
    """Return three numbers, or one number three times."""
    sizes = np.atleast_1d(np.asarray(value))
    if sizes.dtype.kind not in "iu" or sizes.shape not in {(1,), (3,)}:
        raise UsageError(f"{name} {value}: give three whole numbers (z, y, x), or one for a cube.")
    z, y, x = np.broadcast_to(sizes, 3).tolist()
    return (z, y, x)


def _name_draw_options(method: Callable[..., PatchStream]) -> None:
    """Add the options of :class:`DrawOptions`, with defaults, to the signature of a method."""
    defaults = signature(Store._draw).parameters  # noqa: SLF001
    method_parameters = [
        parameter
        for parameter in signature(method).parameters.values()
        if parameter.name != "options"
    ]
    draw_parameters = [defaults[name] for name in DrawOptions.__annotations__]
    method.__signature__ = Signature(  # type: ignore[attr-defined]
        [*method_parameters, *draw_parameters], return_annotation=PatchStream
    )


_name_draw_options(Store.patches)
_name_draw_options(Store.slices)
