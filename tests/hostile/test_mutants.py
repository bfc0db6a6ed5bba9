"""The short form of ``make test-hostile``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_mutants_are_read_completely_or_refused_with_our_own_errors(tmp_path):
    report = tmp_path / "report.json"
    command = [Path(__file__).with_name("fuzz.py"), "--count", "400", "--processes", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--json", report], check=False, capture_output=True, text=True
    )
    found = json.loads(report.read_text()) if report.exists() else {"failed": done.stderr}
    assert not found["failed"], found["failed"]
    assert done.returncode == 0
    assert found["mutants"] == 400
    assert all(outcomes["refused: FormatError"] > 0 for outcomes in found["outcomes"].values())
    assert all(outcomes["read"] > 0 for outcomes in found["outcomes"].values())


def test_a_failing_mutant_is_reported(tmp_path):
    """The reader is broken on purpose, in a process that reads nothing else."""
    fuzz = Path(__file__).with_name("fuzz.py")
    script = tmp_path / "broken.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(fuzz.parent)!r})\n"
        "import fuzz\n"
        "def read_volume(path):\n"
        "    if 'sound' in path: return 'read'\n"
        "    import os; os._exit(7) if '/11/' in path else 1 / 0\n"
        "fuzz.read_volume = read_volume\n"
        "fuzz.INGEST_EVERY = 10**9\n"
        "if __name__ == '__main__':\n"
        "    found = fuzz.run(4, 0, 1, [101, 11, 102])\n"
        "    print([failure['outcome'] for failure in found['failed']])\n"
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert "FAILED ZeroDivisionError" in done.stdout
    assert "FAILED: ended the process with 7" in done.stdout
