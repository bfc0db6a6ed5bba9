"""Random transforms are a pure function of (seed, epoch, index), whichever loader is used."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import get_ident

import monai.transforms as mt
import numpy as np
import pytest
import torch
import torchio as tio
from monai.data import DataLoader as MonaiDataLoader
from monai.data import ThreadDataLoader, list_data_collate
from torch.utils.data import DataLoader

from spinezarr.errors import UsageError
from spinezarr.loaders.monai import MonaiPatches
from spinezarr.loaders.randomness import Randomness
from spinezarr.loaders.torchio import TorchioPatches

KEYS = ("image", "label")
N = 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

unseeded = mt.RandScaleIntensityd("image", 0.5, prob=1.0)


class Wrapped:
    """A user's transform, which MONAI does not recognize as random."""

    def __init__(self):
        self.inner = {"shift": mt.RandShiftIntensityd("image", 50.0, prob=1.0)}

    def __call__(self, sample):
        return self.inner["shift"](sample)

    def call(self, sample):
        return self.inner["shift"](sample)


def through(transform, sample):
    return transform(sample)


def out_of_sight(sample):
    return unseeded(sample)


def of_globals(sample):
    """Draw from each global generator."""
    drawn = torch.randn(3).sum() + np.random.normal() + random.gauss(0, 1)  # noqa: NPY002
    return sample | {"image": sample["image"] + drawn}


def noise():
    return mt.RandGaussianNoised("image", prob=1.0, std=30.0)


MONAI = {
    "one": noise(),
    "nested": mt.Compose([mt.Compose([noise()]), mt.RandFlipd(KEYS, prob=0.5, spatial_axis=1)]),
    "one of several": mt.OneOf([noise(), mt.RandShiftIntensityd("image", 50.0, prob=1.0)]),
    "lazy": mt.Compose(
        [mt.RandAffined(KEYS, prob=1.0, rotate_range=0.4, padding_mode="zeros"), noise()], lazy=True
    ),
    "several samples": mt.RandSpatialCropSamplesd(KEYS, (6, 6, 6), num_samples=2),
    "wrapped": Wrapped(),
    "method": Wrapped().call,
    "partial": partial(through, noise()),
    "out of sight": out_of_sight,
    "of globals": of_globals,
    "torchio's": mt.Lambdad("image", tio.RandomNoise(std=30.0)),
}


def monai_patches(store, transform, **options):
    options = {"n_samples": N, "foreground": 0.5, "seed": 4, **options}
    return MonaiPatches(store.patches((8, 10, 12), **options), transform)


def values(sample):
    """Return all numbers of a sample, or of several."""
    if isinstance(sample, list):
        return b"".join(map(values, sample))
    return b"".join(np.asarray(sample[key]).tobytes() for key in KEYS)


def torchio_patches(store, transform, **options):
    options = {"n_samples": N, "foreground": 0.5, "seed": 4, **options}
    return TorchioPatches(store.patches((8, 10, 12), **options), transform)


def subject_values(subject):
    return b"".join(subject[key].data.numpy().tobytes() for key in KEYS)


TORCHIO = {
    "several": tio.Compose(
        [tio.RandomAffine(degrees=20), tio.RandomNoise(std=30), tio.RandomFlip(axes=(0, 1, 2))]
    ),
    "one of several": tio.OneOf([tio.RandomNoise(std=30.0), tio.RandomGamma((-0.5, 0.5))]),
    "monai's": tio.Compose([tio.MonaiAdapter(mt.RandShiftIntensityd("image", 50.0, prob=1.0))]),
}


def as_is(items):
    return items


def loaded(dataset, *, method=None, loader=DataLoader, **options):
    """Return the samples of an epoch in the loader's order, by two a batch."""
    if method:
        options |= {"multiprocessing_context": method}
    found = loader(dataset, batch_size=2, collate_fn=as_is, **options)
    return [sample for batch in found for sample in batch]


# Reproducible samples


@pytest.mark.parametrize("name", MONAI)
def test_samples_depend_only_on_seed_epoch_and_index(store, name):
    dataset = monai_patches(store, MONAI[name])
    first = [values(dataset[i]) for i in range(N)]
    assert len(set(first)) == N
    for i in reversed(range(N)):
        np.random.seed(i)  # noqa: NPY002  as others may
        torch.manual_seed(i)
        random.seed(i)
        dataset.transform.set_random_state(seed=i)
        assert values(dataset[i]) == first[i]
    assert [values(sample) for sample in dataset.__getitems__([3, 1])] == [first[3], first[1]]
    dataset.set_epoch(1)
    assert not set(map(values, map(dataset.__getitem__, range(N)))) & set(first)
    dataset.set_epoch(0)
    assert values(dataset[2]) == first[2]
    again = monai_patches(store, MONAI[name])
    assert [values(again[i]) for i in range(N)] == first


@pytest.mark.parametrize("name", TORCHIO)
def test_subjects_depend_only_on_seed_epoch_and_index(store, name):
    dataset = torchio_patches(store, TORCHIO[name])
    first = [subject_values(dataset[i]) for i in range(N)]
    assert len(set(first)) == N
    for i in reversed(range(N)):
        torch.manual_seed(i)
        assert subject_values(dataset[i]) == first[i]
    dataset.set_epoch(1)
    assert not {subject_values(dataset[i]) for i in range(N)} & set(first)


def drawn(dataset, n=3):
    """Return the numbers that a transform draws for the first samples."""
    return [float(dataset[i]["drawn"]) for i in range(n)]


class Draw(mt.Randomizable, mt.Transform):
    def __call__(self, sample):
        return sample | {"drawn": self.R.random()}


def test_transforms_depend_on_the_seed_and_not_on_the_drawn_patches(store):
    found = {
        tuple(drawn(monai_patches(store, Draw(), seed=seed, scans=["liver_0"])))
        for seed in range(4)
    }
    assert len(found) == 4
    assert len({number for numbers in found for number in numbers}) == 12
    one, other = (monai_patches(store, Draw(), scans=[scan]) for scan in ("liver_0", "HN_P001"))
    assert drawn(one) == drawn(other)
    with pytest.raises(AssertionError):
        assert drawn(one) == drawn(monai_patches(store, Draw(), epoch=1))


def test_transforms_of_a_grid_differ_in_each_epoch(store):
    dataset = MonaiPatches(store.grid("liver_0", 16), Draw())
    first = drawn(dataset)
    dataset.set_epoch(1)
    assert not set(drawn(dataset)) & set(first)
    dataset.set_epoch(0)
    assert drawn(dataset) == first


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "loader": MonaiDataLoader},
        # With several workers, one would seed the global generators while another one works.
        {"num_workers": 1, "loader": ThreadDataLoader, "use_thread_workers": True},
        *(
            pytest.param(options, marks=pytest.mark.long)
            for options in (
                {"num_workers": 1},
                {"num_workers": 2, "persistent_workers": True},
                {"num_workers": 0, "loader": MonaiDataLoader},
                {"num_workers": 0, "loader": ThreadDataLoader},
            )
        ),
    ],
    ids=str,
)
def test_no_loader_changes_a_sample(store, options):
    transform = mt.Compose([noise(), MONAI["one of several"], Wrapped(), out_of_sight, of_globals])
    dataset = monai_patches(store, transform)
    subjects = torchio_patches(store, TORCHIO["several"])
    for epoch in range(2):
        dataset.set_epoch(epoch)
        subjects.set_epoch(epoch)
        expected = [values(dataset[i]) for i in range(N)]
        assert [values(sample) for sample in loaded(dataset, **options)] == expected
        expected = [subject_values(subjects[i]) for i in range(N)]
        assert [subject_values(found) for found in loaded(subjects, **options)] == expected


@pytest.mark.long
def test_spawned_workers_change_no_sample(store):
    dataset = monai_patches(store, mt.Compose([noise(), Wrapped(), out_of_sight, of_globals]))
    expected = [values(dataset[i]) for i in range(N)]
    assert [values(found) for found in loaded(dataset, num_workers=1, method="spawn")] == expected


def test_persistent_workers_follow_the_epoch(store):
    dataset = monai_patches(store, noise())
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=list_data_collate
    )
    found = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        found.append(b"".join(values(batch) for batch in loader))
    assert found[0] == found[2] != found[1]


def test_resuming_in_the_middle_continues_with_the_same_samples(store):
    dataset = monai_patches(store, noise())
    expected = [values(dataset[i]) for i in range(N)]
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    rest = loaded(again, sampler=range(3, N), num_workers=2)
    assert [values(sample) for sample in rest] == expected[3:]


def test_two_threads_read_the_same_samples(store):
    slow = mt.RandAffined(KEYS, prob=1.0, rotate_range=0.4, padding_mode="zeros")
    dataset = monai_patches(store, mt.Compose([slow, noise(), of_globals]), n_samples=8)
    subjects = torchio_patches(store, TORCHIO["several"], n_samples=8)
    expected = [values(dataset[i]) for i in range(8)]
    expected_subjects = [subject_values(subjects[i]) for i in range(8)]
    threads = set()

    def read(i):
        threads.add(get_ident())
        return values(dataset[i]), subject_values(subjects[i])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, [*range(8)] * 2))
    assert len(threads) > 1
    assert found == [*zip(expected, expected_subjects, strict=True)] * 2


def test_a_transform_set_later_is_seeded(store):
    dataset = monai_patches(store, noise())
    first = values(dataset[0])
    dataset.transform = mt.Compose([noise(), noise()])
    second = values(dataset[0])
    assert second == values(dataset[0]) != first


# Other generators are not disturbed


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_global_generators_keep_their_state(store):
    def draw(sample):
        of_globals({"image": 0})
        if isinstance(sample, dict) and not isinstance(sample, tio.Subject):
            out_of_sight({"image": torch.zeros(1, 2, 2, 2)})
        return sample

    def fail(sample):
        draw(sample)
        raise ZeroDivisionError

    before, shared = generators(), mt.Randomizable.R
    state = shared.get_state()[1].tolist()
    for make in (monai_patches, torchio_patches):
        make(store, draw)[0]
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            make(store, fail)[0]
        assert generators() == before
    assert mt.Randomizable.R is shared
    assert shared.get_state()[1].tolist() == state


def test_a_generator_given_by_the_user_is_not_replaced(store):
    mine = np.random.RandomState(5)
    state = mine.get_state()[1].tolist()
    monai_patches(store, noise().set_random_state(state=mine))[0]
    assert mine.get_state()[1].tolist() == state


def test_transforms_that_share_a_seed_draw_the_same_numbers():
    """A dictionary transform and the one it wraps get one seed in one call."""

    class Pair(mt.Randomizable):
        def __init__(self):
            self.inner = Draw()

        def set_random_state(self, seed=None, state=None):
            super().set_random_state(seed, state)
            self.inner.set_random_state(seed, state)
            return self

        def __call__(self, _sample):
            return self.R.random(), self.inner({})["drawn"]

    pair = Pair()
    both = mt.Compose([pair, Draw()])
    randomness = Randomness(both)
    with randomness.of_sample(0, 0, 0):
        mine, inner = pair({})
        assert mine == inner != both.transforms[1]({})["drawn"]


@pytest.mark.parametrize("kind", [MonaiPatches, TorchioPatches])
def test_a_partition_cannot_be_read_by_sample_number(store, kind):
    with pytest.raises(UsageError, match=f"{kind.__name__} gives whole epochs"):
        kind(store.patches(8).shard(0, 2))


def test_a_dataset_without_transform_draws_no_numbers(store, monkeypatch):
    monkeypatch.setattr(Randomness, "of_sample", None)
    for dataset in (monai_patches(store, None), torchio_patches(store, None)):
        dataset[0]
