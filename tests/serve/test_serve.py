"""Stores over a real socket: clients read the stored voxels, and no other file is served."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
from base64 import b64encode
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import fork_server
import numpy as np
import pytest
import xarray as xr
from http_client import fetch
from server_process import free_port, start_server
from timeouts import TIMEOUT_S

import spinezarr
from spinezarr.errors import ScanChangedError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.disk import DiskStorage
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Request
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.served_files import ServedFolder, UnreadableError
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tokens import Tokens, new_token
from spinezarr.testing import NiftiForm, write_nifti

SCAN = "liver_0"


def digests(scan):
    return {
        name: hashlib.sha256(np.ascontiguousarray(scan[name].values)).hexdigest()
        for name in ("image", "label", "z", "y", "x")
    }


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


@pytest.fixture
def own(ctspine1k_url, tmp_path):
    """Serve a copy of the store, which a test may change."""
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "of/own.zarr"))
    with BackgroundServer(ServeSettings(paths=(str(copy.parent),))) as server:
        yield copy, server.url


def ask_raw(url, *lines, body=b""):
    """Send the head of a request unchanged, and return the whole answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while data := connection.recv(1 << 16):
            found += data
    return found


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_xarray_reads_the_voxels(served, ctspine1k_url, tree):
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    url = f"{served}/{tree}/ctspine1k/scans/{SCAN}"
    assert digests(xr.open_zarr(url, zarr_format=3, consolidated=True)) == expected
    checksum = spinezarr.open(ctspine1k_url).table.content_checksum.sel(scan=SCAN).item()
    pinned = f"{served}/{tree}/ctspine1k/@{checksum}/scans/{SCAN}"
    assert digests(xr.open_zarr(pinned, zarr_format=3, consolidated=True)) == expected


def test_our_reader_reads_the_table_and_the_voxels(served, ctspine1k_url):
    here, there = spinezarr.open(ctspine1k_url), spinezarr.open(f"{served}/zarr/ctspine1k")
    assert there.table.equals(here.table)
    for scan_id in here.table.scan.to_numpy():
        assert digests(there.scan(scan_id)) == digests(here.scan(scan_id))
    patches = [store.patches((16, 24, 24), n_samples=12, batch_size=4) for store in (here, there)]
    for one, other in zip(*patches, strict=True):
        assert (one.image == other.image).all()
        assert (one.label == other.label).all()


def test_every_file_of_readers_is_served_unchanged_and_no_other(served, ctspine1k_url):
    root = Path(ctspine1k_url)
    for path in (path for path in root.rglob("*") if path.is_file()):
        key = path.relative_to(root).as_posix()
        status, headers, body = fetch(f"{served}/zarr/ctspine1k/{key}")
        if key.startswith("ingest/"):
            assert status == 404  # it holds names of raw files
            continue
        assert (status, body) == (200, path.read_bytes())
        tag = headers["etag"]
        assert tag == tag.strip()
        assert tag[0] == tag[-1] == '"'
        assert headers["cache-control"] == "no-cache"
        assert "content-encoding" not in headers
        assert fetch(f"{served}/zarr/ctspine1k/{key}", "HEAD")[1]["content-length"] == str(
            len(body)
        )
        assert fetch(f"{served}/zarr/ctspine1k/{key}", if_none_match=tag)[0] == 304
        assert fetch(f"{served}/zarr/ctspine1k/{key}", if_match='"other"')[0] == 412
        status, part, found = fetch(f"{served}/zarr/ctspine1k/{key}", range="bytes=1-3")
        assert (status, found) == (206, body[1:4])
        assert part["content-range"] == f"bytes 1-3/{len(body)}"
        assert (part["cache-control"], part["etag"]) == ("no-store", tag)


@pytest.mark.parametrize("in_memory", ["what is", "half", "unknown", "never asked"])
def test_a_long_file_arrives_whole_from_memory_and_from_disk(
    ctspine1k_url, serve_within, monkeypatch, in_memory
):
    copy, url = Path(ctspine1k_url), serve_within(part_at_once_bytes=512)
    path = next(path for path in copy.glob("scans/*/image/c/*/*/*") if path.stat().st_size > 1600)
    if in_memory == "half":
        preadv = os.preadv
        monkeypatch.setattr(
            os, "preadv", lambda n, to, at, _: preadv(n, [memoryview(*to)[:99]], at)
        )
    elif in_memory == "never asked":
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    elif in_memory == "unknown":
        monkeypatch.setattr(os, "RWF_NOWAIT", 1 << 30, raising=False)  # no system supports it
    asked = f"{url}/zarr/ctspine1k/{path.relative_to(copy).as_posix()}"
    assert fetch(asked)[2] == path.read_bytes()
    assert fetch(asked, range="bytes=3-1500")[2] == path.read_bytes()[3:1501]


def test_files_of_a_version_may_be_cached_forever(own):
    copy, url = own
    checksum = spinezarr.open(copy).table.content_checksum.sel(scan=SCAN).item()
    key = f"scans/{SCAN}/image/c/0/0/0"
    status, headers, body = fetch(f"{url}/zarr/own/@{checksum}/{key}")
    assert (status, body) == (200, (copy / key).read_bytes())
    assert "immutable" in headers["cache-control"]
    assert fetch(f"{url}/zarr/own/@{checksum}/{key}", range="bytes=0-1")[1]["cache-control"] == (
        "no-store"
    )
    assert fetch(f"{url}/zarr/own/@{'0' * 32}/{key}")[0] == 410
    assert fetch(f"{url}/zarr/own/@{checksum}/scans/other/zarr.json")[0] == 410


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_a_damaged_or_missing_file_is_503_and_never_404(own, tree):
    """Zarr clients take 404 for background."""
    copy, url = own
    shard, flat = copy / f"scans/{SCAN}/image/c/0/0/0", "image/c/0/0/0"
    base = f"{url}/{tree}/own/scans/{SCAN}"
    assert fetch(f"{base}/{flat}")[0] == 200
    data = shard.read_bytes()
    (copy / "scans/other").mkdir()
    assert fetch(f"{url}/{tree}/own/scans/none/{flat}")[0] == 410
    assert fetch(f"{url}/{tree}/own/scans/other/{flat}")[0] == 410
    for damage in ("gone", "short", "link", "folder"):
        os.utime(copy / f"scans/{SCAN}/zarr.json")  # opened files are checked again
        shard.unlink()
        if damage == "short":
            shard.write_bytes(data[:-1])
            os.utime(shard, (1, 1))  # before the metadata were written
        elif damage == "link":
            (copy.parent / "outside").write_bytes(data)
            shard.symlink_to(copy.parent / "outside")
        elif damage == "folder":
            shard.mkdir()
        status, headers, _ = fetch(f"{base}/{flat}")
        assert (status, headers["cache-control"]) == (503, "no-store"), damage
        if damage == "folder":
            shard.rmdir()
        else:
            shard.unlink(missing_ok=True)
        shard.write_bytes(data)
    other = bytearray(data)
    other[0] ^= 1
    shard.write_bytes(other)  # later than the metadata: another version, perhaps
    assert fetch(f"{base}/{flat}")[0] == 503
    shard.write_bytes(data)
    assert fetch(f"{base}/{flat}")[0] == 200
    metadata = copy / f"scans/{SCAN}/zarr.json"
    metadata.write_bytes(metadata.read_bytes()[:-9])
    assert fetch(f"{base}/{flat}")[0] == 503


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_a_scan_under_the_name_of_another_is_not_served(own, tree):
    copy, url = own
    shutil.copytree(copy / f"scans/{SCAN}", copy / "scans/other")
    assert fetch(f"{url}/{tree}/own/scans/{SCAN}/image/c/0/0/0")[0] == 200
    assert fetch(f"{url}/{tree}/own/scans/other/image/c/0/0/0")[0] == 503


def test_background_before_other_chunks_of_its_shard_stays_background(tmp_path):
    image = np.random.default_rng(5).integers(-900, 900, (70, 140, 140), np.int16)
    mask = np.zeros(image.shape, np.uint8)
    mask[66:, 130:, 130:] = 20  # only in the last chunk
    mask[:3, 130:, :3] = 19
    for name, voxels in (("ct", image), ("seg", mask)):
        form = NiftiForm(dtype=str(voxels.dtype))
        write_nifti(tmp_path / f"raw/a_{name}.nii", voxels, np.eye(4), form)
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="few")
    found = discover(recipe, str(tmp_path / "raw"))
    assert not ingest(recipe, found, str(tmp_path / "few.zarr")).failed
    with BackgroundServer(ServeSettings(paths=(str(tmp_path / "few.zarr"),))) as server:
        url = f"{server.url}/flat/few/scans/a"
        assert digests(xr.open_zarr(url, zarr_format=3)) == (
            digests(spinezarr.open(tmp_path / "few.zarr").scan("a"))
        )
        assert fetch(f"{url}/label/c/0/0/0")[0] == 404


def open_files():
    """Yield the paths of the open files of this process; other threads open and close files."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(link.readlink())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files in /proc")
def test_open_files_and_scans_are_limited(ctspine1k_url, tmp_path, monkeypatch):
    monkeypatch.setattr(DiskStorage, "capacity", 3)
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    folder = ServedFolder(DiskStorage(str(copy)), scans=2)
    shards = sorted((copy / "scans").glob("*/image/c/0/0/0"))
    for path in shards:
        found = folder.find(path.relative_to(copy).as_posix())
        assert found.read(0, found.size_bytes) == path.read_bytes()
    del found
    assert sum(path.startswith(str(copy)) for path in open_files()) == 3
    assert len(folder._scans._entries) == 2 < len(shards)


@pytest.fixture
def changing(ingest_version, tmp_path):
    """Serve a store of one scan; return a function that ingests it again, and the URL."""
    store = tmp_path / "of/own.zarr"
    ingest_version("before", store)
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        yield partial(ingest_version, store=store), f"{server.url}/zarr/own"


def test_each_shard_is_the_old_or_the_new_one_during_a_replacement(changing):
    ingest_version, url = changing
    # A new version is written next to the old one, under keys of the other form.
    shards = itertools.cycle([f"{url}/scans/a/image/{key}" for key in ("c/0/0/0", "c.0.0.0")])
    bodies, statuses, is_over = {}, set(), Event()

    def look():
        while not is_over.is_set():
            status, headers, body = fetch(next(shards))
            statuses.add(status)
            if status == 200:
                bodies.setdefault(headers["etag"], set()).add(hashlib.sha256(body).digest())

    looking = [Thread(target=look) for _ in range(3)]
    for one in looking:
        one.start()
    for version in ("after", "before", "after"):
        ingest_version(version)
    is_over.set()
    for one in looking:
        one.join()
    assert statuses <= {200, 410, 503}
    assert len(bodies) == 2
    assert all(len(found) == 1 for found in bodies.values())
    assert len(set.union(*bodies.values())) == 2


def test_requests_for_the_old_version_are_answered_with_410(changing):
    ingest_version, url = changing
    tag = fetch(f"{url}/scans/a/image/c/0/0/0")[1]["etag"]
    checksum = spinezarr.open(url).table.content_checksum.item()
    stream = spinezarr.open(url).patches((8, 8, 8), n_samples=4, batch_size=2)
    opened = spinezarr.open(url)
    opened.table  # noqa: B018
    ingest_version("after")
    assert fetch(f"{url}/scans/a/image/c/0/0/0", if_match=tag)[0] == 410  # never 404
    assert fetch(f"{url}/scans/a/label/c/0/0/0")[0] == 410
    assert fetch(f"{url}/scans/a/z/c/0")[0] == 410
    assert fetch(f"{url}/@{checksum}/scans/a/image/c/0/0/0")[0] == 410
    assert fetch(f"{url}/@{checksum}/scans/a/zarr.json")[0] == 410
    with pytest.raises(ScanChangedError):
        list(stream)
    assert spinezarr.open(url).table.content_checksum.item() != checksum


def test_metadata_of_a_version_are_never_served_from_another(ingest_version, tmp_path):
    """The scan is replaced between the check of its version and the answer."""
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    files = ServedFolder(DiskStorage(str(store)))
    scan = files.scan("a")
    assert files.metadata("a", scan).data == (store / "scans/a/zarr.json").read_bytes()
    ingest_version("after", store)
    with pytest.raises(UnreadableError, match="is being replaced"):
        files.metadata("a", scan)


def test_stores_come_and_go_while_the_server_runs(own, ctspine1k_url, clock):
    copy, url = own
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 404
    shutil.copytree(ctspine1k_url, copy.parent / "later.zarr")
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 200
    assert spinezarr.open(f"{url}/zarr/later").table.sizes["scan"] == 6
    shutil.rmtree(copy.parent / "later.zarr")
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 404
    clock.advance(0.2)  # it is no longer known
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 404
    chunk = f"scans/{SCAN}/image/c/0/0/0"
    for key in (chunk, f"@{'0' * 32}/{chunk}"):  # a client may still read this store
        assert fetch(f"{url}/zarr/later/{key}")[0] == 410


def test_a_store_moved_to_another_folder_is_served_from_there(ingest_version, tmp_path, clock):
    """The name stays, and nothing is served from the old folder."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    ingest_version("before", folders[0] / "own.zarr")
    stores = ServedStores([str(folder) for folder in folders])
    kept = stores.files("own")
    assert stores.files("own") is kept
    (folders[0] / "own.zarr").rename(folders[1] / "own.zarr")
    clock.advance(0.2)  # it is no longer known
    moved = stores.files("own")
    assert moved.path == str(folders[1] / "own.zarr")
    assert moved.find("scans/a/zarr.json").data
    shutil.rmtree(moved.path)
    clock.advance(0.2)
    assert stores.files("own") is stores.served_table("own") is None


def test_a_store_that_vanishes_during_the_search_is_left_out(ingest_version, tmp_path, monkeypatch):
    ingest_version("before", tmp_path / "own.zarr")
    stores = ServedStores([str(tmp_path)])
    places = stores._list_all()
    shutil.rmtree(tmp_path / "own.zarr")
    monkeypatch.setattr(stores, "_list_all", lambda: places)
    assert stores.files("own") is None
    assert stores.patches("own") is None


OUTSIDE = [
    "/zarr/own/../../outside",
    "/zarr/own/../outside",
    "/zarr/own/%2e%2e/outside",
    "/zarr/own/%2e%2e%2foutside",
    "/zarr/own/..%2foutside",
    "/zarr/own/%252e%252e/outside",
    "/zarr/own/scans/../../outside",
    "/zarr/own/scans/%2e%2e/%2e%2e/outside",
    "/zarr/own/scans/liver_0/../../../outside",
    "/zarr/own/scans/liver_0/image/c/../../../../../outside",
    "/zarr/own/scans/liver_0%00/zarr.json",
    "/zarr/own/scans/liver_0/zarr.json%00",
    "/zarr/own/scans//liver_0/zarr.json",
    "/zarr/own//zarr.json",
    "/zarr//own/zarr.json",
    "//zarr/own/zarr.json",
    "/zarr/own/./zarr.json",
    "/zarr/own/ingest/zarr.json",
    "/zarr/own/ingest.lock",
    "/zarr/own/table/../ingest/zarr.json",
    "/zarr/own/table//zarr.json",
    "/zarr/own/table/secret",
    "/zarr/own/table/scan/secret",
    "/zarr/own/scans/liver_0/ingest.lock",
    "/zarr/own\\zarr.json",
    "/zarr/own/..\\..\\outside",
    "/zarr/own.zarr/zarr.json",
    "/zarr/of/own.zarr/zarr.json",
    "/zarr/../zarr/own/secret",
    "/zarr/%ff/zarr.json",
    "/zarr/own/scans/%ff/zarr.json",
    "/zarr/own/scans/%e2%80%ae/zarr.json",
    "/zarr/etc/passwd",
    "/zarr//etc/passwd",
    "/zarr/own/@/zarr.json",
    "/zarr/own/@0/zarr.json",
    "/zarr/own/link",
    "/zarr/own/scans/link/zarr.json",
    "/flat/own/../../outside",
    "/flat/own/scans/liver_0/image/c/0/0/-1",
    "/flat/own/scans/liver_0/image/c/0/0/00",
    "/flat/own/scans/liver_0/image/c/0/0/99999999999",
    "/flat/own/scans/liver_0/image/c/0/0",
    "/flat/own/scans/liver_0/image/c.0.0.0",
    "/v1",
    "/zarr",
    "/zarr/",
    "/zarr/own",
    "/zarr/own/",
    "/" + "a" * 3000,
]


@pytest.fixture(scope="module")
def beside_secrets(ctspine1k_url, tmp_path_factory):
    """Serve a copy of the store that has files of others in it and next to it."""
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path_factory.mktemp("outside") / "of/own.zarr"))
    (copy.parent / "outside").write_text("canary")
    for folder in (copy, copy / "table", copy / "table/scan"):
        (folder / "secret").write_text("canary")
    (copy / "link").symlink_to(copy.parent / "outside")
    (copy / "scans/link").symlink_to(copy / f"scans/{SCAN}")
    with BackgroundServer(ServeSettings(paths=(str(copy.parent),))) as server:
        yield copy, server.url


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside_the_stores_are_not_served(beside_secrets, path):
    copy, url = beside_secrets
    host = url.removeprefix("http://")
    found = ask_raw(url, f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close")
    assert found.startswith(tuple(f"HTTP/1.1 {n}".encode() for n in (400, 404, 410, 503)))
    assert b"canary" not in found
    assert str(copy.parent).encode() not in found


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_malformed_keys_are_404_and_absent_chunks_410(served, tree):
    host = served.removeprefix("http://")
    for key in ("scans/none/../x", "scans/none/./x", "scans/none//x", "scans/none/x/"):
        line = f"GET /{tree}/ctspine1k/{key} HTTP/1.1"
        found = ask_raw(served, line, f"Host: {host}", "Connection: close")
        assert found.startswith(b"HTTP/1.1 404"), key
    for key in ("image/c/0/0/9", "label/c/0/9/0", "label/c/9/0/0"):
        assert fetch(f"{served}/{tree}/ctspine1k/scans/{SCAN}/{key}")[0] == 410, key


def test_methods_that_write_are_refused(served):
    for method in ("PUT", "POST", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        status, headers, _ = fetch(f"{served}/zarr/ctspine1k/zarr.json", method)
        assert status == 405
        assert headers["allow"] == "GET, HEAD, OPTIONS"


# Access


def test_an_overlong_token_is_refused_before_it_is_hashed(tmp_path):
    """The time of hashing grows with what a client sends."""
    file = tmp_path / "tokens"
    lines = []
    for size in (1, 512, 513):
        digest = hashlib.sha256(b"x" * size).hexdigest()
        lines.append(f"of-{size} sha256:{digest}")
    file.write_text("\n".join(lines))
    guard = Guard(Tokens(file))
    for size, is_let_in in ((1, True), (512, True), (513, False)):
        token = "x" * size
        basic = b64encode(f"any:{token}".encode()).decode()
        assert len(basic) > 512 or size == 1
        for authorization, expected in (
            (f"Bearer {token}", is_let_in),
            (f"Basic {basic}", size == 1),  # the limit applies to the bytes sent
        ):
            request = Request(
                "GET", "/zarr/own/zarr.json", headers={"authorization": authorization}
            )
            assert (guard.refusal(request) is None) is expected
            assert guard.name_of(request) == (f"of-{size}" if expected else None)


def test_only_requests_with_a_token_may_read(ctspine1k_url, tmp_path):
    file = tmp_path / "tokens"
    token, other = new_token(file, "lab"), new_token(file, "other")
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="already has a token 'lab'"):
        new_token(file, "lab")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=str(file))
    with BackgroundServer(settings) as server:
        url = f"{server.url}/zarr/ctspine1k"
        headers = {"Authorization": f"Bearer {token}"}
        expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
        assert digests(spinezarr.open(url, storage_options={"headers": headers}).scan(SCAN)) == (
            expected
        )
        found = xr.open_zarr(
            f"{url}/scans/{SCAN}",
            zarr_format=3,
            consolidated=True,
            storage_options={"headers": headers},
        )
        assert digests(found) == expected
        named = url.replace("http://", f"http://any:{other}@")
        assert digests(spinezarr.open(named).scan(SCAN)) == expected
        for wrong in ("", "Bearer", "Bearer x", f"Bearer {token}x", f"Token {token}", "Basic x",
                      f"Bearer {token} {token}", "Bearer " + "x" * 5000):  # fmt: skip
            status, said, _ = fetch(f"{url}/zarr.json", authorization=wrong)
            assert (status, said["cache-control"]) == (401, "no-store")
            assert said["www-authenticate"].startswith("Bearer")
        assert fetch(f"{url}/scans/none/image/c/0/0/0")[0] == 401  # 404 would be background
        assert fetch(f"{server.url}/healthz")[0] == 200
        lines = [line for line in file.read_text().splitlines() if not line.startswith("lab ")]
        file.write_text("\n".join(lines))
        assert fetch(f"{url}/zarr.json", authorization=f"Bearer {token}")[0] == 401
        assert fetch(f"{url}/zarr.json", authorization=f"Bearer {other}")[0] == 200
        file.write_text("nonsense")
        assert fetch(f"{url}/zarr.json", authorization=f"Bearer {other}")[0] == 401


def test_requests_for_a_foreign_host_name_are_refused(served):
    url = f"{served}/zarr/ctspine1k/zarr.json"
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "",
                 "[::1].evil.example", "[::1]:80@evil.example", "localhost:80:evil.example",
                 "localhost/evil.example"):  # fmt: skip
        assert fetch(url, host=host)[0] == 421
    for host in ("localhost:1", "127.0.0.1", "[::1]:8765", "LOCALHOST"):
        assert fetch(url, host=host)[0] == 200


def test_pages_of_this_machine_may_read_and_others_only_if_allowed(ctspine1k_url):
    settings = ServeSettings(paths=(ctspine1k_url,), origins=frozenset({"https://viewer.example"}))
    with BackgroundServer(settings) as server:
        url = f"{server.url}/zarr/ctspine1k/zarr.json"
        for origin, may in (
            ("https://viewer.example", True),
            ("http://localhost:8888", True),
            ("http://127.0.0.1:1", True),
            ("https://evil.example", False),
            ("http://localhost.evil.example", False),
            ("http://[::1].evil.example", False),
            ("http://127.0.0.1:80@evil.example", False),
            ("null", False),
        ):
            _, headers, _ = fetch(url, origin=origin)
            assert (headers.get("access-control-allow-origin") == origin) is may
            assert headers["vary"] == "Origin"
        asks = {"access_control_request_method": "GET", "access_control_request_headers": "range"}
        status, headers, _ = fetch(url, "OPTIONS", origin="https://viewer.example", **asks)
        assert status == 204
        assert "Range" in headers["access-control-allow-headers"]


# The command


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_gets_a_signal(ctspine1k_url, ends):
    process, url = start_server(ctspine1k_url, command=[fork_server.command()])
    try:
        expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
        assert digests(spinezarr.open(f"{url}/zarr/ctspine1k").scan(SCAN)) == expected
        status, headers, _ = fetch(f"{url}/zarr/ctspine1k/zarr.json", "HEAD")
        assert (status, headers["content-length"] != "0") == (200, True)
    finally:
        process.send_signal(ends)
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert f"{url}/zarr/ctspine1k" in said
    assert "Traceback" not in said


def test_clients_with_slow_heads_are_disconnected_while_others_are_served(ctspine1k_url):
    process, url = start_server(ctspine1k_url, command=[fork_server.command()])
    try:
        port = int(url.rpartition(":")[2])
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for one in slow:
            one.sendall(b"GET /zarr/ctspine1k/zarr.json HTTP/1.1\r\nHost: loc")
        assert fetch(f"{url}/zarr/ctspine1k/zarr.json")[0] == 200
        for one in slow:
            one.settimeout(10)
            with one:
                while one.recv(1 << 12):
                    pass
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--host", "0.0.0.0", "{store}"], "Give --token-file"),  # noqa: S104
        (["--new-token", "x", "{store}"], "give the --token-file"),
        (["--token-file", "{absent}", "{store}"], "cannot be read"),
        (["--token-file", "{bad}", "{store}"], "line 1: is not a token"),
        (["{store}", "{store}"], "both would be served"),
        ([], "Give a store"),
    ],
)
def test_wrong_options_of_serving_are_explained(ctspine1k_url, tmp_path, words, expected):
    (tmp_path / "bad").write_text("secret-token\n")
    names = {"store": ctspine1k_url, "absent": tmp_path / "absent", "bad": tmp_path / "bad"}
    argv = [word.format(**names) for word in words]
    command = [fork_server.command(), "serve", "--port", str(free_port()), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.split())
    assert "secret-token" not in done.stderr


def test_the_error_names_a_port_that_is_in_use(ctspine1k_url, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [fork_server.command(), "serve", "--port", port, ctspine1k_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "Choose another --port" in done.stderr


def test_metadata_of_the_flat_tree_name_no_shards(served):
    for key in (f"scans/{SCAN}/zarr.json", f"scans/{SCAN}/image/zarr.json"):
        node = json.loads(fetch(f"{served}/flat/ctspine1k/{key}")[2])
        assert "sharding_indexed" not in json.dumps(node)
        assert "manifest" not in node["attributes"]
