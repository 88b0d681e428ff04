"""Redis URLs: connecting by one, and showing one without its password."""

from __future__ import annotations

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from producers import shown


def connect(url: str, *, retries: int = 1) -> redis.Redis:
    """A connection pool; connects on first use. Also takes Celery's spelling of a unix socket, ``redis+socket://``.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        retries: reconnects before a command fails; the pool's connections go stale when Redis restarts.

    Raises:
        ValueError: the URL has another scheme, or cannot be read.
    """
    spelled = url
    if url.startswith("redis+socket://"):
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    try:
        return redis.Redis.from_url(
            url,
            socket_connect_timeout=5,
            socket_timeout=30,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        )
    except ValueError:
        # Not the reason either: a password with an unquoted `/` or `#` would be part of it.
        raise ValueError(
            f"{without_password(spelled)} is no Redis URL like redis://host:6379/0, rediss:// or unix:///path "
            "(in a password, write / # ? @ as %2F %23 %3F %40)"
        ) from None


def without_password(url: str) -> str:
    """The same URL with its password, in whatever form it is given, replaced by ``***``."""
    return shown.uri(url)
