"""Stores in a bucket are served like those on disk: with the same bytes, or a clear error."""

import hashlib
import itertools
import json
import logging
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import safetensors.numpy
import tensorstore
import xarray as xr
import zarr
from http_client import fetch, fetch_patches
from server_process import wait_for_server
from timeouts import TIMEOUT_S, wait_until
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import UsageError
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.view import levels

LIMITS = ServeLimits()
FRESH_S = LIMITS.bucket_fresh_s
COARSEST = 500
"""Most voxels of the coarsest level, so that small scans have several levels too."""
BY_RANGES = ServeLimits(bucket_whole_bytes=0)
"""Limits under which no shard is small enough to be cached."""
IMPATIENT = ServeLimits(bucket_whole_bytes=0, bucket_s=2.0, bucket_reader_s=2.0)
SCAN = "liver_0"
ARRAYS = ("image", "label")


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def digests(scan):
    return {name: digest(scan[name].values) for name in ARRAYS}


def put(s3_server, store, place, below="scans"):
    """Copy a store into a bucket, with or without its scans."""
    name, _, prefix = place.partition("/")
    folders = [Path(store, folder) for folder in ("table", "table_bundle", below)]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for path in (*paths, Path(store, "zarr.json"), Path(store, "scans/zarr.json")):
        key = f"{prefix}/{path.relative_to(store).as_posix()}"
        s3_server.client.put_object(Bucket=name, Key=key, Body=path.read_bytes())


@pytest.fixture(scope="module")
def place(s3_server, ctspine1k_url):
    """Return a folder in a bucket with one store, which no test may change."""
    place = f"{s3_server.new_bucket()}/stores"
    put(s3_server, ctspine1k_url, f"{place}/ctspine1k.zarr")
    return place


@pytest.fixture
def serving(s3_server):
    """Return a function that serves given locations."""
    with ExitStack() as running:

        def serve(*places, limits=LIMITS, **options):
            given = {place: {**s3_server.storage_options, **options} for place in places}
            settings = ServeSettings(paths=tuple(given), storage_options=given, limits=limits)
            return running.enter_context(BackgroundServer(settings)).url

        yield serve


@pytest.fixture(params=["whole", "by ranges"])
def served(request, serving, place):
    """Serve the bucket; its shards are small enough to be cached, or never are."""
    by_ranges = {"bucket_whole_bytes": 0} if request.param == "by ranges" else {}
    limits = ServeLimits(coarsest_level_voxels=COARSEST, **by_ranges)
    return serving(f"s3://{place}", limits=limits)


def test_buckets_serve_coarse_levels_and_ome_images(served, ctspine1k_url):
    store = spinezarr.open(ctspine1k_url)
    scan = store._reader.scan(SCAN)
    made = levels.LevelReader(store._engine)
    root = zarr.open_group(f"{served}/ome/ctspine1k/{SCAN}.ome.zarr", mode="r", zarr_format=3)
    for level in levels.levels_of(scan, COARSEST):
        for array in scan.arrays:
            expected = made.read(array, level)
            place = f"{'labels/vertebrae/' if array.name == 'label' else ''}{level.level}"
            assert (root[place][:] == expected).all()
            path = f"v1/ctspine1k/scans/{SCAN}/levels/{level.level}?array={array.name}"
            assert fetch(f"{served}/{path}")[2] == expected.tobytes()


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_xarray_and_our_reader_read_the_voxels(served, ctspine1k_url, tree):
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    url = f"{served}/{tree}/ctspine1k/scans/{SCAN}"
    assert digests(xr.open_zarr(url, zarr_format=3, consolidated=True)) == expected
    if tree == "zarr":
        there = spinezarr.open(f"{served}/zarr/ctspine1k")
        assert there.table.equals(spinezarr.open(ctspine1k_url).table)
        assert digests(there.scan(SCAN)) == expected


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_tensorstore_reads_the_voxels(served, ctspine1k_url, tree):
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    for name in ARRAYS:
        url = f"{served}/{tree}/ctspine1k/scans/{SCAN}/{name}/"
        array = {"driver": "zarr3", "kvstore": {"driver": "http", "base_url": url}}
        read = tensorstore.open(array).result().read().result()
        assert digest(read) == expected[name]


def test_patches_and_facts_equal_those_of_the_store_on_disk(served, ctspine1k_url):
    shape = spinezarr.open(ctspine1k_url).scan(SCAN).image.shape
    wanted = {"items": [{"scan_id": SCAN, "start_zyx": (0, 0, 0)}], "size_zyx": shape}
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as disk:
        for path in ("/v1/stores", "/v1/ctspine1k/scans", f"/v1/ctspine1k/scans/{SCAN}"):
            assert fetch(f"{served}{path}")[2] == fetch(f"{disk.url}{path}")[2]
        answers = [fetch_patches(f"{url}/v1/ctspine1k/batch", wanted)
                   for url in (served, disk.url)]  # fmt: skip
    assert [status for status, *_ in answers] == [200, 200]
    assert answers[0][2] == answers[1][2]
    found = safetensors.numpy.load(answers[0][2])
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    assert {name: digest(found[name][0]) for name in ARRAYS} == expected


def test_answers_equal_those_of_the_store_on_disk(served, ctspine1k_url):
    root = Path(ctspine1k_url)
    keys = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    keys = [key for key in keys if SCAN in key and "/zarr.json" not in key.partition("/image")[2]]
    keys += ["zarr.json", "table_bundle/zarr.json", "table/zarr.json"]
    keys += [f"scans/{SCAN}/label/c/0/0/9", f"scans/{SCAN}/image/c.0.0.0", "scans/none/z/c/0"]
    keys += ["scans/none/zarr.json", "table/secret", f"scans/{SCAN}/secret", ".zgroup"]
    kept = ("etag", "cache-control", "content-length", "content-range", "content-type")
    asked = ({}, {"range": "bytes=1-3"}, {"range": "bytes=-9"}, {"if_match": '"other"'})
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as disk:
        for key, headers in itertools.product(keys, asked):
            found = []
            for url in (served, disk.url):
                status, said, body = fetch(f"{url}/zarr/ctspine1k/{key}", **headers)
                found.append((status, body, {name: said.get(name) for name in kept}))
            assert found[0] == found[1], (key, headers)
            if "etag" in said and not headers:
                url = f"{served}/zarr/ctspine1k/{key}"
                assert fetch(url, if_none_match=said["etag"])[0] == 304
                assert fetch(url, "HEAD")[1]["content-length"] == str(len(body))


# Scans that are replaced


@pytest.fixture
def changing(s3_server, serving, ingest_version_into_bucket):
    """Serve a store of one scan; return a function that ingests it again, its URL and its place."""
    place = f"{s3_server.new_bucket()}/own.zarr"
    ingest_version_into_bucket("before", place)
    return (
        lambda version: ingest_version_into_bucket(version, place),
        serving(f"s3://{place}", limits=BY_RANGES),
        place,
    )


@pytest.mark.long
def test_each_shard_is_the_old_or_the_new_one_during_a_replacement(changing):
    ingest_version, url, _ = changing
    shards = itertools.cycle(
        [f"{url}/zarr/own/scans/a/image/{key}" for key in ("c/0/0/0", "c.0.0.0")]
    )
    bodies, tags, statuses, is_over = {}, [], set(), Event()

    def look():
        while not is_over.is_set():
            status, headers, body = fetch(next(shards))
            statuses.add(status)
            if status == 200:
                bodies.setdefault(headers["etag"], set()).add(hashlib.sha256(body).digest())
                tags.append(headers["etag"])

    looking = [Thread(target=look) for _ in range(3)]
    for one in looking:
        one.start()
    wait_until(lambda: tags)
    for version in ("after", "before", "after"):
        latest = tags[-1]
        ingest_version(version)
        wait_until(lambda latest=latest: tags[-1] != latest)
    is_over.set()
    for one in looking:
        one.join()
    assert statuses <= {200, 410, 503}
    assert len(bodies) == 2
    assert all(len(found) == 1 for found in bodies.values())
    assert len(set.union(*bodies.values())) == 2


def test_a_replaced_scan_is_served_within_a_second(changing, clock):
    ingest_version, url, _ = changing
    shard = f"{url}/zarr/own/scans/a/image/c/0/0/0"
    patch = {"items": [{"scan_id": "a", "start_zyx": (0, 0, 0)}], "size_zyx": (20, 24, 16)}
    status, headers, _ = fetch(shard)
    assert status == 200
    before = safetensors.numpy.load(fetch_patches(f"{url}/v1/own/batch", patch)[2])["image"]
    told = json.loads(fetch(f"{url}/v1/own/scans")[2])["scans"][0]["content_checksum"]
    assert headers["etag"].startswith(f'"{told}')
    ingest_version("after")
    clock.advance(FRESH_S)
    assert fetch(shard)[0] == 410
    assert fetch(shard, if_match=headers["etag"])[0] == 410
    assert fetch(f"{url}/zarr/own/@{told}/scans/a/zarr.json")[0] == 410
    assert fetch(shard.replace("c/0/0/0", "c.0.0.0"))[0] == 200
    assert json.loads(fetch(f"{url}/v1/own/scans")[2])["scans"][0]["content_checksum"] != told
    after = safetensors.numpy.load(fetch_patches(f"{url}/v1/own/batch", patch)[2])["image"]
    assert (after != before).sum() == 1


def test_an_overwritten_object_is_never_served_as_the_old_one(changing, s3_server):
    """A copy tool overwrites it: same key, size and metadata, other bytes."""
    _, url, place = changing
    name, _, prefix = place.partition("/")
    key = f"{prefix}/scans/a/image/c/0/0/0"
    data = s3_server.client.get_object(Bucket=name, Key=key)["Body"].read()
    shard = f"{url}/zarr/own/scans/a/image/c/0/0/0"
    assert fetch(shard, range="bytes=0-9")[2] == data[:10]
    other = bytes([data[0] ^ 1]) + data[1:]
    s3_server.client.put_object(Bucket=name, Key=key, Body=other)
    for _ in range(2):  # first conditional on the old tag, then compared again
        status, headers, _ = fetch(shard, range="bytes=0-9")
        assert (status, headers["retry-after"], headers["cache-control"]) == (503, "1", "no-store")
    s3_server.client.delete_object(Bucket=name, Key=key)
    assert fetch(shard)[0] == 503
    s3_server.client.put_object(Bucket=name, Key=key, Body=data)
    assert fetch(shard, range="bytes=0-9")[2] == data[:10]
    about = {"Bucket": name, "Key": key}  # the same bytes get another tag
    upload = s3_server.client.create_multipart_upload(**about)["UploadId"]
    part = s3_server.client.upload_part(**about, UploadId=upload, PartNumber=1, Body=data)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3_server.client.complete_multipart_upload(**about, UploadId=upload, MultipartUpload=parts)
    assert fetch(shard, range="bytes=0-9")[0] == 503
    assert fetch(shard, range="bytes=0-9")[2] == data[:10]
    for wrong in (data[:-1], data + b"x"):
        s3_server.client.put_object(Bucket=name, Key=key, Body=wrong)
        for _ in range(2):
            assert fetch(shard, range="bytes=0-9")[0] == 503


# Buckets that fail


@pytest.fixture
def serve_behind(proxies, s3_server, serving, place):
    """Return a function that serves a bucket through a proxy whose conditions can be changed."""
    with proxies.proxy(upstream=s3_server.endpoint_url) as proxy:

        def serve(limits):
            there = f"s3://{place}/ctspine1k.zarr"
            url = serving(there, limits=limits, endpoint_url=proxy.url)
            return url, lambda **told: proxy.set(proxies.Conditions(**told)), proxy

        yield serve


@pytest.fixture
def behind(serve_behind):
    """Serve it with the default time limits."""
    return serve_behind(BY_RANGES)


@pytest.fixture
def failing(serve_behind):
    """Serve it with short time limits."""
    return serve_behind(IMPATIENT)


PATHS = [
    "zarr/ctspine1k/zarr.json",
    f"zarr/ctspine1k/scans/{SCAN}/zarr.json",
    f"zarr/ctspine1k/scans/{SCAN}/image/c/0/0/0",
    f"zarr/ctspine1k/scans/{SCAN}/z/c/0",
    f"flat/ctspine1k/scans/{SCAN}/image/c/0/0/0",
    "zarr/ctspine1k/scans/none/image/c/0/0/0",
    "v1/ctspine1k/scans",
]


@pytest.mark.parametrize(
    ("kind", "is_known"), [("unavailable", False), ("unavailable", True), ("stall", True)]
)
def test_a_failing_bucket_is_answered_with_503_and_never_404(failing, kind, is_known):
    url, set_conditions, _ = failing
    known = {path: {fetch(f"{url}/{path}")[0]} for path in PATHS if is_known}
    assert not is_known or set.union(*known.values()) == {200, 410}
    set_conditions(fault_rate=1.0, fault_kinds=(kind,))
    answers = {}
    asking = [Thread(target=lambda path=path: answers.update({path: fetch(f"{url}/{path}")}))
              for path in PATHS]  # fmt: skip
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    for path, (status, headers, _) in answers.items():
        may = {503} | (known.get(path, set()) if is_known else set())  # recent answers count
        assert status in may, path
        assert status != 503 or headers["retry-after"] == "1"
    with ThreadPoolExecutor(len(PATHS)) as pool:  # by now recent answers have expired
        assert {*pool.map(lambda path: fetch(f"{url}/{path}")[0], PATHS)} == {503}
    item = {"scan_id": SCAN, "start_zyx": (0, 0, 0)}
    batch = {"items": [item] * 3, "size_zyx": (4, 4, 4)}
    status, headers, _ = fetch_patches(f"{url}/v1/ctspine1k/batch", batch)
    assert (status, headers["retry-after"]) == (503, "1")
    # If a bucket serves only metadata, no scan may be reported as damaged.
    set_conditions(fault_rate=1.0, fault_kinds=(kind,), fault_paths="/image/c[/.]")
    assert fetch(f"{url}/{PATHS[1]}")[0] == 200
    assert fetch_patches(f"{url}/v1/ctspine1k/batch", batch)[0] == 503
    set_conditions()
    assert {fetch(f"{url}/{path}")[0] for path in PATHS} == {200, 410}
    assert fetch_patches(f"{url}/v1/ctspine1k/batch", batch)[0] == 200


def test_clients_that_wait_for_the_same_object_fail_together(failing):
    url, set_conditions, proxy = failing
    set_conditions(fault_rate=1.0, fault_kinds=("stall",))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: fetch(f"{url}/{PATHS[2]}")[0], range(8))
        assert {*found} == {503}
    assert proxy.counts().faults["stall"] < 8, "one of them asks the bucket"


@pytest.mark.long
def test_a_hanging_bucket_does_not_delay_stores_on_disk(
    proxies, s3_server, place, ctspine1k_url, tmp_path
):
    (tmp_path / "here.zarr").symlink_to(ctspine1k_url)
    item = {"scan_id": SCAN, "start_zyx": (0, 0, 0)}
    batch = {"items": [item], "size_zyx": (4, 4, 4)}
    there = f"s3://{place}/ctspine1k.zarr"
    with proxies.proxy(upstream=s3_server.endpoint_url) as proxy:
        options = {there: {**s3_server.storage_options, "endpoint_url": proxy.url}}
        settings = ServeSettings(
            paths=(str(tmp_path), there),
            storage_options=options,
            limits=ServeLimits(bucket_s=TIMEOUT_S, bucket_reader_s=TIMEOUT_S),
        )
        with BackgroundServer(settings) as server, ThreadPoolExecutor(40) as pool:
            url = server.url
            assert fetch(f"{url}/{PATHS[0]}")[0] == fetch(f"{url}/zarr/here/zarr.json")[0] == 200
            proxy.set(proxies.Conditions(fault_rate=1.0, fault_kinds=("stall",), stall_s=3.0))
            hung = [pool.submit(fetch, f"{url}/{path}") for path in PATHS * 2]
            hung += [
                pool.submit(fetch_patches, f"{url}/v1/ctspine1k/batch", batch) for _ in range(12)
            ]
            wait_until(lambda: proxy.counts().faults.get("stall", 0) > 2)
            assert fetch(f"{url}/healthz")[0] == 200
            assert fetch(f"{url}/{PATHS[2].replace('ctspine1k', 'here')}")[0] == 200
            assert fetch(f"{url}/v1/here/scans")[0] == 200
            assert fetch_patches(f"{url}/v1/here/batch", batch)[0] == 200
            assert sum(one.done() for one in hung) < len(hung) / 2
            proxy.set(proxies.Conditions())
            assert {one.result()[0] for one in hung} <= {200, 410, 503}


def test_occasional_faults_of_a_bucket_are_hidden_from_clients(behind, ctspine1k_url):
    url, set_conditions, proxy = behind
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    set_conditions(fault_rate=0.3, fault_kinds=("unavailable", "cut"))
    for _ in range(3):
        scan = f"{url}/zarr/ctspine1k/scans/{SCAN}"
        assert digests(xr.open_zarr(scan, zarr_format=3, consolidated=True)) == expected
    assert sum(proxy.counts().faults.values()) >= 3


def test_a_bucket_that_refuses_access_is_answered_with_503_and_never_404(
    s3_server, place, serving, clock
):
    """The bucket is made private while the server runs."""
    name = s3_server.new_bucket()
    for key in ("zarr.json", "scans/zarr.json"):
        source = {"Bucket": place.partition("/")[0], "Key": f"stores/ctspine1k.zarr/{key}"}
        about = {"Bucket": name, "Key": f"x.zarr/{key}", "ACL": "public-read"}
        s3_server.client.copy_object(CopySource=source, **about)
    url = serving(f"s3://{name}/x.zarr", key=None, secret=None, anon=True)
    assert fetch(f"{url}/zarr/x/zarr.json")[0] == 200
    s3_server.client.put_object_acl(Bucket=name, Key="x.zarr/zarr.json", ACL="private")
    clock.advance(FRESH_S)
    for path in ("zarr/x/zarr.json", "zarr/x/scans/a/zarr.json", "zarr/x/scans/a/image/c/0/0/0"):
        status, headers, body = fetch(f"{url}/{path}")
        assert (status, headers["retry-after"]) == (503, "1"), path
        assert name.encode() not in body


# The list of stores


def test_stores_of_a_bucket_come_and_go_while_the_server_runs(
    s3_server, serving, ctspine1k_url, clock
):
    name = s3_server.new_bucket()
    url = serving(f"s3://{name}/stores")
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 404
    assert json.loads(fetch(f"{url}/v1/stores")[2]) == {"stores": []}
    put(s3_server, ctspine1k_url, f"{name}/stores/later.zarr", below="no scans")
    clock.advance(FRESH_S)
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 200
    assert [s["name"] for s in json.loads(fetch(f"{url}/v1/stores")[2])["stores"]] == ["later"]
    s3_server.client.delete_object(Bucket=name, Key="stores/later.zarr/zarr.json")
    clock.advance(FRESH_S)
    assert fetch(f"{url}/zarr/later/zarr.json")[0] == 404


def test_disk_and_bucket_are_served_together(s3_server, place, ctspine1k_url, tmp_path):
    (tmp_path / "here.zarr").symlink_to(ctspine1k_url)
    there = f"s3://{place}"
    options = {there: s3_server.storage_options}
    settings = ServeSettings(paths=(str(tmp_path), there), storage_options=options)
    with BackgroundServer(settings) as server:
        found = json.loads(fetch(f"{server.url}/v1/stores")[2])["stores"]
        assert [store["name"] for store in found] == ["here", "ctspine1k"]
    settings = ServeSettings(paths=(ctspine1k_url, there), storage_options=options)
    with pytest.raises(UsageError, match="both would be served as 'ctspine1k'"):
        BackgroundServer(settings)


def test_a_store_of_another_spinezarr_server_can_be_served(ctspine1k_url, serve):
    """Only a server that gives versions of its files, like ours, can be a source."""
    expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as first:
        place = f"{first.url}/zarr/ctspine1k"
        with BackgroundServer(ServeSettings(paths=(place,))) as second:
            url = f"{second.url}/zarr/ctspine1k"
            found = xr.open_zarr(f"{url}/scans/{SCAN}", zarr_format=3, consolidated=True)
            assert digests(found) == expected
            # A scan id that would lead to another path there is not requested.
            for scan_id in ("..%252f..%252fhealthz%253f", "a%253fb", "%252e%252e"):
                assert fetch(f"{url}/scans/{scan_id}/zarr.json")[0] == 503
                assert fetch(f"{second.url}/v1/ctspine1k/scans/{scan_id}")[0] == 404
        with pytest.raises(UsageError, match="there is no store, and a web server"):
            BackgroundServer(ServeSettings(paths=(f"{first.url}/zarr/other",)))
    plain, _ = serve(Path(ctspine1k_url))
    with pytest.raises(UsageError, match="sends no strong ETag"):
        BackgroundServer(ServeSettings(paths=(plain,)))
    with pytest.raises(UsageError, match="only stores on disk, in a bucket"):
        BackgroundServer(ServeSettings(paths=("memory://x.zarr",)))


def test_no_url_of_a_client_is_fetched(behind):
    url, _, proxy = behind
    proxy.reset()
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        there = f"http:%2F%2F127.0.0.1:{trap.getsockname()[1]}"
        for path in (f"zarr/{there}/zarr.json", f"zarr/{there}%2Fzarr.json", f"flat/{there}",
                     f"zarr/ctspine1k/{there}/zarr.json", f"v1/{there}/scans",
                     "zarr/s3:%2F%2Fother%2Fx.zarr/zarr.json"):  # fmt: skip
            assert fetch(f"{url}/{path}")[0] == 404
        assert fetch_patches(f"{url}/v1/{there}/batch", {})[0] == 404
        with pytest.raises(TimeoutError):
            trap.accept()
    assert all("/stores/ctspine1k.zarr/" in path for _, path, _ in proxy.counts().latest)


# Secrets, and starting the server


def test_no_secret_is_in_an_answer_or_a_log(proxies, s3_server, place, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    limits = ServeLimits(bucket_s=2.0, bucket_reader_s=2.0)
    secrets = {"key": "CANARYKEY", "secret": "CANARYSECRET", "token": "CANARYTOKEN"}
    said = []
    with proxies.proxy(upstream=s3_server.endpoint_url) as proxy:
        there = f"s3://{place}/ctspine1k.zarr"
        options = {there: {"endpoint_url": proxy.url, **secrets}}
        settings = ServeSettings(paths=(there,), storage_options=options, limits=limits)
        said.append(repr(settings))
        with BackgroundServer(settings) as server:
            for kind in (None, "unavailable", "stall", "cut", "short"):
                faults = {"fault_rate": 1.0, "fault_kinds": (kind,)} if kind else {}
                proxy.set(proxies.Conditions(**faults))
                paths = (*PATHS, "v1/stores", "nothing")
                said += [str(fetch(f"{server.url}/{path}")) for path in paths]
    said += [caplog.text, *capfd.readouterr()]
    text = "\n".join(said)
    assert "stored_bytes" in text  # there were answers
    assert "CANARY" not in text
    assert proxy.url not in "\n".join(said[1:-3])


def serve_once(s3_server, *words, **environ):
    code = "from spinezarr.cli.main import main; main()"
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = str(one.getsockname()[1])
    command = [sys.executable, "-c", code, "serve", "--port", port, *words]
    environment = {**s3_server.environment, **environ}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment), port


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        (["s3://{place}"], {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "--profile"),
        (["s3://bucket-that-is-not/x.zarr"], {}, "there is no such bucket"),
        (["s3://{place}", "--no-sign-request"], {}, "access is denied"),
        (["s3://{place}/ctspine1k.zarr", "--profile", "nobody"], {}, "(nobody) could not be found"),
    ],
)
def test_the_error_of_starting_without_credentials_or_bucket_explains_it(
    s3_server, place, monkeypatch, words, environ, expected
):
    for name, text in {**s3_server.environment, **environ}.items():
        monkeypatch.setenv(name, text)
    result = CliRunner().invoke(app, ["serve", *(word.format(place=place) for word in words)])
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.split())


@pytest.mark.long
def test_the_command_serves_a_catalog_of_buckets(s3_server, place, ctspine1k_url, tmp_path):
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        f"datasets:\n  ctspine1k:\n    recipe: ctspine1k\n"
        f"    store: s3://{place}/ctspine1k.zarr\n"
        f"    storage_options: {{endpoint_url: '{s3_server.endpoint_url}'}}\n"
    )
    own = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "NO_COLOR": "1", "COLUMNS": "200"}
    words = ("--catalog", str(catalog), "--workers", "2")
    process, port = serve_once(s3_server, *words, **own)
    try:
        wait_for_server(process, f"http://127.0.0.1:{port}")
        url = f"http://127.0.0.1:{port}/zarr/ctspine1k"
        expected = digests(spinezarr.open(ctspine1k_url).scan(SCAN))
        assert digests(spinezarr.open(url).scan(SCAN)) == expected
    finally:
        process.terminate()
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert f"{url}" in said
    assert "Traceback" not in said


def test_the_serve_method_of_a_store_in_a_bucket_works(s3_server, place, ctspine1k_url):
    url = f"s3://{place}/ctspine1k.zarr"
    with spinezarr.open(url, storage_options=s3_server.storage_options).serve() as server:
        there = spinezarr.open(f"{server.url}/zarr/ctspine1k")
        assert digests(there.scan(SCAN)) == digests(spinezarr.open(ctspine1k_url).scan(SCAN))
