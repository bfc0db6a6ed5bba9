"""Uncompressed voxels, as the upper bound, and whole ``.nii.gz`` files."""

from collections.abc import Sequence

import numpy as np
from draws import KINDS, Draw

from peers.data import DTYPES, Data, load_nifti
from peers.reader import BoxReader, CallPattern, Pair, ReaderConfig


def _npy(data: Data) -> BoxReader:
    image, label = data.voxels()

    def read(draws: Sequence[Draw]) -> list[Pair]:
        return [
            (np.array(image[d.box.slices], order="C"), np.array(label[d.box.slices], order="C"))
            for d in draws
        ]

    return BoxReader(data, read, [data.folder / "image.npy", data.folder / "label.npy"])


def _nifti(data: Data) -> BoxReader:
    """Inflate both files for each patch, like loaders without a cache."""

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs = []
        for draw in draws:
            image, label = (
                load_nifti(data.raw(name, draw.scan), dtype)[draw.box.slices].copy()
                for name, dtype in DTYPES.items()
            )
            pairs.append((image, label))
        return pairs

    return BoxReader(data, read, [data.image, data.label])


CONFIGS = (
    ReaderConfig(".npy", (".npy (upper bound)",), _npy, KINDS),
    ReaderConfig(".nii.gz", (".nii.gz",), _nifti, KINDS, (CallPattern(2),), slow=True),
)
