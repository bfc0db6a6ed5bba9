"""Lets go of clients that ask and do not read: the system ends their connections."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["set_send_timeout", "set_send_timeouts_of_listeners"]

_UNREAD_MS: Final = 30_000
"""How long nothing of what waits to be sent may be taken."""


def set_send_timeout(listening: socket.socket) -> None:
    """End connections on which nothing is taken for long; accepted ones inherit it on Linux."""
    if sys.platform == "linux":
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)


def set_send_timeouts_of_listeners() -> None:
    """Do so with every socket at which this process listens: granian hands out none of its own."""
    if sys.platform != "linux":
        return
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                set_send_timeout(one)
