"""Where do the masks that are compared come from?"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from spinezarr.compare.overlap import LabelMask
from spinezarr.errors import FormatError, UsageError
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Box, Grid
from spinezarr.ingestion.voxels.align import aligned_label_grid
from spinezarr.ingestion.voxels.chunks import stored_labels
from spinezarr.recipe.pattern import fill_template, template_names
from spinezarr.regular_file import read_regular_file
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.vertebrae import MULTI_SEGMENT_LEVELS, NAME_OF_VALUE

__all__ = ["MaskFiles", "MaskSource", "StoredMask", "read_nnunet_labels"]

_SLAB_SLICES: Final = 8
"""Number of slices of a file that are read at once."""
_MAX_DATASET_BYTES: Final = 1 << 20
"""Largest size of a ``dataset.json``. That of the export has a few kilobytes."""


class MaskSource(Protocol):
    """Gives one mask for each scan of a store."""

    @property
    def description(self) -> str:
        """Name of the masks in reports."""
        ...

    def is_present(self, scan: ScanHandle) -> bool:
        """Return whether the store says that the scan has this mask; no voxel is read."""
        ...

    def read(self, scan: ScanHandle) -> LabelMask:
        """Return the mask of a scan, on the grid of its image.

        Raises
        ------
        SpinezarrError, OSError
            If the scan has no such mask, or it cannot be read or lies on another grid.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A mask that the store holds beside the image."""

    voxels: VoxelReader = field(repr=False)
    name: str
    """Name of its array."""

    @property
    def description(self) -> str:
        """As in :class:`MaskSource`."""
        return f"the mask {self.name!r}"

    def is_present(self, scan: ScanHandle) -> bool:
        """As in :class:`MaskSource`."""
        return any(array.name == self.name for array in scan.all_arrays)

    def read(self, scan: ScanHandle) -> LabelMask:
        """As in :class:`MaskSource`."""
        array = scan.mask(self.name)
        _check_names(scan, self.name)
        mask = np.empty(array.shape_zyx, np.uint8)
        self.voxels.read_into(array, Box.at((0, 0, 0), array.shape_zyx), mask)
        return mask


def _check_names(scan: ScanHandle, name: str) -> None:
    """Check that a further mask has the vertebrae under the values of ``label``."""
    record = scan.attributes.masks.get(name)
    for value, label in {} if record is None else record.labels.items():
        expected = NAME_OF_VALUE.get(int(value), label.name)
        if label.name != expected and expected not in MULTI_SEGMENT_LEVELS:
            raise UsageError(
                f"the mask {name!r} names the value {value} {label.name!r}, expected {expected!r}. "
                "Vertebrae are compared; add the mask with --scheme vertebrae if it has them."
            )


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """Masks in files beside the store, such as predictions.

    Raises
    ------
    UsageError
        If the template does not name the scan, or names something else.
    """

    template: str
    """Path or URL with ``{scan}`` in the place of the scan id."""
    values: tuple[tuple[int, int], ...] = ()
    """Pairs of the value in the file and the stored value; empty if both are the same."""
    take_image_grid: bool = False
    """Whether a mask with another affine takes that of the image, if the shapes are equal."""

    def __post_init__(self) -> None:
        names = template_names(self.template)
        if names != {"scan"}:
            found = ", ".join(f"{{{name}}}" for name in sorted(names - {"scan"}))
            problem = f"names {found}" if found else "does not name the scan"
            raise UsageError(
                f"masks {self.template!r}: {problem}. Give a path with {{scan}} in the place of "
                "the scan id, such as 'predictions/{scan}.nii.gz'."
            )

    @property
    def description(self) -> str:
        """As in :class:`MaskSource`."""
        return self.template

    def is_present(self, scan: ScanHandle) -> bool:  # noqa: ARG002  a missing file is an error
        """As in :class:`MaskSource`."""
        return True

    def read(self, scan: ScanHandle) -> LabelMask:
        """As in :class:`MaskSource`."""
        source = scan.attributes.image_source
        url = fill_template(self.template, {"scan": scan.attributes.scan_id}) or ""
        fs, path = open_filesystem(url)
        volume = open_volume(fs, path)
        grid = aligned_label_grid(
            Grid(source.shape_ijk, np.array(source.affine_ijk)),
            volume.grid,
            image_path=source.file,
            label_path=path,
            take_image_grid=self.take_image_grid,
        )
        axis_map = grid.axis_map
        axis = axis_map.source_axis_zyx.index(2)
        boxes = axis_map.slab_boxes(grid.shape_zyx, (_SLAB_SLICES,) * 3)
        mask = np.empty(grid.shape_zyx, np.uint8)
        # With strict, one more slab is requested, so the volume checks its file to the end.
        slabs = volume.slabs([box.shape_zyx[axis] for box in boxes])
        for box, slab in zip(boxes, slabs, strict=True):
            labels, unnamed = stored_labels(axis_map.to_zyx(slab), self.values)
            if unnamed:
                values = ", ".join(str(value) for value, _ in unnamed)
                raise FormatError(
                    f"{path}: holds the values {values}, which dataset.json does not name. Give "
                    "the dataset.json of the model that made the file."
                )
            mask[box.slices] = labels
        return mask


def read_nnunet_labels(path: Path) -> tuple[tuple[int, int], ...]:
    """Read which label of the store each number of an nnU-Net model stands for.

    Parameters
    ----------
    path
        The ``dataset.json`` that ``spinezarr export nnunet`` wrote, or nnU-Net's copy in the folder
        of a model.

    Returns
    -------
    tuple
        Pairs of nnU-Net's number and the stored label.

    Raises
    ------
    UsageError
        If the file has no ``stored_labels``, or is not JSON.
    """
    try:
        dataset = _NnunetDataset.model_validate_json(read_regular_file(path, _MAX_DATASET_BYTES))
    except ValueError as problem:
        raise UsageError(
            f"{path}: has no usable key 'stored_labels', which maps nnU-Net's numbers to labels. "
            "Give the dataset.json that 'spinezarr export nnunet' wrote."
        ) from problem
    return tuple((int(number), value) for number, value in dataset.stored_labels.items())


class _NnunetDataset(BaseModel):
    """The part of a ``dataset.json`` that is used. nnU-Net knows many more keys."""

    model_config = ConfigDict(frozen=True, strict=True)

    stored_labels: dict[
        Annotated[str, Field(pattern=r"^[1-9]\d{0,4}$")], Annotated[int, Field(gt=0, le=255)]
    ]
    """Label of the store for each number, which is text, as all keys of JSON are."""
