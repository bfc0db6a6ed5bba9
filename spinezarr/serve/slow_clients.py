"""What ends the connections of clients that send requests and do not read the answers?"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["set_send_timeout", "set_send_timeouts_of_listeners"]


def set_send_timeout(listening: socket.socket, unread_s: float) -> None:
    """Set the time-out in seconds on a listening socket. On Linux, its connections inherit it."""
    if sys.platform == "linux":
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * unread_s))


def set_send_timeouts_of_listeners(unread_s: float) -> None:
    """Set the time-out in seconds on all listening sockets of this process.

    granian does not expose its own sockets.
    """
    if sys.platform != "linux":
        return
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as candidate:
            if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                set_send_timeout(candidate, unread_s)
