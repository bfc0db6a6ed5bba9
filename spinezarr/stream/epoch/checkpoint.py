"""What a stream says of itself, so that it can go on elsewhere exactly where it stopped."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, ValidationError

from spinezarr.errors import UsageError

__all__ = ["Checkpoint", "describe_fields", "partition_count"]

_LONGEST_LIST: Final = 8
"""A longer one is described by its hash."""


class Checkpoint(BaseModel):
    """A place in an epoch of a stream."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    epoch: NonNegativeInt
    done: NonNegativeInt
    """Units of the epoch that came before, in all shares."""
    skip: NonNegativeInt
    """Batches of the next unit that came before."""
    stream: dict[str, JsonValue]
    """All that the sequence depends on, but the epoch."""

    @classmethod
    def parse(cls, state: Mapping[str, Any], stream: Mapping[str, JsonValue]) -> "Checkpoint":
        """Check what ``state_dict()`` returned against the stream that is to go on.

        Raises
        ------
        UsageError
            If it is no state, or that of another stream; names what differs.
        """
        try:
            found = cls.model_validate(dict(state))
        except (ValidationError, TypeError, ValueError) as problem:
            raise UsageError(
                "this is no state of a stream. Give what state_dict() returned."
            ) from problem
        differing = [
            f"{name} is {found.stream.get(name)} there and {stream.get(name)} here"
            for name in sorted({*stream, *found.stream})
            if found.stream.get(name) != stream.get(name)
        ]
        if differing:
            raise UsageError(
                f"this is the state of another stream: {'; '.join(differing)}. "
                "Make the stream with the same scans and options, or start a new epoch."
            )
        return found


def partition_count(state: Mapping[str, Any]) -> object:
    """Return among how many shares the stream of a state was split; None if it is no state."""
    stream = state.get("stream")
    return stream.get("partitions") if isinstance(stream, Mapping) else None


def describe_fields(value: Any, leave_out: Iterable[str] = ()) -> dict[str, JsonValue]:  # noqa: ANN401  any dataclass
    """Describe the public fields of a dataclass: small values; arrays and long lists by a hash."""
    return {
        field.name: _describe(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in leave_out and not field.name.startswith("_")
    }


def _describe(value: Any) -> JsonValue:  # noqa: ANN401  any field
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, np.ndarray) and value.size > _LONGEST_LIST and value.dtype != object:
        return f"{value.shape} {value.dtype}, {_digest(np.ascontiguousarray(value).data)}"
    if isinstance(value, np.generic | np.ndarray):
        return _describe(value.tolist())
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, tuple | list):
        return _short([_describe(item) for item in value])
    if dataclasses.is_dataclass(value):
        return describe_fields(value)
    raise TypeError(f"a stream's state cannot describe {type(value).__name__}")


def _short(items: list[JsonValue]) -> JsonValue:
    text = json.dumps(items)
    if len(items) <= _LONGEST_LIST and len(text) <= 10 * _LONGEST_LIST:
        return items
    return f"{len(items)} values, {_digest(text.encode())}"


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
