"""ASYNC SPEAKING: takes the steps of a call, and awaits what Redis answers. Used by async_client; see speaking.

All of it happens in one event loop, so nothing is locked. Few connections serve many calls at once: Redis executes one
command after the other anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    TimeoutError,  # noqa: A004
)

from pipeq.async_hearing import AsyncEar
from pipeq.async_line import Line, advance
from pipeq.contract.errors import SettingsError
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
from pipeq.speaking import AGAIN_S

_T = TypeVar("_T")
_P = ParamSpec("_P")
#: Connections of a client for commands, unless the URL sets `max_connections`.
CONNECTIONS = 8


class AsyncSpeaker:
    """Takes steps, with the connections of one client. It belongs to the event loop in which it is first used.

    Args:
        connect: makes redis-py's client, which must send nothing again by itself, and wait for ever.
        url: for error messages.
        timeout_s: how long a reply may take.
        connections: most connections for commands.
    """

    def __init__(
        self, connect: Callable[[], redis.asyncio.Redis], url: str, timeout_s: float, connections: int = CONNECTIONS
    ) -> None:
        self._connect = connect
        self._url = url
        self._timeout_s = timeout_s
        self._connections = connections
        self._line: Line | None = None

    async def close(self) -> None:
        """Closes the connections, and ends calls that are under way. The next calls make new ones."""
        line, self._line = self._line, None
        if line is not None and not line.loop.is_closed():
            await line.close()

    async def run(self, steps: Steps[_T]) -> _T:
        """Takes steps to their end, and returns their result."""
        line = self._of_this_loop()
        ears: list[AsyncEar] = []
        try:
            with reachable(self._url):
                return await advance(steps, lambda ask: self._answer(line, ask, ears))
        finally:
            line.listener.drop(ears)

    async def iterate(self, steps: Stream[_T]) -> AsyncIterator[_T]:
        """Takes steps as far as the caller asks for what they hand out."""
        line = self._of_this_loop()
        ears: list[AsyncEar] = []
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
                    answer = await self._answer(line, ask, ears)
                except Exception as raised:
                    error = raised
        finally:
            steps.close()
            line.listener.drop(ears)

    def _of_this_loop(self) -> Line:
        loop = asyncio.get_running_loop()
        line = self._line
        if line is None or line.loop is not loop:
            if line is not None and not line.loop.is_closed():
                raise SettingsError("this AsyncClient is in use in another event loop: make one for each loop")
            # Connections of a loop that has ended cannot be used, nor closed, any more.
            line = self._line = Line(loop, self._connect(), self._connections, self._timeout_s)
        return line

    async def _answer(self, line: Line, ask: Any, ears: list[AsyncEar]) -> Any:
        if line.is_closed:
            raise SettingsError("this AsyncClient was closed while the call was under way: close it after its last one")
        match ask:
            case Send():
                return await self._send(line, ask)
            case Session():
                return await line.session(ask.steps)
            case Listen():
                if not ears:
                    ears.append(AsyncEar())
                return await line.listener.listen(ears[0], ask.channels)
            case Unlisten():
                return line.listener.unlisten(ears, ask.channels)
            case Hear():
                return await line.listener.hear(ears[0], ask.until)
            case Sleep():
                return await asyncio.sleep(ask.seconds)
            case Run():
                return await asyncio.to_thread(ask.function)
            case Pull():
                return await _pulled(ask.source)
        raise TypeError(f"{ask!r} is nothing that steps may ask for")

    async def _send(self, line: Line, ask: Send) -> list[Any]:
        try:
            return await line.exchange(ask)
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            if not ask.again:
                raise
        await asyncio.sleep(AGAIN_S)
        return await line.exchange(ask)


async def _pulled(source: AsyncIterator[Any]) -> list[Any]:
    try:
        return [await anext(source)]
    except StopAsyncIteration:
        return []


def awaiting(
    call: Callable[Concatenate[Any, _P], Steps[_T]],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """Makes a method that is awaited until the end of steps; see :func:`pipeq.speaking.blocking`."""

    @wraps(call)
    async def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        speaker: AsyncSpeaker = self._speaker
        return await speaker.run(call(self._steps, *args, **kwargs))

    return as_method(method, call, "{}")


def async_iterating(
    call: Callable[Concatenate[Any, _P], Stream[_T]],
) -> Callable[Concatenate[Any, _P], AsyncIterator[_T]]:
    """Makes a method that returns an asynchronous iterator over what steps hand out."""

    @wraps(call)
    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[_T]:
        speaker: AsyncSpeaker = self._speaker
        return speaker.iterate(call(self._steps, *args, **kwargs))

    return as_method(method, call, "AsyncIterator[{}]")
