"""Is this machine, and the place of a store, ready for spinezarr?"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from spinezarr.errors import SpinezarrError, StoreNotFoundError
from spinezarr.measure.finding import Finding, Group
from spinezarr.progress import OnProgress, Progress
from spinezarr.redaction import redact_url
from spinezarr.text import count_noun, describe_os_error

__all__ = ["Diagnosis", "diagnose"]

_SPEED_S: Final = 4.0
"""Time for the reads of a place."""
_HERE: Final = "."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the checks of a machine and of a place found."""

    place: str
    """Folder or URL whose speed was measured."""
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 if something is broken, else 0."""
        return int(any(finding.status == "broken" for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        return {
            "place": self.place,
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose(
    url: str | None, storage_options: Mapping[str, Any], on_progress: OnProgress
) -> Diagnosis:
    """Check this machine, and the place of a store.

    Parameters
    ----------
    url
        Path or URL of a store, or a folder; None for the working folder.
    storage_options
        Options for the file system of the URL.
    on_progress
        Called with the seconds of the reads so far.

    Raises
    ------
    StoreNotFoundError
        If there is neither a store nor a folder.
    """
    place = _HERE if url is None else url
    checks: tuple[tuple[Group, str, Callable[[], Iterable[Finding]]], ...] = (
        ("versions", "versions", _versions),
        ("decoding", "decoding", _decoding),
        ("machine", "machine", _machine),
        ("place", "place", lambda: _place(url, storage_options, on_progress)),
    )
    findings = [
        finding for group, name, check in checks for finding in _guarded(group, name, check)
    ]
    return Diagnosis(redact_url(place), tuple(findings))


def _guarded(group: Group, name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. What ends the check early is a finding too."""
    try:
        yield from check()
    except StoreNotFoundError:
        raise
    except ImportError as problem:
        advice = "Install spinezarr again: pip install --force-reinstall spinezarr"
        yield Finding(group, name, f"cannot be checked: {problem}", "", "broken", advice)
    except SpinezarrError as problem:
        yield Finding(group, name, "cannot be read", "", "broken", str(problem))
    except OSError as problem:
        yield Finding(group, name, "cannot be read", "", "broken", describe_os_error(problem))


# Each check imports its modules when it runs, because a package that is missing or damaged must be
# a finding and not the end.


def _versions() -> Iterator[Finding]:
    from spinezarr.measure.versions import check_versions  # noqa: PLC0415

    yield from check_versions()


def _decoding() -> Iterator[Finding]:
    from spinezarr.measure.decoding import check_decoding  # noqa: PLC0415

    yield from check_decoding()


def _machine() -> Iterator[Finding]:
    from spinezarr.measure.machine import check_machine  # noqa: PLC0415

    yield from check_machine()


def _place(
    url: str | None, storage_options: Mapping[str, Any], on_progress: OnProgress
) -> Iterator[Finding]:
    from spinezarr.measure.places import check_folder, check_speeds  # noqa: PLC0415
    from spinezarr.measure.storage_speed import measure_folder, measure_store  # noqa: PLC0415
    from spinezarr.verbs.open_reader import open_reader  # noqa: PLC0415

    def report(seconds: float) -> None:
        on_progress(Progress("doctor", seconds, round(_SPEED_S), "seconds", scan="reads"))

    try:
        reader = None if url is None else open_reader(url, storage_options)
    except StoreNotFoundError:
        # Stores may be going to lie in a folder without one.
        if url is None or "://" in url or not Path(url).is_dir():
            raise
        reader = None
    if reader is None:
        folder = _HERE if url is None else url
        yield from check_folder(folder)
        speeds = measure_folder(folder, _SPEED_S, report)
        yield from check_speeds(speeds, is_remote=False)
        return
    scan_ids: list[str] = reader.columns["scan"].tolist()
    version = reader.root.format_version
    yield Finding("place", "store", f"{count_noun(len(scan_ids), 'scan')}, format {version}")
    is_remote = reader.objects.is_remote
    if not is_remote:
        yield from check_folder(reader.path)
    yield from check_speeds(measure_store(reader, scan_ids, _SPEED_S, report), is_remote=is_remote)
