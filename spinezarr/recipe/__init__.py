"""How does a recipe state where the files of a dataset lie, and what their values mean?"""

from spinezarr.recipe.bounded_regex import BoundedRegex, compile_bounded
from spinezarr.recipe.layout import (
    CentroidConvention,
    CentroidFiles,
    LabelParts,
    Labels,
    Layout,
    label_value,
)
from spinezarr.recipe.model import IgnoredFiles, Lookup, Recipe, Splits
from spinezarr.recipe.pattern import (
    PathPattern,
    fill_template,
    filled_template_regex,
    template_regex,
)
from spinezarr.recipe.series import SERIES_NAMES, SeriesInfo, SeriesSelection
from spinezarr.recipe.table import Download, ImageList, Table

__all__ = [
    "SERIES_NAMES",
    "BoundedRegex",
    "CentroidConvention",
    "CentroidFiles",
    "Download",
    "IgnoredFiles",
    "ImageList",
    "LabelParts",
    "Labels",
    "Layout",
    "Lookup",
    "PathPattern",
    "Recipe",
    "SeriesInfo",
    "SeriesSelection",
    "Splits",
    "Table",
    "compile_bounded",
    "fill_template",
    "filled_template_regex",
    "label_value",
    "template_regex",
]
