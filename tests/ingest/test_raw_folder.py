import os
import re
from pathlib import Path

import fsspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.errors import FormatError
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.recipe import filled_pattern

DISK = fsspec.filesystem("file")
names = st.text("ab1._é", min_size=1, max_size=4)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
templates = st.lists(
    st.sampled_from(["{scan}", "*", "**/", "/", "_seg", ".nii", "a", "1"]), min_size=1, max_size=6
).map("".join)


def folder_of(files):
    return RawFolder.of_files(DISK, "raw", dict.fromkeys(files, 1))


@given(st.lists(paths, unique=True, max_size=12), templates, names)
@example(["a/b_seg.nii", "b_seg.nii", "x/b_1_seg.nii"], "**/{scan}_*seg.nii", "b")
@example(["aab_seg.nii", "b_seg.nii", "x"], "*{scan}_seg.nii", "b")
@example(["b.nii", "x", "y"], "**/{scan}.nii", "b")
@example(["masks/10.nii", "masks/1_x.nii"], "masks/{scan}*.nii", "1")
def test_the_file_found_is_the_first_of_all_that_fit(files, template, scan):
    pattern = filled_pattern(template, {"scan": scan})
    expected = min((path for path in files if pattern.fullmatch(path)), default=None)
    assert folder_of(files).find(template, {"scan": scan}) == expected


@given(st.lists(paths, unique=True, max_size=12), st.randoms())
def test_the_order_of_the_listing_changes_nothing(files, random):
    shuffled = random.sample(files, len(files))
    one, other = folder_of(files), folder_of(shuffled)
    assert list(one.sizes) == list(other.sizes) == sorted(files)
    assert one.folders == other.folders
    assert {file for inside in one.folders.values() for file in inside} == {
        file for file in files if "/" in file
    }


def test_a_template_without_a_value_finds_nothing():
    assert folder_of(["a.nii"]).find("{scan}.nii", {}) is None
    assert folder_of(["a.nii"]).find("*{scan}*", {}) is None


def test_earlier_patterns_come_before_earlier_files():
    folder = folder_of(["a.csv", "b.txt", "c.txt"])
    assert folder.first(("*.txt", "*.csv")) == "b.txt"
    assert folder.first(("*.xlsx",)) is None


def test_sizes_of_folders_and_metaimages_are_those_of_their_files():
    sizes = {"s/1.dcm": 3, "s/2.dcm": 4, "s/x/3.dcm": 50, "a.mhd": 1, "a.raw": 9, "b.mhd": 2}
    folder = RawFolder.of_files(DISK, "raw", sizes)
    assert folder.size_of("s/") == 7
    assert folder.size_of("a.mhd") == 10
    assert folder.size_of("b.mhd") == 2
    assert folder.files_of("s/1.dcm") == ("s/1.dcm",)


def test_a_small_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    folder = RawFolder.list(DISK, str(tmp_path))
    assert folder.sizes == {"gone.csv": 0}
    with pytest.raises(FormatError, match=r"gone\.csv: cannot be read"):
        folder.read("gone.csv")


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a_ct.nii.gz")
    (tmp_path / "b_ct.nii.gz").symlink_to("/dev/zero")
    (tmp_path / "c_ct.nii.gz").write_bytes(b"x")
    assert RawFolder.list(DISK, str(tmp_path)).sizes == {"c_ct.nii.gz": 1}


def test_links_that_go_round_in_circles_end(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.nii").touch()
        (tmp_path / name / "back").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    listed = RawFolder.list(DISK, str(tmp_path)).sizes
    assert {path for path in listed if "back" not in path} == {"a/x.nii", "b/x.nii", "self"}


def test_a_name_that_is_no_text_can_be_shown(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.nii")).touch()
    (path,) = RawFolder.list(DISK, str(tmp_path)).sizes
    assert re.fullmatch(r"a\\udcff\.nii", path)
    assert path.encode("utf-8")
