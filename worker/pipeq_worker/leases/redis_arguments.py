"""Applies the options of a Redis URL to the connection arguments that kombu or Celery would use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeq.contract import redis_url

#: Arguments that a Unix socket does not take.
_OF_TCP = ("host", "port", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options")
#: Options for our own pools only; kombu and Celery have their own pools and choose the protocol.
_OF_POOLS = ("max_connections", "timeout", "protocol")


def over(arguments: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Merges the options of a URL into connection arguments.

    Args:
        arguments: kombu's or Celery's arguments.
        said: the URL's options, from :func:`pipeq.contract.redis_url.options`.
    """
    found = {**arguments, **{name: value for name, value in said.items() if name not in _OF_POOLS}}
    if "path" in said:
        for name in _OF_TCP:
            found.pop(name, None)
    return found


def plain(url: str) -> tuple[str, dict[str, Any]]:
    """Returns a URL for Celery's own connections, and the options to add to their arguments, as plain data.

    Celery shows its transport's options (``celery inspect stats``), but hides the password only in a URL that it has
    parsed.
    """
    said = redis_url.options(url)
    del said["connection_class"]
    more = {name: value for name, value in said.items() if name not in ("host", "port", "db", "username", "password")}
    return redis_url.plain_url(said), {**more, "scheme": url.partition("://")[0].lower()}
