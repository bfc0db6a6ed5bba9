"""The scan for all readers, in a folder that parent and children share."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from spinezarr.geometry import AxisMap, ShapeZYX

Voxels = npt.NDArray[Any]
ARRAYS = ("image", "label")
DTYPES = {"image": np.dtype(np.int16), "label": np.dtype(np.uint8)}


@dataclass(frozen=True, slots=True)
class Data:
    """Several copies of a CT and its mask, so that no cache of decoded voxels holds them all."""

    folder: Path
    """Folder for the readers' own forms of the data."""
    image: Path
    label: Path
    shape_zyx: ShapeZYX
    scans: int
    """Number of copies of the scan, each a separate scan for readers; links where possible."""

    @classmethod
    def make(cls, folder: Path, image: Path, label: Path, scans: int) -> "Data":
        """Prepare a folder from the scan's NIfTI files."""
        folder.mkdir(parents=True, exist_ok=True)
        pair = {"image": image.resolve(), "label": label.resolve()}
        for name, path in pair.items():
            np.save(folder / f"{name}.npy", load_nifti(path, DTYPES[name]))
        shape = np.load(folder / "image.npy", mmap_mode="r").shape
        raw = folder / "raw"
        raw.mkdir(exist_ok=True)
        data = cls(folder, pair["image"], pair["label"], (shape[0], shape[1], shape[2]), scans)
        for scan in range(scans):
            for name, path in pair.items():
                data.raw(name, scan).symlink_to(path)
        (folder / "data.json").write_text(
            json.dumps([str(data.image), str(data.label), data.shape_zyx, data.scans])
        )
        return data

    @classmethod
    def open(cls, folder: Path) -> "Data":
        """Open a folder that :meth:`make` prepared."""
        image, label, (z, y, x), scans = json.loads((folder / "data.json").read_text())
        return cls(folder, Path(image), Path(label), (z, y, x), scans)

    def raw(self, name: str, scan: int) -> Path:
        """Return a NIfTI file of a scan; ``name`` is ``image`` or ``label``."""
        return self.folder / "raw" / f"scan{scan}_{name}.nii.gz"

    def voxels(self) -> tuple[Voxels, Voxels]:
        """Map the uncompressed voxels, axes ``(z, y, x)``, RAS+."""
        image, label = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
        return image, label

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a file or folder, which the first call creates."""
        path = self.folder / name
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.new")
            make(unfinished)
            unfinished.rename(path)
        return path


def load_nifti(path: Path, dtype: np.dtype[Any]) -> Voxels:
    """Read a whole NIfTI file as ``(z, y, x)``, RAS+."""
    source = nib.load(path)
    values = AxisMap.from_affine(source.affine).to_zyx(np.asanyarray(source.dataobj))
    return np.array(values, dtype, order="C")


def files_below(paths: Sequence[Path]) -> list[Path]:
    """Return all files in some files and folders, each only once despite links."""
    files: set[Path] = set()
    for path in paths:
        if path.is_file():
            files.add(path.resolve())
        for folder, _, names in os.walk(path):
            files.update((Path(folder) / name).resolve() for name in names)
    return sorted(files)
