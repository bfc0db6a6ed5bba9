"""What one dataset alone knows, as data: patterns of its files, and what their values mean."""

from spinezarr.recipe.expression import Expression, expression
from spinezarr.recipe.layout import (
    CentroidConvention,
    CentroidFiles,
    LabelParts,
    Labels,
    LabelState,
    Layout,
    value_of,
)
from spinezarr.recipe.model import Ignored, Lookup, Recipe, Splits
from spinezarr.recipe.pattern import PathPattern, fill, filled_pattern, possible_pattern
from spinezarr.recipe.series import SERIES_NAMES, SeriesChoice, SeriesDescribed
from spinezarr.recipe.table import Listed, Table

__all__ = [
    "SERIES_NAMES",
    "CentroidConvention",
    "CentroidFiles",
    "Expression",
    "Ignored",
    "LabelParts",
    "LabelState",
    "Labels",
    "Layout",
    "Listed",
    "Lookup",
    "PathPattern",
    "Recipe",
    "SeriesChoice",
    "SeriesDescribed",
    "Splits",
    "Table",
    "expression",
    "fill",
    "filled_pattern",
    "possible_pattern",
    "value_of",
]
