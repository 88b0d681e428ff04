"""REQUESTS: what the host needs to know of a task, from Celery's request or from a plain message. Before: delivery."""

from __future__ import annotations

import math
from typing import Any

from pipeq.contract import keys
from pipeq.contract.reading import number

from pipeq_worker.broker.plain_message import PlainMessage
from pipeq_worker.delivery.urgency import deadline_of, expiry_of, moment, priority_of, timeout_of, urgency_of
from pipeq_worker.leases import celery_internals

#: Larger than any real number of retries, and small enough for every counter.
MOST_RETRIES = 1_000_000


def facts_of_request(request: Any) -> dict[str, Any]:
    """The fields of a :class:`pipeq_worker.delivery.delivery.Delivery` that its message sets. Never raises.

    Args:
        request: Celery's request.
    """
    queue = (request.delivery_info or {}).get("routing_key")
    embed = celery_internals.embed_of(request)
    embed = embed if isinstance(embed, dict) else {}
    return {
        # Another transport allows any value.
        "queue": queue if keys.is_readable_id(queue) else "",
        "retries": _count(request.request_dict.get("retries")),
        "past_attempts": _count(request.request_dict.get(keys.PAST_ATTEMPTS_HEADER)),
        "retrying_since": number(request.request_dict.get(keys.RETRYING_SINCE_HEADER)),
        "put_off": _count(request.request_dict.get(keys.PUT_OFF_HEADER)),
        "past_deaths": _count(request.request_dict.get(keys.PAST_DEATHS_HEADER)),
        "sent_at": moment(number(request.request_dict.get(keys.SENT_AT_HEADER))),
        "refused_by": tuple(request.request_dict.get(keys.REFUSED_BY_HEADER) or ()),
        "failed_on": dict(request.request_dict.get(keys.FAILED_ON_HEADER) or {}),
        "expiry": expiry_of(request),
        "timeout_s": timeout_of(number(request.request_dict.get(keys.TIMEOUT_HEADER))),
        "group_id": request.group,
        "parent_id": request.parent_id,
        "has_next": any(embed.get(name) for name in ("callbacks", "chain", "chord")),
        "has_followers": any(embed.values()),
        **urgency_of(request),
    }


def facts_of_plain(message: PlainMessage, now: float) -> dict[str, Any]:
    """The same of a plain message, after which nothing follows and which does not expire.

    Args:
        message: the message.
        now: seconds since the epoch.
    """
    headers = message.headers
    return {
        "retries": min(headers.retries or 0, MOST_RETRIES),
        "past_attempts": min(headers.past_attempts or 0, MOST_RETRIES),
        "retrying_since": headers.retrying_since,
        "put_off": min(headers.put_off or 0, MOST_RETRIES),
        "past_deaths": min(headers.past_deaths or 0, MOST_RETRIES),
        "sent_at": moment(headers.sent_at),
        "refused_by": tuple(headers.refused_by or ()),
        "failed_on": {},
        "group_id": headers.group,
        "parent_id": headers.parent_id,
        "timeout_s": timeout_of(headers.timeout_s),
        "priority": priority_of(message.priority),
        "deadline": deadline_of(headers.deadline_s, headers.sent_at, math.inf, now),
        "tenant": headers.fair_key,
    }


def _count(said: Any) -> int:
    return int(min(max(number(said) or 0, 0), MOST_RETRIES))
