"""How does a client get a coarse level from the spinezarr server that has the scan?

The server computes the level, so only the voxels of the level are sent, and not those of the whole
scan. They are sent as a gzip file, whose CRC-32 is checked.
"""

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError
from spinezarr.remote.requests import RemoteObjects
from spinezarr.store.layout import is_mask_name
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.view.levels import Level, shown_dtype

__all__ = ["ServedLevels"]

_GZIP: Final = 16 + zlib.MAX_WBITS
"""Parameter of zlib for a gzip file."""
_GZIP_OVERHEAD_DIVISOR: Final = 16
"""Divisor of a size: a gzip file of incompressible bytes is longer by less than the quotient."""
_GZIP_OVERHEAD_BYTES: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class ServedLevels:
    """The levels of the scans of a store on a spinezarr server."""

    url: str
    """URL of the store in the API of the server, such as ``http://lab:8765/v1/ctspine1k``."""
    objects: RemoteObjects = field(repr=False)
    """Reads the store, and sends the token."""

    def read(self, scan: ScanHandle, array: ArraySpec, level: Level) -> npt.NDArray[Any] | None:
        """Return all voxels of a level, or None if the server does not send them.

        Parameters
        ----------
        scan
            The scan.
        array
            Its image or mask.
        level
            Level of the scan.

        Returns
        -------
        numpy.ndarray or None
            Voxels ``(z, y, x)`` as :meth:`spinezarr.view.levels.LevelReader.read` computes them, in
            :func:`spinezarr.view.levels.shown_dtype`; read-only.
        """
        dtype = shown_dtype(array).newbyteorder("<")
        n_bytes = math.prod(level.shape_zyx) * dtype.itemsize
        scan_id = quote(scan.attributes.scan_id, safe="")
        query = {"array": array.name, "content_checksum": scan.content_checksum, "pack": "gzip"}
        if is_mask_name(array.name):
            query["mask_checksum"] = array.content_checksum
        url = f"{self.url}/scans/{scan_id}/levels/{level.level}?{urlencode(query)}"
        try:
            compressed = self.objects.read_once(
                url, n_bytes + n_bytes // _GZIP_OVERHEAD_DIVISOR + _GZIP_OVERHEAD_BYTES
            )
            decompressor = zlib.decompressobj(_GZIP)
            data = decompressor.decompress(compressed, n_bytes + 1)
        except (OSError, CorruptStoreError, zlib.error):  # refused, too long, damaged, replaced
            return None
        if len(data) != n_bytes or not decompressor.eof:
            return None
        return np.frombuffer(data, dtype).reshape(level.shape_zyx)
