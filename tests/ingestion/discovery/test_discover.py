import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import fsspec
import pytest

from spinezarr.errors import RecipeError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.recipe import Recipe
from spinezarr.resources import resource
from spinezarr.testing import source_of, write_ctspine1k_names

RECIPE = Recipe.load("ctspine1k")
SECTIONS = {"trainset:": "train", "test_public:": "validation", "test_private:": "test"}
REAL_LIST = Path(__file__).parents[4] / "shared/data/real/ctspine1k/data_split.txt"

FEW = {
    "train": ["1.3.6.1.4.1.9328.50.4.0001", "liver_0", "HN_P001", "volume-covid19-A-0202_0_ct"],
    "validation": ["CTC-1018399231"],
    "test": ["1.3.6.1.4.1.9328.50.4.0505"],
}
PER_SUBSET = "per-subset"
TREES = ("official", "huggingface", "rawdata", PER_SUBSET)


def real_names():
    """Read the list by hand, as a model of the parser under test."""
    text = REAL_LIST.read_text() if REAL_LIST.exists() else shipped_list().read_text()
    names = {split: [] for split in SECTIONS.values()}
    for line in filter(None, text.split()):
        if line in SECTIONS:
            split = SECTIONS[line]
        else:
            names[split].append(line.removesuffix(".nii.gz"))
    return names


def shipped_list():
    return resource(f"ingest/{RECIPE.splits.shipped}")


def write_tree(root, names, tree):
    write_ctspine1k_names(root, names, "official" if tree == "official" else "huggingface")
    if tree == "rawdata":
        (root / "raw_data").rename(root / "rawdata")
    if tree == PER_SUBSET:
        for kind in ("volumes", "labels"):
            for collection in (root / "raw_data" / kind).iterdir():
                (root / collection.name).mkdir(exist_ok=True)
                collection.rename(root / collection.name / kind)
        shutil.rmtree(root / "raw_data")
    return root


def write_few(root, tree="official"):
    return write_tree(root, FEW, tree)


def found_in(root):
    return discover(RECIPE, str(root))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def refusal(raw, recipe=RECIPE):
    with pytest.raises(UsageError) as caught:
        discover(recipe, str(raw))
    return str(caught.value)


def assert_lists_the_layouts(message):
    for key, layout in RECIPE.layouts.items():
        assert f"{key}: {layout.description}" in message
        assert all(text in message for text in (*layout.image, *layout.label))


@pytest.mark.parametrize("tree", TREES)
def test_all_1005_scans_are_found_in_every_layout(tmp_path, tree):
    names = real_names()
    found = found_in(write_tree(tmp_path / "CTSpine1K", names, tree))
    assert len(found.scans) == 1005
    assert Counter(scan.split for scan in found.scans) == {
        "train": 610,
        "validation": 197,
        "test": 198,
    }
    assert Counter(scan.source for scan in found.scans) == {
        "COLONOG": 784,
        "MSD-T10": 150,
        "COVID-19": 40,
        "HNSCC-3DCT-RT": 31,
    }
    assert (found.without_mask, found.without_image, found.absent) == ((), (), ())
    assert found.layouts == {"huggingface" if tree == "rawdata" else tree: 1005}
    assert {scan.scan_id: (scan.split, scan.split_index) for scan in found.scans} == {
        name: (split, position)
        for split, listed in names.items()
        for position, name in enumerate(listed)
    }
    for scan in found.scans:
        assert scan.image.endswith(f"/{scan.scan_id}.nii.gz")
        assert scan.label.endswith(f"/{scan.scan_id}_seg.nii.gz")
        assert scan.source == source_of(scan.scan_id)
        assert scan.patient_id == scan.scan_id


def test_the_shipped_list_is_the_published_one():
    words = "\n".join(shipped_list().read_text().split()).encode()
    # The numbers are from the data_split.txt of the dataset's repository.
    published = "5c29e8ddbff0e62d4a24b83032ddd78460e6e73ab5afe6ee261a3ca3951754e5"
    assert hashlib.sha256(words).hexdigest() == published


def test_masks_are_paired_across_the_spellings_of_the_official_folders(tmp_path):
    found = found_in(write_few(tmp_path))
    assert {scan.image: scan.label for scan in found.scans} == {
        f"data/{image}/{name}.nii.gz": f"label/{label}/{name}_seg.nii.gz"
        for image, label, name in [
            ("colon", "conlon", "1.3.6.1.4.1.9328.50.4.0001"),
            ("colon", "conlon", "1.3.6.1.4.1.9328.50.4.0505"),
            ("colon", "conlon", "CTC-1018399231"),
            ("liver", "Liver", "liver_0"),
            ("HNSCC-3DCT-RT_neck", "HNSCC-3DCT-RT_neck", "HN_P001"),
            ("COVID-19", "COVID-19", "volume-covid19-A-0202_0_ct"),
        ]
    }


def test_label_folders_spelled_like_the_data_folders_are_found(tmp_path):
    root = write_few(tmp_path)
    (root / "label/conlon").rename(root / "label/colon")
    found = found_in(root)
    assert len(found.scans) == 6
    assert not found.without_mask


def test_the_size_of_a_scan_is_that_of_image_and_mask(tmp_path):
    root = write_few(tmp_path)
    (root / "data/liver/liver_0.nii.gz").write_bytes(bytes(1000))
    (root / "label/Liver/liver_0_seg.nii.gz").write_bytes(bytes(10))
    sizes = {scan.scan_id: scan.size_bytes for scan in found_in(root).scans}
    assert sizes["liver_0"] == 1010
    assert sum(sizes.values()) == 1010


@pytest.mark.parametrize(
    "path",
    [
        "label/Verse/verse074_seg.nii.gz",
        "label/completed_annotation_verse/verse506_CT-iso_seg.nii.gz",
    ],
)
def test_masks_of_verse_are_ignored_with_their_reason(tmp_path, path):
    root = write_few(tmp_path)
    touch(root / path)
    found = found_in(root)
    assert len(found.scans) == 6
    assert not found.without_image
    assert [note.path for note in found.ignored if "VerSe image" in note.reason] == [path]


def test_other_files_are_ignored_with_a_reason(tmp_path):
    root = write_few(tmp_path)
    known = [
        "readme.txt",
        "plans.pkl",
        "model_final_checkpoint.model",
        "model_final_checkpoint.model.pkl",
        "notes.xlsx",
        "label_new/trainset/gt/liver_0_seg.nii.gz",
    ]
    for path in (*known, "notes.docx", "data/liver/odd_name.nii.gz"):
        touch(root / path)
    found = found_in(root)
    assert len(found.scans) == 6
    reasons = {note.path: note.reason for note in found.ignored}
    strange = {path for path, reason in reasons.items() if "matches no pattern" in reason}
    assert strange == {"notes.docx", "data/liver/odd_name.nii.gz"}
    assert set(known) <= set(reasons)


def test_the_split_file_is_not_listed_as_ignored(tmp_path):
    found = found_in(write_few(tmp_path, "huggingface"))
    assert found.split_file == "metadata/data_split.txt"
    assert found.ignored == ()


def test_an_image_without_its_mask_is_reported_with_the_searched_paths(tmp_path):
    root = write_few(tmp_path)
    (root / "label/conlon/CTC-1018399231_seg.nii.gz").unlink()
    found = found_in(root)
    assert len(found.scans) == 5
    (unpaired,) = found.without_mask
    assert unpaired.scan_id == "CTC-1018399231"
    assert unpaired.looked_for == (
        "label/conlon/CTC-1018399231_seg.nii.gz",
        "label/colon/CTC-1018399231_seg.nii.gz",
    )
    assert all(path in unpaired.reason for path in (unpaired.path, *unpaired.looked_for))
    assert found.absent == ()


def test_a_mask_without_its_image_is_reported(tmp_path):
    root = write_few(tmp_path)
    (root / "data/liver/liver_0.nii.gz").unlink()
    found = found_in(root)
    assert len(found.scans) == 5
    (orphan,) = found.without_image
    assert (orphan.path, orphan.reason) == (
        "label/Liver/liver_0_seg.nii.gz",
        "mask without an image",
    )
    assert found.absent == ("liver_0",)


@pytest.mark.parametrize("tree", TREES)
def test_a_mask_is_never_taken_for_an_image(tmp_path, tree):
    root = write_few(tmp_path, tree)
    mask = root / found_in(root).scans[0].label
    mask.with_name(mask.name.replace("_seg", "_seg_seg")).touch()
    found = found_in(root)
    assert len(found.scans) == 6
    assert not any(scan.image.endswith("_seg.nii.gz") for scan in found.scans)


def test_the_shipped_list_is_used_if_there_is_no_split_file(tmp_path):
    root = write_few(tmp_path)
    (root / "data_split.txt").unlink()
    found = found_in(root)
    assert found.split_file is None
    places = {scan.scan_id: (scan.split, scan.split_index) for scan in found.scans}
    names = real_names()
    assert places == {
        name: (split, names[split].index(name)) for split, few in FEW.items() for name in few
    }
    assert len(found.absent) == 1005 - 6


def test_the_list_in_the_raw_folder_overrides_the_shipped_one(tmp_path):
    root = write_few(tmp_path)
    (root / "data_split.txt").write_text("test_private:\nliver_0.nii.gz\n")
    found = found_in(root)
    assert found.split_file == "data_split.txt"
    splits = {scan.scan_id: (scan.split, scan.split_index) for scan in found.scans}
    assert splits.pop("liver_0") == ("test", 0)
    assert set(splits.values()) == {("", -1)}


def test_the_error_of_a_wrong_split_file_names_its_line(tmp_path):
    root = write_few(tmp_path)
    (root / "data_split.txt").write_text("trainset:\nliver_0\n")
    with pytest.raises(RecipeError, match=r"data_split\.txt, line 2: is neither"):
        found_in(root)
    (root / "data_split.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(RecipeError, match=r"data_split\.txt is not text"):
        found_in(root)


def test_a_split_file_saved_by_a_windows_editor_is_read(tmp_path):
    root = write_few(tmp_path)
    path = root / "data_split.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert found_in(root).absent == ()


def test_a_list_next_to_a_users_recipe_is_used(tmp_path):
    text = resource("ingest/ctspine1k.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("ctspine1k.data_split.txt", "mine.txt"))
    (tmp_path / "mine.txt").write_text("trainset:\nliver_0.nii.gz\nHN_P001.nii.gz\n")
    root = write_few(tmp_path / "raw")
    (root / "data_split.txt").unlink()
    found = discover(Recipe.load(str(tmp_path / "mine.yaml")), str(root))
    assert {scan.scan_id: scan.split_index for scan in found.scans if scan.split} == {
        "liver_0": 0,
        "HN_P001": 1,
    }


def test_absent_scans_of_a_partial_download_are_listed_in_order(tmp_path):
    root = write_few(tmp_path)
    shutil.rmtree(root / "data/colon")
    shutil.rmtree(root / "label/conlon")
    found = found_in(root)
    assert {scan.scan_id for scan in found.scans} == {
        "liver_0",
        "HN_P001",
        "volume-covid19-A-0202_0_ct",
    }
    assert found.absent == (
        "1.3.6.1.4.1.9328.50.4.0001",
        "CTC-1018399231",
        "1.3.6.1.4.1.9328.50.4.0505",
    )
    assert (found.without_mask, found.without_image) == ((), ())


def test_a_scan_present_in_two_layouts_counts_once(tmp_path):
    write_few(tmp_path)
    write_few(tmp_path, "huggingface")
    found = found_in(tmp_path)
    assert sorted(scan.scan_id for scan in found.scans) == sorted(chain(*FEW.values()))
    assert all(scan.image.startswith("data/") for scan in found.scans)
    assert all(scan.label.startswith("label/") for scan in found.scans)
    twice = {note.path: note.detail for note in found.ignored if "read from" in note.detail}
    assert len(twice) == 6
    image = "raw_data/volumes/MSD-T10/liver_0.nii.gz"
    assert twice[image] == "read from data/liver/liver_0.nii.gz"
    masks = {note.path: note.detail for note in found.ignored if "belongs to" in note.reason}
    assert masks["raw_data/labels/MSD-T10/liver_0_seg.nii.gz"] == f"of {image}"
    assert not found.without_image


@pytest.mark.parametrize("tail", ["", "/"])
def test_the_raw_folder_may_be_relative_and_end_in_a_slash(tmp_path, monkeypatch, tail):
    write_few(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    assert discover(RECIPE, f"raw{tail}").scans == found_in(tmp_path / "raw").scans


def test_the_raw_folder_may_be_a_url(tmp_path):
    root = write_few(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*.*"):
        if path.is_file():
            memory.pipe_file(f"/raw/{path.relative_to(root)}", path.read_bytes())
    found = discover(RECIPE, "memory://raw")
    here = found_in(root).scans
    # The two file systems have their own modification times.
    assert [replace(scan, stamp="") for scan in found.scans] == [
        replace(scan, stamp="") for scan in here
    ]
    assert found.split_file == "data_split.txt"
    memory.rm("/raw", recursive=True)


@pytest.mark.parametrize("linked", ["data", "data/liver", "data/liver/liver_0.nii.gz"])
def test_linked_files_and_folders_are_found(tmp_path, linked):
    root = write_few(tmp_path / "raw")
    (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    assert len(found_in(root).scans) == 6


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    message = refusal(tmp_path / "gone")
    assert str(tmp_path / "gone") in message
    assert "does not exist" in message
    assert_lists_the_layouts(message)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    for name, what in (("CTSpine1K.zip", "is an archive"), ("CTSpine1K.csv", "is a file")):
        (tmp_path / name).touch()
        message = refusal(tmp_path / name)
        assert what in message
        assert_lists_the_layouts(message)


def test_an_empty_folder_is_refused(tmp_path):
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "The folder holds 0 files:" in message
    assert "(nothing)" in message
    assert_lists_the_layouts(message)


def test_the_error_of_a_wrong_folder_lists_its_contents(tmp_path):
    paths = [f"photos/{number}.jpg" for number in range(8)]
    for path in paths:
        touch(tmp_path / path)
    message = refusal(tmp_path)
    assert_lists_the_layouts(message)
    assert "The folder holds 8 files:" in message
    assert [path in message for path in paths] == [True] * 5 + [False] * 3
    assert "and 3 more" in message
    assert "--raw" not in message


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("below", ["CTSpine1K", "downloads/2024/CTSpine1K"])
def test_the_error_of_a_folder_too_high_names_the_one_that_matches(tmp_path, tree, below):
    write_few(tmp_path / below, tree)
    message = refusal(tmp_path)
    assert message.endswith(f"use --raw {tmp_path}/{below}")
    assert len(found_in(tmp_path / below).scans) == 6


@pytest.mark.parametrize(("near", "far"), [("a", "z/a"), ("z", "a/a")])
def test_the_error_names_the_nearest_of_several_folders_that_match(tmp_path, near, far):
    for folder in (near, far):
        write_few(tmp_path / folder)
    assert refusal(tmp_path).endswith(f"use --raw {tmp_path}/{near}")


@pytest.mark.parametrize(
    ("tree", "inner"), [("official", "data"), ("huggingface", "raw_data"), ("official", "label")]
)
def test_a_folder_too_deep_is_refused(tmp_path, tree, inner):
    root = write_few(tmp_path, tree)
    assert_lists_the_layouts(refusal(root / inner))


def test_pairs_by_name_need_no_splits(tmp_path):
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
    for name in ("a.1_ct", "a.1_seg", "b c_ct", "b c_seg", "d_ct", "e_seg"):
        touch(tmp_path / f"{name}.nii.gz")
    found = discover(recipe, str(tmp_path))
    assert [(scan.scan_id, scan.label) for scan in found.scans] == [
        ("a.1", "a.1_seg.nii.gz"),
        ("b c", "b c_seg.nii.gz"),
    ]
    assert [unpaired.scan_id for unpaired in found.without_mask] == ["d"]
    assert [orphan.path for orphan in found.without_image] == ["e_seg.nii.gz"]
    assert {(scan.split, scan.split_index, scan.source) for scan in found.scans} == {("", -1, "")}


def test_masks_named_like_their_image_in_another_folder_are_distinguished(tmp_path):
    recipe = Recipe.from_pairs("**/ct/{scan}.nii", "mask/{scan}.nii", name="pairs")
    touch(tmp_path / "ct/a.nii")
    touch(tmp_path / "mask/a.nii")
    (scan,) = discover(recipe, str(tmp_path)).scans
    assert (scan.image, scan.label) == ("ct/a.nii", "mask/a.nii")


def test_an_image_pattern_that_also_matches_masks_takes_only_images(tmp_path):
    recipe = Recipe.from_pairs("{scan}.nii", "{scan}_seg.nii", name="pairs")
    for name in ("a.nii", "a_seg.nii", "b.nii", "b_seg.nii"):
        touch(tmp_path / name)
    found = discover(recipe, str(tmp_path))
    assert [(scan.image, scan.label) for scan in found.scans] == [
        ("a.nii", "a_seg.nii"),
        ("b.nii", "b_seg.nii"),
    ]
    assert (found.without_mask, found.without_image) == ((), ())


def test_images_alone_need_no_mask(tmp_path):
    touch(tmp_path / "a.nii")
    found = discover(Recipe.from_pairs("{scan}.nii", None, name="images"), str(tmp_path))
    assert [(scan.scan_id, scan.label) for scan in found.scans] == [("a", None)]
    assert found.without_mask == ()


def test_a_folder_linked_twice_is_read_in_both_places(tmp_path):
    for name in ("a_ct.nii.gz", "a_seg.nii.gz"):
        touch(tmp_path / "raw" / "images" / name)
    (tmp_path / "raw" / "masks").symlink_to(tmp_path / "raw" / "images")
    (tmp_path / "raw" / "images" / "loop").symlink_to(tmp_path / "raw")
    recipe = Recipe.from_pairs("images/{scan}_ct.nii.gz", "masks/{scan}_seg.nii.gz", name="linked")
    (scan,) = discover(recipe, str(tmp_path / "raw")).scans
    assert scan.label == "masks/a_seg.nii.gz"


def test_split_lists_name_the_scan_field_of_the_pattern(tmp_path):
    text = resource("ingest/ctspine1k.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(
        text.replace("splits:", 'scan_id: "ct-{scan}"\npatient_id: "{scan}"\nsplits:')
    )
    shutil.copy(resource("ingest/ctspine1k.data_split.txt"), tmp_path)
    found = discover(Recipe.load(str(tmp_path / "mine.yaml")), str(write_few(tmp_path / "raw")))
    assert {scan.scan_id for scan in found.scans if scan.split} == {
        f"ct-{scan.patient_id}" for scan in found.scans
    }
    assert not set(found.absent) & {scan.patient_id for scan in found.scans}


@pytest.mark.parametrize("inside", ["raw_data", "raw_data/volumes", "raw_data/volumes/COLONOG"])
def test_the_error_of_a_folder_too_deep_names_the_one_above(tmp_path, inside):
    root = tmp_path / "CTSpine1K"
    for place in ("volumes/COLONOG/CTC-1.nii.gz", "labels/COLONOG/CTC-1_seg.nii.gz"):
        touch(root / "raw_data" / place)
    assert refusal(root / inside).endswith(f"A folder above it does match: use --raw {root}")
