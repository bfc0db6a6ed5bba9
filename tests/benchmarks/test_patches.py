import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[2] / "benchmarks"
PEERS = ["spinezarr", ".npy (upper bound)", "zarr-python"]


def phantom_pair(folder):
    phantom = make_phantom(PhantomSpec(shape_zyx=(60, 70, 80), spacing_zyx_mm=(3.0, 4.0, 4.0)))
    pair = folder / "ct.nii.gz", folder / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    return pair


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def file_system(path):
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(at), kind) for at, kind in mounts if path.resolve().is_relative_to(at)]
    return max(holding)[1]


def test_the_benchmark_measures_every_reader_on_every_kind(tmp_path):
    short = ["--quick", "--rounds", "1", "--seconds", "0.02", "--scans", "2", "--cold", "2"]
    outputs = ["--json", tmp_path / "out.json", "--png", tmp_path / "out.png", "--folder", tmp_path]
    options = [*short, "--many", "3", *outputs, "--peers", *PEERS]
    subprocess.run(
        [sys.executable, FOLDER / "patches.py", *phantom_pair(tmp_path), *options],
        check=True,
        capture_output=True,
    )
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["left_out"] == []
    assert {(row["kind"], row["reader"]) for row in result["rows"]} == {
        (kind, peer) for kind in ("128^3", "96^3", "axial", "coronal", "sagittal") for peer in PEERS
    }
    assert all(row["per_s_min"] > 0 for row in result["rows"])
    ours = [row for row in result["rows"] if row["reader"] == "spinezarr"]
    assert all(row["spinezarr_over_this"] == 1 for row in ours)
    reached = {row["row"]: row["reached"] for row in result["targets"]}
    assert reached["exact 128³, to the best peer"] > 0
    assert reached["exact slices, worst plane"] > 0
    assert reached["to tensorstore on our store, worst kind"] is None
    assert {(row["kind"], row["peer"]) for row in result["cold"]} == {
        ("128^3", "spinezarr"), ("axial", "spinezarr"),
    }  # fmt: skip
    assert all(row["cached_bytes"] > 0 for row in result["cold"])
    if file_system(tmp_path) not in {"tmpfs", "ramfs"}:
        assert all(row["left_bytes"] == 0 for row in result["cold"])
    assert len(result["first_batch"]) == 1
    assert result["versions"]["zarr"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_reader_that_returns_other_voxels_is_refused_before_it_is_timed(tmp_path):
    code = """if True:
        import json, sys
        from pathlib import Path
        import numpy as np
        from peers.data import Data
        from peers.reader import BoxReader
        data = Data.make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 2)
        image, label = (np.array(values) for values in data.voxels())
        def result_of(change):
            def read(draws):
                boxes = [draw.box.slices for draw in draws]
                return [change(image[box].copy(), label[box].copy()) for box in boxes]
            try:
                BoxReader(data, read, []).check("96^3")
            except AssertionError as problem:
                return str(problem)
            return None
        def off_by_one(image, label):
            image[-1, -1, -1] += 1
            return image, label
        shared = image.copy(), label.copy()
        print(json.dumps([
            result_of(lambda image, label: (image, label)),
            result_of(off_by_one),
            result_of(lambda image, label: (image, label.astype("i4"))),
            result_of(lambda image, label: (np.asfortranarray(image), label)),
            result_of(lambda *_: shared),
        ]))
    """
    correct, voxels, dtype, order, shared = run_python(
        code, tmp_path / "data", *phantom_pair(tmp_path)
    )
    assert correct is None
    assert "image" in voxels
    assert "other voxels" in voxels
    assert "label" in dtype
    assert "int32" in dtype
    assert "not contiguous" in order
    assert "share an array" in shared


@pytest.mark.skipif(find_spec("radiobject") is None, reason="RadiObject is not installed")
def test_radiobject_and_tiledb_return_the_voxels_in_every_layout(tmp_path):
    code = """if True:
        import json, sys
        from pathlib import Path
        from peers.data import Data, files_below
        from peers.tiledb_arrays import CONFIGS
        data = Data.make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 2)
        stored = {}
        for config in CONFIGS:
            reader = config.open(data)
            for kind in config.kinds:
                reader.check(kind)
            files = files_below(reader.files)
            stored[config.name] = sum(path.stat().st_size for path in files)
        print(json.dumps(stored))
    """
    stored = run_python(code, tmp_path / "data", *phantom_pair(tmp_path))
    assert stored["RadiObject, 64³ LZ4, 1 threads"] == stored["TileDB, 64³ LZ4, 1 threads"]
    assert {name.split(",")[0] for name in stored} == {"RadiObject", "TileDB"}
    assert all(size > 0 for size in stored.values())


@pytest.mark.skipif(find_spec("radiobject") is not None, reason="RadiObject is installed")
def test_radiobject_is_left_out_with_a_line_if_it_is_not_installed():
    code = """if True:
        import json
        from patches import choose_configs
        left_out = []
        assert choose_configs(["RadiObject"], False, left_out) == []
        print(json.dumps(left_out))
    """
    lines = run_python(code)
    assert "RadiObject, 64³ LZ4, 1 threads: radiobject is not installed" in lines


@pytest.fixture
def on_disk():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_pages_of_an_evicted_file_are_counted_when_read_again(on_disk):
    file = on_disk / "file"
    file.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    if file_system(file) in {"tmpfs", "ramfs"}:
        pytest.skip("these files are only in memory")
    code = """if True:
        import json, mmap, sys
        from pathlib import Path
        from peers.cold import cached_bytes, evict
        path = Path(sys.argv[1])
        with path.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
            mapped.read()
            full = cached_bytes([path])
            evict([path])
            empty = cached_bytes([path])
        with path.open("rb", buffering=0) as opened:
            opened.read(10)
        print(json.dumps([full, empty, cached_bytes([path])]))
    """
    full, empty, after = run_python(code, file)
    assert full == 1 << 20
    assert empty == 0
    assert 0 < after <= 1 << 20


def test_ratios_are_computed_within_each_round():
    code = """if True:
        import json
        from dataclasses import asdict
        from targets import TARGETS, Figures, PeerRates
        rates = [
            PeerRates("128^3", "spinezarr", [200.0, 20.0, 300.0]),
            PeerRates("128^3", "tensorstore", [100.0, 10.0, 50.0]),
            PeerRates("128^3", "MONAI, 4 a volume", [900.0, 900.0, 900.0]),
            PeerRates("128^3", ".npy (upper bound)", [1000.0, 1000.0, 1000.0]),
            PeerRates("128^3", "spinezarr, window", [500.0, 600.0, 600.0]),
        ]
        memory = [{"kind": "128^3", "peer": "spinezarr", "other_bytes": 2e8}]
        figures = Figures(rates, memory, [{"import_s": 0.5, "open_s": 0.25}])
        print(json.dumps([asdict(target.evaluate(figures)) for target in TARGETS]))
    """
    reached = {row["row"]: (row["reached"], row["compared_with"]) for row in run_python(code)}
    assert reached["exact 128³, to the best peer"] == (2.0, "tensorstore")
    assert reached["exact 96³, to the best peer"] == (None, "")
    assert reached["window 128³, to the best peer"] == (600 / 900, "MONAI, 4 a volume")
    assert reached["window 128³, to the upper bound"] == (0.6, ".npy (upper bound)")
    assert reached["MB without batches and cache"] == (200.0, "spinezarr, 128^3")
    assert reached["s to the first batch of a large store"][0] == 0.25
