"""DEADLINE: bounds the total time of a thread's network reads, even if a server sends slowly. Used by https and s3.

    with within(600):  look up a name -> connect -> TLS -> headers -> body -> the next redirect or try

A socket's timeout starts again with each byte, so it never ends a server that sends one byte a second. Here each read
of a socket waits no longer than the time that is left in total. The connections of urllib3 and botocore use the mixin
below; threads without a deadline are not affected.
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

#: The time when this thread's work must be done, by :func:`time.monotonic`.
_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Gives this thread ``seconds`` for all its reads inside the block. Of nested deadlines the earliest holds."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


@contextmanager
def until(end: float | None) -> Iterator[None]:
    """As :func:`within`, until a time of the monotonic clock; None changes nothing."""
    with within(math.inf if end is None else end - time.monotonic()):
        yield


@contextmanager
def paused() -> Iterator[None]:
    """Excludes the time inside the block: a server is not to blame if the worker waits for memory."""
    began = time.monotonic()
    try:
        yield
    finally:
        _end.set(_end.get() + time.monotonic() - began)


def remaining_s() -> float:
    """The time left, in seconds: infinite without a deadline, negative after it."""
    return _end.get() - time.monotonic()


def has_passed() -> bool:
    """Whether no time is left."""
    return remaining_s() <= 0


def look_up(host: str, port: int, timeout_s: float = math.inf) -> list[str]:
    """Returns the addresses of a host; an address is returned unchanged.

    Raises:
        TimeoutError: no answer within the timeout or the time left.
        OSError, UnicodeError: as :func:`socket.getaddrinfo` raises.
    """
    timeout_s = min(timeout_s, remaining_s())
    literal = False
    with suppress(ValueError):
        literal = bool(ipaddress.ip_address(host.partition("%")[0]))
    if literal or timeout_s == math.inf:
        return _resolve(host, port)
    # The resolver takes no timeout, so it runs on a thread, which is abandoned when the time is over and ends later.
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
    """The file that a connection reads from: a read waits for the socket's timeout or the time left."""

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
            with suppress(OSError):  # the socket may be closed by now
                self._sock.settimeout(timeout)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _timed(response: Any, sock: socket.socket) -> Any:
    response.fp = io.BufferedReader(_Reader(sock, response.fp.detach()))
    return response


class _Response(http.client.HTTPResponse):
    """Reads its status, headers, chunks and body through :class:`_Reader`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_Reader(sock, self.fp.detach()))


class Timed(HTTPConnection):
    """Mixin for urllib3 connections. It keeps the deadline of the thread that uses the connection."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        problem: OSError | None = None
        try:
            # The socket keeps the timeout that is set here, so the TLS handshake, which uses it as a whole, is bounded,
            # too.
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
    """The same for botocore's connections, which themselves read the answer to ``Expect: 100-continue``."""

    def _handle_expect_response(self, message_body: Any) -> None:
        real, self.sock = self.sock, _Reading(self.sock)
        try:
            before = self.response_class
            super()._handle_expect_response(message_body)  # type: ignore[misc]
            made = self.response_class
            if made is not before:
                # The server answered at once with another status than 100. botocore reads that answer with a class of
                # its own.
                self.response_class = lambda sock, *args, **kwargs: _timed(made(sock, *args, **kwargs), sock)  # type: ignore[assignment]
        finally:
            if isinstance(self.sock, _Reading):
                self.sock = real


class _Reading:
    """A socket whose reads keep the deadline."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def makefile(self, *_: Any) -> _Reader:
        return _Reader(self._sock, self._sock.makefile("rb", 0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class TimedHttps(Timed, HTTPSConnection):
    """A connection to an https server."""


class TimedHttpsPool(HTTPSConnectionPool):
    """Connections to one https server."""

    ConnectionCls = TimedHttps
