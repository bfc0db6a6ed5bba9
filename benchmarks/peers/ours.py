"""spinezarr's readers: the engine on given boxes, and the streams of a store."""

import importlib
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from draws import KINDS, SIDES, Draw, size_zyx

import spinezarr
from peers.data import Data
from peers.reader import BoxReader, CallPattern, LocatedPatch, Pair, ReaderConfig, StreamReader
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.read.box_reader import BoxRead

_ENDLESS = 10**9
_BATCH = 4


def store_of(data: Data, profile: str) -> Path:
    """Return the store of a codec profile; ingest the scan if the store does not exist."""

    def make(path: Path) -> None:
        recipe = Recipe.from_pairs("{scan}_image.nii.gz", "{scan}_label.nii.gz", name="bench")
        discovered = discover(recipe, str(data.folder / "raw"))
        report = ingest(recipe, discovered, str(path), codec=profile)
        if report.failed:
            raise SystemExit(report.failed[0].reason)

    return data.once(f"{profile}.zarr", make)


def array_folders(data: Data, profile: str, scan: int = 0) -> list[Path]:
    """Return the folders of image and mask of a scan in our store."""
    return [store_of(data, profile) / "scans" / f"scan{scan}" / name for name in ("image", "label")]


def _engine(profile: str, threads: int, data: Data) -> BoxReader:
    """Read with the engine of all streams."""
    stream = spinezarr.open(store_of(data, profile)).patches(1)
    engine = stream.engine
    scans = [stream.reader.scan(f"scan{i}") for i in range(data.scans)]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs: list[Pair] = []
        reads: list[BoxRead] = []
        for draw in draws:
            image, label = scans[draw.scan].arrays
            pair = (
                engine.buffers.empty(draw.box.shape_zyx, image.dtype),
                engine.buffers.empty(draw.box.shape_zyx, label.dtype),
            )
            reads += [BoxRead(image, draw.box, pair[0]), BoxRead(label, draw.box, pair[1])]
            pairs.append(pair)
        engine.read(reads, threads=threads)
        return pairs

    return BoxReader(data, read, array_folders(data, profile))


def _patches(data: Data, kind: str, **options: Any) -> Any:  # noqa: ANN401  a stream of any kind
    store = spinezarr.open(store_of(data, "balanced"))
    if kind in SIDES:
        size = size_zyx(kind, data.shape_zyx)
        return store.patches(size, batch_size=_BATCH, n_samples=_ENDLESS, **options)
    return store.slices(kind, batch_size=_BATCH, n_samples=_ENDLESS, **options)


def _locate(kind: str, batch: Any) -> list[LocatedPatch]:  # noqa: ANN401  a batch of any form
    starts = np.asarray(batch.start_zyx)
    pairs = zip(np.asarray(batch.image), np.asarray(batch.label), strict=True)
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}.get(kind)
    return [
        LocatedPatch(tuple(int(n) for n in start), *(
            values if axis is None else np.expand_dims(values, axis) for values in pair
        ))
        for start, pair in zip(starts, pairs, strict=True)
    ]  # fmt: skip


def _stream(options: dict[str, Any], limits: dict[str, int], data: Data) -> StreamReader:
    """Iterate over ``store.patches`` and ``store.slices``."""
    kinds: list[str] = []

    def start(kind: str) -> Iterator[Any]:
        kinds[:] = [kind]
        return iter(_patches(data, kind, **options))

    return StreamReader(
        data, start, len, lambda batch: _locate(kinds[0], batch),
        array_folders(data, "balanced"), **{"ahead": 8, **limits},
    )  # fmt: skip


def _torch(data: Data) -> StreamReader:
    """Iterate over the PyTorch loader. Batches are tensors with a channel axis."""
    loaders: Any = importlib.import_module(_TORCH)

    def locate(batch: dict[str, Any]) -> list[LocatedPatch]:
        starts, images, labels = (np.asarray(batch[k]) for k in ("start_zyx", "image", "label"))
        return [
            LocatedPatch(tuple(start.tolist()), image[0], label[0])
            for start, image, label in zip(starts, images, labels, strict=True)
        ]

    return StreamReader(
        data, lambda kind: iter(loaders.PatchLoader(_patches(data, kind))),
        lambda batch: len(batch["image"]), locate, array_folders(data, "balanced"), ahead=8,
    )  # fmt: skip


_TORCH = "spinezarr.loaders.torch"
_PREFETCH_BYTES = 512 << 20
"""Default limit of the bytes that a stream reads ahead."""
_WINDOW = {"ahead": 64, "min_patches": 256, "cache_bytes": _PREFETCH_BYTES}
"""Samples of a turn: a turn consists of whole windows of 8 scans with at most 32 samples each."""
_SIDE_BY_SIDE = (CallPattern(1), CallPattern(2), CallPattern(2, 4))
_ONE_CALLER = (CallPattern(1), CallPattern(1, 4), CallPattern(1, 8))


def _configs() -> Iterator[ReaderConfig]:
    for threads, call_patterns in ((1, _SIDE_BY_SIDE), (2, _ONE_CALLER)):
        for profile, peer in (("balanced", "spinezarr"), ("fast", "spinezarr, fast")):
            name = f"engine, {profile}, {threads} threads a call"
            yield ReaderConfig(
                name, (peer,), partial(_engine, profile, threads), KINDS, call_patterns
            )
    yield ReaderConfig(
        "stream", ("spinezarr, stream",), partial(_stream, {}, {}), KINDS, (CallPattern(),)
    )
    if "shuffle" in inspect.signature(spinezarr.Store.patches).parameters:
        opener = partial(_stream, {"shuffle": "window"}, _WINDOW)
        yield ReaderConfig(
            "window", ("spinezarr, window",), opener, ("128^3", "96^3", "axial"), (CallPattern(),)
        )
    if (Path(spinezarr.__file__).parent / "loaders" / "torch.py").exists():
        yield ReaderConfig(
            "PyTorch loader", ("spinezarr, PyTorch",), _torch, ("128^3", "96^3"), (CallPattern(),),
            ("torch",),
        )  # fmt: skip


CONFIGS = tuple(_configs())
