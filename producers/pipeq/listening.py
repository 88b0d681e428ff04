"""LISTENING: one connection for all the waits of a client. Who listens to what, without I/O. Used by both speakers.

A record's channel has a message when its task has ended. A channel that nobody listens to any more stays subscribed
until there are some, and then one command ends them together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from redis.exceptions import (
    ConnectionError,  # noqa: A004
    ResponseError,
)

#: Channels without a listener that end together.
IDLE_CHANNELS = 200
#: Most channels of one command.
CHANNELS_PER_COMMAND = 500
#: Seconds that Redis may take to confirm a subscription.
CONFIRM_S = 30.0


class Ear:
    """What one call listens to, and what it has heard."""

    def __init__(self) -> None:
        self.channels: set[str] = set()
        #: Those of them that Redis has not confirmed yet.
        self.unconfirmed: set[str] = set()
        #: Channel and data, in the order of their publication.
        self.heard: deque[tuple[str, bytes]] = deque()
        #: Why its subscriptions are gone; None as long as they are there.
        self.lost: Exception | None = None


class Channels:
    """The subscriptions of one connection."""

    def __init__(self) -> None:
        self._ears: dict[str, set[Ear]] = {}
        #: Channel -> how many confirmations of Redis are still to come.
        self._unconfirmed: dict[str, int] = {}
        self._idle: set[str] = set()

    @property
    def is_used(self) -> bool:
        """Whether anybody listens."""
        return bool(self._ears)

    def add(self, ear: Ear, names: Iterable[str]) -> list[str]:
        """Notes that an ear listens to channels. Returns those that must be subscribed to."""
        new = []
        for name in names:
            ear.channels.add(name)
            if (ears := self._ears.get(name)) is not None:
                ears.add(ear)
            else:
                self._ears[name] = {ear}
                if name in self._idle:
                    self._idle.discard(name)
                else:
                    self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
                    new.append(name)
            if name in self._unconfirmed:
                ear.unconfirmed.add(name)
        return new

    def drop(self, ear: Ear, names: Iterable[str]) -> None:
        """Notes that an ear does not listen to channels any more."""
        for name in names:
            ear.channels.discard(name)
            ear.unconfirmed.discard(name)
            ears = self._ears.get(name)
            if ears is not None:
                ears.discard(ear)
                if not ears:
                    del self._ears[name]
                    self._idle.add(name)

    def take_idle(self) -> list[str]:
        """Returns the channels that must be unsubscribed from now: none while there are few."""
        if len(self._idle) < IDLE_CHANNELS:
            return []
        idle = list(self._idle)
        self._idle.clear()
        return idle

    def take(self, reply: object) -> set[Ear]:
        """Reads what came on the connection. Returns the ears that may go on."""
        if not isinstance(reply, list) or len(reply) != 3:
            return set()
        kind, name, data = reply
        channel = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        ears = self._ears.get(channel, set())
        if kind == b"subscribe":
            left = self._unconfirmed.get(channel, 1) - 1
            if left:
                self._unconfirmed[channel] = left
                return set()
            self._unconfirmed.pop(channel, None)
            for ear in ears:
                ear.unconfirmed.discard(channel)
            return {ear for ear in ears if not ear.unconfirmed}
        if kind == b"message":
            for ear in ears:
                ear.heard.append((channel, data))
            return set(ears)
        return set()

    def lose(self, error: Exception) -> set[Ear]:
        """Notes that the connection is gone, or is of no use any more. Returns the ears that must be told.

        Redis does not say which subscription it refuses. Those that were confirmed are told that they must begin anew.
        """
        ears = {ear for some in self._ears.values() for ear in some}
        for ear in ears:
            is_of_others = isinstance(error, ResponseError) and not ear.unconfirmed
            ear.lost = ConnectionError("another subscription was refused") if is_of_others else error
            ear.channels.clear()
            ear.unconfirmed.clear()
        self._ears.clear()
        self._unconfirmed.clear()
        self._idle.clear()
        return ears


def in_commands(kind: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The commands that subscribe to channels, or end that."""
    return [
        (kind, *names[start : start + CHANNELS_PER_COMMAND]) for start in range(0, len(names), CHANNELS_PER_COMMAND)
    ]


def check(ear: Ear) -> None:
    """Raises the error with which an ear lost its subscriptions, once."""
    if ear.lost is not None:
        lost, ear.lost = ear.lost, None
        raise lost
