"""A TCP proxy that can misbehave: delay, fall silent, lose answers, cut connections; it can also speak TLS."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator


class Proxy:
    """A proxy for ``127.0.0.1:port``. Each connection has a thread for each direction."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, listen: int = 0) -> None:
        self._target = port
        self._context = context
        self._server = socket.create_server(("127.0.0.1", listen))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        #: Delay in each direction, in seconds.
        self.delay_s = 0.0
        #: Seconds between two bytes of the server's answers; with 0 they pass unchanged.
        self.drip_s = 0.0
        #: How many of the server's answers still pass; the next one is lost, with its connection. None: all pass.
        self.answers_left: int | None = None
        #: While set, each new connection is closed at once, as if there was no server.
        self.is_closed = False
        #: While set, nothing passes, and neither side is told.
        self.is_silent = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Closes every connection on both sides."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def half_close(self) -> None:
        """Closes the direction from the server to the client on every connection; the other direction stays open."""
        for client, _ in self._pairs:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # Otherwise the thread goes on to wait, and lets one more client in.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.is_closed:
                client.close()
                continue
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((client, server))
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(one, other, client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                if not (isinstance(source, ssl.SSLSocket) and source.pending()):
                    # Not select, which takes no descriptor from 1024 on: a long test may have as many.
                    poll = select.poll()
                    poll.register(source, select.POLLIN)
                    poll.poll()
                data = source.recv(65536)
                if not data:
                    break
                if self.delay_s:
                    time.sleep(self.delay_s)
                while self.is_silent:
                    time.sleep(0.02)
                if sink is client and self.answers_left is not None:
                    if not self.answers_left:
                        self.answers_left = None
                        break
                    self.answers_left -= 1
                if self.drip_s and sink is client:
                    for at in range(len(data)):
                        sink.sendall(data[at : at + 1])
                        time.sleep(self.drip_s)
                else:
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextlib.contextmanager
def proxy(redis_url: str, context: ssl.SSLContext | None = None) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of a ``redis://`` server, and the URL that leads through it."""
    port = redis_url.rsplit(":", 1)[1].partition("/")[0]
    between = Proxy(int(port), context)
    try:
        yield between, redis_url.replace(f":{port}", f":{between.port}")
    finally:
        between.close()
