"""CONTRACT: a dead letter: a message whose task failed, and why. Only this module builds and reads one.

A worker writes a :class:`Letter` in the step that ends the task; :func:`read` makes a :class:`DeadLetter` of whatever
lies in a list of dead letters. Any client may have written anything there, so reading never raises.
``docs/dead-letters.md`` explains the form to readers in other languages.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeq.contract import keys, shown
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.reading import UnreadableError, json_value, number, readable_object
from pipeq.contract.status import LATEST_S
from pipeq.contract.writing import to_json

#: Hexadecimal digits of a letter's own id.
ID_DIGITS = 12
#: Most characters of a base64 text that are shown.
_BASE64_SHOWN = 40
#: Brackets with which a text may be nested too deep to be read again.
_MANY_BRACKETS = 150


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One entry of a dead-letter list, as JSON in Redis."""

    #: The version of this form.
    version: int = 1
    #: The task's id; null if the message has none that can be read.
    id: str | None
    #: One of ``ErrorCode``.
    code: str
    #: A sentence that names the offending thing and what to do.
    reason: str
    #: When the task failed, in seconds since the epoch.
    failed_at: float
    #: Number of times that a worker has begun to run the task, in all of its lives.
    attempts: int = 0
    #: The name of the worker that gave it up; null if another Celery app found it unreadable.
    worker: str | None = None
    #: Where the cause of the error was raised, if it was in a library: files, lines and types, but no values.
    traceback: str | None = None
    #: The message: Celery's frame, whose ``body`` is the list ``[args, kwargs, embed]`` instead of its base64 if it is
    #: JSON. Of a message that workers died of before they had read it, its text; of one that cannot be read, its
    #: beginning.
    message: Any

    def encode(self) -> str:
        """Returns the text that is stored in Redis."""
        entry = {one.name: getattr(self, one.name) for one in fields(self)}
        try:
            opened = json.dumps({**entry, "message": _opened(self.message)}, default=repr)
            if opened.count("[") + opened.count("{") < _MANY_BRACKETS or _is_readable(opened):
                return opened
            # Inside the letter, the body would be nested too deep.
            return json.dumps(entry, default=repr)
        except (ValueError, TypeError, RecursionError) as error:
            return json.dumps({**entry, "message": f"not JSON: {error}"})


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A dead letter as ``client.dead`` reads it. Its inputs and parameters are as the producer sent them.

    Its ``repr`` leaves out what may be long or secret; :meth:`shown` has all of it for other people to read.
    """

    #: The letter's own id. Unlike a task's id, no two letters share one.
    letter: str
    #: The queue in whose list it lies.
    queue: str
    #: The task's id; None if the message has none that can be read.
    task_id: str | None
    #: The name of the pipeline; None if the message does not say.
    pipeline: str | None
    #: One of :class:`pipeq.ErrorCode`.
    code: str
    #: A sentence that names the offending thing and what to do.
    reason: str
    #: When the task failed, in seconds since the epoch; None if the letter does not say.
    failed_at: float | None
    #: Number of times that a worker has begun to run the task, in all of its lives.
    attempts: int
    #: The name of the worker that gave it up.
    worker: str | None
    #: As the producer sent them; None if the message cannot be read.
    inputs: Any = field(repr=False)
    params: dict[str, Any] = field(repr=False)
    #: Where the result was to go; None for the record.
    output: str | None = field(repr=False)
    #: The beginning of a message that cannot be read.
    text: str | None = field(repr=False)
    #: Where the cause of the error was raised, if it was in a library.
    traceback: str | None = field(repr=False)
    #: Why it cannot be sent again; None if it can.
    obstacle: str | None
    #: Celery's frame, and the entry as it lies in the list.
    frame: dict[str, Any] = field(repr=False, compare=False)
    raw: bytes = field(repr=False, compare=False)

    def shown(self) -> dict[str, Any]:
        """Returns its fields as JSON for other people to read: no passwords, signatures or long base64 in it."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("frame", "raw")}
        return {name: _without_secrets(value) for name, value in found.items()}


def read(raw: bytes, queue: str) -> DeadLetter:
    """Reads an entry of a dead-letter list. Never raises."""
    entry = readable_object(raw) or {}
    frame = entry.get("message")
    if isinstance(frame, str):  # no worker has read it, as it may be what they died of
        frame = readable_object(frame) or frame
    message, obstacle = _judged(frame, entry.get("id"))
    sent = message or {}
    output = sent.get("output")
    if isinstance(frame, dict):
        text = None if message is not None else json.dumps(frame)[:2000]
    else:
        text = frame if isinstance(frame, str) else raw[:2000].decode("utf-8", "backslashreplace")
    attempts = number(entry.get("attempts")) or 0
    return DeadLetter(
        letter=hashlib.sha256(raw).hexdigest()[:ID_DIGITS],
        queue=queue,
        task_id=entry["id"] if keys.is_readable_id(entry.get("id")) else None,
        pipeline=_text(sent.get("pipeline")),
        code=_text(entry.get("code")) or "",
        # Our own sentences have no secrets, but others may have written there.
        reason=shown.without_secrets(_text(entry.get("reason")) or ""),
        failed_at=_moment(entry.get("failed_at")),
        attempts=int(min(max(attempts, 0), keys.ATTEMPTS_MAX)),
        worker=_text(entry.get("worker")),
        inputs=sent.get("inputs"),
        params=sent["params"] if isinstance(sent.get("params"), dict) else {},
        output=_text(output.get("uri")) if isinstance(output, dict) else None,
        text=text,
        traceback=_text(entry.get("traceback")),
        obstacle=obstacle,
        frame=frame if isinstance(frame, dict) else {},
        raw=raw,
    )


#: Headers of the life that has ended.
_OF_A_LIFE = (
    "redelivered",
    keys.RETRYING_SINCE_HEADER,
    keys.PUT_OFF_HEADER,
    keys.REFUSED_BY_HEADER,
    keys.PAST_DEATHS_HEADER,
    keys.FAILED_ON_HEADER,
)


def again(letter: DeadLetter, *, tag: str, now: float) -> tuple[str, str]:
    """Returns the list that a letter's message goes back to, and the message for it.

    It has all of its tries again, it counts its earlier attempts, and it has no expiry and no due time any more.

    Args:
        letter: one without an obstacle.
        tag: a new delivery tag.
        now: seconds since the epoch.
    """
    frame = letter.frame
    headers = {**frame["headers"], "retries": 0, "expires": None, "eta": None}
    headers[keys.PAST_ATTEMPTS_HEADER] = letter.attempts
    for name in _OF_A_LIFE:
        headers.pop(name, None)
    if keys.SENT_AT_HEADER in headers:
        headers[keys.SENT_AT_HEADER] = round(now, 3)
    properties = {
        **frame["properties"],
        "delivery_tag": tag,
        "delivery_info": {"exchange": "", "routing_key": letter.queue},
    }
    properties.pop("expiration", None)
    body = frame.get("body")
    if not isinstance(body, str):
        body = base64.b64encode(_as_json(body)).decode("ascii")
        properties["body_encoding"] = "base64"
    priority = properties.get("priority")
    if not isinstance(priority, int) or not 0 <= priority <= 9:
        priority = keys.DEFAULT_PRIORITY
    message = {**frame, "headers": headers, "properties": properties, "body": body}
    return keys.list_key(letter.queue, priority), json.dumps(message)


def _as_json(body: Any) -> bytes:
    try:
        return to_json(body)
    except (ValueError, TypeError):  # NaN, or half of a surrogate pair, as a stock producer may have sent it
        return json.dumps(body).encode()


def _opened(message: Any) -> Any:
    """Returns a frame with its body as JSON, if that is what it is."""
    body = _body_of(message)
    if body is None:
        return message
    properties = {name: value for name, value in message["properties"].items() if name != "body_encoding"}
    return {**message, "properties": properties, "body": body}


def _body_of(frame: Any) -> list[Any] | None:
    """Returns ``[args, kwargs, embed]`` of a frame; None if its body is compressed, or is something else."""
    if not isinstance(frame, dict) or not all(isinstance(frame.get(name), dict) for name in ("headers", "properties")):
        return None
    body = frame.get("body")
    if isinstance(body, str) and not frame["headers"].get("compression"):
        try:
            if frame["properties"].get("body_encoding") == "base64":
                body = base64.b64decode(body)
            body = json_value(body)
        except ValueError:
            return None
    return body if isinstance(body, list) and len(body) == 3 else None


def _judged(frame: Any, task_id: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the fields of a message, if they can be read, and why it cannot be sent again."""
    if not isinstance(frame, dict):
        return None, "it holds no message that can be read"
    headers, properties = frame.get("headers"), frame.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return None, "its message is not Celery's frame"
    body = _body_of(frame)
    if body is None:
        if isinstance(frame.get("body"), str) and headers.get("compression") and headers.get("task") == keys.TASK_NAME:
            # The worker that gets it unpacks it.
            return None, _obstacle(headers, task_id)
        return None, "the body of its message cannot be read"
    args, kwargs, _ = body
    sent = dict(kwargs) if isinstance(kwargs, dict) else {}
    if isinstance(args, list) and len(args) == 1 and "inputs" not in sent:
        sent["inputs"] = args[0]  # the result of the previous task of a chain
    if (obstacle := _obstacle(headers, task_id)) is not None:
        return sent or None, obstacle
    try:
        TaskMessage.parse(sent)
    except PipeqError as error:
        return sent or None, f"its message is not one of pipeq: {error.message}"
    return sent, None


def _obstacle(headers: Mapping[str, Any], task_id: Any) -> str | None:
    if headers.get("task") != keys.TASK_NAME:
        return f"its message is for the task {shown.value(headers.get('task'))}, not {keys.TASK_NAME}"
    if not keys.is_task_id(task_id) or headers.get("id") != task_id:
        return "its message has no valid id"
    return None


def _is_readable(text: str) -> bool:
    try:
        json_value(text)
    except UnreadableError:
        return False
    return True


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _moment(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found < LATEST_S else None


def _without_secrets(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        if name == "signature":
            return "***"
        if name == "base64" and len(value) > _BASE64_SHOWN:
            return f"{value[:_BASE64_SHOWN]}... ({len(value)} characters)"
        return shown.uri(value) if name == "uri" else shown.without_secrets(value)
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {shown.without_secrets(key): _without_secrets(item, key) for key, item in value.items()}
    return value
