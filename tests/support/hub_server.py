"""A Hugging Face hub: dataset repositories, their API, and a content network that it redirects to.

It answers the requests that ``huggingface_hub`` and ``HfFileSystem`` send, over real sockets: facts
about a repository, listings in pages, uploads (the LFS protocol), commits, and files by byte
ranges. Binary files are redirected to another server, at addresses that are valid for some time.
"""

import base64
import hashlib
import json
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

__all__ = ["Fault", "HubServer"]

PAGE = 100
"""Entries on one page of a listing."""


@dataclass
class Fault:
    """An answer in place of the right one."""

    kind: str
    """Requests that get it: ``api``, ``resolve``, ``content``, ``upload`` or ``commit``."""
    status: int
    headers: dict = field(default_factory=dict)
    times: int = 1
    after: int = 0
    """Number of requests of that kind that are answered first."""
    body: bytes = b""


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  as Git does


def is_binary(data):
    return b"\0" in data[:512] or len(data) > 10_000_000


class Repository:
    """The files of one branch, and the number of its commits."""

    def __init__(self):
        self.files = {".gitattributes": b"*.bin filter=lfs\n"}
        self.head = secrets.token_hex(20)
        self.commits = []
        self.revisions = {self.head: dict(self.files)}

    def commit(self, title, operations):
        for path, data in operations:
            if data is None:
                del self.files[path]
            else:
                self.files[path] = data
        self.head = secrets.token_hex(20)
        self.revisions[self.head] = dict(self.files)
        self.commits.append((title, [path for path, _ in operations]))

    def at(self, revision):
        return self.files if revision == "main" else self.revisions.get(revision)


class HubServer:
    """A hub and its content network.

    Attributes
    ----------
    url
        Address of the hub.
    repositories
        Repositories by name.
    token
        Token that is required; None if anybody may do everything.
    faults
        Answers in place of the right ones.
    requests
        Number of requests of each kind.
    leaked
        Paths of requests to the content network that had the token.
    """

    def __init__(self, token=None, valid_s=60.0):
        self.repositories = {}
        self.token = token
        self.valid_s = valid_s
        self.faults = []
        self.requests = Counter()
        self.leaked = []
        self.blobs = {}
        self.lock = Lock()
        self._hub = _Server(self, _HubHandler)
        self._content = _Server(self, _ContentHandler)
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.content_url = f"http://127.0.0.1:{self._content.server_port}"
        self._threads = [
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            for server in (self._hub, self._content)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in (self._hub, self._content):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def add(self, name, folder=None, prefix=""):
        """Make a repository with the files of a folder, and return it."""
        repository = self.repositories[name] = Repository()
        if folder is not None:
            files = [path for path in folder.rglob("*") if path.is_file()]
            operations = [
                (f"{prefix}{f.relative_to(folder).as_posix()}", f.read_bytes()) for f in files
            ]
            repository.commit("files", operations)
        return repository

    def fault_for(self, kind):
        """Count a request, and return the fault that answers it; None for the right answer."""
        with self.lock:
            self.requests[kind] += 1
            for fault in self.faults:
                if fault.kind != kind or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def signed(self, data):
        """Return the address of a content, which is valid for some time."""
        oid = hashlib.sha256(data).hexdigest()
        with self.lock:
            self.blobs[oid] = data
        return f"{self.content_url}/content/{oid}?Expires={time.time() + self.valid_s}&Signature=x"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    @property
    def hub(self):
        return self.server.hub

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value, **headers):
        self.send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def send_data(self, data, **headers):
        """Send a file, or the range of it that is requested."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        common = {
            "Accept_Ranges": "bytes",
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            **headers,
        }
        if match is None:
            self.send(200, data, **common)
            return
        start = int(match[1])
        stop = min(int(match[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.send(416, Content_Range=f"bytes */{len(data)}", **common)
            return
        place = f"bytes {start}-{stop - 1}/{len(data)}"
        self.send(206, data[start:stop], Content_Range=place, **common)

    def send_fault(self, kind):
        """Answer with a fault if there is one; return whether there was."""
        fault = self.hub.fault_for(kind)
        if fault is None:
            return False
        self.send(fault.status, fault.body, **fault.headers)
        return True

    def refuse(self, status, code, message="no"):
        self.send(status, b"{}", X_Error_Code=code, X_Error_Message=message)

    def log_message(self, *_):
        """Keep quiet."""


class _HubHandler(_Handler):
    def do_HEAD(self):
        self.route(b"")

    def do_GET(self):
        self.route(b"")

    def do_POST(self):
        self.route(self.body())

    def route(self, body):
        parts = urlsplit(self.path)
        path = parts.path
        if (
            match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        ) is not None:
            self.answer("resolve", match, body, self.resolve)
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)[.]git/info/lfs/objects/batch", path):
            self.answer("upload", match, body, self.batch)
        elif (
            match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/([^/]+)", path)
        ) is not None:
            self.answer("commit", match, body, self.commit)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(\w[\w-]*)/([^/]+)(/.*)?", path):
            handle = {
                "revision": self.info,
                "tree": self.tree,
                "paths-info": self.paths_info,
                "preupload": self.preupload,
            }[match[2]]
            self.answer("api", match, body, handle)
        elif (match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", path)) is not None:
            self.answer("api", match, body, self.info)
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        else:
            self.send(404)

    def answer(self, kind, match, body, handle):
        if self.send_fault(kind):
            return
        token = self.hub.token
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self.refuse(401, "RepoNotFound")
            return
        repository = self.hub.repositories.get(match[1])
        if repository is None:
            self.refuse(404, "RepoNotFound")
            return
        handle(repository, match, body)

    def files_of(self, repository, revision):
        files = repository.at(unquote(revision))
        if files is None:
            self.refuse(404, "RevisionNotFound")
        return files

    def info(self, repository, match, _):
        revision = match[3] if match.re.groups > 1 else "main"
        if self.files_of(repository, revision) is not None:
            sha = repository.head if revision == "main" else revision
            self.send_json(
                {"id": match[1], "sha": sha, "private": False, "tags": [], "siblings": []}
            )

    def resolve(self, repository, match, _):
        files = self.files_of(repository, match[2])
        if files is None:
            return
        data = files.get(unquote(match[3]))
        if data is None:
            self.refuse(404, "EntryNotFound")
            return
        if is_binary(data):
            size = {"X_Linked_Size": str(len(data)), "X_Repo_Commit": repository.head}
            self.send(302, Location=self.hub.signed(data), **size)
        else:
            self.send_data(data, X_Repo_Commit=repository.head)

    def entry(self, path, data):
        value = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if is_binary(data):
            oid = hashlib.sha256(data).hexdigest()
            value["oid"] = git_sha1(f"oid sha256:{oid}".encode())
            value["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return value

    def tree(self, repository, match, _):
        files = self.files_of(repository, match[3])
        if files is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        folder = unquote((match[4] or "").lstrip("/"))
        start = f"{folder}/" if folder else ""
        inside = {path: data for path, data in sorted(files.items()) if path.startswith(start)}
        if not inside:
            self.refuse(404, "EntryNotFound")
            return
        entries = {}
        for path, data in inside.items():
            parts = path[len(start) :].split("/")
            is_recursive = query.get("recursive", ["false"])[0].lower() == "true"
            for depth in range(1, len(parts)) if is_recursive else range(1, min(2, len(parts))):
                name = start + "/".join(parts[:depth])
                entries[name] = {
                    "type": "directory",
                    "path": name,
                    "size": 0,
                    "oid": git_sha1(name.encode()),
                }
            if is_recursive or len(parts) == 1:
                entries[path] = self.entry(path, data)
        values = list(entries.values())
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(values):
            options = "&".join(f"{k}={quote(v[0])}" for k, v in query.items() if k != "cursor")
            target = f"{self.hub.url}{urlsplit(self.path).path}?{options}&cursor={first + PAGE}"
            headers["Link"] = f'<{target}>; rel="next"'
        self.send_json(values[first : first + PAGE], **headers)

    def paths_info(self, repository, match, body):
        files = self.files_of(repository, match[3])
        if files is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        self.send_json([self.entry(path, files[path]) for path in paths if path in files])

    def preupload(self, repository, match, body):
        files = self.files_of(repository, match[3]) or {}
        answer = []
        for asked in json.loads(body)["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            mode = "lfs" if b"\0" in sample or asked["size"] > 10_000_000 else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in files:
                found = self.entry(path, files[path])
                entry["oid"] = found["lfs"]["oid"] if "lfs" in found else found["oid"]
            answer.append(entry)
        self.send_json({"files": answer})

    def batch(self, _, __, body):
        objects = []
        for asked in json.loads(body)["objects"]:
            value = dict(asked)
            if asked["oid"] not in self.hub.blobs:
                href = f"{self.hub.content_url}/upload/{asked['oid']}"
                value["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(value)
        self.send_json({"objects": objects, "transfer": "basic"})

    def commit(self, repository, match, body):
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        operations = []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                operations.append((value["path"], base64.b64decode(value["content"])))
            elif line["key"] == "lfsFile":
                operations.append((value["path"], self.hub.blobs[value["oid"]]))
            elif line["key"] == "deletedFile":
                operations.append((value["path"], None))
        with self.hub.lock:
            parent = header.get("parentCommit")
            if parent is not None and parent != repository.head:
                is_stale = True
            else:
                is_stale = False
                repository.commit(header["summary"], operations)
        if is_stale:
            self.refuse(412, "", "A commit has happened since")
            return
        url = f"{self.hub.url}/datasets/{match[1]}/commit/{repository.head}"
        self.send_json({"success": True, "commitOid": repository.head, "commitUrl": url})


class _ContentHandler(_Handler):
    def do_GET(self):
        if "Authorization" in self.headers:
            self.hub.leaked.append(self.path)
        if self.send_fault("content"):
            return
        parts = urlsplit(self.path)
        data = self.hub.blobs.get(parts.path.removeprefix("/content/"))
        expires = parse_qs(parts.query).get("Expires", ["0"])[0]
        if data is None:
            self.send(404)
        elif float(expires) < time.time():
            self.send(403, b"<Error><Code>AccessDenied</Code></Error>")
        else:
            self.send_data(data)

    def do_PUT(self):
        data = self.body()
        if "Authorization" in self.headers:
            self.hub.leaked.append(self.path)
        if self.send_fault("content"):
            return
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != oid:
            self.send(400)
            return
        with self.hub.lock:
            self.hub.blobs[oid] = data
        self.send(200)
