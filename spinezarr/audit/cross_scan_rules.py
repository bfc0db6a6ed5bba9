"""Which images or patients occur in two splits, two scans or two stores?"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinezarr.audit.finding import Finding
from spinezarr.redaction import redact_url

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ScanKey", "same_image", "same_patient", "scan_keys"]


@dataclass(frozen=True, slots=True)
class ScanKey:
    """The fields of a scan that identify its image and its patient."""

    url: str = field(repr=False)
    """Path or URL of the store."""
    dataset: str
    scan_id: str
    patient_id: str
    split: str
    image_checksum: str


def scan_keys(url: str, dataset: str, table: "xr.Dataset") -> list[ScanKey]:
    """Return the keys of a store's scans."""
    columns = (table[name].to_numpy() for name in ("scan", "patient_id", "split", "image_checksum"))
    return [ScanKey(url, dataset, *map(str, row)) for row in zip(*columns, strict=True)]


def same_image(keys: Iterable[ScanKey]) -> Iterator[tuple[ScanKey, Finding]]:
    """Find images that occur more than once, with bitwise equal voxels.

    The finding is an error if they are in two splits of one dataset, and a warning otherwise.
    """
    for group in _groups((key.image_checksum, key) for key in keys):
        for key in group:
            others = [other for other in group if other != key]
            leaks = [other for other in others if _is_leak(key, other)]
            if leaks:
                text = f"the image is also in split {leaks[0].split}: {_scan_names(leaks)}"
            elif any(other.dataset != key.dataset for other in others):
                text = f"the image is also in another dataset: {_scan_names(others)}"
            else:
                text = f"the image is stored more than once: also as {_scan_names(others)}"
            yield key, _finding("same-image", key, leaks or others, text, error=bool(leaks))


def same_patient(keys: Iterable[ScanKey]) -> Iterator[tuple[ScanKey, Finding]]:
    """Find patients of a dataset that are in two splits, which makes test scores too good."""
    for group in _groups(((key.dataset, key.patient_id), key) for key in keys):
        for key in group:
            leaks = [other for other in group if _is_leak(key, other)]
            if leaks:
                split_and_scans = f"{leaks[0].split}: {_scan_names(leaks)}"
                text = f"patient {key.patient_id} is also in split {split_and_scans}"
                yield key, _finding("same-patient", key, leaks, text, error=True)


def _groups(pairs: Iterable[tuple[Hashable, ScanKey]]) -> Iterator[list[ScanKey]]:
    """Yield each group of at least two scans with the same value."""
    keys_by_value: dict[Hashable, list[ScanKey]] = defaultdict(list)
    for value, key in pairs:
        keys_by_value[value].append(key)
    return (group for group in keys_by_value.values() if len(group) > 1)


def _is_leak(key: ScanKey, other: ScanKey) -> bool:
    """Whether two scans are in different splits of one dataset."""
    return (
        key.dataset == other.dataset
        and "" not in {key.split, other.split}
        and (key.split != other.split)
    )


def _scan_names(others: list[ScanKey]) -> str:
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{others[0].scan_id} of {others[0].dataset}{more}"


def _finding(rule: str, key: ScanKey, others: list[ScanKey], text: str, *, error: bool) -> Finding:
    return Finding(
        key.scan_id,
        rule,
        "error" if error else "warning",
        text,
        facts={
            "split": key.split,
            "others": [
                {
                    "store": redact_url(other.url),
                    "dataset": other.dataset,
                    "scan": other.scan_id,
                    "split": other.split,
                }
                for other in others
            ],
        },
        others=tuple(other.scan_id for other in others if other.url == key.url),
    )
