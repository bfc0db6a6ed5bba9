"""Which figures does the server publish for Prometheus?

With several processes, each writes its figures to files in a shared folder. The process that is
asked adds them up (https://prometheus.github.io/client_python/multiprocess/).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from spinezarr.serve.environment import METRICS_FOLDER

__all__ = ["FORMAT", "Metrics"]

FORMAT: Final = CONTENT_TYPE_PLAIN_0_0_4
_OF_LIVE_PROCESS: Final = re.compile(r"gauge_live\w+_(\d+)[.]db")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Figures of this process, and of the processes that share its folder."""

    def __init__(self) -> None:
        self._folder = os.environ.get(METRICS_FOLDER)
        self._registry = registry = CollectorRegistry()
        by = ("route", "status")
        self._requests = Counter(
            "spinezarr_requests", "Requests that were answered.", by, registry=registry
        )
        self._bytes = Counter(
            "spinezarr_sent_bytes", "Bytes of bodies that were sent.", ("route",), registry=registry
        )
        self._seconds = Histogram(
            "spinezarr_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._reading = Gauge(
            "spinezarr_batches_under_way",
            "Requests for patches that are being read.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._refused = Counter(
            "spinezarr_batches_refused",
            "Requests for patches that were too many at once.",
            registry=registry,
        )
        self._of: dict[tuple[str, HTTPStatus], tuple[Counter, Counter, Histogram]] = {}

    def note(self, route: str, status: HTTPStatus, sent_bytes: int, seconds: float) -> None:
        """Count an answer.

        Parameters
        ----------
        route
            Template of the path.
        status, sent_bytes, seconds
            Status, size and duration of the answer.
        """
        known = self._of.get((route, status))
        if known is None:
            known = self._of[route, status] = (
                self._requests.labels(route, str(status.value)),
                self._bytes.labels(route),
                self._seconds.labels(route),
            )
        requests, size, duration = known
        requests.inc()
        size.inc(sent_bytes)
        duration.observe(seconds)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count a request for patches that is being read."""
        with self._reading.track_inprogress():
            yield

    def refused(self) -> None:
        """Count a request for patches that was refused."""
        self._refused.inc()

    def text(self) -> bytes:
        """Return all figures, in :data:`FORMAT`."""
        if self._folder is None:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        for path in Path(self._folder).iterdir():
            found = _OF_LIVE_PROCESS.fullmatch(path.name)
            if found is not None and not psutil.pid_exists(int(found[1])):
                mark_process_dead(int(found[1]), self._folder)
        MultiProcessCollector(together, self._folder)
        return generate_latest(together)
