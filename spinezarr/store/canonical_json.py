"""How is a value written as text, so that equal values give the same text in every version?"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

__all__ = ["canonical_json"]


def canonical_json(value: object) -> str:
    """Return a value as JSON for a hash; it cannot be read back.

    Fields of pydantic models and dataclasses are sorted by name. A field that holds its default is
    left out, so that a new field with a default does not change the text. The order of mappings and
    sequences counts.

    Parameters
    ----------
    value
        Pydantic models, dataclasses, mappings with text keys, sequences, sets, compiled patterns
        and plain values, nested in any way.

    Raises
    ------
    TypeError
        If the value holds something else.

    Examples
    --------
    >>> canonical_json(("a", {"key": 1.5}, None))
    '["a",{"":[["key",1.5]]},null]'
    """
    return json.dumps(_to_plain(value), separators=(",", ":"), sort_keys=True, allow_nan=False)


def _to_plain(value: object) -> Any:  # noqa: ANN401
    """Return a value made of types that JSON has."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {"": [[_to_plain(key), _to_plain(item)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_to_plain(item) for item in value), key=json.dumps)
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    kind: Any = type(value)
    return {
        name: _to_plain(getattr(value, name))
        for name, default in _field_defaults(kind).items()
        if getattr(value, name) != default
    }


@cache
def _field_defaults(kind: type) -> dict[str, Any]:
    """Return the default of each field of a model or dataclass; ``MISSING`` if it has none."""
    if issubclass(kind, BaseModel):
        return {
            name: MISSING if info.is_required() else info.get_default(call_default_factory=True)
            for name, info in kind.model_fields.items()
        }
    if is_dataclass(kind):
        return {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(kind)
        }
    raise TypeError(f"{kind.__name__} has no canonical JSON")
