"""How much memory may the ingest of one scan use, and where does the rest of the data go?"""

import threading
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Final, Self

from typing_extensions import Buffer

from spinezarr.errors import UsageError

__all__ = ["Allowance", "MemoryBudget", "ScratchFile", "Workspace"]

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Memory that the ingest of one scan may use. The rest of the data goes to scratch files.

    The defaults keep a whole process, libraries included, below 700 MB.
    """

    strip_bytes: int = 4 * _MIB
    """Number of bytes that are read at once from a source file with large layers.

    At least one plane is read.
    """
    voxel_bytes: int = 192 * _MIB
    """Largest number of bytes of voxels that wait to be encoded."""
    encoded_bytes: int = 128 * _MIB
    """Largest number of bytes of encoded chunks that wait for the other chunks of their shard."""

    def share(self, part: int, total: int) -> "MemoryBudget":
        """Return ``part`` of ``total`` equal shares, for volumes that are encoded together.

        Examples
        --------
        >>> MemoryBudget(300, 600, 900).share(2, 3)
        MemoryBudget(strip_bytes=200, voxel_bytes=400, encoded_bytes=600)
        """
        return MemoryBudget(
            self.strip_bytes * part // total,
            self.voxel_bytes * part // total,
            self.encoded_bytes * part // total,
        )


class Allowance:
    """Counts held bytes against a limit. Threads may share it.

    Examples
    --------
    >>> allowance = Allowance(100)
    >>> allowance.try_reserve(60), allowance.try_reserve(60)
    (True, False)
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes: Final = limit_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()

    def try_reserve(self, size_bytes: int) -> bool:
        """Reserve bytes unless they exceed the limit; return whether they were reserved."""
        with self._lock:
            fits = self._held_bytes + size_bytes <= self.limit_bytes
            if fits:
                self._held_bytes += size_bytes
        return fits

    def reserve(self, size_bytes: int) -> None:
        """Reserve bytes even beyond the limit."""
        with self._lock:
            self._held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Release bytes that were reserved."""
        with self._lock:
            self._held_bytes -= size_bytes


class Workspace:
    """Memory and scratch space for encoding one volume.

    Parameters
    ----------
    budget
        Limits on memory.
    scratch
        Folder of the scratch files. If None, the system's temporary folder (``TMPDIR``).
    """

    def __init__(self, budget: MemoryBudget | None = None, scratch: str | None = None) -> None:
        budget = budget or MemoryBudget()
        self.strip_bytes: Final = budget.strip_bytes
        self.voxels: Final = Allowance(budget.voxel_bytes)
        self.encoded: Final = Allowance(budget.encoded_bytes)
        self.scratch: Final = scratch


class ScratchFile:
    """An unnamed file that is removed when it is closed. Threads may share it.

    It is not mapped into memory, because mapped pages would count as memory of the process.

    Raises
    ------
    UsageError
        From any method, if the folder cannot be written or is full.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        try:
            file = TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  closed by close()
        except OSError as problem:
            raise self._unwritable_error(problem) from problem
        self._file = file

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        try:
            with self._lock:
                self._file.seek(offset)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as problem:
            raise self._unwritable_error(problem) from problem

    def read_at(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with the bytes that were written there."""
        view = memoryview(out).cast("B")
        with self._lock:
            self._file.seek(offset)
            while view:
                n_bytes = self._file.readinto(view)
                if not n_bytes:
                    raise RuntimeError("a scratch file is shorter than the data written to it")
                view = view[n_bytes:]

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unwritable_error(self, problem: OSError) -> UsageError:
        folder = self._folder or "the system's folder for temporary files"
        return UsageError(
            f"{folder}: cannot hold scratch files: {problem.strerror or problem}. "
            "Name a folder with free space by --scratch."
        )
