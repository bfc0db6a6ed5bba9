"""Which part of an epoch a stream gives: its share among ranks and workers, and where it goes on.

An epoch is a row of *units*, each a few batches that are read together. A share takes every
``count``-th unit, so that shares of shares are shares again, and their union is the epoch.
"""

from dataclasses import dataclass, replace
from typing import Final

from spinezarr.errors import UsageError

__all__ = ["USE_A_SAMPLER", "BatchGroups", "Partition", "require_whole_epoch"]

USE_A_SAMPLER: Final = (
    "Give the data loader a sampler, such as torch.utils.data.DistributedSampler, to share samples."
)
"""What to do instead where samples are asked for by number."""


@dataclass(frozen=True, slots=True)
class BatchGroups:
    """How the batches of an epoch lie in units.

    Units have :attr:`batches_per_group` batches as long as every rank gets a whole one. The batches
    after these are one last round of shorter units, equally long, one for each rank. So all ranks
    get equally many batches, and fewer batches than there are ranks are dropped at the end.

    Examples
    --------
    >>> units = BatchGroups(n_batches=11, batches_per_group=2, ranks=4)
    >>> [list(units.batches(unit)) for unit in range(units.n_units)]
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    >>> units = BatchGroups(n_batches=13, batches_per_group=2, ranks=4)
    >>> [list(units.batches(unit)) for unit in range(4, units.n_units)]
    [[8], [9], [10], [11]]
    """

    n_batches: int
    """Batches of the epoch, with those that are dropped."""
    batches_per_group: int
    """Batches of a whole unit."""
    ranks: int = 1
    """Shares that get equally many batches."""

    @property
    def n_units(self) -> int:
        """Units of the epoch; a multiple of :attr:`ranks`."""
        return self._n_whole + (self.ranks if self._short_batches else 0)

    def batches(self, unit: int) -> range:
        """Return the numbers, in the epoch, of the batches of one unit."""
        further = unit - self._n_whole
        if further < 0:
            return range(unit * self.batches_per_group, (unit + 1) * self.batches_per_group)
        start = self._n_whole * self.batches_per_group + further * self._short_batches
        return range(start, start + self._short_batches)

    @property
    def _n_whole(self) -> int:
        return self.n_batches // (self.batches_per_group * self.ranks) * self.ranks

    @property
    def _short_batches(self) -> int:
        """Batches of each unit of the last round."""
        return (self.n_batches - self._n_whole * self.batches_per_group) // self.ranks


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of an epoch: of the units from ``done`` on, number ``index``, then every ``count``-th.

    What stands here does not depend on how long the epoch is.
    """

    index: int = 0
    count: int = 1
    ranks: int = 1
    """Shares that the epoch is cut for, so that they get equally many batches."""
    done: int = 0
    """Units of the epoch that all shares have given before."""
    skip: int = 0
    """Batches of this share's first unit that it has given before."""

    def split(self, index: int, count: int, *, even: bool) -> "Partition":
        """Return one of ``count`` shares of this one.

        Raises
        ------
        UsageError
            If there is no such share, or equal ones are asked for of what is not the whole epoch.
        """
        if count < 1 or not 0 <= index < count:
            raise UsageError(f"share {index} of {count}: must lie between 0 and {count - 1}.")
        if even and self.count > 1:
            raise UsageError("even shares: split the whole stream by ranks first, then by workers.")
        if even and count > 1 and (self.done or self.skip):
            raise UsageError(
                "even shares of a stream that goes on in the middle of an epoch: split it first, "
                "then resume."
            )
        return replace(
            self,
            index=self.index + index * self.count,
            count=self.count * count,
            ranks=count if even else self.ranks,
            skip=0 if index else self.skip,
        )

    def units(self, epoch: BatchGroups) -> range:
        """Return the numbers of the units to give."""
        return range(self.done, epoch.n_units)[self.index :: self.count]

    def n_batches(self, epoch: BatchGroups) -> int:
        """Return the number of batches to give."""
        units = self.units(epoch)
        if not units:
            return 0
        whole = (len(units) - 1) * epoch.batches_per_group  # only the last unit can be shorter
        return whole + len(epoch.batches(units[-1])) - self.skip

    def after(self, n_batches: int, epoch: BatchGroups) -> "Partition":
        """Return what is left when so many further batches have been given."""
        units, skip = divmod(self.skip + n_batches, epoch.batches_per_group)
        done = self.done + units * self.count
        if skip and skip == len(epoch.batches(done + self.index)):  # a short one, and so the last
            done, skip = done + self.count, 0
        return replace(self, done=done, skip=skip)


def require_whole_epoch(share: Partition, taker: str, instead: str) -> None:
    """Refuse a share of an epoch, or the rest of one, where the whole epoch would be given.

    Raises
    ------
    UsageError
        If it is one.
    """
    if share != Partition():
        raise UsageError(
            f"{taker} gives whole epochs, and takes no stream that was shared (shard) or resumed. "
            f"{instead}"
        )
