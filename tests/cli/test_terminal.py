"""Output in terminals and pipes of all kinds: narrow, colorless, closed, without Unicode."""

import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
from small_scans import make_store

from spinezarr.cli import progress as cli_progress
from spinezarr.cli.console import ERR, OUT, Table
from spinezarr.cli.progress import progress_line, show_progress
from spinezarr.progress import Progress

COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("own"), ["box", "oblique", "bare"])


def spinezarr(*words, **variables):
    """Run the command with piped output."""
    command = [fork_server.command(), *map(str, words)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, check=False, env=environment)


def in_terminal(*words, **variables):
    """Run the command in a terminal of its own, and return what it shows, and its exit code."""
    program = "import sys; from spinezarr.cli.main import main; sys.argv[0] = 'spinezarr'; main()"
    command = [sys.executable, "-c", program, *map(str, words)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        if name not in variables:
            environment.pop(name, None)
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    return said.decode(), process.returncode


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux raises it if the other end is closed
        return b""


NARROW = [
    ["info"],
    ["stats"],
    ["audit", "--no-write"],
    ["verify"],
    ["bench", "--seconds", "1"],
    ["doctor"],
]


@pytest.mark.parametrize("words", NARROW, ids=" ".join)
def test_a_narrow_terminal_keeps_every_cell_readable(words, store, run, monkeypatch):
    monkeypatch.setattr(OUT, "_width", 40)
    said = run(words[0], store.url, *words[1:]).out.decode()
    assert said
    for line in said.splitlines():
        if line[:1] in {"│", "┃", "┏", "└"}:
            assert len(line) <= 40
            assert all(len(cell) >= 3 for cell in re.split("[│┃]", line)[1:-1])


def test_a_table_that_does_not_fit_becomes_paragraphs(capsys, monkeypatch):
    table = Table("Faults", "scan", "file", "n", right=("n",))
    table.add_row("liver_0", "image/c/0/0/0", "12")
    table.add_row("colon_1", "", "7", style="red")
    for width, expected in (
        (80, "│ liver_0 │ image/c/0/0/0 │ 12 │"),
        (20, "scan liver_0\n  n 12\n  file:\n"),
    ):
        monkeypatch.setattr(OUT, "_width", width)
        OUT.print(table)
        said = "\n".join(map(str.rstrip, capsys.readouterr().out.splitlines()))
        assert said.startswith("Faults")
        assert expected in said
        assert "colon_1" in said
        assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize("words", [["info"], ["stats"], ["verify"], ["audit", "--no-write"]])
def test_an_encoding_without_box_characters_gets_tables_of_ascii(words, store):
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = spinezarr(words[0], store.url, *words[1:], PYTHONIOENCODING="ascii", **variables)
    assert b"Traceback" not in done.stderr
    said = done.stdout.decode("ascii")
    assert "?" not in said.replace("?x", "")
    if words != ["verify"]:
        assert "+--" in said


def test_colors_are_left_out_on_request(store):
    colored, _ = in_terminal("info", "nowhere")
    assert COLOR.search(colored)
    for words, variables in (
        (["info", "nowhere", "--no-color"], {}),
        (["info", "nowhere"], {"NO_COLOR": "1"}),
        (["info", "nowhere"], {"TERM": "dumb"}),
        (["info", "--no-color", "--nothing"], {}),
        (["verify", store.url, "--no-color"], {}),
    ):
        said, _ = in_terminal(*words, **variables)
        assert said
        assert not COLOR.search(said), (words, variables)


def test_a_terminal_gets_bars_and_a_dumb_one_none(store):
    said, code = in_terminal("verify", store.url)
    assert code == 0
    assert "━" in said
    assert "0:00:0" in said  # time left, and then time taken
    for words, variables in (([], {"TERM": "dumb"}), (["--quiet"], {})):
        said, code = in_terminal("verify", store.url, *words, **variables)
        assert code == 0
        assert "━" not in said
        assert "\x1b[?25l" not in said
        assert "Every byte is as it was written." in said


def test_quiet_leaves_results_and_errors(store, tmp_path):
    plots = ["stats", store.url, "--plots", tmp_path / "plots"]
    loud, quiet = spinezarr(*plots), spinezarr(*plots, "--quiet")
    assert b"Wrote detection.png" in loud.stderr
    assert quiet.stderr == b""
    assert quiet.stdout == loud.stdout
    wrong = spinezarr("info", "nowhere", "--quiet")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(b"Error: 'nowhere' is not a store")


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 11.0, 12.0, 42.0, 43.0])
    monkeypatch.setattr(cli_progress, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ERR, "hides_notes", False)
    with show_progress() as on_progress:
        for done in (0, 100_000_000, 110_000_000, 300_000_000, 310_000_000):
            on_progress(Progress("verify", done, 400_000_000, scan="liver_0"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "verify: 25 %, 100.0 of 400.0 MB, liver_0; 30 s left",
        "verify: 75 %, 300.0 of 400.0 MB, liver_0; 14 s left",
    ]


@pytest.mark.parametrize(
    ("progress", "elapsed_s", "line"),
    [
        (Progress("a", 0, None, "files"), 5, "a: 0 files"),
        (Progress("a", 0, 0, "scans"), 5, "a: 0 scans"),
        (Progress("a", 0, 4, "scans"), 5, "a: 0 %, 0/4 scans"),
        (Progress("a", 4, 4, "scans"), 5, "a: 100 %, 4/4 scans"),
        (Progress("a", 1, 4, "scans"), 4000, "a: 25 %, 1/4 scans; 3.3 h left"),
        (Progress("a", 2.5, 10, "seconds"), 2.5, "a: 25 %, 2/10 s; 8 s left"),
    ],
)
def test_a_line_has_the_share_and_the_time_left(progress, elapsed_s, line):
    assert progress_line(progress, elapsed_s) == line


def test_every_step_of_an_ingest_is_shown(store, tmp_path, monkeypatch, run):
    clock = itertools.count(0, 60.0)  # every step takes a minute
    monkeypatch.setattr(cli_progress, "monotonic", lambda: next(clock))
    raw, recipe = Path(store.raw), Path(store.raw).parent / "small.yaml"
    said = run("ingest", recipe, "--raw", raw, "--out", tmp_path / "s.zarr", code=0).err.decode()
    assert "list files: " in said
    assert re.search(r"ingest: 100 %, \d\.\d of \d\.\d MB, 3/3 scans", said)
    run("ingest", recipe, "--raw", raw, "--out", tmp_path / "s.zarr", "--repair", code=0)


@pytest.mark.parametrize(
    "words", [["info"], ["stats", "--json"], ["stats"], ["verify"], ["audit", "--no-write"]]
)
def test_a_closed_pipe_ends_the_command_without_a_message(words, store):
    command = [fork_server.command(), words[0], store.url, *words[1:]]
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        _, said = process.communicate()
    assert said == b""
    assert process.returncode == 141


def test_json_is_printed_with_errors_too(store):
    for words, code in (
        (["info", "nowhere", "--json"], 2),
        (["verify", store.url, "--scan", "nobody", "--json"], 2),
        (["info", store.url, "--nothing", "--json"], 2),
        (["derive", store.url, "--json"], 2),
    ):
        done = spinezarr(*words)
        assert done.returncode == code
        said = json.loads(done.stdout)
        assert said["exit_code"] == code
        assert said["error"] in " ".join(done.stderr.decode().split("\n"))
