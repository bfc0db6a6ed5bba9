"""zarr-python, zarrs and tensorstore, on their own stores in several layouts, and on ours."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from draws import KINDS, Draw

from peers.data import ARRAYS, Data
from peers.ours import array_folders
from peers.reader import BoxReader, CallPattern, Pair, ReaderConfig

OURS = "our store"
FUSED = "zarr-python, fused"
_FUSED_SINCE = (3, 4)
CODECS: dict[str, dict[str, Any]] = {
    "zstd 3": {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"},
    "lz4hc 9 bit": {"cname": "lz4hc", "clevel": 9, "shuffle": "bitshuffle"},
    "lz4hc 7": {"cname": "lz4hc", "clevel": 7, "shuffle": "shuffle"},
}
LAYOUTS = {f"{side}³ {codec}": (side, codec) for side, codec in product((64, 32), CODECS)}
"""Layouts: chunk side and codec; one shard holds the whole array."""
ZARR_SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "concurrency 64, 2 workers": {"async.concurrency": 64, "threading.max_workers": 2},
    "concurrency 1": {"async.concurrency": 1},
}
ZARRS_SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "2 chunks at once": {"codec_pipeline.chunk_concurrent_minimum": 2},
    "1 worker": {"threading.max_workers": 1},
}
SMALL_CACHE = "cache 4 MB"
CACHES = {"no cache": 0, SMALL_CACHE: 4_000_000, "cache 100 MB": 100_000_000}
TRIED_FURTHER = (OURS, "32³ lz4hc 7")
"""Layouts on which all settings are tried; one setting is tried on the others."""
MEMORY_MAP = "memory map"


def write_layout(data: Data, layout: str, folder: Path) -> None:
    """Write the scan as a store in one of the layouts; further scans are links."""
    import zarr  # noqa: PLC0415  not needed where our store is read
    from zarr.codecs import BloscCodec  # noqa: PLC0415

    side, codec = LAYOUTS[layout]
    group = zarr.open_group(folder / "scan0", mode="w")
    for name, values in zip(ARRAYS, data.voxels(), strict=True):
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(side,) * 3,
            shards=tuple(-(-n // side) * side for n in values.shape),
            dtype=values.dtype,
            compressors=BloscCodec(**CODECS[codec], typesize=values.dtype.itemsize),
        )
        array[...] = values[...]
    for scan in range(1, data.scans):
        (folder / f"scan{scan}").symlink_to("scan0")


def _folders(data: Data, layout: str, scan: int = 0) -> list[Path]:
    if layout == OURS:
        return array_folders(data, "balanced", scan)
    folder = data.once(f"zarr {layout}", partial(write_layout, data, layout))
    return [folder / f"scan{scan}" / name for name in ARRAYS]


def _zarr(layout: str, settings: dict[str, Any], data: Data) -> BoxReader:
    """Index arrays of zarr-python, with the codec pipeline of the settings."""
    import zarr  # noqa: PLC0415  its settings are those of the process

    first = _folders(data, layout)  # written with the defaults
    zarr.config.set(settings)
    arrays = [
        [zarr.open_array(path, mode="r") for path in _folders(data, layout, scan)]
        for scan in range(data.scans)
    ]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs = []
        for draw in draws:
            image, label = (array[draw.box.slices] for array in arrays[draw.scan])
            pairs.append((image, label))
        return pairs

    return BoxReader(data, read, first)


def _tensorstore(layout: str, cache: str, kvstore: dict[str, Any], data: Data) -> BoxReader:
    """Start all reads, then wait; cached shard indices are not checked again."""
    import tensorstore as ts  # noqa: PLC0415  only the benchmark has it

    context = ts.Context(
        {
            "cache_pool": {"total_bytes_limit": CACHES[cache]},
            "data_copy_concurrency": {"limit": 2},
        }
    )

    def opened(path: Path) -> Any:  # noqa: ANN401  it ships no types
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/", **kvstore},
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
        }
        return ts.open(spec, context=context, read=True, open=True).result()

    arrays = [[opened(path) for path in _folders(data, layout, i)] for i in range(data.scans)]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        futures = [[a[draw.box.slices].read() for a in arrays[draw.scan]] for draw in draws]
        return [(image.result(), label.result()) for image, label in futures]

    return BoxReader(data, read, _folders(data, layout), cache_bytes=CACHES[cache])


def _python_configs(
    peer: str, module: str, settings: dict[str, dict[str, Any]], pipeline: dict[str, str]
) -> Iterator[ReaderConfig]:
    """Return all layouts with the defaults, and all settings on the important layouts."""
    for layout, setting in product((*LAYOUTS, OURS), settings):
        if setting != "defaults" and layout not in TRIED_FURTHER:
            continue
        yield ReaderConfig(
            f"{peer}, {layout}, {setting}",
            (peer,),
            partial(_zarr, layout, {**pipeline, **settings[setting]}),
            KINDS,
            packages=(module,),
        )


def _tensorstore_configs() -> Iterator[ReaderConfig]:
    for layout, cache in product((*LAYOUTS, OURS), CACHES):
        peers = ("tensorstore", "tensorstore, our store") if layout == OURS else ("tensorstore",)
        mapped: dict[str, Any] = {"file_io_mode": {"mode": "memmap"}}
        for text, kvstore in (("", {}), (f", {MEMORY_MAP}", mapped)):
            if layout not in TRIED_FURTHER and (kvstore or cache != SMALL_CACHE):
                continue
            if kvstore and cache != SMALL_CACHE:
                continue
            opener: Callable[[Data], BoxReader] = partial(_tensorstore, layout, cache, kvstore)
            yield ReaderConfig(
                f"tensorstore, {layout}, {cache}{text}", peers, opener, KINDS,
                (CallPattern(2, 1), CallPattern(1, 8)), ("tensorstore",),
            )  # fmt: skip


def _fused_configs() -> Iterator[ReaderConfig]:
    """Return zarr-python with the pipeline that works without asyncio, if this version has it."""
    if tuple(map(int, version("zarr").split(".")[:2])) >= _FUSED_SINCE:
        path = "zarr.core.codec_pipeline.FusedCodecPipeline"
        yield from _python_configs(FUSED, "zarr", ZARR_SETTINGS, {"codec_pipeline.path": path})


CONFIGS = (
    *_python_configs("zarr-python", "zarr", ZARR_SETTINGS, {}),
    *_fused_configs(),
    *_python_configs(
        "zarrs", "zarrs", ZARRS_SETTINGS, {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    ),
    *_tensorstore_configs(),
)
