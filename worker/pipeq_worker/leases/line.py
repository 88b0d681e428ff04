"""LINE: the reserver's two connections to Redis, one for its script, one on which Redis reports that a list changed.

The connections belong to the line's owner and end with it. They come from no pool, because a pool has a limit, and each
lost pair would take two off it for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from redis.exceptions import NoScriptError, RedisError, ResponseError

from pipeq_worker.leases import celery_internals

logger = logging.getLogger(__name__)


class Link(Protocol):
    """A connection of redis-py, with the attributes that its type hints leave out."""

    _sock: Any

    def connect(self) -> None: ...  # noqa: D102
    def disconnect(self) -> None: ...  # noqa: D102
    def send_command(self, *command: Any) -> None: ...  # noqa: D102
    def read_response(self) -> Any: ...  # noqa: D102
    def can_read(self, timeout: float) -> bool: ...  # noqa: D102


class Line:
    """Connects at first use, and again after :meth:`close`. For use by one thread.

    Args:
        make: creates an unconnected connection.
    """

    def __init__(self, make: Callable[[], Link]) -> None:
        self._make = make
        self._link: Link | None = None
        self._bell: Link | None = None
        self._sha: Any = None

    def call(self, script: str, arguments: list[Any]) -> Any:
        """Calls a script, and returns its reply."""
        link = self._connected()
        if self._sha is None:
            self._sha = _command(link, "SCRIPT", "LOAD", script)
        try:
            return _command(link, "EVALSHA", self._sha, *arguments)
        except NoScriptError:
            self._sha = None
            return self.call(script, arguments)

    @property
    def rings(self) -> bool:
        """Whether Redis reports changes of lists that the script found empty."""
        return self._bell is not None

    def rung(self) -> bool:
        """Reads the reports that have arrived. Returns whether there were any."""
        rung = False
        while self._bell is not None and self._bell.can_read(timeout=0):
            self._bell.read_response()
            rung = True
        return rung

    @property
    def sockets(self) -> list[Any]:
        """Sockets that become readable between two calls when a list changes, or when a connection ends."""
        return [celery_internals.socket_of(one) for one in (self._link, self._bell) if one is not None]

    def close(self) -> None:
        """Disconnects."""
        for connection in (self._link, self._bell):
            _disconnect(connection)
        self._link = self._bell = None

    def _connected(self) -> Link:
        if self._link is None:
            link = self._make()
            try:
                link.connect()
                self._bell = self._listen(link)
            except BaseException:
                _disconnect(link)
                raise
            self._link = link
        return self._link

    def _listen(self, link: Link) -> Link | None:
        bell = self._make()
        try:
            bell.connect()
            number = _command(bell, "CLIENT", "ID")
            _command(bell, "SUBSCRIBE", "__redis__:invalidate")
            # NOLOOP: changes by the script itself are not reported.
            _command(link, "CLIENT", "TRACKING", "ON", "REDIRECT", number, "NOLOOP")
        except ResponseError as error:
            _disconnect(bell)
            logger.info("Redis does not track keys (%s): looking ten times a second", error, extra={"action": "poll"})
            return None
        except BaseException:
            _disconnect(bell)
            raise
        return bell


def _command(connection: Link, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def _disconnect(connection: Link | None) -> None:
    if connection is not None:
        with suppress(RedisError, OSError):
            connection.disconnect()
