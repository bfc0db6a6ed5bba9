"""Fixtures of tests and doctests: one small ingested dataset, a web server and an S3 server."""

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any

import fork_server
import numpy as np
import proxy
import pytest
from hypothesis import settings
from killing.memory import in_memory

import spinezarr
from spinezarr.geometry import corner_distance_mm
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.blocks import ChunkFrame
from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files
from spinezarr.store.folder import StoreFolder
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.sharding import ABSENT, CHECKSUM_BYTES, index_bytes, parse_index
from spinezarr.stream.read.fetch import ByteRange, ByteRanges, FetchedRanges, Fetcher, LocalFetcher
from spinezarr.testing import WrittenScan, write_ctspine1k

if TYPE_CHECKING:
    import SimpleITK

# These files are programs, which the tests in their folder start.
collect_ignore = [
    "tests/hostile/fuzz.py",
    "tests/hostile/server_fuzz.py",
    "tests/hostile/stores_fuzz.py",
    "tests/hostile/stores_verbs.py",
]

# No deadline: shared machines pause. CI always draws the same examples; elsewhere they vary.
settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    """Accept interrupts, and write temporary files to memory.

    Background jobs of a shell, and their children, ignore interrupts. Stores are forced to disk
    file by file, which takes long.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = in_memory()
    if folder is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)


def pytest_unconfigure() -> None:
    """End the fork server of the commands."""
    fork_server.stop()


def pytest_collection_finish() -> None:
    """Exclude all modules and tests from the garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _freeze_after_each_module() -> Iterator[None]:
    """Exclude the imports of each test module from the garbage collection."""
    yield
    gc.collect()
    gc.freeze()


class RecordingFetcher(Fetcher):
    """Fetches through another fetcher, and records the requested ranges, call by call."""

    def __init__(self, fetch: Fetcher | None = None) -> None:
        self.calls: list[ByteRanges] = []
        self._fetch = fetch or LocalFetcher(StoreFolder.at("/"))

    def __call__(self, ranges: ByteRanges) -> AbstractContextManager[FetchedRanges]:
        """See :class:`Fetcher`."""
        self.calls.append(ranges)
        return self._fetch(ranges)

    @property
    def fetched(self) -> list[ByteRange]:
        """The requested ranges of all calls."""
        return [item for call in self.calls for item in call]


@pytest.fixture(scope="session")
def recording_fetcher() -> type[RecordingFetcher]:
    """Return the class of a fetcher that records the requested ranges."""
    return RecordingFetcher


@pytest.fixture(scope="session")
def ctspine1k_raw(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, tuple[WrittenScan, ...]]:
    """Return a raw folder in the official layout, and its scans; no test may change it."""
    raw = tmp_path_factory.mktemp("raw") / "CTSpine1K"
    return raw, write_ctspine1k(raw, scale=0.25)


@pytest.fixture(scope="session")
def ctspine1k_url(
    ctspine1k_raw: tuple[Path, tuple[WrittenScan, ...]], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Return the path of the store of that folder; no test may change it."""
    recipe = Recipe.load("ctspine1k")
    url = str(tmp_path_factory.mktemp("store") / "ctspine1k.zarr")
    report = ingest(recipe, discover(recipe, str(ctspine1k_raw[0])), url)
    assert not report.failed, report.failed
    return url


@pytest.fixture
def store(ctspine1k_url: str) -> "spinezarr.Store":
    """Open that store."""
    return spinezarr.open(ctspine1k_url)


@pytest.fixture(autouse=True)
def _doctest_store(doctest_namespace: dict[str, object], request: pytest.FixtureRequest) -> None:
    """Give doctests an open ``store``, and the ``raw_folder`` that it was made from."""
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["store"] = request.getfixturevalue("store")
        doctest_namespace["raw_folder"] = request.getfixturevalue("ctspine1k_raw")[0]


def give_up_capabilities() -> Callable[[], None]:
    """Limit user 0 to the permissions of file modes; return a function that ends the limit.

    The thread, and those it starts, give up their effective capabilities (``capset(2)``).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    held = (ctypes.c_uint32 * 6)()
    assert not libc.capget(header, held)
    # The array holds the effective, permitted and inheritable capabilities, twice.
    assert not libc.capset(header, (ctypes.c_uint32 * 6)(0, *held[1:3], 0, *held[4:]))

    def restore() -> None:
        assert not libc.capset(header, held)

    return restore


@pytest.fixture
def plain_user() -> Iterator[None]:
    """Limit user 0 to the permissions of file modes while a test runs."""
    if os.geteuid():
        yield
        return
    restore = give_up_capabilities()
    yield
    restore()


class _FolderServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _RangeHandler)
        self.folder = folder
        self.requests: list[tuple[str, bool]] = []


class _RangeHandler(BaseHTTPRequestHandler):
    """Serves files with single byte ranges (RFC 9110, section 14)."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: the body never waits for an answer

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.requests.append((self.path, bool(byte_range)))
        data = path.read_bytes() if path.is_file() else b""
        status = HTTPStatus.OK if path.is_file() else HTTPStatus.NOT_FOUND
        file_bytes = len(data)
        if byte_range and status == HTTPStatus.OK:
            first, last = int(byte_range[1]), min(int(byte_range[2]), file_bytes - 1)
            data = data[first : last + 1]
            outside = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            status = HTTPStatus.PARTIAL_CONTENT if first < file_bytes else outside
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {first}-{last}/{file_bytes}")
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], tuple[str, list[tuple[str, bool]]]]]:
    """Return a function that serves a folder over HTTP.

    It returns the URL, and the list of requests so far: path, and whether it was for a range.
    """
    with ExitStack() as running:

        def start(folder: Path) -> tuple[str, list[tuple[str, bool]]]:
            server = running.enter_context(_FolderServer(folder))
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            running.callback(thread.join)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}", server.requests

        yield start


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    endpoint_url: str
    access_key: str
    secret_key: str
    client: Any
    """Client of boto3."""
    buckets: list[str] = field(default_factory=list)

    @property
    def storage_options(self) -> dict[str, str]:
        """Storage options for its URLs in Python."""
        return {
            "endpoint_url": self.endpoint_url,
            "key": self.access_key,
            "secret": self.secret_key,
        }

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command that uses it, without AWS settings of the user."""
        others = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
        return {
            **others,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{len(self.buckets)}"
        self.client.create_bucket(Bucket=name)
        self.buckets.append(name)
        return name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Run an S3 server: moto's, or Ceph's if ``SPINEZARR_TEST_S3`` is ``ceph``."""
    import boto3  # noqa: PLC0415  takes long, and few tests need it

    running = _ceph if os.environ.get("SPINEZARR_TEST_S3") == "ceph" else _moto
    with running() as (endpoint_url, access_key, secret_key):
        keys = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
        client = boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1", **keys)
        yield S3Server(endpoint_url, access_key, secret_key, client)
        client.close()


@contextmanager
def _moto() -> Iterator[tuple[str, str, str]]:
    """Run moto's server in a process of its own, on a port that it chooses."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        output = ""
        for line in process.stderr:
            output += line
            if url := re.search(r"Running on (http://\S+)", line):
                break
        else:
            raise RuntimeError(f"moto did not start: {output}")
        # moto writes a line for every request, and would block once the pipe is full.
        drain = Thread(target=process.stderr.read)
        drain.start()
        yield url[1], "test", "test"
        process.terminate()
        drain.join()


@contextmanager
def _ceph() -> Iterator[tuple[str, str, str]]:
    """Run Ceph's gateway."""
    from ceph import ceph_gateway  # noqa: PLC0415  rarely needed

    with ceph_gateway() as gateway:
        yield gateway.endpoint_url, gateway.access_key, gateway.secret_key


@pytest.fixture(scope="session")
def proxies() -> ModuleType:
    """Return the module of the proxy that adds latency, a bandwidth limit and faults."""
    return proxy


def _comparable_files(store: Path) -> dict[str, object]:
    """Return the files of a store in a form that does not depend on the kind of chunk keys."""
    files = {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }
    if bundle := files.pop(TABLE_BUNDLE, None):
        files |= {f"{TABLE_BUNDLE}/{key}": data for key, data in unbundle_files(bundle).items()}
    return {
        _plain_key(name): _plain_metadata(data) if name.endswith("zarr.json") else data
        for name, data in files.items()
    }


def _plain_key(name: str) -> str:
    return re.sub(r"/c\.([\d.]+)$", lambda match: f"/c/{match[1].replace('.', '/')}", name)


def _plain_metadata(data: bytes) -> object:
    metadata = json.loads(data.replace(b'"separator": "."', b'"separator": "/"'))
    attributes = metadata["attributes"]
    attributes.pop("metadata_crc32c", None)
    for name, entry in list(attributes.get("manifest", {}).items()):
        del attributes["manifest"][name]
        if not name.endswith("zarr.json"):
            attributes["manifest"][_plain_key(name)] = entry
    for entry in attributes.get("scans", {}).values():
        del entry["identity"]
    return metadata


def _differing_files(a: Path, b: Path) -> list[str]:
    first, second = _comparable_files(a), _comparable_files(b)
    keys = first.keys() | second.keys()
    return sorted(key for key in keys if first.get(key) != second.get(key))


@pytest.fixture(scope="session")
def differing_files() -> Callable[[Path, Path], list[str]]:
    """Return a function that names the files that differ between two stores."""
    return _differing_files


def _shard_entry(shard: bytes, n_chunks: int) -> ShardEntry:
    index = parse_index(shard[-index_bytes(n_chunks) :], n_chunks, len(shard)).tolist()
    rows = b"".join(
        ChunkFrame.of(shard[offset : offset + size]).row(position).tobytes()
        for position, (offset, size) in enumerate(index)
        if offset != ABSENT
    )
    return ShardEntry(
        **ManifestEntry.of(shard).model_dump(),
        index_offset=len(shard) - index_bytes(n_chunks),
        index_crc32c=f"{int.from_bytes(shard[-CHECKSUM_BYTES:], 'little'):08x}",
        chunks=b64encode(rows).decode(),
    )


@pytest.fixture(scope="session")
def shard_entry() -> Callable[[bytes, int], ShardEntry]:
    """Return a function that makes the manifest entry of a shard with room for ``n`` chunks."""
    return _shard_entry


def _affine_of_itk(image: "SimpleITK.Image") -> np.ndarray:
    """Return the affine by which SimpleITK places voxels ``(i, j, k, 1)``, in RAS+ mm.

    ITK itself uses LPS+.
    """
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = to_ras @ directions * image.GetSpacing()
    affine[:3, 3] = to_ras @ image.GetOrigin()
    return affine


@pytest.fixture(scope="session")
def affine_of_itk() -> "Callable[[SimpleITK.Image], np.ndarray]":
    """Return a function that returns the affine of a SimpleITK image, in RAS+ mm."""
    return _affine_of_itk


def _assert_read_alike(path: Path | str, apart_mm: float = 0.01) -> None:
    """Check that SimpleITK, nibabel and nnU-Net find the same voxels at the same places in a file.

    MONAI and TorchIO read through one of the first two, and ITK-SNAP and 3D Slicer through the
    library below SimpleITK.
    """
    import nibabel  # noqa: PLC0415  takes long
    import SimpleITK  # noqa: PLC0415
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO  # noqa: PLC0415
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO  # noqa: PLC0415

    itk, file = SimpleITK.ReadImage(str(path)), nibabel.load(path)
    assert isinstance(file, nibabel.Nifti1Image)
    assert itk.GetSize() == file.shape
    values = SimpleITK.GetArrayFromImage(itk).T
    # ITK scales in float32.
    scaled = (file.dataobj.slope, file.dataobj.inter) != (1.0, 0.0)
    tolerance = {"rtol": 1e-5, "atol": 1e-3} if scaled else {"rtol": 0}
    np.testing.assert_allclose(values, np.asarray(file.dataobj), **tolerance)
    assert corner_distance_mm(file.shape, _affine_of_itk(itk), file.affine) <= apart_mm
    np.testing.assert_allclose(itk.GetSpacing(), file.header.get_zooms(), rtol=1e-5)
    for reader, expected in ((SimpleITKIO, values), (NibabelIO, np.asarray(file.dataobj))):
        (voxels,), facts = reader().read_images([str(path)])
        np.testing.assert_array_equal(voxels, expected.T.astype(np.float32))
        np.testing.assert_allclose(facts["spacing"], itk.GetSpacing()[::-1], rtol=1e-5)


@pytest.fixture(scope="session")
def assert_read_alike() -> Callable[..., None]:
    """Return the check that programs read a NIfTI file alike."""
    return _assert_read_alike


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the pages first, because they take longest."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")
