"""How does a recipe state where the files of a dataset lie, and what their values mean?"""

from spinezarr.recipe.bounded_regex import BoundedRegex, compile_bounded
from spinezarr.recipe.correction import LabelCorrection
from spinezarr.recipe.labels import EarlierValues, Labels
from spinezarr.recipe.layout import (
    CentroidConvention,
    CentroidFiles,
    LabelParts,
    Layer,
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
from spinezarr.recipe.table import Download, Folds, ImageList, Relabeling, Table

__all__ = [
    "SERIES_NAMES",
    "BoundedRegex",
    "CentroidConvention",
    "CentroidFiles",
    "Download",
    "EarlierValues",
    "Folds",
    "IgnoredFiles",
    "ImageList",
    "LabelCorrection",
    "LabelParts",
    "Labels",
    "Layer",
    "Layout",
    "Lookup",
    "PathPattern",
    "Recipe",
    "Relabeling",
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
