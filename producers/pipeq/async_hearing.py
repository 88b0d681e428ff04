"""ASYNC HEARING: the connection on which all waits of a client in an event loop hear. Used by async_speaking."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import (
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.listening import CONFIRM_S, Channels, Ear, check, in_commands


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
        check(ear)

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
            check(ear)
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
        except Exception as error:
            # Whatever it is: nobody reads any more, and those who wait must be told.
            is_known = isinstance(error, ConnectionError | TimeoutError | ResponseError)
            if connection is self._connection:
                await self._lose(error if is_known else ConnectionError(f"{type(error).__name__}: {error}"))

    async def _lose(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        self._unsent.clear()
        for ear in self._channels.lose(error):
            if isinstance(ear, AsyncEar):
                ear.awake.set()
        if connection is not None:
            await connection.disconnect(nowait=True)
