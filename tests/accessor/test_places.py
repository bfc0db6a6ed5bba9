"""The accessor works on scans far away, and on trees of scans."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import spinezarr


def check(scan, expected, tmp_path):
    """Compare a scan that was opened far away with the same scan on disk."""
    part, model = (dataset.isel(z=slice(3, 20, 2)) for dataset in (scan, expected))
    np.testing.assert_array_equal(part.spine.affine, model.spine.affine)
    for dataset, name in ((part, "far.nii.gz"), (model, "near.nii.gz")):
        dataset.spine.to_nifti(tmp_path / name, "label")
    assert (tmp_path / "far.nii.gz").read_bytes() == (tmp_path / "near.nii.gz").read_bytes()
    name = model.label.flag_meanings.split()[-1]
    xr.testing.assert_equal(scan.spine.sel_vertebra(name), expected.spine.sel_vertebra(name))
    found, wanted = (dataset.spine.resample(4).compute() for dataset in (scan, expected))
    xr.testing.assert_equal(found, wanted)
    assert repr(scan.spine.view()) == repr(expected.spine.view())


def test_scans_of_a_server_and_by_fsspec_urls(store, ctspine1k_url, tmp_path):
    expected = store.scan("liver_0")
    with store.serve() as server:
        url = f"{server.url}/zarr/ctspine1k"
        check(spinezarr.open(url).scan("liver_0"), expected, tmp_path)
        check(xr.open_zarr(f"{url}/scans/liver_0", zarr_format=3, chunks=None), expected, tmp_path)
        check(xr.open_zarr(f"{url}/scans/liver_0", zarr_format=3), expected, tmp_path)
    for url in (f"file://{ctspine1k_url}", f"local://{ctspine1k_url}"):
        check(xr.open_zarr(f"{url}/scans/liver_0"), expected, tmp_path)
        check(spinezarr.open(url).scan("liver_0"), expected, tmp_path)


def test_scans_of_a_bucket(store, ctspine1k_url, s3_server, tmp_path, monkeypatch):
    bucket, options = s3_server.new_bucket(), s3_server.storage_options
    for path in Path(ctspine1k_url).rglob("*"):
        if path.is_file():
            key = f"a.zarr/{path.relative_to(ctspine1k_url)}"
            s3_server.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    url, expected = f"s3://{bucket}/a.zarr", store.scan("liver_0")
    check(spinezarr.open(url, storage_options=options).scan("liver_0"), expected, tmp_path)
    plain = xr.open_zarr(f"{url}/scans/liver_0", storage_options=options)
    # xarray does not keep the options, so they must come from the environment.
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    check(plain, expected, tmp_path)


# Trees


def test_a_tree_of_chosen_scans_has_the_accessor(store, ctspine1k_url):
    chosen = store.table.scan[store.table.split == "train"].to_numpy()
    tree = xr.DataTree.from_dict({name: store.scan(name) for name in chosen})
    assert [*tree.children] == [*chosen]
    for name, node in tree.children.items():
        scan = store.scan(name)
        np.testing.assert_array_equal(node.dataset.spine.affine, scan.spine.affine)
        np.testing.assert_array_equal(node.to_dataset().spine.affine, scan.spine.affine)
    means = tree.map_over_datasets(lambda scan: scan[["image"]].mean() if scan else scan)
    assert float(means["liver_0"].image) == pytest.approx(float(store.scan("liver_0").image.mean()))
    cropped = tree.isel(z=slice(5, 15))
    for name, node in cropped.children.items():
        expected = store.scan(name).isel(z=slice(5, 15)).spine.affine
        np.testing.assert_array_equal(node.dataset.spine.affine, expected)


def test_plain_xarray_opens_one_scan_as_a_tree(store, ctspine1k_url):
    url = f"{ctspine1k_url}/scans/liver_0"
    tree = xr.open_datatree(url, engine="zarr", chunks={})
    xr.testing.assert_equal(tree.to_dataset(), store.scan("liver_0"))
    np.testing.assert_array_equal(tree.dataset.spine.affine, store.scan("liver_0").spine.affine)
    groups = xr.open_groups(url, engine="zarr")
    np.testing.assert_array_equal(groups["/"].spine.affine, store.scan("liver_0").spine.affine)
