"""Makes the folders from which nnU-Net trains: its preprocessed copy, and links to stores.

nnU-Net's own functions plan and preprocess, as its commands do. What they print goes to a log.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spinezarr

__all__ = ["CONFIGURATION", "NnunetFolders", "missing_packages", "plan"]

CONFIGURATION = "3d_fullres"
PREPROCESSING_PACKAGES = ("nnunetv2", "acvl_utils", "batchgenerators", "skimage")
"""What nnU-Net's preprocessing imports."""
_NUMBER = 501
_NAME = "bench"


def missing_packages(*further: str) -> list[str]:
    """Return the packages that preprocessing, or a further use, needs and that are missing."""
    names = (*PREPROCESSING_PACKAGES, *further)
    return [name for name in names if importlib.util.find_spec(name) is None]


@contextmanager
def nnunet_log(path: Path) -> Iterator[None]:
    """Write what nnU-Net prints to a file."""
    with path.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        yield


@dataclass(frozen=True, slots=True)
class NnunetFolders:
    """A planned dataset of nnU-Net."""

    work: Path
    """Folder of all others."""
    raw: Path
    """``$nnUNet_raw/Dataset501_bench``."""
    preprocessed: Path
    """``$nnUNet_preprocessed/Dataset501_bench``, with the plans."""

    @property
    def plans_path(self) -> Path:
        """File of the plans."""
        return next(path for path in self.preprocessed.glob("*Plans*.json"))

    @property
    def plans(self) -> dict[str, Any]:
        """The plans."""
        return dict(json.loads(self.plans_path.read_text()))

    def write_plans(self, plans: dict[str, Any]) -> None:
        """Change the plans. Copies that were linked before keep theirs."""
        self.plans_path.write_text(json.dumps(plans, indent=4))

    @property
    def cases_folder(self) -> str:
        """Name of the folder of preprocessed cases."""
        return str(self.plans["configurations"][CONFIGURATION]["data_identifier"])

    def link(self, store: str | Path, name: str) -> Path:
        """Link a store in the place of the cases, in another ``$nnUNet_preprocessed``.

        Call it before :meth:`preprocess`, as a store cannot replace cases that exist.

        Returns
        -------
        pathlib.Path
            The folder of cases, which :class:`spinezarr.loaders.nnunet.StoreDataset` reads.
        """
        from spinezarr.loaders.nnunet import link_store  # noqa: PLC0415  needs SciPy

        preprocessed = self.work / name / self.preprocessed.name
        shutil.copytree(self.preprocessed, preprocessed)
        link_store(str(store), self.raw, preprocessed, plans=self.plans_path.stem)
        return preprocessed / self.cases_folder

    def preprocess(self) -> Path:
        """Write nnU-Net's preprocessed copy; return the folder of cases."""
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api  # noqa: PLC0415

        with nnunet_log(self.work / "nnunet.log"):
            api.preprocess([_NUMBER], self.plans_path.stem, (CONFIGURATION,), num_processes=[1])
        return self.preprocessed / self.cases_folder


def plan(
    store: spinezarr.Store, work: Path, spacing_mm: float, memory_gb: float | None = None
) -> NnunetFolders:
    """Export a store as a raw dataset, and let nnU-Net plan on it.

    Parameters
    ----------
    store
        Store of the scans.
    work
        An empty folder. The variables that nnU-Net reads from the environment are set to it.
    spacing_mm
        Spacing of the full resolution along all axes.
    memory_gb
        Memory of the GPU to plan for; nnU-Net's default is 8. It decides the size of a patch.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (work / name).mkdir()
        os.environ[name] = str(work / name)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api  # noqa: PLC0415

    raw, preprocessed = work / "nnUNet_raw", work / "nnUNet_preprocessed"
    report = store.export_nnunet(out=raw, preprocessed=preprocessed, name=_NAME, dataset_id=_NUMBER)
    if report.failed:
        raise SystemExit(f"the export to nnU-Net failed: {report.failed}")
    with nnunet_log(work / "nnunet.log"):
        api.extract_fingerprints([_NUMBER], num_processes=1)
        api.plan_experiments(
            [_NUMBER],
            overwrite_target_spacing=(spacing_mm,) * 3,
            gpu_memory_target_in_gb=memory_gb,
        )
    dataset = f"Dataset{_NUMBER}_{_NAME}"
    return NnunetFolders(work, raw / dataset, preprocessed / dataset)
