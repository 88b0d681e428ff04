"""ASYNC LINE: the connections of a client in one event loop. Used by async_speaking; after it, redis-py connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, TypeAlias, TypeVar

import redis.asyncio
from hiredis import pack_command
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.async_hearing import AsyncListener
from pipeq.protocol import Command, Send, Steps

_T = TypeVar("_T")
#: Most commands of several calls that go out together.
COMMANDS_TOGETHER = 200
#: What a call asks for, and where it waits for the answer.
_Asked: TypeAlias = tuple[Send, asyncio.Future[list[Any]]]
_CLOSED = ConnectionError("the event loop ends")


async def advance(steps: Steps[_T], answer: Callable[[Any], Awaitable[Any]]) -> _T:
    """Takes steps to their end, with a function that answers what they ask for."""
    value, error = None, None
    while True:
        try:
            ask = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            result: _T = end.value
            return result
        value, error = None, None
        try:
            value = await answer(ask)
        except Exception as raised:
            error = raised
        except BaseException:
            steps.close()
            raise


class Line:
    """The connections of a client in one event loop.

    What calls ask for while all connections are busy goes out together with the next write, so that many calls at once
    take few round trips, and a call that is cancelled disturbs no other.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, client: redis.asyncio.Redis, connections: int, timeout_s: float
    ) -> None:
        self.loop = loop
        self._client = client
        self._pool: Any = client.connection_pool
        self._free = asyncio.Semaphore(connections)
        self._timeout_s = timeout_s
        self._pending: deque[_Asked] = deque()
        #: The tasks that send what is pending.
        self._senders: set[asyncio.Task[None] | None] = set()
        self._most_senders = max(1, connections // 2)
        self.listener = AsyncListener(self._pool)
        #: Calls that are under way then end, too: else one would connect again, and nobody would close that.
        self.is_closed = False

    async def close(self) -> None:
        """Closes them."""
        self.is_closed = True
        await self.listener.close()
        await self._client.aclose()

    async def exchange(self, ask: Send) -> list[Any]:
        """Sends commands and reads their replies."""
        if ask.wait_s:
            # It may take long, so it takes no place from the others.
            async with self._connection() as connection:
                return await exchange(connection, (*ask.commands, *ask.questions), self._timeout_s + ask.wait_s)
        answer: asyncio.Future[list[Any]] = self.loop.create_future()
        self._pending.append((ask, answer))
        if len(self._senders) < self._most_senders:
            sender = self.loop.create_task(self._send_pending(), name="pipeq-send")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await answer

    async def session(self, steps: Steps[Any]) -> Any:
        """Takes steps with one connection."""
        async with self._free, self._connection() as connection:
            try:
                return await advance(
                    steps, lambda ask: exchange(connection, (*ask.commands, *ask.questions), self._timeout_s)
                )
            except BaseException:
                # Redis forgets what the connection watches.
                await connection.disconnect(nowait=True)
                raise

    async def _send_pending(self) -> None:
        try:
            while self._pending:
                await self._send_some()
        finally:
            # Now, and not when the task's callbacks run: what is asked for in between would wait for ever.
            self._senders.discard(asyncio.current_task())

    async def _send_some(self) -> None:
        some: list[_Asked] = []
        try:
            async with self._free, self._connection() as connection:
                # Not before there is a connection: while it is made, another one may take them.
                some = self._take()
                commands, places = together([ask for ask, _ in some])
                found = await exchange(connection, commands, self._timeout_s) if some else []
        except BaseException as error:
            for _, answer in some or self._take():
                if not answer.done():
                    # Each call needs an exception of its own, since each adds its own traceback.
                    answer.set_exception(copy(error) if isinstance(error, Exception) else _CLOSED)
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), place in zip(some, places, strict=True):
            if not answer.done():
                answer.set_result([found[at] for at in place])

    def _take(self) -> list[_Asked]:
        """Takes what goes out together: one large ask, or many small ones."""
        some: list[_Asked] = []
        count = 0
        while self._pending and (not some or count + len(self._pending[0][0].commands) <= COMMANDS_TOGETHER):
            ask, answer = self._pending.popleft()
            if not answer.done():  # otherwise its call was cancelled
                some.append((ask, answer))
                count += len(ask.commands) + len(ask.questions)
        return some

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self._pool.get_connection()
        try:
            yield connection
        finally:
            await self._pool.release(connection)


def together(asks: Sequence[Send]) -> tuple[list[Command], list[list[int]]]:
    """The commands of several asks, each question of which is asked once; and where the replies of each ask are."""
    commands = [command for ask in asks for command in ask.commands]
    asked: dict[Command, int] = {}
    places, at = [], 0
    for ask in asks:
        for question in ask.questions:
            if question not in asked:
                asked[question] = len(commands)
                commands.append(question)
        places.append([*range(at, at + len(ask.commands)), *(asked[question] for question in ask.questions)])
        at += len(ask.commands)
    return commands, places


async def exchange(connection: Any, commands: Sequence[Command], timeout_s: float) -> list[Any]:
    """Sends commands and reads their replies; a connection that is not at their end is closed."""
    try:
        async with asyncio.timeout(timeout_s):
            # redis-py's own packing, in Python, takes half of the CPU time of a submit.
            await connection.send_packed_command([pack_command(tuple(command)) for command in commands])
            return [await _read(connection) for _ in commands]
    except BaseException as error:
        await connection.disconnect(nowait=True)
        if isinstance(error, asyncio.TimeoutError):
            raise TimeoutError("Timeout reading from socket") from error
        raise


async def _read(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
