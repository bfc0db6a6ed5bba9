"""Version, citation, changelog, and the pages for contributors agree with the project."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import spinezarr

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]


def test_the_version_is_that_of_pyproject_everywhere():
    assert spinezarr.__version__ == version("spinezarr") == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    number, _, when = headings[0].partition(" ")
    assert number == PROJECT["version"]
    assert re.fullmatch(r"\((unreleased|\d{4}-\d{2}-\d{2})\)", when)


def test_the_citation_is_that_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


@pytest.mark.parametrize("name", PAGES)
def test_links_commands_and_addresses_of_a_page_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" in target:
            assert target == PROJECT["urls"]["Repository"], target
        else:
            assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    spans = re.findall(r"`make ([a-z -]+)`", text)
    spans += re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    assert {word for span in spans for word in span.split()} <= targets
    for path in re.findall(r"`((?:tests|docs|spinezarr|\.ci)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone of the repository")
def test_the_sdist_lists_every_file_of_the_repository():
    text = (ROOT / "pyproject.toml").read_text()
    included = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    listed = subprocess.run(
        ["git", "ls-files"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    tops = {f"/{name.partition('/')[0]}" for name in listed.splitlines()}
    assert tops == set(included)
