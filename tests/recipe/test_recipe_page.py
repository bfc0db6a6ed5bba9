"""The page on recipes names every key that a recipe or a card may have."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

import spinezarr.card
import spinezarr.recipe

PAGE = (Path(__file__).parents[2] / "ingest" / "README.md").read_text()
NAMED = set(re.findall(r"`(\w+)[`:]", PAGE))


def models():
    """Return the models whose fields are keys of a recipe or a card."""
    modules = pkgutil.iter_modules(spinezarr.recipe.__path__, "spinezarr.recipe.")
    for name in [*(module.name for module in modules), spinezarr.card.__name__]:
        module = importlib.import_module(name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, BaseModel) and kind.__module__ == name:
                yield kind


MODELS = list(models())


def test_recipes_and_cards_have_models():
    assert {"Recipe", "Layout", "Table", "Card"} <= {model.__name__ for model in MODELS}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_named(model):
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys <= NAMED
