"""Endpoints of a server: answers follow the OpenAPI description; metrics and log lines."""

import base64
import hashlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import jsonschema_rs
import pytest
from http_client import fetch, fetch_patches
from server_process import start_server
from timeouts import TIMEOUT_S

from spinezarr.errors import UsageError
from spinezarr.serve import endpoints
from spinezarr.serve.http import negotiate_media_type
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.log import LogForm
from spinezarr.serve.neuroglancer import CLIENT
from spinezarr.serve.operations import OPERATIONS
from spinezarr.serve.patches import PatchQuery
from spinezarr.serve.query import WrongQueryError, parse_query
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.signing import signed_url
from spinezarr.serve.tokens import Tokens, new_token

SCAN = "/v1/ctspine1k/scans/liver_0"
PATCH = f"{SCAN}/patch?size_zyx=4,4,4&start_zyx=0,0,0"
SLICE = f"{SCAN}/slice.png?size_px=32"
NIFTI = "/v1/{store}/scans/{scan_id}/label.nii.gz"
MASK_NIFTI = "/v1/{store}/scans/{scan_id}/masks/{mask}.nii.gz"
LEVEL = "/v1/{store}/scans/{scan_id}/levels/{level}"
EMPTY = {"items": [], "size_zyx": (1, 1, 1)}


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


@pytest.fixture(scope="module")
def described(served):
    return json.loads(fetch(f"{served}/v1/openapi.json")[2])


# Path in the description, requested path, and what is answered.
ASKED = [
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {}, 200),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {"range": "bytes=0-1"}, 206),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {"range": "bytes=-0"}, 416),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {"if_match": '"x"'}, 412),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {"if_none_match": "*"}, 304),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/zarr.json", {"host": "evil.example"}, 421),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/none", {}, 404),
    ("/zarr/{store}/{key}", "/zarr/ctspine1k/scans/none/image/c/0/0/0", {}, 410),
    ("/flat/{store}/{key}", "/flat/ctspine1k/scans%2Fliver_0%2Fimage%2Fc%2F0%2F0%2F0", {}, 200),
    ("/v1/stores", "/v1/stores", {}, 200),
    ("/v1/{store}", "/v1/ctspine1k", {}, 200),
    ("/v1/{store}", "/v1/none", {}, 404),
    ("/v1/{store}/scans", "/v1/ctspine1k/scans", {}, 200),
    ("/v1/{store}/scans", "/v1/ctspine1k/scans?split=train&split=test", {}, 400),
    ("/v1/{store}/scans", "/v1/none/scans", {}, 404),
    ("/v1/{store}/scans", "/v1/ctspine1k/scans?audit=error", {}, 200),
    ("/v1/{store}/scans", "/v1/ctspine1k/scans", {"if_none_match": "*"}, 304),
    ("/v1/{store}/scans", "/v1/ctspine1k/scans", {"if_match": '"x"'}, 412),
    ("/v1/{store}/statistics", "/v1/ctspine1k/statistics", {}, 200),
    ("/v1/{store}/statistics", "/v1/ctspine1k/statistics", {"if_none_match": "*"}, 304),
    ("/v1/{store}/statistics", "/v1/ctspine1k/statistics?other=1", {}, 400),
    ("/v1/{store}/statistics", "/v1/none/statistics", {}, 404),
    ("/v1/{store}/scans/{scan_id}", SCAN, {}, 200),
    ("/v1/{store}/scans/{scan_id}", "/v1/ctspine1k/scans/none", {}, 404),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH, {}, 200),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH, {"if_none_match": "*"}, 304),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH, {"if_match": '"x"'}, 412),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH, {"accept": "image/png"}, 406),
    ("/v1/{store}/scans/{scan_id}/patch", f"{PATCH}&other=1", {}, 400),
    ("/v1/{store}/scans/{scan_id}/patch", f"{PATCH}&content_checksum=0", {}, 410),
    ("/v1/{store}/scans/{scan_id}/patch", f"{PATCH}&image_dtype=uint16", {}, 422),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH.replace("4,4,4", "999,999,999"), {}, 413),
    ("/v1/{store}/scans/{scan_id}/patch", PATCH.replace("liver_0", "none"), {}, 404),
    ("/v1/{store}/scans/{scan_id}/slice.png", SLICE, {}, 200),
    ("/v1/{store}/scans/{scan_id}/slice.png", SLICE, {"if_none_match": "*"}, 304),
    ("/v1/{store}/scans/{scan_id}/slice.png", SLICE, {"if_match": '"x"'}, 412),
    ("/v1/{store}/scans/{scan_id}/slice.png", f"{SLICE}&plane=other", {}, 400),
    ("/v1/{store}/scans/{scan_id}/slice.png", f"{SLICE}&content_checksum=0", {}, 410),
    ("/v1/{store}/scans/{scan_id}/slice.png", f"{SLICE}&mm=1e6", {}, 422),
    ("/v1/{store}/scans/{scan_id}/slice.png", SLICE.replace("liver_0", "none"), {}, 404),
    (LEVEL, f"{SCAN}/levels/0", {}, 200),
    (LEVEL, f"{SCAN}/levels/0?array=label&size_zyx=2,3,4", {"accept_encoding": "gzip"}, 200),
    (LEVEL, f"{SCAN}/levels/0", {"if_none_match": "*"}, 304),
    (LEVEL, f"{SCAN}/levels/0", {"if_match": '"x"'}, 412),
    (LEVEL, f"{SCAN}/levels/0?array=other", {}, 422),
    (LEVEL, f"{SCAN}/levels/0?array=Other", {}, 400),
    (LEVEL, f"{SCAN}/levels/99", {}, 404),
    (LEVEL, f"{SCAN}/levels/0?content_checksum=0", {}, 410),
    (LEVEL, f"{SCAN}/levels/0?start_zyx=999,0,0", {}, 422),
    ("/v1/{store}/scans/{scan_id}/view", f"{SCAN}/view", {}, 200),
    ("/v1/{store}/scans/{scan_id}/view", f"{SCAN}/view", {"if_none_match": "*"}, 304),
    ("/v1/{store}/scans/{scan_id}/view", f"{SCAN}/view", {"if_match": '"x"'}, 412),
    ("/v1/{store}/scans/{scan_id}/view", "/v1/ctspine1k/scans/none/view", {}, 404),
    (NIFTI, f"{SCAN}/label.nii.gz", {}, 200),
    (NIFTI, f"{SCAN}/label.nii.gz", {"if_none_match": "*"}, 304),
    (NIFTI, f"{SCAN}/label.nii.gz", {"if_match": '"x"'}, 412),
    (NIFTI, f"{SCAN}/label.nii.gz?other=1", {}, 400),
    (NIFTI, f"{SCAN}/label.nii.gz?content_checksum=0", {}, 410),
    (NIFTI, "/v1/ctspine1k/scans/none/label.nii.gz", {}, 404),
    (MASK_NIFTI, f"{SCAN}/masks/label.nii.gz", {}, 200),
    (MASK_NIFTI, f"{SCAN}/masks/parts.nii.gz", {}, 422),
    (MASK_NIFTI, f"{SCAN}/masks/parts.nii.gz?other=1", {}, 400),
    ("/v1/{store}/scans/{scan_id}/open-in", f"{SCAN}/open-in", {}, 200),
    ("/v1/{store}/scans/{scan_id}/open-in", "/v1/ctspine1k/scans/none/open-in", {}, 404),
    ("/neuroglancer/{store}/{scan_id}", "/neuroglancer/ctspine1k/liver_0", {}, 303),
    ("/neuroglancer/{store}/{scan_id}", "/neuroglancer/ctspine1k/none", {}, 404),
    (
        "/neuroglancer/{store}/{scan_id}/segments/{mask}/info",
        "/neuroglancer/ctspine1k/liver_0/segments/label/info",
        {},
        200,
    ),
    (f"{CLIENT}/{{version}}/{{file}}", f"{CLIENT}/1/index.html", {}, 303),
    (f"{CLIENT}/{{version}}/{{file}}", f"{CLIENT}/1/none.js", {}, 404),
    ("/v1/openapi.json", "/v1/openapi.json", {}, 200),
    ("/", "/", {}, 200),
    ("/", "/", {"if_none_match": "*"}, 304),
    ("/scan/{store}/{scan_id}", "/scan/ctspine1k/liver_0", {}, 200),
    ("/page/{file}", "/page/page.css", {}, 200),
    ("/page/{file}", "/page/none", {}, 404),
    ("/docs", "/docs", {}, 200),
    ("/metrics", "/metrics", {}, 200),
    ("/healthz", "/healthz", {"host": "evil.example"}, 200),
    ("/readyz", "/readyz", {}, 200),
]


def check_described(described, method, path, answer):
    """Check that the description lists an answer."""
    status, headers, body = answer
    told = described["paths"][path][method.lower()]["responses"][str(status)]
    fields = {name.lower() for name in headers}
    assert {name.lower() for name in told.get("headers", {})} <= fields
    if not body:
        assert method == "HEAD" or "content" not in told
        return
    kinds = {kind.partition(";")[0]: one for kind, one in told["content"].items()}
    one = kinds[headers["content-type"].partition(";")[0]]
    if "$ref" in one.get("schema", {}):
        schema = {**one["schema"], "components": described["components"]}
        jsonschema_rs.validator_for(schema).validate(json.loads(body))


@pytest.mark.parametrize(("path", "place", "headers", "status"), ASKED)
def test_answers_to_get_follow_the_description(served, described, path, place, headers, status):
    answer = fetch(f"{served}{place}", **headers)
    assert answer[0] == status
    check_described(described, "GET", path, answer)
    head = fetch(f"{served}{place}", "HEAD", **headers)
    assert head[0] == (200 if "range" in headers else status)  # ranges apply only to GET
    assert head[2] == b""
    assert (
        headers.keys() & {"range"}
        or {name: value for name, value in head[1].items() if name != "date"}
        == {name: value for name, value in answer[1].items() if name != "date"}
        or (path == "/metrics")
    )
    check_described(described, "HEAD", path, head)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (EMPTY, {}, 200),
        (EMPTY, {"accept": "application/vnd.apache.arrow.stream"}, 200),
        (EMPTY, {"accept": "application/x-npy"}, 406),
        ({}, {}, 400),
        (b" " * (5 << 20), {}, 413),
    ],
)
def test_answers_to_post_follow_the_description(served, described, body, headers, status):
    answer = fetch_patches(f"{served}/v1/ctspine1k/batch", body, **headers)
    assert answer[0] == status
    check_described(described, "POST", "/v1/{store}/batch", answer)


def test_every_route_is_described_once(described):
    """The description is made from the list of routes."""
    found = {
        (path, method)
        for path, item in described["paths"].items()
        for method in item
        if method != "head"
    }
    assert found == {(op.path, op.method.lower()) for op in OPERATIONS}
    assert len({op.name for op in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("op", [op for op in OPERATIONS if op.group != "Bytes"])
def test_methods_that_are_not_described_are_refused(served, op):
    parts = {"file": "page.css", "level": "0", "version": "1", "mask": "prediction"}
    path = op.path.format(store="ctspine1k", scan_id="liver_0", **parts)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        if method != op.method:
            status, headers, _ = fetch(f"{served}{path}", method)
            assert status == 405
            assert headers["allow"] == ("POST" if op.method == "POST" else "GET, HEAD")
            assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/v1/stores/", "/docs/", "//docs", "/v1//stores", "/docs%2F"])
def test_nothing_is_redirected(served, path):
    assert fetch(f"{served}{path}")[0] == 404


def test_pages_of_other_origins_may_read_only_if_allowed(served):
    headers = fetch(f"{served}/v1/stores", origin="http://localhost:1")[1]
    assert headers["access-control-allow-origin"] == "http://localhost:1"
    headers = fetch(f"{served}/v1/stores", origin="https://evil.example")[1]
    assert "access-control-allow-origin" not in headers
    asks = {"access_control_request_method": "POST", "origin": "http://localhost:1"}
    assert fetch(f"{served}/v1/ctspine1k/batch", "OPTIONS", **asks)[0] == 204


# The documentation page


class Page(HTMLParser):
    """Parses a page; fails at attributes that run code or load resources."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links, self.ids, self.style = set(), [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"src", "style", "srcset"}
            if name == "href":
                self.links.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data


def test_the_documentation_page_shows_every_route_and_loads_nothing_from_elsewhere(
    served, described
):
    _, headers, body = fetch(f"{served}/docs")
    text = body.decode()
    found = Page(text)
    assert not found.open
    assert found.tags.isdisjoint({"script", "link", "img", "iframe", "form", "object", "base"})
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    policy = headers["content-security-policy"].split("; ")
    assert policy[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert "url(" not in found.style
    assert "@import" not in found.style
    assert len(set(found.ids)) == len(found.ids)
    for link in found.links:
        assert link == "/v1/openapi.json" or link.removeprefix("#") in found.ids
    for path, item in described["paths"].items():
        assert f"<code>{path}</code>" in text
        for parameter in next(iter(item.values()))["parameters"]:
            assert f"<code>{parameter['name']}</code>" in text
    for name in described["components"]["schemas"]:
        assert f"schema-{name}" in found.ids
    assert "-----" not in text  # docstrings that are no text


# Requests that a program makes from the description


PINNED = {
    "store": ["ctspine1k"],
    "scan_id": ["liver_0", "none"],
    "file": ["page.css", "none"],
    "level": ["0", "1"],
    "mask": ["label", "none"],
    "version": ["1"],
    "key": ["zarr.json", "scans/liver_0/zarr.json", "scans/liver_0/image/c/0/0/0", "none"],
}


def pinned(described):
    """Return the description restricted to existing names, so that most requests succeed."""
    copy = json.loads(json.dumps(described))
    sizes = [copy["components"]["schemas"]["BatchModel"]["properties"]["size_zyx"]]
    for operation in (one for item in copy["paths"].values() for one in item.values()):
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                parameter["schema"] = {"type": "string", "enum": PINNED[parameter["name"]]}
            if parameter["name"] == "size_zyx":
                sizes.append(parameter["schema"])
    for size in sizes:
        for axis in size["prefixItems"]:
            axis["maximum"] = 6
    item = copy["components"]["schemas"]["ItemModel"]["properties"]
    item["scan_id"] = {"type": "string", "enum": ["liver_0", "HN_P001", "none"]}
    return copy


@pytest.mark.long
@pytest.mark.parametrize("kind", ["anything", "what there is"])
def test_schemathesis_finds_no_fault(served, described, tmp_path, kind):
    """There is no unhandled error, and every answer is described."""
    is_pinned = kind == "what there is"
    (tmp_path / "api.json").write_text(json.dumps(pinned(described) if is_pinned else described))
    # Some values that fields and headers allow separately are invalid together.
    options = ("--mode", "positive", "--exclude-checks", "positive_data_acceptance")
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", "api.json", "--url", served),
        *("--checks", "all", "--seed", "1", "--no-color"),
        *("--max-examples", "20" if is_pinned else "6"),
        *("--generation-database", "none", *(options if is_pinned else ())),
    ]
    before = figures(served)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout
    asked = figures(served)
    patches = 'spinezarr_requests_total{{route="/v1/{{store}}/{}",status="200"}}'
    for route in ("scans/{scan_id}/patch", "batch"):
        name = patches.format(route)
        assert not is_pinned or asked[name] - before.get(name, 0) >= 15


# Metrics


def figures(url, **headers):
    status, fields, body = fetch(f"{url}/metrics", **headers)
    assert (status, fields["content-type"].partition(";")[0]) == (200, "text/plain")
    lines = (line for line in body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_count_answers_by_kind(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        sent = 0
        for at in range(3):
            sent += len(fetch(f"{server.url}/zarr/ctspine1k/zarr.json")[2])
            fetch(f"{server.url}/zarr/ctspine1k/none{at}")
            fetch(f"{server.url}/none/{at}")
            fetch(f"{server.url}{SCAN}")
            fetch(f"{server.url}{SCAN}", "PUT")
        fetch(f"{server.url}/zarr/ctspine1k/zarr.json", host="evil.example")
        found = figures(server.url)
        errors = 3 * len("There is no such file.\n")
        requests = {name: n for name, n in found.items() if name.startswith("spinezarr_requests_t")}
        assert requests == {
            f'spinezarr_requests_total{{route="{route}",status="{status}"}}': n
            for route, status, n in (
                ("/zarr/{store}/{key}", 200, 3),
                ("/zarr/{store}/{key}", 404, 3),
                ("/v1/{store}/scans/{scan_id}", 200, 3),
                ("other", 404, 3),
                ("other", 405, 3),
                ("other", 421, 1),
            )
        }
        assert found['spinezarr_sent_bytes_total{route="/zarr/{store}/{key}"}'] == sent + errors
        assert found['spinezarr_request_seconds_count{route="/zarr/{store}/{key}"}'] == 6
        assert found["spinezarr_batches_under_way"] == 0
        assert found["spinezarr_batches_refused_total"] == 0


def test_too_many_patches_are_refused_and_counted(ctspine1k_url):
    limits = ServeLimits(batches_at_once=0, waiting=0)
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=limits)) as server:
        status, headers, _ = fetch(f"{server.url}{PATCH}")
        assert (status, headers["retry-after"]) == (429, "1")
        assert fetch_patches(f"{server.url}/v1/ctspine1k/batch", EMPTY)[0] == 429
        assert figures(server.url)["spinezarr_batches_refused_total"] == 2


@pytest.mark.long
def test_metrics_cover_all_processes(ctspine1k_url):
    process, url = start_server(ctspine1k_url, "--workers", 2)
    try:
        for _ in range(40):
            fetch(f"{url}/v1/stores")
        for _ in range(10):
            name = 'spinezarr_requests_total{route="/v1/stores",status="200"}'
            assert figures(url)[name] == 40
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


def test_readiness_fails_while_a_store_cannot_be_opened(ctspine1k_url, tmp_path):
    limits = ServeLimits(ready_s=0.0)
    for name in ("one", "two"):
        shutil.copytree(ctspine1k_url, tmp_path / f"{name}.zarr")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),), limits=limits)) as server:
        assert fetch(f"{server.url}/readyz", host="evil.example")[0] == 200
        for key in ("zarr.json", "table/zarr.json"):
            file = tmp_path / "two.zarr" / key
            before = file.read_bytes()
            file.write_bytes(before[:-9])
            if key == "table/zarr.json":
                (tmp_path / "two.zarr/table_bundle/zarr.json").unlink()
            status, headers, body = fetch(f"{server.url}/readyz")
            assert (status, headers["retry-after"]) == (503, "5")
            assert b"two" not in body  # clients without a token may fetch, too
            assert fetch(f"{server.url}/healthz")[0] == 200
            file.write_bytes(before)
            assert fetch(f"{server.url}/readyz")[0] == 200
        shutil.rmtree(tmp_path / "two.zarr")
        assert fetch(f"{server.url}/readyz")[0] == 200


def test_readiness_is_checked_at_most_once_a_second(ctspine1k_url, monkeypatch):
    asked = []
    real = endpoints.ServedStores.can_be_opened
    monkeypatch.setattr(
        endpoints.ServedStores, "can_be_opened", lambda stores: asked.append(0) or real(stores)
    )
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        began = time.monotonic()
        for _ in range(20):
            assert fetch(f"{server.url}/readyz")[0] == 200
        assert len(asked) <= 1 + time.monotonic() - began


# Tokens, and the log


@pytest.fixture
def guarded(ctspine1k_url, tmp_path, request, capsys):
    """Serve a store that requires a token, with a log."""
    file = tmp_path / "tokens"
    token = new_token(file, "anna")
    form = getattr(request, "param", LogForm.JSON)
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=str(file), log=form)
    with BackgroundServer(settings) as server:

        def logged():
            server.close()  # a line is written once its answer is sent
            return capsys.readouterr().err

        yield server.url, token, logged


def test_all_routes_but_health_checks_need_a_token(guarded):
    url, token, logged = guarded
    for path in ("/docs", "/v1/openapi.json", "/metrics", "/v1/stores", SCAN, PATCH, "/none"):
        assert fetch(f"{url}{path}")[0] == 401
        status = fetch(f"{url}{path}", authorization=f"Bearer {token}")[0]
        assert status == (404 if path == "/none" else 200)
    assert [fetch(f"{url}{path}")[0] for path in ("/healthz", "/readyz")] == [200, 200]
    described = json.loads(fetch(f"{url}/v1/openapi.json", authorization=f"Bearer {token}")[2])
    security = described["paths"]["/metrics"]["get"]["security"]
    assert {next(iter(one)) for one in security} == {"bearer", "basic"}
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert logged()


def test_sessions_and_signatures_are_logged_only_by_name(guarded, tmp_path):
    url, token, logged = guarded
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    about = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", f"token={token}", about)
    answer = connection.getresponse()
    answer.read()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    connection.request("GET", f"/login?token={token}&next=/docs")
    connection.getresponse().read()
    connection.close()
    signed = signed_url(Tokens(tmp_path / "tokens"), f"{url}/zarr/ctspine1k", "anna", 60)
    wrong = signed.replace("zarr/ctspine1k", "zarr/other")
    assert fetch(f"{url}/docs", cookie=cookie)[0] == 200
    assert fetch(f"{signed}/zarr.json")[0] == 200
    assert fetch(f"{wrong}/zarr.json")[0] == 401
    lines = [json.loads(line) for line in logged().splitlines()]
    assert [(line["path"], line["status"], line["token"]) for line in lines] == [
        ("/login", 303, None),
        ("/login", 303, None),
        ("/docs", 200, "anna"),
        ("/zarr/ctspine1k/zarr.json", 200, None),
        ("/signed/", 401, None),
    ]
    text = json.dumps(lines)
    signature = signed.partition("/signed/")[2].partition("/")[0]
    for secret in (token, cookie.partition("=")[2], signature, signature.rpartition(".")[2]):
        assert secret not in text


@pytest.mark.parametrize("guarded", [LogForm.JSON, LogForm.TEXT], indirect=True)
def test_no_token_reaches_the_log(guarded):
    url, token, logged = guarded
    other = f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}"
    basic = base64.b64encode(f"any:{token}".encode()).decode()
    signature = "c2lnbmF0dXJl"
    secrets = [token, other, basic, base64.b64encode(f"any:{other}".encode()).decode(), signature]
    for one in (token, other):
        encoded = base64.b64encode(f"any:{one}".encode()).decode()
        for place in ("/zarr/ctspine1k/zarr.json", SCAN, PATCH, "/docs", "/none", "/healthz"):
            for kind in (f"Bearer {one}", f"bearer  {one}", f"Basic {encoded}", one):
                fetch(f"{url}{place}", authorization=kind, cookie=f"token={one}")
            mark = "&" if "?" in place else "?"
            fetch(f"{url}{place}{mark}token={one}&sig={signature}")
            fetch(f"{url}{place}{mark}{one}", authorization=f"Bearer {token}")
        for place in (
            f"/zarr/{one}/zarr.json",
            f"/zarr/ctspine1k/{one}",
            f"/zarr/ctspine1k/x{one}.json",
            f"/v1/ctspine1k/scans/{one}",
            f"/{one}",
            f"/token={one}",
            "/" + "".join(f"%{byte:02x}" for byte in one.encode()),
            f"/signed/{signature}/zarr/ctspine1k/zarr.json",
            f"/signed/{signature}",
        ):
            fetch(f"{url}{place}")
            fetch(f"{url}{place}", authorization=f"Bearer {token}", referer=f"http://x/?t={one}")
    text = logged()
    assert text.count("\n") > 100
    for secret in secrets:
        assert secret not in text
    assert "?" not in text


def test_a_log_line_describes_its_answer(guarded):
    url, token, logged = guarded
    sent = fetch(f"{url}/zarr/ctspine1k/zarr.json?x=1", authorization=f"Bearer {token}")[2]
    fetch(f"{url}{SCAN}", "HEAD", authorization=f"Bearer {token}")
    fetch(f"{url}/zarr/ctspine1k/%1b[2J%0aforged%e2%80%ae", authorization=f"Bearer {token}")
    fetch(f"{url}/v1/stores", authorization="Bearer no")
    text = logged()
    assert text.isascii()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [list(line) for line in lines] == [
        ["time", "method", "path", "status", "bytes", "seconds", "token"]
    ] * 4
    asked = [tuple(line[name] for name in ("method", "path", "status", "token")) for line in lines]
    assert asked == [
        ("GET", "/zarr/ctspine1k/zarr.json", 200, "anna"),
        ("HEAD", SCAN, 200, "anna"),
        ("GET", "/zarr/ctspine1k/\\x1b[2J\\x0aforged\\u202e", 404, "anna"),
        ("GET", "/v1/stores", 401, None),
    ]
    assert [line["bytes"] for line in lines[:2]] == [len(sent), 0]
    assert all(0 < line["seconds"] < 20 for line in lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", lines[0]["time"])


@pytest.mark.parametrize("guarded", [LogForm.TEXT], indirect=True)
def test_log_lines_cannot_be_forged(guarded):
    url, token, logged = guarded
    fetch(f"{url}/%1b[2J%0a2026-01-01%20200%20GET", authorization=f"Bearer {token}")
    (line,) = logged().splitlines()
    assert "\x1b" not in line
    assert re.search(r" 404 GET /\\x1b\[2J\\x0a2026-01-01 200 GET 23 bytes [\d.]+ ms anna$", line)


def test_nothing_is_logged_by_default(ctspine1k_url, capsys):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        fetch(f"{server.url}/v1/stores")
    assert capsys.readouterr().err == ""


@pytest.mark.long
def test_the_command_writes_the_log(ctspine1k_url):
    process, url = start_server(ctspine1k_url, "--log", "json")
    try:
        fetch(f"{url}/v1/stores")
    finally:
        process.terminate()
        said = process.communicate(timeout=TIMEOUT_S)[1]
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["path"] for line in lines][-1] == "/v1/stores"


def test_the_error_names_the_missing_packages(ctspine1k_url, monkeypatch):
    for name in ("starlette", "starlette.applications"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("spinezarr.serve.app", "spinezarr.serve.endpoints"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"pip install 'spinezarr\[serve\]'"):
        BackgroundServer(ServeSettings(paths=(ctspine1k_url,)))


def test_other_commands_work_without_the_packages_of_the_server():
    names = {"starlette", "granian", "prometheus_client", "uvicorn"}
    code = f"import sys, spinezarr.cli.main; print(sorted({names} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Headers and queries

OFFERS = ("a/one", "a/two", "b/three")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "a/one"),
        ("", "a/one"),
        (" , ", "a/one"),
        ("*/*", "a/one"),
        ("b/*", "b/three"),
        ("a/two", "a/two"),
        ("A/TWO", "a/two"),
        ("a/two, */*", "a/one"),
        ("a/two, */*;q=0.9", "a/two"),
        ("a/*;q=0.2, b/three;q=0.3", "b/three"),
        ("a/*;q=1.000, a/one;q=0.999", "a/two"),
        ("*/*, a/one;q=0, a/two; q=0.0", "b/three"),
        ("b/three;q=0.001", "b/three"),
        ("b/three;q=0", None),
        ("image/png", None),
        ("a/one;level=1", None),
        ("a/one;q=2", None),
        ("a/one;q=", None),
        ("a", None),
        ("*", None),
        ("*/one", None),
        ("a/one;Q=0.5, b/three;q=0.4", "a/one"),
        ("text/html, a/two;q=0.1", "a/two"),
        ("a/two" + ";" * 5000, "a/two"),
    ],
)
def test_the_answer_has_the_preferred_media_type(accept, expected):
    assert negotiate_media_type(accept, OFFERS) == expected


def test_a_query_is_parsed_into_its_model():
    asked = parse_query(
        PatchQuery,
        "size_zyx=1,2,3&start_zyx=-1,0,%31&spacing_zyx_mm=1.5,null,2&labels=&nonfinite=-1e3"
        "&content_checksum=007&flat_axis=0&neighbors=2&neighbor_step_mm=3",
    )
    assert asked.size_zyx == (1, 2, 3)
    assert asked.start_zyx == (-1, 0, 1)
    assert asked.spacing_zyx_mm == (1.5, None, 2)
    assert (asked.labels, asked.nonfinite, asked.neighbor_step_mm) == ((), -1000, 3)
    several = parse_query(PatchQuery, "size_zyx=1,1,1&start_zyx=0,0,0&labels=label,parts")
    assert several.labels == ("label", "parts")
    assert asked.content_checksum == "007"
    assert parse_query(PatchQuery, "size_zyx=1,1,1&start_zyx=0,0,0&nonfinite=keep").nonfinite == (
        "keep"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size_zyx=1,1&start_zyx=0,0,0",
        "size_zyx=1,1,1,1&start_zyx=0,0,0",
        "size_zyx=1,1,1.5&start_zyx=0,0,0",
        "size_zyx=1,1,+1&start_zyx=0,0,0",
        "size_zyx=1,1,01&start_zyx=0,0,0",
        "size_zyx=1,1,&start_zyx=0,0,0",
        "size_zyx=1,1,1&start_zyx=0,0,0&start_zyx=0,0,0",
        "size_zyx=1,1,1&start_zyx=0,0,0&other=1",
        "size_zyx=1,1,1&start_zyx=0,0,0&labels=Label",
        "size_zyx=1,1,1&start_zyx=0,0,0&labels=label,label",
        "size_zyx=1,1,1&start_zyx=0,0,0&labels=1",
        "size_zyx=1,1,1&start_zyx=0,0,0&neighbor_step_mm=NaN",
        "size_zyx=1,1,1&start_zyx=0,0,0&neighbor_step_mm=Infinity",
        "size_zyx=1,1,1&start_zyx=0,0,0&neighbor_step_mm=1e999",
        "size_zyx=1,1,1&start_zyx=0,0,0&nonfinite=other",
        "size_zyx=1,1,1&start_zyx=0,0," + "9" * 5000,
        "&".join(["size_zyx=1,1,1"] * 5000),
    ],
)
def test_an_invalid_query_is_refused(text):
    with pytest.raises(WrongQueryError):
        parse_query(PatchQuery, text)
