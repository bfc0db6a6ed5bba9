"""How do the workers of a data loader hand over batches without new memory for each one?

PyTorch copies each tensor of a worker into new shared memory. The operating system clears its
pages, and both processes map and unmap it. That takes longer than decoding the voxels.

So a worker decodes into shared memory of its own, in *segments* that hold one array at a time. The
process that trains gets each segment once, and later only its number. The tensors there are views
of the segment. When the last view is gone, the worker uses the segment again. Each segment begins
with a *mark*, and only the process that may change it does:

========= =================================================== =================
mark      state                                               who may change it
========= =================================================== =================
0         free                                                the worker
ticket    sent; each time with another, positive number       the receiver
-ticket   received; views of it exist                         the receiver
RETIRED   used by nobody again, and forgotten by both         nobody
========= =================================================== =================

If there is no segment to use, PyTorch sends the batch in its own way.
"""

import itertools
import math
import multiprocessing
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from threading import Lock
from typing import Any, Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import get_worker_info

from spinezarr.forks import PerProcess, at_fork, process_number
from spinezarr.loaders.segment_limits import SegmentLimits, free_bytes, room_bytes
from spinezarr.stream.read.buffer_pool import MIN_BYTES, leased
from spinezarr.stream.read.tensors import Allocate

__all__ = ["SegmentLimits", "send_in_segments", "shared_allocator"]

_FREE: Final = 0
_RETIRED: Final = -(1 << 62)
_HEADER_BYTES: Final = 64
_MARK, _IS_KNOWN = range(2)
"""Numbers in the header: the mark, and whether the receiver keeps the segment."""
_LARGEST_WASTE: Final = 2
"""A segment is used for arrays of more than its size divided by this number."""

_Bytes = npt.NDArray[np.uint8]


_LIMITS: Final = SegmentLimits()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Segment:
    """Shared memory for one array."""

    storage: torch.UntypedStorage
    header: npt.NDArray[np.int64]
    block: _Bytes

    @classmethod
    def of(cls, storage: torch.UntypedStorage) -> "_Segment":
        memory: _Bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        return cls(storage, memory[:_HEADER_BYTES].view(np.int64), memory[_HEADER_BYTES:])

    @property
    def mark(self) -> int:
        return int(self.header[_MARK])

    @property
    def address(self) -> int:
        return self.block.ctypes.data

    def set_mark(self, mark: int) -> None:
        self.header[_MARK] = mark

    def release(self, ticket: int, process: int, _: _Bytes) -> None:
        """Free the segment in the process that received it; a fork of that has no say."""
        if process_number() == process and self.mark == -ticket:
            self.set_mark(_FREE)


@dataclass(frozen=True, slots=True)
class _SentSegment:
    """How a worker names a segment to the receiver."""

    worker: tuple[int | None, str]
    """Process id, and a name that no other process has."""
    number: int
    ticket: int
    n_bytes: int
    storage: torch.UntypedStorage | None
    """The segment itself; None if the receiver has it."""


@dataclass(frozen=True, slots=True, eq=False)
class _SentTensor:
    """A dense tensor, in a segment or, if it is small, in the message."""

    content: _SentSegment | _Bytes
    dtype: torch.dtype
    shape: tuple[int, ...]

    def receive(self) -> torch.Tensor:
        content = self.content
        data = _receive(content) if isinstance(content, _SentSegment) else content
        # PyTorch does not know that this memory is shared. So it copies the tensor if the program
        # sends it on, and never gives the segment to a third process.
        return torch.from_numpy(data).view(self.dtype).view(self.shape)


# In a worker


class _Sender:
    """The segments of a worker process.

    There is no lock around the list of idle segments: they come back whenever Python collects
    garbage. Each step is atomic.
    """

    def __init__(self) -> None:
        worker = get_worker_info()
        self._n_workers = 1 if worker is None else worker.num_workers
        self._worker = (multiprocessing.current_process().pid, uuid4().hex)
        self._segments: dict[int, tuple[int, _Segment]] = {}
        """Number and segment by the address of its array."""
        self._idle: list[_Segment] = []
        """Segments without a view in this process. The receiver may have one."""
        self._numbers, self._tickets = itertools.count(), itertools.count(1)
        self._making = Lock()

    def empty(self, n_bytes: int, limits: SegmentLimits = _LIMITS) -> _Bytes | None:
        """Return bytes that are not set; None if there is no segment to use."""
        segment = self._take_idle(n_bytes) or self._make(n_bytes, limits)
        if segment is None:
            return None
        return leased(segment.block, partial(self._give_back, segment))[:n_bytes]

    def send(self, tensor: torch.Tensor) -> _SentSegment | None:
        """Mark the segment of a tensor as sent; return None if it cannot be sent by segment."""
        number, segment = self._segments.get(tensor.data_ptr(), (0, None))
        # A program may send a tensor twice. The second time, PyTorch copies it.
        if segment is None or segment.mark != _FREE:
            return None
        ticket = next(self._tickets)
        segment.set_mark(ticket)
        storage = None if segment.header[_IS_KNOWN] else segment.storage
        return _SentSegment(self._worker, number, ticket, tensor.nbytes, storage)

    def _give_back(self, segment: _Segment, _: _Bytes) -> None:
        self._idle.append(segment)

    def _take_idle(self, n_bytes: int) -> _Segment | None:
        """Take the segment that was used last, because it is likely to be in the cache."""
        for segment in reversed(self._idle.copy()):
            mark, size = segment.mark, segment.block.nbytes
            if mark == _RETIRED and self._claim(segment):
                self._segments.pop(segment.address, None)
            fits = n_bytes <= size < _LARGEST_WASTE * n_bytes
            if mark == _FREE and fits and self._claim(segment):
                return segment
        return None

    def _claim(self, segment: _Segment) -> bool:
        """Remove a segment from the idle ones; return False if another thread was faster."""
        try:
            self._idle.remove(segment)
        except ValueError:
            return False
        return True

    def _make(self, n_bytes: int, limits: SegmentLimits) -> _Segment | None:
        with self._making:
            for segment in self._idle.copy():
                if self._has_room(n_bytes, limits):
                    break
                # It has another size: that of a stream which has ended, or of a last batch.
                if segment.mark == _FREE and self._claim(segment):
                    segment.set_mark(_RETIRED)
                    self._segments.pop(segment.address, None)
            if not self._has_room(n_bytes, limits):
                return None
            try:
                # As torch.multiprocessing does for tensors, by its sharing strategy.
                storage = torch.UntypedStorage._new_shared(_HEADER_BYTES + n_bytes)  # noqa: SLF001
            except (OSError, RuntimeError):  # no descriptor or no memory is left
                return None
            segment = _Segment.of(storage)
            self._segments[segment.address] = (next(self._numbers), segment)
            return segment

    def _has_room(self, n_bytes: int, limits: SegmentLimits) -> bool:
        sizes = [segment.block.nbytes for _, segment in list(self._segments.values())]
        max_bytes = room_bytes(limits, free_bytes())
        # Each worker may use its share.
        max_segments = max(2, limits.n_segments // self._n_workers)
        max_bytes //= self._n_workers
        return len(sizes) < max_segments and sum(sizes) + n_bytes <= max_bytes


_SENDER: Final = PerProcess(_Sender)


def shared_allocator(otherwise: Allocate, limits: SegmentLimits = _LIMITS) -> Allocate:
    """Return a function like ``numpy.empty``, for arrays that this worker sends.

    Parameters
    ----------
    otherwise
        Makes arrays that are small, or for which there is no shared memory.
    limits
        How much shared memory to take.
    """

    def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        block = None if n_bytes < MIN_BYTES else _SENDER.get().empty(n_bytes, limits)
        return otherwise(shape, dtype) if block is None else block.view(dtype).reshape(shape)

    return empty


def send_in_segments(kind: type[dict[str, Any]]) -> None:
    """Let workers send the tensors in dicts of a class in their segments."""
    ForkingPickler.register(kind, _reduce)


def _reduce(batch: dict[str, Any]) -> tuple[Any, ...]:
    items = dict(batch)
    if get_worker_info() is not None:
        sender = _SENDER.get()
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and _is_plain(value):
                items[name] = _send(sender, value)
    return _rebuild, (type(batch), items)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether bytes, dtype and shape are all of a tensor."""
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_nested or tensor.is_quantized)
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.is_contiguous()
        and tensor.numel() > 0
    )


def _send(sender: _Sender, tensor: torch.Tensor) -> _SentTensor | torch.Tensor:
    content: _SentSegment | _Bytes | None = sender.send(tensor)
    if content is None and tensor.nbytes < MIN_BYTES:
        content = tensor.view(-1).view(torch.uint8).numpy()
    return tensor if content is None else _SentTensor(content, tensor.dtype, tuple(tensor.shape))


# In the process that receives

_RECEIVED: Final[dict[tuple[int | None, str], dict[int, _Segment]]] = {}
"""Segments by worker and number."""
_INHERITED: Final[list[object]] = []
"""Segments of a parent process that this process must not destroy."""


def _rebuild(kind: type[dict[str, Any]], items: dict[str, Any]) -> dict[str, Any]:
    return kind(
        (name, value.receive() if isinstance(value, _SentTensor) else value)
        for name, value in items.items()
    )


def _receive(sent: _SentSegment) -> _Bytes:
    """Return a view of a segment. The worker may use the segment again once it is gone."""
    segment = _RECEIVED.get(sent.worker, {}).get(sent.number)
    if segment is None:
        segment = _keep(sent)
    if segment.mark == sent.ticket:
        segment.set_mark(-sent.ticket)
    elif segment.mark != _RETIRED:
        raise RuntimeError(f"a batch was received twice: mark {segment.mark}, {sent.ticket}")
    release = partial(segment.release, sent.ticket, process_number())
    return leased(segment.block, release)[: sent.n_bytes]


def _keep(sent: _SentSegment) -> _Segment:
    """Return a segment that arrives for the first time; keep it as long as its worker lives."""
    if sent.storage is None:
        raise RuntimeError(
            "a worker sent this batch to two processes. Let the process that started the worker "
            "send it on."
        )
    segment = _Segment.of(sent.storage)
    workers = {process.pid: process for process in multiprocessing.active_children()}
    _forget_unused(workers.keys())
    worker = workers.get(sent.worker[0])
    if worker is None:
        # Nobody would say when it ends.
        segment.set_mark(_RETIRED)
        return segment
    if sent.worker not in _RECEIVED:
        weakref.finalize(worker, _RECEIVED.pop, sent.worker, None).atexit = False
    _RECEIVED.setdefault(sent.worker, {})[sent.number] = segment
    segment.header[_IS_KNOWN] = True
    return segment


def _forget_unused(workers: Collection[int | None]) -> None:
    """Forget the segments of workers that have ended, and those that are retired."""
    for worker, segments in list(_RECEIVED.items()):
        pid, _ = worker
        if pid not in workers:
            _RECEIVED.pop(worker, None)
        for number, segment in list(segments.items()):
            if segment.mark == _RETIRED:
                segments.pop(number, None)


def _retire_received() -> None:
    """Retire the segments that have views. A child process will see the same memory."""
    for segments in list(_RECEIVED.values()):
        for segment in list(segments.values()):
            if segment.mark < _FREE:
                segment.set_mark(_RETIRED)


def _forget_inherited() -> None:
    if get_sharing_strategy() == "file_system":
        # PyTorch counts the processes that use a file, and did not count this one.
        _INHERITED.append(_RECEIVED.copy())
    _RECEIVED.clear()


at_fork(before=_retire_received, in_child=_forget_inherited)
