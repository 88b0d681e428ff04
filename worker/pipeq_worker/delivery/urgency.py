"""URGENCY: a request's headers and properties -> priority, deadline and tenant of its task. Before: pool."""

from __future__ import annotations

import math
import time
from typing import Any

from pipeq.contract import keys
from pipeq.contract.reading import number
from pipeq.contract.status import LATEST_S


def urgency_of(request: Any) -> dict[str, Any]:
    """The fields of a :class:`pipeq_worker.schedule.task.Task` that say how urgent it is. Never raises.

    Args:
        request: Celery's request.
    """
    headers = request.request_dict
    fair_key = headers.get(keys.FAIR_KEY_HEADER)
    deadline_s, sent_at = number(headers.get(keys.DEADLINE_HEADER)), number(headers.get(keys.SENT_AT_HEADER))
    return {
        "priority": priority_of((request.delivery_info or {}).get("priority")),
        "deadline": deadline_of(deadline_s, sent_at, expiry_of(request), time.time()),
        "tenant": fair_key if isinstance(fair_key, str) else None,
    }


def priority_of(said: Any) -> int:
    """The priority that a message names: 0, the most urgent, to 9."""
    found = number(said)
    return 0 if found is None else int(min(max(found, 0), 9))


def deadline_of(deadline_s: float | None, sent_at: float | None, expires_at: float, now: float) -> float:
    """When a task should be done, by the monotonic clock; infinite if nobody said.

    Args:
        deadline_s: the wish of its producer, in seconds since it sent the message.
        sent_at: when that was. A stock Celery producer does not say it; then now is taken.
        expires_at: when it expires.
        now: as the others, in seconds since the epoch.
    """
    sent_at = now if sent_at is None else min(sent_at, now)
    until = expires_at if deadline_s is None else min(deadline_s + sent_at, expires_at)
    return until if until == math.inf else time.monotonic() + until - now


def moment(said: float | None) -> float | None:
    """A time that a message names, in seconds since the epoch; None if it is none that a status can show."""
    return said if said is not None and 0 <= said < LATEST_S else None


def timeout_of(said: float | None) -> float:
    """How long a try may take, in seconds; infinite if its producer said nothing."""
    return said if said is not None and said > 0 else math.inf


def expiry_of(request: Any) -> float:
    """When a task expires, in seconds since the epoch; infinite if it does not."""
    try:
        return math.inf if request.expires is None else float(request.expires.timestamp())
    except (AttributeError, OverflowError, OSError, ValueError):
        return math.inf
