"""MONAI and TorchIO, which read whole volumes and cut patches out of them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from draws import KINDS, size_zyx
from targets import GROUPED

from peers.data import DTYPES, Data, files_below
from peers.reader import CallPattern, LocatedPatch, ReaderConfig, StreamReader

_BATCH = 4
_ENDLESS = 10**7
_WORKERS = 2
_AHEAD = 2 * _WORKERS + 1
"""Batches that the workers of a DataLoader hold: two ready per worker, and one in work."""
_QUEUED = 4
"""Number of volumes whose patches wait in TorchIO's queue."""


def _monai(samples: int, workers: int, data: Data) -> StreamReader:
    """Load each volume from the cache on disk, then cut ``samples`` patches out of it."""
    import torch  # noqa: PLC0415  only the benchmark has these
    from monai.data import DataLoader, PersistentDataset, list_data_collate  # noqa: PLC0415
    from monai.transforms import (  # noqa: PLC0415
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        RandSpatialCropSamplesd,
    )

    keys = list(DTYPES)
    cache = data.folder / "monai"
    items = [{key: str(data.raw(key, scan)) for key in keys} for scan in range(data.scans)]

    def start(kind: str) -> Iterator[Any]:
        size_xyz = size_zyx(kind, data.shape_zyx)[::-1]
        dataset = PersistentDataset(
            items,
            Compose(
                [
                    *(LoadImaged(key, dtype=dtype) for key, dtype in DTYPES.items()),
                    EnsureChannelFirstd(keys),
                    Orientationd(keys, axcodes="RAS", labels=None),
                    RandSpatialCropSamplesd(keys, size_xyz, samples, random_size=False),
                ]
            ),
            cache_dir=cache,
        )
        for item in range(len(items)):
            dataset[item]  # fills the cache
        sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
        return iter(
            DataLoader(
                dataset, batch_size=max(1, _BATCH // samples), sampler=sampler,
                num_workers=workers, collate_fn=list_data_collate,
            )
        )  # fmt: skip

    def locate(batch: Any) -> list[LocatedPatch]:  # noqa: ANN401  a dictionary of tensors
        image, label = (batch[key] for key in keys)
        patches = []
        for i, affine in enumerate(np.asarray(image.affine)):  # from voxels of the cached volume
            x, y, z = (round(float(n)) for n in affine[:3, 3])
            pair = (np.asarray(values[i, 0]).transpose(2, 1, 0) for values in (image, label))
            patches.append(LocatedPatch((z, y, x), *pair))
        return patches

    return StreamReader(
        data, start, lambda batch: len(batch["image"]), locate,
        files_below([cache]), ahead=_AHEAD if workers else 0,
    )  # fmt: skip


def _torchio(samples: int, data: Data) -> StreamReader:
    """Fill a queue with ``samples`` patches of each volume, as its documentation shows."""
    import torchio as tio  # noqa: PLC0415  only the benchmark has it

    length = _QUEUED * samples

    def start(kind: str) -> Iterator[Any]:
        x, y, z = (size_zyx(kind, data.shape_zyx))[::-1]
        subjects = [
            tio.Subject(
                image=tio.ScalarImage(data.raw("image", scan)),
                label=tio.LabelMap(data.raw("label", scan)),
            )
            for scan in range(data.scans)
        ] * 1000
        dataset = tio.SubjectsDataset(subjects, transform=tio.ToCanonical())
        queue = tio.Queue(
            dataset, max_length=length, samples_per_volume=samples,
            sampler=tio.UniformSampler((x, y, z)), num_workers=_WORKERS,
        )  # fmt: skip
        return iter(tio.SubjectsLoader(queue, batch_size=min(_BATCH, samples), num_workers=0))

    def locate(batch: Any) -> list[LocatedPatch]:  # noqa: ANN401  a dictionary of tensors
        patches = []
        for i, location in enumerate(np.asarray(batch["location"])):
            x, y, z = (int(n) for n in location[:3])
            pair = (np.asarray(batch[key]["data"][i, 0]).transpose(2, 1, 0) for key in DTYPES)
            patches.append(LocatedPatch((z, y, x), *pair))
        return patches

    return StreamReader(
        data, start, lambda batch: len(batch["location"]), locate,
        [data.image, data.label], ahead=0, min_patches=length, restarts=True,
    )  # fmt: skip


CONFIGS = (
    *(
        ReaderConfig(
            f"{peer}, {workers} workers", (peer,), partial(_monai, samples, workers), KINDS,
            (CallPattern(),), ("monai",),
        )
        for peer, samples in (("MONAI", 1), (GROUPED[0], 4))
        for workers in (0, _WORKERS)
    ),
    *(
        ReaderConfig(
            peer, (peer,), partial(_torchio, samples), ("128^3", "96^3", "axial"),
            (CallPattern(),), ("torchio",), slow=True,
        )
        for peer, samples in (("TorchIO", 1), (GROUPED[1], 10))
    ),
)  # fmt: skip
