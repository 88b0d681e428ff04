"""FRAME: a message's bytes -> kombu's frame, or the reason why it is none. Before: reserver. After: kombu, Celery.

Any client may have pushed anything onto a list. This module returns only frames that kombu can read without failing:
JSON of bounded depth, headers and properties that are objects, and a body that is text, in an encoding that decodes in
linear time, and that unpacks to no more than the limit. The content of the headers is checked later, in
:mod:`pipeq_worker.broker.protocol`.
"""

from __future__ import annotations

import base64
import lzma
import zlib
from dataclasses import dataclass
from typing import Any

from pipeq.contract import shown
from pipeq.contract.bare import first_id, id_of, is_bare, text_of
from pipeq.contract.reading import UnreadableError, json_object, json_value, number

from pipeq_worker.leases import enveloping, packed
from pipeq_worker.leases.reserved import Reserved

#: Most bytes of a message, and of its unpacked body, if no limit is set.
UNLIMITED_BYTES = 64 * 2**20
#: Bytes of headers in a frame. base64 adds a third to the body.
HEADERS_BYTES = 64 * 2**10
#: Encodings that kombu's producers send, and others that decode in linear time; some of Python's take quadratic time.
ENCODINGS = frozenset(
    "utf-8 utf8 us-ascii ascii binary ascii-8bit latin-1 latin1 iso-8859-1 utf-16 utf-32 cp1252 windows-1252".split()
)
#: Content types that :class:`Limits` may demand.
JSON = frozenset({"application/json"})
#: Fields of a remote-control command -> their types.
_CONTROL: dict[str, type] = {
    "method": str,
    "arguments": dict,
    "destination": list,
    "pattern": str,
    "matcher": str,
    "ticket": str,
    "reply_to": dict,
}


@dataclass(frozen=True)
class Limits:
    """What is accepted from a queue."""

    #: Most bytes of the body, unpacked.
    body_bytes: int = UNLIMITED_BYTES
    #: Most bytes of the message as it lies on the list.
    message_bytes: int = UNLIMITED_BYTES
    #: Accepted content types of the body; None for those that the app accepts.
    content_types: frozenset[str] | None = None
    #: Whether a bare message (:mod:`pipeq.contract.bare`) is one, too: on the queues of pipelines.
    takes_bare: bool = False

    @classmethod
    def of_body(
        cls, body_bytes: int, content_types: frozenset[str] | None = None, *, takes_bare: bool = False
    ) -> Limits:
        """Limits for bodies of at most ``body_bytes``, with room for their frame."""
        return cls(body_bytes, body_bytes * 4 // 3 + HEADERS_BYTES, content_types, takes_bare)


@dataclass(frozen=True)
class Unreadable:
    """A message that is not a frame."""

    #: The end of the sentence "the message cannot be read: ...".
    reason: str
    #: The task's id, if the message holds one: its producer may be waiting for the result.
    task_id: str | None


def read(one: Reserved, limits: Limits) -> dict[str, Any] | Unreadable:
    """Returns the message's frame, or the reason why it is none. Never raises."""
    if one.too_large:
        task_id, _, _ = one.raw.partition(b"\n")
        reason = (
            f"it is {one.too_large} bytes, at most {limits.message_bytes} are allowed (`max_message_bytes`, and what "
            "its headers take): send the input by reference"
        )
        return Unreadable(reason, text_of(task_id))
    try:
        message = json_value(one.raw)
    except UnreadableError as error:
        return Unreadable(str(error), first_id(one.raw))
    if not isinstance(message, dict):
        return Unreadable(f"it is a JSON {type(message).__name__}, not Celery's frame", None)
    try:
        if limits.takes_bare and is_bare(message):
            return _enveloped(message, one, limits)
        _complete(message, one, limits)
    except UnreadableError as error:
        return Unreadable(str(error), _text(id_of(message)))
    return message


def _enveloped(message: dict[str, Any], one: Reserved, limits: Limits) -> dict[str, Any]:
    found = enveloping.frame_of(message, one)
    _place(found, one)
    if len(found["body"]) > limits.body_bytes:
        raise UnreadableError(_too_large(f"is {len(found['body'])} bytes", limits))
    return found


def as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a frame from :func:`read` as JSON can hold it: its body is text again."""
    body = message.get("body")
    if not isinstance(body, bytes):
        return message
    properties = {**message["properties"], "body_encoding": "base64"}
    return {**message, "body": base64.b64encode(body).decode("ascii"), "properties": properties}


def broadcast(data: bytes | str, is_control: bool) -> dict[str, Any] | Unreadable:
    """Returns the frame of a broadcast message (remote control, events), or the reason why it is none. Never raises.

    Args:
        data: the published bytes.
        is_control: whether it belongs to the remote control, whose body is a JSON object.
    """
    try:
        return _broadcast(data, is_control)
    except UnreadableError as error:
        return Unreadable(str(error), None)


def _broadcast(data: bytes | str, is_control: bool) -> dict[str, Any]:
    message = json_value(data)
    if not isinstance(message, dict):
        raise UnreadableError("it is no JSON object")
    properties, headers = message.get("properties"), message.setdefault("headers", {})
    if not isinstance(properties, dict) or not isinstance(headers, dict):
        raise UnreadableError("its properties or headers are no object")
    if not isinstance(properties.get("delivery_info"), dict) or not isinstance(properties.get("delivery_tag"), str):
        raise UnreadableError("it has no delivery_info or delivery_tag")
    if headers.get("clock") is not None and number(headers["clock"]) is None:
        raise UnreadableError("its clock is no number")
    if is_control and headers.get("compression"):
        raise UnreadableError("it is compressed")
    body = _check_body(message, Limits(content_types=JSON if is_control else None))
    if message.get("content-type") in JSON and not headers.get("compression"):
        value = json_value(body)
        if is_control:
            _check_control(value)
    return message


def _check_control(value: Any) -> None:
    """Checks what kombu (5.7, ``pidbox.py``) requires. It raises for anything else, and Celery reopens its channel."""
    if not isinstance(value, dict):
        raise UnreadableError("its body is no JSON object")
    for name, kind in _CONTROL.items():
        if value.get(name) is not None and not isinstance(value[name], kind):
            raise UnreadableError(f"its {name} is a {type(value[name]).__name__}")
    if not isinstance(value.get("method"), str):
        raise UnreadableError("it has no method")
    reply_to = value.get("reply_to") or {"exchange": "", "routing_key": ""}
    if not all(isinstance(reply_to.get(name), str) for name in ("exchange", "routing_key")):
        raise UnreadableError("its reply_to has no exchange or routing_key")


def _complete(message: dict[str, Any], one: Reserved, limits: Limits) -> None:
    properties, headers = message.get("properties"), message.get("headers")
    if headers is None:
        headers = message["headers"] = {}
    if not isinstance(properties, dict):
        raise UnreadableError("it has no properties: send it with Celery or pipeq's client")
    if not isinstance(headers, dict):
        raise UnreadableError("its headers are no object")
    _place(message, one)
    body = _check_body(message, limits)
    if isinstance(message.get("body"), str) and properties.get("body_encoding") is not None:
        # Decoded once: kombu takes bytes as they are.
        message["body"] = body
        del properties["body_encoding"]


def _place(message: dict[str, Any], one: Reserved) -> None:
    """Says in a frame where it lay, and in which delivery it is."""
    properties, headers = message["properties"], message["headers"]
    # The list that held it counts, not the queue that it names, because a retry goes back to that list.
    properties["delivery_info"] = {"exchange": "", "routing_key": one.queue}
    # A new tag for each delivery, so that a late answer to an earlier delivery does not count for this one.
    properties["delivery_tag"] = one.tag
    if one.raw.startswith(b" "):
        # requeue.lua puts a blank in front of a message that was delivered before.
        headers["redelivered"] = properties["delivery_info"]["redelivered"] = True


def _check_body(message: dict[str, Any], limits: Limits) -> bytes:
    """Checks the body. Returns its bytes, which may still be compressed."""
    properties, headers = message["properties"], message["headers"]
    _check_type(message, limits)
    body = _body(message.get("body"), properties.get("body_encoding"))
    if headers.get("compression"):
        _check_unpacked(body, headers["compression"], limits)
    elif len(body) > limits.body_bytes:
        raise UnreadableError(_too_large(f"is {len(body)} bytes", limits))
    return body


def _check_type(message: dict[str, Any], limits: Limits) -> None:
    kind, encoding = message.get("content-type"), message.get("content-encoding")
    if kind is not None and not isinstance(kind, str):
        raise UnreadableError(f"its content-type is a {type(kind).__name__}, not text")
    if limits.content_types is not None and kind not in limits.content_types:
        known = " or ".join(sorted(limits.content_types))
        raise UnreadableError(f"its content-type is {_named(kind)}, not {known}")
    if encoding is not None and (not isinstance(encoding, str) or encoding.lower() not in ENCODINGS):
        raise UnreadableError(f"its content-encoding is {_named(encoding)}, not utf-8")


def _body(body: Any, encoding: Any) -> bytes:
    """Returns the body's bytes, still compressed."""
    if body is None:
        return b""
    if not isinstance(body, str):
        raise UnreadableError(f"its body is a {type(body).__name__}, not text")
    if encoding is None or not body:
        return body.encode("utf-8", "surrogatepass")
    if encoding != "base64":
        raise UnreadableError(f"its body_encoding is {_named(encoding)}, not base64")
    try:
        return base64.b64decode(body)
    except (ValueError, TypeError) as error:
        raise UnreadableError(f"its body is no base64: {error}") from error


def _check_unpacked(body: bytes, compression: Any, limits: Limits) -> None:
    chunks = packed.CHUNKS.get(compression) if isinstance(compression, str) else None
    if chunks is None:
        # An app that accepts any content type may have more of kombu's compressions installed.
        if isinstance(compression, str) and limits.content_types is None:
            return
        raise UnreadableError(
            f"its body is compressed with {_named(compression)}; gzip, bzip2 and lzma are taken (a packed body saves "
            "little: send large inputs by reference)"
        )
    size = 0
    try:
        for chunk in chunks(body):
            size += len(chunk)
            if size > limits.body_bytes:
                raise UnreadableError(_too_large("unpacks to more", limits))
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, MemoryError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"its body cannot be unpacked: {error}") from error


def _too_large(what: str, limits: Limits) -> str:
    return (
        f"its body {what}, at most {limits.body_bytes} bytes are allowed (`max_message_bytes`): send the input by "
        "reference"
    )


def _named(value: Any) -> str:
    return repr(shown.line(value, 60)) if isinstance(value, str) else f"a {type(value).__name__}"


def readable_id(raw: bytes) -> str | None:
    """The task's id in a message, whether it is a frame, a bare message, or only resembles one."""
    message = json_object(raw)
    return first_id(raw) if message is None else _text(id_of(message))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
