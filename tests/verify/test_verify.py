import json
import os
import re
import shutil
from base64 import b64encode
from contextlib import contextmanager
from functools import partial, reduce
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from operator import getitem
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import xarray as xr
from shards import assemble_shard
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import CorruptStoreError, SpinezarrError, StoreNotFoundError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.remote.errors import NoRangesError
from spinezarr.remote.settings import METADATA_BYTES, RemoteSettings
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.layout import BALANCED
from spinezarr.store.ledger import LEDGER_FILE, Ledger
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.writer import StoreWriter
from spinezarr.testing import NiftiForm, write_nifti, write_totalsegmentator
from spinezarr.verify.store import verify_store

SHAPE = (140, 30, 60)
"""Shape of an image with two shards (of two and one chunks) along z, and two chunks along x."""
FLIPS = int(os.environ.get("SPINEZARR_FLIPS", "60"))
"""Number of bytes to flip; 'make flips' flips a thousand."""
SHARDS = [f"{name}/c/{z}/0/0" for name in ("image", "label") for z in (0, 1)]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """Return raw folder and store of two audited scans, which no test may change."""
    folder = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = rng.integers(-1024, 1024, SHAPE).astype(np.int16)
        write_nifti(folder / f"raw/{name}_ct.nii", image, np.eye(4), NiftiForm())
        label = np.zeros(SHAPE, np.uint8)
        label[5:70, 5 : 10 + rng.integers(9), 5:30] = 20
        label[72:138, 5 : 10 + rng.integers(9), 25:57] = 21
        write_nifti(folder / f"raw/{name}_seg.nii", label, np.eye(4), NiftiForm(dtype="uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="noise")
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "noise.zarr"))
    assert not report.failed
    store = spinezarr.open(folder / "noise.zarr")
    store.audit()
    return folder


@pytest.fixture
def copied(pristine, tmp_path):
    """Copy that store, to damage the copy."""
    return Path(shutil.copytree(pristine / "noise.zarr", tmp_path / "noise.zarr"))


@contextmanager
def holding(path, data):
    """Replace the contents of a file, or remove it, until the context ends."""
    before = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def files_of(store):
    return sorted(path for path in store.rglob("*") if path.is_file())


def faults_of(store, **options):
    return verify_store(str(store), **options).faults


def found_in(store, path):
    """Return whether some fault names the file."""
    key = path.relative_to(store).as_posix()
    return any(fault.path == key for fault in faults_of(store))


def flip(data, at, mask):
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def flips(store, number, seed):
    """Draw files, offsets and masks of flipped bytes: half uniform over bytes, half over files."""
    rng = np.random.default_rng(seed)
    files = files_of(store)
    sizes = np.array([path.stat().st_size for path in files])
    for i in range(number):
        weights = sizes / sizes.sum() if i % 2 else np.full(len(files), 1 / len(files))
        chosen = int(rng.choice(len(files), p=weights))
        mask = int(rng.choice([1, 2, 32, 128, 255]))
        yield files[chosen], int(rng.integers(sizes[chosen])), mask


def read_all(store):
    """Return everything that the reader returns of a store."""
    opened = spinezarr.open(store)
    table = opened.table
    scans = {name: opened.scan(name).load() for name in ("a", "b")}
    counts = {name: opened._reader.label_chunks(name) for name in ("a", "b")}
    return table, scans, counts


def assert_same(found, expected):
    xr.testing.assert_identical(found[0], expected[0])
    for name in ("a", "b"):
        xr.testing.assert_identical(found[1][name], expected[1][name])
        np.testing.assert_array_equal(found[2][name], expected[2][name])


def test_a_whole_store_has_no_faults(pristine, ctspine1k_url, serve):
    for url in (pristine / "noise.zarr", ctspine1k_url):
        total, done = [], []
        found = verify_store(str(url), on_total=total.append, on_bytes=done.append)
        assert (found.faults, found.leftovers, found.listed, found.exit_code) == ((), (), True, 0)
        sizes = sum(path.stat().st_size for path in files_of(Path(url)))
        assert total == [sizes]
        assert sum(done) == sizes
    assert verify_store(str(pristine / "noise.zarr"), ["b"]).scans == ("b",)
    url, _ = serve(pristine)
    served = verify_store(f"{url}/noise.zarr")
    assert (served.faults, served.scans, served.listed) == ((), ("a", "b"), False)


def test_each_flipped_byte_is_found(copied):
    missed = []
    for path, at, mask in flips(copied, FLIPS, seed=1):
        with holding(path, flip(path.read_bytes(), at, mask)):
            if not found_in(copied, path):
                missed.append((path, at, mask))
    assert not missed
    assert not faults_of(copied)


def test_a_flipped_byte_is_an_error_or_without_effect_for_readers(copied):
    expected = read_all(copied)
    raised = 0
    for path, at, mask in flips(copied, FLIPS, seed=2):
        with holding(path, flip(path.read_bytes(), at, mask)):
            try:
                found = read_all(copied)
            except SpinezarrError:
                raised += 1
                continue
        assert_same(found, expected)
    assert raised > FLIPS / 3


@pytest.mark.long
def test_each_deleted_cut_or_lengthened_file_is_found(copied):
    expected = read_all(copied)
    # The files of the table are many and similar, so only some are damaged.
    files = [
        path for i, path in enumerate(files_of(copied)) if i % 9 == 0 or "table" not in str(path)
    ]
    for i, path in enumerate(files):
        data = path.read_bytes()
        damages = [None, data[: len(data) // 2], data + b"\0"]
        for damaged in damages:
            with holding(path, damaged):
                # Files of the audit may be absent, as in a store that was never audited.
                if "audit" not in path.parts or damaged is not None:
                    assert found_in(copied, path), (path, damaged and len(damaged))
                if damaged != damages[i % 3]:
                    continue
                try:
                    found = read_all(copied)
                except SpinezarrError:
                    continue
                assert_same(found, expected)


def swapped(one, other):
    """Exchange two files or folders."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.long
def test_each_pair_of_exchanged_files_is_found(copied):
    expected = read_all(copied)
    of_equal_size = 0
    files = [path for path in files_of(copied) if path.name != "zarr.json"]
    groups = {}
    for path in files:
        groups.setdefault(path.parts[-4:][0] if "table" in path.parts else "scans", []).append(path)
    for group in groups.values():
        by_size = sorted(group, key=lambda path: path.stat().st_size)
        pairs = [*zip(group, [*group[7:], *group[:7]], strict=True), *pairwise(by_size)]
        for one, other in pairs:
            if one.read_bytes() == other.read_bytes():
                continue
            of_equal_size += one.stat().st_size == other.stat().st_size
            swapped(one, other)
            assert found_in(copied, one), (one, other)
            assert found_in(copied, other), (one, other)
            try:
                found = read_all(copied)
            except SpinezarrError:
                pass
            else:
                assert_same(found, expected)
            swapped(one, other)
    assert of_equal_size


@pytest.mark.parametrize("shard", SHARDS)
def test_exchanged_shards_are_found_and_an_error_for_readers(copied, shard):
    swapped(*(copied / "scans" / name / shard for name in "ab"))
    assert {fault.scan_id for fault in faults_of(copied)} == {"a", "b"}
    for name in "ab":
        with pytest.raises(CorruptStoreError, match=rf"scan '{name}', {shard.split('/')[0]} chunk"):
            spinezarr.open(copied).scan(name).load()


def test_exchanged_shards_of_equal_sizes_are_found_and_an_error_for_readers(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        # Noise over the whole range of int16 does not compress, so the indices are equal, too.
        image = rng.integers(-(2**15) + 1, 2**15, (64, 32, 64)).astype(np.int16)
        write_nifti(tmp_path / f"raw/{name}.nii", image, np.eye(4), NiftiForm())
    recipe = Recipe.from_pairs("{scan}.nii", None, name="noise")
    url = tmp_path / "noise.zarr"
    assert not ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(url)).failed
    one, other = (url / f"scans/{name}/{SHARDS[0]}" for name in "ab")
    assert one.read_bytes()[-36:] == other.read_bytes()[-36:]  # two chunks
    swapped(one, other)
    assert [(fault.scan_id, fault.kind) for fault in faults_of(url)] == [
        ("a", "misplaced"),
        ("b", "misplaced"),
    ]
    for name in "ab":
        with pytest.raises(CorruptStoreError, match=rf"scan '{name}', image chunk .* has crc32c"):
            spinezarr.open(url).scan(name).load()


def test_exchanged_scans_are_found_and_an_error_for_readers(copied):
    swapped(copied / "scans/a", copied / "scans/b")
    found = faults_of(copied)
    assert {(f.path, f.kind) for f in found if f.kind == "misplaced"} == {
        ("scans/a/zarr.json", "misplaced"),
        ("scans/b/zarr.json", "misplaced"),
    }
    with pytest.raises(CorruptStoreError, match=r"dataset and scan .* expected"):
        spinezarr.open(copied).scan("a")


def test_a_scan_of_another_dataset_is_found(copied, ctspine1k_url):
    shutil.copytree(Path(ctspine1k_url) / "scans/liver_0", copied / "scans/liver_0")
    kinds = {(f.path, f.kind) for f in faults_of(copied)}
    assert kinds == {
        ("scans/liver_0/zarr.json", "misplaced"),
        ("table", "disagrees"),
        ("ingest/zarr.json", "disagrees"),
    }
    with pytest.raises(CorruptStoreError, match="ctspine1k"):
        spinezarr.open(copied).scan("liver_0")


@pytest.mark.parametrize(
    "key",
    [
        "extra",
        ".DS_Store",
        "scans/notes.txt",
        "scans/a/image/c/0/0/1",
        "scans/a/label/c/9/9/9",
        "scans/b/other/zarr.json",
        "table/split/c/1",
        "audit/c/0",
    ],
)
def test_a_file_that_no_manifest_names_is_found(copied, key):
    (copied / key).parent.mkdir(parents=True, exist_ok=True)
    (copied / key).write_bytes(b"x")
    (fault,) = faults_of(copied)
    assert (fault.path, fault.kind) == (key, "extra")
    inside = key.startswith("scans/") and key.count("/") > 1
    assert fault.scan_id == (key.split("/")[1] if inside else None)


def test_leftovers_of_killed_runs_are_listed_and_are_no_faults(copied):
    (copied / "ingest.lock").write_bytes(b"")
    for name in ("table.partial", "table.old.partial", "scans/a.partial", "scans/c.partial"):
        (copied / name / "image").mkdir(parents=True)
        (copied / name / "image/zarr.json").write_bytes(b"{")
        (copied / name / "zarr.json").write_bytes(b"{")
    (copied / "zarr.json.partial").write_bytes(b"{")
    found = verify_store(str(copied))
    assert found.exit_code == 0
    assert set(found.leftovers) == {
        "ingest.lock",
        "table.partial",
        "table.old.partial",
        "scans/a.partial",
        "scans/c.partial",
        "zarr.json.partial",
    }


def test_unfinished_and_missing_scans_are_found(copied):
    shutil.copytree(copied / "scans/a", copied / "scans/c")
    (copied / "scans/c/zarr.json").unlink()
    (fault,) = faults_of(copied)
    assert (fault.scan_id, fault.kind) == ("c", "unfinished")
    shutil.rmtree(copied / "scans/c")
    shutil.rmtree(copied / "scans/b")
    (fault,) = faults_of(copied)
    assert (fault.scan_id, fault.kind, fault.path) == ("b", "missing", "scans/b/zarr.json")


def test_rows_that_disagree_with_the_scans_are_found(copied):
    reader = StoreReader(str(copied))
    writer = StoreWriter(str(copied), reader.root)
    first, second = (reader.scan(name).attributes for name in "ab")
    entries = writer.registry.ledger().scans

    def write_table(*scans):
        writer.registry.write_table(None, {scan.scan_id: scan for scan in scans}, entries)

    write_table(first.model_copy(update={"split": "test"}), second)
    (fault,) = [f for f in faults_of(copied) if "split" in f.found]
    assert (fault.scan_id, fault.path, fault.kind) == ("a", "table", "disagrees")
    write_table(first)
    (fault,) = faults_of(copied)
    assert (fault.scan_id, fault.path, fault.found) == ("b", "table", "no row of this scan")
    write_table(first, second, first.model_copy(update={"scan_id": "c", "columns": {"x": "y"}}))
    kinds = {(f.scan_id, f.path, f.kind) for f in faults_of(copied)}
    assert kinds == {("c", "scans/c/zarr.json", "missing")}
    write_table(first.model_copy(update={"columns": {"x": "y"}}), second)
    assert {f.found for f in faults_of(copied)} >= {"a column 'x'"}


def test_a_ledger_of_other_scans_is_found(copied):
    writer = StoreWriter(str(copied), StoreReader(str(copied)).root)
    entries = writer.registry.ledger().scans
    other = entries["b"].model_copy(update={"identity": "another"})
    for wrong, scan_id in (
        ({**entries, "b": other}, "b"),
        ({"a": entries["a"]}, "b"),
        ({**entries, "c": entries["a"]}, "c"),
    ):
        (copied / LEDGER_FILE).write_bytes(Ledger(scans=wrong).to_file())
        (fault,) = faults_of(copied)
        assert (fault.scan_id, fault.path, fault.kind) == (scan_id, LEDGER_FILE, "disagrees")


def rewrite(copied, change):
    """Change a scan's sealed metadata."""
    path = copied / "scans/a/zarr.json"
    metadata = unseal(path.read_bytes())
    change(metadata)
    path.write_bytes(seal(metadata))


def test_consolidated_metadata_that_differ_from_the_arrays_are_found(copied):
    def change(metadata):
        metadata["consolidated_metadata"]["metadata"]["z"]["fill_value"] = 3

    rewrite(copied, change)
    assert {f.path for f in faults_of(copied)} >= {"scans/a/z/zarr.json"}


def test_a_manifest_that_lacks_an_image_shard_is_a_fault(copied):
    rewrite(copied, lambda metadata: metadata["attributes"]["manifest"].pop(SHARDS[0]))
    (fault,) = [fault for fault in faults_of(copied) if fault.path == "scans/a/zarr.json"]
    assert fault.kind == "damaged"
    assert "shards of image, expected" in fault.found


@pytest.mark.parametrize(
    ("name", "found"),
    [("image", "0 chunks, expected the"), ("label", "no chunk (0, 0, 0)")],
)
def test_a_shard_without_a_chunk_is_a_fault_even_if_all_checksums_match(
    copied, name, found, shard_entry
):
    path = copied / f"scans/a/{name}/c/0/0/0"
    path.write_bytes(assemble_shard({}, 4))
    entry = shard_entry(path.read_bytes(), 4).model_dump()
    rewrite(copied, lambda m: m["attributes"]["manifest"].update({f"{name}/c/0/0/0": entry}))
    assert any(found in fault.found for fault in faults_of(copied))


def other_chunks(entry, change):
    """Return a shard entry with a changed table of chunks."""
    rows = entry.rows(BlockCoding.of(BALANCED.image, 1 << 17, 2)).copy()
    change(rows)
    return {**entry.model_dump(), "chunks": b64encode(rows.tobytes()).decode()}


def exchange_chunks(rows):
    rows["block_sizes"][[0, 1]] = rows["block_sizes"][[1, 0]]


def exchange_blocks(rows):
    rows["block_sizes"][0] = rows["block_sizes"][0][::-1].copy()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda entry: {**entry.model_dump(), "index_crc32c": "00000000"},
            "an index with crc32c",
        ),
        (
            lambda entry: other_chunks(entry, lambda rows: rows["voxels_crc32c"].put(1, 7)),
            "chunks with other checksums",
        ),
        (lambda entry: other_chunks(entry, exchange_chunks), "an index of other chunks"),
        (lambda entry: other_chunks(entry, exchange_blocks), "chunks with blocks of other sizes"),
    ],
)
def test_an_intact_shard_with_a_wrong_manifest_entry_is_a_fault(copied, change, found):
    entry = StoreReader(str(copied)).scan("a").image.shards[0, 0, 0]
    coding = StoreReader(str(copied)).scan("a").image.coding
    assert len(set(entry.chunk_sizes(coding)[:2].tolist())) == 2
    sizes = entry.rows(coding)["block_sizes"][0].tolist()
    assert sizes != sizes[::-1]
    rewrite(copied, lambda m: m["attributes"]["manifest"].update({SHARDS[0]: change(entry)}))
    (fault,) = [fault for fault in faults_of(copied) if fault.path == f"scans/a/{SHARDS[0]}"]
    assert fault.kind == "damaged"
    assert fault.found.startswith(found)


def test_an_impossible_table_of_chunks_is_a_fault(copied):
    entry = StoreReader(str(copied)).scan("a").image.shards[0, 0, 0]
    changed = other_chunks(entry, lambda rows: rows["block_sizes"].put(0, 70))
    rewrite(copied, lambda m: m["attributes"]["manifest"].update({SHARDS[0]: changed}))
    (fault,) = [fault for fault in faults_of(copied) if fault.path == "scans/a/zarr.json"]
    assert fault.kind == "damaged"
    assert re.search(r"chunks of \d+ bytes, expected \d+", fault.found)
    with pytest.raises(CorruptStoreError, match=r"is not what spinezarr writes .manifest"):
        spinezarr.open(copied).scan("a")


@pytest.mark.parametrize("factor", [[2.0], None, "2", 10**400])
def test_a_scaling_that_is_no_float_is_a_fault(copied, factor):
    image = ("consolidated_metadata", "metadata", "image", "attributes")
    rewrite(copied, lambda m: reduce(getitem, image, m).update(scale_factor=factor))
    (fault,) = [fault for fault in faults_of(copied) if fault.path == "scans/a/zarr.json"]
    assert fault.kind == "damaged"
    assert "expected a finite float" in fault.found


def test_metadata_too_large_to_be_read_are_a_fault(copied):
    key = "image/zarr.json"
    data = (copied / "scans/a" / key).read_bytes() + b" " * METADATA_BYTES
    (copied / "scans/a" / key).write_bytes(data)
    entry = ManifestEntry.of(data).model_dump()
    rewrite(copied, lambda m: m["attributes"]["manifest"].update({key: entry}))
    (fault,) = [fault for fault in faults_of(copied) if fault.path == f"scans/a/{key}"]
    assert (fault.kind, fault.found[:15]) == ("damaged", "cannot be read:")


def test_a_store_in_memory_is_checked(pristine):
    memory = fsspec.filesystem("memory")
    memory.put(str(pristine / "noise.zarr"), "/verify-test/noise.zarr", recursive=True)
    try:
        assert not faults_of("memory://verify-test/noise.zarr")
        memory.rm(f"/verify-test/noise.zarr/scans/a/{SHARDS[2]}")
        (fault,) = faults_of("memory://verify-test/noise.zarr")
        assert (fault.path, fault.kind) == (f"scans/a/{SHARDS[2]}", "missing")
    finally:
        memory.rm("/verify-test", recursive=True)


BY_RANGE = RemoteSettings(longest_range_bytes=1000)
"""Settings that read every object of a web server by ranges, like large ones."""


def test_a_whole_store_is_read_by_ranges(copied, serve):
    url, requests = serve(copied.parent)
    assert verify_store(f"{url}/{copied.name}", remote=BY_RANGE).faults == ()
    shards = [ranged for path, ranged in requests if re.search(r"/image/c[./]", path)]
    assert shards
    assert all(shards)


@pytest.mark.parametrize("change", [-5, 7])
def test_a_wrong_size_on_a_web_server_is_found(copied, serve, change):
    (shard,) = copied.glob("scans/a/image/c/0/0/0")
    data = shard.read_bytes()
    shard.write_bytes(data[:change] if change < 0 else data + bytes(change))
    url, _ = serve(copied.parent)
    (fault,) = verify_store(f"{url}/{copied.name}", remote=BY_RANGE).faults
    assert (fault.kind, fault.found) == ("damaged", f"{len(data) + change} bytes")


@pytest.mark.parametrize("status", [401, 403, 405, 416, 501])
def test_a_server_that_refuses_is_reported_without_a_traceback(copied, status):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_):
            """Keep quiet."""

    with served_by(Refusing) as url:
        result = CliRunner().invoke(app, ["verify", f"{url}/{copied.name}"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert f"the server answered {status}. Check" in " ".join(result.stderr.split())


def test_a_server_without_ranges_is_not_reported_as_a_fault_of_a_file(copied):
    handler = partial(SimpleHTTPRequestHandler, directory=copied.parent)
    with served_by(handler) as url, pytest.raises(NoRangesError, match="read as byte ranges"):
        verify_store(f"{url}/{copied.name}", remote=BY_RANGE)


@contextmanager
def served_by(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients close unwanted answers early
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_damage_on_a_web_server_is_found(copied, serve):
    url, _ = serve(copied.parent)
    for key in (SHARDS[0], "z/c/0", "zarr.json"):
        path = copied / "scans/b" / key
        for damaged in (None, flip(path.read_bytes(), 30, 4), path.read_bytes()[:-1]):
            with holding(path, damaged):
                assert {f.path for f in faults_of(f"{url}/noise.zarr")} >= {f"scans/b/{key}"}


def test_verifying_an_absent_store_is_an_error(tmp_path, ctspine1k_url):
    for place in (tmp_path, tmp_path / "absent", Path(ctspine1k_url) / "scans/liver_0"):
        with pytest.raises(StoreNotFoundError):
            verify_store(str(place))


# Comparison with the source


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def against(store, raw, code=0):
    said = json.loads(run("verify", store, "--against", raw, "--json", code=code).stdout)
    return [(f["scan_id"], f["kind"], f["found"]) for f in said["faults"]]


def test_voxels_that_equal_the_source_have_no_fault(pristine, ctspine1k_url, ctspine1k_raw):
    assert against(pristine / "noise.zarr", pristine / "raw") == []
    assert against(ctspine1k_url, ctspine1k_raw[0]) == []


def test_mapped_and_merged_masks_are_compared(tmp_path):
    write_totalsegmentator(tmp_path / "raw")
    recipe = Recipe.load("totalsegmentator")
    report = ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "t.zarr"))
    assert not report.failed
    assert against(tmp_path / "t.zarr", tmp_path / "raw") == []


def test_the_fault_names_a_voxel_that_differs_from_the_source(pristine, tmp_path):
    raw = Path(shutil.copytree(pristine / "raw", tmp_path / "raw"))
    path = raw / "b_ct.nii"
    data = bytearray(path.read_bytes())
    # In LPS, (i, j, k), the last voxel but one of the first slice is x 1, y 0, z 0.
    at = 352 + 2 * (SHAPE[2] * SHAPE[1] - 2)
    was = int.from_bytes(data[at : at + 2], "little", signed=True)
    data[at : at + 2] = (7).to_bytes(2, "little")
    path.write_bytes(data)
    found = against(pristine / "noise.zarr", raw, code=1)
    assert [(scan, kind) for scan, kind, _ in found] == [("b", "source"), ("b", "voxels")]
    assert found[1][2] == f"1 voxel of another value, first image (0, 0, 1) (z, y, x): {was}"
    output = " ".join(
        run("verify", pristine / "noise.zarr", "--against", raw, code=1).output.split()
    )
    assert "ingest" in output


def test_a_missing_or_changed_source_is_a_fault(pristine, tmp_path):
    raw = Path(shutil.copytree(pristine / "raw", tmp_path / "raw"))
    (raw / "a_ct.nii").unlink()
    write_nifti(raw / "b_seg.nii", np.zeros((3, 4, 5), np.uint8), np.eye(4), NiftiForm())
    found = against(pristine / "noise.zarr", raw, code=1)
    assert [(scan, kind) for scan, kind, _ in found] == [("a", "source"), ("b", "source")]
    run("verify", pristine / "noise.zarr", "--against", tmp_path / "nowhere", code=2)


# The command line


def test_a_store_without_faults_exits_with_0(pristine):
    assert "Every byte is as it was written" in run("verify", pristine / "noise.zarr").output
    help_text = " ".join(run("verify", "--help").output.split())
    assert "Exit code 0: the store is intact; 1: it is not; 2: wrong usage." in help_text


def test_faults_exit_with_1_and_name_scan_file_and_remedy(copied):
    path = copied / f"scans/b/{SHARDS[0]}"
    path.write_bytes(flip(path.read_bytes(), 77, 1))
    output = "".join(run("verify", copied, code=1).output.split())
    assert "--repair" in output
    assert "chunk" in output
    said = json.loads(run("verify", copied, "--json", code=1).stdout)
    (fault,) = said["faults"]
    assert (fault["scan_id"], fault["path"]) == ("b", f"scans/b/{SHARDS[0]}")
    assert "--repair" in fault["advice"]
    assert run("verify", copied, "--scan", "a")
    run("verify", copied, "--scan", "b", code=1)


def test_a_damaged_root_is_a_fault(copied, pristine):
    (copied / "zarr.json").write_bytes(b"{")
    result = run("verify", copied, "--against", pristine / "raw", "--json", code=1)
    assert [f["path"] for f in json.loads(result.stdout)["faults"]] == ["zarr.json"]


def test_the_output_lists_leftovers_and_what_was_not_checked(copied, serve):
    (copied / "ingest.lock").write_bytes(b"")
    assert "ingest.lock" in run("verify", copied).output
    url, _ = serve(copied.parent)
    assert "cannot be listed" in run("verify", f"{url}/noise.zarr").output


def test_wrong_usage_of_verify_exits_with_2(pristine, tmp_path):
    run("verify", tmp_path / "nowhere", code=2)
    run("verify", pristine / "noise.zarr", "--scan", "c", code=2)
