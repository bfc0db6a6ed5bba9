"""What one dataset alone knows, as data: patterns of its files, and what their values mean."""

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
from spinezarr.recipe.table import Listed, Table

__all__ = [
    "CentroidConvention",
    "CentroidFiles",
    "Ignored",
    "LabelParts",
    "LabelState",
    "Labels",
    "Layout",
    "Listed",
    "Lookup",
    "PathPattern",
    "Recipe",
    "Splits",
    "Table",
    "fill",
    "filled_pattern",
    "possible_pattern",
    "value_of",
]
