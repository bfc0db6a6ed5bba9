"""A store reads and writes only inside its folder, even if links or devices lie in it."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

import spinezarr
from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store import folder as store_folder
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.files import open_store, publish_file, remove_files, write_file
from spinezarr.store.folder import NOT_REGULAR, StoreFolder
from spinezarr.store.reader import StoreReader
from spinezarr.verify.store import verify_store

RECIPE = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


@pytest.fixture(params=["at once", "step by step"])
def folder(request, tmp_path, monkeypatch):
    """Return a store's folder with one file, opened in each of the two ways."""
    if request.param == "step by step":
        monkeypatch.setattr(store_folder, "_opener", lambda: store_folder._open_step_by_step)
    elif store_folder._opener() is store_folder._open_step_by_step:
        pytest.skip("this system has no openat2")
    (tmp_path / "store/scans/a").mkdir(parents=True)
    (tmp_path / "store/scans/a/file").write_bytes(b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"outside")
    return StoreFolder.at(str(tmp_path / "store"))


def special(kind, path, outside):
    """Create a link, device, pipe or socket at a path."""
    match kind:
        case "link":
            path.symlink_to(outside / "file")
        case "dangling link":
            path.symlink_to(outside / "absent")
        case "link to itself":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            here = socket.socket(socket.AF_UNIX)
            # The address of a socket may only be short, so its folder is entered.
            before = Path.cwd()
            os.chdir(path.parent)
            here.bind(path.name)
            os.chdir(before)
            here.close()


SPECIAL = ["link", "dangling link", "link to itself", "device", "pipe", "socket"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_plain_files_are_read(folder, kind, tmp_path):
    path = Path(folder.path) / "scans/a/other"
    special(kind, path, tmp_path / "outside")
    with pytest.raises(CorruptStoreError) as caught:
        folder.read(str(path))
    assert str(path) in str(caught.value)
    assert folder.sizes(folder.path) == {"scans/a/file": 6, "scans/a/other": NOT_REGULAR}


def test_plain_files_are_read(folder):
    assert folder.read(f"{folder.path}/scans/a/file") == b"inside"
    with pytest.raises(FileNotFoundError):
        folder.read(f"{folder.path}/scans/a/absent")
    with pytest.raises(FileNotFoundError):
        folder.read(f"{folder.path}/scans/b/absent")
    with pytest.raises(CorruptStoreError, match="is a folder where a file belongs"):
        folder.read(f"{folder.path}/scans/a")
    with pytest.raises(CorruptStoreError, match="scans/a/file: is a file where a folder belongs"):
        folder.read(f"{folder.path}/scans/a/file/x/y")
    with pytest.raises(FileNotFoundError):
        StoreFolder.at(f"{folder.path}/scans/a/file").read(f"{folder.path}/scans/a/file/zarr.json")


def test_a_file_without_read_permission_is_named(folder):
    path = Path(folder.path) / "scans/a/file"
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(CorruptStoreError, match="a/file: cannot be read: Permission denied"):
            folder.read(str(path))
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("where", ["scans", "scans/a"])
def test_no_link_in_a_path_is_followed(folder, where, tmp_path):
    path = Path(folder.path) / where
    shutil.move(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(CorruptStoreError, match="is a link"):
        folder.read(f"{folder.path}/scans/a/file")
    assert folder.sizes(folder.path) == {where: NOT_REGULAR}
    with pytest.raises(CorruptStoreError, match="is a link"):
        folder.sizes(f"{folder.path}/{where}")


def test_the_store_itself_may_be_behind_a_link(folder, tmp_path):
    (tmp_path / "named").symlink_to(folder.path)
    named = StoreFolder.at(str(tmp_path / "named"))
    assert named.read(f"{tmp_path}/named/scans/a/file") == b"inside"


@pytest.mark.parametrize("key", ["../outside/file", "scans/../../outside/file", "scans/./a/file"])
def test_keys_that_leave_the_store_are_refused(folder, key):
    with pytest.raises(CorruptStoreError, match="lies outside of the store"):
        folder.read(f"{folder.path}/{key}")


@pytest.mark.parametrize("path", ["/outside/file", "{}2/file", "{}"])
def test_paths_outside_the_store_are_refused(folder, path):
    Path(f"{folder.path}2").mkdir()
    (Path(f"{folder.path}2") / "file").touch()
    with pytest.raises(CorruptStoreError):
        folder.read(path.format(folder.path))


def test_a_file_above_its_size_limit_is_refused(folder):
    assert folder.read(f"{folder.path}/scans/a/file", 6) == b"inside"
    with pytest.raises(CorruptStoreError, match="has more than 5 bytes"):
        folder.read(f"{folder.path}/scans/a/file", 5)


@pytest.mark.parametrize("kind", [*SPECIAL, "hard link"])
@pytest.mark.parametrize("write", [write_file, publish_file])
def test_writing_replaces_a_special_file_and_does_not_write_through_it(tmp_path, kind, write):
    store, outside = tmp_path / "store", tmp_path / "outside"
    store.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"outside")
    if kind == "hard link":
        (store / "file").hardlink_to(outside / "file")
    else:
        special(kind, store / "file", outside)
    fs, path = open_store(str(store))
    write(fs, f"{path}/file", b"new")
    assert (store / "file").read_bytes() == b"new"
    assert stat.S_ISREG((store / "file").lstat().st_mode)
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {"file": b"outside"}


@pytest.mark.parametrize("write", [write_file, publish_file])
def test_nothing_behind_a_link_is_written_or_removed(tmp_path, write):
    store, outside = tmp_path / "store", tmp_path / "outside"
    store.mkdir()
    outside.mkdir()
    (outside / "file").write_bytes(b"outside")
    (store / "scans").symlink_to(outside)
    fs, path = open_store(str(store))
    with pytest.raises(CorruptStoreError, match="is a link"):
        write(fs, f"{path}/scans/new", b"new")
    with pytest.raises(CorruptStoreError, match="is a link"):
        write(fs, f"{path}/scans/folder/new", b"new")
    with pytest.raises(CorruptStoreError, match="is a link"):
        remove_files(fs, f"{path}/scans", ["file"])
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {"file": b"outside"}


# Whole stores


def ingest_pairs(raw, store):
    known = known_folders(str(store))
    return ingest(RECIPE, discover(RECIPE, str(raw), known=known), str(store))


@pytest.fixture(scope="module")
def pristine(two_versions, tmp_path_factory):
    store = tmp_path_factory.mktemp("pristine") / "store.zarr"
    assert not ingest_pairs(two_versions / "before", store).failed
    return store


@pytest.fixture
def foreign(pristine, tmp_path):
    """Copy a store into a folder of its own, next to a canary file that must not change."""
    shutil.copytree(pristine, tmp_path / "of/store.zarr")
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").write_bytes(b"mine")
    return tmp_path / "of/store.zarr"


def canaries(store):
    folder = store.parent.parent / "canary"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FILES = [
    "zarr.json",
    "scans/zarr.json",
    "scans/a/zarr.json",
    "scans/a/image/c/0/0/0",
    "scans/a/label/c/0/0/0",
    "scans/a/sampling/label_chunks/c/0/0",
    "table/zarr.json",
    "table/scan/c/0",
    "ingest/zarr.json",
]
"""Files to replace. Readers skip two of them: the ledger and the group of scans."""


@pytest.mark.parametrize(
    "kind",
    [
        "link",
        "pipe",
        *(pytest.param(k, marks=pytest.mark.long) for k in ["device", "dangling link"]),
    ],
)
@pytest.mark.parametrize("key", FILES)
def test_readers_and_writers_leave_files_outside_the_store_alone(foreign, two_versions, kind, key):
    path = foreign / key
    path.unlink()
    special(kind, path, foreign.parent.parent / "canary")
    try:
        store = spinezarr.open(foreign)
        store.scan("a").load()
        next(iter(store.patches((8, 8, 8), n_samples=1, batch_size=1)))
    except SpinezarrError:
        pass
    assert verify_store(str(foreign)).faults
    try:
        ingest_pairs(two_versions / "after", foreign)
    except SpinezarrError as problem:
        assert str(foreign) in str(problem)  # noqa: PT017
    assert canaries(foreign) == {"file": b"mine"}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_lock_that_is_no_plain_file_is_an_error(foreign, two_versions, kind):
    special(kind, foreign / "ingest.lock", foreign.parent.parent / "canary")
    with pytest.raises(SpinezarrError, match=r"ingest\.lock"):
        ingest_pairs(two_versions / "after", foreign)
    assert canaries(foreign) == {"file": b"mine"}


@pytest.mark.parametrize("key", ["scans", "scans/a", "scans/a/image", "scans/a/image/c", "table"])
def test_folders_behind_links_are_not_entered(foreign, two_versions, key):
    outside = foreign.parent.parent / "canary/folder"
    shutil.move(foreign / key, outside)
    (foreign / key).symlink_to(outside)
    before = canaries(foreign)
    (foreign / TABLE_BUNDLE).unlink()
    with pytest.raises(SpinezarrError, match="is a link"):
        (spinezarr.open(foreign).table, spinezarr.open(foreign).scan("a").image.compute())
    assert verify_store(str(foreign)).faults
    try:
        report = ingest_pairs(two_versions / "after", foreign)
    except SpinezarrError as problem:
        assert "is a link" in str(problem)  # noqa: PT017
    else:
        assert report.failed
    assert canaries(foreign) == before


def test_a_store_of_plain_files_has_no_fault_and_can_be_updated(foreign, two_versions):
    assert not verify_store(str(foreign)).faults
    assert not ingest_pairs(two_versions / "after", foreign).failed
    assert not verify_store(str(foreign)).faults
    assert StoreReader(str(foreign)).table.sizes["scan"] == 1
