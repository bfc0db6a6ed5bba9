"""Levels that a server sends equal those computed from the stored voxels."""

import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from http_client import fetch

import spinezarr
from spinezarr.geometry import Box
from spinezarr.serve.http import accepts_gzip
from spinezarr.serve.levels import LevelQuery, _select
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.serve.version_headers import RefusedError
from spinezarr.view.levels import LevelReader, levels_of

COARSEST = 500
"""Most voxels of the coarsest level, so that small scans have several levels too."""
LIMITS = ServeLimits(coarsest_level_voxels=COARSEST)


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=LIMITS)) as server:
        yield f"{server.url}/v1/ctspine1k/scans"


def voxels(answer):
    status, headers, body = answer
    assert status == 200
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    shape = [int(n) for n in headers["x-spinezarr-shape-zyx"].split(",")]
    dtype = np.dtype(headers["x-spinezarr-dtype"]).newbyteorder("<")
    return np.frombuffer(body, dtype).reshape(shape)


def test_levels_and_boxes_of_them_equal_computed_ones(served, ctspine1k_url):
    store = spinezarr.open(ctspine1k_url)
    scan = store._reader.scan("liver_0")
    plan = levels_of(scan, COARSEST)
    assert len(plan) > 2
    made = LevelReader(store._engine)
    for level in plan:
        for array in scan.arrays:
            expected = made.read(array, level)
            url = f"{served}/liver_0/levels/{level.level}?array={array.name}"
            found = voxels(fetch(url))
            assert found.dtype == expected.dtype == {"image": "i2", "label": "u1"}[array.name]
            assert (found == expected).all()
            assert (voxels(fetch(url, accept_encoding="br, gzip")) == expected).all()
            status, headers, file = fetch(f"{url}&pack=gzip", accept_encoding="gzip")
            assert (status, headers["content-type"]) == (200, "application/gzip")
            assert "content-encoding" not in headers
            assert gzip.decompress(file) == expected.tobytes()
            n = level.shape_zyx
            box = Box((n[0] // 3, n[1] // 2, 0), (n[0], n[1] // 2 + 1, n[2]))
            asked = [",".join(map(str, numbers)) for numbers in (box.start_zyx, box.shape_zyx)]
            answer = fetch(f"{url}&start_zyx={asked[0]}&size_zyx={asked[1]}")
            assert (voxels(answer) == expected[box.slices]).all()
            rest = voxels(fetch(f"{url}&start_zyx={asked[0]}"))
            start = tuple(slice(a, None) for a in box.start_zyx)
            assert (rest == expected[start]).all()


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("liver_0/levels/x", 404, "no such level"),
        ("liver_0/levels/-1", 404, "no such level"),
        ("liver_0/levels/00", 404, "no such level"),
        ("liver_0/levels/9", 404, "no such level"),
        ("none/levels/0", 404, "no such scan"),
        ("..%2F../levels/0", 404, "no such page"),
        ("liver_0/levels/0?array=mask", 422, "no mask mask; it has label"),
        ("liver_0/levels/0?array=Mask", 400, "array"),
        ("liver_0/levels/0?start_zyx=-1,0,0", 400, "start_zyx"),
        ("liver_0/levels/0?size_zyx=0,1,1", 400, "size_zyx"),
        ("liver_0/levels/0?size_zyx=1,1", 400, "size_zyx"),
        ("liver_0/levels/0?level=1", 400, "The parameters are"),
        ("liver_0/levels/0?size_zyx=1,1,9999", 422, "not inside"),
        ("liver_0/levels/1?start_zyx=0,0,999", 422, "not inside"),
    ],
)
def test_the_errors_of_invalid_requests_for_levels_explain_them(served, path, status, says):
    found = fetch(f"{served}/{path}")
    assert found[0] == status
    assert says in found[2].decode()


def test_requests_above_the_limits_are_refused(ctspine1k_url):
    path = "v1/ctspine1k/scans/liver_0/levels"
    voxels, source = {"level_voxel_bytes": 200}, {"level_source_bytes": 200}
    for bounds in (voxels, voxels | source):
        limits = LIMITS.model_copy(update=bounds)
        with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=limits)) as server:
            assert fetch(f"{server.url}/{path}/0?size_zyx=5,5,4")[0] == 200
            status, _, body = fetch(f"{server.url}/{path}/0?size_zyx=5,5,5")
            assert status == 413
            assert b"smaller box" in body
            status = fetch(f"{server.url}/{path}/1?size_zyx=5,5,4")[0]
            assert status == (413 if "level_source_bytes" in bounds else 200)


def test_levels_of_a_version_may_be_cached(served, ctspine1k_url):
    checksum = spinezarr.open(ctspine1k_url)._reader.scan("liver_0").content_checksum
    url = f"{served}/liver_0/levels/1"
    headers = fetch(url)[1]
    assert headers["cache-control"] == "no-cache"
    named = fetch(f"{url}?content_checksum={checksum}")[1]
    assert named["cache-control"] == "private, max-age=31536000, immutable"
    assert named["etag"] == headers["etag"]
    assert fetch(url, if_none_match=headers["etag"])[0] == 304
    tags = {
        fetch(f"{url}?{query}", accept_encoding=coding)[1]["etag"]
        for query in ("", "array=label", "start_zyx=1,0,0", "pack=gzip")
        for coding in ("gzip", "identity")
    }
    assert len(tags) == 5  # images come in one coding


def test_levels_of_a_replaced_scan_are_those_of_the_new_version(tmp_path, ingest_version):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    with BackgroundServer(ServeSettings(paths=(str(store),), limits=LIMITS)) as server:
        url = f"{server.url}/v1/own/scans/a/levels/1"
        before = fetch(url)
        checksum = spinezarr.open(store)._reader.scan("a").content_checksum
        ingest_version("after", store)
        after = fetch(url)
        assert after[1]["etag"] != before[1]["etag"]
        status, headers, _ = fetch(f"{url}?content_checksum={checksum}")
        assert (status, headers["cache-control"]) == (410, "no-store")
        own = spinezarr.open(store)
        expected = LevelReader(own._engine).read(
            own._reader.scan("a").image, levels_of(own._reader.scan("a"), COARSEST)[1]
        )
        assert (voxels(after) == expected).all()


def test_damaged_levels_are_an_error(ctspine1k_url, tmp_path):
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    shard = copy / "scans/liver_0/image/c/0/0/0"
    shard.write_bytes(os.urandom(shard.stat().st_size))
    with BackgroundServer(ServeSettings(paths=(str(copy),), limits=LIMITS)) as server:
        url = f"{server.url}/v1/own/scans/liver_0/levels"
        for level in (0, 1):
            status, headers, _ = fetch(f"{url}/{level}")
            assert status == 503
            assert headers["retry-after"] == "1"
            assert headers["cache-control"] == "no-store"
        assert fetch(f"{url}/1?array=label")[0] == 200


def test_the_mask_levels_of_a_scan_without_a_mask_are_404(ctspine1k_url):
    scan = replace(spinezarr.open(ctspine1k_url)._reader.scan("liver_0"), label=None)
    with pytest.raises(RefusedError) as refused:
        _select(scan, "0", LevelQuery(array="label"), LIMITS)
    assert refused.value.answer.status == 422


def test_levels_of_odd_images_are_float32(odd):
    with BackgroundServer(ServeSettings(paths=(odd.url,), limits=LIMITS)) as server:
        for name, image in odd.image.items():
            found = voxels(fetch(f"{server.url}/v1/odd/scans/{name}/levels/0"))
            assert found.dtype == ("i2" if name == "plain" else "f4")
            np.testing.assert_array_equal(found, image.astype(found.dtype))


def test_levels_need_a_token_if_the_server_requires_one(ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "lab")
    given = {"paths": (ctspine1k_url,), "token_file": str(tmp_path / "tokens")}
    with BackgroundServer(ServeSettings(**given, limits=LIMITS)) as server:
        url = f"{server.url}/v1/ctspine1k/scans/liver_0/levels/1"
        assert fetch(url)[0] == 401
        assert fetch(url, authorization=f"Bearer {token}")[0] == 200


def test_weights_of_accepted_encodings_are_respected():
    assert accepts_gzip("gzip;q=0.001")
    assert not accepts_gzip("gzip; q=0.000")
    assert not accepts_gzip("x-gzip")
