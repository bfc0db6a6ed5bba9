"""How do random transforms become pure functions of the number of a sample?

Transforms draw from several generators. Those of MONAI draw from a ``numpy.random.RandomState`` of
each transform, those of TorchIO from torch's global generator, and functions of users from the
global generators of NumPy and Python. A data loader seeds these for each worker, or not at all, so
samples would repeat or depend on the number of workers. This module seeds all of them for each
sample. Afterward, the global generators get back their states.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, Final

import numpy as np
import torch

from spinezarr.forks import ProcessLock

__all__ = ["Randomness"]

_KEY_PREFIX: Final = 1
"""First word of the spawn key. It separates these draws from others for the same sample."""
_WORD_VALUES: Final = 1 << 32
_TORCH_GENERATOR: Final = torch.default_generator
_LOCK: Final = ProcessLock(reentrant=True)
"""Lock that is held while generators are seeded for a sample.

Global generators can be seeded for only one thread at a time."""


class Randomness:
    """The generators that a transform draws from.

    Parameters
    ----------
    transform
        A callable, or a container of callables. Objects with ``set_random_state`` and ``R``, as
        those of MONAI, are found in lists, tuples, mappings, and the attributes of callables.
    shared
        Classes with a class attribute ``R``, a generator. All their unseeded objects draw from it,
        such as objects in the closure of a function, which are not found.
    """

    # MONAI's DataLoader seeds objects that it finds in the __dict__ of a dataset's attributes. So
    # this class has no __dict__.
    __slots__ = ("_private", "_shared", "_transform")

    def __init__(self, transform: object, shared: Sequence[type] = ()) -> None:
        self._transform = transform
        self._shared = [(kind, np.random.RandomState()) for kind in shared]
        self._private = _private_states(transform)

    def is_of(self, transform: object) -> bool:
        """Whether these are the generators of a transform."""
        return self._transform is transform

    @contextmanager
    def of_sample(self, seed: int, epoch: int, index: int) -> Iterator[None]:
        """Seed all generators for one sample, as long as the context lasts.

        Only one thread of a process is in such a context at a time. If other threads draw from
        global generators meanwhile, they draw from those that are seeded here. If they seed global
        generators, they change the sample. The worker threads of MONAI's ThreadDataLoader do so
        once, when they start, so one such thread is safe and several are not.
        """
        words = iter(_words(seed, epoch, index, 3 + len(self._shared) + len(self._private)))
        with _LOCK:
            states = (
                random.getstate(),
                np.random.get_state(),  # noqa: NPY002
                _TORCH_GENERATOR.get_state(),
            )
            class_states: list[tuple[Any, Any]] = [
                (kind, vars(kind)["R"]) for kind, _ in self._shared
            ]
            try:
                random.seed(next(words))
                np.random.seed(next(words))  # noqa: NPY002  functions of users draw from it
                _TORCH_GENERATOR.manual_seed(next(words))
                for owner, state in self._shared:
                    _seed(state, next(words), [owner])
                for group in self._private:
                    word = next(words)
                    for owners, state in group:
                        _seed(state, word, owners)
                yield
            finally:
                for kind, state in class_states:
                    kind.R = state
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002
                _TORCH_GENERATOR.set_state(states[2])


def _seed(state: np.random.RandomState, word: int, owners: Iterable[Any]) -> None:
    # Seeding an existing state is twenty times as fast as making a new one.
    state.seed(word)
    for owner in owners:
        owner.R = state


def _words(seed: int, epoch: int, index: int, n: int) -> list[int]:
    # Each number becomes two 32-bit words. NumPy would split only the numbers that need it, and
    # keys could then coincide.
    key = (_KEY_PREFIX, *divmod(epoch, _WORD_VALUES), *divmod(index, _WORD_VALUES))
    words: list[int] = np.random.SeedSequence(seed, spawn_key=key).generate_state(n).tolist()
    return words


_Private = list[tuple[list[Any], np.random.RandomState]]
"""Groups of objects that share a generator, each with the generator that it gets."""


def _private_states(transform: object) -> list[_Private]:
    """Return the objects that hold generators, grouped by the seed that they get.

    One call of ``set_random_state`` may give equal generators to several objects, such as a
    transform and a transform that it wraps. These must draw the same numbers, so they get one seed.
    """
    holders = _generator_holders(transform)
    for holder in holders:
        vars(holder).pop("R", None)
    for n, holder in enumerate(holders):
        if "R" not in vars(holder):
            holder.set_random_state(seed=n)
    groups: dict[bytes, dict[int, list[Any]]] = {}
    for holder in holders:
        owners_by_id = groups.setdefault(holder.R.get_state()[1].tobytes(), {})
        owners_by_id.setdefault(id(holder.R), []).append(holder)
    return [
        [(owners, np.random.RandomState()) for owners in owners_by_id.values()]
        for owners_by_id in groups.values()
    ]


def _generator_holders(root: object) -> list[Any]:
    """Return the objects that hold a generator; outer objects come before those inside them."""
    holders = list[Any]()
    visited = set[int]()
    pending: list[object] = [root]
    while pending:
        item = pending.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if hasattr(type(item), "set_random_state") and hasattr(item, "R"):
            holders.append(item)
        pending.extend(reversed(_parts(item)))
    return holders


def _parts(item: object) -> list[object]:
    """Return the parts of a container or callable that may hold a generator."""
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__]
    if callable(item) and not isinstance(item, type) and hasattr(item, "__dict__"):
        return list(vars(item).values())
    return []
