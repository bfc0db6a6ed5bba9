"""How is the query of a URL parsed into a model?"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError

from spinezarr.strict_yaml import validation_message

__all__ = ["QueryModel", "WrongQueryError", "parameters_of", "parse_query", "wrong_of"]

_WORD: Final = re.compile(
    r"-?(?:0|[1-9][0-9]{0,18})(?:[.][0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null"
)
"""A number, boolean or null, as JSON writes it."""
_FIELDS: Final = 64


class QueryModel(BaseModel):
    """Base of the models of requests."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


Model = TypeVar("Model", bound=QueryModel)


class WrongQueryError(ValueError):
    """A query that does not fit its model; the message names the parameter."""


def parse_query(model: type[Model], text: str) -> Model:
    """Parse a query; elements of a list are separated by commas.

    Raises
    ------
    WrongQueryError
        If the query does not fit the model, or a parameter occurs twice.

    Examples
    --------
    >>> class Asked(QueryModel):
    ...     name: str
    ...     size: tuple[int, int]
    >>> parse_query(Asked, "name=7&size=1,2")
    Asked(name='7', size=(1, 2))
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError as problem:
        raise WrongQueryError("There are too many parameters.") from problem
    schemas, found = parameters_of(model), {}
    for name, value in pairs:
        if name not in schemas:
            raise WrongQueryError(f"The parameters are {', '.join(schemas)}.")
        if name in found:
            raise WrongQueryError(f"{name}: occurs twice.")
        found[name] = _value(value, schemas[name])
    try:
        return model.model_validate_json(json.dumps(found))
    except ValidationError as problem:
        raise WrongQueryError(wrong_of(problem)) from problem


def wrong_of(problem: ValidationError) -> str:
    """Describe the first fault of a request, with its place."""
    first = problem.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    reason = validation_message(first)
    return f"{where}: {reason}." if where else f"{reason[0].upper()}{reason[1:]}."


@cache
def parameters_of(model: type[QueryModel]) -> Mapping[str, Mapping[str, Any]]:
    """Return the schema of each parameter of a model.

    Optional parameters have null as default in the model. A URL cannot say null, so it is left out
    of their schemas, but not of those of list elements.
    """
    found = {}
    for name, field in model.model_json_schema()["properties"].items():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        rest = {key: value for key, value in field.items() if key not in {"anyOf", "title"}}
        if rest.get("default", ...) is None:
            del rest["default"]
        found[name] = (
            rest if not kinds else {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **rest}
        )
    return found


def _value(text: str, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401  JSON
    if schema.get("type") == "array":
        return [_word(part) for part in text.split(",")]
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    return text if kinds == {"string"} else _word(text)


def _word(text: str) -> Any:  # noqa: ANN401  JSON
    return json.loads(text) if _WORD.fullmatch(text) else text
