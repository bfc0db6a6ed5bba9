"""Scans as OME-Zarr images: the stored bytes, coarse levels, and errors that clients notice."""

import json
import os
import shutil
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorstore
import zarr
from http_client import fetch

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.signing import signed_url
from spinezarr.serve.tokens import Tokens, new_token
from spinezarr.vertebrae import VALUE_OF_NAME, hex_color
from spinezarr.view.levels import LevelReader, levels_of

SCAN = "liver_0"
PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


COARSEST = 500
"""Most voxels of the coarsest level, so that small scans have several levels too."""
LIMITS = ServeLimits(coarsest_level_voxels=COARSEST)


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=LIMITS)) as server:
        yield server.url


@pytest.fixture(scope="module")
def tree(served):
    return f"{served}/ome/ctspine1k/{SCAN}.ome.zarr"


def node(url):
    status, headers, body = fetch(f"{url}/zarr.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def positions_mm(ome, level, index_zyx):
    """Return the position of a voxel in mm, as a reader of OME-Zarr computes it."""
    scale, move = ome["multiscales"][0]["datasets"][level]["coordinateTransformations"]
    assert (scale["type"], move["type"]) == ("scale", "translation")
    return np.array(index_zyx) * scale["scale"] + move["translation"]


def test_level_0_has_the_bytes_of_the_stored_array(served, tree):
    for place, name in (("0", "image"), ("labels/vertebrae/0", "label")):
        stored = f"{served}/zarr/ctspine1k/scans/{SCAN}/{name}"
        assert node(f"{tree}/{place}") == node(stored)
        for headers in ({}, {"range": "bytes=-100"}, {"range": "bytes=20-99"}):
            here = fetch(f"{tree}/{place}/c/0/0/0", **headers)
            there = fetch(f"{stored}/c/0/0/0", **headers)
            assert here[0] == there[0] == (206 if headers else 200)
            assert here[2] == there[2]
            for field in ("etag", "cache-control", "content-length"):
                assert here[1][field] == there[1][field]


def test_all_levels_are_read_by_other_programs(tree, ctspine1k_url):
    opened = spinezarr.open(ctspine1k_url)
    scan = opened._reader.scan(SCAN)
    made = LevelReader(opened._engine)
    root = zarr.open_group(tree, mode="r", zarr_format=3)
    plan = levels_of(scan, COARSEST)
    assert len(plan) > 2
    for level, array in product(plan, scan.arrays):
        place = f"{'labels/vertebrae/' if array.name == 'label' else ''}{level.level}"
        expected = made.read(array, level)
        for found in (
            root[place][:],
            tensorstore.open({"driver": "zarr3", "kvstore": f"{tree}/{place}/"})
            .result()
            .read()
            .result(),
        ):
            assert found.dtype == expected.dtype
            assert (found == expected).all()


def test_positions_equal_those_of_the_affine(tree, ctspine1k_url):
    scan = spinezarr.open(ctspine1k_url)._reader.scan(SCAN)
    ome = node(tree)["attributes"]["ome"]
    mask = node(f"{tree}/labels/vertebrae")["attributes"]["ome"]
    assert ome["multiscales"][0]["datasets"] == mask["multiscales"][0]["datasets"]
    assert [axis["unit"] for axis in ome["multiscales"][0]["axes"]] == ["millimeter"] * 3
    for level in levels_of(scan, COARSEST):
        for index in ((0, 0, 0), (3, 2, 1)):
            x, y, z = (level.affine @ [*index[::-1], 1])[:3]
            np.testing.assert_allclose(positions_mm(ome, level.level, index), (z, y, x), atol=1e-9)


def test_images_have_names_label_colors_and_intensity_windows(tree, ctspine1k_url):
    scan = spinezarr.open(ctspine1k_url)._reader.scan(SCAN)
    mask = node(f"{tree}/labels/vertebrae")["attributes"]["ome"]["image-label"]
    names = {one["name"]: one["label-value"] for one in mask["properties"]}
    assert set(scan.attributes.vertebrae) == set(names) & set(VALUE_OF_NAME)
    assert mask["source"] == {"image": "../../"}
    for one in mask["colors"]:
        value, (*rgb, alpha) = one["label-value"], one["rgba"]
        assert alpha == (255 if value else 0)
        assert not value or "#" + "".join(f"{c:02x}" for c in rgb) == hex_color(value)
    window = node(tree)["attributes"]["ome"]["omero"]["channels"][0]["window"]
    assert (window["start"], window["end"]) == (-500, 1300)
    assert (window["min"], window["max"]) == scan.attributes.image_range_hu
    about = node(tree)["attributes"]["spinezarr"]
    assert about["content_checksum"] == scan.content_checksum
    assert not about["is_oblique"]


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("zarr.json", 200),
        ("labels/zarr.json", 200),
        ("1/zarr.json", 200),
        ("1/c/0/0/0", 200),
        # Clients look for these files, and must get 404.
        (".zattrs", 404),
        ("1/.zarray", 404),
        ("99/zarr.json", 404),
        ("01/zarr.json", 404),
        ("labels/0/zarr.json", 404),
        ("labels/other/zarr.json", 404),
        ("0zarr.json", 404),
        ("", 404),
        # A client would take 404 of these for air or background.
        ("0/c/9/0/0", 410),
        ("1/c/9/0/0", 410),
        ("1/c/00/0/0", 410),
        ("1/c.0.0.0", 410),
        ("99/c/0/0/0", 410),
        ("labels/vertebrae/1/c/0/0/9", 410),
    ],
)
def test_absent_metadata_are_404_and_absent_chunks_410(tree, key, status):
    assert fetch(f"{tree}/{key}")[0] == status


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("ctspine1k/none.ome.zarr/zarr.json", 404),
        ("ctspine1k/none.ome.zarr/1/c/0/0/0", 410),
        ("ctspine1k/liver_0/zarr.json", 404),
        ("ctspine1k/.ome.zarr/zarr.json", 404),
        ("ctspine1k/..%2Fliver_0.ome.zarr/zarr.json", 404),
        ("ctspine1k/zarr.json", 404),
        ("none/liver_0.ome.zarr/zarr.json", 404),
        ("none/liver_0.ome.zarr/1/c/0/0/0", 410),
        ("none/liver_0.ome.zarr/labels/vertebrae/0/c/0/0/0", 410),
        ("ctspine1k/itk/liver_0.ome.zarr/zarr.json", 200),
        ("ctspine1k/itk/liver_0.ome.zarr/1/c/0/0/0", 200),
        ("ctspine1k/itk/itk/liver_0.ome.zarr/zarr.json", 404),
        ("ctspine1k/itk/none.ome.zarr/1/c/0/0/0", 410),
        ("none/itk/liver_0.ome.zarr/1/c/0/0/0", 410),
    ],
)
def test_ome_paths_of_other_scans_and_stores_have_the_expected_status(served, place, status):
    assert fetch(f"{served}/ome/{place}")[0] == status


def test_coarse_chunks_have_tags_and_ranges(tree):
    url = f"{tree}/1/c/0/0/0"
    status, headers, body = fetch(url)
    assert (status, headers["cache-control"]) == (200, "no-cache")
    assert fetch(url)[1]["etag"] == headers["etag"]
    assert fetch(url, if_none_match=headers["etag"])[0] == 304
    assert fetch(url, if_match='"x"')[0] == 412
    status, part, data = fetch(url, range="bytes=10-19")
    assert (status, data) == (206, body[10:20])
    assert part["cache-control"] == "no-store"
    assert fetch(url, "HEAD")[1]["content-length"] == str(len(body))


def test_ome_chunks_of_a_version_may_be_cached_until_it_is_replaced(tmp_path, ingest_version):
    store = tmp_path / "own.zarr"
    ingest_version("before", store)
    with BackgroundServer(ServeSettings(paths=(str(store),), limits=LIMITS)) as server:
        url = f"{server.url}/ome/own"
        about = node(f"{url}/a.ome.zarr")["attributes"]["spinezarr"]
        named = f"{url}/@{about['content_checksum']}/a.ome.zarr"
        keys = ("zarr.json", "0/c/0/0/0", "1/c/0/0/0", "labels/vertebrae/1/c/0/0/0")
        before = {key: fetch(f"{named}/{key}") for key in keys}
        for key, (status, headers, _) in before.items():
            kept = "no-cache" if key == "zarr.json" else "private, max-age=31536000, immutable"
            assert (status, headers["cache-control"]) == (200, kept)
        ingest_version("after", store)
        for key in keys:
            assert fetch(f"{named}/{key}")[0] == 410
        # A client with the old metadata does not get the new chunks.
        for key in keys[1:]:
            assert fetch(f"{url}/a.ome.zarr/{key}")[0] == 410
        fresh = zarr.open_group(f"{url}/a.ome.zarr", mode="r", zarr_format=3)
        own = spinezarr.open(store)
        scan = own._reader.scan("a")
        expected = LevelReader(own._engine).read(scan.image, levels_of(scan, COARSEST)[1])
        assert (fresh["1"][:] == expected).all()
        assert (fresh["0"][:] == own.scan("a").image.values).all()
        shutil.rmtree(store / "scans/a")
        for key in keys[1:]:
            assert fetch(f"{url}/a.ome.zarr/{key}")[0] == 410
        assert fetch(f"{url}/a.ome.zarr/zarr.json")[0] == 404


def test_damaged_ome_chunks_are_an_error_and_not_404(ctspine1k_url, tmp_path):
    copy = Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))
    for name in ("image", "label"):
        shard = copy / f"scans/{SCAN}/{name}/c/0/0/0"
        shard.write_bytes(os.urandom(shard.stat().st_size))
    with BackgroundServer(ServeSettings(paths=(str(copy),), limits=LIMITS)) as server:
        url = f"{server.url}/ome/own/{SCAN}.ome.zarr"
        for key in ("1/c/0/0/0", "labels/vertebrae/1/c/0/0/0"):
            status, headers, _ = fetch(f"{url}/{key}")
            assert (status, headers["cache-control"]) == (503, "no-store")
            assert headers["retry-after"] == "1"


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """Return a store of an oblique scan."""
    folder = tmp_path_factory.mktemp("turned")
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, :3] = [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]] @ affine[:3, :3]
    voxels = np.random.default_rng(5).integers(-900, 900, (20, 24, 16), np.int16)
    mask = np.zeros(voxels.shape, np.uint8)
    mask[4:9, 4:9, 4:9] = 20
    (folder / "raw").mkdir()
    nib.save(nib.Nifti1Image(voxels, affine), folder / "raw/a_ct.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), folder / "raw/a_seg.nii.gz")
    found = discover(PAIRS, str(folder / "raw"))
    assert not ingest(PAIRS, found, str(folder / "turned.zarr")).failed
    return str(folder / "turned.zarr")


def test_metadata_of_an_oblique_scan_hold_its_affine_and_a_warning(turned):
    with BackgroundServer(ServeSettings(paths=(turned,), limits=LIMITS)) as server:
        found = node(f"{server.url}/ome/turned/a.ome.zarr")["attributes"]
    scan = spinezarr.open(turned)
    about = found["spinezarr"]
    assert about["is_oblique"]
    assert "oblique" in about["warning"]
    assert np.array_equal(about["affine"], scan._reader.scan("a").affine)
    coordinates = scan.scan("a")
    for level in range(2):
        z, y, x = positions_mm(found["ome"], level, (0, 0, 0))
        factor = levels_of(scan._reader.scan("a"), COARSEST)[level].factor_zyx
        for axis, at, n in zip("zyx", (z, y, x), factor, strict=True):
            assert at == pytest.approx(float(coordinates[axis][:n].mean()))


def test_windows_of_scaled_images_are_in_stored_numbers(odd):
    with BackgroundServer(ServeSettings(paths=(odd.url,), limits=LIMITS)) as server:
        for name, image in odd.image.items():
            url = f"{server.url}/ome/odd/{name}.ome.zarr"
            found = node(url)["attributes"]
            window = found["ome"]["omero"]["channels"][0]["window"]
            slope, intercept = found["spinezarr"]["image_scaling"] or (1, 0)
            shown = sorted(slope * window[end] + intercept for end in ("start", "end"))
            np.testing.assert_allclose(shown, (-500, 1300), rtol=1e-6)
            finite = image[np.isfinite(image)]
            ends = sorted(slope * window[end] + intercept for end in ("min", "max"))
            np.testing.assert_allclose(ends, (finite.min(), finite.max()), rtol=1e-5)
            root = zarr.open_group(url, mode="r", zarr_format=3)
            assert root["1"].dtype == root["0"].dtype
            stored = spinezarr.open(odd.url)
            scan = stored._reader.scan(name)
            level = levels_of(scan, COARSEST)[1]
            expected = LevelReader(stored._engine).read(scan.image.unscaled(), level)
            np.testing.assert_array_equal(root["1"][:], expected)


def test_a_scan_without_a_mask_has_no_labels(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 16), np.int16), np.eye(4)), raw / "a_ct.nii.gz")
    images = Recipe.from_pairs("{scan}_ct.nii.gz", None, name="images")
    report = ingest(images, discover(images, str(raw)), str(tmp_path / "own.zarr"))
    assert report.done == ("a",)
    settings = ServeSettings(paths=(str(tmp_path / "own.zarr"),), limits=LIMITS)
    with BackgroundServer(settings) as server:
        url = f"{server.url}/ome/own/a.ome.zarr"
        members = node(url)["consolidated_metadata"]["metadata"]
        assert all(name.isdigit() for name in members)
        assert fetch(f"{url}/labels/zarr.json")[0] == 404
        assert fetch(f"{url}/labels/vertebrae/0/zarr.json")[0] == 404
        for level in (0, 1):  # an older version may have had one
            assert fetch(f"{url}/labels/vertebrae/{level}/c/0/0/0")[0] == 410


def test_ome_images_need_a_token_or_a_signed_url(ctspine1k_url, tmp_path):
    file = tmp_path / "tokens"
    token = new_token(file, "lab")
    settings = ServeSettings(paths=(ctspine1k_url,), limits=LIMITS, token_file=str(file))
    with BackgroundServer(settings) as server:
        url = f"{server.url}/ome/ctspine1k/{SCAN}.ome.zarr"
        for key in ("zarr.json", "0/c/0/0/0", "1/c/0/0/0"):
            assert fetch(f"{url}/{key}")[0] == 401
            assert fetch(f"{url}/{key}", authorization=f"Bearer {token}")[0] == 200
        signed = signed_url(Tokens(file), url, "lab", 60)
        root = zarr.open_group(signed, mode="r", zarr_format=3)
        assert root["1"][:].any()
        other = signed.replace(SCAN, "HN_P001")
        assert fetch(f"{other}/zarr.json")[0] == 401


def test_pages_of_allowed_origins_may_read_ome_images(tree):
    headers = fetch(f"{tree}/1/c/0/0/0", origin="http://localhost:1")[1]
    assert headers["access-control-allow-origin"] == "http://localhost:1"
    headers = fetch(f"{tree}/zarr.json", origin="https://evil.example")[1]
    assert "access-control-allow-origin" not in headers
