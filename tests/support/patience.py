"""The time limit of tests that wait for an event."""

import time

__all__ = ["PATIENCE_S", "wait_until"]

PATIENCE_S = 120.0
"""Time limit in seconds. Even on a busy machine, only something that hangs takes this long."""


def wait_until(is_so):
    """Wait until a function returns true, and fail if it never does."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
