"""How do random transforms become pure functions of a sample?

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

_TRANSFORMS: Final = 1
"""First word of the spawn key. It keeps these draws apart from others for the same sample."""
_WORD: Final = 1 << 32
_TORCH: Final = torch.default_generator
_SEEDED: Final = ProcessLock(reentrant=True)
"""Lock that is held while generators are seeded for a sample, because global ones serve one thread
at a time."""


class Randomness:
    """The generators that a transform draws from.

    Parameters
    ----------
    transform
        A callable, or a container of callables. Objects with ``set_random_state`` and ``R``, as
        those of MONAI, are found in lists, tuples, mappings, and the attributes of callables.
    shared
        Classes with a generator ``R`` of their own. All their objects that nobody has seeded draw
        from it, such as objects in the closure of a function, which are not found.
    """

    # MONAI's DataLoader seeds objects that it finds in the __dict__ of a dataset's attributes, so
    # this has none.
    __slots__ = ("_private", "_shared", "_transform")

    def __init__(self, transform: object, shared: Sequence[type] = ()) -> None:
        self._transform = transform
        self._shared = [(kind, np.random.RandomState()) for kind in shared]
        self._private = _private_states(transform)

    def is_of(self, transform: object) -> bool:
        """Return whether these are the generators of this transform."""
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
    # Seeding an existing state is twenty times as fast as making a new one.
    state.seed(word)
    for owner in owners:
        owner.R = state


def _words(seed: int, epoch: int, index: int, n: int) -> list[int]:
    # Two 32-bit words each: numpy splits larger numbers itself, and keys could then coincide.
    key = (_TRANSFORMS, *divmod(epoch, _WORD), *divmod(index, _WORD))
    found: list[int] = np.random.SeedSequence(seed, spawn_key=key).generate_state(n).tolist()
    return found


_Private = list[tuple[list[Any], np.random.RandomState]]
"""Objects that share a generator, and the generator that they are given."""


def _private_states(transform: object) -> list[_Private]:
    """Return the objects that hold generators, grouped by the seed that they get.

    One call of ``set_random_state`` may give equal generators to several objects, such as a
    transform and one that it wraps. These must draw the same numbers, so they get one seed.
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
    """Return the objects that hold a generator; outer objects come before those inside them."""
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
