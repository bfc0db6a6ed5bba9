"""Tests of uploads, which send files while others are still made."""

import threading

import fsspec
import pytest
from timeouts import TIMEOUT_S

from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.uploads import Uploads


@pytest.fixture
def bucket(s3_server):
    return s3_server.new_bucket()


@pytest.fixture
def fs(s3_server):
    return open_filesystem("s3://", s3_server.storage_options)[0]


def test_all_files_are_there_after_finish(fs, bucket):
    uploads = Uploads(fs)
    data = {f"{bucket}/{n}": bytes([n]) * 1000 for n in range(9)}
    for path, content in data.items():
        uploads.write(path, [content])
    uploads.finish()
    assert {path: fs.cat_file(path) for path in data} == data


def test_a_file_written_twice_keeps_its_last_content(fs, bucket):
    uploads = Uploads(fs)
    for n in range(9):
        # Each content is shorter than the one before, so in parallel it would arrive first.
        uploads.write(f"{bucket}/a", [bytes([n]) * 100_000 * (9 - n)])
    uploads.finish()
    assert fs.cat_file(f"{bucket}/a") == bytes([8]) * 100_000


def test_a_failed_upload_is_raised_by_the_next_call(fs):
    uploads = Uploads(fs)
    uploads.write("bucket-that-is-not/a", [b""])
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        uploads.finish()
    uploads = Uploads(fs)
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        write_many(uploads, "bucket-that-is-not")
    uploads.stop()


def write_many(uploads, bucket):
    for n in range(9):
        uploads.write(f"{bucket}/{n}", [b""])


class SlowFileSystem(fsspec.get_filesystem_class("memory")):
    """Records how many files are under way."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()
        self.under_way = 0

    def pipe_file(self, *_args, **_options):
        self.under_way += 1
        self.go_on.wait(TIMEOUT_S)


def test_only_a_few_uploads_run_at_once_and_others_wait():
    fs = SlowFileSystem()
    uploads = Uploads(fs)
    for n in range(2):
        uploads.write(f"/{n}", [b""])  # returns, though nothing has been sent
    third = threading.Thread(target=uploads.write, args=("/2", [b""]))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    assert fs.under_way <= 2
    fs.go_on.set()
    third.join()
    uploads.finish()
    assert fs.under_way == 3


def test_a_file_on_disk_is_visible_at_once(tmp_path):
    Uploads(StoreFileSystem(str(tmp_path))).write(str(tmp_path / "a" / "b"), [b"x"])
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
