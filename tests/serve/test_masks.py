"""A server gives the files of further masks, with and without shards, and its streams read them."""

import shutil

import numpy as np
import pytest
import xarray as xr

import spinezarr


@pytest.fixture
def copy(ctspine1k_url, tmp_path):
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "ctspine1k.zarr"))
    mask = np.zeros(store.scan("liver_0").image.shape, np.uint8)
    mask[20:, 40:60, 30:] = 41
    store.write_labels("liver_0", "parts", mask, scheme="subregions")
    return store, mask


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


def test_a_stream_over_a_server_reads_masks(copy):
    store, _ = copy
    with store.serve() as server:
        remote = spinezarr.open(f"{server.url}/ctspine1k")
        np.testing.assert_array_equal(remote.scan("liver_0").parts, store.scan("liver_0").parts)
        labels = ("label", "parts")
        options = {"batch_size": 2, "n_samples": 4, "labels": labels}
        for a, b in zip(remote.patches(24, **options), store.patches(24, **options), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.masks["parts"], b.masks["parts"])
