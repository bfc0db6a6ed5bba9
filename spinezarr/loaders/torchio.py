"""How does a TorchIO program get the samples of a stream, or whole scans, as subjects?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

try:
    import torchio as tio
except ImportError as problem:
    raise ImportError(f"{problem}: pip install 'spinezarr[torchio]'") from problem

import numpy as np
import numpy.typing as npt
import torch

from spinezarr.geometry import Box
from spinezarr.loaders.samples import Sample, SampleDataset
from spinezarr.stream.epoch.grid import GridStream
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.nonfinite import Nonfinite, fill_nonfinite, nonfinite_fill

__all__ = ["TorchioPatches", "scan_subjects"]


class TorchioPatches(SampleDataset[tio.Subject], tio.SubjectsDataset):
    """Patches as subjects, for TorchIO's transforms and ``torchio.SubjectsLoader``.

    A subject has ``image`` (:class:`torchio.ScalarImage`) and ``label``
    (:class:`torchio.LabelMap`) of shape ``(1, x, y, z)``, RAS+, in the stored type and with the
    patch's own affine; and ``scan_id``, ``index``, ``start_zyx``, ``padding_zyx`` and ``vertebra``
    (``""`` for a uniform draw). A patch is read when it is requested.

    Parameters
    ----------
    stream
        A stream of patches or slices, or a grid, e.g. ``store.patches(...)``. Slices have one voxel
        along their third axis.
    transform
        Transform to apply to each subject. Random transforms are seeded for each subject by the
        stream's seed, the epoch and the subject's number.

    Examples
    --------
    >>> dataset = TorchioPatches(store.patches((16, 24, 32), n_samples=4))
    >>> dataset[0].spatial_shape, dataset[0].image.orientation
    ((32, 24, 16), ('R', 'A', 'S'))
    """

    def __init__(
        self,
        stream: PatchStream | GridStream,
        transform: Callable[[tio.Subject], tio.Subject] | None = None,
    ) -> None:
        # TorchIO's own constructor iterates over all subjects, which would read the whole epoch.
        super().__init__(stream)
        self.set_transform(transform)
        self.load_getitem = True

    def dry_iter(self) -> Sequence[tio.Subject]:
        """Return the subjects without their transform. Each is read only when it is used."""
        return cast("Sequence[tio.Subject]", TorchioPatches(self.stream))

    def _item(self, sample: Sample) -> tio.Subject:
        images: dict[str, Any] = {
            "image": tio.ScalarImage(tensor=sample.image, affine=sample.affine)
        }
        if sample.label is not None:
            images["label"] = tio.LabelMap(tensor=sample.label, affine=sample.affine)
        for name, mask in sample.masks.items():
            images[name] = tio.LabelMap(tensor=mask, affine=sample.affine)
        return tio.Subject(images | sample.metadata)

    def _active_transform(self) -> Callable[[tio.Subject], tio.Subject] | None:
        return self._transform


class _Store(Protocol):
    """The method of :class:`spinezarr.Store` that is used. This layer must not import the class."""

    def patches(
        self,
        size_zyx: int,
        *,
        split: str | None,
        scans: npt.ArrayLike | None,
        labels: bool,
        nonfinite: Nonfinite,
    ) -> PatchStream: ...


def scan_subjects(
    store: _Store,
    *,
    split: str | None = None,
    scans: npt.ArrayLike | None = None,
    labels: bool = True,
    nonfinite: Nonfinite = "refuse",
) -> list[tio.Subject]:
    """Return whole scans as subjects. Their voxels are read when they are used.

    They are for ``torchio.SubjectsDataset``, ``torchio.Queue`` and its samplers. To train on
    patches, use :class:`TorchioPatches`, which reads far less.

    Parameters
    ----------
    store
        The opened store.
    split, scans, labels, nonfinite
        As in :meth:`spinezarr.Store.patches`.

    Raises
    ------
    UsageError
        If no scan is selected, or scans hold voxels that are NaN or infinite.
    CorruptStoreError
        When voxels are read, if stored bytes are missing or damaged.

    Examples
    --------
    >>> (subject,) = scan_subjects(store, scans=["liver_0"])
    >>> subject.scan_id, subject.image.orientation
    ('liver_0', ('R', 'A', 'S'))
    """
    stream = store.patches(1, split=split, scans=scans, labels=labels, nonfinite=nonfinite)
    kinds: dict[str, Any] = {"image": _StoredImage, "label": _StoredLabelMap}
    subjects = []
    for scan_id in stream.sampler.scan_ids:
        images: dict[str, Any] = {
            name: kinds[name](scan_id, reader=_ScanReader(stream, name))
            for name in (kinds if labels else ("image",))
        }
        subjects.append(tio.Subject(images, scan_id=scan_id))
    return subjects


class _StoredImage(tio.ScalarImage):
    """An image whose path is not a file but the name of a scan, also in its copies."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  as in TorchIO
        super().__init__(*args, **{**options, "verify_path": False})  # type: ignore[no-untyped-call]


class _StoredLabelMap(tio.LabelMap):
    """A mask whose path is not a file but the name of a scan, also in its copies."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  as in TorchIO
        super().__init__(*args, **{**options, "verify_path": False})  # type: ignore[no-untyped-call]


class _ScanReader:
    """Reads the image or mask of a scan where TorchIO would read a file of that name."""

    def __init__(self, stream: PatchStream, name: str) -> None:
        self._reader = stream.reader
        self._engine = stream.engine
        self._nonfinite = stream.batch_reader.nonfinite
        self._name = name

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ScanReader":
        """Share the opened store, because TorchIO copies each subject before loading it."""
        return self

    def __call__(self, path: Path) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        scan = self._reader.listed_scan(path.name)
        (spec,) = (spec for spec in scan.arrays if spec.name == self._name)
        voxels = np.empty(spec.shape_zyx, spec.dtype)
        self._engine.read([BoxRead(spec, Box((0, 0, 0), spec.shape_zyx), voxels)])
        if spec is scan.image:
            fill_nonfinite(voxels, nonfinite_fill(self._nonfinite, scan.attributes))
        return torch.from_numpy(voxels.transpose(2, 1, 0)[None]), scan.affine
