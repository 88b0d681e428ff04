"""HEARING: the connection on which all waits of a blocking client hear. Used by speaking; async_hearing is its twin."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.listening import CONFIRM_S, Channels, Ear, check, in_commands
from pipeq.protocol import Command

#: Seconds for which a thread reads from a TLS connection before it lets others write.
TLS_READ_S = 0.05


class Listener:
    """The connection on which all waits of a client hear. Of the threads that wait, one reads for all of them.

    So there is no thread of its own, which somebody would have to end.

    Args:
        pool: says how to connect. The connection is none of the pool's, whose number may be limited to one.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        # One thread must not read from a TLS connection while another writes to it.
        self._is_tls = issubclass(pool.connection_class, redis.SSLConnection)
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._connection: Any = None
        self._channels = Channels()
        self._is_read = False
        #: How many threads wait to write until nobody reads.
        self._writers = 0

    def close(self) -> None:
        """Closes the connection; those who wait are told."""
        with self._turn:
            self._lose(ConnectionError("the client was closed"))

    def listen(self, ear: Ear, names: Iterable[str]) -> None:
        """Subscribes to channels, and waits until Redis confirms it."""
        if self._pid != os.getpid():
            # The connection, and perhaps the lock, belong to the process that this one was forked from.
            self._forget()
        with self._turn:
            self._wait_to_write()
            ear.lost = None
            try:
                self._refresh()
                new = self._channels.add(ear, names)
                self._say(*in_commands("SUBSCRIBE", new), *in_commands("UNSUBSCRIBE", self._channels.take_idle()))
            except BaseException as error:
                self._lose(error if isinstance(error, Exception) else ConnectionError("interrupted"))
                ear.lost = None
                raise
            self._read_until(ear, time.monotonic() + CONFIRM_S, lambda: not ear.unconfirmed)
            if ear.unconfirmed:
                self._lose(TimeoutError("Redis does not confirm a subscription"))
            check(ear)

    def unlisten(self, ears: list[Ear], names: Iterable[str]) -> None:
        """Ends subscriptions of an ear, if there is one."""
        with self._turn:
            for ear in ears:
                self._channels.drop(ear, names)

    def drop(self, ears: list[Ear]) -> None:
        """Ends all subscriptions of an ear, if there is one. Sends nothing, so it neither waits nor fails."""
        for ear in ears:
            with self._turn:
                self._channels.drop(ear, list(ear.channels))

    def hear(self, ear: Ear, until: float) -> list[tuple[str, bytes]]:
        """Waits for messages; empty if there are none."""
        with self._turn:
            self._read_until(ear, until, lambda: bool(ear.heard))
            heard, ear.heard = ear.heard, deque()
            if not heard:
                check(ear)
            return list(heard)

    def _wait_to_write(self) -> None:
        self._writers += 1
        try:
            while self._is_tls and self._is_read:
                self._turn.wait()
        finally:
            self._writers -= 1

    def _refresh(self) -> None:
        """Connects, if there is no connection, or if it broke while nobody listened."""
        connection = self._connection
        if connection is not None and not self._channels.is_used and not self._is_read:
            try:
                while connection.can_read(0):
                    self._channels.take(_next(connection))
            except (ConnectionError, TimeoutError, ResponseError) as error:
                self._lose(error)
        if self._connection is None:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            connection.connect()
            self._connection = connection

    def _say(self, *commands: Command) -> None:
        if commands:
            connection = self._connection
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def _read_until(self, ear: Ear, until: float, is_ready: Callable[[], bool]) -> None:
        while not is_ready() and ear.lost is None and (left := until - time.monotonic()) > 0:
            if self._is_read or (self._is_tls and self._writers):
                self._turn.wait(left)
                continue
            self._read(min(left, TLS_READ_S) if self._is_tls else left)

    def _read(self, seconds: float) -> None:
        """Reads one message, and lets the other threads act meanwhile."""
        connection, self._is_read = self._connection, True
        reply, error = None, None
        self._turn.release()
        try:
            if connection.can_read(seconds):
                reply = _next(connection)
        except (ConnectionError, TimeoutError, ResponseError) as raised:
            error = raised
        except RedisError as raised:  # what is no answer of Redis
            error = ConnectionError(f"{type(raised).__name__}: {raised}")
        except (OSError, TypeError, ValueError):
            # What a socket says that another thread has closed. That thread has told all who hear.
            if connection is self._connection:
                raise
        finally:
            self._turn.acquire()
            self._is_read = False
            if connection is self._connection:
                if error is None:
                    self._channels.take(reply)
                else:
                    self._lose(error)
            self._turn.notify_all()

    def _lose(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        self._channels.lose(error)
        if connection is not None:
            connection.disconnect()
        self._turn.notify_all()


def _next(connection: Any) -> Any:
    """Reads one message; in RESP3 they are pushes, which reading for a reply would pass over."""
    return connection.read_response(push_request=True)
