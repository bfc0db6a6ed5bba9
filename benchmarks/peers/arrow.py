"""Arrow files like those of CTSpine1K's script on Hugging Face: float32 images, int32 masks."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from draws import KINDS, Draw

from peers.data import Data, Voxels, files_below
from peers.reader import BoxReader, Pair, ReaderConfig

STORED = (np.dtype(np.float32), np.dtype(np.int32))
READ = (np.dtype(np.float32), np.dtype(np.int64))
"""Types that the numpy format of ``datasets`` returns."""


def _write(data: Data, volumes: bool, folder: Path) -> None:  # noqa: FBT001  bound by partial
    """Write a row for each slice, or for each scan."""
    import datasets  # noqa: PLC0415  only the benchmark has it

    datasets.disable_progress_bars()
    plane = data.shape_zyx[1:]
    image, label = data.voxels()
    array_type = datasets.Array3D if volumes else datasets.Array2D
    shape = (None, *plane) if volumes else plane

    def rows() -> Iterator[dict[str, object]]:
        for part in [slice(None)] if volumes else range(len(image)):
            yield {
                "image": image[part].astype(STORED[0]),
                "segmentation": label[part].astype(STORED[1]),
                "patient_id": "scan",
            }

    features = datasets.Features(
        image=array_type(shape, "float32"),
        segmentation=array_type(shape, "int32"),
        patient_id=datasets.Value("string"),
    )
    datasets.Dataset.from_generator(
        rows, features=features, cache_dir=str(folder), writer_batch_size=1 if volumes else 50
    )


def _writable(values: Voxels) -> Voxels:
    return np.require(values, requirements=("C", "W"))


def _arrow(volumes: bool, data: Data) -> BoxReader:  # noqa: FBT001  bound by partial
    import datasets  # noqa: PLC0415  only the benchmark has it

    name = "arrow 3d" if volumes else "arrow 2d"
    folder = data.once(name, partial(_write, data, volumes))
    files = [path for path in files_below([folder]) if path.suffix == ".arrow"]
    parts = [datasets.Dataset.from_file(str(path)) for path in files]
    table: Any = datasets.concatenate_datasets(parts).with_format("numpy")

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs = []
        for draw in draws:
            if volumes:
                row, slices = table[0], draw.box.slices
            else:
                row, slices = table[draw.box.start_zyx[0]], (None, *draw.box.slices[1:])
            pairs.append((_writable(row["image"][slices]), _writable(row["segmentation"][slices])))
        return pairs

    return BoxReader(data, read, files, READ)


CONFIGS = (
    ReaderConfig(
        "Arrow 2D", ("Arrow 2D",), partial(_arrow, False), ("axial",), packages=("datasets",)
    ),
    ReaderConfig("Arrow 3D", ("Arrow 3D",), partial(_arrow, True), KINDS, packages=("datasets",)),
)
