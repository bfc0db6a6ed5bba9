"""Random transforms as pure functions of a sample, whatever they draw from.

Libraries of transforms draw from a ``numpy.random.RandomState`` of each transform (MONAI), from
torch's global generator (TorchIO), and functions of users from those of NumPy and Python. A data
loader seeds these by worker, or not at all, so that samples depend on the number of workers, or
repeat. Here all of them are seeded for each sample, and the global ones put back afterwards.
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

_TRANSFORMS: Final = 1
"""First word of the spawn key: apart from what else is drawn for a sample."""
_WORD: Final = 1 << 32
_TORCH: Final = torch.default_generator
_SEEDED: Final = ProcessLock(reentrant=True)
"""Held while generators are seeded for a sample: the global ones serve one thread at a time."""


class Randomness:
    """What a transform draws from.

    Parameters
    ----------
    transform
        A callable, or a container of several. Objects that have ``set_random_state`` and ``R``, as
        those of MONAI, are found in lists, tuples, mappings, and the attributes of callables.
    shared
        Classes whose ``R`` all objects share that nobody has seeded. What is out of sight, in the
        closure of a function say, draws from it.
    """

    # No __dict__: MONAI's DataLoader seeds whatever it finds in that of a dataset's attributes.
    __slots__ = ("_private", "_shared", "_transform")

    def __init__(self, transform: object, shared: Sequence[type] = ()) -> None:
        self._transform = transform
        self._shared = [(kind, np.random.RandomState()) for kind in shared]
        self._private = _private_states(transform)

    def is_of(self, transform: object) -> bool:
        """Whether it is that of this very transform."""
        return self._transform is transform

    @contextmanager
    def of_sample(self, seed: int, epoch: int, index: int) -> Iterator[None]:
        """Seed everything for one sample, as long as the context lasts.

        One thread of a process is inside such a context at a time. Other threads that draw from
        global generators meanwhile draw from what is seeded here. Those that seed them change the
        sample: worker threads of MONAI's ThreadDataLoader do so once, while they start, so that one
        such thread is safe and several are not.
        """
        words = iter(_words(seed, epoch, index, 3 + len(self._shared) + len(self._private)))
        with _SEEDED:
            before = random.getstate(), np.random.get_state(), _TORCH.get_state()  # noqa: NPY002
            kinds: list[tuple[Any, Any]] = [(kind, vars(kind)["R"]) for kind, _ in self._shared]
            try:
                random.seed(next(words))
                np.random.seed(next(words))  # noqa: NPY002  what functions draw from
                _TORCH.manual_seed(next(words))
                for owner, state in self._shared:
                    _give(state, next(words), [owner])
                for in_step in self._private:
                    word = next(words)
                    for owners, state in in_step:
                        _give(state, word, owners)
                yield
            finally:
                for kind, state in kinds:
                    kind.R = state
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002
                _TORCH.set_state(before[2])


def _give(state: np.random.RandomState, word: int, owners: Iterable[Any]) -> None:
    # A state of its own is seeded twenty times as fast as a new one is made.
    state.seed(word)
    for owner in owners:
        owner.R = state


def _words(seed: int, epoch: int, index: int, n: int) -> list[int]:
    # Two 32-bit words each: numpy splits larger numbers itself, and keys could then coincide.
    key = (_TRANSFORMS, *divmod(epoch, _WORD), *divmod(index, _WORD))
    found: list[int] = np.random.SeedSequence(seed, spawn_key=key).generate_state(n).tolist()
    return found


_Private = list[tuple[list[Any], np.random.RandomState]]
"""Objects that share a generator, and one that they are given."""


def _private_states(transform: object) -> list[_Private]:
    """Return the objects that hold generators, by the seed that they get.

    Objects to which one call of ``set_random_state`` gives equal generators draw the same numbers,
    such as a transform and one that it wraps: they get one seed, to stay in step.
    """
    outermost_first = _holders(transform)
    for holder in outermost_first:
        vars(holder).pop("R", None)
    for n, holder in enumerate(outermost_first):
        if "R" not in vars(holder):
            holder.set_random_state(seed=n)
    in_step: dict[bytes, dict[int, list[Any]]] = {}
    for holder in outermost_first:
        sharing = in_step.setdefault(holder.R.get_state()[1].tobytes(), {})
        sharing.setdefault(id(holder.R), []).append(holder)
    return [
        [(owners, np.random.RandomState()) for owners in sharing.values()]
        for sharing in in_step.values()
    ]


def _holders(root: object) -> list[Any]:
    """Find the objects that hold a generator; those that hold others come before these."""
    found = list[Any]()
    seen = set[int]()
    waiting: list[object] = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if hasattr(type(item), "set_random_state") and hasattr(item, "R"):
            found.append(item)
        waiting.extend(reversed(_parts(item)))
    return found


def _parts(item: object) -> list[object]:
    """Return what may hold a generator in a container or a callable."""
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
