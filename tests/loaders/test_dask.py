"""Epochs as dask arrays, and batches read by other processes and by a cluster."""

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import dask
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from spinezarr.errors import StoreNotFoundError, UnknownScanError, UsageError
from spinezarr.stream.epoch import executor as executor_module
from spinezarr.stream.epoch.executor import PickledOnce


@pytest.fixture(scope="module")
def client():
    """Connect to a cluster of one worker process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def processes():
    """Return a pool of two processes, forked from one that has imported the package."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["spinezarr.api"])
    with ProcessPoolExecutor(2, context) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def scheduler(request):
    """Compute with a scheduler of dask; return its name."""
    options = {"pool": request.getfixturevalue("processes")} if request.param == "processes" else {}
    with dask.config.set(scheduler=request.param, num_workers=2, **options):
        yield request.param


@pytest.fixture
def stream(store):
    return store.patches((12, 16, 20), batch_size=3, n_samples=8, foreground=0.5, seed=2)


def assert_equal_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name in ("image", "label", "start_zyx", "padding_zyx", "affine", "index"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.scan_id, one.vertebra, one.dims) == (other.scan_id, other.vertebra, other.dims)


def assert_is_epoch(epoch, stream):
    batches = list(stream)
    for name in ("image", "label", "start_zyx"):
        expected = np.concatenate([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(epoch[name], expected)
        assert epoch[name].dtype == expected.dtype
    assert epoch.scan_id.to_numpy().tolist() == [i for batch in batches for i in batch.scan_id]
    vertebrae = [name or "" for batch in batches for name in batch.vertebra]
    assert epoch.vertebra.to_numpy().tolist() == vertebrae


# As arrays


@pytest.mark.usefixtures("scheduler")
def test_an_epoch_computes_to_its_batches(stream):
    epoch = stream.to_dask()
    assert epoch.image.chunks == ((3, 3, 2), (12,), (16,), (20,))
    assert epoch.image.dims == ("sample", "z", "y", "x")
    assert set(epoch.data_vars) == {"image", "label"}
    assert_is_epoch(epoch.compute(), stream)


def test_an_epoch_computes_on_a_cluster(stream, client):
    assert_is_epoch(client.compute(stream.to_dask()).result(), stream)


def test_a_part_of_an_epoch_computes_to_that_part(stream):
    epoch = stream.to_dask()
    mean = epoch.image.isel(sample=[1, 6]).mean(["z", "y", "x"]).to_numpy()
    image = np.concatenate([batch.image for batch in stream])
    np.testing.assert_allclose(mean, image[[1, 6]].mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("plane", "dims"), [("axial", ("y", "x")), ("coronal", ("z", "x")), ("sagittal", ("z", "y"))]
)
def test_slices_have_two_axes(store, plane, dims):
    slices = store.slices(plane, batch_size=2, n_samples=3, labels=False)
    epoch = slices.to_dask()
    assert epoch.image.dims == ("sample", *dims)
    assert "label" not in epoch
    image = np.concatenate([batch.image for batch in slices])
    np.testing.assert_array_equal(epoch.image, image)


def test_different_epochs_have_different_dask_names(stream):
    names = [
        one.to_dask().image.data.name for one in (stream, stream.at_epoch(0), stream.at_epoch(1))
    ]
    assert names[0] == names[1] != names[2]


def test_a_partition_cannot_become_dask_arrays(stream):
    with pytest.raises(UsageError, match=r"to_dask gives whole epochs: .* isel"):
        stream.shard(1, 2).to_dask()


def test_positions_of_samples_are_computed_without_reading_voxels(damaged):
    streams = (damaged.patches(8, n_samples=20, seed=seed) for seed in range(50))
    stream = next(s for s in streams if s.request(0).scan_id != "liver_0")
    epoch = stream.to_dask()
    expected = [stream.request(i).box.start_zyx for i in range(20)]
    np.testing.assert_array_equal(epoch.start_zyx, expected)
    assert set(epoch.scan_id.to_numpy()) > {"liver_0"}


@pytest.mark.usefixtures("scheduler")
def test_computing_a_damaged_chunk_is_an_error(damaged, refused):
    streams = (damaged.patches(64, n_samples=12, seed=seed) for seed in range(50))
    drawn = ((s, [s.request(i).scan_id for i in range(12)]) for s in streams)
    # The arrays are made from the first patch, so its scan must be intact.
    stream = next(s for s, scans in drawn if "liver_0" in scans[1:] and scans[0] != "liver_0")
    epoch = stream.to_dask()
    with refused:
        epoch.image.compute()


# Batches read by an executor


@pytest.fixture(params=["threads", "processes", "cluster"])
def executor(request):
    if request.param == "cluster":
        yield request.getfixturevalue("client").get_executor()
    elif request.param == "processes":
        yield request.getfixturevalue("processes")
    else:
        with ThreadPoolExecutor(2) as pool:
            yield pool


def test_an_executor_reads_the_same_batches_in_order(stream, executor):
    for _ in range(2):
        assert_equal_batches(stream.read_by(executor), stream)
    assert_equal_batches(stream.read_by(executor, ahead=1), stream)
    assert_equal_batches(stream.at_epoch(1).read_by(executor, ahead=9), stream.at_epoch(1))


def test_a_damaged_chunk_read_by_an_executor_is_an_error(damaged, refused, executor):
    with refused:
        list(damaged.patches(64, scans=["liver_0"]).read_by(executor))


def test_a_store_that_was_removed_is_an_error(damaged, executor, tmp_path):
    stream = damaged.patches(64, scans=["liver_0"])
    (tmp_path / "copied.zarr").rename(tmp_path / "other.zarr")
    gone = UnknownScanError if isinstance(executor, ThreadPoolExecutor) else StoreNotFoundError
    with pytest.raises(gone, match=r"copied\.zarr: "):
        list(stream.read_by(executor))


class CountingExecutor(ThreadPoolExecutor):
    """A thread pool that records the requested batches."""

    def __init__(self, threads):
        super().__init__(threads)
        self.asked = []

    def submit(self, *given):
        self.asked.append(super().submit(*given))
        return self.asked[-1]


@pytest.mark.parametrize("ahead", [1, 3])
def test_an_executor_reads_ahead_a_limited_number_of_batches(store, ahead):
    stream = store.patches(8, n_samples=9)
    with CountingExecutor(2) as pool:
        for taken, _ in enumerate(stream.read_by(pool, ahead=ahead), 1):
            assert len(pool.asked) == min(taken - 1 + ahead, 9)


def test_leaving_early_cancels_waiting_batches(store):
    with CountingExecutor(1) as pool:
        batches = store.patches(8, n_samples=1000).read_by(pool, ahead=900)
        next(batches)
        batches.close()
        assert len(pool.asked) == 900
        assert sum(future.cancelled() for future in pool.asked) > 800


def test_at_least_one_batch_is_read_ahead(stream):
    with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match="ahead 0: must be at"):
        stream.read_by(pool, ahead=0)


def opened():
    return executor_module._unpickled.cache_info().misses


def test_a_process_opens_a_store_once_for_all_batches(store, client):
    stream = store.patches(9, n_samples=24, seed=77)
    pickled = PickledOnce(stream)
    assert pickled.value is stream
    first, again = (pickle.loads(pickle.dumps(pickled)) for _ in range(2))  # noqa: S301
    assert first.value is again.value is not stream
    before = client.run(opened)
    list(stream.read_by(client.get_executor()))
    between = client.run(opened)
    assert sum(between.values()) > sum(before.values())
    assert all(between[worker] - before[worker] <= 1 for worker in between)
    client.compute(stream.to_dask()).result()
    after = client.run(opened)
    assert all(after[worker] - between[worker] <= 1 for worker in after)


# Training


@pytest.mark.long
def test_a_network_learns_bone_from_a_cluster(store, client):
    torch.manual_seed(0)
    stream = store.patches(16, batch_size=4, n_samples=12, foreground=1.0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 1, 3, padding=1)
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    means = []
    for epoch in range(4):
        losses = []
        for batch in stream.at_epoch(epoch).read_by(client.get_executor()):
            image = torch.from_numpy(batch.image[:, None]).float() / 1000
            bone = torch.from_numpy(batch.label[:, None] > 0).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(image), bone)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(np.mean(losses))
    assert means[-1] < 0.7 * means[0]
