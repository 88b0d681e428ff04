"""ENVELOPING: a bare message -> the frame that Celery would have sent. Before: frame. After: kombu, Celery.

Everything after this module sees one form of message, so a bare one is retried, revoked, and put among the dead letters
as any other. In Redis it stays as it was sent until it is written anew, for a retry or in a dead letter.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from pipeq.contract import keys, shown
from pipeq.contract.bare import EXPIRES_AT, HEADER_OF, OWN_FIELDS
from pipeq.contract.reading import MAX_DEPTH, UnreadableError, is_bounded, number
from pipeq.contract.status import LATEST_S
from pipeq.contract.writing import to_json

from pipeq_worker.leases.reserved import Reserved

#: Part of every body; a Celery producer puts signatures here.
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def frame_of(message: dict[str, Any], one: Reserved) -> dict[str, Any]:
    """Returns a frame, whose body is bytes.

    Args:
        message: a bare message (:func:`pipeq.contract.bare.is_bare`).
        one: where it lay.

    Raises:
        UnreadableError: it has no valid id, or its expiry is no time, or it would be a pack.
    """
    task_id = message.get("id")
    if not keys.is_task_id(task_id):
        raise UnreadableError(_wrong_id(message))
    if "rows" in message:
        # Its outcomes would go nowhere: a job's record has to know of its packs before they are queued.
        raise UnreadableError("it has `rows`, as packs of jobs have: submit those with `pipeq job submit`")
    headers: dict[str, Any] = {
        "lang": "json",
        "task": keys.TASK_NAME,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": _expires(message.get(EXPIRES_AT)),
        # `inspect` and events show these, so they hide the inputs.
        "argsrepr": "()",
        "kwargsrepr": f"{{'pipeline': {shown.line(str(message.get('pipeline')), 200)!r}, ...}}",
        **{header: message[name] for name, header in HEADER_OF.items() if message.get(name) is not None},
    }
    return {
        "body": body_of({name: value for name, value in message.items() if name not in OWN_FIELDS}),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {"correlation_id": task_id, "delivery_mode": 2, "priority": priority_of(one)},
    }


def priority_of(one: Reserved) -> int:
    """The priority of a bare message is that of the list that it was pushed on."""
    return keys.PRIORITY_STEPS[min(one.list_index, len(keys.PRIORITY_STEPS) - 1)]


def body_of(kwargs: dict[str, Any]) -> bytes:
    """Celery's body with these keyword arguments.

    Raises:
        UnreadableError: inside the body, they are nested too deep.
    """
    if kwargs.get("params", EMBED) is None:
        # What a Go program writes for an empty map.
        del kwargs["params"]
    body = [[], kwargs, EMBED]
    try:
        found = to_json(body)
    except (ValueError, TypeError):  # NaN, or half of a surrogate pair; a later stage names the place
        found = json.dumps(body).encode()
    if not is_bounded(found):
        raise UnreadableError(f"it is nested deeper than {MAX_DEPTH - 1} levels")
    return found


def _wrong_id(message: dict[str, Any]) -> str:
    if "id" not in message:
        return 'it has no `id`: a bare message is {"id": ..., "pipeline": ..., "inputs": ...}'
    return f"its `id` is {_shown(message['id'])}, not {keys.TASK_ID_WORDS}"


def _shown(value: Any) -> str:
    return shown.line(json.dumps(value), 60)


def _expires(at: Any) -> str | None:
    if at is None:
        return None
    found = number(at)
    if found is None or not 0 <= found < LATEST_S:
        raise UnreadableError(f"its `{EXPIRES_AT}` is {_shown(at)}, not a number of seconds since the epoch")
    # Celery reads microseconds.
    return datetime.fromtimestamp(math.floor(found * 1e6) / 1e6, UTC).isoformat()
