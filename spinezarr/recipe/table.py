"""Tables and lists that a dataset ships: what they say of which scan."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from spinezarr.recipe.bounded_regex import compile_bounded
from spinezarr.recipe.pattern import FileName, PatternTexts, TemplateText
from spinezarr.strict_yaml import StrictModel

__all__ = ["ImageList", "Table"]


def _checked_regex(text: str) -> str:
    try:
        compile_bounded(text)
    except ValueError as problem:
        raise ValueError(f"regular expression {text!r}: {problem}") from problem
    return text


class Table(StrictModel):
    """A table with a row a scan, or a list of scans; all its columns go into the scan table."""

    files: PatternTexts = ()
    """Patterns tried in order, relative to the raw folder; ``.xlsx``, or text in columns."""
    shipped: FileName | None = None
    """File beside the recipe; read as well as the one in the raw folder."""
    key: str | None = None
    """Column that names the scan; if not given, the one in which most scans are named."""
    scan_regex: Annotated[str, AfterValidator(_checked_regex)] | None = None
    """Regular expression that finds the names of scans in a text without columns."""
    matches: TemplateText = "{scan}"
    """What the name of a scan must equal; leading zeros of numbers do not count."""
    header: tuple[str, ...] = ()
    """Names of the columns of a file whose first row is none."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Between the columns of a text file."""
    constants: dict[str, str] = Field(default_factory=dict)
    """Further columns with the same text for each scan named."""
    non_identifying: PatternTexts = ()
    """Patterns of the columns that name no one: with pseudonyms, only they are stored.

    Those of ``constants`` are among them.
    """
    split: str | None = None
    """Column that says the scan's split; may be one of ``constants``."""

    @model_validator(mode="after")
    def _one_way_to_name_scans(self) -> Self:
        if self.key is not None and self.scan_regex is not None:
            raise ValueError(
                "give either 'key', the column that names the scan, or 'scan_regex', a regular "
                "expression for scan names in a text without columns"
            )
        if not self.files and self.shipped is None:
            raise ValueError("give 'files', 'shipped' or both")
        if (
            self.scan_regex is not None
            and self.split is not None
            and self.split not in self.constants
        ):
            raise ValueError(
                f"'split' {self.split!r} is no column: with 'scan_regex', a table has "
                "only the columns of 'constants'"
            )
        if self.header and self.key is not None and self.key not in self.header:
            raise ValueError(f"'key' {self.key!r} is not in 'header'")
        return self


class ImageList(StrictModel):
    """A text file with a line for each image that is meant where a scan has several."""

    files: PatternTexts
    """Patterns tried in order, relative to the raw folder."""
    entry: TemplateText
    """What the line of an image must equal; blanks side by side count as one."""
