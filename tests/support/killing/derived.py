"""Two versions of a source store; deriving the second after the first covers every case."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import spinezarr
from killing.check import Reference
from killing.dataset import RECIPE, write_raw
from killing.driver import Driver
from killing.kills import CrashData

__all__ = ["DeriveData"]

_MASKS = {1: {"kept": 1, "other-voxels": 2, "amended": 3}, 2: {"kept": 4, "new": 5}}
"""Scans that get another mask in each version, and the seed of its voxels."""


@dataclass(frozen=True, slots=True)
class DeriveData(CrashData):
    """A source store, stores that are derived from it, and the driver that made them."""

    @classmethod
    def create(cls, folder: Path, driver: Driver) -> "DeriveData":
        """Write the source store in both versions, and derive from each in runs to the end."""
        folder.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        data = cls(folder, driver, {"nothing": {}}, {})
        for version in (1, 2):
            write_raw(folder / f"raw{version}", version)
            data._ingest(version)
            if version == 1:
                data.stores["version 1"] = data._run_to_end({}, 1)
        for start, before in data.stores.items():
            data.references[start] = Reference.of(before, data._run_to_end(before, 2))
        return data

    def words(self, url: str, version: int = 2) -> list[str]:
        """Return the command line that derives from the source as it is now."""
        del version
        source = str(self.folder / "source.zarr")
        return ["derive", source, "--out", url, "--spacing-mm", "1,2.2,0.9"]

    def _ingest(self, version: int) -> None:
        """Bring the source to a version: ingest, then write masks, and remove one."""
        url = self.folder / "source.zarr"
        raw = self.folder / f"raw{version}"
        spinezarr.ingest(self.folder / "recipe.yaml", raw=raw, out=url)
        shutil.rmtree(raw)
        store = spinezarr.open(url)
        for scan_id, seed in _MASKS[version].items():
            shape = store.scan(scan_id).image.shape
            values = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
            store.write_labels(scan_id, "parts", values, scheme={1: "left rib", 2: "right rib"})
        if version == 2:
            store.remove_labels("parts", scans="amended")
