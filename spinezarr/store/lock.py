"""How does a store have one writer at a time, even if a writer dies or is suspended?

The holder of the lock renews a lock file in the store every few seconds. Another writer takes the
lock over at once if the holder was a process of the same machine that has ended. Otherwise it takes
over if the file has not been renewed for a minute, by the time in the file and by watching it. On
disk the file is created and replaced by hard link and rename, in a bucket by conditional requests
[1]_.

A holder that was suspended for longer and then resumes must not overwrite the files that another
writer has written since. On disk, the holder takes a shared ``flock`` [2]_ on the store's folder
for each change, and a writer that takes over needs an exclusive one. A bucket has no such lock, so
the holder checks the lock file before and after each change. If it finds afterwards that the lock
is lost, it writes a mark, and the next run looks through the whole store.

References
----------
.. [1] https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
.. [2] https://man7.org/linux/man-pages/man2/flock.2.html
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import fsspec
import psutil
from pydantic import ValidationError

from spinezarr.errors import LostLockError, StoreBusyError
from spinezarr.store.files import PARTIAL
from spinezarr.store.folder import StoreFileSystem
from spinezarr.strict_model import StrictModel
from spinezarr.text import add_path_to_disk_full_error

__all__ = ["LATE_FILE", "LOCK_FILE", "LOCK_TIMES", "LockGuard", "LockTimes", "StoreLock"]

LOCK_FILE: Final = "ingest.lock"
"""Name of the lock file."""
LATE_FILE: Final = "ingest.late"
"""Name of the mark that a run leaves if it wrote after it had lost the lock."""
_CLOCK_TOLERANCE_S: Final = 5.0
"""Largest difference of two readings of a process's start, as clocks are adjusted."""
_NO_FLOCK: Final = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Error numbers of file systems without ``flock``."""
_CONDITION_FAILED: Final = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
"""Error codes of a bucket for a request whose condition does not hold."""


@dataclass(frozen=True, slots=True)
class LockTimes:
    """The times of a lock, in seconds."""

    renew_s: float = 10.0
    """Time between two renewals of the lock file by its holder."""
    lease_s: float = 60.0
    """Time without a renewal after which the lock is free; it covers several failed renewals."""
    watch_s: float = 25.0
    """Time for which an old lock file is watched, as the clock of its machine may differ.

    It covers more than two renewals.
    """
    check_s: float = 5.0
    """Time between two checks by a worker that its run still holds the lock."""
    flock_s: float = 5.0
    """Time to wait for a ``flock`` of another process, which rarely holds it for a second."""


LOCK_TIMES: Final = LockTimes()
"""Default times of a lock."""


class _Holder(StrictModel):
    """Content of the lock file."""

    run_id: str
    operation: str
    host: str
    boot: str
    """Id of the machine's current boot, as process ids are reused after a reboot."""
    process: int
    process_started: float
    """Start of the process in seconds since 1970."""
    since: str
    renewed: float
    """Time of the last renewal in seconds since 1970, by the holder's clock."""

    @classmethod
    def parse(cls, data: bytes) -> "_Holder | None":
        """Parse a lock file; None if it is damaged, for example by a crash of the machine."""
        with suppress(ValidationError):
            return cls.model_validate_json(data)
        return None

    def to_file(self) -> bytes:
        return json.dumps(self.model_dump()).encode()

    def has_ended(self) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if (self.host, self.boot) != (socket.gethostname(), _boot_id()):
            return False
        started = _process_start_s(self.process)
        return started is None or abs(started - self.process_started) > _CLOCK_TOLERANCE_S

    def describe(self) -> str:
        return f"{self.operation} (process {self.process} on {self.host}, since {self.since})"


class StoreLock:
    """The lock of a store; a context manager that holds it.

    Parameters
    ----------
    fs
        File system of the store.
    folder
        Path of the store in ``fs``.
    url
        Path or URL of the store for messages.
    purpose
        Operation that needs the lock, such as "an ingest"; messages to other writers name it.
    times
        How often the lock is renewed, and when it is free.

    Raises
    ------
    StoreBusyError
        On entering, if another writer holds the lock; the message names it.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        folder: str,
        url: str,
        purpose: str,
        times: LockTimes = LOCK_TIMES,
    ) -> None:
        self._fs = fs
        self._path = f"{folder}/{LOCK_FILE}"
        self._url = url
        self._purpose = purpose
        self._times = times
        self.run_id = secrets.token_hex(16)
        self.took_over = False
        """Whether the lock was taken over from a dead writer, which may have left partial files."""
        self._since = ""
        self._content = b""
        self._lost = False
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="spinezarr-lock", daemon=True)

    def __enter__(self) -> Self:
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._acquire()
        if isinstance(self._fs, StoreFileSystem):
            _remove_partial(Path(self._path))
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._renewer.join()
        with suppress(OSError):
            if not self._lost and self._read() == self._content:
                self._fs.rm_file(self._path)

    @property
    def guard(self) -> "LockGuard":
        """Guard with which a worker, even on another machine, checks that the lock is held."""
        return LockGuard(self._fs, self._path, self._url, self.run_id, self._times)

    def _new_content(self) -> bytes:
        holder = _Holder(
            run_id=self.run_id,
            operation=self._purpose,
            host=socket.gethostname(),
            boot=_boot_id(),
            process=os.getpid(),
            process_started=psutil.Process().create_time(),
            since=self._since,
            renewed=time.time(),
        )
        return holder.to_file()

    def _acquire(self) -> None:
        while True:
            content = self._new_content()
            if _put(self._fs, self._path, content, None):
                self._content = content
                return
            current = self._read()
            if current is None:
                continue  # the other writer has just ended
            holder = _Holder.parse(current)
            if holder is not None and holder.run_id == self.run_id:
                self._content = current  # our own request succeeded, but its response was lost
                return
            if holder is not None and not holder.has_ended():
                self._wait_for_renewal(current, holder)
            content = self._new_content()
            try:
                with self._exclude_changes():
                    is_written = _put(self._fs, self._path, content, current)
            except BlockingIOError:
                writer = "the run before" if holder is None else holder.describe()
                raise StoreBusyError(
                    f"{self._url}: {writer} was stopped while it changed this store. Let it go on, "
                    "or end it. Then run the command again."
                ) from None
            if is_written:
                self._content, self.took_over = content, True
                return

    def _exclude_changes(self) -> AbstractContextManager[None]:
        """Return a context that waits for a change by the holder to end, and prevents new ones."""
        is_local = isinstance(self._fs, StoreFileSystem)
        if not is_local:
            return nullcontext()
        return _lock_folder(self._path, shared=False, wait_s=self._times.flock_s)

    def _wait_for_renewal(self, current: bytes, holder: _Holder) -> None:
        """Return if the holder does not renew the lock; raise StoreBusyError if it does."""
        age_s = time.time() - holder.renewed
        if age_s > self._times.lease_s or age_s < -_CLOCK_TOLERANCE_S:
            # If the holder's clock is ahead, the age is unknown. The file is then watched for a
            # whole lease.
            ends = time.monotonic() + (self._times.watch_s if age_s > 0 else self._times.lease_s)
            while time.monotonic() < ends:
                time.sleep(1)
                if self._read() != current:
                    break
            else:
                return
        raise StoreBusyError(
            f"{self._url}: {holder.describe()} is writing this store. Wait until it has ended. If "
            f"it has crashed, the store is free {self._times.lease_s:.0f} seconds after its last "
            "sign of life. Then run the command again."
        )

    def _read(self) -> bytes | None:
        try:
            data: bytes = self._fs.cat_file(self._path)
        except FileNotFoundError:
            return None
        return data

    def _renew(self) -> None:
        """Renew the lock file until the lock is released. It runs in its own thread."""
        renewed = time.monotonic()
        while not self._released.wait(self._times.renew_s):
            content = self._new_content()
            try:
                if _put(self._fs, self._path, content, self._content):
                    self._content, renewed = content, time.monotonic()
                    continue
                current = self._read()
                holder = None if current is None else _Holder.parse(current)
                if current is not None and holder is not None and holder.run_id == self.run_id:
                    self._content, renewed = current, time.monotonic()
                    continue
                self._lost = True
            except OSError:
                # The network may fail for a while, but not longer than the lease lasts.
                self._lost = time.monotonic() - renewed > self._times.lease_s
            if self._lost:
                return


class LockGuard:
    """Checks that a run still holds its lock, every few seconds and before each change.

    It can be pickled and sent to the process that writes.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        url: str,
        run_id: str,
        times: LockTimes = LOCK_TIMES,
    ) -> None:
        self._fs = fs
        self._path = path
        self._url = url
        self._token = run_id
        self._times = times
        self._checked: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LockGuard, (self._fs, self._path, self._url, self._token, self._times)

    def __call__(self, *, at_once: bool = False) -> None:
        """Check the lock file, unless it was checked a few seconds ago.

        Raises
        ------
        LostLockError
            If another writer has the lock, or the lock file is gone.
        """
        now = time.monotonic()
        if not at_once and self._checked is not None and now - self._checked < self._times.check_s:
            return
        try:
            holder = _Holder.parse(self._fs.cat_file(self._path))
        except FileNotFoundError:
            holder = None
        if holder is None or holder.run_id != self._token:
            raise LostLockError(
                f"{self._url}: another run has taken over writing this store, as this one gave no "
                f"sign of life for {self._times.lease_s:.0f} seconds. This run writes nothing "
                "more; look at the output of the other run."
            )
        self._checked = now

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Prevent other runs from taking the lock over while the store is changed in this context.

        Raises
        ------
        LostLockError
            If the lock is lost. It is raised on entering, before anything is changed. In a bucket
            it may also be raised on leaving; the next run then looks through the whole store.
        """
        if isinstance(self._fs, StoreFileSystem):
            with _lock_folder(self._path, shared=True, wait_s=self._times.flock_s):
                self(at_once=True)
                yield
            return
        self(at_once=True)
        yield
        try:
            self(at_once=True)
        except LostLockError:
            self._fs.pipe_file(f"{self._path.rpartition('/')[0]}/{LATE_FILE}", _LATE_TEXT)
            raise


_LATE_TEXT: Final = b"A run wrote to this store after another had taken it over.\n"


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes, expected: bytes | None) -> bool:
    """Write a file if its content is ``expected``, or, for None, if it is absent.

    Returns
    -------
    bool
        Whether the file was written.
    """
    if isinstance(fs, StoreFileSystem):
        return _put_on_disk(path, data, expected)
    condition: dict[str, Any] = {}
    if "s3" in _protocols(fs):
        if expected is None:
            condition = {"IfNoneMatch": "*"}
        else:
            tag = _tag_of(fs, path, expected)
            if tag is None:
                return False
            condition = {"IfMatch": tag}
    elif (fs.cat_file(path) if fs.exists(path) else None) != expected:
        return False
    try:
        fs.pipe_file(path, data, **condition)
    except OSError as problem:
        is_missing = expected is not None and isinstance(problem, FileNotFoundError)
        if is_missing or _is_condition_failed(problem):
            return False
        raise
    return True


def _tag_of(fs: fsspec.AbstractFileSystem, path: str, expected: bytes) -> str | None:
    """Return the entity tag of an object with this content; None if the content differs.

    The tag has no quotation marks, as Ceph 16 compares them too.
    """
    try:
        tag: str = fs.info(path)["ETag"].strip('"')
        content = fs.cat_file(path)
    except FileNotFoundError:
        return None
    return tag if content == expected else None


def _is_condition_failed(problem: OSError) -> bool:
    """Whether a bucket refused a request because its condition does not hold."""
    response = getattr(problem.__cause__, "response", None) or {}
    return (
        isinstance(problem, FileExistsError)
        or response.get("Error", {}).get("Code") in _CONDITION_FAILED
    )


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _remove_partial(lock: Path) -> None:
    """Delete unfinished lock files of killed writers; a live writer writes its own again."""
    for partial in lock.parent.glob(f"{lock.name}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def _put_on_disk(path: str, data: bytes, expected: bytes | None) -> bool:
    partial = Path(f"{path}.{secrets.token_hex(4)}{PARTIAL}")
    with add_path_to_disk_full_error(str(partial)):
        partial.write_bytes(data)
    try:
        if expected is None:
            return _link(partial, path)
        with _locked_content(path) as content:
            if content != expected:
                return False
            partial.replace(path)
            return True
    except FileNotFoundError:
        return False  # another writer got the lock and deleted this file as a leftover
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, path: str) -> bool:
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}:
            raise
        return _create(path, partial.read_bytes())  # the file system has no hard links
    return True


def _create(path: str, data: bytes) -> bool:
    try:
        with add_path_to_disk_full_error(path), Path(path).open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextmanager
def _locked_content(path: str) -> Iterator[bytes | None]:
    """Yield the content of a file, which other processes of this machine cannot replace meanwhile.

    It is None if the file is absent, or has just been replaced.
    """
    try:
        # NFS grants an exclusive lock only on a file that is open for writing.
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    with (
        os.fdopen(descriptor, "rb") as file,
        _hold_flock(descriptor, shared=False, wait_s=LOCK_TIMES.flock_s),
    ):
        try:
            is_current = os.fstat(descriptor).st_ino == Path(path).stat().st_ino
        except FileNotFoundError:
            is_current = False
        yield file.read() if is_current else None


@contextmanager
def _lock_folder(path: str, *, shared: bool, wait_s: float) -> Iterator[None]:
    """Hold a ``flock`` on the folder of a file while the context lasts.

    Raises
    ------
    BlockingIOError
        If other processes hold a lock for too long.
    """
    descriptor = os.open(path.rpartition("/")[0], os.O_RDONLY)
    try:
        with _hold_flock(descriptor, shared=shared, wait_s=wait_s):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def _hold_flock(descriptor: int, *, shared: bool, wait_s: float) -> Iterator[None]:
    """Hold a ``flock`` while the context lasts, if the file system has it.

    It is released explicitly, so that processes forked meanwhile do not keep it.
    """
    is_locked = _acquire_flock(descriptor, shared=shared, wait_s=wait_s)
    try:
        yield
    finally:
        if is_locked:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _acquire_flock(descriptor: int, *, shared: bool, wait_s: float) -> bool:
    """Wait for a ``flock``; return False if the file system has none."""
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    ends = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.005)
        except OSError as problem:
            if problem.errno not in _NO_FLOCK:
                raise
            return False
        else:
            return True


def _boot_id() -> str:
    """Return the id of this machine's current boot; empty if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _process_start_s(process: int) -> float | None:
    """Return the start of a process in seconds since 1970; None if there is no such process."""
    try:
        running = psutil.Process(process)
        return None if running.status() == psutil.STATUS_ZOMBIE else running.create_time()
    except psutil.NoSuchProcess:
        return None
