"""How many requests may a server get at once, and how long may an answer take?"""

import math
import resource
import sys
from dataclasses import dataclass, fields
from typing import Final

from spinezarr.errors import UsageError

__all__ = ["DEFAULT_REMOTE_SETTINGS", "METADATA_BYTES", "RemoteSettings", "max_connections"]

METADATA_BYTES: Final = 64 << 20
"""Largest object, in bytes, that is read whole before its size is known."""
_MAY_BE_ZERO: Final = {"least_gap_bytes", "most_gap_bytes", "whole_shard_bytes"}


@dataclass(frozen=True)
class RemoteSettings:
    """Bounds on the requests for one store that lies in a bucket or on a web server.

    All bounds hold for each process separately. Most users change none of them, or only
    ``requests_in_flight``.

    Attributes
    ----------
    requests_in_flight
        Requests that run at the same time. More of them hide a longer latency, but servers that
        limit the rate refuse them. At most half of the files that a process may open are
        connections. The default was measured; see ``benchmarks/README.md``.
    held_bytes
        Bytes of ranges that are requested or wait to be decoded. They are fewer on a slow link:
        those of a second, and at least 32 MiB. A larger range is read alone.
    least_gap_bytes, most_gap_bytes
        Two ranges of an object with at most so many bytes between them are read with one request.
        The number in use lies between these two, and follows the latency and the rate of the link.
        The defaults were measured; see ``benchmarks/README.md``.
    longest_range_bytes
        Longest range that is merged from several ranges in this way. Longer ranges are read in
        parts, at the same time.
    whole_shard_bytes
        Shards up to this size, mostly those of masks, are read whole and kept in memory.
    late_factor
        An answer is late after this many times the usual duration of its size. A late request is
        sent a second time, and the first answer is used [1]_.
    least_late_s
        No answer is late before this many seconds.
    first_late_s
        Seconds after which an answer is late while the usual duration is still unknown.
    attempts
        Attempts that each request gets before an error is raised, however long they take.
    first_backoff_s, longest_backoff_s
        Seconds to wait before the second attempt, and at most before any attempt. The wait doubles
        with each attempt. A random part of up to half is subtracted, so that clients do not return
        together [2]_.
    patience_s
        Seconds for which a request is repeated once the server has answered with a range. A restart
        of a server, or a minute without network, ends no training.
    opening_patience_s
        The same while only whole objects were requested, as a user waits for a store to open.
    first_patience_s
        The same while the server has never answered, as the URL is probably wrong.
    deadline_s
        Seconds after which a call raises an error, even if attempts are left. None sets no limit.
    slowest_link_bytes_per_s
        Slowest link that must work, for all requests of a store together. An answer stalls when it
        brings less than a quarter of its part of this rate.
    stall_window_s, stall_window_per_request_s
        Seconds over which that rate is measured: a fixed part, and one for each request in flight.
        At 20 kB/s, one packet for each of 384 requests takes 28 s.
    longest_answer_s
        Seconds that one answer may take. At 20 kB/s, 384 requests of 0.37 MB take 7,100 s.
    s3_first_byte_s
        Seconds until an answer of S3 begins. It includes the time in which botocore finds
        credentials and the region of the bucket.
    credentials_refresh_s
        Seconds after which the credentials of S3 are requested from botocore again. It renews them
        itself 10 to 15 minutes before they end.

    Raises
    ------
    UsageError
        If a number is out of range.

    References
    ----------
    .. [1] Dean and Barroso, "The Tail at Scale", https://doi.org/10.1145/2408776.2408794
    .. [2] M. Brooker, "Exponential Backoff And Jitter",
       https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Examples
    --------
    >>> RemoteSettings(requests_in_flight=32).patience_s
    90.0
    """

    requests_in_flight: int = 384
    held_bytes: int = 256 << 20
    least_gap_bytes: int = 1 << 14
    most_gap_bytes: int = 1 << 18
    longest_range_bytes: int = 8 << 20
    whole_shard_bytes: int = 1 << 19
    late_factor: float = 5.0
    least_late_s: float = 0.25
    first_late_s: float = 10.0
    attempts: int = 5
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 8.0
    patience_s: float = 90.0
    opening_patience_s: float = 45.0
    first_patience_s: float = 20.0
    deadline_s: float | None = None
    slowest_link_bytes_per_s: float = 20_000.0
    stall_window_s: float = 20.0
    stall_window_per_request_s: float = 0.3
    longest_answer_s: float = 7200.0
    s3_first_byte_s: float = 40.0
    credentials_refresh_s: float = 60.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in _MAY_BE_ZERO and value < 0:
                raise UsageError(f"{name} {value}: must not be negative.")
            if name not in _MAY_BE_ZERO and value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} {value}: must be a number above 0.")
        for lower, upper in (
            ("least_gap_bytes", "most_gap_bytes"),
            ("first_backoff_s", "longest_backoff_s"),
        ):
            if getattr(self, lower) > getattr(self, upper):
                raise UsageError(
                    f"{lower} {getattr(self, lower)}: must not be above {upper} "
                    f"{getattr(self, upper)}."
                )


DEFAULT_REMOTE_SETTINGS: Final = RemoteSettings()


def max_connections() -> int:
    """Return how many connections this process may open: half of the files that it may open.

    macOS lets a process open 256 files unless it is told otherwise.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft // 2)
