"""ASYNC SPEAKING: takes the steps of a call, and awaits what Redis answers. Used by async_client; see speaking.

All of it happens in one event loop, so nothing is locked. Few connections serve many calls at once: Redis executes one
command after the other anyway.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.contract.errors import SettingsError
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
from pipeq.speaking import AGAIN_S, CONFIRM_S

_T = TypeVar("_T")
_P = ParamSpec("_P")
#: Connections of a client for commands, unless the URL sets `max_connections`.
CONNECTIONS = 8
#: Most commands of several calls that go out together.
COMMANDS_TOGETHER = 200
_CLOSED = ConnectionError("the event loop ends")


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
        """Closes the connections. The next steps make new ones."""
        line, self._line = self._line, None
        if line is not None and not line.loop.is_closed():
            await line.close()

    async def run(self, steps: Steps[_T]) -> _T:
        """Takes steps to their end, and returns their result."""
        line = self._of_this_loop()
        ears: list[AsyncEar] = []
        try:
            with reachable(self._url):
                return await _advance(steps, lambda ask: self._answer(line, ask, ears))
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


async def _advance(steps: Steps[_T], answer: Callable[[Any], Awaitable[Any]]) -> _T:
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
        self._pending: deque[tuple[Send, asyncio.Future[list[Any]]]] = deque()
        #: The tasks that send what is pending.
        self._senders: set[asyncio.Task[None]] = set()
        self._most_senders = max(1, connections // 2)
        self.listener = AsyncListener(self._pool)

    async def close(self) -> None:
        """Closes them."""
        await self.listener.close()
        await self._client.aclose()

    async def exchange(self, ask: Send) -> list[Any]:
        """Sends commands and reads their replies."""
        if ask.wait_s:
            # It may take long, so it takes no place from the others.
            async with self._connection() as connection:
                return await exchange(connection, ask.commands, self._timeout_s + ask.wait_s)
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
                return await _advance(steps, lambda ask: exchange(connection, ask.commands, self._timeout_s))
            except BaseException:
                # Redis forgets what the connection watches.
                await connection.disconnect(nowait=True)
                raise

    async def _send_pending(self) -> None:
        while self._pending:
            async with self._free:
                some = self._take()
                commands = [command for ask, _ in some for command in ask.commands]
                try:
                    async with self._connection() as connection:
                        found = await exchange(connection, commands, self._timeout_s) if some else []
                except BaseException as error:
                    for _, answer in some:
                        if not answer.done():
                            # Each call needs an exception of its own, since each adds its own traceback.
                            answer.set_exception(copy(error) if isinstance(error, Exception) else _CLOSED)
                    if not isinstance(error, Exception):
                        raise
                    continue
            at = 0
            for ask, answer in some:
                if not answer.done():
                    answer.set_result(found[at : at + len(ask.commands)])
                at += len(ask.commands)

    def _take(self) -> list[tuple[Send, asyncio.Future[list[Any]]]]:
        """Takes what goes out together: one large ask, or many small ones."""
        some: list[tuple[Send, asyncio.Future[list[Any]]]] = []
        count = 0
        while self._pending and (not some or count + len(self._pending[0][0].commands) <= COMMANDS_TOGETHER):
            ask, answer = self._pending.popleft()
            if not answer.done():  # otherwise its call was cancelled
                some.append((ask, answer))
                count += len(ask.commands)
        return some

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self._pool.get_connection()
        try:
            yield connection
        finally:
            await self._pool.release(connection)


async def exchange(connection: Any, commands: Sequence[Command], timeout_s: float) -> list[Any]:
    """Sends commands and reads their replies; a connection that is not at their end is closed."""
    try:
        async with asyncio.timeout(timeout_s):
            await connection.send_packed_command(connection.pack_commands(commands))
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


class AsyncEar(Ear):
    """What one call listens to in an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.awake = asyncio.Event()


class AsyncListener:
    """The connection on which all waits of a client hear. A task reads from it, from the first wait until its close."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._channels = Channels()
        self._connection: Any = None
        self._connecting: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        #: Channels whose subscription is sent with the next command.
        self._unsent: list[str] = []

    async def close(self) -> None:
        """Closes the connection; those who wait are told."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
        await self._lose(ConnectionError("the client was closed"))

    async def listen(self, ear: AsyncEar, names: Iterable[str]) -> None:
        """Subscribes to channels, and waits until Redis confirms it."""
        ear.lost = None
        while (connection := self._connection) is None:
            # All who wait for the connection go on in the same moment. One that is cancelled does not end it.
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect(), name="pipeq-connect")
            await asyncio.shield(self._connecting)
        self._unsent += self._channels.add(ear, names)
        # Many calls that begin to wait in the same moment are sent together, by the first that goes on here.
        await asyncio.sleep(0)
        if self._unsent and connection is self._connection:
            new, self._unsent = self._unsent, []
            commands = in_commands("SUBSCRIBE", new) + in_commands("UNSUBSCRIBE", self._channels.take_idle())
            try:
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            except (ConnectionError, TimeoutError) as error:
                await self._lose(error)
        await self._wait(ear, time.monotonic() + CONFIRM_S, lambda: not ear.unconfirmed)
        if ear.unconfirmed:
            await self._lose(TimeoutError("Redis does not confirm a subscription"))
        _check(ear)

    def unlisten(self, ears: list[AsyncEar], names: Iterable[str]) -> None:
        """Ends subscriptions of an ear, if there is one."""
        for ear in ears:
            self._channels.drop(ear, names)

    def drop(self, ears: list[AsyncEar]) -> None:
        """Ends all subscriptions of an ear, if there is one."""
        for ear in ears:
            self._channels.drop(ear, list(ear.channels))

    async def hear(self, ear: AsyncEar, until: float) -> list[tuple[str, bytes]]:
        """Waits for messages; empty if there are none."""
        await self._wait(ear, until, lambda: bool(ear.heard))
        heard, ear.heard = ear.heard, deque()
        if not heard:
            _check(ear)
        return list(heard)

    async def _wait(self, ear: AsyncEar, until: float, is_ready: Callable[[], bool]) -> None:
        while not is_ready() and ear.lost is None and (left := until - time.monotonic()) > 0:
            ear.awake.clear()
            try:
                async with asyncio.timeout(left):
                    await ear.awake.wait()
            except builtins.TimeoutError:
                return

    async def _connect(self) -> None:
        try:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            await connection.connect()
            self._connection = connection
            self._reader = asyncio.create_task(self._read(connection), name="pipeq-listener")
        finally:
            self._connecting = None

    async def _read(self, connection: Any) -> None:
        try:
            while True:
                reply = await connection.read_response(push_request=True)
                for ear in self._channels.take(reply):
                    if isinstance(ear, AsyncEar):
                        ear.awake.set()
        except (ConnectionError, TimeoutError) as error:
            if connection is self._connection:
                await self._lose(error)

    async def _lose(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        self._unsent.clear()
        for ear in self._channels.lose(error):
            if isinstance(ear, AsyncEar):
                ear.awake.set()
        if connection is not None:
            await connection.disconnect(nowait=True)


def _check(ear: Ear) -> None:
    if ear.lost is not None:
        lost, ear.lost = ear.lost, None
        raise lost


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
