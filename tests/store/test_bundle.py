"""Tests of the bundle: the scan table as one object, equal to the table's own files."""

import pickle
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import fsspec
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from timeouts import TIMEOUT_S

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.bundle import TABLE_BUNDLE, bundle_files, unbundle_files
from spinezarr.store.reader import StoreReader
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.writer import StoreWriter
from spinezarr.verify.store import verify_store


@pytest.fixture
def copied(ctspine1k_url, tmp_path):
    """Copy of the store, to change."""
    return Path(shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr"))


def update_table(url):
    """Write the table again with the same rows."""
    writer = StoreWriter(url, StoreReader(url).root)
    names = StoreReader(url).table.scan.to_numpy().tolist()
    scans = {name: StoreReader(url).scan(name).attributes for name in names}
    writer.registry.write_table(None, scans, writer.registry.ledger().scans)


keys = st.builds(
    "{}/{}".format,
    st.text(st.characters(codec="utf-8"), max_size=60).filter(
        lambda name: is_scan_id(name) and not name.startswith("__")
    ),
    st.sampled_from(["zarr.json", "c/0", "c.0", "c/0/0", "c.0.0.0"]),
)


@given(st.dictionaries(keys | st.just("zarr.json"), st.binary()))
def test_files_come_back_from_a_bundle(files):
    assert unbundle_files(bundle_files(files)) == files
    assert bundle_files(dict(reversed(files.items()))) == bundle_files(files)


def test_the_bundle_holds_every_file_of_the_table_that_readers_need(ctspine1k_url):
    table = Path(ctspine1k_url) / "table"
    files = {str(p.relative_to(table)): p.read_bytes() for p in table.rglob("*") if p.is_file()}
    wanted = {key: data for key, data in files.items() if not key.endswith("/zarr.json")}
    assert "zarr.json" in wanted
    assert unbundle_files((Path(ctspine1k_url) / TABLE_BUNDLE).read_bytes()) == wanted


def test_readers_read_the_bundle_and_no_other_file_of_the_table(copied):
    expected = StoreReader(str(copied)).table
    shutil.rmtree(copied / "table")
    xr.testing.assert_identical(StoreReader(str(copied)).table, expected)


def edited(data, change):
    """Change the contents of a sealed group, and seal it again."""
    metadata = unseal(data)
    change(metadata["attributes"]["files"])
    return seal(metadata)


DAMAGED = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "cut": lambda data: data[:-1],
    "flipped": lambda data: data.replace(b"A", b"B", 1),
    "without files": lambda _: seal({"attributes": {}}),
    "with a list": lambda _: seal({"attributes": {"files": []}}),
    "of no files": lambda data: edited(data, dict.clear),
    "of no table": lambda data: edited(data, lambda files: files.update({"zarr.json": "e30="})),
    "of other bytes": lambda data: edited(data, lambda files: files.update({"scan/c/0": "AAAA"})),
    "of no base64": lambda data: edited(data, lambda files: files.update({"scan/c/0": "A"})),
    "of no text": lambda data: edited(data, lambda files: files.update({"scan/c/0": 3})),
    "without a file": lambda data: edited(data, lambda files: files.pop("scan/c/0")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_bundle_is_ignored_by_readers_and_reported_by_verify(copied, damage):
    expected, path = StoreReader(str(copied)).table, copied / TABLE_BUNDLE
    whole = path.read_bytes()
    path.unlink()
    if (damaged := DAMAGED[damage](whole)) is not None:
        path.write_bytes(damaged)
    xr.testing.assert_identical(StoreReader(str(copied)).table, expected)
    (fault,) = verify_store(str(copied)).faults
    assert (fault.path, fault.kind) == (TABLE_BUNDLE, "missing" if damaged is None else "damaged")
    assert "--repair" in fault.advice
    shutil.rmtree(copied / "table")
    with pytest.raises(CorruptStoreError, match="has no scan table"):
        _ = StoreReader(str(copied)).table


def test_verify_reports_a_bundle_of_another_table(copied):
    path = copied / TABLE_BUNDLE
    changed = edited(path.read_bytes(), lambda files: files.update({"more/c/0": "AAAA"}))
    path.write_bytes(changed)
    (fault,) = verify_store(str(copied)).faults
    assert (fault.path, fault.found) == (TABLE_BUNDLE, "other files")


def test_two_rewrites_of_the_table_restore_the_same_bundle(copied):
    before = (copied / TABLE_BUNDLE).read_bytes()
    update_table(str(copied))
    assert (copied / TABLE_BUNDLE).read_bytes() != before
    update_table(str(copied))
    assert (copied / TABLE_BUNDLE).read_bytes() == before
    assert not verify_store(str(copied)).faults


def test_an_old_bundle_is_emptied_where_nothing_can_be_deleted(copied, monkeypatch):
    """The store behaves like a bucket whose user may not delete objects."""
    memory = fsspec.filesystem("memory")
    memory.put(str(copied), "/bundle-test/a.zarr", recursive=True)
    asked = []

    def refuse(path, *_, **__):
        asked.append(path)
        raise PermissionError("no deleting here")

    seen = []
    pipe = type(memory).pipe_file

    def noting(self, path, value, **options):
        if path.endswith("/table/zarr.json"):
            seen.append(self.cat_file("/bundle-test/a.zarr/" + TABLE_BUNDLE))
        pipe(self, path, value, **options)

    try:
        monkeypatch.setattr(type(memory), "rm", refuse)
        monkeypatch.setattr(type(memory), "pipe_file", noting)
        with pytest.raises(PermissionError):  # at the old chunks, once the new ones are published
            update_table("memory://bundle-test/a.zarr")
        assert seen == [b""]
        assert asked
        monkeypatch.undo()
        expected = StoreReader(str(copied)).table
        xr.testing.assert_identical(StoreReader("memory://bundle-test/a.zarr").table, expected)
    finally:
        monkeypatch.undo()
        memory.rm("/bundle-test", recursive=True)


# Requests


def paths_of(requests):
    return [path for path, _ in requests]


def test_root_and_table_take_two_requests(copied, serve, ctspine1k_url):
    url, requests = serve(copied.parent)
    opened = spinezarr.open(f"{url}/copied.zarr")
    xr.testing.assert_identical(opened.table, StoreReader(ctspine1k_url).table)
    assert sorted(paths_of(requests)) == [
        f"/copied.zarr/{TABLE_BUNDLE}",
        "/copied.zarr/zarr.json",
    ]
    assert not any(ranged for _, ranged in requests)


class Paired(SimpleHTTPRequestHandler):
    """Answers only once two requests wait at the same time."""

    together = Barrier(2, timeout=TIMEOUT_S)

    def do_GET(self):
        self.together.wait()
        super().do_GET()

    def log_message(self, *_):
        """Keep quiet."""


def test_root_and_table_are_requested_at_the_same_time(ctspine1k_url):
    handler = partial(Paired, directory=ctspine1k_url)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            table = spinezarr.open(f"http://127.0.0.1:{server.server_port}").table
        finally:
            server.shutdown()
            thread.join()
    xr.testing.assert_identical(table, StoreReader(ctspine1k_url).table)


def test_a_first_patch_takes_five_requests(copied, serve, ctspine1k_url):
    url, requests = serve(copied.parent)
    wanted = {"batch_size": 1, "n_samples": 1}
    (batch,) = spinezarr.open(f"{url}/copied.zarr").patches((20, 30, 30), **wanted)
    (expected,) = spinezarr.open(ctspine1k_url).patches((20, 30, 30), **wanted)
    np.testing.assert_array_equal(batch.image, expected.image)
    np.testing.assert_array_equal(batch.label, expected.label)
    scan = f"/copied.zarr/scans/{batch.scan_id[0]}"
    assert sorted(paths_of(requests)) == sorted(
        [
            f"/copied.zarr/{TABLE_BUNDLE}",
            "/copied.zarr/zarr.json",
            f"{scan}/zarr.json",
            f"{scan}/image/c/0/0/0",
            f"{scan}/label/c/0/0/0",
        ]
    )


def test_a_remote_store_without_a_bundle_can_be_read(copied, serve, ctspine1k_url):
    (copied / TABLE_BUNDLE).unlink()
    url, requests = serve(copied.parent)
    table = spinezarr.open(f"{url}/copied.zarr").table
    xr.testing.assert_identical(table, StoreReader(ctspine1k_url).table)
    assert paths_of(requests).count(f"/copied.zarr/{TABLE_BUNDLE}") == 1


def test_a_forgotten_table_is_requested_again(copied, serve):
    url, requests = serve(copied.parent)
    reader = StoreReader(f"{url}/copied.zarr")
    assert reader.table.sizes["scan"] == 6
    reader.forget_table()
    assert reader.table.sizes["scan"] == 6
    assert paths_of(requests).count(f"/copied.zarr/{TABLE_BUNDLE}") == 2


def test_an_unpickled_reader_requests_only_the_root(copied, serve):
    url, requests = serve(copied.parent)
    sent = pickle.dumps(StoreReader(f"{url}/copied.zarr"))
    del requests[:]
    reader = pickle.loads(sent)  # noqa: S301  our own
    assert paths_of(requests) == ["/copied.zarr/zarr.json"]
    assert reader.table.sizes["scan"] == 6


def test_errors_of_the_root_are_raised_with_and_without_a_bundle(copied, serve):
    url, _ = serve(copied.parent)
    (copied / "zarr.json").write_bytes(b"{}")
    with pytest.raises(CorruptStoreError, match=r"zarr\.json: the root of the store is damaged"):
        spinezarr.open(f"{url}/copied.zarr")
    (copied / "zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match=r"zarr\.json: the root of the store is missing"):
        spinezarr.open(f"{url}/copied.zarr")
    shutil.rmtree(copied / "table")
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        spinezarr.open(f"{url}/copied.zarr")
    with pytest.raises(OSError, match="5 attempts in"):
        spinezarr.open("http://127.0.0.1:9/copied.zarr")
