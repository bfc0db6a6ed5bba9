"""How much work and memory may one process of a server use at once?"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from spinezarr.processors import cpu_count
from spinezarr.view.levels import COARSEST_VOXELS

__all__ = ["ServeLimits", "half_of_the_cpus"]

_AtLeastNone = Annotated[int, Field(ge=0)]
_AtLeastOne = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


def half_of_the_cpus() -> int:
    """Return how many threads one kind of work may use, so that others can work too."""
    return max(1, cpu_count() // 2)


class ServeLimits(BaseModel):
    """Bounds on the work and the memory of one process of a server.

    Attributes
    ----------
    threads_per_batch
        Threads that decode one batch. Other batches are read at the same time.
    batches_at_once
        Batches that are read at once from disk, and from each bucket.
    slices_at_once
        Slices that are drawn at once from disk. They are few, so that viewers do not slow down a
        training.
    bucket_slices_at_once
        Slices that are drawn at once from a bucket, where drawing mostly waits for answers.
    waiting, waiting_bytes
        Requests for voxels that may wait, and the memory of all their bodies. By default, sixteen
        requests of each of sixteen trainers may wait. Further requests get 429.
    unsent_bytes
        Memory of answers that clients have not read yet. While it is exceeded, requests for voxels
        get 429.
    body_s, bodies_bytes
        Seconds within which the body of a request must arrive, and the memory of all bodies that
        have not arrived completely.
    unread_s
        Seconds after which the connection of a client that reads nothing of an answer ends.
    streams
        Files that are generated and sent at once. Each takes about 70 MB.
    ready_s
        Seconds for which an answer of ``/readyz`` is reused. Requests for it need no token,
        so they must not cause work each time.
    batch_voxel_bytes, batch_source_bytes
        Largest answer with patches, in bytes of voxels, and the most stored voxels in bytes that
        one such answer is computed from.
    level_voxel_bytes, level_source_bytes
        Largest answer with voxels of a level, and the most stored voxels in bytes that one such
        answer is computed from. They are read in parts.
    slice_voxels
        Most voxels of a slice that is drawn. Drawing takes about 20 bytes for each voxel.
    coarsest_level_voxels
        Most voxels of the coarsest level of a scan, see :func:`spinezarr.view.levels.plan_levels`.
    part_at_once_bytes, part_bytes
        Longest body that is sent at once, and size of the parts of longer bodies. A few parts
        are in memory for each client that reads slowly.
    scans
        Scans of a store whose metadata are kept in memory.
    bucket_s, bucket_reader_s
        Longest wait in seconds for a file in a bucket, and for patches and tables of a bucket,
        which take many requests. A slower bucket is unavailable.
    bucket_fresh_s
        Seconds for which the last check of an object in a bucket is valid.
    bucket_whole_bytes
        Largest file in a bucket that is read whole and kept in memory. Most masks are smaller.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    threads_per_batch: _AtLeastOne = Field(default_factory=half_of_the_cpus)
    batches_at_once: _AtLeastNone = Field(default_factory=lambda: 2 * cpu_count())
    slices_at_once: _AtLeastNone = Field(default_factory=half_of_the_cpus)
    bucket_slices_at_once: _AtLeastNone = 8
    waiting: _AtLeastNone = 256
    waiting_bytes: _AtLeastNone = 64 << 20
    unsent_bytes: _AtLeastNone = 512 << 20
    body_s: _Seconds = 8.0
    bodies_bytes: _AtLeastNone = 64 << 20
    unread_s: _Seconds = 30.0
    streams: _AtLeastNone = 8
    ready_s: Annotated[float, Field(ge=0)] = 1.0
    batch_voxel_bytes: _AtLeastOne = 256 << 20
    batch_source_bytes: _AtLeastOne = 1 << 30
    level_voxel_bytes: _AtLeastOne = 256 << 20
    level_source_bytes: _AtLeastOne = 8 << 30
    slice_voxels: _AtLeastOne = 1 << 25
    coarsest_level_voxels: _AtLeastOne = COARSEST_VOXELS
    part_at_once_bytes: _AtLeastOne = 1 << 19
    part_bytes: _AtLeastOne = 256 << 10
    scans: _AtLeastOne = 4096
    bucket_s: _Seconds = 10.0
    bucket_reader_s: _Seconds = 60.0
    bucket_fresh_s: _Seconds = 1.0
    bucket_whole_bytes: _AtLeastNone = 1 << 19
