"""How long a test waits for what must come."""

import time

__all__ = ["PATIENCE_S", "wait_until"]

PATIENCE_S = 120.0
"""Nothing that tests wait for takes this long on the busiest machine, unless it hangs."""


def wait_until(is_so):
    """Wait until a function returns true, and fail if it never does."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
