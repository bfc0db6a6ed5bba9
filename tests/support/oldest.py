"""Finds the oldest versions that ``pyproject.toml`` allows, and checks each of its bounds.

::

    python tests/support/oldest.py all,neuroglancer,notebook build/oldest.txt

writes what is needed with these extras: the packages that ``pyproject.toml`` names in their oldest
versions, and the packages that they need in their newest. A bound that no version equals, or that
does not fit to the others, is an error. It needs the packages uv and packaging.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def bounds(extras):
    """Return the lower bound of each package that is named for some extras, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements, names = [*project["dependencies"]], [*extras]
    while names:
        for text in project["optional-dependencies"][names.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                names += requirement.extras
            else:
                requirements.append(text)
    found = {}
    for requirement in map(Requirement, requirements):
        (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
        name = canonicalize_name(requirement.name)
        found[name] = max(Version(bound), found.get(name, Version("0")))
    return found


def resolve(extras, out):
    """Write the oldest versions that fit together, and return them by name."""
    options = [word for extra in extras for word in ("--extra", extra)]
    words = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", *options]
    words += [
        "--resolution",
        "lowest-direct",
        "--python-version",
        "3.11",
        "--output-file",
        str(out),
    ]
    subprocess.run([*words, "pyproject.toml"], check=True, cwd=ROOT)
    lines = re.findall(r"^([\w.-]+)(?:\[.*?\])?==(\S+)", out.read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", type=lambda text: text.split(","))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    versions = resolve(arguments.extras, arguments.out.resolve())
    wrong = {
        name: f"{name}>={bound}: the oldest version that fits is {versions[name]}"
        for name, bound in bounds(arguments.extras).items()
        if versions[name] != bound
    }
    if wrong:
        sys.exit("\n".join(["Bounds of pyproject.toml that cannot be met:", *wrong.values()]))
    print(f"The oldest versions are in {arguments.out}.")


if __name__ == "__main__":
    main()
