"""CONTRACT: what Redis holds for one task: its record and its running mark. Only this module builds and reads them.

The record is a string under ``celery-task-meta-<id>``: JSON of a :class:`Record`, in the layout of Celery's result
backend, so that ``AsyncResult`` can read it. pipeq adds a :class:`Part` under the key ``pipeq``, which Celery ignores.
The mark is a :class:`Mark`, as JSON in the field ``<id>`` of the hash ``pipeq:running``.

What happens                    The record                             The mark
A client submits                :func:`queued`                         none
Its first batch begins          says STARTED, by ``begin.lua``         set, by ``begin.lua``
It runs for seconds             stays as it is                         says how far it is, by ``look.lua``
Its worker puts the task back   as before it began, by ``back.lua``    removed, or :meth:`Mark.back_on_its_queue`
The task succeeds               :func:`succeeded`, by ``finish.lua``   removed, by ``finish.lua``
It ends otherwise, or waits     :func:`complete`, by ``finish.lua``    removed, by ``finish.lua``
for its next try                or :func:`retrying`
A client cancels                :func:`cancelled`                      stays until the next look; a mark of an ended
                                                                       task means nothing
An operator empties its queue   :func:`purged`                         removed, by ``purge.lua``
An operator takes it out of     :func:`revived`, by ``revive.lua``     removed, by ``revive.lua``
the dead letters

Each record except the first is also published, on a channel named like its key. :func:`read` converts record and mark
to a status. Any client may have written anything under these keys, so reading never raises: a field of a wrong type
counts as absent.

``docs/record.md`` explains all this to readers in other languages; its tables are generated from the ``#:`` lines
below.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from pipeq.contract import keys, shown, times
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import UnreadableError, json_object, number, readable, readable_object
from pipeq.contract.status import (
    CELERY_STATES,
    LATEST_S,
    Attempt,
    BatchInfo,
    ErrorInfo,
    ModelInfo,
    Progress,
    State,
    TaskStatus,
)
from pipeq.contract.writing import to_json

#: Celery's states of a task that has ended; its record does not change any more.
ENDED = frozenset(word for state, word in CELERY_STATES.items() if state.is_final)
_STATES = {word: state for state, word in CELERY_STATES.items() if state is not State.EXPIRED}

#: Size of the longest record that pipeq writes, in bytes; a longer text counts as none.
MAX_BYTES = 64 * 2**20
#: Size of the longest record of a task that has not ended, and so has no result, in bytes.
OPEN_MAX_BYTES = 2**20
#: Earlier tries that a record keeps, the newest ...
HISTORY_MAX = 10
#: ... and most characters of the error's sentence of each.
HISTORY_CHARS = 500
#: Stages in the order in which a task comes to them; the last one in its times is where a try ended. Records of earlier
#: versions call the wait for the device "batch".
_STAGES = ("fetch", "decode", "prepare", "batch", "wait_device", "infer", "deliver")


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


#: How records begin that say that a task waits, or runs. A record of :func:`queued` has a blank more, so that
#: ``begin.lua`` can write over these bytes alone.
_QUEUED_HEAD, _STARTED_HEAD = '{"status": "QUEUED" ,', '{"status": "STARTED",'

#: Functions that the scripts share.
_LUA_FUNCTIONS = """
-- The fields of a record or a mark. Any client may have written anything there: what is neither has no fields.
local function object(text)
  if type(text) ~= 'string' or #text > RECORD_MAX_BYTES then
    return {}
  end
  local ok, fields = pcall(cjson.decode, text)
  return ok and type(fields) == 'table' and fields or {}
end

-- Whether a record says that its task has ended.
local function has_ended(text)
  return ENDED[object(text)[RECORD_STATUS]]
end

"""

#: The first lines of each script that reads or writes records and marks: names as Lua variables, and those functions.
LUA = "".join(
    f"local {name} = {value}\n"
    for name, value in {
        "ENDED": "{" + ", ".join(f"{word} = true" for word in sorted(ENDED)) + "}",
        "RECORD_MAX_BYTES": MAX_BYTES,
        "OPEN_MAX_BYTES": OPEN_MAX_BYTES,
        "RECORD_STATUS": "'status'",
        "QUEUED_HEAD": f"'{_QUEUED_HEAD}'",
        "STARTED_HEAD": f"'{_STARTED_HEAD}'",
        "RETRY_HEAD": """'{"status": "RETRY",'""",
        # As a client of an earlier version writes it.
        "PLAIN_QUEUED_HEAD": """'{"status": "QUEUED",'""",
        # Of a task without a record: in front of its id as JSON, and behind it.
        "STARTED_REST": """{' "result": null, "children": [], "task_id": ', ', "pipeq": {}}'}""",
        "PENDING_TTL_S": keys.PENDING_TTL_S,
        "HISTORY_MAX": HISTORY_MAX,
        "LOST_WORKER": "'worker'",
        "LOST_STARTED": "'started_at'",
        "LOST_CODE": "{'code', 'worker_lost'}",
        **{f"MARK_{one.name.upper()}": f"'{one.name}'" for one in fields(Mark)},
    }.items()
)
LUA += _LUA_FUNCTIONS


# -- building ---------------------------------------------------------------------------------------------------------


#: The beginning of every first record. Encoding the whole record each time would take a tenth of a submit's time.
_QUEUED_BEGIN = (
    Record(status=CELERY_STATES[State.QUEUED], task_id="", pipeq={})
    .encode()
    .partition('"", "pipeq"')[0]
    .replace('{"status": "QUEUED",', _QUEUED_HEAD)
)


def queued(task_id: str, part: Part) -> str:
    """Returns the first record of a task, which its producer writes."""
    return f'{_QUEUED_BEGIN}{json.dumps(task_id)}, "pipeq": {json.dumps(part.fields())}}}'


#: The beginning of the record of a task that has succeeded and started no others.
_SUCCEEDED_BEGIN = b'{"status":"SUCCESS","traceback":null,"children":[],"result":'


def succeeded(
    task_id: str, result: bytes, part: Part, *, group_id: str | None = None, parent_id: str | None = None
) -> bytes:
    """Returns the record of a task that has succeeded, with the fields that Celery's result backend would write.

    Args:
        task_id: the task's id.
        result: the result as JSON, which becomes part of the record as it is.
        part: pipeq's part; ``finished_at`` must be set.
        group_id: the id of the group that it belongs to.
        parent_id: the id of the task that started it.
    """
    assert part.finished_at is not None
    rest: dict[str, Any] = {"date_done": datetime.fromtimestamp(part.finished_at, UTC).isoformat()}
    if group_id:
        rest["group_id"] = group_id
    if parent_id:
        rest["parent_id"] = parent_id
    rest["task_id"], rest["pipeq"] = task_id, part.fields()
    try:
        end = to_json(rest, is_finite=True)
    except ValueError:  # half of a surrogate pair, which only an escape can express
        end = json.dumps(rest).encode()
    return b"%b%b,%b" % (_SUCCEEDED_BEGIN, result, end[1:])


def retrying(task_id: str, part: Part) -> bytes:
    """Returns the record of a task that waits for its next try, in the form of Celery's own, without its traceback.

    Args:
        task_id: the task's id.
        part: pipeq's part; ``error`` and ``due_at`` must be set.
    """
    assert part.error is not None
    kind = type(part.error)
    record = Record(
        status=CELERY_STATES[State.RETRYING],
        result={"exc_type": kind.__name__, "exc_message": list(part.error.args), "exc_module": kind.__module__},
        task_id=task_id,
        pipeq=part.fields(),
    )
    return record.encode().encode()


def cancelled(
    task_id: str,
    before: bytes | str | None,
    mark: bytes | str | None = None,
    reason: ErrorCode = ErrorCode.CANCELLED,
) -> str:
    """Returns the record of a task that was cancelled, in the form of Celery's own revocation.

    Args:
        task_id: the task's id.
        before: the record before that; None if there was none.
        mark: its running mark, which says where and since when it ran; None if there is none.
        reason: what the revocation says: ``expired`` if its job has expired.
    """
    fields = json_object(before) or {}
    running = _running(mark)
    ran: dict[str, Any] = {name: running[name] for name in ("worker", "attempts", "started_at") if name in running}
    if lost := _lost(mark):
        ran["history"] = with_lost(_part_of(fields).get("history"), lost)
    mark_fields = readable_object(mark) if running.get("worker") else None
    return _revoked(task_id, reason, fields, _ended_now(_part_of(fields) | ran, mark_fields))


def purged(task_id: str, before: bytes | str | None, pipeline: str) -> str:
    """Returns the record of a task that waited on a queue when an operator emptied it.

    Args:
        task_id: the task's id.
        before: the record before that; None if there was none.
        pipeline: the queue's pipeline.
    """
    fields = json_object(before) or {}
    return _revoked(task_id, ErrorCode.PURGED, fields, {**_ended_now(_part_of(fields)), **_purged_part(pipeline)})


@lru_cache(maxsize=1)
def _purged_part(pipeline: str) -> dict[str, Any]:
    # Made once for a million records.
    sentence = f"an operator emptied the queue of {shown.line(pipeline)!r} while the task waited there: submit it again"
    return Part(pipeline=pipeline, error=PipeqError(ErrorCode.PURGED, sentence)).fields()


def _revoked(task_id: str, reason: str, before: Mapping[str, Any], part: dict[str, Any]) -> str:
    return Record(
        status=CELERY_STATES[State.CANCELLED],
        # Celery reads the reason of a revocation from here.
        result={
            "exc_type": "TaskRevokedError",
            "exc_message": [str(reason)],
            "exc_module": "celery.exceptions",
        },
        children=before.get("children", []),
        date_done=datetime.now(UTC).isoformat(),
        task_id=task_id,
        pipeq=part,
    ).encode()


#: The fields of a part that say how a task ended, or when it was to end: they belong to one life of it.
_OF_ONE_LIFE = frozenset(
    {
        "due_at",
        "expires_at",
        "started_at",
        "finished_at",
        "worker",
        "timing_ms",
        "batch",
        "model",
        "result_uri",
        "error",
    }
)


def revived(task_id: str, before: bytes | str | None, *, pipeline: str, attempts: int, now: float) -> str:
    """Returns the record of a task that failed and gets a new life: it waits on its queue again.

    Args:
        task_id: the task's id.
        before: the record before that; None if there is none any more.
        pipeline: the task's pipeline.
        attempts: how often workers have begun to run it.
        now: when it goes back on its queue, in seconds since the epoch; its time in the queue counts from then.
    """
    old = _part_of(json_object(before) or {})
    kept = {name: value for name, value in old.items() if name not in _OF_ONE_LIFE}
    history = with_lost(old.get("history"), _last_attempt(old, State.FAILED)) or None
    part = Part(pipeline=pipeline, submitted_at=now, attempts=attempts, history=history).fields()
    text = Record(status=CELERY_STATES[State.QUEUED], task_id=task_id, pipeq=kept | part).encode()
    return text.replace(_QUEUED_HEAD.replace(" ,", ","), _QUEUED_HEAD, 1)


def complete(record: dict[str, Any], task_id: str, part: Part | None, before: bytes | None = None) -> None:
    """Adds the id and pipeq's part to a record that Celery's result backend has made.

    Args:
        record: Celery's fields of the record; changed in place.
        task_id: the task's id.
        part: pipeq's part; None if Celery itself ended the task before its batch (revoked, expired).
        before: only used without a ``part``: the task's present record, whose part is kept.
    """
    record["task_id"] = task_id
    if part is not None:
        record["pipeq"] = part.fields()
    elif kept := _part_of(json_object(before) or {}):
        record["pipeq"] = _ended_now(kept)


def _part_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns pipeq's part of a record; empty if there is none."""
    return found if isinstance(found := fields.get("pipeq"), dict) else {}


def _ended_now(part: Mapping[str, Any], mark: Mapping[str, Any] | None = None) -> dict[str, Any]:
    now = time.time()
    # The error of an earlier try does not explain this end, and its times are not those of this one.
    found = {name: value for name, value in part.items() if name not in ("error", "timing_ms")} | {"finished_at": now}
    mark = mark or {}
    began_at, before = mark.get("since"), mark.get("timing_ms")
    timing_ms = times.of_ended_by_client(part.get("submitted_at"), part.get("due_at"), now, began_at, before)
    return found if timing_ms is None else {**found, "timing_ms": timing_ms}


# -- the history ------------------------------------------------------------------------------------------------------


def attempt(
    worker: object,
    started_at: object,
    ended_at: object,
    error: PipeqError | None = None,
    timing_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Returns one try as the history has it."""
    found = {"worker": worker, "started_at": started_at, "ended_at": ended_at}
    if error is not None:
        found |= {"code": error.code, "message": shown.line(error.message, HISTORY_CHARS)}
    found["stage"] = next((stage for stage in reversed(_STAGES) if stage in (timing_ms or ())), None)
    return {name: value for name, value in found.items() if value is not None}


def with_lost(history: object, more: Sequence[Any]) -> list[Any]:
    """Returns a history with further tries at its end, without the oldest ones beyond the bound."""
    return [*(history if isinstance(history, list) else ()), *more][-HISTORY_MAX:]


def _last_attempt(part: Mapping[str, Any], state: State) -> list[dict[str, Any]]:
    """Returns the last try of a task that has ended, if its record has it in its own fields alone; none if not."""
    worker, started_at = part.get("worker"), part.get("started_at")
    if worker is None and started_at is None:
        return []
    error, timing = part.get("error"), part.get("timing_ms")
    history = part.get("history")
    if isinstance(history, list) and history and isinstance(before := history[-1], dict):
        lost = ErrorCode.WORKER_LOST
        if state is State.FAILED and isinstance(error, dict) and error.get("code") == lost == before.get("code"):
            return []  # it failed because of the tries before
        is_same = (before.get("worker"), before.get("started_at")) == (worker, started_at)
        if state in (State.CANCELLED, State.EXPIRED) and is_same:
            return []  # it ended while it waited for its next try, so these fields are of the last one
    found = attempt(worker, started_at, part.get("finished_at"), None, timing if isinstance(timing, dict) else None)
    if isinstance(error, dict):
        message = error.get("message")
        found |= {"code": error.get("code"), "message": message[:HISTORY_CHARS] if isinstance(message, str) else None}
    elif state in (State.CANCELLED, State.EXPIRED):
        found["code"] = str(state)
    return [found]


def _lost(mark: bytes | str | None) -> list[Any]:
    lost = (readable_object(mark) or {}).get("lost_tries")
    return lost if isinstance(lost, list) else []


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Before:
    """The fields of an existing record that are needed before it is changed."""

    #: Whether the task has ended; its record then does not change.
    has_ended: bool = False
    #: As in :class:`Part`.
    submitted_at: float | None = None
    due_at: float | None = None
    expires_at: float | None = None
    message_sha256: str | None = None
    pipeline: str | None = None
    history: list[Any] | None = None

    @classmethod
    def read(cls, reply: object) -> Before:
        """Reads a reply of Redis. An error (the key does not hold a string) and an invalid record give an empty one."""
        fields = json_object(reply) if isinstance(reply, bytes | str) else None
        if fields is None:
            return _NOTHING
        status, part = fields.get("status"), _part_of(fields)
        sha256, pipeline = part.get("message_sha256"), part.get("pipeline")
        return cls(
            isinstance(status, str) and status in ENDED,
            _moment(part.get("submitted_at")),
            _moment(part.get("due_at")),
            _moment(part.get("expires_at")),
            sha256 if isinstance(sha256, str) else None,
            pipeline if isinstance(pipeline, str) else None,
            history if isinstance(history := part.get("history"), list) else None,
        )


_NOTHING = Before()


def _moment(value: object) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found < LATEST_S else None


def read(
    task_id: str, record: bytes | str | None, mark: bytes | str | None = None, *, now: float | None = None
) -> TaskStatus:
    """Returns the status of a task, for any text that Redis holds under its id.

    A record that cannot be read gives ``unknown``, or ``running`` if a mark says so, and the error
    ``invalid_record``. Fields of a wrong type are left out.

    Args:
        task_id: the task's id.
        record: the bytes under ``celery-task-meta-<id>``; None if there are none.
        mark: the bytes of the task's field in ``pipeq:running``; None if there are none. Read it before the
            record, so that a task that ends in between is seen to have ended.
        now: seconds since the epoch. A queued task past its expiry reads ``expired`` even if no worker runs.
    """
    running = _running(mark)
    if record is None:
        return _of_what_fits({"id": task_id, "state": State.UNKNOWN} | running)[0]
    try:
        fields = readable(record)
    except UnreadableError as error:
        return _unreadable(task_id, str(error), running)
    if not isinstance(fields, dict):
        return _unreadable(task_id, "it is no JSON object", running)
    if not isinstance(fields.get("status"), str):
        return _unreadable(task_id, "its `status` is no text", running)
    return _status(task_id, fields, running, time.time() if now is None else now)


def _status(task_id: str, record: dict[str, Any], running: dict[str, Any], now: float) -> TaskStatus:
    part = _part_of(record)
    # Celery's other states (PENDING, RECEIVED) mean that a task waits.
    state: State = _STATES.get(record["status"], State.QUEUED)
    if state is State.CANCELLED and revoked_reason(record) == "expired":
        state = State.EXPIRED
    fields = {name: part[name] for name in TaskStatus.model_fields if name in part}
    fields |= {"id": task_id, "state": state}
    if state.is_final:
        fields["history"] = _attempts(part.get("history"), _last_attempt(part, state))
    if state is State.SUCCEEDED:
        if part.get("result_uri") is None:
            fields["result"] = record.get("result")
    elif state is State.FAILED:
        fields["error"] = part.get("error") or _foreign_error(record)
    elif not state.is_final:
        fields |= running
        fields["history"] = _attempts(part.get("history"), running.get("history", ()))
    status, dropped = _of_what_fits(fields)
    if state is State.SUCCEEDED and dropped & {"result", "result_uri"}:
        return _unreadable(task_id, f"its {' and '.join(sorted(dropped))} cannot be read", {})
    if state is State.FAILED and status.error is None:
        # The failure itself is certain.
        return status.model_copy(update={"error": _invalid(task_id, "what it says of the error cannot be read")})
    # Only a number that was checked can be compared.
    if status.state is State.QUEUED and (status.expires_at or float("inf")) < now:
        return status.model_copy(update={"state": State.EXPIRED})
    return status


def _of_what_fits(fields: dict[str, Any]) -> tuple[TaskStatus, set[str]]:
    """Returns the status without the fields of a wrong type, and the names of these fields."""
    try:
        return TaskStatus(**fields), set()
    except PipeqError as error:
        cause = error.__cause__
    found = cause.errors(include_url=False, include_input=False) if isinstance(cause, ValidationError) else []
    wrong = {str(item["loc"][0]) for item in found}
    return TaskStatus(**{name: value for name, value in fields.items() if name not in wrong}), wrong


def _running(mark: bytes | str | None) -> dict[str, Any]:
    """Returns the fields of a status that a mark replaces while a task runs; none if the mark names no worker."""
    fields = readable_object(mark) or {}
    worker = fields.get("worker")
    if not isinstance(worker, str) or not worker:
        # It went back on its queue after deaths: the tries that ended so count.
        return {"history": lost, "attempts": fields.get("attempt", 1)} if (lost := _lost(mark)) else {}
    return {
        "state": State.RUNNING,
        "worker": worker,
        "attempts": fields.get("attempt", 1),
        "started_at": fields.get("since"),
        "progress": fields.get("progress"),
        "history": [*_lost(mark), attempt(worker, fields.get("since"), None)],
    }


def _attempts(earlier: object, last: Sequence[Any]) -> list[Attempt]:
    """Returns the tries that can be read."""
    found = []
    for one in with_lost(earlier, ()) + list(last):
        try:
            found.append(Attempt(**one))
        except (ValidationError, TypeError):
            continue
    return found


def _unreadable(task_id: str, why: str, running: dict[str, Any]) -> TaskStatus:
    return _of_what_fits({"id": task_id, "state": State.UNKNOWN, "error": _invalid(task_id, why)} | running)[0]


def _invalid(task_id: str, why: str) -> ErrorInfo:
    key = keys.record_key(shown.line(task_id))
    return ErrorInfo(code=ErrorCode.INVALID_RECORD, message=f"{key} in Redis is no record: {why}", retryable=False)


def revoked_reason(record: dict[str, Any]) -> str:
    """Returns the reason of a revocation, which Celery stores as the argument of a TaskRevokedError."""
    result = record.get("result")
    message = result.get("exc_message") if isinstance(result, dict) else None
    return str(message[0]) if isinstance(message, list | tuple) and message else str(message or "")


def _foreign_error(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the error of a failure that Celery itself stored, for instance of a task that no worker knows."""
    result = record.get("result")
    if isinstance(result, dict) and "exc_type" in result:
        message = result.get("exc_message")
        text = " ".join(str(part) for part in message) if isinstance(message, list | tuple) else str(message)
        return {"code": ErrorCode.INTERNAL, "message": f"{result['exc_type']}: {text}", "retryable": False}
    return {"code": ErrorCode.INTERNAL, "message": str(result), "retryable": False}
