"""The short form of 'make test-hostile' for catalogs, recipes, cards and tables."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

STRANGERS = Path(__file__).with_name("strangers.py")


def report_of(tmp_path, *words):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, STRANGERS, *words, "--json", report],
        check=False,
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stderr
    return json.loads(report.read_text()), done.returncode


@pytest.mark.parametrize(
    ("first", "count"),
    [
        (0, 10),
        pytest.param(10, 190, marks=pytest.mark.long),
        pytest.param(400, 200, marks=pytest.mark.long),
    ],
)
def test_misleading_documents_are_refused_without_side_effects(tmp_path, first, count):
    found, code = report_of(tmp_path, "--first", str(first), "--count", str(count))
    assert not found["failed"], found["failed"]
    assert code == 0
    assert found["cases"] == count
    assert found["outcomes"]["exit 2"] > count / 4
    assert found["outcomes"].get("exit 0", 0) + found["outcomes"].get("exit 1", 0) > count / 10


def test_a_failing_case_is_reported(tmp_path):
    """The output of a command is broken on purpose, in a process that does nothing else."""
    script = tmp_path / "broken.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(STRANGERS.parent)!r})\n"
        "import typer, strangers\n"
        "from pathlib import Path\n"
        "kinds = ['fine', 'control', 'raise', 'canary', 'run', 'secret', 'crash']\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def command(kind: str):\n"
        "    if kind == 'control': print('\\x1b[2J')\n"
        "    if kind == 'raise': raise KeyError('x')\n"
        "    if kind == 'canary': Path('../more').touch()\n"
        "    if kind == 'run': Path('canary-run').touch()\n"
        "    if kind == 'secret': print(strangers.os.environ['AWS_SECRET_ACCESS_KEY'])\n"
        "    if kind == 'crash': strangers.os.abort()\n"
        "strangers.app = app\n"
        "strangers.write_dataset = lambda folder: (folder / 'raw').mkdir()\n"
        "strangers.case = lambda number: ('', {}, [kinds[number]])\n"
        "found = strangers.run(list(range(len(kinds))))\n"
        "print([(failure['number'], failure['outcome']) for failure in found['failed']])\n"
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    failures = dict(ast.literal_eval(done.stdout))
    expected = {
        1: "FAILED prints '\\x1b'",
        2: "FAILED KeyError",
        3: "FAILED wrote outside its folder",
        4: "FAILED ran what a file says",
        5: "FAILED says 'of-the-user-alone'",
        6: "FAILED: ended with status 6",
    }
    assert failures.keys() == expected.keys()
    assert all(failures[number].startswith(text) for number, text in expected.items()), failures
