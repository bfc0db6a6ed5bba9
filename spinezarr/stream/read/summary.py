"""What will it take to read a batch?"""

from dataclasses import dataclass, replace

from spinezarr.text import count_noun, megabytes

__all__ = ["ReadSummary"]


@dataclass(frozen=True, slots=True)
class ReadSummary:
    """Cost of reading some boxes, counted before they are read; ``print`` it.

    Examples
    --------
    >>> print(store.patches((16, 24, 24), foreground=1.0).explain())  # doctest: +ELLIPSIS
    2 boxes of 1 scan, ... MB of voxels
    ...
    """

    boxes: int
    """Number of boxes, of images and masks."""
    scans: int
    """Number of scans that the boxes lie in."""
    shards: int
    """Number of files that bytes are read from."""
    chunks: int
    """Number of chunks that are fetched and decoded, each once."""
    shared_chunks: int
    """Number of chunks that more than one box needs."""
    cached_chunks: int
    """Number of chunks that are in the cache already."""
    background_chunks: int
    """Number of chunks of masks that are not stored, as they are all background."""
    requests: int
    """Number of requests, or of system calls if the store is on disk."""
    fetched_bytes: int
    """Bytes of the encoded chunks that are fetched."""
    decoded_bytes: int
    """Bytes of the voxels of these chunks; for slices, the kernel decodes only a part of them."""
    voxel_bytes: int
    """Bytes of the voxels of the boxes."""
    kernel: bool
    """Whether the kernel decodes; see :mod:`spinezarr.stream.read.native`."""
    transfer: str = ""
    """How a spinezarr server sends the batch, and why; empty if the store is on no such server."""

    @property
    def amplification(self) -> float:
        """Bytes of voxels in the fetched chunks for each byte of voxels that is requested."""
        return self.decoded_bytes / self.voxel_bytes if self.voxel_bytes else 0.0

    def with_transfer(self, transfer: str) -> "ReadSummary":
        """Return the same summary with another :attr:`transfer`."""
        return replace(self, transfer=transfer)

    def __str__(self) -> str:
        n_chunks = self.chunks + self.cached_chunks + self.background_chunks
        slowly = "" if self.kernel else "; slowly, as there is no kernel"
        return (
            f"{count_noun(self.boxes, 'box', 'boxes')} of {count_noun(self.scans, 'scan')}, "
            f"{megabytes(self.voxel_bytes)} of voxels\n"
            f"{count_noun(n_chunks, 'chunk')}: {self.chunks} to fetch, "
            f"{self.cached_chunks} in the cache, {self.background_chunks} background; "
            f"{self.shared_chunks} are needed by several boxes\n"
            f"{count_noun(self.requests, 'request')} to {count_noun(self.shards, 'shard')}, "
            f"{megabytes(self.fetched_bytes)}\n"
            f"{megabytes(self.decoded_bytes)} decoded, "
            f"{self.amplification:.2f} times the requested voxels{slowly}"
            f"{self.transfer and f'{chr(10)}read {self.transfer}'}"
        )
