"""SUBMISSION: what one call asks for -> envelopes, in chunks. Before: client, checks. After: submitting.

A call may name its tasks, by ids of its own or by idempotency keys: docs/decisions/idempotency.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from difflib import get_close_matches
from typing import Any, NamedTuple

from pipeq import checks
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import TaskMessage, plain
from pipeq.envelope import Envelope, new_id, sha256_of
from pipeq.once import Name
from pipeq.protocol import Steps
from pipeq.submitting import Chunk, Place, Served, Submitter

#: Most known pipelines that an error message names.
NAMES_SHOWN = 20


class Wanted(NamedTuple):
    """One task, as its caller wants it. Everything but the inputs is checked."""

    inputs: Any
    params: dict[str, Any]
    #: The id or the idempotency key that the caller gave it; None for neither.
    name: Name | None = None


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


def call(
    pipeline: Any,
    output: Any,
    priority: Any,
    expires_s: Any,
    delay_s: Any,
    deadline_s: Any,
    fair_key: Any,
    timeout_s: Any,
    headers: Any,
    *,
    check: bool,
    is_many: bool,
) -> Call:
    """What the tasks of one call share, from its arguments; the first that cannot be used raises an error."""
    return Call(
        pipeline=checks.pipeline(pipeline),
        output=checks.output(output, many=is_many),
        priority=checks.priority(priority),
        expires_s=checks.seconds("expires_s", expires_s),
        delay_s=checks.seconds("delay_s", delay_s),
        headers=checks.headers(headers) | checks.urgency(deadline_s, fair_key, timeout_s),
        check=check,
        is_many=is_many,
    )


def one(inputs: Any, params: Any, task_id: Any, key: Any) -> list[Wanted]:
    """The task of ``submit``."""
    if task_id is not None and key is not None:
        checks.refuse("task_id and idempotency_key both name the task: give one of them")
    return [Wanted(inputs, checks.params(params), _name("task_id", task_id, "idempotency_key", key))]


def many(inputs: Any, params: Any, task_ids: Any, keys_: Any) -> Iterator[Wanted]:
    """The tasks of ``submit_many``: the inputs, read lazily, beside what was given for each of them."""
    given = {"task_ids": task_ids, "idempotency_keys": keys_}
    is_shared = params is None or isinstance(params, Mapping)
    if not is_shared:
        given["params"] = params
    beside = {name: checks.several(name, values, name) for name, values in given.items() if values is not None}
    each = checks.several("inputs", inputs, "inputs", ErrorCode.INVALID_INPUT)
    for name in beside:
        if isinstance(inputs, Sized) and isinstance(given[name], Sized) and len(given[name]) != len(inputs):
            checks.refuse(f"{name} has {len(given[name])} values for {len(inputs)} inputs: give one for each input")
    shared = checks.params(params) if is_shared else {}
    if not beside:
        return (Wanted(value, shared) for value in each)
    return _paired(each, shared, beside)


def _paired(inputs: Iterator[Any], shared: dict[str, Any], beside: Mapping[str, Iterator[Any]]) -> Iterator[Wanted]:
    nothing = object()
    number = -1
    for number, value in enumerate(inputs):
        given = {name: next(values, nothing) for name, values in beside.items()}
        for name, found in given.items():
            if found is nothing:
                checks.refuse(f"{name} ends after {number} values, and inputs goes on: give one for each input")
        at = f"[{number}]"
        task_id, key = given.get("task_ids"), given.get("idempotency_keys")
        if task_id is not None and key is not None:
            checks.refuse(f"task_ids{at} and idempotency_keys{at} both name the task: give one of them, and None")
        params = checks.params(given["params"], f"params{at}") if "params" in given else shared
        yield Wanted(value, params, _name(f"task_ids{at}", task_id, f"idempotency_keys{at}", key))
    for name, values in beside.items():
        if next(values, nothing) is not nothing:
            checks.refuse(f"{name} goes on, and inputs ends after {number + 1}: give one for each input")


def _name(id_argument: str, task_id: Any, key_argument: str, key: Any) -> Name | None:
    if key is not None:
        return Name(checks.idempotency_key(key, key_argument), True, key_argument)
    if task_id is not None:
        return Name(checks.new_task_id(task_id, id_argument), False, id_argument)
    return None


class Submissions:
    """Runs the submits of a client.

    Args:
        pipelines: steps to the names of all pipelines that a worker has ever served.
        max_message_bytes: larger messages are refused.
    """

    def __init__(
        self,
        pipelines: Callable[[], Steps[Iterable[str]]],
        max_message_bytes: int,
    ) -> None:
        self._submitter = Submitter()
        self._pipelines = pipelines
        self._max_message_bytes = max_message_bytes
        self._reply_to = new_id()

    def run(self, submitted: list[str], call: Call, wanted: Iterable[Wanted]) -> Steps[Served | None]:
        """Queues tasks in chunks; appends each id to ``submitted`` as soon as its task is queued.

        Returns:
            The pipeline's workers, as of the last chunk; None if there was no task.
        """
        place = Place(call.pipeline, keys.list_key(call.pipeline, call.priority), call.delay_s)
        chunk = Chunk()
        served: Served | None = None
        is_checked = not call.check
        for number, task in enumerate(wanted):
            try:
                envelope = self._envelope(call, task)
                body = envelope.body()
                if len(body) > self._max_message_bytes:
                    raise _too_large(len(body), self._max_message_bytes)
            except PipeqError as error:
                if not call.is_many:
                    raise
                sentence = f"inputs[{number}]: {error.message}"
                raise PipeqError(error.code, sentence, error.retryable) from error.__cause__
            if not is_checked:
                yield from self._check_known(call.pipeline)
                is_checked = True
            chunk.add(envelope, body, task.name)
            if chunk.is_full:
                served = yield from self._submitter.put(place, chunk)
                submitted += chunk.ids
                chunk = Chunk()
        if chunk.ids:
            served = yield from self._submitter.put(place, chunk)
            submitted += chunk.ids
        return served

    def _envelope(self, call: Call, task: Wanted) -> Envelope:
        fields = {"pipeline": call.pipeline, "inputs": plain(task.inputs), "params": task.params, "output": call.output}
        message = TaskMessage.parse(fields)
        now = time.time()
        name = task.name
        # Before the id and the day are filled in, which differ when the same task is submitted again.
        message_sha256 = "" if name is None else sha256_of(message)
        task_id = new_id() if name is None or name.is_key else name.text
        if (place := message.destination(task_id, now)) is not message.output:
            message = message.model_copy(update={"output": place})
        return Envelope(
            id=task_id,
            message=message,
            priority=call.priority,
            submitted_at=now,
            expires_at=None if call.expires_s is None else now + call.expires_s,
            headers=call.headers,
            due_at=now + call.delay_s if call.delay_s else None,
            reply_to=self._reply_to,
            message_sha256=message_sha256,
        )

    def _check_known(self, pipeline: str) -> Steps[None]:
        if (yield from self._submitter.is_known(pipeline)):
            return
        known = sorted((yield from self._pipelines()))
        meant = get_close_matches(pipeline, known, 1)
        hint = f"did you mean {shown.line(meant[0])!r}? " if meant else ""
        names = ", ".join(shown.line(name, 100) for name in known[:NAMES_SHOWN]) or "none yet"
        more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
        raise PipeqError(
            ErrorCode.UNKNOWN_PIPELINE,
            f"no worker has ever served {pipeline!r} (known: {names}{more}): {hint}start one with "
            f"`pipeq worker {pipeline}`, or pass check=False (--no-check) to queue it anyway",
        )


def _too_large(size: int, limit: int) -> PipeqError:
    return PipeqError(
        ErrorCode.INPUT_TOO_LARGE,
        f"the message is {size} bytes, at most {limit} are allowed: put the input on S3 and submit a Ref to it",
    )
