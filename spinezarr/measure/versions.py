"""Are the installed packages those that spinezarr needs?

The requirements are those of the installed package, which come from ``pyproject.toml``.
"""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from spinezarr.measure.finding import Finding
from spinezarr.resources import package_version

__all__ = ["check_package", "check_versions"]

_PACKAGE: Final = "spinezarr"
_SHOWN: Final = ("zarr", "numcodecs", "xarray", "dask", "numpy")
"""Packages that are always shown. Others are shown if there is something to change."""
_SHOWN_IF_INSTALLED: Final = ("torch",)
"""Packages of extras that are shown if they are installed."""


def check_versions() -> Iterator[Finding]:
    """Yield a finding for Python, spinezarr, its main packages and its extras."""
    python, allowed = platform.python_version(), metadata(_PACKAGE)["Requires-Python"]
    old = python not in SpecifierSet(allowed)
    yield Finding(
        "versions",
        "Python",
        python,
        _readable(SpecifierSet(allowed)),
        "broken" if old else "ok",
        "Install a newer Python, and spinezarr in it." if old else "",
    )
    folder = Path(__file__).parents[1]
    yield Finding("versions", _PACKAGE, f"{package_version()}, in {folder}")
    requirements = [Requirement(text) for text in requires(_PACKAGE) or ()]
    for requirement in _base(requirements):
        finding = check_package(requirement, optional=False)
        if requirement.name in _SHOWN or finding.status != "ok":
            yield finding
    yield from _check_extras(requirements)


def check_package(requirement: Requirement, *, optional: bool) -> Finding:
    """Compare the installed version of a package with a requirement.

    Parameters
    ----------
    requirement
        Name and versions of the package.
    optional
        Whether spinezarr works without the package. Then it is no fault that it is too old.

    Examples
    --------
    >>> check_package(Requirement("numpy>=99"), optional=False).advice
    "Run: pip install 'numpy>=99'"
    """
    found = _installed(requirement.name)
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    install = f"Run: pip install '{requirement.name}{extras}{requirement.specifier}'"
    return Finding(
        "versions",
        requirement.name,
        found or "not installed",
        _readable(requirement.specifier),
        "ok" if fits else "note" if optional else "broken",
        "" if fits else install,
    )


def _check_extras(requirements: Sequence[Requirement]) -> Iterator[Finding]:
    """Yield findings on packages of extras, and on which extras are installed."""
    installed: list[str] = []
    missing: list[str] = []
    shown: dict[str, Finding] = {}
    packages_of = {
        extra: [r for r in requirements if _is_of_extra(r, extra)]
        for extra in metadata(_PACKAGE).get_all("Provides-Extra") or ()
    }
    names_of = {extra: {r.name for r in packages} for extra, packages in packages_of.items()}
    for extra, packages in packages_of.items():
        if any(other < names_of[extra] for other in names_of.values()):
            continue  # it collects other extras
        findings = [
            check_package(package, optional=True)
            for package in packages
            if _installed(package.name) is not None
        ]
        whole = len(findings) == len(packages)
        (installed if whole else missing).append(extra)
        shown |= {
            finding.name: finding
            for finding in findings
            if finding.name in _SHOWN_IF_INSTALLED or finding.status != "ok"
        }
    yield from shown.values()
    yield Finding(
        "versions",
        "extras",
        ", ".join(sorted(installed)) or "none",
        figures={"installed": sorted(installed), "not_installed": sorted(missing)},
    )


def _base(requirements: Sequence[Requirement]) -> Iterator[Requirement]:
    """Yield the requirements that count without any extra."""
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _is_of_extra(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return False
    return marker.evaluate({"extra": extra})


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _readable(versions: SpecifierSet) -> str:
    """Return conditions on versions with a space after each sign: ``>= 3.11``."""
    return ", ".join(f"{each.operator} {each.version}" for each in versions)
