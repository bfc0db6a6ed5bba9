"""No field of a file or store can make the command line print terminal control characters."""

import copy
import csv
import io
import json
import logging
import os
import pickle
import pty
import re
import subprocess
import sys
import traceback
import warnings

import hostile_text as hostile
import numpy as np
import pytest
from hostile_text import EVIL, PRINTABLE_EVIL, forbidden
from markdown_it import MarkdownIt

import spinezarr
from spinezarr.cli.console import (
    ERR,
    OUT,
    StyledText,
    Table,
    print_heading,
    print_side_by_side,
)
from spinezarr.cli.logs import show_warnings_and_logs
from spinezarr.cli.progress import progress_line
from spinezarr.errors import ScanChangedError, SpinezarrError, UsageError
from spinezarr.export.plane import PreviewPlane
from spinezarr.progress import Progress
from spinezarr.stats.statistics import compute_statistics
from spinezarr.text import MultilineText


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    store = hostile.write_store(folder)
    recipe = hostile.write_recipe(folder / "evil.yaml")
    damaged = folder / "damaged.zarr"
    hostile.shutil.copytree(store, damaged)
    first = min((damaged / "scans").iterdir())
    shard = next(path for path in (first / "image").rglob("*[0-9]") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    (damaged / "scans" / f"{EVIL[:60].replace('/', '_')}x").write_bytes(b"extra")
    (first / "label" / "zarr.json").write_text("\x1b[31m{")
    not_ours = folder / "not_ours.zarr"
    not_ours.mkdir()
    root = {"attributes": {"format": EVIL, "format_version": EVIL}}
    (not_ours / "zarr.json").write_text(json.dumps(root))
    other = folder / "other.zarr"
    other.mkdir()
    root = {"attributes": {"format": "spinezarr", "format_version": EVIL}}
    (other / "zarr.json").write_text(json.dumps(root))
    odd = folder / "odd.zarr"
    odd.mkdir()
    root = {"attributes": {"format": "spinezarr", "format_version": 6, EVIL: EVIL}}
    (odd / "zarr.json").write_bytes(hostile.seal(root))
    broken = folder / "broken.yaml"
    broken.write_text(json.dumps({"name": "x", EVIL: EVIL, "title": [EVIL]}), encoding="utf-8")
    yaml = folder / "yaml.yaml"
    yaml.write_text(f'name: "{EVIL[:3]}\n\x85\u2028: [[[\n', encoding="utf-8")
    return {
        "store": store,
        "damaged": damaged,
        "not_ours": not_ours,
        "other": other,
        "odd": odd,
        "recipe": recipe,
        "refused": hostile.write_recipe(folder / "refused.yaml", EVIL),
        "broken": broken,
        "yaml": yaml,
        "raw": hostile.write_raw(folder / "raw"),
        "plain": folder / "plain",
        "card": hostile.write_card(folder / "evil.card.yaml"),
        "catalog": hostile.write_catalog(folder / "evil_catalog.yaml", store, recipe),
        "empty": folder / "nothing",
        "id": min(path.name for path in (store / "scans").iterdir() if path.is_dir()),
    }


INGEST = ["ingest", "{recipe}", "--raw", "{raw}"]
COMMANDS = [
    ["info", "{store}"],
    ["info", "{store}", "--json"],
    ["info", "{not_ours}"],
    ["info", "{other}"],
    ["info", "{odd}"],
    ["info", "{odd}", "--json"],
    ["info", EVIL],
    ["info", EVIL, "--catalog", "{catalog}"],
    ["info", PRINTABLE_EVIL, "--catalog", "{catalog}"],
    ["info", "neither", "--catalog", "{refused}"],
    ["info", "good", "--catalog", "{catalog}"],
    ["info", "neither", "--catalog", "{catalog}"],
    ["info", "neither", "--catalog", "{broken}"],
    ["info", "neither", "--catalog", "{yaml}"],
    ["info", f"http://{EVIL}/x"],
    ["info", f"{EVIL}://x"],
    ["verify", "{store}"],
    ["verify", "{store}", "--json"],
    ["verify", "{store}", "--scan", "{id}"],
    ["verify", "{store}", "--scan", EVIL],
    ["verify", "{store}", "--against", "{plain}"],
    ["verify", "{store}", "--against", "{plain}", "--json"],
    ["verify", "{damaged}"],
    ["verify", "{damaged}", "--json"],
    ["verify", "{odd}"],
    ["verify", "{other}"],
    ["audit", "{store}", "--no-write"],
    ["audit", "{store}", "--no-write", "--json"],
    ["audit", "{store}", "{damaged}", "--no-write"],
    ["audit", "{store}", "{damaged}", "--no-write", "--json"],
    ["audit", "{store}", "--scan", EVIL],
    ["stats", "{store}"],
    ["stats", "{store}", "--format", "markdown"],
    ["stats", "{store}", "--format", "csv"],
    ["stats", "{store}", "--json"],
    ["stats", "{store}", "--split", EVIL],
    ["stats", "{store}", "--split", "no"],
    ["stats", "{store}", "--source", EVIL, "--plots", "out"],
    ["stats", "{store}", "--against", "card"],
    ["stats", "{store}", "--against", "{broken}"],
    ["stats", "{store}", "--against", "{card}"],
    ["stats", "{store}", "--against", "{card}", "--format", "markdown"],
    ["stats", "{store}", "--against", "{card}", "--format", "csv"],
    ["stats", "{store}", "--against", "{card}", "--json"],
    ["preview", "{store}", "--out", "out"],
    ["preview", "{store}", "--out", "out", "--scan", EVIL],
    ["preview", "{damaged}", "--out", "out"],
    ["export", "nifti", "{store}", "--out", "out"],
    ["export", "nifti", "{store}", "--out", "out", "--json"],
    ["export", "nifti", "{damaged}", "--out", "out"],
    ["export", "nifti", "{damaged}", "--out", "out", "--json"],
    ["export", "nnunet", "{store}", "--out", "out"],
    ["export", "nnunet", "{store}", "--out", "out", "--name", "n"],
    ["export", "nnunet", "{store}", "--out", "out", "--name", "n", "--json"],
    ["export", "nnunet", "{store}", "--out", "out", "--name", EVIL],
    ["export", "nnunet", "{store}", "--out", "out", "--split", "no"],
    [*INGEST, "--dry-run"],
    [*INGEST, "--dry-run", "--json"],
    [*INGEST, "--out", "out/s.zarr"],
    [*INGEST, "--out", "out/s.zarr", "--json"],
    [*INGEST, "--out", "out/s.zarr", "--license", EVIL, "--pseudonymize"],
    [*INGEST, "--out", "{store}"],
    [*INGEST, "--out", "out/s.zarr", "--codec", EVIL],
    ["ingest", "{recipe}", "--raw", "{empty}", "--out", "out/s.zarr"],
    ["ingest", "{recipe}", "--raw", f"{EVIL}"],
    ["ingest", "{broken}", "--raw", "{raw}", "--dry-run"],
    ["ingest", "{refused}", "--raw", "{raw}", "--dry-run"],
    ["ingest", "{yaml}", "--raw", "{raw}", "--dry-run"],
    ["ingest", EVIL, "--raw", "{raw}", "--dry-run"],
    ["ingest", "good", "--catalog", "{catalog}", "--raw", "{raw}", "--dry-run"],
    ["ingest", PRINTABLE_EVIL, "--catalog", "{catalog}"],
    ["ingest", "pairs", "--raw", "{raw}", "--image", EVIL, "--dry-run"],
    ["ingest", "pairs", "--raw", "{raw}", "--image", "{{scan}}{{x:**}}", "--dry-run"],
    ["doctor", "{store}"],
    ["doctor", "{damaged}", "--json"],
    ["doctor", EVIL],
    ["bench", "{store}", "--seconds", "1"],
    ["bench", "{store}", "--seconds", "1", "--json"],
    ["bench", "{store}", "--scan", EVIL],
    ["init", "{card}"],
    ["demo", "--out", "{store}"],
    ["info", "{store}", EVIL],
    ["info", "{store}", f"--{EVIL}"],
    ["stats", "{store}", "--format", EVIL],
    [EVIL],
]


def _named(words):
    return " ".join(words)[:50].encode("ascii", "replace").decode()


@pytest.mark.parametrize("words", COMMANDS, ids=_named)
def test_no_command_prints_terminal_control_characters(words, places, run, tmp_path):
    (tmp_path / "out").mkdir()
    said = run(*(word.format(**places) if word.isascii() else word for word in words))
    out, err = said.out.decode(), said.err.decode()
    for text in (out, err):
        assert not forbidden(text), text
        assert "Traceback" not in text
        assert not re.search(r"^\s*FORGED", text, re.MULTILINE), text
    if out and (words[-1] == "json" or "--json" in words):
        json.loads(out)
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in {".json", ".csv", ".md", ".txt"} and ".zarr" not in str(path):
            assert not forbidden(path.read_text(encoding="utf-8")), path


def test_square_brackets_are_not_taken_for_markup(capsys):
    marked = "[red]x[/] :smile: [bold"
    titled, header, cell = Table(marked, "a"), Table("", marked), Table("", "a")
    cell.add_row(MultilineText(marked, "z\x1b"))
    for prints in (
        lambda: OUT.print(titled),
        lambda: OUT.print(header),
        lambda: OUT.print(cell),
        lambda: OUT.print(marked),
        lambda: OUT.say(marked),
        lambda: OUT.say(StyledText(marked, "bold")),
        lambda: print_heading(marked),
        lambda: print_side_by_side([(marked, StyledText(marked, "bold"))], gap=2),
        lambda: ERR.note(progress_line(Progress(marked, 1, None, "files"), 1.0)),
    ):
        prints()
        said = capsys.readouterr()
        assert marked in said.out + said.err
        assert "\x1b" not in said.out + said.err


def test_json_output_holds_every_text_unchanged(places, run):
    summary = json.loads(run("info", places["store"], "--json", code=0).out)
    assert [summary[key] for key in ("title", "license", "citation", "homepage")] == [EVIL] * 4
    audited = json.loads(run("stats", places["store"], "--json", code=0).out)
    assert audited["title"] == EVIL
    assert set(audited["scans_by_split"]) == {EVIL, f"test{EVIL}"}
    found = json.loads(run("verify", places["store"], "--json", code=0).out)
    assert places["id"] in found["scans"]
    exported = json.loads(run("export", "nifti", places["store"], "--out", "o", "--json").out)
    assert places["id"] in {scan["scan_id"] for scan in exported["done"]}


def test_markdown_output_shows_texts_literally(places, run):
    said = run("stats", places["store"], "--format", "markdown", code=0).out.decode()
    against = ["--against", places["card"], "--format", "markdown"]
    said += run("stats", places["store"], *against, code=1).out.decode()
    rendered = MarkdownIt("commonmark").enable("table").render(said)
    assert set(re.findall(r"<(\w+)", rendered)) <= {
        *("h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li")
    }
    assert "&lt;img src=x onerror=alert(1)&gt;[link=http://x]a[/link]" in rendered
    assert ":smile:|`$x$ [m](http://x.org)" in rendered
    assert re.search(r"(?<!\\)\$", said) is None, "the text holds a formula"
    assert re.search(r"https?://", said) is None, "GitHub makes this a link"


def test_csv_output_holds_no_formula(places, run):
    said = run("stats", places["store"], "--format", "csv", code=0).out.decode()
    rows = list(csv.reader(io.StringIO(said)))
    assert all(len(row) == 4 for row in rows)
    card = ["--against", places["card"], "--format", "csv"]
    for row in csv.reader(io.StringIO(run("stats", places["store"], *card, code=1).out.decode())):
        assert not any(re.match(r"[=@+]|-\D", cell) for cell in row)


ENDED = "ended with"


def test_a_real_terminal_gets_only_styles_and_cursor_movements(places):
    """Rich sends colors, the progress bar and cursor movements to a terminal, and nothing else."""
    own = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r")
    commands = [["info", str(places["store"])], ["verify", str(places["damaged"])], ["info", EVIL]]
    program = (
        "import json, sys\n"
        "from spinezarr.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = words\n"
        "    try: main()\n"
        f"    except SystemExit as ended: print({ENDED!r}, ended.code or 0)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(commands)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    assert process.returncode == 0
    *each, rest = re.split(rf"{ENDED} \w+\s*", said.decode())
    assert re.findall(rf"{ENDED} (\w+)", said.decode()) == ["0", "1", "2"]
    assert not rest
    for text in each:
        assert "\x1b[" in text, "the command did not take its output for a terminal"
        assert not forbidden(own.sub("", text)), text


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux raises it if the other end is closed
        return b""


def test_reprs_and_tables_in_python_are_printable(places):
    store = spinezarr.open(places["store"])
    assert not forbidden(repr(store))
    for shown in (store.table, *map(store.scan, store.table.scan.to_numpy())):
        for text in (repr(shown), shown._repr_html_(), *map(repr, shown.variables.values())):
            assert all(char.isprintable() or char == "\n" for char in text)
    with pytest.raises(SpinezarrError) as caught:
        store.scan(EVIL)
    assert not forbidden("".join(traceback.format_exception_only(caught.value)))
    assert not forbidden(repr(caught.value))
    with pytest.raises(SpinezarrError) as caught:
        spinezarr.open(places["odd"])
    assert not forbidden(str(caught.value))


def test_errors_keep_their_own_line_breaks_and_no_others():
    assert str(UsageError("one\n  two \x1b")) == "one two \\x1b"
    error = UsageError(MultilineText("one", "  two\nthree"))
    assert str(error) == "one\n  two\\x0athree"
    changed = ScanChangedError("a\x1b", "id\x1b")
    assert changed.scan_id == "id\x1b"
    for problem in (error, changed):
        again = pickle.loads(pickle.dumps(problem))  # noqa: S301  our own
        assert (type(again), str(again), again.args) == (type(problem), str(problem), problem.args)
        assert str(copy.copy(problem)) == str(problem)


def test_warnings_and_logs_are_made_printable(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    show_warnings_and_logs()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"{EVIL} http://u:CANARY@host/", UserWarning, stacklevel=1)
    handler = logging.lastResort
    handler.handle(logging.LogRecord("x", 40, "", 0, "%s", (EVIL,), None))
    said = capsys.readouterr().err
    assert "UserWarning: " in said
    assert "x: " in said
    assert not forbidden(said)
    assert "CANARY" not in said


@pytest.mark.parametrize("text", [EVIL, "$\\frac{$", "日本", "_x", "a" * 100_000, "ع\u0301" * 50])
def test_pictures_can_be_drawn_with_any_text(text, places, tmp_path):
    from spinezarr.export.picture import draw_preview  # noqa: PLC0415  takes long
    from spinezarr.stats.plots import draw_detection, draw_spacing, draw_volumes  # noqa: PLC0415

    store = spinezarr.open(places["store"])
    table = store.table.assign_attrs(title=text)
    table = table.assign(source=("scan", [text] * table.sizes["scan"]))
    statistics = compute_statistics(table)
    for figure in (draw_detection(statistics), draw_volumes(table), draw_spacing(table)):
        figure.savefig(tmp_path / "x.png", dpi=20)
    plane = PreviewPlane("axial", np.zeros((9, 9)), None, (1.0, 1.0), 0.0, (0.0, 0.0))
    draw_preview(text, [plane], text).savefig(tmp_path / "x.png", dpi=20)
