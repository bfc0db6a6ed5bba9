import sys

import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism

from spinezarr.loaders.monai import MonaiPatches
from spinezarr.loaders.samples import _channel_first

KEYS = ("image", "label")
pytestmark = [
    # LoadImaged creates all of MONAI's readers, and some of them warn.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def files(ctspine1k_raw):
    """Return what MONAI itself loads of each scan, in the axis order of its files."""
    load = mt.Compose([mt.LoadImaged(KEYS, "NibabelReader"), mt.EnsureChannelFirstd(KEYS)])
    return {
        w.scan_id: load({"image": w.image_path, "label": w.label_path}) for w in ctspine1k_raw[1]
    }


def cut_like(volume, patch):
    """Cut the voxels out of a volume that lie at the positions of a patch."""
    offset = np.linalg.solve(volume.affine.numpy(), patch.affine.numpy())
    np.testing.assert_allclose(offset[:3, :3], np.eye(3), atol=1e-6)
    start = np.rint(offset[:3, 3]).astype(int)
    np.testing.assert_allclose(offset[:3, 3], start, atol=1e-4)
    assert (start >= 0).all()
    at = [slice(a, a + n) for a, n in zip(start, patch.shape[1:], strict=True)]
    return volume.as_tensor()[:, *at]


def assert_same(patch, volume):
    assert isinstance(patch, MetaTensor)
    expected = cut_like(volume, patch)
    np.testing.assert_allclose(patch.as_tensor().float(), expected.float(), atol=2e-3)


# Contents of samples


def test_samples_equal_what_monai_loads_of_the_files(store, files):
    turn = mt.Orientationd(KEYS, "RAS", labels=None)
    dataset = MonaiPatches(store.patches((16, 24, 20), n_samples=6, foreground=0.5))
    assert len(dataset) == 6
    for i in range(6):
        sample = dataset[i]
        assert sample["index"] == i
        assert sample["image"].shape == sample["label"].shape == (1, 20, 24, 16)
        assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.uint8)
        whole = turn(files[sample["scan_id"]])
        x, y, z = sample["start_zyx"].tolist()[::-1]
        for key in KEYS:
            np.testing.assert_array_equal(sample[key], cut_like(whole[key], sample[key]))
            expected = whole[key].as_tensor()[:, x : x + 20, y : y + 24, z : z + 16]
            np.testing.assert_array_equal(sample[key].as_tensor(), expected)


def test_the_stored_type_can_be_kept(store):
    stream = store.patches(8, n_samples=1, labels=False)
    kept, cast = MonaiPatches(stream, dtype=None)[0], MonaiPatches(stream)[0]
    assert kept["image"].dtype == torch.int16
    assert (kept["image"] == cast["image"]).all()
    assert "label" not in kept


def test_a_padded_patch_lies_around_its_volume(store):
    sample = MonaiPatches(store.patches((70, 70, 70), scans=["liver_0"]))[0]
    shape = np.array(store.table.shape_zyx.sel(scan="liver_0"))
    assert (sample["padding_zyx"].sum(1).numpy() == 70 - shape).all()
    before = sample["padding_zyx"][:, 0].numpy()
    origin = sample["image"].affine.numpy() @ [*before[::-1], 1]
    np.testing.assert_allclose(origin[:3], np.array(store.scan("liver_0").attrs["affine"])[:3, 3])


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SAR"])
def test_reorienting_a_patch_equals_reorienting_the_volume(store, files, axcodes):
    turn = mt.Orientationd(KEYS, axcodes, labels=None)
    dataset = MonaiPatches(store.patches((16, 24, 20), n_samples=3), turn)
    for sample in (dataset[i] for i in range(3)):
        whole = turn(files[sample["scan_id"]])
        for key in KEYS:
            assert_same(sample[key], whole[key])


def test_resampling_a_patch_equals_resampling_the_volume(store, files):
    """A step is 1.5 voxels, so the compared patches start at multiples of three voxels."""
    for scan_id in ("liver_0", "HN_P001"):
        spacing = np.linalg.norm(np.array(store.scan(scan_id).attrs["affine"])[:3, :3], axis=0)
        resample = mt.Compose(
            [
                mt.Orientationd(KEYS, "RAS", labels=None),
                mt.Spacingd(KEYS, tuple(1.5 * spacing), mode=("bilinear", "nearest")),
            ]
        )
        whole = resample(files[scan_id])
        dataset = MonaiPatches(
            store.patches((13, 22, 19), scans=[scan_id], n_samples=200), resample
        )
        stream = dataset.stream
        starts = [stream.request(i).box.start_zyx for i in range(stream.n_samples)]
        aligned = [i for i, start in enumerate(starts) if not np.any(np.array(start) % 3)]
        assert aligned
        for sample in (dataset[i] for i in aligned[:3]):
            assert sample["image"].shape == (1, 13, 15, 9)
            assert_same(sample["image"], whole["image"])


def test_a_flip_keeps_the_position_of_each_voxel(store):
    stream = store.patches((10, 12, 14), n_samples=1)
    flip = mt.RandFlipd(KEYS, prob=1.0, spatial_axis=0)
    plain, flipped = MonaiPatches(stream)[0], MonaiPatches(stream, flip)[0]
    for key in KEYS:
        back = mt.Orientation("RAS", labels=None)(flipped[key])
        np.testing.assert_array_equal(back, plain[key])
        np.testing.assert_allclose(back.affine, plain[key].affine)
        assert (flipped[key].as_tensor() == plain[key].as_tensor().flip(1)).all()


def test_random_transforms_move_image_and_mask_together(store):
    """If both arrays are the mask, they stay equal under rotation and deformation."""
    stream = store.patches(24, n_samples=2, foreground=1.0)
    deform = mt.RandAffined(
        KEYS, prob=1.0, rotate_range=0.5, scale_range=0.2, mode="nearest", padding_mode="zeros"
    ).set_random_state(3)
    twice = mt.Compose([lambda sample: sample | {"image": sample["label"].clone()}, deform])
    for sample in (MonaiPatches(stream, twice)[i] for i in range(2)):
        assert sample["label"].any()
        assert (sample["image"] == sample["label"]).all()
        np.testing.assert_allclose(sample["image"].affine, sample["label"].affine)


def test_a_saved_patch_keeps_its_position(store, files, tmp_path):
    stream = store.patches((12, 16, 20), n_samples=6, batch_size=6)
    form = {"separate_folder": False, "print_log": False, "output_postfix": ""}
    save = mt.SaveImaged(KEYS, output_dir=tmp_path, **form)
    save_back = mt.SaveImaged(KEYS, output_dir=tmp_path / "back", resample=True, **form)
    resample = mt.Compose([mt.Spacingd(KEYS, (1.5, 1.5, 1.5), mode="nearest"), save_back])
    (batch,) = stream
    # 1.3.6.1.4.1.9328.50.4.0001 is one of them.
    assert any("." in scan_id for scan_id in batch.scan_id)
    for i in range(6):
        MonaiPatches(stream, save)[i]
        saved = nib.load(tmp_path / f"{batch.scan_id[i]}_{i}.nii.gz")
        np.testing.assert_array_equal(saved.get_fdata(), batch.label[i].transpose(2, 1, 0))
        np.testing.assert_allclose(saved.affine, batch.affine[i], atol=1e-4)
    # Resample back to the patch's own grid.
    MonaiPatches(stream, resample)[0]
    again = nib.load(tmp_path / "back" / f"{batch.scan_id[0]}_0.nii.gz")
    assert again.shape == (20, 16, 12)
    np.testing.assert_allclose(again.affine, batch.affine[0], atol=1e-4)


def test_slices_keep_a_third_axis_until_it_is_squeezed(store):
    stream = store.slices("sagittal", size=(20, 24), n_samples=2, batch_size=2)
    (batch,) = stream
    plain = MonaiPatches(stream)[1]
    assert plain["image"].shape == (1, 1, 24, 20)
    np.testing.assert_array_equal(plain["image"][0, 0].T, batch.image[1])
    np.testing.assert_allclose(plain["image"].affine, batch.affine[1])
    flat = MonaiPatches(stream, mt.SqueezeDimd(KEYS, dim=1))[1]
    assert flat["image"].shape == (1, 24, 20)


def test_neighboring_slices_become_channels_of_samples():
    slices = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    tensor = _channel_first(slices, ("slice", "z", "x"))
    assert tensor.shape == (3, 5, 1, 4)
    np.testing.assert_array_equal(tensor[:, :, 0], slices.transpose(0, 2, 1))


@pytest.mark.parametrize("index", [3, -4])
def test_iterating_a_dataset_by_index_ends(store, index):
    dataset = MonaiPatches(store.patches(8, n_samples=3))
    assert dataset[-1]["index"] == 2
    with pytest.raises(IndexError):
        dataset[index]


# Loading


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_monai_loader_returns_the_batches_of_the_stream(store, num_workers):
    stream = store.patches((12, 16, 20), batch_size=4, n_samples=10, foreground=0.5)
    dataset = MonaiPatches(stream)
    loader = DataLoader(
        dataset, batch_size=4, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for batch, expected in zip(loader, stream.at_epoch(epoch), strict=True):
            assert isinstance(batch["image"], MetaTensor)
            found = batch["image"].as_tensor().numpy().transpose(0, 4, 3, 2, 1)[..., 0]
            np.testing.assert_array_equal(found, expected.image)
            label = batch["label"].as_tensor().numpy().transpose(0, 4, 3, 2, 1)[..., 0]
            np.testing.assert_array_equal(label, expected.label)
            np.testing.assert_allclose(batch["image"].affine, expected.affine)
            assert batch["scan_id"] == list(expected.scan_id)
            assert batch["vertebra"] == [name or "" for name in expected.vertebra]
            np.testing.assert_array_equal(batch["start_zyx"], expected.start_zyx)
            np.testing.assert_array_equal(batch["index"], expected.index)


def test_several_crops_per_patch_are_collated(store):
    crop = mt.RandSpatialCropSamplesd(KEYS, (8, 8, 8), num_samples=3, random_size=False)
    loader = DataLoader(MonaiPatches(store.patches(16, n_samples=2), crop), batch_size=2)
    (batch,) = loader
    assert batch["image"].shape == (6, 1, 8, 8, 8)


def test_a_grid_covers_a_scan_for_inference(store):
    grid = store.grid("liver_0", (24, 32, 20), labels=False)
    merger = grid.merger("average")
    for batch in DataLoader(MonaiPatches(grid), batch_size=3):
        predictions = batch["image"] * 2
        merger.add(batch["start_zyx"], predictions.permute(0, 1, 4, 3, 2))
    np.testing.assert_array_equal(merger.merge()[0], 2.0 * store.scan("liver_0").image)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_chunk_is_an_error_of_monai_datasets(damaged, refused, num_workers):
    dataset = MonaiPatches(damaged.patches(64, scans=["liver_0"]))
    with refused:
        next(iter(DataLoader(dataset, num_workers=num_workers)))


def test_the_error_without_monai_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "spinezarr.loaders.monai")
    monkeypatch.setitem(sys.modules, "monai.data", None)
    with pytest.raises(ImportError, match=r"pip install 'spinezarr\[monai\]'"):
        import spinezarr.loaders.monai  # noqa: F401, PLC0415


# Training


@pytest.mark.long
def test_a_network_learns_bone_with_monai(store):
    set_determinism(0)
    transform = mt.Compose(
        [
            mt.ScaleIntensityRanged("image", -1000, 1000, -1, 1, clip=True),
            mt.RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            mt.RandRotated(KEYS, prob=0.3, range_z=0.2, mode=("bilinear", "nearest")),
            mt.AsDiscreted("label", threshold=1),
        ]
    ).set_random_state(0)
    dataset = MonaiPatches(store.patches(16, n_samples=12, foreground=1.0), transform)
    net = UNet(3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    means = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        losses = []
        for batch in DataLoader(dataset, batch_size=4):
            loss = loss_of(net(batch["image"].as_tensor()), batch["label"].as_tensor())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(np.mean(losses))
    assert means[-1] < 0.7 * means[0]
