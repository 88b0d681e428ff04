"""Builds records: that of each state in which a task may be, from what was there before."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pipeq.contract import shown, times
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object, readable_object
from pipeq.contract.record.fields import QUEUED_HEAD, Part, Record, lost_of, part_of
from pipeq.contract.record.history import last_attempt, with_lost
from pipeq.contract.record.reading import running_of
from pipeq.contract.status import CELERY_STATES, State
from pipeq.contract.writing import to_json

#: The beginning of every first record. Encoding the whole record each time would take a tenth of a submit's time.
_QUEUED_BEGIN = (
    Record(status=CELERY_STATES[State.QUEUED], task_id="", pipeq={})
    .encode()
    .partition('"", "pipeq"')[0]
    .replace('{"status": "QUEUED",', QUEUED_HEAD)
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
    return _revoked(task_id, reason, fields, _ended_now(part_of(fields), mark))


def purged(task_id: str, before: bytes | str | None, pipeline: str, mark: bytes | str | None = None) -> str:
    """Returns the record of a task that waited on a queue when an operator emptied it.

    Args:
        task_id: the task's id.
        before: the record before that; None if there was none.
        pipeline: the queue's pipeline.
        mark: its running mark, which says of deaths before that; None if there is none.
    """
    fields = json_object(before) or {}
    ended = _ended_now(part_of(fields), mark)
    return _revoked(task_id, ErrorCode.PURGED, fields, {**ended, **_purged_part(pipeline)})


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
    old = part_of(json_object(before) or {})
    kept = {name: value for name, value in old.items() if name not in _OF_ONE_LIFE}
    history = with_lost(old.get("history"), last_attempt(old, State.FAILED)) or None
    part = Part(pipeline=pipeline, submitted_at=now, attempts=attempts, history=history).fields()
    text = Record(status=CELERY_STATES[State.QUEUED], task_id=task_id, pipeq=kept | part).encode()
    return text.replace(QUEUED_HEAD.replace(" ,", ","), QUEUED_HEAD, 1)


def complete(
    record: dict[str, Any],
    task_id: str,
    part: Part | None,
    before: bytes | None = None,
    mark: bytes | None = None,
) -> None:
    """Adds the id and pipeq's part to a record that Celery's result backend has made.

    Args:
        record: Celery's fields of the record; changed in place.
        task_id: the task's id.
        part: pipeq's part; None if Celery itself ended the task before its batch (revoked, expired).
        before: only used without a ``part``: the task's present record, whose part is kept.
        mark: the same, its running mark.
    """
    record["task_id"] = task_id
    if part is not None:
        record["pipeq"] = part.fields()
    elif kept := part_of(json_object(before) or {}):
        record["pipeq"] = _ended_now(kept, mark)


def _ended_now(part: Mapping[str, Any], raw_mark: bytes | str | None = None) -> dict[str, Any]:
    """The part of a task that somebody ends now who does not run it; what its mark says of its tries counts."""
    now, running = time.time(), running_of(raw_mark)
    ran: dict[str, Any] = {name: running[name] for name in ("worker", "attempts", "started_at") if name in running}
    if lost := lost_of(raw_mark):
        ran["history"] = with_lost(part.get("history"), lost)
    part = {**part, **ran}
    # The error of an earlier try does not explain this end, and its times are not those of this one.
    found = {name: value for name, value in part.items() if name not in ("error", "timing_ms")} | {"finished_at": now}
    mark = (readable_object(raw_mark) if running.get("worker") else None) or {}
    began_at, before = mark.get("since"), mark.get("timing_ms")
    timing_ms = times.of_ended_by_client(part.get("submitted_at"), part.get("due_at"), now, began_at, before)
    return found if timing_ms is None else {**found, "timing_ms": timing_ms}
