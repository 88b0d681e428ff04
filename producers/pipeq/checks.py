"""CHECKS: checks the arguments of a call before anything is sent. Used by client.

Each function takes a value of any type, and returns it, or raises a PipeqError that names the argument, the value, and
what the argument must be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from pipeq.contract import keys, naming, schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError
from pipeq.contract.message import CUSTOM_ID_MAX, plain
from pipeq.contract.status import State

#: Longest delay, expiry or wait, in seconds.
LONGEST_S = 10 * 366 * 86400
#: Most bytes of headers that a caller may add: half of what a worker accepts for all headers.
HEADERS_BYTES = 32 * 2**10
#: Most things that a call returns.
LONGEST_LIST = 10**9
#: Largest value that Redis stores.
MOST_BYTES = 512 * 2**20


def pipeline(value: Any) -> str:
    """Checks the name of a pipeline, which is also the name of its queue."""
    if not keys.is_queue_name(value):
        refuse(f"the pipeline {shown.value(value)} is no name of one: {keys.QUEUE_NAME_WORDS}")
    return value


def new_task_id(value: Any, argument: str = "task_id") -> str:
    """Checks an id that the caller chose."""
    if not keys.is_task_id(value):
        refuse(f"{argument}: the task id {shown.value(value)} is not {keys.TASK_ID_WORDS}")
    return value


def idempotency_key(value: Any, argument: str = "idempotency_key") -> str:
    """Checks the name that a caller gave to a submit."""
    if not keys.is_task_id(value):
        refuse(f"{argument} {shown.value(value)} is not {keys.TASK_ID_WORDS}")
    return value


def custom_id(value: Any, argument: str = "custom_id") -> str | None:
    """Checks what a caller calls a task; None stays None."""
    return None if value is None else _short(argument, value, CUSTOM_ID_MAX)


def _short(argument: str, value: Any, most: int) -> str:
    if not keys.is_readable_id(value):
        refuse(f"{argument} {shown.value(value)} is not text of 1 to {most} characters")
    if len(value) > most:
        refuse(f"{argument} has {len(value)} characters, and at most {most} are allowed: {shown.value(value, 60)}")
    return str(value)


def task_id(value: Any) -> str:
    """Checks the id of a submitted task."""
    if not keys.is_readable_id(value):
        refuse(f"the task id {shown.value(value)} is not {keys.TASK_ID_WORDS}")
    return value


def task_ids(values: Any) -> list[str]:
    """Checks several ids; of a mapping, its keys. A single text is refused, as its letters would be read as ids."""
    return [
        task_id(value) for value in several("task_ids", list(values) if isinstance(values, Mapping) else values, "ids")
    ]


def several(name: str, values: Any, of: str, code: ErrorCode = ErrorCode.INVALID_MESSAGE) -> Iterator[Any]:
    """Accepts any iterable except text, bytes and mappings, which are passed by mistake; reads it lazily."""
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        refuse(
            f"{name} is {shown.value(values)}, a {type(values).__name__}, but takes a list of {of}: put it into [...]"
        )
    return _each(name, values, code)


def _each(name: str, values: Iterable[Any], code: ErrorCode) -> Iterator[Any]:
    """Yields the values of the caller's iterable. Its exception becomes a PipeqError, which can carry queued ids."""
    count = 0
    try:
        for count, value in enumerate(values, start=1):  # noqa: B007 (an error says how many there were)
            yield value
    except PipeqError:
        raise
    except Exception as error:
        raise PipeqError(code, f"{name} raised {shown.value(error, 300)} after {count} of them") from error


def texts(name: str, values: Any) -> list[str]:
    """Checks a list of short texts."""
    found = list(several(name, values, "texts"))
    for one in found:
        if not isinstance(one, str) or not 1 <= len(one) <= 200:
            refuse(f"{name} has {shown.value(one)}, not a text of 1 to 200 characters")
    return found


def limit(value: Any) -> int | None:
    """Checks a number of things that are returned at most; None stays None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST_LIST):
        refuse(f"limit is {shown.value(value)}, not a number from 0 to {LONGEST_LIST}")
    return value


def count(name: str, value: Any, most: int) -> int:
    """Checks a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        refuse(f"{name} is {shown.value(value)}, not a number from 0 to {most}")
    return value


def in_flight(value: Any, most: int) -> int:
    """Checks how many tasks are under way at once."""
    if count("in_flight", value, most) == 0:
        refuse("in_flight is 0, and no task would ever be submitted: give 1 or more")
    return int(value)


def max_backlog(value: Any) -> int | None:
    """Checks how many tasks may be in a queue; None stays None."""
    if value is not None and count("max_backlog", value, LONGEST_LIST) == 0:
        refuse("max_backlog is 0, and no task would ever be submitted: give 1 or more, or leave it out")
    return None if value is None else int(value)


def states(values: Any) -> frozenset[State]:
    """Checks names of states."""
    found = texts("states", values)
    known = [str(one) for one in State if one is not State.UNKNOWN]
    for one in found:
        if one not in known:
            refuse(f"states has {shown.value(one)}, which is none of {', '.join(known)}")
    return frozenset(map(State, found))


def flag(name: str, value: Any) -> bool:
    """Checks true or false."""
    if not isinstance(value, bool):
        refuse(f"{name} is {shown.value(value)}, not true or false")
    return value


def seconds(name: str, value: Any) -> float | None:
    """Checks a number of seconds from now; None stays None."""
    if value is None:
        return None
    # The comparison is also false for NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
        refuse(f"{name} is {shown.value(value)}, not a number of seconds from 0, within ten years")
    return float(value)


def timeout(name: str, value: Any) -> float | None:
    """Checks how long a task may take, in seconds; None stays None."""
    found = seconds(name, value)
    if found == 0:
        refuse(f"{name} is 0, and every task takes some time: give it more, or leave it out")
    return found


def priority(value: Any) -> int:
    """Checks one of Celery's priorities on Redis."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        refuse(f"priority {shown.value(value)} is not 0 (first) to 9 (last)")
    return value


def fair_key(value: Any) -> str | None:
    """Checks the name of a tenant; None stays None."""
    if value is None:
        return None
    return _short("fair_key", value, keys.FAIR_KEY_MAX)


def urgency(deadline_s: Any, key: Any, timeout_s: Any = None) -> dict[str, Any]:
    """Checks a deadline, a tenant and a limit of time, and returns the headers that carry them."""
    found: dict[str, Any] = {}
    if (wished := seconds("deadline_s", deadline_s)) is not None:
        found |= {keys.DEADLINE_HEADER: wished, keys.SENT_AT_HEADER: round(time.time(), 3)}
    if (named := fair_key(key)) is not None:
        found[keys.FAIR_KEY_HEADER] = named
    if (limit_s := timeout("timeout_s", timeout_s)) is not None:
        found[keys.TIMEOUT_HEADER] = limit_s
    return found


def output(value: Any, *, many: bool) -> dict[str, Any] | None:
    """Checks where a result goes, and returns it as a message has it; several results need a prefix, or ``{id}``."""
    if value is None:
        return None
    found = dict(value) if isinstance(value, Mapping) else {"uri": value}
    if unknown := sorted(map(str, found.keys() - {"uri", "include_inputs"})):
        refuse(f"output has the unknown field {shown.value(unknown[0])}; it takes a URI, or `uri` and `include_inputs`")
    uri = found.get("uri")
    scheme, _, place = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    if scheme == "file":
        place = place[1:] if place.startswith("/") else ""
    if not isinstance(uri, str) or not schemes.is_writable(scheme) or not place.partition("/")[0]:
        refuse(f"output {shown.value(uri)} is no URI like s3://bucket/prefix/ or file:///folder/")
    try:
        naming.check(uri)
    except ValueError as error:
        refuse(f"output {error}")
    if many and not uri.endswith("/") and not naming.has_fields(uri):
        refuse(f"output {shown.value(uri)} would hold many results: end it in '/', or write {{id}} into it")
    if not flag("output: include_inputs", found.get("include_inputs", False)):
        found.pop("include_inputs", None)
    return found


def params(value: Any, argument: str = "params") -> dict[str, Any]:
    """Checks the parameters of a call, and returns them as plain JSON values."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PipeqError(
            ErrorCode.INVALID_PARAMS,
            f"{argument} is {shown.value(value)}, a {type(value).__name__}, and takes a dictionary such as "
            "{'top_k': 2}",
        )
    try:
        found = plain(dict(value))
    except PipeqError as error:
        raise PipeqError(ErrorCode.INVALID_PARAMS, f"{argument}: {error.message}") from error
    assert isinstance(found, dict)
    return found


def headers(value: Any) -> dict[str, Any]:
    """Checks additional headers of a message."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        refuse(f"headers is {shown.value(value)}, a {type(value).__name__}, and takes a dictionary of names and values")
    if "compression" in value:
        refuse("headers: `compression` says how a body is packed, and this client packs none: leave it out")
    try:
        found = plain(dict(value))
    except PipeqError as error:
        refuse(f"headers: {error.message}")
    if (size := len(json.dumps(found))) > HEADERS_BYTES:
        refuse(f"headers take {size} bytes, at most {HEADERS_BYTES} are allowed: put what is large into the inputs")
    assert isinstance(found, dict)
    return found


def progress(value: Any) -> Callable[[int, int], None] | None:
    """Checks what is called with the number of tasks that are done, and of all; None stays None."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        refuse(f"progress is {shown.value(value)}, not a function of the numbers of tasks that are done, and of all")
    return value


def max_bytes(value: Any) -> int:
    """Checks the size of the largest message."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST_BYTES:
        raise SettingsError(f"max_message_bytes is {shown.value(value)}, not a number of bytes from 1 to {MOST_BYTES}")
    return value


def refuse(message: str) -> NoReturn:
    """Raises the error of an argument that cannot be used."""
    raise PipeqError(ErrorCode.INVALID_MESSAGE, message)
