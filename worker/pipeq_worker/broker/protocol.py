"""Celery's message protocol 2: the types of its headers, properties and parts of a body, and a check of messages.

Celery checks almost nothing: a number instead of a text raises an exception in an unrelated place, together with the
tasks of a whole batch. Source: celery 5.7, ``app/amqp.py`` (``AMQP.as_task_v2``), ``app/task.py`` (``Context``),
``worker/request.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from celery.app.task import Context
from kombu.utils import json as kombu_json
from pipeq.contract import keys
from pipeq.contract.reading import json_value, number

#: Whole numbers below this are exact in every JSON reader.
LARGEST = 2**53

#: The key of an object that kombu's JSON turns into a date, a UUID, bytes ...; and an escape that may stand for one of
#: its letters.
_TYPE, _LETTER = b"__type__", re.compile(rb"\\u00[4-7]")

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which cannot be stored
    return True


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(most: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _fair_key(value: Any) -> bool:
    return _text(value) and 1 <= len(value) <= keys.FAIR_KEY_MAX


def _seconds(value: Any) -> bool:
    found = number(value)
    return found is not None and found >= 0


def _timeout(value: Any) -> bool:
    return _seconds(value) and value > 0


def _limits(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(one is None or number(one) is not None for one in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(one) for one in value)


def _signatures(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _workers(value: Any) -> bool:
    if not _texts(value) or len(value) > keys.REFUSED_BY_MAX:
        return False
    return all(len(one) <= keys.WORKER_NAME_MAX for one in value)


def _times_of_workers(value: Any) -> bool:
    return isinstance(value, dict) and _workers(list(value)) and all(_seconds(one) for one in value.values())


def _object(value: Any) -> bool:
    return isinstance(value, dict)


#: Header -> its type if it is not null, in words, and a check.
HEADERS: dict[str, tuple[str, Check]] = {
    **dict.fromkeys(
        "lang task id shadow eta expires group root_id parent_id argsrepr kwargsrepr origin compression".split(),
        ("text", _text),
    ),
    "group_index": ("a count", _count(LARGEST)),
    "retries": ("a count", _count(LARGEST)),
    "replaced_task_nesting": ("a count", _count(LARGEST)),
    "timelimit": ("a list of two numbers", _limits),
    **dict.fromkeys(("ignore_result", "redelivered"), ("true or false", _flag)),
    "stamped_headers": ("a list of texts", _texts),
    "stamps": ("an object", _object),
    keys.FAIR_KEY_HEADER: (f"a text of 1 to {keys.FAIR_KEY_MAX} characters", _fair_key),
    keys.DEADLINE_HEADER: ("a number of seconds from 0", _seconds),
    keys.SENT_AT_HEADER: ("a number of seconds since the epoch", _seconds),
    keys.TIMEOUT_HEADER: ("a number of seconds above 0", _timeout),
    keys.PAST_ATTEMPTS_HEADER: ("a count", _count(keys.ATTEMPTS_MAX)),
    keys.RETRYING_SINCE_HEADER: ("a number of seconds since the epoch", _seconds),
    keys.PUT_OFF_HEADER: ("a count", _count(keys.ATTEMPTS_MAX)),
    keys.PAST_DEATHS_HEADER: ("a count", _count(keys.ATTEMPTS_MAX)),
    keys.FAILED_ON_HEADER: (
        f"an object of at most {keys.REFUSED_BY_MAX} names, with seconds since the epoch",
        _times_of_workers,
    ),
    keys.REFUSED_BY_HEADER: (f"a list of at most {keys.REFUSED_BY_MAX} names", _workers),
}
#: Property -> the same; the properties that the transport sets itself are not included.
PROPERTIES: dict[str, tuple[str, Check]] = {
    **dict.fromkeys("correlation_id reply_to expiration message_id type user_id app_id".split(), ("text", _text)),
    "priority": ("a number from 0 to 255", _count(255)),
    "delivery_mode": ("1 or 2", _count(2)),
}
#: Key of the third part of a body -> the same.
EMBED: dict[str, tuple[str, Check]] = {
    **dict.fromkeys(("callbacks", "errbacks", "chain"), ("a list of signatures", _signatures)),
    "chord": ("a signature", _object),
}
#: Celery copies headers to attributes of its request. A header with one of these names would replace its own.
_RESERVED = frozenset(name for name in vars(Context) if name not in HEADERS)


def broken_headers(headers: dict[str, Any], properties: dict[str, Any]) -> str | None:
    """Returns why a message's headers or properties do not follow the protocol; None if they do.

    Removes headers that would replace attributes of Celery's request; they have no meaning in the protocol.
    """
    if not _RESERVED.isdisjoint(headers):
        for name in _RESERVED & headers.keys():
            del headers[name]
    return _first_wrong("header", headers, HEADERS) or _first_wrong("property", properties, PROPERTIES)


def body_value(body: bytes | str | None) -> Any:
    """Decodes a body as kombu's JSON does, but with the limits of :mod:`pipeq.contract.reading`.

    Raises:
        UnreadableError: it is no JSON within the limits.
        ArithmeticError, AttributeError, LookupError, TypeError: it names one of kombu's types, and its value is none.
    """
    plain = isinstance(body, bytes) and not has_types(body)
    return json_value(body, None if plain else kombu_json.object_hook)


def has_types(body: bytes) -> bool:
    """Whether an object of a body may stand for one of kombu's types."""
    return _TYPE in body or (b"\\u" in body and _LETTER.search(body) is not None)


def broken_body(payload: Any) -> str | None:
    """Returns why a decoded body does not follow the protocol; None if it does."""
    if not isinstance(payload, list) or len(payload) != 3:
        return "its body is not [args, kwargs, embed]"
    args, kwargs, embed = payload
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict):
        return "its body is not [args, kwargs, embed], a list and two objects"
    return _first_wrong("embed", embed, EMBED)


def _first_wrong(what: str, values: dict[str, Any], table: dict[str, tuple[str, Check]]) -> str | None:
    # Most messages are right, and half of their values null. The order of the table matters only for the others.
    for name, value in values.items():
        if value is not None and (row := table.get(name)) is not None and not row[1](value):
            break
    else:
        return None
    for name, (words, check) in table.items():
        value = values.get(name)
        if value is not None and not check(value):
            return f"its {what} `{name}` is {_kind(value)}, not {words}"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < LARGEST else "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"
