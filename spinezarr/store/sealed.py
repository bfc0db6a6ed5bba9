"""How is metadata written as JSON that carries its own checksum, and read back within bounds?"""

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.sharding import crc32c
from spinezarr.strict_model import DeferredModel, StrictModel

__all__ = [
    "StoredAttributes",
    "StoredModel",
    "describe_value",
    "parse_json",
    "parse_model",
    "parse_sealed",
    "seal",
    "unseal",
]

Model = TypeVar("Model", bound=BaseModel)

_CHECKSUM = "metadata_crc32c"
"""Last attribute of every group: checksum of its ``zarr.json`` without this attribute."""
_SEAL: Final = f'"{_CHECKSUM}": "'.encode()
_MAX_UNCOUNTED_BYTES: Final = 1 << 20
"""Largest size of a JSON file whose values are not counted, in bytes."""
_MAX_VALUES: Final = 1 << 20
"""Largest number of values in a JSON file; the table and ledger of 100,000 scans have as many."""
_LOCATION_PARTS: Final = 4
"""Number of keys of a location that a message names, the innermost ones."""
_LOCATION_CHARACTERS: Final = 60
"""Number of characters of each of these keys that a message shows."""
_MAX_SHOWN_CHARACTERS: Final = 60
"""Number of characters of a damaged text that a message shows."""
_MAX_SHOWN_BITS: Final = 64
"""Number of bits of the largest damaged integer that a message shows."""


class StoredModel(DeferredModel):
    """Base of models of Zarr metadata: strict and frozen, but unknown keys are ignored."""


class StoredAttributes(StrictModel):
    """Base of models of attributes: strict, frozen, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(allow_inf_nan=False)


def seal(metadata: dict[str, Any]) -> bytes:
    """Return the metadata of a group as JSON that carries its own checksum."""
    checksum = f"{crc32c(_as_json(metadata)):08x}"
    attributes = {**metadata["attributes"], _CHECKSUM: checksum}
    return _as_json({**metadata, "attributes": attributes})


def unseal(data: bytes) -> dict[str, Any]:
    """Check and parse the result of :func:`seal`.

    Returns
    -------
    dict
        The metadata without the checksum; ``attributes`` is an object.

    Raises
    ------
    DamagedMetadataError
        If :func:`seal` did not make it, or it is damaged.
    """
    metadata = parse_json(_strip_checksum(data))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("attributes"), dict):
        raise DamagedMetadataError("other JSON", "a group with attributes")
    return metadata


def parse_sealed(data: bytes, model: type[Model]) -> Model:
    """Check the result of :func:`seal` and parse it as a model.

    Raises
    ------
    DamagedMetadataError
        If :func:`seal` did not make it, it is damaged, or it does not fit the model.
    """
    return parse_model(_strip_checksum(data), model)


def parse_model(content: bytes, model: type[Model]) -> Model:
    """Parse JSON without a checksum as a model.

    Raises
    ------
    DamagedMetadataError
        If it is not JSON or does not fit the model.
    """
    _refuse_many_values(content)
    try:
        return model.model_validate_json(content)
    except ValidationError as problem:
        raise _first_mistake(problem) from None


def _strip_checksum(data: bytes) -> bytes:
    """Check the checksum of sealed JSON and return the JSON without it."""
    _refuse_many_values(data)
    before, _, after = data.rpartition(_SEAL)
    expected, content = after[:8], before.removesuffix(b", ") + after[9:]
    found = f"{crc32c(content):08x}".encode()
    if not before or after[8:9] != b'"':
        raise DamagedMetadataError("JSON without its checksum", f"an attribute {_CHECKSUM}")
    if found != expected:
        raise DamagedMetadataError(f"crc32c {found.decode()}", f"crc32c {expected!r}")
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401
    """Parse JSON within bounds.

    Raises
    ------
    DamagedMetadataError
        If it is not JSON, has too many values, or contains NaN or infinity.
    """
    _refuse_many_values(content)
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as problem:
        raise DamagedMetadataError(f"other bytes ({problem})", "JSON") from None


def _refuse_many_values(data: bytes) -> None:
    """Refuse JSON that would need far more memory than it has bytes."""
    if len(data) <= _MAX_UNCOUNTED_BYTES:
        return
    n_values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > _MAX_VALUES:
        raise DamagedMetadataError(f"{n_values} values", f"at most {_MAX_VALUES}")


def _first_mistake(problem: ValidationError) -> DamagedMetadataError:
    """Return the error for the first value that does not fit a model."""
    first = problem.errors(include_url=False)[0]
    keys = [str(key)[:_LOCATION_CHARACTERS] for key in first["loc"] if not _is_pydantic_key(key)]
    location = ".".join(keys[-_LOCATION_PARTS:])
    mistake = first.get("ctx", {}).get("error")
    if isinstance(mistake, DamagedMetadataError):  # one of our validators raised it
        location = ".".join(filter(None, (location, mistake.location)))
        return DamagedMetadataError(mistake.found, mistake.expected, location)
    found = "no such key" if first["type"] == "missing" else describe_value(first["input"])
    rule = first["msg"].removeprefix("Input should be ")
    return DamagedMetadataError(found, "a value" if first["type"] == "missing" else rule, location)


def describe_value(value: object) -> str:
    """Return a short text for a value of a file, for a message."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} values"
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes) and len(value) > _MAX_SHOWN_CHARACTERS:
        return f"{value[:_MAX_SHOWN_CHARACTERS]!r}..."
    return repr(value)


def _is_pydantic_key(part: str | int) -> bool:
    """Whether pydantic added this part of a location; the file has no such key."""
    return isinstance(part, str) and (part == "[key]" or part.startswith("function-"))


def _as_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, allow_nan=False).encode()
