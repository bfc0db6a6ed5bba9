"""Fixtures that return the contents of a store, to search it for private text."""

import json
import re

import numpy as np
import pytest
import zarr

from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files

CHUNK = re.compile(r"(^|/)c[./][0-9./]+$")
CHECKSUMS = "chunks"
"""Keys of a manifest whose values are Base64, which can contain any few letters by chance."""


@pytest.fixture(scope="session")
def bytes_of_store():
    """Return every name and byte of a store, and all its arrays decompressed."""
    return lambda store: b"\0\0".join([*names_and_bytes(store), *arrays(store)])


@pytest.fixture(scope="session")
def text_of_store():
    """Return everything in a store that can be text: names, metadata, decompressed arrays.

    Compressed bytes and Base64 are left out: they can contain any few letters by chance.
    """
    return lambda store: b"\0\0".join([*names_and_metadata(store), *arrays(store)])


def files_of(store):
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def names_and_bytes(store):
    for name, data in files_of(store).items():
        yield name.encode()
        yield data


def names_and_metadata(store):
    files = files_of(store)
    files |= unbundle_files(files.pop(TABLE_BUNDLE))
    for name, data in files.items():
        yield name.encode()
        if not CHUNK.search(name):
            yield from texts(json.loads(data))


def texts(value):
    """Yield each string of a JSON value, and each key of its objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key.encode()
            if key != CHECKSUMS:
                yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    else:
        yield str(value).encode()


def arrays(store):
    scans = (path for path in (store / "scans").iterdir() if path.is_dir())
    for root in [store / "table", *scans]:
        group = zarr.open_group(root, mode="r")
        for _, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                values = np.asarray(member[...])
                text = values.dtype.kind in "TOU"
                yield "\0".join(map(str, values.ravel())).encode() if text else values.tobytes()
