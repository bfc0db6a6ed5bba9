"""The configurations in docs/deploy run; only names, ports and certificates are changed."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from timeouts import TIMEOUT_S, wait_until

from spinezarr.serve.tokens import new_token

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
SCAN = "liver_0"
SHARD = f"scans/{SCAN}/image/c/0/0/0"
MAIN = "from spinezarr.cli.main import main; main()"
COMPARED = (
    "accept-ranges",
    "allow",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "location",
    "referrer-policy",
    "vary",
    "www-authenticate",
    "x-content-type-options",
)
DEBIAN = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    gzip_proxied any;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/spinezarr.conf;
}}
"""
"""The nginx configuration around it, with Debian's ``gzip on`` for all types."""
READERS = """
import hashlib, sys
import numpy as np, spinezarr, xarray as xr
signed, token, here = sys.argv[1:]
def digest(scan):
    arrays = scan.image, scan.label
    return [hashlib.sha256(np.ascontiguousarray(x.values)).hexdigest() for x in arrays]
expected = digest(spinezarr.open(here).scan("liver_0"))
assert digest(xr.open_zarr(f"{signed}/scans/liver_0", zarr_format=3, consolidated=True)) == expected
headers = {"headers": {"Authorization": f"Bearer {token}"}}
plain = signed.partition("/signed/")[0] + "/zarr/ctspine1k"
for url, options in ((signed, None), (plain, headers)):
    for transfer in ("patches", "ranges"):
        store = spinezarr.open(url, storage_options=options, transfer=transfer)
        assert digest(store.scan("liver_0")) == expected
        stream = store.patches((16, 24, 24), n_samples=8, batch_size=4)
        ours = spinezarr.open(here).patches((16, 24, 24), n_samples=8, batch_size=4)
        for one, other in zip(stream, ours, strict=True):
            assert (one.image == other.image).all()
        told = stream.explain().transfer
        assert told.startswith("by the server" if transfer == "patches" else "by")
"""


@dataclass(frozen=True)
class Site:
    """A server, and the proxy in front of it."""

    direct: str
    url: str
    plain: str
    token: str
    folder: Path
    context: ssl.SSLContext

    def ask(self, url, method="GET", body=None, **headers):
        """Return status, headers with names in lower case, and body; follow no redirect."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, body, fields, method=method)  # noqa: S310
        opener = urllib.request.build_opener(
            _NoRedirects, urllib.request.HTTPSHandler(context=self.context)
        )
        try:
            answer = opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as problem:
            answer = problem
        with answer:
            named = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, named, answer.read()

    def command(self, *words):
        """Run the command, and return what it prints."""
        line = [sys.executable, "-c", MAIN, "serve", "--token-file", self.folder / "tokens", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *about):  # noqa: ARG002
        return None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def program(name):
    """Return the path of a program that may be missing; skip the test if it is."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed. On Debian: apt-get install {name}")
    return found


@contextmanager
def running(url, *command, **options):
    """Start a program, wait until it answers, and end it with the context."""
    with subprocess.Popen([*map(str, command)], **options) as process:
        try:
            place = urllib.parse.urlsplit(url)

            def accepts():
                assert process.poll() is None
                with suppress(OSError):
                    socket.create_connection((place.hostname, place.port), 1).close()
                    return True

            wait_until(accepts)
            yield process
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def nginx(folder, ports, port):
    """Return the command that runs the page's configuration."""
    found = program("nginx")
    text = (DEPLOY / "nginx.conf").read_text()
    if not has_ipv6():
        text = re.sub(r"\n *listen \[::\].*", "", text)
    for old, new in {
        "data.example.org;": "localhost;",
        "127.0.0.1:8765": f"127.0.0.1:{port}",
        "listen 80;": f"listen {ports[0]};",
        "listen [::]:80;": f"listen [::]:{ports[0]};",
        "listen 443 ": f"listen {ports[1]} ",
        "listen [::]:443 ": f"listen [::]:{ports[1]} ",
        "/etc/ssl/certs/data.example.org.pem": f"{folder}/site.pem",
        "/etc/ssl/private/data.example.org.key": f"{folder}/site.key",
        "/var/log/nginx/spinezarr.log": f"{folder}/access.log",
    }.items():
        assert old in text or "[::]" in old
        text = text.replace(old, new)
    (folder / "spinezarr.conf").write_text(text)
    (folder / "nginx.conf").write_text(DEBIAN.format(folder=folder))
    return [found, "-c", folder / "nginx.conf", "-e", folder / "error.log"]


def caddy(folder, ports, port):
    """Return the command that runs the page's configuration."""
    found = program("caddy")
    text = (DEPLOY / "Caddyfile").read_text()
    for old, new in {
        "\ndata.example.org {": (
            f"\nhttps://localhost:{ports[1]} {{\n\ttls {folder}/site.pem {folder}/site.key"
        ),
        "127.0.0.1:8765": f"127.0.0.1:{port}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    options = f"{{\n\tadmin off\n\tskip_install_trust\n\thttp_port {ports[0]}\n}}\n"
    (folder / "Caddyfile").write_text(options + text)
    return [found, "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def site(request, ctspine1k_url, tmp_path_factory):
    """Run the command, and a proxy in front of it."""
    folder = tmp_path_factory.mktemp("site")
    ports, port = (free_port(), free_port()), free_port()
    command = request.param(folder, ports, port)
    line = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        f"subjectAltName=DNS:localhost -keyout {folder}/site.key -out {folder}/site.pem"
    )
    subprocess.run([program("openssl"), *line.split()], check=True, capture_output=True)
    token = new_token(folder / "tokens", "anna")
    serve = (sys.executable, "-c", MAIN, "serve", ctspine1k_url, "--port", port)
    tokens = ("--token-file", folder / "tokens", "--workers", "2")
    direct, url = f"http://127.0.0.1:{port}", f"https://localhost:{ports[1]}"
    own = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    said = (folder / "said").open("w+")
    with (
        said,
        running(direct, *serve, *tokens, stderr=said),
        running(url, *command, env=own, stderr=subprocess.DEVNULL),
    ):
        context = ssl.create_default_context(cafile=folder / "site.pem")
        yield Site(direct, url, f"http://localhost:{ports[0]}", token, folder, context)
    hint = (folder / "said").read_text()
    assert f"{direct}/login" in hint
    assert token not in hint


@pytest.mark.long
def test_the_proxy_passes_answers_on_unchanged(site, ctspine1k_url):
    signed = site.command("--sign", f"{site.url}/zarr/ctspine1k", "--as", "anna")
    bearer = {"authorization": f"Bearer {site.token}"}
    shard = Path(ctspine1k_url, SHARD).read_bytes()
    tag = site.ask(f"{site.direct}/zarr/ctspine1k/{SHARD}", **bearer)[1]["etag"]
    cases = [
        ("GET", {}),
        ("HEAD", {}),
        ("PUT", {}),
        ("GET", {"range": "bytes=0-99"}),
        ("GET", {"range": "bytes=-292"}),
        ("GET", {"range": "bytes=100-"}),
        ("GET", {"range": f"bytes=0-{len(shard) * 2}"}),
        ("GET", {"range": f"bytes={len(shard)}-"}),
        ("GET", {"range": "bytes=-0"}),
        ("GET", {"range": "bytes=0-9,20-29"}),
        ("HEAD", {"range": "bytes=0-99"}),
        ("GET", {"if_none_match": tag}),
        ("GET", {"if_match": '"other"'}),
        ("GET", {"if_match": tag, "range": "bytes=5-9"}),
        ("GET", {"if_range": '"other"', "range": "bytes=5-9"}),
        ("GET", {"if_range": tag, "range": "bytes=5-9"}),
        ("GET", {"origin": "https://evil.example"}),
    ]
    keys = (SHARD, f"scans/{SCAN}/zarr.json", "none", "scans/none/image/c/0/0/0")
    statuses = set()
    for key in keys:
        for method, asked in cases:
            for own, base in ((bearer, "/zarr/ctspine1k"), ({}, signed.removeprefix(site.url))):
                fields = {**asked, **own, "accept_encoding": "gzip, br"}
                answers = []
                for server in (site.direct, site.url):
                    status, headers, body = site.ask(f"{server}{base}/{key}", method, **fields)
                    answers.append((status, {x: headers.get(x) for x in COMPARED}, body))
                assert answers[0] == answers[1]
                statuses.add(answers[1][0])
                assert answers[1][1]["content-encoding"] is None
                if answers[1][1]["etag"] is not None:
                    assert answers[1][1]["etag"].startswith('"')  # strong
    assert statuses == {200, 206, 304, 404, 405, 410, 412, 416}
    status, _, found = site.ask(f"{signed}/{SHARD}", range="bytes=-292")
    assert (status, found) == (206, shard[-292:])
    for wrong in ("", "Bearer x"):
        url = f"{site.url}/zarr/ctspine1k/{SHARD}"
        assert site.ask(url, authorization=wrong)[0] == 401
    for path in ("/%2e%2e/other", "/..%2fother", "/../other", "2"):
        assert site.ask(f"{signed}{path}/zarr.json")[0] == 401
    # nginx reads no more than its limit; Caddy answers 502 if it was still sending when refused.
    status = site.ask(f"{site.url}/v1/ctspine1k/batch", "POST", b" " * (5 << 20), **bearer)[0]
    assert status == 413 or (status == 502 and not (site.folder / "nginx.conf").exists())


@pytest.mark.long
def test_clients_read_through_the_proxy(site, ctspine1k_url):
    signed = site.command("--sign", f"{site.url}/zarr/ctspine1k", "--for", "1h", "--as", "anna")
    own = {**os.environ, "SSL_CERT_FILE": str(site.folder / "site.pem")}
    words = [sys.executable, "-W", "error", "-c", READERS, signed, site.token, ctspine1k_url]
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_browser_signs_in_through_the_proxy(site):
    form = urllib.parse.urlencode({"token": site.token, "next": "/v1/stores"}).encode()
    status, said, _ = site.ask(f"{site.url}/login", "POST", form, origin=site.url)
    assert (status, said["location"]) == (303, "/v1/stores")
    assert "; Secure" in said["set-cookie"]
    assert "max-age" in said["strict-transport-security"]
    cookie = said["set-cookie"].partition(";")[0]
    assert site.ask(f"{site.url}/v1/stores", cookie=cookie)[0] == 200
    assert site.ask(f"{site.url}/v1/stores", cookie=cookie, origin=site.url)[0] == 200
    assert site.ask(f"{site.url}/v1/stores", cookie=cookie, origin="https://evil.example")[0] == 401
    assert site.ask(f"{site.url}/login", "POST", form, origin="https://evil.example")[0] == 401


@pytest.mark.long
def test_the_proxy_redirects_to_tls_and_logs_no_secret(site):
    status, said, _ = site.ask(f"{site.plain}/login?a=b")
    assert status in {301, 308}
    assert said["location"].startswith("https://localhost")
    signed = site.command("--sign", f"{site.url}/zarr/ctspine1k", "--as", "anna")
    ticket = signed.split("/")[4]
    hidden = signed.replace("/signed/", "/%73igned/")
    for url in (signed, f"{signed}/zarr.json", f"{hidden}/zarr.json", f"{signed}/a\tb%0ac"):
        site.ask(urllib.parse.quote(url, safe=":/%"))
    site.ask(f"{site.url}/login?token={site.token}")
    site.ask(f"{site.url}/signed/{ticket}")
    log = site.folder / "access.log"
    if log.exists():
        text = log.read_text()
        assert "/signed/-/zarr/ctspine1k/zarr.json 200" in text
        assert "GET /login 303" in text
        assert ticket not in text
        assert site.token not in text
    others = (site.folder / name for name in ("error.log", "said"))
    assert not any(ticket in path.read_text() for path in others if path.exists())


def test_systemd_accepts_the_unit_and_rates_it_as_safe(tmp_path):
    found = program("systemd-analyze")
    text = (DEPLOY / "spinezarr.service").read_text()
    assert "/opt/spinezarr/bin/spinezarr serve" in text
    own = text.replace("/opt/spinezarr/bin/spinezarr", sys.executable)
    unit = tmp_path / "spinezarr.service"
    unit.write_text(own)
    done = subprocess.run([found, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # The exposure runs from 0, for a service that may do nothing, to 10.
    line = [found, "security", "--offline=true", "--threshold=20", unit]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
