import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[2] / "benchmarks"
SUPPORT = FOLDER.parent / "tests" / "support"
OURS = {"spinezarr", "spinezarr, window"}
ZARR = {"zarr-python, fsspec", "zarr-python, fsspec, our store"}
WHOLE = {"whole files"}


def phantom_pair(folder):
    # Shards of it are too large to be kept whole.
    phantom = make_phantom(PhantomSpec(shape_zyx=(70, 180, 180), spacing_zyx_mm=(3.0, 2.0, 2.0)))
    pair = folder / "ct.nii.gz", folder / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    return pair


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    paths = filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, cwd=FOLDER, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def measure(tmp_path, *options):
    outputs = ["--json", tmp_path / "out.json", "--png", tmp_path / "out.png", "--folder", "."]
    command = [sys.executable, FOLDER / "remote.py", *phantom_pair(tmp_path), *outputs, *options]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out.json").read_text())


def test_the_short_form_measures_every_part(tmp_path):
    peers = ["--peers", "zarr-python, fsspec", "whole files"]
    result = measure(tmp_path, "--short", *peers)
    rows = {(row["link"], row["reader"]): row for row in result["rows"]}
    assert set(rows) == {
        (link, reader) for link in ("0 ms", "20 ms") for reader in OURS | ZARR | WHOLE
    }
    for row in rows.values():
        assert row["per_s_min"] > 0
        assert row["core_ms_each"] > 0
        assert row["requests_each"] > 0, row
        assert row["bytes_each"] > 0
    files = [row for (_, reader), row in rows.items() if reader in WHOLE]
    assert all(row["requests_each"] == 2 for row in files)
    assert rows["0 ms", "spinezarr"]["ours_over_this"] == 1
    faults = {row["reader"]: row for row in result["faults"]}
    assert set(faults) == {"spinezarr", "zarr-python, fsspec", "whole files"}
    assert all(row["read"] + row["failed"] == row["patches"] for row in faults.values())
    assert faults["spinezarr"]["wrong"] == 0
    ranks = result["two_ranks"]
    assert ranks["samples_by_rank"] == [8, 8]
    assert ranks["repeated"] == ranks["missing"] == ranks["wrong"] == 0
    assert ranks["body_bytes"] > 0
    assert result["cold"]["requests"][0] == len(result["cold"]["latest"]) > 0
    assert result["left_out"] == []
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_several_limits_of_merged_requests_are_measured(tmp_path):
    short = ["--short", "--links", "0 ms", "--scans", "1"]
    rows = measure(tmp_path, *short, "--gaps", "0", "--runs", "1")["limits"]
    requests = {row["reader"]: row["requests_each"] for row in rows}
    assert set(requests) == {"spinezarr", "gap 0", "run 1"}
    assert requests["run 1"] > requests["spinezarr"] > 0


@pytest.mark.parametrize("kind", ["64^3", "axial"])
def test_wrong_failed_and_hung_reads_are_distinguished(tmp_path, kind):
    code = """if True:
        import json, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import numpy as np
        from peers.data import Data
        from peers.ours import store_of
        from peers.remote import Threaded
        from peers.remote_child import PeerServer
        data = Data.make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 2)
        store_of(data, "balanced")
        image, label = (np.array(values) for values in data.voxels())
        draws = []
        def read(draw):
            draws.append(draw)
            box = draw.box.slices
            pair = image[box].copy(), label[box].copy()
            match len(draws):
                case 2: pair[0][-1, -1, -1] ^= 1
                case 3: pair[1][0, 0, 0] ^= 1
                case 4: raise OSError("gone")
                case 5: pair = pair[0].astype("i4"), pair[1]
                case 6: threading.Event().wait()
            return pair
        server = PeerServer(Threaded(read), data, has_indices=False)
        arguments = {"kind": sys.argv[4], "epoch": 0, "timeout_s": 0.5}
        first = server.compare(**arguments, n=12, in_flight=1)
        second = server.compare(**arguments, n=30, in_flight=4)
        n_boxes = len({(draw.scan, draw.box) for draw in draws})
        print(json.dumps([first, second, n_boxes]), flush=True)
        import os
        os._exit(0)
    """
    first, second, n_boxes = run_python(code, tmp_path / "data", *phantom_pair(tmp_path), kind)
    del first["seconds"]
    assert first == {
        "read": 10, "wrong": 3, "failed": 2,
        "problems": ["OSError: gone", "TimeoutError: no answer in 0 s"],
    }  # fmt: skip
    assert (second["read"], second["wrong"], second["failed"]) == (30, 0, 0)
    assert n_boxes > 12


def test_training_through_our_server_is_measured_with_patches_and_with_ranges(tmp_path):
    result = measure(
        tmp_path, "--short", "--serve", "--table", "--faults", "--peers", "tensorstore"
    )
    readers = {row["reader"] for row in result["rows"]}
    transfers = {f"spinezarr, {transfer}" for transfer in ("patches", "ranges")}
    assert readers == OURS | transfers | {"tensorstore", "tensorstore, our store"}
    for row in result["rows"]:
        assert row["per_s_min"] > 0
        # A reader of ranges may have cached these few scans completely.
        assert row["bytes_each"] > 0 or row["reader"] != "spinezarr, patches"
    faults = {row["reader"]: row for row in result["faults"]}
    assert faults["spinezarr"]["read"] == faults["spinezarr"]["patches"] > 0
    assert faults["spinezarr"]["wrong"] == 0


@pytest.mark.long
def test_trainers_that_share_a_link_are_measured(tmp_path):
    options = ["--rank-patches", "24", "--scans", "2", "--kinds", "64^3", "--links", "12 MB/s"]
    (row,) = measure(tmp_path, "--serve", "--trainers", "3", *options)["trainers"]
    assert (row["link"], row["samples_by_rank"]) == ("12 MB/s", [8, 8, 8])
    assert row["repeated"] == row["missing"] == row["wrong"] == 0
    assert 0 < row["share_of_link"] < 1.1


def test_a_stream_continues_after_a_failed_batch(tmp_path):
    code = """if True:
        import json, sys
        from pathlib import Path
        from peers.data import Data
        from peers.ours import store_of
        from peers.remote import OUR_NAME, Place
        from peers.remote_child import OurServer
        from proxy import Conditions, proxy
        data = Data.make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 3)
        store_of(data, "balanced")
        with proxy(folder=data.folder) as link:
            server = OurServer(Place(link.url), data, "exact", {})
            server.warm()
            arguments = {"kind": "64^3", "epoch": 0, "in_flight": 0, "timeout_s": 60}
            intact = server.compare(**arguments, n=25)
            shards = data.folder / OUR_NAME / "scans" / "scan1" / "image" / "c"
            for path in filter(Path.is_file, shards.rglob("*")):
                path.write_bytes(bytes(path.stat().st_size))
            print(json.dumps([intact, server.compare(**arguments, n=25)]))
    """
    intact, damaged = run_python(code, tmp_path / "data", *phantom_pair(tmp_path))
    assert (intact["read"], intact["wrong"], intact["failed"]) == (25, 0, 0)
    assert damaged["read"] + damaged["failed"] == 25
    assert damaged["wrong"] == 0
    assert damaged["failed"] >= 4
    assert "scan1" in damaged["problems"][0]


def test_targets_compare_with_the_fastest_store_of_a_peer():
    code = """if True:
        import json
        from remote_report import CAP, Row, targets_of
        def row(reader, link, rates, ratio, bytes_per_s=0.0):
            return Row(
                "128^3", link, reader, "", 8, rates, 1.0, 6.0, 1e6, bytes_per_s, ratio
            ).to_json()
        rows = [
            row("spinezarr", "20 ms", [90.0, 100.0, 300.0], 1.0),
            row("zarr-python, obstore", "20 ms", [5.0], 20.0),
            row("zarr-python, fsspec", "20 ms", [4.0], 25.0),
            row("zarr-python, fsspec, our store", "20 ms", [50.0], 2.0),
            row("tensorstore", "100 ms", [10.0], 10.0),
            row("spinezarr", CAP, [80.0], 1.0, 95e6),
        ]
        faults = [
            {"reader": "spinezarr", "rate": 0.03, "patches": 10, "wrong": 0, "failed": 0},
            {"reader": "spinezarr", "rate": 0.1, "patches": 10, "wrong": 1, "failed": 2},
            {"reader": "tensorstore", "rate": 0.03, "patches": 10, "wrong": 5, "failed": 5},
        ]
        ranks = {"repeated": 1, "missing": 2, "samples": 8, "share_of_link": 0.5}
        cold = {"scans": 5, "requests": [7, 9], "open_s": [0.5], "import_s": [1.0]}
        result = {"rows": rows, "faults": faults, "two_ranks": ranks, "cold": cold}
        print(json.dumps([rows[0]["per_s_median"], targets_of(result)]))
    """
    median, targets = run_python(code)
    assert median == 100
    assert {line["row"]: (line["reached"], line["met"]) for line in targets} == {
        "128^3, requests a patch and array, 20 ms": (3.0, False),
        "128^3 to zarr-python, 20 ms": (20.0, True),
        "128^3, share of a link of 100 MB/s": (0.95, True),
        "wrong through faults": (1, False),
        "failed through faults, up to 3%": (0, True),
        "two ranks: repeated or missing samples": (3, False),
        "two ranks: share of the link": (0.5, False),
        "first batch of 5 scans, cold: requests": (9, False),
        "first batch of 5 scans, cold: s": (0.5, True),
    }
