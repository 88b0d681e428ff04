"""SPEAKING: takes the steps of a call, and blocks while Redis answers. Used by client; async_speaking is its twin.

Commands go out on connections of redis-py's pool, which connect, authenticate, pack and parse. What the commands are,
and what the replies mean, say the steps (protocol).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import redis
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.listening import Channels, Ear, in_commands
from pipeq.protocol import (
    Command,
    Give,
    Hear,
    Listen,
    Run,
    Send,
    Session,
    Sleep,
    Steps,
    Stream,
    Unlisten,
    as_method,
    reachable,
)
from pipeq.warn import warn

_T = TypeVar("_T")
_P = ParamSpec("_P")
#: Seconds before commands are sent again.
AGAIN_S = 0.05
#: Seconds that Redis may take to confirm a subscription.
CONFIRM_S = 30.0
#: Seconds for which a thread reads from a TLS connection before it lets others write.
TLS_READ_S = 0.05


class InEventLoopWarning(UserWarning):
    """A client that blocks is used in an event loop, which does nothing else meanwhile."""


class Speaker:
    """Takes steps, with the connections of one client. Threads may share it.

    Args:
        client: must send nothing again by itself, since the steps say what may be sent twice.
        url: for error messages.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self._pool = client.connection_pool
        self._client = client
        self._url = url
        self._listener = Listener(self._pool)
        self._has_warned = False

    def close(self) -> None:
        """Closes the connections. The next steps make new ones."""
        self._listener.close()
        self._client.close()

    def run(self, steps: Steps[_T]) -> _T:
        """Takes steps to their end, and returns their result."""
        self._warn_in_loop()
        ears: list[Ear] = []
        try:
            with reachable(self._url):
                return self._advance(steps, lambda ask: self._answer(ask, ears))
        finally:
            self._listener.drop(ears)

    def iterate(self, steps: Stream[_T]) -> Iterator[_T]:
        """Takes steps as far as the caller asks for what they hand out."""
        self._warn_in_loop()
        ears: list[Ear] = []
        answer, error = None, None
        try:
            while True:
                with reachable(self._url):
                    try:
                        ask = steps.send(answer) if error is None else steps.throw(error)
                    except StopIteration:
                        return
                answer, error = None, None
                if isinstance(ask, Give):
                    yield ask.value
                    continue
                try:
                    answer = self._answer(ask, ears)
                except Exception as raised:
                    error = raised
        finally:
            steps.close()
            self._listener.drop(ears)

    def _warn_in_loop(self) -> None:
        if self._has_warned or not in_event_loop():
            return
        self._has_warned = True
        warn(
            "Client blocks the event loop that it is used in: use AsyncClient there, whose methods are the same",
            InEventLoopWarning,
        )

    def _advance(self, steps: Steps[_T], answer: Callable[[Any], Any]) -> _T:
        value, error = None, None
        while True:
            try:
                ask = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                result: _T = end.value
                return result
            value, error = None, None
            try:
                value = answer(ask)
            except Exception as raised:
                error = raised
            except BaseException:
                steps.close()
                raise

    def _answer(self, ask: Any, ears: list[Ear]) -> Any:
        match ask:
            case Send():
                return self._send(ask)
            case Session():
                return self._session(ask.steps)
            case Listen():
                if not ears:
                    ears.append(Ear())
                return self._listener.listen(ears[0], ask.channels)
            case Unlisten():
                return self._listener.unlisten(ears, ask.channels)
            case Hear():
                return self._listener.hear(ears[0], ask.until)
            case Sleep():
                return time.sleep(ask.seconds)
            case Run():
                return ask.function()
        raise TypeError(f"{ask!r} is nothing that steps may ask for")

    def _send(self, ask: Send) -> list[Any]:
        try:
            return self._exchange(ask)
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            if not ask.again:
                raise
        time.sleep(AGAIN_S)
        return self._exchange(ask)

    def _exchange(self, ask: Send) -> list[Any]:
        connection = self._pool.get_connection()
        try:
            return exchange(connection, ask)
        finally:
            self._pool.release(connection)

    def _session(self, steps: Steps[Any]) -> Any:
        connection: Any = self._pool.get_connection()
        try:
            return self._advance(steps, lambda ask: exchange(connection, ask))
        except BaseException:
            # Redis forgets what the connection watches.
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)


def exchange(connection: Any, ask: Send) -> list[Any]:
    """Sends commands and reads their replies; a connection that is not at their end is closed."""
    try:
        connection.send_packed_command(connection.pack_commands(ask.commands))
        if ask.wait_s:
            connection.can_read(ask.wait_s)
        return [_read(connection) for _ in ask.commands]
    except BaseException:
        connection.disconnect()
        raise


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def in_event_loop() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
            _check(ear)

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
                _check(ear)
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
            except (ConnectionError, TimeoutError) as error:
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
        except (ConnectionError, TimeoutError) as raised:
            error = raised
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


def _check(ear: Ear) -> None:
    if ear.lost is not None:
        lost, ear.lost = ear.lost, None
        raise lost


def blocking(call: Callable[Concatenate[Any, _P], Steps[_T]]) -> Callable[Concatenate[Any, _P], _T]:
    """Makes a method that blocks until the end of steps. Its class has a `_speaker`, and the steps' object `_steps`."""

    @wraps(call)
    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        speaker: Speaker = self._speaker
        return speaker.run(call(self._steps, *args, **kwargs))

    return as_method(method, call, "{}")


def iterating(call: Callable[Concatenate[Any, _P], Stream[_T]]) -> Callable[Concatenate[Any, _P], Iterator[_T]]:
    """Makes a method that returns an iterator over what steps hand out."""

    @wraps(call)
    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        speaker: Speaker = self._speaker
        return speaker.iterate(call(self._steps, *args, **kwargs))

    return as_method(method, call, "Iterator[{}]")
