"""How large would scans be as ``.nii.gz`` files? The size is estimated from a few slices."""

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import Box
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec

__all__ = ["estimate_nii_gz_bytes"]

_GZIP_LEVEL: Final = 6
"""Default compression level of gzip, which dcm2niix uses, too."""


def estimate_nii_gz_bytes(
    reader: StoreReader, voxels: VoxelReader, scan_ids: Sequence[str], *, n_slices: int = 8
) -> int:
    """Estimate the size in bytes of the images and masks of scans as ``.nii.gz``.

    A few axial slices, evenly distributed over scans and positions, are compressed as gzip does.
    All other voxels are assumed to compress equally well. For whole chest CTs, the estimate was
    within 1 % of the files.

    Parameters
    ----------
    reader, voxels
        Readers of the store and of its voxels.
    scan_ids
        Ids of at least one scan.
    n_slices
        Number of slices of images. As many slices of masks are read. Each takes about 0.04 s.
    """
    sampled_ids = [scan_ids[i] for i in _spread(len(scan_ids), min(n_slices, len(scan_ids)))]
    compressed_bytes, sampled_bytes = {"image": 0, "label": 0}, {"image": 0, "label": 0}
    for scan_id in sampled_ids:
        for spec in reader.scan(scan_id).arrays:
            count = min(spec.shape_zyx[0], n_slices // len(sampled_ids))
            for z in _spread(spec.shape_zyx[0], count):
                data = _slice(voxels, spec, z)
                compressed_bytes[spec.name] += len(zlib.compress(data, _GZIP_LEVEL))
                sampled_bytes[spec.name] += len(data)
    table = reader.table.sel(scan=list(scan_ids))
    n_voxels = table.shape_zyx.prod("axis").to_numpy()
    image_bytes = n_voxels * [np.dtype(str(name)).itemsize for name in table.image_dtype.values]
    label_bytes = n_voxels[table.label_state.to_numpy() != "none"]
    total = {"image": int(image_bytes.sum()), "label": int(label_bytes.sum())}
    return sum(
        round(total[name] * compressed_bytes[name] / sampled_bytes[name])
        for name in sampled_bytes
        if sampled_bytes[name]
    )


def _spread(length: int, count: int) -> list[int]:
    """Return ``count`` indices that are evenly distributed from 0 to ``length``."""
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _slice(voxels: VoxelReader, spec: ArraySpec, z: int) -> bytes:
    box = Box((z, 0, 0), (z + 1, *spec.shape_zyx[1:]))
    out = np.empty(box.shape_zyx, spec.dtype)
    voxels.read_into(spec, box, out)
    return out.tobytes()
