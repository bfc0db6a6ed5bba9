"""What does the site have that is no page in docs/: pages of other folders, commands, links?

MkDocs calls the functions of this module while it builds the site.
"""

import html
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command

from spinezarr.cli.main import app

__all__ = ["on_files", "on_page_markdown"]

ROOT: Final = Path(__file__).parents[2]
FILES_OF_OTHER_FOLDERS: Final = {
    "benchmarks/README.md": "explanation/benchmarks.md",
    "ingest/README.md": "reference/recipes.md",
    **{
        str(path.relative_to(ROOT)): f"explanation/{path.name}"
        for path in sorted((ROOT / "benchmarks").glob("*.png"))
    },
}
"""Files of the repository, and their places in the site."""
SOURCES: Final = {place: source for source, place in FILES_OF_OTHER_FOLDERS.items()}
MARK_OF_COMMANDS: Final = "<!-- all commands -->"
"""The line in a page that becomes the list of all commands."""

_FENCES: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")
_CODE: Final = re.compile(r"`[^`]+`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures of other folders."""
    for source, place in FILES_OF_OTHER_FOLDERS.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:  # noqa: ANN401
    """Return the text of a page as MkDocs needs it."""
    parts = _FENCES.split(markdown)
    repository = config.extra["repository"]
    for i in range(0, len(parts), 2):
        parts[i] = _with_links_of_the_site(parts[i], page.file.src_uri, repository)
        parts[i] = _with_plain_bars(parts[i])
    return "".join(parts).replace(MARK_OF_COMMANDS, commands_as_markdown())


def _with_links_of_the_site(text: str, place: str, repository: str) -> str:
    """Let links to files that the site does not have lead to the repository."""
    folder = PurePosixPath(SOURCES.get(place, f"docs/{place}")).parent

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(folder / match[1])
        if (ROOT / target / "README.md").exists():
            target = f"{target}/README.md"
        if target in FILES_OF_OTHER_FOLDERS:
            in_site = FILES_OF_OTHER_FOLDERS[target]
        elif target.startswith("docs/"):
            in_site = target.removeprefix("docs/")
        else:
            return f"{repository}/blob/main/{target}"
        return os.path.relpath(in_site, PurePosixPath(place).parent)

    return _LINK.sub(link, text)


def _with_plain_bars(text: str) -> str:
    """Remove the backslashes with which GitHub needs the bars of code in tables."""
    return "\n".join(
        _CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line
        for line in text.split("\n")
    )


@cache
def commands_as_markdown() -> str:
    """Return the help of all commands."""
    command = get_command(app)
    root = typer.Context(command, info_name="spinezarr")
    return "\n".join(_lines_of_commands(command, root))


def _lines_of_commands(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401
    if context.parent is not None:
        yield from _lines_of_command(command, context)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        child = command.get_command(context, name)
        yield from _lines_of_commands(child, typer.Context(child, info_name=name, parent=context))


def _lines_of_command(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401
    level = "##" if context.parent.parent is None else "###"
    yield f"{level} {context.command_path}"
    yield ""
    for paragraph in (command.help or "").strip().split("\n\n"):
        text = " ".join(paragraph.split())
        example = text.removeprefix("Example: ")
        if example == text:
            yield f"<p>{html.escape(text)}</p>"
        else:
            yield from ("```text", example.strip(), "```")
        yield ""
    if hasattr(command, "list_commands"):
        return
    yield from (
        "```text",
        " ".join(context.command_path.split() + command.collect_usage_pieces(context)),
        "```",
        "",
    )
    for heading, records in _records(command, context).items():
        yield f"<table><thead><tr><th>{heading.lower()}</th><th></th></tr></thead><tbody>"
        for name, text in records:
            yield f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(text)}</td></tr>"
        yield "</tbody></table>"
        yield ""


def _records(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:  # noqa: ANN401
    """Return names and help of all parameters, by their headings."""
    records: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or usual
            records.setdefault(heading, []).append(record)
    return records
