import sys

import numpy as np
import pytest
import torch
import torchio as tio

from spinezarr.errors import UnknownScanError
from spinezarr.loaders.torchio import TorchioPatches, scan_subjects
from spinezarr.store.reader import StoreReader

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
)


@pytest.fixture(scope="module")
def files(ctspine1k_raw):
    """Return what TorchIO itself reads of each scan, reoriented to RAS+."""
    return {
        written.scan_id: tio.ToCanonical()(
            tio.Subject(
                image=tio.ScalarImage(written.image_path), label=tio.LabelMap(written.label_path)
            )
        )
        for written in ctspine1k_raw[1]
    }


# Contents of subjects


def test_subjects_equal_what_torchio_reads_of_the_files(store, files):
    dataset = TorchioPatches(store.patches((16, 24, 20), n_samples=6, foreground=0.5))
    assert isinstance(dataset, tio.SubjectsDataset)
    assert len(dataset) == 6
    for i, subject in enumerate(dataset):
        assert subject.index == i
        subject.check_consistent_space()
        assert subject.shape == (1, 20, 24, 16)
        x, y, z = subject.start_zyx.tolist()[::-1]
        expected = files[subject.scan_id][x : x + 20, y : y + 24, z : z + 16]
        for name in ("image", "label"):
            assert type(subject[name]) is type(expected[name])
            np.testing.assert_array_equal(subject[name].data, expected[name].data)
            np.testing.assert_allclose(subject[name].affine, expected[name].affine, atol=1e-4)
        assert subject.image.data.dtype == torch.int16
        assert subject.label.data.dtype == torch.uint8


def test_subjects_without_labels_hold_only_images(store):
    subject = TorchioPatches(store.patches(8, labels=False))[0]
    assert subject.get_images_names() == ["image"]


def test_subjects_of_slices_are_two_dimensional(store):
    subject = TorchioPatches(store.slices("axial", size=(20, 24)))[0]
    assert subject.is_2d()
    assert subject.spatial_shape == (24, 20, 1)


def test_reorienting_a_patch_keeps_its_position(store):
    stream = store.patches((16, 24, 20), n_samples=1)
    plain = TorchioPatches(stream)[0]
    turned = TorchioPatches(stream, tio.ToOrientation("LPS"))[0]
    assert turned.image.orientation_str == "LPS"
    again = tio.ToCanonical()(turned)
    for name in ("image", "label"):
        np.testing.assert_array_equal(again[name].data, plain[name].data)
        np.testing.assert_allclose(again[name].affine, plain[name].affine, atol=1e-6)


def test_random_transforms_move_image_and_mask_together(store):
    def as_both(subject):
        subject.image.set_data(subject.label.data.clone())
        return subject

    move = tio.RandomAffine(
        scales=0.2, degrees=20, image_interpolation="nearest", default_pad_value=0
    )
    transform = tio.Compose([as_both, tio.RandomFlip(axes=("LR",), flip_probability=1), move])
    torch.manual_seed(1)
    stream = store.patches(24, n_samples=2, foreground=1.0)
    dataset, plain = TorchioPatches(stream, transform), TorchioPatches(stream)
    for i in range(2):
        subject = dataset[i]
        assert [t.name for t in subject.get_applied_transforms()] == ["Flip", "Affine"]
        assert subject.label.data.any()
        assert (subject.image.data == subject.label.data).all()
        assert (subject.label.data != plain[i].label.data).any()


def test_the_transform_can_be_changed(store):
    dataset = TorchioPatches(store.patches(8, n_samples=2), tio.RescaleIntensity((0, 1)))
    assert dataset[0].image.data.max() == 1
    (first, _) = dataset.dry_iter()
    assert first.image.data.max() > 1
    dataset.set_transform(None)
    np.testing.assert_array_equal(dataset[0].image.data, first.image.data)
    with pytest.raises(IndexError):
        dataset[2]


# Loading


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_torchio_loader_returns_the_batches_of_the_stream(store, num_workers):
    stream = store.patches((12, 16, 20), batch_size=4, n_samples=10, foreground=0.5)
    dataset = TorchioPatches(stream)
    loader = tio.SubjectsLoader(
        dataset, batch_size=4, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for batch, expected in zip(loader, stream.at_epoch(epoch), strict=True):
            for name in ("image", "label"):
                found = batch[name][tio.DATA].numpy().transpose(0, 4, 3, 2, 1)[..., 0]
                np.testing.assert_array_equal(found, getattr(expected, name))
                np.testing.assert_allclose(batch[name][tio.AFFINE], expected.affine)
            assert batch["scan_id"] == list(expected.scan_id)
            assert batch["vertebra"] == [name or "" for name in expected.vertebra]
            np.testing.assert_array_equal(batch["start_zyx"], expected.start_zyx)


def test_batches_can_be_split_into_subjects(store):
    dataset = TorchioPatches(store.patches(8, n_samples=2))
    (batch,) = tio.SubjectsLoader(dataset, batch_size=2)
    again = tio.SubjectsDataset.from_batch(batch)
    np.testing.assert_array_equal(again[1].label.data, dataset[1].label.data)
    np.testing.assert_allclose(again[1].image.affine, dataset[1].image.affine)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_chunk_is_an_error_of_torchio_datasets(damaged, refused, num_workers):
    dataset = TorchioPatches(damaged.patches(64, scans=["liver_0"]))
    with refused:
        next(iter(tio.SubjectsLoader(dataset, num_workers=num_workers)))


def test_the_error_without_torchio_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "spinezarr.loaders.torchio")
    monkeypatch.setitem(sys.modules, "torchio", None)
    with pytest.raises(ImportError, match=r"pip install 'spinezarr\[torchio\]'"):
        import spinezarr.loaders.torchio  # noqa: F401, PLC0415


# Whole scans


def test_whole_scans_are_read_only_when_requested(store, files):
    subjects = scan_subjects(store)
    assert {subject.scan_id for subject in subjects} == set(files)
    assert not any(image._loaded for s in subjects for image in s.get_images(intensity_only=False))
    dataset = tio.SubjectsDataset(subjects, transform=tio.ToCanonical())
    for subject in dataset:
        expected = files[subject.scan_id]
        for name in ("image", "label"):
            np.testing.assert_array_equal(subject[name].data, expected[name].data)
            np.testing.assert_allclose(subject[name].affine, expected[name].affine, atol=1e-4)


def test_whole_scans_can_be_selected(store):
    assert {s.scan_id for s in scan_subjects(store, split="test", labels=False)} == set(
        store.table.scan[store.table.split == "test"].to_numpy()
    )
    (subject,) = scan_subjects(store, scans=["liver_0"], labels=False)
    assert subject.get_images_names() == ["image"]
    with pytest.raises(UnknownScanError):
        scan_subjects(store, scans=["absent"])


def test_copies_of_a_subject_open_the_store_only_once(store, monkeypatch):
    opened = []
    monkeypatch.setattr(StoreReader, "__init__", lambda *given: opened.append(given))
    dataset = tio.SubjectsDataset(scan_subjects(store))
    assert dataset[0].image.data.any()
    assert not opened


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_torchio_queue_cuts_patches_out_of_scans(store, num_workers):
    queue = tio.Queue(
        tio.SubjectsDataset(scan_subjects(store, split="train")),
        max_length=6,
        samples_per_volume=2,
        sampler=tio.LabelSampler((8, 8, 8), "label"),
        num_workers=num_workers,
    )
    batches = list(tio.SubjectsLoader(queue, batch_size=3))
    assert [batch["image"][tio.DATA].shape for batch in batches] == [(3, 1, 8, 8, 8)] * 2
    assert all(batch["label"][tio.DATA].any() for batch in batches)


def test_a_damaged_whole_scan_is_an_error(damaged, refused):
    (subject,) = scan_subjects(damaged, scans=["liver_0"])
    assert subject.label.data.any()
    with refused:
        subject.load()


# Training


@pytest.mark.long
def test_a_network_learns_bone_with_torchio(store):
    torch.manual_seed(0)
    transform = tio.Compose(
        [
            tio.Clamp(-1000, 1000),
            tio.RescaleIntensity((-1, 1), in_min_max=(-1000, 1000)),
            tio.RandomFlip(axes=("LR",)),
            tio.RandomAffine(scales=0.1, degrees=5),
        ]
    )
    dataset = TorchioPatches(store.patches(16, n_samples=12, foreground=1.0), transform)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 1, 3, padding=1)
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    means = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        losses = []
        for batch in tio.SubjectsLoader(dataset, batch_size=4):
            bone = (batch["label"][tio.DATA] > 0).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(batch["image"][tio.DATA].float()), bone
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(np.mean(losses))
    assert means[-1] < 0.7 * means[0]
