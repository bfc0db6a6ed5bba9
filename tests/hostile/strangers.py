r"""Give lying catalogs, recipes, cards and small files to commands in their own processes.

Run ``python tests/hostile/strangers.py --count 4000 --json report.json``. Each case replaces one
field, key or file of a small dataset by a lie: a wrong type, a bomb, control characters, an endless
expression, a variable, a URL, a device. The command must end by itself, within limits of time and
memory, with one of its exit codes and a readable text. It must run nothing, send nothing and touch
nothing outside its folder.
"""

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
from harness import peak_bytes
from typer.testing import CliRunner

from spinezarr.cli.main import app

CPU_S = 20
"""Generous time limit, because machines are shared and an ingest compresses."""
WALL_S = 120
MOST_BYTES = 512 << 20
"""Maximum growth of resident memory."""
ADDRESS_BYTES = 4 << 30
SECRET = "of-the-user-alone"  # noqa: S105  looked for in what is printed
NAME = "a" * 60 + "_" * 60
"""A name on which careless expressions backtrack without end."""


def workbook(rows: list[list[str]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


CATALOG = {
    "datasets": {
        "ct": {
            "recipe": "mine.yaml",
            "raw": "raw",
            "store": "mine.zarr",
            "license": "CC0-1.0",
            "storage_options": {},
            "raw_storage_options": {},
        }
    }
}
RECIPE = {
    "name": "mine",
    "title": "Mine",
    "license": "CC0-1.0",
    "citation": "Somebody",
    "homepage": "https://example.org",
    "card": "mine.card.yaml",
    "layouts": {
        "pairs": {
            "description": "images and masks",
            "constants": {"collection": "here"},
            "image": ["{base:(?:.*/)?}{scan}_ct.nii.gz"],
            "label": ["{base}{scan}_seg.nii.gz", "**/{scan}_mask.nii.gz"],
            "mask": "optional",
            "values": {"20": "L1"},
            "label_state": "all-visible",
            "centroids": {"files": "{scan}_ctd.json", "convention": "verse"},
            "sidecar": "{scan}_ct.json",
            "sidecar_keys": ["KVP", "Manu*"],
            "image_list": {"files": "list.txt", "entry": "{scan}"},
        },
        "series": {
            "description": "DICOM",
            "constants": {"collection": "there"},
            "image": ["{scan}/{number}/"],
            "series": {
                "number": [1],
                "kernel": ["B6*"],
                "slice_thickness_mm": [0, 5],
                "min_slices": 3,
            },
        },
    },
    "lookups": {
        "part": {"inputs": ["scan"], "values": {"{a:[a-z]}{rest:.*}": "{a|lower}", "*": "x"}}
    },
    "scan_id": "{scan}",
    "patient_id": "{part}",
    "source": "{collection}",
    "duplicate_key": "{scan}",
    "splits": {
        "files": "splits.txt",
        "shipped": "mine.splits.txt",
        "sections": {"train": "train"},
        "entry": "{scan}",
    },
    "split": "{part}",
    "labels": {"scheme": "canonical", "state": "unknown", "structures": {"100": "rib"}},
    "orphaned_masks": "expected",
    "tables": {
        "meta": {"files": "meta.csv", "key": "id", "split": "split", "non_identifying": ["age"]},
        "book": {"files": "book.xlsx", "matches": "{scan}"},
        "found": {"files": "found.txt", "scan_regex": r"[a-z]\d*", "constants": {"fold": "1"}},
        "own": {"shipped": "mine.csv", "header": ["id", "note"], "delimiter": ";"},
    },
    "ignore": [{"path": "*.txt", "reason": "lists"}],
}
_SPREAD = {"min": [0.5, 0.5, 1], "median": [0.5, 0.5, 1], "max": [0.5, 0.5, 1]}
CARD = {
    "name": "mine",
    "title": "Mine",
    "source": "https://example.org",
    "scans": 1,
    "patients": 1,
    "slices": 40,
    "splits": {"train": 1},
    "regions": {"lumbar": 1},
    "decimals": 2,
    "spacing_ijk_mm": _SPREAD,
    "shape_ijk": _SPREAD,
    "volume_column_holds": {"min": "max"},
    "vertebrae": {"L1": {"scans": 1, "detection_percent": 100.0, "volume_cm3": {"min": 10.0}}},
    "caveats": ["none"],
}
SMALL = {
    "raw/meta.csv": b"id,split,age\na,train,40\n",
    "raw/list.txt": b"a\n",
    "raw/splits.txt": b"train:\na\n",
    "raw/found.txt": b"a b c\n",
    "raw/a_ct.json": b'{"KVP": 120, "Manufacturer": "X"}',
    "raw/a_ctd.json": b'[{"direction": ["P", "I", "R"]}, {"label": 20, "X": 1, "Y": 2, "Z": 3}]',
    "raw/book.xlsx": workbook([["name", "note"], ["a", "x"]]),
    "mine.splits.txt": b"train:\na\n",
    "mine.csv": b"a;b\n",
}
_BOMB = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
EVIL = [
    "(?:a|a)*_*b",
    "(?:a|aa)+b",
    "(?:a{60000}){60000}",
    "(?:a+_*)+b",
    "[^/]*_[^/]*_[^/]*_[^/]*_b",
]
VALUES: list[object] = [
    None, True, -1, 0, 10**30, 10**400, 1.5, "", [], {}, [[]], {"a": {}}, "x" * 3_900, "x" * 5_000,
    "x" * 300_000, "\x1b[2Jboo", "a\u202eb", "\x9b31m", "a\0b", "\ud800", "a\nb", "~nobody-here/x",
    "${HOME}", "${AWS_SECRET_ACCESS_KEY}", "${NOT_SET}", "$HOME", "https://localhost:9/${HOME}",
    "s3://bucket/${AWS_SECRET_ACCESS_KEY}", "s3://bucket/x.zarr", "hf://datasets/a/b",
    "memory://x", "file:///etc", "http://user:pass" + "@localhost:9/x", "simplecache::s3://b/x",
    "../../../etc/passwd", "/etc/passwd", "/dev/zero", "fifo", "device", "gone", "folder", ".", "/",
    "a" * 256, "a/" * 1_500, "{", "}", "{a}", "{scan}" * 300, "{a}" * 600, "{scan|join:" + "/" * 90,
    "{scan|lower|lower|lower|upper}", "*" * 200, "**/" * 60 + "x", "**/*" * 20, "2020-01-01",
    ["x"] * 20_000, {str(n): "x" for n in range(4_000)}, ["{scan}_ct.nii.gz"] * 3_000,
    *(f"{{scan:{text}}}" for text in EVIL), *EVIL, {"anon": True}, {"profile": "lab"},
    {"endpoint_url": "https://localhost:9"}, [{"path": "*" * 90, "reason": "x"}] * 900,
    {f"{{x:(?:a|aa)+{n}}}": "{x}" for n in range(300)}, {"{x}": "{x}" * 600},
]  # fmt: skip
RAW = [
    _BOMB + "]",
    "[" * 100_000,
    "[" * 300 + "]" * 300,
    "!!python/object/apply:os.system ['touch canary-run']",
    "!!python/name:os.system ''",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!timestamp x",
    "&x [*x]",
    "{<<: &m {a: b}, <<: *m}",
    "*nobody",
    ".nan",
    "-.inf",
    "1.0e+999",
    "0x" + "f" * 3_000,
    "1:" * 1_500 + "1",
    "9" * 5_000,
    "2020-13-45",
    "'" + "a" * 4_000,
    "? [a]\n",
    "\t\x07",
]
BYTES = [
    b"",
    b"\0" * 5_000,
    b"\xff\xfe" + "a,b\n".encode("utf-16-le"),
    b"\xef\xbb\xbfid,split\na,train\n",
    b"x" * (17 << 20),
    b"id,split,age\n" + b"a,train,1\n" * 210_000,
    b"id," + b"c," * 20_000 + b"\n",
    b'id,"open\n' * 50,
    b"id,split\na,tr\x1b[2Jain\n",
    b"train:\n" + b"a\n" * 3,
    b"[" * 900_000,
    b'{"KVP": ' + b"9" * 900_000 + b"}",
    b'{"KVP": 1e999, "Manu": NaN, "Manufacturer": "\\u0000\\ud800\\u001b"}',
    b'{"KVP": "' + b"x" * 900_000 + b'"}',
    b"{" + b",".join(b'"Manu%d": 1' % n for n in range(40_000)) + b"}",
    b'[{"label": 20, "X": 1e999, "Y": NaN, "Z": -Infinity}]',
    b'[{"label": ' + b"9" * 4_200 + b', "X": 1, "Y": 2, "Z": 3}]',
    b"a" * 900_000,
    b"PK\3\4" + b"\xff" * 500,
]
KINDS = ["fifo", "device", "folder", "gone", "socket", "loop"]
COMMANDS = [
    ["info", "ct"],
    ["info", "ct", "--catalog", "catalog.yaml", "--json"],
    ["ingest", "ct", "--dry-run"],
    ["ingest", "ct", "--dry-run", "--json"],
    ["ingest", "mine.yaml", "--raw", "raw", "--dry-run"],
    ["ingest", "mine.yaml", "--raw", "raw", "--out", "new.zarr"],
    ["ingest", "mine.yaml", "--raw", "raw", "--out", "new.zarr", "--pseudonymize"],
    ["stats", "mine.zarr", "--against", "mine.card.yaml"],
    ["stats", "ct", "--against", "mine.card.yaml", "--format", "markdown"],
    ["verify", "ct"],
    ["audit", "ct", "--no-write"],
]
OF_FILE = {
    "catalog.yaml": (0, 1, 2, 3, 8, 9, 10),
    "mine.yaml": (2, 4, 5, 6),
    "mine.card.yaml": (7, 8),
}
"""Commands that read each kind of file; other files are read with the recipe."""


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: object, path: tuple[str | int, ...], lie: object, *, key: bool) -> object:
    """Return a copy in which a lie replaces the value at ``path``, or its key."""
    if not path:
        return lie
    if len(path) == 1 and key and isinstance(value, dict):
        return {lie if name == path[0] else name: inner for name, inner in value.items()}
    if isinstance(value, dict):
        return {
            name: replaced(inner, path[1:], lie, key=key) if name == path[0] else inner
            for name, inner in value.items()
        }
    return [
        replaced(inner, path[1:], lie, key=key) if number == path[0] else inner
        for number, inner in enumerate(value)
    ]


def yaml_of(value: object) -> bytes:
    """Write JSON, which is valid YAML; text between marks is inserted unchanged."""
    return re.sub(
        r'"@@(.*?)@@"', lambda found: json.loads(f'"{found[1]}"'), json.dumps(value)
    ).encode()


def case(number: int) -> tuple[str, dict[str, bytes | str], list[str]]:
    """Return a case: its description, files (bytes, or a kind of special file) and command."""
    draw = random.Random(number)  # noqa: S311  no secret
    yaml_files = {"catalog.yaml": CATALOG, "mine.yaml": RECIPE, "mine.card.yaml": CARD}
    files: dict[str, bytes | str] = {name: yaml_of(data) for name, data in yaml_files.items()}
    files |= SMALL
    name = draw.choice(
        ["catalog.yaml", "mine.yaml", "mine.yaml", "mine.yaml", "mine.card.yaml", *SMALL]
    )
    command = COMMANDS[draw.choice(OF_FILE.get(name, (2, 4, 5, 6)))]
    if draw.random() < 0.1 or (name in SMALL and draw.random() < 0.3):
        files[name] = draw.choice(KINDS)
        return f"{name} is a {files[name]}", files, command
    if name in SMALL:
        files[name] = draw.choice(BYTES)
        return f"{name} holds {files[name][:40]!r}", files, command
    path = draw.choice(list(places(yaml_files[name])))
    raw = draw.random() < 0.3
    lie = f"@@{draw.choice(RAW)}@@" if raw else draw.choice(VALUES)
    key = isinstance(lie, str) and draw.random() < 0.15
    files[name] = yaml_of(replaced(yaml_files[name], path, lie, key=key))
    where = ".".join(map(str, path))
    return f"{name}, {'key' if key else 'value'} {where}: {ascii(lie)[:60]}", files, command


def make_special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to({"device": "/dev/zero", "gone": "nowhere", "loop": path.name}[kind])


def write_dataset(folder: Path) -> None:
    """Write the sound images, and a store of them."""
    shape = (12, 16, 16)
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) % 900
    label = np.zeros(shape, np.uint8)
    label[4:8, 4:8, 4:8] = 20
    (folder / "raw").mkdir()
    for name, values in (("a_ct.nii.gz", image), ("a_seg.nii.gz", label)):
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), folder / "raw" / name)
    (folder / "raw" / f"{NAME}_ct.nii.gz").write_bytes(b"")
    words = ["ingest", "pairs", "--raw", f"{folder}/raw", "--image", "{scan:a}_ct.nii.gz"]
    words += ["--label", "{scan}_seg.nii.gz", "--out", f"{folder}/mine.zarr"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def outcome_of(command: list[str]) -> str:
    """Run a command in this process, and judge how it ends."""
    result = CliRunner().invoke(app, command)
    text = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"FAILED {type(result.exception).__name__}: {result.exception}"[:400]
    if result.exit_code not in {0, 1, 2}:
        return f"FAILED exit code {result.exit_code}"
    for wrong in ("Traceback", "Please report this", SECRET):
        if wrong in text:
            return f"FAILED says {wrong!r}: {text}"[:2000]
    control = re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    if control:
        return f"FAILED prints {control[0]!r}: {text!r}"[:400]
    if result.exit_code == 2 and "Error" not in text:
        return f"FAILED without an error: {text}"[:400]
    return f"exit {result.exit_code}"


def run_case(number: int, sound: Path) -> dict[str, object]:
    """Write a case into a folder, and run its command in a process with limits."""
    name, files, command = case(number)
    outside = Path(tempfile.mkdtemp(prefix="strangers-"))
    folder = outside / "in"
    shutil.copytree(sound, folder)
    for path, content in {
        **files,
        "fifo": "fifo",
        "device": "device",
        "gone": "gone",
        "folder": "folder",
    }.items():
        if isinstance(content, str):
            make_special(folder / path, content)
        else:
            (folder / path).write_bytes(content)
    (outside / "canary").write_text("sings")
    reading, writing = os.pipe()
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            os.chdir(folder)
            os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
            signal.alarm(WALL_S)
            own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (own + ADDRESS_BYTES, resource.RLIM_INFINITY))
            used = sum(os.times()[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_S, resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = peak_bytes()
            outcome = outcome_of(command)
            os.write(writing, json.dumps([outcome, peak_bytes() - before]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    outcome, extra = json.loads(said) if said else [f"FAILED: ended with status {status}", 0]
    if extra > MOST_BYTES:
        outcome = f"FAILED took {extra >> 20} MB"
    if sorted(path.name for path in outside.iterdir()) != ["canary", "in"]:
        outcome = "FAILED wrote outside its folder"
    if list(folder.rglob("canary-run")):
        outcome = "FAILED ran what a file says"
    shutil.rmtree(outside)
    seconds = round(time.monotonic() - began, 2)
    return {
        "number": number, "case": name, "command": " ".join(command), "outcome": outcome,
        "seconds": seconds, "megabytes": extra >> 20,
    }  # fmt: skip


def run(numbers: list[int]) -> dict[str, object]:
    """Run cases, and return a summary."""
    sound = Path(tempfile.mkdtemp(prefix="sound-"))
    try:
        write_dataset(sound)
        results = []
        for number in numbers:
            results.append(run_case(number, sound))
            if str(results[-1]["outcome"]).startswith("FAILED"):
                sys.stderr.write(f"{results[-1]}\n")
    finally:
        shutil.rmtree(sound)
    return {
        "cases": len(results),
        "outcomes": Counter(str(r["outcome"])[:6] for r in results),
        "slowest": sorted(results, key=lambda r: -r["seconds"])[:5],
        "largest": sorted(results, key=lambda r: -r["megabytes"])[:5],
        "failed": [r for r in results if str(r["outcome"]).startswith("FAILED")],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", default=[], help="numbers of cases")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = args.only or list(range(args.first, args.first + args.count))
    report = json.dumps(run(numbers), indent=1)
    sys.stdout.write(f"{report}\n")
    if args.json:
        args.json.write_text(report, encoding="utf-8")
    return 1 if json.loads(report)["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
