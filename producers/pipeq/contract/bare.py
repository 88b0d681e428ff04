"""CONTRACT: a bare message: a task as one plain JSON object, for producers without Celery and without this package.

    LPUSH text-classification '{"id": "7d1f", "pipeline": "text-classification", "inputs": "I love this"}'

Its fields are those of a :class:`TaskMessage`, the task's id, and a few wishes that other messages have among their
headers. A worker gives it Celery's frame when it reads it; until then it lies in Redis as it was sent, so all who read
messages there (workers, purge, cancel) find its id with this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pipeq.contract import keys
from pipeq.contract.headers import headers_schema
from pipeq.contract.message import json_schema
from pipeq.contract.reading import json_object

#: Field -> the header of Celery's frame with the same meaning. Fields that are not here belong to the TaskMessage.
HEADER_OF: Final = {
    name: name for name in (keys.FAIR_KEY_HEADER, keys.DEADLINE_HEADER, keys.SENT_AT_HEADER, keys.TIMEOUT_HEADER)
}
#: When it expires, in seconds since the epoch; Celery's header has it as text.
EXPIRES_AT: Final = "expires_at"
#: Fields that belong to the envelope, not to the task's keyword arguments.
OWN_FIELDS: Final = frozenset({"id", EXPIRES_AT, *HEADER_OF})

#: Keys of Celery's frame. An object without any of them, or with a task's own fields, is a bare message.
FRAME_KEYS: Final = frozenset({"body", "headers", "properties", "content-type", "content-encoding"})
#: An id and a fair_key that stand in the first bytes of a message are found even if the rest is too large, or broken.
#: ``reserve.lua`` has the same numbers.
ID_WITHIN_BYTES: Final = 8192
FAIR_KEY_WITHIN_BYTES: Final = 4096

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*+)"|[\[{\]}"]', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_TEXT = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\.){1,1200})"')
_HEADERS = re.compile(rb'"headers"')
_ID = re.compile(rb'"id"\s*:\s*"((?:[^"\\\x00-\x1f]|\\.){1,1200})"')
_FRAME_KEYS = frozenset(key.encode() for key in FRAME_KEYS)


def is_bare(message: Mapping[str, Any]) -> bool:
    """Whether a JSON object on a queue is a bare message, and not Celery's frame."""
    return "pipeline" in message or "inputs" in message or FRAME_KEYS.isdisjoint(message)


def id_of(message: Mapping[str, Any]) -> object:
    """What stands where the id of a message belongs, in either form; None if nothing does."""
    if is_bare(message):
        return message.get("id")
    headers = message.get("headers")
    return headers.get("id") if isinstance(headers, dict) else None


def id_in(raw: bytes | str | None) -> object:
    """The same for a message as it lies in Redis."""
    return id_of(json_object(raw) or {})


def first_id(raw: bytes) -> str | None:
    """The id in a message that is no JSON, is not to be parsed, or was cut: only its beginning is looked at.

    Inputs may hold objects with an ``id`` of their own, so of a bare message only the key at its top counts.
    """
    if not raw.lstrip().startswith(b"{"):
        return _id_in_headers(raw)
    depth = 0
    for token in _TOKEN.finditer(raw, 0, ID_WITHIN_BYTES):
        char = token[0]
        if char in (b"{", b"["):
            depth += 1
        elif char in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token[1] is not None and (colon := _COLON.match(raw, token.end())) is not None:
            if token[1] in _FRAME_KEYS:
                return _id_in_headers(raw)
            if token[1] == b"id":
                return text_of(found[1]) if (found := _TEXT.match(raw, colon.end())) is not None else None
        if depth <= 0 or char == b'"':  # the object has ended, or a text that does not end
            break
    return None


def _id_in_headers(raw: bytes) -> str | None:
    headers = _HEADERS.search(raw)
    found = _ID.search(raw, headers.end() if headers else 0)
    return text_of(found[1]) if found else None


def text_of(quoted: bytes) -> str | None:
    """What a JSON text means, given without its quotes; None if it is empty, or none."""
    try:
        found = json.loads(b'"%s"' % quoted)
    except ValueError:
        return None
    return found if isinstance(found, str) and found else None


def bare_schema() -> str:
    """The JSON Schema of a bare message, as exported to ``docs/bare-message.schema.json``."""
    schema, headers = json.loads(json_schema()), json.loads(headers_schema())["properties"]
    fields = schema["properties"]
    fields["params"]["anyOf"] = [{key: fields["params"].pop(key) for key in ("type", "additionalProperties")}]
    fields["params"]["anyOf"].append({"type": "null"})
    schema |= {
        "$id": f"pipeq:{keys.CONTRACT_VERSION}:bare-message",
        "title": "BareMessage",
        "description": "A task as one plain JSON object on the list of its queue (LPUSH).",
        "required": ["id", "pipeline", "inputs"],
    }
    schema["properties"] = {
        "id": {
            "type": "string",
            "minLength": 1,
            "maxLength": keys.TASK_ID_MAX_BYTES,
            "description": f"The key of the task's status: {keys.TASK_ID_WORDS}, that no other task has; a UUID, for "
            "instance. Write it first: of a message that is broken or too large, only the first "
            f"{ID_WITHIN_BYTES} bytes are searched for it.",
        },
        **fields,
        EXPIRES_AT: {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "When the task expires, in seconds since the epoch: no worker begins it later.",
        },
        **{name: headers[header] for name, header in HEADER_OF.items()},
    }
    return json.dumps(schema, indent=2) + "\n"
