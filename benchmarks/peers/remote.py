"""Peers that read patches over HTTP and S3, with several settings of each.

All keep their arrays open. The settings below, and several numbers of reads in flight, are tried
under every condition.

zarr-python
    ``async.concurrency`` is 128 instead of 10, so that all chunks of a patch are in flight at once
    where the codecs request them in parallel. Two workers decode, one per core, and 8, 16 or 32
    threads read. Both fsspec (aiohttp, s3fs) and obstore are measured.
tensorstore
    One cache pool of 64 MB keeps the shard indices; metadata and indices are not checked again. Two
    threads copy. The limit of requests is the default of 32, or 128. The number of patches in
    flight, as futures, is 8, 32 or 64. Image and mask are in one batch, or not.
whole files
    Both ``.nii.gz`` files of the scan are fetched in parallel over obstore or fsspec, with 2, 4
    or 8 scans in flight. They are inflated by igzip (three times as fast as zlib), read by nibabel
    from memory, and cropped.

Each has its default retries and timeouts.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from draws import Draw
from isal import igzip

from peers.data import ARRAYS, DTYPES, Data, Voxels
from peers.reader import Pair
from spinezarr.geometry import AxisMap

OUR_NAME = "balanced.zarr"
_INDICES_BYTES = 64_000_000
_CORES = 2
_THREADS = 128
"""Maximum of reading threads; it exceeds the reads in flight, as hanging reads are abandoned."""


@dataclass(frozen=True, slots=True)
class Place:
    """A web server or a bucket with all stores."""

    url: str
    """``http://host:port`` or ``s3://bucket``."""
    endpoint_url: str = ""
    key: str = ""
    secret: str = ""

    @property
    def is_bucket(self) -> bool:
        """Whether the place is a bucket."""
        return self.url.startswith("s3://")

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.url.removeprefix("s3://")

    @property
    def options(self) -> dict[str, Any]:
        """Options of fsspec to read from the place."""
        if not self.is_bucket:
            return {}
        return {"endpoint_url": self.endpoint_url, "key": self.key, "secret": self.secret}


class Peer(Protocol):
    """A reader of boxes with many reads in flight."""

    def start(self, draw: Draw, done: Callable[[], object], /) -> Callable[[], Pair]:
        """Start a read, call ``done`` at its end, and return a function that returns the voxels."""
        ...


class Threaded:
    """A peer with blocking reads, each in a thread."""

    def __init__(self, read: Callable[[Draw], Pair]) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(_THREADS)

    def start(self, draw: Draw, done: Callable[[], object], /) -> Callable[[], Pair]:
        """See :class:`Peer`."""
        future = self._pool.submit(self._read, draw)
        future.add_done_callback(lambda _: done())
        return future.result


class Tensorstore:
    """Arrays of tensorstore, whose reads are futures."""

    def __init__(self, arrays: Sequence[Sequence[Any]], batched: bool) -> None:  # noqa: FBT001  a plain switch
        import tensorstore as ts  # noqa: PLC0415  only the benchmark has it

        self._batch: Callable[[], Any] = ts.Batch if batched else lambda: None
        self._arrays = arrays

    def start(self, draw: Draw, done: Callable[[], object], /) -> Callable[[], Pair]:
        """See :class:`Peer`."""
        batch = self._batch()
        arrays = self._arrays[draw.scan]
        image, label = (array[draw.box.slices].read(batch=batch) for array in arrays)
        if batch is not None:
            batch.submit()
        n_done = itertools.count(1)

        def count_done(_: object) -> None:
            if next(n_done) == len(arrays):
                done()

        for future in (image, label):
            future.add_done_callback(count_done)
        return lambda: (image.result(), label.result())


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A peer with one setting."""

    peer: str
    setting: str
    open: Callable[[Place, Data, str], Peer]
    """Function that opens the peer from the place, the data and the name of the store."""
    in_flight: tuple[int, ...]
    """Numbers of reads in flight to choose from; the first is tried with every layout."""
    package: str
    """Name of the package that it needs."""
    has_layouts: bool = True
    """Whether the peer reads Zarr, and so can use several layouts, including ours."""

    @property
    def name(self) -> str:
        """Name of the peer with its setting."""
        return f"{self.peer}, {self.setting}"


def _array_path(store: str, scan: int, name: str) -> str:
    scans = "scans/" if store == OUR_NAME else ""
    return f"{store}/{scans}scan{scan}/{name}"


def _obstore(place: Place) -> Any:  # noqa: ANN401  a store of any kind
    from obstore.store import HTTPStore, S3Store  # noqa: PLC0415  only the benchmark has it

    client_options: dict[str, Any] = {"allow_http": True}
    if not place.is_bucket:
        return HTTPStore.from_url(place.url, client_options=client_options)
    return S3Store(
        place.bucket, endpoint=place.endpoint_url, access_key_id=place.key,
        secret_access_key=place.secret, region="us-east-1", client_options=client_options,
    )  # fmt: skip


def _zarr(library: str, place: Place, data: Data, store: str) -> Peer:
    import zarr  # noqa: PLC0415  its settings are those of the process
    from zarr.storage import FsspecStore, ObjectStore  # noqa: PLC0415

    zarr.config.set({"async.concurrency": 128, "threading.max_workers": _CORES})
    source: Any = (
        ObjectStore(_obstore(place), read_only=True)
        if library == "obstore"
        else FsspecStore.from_url(place.url, storage_options=place.options, read_only=True)
    )
    arrays: list[list[Any]] = [
        [
            zarr.open_array(source, path=_array_path(store, i, name), mode="r", zarr_format=3)
            for name in ARRAYS
        ]
        for i in range(data.scans)
    ]

    def read(draw: Draw) -> Pair:
        image, label = (array[draw.box.slices] for array in arrays[draw.scan])
        return image, label

    return Threaded(read)


def _tensorstore(
    requests: int,
    batched: bool,  # noqa: FBT001  a plain switch
    place: Place,
    data: Data,
    store: str,
) -> Peer:
    import tensorstore as ts  # noqa: PLC0415  only the benchmark has it

    kind = "s3" if place.is_bucket else "http"
    context = ts.Context({
        "cache_pool": {"total_bytes_limit": _INDICES_BYTES},
        "data_copy_concurrency": {"limit": _CORES},
        f"{kind}_request_concurrency": {"limit": requests},
    })  # fmt: skip

    def open_array(scan: int, name: str) -> Any:  # noqa: ANN401  it ships no types
        path = _array_path(store, scan, name)
        kvstore: dict[str, Any] = {"driver": "http", "base_url": f"{place.url}/{path}/"}
        if place.is_bucket:
            kvstore = {
                "driver": "s3", "bucket": place.bucket, "path": f"{path}/",
                "endpoint": place.endpoint_url, "aws_region": "us-east-1",
                "aws_credentials": {"type": "environment"},
            }  # fmt: skip
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore,
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
        }
        return ts.open(spec, context=context, read=True, open=True).result()

    arrays = [[open_array(i, name) for name in ARRAYS] for i in range(data.scans)]
    return Tensorstore(arrays, batched)


def _whole_files(library: str, place: Place, data: Data, store: str) -> Peer:  # noqa: ARG001  files are no store
    if library == "obstore":
        source = _obstore(place)

        def get(path: str) -> bytes:
            return bytes(source.get(path).bytes())

    else:
        import fsspec  # noqa: PLC0415  an alternative to obstore

        fs, root = fsspec.url_to_fs(place.url, **place.options)

        def get(path: str) -> bytes:
            return bytes(fs.cat_file(f"{root}/{path}"))

    pool = ThreadPoolExecutor(_THREADS)

    def read(draw: Draw) -> Pair:
        names = [f"raw/{data.raw(name, draw.scan).name}" for name in ARRAYS]
        image, label = pool.map(
            partial(_crop, draw), map(partial(pool.submit, get), names), DTYPES.values()
        )
        return image, label

    return Threaded(read)


def _crop(draw: Draw, file: Any, dtype: np.dtype[Any]) -> Voxels:  # noqa: ANN401  a future
    source = nib.Nifti1Image.from_bytes(igzip.decompress(file.result()))
    values = AxisMap.from_affine(source.affine).to_zyx(np.asanyarray(source.dataobj))
    return np.array(values[draw.box.slices], dtype, order="C")


CONFIGS = (
    *(
        RemoteConfig("tensorstore", setting, partial(_tensorstore, requests, batched), (32, 8, 64),
            "tensorstore")
        for setting, requests, batched in (
            ("32 requests", 32, False), ("128 requests", 128, False), ("128, batched", 128, True)
        )
    ),
    *(
        RemoteConfig(
            f"zarr-python, {library}",
            "128 at once",
            partial(_zarr, library),
            (16, 8, 32),
            library,
        )
        for library in ("obstore", "fsspec")
    ),
    *(
        RemoteConfig("whole files", library, partial(_whole_files, library), (4, 2, 8), library,
            has_layouts=False)
        for library in ("obstore", "fsspec")
    ),
)  # fmt: skip
