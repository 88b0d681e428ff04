"""The Redis database that holds leases, and when two connections lead to the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis


def place(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """Identifies a Redis database by the arguments of a connection to it."""
    db = int(params.get("db") or 0)
    if "path" in params:
        return params["path"], db
    host = params.get("host") or "localhost"
    return "localhost" if host == "127.0.0.1" else host, int(params.get("port") or 6379), db


@dataclass(frozen=True)
class Server:
    """A Redis database that holds leases. Two with equal places are the same database."""

    #: ``(host, port, database)``, or ``(path, database)`` for a socket; see :func:`place`.
    place: tuple[Any, ...]
    #: Prefix of all keys.
    prefix: str = ""
    connect: Callable[[], redis.Redis] = field(compare=False, default=redis.Redis)
