"""What does a stream save, so that another process can continue exactly where it stopped?

A checkpoint records the finished groups, the number of batches already given of the next group, and
a description of everything that the sequence of batches depends on.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
from pydantic import JsonValue, NonNegativeInt, ValidationError

from spinezarr.errors import UsageError
from spinezarr.stream.epoch.partition import BatchGroups, Partition
from spinezarr.strict_model import StrictModel

__all__ = ["Checkpoint", "Progress", "describe_fields", "partition_count"]

_MAX_LISTED_ITEMS: Final = 8
"""Largest number of items of a list that is described by its items; others by their hash."""


class Checkpoint(StrictModel):
    """A position in an epoch of a stream."""

    epoch: NonNegativeInt
    groups_done: NonNegativeInt
    """Number of groups of the epoch that all partitions together have given."""
    batches_done: NonNegativeInt
    """Number of batches of the next group that were given."""
    stream: dict[str, JsonValue]
    """Everything that the sequence depends on, except the epoch."""

    @classmethod
    def parse(cls, state: Mapping[str, Any], stream: Mapping[str, JsonValue]) -> "Checkpoint":
        """Parse the result of ``state_dict()``, and check that it belongs to a stream.

        Parameters
        ----------
        state
            The result of ``state_dict()``.
        stream
            Description of the stream to continue.

        Raises
        ------
        UsageError
            If it is not a checkpoint, or belongs to another stream. The message names what differs.
        """
        try:
            checkpoint = cls.model_validate(dict(state))
        except (ValidationError, TypeError, ValueError) as problem:
            raise UsageError(
                "this is not the state of a stream. Give what state_dict() returned."
            ) from problem
        differing = [
            f"{name} is {checkpoint.stream.get(name)} there and {stream.get(name)} here"
            for name in sorted({*stream, *checkpoint.stream})
            if checkpoint.stream.get(name) != stream.get(name)
        ]
        if differing:
            raise UsageError(
                f"this is the state of another stream: {'; '.join(differing)}. "
                "Make the stream with the same scans and options, or start a new epoch."
            )
        return checkpoint


class Progress:
    """Counts the batches that a stream has given, and makes checkpoints.

    Parameters
    ----------
    epoch
        Number of the epoch.
    partition
        The part of the epoch that the stream gives.
    groups
        How the batches of the epoch lie in groups.
    describe
        Returns a description of the stream. It is called once, with the first checkpoint.

    Attributes
    ----------
    n_given
        Number of batches that were given so far.
    """

    def __init__(
        self,
        epoch: int,
        partition: Partition,
        groups: BatchGroups,
        describe: Callable[[], dict[str, JsonValue]],
    ) -> None:
        self.n_given = 0
        self._epoch = epoch
        self._partition = partition
        self._groups = groups
        self._describe = describe

    def state_dict(self) -> dict[str, JsonValue]:
        """Return a checkpoint for :meth:`spinezarr.stream.epoch.stream.PatchStream.resume`.

        Returns
        -------
        dict
            Small values, which can be written as JSON and read again without a change.
        """
        rest = self._partition.after(self.n_given, self._groups)
        return Checkpoint(
            epoch=self._epoch,
            groups_done=rest.groups_done,
            batches_done=rest.batches_done,
            stream=self._description,
        ).model_dump()

    @cached_property
    def _description(self) -> dict[str, JsonValue]:
        return self._describe()


def partition_count(state: Mapping[str, Any]) -> object:
    """Return the number of partitions of a checkpoint's stream; None if it is no checkpoint."""
    stream = state.get("stream")
    return stream.get("partitions") if isinstance(stream, Mapping) else None


def describe_fields(value: Any, leave_out: Iterable[str] = ()) -> dict[str, JsonValue]:  # noqa: ANN401  any dataclass
    """Describe the public fields of a dataclass by JSON values.

    Arrays and long lists are described by a hash.
    """
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
    if isinstance(value, np.ndarray) and value.size > _MAX_LISTED_ITEMS and value.dtype != object:
        return f"{value.shape} {value.dtype}, {_digest(np.ascontiguousarray(value).data)}"
    if isinstance(value, np.generic | np.ndarray):
        return _describe(value.tolist())
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, tuple | list):
        return _shorten([_describe(item) for item in value])
    if dataclasses.is_dataclass(value):
        return describe_fields(value)
    raise TypeError(f"a checkpoint cannot describe {type(value).__name__}")


def _shorten(items: list[JsonValue]) -> JsonValue:
    text = json.dumps(items)
    if len(items) <= _MAX_LISTED_ITEMS and len(text) <= 10 * _MAX_LISTED_ITEMS:
        return items
    return f"{len(items)} values, {_digest(text.encode())}"


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
