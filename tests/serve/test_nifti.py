"""Whole scans as NIfTI equal the files of the export, and are sent while they are compressed."""

import gzip
import http.client
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from http_client import fetch
from server_process import server_process
from timeouts import TIMEOUT_S, wait_until

import spinezarr
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

SUFFIXES = {"image": "ct", "label": "seg"}
NEVER = "private, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def served(ctspine1k_url, odd):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url, odd.url))) as server:
        yield server.url


def check_alike(url, store, name, folder):
    """Compare the files that a server sends of all scans with those of the export."""
    count = 0
    for row in store.table.scan.to_numpy().tolist():
        store.export_nifti(out=folder, scans=row, overwrite=True).done[0]
        for array, suffix in SUFFIXES.items():
            status, headers, body = fetch(f"{url}/v1/{name}/scans/{row}/{array}.nii.gz")
            file = folder / f"{row}_{suffix}.nii.gz"
            assert status == 200
            assert headers["content-type"] == "application/gzip"
            assert headers["content-disposition"] == (
                f"attachment; filename*=UTF-8''{file.name.replace(' ', '%20')}"
            )
            data = gzip.decompress(body)
            assert data == gzip.decompress(file.read_bytes())
            found, expected = nib.Nifti1Image.from_bytes(data), nib.load(file)
            np.testing.assert_array_equal(found.affine, expected.affine)
            np.testing.assert_array_equal(found.dataobj, expected.dataobj)
            count += 1
    return count


def test_a_scan_sent_as_nifti_equals_the_exported_file(served, store, tmp_path):
    assert check_alike(served, store, "ctspine1k", tmp_path) == 12


def test_scaled_and_odd_images_sent_as_nifti_equal_the_exported_files(served, odd, tmp_path):
    assert check_alike(served, spinezarr.open(odd.url), "odd", tmp_path) >= 14


def test_nifti_of_a_version_may_be_cached_forever(served, ctspine1k_url):
    url = f"{served}/v1/ctspine1k/scans/liver_0/image.nii.gz"
    status, headers, body = fetch(url, "HEAD")
    assert (status, body, headers["cache-control"]) == (200, b"", "no-cache")
    assert fetch(url, if_none_match=headers["etag"])[0] == 304
    checksum = spinezarr.open(ctspine1k_url)._reader.scan("liver_0").content_checksum
    assert fetch(f"{url}?content_checksum={checksum}")[1]["cache-control"] == NEVER
    assert fetch(f"{url}?content_checksum={'0' * 32}")[0] == 410


def damage(store, scan_id, part):
    """Flip a byte in the first or the last part of a scan's image."""
    shards = sorted((store / "scans" / scan_id / "image" / "c").rglob("*"))
    shard = [path for path in shards if path.is_file()][part]
    data = bytearray(shard.read_bytes())
    at = len(data) // 8 if part == 0 else len(data) // 2
    data[at] ^= 1
    shard.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def long_scan(tmp_path_factory):
    """Ingest a noise scan of several shards along z, whose file is sent in several parts."""
    from spinezarr.ingestion.discovery.discover import discover  # noqa: PLC0415
    from spinezarr.ingestion.run import ingest  # noqa: PLC0415
    from spinezarr.recipe import Recipe  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("long")
    raw = folder / "raw"
    raw.mkdir()
    values = np.random.default_rng(5).integers(-1000, 3000, (96, 96, 300)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), raw / "a_ct.nii")
    recipe = Recipe.from_pairs("{scan}_ct.nii", None, name="long")
    assert not ingest(recipe, discover(recipe, str(raw)), str(folder / "long.zarr")).failed
    return folder / "long.zarr"


def receive(url, path):
    """Return all bytes until the connection ends, and whether the answer was complete."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    connection.request("GET", path)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read(), True
    except http.client.IncompleteRead as cut:
        return answer.status, cut.partial, False
    finally:
        connection.close()


PATH = "/v1/long/scans/a/image.nii.gz"


def test_the_mask_file_of_a_scan_without_mask_is_404(long_scan):
    with BackgroundServer(ServeSettings(paths=(str(long_scan),))) as server:
        assert fetch(f"{server.url}/v1/long/scans/a/label.nii.gz")[0] == 422


def check_cut(url):
    status, body, _ = receive(url, PATH)
    assert status == 200
    with pytest.raises(EOFError):
        gzip.decompress(body)


def test_damage_in_the_middle_of_a_scan_ends_the_answer_unfinished(long_scan, tmp_path, caplog):
    store = Path(shutil.copytree(long_scan, tmp_path / "long.zarr"))
    with BackgroundServer(ServeSettings(paths=(str(store),))) as server:
        whole = gzip.decompress(receive(server.url, PATH)[1])
        assert len(whole) == 352 + 96 * 96 * 300 * 2
        damage(store, "a", -1)
        assert receive(server.url, PATH)[2] is False
        check_cut(server.url)
        damage(store, "a", 0)
        status, headers, _ = fetch(f"{server.url}{PATH}")
        assert (status, headers["retry-after"]) == (503, "1")


@pytest.mark.long
def test_granian_ends_a_damaged_answer_unfinished(long_scan, tmp_path):
    store = Path(shutil.copytree(long_scan, tmp_path / "long.zarr"))
    with server_process(tmp_path, store) as server:
        assert len(gzip.decompress(receive(server.url, PATH)[1])) == 352 + 96 * 96 * 300 * 2
        damage(store, "a", -1)
        check_cut(server.url)


def test_too_many_files_at_once_are_refused(long_scan):
    settings = ServeSettings(paths=(str(long_scan),), limits=ServeLimits(streams=1))
    with BackgroundServer(settings) as server:
        one = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=TIMEOUT_S)
        one.request("GET", PATH)
        answer = one.getresponse()
        assert answer.read(2) == b"\x1f\x8b"  # and then stops reading
        status, headers, _ = fetch(f"{server.url}{PATH}")
        assert (status, headers["retry-after"]) == (429, "5")
        one.close()
        for path, expected in ((PATH, 200), ("/v1/long/scans/none/image.nii.gz", 404), (PATH, 200)):
            assert status_when_free(server.url, path) == expected


def status_when_free(url, path):
    """Repeat a request until no other client occupies the only slot."""
    found = []
    wait_until(lambda: found.append(fetch(f"{url}{path}")[0]) or found[-1] != 429)
    return found[-1]
