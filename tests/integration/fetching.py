"""Helpers for the tests of fetch: a memory budget, a web server with any answer, and a name server."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Ref
from pipeq.demo.embedded import S3Server
from pipeq_worker.stages.fetch import Fetcher


class Budget:
    """A stand-in for the worker's memory budget that records the requests."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size: int) -> None:
        self.sizes.append(size)


def failure(fetcher: Fetcher, ref: Ref, reserve: Callable[[int], None] | None = None) -> PipeqError:
    with pytest.raises(PipeqError) as error:
        fetcher.fetch(ref, reserve or Budget())
    return error.value


def use_s3(server: S3Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Directs boto3 to one server, and away from profiles, roles and metadata services of this computer."""
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class WebServer(http.server.ThreadingHTTPServer):
    """A server on loopback whose answers are functions of the path."""

    daemon_threads = True
    answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]]

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers = {}
        self._context = context
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is None:
            super().finish_request(request, client_address)
            return
        try:
            # In the connection's own thread, so that a client that sends nothing does not delay the others.
            with self._context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError:
            pass  # The client did not like us; that is what some tests are about.


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        self.server.answers.get(path, lambda handler: answer(handler, 404))(self)

    def log_message(self, *_: object) -> None:
        pass


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def serve(server: WebServer) -> Iterator[WebServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def chunked(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(body), 300):
        part = body[start : start + 300]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")


class Dns:
    """Answers name look-ups instead of the network; numeric addresses still go to the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host[-1].isdigit() or ":" in host:
            return self._real(host, port, *args, **options)
        self.asked.append(host)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (families[":" in address], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.hosts[host]
        ]
