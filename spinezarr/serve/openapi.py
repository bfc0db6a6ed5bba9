"""How do programs read the description of a server?

They read an OpenAPI document, which is made from the operations and their models.

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
from spinezarr.serve.http import JSON, TEXT
from spinezarr.serve.operations import OPERATIONS, PARAMETERS, Content, Operation
from spinezarr.serve.query import parameters_of

__all__ = ["document"]

_TITLE: Final = "spinezarr"
_DESCRIPTION: Final = (
    "The server offers stores over HTTP: bytes for every Zarr client, patches for trainers, and "
    "JSON for pages."
)
_NAME: Final = re.compile(r"{(\w+)}")
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token is the password."},
}
_REF: Final = "#/components/schemas/{model}"


def document(*, has_tokens: bool) -> dict[str, Any]:
    """Return the OpenAPI document.

    Parameters
    ----------
    has_tokens
        Whether the server requires tokens.
    """
    request_models = dict.fromkeys(op.body for op in OPERATIONS if op.body is not None)
    response_models = dict.fromkeys(
        content.model
        for op in OPERATIONS
        for content in op.answers.values()
        if content.model is not None
    )
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in request_models),
        *((model, "serialization") for model in response_models),
    ]
    references, definitions = models_json_schema(models, ref_template=_REF)
    schemas = {model: references[model, mode] for model, mode in models}
    paths: dict[str, dict[str, Any]] = {}
    for op in OPERATIONS:
        operation = _operation(op, schemas, has_tokens=has_tokens)
        path_item = paths.setdefault(op.path, {})
        path_item[op.method.lower()] = operation
        if op.method == "GET":
            path_item["head"] = _head_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": package_version(), "description": _DESCRIPTION},
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
    operation: dict[str, Any] = {
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
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schemas[op.body]}},
        }
    if has_tokens:
        operation["security"] = [] if op.is_open else [{name: []} for name in _SCHEMES]
    return operation


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
        required = op.query.model_json_schema().get("required", ())
        for name, field in parameters_of(op.query).items():
            schema = {key: value for key, value in field.items() if key != "description"}
            yield {
                "name": name,
                "in": "query",
                "required": name in required,
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
    response: dict[str, Any] = {"description": content.text}
    if content.headers:
        response["headers"] = {
            name: {"required": True, "schema": {"type": "string"}} for name in content.headers
        }
    if content.types:
        text_content = {"schema": {"type": "string"}}
        json_content = {} if content.model is None else {"schema": schemas[content.model]}
        response["content"] = {
            kind: text_content if kind == TEXT else json_content for kind in content.types
        }
    return response


def _head_operation(operation: Mapping[str, Any]) -> dict[str, Any]:
    responses = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in operation["responses"].items()
    }
    return {
        **operation,
        "operationId": f"{operation['operationId']}_head",
        "summary": f"{operation['summary']}: only the headers of the answer",
        "responses": responses,
    }
