"""Which tokens does the server accept?

A file holds their hashes. A second file next to it holds the signing key of the server.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Final, Generic, TypeVar

from spinezarr.errors import UsageError

__all__ = ["NAME", "Tokens", "make_key", "new_token"]

T = TypeVar("T")

NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Pattern of the name of a token."""
_LINE: Final = re.compile(rf"({NAME})\s+sha256:([0-9a-f]{{64}})")
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_KEY_BYTES: Final = 32


class _WatchedFile(Generic[T]):
    """The parsed content of a file, which is read again when the file changes."""

    def __init__(self, path: Path, read: Callable[[Path], T]) -> None:
        self._path, self._read = path, read
        self._lock = Lock()
        self._content: tuple[tuple[int, int, int], T] | None = None

    def now(self) -> T:
        """Return the current content; raise OSError if the file cannot be read."""
        status = self._path.stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            if self._content is None or self._content[0] != version:
                self._content = version, self._read(self._path)
            return self._content[1]


class Tokens:
    """Hashes of tokens in a file, which is read again when it changes.

    The object is safe to share between threads.

    Parameters
    ----------
    path
        Path of a file with one line for each token: its name, and ``sha256:`` with the SHA-256 of
        the token in hexadecimal digits. A file with the same name and the ending ``.key`` holds
        the signing key.

    Raises
    ------
    UsageError
        If the file cannot be read, or a line is not valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = _WatchedFile(path, _hashes)
        self._key = _WatchedFile(_key_path(path), _key)
        self._current_hashes()

    @property
    def names(self) -> frozenset[str]:
        """Names of all tokens.

        Raises
        ------
        UsageError
            If the file cannot be read, or a line is not valid.
        """
        return frozenset(self._current_hashes())

    @property
    def key(self) -> str | None:
        """The signing key. None if there is no key; no session or signed URL is valid then."""
        try:
            return self._key.now()
        except (OSError, UsageError):
            return None

    def name_of(self, token: str) -> str | None:
        """Return the name of a token; None if its hash is not in the file now."""
        token_hash, matching_name = _hash(token), None
        for name, valid_hash in self._valid_hashes().items():
            if hmac.compare_digest(valid_hash, token_hash):
                matching_name = name
        return matching_name

    def hash_of(self, name: str) -> str | None:
        """Return the hash of the token of a name; None if the name is not in the file now."""
        return self._valid_hashes().get(name)

    def _valid_hashes(self) -> Mapping[str, str]:
        try:
            return self._current_hashes()
        except UsageError:  # nobody may read while the file is incomplete or absent
            return {}

    def _current_hashes(self) -> Mapping[str, str]:
        try:
            return self._hashes.now()
        except OSError as problem:
            raise UsageError(
                f"{self._path}: the token file cannot be read: {problem.strerror}."
            ) from problem


def new_token(path: Path, name: str) -> str:
    """Make a token, and add its hash to a file that only the owner of the file may read.

    Raises
    ------
    UsageError
        If the name is not valid, or is in the file already.
    """
    token = secrets.token_urlsafe(32)
    line = f"{name} sha256:{_hash(token)}"
    if not _LINE.fullmatch(line):
        raise UsageError(
            f"{name!r}: the name of a token may hold only letters, digits, '.', '_' and '-'."
        )
    path.touch(mode=0o600)
    if name in Tokens(path).names:
        raise UsageError(
            f"{path}: already has a token {name!r}. Choose another name, or delete its line."
        )
    make_key(path)
    with path.open("a") as file:
        file.write(f"{line}\n")
    return token


def make_key(tokens: Path) -> None:
    """Make the file with the signing key next to a token file, unless it exists.

    Only the owner of the file may read it.

    Raises
    ------
    UsageError
        If the file exists and holds no key.
    """
    path = _key_path(tokens)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _key(path)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(_KEY_BYTES)}\n")


def _key_path(tokens: Path) -> Path:
    return tokens.with_name(f"{tokens.name}.key")


def _key(path: Path) -> str:
    key = path.read_text("utf-8", "replace").strip()
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"{path}: holds no signing key. Delete it; --new-token or --sign then makes another. "
            "Sessions and URLs that were signed with the old key become invalid."
        )
    return key


def _hashes(path: Path) -> Mapping[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in hashes:
            raise UsageError(
                f"{path}, line {number}: is not a token; expected a unique name and 'sha256:' "
                "with 64 hexadecimal digits. Make a token with --new-token NAME."
            )
        hashes[match[1]] = match[2]
    return hashes


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
