"""Secrets of URLs and options are sent only to the server, and never printed or stored."""

import base64
import copy
import json
import pickle
import re
import shutil
import traceback
import zlib
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import hostile_text as hostile
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import spinezarr
from spinezarr.catalog import load_catalog
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.redaction import redact_url, redact_urls_in

SECRET = "CANARY"  # noqa: S105  planted
SCHEMES = ["http", "HTTPS", "s3", "ftp", "webdav", "simplecache::http", "filecache::s3"]
SCHEMES += ["zip://a.nii::https", "reference://::http", "blockcache::simplecache::s3"]
anything = st.text(st.characters(codec="utf-8"), max_size=6)
inside = st.text("aZ0-._~!$&'()*+,;=:%@", max_size=6)


@given(
    st.sampled_from(SCHEMES),
    st.sampled_from(["://", ":/", ":\\\\", "://"]),
    inside,
    st.sampled_from(["", "/", "?", "#", "\\", "@", "::", ":", "/@", "%40", " ", "://"]),
    inside,
    st.sampled_from(["host", "host:80", "[::1]", "[::1]:8080", "127.0.0.1:1"]),
    st.sampled_from(["", "/", "/a.zarr", "/a.zarr/scans/x@y/zarr.json", "/a%20b/c d"]),
)
@example("http", "://", "u:", "/", "", "host", "/a")
@example("http", "://", "u:x", "@", "/", "host", "/a")
def test_no_password_is_in_a_public_url(scheme, slashes, before, odd, after, host, path):
    # The password may be any text; RFC 3986 takes digits before '/' for a port.
    url = f"{scheme}{slashes}u:{SECRET}{before}{odd}{after}{SECRET}@{host}{path}"
    shown = redact_url(url)
    assert SECRET not in shown, url
    assert redact_url(shown) == shown
    assert SECRET not in redact_urls_in(url.replace(" ", "")), url


@given(st.sampled_from(SCHEMES), st.sampled_from("?#"), anything, st.sampled_from(["", "/a/b"]))
def test_no_query_is_in_a_public_url(scheme, mark, text, path):
    url = f"{scheme}://host{path}{mark}{text}X-Amz-Signature={SECRET}{text}"
    assert SECRET not in redact_url(url)
    assert redact_url(url).endswith(f"host{path}")


@given(st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=12))
def test_a_local_path_is_not_redacted(name):
    for path in (f"/data/{name}", f"./{name}@x?y#z", f"file:///data/{name}@x?y#z"):
        assert redact_url(path) == path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://token@host/a", "https://host/a"),
        ("HTTP://u:p@host:80/a", "HTTP://host:80/a"),
        ("http://u:p@[::1]:8080/a?b", "http://[::1]:8080/a"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http:/u:p@host/a", "http:/host/a"),
        ("http:\\\\u:p@host\\a", "http:\\\\host\\a"),
        ("http:u:p@host/a", "http:host/a"),
        ("//u:p@host/a", "//host/a"),
        ("http://u%3Ap%40host/a", "http://host/a"),
        ("http://u:p/w@host/a", "http://host/a"),
        ("http://u:p?w@host/a", "http://host/a"),
        ("http://u:p@w/x@host/a", "http://…/host/a"),
        ("http://u:123456/w@host/a", "http://host/a"),
        ("http://u:70000/w@host/a", "http://host/a"),
        ("http://proxy/http://u:p@host/a", "http://proxy/http://host/a"),
        ("simplecache::s3://k:s@bucket/a?b", "simplecache::s3://bucket/a"),
        ("zip://a/b@c.nii::http://u:p@host/x.zip", "zip://a/b@c.nii::http://host/x.zip"),
        ("simplecache::file:///a@b?c#d", "simplecache::file:///a@b?c#d"),
        ("zip://a::/b@c?d.zip", "zip://a::/b@c?d.zip"),
        ("hf://datasets/a/b@main/c", "hf://datasets/a/b@main/c"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        ("C:/data/a@b?c", "C:/data/a@b?c"),
        ("a::b@c", "a::b@c"),
        ("rel:a@b?c", "rel:a@b?c"),
    ],
)
def test_urls_are_redacted_as_expected(url, shown):
    assert redact_url(url) == shown


def test_errors_contain_no_secret():
    for text in ("http://u:CANARY@host/a: no.", "(simplecache::http://u:CANARY@h/a?CANARY), x"):
        assert SECRET not in str(UsageError(text))
        assert SECRET not in repr(UsageError(text))


class _Handler(BaseHTTPRequestHandler):
    """Serves files and ranges to requests with the password."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        expected = base64.b64encode(f"user:{SECRET}".encode()).decode()
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        data, status = b"", HTTPStatus.NOT_FOUND
        if self.headers.get("Authorization") != f"Basic {expected}":
            status = HTTPStatus.UNAUTHORIZED
        elif self.server.status is not None:
            status = self.server.status
        elif path.is_file():
            data, status = path.read_bytes(), HTTPStatus.OK
        whole = len(data)
        if asked and status == HTTPStatus.OK:
            first, last = int(asked[1]), min(int(asked[2]), whole - 1)
            data, status = data[first : last + 1], HTTPStatus.PARTIAL_CONTENT
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_):
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    status = None

    def handle_error(self, *_):
        """Print nothing, because commands close connections early."""


@contextmanager
def serving(folder):
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.folder = folder
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in ("a", "b"):
        hostile.write_pair(folder / "raw", name)
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="served")
    assert not ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "s")).failed
    shutil.copytree(folder / "s", folder / "damaged")
    shard = next(p for p in (folder / "damaged/scans/a/image").rglob("*[0-9]") if p.is_file())
    shard.write_bytes(bytes(shard.stat().st_size))
    with serving(folder) as server:
        yield server


COMMANDS = [
    ["info", "{}"],
    ["info", "{}", "--json"],
    ["verify", "{}"],
    ["verify", "{}", "--json"],
    ["verify", "{}", "--scan", "absent"],
    ["verify", "{}", "--against", "raw"],
    ["audit", "{}"],
    ["audit", "{}", "--json", "--no-write"],
    ["audit", "{}", "{}?other", "--json", "--no-write"],
    ["audit", "{}", "--scan", "absent"],
    ["stats", "{}"],
    ["stats", "{}", "--json"],
    ["stats", "{}", "--against", "card"],
    ["stats", "{}", "--split", "absent"],
    ["preview", "{}", "--out", "out"],
    ["preview", "{}", "--out", "out", "--scan", "absent"],
    ["export", "nifti", "{}", "--out", "out", "--json"],
    ["export", "nifti", "{}", "--out", "out", "--scan", "absent"],
    ["export", "nnunet", "{}", "--out", "out", "--json"],
    ["ingest", "pairs", "--image", "{{scan}}_ct.nii.gz", "--raw", "raw", "--out", "{}"],
    ["ingest", "pairs", "--image", "{{scan}}_ct.nii.gz", "--raw", "{}", "--out", "out/s"],
    ["ingest", "pairs", "--image", "{{scan}}_ct.nii.gz", "--raw", "{}", "--dry-run", "--json"],
    ["doctor", "{}"],
    ["doctor", "{}", "--json"],
    ["bench", "{}", "--seconds", "1"],
    ["bench", "{}", "--seconds", "1", "--json"],
]
PLACES = {
    "a store": "http://user:CANARY@{0}/s",
    "a signed store": "http://user:CANARY@{0}/s?X-Amz-Signature=CANARY#CANARY",
    "a damaged store": "http://user:CANARY@{0}/damaged",
    "nothing": "http://user:CANARY@{0}/nothing",
    "a wrong password": "http://user:CANARY2@{0}/s",
    "no password": "http://CANARY@{0}/s",
    "nobody": "http://user:CANARY@127.0.0.1:1/s",
    "a chain": "simplecache::http://user:CANARY@{0}/s",
    "no scheme": "canary://user:x@{0}/s",
    "a folder": "http:/user:CANARY@{0}/s",
    "a bad URL": "http://user:CANARY/CANARY@{0}/s",
    "another bad one": "http://user:C@NARY/CANARY ?CANARY@{0}/s",
}
FEW = [1, 3, 7, 15, 16, 23]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (place, words)
        for place in PLACES
        for number, words in enumerate(COMMANDS)
        if place.endswith(" store") or number in FEW
    ],
)
def test_no_command_prints_a_secret(place, words, served, run, tmp_path):
    hostile.write_pair(tmp_path / "raw", "a")
    (tmp_path / "out").mkdir()
    url = PLACES[place].format(f"127.0.0.1:{served.server_port}")
    said = run(*(word.format(url) for word in words))
    assert SECRET not in (said.out + said.err).decode(), said
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            unpacked = zlib.decompress(data, 31) if path.suffix == ".gz" else b""
            assert SECRET.encode() not in data + unpacked, path
    if "--json" in words and said.out:
        json.loads(said.out)


def test_reprs_and_attributes_of_a_store_contain_no_secret(served):
    url = f"http://user:{SECRET}@127.0.0.1:{served.server_port}/s?token={SECRET}"
    store = spinezarr.open(f"http://user:{SECRET}@127.0.0.1:{served.server_port}/s")
    scan = store.scan("a")
    patches = store.patches(8)
    reader = store._reader
    handle = reader.scan("a")
    shown = [store, scan, store.table, patches, reader, handle, handle.image, reader.objects]
    shown += [store.audit(), scan.image.data.dask, list(scan.image.data.dask)]
    shown += [pickle.loads(pickle.dumps(store)), copy.copy(handle.image)]  # noqa: S301  our own
    for value in shown:
        assert SECRET not in repr(value)
        assert SECRET not in str(value)
    assert SECRET not in json.dumps(scan.attrs)
    with pytest.raises(SpinezarrError) as caught:
        spinezarr.open(url.replace("/s?", "/absent?"))
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert SECRET not in str(caught.value)


def test_secret_options_are_not_printed(tmp_path):
    (tmp_path / "catalog.yaml").write_text(
        "datasets:\n  x:\n    recipe: verse\n    store: s3://k:CANARY@bucket/x\n"
        "    storage_options: {endpoint_url: 'https://u:CANARY@host'}\n"
    )
    catalog = load_catalog(tmp_path / "catalog.yaml")
    assert SECRET not in repr(catalog)
    with pytest.raises((SpinezarrError, OSError)) as caught:
        spinezarr.open(
            "s3://k:CANARY@bucket/x",
            storage_options={"key": SECRET, "secret": SECRET, "endpoint_url": "ftp://u:CANARY@h"},
        )
    assert SECRET not in str(caught.value)
