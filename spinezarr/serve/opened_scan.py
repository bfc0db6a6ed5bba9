"""How is one version of a scan opened for a picture, level or file?"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from spinezarr.errors import CorruptStoreError, UnknownMaskError, UnknownScanError
from spinezarr.serve.http import text_answer
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.version_headers import RefusedError
from spinezarr.store.layout import is_mask_name
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.engine import Engine

__all__ = ["NO_SCAN", "OpenedScan", "mask_of"]

NO_SCAN: Final = text_answer(HTTPStatus.NOT_FOUND, "There is no such scan.")


@dataclass(frozen=True, slots=True, eq=False)
class OpenedScan:
    """One version of a scan, with the reader and engine for its voxels."""

    scan: ScanHandle
    reader: StoreReader
    engine: Engine

    @classmethod
    def of(cls, source: PatchSource, scan_id: str, content_checksum: str | None) -> "OpenedScan":
        """Open a scan.

        Parameters
        ----------
        source
            Reads the voxels of the store.
        scan_id
            Id of the scan.
        content_checksum
            Version of the scan; None for the current one.

        Raises
        ------
        RefusedError
            If there is no such scan, or it has another version, or it is damaged.
        SpinezarrError, OSError
            If the store cannot be read.
        """
        if not source.may_have(scan_id):
            raise RefusedError(NO_SCAN)
        reader, engine = source.reader_and_engine([scan_id])
        try:
            scan: ScanHandle = reader.scan(scan_id)
        except UnknownScanError:
            raise RefusedError(NO_SCAN) from None
        except CorruptStoreError as problem:
            answer = text_answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "The scan is damaged.", retry_after="1"
            )
            raise RefusedError(answer) from problem
        if content_checksum not in {None, scan.content_checksum}:
            raise RefusedError(
                text_answer(HTTPStatus.GONE, "The scan was replaced by another version.")
            )
        return cls(scan, reader, engine)


def mask_of(scan: ScanHandle, name: str, checksum: str | None) -> ArraySpec:
    """Return a mask of a scan.

    Parameters
    ----------
    scan
        The scan.
    name
        ``label``, or the name of a further mask.
    checksum
        Version of a further mask; None for the current one.

    Raises
    ------
    RefusedError
        If the scan has no such mask, or the mask has another version. A mask whose version is named
        but which the scan lacks was removed.
    """
    try:
        mask = scan.mask(name)
    except UnknownMaskError:
        if is_mask_name(name) and checksum is not None:
            text = f"The mask {name} was removed."
            raise RefusedError(text_answer(HTTPStatus.GONE, text)) from None
        names = ", ".join(scan.mask_names)
        asked = f"mask {name}" if is_mask_name(name) else "such mask"
        text = f"The scan has no {asked}; it has {names}." if names else "The scan has no mask."
        raise RefusedError(text_answer(HTTPStatus.UNPROCESSABLE_ENTITY, text)) from None
    if is_mask_name(name) and checksum not in {None, mask.content_checksum}:
        text = f"The mask {name} was replaced by another version."
        raise RefusedError(text_answer(HTTPStatus.GONE, text))
    return mask
