"""SPEAKING: takes the steps of a call, and blocks while Redis answers. Used by client; async_speaking is its twin.

Commands go out on connections of redis-py's pool, which connect, authenticate, pack and parse. What the commands are,
and what the replies mean, say the steps (protocol).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import redis
from hiredis import pack_command
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.contract.errors import SettingsError
from pipeq.hearing import Listener
from pipeq.listening import Ear
from pipeq.methods import as_method
from pipeq.protocol import (
    Give,
    Hear,
    Listen,
    Pull,
    Run,
    Send,
    Session,
    Sleep,
    Steps,
    Stream,
    Unlisten,
    reachable,
)
from pipeq.warn import warn

_T = TypeVar("_T")
_P = ParamSpec("_P")
#: Seconds before commands are sent again.
AGAIN_S = 0.05


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
        #: How often it was closed: calls of other threads that are under way then end, too, and do not connect again.
        self._closes = 0

    def close(self) -> None:
        """Closes the connections, and ends calls that are under way. The next calls make new ones."""
        self._closes += 1
        self._listener.close()
        self._client.close()

    def run(self, steps: Steps[_T]) -> _T:
        """Takes steps to their end, and returns their result."""
        self._warn_in_loop()
        ears: list[Ear] = []
        closes = self._closes
        try:
            with reachable(self._url):
                return self._advance(steps, lambda ask: self._answer(ask, ears, closes))
        finally:
            self._listener.drop(ears)

    def iterate(self, steps: Stream[_T]) -> Iterator[_T]:
        """Takes steps as far as the caller asks for what they hand out."""
        self._warn_in_loop()
        ears: list[Ear] = []
        closes = self._closes
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
                    answer = self._answer(ask, ears, closes)
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

    def _answer(self, ask: Any, ears: list[Ear], closes: int) -> Any:
        if closes != self._closes:
            raise SettingsError("this Client was closed while the call was under way: close it after its last one")
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
            case Pull():
                raise TypeError("it is asynchronous: use AsyncClient for it")
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
    commands = (*ask.commands, *ask.questions)
    try:
        # redis-py's own packing, in Python, takes an eighth of the CPU time of a submit.
        connection.send_packed_command([b"".join([pack_command(tuple(command)) for command in commands])])
        if ask.wait_s:
            connection.can_read(ask.wait_s)
        return [_read(connection) for _ in commands]
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
