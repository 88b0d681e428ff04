"""WANTED: the arguments of a call -> the tasks that it wants, one after the other. Before: client, checks.

After: submission, which makes envelopes of them. A call may name its tasks, by ids of its own or by idempotency keys:
docs/decisions/idempotency.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

from pipeq import checks
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.once import Name
from pipeq.protocol import Pull, Steps

INVALID_INPUT = ErrorCode.INVALID_INPUT


class Wanted(NamedTuple):
    """One task, as its caller wants it. Everything but the inputs is checked."""

    inputs: Any
    params: dict[str, Any]
    #: The id or the idempotency key that the caller gave it; None for neither.
    name: Name | None = None
    #: What the caller calls it, for the name of its result; None for nothing.
    custom_id: str | None = None


class Call(NamedTuple):
    """What the tasks of one call share. All of it is checked."""

    pipeline: str
    #: As a message has it: ``uri``, which may have fields to fill in, and ``include_inputs``.
    output: dict[str, Any] | None
    priority: int
    expires_s: float | None
    delay_s: float | None
    headers: Mapping[str, Any]
    #: Whether to refuse a pipeline that no worker has ever served.
    check: bool
    #: Whether the caller gave a list, so that errors say which of its inputs they are about.
    is_many: bool
    #: Most tasks in the queue afterwards, None for no limit; and how long to wait for room, in seconds, None for ever.
    max_backlog: int | None = None
    full_wait_s: float | None = None


def call(given: Mapping[str, Any], *, is_many: bool) -> Call:
    """What the tasks of one call share; the first argument that cannot be used raises an error.

    Args:
        given: the arguments of the client's method, by their names; those that it does not have are as if left out.
        is_many: whether the caller gave a list.
    """
    return Call(
        pipeline=checks.pipeline(given["pipeline"]),
        output=checks.output(given.get("output"), many=is_many),
        priority=checks.priority(given["priority"]),
        expires_s=checks.seconds("expires_s", given["expires_s"]),
        delay_s=checks.seconds("delay_s", given.get("delay_s")),
        headers=checks.headers(given["headers"])
        | checks.urgency(given["deadline_s"], given["fair_key"], given["timeout_s"]),
        check=checks.flag("check", given["check"]),
        is_many=is_many,
        max_backlog=checks.max_backlog(given.get("max_backlog")),
        full_wait_s=checks.seconds("full_wait_s", given.get("full_wait_s")),
    )


def one(inputs: Any, params: Any, task_id: Any, key: Any, custom_id: Any) -> Iterator[Wanted]:
    """The task of ``submit``."""
    if task_id is not None and key is not None:
        checks.refuse("task_id and idempotency_key both name the task: give one of them")
    name = _name("task_id", task_id, "idempotency_key", key)
    return iter([Wanted(inputs, checks.params(params), name, checks.custom_id(custom_id))])


def many(
    inputs: Any, params: Any, task_ids: Any = None, keys_: Any = None, custom_ids: Any = None
) -> tuple[Iterator[Wanted], Fed | None]:
    """The tasks of ``submit_many``: the inputs, read lazily, beside what was given for each of them.

    If the inputs come from an asynchronous iterable, the second value is what the first one reads from.
    """
    fed = Fed(inputs) if isinstance(inputs, AsyncIterable) else None
    given = {"task_ids": task_ids, "idempotency_keys": keys_, "custom_ids": custom_ids}
    is_shared = params is None or isinstance(params, Mapping)
    if not is_shared:
        given["params"] = params
    beside = {name: checks.several(name, values, name) for name, values in given.items() if values is not None}
    values = iter(fed) if fed is not None else checks.several("inputs", inputs, "inputs", INVALID_INPUT)
    for name in beside:
        if isinstance(inputs, Sized) and isinstance(given[name], Sized) and len(given[name]) != len(inputs):
            counts = f"{shown.count(len(given[name]), 'value')} for {shown.count(len(inputs), 'input')}"
            checks.refuse(f"{name} has {counts}: give one for each input")
    shared = checks.params(params) if is_shared else {}
    if not beside:
        return (Wanted(value, shared) for value in values), fed
    return _paired(values, shared, beside), fed


class Fed:
    """The values of an asynchronous iterable, as steps have taken them before they are asked for."""

    def __init__(self, values: AsyncIterable[Any]) -> None:
        self._source = aiter(values)
        self._taken = deque[Any]()
        self._count = 0
        #: Whether there is no further one.
        self.has_ended = False

    def __iter__(self) -> Iterator[Any]:
        while self._taken:
            yield self._taken.popleft()

    def take(self, count: int = 1) -> Steps[None]:
        """Takes the next ones."""
        while count and not self.has_ended:
            try:
                found = yield Pull(self._source)
            except Exception as error:
                sentence = f"inputs raised {shown.value(error, 300)} after {self._count} of them"
                raise PipeqError(INVALID_INPUT, sentence) from error
            self._taken += found
            self._count += len(found)
            self.has_ended = not found
            count -= 1


def _paired(inputs: Iterator[Any], shared: dict[str, Any], beside: Mapping[str, Iterator[Any]]) -> Iterator[Wanted]:
    nothing = object()
    number = -1
    for number, value in enumerate(inputs):
        given = {name: next(values, nothing) for name, values in beside.items()}
        for name, found in given.items():
            if found is nothing:
                ends = f"ends after {shown.count(number, 'value')}, and inputs goes on"
                checks.refuse(f"{name} {ends}: give one for each input")
        at = f"[{number}]"
        task_id, key = given.get("task_ids"), given.get("idempotency_keys")
        if task_id is not None and key is not None:
            checks.refuse(f"task_ids{at} and idempotency_keys{at} both name the task: give one of them, and None")
        params = checks.params(given["params"], f"params{at}") if "params" in given else shared
        custom_id = checks.custom_id(given.get("custom_ids"), f"custom_ids{at}")
        yield Wanted(value, params, _name(f"task_ids{at}", task_id, f"idempotency_keys{at}", key), custom_id)
    for name, values in beside.items():
        if next(values, nothing) is not nothing:
            checks.refuse(f"{name} goes on, and inputs ends after {number + 1}: give one for each input")


def _name(id_argument: str, task_id: Any, key_argument: str, key: Any) -> Name | None:
    if key is not None:
        return Name(checks.idempotency_key(key, key_argument), True, key_argument)
    if task_id is not None:
        return Name(checks.new_task_id(task_id, id_argument), False, id_argument)
    return None
