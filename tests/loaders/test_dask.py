"""Epochs as dask arrays, and batches read by other processes and by a cluster."""

import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from dask.callbacks import Callback
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError, UnknownScanError, UsageError
from spinezarr.stream.epoch import executor as executor_module
from spinezarr.stream.epoch.executor import PickledOnce
from spinezarr.stream.epoch.lazy_epoch import default_chunk

AXES = ["z", "y", "x"]


@pytest.fixture(scope="module")
def client():
    """Connect to a cluster of two worker processes."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
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


def expected_epoch(stream):
    """Return the arrays of an epoch as iterating gives them."""
    batches = list(stream)
    arrays = {
        name: np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("image", "label", "start_zyx")
        if getattr(batches[0], name) is not None
    }
    arrays["scan_id"] = np.array([scan_id for batch in batches for scan_id in batch.scan_id])
    arrays["vertebra"] = np.array([name or "" for batch in batches for name in batch.vertebra])
    return arrays


def assert_is_epoch(epoch, stream):
    expected = expected_epoch(stream)
    assert set(epoch.data_vars) | set(epoch.coords) == {*expected, "sample", "axis"}
    for name, values in expected.items():
        np.testing.assert_array_equal(epoch[name], values)
        assert epoch[name].dtype.kind == values.dtype.kind
        assert values.dtype.kind == "U" or epoch[name].dtype == values.dtype


class Tasks(Callback):
    """Records the tasks of the graphs that dask computes, without aliases."""

    def __init__(self):
        super().__init__()
        self.names = []

    def _start(self, graph):
        self.names += [str(key) for key, task in graph.items() if type(task).__name__ == "Task"]


# As arrays


@pytest.mark.usefixtures("scheduler")
def test_an_epoch_computes_to_its_batches(stream):
    epoch = stream.to_dask()
    assert epoch.image.chunks == ((3, 3, 2), (12,), (16,), (20,))
    assert epoch.image.dims == ("sample", "z", "y", "x")
    assert set(epoch.data_vars) == {"image", "label"}
    assert_is_epoch(epoch.compute(), stream)


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_workers_may_outnumber_chunks(store, n_samples):
    stream = store.patches(8, batch_size=4, n_samples=n_samples, seed=3)
    assert_is_epoch(stream.to_dask().compute(), stream)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_samples=st.integers(1, 24),
    batch_size=st.integers(1, 5),
    batches_per_chunk=st.none() | st.integers(1, 6),
    options=st.sampled_from(
        [
            {},
            {"foreground": 0.5},
            {"labels": False},
            {"spacing_zyx_mm": 5.0},
            {"shuffle": "window", "foreground": 1.0},
        ]
    ),
)
def test_any_epoch_is_that_of_its_stream(store, n_samples, batch_size, batches_per_chunk, options):
    stream = store.patches((8, 60, 20), n_samples=n_samples, batch_size=batch_size, **options)
    epoch = stream.to_dask(batches_per_chunk=batches_per_chunk)
    if batches_per_chunk is not None:
        whole, rest = divmod(n_samples, batches_per_chunk * batch_size)
        sizes = [batches_per_chunk * batch_size] * whole + [rest] * (rest > 0)
        assert epoch.chunks["sample"] == tuple(sizes)
    with dask.config.set(scheduler="threads", num_workers=2):
        assert_is_epoch(epoch.compute(), stream)
        if stream.batch_reader.with_label:
            np.testing.assert_array_equal(epoch.label, expected_epoch(stream)["label"])
        assert epoch.image.isel(sample=[]).compute().shape == (0, 8, 60, 20)


def test_an_epoch_computes_on_a_cluster(stream, client):
    assert_is_epoch(client.compute(stream.to_dask()).result(), stream)
    expected = expected_epoch(stream)
    for name in ("image", "label"):
        largest = client.compute(stream.to_dask()[name].max(AXES)).result()
        np.testing.assert_array_equal(largest, expected[name].max((1, 2, 3)))


def test_image_and_label_are_computed_together(stream):
    epoch, expected = stream.to_dask(), expected_epoch(stream)
    bone = epoch.image.where(epoch.label > 0, -1024).max(AXES)
    np.testing.assert_array_equal(
        bone, np.where(expected["label"] > 0, expected["image"], -1024).max((1, 2, 3))
    )


def test_slices_with_neighbors_have_labels_of_the_middle_slice(store):
    slices = store.slices("coronal", neighbors=1, batch_size=2, n_samples=5)
    epoch = slices.to_dask()
    assert epoch.image.dims == ("sample", "slice", "z", "x")
    assert epoch.label.dims == ("sample", "z", "x")
    assert_is_epoch(epoch.compute(), slices)


# Chunks and tasks


@given(
    n_samples=st.integers(1, 100_000),
    batch_size=st.integers(1, 300),
    patch_bytes=st.integers(1, 1 << 30),
)
def test_chunks_are_large_and_enough(n_samples, batch_size, patch_bytes):
    def fits(n_batches):
        chunk = n_batches * batch_size
        return chunk * patch_bytes <= 64 << 20 and chunk <= 256 and n_samples >= 16 * chunk

    n_batches = default_chunk(n_samples, batch_size, patch_bytes)
    assert n_batches == 1 or fits(n_batches)
    assert not fits(n_batches + 1)


def test_a_chunk_holds_a_window(store):
    stream = store.patches(8, shuffle="window", batch_size=2, n_samples=999)
    assert stream.batches_per_group > 1
    assert stream.to_dask().chunks["sample"][0] == 2 * stream.batches_per_group


@pytest.mark.parametrize("batches_per_chunk", [0, -1])
def test_a_chunk_has_at_least_one_batch(stream, batches_per_chunk):
    with pytest.raises(UsageError, match=f"batches_per_chunk {batches_per_chunk}: must be at"):
        stream.to_dask(batches_per_chunk=batches_per_chunk)


def test_a_reduction_of_images_is_one_task_for_each_chunk(stream):
    with Tasks() as tasks:
        stream.to_dask().image.data.max((1, 2, 3)).compute(scheduler="synchronous")
    assert len(tasks.names) == 3 + 1  # the last one joins the results


def test_each_sample_is_drawn_once_for_all_arrays(stream):
    with Tasks() as tasks:
        stream.to_dask().max(AXES).compute(scheduler="synchronous")
    assert sum("draw-" in name for name in tasks.names) == 3
    n_arrays = 5
    assert len(tasks.names) == 3 + n_arrays * (3 + 1)


def test_labels_are_read_without_images(damaged, refused):
    stream = damaged.patches(64, scans=["liver_0"], n_samples=2)
    epoch = stream.to_dask()  # reads nothing
    assert epoch.label.to_numpy().any()
    with refused:
        epoch.image.compute()
    with refused:
        xr.where(epoch.label > 0, epoch.image, 0).compute()


def test_images_are_read_without_labels(store, ctspine1k_url, tmp_path):
    copied = shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr")
    for shard in (copied / "scans/liver_0/label/c").rglob("0"):
        if shard.is_file():
            shard.unlink()
    options = {"scans": ["liver_0"], "n_samples": 2}
    epoch = spinezarr.open(copied).patches(64, **options).to_dask()
    image = np.concatenate([batch.image for batch in store.patches(64, **options)])
    np.testing.assert_array_equal(epoch.image, image)
    with pytest.raises(CorruptStoreError, match="scan 'liver_0', label chunk"):
        epoch.label.compute()


def test_the_same_arrays_have_the_same_dask_names(stream):
    names = [stream.to_dask(batches_per_chunk=n).image.data.name for n in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_what_travels_with_each_task_is_small(store):
    stream = store.patches(8, foreground=0.5)
    assert len(pickle.dumps(PickledOnce(stream))) < len(pickle.dumps(stream)) / 2


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
    stream = damaged.patches(8, n_samples=20)
    epoch = stream.to_dask()
    expected = [stream.request(i).box.start_zyx for i in range(20)]
    np.testing.assert_array_equal(epoch.start_zyx, expected)
    assert set(epoch.scan_id.to_numpy()) > {"liver_0"}


@pytest.mark.usefixtures("scheduler")
def test_computing_a_damaged_chunk_is_an_error(damaged, refused):
    epoch = damaged.patches(64, scans=["liver_0"], n_samples=2).to_dask()
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
