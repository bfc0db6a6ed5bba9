"""What does one check of a machine tell?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Finding", "Group", "Status"]

Status = Literal["ok", "note", "broken"]
"""``"note"``: it works, but something is slower or smaller than it could be."""
Group = Literal["versions", "decoding", "machine", "place"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    group: Group
    name: str
    """What was checked, in a few words."""
    found: str
    needed: str = ""
    """What it is compared with; empty if it is compared with nothing."""
    status: Status = "ok"
    advice: str = ""
    """What to change, in a sentence or two; empty if there is nothing to change."""
    figures: Mapping[str, float | str | list[str] | None] = field(default_factory=dict)
    """The numbers behind :attr:`found`, with units in their names."""
