"""DEADLINE: how long all that a thread reads from the network may take, however slowly it drips. Used by https and s3.

    with within(600):  look up a name -> connect -> TLS -> headers -> body -> the next redirect or try

A socket's timeout begins anew with each byte, so it ends no server that sends one a second. Here each single read of a
socket waits no longer than what is left of the whole. Connections of urllib3 and botocore are made of the mixin below;
a thread without a deadline notices nothing of it.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

#: When the work of this thread must be done, as :func:`time.monotonic` counts.
_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Gives this thread so long for all that it reads inside; the shorter of two deadlines holds."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


@contextmanager
def paused() -> Iterator[None]:
    """The time spent inside does not count: waiting for memory is no fault of a server."""
    began = time.monotonic()
    try:
        yield
    finally:
        _end.set(_end.get() + time.monotonic() - began)


def remaining_s() -> float:
    """What is left, in seconds: infinite without a deadline, negative after it."""
    return _end.get() - time.monotonic()


def has_passed() -> bool:
    """Whether nothing is left."""
    return remaining_s() <= 0


def look_up(host: str, port: int, timeout_s: float = math.inf) -> list[str]:
    """The addresses of a host; one that is an address already is its own.

    Raises:
        TimeoutError: no answer within the timeout or what is left.
        OSError, UnicodeError: as :func:`socket.getaddrinfo`.
    """
    timeout_s = min(timeout_s, remaining_s())
    literal = False
    with suppress(ValueError):
        literal = bool(ipaddress.ip_address(host.partition("%")[0]))
    if literal or timeout_s == math.inf:
        return _resolve(host, port)
    # The resolver takes no timeout. A thread that nobody waits for any more ends when the resolver gives up.
    answers: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_resolve(host, port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=max(0, timeout_s))
    except Empty:
        raise TimeoutError(f"no answer to the name {host} in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Reader(io.RawIOBase):
    """What a connection reads from: each read waits as long as its socket says, or as is left."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = remaining_s()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        timeout = self._sock.gettimeout()
        if (timeout is not None and timeout <= left) or left == math.inf:
            return self._raw.readinto(buffer)
        self._sock.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            with suppress(OSError):  # it may be closed by now
                self._sock.settimeout(timeout)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _timed(response: Any, sock: socket.socket) -> Any:
    response.fp = io.BufferedReader(_Reader(sock, response.fp.detach()))
    return response


class _Response(http.client.HTTPResponse):
    """Reads its status, its headers, its chunks and its body by :class:`_Reader`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_Reader(sock, self.fp.detach()))


class Timed(HTTPConnection):
    """Mixin for a connection of urllib3 that keeps to the deadline of the thread that uses it."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        problem: OSError | None = None
        try:
            # The socket keeps the last timeout set here, and so TLS, which takes it for the whole handshake, ends too.
            for address in look_up(self._dns_host, self.port or self.default_port):
                try:
                    return self._connect_to(address)
                except OSError as error:
                    problem = error
            raise problem or OSError("it has no address")
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error

    def _connect_to(self, address: str) -> socket.socket:
        left = remaining_s()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        usual = self.timeout if isinstance(self.timeout, int | float) else math.inf
        timeout = min(usual, left)
        return create_connection(
            (address, self.port or self.default_port),
            None if timeout == math.inf else timeout,
            source_address=self.source_address,
            socket_options=self.socket_options,
        )


class TimedExpecting(Timed):
    """The same for botocore's connections, which read the answer to ``Expect: 100-continue`` themselves."""

    def _handle_expect_response(self, message_body: Any) -> None:
        real, self.sock = self.sock, _Reading(self.sock)
        try:
            before = self.response_class
            super()._handle_expect_response(message_body)  # type: ignore[misc]
            made = self.response_class
            if made is not before:
                # It answered at once and not with 100: botocore goes on to read that answer by a class of its own.
                self.response_class = lambda sock, *args, **kwargs: _timed(made(sock, *args, **kwargs), sock)  # type: ignore[assignment]
        finally:
            if isinstance(self.sock, _Reading):
                self.sock = real


class _Reading:
    """A socket, but for what is read from it."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def makefile(self, *_: Any) -> _Reader:
        return _Reader(self._sock, self._sock.makefile("rb", 0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class TimedHttps(Timed, HTTPSConnection):
    """To an https server."""


class TimedHttpsPool(HTTPSConnectionPool):
    """Connections to one https server."""

    ConnectionCls = TimedHttps
