"""The HTTP server: its pages, and what a hostile or slow caller can do to the others."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from pipeq.contract.errors import SettingsError
from pipeq_worker.observe import endpoint as module
from pipeq_worker.observe.endpoint import MOST_CONNECTIONS, Answer, Endpoint


def broken() -> Answer:
    raise RuntimeError("no page today")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    pages = {"/a": lambda: (200, "text/plain", b"alpha"), "/b": lambda: (503, "text/plain", b"beta"), "/c": broken}
    one = Endpoint("127.0.0.1", 0, pages)
    one.start()
    yield one
    one.close()


def ask(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_pages(endpoint: Endpoint) -> None:
    assert ask(endpoint, "/a") == (200, b"alpha")
    assert ask(endpoint, "/a?x=1") == (200, b"alpha")
    assert ask(endpoint, "/b") == (503, b"beta")
    assert ask(endpoint, "/a", "HEAD") == (200, b"")
    assert ask(endpoint, "/") == (404, b"there are /a, /b, /c\n")
    assert ask(endpoint, "/a", "POST")[0] == 501


def test_a_page_that_fails_disturbs_no_other(endpoint: Endpoint) -> None:
    with pytest.raises(http.client.HTTPException):
        ask(endpoint, "/c")
    assert ask(endpoint, "/a") == (200, b"alpha")


@pytest.mark.parametrize(
    "sent", [b"", b"\0\xff" * 1000, b"GET " + b"a" * 70_000, b"GET /a HTTP/1.1\r\n" + b"x: y\r\n" * 500]
)
def test_nonsense(endpoint: Endpoint, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), 10) as line:
        line.sendall(sent)
    assert ask(endpoint, "/a") == (200, b"alpha")


def test_connections_that_stay_open_keep_nobody_out(endpoint: Endpoint) -> None:
    lines = [socket.create_connection(("127.0.0.1", endpoint.port), 10) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        for line in lines[-5:]:
            line.sendall(b"GET /a HTTP")
        assert ask(endpoint, "/a") == (200, b"alpha")
    finally:
        for line in lines:
            line.close()


def test_one_that_sends_nothing_is_closed(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", endpoint.port), 10) as line:
        assert line.recv(1) == b""


def test_a_port_that_is_taken_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(SettingsError, match=f"metrics.port: cannot listen on 127.0.0.1:{endpoint.port}: "):
        Endpoint("127.0.0.1", endpoint.port, {})
    with pytest.raises(SettingsError, match=r"metrics.port: cannot listen on no.such.host.invalid:1: "):
        Endpoint("no.such.host.invalid", 1, {})
