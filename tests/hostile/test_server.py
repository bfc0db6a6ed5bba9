"""The short form of 'make test-hostile' for servers, and tests that faults are detected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("server_fuzz.py")


def report_of(tmp_path, *words):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, FUZZ, *words, "--json", report],
        check=False,
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stderr
    return json.loads(report.read_text()), done.returncode


@pytest.mark.parametrize(
    ("first", "count"), [(0, 150), pytest.param(150, 600, marks=pytest.mark.long)]
)
def test_the_server_withstands_all_attacks(ctspine1k_url, tmp_path, first, count):
    words = ["--first", str(first), "--count", str(count), "--store", ctspine1k_url]
    found, code = report_of(tmp_path, *words)
    assert not found["failed"], found["failed"]
    assert code == 0
    assert found["requests"] == count
    assert found["answers"]["400"] > count / 10
    assert found["answers"]["404"] > count / 10
    assert found["answers"]["200"] > count / 10
    assert found["silent"] < count / 10


@pytest.fixture(scope="module")
def fuzz():
    """Import the program, whose folder is not on Python's path."""
    sys.path.insert(0, str(FUZZ.parent))
    import server_fuzz  # noqa: PLC0415

    return server_fuzz


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n"
FILE = HEAD + b"accept-ranges: bytes\r\n"
WRONG = {
    b"": "FAILED no answer",
    b"canary": "FAILED no answer of HTTP",
    b"HTTP/1.1 200 OK\r\n": "FAILED no answer of HTTP",
    b"HTTP/1.1 2000 OK\r\n\r\n": "FAILED no answer of HTTP",
    HEAD + b"\r\nabc": "FAILED no answer of HTTP",
    HEAD + b"X\r\n\r\nabcd": "FAILED no answer of HTTP",
    HEAD + b"\r\nabcd" + HEAD + b"\r\nabcd": "FAILED no answer of HTTP",
    HEAD.replace(b"200", b"500") + b"\r\nabcd": "FAILED status 500",
    HEAD.replace(b"200", b"403") + b"\r\nabcd": "FAILED status 403",
    HEAD.replace(b"4", b"13") + b"\r\ncanary-5f0d21": "FAILED a file that is not served",
    HEAD + b"x: canary-5f0d21\r\n\r\nabcd": "FAILED a file that is not served",
    HEAD + b"location: /where/it/lies/x\r\n\r\nabcd": "FAILED names a folder",
    HEAD.replace(b"4", b"9") + b"\r\nTraceback": "FAILED shows a traceback",
    HEAD + b"x-injected: 1\r\n\r\nabcd": "FAILED a header of the client's",
    HEAD + b"access-control-allow-origin: http://evil\r\n\r\nabcd": "FAILED lets a page",
    FILE + b'etag: "other"\r\n\r\nabcd': "FAILED a version that is not there",
    FILE + b'etag: "a"\r\n\r\nabcx': "FAILED other bytes",
    FILE.replace(b"200", b"206")
    + b'etag: "a"\r\ncontent-range: bytes 1-4/5\r\n\r\nabcd': "FAILED a range that is not there",
    FILE.replace(b"200", b"206")
    + b'etag: "a"\r\ncontent-range: bytes 0-3/4\r\n\r\nbcde': "FAILED other bytes",
    FILE + b'etag: "a"\r\n\r\nabcd': "200",
    HEAD + b'etag: "of a picture"\r\n\r\nabcd': "200",
}


@pytest.mark.parametrize("data", WRONG, ids=map(repr, range(len(WRONG))))
def test_a_wrong_answer_of_a_server_is_detected(fuzz, data):
    known = fuzz.Known(fuzz.Target("own", (), {}, "/where/it/lies"), {'"a"': b"abcd"})
    made = fuzz.Attack(0, "path", "", ())
    assert fuzz.judged(made, known, data, is_over=True).outcome.startswith(WRONG[data])


def test_attacks_are_reproduced_from_their_numbers(fuzz):
    target = fuzz.Target("own", ("zarr.json",), {"a": "0" * 32}, "/x")
    assert fuzz.attack(7, target) == fuzz.attack(7, target)
    made = [fuzz.attack(number, target) for number in range(400)]
    assert len({sent for one in made for sent in one.sends}) > 350
