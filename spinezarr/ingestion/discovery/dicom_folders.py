"""Which folders of DICOM files are CTs, and which series does each hold?

File names do not say, so headers are read. In a folder that is one scan, one header is enough if it
is that of a CT slice. In a folder whose series are scans of their own, or that seems to hold no CT,
all headers are read.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from spinezarr.errors import DamagedMetadataError, FormatError
from spinezarr.formats.concurrent_reads import map_concurrently
from spinezarr.formats.dicom_data_set import DataSet
from spinezarr.formats.dicom_file import DicomObject, read_object
from spinezarr.formats.dicom_names import has_other_file_name, is_hidden
from spinezarr.formats.dicom_series import CtSeries, group_series, series_name
from spinezarr.formats.limits import DEFAULT_LIMITS
from spinezarr.ingestion.discovery.images import FoundImage, MatchedImages, PathNote, SeriesFiles
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.progress import OnProgress, ProgressCounter, ignore_progress
from spinezarr.recipe import SERIES_NAMES, Recipe, SeriesInfo, SeriesSelection, fill_template
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.files import open_store
from spinezarr.store.ledger import LEDGER_FILE, FolderPart, FolderRecord, Ledger

__all__ = ["InspectedFolders", "inspect_dicom_folders", "known_folders"]

_STEP: Final = "read headers"
_NOT_CT: Final = "ignored, not CT: "
_NO_SLICE: Final = "ignored, not a CT slice: "
_LOCALIZER: Final = "localizer"
_TOO_SHORT: Final = "CT series with fewer slices than the recipe's 'series' requires"
_NOT_CHOSEN: Final = "CT series that the recipe's 'series' does not select"
_UNNAMED: Final = "CT series for which the recipe gives no scan id or source"
_RULES_VERSION: Final = 1
"""Version of the rules by which a folder is recorded.

Raise it when the rules change, so that older records are not used.
"""


@dataclass(frozen=True, slots=True)
class InspectedFolders:
    """Result of reading the headers in the folders that image patterns match."""

    matched: MatchedImages
    """Images, without the folders that hold no CT.

    Each series is an image of its own if its layout says so. Files that are not used are among the
    ignored ones.
    """
    records: dict[str, FolderRecord] = field(default_factory=dict)
    """Records of the folders, which the next run uses."""


def known_folders(
    url: str | None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, FolderRecord]:
    """Return the records of folders that the last ingest into a store kept, or none."""
    if url is None:
        return {}
    try:
        fs, path = open_store(url, storage_options)
        return Ledger.of_file(fs.cat_file(f"{path}/{LEDGER_FILE}")).folders
    except (OSError, DamagedMetadataError):
        return {}  # the store writer reports a damaged store


def inspect_dicom_folders(
    recipe: Recipe,
    raw: RawFolder,
    matched: MatchedImages,
    known: Mapping[str, FolderRecord] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> InspectedFolders:
    """Separate CTs from other DICOM objects, and series from each other.

    A file that cannot be read, or that is not DICOM but may be a slice, is added to every series of
    its folder that is a scan. If there is no such series, the file becomes a scan of its own. These
    scans fail, so an incomplete series never passes for a whole one.

    Parameters
    ----------
    recipe
        Recipe whose layouts say in which folders each series is a scan (``series``).
    raw
        Files of the raw folder.
    matched
        Files and folders that the image patterns match, by names alone.
    known
        Records of an earlier run. Folders that have not changed since are not read.
    on_progress
        Called with the number of files in the folders that are looked through.
    """
    folders = [image for image in matched.images if image.path.endswith("/")]
    recipe_text = canonical_json(recipe)
    keys = {(image.layout, image.path): _record_key(recipe_text, raw, image) for image in folders}
    records = {key: known[key] for key in keys.values() if known and key in known}
    new = [image for image in folders if keys[image.layout, image.path] not in records]
    inspected = _inspect(recipe, raw, new, on_progress) if new else []
    record_of_image = {image_key: records[key] for image_key, key in keys.items() if key in records}
    for image, (record, is_final) in inspected:
        image_key = image.layout, image.path
        record_of_image[image_key] = record
        if is_final:
            records[keys[image_key]] = record
    images: list[FoundImage] = []
    ignored: dict[str, PathNote] = {}
    for image in matched.images:
        folder_record = record_of_image.get((image.layout, image.path))
        if folder_record is None or folder_record.is_scan:
            images.append(image)
            continue
        files = raw.folders[image.path]
        for part in folder_record.parts:
            paths = tuple(_from_ranges(files, part.files))
            if part.reason:
                notes = (PathNote(path, part.reason, part.detail) for path in paths)
                ignored |= {note.path: note for note in notes}
            else:
                series_image = _with_series(recipe, image, part, paths)
                if series_image is None:
                    detail = series_name(part.number)
                    ignored |= {path: PathNote(path, _UNNAMED, detail) for path in paths}
                else:
                    images.append(series_image)
    ct_images = replace(
        matched,
        images=tuple(_mark_spread_series(images)),
        ignored=(*matched.ignored, *ignored.values()),
    )
    return InspectedFolders(ct_images.separate_misnamed(raw), records)


def _inspect(
    recipe: Recipe, raw: RawFolder, images: Sequence[FoundImage], on_progress: OnProgress
) -> list[tuple[FoundImage, tuple[FolderRecord, bool]]]:
    """Read headers in the folders of images; return the results of :func:`_look_for_ct`."""
    n_files = sum(len(raw.folders[image.path]) for image in images)
    counter = ProgressCounter(on_progress, _STEP, "files", n_files)

    def look_for_ct(image: FoundImage) -> tuple[FolderRecord, bool]:
        found = _look_for_ct(raw, image.path)
        counter.add(len(raw.folders[image.path]))
        return found

    single_scans = [image for image in images if recipe.layouts[image.layout].series is None]
    records = map_concurrently(raw.fs, look_for_ct, single_scans)
    inspected = list(zip(single_scans, records, strict=True))
    for image in images:
        choice = recipe.layouts[image.layout].series
        if choice is not None:
            names = recipe.used_names(image.layout) & SERIES_NAMES
            inspected.append((image, _look_for_series(raw, image.path, choice, names, counter)))
    return inspected


def _record_key(recipe_text: str, raw: RawFolder, image: FoundImage) -> str:
    parts = [_RULES_VERSION, recipe_text, image.layout, image.path, raw.stamp_of((image.path,))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _look_for_ct(raw: RawFolder, folder: str) -> tuple[FolderRecord, bool]:
    """Find out whether a folder holds a CT.

    The file of median size is read first. In most folders, it is a slice.

    Returns
    -------
    tuple of FolderRecord, bool
        The result, and whether it is final. The result is not final if a file could not be read,
        because that file may be readable the next time.
    """
    files = raw.folders[folder]
    candidates = sorted(
        (
            path
            for path in files
            if not has_other_file_name(_name(path)) and not is_hidden(_name(path))
        ),
        key=lambda path: (raw.sizes[path], path),
    )
    if not candidates:
        return FolderRecord(is_scan=False), True
    first = candidates.pop(len(candidates) // 2)
    results = {first: _read_header(raw, first)}
    if not _may_be_ct(results[first]):
        results |= zip(
            candidates,
            map_concurrently(raw.fs, lambda path: _read_header(raw, path), candidates),
            strict=True,
        )
    is_final = not any(isinstance(item, Exception) for item in results.values())
    if any(map(_may_be_ct, results.values())):
        return FolderRecord(is_scan=True), is_final
    return FolderRecord(is_scan=False, parts=tuple(_non_ct_kinds(files, results))), is_final


def _may_be_ct(result: "DicomObject | Exception | None") -> bool:
    """Return whether a file is a CT slice or cannot be read.

    Files that cannot be read count as CT, so that the ingest reports them.
    """
    if isinstance(result, DicomObject):
        return result.non_ct_kind is None
    return result is not None


def _look_for_series(
    raw: RawFolder,
    folder: str,
    choice: SeriesSelection,
    names: Iterable[str],
    counter: ProgressCounter,
) -> tuple[FolderRecord, bool]:
    """Read all headers of a folder, and choose among its CT series; see :func:`_look_for_ct`."""
    files = raw.folders[folder]
    paths = [path for path in files if not is_hidden(_name(path))]
    counter.add(len(files) - len(paths))

    def read_header(path: str) -> "DicomObject | Exception | None":
        header = _read_header(raw, path)
        counter.add()
        return header

    results = dict(zip(paths, map_concurrently(raw.fs, read_header, paths), strict=True))
    series = group_series(item for item in results.values() if isinstance(item, DicomObject))
    unreadable = [path for path, item in results.items() if isinstance(item, Exception)]
    parts: list[FolderPart] = []
    grouped_files: set[str] = set()
    for ct_series in series:
        series_files = [
            _relative(raw, item.path) for item in (*ct_series.objects, *ct_series.others)
        ]
        grouped_files.update(series_files)
        info = _series_info(ct_series)
        if choice.selects(info):
            texts = info.texts()
            parts.append(
                FolderPart(
                    files=_to_ranges(files, {*series_files, *unreadable}),
                    key=ct_series.key,
                    number=ct_series.facts.number,
                    texts={name: texts[name] for name in sorted(names)},
                )
            )
        else:
            reason = _NOT_CHOSEN if choice.is_long_enough(info) else _TOO_SHORT
            parts.append(
                FolderPart(
                    files=_to_ranges(files, series_files), reason=reason, detail=ct_series.name
                )
            )
    if unreadable and all(part.reason for part in parts):
        empty_texts = SeriesInfo(None, "", "", (), "", (), None, 0).texts()
        texts = {name: empty_texts[name] for name in sorted(names)}
        parts.append(FolderPart(files=_to_ranges(files, unreadable), texts=texts))
    parts += _non_ct_kinds(
        files, {path: item for path, item in results.items() if path not in grouped_files}
    )
    return FolderRecord(is_scan=False, parts=tuple(parts)), not unreadable


def _series_info(series: CtSeries) -> SeriesInfo:
    facts = series.facts
    return SeriesInfo(
        number=facts.number,
        uid=facts.uid,
        study_uid=facts.study_uid,
        kernel=facts.kernel,
        description=facts.description,
        image_type=facts.image_type,
        slice_thickness_mm=facts.slice_thickness_mm,
        slices=series.slices,
    )


def _non_ct_kinds(
    files: Sequence[str], results: "Mapping[str, DicomObject | Exception | None]"
) -> Iterator[FolderPart]:
    """Yield the DICOM files that are not CT, by kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path, item in results.items():
        if isinstance(item, DicomObject) and item.non_ct_kind is not None:
            kinds[item.non_ct_kind].append(path)
    for kind, paths in sorted(kinds.items()):
        reason = f"{_NO_SLICE if kind == _LOCALIZER else _NOT_CT}{kind}"
        yield FolderPart(files=_to_ranges(files, paths), reason=reason)


def _read_header(raw: RawFolder, path: str) -> "DicomObject | Exception | None":
    """Read a header and keep only the part that describes the series, to save memory.

    Errors are returned. The ingest reads the file again and reports them.
    """
    try:
        dicom_object = read_object(raw.fs, f"{raw.root}/{path}", raw.sizes[path], DEFAULT_LIMITS)
    except (FormatError, OSError) as problem:
        return problem
    if dicom_object is None:
        return None
    return replace(dicom_object, header=replace(dicom_object.header, data=DataSet()))


def _with_series(
    recipe: Recipe, image: FoundImage, part: FolderPart, files: tuple[str, ...]
) -> FoundImage | None:
    """Return the image of one series; None if its scan id or source has no value."""
    texts = recipe.resolve_lookups({**image.texts, **part.texts})
    scan_id = fill_template(recipe.scan_id, texts)
    if scan_id is None or fill_template(recipe.source, texts) is None:
        return None
    return replace(
        image,
        texts=texts,
        scan_id=scan_id,
        duplicate_key=fill_template(recipe.duplicate_key, texts) or scan_id,
        series=SeriesFiles(part.key, series_name(part.number), files),
    )


def _mark_spread_series(images: Iterable[FoundImage]) -> Iterator[FoundImage]:
    """Mark series whose files lie in several folders. No folder then holds the whole scan."""
    images = list(images)
    folders: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in images:
        if image.series is not None and image.series.key:
            folders[image.layout, image.series.key].append(image.path)
    for image in images:
        series_folders = folders.get((image.layout, image.series.key), []) if image.series else []
        if image.series is not None and len(series_folders) > 1:
            yield replace(
                image, series=replace(image.series, folders=tuple(sorted(series_folders)))
            )
        else:
            yield image


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _relative(raw: RawFolder, path: str) -> str:
    return path[len(raw.root) + 1 :]


def _to_ranges(files: Sequence[str], chosen: Iterable[str]) -> str:
    """Write positions in a list as ranges.

    Examples
    --------
    >>> _to_ranges("abcdefg", "abcf"), list(_from_ranges("abcdefg", "0-2 5"))
    ('0-2 5', ['a', 'b', 'c', 'f'])
    """
    chosen_set = set(chosen)
    ranges: list[list[int]] = []
    for position, name in enumerate(files):
        if name not in chosen_set:
            continue
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)


def _from_ranges(files: Sequence[str], ranges: str) -> Iterator[str]:
    """Yield the items for ranges that :func:`_to_ranges` wrote."""
    for item_range in ranges.split():
        first, _, last = item_range.partition("-")
        yield from files[int(first) : int(last or first) + 1]
