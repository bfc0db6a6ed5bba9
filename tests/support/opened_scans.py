"""Each way in which spinezarr or plain xarray opens a scan."""

import xarray as xr

import spinezarr

WAYS = ("spinezarr", "plain xarray", "path of the scan", "without dask", "loaded")


def open_scan(url, name, way):
    """Open a scan of a store on disk."""
    if way == "spinezarr":
        return spinezarr.open(url).scan(name)
    if way == "path of the scan":
        return xr.open_zarr(f"{url}/scans/{name}")
    chunks = None if way == "without dask" else "auto"
    dataset = xr.open_zarr(url, group=f"scans/{name}", consolidated=False, chunks=chunks)
    return dataset.load() if way == "loaded" else dataset
