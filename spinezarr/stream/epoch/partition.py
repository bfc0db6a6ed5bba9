"""Which part of an epoch does a rank or a worker read, and where does it continue?

The batches of an epoch lie in *groups*: a group is a few batches that are read together. A
*partition* takes every ``count``-th group. So a partition of a partition is a partition again, and
the partitions of an epoch together give each of its batches once.
"""

from dataclasses import dataclass, replace
from typing import Final

from spinezarr.errors import UsageError

__all__ = ["USE_A_SAMPLER", "BatchGroups", "Partition", "require_whole_epoch"]

USE_A_SAMPLER: Final = (
    "Give the data loader a sampler, such as torch.utils.data.DistributedSampler, to divide "
    "samples among ranks."
)
"""Advice for loaders that request samples by their numbers."""


@dataclass(frozen=True, slots=True)
class BatchGroups:
    """How the batches of an epoch lie in groups.

    Groups have :attr:`batches_per_group` batches as long as every rank gets a whole one. The
    batches after these form one last round of shorter groups, equally long, one for each rank. So
    all ranks get equally many batches. Fewer batches than there are ranks are dropped at the end.

    Examples
    --------
    >>> groups = BatchGroups(n_batches=11, batches_per_group=2, ranks=4)
    >>> [list(groups.batches(group)) for group in range(groups.n_groups)]
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    >>> groups = BatchGroups(n_batches=13, batches_per_group=2, ranks=4)
    >>> [list(groups.batches(group)) for group in range(4, groups.n_groups)]
    [[8], [9], [10], [11]]
    """

    n_batches: int
    """Number of batches in the epoch, including those that are dropped."""
    batches_per_group: int
    """Number of batches in a whole group."""
    ranks: int = 1
    """Number of partitions that must get equally many batches."""

    @property
    def n_groups(self) -> int:
        """Number of groups in the epoch, a multiple of :attr:`ranks`."""
        return self._n_whole + (self.ranks if self._short_batches else 0)

    def batches(self, group: int) -> range:
        """Return the numbers, in the epoch, of the batches of one group."""
        short_group = group - self._n_whole
        if short_group < 0:
            return range(group * self.batches_per_group, (group + 1) * self.batches_per_group)
        start = self._n_whole * self.batches_per_group + short_group * self._short_batches
        return range(start, start + self._short_batches)

    @property
    def _n_whole(self) -> int:
        return self.n_batches // (self.batches_per_group * self.ranks) * self.ranks

    @property
    def _short_batches(self) -> int:
        """Number of batches in each group of the last round."""
        return (self.n_batches - self._n_whole * self.batches_per_group) // self.ranks


@dataclass(frozen=True, slots=True)
class Partition:
    """Every ``count``-th group of an epoch, beginning with group ``groups_done + index``.

    No field depends on how long the epoch is.

    Examples
    --------
    >>> groups = BatchGroups(n_batches=10, batches_per_group=2)
    >>> list(Partition(index=1, count=2).groups(groups))
    [1, 3]
    """

    index: int = 0
    count: int = 1
    """Number of partitions of the epoch."""
    ranks: int = 1
    """Number of ranks among the partitions; all ranks get equally many batches."""
    groups_done: int = 0
    """Number of groups of the epoch that all partitions together have given before."""
    batches_done: int = 0
    """Number of batches of this partition's first group that it has given before."""

    def split(self, index: int, count: int, *, even: bool) -> "Partition":
        """Return one of ``count`` partitions of this one.

        Raises
        ------
        UsageError
            If there is no such partition. If ``even``, also if this is a partition already, or
            begins in the middle of an epoch.
        """
        if count < 1 or not 0 <= index < count:
            raise UsageError(
                f"partition {index} of {count}: count must be at least 1, and index from 0 to "
                "count - 1."
            )
        if even and self.count > 1:
            raise UsageError(
                "even partitions of a partition: split the whole stream by ranks first, then by "
                "workers."
            )
        if even and count > 1 and (self.groups_done or self.batches_done):
            raise UsageError(
                "even partitions of a stream that goes on in the middle of an epoch: split it "
                "first, then resume."
            )
        return replace(
            self,
            index=self.index + index * self.count,
            count=self.count * count,
            ranks=count if even else self.ranks,
            batches_done=0 if index else self.batches_done,
        )

    def groups(self, epoch: BatchGroups) -> range:
        """Return the numbers of the groups to give."""
        return range(self.groups_done, epoch.n_groups)[self.index :: self.count]

    def n_batches(self, epoch: BatchGroups) -> int:
        """Return the number of batches to give."""
        groups = self.groups(epoch)
        if not groups:
            return 0
        whole = (len(groups) - 1) * epoch.batches_per_group  # only the last one can be shorter
        return whole + len(epoch.batches(groups[-1])) - self.batches_done

    def after(self, n_batches: int, epoch: BatchGroups) -> "Partition":
        """Return the rest of this partition after it has given ``n_batches`` more batches."""
        groups, batches = divmod(self.batches_done + n_batches, epoch.batches_per_group)
        groups_done = self.groups_done + groups * self.count
        # A short group is the last one, so it ends before batches_per_group batches are given.
        if batches and batches == len(epoch.batches(groups_done + self.index)):
            groups_done, batches = groups_done + self.count, 0
        return replace(self, groups_done=groups_done, batches_done=batches)


def require_whole_epoch(partition: Partition, caller: str, instead: str) -> None:
    """Refuse a partition of an epoch, or the rest of one, where only whole epochs can be given.

    Parameters
    ----------
    partition
        The part of the epoch that the user's stream gives.
    caller
        Name of the function or class that needs a whole epoch.
    instead
        A sentence that tells the user what to do instead.

    Raises
    ------
    UsageError
        If it is not a whole epoch.
    """
    if partition != Partition():
        raise UsageError(
            f"{caller} gives whole epochs: it takes no stream that was divided (shard) or resumed. "
            f"{instead}"
        )
