"""How does Python call the kernel, the C code that decodes and resamples without the GIL?

The kernel is loaded with :mod:`ctypes`. It is used only if it has the version and the structures
that this module expects, decodes a few chunks as numcodecs does, and interpolates a few voxels as
NumPy does. Everything works without it, but more slowly.
"""

import ctypes
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import local
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.native_library import NO_KERNEL, is_turned_off, library_path
from spinezarr.store.blocks import BlockCoding, ChunkFrame, encode_blocks
from spinezarr.store.layout import LARGEST_CHUNK_BYTES, BloscCodecSpec

__all__ = [
    "BACKGROUND",
    "CHUNKS",
    "DONE",
    "NOT_TRIED",
    "OUTPUTS",
    "PIECES",
    "PLACES",
    "RESAMPLINGS",
    "Kernel",
    "Tables",
    "address",
    "encoding_number",
    "kernel",
    "kernel_problem",
    "output_table",
    "resampling_table",
]

_VERSION: Final = 6
_OTHER, _LZ4, _SHUFFLED_LZ4, BACKGROUND = 0, 1, 2, 3
"""How the blocks of a chunk are encoded; ``BACKGROUND`` is not stored."""
DONE, NOT_TRIED = 0, -1
"""Status of a row of a table that is done, and of one that the kernel has not tried yet."""

# These are the structures of tables.h and resample.c. Numbers from a store's metadata have 64 bits,
# as NumPy would cut them to fewer bits without an error.
CHUNKS: Final = np.dtype(
    [
        ("data", np.uintp),
        ("offset", np.int64),
        ("size", np.int64),
        ("first_piece", np.int64),
        ("n_pieces", np.int64),
        ("itemsize", np.int64),
        ("shape_zyx", np.int64, 3),
        ("block_bytes", np.int64),
        ("first_block", np.int64),
        ("n_blocks", np.int64),
        ("first_start", np.int64),
        ("encoding", np.int32),
        ("fd", np.int32),
        ("voxels_crc32c", np.uint32),
        ("status", np.int32),
    ],
    align=True,
)
PIECES: Final = np.dtype(
    [
        ("output", np.int64),
        ("within_output_zyx", np.int64, 3),
        ("within_chunk_zyx", np.int64, 3),
        ("shape_zyx", np.int64, 3),
    ],
    align=True,
)
OUTPUTS: Final = np.dtype(
    [
        ("data", np.uintp),
        ("stride_zyx", np.int64, 3),
        ("shape_zyx", np.int64, 3),
        ("itemsize", np.int64),
    ],
    align=True,
)
PLACES: Final = np.dtype(
    [
        ("array", np.int64),
        ("chunk_zyx", np.int64, 3),
        ("shard_zyx", np.int64, 3),
        ("position", np.int64),
        ("first_piece", np.int64),
        ("n_pieces", np.int64),
        ("first_block", np.int64),
        ("stop_block", np.int64),
        ("opens_shard", np.int64),
    ],
    align=True,
)
_ARRAY_NUMBERS, _BOX_NUMBERS, _SHARD_NUMBERS, _ENTRY_NUMBERS = 12, 7, 8, 5
"""Numbers of a row of the tables whose columns all have 64 bits."""
RESAMPLINGS: Final = np.dtype(
    [
        ("source", np.uintp),
        ("out", np.uintp),
        ("position_zyx", np.uintp, 3),
        ("source_stride_zyx", np.int64, 3),
        ("source_shape_zyx", np.int64, 3),
        ("out_stride_zyx", np.int64, 3),
        ("out_shape_zyx", np.int64, 3),
        ("source_type", np.int64),
        ("out_type", np.int64),
        ("is_linear", np.int32),
        ("status", np.int32),
    ],
    align=True,
)
_TYPES: Final = {
    np.dtype(name): number
    for number, name in enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"))
}
"""Numbers of the dtypes that the kernel resamples."""
_UNKNOWN: Final = -1
"""Number of any other dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The tables of one call of the kernel: chunks to decode, and where their voxels go.

    The caller owns the memory at the addresses in the tables. There are ``size`` bytes at the
    ``data`` of each chunk, and they live until the kernel is done. Other numbers may be wrong: a
    chunk whose numbers do not fit together is not decoded.

    Raises
    ------
    ValueError
        If a table has another dtype, or is not contiguous.
    """

    chunks: npt.NDArray[np.void]
    """Rows of :data:`CHUNKS`; the kernel sets their ``status``."""
    pieces: npt.NDArray[np.void]
    """Rows of :data:`PIECES`, in the order of their chunks."""
    outputs: npt.NDArray[np.void]
    """Rows of :data:`OUTPUTS`; see :func:`output_table`."""
    starts: npt.NDArray[np.int64]
    """Where blocks begin and the last one ends, shape ``(rows, max_blocks + 1)``.

    Only differences within a row count. ``first_start`` of a chunk is an index into all numbers.
    """
    decoded_bytes: int
    """Bytes of the largest chunk, decoded."""

    def __post_init__(self) -> None:
        tables = (self.chunks, self.pieces, self.outputs)
        for table, dtype in zip(tables, (CHUNKS, PIECES, OUTPUTS), strict=True):
            _check_table(table, dtype)
        starts = self.starts
        if starts.dtype != np.int64 or starts.shape[1:] == () or not starts.flags.c_contiguous:
            raise ValueError(f"starts of blocks: {starts.dtype} of {starts.shape}, expected int64")


def encoding_number(coding: BlockCoding) -> int:
    """Return the number by which the kernel knows how blocks are encoded."""
    if not coding.is_lz4:
        return _OTHER
    return _SHUFFLED_LZ4 if coding.is_shuffled else _LZ4


def _check_table(table: npt.NDArray[np.void], dtype: np.dtype[np.void]) -> None:
    if table.dtype != dtype or table.ndim != 1 or not table.flags.c_contiguous:
        raise ValueError(f"a table of {table.dtype}, expected one of {dtype} without gaps")


def _check_numbers(table: npt.NDArray[np.int64], n_columns: int) -> None:
    right = table.dtype == np.int64 and table.shape[1:] == (n_columns,)
    if not right or not table.flags.c_contiguous:
        raise ValueError(f"a table of {table.dtype} of {table.shape}, expected {n_columns} int64")


def output_table(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.void]:
    """Return the table of the arrays that voxels go to.

    Raises
    ------
    TypeError
        If an array holds Python objects: bytes of a store would become their addresses.
    ValueError
        If an array is read-only, or does not have three dimensions.
    """
    for out in outputs:
        _check_output(out)
    rows = [(address(out), out.strides, out.shape, out.itemsize) for out in outputs]
    return np.array(rows, OUTPUTS)


def _check_output(out: npt.NDArray[Any]) -> None:
    if out.dtype.hasobject:
        raise TypeError(f"an output has type {out.dtype}, expected numbers")
    if not out.flags.writeable:
        raise ValueError("an output is read-only")


def resampling_table(
    resamplings: Iterable[
        tuple[npt.NDArray[Any], Sequence[npt.NDArray[np.float64]], npt.NDArray[Any], bool]
    ],
) -> npt.NDArray[np.void]:
    """Return the table of some boxes to resample.

    Parameters
    ----------
    resamplings
        Source, positions along z, y and x, output, and whether to interpolate linearly; as the
        arguments of :func:`spinezarr.stream.read.resample.resample`. They must live as long as the
        table is used.

    Raises
    ------
    TypeError
        If an output holds Python objects.
    ValueError
        If an output is read-only, positions are not contiguous, or there are more or fewer of them
        than values; or if an array has not three dimensions.
    """
    rows = []
    for source, positions_zyx, out, linear in resamplings:
        _check_output(out)
        if tuple(len(along) for along in positions_zyx) != out.shape or not all(
            along.dtype == np.float64 and along.flags.c_contiguous and along.flags.aligned
            for along in positions_zyx
        ):
            raise ValueError(f"positions that are not those of an output of shape {out.shape}")
        known = np.can_cast(source.dtype, out.dtype)
        rows.append(
            (
                address(source),
                address(out),
                tuple(address(along) for along in positions_zyx),
                *(source.strides, source.shape, out.strides, out.shape),
                _TYPES.get(source.dtype, _UNKNOWN) if known else _UNKNOWN,
                _TYPES.get(out.dtype, _UNKNOWN),
                linear,
                NOT_TRIED,
            )
        )
    return np.array(rows, RESAMPLINGS)


class Kernel:
    """The loaded library.

    Parameters
    ----------
    path
        Path of the library.

    Raises
    ------
    OSError
        If it cannot be loaded.
    AttributeError
        If it lacks a function, such as a library that an older version built.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.version = int(library.spinezarr_kernel_version())
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._fill = library.spinezarr_fill
        self._fill.argtypes = [
            pointer,
            *(number, number),
            *(pointer, number),
            *(pointer, number),
            *(pointer, number),
            *(pointer, number, number),
        ]
        self._fill.restype = None
        self._count_pieces = library.spinezarr_count_pieces
        self._count_pieces.argtypes = [*(pointer, number), *(pointer, number)]
        self._count_pieces.restype = number
        self._plan = library.spinezarr_plan
        self._plan.argtypes = [
            *(pointer, number),
            *(pointer, number),
            *(pointer, pointer, pointer, number),
        ]
        self._plan.restype = number
        self._locate = library.spinezarr_locate
        self._locate.argtypes = [
            *(pointer, number),
            *(pointer, number),
            *(pointer, number),
            *(pointer, pointer, number, pointer),
        ]
        self._locate.restype = ctypes.c_int32
        self.row_bytes: list[int] = []
        for size_of in (
            library.spinezarr_chunk_bytes,
            library.spinezarr_piece_bytes,
            library.spinezarr_output_bytes,
            library.spinezarr_place_bytes,
            library.spinezarr_resampling_bytes,
            library.spinezarr_array_bytes,
            library.spinezarr_wanted_bytes,
            library.spinezarr_shard_table_bytes,
            library.spinezarr_entry_bytes,
        ):
            size_of.argtypes, size_of.restype = [], number
            self.row_bytes.append(int(size_of()))
        self._scratch_bytes = library.spinezarr_scratch_bytes
        self._scratch_bytes.argtypes = [number, number]
        self._scratch_bytes.restype = number
        self._resample = library.spinezarr_resample
        self._resample.argtypes = [
            *(pointer, number),
            *(number, number),
            *(pointer, number),
            ctypes.c_int32,
        ]
        self._resample.restype = None
        self._resample_scratch_bytes = library.spinezarr_resample_scratch_bytes
        self._resample_scratch_bytes.argtypes = [pointer, number]
        self._resample_scratch_bytes.restype = number
        self._crc32c = library.spinezarr_crc32c
        self._crc32c.argtypes = [ctypes.c_char_p, number, ctypes.c_int32]
        self._crc32c.restype = ctypes.c_uint32
        self._scratch = local()

    def fill(self, tables: Tables, first: int, last: int) -> None:
        """Fill the pieces of the chunks ``first`` to ``last - 1``, and set their ``status``.

        Raises
        ------
        ValueError
            If there are no such chunks.
        """
        if not 0 <= first <= last <= len(tables.chunks):
            raise ValueError(f"chunks {first} to {last} of {len(tables.chunks)}")
        decoded_bytes = min(max(0, tables.decoded_bytes), LARGEST_CHUNK_BYTES)
        max_blocks = min(max(0, tables.starts.shape[1] - 1), LARGEST_CHUNK_BYTES)
        scratch = self._scratch_of(self._scratch_bytes(decoded_bytes, max_blocks))
        self._fill(
            address(tables.chunks),
            first,
            last,
            address(tables.pieces),
            len(tables.pieces),
            address(tables.outputs),
            len(tables.outputs),
            address(tables.starts),
            tables.starts.size,
            address(scratch),
            decoded_bytes,
            max_blocks,
        )

    def plan(
        self, arrays: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
        """Return the chunks that some boxes need, and the pieces of the boxes in these chunks.

        Parameters
        ----------
        arrays
            Shape ``(arrays, 12)``: shape of the array, of a chunk, chunks of a shard (each z, y,
            x), bytes of a voxel and of a decoded block, and :func:`encoding_number`.
        boxes
            Shape ``(boxes, 7)``: number of the array, start and stop (each z, y, x).

        Returns
        -------
        places, pieces
            Rows of :data:`PLACES` and :data:`PIECES`; see
            :class:`spinezarr.stream.read.plan.ReadPlan`.

        Raises
        ------
        ValueError
            If a box leaves its array, or an array has impossible numbers.
        """
        _check_numbers(arrays, _ARRAY_NUMBERS)
        _check_numbers(boxes, _BOX_NUMBERS)
        given = address(arrays), len(arrays), address(boxes), len(boxes)
        n_pieces = self._count_pieces(*given)
        if n_pieces < 0:
            raise ValueError(f"box {-1 - n_pieces}, or its array, is not valid")
        places, pieces = np.empty(n_pieces, PLACES), np.empty(n_pieces, PIECES)
        entries = np.empty((2 * n_pieces, _ENTRY_NUMBERS), np.int64)
        n_places = self._plan(*given, address(pieces), address(places), address(entries), n_pieces)
        if n_places < 0:
            raise ValueError("the arrays have too many chunks")
        return places[:n_places], pieces

    def locate(
        self,
        arrays: npt.NDArray[np.int64],
        places: npt.NDArray[np.void],
        shard_tables: npt.NDArray[np.int64],
        n_columns: int,
    ) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the chunks at some places, where their blocks lie, and the numbers of shards.

        Parameters
        ----------
        arrays
            See :meth:`plan`.
        places
            Rows of :data:`PLACES`.
        shard_tables
            Shape ``(runs, 8)``. A run is of places that follow each other and lie in one shard:
            where it ends, the number of the shard, and the numbers of
            :attr:`spinezarr.stream.read.chunk_locations.ShardTable.numbers`.
        n_columns
            Numbers of a row of the starts of blocks.

        Raises
        ------
        ValueError
            If the numbers do not fit together.
        """
        _check_numbers(arrays, _ARRAY_NUMBERS)
        _check_numbers(shard_tables, _SHARD_NUMBERS)
        _check_table(places, PLACES)
        chunks = np.empty(len(places), CHUNKS)
        starts = np.empty((len(places), n_columns), np.int64)
        shards = np.empty(len(places), np.int64)
        fits = self._locate(
            address(arrays),
            len(arrays),
            address(places),
            len(places),
            address(shard_tables),
            len(shard_tables),
            address(chunks),
            address(starts),
            n_columns,
            address(shards),
        )
        if not fits:
            raise ValueError("places that do not fit to their shards")
        return chunks, starts, shards

    def resample(
        self, table: npt.NDArray[np.void], first: int, last: int, *, baseline: bool = False
    ) -> None:
        """Fill some planes of the outputs of a table, and set the ``status`` of its rows.

        Parameters
        ----------
        table
            Rows of :data:`RESAMPLINGS`; see :func:`resampling_table`. A row that the kernel cannot
            do, or whose numbers do not fit together, is not :data:`DONE` afterwards.
        first, last
            Planes ``first`` to ``last - 1`` are filled. They are counted through all outputs. The
            status of an output is set together with its first plane.
        baseline
            Whether to use only instructions that all processors have.

        Raises
        ------
        ValueError
            If the table has another dtype, or is not contiguous.
        """
        _check_table(table, RESAMPLINGS)
        rows = address(table)
        scratch = self._scratch_of(self._resample_scratch_bytes(rows, len(table)))
        n_bytes = scratch.nbytes
        self._resample(rows, len(table), first, last, address(scratch), n_bytes, baseline)

    def _scratch_of(self, size: int) -> npt.NDArray[np.uint8]:
        """Return memory of this thread, of at least ``size`` bytes."""
        scratch: npt.NDArray[np.uint8] | None = getattr(self._scratch, "bytes", None)
        if scratch is None or scratch.nbytes < size:
            scratch = self._scratch.bytes = np.empty(size, np.uint8)
        return scratch

    def crc32c(self, data: bytes, *, by_table: bool) -> int:
        """Return the CRC-32C of ``data``, by table or by the processor's instruction."""
        return int(self._crc32c(data, len(data), by_table))

    def works(self) -> bool:
        """Return whether its structures fit, and it decodes and interpolates as expected."""
        if self.version != _VERSION or sys.byteorder != "little":
            return False
        tables = (CHUNKS, PIECES, OUTPUTS, PLACES, RESAMPLINGS)
        numbers = (_ARRAY_NUMBERS, _BOX_NUMBERS, _SHARD_NUMBERS, _ENTRY_NUMBERS)
        if self.row_bytes != [*(table.itemsize for table in tables), *(8 * n for n in numbers)]:
            return False
        return self._decodes() and self._interpolates()

    def _decodes(self) -> bool:
        """Return whether it decodes some chunks as they were encoded."""
        shape, start, stop = (40, 30, 50), (3, 5, 7), (37, 29, 48)
        voxels = np.random.default_rng(0).integers(-900, 900, shape, np.int16)
        voxels[10:30] = 7
        codecs = (
            BloscCodecSpec("lz4hc", 5, "shuffle", 15_000),
            BloscCodecSpec("lz4hc", 5, "noshuffle", 0),
        )
        for codec, dtype in zip(codecs, ("<i2", "u1"), strict=True):
            chunk = voxels.astype(dtype)
            encoded = np.frombuffer(encode_blocks(chunk, codec), np.uint8)
            frame = ChunkFrame.of(encoded.data)
            coding, blocks = frame.coding, encoded[frame.coding.blocks_offset :]
            starts = np.cumsum([[0, *frame.block_sizes]], axis=1)
            box = chunk[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
            out = np.zeros(box.shape, dtype)
            row = np.zeros(1, CHUNKS)
            row["data"], row["size"], row["n_pieces"] = address(blocks), starts[0, -1], 1
            row["itemsize"], row["shape_zyx"] = chunk.itemsize, shape
            row["block_bytes"], row["n_blocks"] = coding.block_bytes, coding.n_blocks
            row["encoding"], row["voxels_crc32c"] = encoding_number(coding), frame.voxels_crc32c
            row["status"] = NOT_TRIED
            piece = np.zeros(1, PIECES)
            piece["within_chunk_zyx"], piece["shape_zyx"] = start, box.shape
            self.fill(Tables(row, piece, output_table([out]), starts, chunk.nbytes), 0, 1)
            if row["status"][0] != DONE or not np.array_equal(out, box):
                return False
        return True

    def _interpolates(self) -> bool:
        """Return whether it rounds each product and each sum, as NumPy does."""
        low, high = np.random.default_rng(0).normal(0, 900, (2, 1, 1, 64)).astype(np.float32)
        weight = np.float32(0.3)
        # The table holds only their addresses.
        positions_zyx = np.full(1, 0.3), np.zeros(1), np.arange(64.0)
        source, out = np.concatenate([low, high]), np.empty_like(low)
        table = resampling_table([(source, positions_zyx, out, True)])
        self.resample(table, 0, 1)
        expected = low + weight * (high - low)
        return bool(table["status"][0] == DONE) and np.array_equal(out, expected)


@cache
def kernel() -> Kernel | None:
    """Return the kernel; None if there is none, or it does not work."""
    return _load()[0]


def kernel_problem() -> str:
    """Return why there is no kernel, as the end of a sentence; empty if it works."""
    return _load()[1]


def _load() -> tuple[Kernel | None, str]:
    if is_turned_off():
        return None, f"it is turned off by the environment variable {NO_KERNEL}"
    path = library_path()
    try:
        library = Kernel(path)
    except AttributeError:
        return None, "another version of spinezarr compiled it"
    except OSError as problem:
        is_there = path.exists()
        absent = "it was not compiled when spinezarr was installed"
        return None, f"it cannot be loaded: {problem}" if is_there else absent
    if library.works():
        return library, ""
    return None, "another version of spinezarr compiled it, or it computes wrong values here"


def address(array: npt.NDArray[Any]) -> int:
    """Return the address of the first element of an array."""
    return array.ctypes.data
