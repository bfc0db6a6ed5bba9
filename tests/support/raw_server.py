"""A TCP server that answers with bytes that a test chooses."""

import socket
from contextlib import suppress
from threading import Thread


class RawServer:
    """Reads the heads of requests; subclasses answer them.

    Attributes
    ----------
    heads
        Heads of all requests so far.
    port
        Port on the loopback address.
    """

    def __init__(self, context=None):
        self._context = context
        self.heads = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._connections = set()
        Thread(target=self._accept, daemon=True).start()

    def answer(self, connection, head):
        """Send an answer to a request with this head."""
        raise NotImplementedError

    def on_close(self):
        """React to a client that has closed its connection."""

    def close(self):
        for open_socket in (self._socket, *self._connections):
            # Without this, threads that wait for a connection or a byte would go on waiting.
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, suppress(OSError):
            if self._context is None:
                self._serve_heads(connection)
            else:
                with self._context.wrap_socket(connection, server_side=True) as secure:
                    self._serve_heads(secure)

    def _serve_heads(self, connection):
        self._connections.add(connection)
        waiting = b""
        try:
            while new := connection.recv(1 << 16):
                waiting += new
                while b"\r\n\r\n" in waiting:
                    head, _, waiting = waiting.partition(b"\r\n\r\n")
                    self.heads.append(head.decode())
                    self.answer(connection, self.heads[-1])
            self.on_close()
        finally:
            self._connections.discard(connection)
