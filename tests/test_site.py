"""The site is built without a warning, and works from a disk without a network."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium, page
from playwright.sync_api import expect
from typer.main import get_command

import spinezarr
import spinezarr.errors
from spinezarr.cli.main import app

__all__ = ["chromium", "page"]

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    path = ROOT / "docs" / "site" / "hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(command, context):
    yield context, command
    for name in getattr(command, "list_commands", lambda _: ())(context):
        child = command.get_command(context, name)
        yield from commands(child, type(context)(child, info_name=name, parent=context))


def test_every_command_and_option_is_in_the_reference(hooks):
    sections = re.split(r"^#+ ", hooks.commands_as_markdown(), flags=re.MULTILINE)
    told = {section.partition("\n")[0]: section for section in sections}
    root = get_command(app)
    found = list(commands(root, hooks.typer.Context(root, info_name="spinezarr")))
    assert len(found) > 15
    for context, command in found[1:]:
        section = told[context.command_path]
        if hasattr(command, "list_commands"):
            continue
        for parameter in command.get_params(context):
            if not getattr(parameter, "hidden", False):
                names = [n for n in parameter.opts if n.startswith("--")] or [parameter.metavar]
                assert any(name in section for name in names), (context.command_path, names)


@pytest.mark.parametrize(
    ("place", "target", "expected"),
    [
        ("how-to/ingest.md", "datasets.md", "datasets.md"),
        ("how-to/ingest.md", "../pictures/scan.png", "../pictures/scan.png"),
        ("how-to/ingest.md", "../../ingest/README.md", "../reference/recipes.md"),
        ("how-to/ingest.md", "../../benchmarks/README.md", "../explanation/benchmarks.md"),
        ("README.md", "../benchmarks/README.md", "explanation/benchmarks.md"),
        ("README.md", "decisions/", "decisions/README.md"),
        ("explanation/benchmarks.md", "patches.png", "patches.png"),
        ("explanation/benchmarks.md", "../docs/how-to/derive.md", "../how-to/derive.md"),
        ("reference/recipes.md", "../docs/reference/http.md", "http.md"),
        ("how-to/ingest.md", "../../ingest/verse.yaml", "REPOSITORY/blob/main/ingest/verse.yaml"),
        ("how-to/ingest.md", "https://zarr.dev", "https://zarr.dev"),
    ],
)
def test_links_lead_to_pages_of_the_site_or_to_the_repository(hooks, place, target, expected):
    text = hooks._with_links_of_the_site(f"a [b]({target}#c) d", place, "REPOSITORY")
    assert text == f"a [b]({expected}#c) d"


class Links(HTMLParser):
    """The anchors of a page, its links, and the files that a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link":
            self.loaded.add(values["href"])
        elif "src" in values:
            self.loaded.add(values["src"])


@pytest.mark.long
def test_the_site_is_whole_and_needs_no_network(tmp_path, page):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path: Links(path) for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 100
    for path, parsed in pages.items():
        for link in parsed.loaded:
            assert not urlsplit(link).netloc, f"{path}: {link} is loaded from another host"
        for link in parsed.loaded | {link for link in parsed.links if not urlsplit(link).scheme}:
            parts = urlsplit(link)
            if path.name != "404.html" and parts.scheme != "data":
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert target.exists(), f"{path}: {link}"
                if target.suffix == ".html":
                    assert unquote(parts.fragment) in pages[target].anchors, f"{path}: {link}"
    anchors = {anchor for parsed in pages.values() for anchor in parsed.anchors}
    for name in {*spinezarr.__all__} - {"SpinezarrError", "__version__"}:
        assert f"spinezarr.{name}" in anchors
    assert {f"spinezarr.errors.{name}" for name in spinezarr.errors.__all__} <= anchors

    page.context.set_offline(True)
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.keyboard.press("f")  # the key of the search
    page.locator("input.md-search__input").press_sequentially("pseudonymize")
    result = page.locator("a.md-search-result__link").filter(has_text="patients").first
    expect(result).to_be_visible()
    result.click()
    expect(page.locator("h1")).to_contain_text("What a store says about patients")
