"""Builds the kernel of the patch engine into the wheel, with the C compiler that is at hand.

Where there is none, the one of the package ``ziglang`` is installed for the time of the build. A
wheel without kernel works too, and reads more slowly; so what fails here is a warning.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("spinezarr") / "stream" / "kernel.c"
FLAGS = ("-O3", "-g0", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
ENDING = ".dylib" if sys.platform == "darwin" else ".so"


def compiler() -> list[str] | None:
    """Return the command of a C compiler of this machine, or None."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


def build_kernel(root: Path) -> Path:
    """Compile the kernel beside its source.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If that does not succeed.
    """
    source = root / SOURCE
    built = source.with_name(f"lib{source.stem}{ENDING}")
    command = compiler() or [sys.executable, "-m", "ziglang", "cc"]
    new = built.with_name(f"{built.name}.{os.getpid()}")
    try:
        # It appears at once: processes may be using the old one.
        subprocess.run([*command, *FLAGS, str(source), "-o", str(new)], check=True)  # noqa: S603
        new.replace(built)
    finally:
        new.unlink(missing_ok=True)
    return built


class KernelHook(BuildHookInterface):
    """Compiles the kernel for wheels and editable installs."""

    def dependencies(self) -> list[str]:
        """Return what the build needs to have installed."""
        return [] if compiler() else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, object]) -> None:  # noqa: ARG002
        """Build, and name the wheel after the platform."""
        try:
            built = build_kernel(Path(self.root))
        except (OSError, subprocess.CalledProcessError) as problem:
            self.app.display_warning(f"spinezarr is built without its kernel: {problem}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] = [f"/{built.relative_to(self.root).as_posix()}"]
