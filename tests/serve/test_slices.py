"""Tests of slices that a server draws as images."""

import io
import json
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from http_client import fetch
from PIL import Image

import spinezarr
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.vertebrae import vertebra_color
from spinezarr.view.windows import WINDOWS_HU

SCAN = "/v1/ctspine1k/scans/liver_0/slice.png"
NEVER = "private, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


@pytest.fixture(scope="module")
def local(ctspine1k_url):
    return spinezarr.open(ctspine1k_url)


def pixels(url):
    status, headers, body = fetch(url)
    assert (status, headers["content-type"]) == (200, "image/png"), body
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def shown(values, window):
    low, high = WINDOWS_HU[window]
    return np.round((np.clip(values.astype(float), low, high) - low) * 255 / (high - low))


@pytest.mark.parametrize("window", WINDOWS_HU)
def test_an_axial_slice_shows_the_stored_voxels(served, local, window):
    scan = local.scan("liver_0")
    assert scan.attrs["spacing_zyx_mm"][1] == scan.attrs["spacing_zyx_mm"][2]
    for at in (0, 7, len(scan.z) - 1):
        mm = float(scan.z[at])
        query = f"plane=axial&mm={mm!r}&window={window}&labels=false"
        found = pixels(f"{served}{SCAN}?{query}")
        np.testing.assert_array_equal(found, shown(scan.image.values[at, ::-1, ::-1], window))


def test_a_thumbnail_shows_the_spine(served, local):
    found = pixels(f"{served}{SCAN}?size_px=96")
    assert found.shape[2] == 3
    assert max(found.shape) == 96
    assert np.ptp(found.astype(int), axis=2).max() > 50
    assert pixels(f"{served}{SCAN}?size_px=96&labels=false").ndim == 2
    label = local.scan("liver_0").label.values
    x = int(np.median(np.argwhere(label)[:, 2]))
    (shows,) = {20} & set(np.unique(label[:, :, x]).tolist())
    alone = pixels(f"{served}{SCAN}?labels=L1&size_px=256").astype(int)
    colored = alone[np.ptp(alone, axis=2) > 0]
    assert len(colored)
    assert (np.round(np.array(vertebra_color(shows)) * 255) == colored).all(axis=1).any()


def test_a_slice_may_be_cached_until_the_scan_is_replaced(served, local):
    checksum = local._reader.scan("liver_0").content_checksum
    asked = f"{served}{SCAN}?size_px=32"
    _, headers, body = fetch(asked)
    assert headers["cache-control"] == "no-cache"
    status, named, same = fetch(f"{asked}&content_checksum={checksum}")
    assert (status, named["cache-control"], same) == (200, NEVER, body)
    assert named["etag"] == headers["etag"]
    assert not named["etag"].startswith("W/")
    for url in (asked, f"{asked}&content_checksum={checksum}"):
        status, again, nothing = fetch(url, if_none_match=headers["etag"])
        assert (status, nothing, again["etag"]) == (304, b"", headers["etag"])
        assert fetch(url, if_match='"x"')[0] == 412
    assert fetch(f"{asked}&content_checksum=0")[0] == 410
    others = ("", "plane=axial", "window=lung", "labels=false", "labels=L1", "size_px=33", "mm=0")
    tags = {fetch(f"{served}{SCAN}?{other}")[1].get("etag") for other in others}
    assert None not in tags
    assert len(tags | {headers["etag"]}) == 1 + len(others)


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("plane=oblique", 400, "plane: "),
        ("window=bones", 400, "window: must be bone, soft_tissue, lung, or the HU"),
        ("window=5,5", 400, "window: black, 5 HU, must be below white, 5 HU."),
        (
            "labels=L9",
            400,
            "labels: must be true, false, or names separated by commas, of C1, ",
        ),
        ("size_px=0", 400, "size_px: "),
        ("size_px=2049", 400, "size_px: "),
        ("mm=far", 400, "mm: "),
        ("mm=NaN", 400, "mm: "),
        (
            "other=1",
            400,
            "The parameters are plane, mm, window, labels, mask, outline, size_px, ",
        ),
        ("mm=1e9", 422, "mm: x of this scan is between "),
        ("plane=axial&mm=-1e9", 422, "mm: z of this scan is between "),
    ],
)
def test_invalid_slices_are_refused(served, query, status, text):
    found, headers, body = fetch(f"{served}{SCAN}?{query}")
    assert (found, headers["cache-control"]) == (status, "no-store")
    assert body.decode().startswith(text)


@pytest.mark.parametrize("scan_id", ["none", "..", "zarr.json", quote("a/b", safe="")])
def test_slices_of_unknown_scans_are_404(served, scan_id):
    assert fetch(f"{served}/v1/ctspine1k/scans/{scan_id}/slice.png")[0] == 404
    assert fetch(f"{served}/v1/none/scans/liver_0/slice.png")[0] == 404


def test_a_large_slice_is_refused(ctspine1k_url):
    settings = ServeSettings(paths=(ctspine1k_url,), limits=ServeLimits(slice_voxels=100))
    with BackgroundServer(settings) as server:
        assert fetch(f"{server.url}{SCAN}")[0] == 413


def test_a_damaged_scan_is_503(ctspine1k_url, tmp_path):
    shutil.copytree(ctspine1k_url, tmp_path / "own.zarr")
    scan = tmp_path / "own.zarr" / "scans" / "liver_0"
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        url = f"{server.url}/v1/own/scans/liver_0/slice.png"
        assert fetch(url)[0] == 200
        shards = [path for path in Path(scan / "image").rglob("*") if path.name != "zarr.json"]
        for path in shards:
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[: len(data) // 2] = bytes(len(data) // 2)
                path.write_bytes(data)
        status, headers, _ = fetch(url)
        assert (status, headers["retry-after"]) == (503, "1")
        (scan / "zarr.json").write_bytes((scan / "zarr.json").read_bytes()[:-9])
        assert fetch(url)[0] == 503
        shutil.rmtree(scan)
        assert fetch(url)[0] == 404


def test_a_slice_is_drawn_from_the_current_version(tmp_path, ingest_version):
    ingest_version("before", tmp_path / "own.zarr")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        url = f"{server.url}/v1/own/scans/a/slice.png?plane=axial&mm=0&labels=false"
        before, tag = pixels(url), fetch(url)[1]["etag"]
        ingest_version("after", tmp_path / "own.zarr")
        after = pixels(url)
        assert fetch(url)[1]["etag"] != tag
        assert fetch(url, if_none_match=tag)[0] == 200
        now = spinezarr.open(tmp_path / "own.zarr").scan("a").image.values[0, ::-1, ::-1]
        np.testing.assert_array_equal(after, shown(now, "bone"))
        assert after.shape == before.shape


def test_drawing_slices_does_not_delay_batches(ctspine1k_url):
    patch = "/v1/ctspine1k/scans/liver_0/patch?size_zyx=4,4,4&start_zyx=0,0,0"
    for limits, answers in (
        (ServeLimits(slices_at_once=0, waiting=0), (429, 200)),
        (ServeLimits(batches_at_once=0, waiting=0), (200, 429)),
    ):
        settings = ServeSettings(paths=(ctspine1k_url,), limits=limits)
        with BackgroundServer(settings) as server:
            found = tuple(fetch(f"{server.url}{path}") for path in (SCAN, patch))
            assert tuple(answer[0] for answer in found) == answers
            refused = next(answer for answer in found if answer[0] == 429)
            assert refused[1]["retry-after"] == "1"


def test_slices_are_drawn_from_buckets(s3_server, ingest_version_into_bucket):
    place = f"{s3_server.new_bucket()}/own.zarr"
    ingest_version_into_bucket("before", place)
    options = s3_server.storage_options
    url = f"s3://{place}"
    with BackgroundServer(ServeSettings(paths=(url,), storage_options={url: options})) as server:
        at = f"{server.url}/v1/own/scans/a"
        found = pixels(f"{at}/slice.png?plane=coronal&mm=5&labels=false")
        store = spinezarr.open(url, storage_options=options)
        expected = shown(store.scan("a").image.values[::-1, 5, ::-1], "bone")
        np.testing.assert_array_equal(found, expected)
        (mask,) = json.loads(fetch(f"{at}/view")[2])["masks"]
        assert [vertebra["name"] for vertebra in mask["vertebrae"]] == ["L1"]
