"""Patches that a server reads equal those that a stream reads."""

import io
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import SimpleITK
from google_crc32c import extend
from http_client import fetch, fetch_patches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from timeouts import TIMEOUT_S

import spinezarr
from spinezarr.geometry import Box
from spinezarr.serve import patches
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tokens import new_token
from spinezarr.stream.request import PatchRequest


def parsed(body):
    """Parse an answer with the safetensors package."""
    tensors = safetensors.numpy.load(body)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    about = {name: json.loads(text) for name, text in header["__metadata__"].items()}
    for name, values in tensors.items():
        assert extend(0, values.tobytes()) == about["crc32c"][name]
    for name, packed in about["packed"].items():
        voxels = np.frombuffer(blosc.decompress(tensors[name].tobytes()), packed["dtype"])
        tensors[name] = voxels.reshape(packed["shape"])
    return tensors, about


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield f"{server.url}/v1/ctspine1k/batch"


@pytest.fixture(scope="module")
def local(ctspine1k_url):
    return spinezarr.open(ctspine1k_url)


items = st.lists(
    st.tuples(st.integers(0, 9), st.tuples(*[st.integers(-40, 80)] * 3)), min_size=0, max_size=5
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items,
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from(["none", "lz4", "zstd"]),
    st.booleans(),
)
def test_patches_of_the_server_equal_those_of_a_stream(
    served, local, chosen, size_zyx, pack, with_label
):
    ids = local.table.scan.to_numpy().tolist()
    wanted = [(ids[which % len(ids)], start) for which, start in chosen]
    body = {
        "items": [{"scan_id": scan_id, "start_zyx": start} for scan_id, start in wanted],
        "size_zyx": size_zyx,
        "labels": ["label"] * with_label,
        "pack": pack,
    }
    status, headers, answer = fetch_patches(served, body)
    assert (status, headers["content-type"]) == (200, "application/x-safetensors")
    found, about = parsed(answer)
    stream = local.patches(size_zyx, labels=with_label)
    expected = stream.read(
        [
            PatchRequest(at, scan_id, Box.at(start, size_zyx), None)
            for at, (scan_id, start) in enumerate(wanted)
        ]
    )
    assert about["status"] == ["ok"] * len(wanted)
    names = ["image", "start_zyx", "padding_zyx", "affine", "spacing_zyx_mm", "index"]
    for name in names + ["label"] * with_label:
        assert (found[name] == getattr(expected, name)).all()
        assert found[name].shape == getattr(expected, name).shape
    assert with_label or "label" not in found


def test_slices_and_resampled_patches_equal_those_of_a_stream(served, local):
    for fields, stream in (
        (
            {"size_zyx": (1, 30, 30), "flat_axis": 0, "neighbors": 2, "neighbor_step_mm": 3.0},
            local.slices("axial", neighbors=2, neighbor_step_mm=3.0, size=(30, 30)),
        ),
        (
            {"size_zyx": (12, 14, 16), "spacing_zyx_mm": (2.5, 1.5, 1.5)},
            local.patches((12, 14, 16), spacing_zyx_mm=(2.5, 1.5, 1.5)),
        ),
    ):
        requests = [stream.request(index) for index in range(4)]
        wanted = [{"scan_id": r.scan_id, "start_zyx": r.box.start_zyx} for r in requests]
        status, _, answer = fetch_patches(served, {"items": wanted, **fields})
        assert status == 200
        found, about = parsed(answer)
        expected = stream.read(requests)
        assert tuple(about["dims"]) == expected.dims
        assert (found["image"] == expected.image).all()
        assert (found["label"] == expected.label).all()


def test_each_item_of_a_batch_has_its_own_status(ctspine1k_url, tmp_path):
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    store = spinezarr.open(copy)
    ids = store.table.scan.to_numpy().tolist()
    shard = copy / f"scans/{ids[1]}/image/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    masked = store.table.label_state.to_numpy() != "none"
    assert masked.any()
    wanted = [
        {"scan_id": ids[0], "start_zyx": (0, 0, 0)},
        {"scan_id": "none", "start_zyx": (0, 0, 0)},
        {"scan_id": ids[1], "start_zyx": (0, 0, 0)},
        {"scan_id": ids[2], "start_zyx": (0, 0, 0), "content_checksum": "0" * 32},
        {"scan_id": "../../outside", "start_zyx": (0, 0, 0)},
        {"scan_id": ids[2], "start_zyx": (1, 1, 1)},
    ]
    with BackgroundServer(ServeSettings(paths=(str(copy),))) as server:
        status, _, answer = fetch_patches(
            f"{server.url}/v1/own/batch", {"items": wanted, "size_zyx": (4, 4, 4)}
        )
    assert status == 200
    found, about = parsed(answer)
    assert about["status"] == [
        "ok",
        "there is no such scan",
        "the scan is damaged, or has changed",
        "the scan has changed",
        "there is no such scan",
        "ok",
    ]
    assert found["index"].tolist() == [0, 5]
    assert found["image"].shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        ({"items": []}, 400),
        ({"items": [], "size_zyx": (0, 1, 1)}, 400),
        ({"items": [], "size_zyx": (1, 1)}, 400),
        ({"items": [], "size_zyx": (1, 1, 1.5)}, 400),
        ({"items": [], "size_zyx": ("1", 1, 1)}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "other": 1}, 400),
        ({"items": [], "size_zyx": (2, 1, 1), "flat_axis": 0}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "neighbors": 1}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "neighbor_step_mm": 1.0, "flat_axis": 0}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "image_dtype": "object"}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "pack": "pickle"}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "spacing_zyx_mm": (0, 1, 1)}, 400),
        ({"items": [], "size_zyx": (1, 1, 1), "spacing_zyx_mm": (1e-320, 1, 1)}, 400),
        ({"items": [{"scan_id": "a", "start_zyx": (2**40, 0, 0)}], "size_zyx": (1, 1, 1)}, 400),
        ({"items": [{"scan_id": "a", "start_zyx": (0, 0, 0)}], "size_zyx": (4096,) * 3}, 413),
        (
            {
                "items": [{"scan_id": "a", "start_zyx": (0, 0, 0)}],
                "size_zyx": (1, 3000, 3000),
                "flat_axis": 0,
                "neighbors": 8,
            },
            413,
        ),
        (b" " * (5 << 20), 413),
        ({"items": [], "size_zyx": (1, 1, 1)}, 200),
    ],
)
def test_the_error_of_an_invalid_request_explains_it(served, body, status):
    found, headers, answer = fetch_patches(served, body)
    assert found == status
    assert headers["cache-control"] == "no-store"
    assert status == 200 or b"Traceback" not in answer


def test_a_body_that_never_arrives_delays_no_other_request(serve_within):
    served = f"{serve_within(body_s=0.3)}/v1/ctspine1k/batch"
    host = served.removeprefix("http://").partition("/")[0]
    name, _, port = host.partition(":")
    slow = [socket.create_connection((name, int(port)), timeout=TIMEOUT_S) for _ in range(40)]
    lines = ["POST /v1/ctspine1k/batch HTTP/1.1", f"Host: {host}", "Content-Length: 99", "", "{"]
    for one in slow:
        one.sendall("\r\n".join(lines).encode())
    assert fetch_patches(served, {"items": [], "size_zyx": (1, 1, 1)})[0] == 200
    for one in slow:
        with one:
            assert one.recv(64).startswith(b"HTTP/1.1 408")


def test_the_voxels_read_for_a_batch_are_limited(served, serve_within, local):
    """A patch of coarse spacing is small, but is read from a whole scan."""
    scan_id = local.table.scan.to_numpy()[0]
    body = {"items": [{"scan_id": scan_id, "start_zyx": (0, 0, 0)}], "size_zyx": (9, 9, 9)}
    coarse = {**body, "spacing_zyx_mm": (20.0, 20.0, 20.0)}
    assert [fetch_patches(served, wanted)[0] for wanted in (body, coarse)] == [200, 200]
    bound = f"{serve_within(batch_source_bytes=3 * 11**3)}/v1/ctspine1k/batch"
    assert [fetch_patches(bound, wanted)[0] for wanted in (body, coarse)] == [200, 413]
    alone = {**body, "size_zyx": (1, 9, 9), "flat_axis": 0}
    beside = {**alone, "neighbors": 1}
    assert [fetch_patches(bound, wanted)[0] for wanted in (alone, beside)] == [200, 413]


def test_patches_need_a_token_if_the_server_requires_one(ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "lab")
    given_paths = {"paths": (ctspine1k_url,), "token_file": str(tmp_path / "tokens")}
    with BackgroundServer(ServeSettings(**given_paths)) as server:
        url, body = f"{server.url}/v1/ctspine1k/batch", {"items": [], "size_zyx": (1, 1, 1)}
        assert fetch_patches(url, body)[0] == 401
        assert fetch_patches(url, body, authorization=f"Bearer {token}")[0] == 200
        none = f"{server.url}/v1/none/batch"
        assert fetch_patches(none, body, authorization=f"Bearer {token}")[0] == 404


def test_patches_of_a_replaced_scan_are_those_of_the_new_version(tmp_path, ingest_version):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    body = {"items": [{"scan_id": "a", "start_zyx": (0, 0, 0)}], "size_zyx": (20, 24, 16)}
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        url = f"{server.url}/v1/own/batch"
        before = parsed(fetch_patches(url, body)[2])[0]["image"]
        checksum = spinezarr.open(store).table.content_checksum.item()
        ingest_version("after", store)
        found, about = parsed(fetch_patches(url, body)[2])
        assert about["status"] == ["ok"]
        assert (found["image"] != before).sum() == 1
        body["items"][0]["content_checksum"] = checksum
        assert parsed(fetch_patches(url, body)[2])[1]["status"] == ["the scan has changed"]


def test_cached_chunks_of_a_replaced_scan_are_not_used(tmp_path, ingest_version):
    """The older version is in memory, so reading it would not notice that its files are gone."""
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    body = {"items": [{"scan_id": "a", "start_zyx": (0, 0, 0)}], "size_zyx": (20, 24, 16)}
    settings = ServeSettings(paths=(str(store),), cache_bytes=100_000_000)
    with BackgroundServer(settings) as server:
        url = f"{server.url}/v1/own/batch"
        before = parsed(fetch_patches(url, body)[2])[0]["image"]
        ingest_version("after", store)
        assert (parsed(fetch_patches(url, body)[2])[0]["image"] != before).sum() == 1


def test_a_request_for_a_version_never_gets_the_voxels_of_another(
    tmp_path, ingest_version, monkeypatch
):
    """The scan is replaced between the check of its version and the reading."""
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    monkeypatch.setattr(patches.PatchSource, "_is_current", lambda *_: True)
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        url = f"{server.url}/v1/own/batch"
        named = spinezarr.open(store).table.content_checksum.item()
        item = {"scan_id": "a", "start_zyx": (0, 0, 0)}
        items = [item, {**item, "content_checksum": named}]
        body = {"items": items, "size_zyx": (20, 24, 16)}
        before = parsed(fetch_patches(url, body)[2])[0]["image"]
        ingest_version("after", store)
        found, about = parsed(fetch_patches(url, body)[2])
        assert about["status"] == ["ok", "the scan has changed"]
        assert found["index"].tolist() == [0]
        assert (found["image"] != before[:1]).sum() == 1


def test_a_store_is_opened_again_only_if_a_scan_has_changed(tmp_path, ingest_version):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    source = ServedStores([str(store)]).patches("own")
    first, _ = source.reader_and_engine(["a"])
    assert source.reader_and_engine(["a"])[0] is first
    assert source.reader_and_engine(["absent"])[0] is first  # reading the scan raises the error
    ingest_version("after", store)
    now, _ = source.reader_and_engine(["a"])
    assert now is not first
    assert now.scan("a").content_checksum != first.scan("a").content_checksum
    shutil.rmtree(store / "scans/a")
    assert source.reader_and_engine(["a"])[0] is not now


# Single patches


@pytest.fixture(scope="module")
def scan_url(served):
    return f"{served.removesuffix('batch')}scans/liver_0"


def patch_of(stream, start, size):
    return stream.read([PatchRequest(0, "liver_0", Box.at(start, size), None)])


ONE = "size_zyx=12,10,8&start_zyx=-2,5,7"
SIZE, START = (12, 10, 8), (-2, 5, 7)


@pytest.mark.parametrize("pack", ["none", "lz4", "zstd"])
def test_one_patch_is_a_batch_of_one(scan_url, local, pack):
    status, headers, body = fetch(f"{scan_url}/patch?{ONE}&pack={pack}")
    assert (status, headers["content-type"]) == (200, "application/x-safetensors")
    found, about = parsed(body)
    expected = patch_of(local.patches(SIZE), START, SIZE)
    assert about["status"] == ["ok"]
    for name in ("image", "label", "start_zyx", "padding_zyx", "affine", "spacing_zyx_mm"):
        assert (found[name] == getattr(expected, name)).all()


def test_one_array_comes_as_npy(scan_url, local):
    expected = patch_of(local.patches(SIZE), START, SIZE)
    for array in ("image", "label"):
        status, headers, body = fetch(
            f"{scan_url}/patch?{ONE}&array={array}", accept="application/x-npy"
        )
        assert (status, headers["content-type"]) == (200, "application/x-npy")
        found = np.load(io.BytesIO(body), allow_pickle=False)
        assert found.dtype == getattr(expected, array).dtype
        assert (found == getattr(expected, array)[0]).all()


@pytest.mark.parametrize("pack", ["none", "lz4", "zstd"])
def test_arrow_holds_the_same_arrays(served, scan_url, local, pack):
    accept = "application/vnd.apache.arrow.stream"
    wanted = [("liver_0", START), ("none", START), ("HN_P001", (0, 0, 0))]
    items = [{"scan_id": scan_id, "start_zyx": start} for scan_id, start in wanted]
    body = {"items": items, "size_zyx": SIZE, "pack": pack}
    answers = [
        fetch_patches(served, body, accept=accept),
        fetch(f"{scan_url}/patch?{ONE}&pack={pack}", accept=accept),
    ]
    for (status, headers, answer), ids in zip(answers, ([0, 2], [0]), strict=True):
        assert (status, headers["content-type"]) == (200, accept)
        rows = pa.ipc.open_stream(answer).read_all().combine_chunks()
        about = {name.decode(): json.loads(text) for name, text in rows.schema.metadata.items()}
        assert about["dims"] == ["z", "y", "x"]
        chosen = [wanted[at] for at in ids]
        expected = local.patches(SIZE).read(
            [PatchRequest(i, s, Box.at(start, SIZE), None) for i, (s, start) in enumerate(chosen)]
        )
        assert rows["scan_id"].to_pylist() == list(expected.scan_id)
        assert rows["index"].to_pylist() == ids
        for name in ("image", "label", "start_zyx", "padding_zyx", "affine", "spacing_zyx_mm"):
            found = rows[name].chunk(0).to_numpy_ndarray()
            assert found.dtype == getattr(expected, name).dtype
            assert (found == getattr(expected, name)).all()
    empty = pa.ipc.open_stream(fetch_patches(served, {**body, "items": []}, accept=accept)[2])
    assert empty.schema.equals(rows.schema)
    assert json.loads(empty.schema.metadata[b"status"]) == []


@pytest.mark.parametrize(
    ("query", "array", "stream"),
    [
        (ONE, "image", lambda store: patch_of(store.patches(SIZE), START, SIZE)),
        (ONE, "label", lambda store: patch_of(store.patches(SIZE), START, SIZE)),
        (
            "size_zyx=12,10,8&start_zyx=3,2,1&spacing_zyx_mm=2.5,1.5,1.5",
            "image",
            lambda store: patch_of(
                store.patches(SIZE, spacing_zyx_mm=(2.5, 1.5, 1.5)), (3, 2, 1), SIZE
            ),
        ),
        (
            "size_zyx=20,1,18&start_zyx=1,9,3&flat_axis=1",
            "image",
            lambda store: patch_of(store.slices("coronal", size=(20, 18)), (1, 9, 3), (20, 1, 18)),
        ),
    ],
)
@pytest.mark.parametrize("form", ["application/gzip", "application/x-nifti"])
def test_the_nifti_file_of_a_patch_lies_where_the_patch_lies(
    scan_url, local, tmp_path, affine_of_itk, query, array, stream, form
):
    status, headers, body = fetch(f"{scan_url}/patch?{query}&array={array}", accept=form)
    assert (status, headers["content-type"]) == (200, form)
    ending = "nii.gz" if form == "application/gzip" else "nii"
    assert headers["content-disposition"].endswith(f"''liver_0_{array}.{ending}")
    path = tmp_path / f"patch.{ending}"
    path.write_bytes(body)
    batch = stream(local)
    expected = getattr(batch, array)[0]
    if expected.ndim == 2:
        expected = expected[:, None]
    expected = expected.T  # (x, y, z)
    file = nibabel.load(path)
    assert (np.asarray(file.dataobj) == expected).all()
    np.testing.assert_allclose(file.affine, batch.affine[0], rtol=1e-5, atol=1e-3)
    assert (file.header["sform_code"], file.header["qform_code"]) == (1, 1)
    image = SimpleITK.ReadImage(str(path))
    voxels = SimpleITK.GetArrayFromImage(image).T
    assert (voxels == expected).all()
    np.testing.assert_allclose(affine_of_itk(image), batch.affine[0], rtol=1e-5, atol=1e-3)


def test_the_affine_of_a_nifti_patch_agrees_with_that_of_the_scan(scan_url, local):
    """A voxel of the patch has the same position in RAS+ mm as in the whole scan."""
    _, _, body = fetch(f"{scan_url}/patch?{ONE}", accept="application/x-nifti")
    patch = nibabel.Nifti1Image.from_bytes(body)
    whole = np.array(local._reader.scan("liver_0").affine)
    z, y, x = START
    np.testing.assert_allclose(patch.affine @ (0, 0, 0, 1), whole @ (x, y, z, 1), atol=1e-3)
    np.testing.assert_allclose(patch.affine[:3, :3], whole[:3, :3], rtol=1e-6)


@pytest.mark.parametrize(
    ("query", "accept", "status", "says"),
    [
        (f"{ONE}&pack=lz4", "application/x-npy", 400, "no compression"),
        (f"{ONE}&image_dtype=int64", "application/gzip", 400, "64-bit"),
        ("size_zyx=1,9,9&start_zyx=0,0,0&flat_axis=0&neighbors=1", "application/gzip", 400, "one"),
        (
            f"{ONE}&labels=&array=label",
            "application/x-npy",
            400,
            "label must also be in labels",
        ),
        (f"{ONE}&flat_axis=0", "*/*", 400, "flat_axis"),
        (f"{ONE}&image_dtype=uint16", "*/*", 422, "int16"),
        (ONE, "image/png", 406, "application/x-safetensors, application/vnd.apache.arrow.stream"),
        (ONE, "application/x-safetensors;q=0", 406, "application/x-npy"),
        ("", "*/*", 400, "size_zyx"),
    ],
)
def test_the_errors_of_invalid_patches_explain_them(scan_url, query, accept, status, says):
    found, headers, body = fetch(f"{scan_url}/patch?{query}", accept=accept)
    assert (found, headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert says in body.decode()


def test_arrow_without_pyarrow_is_a_clear_error(served, scan_url, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    accept = "application/vnd.apache.arrow.stream"
    for status, _, body in (
        fetch(f"{scan_url}/patch?{ONE}", accept=accept),
        fetch_patches(served, {"items": [], "size_zyx": (1, 1, 1)}, accept=accept),
    ):
        assert status == 406
        assert b"pyarrow" in body
    status, headers, _ = fetch(f"{scan_url}/patch?{ONE}", accept=f"{accept}, */*;q=0.1")
    assert (status, headers["content-type"]) == (200, "application/x-safetensors")


def test_a_patch_of_a_version_may_be_cached(scan_url, local, monkeypatch):
    checksum = local.table.content_checksum.sel(scan="liver_0").item()
    now, named = f"{scan_url}/patch?{ONE}", f"{scan_url}/patch?{ONE}&content_checksum={checksum}"
    _, headers, _ = fetch(now)
    assert headers["cache-control"] == "no-cache"
    tag = headers["etag"]
    _, kept, _ = fetch(named)
    assert kept["cache-control"] == "private, max-age=31536000, immutable"
    assert kept["etag"] == tag
    others = [
        fetch(f"{now}&labels=")[1]["etag"],
        fetch(now.replace("-2,5,7", "-2,5,6"))[1]["etag"],
        fetch(now, accept="application/x-npy")[1]["etag"],
        fetch(f"{now}&array=label", accept="application/x-npy")[1]["etag"],
        fetch(now.replace("liver_0", "HN_P001"))[1]["etag"],
    ]
    assert len({tag, *others}) == 6
    monkeypatch.setattr(patches._PatchRead, "run", None)  # nothing is read for these
    for url in (now, named):
        status, headers, body = fetch(url, if_none_match=f'"x", W/{tag}')
        assert (status, headers["etag"], body) == (304, tag, b"")
        assert fetch(url, if_match='"x"')[0] == 412


def test_a_patch_of_a_replaced_version_is_410(tmp_path, ingest_version):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        url = f"{server.url}/v1/own/scans/a/patch?size_zyx=20,24,16&start_zyx=0,0,0"
        _, headers, before = fetch(url)
        checksum = spinezarr.open(store).table.content_checksum.item()
        assert fetch(f"{url}&content_checksum={checksum}")[2] == before
        ingest_version("after", store)
        assert fetch(f"{url}&content_checksum={checksum}")[0] == 410
        status, other, after = fetch(url, if_none_match=headers["etag"])
        assert status == 200
        assert other["etag"] != headers["etag"]
        difference = parsed(after)[0]["image"] != parsed(before)[0]["image"]
        assert difference.sum() == 1
        (shard,) = (
            path for path in (store / "scans/a/image").iterdir() if path.name != "zarr.json"
        )
        for path in [shard, *shard.rglob("*")]:
            if path.is_file():
                path.write_bytes(b"")
        assert fetch(url)[0] == 503


def test_decoded_chunks_are_cached_if_a_limit_is_set(ctspine1k_url, tmp_path):
    """The cache keeps within its limit, and holds only chunks of the current version."""
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    ids = spinezarr.open(copy).table.scan.to_numpy().tolist()
    body = {"items": [{"scan_id": ids[0], "start_zyx": (0, 0, 0)}], "size_zyx": (9, 9, 9)}
    shard = copy / f"scans/{ids[0]}/image/c/0/0/0"
    data, then = shard.read_bytes(), shard.stat()

    def damage(content):
        shard.write_bytes(content)
        os.utime(shard, ns=(then.st_atime_ns, then.st_mtime_ns))

    found = []
    for cache_bytes in (0, 1, 100_000_000):
        settings = ServeSettings(paths=(str(copy),), cache_bytes=cache_bytes)
        with BackgroundServer(settings) as server:
            url = f"{server.url}/v1/own/batch"
            before = parsed(fetch_patches(url, body)[2])[0]
            damage(bytes(len(data)))
            after, about = parsed(fetch_patches(url, body)[2])
            damage(data)
            found.append(about["status"][0] == "ok")
            assert not found[-1] or (after["image"] == before["image"]).all()
    assert found == [False, False, True]
