"""Modules print only through the console, which makes every text printable."""

import ast
from pathlib import Path

import pytest

import spinezarr

PACKAGE = Path(spinezarr.__file__).parent
CONSOLE = "cli/console.py"
WAYS_OUT = {
    "print": set(),
    "input": set(),
    "sys.stdout": {CONSOLE, "cli/main.py"},
    "sys.stderr": {"cli/main.py", "serve/log.py"},
    "sys.__stdout__": set(),
    "sys.__stderr__": set(),
    "os.write": set(),
    "typer.echo": {"cli/help.py"},
    "typer.secho": set(),
    "click.echo": set(),
    "traceback.print_exc": set(),
    "logging.warning": set(),
    "logging.error": set(),
    "logging.info": set(),
}
"""Functions that print, and the modules that may use them."""
OF_RICH = {
    CONSOLE: None,
    "cli/progress.py": None,
}
"""Names of Rich that modules may import; None means all."""
PAGES = ("cli", "verbs", "stats", "export", "audit")
"""Modules that write documents, whose JSON and names come from one function."""


def _dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (of := _dotted(node.value)):
        return f"{of}.{node.attr}"
    return ""


def ways_out(source, module):
    """Return the ways in which a module prints without the console."""
    nodes = list(ast.walk(ast.parse(source)))
    return [found for node in nodes for found in (*_used(node, module), *_imported(node, module))]


def _used(node, module):
    name = _dotted(node)
    if name in WAYS_OUT and module not in WAYS_OUT[name]:
        yield name
    if name in {"json.dumps", "json.dump"} and module.partition("/")[0] in PAGES:
        yield name
    if isinstance(node, ast.Call) and _dotted(node.func) == "warnings.warn":
        text = node.args[0]
        if not (isinstance(text, ast.Call) and _dotted(text.func) == "to_printable"):
            yield "a warning that is not made fit to print"


def _imported(node, module):
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name.partition(".")[0] == "rich")
    if isinstance(node, ast.ImportFrom) and node.module:
        root, names = node.module.partition(".")[0], {alias.name for alias in node.names}
        allowed = OF_RICH.get(module, set())
        if root == "rich" and allowed is not None:
            yield from names - allowed
        hidden = {"typer": {"echo", "secho"}, "click": {"echo", "secho"}, "warnings": {"warn"}}
        hidden["sys"] = {"stdout", "stderr"}
        yield from names & hidden.get(root, set())


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if "testing" not in path.parts],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_modules_print_only_through_the_console(path):
    assert not ways_out(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import sys\nsys.stderr.write('x')",
        "from sys import stdout",
        "import typer\ntyper.echo('x')",
        "from typer import secho",
        "from rich.console import Console",
        "from rich import print",
        "import rich.table",
        "import warnings\nwarnings.warn(f'{title}')",
        "from warnings import warn",
        "import json\nx = json.dumps({})",
    ],
)
def test_the_check_finds_every_way_to_print(source):
    assert ways_out(source, "cli/new.py")
