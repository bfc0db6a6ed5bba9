import os
from pathlib import Path
from unicodedata import normalize

import fsspec
import pytest
from fsspec import AbstractFileSystem
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.errors import FormatError
from spinezarr.ingestion.discovery.raw_folder import RawFolder, other_names
from spinezarr.recipe import filled_template_regex

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
def test_a_template_finds_all_files_that_fit(files, template, scan):
    pattern = filled_template_regex(template, {"scan": scan})
    expected = sorted(path for path in files if pattern.fullmatch(path))
    if template.endswith("/"):
        expected = sorted(path for path in folder_of(files).folders if pattern.fullmatch(path))
    assert folder_of(files).find(template, {"scan": scan}) == tuple(expected)


@given(st.lists(paths, unique=True, max_size=12), st.randoms())
def test_the_order_of_the_listing_does_not_change_the_files(files, random):
    shuffled = random.sample(files, len(files))
    one, other = folder_of(files), folder_of(shuffled)
    assert list(one.sizes) == list(other.sizes) == sorted(files)
    assert one.folders == other.folders
    assert {file for inside in one.folders.values() for file in inside} == {
        file for file in files if "/" in file
    }


def test_a_template_with_a_missing_value_finds_nothing():
    assert folder_of(["a.nii"]).find("{scan}.nii", {}) == ()
    assert folder_of(["a.nii"]).find("*{scan}*", {}) == ()


def test_earlier_patterns_come_before_earlier_files():
    folder = folder_of(["a.csv", "b.txt", "c.txt"])
    assert folder.first(("*.txt", "*.csv")) == "b.txt"
    assert folder.first(("*.xlsx",)) is None


def test_the_size_of_a_folder_or_metaimage_is_the_sum_of_its_files():
    sizes = {"s/1.dcm": 3, "s/2.dcm": 4, "s/x/3.dcm": 50, "a.mhd": 1, "a.raw": 9, "b.mhd": 2}
    folder = RawFolder.of_files(DISK, "raw", sizes)
    assert folder.size_of("s/") == 7
    assert folder.size_of("a.mhd") == 10
    assert folder.size_of("b.mhd") == 2
    assert folder.files_of("s/1.dcm") == ("s/1.dcm",)


def test_the_error_names_a_small_file_that_cannot_be_read(tmp_path):
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


def test_the_listing_ends_despite_circular_links(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.nii").touch()
        (tmp_path / name / "back").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    listed = RawFolder.list(DISK, str(tmp_path)).sizes
    assert {path for path in listed if "back" not in path} == {"a/x.nii", "b/x.nii", "self"}


def test_a_name_that_is_no_utf_8_can_be_printed(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.nii")).touch()
    folder = RawFolder.list(DISK, str(tmp_path))
    assert list(folder.sizes) == [r"a\xff.nii"]
    assert folder.unusable == {r"a\xff.nii"}


def test_files_of_one_name_in_two_unicode_forms_are_both_found():
    both = [normalize(form, "Müller_seg.nii") for form in ("NFC", "NFD")]
    folder = folder_of(both)
    assert sorted(folder.sizes) == sorted(both)
    for name in both:
        scan = name.removesuffix("_seg.nii")
        assert folder.find("{scan}_seg.nii", {"scan": scan}) == tuple(sorted(both))
        assert folder.find("**/{scan}*.nii", {"scan": scan}) == tuple(sorted(both))
        assert sorted(folder.named(name)) == sorted(both)


@given(st.lists(st.text("aüeé", min_size=1, max_size=3), unique=True, max_size=6), st.data())
def test_names_are_found_in_any_unicode_form_and_returned_as_spelled(stems, data):
    forms = [data.draw(st.sampled_from(["NFC", "NFD"])) for _ in stems]
    files = {
        stem: normalize(form, f"é/{stem}.nii") for form, stem in zip(forms, stems, strict=True)
    }
    folder = folder_of(files.values())
    for template in ("é/{scan}.nii", normalize("NFD", "é/{scan}.nii"), "*/{scan}.nii"):
        for stem, file in files.items():
            for form in ("NFC", "NFD"):
                assert folder.find(template, {"scan": normalize(form, stem)}) == (file,)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("a.nii", ["a.nii.gz"]),
        ("a.nii.gz", ["a.nii"]),
        ("a.NII.GZ", ["a.nii.gz", "a.nii"]),
        ("x/a.Nii", ["x/a.nii.gz", "x/a.nii"]),
        ("a.nii.gz/a.nii", ["a.nii.gz/a.nii.gz", "a.nii.gz", "a.nii"]),
        ("x/a.nii/a.nii", ["x/a.nii/a.nii.gz", "x/a.nii.gz", "x/a.nii"]),
        ("a.NII.GZ/a.nii.gz", ["a.NII.GZ/a.nii", "a.nii.gz", "a.nii"]),
        ("b.nii.gz/a.nii", ["b.nii.gz/a.nii.gz"]),
        ("A.nii.gz/a.nii", ["A.nii.gz/a.nii.gz"]),
        ("a/a.nii", ["a/a.nii.gz"]),
        ("a.MHA", ["a.mha"]),
        ("t.XLSX", ["t.xlsx"]),
        ("a.mha", []),
        ("a.dcm", []),
        ("README", []),
        ("a.nii.gz.x", []),
    ],
)
def test_a_file_is_found_by_its_name_before_unpacking(file, names):
    assert sorted(set(other_names(file))) == sorted(set(names) - {file})
    folder = folder_of([file])
    for name in names:
        assert folder.find(name, {}) == (file,)
        assert folder.named(name) == []


def test_the_file_of_the_exact_name_is_preferred_to_its_copies():
    files = ["a.nii", "a.nii.gz", "a.nii.gz.txt", "a.NII"]
    folder = folder_of(files)
    assert folder.find("{scan}.nii.gz", {"scan": "a"}) == ("a.nii.gz",)
    assert folder.find("*.nii", {}) == ("a.nii",)
    assert folder_of(["a.nii", "a.NII"]).find("a.nii.gz", {}) == ("a.NII", "a.nii")


def test_a_template_that_ends_with_a_slash_names_folders():
    folder = folder_of(["p/seg/1.dcm", "p/seg/2.dcm", "q/seg", "p/a.nii"])
    assert folder.find("{scan}/seg/", {"scan": "p"}) == ("p/seg/",)
    assert folder.find("**/seg/", {}) == ("p/seg/",)
    assert folder.find("q/seg/", {}) == ()
    assert folder.find("**/*", {}) == ("p/a.nii", "p/seg/1.dcm", "p/seg/2.dcm", "q/seg")


SYSTEM = {
    "._a_ct.nii.gz": "._a_ct.nii.gz",
    "x/.DS_Store": "x/.DS_Store",
    "x/Thumbs.db": "x/Thumbs.db",
    "x/thumbs.db": "x/thumbs.db",
    "desktop.ini": "desktop.ini",
    "__MACOSX/x/._a_ct.nii.gz": "__MACOSX/",
    "__MACOSX/a_ct.nii.gz": "__MACOSX/",
    "x/lost+found/a_ct.nii.gz": "x/lost+found/",
    "x/$RECYCLE.BIN/a_ct.nii.gz": "x/$RECYCLE.BIN/",
    ".Trash-1000/files/a_ct.nii.gz": ".Trash-1000/",
    "x/@eaDir/a_ct.nii.gz/thumb.jpg": "x/@eaDir/",
    ".git/lfs/objects/a_ct.nii.gz": ".git/",
    ".cache/huggingface/download/a_ct.nii.gz.metadata": ".cache/",
}


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_files_of_operating_systems_are_skipped_and_listed(tmp_path, where):
    kept = ["b_ct.nii.gz", "x/my.cache/c_ct.nii.gz", "x/.hidden_ct.nii.gz", "x/Thumbs.db.nii"]
    if where == "disk":
        fs, root = DISK, str(tmp_path)
    else:
        fs, root = fsspec.filesystem("memory"), "/of-systems"
    for path in (*SYSTEM, *kept):
        fs.makedirs(f"{root}/{path}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{root}/{path}", b"x")
    folder = RawFolder.list(fs, root)
    assert list(folder.sizes) == sorted(kept)
    assert folder.system_files == tuple(sorted(set(SYSTEM.values())))


def test_a_file_with_control_characters_in_its_name_is_escaped_and_not_opened(tmp_path):
    for name in ("a\x1b[2J.nii", "b\n.nii", "c\u2028.nii", "d.nii"):
        (tmp_path / name).touch()
    folder = RawFolder.list(DISK, str(tmp_path))
    shown = [r"a\x1b[2J.nii", r"b\x0a.nii", r"c\u2028.nii"]
    assert list(folder.sizes) == [*shown, "d.nii"]
    assert folder.unusable == set(shown)


@pytest.mark.usefixtures("plain_user")
def test_folders_that_may_not_be_listed_are_reported_and_others_listed(tmp_path):
    for name in ("secret", "half", "open", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii").touch()
        (tmp_path / name / "below").mkdir()
    for name, mode in (("secret", 0), ("half", 0o400), ("lost+found", 0)):
        (tmp_path / name).chmod(mode)
    folder = RawFolder.list(DISK, str(tmp_path))
    assert folder.unlisted == {"secret/": "Permission denied", "half/below/": "Permission denied"}
    assert folder.system_files == ("lost+found/",)
    # The names of this folder can be read, so the error comes from opening the file.
    assert folder.sizes == {"half/a.nii": 0, "open/a.nii": 0}
    (tmp_path / "open").chmod(0)
    with pytest.raises(PermissionError):
        RawFolder.list(DISK, str(tmp_path / "open"))
    for name in ("secret", "half", "lost+found", "open"):
        (tmp_path / name).chmod(0o700)


class Denying(AbstractFileSystem):
    """A file system without a recursive listing, like SFTP; one of its folders is forbidden."""

    def ls(self, path, **kwargs):
        if path.endswith("/secret"):
            raise PermissionError(13, "Permission denied")
        return DISK.ls(path, **kwargs)


def test_forbidden_folders_of_other_file_systems_are_reported(tmp_path):
    for path in ("secret/a.nii", "open/below/a.nii", "open/__MACOSX/a.nii", "b.nii"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"xy")
    folder = RawFolder.list(Denying(), str(tmp_path))
    assert folder.sizes == {"b.nii": 2, "open/below/a.nii": 2}
    assert folder.unlisted == {"secret/": "Permission denied"}
    assert folder.system_files == ("open/__MACOSX/",)
    with pytest.raises(PermissionError):
        RawFolder.list(Denying(), str(tmp_path / "secret"))
