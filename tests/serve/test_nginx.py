"""Answers to ranges and conditions, compared with nginx, and the reasons for differences."""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from http_client import fetch
from server_process import free_port
from timeouts import wait_until

from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

KEY = "scans/liver_0/zarr.json"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
CONFIGURATION = """
daemon off;
pid {folder}/pid;
{user}
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  types {{ }}
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

SEVERAL = "several ranges are answered with the whole file, as S3 does, not with a multipart"
LIST = "what has a comma is taken for several ranges, and answered whole; no client sends it"
SPACE = "spaces and tabs around numbers are skipped"
SHORT = "nginx ignores a header of less than seven characters; no range is none that is there"
HEAD = "ranges are of GET alone (RFC 9110, section 14.2)"
DATE = "files of a store have no date, so none is compared (RFC 9110, section 13.1.4)"

# {n} is the size of the file, {m} its last position, {etag} its tag.
RANGES = [
    # one
    "bytes=0-0", "bytes=0-1", "bytes=1-2", "bytes=9-99", "bytes=0-{m}", "bytes=0-{n}",
    "bytes={m}-{m}",
    "bytes={m}-{n}", "bytes=1-99999999999", "bytes=007-008", "bytes=00-00", "bytes=5-5",
    # open end
    "bytes=0-", "bytes=1-", "bytes={m}-", "bytes={n}-", "bytes=99999999999-",
    "bytes=9223372036854775806-",
    # the last
    "bytes=-1", "bytes=-2", "bytes=-{m}", "bytes=-{n}", "bytes=-99999999999", "bytes=-0",
    "bytes=-00",
    "bytes=-9223372036854775806",
    # beyond the end
    "bytes={n}-{n}", "bytes={n}-99999999999", "bytes=99999999999-99999999999",
    # numbers larger than any file
    "bytes=99999999999999999999-", "bytes=0-99999999999999999999", "bytes=-99999999999999999999",
    "bytes=18446744073709551616-18446744073709551617",
    # no ranges
    "bytes=", "bytes=-", "bytes=--1", "bytes=5-2", "bytes=a-b", "bytes=a-", "bytes=-a", "bytes=1",
    "bytes=1-2-3", "bytes=+1-2",
    "bytes=1.0-2", "bytes=0x1-2", "bytes=1-2;", "bytes=*", "bytes=1-b", "bytes=1e1-", 'bytes="0-1"',
    "bytes=0-1 2-3",
    # spaces
    "bytes= 1-2", "bytes=1-2 ", "bytes=1 -2", "bytes=1- 2", "bytes=- 2", "bytes=\t1-2",
    "bytes =1-2", " bytes=1-2",
    # other units
    "items=0-1", "byte=0-1", "bytes 0-1", "bytes:0-1", "none", "0-1", "", "Bytes=0-1", "BYTES=0-1",
    "bYtEs=-1",
    # several
    "bytes=0-1,3-4", "bytes=0-0,-1", "bytes=0-1, 3-4", "bytes=0-,0-", "bytes=3-4,0-1",
    "bytes=0-0,0-0", "bytes=0-1,{n}-",
    "bytes={n}-,{n}-", "bytes=0-1,", "bytes=,0-1", "bytes=,", "bytes=0-1,a", "bytes=5-2,0-1",
]  # fmt: skip
CONDITIONS = [
    {"if_match": "{etag}"}, {"if_match": "*"}, {"if_match": '"x"'}, {"if_match": '"x", {etag}'},
    {"if_match": "W/{etag}"}, {"if_match": ""}, {"if_match": "x"},
    {"if_none_match": "{etag}"}, {"if_none_match": "*"}, {"if_none_match": '"x"'},
    {"if_none_match": '"x", {etag}'}, {"if_none_match": "W/{etag}"}, {"if_none_match": ""},
    {"if_none_match": '"x"', "if_match": "{etag}"}, {"if_none_match": "{etag}", "if_match": '"x"'},
    {"if_none_match": "{etag}", "if_match": "{etag}"}, {"if_match": "{etag} {etag}"},
    {"if_range": "{etag}"}, {"if_range": '"x"'}, {"if_range": "W/{etag}"}, {"if_range": ""},
    {"if_range": "Thu, 01 Jan 1970 00:00:00 GMT"}, {"if_range": "*"},
    {"if_modified_since": "Thu, 01 Jan 2099 00:00:00 GMT"},
    {"if_unmodified_since": "Thu, 01 Jan 1970 00:00:00 GMT"},
]  # fmt: skip
UNMODIFIED = "if_unmodified_since: Thu, 01 Jan 1970 00:00:00 GMT"
DIFFERENCES = {
    # request: (status of nginx, our status), reason
    "GET range: bytes=0-1,3-4": ((206, 200), SEVERAL),
    "GET range: bytes=0-0,-1": ((206, 200), SEVERAL),
    "GET range: bytes=0-1, 3-4": ((206, 200), SEVERAL),
    "GET range: bytes=3-4,0-1": ((206, 200), SEVERAL),
    "GET range: bytes=0-0,0-0": ((206, 200), SEVERAL),
    "GET range: bytes=0-1,{n}-": ((206, 200), SEVERAL),
    "GET range: bytes=5-2,0-1": ((206, 200), SEVERAL),
    "GET range: bytes={n}-,{n}-": ((416, 200), SEVERAL),
    "GET range: bytes=0-1,": ((416, 200), LIST),
    "GET range: bytes=,0-1": ((416, 200), LIST),
    "GET range: bytes=,": ((416, 200), LIST),
    "GET range: bytes=0-1,a": ((416, 200), LIST),
    "GET range: bytes=- 2": ((416, 206), SPACE),
    "GET range: bytes=\t1-2": ((416, 206), SPACE),
    "GET range: bytes=": ((200, 416), SHORT),
    "HEAD range: bytes=0-1": ((206, 200), HEAD),
    "HEAD range: bytes=-2": ((206, 200), HEAD),
    "HEAD range: bytes={n}-": ((416, 200), HEAD),
    "HEAD range: bytes=a": ((416, 200), HEAD),
    f"GET range: bytes=1-2 {UNMODIFIED}": ((412, 206), DATE),
    f"GET {UNMODIFIED}": ((412, 200), DATE),
}


@pytest.fixture(scope="module")
def both(ctspine1k_url, tmp_path_factory):
    """Serve a file with nginx and with our server; return both URLs and the file's size."""
    if NGINX is None:
        pytest.skip("nginx is not installed. On Debian: apt-get install nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    root = folder / "root"
    root.mkdir()
    shutil.copy(Path(ctspine1k_url) / KEY, root / "file")
    user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    text = CONFIGURATION.format(folder=folder, port=port, root=root, user=user)
    (folder / "nginx.conf").write_text(text)
    command = [NGINX, "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"]
    with (
        BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server,
        subprocess.Popen(command) as process,
    ):
        theirs = f"http://127.0.0.1:{port}/file"

        def answers():
            assert process.poll() is None, (folder / "error.log").read_text()
            with suppress(OSError):
                return fetch(theirs)

        wait_until(answers)
        yield theirs, f"{server.url}/zarr/ctspine1k/{KEY}", (root / "file").stat().st_size
        process.terminate()


def answer(url, method, size, fields):
    """Return the parts of an answer to compare; the text of an error page is left out."""
    tag = {k.lower(): v for k, v in fetch(url, "HEAD")[1].items()}["etag"]
    headers = {name: value.format(n=size, m=size - 1, etag=tag) for name, value in fields.items()}
    status, found, body = fetch(url, method, **headers)
    found = {name.lower(): value for name, value in found.items()}
    told = {"status": status, "content-range": found.get("content-range")}
    if status in {200, 206}:
        told |= {"content-length": found["content-length"], "body": body}
    return told


CASES = [
    *(("GET", {"range": asked}) for asked in RANGES),
    *(("HEAD", {"range": asked}) for asked in ("bytes=0-1", "bytes=-2", "bytes={n}-", "bytes=a")),
    *(("GET", {"range": "bytes=1-2", **fields}) for fields in CONDITIONS),
    *(("GET", fields) for fields in CONDITIONS),
]


def named(method, fields):
    return " ".join([method, *(f"{name}: {value}" for name, value in fields.items())])


@pytest.mark.long
@pytest.mark.parametrize(("method", "fields"), CASES, ids=str)
def test_an_answer_equals_that_of_nginx_or_differs_for_a_listed_reason(both, method, fields):
    theirs, ours, size = both
    found = [answer(url, method, size, fields) for url in (theirs, ours)]
    case = named(method, fields)
    if case in DIFFERENCES:
        (status, own), why = DIFFERENCES[case]
        assert [one["status"] for one in found] == [status, own], why
        assert found[0] != found[1]
    else:
        assert found[0] == found[1]


def test_each_listed_difference_belongs_to_a_case():
    cases = {named(*case) for case in CASES}
    assert DIFFERENCES.keys() <= cases
    assert len(cases) == len(CASES)
    assert len(RANGES) >= 60
