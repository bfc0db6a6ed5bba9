"""Which version of spinezarr is this, and where are its recipes and its starter catalog?"""

from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from spinezarr.errors import RecipeError
from spinezarr.regular_file import describe_irregular_file, expand_home
from spinezarr.text import did_you_mean

__all__ = ["package_version", "recipe_names", "recipe_path", "resource"]

_PAIRS: Final = "pairs"
"""Name of a dataset without a recipe."""


@cache
def package_version() -> str:
    """Return the version of spinezarr. It is cached, because reading it takes a millisecond."""
    return version("spinezarr")


def resource(name: str) -> Traversable:
    """Return the shipped file or folder ``name``, from an installed wheel or from a checkout.

    Examples
    --------
    >>> resource("ingest/ctspine1k.yaml").is_file()
    True
    """
    installed = files("spinezarr") / "_data"
    root = installed if installed.is_dir() else Path(__file__).parent.parent
    return root / name


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes.

    Examples
    --------
    >>> "ctspine1k" in recipe_names()
    True
    """
    shipped = [file.name for file in resource("ingest").iterdir()]
    return tuple(
        sorted(
            name.removesuffix(".yaml")
            for name in shipped
            if name.endswith(".yaml") and not name.endswith(".card.yaml")
        )
    )


def recipe_path(recipe: str) -> Traversable:
    """Find a recipe by its shipped name or by the path of a ``.yaml`` file.

    Raises
    ------
    RecipeError
        If there is no such recipe. The message lists the shipped recipes.
    """
    if recipe.endswith((".yaml", ".yml")):
        path = expand_home(recipe)
        if path.is_file():
            return path
        kind = describe_irregular_file(path)
        problem = f"is {kind}, expected a file" if kind else "no such recipe file"
        raise RecipeError(f"{recipe}: {problem}. Shipped recipes: {', '.join(recipe_names())}.")
    if recipe in recipe_names():
        return resource(f"ingest/{recipe}.yaml")
    raise RecipeError(
        f"There is no recipe {recipe!r}.{did_you_mean(recipe, (*recipe_names(), _PAIRS))} Shipped "
        f"recipes: {', '.join(recipe_names())}. Give one of these, the path of your own .yaml "
        "file, or use 'pairs' with --image and --label."
    )
