"""EVENTS: the stream of state changes -> an iterator. Used by client.

It goes on where it was after a broken connection. Entries that were trimmed before they were read are an error, because
a reader that follows tasks by their events must then read statuses anew. The number of entries ever added, which Redis
7 and Valkey tell, shows a gap exactly; an older Redis shows only that the last entry read is gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    TimeoutError,  # noqa: A004
)

from pipeq.contract import events, keys, shown
from pipeq.contract.errors import ErrorCode, EventsTrimmedError, PipeqError
from pipeq.contract.events import Event
from pipeq.contract.status import State
from pipeq.protocol import Command, Give, Send, Sleep, Steps, Stream, pairs, single, transaction

_T = TypeVar("_T")
#: Events that are read together.
PAGE = 500
#: How long one command waits for new events at most, in seconds.
WAIT_S = 5.0
#: Interval of the tries while Redis is away, in seconds ...
TRY_AGAIN_S = 0.5
#: ... and time after which the reader gives up, in seconds.
OUTAGE_S = 300.0
_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_FIRST = (0, 0)


class Events:
    """One reading of the stream.

    Args:
        after: the id after which it begins; None for what happens from now on.
        wanted: whether an event is to be yielded.
        timeout_s: seconds without a wanted event after which it ends; None for never.
    """

    def __init__(
        self,
        after: str | None,
        wanted: Callable[[Event], bool],
        timeout_s: float | None,
    ) -> None:
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._at = None if after is None else place_of(after)
        #: How many entries were added until that one, as far as that is known.
        self._number: int | None = None
        self._answered_at: float | None = None

    def steps(self) -> Stream[Event]:
        """Hands out the events."""
        until = self._until()
        while True:
            found = yield from self._try(self._read)
            self._answered_at = time.monotonic() if found is not None else self._answered_at
            for one in found or ():
                if (event := events.read(*one)) is not None and self._wanted(event):
                    yield Give(event)
                    until = self._until()
            left = until - time.monotonic()
            if left <= 0 and not found:
                return None
            if not found:
                yield from self._try(partial(self._wait, min(left, WAIT_S)))

    def _until(self) -> float:
        return float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s

    def _try(self, act: Callable[[], Steps[_T]]) -> Steps[_T | None]:
        """Returns the result of steps; None if Redis is away for a while."""
        try:
            return (yield from act())
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            if self._answered_at is None or time.monotonic() - self._answered_at > OUTAGE_S:
                raise
            yield Sleep(TRY_AGAIN_S)
            return None

    def _read(self) -> Steps[list[tuple[bytes, dict[bytes, bytes]]]]:
        at = self._at
        begin = "-" if at in (None, _FIRST) else f"({_text(at)}"
        kept, about, found = yield from transaction(
            (
                ("GET", keys.EVENTS_MAX),
                ("XINFO", "STREAM", keys.EVENTS),
                ("XRANGE", keys.EVENTS, begin, "+", "COUNT", PAGE if at else 1),
            )
        )
        if isinstance(kept, Exception):
            raise kept
        if not events.kept_of(kept):
            raise PipeqError(
                ErrorCode.EVENTS_OFF,
                "nobody has switched the stream of events on: `pipeq events --keep 100000` does, or client.keep_events",
            )
        if isinstance(about, Exception) and "no such key" in str(about):
            about, found = [], []  # nothing has happened since it was switched on
        for reply in (about, found):
            if isinstance(reply, Exception):
                raise reply
        stream = _Stream.of(about)
        if self._at is None:
            self._at, self._number = stream.newest, stream.added
            return []
        if self._at == _FIRST and self._number is None:
            self._number = stream.trimmed  # what is gone already is not asked for
        self._check(stream, self._at)
        if found:
            self._at = place_of(found[-1][0].decode())
            self._number = None if self._number is None else self._number + len(found)
        else:
            self._number = stream.added
        return [(place, dict(pairs(fields or ()))) for place, fields in found]

    def _check(self, stream: _Stream, at: tuple[int, int]) -> None:
        """Raises if entries were trimmed that were not read."""
        number, trimmed = self._number, stream.trimmed
        if number is None or trimmed is None or stream.added is None:
            # Whether there was anything between the last entry read and the oldest one is not known.
            if at != _FIRST and (stream.newest < at or (stream.oldest is not None and stream.oldest > at)):
                raise self._trimmed(None)
        elif stream.added < number:
            raise self._trimmed(None)  # it was switched off, and on again
        elif trimmed > number:
            raise self._trimmed(trimmed - number)

    def _trimmed(self, count: int | None) -> EventsTrimmedError:
        many = "events" if count is None else f"{count} events"
        return EventsTrimmedError(
            f"{many} after {_text(self._at or _FIRST)} were removed before they were read: read the statuses of your "
            "tasks anew, and go on with what happens from now on, or keep more events (`pipeq events --keep`)"
        )

    def _wait(self, seconds: float) -> Steps[None]:
        at, wait_ms = _text(self._at or _FIRST), max(1, int(seconds * 1000))
        command = ("XREAD", "COUNT", 1, "BLOCK", wait_ms, "STREAMS", keys.EVENTS, at)
        (reply,) = yield Send((command,), wait_s=wait_ms / 1000)
        if isinstance(reply, Exception):
            raise reply


@dataclass(frozen=True)
class _Stream:
    """What Redis says of the stream."""

    newest: tuple[int, int]
    oldest: tuple[int, int] | None
    #: How many entries were ever added, and how many of them are gone; None for a Redis that does not say.
    added: int | None
    trimmed: int | None

    @classmethod
    def of(cls, reply: Any) -> _Stream:
        """Reads the reply of XINFO STREAM; an empty one stands for an empty stream."""
        told = {key.decode() if isinstance(key, bytes) else str(key): value for key, value in pairs(reply)}
        first, length = told.get("first-entry"), told.get("length", 0)
        added = told.get("entries-added", None if told else 0)
        oldest = place_of(first[0].decode()) if first else None
        newest = place_of(told["last-generated-id"].decode()) if told else _FIRST
        return cls(newest, oldest, added, None if added is None else added - length)


def place_of(text: str) -> tuple[int, int]:
    """Reads the id of an event.

    Raises:
        PipeqError: ``invalid_message``: it is none.
    """
    match = _ID.fullmatch(text)
    if match is None:
        sentence = f"after is {shown.line(str(text), 50)!r}: give the id of an event, such as '1795386989378-0', or '0'"
        raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
    return int(match[1]), int(match[2] or 0)


def _text(place: tuple[int, int]) -> str:
    return f"{place[0]}-{place[1]}"


def keep(count: int | None) -> Steps[int]:
    """Switches the stream on, off (0), or only reads the switch (None). Returns how many events are kept."""
    if count is None:
        return events.kept_of((yield from single("GET", keys.EVENTS_MAX)))
    commands: list[Command] = [("DEL", keys.EVENTS_MAX, keys.EVENTS)]
    if count:
        commands = [("SET", keys.EVENTS_MAX, count)]
        if not (yield from single("EXISTS", keys.EVENTS)):
            # Of this entry, which is trimmed at once, an empty stream is left, to which clients add.
            commands.append(("XADD", keys.EVENTS, "MAXLEN", 0, "*", "x", "x"))
    for reply in (yield from transaction(commands)):
        if isinstance(reply, Exception):
            raise reply
    return count


def chosen(pipelines: frozenset[str] | None, states: frozenset[State] | None) -> Callable[[Event], bool]:
    """Returns a function that says whether an event is one of these pipelines' and states; None stands for all."""
    return lambda one: (pipelines is None or one.pipeline in pipelines) and (states is None or one.state in states)
