"""``spinezarr ingest``: a raw folder becomes a store."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Self

import typer
from rich.progress import (
    ProgressColumn,
    Task,
    TaskID,
)
from rich.text import Text

from spinezarr.catalog import CatalogEntry, load_catalog
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    Table,
    describing,
    errors_for_users,
    megabytes,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.cli.options import (
    AsJson,
    CatalogFile,
    EndpointUrl,
    FollowLinks,
    NoSignRequest,
    Profile,
    RawEndpointUrl,
    RawNoSignRequest,
    RawProfile,
    link_folders,
    storage_options,
)
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.export.nii_gz_size import estimate_nii_gz_bytes
from spinezarr.formats import DEFAULT_LIMITS, Limits
from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import Discovery, PathNote, ScanSource, discover
from spinezarr.ingestion.discovery.leftovers import UNMATCHED
from spinezarr.ingestion.discovery.near_misses import NEARLY
from spinezarr.ingestion.pseudonyms import hidden, map_file
from spinezarr.ingestion.run import IngestReport, Listener, Workers
from spinezarr.ingestion.run import ingest as run_ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.task import Outcome
from spinezarr.recipe import Recipe
from spinezarr.redaction import redact_url
from spinezarr.store.claim import stored_root
from spinezarr.store.layout import LARGEST_AXIS, PROFILES
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.text import MultilineText, count_noun
from spinezarr.verify.store import verify_store

__all__ = ["ProgressBar", "ingest", "print_report"]

_PAIRS: Final = "pairs"
_EXAMPLES: Final = 3
"""Names of files in a sentence."""


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
    scan_id: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="With 'pairs': ids, e.g. '{path|join}_{series_number}' for each CT series of a "
            "DICOM folder; {scan} by default, or all that the image pattern remembers, joined.",
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="License of the data, if not the recipe's.")
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
        typer.Option(
            metavar="N", min=1, max=LARGEST_AXIS, help="Most voxels of a source file along an axis."
        ),
    ] = DEFAULT_LIMITS.axis_voxels,
    max_volume: Annotated[
        float,
        typer.Option(metavar="GB", min=0, help="Most GB of voxels that a source file may name."),
    ] = DEFAULT_LIMITS.volume_bytes / 1e9,
    follow_links: FollowLinks = None,
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

    The report counts what is in no scan: masks without an image, files that nothing matched and
    why, scans of split lists and rows of tables that are not here; --json names them all.

    Exit code 0: every scan is in the store.

    Exit code 1: some scans failed, a mask has no image, or a folder could not be listed; all
    others are done.

    Exit code 2: wrong usage.

    Example:  spinezarr ingest ctspine1k --raw CTSpine1K --out ctspine1k.zarr

    Example:  spinezarr ingest pairs --raw DIR --image '{scan}_ct.nii.gz'
    --label '{scan}_seg.nii.gz' --out mine.zarr

    Raw folder and store may be in buckets, s3://bucket/name, which the options of S3 then hold for
    both; those with --raw hold for the raw folder instead, if any is given.
    """
    with errors_for_users():
        if pseudonyms is not None and not pseudonymize:
            raise UsageError("--pseudonyms goes with --pseudonymize.")
        _check_workplace(workers, scheduler, scratch)
        of_store = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        recipe, entry = _recipe_and_entry(
            dataset,
            catalog,
            pairs=_PairsOptions(image, label, scan_id),
            out=out,
            options=of_store,
        )
        # Only what no option gives is asked of the catalog: its variables need not all be set.
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
        if out is None and entry is not None and not dry_run:
            out = entry.store_location
        # Options that the raw folder has taken need not fit the store.
        out_options = {} if raw_options and "://" not in (out or "") else of_store
        discovery = discover(recipe, raw, raw_options, known=known_folders(out, out_options))
        if dry_run:
            _print_discovery(recipe, discovery, as_json=as_json)
            return
        if out is None:
            raise UsageError("no store: give --out URL, or name the dataset in a catalog.")
        limits = Limits(
            axis_voxels=max_axis,
            volume_bytes=int(max_volume * 1e9),
            link_folders=link_folders(follow_links),
        )
        options = ScanOptions(take_image_grid=take_image_grid, limits=limits, scratch=scratch)
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
                license=license or (None if entry is None else entry.license),
                codec=codec,
                listener=progress,
                raw_options=raw_options,
                out_options=out_options,
                workers=cluster,
                find_damaged=partial(progress.check, out, out_options) if repair else None,
            )
        print_report(report, as_json=as_json, nii_gz_bytes=_nii_gz_bytes(report, discovery))
        raise typer.Exit(report.exit_code)


@contextmanager
def _cluster(n_workers: int | None, scheduler: str | None) -> Iterator[Workers | None]:
    """Start or join the cluster that is asked for, if any, and say where it can be watched."""
    if n_workers is None and scheduler is None:
        yield None
        return
    # Dask's scheduler takes half a second to import.
    from spinezarr.ingestion.cluster import existing_cluster, local_cluster  # noqa: PLC0415

    with (
        local_cluster(n_workers) if n_workers is not None else existing_cluster(scheduler or "")
    ) as cluster:
        if cluster.dashboard:
            ERR.say(f"Dashboard: {redact_url(cluster.dashboard)}")
        yield cluster


def _check_workplace(workers: int | None, scheduler: str | None, scratch: str | None) -> None:
    """Refuse options that contradict each other, and a folder for scratch files that is none."""
    if workers is not None and scheduler is not None:
        raise UsageError("--workers starts a cluster, --scheduler takes one: give one of them.")
    if scratch is not None and scheduler is None and not Path(scratch).is_dir():
        raise UsageError(f"--scratch {scratch}: is no folder. Make it, or name one with room.")


@dataclass(frozen=True, slots=True)
class _PairsOptions:
    """What says how the files of a folder of pairs are named."""

    image: str | None = None
    label: str | None = None
    scan_id: str | None = None


def _recipe_and_entry(
    dataset: str,
    catalog: Path | None,
    *,
    pairs: _PairsOptions,
    out: str | None,
    options: Mapping[str, Any],
) -> tuple[Recipe, CatalogEntry | None]:
    """Return how to read a dataset, and what the catalog says of it; ``pairs`` has its options."""
    if dataset == _PAIRS:
        return _pairs_recipe(pairs, out, options), None
    if pairs != _PairsOptions():
        raise UsageError("--image, --label and --scan-id go with the dataset 'pairs' only.")
    found = load_catalog(catalog)
    entry = None if found is None else found.get(dataset)
    return Recipe.load(dataset if entry is None else entry.recipe_location), entry


def _pairs_recipe(pairs: _PairsOptions, out: str | None, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a folder of pairs; its name is that of the store, renamed or not."""
    if pairs.image is None:
        raise UsageError("'pairs' needs --image, e.g. --image '{scan}_ct.nii.gz'.")
    stem = Path((out or _PAIRS).rstrip("/")).name.removesuffix(".zarr")
    name = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or _PAIRS
    root = None if out is None else stored_root(out, options if "://" in out else {})
    if root is not None and root.dataset == root.title and not root.citation:
        name = root.dataset  # a store that 'pairs' has made
    return Recipe.from_pairs(pairs.image, pairs.label, name=name, scan_id=pairs.scan_id)


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
        self._progress = describing(_Scans(), _Speed())
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
        ERR.say(
            f"The check found {count_noun(len(found.faults), 'fault')}, in "
            f"{count_noun(len(found.damaged_scans), 'scan')}."
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
            self._progress.update(self._task, description=f"{first}{more}")


def _nii_gz_bytes(report: IngestReport, discovery: Discovery) -> int | None:
    """Estimate what the scans that are done would be as ``.nii.gz``; None if they come as such.

    Of a store that is not on this machine nothing is read back for it.
    """
    done = set(report.done)
    images = [scan.image.lower() for scan in discovery.scans if scan.scan_id in done]
    if "://" in report.store or all(image.endswith(".gz") for image in images) or report.problem:
        return None
    try:
        reader = StoreReader(report.store)
        return estimate_nii_gz_bytes(reader, Engine(fetcher_for(reader.objects)), report.done)
    except (SpinezarrError, OSError):
        return None  # the report tells what was done all the same


def print_report(report: IngestReport, *, as_json: bool, nii_gz_bytes: int | None = None) -> None:
    """Print what an ingest did.

    Parameters
    ----------
    report
        What it did.
    as_json
        Print all of it, for programs.
    nii_gz_bytes
        What the scans that are done would have as ``.nii.gz`` files, where they are no such files.
    """
    if as_json:
        known = {"nii_gz_bytes": nii_gz_bytes, "exit_code": report.exit_code}
        print_json({**asdict(report), **known})
        return
    print_heading(f"Ingest into {report.store}")
    table = Table("", "", "scans", right=("scans",))
    table.add_row("done", str(len(report.done)))
    if report.updated:
        table.add_row("updated, voxels unchanged", str(len(report.updated)))
    table.add_row("skipped, already whole", str(len(report.skipped)))
    table.add_row("failed", str(len(report.failed)), style="bold red" if report.failed else None)
    OUT.print(table)
    if report.others:
        there = "stays" if len(report.others) == 1 else "stay"
        OUT.say(
            "In the store from before, and not found in the raw folder: "
            f"{count_noun(len(report.others), 'scan')}, which {there}. For a store without, choose "
            "another place."
        )
    if report.done:
        share = report.stored_bytes / report.source_bytes
        OUT.say(
            f"Source files: {megabytes(report.source_bytes)}. Stored: "
            f"{megabytes(report.stored_bytes)}, {share:.2f} times as much."
        )
        if nii_gz_bytes:
            OUT.say(
                f"The same voxels as .nii.gz: about {megabytes(nii_gz_bytes)}. Stored: "
                f"{report.stored_bytes / nii_gz_bytes:.2f} times as much."
            )
        speed = megabytes(report.source_bytes / report.seconds)
        OUT.say(f"Time: {report.seconds:.1f} s, {speed} of source files a second.")
    if report.problem:
        OUT.say(report.problem, style="bold red")
    _print_by_scan("Failed", "reason", [(scan.scan_id, scan.reason) for scan in report.failed])
    _print_by_scan(
        "Notes",
        "note",
        [(scan_id, MultilineText(*texts)) for scan_id, texts in report.notes.items()],
    )
    _print_left_out(report)


def _print_by_scan(title: str, column: str, rows: Sequence[tuple[str, str]]) -> None:
    """Show what is said of single scans, if anything is."""
    if rows:
        table = Table(title, "scan", column)
        for scan_id, text in rows[:SHOWN]:
            table.add_row(scan_id, MultilineText(*text.split("\n")))
        print_capped(table, len(rows))


def _print_left_out(found: Discovery | IngestReport) -> None:
    """Show what of a raw folder, its lists and its tables is in no scan."""
    for note in found.unlisted[:SHOWN]:
        OUT.say(f"{note.path}: {note.reason}.", style="bold red")
    if len(found.unlisted) > SHOWN:
        OUT.say(f"... and {len(found.unlisted) - SHOWN} more; --json lists them all.")
    if found.without_image:
        first = ", ".join(note.path for note in found.without_image[:_EXAMPLES])
        count = count_noun(len(found.without_image), "mask")
        if found.orphans_expected:
            text = f"{count} without an image, as the recipe expects of partial downloads"
            OUT.say(f"{text}, e.g. {first}.")
        else:
            advice = "Get the images, or move the masks away."
            OUT.say(f"{count} without an image, e.g. {first}. {advice}", style="bold red")
    if found.absent:
        OUT.say(f"Listed in a split and not here: {count_noun(len(found.absent), 'scan')}.")
    for use in found.tables:
        if use.unmatched:
            rows = count_noun(use.rows - use.matched, "row")
            OUT.say(f"Table {use.name}: {rows} of {use.rows} without a scan here.")
    if found.ignored:
        _print_notes(found.ignored)


def _print_notes(notes: Sequence[PathNote]) -> None:
    """Show files grouped by why they became no scan, with an example of each."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        by_reason[note.reason].append(note.path)
    title = f"Ignored: {count_noun(len(notes), 'file')}"
    table = Table(title, "files", "why", "for example", right=("files",))
    # What may have been meant for a scan comes before what is known to be none.
    ranked = sorted(by_reason, key=lambda why: (not why.startswith(NEARLY), why != UNMATCHED))
    for reason in ranked[:SHOWN]:
        paths = by_reason[reason]
        table.add_row(str(len(paths)), reason, paths[0])
    print_capped(table, len(by_reason))


def _print_discovery(recipe: Recipe, discovery: Discovery, *, as_json: bool) -> None:
    if as_json:
        # What headers said is for the next run; what came of it is in the scans and notes.
        print_json(replace(discovery, raw=redact_url(discovery.raw), folders={}))
        return
    scans = discovery.scans
    splits = sorted({scan.split for scan in scans})
    failing = f", {len(discovery.failing)} more will fail" if discovery.failing else ""
    found = f"{count_noun(len(scans), 'scan')} found{failing}"
    print_heading(f"{recipe.title} in {redact_url(discovery.raw)}: {found}")
    headings = tuple(split or "(no split)" for split in splits)
    table = Table("", "source", *headings, "scans", "size", right=(*headings, "scans", "size"))
    sources = sorted({scan.source for scan in scans})
    for source in (*sources, None) if len(sources) != 1 else sources:
        own = [scan for scan in scans if source in (None, scan.source)]
        counts = Counter(scan.split for scan in own)
        size = sum(scan.size_bytes for scan in own)
        row = [str(counts[split]) for split in splits]
        name = "all" if source is None else source or "(one)"
        table.add_row(name, *row, str(len(own)), megabytes(size))
    OUT.print(table)
    _print_patterns(recipe, discovery)
    _print_tables(discovery)
    if any(splits):
        OUT.say(f"Splits from: {discovery.split_file or 'the recipe'}.")
    _print_by_scan("Scans that will fail", "reason", discovery.failing)
    _print_left_out(discovery)


def _print_patterns(recipe: Recipe, discovery: Discovery) -> None:
    """Show what each pattern of the recipe matched, and what matched nothing."""
    with_mask = sum(scan.has_mask for scan in discovery.scans)
    with_centroids = sum(scan.centroids is not None for scan in discovery.scans)
    OUT.say(f"With a mask: {count_noun(with_mask, 'scan')}; with centroids: {with_centroids}.")
    patterns = Table(
        "Patterns", "layout", "images", "kind", "pattern", "files", right=("images", "files")
    )
    shown = [use for use in discovery.patterns if use.layout in discovery.layouts]
    for use in shown:
        patterns.add_row(
            use.layout,
            str(discovery.layouts[use.layout]) if use.kind == "image" else "",
            use.kind,
            use.pattern,
            str(use.files),
            style="bold red" if use.unread else None if use.files else "yellow",
        )
    images = sum(discovery.layouts.values())
    patterns.add_row("all", str(images), "", "", str(sum(use.files for use in shown)))
    OUT.print(patterns)
    for use in shown:
        if use.unread:
            files = count_noun(use.unread, "file")
            text = f"Not read: {files} of {use.pattern}. {use.unread_advice}"
            OUT.say(text, style="bold red")
    for layout in dict.fromkeys(part.layout for part in discovery.parts):
        parts = [part for part in discovery.parts if part.layout == layout]
        total = count_noun(parts[0].scans_with + parts[0].scans_without, "scan")
        absent = [f"{part.part} {part.scans_without}" for part in parts if part.scans_without]
        OUT.say(f"Parts absent from masks of {layout} ({total}): {', '.join(absent) or 'none'}.")
    empty = [name for name in recipe.layouts if name not in discovery.layouts]
    if empty:
        OUT.say(f"Layouts without a scan: {', '.join(empty)}.")


def _print_tables(discovery: Discovery) -> None:
    """Show what was read of each table of the recipe."""
    if discovery.tables:
        tables = Table("Tables", "table", "files", "rows", "scans", right=("rows", "scans"))
        for table in discovery.tables:
            files = ", ".join(Path(file).name for file in table.files) or "none found"
            row = (table.name, files, str(table.rows), str(table.matched))
            tables.add_row(*row, style=None if table.files else "yellow")
        OUT.print(tables)
