"""Builds the files of a release into ``dist``, and checks them.

``make wheels`` runs ``python .ci/release.py build``, and ``make release-check`` also ``... check``,
with the tools of an environment of their own.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lief
from packaging.tags import Tag, parse_tag, sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import hatch_build as hook  # noqa: E402

DIST = ROOT / "dist"
WORK = ROOT / "build" / "release"
SOURCE = WORK / "source"
"""The unpacked sdist, from which the wheels are built."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SDIST = f"{PROJECT['name']}-{PROJECT['version']}.tar.gz"
LIBRARIES = {".so": {"libc.so.6"}, ".dylib": {"/usr/lib/libSystem.B.dylib"}}
"""The only libraries that a kernel may need, by the ending of its file."""
MACHINES = {
    "linux-x86_64": "X86_64",
    "linux-aarch64": "AARCH64",
    "macos-x86_64": "X86_64",
    "macos-arm64": "ARM64",
}
OTHER_PLATFORMS = {
    "linux-x86_64": "manylinux2014_x86_64",
    "linux-aarch64": "manylinux2014_aarch64",
    "macos-x86_64": "macosx_13_0_x86_64",
    "macos-arm64": "macosx_15_0_arm64",
}
"""Platforms whose pip must choose each wheel."""


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command, and end with its exit code if it fails."""
    print("$", *words, flush=True)
    done = subprocess.run(words, check=False, cwd=cwd, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(done.returncode)


# Building


def build() -> None:
    """Build the sdist from the checkout, and all wheels from the sdist."""
    unpacked = WORK / SDIST.removesuffix(".tar.gz")
    for folder in (DIST, SOURCE, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", DIST, ".")
    check_sdist()
    with tarfile.open(DIST / SDIST) as archive:
        archive.extractall(WORK, filter="data")
    unpacked.rename(SOURCE)
    for name in hook.RELEASED:
        words = ("build", "--no-isolation", "--wheel", "--outdir", DIST, SOURCE)
        run(sys.executable, "-m", *words, **{hook.WHEEL_FOR: name})
    check_wheels()


def check_sdist() -> None:
    """Check that the sdist has every file of the repository, as it is, and no other."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    expected = {*listed.split("\0")} - {""}
    with tarfile.open(DIST / SDIST) as archive:
        found = {
            entry.name.partition("/")[2]: hashlib.sha256(file.read()).digest()
            for entry in archive
            if (file := archive.extractfile(entry)) is not None
        }
    assert found.keys() - {"PKG-INFO"} == expected, found.keys() ^ expected
    changed = [
        name
        for name in sorted(expected)
        if hashlib.sha256((ROOT / name).read_bytes()).digest() != found[name]
    ]
    assert not changed, changed
    print(f"{SDIST} has all {len(expected)} files of the repository.")


def wheel_for(name: str) -> Path:
    """Return the wheel for one of the platforms."""
    (path,) = DIST.glob(f"*-py3-none-{hook.RELEASED[name].tag}.whl")
    return path


def check_wheels() -> None:
    """Check tags, files and kernels of all wheels."""
    assert len([*DIST.iterdir()]) == 1 + len(hook.RELEASED), [*DIST.iterdir()]
    contents = {}
    for name, platform in hook.RELEASED.items():
        path = wheel_for(name)
        check_tags(path, platform.tag)
        with zipfile.ZipFile(path) as wheel:
            files = {entry: wheel.read(entry) for entry in wheel.namelist()}
        kernel = f"spinezarr/stream/read/libkernel{platform.ending}"
        check_kernel(files.pop(kernel), name)
        info = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
        for varying in (f"{info}/WHEEL", f"{info}/RECORD"):
            del files[varying]
        contents[name] = files
        check_choice(name, path)
    first, *others = contents.values()
    description = first[f"{PROJECT['name']}-{PROJECT['version']}.dist-info/METADATA"].decode()
    relative = re.findall(r"\]\((?!https://)[^)]+\)", description)
    assert not relative, relative
    assert all(files == first for files in others), "the wheels must differ in their kernels alone"
    check_files(first)


def check_tags(path: Path, platform: str) -> None:
    """Check that name and metadata of a wheel say for which platforms it is."""
    expected = {Tag("py3", "none", part) for part in platform.split(".")}
    _, version, _, tags = parse_wheel_filename(path.name)
    assert str(version) == PROJECT["version"]
    assert tags == expected, (path.name, tags)
    with zipfile.ZipFile(path) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
        text = wheel.read(metadata).decode()
    lines = re.findall("^Tag: (.+)$", text, re.MULTILINE)
    assert {tag for line in lines for tag in parse_tag(line)} == expected, text
    assert "Root-Is-Purelib: false" in text


def check_files(files: dict[str, bytes]) -> None:
    """Check the files that all wheels share."""
    niivue = files[hook.NIIVUE_PLACE.as_posix()]
    assert hashlib.sha512(niivue).hexdigest() == hook.SCRIPT_SHA512
    for part in ("spinezarr", "ingest", "catalog.yaml"):
        place = part if part == "spinezarr" else f"spinezarr/_data/{part}"
        for path in [ROOT / part, *(ROOT / part).rglob("*")]:
            name = place + path.as_posix().removeprefix((ROOT / part).as_posix())
            if path.is_file() and (SOURCE / path.relative_to(ROOT)).is_file():
                assert files.get(name) == path.read_bytes(), name
    binary = [name for name in files if name.endswith((".so", ".dylib", ".pyc"))]
    assert not binary, binary


def check_kernel(data: bytes, name: str) -> None:
    """Check the machine, the exported names and the needed libraries of a kernel."""
    expected = exported_names()
    library: Any = lief.parse(io.BytesIO(data))
    is_elf = isinstance(library, lief.ELF.Binary)
    if is_elf:
        machine = library.header.machine_type.name
        exported = {symbol.name for symbol in library.exported_symbols}
        needed = set(library.libraries)
        versions = [
            tuple(map(int, version.name.removeprefix("GLIBC_").split(".")))
            for one in library.symbols_version_requirement
            for version in one.get_auxiliary_symbols()
        ]
        newest = max(versions)
        assert newest <= (2, 17), versions
        oldest = f"glibc {'.'.join(map(str, newest))}"
        assert not library.has(lief.ELF.DynamicEntry.TAG.RPATH)
        assert not library.has(lief.ELF.DynamicEntry.TAG.RUNPATH)
    else:
        machine = library.header.cpu_type.name
        exported = {symbol.name.removeprefix("_") for symbol in library.exported_symbols}
        exported -= {"_mh_dylib_header", "__dso_handle"}  # of the linker
        commands = {one.name: one.command.name for one in library.libraries}
        assert commands.pop(f"@rpath/libkernel{hook.RELEASED[name].ending}") == "ID_DYLIB"
        needed = set(commands)
        minimum = library.build_version.minos
        assert tuple(minimum[:2]) == (11, 0), minimum
        oldest = "macOS 11.0"
        # Apple silicon loads no library without a signature; one without a name suffices.
        assert library.has_code_signature or name != "macos-arm64"
    assert machine == MACHINES[name], (name, machine)
    assert exported == expected, (name, exported ^ expected)
    assert needed <= LIBRARIES[hook.RELEASED[name].ending], (name, needed)
    print(f"{name}: {len(data):,} bytes, {len(exported)} functions, needs {oldest}, {needed}")


def exported_names() -> set[str]:
    """Return the names that the sources of the kernel export."""
    texts = [(ROOT / source).read_text() for source in hook.SOURCES]
    return {
        name for text in texts for name in re.findall(r"^EXPORT \w+ (\w+)\(", text, re.MULTILINE)
    }


def check_choice(name: str, wheel: Path) -> None:
    """Check that the pip of such a machine chooses this wheel, also on a newer system."""
    platform = OTHER_PLATFORMS[name]
    with TemporaryDirectory() as folder:
        options = ("--no-index", "--no-deps", "--only-binary=:all:", "--python-version=3.11")
        where = (f"--find-links={DIST}", f"--platform={platform}", f"--dest={folder}")
        run(sys.executable, "-m", "pip", "download", "--quiet", *options, *where, PROJECT["name"])
        assert [path.name for path in Path(folder).iterdir()] == [wheel.name]


# Checking


def check() -> None:
    """Check all files of the release as their users meet them."""
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    cffconvert = Path(sys.executable).with_name("cffconvert")
    run(cffconvert, "--validate", "--infile", ROOT / "CITATION.cff")
    here = {*sys_tags()}
    (wheel,) = (path for path in DIST.glob("*.whl") if parse_wheel_filename(path.name)[3] & here)
    python = new_environment("from-wheel", wheel)
    use(python)
    run(python, "-m", "pip", "install", "--quiet", "pytest", "hypothesis", "pytest-xdist")
    # The program 'pytest', unlike 'python -m pytest', does not import the package from SOURCE.
    words = ("-q", "-p", "no:cacheprovider", "-m", "not long", "tests/golden")
    run(python.with_name("pytest"), *words, cwd=SOURCE)
    use(new_environment("from-sdist", DIST / SDIST))
    print(f"{PROJECT['name']} {PROJECT['version']}: all checks of the release passed.")


def new_environment(name: str, package: Path) -> Path:
    """Install a package alone into a new environment; return its Python."""
    folder = WORK / name
    run(sys.executable, "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", package)
    run(python, "-m", "pip", "check")
    return python


def use(python: Path) -> None:
    """Use the installed package from an empty folder."""
    with TemporaryDirectory() as folder:
        run(python, ROOT / ".ci" / "use_wheel.py", cwd=Path(folder))


if __name__ == "__main__":
    {"build": build, "check": check}[sys.argv[1]]()
