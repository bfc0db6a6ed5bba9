"""Exported OME-Zarr images equal the served ones, and are written whole or not at all."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import CorruptStoreError, UnknownScanError, UsageError
from spinezarr.remote.s3_filesystem import S3
from spinezarr.view import ome_export
from spinezarr.view.levels import LevelReader, levels_of

SCAN = "liver_0"


COARSEST = 500
"""Most voxels of the coarsest level, so that small scans have several levels too."""


@pytest.fixture
def own(ctspine1k_url, tmp_path):
    return Path(shutil.copytree(ctspine1k_url, tmp_path / "own.zarr"))


@pytest.fixture
def opened(own):
    return spinezarr.open(own)


def check(store, root):
    """Compare an image with its scan."""
    scan = store._reader.scan(SCAN)
    made = LevelReader(store._engine)
    plan = levels_of(scan, COARSEST)
    assert len(plan) > 2
    for level in plan:
        for array in scan.arrays:
            place = f"{'labels/vertebrae/' if array.name == 'label' else ''}{level.level}"
            assert (root[place][:] == made.read(array, level)).all()
    assert root["labels"].attrs["ome"]["labels"] == ["vertebrae"]
    return root


def export(store, out, scan_id=SCAN, **options):
    reader, engine = store._reader, store._engine
    return ome_export.export_ome_zarr(
        reader, engine, scan_id, out, coarsest_voxels=COARSEST, **options
    )


def files(folder):
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}


def test_shards_of_level_0_are_copies_of_the_stored_ones(opened, own, tmp_path):
    seen = []
    exported = export(opened, tmp_path / "out", on_bytes=seen.append)
    place = tmp_path / "out" / f"{SCAN}.ome.zarr"
    assert exported.files == (str(place),)
    assert exported.notes == ()
    check(opened, zarr.open_group(place, mode="r"))
    scan = opened._reader.scan(SCAN)
    voxels = np.prod(scan.image.shape_zyx)
    assert sum(seen) == 3 * voxels
    for name, at in (("image", "0"), ("label", "labels/vertebrae/0")):
        stored = files(own / "scans" / SCAN / name / "c")
        copied = files(place / at / "c")
        assert stored.keys() == copied.keys() != set()
        for key, path in stored.items():
            assert path.read_bytes() == copied[key].read_bytes()
            assert path.stat().st_nlink == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [place.name]


def test_the_link_option_makes_hard_links_of_the_shards(opened, own, tmp_path):
    export(opened, tmp_path, link=True)
    place = tmp_path / f"{SCAN}.ome.zarr"
    check(opened, zarr.open_group(place, mode="r"))
    for name, at in (("image", "0"), ("label", "labels/vertebrae/0")):
        copied = files(place / at / "c")
        for key, path in files(own / "scans" / SCAN / name / "c").items():
            assert path.samefile(copied[key])


def test_each_shard_is_cloned_where_the_disk_shares_blocks(opened, own, tmp_path, monkeypatch):
    asked = []

    def share(source, file):
        asked.append(file.name)
        data = source.read()
        source.seek(0)
        file.write(data)
        return True

    monkeypatch.setattr(ome_export, "_share_blocks", share)
    export(opened, tmp_path)
    check(opened, zarr.open_group(tmp_path / f"{SCAN}.ome.zarr", mode="r"))
    assert len(asked) == len(files(own / "scans" / SCAN / "image/c")) + len(
        files(own / "scans" / SCAN / "label/c")
    )


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_shard_is_an_error_and_leaves_no_image(opened, own, tmp_path, link, damage):
    shard = own / "scans" / SCAN / "label/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= damage == "flipped"
    shard.unlink()
    if damage != "gone":
        shard.write_bytes(data[:-1] if damage == "short" else data)
    with pytest.raises(CorruptStoreError, match="label/c/0/0/0"):
        export(opened, tmp_path / "out", link=link)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_image_is_replaced_only_with_overwrite(opened, tmp_path):
    place = tmp_path / f"{SCAN}.ome.zarr"
    export(opened, tmp_path)
    (place / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        export(opened, tmp_path)
    assert (place / "mine.txt").exists()

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(opened, tmp_path, overwrite=True, on_bytes=interrupt)
    assert (place / "mine.txt").exists()
    for ending in (".partial", ".old"):  # leftovers of a killed run
        (tmp_path / f"{place.name}{ending}").mkdir()
    export(opened, tmp_path, overwrite=True)
    assert not (place / "mine.txt").exists()
    check(opened, zarr.open_group(place, mode="r"))
    assert [path.name for path in tmp_path.iterdir() if SCAN in path.name] == [place.name]


def test_overwrite_replaces_only_ome_zarr_images(opened, tmp_path):
    place = tmp_path / f"{SCAN}.ome.zarr"
    place.mkdir()
    (place / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="is not an OME-Zarr image"):
        export(opened, tmp_path, overwrite=True)
    assert (place / "mine.txt").exists()
    shutil.rmtree(place)
    (tmp_path / "elsewhere").mkdir()
    for name in (place.name, f"{place.name}.partial"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="is a link"):
            export(opened, tmp_path, overwrite=True)
        (tmp_path / name).unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file with this name exists"):
        export(opened, tmp_path / "file")
    with pytest.raises(UnknownScanError):
        export(opened, tmp_path, scan_id="none")
    with pytest.raises(UsageError, match="web server"):
        export(opened, "http://127.0.0.1:9/images")


def test_links_across_disks_are_explained(opened, tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(UsageError, match="leave out --link"):
        export(opened, tmp_path, link=True)
    assert not list(tmp_path.glob(f"{SCAN}*"))


def test_images_are_exported_to_a_bucket_and_from_a_bucket(opened, own, tmp_path, s3_server):
    options = s3_server.storage_options
    bucket = s3_server.new_bucket()
    url = f"s3://{bucket}/images"
    exported = export(opened, url, storage_options=options)
    assert exported.files == (f"{url}/{SCAN}.ome.zarr",)
    client = s3_server.client
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    for key in keys:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        path = tmp_path / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    check(opened, zarr.open_group(tmp_path / f"bucket/images/{SCAN}.ome.zarr", mode="r"))
    with pytest.raises(UsageError, match="exists already"):
        export(opened, url, storage_options=options)
    client.put_object(Bucket=bucket, Key=f"images/{SCAN}.ome.zarr/9/old", Body=b"x")
    export(opened, url, storage_options=options, overwrite=True)
    again = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert again == keys
    with pytest.raises(UsageError, match="need a folder on disk"):
        export(opened, f"{url}2", storage_options=options, link=True)
    # From a bucket to the disk.
    for path in (path for path in own.rglob("*") if path.is_file()):
        key = f"own.zarr/{path.relative_to(own)}"
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    far = spinezarr.open(f"s3://{bucket}/own.zarr", storage_options=options)
    export(far, tmp_path / "near")
    check(opened, zarr.open_group(tmp_path / f"near/{SCAN}.ome.zarr", mode="r"))
    with pytest.raises(UsageError, match="--link cannot be used"):
        export(far, tmp_path / "linked", link=True)


COPIED = {"copied": "yes"}
"""Metadata of the objects of a store, which only a copy inside the service keeps."""


@pytest.fixture
def far(own, s3_server):
    """Put a store into a bucket; return the name of the bucket."""
    bucket = s3_server.new_bucket()
    for path in own.rglob("*"):
        if path.is_file():
            s3_server.client.put_object(
                Bucket=bucket,
                Key=f"own.zarr/{path.relative_to(own)}",
                Body=path.read_bytes(),
                Metadata=COPIED,
            )
    return bucket


def copied_keys(client, bucket):
    """Return the keys below ``images`` that the service copied, and the other ones."""
    listed = client.list_objects_v2(Bucket=bucket, Prefix="images/")["Contents"]
    keys = [one["Key"] for one in listed]
    copied = [
        key for key in keys if client.head_object(Bucket=bucket, Key=key)["Metadata"] == COPIED
    ]
    return copied, [key for key in keys if key not in copied]


needs_checksums = pytest.mark.skipif(
    os.environ.get("SPINEZARR_TEST_S3") == "ceph",
    reason="Debian's Ceph reports no checksum of a copy",
)


@needs_checksums
def test_the_service_copies_the_shards_of_a_store_that_it_has(own, far, s3_server):
    options, client = s3_server.storage_options, s3_server.client
    store = spinezarr.open(f"s3://{far}/own.zarr", storage_options=options)
    export(store, f"s3://{far}/images", storage_options=options)
    copied, written = copied_keys(client, far)
    root = f"images/{SCAN}.ome.zarr"
    stored = own / "scans" / SCAN
    keys = {}
    for folder, array in (("0", "image"), ("labels/vertebrae/0", "label")):
        for key, path in files(stored / array).items():
            if key.name != "zarr.json":
                keys[f"{root}/{folder}/{key}"] = path
    assert set(copied) == set(keys)
    for key, path in keys.items():
        body = client.get_object(Bucket=far, Key=key)["Body"].read()
        assert body == path.read_bytes()
    assert f"{root}/zarr.json" in written


@pytest.mark.parametrize("how", ["other options", "no checksum", "refused", "other checksum"])
def test_shards_that_the_service_does_not_copy_are_sent(far, s3_server, monkeypatch, how):
    options, client = s3_server.storage_options, s3_server.client
    store = spinezarr.open(f"s3://{far}/own.zarr", storage_options=options)
    if how == "other options":
        options = {**options, "max_concurrency": 2}
    call = S3.call_s3

    def answer(self, method, **parameters):
        response = call(self, method, **parameters)
        if how == "refused":
            raise OSError(5, "Header 'x-amz-checksum-algorithm' is not implemented")
        result = response["CopyObjectResult"]
        result.pop("ChecksumCRC32", None)
        if how == "other checksum":
            result["ChecksumCRC32"] = "AAAAAA=="
        return response

    if how != "other options":
        monkeypatch.setattr(S3, "call_s3", answer)
    export(store, f"s3://{far}/images", storage_options=options)
    copied, written = copied_keys(client, far)
    assert not copied
    assert len([key for key in written if "/0/c" in key]) > 1


def test_a_damaged_shard_is_not_copied(far, s3_server):
    options, client = s3_server.storage_options, s3_server.client
    store = spinezarr.open(f"s3://{far}/own.zarr", storage_options=options)
    shard = next(iter(store._reader.scan(SCAN).image.shard_sizes))
    key = store._reader.scan(SCAN).image.shard_path(shard).removeprefix(f"{far}/")
    data = bytearray(client.get_object(Bucket=far, Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket=far, Key=key, Body=bytes(data))
    with pytest.raises(CorruptStoreError, match="differs from the manifest"):
        export(store, f"s3://{far}/images", storage_options=options)
    listed = client.list_objects_v2(Bucket=far, Prefix="images/").get("Contents", [])
    assert not [one["Key"] for one in listed if one["Key"].endswith("zarr.json")]


def test_the_root_of_an_image_is_written_last_to_a_bucket(opened, s3_server, monkeypatch):
    bucket = s3_server.new_bucket()
    written = []
    write = ome_export._Bucket.write

    def noted(self, key, data):
        written.append(key)
        write(self, key, data)

    monkeypatch.setattr(ome_export._Bucket, "write", noted)
    export(opened, f"s3://{bucket}/a", storage_options=s3_server.storage_options)
    assert written[-1] == "zarr.json"
    assert written.count("zarr.json") == 1


def run(*words):
    return CliRunner().invoke(app, ["export", "ome-zarr", *map(str, words)])


def test_the_command_exports_images(own, tmp_path):
    out = tmp_path / "images"
    done = run(own, "--out", out, "--scan", SCAN, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["done"] == [
        {"scan_id": SCAN, "files": [str(out / f"{SCAN}.ome.zarr")], "notes": []}
    ]
    assert run(own, "--out", out).exit_code == 2
    (own / "scans" / SCAN / "image/c/0/0/0").write_bytes(b"")
    done = run(own, "--out", out, "--overwrite", "--link")
    assert done.exit_code == 1
    assert "Failed" in done.stdout
    names = sorted(path.name for path in out.iterdir())
    known = spinezarr.open(own).table.scan.to_numpy().tolist()
    assert names == sorted(
        f"{name}.ome.zarr" for name in known
    )  # including the one exported before
    assert run(own, "--out", out, "--scan", "none").exit_code == 2
