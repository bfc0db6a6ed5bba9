import gc
import pickle
import threading

import numpy as np
import pytest

from spinezarr.stream.read.buffer_pool import BufferPool

SHAPE = (5, 40, 64, 70)
N_BYTES = 2 * 5 * 40 * 64 * 70


def derived(array):
    """Return every kind of view or reference that can outlive an array."""
    yield array
    yield array[2]
    yield array[1:3, ::-1, 4:][0]
    yield array.reshape(5, -1)
    yield array.view(np.uint8)[0, 0]
    yield memoryview(array)
    yield np.asarray(memoryview(array))
    yield [array[0]]


@pytest.mark.parametrize("number", range(8))
def test_memory_returns_to_the_pool_with_the_last_view(number):
    pool = BufferPool()
    array = pool.empty(SHAPE, np.int16)
    assert array.shape == SHAPE
    assert array.dtype == np.int16
    assert array.flags.writeable
    assert array.flags.c_contiguous
    left = list(derived(array))[number]
    del array
    assert pool.free_bytes == 0
    other = pool.empty(SHAPE, np.int16)
    assert not np.shares_memory(np.asarray(left if number != 7 else left[0]), other)
    del left
    assert pool.free_bytes == N_BYTES
    again = pool.empty((N_BYTES,), np.uint8)
    assert pool.free_bytes == 0
    del again, other
    assert pool.free_bytes == 2 * N_BYTES


def test_arrays_of_about_the_same_size_share_memory():
    pool = BufferPool()
    for shape in ((52, 184, 184), (53, 185, 185), (52, 184, 185)):
        array = pool.empty_alike(shape, np.int16)
        assert array.shape == shape
        assert array.dtype == np.int16
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert pool.free_bytes == 0
        n_bytes = array.nbytes
        del array
        assert n_bytes <= pool.free_bytes <= n_bytes * 9 / 8


@pytest.mark.parametrize("n", [0, 1, 7, 8, 1 << 18, (1 << 18) + 1, (1 << 20) - 1])
def test_shared_memory_holds_any_number_of_bytes(n):
    array = BufferPool().empty_alike((n,), np.uint8)
    array[...] = 1
    assert array.sum() == n


def test_free_memory_is_bounded():
    pool = BufferPool(3 * N_BYTES)
    held = [pool.empty(SHAPE, np.int16) for _ in range(5)]
    held += [pool.empty((N_BYTES // 2,), np.uint8) for _ in range(5)]
    del held
    assert 2 * N_BYTES < pool.free_bytes <= 3 * N_BYTES
    one = pool.empty((3 * N_BYTES,), np.uint8)
    del one
    assert pool.free_bytes == 3 * N_BYTES
    larger = pool.empty((4 * N_BYTES,), np.uint8)
    del larger
    assert pool.free_bytes == 0


def test_small_arrays_are_not_pooled():
    pool = BufferPool()
    small = pool.empty((3, 3), np.float32)
    assert small.base is None
    del small
    assert pool.free_bytes == 0


def test_a_pool_works_with_many_threads_and_the_garbage_collector():
    pool, wrong = BufferPool(), []

    def use(number):
        for _ in range(60):
            cycle = [pool.empty((1 << 18,), np.uint8)]
            cycle[0][...] = number
            cycle.append(cycle)  # only the garbage collector finds it
            one = pool.empty((1 << 18,), np.uint8)
            one[...] = number
            if (cycle[0] != number).any() or (one != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong


def test_a_pool_is_pickled_without_its_memory():
    pool = BufferPool()
    pool.empty(SHAPE, np.int16)
    assert pool.free_bytes
    assert pickle.loads(pickle.dumps(pool)).free_bytes == 0  # noqa: S301
