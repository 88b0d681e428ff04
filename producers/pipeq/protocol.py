"""PROTOCOL: the language between what a call does, in steps without I/O, and the two speakers that do its I/O.

Each method of the client is written once, as a generator. It yields what it needs of the world: one of the asks below.
It gets the answer as the value of its ``yield``, or as an exception there. So the same steps serve `Client`, which
blocks, and `AsyncClient`, which awaits, and a test can run them without either.

    def length(self, key: str) -> Steps[int]:
        return (yield from single("LLEN", key))

docs/decisions/one-protocol.md has the reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from pipeq.contract import shown
from pipeq.contract.errors import RedisUnavailableError
from pipeq.contract.redis_url import refusal

_T = TypeVar("_T")
#: A command of Redis and its arguments.
Command: TypeAlias = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Send:
    """Sends commands in one round trip. Answer: the list of their replies; a command's own error is its reply.

    The replies are those of the wire: bytes, integers, lists, None. :func:`pairs` reads those of RESP2 and RESP3 alike.

    Raises:
        redis.exceptions.ConnectionError: or TimeoutError: Redis is away.
    """

    commands: Sequence[Command]
    #: Whether they are sent once more if the connection breaks: not if it matters that they were executed once.
    again: bool = True
    #: Seconds that Redis may take for them beside what replies take anyway, since one of them waits there.
    wait_s: float = 0.0
    #: Commands that only read, and that are sent behind the others. Their replies follow. Calls of an event loop that
    #: go out together ask the same question once.
    questions: Sequence[Command] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """Runs steps with one connection for all that they send, for instance between WATCH and EXEC. Answer: their result.

    Their asks are Send alone, and nothing is sent again. They end with EXEC or UNWATCH, if they do not raise.
    """

    steps: Steps[Any]


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribes this call to channels, on the connection that all calls of a client share. Answer: None.

    What is published from now on is heard. Raises as :class:`Send` does; then nothing is subscribed any more.
    """

    channels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Ends some of this call's subscriptions; all of them end with the call. Answer: None."""

    channels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Hear:
    """Waits for messages. Answer: a list of channel and data; empty if there was none. Raises as :class:`Listen` does.

    Waits until this time of the monotonic clock.
    """

    until: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Waits. Answer: None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """Calls a function that blocks, for instance reads a file; an async client does so in a thread. Answer: its result.

    Raises:
        Exception: what the function raises.
    """

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Pull:
    """Takes the next value of an asynchronous iterator. Answer: a list of it; empty at the end.

    Raises:
        Exception: what the iterator raises; a TypeError in a client that blocks.
    """

    source: AsyncIterator[Any]


@dataclass(frozen=True, slots=True)
class Give:
    """Hands a value to the caller, who iterates. Answer: None, when the caller asks for the next one."""

    value: Any


Ask: TypeAlias = Send | Session | Listen | Unlisten | Hear | Sleep | Run | Pull | Give
#: Steps of a call, with its result ...
Steps: TypeAlias = Generator[Any, Any, _T]
#: ... and of one that hands out values of this type, with :class:`Give`. They end with None.
Stream: TypeAlias = Generator[Any, Any, _T | None]


# -- what goes to Redis -----------------------------------------------------------------------------------------------


def replies(*commands: Command, again: bool = True) -> Steps[list[Any]]:
    """Sends commands. A key of a wrong type gives None, so that the other replies are not lost.

    Raises:
        RedisError: the first other error.
    """
    return tolerant((yield Send(commands, again)))


def single(*command: Any) -> Steps[Any]:
    """Sends one command, and returns its reply, or raises its error."""
    (reply,) = yield Send((command,))
    if isinstance(reply, Exception):
        raise reply
    return reply


def transaction(commands: Sequence[Command], questions: Sequence[Command] = ()) -> Steps[list[Any]]:
    """Sends commands between MULTI and EXEC, once, and questions behind them.

    Answer: the replies of the commands, then of the questions; a command's own error is its reply.

    Raises:
        WatchError: a watched key was changed, and nothing was executed.
        RedisError: Redis refuses one of them, and executed none.
    """
    found = yield Send((("MULTI",), *commands, ("EXEC",)), again=False, questions=questions)
    *queued, done = found[: len(commands) + 2]
    if isinstance(done, Exception):
        # EXEC says only that there was an error before it.
        raise next((reply for reply in queued if isinstance(reply, Exception)), done)
    if done is None:
        raise WatchError("Watched variable changed.")
    return [*done, *found[len(commands) + 2 :]]


def twice(act: Callable[[], Steps[_T]]) -> Steps[_T]:
    """Takes steps again if the connection was broken, as those of a pool are after a restart of Redis."""
    try:
        return (yield from act())
    except AuthenticationError:
        raise
    except (ConnectionError, TimeoutError):
        return (yield from act())


def scripts(source: str, calls: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> Steps[list[Any]]:
    """Runs a Lua script, once for each pair of keys and arguments. Answer: the replies, each perhaps an error."""
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    commands = [("EVALSHA", sha, len(keys), *keys, *args) for keys, args in calls]
    found = list((yield Send(commands, again=False)))
    missing = [at for at, reply in enumerate(found) if isinstance(reply, NoScriptError)]
    if missing:
        _, *late = yield Send((("SCRIPT", "LOAD", source), *(commands[at] for at in missing)), again=False)
        for at, reply in zip(missing, late, strict=True):
            found[at] = reply
    return found


def given(stream: Stream[_T]) -> Steps[_T | None]:
    """Takes steps as far as the next value that they hand out; None at their end. Values are not None."""
    answer, error = None, None
    while True:
        try:
            ask = stream.send(answer) if error is None else stream.throw(error)
        except StopIteration:
            return None
        if isinstance(ask, Give):
            value: _T = ask.value
            return value
        answer, error = None, None
        try:
            answer = yield ask
        except Exception as raised:
            error = raised


def listed(stream: Stream[_T], most: int | None = None) -> Steps[tuple[_T, ...]]:
    """Takes steps that hand out values, and returns the values: all of them, or so many."""
    found: list[_T] = []
    while (most is None or len(found) < most) and (value := (yield from given(stream))) is not None:
        found.append(value)
    stream.close()
    return tuple(found)


# -- how answers read -------------------------------------------------------------------------------------------------


def tolerant(found: Sequence[Any]) -> list[Any]:
    """Returns replies with None for those that say that a key has a wrong type; raises the first other error."""
    for reply in found:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in found]


def pairs(reply: Any) -> Iterator[tuple[Any, Any]]:
    """Reads a map, which RESP2 sends as a flat list."""
    return iter(reply.items()) if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=False)


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis says that a key holds another type."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turns exceptions of redis-py inside the block into RedisUnavailableError, without the URL's password."""
    try:
        yield
    except RedisError as error:
        where, says = shown.uri(url), shown.line(str(error))
        if isinstance(error, AuthenticationError):
            message = f"{where} {refusal(error, 'the password')}"
        elif isinstance(error, ConnectionError | TimeoutError):
            message = f"cannot reach Redis at {where} ({says})"
        elif isinstance(error, NoPermissionError):
            message = (
                f"Redis at {where} does not let this user do that ({says}): deploy/redis-users.acl has the rights that "
                "a producer needs, an operator, and a maintainer"
            )
        else:
            message = f"Redis at {where} answers: {says}"
        passing = isinstance(error, ConnectionError | TimeoutError) and not isinstance(error, AuthenticationError)
        raise RedisUnavailableError(message, passing) from error
