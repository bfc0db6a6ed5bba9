"""spinezarr: the engine on given boxes, and the streams of a store."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from draws import KINDS, SIDES, Draw, size_zyx

import spinezarr
from peers.data import Data
from peers.reader import BoxReader, Located, Pair, StreamReader, Turn, Way
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.engine import BoxRead

_ENDLESS = 10**9
_BATCH = 4


def store_of(data: Data, profile: str) -> Path:
    """Return the store of a codec profile; ingest the scan into it if it is not there."""

    def make(path: Path) -> None:
        recipe = Recipe.of_pairs("{scan}_image.nii.gz", "{scan}_label.nii.gz", name="bench")
        found = discover(recipe, str(data.folder / "raw"))
        report = ingest(recipe, found, str(path), codec=profile)
        if report.failed:
            raise SystemExit(report.failed[0].reason)

    return data.once(f"{profile}.zarr", make)


def array_folders(data: Data, profile: str, scan: int = 0) -> list[Path]:
    """Return where image and mask of a scan lie in our store."""
    return [store_of(data, profile) / "scans" / f"scan{scan}" / name for name in ("image", "label")]


def _engine(profile: str, data: Data) -> BoxReader:
    """Read with the engine that is behind every stream."""
    stream = spinezarr.open(store_of(data, profile)).patches(1)
    engine = stream.engine
    scans = [stream.reader.scan(f"scan{i}") for i in range(data.scans)]

    def read(draws: Sequence[Draw]) -> list[Pair]:
        pairs: list[Pair] = []
        reads: list[BoxRead] = []
        for draw in draws:
            image, label = scans[draw.scan].arrays
            pair = (
                np.empty(draw.box.shape_zyx, image.dtype),
                np.empty(draw.box.shape_zyx, label.dtype),
            )
            reads += [BoxRead(image, draw.box, pair[0]), BoxRead(label, draw.box, pair[1])]
            pairs.append(pair)
        engine.read(reads)
        return pairs

    return BoxReader(data, read, array_folders(data, profile))


def _patches(data: Data, kind: str, **options: Any) -> Any:  # noqa: ANN401  a stream of any kind
    store = spinezarr.open(store_of(data, "balanced"))
    if kind in SIDES:
        size = size_zyx(kind, data.shape_zyx)
        return store.patches(size, batch_size=_BATCH, n_samples=_ENDLESS, **options)
    return store.slices(kind, batch_size=_BATCH, n_samples=_ENDLESS, **options)


def _locate(kind: str, batch: Any) -> list[Located]:  # noqa: ANN401  a batch of any form
    starts = np.asarray(batch.start_zyx)
    pairs = zip(np.asarray(batch.image), np.asarray(batch.label), strict=True)
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}.get(kind)
    return [
        Located(tuple(int(n) for n in start), *(
            values if axis is None else np.expand_dims(values, axis) for values in pair
        ))
        for start, pair in zip(starts, pairs, strict=True)
    ]  # fmt: skip


def _stream(options: dict[str, Any], data: Data) -> StreamReader:
    """Iterate over ``store.patches`` and ``store.slices``."""
    kinds: list[str] = []

    def start(kind: str) -> Iterator[Any]:
        kinds[:] = [kind]
        return iter(_patches(data, kind, **options))

    return StreamReader(
        data, start, len, lambda batch: _locate(kinds[0], batch),
        array_folders(data, "balanced"), ahead=8,
    )  # fmt: skip


_TURNS = tuple(Turn(callers, per_call) for callers in (1, 2) for per_call in (1, 4))


def _ways() -> Iterator[Way]:
    for profile, peer in (("balanced", "spinezarr"), ("fast", "spinezarr, fast")):
        yield Way(f"engine, {profile}", (peer,), partial(_engine, profile), KINDS, _TURNS)
    yield Way("stream", ("spinezarr, stream",), partial(_stream, {}), KINDS, (Turn(),))
    open_window: Callable[[Data], StreamReader] = partial(_stream, {"shuffle": "window"})
    if "shuffle" in inspect.signature(spinezarr.Store.patches).parameters:
        yield Way("window", ("spinezarr, window",), open_window, ("128^3", "axial"), (Turn(),))


WAYS = tuple(_ways())
