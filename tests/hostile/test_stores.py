"""The short form of ``make test-hostile`` for stores, and tests that failures are detected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("stores_fuzz.py")


def run(script, report, *arguments):
    command = [sys.executable, script, "--processes", "1", "--json", report, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert report.exists(), done.stderr
    return done.returncode, json.loads(report.read_text())


@pytest.mark.parametrize(
    ("first", "pairs"), [(0, 10), pytest.param(0, 330, marks=pytest.mark.long)]
)
def test_forged_stores_are_read_or_refused_with_our_own_errors(tmp_path, first, pairs):
    which = ["--short", "--first", str(first), "--count", str(pairs)]
    code, found = run(FUZZ, tmp_path / "report.json", *which)
    assert not found["failed"], found["failed"]
    assert code == 0
    assert found["pairs"] >= pairs
    assert found["outcomes"]["done"] > pairs / 8
    assert found["outcomes"]["refused: CorruptStoreError"] > pairs / 20


FAILURES = {
    "crash": ("os.kill(os.getpid(), 11)", "ended the process with -11"),
    "wrong error": ("{}['x']", "KeyError"),
    "endless": ("exec('while True: pass')", "worked more than"),
    "waiting": ("time.sleep(1000)", "did nothing for"),
    "large": ("len(b'x' * (600 << 20))", "large at"),
    "outside": ("Path('../canary.txt').write_text('x')", "changed outside"),
    "beside": ("Path('../new').touch()", "changed outside"),
    "looking": ("Path('../canary.txt').read_bytes()", "read outside through no link"),
    "store": ("Path(case.url, 'zarr.json').write_bytes(b'')", "reading changed the store"),
    "sources": ("(case.base.raw / 'new').touch()", "changed sources"),
    "secret": ("print('canary-8c1f0e')", "gave away a secret"),
    "terminal": ("print(chr(27) + '[31m')", "unprintable text"),
    "direction": ("print('a' + chr(0x202e) + 'b')", "unprintable text"),
    "traceback": ("print('Traceback (most recent call last)')", "printed a traceback"),
    "code": ("end(3)", "exit code 3"),
    "voxels": ("os.urandom(4).hex()", "other voxels by"),
    "names": ("(case.out.mkdir(), (case.out / 'a\\x1b').touch())", "odd names of files"),
}


@pytest.mark.long
def test_each_kind_of_failure_is_detected(tmp_path):
    """The verbs are replaced by forbidden actions, in a process that does nothing else."""
    verbs = {name: f"lambda case: str({code})" for name, (code, _) in FAILURES.items()}
    script = tmp_path / "broken.py"
    script.write_text(
        f"import os, sys, time; sys.path.insert(0, {str(FUZZ.parent)!r})\n"
        "from pathlib import Path\n"
        "import harness, stores_fuzz\n"
        "from stores_verbs import WrongEnd\n"
        "harness.KILL_CPU_S, harness.IDLE_S = 6.0, 4.0\n"
        "def end(code): raise WrongEnd(f'exit code {code}')\n"
        f"verbs = {{{', '.join(f'{name!r}: {text}' for name, text in verbs.items())}}}\n"
        "stores_fuzz.VERBS = stores_fuzz.READING = verbs\n"
        "stores_fuzz.modules_for = lambda *_: []\n"
        "stores_fuzz.pairs_of = lambda n: [stores_fuzz.Pair(0, verb) for verb in verbs]\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(stores_fuzz.main())\n"
    )
    code, found = run(script, tmp_path / "report.json", "--count", "1")
    assert code == 1
    by_verb = {result["pair"]["verb"]: result for result in found["failed"]}
    for name, (_, expected) in FAILURES.items():
        assert expected in by_verb[name]["kind"] + by_verb[name]["detail"], by_verb[name]
