"""How much does a server do at once?"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from spinezarr.processors import cpu_count

__all__ = ["ServeLimits", "half_of_the_cpus"]

_AtLeastNone = Annotated[int, Field(ge=0)]
_AtLeastOne = Annotated[int, Field(ge=1)]


def half_of_the_cpus() -> int:
    """Return the threads of one kind of work that leave room for the others."""
    return max(1, cpu_count() // 2)


class ServeLimits(BaseModel):
    """Bounds on the work that one process of a server does at once.

    Attributes
    ----------
    threads_per_batch
        Threads that decode one batch. Other batches are read beside it.
    batches_at_once
        Batches that are read at once from disk, and from each bucket.
    slices_at_once
        Slices that are drawn at once from disk. They are few, so that people who look at scans do
        not slow down a training.
    bucket_slices_at_once
        Slices that are drawn at once from a bucket, where drawing mostly waits for answers.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    threads_per_batch: _AtLeastOne = Field(default_factory=half_of_the_cpus)
    batches_at_once: _AtLeastNone = Field(default_factory=lambda: 2 * cpu_count())
    slices_at_once: _AtLeastNone = Field(default_factory=half_of_the_cpus)
    bucket_slices_at_once: _AtLeastNone = 8
