"""Trains nnU-Net from its preprocessed copy, and from stores.

    python examples/train_nnunet.py ctspine1k.zarr --seconds 60 --json nnunet.json

nnU-Net plans on the exported scans. Then its own trainer, network, loss and augmentation train
for the same seconds from three sources:

- nnU-Net's preprocessed copy (float32, blosc2);
- a store that was derived at the spacing of the plans;
- the store itself, from which patches are resampled by cubic splines on the way.

Two things are changed, so that two cores can train it: the memory to plan for, which makes
patches smaller, and the number of features of the network. Without a store, six phantoms with the
names of CTSpine1K are made. Training needs all packages of nnU-Net 2: pip install nnunetv2
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timed_training import Source, Trainer, folder_bytes, report, store_or_phantoms

# timed_training makes the modules of benchmarks/ importable.
from nnunet_folders import (  # isort: skip
    CONFIGURATION, NnunetFolders, missing_packages, nnunet_log, plan,
)  # fmt: skip

TRAINING_PACKAGES = (
    "batchgeneratorsv2",
    "dynamic_network_architectures",
    "seaborn",
    "sklearn",
)
HELD_OUT_BATCHES = 8


def narrow(folders: NnunetFolders, features: int) -> None:
    """Give the first stage of the planned network a number of features, and scale all others."""
    plans = folders.plans
    network = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    first = network["features_per_stage"][0]
    network["features_per_stage"] = [
        max(1, n * features // first) for n in network["features_per_stage"]
    ]
    folders.write_plans(plans)


@contextmanager
def trainer(folders: NnunetFolders, cases: Path, turn_folder: Path) -> Iterator[Trainer]:
    """Start nnU-Net's trainer on a folder of cases: preprocessed ones, or a link to a store."""
    from nnunetv2.training.dataloading import nnunet_dataset  # noqa: PLC0415
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: PLC0415

    from spinezarr.loaders.nnunet import StoreDataset  # noqa: PLC0415

    nnunet_dataset.file_ending_dataset_mapping["spinezarr"] = StoreDataset
    os.environ["nnUNet_preprocessed"] = str(cases.parents[1])  # noqa: SIM112  nnU-Net spells it so
    os.environ["nnUNet_results"] = str(turn_folder)  # noqa: SIM112
    dataset = json.loads((cases.parent / "dataset.json").read_text())
    with nnunet_log(folders.work / "nnunet.log"):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  nnU-Net draws from this generator
        plans = copy.deepcopy(folders.plans) | {"continue_training": False}
        nnunet = nnUNetTrainer(plans, CONFIGURATION, 0, dataset, device=torch.device("cpu"))
        nnunet.initialize()
        nnunet.network.train()
        training, validation = nnunet.get_dataloaders()

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield next(training)

    def step(batch: dict[str, Any]) -> float:
        return float(nnunet.train_step(batch)["loss"])

    def held_out_loss() -> float:
        nnunet.network.eval()
        np.random.seed(1)  # noqa: NPY002
        with torch.no_grad():
            losses = [
                nnunet.validation_step(next(validation))["loss"] for _ in range(HELD_OUT_BATCHES)
            ]
        return float(np.mean(losses))

    yield Trainer(batches(), step, nnunet.configuration_manager.batch_size, held_out_loss)


def main() -> None:
    """Train from each source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", nargs="?", help="a store with scans for training and validation")
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--memory-gb", type=float, default=1.0, help="memory to plan for")
    parser.add_argument("--features", type=int, default=8, help="features of the first stage")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the phantoms")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    missing = missing_packages(*TRAINING_PACKAGES)
    if missing:
        parser.error(
            f"nnU-Net needs these packages, which are missing: {', '.join(missing)}. "
            "Run: pip install nnunetv2"
        )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = store_or_phantoms(options.store, work, options.scale)
        folders = plan(store, work, options.spacing_mm, options.memory_gb)
        narrow(folders, options.features)

        started = time.perf_counter()
        store.derive(out=work / "derived.zarr", spacing_mm=options.spacing_mm)
        derived_s = time.perf_counter() - started
        linked = folders.link(work / "derived.zarr", "linked-derived")
        linked_source = folders.link(store.url, "linked-source")
        started = time.perf_counter()
        preprocessed = folders.preprocess()
        preprocessed_s = time.perf_counter() - started
        # Batches are made in this process, so that its core time is that of the source.
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112

        described = (
            ("nnU-Net's copy", preprocessed_s, preprocessed, preprocessed),
            ("derived store", derived_s, work / "derived.zarr", linked),
            ("store", 0.0, Path(store.url), linked_source),
        )
        sources = [
            Source(name, took_s, folder_bytes(files), partial(trainer, folders, cases, work / name))
            for name, took_s, files, cases in described
        ]
        patch = folders.plans["configurations"][CONFIGURATION]["patch_size"]
        report(
            sources,
            seconds=options.seconds,
            rounds=options.rounds,
            path=options.json,
            patch_size=patch,
            spacing_mm=options.spacing_mm,
        )


if __name__ == "__main__":
    main()
