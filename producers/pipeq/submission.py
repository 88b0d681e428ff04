"""SUBMISSION: what one call asks for -> envelopes, in chunks. Before: client, checks. After: submitting.

A call may name its tasks, by ids of its own or by idempotency keys: docs/decisions/idempotency.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sized
from difflib import get_close_matches
from typing import Any, NamedTuple

from pipeq import checks
from pipeq.backlog import room
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import TaskMessage, plain
from pipeq.envelope import Envelope, new_id, sha256_of
from pipeq.local_inputs import Put, has_local, referenced
from pipeq.once import Name
from pipeq.protocol import Give, Pull, Steps, Stream, given
from pipeq.submitting import CHUNK_TASKS, Chunk, Place, Served, Submitter

INVALID_INPUT = ErrorCode.INVALID_INPUT
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
    #: Most tasks in the queue afterwards, None for no limit; and how long to wait for room, in seconds, None for ever.
    max_backlog: int | None = None
    full_wait_s: float | None = None


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
    max_backlog: Any = None,
    full_wait_s: Any = None,
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
        max_backlog=checks.max_backlog(max_backlog),
        full_wait_s=checks.seconds("full_wait_s", full_wait_s),
    )


def one(inputs: Any, params: Any, task_id: Any, key: Any) -> Iterator[Wanted]:
    """The task of ``submit``."""
    if task_id is not None and key is not None:
        checks.refuse("task_id and idempotency_key both name the task: give one of them")
    return iter([Wanted(inputs, checks.params(params), _name("task_id", task_id, "idempotency_key", key))])


def many(inputs: Any, params: Any, task_ids: Any, keys_: Any) -> tuple[Iterator[Wanted], Fed | None]:
    """The tasks of ``submit_many``: the inputs, read lazily, beside what was given for each of them.

    If the inputs come from an asynchronous iterable, the second value is what the first one reads from.
    """
    fed = Fed(inputs) if isinstance(inputs, AsyncIterable) else None
    given = {"task_ids": task_ids, "idempotency_keys": keys_}
    is_shared = params is None or isinstance(params, Mapping)
    if not is_shared:
        given["params"] = params
    beside = {name: checks.several(name, values, name) for name, values in given.items() if values is not None}
    values = iter(fed) if fed is not None else checks.several("inputs", inputs, "inputs", INVALID_INPUT)
    for name in beside:
        if isinstance(inputs, Sized) and isinstance(given[name], Sized) and len(given[name]) != len(inputs):
            checks.refuse(f"{name} has {len(given[name])} values for {len(inputs)} inputs: give one for each input")
    shared = checks.params(params) if is_shared else {}
    if not beside:
        return (Wanted(value, shared) for value in values), fed
    return _paired(values, shared, beside), fed


class Fed:
    """The values of an asynchronous iterable, as steps have taken them: one at a time, each when it is asked for."""

    def __init__(self, values: AsyncIterable[Any]) -> None:
        self._source = aiter(values)
        self._taken: list[Any] = []
        self._count = 0

    def __iter__(self) -> Iterator[Any]:
        while self._taken:
            yield self._taken.pop()

    def take(self) -> Steps[None]:
        """Takes the next one."""
        try:
            self._taken = yield Pull(self._source)
        except Exception as error:
            sentence = f"inputs raised {shown.value(error, 300)} after {self._count} of them"
            raise PipeqError(INVALID_INPUT, sentence) from error
        self._count += len(self._taken)


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
        put_object: uploads inputs that are too large for a message; None if the client has no store.
    """

    def __init__(
        self,
        pipelines: Callable[[], Steps[Iterable[str]]],
        max_message_bytes: int,
        put_object: Put | None = None,
    ) -> None:
        self._put_object = put_object
        self._submitter = Submitter()
        self._pipelines = pipelines
        self._max_message_bytes = max_message_bytes
        self._reply_to = new_id()

    def run(
        self, submitted: list[str], call: Call, wanted: Iterator[Wanted], fed: Fed | None = None
    ) -> Steps[Served | None]:
        """Queues tasks in chunks; appends each id to ``submitted`` as soon as its task is queued.

        Returns:
            The pipeline's workers, as of the last chunk; None if there was no task.
        """
        served, chunks = None, self.chunks(call, wanted, fed)
        while (found := (yield from given(chunks))) is not None:
            ids, served = found
            submitted += ids
        return served

    def chunks(
        self,
        call: Call,
        wanted: Iterator[Wanted],
        fed: Fed | None,
        most: Callable[[], int] = lambda: CHUNK_TASKS,
        slow_s: float = float("inf"),
    ) -> Stream[tuple[list[str], Served]]:
        """Queues tasks in chunks, and hands out the ids of each as soon as they are queued.

        Args:
            call: what the tasks share.
            wanted: the tasks.
            fed: from which ``wanted`` reads, if the inputs come from an asynchronous iterable.
            most: says how many tasks a chunk may have.
            slow_s: what takes longer to come, in seconds, is not kept waiting for company.
        """
        place = Place(call.pipeline, keys.list_key(call.pipeline, call.priority), call.delay_s)
        most_at_once = CHUNK_TASKS if call.max_backlog is None else max(1, call.max_backlog // 4)
        chunk, number, is_checked = Chunk(), 0, not call.check
        while True:
            asked_at = time.monotonic()
            if fed is not None:
                yield from fed.take()
            if (task := next(wanted, None)) is None:
                break
            is_slow = time.monotonic() - asked_at > slow_s
            envelope, body = yield from self._checked(call, task, number)
            if not is_checked:
                yield from self._check_known(call.pipeline)
                is_checked = True
            chunk.add(envelope, body, task.name)
            number += 1
            if chunk.is_full or is_slow or len(chunk.ids) >= min(most_at_once, most()):
                yield Give((yield from self._put(call, place, chunk)))
                chunk = Chunk()
        if chunk.ids:
            yield Give((yield from self._put(call, place, chunk)))
        return None

    def _put(self, call: Call, place: Place, chunk: Chunk) -> Steps[tuple[list[str], Served]]:
        if call.max_backlog is not None:
            yield from room(call.pipeline, len(chunk.ids), call.max_backlog, call.full_wait_s)
        served = yield from self._submitter.put(place, chunk)
        return chunk.ids, served

    def _checked(self, call: Call, task: Wanted, number: int) -> Steps[tuple[Envelope, str]]:
        try:
            is_local = has_local(task.inputs, self._put_object is not None)
            if is_local:
                inputs = yield from referenced(task.inputs, self._put_object, self._max_message_bytes)
                task = task._replace(inputs=inputs)
            envelope = self._envelope(call, task)
            body = envelope.body()
            if len(body) > self._max_message_bytes:
                raise _too_large(len(body), self._max_message_bytes, is_local and self._put_object is None)
        except PipeqError as error:
            if not call.is_many:
                raise
            sentence = f"inputs[{number}]: {error.message}"
            raise PipeqError(error.code, sentence, error.retryable) from error.__cause__
        return envelope, body

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


def _too_large(size: int, limit: int, wants_store: bool) -> PipeqError:
    what = (
        "give the client a store for such inputs, upload='s3://bucket/prefix/' (or PIPEQ_CLIENT_UPLOAD)"
        if wants_store
        else "put the input on S3 and submit a Ref to it"
    )
    sentence = f"the message is {size} bytes, at most {limit} are allowed: {what}"
    return PipeqError(ErrorCode.INPUT_TOO_LARGE, sentence)
