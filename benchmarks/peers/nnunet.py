"""blosc2 arrays like those of nnU-Net 2.x: memory-mapped, with one decoding thread per caller."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from draws import KINDS, Draw

from peers.data import ARRAYS, Data
from peers.reader import BoxReader, CallPattern, Pair, ReaderConfig

BLOCK_ZYX = (64, 32, 32)
"""Block shape of 128 KiB of int16, the largest that nnU-Net 2.8 allows."""
CHUNK = 128
"""Voxels of a chunk along each axis for patches of 128³: 4 MiB of the allowed 6 MiB."""
SETTINGS: dict[str, tuple[str, int, str]] = {
    "LZ4HC 5, bytes shuffled": ("LZ4HC", 5, "SHUFFLE"),
    "LZ4HC 5, no filter": ("LZ4HC", 5, "NOFILTER"),
    "LZ4HC 5, bits shuffled": ("LZ4HC", 5, "BITSHUFFLE"),
    "ZSTD 8, bytes shuffled": ("ZSTD", 8, "SHUFFLE"),
}
"""Settings: nnU-Net 2.8 chooses the better of the first two by trial; 2.7 used the last."""


def _write(data: Data, setting: str, folder: Path) -> None:
    import blosc2  # noqa: PLC0415  only the benchmark has it

    codec, level, shuffle = SETTINGS[setting]
    folder.mkdir()
    for name, values in zip(ARRAYS, data.voxels(), strict=True):
        chunk = tuple(min(n, CHUNK) for n in values.shape)
        blosc2.asarray(
            np.ascontiguousarray(values),
            chunks=chunk,
            blocks=tuple(min(a, b) for a, b in zip(BLOCK_ZYX, chunk, strict=True)),
            urlpath=str(folder / f"{name}.b2nd"),
            mode="w",
            cparams={
                "codec": blosc2.Codec[codec],
                "clevel": level,
                "filters": [blosc2.Filter[shuffle]],
            },
        )


def _blosc(setting: str, threads: int, data: Data) -> BoxReader:
    import blosc2  # noqa: PLC0415  only the benchmark has it

    folder = data.once(f"blosc2 {setting}", partial(_write, data, setting))
    blosc2.set_nthreads(threads)
    files = [folder / f"{name}.b2nd" for name in ARRAYS]
    image, label = (
        blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": threads})
        for path in files
    )  # type: tuple[Any, Any]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        return [(image[draw.box.slices], label[draw.box.slices]) for draw in draws]

    return BoxReader(data, read, files)


CONFIGS = (
    *(
        ReaderConfig(
            f"blosc2, {name}", ("blosc2",), partial(_blosc, name, 1), KINDS, packages=("blosc2",)
        )
        for name in SETTINGS
    ),
    ReaderConfig(
        "blosc2, LZ4HC 5, bytes shuffled, 2 decoding threads", ("blosc2",),
        partial(_blosc, "LZ4HC 5, bytes shuffled", 2), KINDS, (CallPattern(1),), ("blosc2",),
    ),
)  # fmt: skip
