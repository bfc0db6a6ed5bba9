import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from timeouts import TIMEOUT_S
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

import spinezarr
from spinezarr.errors import CorruptStoreError, SpinezarrError, UsageError
from spinezarr.loaders.torch import PatchDataset, PatchLoader, PatchMapDataset, as_tensors
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.fetch import Fetcher, MissingShardError

# Python 3.12 warns about any fork while threads run; trainers do it, so it must work.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
    # Some tests use more workers than cores on purpose.
    "ignore:This DataLoader will create:UserWarning",
    # torchdata 0.11 calls functions that torch 2.13 deprecates.
    "ignore:.set_vital. is deprecated:UserWarning",
)


def digest(batch):
    """Return a hash of everything in a batch of tensors."""
    found = hashlib.sha256()
    for name, value in sorted(batch.items()):
        data = value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
        found.update(name.encode() + data)
    return found.hexdigest()


def digests(batches):
    return [digest(batch) for batch in batches]


def error_of(loader):
    """Return the error of iterating without its frames, which would keep torch's workers alive."""
    try:
        list(loader)
    except SpinezarrError as error:
        return error.with_traceback(None)


@pytest.fixture
def stream(store):
    """Eleven batches, the last smaller."""
    return store.patches((9, 10, 11), batch_size=2, n_samples=21, foreground=0.4, seed=3)


@pytest.fixture
def expected(stream):
    return digests(map(as_tensors, stream))


def whole(stream):
    return DataLoader(PatchDataset(stream), batch_size=None)


# Tensors


def test_tensors_share_memory_with_the_batch(stream):
    batch = stream[0]
    tensors = as_tensors(batch)
    for name in ("image", "label", "start_zyx", "padding_zyx", "affine", "index"):
        array, tensor = getattr(batch, name), tensors[name]
        assert tensor.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(tensor.numpy().reshape(array.shape), array)
    assert tensors["image"].shape == tensors["label"].shape == (2, 1, 9, 10, 11)
    assert (tensors["image"].dtype, tensors["label"].dtype) == (torch.int16, torch.uint8)
    assert tensors["scan_id"] == list(batch.scan_id)
    assert tensors["vertebra"] == [name or "" for name in batch.vertebra]
    assert "dims" not in tensors


def test_tensors_that_are_kept_do_not_change(store):
    stream = store.patches(64, batch_size=2, n_samples=20)
    expected = digests(map(as_tensors, stream))  # the memory of each batch is reused
    held = list(PatchLoader(stream))
    list(stream)
    assert digests(held) == expected
    images = [batch["image"][0] for batch in PatchLoader(stream)]
    list(stream)
    for image, batch in zip(images, held, strict=True):
        assert torch.equal(image, batch["image"][0])


def test_slices_are_two_dimensional_and_labels_may_be_absent(store):
    (tensors,) = whole(store.slices("sagittal", size=(20, 30), batch_size=6, labels=False))
    assert tensors["image"].shape == (6, 1, 20, 30)
    assert "label" not in tensors


def test_neighboring_slices_are_channels(store):
    stream = store.slices("axial", size=(20, 30), batch_size=6, neighbors=2)
    (tensors,), (batch,) = whole(stream), stream
    assert tensors["label"].shape == (6, 1, 20, 30)
    np.testing.assert_array_equal(tensors["image"], batch.image)
    assert batch.image.shape == (6, 5, 20, 30)


# Whole batches


@pytest.mark.parametrize(
    ("kind", "num_workers", "method"),
    [
        ("dataset", 0, None),
        pytest.param("dataset", 1, "fork", marks=pytest.mark.long),
        ("dataset", 2, "fork"),
        pytest.param("dataset", 8, "fork", marks=pytest.mark.long),
        ("loader", 0, None),
        ("loader", 2, "fork"),
        pytest.param("loader", 2, "spawn", marks=pytest.mark.long),
    ],
)
def test_the_number_of_workers_does_not_change_the_batches(
    stream, expected, kind, num_workers, method
):
    options = {"num_workers": num_workers, "multiprocessing_context": method}
    if kind == "dataset":
        loader = DataLoader(PatchDataset(stream), batch_size=None, **options)
    else:
        loader = PatchLoader(stream, **options)
    assert len(loader) == 11
    assert digests(loader) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_four_ranks_get_the_batches_in_turn(stream, expected, num_workers):
    shares = []
    for rank in range(4):
        dataset = PatchDataset(stream, rank=rank, ranks=4)
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        assert len(loader) == 2
        shares.append(digests(loader))
    assert [item for turn in zip(*shares, strict=True) for item in turn] == expected[:8]


@pytest.mark.parametrize(
    ("kind", "persistent"),
    [
        ("dataset", False),
        ("loader", True),
        pytest.param("dataset", True, marks=pytest.mark.long),
        pytest.param("loader", False, marks=pytest.mark.long),
    ],
)
def test_workers_see_a_new_epoch(stream, kind, persistent):
    options = {"num_workers": 2, "persistent_workers": persistent}
    dataset = PatchDataset(stream)
    loader = DataLoader(dataset, batch_size=None, **options)
    if kind == "loader":
        dataset = loader = PatchLoader(stream, **options)
    for epoch in (0, 1, 1, 3):
        dataset.set_epoch(epoch)
        assert digests(loader) == digests(map(as_tensors, stream.at_epoch(epoch)))


def test_the_epoch_is_that_of_the_stream_by_default(stream, expected):
    assert digests(whole(stream.at_epoch(2))) == digests(map(as_tensors, stream.at_epoch(2)))
    with pytest.raises(UsageError, match="epoch -1"):
        PatchDataset(stream).set_epoch(-1)
    assert digests(PatchLoader(stream)) == expected


def test_a_loader_left_early_leaves_no_thread_behind(stream, expected):
    before = set(threading.enumerate())
    for loader in (whole(stream), PatchLoader(stream), PatchLoader(stream, num_workers=2)):
        for batch in loader:
            assert digest(batch) == expected[0]
            break
    gc.collect()
    until = time.monotonic() + TIMEOUT_S  # threads of torch's own queues end a little later
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_a_damaged_store_is_the_same_error_in_a_worker(stream):
    class Gone(Fetcher):
        def __call__(self, ranges):
            raise MissingShardError(ranges.shards[0].path)

    engine = type(stream.engine)(Gone())
    broken = replace(stream, batch_reader=replace(stream.batch_reader, engine=engine))
    for num_workers in (0, 2):
        error = error_of(PatchLoader(broken, num_workers=num_workers))
        assert isinstance(error, CorruptStoreError)
        assert "its shard is missing" in str(error)


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("batch_size", 8, "store.patches"),
        ("batch_size", None, "store.patches"),
        ("shuffle", True, "set_epoch"),
        ("sampler", [0], "PatchMapDataset"),
        ("batch_sampler", [[0]], "PatchMapDataset"),
        ("drop_last", True, "n_samples"),
        ("collate_fn", list, "PatchMapDataset"),
        ("dataset", [1], "stream"),
        ("in_order", False, "order"),
    ],
)
def test_options_that_the_stream_decides_are_refused(stream, option, value, instead):
    with pytest.raises(UsageError, match=f"PatchLoader takes no {option}. .*{instead}"):
        PatchLoader(stream, **{option: value})


def test_an_unknown_option_is_refused(stream):
    with pytest.raises(TypeError, match="batchsize"):
        PatchLoader(stream, batchsize=8)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_batching_the_batches_of_a_stream_is_refused(stream, expected, kind, num_workers):
    dataset = PatchDataset(stream)
    for options in ({}, {"batch_size": 4}):
        error = error_of(kind(dataset, num_workers=num_workers, **options))
        assert isinstance(error, UsageError)
        assert "batch_size=None" in str(error)
    # A collate function of the user is allowed.
    (both, *_) = kind(dataset, batch_size=2, num_workers=num_workers, collate_fn=digests)
    assert both == expected[:2]
    plain = whole(stream)
    assert all(isinstance(batch, dict) for batch in plain)


def test_a_map_dataset_refuses_a_partition(stream):
    part = stream.resume(iter(stream).state_dict() | {"groups_done": 1})
    for share in (stream.shard(0, 2), part):
        with pytest.raises(UsageError, match=r"PatchMapDataset gives whole .*DistributedSampler"):
            PatchMapDataset(share)
    assert len(PatchMapDataset(stream.shard(0, 1))) == 21


def test_a_rank_alone_is_refused(stream):
    with pytest.raises(UsageError, match="rank and ranks: give both or none"):
        PatchDataset(stream, rank=1)
    with pytest.raises(UsageError, match="partition 4 of 4"):
        len(PatchDataset(stream, rank=4, ranks=4))


if torch.cuda.is_available():

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_batches_are_pinned(stream, expected, num_workers):
        for i, batch in enumerate(PatchLoader(stream, num_workers=num_workers, pin_memory=True)):
            assert batch["image"].is_pinned()
            assert batch["label"].is_pinned()
            assert digest(batch) == expected[i]


# Groups of several batches


class InGroups(PatchStream):
    """A stream that reads four batches together."""

    @property
    def batches_per_group(self):
        return 4


@pytest.fixture
def in_groups(stream):
    return InGroups(**{field.name: getattr(stream, field.name) for field in fields(stream)})


@pytest.mark.parametrize("num_workers", [0, 1, 2, pytest.param(5, marks=pytest.mark.long)])
def test_groups_are_yielded_in_order_for_any_number_of_workers(in_groups, expected, num_workers):
    loader = PatchLoader(in_groups, num_workers=num_workers)
    found = digests(itertools.islice(loader, 6))
    rest = PatchLoader(in_groups, num_workers=2 - min(num_workers, 2))
    rest.load_state_dict(loader.state_dict())
    assert found + digests(rest) == expected


def test_worker_counts_that_would_mix_groups_are_refused(in_groups, expected):
    dataset = PatchDataset(in_groups)
    for num_workers in (0, 1):
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        assert digests(loader) == expected
    error = error_of(DataLoader(dataset, batch_size=None, num_workers=2))
    assert isinstance(error, UsageError)
    assert "workers would change their order. Use spinezarr.loaders.torch.PatchLoader" in str(error)


# Samples by number


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_map_dataset_gives_the_same_batches(stream, num_workers):
    loader = DataLoader(PatchMapDataset(stream), batch_size=2, num_workers=num_workers)
    assert len(loader) == 11
    for found, wanted in zip(loader, whole(stream), strict=True):
        assert digest(found) == digest(wanted)


def test_a_map_dataset_works_with_samplers(stream):
    dataset = PatchMapDataset(stream)
    everything = [digest(dataset[i]) for i in range(21)]
    assert len(set(everything)) == 21
    sampler = DistributedSampler(dataset, num_replicas=2, rank=1, shuffle=True, drop_last=True)
    found = [digest(sample) for sample in DataLoader(dataset, batch_size=None, sampler=sampler)]
    assert found == [everything[i] for i in sampler]
    dataset.set_epoch(1)
    assert digest(dataset[0]) not in everything
    with pytest.raises(IndexError, match="sample 21 of an epoch of 21"):
        dataset[21]
    with pytest.raises(IndexError, match="sample -1"):
        dataset[-1]


def test_a_sample_of_a_map_dataset_has_no_batch_axis(stream):
    sample = PatchMapDataset(stream)[3]
    assert sample["image"].shape == sample["label"].shape == (1, 9, 10, 11)
    assert sample["affine"].shape == (4, 4)
    assert int(sample["index"]) == 3
    assert isinstance(sample["scan_id"], str)


# State


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "given", [4, *(pytest.param(n, marks=pytest.mark.long) for n in [0, 1, 11])]
)
def test_a_stateful_data_loader_resumes_in_the_middle_of_an_epoch(stream, num_workers, given):
    def make():
        return StatefulDataLoader(PatchDataset(stream), batch_size=None, num_workers=num_workers)

    expected = digests(map(as_tensors, stream))
    loader = make()
    found = digests(itertools.islice(loader, given))
    state = pickle.loads(pickle.dumps(loader.state_dict()))  # noqa: S301  our own bytes
    rest = make()
    rest.load_state_dict(state)
    assert found + digests(rest) == expected
    assert digests(rest) == expected


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [
        pytest.param(given, *workers, marks=() if i == j < 2 else pytest.mark.long)
        for i, given in enumerate([0, 4, 1, 10, 11])
        for j, workers in enumerate([(0, 0), (2, 3), (0, 2), (2, 0)])
    ],
)
def test_a_loader_can_be_resumed_with_any_number_of_workers(stream, before, after, given):
    epoch = stream.at_epoch(5)
    expected = digests(map(as_tensors, epoch))
    loader = PatchLoader(epoch, num_workers=before)
    found = digests(itertools.islice(loader, given))
    state = json.loads(json.dumps(loader.state_dict()))
    rest = PatchLoader(stream, num_workers=after)
    rest.load_state_dict(state)
    assert rest.state_dict() == state
    rest.set_epoch(5)
    assert found + digests(rest) == expected
    assert digests(rest) == expected
    rest.set_epoch(6)
    assert digests(rest) == digests(map(as_tensors, stream.at_epoch(6)))


@pytest.mark.parametrize("kind", [PatchDataset, PatchLoader])
def test_another_epoch_discards_a_state(stream, expected, kind):
    first = PatchLoader(stream)
    next(iter(first))
    made = kind(stream)
    made.load_state_dict(first.state_dict())
    made.set_epoch(1)
    assert digests(made) == digests(map(as_tensors, stream.at_epoch(1)))
    made.set_epoch(0)
    assert digests(made) == expected


def test_all_ranks_resume_from_the_state_of_the_first(stream, expected):
    first = PatchLoader(stream, rank=0, ranks=4)
    next(iter(first))
    for rank in range(4):
        loader = PatchLoader(stream, rank=rank, ranks=4)
        loader.load_state_dict(first.state_dict())
        assert digests(loader) == [expected[4 + rank]]


@pytest.mark.parametrize("kind", [PatchDataset, PatchLoader])
def test_a_loader_refuses_the_state_of_another_stream(store, stream, kind):
    state = kind(stream).state_dict()
    other = kind(store.patches((9, 10, 11), batch_size=2, n_samples=21, foreground=0.4, seed=4))
    with pytest.raises(UsageError, match="seed is 3 there and 4 here"):
        other.load_state_dict(state)
    assert other.state_dict()["stream"]["seed"] == 4
    with pytest.raises(UsageError, match="not the state of a stream"):
        other.load_state_dict({"epoch": 0})


# Interrupts

INTERRUPTED = """
import sys, spinezarr
from spinezarr.loaders.torch import PatchLoader

stream = spinezarr.open(sys.argv[1]).patches(8, n_samples=1_000_000, batch_size=10)
for batch in PatchLoader(stream, num_workers=int(sys.argv[2])):
    print("reading", flush=True)
"""


def test_an_interrupt_ends_the_workers(stream):
    loader = PatchLoader(replace(stream, n_samples=2000), num_workers=2)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in loader:
            workers = multiprocessing.active_children()
            signal.raise_signal(signal.SIGINT)
    assert len(workers) == 2
    for worker in workers:
        worker.join(TIMEOUT_S)
        assert not worker.is_alive()


@pytest.mark.long
@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_training_program_ends_promptly_on_an_interrupt(ctspine1k_url, num_workers):
    command = [sys.executable, "-c", INTERRUPTED, ctspine1k_url, num_workers]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT


# Training


@pytest.fixture
def _one_thread():
    """Limit torch to one thread, so that another core can read."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(6, 2, 3, padding=1),
    )


def loss_of(net, batch):
    image = batch["image"].float().clamp(-200, 1000) / 500
    return torch.nn.functional.cross_entropy(net(image), (batch["label"][:, 0] > 0).long())


def train(net, loader, epochs):
    """Train, and return the mean loss of each epoch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    means = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


@pytest.mark.usefixtures("_one_thread")
def test_a_network_learns_to_find_vertebrae(store):
    stream = store.patches(16, batch_size=4, n_samples=24, foreground=0.7, split="train")
    losses = train(network(), PatchLoader(stream), 5)
    assert losses[-1] < 0.5 * losses[0]
    assert train(network(), PatchLoader(stream, num_workers=2), 2) == losses[:2]


def train_rank(url, port, rank, ranks, send):
    """Train two epochs as one of several ranks; send the samples and the weights."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    stream = spinezarr.open(url).patches(12, batch_size=2, n_samples=16, foreground=0.5)
    # A spawned worker has no process group; the loader must pass it rank and ranks.
    workers = {"num_workers": 1, "multiprocessing_context": "spawn"} if rank else {}
    loader = PatchLoader(stream, **workers)
    net = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            seen.append(digest(batch))
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
    weights = [parameter.tolist() for parameter in net.parameters()]
    send.send((seen, weights))
    distributed.destroy_process_group()


@pytest.mark.long
def test_two_ranks_train_together(store):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=train_rank, args=(store.url, port, rank, 2, pipes[rank][1]))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        assert all(receive.poll(120) for receive, _ in pipes)
        (seen, weights), (others_seen, others_weights) = (receive.recv() for receive, _ in pipes)
    finally:
        for process in processes:
            process.join(TIMEOUT_S)
            process.kill()
    stream = store.patches(12, batch_size=2, n_samples=16, foreground=0.5)
    expected = [digest(as_tensors(b)) for epoch in range(2) for b in stream.at_epoch(epoch)]
    assert [item for turn in zip(seen, others_seen, strict=True) for item in turn] == expected
    assert weights == others_weights
