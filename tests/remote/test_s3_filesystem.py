"""Tests of the file system of S3 buckets, against moto's server."""

import errno
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest

from spinezarr.errors import StoreBusyError, UsageError
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.lock import StoreLock, _put


@pytest.fixture
def bucket(s3_server):
    return s3_server.new_bucket()


@pytest.fixture
def fs(s3_server, bucket):
    fs, path = open_filesystem(f"s3://{bucket}/", s3_server.storage_options)
    assert path == bucket
    return fs


def refused(fs, path, kind=OSError):
    with pytest.raises(kind) as caught:
        fs.cat_file(path)
    assert caught.value.filename.startswith("s3://")
    return str(caught.value)


def test_a_written_object_can_be_read(fs, bucket):
    fs.pipe_file(f"{bucket}/a/b", b"0123456789")
    assert fs.cat_file(f"{bucket}/a/b") == b"0123456789"
    assert fs.cat_file(f"{bucket}/a/b", start=2, end=5) == b"234"
    with fs.open(f"{bucket}/a/b", "rb") as file:
        assert (file.read(3), file.read()) == (b"012", b"3456789")


def test_a_large_object_is_read_block_by_block(fs, bucket):
    data = bytes(range(256)) * (9 << 12)  # 9 MiB
    fs.pipe_file(f"{bucket}/large", data)
    with fs.open(f"{bucket}/large", "rb") as file:
        assert b"".join(iter(lambda: file.read(1_000_003), b"")) == data


def test_a_range_behind_the_end_of_an_object_is_empty(fs, bucket):
    fs.pipe_file(f"{bucket}/short", b"abc")
    assert fs.cat_file(f"{bucket}/short", start=3, end=9) == b""
    assert fs.cat_ranges([f"{bucket}/short"] * 2, [100, 1], [101, 9]) == [b"", b"bc"]


def test_a_whole_object_takes_one_request(fs, bucket, monkeypatch):
    fs.pipe_file(f"{bucket}/a", b"abc")
    asked = []
    monkeypatch.setattr(fs, "_info", lambda path, **_: asked.append(path))
    monkeypatch.setattr(fs, "_size", lambda path, **_: asked.append(path))
    assert fs.cat_file(f"{bucket}/a") == b"abc"
    assert not asked


def test_listings_show_objects_of_other_writers(fs, bucket, s3_server):
    fs.pipe_file(f"{bucket}/a", b"")
    assert fs.ls(bucket, detail=False) == [f"{bucket}/a"]
    s3_server.client.put_object(Bucket=bucket, Key="b", Body=b"")
    assert fs.ls(bucket, detail=False) == [f"{bucket}/a", f"{bucket}/b"]


def test_one_of_many_writers_creates_an_object(fs, bucket):
    def create(number):
        try:
            fs.pipe_file(f"{bucket}/one", str(number).encode(), mode="create")
        except FileExistsError:
            return None
        return str(number).encode()

    with ThreadPoolExecutor(8) as pool:
        winners = [data for data in pool.map(create, range(8)) if data is not None]
    assert winners == [fs.cat_file(f"{bucket}/one")]


def test_an_object_is_replaced_only_if_it_is_unchanged(fs, bucket):
    tag = fs.pipe_file(f"{bucket}/one", b"1")["ETag"].strip('"')
    newer = fs.pipe_file(f"{bucket}/one", b"2", IfMatch=tag)["ETag"].strip('"')
    with pytest.raises(OSError, match="another writer was there first") as caught:
        fs.pipe_file(f"{bucket}/one", b"3", IfMatch=tag)
    assert not isinstance(caught.value, FileExistsError)
    fs.pipe_file(f"{bucket}/one", b"4", IfMatch=newer)
    assert fs.cat_file(f"{bucket}/one") == b"4"


def test_one_of_many_writers_gets_the_lock_of_a_bucket(fs, bucket):
    other = StoreLock(fs, bucket, "s3://x", "an audit")
    with (
        StoreLock(fs, bucket, "s3://x", "an ingest"),
        pytest.raises(StoreBusyError, match="an ingest"),
    ):
        other.__enter__()
    assert not fs.exists(f"{bucket}/ingest.lock")


def test_a_lock_is_created_or_replaced_only_if_it_is_unchanged(fs, bucket):
    path = f"{bucket}/lock"
    assert _put(fs, path, b"1", None)
    assert not _put(fs, path, b"2", None)
    assert _put(fs, path, b"2", b"1")
    assert not _put(fs, path, b"3", b"1")
    assert fs.cat_file(path) == b"2"


def test_a_missing_object_and_a_missing_bucket_have_different_errors(fs, bucket):
    assert "no such object" in refused(fs, f"{bucket}/gone", FileNotFoundError)
    assert "no such bucket" in refused(fs, "bucket-that-is-not/gone", FileNotFoundError)
    assert not fs.exists(f"{bucket}/gone")


def test_an_impossible_bucket_name_is_an_error_without_traceback(fs):
    assert "Invalid bucket name" in refused(fs, "a_b@c/gone")


def test_a_private_bucket_refuses_anonymous_requests(fs, bucket, s3_server):
    fs.pipe_file(f"{bucket}/a", b"secret")
    anonymous, _ = open_filesystem("s3://", {"endpoint_url": s3_server.endpoint_url, "anon": True})
    text = refused(anonymous, f"{bucket}/a", PermissionError)
    assert "access is denied" in text
    assert "profile" in text


def test_the_error_of_missing_credentials_says_how_to_give_them(s3_server, monkeypatch):
    for name, text in s3_server.environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fs, _ = open_filesystem("s3://bucket")
    text = refused(fs, "bucket/a", PermissionError)
    assert "--profile" in text
    assert "--no-sign-request" in text
    fs, _ = open_filesystem("s3://bucket", {"profile": "nobody"})
    assert "profile (nobody) could not be found" in refused(fs, "bucket/a", PermissionError)


def test_changed_environment_settings_apply_to_the_next_opening(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, _ = open_filesystem("s3://bucket")
    assert open_filesystem("s3://bucket")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert open_filesystem("s3://bucket")[0] is not first


@pytest.fixture
def one_attempt(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def options_for(port):
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": "test",
        "secret": "not-to-be-shown",
        "config_kwargs": {"read_timeout": 0.2},
    }


def test_the_error_names_a_server_that_cannot_be_reached(one_attempt):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    fs, _ = open_filesystem("s3://bucket", options_for(port))
    text = refused(fs, "bucket/a", ConnectionError)
    assert f"http://127.0.0.1:{port}" in text
    assert "--endpoint-url" in text
    assert "not-to-be-shown" not in text


def answering(answer):
    """Run a server that sends ``answer`` to every request, until the listening socket closes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                if answer is None:
                    connection.recv(1)  # until the client has had enough
                else:
                    connection.sendall(answer)

    thread = Thread(target=serve)
    thread.start()
    return listening, thread


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "Read timeout"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "broke off"),
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", "Service Unavailable"),
        (b"what is this", ""),
    ],
)
def test_a_server_that_fails_is_an_os_error(one_attempt, answer, message):
    listening, thread = answering(answer)
    try:
        fs, _ = open_filesystem("s3://bucket", options_for(listening.getsockname()[1]))
        assert message in refused(fs, "bucket/a")
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "", "/data"])
def test_an_endpoint_must_be_a_url(endpoint):
    with pytest.raises(UsageError, match="http://"):
        open_filesystem("s3://bucket", {"endpoint_url": endpoint})


def test_s3_options_for_a_local_path_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is a path"):
        open_filesystem(str(tmp_path), {"anon": True})


def test_a_file_system_is_pickled_with_its_options_and_shows_no_secret(fs, bucket):
    fs.pipe_file(f"{bucket}/a", b"abc")
    again = pickle.loads(pickle.dumps(fs))  # noqa: S301  our own
    assert again.cat_file(f"{bucket}/a") == b"abc"
    assert again.endpoint_url == fs.endpoint_url
    assert fs.secret not in repr(fs)


def test_errors_keep_their_errno(fs, bucket):
    with pytest.raises(FileNotFoundError) as caught:
        fs.cat_file(f"{bucket}/gone")
    assert caught.value.errno == errno.ENOENT
