"""Which scans does a raw folder hold, according to the patterns of a recipe?

Only tables, lists and headers of DICOM files are opened.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from spinezarr.errata import Errata
from spinezarr.errors import RecipeError, RecipeLimitError, UsageError
from spinezarr.formats.volume import unsupported_kind
from spinezarr.ingestion.discovery.dicom_folders import inspect_dicom_folders
from spinezarr.ingestion.discovery.folds import join_folds
from spinezarr.ingestion.discovery.images import (
    LabelPart,
    PairedImage,
    PathNote,
    RefusedScan,
    SeriesFiles,
    choose_images,
    match_images,
)
from spinezarr.ingestion.discovery.leftovers import Leftovers
from spinezarr.ingestion.discovery.missing import MissingScans, missing_scans
from spinezarr.ingestion.discovery.nothing_found import known_layouts, nothing_found
from spinezarr.ingestion.discovery.pattern_use import PartUse, PatternUse, part_uses, pattern_uses
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.ingestion.discovery.tables import JoinedTables, TableUse, join_tables
from spinezarr.place import is_archive
from spinezarr.progress import OnProgress, ignore_progress
from spinezarr.recipe import (
    CentroidConvention,
    EarlierValues,
    LabelCorrection,
    PathPattern,
    Recipe,
    fill_template,
)
from spinezarr.redaction import redact_url
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.ledger import FolderRecord
from spinezarr.text import MultilineText, count_noun
from spinezarr.vertebrae import LabelState

__all__ = [
    "Discovery",
    "LabelPart",
    "MissingScans",
    "PartUse",
    "PathNote",
    "PatternUse",
    "RefusedScan",
    "ScanLayer",
    "ScanSource",
    "TableUse",
    "UnpairedImage",
    "discover",
]


@dataclass(frozen=True, slots=True)
class ScanLayer:
    """Files of a further mask of one scan."""

    name: str
    """Name of the mask."""
    layout: str
    """Layout of the recipe that describes the mask."""
    label: str | None
    """Path of the file, relative to the raw folder; None if there is one for each structure."""
    parts: tuple[LabelPart, ...] = ()
    """Binary masks, one for each structure, in place of ``label``."""
    absent_parts: tuple[str, ...] = ()
    """Structures of the scheme whose masks are absent although others are present."""
    size_bytes: int = 0
    """Size of the files in bytes."""
    stamp: str = ""
    """Hash of names, sizes and times of the files."""
    problem: str = ""
    """Why the files cannot be used; empty if they can."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the mask."""
        return (*(part.path for part in self.parts), *filter(None, [self.label]))


@dataclass(frozen=True, slots=True)
class ScanSource:
    """Files of one scan, and its facts from recipe and tables."""

    scan_id: str
    patient_id: str
    source: str
    """Collection that the scan comes from; empty if the recipe names none."""
    split: str
    """Split name; empty if the scan is in no split."""
    split_index: int
    """Position in its split's list, -1 if it is in none."""
    image: str
    """Path of the image, relative to the raw folder; a folder of DICOM slices ends with ``/``."""
    label: str | None
    """Path of the mask, relative to the raw folder; None for an image without one."""
    size_bytes: int
    """Size of image and mask in bytes, without further masks."""
    label_parts: tuple[LabelPart, ...] = ()
    """Binary masks, one for each structure, in place of ``label``."""
    absent_parts: tuple[str, ...] = ()
    """Structures of the recipe whose masks are absent although others are present."""
    label_state: LabelState = "unknown"
    """Whether vertebrae cut by the end of the volume are annotated."""
    label_values: tuple[tuple[int, int], ...] = ()
    """Pairs of the value in the file of the mask and the stored value.

    It is empty if the values are stored as they are.
    """
    label_segments: tuple[tuple[str, int], ...] = ()
    """Pairs of the name of a segment in the file of the mask and the stored value.

    It is empty if the segments have no names.
    """
    centroids: str | None = None
    """Path of the file with annotated centers."""
    centroid_bytes: int = 0
    """Size of the centroid file in bytes."""
    centroid_convention: CentroidConvention | None = None
    sidecar: str | None = None
    """Path of a JSON file with values for further columns."""
    sidecar_keys: tuple[str, ...] = ()
    """Patterns of the keys of the sidecar that are kept."""
    columns: dict[str, str] = field(default_factory=dict)
    """Values from the tables of the dataset, by column."""
    stamp: str = ""
    """Hash of names, sizes and times of all its files."""
    license: str = ""
    """License of the scan, if it may differ from that of the dataset; else empty."""
    series: SeriesFiles | None = None
    """Series of the folder ``image``, if each series of the folder is a scan; else None."""
    layers: tuple[ScanLayer, ...] = ()
    """Further masks of the scan."""
    correction: LabelCorrection | None = None
    """Correct labels of the mask, if a list of errata is applied; else None."""
    earlier_values: EarlierValues | None = None
    """Values of earlier versions, which the mask may have; None if the dataset has none."""

    @property
    def has_mask(self) -> bool:
        """Whether the scan has a mask in any form."""
        return self.label is not None or bool(self.label_parts)

    @property
    def read_bytes(self) -> int:
        """Size of image, mask and further masks in bytes."""
        return self.size_bytes + sum(layer.size_bytes for layer in self.layers)

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the further masks."""
        return tuple(layer.name for layer in self.layers)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files and folders that the scan is read from."""
        parts = (part.path for part in self.label_parts)
        image = (self.image,) if self.series is None else self.series.files
        layers = (path for layer in self.layers for path in layer.paths)
        files = (*image, self.label, *parts, self.centroids, self.sidecar, *layers)
        return tuple(path for path in files if path is not None)


@dataclass(frozen=True, slots=True)
class UnpairedImage:
    """An image whose mask is absent."""

    scan_id: str
    path: str
    looked_for: tuple[str, ...]
    """Paths at which the recipe expects the mask."""
    similar: tuple[str, ...] = ()
    """Files whose names differ from that of the mask only in case, and folders with its name."""

    @property
    def reason(self) -> str:
        """Message for the user that names the missing file."""
        missing = (
            f"no mask for {self.path}; looked for {' and '.join(self.looked_for) or 'nothing'}"
        )
        if not self.similar:
            return missing
        relation = "is a folder" if self.similar[0].endswith("/") else "differs in capital letters"
        return (
            f"{missing}. There is {self.similar[0]}, which {relation}: rename it, or correct the "
            "pattern."
        )


@dataclass(frozen=True, slots=True)
class Discovery:
    """Scans and other files of a raw folder."""

    title: str
    """Title of the dataset, as its recipe gives it."""
    raw: str = field(repr=False)
    """Folder or URL of the files."""
    scans: tuple[ScanSource, ...]
    refused: tuple[RefusedScan, ...]
    """Scans whose file names cannot be used."""
    without_mask: tuple[UnpairedImage, ...]
    """Images that should have a mask and have none."""
    without_image: tuple[PathNote, ...]
    """Masks whose image is absent."""
    orphans_expected: bool
    """Whether the recipe expects masks without an image. If so, they do not count as failures."""
    unlisted: tuple[PathNote, ...]
    """Folders that could not be listed."""
    ignored: tuple[PathNote, ...]
    """All other files."""
    absent: tuple[str, ...]
    """Scans that the split file lists and that are not in the raw folder."""
    layouts: dict[str, int]
    """Number of chosen images of each layout, with masks or without."""
    split_file: str | None
    """File of the splits; None if no file lists them."""
    patterns: tuple[PatternUse, ...]
    """Every pattern of the recipe, with the number of its files."""
    parts: tuple[PartUse, ...]
    """Every part of masks that have one file for each structure, with its number of scans."""
    tables: tuple[TableUse, ...]
    """Every table of the recipe, with the number of rows that belong to scans."""
    missing: tuple[MissingScans, ...] = ()
    """Splits that are incomplete, with the downloads that have the other scans."""
    folders: dict[str, FolderRecord] = field(default_factory=dict, repr=False)
    """Records of the folders of DICOM files, for the ledger."""

    @property
    def failing(self) -> tuple[tuple[str, str], ...]:
        """Scans that cannot be ingested because of the names of their files, and why."""
        refused = ((scan.scan_id, scan.reason) for scan in self.refused)
        return (*refused, *((image.scan_id, image.reason) for image in self.without_mask))

    def check_formats(self) -> None:
        """Refuse a folder without a scan in a readable format, judged by file name endings.

        Raises
        ------
        UsageError
            If every scan has an image or mask with an ending that no reader accepts. The message
            names these formats.
        """
        if not self.scans or not all(map(_has_unreadable_file, self.scans)):
            return
        lines = [
            f"{use.pattern} ({count_noun(use.unread, 'file')}): {use.unread_advice}"
            for use in self.patterns
            if use.unread
        ]
        raise UsageError(
            MultilineText(
                "no scan has image and mask in a readable format. The patterns of the recipe find:",
                *lines,
            )
        )


def _has_unreadable_file(scan: ScanSource) -> bool:
    masks = [part.path for part in scan.label_parts] if scan.label is None else [scan.label]
    segments = bool(scan.label_segments)
    return unsupported_kind(scan.image) is not None or any(
        unsupported_kind(path, segments=segments) is not None for path in masks
    )


_LEFT_BY_SYSTEM: Final = "left by an operating system or program"
_UNLISTED: Final = "folder cannot be listed"


def discover(
    recipe: Recipe,
    raw: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    known: Mapping[str, FolderRecord] | None = None,
    errata: Errata = "mark",
    on_progress: OnProgress = ignore_progress,
) -> Discovery:
    """Match every file below ``raw`` against the recipe.

    In folders of DICOM files, headers are read too, because names cannot tell a CT from an MR; see
    :func:`spinezarr.ingestion.discovery.dicom_folders.inspect_dicom_folders`.

    Parameters
    ----------
    recipe
        Patterns of images, masks, centroids, tables and splits.
    raw
        Folder path or fsspec URL.
    storage_options
        Options for the file system of ``raw``.
    known
        Records of an earlier run about folders of DICOM files
        (:func:`spinezarr.ingestion.discovery.dicom_folders.known_folders`). Folders that have not
        changed since are not opened.
    errata
        Whether lists of errata correct labels (``"apply"``), or only mark scans (``"mark"``).
    on_progress
        Called with the number of files that are listed, and of DICOM headers that are read.

    Raises
    ------
    UsageError
        If ``raw`` is not a folder, or if no file in it matches. The message lists the layouts that
        the recipe knows, the files that are there, and a nearby folder that would match.
        If ``errata`` is ``"apply"`` and the recipe has no list of correct labels.
    RecipeError
        If the names of all images are unusable; see :attr:`Discovery.refused`. RecipeLimitError if
        patterns take too long or templates give endless texts.
    FormatError
        If a table or list of the dataset cannot be read.
    """
    if errata == "apply" and not any(table.relabel for table in recipe.tables.values()):
        raise UsageError(
            f"--errata apply: the recipe {recipe.name!r} has no list of correct labels. "
            "Leave the option out."
        )
    try:
        return _discover(recipe, raw, storage_options, known, errata, on_progress=on_progress)
    except RecipeLimitError as problem:
        raise RecipeLimitError(f"{recipe.origin}: {problem}") from problem


def _discover(
    recipe: Recipe,
    raw: str,
    storage_options: Mapping[str, Any] | None,
    known: Mapping[str, FolderRecord] | None,
    errata: Errata,
    *,
    on_progress: OnProgress,
) -> Discovery:
    folder = _list_folder(recipe, raw, storage_options, on_progress)
    splits, split_file = _read_splits(recipe, folder)
    by_name = match_images(recipe, folder)
    if not (by_name.images or by_name.misnamed):
        raise UsageError(nothing_found(recipe, raw, folder))
    inspected = inspect_dicom_folders(recipe, folder, by_name, known, on_progress)
    images = [*inspected.matched.images, *(image for image, _ in inspected.matched.misnamed)]
    chosen = choose_images(recipe, folder, inspected.matched)
    if chosen.refused and not chosen.pairs:
        raise _all_refused_error(chosen.refused)
    tables = join_tables(recipe, folder, images)
    tables = join_folds(recipe, folder, images, tables).join(tables)
    leftovers = Leftovers(recipe, folder)
    complete_pairs = [image for image in chosen.pairs if _is_complete(recipe, image)]
    if errata == "mark":
        tables = replace(tables, corrections={})
    scans = [_scan_source(recipe, folder, image, splits, tables) for image in complete_pairs]
    without_mask = [
        _unpaired_image(recipe, image, leftovers)
        for image in chosen.pairs
        if not _is_complete(recipe, image)
    ]
    used = folder.files_of_all(path for scan in scans for path in scan.paths)
    used |= {split_file or "", *(path for use in tables.uses for path in use.files)}
    used |= set(_list_files(recipe, folder))
    ignored, orphans = _other_files(
        folder,
        leftovers,
        used,
        [
            *(image.path for image in images),
            *(path for scan in chosen.refused for path in scan.paths),
            *(path for paired in chosen.pairs for path in paired.layer_files),
        ],
        (*chosen.left_out, *inspected.matched.ignored),
    )
    listed = {image.listed_as for image in images}
    return Discovery(
        title=recipe.title,
        raw=raw,
        scans=tuple(scans),
        refused=chosen.refused,
        without_mask=tuple(without_mask),
        without_image=orphans,
        orphans_expected=recipe.orphaned_masks == "expected",
        unlisted=tuple(
            PathNote(path, f"{_UNLISTED}: {reason}") for path, reason in folder.unlisted.items()
        ),
        ignored=ignored,
        absent=tuple(name for name in splits if name not in listed),
        layouts=dict(Counter(paired.image.layout for paired in chosen.pairs)),
        split_file=split_file,
        patterns=pattern_uses(
            recipe, folder, by_name, chosen.pairs, {note.path for note in ignored}
        ),
        parts=part_uses(recipe, chosen.pairs),
        tables=tables.uses,
        missing=missing_scans(recipe, ((scan.source, scan.split) for scan in scans)),
        folders=inspected.records,
    )


def _list_folder(
    recipe: Recipe,
    raw: str,
    storage_options: Mapping[str, Any] | None,
    on_progress: OnProgress,
) -> RawFolder:
    """Return the files of the raw folder; raise UsageError if it cannot be listed."""
    fs, root = open_filesystem(raw, storage_options)
    if not fs.isdir(root):
        state = "is a file" if fs.exists(root) else "does not exist"
        if fs.exists(root) and is_archive(root):
            state = "is an archive. Unpack it first"
        raise UsageError(
            MultilineText(
                f"raw folder {redact_url(raw)!r} {state}. Give the folder that holds the "
                f"downloaded files of {recipe.title}.",
                *known_layouts(recipe),
            )
        )
    try:
        return RawFolder.list(fs, root, on_progress)
    except OSError as problem:
        raise UsageError(
            f"raw folder {redact_url(raw)!r} cannot be listed: {problem.strerror or problem}. "
            "Give a folder that you may read."
        ) from problem


def _all_refused_error(refused: Sequence[RefusedScan]) -> RecipeError:
    """Return the error for a folder in which no scan can be used."""
    more = len(refused) - 1
    further_lines = [f"The same holds for {count_noun(more, 'other scan')}."] if more else []
    return RecipeError(MultilineText(*refused[0].reason.split("\n"), *further_lines))


def _is_complete(recipe: Recipe, paired: PairedImage) -> bool:
    """Whether the image has a mask, or needs none."""
    return paired.has_expected_mask or recipe.layouts[paired.image.layout].mask == "optional"


def _unpaired_image(recipe: Recipe, paired: PairedImage, leftovers: Leftovers) -> UnpairedImage:
    image, candidates = paired.image, _mask_candidates(recipe, paired)
    return UnpairedImage(image.scan_id, image.path, candidates, leftovers.similar(candidates))


def _other_files(
    folder: RawFolder,
    leftovers: Leftovers,
    used: set[str],
    reported: Iterable[str],
    notes: Iterable[PathNote],
) -> tuple[tuple[PathNote, ...], tuple[PathNote, ...]]:
    """Return the files that nothing uses, each with the reason, and the masks without an image.

    Parameters
    ----------
    folder, leftovers
        The raw folder, and the sorter of its files that belong to no scan.
    used
        Files of scans, tables, lists and splits.
    reported
        Files and folders of scans that are reported elsewhere, and files of layers.
    notes
        Files that were matched and are not used, each with the reason.
    """
    # The mask of an image that is not used may also be the mask of an image that is used.
    explained = {note.path: note for note in notes if note.path not in used}
    sorted_files = leftovers.sort(
        used | folder.files_of_all(reported) | folder.files_of_all(explained)
    )
    system_files = (PathNote(path, _LEFT_BY_SYSTEM) for path in folder.system_files)
    ignored = (*explained.values(), *sorted_files.unmatched, *system_files)
    return tuple(sorted(ignored, key=lambda note: note.path)), sorted_files.orphans


def _scan_source(
    recipe: Recipe,
    folder: RawFolder,
    paired: PairedImage,
    splits: dict[str, tuple[str, int]],
    tables: JoinedTables,
) -> ScanSource:
    image, layout = paired.image, recipe.layouts[paired.image.layout]
    split_name = tables.splits.get(image.scan_id) or fill_template(recipe.split, image.texts) or ""
    split, position = splits.get(image.listed_as, (split_name, -1))
    centroids, centroid_file = layout.centroids, paired.centroids
    license = fill_template(recipe.scan_license, image.texts) or ""
    return ScanSource(
        scan_id=image.scan_id,
        patient_id=fill_template(recipe.patient_id, image.texts) or image.scan_id,
        source=fill_template(recipe.source, image.texts) or "",
        split=split,
        split_index=position,
        image=image.path,
        label=paired.label,
        size_bytes=sum(folder.size_of(path) for path in (*image.files, *paired.masks)),
        label_parts=paired.parts,
        absent_parts=paired.absent_parts,
        label_state=layout.label_state or recipe.labels.state,
        label_values=layout.stored_values,
        label_segments=layout.stored_segments,
        centroids=centroid_file,
        centroid_bytes=folder.size_of(centroid_file) if centroid_file else 0,
        centroid_convention=centroids.convention if centroids and centroid_file else None,
        sidecar=paired.sidecar,
        sidecar_keys=layout.sidecar_keys,
        columns=dict(tables.columns.get(image.scan_id, {})) | _license_column(license),
        license=license,
        stamp=folder.stamp_of(paired.files),
        correction=tables.corrections.get(image.scan_id) if paired.masks else None,
        earlier_values=recipe.labels.earlier,
        series=image.series,
        layers=tuple(
            ScanLayer(
                layer.name,
                image.layout,
                layer.label,
                layer.parts,
                layer.absent_parts,
                sum(map(folder.size_of, layer.paths)),
                folder.stamp_of(layer.paths),
                layer.problem,
            )
            for layer in paired.layers
        ),
    )


def _license_column(license: str) -> dict[str, str]:
    """Return the column with the license of a scan; none if all scans have that of the dataset."""
    return {"license": license} if license else {}


def _mask_candidates(recipe: Recipe, paired: PairedImage) -> tuple[str, ...]:
    """Return the paths at which the mask of an image may lie."""
    layout = recipe.layouts[paired.image.layout]
    texts = {**paired.image.texts, **({"part": "*"} if layout.label_parts else {})}
    filled = [fill_template(template, texts) for template in layout.mask_templates]
    return tuple(path for path in filled if path is not None)


def _read_splits(
    recipe: Recipe, folder: RawFolder
) -> tuple[dict[str, tuple[str, int]], str | None]:
    if recipe.splits is None:
        return {}, None
    for path in (file for name in recipe.splits.files for file in folder.named(name)):
        return recipe.splits.parse_bytes(folder.read(path), path), path
    return recipe.shipped_splits(), None


def _list_files(recipe: Recipe, folder: RawFolder) -> Iterable[str]:
    """Yield the files that may be the image list of a layout."""
    for layout in recipe.layouts.values():
        for pattern in layout.image_list.files if layout.image_list else ():
            yield from (path for path in folder.sizes if PathPattern(pattern).match(path))
