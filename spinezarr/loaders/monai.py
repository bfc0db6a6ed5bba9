"""How does a MONAI program get the samples of a stream?"""

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
    the patch's own affine. They equal what ``LoadImaged``, ``EnsureChannelFirstd`` and
    ``Orientationd("RAS")`` give for the scan's NIfTI file, cropped to the patch. Further items are
    ``scan_id``, ``index``, ``start_zyx``, ``padding_zyx`` and ``vertebra`` (``""`` for a uniform
    draw).

    Parameters
    ----------
    stream
        A stream of patches or slices, or a grid, e.g. ``store.patches(...)``. Slices keep their
        third axis, with one voxel; ``SqueezeDimd`` removes it.
    transform
        A MONAI transform on dictionaries, or several, applied to each sample. Random transforms are
        seeded for each sample by the stream's seed, the epoch and the sample's number. A call of
        ``set_random_state`` has no effect.
    dtype
        Dtype of the image: float32 as with ``LoadImaged``, which holds int16 exactly; None keeps
        the stored dtype.

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
        arrays |= sample.masks
        metadata = sample.metadata
        tensors = {
            name: _meta_tensor(array, sample.affine, metadata) for name, array in arrays.items()
        }
        return tensors | metadata

    def _active_transform(self) -> Compose | None:
        return self.transform if self.transform.transforms else None


def _meta_tensor(
    voxels: torch.Tensor, affine: npt.NDArray[np.float64], metadata: dict[str, Any]
) -> MetaTensor:
    """Return voxels with the metadata that MONAI's reader of NIfTI attaches."""
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine,
        MetaKeys.SPATIAL_SHAPE: np.array(voxels.shape[1:]),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        # SaveImaged removes an extension. It removes this one, and keeps a scan id with dots.
        ImageMetaKey.FILENAME_OR_OBJ: f"{metadata['scan_id']}.nii.gz",
        ImageMetaKey.PATCH_INDEX: metadata["index"],
    }
    return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta)
