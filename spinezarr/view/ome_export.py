"""How is a scan written as an OME-Zarr image to a folder or bucket?

The shards of image and masks are copied unchanged, and each is compared with its checksum. On file
systems with reflinks, a copy shares the blocks of the original. Hard links save as much space on
every file system. They are made on request. An S3 service copies the shards of a store that it has,
and reports their checksums. Coarse levels become arrays. On disk, an image gets its
name when it is complete. In a bucket, the ``zarr.json`` of the image is written last.
"""

import errno
import json
import math
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import CorruptStoreError, DamagedMetadataError, UsageError
from spinezarr.export.atomic_file import check_not_link
from spinezarr.export.nifti import ExportedScan
from spinezarr.geometry import Box
from spinezarr.redaction import redact_url
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.files import PARTIAL, is_read_only
from spinezarr.store.layout import METADATA, chunk_grid, scan_key
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.objects import LocalObjects
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle, parse_scan
from spinezarr.store.sharding import crc32
from spinezarr.stream.read.engine import Engine
from spinezarr.text import add_path_to_disk_full_error
from spinezarr.view.levels import COARSEST_VOXELS, Level, LevelReader, piece_shape_zyx
from spinezarr.view.ome import (
    FOLDER_SUFFIX,
    OmeTree,
    encode_piece,
    is_oblique,
    levels_folder,
    ome_tree,
)

__all__ = ["export_ome_zarr", "ome_zarr_location"]

OnBytes = Callable[[int], None]

_BLOCK_BYTES: Final = 4 << 20
"""Bytes that are copied at once."""
_FICLONE: Final = 0x40049409
"""The ioctl that lets a file share the blocks of another, see ioctl_ficlone(2)."""
_OLD_SUFFIX: Final = ".old"
"""Ending of a folder that is being replaced."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file of a scan, with its entry in the manifest."""

    path: str
    entry: ManifestEntry


def ome_zarr_location(out: str | os.PathLike[str], scan_id: str) -> str:
    """Return the path or URL of the exported image of a scan.

    Examples
    --------
    >>> ome_zarr_location("s3://lab/viewers/", "liver_0")
    's3://lab/viewers/liver_0.ome.zarr'
    """
    return f"{os.fspath(out).rstrip('/') or '/'}/{scan_id}{FOLDER_SUFFIX}"


def export_ome_zarr(
    reader: StoreReader,
    engine: Engine,
    scan_id: str,
    out: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    link: bool = False,
    overwrite: bool = False,
    masks: Collection[str] | None = None,
    on_bytes: OnBytes = lambda _: None,
    coarsest_voxels: int = COARSEST_VOXELS,
) -> ExportedScan:
    """Write a scan as an OME-Zarr image; see :meth:`spinezarr.Store.export_ome_zarr`."""
    reader.scan(scan_id)  # raises the error if the scan is damaged
    folder = f"{reader.path}/{scan_key(scan_id)}"
    data = reader.objects.read([f"{folder}/{METADATA}"]).get(f"{folder}/{METADATA}", b"")
    try:
        scan = parse_scan(data, folder)
    except DamagedMetadataError as problem:
        raise CorruptStoreError(f"{folder}/{METADATA}: is damaged ({problem}).") from problem
    stored = json.loads(data)["consolidated_metadata"]["metadata"]
    tree = ome_tree(scan, stored, masks=masks, coarsest_voxels=coarsest_voxels)
    written = [scan.mask(name) for name in scan.mask_names if masks is None or name in masks]
    target_location = ome_zarr_location(out, scan_id)
    with _target(target_location, storage_options, link=link, overwrite=overwrite) as target:
        for array in (scan.image, *written):
            for level in tree.levels:
                level_folder = f"{levels_folder(array.name)}{level.level}/"
                if level.level == 0:
                    _copy_shards(reader, scan, array, level_folder, target, on_bytes=on_bytes)
                else:
                    _write_level(engine, array, level, level_folder, target)
        target.finish(_metadata(tree))
    notes = []
    if is_oblique(scan):
        notes.append(
            f"{scan_id}{FOLDER_SUFFIX}: {tree.nodes['']['attributes']['spinezarr']['warning']}"
        )
    return ExportedScan(scan_id, (redact_url(target_location),), tuple(notes))


def _metadata(tree: OmeTree) -> Iterator[tuple[str, bytes]]:
    """Yield key and content of each ``zarr.json``; the one of the image comes last."""
    for node_path, node in sorted(tree.nodes.items(), key=lambda item: item[0], reverse=True):
        yield f"{node_path}/{METADATA}".lstrip("/"), json.dumps(node).encode()


def _copy_shards(
    reader: StoreReader,
    scan: ScanHandle,
    array: ArraySpec,
    level_folder: str,
    target: "_Target",
    *,
    on_bytes: OnBytes,
) -> None:
    """Copy the shards of an array."""
    manifest = scan.attributes.manifest
    voxel_bytes = math.prod(array.shape_zyx) * array.stored_dtype.itemsize
    all_bytes = sum(array.shard_sizes.values())
    copied_bytes = reported = 0
    for index, size in array.shard_sizes.items():
        key = chunk_key(index, array.separator)
        shard = _Shard(array.shard_path(index), manifest[f"{array.name}/{key}"])
        target.copy(reader, shard, level_folder + key)
        copied_bytes += size
        on_bytes(voxel_bytes * copied_bytes // all_bytes - reported)
        reported = voxel_bytes * copied_bytes // all_bytes
    on_bytes(voxel_bytes - reported)


def _write_level(
    engine: Engine, array: ArraySpec, level: Level, level_folder: str, target: "_Target"
) -> None:
    """Compute a coarse level of an array, and write it."""
    unscaled, levels = array.unscaled(), LevelReader(engine)
    piece_zyx = piece_shape_zyx(unscaled)
    for index in product(*map(range, chunk_grid(level.shape_zyx, piece_zyx))):
        z, y, x = (i * n for i, n in zip(index, piece_zyx, strict=True))
        box = Box.at((z, y, x), piece_zyx).intersect(level.box) or level.box
        data = encode_piece(unscaled, levels.read(unscaled, level, box))
        if data is not None:
            target.write(level_folder + chunk_key(index, array.separator), data)


class _Target(ABC):
    """A folder or bucket in which an image is written."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a file."""

    @abstractmethod
    def copy(self, reader: StoreReader, shard: _Shard, key: str) -> None:
        """Copy a file of the store.

        Raises
        ------
        CorruptStoreError
            If the file is not the one that the manifest of the scan describes.
        """

    def finish(self, metadata: Iterator[tuple[str, bytes]]) -> None:
        """Write the metadata of the image, which makes it visible."""
        for key, data in metadata:
            self.write(key, data)


@contextmanager
def _target(
    location: str, options: Mapping[str, Any] | None, *, link: bool, overwrite: bool
) -> Iterator[_Target]:
    fs, path = open_filesystem(location, options)
    if isinstance(fs, LocalFileSystem):
        with _on_disk(Path(path), link=link, overwrite=overwrite) as folder:
            yield folder
        return
    if is_read_only(fs):
        raise UsageError(f"{redact_url(location)}: images cannot be written to a web server.")
    if link:
        raise UsageError(f"{redact_url(location)}: hard links (--link) need a folder on disk.")
    if fs.exists(f"{path}/{METADATA}"):
        if not overwrite:
            raise _exists_error(redact_url(location))
        # Without its metadata, the old image is not visible while it is replaced.
        fs.rm_file(f"{path}/{METADATA}")
        others = fs.find(path)
        if others:
            fs.rm(others)
    yield _Bucket(fs, path)


def _exists_error(location: str) -> UsageError:
    return UsageError(
        f"{location}: exists already. Choose another place, or replace it (--overwrite)."
    )


@contextmanager
def _on_disk(path: Path, *, link: bool, overwrite: bool) -> Iterator["_Folder"]:
    """Yield a temporary folder, which is renamed to ``path`` at the end."""
    check_not_link(path)
    if path.exists() and not overwrite:
        raise _exists_error(str(path))
    if path.exists() and not (path / METADATA).exists():
        raise UsageError(
            f"{path}: is not an OME-Zarr image, so it is not replaced. Choose another folder."
        )
    partial, old = (path.with_name(path.name + suffix) for suffix in (PARTIAL, _OLD_SUFFIX))
    for leftover in (partial, old):
        check_not_link(leftover)
        shutil.rmtree(leftover, ignore_errors=True)  # a killed run may have left it
    try:
        partial.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as problem:
        raise UsageError(
            f"{problem.filename}: a file with this name exists. Choose another folder."
        ) from problem
    try:
        yield _Folder(partial, link=link)
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            with suppress(FileNotFoundError):
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


class _Bucket(_Target):
    """Objects of a bucket below a path."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        self._service_copies = True
        """Whether the service copies objects and reports their checksums, as far as known."""

    def write(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._path}/{key}", data)

    def copy(self, reader: StoreReader, shard: _Shard, key: str) -> None:
        if not (self._has_store(reader) and self._copy_in_service(shard, key)):
            self.write(key, _read_checked(reader, shard))

    def _has_store(self, reader: StoreReader) -> bool:
        """Whether the S3 service of this bucket also has a store, for the same credentials."""
        if not reader.url.startswith(("s3://", "s3a://")):
            return False
        fs, _ = open_filesystem(reader.url, reader.storage_options)
        return bool(fs == self._fs)

    def _copy_in_service(self, shard: _Shard, key: str) -> bool:
        """Let the service copy a file; return whether the copy is what the manifest describes."""
        if not self._service_copies:
            return False
        try:
            checksum = self._fs.copy_in_service(shard.path, f"{self._path}/{key}")
        except OSError:  # not offered, or not permitted; reading the file shows other causes
            checksum = None
        self._service_copies = checksum is not None
        return checksum is not None and f"{checksum:08x}" == shard.entry.crc32


class _Folder(_Target):
    """Files below a temporary folder that no other process writes to."""

    def __init__(self, path: Path, *, link: bool) -> None:
        self._path = path
        self._link = link

    def write(self, key: str, data: bytes) -> None:
        path = self._prepared_path(key)
        with add_path_to_disk_full_error(str(path)):
            path.write_bytes(data)

    def copy(self, reader: StoreReader, shard: _Shard, key: str) -> None:
        if not isinstance(reader.objects, LocalObjects):
            if self._link:
                raise UsageError(f"{reader.name}: is not on disk, so --link cannot be used.")
            self.write(key, _read_checked(reader, shard))
            return
        path = self._prepared_path(key)
        with _shard_file(reader.objects, shard) as source:
            if self._link:
                _link(shard.path, path)
                _check_and_copy(source, shard)
                return
            with add_path_to_disk_full_error(str(path)), path.open("xb") as file:
                is_shared = _share_blocks(source, file)
                _check_and_copy(source, shard, None if is_shared else file)

    def _prepared_path(self, key: str) -> Path:
        path = self._path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def _shard_file(objects: LocalObjects, shard: _Shard) -> Iterator[BinaryIO]:
    try:
        with objects.folder.opened(shard.path) as file:
            yield file
    except FileNotFoundError as problem:
        raise _damaged(shard) from problem


def _link(source: str, path: Path) -> None:
    try:
        path.hardlink_to(source)
    except OSError as problem:
        if problem.errno not in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            raise
        raise UsageError(
            f"{path}: cannot be linked to a file of the store: {os.strerror(problem.errno)}. "
            "Choose a folder on the disk of the store, or leave out --link."
        ) from problem


def _share_blocks(source: BinaryIO, file: BinaryIO) -> bool:
    """Let a new file share the blocks of another; return whether the file system supports it."""
    if sys.platform != "linux":
        return False
    from fcntl import ioctl  # noqa: PLC0415  not on every system

    try:
        ioctl(file.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _check_and_copy(source: BinaryIO, shard: _Shard, copy: BinaryIO | None = None) -> None:
    """Read a whole file, compare it with the manifest, and write it to ``copy``, if given."""
    size = checksum = 0
    while block := source.read(_BLOCK_BYTES):
        size, checksum = size + len(block), crc32(block, checksum)
        if copy is not None:
            copy.write(block)
    if (size, f"{checksum:08x}") != (shard.entry.size_bytes, shard.entry.crc32):
        raise _damaged(shard)


def _read_checked(reader: StoreReader, shard: _Shard) -> bytes:
    """Return the bytes of a remote file, which is read again if it arrives damaged."""
    size = shard.entry.size_bytes
    for _ in range(1 + reader.objects.rereads):
        data = reader.objects.read([shard.path], size + 1).get(shard.path, b"")
        if (len(data), f"{crc32(data):08x}") == (size, shard.entry.crc32):
            return data
    raise _damaged(shard)


def _damaged(shard: _Shard) -> CorruptStoreError:
    return CorruptStoreError(
        f"{shard.path}: differs from the manifest of the scan. Copy the store again, or run the "
        "same 'spinezarr ingest' or 'spinezarr derive' again with --repair."
    )
