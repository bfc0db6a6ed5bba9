import math
import sys
from pathlib import Path

import pytest

import spinezarr
from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.measure.storage_speed import measure_folder, measure_store
from spinezarr.verbs.open_reader import open_reader


def measure(url, scans=("liver_0",), seconds=2.0):
    told = []
    speeds = measure_store(open_reader(url, {}), scans, seconds, told.append)
    assert told == sorted(told)
    assert max(told) <= seconds
    return {speed.order: speed for speed in speeds}


def image_bytes(url, scan):
    """Return the bytes of the shards of an image, and those of its chunks by the plan."""
    reader = open_reader(url, {})
    image = reader.scan(scan).image
    summary = spinezarr.open(url)._engine.explain([(image, whole(image))])
    return sum(image.shard_sizes.values()), summary.fetched_bytes, summary.chunks


def whole(array):
    return Box((0, 0, 0), array.shape_zyx)


@pytest.mark.parametrize("place", ["disk", "HTTP"])
def test_every_shard_and_every_chunk_of_a_small_scan_is_read_once(place, ctspine1k_url, serve):
    shards, chunks, n_chunks = image_bytes(ctspine1k_url, "liver_0")
    folder, _, name = ctspine1k_url.rpartition("/")
    url = ctspine1k_url
    if place == "HTTP":
        url = f"{serve(Path(folder))[0]}/{name}"
    speeds = measure(url)
    assert speeds["sequential"].n_bytes == shards
    assert speeds["random"].n_bytes == chunks
    assert speeds["random"].n_requests == n_chunks
    for speed in speeds.values():
        assert 0 < speed.answer_s <= speed.seconds
        assert math.isclose(speed.bytes_per_s * speed.seconds, speed.n_bytes)
        assert (speed.share_from_disk is None) or 0 <= speed.share_from_disk <= 1
    knows_disk = place == "disk" and sys.platform == "linux"
    assert (speeds["random"].share_from_disk is not None) == knows_disk


def test_progress_ends_with_all_the_time_although_a_small_store_takes_less(ctspine1k_url):
    seconds: list[float] = []
    measure_store(open_reader(ctspine1k_url, {}), ["liver_0"], 60.0, seconds.append)
    assert seconds == sorted(seconds)
    assert seconds[-2] < seconds[-1] == 60.0


def test_a_store_without_scans_has_no_speed(ctspine1k_url):
    assert measure_store(open_reader(ctspine1k_url, {}), [], 1.0, lambda _: None) == ()


def test_a_missing_shard_is_an_error_that_names_it(two_versions, tmp_path):
    url = tmp_path / "s.zarr"
    spinezarr.ingest("pairs", raw=two_versions / "before", image="{scan}_ct.nii.gz", out=url)
    shard = next(path for path in (url / "scans/a/image").rglob("*[0-9]") if path.is_file())
    shard.unlink()
    with pytest.raises(CorruptStoreError, match=r"is missing in the store\. 'spinezarr verify'"):
        measure(str(url), ["a"])


def test_a_folder_is_measured_by_a_file_that_is_gone_afterwards(tmp_path):
    seconds: list[float] = []
    speeds = {speed.order: speed for speed in measure_folder(str(tmp_path), 0.3, seconds.append)}
    assert list(speeds) == ["write", "sequential", "random"]
    assert seconds == sorted(seconds)
    assert 0 < speeds["sequential"].n_bytes <= speeds["write"].n_bytes <= 128 << 20
    assert speeds["random"].n_bytes == speeds["random"].n_requests << 16
    assert list(tmp_path.iterdir()) == []
