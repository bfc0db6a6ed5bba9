"""Which part of an epoch a stream gives: its share among ranks and workers, and where it goes on.

An epoch is a row of *units*, each a few batches that are read together. A share takes every
``count``-th unit, so that shares of shares are shares again, and their union is the epoch.
"""

from dataclasses import dataclass, replace

from spinezarr.errors import UsageError

__all__ = ["EpochUnits", "Share"]


@dataclass(frozen=True, slots=True)
class EpochUnits:
    """How the batches of an epoch lie in units; the last unit may be shorter."""

    n_batches: int
    unit_batches: int
    """Batches of a whole unit."""

    @property
    def n_units(self) -> int:
        """Units of the epoch."""
        return -(-self.n_batches // self.unit_batches)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of an epoch: of the units from ``done`` on, number ``index``, then every ``count``-th.

    What stands here does not depend on how long the epoch is.
    """

    index: int = 0
    count: int = 1
    even: int = 1
    """Shares that must have equally many batches: what is left over at the end is dropped."""
    done: int = 0
    """Units of the epoch that all shares have given before."""
    skip: int = 0
    """Batches of this share's first unit that it has given before."""

    def split(self, index: int, count: int, *, even: bool) -> "Share":
        """Return one of ``count`` shares of this one.

        Raises
        ------
        UsageError
            If there is no such share, or equal ones are asked for of a share of another.
        """
        if count < 1 or not 0 <= index < count:
            raise UsageError(f"share {index} of {count}: must lie between 0 and {count - 1}.")
        if even and self.count > 1:
            raise UsageError("even shares: split the whole stream by ranks first, then by workers.")
        if even and count > 1 and self.skip:
            raise UsageError(
                "even shares of a stream that goes on inside a unit: split it first, then resume."
            )
        return replace(
            self,
            index=self.index + index * self.count,
            count=self.count * count,
            even=count if even else self.even,
            skip=0 if index else self.skip,
        )

    def units(self, epoch: EpochUnits) -> range:
        """Return the numbers of the units to give."""
        return range(self.done, self._end(epoch))[self.index :: self.count]

    def batches_of_unit(self, number: int, epoch: EpochUnits) -> int:
        """Return how many batches of a unit count: as many as of each other in its round."""
        end = self._end(epoch)
        shortest = end - 1 if number >= end - self.even else number
        return min(epoch.unit_batches, epoch.n_batches - shortest * epoch.unit_batches)

    def n_batches(self, epoch: EpochUnits) -> int:
        """Return the number of batches to give."""
        units = self.units(epoch)
        if not units:
            return 0
        whole = (len(units) - 1) * epoch.unit_batches
        return max(0, whole + self.batches_of_unit(units[-1], epoch) - self.skip)

    def after(self, n_batches: int, epoch: EpochUnits) -> "Share":
        """Return what is left when so many further batches have been given."""
        units, skip = divmod(self.skip + n_batches, epoch.unit_batches)
        done = self.done + units * self.count
        if skip and skip == self.batches_of_unit(done + self.index, epoch):  # the short last one
            done, skip = done + self.count, 0
        return replace(self, done=done, skip=skip)

    def _end(self, epoch: EpochUnits) -> int:
        return epoch.n_units - max(0, epoch.n_units - self.done) % self.even
