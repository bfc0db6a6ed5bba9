"""Tests of single requests over real sockets, through our own client and through fsspec."""

import asyncio
import errno
import logging
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import traceback
import warnings
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from threading import Event

import fsspec
import pytest
import s3fs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from raw_server import RawServer
from timeouts import TIMEOUT_S

from spinezarr.errors import UsageError
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import ChangedObjectError, NoSuchBucketError
from spinezarr.remote.fsspec_transport import _translate
from spinezarr.remote.object_request import ObjectRequest
from spinezarr.remote.s3_options import _endpoint, _Options, _settings
from spinezarr.remote.settings import RemoteSettings
from spinezarr.remote.transport import NoRangesError, TransientError, open_transport

N = 1024
DATA = bytes(range(256)) * (N // 256)
GENERAL = {"http": {"client_kwargs": {"trust_env": False}}, "s3": {"version_aware": False}}
"""Options without effect that our own client does not support, so that fsspec is used."""


def answer(status, body=b"", *headers, length=None):
    """Return an HTTP answer; length None means the true length."""
    lines = [f"HTTP/1.1 {status}", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def code(name):
    return f"<Error><Code>{name}</Code><Message>secret</Message></Error>".encode()


def chunked(status, body, *headers):
    head = "\r\n".join([f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *headers])
    return f"{head}\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


def part(start, stop, *, total=N, body=None, length=None):
    held = DATA[start:stop] if body is None else body
    about = f"Content-Range: bytes {start}-{stop - 1}/{total}"
    return answer("206 Partial Content", held, about, length=length)


class Server(RawServer):
    """A server that plays one answer to each request for a name, and records the requests.

    A name without a scripted answer is served with DATA. The connection is closed after answers
    of the kind CUT; STALL is never answered.
    """

    CUT, STALL = object(), object()

    def __init__(self, context=None):
        self.answers = {}
        self.received = Event()
        self.closed = Event()
        super().__init__(context)

    def on_close(self):
        self.closed.set()

    def answer(self, connection, head):
        self.received.set()
        plan = self._plan(head)
        if plan is self.STALL:
            return
        body, is_last = plan
        if head.startswith("HEAD "):
            body = body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        connection.sendall(body)
        if is_last:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _plan(self, head):
        name = head.split()[1].partition("?")[0].rpartition("/")[2]
        plan = self.answers.get(name)
        if callable(plan):
            plan = plan(head)
        if plan is self.STALL or isinstance(plan, tuple):
            return plan
        if plan is not None:
            return plan, False
        range_ = re.search(r"(?im)^range: bytes=(\d+)-(\d*)", head)
        if not range_:
            return answer("200 OK", DATA), False
        first = int(range_[1])
        if first >= len(DATA):
            return answer("416 x", b"", f"Content-Range: bytes */{len(DATA)}"), False
        last = min(int(range_[2] or len(DATA)), len(DATA) - 1)
        return part(first, last + 1), False


@pytest.fixture(scope="module")
def lasting():
    started = Server()
    yield started
    started.close()


@pytest.fixture
def server(lasting):
    """Share one server between tests, because s3fs takes long to connect to a new one."""
    lasting.answers.clear()
    lasting.heads.clear()
    lasting.received.clear()
    lasting.closed.clear()
    return lasting


@pytest.fixture
def own_server():
    """Return a server that the test may close."""
    started = Server()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch, tmp_path):
    """Hide the user's own settings."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def opened(server, kind, way, **options):
    """Return a transport, through our own client or fsspec, and the path of a folder."""
    if kind == "s3":
        options = {"endpoint_url": server.url, "key": "KEY", "secret": "SECRET", **options}
    options |= GENERAL[kind] if way == "fsspec" else {}
    url = f"{server.url}/folder" if kind == "http" else "s3://bucket/folder"
    transport, path = open_transport(url, options)
    assert transport.uses_direct_client == (way == "direct")
    return transport, path


@pytest.fixture(params=["http-direct", "http-fsspec", "s3-direct", "s3-fsspec"])
def place(request, server):
    return opened(server, *request.param.split("-"))


def get(transport, path, *span):
    return bytes(asyncio.run(transport.get(path, *span)))


# Bytes


@pytest.mark.parametrize(
    "span",
    [(), (0, 10), (5, 900), (1000, 1024), (1000, 2000), (1024, 1030), (3000, 4000), (7, None)],
)
def test_a_range_equals_the_slice_of_the_data(place, span):
    transport, path = place
    expected = DATA[slice(*span)] if span else DATA
    assert get(transport, f"{path}/a", *span) == expected


def test_an_empty_range_takes_no_request(place, server):
    transport, path = place
    assert get(transport, f"{path}/a", 5, 5) == b""
    assert server.heads == []


def test_each_range_takes_one_request(place, server):
    transport, path = place
    for start in range(5):
        assert get(transport, f"{path}/a", start, start + 3) == DATA[start : start + 3]
    assert len(server.heads) == 5


def test_many_event_loops_can_read_at_once(place):
    transport, path = place

    async def all_of_them():
        spans = [(i, i + 100) for i in range(50)]
        found = await asyncio.gather(*(transport.get(f"{path}/a", *span) for span in spans))
        return all(
            bytes(item) == DATA[slice(*span)] for item, span in zip(found, spans, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: asyncio.run(all_of_them()), range(4)))


# Versions


def versioned(tag, written="Sun, 06 Nov 1994 08:49:37 GMT"):
    """Return an answer of a server that has one version of an object and supports If-Match."""

    def play(head):
        if_match = re.search(r"(?im)^if-match: (.*?)\r?$", head)
        if if_match and if_match[1] != tag:
            return answer("412 x", code("PreconditionFailed")), False
        if_none_match = re.search(r"(?im)^if-none-match: (.*?)\r?$", head)
        headers = (f"ETag: {tag}", f"Last-Modified: {written}")
        if if_none_match and if_none_match[1] == tag:
            return answer("304 Not Modified", b"", *headers, length=N), False
        if "range:" not in head.lower():
            return answer("200 OK", DATA, *headers), False
        head = f"HTTP/1.1 206 x\r\nETag: {tag}\r\nLast-Modified: {written}\r\n".encode()
        return head + part(5, 9).partition(b"\r\n")[2], False

    return play


def version(transport, path, *span, **asked):
    return asyncio.run(transport.get_response(ObjectRequest(path, *span, limit_bytes=N, **asked)))


def test_the_version_of_an_object_is_returned_and_can_be_requested(place, server):
    transport, path = place
    server.answers["a"] = versioned('"1"')
    found = version(transport, f"{path}/a", 5, 9)
    assert (bytes(found.data), found.etag, found.size_bytes) == (DATA[5:9], '"1"', N)
    assert found.modified_s == 784111777
    whole = version(transport, f"{path}/a")
    assert (bytes(whole.data), whole.etag, whole.size_bytes) == (DATA, '"1"', N)
    assert bytes(version(transport, f"{path}/a", 5, 9, if_match='"1"').data) == DATA[5:9]
    assert version(transport, f"{path}/a", if_none_match='"1"').is_not_modified
    assert bytes(version(transport, f"{path}/a", if_none_match='"0"').data) == DATA
    with pytest.raises(ChangedObjectError):
        version(transport, f"{path}/a", 5, 9, if_match='"2"')
    assert bytes(version(transport, f"{path}/a", 5, 9).data) == DATA[5:9]


def test_another_version_is_an_error_even_if_the_server_ignores_conditions(place, server):
    transport, path = place
    server.answers["a"] = part(5, 9)
    with pytest.raises(ChangedObjectError):
        version(transport, f"{path}/a", 5, 9, if_match='"2"')
    server.answers["a"] = answer("200 OK", DATA, 'ETag: W/"1"')
    with pytest.raises(ChangedObjectError):
        version(transport, f"{path}/a", if_match='W/"1"')
    found = version(transport, f"{path}/a")
    assert (found.etag, found.modified_s) == ("", None)
    server.answers["b"] = answer("404 x", code("NoSuchKey"))
    with pytest.raises(FileNotFoundError):
        version(transport, f"{path}/b", if_none_match='"1"')


def test_a_body_of_unknown_length_is_read(place, server):
    transport, path = place
    server.answers["a"] = chunked("200 OK", DATA)
    server.answers["b"] = chunked("206 x", DATA[:9], f"Content-Range: bytes 0-8/{len(DATA)}")
    assert get(transport, f"{path}/a") == DATA
    assert get(transport, f"{path}/b", 0, 9) == DATA[:9]


def test_a_range_of_an_object_of_unknown_length_is_read(place, server):
    transport, path = place
    server.answers["a"] = part(0, 9, total="*")
    assert get(transport, f"{path}/a", 0, 9) == DATA[:9]


# Errors

LONG = b"x" * 100
FAULTS = {
    "absent": (answer("404 Not Found"), FileNotFoundError),
    "gone": (answer("410 Gone"), FileNotFoundError),
    "no login": (answer("401 Unauthorized"), PermissionError),
    "no rights": (answer("403 Forbidden"), PermissionError),
    "too many": (answer("429 Too Many Requests", b"", "Retry-After: 3"), TransientError),
    "busy": (answer("503 Slow Down", b"", "Retry-After: 3"), TransientError),
    "broken": (answer("500 Internal Server Error"), TransientError),
    "gateway": (answer("502 Bad Gateway", b"<html>"), TransientError),
    "gateway timeout": (answer("504 Gateway Timeout"), TransientError),
    "slow": (answer("408 Request Timeout"), TransientError),
    "never": (answer("501 Not Implemented"), OSError),
    "wrong": (answer("400 Bad Request"), OSError),
    "teapot": (answer("418 I'm a teapot"), OSError),
    "whole": (answer("200 OK", DATA), NoRangesError),
    "whole, of unknown length": (chunked("200 OK", DATA), NoRangesError),
    "whole, as long as the range": (answer("200 OK", LONG), TransientError),
    "whole, shorter": (answer("200 OK", LONG[:50]), TransientError),
    "page": (answer("200 OK", b"\n<!DOCTYPE html><p>Log in</p>"), PermissionError),
    "no range of a whole": (answer("416 x", b"", f"Content-Range: bytes */{N}"), NoRangesError),
    "cut": ((part(10, 110, body=LONG[:50], length=100), True), TransientError),
    "cut head": ((b"HTTP/1.1 206 Parti", True), TransientError),
    "hung up": ((b"", True), TransientError),
    "no HTTP": ((b"SSH-2.0-OpenSSH\r\n\r\n", True), TransientError),
    "short body": (part(10, 110, body=LONG[:50]), TransientError),
    "long body": (part(10, 110, body=LONG * 2), TransientError),
    "short range": (part(10, 60), NoRangesError),
    "longer range": (part(9, 110), NoRangesError),
    "later range": (part(20, 110), NoRangesError),
    "other range": (part(11, 111), NoRangesError),
    "unnamed range": (answer("206 Partial Content", LONG), NoRangesError),
    "nonsense range": (answer("206 x", LONG, "Content-Range: bytes x"), NoRangesError),
}


LEFT_TO_FSSPEC = {name for name in FAULTS if name.startswith(("whole", "page", "no range"))}
TAKEN_FOR_IDLE = {"cut head", "hung up", "no HTTP"}
"""Faults after which aiohttp retries, because its connection might have been idle."""
WRONG_LENGTH = {
    f"{kind} {what}"
    for kind in ("short", "long", "longer", "later", "other", "unnamed", "nonsense")
    for what in ("body", "range")
}
"""Faults after which fsspec requests the object again, to report what came."""
TWICE = LEFT_TO_FSSPEC | TAKEN_FOR_IDLE | WRONG_LENGTH


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_raises_its_class_without_a_retry(place, server, fault):
    transport, path = place
    server.answers["a"], kind = FAULTS[fault]
    if fault == "unnamed range" and path.startswith("bucket"):
        kind = TransientError  # s3fs cannot distinguish it from the whole object
    with pytest.raises(OSError, match=re.escape(f"{path}/a")) as caught:
        get(transport, f"{path}/a", 10, 110)
    assert type(caught.value) is kind
    assert caught.value.errno
    assert caught.value.filename.endswith(f"{path}/a")
    assert len(server.heads) <= (2 if fault in TWICE else 1)


def test_the_error_of_a_server_without_ranges_explains_it(place, server):
    transport, path = place
    server.answers["a"] = answer("200 OK", DATA)
    with pytest.raises(NoRangesError, match=r"1024 bytes instead of bytes 10 to 109\. Chunks"):
        get(transport, f"{path}/a", 10, 110)
    server.answers["a"] = answer("416 x", b"", f"Content-Range: bytes */{N}")
    with pytest.raises(NoRangesError, match=r"refused byte 10 of an object of 1024 bytes \(416\)"):
        get(transport, f"{path}/a", 10, 110)


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_the_body_of_a_whole_object_is_not_awaited(server, way):
    """The whole object may be a shard of a hundred MB."""
    transport, path = opened(server, "http", way)
    server.answers["a"] = answer("200 OK", DATA[:100], length=1 << 30)
    with pytest.raises(NoRangesError, match=f"whole object of {1 << 30} bytes"):
        get(transport, f"{path}/a", 10, 110)


@pytest.mark.parametrize("page", [b"<html><body>Sign in", b"\n <!doctype HTML><p>Sign in"])
@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_a_login_page_is_not_taken_for_the_object(server, own_server, way, page):
    server.answers["a"] = answer("302 Found", b"", f"Location: {own_server.url}/login?next=CANARY")
    own_server.answers["login"] = answer("200 OK", page, "Content-Type: text/html")
    transport, path = opened(server, "http", way)
    for span in ((), (10, 110), (0, len(page)), (5, None)):
        with pytest.raises(PermissionError, match=r"web page instead of the object.*a'$") as caught:
            get(transport, f"{path}/a", *span)
        assert not PLANTED.search(all_text_of(caught.value))
    server.answers["b"] = answer("200 OK", b"")
    assert get(transport, f"{path}/b") == b""


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_the_error_keeps_the_time_of_retry_after(server, kind):
    transport, path = opened(server, kind, "fsspec")
    soon = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    for text, least, most in (
        ("3", 3, 3),
        (soon, 590, 601),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("99999", 3600, 3600),
    ):
        server.answers["a"] = answer("429 x", b"", f"Retry-After: {text}")
        with pytest.raises(TransientError) as caught:
            get(transport, f"{path}/a", 0, 10)
        assert least <= caught.value.retry_after_s <= most
        assert pickle.loads(pickle.dumps(caught.value)).retry_after_s >= least  # noqa: S301
    server.answers["a"] = answer("429 x", b"", "Retry-After: soon")
    with pytest.raises(TransientError) as caught:
        get(transport, f"{path}/a", 0, 10)
    assert caught.value.retry_after_s is None


S3_FAULTS = {
    "NoSuchBucket": ("404 x", NoSuchBucketError, "no such bucket"),
    "NoSuchKey": ("404 x", FileNotFoundError, "no such object"),
    "AccessDenied": ("403 x", PermissionError, "rights of the account"),
    "ExpiredToken": ("400 x", PermissionError, "Get new ones"),
    "InvalidAccessKeyId": ("403 x", PermissionError, "does not know the access key"),
    "RequestTimeTooSkewed": ("403 x", PermissionError, "clock"),
    "SignatureDoesNotMatch": ("403 x", PermissionError, "secret key is wrong"),
    "PermanentRedirect": ("301 x", OSError, "AWS_DEFAULT_REGION"),
    "AuthorizationHeaderMalformed": ("400 x", OSError, "AWS_DEFAULT_REGION"),
    "RequestTimeout": ("400 x", TransientError, "RequestTimeout"),
    "SlowDown": ("503 x", TransientError, "SlowDown"),
    "InvalidObjectState": ("403 x", PermissionError, "access is denied"),
    "InvalidRequest": ("400 x", OSError, "InvalidRequest"),
}


@pytest.mark.parametrize("way", ["direct", "fsspec"])
@pytest.mark.parametrize("name", S3_FAULTS)
def test_errors_of_s3_are_explained(server, way, name):
    transport, path = opened(server, "s3", way)
    status, kind, text = S3_FAULTS[name]
    server.answers["a"] = answer(status, code(name))
    with pytest.raises(OSError, match=text) as caught:
        get(transport, f"{path}/a", 10, 110)
    assert type(caught.value) is kind


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_a_bucket_in_another_region_is_found(own_server, way):
    wrong = code("AuthorizationHeaderMalformed").replace(
        b"</Error>", b"<Region>eu-west-1</Region></Error>"
    )
    own_server.answers["a"] = lambda head: (
        None
        if "/eu-west-1/s3/" in head
        else answer("400 x", wrong, "x-amz-bucket-region: eu-west-1")
    )
    transport, path = opened(own_server, "s3", way)
    assert get(transport, f"{path}/a", 3, 9) == DATA[3:9]
    n_requests = len(own_server.heads)
    assert get(transport, f"{path}/a", 3, 9) == DATA[3:9]
    assert len(own_server.heads) == n_requests + 1


@pytest.mark.parametrize("way", ["direct", "fsspec"])
@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_refused_connection_is_a_transient_error(own_server, way, kind):
    transport, path = opened(own_server, kind, way)
    own_server.close()
    with pytest.raises(TransientError, match="network"):
        get(transport, f"{path}/a")


@pytest.mark.parametrize("options", [{}, GENERAL["http"]])
def test_a_host_name_that_does_not_resolve_is_a_transient_error(options):
    transport, path = open_transport("http://nowhere.invalid/a", options)
    with pytest.raises(TransientError):
        get(transport, path)


def test_cancelling_frees_the_connection(place, server):
    transport, path = place
    server.answers["a"] = Server.STALL

    async def leave():
        task = asyncio.create_task(transport.get(f"{path}/a", 0, 10))
        await asyncio.to_thread(server.received.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.closed.wait, 30)
        return bytes(await transport.get(f"{path}/b", 0, 10))

    assert asyncio.run(leave()) == DATA[:10]


@pytest.mark.parametrize("where", ["https://host/a", "s3://bucket/a"])
def test_a_missing_local_file_is_not_reported_as_an_absent_object(where):
    found = _translate(FileNotFoundError(errno.ENOENT, "certificates"), where, None)
    assert type(found) is OSError


# Secrets

SECRETS = {
    "user": "CANARY-user",
    "password": "CANARY-pass",
    "query": "CANARY-signature",
    "header": "CANARY-header",
    "key": "CANARYKEY",
    "secret": "CANARY-secret",
    "token": "CANARY-token",
}
PLANTED = re.compile("canary", re.IGNORECASE)


def all_text_of(problem):
    """Return everything that could be printed of an error and its causes."""
    chain, following = [], [problem]
    while following:
        chain.append(following.pop())
        following += [x for x in (chain[-1].__cause__, chain[-1].__context__) if x is not None]
    parts = [f"{x!s} {x!r} {x.args} {vars(x)}" for x in chain]
    return "\n".join([*parts, *traceback.format_exception(problem)])


def planted(server, kind):
    """Return a URL full of secrets, and options."""
    if kind == "s3":
        own = {"endpoint_url": server.url, "key": SECRETS["key"], "secret": SECRETS["secret"]}
        return "s3://bucket/a", own
    login = f"{SECRETS['user']}:{SECRETS['password']}@"
    query = f"?X-Amz-Signature={SECRETS['query']}" if kind == "signed" else ""
    url = f"http://{login}127.0.0.1:{server.port}/a{query}"
    return url, {"headers": {"X-Token": SECRETS["header"]}}


def echoing(plan):
    """Return an answer that repeats all secrets, if it has room for them."""
    echo = " ".join(SECRETS.values()).encode()
    empty = b"Content-Length: 0\r\n"
    if isinstance(plan, tuple) or empty not in plan:
        return plan
    return plan.replace(empty, b"X-Echo: %b\r\nContent-Length: %d\r\n" % (echo, len(echo))) + echo


@pytest.mark.parametrize("way", ["direct", "fsspec"])
@pytest.mark.parametrize("kind", ["http", "signed", "s3"])
def test_errors_and_logs_contain_no_secret(own_server, way, kind, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for module in ("botocore", "aiobotocore", "s3fs"):  # at DEBUG they log secrets
        monkeypatch.setattr(logging.getLogger(module), "level", logging.INFO)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS["token"])
    url, options = planted(own_server, kind)
    options |= GENERAL["s3" if kind == "s3" else "http"] if way == "fsspec" else {}
    transport, path = open_transport(url, options)
    assert not PLANTED.search(repr(transport))
    for fault in (*FAULTS, "nobody"):
        if fault == "nobody":
            own_server.close()
        else:
            own_server.answers["a"] = echoing(FAULTS[fault][0])
        with pytest.raises(OSError, match="a") as caught:
            get(transport, path, 10, 110)
        assert not PLANTED.search(all_text_of(caught.value)), fault
    assert not PLANTED.search(caplog.text)


@pytest.mark.parametrize(
    "url",
    [
        "http://CANARY:CANARY@host:80/a?CANARY#CANARY",
        "https://CANARY@host/a",
        "https://u:CANARY/CANARY@host/a",
        "s3://CANARY:CANARY@bucket/a?versionId=CANARY",
    ],
)
def test_a_redacted_url_contains_no_secret(url):
    assert not PLANTED.search(redact_url(url))
    assert redact_url(url).endswith("/a")
    assert redact_url("https://host:80/a@b/c d") == "https://host:80/a@b/c d"
    assert redact_url("/a/b") == "/a/b"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://b/a", {"endpoint_url": "ftp://u:CANARY@host"}),
        ("nothing://u:CANARY@host", {}),
    ],
)
def test_the_error_of_invalid_options_contains_no_secret(url, options):
    with pytest.raises(UsageError) as caught:
        open_transport(url, options)
    assert not PLANTED.search(all_text_of(caught.value))


# Web servers


SEGMENT = st.text(
    st.characters(exclude_characters="/?#\\", exclude_categories=["C", "Z"])
    | st.sampled_from(" %+~"),
    min_size=1,
    max_size=6,
)
ESCAPES = st.sampled_from(
    ["%20", "%41", "%2F", "%2f", "%2B", "%25", "%zz", "%", "%C3%A4", "%E4", "%00"]
)


@given(
    st.lists(SEGMENT | ESCAPES | st.tuples(SEGMENT, ESCAPES).map("".join), min_size=1, max_size=3)
)
def test_a_path_is_requested_as_fsspec_requests_it(server_for_paths, segments):
    url = f"{server_for_paths.url}/{'/'.join(segments)}"
    request_lines = []
    for options in ({}, GENERAL["http"]):
        server_for_paths.heads.clear()
        transport, _ = open_transport(f"{server_for_paths.url}/x", options)
        get(transport, url)
        request_lines.append(server_for_paths.heads[0].split("\r\n")[0])
    assert request_lines[0] == request_lines[1]


@pytest.fixture(scope="module")
def server_for_paths():
    started = Server()
    yield started
    started.close()


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_a_signed_url_is_requested_unchanged(server, way):
    transport, _ = opened(server, "http", way)
    assert get(transport, f"{server.url}/a?X-Amz-Signature=1%2B2&b=c", 0, 5) == DATA[:5]
    assert server.heads[0].startswith("GET /a?X-Amz-Signature=1%2B2&b=c HTTP")


@pytest.mark.parametrize("way", ["direct", "fsspec"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_user_headers_and_logins_are_sent(server, way):
    from aiohttp import BasicAuth  # noqa: PLC0415  takes long

    general = GENERAL["http"] if way == "fsspec" else {}

    def header(name, url, **options):
        transport, path = open_transport(url, {**options, **general})
        assert get(transport, path, 0, 5) == DATA[:5]
        return re.search(rf"(?im)^{name}: (.*?)\r?$", server.heads[-1])[1]

    here = f"127.0.0.1:{server.port}/a"
    assert header("x-token", f"http://{here}", headers={"X-Token": "1"}) == "1"
    login = header("authorization", f"http://me:p%40ss@{here}")
    assert b64decode(login.removeprefix("Basic ")) == b"me:p@ss"
    login = header("authorization", f"http://{here}", auth=BasicAuth("me", "pw"))
    assert b64decode(login.removeprefix("Basic ")) == b"me:pw"


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_a_redirect_is_followed_without_sending_the_login_to_another_server(
    server, own_server, way
):
    server.answers["a"] = answer("302 Found", b"", f"Location: {own_server.url}/b")
    transport, path = opened(server, "http", way, headers={"Authorization": "Bearer x"})
    assert get(transport, f"{path}/a", 3, 9) == DATA[3:9]
    assert "Bearer" in server.heads[0]
    assert "Bearer" not in own_server.heads[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Make a self-signed certificate for this machine; return its file, and one with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(here, critical=False).sign(key, hashes.SHA256())
    public = made.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder = tmp_path_factory.mktemp("certificate")
    (folder / "public.pem").write_bytes(public)
    (folder / "both.pem").write_bytes(private + public)
    return folder / "public.pem", folder / "both.pem"


@pytest.fixture
def secure_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1])
    started = Server(context)
    yield started
    started.close()


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_certificates_are_checked_as_configured(secure_server, way, certificate, monkeypatch):
    assert secure_server.url.startswith("https://")
    for kind in ("http", "s3"):
        transport, path = opened(secure_server, kind, way)
        with pytest.raises(OSError, match="certificate is not trusted") as caught:
            get(transport, f"{path}/a", 0, 5)
        assert type(caught.value) is OSError
    for verify in (str(certificate[0]), False):
        transport, path = opened(secure_server, "s3", way, client_kwargs={"verify": verify})
        with warnings.catch_warnings(action="ignore"):
            assert get(transport, f"{path}/a", 0, 5) == DATA[:5]
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    transport, path = opened(secure_server, "s3", way)
    assert get(transport, f"{path}/a", 0, 5) == DATA[:5]
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    transport, path = opened(secure_server, "s3", way)
    with pytest.raises(OSError, match="bucket/folder/a") as caught:
        get(transport, f"{path}/a", 0, 5)
    assert not isinstance(caught.value, FileNotFoundError)


# Buckets


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_s3fs_options_change_the_requests(server, way):
    def head(**options):
        transport, path = opened(server, "s3", way, **options)
        assert get(transport, f"{path}/a", 0, 5) == DATA[:5]
        return server.heads[-1].lower()

    signed = head()
    assert signed.startswith("get /bucket/folder/a http")
    assert "credential=key/" in signed
    assert "/us-east-1/s3/aws4_request" in signed
    assert "x-amz-request-payer" not in signed
    assert "x-amz-security-token: tok" in head(token="TOK")  # noqa: S106
    assert "authorization" not in head(anon=True)
    if way == "direct" or Version(s3fs.__version__) >= Version("2026.9"):  # left out by older ones
        assert "x-amz-request-payer: requester" in head(requester_pays=True)
    assert "/eu-west-1/s3/" in head(client_kwargs={"region_name": "eu-west-1"})
    assert "/eu-west-1/s3/" in head(config_kwargs={"region_name": "eu-west-1"})
    assert "credential=other/" in head(key=None, secret=None, username="OTHER", password="x")  # noqa: S106


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_environment_variables_change_the_requests(server, way, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOK")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")

    def head(**options):
        general = GENERAL["s3"] if way == "fsspec" else {}
        transport, path = open_transport("s3://bucket/a", {**options, **general})
        assert get(transport, path, 0, 5) == DATA[:5]
        return server.heads[-1]

    assert "Credential=ENV/" in head()
    assert "/eu-west-1/s3/" in head()
    assert re.search(r"(?i)x-amz-security-token: TOK", head())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    assert "Credential=OPT/" in head(key="OPT", secret="x")  # noqa: S106
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert "Credential=ENV/" in head(endpoint_url=server.url)
    # Other clients read these, and botocore does not.
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    last = head(endpoint_url=server.url)
    assert "Credential=ENV/" in last
    assert "payer" not in last.lower()
    assert last.startswith("GET /bucket/a ")


CONFIG = """\
[default]
region = eu-west-2
[profile lab]
region = eu-west-3
services = lab
s3 =
  addressing_style = path
[services lab]
s3 =
  endpoint_url = {url}
[profile tool]
endpoint_url = {url}
credential_process = {python} {tool}
"""
TOOL = """\
import json, pathlib
count = pathlib.Path(__file__).with_name("count")
n = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(n))
print(json.dumps({"Version": 1, "AccessKeyId": f"TOOL{n}", "SecretAccessKey": "x",
    "SessionToken": "t", "Expiration": "2099-01-01T00:00:00Z"}))
"""


@pytest.fixture
def profiles(server, tmp_path):
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "tool.py").write_text(TOOL)
    text = CONFIG.format(url=server.url, python=sys.executable, tool=folder / "tool.py")
    (folder / "config").write_text(text)
    (folder / "credentials").write_text(
        "[lab]\naws_access_key_id = LAB\naws_secret_access_key = x\n"
        "[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = x\n"
    )


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_profiles_change_the_requests(server, way, profiles, monkeypatch):
    def head(**options):
        general = GENERAL["s3"] if way == "fsspec" else {}
        transport, path = open_transport("s3://bucket/a", {**options, **general})
        assert get(transport, path, 0, 5) == DATA[:5]
        return server.heads[-1]

    lab = head(profile="lab")
    assert "Credential=LAB/" in lab
    assert "/eu-west-3/s3/" in lab
    assert "Credential=TOOL" in head(profile="tool")
    default = head(endpoint_url=server.url)
    assert "Credential=DEFAULT/" in default
    assert "/eu-west-2/s3/" in default
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert "Credential=LAB/" in head()
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    plain = head(endpoint_url=server.url)
    assert "Credential=ENV/" in plain
    assert "/eu-west-2/s3/" in plain


def test_credentials_are_renewed(server, profiles, tmp_path):
    tool = tmp_path / ".aws" / "tool.py"
    soon = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()  # botocore renews at once
    tool.write_text(TOOL.replace("2099-01-01T00:00:00Z", soon))
    settings = RemoteSettings(credentials_refresh_s=1e-6)
    transport, path = open_transport("s3://bucket/a", {"profile": "tool"}, settings)
    assert transport.uses_direct_client
    for _ in range(3):
        assert get(transport, path, 0, 5) == DATA[:5]
    keys = [re.search(r"Credential=(\w+)/", head)[1] for head in server.heads]
    assert len(set(keys)) > 1
    tool.write_text("import sys; sys.exit('CANARY')")
    with pytest.raises(PermissionError, match="credentials cannot be renewed") as caught:
        get(transport, path, 0, 5)
    assert not PLANTED.search(all_text_of(caught.value))


@pytest.mark.parametrize("way", ["direct", "fsspec"])
def test_the_error_of_missing_credentials_names_the_next_step(server, way):
    transport, path = opened(server, "s3", way, key=None, secret=None)
    with pytest.raises(PermissionError, match="AWS_PROFILE") as caught:
        get(transport, f"{path}/a")
    assert caught.value.filename == "s3://bucket/folder/a"
    transport, path = opened(server, "s3", way, key=None, secret=None, profile="nobody")
    with pytest.raises(PermissionError, match="nobody"):
        get(transport, f"{path}/a")
    assert server.heads == []


def test_aws_bucket_names_are_put_into_the_host_where_possible():
    def where(bucket, **options):
        given = {"key": "k", "secret": "s", **options}
        return _endpoint(bucket, _settings(_Options.of(given), timedelta(minutes=1)))

    assert where("my-data") == ("https://my-data.s3.us-east-1.amazonaws.com", True)
    assert where("my.data") == ("https://s3.us-east-1.amazonaws.com", False)
    region = {"region_name": "cn-north-1"}
    host = "https://my-data.s3.cn-north-1.amazonaws.com.cn"
    assert where("my-data", client_kwargs=region) == (host, True)
    path = {"s3": {"addressing_style": "path"}}
    assert where("my-data", config_kwargs=path) == ("https://s3.us-east-1.amazonaws.com", False)
    assert where("my-data", use_ssl=False)[0].startswith("http://my-data.s3")
    own = "https://ceph.example.org:8443/"
    assert where("my-data", endpoint_url=own) == ("https://ceph.example.org:8443", False)
    host = {"s3": {"addressing_style": "virtual"}}
    found = where("my-data", endpoint_url=own, config_kwargs=host)
    assert found == ("https://my-data.ceph.example.org:8443", True)


# Other file systems


def test_any_fsspec_file_system_can_be_read(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/transport/a", DATA)
    (tmp_path / "a").write_bytes(DATA)
    for url in (
        "memory://transport",
        str(tmp_path),
        f"file://{tmp_path}",
        "simplecache::memory://transport",
    ):
        transport, path = open_transport(url)
        assert get(transport, f"{path}/a") == DATA
        assert get(transport, f"{path}/a", 5, 10) == DATA[5:10]
        assert get(transport, f"{path}/a", 1000, 2000) == DATA[1000:]
        assert get(transport, f"{path}/a", 2000, 2001) == b""
        with pytest.raises(FileNotFoundError):
            get(transport, f"{path}/b")
    memory.rm("/transport", recursive=True)


# Processes

PROCESSES = """
import asyncio, multiprocessing, sys
from spinezarr.remote.transport import open_transport

def work(transport, path, answers):
    answers.put(bytes(asyncio.run(transport.get(path, 5, 9))))

def child(kind, transport, path):
    context = multiprocessing.get_context(kind)
    answers = context.SimpleQueue()
    process = context.Process(target=work, args=(transport, path, answers))
    process.start()
    found = answers.get()
    process.join()
    assert process.exitcode == 0, process.exitcode
    return found

if __name__ == "__main__":
    url, options = eval(sys.argv[1])
    transport, path = open_transport(url, options)
    found = [child("fork", transport, path)]  # before it was used
    found.append(bytes(asyncio.run(transport.get(path, 5, 9))))
    found.append(child("fork", transport, path))
    found.append(child("fork", *open_transport(url, options)))
    found.append(child("spawn", transport, path))
    found.append(bytes(asyncio.run(transport.get(path, 5, 9))))
    print(found)
"""


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("http", "fsspec"),
        ("s3", "direct"),
        pytest.param("http", "direct", marks=pytest.mark.long),
        pytest.param("s3", "fsspec", marks=pytest.mark.long),
    ],
)
def test_forked_and_spawned_processes_read(server, kind, way, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    options = {"endpoint_url": server.url, "key": "K", "secret": "S"} if kind == "s3" else {}
    options |= GENERAL[kind] if way == "fsspec" else {}
    url = "s3://bucket/a" if kind == "s3" else f"{server.url}/a"
    command = [sys.executable, str(program), repr((url, options))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stderr == ""
    assert done.stdout == f"{[DATA[5:9]] * 6}\n"


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_our_own_client_imports_few_modules(server, kind):
    options = {"endpoint_url": server.url, "key": "K", "secret": "S"} if kind == "s3" else {}
    url = "s3://bucket/a" if kind == "s3" else f"{server.url}/a"
    slow = "aiobotocore aiohttp boto3 botocore s3fs yarl"
    code = (
        "import asyncio, sys\n"
        "from spinezarr.remote.transport import open_transport\n"
        f"transport, path = open_transport({url!r}, {options!r})\n"
        "print(bytes(asyncio.run(transport.get(path, 5, 9))))\n"
        f"print([name for name in {slow!r}.split() if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stdout == f"{DATA[5:9]}\n[]\n"
