"""Loaders of images that are stored as scaled integers, or hold NaN or infinite voxels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.geometry import AxisMap
from spinezarr.loaders.huggingface import load_splits
from spinezarr.loaders.monai import MonaiPatches
from spinezarr.loaders.nnunet import StoreDataset, link_store
from spinezarr.loaders.torch import PatchLoader
from spinezarr.loaders.torchio import TorchioPatches, scan_subjects
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import ScanTable
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for

SCALED = ["byte", "half", "word", "thin", "down"]
HOLES = ["holes", "sieve"]


@pytest.fixture
def store(odd):
    return spinezarr.open(odd.url)


def filled(values, fill):
    return np.where(np.isfinite(values), values, fill)


def with_splits(odd, **splits):
    """Open the store with scans in splits."""
    reader = StoreReader(odd.url)
    names = reader.table.scan.to_numpy().tolist()
    column = [next((s for s, scans in splits.items() if n in scans), "") for n in names]
    changed = reader.table.assign(split=("scan", np.array(column, object)))
    reader.columns = ScanTable.of(changed)
    return reader, Engine(fetcher_for(reader.objects))


@pytest.mark.parametrize("name", SCALED)
def test_whole_scans_of_torchio_hold_the_scaled_values(odd, store, name):
    (subject,) = scan_subjects(store, scans=[name])
    assert subject.image.data.dtype == torch.float64
    np.testing.assert_array_equal(subject.image.data[0].numpy().T, odd.image[name])


def test_whole_scans_of_torchio_refuse_keep_or_replace_nonfinite_voxels(odd, store):
    with pytest.raises(UsageError, match=r"NaN or infinite: holes \(\d+ voxels\), sieve"):
        scan_subjects(store)
    for nonfinite in ("keep", -1024):
        (subject,) = scan_subjects(store, scans=["holes"], nonfinite=nonfinite)
        values = odd.image["holes"]
        expected = values if nonfinite == "keep" else filled(values, nonfinite)
        np.testing.assert_array_equal(subject.image.data[0].numpy().T, expected)
        np.testing.assert_array_equal(subject.label.data[0].numpy().T, odd.label)


def test_patches_of_every_loader_hold_the_scaled_values(odd, store):
    stream = store.patches((12, 16, 20), scans=[*SCALED, *HOLES], n_samples=9, nonfinite=-1000)

    def expected(item):
        z, y, x = np.asarray(item["start_zyx"]).reshape(3).tolist()
        scan_id = item["scan_id"] if isinstance(item["scan_id"], str) else item["scan_id"][0]
        return filled(odd.image[scan_id], -1000)[z : z + 12, y : y + 16, x : x + 20]

    for item in PatchLoader(stream):
        np.testing.assert_array_equal(item["image"][0, 0], expected(item))
    for item in MonaiPatches(stream):
        np.testing.assert_array_equal(
            np.asarray(item["image"])[0].T, expected(item).astype(np.float32)
        )
    for item in TorchioPatches(stream):
        np.testing.assert_array_equal(item.image.data[0].numpy().T, expected(item))


def kij(values, odd, name):
    """Return a volume in the axis order (k, j, i) of its file."""
    reader = StoreReader(odd.url)
    axes = AxisMap.from_axcodes(reader.scan(name).attributes.image_source.orientation)
    return axes.from_zyx(values).transpose(2, 0, 1)


@pytest.mark.parametrize("config", ["2d", "3d"])
def test_records_hold_the_scaled_values(odd, config):
    reader, engine = with_splits(odd, train=["byte", "down", "word"])
    dataset = load_splits(reader, engine, config)["train"]
    for record in dataset:
        name = record["patient_id"]
        whole = kij(odd.image[name], odd, name).astype(np.float32)
        expected = whole if config == "3d" else whole[record["slice_index"]]
        assert record["image"].dtype == np.float32
        np.testing.assert_array_equal(record["image"], expected)


@pytest.mark.parametrize("config", ["2d", "3d"])
@pytest.mark.parametrize("nonfinite", ["keep", 3.5])
def test_records_refuse_keep_or_replace_nonfinite_voxels(odd, config, nonfinite):
    reader, engine = with_splits(odd, train=["holes"], test=["plain", "byte"])
    with pytest.raises(UsageError, match=r"NaN or infinite: holes \(\d+ voxels\)\. Give"):
        load_splits(reader, engine, config)
    (name,) = load_splits(reader, engine, config, split="test")
    assert name == "test"
    dataset = load_splits(reader, engine, config, nonfinite=nonfinite)["train"]
    whole = kij(odd.image["holes"], odd, "holes")
    if nonfinite != "keep":
        whole = filled(whole, nonfinite)
    for record in dataset:
        expected = whole if config == "3d" else whole[record["slice_index"]]
        np.testing.assert_array_equal(record["image"], expected.astype(np.float32))


@pytest.fixture(scope="module")
def planned(odd, tmp_path_factory):
    """Return the raw dataset of the store, and the files of nnU-Net's planning."""
    folder = tmp_path_factory.mktemp("nnunet")
    exported = Path(spinezarr.open(odd.url).export_nnunet(out=folder, name="odd").out)
    plans = {
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -1e9, "percentile_99_5": 1e9}
        },
        "configurations": {
            "3d_fullres": configuration_of("thick", force_separate_z=True),
            "3d_lowres": configuration_of("cubic", force_separate_z=False),
        },
    }
    preprocessed = folder / "preprocessed"
    preprocessed.mkdir()
    shutil.copy(exported / "dataset.json", preprocessed)
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    return exported, preprocessed


def configuration_of(name, **kwargs):
    order = {"order_z": 0, **kwargs}
    return {
        "data_identifier": name,
        "spacing": [2.0, 1.0, 0.8],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**order, "order": 3},
        "resampling_fn_seg_kwargs": {**order, "order": 1},
    }


def test_nnunet_cases_refuse_keep_or_replace_nonfinite_voxels(odd, planned):
    raw, preprocessed = planned
    with pytest.raises(UsageError, match=r"NaN or infinite: holes \(\d+ voxels\), sieve"):
        link_store(odd.url, raw, preprocessed)
    for folder in link_store(odd.url, raw, preprocessed, nonfinite="keep"):
        assert np.isnan(StoreDataset(str(folder))["holes"][0][:]).any()
    for folder in link_store(odd.url, raw, preprocessed, nonfinite=-1e4):
        dataset = StoreDataset(str(folder))
        image = dataset["holes"][0][:]
        assert np.isfinite(image).all()
        lowest = odd.image["holes"][np.isfinite(odd.image["holes"])].min()
        assert -1e4 <= image.min() < 1.5 * lowest
        for name in ("byte", "thin"):
            found = dataset[name][0][:]
            low, high = odd.image[name].min(), odd.image[name].max()
            assert low - 1e-3 <= found.min() < found.max() <= high + 1e-3
