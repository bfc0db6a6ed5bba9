"""What has this process used so far: time, cores, bytes of the disk and of the link?"""

import time
from dataclasses import dataclass
from typing import Self

import psutil

from spinezarr.measure.page_cache import disk_bytes
from spinezarr.processors import cpu_count, machine_cpu_count
from spinezarr.store.objects import Objects

__all__ = ["ResourceUse"]


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """What was used up to a moment, or between two moments."""

    seconds: float
    core_s: float
    """Time in which cores worked for this process, added up over the cores."""
    idle_core_s: float | None
    """Time in which cores of the machine did nothing; None if others cores than those of this
    process count in it."""
    disk_bytes: int | None
    """Bytes that came from disks; None if the system does not say."""
    link_bytes: int
    """Bytes that came over the network from the store."""

    @classmethod
    def now(cls, objects: Objects) -> Self:
        """Return the use so far by this process, which reads a store."""
        times = psutil.cpu_times()
        idle_core_s = times.idle + getattr(times, "iowait", 0.0)
        return cls(
            time.perf_counter(),
            time.process_time(),
            idle_core_s if cpu_count() == machine_cpu_count() else None,
            disk_bytes(),
            objects.received_bytes,
        )

    def since(self, earlier: "ResourceUse") -> "ResourceUse":
        """Return the use between two moments."""
        has_idle = self.idle_core_s is not None and earlier.idle_core_s is not None
        has_disk = self.disk_bytes is not None and earlier.disk_bytes is not None
        return ResourceUse(
            self.seconds - earlier.seconds,
            self.core_s - earlier.core_s,
            (self.idle_core_s or 0.0) - (earlier.idle_core_s or 0.0) if has_idle else None,
            (self.disk_bytes or 0) - (earlier.disk_bytes or 0) if has_disk else None,
            self.link_bytes - earlier.link_bytes,
        )
