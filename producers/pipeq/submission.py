"""SUBMISSION: the tasks that one call wants -> envelopes, in chunks. Before: wanted. After: submitting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches

from pipeq.backlog import Backlogs
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import TaskMessage, plain
from pipeq.envelope import Envelope, new_id, sha256_of
from pipeq.local_inputs import Store, has_local, referenced
from pipeq.protocol import Give, Steps, Stream, given
from pipeq.submitting import CHUNK_TASKS, Chunk, Place, Served, Submitter
from pipeq.uploads import Uploads
from pipeq.wanted import Call, Fed, Wanted

#: Most known pipelines that an error message names.
NAMES_SHOWN = 20


class Submissions:
    """Runs the submits of a client.

    Args:
        pipelines: steps to the names of all pipelines that a worker has ever served.
        max_message_bytes: larger messages are refused.
        store: where inputs go that are too large for a message; None if the client has none.
    """

    def __init__(
        self,
        pipelines: Callable[[], Steps[Iterable[str]]],
        max_message_bytes: int,
        store: Store | None = None,
    ) -> None:
        self._store = store
        self._backlogs = Backlogs()
        self._submitter = Submitter(self._backlogs)
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
        place = Place(
            call.pipeline, keys.list_key(call.pipeline, call.priority), call.delay_s, call.max_backlog is not None
        )
        most_at_once = CHUNK_TASKS if call.max_backlog is None else max(1, call.max_backlog // 4)
        chunk, number, is_checked = Chunk(), 0, not call.check
        uploads = None if self._store is None else Uploads(self._store)
        while True:
            asked_at = time.monotonic()
            if fed is not None:
                yield from fed.take()
            if (task := next(wanted, None)) is None:
                break
            is_slow = time.monotonic() - asked_at > slow_s
            envelope, body = yield from self._checked(call, task, number, uploads)
            if not is_checked:
                yield from self._check_known(call.pipeline)
                is_checked = True
            chunk.add(envelope, body, task.name)
            number += 1
            if uploads is not None and uploads.is_full:
                yield from _flush(call, uploads)
            if chunk.is_full or is_slow or len(chunk.ids) >= min(most_at_once, most()):
                yield Give((yield from self._put(call, place, chunk, uploads)))
                chunk = Chunk()
        if chunk.ids:
            yield Give((yield from self._put(call, place, chunk, uploads)))
        return None

    def _put(self, call: Call, place: Place, chunk: Chunk, uploads: Uploads | None) -> Steps[tuple[list[str], Served]]:
        if call.max_backlog is not None:
            yield from self._backlogs.room(call.pipeline, len(chunk.ids), call.max_backlog, call.full_wait_s)
        if uploads is not None:
            yield from _flush(call, uploads)
        served = yield from self._submitter.put(place, chunk)
        return chunk.ids, served

    def _checked(self, call: Call, task: Wanted, number: int, uploads: Uploads | None) -> Steps[tuple[Envelope, str]]:
        try:
            is_local = has_local(task.inputs, uploads is not None)
            if is_local:
                if uploads is not None:
                    uploads.number = number
                place = None if uploads is None else uploads.place
                inputs = yield from referenced(task.inputs, place, self._max_message_bytes)
                task = task._replace(inputs=inputs)
            envelope = self._envelope(call, task)
            body = envelope.body()
            if len(body) > self._max_message_bytes:
                raise _too_large(len(body), self._max_message_bytes, is_local and uploads is None)
        except PipeqError as error:
            raise _at(call, number, error) from error.__cause__
        return envelope, body

    def _envelope(self, call: Call, task: Wanted) -> Envelope:
        fields = {"pipeline": call.pipeline, "inputs": plain(task.inputs), "params": task.params, "output": call.output}
        if task.custom_id is not None:
            fields["custom_id"] = task.custom_id
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
        raise unknown_pipeline(pipeline, (yield from self._pipelines()))


def unknown_pipeline(pipeline: str, known: Iterable[str]) -> PipeqError:
    """The error of a submit to a pipeline that is none of the known ones."""
    known = sorted(known)
    meant = get_close_matches(pipeline, known, 1)
    hint = f"did you mean {shown.line(meant[0])!r}? " if meant else ""
    names = ", ".join(shown.line(name, 100) for name in known[:NAMES_SHOWN]) or "none yet"
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return PipeqError(
        ErrorCode.UNKNOWN_PIPELINE,
        f"no worker has ever served {pipeline!r} (known: {names}{more}): {hint}start one with "
        f"`pipeq worker {pipeline}`, or pass check=False (--no-check) to queue it anyway",
    )


def _flush(call: Call, uploads: Uploads) -> Steps[None]:
    if (failed := (yield from uploads.flush())) is not None:
        number, error = failed
        raise _at(call, number, error) from error.__cause__


def _at(call: Call, number: int, error: PipeqError) -> PipeqError:
    """The error of one input; of a list, with its position."""
    if not call.is_many:
        return error
    return PipeqError(error.code, f"inputs[{number}]: {error.message}", error.retryable)


def _too_large(size: int, limit: int, wants_store: bool) -> PipeqError:
    what = (
        "give the client a store for such inputs, upload='s3://bucket/prefix/' (or PIPEQ_CLIENT_UPLOAD)"
        if wants_store
        else "put the input on S3 and submit a Ref to it"
    )
    sentence = f"the message is {size} bytes, at most {limit} are allowed: {what}"
    return PipeqError(ErrorCode.INPUT_TOO_LARGE, sentence)
