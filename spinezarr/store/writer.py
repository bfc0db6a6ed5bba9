"""Writing a store: scans one by one, each visible only when it is whole; then the table."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import fsspec
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import Buffer

from spinezarr.errors import CorruptStoreError, ReadOnlyStoreError, UsageError
from spinezarr.geometry import axis_positions_mm
from spinezarr.store.attributes import (
    ManifestEntry,
    OtherFormatError,
    RootAttributes,
    ScanAttributes,
    parse_root,
    seal,
    unseal,
)
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog
from spinezarr.store.files import (
    PARTIAL,
    is_read_only,
    open_filesystem,
    publish_file,
    remove_folder,
    replace_folder,
    superseded,
    write_file,
    write_parts,
)
from spinezarr.store.layout import FORMAT_VERSION, LABEL_CHUNKS, SCANS, TABLE, scan_key
from spinezarr.store.metadata import root_files, scan_files, table_files
from spinezarr.store.sharding import crc32c
from spinezarr.store.table import build_table, with_audit
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["ScanWriter", "StoreWriter"]

_METADATA: Final = "zarr.json"


class StoreWriter:
    """Writes one dataset's store.

    Parameters
    ----------
    url
        Path or URL of the store.
    root
        The dataset; a store that exists must be of the same one.

    Raises
    ------
    UsageError
        If something else lies at ``url``.
    """

    def __init__(self, url: str, root: RootAttributes) -> None:
        self.url = url
        self.root = root
        self._fs, self._path = open_filesystem(url)
        self._claim()

    def _claim(self) -> None:
        metadata = f"{self._path}/{_METADATA}"
        files = root_files(self.root.model_dump(mode="json"))
        if self._fs.exists(metadata):
            if self._root_of_same_dataset(metadata) != self.root:
                publish_file(self._fs, metadata, files[_METADATA])
        elif self._taken():
            raise UsageError(
                f"{self.url}: exists and is not a store. Choose an empty or new folder."
            )
        else:
            publish_file(self._fs, metadata, files[_METADATA])
        for key, data in files.items():
            if not self._fs.exists(f"{self._path}/{key}"):
                publish_file(self._fs, f"{self._path}/{key}", data)

    def _root_of_same_dataset(self, metadata: str) -> RootAttributes:
        try:
            found = parse_root(self._fs.cat_file(metadata))
        except OtherFormatError as problem:
            raise UsageError(
                f"{self.url}: is a store in format {problem.version}, not {FORMAT_VERSION}. "
                "Choose another place, or a matching version of spinezarr."
            ) from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise UsageError(
                f"{self.url}: is a Zarr group that this spinezarr did not write. "
                "Choose another place for the store."
            ) from problem
        if _identity(found) != _identity(self.root):
            raise UsageError(
                f"{self.url}: holds {_describe(found)}, not {_describe(self.root)}. "
                "One store holds one dataset: choose another place."
            )
        return found

    def _taken(self) -> bool:
        """Whether anything lies there but the beginning of a store that was cut off."""
        if not self._fs.exists(self._path):
            return False
        if self._fs.isfile(self._path):
            return True
        names = {path.rsplit("/", 1)[1] for path in self._fs.ls(self._path, detail=False)}
        return bool(names - {_METADATA + PARTIAL})

    def whole_scan(self, scan_id: str) -> ScanAttributes | None:
        """Return a scan's attributes if it is published and every file of it has its size."""
        folder = f"{self._path}/{scan_key(scan_id)}"
        try:
            attributes = unseal(self._fs.cat_file(f"{folder}/{_METADATA}"))["attributes"]
            scan = ScanAttributes.model_validate_json(json.dumps(attributes))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        sizes = {
            path[len(folder) + 1 :]: info["size"]
            for path, info in self._fs.find(folder, detail=True).items()
        }
        whole = all(sizes.get(key) == entry.size_bytes for key, entry in scan.manifest.items())
        return scan if whole else None

    def published(self) -> list[ScanAttributes]:
        """Return all whole scans of the store; put back those that a killed run was replacing."""
        folder = f"{self._path}/{SCANS}"
        paths = [path.rstrip("/") for path in self._fs.ls(folder, detail=False)]
        names = {path.rsplit("/", 1)[1] for path in paths}
        for name in sorted(names):
            scan_id = name.removesuffix(superseded(""))
            if scan_id != name and scan_id not in names:
                self._fs.mv(f"{folder}/{name}", f"{folder}/{scan_id}", recursive=True)
                names.add(scan_id)
        found = [self.whole_scan(name) for name in names if not name.endswith(PARTIAL)]
        return [scan for scan in found if scan is not None]

    def new_scan(self, scan_id: str) -> "ScanWriter":
        """Start a scan from nothing.

        One that is published stays as it is until the new one is; what a cut-off run left of it is
        removed.
        """
        place = f"{self._path}/{scan_key(scan_id)}"
        remove_folder(self._fs, place + PARTIAL)
        if self._fs.exists(f"{place}/{_METADATA}"):
            return ScanWriter(self._fs, place + PARTIAL, place)
        remove_folder(self._fs, place)
        return ScanWriter(self._fs, place, place)

    def amend(self, scan: ScanAttributes) -> ScanAttributes:
        """Write the metadata of a published scan anew; its voxels stay as they are.

        Returns
        -------
        ScanAttributes
            What is published now: the manifest names the new metadata.
        """
        folder = f"{self._path}/{scan_key(scan.scan_id)}"
        arrays = unseal(self._fs.cat_file(f"{folder}/{_METADATA}"))["consolidated_metadata"][
            "metadata"
        ]
        label_chunks = None
        if LABEL_CHUNKS in arrays:
            label_chunks = np.zeros(arrays[LABEL_CHUNKS]["shape"], np.uint32)
        # The sampling's voxel counts stay too: only the metadata are taken of what is made here.
        files = _small_files(scan, label_chunks)
        manifest = dict(scan.manifest)
        for key, data in files.items():
            entry = ManifestEntry.of(data)
            if key.endswith(f"/{_METADATA}") and manifest[key] != entry:
                publish_file(self._fs, f"{folder}/{key}", data)
                manifest[key] = entry
        scan = scan.model_copy(update={"manifest": manifest})
        metadata = {**json.loads(files[_METADATA]), "attributes": scan.to_json()}
        publish_file(self._fs, f"{folder}/{_METADATA}", seal(metadata))
        return scan

    def write_table(self, scans: Iterable[ScanAttributes]) -> None:
        """Write the scan table anew and put it in the place of the old one.

        Raises
        ------
        CorruptStoreError
            If the results of the last audit, which the table shows, are damaged.
        """
        rows = list(scans)
        audited = self.audit_log().current({scan.scan_id: scan for scan in rows})
        self._replace_table(build_table(self.root, rows, audited))

    def _replace_table(self, table: xr.Dataset) -> None:
        place = f"{self._path}/{TABLE}"
        new = place + PARTIAL
        remove_folder(self._fs, new)
        for key, data in table_files(table).items():
            write_file(self._fs, f"{new}/{key}", data)
        replace_folder(self._fs, new, place)

    def audit_log(self) -> AuditLog:
        """Read what the last audits found; empty if there was none.

        Raises
        ------
        CorruptStoreError
            If it is damaged.
        """
        path = f"{self._path}/{AUDIT_FILE}"
        try:
            return AuditLog.of_file(self._fs.cat_file(path))
        except FileNotFoundError:
            return AuditLog()
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CorruptStoreError(
                f"{path}: is not what spinezarr writes ({problem}). "
                f"Run 'spinezarr audit {self.url}' over all scans again: it writes it anew."
            ) from problem

    def write_audit(
        self, log: AuditLog, table: xr.Dataset, scans: Mapping[str, ScanAttributes]
    ) -> None:
        """Keep the results of an audit, then show them in the scan table.

        Parameters
        ----------
        log
            All results.
        table
            The scan table as it was read; keeps its rows.
        scans
            What the store holds of the scans in ``log``.

        Raises
        ------
        ReadOnlyStoreError
            If the store cannot be written.
        """
        try:
            if is_read_only(self._fs):
                raise PermissionError("web servers are only read")
            publish_file(self._fs, f"{self._path}/{AUDIT_FILE}", log.to_file())
        except (OSError, NotImplementedError) as problem:
            raise ReadOnlyStoreError(f"{self.url}: cannot be written: {problem}.") from problem
        self._replace_table(with_audit(table, log.current(scans)))


def _identity(root: RootAttributes) -> tuple[str, str]:
    return root.dataset, root.title


def _describe(root: RootAttributes) -> str:
    return f"the dataset {root.dataset!r} ({root.title})"


def _small_files(
    scan: ScanAttributes, label_chunks: npt.NDArray[np.uint32] | None
) -> dict[str, bytes]:
    """Return all files of a scan but its shards; the attributes of its group are left out."""
    values = {VALUE_OF_NAME[name] for name in scan.vertebrae} | set(map(int, scan.other_labels))
    return scan_files(
        shape_zyx=scan.shape_zyx,
        image_dtype=np.dtype(scan.image_dtype),
        coordinates_mm=axis_positions_mm(np.array(scan.affine), scan.shape_zyx),
        label_chunks=label_chunks,
        label_values=tuple(sorted(values)),
        structures=scan.structures,
    )


class ScanWriter:
    """Writes one scan; nothing of it is visible before :meth:`publish`.

    Parameters
    ----------
    fs
        Where the store lies.
    folder
        Where the files go.
    place
        Where the scan is published; the folder itself, unless a scan lies there already.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, place: str) -> None:
        self._fs = fs
        self._folder = folder
        self._place = place
        self._manifest: dict[str, ManifestEntry] = {}

    def write(self, key: str, data: bytes) -> None:
        """Write a file of the scan and enter it in the manifest."""
        write_file(self._fs, f"{self._folder}/{key}", data)
        self._manifest[key] = ManifestEntry.of(data)

    def write_parts(self, key: str, parts: Iterable[Buffer]) -> None:
        """Write a file of the scan as its parts come; may be called from several threads."""
        size_bytes, checksum = 0, 0

        def counted() -> Iterator[Buffer]:
            nonlocal size_bytes, checksum
            for part in parts:
                size_bytes += memoryview(part).nbytes
                checksum = crc32c(part, checksum)
                yield part

        write_parts(self._fs, f"{self._folder}/{key}", counted())
        self._manifest[key] = ManifestEntry(size_bytes=size_bytes, crc32c=f"{checksum:08x}")

    def publish(
        self, facts: Mapping[str, Any], label_chunks: npt.NDArray[np.uint32] | None
    ) -> ScanAttributes:
        """Write what is left and, last of all, the metadata that make the scan visible.

        Parameters
        ----------
        facts
            Fields of :class:`~spinezarr.store.attributes.ScanAttributes` but the manifest.
        label_chunks
            See :func:`spinezarr.store.metadata.scan_files`.
        """
        scan = ScanAttributes.model_validate({**facts, "manifest": {}})
        files = _small_files(scan, label_chunks)
        metadata = json.loads(files.pop(_METADATA))
        for key, data in files.items():
            self.write(key, data)
        scan = scan.model_copy(update={"manifest": dict(sorted(self._manifest.items()))})
        metadata["attributes"] = scan.to_json()
        publish_file(self._fs, f"{self._folder}/{_METADATA}", seal(metadata))
        if self._folder != self._place:
            replace_folder(self._fs, self._folder, self._place)
        return scan

    def discard(self) -> None:
        """Remove what has been written; a scan that was published before stays."""
        remove_folder(self._fs, self._folder)
