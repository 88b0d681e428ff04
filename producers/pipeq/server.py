"""The Redis that a client uses: translates its errors to ours, and tolerates errors of single commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.contract import shown
from pipeq.contract.errors import RedisUnavailableError
from pipeq.contract.redis_url import refusal


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
            message = f"cannot reach Redis at {where}: {says}"
        elif isinstance(error, NoPermissionError):
            message = (
                f"Redis at {where} does not let this user do that ({says}): deploy/redis-users.acl has the rights that "
                "a producer needs, an operator, and a maintainer"
            )
        else:
            message = f"Redis at {where} answers: {says}"
        passing = isinstance(error, ConnectionError | TimeoutError) and not isinstance(error, AuthenticationError)
        raise RedisUnavailableError(message, passing) from error


def replies(pipe: Pipeline) -> list[Any]:
    """Runs a pipeline. A key of a wrong type gives None, so that the other replies are not lost.

    Raises:
        RedisError: the first other error.
    """
    found = pipe.execute(raise_on_error=False)
    for reply in found:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in found]


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis says that a key holds another type."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")
