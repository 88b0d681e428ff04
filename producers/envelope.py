"""The two things a submitted task becomes in Redis: Celery's envelope on a list, and a QUEUED record.

The envelope is Celery's message protocol 2 inside kombu's virtual-transport frame
(celery 5.7, app/amqp.py: ``AMQP.as_task_v2``; kombu 5.7, transport/virtual/base.py: ``Channel.prepare_message``). A
test compares it, field by field, with what ``send_task`` produces.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from producers.message import TaskMessage
from producers.queues import TASK_NAME

_ORIGIN = f"pipeq{os.getpid()}@{socket.gethostname()}"
#: Embedded in every body; signatures of a stock Celery producer go here.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def new_id() -> str:
    """A task id, as Celery makes them: a random UUID."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Envelope:
    """A task ready to be queued."""

    id: str
    message: TaskMessage
    priority: int = 0
    #: Seconds since the epoch.
    submitted_at: float = field(default_factory=time.time)
    #: Seconds since the epoch after which no worker shall begin; None for never.
    expires_at: float | None = None
    #: More message headers, for instance ``traceparent``.
    headers: Mapping[str, Any] = field(default_factory=dict)
    reply_to: str = ""

    def body(self) -> str:
        """JSON of ``[args, kwargs, embed]``, the part that counts against the limit on messages."""
        return json.dumps([[], self.message.to_kwargs(), _EMBED], separators=(",", ":"))

    def encode(self, body: str) -> str:
        """The text that goes onto the list."""
        return json.dumps(
            {
                "body": base64.b64encode(body.encode()).decode("ascii"),
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "headers": {
                    **self.headers,
                    "lang": "py",
                    "task": TASK_NAME,
                    "id": self.id,
                    "shadow": None,
                    "eta": None,
                    "expires": _iso(self.expires_at),
                    "group": None,
                    "group_index": None,
                    "retries": 0,
                    "timelimit": [None, None],
                    "root_id": self.id,
                    "parent_id": None,
                    # Shown by `inspect` and in events: the pipeline, not somebody's text.
                    "argsrepr": "()",
                    "kwargsrepr": f"{{'pipeline': {self.message.pipeline!r}, ...}}",
                    "origin": _ORIGIN,
                    "ignore_result": None,
                    "replaced_task_nesting": 0,
                    "stamped_headers": None,
                    "stamps": {},
                },
                "properties": {
                    "correlation_id": self.id,
                    "reply_to": self.reply_to,
                    "delivery_mode": 2,
                    **self._expiration(),
                    "delivery_info": {"exchange": "", "routing_key": self.message.pipeline},
                    "priority": self.priority,
                    "body_encoding": "base64",
                    "delivery_tag": str(uuid.uuid4()),
                },
            }
        )

    def record(self) -> str:
        """The QUEUED record: what ``AsyncResult(id)`` and :meth:`Client.status` read until a worker is done."""
        ours: dict[str, Any] = {"pipeline": self.message.pipeline, "submitted_at": self.submitted_at}
        if self.expires_at is not None:
            ours["expires_at"] = self.expires_at
        return json.dumps(
            {
                "status": "QUEUED",
                "result": None,
                "traceback": None,
                "children": [],
                "date_done": None,
                "task_id": self.id,
                "pipeq": ours,
            }
        )

    def _expiration(self) -> dict[str, str]:
        """AMQP's own expiry, in milliseconds from now; Celery sets it beside its header."""
        if self.expires_at is None:
            return {}
        return {"expiration": str(max(0, int((self.expires_at - self.submitted_at) * 1000)))}


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
