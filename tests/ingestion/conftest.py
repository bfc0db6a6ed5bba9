import numpy as np
import pytest
import zarr


@pytest.fixture(scope="session")
def bytes_of_store():
    return _bytes_of_store


def _bytes_of_store(store):
    """Every name and byte of a store, and all its arrays decompressed."""
    found = []
    for path in sorted(store.rglob("*")):
        found.append(str(path.relative_to(store)).encode())
        if path.is_file():
            found.append(path.read_bytes())
    scans = (path for path in (store / "scans").iterdir() if path.is_dir())
    for root in [store / "table", *scans]:
        group = zarr.open_group(root, mode="r")
        for _, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                values = np.asarray(member[...])
                text = values.dtype.kind in "TOU"
                found.append(
                    "\0".join(map(str, values.ravel())).encode() if text else values.tobytes()
                )
    return b"\0\0".join(found)
