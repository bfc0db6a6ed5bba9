import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"
OURS = "spinezarr serve"


def run_benchmark(tmp_path):
    phantom = make_phantom(PhantomSpec(shape_zyx=(40, 160, 160), spacing_zyx_mm=(4.0, 2.0, 2.0)))
    pair = tmp_path / "ct.nii.gz", tmp_path / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    options = ["--sizes", "64 KiB", "--rounds", "2", "--seconds", "0.2", "--clients", "load.c"]
    outputs = ["--folder", ".", "--json", tmp_path / "out.json"]
    command = [sys.executable, SCRIPT, *pair, *options, *outputs]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out.json").read_text())


def test_every_installed_server_is_measured_in_turn(tmp_path):
    result = run_benchmark(tmp_path)
    rows = {row["server"]: row for row in result["rows"]}
    missing = {line.partition(":")[0] for line in result["left_out"]}
    assert OURS in rows
    assert ("zarr-http-server" in rows) is (find_spec("zarr_http_server") is not None)
    if find_spec("starlette"):
        assert {"FileResponse, granian", "FileResponse, uvicorn", "StaticFiles, granian"} <= (
            rows.keys()
        )
    assert ("nginx" in rows) is ("nginx" not in missing)
    for row in rows.values():
        rate = row["requests_per_s_median"]
        assert row["gb_per_s_median"] == pytest.approx(rate * 65536 / 1e9, rel=0.2)
        assert row["p50_us_median"] <= row["p99_us_median"]
    assert rows[OURS]["ours_over_this_median"] == rows[OURS]["by_core_time_median"] == 1
    assert {target["compared_with"] for target in result["targets"]} <= rows.keys()


@pytest.mark.parametrize(("status", "length"), [("200 OK", 16), ("206 Partial Content", 15)])
def test_the_client_of_the_benchmark_refuses_wrong_answers(tmp_path, status, length):
    program = tmp_path / "load"
    source = SCRIPT.with_name("load.c")
    subprocess.run(["cc", "-O2", source, "-o", program], check=True)  # noqa: S607
    code = f"""if True:
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            connection.recv(65536)
            head = "HTTP/1.1 {status}\\r\\nContent-Length: {length}\\r\\n\\r\\n"
            connection.sendall(head.encode() + bytes({length}))
    """
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with server:
        port = server.stdout.readline().strip()
        arguments = [port, "1", "0.2", "/x", "1000", "16", "1"]
        done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
        server.kill()
    assert done.returncode == 1
    assert "load: an answer is not" in done.stderr
