"""The time limit of tests that wait for an event."""

import time

__all__ = ["TIMEOUT_S", "wait_until"]

TIMEOUT_S = 120.0
"""Time limit in seconds. Even on a busy machine, only something that hangs takes this long."""


def wait_until(condition):
    """Wait until a function returns true, and fail if it never does."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"not fulfilled in {TIMEOUT_S:.0f} s"
        time.sleep(0.005)
