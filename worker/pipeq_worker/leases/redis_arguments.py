"""What a Redis URL says, over what kombu or Celery would use: -> the arguments of redis-py's connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeq.contract import redis_url

#: A socket has none of these.
_OF_TCP = ("host", "port", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options")
#: Of our own pools; kombu and Celery have theirs, and read answers in the protocol that they choose.
_OF_POOLS = ("max_connections", "timeout", "protocol")


def over(arguments: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Merges them.

    Args:
        arguments: kombu's or Celery's.
        said: the URL's, as of :func:`pipeq.contract.redis_url.options`.
    """
    found = {**arguments, **{name: value for name, value in said.items() if name not in _OF_POOLS}}
    if "path" in said:
        for name in _OF_TCP:
            found.pop(name, None)
    return found


def plain(url: str) -> tuple[str, dict[str, Any]]:
    """A URL for Celery's own connections, and what must be added to their arguments; all of it plain data.

    Celery shows its transport's options (``celery inspect stats``), and hides the password of a URL that it has read.
    """
    said = redis_url.options(url)
    del said["connection_class"]
    more = {name: value for name, value in said.items() if name not in ("host", "port", "db", "username", "password")}
    return redis_url.plain_url(said), {**more, "scheme": url.partition("://")[0].lower()}
