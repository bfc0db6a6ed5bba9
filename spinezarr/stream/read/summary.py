"""What reading some boxes takes, counted before it is done."""

from dataclasses import dataclass, replace

from spinezarr.text import count_noun

__all__ = ["ReadSummary", "megabytes"]


@dataclass(frozen=True, slots=True)
class ReadSummary:
    """What a batch will read; ``print`` it."""

    boxes: int
    """Boxes of images and masks."""
    scans: int
    shards: int
    """Files that bytes are read from."""
    chunks: int
    """Chunks that are fetched and decoded, each once."""
    shared_chunks: int
    """Chunks that more than one box needs."""
    cached_chunks: int
    """Chunks that are in memory already."""
    background_chunks: int
    """Chunks of masks that are not stored, as no vertebra is there; they cost nothing."""
    requests: int
    """Requests, or system calls where the store is on disk."""
    fetched_bytes: int
    decoded_bytes: int
    """Voxels of all fetched chunks; of slices, the kernel decodes only a part of them."""
    voxel_bytes: int
    """Voxels of the boxes."""
    kernel: bool
    """Whether C code decodes; see :mod:`spinezarr.stream.read.native`."""
    way: str = ""
    """How they are read from a server of spinezarr, and why; empty of other stores."""

    @property
    def amplification(self) -> float:
        """Bytes of voxels that are fetched, for each byte that is wanted."""
        return self.decoded_bytes / self.voxel_bytes if self.voxel_bytes else 0.0

    def read_as(self, way: str) -> "ReadSummary":
        """Return the same, read in some way."""
        return replace(self, way=way)

    def __str__(self) -> str:
        known = self.chunks + self.cached_chunks + self.background_chunks
        slowly = "" if self.kernel else "; without the kernel, so slowly"
        return (
            f"{count_noun(self.boxes, 'box', 'boxes')} of {count_noun(self.scans, 'scan')}, "
            f"{megabytes(self.voxel_bytes)} of voxels\n"
            f"{count_noun(known, 'chunk')}: {self.chunks} to fetch, "
            f"{self.cached_chunks} in the cache, {self.background_chunks} background; "
            f"{self.shared_chunks} are for several boxes\n"
            f"{count_noun(self.requests, 'request')} to {count_noun(self.shards, 'shard')}, "
            f"{megabytes(self.fetched_bytes)}\n"
            f"{megabytes(self.decoded_bytes)} decoded, "
            f"{self.amplification:.2f} times what is wanted{slowly}"
            f"{self.way and f'{chr(10)}read {self.way}'}"
        )


def megabytes(n_bytes: float) -> str:
    """Show a size in MB of 10^6 bytes."""
    return f"{n_bytes / 1e6:.1f} MB"
