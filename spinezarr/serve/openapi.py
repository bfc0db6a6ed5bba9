"""How do programs read the description of a server?

The OpenAPI document is made from the operations and their models.

References
----------
OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from spinezarr.resources import package_version
from spinezarr.serve.http import TEXT
from spinezarr.serve.operations import OPERATIONS, PARAMETERS, Content, Operation
from spinezarr.serve.query import parameters_of

__all__ = ["document"]

_TITLE: Final = "spinezarr"
_ABOUT: Final = (
    "Stores over HTTP: bytes for every Zarr client, patches for trainers, JSON for pages."
)
_NAME: Final = re.compile(r"{(\w+)}")
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token is the password."},
}
_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{model}"


def document(*, has_tokens: bool) -> dict[str, Any]:
    """Return the OpenAPI document.

    Parameters
    ----------
    has_tokens
        Whether the server requires tokens.
    """
    asked = dict.fromkeys(op.body for op in OPERATIONS if op.body is not None)
    told = dict.fromkeys(
        content.model
        for op in OPERATIONS
        for content in op.answers.values()
        if content.model is not None
    )
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in asked),
        *((model, "serialization") for model in told),
    ]
    references, definitions = models_json_schema(models, ref_template=_REF)
    schemas = {model: references[model, mode] for model, mode in models}
    paths: dict[str, dict[str, Any]] = {}
    for op in OPERATIONS:
        described = _operation(op, schemas, has_tokens=has_tokens)
        at = paths.setdefault(op.path, {})
        at[op.method.lower()] = described
        if op.method == "GET":
            at["head"] = _head_of(described)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": package_version(), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(op.group for op in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            **({"securitySchemes": _SCHEMES} if has_tokens else {}),
        },
    }


def _operation(
    op: Operation, schemas: Mapping[type[BaseModel], Mapping[str, Any]], *, has_tokens: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": op.name,
        "tags": [op.group],
        "summary": op.summary,
        "parameters": list(_parameters(op)),
        "responses": {
            str(status.value): _answer(content, schemas)
            for status, content in sorted(op.answers.items())
        },
    }
    if op.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": schemas[op.body]}},
        }
    if has_tokens:
        found["security"] = [] if op.is_open else [{name: []} for name in _SCHEMES]
    return found


def _parameters(op: Operation) -> Iterator[dict[str, Any]]:
    for name in _NAME.findall(op.path):
        schema = {"type": "string", "minLength": 1}
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETERS[name],
            "schema": schema,
        }
    if op.query is not None:
        needed = op.query.model_json_schema().get("required", ())
        for name, field in parameters_of(op.query).items():
            schema = {key: value for key, value in field.items() if key != "description"}
            yield {
                "name": name,
                "in": "query",
                "required": name in needed,
                "style": "form",
                "explode": False,
                "description": field.get("description", ""),
                "schema": schema,
            }
    for name in op.headers:
        yield {
            "name": name,
            "in": "header",
            "description": PARAMETERS[name],
            "schema": {"type": "string"},
        }


def _answer(
    content: Content, schemas: Mapping[type[BaseModel], Mapping[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"description": content.text}
    if content.headers:
        found["headers"] = {
            name: {"required": True, "schema": {"type": "string"}} for name in content.headers
        }
    if content.types:
        text = {"schema": {"type": "string"}}
        one = {} if content.model is None else {"schema": schemas[content.model]}
        found["content"] = {kind: text if kind == TEXT else one for kind in content.types}
    return found


def _head_of(described: Mapping[str, Any]) -> dict[str, Any]:
    answers = {
        status: {key: value for key, value in answer.items() if key != "content"}
        for status, answer in described["responses"].items()
    }
    return {
        **described,
        "operationId": f"{described['operationId']}_head",
        "summary": f"{described['summary']}: the head of the answer alone",
        "responses": answers,
    }
