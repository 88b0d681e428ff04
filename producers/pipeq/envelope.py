"""ENVELOPE: the two forms of a submitted task in Redis: Celery's envelope on a list, and a QUEUED record.

The envelope is Celery's message protocol 2 inside kombu's virtual-transport frame (celery 5.7, app/amqp.py:
``AMQP.as_task_v2``; kombu 5.7, transport/virtual/base.py: ``Channel.prepare_message``). A test compares it, field by
field, with the output of ``send_task``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from pipeq.contract.keys import TASK_NAME
from pipeq.contract.message import TaskMessage
from pipeq.contract.pack import PackMessage
from pipeq.contract.record import Part, queued

_ORIGIN = f"pipeq{os.getpid()}@{socket.gethostname()}"
#: Part of every body; a stock Celery producer puts signatures here.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
# Made once: json.dumps with separators makes one for each call.
_compact = json.JSONEncoder(separators=(",", ":")).encode
_EMBED_TEXT = json.dumps(_EMBED, separators=(",", ":"))


def new_id() -> str:
    """Makes a task id as Celery does: a random UUID (version 4). uuid.uuid4 would take twice as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def sha256_of(message: TaskMessage | PackMessage) -> str:
    """A digest that is equal for messages with equal pipeline, inputs, params and output."""
    return hashlib.sha256(json.dumps(message.to_kwargs(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Envelope:
    """A task that is ready to be queued."""

    id: str
    message: TaskMessage | PackMessage
    priority: int = 0
    #: When it was submitted, in seconds since the epoch.
    submitted_at: float = field(default_factory=time.time)
    #: When it expires, in seconds since the epoch: no worker begins it later. None for never.
    expires_at: float | None = None
    #: Additional message headers, for instance ``traceparent``.
    headers: Mapping[str, Any] = field(default_factory=dict)
    #: When its delay ends, in seconds since the epoch. None if it has none.
    due_at: float | None = None
    reply_to: str = ""
    #: The message's digest if the caller chose the id, to recognize another task with the same id. Otherwise empty.
    message_sha256: str = ""

    def body(self) -> str:
        """JSON of ``[args, kwargs, embed]``, the part whose size is limited."""
        return _compact([[], self.message.to_kwargs(), _EMBED])

    @staticmethod
    def body_of(kwargs: str) -> str:
        """The same of a message that is JSON already."""
        return f"[[],{kwargs},{_EMBED_TEXT}]"

    def encode(self, body: str) -> str:
        """The text that goes on the list."""
        headers = json.dumps(dict(self.headers)) if self.headers else "{}"
        frame = _frame(self.message.pipeline, self.priority, self.reply_to, headers, self.expires_at is not None)
        values = {
            "body": f'"{base64.b64encode(body.encode()).decode("ascii")}"',
            "id": json.dumps(self.id),
            "tag": f'"{new_id()}"',
        }
        if self.expires_at is not None:
            values["expires"] = f'"{datetime.fromtimestamp(self.expires_at, UTC).isoformat()}"'
            # AMQP's own expiry, in milliseconds from now, which Celery sets beside its header.
            values["expiration"] = f'"{max(0, int((self.expires_at - self.submitted_at) * 1000))}"'
        pieces = frame.pieces.copy()
        for at, name in frame.slots:
            pieces[at] = values[name]
        return "".join(pieces)

    def record(self) -> str:
        """The QUEUED record, which ``AsyncResult(id)`` and :meth:`Client.status` read until a worker changes it."""
        part = Part(
            pipeline=self.message.pipeline,
            submitted_at=self.submitted_at,
            due_at=self.due_at,
            expires_at=self.expires_at,
            message_sha256=self.message_sha256 or None,
        )
        return queued(self.id, part)


#: Placeholders in a frame for the parts that differ between the tasks of a call. Random, so that no caller's text is
#: one.
_SLOTS = {name: f"{name} {uuid.uuid4()}" for name in ("body", "id", "tag", "expires", "expiration")}
_SLOT = re.compile(f'"({"|".join(_SLOTS.values())})"')


class _Frame(NamedTuple):
    """A message's JSON in pieces. Some of them are slots: place -> what stands there."""

    pieces: list[str]
    slots: list[tuple[int, str]]


@lru_cache(maxsize=64)
def _frame(pipeline: str, priority: int, reply_to: str, headers: str, expires: bool) -> _Frame:
    """What the messages of a call share, because writing all 30 fields for each task takes most of the time."""
    task_id, expiry = _SLOTS["id"], _SLOTS["expires"] if expires else None
    text = json.dumps(
        {
            "body": _SLOTS["body"],
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                **json.loads(headers),
                "lang": "py",
                "task": TASK_NAME,
                "id": task_id,
                "shadow": None,
                "eta": None,
                "expires": expiry,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": task_id,
                "parent_id": None,
                # `inspect` and events show these, so they name the pipeline and hide the inputs.
                "argsrepr": "()",
                "kwargsrepr": f"{{'pipeline': {pipeline!r}, ...}}",
                "origin": _ORIGIN,
                "ignore_result": None,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
            },
            "properties": {
                "correlation_id": task_id,
                "reply_to": reply_to,
                "delivery_mode": 2,
                **({"expiration": _SLOTS["expiration"]} if expires else {}),
                "delivery_info": {"exchange": "", "routing_key": pipeline},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": _SLOTS["tag"],
            },
        }
    )
    pieces = _SLOT.split(text)
    names = {slot: name for name, slot in _SLOTS.items()}
    return _Frame(pieces, [(at, names[piece]) for at, piece in enumerate(pieces) if piece in names])
