import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timeouts import TIMEOUT_S, wait_until

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.store.folder import StoreFolder
from spinezarr.stream.epoch.batch_iterator import BatchIterator
from spinezarr.stream.epoch.partition import BatchGroups, Partition
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import Fetcher, LocalFetcher


def digest(batch):
    """Return a hash of everything in a batch."""
    found = hashlib.sha256()
    for name in ("image", "label", "start_zyx", "padding_zyx", "affine", "index"):
        found.update(np.ascontiguousarray(getattr(batch, name)))
    found.update(repr((batch.scan_id, batch.vertebra, batch.dims)).encode())
    return found.hexdigest()


def digests(stream):
    return [digest(batch) for batch in stream]


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.fixture
def stream(store):
    """Eleven batches, the last smaller."""
    return store.patches((9, 10, 11), batch_size=2, n_samples=21, foreground=0.4, seed=3)


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("spinezarr-read")]


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind():
    assert not ours()
    yield
    gc.collect()
    assert not ours()


def with_engine(stream, engine):
    """Return the stream with another engine that reads its voxels."""
    return replace(stream, batch_reader=replace(stream.batch_reader, engine=engine))


# Partitions of an epoch

EPOCHS = st.builds(BatchGroups, st.integers(1, 60), st.integers(1, 7))


def batches_of(partition, epoch):
    """Return the numbers in the epoch of the batches of a partition, by brute force."""
    listed = [batch for group in partition.groups(epoch) for batch in epoch.batches(group)]
    return listed[partition.batches_done :]


@given(EPOCHS, st.lists(st.integers(1, 5), max_size=3))
def test_nested_partitions_hold_each_batch_of_the_epoch_once(epoch, counts):
    shares = [Partition()]
    for count in counts:
        shares = [share.split(i, count, even=False) for share in shares for i in range(count)]
    found = [item for share in shares for item in batches_of(share, epoch)]
    assert sorted(found) == batches_of(Partition(), epoch)
    assert len(found) == epoch.n_batches
    for share in shares:
        assert share.n_batches(epoch) == len(batches_of(share, epoch))


@given(EPOCHS, st.integers(1, 5), st.integers(1, 4))
def test_partitions_in_turn_yield_the_groups_of_the_epoch_in_order(epoch, ranks, workers):
    shares = [
        Partition().split(rank, ranks, even=False).split(worker, workers, even=False)
        for worker in range(workers)
        for rank in range(ranks)
    ]
    rows = [list(share.groups(epoch)) for share in shares]
    turns = [row[i] for i in range(epoch.n_groups) for row in rows if i < len(row)]
    assert turns == list(range(epoch.n_groups))


@given(EPOCHS, st.integers(1, 9), st.integers(1, 4))
def test_ranks_get_equal_numbers_of_batches_and_fewer_batches_than_ranks_are_dropped(
    epoch, ranks, workers
):
    epoch = replace(epoch, ranks=ranks)
    shares = [Partition().split(rank, ranks, even=True) for rank in range(ranks)]
    found = [batches_of(share, epoch) for share in shares]
    assert {len(batches) for batches in found} == {epoch.n_batches // ranks}
    assert sorted(chain(*found)) == list(range(epoch.n_batches // ranks * ranks))
    for share, batches in zip(shares, found, strict=True):
        assert share.n_batches(epoch) == len(batches)
        of_workers = [share.split(worker, workers, even=False) for worker in range(workers)]
        assert sorted(chain(*(batches_of(worker, epoch) for worker in of_workers))) == batches
    # Ranks in turn, group by group, yield the sequence of a single process.
    turns = [epoch.batches(unit) for unit in range(epoch.n_groups)]
    assert list(chain(*turns)) == sorted(chain(*found))


@given(EPOCHS, st.integers(1, 4), st.booleans(), st.lists(st.integers(0, 9), max_size=4), st.data())
def test_the_rest_of_a_partition_begins_after_the_batches_already_yielded(
    epoch, count, even, steps, data
):
    index = data.draw(st.integers(0, count - 1))
    share = Partition().split(index, count, even=even)
    epoch = replace(epoch, ranks=share.ranks)
    rest = batches_of(share, epoch)
    for step in steps:
        given_now = min(step, len(rest))
        share, rest = share.after(given_now, epoch), rest[given_now:]
        assert batches_of(share, epoch) == rest
        assert share.n_batches(epoch) == len(rest)
        workers = [share.split(i, 3, even=False) for i in range(3)]
        found = [item for worker in workers for item in batches_of(worker, epoch)]
        assert sorted(found) == rest


def test_invalid_partitions_are_refused(stream):
    for index, count in ((0, 0), (-1, 2), (2, 2)):
        with pytest.raises(UsageError, match=f"partition {index} of {count}: "):
            stream.shard(index, count)
    with pytest.raises(UsageError, match="split the whole stream by ranks first"):
        stream.shard(0, 2).shard(0, 2, even=True)


def test_partitions_of_a_stream_in_turn_yield_its_epoch(stream):
    expected = digests(stream)
    for counts in ((1, 1), (4, 1), (2, 3)):
        shares = [
            digests(stream.shard(rank, counts[0]).shard(worker, counts[1]))
            for worker in range(counts[1])
            for rank in range(counts[0])
        ]
        turns = [share[i] for i in range(11) for share in shares if i < len(share)]
        assert turns == expected
    shares = [stream.shard(rank, 4, even=True) for rank in range(4)]
    assert [len(share) for share in shares] == [2] * 4
    assert [digests(share) for share in shares] == [expected[rank:8:4] for rank in range(4)]
    assert digests(shares[1].at_epoch(1)) == digests(stream.at_epoch(1))[1:8:4]


def test_a_partition_is_a_sequence(stream):
    share = stream.shard(1, 3)
    assert len(share) == 4
    assert [digest(share[number]) for number in range(4)] == digests(share)
    with pytest.raises(IndexError, match="batch 4 of an epoch of 4"):
        share[4]


# State


@pytest.mark.parametrize("given_before", [0, 1, 5, 10, 11])
def test_a_resumed_stream_yields_the_rest_of_the_epoch(stream, given_before):
    stream = stream.at_epoch(2)
    expected = digests(stream)
    iterator = iter(stream)
    found = [digest(next(iterator)) for _ in range(given_before)]
    state = through_json(iterator.state_dict())
    iterator.close()
    rest = stream.at_epoch(0).resume(state)
    assert rest.epoch == 2
    assert len(rest) == 11 - given_before
    assert found + digests(rest) == expected
    assert [digest(rest[number]) for number in range(len(rest))] == expected[given_before:]
    assert digests(rest.at_epoch(2)) == expected


def test_a_resumed_stream_can_be_split_and_resumed_again(stream):
    expected = digests(stream)
    iterator = iter(stream)
    for _ in range(3):
        next(iterator)
    rest = stream.resume(iterator.state_dict())
    iterator.close()
    shares = [digests(rest.shard(worker, 2)) for worker in range(2)]
    assert [shares[i % 2][i // 2] for i in range(8)] == expected[3:]
    second = iter(rest.shard(1, 2))
    next(second)
    again = stream.shard(1, 2).resume(through_json(second.state_dict()))
    second.close()
    assert digests(again) == expected[6::2]


class InGroups(PatchStream):
    """A stream whose groups have three batches."""

    @property
    def batches_per_group(self):
        return 3


@pytest.mark.parametrize(
    ("given_before", "prefetch_bytes"),
    [
        pytest.param(given, prefetch, marks=() if (given + i) % 2 else pytest.mark.long)
        for given in range(12)
        for i, prefetch in enumerate([1, 1 << 30])
    ],
)
def test_a_stream_can_be_resumed_inside_a_group(stream, given_before, prefetch_bytes):
    expected = digests(stream)
    stream = InGroups(**{field.name: getattr(stream, field.name) for field in fields(stream)})
    stream = stream.with_reading(prefetch_bytes=prefetch_bytes)
    iterator = iter(stream)
    found = [digest(next(iterator)) for _ in range(given_before)]
    state = through_json(iterator.state_dict())
    assert (state["groups_done"], state["batches_done"]) == {11: (4, 0)}.get(
        given_before, divmod(given_before, 3)
    )
    iterator.close()
    rest = stream.resume(state)
    assert len(rest) == 11 - given_before
    assert [digest(rest[number]) for number in range(len(rest))] == expected[given_before:]
    assert found + digests(rest) == expected
    shares = [digests(rest.shard(worker, 2)) for worker in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(expected[given_before:])
    assert shares[0][: 3 - given_before % 3] == expected[given_before:][: 3 - given_before % 3]


def test_even_partitions_end_with_shorter_groups(stream):
    expected = digests(stream)
    stream = InGroups(**{field.name: getattr(stream, field.name) for field in fields(stream)})
    shares = [digests(stream.shard(rank, 2, even=True)) for rank in range(2)]
    assert shares == [expected[:3] + expected[6:8], expected[3:6] + expected[8:10]]
    shares = [digests(stream.shard(rank, 5, even=True)) for rank in range(5)]
    assert shares == [expected[2 * rank : 2 * rank + 2] for rank in range(5)]
    for given_before in (1, 3):
        middle = iter(stream)
        for _ in range(given_before):
            next(middle)
        rest = stream.resume(middle.state_dict())
        middle.close()
        with pytest.raises(UsageError, match="in the middle of an epoch: split it first, then"):
            rest.shard(0, 2, even=True)


@pytest.mark.parametrize("options", [{}, {"shuffle": "window"}])
def test_an_epoch_of_fewer_batches_than_ranks_is_refused(store, options):
    stream = store.patches(8, batch_size=4, n_samples=26, **options)
    assert len(stream.shard(6, 7, even=True)) == 1
    with pytest.raises(UsageError, match="26 samples is 7 batches of 4, too few for 8 ranks") as e:
        stream.shard(0, 8, even=True)
    assert "n_samples=32 or more" in str(e.value)
    assert len(store.patches(8, batch_size=4, n_samples=32, **options).shard(7, 8, even=True)) == 1


@settings(max_examples=40)
@given(
    n_samples=st.integers(1, 400),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 9),
    window=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_no_rank_is_empty_and_no_sample_is_lost(
    ctspine1k_url, n_samples, batch_size, ranks, window
):
    options = {}
    if window is not None:
        options = {"shuffle": "window", "window_scans": window[0], "samples_per_scan": window[1]}
    stream = spinezarr.open(ctspine1k_url).patches(
        8, batch_size=batch_size, n_samples=n_samples, **options
    )
    n_batches = -(-n_samples // batch_size)
    if n_batches < ranks:
        with pytest.raises(UsageError, match=f"too few for {ranks} ranks"):
            stream.shard(0, ranks, even=True)
        return
    shares = [stream.shard(rank, ranks, even=True) for rank in range(ranks)]
    assert {len(share) for share in shares} == {n_batches // ranks}
    given = [
        request.index
        for share in shares
        for unit in share.partition.groups(share.batch_groups)
        for requests in share._draw_group(unit)
        for request in requests
    ]
    kept = n_batches // ranks * ranks
    assert sorted(given) == list(range(min(n_samples, kept * batch_size)))


def test_all_ranks_can_resume_from_the_state_of_one(stream):
    first = iter(stream.shard(0, 4, even=True))
    next(first)
    state = first.state_dict()
    first.close()
    expected = digests(stream)
    for rank in range(4):
        rest = stream.shard(rank, 4, even=True).resume(state)
        assert digests(rest) == [expected[4 + rank]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda store: store.patches(9, batch_size=2, n_samples=21), r"size_zyx is \[9, 10, 11\]"),
        (lambda store: store.patches((9, 10, 11), batch_size=2), "n_samples is 21 there and 6"),
        (lambda store: store.patches((9, 10, 11), seed=4), "seed is 3 there and 4 here"),
        (lambda store: store.patches((9, 10, 11)), "batch_size is 2 there and 1 here"),
        (lambda store: store.patches((9, 10, 11), foreground=1), "foreground is 0.4 there and 1"),
        (lambda store: store.patches((9, 10, 11), labels=False), "with_label is True there"),
        (lambda store: store.patches((9, 10, 11), split="train"), "scan_ids is "),
        (lambda store: store.slices("axial"), "flat_axis is None there and 0 here"),
        (lambda store: store.patches((9, 10, 11)).shard(0, 2), "partitions is 1 there and 2 here"),
    ],
)
def test_the_state_of_another_stream_is_refused(store, stream, other, message):
    state = iter(stream).state_dict()
    with pytest.raises(UsageError, match=f"the state of another stream: .*{message}"):
        other(store).resume(state)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, 3, None, "epoch"])
def test_an_invalid_state_is_refused(stream, state):
    with pytest.raises(UsageError, match="not the state of a stream"):
        stream.resume(state)


def test_the_order_of_weights_does_not_matter_to_a_state(store):
    weights = {"L1": 2.0, "L2": 3.0}
    one = store.patches(9, foreground=1, weights=weights)
    same = store.patches(9, foreground=1, weights=dict(reversed(weights.items())))
    assert digests(same.resume(iter(one).state_dict())) == digests(one)
    with pytest.raises(UsageError, match="weights is "):
        store.patches(9, foreground=1).resume(iter(one).state_dict())


def test_read_ahead_counts_the_bytes_of_image_and_mask(store):
    for stream in (
        store.patches(9, batch_size=4),
        store.patches(9, batch_size=4, labels=False),
        store.slices("axial", batch_size=2, neighbors=3),
    ):
        batch = stream[0]
        label_bytes = 0 if batch.label is None else batch.label.nbytes
        ahead = stream.read_ahead
        assert ahead.batch_bytes == ahead.group_bytes == batch.image.nbytes + label_bytes


def test_a_state_is_small_and_equal_streams_have_equal_states(store, stream):
    state = iter(stream).state_dict()
    assert len(json.dumps(state)) < 2000
    again = pickle.loads(pickle.dumps(stream))  # noqa: S301  our own bytes
    assert iter(again).state_dict() == state
    assert digests(again.with_reading(threads=1, prefetch_bytes=1).resume(state)) == digests(stream)


# Reading ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch_bytes", [1, 20_000, 1 << 30])
def test_threads_and_limits_change_no_batch(stream, threads, prefetch_bytes):
    bounded = stream.with_reading(threads=threads, prefetch_bytes=prefetch_bytes)
    assert digests(bounded) == digests(stream)


@pytest.mark.parametrize("name", ["threads", "prefetch_bytes"])
def test_invalid_limits_are_refused(stream, name):
    with pytest.raises(UsageError, match=f"{name} 0: must be at least 1"):
        stream.with_reading(**{name: 0})


@pytest.fixture
def counted(store, recording_fetcher):
    """Return a long stream of one-patch batches of 1024 bytes, and the list of its fetches."""
    fetch = recording_fetcher()
    stream = store.patches(8, n_samples=1000, labels=False, scans=["liver_0"])
    stream = with_engine(stream, Engine(fetch)).with_reading(threads=2)
    return stream, fetch.calls


@pytest.mark.parametrize(
    ("prefetch_bytes", "ahead"), [(1, 1), (1024, 1), (2047, 1), (2048, 2), (3072, 3), (1 << 30, 4)]
)
def test_reading_ahead_stays_within_its_limit(counted, prefetch_bytes, ahead):
    stream, fetched = counted
    iterator = iter(stream.with_reading(prefetch_bytes=prefetch_bytes))
    for given_before in (1, 2, 3):
        next(iterator)
        while len(fetched) < given_before + ahead:
            time.sleep(0.01)
    assert len(iterator._pending) == ahead
    iterator.close()
    assert len(fetched) == 3 + ahead


def test_nothing_is_read_before_the_first_batch_is_requested(counted):
    stream, fetched = counted
    iterator = iter(stream)
    assert isinstance(iterator, BatchIterator)
    assert not ours()
    assert not fetched
    iterator.close()
    assert list(iterator) == []


def gated(stream, first):
    """Return the stream, a gate for its groups from ``first`` on, and the list of groups begun."""
    gate, begun = threading.Event(), []

    class Gated(PatchStream):
        def read_group(self, number):
            begun.append(number)
            assert number < first or gate.wait(TIMEOUT_S)
            return super().read_group(number)

    return (
        Gated(**{field.name: getattr(stream, field.name) for field in fields(stream)}),
        gate,
        begun,
    )


def test_closing_an_iterator_cancels_waiting_reads(counted):
    stream, gate, begun = gated(counted[0], 1)
    iterator = iter(stream)
    next(iterator)
    while len(begun) < 3:  # until both threads wait at the gate
        time.sleep(0.01)
    threading.Timer(0.2, gate.set).start()
    iterator.close()
    assert not ours()
    assert sorted(begun) == [0, 1, 2]


class SlowFetcher(LocalFetcher):
    concurrent_calls = 6  # as over a network


@pytest.mark.parametrize(("fetcher", "at_first"), [(LocalFetcher, 2), (SlowFetcher, 1)])
def test_over_a_network_the_first_batch_has_the_link_for_itself(stream, fetcher, at_first):
    engine = Engine(fetcher(stream.batch_reader.reader.objects.folder))
    stream, gate, begun = gated(with_engine(stream, engine).with_reading(threads=2), 0)
    with ThreadPoolExecutor(1) as consumer:
        batches = iter(stream)
        first = consumer.submit(next, batches)
        try:
            wait_until(lambda: len(begun) >= at_first)
            time.sleep(0.1)
            assert len(begun) == at_first
        finally:
            gate.set()
        assert digest(first.result(TIMEOUT_S)) == digest(next(iter(stream)))
        wait_until(lambda: len(begun) > at_first + 1)  # then it reads ahead
        batches.close()


def fail_over(stream):
    for _ in stream:
        _ = 1 / 0


@pytest.mark.parametrize("how", ["break", "delete", "raise", "end", "close"])
def test_an_iterator_that_ends_leaves_no_thread_behind(stream, how):
    iterator = iter(stream)
    next(iterator)
    assert ours()
    if how == "end":
        list(iterator)
    elif how == "close":
        iterator.close()
        assert list(iterator) == []
        iterator.close()
    elif how == "delete":
        del iterator
    elif how == "break":
        iterator.close()
        for _ in stream:
            break
    else:
        iterator.close()
        with pytest.raises(ZeroDivisionError):
            fail_over(stream)
        gc.collect()
    assert not ours()


def test_an_iterator_dropped_in_one_of_its_own_threads_ends_them(stream):
    done = threading.Event()
    holder = []

    class Dropping(Fetcher):
        """A fetcher that drops the last reference to the iterator during the second group."""

        def __call__(self, ranges):
            if len(holder) == 2:
                holder.clear()
                gc.collect()
                done.set()
            return LocalFetcher(StoreFolder.at("/"))(ranges)

    iterator = iter(with_engine(stream, Engine(Dropping())).with_reading(threads=1))
    next(iterator)
    threads = ours()
    holder += [iterator, None]
    iterator._pending.clear()
    iterator._running_readers().submit(iterator._read_group, 5)
    del iterator
    assert done.wait(TIMEOUT_S)
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not ours()


def test_an_interrupt_while_waiting_ends_the_threads(counted):
    stream, gate, begun = gated(counted[0], 0)

    def interrupt():
        while not begun:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        gate.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    iterator = iter(stream)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    thread.join()
    # If the interrupt comes while the pool starts a thread, that thread ends by itself.
    wait_until(lambda: not ours())


INTERRUPTED = """
import sys, time
from dataclasses import fields
import spinezarr
from spinezarr.stream.epoch.stream import PatchStream

class Slow(PatchStream):
    def read_group(self, number):
        time.sleep(number and 0.5)
        return super().read_group(number)

stream = spinezarr.open(sys.argv[1]).patches(8, n_samples=1000)
stream = Slow(**{field.name: getattr(stream, field.name) for field in fields(stream)})
for batch in (iterator := iter(stream)):
    print("reading", flush=True)
    if sys.argv[2] == "training":
        time.sleep(60)
"""


@pytest.mark.parametrize("when", ["reading", pytest.param("training", marks=pytest.mark.long)])
def test_a_program_ends_promptly_on_an_interrupt(ctspine1k_url, when):
    command = [sys.executable, "-c", INTERRUPTED, ctspine1k_url, when]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=TIMEOUT_S)[1]
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1


# Processes


def go_on(iterator, send):
    send.send(digests(iterator))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_goes_on_with_threads_of_its_own(stream):
    expected = digests(stream)
    iterator = iter(stream)
    for _ in range(2):
        next(iterator)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=go_on, args=(iterator, send), daemon=True)
    process.start()
    try:
        send.close()
        assert receive.poll(TIMEOUT_S), "the child hangs"
        assert receive.recv() == expected[2:]
        assert digests(iterator) == expected[2:]
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    finally:
        receive.close()
        process.kill()
        process.join()
        process.close()


# Several threads


@pytest.mark.parametrize("prefetch_bytes", [1, 1 << 30])
def test_threads_that_share_an_iterator_get_each_batch_once(stream, prefetch_bytes):
    expected = digests(stream)
    iterator = iter(stream.with_reading(prefetch_bytes=prefetch_bytes))
    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(digests, iterator) for _ in range(4)]]
    assert sorted(chain(*found)) == sorted(expected)
    assert iterator.state_dict()["groups_done"] == len(expected)


def test_an_iterator_is_closed_while_another_thread_waits_for_it(stream):
    reading, go_on = threading.Event(), threading.Event()

    class Waiting(LocalFetcher):
        def opened(self, paths):
            reading.set()
            go_on.wait()
            return super().opened(paths)

    iterator = iter(
        with_engine(stream, Engine(Waiting(StoreFolder.at("/")))).with_reading(threads=1)
    )
    with ThreadPoolExecutor(2) as pool:
        taken = pool.submit(list, iterator)
        reading.wait()
        closed = pool.submit(iterator.close)
        while not iterator._closed:
            time.sleep(0.001)
        go_on.set()
        closed.result()
        assert taken.result() == []
    assert list(iterator) == []
