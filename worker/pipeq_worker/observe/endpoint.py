"""ENDPOINT: a small HTTP server for metrics and health. It starts before the models are loaded, and knows no users.

Each connection has a thread. When there are too many, the oldest one makes room, so that nobody who keeps connections
open can keep a probe from being answered.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from pipeq.contract.errors import SettingsError

logger = logging.getLogger(__name__)

#: Connections at a time.
MOST_CONNECTIONS = 32
#: A connection that sends nothing for so long is closed, in seconds.
TIMEOUT_S = 5.0

#: Status, media type, and content.
Answer = tuple[int, str, bytes]


class Endpoint:
    """The server; owns its threads.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        pages: path -> function that answers it.

    Raises:
        SettingsError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Answer]]) -> None:
        try:
            self._server = _Server(host, port, pages)
        except OSError as error:
            sentence = f"metrics.port: cannot listen on {host}:{port}: {error.strerror or error}"
            raise SettingsError(sentence) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Answer]]) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.pages = pages
        #: The open connections, oldest first.
        self._open: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the connection's thread."""
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                # Its thread finds it closed, and ends.
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called when a connection breaks, which is no concern of the worker."""
        logger.debug("a connection to the metrics broke", exc_info=True, extra={"action": "metrics"})


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """Answers with a page."""
        page = self.server.pages.get(self.path.partition("?")[0])
        status, media_type, content = page() if page is not None else self._nothing()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the standard library's name

    def _nothing(self) -> Answer:
        return 404, "text/plain; charset=utf-8", f"there are {', '.join(self.server.pages)}\n".encode()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Logs at ``DEBUG``: a probe comes every few seconds."""
        logger.debug(format, *args, extra={"action": "metrics"})
