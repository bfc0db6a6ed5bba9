"""Which DICOM files of a folder form one series, and is the series complete?

References
----------
DICOM PS3.3 sections C.7.3.1 (General Series), C.7.6.1 (General Image) and C.7.6.2 (Image Plane);
PS3.4 section C.6.1.1.5 (NumberOfSeriesRelatedInstances is a query attribute, which archives also
write into files).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import fsspec

from spinezarr.errors import FormatError
from spinezarr.formats.concurrent_reads import map_concurrently
from spinezarr.formats.dicom_data_set import HeaderError
from spinezarr.formats.dicom_file import DicomObject, SeriesHeader, read_object
from spinezarr.formats.dicom_names import is_hidden
from spinezarr.formats.dicom_stack import SliceHeader
from spinezarr.formats.limits import Limits

__all__ = [
    "CtSeries",
    "FolderContent",
    "completeness_notes",
    "group_series",
    "read_folder",
    "series_name",
]

_MIN_JOINED_FILES: Final = 3
"""If at least this many similar single-slice files have a UID each, a converter made a mistake."""
_SPACING_TOLERANCE: Final = 0.1
"""Largest relative difference of the slice distance and SpacingBetweenSlices, which is rounded."""


@dataclass(frozen=True, slots=True)
class CtSeries:
    """The CT files of one series."""

    facts: SeriesHeader
    """Series fields of its first file."""
    key: str
    """Hash that identifies the series within its folder and reveals no UID."""
    objects: tuple[DicomObject, ...]
    """Files of its slices, sorted by path."""
    others: tuple[DicomObject, ...]
    """Other objects with the same UID, such as localizers."""
    notes: tuple[str, ...]
    """Remarks for the user on how the files were grouped."""

    @property
    def slices(self) -> int:
        """Number of slices, with the frames of multi-frame files."""
        return sum(dicom_object.frames for dicom_object in self.objects)

    @property
    def name(self) -> str:
        """Name of the series in messages."""
        return series_name(self.facts.number)


@dataclass(frozen=True, slots=True)
class FolderContent:
    """The files of a folder, without hidden ones."""

    series: tuple[CtSeries, ...]
    """CT series, sorted by their first path."""
    others: tuple[DicomObject, ...]
    """DICOM objects that are no CT slices."""
    unknown: tuple[str, ...]
    """Paths of files that are not DICOM, as their names say."""


def series_name(number: int | None) -> str:
    """Return the name of a series for messages, without its description, which may name a patient.

    Examples
    --------
    >>> series_name(2), series_name(None)
    ("series '2'", 'series without a number')
    """
    return "series without a number" if number is None else f"series '{number}'"


def read_folder(
    fs: fsspec.AbstractFileSystem, sizes: Mapping[str, int], limits: Limits
) -> FolderContent:
    """Read the headers of files, and group the CT files by series.

    Parameters
    ----------
    fs
        File system of the files.
    sizes
        Size of each file in bytes, by path.
    limits
        Limits that the files must not exceed.

    Raises
    ------
    FormatError
        If a file is damaged, or is not DICOM and may be a slice; see
        :func:`spinezarr.formats.dicom_file.read_object`.
    """
    paths = sorted(path for path in sizes if not is_hidden(path.rsplit("/", 1)[-1]))
    results = map_concurrently(fs, lambda path: read_object(fs, path, sizes[path], limits), paths)
    objects = [item for item in results if item is not None]
    return FolderContent(
        tuple(group_series(objects)),
        tuple(item for item in objects if item.non_ct_kind is not None),
        tuple(path for path, item in zip(paths, results, strict=True) if item is None),
    )


def group_series(objects: Iterable[DicomObject]) -> list[CtSeries]:
    """Group CT files by series.

    * Files with the same SeriesInstanceUID form one series.
    * A file without a UID joins the series with the same :attr:`SeriesHeader.matching_fields`, if
      exactly one such series exists. Otherwise it forms a series with the other files that have
      no UID and the same fields.
    * Some converters give each slice a UID of its own. At least three single-slice files with the
      same fields then form one series, and a note says so.

    Parameters
    ----------
    objects
        DICOM files of one folder, of any kind, sorted by path.

    Returns
    -------
    list of CtSeries
        Series sorted by the path of their first file.
    """
    objects = list(objects)
    ct_objects = [dicom_object for dicom_object in objects if dicom_object.non_ct_kind is None]
    by_uid: dict[str, list[DicomObject]] = defaultdict(list)
    for dicom_object in ct_objects:
        by_uid[dicom_object.series.uid].append(dicom_object)
    without_uid = by_uid.pop("", [])
    groups = _join_single_slices([(members, [uid], ()) for uid, members in by_uid.items()])
    for matching_fields, members in _group_by_fields(without_uid).items():
        fitting = [group for group in groups if _matching_fields(group[0][0]) == matching_fields]
        if len(fitting) == 1:
            fitting[0][0].extend(members)
            fitting[0][0].sort(key=lambda dicom_object: dicom_object.path)
        else:
            groups.append((members, [], ()))
    others: dict[str, list[DicomObject]] = defaultdict(list)
    for dicom_object in objects:
        if dicom_object.non_ct_kind is not None and dicom_object.series.uid:
            others[dicom_object.series.uid].append(dicom_object)
    series = [
        CtSeries(
            members[0].series,
            _series_key(uids[0] if len(uids) == 1 else _matching_fields(members[0])),
            tuple(members),
            tuple(other for uid in uids for other in others[uid]),
            notes,
        )
        for members, uids, notes in groups
    ]
    return sorted(series, key=lambda entry: entry.objects[0].path)


_Group = tuple[list[DicomObject], list[str], tuple[str, ...]]
"""Files of a series, their UIDs and notes."""


def _join_single_slices(groups: Sequence[_Group]) -> list[_Group]:
    """Join single-slice files with equal fields that each have a UID of their own."""
    single_slices = [members[0] for members, _, _ in groups if [m.frames for m in members] == [1]]
    joined = [group for group in groups if [m.frames for m in group[0]] != [1]]
    for members in _group_by_fields(single_slices).values():
        if len(members) < _MIN_JOINED_FILES:
            joined += [([dicom_object], [dicom_object.series.uid], ()) for dicom_object in members]
            continue
        note = (
            f"each of its {len(members)} files has a SeriesInstanceUID of its own; they were read "
            "as one series, because they are equal in all other fields that slices share"
        )
        joined.append((members, [dicom_object.series.uid for dicom_object in members], (note,)))
    return joined


def _group_by_fields(objects: Iterable[DicomObject]) -> dict[str, list[DicomObject]]:
    groups: dict[str, list[DicomObject]] = defaultdict(list)
    for dicom_object in objects:
        groups[_matching_fields(dicom_object)].append(dicom_object)
    return groups


def _matching_fields(dicom_object: DicomObject) -> str:
    return repr(dicom_object.series.matching_fields)


def _series_key(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def completeness_notes(
    series: CtSeries, slices: Sequence[SliceHeader], spacing_mm: float, folder: str
) -> tuple[str, ...]:
    """Check whether an evenly spaced series may lack slices, at its ends or at regular intervals.

    Only NumberOfSeriesRelatedInstances is certain: it counts the files of this series, so fewer
    files are an error. The other fields only lead to notes, because each may have harmless reasons:

    * ImagesInAcquisition counts the images of an acquisition, which may have several series.
    * InstanceNumber may start above 1 or have gaps. Some scanners count on from series to series,
      or number two series alternately.
    * SpacingBetweenSlices may be left from another reconstruction.

    Parameters
    ----------
    series
        The series with all its files.
    slices
        Slices that form the volume.
    spacing_mm
        Distance between these slices by their positions.
    folder
        Path of the folder, for messages.

    Returns
    -------
    tuple of str
        Notes for the user.

    Raises
    ------
    FormatError
        If the series has fewer files than each of them states.
    """
    files = (*series.objects, *series.others)
    stated = _common_number(series.objects, "NumberOfSeriesRelatedInstances")
    if stated is not None and stated > len(files):
        raise FormatError(
            f"{folder}: {series.name} has {len(files)} files here, and each slice says that the "
            f"series has {stated:g} (NumberOfSeriesRelatedInstances). Download the series again. "
            "If files were left out on purpose, remove that element from the slices."
        )
    notes = []
    images = series.slices + len(series.others)
    stated = _common_number(series.objects, "ImagesInAcquisition")
    if stated is not None and stated > images:
        notes.append(
            f"{images} of the {stated:g} images of its acquisition (ImagesInAcquisition) are here: "
            "the others belong to another series, or are missing"
        )
    notes += _numbering_notes(files, {header.path for header in slices}, len(slices))
    stated = _common_number(series.objects, "SpacingBetweenSlices")
    if stated and abs(spacing_mm - abs(stated)) > _SPACING_TOLERANCE * abs(stated):
        notes.append(
            f"the slices are {spacing_mm:.4g} mm apart, but SpacingBetweenSlices is {stated:g} mm: "
            "slices between them may be missing"
        )
    return tuple(notes)


def _numbering_notes(
    files: Iterable[DicomObject], paths: Collection[str], count: int
) -> Iterator[str]:
    """Yield a note if InstanceNumber starts late or has gaps that other files do not fill."""
    slice_numbers: set[int] = set()
    other_numbers: set[int] = set()
    for dicom_object in files:
        number = _number(dicom_object, "InstanceNumber")
        if number is not None:
            (slice_numbers if dicom_object.path in paths else other_numbers).add(int(number))
    if len(slice_numbers) != count:  # missing, repeated, or a multi-frame file
        return
    low, high = min(slice_numbers), max(slice_numbers)
    n_between = sum(low <= number <= high for number in other_numbers - slice_numbers)
    n_before = sum(1 <= number < low for number in other_numbers)
    if low - 1 > n_before or high - low + 1 > count + n_between:
        yield f"InstanceNumber runs from {low} to {high} over {count} slices: some may be missing"


def _common_number(objects: Sequence[DicomObject], keyword: str) -> float | None:
    """Return the number that all files state; None if they differ or lack it."""
    values = Counter(_number(dicom_object, keyword) for dicom_object in objects)
    return next(iter(values)) if len(values) == 1 else None


def _number(dicom_object: DicomObject, keyword: str) -> float | None:
    try:
        numbers = dicom_object.header.data.numbers(keyword)
    except HeaderError:
        return None
    return numbers[0] if len(numbers) == 1 else None
