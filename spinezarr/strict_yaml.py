"""YAML files read strictly: every mistake is reported with its file, line and key."""

import difflib
import json
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from spinezarr.errors import UsageError

__all__ = ["StrictModel", "load_strict_yaml", "place_of_key", "reason_of"]

Model = TypeVar("Model", bound=BaseModel)

_MERGE_KEY = "tag:yaml.org,2002:merge"
_WRONG_SCALAR = (ValueError, LookupError, AttributeError)
"""What PyYAML raises for scalars such as ``2020-13-45``, ``!!bool x`` and ``!!timestamp x``."""
_TEXT_KEYS = {"tag:yaml.org,2002:str", _MERGE_KEY}


class StrictModel(BaseModel):
    """Base of all models at the edge: strict types, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def load_strict_yaml(path: Traversable, model: type[Model], error: type[UsageError]) -> Model:
    """Read ``path`` with ``yaml.safe_load`` into ``model``.

    Parameters
    ----------
    path
        The YAML file.
    model
        What it must hold.
    error
        Raised for anything wrong, with one line for each mistake.

    Raises
    ------
    UsageError
        As ``error``: unreadable file, broken YAML, repeated or unknown key, wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}).") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise error(f"{path}: is not valid YAML: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{path}: is nested too deeply.") from problem
    except _WRONG_SCALAR as problem:
        raise error(
            f"{path}: holds a number, date or tagged value that is none ({problem}). "
            "Put texts in quotes."
        ) from problem
    if root is None or data is None:
        known = ", ".join(model.model_fields)
        raise error(f"{path}: is empty; expected at least some of the keys: {known}.")
    try:
        _check_keys(root, path, error)
        # JSON mode: YAML lists become tuples, all else stays strict.
        return model.model_validate_json(json.dumps(data, default=str))
    except RecursionError as problem:
        raise error(f"{path}: is nested without end.") from problem
    except ValidationError as problem:
        lines = [_describe(path, root, details, model) for details in problem.errors()]
        raise error("\n".join(lines)) from problem


def _check_keys(node: yaml.Node, path: Traversable, error: type[UsageError]) -> None:
    """Refuse keys given twice, and keys that YAML reads as something else than their text."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in _TEXT_KEYS:
                raise error(
                    f"{path}, line {line}: YAML does not read the key {key.value!r} as text. "
                    "Put it in quotes."
                )
            if key.value in seen and key.tag != _MERGE_KEY:
                raise error(f"{path}, line {line}: key {key.value!r} is given twice; keep one.")
            seen.add(key.value)
            _check_keys(value, path, error)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path, error)


def reason_of(details: ErrorDetails) -> str:
    """Return what a validator of ours says, without pydantic's words before it."""
    return details["msg"].removeprefix("Value error, ")


def place_of_key(path: Traversable, location: tuple[str | int, ...]) -> str:
    """Return file, line and key of a value in a YAML file that has loaded."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return _place(path, root, location)


def _place(path: Traversable, root: yaml.Node | None, location: tuple[str | int, ...]) -> str:
    if root is None:
        return str(path)
    node = root
    for part in location:
        child = _child(node, part)
        if child is not None:
            node = child
    line = node.start_mark.line + 1
    return f"{path}, {', '.join(filter(None, (f'line {line}', '.'.join(map(str, location)))))}"


def _describe(
    path: Traversable, root: yaml.Node, details: ErrorDetails, model: type[BaseModel]
) -> str:
    message = reason_of(details)
    if details["type"] == "extra_forbidden":
        message = "unknown key" + _suggest(model, details["loc"])
    elif details["type"] == "missing":
        message = "this key is missing"
    elif details["type"] != "value_error":
        message = f"{message}, found {details['input']!r}"
    return f"{_place(path, root, details['loc'])}: {message}."


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    """Return the node of a key (for its line) or of a list item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value if isinstance(value, yaml.CollectionNode) else key
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item: yaml.Node = node.value[part]
        return item
    return None


def _suggest(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """Name the known keys of the innermost model that ``location`` passes through."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(schema, node)
        node = (
            node.get("properties", {}).get(part)
            or node.get("additionalProperties")
            or node.get("items")
            or {}
        )
    known = sorted(_resolve(schema, node).get("properties", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known keys: {', '.join(known)})" if known else hint


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            return found
    return node
