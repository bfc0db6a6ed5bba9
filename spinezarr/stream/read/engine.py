"""How do boxes of voxels get from a store into arrays in memory?

There are four steps: plan which chunks the boxes need, locate the bytes of these chunks, fetch
them, and decode them into the arrays, which the caller owns.

Zarr readers turn a missing chunk into fill values. This one does not: the scan's manifest says
which shards exist and how long they are, chunks of an image are never absent, and every chunk has a
checksum. So lost or damaged data raise :class:`~spinezarr.errors.CorruptStoreError`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.blocks import decode_blocks
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import ChunkDamagedError
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.chunk_locations import ChunkLocations, ChunkLocator
from spinezarr.stream.read.fetch import Fetcher, LocalFetcher, MissingShardError
from spinezarr.stream.read.native import (
    DONE,
    Kernel,
    Tables,
    kernel,
    output_table,
)
from spinezarr.stream.read.parallel import run_in_parts
from spinezarr.stream.read.plan import ReadPlan, plan_reads
from spinezarr.stream.read.summary import ReadSummary

__all__ = ["ChunkCache", "Engine"]

Voxels = npt.NDArray[Any]
_Chunk = tuple[ArraySpec, ShapeZYX]
ChunkCache = BoundedCache[_Chunk, Voxels]
"""Keeps decoded chunks, by array and index of the chunk."""


class Engine:
    """Reads boxes out of stored arrays; a :class:`~spinezarr.stream.read.box_reader.BoxReader`.

    It is shared between threads.

    Parameters
    ----------
    fetch
        Fetches the bytes of chunks.
    cache_bytes
        Bytes of decoded chunks to keep for later reads; 0 keeps none.
    cache
        Cache to share with other engines, in place of one of its own.
    """

    def __init__(
        self, fetch: Fetcher, *, cache_bytes: int = 0, cache: ChunkCache | None = None
    ) -> None:
        self.buffers = BufferPool()
        self._fetch = fetch
        self._locator = ChunkLocator(fetch.name)
        self._cache: ChunkCache = BoundedCache(cache_bytes) if cache is None else cache

    def __reduce__(self) -> tuple[Callable[..., "Engine"], tuple[Fetcher, int]]:
        return _make_engine, (self._fetch, self.cache_bytes)

    @property
    def concurrent_calls(self) -> int:
        """Number of reads that should run at once, though most of them only wait."""
        return self._fetch.concurrent_calls

    @property
    def cache_bytes(self) -> int:
        """Largest number of bytes of decoded chunks to keep."""
        return self._cache.limit_bytes

    def read_into(self, array: ArraySpec, box: Box, out: Voxels) -> None:
        """Fill ``out`` with the voxels of one box; see :meth:`read`."""
        self.read([BoxRead(array, box, out)])

    def read(self, reads: Iterable[BoxRead], *, threads: int = 1) -> None:
        """Fill the outputs of some boxes; a chunk that several boxes need is read once.

        Parameters
        ----------
        reads
            The boxes to read. No two outputs overlap.
        threads
            Number of threads that decode.

        Raises
        ------
        CorruptStoreError
            If a shard or chunk is missing or damaged. The message names scan, array, chunk and
            shard. The outputs are undefined then.
        """
        reads = list(reads)
        for read in reads:
            if read.out.shape != read.box.shape_zyx:
                raise ValueError(f"an output of shape {read.out.shape} for {read.box}")
        stored_reads = [_stored_read(read) for read in reads]
        if self.cache_bytes:
            self._read_cached(stored_reads, threads)
        else:
            self._read_stored(stored_reads, threads)
        for read, stored in zip(reads, stored_reads, strict=True):
            if stored is not read:
                _convert(read.array, stored.out, read.out)

    def explain(self, boxes: Sequence[tuple[ArraySpec, Box]]) -> ReadSummary:
        """Count what reading some boxes would take. Nothing is read."""
        plan = plan_reads(boxes)
        keys = _chunk_keys(plan)
        # With a cache, chunks are read whole; see _read_cached.
        chunk_boxes = [(key[0], _chunk_box(plan, chunk)) for chunk, key in enumerate(keys)]
        locations = self._locator.locate(plan_reads(chunk_boxes) if self.cache_bytes else plan)
        cached = self._cache.find(keys)
        fetched = [
            chunk for chunk in np.flatnonzero(locations.size).tolist() if keys[chunk] not in cached
        ]
        decoded = sum(int(locations.n_blocks[c]) * keys[c][0].coding.block_bytes for c in fetched)
        ranges = locations.ranges_of(np.array(fetched, np.intp))
        return ReadSummary(
            boxes=len(boxes),
            scans=len({array.scan_id for array, _ in boxes}),
            shards=len(np.unique(ranges.shard)),
            chunks=len(fetched),
            shared_chunks=int((plan.places["n_pieces"] > 1).sum()),
            cached_chunks=len(cached),
            background_chunks=int((locations.size == 0).sum()),
            requests=self._fetch.n_requests(ranges),
            fetched_bytes=int((ranges.stop - ranges.start).sum()),
            decoded_bytes=decoded,
            voxel_bytes=sum(
                math.prod(box.shape_zyx) * array.dtype.itemsize for array, box in boxes
            ),
            kernel=kernel() is not None,
        )

    def _read_cached(self, reads: Sequence[BoxRead], threads: int) -> None:
        """Take chunks from the cache. Read the missing ones whole, and keep them.

        Outputs have the stored dtype, as those of :meth:`_read_stored`.
        """
        plan = plan_reads([(read.array, read.box) for read in reads])
        keys = _chunk_keys(plan)
        voxels = self._cache.find(keys)
        missing = {}
        for chunk, key in enumerate(keys):
            if key not in voxels:
                box = _chunk_box(plan, chunk)
                missing[key] = BoxRead(key[0], box, np.empty(box.shape_zyx, key[0].stored_dtype))
        self._read_stored(list(missing.values()), threads)
        new = {key: read.out for key, read in missing.items()}
        self._cache.keep(new)
        voxels.update(new)
        for chunk, key in enumerate(keys):
            for box_number, within_chunk, within_box in plan.pieces(chunk):
                reads[box_number].out[within_box.slices] = voxels[key][within_chunk.slices]

    def _read_stored(self, reads: Sequence[BoxRead], threads: int) -> None:
        if not reads:
            return
        plan = plan_reads([(read.array, read.box) for read in reads])
        locations = self._locator.locate(plan)
        self._fill(plan, locations, [read.out for read in reads], threads)

    def _fill(
        self, plan: ReadPlan, locations: ChunkLocations, outputs: Sequence[Voxels], threads: int
    ) -> None:
        loaded = kernel()
        stored = _clear_background(plan, locations, outputs)
        if not len(stored):
            return
        chunks = locations.chunks
        decoded_bytes = max(_chunk_bytes(array) for array in plan.arrays)
        tables = Tables(
            chunks, plan.piece_rows, output_table(outputs), locations.starts, decoded_bytes
        )
        try:
            if loaded is not None and isinstance(self._fetch, LocalFetcher):
                with self._fetch.opened([shard.path for shard in locations.shards]) as descriptors:
                    chunks["fd"] = np.array(descriptors, np.int32)[locations.shard]
                    _run_kernel(loaded, outputs, tables, threads)
                for chunk in np.flatnonzero(chunks["status"] != DONE).tolist():
                    with self._fetch(locations.ranges_of(np.array([chunk]))) as fetched:
                        self._fill_without_kernel(plan, locations, chunk, fetched[0], outputs)
                return
            with self._fetch(locations.ranges_of(stored)) as fetched:
                if loaded is not None:
                    chunks["data"][stored] = np.where(fetched.is_whole, fetched.addresses, 0)
                    _run_kernel(loaded, (outputs, fetched), tables, threads)
                for row in np.flatnonzero(chunks["status"][stored] != DONE).tolist():
                    chunk = int(stored[row])
                    self._fill_without_kernel(plan, locations, chunk, fetched[row], outputs)
        except MissingShardError as problem:
            chunk = locations.first_chunk_of(problem.path)
            error = self._locator.chunk_error(plan, chunk, "is gone: its shard is missing")
            raise error from problem

    def _fill_without_kernel(
        self,
        plan: ReadPlan,
        locations: ChunkLocations,
        chunk: int,
        data: memoryview,
        outputs: Sequence[Voxels],
    ) -> None:
        """Fill the pieces of one chunk without the kernel, or raise the error of the chunk.

        A chunk that a network damaged is fetched again.
        """
        voxels = self._decode_or_refetch(
            plan, locations, chunk, data, refetches=self._fetch.max_refetches
        )
        for box, within_chunk, within_box in plan.pieces(chunk):
            outputs[box][within_box.slices] = voxels[within_chunk.slices]

    def _decode_or_refetch(
        self,
        plan: ReadPlan,
        locations: ChunkLocations,
        chunk: int,
        data: memoryview,
        *,
        refetches: int,
    ) -> Voxels:
        try:
            return _decode(plan, locations, chunk, data)
        except ChunkDamagedError as problem:
            if not refetches:
                raise self._locator.chunk_error(plan, chunk, str(problem)) from problem
        with self._fetch.refetch(locations.range_of(chunk)) as refetched:
            return self._decode_or_refetch(
                plan, locations, chunk, refetched[0], refetches=refetches - 1
            )


def _make_engine(fetch: Fetcher, cache_bytes: int) -> Engine:
    return Engine(fetch, cache_bytes=cache_bytes)


def _chunk_keys(plan: ReadPlan) -> list[_Chunk]:
    """Return the keys of the chunks of a plan in the cache."""
    return [(plan.arrays[plan.array[chunk]], plan.chunk_index(chunk)) for chunk in range(len(plan))]


def _chunk_box(plan: ReadPlan, chunk: int) -> Box:
    """Return the box of voxels that a chunk holds, in its array."""
    array, index = plan.arrays[plan.array[chunk]], plan.chunk_index(chunk)
    z, y, x = (i * n for i, n in zip(index, array.chunk_shape_zyx, strict=True))
    box = Box.at((z, y, x), array.chunk_shape_zyx)
    return box.intersect(Box((0, 0, 0), array.shape_zyx)) or box


def _stored_read(read: BoxRead) -> BoxRead:
    """Return a read of the stored numbers; the same read if its output takes these unchanged."""
    array = read.array
    is_stored = array.scaling is None and read.out.dtype == array.stored_dtype
    if is_stored and read.out.flags.writeable:
        return read
    return BoxRead(array, read.box, np.empty(read.out.shape, array.stored_dtype))


def _convert(array: ArraySpec, numbers: Voxels, out: Voxels) -> None:
    """Convert stored numbers to values of the dtype of ``out``."""
    if array.scaling is None:
        out[...] = numbers
    else:
        array.scaling.values_into(numbers, out)


def _clear_background(
    plan: ReadPlan, locations: ChunkLocations, outputs: Sequence[Voxels]
) -> npt.NDArray[np.intp]:
    """Clear the boxes with background that is not stored; return the numbers of stored chunks."""
    stored = np.flatnonzero(locations.size)
    if len(stored) < len(plan):
        is_background = np.repeat(locations.size == 0, plan.places["n_pieces"])
        for box in np.unique(plan.box[is_background]).tolist():
            outputs[box][...] = 0
    return stored


def _chunk_bytes(array: ArraySpec) -> int:
    """Return the bytes of a decoded chunk."""
    return math.prod(array.chunk_shape_zyx) * array.stored_dtype.itemsize


def _run_kernel(loaded: Kernel, owner: object, tables: Tables, threads: int) -> None:
    """Let the kernel fill all pieces; each thread gets about the same number of encoded bytes.

    The tables hold addresses of memory that ``owner`` owns.
    """

    def fill(first: int, last: int, _: object = owner) -> None:
        loaded.fill(tables, first, last)

    run_in_parts(fill, tables.chunks["size"], threads=threads)


def _decode(plan: ReadPlan, locations: ChunkLocations, chunk: int, data: memoryview) -> Voxels:
    """Decode the wanted blocks of a chunk with numcodecs. Voxels of other blocks are undefined.

    Raises
    ------
    ChunkDamagedError
        If they are damaged, or are not the blocks that the manifest lists there.
    """
    array = plan.arrays[plan.array[chunk]]
    voxels = np.empty(array.chunk_shape_zyx, array.stored_dtype)
    coding, first = array.coding, int(locations.first_block[chunk])
    stop, block_bytes = first + int(locations.n_blocks[chunk]), coding.block_bytes
    decoded = voxels.reshape(-1).view(np.uint8)
    decode_blocks(
        data,
        decoded[first * block_bytes : stop * block_bytes],
        coding=coding,
        block_sizes=locations.block_sizes(chunk),
        first_block=first,
        voxels_crc32c=int(locations.voxels_crc32c[chunk]),
    )
    return voxels
