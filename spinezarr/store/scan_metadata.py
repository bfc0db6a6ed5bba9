"""Which small files does a scan have, given its attributes?

These are all files of a scan except its shards: the metadata of its arrays, its coordinates and the
voxel counts of its labels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import axis_positions_mm
from spinezarr.scaling import Scaling
from spinezarr.store.array_metadata import ScanArrays, Separator
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import BALANCED, METADATA, Profile, counts_key
from spinezarr.store.metadata import (
    sampling_group,
    scan_files,
    with_members,
    with_stored_encoding,
)
from spinezarr.store.sealed import unseal
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["metadata_files", "small_files", "stored_mask_members"]


def small_files(
    scan: ScanAttributes,
    label_chunks: npt.NDArray[np.uint32] | None,
    profile: Profile,
    separator: Separator,
) -> dict[str, bytes]:
    """Return the small files of a scan by key; ``zarr.json`` lacks the attributes of the group.

    Parameters
    ----------
    scan
        Attributes of the scan.
    label_chunks
        Voxel counts of labels; see :func:`spinezarr.store.metadata.scan_files`.
    profile
        Chunks and codecs of image and mask.
    separator
        Separator in the keys of chunks and shards.
    """
    values = {VALUE_OF_NAME[name] for name in scan.vertebrae} | set(map(int, scan.other_labels))
    return scan_files(
        profile,
        shape_zyx=scan.shape_zyx,
        image_dtype=np.dtype(scan.image_stored_dtype),
        image_scaling=None if scan.image_scaling is None else Scaling(*scan.image_scaling),
        coordinates_mm=axis_positions_mm(np.array(scan.affine), scan.shape_zyx),
        label_chunks=label_chunks,
        label_values=tuple(sorted(values)),
        structures=scan.structures,
        separator=separator,
    )


def metadata_files(scan: ScanAttributes, arrays: ScanArrays, metadata: bytes) -> dict[str, bytes]:
    """Return the metadata files that a published scan should have, by key.

    Parameters
    ----------
    scan
        Attributes that the metadata must describe.
    arrays
        Arrays of the published scan, parsed from ``metadata``.
    metadata
        The ``zarr.json`` of the published scan. Image and mask keep its chunks and codecs.
    """
    counts = arrays.label_chunks
    # Only the shape of the counts goes into metadata, so zeros stand for the stored ones.
    label_chunks = None if counts is None else np.zeros(counts.shape, np.uint32)
    files = small_files(scan, label_chunks, BALANCED, arrays.separator)
    files = with_stored_encoding(files, unseal(metadata)["consolidated_metadata"]["metadata"])
    files = with_members(files, stored_mask_members(scan, metadata))
    return {key: data for key, data in files.items() if key.endswith(METADATA)}


def stored_mask_members(scan: ScanAttributes, metadata: bytes) -> dict[str, dict[str, Any]]:
    """Return the stored metadata of the arrays of further masks by key, and of their group.

    Parameters
    ----------
    scan
        Attributes whose masks are meant.
    metadata
        The ``zarr.json`` of the published scan.
    """
    if not scan.masks:
        return {}
    stored = unseal(metadata)["consolidated_metadata"]["metadata"]
    keys = [key for name in scan.masks for key in (name, counts_key(name))]
    return {**sampling_group(), **{key: stored[key] for key in keys}}
