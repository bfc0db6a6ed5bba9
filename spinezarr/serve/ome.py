"""How is a scan read as an OME-Zarr image?

Its files are below ``/ome/<store>/<scan_id>.ome.zarr/``. The tree below
``/ome/<store>/itk/<scan_id>.ome.zarr/`` is the same image with translations that ITK and Slicer
interpret correctly.

Level 0 is the stored array, byte for byte. Coarser levels and all metadata are computed on request,
see :mod:`spinezarr.view.ome`.
"""

import json
from typing import Any, Final

import numpy.typing as npt

from spinezarr.errors import CorruptStoreError, DamagedMetadataError, ScanChangedError
from spinezarr.geometry import Box
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.served_files import (
    GoneError,
    ServedFile,
    ServedFolder,
    ServedScan,
    UnreadableError,
    chunk_index,
)
from spinezarr.serve.storage import VersionCache
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.layout import IMAGE, METADATA, chunk_grid, scan_key
from spinezarr.store.scan_handle import ArraySpec, ScanHandle, parse_scan
from spinezarr.stream.read.retry import retry_if_rewritten
from spinezarr.view.levels import LevelCache, LevelReader, piece_shape_zyx
from spinezarr.view.ome import (
    FOLDER_SUFFIX,
    ITK,
    OmeKey,
    OmeTree,
    encode_piece,
    ome_tree,
    parse_ome_key,
)

__all__ = ["OmeFolder"]

_CACHED_TREES: Final = 256


class OmeFolder:
    """The scans of a store as OME-Zarr images; safe to share between threads.

    Parameters
    ----------
    folder
        Files of the store.
    patches
        Reads the voxels of the store.
    cache
        Cache of pieces of coarse levels, shared with other stores.
    """

    def __init__(self, folder: ServedFolder, patches: PatchSource, cache: LevelCache) -> None:
        self._folder = folder
        self._patches = patches
        self._cache = cache
        self._trees: VersionCache[OmeTree] = VersionCache(_CACHED_TREES)

    def find(self, key: str, version: str | None = None) -> ServedFile | None:
        """See :meth:`spinezarr.serve.served_files.ServedFolder.find`."""
        for_itk = key.startswith(f"{ITK}/")
        first, _, key_in_image = key.removeprefix(f"{ITK}/").partition("/")
        scan_id = first.removesuffix(FOLDER_SUFFIX)
        if scan_id == first or not is_scan_id(scan_id) or not key_in_image:
            return None
        scan = self._folder.scan(scan_id, version)
        if scan is None:
            if key_in_image.endswith(METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store any more.")
        folder, _, name = key_in_image.rpartition("/")
        if name == METADATA:
            node = self._tree(scan_id, scan, for_itk=for_itk).nodes.get(folder)
            return None if node is None else ServedFile.of(json.dumps(node).encode())
        ome_key = parse_ome_key(key_in_image)
        if ome_key is None or not ome_key.key_in_level.startswith(("c/", "c.")):
            return None  # some clients look for chunk keys of Zarr v2
        if ome_key.level > 0:
            return self._chunk(scan_id, scan, ome_key)
        return self._folder.find(
            f"{scan_key(scan_id)}/{ome_key.array}/{ome_key.key_in_level}", version
        )

    def _tree(self, scan_id: str, scan: ServedScan, *, for_itk: bool = False) -> OmeTree:
        cached = self._trees.find((scan_id, for_itk))
        if cached is not None and cached[0] == scan.identity:
            return cached[1]
        file = self._folder.metadata(scan_id, scan)
        data = file.read(0, file.size_bytes)
        nodes = json.loads(data)["consolidated_metadata"]["metadata"]
        try:
            parsed = parse_scan(data, "")
        except DamagedMetadataError as problem:
            raise UnreadableError(f"the metadata of {scan_id!r} are damaged.") from problem
        tree = ome_tree(
            parsed,
            nodes,
            for_itk=for_itk,
            coarsest_voxels=self._patches.limits.coarsest_level_voxels,
        )
        self._trees.keep((scan_id, for_itk), scan.identity, tree)
        return tree

    def _chunk(self, scan_id: str, scan: ServedScan, key: OmeKey) -> ServedFile | None:
        """Return a chunk of a coarse level; None if it is background."""
        levels = self._tree(scan_id, scan).levels
        is_present = key.array in scan.group.arrays.volumes
        if not is_present or key.level >= len(levels):  # an older version of the scan had it
            raise GoneError(f"scan {scan_id!r} has no such level any more.")
        level = levels[key.level]
        reader, engine = self._patches.reader_and_engine([scan_id])

        def read() -> tuple[ArraySpec, npt.NDArray[Any]]:
            current: ScanHandle = reader.scan(scan_id)
            versions = current.content_checksum, current.mask_checksums.get(key.array)
            if versions != (scan.content_checksum, scan.mask_checksums.get(key.array)):
                raise UnreadableError(f"scan {scan_id!r} is being replaced.")
            array = current.image.unscaled() if key.array == IMAGE else current.mask(key.array)
            piece_zyx = piece_shape_zyx(array)
            index = chunk_index(
                key.key_in_level, array.separator, chunk_grid(level.shape_zyx, piece_zyx)
            )
            if index is None:
                raise GoneError(f"scan {scan_id!r} has no such chunk any more.")
            z, y, x = (i * n for i, n in zip(index, piece_zyx, strict=True))
            box = Box.at((z, y, x), piece_zyx).intersect(level.box) or level.box
            return array, LevelReader(engine, reader.url, self._cache).read(array, level, box)

        try:
            array, piece = retry_if_rewritten(read)
        except ScanChangedError as problem:
            raise UnreadableError(f"scan {scan_id!r} is being replaced.") from problem
        except CorruptStoreError as problem:
            raise UnreadableError(f"scan {scan_id!r} is damaged.") from problem
        data = encode_piece(array, piece)
        return None if data is None else ServedFile.of(data)
