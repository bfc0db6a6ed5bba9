"""Which metrics does the server publish for Prometheus?

With several processes, each writes its metrics to files in a shared folder. The process that
answers a request for them adds them up (https://prometheus.github.io/client_python/multiprocess/).
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
_LIVE_GAUGE_FILE: Final = re.compile(r"gauge_live\w+_(\d+)[.]db")
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Metrics of this process, and of the processes that share its folder."""

    def __init__(self) -> None:
        self._folder = os.environ.get(METRICS_FOLDER)
        self._registry = registry = CollectorRegistry()
        labels = ("route", "status")
        self._requests = Counter(
            "spinezarr_requests", "Requests that were answered.", labels, registry=registry
        )
        self._bytes = Counter(
            "spinezarr_sent_bytes", "Bytes of bodies that were sent.", ("route",), registry=registry
        )
        self._seconds = Histogram(
            "spinezarr_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route",),
            buckets=_BUCKETS_S,
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
            "Requests for patches that were refused, because too many came at once.",
            registry=registry,
        )
        self._counters: dict[tuple[str, HTTPStatus], tuple[Counter, Counter, Histogram]] = {}

    def note(self, route: str, status: HTTPStatus, sent_bytes: int, seconds: float) -> None:
        """Count an answer.

        Parameters
        ----------
        route
            Template of the path.
        status, sent_bytes, seconds
            Status, size and duration of the answer.
        """
        counters = self._counters.get((route, status))
        if counters is None:
            counters = self._counters[route, status] = (
                self._requests.labels(route, str(status.value)),
                self._bytes.labels(route),
                self._seconds.labels(route),
            )
        requests, size, duration = counters
        requests.inc()
        size.inc(sent_bytes)
        duration.observe(seconds)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count a request for patches that is being read."""
        with self._reading.track_inprogress():
            yield

    def count_refused(self) -> None:
        """Count a request for patches that was refused."""
        self._refused.inc()

    def text(self) -> bytes:
        """Return all metrics as text in :data:`FORMAT`."""
        if self._folder is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        for path in Path(self._folder).iterdir():
            match = _LIVE_GAUGE_FILE.fullmatch(path.name)
            if match is not None and not psutil.pid_exists(int(match[1])):
                mark_process_dead(int(match[1]), self._folder)
        MultiProcessCollector(registry, self._folder)
        return generate_latest(registry)
