"""How is the query of a URL parsed into a model?"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError

from spinezarr.strict_yaml import validation_message

__all__ = ["QueryModel", "WrongQueryError", "describe_first_fault", "parameters_of", "parse_query"]

_JSON_SCALAR: Final = re.compile(
    r"-?(?:0|[1-9][0-9]{0,18})(?:[.][0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null"
)
"""A number, boolean or null, as JSON writes it."""
_MAX_FIELDS: Final = 64


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
    """A query does not fit its model. The message names the parameter."""


def parse_query(model: type[Model], text: str) -> Model:
    """Parse a query into a model. Elements of a list are separated by commas.

    Raises
    ------
    WrongQueryError
        If the query does not fit the model, or a parameter occurs twice.

    Examples
    --------
    >>> class SizeQuery(QueryModel):
    ...     name: str
    ...     size: tuple[int, int]
    >>> parse_query(SizeQuery, "name=7&size=1,2")
    SizeQuery(name='7', size=(1, 2))
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as problem:
        raise WrongQueryError("There are too many parameters.") from problem
    schemas, values = parameters_of(model), {}
    for name, value in pairs:
        if name not in schemas:
            raise WrongQueryError(f"The parameters are {', '.join(schemas)}.")
        if name in values:
            raise WrongQueryError(f"{name}: the parameter is given twice.")
        values[name] = _value(value, schemas[name])
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as problem:
        raise WrongQueryError(describe_first_fault(problem)) from problem


def describe_first_fault(problem: ValidationError) -> str:
    """Describe the first fault of a request, with the name of the field."""
    first = problem.errors(include_url=False)[0]
    location = ".".join(map(str, first["loc"]))
    reason = validation_message(first)
    return f"{location}: {reason}." if location else f"{reason[0].upper()}{reason[1:]}."


@cache
def parameters_of(model: type[QueryModel]) -> Mapping[str, Mapping[str, Any]]:
    """Return the schema of each parameter of a model.

    The default of an optional parameter is null in the model. A URL cannot express null, so its
    schema leaves null out. The schemas of list elements keep it.
    """
    schemas = {}
    for name, field in model.model_json_schema()["properties"].items():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        other_keys = {key: value for key, value in field.items() if key not in {"anyOf", "title"}}
        if other_keys.get("default", ...) is None:
            del other_keys["default"]
        schemas[name] = (
            other_keys
            if not kinds
            else {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **other_keys}
        )
    return schemas


def _value(text: str, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401  JSON
    if schema.get("type") == "array":
        if not text:
            return []
        return [_scalar(part) for part in text.split(",")]
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    return text if kinds == {"string"} else _scalar(text)


def _scalar(text: str) -> Any:  # noqa: ANN401  JSON
    return json.loads(text) if _JSON_SCALAR.fullmatch(text) else text
