"""Trains a MONAI network from a store, and from MONAI's caches of .nii.gz files.

    python examples/train_monai.py ctspine1k.zarr --seconds 60 --json monai.json

Four sources give the same network patches of one size and spacing, for the same seconds:

- the store, which resamples each patch on the way;
- a store that was derived at the spacing;
- PersistentDataset: scans that MONAI has loaded, reoriented and resampled, on disk;
- CacheDataset: the same in memory.

MONAI's caches hold whole scans, and a transform cuts four patches from each scan that it loads, as
MONAI's tutorials do. Without a store, six phantoms with the names of CTSpine1K are made.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import monai
import monai.transforms as mt
import torch
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset
from timed_training import Source, Trainer, folder_bytes, report, store_or_phantoms

import spinezarr
from spinezarr.api import DrawOptions
from spinezarr.loaders.monai import MonaiPatches

KEYS = ("image", "label")
N_CLASSES = 29
"""Background, and the 28 values of the mask of a store."""
PATCHES_OF_A_SCAN = 4
EPOCH_SAMPLES = 64
HELD_OUT_SAMPLES = 16

SCALE = mt.ScaleIntensityRanged("image", -1000, 1000, -1, 1, clip=True)
RANDOM = mt.RandFlipd(KEYS, prob=0.5, spatial_axis=1)


def patches(
    store: spinezarr.Store, size: int, spacing_mm: float, **options: Unpack[DrawOptions]
) -> MonaiPatches:
    """Return patches of a store. Half of them are drawn for a vertebra."""
    stream = store.patches(size, spacing_zyx_mm=spacing_mm, foreground=0.5, **options)
    return MonaiPatches(stream, mt.Compose([SCALE, RANDOM]))


def from_store(store: spinezarr.Store, size: int, spacing_mm: float) -> Iterator[dict[str, Any]]:
    """Yield batches of a store without an end."""
    dataset = patches(store, size, spacing_mm, split="train", n_samples=EPOCH_SAMPLES)
    for epoch in itertools.count():
        dataset.set_epoch(epoch)
        yield from DataLoader(dataset, batch_size=PATCHES_OF_A_SCAN)


def scan_transforms(size: int, spacing_mm: float) -> list[Callable[[Any], Any]]:
    """Return the transforms of whole scans, which MONAI's datasets do once and keep."""
    return [
        mt.LoadImaged(KEYS),
        mt.EnsureChannelFirstd(KEYS),
        mt.Orientationd(KEYS, axcodes="RAS", labels=None),
        mt.Spacingd(KEYS, pixdim=[spacing_mm] * 3, mode=("bilinear", "nearest")),
        SCALE,
        mt.SpatialPadd(KEYS, [size] * 3),
    ]


def from_cache(dataset: Dataset, size: int) -> Iterator[dict[str, Any]]:
    """Yield batches of patches of cached scans without an end."""
    crop = mt.RandCropByPosNegLabeld(
        KEYS, "label", [size] * 3, pos=1, neg=1, num_samples=PATCHES_OF_A_SCAN
    )
    cut = Dataset(dataset, mt.Compose([crop, RANDOM]))
    while True:
        yield from DataLoader(cut, batch_size=1, shuffle=True)


@contextmanager
def trainer(
    batches: Callable[[], Iterator[dict[str, Any]]], held_out: MonaiPatches
) -> Iterator[Trainer]:
    """Start a new network on a source of batches."""
    monai.utils.set_determinism(seed=0)
    network = monai.networks.nets.UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=N_CLASSES,
        channels=(8, 16, 32, 64),
        strides=(2, 2, 2),
        num_res_units=1,
    )
    loss_of = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def step(batch: dict[str, Any]) -> float:
        loss = loss_of(network(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def held_out_loss() -> float:
        network.eval()
        with torch.no_grad():
            losses = [
                float(loss_of(network(batch["image"]), batch["label"]))
                for batch in DataLoader(held_out, batch_size=PATCHES_OF_A_SCAN)
            ]
        return sum(losses) / len(losses)

    yield Trainer(batches(), step, PATCHES_OF_A_SCAN, held_out_loss)


def sources(
    store: spinezarr.Store, work: Path, size: int, spacing_mm: float
) -> Iterator[tuple[str, float, Path, Callable[[], Iterator[dict[str, Any]]]]]:
    """Make the copies; yield name, seconds, the files that are read, and the batches of each."""
    yield "store", 0.0, Path(store.url), partial(from_store, store, size, spacing_mm)

    started = time.perf_counter()
    store.derive(out=work / "derived.zarr", spacing_mm=spacing_mm)
    derived = spinezarr.open(work / "derived.zarr")
    took_s = time.perf_counter() - started
    yield (
        "derived store",
        took_s,
        work / "derived.zarr",
        partial(from_store, derived, size, spacing_mm),
    )

    nifti = work / "nifti"  # stands for the files that were downloaded
    store.export_nifti(out=nifti, split="train")
    names = store.table.scan[store.table.split == "train"].values
    files = [
        {"image": f"{nifti}/{name}_ct.nii.gz", "label": f"{nifti}/{name}_seg.nii.gz"}
        for name in names
    ]
    started = time.perf_counter()
    persistent = PersistentDataset(files, scan_transforms(size, spacing_mm), work / "persistent")
    for scan in persistent:
        del scan
    took_s = time.perf_counter() - started
    yield "PersistentDataset", took_s, work / "persistent", partial(from_cache, persistent, size)

    started = time.perf_counter()
    cached = CacheDataset(files, scan_transforms(size, spacing_mm), num_workers=1, progress=False)
    took_s = time.perf_counter() - started
    yield "CacheDataset", took_s, nifti, partial(from_cache, cached, size)


def main() -> None:
    """Train from each source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", nargs="?", help="a store with scans for training and validation")
    parser.add_argument("--size", type=int, default=64, help="side of a patch in voxels")
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the phantoms")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = store_or_phantoms(options.store, work, options.scale)
        held_out = patches(
            store,
            options.size,
            options.spacing_mm,
            split="validation",
            n_samples=HELD_OUT_SAMPLES,
            seed=1,
        )
        made = [
            Source(name, took_s, folder_bytes(files), partial(trainer, batches, held_out))
            for name, took_s, files, batches in sources(
                store, work, options.size, options.spacing_mm
            )
        ]
        report(
            made,
            seconds=options.seconds,
            rounds=options.rounds,
            path=options.json,
            size=options.size,
            spacing_mm=options.spacing_mm,
        )


if __name__ == "__main__":
    main()
