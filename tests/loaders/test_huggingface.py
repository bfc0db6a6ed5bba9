import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.loaders.huggingface import load_splits
from spinezarr.recipe import Recipe
from spinezarr.store.folder import StoreFolder
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import ScanTable
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import Fetcher, LocalFetcher
from spinezarr.testing import (
    CTSPINE1K_SCANS,
    DTYPES,
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    split_text,
    write_ctspine1k,
    write_metaimage,
    write_nifti,
    write_totalsegmentator,
)

SECTIONS = {"train": "trainset:", "validation": "test_public:", "test": "test_private:"}
AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -70.7], [0, 0, 0, 1]])


# The model: the steps of CTSpine1K.py on the raw files


def listed(raw, split):
    lines = (raw / "metadata/data_split.txt").read_text().splitlines()
    start = lines.index(SECTIONS[split]) + 1
    names = []
    for line in lines[start:]:
        if line.endswith(":"):
            break
        if line:
            names.append(line)
    return names


def turned(path):
    return np.transpose(nib.load(path).get_fdata(), (2, 0, 1))


def script(raw, name, split):
    """Yield (key, record) as ``_generate_examples`` does."""
    lookup = {path.name: path for path in (raw / "raw_data/volumes").rglob("*.nii.gz")}
    for index, file in enumerate(listed(raw, split)):
        path = str(lookup[file])
        label_path = path.replace("volumes", "labels").replace(".nii.gz", "_seg.nii.gz")
        volume, segmentation = turned(path), turned(label_path).astype(np.uint32)
        assert volume.shape[0] == segmentation.shape[0]
        patient = file.removesuffix(".nii.gz")
        facts = {"patient_id": patient, "index": index}
        with np.errstate(over="ignore"):
            image = volume.astype(np.float32)
        if name == "3d":
            arrays = {"image": image, "segmentation": segmentation.astype(np.int32)}
            yield patient, {**arrays, **facts}
        else:
            for k in range(len(volume)):
                arrays = {"image": image[k], "segmentation": segmentation[k].astype(np.int32)}
                yield f"{patient}_{k}", {**arrays, **facts, "slice_index": k}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            assert found[name].shape == value.shape
            assert found[name].tobytes() == value.tobytes()
        else:
            assert type(found[name]) is type(value)
            assert found[name] == value


FORMS = {
    "1.3.6.1.4.1.9328.50.4.0001": (NiftiForm("LPS"), NiftiForm("LPS", "float64")),
    "liver_0": (NiftiForm("RAS", slope=1.0, inter=-1024.0), NiftiForm("RAS", "uint8")),
    "HN_P001": (NiftiForm("PIR", "float64"), NiftiForm("PIR", "int16")),
    "CTC-1018399231": (NiftiForm("LPI", "int32"), NiftiForm("LPI", "uint8")),
    "volume-covid19-A-0377_ct": (NiftiForm("SAL", "float32"), NiftiForm("SAL", "uint8")),
    "1.3.6.1.4.1.9328.50.4.0505": (
        NiftiForm("IRP", slope=0.5, inter=-0.25),
        NiftiForm("IRP", "int32", big_endian=True),
    ),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Write the Hugging Face layout with phantoms of several orientations, and unsorted lists."""
    folder = tmp_path_factory.mktemp("hf") / "CTSpine1K"
    scans = [
        replace(plan, image_form=FORMS[plan.scan_id][0], label_form=FORMS[plan.scan_id][1])
        for plan in CTSPINE1K_SCANS
    ]
    write_ctspine1k(folder, "huggingface", scans, scale=0.25)
    # As in the authors' list, the order is not that of the names.
    names = {"train": ["liver_0", "HN_P001", "1.3.6.1.4.1.9328.50.4.0001"]}
    names["validation"] = ["volume-covid19-A-0377_ct", "CTC-1018399231"]
    names["test"] = ["1.3.6.1.4.1.9328.50.4.0505"]
    (folder / "metadata/data_split.txt").write_bytes(split_text(names).encode())
    return folder


def ingested(recipe, raw, url):
    report = ingest(recipe, discover(recipe, str(raw)), str(url))
    assert not report.failed, report.failed
    return str(url)


@pytest.fixture(scope="module")
def url(raw, tmp_path_factory):
    """Return a store of that folder."""
    out = tmp_path_factory.mktemp("hf-store") / "ctspine1k.zarr"
    return ingested(Recipe.load("ctspine1k"), raw, out)


# The records


@pytest.mark.parametrize("name", ["2d", "3d"])
@pytest.mark.parametrize("split", SECTIONS)
def test_records_equal_those_of_the_script_bit_for_bit(raw, url, name, split):
    dataset = spinezarr.load_dataset(url, name, split=split)
    expected = [record for _, record in script(raw, name, split)]
    assert len(dataset) == dataset.num_rows == len(expected)
    count = 0
    for found, wanted in zip(dataset, expected, strict=True):
        assert_same(found, wanted)
        count += 1
    assert count
    # In random order each record is read by itself, without cached chunks.
    fresh = spinezarr.load_dataset(url, name, split=split)
    for number in np.random.default_rng(5).permutation(len(expected)):
        assert_same(fresh[number], expected[number])


def test_keys_equal_those_of_the_script(raw, url):
    for name in ("2d", "3d"):
        for split in SECTIONS:
            keys = [key for key, _ in script(raw, name, split)]
            dataset = spinezarr.load_dataset(url, name, split=split)
            patients = dataset["patient_id"]
            slices = dataset["slice_index"] if name == "2d" else None
            made = (
                patients
                if slices is None
                else [f"{patient}_{k}" for patient, k in zip(patients, slices, strict=True)]
            )
            assert made == keys


def test_all_splits_are_a_dict_in_the_order_of_the_script(url):
    splits = spinezarr.load_dataset(url, "3d")
    assert list(splits) == ["train", "validation", "test"]
    assert [len(split) for split in splits.values()] == [3, 2, 1]
    assert {index for split in splits.values() for index in split["index"][:1]} == {0}


def scaled(rng, form, shape):
    dtype = np.dtype(form.dtype)
    if dtype.kind == "f":
        return rng.normal(0, 500, shape).astype(dtype)
    span = form.slope or 1
    low, high = max(np.iinfo(dtype).min, -1024), min(np.iinfo(dtype).max, 3071)
    return (rng.integers(low, high + 1, shape) * span + (form.inter or 0)).astype("f8")


def write_pairs(raw, pairs):
    """Write liver_N in the Hugging Face layout, from tuples (image, form, label, form)."""
    names = [f"liver_{i}" for i in range(len(pairs))]
    for name, (image, image_form, label, label_form) in zip(names, pairs, strict=True):
        write_nifti(raw / f"raw_data/volumes/MSD-T10/{name}.nii.gz", image, AFFINE, image_form)
        path = raw / f"raw_data/labels/MSD-T10/{name}_seg.nii.gz"
        write_nifti(path, label, AFFINE, label_form)
    (raw / "metadata").mkdir()
    (raw / "metadata/data_split.txt").write_bytes(split_text({"train": names}).encode())


def assert_equals_script(raw, url):
    for name in ("2d", "3d"):
        dataset = spinezarr.load_dataset(url, name, split="train")
        for found, (_, wanted) in zip(dataset, script(raw, name, "train"), strict=True):
            assert_same(found, wanted)


def test_every_orientation_has_the_axes_of_its_file(tmp_path):
    rng, pairs = np.random.default_rng(3), []
    for i, axes in enumerate(all_axcodes()):
        form = NiftiForm(axes, DTYPES[i % len(DTYPES)], oblique_deg=0.0 if i % 2 else 11.0)
        mask = NiftiForm(axes, DTYPES[-i % len(DTYPES)], form.oblique_deg)
        # The volume is longer than a chunk along each axis in turn.
        shape = [(67, 5, 6), (7, 53, 6), (5, 6, 51)][i % 3]
        label = rng.integers(0, 26, shape).astype(np.uint8)
        pairs.append((scaled(rng, form, shape), form, label, mask))
    write_pairs(tmp_path / "raw", pairs)
    url = ingested(Recipe.load("ctspine1k"), tmp_path / "raw", tmp_path / "a.zarr")
    assert_equals_script(tmp_path / "raw", url)


forms = st.builds(
    NiftiForm,
    orientation=st.sampled_from(all_axcodes()),
    dtype=st.sampled_from(DTYPES),
    big_endian=st.booleans(),
    slope=st.sampled_from([None, None, 1.0, 2.0, 0.1, -0.37]),
    inter=st.none(),
)


@given(forms, forms, st.sampled_from([None, 0.0, -1024.0, 3.3]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_values_of_any_file_form_equal_those_of_the_script(
    tmp_path_factory, image, label, inter, seed
):
    folder, rng = tmp_path_factory.mktemp("forms"), np.random.default_rng(seed)
    image = replace(image, inter=inter if image.slope else None)
    # The mask may have other axes, if both files have equally many slices.
    label = replace(label, slope=None)
    mask = rng.integers(0, 26, (9, 9, 9)).astype(np.uint8)
    pair = (scaled(rng, image, mask.shape), image, mask, label)
    write_pairs(folder / "raw", [pair])
    url = ingested(Recipe.load("ctspine1k"), folder / "raw", folder / "a.zarr")
    assert_equals_script(folder / "raw", url)


def test_values_beyond_float32_are_rounded_like_get_fdata(tmp_path):
    # 2**53 + 2**29 + 1 as float64 is halfway between two float32; as int64 it lies above.
    values = np.full((4, 4, 4), 2**53 + 2**29 + 1, np.int64)
    direct, through = values.astype(np.float32), values.astype(np.float64).astype(np.float32)
    assert (direct != through).all()
    image = (values, NiftiForm("LPS", "int64"))
    floats = (np.full((4, 4, 4), 1e300), NiftiForm("RAS", "float64"))
    mask = (np.zeros((4, 4, 4), np.uint8), NiftiForm("LPS", "uint8"))
    other = (mask[0], NiftiForm("RAS", "uint8"))
    write_pairs(tmp_path / "raw", [(*image, *mask), (*floats, *other)])
    url = ingested(Recipe.load("ctspine1k"), tmp_path / "raw", tmp_path / "a.zarr")
    assert_equals_script(tmp_path / "raw", url)


def test_image_and_mask_with_different_numbers_of_slices_are_refused(tmp_path):
    image, mask = np.zeros((7, 8, 9), np.int16), np.zeros((7, 8, 9), np.uint8)
    write_pairs(tmp_path / "raw", [(image, NiftiForm("LPS"), mask, NiftiForm("PIR", "uint8"))])
    url = ingested(Recipe.load("ctspine1k"), tmp_path / "raw", tmp_path / "a.zarr")
    dataset = spinezarr.load_dataset(url, "2d", split="train")
    assert len(dataset) == 7
    with pytest.raises(UsageError, match=r"'liver_0': its image file has 7 slices .*file 9 \(PIR"):
        dataset[0]


# Splits, order and labels of other stores


def test_a_part_of_the_dataset_keeps_the_list_index_of_each_scan(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("liver_0*.nii.gz"):
        path.unlink()
    url = ingested(Recipe.load("ctspine1k"), tmp_path / "raw", tmp_path / "a.zarr")
    dataset = spinezarr.load_dataset(url, "3d", split="train")
    assert dataset["patient_id"] == ["HN_P001", "1.3.6.1.4.1.9328.50.4.0001"]
    assert dataset["index"] == [1, 2]


def test_mapped_labels_are_returned_with_the_values_of_the_file(tmp_path):
    rng = np.random.default_rng(1)
    label = rng.choice(np.array([0, 200, 210, 240], np.uint8), (5, 6, 7))
    folder = tmp_path / "raw/Data1"
    write_metaimage(folder / "images/image001.mhd", label.astype(np.int16), AFFINE, MetaImageForm())
    write_metaimage(folder / "masks/mask001.mhd", label, AFFINE, MetaImageForm(dtype="uint8"))
    url = ingested(Recipe.load("xvertseg"), tmp_path / "raw", tmp_path / "x.zarr")
    reader = StoreReader(url)
    table = reader.table
    changed = table.assign(split=("scan", ["train"] * table.sizes["scan"]))
    reader.columns = ScanTable.of(changed)
    dataset = load_splits(reader, Engine(LocalFetcher(StoreFolder.at("/"))), "3d")["train"]
    record = dataset[0]
    assert sorted(np.unique(record["segmentation"]).tolist()) == [0, 200, 210, 240]
    np.testing.assert_array_equal(record["segmentation"], record["image"])
    assert spinezarr.open(url).scan(record["patient_id"]).label.max() == 24


def test_masks_merged_from_many_files_have_the_labels_of_the_scheme(tmp_path):
    write_totalsegmentator(tmp_path / "raw")
    url = ingested(Recipe.load("totalsegmentator"), tmp_path / "raw", tmp_path / "t.zarr")
    splits = spinezarr.load_dataset(url, "3d")
    store = spinezarr.open(url)
    for dataset in splits.values():
        assert dataset["index"] == list(range(len(dataset)))
        for record in dataset:
            stored = store.scan(record["patient_id"]).label.to_numpy()
            assert np.unique(record["segmentation"]).tolist() == np.unique(stored).tolist()


# The interface of datasets.Dataset


def test_records_can_be_indexed_by_number_slice_list_and_column(url):
    dataset = spinezarr.load_dataset(url, "2d", split="train")
    n = len(dataset)
    first = dataset[0]
    assert_same(dataset[-n], first)
    assert_same(dataset[np.int64(0)], first)
    assert_same(dataset[-1], dataset[n - 1])
    several = dataset[0:3]
    assert list(several) == dataset.column_names == list(first)
    assert several["slice_index"] == [0, 1, 2]
    assert several["image"][0].tobytes() == first["image"].tobytes()
    assert dataset[[5, -1]]["slice_index"] == [5, dataset[n - 1]["slice_index"]]
    assert dataset[np.array([7, 2])]["slice_index"] == [7, 2]
    assert dataset[n:] == {name: [] for name in dataset.column_names}
    assert dataset["image"][4].tobytes() == dataset[4]["image"].tobytes()
    assert len(dataset["segmentation"]) == n
    assert [part.tobytes() for part in dataset["image"][1:3]] == [
        dataset[i]["image"].tobytes() for i in (1, 2)
    ]
    assert repr(dataset) == (
        f"<spinezarr 2d dataset: {n} records (image, segmentation, patient_id, index, slice_index)>"
    )
    for key in (n, -n - 1):
        with pytest.raises(IndexError, match=f"record {key} of {n}"):
            dataset[key]
    with pytest.raises(KeyError, match="no column 'label'"):
        dataset["label"]
    with pytest.raises(KeyError, match="no column 'slice_index'"):
        spinezarr.load_dataset(url, "3d", split="train")["slice_index"]


def test_indexing_agrees_with_the_datasets_package(url):
    datasets = pytest.importorskip("datasets")
    ours = spinezarr.load_dataset(url, "2d", split="validation")
    facts = {name: ours[name] for name in ("patient_id", "index", "slice_index")}
    theirs = datasets.Dataset.from_dict(facts)
    for key in (0, -1, slice(3), slice(None, None, 9), [4, 1, -2], range(2), slice(9, 2)):
        found, expected = ours[key], theirs[key]
        assert {name: found[name] for name in facts} == expected
    for wrong in (len(ours), -len(ours) - 1):
        for dataset in (ours, theirs):
            with pytest.raises(IndexError):
                dataset[wrong]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "method"),
    [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.long)],
)
def test_a_torch_data_loader_reads_the_records(url, raw, workers, method):
    torch = pytest.importorskip("torch")
    dataset = spinezarr.load_dataset(url, "2d", split="test")
    expected = [record for _, record in script(raw, "2d", "test")]
    loader = torch.utils.data.DataLoader(
        dataset, 5, num_workers=workers, multiprocessing_context=method
    )
    start = 0
    for batch in loader:
        stop = start + len(batch["patient_id"])
        wanted = expected[start:stop]
        assert batch["image"].dtype == torch.float32
        np.testing.assert_array_equal(batch["image"], [record["image"] for record in wanted])
        np.testing.assert_array_equal(
            batch["segmentation"], [record["segmentation"] for record in wanted]
        )
        assert batch["slice_index"].tolist() == list(range(start, stop))
        start = stop
    assert start == len(expected)


def test_a_records_dataset_can_be_pickled(url):
    for name in ("2d", "3d"):
        dataset = spinezarr.load_dataset(url, name, split="validation")
        dataset[0]
        again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  our own bytes
        assert len(again) == len(dataset)
        assert_same(again[-1], dataset[-1])


def test_the_errors_of_unknown_configurations_and_splits_list_the_known_ones(url, tmp_path):
    with pytest.raises(UsageError, match=r"'4d': must be one of 2d, 3d"):
        spinezarr.load_dataset(url, "4d")
    with pytest.raises(UsageError, match=r"'dev': the splits of .* are 'train', 'validation'"):
        spinezarr.load_dataset(url, "2d", split="dev")
    with pytest.raises(StoreNotFoundError):
        spinezarr.load_dataset(tmp_path / "none.zarr", "2d")


def test_load_dataset_accepts_a_name_of_the_catalog(url, tmp_path):
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"datasets:\n  ctspine1k:\n    recipe: ctspine1k\n    store: {url}\n")
    dataset = spinezarr.load_dataset("ctspine1k", "3d", split="test", catalog=catalog)
    assert dataset["patient_id"] == ["1.3.6.1.4.1.9328.50.4.0505"]


# What is read


class CountingFetcher(Fetcher):
    def __init__(self):
        self.ranges = []
        self.local = LocalFetcher(StoreFolder.at("/"))

    def __call__(self, ranges, /):
        self.ranges.extend(ranges)
        return self.local(ranges)

    def take(self):
        found, self.ranges = self.ranges, []
        return found


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Return a store of one scan: three layers of four chunks, with slices from the top along z."""
    folder, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(9)
    image = rng.integers(-1024, 3072, (140, 60, 70)).astype(np.int16)
    label = rng.integers(1, 26, image.shape).astype(np.uint8)
    forms = NiftiForm("LPI"), NiftiForm("LPI", "uint8")
    write_pairs(folder / "raw", [(image, forms[0], label, forms[1])])
    return ingested(Recipe.load("ctspine1k"), folder / "raw", folder / "a.zarr")


def counted(url, name):
    reader, fetch = StoreReader(url), CountingFetcher()
    dataset = load_splits(reader, Engine(fetch), name)["train"]
    assert fetch.take() == []
    return dataset, fetch


def test_a_slice_reads_only_its_own_chunks(deep):
    dataset, fetch = counted(deep, "2d")
    dataset[70]
    fetch.take()
    dataset[100]
    # Chunks are 64 x 32 x 32, so a plane of 60 x 70 has six in the image and six in the mask.
    assert len(fetch.take()) == 12


def test_slices_in_order_read_each_chunk_once(deep):
    dataset, fetch = counted(deep, "2d")
    n = sum(1 for _ in dataset)
    assert n == 140
    chunks = [item for item in fetch.take() if item.stop - item.start > 1000]
    # The first slice is read alone, because the run in order is not yet recognized.
    assert len(chunks) == 12 + 3 * 12
    assert len(set(chunks)) == 3 * 12
    for k in reversed(range(140)):
        dataset[k]
    assert len(set(fetch.ranges)) == len(fetch.take()) == 2 * 12  # one layer is kept


def test_batches_in_order_read_each_chunk_once(deep):
    dataset, fetch = counted(deep, "2d")
    for start in range(0, 140, 20):
        dataset[start : start + 20]
    chunks = [item for item in fetch.take() if item.stop - item.start > 1000]
    assert len(chunks) == 12 + 3 * 12


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_changing_a_returned_record_does_not_change_the_cache(tmp_path, dtype):
    image = np.random.default_rng(4).normal(0, 500, (9, 6, 7)).astype(dtype)
    forms = NiftiForm("LPS", dtype), NiftiForm("LPS", "uint8")
    write_pairs(tmp_path / "raw", [(image, forms[0], np.ones(image.shape, np.uint8), forms[1])])
    url = ingested(Recipe.load("ctspine1k"), tmp_path / "raw", tmp_path / "a.zarr")
    dataset = spinezarr.load_dataset(url, "2d", split="train")
    for _ in range(2):
        for record, (_, wanted) in zip(
            dataset, script(tmp_path / "raw", "2d", "train"), strict=True
        ):
            assert_same(record, wanted)
            record["image"][...] = 0
            record["segmentation"][...] = 0


# Failures


@pytest.mark.parametrize("name", ["2d", "3d"])
@pytest.mark.parametrize(("folder", "said"), [("image", "image"), ("label", "label")])
def test_a_damaged_chunk_is_an_error_that_names_it(url, tmp_path, name, folder, said):
    copied = Path(shutil.copytree(url, tmp_path / "copied.zarr"))
    shard = copied / f"scans/liver_0/{folder}/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    dataset = spinezarr.load_dataset(copied, name, split="train")
    wanted = rf"scan 'liver_0', {said} chunk \(0, \d, \d\) in .*{folder}/c/0/0/0 .*crc32c"
    with pytest.raises(CorruptStoreError, match=wanted):
        list(dataset)
    shard.unlink()
    with pytest.raises(CorruptStoreError, match=rf"'liver_0', {said} chunk .* shard is missing"):
        list(spinezarr.load_dataset(copied, name, split="train"))
    # The other scans are intact.
    assert list(spinezarr.load_dataset(copied, name, split="test"))
