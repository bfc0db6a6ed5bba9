"""How is a store written as a raw dataset of nnU-Net v2?

Images have the voxels of the source. Masks are on the grid of their image. Labels are numbered from
1 without gaps, as nnU-Net requires [1]_. ``dataset.json``, which nnU-Net copies next to each model,
states the store's label for each number.

References
----------
.. [1] https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md; the rules
   are checked by ``nnunetv2.experiment_planning.verify_dataset_integrity``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import check_not_link, write_atomically
from spinezarr.export.nifti import ExportedScan, write_label_on_image, write_nifti
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.resources import package_version
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.files import PARTIAL
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.text import to_ascii_json
from spinezarr.vertebrae import BACKGROUND, VALUE_OF_NAME

__all__ = ["NnunetExport", "NnunetLabels"]

Subset = Literal["train", "validation", "test"]

_BACKGROUND: Final = "background"
"""nnU-Net's name for 0."""
_IGNORE: Final = "ignore"
"""nnU-Net's name for voxels that training ignores. It must have the highest number."""
_READER: Final = "NibabelIOWithReorient"
"""Reader of nnU-Net that reorients all images alike, because sources have different axes."""
_VALID_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPLITS_FILE: Final = "splits_final.json"
_DATASET_FILE: Final = "dataset.json"


@dataclass(frozen=True, slots=True)
class NnunetLabels:
    """The numbers that nnU-Net's masks have for the labels of a store."""

    number_of_name: dict[str, int]
    """Number of each label name, ``background`` first."""
    stored_of_number: dict[int, int]
    """Label value in the store for each number."""

    @classmethod
    def from_scans(cls, scans: Iterable[ScanHandle], mask: str = LABEL) -> "NnunetLabels":
        """Return numbers for the labels of masks in the order of their values, ``ignore`` last.

        Pass all scans of a store, so that all exports of its parts have the same numbers.

        Raises
        ------
        UsageError
            If a further mask has different names for one value, or one name for several values.
        """
        names: dict[int, str] = {}
        for attributes in (scan.attributes for scan in scans):
            if mask == LABEL:
                names |= _names_in_label(attributes)
            else:
                _merge(names, _names_in_mask(attributes, mask), mask, attributes.scan_id)
        values = sorted(names, key=lambda value: (names[value] == _IGNORE, value))
        numbers = {names[value]: number for number, value in enumerate(values, 1)}
        return cls({_BACKGROUND: BACKGROUND, **numbers}, dict(enumerate(values, 1)))

    @property
    def number_of_stored(self) -> npt.NDArray[np.uint8]:
        """Number for each label value in the store, of shape (256,)."""
        table = np.zeros(256, np.uint8)
        for number, value in self.stored_of_number.items():
            table[value] = number
        return table


@dataclass(frozen=True, slots=True, eq=False)
class NnunetExport:
    """A planned dataset.

    Call :meth:`make_folders`, :meth:`write` for each scan, and then :meth:`finish`, as
    :meth:`spinezarr.Store.export_nnunet` does. Scans of splits that start with ``test`` go to
    ``imagesTs`` and ``labelsTs``, and all others to ``imagesTr`` and ``labelsTr``. Scans without a
    mask cannot be used for training and go to ``imagesTs``.
    """

    reader: StoreReader
    voxels: VoxelReader
    folder: Path
    """Folder of the dataset, ``Dataset<number>_<name>``."""
    preprocessed: Path | None
    """Folder ``$nnUNet_preprocessed``, where nnU-Net looks for splits; None if there is none."""
    ending: str
    """Ending of the files, ``.nii.gz`` or ``.nii``."""
    subset_of_scan: dict[str, Subset]
    """Subset of each scan, by its id."""
    labels: NnunetLabels
    mask: str
    """Mask that is written: ``label`` or a further one."""

    @classmethod
    def plan(
        cls,
        reader: StoreReader,
        voxels: VoxelReader,
        folder: Path,
        selection: ScanSelection,
        *,
        mask: str,
        dataset_id: int,
        name: str | None,
        preprocessed: Path | None,
        compressed: bool,
    ) -> "NnunetExport":
        """Choose scans and labels; see :meth:`spinezarr.Store.export_nnunet`.

        Raises
        ------
        UsageError
            If the number or name is not valid in nnU-Net, the store lacks a split, no scan has a
            mask to train on, or the masks of the scans name their values differently.
        """
        name = name or re.sub(r"[^A-Za-z0-9_-]+", "_", reader.root.title)
        if not _VALID_NAME.fullmatch(name) or not 1 <= dataset_id <= 999:  # noqa: PLR2004
            raise UsageError(
                f"dataset {dataset_id}, {name!r}: nnU-Net takes numbers from 1 to 999, and names "
                "of letters, digits, _ and -."
            )
        table = reader.table
        columns = (table.scan, table.split, table.label_state, table.masks)
        rows = [
            (scan_id, split, state != "none" if mask == LABEL else mask in masks.split())
            for scan_id, split, state, masks in zip(
                *(column.to_numpy().tolist() for column in columns), strict=True
            )
        ]
        chosen = set(selection.scan_ids(reader.columns, reader.name))
        subset_of_scan = {
            scan_id: _subset(split, has_mask=has_mask)
            for scan_id, split, has_mask in rows
            if scan_id in chosen
        }
        if not {"train", "validation"} & set(subset_of_scan.values()):
            kind = "masks" if mask == LABEL else f"a mask {mask!r}"
            raise UsageError(f"{reader.name}: there are no scans with {kind} to train on.")
        masked = (reader.scan(scan_id) for scan_id, _, has_mask in rows if has_mask)
        return cls(
            reader,
            voxels,
            folder / f"Dataset{dataset_id:03}_{name}",
            preprocessed,
            ".nii.gz" if compressed else ".nii",
            subset_of_scan,
            NnunetLabels.from_scans(masked, mask),
            mask,
        )

    @property
    def scan_ids(self) -> list[str]:
        """Ids of the scans, which are also the names of nnU-Net's cases."""
        return list(self.subset_of_scan)

    def files(self, scan_id: str) -> tuple[Path, Path | None]:
        """Return the paths of image and mask of a scan; the latter is None without a mask."""
        kind = "Ts" if self.subset_of_scan[scan_id] == "test" else "Tr"
        image = self.folder / f"images{kind}" / f"{scan_id}_0000{self.ending}"
        has_mask = self.mask in self.reader.scan(scan_id).mask_names
        label = self.folder / f"labels{kind}" / f"{scan_id}{self.ending}"
        return image, label if has_mask else None

    def make_folders(self, *, overwrite: bool = False) -> None:
        """Make the folders of the dataset.

        Parameters
        ----------
        overwrite
            Whether to replace existing files.

        Raises
        ------
        UsageError
            If files exist already, the folder holds other files, or another dataset has the same
            number.
        """
        number = self.folder.name.partition("_")[0]
        for other in self.folder.parent.glob(f"{number}_*"):
            if other.name != self.folder.name:
                raise UsageError(
                    f"{other}: has the same number, which nnU-Net refuses. Choose another number."
                )
        planned = {path for scan_id in self.subset_of_scan for path in self.files(scan_id) if path}
        for path in self.folder.glob("*/*"):
            if path not in planned and not path.name.endswith(PARTIAL):
                raise UsageError(f"{path}: is not a file of this dataset. Choose another folder.")
        outputs = (*planned, self.folder / _DATASET_FILE, *self._split_files())
        existing = next((path for path in outputs if path.exists()), None)
        if existing is not None and not overwrite:
            raise UsageError(
                f"{existing}: exists already. Choose another folder, or replace existing files "
                "(--overwrite)."
            )
        try:
            # Without this file, the folder is no dataset until everything is written.
            (self.folder / _DATASET_FILE).unlink(missing_ok=True)
            for folder in {path.parent for path in (*planned, *self._split_files())}:
                if folder.parent == self.folder:
                    check_not_link(folder)
                folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as problem:
            raise UsageError(
                f"{problem.filename}: is a file, or lies below one. Choose another folder."
            ) from problem

    def write(self, scan_id: str, on_bytes: Callable[[int], None] = lambda _: None) -> ExportedScan:
        """Write image and mask of a scan.

        Parameters
        ----------
        scan_id
            The scan.
        on_bytes
            Called with the number of bytes of stored voxels after each slab.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged. The file is then not written.
        """
        scan = self.reader.scan(scan_id)
        image, label = self.files(scan_id)
        attributes = scan.attributes
        notes = write_nifti(image, scan.image, attributes, self.voxels, on_bytes)
        if label is not None:
            write_label_on_image(
                label,
                scan.mask(self.mask),
                attributes,
                self.voxels,
                on_bytes,
                values=self.labels.number_of_stored,
            )
        files = tuple(str(path) for path in (image, label) if path is not None)
        return ExportedScan(scan_id, files, tuple(notes))

    def finish(self) -> list[Path]:
        """Write the splits and, last, ``dataset.json``; return their paths.

        Splits are written only if there are scans for both training and validation. Otherwise
        nnU-Net makes its own.
        """
        written = self._split_files()
        for path in written:
            _write_json(
                path, [{"train": self._scans_of("train"), "val": self._scans_of("validation")}]
            )
        _write_json(self.folder / _DATASET_FILE, self._dataset())
        return [*written, self.folder / _DATASET_FILE]

    def _scans_of(self, subset: Subset) -> list[str]:
        return sorted(
            scan_id for scan_id, scan_subset in self.subset_of_scan.items() if scan_subset == subset
        )

    def _split_files(self) -> list[Path]:
        """Return the paths of the splits. nnU-Net reads those next to its preprocessed data."""
        if not self._scans_of("train") or not self._scans_of("validation"):
            return []
        folders = [self.folder]
        if self.preprocessed is not None:
            folders.append(self.preprocessed / self.folder.name)
        return [folder / _SPLITS_FILE for folder in folders]

    def _dataset(self) -> dict[str, Any]:
        root = self.reader.root
        return {
            "channel_names": {"0": "CT"},
            "labels": self.labels.number_of_name,
            "numTraining": sum(subset != "test" for subset in self.subset_of_scan.values()),
            "file_ending": self.ending,
            "overwrite_image_reader_writer": _READER,
            "name": root.title,
            "reference": root.citation,
            "license": root.license,
            "converted_by": f"spinezarr {package_version()}",
            "stored_labels": {str(n): value for n, value in self.labels.stored_of_number.items()},
            "stored_mask": self.mask,
        }


def _names_in_label(attributes: ScanAttributes) -> dict[int, str]:
    """Return the name of each value of ``label``."""
    names = {VALUE_OF_NAME[name]: name for name in attributes.vertebrae}
    for value in attributes.other_labels:
        names[int(value)] = attributes.structures.get(value, f"label_{value}")
    return names


def _names_in_mask(attributes: ScanAttributes, mask: str) -> dict[int, str]:
    """Return the name of each value of a further mask."""
    labels = attributes.masks[mask].labels if mask in attributes.masks else {}
    return {
        int(value): label.name if label.name not in {"", _BACKGROUND} else f"label_{value}"
        for value, label in labels.items()
    }


def _merge(names: dict[int, str], others: dict[int, str], mask: str, scan_id: str) -> None:
    """Add the names of the values of another mask.

    Raises
    ------
    UsageError
        If one value has two names, or one name two values.
    """
    values = {name: value for value, name in names.items()}
    for value, name in others.items():
        known_name, known_value = names.get(value, name), values.get(name, value)
        if known_name != name:
            problem = f"names the value {value} {name!r}, and in another scan {known_name!r}"
        elif known_value != value:
            problem = f"has {name!r} as the value {value}, and in another scan as {known_value}"
        else:
            names[value], values[name] = name, value
            continue
        raise UsageError(
            f"scan {scan_id!r}: the mask {mask!r} {problem}. Write this mask of all scans with one "
            "scheme."
        )


def _subset(split: str, *, has_mask: bool) -> Subset:
    if not has_mask or split.startswith("test"):
        return "test"
    return "validation" if split.startswith("val") else "train"


def _write_json(path: Path, content: object) -> None:
    with write_atomically(path) as file:
        file.write(f"{to_ascii_json(content)}\n".encode())
