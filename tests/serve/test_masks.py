"""What a server gives of further masks: files, patches, levels, pictures, lists, OME-Zarr."""

import gzip
import io
import json
import shutil
from http import HTTPStatus

import numpy as np
import pytest
import xarray as xr
import zarr
from http_client import fetch, fetch_patches
from PIL import Image
from safetensors.numpy import load

import spinezarr
from spinezarr.errors import ScanChangedError
from spinezarr.vertebrae import label_color, structure_color

SCAN, OTHER = "liver_0", "HN_P001"
NEVER = "private, max-age=31536000, immutable"


@pytest.fixture
def copy(ctspine1k_url, tmp_path):
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "ctspine1k.zarr"))
    mask = np.zeros(store.scan(SCAN).image.shape, np.uint8)
    mask[20:, 40:60, 30:] = 41
    store.write_labels(SCAN, "parts", mask, scheme="subregions", model="net 2", license="MIT")
    return store, mask


@pytest.fixture
def served(copy):
    store, mask = copy
    with store.serve() as server:
        yield server.url, spinezarr.open(store.url), mask


def post(url, **body):
    return fetch_patches(f"{url}/v1/ctspine1k/batch", body)[::2]


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_plain_clients_read_a_mask_while_it_is_replaced(copy, tree):
    store, mask = copy
    with store.serve() as server:
        url = f"{server.url}/{tree}/ctspine1k/scans/liver_0"
        scan = xr.open_zarr(url)
        assert scan.parts.flag_meanings == "background arcus"
        np.testing.assert_array_equal(scan.parts, mask)
        store.write_labels("liver_0", "parts", mask[::-1], scheme="subregions")
        np.testing.assert_array_equal(xr.open_zarr(url).parts, mask[::-1])
        store.remove_labels("parts")
        assert "parts" not in xr.open_zarr(url)


@pytest.mark.parametrize("transfer", ["patches", "ranges"])
@pytest.mark.parametrize("labels", [("label", "parts"), ("parts",), ("parts", "label")])
def test_a_stream_over_a_server_reads_masks(served, labels, transfer):
    url, store, _ = served
    remote = spinezarr.open(f"{url}/ctspine1k", transfer=transfer)
    np.testing.assert_array_equal(remote.scan(SCAN).parts, store.scan(SCAN).parts)
    for options in (
        {"n_samples": 4, "batch_size": 2},
        {"n_samples": 2, "spacing_zyx_mm": 2.0, "nonfinite": "keep"},
    ):
        there = remote.patches(24, labels=labels, **options)
        here = store.patches(24, labels=labels, **options)
        for a, b in zip(there, here, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            assert list(a.masks) == list(b.masks) == ["parts"]
            np.testing.assert_array_equal(a.masks["parts"], b.masks["parts"])
            assert (a.label is None) == (b.label is None) == ("label" not in labels)
            assert a.label is None or (a.label == b.label).all()
        way = "by the server" if transfer == "patches" else "by ranges"
        assert way in there.explain().transfer


def test_a_stream_over_a_server_is_told_that_a_mask_was_replaced(served):
    url, store, mask = served
    remote = spinezarr.open(f"{url}/ctspine1k", transfer="patches")
    batches = iter(remote.patches(24, labels=("parts",), n_samples=4).with_reading(threads=1))
    store.write_labels(SCAN, "parts", mask[::-1], scheme="subregions")
    with pytest.raises(ScanChangedError, match="parts"):
        list(batches)


def test_patches_of_several_masks_come_in_one_answer(served):
    url, store, mask = served
    items = [
        {"scan_id": SCAN, "start_zyx": [15, 30, 25]},
        {"scan_id": OTHER, "start_zyx": [0, 0, 0]},
        {"scan_id": SCAN, "start_zyx": [15, 30, 25], "mask_checksums": ["0" * 32]},
    ]
    for pack in ("none", "zstd"):
        status, body = post(
            url, items=items, size_zyx=[12, 20, 20], labels=["label", "parts"], pack=pack
        )
        assert status == HTTPStatus.OK
        length = int.from_bytes(body[:8], "little")
        about = json.loads(body[8 : 8 + length])["__metadata__"]
        assert json.loads(about["status"]) == [
            "ok",
            "the scan has no mask parts",
            "a mask of the scan has changed",
        ]
    tensors = load(post(url, items=items, size_zyx=[12, 20, 20], labels=["label", "parts"])[1])
    np.testing.assert_array_equal(tensors["parts"][0], mask[15:27, 30:50, 25:45])
    label = store.scan(SCAN).label.values
    np.testing.assert_array_equal(tensors["label"][0], label[15:27, 30:50, 25:45])
    assert tensors["parts"].any()


@pytest.mark.parametrize(
    ("scan_id", "query", "status", "says"),
    [
        (SCAN, "labels=teeth", 422, "no mask teeth"),
        (OTHER, "labels=parts", 422, "no mask parts"),
        (SCAN, "labels=parts,parts", 400, "each mask once"),
        (SCAN, "labels=P", 400, "labels"),
        (SCAN, "labels=parts&mask_checksums=0,1", 400, "mask_checksums"),
        (SCAN, f"labels=parts&mask_checksums={'0' * 31}f", 410, "has changed"),
        (SCAN, "labels=label&array=parts", 400, "must also be in labels"),
    ],
)
def test_refused_masks_of_a_patch_are_explained(served, scan_id, query, status, says):
    url, _, _ = served
    patch = f"{url}/v1/ctspine1k/scans/{scan_id}/patch?size_zyx=4,4,4&start_zyx=20,40,30"
    answer = fetch(f"{patch}&{query}", accept="application/x-npy")
    assert (answer[0], says in answer[2].decode()) == (status, True), answer[2]


def test_a_patch_with_masks_is_kept_while_they_are_named(served):
    url, store, mask = served
    scan = store._reader.scan(SCAN)
    about = f"content_checksum={scan.content_checksum}"
    patch = f"{url}/v1/ctspine1k/scans/{SCAN}/patch?size_zyx=4,4,4&start_zyx=20,40,30"
    patch += f"&labels=label,parts&array=parts&{about}"
    _, headers, body = fetch(patch, accept="application/x-npy")
    assert headers["cache-control"] == "no-cache"
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), mask[20:24, 40:44, 30:34])
    named = f"{patch}&mask_checksums={scan.mask_checksums['parts']}"
    _, kept, same = fetch(named, accept="application/x-npy")
    assert (kept["cache-control"], same) == (NEVER, body)
    store.write_labels(SCAN, "parts", mask[::-1], scheme="subregions")
    assert fetch(named, accept="application/x-npy")[0] == HTTPStatus.GONE
    _, changed, _ = fetch(patch, accept="application/x-npy")
    assert changed["etag"] != headers["etag"]


def test_levels_of_a_mask_are_those_of_its_version(served):
    url, store, mask = served
    checksum = store._reader.scan(SCAN).mask_checksums["parts"]
    content = store._reader.scan(SCAN).content_checksum
    level = f"{url}/v1/ctspine1k/scans/{SCAN}/levels/0?array=parts"
    status, headers, body = fetch(level)
    assert (status, headers["x-spinezarr-dtype"]) == (200, "uint8")
    assert body == mask.tobytes()
    assert headers["cache-control"] == "no-cache"
    assert fetch(f"{level}&content_checksum={content}")[1]["cache-control"] == "no-cache"
    named = f"{level}&content_checksum={content}&mask_checksum={checksum}"
    assert fetch(named)[1]["cache-control"] == NEVER
    store.write_labels(SCAN, "parts", mask[::-1], scheme="subregions")
    assert fetch(level)[2] == mask[::-1].tobytes()
    status, _, body = fetch(named)
    assert (status, body) == (410, b"The mask parts was replaced by another version.\n")
    store.remove_labels("parts")
    assert fetch(level)[::2] == (422, b"The scan has no mask parts; it has label.\n")
    assert fetch(named)[::2] == (410, b"The mask parts was removed.\n")
    picture = f"{url}/v1/ctspine1k/scans/{SCAN}/slice.png?"
    for query in ("mask=parts&mask_checksum", "outline=parts&outline_checksum"):
        answer = fetch(f"{picture}{query}={checksum}")
        assert answer[::2] == (410, b"The mask parts was removed.\n")


def test_pictures_show_the_names_that_a_mask_has_now(served):
    url, store, mask = served
    content = store._reader.scan(SCAN).content_checksum
    picture = f"{url}/v1/ctspine1k/scans/{SCAN}/slice.png?plane=axial&mm="
    picture += f"{store.scan(SCAN).z.values[25]}&mask=parts&content_checksum={content}"

    def drawn(extra=""):
        status, headers, body = fetch(f"{picture}{extra}")
        assert status == HTTPStatus.OK, body
        assert headers["cache-control"] == "no-cache"
        return headers["etag"], np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)

    tag, before = drawn()
    inside = mask[25][::-1, ::-1] > 0
    gray = fetch(f"{picture}&labels=false")[2]
    gray = np.asarray(Image.open(io.BytesIO(gray)).convert("RGB")).astype(int)
    for color, pixels in ((structure_color(41), before),):
        expected = np.rint(gray[inside] * 0.6 + 0.4 * 255 * np.array(color))
        np.testing.assert_array_equal(pixels[inside], expected)
    assert (drawn("&labels=arcus")[1] == before).all()
    store.write_labels(SCAN, "parts", mask, scheme={41: "L1"})
    other_tag, after = drawn()
    assert other_tag != tag
    expected = np.rint(gray[inside] * 0.6 + 0.4 * 255 * np.array(label_color(20)))
    np.testing.assert_array_equal(after[inside], expected)
    assert fetch(f"{picture}&labels=arcus")[0] == HTTPStatus.BAD_REQUEST
    assert fetch(f"{picture}&outline=teeth")[::2] == (
        422,
        b"The scan has no mask teeth; it has label, parts.\n",
    )


def test_a_view_and_a_list_name_all_masks(served):
    url, store, mask = served
    view = json.loads(fetch(f"{url}/v1/ctspine1k/scans/{SCAN}/view")[2])
    label, parts = view["masks"]
    assert (label["name"], label["scheme"], label["checksum"]) == (
        "label",
        "vertebrae",
        view["content_checksum"],
    )
    assert {key: parts[key] for key in ("name", "scheme", "license", "author", "model")} == {
        "name": "parts",
        "scheme": "subregions",
        "license": "MIT",
        "author": "",
        "model": "net 2",
    }
    (arch,) = parts["vertebrae"]
    assert (arch["name"], arch["value"], arch["voxel_count"]) == ("arcus", 41, mask.sum() // 41)
    center = np.argwhere(mask).mean(axis=0)[::-1]
    expected = store._reader.scan(SCAN).affine[:3] @ (*center, 1)
    np.testing.assert_allclose(arch["centroid_xyz_mm"], expected, atol=1e-3)
    rows = json.loads(fetch(f"{url}/v1/ctspine1k/scans")[2])["scans"]
    assert {row["scan_id"]: row["masks"] for row in rows} == {
        name: ["label", "parts"] if name == SCAN else ["label"] for name in store.table.scan.values
    }
    for name, expected in (("parts", 1), ("label", len(rows)), ("teeth", 0)):
        found = json.loads(fetch(f"{url}/v1/ctspine1k/scans?mask={name}")[2])["scans"]
        assert len(found) == expected
    assert fetch(f"{url}/v1/ctspine1k/scans?mask=T%20")[0] == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("name", ["parts", "vertebrae"])
def test_each_mask_is_a_label_of_the_ome_zarr_image(copy, name):
    store, mask = copy
    if name != "parts":
        store.write_labels(SCAN, name, mask, scheme="subregions", license="MIT")
    folder = {"vertebrae": "mask-vertebrae"}.get(name, name)
    content = store._reader.scan(SCAN).content_checksum
    with store.serve() as server:
        base = f"{server.url}/ome/ctspine1k"
        image = zarr.open_group(f"{base}/{SCAN}.ome.zarr", mode="r", zarr_format=3)
        assert {"vertebrae", folder} <= set(image["labels"].attrs["ome"]["labels"])
        np.testing.assert_array_equal(image[f"labels/{folder}/0"][:], mask)
        label = store.scan(SCAN).label.values
        np.testing.assert_array_equal(image["labels/vertebrae/0"][:], label)
        about = image[f"labels/{folder}"].attrs
        assert about["ome"]["image-label"]["properties"] == [
            {"label-value": 0, "name": "background"},
            {"label-value": 41, "name": "arcus"},
        ]
        rgb = [round(255 * part) for part in structure_color(41)]
        assert about["ome"]["image-label"]["colors"][1] == {"label-value": 41, "rgba": [*rgb, 255]}
        assert about["spinezarr"]["mask"] == name
        chunk = f"@{content}/{SCAN}.ome.zarr/labels/{folder}/0/c/0/0/0"
        status, headers, _ = fetch(f"{base}/{chunk}")
        assert (status, headers["cache-control"]) == (200, "no-cache")
        store.write_labels(SCAN, name, mask[::-1], scheme="subregions")
        again = zarr.open_group(f"{base}/{SCAN}.ome.zarr", mode="r", zarr_format=3)
        np.testing.assert_array_equal(again[f"labels/{folder}/0"][:], mask[::-1])
        assert fetch(f"{base}/{chunk}")[0] == HTTPStatus.GONE


@pytest.mark.parametrize("tree", ["zarr", "flat"])
def test_only_image_and_label_of_a_version_are_kept_forever(served, tree):
    url, store, _ = served
    content = store._reader.scan(SCAN).content_checksum
    base = f"{url}/{tree}/ctspine1k/@{content}/scans/{SCAN}"
    for key, kept in (
        ("image/c/0/0/0", True),
        ("sampling/label_chunks/c/0/0", True),
        ("parts/c/0/0/0" if tree == "zarr" else "parts/c/0/1/1", False),
        ("sampling/parts_chunks/c/0/0", False),
        ("zarr.json", False),
    ):
        status, headers, _ = fetch(f"{base}/{key}")
        assert status == HTTPStatus.OK, key
        assert (headers["cache-control"] == NEVER) == kept, key


def test_a_mask_is_sent_as_the_file_that_the_export_writes(served, tmp_path):
    url, store, _ = served
    scan = f"{url}/v1/ctspine1k/scans/{SCAN}"
    options = json.loads(fetch(f"{scan}/open-in")[2])["options"]
    (link,) = [option["text"] for option in options if option["name"] == "NIfTI, mask parts"]
    status, headers, body = fetch(f"{url}{link}")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    assert f"{SCAN}_seg-parts.nii.gz" in headers["content-disposition"]
    exported = store.export_nifti(out=tmp_path / "out", layer="parts", scans=SCAN)
    with gzip.open(exported.done[0].files[1]) as file:
        assert file.read() == gzip.decompress(body)
    handle = store._reader.scan(SCAN)
    named = f"content_checksum={handle.content_checksum}&mask_checksum="
    kept = fetch(f"{url}{link}?{named}{handle.mask_checksums['parts']}")
    assert (kept[1]["cache-control"], kept[2]) == (NEVER, body)
    assert fetch(f"{url}{link}?{named}0")[0] == HTTPStatus.GONE
    assert fetch(f"{scan}/masks/teeth.nii.gz")[::2] == (
        422,
        b"The scan has no mask teeth; it has label, parts.\n",
    )
