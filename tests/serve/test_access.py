"""Tests of access: browser sessions, signed URLs, and requests that neither of them permits."""

import html
import json
import re
import shutil
import socket
import time
import urllib.parse
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import obstore.store
import pytest
import tensorstore
import xarray as xr
import zarr
import zarr.storage
from http_client import fetch, fetch_patches
from hypothesis import given
from hypothesis import strategies as st
from timeouts import TIMEOUT_S
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import StoreNotFoundError, UsageError
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.signing import session_name, signed_path, signed_url
from spinezarr.serve.tokens import Tokens, make_key, new_token

SCAN = "liver_0"
VIEWER = "https://viewer.example"
DAY_S = 86_400


@dataclass(frozen=True)
class Lab:
    """A server that requires tokens."""

    url: str
    file: Path
    token: str

    def sign(self, path, name="anna", seconds=DAY_S):
        return signed_url(Tokens(self.file), f"{self.url}{path}", name, seconds)

    def key(self):
        return Path(f"{self.file}.key")


@pytest.fixture(scope="module")
def lab(ctspine1k_url, tmp_path_factory):
    """Serve the store twice; one name is a prefix of the other."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ctspine1k_url, folder / "ct.zarr")
    shutil.copytree(ctspine1k_url, folder / "ct2.zarr")
    token = new_token(folder / "tokens", "anna")
    settings = ServeSettings(
        paths=(str(folder),), token_file=str(folder / "tokens"), origins=frozenset({VIEWER})
    )
    with BackgroundServer(settings) as server:
        yield Lab(server.url, folder / "tokens", token)


@pytest.fixture
def own(lab, tmp_path):
    """Serve the same stores with a token file of their own, which a test may change."""
    file = tmp_path / "tokens"
    token = new_token(file, "anna")
    paths = (str(lab.file.parent / "ct.zarr"),)
    with BackgroundServer(ServeSettings(paths=paths, token_file=str(file))) as server:
        yield Lab(server.url, file, token)


def ask_once(url, method="GET", form=None, **headers):
    """Send a request, and follow no redirect."""
    parts = urllib.parse.urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    body = None if form is None else urllib.parse.urlencode(form)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if form is not None:
        fields.setdefault("content-type", "application/x-www-form-urlencoded")
    try:
        connection.request(method, url.removeprefix(f"http://{parts.netloc}"), body, fields)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def signed_in(lab, **headers):
    """Sign in, and return the cookie that a browser would send from then on."""
    status, said, _ = ask_once(f"{lab.url}/login", "POST", {"token": lab.token}, **headers)
    assert status == 303
    return said["set-cookie"].partition(";")[0]


# Sessions of browsers


@pytest.mark.parametrize("way", ["form", "link"])
def test_signing_in_once_with_a_token_opens_a_session(lab, way):
    if way == "form":
        form = {"token": f" {lab.token}\n", "next": "/v1/stores?a=b"}
        status, said, body = ask_once(f"{lab.url}/login", "POST", form)
    else:
        link = f"{lab.url}/login?token={lab.token}&next=/v1/stores%3Fa%3Db"
        status, said, body = ask_once(link, accept="text/html")
    assert (status, said["location"], body) == (303, "/v1/stores?a=b", b"")
    assert (said["cache-control"], said["referrer-policy"]) == ("no-store", "no-referrer")
    cookie, *about = said["set-cookie"].split("; ")
    assert set(about) == {"Path=/", f"Max-Age={30 * DAY_S}", "HttpOnly", "SameSite=Strict"}
    assert lab.token not in cookie
    assert Tokens(lab.file).hash_of("anna") not in cookie
    assert Tokens(lab.file).key not in cookie
    assert fetch(f"{lab.url}/v1/stores", cookie=cookie)[0] == 200
    assert fetch(f"{lab.url}/zarr/ct/zarr.json", cookie=f"other=1; {cookie}; x")[0] == 200
    wanted = {"items": [{"scan_id": SCAN, "start_zyx": [0, 0, 0]}], "size_zyx": [4, 4, 4]}
    assert fetch_patches(f"{lab.url}/v1/ct/batch", wanted, cookie=cookie)[0] == 200
    page = fetch(f"{lab.url}/login", cookie=cookie)[2].decode()
    assert "Signed in as anna" in page


def test_a_browser_without_a_session_gets_the_login_page_with_status_401(lab):
    status, said, body = fetch(f"{lab.url}/v1/stores?x=1&token=abc", accept="text/html,*/*")
    page = body.decode()
    assert status == 401  # a client would take 200 or 303 for the file
    assert said["www-authenticate"].startswith("Bearer")
    assert 'name="next" value="/v1/stores?x=1"' in page
    assert "http-equiv" not in page
    led = fetch(f"{lab.url}/v1/stores", accept="text/html", sec_fetch_site="cross-site")[2].decode()
    assert '<meta http-equiv="refresh" content="0;url=/v1/stores">' in led
    status, said, body = fetch(f"{lab.url}/login")
    assert (status, said["cache-control"]) == (200, "no-store")
    for text in (page, body.decode()):
        assert "<script" not in text
        assert "http://" not in text
        assert "https://" not in text
    policy = said["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert fetch(f"{lab.url}/v1/stores", accept="*/*")[1]["content-type"].startswith("text/plain")


def test_a_wrong_token_opens_no_session(lab):
    for wrong in ("wrong", f"{lab.token}x", "é", Tokens(lab.file).hash_of("anna")):
        status, said, body = ask_once(f"{lab.url}/login", "POST", {"token": wrong})
        assert (status, "set-cookie" in said) == (401, False)
        assert wrong not in body.decode()
    status, said, _ = ask_once(f"{lab.url}/login?token=x")
    assert (status, "set-cookie" in said) == (401, False)
    assert ask_once(f"{lab.url}/login", "POST", {"token": "x" * 20_000})[0] == 413
    assert ask_once(f"{lab.url}/login", "POST", {f"a{n}": "b" for n in range(20)})[0] == 400
    assert ask_once(f"{lab.url}/login", "PUT")[0] == 405
    assert ask_once(f"{lab.url}/logout")[0] == 405


@pytest.mark.parametrize(
    "onward",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        " /elsewhere",
        "elsewhere",
    ],
)
def test_signing_in_never_redirects_to_another_server(lab, onward):
    form = {"token": lab.token, "next": onward}
    assert ask_once(f"{lab.url}/login", "POST", form)[1]["location"] == "/"
    query = urllib.parse.urlencode(form)
    assert ask_once(f"{lab.url}/login?{query}")[1]["location"] == "/"
    assert (
        onward
        not in fetch(f"{lab.url}/login?{urllib.parse.urlencode({'next': onward})}")[2].decode()
    )


def test_the_login_page_escapes_the_requested_path(lab):
    onward = "/'\"><script>alert(1)</script>"
    page = fetch(f"{lab.url}/login?{urllib.parse.urlencode({'next': onward})}")[2].decode()
    assert "<script" not in page
    assert html.unescape(re.search(r'name="next" value="([^"]*)"', page)[1]) == onward
    asked = urllib.parse.quote("/zarr/'\"><script>")
    assert "<script" not in fetch(f"{lab.url}{asked}", accept="text/html")[2].decode()


def test_a_login_link_on_another_site_works(lab):
    link = f"{lab.url}/login?token={lab.token}&next=/v1/stores"
    status, said, body = ask_once(link, accept="text/html", sec_fetch_site="cross-site")
    assert (status, said["referrer-policy"]) == (200, "no-referrer")
    assert '<meta http-equiv="refresh" content="0;url=/v1/stores">' in body.decode()
    assert fetch(f"{lab.url}/v1/stores", cookie=said["set-cookie"].partition(";")[0])[0] == 200


def test_signing_out_works_only_from_pages_of_this_server(lab):
    host = lab.url.removeprefix("http://")
    cookie = signed_in(lab, origin=lab.url)
    status, said, _ = ask_once(f"{lab.url}/logout", "POST", {}, cookie=cookie, origin=lab.url)
    name, _, value = said["set-cookie"].partition(";")[0].partition("=")
    assert (status, said["location"], name, value) == (303, "/login", cookie.split("=")[0], "")
    assert "Max-Age=0" in said["set-cookie"]
    for headers in (
        {"origin": VIEWER},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": f"http://evil.example/{host}"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        status, said, _ = ask_once(f"{lab.url}/logout", "POST", {}, cookie=cookie, **headers)
        assert (status, "set-cookie" in said) == (401, False)
        form = {"token": lab.token}
        status, said, _ = ask_once(f"{lab.url}/login", "POST", form, **headers)
        assert (status, "set-cookie" in said) == (401, False)


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "same-site", "sec_fetch_dest": "empty"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_dest": "image"}, False),
        ({"sec_fetch_site": "same-site", "sec_fetch_dest": "document", "accept": "*/*"}, False),
        (
            {"sec_fetch_site": "same-site", "sec_fetch_dest": "document", "accept": "text/html"},
            True,
        ),
        (
            {"sec_fetch_site": "same-site", "sec_fetch_dest": "iframe", "accept": "text/html"},
            False,
        ),
        ({"origin": VIEWER, "sec_fetch_site": "cross-site"}, True),
        ({"origin": "http://localhost:8888", "sec_fetch_site": "same-site"}, False),
        ({"origin": "http://127.0.0.1:1"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_a_session_counts_only_for_pages_of_this_server(lab, headers, counts):
    found, said, _ = fetch(f"{lab.url}/v1/stores", cookie=signed_in(lab), **headers)
    assert found == (200 if counts else 401)
    credentials = said.get("access-control-allow-credentials")
    assert credentials == ("true" if headers.get("origin") == VIEWER else None)
    assert fetch(f"{lab.url}/v1/stores", authorization=f"Bearer {lab.token}", **headers)[0] == 200


def test_the_cookie_is_secure_behind_tls(lab):
    for said_to_be, is_secure in (("https", True), ("HTTPS, http", True), ("http", False)):
        form = {"token": lab.token}
        said = ask_once(f"{lab.url}/login", "POST", form, x_forwarded_proto=said_to_be)[1]
        assert said["set-cookie"].endswith("; Secure") is is_secure


def test_a_session_ends_with_its_token_and_its_key(own):
    other = new_token(own.file, "ben")
    cookie = signed_in(own)
    bens = signed_in(Lab(own.url, own.file, other))
    read = f"{own.url}/zarr/ct/zarr.json"
    assert fetch(read, cookie=cookie)[0] == 200
    lines = own.file.read_text()
    own.file.write_text("".join(x for x in lines.splitlines(True) if not x.startswith("anna")))
    assert fetch(read, cookie=cookie)[0] == 401
    assert fetch(read, cookie=bens)[0] == 200
    new_token(own.file, "anna")
    assert fetch(read, cookie=cookie)[0] == 401  # the name has another token now
    own.file.write_text(lines)
    assert fetch(read, cookie=cookie)[0] == 200
    key = own.key().read_text()
    own.key().unlink()
    assert fetch(read, cookie=cookie)[0] == 401
    assert ask_once(f"{own.url}/login", "POST", {"token": own.token})[0] == 503
    assert fetch(read, authorization=f"Bearer {own.token}")[0] == 200
    own.key().write_text("nonsense")
    assert fetch(read, cookie=cookie)[0] == 401
    with pytest.raises(UsageError, match="holds no signing key"):
        make_key(own.file)
    own.key().write_text(key)
    assert fetch(read, cookie=cookie)[0] == 200  # as after a restart, and in each process


def test_a_session_expires_and_cannot_be_forged(lab, monkeypatch):
    tokens, value = Tokens(lab.file), signed_in(lab).partition("=")[2]
    assert session_name(tokens, value) == "anna"
    expires, name, signature = value.split(".")
    ticket = lab.sign("/zarr/ct").split("/")[4]
    for wrong in (
        "",
        "..",
        f"{int(expires) + 1}.{name}.{signature}",
        f"{expires}.ben.{signature}",
        f"{expires}.{name}.{signature[:-1]}",
        f"{expires}.{name}.{signature}=",
        f"{expires}.{name}.{'A' * 43}",
        f" {value}",
        f"{value}\n",
        ticket,
        ".".join(ticket.split(".")[i] for i in (0, 2, 3)),
    ):
        assert session_name(tokens, wrong) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30 * DAY_S - 5)
    assert session_name(tokens, value) == "anna"
    monkeypatch.setattr(time, "time", lambda: now + 30 * DAY_S + 5)
    assert session_name(tokens, value) is None


def test_token_and_key_files_are_readable_only_by_their_owner(own):
    for path in (own.file, own.key()):
        assert path.stat().st_mode & 0o077 == 0
    key = own.key().read_text()
    new_token(own.file, "ben")
    assert own.key().read_text() == key


def test_answers_to_a_token_are_private_to_the_client(lab):
    checksum = spinezarr.open(lab.file.parent / "ct.zarr").table.content_checksum[0].item()
    scan = spinezarr.open(lab.file.parent / "ct.zarr").table.scan[0].item()
    path = f"/ct/@{checksum}/scans/{scan}/image/c/0/0/0"
    for tree in ("zarr", "flat"):
        for url in (f"{lab.url}/{tree}{path}", lab.sign(f"/{tree}{path}")):
            status, said, _ = fetch(url, authorization=f"Bearer {lab.token}")
            assert status == 200
            assert "private" in said["cache-control"]
            assert "immutable" in said["cache-control"]


def test_the_login_page_of_an_open_server_says_that_no_token_is_needed(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        assert fetch(f"{server.url}/login")[2] == b"This server needs no token.\n"
        assert fetch(f"{server.url}/login", host="evil.example")[0] == 421
        # A client with an old signed URL must not take the answer for background.
        assert fetch(f"{server.url}/signed/1.2.a.{'A' * 43}/zarr/ctspine1k/zarr.json")[0] == 401


# Signed URLs


def values(scan):
    return {name: scan[name].values.tobytes() for name in ("image", "label", "z", "y", "x")}


@pytest.fixture(scope="module")
def expected(lab):
    return values(spinezarr.open(lab.file.parent / "ct.zarr").scan(SCAN))


@pytest.mark.parametrize("tree", ["zarr", "flat"])
@pytest.mark.parametrize("signed", ["/ct", f"/ct/scans/{SCAN}"])
def test_xarray_reads_a_signed_url(lab, expected, tree, signed):
    url = lab.sign(f"/{tree}{signed}") + f"/scans/{SCAN}".removeprefix(signed.removeprefix("/ct"))
    opened = xr.open_zarr(url, zarr_format=3, consolidated=True)
    assert values(opened) == expected
    store = zarr.storage.ObjectStore(
        obstore.store.HTTPStore(url, client_options={"allow_http": True})
    )
    assert values(xr.open_zarr(store, zarr_format=3, consolidated=True)) == expected


def test_tensorstore_reads_a_signed_url(lab, expected):
    for tree in ("zarr", "flat"):
        base = lab.sign(f"/{tree}/ct/scans/{SCAN}")
        for name in ("image", "label"):
            place = {"driver": "http", "base_url": f"{base}/{name}/"}
            array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
            assert array.read().result().tobytes() == expected[name]


def test_our_reader_reads_a_signed_url(lab, expected):
    here, there = lab.file.parent / "ct.zarr", lab.sign("/zarr/ct")
    opened = spinezarr.open(there)
    assert values(opened.scan(SCAN)) == expected
    for transfer in ("patches", "ranges"):
        streams = [
            store.patches((16, 24, 24), n_samples=4, batch_size=2)
            for store in (spinezarr.open(here), spinezarr.open(there, transfer=transfer))
        ]
        for one, other in zip(*streams, strict=True):
            assert (one.image == other.image).all()
    with pytest.raises(StoreNotFoundError, match="/signed/…/zarr/ct/none: ") as problem:
        spinezarr.open(f"{there}/none")
    assert there.split("/")[4] not in str(problem.value)


def test_a_signed_url_of_a_store_opens_its_patches_and_facts(lab):
    url = lab.sign("/v1/ct")
    assert json.loads(fetch(f"{url}/scans/{SCAN}")[2])["scan_id"] == SCAN
    wanted = {"items": [{"scan_id": SCAN, "start_zyx": [0, 0, 0]}], "size_zyx": [4, 4, 4]}
    assert fetch_patches(f"{url}/batch", wanted)[0] == 200
    scans = lab.sign("/v1/ct/scans")
    assert fetch(scans)[0] == 200
    assert fetch_patches(scans.replace("/ct/scans", "/ct/batch"), wanted)[0] == 401
    # A signature of the whole store permits batches; one of a single scan does not.
    whole, scan = lab.sign("/zarr/ct"), lab.sign(f"/zarr/ct/scans/{SCAN}")
    assert fetch_patches(whole.replace("/zarr/ct", "/v1/ct/batch"), wanted)[0] == 200
    assert fetch(f"{url}/zarr.json".replace("/v1/", "/zarr/"))[0] == 401
    assert fetch(scan.replace("/zarr/", "/v1/"))[0] == 401
    assert fetch(f"{lab.sign('/v1/stores')}?x=1")[0] == 200


def test_statuses_of_a_signed_url_equal_those_of_other_urls(lab):
    url = lab.sign("/zarr/ct")
    ticket = url.split("/")[4]
    status, said, body = fetch(f"{url}/zarr.json", range="bytes=-9")
    assert (status, len(body)) == (206, 9)
    assert said["referrer-policy"] == "no-referrer"
    assert ticket not in str(said)
    assert fetch(f"{url}/zarr.json", if_none_match=said["etag"])[0] == 304
    assert fetch(f"{url}/none")[0] == 404
    assert fetch(f"{url}/scans/none/image/c/0/0/0")[0] == 410
    assert fetch(f"{url}/zarr.json", "PUT")[0] == 405
    asks = {"origin": VIEWER, "access_control_request_method": "GET"}
    assert fetch(f"{url}/zarr.json", "OPTIONS", **asks)[0] == 204
    # A 401 cannot be taken for background, unlike 404.
    status, said, body = fetch(f"{url.replace('.2.anna.', '.2.ben.')}/none", accept="text/html")
    assert (status, said["content-type"]) == (401, "text/plain; charset=utf-8")


def changed(ticket):
    """Yield forged versions of a ticket."""
    expires, depth, name, signature = ticket.split(".")
    yield from (
        f"{int(expires) + 1}.{depth}.{name}.{signature}",
        f"0{expires}.{depth}.{name}.{signature}",
        f"{expires}.0{depth}.{name}.{signature}",
        f"{expires}.1.{name}.{signature}",
        f"{expires}.0.{name}.{signature}",
        f"{expires}.3.{name}.{signature}",
        f"{expires}.{depth}.ben.{signature}",
        f"{expires}.{depth}.{name.upper()}.{signature}",
        f"{expires}.{depth}.{name}.{signature.swapcase()}",
        f"{expires}.{depth}.{name}.{'A' * 43}",
        f"{expires}.{depth}.{name}.{signature[:-1]}",
        f"{expires}.{depth}.{name}.{signature}=",
        f"{expires}.{depth}.{name}.",
        f"{expires}.{depth}.{signature}",
        f"-{expires}.{depth}.{name}.{signature}",
        f"{'9' * 5000}.{depth}.{name}.{signature}",
        f"{ticket}.{ticket}",
        f"{ticket}%20",
        f"{ticket}%00",
        f"%0a{ticket}",
        "",
        ".",
        "..",
    )


BEYOND = [
    "/zarr/ct2/zarr.json",
    "/zarr/ct2",
    "/zarr/c/zarr.json",
    "/zarr",
    "/zarr/",
    "/flat/ct/zarr.json",
    "/v1/ct2/scans",
    "/v1/stores",
    "/healthz",
    "/login",
    "/",
    "",
    "//zarr/ct/zarr.json",
    "/./zarr/ct/zarr.json",
    "/zarr//ct/zarr.json",
    "/zarr/ct/../ct2/zarr.json",
    "/zarr/ct/%2e%2e/ct2/zarr.json",
    "/zarr/ct/..%2fct2/zarr.json",
    "/zarr/ct%2f..%2fct2/zarr.json",
    "/zarr/ct/%2e./ct2/zarr.json",
    "/zarr/ct/.%2e/%2e%2e/flat/ct/zarr.json",
    "/zarr/ct/./zarr.json",
    "/zarr/ct//zarr.json",
    "/zarr/ct/",
    "/zarr/CT/zarr.json",
    "/zarr/ct%00/zarr.json",
    "/zarr/ct%20/zarr.json",
    "/zarr/ct\\..\\ct2/zarr.json",
    "/zarr/ct;/zarr.json",
    "/zarr%2525/ct/zarr.json",
    "/zarr/%ff/zarr.json",
    "/zarr/ct" + "/a" * 1500 + "/../zarr.json",
]


def status_of(url, path):
    """Send a path unchanged, and return the status of the answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        return int(connection.recv(64).split()[1])


def test_a_signature_opens_only_paths_below_the_signed_one(lab):
    signed = lab.sign("/zarr/ct")
    start, ticket = signed.removesuffix("/zarr/ct"), signed.split("/")[4]
    there = start.removeprefix(lab.url)
    assert status_of(lab.url, f"{there}/zarr/ct/zarr.json") == 200
    assert status_of(lab.url, f"{there}/zarr/ct") == 404  # a folder
    assert status_of(lab.url, f"/%73igned/{ticket}/zarr/c%74%2fzarr.json") == 200
    for path in BEYOND:
        assert status_of(lab.url, f"{there}{path}") == 401, path
    for wrong in changed(ticket):
        for prefix in ("/zarr/ct", "/zarr", "/zarr/ct2", f"/zarr/ct/scans/{SCAN}"):
            assert status_of(lab.url, f"/signed/{wrong}{prefix}/zarr.json") in {400, 401}, wrong
    for path in (
        f"/signed/{ticket}",
        "/signed/",
        f"/signed/{ticket}/signed/{ticket}/zarr/ct/zarr.json",
    ):
        assert status_of(lab.url, path) == 401
    scan = lab.sign(f"/zarr/ct/scans/{SCAN}").removeprefix(lab.url)
    assert status_of(lab.url, f"{scan}/zarr.json") == 200
    for path in ("zarr.json", "scans/liver_1/zarr.json", f"scans/{SCAN}0/zarr.json"):
        assert status_of(lab.url, scan.replace(f"scans/{SCAN}", path)) == 401


def test_a_cookie_is_not_accepted_as_a_signature_nor_the_reverse(lab):
    name, _, value = signed_in(lab).partition("=")
    expires, _, signature = value.split(".")
    assert fetch(f"{lab.url}/signed/{expires}.2.anna.{signature}/zarr/ct/zarr.json")[0] == 401
    ticket = lab.sign("/zarr/ct").split("/")[4]
    for wrong in (ticket, f"{ticket.split('.')[0]}.anna.{ticket.split('.')[3]}"):
        assert fetch(f"{lab.url}/zarr/ct/zarr.json", cookie=f"{name}={wrong}")[0] == 401
        assert fetch(f"{lab.url}/zarr/ct/zarr.json", authorization=f"Bearer {wrong}")[0] == 401


def test_a_signed_url_ends_with_its_time_its_token_and_its_key(own, monkeypatch):
    new_token(own.file, "ben")
    url, bens = (f"{own.sign('/zarr/ct', name, 60)}/zarr.json" for name in ("anna", "ben"))
    assert [fetch(x)[0] for x in (url, bens)] == [200, 200]
    settings = ServeSettings(paths=(str(own.file.parent),), token_file=str(own.file))
    with BackgroundServer(settings) as other:  # stands for another process, or a restart
        assert fetch(url.replace(own.url, other.url))[0] == 404  # it serves no such store
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 61)
        assert fetch(url)[0] == 401
    lines = own.file.read_text()
    own.file.write_text("".join(x for x in lines.splitlines(True) if not x.startswith("anna")))
    assert [fetch(x)[0] for x in (url, bens)] == [401, 200]
    new_token(own.file, "anna")
    assert fetch(url)[0] == 401
    own.key().unlink()
    assert fetch(bens)[0] == 401
    make_key(own.file)
    assert fetch(bens)[0] == 401


SEGMENT = st.sampled_from(
    ["a", "b", "ab", "zarr", "flat", ".", "..", "", "a b", "%2e", "ä", "%", "@"]
)


@given(signed=st.lists(SEGMENT, min_size=1, max_size=4), asked=st.lists(SEGMENT, max_size=6))
def test_a_signed_path_opens_itself_and_paths_below(lab, signed, asked):
    tokens = Tokens(lab.file)
    url = f"http://lab/zarr/{'/'.join(urllib.parse.quote(x) for x in signed)}"
    wanted = "/".join(["zarr", *signed]).rstrip("/").split("/")
    if {"", ".", ".."} & set(wanted) or len(wanted) == 1:
        with pytest.raises(UsageError, match="is not the URL of a store"):
            signed_url(tokens, url, "anna", 60)
        return
    found = urllib.parse.unquote(signed_url(tokens, url, "anna", 60).removeprefix("http://lab"))
    assert signed_path(tokens, found) == "/" + "/".join(wanted)
    ticket = found.split("/")[2]
    for segments in (["zarr", *asked], wanted + asked, wanted[:-1] + asked):
        opens = segments[: len(wanted)] == wanted and not {"", ".", ".."} & set(segments)
        path = "/" + "/".join(segments)
        assert signed_path(tokens, f"/signed/{ticket}{path}") == (path if opens else None)


# The command


def command(*words):
    return CliRunner().invoke(app, ["serve", *map(str, words)])


def test_the_command_signs_a_url_for_the_given_time(own):
    words = ("--token-file", own.file, "--as", "anna", "--sign", f"{own.url}/zarr/ct")
    for more, seconds in (((), 7 * DAY_S), (("--for", "2h"), 7200), (("--for", "1m"), 60)):
        done = command(*words, *more)
        assert done.exit_code == 0
        (url,) = done.stdout.splitlines()
        left = int(url.split("/")[4].partition(".")[0]) - time.time()
        assert seconds - 20 < left <= seconds
        assert fetch(f"{url}/zarr.json")[0] == 200


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sign", "{url}"], "give the --token-file"),
        (["--sign", "{url}", "--token-file", "{file}"], "--as NAME"),
        (["--sign", "{url}", "--token-file", "{file}", "--as", "ben"], "The tokens are: anna"),
        (["--sign", "{url}", "--token-file", "{file}", "--as", ""], "The tokens are: anna"),
        (["--sign", "http://lab", "--token-file", "{file}", "--as", "anna"], "is not the URL of a"),
        (["--as", "anna"], "Give it (--sign URL)"),
        (["--for", "7d"], "Give it (--sign URL)"),
        *(
            (["--sign", "{url}", "--token-file", "{file}", "--as", "anna", "--for", time], "30m")
            for time in ("", "7", "0d", "367d", "-1d", "1.5h", "7d ", "\u0667d", "9999999m")
        ),
    ],
)
def test_wrong_options_of_signing_are_explained(lab, words, expected):
    done = command(*(word.format(url=f"{lab.url}/zarr/ct", file=lab.file) for word in words))
    assert done.exit_code == 2
    assert expected in " ".join(done.output.split())


@pytest.mark.parametrize(
    "url",
    [
        "/zarr/ct",
        "zarr/ct",
        "http://lab",
        "http://lab/zarr",
        "http://lab/zarr/",
        "http://lab/v2/ct",
        "http://lab/zarr/../v1",
        "http://lab/zarr/%2e%2e/x",
        "http://lab/zarr//x",
        "ftp://lab/zarr/ct",
        "http:///zarr/ct",
        "http://any:secret@lab/zarr/ct",
        "http://lab/zarr/ct?token=secret",
        "http://lab/zarr/ct#secret",
        "http://lab/signed/1.2.anna.secret/zarr/ct",
        "http://lab/zarr" + "/a" * 100,
    ],
)
def test_only_urls_of_stores_are_signed(lab, url):
    with pytest.raises(UsageError) as problem:
        signed_url(Tokens(lab.file), url, "anna", 60)
    assert "secret" not in str(problem.value)
