"""How does a recipe describe the tables and lists of a dataset?"""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from spinezarr.recipe.bounded_regex import compile_bounded
from spinezarr.recipe.pattern import FileName, PatternTexts, TemplateText, Texts
from spinezarr.strict_model import StrictModel

__all__ = ["Download", "Folds", "ImageList", "Relabeling", "Table"]


def _checked_regex(text: str) -> str:
    try:
        compile_bounded(text)
    except ValueError as problem:
        raise ValueError(f"regular expression {text!r}: {problem}") from problem
    return text


class Relabeling(StrictModel):
    """Columns of a list of errata with the correct labels of scans.

    ``spinezarr ingest --errata apply`` gives the labels to the masks.
    """

    column: str
    """Column with pairs such as ``L1>T13 L2>L1``, or with the level of each vertebra from the top
    down, such as ``C7 T1 T2``. It does not go into the scan table."""
    source: str
    """Column that says who found the errors."""


class Table(StrictModel):
    """A table with one row for each scan, or a list of scans.

    All its columns go into the scan table.
    """

    files: PatternTexts = ()
    """Patterns of the table in the raw folder, tried in order: ``.xlsx`` or delimited text."""
    shipped: FileName | None = None
    """Name of a table next to the recipe, which is read in addition to one in the raw folder."""
    key: str | None = None
    """Column with the name of the scan. By default, the column that names most scans."""
    scan_regex: Annotated[str, AfterValidator(_checked_regex)] | None = None
    """Regular expression that finds the names of scans in text without columns."""
    matches: TemplateText = "{scan}"
    """Template that the name of a scan must equal. Leading zeros of numbers do not count."""
    header: tuple[str, ...] = ()
    """Names of the columns, for a file without a header row."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between the columns of a text file."""
    constants: dict[str, str] = Field(default_factory=dict)
    """Further columns, with the same text for each scan in the table."""
    non_identifying: PatternTexts = ()
    """Patterns of the columns that identify nobody. With pseudonyms, only these are stored.

    The columns of ``constants`` are included.
    """
    split: str | None = None
    """Column with the split of the scan, which may be one of ``constants``."""
    relabel: Relabeling | None = None
    """Columns with the correct labels of the scan, if the table is a list of errata."""

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
        if self.relabel is not None and self.scan_regex is not None:
            raise ValueError("'relabel' needs a table with columns, so it excludes 'scan_regex'")
        if self.header and self.key is not None and self.key not in self.header:
            raise ValueError(f"'key' {self.key!r} is not in 'header'")
        return self


class Download(StrictModel):
    """One of the downloads of a dataset, and how many scans it has."""

    source: str
    """Source of its scans, as the recipe's ``source`` gives it."""
    split: str
    """Split of its scans."""
    scans: Annotated[int, Field(ge=1)]
    """Number of its scans."""


class Folds(StrictModel):
    """A JSON file that lists the folds of a cross-validation.

    The fold in which a scan validates becomes the column ``fold``, counted from 0. The test scans
    are in the split ``test``, and the scans of the folds in the split ``train``.
    """

    files: PatternTexts
    """Patterns of the file, relative to the raw folder, tried in order."""
    matches: TemplateText = "{scan}"
    """Template that a name in the file must equal. Leading zeros of numbers do not count."""
    column: str | None = None
    """Column of a table with the name of the scan, which comes before ``matches``."""
    folds: str = "folds"
    """Key of the list of folds."""
    validation: Texts = ("validation",)
    """Keys of the names of validation scans in a fold, tried in order."""
    test: str = "test"
    """Key of the list with the names of test scans, which are in no fold."""


class ImageList(StrictModel):
    """A text file that lists the image to use for each scan that has several."""

    files: PatternTexts
    """Patterns of the file, relative to the raw folder, tried in order."""
    entry: TemplateText
    """Template that the line of an image must equal. Several blanks count as one."""
