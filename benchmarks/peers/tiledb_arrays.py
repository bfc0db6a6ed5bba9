"""RadiObject, and the TileDB arrays below it.

RadiObject names the axes of its arrays ``(x, y, z)``. A box of such an array would have to be
copied once more to become ``(z, y, x)``, so the arrays are written with z first here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from draws import KINDS, Draw

from peers.data import ARRAYS, Data, Voxels
from peers.reader import BoxReader, Pair, ReaderConfig

SIDES: dict[str, tuple[int, int, int] | None] = {
    "64³": (64, 64, 64),
    "32³": (32, 32, 32),
    "64x32x32": (64, 32, 32),
    "slices": None,
}
"""Sides of tiles by name. RadiObject's default tile is a whole axial slice, here ``None``."""
CODECS = {"LZ4": 9, "ZSTD": 3}
"""Level by codec. RadiObject's default is ZSTD 3, and it offers no filter before the codec."""
SHUFFLED = ", bytes shuffled"
LAYOUTS = (
    "64³ LZ4", "64³ ZSTD", "32³ LZ4", "32³ ZSTD", "64x32x32 LZ4", "slices LZ4", "slices ZSTD",
)  # fmt: skip
TRIED_FURTHER = ("64³ LZ4", "slices LZ4")
"""Layouts on which all settings are tried; one setting is tried on the others."""
_VOXELS = "voxels"
"""Attribute of RadiObject's arrays."""


def _configure(side: str, codec: str, threads: int) -> None:
    """Choose tiles, codec and threads of RadiObject, which has one configuration a process."""
    from radiobject.ctx import (  # noqa: PLC0415  only the benchmark has it
        CompressionConfig,
        Compressor,
        ReadConfig,
        S3Config,
        SliceOrientation,
        TileConfig,
        WriteConfig,
        configure,
    )

    sides = SIDES[side]
    if sides is None:  # the first axis is z, which RadiObject calls x
        tile = TileConfig(orientation=SliceOrientation.SAGITTAL)
    else:
        x, y, z = sides
        tile = TileConfig(orientation=SliceOrientation.ISOTROPIC, x=x, y=y, z=z)
    configure(
        write=WriteConfig(
            tile=tile,
            compression=CompressionConfig(algorithm=Compressor[codec], level=CODECS[codec]),
        ),
        read=ReadConfig(concurrency=threads),
        s3=S3Config(include_credentials=False),  # it would look for keys, which local files lack
    )


def _shuffle_bytes(folder: Path, values: Voxels) -> None:
    """Write an array like the one in the folder, with the bytes shuffled before the codec."""
    import tiledb  # noqa: PLC0415  as above

    schema = tiledb.ArraySchema.load(str(folder))
    tiledb.remove(str(folder))
    filters = tiledb.FilterList([tiledb.ByteShuffleFilter(), *schema.attr(0).filters])
    attribute = tiledb.Attr(name=_VOXELS, dtype=values.dtype, filters=filters)
    tiledb.Array.create(str(folder), tiledb.ArraySchema(domain=schema.domain, attrs=[attribute]))
    with tiledb.open(str(folder), "w") as array:
        array[:] = values


def _write(data: Data, layout: str, folder: Path) -> None:
    """Write the scan once, in RadiObject's configuration; further scans are links."""
    from radiobject.volume import Volume  # noqa: PLC0415  as above

    (folder / "scan0").mkdir(parents=True)
    for name, values in zip(ARRAYS, data.voxels(), strict=True):
        path = folder / "scan0" / name
        if layout.endswith(SHUFFLED):
            Volume.create(str(path), values.shape, values.dtype)
            _shuffle_bytes(path, values)
        else:
            Volume.from_numpy(str(path), values)
    for scan in range(1, data.scans):
        (folder / f"scan{scan}").symlink_to("scan0")


def _radiobject(path: Path) -> Callable[[Any], Voxels]:
    """Index a volume, which opens its array for each box."""
    from radiobject.volume import Volume  # noqa: PLC0415  as above

    return Volume(str(path)).__getitem__


def _tiledb(path: Path) -> Callable[[Any], Voxels]:
    """Index an array that stays open."""
    import tiledb  # noqa: PLC0415  as above
    from radiobject.ctx import ctx  # noqa: PLC0415  as above

    array = tiledb.open(str(path), ctx=ctx())
    return lambda box: array[box][_VOXELS]


def _open(
    opener: Callable[[Path], Callable[[Any], Voxels]], layout: str, threads: int, data: Data
) -> BoxReader:
    side, codec = layout.removesuffix(SHUFFLED).rsplit(" ", 1)
    _configure(side, codec, threads)
    folder = data.once(f"tiledb {layout}", partial(_write, data, layout))
    scans = [
        [opener(folder / f"scan{scan}" / name) for name in ARRAYS] for scan in range(data.scans)
    ]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs = []
        for draw in draws:
            image, label = (read_box(draw.box.slices) for read_box in scans[draw.scan])
            pairs.append((image, label))
        return pairs

    return BoxReader(data, read, [folder / "scan0"])


def _configs() -> Iterator[ReaderConfig]:
    shuffled = tuple(layout + SHUFFLED for layout in TRIED_FURTHER)
    for peer, opener, layouts in (
        ("RadiObject", _radiobject, LAYOUTS),
        ("TileDB", _tiledb, (*LAYOUTS, *shuffled)),
    ):
        for layout in layouts:
            for threads in (1, 2) if layout in TRIED_FURTHER else (1,):
                yield ReaderConfig(
                    f"{peer}, {layout}, {threads} threads", (peer,),
                    partial(_open, opener, layout, threads), KINDS, packages=("radiobject",),
                )  # fmt: skip


CONFIGS = tuple(_configs())
