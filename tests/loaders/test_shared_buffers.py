import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from timeouts import TIMEOUT_S
from torch.utils.data import DataLoader, IterableDataset

from spinezarr.loaders import shared_buffers
from spinezarr.loaders.shared_buffers import (
    _RECEIVED,
    _RETIRED,
    SegmentLimits,
    _Sender,
    shared_allocator,
)
from spinezarr.loaders.torch import PatchDataset, PatchLoader, _WholeBatch, as_tensors
from spinezarr.stream.read.buffer_pool import MIN_BYTES

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
    "ignore:.*pin_memory.* argument is set as true but no accelerator is found:UserWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
)
SHAPE = (2, 1, 64, 64, 64)
N_VOXELS = 2 * 64**3


class Numbered(IterableDataset):
    """Batches whose voxels are their number; in a worker, they lie in its segments."""

    def __init__(self, n, shape=SHAPE, change=lambda batch: batch, limits=SegmentLimits()):  # noqa: B008
        self.n, self.shape, self.change, self.limits = n, shape, change, limits

    def __iter__(self):
        return map(self.batch, range(self.n))

    def batch(self, number):
        empty = shared_allocator(np.empty, self.limits)
        image, label = empty(self.shape, np.int16), empty(self.shape, np.uint8)
        image[...], label[...] = number, number
        tensors = {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}
        return self.change(_WholeBatch(tensors, scan_id=["a"], index=torch.arange(number)))


def load(n, *, shape=SHAPE, change=lambda batch: batch, limits=SegmentLimits(), **options):  # noqa: B008
    options = {"num_workers": 1, "multiprocessing_context": "fork", **options}
    return DataLoader(Numbered(n, shape, change, limits), batch_size=None, **options)


def is_intact(batch, number):
    # NumPy starts no threads, which a forked process could not use.
    voxels = [(batch[name].numpy() == number).all() for name in ("image", "label")]
    return all(voxels) and batch["index"].tolist() == [*range(number)]


def segments():
    return [segment for kept in _RECEIVED.values() for segment in kept.values()]


def held_shared_memory():
    """Return the shared memory of PyTorch that this process maps or holds open."""
    mapped = Path("/proc/self/maps").read_text().splitlines()
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed since, as that of the folder
            opened.append(str(descriptor.readlink()))
    return [name for name in (*mapped, *opened) if "/dev/shm/torch_" in name]  # noqa: S108


def in_segment(tensor):
    return tensor.data_ptr() in [segment.address for segment in segments()]


@pytest.fixture(autouse=True)
def _everything_is_forgotten():
    """Check that no segment is kept after the workers have ended."""
    yield
    gc.collect()
    assert not multiprocessing.active_children()
    assert not _RECEIVED


@pytest.fixture
def file_names():
    """Let PyTorch share memory by the names of files."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


# Sending


@pytest.mark.parametrize(
    ("method", "persistent"),
    [
        ("fork", False),
        ("fork", True),
        pytest.param("spawn", False, marks=pytest.mark.long),
        pytest.param("forkserver", True, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_batches_come_in_segments_that_are_used_again(store, request, method, persistent, strategy):
    if strategy == "file_system":
        request.getfixturevalue("file_names")
    stream = store.patches(64, batch_size=2, n_samples=60, foreground=0.4)
    loader = PatchLoader(
        stream, num_workers=2, multiprocessing_context=method, persistent_workers=persistent
    )
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for found, batch in zip(loader, stream.at_epoch(epoch), strict=True):
            wanted = as_tensors(batch)
            assert list(found) == list(wanted)
            for name, value in wanted.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(found[name], value)
                    assert found[name].dtype == value.dtype
                else:
                    assert found[name] == value
            n_segments = len(segments())
            assert all(segment.header[shared_buffers._IS_KNOWN] for segment in segments())
        # Two for each batch that is read, sent or used.
        assert 4 <= n_segments < 40
    assert not in_segment(found["image"]) or persistent
    assert not found["image"].is_shared()
    found["image"] += 1  # the memory may be written to
    found["affine"] += 1


def test_batches_that_are_kept_do_not_change():
    kept = list(load(30, persistent_workers=False))
    assert all(is_intact(batch, number) for number, batch in enumerate(kept))
    images = [batch["image"][1, :, 3] for batch in kept]
    del kept
    assert [int(image.max()) for image in images] == [*range(30)]
    assert [int(image.min()) for image in images] == [*range(30)]


@pytest.mark.parametrize(
    "limits", [SegmentLimits(n_bytes=9 * N_VOXELS), SegmentLimits(n_segments=6)]
)
def test_beyond_a_limit_batches_come_by_pytorch(limits):
    kept, inside = [], []
    for number, batch in enumerate(load(20, limits=limits)):
        assert is_intact(batch, number)
        assert sum(segment.block.nbytes for segment in segments()) <= 9 * N_VOXELS
        inside.append(in_segment(batch["image"]))
        kept.append(batch)
    assert inside.count(True) == 3
    assert all(is_intact(batch, number) for number, batch in enumerate(kept))


def test_small_tensors_come_in_the_message():
    shape = (2, 1, 8, 8, 8)
    for number, batch in enumerate(load(5, shape=shape)):
        assert is_intact(batch, number)
        assert batch["image"].shape == shape
        assert not batch["image"].is_shared()
        batch["image"] += 1
    assert not segments()


@pytest.mark.parametrize("options", [{"in_order": False}, {"pin_memory": True}, {"num_workers": 4}])
def test_options_of_a_loader_change_no_voxel(options):
    found = sorted(load(12, **{"num_workers": 2, **options}), key=lambda batch: len(batch["index"]))
    n_workers = options.get("num_workers", 2)
    numbers = [number for number in range(12) for _ in range(n_workers)]
    assert all(is_intact(batch, number) for number, batch in zip(numbers, found, strict=True))


# What programs do with a batch in a worker


def plain(batch):
    return dict(batch)


def cropped(batch):
    batch["image"][..., 0] = -1
    return _WholeBatch(batch, image=batch["image"][..., :-1], label=batch["label"][1:])


def converted(batch):
    return _WholeBatch(batch, image=batch["image"].bfloat16(), label=batch["label"].bool().int())


def twice(batch):
    return _WholeBatch(batch, more=batch["image"], part=batch["image"][0])


def odd(batch):
    others = {"none": None, "empty": torch.zeros(0, 3), "zero": torch.tensor(7)}
    grown = {"grad": torch.ones(3, requires_grad=True), "half": torch.ones(2).bfloat16()}
    return _WholeBatch(batch, **others, **grown, sparse=torch.eye(3).to_sparse(), name="x")


@pytest.mark.parametrize("change", [plain, cropped, converted, twice, odd])
@pytest.mark.parametrize("in_collate", [False, True])
def test_batches_that_a_worker_changes_arrive_as_they_are(change, in_collate):
    options = {"collate_fn": change} if in_collate else {"change": change}
    kept = list(load(12, **options))
    for number, found in enumerate(kept):
        wanted = change(Numbered(12).batch(number))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if isinstance(value, torch.Tensor):
                assert found[name].dtype == value.dtype
                assert found[name].requires_grad == value.requires_grad
                assert torch.equal(found[name].to_dense(), value.to_dense())
            else:
                assert found[name] == value


class Cached(IterableDataset):
    """Batches that a worker keeps, and sends in each epoch."""

    def __init__(self):
        self.batches = []

    def __iter__(self):
        self.batches = self.batches or [*Numbered(6)]
        return iter(self.batches)


def test_a_worker_may_keep_batches_and_send_them_again():
    loader = DataLoader(Cached(), batch_size=None, num_workers=1, persistent_workers=True)
    kept = [batch for _ in range(4) for batch in loader]
    assert all(is_intact(batch, i % 6) for i, batch in enumerate(kept))
    for _ in range(3):
        assert all(is_intact(batch, number) for number, batch in enumerate(loader))
    del loader


# What programs do with a batch that they received


def echo(receive, send):
    for batch in iter(receive.get, None):
        image = batch["image"] if isinstance(batch, dict) else batch
        send.put(int(image.numpy().max()))


def test_a_batch_that_is_sent_on_does_not_change():
    context = multiprocessing.get_context("fork")
    send, receive = torch.multiprocessing.Queue(), context.Queue()
    process = context.Process(target=echo, args=(send, receive))
    process.start()
    kept = []
    for number, batch in enumerate(load(20)):
        if number % 4 == 0:
            kept.append(batch["image"])
            send.put(batch if number % 8 else batch["image"])
            assert not number or kept[0].max() == 0
    send.put(None)
    assert [receive.get(timeout=TIMEOUT_S) for _ in range(5)] == [0, 4, 8, 12, 16]
    process.join(TIMEOUT_S)
    assert [int(image.max()) for image in kept] == [0, 4, 8, 12, 16]


def test_a_saved_tensor_holds_no_more_than_its_voxels(tmp_path):
    for batch in load(3):
        torch.save(batch["label"], tmp_path / "label.pt")
        assert N_VOXELS <= (tmp_path / "label.pt").stat().st_size < 1.1 * N_VOXELS


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_a_forked_process_sees_no_change(request, strategy):
    if strategy == "file_system":
        request.getfixturevalue("file_names")
    loader, held = iter(load(60)), []
    held.append(next(loader))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.read(read, 1)  # the parent has used all other batches
            intact = is_intact(held[0], 0)
            held.clear()
            gc.collect()
            os._exit(0 if intact and (strategy == "file_system" or not _RECEIVED) else 1)
        os._exit(2)
    held.clear()
    for number in range(1, 60):
        assert is_intact(next(loader), number)
    os.write(write, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(read)
    os.close(write)
    del loader


def test_a_forked_process_frees_no_segment():
    loader = iter(load(40))
    next(loader)
    child = os.fork()
    if not child:
        next_batches = [shared_buffers._Segment.of(s.storage) for s in segments()]
        os._exit(len(next_batches))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held = next(loader)
    (image,) = (s for s in segments() if s.address == held["image"].data_ptr())
    mark = image.mark
    assert mark < 0
    child = os.fork()
    if not child:
        image.set_mark(mark)  # as if the batch had come since the fork began
        del held
        gc.collect()
        os._exit(0 if image.mark == mark else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_intact(held, 1)
    del loader


# The ends of workers


def test_interrupted_iterations_leak_no_segment():
    loader = load(50, num_workers=2, persistent_workers=True)
    counts = []
    for _ in range(8):
        for number, batch in enumerate(loader):
            assert is_intact(batch, number // 2)
            if number == 9:
                break
        counts.append(len(segments()))
    assert counts[-1] == counts[3]
    del batch, loader


def test_the_segments_of_ended_workers_are_forgotten():
    before = held_shared_memory()
    for _ in range(5):
        for number, batch in enumerate(load(8, num_workers=2)):
            assert is_intact(batch, number // 2)
        assert not _RECEIVED
        batches = iter(load(8, num_workers=2))
        held = next(batches)
        del batches
        assert not _RECEIVED
        assert is_intact(held, 0)
        assert len(held_shared_memory()) > len(before)
        del held, batch
        gc.collect()
        assert held_shared_memory() == before


def read_until_a_worker_dies():
    """Return the batches that come before an error."""
    held = []
    # The error of PyTorch, or of its connection to the worker, if it breaks before.
    with contextlib.suppress(RuntimeError, OSError, EOFError):
        for batch in load(1000):
            held.append(batch)
            if len(held) == 4:
                # PyTorch's handler raises wherever the main thread is, also while it takes a lock
                # of a queue, and then the process may hang. Without it, PyTorch looks every 5 s.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    return held


def test_a_killed_worker_does_no_harm():
    child = os.fork()
    if not child:
        signal.alarm(int(TIMEOUT_S))
        with contextlib.suppress(BaseException):
            held = read_until_a_worker_dies()
            while multiprocessing.active_children() or _RECEIVED:
                gc.collect()
            intact = [is_intact(batch, number) for number, batch in enumerate(held)]
            os._exit(0 if 4 <= len(held) < 1000 and all(intact) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_segments_of_other_sizes_are_forgotten():
    limits = SegmentLimits(n_bytes=60 * N_VOXELS)

    class Sizes(IterableDataset):
        def __iter__(self):
            for size in (1, 4, 2, 8):
                yield from Numbered(12, (size, 1, 64, 64, 64), limits=limits)

    inside = []
    for i, batch in enumerate(DataLoader(Sizes(), batch_size=None, num_workers=1)):
        assert is_intact(batch, i % 12)
        inside.append(in_segment(batch["image"]))
        assert sum(segment.block.nbytes for segment in segments()) <= 120 * N_VOXELS
    assert all(inside[:24])
    assert any(inside[-12:])


# A worker and a receiver in one process


def send(sender, number, n_bytes):
    data = sender.empty(n_bytes)
    if data is None:
        return None
    data[...] = number
    tensor = torch.from_numpy(data)
    assert sender._segments[tensor.data_ptr()]
    content = sender.send(tensor)
    assert sender.send(tensor) is None  # it is on its way
    return content


def receive(sender, content):
    """Receive as the parent process of the sender, which keeps its segments."""
    _RECEIVED[sender._worker] = dict(sender._segments.values())
    return shared_buffers._receive(content)


@given(st.data())
def test_no_segment_is_used_while_anybody_sees_it(data):
    sender, sent, views = _Sender(), [], []
    kinds = ["send", "send", "receive", "receive", "drop", "retire", "look"]
    for number in range(data.draw(st.integers(1, 40))):
        kind = data.draw(st.sampled_from(kinds))
        if kind == "send":
            n_bytes = data.draw(st.sampled_from([MIN_BYTES, MIN_BYTES + 9, 3 * MIN_BYTES]))
            sent.append((number, send(sender, number, n_bytes)))
        elif kind == "receive" and sent:
            expected, content = sent.pop(data.draw(st.integers(0, len(sent) - 1)))
            views.append((expected, receive(sender, content)))
            assert len(views[-1][1]) == content.n_bytes
        elif kind == "drop" and views:
            views.pop(data.draw(st.integers(0, len(views) - 1)))
        elif kind == "retire":
            shared_buffers._retire_received()
        assert all((view == expected).all() for expected, view in views)
    for expected, content in sent:
        assert (receive(sender, content) == expected).all()
    views.clear()
    assert all(segment.mark in {0, _RETIRED} for _, segment in sender._segments.values())
    assert len(sender._idle) == len(sender._segments)
    _RECEIVED.clear()


def test_a_message_cannot_be_received_twice():
    sender = _Sender()
    content = send(sender, 3, MIN_BYTES)
    view = receive(sender, content)
    with pytest.raises(RuntimeError, match="received twice"):
        receive(sender, content)
    assert (view == 3).all()
    _RECEIVED.clear()


def test_a_process_that_did_not_start_the_worker_gets_each_segment_once():
    sender = _Sender()
    views = [shared_buffers._receive(send(sender, number, MIN_BYTES)) for number in range(3)]
    assert not _RECEIVED
    views += [shared_buffers._receive(send(sender, number, MIN_BYTES)) for number in range(3, 6)]
    assert all((view == number).all() for number, view in enumerate(views))
    assert len(sender._segments) == 1  # the others are forgotten


def test_a_sender_works_with_many_threads_and_the_garbage_collector():
    limits = SegmentLimits(n_bytes=8 * MIN_BYTES)
    sender, wrong = _Sender(), []

    def use(number):
        for _ in range(60):
            block = sender.empty(MIN_BYTES, limits)
            if block is None:
                continue
            cycle = [block]
            cycle.append(cycle)  # only the garbage collector finds it
            block[...] = number
            if number % 2:
                content = sender.send(torch.from_numpy(block))
                block = receive(sender, content)
            if (block != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert len(sender._segments) == len(sender._idle) <= 8
    _RECEIVED.clear()


def test_a_batch_that_went_to_another_process_before_is_refused():
    content = send(_Sender(), 3, MIN_BYTES)
    lost = shared_buffers._SentSegment(content.worker, content.number, 1, MIN_BYTES, None)
    with pytest.raises(RuntimeError, match="sent this batch to two processes"):
        shared_buffers._receive(lost)


def test_outside_of_workers_a_batch_is_pickled_as_it_is():
    batch = _WholeBatch(image=torch.arange(6).view(2, 3), scan_id=["a"])
    found = pickle.loads(ForkingPickler.dumps(batch))  # noqa: S301  our own bytes
    assert type(found) is _WholeBatch
    assert torch.equal(found["image"], batch["image"])
    assert found["image"].is_shared()


def test_a_dataset_sees_the_segments_only_in_workers(store):
    stream = store.patches(64, batch_size=2, n_samples=4)
    assert PatchDataset(stream).worker_stream().batch_reader.allocate is None
    assert stream.describe() == PatchDataset(stream).worker_stream().describe()
