"""How is a YAML file of a user read, so that every mistake is reported with file, line and key?"""

import datetime as dt
import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from spinezarr.errors import UsageError
from spinezarr.regular_file import read_regular_file
from spinezarr.text import MultilineText, similar_names, to_nfc, to_printable

__all__ = ["load_strict_yaml", "validation_message"]

Model = TypeVar("Model", bound=BaseModel)
Problems = Iterable[tuple[tuple[str | int, ...], str]]
"""Pairs of a key's path and the problem with its value."""

_MERGE_KEY = "tag:yaml.org,2002:merge"
_WRONG_SCALAR = (ValueError, LookupError, AttributeError)
"""Errors of PyYAML for scalars such as ``2020-13-45``, ``!!bool x`` and ``!!timestamp x``."""
_NULL = "tag:yaml.org,2002:null"
_TEXT_KEYS = {"tag:yaml.org,2002:str", _MERGE_KEY}
_MAX_BYTES: Final = 128 << 10
"""Largest file in bytes: enough for a catalog of 600 datasets. The longest shipped recipe has 7
kB."""
_MAX_NODES: Final = 10_000
"""Largest number of keys, values and lists. The largest shipped recipe has 230."""
_MAX_CHARACTERS: Final = 256 << 10
"""Largest number of characters of all texts, with those that aliases repeat."""
_MAX_TEXT_LENGTH: Final = 4_000
_MAX_DEPTH: Final = 32
_MAX_NUMBER: Final = 2**53
"""Largest magnitude of a number; a float holds every integer up to it."""
_MAX_LINES: Final = 20
_MAX_SHOWN: Final = 200
_BREAKS: Final = str.maketrans("", "", "\t\n\r\x85")


class _FileError(Exception):
    """A line of a YAML file is wrong, or exceeds a limit."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on the size of a file.

    An alias counts as much as the node it repeats, so a few lines cannot expand to a billion
    values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = self._characters = 0
        self._costs: dict[str, tuple[int, int]] = {}
        """Nodes and characters of each node with an anchor, by the anchor."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        line = _line_of(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._costs:
                raise _FileError(line, f"{event.anchor!r} contains itself")
            self._add(line, *self._costs.get(event.anchor or "", (0, 0)))
            return super().compose_node(parent, index)
        counts_before = (self._nodes, self._characters)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _FileError(line, f"is nested too deeply, expected at most {_MAX_DEPTH} levels")
        value = event.value if isinstance(event, yaml.ScalarEvent) else ""
        self._add(line, 1, len(value))
        _check_text(line, value)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._costs[event.anchor] = (
                self._nodes - counts_before[0],
                self._characters - counts_before[1],
            )
        return node

    def _add(self, line: int, nodes: int, characters: int) -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > _MAX_NODES or self._characters > _MAX_CHARACTERS:
            raise _FileError(
                line,
                f"holds more than {_MAX_NODES} keys and values or {_MAX_CHARACTERS} characters, "
                "with the nodes that its aliases repeat",
            )


def _check_text(line: int, text: str) -> None:
    if len(text) > _MAX_TEXT_LENGTH:
        raise _FileError(
            line, f"holds a text of {len(text)} characters, expected at most {_MAX_TEXT_LENGTH}"
        )
    unbroken = text.translate(_BREAKS)
    if to_printable(unbroken, longest=None) != unbroken:
        raise _FileError(
            line,
            f"holds control characters, {to_printable(text)[:_MAX_SHOWN]!r}; expected printable "
            "text",
        )


def _bounded_number(read: Callable[[Any, yaml.ScalarNode], float]) -> Any:  # noqa: ANN401
    def bounded(loader: _Loader, node: yaml.ScalarNode) -> float:
        number = read(loader, node)
        if not abs(number) <= _MAX_NUMBER:
            raise _FileError(
                _line_of(node),
                f"holds the number {node.value[:_MAX_SHOWN]}, expected a magnitude of at most "
                f"{_MAX_NUMBER}",
            )
        return number

    return bounded


for _kind in ("int", "float"):
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}",
        _bounded_number(getattr(yaml.SafeLoader, f"construct_yaml_{_kind}")),
    )


def load_strict_yaml(
    path: Traversable,
    model: type[Model],
    error: type[UsageError],
    *,
    names_only: bool = False,
    check: Callable[[Model], Problems] | None = None,
) -> Model:
    """Read ``path`` with PyYAML's safe loader into ``model``.

    Parameters
    ----------
    path
        The YAML file: a regular file of at most 128 KiB.
    model
        Model that the file must match.
    error
        Class of the error to raise. Its message has one line for each mistake.
    names_only
        Whether the texts of the file are compared with names but never used to open files. They
        are then converted to NFC.
    check
        Yields further problems of the loaded model; the first one is reported.

    Returns
    -------
    Model
        The file as ``model``.

    Raises
    ------
    UsageError
        An ``error``, if the file is unreadable, too large or not valid YAML, or if it has a
        repeated or unknown key or a wrong value.
    """
    text = _read(path, error)
    known_keys = ", ".join(model.model_fields)
    expected = f"expected at least some of the keys: {known_keys}. Give a file with them."
    root, json_text = _parsed(to_nfc(text) if names_only else text, path, error)
    if root is None or root.tag == _NULL:
        raise error(f"{path}: is empty; {expected}")
    if not isinstance(root, yaml.MappingNode):
        raise error(f"{path}, line {_line_of(root)}: found no keys; {expected}")
    try:
        # In JSON mode, lists become tuples, and everything else stays strict.
        loaded = model.model_validate_json(json_text)
    except ValidationError as problem:
        mistakes = problem.errors()
        lines = [_mistake_text(path, root, details, model) for details in mistakes[:_MAX_LINES]]
        if len(mistakes) > _MAX_LINES:
            lines.append(f"... and {len(mistakes) - _MAX_LINES} more mistakes.")
        raise error(MultilineText(*lines)) from problem
    for key, problem_text in check(loaded) if check is not None else ():
        raise error(f"{_location(path, root, key)} {problem_text}")
    return loaded


def _parsed(text: str, path: Traversable, error: type[UsageError]) -> tuple[yaml.Node | None, str]:
    """Return the root node of a file, which knows the lines, and its content as JSON."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, ""
        _check_keys(root)
        return root, json.dumps(
            loader.construct_document(root), default=_date_text, allow_nan=False
        )
    except yaml.YAMLError as problem:
        first, *rest = str(problem).splitlines()
        raise error(MultilineText(f"{path}: is not valid YAML: {first}", *rest)) from problem
    except _FileError as problem:
        raise error(f"{path}, line {problem.line}: {problem}.") from problem
    except _WRONG_SCALAR as problem:
        raise error(
            f"{path}: holds an invalid number, date or tagged value ({problem}). "
            "Put texts in quotes."
        ) from problem


def _read(path: Traversable, error: type[UsageError]) -> str:
    try:
        data = read_regular_file(path, _MAX_BYTES)
    except OSError as problem:
        raise error(
            f"{path}: cannot be read ({problem.strerror}). Give the path of a YAML file."
        ) from problem
    if len(data) > _MAX_BYTES:
        raise error(
            f"{path}: has more than {_MAX_BYTES} bytes, which is too large for such a file. "
            "Give another file, or split it."
        )
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not valid YAML: {problem}") from problem


def _date_text(value: object) -> str:
    """Return a date as text. Other values that JSON lacks come from tags, and are refused."""
    if isinstance(value, dt.date):
        return str(value)
    raise ValueError(f"a {type(value).__name__}")


def _check_keys(node: yaml.Node) -> None:
    """Refuse repeated keys, and keys that YAML does not read as text."""
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it
            if key.tag not in _TEXT_KEYS:
                raise _FileError(
                    _line_of(key),
                    f"YAML does not read the key {key.value!r} as text. Put it in quotes",
                )
            if to_nfc(key.value) in keys and key.tag != _MERGE_KEY:
                raise _FileError(_line_of(key), f"key {key.value!r} is given twice; keep one")
            keys.add(to_nfc(key.value))
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value)


def _line_of(item: yaml.Node | yaml.Event) -> int:
    return 0 if item.start_mark is None else item.start_mark.line + 1


def validation_message(details: ErrorDetails) -> str:
    """Return the message of a validator without the prefix that pydantic adds."""
    return details["msg"].removeprefix("Value error, ")


def _location(path: Traversable, root: yaml.Node, location: tuple[str | int, ...]) -> str:
    """Return file, line and key of a value, for messages."""
    node = root
    for part in location:
        child = _child(node, part)
        if child is not None:
            node = child
    line = _line_of(node)
    return f"{path}, {', '.join(filter(None, (f'line {line}', '.'.join(map(str, location)))))}"


def _mistake_text(
    path: Traversable, root: yaml.Node, details: ErrorDetails, model: type[BaseModel]
) -> str:
    message = validation_message(details)
    if details["type"] == "extra_forbidden":
        message = "unknown key" + _suggest(model, details["loc"])
    elif details["type"] == "missing":
        message = "this key is missing"
    elif details["type"] != "value_error":
        value_text = repr(details["input"])
        if len(value_text) > _MAX_SHOWN:
            value_text = f"{value_text[:_MAX_SHOWN]}..."
        message = f"{message}, found {value_text}"
    return f"{_location(path, root, details['loc'])}: {message}."


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    """Return the node of a key or of a list item, or None."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value if isinstance(value, yaml.CollectionNode) else key
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item: yaml.Node = node.value[part]
        return item
    return None


def _suggest(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """Return a hint with the known keys of the innermost model that ``location`` leads to."""
    schema = _schema(model)
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(schema, node)
        node = (
            node.get("properties", {}).get(part)
            or node.get("additionalProperties")
            or node.get("items")
            or {}
        )
    known_keys = sorted(_resolve(schema, node).get("properties", {}))
    close_keys = similar_names(str(location[-1]), known_keys)
    hint = f"; did you mean {close_keys[0]!r}?" if close_keys else ""
    return f"{hint} (known keys: {', '.join(known_keys)})" if known_keys else hint


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            definition: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            return definition
    return node
