"""How does a remote reader get all files of the scan table with one request?

The bundle holds the files of ``table/`` as Base64 in the attributes of a Zarr group. A group keeps
the store a valid Zarr hierarchy for clients that list it.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Final, Literal

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.sealed import StoredModel, parse_sealed, seal
from spinezarr.store.table_file import TableFile

__all__ = ["TABLE_BUNDLE", "bundle_files", "unbundle_files"]

TABLE_BUNDLE: Final = "table_bundle/zarr.json"
"""Key of the bundle."""


class _BundleAttributes(StoredModel):
    files: dict[TableFile | Literal["zarr.json"], str]


class _Bundle(StoredModel):
    attributes: _BundleAttributes


def bundle_files(files: Mapping[str, bytes]) -> bytes:
    """Return the content of a bundle of small files, by key; the same files give the same bytes."""
    texts = {key: b64encode(data).decode() for key, data in sorted(files.items())}
    return seal({"attributes": {"files": texts}, "zarr_format": 3, "node_type": "group"})


def unbundle_files(data: bytes) -> dict[str, bytes]:
    """Return the files in a bundle, by key.

    Raises
    ------
    DamagedMetadataError
        If :func:`bundle_files` did not make these bytes, or they are damaged.
    """
    texts = parse_sealed(data, _Bundle).attributes.files
    try:
        return {key: b64decode(text, validate=True) for key, text in texts.items()}
    except binascii.Error as problem:
        raise DamagedMetadataError(f"other text ({problem})", "Base64", "files") from None
