"""``spinezarr ingest``: a raw folder becomes a store."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Self

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from spinezarr.catalog import CatalogEntry, load_catalog
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    errors_for_users,
    megabytes,
    new_table,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.cli.options import (
    AsJson,
    CatalogFile,
    EndpointUrl,
    NoSignRequest,
    Profile,
    RawEndpointUrl,
    RawNoSignRequest,
    RawProfile,
    storage_options,
)
from spinezarr.errors import UsageError
from spinezarr.formats import DEFAULT_LIMITS, Limits
from spinezarr.ingest.discover import Discovery, PathNote, ScanSource, discover
from spinezarr.ingest.pseudonyms import hidden, map_file
from spinezarr.ingest.run import IngestReport, Listener, Workers
from spinezarr.ingest.run import ingest as run_ingest
from spinezarr.ingest.scan import ScanOptions
from spinezarr.ingest.task import Outcome
from spinezarr.recipe import Recipe
from spinezarr.store.layout import PROFILES
from spinezarr.verify.store import verify_store

__all__ = ["ProgressBar", "ingest", "print_report"]

_PAIRS: Final = "pairs"


def ingest(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Name in the catalog, name of a shipped recipe, path of a recipe, or 'pairs'.",
        ),
    ],
    *,
    raw: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the files as downloaded.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="URL", help="Path or URL of the store to write.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="With 'pairs': images, e.g. '{scan}_ct.nii.gz'."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="With 'pairs': masks, e.g. '{scan}_seg.nii.gz'."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="SPDX", help="Licence of the data, if not the recipe's.")
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE",
            help=f"Chunks and codecs: {', '.join(PROFILES)}; by default the store's own, or "
            "balanced for a new store.",
        ),
    ] = None,
    take_image_grid: Annotated[
        bool,
        typer.Option(
            "--take-image-grid",
            help="Give a mask its image's affine where both have the same shape.",
        ),
    ] = False,
    pseudonymize: Annotated[
        bool,
        typer.Option(
            "--pseudonymize",
            help="Store keyed hashes for scan and patient ids; key and map stay outside the store.",
        ),
    ] = False,
    pseudonyms: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --pseudonymize: the map, a .csv with its .key beside it; by default beside "
            "the store.",
        ),
    ] = None,
    max_axis: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Most voxels of a source file along an axis."),
    ] = DEFAULT_LIMITS.axis_voxels,
    max_volume: Annotated[
        float,
        typer.Option(metavar="GB", min=0, help="Most GB of voxels that a source file may name."),
    ] = DEFAULT_LIMITS.volume_bytes / 1e9,
    scratch: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for what does not fit into memory; a local store's own by default.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what was found and write nothing.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Do N scans at once, in processes of their own."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Do the scans on a Dask cluster: tcp://HOST:8786."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Check every stored byte as 'verify' does, and write anew what is damaged.",
        ),
    ] = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
    raw_endpoint_url: RawEndpointUrl = None,
    raw_profile: RawProfile = None,
    raw_no_sign_request: RawNoSignRequest = False,
) -> None:
    """Bring a dataset's raw files into one store; run it again to do what is missing.

    Exit code 0: every scan is in the store.

    Exit code 1: some scans failed, all others are done.

    Exit code 2: wrong usage.

    Example:  spinezarr ingest ctspine1k --raw CTSpine1K --out ctspine1k.zarr

    Example:  spinezarr ingest pairs --raw DIR --image '{scan}_ct.nii.gz'
    --label '{scan}_seg.nii.gz' --out mine.zarr

    Raw folder and store may be in buckets, s3://bucket/name, which the options of S3 then hold for
    both; those with --raw hold for the raw folder instead, if any is given.
    """
    with errors_for_users():
        if workers is not None and scheduler is not None:
            raise UsageError("--workers starts a cluster, --scheduler takes one: give one of them.")
        if pseudonyms is not None and not pseudonymize:
            raise UsageError("--pseudonyms goes with --pseudonymize.")
        recipe, entry = _recipe_and_entry(dataset, image, label, out, catalog)
        # Only what no option gives is asked of the catalog: its variables need not all be set.
        of_store = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        if out is None and entry is not None:
            of_store = {**entry.storage_options, **of_store}
        of_raw = storage_options(raw_endpoint_url, raw_profile, no_sign_request=raw_no_sign_request)
        if raw is None and entry is not None:
            raw, of_raw = entry.raw_location, {**(entry.raw_storage_options or {}), **of_raw}
        if raw is None:
            raise UsageError(
                f"no raw folder: give --raw DIR, or name {dataset!r} in a catalog "
                "('spinezarr init' writes one)."
            )
        raw_options = of_raw or (of_store if "://" in raw else {})
        discovery = discover(recipe, raw, raw_options)
        if dry_run:
            _print_discovery(recipe, discovery, as_json=as_json)
            return
        out = out or (None if entry is None else entry.store_location)
        if out is None:
            raise UsageError("no store: give --out URL, or name the dataset in a catalog.")
        limits = Limits(axis_voxels=max_axis, volume_bytes=int(max_volume * 1e9))
        options = ScanOptions(take_image_grid=take_image_grid, limits=limits, scratch=scratch)
        # Options that the raw folder has taken need not fit the store.
        out_options = {} if raw_options and "://" not in out else of_store
        if pseudonymize:
            place = map_file(out, pseudonyms)
            discovery, names = hidden(discovery, recipe, out, place, out_options)
            options = replace(options, pseudonyms=names)
        with (
            _cluster(workers, scheduler) as cluster,
            ProgressBar(discovery.scans) as progress,
        ):
            report = run_ingest(
                recipe,
                discovery,
                out,
                options=options,
                licence=licence or (None if entry is None else entry.licence),
                codec=codec,
                listener=progress,
                raw_options=raw_options,
                out_options=out_options,
                workers=cluster,
                find_damaged=partial(progress.check, out, out_options) if repair else None,
            )
        print_report(report, as_json=as_json)
        raise typer.Exit(report.exit_code)


@contextmanager
def _cluster(n_workers: int | None, scheduler: str | None) -> Iterator[Workers | None]:
    """Start or join the cluster that is asked for, if any, and say where it can be watched."""
    if n_workers is None and scheduler is None:
        yield None
        return
    # Dask's scheduler takes half a second to import.
    from spinezarr.ingest.cluster import existing_cluster, local_cluster  # noqa: PLC0415

    with (
        local_cluster(n_workers) if n_workers is not None else existing_cluster(scheduler or "")
    ) as cluster:
        if cluster.dashboard:
            ERR.print(f"Dashboard: {cluster.dashboard}", soft_wrap=True)
        yield cluster


def _recipe_and_entry(
    dataset: str, image: str | None, label: str | None, out: str | None, catalog: Path | None
) -> tuple[Recipe, CatalogEntry | None]:
    """Return how to read a dataset, and what the catalog says of it."""
    if dataset == _PAIRS:
        return _pairs_recipe(image, label, out), None
    if image is not None or label is not None:
        raise UsageError("--image and --label go with the dataset 'pairs' only.")
    found = load_catalog(catalog)
    entry = None if found is None else found.get(dataset)
    return Recipe.load(dataset if entry is None else entry.recipe_location), entry


def _pairs_recipe(image: str | None, label: str | None, out: str | None) -> Recipe:
    if image is None:
        raise UsageError("'pairs' needs --image, e.g. --image '{scan}_ct.nii.gz'.")
    stem = Path((out or _PAIRS).rstrip("/")).name.removesuffix(".zarr")
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or _PAIRS
    return Recipe.of_pairs(image, label, name=name)


class _Speed(ProgressColumn):
    """Source bytes a second, in MB/s."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed / 1e6:.1f} MB/s", style="progress.data.speed")


class _Scans(ProgressColumn):
    """Scans that ended, of all."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['scans']}/{task.fields['of']} scans" if task.fields else "")


class ProgressBar(Listener):
    """Shows an ingest on the terminal: scans, MB/s and the time left."""

    def __init__(self, scans: Iterable[ScanSource]) -> None:
        scans = list(scans)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            _Scans(),
            _Speed(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=ERR,
        )
        self._task: TaskID = self._progress.add_task(
            "ingest", total=sum(scan.size_bytes for scan in scans), scans=0, of=len(scans)
        )
        self._ended = 0
        self._shares: dict[str, float] = {}
        """What is done of each scan that is under way."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def check(self, url: str, storage_options: Mapping[str, Any]) -> frozenset[str]:
        """Check a store, show how far that is, and return the scans that are damaged."""
        task = self._progress.add_task("check", total=None)
        found = verify_store(
            url,
            storage_options=storage_options,
            on_total=lambda size: self._progress.update(task, total=size or None),
            on_bytes=lambda size: self._progress.advance(task, size),
        )
        self._progress.remove_task(task)
        self._progress.console.print(
            f"The check found {len(found.faults)} faults, in {len(found.damaged_scans)} scans."
        )
        return found.damaged_scans

    def started(self, source: ScanSource) -> None:
        """Name the scan."""
        self._shares[source.scan_id] = 0.0
        self._describe()

    def advanced(self, source: ScanSource, share: float) -> None:
        """Move the bar by the share of the scan's bytes."""
        self._shares[source.scan_id] += share
        self._progress.advance(self._task, share * source.size_bytes)

    def finished(self, source: ScanSource, outcome: Outcome) -> None:
        """Count the scan; one that was not read leaves the total, so that MB/s stay true."""
        self._ended += 1
        rest = (1 - self._shares.pop(source.scan_id, 0.0)) * source.size_bytes
        if outcome == "done":
            self._progress.advance(self._task, rest)
        else:
            total = self._progress.tasks[0].total or 0
            self._progress.update(self._task, total=total - rest)
        self._progress.update(self._task, scans=self._ended)
        self._describe()

    def _describe(self) -> None:
        """Name the scan that is under way longest, and count the others."""
        if self._shares:
            first, *others = self._shares
            more = f" + {len(others)}" if others else ""
            self._progress.update(self._task, description=f"{escape(first)}{more}")


def print_report(report: IngestReport, *, as_json: bool) -> None:
    """Print what an ingest did."""
    if as_json:
        print_json({**asdict(report), "exit_code": report.exit_code})
        return
    print_heading(f"Ingest into {report.store}")
    table = new_table("", "", "scans", right=("scans",))
    table.add_row("done", str(len(report.done)))
    if report.updated:
        table.add_row("updated, voxels unchanged", str(len(report.updated)))
    table.add_row("skipped, already whole", str(len(report.skipped)))
    table.add_row("failed", str(len(report.failed)), style="bold red" if report.failed else None)
    OUT.print(table)
    if report.others:
        OUT.print(
            f"In the store from before, and not found in the raw folder: {len(report.others)} "
            "scans. They stay; for a store without them choose another place."
        )
    if report.done:
        share = report.stored_bytes / report.source_bytes
        speed = report.source_bytes / report.seconds
        OUT.print(
            f"{megabytes(report.source_bytes)} of source became {megabytes(report.stored_bytes)} "
            f"({share:.2f} x) in {report.seconds:.1f} s ({megabytes(speed)}/s)."
        )
    if report.problem:
        OUT.print(f"[bold red]{escape(report.problem)}[/]", soft_wrap=True)
    if report.failed:
        failures = new_table("Failed", "scan", "reason")
        for failed in report.failed[:SHOWN]:
            failures.add_row(escape(failed.scan_id), escape(failed.reason))
        print_capped(failures, len(report.failed))
    if report.notes:
        notes = new_table("Notes", "scan", "note")
        for scan_id, texts in list(report.notes.items())[:SHOWN]:
            notes.add_row(escape(scan_id), escape("\n".join(texts)))
        print_capped(notes, len(report.notes))


def _print_discovery(recipe: Recipe, discovery: Discovery, *, as_json: bool) -> None:
    if as_json:
        print_json(discovery)
        return
    scans = discovery.scans
    splits = sorted({scan.split for scan in scans})
    print_heading(f"{recipe.title} in {discovery.raw}: {len(scans)} scans found")
    headings = tuple(split or "(no split)" for split in splits)
    table = new_table("", "source", *headings, "scans", "size", right=(*headings, "scans", "size"))
    for source in sorted({scan.source for scan in scans}):
        own = [scan for scan in scans if scan.source == source]
        counts = Counter(scan.split for scan in own)
        size = sum(scan.size_bytes for scan in own)
        row = [str(counts[split]) for split in splits]
        table.add_row(source or "(one)", *row, str(len(own)), megabytes(size))
    OUT.print(table)
    _print_patterns(recipe, discovery)
    OUT.print(f"Splits from: {discovery.split_file or 'the recipe'}.")
    if discovery.absent:
        OUT.print(f"Listed in a split and not here: {len(discovery.absent)} scans.")
    unpaired = [PathNote(image.path, image.reason) for image in discovery.without_mask]
    unpaired += discovery.without_image
    _print_notes("Unpaired", unpaired)
    _print_notes("Ignored", discovery.ignored)


def _print_patterns(recipe: Recipe, discovery: Discovery) -> None:
    """Show what each pattern and table of the recipe matched, and what matched nothing."""
    with_mask = sum(scan.has_mask for scan in discovery.scans)
    with_centroids = sum(scan.centroids is not None for scan in discovery.scans)
    OUT.print(f"{with_mask} scans have a mask, {with_centroids} have centroids.")
    patterns = new_table(
        "Patterns", "layout", "scans", "kind", "pattern", "files", right=("scans", "files")
    )
    shown = [use for use in discovery.patterns if use.layout in discovery.layouts]
    for use in shown:
        patterns.add_row(
            escape(use.layout),
            str(discovery.layouts[use.layout]) if use.kind == "image" else "",
            use.kind,
            escape(use.pattern),
            str(use.files),
            style=None if use.files else "yellow",
        )
    OUT.print(patterns)
    empty = [name for name in recipe.layouts if name not in discovery.layouts]
    if empty:
        OUT.print(f"Layouts without a scan: {escape(', '.join(empty))}.")
    if discovery.tables:
        tables = new_table("Tables", "table", "files", "rows", "scans", right=("rows", "scans"))
        for table in discovery.tables:
            files = ", ".join(Path(file).name for file in table.files) or "none found"
            row = (escape(table.name), escape(files), str(table.rows), str(table.matched))
            tables.add_row(*row, style=None if table.files else "yellow")
        OUT.print(tables)


def _print_notes(title: str, notes: Iterable[PathNote]) -> None:
    """Show files grouped by why they became no scan, with an example of each."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        by_reason[note.reason].append(note.path)
    total = sum(len(paths) for paths in by_reason.values())
    if not total:
        OUT.print(f"{title}: no files.")
        return
    table = new_table(f"{title}: {total} files", "files", "why", "for example", right=("files",))
    for reason, paths in list(by_reason.items())[:SHOWN]:
        table.add_row(str(len(paths)), escape(reason), escape(paths[0]))
    print_capped(table, len(by_reason))
