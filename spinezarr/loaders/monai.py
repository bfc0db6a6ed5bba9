"""Streams as MONAI datasets."""

from collections.abc import Callable, Sequence
from typing import Any

try:
    from monai.data import MetaTensor
    from monai.transforms import Compose, Randomizable
    from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
except ImportError as problem:
    raise ImportError(f"{problem}: pip install 'spinezarr[monai]'") from problem

import numpy as np
import numpy.typing as npt
import torch

from spinezarr.loaders.samples import Sample, SampleDataset
from spinezarr.stream.epoch.grid import GridStream
from spinezarr.stream.epoch.stream import PatchStream

__all__ = ["MonaiPatches"]


class MonaiPatches(SampleDataset[dict[str, Any]]):
    """Patches as dictionaries for MONAI's transforms and ``monai.data.DataLoader``.

    ``image`` and ``label`` are :class:`monai.data.MetaTensor` of shape ``(1, x, y, z)``, RAS+, with
    the patch's own affine: what ``LoadImaged``, ``EnsureChannelFirstd`` and ``Orientationd("RAS")``
    give for the scan's NIfTI file, cut to the patch. ``scan_id``, ``index``, ``start_zyx``,
    ``padding_zyx`` and ``vertebra`` (``""`` for a uniform draw) come with them.

    Parameters
    ----------
    stream
        Of patches or slices, or a grid: ``store.patches(...)``. Slices keep their third axis, with
        one voxel; ``SqueezeDimd`` takes it away.
    transform
        A MONAI transform on dictionaries, or several, applied to each sample. Random ones are
        seeded for each sample by the stream's seed, the epoch and the sample's number, so that a
        ``set_random_state`` of yours has no effect.
    dtype
        Of the image, float32 as with ``LoadImaged``; None keeps the stored type. int16 fits float32
        exactly.

    Examples
    --------
    >>> dataset = MonaiPatches(store.patches((16, 24, 32), n_samples=4))
    >>> dataset[0]["image"].shape, dataset[0]["image"].dtype
    (torch.Size([1, 32, 24, 16]), torch.float32)
    """

    _random_classes = (Randomizable,)

    def __init__(
        self,
        stream: PatchStream | GridStream,
        transform: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        super().__init__(stream)
        self.transform = Compose(transform)
        self.dtype = dtype

    def _item(self, sample: Sample) -> dict[str, Any]:
        arrays = {"image": sample.image.to(self.dtype or sample.image.dtype)}
        if sample.label is not None:
            arrays["label"] = sample.label
        facts = sample.facts
        tensors = {name: _meta_tensor(a, sample.affine, facts) for name, a in arrays.items()}
        return tensors | facts

    def _chosen_transform(self) -> Compose | None:
        return self.transform if self.transform.transforms else None


def _meta_tensor(
    voxels: torch.Tensor, affine: npt.NDArray[np.float64], facts: dict[str, Any]
) -> MetaTensor:
    """Attach what MONAI's reader of NIfTI says of a file."""
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine,
        MetaKeys.SPATIAL_SHAPE: np.array(voxels.shape[1:]),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        # SaveImaged takes an extension off, which must not be the end of a scan id with dots.
        ImageMetaKey.FILENAME_OR_OBJ: f"{facts['scan_id']}.nii.gz",
        ImageMetaKey.PATCH_INDEX: facts["index"],
    }
    return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta)
