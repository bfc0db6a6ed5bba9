"""Batches that a server reads equal those read by ranges, and the faster way is chosen."""

import asyncio
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr import CacheSettings
from spinezarr.errors import CorruptStoreError, ScanChangedError, UsageError
from spinezarr.serve import endpoints, patches
from spinezarr.serve.admission import AdmissionQueue, BusyError
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.stream.read.batch_client import api_url, store_url
from spinezarr.stream.read.batch_limits import PROTOCOL
from spinezarr.stream.read.tensors import DamagedTensorsError, Tensors, write_tensors

ARRAYS = ("image", "label", "start_zyx", "padding_zyx", "affine", "spacing_zyx_mm", "index")
TYPES = {"I16": "int16", "U8": "uint8", "I64": "int64", "F64": "float64"}
TEXTS = ("scan_id", "vertebra", "dims")


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield f"{server.url}/zarr/ctspine1k"


def counted(stream):
    """Return the numbers of groups read as patches, read by ranges, and refused by the server."""
    known = stream.client._stats.values()
    rates = [[kind.choice.n_reads[way] for kind in known] for way in ("patches", "ranges")]
    return (*map(sum, rates), sum(kind.n_failures for kind in known))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ARRAYS:
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert (a == b).all()
                assert a.flags.writeable
        assert all(getattr(one, name) == getattr(other, name) for name in TEXTS)


STREAMS = {
    "patches": lambda store, **also: store.patches((16, 24, 24), **also),
    "larger than the scan": lambda store, **also: store.patches((70, 30, 31), **also),
    "resampled": lambda store, **also: store.patches((9, 14, 12), spacing_zyx_mm=2.7, **also),
    "slices": lambda store, **also: store.slices("sagittal", size=(30, 33), **also),
    "slices and neighbors": lambda store, **also: store.slices(
        "axial", neighbors=2, neighbor_step_mm=3.0, **also
    ),
    "slices of a spacing": lambda store, **also: store.slices(
        "coronal", size=(20, 21), spacing_mm=1.9, neighbors=1, **also
    ),
}


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(STREAMS)),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["exact", "window"]),
)
def test_batches_read_by_the_server_equal_those_read_by_ranges(
    served, ctspine1k_url, kind, batch_size, n_samples, epoch, labels, shuffle
):
    options = {
        "batch_size": batch_size,
        "n_samples": n_samples,
        "epoch": epoch,
        "labels": labels,
        "foreground": 0.5 if labels else 0.0,
        "shuffle": shuffle,
    }
    expected = list(STREAMS[kind](spinezarr.open(ctspine1k_url), **options))
    for transfer, n in (("patches", True), ("ranges", False)):
        stream = STREAMS[kind](spinezarr.open(served, transfer=transfer), **options)
        assert_same(list(stream), expected)
        by_server, by_ranges, unserved = counted(stream)
        assert bool(by_server) == n
        assert by_ranges == unserved == 0


def test_a_short_url_opens_the_store(served, ctspine1k_url):
    base = served.removesuffix("/zarr/ctspine1k")
    store = spinezarr.open(f"{base}/ctspine1k")
    assert store.url == served
    assert store.table.equals(spinezarr.open(ctspine1k_url).table)
    with pytest.raises(spinezarr.errors.StoreNotFoundError, match="/none: there is no store"):
        spinezarr.open(f"{base}/none")
    assert api_url("http://a/zarr/") is api_url("http://a/zarr/b/scans/c") is None
    assert api_url("s3://zarr/zarr/b") is store_url("s3://bucket/b") is None
    assert store_url("http://ctspine1k") is None


def test_explain_says_how_batches_are_transferred_and_why(served, ctspine1k_url, tmp_path):
    def way(**options):
        stream = spinezarr.open(served, **options).patches((16, 24, 24), batch_size=2)
        return stream.explain().transfer

    assert way(transfer="patches").startswith(f"by the server {served.replace('/zarr/', '/v1/')}")
    assert "packed" in way() or "as they are" in way()
    assert way(transfer="ranges") == "by ranges, as transfer='ranges' was given"
    assert way(cache=CacheSettings(tmp_path)) == way(cache=CacheSettings(memory_bytes=1)) == ""
    assert not spinezarr.open(ctspine1k_url).patches(8).explain().transfer
    text = str(spinezarr.open(served).patches(8).explain())
    assert text.splitlines()[-1].startswith("read by ")
    with pytest.raises(UsageError, match="transfer 'both'"):
        spinezarr.open(ctspine1k_url, transfer="both")


def test_ranges_are_chosen_where_they_are_faster(served, monkeypatch):
    """The client stops asking a slow server for patches, and its batches stay the same."""
    real = endpoints.answer_batch
    event = threading.Event()

    def slowly(*args, **kwargs):
        event.wait(0.15)
        return real(*args, **kwargs)

    monkeypatch.setattr(endpoints, "answer_batch", slowly)
    stream = spinezarr.open(served).patches(8, n_samples=320, batch_size=1)
    given = list(stream)
    by_server, by_ranges, _ = counted(stream)
    assert by_server + by_ranges == len(given) == 320
    assert by_ranges > by_server
    assert "by ranges" in stream.explain().transfer


def test_servers_of_another_protocol_version_are_read_by_ranges(ctspine1k_url, monkeypatch):
    other = patches.batch_limits(ServeLimits()).model_copy(update={"protocol": PROTOCOL + 1})
    monkeypatch.setattr("spinezarr.serve.tables.batch_limits", lambda _: other)
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        stream = spinezarr.open(f"{server.url}/ctspine1k").patches(8, n_samples=2)
        assert len(list(stream)) == 2
        assert stream.explain().transfer == "by ranges, as the server is of another version"


def test_batches_larger_than_the_server_allows_are_read_by_ranges(served, monkeypatch):
    few = patches.batch_limits(ServeLimits()).model_copy(update={"items": 2})
    monkeypatch.setattr("spinezarr.serve.tables.batch_limits", lambda _: few)
    stream = spinezarr.open(served, transfer="patches").patches(8, n_samples=3, batch_size=3)
    assert len(list(stream)) == 1
    assert counted(stream) == (0, 0, 0)
    assert "more than the server sends together" in stream.explain().transfer


def test_batches_that_the_server_refuses_are_read_by_ranges(ctspine1k_url):
    settings = ServeSettings(paths=(ctspine1k_url,), limits=ServeLimits(batch_source_bytes=1))
    with BackgroundServer(settings) as server:
        url = f"{server.url}/ctspine1k"
        stream = spinezarr.open(url, transfer="patches").patches(8, n_samples=100)
        assert len(list(stream)) == 100
    assert stream.client._refusal == ""
    by_server, by_ranges, unserved = counted(stream)
    assert 8 <= unserved <= 50  # eight refusals end it, and others are in flight by then
    assert by_server == unserved  # the server served none of them
    assert by_ranges + unserved == 100


@pytest.mark.parametrize(
    "name", ["start_zyx", "padding_zyx", "label", "image", "affine", "status", "checksum", "all"]
)
def test_a_wrong_answer_of_the_server_is_replaced_by_ranges(
    served, ctspine1k_url, monkeypatch, name
):
    real = endpoints.answer_batch

    def lie(source, request, body, **kwargs):
        wanted = json.dumps({**json.loads(body), "pack": "none"}).encode()
        answer = real(source, request, wanted, **kwargs)
        tensors = Tensors.parse(answer.body)
        header = json.loads(answer.body[8 : 8 + int.from_bytes(answer.body[:8], "little")])
        arrays = {
            key: tensors.get(key, tuple(about["shape"]), TYPES[about["dtype"]])
            for key, about in header.items()
            if key != "__metadata__"
        }
        about = {key: json.loads(text) for key, text in tensors.metadata.items()}
        if name in {"start_zyx", "padding_zyx"}:
            arrays[name] = arrays[name] + 1
        elif name in {"label", "image", "affine"}:
            arrays[name] = arrays[name][..., :-1]
        elif name == "status":
            about["status"] = ["the scan is damaged"] * len(about["status"])
        body = write_tensors(arrays, about, {})
        if name == "checksum":
            body = body[:-1] + bytes([body[-1] ^ 1])
        return replace(answer, body=b"" if name == "all" else body)

    monkeypatch.setattr(endpoints, "answer_batch", lie)
    stream = spinezarr.open(served, transfer="patches").patches(9, n_samples=3)
    assert_same(list(stream), list(spinezarr.open(ctspine1k_url).patches(9, n_samples=3)))
    assert counted(stream) == (3, 0, 3)


def test_an_answer_with_a_wrong_checksum_is_requested_again(served, ctspine1k_url, monkeypatch):
    real, damaged = endpoints.answer_batch, []

    def damage_once(*args, **kwargs):
        answer = real(*args, **kwargs)
        if damaged:
            return answer
        damaged.append(answer)
        return replace(answer, body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))

    monkeypatch.setattr(endpoints, "answer_batch", damage_once)
    stream = spinezarr.open(served, transfer="patches").patches(9, n_samples=3)
    assert_same(list(stream), list(spinezarr.open(ctspine1k_url).patches(9, n_samples=3)))
    assert counted(stream) == (3, 0, 0)
    assert damaged


def test_grids_are_read_by_ranges(served, monkeypatch):
    """The patches of a grid overlap, so one chunk serves many of them."""
    monkeypatch.setattr(endpoints, "answer_batch", None)
    grid = spinezarr.open(served, transfer="patches").grid("liver_0", 24)
    assert len(list(grid)) == len(grid)


def test_images_of_a_lazy_epoch_come_from_the_server_and_labels_by_ranges(served, ctspine1k_url):
    stream = spinezarr.open(served, transfer="patches").patches(9, n_samples=3)
    epoch = stream.to_dask().compute(scheduler="synchronous")
    expected = list(spinezarr.open(ctspine1k_url).patches(9, n_samples=3))
    for name in ("image", "label"):
        voxels = np.concatenate([getattr(batch, name) for batch in expected])
        np.testing.assert_array_equal(epoch[name], voxels)
    assert counted(stream) == (3, 0, 0)


def test_the_admission_queue_limits_waiting_requests_and_bytes():
    async def ask(queue, n_bytes):
        async with queue.slot(n_bytes):
            await asyncio.sleep(0.01)

    async def run(queue, n, n_bytes):
        return await asyncio.gather(
            *(ask(queue, n_bytes) for _ in range(n)), return_exceptions=True
        )

    for n, n_bytes, refused in ((4, 1, 0), (6, 1, 2), (4, 40, 1), (4, 51, 2), (1, 1000, 0)):
        found = asyncio.run(run(AdmissionQueue(1, 3, 100), n, n_bytes))
        assert [type(one) for one in found if one is not None] == [BusyError] * refused


def test_damage_raises_the_same_error_as_reading_by_ranges(ctspine1k_url, tmp_path):
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    ids = spinezarr.open(copy).table.scan.to_numpy().tolist()
    shard = copy / f"scans/{ids[1]}/image/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    with BackgroundServer(ServeSettings(paths=(str(copy),))) as server:
        store = spinezarr.open(f"{server.url}/own", transfer="patches")
        good = store.patches(70, scans=[ids[0]], n_samples=2)
        assert len(list(good)) == 2
        then = shard.stat()
        shard.write_bytes(data)
        os.utime(shard, ns=(then.st_atime_ns, then.st_mtime_ns))
        with pytest.raises(CorruptStoreError, match=ids[1]):
            list(store.patches(70, scans=[ids[1]], n_samples=2))


def test_a_replaced_scan_is_an_error_or_followed_as_on_change_says(
    tmp_path, ingest_version, monkeypatch
):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        there = spinezarr.open(f"{server.url}/own", transfer="patches")
        size = tuple(there.table.shape_zyx.to_numpy()[0].tolist())
        old = there.patches(size, n_samples=1)
        follow = there.patches(size, n_samples=1, on_change="follow")
        before = next(iter(old)).image
        ingest_version("after", store)
        real, asked = endpoints.answer_batch, []
        monkeypatch.setattr(
            endpoints, "answer_batch", lambda *a, **k: asked.append(1) or real(*a, **k)
        )
        with pytest.raises(ScanChangedError):
            next(iter(old))
        assert len(asked) == 1  # a batch that the server cannot read is not requested again
        assert (next(iter(follow)).image != before).sum() == 1


def test_a_token_is_sent_with_batches(ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "lab")
    given = {"paths": (ctspine1k_url,), "token_file": str(tmp_path / "tokens")}
    with BackgroundServer(ServeSettings(**given)) as server:
        for url, options in (
            (f"{server.url}/ctspine1k", {"headers": {"Authorization": f"Bearer {token}"}}),
            (server.url.replace("//", f"//any:{token}@") + "/zarr/ctspine1k", {}),
        ):
            store = spinezarr.open(url, storage_options=options, transfer="patches")
            stream = store.patches(8, n_samples=2)
            assert len(list(stream)) == 2
            assert counted(stream)[0] == 2
            assert token not in stream.explain().transfer + repr(store)
        with pytest.raises(PermissionError):
            spinezarr.open(f"{server.url}/ctspine1k")


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_streams_work_after_pickling_and_in_other_processes(served, method):
    stream = spinezarr.open(served, transfer="patches").patches((8, 9, 10), n_samples=6)
    expected = list(stream)
    assert_same(list(pickle.loads(pickle.dumps(stream))), expected)  # noqa: S301
    assert_same(list(stream.resume(state_after(stream, 2))), expected[2:])
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert_same(pool.apply(list, (stream,)), expected)


def state_after(stream, n):
    batches = iter(stream)
    for _ in range(n):
        next(batches)
    return json.loads(json.dumps(batches.state_dict()))


def test_more_trainers_than_the_server_admits_wait_and_finish(ctspine1k_url):
    limits = ServeLimits(batches_at_once=1, waiting=2)
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=limits)) as server:
        url, found = f"{server.url}/ctspine1k", {}
        expected = list(spinezarr.open(ctspine1k_url).patches(8, n_samples=12))

        def train(rank):
            stream = spinezarr.open(url, transfer="patches").patches(8, n_samples=12)
            found[rank] = list(stream)

        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    for trained in found.values():
        assert_same(trained, expected)


dtypes = st.sampled_from(["int16", "uint8", "float32", "int64"])
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)


@given(shapes, dtypes, st.sampled_from(["none", "lz4", "zstd"]), st.data())
def test_tensors_are_parsed_as_they_were_sent_or_refused(shape, dtype, pack, data):
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    sent = write_tensors({"a": values, "b": np.arange(3)}, {"status": ["ok"]}, {"a": pack})
    found = Tensors.parse(sent)
    assert (found.get("a", shape, dtype) == values).all()
    assert json.loads(found.metadata["status"]) == ["ok"]
    for wrong in ((*shape, 1), (7,)):
        with pytest.raises(DamagedTensorsError):
            found.get("a", wrong, dtype)
    damaged = bytearray(sent)
    at = data.draw(st.integers(0, len(sent) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(damaged), sent[:at]):
        try:
            again = Tensors.parse(bad)
            values_again = again.get("a", shape, dtype)
            others = again.get("b", (3,), "int64")
        except DamagedTensorsError:
            continue
        assert (values_again == values).all()
        assert others.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "head",
    [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 5_000, b'{"a": 1}',
     b'{"__metadata__": {"crc32c": "[]"}}', b'{"__metadata__": {"crc32c": "{}", "packed": "1"}}',
     b'{"__metadata__":{"crc32c":"{}"},"a":{"dtype":"I16","shape":[9],"data_offsets":[0,18]}}',
     b'{"__metadata__":{"crc32c":"{\\"a\\":0}"},"a":{"dtype":"I16","shape":[1],"data_offsets":[0,0]}}',
     b'{"__metadata__":{"crc32c":"{}"}}' + b" " * (5 << 20)],
)  # fmt: skip
def test_false_tensor_headers_are_refused(head):
    lies = struct.pack("<Q", len(head)) + head
    with pytest.raises(DamagedTensorsError, match=r"tensor"):
        Tensors.parse(lies).get("a", (1,), "int16")
    with pytest.raises(DamagedTensorsError):
        Tensors.parse(struct.pack("<Q", 1 << 60) + head)


def test_a_compressed_frame_with_a_false_size_is_refused():
    values = np.arange(1000, dtype="int16")
    sent = write_tensors({"a": values}, {}, {"a": "lz4"})
    body = sent[8 + int.from_bytes(sent[:8], "little") :]
    for at, text in ((4, 4000), (12, len(body) + 9)):  # bytes of voxels, of the frame
        frame = bytearray(body)
        frame[at : at + 4] = text.to_bytes(4, "little")
        lies = write_tensors({"a": np.frombuffer(frame, np.uint8)}, {}, {})
        packed = json.dumps({"a": {"dtype": "<i2", "shape": [1000]}})
        header = json.loads(lies[8 : 8 + int.from_bytes(lies[:8], "little")])
        header["__metadata__"]["packed"] = packed
        text_now = json.dumps(header).encode()
        whole = struct.pack("<Q", len(text_now)) + text_now + bytes(frame)
        with pytest.raises(DamagedTensorsError):
            Tensors.parse(whole).get("a", (1000,), "int16")
