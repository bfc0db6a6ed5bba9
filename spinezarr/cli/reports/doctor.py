"""How is the diagnosis of a machine printed?"""

from typing import Final

from spinezarr.cli.console import OUT, StyledText, Table
from spinezarr.measure.finding import Group, Status
from spinezarr.text import count_noun
from spinezarr.verbs.doctor import Diagnosis

__all__ = ["print_diagnosis"]

_TITLES: Final[dict[Group, str]] = {
    "versions": "Versions",
    "decoding": "Decoding",
    "machine": "Machine",
    "place": "",
}
_STYLES: Final[dict[Status, str | None]] = {"ok": None, "note": "yellow", "broken": "bold red"}


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print the findings by group, and then what to change."""
    for group, title in _TITLES.items():
        findings = [finding for finding in diagnosis.findings if finding.group == group]
        if not findings:
            continue
        table = Table(title or f"Place: {diagnosis.place}", "", "found", "needed", "status")
        for finding in findings:
            table.add_row(
                finding.name,
                finding.found,
                finding.needed,
                finding.status,
                style=_STYLES[finding.status],
            )
        OUT.print(table)
    advised = [finding for finding in diagnosis.findings if finding.advice]
    if advised:
        OUT.say("What to change", style="bold")
    for finding in advised:
        OUT.say(StyledText(finding.name, _STYLES[finding.status] or "bold"), f": {finding.advice}")
    broken = sum(finding.status == "broken" for finding in diagnosis.findings)
    if broken:
        OUT.say(f"{count_noun(broken, 'check')} found something broken.", style="bold red")
    elif advised:
        OUT.say("Nothing is broken.")
    else:
        OUT.say("Nothing is broken, and there is nothing to change.")
