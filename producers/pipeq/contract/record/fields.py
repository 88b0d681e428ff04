"""What a record and a mark have in them, field by field. The comments are the tables of docs/record.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract.errors import PipeqError
from pipeq.contract.reading import readable_object
from pipeq.contract.status import CELERY_STATES, BatchInfo, ModelInfo, Progress

#: Celery's states of a task that has ended; its record does not change any more.
ENDED = frozenset(word for state, word in CELERY_STATES.items() if state.is_final)

#: Size of the longest record that pipeq writes, in bytes; a longer text counts as none.
MAX_BYTES = 64 * 2**20
#: Size of the longest record of a task that has not ended, and so has no result, in bytes.
OPEN_MAX_BYTES = 2**20
#: How records begin that say that a task waits, or runs. A record of :func:`queued` has a blank more, so that
#: ``begin.lua`` can write over these bytes alone.
QUEUED_HEAD, STARTED_HEAD = '{"status": "QUEUED" ,', '{"status": "STARTED",'


@dataclass(kw_only=True)
class Record:
    """The fields of a record that pipeq uses. Celery adds others if its settings ask for it (``result_extended``)."""

    #: Celery's name of the state: QUEUED, STARTED, RETRY, SUCCESS, FAILURE or REVOKED.
    status: str
    #: After SUCCESS the pipeline's output, or ``{"uri"}`` if it was written to a store. After RETRY, FAILURE and
    #: REVOKED
    #: the exception: ``{"exc_type", "exc_message", "exc_module"}``, where ``exc_message`` is a list of its arguments.
    #: The
    #: arguments of pipeq's errors are the code, the message, and whether the error is retryable; REVOKED has the
    #: reason.
    result: Any = None
    #: Python's traceback of the exception, after RETRY and FAILURE.
    traceback: str | None = None
    #: The tasks that this one started (links, the rest of a chain), as Celery writes them.
    children: list[Any] = field(default_factory=list)
    #: When it ended: ISO 8601, in UTC. Null before.
    date_done: str | None = None
    #: The task's id.
    task_id: str
    #: What pipeq adds. Absent if Celery alone wrote the record.
    pipeq: dict[str, Any]

    def encode(self) -> str:
        """Returns the text that is stored in Redis."""
        return json.dumps(vars(self))


@dataclass(kw_only=True)
class Part:
    """What pipeq adds to a record: the status without id, state and result. Fields that are None are left out."""

    #: The pipeline's name.
    pipeline: str | None = None
    #: When the producer submitted the task, in seconds since the epoch; or when an operator sent it again, after it had
    #: failed.
    submitted_at: float | None = None
    #: Time before which no worker begins its last try, in seconds since the epoch: when its delay is over, or the wait
    #: for its next try. Absent if it has none.
    due_at: float | None = None
    #: Time after which no worker begins it, in seconds since the epoch. Absent if it never expires.
    expires_at: float | None = None
    #: SHA-256, in hexadecimal, of pipeline, inputs, params and output, if the producer chose the id itself. With it, a
    #: client detects that another task was given the same id.
    message_sha256: str | None = None
    #: When its first batch began, in seconds since the epoch; if there were several tries, that of the last one.
    started_at: float | None = None
    #: When it ended, in seconds since the epoch.
    finished_at: float | None = None
    #: Number of times that a worker has begun to run it, without those that failed by a fault of the worker. After an
    #: operator has sent it again, they go on counting.
    attempts: int | None = None
    #: The name of the worker that ended it, or sent it to its next try.
    worker: str | None = None
    #: Milliseconds in each part of its life: ``delayed``, ``queued``, ``fetch``, ``decode``, ``prepare``,
    #: ``wait_device``, ``infer``, ``deliver``. They add up to ``finished_at`` minus ``submitted_at``. A part that it
    #: did not come to is absent.
    timing_ms: dict[str, float] | None = None
    #: The largest batch that one of its items ran in.
    batch: BatchInfo | None = None
    #: The model that computed the result.
    model: ModelInfo | None = None
    #: The URI of the output, if it was written to a store.
    result_uri: str | None = None
    #: Why it failed; after RETRY, why it will be tried again.
    error: PipeqError | None = None
    #: The tries before the last one, the oldest first, ten at most; after RETRY also the last one. The last try of a
    #: task that has ended is in the fields above.
    history: list[Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Returns it in the form that the record has it."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        # Their fields are plain values, so these are what model_dump() makes, in a fifth of its time.
        if self.batch is not None:
            found["batch"] = dict(vars(self.batch))
        if self.model is not None:
            found["model"] = dict(vars(self.model))
        if (error := self.error) is not None:
            about = {"code": error.code, "message": error.message, "retryable": error.retryable}
            found["error"] = {**about, "traceback": error.traceback} if error.traceback else about
        return found


@dataclass(kw_only=True)
class Mark:
    """Says that a task runs, from its first batch until it ends or goes back on its queue. Written by ``begin.lua``."""

    #: The name of the worker that runs it. Empty if the task went back on its queue after workers had died while
    #: running
    #: it; then it does not run.
    worker: str
    #: When its first batch began, in seconds since the epoch.
    since: float
    #: Number of workers that died while running it. A worker that finds the mark of a dead worker counts one more.
    deaths: int
    #: The number of this try, from 1.
    attempt: int
    #: How far the task is. Absent at first; ``look.lua`` writes it, once a second at most.
    progress: Progress | None = None
    #: Milliseconds before that in which a worker prepared it (``prepare``), and in which it waited for its first batch
    #: (``wait_device``).
    timing_ms: dict[str, float] | None = None
    #: The tries that ended with the death of a worker or its process, as in the record's ``history``. Absent for none.
    lost_tries: list[Any] | None = None

    @classmethod
    def back_on_its_queue(cls, *, since: float, deaths: int, attempt: int, lost: Sequence[dict[str, Any]] = ()) -> Mark:
        """Returns the mark of a task that goes back unfinished, and whose earlier workers died.

        The next worker finds a mark whose worker is not alive, and counts one death more than the mark says. Going
        back is not a death, so the mark says one less than there were.
        """
        return cls(worker="", since=since, deaths=deaths - 1, attempt=attempt, lost_tries=list(lost) or None)

    def encode(self) -> str:
        """Returns the text that is stored in Redis."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        if self.progress is not None:
            found["progress"] = self.progress.model_dump()
        return json.dumps(found)


def part_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns pipeq's part of a record; empty if there is none."""
    return found if isinstance(found := fields.get("pipeq"), dict) else {}


def lost_of(mark: bytes | str | None) -> list[Any]:
    """Returns the tries of a mark that ended with a death."""
    lost = (readable_object(mark) or {}).get("lost_tries")
    return lost if isinstance(lost, list) else []
