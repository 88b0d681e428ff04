"""URGENCY: a request's headers and properties -> priority, deadline and tenant of its task. Before: pool."""

from __future__ import annotations

import math
import time
from typing import Any

from pipeq.contract import keys
from pipeq.contract.reading import number


def urgency_of(request: Any) -> dict[str, Any]:
    """The fields of a :class:`pipeq_worker.schedule.task.Task` that say how urgent it is. Never raises.

    Args:
        request: Celery's request.
    """
    headers, now = request.request_dict, time.time()
    fair_key = headers.get(keys.FAIR_KEY_HEADER)
    return {
        "priority": _priority((request.delivery_info or {}).get("priority")),
        "deadline": time.monotonic() + min(_wished(headers, now), _expires(request)) - now,
        "tenant": fair_key if isinstance(fair_key, str) else None,
    }


def _priority(said: Any) -> int:
    found = number(said)
    return 0 if found is None else int(min(max(found, 0), 9))


def _wished(headers: dict[str, Any], now: float) -> float:
    """When the task should be done, in seconds since the epoch."""
    deadline_s = number(headers.get(keys.DEADLINE_HEADER))
    if deadline_s is None:
        return math.inf
    # A stock Celery producer does not say when it sent the message.
    sent_at = number(headers.get(keys.SENT_AT_HEADER))
    return deadline_s + (now if sent_at is None else min(sent_at, now))


def _expires(request: Any) -> float:
    try:
        return math.inf if request.expires is None else float(request.expires.timestamp())
    except (AttributeError, OverflowError, OSError, ValueError):
        return math.inf
